#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A guest handed over on the same host with its memory (`vfmig migrate --local`), which must not
depend on how much memory that is: 8 GiB against 1 GiB, all of it there (prefaulted) if the host has
so much, with a device, in turns. The best of each is compared: what grows with the size is in all of
them, what others do on the host is not. The medians are told beside it."""
import json
import os
import pathlib
import statistics
import sys

RUNS = 5
SMALL, LARGE = 1, 8  # GiB
CEILING = 1.5
ROOT = pathlib.Path(__file__).resolve().parents[2]


def enough_memory():
    """For the larger guest, once; what is copied by mistake is noticed by the bytes sent."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 20 > LARGE + 2
    return False


def one(world, gib, prefault):
    with world.World(judge=False) as it:
        more = ["--prefault"] if prefault else []
        source = it.vm("a", "--working-set", "64M", "--dirty-rate", "64M", *more, memory=f"{gib}G",
                       devices=[it.device("dev-a")])
        it.vm("b", memory=f"{gib}G", devices=[it.device("dev-b")], incoming=it.uri())
        world.assert_guest_lives(source)
        result = world.migrate(source, it.uri(), "--local", "--json", "--downtime-limit", "2000")
        if result.returncode:
            sys.exit(result.stderr)
        report = json.loads(result.stdout)
        if report["ram"]["transferred"] > 16 << 20 or report["ram"]["normal"]:
            sys.exit("memory was copied")
        return report["x-vfmig"]["downtime-ns"] / 1e6, report["x-vfmig"]["total-ns"] / 1e6


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    os.environ["VFMIG"] = str(build / "tools" / "vfmig")
    sys.path.insert(0, str(ROOT / "tests" / "e2e"))
    import world  # noqa: E402  (reads VFMIG when it is loaded)
    prefault = enough_memory()
    runs = {SMALL: [], LARGE: []}
    for _ in range(RUNS):
        for gib, into in runs.items():
            into.append(one(world, gib, prefault))
    rows = []
    for index, name in enumerate(("downtime", "total")):
        small, large = (min(run[index] for run in runs[gib]) for gib in (SMALL, LARGE))
        medians = [statistics.median(run[index] for run in runs[gib]) for gib in (SMALL, LARGE)]
        rows.append({"name": f"local-{name}", "unit": "ms", "ours": large, "limit": small,
                     "ratio": large / small, "ceiling": CEILING, "prefault": prefault,
                     "medians": medians})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
