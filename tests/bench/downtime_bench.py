#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Downtime that the engine adds: a small idle guest with one stateless device, moved over TCP
loopback. The limit is what nobody can leave out: the journal's fsyncs and the round trips of
READY and GRANT, as measured in the same migration."""
import json
import pathlib
import statistics
import sys
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import demo as lab  # noqa: E402  (the demo's processes and control sockets)

RUNS = 5


class Lab(lab.Demo):
    def devices(self, side, dialects, refusal=()):
        path = self.folder / f"null-{side}.sock"
        self.spawn_program(path.stem, self.options.build / "examples" / "null_device", path)
        self.wait_for(f"the socket of {path.stem}", lambda: lab.listening(path))
        return ["--device", f"vfio-user:{path},dialect={dialects[0]},id=null0"]


def one(build):
    options = types.SimpleNamespace(build=build, quick=True, accel="none")
    bench = Lab(options)
    bench.memory, bench.working, bench.rate = 64, 16, 1
    try:
        source, path = bench.vm("a", ["feature"])
        port = lab.free_port()
        bench.vm("b", ["feature"], f"tcp:127.0.0.1:{port}")
        result = bench.migrate(path, port, quiet=True)
        if result.returncode:
            raise lab.Failed(result.stderr)
        report = source.run("query-migrate")["x-vfmig"]
        return report
    finally:
        bench.close()


def share(report, name):
    return next(row["ns"] for row in report["shares"] if row["name"] == name) / 1e6


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    reports = [one(build) for _ in range(RUNS)]
    total = statistics.median(report["downtime-ns"] / 1e6 for report in reports)
    journal = statistics.median(share(report, "journals of both sides") for report in reports)
    trips = statistics.median(2 * report["rtt-ns"] / 1e6 for report in reports)
    print(json.dumps([{"name": "downtime-stateless", "unit": "ms", "ours": total,
                       "limit": journal + trips, "ratio": total / (journal + trips),
                       "journal": journal}]))


if __name__ == "__main__":
    main()
