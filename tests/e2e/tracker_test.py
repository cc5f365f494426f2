# SPDX-License-Identifier: BSD-3-Clause
"""A guest moves with each tracker that this kernel has, and the report names the one that was used.
What there is comes from questions to the kernel that are asked here a second time."""
import os
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, have_kvm, migrate, ring_entries, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")


def have_pagemap_scan():
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1])) >= (6, 7)


def expected(accel, tracker):
    return {"kvm-bitmap": accel == "kvm", "kvm-ring": accel == "kvm" and ring_entries() > 0,
            "pagemap": have_pagemap_scan(), "wp": True}[tracker]


ACCELS = ["none"] + (["kvm"] if have_kvm() else [])
TRACKERS = ["kvm-bitmap", "kvm-ring", "pagemap", "wp"]
ALL = [(accel, tracker) for accel in ACCELS for tracker in TRACKERS]
OFFERED = [pair for pair in ALL if expected(*pair)]
REFUSED = [pair for pair in ALL if not expected(*pair)]


@pytest.fixture
def world():
    with World() as it:
        yield it


def test_what_is_there():
    """The list of what the other tests use is no empty one, and said aloud."""
    print("offered here:", OFFERED)
    assert ("none", "wp") in OFFERED
    assert not have_kvm() or ("kvm", "kvm-bitmap") in OFFERED


def moves(world, accel, args=(), guest=GUEST, sabotage=None):
    devices = [world.device(name) for name in ("dev-a", "dev-b")]
    source = world.vm("a", *guest, *args, accel=accel, devices=devices[:1], sabotage=sabotage)
    target = world.vm("b", accel=accel, devices=devices[1:], incoming=world.uri())
    assert_guest_lives(source)
    result = migrate(source, world.uri(), "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    assert_guest_lives(target)
    return source("query-migrate")["x-vfmig"], result.stdout


@pytest.mark.parametrize("accel,tracker", OFFERED)
def test_a_guest_moves_with_it(world, accel, tracker):
    report, text = moves(world, accel, ("--tracker", tracker))
    assert report["tracker"] == tracker
    assert [log["name"] for log in report["trackers"]] == [tracker, "device", "own"]
    for log in report["trackers"]:
        assert log["syncs"] >= 3 and log["failures"] == 0
        assert log["sync-ns"] >= log["longest-ns"] > 0
    assert f"({tracker} for the vCPUs)" in text


@pytest.mark.parametrize("accel,tracker", REFUSED)
def test_what_is_not_there_is_refused(accel, tracker):
    result = subprocess.run([VFMIG, "vm", "--accel", accel, "--tracker", tracker],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"the dirty tracker {tracker} is not there" in result.stderr


@pytest.mark.parametrize("accel", ACCELS)
def test_the_cheapest_is_taken(world, accel):
    """By the costs that are reported: a later one is taken only at less than half of an earlier
    one's, and the process' own page tables only where KVM does not log."""
    report, _ = moves(world, accel)
    costs = report["tracker-costs-ns"]
    assert set(costs) == {tracker for tracker in TRACKERS if (accel, tracker) in OFFERED}
    chosen = None
    for tracker in TRACKERS[:2] if accel == "kvm" else TRACKERS[2:]:
        if tracker in costs and (chosen is None or costs[tracker] < costs[chosen] // 2):
            chosen = tracker
    assert report["tracker"] == chosen


@pytest.mark.skipif(("kvm", "kvm-ring") not in OFFERED, reason="KVM offers no dirty rings here")
def test_a_full_ring_is_emptied_by_its_vcpu(world):
    guest = ("--working-set", "32M", "--dirty-rate", "2G")
    report, _ = moves(world, "kvm", ("--tracker", "kvm-ring"), guest, sabotage="small-ring")
    # Some KVMs write past the end of so small a ring: that is noticed, and everything counts as dirty.
    # What the guest finds is what is judged.
    assert report["trackers"][0]["full"] > 0
