# SPDX-License-Identifier: BSD-3-Clause
"""Every row of quirks.py, with the engine between two devices that have the quirk."""
import json
import os
import pathlib
import subprocess
import tempfile

import pytest

from quirks import QUIRKS

HOST = os.environ["FOREIGN_HOST"]


class Run:
    """One migration (or two attempts) between two devices."""

    def __init__(self, row):
        with tempfile.TemporaryDirectory(prefix="vfmig-", dir="/tmp") as folder:
            self.devices = [
                row.device(pathlib.Path(folder) / side, side == "source",
                           **{**row.quirks, **row.only.get(side, {})})
                for side in ("source", "destination")]
            process = subprocess.run([HOST, *row.host, *(one.path for one in self.devices), folder],
                                     capture_output=True, text=True, timeout=120)
            for one in self.devices:
                one.join()
            stream = pathlib.Path(folder) / "stream"
            self.stream = stream.read_bytes() if stream.exists() else None
        self.source, self.destination = self.devices
        assert process.returncode == 0, process.stdout + process.stderr
        assert process.stderr == "" or "FOREIGN_TRACE" in os.environ, process.stderr
        self.result = json.loads(process.stdout)
        self.last = self.result.get("attempts", [None])[-1]
        if "FOREIGN_TRACE" in os.environ:
            print(process.stderr)
        print(process.stdout)


def assert_moved(run, row):
    result, source, destination = run.result, run.source, run.destination
    assert run.last["state"] == "completed", run.last["error"]
    assert result["memory"] == "equal"
    assert result["destination_runs"] and not result["source_runs"]
    assert destination.content == source.content
    if not row.quirks.get("blank"):
        assert destination.loaded_seq == source.seq     # all of its DMA was before it was saved
    if not row.quirks.get("no_dma"):
        assert source.seq > 0 and destination.seq > destination.loaded_seq
    assert (result["all_dirty"] > 0) == row.all_dirty
    assert destination.command & 4 and destination.irqs == 1


def assert_stayed(run, row):
    result, source = run.result, run.source
    assert run.last["state"] == "failed"
    assert row.refused in run.last["error"]
    assert result["source_runs"] and not result["destination_runs"]
    assert run.last["lost"] == (1 if row.dead else 0)
    if row.early:
        assert not run.last["vcpus_stopped"]
    if not row.dead:
        assert source.seq > source.seq_at_run       # it does DMA again
        assert source.irqs == 1 and source.command & 4


def assert_whole(run):
    """--direct: pre-copy was left with a portion in use."""
    assert run.result["portions"] > 2 and run.source.portions[0] > 0
    parts, at = [], 0
    while at < len(run.stream):
        size = int.from_bytes(run.stream[at:at + 4], "little")
        parts.append(run.stream[at + 4:at + 4 + size])
        at += 4 + size
    assert b"".join(parts) == run.source.stream()


ROWS = [row for row in QUIRKS if os.environ.get("FOREIGN_GROUP", row.group) == row.group]


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_quirk(row):
    run = Run(row)
    assert run.source.complaints == run.destination.complaints == []
    if "--direct" in row.host:
        return assert_whole(run)
    assert run.result["quiet"] == row.quiet
    if row.refused:
        assert_stayed(run, row)
    else:
        assert_moved(run, row)
