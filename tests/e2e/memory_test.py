# SPDX-License-Identifier: BSD-3-Clause
"""Memory of each side stays within guest memory plus 64 MiB, whatever the other side sends."""
import os
import struct
import threading

import pytest

import stream
from peer_test import learn_identity
from world import World, assert_guest_lives, migrate, wait_until

MIB = 1 << 20
LIMIT = 64 * MIB
IDLE = 8 * MIB  # of the limit: a process that waits
DEVICES = 4


@pytest.fixture
def world(monkeypatch):
    # What a sanitizer keeps from reuse is not the program's.
    quarantine = "quarantine_size_mb=1:thread_local_quarantine_size_kb=64"
    monkeypatch.setenv("ASAN_OPTIONS", ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), quarantine))))
    with World() as it:
        yield it


def read_status(qmp):
    with open(f"/proc/{qmp.process.pid}/status") as status:
        rows = (line.split() for line in status)
        return {row[0]: int(row[1]) << 10 for row in rows if len(row) == 3 and row[2] == "kB"}


def assert_within(qmp, guest_bytes):
    """The peak, and beside it what is not guest memory: memfd pages that a process has mapped."""
    now = read_status(qmp)
    assert now["VmHWM:"] <= guest_bytes + LIMIT, now
    assert now["VmHWM:"] - now["RssShmem:"] <= LIMIT, now
    return now


def assert_bounded(qmp, idle):
    """As above for a destination that got no guest memory. What it has before anybody connects is a
    few MiB in the product, and more here: a sanitizer's."""
    now = read_status(qmp)
    assert idle["RssShmem:"] == 0 and now["RssShmem:"] == 0, (idle, now)
    assert now["VmHWM:"] - idle["VmHWM:"] <= LIMIT - IDLE, (idle, now)


@pytest.mark.parametrize("channels", ["2", "16"])
def test_a_migration(world, channels):
    source = world.vm("a", "--working-set", "96M", "--dirty-rate", "400M", memory="128M",
                      devices=[world.device("dev-a", "--state-size", "64M")])
    target = world.vm("b", memory="128M", devices=[world.device("dev-b", "--state-size", "64M")],
                      incoming=world.uri())
    assert_guest_lives(source)
    wait_until(lambda: read_status(source)["RssShmem:"] > 96 * MIB, "a guest that uses its memory")
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "60000", "--channels", channels)
    assert result.returncode == 0, result.stderr
    for qmp in (source, target):
        assert assert_within(qmp, 128 * MIB)["RssShmem:"] > 96 * MIB
    assert_guest_lives(target)


def begin(world, channel_count):
    """A source that was accepted, and the destination that is to be overrun."""
    source = world.vm("a", devices=[world.device(f"dev-a{i}") for i in range(DEVICES)])
    target = world.vm("b", devices=[world.device(f"dev-b{i}") for i in range(DEVICES)],
                      incoming=world.uri())
    identity = learn_identity(world, source)
    idle = read_status(target)
    channels, migration = stream.connect(world.folder / "move.sock", channel_count)
    channels[0].send("IDENTITY", identity)
    verdict = channels[0].expect("VERDICT")
    assert struct.unpack_from("<I", verdict)[0] == 1, verdict
    channels[0].message("OFFER", migration, record=1)
    return target, channels, idle


def piece(device, more, segment=0):
    return struct.pack("<IIQ", device, more, segment) + bytes(MIB)


@pytest.mark.parametrize("more", [0, 1], ids=["segments", "one that is never complete"])
def test_segments_that_nobody_loads(world, more):
    """Devices wait for their external state, which never comes: what is more than fits, waits too."""
    target, channels, idle = begin(world, 16)
    stopped = threading.Event()
    # Each other channel's buffer, to the last byte but one.
    for channel in channels[DEVICES:]:
        channel.socket.sendall(channel.record("DEVDATA", piece(0, 1))[:-1])

    def flood(device):
        try:
            for segment in range(16):
                channels[device].send("DEVDATA", piece(device, more, 0 if more else segment))
        except OSError:
            stopped.set()
    threads = [threading.Thread(target=flood, args=(device,)) for device in range(DEVICES)]
    for thread in threads:
        thread.start()

    def taken():
        """Until nothing moves any more; that it still would is not what is judged."""
        before = read_status(target)["RssAnon:"]
        for thread in threads:
            thread.join(1)
        return read_status(target)["RssAnon:"] == before
    wait_until(taken, "a destination that is full")
    assert_bounded(target, idle)
    for channel in channels:
        channel.socket.shutdown(2)
    for thread in threads:
        thread.join()
    assert stopped.is_set()  # not all of it was taken
    for channel in channels:
        channel.socket.close()
    assert not target("query-status")["running"]
