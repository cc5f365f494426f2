#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""make bench: runs every benchmark of a release build and writes bench.json.

    bench.py BUILD [NAME ... | --long [SECONDS]]

--long runs what takes long, and nothing else: every guest of a kind 50 times. Its runs are kept in
converge-runs.jsonl beside the build, and those of the same build count, so that it can be done in pieces of
SECONDS.

Each benchmark measures ours and the physical limit (or a peer) in the same run and prints a JSON
list of rows {name, unit, ours, limit, ratio, floor or ceiling}. A row that is expected and does
not come is a failure; a row beyond its bound is reported and fails too.
"""
import json
import pathlib
import subprocess
import sys

LIMITS = [f"limit-300-{memory}-{rate}" for memory in ("warm", "cold")
          for rate in (0, 200, 800, 1600)]

BENCHMARKS = {
    "memory_bench": ["memory-tcp-1", "memory-tcp-2", "memory-tcp-4", "memory-tcp-2-cold"],
    "tls_bench": ["tls-throughput", "tls-throughput-crypto"],
    "region_bench": ["region-read-one-core", "region-write-one-core",
                     "region-read-unpinned", "region-write-unpinned"],
    "dma_bench": ["dma-map", "dma-map-fd", "message-dma-4k", "message-dma-1m"],
    "data_bench": ["mig-data-read", "mig-data-write", "window-staged", "window-direct",
                   "window-shared"],
    "log_bench": ["log-report-4g-0", "log-report-4g-1", "log-report-4g-100"],
    "scan_bench": ["dirty-scan-1t-1", "dirty-scan-1t-1-clustered"],
    "downtime_bench.py": ["downtime-stateless"],
    "devices_bench": ["devices-rate-8", "devices-rate-64", "devices-free-1", "devices-free-2",
                      "devices-free-4", "devices-free-8", "devices-stateless-4"],
    "local_bench.py": ["local-downtime", "local-total"],
    "converge_bench.py": ["prediction-error-p95"] + LIMITS,
}

LONG_RUNS = 50


def long_benchmarks(build, seconds):
    results = build.parent / "converge-runs.jsonl"
    piece = f" --seconds {seconds}" if seconds else ""
    return {f"converge_bench.py --long --runs {LONG_RUNS} --results {results}{piece}":
            ["prediction-error-p95"] + LIMITS}


def verdict(row):
    if "floor" in row:
        return row["ratio"] >= row["floor"], f"floor {row['floor']}"
    if "ceiling" in row:
        return row["ratio"] <= row["ceiling"], f"ceiling {row['ceiling']}"
    return True, "shown"


def run(build, name):
    name, *arguments = name.split()
    source = pathlib.Path(__file__).resolve().parent.parent / "tests" / "bench" / name
    program = [sys.executable, str(source), str(build), *arguments] if name.endswith(".py") \
        else [str(build / "tests" / "bench" / name)]
    if not pathlib.Path(program[0]).exists():
        return None, f"{name} is not in this build"
    result = subprocess.run(program, stdout=subprocess.PIPE, timeout=2 * 3600, check=False)
    if result.returncode:
        return None, f"{name} exited with {result.returncode}"
    try:
        return json.loads(result.stdout), None
    except json.JSONDecodeError as error:
        return None, f"{name} printed no JSON: {error}"


def main(argv):
    if len(argv) < 2:
        sys.exit(__doc__)
    build = pathlib.Path(argv[1]).resolve()
    rows, troubles = [], []
    long = argv[2:3] == ["--long"]
    piece = argv[3] if long and len(argv) > 3 else None
    for name, expected in (long_benchmarks(build, piece) if long else BENCHMARKS).items():
        if argv[2:] and not long and name not in argv[2:]:
            continue
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        found, trouble = run(build, name)
        if trouble:
            troubles.append(trouble)
            continue
        rows += found
        missing = set() if piece else set(expected) - {row["name"] for row in found}
        troubles += [f"{name}: no row {row}" for row in sorted(missing)]
    for row in rows:
        good, bound = verdict(row)
        print(f"{row['name']:<26} {row['ours']:>10.4g} {row['unit']:<7} limit {row['limit']:>10.4g}"
              f"  ratio {row['ratio']:.3f}  {bound}{'' if good else '  MISSED'}")
        if not good:
            troubles.append(f"{row['name']}: ratio {row['ratio']:.3f}, {bound}")
        if long and row["name"] in LIMITS and row["limit"] < LONG_RUNS:
            print(f"{row['name']}: {LONG_RUNS - row['limit']} more to be run")
            troubles += [] if piece else [f"{row['name']}: {row['limit']} of {LONG_RUNS} runs"]
    target = build.parent / ("bench-long.json" if long else "bench.json")
    target.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"bench: {len(rows)} rows in {target}")
    for trouble in troubles:
        print(f"bench: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
