# SPDX-License-Identifier: BSD-3-Clause
"""Region access and reset.

    vfio-user 5   REGION_READ, REGION_WRITE: counts, bounds, posted writes, access in every state
    vfio-user 6   DEVICE_RESET in every state
    design 4      MMIO while the device does not run; what a reset keeps and what it does not
"""
import errno
import os
import struct

import guest
import pytest
import states
import wire
from cases import INFO, IOVA

EACH_STATE = pytest.mark.parametrize("state", states.EVERY)
RUNS = {states.RUNNING, states.RUNNING_P2P, states.PRE_COPY, states.PRE_COPY_P2P}
ONES = b"\xff" * 8
STAMP = b"stamped!"


# ---- 5 -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 100, 4096, 65536])
def test_region_data_goes_and_comes_back(client, size):
    data = os.urandom(size)
    client.write(wire.BAR0, guest.SRAM, data)
    assert client.read(wire.BAR0, guest.SRAM, size) == data


def test_region_access_of_the_largest_size_in_one_message(client):
    """A request far above one socket buffer, by one call (quirk 1)."""
    data = os.urandom(65536)
    for _ in range(20):
        client.write(wire.BAR0, guest.SRAM, data)
    for _ in range(20):
        assert client.read(wire.BAR0, guest.SRAM, 65536) == data


@pytest.mark.parametrize("index", [wire.BAR0, wire.CONFIG, wire.MIGRATION])
@pytest.mark.parametrize("command", [wire.REGION_READ, wire.REGION_WRITE])
def test_region_count_0_has_the_body_of_the_specification(client, index, command):
    """Not a bare header (quirk 9)."""
    payload = wire.region(4, index, 0)
    assert client.ok(command, payload) == payload


@pytest.mark.parametrize("index, size", [(wire.BAR0, guest.BAR_SIZE), (wire.CONFIG, 256)])
def test_region_end_is_exact(client, index, size):
    client.read(index, size - 1, 1)
    assert client.ok(wire.REGION_READ, wire.region(size, index, 0)) == wire.region(size, index, 0)
    for offset, count in ((size, 1), (size - 1, 2), (size + 1, 0), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2),
                          (0, size + 1), (1 << 63, 8)):
        client.fails(errno.EINVAL, wire.REGION_READ, wire.region(offset, index, count))
        client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(offset, index, count, bytes(count)))


@pytest.mark.parametrize("index", [1, 2, 5, 6, 8, 10, 11, 0x80000000, 0xFFFFFFFF])
def test_region_that_is_absent_is_einval(client, index):
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(0, index, 4))
    client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(0, index, 4, bytes(4)))


@pytest.mark.parametrize("count, data", [(8, 7), (8, 9), (0, 1), (8, 0), (0xFFFFFFF0, 8)])
def test_region_write_size_must_fit_its_count(client, count, data):
    wanted = errno.E2BIG if count > 1 << 20 else errno.EINVAL
    client.fails(wanted, wire.REGION_WRITE, wire.region(guest.SCRATCH, 0, count, b"x" * data))
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == bytes(8)


@pytest.mark.parametrize("extra", [1, 8])
def test_region_read_with_trailing_bytes_is_einval(client, extra):
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(0, 0, 8) + bytes(extra))


def test_region_count_above_max_data_xfer_size_is_e2big(client):
    """The message still fits the framing: the stream stays in step."""
    size = (1 << 20) + 1
    client.fails(errno.E2BIG, wire.REGION_READ, wire.region(0, 0, size))
    client.fails(errno.E2BIG, wire.REGION_WRITE, wire.region(0, 0, size, bytes(size)))
    client.ok(wire.GET_INFO, INFO)


def test_region_writes_may_be_posted(client):
    """QEMU's way: NO_REPLY writes, and a read that sees them all."""
    for value in range(200):
        payload = wire.region(guest.SRAM + 8 * value, 0, 8, struct.pack("=Q", value))
        client.command(wire.REGION_WRITE, payload, wire.NO_REPLY)
    assert client.read(wire.BAR0, guest.SRAM, 1600) == struct.pack("=200Q", *range(200))


def test_region_posted_write_and_state_write_take_effect_in_that_order(client):
    payload = wire.region(guest.SCRATCH, 0, 8, STAMP)
    client.command(wire.REGION_WRITE, payload, wire.NO_REPLY)
    client.command(wire.FEATURE, wire.set_state(states.STOP), wire.NO_REPLY)
    client.command(wire.REGION_WRITE, wire.region(guest.SCRATCH, 0, 8, b"too late"), wire.NO_REPLY)
    assert client.set_state(states.RUNNING) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == STAMP


@EACH_STATE
def test_region_reads_ones_and_drops_writes_exactly_without_r(client, state):
    """C51; never an error, never a way into a stopped device."""
    client.write(wire.BAR0, guest.SCRATCH, STAMP)
    states.enter(client, state)
    runs = state in RUNS
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == (STAMP if runs else ONES)
    client.write(wire.BAR0, guest.SCRATCH, b"changed!")
    if state not in (states.ERROR, states.RESUMING):
        assert client.set_state(states.RUNNING) == 0
        assert client.read(wire.BAR0, guest.SCRATCH, 8) == (b"changed!" if runs else STAMP)


@EACH_STATE
def test_region_bounds_hold_in_every_state(client, state):
    states.enter(client, state)
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(guest.BAR_SIZE, 0, 1))
    client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(guest.BAR_SIZE - 1, 0, 2, b"xx"))
    assert client.state() == state


# ---- 6 -------------------------------------------------------------------------------------------

@EACH_STATE
@pytest.mark.parametrize("dialect", ["region", "feature"])
def test_reset_in_every_state_leads_to_running(client, state, dialect):
    """The first read after it says so, in both dialects (C42-C45, X10)."""
    client.write(wire.BAR0, guest.SCRATCH, STAMP)
    if dialect == "feature" or state == states.ERROR:
        states.enter(client, state)
    else:
        assert client.set_bits(states.BITS[state]) == 0
    client.reset()
    assert client.bits() == states.R
    assert client.state() == states.RUNNING
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == bytes(8)
    for payload in (wire.mig_data(8),):
        client.fails(errno.EINVAL, wire.MIG_DATA_READ, payload)
        client.fails(errno.EINVAL, wire.MIG_DATA_WRITE, wire.mig_data(0))
    assert client.read_int(wire.MIGRATION, 8, 8) == 0  # pending_bytes: the window is gone


def test_reset_is_answered_by_a_bare_header(client):
    reply = client.call(wire.RESET)
    assert (reply.flags, reply.error, reply.payload) == (wire.REPLY, 0, b"")


def test_reset_drops_what_was_being_saved(client):
    """A stream that is taken up after a reset is a new one, from its first byte."""
    assert client.set_state(states.STOP_COPY) == 0
    client.ok(wire.MIG_DATA_READ, wire.mig_data(5000))
    client.reset()
    assert client.set_state(states.STOP_COPY) == 0
    stream = client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    client.write_data(stream)
    assert client.set_state(states.STOP) == 0


def test_reset_drops_what_was_being_loaded(client, saved_stream):
    assert client.set_state(states.RESUMING) == 0
    client.write_data(saved_stream[:-1])
    client.reset()
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == bytes(8)
    assert client.set_state(states.RESUMING) == 0
    client.write_data(saved_stream)
    assert client.set_state(states.RUNNING) == 0
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == guest.STAMP


def test_reset_is_as_pci_says(client):
    """Config space and MSI-X table as at power on."""
    before = client.read(wire.CONFIG, 0, 256), client.read(wire.BAR0, guest.MSIX_TABLE, 64)
    client.write_int(wire.CONFIG, 4, 2, 7)
    client.write_int(wire.CONFIG, 0x10, 4, 0xE0000000)
    client.write(wire.BAR0, guest.MSIX_TABLE, b"\x11" * 64)
    client.reset()
    after = client.read(wire.CONFIG, 0, 256), client.read(wire.BAR0, guest.MSIX_TABLE, 64)
    assert after == before


def test_reset_keeps_eventfds_and_drops_pending_causes(client):
    vectors = guest.Vectors(client)
    vectors.attach(0, 4)
    assert client.set_state(states.STOP) == 0
    vectors.fire()
    client.reset()
    assert vectors.taken() == [0, 0, 0, 0]
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0
    vectors.fire(1, 1)
    assert vectors.taken() == [0, 1, 0, 0]
    vectors.close()


def test_reset_keeps_dirty_tracking(client, memory):
    """What was dirty stays dirty, and the log goes on (A26)."""
    guest.map_memory(client, memory, IOVA)
    driver = guest.Driver(client, memory, IOVA)
    client.ok(wire.FEATURE, wire.log_start(4096))
    driver.run(guest.FILL, dst=IOVA + 4096, length=8)
    client.reset()
    driver.enable()
    driver.run(guest.FILL, dst=IOVA + 8192, length=8)
    assert client.report(IOVA, memory.size) == {0, 1, 2}


def test_resets_may_be_pipelined(client):
    for _ in range(3):
        client.command(wire.RESET)
    for _ in range(3):
        assert client.next_reply().error == 0


def test_reset_of_a_device_without_callbacks_succeeds(servers):
    client = servers("null").connect()
    assert client.set_state(states.STOP) == 0
    client.reset()
    assert client.state() == states.RUNNING
