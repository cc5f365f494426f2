# SPDX-License-Identifier: BSD-3-Clause
"""The flight recorder: a migration that fails leaves its trace behind, though nobody asked for one."""
import json
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, migrate

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
NAME = "flight-recorder.jsonl"


def start(world, *args, failing):
    fails = {side: ("--fail", step) for side, step in failing.items()}
    source = world.vm("a", *GUEST, *args, devices=[world.device("dev-a", *fails.get("dev-a", ()))])
    target = world.vm("b", devices=[world.device("dev-b", *fails.get("dev-b", ()))], incoming=world.uri())
    assert_guest_lives(source)
    return source, target


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def world():
    # Without --trace: nobody has asked for anything.
    with World(judge=False) as it:
        yield it


@pytest.mark.parametrize("side, step", [("dev-a", "stop"), ("dev-b", "load_end")])
def test_a_failure_is_written_next_to_the_journal(world, side, step):
    source, target = start(world, failing={side: step})
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    file = source.journal / NAME
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.endswith(f"; what led to it: vfmig timeline {file}\n")
    report = source("query-migrate")
    assert report["x-vfmig"]["flight-recorder"] == str(file)
    assert f"what led to it is in {file}" in (world.folder / "a.log").read_text()
    lines = read(file)
    own = [line for line in lines if line["side"] == "source"]
    assert [line["n"] for line in own] == list(range(len(own)))
    assert [line["ev"] for line in own[:2]] == ["trace", "device"]
    assert own[0]["id"] == report["x-vfmig"]["migration-id"]
    assert "failure" in [line["ev"] for line in own]
    assert any(line["ev"] == "state" and line["state"] == "failed" for line in own)
    drawn = subprocess.run([VFMIG, "timeline", "--json", file], capture_output=True, text=True, timeout=60)
    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout)["id"] == own[0]["id"]
    # Whoever reads the journals is not disturbed by it, and the guest lives.
    status = subprocess.run([VFMIG, "status", source.journal], capture_output=True, text=True, timeout=60)
    assert status.returncode == 0, status.stderr
    assert_guest_lives(source)
    if side == "dev-b":
        assert any(line["ev"] == "failure" for line in read(target.journal / NAME))


def test_one_that_succeeds_writes_nothing(world):
    source, target = start(world, failing={})
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)
    for vm in source, target:
        assert "flight-recorder" not in vm("query-migrate").get("x-vfmig", {})
        assert not (vm.journal / NAME).exists()


def test_a_recorder_that_cannot_write_disturbs_nobody(world):
    missing = world.folder / "no" / "where.jsonl"
    source, _ = start(world, "--flight-recorder", missing, failing={"dev-a": "stop"})
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 1 and "timeline" not in result.stderr
    assert "flight-recorder" not in source("query-migrate")["x-vfmig"]
    assert f"cannot be written to {missing}" in (world.folder / "a.log").read_text()
    assert not (source.journal / NAME).exists()
    assert source("query-status") == {"running": True, "status": "running"}
    assert_guest_lives(source)
