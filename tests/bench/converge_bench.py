#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The promise about the downtime, and how well it is foretold.

    converge_bench.py BUILD [--kind KIND ...] [--runs N] [--long] [--results FILE [--seconds S]]

Kinds limit-300-*: a guest of 4 GiB with --downtime-limit 300, that dirties 0 to 1600 MiB/s, with and
without a device with data, into memory that the destination has (warm) or takes from the host as it comes
(cold). A run keeps the promise when the guest moved within the limit, or did not move and stayed where it
was with a reason; and how far off the prediction was. Kinds small-*: how far off it is
for smaller guests, whose downtime may be a few milliseconds; shown, not judged.

Without --long, a few of each kind; with it, N of each limit-300 kind (50). With --results each
run is a line of FILE, and those that are there, of this build, are not made again: no run begins after S
seconds, and the next call goes on. Prints a JSON list of rows, of what there is so far."""
import argparse
import hashlib
import json
import os
import pathlib
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import demo as lab  # noqa: E402  (the demo's processes and control sockets)

LIMIT_MS = 300
# How often make bench runs each kind: over 50 of those that are judged.
OF_LARGE, OF_SMALL = 7, 2


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


def kinds():
    """By name: memory, working set, MiB/s written; bulk: every second run has a device with 16 MiB."""
    large = {f"limit-{LIMIT_MS}-{'warm' if warm else 'cold'}-{rate}":
             {"memory": 4096, "set": 1024, "rate": rate, "warm": warm}
             for warm in (True, False) for rate in (0, 200, 800, 1600)}
    small = {f"small-{'warm' if warm else 'cold'}-{memory}-{rate}":
             {"memory": memory, "set": memory // 2, "rate": rate, "warm": warm}
             for warm in (True, False) for memory in (1024, 2048) for rate in (400, 800, 1600)}
    return large, small


def one(build, name, kind, bulk):
    """A run as a line of the results: what was promised, what was told, and how it came."""
    os.sync()  # what was written before does not hold up the journals
    began = time.monotonic()
    status, right = migrate(build, dict(kind, bulk=bulk), {"downtime-limit": LIMIT_MS,
                                                           "max-cpu-throttle": 80}, 60)
    downtime = status["x-vfmig"]["downtime-ns"] / 1e6
    gone = status["status"] == "completed"
    kept = right and (downtime <= LIMIT_MS if gone else "the deadline passed" in status["error-desc"])
    told = status["x-vfmig"].get("prediction", {})
    say(f"{name}{' with a device' if bulk else ''}: {describe(status)}")
    return {"kind": name, "bulk": bulk, "kept": kept, "moved": gone, "downtime-ms": downtime,
            "error": told.get("error"), "decided-error": told.get("decided-error"),
            "seconds": time.monotonic() - began, "status": status}


def error_row(name, runs, **more):
    """Error of the prediction in percent: what the report says, and beside it that of before the stop."""
    errors = [abs(run["error"]) for run in runs]
    decided = [abs(run["decided-error"]) for run in runs]
    p95 = quantile(errors, 0.95)
    return {"name": name, "unit": "%", "ours": 100 * p95, "limit": 20,
            "ratio": p95 / 0.2, "runs": len(errors),
            "median": 100 * quantile(errors, 0.5), "worst": 100 * max(errors),
            "decided-p95": 100 * quantile(decided, 0.95),
            "decided-median": 100 * quantile(decided, 0.5), **more}


def sum_up(runs):
    large, small = kinds()
    moved = [run for run in runs if run["moved"] and run["kind"] in large]
    if not moved:
        raise SystemExit("converge: no guest moved within the limit")
    rows = [error_row("prediction-error-p95", moved, ceiling=1.0)]
    moved = [run for run in runs if run["moved"] and run["kind"] in small]
    if moved:
        rows.append(error_row("prediction-error-small-p95", moved))
    for name in large:
        of = [run for run in runs if run["kind"] == name]
        if not of:
            continue
        kept = sum(run["kept"] for run in of)
        rows.append({"name": name, "unit": "runs", "ours": kept, "limit": len(of),
                     "ratio": kept / len(of), "floor": 1.0, "moved": sum(run["moved"] for run in of),
                     "worst-ms": max((run["downtime-ms"] for run in of if run["moved"]), default=0)})
    return rows


class Results:
    """The lines of a file, of this build; without a file they are gone with the process."""

    def __init__(self, path, build):
        self.path, self.runs = path, []
        self.build = hashlib.sha256((build / "tools" / "vfmig").read_bytes()).hexdigest()
        if path and path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self.runs = [line for line in lines if line["build"] == self.build]

    def add(self, run):
        run["build"] = self.build
        self.runs.append(run)
        if self.path:
            with open(self.path, "a") as out:
                out.write(json.dumps(run) + "\n")

    def count(self, name):
        return sum(run["kind"] == name for run in self.runs)


def plan(options):
    """Kinds and how many runs of each; one of each in turns, so that what is there is of all of them."""
    large, small = kinds()
    if options.long:
        wanted = {name: options.runs or 50 for name in large}
    else:
        wanted = {**{name: options.runs or OF_LARGE for name in large},
                  **{name: options.runs or OF_SMALL for name in small}}
    return {name: runs for name, runs in wanted.items() if name in (options.kind or wanted)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--kind", action="append", choices=[name for of in kinds() for name in of])
    parser.add_argument("--runs", type=int, help="of each kind")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, help="no run begins later")
    options = parser.parse_args()
    build, wanted = options.build.resolve(), plan(options)
    results = Results(options.results, build)
    known = {name: kind for of in kinds() for name, kind in of.items()}
    end = time.monotonic() + (options.seconds or 1 << 30)
    while time.monotonic() < end:
        missing = [name for name in wanted if results.count(name) < wanted[name]]
        if not missing:
            break
        name = min(missing, key=results.count)
        results.add(one(build, name, known[name], bulk=results.count(name) % 2 == 1))
    print(json.dumps(sum_up(results.runs)))


if __name__ == "__main__":
    main()
