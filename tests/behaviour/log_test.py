# SPDX-License-Identifier: BSD-3-Clause
"""The DMA log, in both dialects: never a page lost, none that was not written (page size apart).

    vfio-user 7.4   DMA_LOGGING_START, STOP, REPORT (feature dialect)
    vfio-user 8.4   DIRTY_PAGES (region dialect)
    vfio-user 4.2   DMA_UNMAP with bitmap
    design 4        clean on start, read-and-clear, frozen after stop until the next start or reset
"""
import errno
import itertools
import struct

import guest
import hypothesis
import pytest
import states
import wire
from cases import IOVA
from hypothesis import strategies as st

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
RING = 0x7000000000
SIZE = 64 * PAGE
BITMAP = wire.bitmap_bytes(SIZE, PAGE)
SIZES = [PAGE, 2 * PAGE, 64 * 1024, 2 * MIB, GIB]


class Feature:
    name = "feature"

    @staticmethod
    def start(client):
        assert client.ok(wire.FEATURE, wire.log_start(PAGE)) == wire.log_start(PAGE)

    @staticmethod
    def stop(client):
        payload = wire.feature(wire.F_SET | wire.F_LOG_STOP)
        assert client.ok(wire.FEATURE, payload) == payload

    @staticmethod
    def request(iova, length, page_size=PAGE):
        return wire.FEATURE, wire.log_report(iova, length, page_size)

    report = staticmethod(wire.Client.report)


class Region:
    name = "region"

    @staticmethod
    def start(client):
        assert client.ok(wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START)) == b""

    @staticmethod
    def stop(client):
        assert client.ok(wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_STOP)) == b""

    @staticmethod
    def request(iova, length, page_size=PAGE):
        size = wire.bitmap_bytes(length, page_size)
        return wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_GET, iova, length, page_size, size, 40 + size)

    @classmethod
    def report(cls, client, iova, length, page_size=PAGE):
        size = wire.bitmap_bytes(length, page_size)
        payload = client.ok(*cls.request(iova, length, page_size))
        assert payload[:40] == wire.dirty_pages(wire.DIRTY_GET, iova, length, page_size, size, 40 + size)
        assert len(payload) == 40 + size
        return wire.bits_of(payload[40:])


BOTH = pytest.mark.parametrize("dialect", [Feature, Region], ids=lambda one: one.name)


class Logged:
    """64 pages at IOVA, a driver with a ring of its own, and what was written."""

    def __init__(self, client, memory, ring, flags=3):
        self.client, self.memory = client, memory
        guest.map_memory(client, ring, RING)
        guest.map_memory(client, memory, IOVA)
        self.driver = guest.Driver(client, ring, RING)
        self.number = 0

    def write(self, offset, length=8):
        self.number += 1
        assert self.driver.run(guest.FILL, dst=IOVA + offset, length=length, pattern=self.number) == 0


@pytest.fixture
def logged(client, memory):
    with guest.Memory(PAGE) as ring:
        yield Logged(client, memory, ring)


# ---- start and stop ------------------------------------------------------------------------------

@BOTH
def test_log_is_clean_on_start(logged, dialect):
    """What was written before does not count (C27)."""
    logged.write(0)
    dialect.start(logged.client)
    assert dialect.report(logged.client, IOVA, SIZE) == set()


@BOTH
def test_log_has_exactly_what_the_device_wrote(logged, dialect):
    dialect.start(logged.client)
    logged.write(0)
    logged.write(5 * PAGE + 4088, 16)
    logged.write(63 * PAGE, PAGE)
    assert dialect.report(logged.client, IOVA, SIZE) == {0, 5, 6, 63}
    assert dialect.report(logged.client, RING, PAGE) == {0}


@BOTH
def test_log_counts_neither_reads_nor_what_the_client_writes(logged, dialect):
    dialect.start(logged.client)
    assert logged.driver.run(guest.CRC, src=IOVA + PAGE, length=2 * PAGE) == 0
    logged.memory[0:4] = b"mine"
    assert dialect.report(logged.client, IOVA, SIZE) == set()


@BOTH
def test_log_report_clears_what_it_returned_and_nothing_else(logged, dialect):
    dialect.start(logged.client)
    for page in (1, 2, 40):
        logged.write(page * PAGE)
    assert dialect.report(logged.client, IOVA, 2 * PAGE) == {1}
    assert dialect.report(logged.client, IOVA, 2 * PAGE) == set()
    assert dialect.report(logged.client, IOVA + 2 * PAGE, 62 * PAGE) == {0, 38}
    assert dialect.report(logged.client, IOVA, SIZE) == set()
    logged.write(PAGE)
    assert dialect.report(logged.client, IOVA, SIZE) == {1}


@BOTH
@pytest.mark.parametrize("state", states.EVERY)
def test_log_works_in_every_state(logged, dialect, state):
    dialect.start(logged.client)
    logged.write(3 * PAGE)
    states.enter(logged.client, state)
    assert dialect.report(logged.client, IOVA, SIZE) == {3}
    dialect.stop(logged.client)
    dialect.start(logged.client)
    assert logged.client.state() == state


@BOTH
def test_log_is_frozen_by_stop_and_still_readable(logged, dialect):
    """Until the next start (C28)."""
    dialect.start(logged.client)
    logged.write(PAGE)
    dialect.stop(logged.client)
    logged.write(2 * PAGE)
    assert dialect.report(logged.client, IOVA, SIZE) == {1}
    dialect.start(logged.client)
    assert dialect.report(logged.client, IOVA, SIZE) == set()


@BOTH
def test_log_frozen_is_forgotten_by_reset(logged, dialect):
    dialect.start(logged.client)
    logged.write(PAGE)
    dialect.stop(logged.client)
    logged.client.reset()
    logged.client.fails(errno.EINVAL, *dialect.request(IOVA, SIZE))


@BOTH
def test_log_that_was_not_started_is_einval(logged, dialect):
    logged.client.fails(errno.EINVAL, *dialect.request(IOVA, SIZE))
    dialect.stop(logged.client)  # of nothing: no effect
    logged.client.fails(errno.EINVAL, *dialect.request(IOVA, SIZE))


def test_log_start_twice_is_einval_and_loses_nothing(logged):
    Feature.start(logged.client)
    logged.write(PAGE)
    for page_size in (PAGE, 2 * PAGE):
        logged.client.fails(errno.EINVAL, wire.FEATURE, wire.log_start(page_size))
    assert Feature.report(logged.client, IOVA, SIZE) == {1}


def test_dirty_pages_start_twice_or_stop_twice_has_no_effect(logged):
    """As the type1 container."""
    Region.start(logged.client)
    logged.write(PAGE)
    Region.start(logged.client)
    assert Region.report(logged.client, IOVA, SIZE) == {1}
    logged.write(2 * PAGE)
    Region.stop(logged.client)
    Region.stop(logged.client)
    assert Region.report(logged.client, IOVA, SIZE) == {2}


def test_log_is_one_for_both_dialects(logged):
    Feature.start(logged.client)
    logged.write(PAGE)
    assert Region.report(logged.client, IOVA, SIZE) == {1}
    logged.write(2 * PAGE)
    Region.stop(logged.client)
    assert Feature.report(logged.client, IOVA, SIZE) == {2}


@pytest.mark.parametrize("page_size", [0, 1, 512, 2048])
def test_log_start_picks_a_page_size_it_has_and_returns_it(logged, page_size):
    assert logged.client.ok(wire.FEATURE, wire.log_start(page_size)) == wire.log_start(PAGE)
    logged.write(PAGE)
    assert Feature.report(logged.client, IOVA, SIZE) == {1}


@pytest.mark.parametrize("page_size", [4097, 12288, 65537, 2 * GIB, 1 << 63, (1 << 64) - 1])
def test_log_start_with_a_page_size_it_cannot_have_is_einval(logged, page_size):
    logged.client.fails(errno.EINVAL, wire.FEATURE, wire.log_start(page_size))
    logged.client.fails(errno.EINVAL, *Feature.request(IOVA, SIZE))


# ---- ranges --------------------------------------------------------------------------------------

def test_log_of_ranges_covers_exactly_them(logged):
    ranges = [(IOVA + 8 * PAGE, 4 * PAGE), (IOVA + 20 * PAGE, PAGE)]
    payload = wire.log_start(PAGE, ranges)
    assert logged.client.ok(wire.FEATURE, payload) == payload
    for page in (7, 8, 11, 12, 20, 21):
        logged.write(page * PAGE)
    assert Feature.report(logged.client, IOVA, SIZE) == {8, 11, 20}
    logged.client.fails(errno.ENOENT, *Feature.request(IOVA, 8 * PAGE))
    logged.client.fails(errno.ENOENT, *Feature.request(IOVA + 12 * PAGE, 8 * PAGE))


def test_log_of_ranges_that_are_not_mapped_yet(client, memory):
    client.ok(wire.FEATURE, wire.log_start(PAGE, [(IOVA, SIZE)]))
    with guest.Memory(PAGE) as ring:
        logged = Logged(client, memory, ring)
        logged.write(9 * PAGE)
        assert Feature.report(client, IOVA, SIZE) == {9}


@pytest.mark.parametrize("ranges, wanted", [
    ([(0, 0)], errno.EOVERFLOW), ([((1 << 64) - PAGE, 2 * PAGE)], errno.EOVERFLOW),
    ([(IOVA, PAGE), (PAGE, 0)], errno.EOVERFLOW), ([(IOVA, 2 * PAGE), (IOVA + PAGE, PAGE)], errno.EINVAL),
    ([(IOVA, PAGE), (IOVA, PAGE)], errno.EINVAL)])
def test_log_ranges_that_wrap_or_overlap_are_refused(logged, ranges, wanted):
    logged.client.fails(wanted, wire.FEATURE, wire.log_start(PAGE, ranges))
    logged.client.fails(errno.EINVAL, *Feature.request(IOVA, SIZE))


@pytest.mark.parametrize("claimed, there", [(1, 0), (0, 1), (2, 1), (0xFFFFFFFF, 1), (0x10000001, 1)])
def test_log_ranges_must_fit_their_count(logged, claimed, there):
    payload = wire.feature(wire.F_SET | wire.F_LOG_START,
                           struct.pack("=QII", PAGE, claimed, 0) + struct.pack("=QQ", IOVA, PAGE) * there)
    logged.client.fails(errno.EINVAL, wire.FEATURE, payload)


def test_log_memory_is_bounded(client):
    """A range of the whole address space would need more bits than anybody has."""
    client.fails(errno.E2BIG, wire.FEATURE, wire.log_start(PAGE, [(0, (1 << 64) - 1)]))
    client.fails(errno.EINVAL, *Feature.request(IOVA, SIZE))


# ---- mappings that come and go -------------------------------------------------------------------

@BOTH
def test_log_of_everything_follows_new_mappings(logged, memory, dialect):
    dialect.start(logged.client)
    guest.map_memory(logged.client, memory, 2 * IOVA)
    logged.write(IOVA + 3 * PAGE)
    assert dialect.report(logged.client, 2 * IOVA, SIZE) == {3}
    assert dialect.report(logged.client, IOVA, SIZE) == set()


@BOTH
def test_log_of_a_mapping_goes_with_it(logged, memory, dialect):
    dialect.start(logged.client)
    logged.write(PAGE)
    logged.client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA, SIZE))
    logged.client.fails(errno.ENOENT, *dialect.request(IOVA, SIZE))
    guest.map_memory(logged.client, memory, IOVA)
    assert dialect.report(logged.client, IOVA, SIZE) == set()
    logged.write(2 * PAGE)
    assert dialect.report(logged.client, IOVA, SIZE) == {2}


@BOTH
def test_log_of_all_mappings_goes_with_unmap_all(logged, memory, dialect):
    """And the same memory can be mapped and logged again, in other pieces."""
    dialect.start(logged.client)
    logged.write(PAGE)
    logged.client.ok(wire.DMA_UNMAP, wire.dma_unmap(0, 0, wire.UNMAP_ALL))
    guest.map_memory(logged.client, memory, IOVA, size=PAGE)
    guest.map_memory(logged.client, memory, IOVA + PAGE, offset=PAGE)
    assert dialect.report(logged.client, IOVA, SIZE) == set()
    guest.map_memory(logged.client, logged.driver.ring, RING)
    logged.write(PAGE)
    assert dialect.report(logged.client, IOVA, SIZE) == {1}


def test_log_with_pages_larger_than_mappings(client, memory):
    """Several mappings may lie in one page of the log, before and after its start."""
    guest.map_memory(client, memory, IOVA, size=PAGE)
    guest.map_memory(client, memory, IOVA + PAGE, size=PAGE, offset=PAGE)
    client.ok(wire.FEATURE, wire.log_start(2 * MIB))
    guest.map_memory(client, memory, IOVA + 2 * PAGE, size=PAGE, offset=2 * PAGE)
    with guest.Memory(PAGE) as ring:
        guest.map_memory(client, ring, RING)
        driver = guest.Driver(client, ring, RING)
        for page in range(3):
            assert driver.run(guest.FILL, dst=IOVA + page * PAGE, length=8) == 0
            assert 0 in client.report(IOVA, 3 * PAGE, 2 * MIB)
            assert client.report(IOVA, 3 * PAGE, 2 * MIB) == set()
        client.ok(wire.DMA_UNMAP, wire.dma_unmap(IOVA + PAGE, PAGE))
        assert driver.run(guest.FILL, dst=IOVA, length=8) == 0
        assert 0 in client.report(IOVA, PAGE, PAGE)


# ---- reports -------------------------------------------------------------------------------------

@BOTH
def test_log_report_inside_a_mapping(logged, dialect):
    dialect.start(logged.client)
    for page in (9, 10, 20, 21):
        logged.write(page * PAGE)
    assert dialect.report(logged.client, IOVA + 10 * PAGE, 11 * PAGE) == {0, 10}
    assert dialect.report(logged.client, IOVA, SIZE) == {9, 21}


@BOTH
def test_log_report_across_mappings_and_holes(logged, memory, dialect):
    """One answer for all of it, of its full length (quirk 5)."""
    client = logged.client
    guest.map_memory(client, memory, IOVA + SIZE, size=4 * PAGE)
    guest.map_memory(client, memory, IOVA + SIZE + 8 * PAGE, size=4 * PAGE)
    dialect.start(client)
    logged.write(63 * PAGE)
    logged.write(SIZE)
    logged.write(SIZE + 11 * PAGE)
    assert dialect.report(client, IOVA, SIZE + 16 * PAGE) == {63, 64, 75}
    assert dialect.report(client, IOVA, SIZE + 16 * PAGE) == set()


@BOTH
def test_log_report_of_memory_that_nobody_logs_is_enoent(logged, dialect):
    dialect.start(logged.client)
    for iova in (0, IOVA - PAGE, IOVA + SIZE):
        logged.client.fails(errno.ENOENT, *dialect.request(iova, PAGE))


@BOTH
def test_log_report_of_a_mapping_without_descriptor_is_clean(client, dialect):
    client.ok(wire.DMA_MAP, wire.dma_map(IOVA, SIZE))
    dialect.start(client)
    assert dialect.report(client, IOVA, SIZE) == set()


@BOTH
@pytest.mark.parametrize("page_size", [0, 1, 2048, 4097, 12288, (1 << 64) - 1])
def test_log_report_page_size_must_be_one(logged, dialect, page_size):
    dialect.start(logged.client)
    logged.write(PAGE)
    command, payload = dialect.request(IOVA, SIZE)
    where = 24
    assert payload[where:where + 8] == struct.pack("=Q", PAGE)
    logged.client.fails(errno.EINVAL, command, payload[:where] + struct.pack("=Q", page_size) +
                        payload[where + 8:])
    assert dialect.report(logged.client, IOVA, SIZE) == {1}


@BOTH
@pytest.mark.parametrize("iova, length", [(IOVA, 0), ((1 << 64) - PAGE, 2 * PAGE)])
def test_log_report_that_wraps_or_is_empty_is_einval(logged, dialect, iova, length):
    dialect.start(logged.client)
    logged.client.fails(errno.EINVAL, *dialect.request(iova, length))


@pytest.mark.parametrize("argsz", [8, 31, 32, 32 + BITMAP - 1])
def test_log_report_needs_room_for_its_answer(logged, argsz):
    """Refused before anything is cleared."""
    Feature.start(logged.client)
    logged.write(PAGE)
    logged.client.fails(errno.EINVAL, wire.FEATURE, wire.log_report(IOVA, SIZE, PAGE, argsz))
    assert Feature.report(logged.client, IOVA, SIZE) == {1}


@pytest.mark.parametrize("argsz", [40, 40 + BITMAP - 1])
def test_dirty_pages_get_that_does_not_fit_tells_argsz_and_clears_nothing(logged, argsz):
    Region.start(logged.client)
    logged.write(PAGE)
    payload = logged.client.ok(wire.DIRTY_PAGES, wire.dirty_pages(
        wire.DIRTY_GET, IOVA, SIZE, PAGE, BITMAP, argsz))
    assert len(payload) == 40 and struct.unpack_from("=I", payload)[0] == 40 + BITMAP
    assert Region.report(logged.client, IOVA, SIZE) == {1}


@pytest.mark.parametrize("argsz", [8, 39])
def test_dirty_pages_get_with_argsz_below_its_fixed_part_is_einval(logged, argsz):
    """Never a reply that is longer than the client can take."""
    Region.start(logged.client)
    logged.client.fails(errno.EINVAL, wire.DIRTY_PAGES, wire.dirty_pages(
        wire.DIRTY_GET, IOVA, SIZE, PAGE, BITMAP, argsz))


@pytest.mark.parametrize("size", [0, BITMAP - 1, BITMAP - 8])
def test_dirty_pages_get_with_too_small_a_bitmap_is_einval(logged, size):
    Region.start(logged.client)
    logged.write(PAGE)
    logged.client.fails(errno.EINVAL, wire.DIRTY_PAGES, wire.dirty_pages(
        wire.DIRTY_GET, IOVA, SIZE, PAGE, size, 40 + BITMAP))
    assert Region.report(logged.client, IOVA, SIZE) == {1}


@pytest.mark.parametrize("flags", [0, 3, 5, 6, 7, 8, 1 << 31])
def test_dirty_pages_needs_exactly_one_flag(logged, flags):
    logged.client.fails(errno.EINVAL, wire.DIRTY_PAGES, wire.dirty_pages(flags))
    logged.client.fails(errno.EINVAL, wire.DIRTY_PAGES, wire.dirty_pages(
        flags, IOVA, SIZE, PAGE, BITMAP, 40 + BITMAP))


@pytest.mark.parametrize("flags", [wire.DIRTY_START, wire.DIRTY_STOP])
def test_dirty_pages_size_must_fit_its_flag(logged, flags):
    logged.client.fails(errno.EINVAL, wire.DIRTY_PAGES, wire.dirty_pages(flags, IOVA, SIZE))
    logged.client.fails(errno.EINVAL, wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_GET))


@BOTH
def test_log_report_above_the_clients_max_data_is_e2big_and_clears_nothing(server, memory, dialect):
    client = server.connect(caps={"capabilities": {"max_data_xfer_size": 65536, "max_msg_fds": 8}})
    with guest.Memory(PAGE) as ring:
        logged = Logged(client, memory, ring)
        dialect.start(client)
        logged.write(PAGE)
        most = 65536 * 8 * PAGE
        client.fails(errno.E2BIG, *dialect.request(IOVA, most + 64 * PAGE))
        assert dialect.report(client, IOVA, most) == {1}


# ---- page sizes ----------------------------------------------------------------------------------

def pages(writes, iova, length, page_size, log_page):
    """(must, may): pages of the report that were written; those that a page of the log, being
    larger, may report beside them."""
    sets = []
    for unit in (1, log_page):
        found = set()
        for at, size in writes:
            start, end = at // unit * unit, -(-(at + size) // unit) * unit
            start, end = max(start, iova), min(end, iova + length)
            if start < end:
                found.update(range((start - iova) // page_size, (end - 1 - iova) // page_size + 1))
        sets.append(found)
    return sets


def check(got, writes, *where):
    must, may = pages(writes, *where)
    assert must <= got, f"lost: {must - got}"
    assert got <= may, f"not written: {got - may}"


BIG = 0x4000000000  # 256 GiB, a multiple of every page size


@pytest.fixture
def huge(client):
    """4 GiB of memory, of which next to nothing exists."""
    with guest.Memory(4 * GIB) as memory, guest.Memory(PAGE) as ring:
        guest.map_memory(client, ring, RING)
        guest.map_memory(client, memory, BIG)
        yield client, guest.Driver(client, ring, RING)


WRITES = [(0, 8), (PAGE - 8, 16), (255 * PAGE, 8), (256 * PAGE, 8), (MIB, 65536), (2 * MIB - 4, 8),
          (3 * MIB + 12345 * 8, 8), (GIB - 8, 16), (2 * GIB + 7 * PAGE, 8), (4 * GIB - 8, 8)]


@pytest.mark.parametrize("log_page, page_size", itertools.product(SIZES, SIZES))
def test_log_of_any_page_size_reports_in_any_page_size(huge, log_page, page_size):
    client, driver = huge
    client.ok(wire.FEATURE, wire.log_start(log_page, [(BIG, 4 * GIB)]))
    writes = [(BIG + offset, size) for offset, size in WRITES]
    for at, size in writes:
        assert driver.run(guest.FILL, dst=at, length=size) == 0
    check(client.report(BIG, 4 * GIB, page_size), writes, BIG, 4 * GIB, page_size, log_page)
    assert client.report(BIG, 4 * GIB, page_size) == set()


@pytest.mark.parametrize("log_page, page_size", itertools.product(SIZES, SIZES))
def test_log_report_of_a_part_loses_nothing_of_the_rest(huge, log_page, page_size):
    """Parts that do not begin or end where pages of the log do: what is outside stays dirty."""
    client, driver = huge
    client.ok(wire.FEATURE, wire.log_start(log_page, [(BIG, 4 * GIB)]))
    writes = [(BIG + offset, size) for offset, size in WRITES]
    for at, size in writes:
        assert driver.run(guest.FILL, dst=at, length=size) == 0
    cuts = [0, PAGE, 2 * PAGE, 255 * PAGE, 257 * PAGE, 2 * MIB - PAGE, 3 * MIB, GIB, 2 * GIB + 5 * PAGE,
            4 * GIB - PAGE, 4 * GIB]
    for start, end in zip(cuts, cuts[1:]):
        where = BIG + start, end - start, page_size
        check(client.report(*where), writes, *where, log_page)


@st.composite
def histories(draw):
    page = st.sampled_from([PAGE, 2 * PAGE, 8 * PAGE, 16 * PAGE, 64 * PAGE])
    part = st.tuples(st.integers(0, 63), st.integers(1, 64)).map(
        lambda one: (one[0], min(one[1], 64 - one[0])))
    write = st.tuples(st.just("write"), st.integers(0, SIZE // 8 - 1), st.integers(1, 3 * PAGE // 8))
    report = st.tuples(st.just("report"), part, page)
    return draw(page), draw(st.lists(st.one_of(write, report), min_size=1, max_size=30))


@hypothesis.given(histories())
def test_log_of_any_history_loses_nothing(all_servers, history):
    """Writes and reports of any part in any page size, against a model: a page stays due until
    a report has returned it."""
    log_page, steps = history
    client = all_servers("dma").connect()
    with guest.Memory(SIZE) as memory, guest.Memory(PAGE) as ring:
        logged = Logged(client, memory, ring)
        client.ok(wire.FEATURE, wire.log_start(log_page, [(IOVA, SIZE)]))
        due, ever = [], []
        for kind, where, extra in [*steps, ("report", (0, 64), PAGE)]:
            if kind == "write":
                length = min(extra * 8, SIZE - where * 8)
                logged.write(where * 8, length)
                due.append((IOVA + where * 8, length))
                ever.append(due[-1])
                continue
            iova, length = IOVA + where[0] * PAGE, where[1] * PAGE
            got = client.report(iova, length, extra)
            assert pages(due, iova, length, extra, 1)[0] <= got
            assert got <= pages(ever, iova, length, extra, log_page)[1]
            due = remaining(due, iova, iova + length)
    client.close()


def remaining(due, start, end):
    """What of the writes lies outside of [start, end)."""
    left = []
    for at, length in due:
        if at < start:
            left.append((at, min(at + length, start) - at))
        if at + length > end:
            left.append((max(at, end), at + length - max(at, end)))
    return left


# ---- 4.2: unmap with bitmap ----------------------------------------------------------------------

def unmap(iova=IOVA, size=SIZE, page_size=PAGE, room=BITMAP, argsz=None):
    return wire.dma_unmap(iova, size, wire.UNMAP_BITMAP, 40 + room if argsz is None else argsz,
                          (page_size, room))


@BOTH
@pytest.mark.parametrize("page_size", [PAGE, 2 * PAGE, 65536, 2 * MIB])
def test_unmap_bitmap_brings_the_last_bits(logged, dialect, page_size):
    """24 + 16 + bitmap; afterwards nothing writes there any more."""
    dialect.start(logged.client)
    for page in (0, 17, 63):
        logged.write(page * PAGE)
    size = wire.bitmap_bytes(SIZE, page_size)
    payload = logged.client.ok(wire.DMA_UNMAP, unmap(page_size=page_size, room=size))
    assert payload[:40] == unmap(page_size=page_size, room=size)
    assert len(payload) == 40 + size
    assert wire.bits_of(payload[40:]) == {page * PAGE // page_size for page in (0, 17, 63)}
    assert logged.driver.run(guest.FILL, dst=IOVA, length=8) == errno.EFAULT


@BOTH
def test_unmap_bitmap_with_more_room_than_needed(logged, dialect):
    """The reply has what there is."""
    dialect.start(logged.client)
    logged.write(PAGE)
    payload = logged.client.ok(wire.DMA_UNMAP, unmap(room=4096))
    assert struct.unpack_from("=I", payload)[0] == len(payload) == 40 + BITMAP
    assert struct.unpack_from("=QQ", payload, 24) == (PAGE, BITMAP)
    assert wire.bits_of(payload[40:]) == {1}


@pytest.mark.parametrize("request_, wanted", [
    (unmap(argsz=24), errno.EINVAL), (unmap(argsz=40 + BITMAP - 1), errno.EINVAL),
    (unmap(room=BITMAP - 1), errno.EINVAL), (unmap(room=0), errno.EINVAL), (unmap(page_size=0), errno.EINVAL),
    (unmap(page_size=2048), errno.EINVAL), (unmap(page_size=12288), errno.EINVAL),
    (unmap(size=PAGE), errno.ENOENT), (unmap(iova=IOVA + PAGE), errno.ENOENT),
    (unmap(room=(1 << 20) + 8), errno.E2BIG), (unmap()[:-1], errno.EINVAL), (unmap() + b"\0", errno.EINVAL)])
def test_unmap_bitmap_that_is_refused_changes_nothing(server, logged, request_, wanted):
    Region.start(logged.client)
    logged.write(PAGE)
    logged.client.fails(wanted, wire.DMA_UNMAP, request_)
    assert server.mapped_pages() == 65
    assert Region.report(logged.client, IOVA, SIZE) == {1}


def test_unmap_bitmap_without_a_log_is_einval(server, logged):
    logged.client.fails(errno.EINVAL, wire.DMA_UNMAP, unmap())
    assert server.mapped_pages() == 65


@BOTH
def test_unmap_bitmap_of_a_frozen_log(logged, dialect):
    dialect.start(logged.client)
    logged.write(PAGE)
    dialect.stop(logged.client)
    logged.write(2 * PAGE)
    assert wire.bits_of(logged.client.ok(wire.DMA_UNMAP, unmap())[40:]) == {1}
