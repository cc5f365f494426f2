# SPDX-License-Identifier: BSD-3-Clause
"""The region dialect: the migration region, its registers and its data window.

    vfio-user 8.1   registers: offsets, sizes, access
    vfio-user 8.2   save iteration
    vfio-user 8.3   resume iteration
    vfio-user 8.5   v1 and v2 side by side: one device, one stream
    design 4        all of the above where the RFC leaves a choice

DIRTY_PAGES is in log_test.py, device_state's pairs are in pairs_test.py.
"""
import errno
import struct

import guest
import pytest
import states
import wire
from description_test import region_info
from states import N, R, S, Z

DEVICE_STATE, RESERVED, PENDING, OFFSET, SIZE = 0, 4, 8, 16, 24
EACH_STATE = pytest.mark.parametrize("state", states.EVERY)


class Window:
    """The v1 client."""

    def __init__(self, client, piece=65536):
        self.client, self.piece = client, piece

    def register(self, offset):
        return self.client.read_int(wire.MIGRATION, offset, 8)

    def portion(self):
        """One portion, read in pieces; empty at an end."""
        if self.register(PENDING) == 0:
            return b""
        at, size = self.register(OFFSET), self.register(SIZE)
        data = b""
        while len(data) < size:
            piece = min(self.piece, size - len(data))
            data += self.client.read(wire.MIGRATION, at + len(data), piece)
        return data

    def portions(self):
        """Up to the end, or in pre-copy up to what there is now."""
        result = []
        while portion := self.portion():
            result.append(portion)
        return result

    def put(self, portion):
        at = self.register(OFFSET)
        for start in range(0, len(portion), self.piece):
            self.client.write(wire.MIGRATION, at + start, portion[start:start + self.piece])
        self.client.write_int(wire.MIGRATION, SIZE, 8, len(portion))


@pytest.fixture
def window(client):
    return Window(client)


def saved(client, window, mark=b"portions"):
    client.write(wire.BAR0, guest.SCRATCH, mark)
    assert client.set_bits(S) == 0
    return window.portions()


def load(client, window, portions):
    assert client.set_bits(Z) == 0
    for portion in portions:
        window.put(portion)
    return client.set_bits(R)


# ---- 8.1 -----------------------------------------------------------------------------------------

def test_register_device_state_reads_running_at_first(client):
    assert client.read(wire.MIGRATION, DEVICE_STATE, 4) == b"\1\0\0\0"


@EACH_STATE
def test_register_reserved_reads_0_and_ignores_writes(client, state):
    """X8."""
    states.enter(client, state)
    client.write(wire.MIGRATION, RESERVED, b"\xff" * 4)
    assert client.read(wire.MIGRATION, RESERVED, 4) == bytes(4)
    assert client.state() == state


@pytest.mark.parametrize("offset, size", [(PENDING, 8), (OFFSET, 8)])
@EACH_STATE
def test_register_that_is_read_only_refuses_writes(client, state, offset, size):
    states.enter(client, state)
    client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(offset, wire.MIGRATION, size, bytes(size)))
    assert client.state() == state


@pytest.mark.parametrize("offset", range(0, 33))
def test_register_access_is_of_exactly_its_size(client, offset):
    sizes = {DEVICE_STATE: 4, RESERVED: 4, PENDING: 8, OFFSET: 8, SIZE: 8}
    assert client.set_bits(S) == 0
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 16, 32):
        if size != sizes.get(offset):
            access = wire.region(offset, wire.MIGRATION, size)
            client.fails(errno.EINVAL, wire.REGION_READ, access)
            client.fails(errno.EINVAL, wire.REGION_WRITE, access + bytes(size))
    assert client.bits() == S


@pytest.mark.parametrize("offset", [33, 40, 64, 4088, 4095])
def test_register_page_has_nothing_else(client, offset):
    assert client.set_bits(S) == 0
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(offset, wire.MIGRATION, 8))
    client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(offset, wire.MIGRATION, 8, bytes(8)))


def test_register_page_is_before_the_data_section(window):
    """So that it never has to be mappable."""
    assert window.client.set_bits(S) == 0
    assert window.register(PENDING) > 0
    assert window.register(OFFSET) >= 4096


def test_region_ends_where_its_info_says(client):
    size = region_info(client, wire.MIGRATION)[4]
    assert client.set_bits(Z) == 0
    client.write(wire.MIGRATION, size - 8, bytes(8))
    client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(size - 7, wire.MIGRATION, 8, bytes(8)))
    client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(size, wire.MIGRATION, 8, bytes(8)))


def test_register_device_state_value_far_outside_is_einval(client):
    """LVU-v1 indexes a table with it first."""
    for value in (8 + 6, 15, 16, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert client.set_bits(value) == errno.EINVAL
    assert client.bits() == R


# ---- 8.2 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [0, R, Z, N, N | R])
def test_save_registers_outside_of_saving(window, bits):
    """No data pending, and no portion to be had."""
    client = window.client
    assert client.set_bits(bits) == 0
    assert window.register(PENDING) == 0
    if bits & ~N != Z:
        client.fails(errno.EINVAL, wire.REGION_READ, wire.region(OFFSET, wire.MIGRATION, 8))
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(SIZE, wire.MIGRATION, 8))
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(4096, wire.MIGRATION, 8))


def test_save_needs_no_more_than_pending_offset_size_and_data(client, window):
    portions = saved(client, window)
    assert portions and all(portions)
    assert load(client, window, portions) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


def test_save_pending_may_be_read_again_and_again(window):
    assert window.client.set_bits(S) == 0
    first = window.register(PENDING)
    assert first > 0
    for _ in range(5):
        assert window.register(PENDING) == first
    portions = window.portions()
    assert load(window.client, window, portions) == 0


def test_save_pending_of_0_in_stop_and_copy_is_the_end_and_stays(client, window):
    saved(client, window)
    for _ in range(3):
        assert window.register(PENDING) == 0


def test_save_offset_and_size_are_stable_within_an_iteration(window):
    assert window.client.set_bits(S) == 0
    window.register(PENDING)
    seen = {(window.register(OFFSET), window.register(SIZE)) for _ in range(5)}
    assert len(seen) == 1


def test_save_size_before_offset_is_einval(window):
    """data_offset is what makes the portion available."""
    assert window.client.set_bits(S) == 0
    assert window.register(PENDING) > 0
    window.client.fails(errno.EINVAL, wire.REGION_READ, wire.region(SIZE, wire.MIGRATION, 8))
    window.client.fails(errno.EINVAL, wire.REGION_READ, wire.region(4096, wire.MIGRATION, 8))
    portions = window.portions()
    assert load(window.client, window, portions) == 0


def test_save_portion_may_be_read_in_any_order_and_twice(client, window):
    """Until pending_bytes says that it was consumed."""
    client.write(wire.BAR0, guest.SCRATCH, b"portions")
    assert client.set_bits(S) == 0
    assert window.register(PENDING) > 0
    at, size = window.register(OFFSET), window.register(SIZE)
    half = size // 2
    tail = client.read(wire.MIGRATION, at + half, size - half)
    head = client.read(wire.MIGRATION, at, half)
    assert client.read(wire.MIGRATION, at + half, size - half) == tail
    portions = [head + tail] + window.portions()
    assert load(client, window, portions) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 7, 8])
def test_save_portion_may_be_read_in_pieces_of_any_size(window, piece):
    assert window.client.set_bits(S) == 0
    assert window.register(PENDING) > 0
    at = window.register(OFFSET)
    whole = window.client.read(wire.MIGRATION, at, 128)
    assert b"".join(window.client.read(wire.MIGRATION, at + i, min(piece, 128 - i))
                    for i in range(0, 128, piece)) == whole


def test_save_portion_has_an_end(window):
    assert window.client.set_bits(S) == 0
    assert window.register(PENDING) > 0
    at, size = window.register(OFFSET), window.register(SIZE)
    window.client.read(wire.MIGRATION, at + size - 1, 1)
    window.client.fails(errno.EINVAL, wire.REGION_READ, wire.region(at + size - 1, wire.MIGRATION, 2))
    window.client.fails(errno.EINVAL, wire.REGION_READ, wire.region(at + size, wire.MIGRATION, 1))


def test_save_window_is_not_written_while_saving(window):
    assert window.client.set_bits(S) == 0
    assert window.register(PENDING) > 0
    at = window.register(OFFSET)
    window.client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(at, wire.MIGRATION, 8, bytes(8)))
    window.client.fails(errno.EINVAL, wire.REGION_WRITE, wire.region(SIZE, wire.MIGRATION, 8, bytes(8)))


def test_save_precopy_pending_of_0_is_temporary(client, window):
    """Final only without R; a portion that is open when R falls is carried forward (A14, A16)."""
    assert client.set_bits(S | R) == 0
    portions = window.portions()
    assert window.register(PENDING) == 0
    client.write(wire.BAR0, guest.SRAM, b"changed")
    assert window.register(PENDING) > 0
    at, size = window.register(OFFSET), window.register(SIZE)
    half = client.read(wire.MIGRATION, at, size // 2)
    assert client.set_bits(S | R | N) == 0 and client.set_bits(S) == 0
    assert (window.register(OFFSET), window.register(SIZE)) == (at, size)
    portions.append(half + client.read(wire.MIGRATION, at + size // 2, size - size // 2))
    portions += window.portions()
    assert load(client, window, portions) == 0
    assert client.read(wire.BAR0, guest.SRAM, 7) == b"changed"


def test_save_precopy_of_a_device_that_cannot_log_is_accepted_and_empty(servers):
    """C22: SR with 0 bytes, then all of it in S."""
    client = servers("dma", "--no-precopy").connect()
    window = Window(client)
    client.write(wire.BAR0, guest.SCRATCH, b"portions")
    assert client.set_bits(S | R) == 0 and client.bits() == S | R
    assert window.register(PENDING) == 0
    assert client.set_bits(S) == 0
    portions = window.portions()
    assert load(client, window, portions) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


@pytest.mark.parametrize("bits", [S, S | R])
def test_save_goes_on_through_set_up_commands(client, window, bits):
    """Memory, interrupts, config space and the log are the VMM's: none of them touches the stream."""
    client.write(wire.BAR0, guest.SCRATCH, b"portions")
    assert client.set_bits(bits) == 0
    assert window.register(PENDING) > 0
    at, size = window.register(OFFSET), window.register(SIZE)
    vectors = guest.Vectors(client)
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0))
    vectors.close()
    client.ok(wire.DMA_MAP, wire.dma_map(0, 4096))
    client.ok(wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START))
    client.ok(wire.DMA_UNMAP, wire.dma_unmap(0, 4096))
    client.write_int(wire.CONFIG, 4, 2, 6)
    assert (window.register(OFFSET), window.register(SIZE)) == (at, size)
    portions = [client.read(wire.MIGRATION, at, size)] + window.portions()
    if bits & R:
        assert client.set_bits(S) == 0
        portions += window.portions()
    assert load(client, window, portions) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


def test_save_that_is_given_up_leaves_the_device_running(client, window):
    client.write(wire.BAR0, guest.SCRATCH, b"running!")
    for bits in (S | R, S):
        assert client.set_bits(bits) == 0
        window.portion()
        assert client.set_bits(R) == 0
        assert window.register(PENDING) == 0
        assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"running!"


# ---- 8.3 -----------------------------------------------------------------------------------------

def test_resume_reads_the_offset_writes_there_and_commits_the_size(client, window):
    portions = saved(client, window)
    assert client.set_bits(Z) == 0
    for portion in portions:
        at = window.register(OFFSET)
        assert window.register(OFFSET) == at
        client.write(wire.MIGRATION, at, portion)
        client.write_int(wire.MIGRATION, SIZE, 8, len(portion))
    assert client.set_bits(0) == 0 and client.set_bits(R) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


@pytest.mark.parametrize("pieces", [1, 2, 17])
def test_resume_portion_may_be_written_in_pieces(client, window, pieces):
    portions = saved(client, window)
    window.piece = -(-max(map(len, portions)) // pieces)
    assert load(client, window, portions) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


def test_resume_portion_is_not_read_back(client, window):
    assert client.set_bits(Z) == 0
    client.write(wire.MIGRATION, window.register(OFFSET), b"whatever")
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(4096, wire.MIGRATION, 8))
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(SIZE, wire.MIGRATION, 8))


@pytest.mark.parametrize("size", [9, 4096, (1 << 64) - 1])
def test_resume_size_beyond_what_was_written_is_einval(client, window, size):
    """Stale bytes of the window never become data."""
    portions = saved(client, window)
    assert client.set_bits(Z) == 0
    client.write(wire.MIGRATION, window.register(OFFSET), portions[0][:8])
    client.fails(errno.EINVAL, wire.REGION_WRITE,
                 wire.region(SIZE, wire.MIGRATION, 8, struct.pack("=Q", size)))
    assert client.bits() == Z
    client.write_int(wire.MIGRATION, SIZE, 8, 8)
    window.put(portions[0][8:])
    for portion in portions[1:]:
        window.put(portion)
    assert client.set_bits(R) == 0


def test_resume_portion_is_committed_once(client, window):
    """What is in the window is data once; nothing more was written, so nothing more is there."""
    portions = saved(client, window)
    assert client.set_bits(Z) == 0
    for portion in portions:
        window.put(portion)
        for size in (1, len(portion)):
            client.fails(errno.EINVAL, wire.REGION_WRITE,
                         wire.region(SIZE, wire.MIGRATION, 8, struct.pack("=Q", size)))
        client.write_int(wire.MIGRATION, SIZE, 8, 0)
    assert client.set_bits(R) == 0


def test_resume_portions_out_of_order_are_error(client, window):
    assert client.set_bits(S) == 0
    portions = []
    while portion := window.portion():  # one window is all: cut it where frames do not end
        portions += [portion[:1000], portion[1000:]]
    assert client.set_bits(Z) == 0
    window.put(portions[0])
    for portion in portions:  # the first one again; each goes where data_offset says
        at = window.register(OFFSET)
        client.call(wire.REGION_WRITE, wire.region(at, wire.MIGRATION, len(portion), portion))
        client.call(wire.REGION_WRITE, wire.region(SIZE, wire.MIGRATION, 8, struct.pack("=Q", len(portion))))
    assert client.set_bits(R) == errno.EBADMSG
    assert client.bits() == states.ERROR_BITS


def test_resume_with_a_portion_missing_is_error(client, window):
    portions = saved(client, window)
    whole = b"".join(portions)
    assert load(client, window, [whole[:-40]]) == errno.ENODATA
    assert client.bits() == states.ERROR_BITS
    client.reset()
    assert client.bits() == R


def test_resume_entered_again_starts_over(client, window):
    portions = saved(client, window)
    assert client.set_bits(Z) == 0
    window.put(portions[0][:100])
    assert client.set_bits(0) == errno.ENODATA
    client.reset()
    assert load(client, window, portions) == 0


# ---- a client of the region dialect that was in use (vfio-migration 2.4) ---------------------------

class Qemu:
    """QEMU 5.2 to 7.2: every transfer in accesses of 8, 4, 2 or 1 bytes by alignment, a change of the
    state by mask and value, the same state again in S, an end at a portion of no bytes."""

    def __init__(self, client):
        self.client = client
        self.size = region_info(client, wire.MIGRATION)[4]

    def change(self, keep, value):
        bits = self.client.bits() & keep | value
        assert self.client.set_bits(bits) == 0 and self.client.bits() == bits

    def steps(self, offset, size):
        end = offset + size
        while offset < end:
            step = next(n for n in (8, 4, 2, 1) if offset % n == 0 and offset + n <= end)
            yield offset, step
            offset += step

    def register(self, offset):
        return self.client.read_int(wire.MIGRATION, offset, 8)

    def segment(self):
        at, size = self.register(OFFSET), self.register(SIZE)
        return b"".join(self.client.read(wire.MIGRATION, *one) for one in self.steps(at, size))

    def save(self):
        """Set-up, one pre-copy iteration, the guest stops, the rest."""
        self.change(~0, S)
        segments = [self.segment()] if self.register(PENDING) else []
        self.change(~R, 0)
        self.change(~R, S)
        while self.register(PENDING):
            segments.append(self.segment())
            if not segments[-1]:
                break
        self.change(~S, 0)
        return segments

    def load(self, segments):
        self.change(~7, Z)
        for segment in filter(None, segments):
            done = 0
            while done < len(segment):
                at = self.register(OFFSET)
                size = min(len(segment) - done, self.size - at)
                for offset, step in self.steps(at, size):
                    start = done + offset - at
                    self.client.write(wire.MIGRATION, offset, segment[start:start + step])
                self.client.write_int(wire.MIGRATION, SIZE, 8, size)
                done += size
        self.change(~7, R)


def test_client_of_the_region_dialect_that_behaves_as_qemu_did(client):
    marks = ((guest.SRAM, b"qemu"), (guest.SRAM + 65000, b"moves it"), (guest.SCRATCH, b"portions"))
    for offset, mark in marks:
        client.write(wire.BAR0, offset, mark)
    qemu = Qemu(client)
    segments = qemu.save()
    qemu.change(~Z, R)      # as after a failure
    client.reset()
    assert client.read(wire.BAR0, guest.SRAM, 4) == bytes(4)
    qemu.load(segments)
    for offset, mark in marks:
        assert client.read(wire.BAR0, offset, len(mark)) == mark


# ---- 8.5 -----------------------------------------------------------------------------------------

def test_one_stream_saved_by_v1_and_loaded_by_v2(client, window):
    portions = saved(client, window)
    assert client.set_state(states.RESUMING) == 0
    client.write_data(b"".join(portions))
    assert client.set_state(states.RUNNING) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"portions"


def test_one_stream_saved_by_v2_and_loaded_by_v1(client, window, saved_stream):
    pieces = [saved_stream[at:at + 5000] for at in range(0, len(saved_stream), 5000)]
    assert load(client, window, pieces) == 0
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == guest.STAMP


def test_one_stream_read_by_both_dialects_in_turn(client, window):
    """Each takes up where the other one stopped: no byte lost, none twice."""
    client.write(wire.BAR0, guest.SCRATCH, b"in turns")
    assert client.set_state(states.PRE_COPY) == 0
    stream = client.ok(wire.MIG_DATA_READ, wire.mig_data(777))[8:]
    stream += window.portion()
    client.write(wire.BAR0, guest.SRAM, b"!")
    stream += client.ok(wire.MIG_DATA_READ, wire.mig_data(333))[8:]
    assert client.set_bits(S) == 0
    stream += client.ok(wire.MIG_DATA_READ, wire.mig_data(1234))[8:]
    stream += b"".join(window.portions())
    stream += client.read_all_data()
    assert client.set_bits(Z) == 0
    client.write_data(stream[:500])
    window.put(stream[500:20000])
    client.write_data(stream[20000:])
    assert client.set_state(states.RUNNING) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"in turns"
    assert client.read(wire.BAR0, guest.SRAM, 1) == b"!"


def test_both_dialects_see_error(client):
    states.enter(client, states.ERROR)
    assert client.bits() == states.ERROR_BITS
    client.fails(errno.EINVAL, wire.MIG_DATA_READ, wire.mig_data(8))
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(OFFSET, wire.MIGRATION, 8))
    assert client.read_int(wire.MIGRATION, PENDING, 8) == 0
