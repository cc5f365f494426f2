#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The promise about the downtime, and how well it is foretold.

    converge_bench.py BUILD [prediction|limit ...] [--runs N] [--rate R]

limit: a guest of 4 GiB with --downtime-limit 300, that dirties 0 to 1600 MiB/s, with and without a device
with data, into memory that the destination has (warm) or takes from the host as it comes (cold). A run
keeps the promise when the guest moved within the limit, or did not move and stayed where it was with a
reason; and how far off the prediction was. prediction: the same of smaller guests, whose downtime is
short. Prints a JSON list of rows."""
import argparse
import json
import pathlib
import sys
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import demo as lab  # noqa: E402  (the demo's processes and control sockets)

LIMIT_MS = 300
RATES = (0, 200, 800, 1600)


class Lab(lab.Demo):
    def bulk(self, name):
        path = self.folder / f"{name}.sock"
        self.spawn(name, "device", "bulk", "--socket", path, "--state-size", "16M", "--dirty-rate", "8M")
        self.wait_for(f"the socket of {name}", lambda: lab.listening(path))
        return path

    def machine(self, name, kind, device=None, *more):
        qmp = self.folder / f"{name}.qmp"
        arguments = ["vm", "--name", name, "--accel", "none", "--memory", f"{kind['memory']}M",
                     "--cpus", 2, "--working-set", f"{kind['set']}M",
                     "--dirty-rate", f"{max(kind['rate'], 1)}M", "--qmp", qmp,
                     "--journal", self.folder / f"{name}.journal", *more]
        if device:
            arguments += ["--device", f"vfio-user:{device},id=bulk0"]
        (self.folder / f"{name}.journal").mkdir(exist_ok=True)
        self.spawn(name, *arguments)
        self.wait_for(f"the control socket of {name}", lambda: lab.listening(qmp), 120)
        return lab.Qmp(qmp)


def written(source):
    return sum(cpu["pages-written"] for cpu in source.run("x-guest")["cpus"])


def migrate(build, kind, parameters, deadline):
    """query-migrate's answer at the end of a migration, and whether the guest is where it says."""
    bench = Lab(types.SimpleNamespace(build=build, quick=True, accel="none"))
    try:
        devices = [bench.bulk("bulk-a"), bench.bulk("bulk-b")] if kind.get("bulk") else [None, None]
        source = bench.machine("vm-a", kind, devices[0])
        port = lab.free_port()
        warm = ["--prefault"] if kind.get("warm") else []
        target = bench.machine("vm-b", kind, devices[1], "--incoming", f"tcp:127.0.0.1:{port}", *warm)
        pages = min(kind["set"] << 7, kind["rate"] << 7)  # half of it, or half a second
        bench.wait_for("some work of the guest", lambda: written(source) >= pages)
        source.run("migrate-set-parameters", **parameters)
        source.run("migrate", uri=f"tcp:127.0.0.1:{port}", **{"x-deadline": deadline})

        def ended():
            status = source.run("query-migrate")
            return status if status["status"] in ("completed", "failed") else None
        status = bench.wait_for("the end of the migration", ended, deadline + 30)
        moved = status["status"] == "completed"
        if moved:
            bench.wait_for("the guest", lambda: target.run("query-status")["running"], 10)
        where = (source.run("query-status")["running"], target.run("query-status")["running"])
        errors = (target if moved else source).run("x-guest")["errors"]
        return status, where == (not moved, moved) and errors == 0
    finally:
        bench.close()


def say(text):
    print(f"converge: {text}", file=sys.stderr, flush=True)


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def describe(status):
    ours = status["x-vfmig"]
    told = ours.get("prediction", {})
    stops = f", stopped in vain {told['returns']} times" if told.get("returns") else ""
    return (f"{status['status']} after {status['total-time'] / 1e3:.1f} s, {ours['rounds']} rounds: "
            f"{ours['downtime-ns'] / 1e6:.1f} ms, expected {told.get('ns', 0) / 1e6:.1f} (before "
            f"the stop {told.get('decided-ns', 0) / 1e6:.1f}){stops}, reckoned with "
            f"{told.get('bound-ns', 0) / 1e6:.1f}, {told.get('pages', 0)} pages "
            f"{told.get('cold-pages', 0)} cold, vCPUs slowed by "
            f"{status.get('cpu-throttle-percentage', 0)} %; " +
            ", ".join(f"{part['name']} {part['expected-ns'] / 1e6:.1f}/{part['ns'] / 1e6:.1f}"
                      for part in told.get("parts", ())) + status.get("error-desc", ""))


def error_row(name, errors, decided, **judged):
    """Error of the prediction in percent: what the report says, and beside it that of before the stop."""
    p95 = quantile(errors, 0.95)
    return {"name": name, "unit": "%", "ours": 100 * p95, "limit": 20, "ratio": p95 / 0.2,
            "runs": len(errors), "median": 100 * quantile(errors, 0.5), "worst": 100 * max(errors),
            "decided-p95": 100 * quantile(decided, 0.95),
            "decided-median": 100 * quantile(decided, 0.5), **judged}


def errors_of(status):
    told = status["x-vfmig"]["prediction"]
    return abs(told["error"]), abs(told["decided-error"])


def prediction(build, runs):
    # Smaller guests, whose downtime is 5 to 100 ms.
    kinds = [{"memory": memory, "set": working, "rate": rate, "bulk": bulk, "warm": warm}
             for memory, working in ((1024, 512), (2048, 1024)) for rate in (400, 800, 1600)
             for bulk, warm in ((False, False), (True, False), (False, True))]
    errors = []
    for run in range(runs):
        kind = kinds[run % len(kinds)]
        status, right = migrate(build, kind, {"downtime-limit": LIMIT_MS}, 60)
        if status["status"] != "completed" or not right:
            raise SystemExit(f"converge: a guest {kind} did not move: {describe(status)}")
        errors.append(errors_of(status))
        say(f"{kind}: {errors[-1][0]:.0%} {describe(status)}")
    return [error_row("prediction-error-small-p95", *zip(*errors))]


def limit(build, runs, only):
    """Every second run has a device with 16 MiB of data."""
    rows, errors = [], []
    for warm in (True, False):
        for rate in only or RATES:
            name = f"limit-{LIMIT_MS}-{'warm' if warm else 'cold'}-{rate}"
            kept, moved = 0, []
            for run in range(runs):
                kind = {"memory": 4096, "set": 1024, "rate": rate, "warm": warm, "bulk": run % 2 == 1}
                status, right = migrate(build, kind, {"downtime-limit": LIMIT_MS,
                                                      "max-cpu-throttle": 80}, 60)
                downtime = status["x-vfmig"]["downtime-ns"] / 1e6
                gone = status["status"] == "completed"
                kept += right and (downtime <= LIMIT_MS if gone
                                   else "the deadline passed" in status["error-desc"])
                moved += [downtime] if gone else []
                errors += [errors_of(status)] if gone else []
                say(f"{name}{' with a device' if kind['bulk'] else ''}: {describe(status)}")
            rows.append({"name": name, "unit": "runs", "ours": kept, "limit": runs,
                         "ratio": kept / runs, "floor": 1.0, "moved": len(moved),
                         "worst-ms": max(moved, default=0)})
    if not errors:
        raise SystemExit("converge: no guest moved within the limit")
    return [error_row("prediction-error-p95", *zip(*errors), ceiling=1.0)] + rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("what", nargs="*", default=["prediction", "limit"])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--rate", type=int, action="append", help="of the limit, only this")
    options = parser.parse_args()
    build, rows = options.build.resolve(), []
    if "prediction" in options.what:
        rows += prediction(build, options.runs or 18)
    if "limit" in options.what:
        rows += limit(build, options.runs or 2, options.rate)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
