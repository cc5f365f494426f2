# SPDX-License-Identifier: BSD-3-Clause
"""The feature dialect: DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE. All pairs of states are in
pairs_test.py, the DMA log is in log_test.py.

    vfio-user 7.1   operations, PROBE, argsz, features
    vfio-user 7.2   MIG_DEVICE_STATE as a message
    vfio-user 7.3   the data stream, in both directions
    vfio-user 7.5   the typical sequences
    design 4        ERROR: bad, short, reordered or foreign data
"""
import errno
import struct

import guest
import pytest
import states
import wire
from cases import INFO, IOVA

OPS = {wire.F_MIGRATION: wire.F_GET, wire.F_STATE: wire.F_GET | wire.F_SET, wire.F_LOG_START: wire.F_SET,
       wire.F_LOG_STOP: wire.F_SET, wire.F_LOG_REPORT: wire.F_GET}
EACH_FEATURE = pytest.mark.parametrize("ident", OPS)
UNKNOWN = (0, 3, 4, 5, 10, 11, 0x7FFF, 0xFFFF)
BLOCK = 4096
SAVING = (states.STOP_COPY, states.PRE_COPY, states.PRE_COPY_P2P)


# ---- 7.1 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, flags", [
    ((), 7), (("--no-ndma",), 5), (("--no-precopy",), 3), (("--no-ndma", "--no-precopy"), 1)])
def test_feature_migration_says_what_the_device_can_do(servers, options, flags):
    client = servers("dma", *options).connect()
    payload = client.ok(wire.FEATURE, wire.feature(wire.F_GET | wire.F_MIGRATION, argsz=16))
    assert payload == struct.pack("=IIQ", 16, wire.F_GET | wire.F_MIGRATION, flags)


@EACH_FEATURE
@pytest.mark.parametrize("asked", [0, wire.F_GET, wire.F_SET, wire.F_GET | wire.F_SET])
def test_feature_probe_asks_whether_all_named_operations_exist(client, ident, asked):
    payload = wire.feature(wire.F_PROBE | asked | ident)
    if asked & ~OPS[ident]:
        client.fails(errno.EINVAL, wire.FEATURE, payload)
    else:
        assert client.ok(wire.FEATURE, payload) == payload
    assert client.state() == states.RUNNING


@pytest.mark.parametrize("ident", UNKNOWN)
@pytest.mark.parametrize("asked", [wire.F_GET, wire.F_SET, wire.F_PROBE, wire.F_PROBE | wire.F_GET])
def test_feature_that_is_unknown_is_enotty(client, ident, asked):
    """As in the kernel."""
    client.fails(errno.ENOTTY, wire.FEATURE, wire.feature(asked | ident, bytes(64)))


@EACH_FEATURE
def test_feature_operation_that_it_does_not_have_is_einval(client, ident):
    data = struct.pack("=QQQ", 0, BLOCK, BLOCK)
    for asked in (wire.F_GET, wire.F_SET):
        if not OPS[ident] & asked:
            client.fails(errno.EINVAL, wire.FEATURE, wire.feature(asked | ident, data))


@EACH_FEATURE
def test_feature_without_an_operation_or_with_both_is_einval(client, ident):
    for flags in (ident, wire.F_GET | wire.F_SET | ident):
        client.fails(errno.EINVAL, wire.FEATURE, wire.feature(flags, bytes(64)))


@pytest.mark.parametrize("bit", range(19, 32))
def test_feature_flags_that_do_not_exist_are_einval(client, bit):
    client.fails(errno.EINVAL, wire.FEATURE, wire.feature(wire.F_GET | wire.F_MIGRATION | 1 << bit, bytes(8)))


@pytest.mark.parametrize("ident", [wire.F_MIGRATION, wire.F_STATE])
def test_feature_get_needs_room_for_its_answer(client, ident):
    for argsz in (8, 15):
        client.fails(errno.EINVAL, wire.FEATURE, wire.feature(wire.F_GET | ident, argsz=argsz))
    payload = client.ok(wire.FEATURE, wire.feature(wire.F_GET | ident, argsz=4096))
    assert len(payload) == 16 and struct.unpack_from("=I", payload)[0] == 16


@pytest.mark.parametrize("ident, whole", [(wire.F_STATE, 8), (wire.F_LOG_START, 16)])
def test_feature_set_that_is_too_short_for_its_structure_is_einval(client, ident, whole):
    for size in range(whole):
        client.fails(errno.EINVAL, wire.FEATURE, wire.feature(wire.F_SET | ident, bytes(size)))
    assert client.state() == states.RUNNING


def test_feature_report_that_is_too_short_for_its_structure_is_einval(client, memory):
    guest.map_memory(client, memory, IOVA)
    client.ok(wire.FEATURE, wire.log_start(BLOCK))
    for size in range(24):
        data = struct.pack("=QQQ", IOVA, BLOCK, BLOCK)[:size]
        client.fails(errno.EINVAL, wire.FEATURE, wire.feature(wire.F_GET | wire.F_LOG_REPORT, data, 4096))


# ---- 7.2 -----------------------------------------------------------------------------------------

def test_feature_set_state_echoes_the_request(client):
    for value in (states.PRE_COPY, states.STOP_COPY, states.STOP, states.RUNNING):
        payload = wire.feature(wire.F_SET | wire.F_STATE, struct.pack("=II", value, 77))
        assert client.ok(wire.FEATURE, payload) == payload
        assert client.state() == value


@pytest.mark.parametrize("value", [0, 8, 9, 255, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("state", [states.RUNNING, states.STOP_COPY, states.RESUMING])
def test_feature_set_state_of_no_state_is_einval(client, state, value):
    states.enter(client, state)
    assert client.set_state(value) == errno.EINVAL
    assert client.state() == state


@pytest.mark.parametrize("state", states.EVERY)
def test_feature_set_of_the_current_state_is_a_success(client, state):
    """But for ERROR, which is never a target."""
    states.enter(client, state)
    assert client.set_state(state) == (errno.EINVAL if state == states.ERROR else 0)
    assert client.state() == state


def test_feature_set_that_fails_leaves_the_real_state(servers):
    """The client reads it back: the hops before the failing one stay done."""
    client = servers("dma", "--fail", "stop").connect()
    assert client.set_state(states.STOP_COPY) == errno.EIO
    assert client.state() == states.RUNNING_P2P
    assert client.bits() == states.BITS[states.RUNNING_P2P]


# ---- 7.3 -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("state", states.EVERY)
def test_data_read_only_in_the_saving_states(client, state):
    states.enter(client, state)
    if state in SAVING:
        client.ok(wire.MIG_DATA_READ, wire.mig_data(64))
    else:
        client.fails(errno.EINVAL, wire.MIG_DATA_READ, wire.mig_data(64))
    assert client.state() == state


@pytest.mark.parametrize("state", states.EVERY)
def test_data_write_only_in_resuming(client, state, saved_stream):
    states.enter(client, state)
    payload = wire.mig_data(64, saved_stream[:64])
    if state == states.RESUMING:
        assert client.ok(wire.MIG_DATA_WRITE, payload) == b""
    else:
        client.fails(errno.EINVAL, wire.MIG_DATA_WRITE, payload)
    assert client.state() == state


@pytest.mark.parametrize("size", [1, 7, 8, 63, 64, 1000, 4096, 65536, 1 << 20])
def test_data_read_fills_requests_while_it_has_data(client, size):
    """Shorter than asked for means the end, so nothing before it may be short; and the reply is as
    long as what it brings, not as what was asked for (quirk 2)."""
    assert client.set_state(states.STOP_COPY) == 0
    total, got = 0, size
    while got == size and total < 100 * size:
        payload = client.ok(wire.MIG_DATA_READ, wire.mig_data(size))
        argsz, got = struct.unpack_from("=II", payload)
        assert argsz == len(payload) == 8 + got and got <= size
        total += got
    assert total > 65536 or total == 100 * size


def test_data_read_after_the_end_is_empty(client):
    assert client.set_state(states.STOP_COPY) == 0
    client.read_all_data()
    for _ in range(2):
        assert client.ok(wire.MIG_DATA_READ, wire.mig_data(1 << 20)) == struct.pack("=II", 8, 0)


def test_data_read_of_nothing_is_a_success(client):
    assert client.set_state(states.STOP_COPY) == 0
    assert client.ok(wire.MIG_DATA_READ, wire.mig_data(0)) == struct.pack("=II", 8, 0)


@pytest.mark.parametrize("size, argsz, wanted", [
    (64, 0, errno.EINVAL), (64, 8, errno.EINVAL), (64, 71, errno.EINVAL), ((1 << 20) + 1, None, errno.E2BIG),
    (0xFFFFFFFF, 0xFFFFFFFF, errno.E2BIG), (0xFFFFFFFF, 7, errno.E2BIG)])
def test_data_read_sizes_are_checked(client, size, argsz, wanted):
    """The next read begins where the last good one ended."""
    assert client.set_state(states.STOP_COPY) == 0
    head = client.ok(wire.MIG_DATA_READ, wire.mig_data(64))[8:]
    argsz = 8 + size if argsz is None else argsz
    client.fails(wanted, wire.MIG_DATA_READ, struct.pack("=II", argsz, size))
    stream = head + client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    client.write_data(stream)
    assert client.set_state(states.STOP) == 0


@pytest.mark.parametrize("size, data, argsz, wanted", [
    (64, 63, 72, errno.EINVAL), (64, 65, 72, errno.EINVAL), (0, 64, 72, errno.EINVAL),
    (64, 64, 71, errno.EINVAL), (64, 64, 0, errno.EINVAL),
    ((1 << 20) + 1, (1 << 20) + 1, (1 << 20) + 9, errno.E2BIG)])
def test_data_write_sizes_are_checked(client, saved_stream, size, data, argsz, wanted):
    """Nothing of a refused write is taken: the whole stream can follow."""
    assert client.set_state(states.RESUMING) == 0
    client.fails(wanted, wire.MIG_DATA_WRITE, wire.mig_data(size, bytes(data), argsz))
    client.write_data(saved_stream)
    assert client.set_state(states.STOP) == 0


@pytest.mark.parametrize("size", [1, 37, 4096, 1 << 20])
def test_data_boundaries_carry_no_meaning(client, saved_stream, size):
    """Byte by byte (of its beginning), in odd pieces, or in one message of all (quirks 1, 12)."""
    assert client.set_state(states.RESUMING) == 0
    head = 300 * size if size == 1 else len(saved_stream)
    client.write_data(saved_stream[:head], size)
    client.write_data(saved_stream[head:])
    assert client.set_state(states.RUNNING) == 0
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == guest.STAMP


def test_data_write_of_nothing_is_a_success(client, saved_stream):
    assert client.set_state(states.RESUMING) == 0
    assert client.ok(wire.MIG_DATA_WRITE, wire.mig_data(0)) == b""
    client.write_data(saved_stream)
    assert client.ok(wire.MIG_DATA_WRITE, wire.mig_data(0)) == b""
    assert client.set_state(states.STOP) == 0


def test_data_of_precopy_goes_on_in_stop_copy_as_one_stream(client):
    """Short in PRE_COPY only means that nothing is left at present."""
    client.write(wire.BAR0, guest.SRAM, b"first")
    assert client.set_state(states.PRE_COPY) == 0
    stream = client.read_all_data()
    client.write(wire.BAR0, guest.SRAM + 5, b"second")
    stream += client.read_all_data(1000)
    client.write(wire.BAR0, guest.SRAM + 11, b"third")
    assert client.set_state(states.PRE_COPY_P2P) == 0
    stream += client.ok(wire.MIG_DATA_READ, wire.mig_data(100))[8:]
    assert client.set_state(states.STOP_COPY) == 0
    stream += client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    client.write_data(stream)
    assert client.set_state(states.RUNNING) == 0
    assert client.read(wire.BAR0, guest.SRAM, 16) == b"firstsecondthird"


def test_data_of_precopy_comes_to_a_halt_and_starts_again_with_changes(client):
    assert client.set_state(states.PRE_COPY) == 0
    client.read_all_data()
    assert client.read_all_data() == b""
    client.write(wire.BAR0, guest.SRAM, b"x")
    assert b"x" in client.read_all_data()
    assert client.read_all_data() == b""


@pytest.mark.parametrize("state", [states.PRE_COPY, states.STOP_COPY])
def test_data_starts_over_when_saving_is_left_and_entered_again(client, state):
    """An aborted save leaves no trace in the next one."""
    client.write(wire.BAR0, guest.SCRATCH, b"retried!")
    assert client.set_state(state) == 0
    client.ok(wire.MIG_DATA_READ, wire.mig_data(10000))
    assert client.set_state(states.RUNNING) == 0
    client.fails(errno.EINVAL, wire.MIG_DATA_READ, wire.mig_data(64))
    assert client.set_state(states.STOP_COPY) == 0
    stream = client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    client.write_data(stream)
    assert client.set_state(states.RUNNING) == 0
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"retried!"


def test_data_travels_to_another_process_and_another_feature_set(servers, saved_stream):
    for options in ((), ("--no-ndma",), ("--no-precopy",), ("--no-ndma", "--no-precopy")):
        client = servers("dma", *options).connect()
        assert client.set_state(states.RESUMING) == 0
        client.write_data(saved_stream)
        assert client.set_state(states.RUNNING) == 0
        assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == guest.STAMP


def test_data_of_a_device_without_state_is_a_stream_too(servers):
    client = servers("null").connect()
    assert client.set_state(states.STOP_COPY) == 0
    stream = client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    client.write_data(stream)
    assert client.set_state(states.RUNNING) == 0


def test_data_that_the_device_cannot_save_fails_the_read(servers):
    client = servers("dma", "--fail", "save").connect()
    assert client.set_state(states.STOP_COPY) == 0
    client.fails(errno.EIO, wire.MIG_DATA_READ, wire.mig_data(64))
    assert client.state() == states.STOP_COPY
    assert client.set_state(states.RUNNING) == 0


# ---- ERROR ---------------------------------------------------------------------------------------

def flipped(stream, at):
    return stream[:at] + bytes([stream[at] ^ 0x10]) + stream[at + 1:]


FRAME = {errno.EPROTO, errno.EILSEQ, errno.EBADMSG, errno.EMSGSIZE, errno.ENODATA}
# Where the head of the first frame is flipped: what it is no longer.
HEAD = {range(0, 4): errno.EPROTO, range(8, 16): errno.EBADMSG, range(16, 24): errno.EPROTO,
        range(24, 28): errno.EILSEQ, range(32, 36): errno.EBADMSG, range(36, 40): errno.EPROTO,
        range(40, 128): errno.EBADMSG}


def assert_refused(client, stream, leave, wanted):
    """Whether the write of the data is refused already or only the load: the state is ERROR."""
    assert client.set_state(states.RESUMING) == 0
    first = 0
    for at in range(0, len(stream), BLOCK):
        piece = stream[at:at + BLOCK]
        reply = client.call(wire.MIG_DATA_WRITE, wire.mig_data(len(piece), piece))
        assert not first or reply.error == first, "a refusal stays one"
        first = first or reply.error
    assert client.state() == states.RESUMING
    failed = leave()
    assert failed in wanted, errno.errorcode[failed]
    assert not first or failed == first
    assert client.state() == states.ERROR and client.bits() == states.ERROR_BITS
    for value in range(8):
        assert client.set_state(value) == errno.EINVAL
        assert client.set_bits(states.BITS[value]) == errno.EINVAL
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == b"\xff" * 8
    client.ok(wire.GET_INFO, INFO)
    client.reset()
    assert client.state() == states.RUNNING
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == bytes(8)


LEAVE = pytest.mark.parametrize("leave", ["v2 STOP", "v2 RUNNING", "v1 0", "v1 1"])


def leaver(client, leave):
    dialect, value = leave.split()
    if dialect == "v1":
        return lambda: client.set_bits(int(value))
    return lambda: client.set_state(getattr(states, value))


@LEAVE
def test_bad_data_flipped_anywhere_is_error(client, saved_stream, leave):
    for at in [*range(0, 128), *range(128, len(saved_stream), 7919), len(saved_stream) - 1]:
        wanted = {code for where, code in HEAD.items() if at in where} or FRAME
        assert_refused(client, flipped(saved_stream, at), leaver(client, leave), wanted)


@LEAVE
def test_bad_data_cut_short_anywhere_is_error(client, saved_stream, leave):
    for size in [*range(0, 100), *range(100, len(saved_stream), 7919), len(saved_stream) - 1]:
        assert_refused(client, saved_stream[:size], leaver(client, leave), {errno.ENODATA})


def test_bad_data_twice_or_with_a_tail_is_error(client, saved_stream):
    leave = leaver(client, "v2 STOP")
    assert_refused(client, saved_stream + b"\0", leave, {errno.ENODATA})
    assert_refused(client, saved_stream * 2, leave, {errno.EILSEQ})
    assert_refused(client, saved_stream + saved_stream[:64], leave, {errno.EILSEQ})


def test_bad_data_reordered_is_error(client, saved_stream):
    half = len(saved_stream) // 2 // BLOCK * BLOCK
    leave = leaver(client, "v2 STOP")
    assert_refused(client, saved_stream[half:] + saved_stream[:half], leave, {errno.EPROTO})
    assert_refused(client, saved_stream[BLOCK:], leave, {errno.EPROTO})


def test_bad_data_of_another_kind_of_device_is_error(servers, saved_stream):
    null = servers("null").connect()
    assert null.set_state(states.STOP_COPY) == 0
    foreign = null.read_all_data()
    client = servers("dma").connect()
    assert_refused(client, foreign, leaver(client, "v2 STOP"), {errno.EPROTO})
    assert null.set_state(states.RESUMING) == 0
    null.fails(errno.EPROTO, wire.MIG_DATA_WRITE, wire.mig_data(BLOCK, saved_stream[:BLOCK]))
    assert null.set_state(states.STOP) == errno.EPROTO
    assert null.state() == states.ERROR


def test_error_is_left_by_closing_the_connection(server, client):
    states.enter(client, states.ERROR)
    client.close()
    client = server.connect()
    assert client.state() == states.RUNNING


def test_error_keeps_dma_and_interrupts_quiet(client, memory):
    vectors = guest.Vectors(client)
    vectors.attach(0, 4)
    guest.map_memory(client, memory, IOVA)
    driver = guest.Driver(client, memory, IOVA)
    states.enter(client, states.ERROR)
    driver.queue(guest.FILL, dst=IOVA + 4096, length=64, vector=1)
    driver.ring_bell()
    vectors.fire(2, 1)
    assert vectors.taken() == [0, 0, 0, 0] and memory[4096:4160] == bytes(64)
    client.reset()
    assert vectors.taken() == [0, 0, 0, 0] and memory[4096:4160] == bytes(64)
    vectors.close()


# ---- 7.5 -----------------------------------------------------------------------------------------

def test_sequence_of_a_source_and_a_destination(servers, memory):
    """As the specification lists it, with memory copied by the log alone."""
    source = servers("dma").connect()
    guest.map_memory(source, memory, IOVA)
    driver = guest.Driver(source, memory, IOVA)
    copy = bytearray(memory.size)
    source.ok(wire.FEATURE, wire.log_start(BLOCK))
    copy[:] = memory[:]
    assert source.set_state(states.PRE_COPY) == 0
    stream = b""
    for number in range(5):
        driver.run(guest.FILL, dst=IOVA + (number + 1) * BLOCK * 3, length=BLOCK, pattern=number)
        stream += source.read_all_data()
        for page in source.report(IOVA, memory.size):
            copy[page * BLOCK:(page + 1) * BLOCK] = memory[page * BLOCK:(page + 1) * BLOCK]
    driver.run(guest.FILL, dst=IOVA + 50 * BLOCK, length=8, pattern=8)
    assert source.set_state(states.STOP_COPY) == 0
    for page in source.report(IOVA, memory.size):
        copy[page * BLOCK:(page + 1) * BLOCK] = memory[page * BLOCK:(page + 1) * BLOCK]
    stream += source.read_all_data()
    assert source.set_state(states.STOP) == 0
    source.ok(wire.FEATURE, wire.feature(wire.F_SET | wire.F_LOG_STOP))
    source.close()
    assert copy == memory[:]

    destination = servers("dma", "--drain-timeout-ms", "9999").connect()
    with guest.Memory(memory.size) as other:
        other[:] = bytes(copy)
        guest.map_memory(destination, other, IOVA)
        assert destination.set_state(states.RESUMING) == 0
        destination.write_data(stream)
        assert destination.set_state(states.RUNNING) == 0
        driver.client, driver.ring = destination, other
        assert driver.run(guest.FILL, dst=IOVA, length=8) == 0
        assert driver.result()[2] == 7  # it goes on counting
