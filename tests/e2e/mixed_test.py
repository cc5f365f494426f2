# SPDX-License-Identifier: BSD-3-Clause
"""Guests with several devices, some of which cannot stop their DMA alone (C57, C69, C70)."""
import pytest

from world import World, assert_guest_lives, migrate

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")


@pytest.fixture
def world():
    with World() as it:
        yield it


@pytest.mark.parametrize("knobs", [((), ()), (("--no-ndma",), ()), (("--no-ndma",), ("--no-ndma",)),
                                   (("--no-precopy",), ())],
                         ids=["ndma", "one without", "none with", "one without pre-copy"])
@pytest.mark.parametrize("dialect", ["feature", "region"])
def test_two_devices_move(world, knobs, dialect):
    def devices(side):
        return [f"{world.device(f'{side}{i}', '--latency-us', '200', *knobs[i])},dialect={dialect}"
                for i in range(2)]
    source = world.vm("a", *GUEST, devices=devices("a"))
    target = world.vm("b", devices=devices("b"), incoming=world.uri())
    assert_guest_lives(source)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)

