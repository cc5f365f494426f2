#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The deliberate bugs of bugs.txt, for docs/reliability.md.

    bugs.py table               prints the table
    bugs.py check ROOT BUILD    fails when the document is stale, or a bug is not applied by the build's tests: by a
                                test of its own with that VFMIG_SABOTAGE, or by clauses.py, which applies its own"""
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"


def bugs():
    lines = (HERE / "bugs.txt").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if line and not line.startswith("#")]


def table():
    lines = ["| bug | `VFMIG_SABOTAGE` | found by |", "|---|---|---|"]
    return "\n".join(lines + [f"| {bug} | `{name}` | {test} |" for bug, name, test in bugs()]) + "\n"


def clause_rows():
    for path in (HERE.parent / "clauses").glob("*.txt"):
        for line in path.read_text().splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) == 5 and not line.startswith("#"):
                yield cells[3], cells[4]


def check(root, build):
    text = (pathlib.Path(root) / "docs/reliability.md").read_text()
    troubles = [] if text.split(BEGIN)[1].split(END)[0] == table() else ["docs/reliability.md is stale: `make docs`"]
    listed = subprocess.run(["meson", "introspect", "--tests", build], check=True, capture_output=True, text=True)
    applied = {(test["name"], test["env"].get("VFMIG_SABOTAGE")) for test in json.loads(listed.stdout)}
    applied |= set(clause_rows())
    troubles += [f"nothing applies {name} to {test}" for _, name, test in bugs() if (test, name) not in applied]
    if len(bugs()) < 20:
        troubles.append("fewer than 20 bugs")
    print("\n".join(troubles) or f"{len(bugs())} deliberate bugs, each applied")
    return 1 if troubles else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        print(table(), end="")
    elif len(sys.argv) == 4 and sys.argv[1] == "check":
        sys.exit(check(sys.argv[2], sys.argv[3]))
    else:
        sys.exit(__doc__)
