# SPDX-License-Identifier: BSD-3-Clause
"""Messages do not come in one piece, or not at all: a stream socket has no message boundaries
(vfio-user 1, 9; quirk 1), and a client may die at any byte.

    sent in two pieces, at every byte      same answer, same effect
    sent byte by byte                      same
    all messages in one segment            answered in order, nothing lost
    client dies at every byte              the server lives, the next client finds a fresh device
"""
import pytest
import wire
from cases import CASES, INFO, run

EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ONE_DESCRIPTOR_EACH = [case for case in CASES if case.command in (wire.DMA_MAP, wire.SET_IRQS)]


def whole(server, memory, case):
    client = server.connect()
    seen = run(client, memory, case, client.send_piece)
    client.close()
    return seen


@EACH
def test_message_in_two_pieces_gets_the_same_answer(server, memory, case):
    wanted = whole(server, memory, case)
    for cut in range(1, len(case.bytes())):
        client = server.connect()

        def send(data, fds):
            client.send_piece(data[:cut], fds)
            client.send(data[cut:])
        assert run(client, memory, case, send) == wanted, f"cut at {cut}"
        client.close()


@EACH
def test_message_byte_by_byte_gets_the_same_answer(server, memory, case):
    wanted = whole(server, memory, case)
    client = server.connect()

    def send(data, fds):
        for at in range(len(data)):
            client.send_piece(data[at:at + 1], fds if at == 0 else ())
    assert run(client, memory, case, send) == wanted


@EACH
def test_client_that_dies_at_any_byte_leaves_a_fresh_device(server, memory, case):
    for cut in range(len(case.bytes()) + 1):
        client = server.connect()
        client.write(wire.BAR0, 0x20, b"dirtied!")
        case.prepare(client, memory)
        if cut:
            client.send(case.bytes()[:cut], case.fds(memory))
        client.close()
        server.assert_fresh()


@EACH
def test_client_that_dies_unread_leaves_a_fresh_device(server, memory, case):
    """The answer finds nobody: no SIGPIPE, no half-done command."""
    client = server.connect()
    case.prepare(client, memory)
    for _ in range(3):
        client.send(case.bytes(), case.fds(memory))
    client.close()
    server.assert_fresh()


def test_version_in_two_pieces_gets_the_same_answer(server):
    message = wire.header(1, wire.VERSION, len(wire.version_payload())) + wire.version_payload()
    client = server.connect(negotiate=False)
    client.send(message)
    wanted = client.await_reply(1)
    client.close()
    for cut in range(1, len(message)):
        client = server.connect(negotiate=False)
        client.send_piece(message[:cut])
        client.send(message[cut:])
        assert client.await_reply(1) == wanted, f"cut at {cut}"
        client.close()


def test_client_that_dies_in_version_at_any_byte_leaves_a_fresh_device(server):
    payload = wire.version_payload(caps=wire.TWIN_CAPS)
    message = wire.header(1, wire.VERSION, len(payload)) + payload
    for cut in range(len(message) + 1):
        client = server.connect(negotiate=False)
        if cut:
            client.send(message[:cut])
        client.close()
        server.assert_fresh()


@EACH
def test_several_messages_in_one_segment_are_all_answered_in_order(server, memory, case):
    client = server.connect()
    case.prepare(client, memory)
    info = wire.header(5, wire.GET_INFO, 16) + INFO
    client.send(case.bytes() + info + wire.header(6, wire.REGION_READ, 16) + wire.region(0, 0, 8) + info,
                case.fds(memory))
    first = client.await_reply(77)
    assert first.error == case.wanted
    for ident, size in ((5, 16), (6, 24), (5, 16)):
        reply = client.await_reply(ident)
        assert (reply.flags, len(reply.payload)) == (wire.REPLY, size)


def test_all_messages_in_one_segment(server):
    """Whatever each of them is answered; the last ones arrive cut in two."""
    client = server.connect()
    stream = b"".join(case.bytes(ident) for ident, case in enumerate(CASES))
    client.send(stream[:-9])
    for ident in range(len(CASES) - 1):
        assert client.await_reply(ident).command == CASES[ident].command
    client.send(stream[-9:])
    assert client.await_reply(len(CASES) - 1).error == CASES[-1].wanted


def test_pipelined_messages_keep_their_descriptors(server, memory):
    """Each message with its own descriptors, none of them awaited."""
    client = server.connect()
    for number in range(8):
        payload = wire.dma_map(number * 0x10000, 4096, offset=number * 4096)
        client.send(wire.header(number, wire.DMA_MAP, len(payload)) + payload,
                    [memory.fd] if number % 2 else [])
    for number in range(8):
        assert client.await_reply(number).error == 0
    assert server.mapped_pages() == 4


@pytest.mark.parametrize("case", ONE_DESCRIPTOR_EACH, ids=lambda case: case.name)
def test_descriptors_in_the_middle_of_a_body_end_the_connection(server, memory, case):
    """They belong to no message; nothing is leaked."""
    client = server.connect()
    case.prepare(client, memory)
    client.send_piece(case.bytes()[:20])
    client.send(case.bytes()[20:24], [memory.fd])
    client.assert_closed()
