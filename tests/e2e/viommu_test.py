# SPDX-License-Identifier: BSD-3-Clause
"""Devices behind the vIOMMU: page requests answered late, out of order, refused or never, before,
during and after migrations (C10, C60-C63)."""
import json
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, have_kvm, heartbeats, migrate, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
AHEAD = ("--look-ahead", "8")
QUICKLY = ("--quiet", "--json", "--downtime-limit", "2000")


@pytest.fixture
def world():
    with World() as it:
        yield it


def devices(world, side, *knobs, dialect="feature"):
    """One device behind the vIOMMU, one that is not."""
    return [f"{world.device(side + '0', *knobs)},iommu=on,dialect={dialect}",
            f"{world.device(side + '1')},dialect={dialect}"]


def score(qmp):
    return qmp("x-guest")["iommu"]


def assert_faults_go_on(qmp):
    """Every kind of answer is still being given, and nothing is wrong."""
    assert_guest_lives(qmp)
    before = score(qmp)
    kinds = ("faults", "answered", "refused", "efaults", "maps", "unmaps")
    wait_until(lambda: all(score(qmp)[kind] > before[kind] for kind in kinds), "page requests")
    assert qmp("x-guest")["errors"] == 0, qmp("x-guest")


def leave(qmp):
    """The guest has gone: the VMM may."""
    qmp("quit")
    qmp.process.wait(60)


def move(source, uri, *args):
    """Migrates and says what query-migrate says in the end."""
    result = migrate(source, uri, *QUICKLY, *args)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)["x-vfmig"]
    steps = {step["name"]: step for step in report["steps"]}
    assert report["page-faults-open"] == steps["S3"]["at-start"]["page-faults-open"]
    # C10, C61: whatever was open when N was asked for is not when the vCPUs are told to stop.
    for name in ("S4", "S5", "S6"):
        assert steps[name]["at-start"]["page-faults-open"] == 0, steps
    return report["page-faults-open"]


@pytest.mark.parametrize("dialect", ["feature", "region"])
@pytest.mark.parametrize("accel", ["none", pytest.param("kvm", marks=pytest.mark.skipif(
    not have_kvm(), reason="no KVM"))])
def test_there_and_back_with_open_faults(world, accel, dialect):
    here = world.vm("a", *GUEST, accel=accel, devices=devices(world, "a", *AHEAD, dialect=dialect))
    assert_faults_go_on(here)
    # Page requests come all the time, and the device looks ahead: in one migration of five several
    # are open when N is asked for. It goes there and back until that was so.
    seen = 0
    for turn in range(80):
        there = world.vm(f"b{turn}", accel=accel, incoming=world.uri(f"to{turn}"),
                         devices=devices(world, f"b{turn}", *AHEAD, dialect=dialect))
        seen = max(seen, move(here, world.uri(f"to{turn}")))
        assert_faults_go_on(there)
        leave(here)
        here = there
        if turn and seen > 1:
            break
    assert seen > 1
    assert score(here)["withdrawn"] == 0  # devices waited for their answers


def test_deadlock_is_broken(world):
    """A fault is answered once another device has worked, and N keeps that one from it: at half its
    deadline the device gives the DMA up, to issue it again at the destination."""
    here = world.vm("a", *GUEST, "--page-answers", "peer",
                    devices=devices(world, "a", "--drain-timeout-ms", "400"))
    for turn in range(20):
        there = world.vm(f"b{turn}", incoming=world.uri(f"to{turn}"),
                         devices=devices(world, f"b{turn}", "--drain-timeout-ms", "400"))
        assert_guest_lives(here)
        move(here, world.uri(f"to{turn}"))
        leave(here)
        here = there
        assert_faults_go_on(here)
        if score(here)["withdrawn"]:
            break
    assert score(here)["withdrawn"]


def test_guest_that_never_answers(world):
    source = world.vm("a", *GUEST, "--page-answers", "never", "--viommu-timeout", "200",
                      devices=devices(world, "a", "--drain-timeout-ms", "200"))
    target = world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    wait_until(lambda: score(source)["open"] == 1, "the first page request")
    result = migrate(source, world.uri(), *QUICKLY)
    assert result.returncode == 1
    assert "the guest has not responded to 1 page requests" in result.stderr
    report = source("query-migrate")["x-vfmig"]
    assert report["state"] == "failed" and report["page-faults-open"] == 1
    steps = [step["name"] for step in report["steps"]]
    assert "S3" in steps and "S4" not in steps  # the vCPUs never stopped
    before, checked = heartbeats(source), source("x-guest")["devices"][1]["checked"]
    wait_until(lambda: heartbeats(source) > before, "the guest at the source")
    wait_until(lambda: source("x-guest")["devices"][1]["checked"] > checked, "its other device")
    assert source("query-status")["running"]
    assert source("x-guest")["errors"] == 0
    assert target("query-status")["status"] == "inmigrate"


def test_paused_guest_moves_with_a_fault_open(world):
    """Nobody can answer while the vCPUs stand still: the request is withdrawn without the guest."""
    knobs = ("--drain-timeout-ms", "200")
    source = world.vm("a", *GUEST, devices=devices(world, "a", *knobs))
    target = world.vm("b", devices=devices(world, "b", *knobs), incoming=world.uri())
    assert_faults_go_on(source)
    source("stop")
    move(source, world.uri())
    target("cont")
    assert_faults_go_on(target)


def test_goes_on_after_a_failed_migration(world):
    source = world.vm("a", *GUEST, "--viommu-timeout", "200",
                      devices=devices(world, "a", "--fail", "save"))
    world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    assert_faults_go_on(source)
    result = migrate(source, world.uri(), *QUICKLY)
    assert result.returncode == 1
    assert_faults_go_on(source)


def test_refused_without_ndma(world):
    """C63: a device that cannot stop its DMA alone may raise no page fault."""
    path = world.device("a", "--no-ndma")
    # The second device is not there: were the first one taken, the VMM would end because of this one.
    result = subprocess.run([VFMIG, "vm", "--accel", "none", "--memory", "48M", "--device",
                             f"vfio-user:{path},iommu=on,id=disk", "--device", "vfio-user:/no/device"],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "device disk cannot be behind the vIOMMU: it has no NDMA" in result.stderr


def test_sets_must_agree(world):
    """Which devices are behind the vIOMMU is part of what both sides must have in common."""
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    target = world.vm("b", devices=[world.device("b0"), world.device("b1")], incoming=world.uri())
    result = migrate(source, world.uri(), *QUICKLY)
    assert result.returncode == 1
    assert "iommu." in result.stderr
    assert_faults_go_on(source)
    assert target("query-status")["status"] == "inmigrate"
