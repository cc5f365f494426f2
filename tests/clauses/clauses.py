#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The clause table: docs/clauses.md from the coverage files beside this one, and the proof of it.

    clauses.py write ROOT            writes docs/clauses.md
    clauses.py fresh ROOT            fails when docs/clauses.md is not what `write` would write
    clauses.py prove ROOT BUILD      applies every sabotage and sees its test fail

A coverage file has lines `clause | who | where | test | sabotage`; who may be empty. The test is
a name of the build's test list; the sabotage is a name for VFMIG_SABOTAGE.
"""
import json
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
STATEMENTS = "statements.txt"


def rows(path, width):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != width:
            sys.exit(f"{path.name}:{number}: {len(cells)} cells, {width} wanted")
        yield cells


def statements():
    return {clause: (who, text) for clause, who, text in rows(HERE / STATEMENTS, 3)}


def coverage():
    known = statements()
    found = []
    for path in sorted(HERE.glob("*.txt")):
        if path.name == STATEMENTS:
            continue
        for clause, who, where, test, sabotage in rows(path, 5):
            if clause not in known:
                sys.exit(f"{path.name}: unknown clause {clause}")
            found.append((clause, who, where, test, sabotage))
    return found


def document():
    covered = {}
    for clause, _, where, test, sabotage in coverage():
        covered.setdefault(clause, []).append((where, test, sabotage))
    lines = [
        "# Clauses",
        "",
        "C1-C71 are the sentences of the RFC \"vfio: Documentation for the migration region\"",
        "(kvm list, 22 November 2021) in our words; X1-X12 are rules from the VFIO uAPI and its",
        "users. Who obeys: D device side, V VMM side, T tracker, I information. Every sabotage is",
        "a deliberate fault of test builds; `make check` applies each one and sees its test fail.",
        "\"not yet\" means that no test shows the clause so far. Written by `make docs`.",
        "",
        "| clause | says | who | where | test | sabotage |",
        "|---|---|---|---|---|---|",
    ]
    for clause, (who, text) in statements().items():
        if clause in covered:
            for where, test, sabotage in covered[clause]:
                lines.append(f"| {clause} | {text} | {who} | {where} | {test} | `{sabotage}` |")
        else:
            lines.append(f"| {clause} | {text} | {who} | | not yet | |")
    done = len(covered)
    lines += ["", f"{done} of {len(statements())} clauses have a test and a sabotage."]
    return "\n".join(lines) + "\n"


TRIES = 3


def prove(build):
    listed = subprocess.run(["meson", "introspect", "--tests", build], check=True,
                            capture_output=True, text=True)
    commands = {test["name"]: test for test in json.loads(listed.stdout)}
    cases = sorted({(test, sabotage) for _, _, _, test, sabotage in coverage()})
    if not cases:
        sys.exit("no sabotage is listed")

    def run(case):
        # A fault that shows by chance must show in one run of three: only this way round may a test
        # be repeated.
        for _ in range(TRIES):
            case, trouble = once(case)
            if trouble != "not noticed":
                break
        return case, trouble

    def once(case):
        test, sabotage = case
        if test not in commands:
            return case, f"no such test: {test}"
        entry = commands[test]
        env = dict(os.environ, **entry.get("env", {}), VFMIG_SABOTAGE=sabotage)
        try:
            result = subprocess.run(entry["cmd"], env=env, cwd=entry.get("workdir") or build,
                                    stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        except subprocess.TimeoutExpired:
            return case, None  # a hang is noticed: the test list has a time limit
        if result.returncode == 77:
            return case, "skipped"
        return case, None if result.returncode else "not noticed"

    with ThreadPoolExecutor(2 * os.cpu_count()) as pool:
        results = list(pool.map(run, cases))
    bad = 0
    for (test, sabotage), trouble in results:
        if trouble == "skipped":
            print(f"skip  {test}: {sabotage} (the test cannot run here)")
        elif trouble:
            bad += 1
            print(f"FAIL  {test}: {sabotage}: {trouble}")
        else:
            print(f"ok    {test}: {sabotage}")
    print(f"{len(results)} sabotages, {bad} not noticed")
    return 1 if bad else 0


def main(argv):
    if len(argv) < 3:
        sys.exit(__doc__)
    target = pathlib.Path(argv[2]) / "docs" / "clauses.md"
    if argv[1] == "write":
        target.write_text(document())
    elif argv[1] == "fresh":
        if target.read_text() != document():
            sys.exit("docs/clauses.md is stale: run `make docs`")
    elif argv[1] == "prove":
        return prove(argv[3])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
