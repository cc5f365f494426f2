# SPDX-License-Identifier: BSD-3-Clause
"""Framing and the rules of commands and replies.

    vfio-user 1     order, pipelining, ids of the sender, one client at a time
    vfio-user 1.1   header, exactly one reply, NO_REPLY, error replies, sizes
    vfio-user 1.2   known and unknown commands
    vfio-user 1.3   argsz (the rest is in the tests of each message)
"""
import errno
import os
import struct

import guest
import pytest
import wire
from cases import CASES, INFO, IOVA

EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
GOOD = [case for case in CASES if case.wanted == 0]
NO_PAYLOAD = [command for command in wire.CLIENT_COMMANDS if command != wire.RESET]


def raw(command, size, flags=wire.COMMAND, ident=9, error=0):
    return struct.pack("=HHIII", ident, command, size, flags, error)


# ---- 1 -------------------------------------------------------------------------------------------

def test_commands_are_handled_in_the_order_sent(client):
    """A write, a read of it, another write, another read, all under way at once."""
    for value in range(1, 50):
        client.command(wire.REGION_WRITE, wire.region(guest.SCRATCH, 0, 8, struct.pack("=Q", value)))
        client.command(wire.REGION_READ, wire.region(guest.SCRATCH, 0, 8))
    for value in range(1, 50):
        assert client.next_reply().command == wire.REGION_WRITE
        assert client.next_reply().payload[16:] == struct.pack("=Q", value)


@pytest.mark.parametrize("ident", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_message_ids_are_echoed_and_may_repeat(client, ident):
    for _ in range(3):
        client.send(wire.header(ident, wire.GET_INFO, 16) + INFO)
    for _ in range(3):
        assert client.next_reply().id == ident


def test_one_socket_serves_one_client_after_the_other(server):
    """The second one's VERSION is answered when the first one has gone."""
    first = server.connect()
    second = server.connect(negotiate=False)
    payload = wire.version_payload()
    second.send(wire.header(1, wire.VERSION, len(payload)) + payload)
    first.write_int(wire.BAR0, guest.SCRATCH, 8, 1)
    assert second.is_silent()
    first.close()
    assert second.await_reply(1).error == 0
    assert second.read_int(wire.BAR0, guest.SCRATCH, 8) == 0


def test_descriptors_come_with_the_header(server, client, memory):
    """The header alone carries them, the body follows in another segment."""
    payload = wire.dma_map(IOVA, 4096)
    client.send_piece(wire.header(3, wire.DMA_MAP, len(payload)), [memory.fd])
    client.send(payload)
    assert client.await_reply(3).error == 0
    assert server.mapped_pages() == 1


# ---- 1.1 -----------------------------------------------------------------------------------------

@EACH
def test_every_command_gets_exactly_one_reply(client, memory, case):
    case.prepare(client, memory)
    client.send(case.bytes(), case.fds(memory))
    reply = client.await_reply(77)
    assert reply.command == case.command
    assert reply.flags == (wire.REPLY | wire.ERROR if case.wanted else wire.REPLY)
    assert reply.error == case.wanted
    client.ok(wire.GET_INFO, INFO)
    assert client.is_silent()


@EACH
def test_no_reply_gets_none_and_still_takes_effect(server, memory, case):
    def after(flags):
        client = server.connect()
        case.prepare(client, memory)
        client.send(case.bytes(flags=flags), case.fds(memory))
        if not flags:
            client.await_reply(77)
        seen = (client.state(), client.bits(), client.read(wire.BAR0, guest.SCRATCH, 8),
                client.read(wire.CONFIG, 0, 256), server.mapped_pages())
        assert client.is_silent()
        client.close()
        return seen
    assert after(wire.NO_REPLY) == after(wire.COMMAND)


@pytest.mark.parametrize("command", NO_PAYLOAD + [0, 11, 12, 15, 19])
def test_no_reply_gets_none_even_on_failure(client, command):
    client.send(raw(command, 16, wire.NO_REPLY))
    client.ok(wire.GET_INFO, INFO)
    assert client.is_silent()


@pytest.mark.parametrize("command", NO_PAYLOAD)
def test_error_reply_is_the_header_alone(client, command):
    """flags 0x21, error a positive errno; and nothing but reset may come without a payload."""
    client.send(raw(command, 16))
    reply = client.await_reply(9)
    assert (reply.command, reply.flags, reply.error, reply.payload) == (command, 0x21, errno.EINVAL, b"")
    client.ok(wire.GET_INFO, INFO)


@EACH
def test_payload_one_byte_short_is_einval(client, memory, case):
    """The message says so itself: the stream stays in step."""
    short = case.payload[:-1] if case.payload else b"x"
    wanted = errno.EOPNOTSUPP if case.name == "unknown" else errno.EINVAL
    if case.command == wire.FEATURE and case.payload[6] & 4:  # a PROBE without data has 8 bytes
        short = case.payload[:7]
    case.prepare(client, memory)
    client.send(wire.header(9, case.command, len(short)) + short)
    wire.assert_error(client.await_reply(9), wanted)
    client.ok(wire.GET_INFO, INFO)


@pytest.mark.parametrize("kind", range(2, 16))
def test_type_that_is_no_command_is_einval(client, kind):
    client.send(raw(wire.GET_INFO, 32, kind) + INFO)
    wire.assert_error(client.await_reply(9), errno.EINVAL)
    client.ok(wire.GET_INFO, INFO)


@pytest.mark.parametrize("flags", [wire.REPLY, wire.REPLY | wire.ERROR, wire.REPLY | wire.NO_REPLY])
@pytest.mark.parametrize("command", [wire.DMA_READ, wire.DMA_WRITE, wire.GET_INFO])
def test_reply_that_nobody_waits_for_is_ignored(client, command, flags):
    client.send(raw(command, 32, flags) + INFO)
    client.ok(wire.GET_INFO, INFO)
    assert client.is_silent()


@pytest.mark.parametrize("bit", [5, *range(6, 32)])
def test_header_flags_that_a_command_does_not_have_are_einval(client, bit):
    client.send(raw(wire.GET_INFO, 32, 1 << bit) + INFO)
    wire.assert_error(client.await_reply(9), errno.EINVAL)
    client.ok(wire.GET_INFO, INFO)


def test_error_field_of_a_command_is_reserved(client):
    client.send(raw(wire.GET_INFO, 32, error=0xDEADBEEF) + INFO)
    reply = client.await_reply(9)
    assert (reply.flags, reply.error, len(reply.payload)) == (wire.REPLY, 0, 16)


@pytest.mark.parametrize("size", [0, 1, 15])
@pytest.mark.parametrize("command", [wire.RESET, wire.GET_INFO, 77])
def test_size_below_the_header_ends_the_connection(server, client, command, size):
    client.send(raw(command, size) + INFO)
    client.assert_closed()


@pytest.mark.parametrize("size", [(1 << 20) + 4096, 1 << 31, 0xFFFFFFFF])
def test_size_above_every_limit_ends_the_connection(client, size):
    """Nothing of it is waited for."""
    client.send(raw(wire.REGION_WRITE, size))
    client.assert_closed()


def test_reset_with_a_payload_is_einval(client):
    client.write_int(wire.BAR0, guest.SCRATCH, 8, 5)
    client.fails(errno.EINVAL, wire.RESET, b"\0")
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == 5


@pytest.mark.parametrize("case", [case for case in GOOD if case.name not in
                                  ("map-with-descriptor", "map-without-descriptor", "irqs-eventfd")],
                         ids=lambda case: case.name)
def test_descriptors_on_a_message_that_takes_none_are_einval(client, memory, case):
    """Refused and closed: assert_fresh counts what the server holds."""
    case.prepare(client, memory)
    client.fails(errno.EINVAL, case.command, case.payload, [memory.fd])
    client.ok(wire.GET_INFO, INFO)


def test_two_descriptors_for_one_mapping_are_einval(server, client, memory):
    client.fails(errno.EINVAL, wire.DMA_MAP, wire.dma_map(IOVA, 4096), [memory.fd, memory.fd])
    assert server.mapped_pages() == 0


def test_more_descriptors_than_offered_end_the_connection(client):
    """max_msg_fds is 16; the kernel has closed what did not fit."""
    fds = [os.eventfd(0) for _ in range(17)]
    payload = wire.set_irqs(wire.DATA_EVENTFD | wire.TRIGGER, 0, 17)
    client.send(wire.header(1, wire.SET_IRQS, len(payload)) + payload, fds)
    for fd in fds:
        os.close(fd)
    client.assert_closed()


# ---- 1.2 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [16, 32, 4096])
@pytest.mark.parametrize("command", [0, 19, 20, 255, 0x7FFF, 0xFFFF])
def test_unknown_command_is_refused_and_skipped(client, command, size):
    client.send(raw(command, size) + bytes(size - 16))
    wire.assert_error(client.await_reply(9), errno.EOPNOTSUPP)
    client.ok(wire.GET_INFO, INFO)


@pytest.mark.parametrize("command", [wire.DMA_READ, wire.DMA_WRITE])
def test_commands_of_the_server_are_refused_from_the_client(client, command):
    client.fails(errno.EOPNOTSUPP, command, struct.pack("=QQ", IOVA, 8))
    client.ok(wire.GET_INFO, INFO)


def test_write_multi_is_refused_because_it_was_not_agreed(client):
    """QEMU offers it; the server's text does not have it, so it is not to be sent."""
    assert "write_multiple" not in client.agreed
    client.fails(errno.EOPNOTSUPP, wire.REGION_WRITE_MULTI,
                 struct.pack("=QQII8s", 1, guest.SCRATCH, 0, 8, b"multiply"))
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == bytes(8)


# ---- 1.3 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("command, fixed", [
    (wire.GET_INFO, 16), (wire.GET_REGION_INFO, 32), (wire.GET_REGION_IO_FDS, 16),
    (wire.GET_IRQ_INFO, 16), (wire.DMA_MAP, 32), (wire.DMA_UNMAP, 24), (wire.SET_IRQS, 20),
    (wire.DIRTY_PAGES, 8), (wire.FEATURE, 8), (wire.MIG_DATA_READ, 8), (wire.MIG_DATA_WRITE, 8)])
def test_argsz_below_the_fixed_part_is_einval(client, command, fixed):
    good = next(case for case in GOOD if case.command == command)
    for argsz in (0, fixed - 1):
        client.fails(errno.EINVAL, command, struct.pack("=I", argsz) + good.payload[4:])


@pytest.mark.parametrize("argsz", [32, 33, 4096, 0xFFFFFFFF])
def test_argsz_above_what_is_needed_changes_nothing(client, argsz):
    payload = client.ok(wire.GET_INFO, struct.pack("=IIII", argsz, 0, 0, 0))
    assert struct.unpack("=IIII", payload)[0] == 16
