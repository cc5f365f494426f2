#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every pair of troubles of tests/engine/matrix_test.c, in pieces; what became of the guest, counted.

    matrix.py BUILD [--jobs N]

A pair that fails is told, and the next one follows. Exit code 0: all were run and none failed.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PIECES = 41      # some 145 pairs each
PATIENCE = 1800  # seconds for a piece: a hang must end, nothing else is measured
SUM = re.compile(r"(\d+) runs: (\d+) back, (\d+) moved, (\d+) paused")
OUTCOMES = ("runs", "back", "moved", "paused")


def piece(program, first):
    """The pairs first, first + PIECES, ...: their sums, and what to say of those that failed."""
    sums, troubles = [0] * len(OUTCOMES), []
    while True:
        try:
            run = subprocess.run([program, "pairs", f"{first}/{PIECES}"], text=True, timeout=PATIENCE,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as stuck:
            return sums, troubles + [f"{first}/{PIECES} hangs\n{stuck.stdout}"]
        found = SUM.search(run.stdout)
        if found:
            sums = [a + int(b) for a, b in zip(sums, found.groups())]
        if run.returncode == 0 and found:
            return sums, troubles
        failed = re.search(r"failed at (\d+): ", run.stdout)
        troubles.append(run.stdout if failed else f"{first}/{PIECES} ended with {run.returncode}\n{run.stdout}")
        if not failed:
            return sums, troubles
        first = int(failed[1]) + PIECES


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    program = args.build / "tests/engine/engine_matrix_test"
    total, failures = [0] * len(OUTCOMES), 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for done, (sums, troubles) in enumerate(pool.map(lambda first: piece(program, first), range(PIECES)), 1):
            total = [a + b for a, b in zip(total, sums)]
            failures += len(troubles)
            print("".join(text + "\n" for text in troubles), end="")
            print(f"{done} of {PIECES} pieces, {total[0]} pairs, {failures} failed", flush=True)
    runs, back, moved, paused = total
    print(f"{runs} pairs: in {back} the guest runs on at the source, in {moved} at the destination, "
          f"in {paused} it stands at the destination after the grant; {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
