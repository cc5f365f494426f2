# SPDX-License-Identifier: BSD-3-Clause
"""What a device says about itself, its interrupts, its config space.

    vfio-user 3.1   GET_INFO             3.2   GET_REGION_INFO, capabilities
    vfio-user 3.3   GET_REGION_IO_FDS    3.4   GET_IRQ_INFO
    vfio-user 3.5   SET_IRQS, delivery   5     config space, MSI-X table and PBA (design: they are
                                               the VMM's and work in every state)
"""
import errno
import struct

import guest
import pytest
import states
import wire

EVENT = wire.DATA_EVENTFD | wire.TRIGGER
REGIONS = {0: guest.BAR_SIZE, 7: 256}
TARGETS = pytest.mark.parametrize("state", states.EVERY)


def region_info(client, index, argsz=32):
    payload = client.ok(wire.GET_REGION_INFO, struct.pack("=IIIIQQ", argsz, 0, index, 0, 0, 0))
    return (*struct.unpack_from("=IIIIQQ", payload), payload)


def caps(payload):
    """id, version, body of each capability; offsets grow and stay inside."""
    at = struct.unpack_from("=I", payload, 12)[0]
    least, found = 32, []
    while at:
        assert least <= at <= len(payload) - 8 and at % 8 == 0
        ident, version, after = struct.unpack_from("=HHI", payload, at)
        found.append((ident, version, payload[at + 8:after or None]))
        least, at = at + 8, after
    return found


@pytest.fixture
def vectors(client):
    one = guest.Vectors(client)
    yield one
    one.close()


# ---- 3.1 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["dma", "null"])
def test_info_is_a_pci_device_that_can_be_reset(servers, kind):
    client = servers(kind).connect()
    argsz, flags, regions, irqs = struct.unpack("=IIII", client.ok(
        wire.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0)))
    assert (argsz, flags) == (16, 3)
    assert regions == 10 and irqs == 5  # nine of PCI and the migration region


@TARGETS
def test_info_is_answered_in_every_state(client, state):
    """A destination may map memory and set interrupts whenever it likes (quirk 3)."""
    states.enter(client, state)
    assert len(client.ok(wire.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0))) == 16
    assert region_info(client, 0)[4] == guest.BAR_SIZE


# ---- 3.2 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("index", range(9))
def test_region_info_of_the_fixed_regions(client, index):
    argsz, flags, got, cap_offset, size, offset, payload = region_info(client, index)
    assert (argsz, got, cap_offset, size, offset) == (32, index, 0, REGIONS.get(index, 0), 0)
    assert flags == (3 if index in REGIONS else 0)
    assert len(payload) == 32


@pytest.mark.parametrize("index", [10, 11, 255, 0xFFFFFFFF])
def test_region_info_beyond_the_last_is_einval(client, index):
    client.fails(errno.EINVAL, wire.GET_REGION_INFO, struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0))


def test_region_info_that_does_not_fit_is_cut_and_tells_argsz(client):
    """First with 32, then with the argsz of the reply; CAPS only when they are there."""
    argsz, flags, _, cap_offset, size, _, payload = region_info(client, wire.MIGRATION)
    assert argsz > 32 and not flags & 8 and cap_offset == 0 and len(payload) == 32
    assert len(region_info(client, wire.MIGRATION, argsz - 1)[-1]) == 32
    again = region_info(client, wire.MIGRATION, argsz)
    assert again[0] == argsz == len(again[-1]) and again[1] & 8 and again[4] == size


def migration_caps(client):
    info = region_info(client, wire.MIGRATION, region_info(client, wire.MIGRATION)[0])
    assert info[1] & 3 == 3
    return {ident: (version, body) for ident, version, body in caps(info[-1])}


def test_migration_region_has_its_type(client):
    found = migration_caps(client)
    version, body = found[2]
    assert version == 1 and body[:8] == struct.pack("=II", 3, 1)


def test_ndma_capability_is_there_exactly_with_the_feature(servers):
    """C71: id 6, version 1, header only."""
    with_it = servers("dma").connect()
    version, body = migration_caps(with_it)[6]
    assert (version, body) == (1, b"")
    without = servers("dma", "--no-ndma").connect()
    assert 6 not in migration_caps(without)


def test_region_info_is_of_a_region_accessible_by_message(client):
    for index, size in REGIONS.items():
        assert len(client.read(index, size - 4, 4)) == 4


# ---- 3.3 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("index", [0, 7, 9])
def test_region_io_fds_has_none(client, index):
    payload = client.ok(wire.GET_REGION_IO_FDS, struct.pack("=IIII", 4096, 0, index, 0))
    argsz, flags, got, count = struct.unpack_from("=IIII", payload)
    assert (flags, got) == (0, index) and argsz == len(payload) == 16 + 40 * count


@pytest.mark.parametrize("index", [1, 5, 6, 8, 10, 0xFFFFFFFF])
def test_region_io_fds_of_an_absent_region_is_einval(client, index):
    client.fails(errno.EINVAL, wire.GET_REGION_IO_FDS, struct.pack("=IIII", 4096, 0, index, 0))


# ---- 3.4 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("index, count", [(0, 0), (1, 0), (2, guest.VECTORS), (3, 0), (4, 0)])
def test_irq_info_counts(client, index, count):
    payload = client.ok(wire.GET_IRQ_INFO, struct.pack("=IIII", 16, 0, index, 0))
    argsz, flags, got, n = struct.unpack("=IIII", payload)
    assert (argsz, got, n) == (16, index, count)
    assert flags & 1  # EVENTFD


@pytest.mark.parametrize("index", [5, 0xFFFFFFFF])
def test_irq_info_beyond_the_last_is_einval(client, index):
    client.fails(errno.EINVAL, wire.GET_IRQ_INFO, struct.pack("=IIII", 16, 0, index, 0))


# ---- 3.5 -----------------------------------------------------------------------------------------

def test_irqs_attach_takes_one_descriptor_for_each_vector(vectors):
    vectors.attach(0, 4)
    vectors.fire(1, 2)
    assert vectors.taken() == [0, 1, 1, 0]


def test_irqs_attach_in_runs(vectors):
    """A client that has no descriptor for some of them splits."""
    vectors.attach(0, 1)
    vectors.attach(2, 2)
    vectors.fire()
    assert vectors.taken() == [1, 0, 1, 1]


@pytest.mark.parametrize("start, count", [(0, 4), (0, 1), (1, 2), (2, 2), (3, 1)])
def test_irqs_detach_takes_exactly_the_range(client, vectors, start, count):
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(EVENT, start, count))
    vectors.fire()
    assert vectors.taken() == [int(not start <= v < start + count) for v in range(4)]


def test_irqs_disable_takes_the_whole_index(client, vectors):
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0))
    vectors.fire()
    assert vectors.taken() == [0, 0, 0, 0]


@pytest.mark.parametrize("index", [0, 1, 3, 4])
def test_irqs_disable_of_an_index_without_vectors_succeeds_and_harms_no_other(client, vectors, index):
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0, index))
    vectors.fire()
    assert vectors.taken() == [1, 1, 1, 1]


@pytest.mark.parametrize("index", [0, 1, 3, 4])
def test_irqs_attach_to_another_index_does_not_replace_msix(client, vectors, index):
    vectors.attach(0, 4)
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(EVENT, 0, 1, index), vectors.fds[:1])
    vectors.fire()
    assert vectors.taken() == [1, 1, 1, 1]


def test_irqs_bool_fires_those_that_are_set(client, vectors):
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_BOOL | wire.TRIGGER, 0, 4, bools=b"\1\0\0\1"))
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_BOOL | wire.TRIGGER, 1, 1, bools=b"\1"))
    assert vectors.taken() == [1, 1, 0, 1]


@pytest.mark.parametrize("data, bools", [(wire.DATA_NONE, b""), (wire.DATA_BOOL, b"\1\1")])
def test_irqs_mask_keeps_the_cause_and_unmask_delivers_it(client, vectors, data, bools):
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(data | wire.MASK, 1, 2, bools=bools))
    vectors.fire()
    assert vectors.taken() == [1, 0, 0, 1]
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0b0110
    client.ok(wire.SET_IRQS, wire.set_irqs(data | wire.UNMASK, 1, 2, bools=bools))
    assert vectors.taken() == [0, 1, 1, 0]


def test_irqs_mask_bool_leaves_those_that_are_clear(client, vectors):
    vectors.attach(0, 4)
    client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_BOOL | wire.MASK, 0, 4, bools=b"\0\1\0\0"))
    vectors.fire()
    assert vectors.taken() == [1, 0, 1, 1]


@pytest.mark.parametrize("flags", [
    0, wire.DATA_NONE, wire.TRIGGER, wire.DATA_NONE | wire.DATA_BOOL | wire.TRIGGER,
    wire.DATA_NONE | wire.MASK | wire.TRIGGER, wire.DATA_NONE | wire.MASK | wire.UNMASK,
    wire.DATA_NONE | wire.TRIGGER | 0x40, wire.DATA_NONE | wire.TRIGGER | 1 << 31])
def test_irqs_need_exactly_one_data_and_one_action_flag(client, flags):
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(flags, 0, 1))


@pytest.mark.parametrize("start, count", [(4, 1), (0, 5), (3, 2), (0xFFFFFFFF, 1), (1, 0xFFFFFFFF),
                                          (0xFFFFFFFF, 0xFFFFFFFF)])
@pytest.mark.parametrize("action", [wire.TRIGGER, wire.MASK, wire.UNMASK])
def test_irqs_beyond_the_vectors_are_einval(client, start, count, action):
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | action, start, count))


@pytest.mark.parametrize("index", [5, 0xFFFFFFFF])
def test_irqs_of_an_index_beyond_the_last_are_einval(client, index):
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0, index))


@pytest.mark.parametrize("flags, start", [
    (wire.DATA_NONE | wire.TRIGGER, 1), (wire.DATA_NONE | wire.MASK, 0), (wire.DATA_NONE | wire.UNMASK, 0),
    (wire.DATA_BOOL | wire.TRIGGER, 0), (EVENT, 0), (EVENT, 1)])
def test_irqs_count_0_is_only_for_disable(client, flags, start):
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(flags, start, 0))


@pytest.mark.parametrize("count, fds", [(2, 1), (1, 2), (3, 4)])
def test_irqs_descriptors_must_match_the_count(client, vectors, count, fds):
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(EVENT, 0, count), vectors.fds[:fds])
    vectors.fire()
    assert vectors.taken() == [0, 0, 0, 0]


@pytest.mark.parametrize("flags, bools", [(wire.DATA_NONE, b""), (wire.DATA_BOOL, b"\1")])
def test_irqs_descriptors_need_the_eventfd_flag(client, vectors, flags, bools):
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(flags | wire.TRIGGER, 0, 1, bools=bools),
                 vectors.fds[:1])


@pytest.mark.parametrize("bools", [b"", b"\1", b"\1\1\1"])
def test_irqs_bool_length_must_match_the_count(client, bools):
    client.fails(errno.EINVAL, wire.SET_IRQS,
                 wire.set_irqs(wire.DATA_BOOL | wire.TRIGGER, 0, 2, bools=bools))


@pytest.mark.parametrize("action", [wire.MASK, wire.UNMASK])
def test_irqs_eventfd_for_mask_is_refused_not_dropped(client, vectors, action):
    """The info does not say MASKABLE, so no such eventfd is taken."""
    client.fails(errno.EINVAL, wire.SET_IRQS, wire.set_irqs(wire.DATA_EVENTFD | action, 0, 1),
                 vectors.fds[:1])


def test_irq_of_the_device_writes_1_to_its_eventfd(client, vectors, memory):
    """There is no interrupt message: only the eventfd tells."""
    guest.map_memory(client, memory, 0x100000)
    vectors.attach(0, 4)
    driver = guest.Driver(client, memory, 0x100000)
    for vector in (0, 2, 2, 3):
        assert driver.run(guest.NOP, vector=vector) == 0
    assert vectors.taken() == [1, 0, 2, 1]
    assert client.is_silent()


def test_irq_without_eventfd_waits_for_one(client, vectors):
    vectors.fire(2, 1)
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0b0100
    vectors.attach(0, 4)
    assert vectors.taken() == [0, 0, 1, 0]
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0


@pytest.mark.parametrize("state", [states.STOP, states.STOP_COPY, states.RUNNING_P2P, states.PRE_COPY_P2P])
def test_irq_raised_while_quiet_is_latched_and_delivered_when_it_runs(client, vectors, state):
    vectors.attach(0, 4)
    assert client.set_state(state) == 0
    vectors.fire(1, 1)
    assert vectors.taken() == [0, 0, 0, 0]
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0b0010
    assert client.set_state(states.RUNNING) == 0
    assert vectors.taken() == [0, 1, 0, 0]


def test_latched_irq_travels_with_the_device(client, vectors):
    """On whichever side the device next runs."""
    assert client.set_state(states.STOP_COPY) == 0
    vectors.fire(3, 1)
    stream = client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0
    vectors.attach(0, 4)
    client.write_data(stream)
    assert client.set_state(states.STOP) == 0
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0b1000
    assert vectors.taken() == [0, 0, 0, 0]
    assert client.set_state(states.RUNNING) == 0
    assert vectors.taken() == [0, 0, 0, 1]


# ---- config space, MSI-X -------------------------------------------------------------------------

def test_config_space_identifies_the_device(client):
    vendor, device = struct.unpack("=HH", client.read(wire.CONFIG, 0, 4))
    assert (vendor, device) == (0x1B36, 0x7FD0)
    assert client.read_int(wire.CONFIG, 6, 2) & 0x10  # has capabilities


def test_config_space_bar_tells_its_size(client):
    client.write_int(wire.CONFIG, 0x10, 4, 0xFFFFFFFF)
    got = client.read_int(wire.CONFIG, 0x10, 4)
    assert (~(got & ~0xF) & 0xFFFFFFFF) + 1 == guest.BAR_SIZE
    for bar in range(1, 6):
        client.write_int(wire.CONFIG, 0x10 + 4 * bar, 4, 0xFFFFFFFF)
        assert client.read_int(wire.CONFIG, 0x10 + 4 * bar, 4) == 0


def test_config_space_msix_capability_describes_table_and_pba(client):
    at = client.read_int(wire.CONFIG, 0x34, 1)
    ident, _, control, table, pba = struct.unpack("=BBHII", client.read(wire.CONFIG, at, 12))
    assert ident == 0x11 and control & 0x7FF == guest.VECTORS - 1
    assert (table, pba) == (guest.MSIX_TABLE | 0, guest.MSIX_PBA | 0)


def test_config_space_read_only_bits_stay(client):
    before = client.read(wire.CONFIG, 0, 256)
    client.write(wire.CONFIG, 0, b"\xff" * 4)
    client.write(wire.CONFIG, 8, b"\xff" * 4)
    client.write(wire.CONFIG, 0x34, b"\xff")
    assert client.read(wire.CONFIG, 0, 4) == before[:4]
    assert client.read(wire.CONFIG, 8, 4) == before[8:12]
    assert client.read(wire.CONFIG, 0x34, 1) == before[0x34:0x35]


@pytest.mark.parametrize("offset, size", [(0, 257), (256, 1), (255, 2), (1 << 63, 1)])
def test_config_space_beyond_its_end_is_einval(client, offset, size):
    client.fails(errno.EINVAL, wire.REGION_READ, wire.region(offset, wire.CONFIG, size))


@TARGETS
def test_config_and_msix_table_work_in_every_state(client, vectors, state):
    """They are the VMM's (C46-C49): neither stopping nor resuming touches them."""
    client.write_int(wire.CONFIG, 4, 2, 6)
    client.write(wire.BAR0, guest.MSIX_TABLE, b"address!" + b"data" + b"\1\0\0\0")
    vectors.attach(0, 4)
    states.enter(client, state)
    assert client.read_int(wire.CONFIG, 4, 2) == 6
    assert client.read(wire.BAR0, guest.MSIX_TABLE, 12) == b"address!data"
    client.write_int(wire.CONFIG, 4, 2, 2)
    client.write(wire.BAR0, guest.MSIX_TABLE + 16, b"another!")
    assert client.read_int(wire.CONFIG, 4, 2) == 2
    assert client.read(wire.BAR0, guest.MSIX_TABLE + 16, 8) == b"another!"


def test_msix_table_mask_bit_holds_the_vector_back(client, vectors):
    vectors.attach(0, 4)
    client.write_int(wire.BAR0, guest.MSIX_TABLE + 16 + 12, 4, 1)
    vectors.fire()
    assert vectors.taken() == [1, 0, 1, 1]
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0b0010
    client.write_int(wire.BAR0, guest.MSIX_TABLE + 16 + 12, 4, 0)
    assert vectors.taken() == [0, 1, 0, 0]


def test_msix_function_mask_holds_all_vectors_back(client, vectors):
    vectors.attach(0, 4)
    control = client.read_int(wire.CONFIG, 0x34, 1) + 2
    client.write_int(wire.CONFIG, control, 2, 0xC000)
    vectors.fire()
    assert vectors.taken() == [0, 0, 0, 0]
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 0b1111
    client.write_int(wire.CONFIG, control, 2, 0x8000)
    assert vectors.taken() == [1, 1, 1, 1]


def test_msix_pba_is_read_only(client, vectors):
    vectors.fire(0, 1)
    client.write_int(wire.BAR0, guest.MSIX_PBA, 8, 0xFFFF)
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 1
    client.write_int(wire.BAR0, guest.MSIX_PBA, 8, 0)
    assert client.read_int(wire.BAR0, guest.MSIX_PBA, 8) == 1
