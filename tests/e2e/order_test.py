# SPDX-License-Identifier: BSD-3-Clause
"""The order clauses are judged over the trace of every test here (world.py): that judge can fail."""
import subprocess

import pytest

from world import ORDER_JUDGE, World, assert_guest_lives, migrate


def move(world, source=None, target=None):
    here = world.vm("a", devices=[world.device("dev-a")], sabotage=source)
    there = world.vm("b", devices=[world.device("dev-b")], incoming=world.uri(), sabotage=target)
    assert_guest_lives(here)
    result = migrate(here, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    return there


def test_in_order_there_and_back():
    """Meanwhile the guest exchanges its MSI-X entries (C48)."""
    with World() as world:
        there = move(world)
        assert_guest_lives(there)
        back = world.vm("c", devices=[world.device("dev-c")], incoming=world.uri("back"))
        result = migrate(there, world.uri("back"), "--quiet", "--downtime-limit", "2000")
        assert result.returncode == 0, result.stderr
        assert_guest_lives(back)
    assert world.verdict == ""


@pytest.mark.parametrize("side, left_out, clause", [
    ("source", "skip-S1_LOG", "C7"), ("source", "skip-S3_IDLE", "C10, C61"), ("target", "skip-R0_RESET", "C14")])
def test_a_step_that_is_left_out_is_named(side, left_out, clause):
    """The migration itself says that all is well."""
    with World() as world:
        world.orders_break = True
        move(world, **{side: left_out})
    assert f".trace: {clause}" in world.verdict, world.verdict


HEAD = '{"t_ns":1,"n":0,"side":"source","ev":"trace","version":1,"devices":1}\n'
END = '{"t_ns":2,"n":1,"side":"source","ev":"state","state":"completed"}\n'
STOP = '{"t_ns":3,"n":2,"side":"source","ev":"change-begin","device":0,"id":"a","want":"STOP_COPY"}\n'


@pytest.mark.parametrize("text, code, why", [
    (HEAD, 0, ""), ("", 0, ""), (HEAD + STOP, 1, "C39"), (HEAD + STOP[:-1], 0, ""),
    (HEAD + END, 1, "only 0 lines of it judged"), ("hello\n", 1, "no line of a trace"),
    (HEAD.replace(":1}", ":1000}"), 1, "more devices than can be judged")])
def test_the_judge(tmp_path, text, code, why):
    (tmp_path / "trace").write_text(text)
    result = subprocess.run([ORDER_JUDGE, tmp_path / "trace"], capture_output=True, text=True, timeout=60)
    assert result.returncode == code and why in result.stderr, result


def test_the_judge_wants_files(tmp_path):
    assert subprocess.run([ORDER_JUDGE], capture_output=True, timeout=60).returncode == 2
    assert subprocess.run([ORDER_JUDGE, tmp_path / "none"], capture_output=True, timeout=60).returncode == 1
