# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of either side at each journal write and each handover message of an attempt that does not
come through: cancelled before and after everything was sent, refused by the destination, handed back
after the grant, fenced by an operator. What is left is what docs/handover.md says; then it is settled."""
import concurrent.futures
import os
import signal
import subprocess

import pytest

from kill_test import DESTINATION_DIED as MOVED_DESTINATION_DIED
from kill_test import SOURCE_DIED as MOVED_SOURCE_DIED
from kill_test import GUEST, pair, resolve, runs, start_afresh, tool, view
from resolve_test import journal, status
from world import VFMIG, World, assert_guest_lives, migrate_slowly, wait_until

# How the attempt fails: arguments of the destination's device, faults of the destination.
WAYS = {
    "cancelled": ((), None),  # while memory is on its way
    "cancelled-late": ((), "lose-ready"),  # the source has stopped, the destination has all
    "refused": (("--fail", "load_end"), None),
    "handed-back": (("--fail", "start"), None),  # granted, and cannot be prepared
    "fenced": ((), None),  # the source dies before the grant, an operator vouches for that
}

# Who dies where, and the pairs of last records (source, destination) that may be left.
CASES = {
    ("cancelled", "source"): {
        "before-RESUMED": ["OFFERED/REFUSED"],
        "after-RESUMED": ["RESUMED/REFUSED"],
        "before-send-abort": ["RESUMED/REFUSED"],
        "after-send-abort": ["RESUMED/REFUSED"],
    },
    ("cancelled", "destination"): {
        "on-receipt-abort": ["RESUMED/none"],
        "before-REFUSED": ["RESUMED/none"],
        "after-REFUSED": ["RESUMED/REFUSED"],
        "before-send-refused": ["RESUMED/REFUSED"],
        "after-send-refused": ["RESUMED/REFUSED"],
    },
    ("cancelled-late", "source"): {
        "before-ABORTED": ["OFFERED/READY"],
        "after-ABORTED": ["ABORTED/READY"],
        "before-send-abort": ["ABORTED/READY"],
        "after-send-abort": ["ABORTED/READY", "ABORTED/REFUSED"],
        "on-receipt-refused": ["ABORTED/REFUSED"],
        "before-RESUMED": ["ABORTED/REFUSED"],
        "after-RESUMED": ["RESUMED/REFUSED"],
    },
    ("cancelled-late", "destination"): {
        "on-receipt-abort": ["ABORTED/READY"],
        "before-REFUSED": ["ABORTED/READY"],
        "after-REFUSED": ["ABORTED/REFUSED"],
        "before-send-refused": ["ABORTED/REFUSED"],
        "after-send-refused": ["ABORTED/REFUSED", "RESUMED/REFUSED"],
    },
    ("refused", "source"): {
        "on-receipt-refused": ["OFFERED/REFUSED"],
        "before-RESUMED": ["OFFERED/REFUSED"],
        "after-RESUMED": ["RESUMED/REFUSED"],
    },
    # Whether the source has said that all is sent when the load fails is a matter of luck.
    ("refused", "destination"): {
        "before-REFUSED": ["ABORTED/none", "RESUMED/none"],
        "after-REFUSED": ["ABORTED/REFUSED", "RESUMED/REFUSED"],
        "before-send-refused": ["ABORTED/REFUSED", "RESUMED/REFUSED"],
        "after-send-refused": ["ABORTED/REFUSED", "RESUMED/REFUSED"],
    },
    ("handed-back", "source"): {
        "on-receipt-query": ["GRANT-SENT/GRANTED"],
        "before-send-outcome": ["GRANT-SENT/GRANTED"],
        "after-send-outcome": ["GRANT-SENT/GRANTED", "GRANT-SENT/REFUSED"],
        "on-receipt-refused": ["GRANT-SENT/REFUSED"],
        "before-RESUMED": ["GRANT-SENT/REFUSED"],
        "after-RESUMED": ["RESUMED/REFUSED"],
    },
    ("handed-back", "destination"): {
        "before-send-query": ["GRANT-SENT/GRANTED"],
        "after-send-query": ["GRANT-SENT/GRANTED"],
        "on-receipt-outcome": ["GRANT-SENT/GRANTED"],
        "before-REFUSED": ["GRANT-SENT/GRANTED"],
        "after-REFUSED": ["GRANT-SENT/REFUSED"],
        "before-send-refused": ["GRANT-SENT/REFUSED"],
        "after-send-refused": ["GRANT-SENT/REFUSED", "RESUMED/REFUSED"],
    },
    ("fenced", "destination"): {
        "before-FENCED": ["OFFERED/READY"],
        "after-FENCED": ["OFFERED/FENCED"],
        "before-RUNNING": ["OFFERED/FENCED"],
        "after-RUNNING": ["OFFERED/RUNNING"],
        "before-send-running": ["OFFERED/RUNNING"],
    },
}

# Pair: what vfmig status says at the source and at the destination, and whether the guest runs on at
# the side that lives.
SOURCE_DIED = dict(MOVED_SOURCE_DIED, **{
    "ABORTED/READY": ("died-at-source", "refused", False),
    "ABORTED/REFUSED": ("died-at-source", "refused", False),
    "RESUMED/REFUSED": ("died-at-source", "refused", False),
    "GRANT-SENT/GRANTED": ("paused-at-destination", "paused-at-destination", False),
    "GRANT-SENT/REFUSED": ("died-at-source", "refused", False),
})
DESTINATION_DIED = dict(MOVED_DESTINATION_DIED, **{
    "ABORTED/REFUSED": ("runs-at-source", "refused", True),
    "RESUMED/REFUSED": ("runs-at-source", "refused", True),
    "GRANT-SENT/REFUSED": ("runs-at-source", "refused", False),
})
BOTH_DIED = {
    "OFFERED/READY": ("died-at-source", "refused", False),
    "OFFERED/FENCED": ("died-at-source", "refused", False),
    "OFFERED/RUNNING": ("died-at-destination", "died-at-destination", False),
}


def start_migration(world, source, target, way):
    """Until what kills has been set off; returns the command that drives the source."""
    if way == "cancelled":
        mover = migrate_slowly(source, world.uri())
        mover.send_signal(signal.SIGINT)
        return mover
    mover = subprocess.Popen([VFMIG, "migrate", "--qmp", source.path, "--downtime-limit", "2000",
                              "--quiet", world.uri()], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    if way == "cancelled-late":
        wait_until(lambda: '"READY"' in tool("status", target, "--json").stdout, "READY")
        mover.send_signal(signal.SIGINT)
    elif way == "fenced":
        source.process.wait(60)
        tool("resolve", target, "--run", "--source-is-fenced")
    return mover


def crash(world, way, side, where):
    device_args, fault = WAYS[way]
    kill = f"kill-{where}"
    source_fault = kill if side == "source" else "kill-before-GRANT-SENT" if way == "fenced" else None
    target_fault = ",".join(filter(None, (kill if side == "destination" else None, fault))) or None
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")], sabotage=source_fault)
    world.target_device = world.device("dev-b", *device_args)
    target = world.vm("b", devices=[world.target_device], incoming=world.uri(), sabotage=target_fault)
    assert_guest_lives(source)
    mover = start_migration(world, source, target, way)
    (source if side == "source" else target).process.wait(60)
    mover.kill()
    mover.communicate()
    expected = CASES[way, side][where]
    told = BOTH_DIED if way == "fenced" else SOURCE_DIED if side == "source" else DESTINATION_DIED
    living = None if way == "fenced" else target if side == "source" else source

    def lives():
        return bool(living) and runs(living)

    def settled_down():
        seen = pair(source, target)
        return seen if seen in expected and lives() == told[seen][2] else None
    try:
        seen = wait_until(settled_down, where)
    except AssertionError:
        raise AssertionError((way, where, pair(source, target), lives(), expected)) from None
    assert (view(source, target)["outcome"], view(target, source)["outcome"]) == told[seen][:2], seen
    if lives():
        assert_guest_lives(living)
    return source, target, seen


def settle_without_source(world, way, source, target, seen):
    if seen == "OFFERED/READY" or seen == "ABORTED/READY":
        decision = "--refuse" if seen == "OFFERED/READY" else None
        if not decision:
            result = resolve(1, target, "--run", "--source-is-fenced", "--peer-journal", source.journal)
            assert "stale" in result.stderr
        resolve(0, target, *filter(None, (decision,)), "--peer-journal", source.journal)
    elif seen == "GRANT-SENT/GRANTED":
        # Its device cannot be started and the source has no memory to take it back: only the end of
        # the process gives it up.
        resolve(0, target, "--refuse", "--id", view(target, source)["id"], "--peer-journal",
                source.journal)
        assert view(target, source)["record"] == "GRANTED" and not runs(target)
        target.process.terminate()
        assert target.process.wait(60) == 0
        resolve(0, target, "--peer-journal", source.journal)
    assert view(target, source)["record"] == "REFUSED"
    resolve(0, source, "--peer-journal", target.journal)
    last = view(source, target)
    assert last["settled"] and last["may-start"] and last["outcome"] == "died-at-source"
    if target.process.poll() is None:
        assert not runs(target)
    assert start_afresh(world, source) == (0, "")


def settle_without_target(source, target, seen):
    if "GRANT-SENT" in seen:
        resolve(5, source)
        assert not runs(source)
        resolve(0, target, "--peer-journal", source.journal)
        resolve(0, source, "--peer-journal", target.journal)
        wait_until(lambda: runs(source), "the guest at its source")
        assert pair(source, target) == "RESUMED/REFUSED"
    else:
        resolve(0, target, "--peer-journal", source.journal)
        if seen.startswith("ABORTED"):
            assert view(target, source)["record"] == "REFUSED"
    assert_guest_lives(source)


def settle_by_reconnection(world, source, target, seen):
    again = world.restart(target, devices=[world.target_device], incoming=world.uri())
    if not seen.startswith("RESUMED"):
        wait_until(lambda: pair(source, target) == "RESUMED/REFUSED", "RESUMED/REFUSED")
    wait_until(lambda: runs(source), "the guest at its source")
    assert not runs(again)
    assert_guest_lives(source)


def settle_both(source, target, seen):
    resolve(0, target, "--peer-journal", source.journal)
    resolve(0, source, "--peer-journal", target.journal)
    at_target = seen == "OFFERED/RUNNING"
    assert pair(source, target) == ("RELEASED/RUNNING" if at_target else "RESUMED/REFUSED")
    assert view(source, target)["may-start"] != at_target
    assert view(target, source)["may-start"] == at_target


def play(way, side, where, how):
    with World() as world:
        source, target, seen = crash(world, way, side, where)
        if way == "fenced":
            settle_both(source, target, seen)
        elif side == "source":
            settle_without_source(world, way, source, target, seen)
        elif how == "resolve":
            settle_without_target(source, target, seen)
        else:
            settle_by_reconnection(world, source, target, seen)


ALL = [(way, side, where, how) for (way, side), places in CASES.items() for where in places
       for how in (("resolve", "reconnection") if side == "destination" and way != "fenced"
                   else ("resolve",))]


@pytest.fixture(scope="module")
def played():
    """All of them, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {case: pool.submit(play, *case) for case in ALL}


@pytest.mark.parametrize("case", ALL, ids="-".join)
def test_kill(played, case):
    played[case].result()


@pytest.mark.parametrize("when, left", [("before", "READY"), ("after", "REFUSED")])
def test_vfmig_resolve_dies_as_well(tmp_path, when, left):
    journal(tmp_path, "destination", "READY")
    command = [VFMIG, "resolve", tmp_path]
    killed = subprocess.run(command, env=dict(os.environ, VFMIG_SABOTAGE=f"kill-{when}-REFUSED"))
    assert killed.returncode == -signal.SIGKILL
    assert status(tmp_path)[0]["record"] == left
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert status(tmp_path)[0]["record"] == "REFUSED"
