# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of either side at its journal, then status and resolve: never two running, nothing lost."""
import json
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, migrate, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")


@pytest.fixture
def world():
    with World() as it:
        yield it


def tool(command, qmp, *args):
    return subprocess.run([VFMIG, command, qmp.journal, *map(str, args)], capture_output=True,
                          text=True, timeout=60)


def outcome(qmp, peer):
    [view] = json.loads(tool("status", qmp, "--json", "--peer-journal", peer.journal).stdout)
    return view


def crash(world, kill_source=None, kill_target=None):
    """A migration in which one side dies; returns source and target when that is noticed."""
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")], sabotage=kill_source)
    target = world.vm("b", devices=[world.device("dev-b")], incoming=world.uri(),
                      sabotage=kill_target)
    assert_guest_lives(source)
    mover = subprocess.Popen([VFMIG, "migrate", "--qmp", source.path, "--downtime-limit", "2000",
                              "--quiet", world.uri()], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    (source if kill_source else target).process.wait(60)
    mover.kill()
    mover.wait()
    return source, target


def test_the_source_dies_before_the_grant(world):
    source, target = crash(world, kill_source="kill-before-GRANT-SENT")
    seen = outcome(target, source)
    assert seen["outcome"] == "only-at-destination" and seen["memory"]
    assert outcome(source, target)["outcome"] == "only-at-destination"
    assert not target("query-status")["running"]
    result = tool("resolve", target, "--run", "--peer-journal", source.journal)
    assert result.returncode == 1 and "--source-is-fenced" in result.stderr
    result = tool("resolve", target, "--run", "--source-is-fenced")
    assert result.returncode == 0, result.stderr
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    assert_guest_lives(target)
    # The source that returns learns it before it may run.
    again = subprocess.run([VFMIG, "vm", "--accel", "none", "--qmp", f"{source.path}.again",
                            "--journal", source.journal], capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and "is not settled" in again.stderr, again.stderr
    result = tool("resolve", source, "--peer-journal", target.journal, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["outcome"] == "runs-at-destination"


def test_a_decision_that_comes_too_late(world):
    """The guest has moved, and both processes live: what cannot be any more is refused, what is done already is fine."""
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")])
    target = world.vm("b", devices=[world.device("dev-b")], incoming=world.uri())
    assert_guest_lives(source)
    assert migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000").returncode == 0
    which = ("--id", outcome(target, source)["id"])
    for own, args, word in ((target, ("--refuse",), "the guest has run here"), (target, ("--discard",), "only a source"),
                            (target, ("--run",), "no complete copy"), (source, ("--refuse",), "only a destination"),
                            (source, ("--run",), "only a destination")):
        result = tool("resolve", own, *args, *which)
        assert result.returncode == 1 and word in result.stderr, (args, result.stderr)
    for own, args in ((source, ()), (source, ("--discard",)), (target, ())):
        result = tool("resolve", own, *args, *which)
        assert result.returncode == 0 and "runs-at-destination" in result.stdout, (args, result.stderr)
    assert_guest_lives(target)
    assert not source("query-status")["running"]


def test_the_source_dies_with_the_grant_on_record(world):
    source, target = crash(world, kill_source="kill-after-GRANT-SENT")
    result = tool("resolve", target, "--run", "--peer-journal", source.journal)
    assert result.returncode == 0, result.stderr
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    assert_guest_lives(target)


def test_the_destination_dies_before_the_grant(world):
    source, target = crash(world, kill_target="kill-after-READY")
    wait_until(lambda: source("query-status")["running"], "the guest at its source")
    assert_guest_lives(source)
    assert tool("resolve", target).returncode == 0
    assert outcome(target, source)["record"] == "REFUSED"


def test_the_destination_dies_with_the_grant(world):
    source, target = crash(world, kill_target="kill-after-GRANTED")
    assert not source("query-status")["running"]
    assert tool("resolve", source).returncode == 5
    assert tool("resolve", target).returncode == 0
    result = tool("resolve", source, "--peer-journal", target.journal)
    assert result.returncode == 0, result.stderr + result.stdout
    wait_until(lambda: source("query-status")["running"], "the guest at its source")
    assert_guest_lives(source)


def test_the_destination_dies_with_the_guest(world):
    source, target = crash(world, kill_target="kill-after-RUNNING")
    assert tool("resolve", source, "--peer-journal", target.journal).returncode == 5
    assert not source("query-status")["running"]
    seen = outcome(source, target)
    assert seen["outcome"] == "died-at-destination" and seen["memory"]
    assert tool("resolve", source, "--discard", "--peer-journal", target.journal).returncode == 0
    assert outcome(source, target)["record"] == "RELEASED"
