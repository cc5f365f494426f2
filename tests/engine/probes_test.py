# SPDX-License-Identifier: BSD-3-Clause
"""USDT probes: what the table promises is in the program's ELF notes, with its arguments, and nothing else."""
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
VFMIG = os.environ["VFMIG"]
# One argument of a note: size, sign, then where it is: -4@$1, 8@%rax, 8@-16(%rbp)
ARGUMENT = re.compile(r"-?[1248]@\S+")


def table():
    rows = re.findall(r"^PROBE\((\w+), (\w+), (\d)\)$", (ROOT / "tables/probes.def").read_text(), re.M)
    assert len(rows) > 20
    return {name: (event, int(count)) for name, event, count in rows}


def notes(program):
    """name: the number of arguments of each place in the program."""
    text = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=True).stdout
    found = {}
    for provider, name, arguments in re.findall(
            r"Provider: (\w+)\n\s+Name: (\w+)\n.*\n\s+Arguments: (.*)", text):
        if provider == "vfmig":
            found.setdefault(name, []).append(len(ARGUMENT.findall(arguments)))
    return found


@pytest.mark.parametrize("program", [VFMIG, os.environ["LIBVFMIG"]])
def test_every_probe_of_the_table_is_in_the_program(program):
    found = notes(program)
    assert found.keys() == table().keys()
    for name, (_, count) in table().items():
        assert set(found[name]) == {count}, name


def test_a_probe_has_no_more_arguments_than_its_event_has_fields():
    events = (ROOT / "tables/trace.def").read_text()
    for name, (event, count) in table().items():
        row = re.search(rf"^TRACE\({event}, .*?\)\)?\n(?=TRACE|#undef)", events, re.M | re.S)
        assert row, name
        fields = re.findall(r'\b[UISB]\("\w+", "', row[0])
        assert 1 <= count <= len(fields) + 1, name
