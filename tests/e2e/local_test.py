# SPDX-License-Identifier: BSD-3-Clause
"""A guest moves to another VMM of the same host with its memory, of which nothing is copied."""
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess

import pytest

import kill_test
import stream
from peer_test import learn_identity
from world import VFMIG, QmpError, World, assert_guest_lives, have_kvm, migrate, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
ACCELS = ["none", pytest.param("kvm", marks=pytest.mark.skipif(not have_kvm(), reason="no KVM"))]


@pytest.fixture
def world():
    with World() as it:
        yield it


def memory_files(vm):
    """The files of guest memory that a VMM has mapped or open: inode to a path that opens them."""
    found = {}
    for path in pathlib.Path(f"/proc/{vm.process.pid}/fd").iterdir():
        try:
            if "guest-ram" in os.readlink(path):
                found[path.stat().st_ino] = path
        except FileNotFoundError:
            pass  # closed since it was listed
    return found


def digest(vm):
    [path] = memory_files(vm).values()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shared_bytes(vm):
    text = pathlib.Path(f"/proc/{vm.process.pid}/smaps").read_text()
    inside, total = False, 0
    for line in text.splitlines():
        if line[0].isdigit() or line[0] in "abcdef":
            inside = "guest-ram" in line if "-" in line.split()[0] else inside
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def pair(world, accel="none", device_args=(), target_sabotage=None, how=""):
    """how is appended to the devices as the VMMs are told of them."""
    source = world.vm("a", *GUEST, accel=accel, devices=[f"{world.device('dev-a')}{how}"])
    target = world.vm("b", accel=accel, devices=[f"{world.device('dev-b', *device_args)}{how}"],
                      incoming=world.uri(), sabotage=target_sabotage)
    return source, target


def move(source, uri):
    return migrate(source, uri, "--local", "--json", "--downtime-limit", "2000")


@pytest.mark.parametrize("accel", ACCELS)
def test_there_and_back_in_the_same_memory(world, accel):
    source, target = pair(world, accel)
    assert_guest_lives(source)
    [inode] = memory_files(source)
    result = move(source, world.uri())
    assert result.returncode == 0, result.stderr
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    assert_guest_lives(target)
    # The one memory is the destination's now, and of the source's nobody holds anything any more.
    assert list(memory_files(target)) == [inode]
    assert memory_files(source) == {}
    wait_until(lambda: shared_bytes(source) == 0, "the end of the source's mapping")
    report = json.loads(result.stdout)
    assert report["ram"]["transferred"] < 4 << 20  # device data, vCPUs and marks
    assert report["ram"]["normal"] == report["ram"]["duplicate"] == 0
    source("quit")
    assert source.process.wait(60) == 0
    back = world.vm("c", accel=accel, devices=[world.device("dev-c")], incoming=world.uri("back"))
    result = move(target, world.uri("back"))
    assert result.returncode == 0, result.stderr
    assert_guest_lives(back)
    assert list(memory_files(back)) == [inode]
    # And away by copying: trackers are read again, on memory that came by descriptor.
    last = world.vm("d", accel=accel, devices=[world.device("dev-d")], incoming=world.uri("copy"))
    result = migrate(back, world.uri("copy"), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(last)
    assert list(memory_files(last)) != [inode]


@pytest.mark.parametrize("how", [",dialect=region", ",iommu=on"])
def test_other_ways_to_reach_memory(world, how):
    """Another dialect; and DMA that the VMM does for the device, at its own addresses."""
    source, target = pair(world, how=how)
    assert_guest_lives(source)
    result = move(source, world.uri())
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


def test_several_devices(world):
    """Two that reach each other, behind the vIOMMU, one with much state, one without NDMA."""
    def devices(side):
        return [f"{world.device(side + '0', '--latency-us', '200')},iommu=on,id=nic0",
                f"{world.device(side + '1', '--latency-us', '200')},iommu=on,id=nic1",
                f"{world.device(side + '2', '--state-size', '1M', kind='bulk')},id=bulk0",
                f"{world.device(side + '3', '--no-ndma')},id=old0"]
    source = world.vm("a", *GUEST, "--p2p", "auto", devices=devices("a"))
    target = world.vm("b", "--p2p", "auto", devices=devices("b"), incoming=world.uri())
    for vm in (source, target):
        wait_until(lambda: vm("query-status")["running"], "the guest")
        before = vm("x-guest")

        def all_work():
            now = vm("x-guest")
            pairs = list(zip(before["devices"], now["devices"]))
            return all(n["p2p-checked"] > b["p2p-checked"] for b, n in pairs[:2]) and \
                all(n["checked"] > b["checked"] for b, n in pairs[2:]) and \
                now["iommu"]["answered"] > before["iommu"]["answered"]
        wait_until(all_work, "work of every device")
        assert vm("x-guest")["errors"] == 0, vm("x-guest")
        if vm is source:
            result = move(source, world.uri())
            assert result.returncode == 0, result.stderr
            assert json.loads(result.stdout)["ram"]["normal"] == 0


def standing(world, accel="none", **kwargs):
    """A guest that stands still at a source whose devices have finished: nobody writes."""
    source, target = pair(world, accel, **kwargs)
    assert_guest_lives(source)
    source("stop")
    before = [None]

    def quiet():
        last, before[0] = before[0], digest(source)
        return before[0] == last
    wait_until(quiet, "the last DMA")
    return source, target, before[0]


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("where", ["before-READY", "after-GRANTED", None])
def test_nothing_is_written_before_the_grant(world, accel, where):
    """The destination dies, or its device refuses its state, with the memory in its hands."""
    fault = ["--fail", "load_end"] if where is None else []
    source, target, before = standing(world, accel, device_args=fault,
                                      target_sabotage=where and f"kill-{where}")
    [own] = memory_files(target)
    [inode] = memory_files(source)
    if where == "after-GRANTED":
        # It had the grant: whether it ran the guest is for the destination's journal to say.
        mover = subprocess.Popen([VFMIG, "migrate", "--qmp", source.path, "--local", "--quiet",
                                  "--downtime-limit", "2000", world.uri()],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        target.process.wait(60)
        mover.kill()
        mover.wait()
        assert digest(source) == before
        for side, other in ((target, source), (source, target)):
            subprocess.run([VFMIG, "resolve", side.journal, "--peer-journal", other.journal],
                           check=True, timeout=60, stdout=subprocess.DEVNULL)
        wait_until(lambda: source("query-status")["status"] == "paused", "the guest at its source")
    else:
        result = move(source, world.uri())
        assert result.returncode == 1, result.stderr
    assert digest(source) == before
    assert list(memory_files(source)) == [inode]
    if where is None:
        # It has its own memory again, empty, and nothing of the source's.
        wait_until(lambda: list(memory_files(target)) == [own], "the destination's own memory")
        assert not any(pathlib.Path(f"/proc/{target.process.pid}/fd").joinpath(
            memory_files(target)[own].name).read_bytes())
    source("cont")
    assert_guest_lives(source)


def test_cancelled_with_the_memory_passed_on(world):
    state = ("--state-size", "256K")  # which is read for four seconds
    source = world.vm("a", *GUEST, devices=[world.device("dev-a", *state, "--save-rate", "64K")])
    target = world.vm("b", devices=[world.device("dev-b", *state)], incoming=world.uri())
    assert_guest_lives(source)
    [own], [inode] = memory_files(target), memory_files(source)
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", source.path, "--local", "--quiet",
                                world.uri()], stderr=subprocess.DEVNULL)
    wait_until(lambda: inode in memory_files(target), "the memory at the destination")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 4
    assert_guest_lives(source)
    wait_until(lambda: list(memory_files(target)) == [own], "the destination's own memory")
    assert_guest_lives(source)


def test_a_dry_run_asks_for_it(world):
    source, target = pair(world)
    assert_guest_lives(source)
    answer = source("x-vfmig-check", uri=world.uri(), x_local=True)
    assert answer["accept"], answer
    result = migrate(source, world.uri(), "--local", "--dry-run")
    assert result.returncode == 0 and "nothing is against it" in result.stdout, result
    assert set(memory_files(source)).isdisjoint(memory_files(target))


def test_a_device_without_a_log_moves(world):
    """Nobody needs to know what it wrote: it is there."""
    source = world.vm("a", *GUEST, devices=[world.device("dev-a", "--mask", "log")])
    target = world.vm("b", devices=[world.device("dev-b", "--mask", "log")], incoming=world.uri())
    assert_guest_lives(source)
    with pytest.raises(QmpError, match="cannot log its DMA"):
        source("migrate", uri=world.uri())
    result = move(source, world.uri())
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


SOURCE_DIES = ["after-send-offer", "on-receipt-ready", "after-send-grant", "before-RELEASED"]
DESTINATION_DIES = ["after-READY", "after-GRANTED", "after-RUNNING"]


@pytest.mark.parametrize("side, where", [("source", it) for it in SOURCE_DIES] +
                         [("destination", it) for it in DESTINATION_DIES])
def test_killed(side, where):
    """What is left is what any other migration leaves, and settles as that does."""
    kill_test.play(side, where, "resolve", "none", "--local")


def refused(source, uri, *words):
    result = move(source, uri)
    assert result.returncode in (1, 2), result.stderr
    for word in words:
        assert word in result.stderr
    assert_guest_lives(source)


def test_refused_by_name(world):
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")])
    world.vm("b", memory="64M", devices=[world.device("dev-b")], incoming=world.uri())
    assert_guest_lives(source)
    refused(source, "tcp:127.0.0.1:1", "over unix:PATH only")
    with pytest.raises(QmpError, match="over unix:PATH only"):
        source("migrate", uri="tcp:127.0.0.1:1", x_local=True)
    with pytest.raises(QmpError, match="over unix:PATH only"):
        source("migrate", uri=f"file:{world.folder}/guest", x_local=True)
    refused(source, world.uri(), "memory.0 is")
    assert not (world.folder / "guest").exists()


# --- a source that lies ---

BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
MIB = 1 << 20


def offer(world, need):
    """A played source that says so: its channel, and the destination's verdict."""
    source = world.vm("a", devices=[world.device("dev-a")])
    world.vm("b", devices=[world.device("dev-b")], incoming=world.uri())
    identity = learn_identity(world, source)
    [channel], migration = stream.connect(world.folder / "move.sock")
    channel.send("IDENTITY", identity + b"needs=local-memory@" + need + b"\n")
    return channel, migration, channel.expect("VERDICT")


def test_another_host_is_refused(world):
    _, _, verdict = offer(world, b"0" * len(BOOT_ID))
    assert struct.unpack_from("<I", verdict)[0] == 0 and b"another host" in verdict


def sealed(size, seals):
    fd = os.memfd_create("guest-ram", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def read_only():
    fd = sealed(48 * MIB, fcntl.F_SEAL_SHRINK)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)


RAM = struct.pack("<IIQQQ", 1, 0, 0, 48 * MIB, 0)
LIES = {
    "no descriptor": (RAM, lambda: [], b"0 descriptors came"),
    "two descriptors": (RAM, lambda: [sealed(48 * MIB, fcntl.F_SEAL_SHRINK)] * 2, b"2 descriptors"),
    "no memfd": (RAM, lambda: [os.open("/dev/zero", os.O_RDWR)], b"it is no memfd"),
    "not sealed": (RAM, lambda: [sealed(48 * MIB, 0)], b"not sealed against shrinking"),
    "sealed against writing": (RAM, lambda: [sealed(48 * MIB, fcntl.F_SEAL_SHRINK | 0x10)],
                               b"cannot be written"),
    "read only": (RAM, lambda: [read_only()], b"cannot be written"),
    "too short": (RAM, lambda: [sealed(47 * MIB, fcntl.F_SEAL_SHRINK)], b"shorter than the block"),
    "beyond its end": (struct.pack("<IIQQQ", 1, 0, 0, 48 * MIB, 4096),
                       lambda: [sealed(48 * MIB, fcntl.F_SEAL_SHRINK)], b"shorter than the block"),
    "another block": (struct.pack("<IIQQQ", 1, 0, 4096, 48 * MIB, 0),
                      lambda: [sealed(48 * MIB, fcntl.F_SEAL_SHRINK)], b"another one"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_passed_on_is_checked(world, lie):
    payload, make, why = LIES[lie]
    channel, migration, verdict = offer(world, BOOT_ID)
    assert struct.unpack_from("<I", verdict)[0] == 1, verdict
    channel.message("OFFER", migration, record=1)
    socket.send_fds(channel.socket, [channel.record("RAMFDS", payload)], make())
    assert why in channel.expect("ERROR")


def test_pages_beside_the_descriptors_are_refused(world):
    channel, migration, _ = offer(world, BOOT_ID)
    channel.message("OFFER", migration, record=1)
    channel.send("ZERO", struct.pack("<IIIIQ", 1, 1, 0, 1, 0))
    assert b"before the memory map was agreed" in channel.expect("ERROR")
