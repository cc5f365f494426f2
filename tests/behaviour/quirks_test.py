# SPDX-License-Identifier: BSD-3-Clause
"""What another server gets wrong and its clients have learned to work around (vfio-user 11): we
do it right, and a client that works around it all the same is served too. One test a quirk, by
its number. Then a client that behaves as QEMU's does (vfio-user 10), and disconnects (9)."""
import errno
import os
import struct

import guest
import pytest
import states
import wire
from cases import INFO, IOVA

PAGE = 4096


def test_quirk_1_large_requests_and_requests_in_pieces(client, saved_stream):
    data = os.urandom(65536)
    payload = wire.region(guest.SRAM, 0, len(data), data)
    message = wire.header(1, wire.REGION_WRITE, len(payload)) + payload
    for size in (len(message), 30000, 1000):
        for at in range(0, len(message), size):
            client.send_piece(message[at:at + size])
        assert client.await_reply(1).error == 0
        assert client.read(wire.BAR0, guest.SRAM, len(data)) == data
    assert client.set_state(states.RESUMING) == 0
    client.write_data(saved_stream, 1 << 20)
    assert client.set_state(states.STOP) == 0


def test_quirk_2_data_read_reply_is_no_longer_than_its_data(client):
    assert client.set_state(states.STOP_COPY) == 0
    client.read_all_data()
    assert len(client.ok(wire.MIG_DATA_READ, wire.mig_data(1 << 20))) == 8


@pytest.mark.parametrize("state", [states.STOP, states.STOP_COPY])
def test_quirk_3_stopped_devices_take_set_up_commands(client, memory, state):
    vectors = guest.Vectors(client)
    assert client.set_state(state) == 0
    client.ok(wire.GET_INFO, INFO)
    client.ok(wire.GET_REGION_INFO, struct.pack("=IIIIQQ", 32, 0, 0, 0, 0, 0))
    client.ok(wire.GET_IRQ_INFO, struct.pack("=IIII", 16, 0, 2, 0))
    guest.map_memory(client, memory, IOVA)
    vectors.attach(0, 4)
    client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size))
    vectors.close()
    assert client.state() == state


@pytest.mark.parametrize("state", states.EVERY)
def test_quirk_3_state_survives_neither_disconnect_nor_reset(server, client, state):
    states.enter(client, state)
    client.reset()
    assert client.state() == states.RUNNING
    states.enter(client, state)
    client.close()
    client = server.connect()
    assert client.state() == states.RUNNING
    client.ok(wire.GET_INFO, INFO)


@pytest.mark.parametrize("page_size", [PAGE, 2 * PAGE, 512 * PAGE])
def test_quirk_4_report_in_another_page_size_over_several_regions(client, memory, page_size):
    for number in range(4):
        guest.map_memory(client, memory, IOVA + number * 16 * PAGE, size=16 * PAGE, offset=number * 16 * PAGE)
    driver = guest.Driver(client, memory, IOVA)
    client.ok(wire.FEATURE, wire.log_start(PAGE))
    driver.run(guest.FILL, dst=IOVA + 33 * PAGE, length=8)
    assert client.report(IOVA, memory.size, page_size) == {0, 33 * PAGE // page_size}
    assert client.report(IOVA, memory.size, page_size) == set()


def test_quirk_5_report_over_two_regions_has_its_payload(client, memory):
    guest.map_memory(client, memory, IOVA, size=8 * PAGE)
    guest.map_memory(client, memory, IOVA + 8 * PAGE, size=8 * PAGE)
    client.ok(wire.FEATURE, wire.log_start(PAGE))
    assert len(client.ok(wire.FEATURE, wire.log_report(IOVA, 16 * PAGE, PAGE))) == 32 + 8


def test_quirk_6_overlap_is_eexist_also_when_identical(client, memory):
    guest.map_memory(client, memory, IOVA)
    for size in (memory.size, PAGE):
        client.fails(errno.EEXIST, wire.DMA_MAP, wire.dma_map(IOVA, size), [memory.fd])


def test_quirk_7_quiesce_that_fails_is_answered(servers, memory):
    """Exactly once, with the reason."""
    client = servers("dma", "--drain-timeout-ms", "20", "--latency-us", "60000000").connect()
    guest.map_memory(client, memory, IOVA)
    driver = guest.Driver(client, memory, IOVA)
    driver.queue(guest.NOP)
    driver.ring_bell()
    assert client.set_state(states.STOP) == errno.ETIMEDOUT
    client.ok(wire.GET_INFO, INFO)
    assert client.is_silent() and client.state() == states.RUNNING


def test_quirk_8_further_clients_wait_and_are_served_in_turn(server):
    waiting = [server.connect(negotiate=False) for _ in range(5)]
    for client in waiting:
        assert client.agree(wire.QEMU_CAPS)
        client.write_int(wire.BAR0, guest.SCRATCH, 8, 1)
        client.reset()
        client.close()


def test_quirk_8_messages_are_served_while_a_dma_waits(client, memory):
    guest.map_memory(client, memory, 0)
    client.ok(wire.DMA_MAP, wire.dma_map(IOVA, PAGE))
    held = []
    client.on_command = held.append
    driver = guest.Driver(client, memory, 0)
    driver.queue(guest.CRC, src=IOVA, length=8)
    driver.ring_bell()
    for _ in range(10):
        client.ok(wire.GET_INFO, INFO)
    assert [message.command for message in held] == [wire.DMA_READ]
    client.send(wire.header(held[0].id, wire.DMA_READ, 24, wire.REPLY) + held[0].payload + b"lateness")
    client.ok(wire.GET_INFO, INFO)
    assert driver.result()[0] == guest.DONE


def test_quirk_9_access_of_nothing_has_its_16_bytes(client):
    for command in (wire.REGION_READ, wire.REGION_WRITE):
        assert client.ok(command, wire.region(8, 0, 0)) == wire.region(8, 0, 0)


def test_quirk_10_errors_say_what_is_wrong(client, memory):
    guest.map_memory(client, memory, IOVA)
    for wanted, command, payload in (
            (errno.EINVAL, wire.REGION_READ, wire.region(guest.BAR_SIZE, 0, 1)),
            (errno.E2BIG, wire.REGION_READ, wire.region(0, 0, (1 << 20) + 1)),
            (errno.EEXIST, wire.DMA_MAP, wire.dma_map(IOVA, PAGE)),
            (errno.ENOENT, wire.DMA_UNMAP, wire.dma_unmap(IOVA, PAGE)),
            (errno.ENOTTY, wire.FEATURE, wire.feature(wire.F_GET | 3, argsz=64)),
            (errno.EOPNOTSUPP, 99, b"")):
        client.fails(wanted, command, payload)


def test_quirk_11_memory_of_a_device_without_dma_is_kept_all_the_same(servers, memory):
    server = servers("null")
    client = server.connect()
    guest.map_memory(client, memory, IOVA)
    assert server.mapped_pages() == 64
    client.fails(errno.EEXIST, wire.DMA_MAP, wire.dma_map(IOVA, PAGE))
    client.fails(errno.ENOENT, wire.DMA_UNMAP, wire.dma_unmap(IOVA, PAGE))
    client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA, memory.size))


def test_quirk_12_more_data_than_agreed(server, client):
    """As long as it can be framed it is refused and skipped; beyond that the connection ends."""
    size = (1 << 20) + 1
    client.fails(errno.E2BIG, wire.REGION_WRITE, wire.region(0, 0, size, bytes(size)))
    client.ok(wire.GET_INFO, INFO)
    size = (1 << 20) + 65536
    client.send(wire.header(1, wire.REGION_WRITE, 16 + size) + wire.region(0, 0, size, b"start of it"))
    client.assert_closed()
    server.connect().ok(wire.GET_INFO, INFO)


# ---- 10 ------------------------------------------------------------------------------------------

def test_client_that_behaves_as_qemu(client, memory):
    """Set-up, boot, reset and reboot of a guest, with posted writes."""
    regions, irqs = struct.unpack_from("=II", client.ok(wire.GET_INFO, INFO), 8)
    assert 9 <= regions <= 100 and 3 <= irqs <= 50
    for index in range(regions):
        request = struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0)
        argsz = struct.unpack_from("=I", client.ok(wire.GET_REGION_INFO, request))[0]
        if argsz > 32:
            reply = client.call(wire.GET_REGION_INFO, struct.pack("=I", argsz) + request[4:])
            assert reply.error == 0 and len(reply.payload) <= argsz and len(reply.fds) <= 1
            for fd in reply.fds:
                os.close(fd)
    for index in range(irqs):
        client.ok(wire.GET_IRQ_INFO, struct.pack("=IIII", 16, 0, index, 0))
    assert len(client.read(wire.CONFIG, 0, 256)) == 256
    vectors = guest.Vectors(client)
    for boot in range(2):
        client.command(wire.DMA_UNMAP, wire.dma_unmap(0, 0, wire.UNMAP_ALL))
        client.command(wire.DMA_MAP, wire.dma_map(IOVA, memory.size), fds=[memory.fd])
        assert [client.next_reply().error for _ in range(2)] == [0, 0]
        client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0))
        client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0, index=0))
        vectors.attach(0, 1)
        vectors.attach(1, 3)
        for offset, data in ((guest.RING, struct.pack("=Q", IOVA)), (guest.ENTRIES, struct.pack("=I", 16)),
                             (guest.CTRL, struct.pack("=I", 1))):
            client.command(wire.REGION_WRITE, wire.region(offset, 0, len(data), data), wire.NO_REPLY)
        memory[:64] = guest.DESC.pack(guest.FILL, guest.IRQ, 0, IOVA + PAGE, 64, 1, boot, 0, 0, 0, 0)
        client.command(wire.REGION_WRITE, wire.region(guest.TAIL, 0, 4, b"\1\0\0\0"), wire.NO_REPLY)
        assert client.read_int(wire.BAR0, guest.HEAD, 4) == 1
        assert memory[PAGE:PAGE + 64] == guest.filled(boot, 64)
        assert vectors.taken() == [0, 1, 0, 0]
        client.reset()
    vectors.close()


# ---- 9 -------------------------------------------------------------------------------------------

def test_client_that_leaves_takes_its_eventfds_along(server):
    """The server has none of them any more: the last reader sees nothing else open."""
    client = server.connect()
    vectors = guest.Vectors(client)
    plain = server.open_fds()
    vectors.attach(0, 4)
    assert server.open_fds() == plain + 4
    client.close()
    server.assert_fresh()
    vectors.close()


@pytest.mark.parametrize("state", states.EVERY)
def test_client_that_leaves_in_any_state_leaves_a_fresh_device(server, client, memory, state):
    client.write_int(wire.CONFIG, 4, 2, 7)
    client.write(wire.BAR0, guest.MSIX_TABLE, b"\x11" * 64)
    client.write(wire.BAR0, guest.SRAM, b"secret")
    guest.map_memory(client, memory, IOVA)
    client.ok(wire.FEATURE, wire.log_start(PAGE))
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.MASK, 0, 4))
    states.enter(client, state)
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 4))
    client.close()
    client = server.connect()
    assert client.read_int(wire.CONFIG, 4, 2) == 0
    assert client.read(wire.BAR0, guest.SRAM, 6) == bytes(6)
    assert client.read(wire.BAR0, guest.MSIX_TABLE, 12) == bytes(12)
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0
    vectors = guest.Vectors(client)
    vectors.attach(0, 4)
    vectors.fire()
    assert vectors.taken() == [1, 1, 1, 1]
    vectors.close()
