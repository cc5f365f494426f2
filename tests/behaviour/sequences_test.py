# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of valid and invalid commands against a small model of the device: its state, its
data, mappings, log and interrupts. `make check` runs the same bounded set each time;
VFMIG_BEHAVIOUR=long looks for new ones."""
import errno
import struct

import guest
import states
import wire
from cases import CASES, IOVA
from hypothesis import given, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, \
    run_state_machine_as_test
from states import N, R, Z

PAGE = 4096
RING = 0x7000000000
DEVICE = states.Device()
WITHOUT_DESCRIPTORS = [case for case in CASES if not case.fds(type("", (), {"fd": 0}))]


class Model:
    """What a client that remembers everything it did expects."""

    def __init__(self):
        self.maps = {}  # iova: (size, file offset or None, flags)
        self.log = None  # None or {iova of a mapping: dirty pages}
        self.restart()

    def restart(self):
        """As after a reset of the device."""
        self.bits = R
        self.scratch = 0
        self.loaded = None  # in Z: bytes of the stream that were written
        self.pending = set()
        self.signalled = [0] * guest.VECTORS

    @property
    def quiet(self):
        return not self.bits & R or bool(self.bits & N)

    def enter(self, bits, whole):
        """A state write has led here; whole: the stream's size."""
        was, self.bits = self.bits, bits
        if was & Z and not bits & Z and bits != states.ERROR_BITS:
            assert self.loaded == whole
            self.scratch = guest.STAMP
        if bits & Z and not was & Z:
            self.loaded, self.scratch, self.pending = 0, 0, set()
        if not self.quiet:
            for vector in self.pending:
                self.signalled[vector] += 1
            self.pending = set()

    def raise_irq(self, vector):
        if self.quiet:
            self.pending.add(vector)
        else:
            self.signalled[vector] += 1

    def overlaps(self, iova, size):
        return any(at < iova + size and iova < at + length for at, (length, _, _) in self.maps.items())

    def store(self, iova, length):
        """The pieces that a write reaches until it faults: [(iova, file offset, length)], errno."""
        pieces = []
        while length:
            found = [(at, *rest) for at, rest in self.maps.items() if at <= iova < at + rest[0]]
            if not found or found[0][2] is None or not found[0][3] & wire.MAP_WRITE:
                return pieces, errno.EFAULT
            at, size, offset, _ = found[0]
            piece = min(length, at + size - iova)
            pieces.append((iova, offset + iova - at, piece))
            if self.log is not None and at in self.log:
                self.log[at].update(range((iova - at) // PAGE, (iova + piece - 1 - at) // PAGE + 1))
            iova, length = iova + piece, length - piece
        return pieces, 0


class Sequence(RuleBasedStateMachine):
    """One client, and the next when it has gone."""
    servers = None
    stream = b""

    @initialize(twin=st.booleans())
    def start(self, twin):
        self.server = self.servers("dma")
        self.memory, self.ring = guest.Memory(64 * PAGE), guest.Memory(PAGE)
        self.vectors = None
        self.connect(twin)

    def connect(self, twin):
        self.model = Model()
        self.client = self.server.connect(caps=wire.TWIN_CAPS if twin else wire.QEMU_CAPS)
        self.vectors = guest.Vectors(self.client)
        self.vectors.attach(0, guest.VECTORS)
        guest.map_memory(self.client, self.ring, RING)

    def leave(self):
        self.client.close()
        self.vectors.close()

    def teardown(self):
        if hasattr(self, "client"):
            self.leave()
            self.server.clients.clear()
            self.memory.__exit__()
            self.ring.__exit__()

    def wrote(self, failed, wanted):
        assert failed == wanted[0], f"errno {failed} instead of {wanted[0]}"
        self.model.enter(wanted[1], len(self.stream))

    @property
    def is_loaded(self):
        return self.model.loaded == len(self.stream)

    # state

    @rule(value=st.one_of(st.integers(0, 15), st.sampled_from([16, 255, 1 << 31])))
    def write_device_state(self, value):
        wanted = states.write_v1(DEVICE, self.model.bits, value, self.is_loaded)
        self.wrote(self.client.set_bits(value), wanted)

    @rule(value=st.integers(0, 8))
    def set_device_state(self, value):
        wanted = states.set_v2(DEVICE, self.model.bits, value, self.is_loaded)
        self.wrote(self.client.set_state(value), wanted)

    @rule()
    def reset(self):
        self.client.reset()
        kept = self.model.signalled
        self.model.restart()
        self.model.signalled = kept

    @rule(twin=st.booleans())
    def next_client(self, twin):
        self.leave()
        self.server.clients.clear()
        self.connect(twin)

    # data

    @rule(size=st.sampled_from([1, 100, 5000, 1 << 20]))
    def write_data(self, size):
        at = self.model.loaded or 0
        piece = self.stream[at:at + size]
        reply = self.client.call(wire.MIG_DATA_WRITE, wire.mig_data(len(piece), piece))
        if self.model.bits & Z and self.model.bits != states.ERROR_BITS:
            assert reply.error == 0
            self.model.loaded = at + len(piece)
        else:
            wire.assert_error(reply, errno.EINVAL)

    @rule(size=st.sampled_from([0, 64, 5000, 1 << 20, (1 << 20) + 1]))
    def read_data(self, size):
        reply = self.client.call(wire.MIG_DATA_READ, wire.mig_data(size))
        if size > 1 << 20:
            wire.assert_error(reply, errno.E2BIG)
        elif self.model.bits & states.S and self.model.bits != states.ERROR_BITS:
            assert struct.unpack_from("=I", reply.payload, 4)[0] == len(reply.payload) - 8 <= size
        else:
            wire.assert_error(reply, errno.EINVAL)

    @rule(value=st.integers(0, (1 << 64) - 1))
    def write_scratch(self, value):
        self.client.write_int(wire.BAR0, guest.SCRATCH, 8, value)
        if self.model.bits & R:
            self.model.scratch = value

    # memory

    @rule(page=st.integers(0, 15), pages=st.integers(1, 8), described=st.booleans(), flags=st.integers(0, 3))
    def map(self, page, pages, described, flags):
        iova, size = IOVA + page * PAGE, pages * PAGE
        if not described:
            flags &= ~wire.MAP_WRITE  # its writes would be messages: message_test.py has them
        reply = self.client.call(wire.DMA_MAP, wire.dma_map(iova, size, flags, page * PAGE),
                                 [self.memory.fd] if described else [])
        if self.model.overlaps(iova, size):
            wire.assert_error(reply, errno.EEXIST)
            return
        assert reply.error == 0
        self.model.maps[iova] = (size, page * PAGE if described else None, flags)
        if self.model.log is not None:
            self.model.log[iova] = set()

    @rule(page=st.integers(0, 15), pages=st.integers(1, 8))
    def unmap(self, page, pages):
        self.unmap_exactly(IOVA + page * PAGE, pages * PAGE)

    @precondition(lambda self: self.model.maps)
    @rule(data=st.data())
    def unmap_one_that_is_there(self, data):
        iova = data.draw(st.sampled_from(sorted(self.model.maps)))
        self.unmap_exactly(iova, self.model.maps[iova][0])

    def unmap_exactly(self, iova, size):
        reply = self.client.call(wire.DMA_UNMAP, wire.dma_unmap(iova, size))
        if self.model.maps.get(iova, (None,))[0] != size:
            wire.assert_error(reply, errno.ENOENT)
            return
        assert reply.payload == wire.dma_unmap(iova, size)
        del self.model.maps[iova]
        if self.model.log is not None:
            del self.model.log[iova]

    @rule()
    def unmap_all(self):
        self.client.ok(wire.DMA_UNMAP, wire.dma_unmap(0, 0, wire.UNMAP_ALL))
        self.model.maps = {}
        if self.model.log is not None:
            self.model.log = {}
        guest.map_memory(self.client, self.ring, RING)

    @precondition(lambda self: not self.model.quiet)
    @rule(page=st.integers(0, 20), shift=st.integers(0, 511), length=st.integers(1, 3 * PAGE),
          value=st.integers(0, 255))
    def fill(self, page, shift, length, value):
        iova = IOVA + page * PAGE + shift * 8
        wanted = bytearray(self.memory[:])
        pieces, failed = self.model.store(iova, length)
        data = guest.filled(value, length)
        for at, offset, size in pieces:
            wanted[offset:offset + size] = data[at - iova:at - iova + size]
        driver = guest.Driver(self.client, self.ring, RING)
        assert driver.run(guest.FILL, dst=iova, length=length, pattern=value) == failed
        assert self.memory[:] == wanted

    # log

    @rule(v1=st.booleans())
    def log_start(self, v1):
        request = (wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START)) if v1 else \
            (wire.FEATURE, wire.log_start(PAGE))
        reply = self.client.call(*request)
        if self.model.log is None or not v1:
            assert reply.error == (errno.EINVAL if self.model.log is not None else 0)
        if self.model.log is None:
            self.model.log = {iova: set() for iova in self.model.maps}

    @rule(v1=st.booleans())
    def log_stop(self, v1):
        request = (wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_STOP)) if v1 else \
            (wire.FEATURE, wire.feature(wire.F_SET | wire.F_LOG_STOP))
        self.client.ok(*request)
        self.model.log = None

    @precondition(lambda self: self.model.log is not None)
    @rule(page=st.integers(0, 20), pages=st.integers(1, 24))
    def log_report(self, page, pages):
        iova, size = IOVA + page * PAGE, pages * PAGE
        reply = self.client.call(wire.FEATURE, wire.log_report(iova, size, PAGE))
        if not self.model.overlaps(iova, size):
            wire.assert_error(reply, errno.ENOENT)
            return
        wanted = set()
        for at, dirty in self.model.log.items():
            mine = {one for one in dirty if iova <= at + one * PAGE < iova + size}
            wanted |= {(at + one * PAGE - iova) // PAGE for one in mine}
            dirty -= mine
        assert wire.bits_of(reply.payload[32:]) == wanted

    # interrupts, nonsense

    @rule(vector=st.integers(0, 5))
    def fire(self, vector):
        reply = self.client.call(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, vector, 1))
        if vector >= guest.VECTORS:
            wire.assert_error(reply, errno.EINVAL)
        else:
            assert reply.error == 0
            self.model.raise_irq(vector)

    @rule(case=st.sampled_from([case for case in CASES if case.payload and case.name not in (
        "unknown", "feature-probe")]), cut=st.integers(1, 4))
    def send_a_message_that_is_too_short(self, case, cut):
        reply = self.client.call(case.command, case.payload[:-cut])
        wire.assert_error(reply, errno.EINVAL)

    @rule(command=st.sampled_from([0, 11, 12, 15, 19, 200, 65535]), size=st.integers(0, 100))
    def send_an_unknown_command(self, command, size):
        reply = self.client.call(command, bytes(size))
        assert reply.flags & wire.ERROR
        assert reply.error == errno.EOPNOTSUPP or command == wire.REGION_WRITE_MULTI

    # what must be true at any time

    @invariant()
    def state_is_the_models(self):
        assert self.client.bits() == self.model.bits
        assert self.client.state() == states.seen_in_v2(DEVICE, self.model.bits)

    @invariant()
    def scratch_is_the_models(self):
        wanted = self.model.scratch if self.model.bits & R and self.model.bits != states.ERROR_BITS \
            else (1 << 64) - 1
        assert self.client.read_int(wire.BAR0, guest.SCRATCH, 8) == wanted

    @invariant()
    def mappings_are_the_models(self):
        pages = 1 + sum(size // PAGE for size, offset, _ in self.model.maps.values() if offset is not None)
        assert self.server.mapped_pages() == pages

    @invariant()
    def interrupts_are_the_models(self):
        assert self.vectors.taken() == self.model.signalled
        self.model.signalled = [0] * guest.VECTORS
        pba = sum(1 << vector for vector in self.model.pending)
        assert self.client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == pba


def test_sequences_of_commands_against_a_model(servers, saved_stream):
    Sequence.servers, Sequence.stream = servers, saved_stream
    run_state_machine_as_test(Sequence)


@given(st.lists(st.sampled_from(WITHOUT_DESCRIPTORS), min_size=1, max_size=12), st.data())
def test_sequences_of_messages_in_any_segments(all_servers, cases, data):
    """Whatever the cuts, the answers are those of the messages one by one."""
    def answers(pieces):
        client = all_servers("dma").connect()
        for piece in pieces:
            client.send_piece(piece)
        replies = [case.essence(client.await_reply(77)) for case in cases]
        state = client.state(), client.bits(), client.read(wire.BAR0, guest.SCRATCH, 8)
        client.close()
        return replies, state
    messages = [case.bytes() for case in cases]
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=20)))
    note(cuts)
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)])]
    assert answers(pieces) == answers(messages)


@st.composite
def noise(draw):
    """A message whose framing is right and whose bytes are not."""
    case = draw(st.sampled_from(WITHOUT_DESCRIPTORS))
    payload = bytearray(case.payload)
    for _ in range(draw(st.integers(0, 4))):
        if payload:
            at = draw(st.integers(0, len(payload) - 1))
            payload[at] = draw(st.sampled_from([0, 1, 2, 4, 0x7F, 0x80, 0xFF]))
    tail = draw(st.binary(max_size=40))
    command = draw(st.one_of(st.just(case.command), st.integers(0, 20)))
    return command, bytes(payload) + tail


@given(st.lists(noise(), min_size=1, max_size=20))
def test_sequences_of_noise_get_exactly_one_answer_each(all_servers, messages):
    """And the next client finds a fresh device."""
    server = all_servers("dma")
    client = server.connect()
    for command, payload in messages:
        reply = client.call(command, payload)
        assert (reply.error == 0) == (reply.flags == wire.REPLY)
        assert not reply.error or reply.payload == b""
    client.ok(wire.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0))
    assert client.is_silent()
    server.assert_fresh()
