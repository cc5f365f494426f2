# SPDX-License-Identifier: BSD-3-Clause
"""C71: a guest whose devices tag their DMA with a PASID moves to a host where it has another value."""
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, migrate

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
DIALECTS = [("feature", "feature"), ("feature", "region"), ("region", "feature"), ("region", "region")]


@pytest.fixture
def world():
    with World() as it:
        yield it


def device(world, name, dialect, pasid):
    return f"{world.device(name, '--latency-us', '200')},dialect={dialect}{pasid}"


def pair(world, here, there, dialects=("feature", "feature")):
    """A running guest with two devices, the second one without a PASID, and a VMM that waits for it."""
    source = world.vm("a", *GUEST, devices=[device(world, "a0", dialects[0], here),
                                            device(world, "a1", dialects[0], "")])
    target = world.vm("b", devices=[device(world, "b0", dialects[1], there),
                                    device(world, "b1", dialects[1], "")], incoming=world.uri())
    assert_guest_lives(source)
    return source, target


@pytest.mark.parametrize("dialects", DIALECTS, ids="-to-".join)
def test_another_value_at_the_destination(world, dialects):
    """The guest checks all that its devices read and write, and DMA under a wrong value fails."""
    source, target = pair(world, ",pasid=257", ",pasid=0x2bad", dialects)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


def test_there_and_back(world):
    source, target = pair(world, ",pasid=257", ",pasid=7")
    assert migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000").returncode == 0
    assert_guest_lives(target)
    back = world.vm("c", devices=[device(world, "c0", "feature", ",pasid=999999"),
                                  device(world, "c1", "feature", "")], incoming=world.uri("back"))
    result = migrate(target, world.uri("back"), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(back)


@pytest.mark.parametrize("dialect", ["feature", "region"])
def test_a_host_that_has_none_refuses_the_guest(world, dialect):
    source, target = pair(world, ",pasid=257", ",pasid=0", (dialect, dialect))
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 1
    assert "device dev0: it uses PASID handle 1, which this VMM refuses: " \
           "this host has no PASID for it" in result.stderr
    assert source("query-status")["running"]
    assert_guest_lives(source)
    assert target("query-status")["status"] == "inmigrate"


def test_a_side_without_it_is_refused_before_anything_moves(world):
    source, _ = pair(world, ",pasid=257", "")
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 1 and "pasid.dev0" in result.stderr
    assert_guest_lives(source)


def test_through_a_file(world):
    source = world.vm("a", *GUEST, devices=[device(world, "a0", "feature", ",pasid=257")])
    assert_guest_lives(source)
    file = world.folder / "guest"
    saved = subprocess.run([VFMIG, "save", "--qmp", source.path, "--quiet", file],
                           capture_output=True, text=True)
    assert saved.returncode == 0, saved.stderr
    target = world.vm("b", devices=[device(world, "b0", "region", ",pasid=5")], incoming=f"file:{file}")
    assert_guest_lives(target)


@pytest.mark.parametrize("dialect", ["feature", "region"])
def test_memory_passed_on(world, dialect):
    """--local: such a device has the guest's memory from its VMM, so nothing is mapped for it again."""
    source, target = pair(world, ",pasid=257", ",pasid=5", (dialect, dialect))
    result = migrate(source, world.uri(), "--local", "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)
