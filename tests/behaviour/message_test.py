# SPDX-License-Identifier: BSD-3-Clause
"""DMA to memory that was mapped without a descriptor: the server asks the client.

    vfio-user 4.3    DMA_READ, DMA_WRITE: layout, replies of either length, pieces, errors
    vfio-user 2.1    twin socket, and the same without one
    vfio-user 4.2    an unmap waits for what is in flight
    design 4         a state write waits, others are served meanwhile; drain deadline; reset wins
"""
import errno
import struct

import guest
import pytest
import states
import wire
from cases import INFO, IOVA

PAGE = 4096
RING = 0x10000000
SMALL = {"capabilities": {"max_data_xfer_size": PAGE, "max_msg_fds": 8, "twin_socket": {"supported": True}}}


class Peer:
    """A client whose memory at IOVA is here and nowhere else. Without a twin socket the server's
    commands come between the replies."""

    def __init__(self, client, ring, size=1 << 20):
        self.client = client
        self.memory = bytearray(size)
        self.asked = []  # (command, address, count) of all that was served
        self.held = []
        client.on_command = self.held.append
        guest.map_memory(client, ring, RING)
        assert client.ok(wire.DMA_MAP, wire.dma_map(IOVA, size)) == b""
        self.driver = guest.Driver(client, ring, RING)

    @property
    def link(self):
        return self.client.twin or self.client

    def next_command(self):
        """The server's next command; it must be whole and well-formed."""
        message = self.held.pop(0) if self.held else self.link.receive()
        assert message.flags == wire.COMMAND and message.error == 0 and not message.fds
        address, count = struct.unpack_from("=QQ", message.payload)
        assert message.command in (wire.DMA_READ, wire.DMA_WRITE)
        assert len(message.payload) == 16 + (count if message.command == wire.DMA_WRITE else 0)
        assert 0 < count <= 1 << 20
        self.asked.append((message.command, address, count))
        return message

    def answer(self, message, payload=None, error=0, send=None):
        """As the specification has it, unless told otherwise."""
        address, count = struct.unpack_from("=QQ", message.payload)
        at = address - IOVA
        if payload is None and not error:
            payload = message.payload[:16]
            if message.command == wire.DMA_READ:
                payload += self.memory[at:at + count]
            else:
                self.memory[at:at + count] = message.payload[16:]
        flags = wire.REPLY | (wire.ERROR if error else 0)
        payload = payload or b""
        (send or self.link.send)(wire.header(message.id, message.command, len(payload), flags, error) +
                                 payload)

    def queue(self, *args, **kwargs):
        """Rings the bell without waiting for anything but its answer."""
        self.driver.queue(*args, **kwargs)
        self.driver.ring_bell()

    def serve(self, count):
        """Answers so many commands."""
        for _ in range(count):
            self.answer(self.next_command())

    def settle(self, what=""):
        """Status of the descriptor, which ends with the last answer."""
        self.client.ok(wire.GET_INFO, INFO)
        while self.client.read_int(wire.BAR0, guest.HEAD, 4) != self.driver.tail:
            pass
        status = self.driver.result()[0]
        assert status & guest.DONE
        return status & ~guest.DONE


@pytest.fixture(params=["twin", "one"])
def peer(request, server):
    """With a twin socket and without one."""
    caps = wire.TWIN_CAPS if request.param == "twin" else wire.QEMU_CAPS
    with guest.Memory(PAGE) as ring:
        yield Peer(server.connect(caps=caps), ring)


# ---- 4.3 -----------------------------------------------------------------------------------------

def test_dma_read_asks_for_exactly_the_bytes(peer):
    peer.memory[100:164] = guest.filled(5, 64)
    peer.queue(guest.SRAM_LOAD, src=IOVA + 100, dst=8, length=64)
    peer.serve(1)
    assert peer.settle() == 0
    assert peer.asked == [(wire.DMA_READ, IOVA + 100, 64)]
    assert peer.client.read(wire.BAR0, guest.SRAM + 8, 64) == guest.filled(5, 64)


def test_dma_write_brings_the_bytes(peer):
    peer.queue(guest.FILL, dst=IOVA + 8, length=64, pattern=77)
    peer.serve(1)
    assert peer.settle() == 0
    assert peer.asked == [(wire.DMA_WRITE, IOVA + 8, 64)]
    assert peer.memory[8:72] == guest.filled(77, 64)


def test_dma_commands_use_only_the_twin_socket(server):
    client = server.connect(caps=wire.TWIN_CAPS)
    with guest.Memory(PAGE) as ring:
        peer = Peer(client, ring)
        peer.queue(guest.COPY, src=IOVA, dst=IOVA + PAGE, length=64)
        peer.answer(peer.next_command())
        peer.answer(peer.next_command())
        assert peer.settle() == 0
    assert client.is_silent() and not peer.held


def test_dma_commands_come_between_replies_without_a_twin_socket(server):
    client = server.connect()
    with guest.Memory(PAGE) as ring:
        peer = Peer(client, ring)
        peer.queue(guest.CRC, src=IOVA, length=64)
        client.ok(wire.GET_INFO, INFO)
        assert [message.command for message in peer.held] == [wire.DMA_READ]
        peer.serve(1)
        assert peer.settle() == 0


@pytest.mark.parametrize("reply", ["bare", "count32", "count64"])
def test_dma_write_reply_of_any_known_length_is_accepted(peer, reply):
    """The specification's table has a 32-bit count, others send 64, some a bare header."""
    peer.queue(guest.FILL, dst=IOVA, length=64)
    message = peer.next_command()
    peer.answer(message, {"bare": b"", "count32": message.payload[:12],
                          "count64": message.payload[:16]}[reply])
    assert peer.settle() == 0


@pytest.mark.parametrize("length", [32768, 32769, 100000, 1 << 20])
def test_dma_of_any_length_is_asked_for_once_and_in_order(peer, length):
    peer.memory[:length] = guest.filled(1, length)
    peer.queue(guest.SRAM_LOAD, src=IOVA, dst=0, length=min(length, 65536))
    at = 0
    while at < min(length, 65536):
        message = peer.next_command()
        assert peer.asked[-1][1] == IOVA + at
        at += peer.asked[-1][2]
        peer.answer(message)
    assert at == min(length, 65536) and peer.settle() == 0
    peer.queue(guest.FILL, dst=IOVA, length=length, pattern=9)
    at = 0
    while at < length:
        message = peer.next_command()
        assert peer.asked[-1][1] == IOVA + at
        at += peer.asked[-1][2]
        peer.answer(message)
    assert at == length and peer.settle() == 0
    assert peer.memory[:length] == guest.filled(9, length)


def test_dma_keeps_to_the_clients_max_data_xfer_size(server):
    with guest.Memory(PAGE) as ring:
        peer = Peer(server.connect(caps=SMALL), ring)
        peer.queue(guest.COPY, src=IOVA, dst=IOVA + 0x10000, length=10000)
        peer.serve(6)
        assert peer.settle() == 0
    assert [one[2] for one in peer.asked] == [4096, 4096, 1808] * 2


@pytest.mark.parametrize("error", [errno.ENODEV, errno.EPERM, errno.EINVAL, errno.EFAULT, errno.EIO])
@pytest.mark.parametrize("op", [guest.FILL, guest.CRC])
def test_dma_error_reply_ends_that_dma_with_its_errno(peer, op, error):
    peer.queue(op, src=IOVA, dst=IOVA, length=64)
    peer.answer(peer.next_command(), error=error)
    assert peer.settle() == error
    peer.queue(op, src=IOVA, dst=IOVA, length=64)
    peer.serve(1)
    assert peer.settle() == 0


def test_dma_error_reply_with_errno_0_is_an_error(peer):
    """The flag counts."""
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    peer.link.send(wire.header(message.id, message.command, 0, wire.REPLY | wire.ERROR))
    assert peer.settle() == errno.EIO


@pytest.mark.parametrize("change", ["address", "count", "short", "long", "empty", "command"])
def test_dma_read_reply_that_does_not_fit_the_request_is_eio(peer, change):
    """The peer's lengths are never trusted; only this DMA suffers."""
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    address, count = struct.unpack_from("=QQ", message.payload)
    payload = {
        "address": struct.pack("=QQ", address + 8, count) + bytes(64),
        "count": struct.pack("=QQ", address, count - 8) + bytes(56),
        "short": message.payload + bytes(63), "long": message.payload + bytes(65),
        "empty": b"", "command": message.payload + bytes(64)}[change]
    command = wire.DMA_WRITE if change == "command" else wire.DMA_READ
    peer.link.send(wire.header(message.id, command, len(payload), wire.REPLY) + payload)
    assert peer.settle() == errno.EIO
    peer.queue(guest.CRC, src=IOVA, length=64)
    peer.serve(1)
    assert peer.settle() == 0


def test_dma_reply_in_two_pieces_at_every_byte(peer):
    peer.memory[:8] = b"pieceful"
    size = wire.HEADER + 16 + 8
    for cut in range(1, size):
        peer.queue(guest.SRAM_LOAD, src=IOVA, dst=8 * cut, length=8)

        def send(data):
            assert len(data) == size
            peer.link.send_piece(data[:cut])
            peer.link.send(data[cut:])
        peer.answer(peer.next_command(), send=send)
        assert peer.settle() == 0
        assert peer.client.read(wire.BAR0, guest.SRAM + 8 * cut, 8) == b"pieceful"


@pytest.mark.parametrize("caps", [wire.TWIN_CAPS, wire.QEMU_CAPS], ids=["twin", "one"])
def test_client_that_dies_in_a_dma_reply_at_any_byte(server, caps):
    size = wire.HEADER + 16 + 8
    with guest.Memory(PAGE) as ring:
        for cut in range(size + 1):
            peer = Peer(server.connect(caps=caps), ring)
            peer.queue(guest.SRAM_LOAD, src=IOVA, dst=0, length=8)
            message = peer.next_command()
            peer.answer(message, send=lambda data: peer.link.send(data[:cut]) if cut else None)
            server.assert_fresh()


def test_dma_reply_twice_or_with_another_id_is_ignored(peer):
    peer.queue(guest.CRC, src=IOVA, length=8)
    message = peer.next_command()
    stray = struct.pack("=QQ", IOVA, 8) + b"straying"
    peer.link.send(wire.header(message.id ^ 0x5555, wire.DMA_READ, len(stray), wire.REPLY) + stray)
    peer.answer(message)
    peer.answer(message)
    assert peer.settle() == 0
    assert len(peer.asked) == 1


def test_dma_without_permission_is_not_asked_for(server):
    with guest.Memory(PAGE) as ring:
        peer = Peer(server.connect(caps=wire.TWIN_CAPS), ring, PAGE)
        peer.client.ok(wire.DMA_MAP, wire.dma_map(IOVA + PAGE, PAGE, wire.MAP_READ))
        peer.client.ok(wire.DMA_MAP, wire.dma_map(IOVA + 2 * PAGE, PAGE, wire.MAP_WRITE))
        assert peer.driver.run(guest.FILL, dst=IOVA + PAGE, length=64) == errno.EFAULT
        assert peer.driver.run(guest.CRC, src=IOVA + 2 * PAGE, length=64) == errno.EFAULT
        assert peer.client.twin.is_silent()


def test_dma_across_memory_with_and_without_descriptor(server, memory):
    with guest.Memory(PAGE) as ring:
        peer = Peer(server.connect(caps=wire.TWIN_CAPS), ring, PAGE)
        guest.map_memory(peer.client, memory, IOVA + PAGE)
        peer.queue(guest.FILL, dst=IOVA + PAGE - 16, length=32, pattern=1)
        peer.serve(1)
        assert peer.settle() == 0
    assert peer.asked == [(wire.DMA_WRITE, IOVA + PAGE - 16, 16)]
    assert peer.memory[-16:] + memory[:16] == guest.filled(1, 32)


def test_dma_by_message_is_the_clients_to_mark_dirty(peer):
    """The report of such a region is a success; the server may mark what it wrote, and no more."""
    peer.client.ok(wire.FEATURE, wire.log_start(PAGE))
    peer.queue(guest.FILL, dst=IOVA, length=64)
    peer.serve(1)
    assert peer.settle() == 0
    assert peer.client.report(IOVA, 1 << 20) <= {0}
    assert peer.client.report(RING, PAGE) == {0}


# ---- what goes on meanwhile ----------------------------------------------------------------------

def test_every_message_is_served_while_a_dma_is_open(peer):
    """A server never blocks region, feature or interrupt messages on an open DMA."""
    client = peer.client
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    vectors = guest.Vectors(client)
    vectors.attach(0, 4)
    client.write_int(wire.BAR0, guest.SCRATCH, 8, 4)
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == 4
    client.ok(wire.DMA_MAP, wire.dma_map(0, PAGE))
    client.ok(wire.DMA_UNMAP, wire.dma_unmap(0, PAGE))
    assert client.state() == 2
    vectors.fire(1, 1)
    assert vectors.taken() == [0, 1, 0, 0]
    vectors.close()
    peer.answer(message)
    assert peer.settle() == 0


@pytest.mark.parametrize("flags", [0, wire.UNMAP_ALL])
def test_unmap_is_answered_when_no_access_is_left_in_flight(peer, flags):
    client = peer.client
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    payload = wire.dma_unmap(0, 0, flags) if flags else wire.dma_unmap(IOVA, 1 << 20)
    unmap = client.command(wire.DMA_UNMAP, payload)
    info = client.command(wire.GET_INFO, INFO)
    assert client.await_reply(info).error == 0  # before the unmap
    peer.answer(message)
    reply = client.await_reply(unmap)
    assert (reply.error, reply.payload) == (0, payload)


def test_unmap_of_other_memory_does_not_wait(peer):
    client = peer.client
    client.ok(wire.DMA_MAP, wire.dma_map(0, PAGE))
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    client.ok(wire.DMA_UNMAP, wire.dma_unmap(0, PAGE))
    peer.answer(message)
    assert peer.settle() == 0


V2 = pytest.mark.parametrize("dialect", ["region", "feature"])


def ask(client, dialect, state):
    if dialect == "feature":
        return client.command(wire.FEATURE, wire.set_state(state))
    return client.command(wire.REGION_WRITE, wire.region(0, wire.MIGRATION, 4, struct.pack(
        "=I", states.BITS[state])))


@V2
@pytest.mark.parametrize("state", [states.STOP, states.STOP_COPY, states.RESUMING, states.RUNNING_P2P,
                                   states.PRE_COPY_P2P])
def test_state_write_is_answered_after_dma_in_flight(peer, dialect, state):
    """Meanwhile the old state is read, a second write is EBUSY, and sockets are served (X11)."""
    client = peer.client
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    write = ask(client, dialect, state)
    assert client.state() == states.RUNNING and client.bits() == states.R
    assert client.set_state(states.RUNNING) == errno.EBUSY
    assert client.set_bits(0) == errno.EBUSY
    client.ok(wire.GET_INFO, INFO)
    peer.answer(message)
    assert client.await_reply(write).error == 0
    assert client.state() == state
    # SELF_RESET of Z takes the ring along; otherwise the descriptor was finished, with its status
    if state != states.RESUMING:
        assert peer.driver.result()[0] == guest.DONE


@V2
def test_reset_wins_over_an_open_state_write(peer, dialect):
    """The write ends with ECANCELED, and is answered after the reset."""
    client = peer.client
    peer.queue(guest.CRC, src=IOVA, length=64)
    message = peer.next_command()
    write = ask(client, dialect, states.STOP)
    assert client.state() == states.RUNNING
    reset = client.command(wire.RESET)
    assert client.await_reply(reset).error == 0
    wire.assert_error(client.await_reply(write), errno.ECANCELED)
    assert client.state() == states.RUNNING and client.bits() == states.R
    peer.answer(message)  # of a DMA that nobody remembers
    assert client.read_int(wire.BAR0, guest.HEAD, 4) == 0
    assert peer.driver.result()[0] == 0


@V2
def test_client_that_dies_in_an_open_state_write_leaves_a_fresh_device(server, dialect):
    with guest.Memory(PAGE) as ring:
        for caps in (wire.TWIN_CAPS, wire.QEMU_CAPS):
            peer = Peer(server.connect(caps=caps), ring)
            peer.queue(guest.CRC, src=IOVA, length=64)
            peer.next_command()
            ask(peer.client, dialect, states.STOP_COPY)
            assert peer.client.state() == states.RUNNING
            server.assert_fresh()


@V2
@pytest.mark.parametrize("caps", [wire.TWIN_CAPS, wire.QEMU_CAPS], ids=["twin", "one"])
def test_dma_that_is_not_answered_is_aborted_and_issued_again(servers, dialect, caps):
    """At half of the drain deadline; the request is kept, the state write succeeds, and the answer
    that comes too late is nobody's."""
    client = servers("dma", "--drain-timeout-ms", "100").connect(caps=caps)
    with guest.Memory(PAGE) as ring:
        peer = Peer(client, ring)
        peer.memory[:64] = guest.filled(1, 64)
        peer.queue(guest.SRAM_LOAD, src=IOVA, dst=0, length=64)
        late = peer.next_command()
        assert client.await_reply(ask(client, dialect, states.RUNNING_P2P)).error == 0
        peer.answer(late, struct.pack("=QQ", IOVA, 64) + b"\xff" * 64)
        assert client.read(wire.BAR0, guest.SRAM, 64) == bytes(64)
        assert peer.driver.result()[0] == 0
        assert client.await_reply(ask(client, dialect, states.RUNNING)).error == 0
        peer.serve(1)
        assert peer.settle() == 0 and peer.driver.result()[2] == 1
        assert client.read(wire.BAR0, guest.SRAM, 64) == guest.filled(1, 64)
    assert peer.asked == [(wire.DMA_READ, IOVA, 64)] * 2


@V2
def test_drain_that_misses_its_deadline_leaves_the_old_state(servers, dialect, memory):
    """ETIMEDOUT, and the device runs on (A21)."""
    client = servers("dma", "--drain-timeout-ms", "20", "--latency-us", "60000000").connect()
    guest.map_memory(client, memory, IOVA)
    driver = guest.Driver(client, memory, IOVA)
    driver.queue(guest.FILL, dst=IOVA + PAGE, length=64)
    driver.ring_bell()
    wire.assert_error(client.await_reply(ask(client, dialect, states.RUNNING_P2P)), errno.ETIMEDOUT)
    assert client.state() == states.RUNNING and client.bits() == states.R
    client.write_int(wire.BAR0, guest.SCRATCH, 8, 6)
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == 6
