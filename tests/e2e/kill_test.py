# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of either side at each journal write and each handover message of a migration: what is left
is what docs/handover.md says; then the dead side returns, or `vfmig resolve` settles it."""
import concurrent.futures
import json
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, have_kvm, is_listening, quit_vm, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "10M")

# Where the side dies: the pairs of last records (source, destination) that may be left. More than
# one where a message may or may not outlive its sender, or the other side may or may not be quicker.
SOURCE_DIES = {
    "before-OFFERED": ["none/none"],
    "after-OFFERED": ["OFFERED/none"],
    "before-send-offer": ["OFFERED/none"],
    "after-send-offer": ["OFFERED/none", "OFFERED/REFUSED"],
    "before-send-seal": ["OFFERED/none", "OFFERED/REFUSED"],
    "after-send-seal": ["OFFERED/REFUSED", "OFFERED/READY"],
    "on-receipt-ready": ["OFFERED/READY"],
    "before-GRANT-SENT": ["OFFERED/READY"],
    "after-GRANT-SENT": ["GRANT-SENT/READY"],
    "before-send-grant": ["GRANT-SENT/READY"],
    "after-send-grant": ["GRANT-SENT/READY", "GRANT-SENT/RUNNING"],
    "on-receipt-running": ["GRANT-SENT/RUNNING"],
    "before-RELEASED": ["GRANT-SENT/RUNNING"],
    "after-RELEASED": ["RELEASED/RUNNING"],
    "before-send-released": ["RELEASED/RUNNING"],
    "after-send-released": ["RELEASED/RUNNING"],
}
DESTINATION_DIES = {
    "on-receipt-offer": ["RESUMED/none"],
    "on-receipt-seal": ["ABORTED/none"],
    "before-READY": ["ABORTED/none"],
    "after-READY": ["ABORTED/READY"],
    "before-send-ready": ["ABORTED/READY"],
    "after-send-ready": ["ABORTED/READY", "GRANT-SENT/READY"],
    "on-receipt-grant": ["GRANT-SENT/READY"],
    "before-GRANTED": ["GRANT-SENT/READY"],
    "after-GRANTED": ["GRANT-SENT/GRANTED"],
    "before-RUNNING": ["GRANT-SENT/GRANTED"],
    "after-RUNNING": ["GRANT-SENT/RUNNING"],
    "before-send-running": ["GRANT-SENT/RUNNING"],
    "after-send-running": ["GRANT-SENT/RUNNING", "RELEASED/RUNNING"],
    "on-receipt-released": ["RELEASED/RUNNING"],
}

# Pair: what vfmig status says at the source and at the destination, and whether the guest runs on at
# the side that lives.
SOURCE_DIED = {
    "none/none": ("died-at-source", "under-way", False),
    "OFFERED/none": ("died-at-source", "refused", False),
    "OFFERED/REFUSED": ("died-at-source", "refused", False),
    "OFFERED/READY": ("only-at-destination", "only-at-destination", False),
    "GRANT-SENT/READY": ("paused-at-destination", "paused-at-destination", False),
    "GRANT-SENT/RUNNING": ("runs-at-destination", "runs-at-destination", True),
    "RELEASED/RUNNING": ("runs-at-destination", "runs-at-destination", True),
}
DESTINATION_DIED = {
    "RESUMED/none": ("runs-at-source", "refused", True),
    "ABORTED/none": ("runs-at-source", "refused", True),
    "ABORTED/READY": ("runs-at-source", "refused", True),
    "GRANT-SENT/READY": ("undecided", "refused", False),
    "GRANT-SENT/GRANTED": ("undecided", "refused", False),
    "GRANT-SENT/RUNNING": ("died-at-destination", "died-at-destination", False),
    "RELEASED/RUNNING": ("died-at-destination", "died-at-destination", False),
}


def tool(command, own, *args):
    return subprocess.run([VFMIG, command, own.journal, *map(str, args)], capture_output=True,
                          text=True, timeout=60)


def resolve(code, own, *args):
    result = tool("resolve", own, *args)
    assert result.returncode == code, (args, result.stdout, result.stderr)
    return result


def view(own, peer):
    views = json.loads(tool("status", own, "--json", "--peer-journal", peer.journal).stdout)
    assert len(views) == 1, views
    return views[0]


def pair(source, target):
    return "{}/{}".format(view(source, target)["record"], view(target, source)["record"])


def runs(vm):
    return vm("query-status")["running"]


def crash(world, side, where, expected, accel, *args):
    kill = f"kill-{where}"
    source = world.vm("a", *GUEST, accel=accel, devices=[world.device("dev-a")],
                      sabotage=kill if side == "source" else None)
    world.target_device = world.device("dev-b")
    target = world.vm("b", accel=accel, devices=[world.target_device], incoming=world.uri(),
                      sabotage=kill if side == "destination" else None)
    assert_guest_lives(source)
    mover = subprocess.Popen([VFMIG, "migrate", "--qmp", source.path, "--downtime-limit", "2000",
                              "--quiet", *args, world.uri()], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    (source if side == "source" else target).process.wait(60)
    mover.kill()
    mover.wait()
    living = target if side == "source" else source
    told = SOURCE_DIED if side == "source" else DESTINATION_DIED

    def settled_down():
        seen = pair(source, target)
        return seen if seen in expected and runs(living) == told[seen][2] else None
    try:
        seen = wait_until(settled_down, where)
    except AssertionError:
        raise AssertionError((where, pair(source, target), runs(living), expected)) from None
    assert (view(source, target)["outcome"], view(target, source)["outcome"]) == told[seen][:2], seen
    if runs(living):
        assert_guest_lives(living)
    return source, target, seen


def start_afresh(world, source, *args):
    """Starts a guest on the source's journal again and ends it: the exit code and what was said."""
    process = subprocess.Popen([VFMIG, "vm", "--accel", "none", "--memory", "48M", "--qmp",
                                world.folder / "again.qmp", "--journal", source.journal, *args],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        path = world.folder / "again.qmp"
        wait_until(lambda: process.poll() is not None or is_listening(path), "the guest, or its refusal")
        if process.poll() is None:
            quit_vm(path)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


def settle_without_source(world, source, target, seen):
    if not view(source, target)["settled"]:
        code, said = start_afresh(world, source)
        assert code == 1 and "not settled" in said
    if seen == "OFFERED/READY":
        result = resolve(1, target, "--run", "--peer-journal", source.journal)
        assert "--source-is-fenced" in result.stderr and not runs(target)
        resolve(5, source, "--peer-journal", target.journal)
        resolve(0, target, "--run", "--source-is-fenced", "--peer-journal", source.journal)
    elif seen == "GRANT-SENT/READY":
        resolve(0, target, "--run", "--peer-journal", source.journal)
    elif seen == "OFFERED/none":
        resolve(5, source, "--peer-journal", target.journal)
        resolve(0, target, "--peer-journal", source.journal)
        assert view(target, source)["record"] == "REFUSED"
    at_target = "READY" in seen or "RUNNING" in seen
    if at_target:
        wait_until(lambda: runs(target), "the guest at its destination")
        wait_until(lambda: view(target, source)["record"] == "RUNNING", "its record")
        assert_guest_lives(target)
    resolve(0, source, "--peer-journal", target.journal)
    last = view(source, target)
    assert last["settled"]
    if at_target:
        assert last["record"] == "RELEASED" and not last["may-start"]
        code, said = start_afresh(world, source)
        assert code == 1 and "moved away" in said and "--discard-released" in said
        assert start_afresh(world, source, "--discard-released") == (0, "")
        resolve(0, target, "--peer-journal", source.journal)
        assert runs(target)
    else:
        assert last["outcome"] == "died-at-source" and last["may-start"]
        assert start_afresh(world, source) == (0, "")
        assert not runs(target)


def settle_without_target(source, target, seen):
    """With resolve alone, as if the other host stayed off the network."""
    if "GRANT-SENT" in seen:
        resolve(5, source)
        assert not runs(source)
    if seen in ("GRANT-SENT/READY", "GRANT-SENT/GRANTED"):
        assert "gone" in resolve(1, target, "--run", "--source-is-fenced").stderr
        resolve(0, target, "--peer-journal", source.journal)
        resolve(0, source, "--peer-journal", target.journal)
        wait_until(lambda: runs(source), "the guest at its source")
        assert pair(source, target) == "RESUMED/REFUSED"
    elif seen == "GRANT-SENT/RUNNING":
        resolve(5, source, "--peer-journal", target.journal)
        assert not runs(source)
        resolve(0, source, "--discard", "--peer-journal", target.journal)
        assert pair(source, target) == "RELEASED/RUNNING"
    elif seen.startswith("ABORTED"):
        resolve(0, target, "--peer-journal", source.journal)
        assert view(target, source)["record"] == "REFUSED"
    if "RUNNING" in seen:
        assert not runs(source)
        assert view(target, source)["may-start"]
    else:
        assert_guest_lives(source)


def settle_by_reconnection(world, source, target, seen, accel):
    """The destination's process comes back with the same journal: they settle it by themselves."""
    again = world.restart(target, accel=accel, devices=[world.target_device], incoming=world.uri())
    if seen in ("RESUMED/none", "RELEASED/RUNNING"):
        pass  # nothing is left to be said
    elif seen == "GRANT-SENT/RUNNING":
        wait_until(lambda: view(source, target)["outcome"] == "died-at-destination", "the news")
        wait_until(lambda: tool("resolve", source, "--discard").returncode == 0, "the news")
        assert pair(source, target) == "RELEASED/RUNNING"
    else:
        wait_until(lambda: pair(source, target) == "RESUMED/REFUSED", "RESUMED/REFUSED")
        wait_until(lambda: runs(source), "the guest at its source")
    assert not runs(again)
    if "RUNNING" in seen:
        assert not runs(source)
    else:
        assert_guest_lives(source)


def play(side, where, how, accel, *args):
    """args are for vfmig migrate."""
    with World() as world:
        expected = (SOURCE_DIES if side == "source" else DESTINATION_DIES)[where]
        source, target, seen = crash(world, side, where, expected, accel, *args)
        if side == "source":
            settle_without_source(world, source, target, seen)
        elif how == "resolve":
            settle_without_target(source, target, seen)
        else:
            settle_by_reconnection(world, source, target, seen, accel)


CASES = [("source", where, "resolve", "none") for where in SOURCE_DIES] + \
        [("destination", where, how, "none") for how in ("resolve", "reconnection")
         for where in DESTINATION_DIES]
# What depends on how vCPUs run: they stop, stand, and run on at either side.
KVM_CASES = [
    ("source", "after-OFFERED", "resolve", "kvm"),
    ("source", "before-GRANT-SENT", "resolve", "kvm"),
    ("source", "after-GRANT-SENT", "resolve", "kvm"),
    ("source", "before-RELEASED", "resolve", "kvm"),
    ("destination", "after-READY", "resolve", "kvm"),
    ("destination", "after-GRANTED", "resolve", "kvm"),
    ("destination", "after-GRANTED", "reconnection", "kvm"),
    ("destination", "after-RUNNING", "resolve", "kvm"),
]


@pytest.fixture(scope="module")
def played():
    """All of them, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {case: pool.submit(play, *case) for case in CASES + (KVM_CASES if have_kvm() else [])}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_kill(played, case):
    played[case].result()


@pytest.mark.skipif(not have_kvm(), reason="no KVM")
@pytest.mark.parametrize("case", KVM_CASES, ids="-".join)
def test_kill_on_kvm(played, case):
    played[case].result()
