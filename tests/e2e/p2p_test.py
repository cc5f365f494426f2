# SPDX-License-Identifier: BSD-3-Clause
"""Devices that write to each other's memory all the time, and guests that move with them: in sets that
can stop it, in mixed ones, and in those that are refused (C54-C57, C69, C70)."""
import pytest

from world import QmpError, World, assert_guest_lives, have_kvm, migrate, migrate_slowly, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
ACCELS = ["none", pytest.param("kvm", marks=pytest.mark.skipif(not have_kvm(), reason="no KVM"))]
DIALECTS = pytest.mark.parametrize("dialects", [("feature", "feature"), ("region", "region"),
                                                ("feature", "region")], ids="-".join)


@pytest.fixture
def world():
    with World() as it:
        yield it


def devices(world, side, knobs=((), ()), dialects=("feature",) * 3):
    return [f"{world.device(f'{side}{i}', '--json', '--latency-us', '200', *more)},dialect={dialects[i]}"
            for i, more in enumerate(knobs)]


def reaches(qmp):
    return {device["id"]: device["reaches"] for device in qmp("x-query-peers")}


def assert_peers_work(qmp, count=2):
    """Writes to a peer are made and read back, by every device that has one, and all are right."""
    counters = ("p2p-done", "p2p-checked", "p2p-looks")
    before = qmp("x-guest")["devices"]

    def progressed():
        now = qmp("x-guest")["devices"]
        return sum(all(b[c] < n[c] for c in counters) for b, n in zip(before, now)) == count
    wait_until(progressed, "peer to peer DMA")
    now = qmp("x-guest")
    assert now["errors"] == 0, now


def accesses(step):
    """Made by devices to others in a step of the migration."""
    return step["at-end"]["peer-accesses"] - step["at-start"]["peer-accesses"]


def assert_peers_were_quiet(source):
    """None came from the moment on when all were in the grace state (C55, C56)."""
    steps = {step["name"]: step for step in source("query-migrate")["x-vfmig"]["steps"]}
    assert steps["S4"]["at-start"]["peer-accesses"] > 0
    assert all(accesses(steps[name]) == 0 for name in ("S4", "S5", "handover"))
    return steps


def assert_nothing_hit_a_stopped_device(world, *vms):
    for vm in vms:
        vm("quit")
        vm.process.wait(60)
    names = [log.stem for _, log in world.processes if log.stem not in ("a", "b", "c")]
    for name in names:
        if name not in world.killed:
            counted = world.counters(name)
            assert counted["mmio_stopped_reads"] == counted["mmio_stopped_writes"] == 0, name
    return len(names)


@DIALECTS
@pytest.mark.parametrize("accel", ACCELS)
def test_a_pair_moves_there_and_back(world, dialects, accel):
    def vm(name, *args, **kwargs):
        return world.vm(name, *args, accel=accel, devices=devices(world, name, dialects=dialects), **kwargs)
    source = vm("a", *GUEST)
    target = vm("b", incoming=world.uri())
    assert reaches(source) == reaches(target) == {"dev0": ["dev1"], "dev1": ["dev0"]}
    assert_peers_work(source)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_peers_work(target)
    assert_peers_were_quiet(source)
    back = vm("c", incoming=world.uri("back"))
    result = migrate(target, world.uri("back"), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_peers_work(back)
    for device in back("x-query-peers"):
        assert device["reads"] and device["writes"] and not device["failures"]
    assert assert_nothing_hit_a_stopped_device(world, source, target, back) == 6


def test_peers_work_while_memory_is_sent(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    target = world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    assert_peers_work(source)
    process = migrate_slowly(source, world.uri(), "--downtime-limit", "5000", bandwidth="8M")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps = assert_peers_were_quiet(source)
    assert sum(accesses(steps[name]) for name in ("S1", "S2")) > 0
    assert_peers_work(target)


MIXED = ((), ("--mask", "p2p"), ())
PAIR_OF_THREE = {"dev0": ["dev2"], "dev1": [], "dev2": ["dev0"]}


def test_a_device_without_ndma_is_beside_the_others(world):
    dialects = ("region", "feature", "feature")
    source = world.vm("a", *GUEST, devices=devices(world, "a", MIXED, dialects))
    target = world.vm("b", devices=devices(world, "b", MIXED, dialects), incoming=world.uri())
    assert reaches(source) == reaches(target) == PAIR_OF_THREE
    assert_peers_work(source)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_peers_work(target)
    assert_nothing_hit_a_stopped_device(world, source, target)


def test_three_go_round(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a", ((), (), ())))
    assert reaches(source) == {"dev0": ["dev1", "dev2"], "dev1": ["dev0", "dev2"],
                               "dev2": ["dev0", "dev1"]}
    assert_peers_work(source, 3)


def test_no_peers_if_they_are_not_wanted(world):
    source = world.vm("a", *GUEST, "--p2p", "off", devices=devices(world, "a"))
    target = world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    assert reaches(source) == {"dev0": [], "dev1": []}
    assert_guest_lives(source)
    # That the destination could do more is no hindrance.
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)
    assert all(device["p2p-done"] == 0 for device in target("x-guest")["devices"])


def test_peers_that_the_destination_would_not_have(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    world.vm("b", devices=devices(world, "b", ((), ("--mask", "p2p"))), incoming=world.uri())
    assert_peers_work(source)
    result = migrate(source, world.uri(), "--quiet")
    assert result.returncode == 1
    assert "need.p2p.dev0.reaches-peers is yes at the source and missing at the destination" \
        in result.stderr
    assert_peers_work(source)


def test_a_mixed_set_that_shares_all_stays(world):
    source = world.vm("a", *GUEST, "--p2p", "on", devices=devices(world, "a", MIXED))
    world.vm("b", devices=devices(world, "b", MIXED), incoming=world.uri())
    assert_peers_work(source, 3)
    result = migrate(source, world.uri(), "--quiet")
    assert result.returncode == 1
    assert result.stderr.startswith("vfmig migrate: device dev1 has no NDMA, and others can reach it by peer "
                                    "to peer DMA; what led to it: ") and result.stderr.count("\n") == 1
    assert_peers_work(source, 3)


# --- devices that come and go ---

def add(qmp, name, path):
    qmp("device_add", driver="vfio-user-pci", id=name, socket={"type": "unix", "path": str(path)})


def test_a_newcomer_gets_what_the_policy_gives(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    add(source, "plain", world.device("plain", "--mask", "p2p"))
    add(source, "new", world.device("new"))
    assert reaches(source) == {"dev0": ["dev1", "new"], "dev1": ["dev0", "new"], "plain": [],
                               "new": ["dev0", "dev1"]}
    assert_peers_work(source)
    for name, words in (("dev1", "the guest uses it"), ("plain", "remove that one first"),
                        ("nobody", "there is no device")):
        with pytest.raises(QmpError, match=words):
            source("device_del", id=name)
    source("device_del", id="new")
    source("device_del", id="plain")
    assert reaches(source) == {"dev0": ["dev1"], "dev1": ["dev0"]}
    source("query-status")
    assert source.events.count("DEVICE_DELETED") == 2
    # As if they had never been there.
    target = world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_peers_work(target)


def test_a_newcomer_moves_with_the_others(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    assert_peers_work(source)
    add(source, "dev2", world.device("a2", "--json"))
    target = world.vm("b", devices=devices(world, "b", ((), (), ())), incoming=world.uri())
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_peers_work(target)


def test_a_newcomer_that_makes_the_set_mixed(world):
    source = world.vm("a", *GUEST, "--p2p", "on", devices=devices(world, "a"))
    target = world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    add(source, "plain", world.device("plain", "--mask", "p2p"))
    assert reaches(source)["plain"] == ["dev0", "dev1"]
    result = migrate(source, world.uri(), "--quiet")
    assert result.returncode == 1 and "device plain has no NDMA" in result.stderr
    assert_peers_work(source)
    source("device_del", id="plain")
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_peers_work(target)


def test_a_newcomer_at_a_bad_moment(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    target = world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    new = world.device("new")
    with pytest.raises(QmpError, match="has not arrived yet"):
        add(target, "new", new)
    for name, path, words in (("dev0", new, "two devices have the id dev0"),
                              ("new", world.folder / "nothing", "nothing")):
        with pytest.raises(QmpError, match=words):
            add(source, name, path)
    with pytest.raises(QmpError, match="only the driver vfio-user-pci"):
        source("device_add", driver="e1000", id="new", socket={"type": "unix", "path": str(new)})
    process = migrate_slowly(source, world.uri())
    for attempt in (lambda: add(source, "new", new), lambda: source("device_del", id="dev1")):
        with pytest.raises(QmpError, match="a migration is under way"):
            attempt()
    source("migrate_cancel")
    process.communicate(timeout=60)
    assert process.returncode == 4
    assert_peers_work(source)
    add(source, "new", new)
    assert reaches(source)["new"] == ["dev0", "dev1"]


# --- a peer that dies ---

@pytest.mark.parametrize("victim", [0, 1])
def test_a_device_dies_under_its_peers_dma(world, victim):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    assert_peers_work(source)
    world.kill(f"a{victim}")
    wait_until(lambda: source("x-query-peers")[victim]["failures"], "an access that nobody answers")
    # The other one goes on, and says to the guest what became of its accesses.
    before = source("x-guest")["devices"][1 - victim]["checked"]
    wait_until(lambda: source("x-guest")["devices"][1 - victim]["checked"] > before + 100,
               "work of the one that is left")
    assert source("x-guest")["errors"]
    result = migrate(source, world.uri(), "--quiet")
    assert result.returncode == 1
    assert f"a{victim}.sock: the peer closed" in result.stderr and result.stderr.count("\n") == 1
    assert source("query-status")["running"]


def test_a_device_dies_while_its_guest_moves(world):
    source = world.vm("a", *GUEST, devices=devices(world, "a"))
    world.vm("b", devices=devices(world, "b"), incoming=world.uri())
    assert_peers_work(source)
    process = migrate_slowly(source, world.uri(), bandwidth="8M")
    world.kill("a1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "a1.sock" in err, err
    assert source("query-status")["running"]
    before = source("x-guest")["devices"][0]["checked"]
    wait_until(lambda: source("x-guest")["devices"][0]["checked"] > before + 100,
               "work of the one that is left")
