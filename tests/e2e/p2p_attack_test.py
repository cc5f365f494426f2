# SPDX-License-Identifier: BSD-3-Clause
"""C59: without the grace states a device's peer to peer DMA reaches one that is stopped already, and what
it wrote is lost. With them it never does."""
import pytest

from world import World, assert_guest_lives, migrate, wait_until

# So much is queued that a device has work for much longer than the others take to stop.
GUEST = ("--working-set", "8M", "--dirty-rate", "20M", "--dma-in-flight", "48")
# What a lost write leaves: P2P to who wrote, SRAM to the owner of the memory. And an interrupt that comes twice: a
# device went on after what is latched was saved.
GUEST_ERRORS = (15, 10, 12)
ATTEMPTS = 8
LOOKS = 20  # of the guest at memory that its devices write


@pytest.fixture
def world():
    with World() as it:
        yield it


def move(world, source_sabotage=None, target_sabotage=None):
    """Moves a guest whose two devices attack each other: its new VMM, and the hits that each of the
    four devices took while it was stopped."""
    names = ("a0", "a1", "b0", "b1")
    paths = {name: world.device(name, "--json", "--latency-us", "10000") for name in names}
    source = world.vm("a", *GUEST, devices=[paths["a0"], paths["a1"]], sabotage=source_sabotage)
    target = world.vm("b", devices=[paths["b0"], paths["b1"]], incoming=world.uri(),
                      sabotage=target_sabotage)
    wait_until(lambda: all(device["p2p-checked"] for device in source("x-guest")["devices"]),
               "peer to peer DMA")
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "5000")
    assert result.returncode == 0, result.stderr
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    return source, target, names


def count_hits(world, source, target, names):
    for vm in (source, target):
        vm("quit")
        vm.process.wait(60)
    counted = {name: world.counters(name) for name in names}
    return {name: c["mmio_stopped_reads"] + c["mmio_stopped_writes"] for name, c in counted.items()}


def test_the_barrier_holds(world):
    source, target, names = move(world)
    assert_guest_lives(target)
    assert count_hits(world, source, target, names) == dict.fromkeys(names, 0)


def attack(side, victim):
    """One guest moved without the barrier: whether it hit. The devices may have had no work just then."""
    with World() as world:
        world.orders_break = True
        source, target, names = move(world, **{f"{side}_sabotage": "skip-barrier"})
        before = [device["p2p-looks"] for device in target("x-guest")["devices"]]

        def judged():
            guest = target("x-guest")
            now = [device["p2p-looks"] for device in guest["devices"]]
            return guest["first-error"] or all(b - a > LOOKS for a, b in zip(before, now))
        # A doorbell that was dropped as well leaves a device without work, and the guest nothing to find.
        found = wait_until(judged, "an error that the guest finds, or none")
        hits = count_hits(world, source, target, names)
        assert found is True or found in GUEST_ERRORS
        hit = hits.pop(victim) > 0
        assert hit or found is True, hits
        assert not any(hits.values()), hits
        return hit


@pytest.mark.parametrize("side, victim", [("source", "a1"), ("target", "b1")])
def test_the_attack_hits_without_it(side, victim):
    assert any(attack(side, victim) for _ in range(ATTEMPTS))
