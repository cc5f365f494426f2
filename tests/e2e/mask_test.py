# SPDX-License-Identifier: BSD-3-Clause
"""Devices that hide what they can do: the engine does without, or refuses in one sentence."""
import pytest

from world import World, assert_guest_lives, migrate

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
DIALECTS = pytest.mark.parametrize("dialect", ["feature", "region"])


@pytest.fixture
def world():
    with World() as it:
        yield it


def pair(world, dialect, source_mask=(), target_mask=()):
    """A running guest with one device, and a VMM that waits for it."""
    devices = {name: f"{world.device(name, '--latency-us', '200', *mask)},dialect={dialect}"
               for name, mask in (("dev-a", source_mask), ("dev-b", target_mask))}
    source = world.vm("a", *GUEST, devices=[devices["dev-a"]])
    target = world.vm("b", devices=[devices["dev-b"]], incoming=world.uri())
    assert_guest_lives(source)
    return source, target


@DIALECTS
@pytest.mark.parametrize("mask", ["p2p", "precopy", "p2p,precopy"])
def test_a_guest_moves_without(world, dialect, mask):
    source, target = pair(world, dialect, ("--mask", mask), ("--mask", mask))
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


@DIALECTS
def test_without_a_log_a_guest_stays_and_runs(world, dialect):
    """No tracker of this side sees what another process writes."""
    source, target = pair(world, dialect, ("--mask", "log"))
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 1
    assert result.stderr == ("vfmig migrate: device dev0 cannot log its DMA, "
                             "so the guest cannot be moved\n")
    assert source("query-status") == {"running": True, "status": "running"}
    assert_guest_lives(source)
    assert target("query-status")["status"] == "inmigrate"


@DIALECTS
def test_a_guest_arrives_without_a_log_and_cannot_leave(world, dialect):
    source, target = pair(world, dialect, (), ("--mask", "log"))
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)
    result = migrate(target, world.uri("on"), "--quiet")
    assert result.returncode == 1 and "device dev0 cannot log its DMA" in result.stderr
    assert_guest_lives(target)
