# SPDX-License-Identifier: BSD-3-Clause
"""DMA_MAP and DMA_UNMAP, and that DMA goes where they say. DMA to memory without descriptor is in
message_test.py, the bitmap of an unmap in log_test.py.

    vfio-user 4.1   DMA_MAP              4.2   DMA_UNMAP
    vfio-user 9     mappings go with the client
    design 4        descriptors from a client, mappings in every state
"""
import errno
import os
import struct

import guest
import pytest
import states
import wire
from cases import INFO, IOVA
from states import N, R, S

PAGE = 4096
RING = 0x10000000
END = 1 << 64
TARGETS = pytest.mark.parametrize("state", states.EVERY)


@pytest.fixture
def ring(client):
    """A driver whose ring lies in memory of its own."""
    with guest.Memory(PAGE) as one:
        guest.map_memory(client, one, RING)
        yield guest.Driver(client, one, RING)


# ---- 4.1 -----------------------------------------------------------------------------------------

def test_map_with_descriptor_is_reached_by_dma(client, memory, ring):
    guest.map_memory(client, memory, IOVA)
    assert ring.run(guest.FILL, dst=IOVA + PAGE + 8, length=PAGE, pattern=99) == 0
    assert memory[PAGE + 8:2 * PAGE + 8] == guest.filled(99, PAGE)
    assert ring.run(guest.COPY, src=IOVA + PAGE + 8, dst=IOVA + 0x8000, length=PAGE) == 0
    assert memory[0x8000:0x9000] == guest.filled(99, PAGE)


def test_map_takes_the_file_offset(client, memory, ring):
    guest.map_memory(client, memory, IOVA, size=PAGE, offset=5 * PAGE)
    assert ring.run(guest.FILL, dst=IOVA, length=64, pattern=7) == 0
    assert memory[5 * PAGE:5 * PAGE + 64] == guest.filled(7, 64)


def test_map_takes_an_odd_file_offset_and_size(client, memory, ring):
    """The server rounds for its own mmap, the mapping stays as it was given."""
    guest.map_memory(client, memory, IOVA + 24, size=1000, offset=PAGE + 24)
    assert ring.run(guest.FILL, dst=IOVA + 24, length=1000, pattern=7) == 0
    assert memory[PAGE + 24:PAGE + 1024] == guest.filled(7, 1000)
    for outside in (IOVA + 16, IOVA + 1024):
        assert ring.run(guest.FILL, dst=outside, length=8) == errno.EFAULT
    assert memory[PAGE:PAGE + 24] == bytes(24) and memory[PAGE + 1024:PAGE + 1032] == bytes(8)


@pytest.mark.parametrize("iova, size", [
    (IOVA, 16 * PAGE), (IOVA, PAGE), (IOVA - PAGE, 2 * PAGE), (IOVA - PAGE, 32 * PAGE), (IOVA + PAGE, 1),
    (IOVA + 15 * PAGE, 2 * PAGE), (IOVA + 16 * PAGE - 1, 1)])
def test_map_over_an_existing_region_is_eexist(server, client, memory, iova, size):
    """Also of exactly the same one (quirk 6)."""
    guest.map_memory(client, memory, IOVA, size=16 * PAGE)
    client.fails(errno.EEXIST, wire.DMA_MAP, wire.dma_map(iova, size), [memory.fd])
    client.fails(errno.EEXIST, wire.DMA_MAP, wire.dma_map(iova, size))
    assert server.mapped_pages() == 16


def test_map_beside_existing_regions_succeeds(client, memory):
    guest.map_memory(client, memory, IOVA, size=PAGE)
    guest.map_memory(client, memory, IOVA + PAGE, size=PAGE)
    guest.map_memory(client, memory, IOVA - PAGE, size=PAGE)


def test_map_up_to_the_last_byte_of_the_address_space(client, memory):
    guest.map_memory(client, memory, END - PAGE, size=PAGE)
    client.fails(errno.EEXIST, wire.DMA_MAP, wire.dma_map(END - 1, 1))
    echo = wire.dma_unmap(END - PAGE, PAGE)
    assert client.ok(wire.DMA_UNMAP, echo) == echo


@pytest.mark.parametrize("address, size, offset", [
    (IOVA, 0, 0), (END - PAGE, 2 * PAGE, 0), (2, END - 1, 0), (IOVA, PAGE, END - 1)])
def test_map_that_wraps_or_is_empty_is_einval(client, memory, address, size, offset):
    client.fails(errno.EINVAL, wire.DMA_MAP, wire.dma_map(address, size, offset=offset), [memory.fd])
    client.fails(errno.EINVAL, wire.DMA_MAP, wire.dma_map(address, size, offset=offset))


def test_map_has_no_size_limit_of_its_own(client):
    """Above 8 TiB too; what is too large to be mapped says so."""
    client.ok(wire.DMA_MAP, wire.dma_map(0, 1 << 60))
    client.fails(errno.EEXIST, wire.DMA_MAP, wire.dma_map((1 << 60) - 1, PAGE))
    with guest.Memory(PAGE) as memory:
        client.fails(errno.ENOMEM, wire.DMA_MAP, wire.dma_map(1 << 60, 1 << 60), [memory.fd])
    client.ok(wire.DMA_MAP, wire.dma_map(1 << 60, 1 << 60))


@pytest.mark.parametrize("flags", [4, 8, 16, 1 << 31, 3 | 16])
def test_map_flags_that_do_not_exist_are_einval(client, memory, flags):
    client.fails(errno.EINVAL, wire.DMA_MAP, wire.dma_map(IOVA, PAGE, flags), [memory.fd])


def test_map_argsz_is_its_own_size(client, memory):
    client.fails(errno.EINVAL, wire.DMA_MAP, wire.dma_map(IOVA, PAGE, argsz=31), [memory.fd])
    client.ok(wire.DMA_MAP, wire.dma_map(IOVA, PAGE, argsz=32), [memory.fd])


@pytest.mark.parametrize("flags, reads, writes", [(0, 1, 1), (1, 0, 1), (2, 1, 0), (3, 0, 0)])
def test_map_flags_say_what_dma_may_do(client, memory, ring, flags, reads, writes):
    guest.map_memory(client, memory, IOVA, flags=flags)
    assert ring.run(guest.CRC, src=IOVA, length=64) == reads * errno.EFAULT
    assert ring.run(guest.FILL, dst=IOVA, length=64, pattern=1) == writes * errno.EFAULT
    assert memory[:64] == (bytes(64) if writes else guest.filled(1, 64))


def test_map_of_a_descriptor_that_cannot_be_mapped_fails(client):
    """The errno is mmap's."""
    read, write = os.pipe()
    client.fails(errno.ENODEV, wire.DMA_MAP, wire.dma_map(IOVA, PAGE, wire.MAP_READ), [read])
    os.close(read)
    os.close(write)
    client.fails(errno.ENOENT, wire.DMA_UNMAP, wire.dma_unmap(IOVA, PAGE))


def test_map_for_writing_of_a_descriptor_open_for_reading_is_eacces(client, memory):
    fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY)
    client.fails(errno.EACCES, wire.DMA_MAP, wire.dma_map(IOVA, PAGE), [fd])
    client.ok(wire.DMA_MAP, wire.dma_map(IOVA, PAGE, wire.MAP_READ), [fd])
    os.close(fd)


def test_map_of_a_file_that_ends_too_early_harms_only_that_dma(client, memory, ring):
    """A truncated file must not end the server; what is there is reached."""
    guest.map_memory(client, memory, IOVA)
    os.ftruncate(memory.fd, PAGE)
    assert ring.run(guest.FILL, dst=IOVA + 8 * PAGE, length=64) == errno.EFAULT
    assert ring.run(guest.CRC, src=IOVA + 63 * PAGE, length=64) == errno.EFAULT
    assert ring.run(guest.FILL, dst=IOVA, length=64, pattern=5) == 0
    os.ftruncate(memory.fd, memory.size)
    assert memory[:64] == guest.filled(5, 64)


def test_map_without_dma_in_the_device_succeeds(servers, memory):
    """Quirk 11: memory can be told to any device."""
    server = servers("null")
    client = server.connect()
    guest.map_memory(client, memory, IOVA)
    assert client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size))


@TARGETS
def test_map_and_unmap_work_in_every_state(server, client, memory, state):
    """A destination maps while it resumes, a source unmaps while it is stopped (quirk 3)."""
    states.enter(client, state)
    guest.map_memory(client, memory, IOVA)
    assert server.mapped_pages() == 64
    assert client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size))
    assert server.mapped_pages() == 0
    assert client.state() == state


def test_dma_across_adjacent_mappings(client, memory, ring):
    """With and without contiguous files."""
    guest.map_memory(client, memory, IOVA, size=PAGE, offset=3 * PAGE)
    guest.map_memory(client, memory, IOVA + PAGE, size=PAGE, offset=0)
    assert ring.run(guest.FILL, dst=IOVA + PAGE - 64, length=128, pattern=1) == 0
    assert memory[4 * PAGE - 64:4 * PAGE] + memory[:64] == guest.filled(1, 128)


def test_dma_into_a_hole_is_efault(client, memory, ring):
    guest.map_memory(client, memory, IOVA, size=PAGE)
    guest.map_memory(client, memory, IOVA + 2 * PAGE, size=PAGE)
    assert ring.run(guest.CRC, src=IOVA, length=3 * PAGE) == errno.EFAULT
    assert ring.run(guest.CRC, src=IOVA - PAGE, length=8) == errno.EFAULT
    assert client.read_int(wire.BAR0, guest.ERRORS, 4) == 2


# ---- 4.2 -----------------------------------------------------------------------------------------

def test_unmap_echoes_and_the_memory_is_gone(server, client, memory, ring):
    guest.map_memory(client, memory, IOVA)
    echo = wire.dma_unmap(IOVA, memory.size)
    assert client.ok(wire.DMA_UNMAP, echo) == echo
    assert server.mapped_pages() == 1  # the ring
    assert ring.run(guest.FILL, dst=IOVA, length=64) == errno.EFAULT
    assert memory[:64] == bytes(64)
    client.fails(errno.ENOENT, wire.DMA_UNMAP, echo)


@pytest.mark.parametrize("iova, size", [
    (IOVA, PAGE), (IOVA, 65 * PAGE), (IOVA + PAGE, 63 * PAGE), (IOVA + 1, 64 * PAGE),
    (IOVA - PAGE, 65 * PAGE), (0, PAGE), (IOVA + 64 * PAGE, PAGE)])
def test_unmap_must_match_a_mapping_exactly(server, client, memory, iova, size):
    guest.map_memory(client, memory, IOVA)
    client.fails(errno.ENOENT, wire.DMA_UNMAP, wire.dma_unmap(iova, size))
    assert server.mapped_pages() == 64


def test_unmap_of_two_mappings_at_once_is_enoent(client, memory):
    guest.map_memory(client, memory, IOVA, size=PAGE)
    guest.map_memory(client, memory, IOVA + PAGE, size=PAGE)
    client.fails(errno.ENOENT, wire.DMA_UNMAP, wire.dma_unmap(IOVA, 2 * PAGE))


def test_unmap_all_takes_everything(server, client, memory):
    for number in range(8):
        guest.map_memory(client, memory, IOVA + number * 2 * PAGE, size=PAGE)
    echo = wire.dma_unmap(0, 0, wire.UNMAP_ALL)
    assert client.ok(wire.DMA_UNMAP, echo) == echo
    assert server.mapped_pages() == 0
    assert client.ok(wire.DMA_UNMAP, echo) == echo  # of nothing
    guest.map_memory(client, memory, IOVA)


@pytest.mark.parametrize("address, size", [(IOVA, 0), (0, PAGE), (IOVA, PAGE)])
def test_unmap_all_has_neither_address_nor_size(server, client, memory, address, size):
    guest.map_memory(client, memory, IOVA)
    client.fails(errno.EINVAL, wire.DMA_UNMAP, wire.dma_unmap(address, size, wire.UNMAP_ALL))
    assert server.mapped_pages() == 64


def test_unmap_all_and_bitmap_exclude_each_other(server, client, memory):
    guest.map_memory(client, memory, IOVA)
    client.ok(wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START))
    client.fails(errno.EINVAL, wire.DMA_UNMAP, wire.dma_unmap(
        0, 0, wire.UNMAP_ALL | wire.UNMAP_BITMAP, 48, (PAGE, 8)))
    assert server.mapped_pages() == 64


@pytest.mark.parametrize("flags", [4, 8, 1 << 31])
def test_unmap_flags_that_do_not_exist_are_einval(client, memory, flags):
    guest.map_memory(client, memory, IOVA)
    client.fails(errno.EINVAL, wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size, flags))
    client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size))


@pytest.mark.parametrize("address, size", [(IOVA, 0), (END - PAGE, 2 * PAGE)])
def test_unmap_that_wraps_or_is_empty_is_einval(client, address, size):
    client.fails(errno.EINVAL, wire.DMA_UNMAP, wire.dma_unmap(address, size))


def test_unmap_with_trailing_bytes_is_einval(client, memory):
    guest.map_memory(client, memory, IOVA)
    client.fails(errno.EINVAL, wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size) + bytes(16))


def test_mappings_of_one_transaction_need_not_be_awaited(server, client, memory):
    """QEMU sends unmaps and maps together and waits for the last reply."""
    payloads = [wire.dma_map(IOVA, PAGE), wire.dma_map(IOVA + PAGE, PAGE)]
    for payload in payloads:
        client.command(wire.DMA_MAP, payload, fds=[memory.fd])
    client.command(wire.DMA_UNMAP, wire.dma_unmap(IOVA, PAGE))
    client.command(wire.DMA_MAP, wire.dma_map(IOVA, PAGE, offset=PAGE), fds=[memory.fd])
    for command in (wire.DMA_MAP, wire.DMA_MAP, wire.DMA_UNMAP, wire.DMA_MAP):
        reply = client.next_reply()
        assert (reply.command, reply.error) == (command, 0)
    assert server.mapped_pages() == 2


# ---- 9 -------------------------------------------------------------------------------------------

def test_client_that_leaves_takes_its_mappings_along(server, memory):
    client = server.connect()
    for number in range(16):
        guest.map_memory(client, memory, IOVA + number * PAGE, size=PAGE)
    assert server.mapped_pages() == 16
    client.close()
    client = server.connect()
    assert server.mapped_pages() == 0
    guest.map_memory(client, memory, IOVA)


def test_reset_keeps_the_mappings(server, client, memory, ring):
    """They are the client's (design: reset)."""
    guest.map_memory(client, memory, IOVA)
    client.reset()
    assert server.mapped_pages() == 65
    ring.enable()
    assert ring.run(guest.FILL, dst=IOVA, length=8, pattern=3) == 0


@pytest.mark.parametrize("state", [states.STOP, states.STOP_COPY, states.RESUMING, states.RUNNING_P2P,
                                   states.PRE_COPY_P2P])
def test_dma_does_not_start_in_a_quiet_state(client, memory, ring, state):
    """A doorbell under NDMA is remembered and served later; a stopped device does not even see it."""
    guest.map_memory(client, memory, IOVA)
    assert client.set_state(state) == 0
    ring.queue(guest.FILL, dst=IOVA, length=64, pattern=1)
    ring.ring_bell()
    client.ok(wire.GET_INFO, INFO)
    assert ring.result() == (0, 0, 0) and memory[:64] == bytes(64)
    if state in (states.RUNNING_P2P, states.PRE_COPY_P2P):
        assert client.set_state(states.RUNNING) == 0
        assert ring.result() == (guest.DONE, 0, 1)
        assert memory[:64] == guest.filled(1, 64)


@pytest.mark.parametrize("way", [
    [N | R, 0, N | R], [N | R, S, N | R], [N | R, 0, N, N | R], [S | N | R, S, N | R], [N | R, S | N | R],
    [S | N | R, S, 0, N | R], [N | R, S | N, 0, S, N | R]], ids=str)
def test_dma_does_not_start_between_quiet_states(client, memory, ring, way):
    """The gate stays shut throughout (X9), interrupts stay latched."""
    vectors = guest.Vectors(client)
    vectors.attach(0, 4)
    guest.map_memory(client, memory, IOVA)
    assert client.set_bits(way[0]) == 0
    ring.queue(guest.FILL, dst=IOVA, length=64, pattern=1, vector=1)
    ring.ring_bell()
    vectors.fire(2, 1)
    for bits in way[1:]:
        assert client.set_bits(bits) == 0
        assert ring.result() == (0, 0, 0) and memory[:64] == bytes(64)
        assert vectors.taken() == [0, 0, 0, 0]
    assert client.set_bits(R) == 0
    assert ring.result() == (guest.DONE, 0, 1) and memory[:64] == guest.filled(1, 64)
    assert vectors.taken() == [0, 1, 1, 0]
    vectors.close()


def test_descriptors_are_finished_before_a_state_write_is_answered(client, memory, ring):
    """A posted doorbell and a state write in one segment take effect in that order."""
    guest.map_memory(client, memory, IOVA)
    ring.queue(guest.FILL, dst=IOVA, length=1 << 17, pattern=1)
    bell = wire.region(guest.TAIL, 0, 4, struct.pack("=I", 1))
    state = wire.set_state(states.STOP)
    client.send(wire.header(1, wire.REGION_WRITE, len(bell), wire.NO_REPLY) + bell +
                wire.header(2, wire.FEATURE, len(state)) + state)
    assert client.await_reply(2).error == 0
    assert ring.result() == (guest.DONE, 0, 1)
    assert memory[(1 << 17) - 8:1 << 17] == guest.filled(1 + (1 << 14) - 1, 8)
