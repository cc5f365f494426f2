# SPDX-License-Identifier: BSD-3-Clause
"""The operator of docs/handover.md: looks with `vfmig status`, does with `vfmig resolve` what the runbook
says for the outcome that is seen, and tells which one the migration came to. Whatever happened before, in
the end exactly one guest runs, or a named outcome says why none does; and never do both."""
import json
import subprocess

from world import VCPUS, VFMIG, QmpError, wait_until

ROUNDS = 6  # of looking and doing; each of them changes something, or it is given up
# Nothing runs any more; the runbook says where it may be started afresh.
ENDS_WITHOUT_GUEST = ("died-at-source", "died-at-destination")
STANDS = "paused-at-destination"  # by grant, and a device there cannot be started
OF_A_DEVICE = (5, 6, 7, 8, 10, 11, 12)  # of enum guest_error_code; the device's number is in the first detail


class Broken(AssertionError):
    """What must never be."""


def tool(command, own, *args):
    return subprocess.run([VFMIG, command, str(own.journal), *map(str, args)], capture_output=True, text=True,
                          timeout=60)


def view(own, peer):
    """What vfmig status says of the one migration there is; None before the first record's file."""
    result = tool("status", own, "--json", "--peer-journal", peer.journal)
    views = json.loads(result.stdout)
    if len(views) > 1:
        raise Broken(f"one migration, and status knows of {len(views)}")
    return views[0] if views else None


def lives(vm):
    return vm.process.poll() is None


def runs(vm):
    try:
        return lives(vm) and vm("query-status")["running"]
    except (ConnectionError, OSError):
        return False  # it has just died


def is_paused(vm):
    """Nobody stops it here: a guest that has arrived and could not be started."""
    try:
        return lives(vm) and vm("query-status")["status"] == "paused"
    except (ConnectionError, OSError):
        return False


def running(source, target):
    """Who runs. The source is asked twice: it may have been stopped in between, and never comes back then."""
    before, there, after = runs(source), runs(target), runs(source)
    if before and there and after:
        raise Broken("both run")
    return "source" if after else "destination" if there else None


def outcome(own, peer):
    seen = view(own, peer)
    return seen["outcome"] if seen else "none"


def decision(side, seen, peer_lives):
    """What the runbook says for an outcome, as arguments of vfmig resolve."""
    if side == "destination" and seen == "only-at-destination":
        return () if peer_lives else ("--run", "--source-is-fenced")
    if side == "destination" and seen == "paused-at-destination":
        return ("--run",)
    if side == "source" and seen == "died-at-destination" and not peer_lives:
        return ("--discard",)
    return ()


def settled(source, target):
    """Both journals say so, and what they say is so; the name of the outcome."""
    who = running(source, target)
    if not who and is_paused(target):
        there = view(target, source)
        if there and there["record"] == "RUNNING" and there["outcome"] != STANDS and is_paused(target):
            raise Broken(f"it stands still at the destination, and status says {there}")
    seen = {"source": view(source, target), "destination": view(target, source)}
    names = {side: each["outcome"] if each else "none" for side, each in seen.items()}
    if any(each and not each["settled"] for each in seen.values()):
        return None
    if "conflict" in names.values():
        raise Broken(f"a conflict although nobody vouched for a source that runs: {names}")
    if who == "destination":
        return "runs-at-destination" if names["source"] == names["destination"] == "runs-at-destination" else None
    if who == "source":
        # Without a journal the attempt has not begun, or the destination has not heard of it.
        return "runs-at-source" if names["source"] in ("runs-at-source", "none") and \
            names["destination"] in ("refused", "under-way", "none") else None
    name = names["source"] if names["source"] != "none" else "died-at-source"
    return name if name in ENDS_WITHOUT_GUEST and not lives(source if name == "died-at-source" else target) else None


def stands(source, target):
    """By the word of vfmig status alone, which must be true."""
    seen = view(target, source)
    if not seen or seen["outcome"] != STANDS:
        return False
    if running(source, target):
        return False  # it has been started meanwhile
    if not lives(target):
        raise Broken("it stands in a process that is gone")
    return True


def settle(source, target):
    """Returns the outcome, and what the operator had to say."""
    done = []
    for _ in range(ROUNDS):
        name = settled(source, target)
        if name:
            return name, done
        if done and stands(source, target) or stands(source, target) and view(target, source)["record"] == "RUNNING":
            return STANDS, done
        for side, own, peer in (("destination", target, source), ("source", source, target)):
            seen = view(own, peer)
            if not seen or seen["settled"] and seen["outcome"] != "paused-at-destination":
                continue
            args = decision(side, seen["outcome"], lives(peer))
            if "--discard" in args and lives(own):
                tool("resolve", own, "--peer-journal", peer.journal)  # it has to know before it can give up
            result = tool("resolve", own, *args, "--peer-journal", peer.journal)
            done.append(f"{side} {seen['outcome']}: resolve {' '.join(args)} -> {result.returncode}")
        try:
            name = wait_until(lambda: settled(source, target), "what the operator's word brings about", patience=5)
            return name, done
        except Broken:
            raise
        except AssertionError:
            pass
    raise Broken(f"not settled: {running(source, target) or 'nobody'} runs, source {view(source, target)}, "
                 f"destination {view(target, source)}, done {done}")


def assert_lives(vm, dead=(), suspects=()):
    """As assert_guest_lives, without the devices that were killed. suspects: devices that did not answer it
    at some time, here or where it was before."""
    wait_until(lambda: len(vm("x-guest")["cpus"]) == VCPUS, "both vCPUs")
    before = vm("x-guest")

    def progressed():
        now = vm("x-guest")
        return len(now["cpus"]) == VCPUS and \
            all(a["heartbeats"] < b["heartbeats"] for a, b in zip(before["cpus"], now["cpus"])) and \
            all(a["checked"] < b["checked"] for i, (a, b) in enumerate(zip(before["devices"], now["devices"]))
                if i not in dead)
    try:
        wait_until(progressed, "progress of the guest")
    except QmpError as err:
        raise Broken(f"the guest cannot be asked: {err}") from None
    now = vm("x-guest")
    # What a device does not answer any more is an error to the guest; it counts where the first one came from.
    if now["errors"] and not (now["first-error"] in OF_A_DEVICE and now["first-detail"][0] >> 32 in suspects):
        raise Broken(f"the guest has found {now}")
