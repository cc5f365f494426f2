# SPDX-License-Identifier: BSD-3-Clause
"""All ordered pairs of states in both dialects, with and without NDMA and pre-copy, and with each
step of a device failing; what must come out is derived in states.py from the rules.

    design 4, vfio-user 8.1   v1: every pair of register values
    vfio-user 7.2             v2: every pair of states, hops seen by where a failure stops
    both                      every register value against every v2 target and back
"""
import errno

import pytest
import states
import wire
from states import N, R, S, Z

FEATURES = [(True, True), (False, True), (True, False), (False, False)]
STEPS = ["stop", "start", "save_begin", "load_end"]
VALUES = [*range(16), 16, 17, 0x80000001, 0xFFFFFFFF]


def options(device):
    result = [] if device.ndma else ["--no-ndma"]
    result += [] if device.precopy else ["--no-precopy"]
    return result + (["--fail", device.fail] if device.fail else [])


def name(device):
    return "-".join(options(device)).replace("--", "") or "plain"


PLAIN = [states.Device(ndma, precopy) for ndma, precopy in FEATURES]
FAILING = [states.Device(ndma, precopy, step) for ndma, precopy in FEATURES for step in STEPS]
DEVICES = pytest.mark.parametrize("device", PLAIN + FAILING, ids=name)


class Walker:
    """Puts a device into a state and looks at it."""

    def __init__(self, client, device, stream):
        self.client, self.device, self.stream = client, device, stream

    def enter(self, bits, loaded):
        """From RUNNING by the region dialect. False when the failing step forbids it."""
        self.client.reset()
        if bits == states.ERROR_BITS:
            self.client.set_bits(Z)
            self.client.set_bits(R)
            return self.client.bits() == bits
        wanted = states.write_v1(self.device, R, bits)
        self.expect(wanted, self.client.set_bits(bits), f"1 to {bits}")
        if wanted[0] == 0 and bits & Z and loaded:
            self.client.write_data(self.stream)
        return wanted[0] == 0

    def expect(self, wanted, got, what):
        failed, bits = wanted
        assert got == failed, f"{what}: errno {got} instead of {failed}"
        assert self.client.bits() == bits, what
        assert self.client.state() == states.seen_in_v2(self.device, bits), what


@pytest.fixture
def walker(servers, device, saved_stream):
    return Walker(servers("dma", *options(device)).connect(), device, saved_stream)


def starts():
    for old in range(16):
        yield old, False
        if old & Z:
            yield old, True


@DEVICES
def test_every_pair_of_v1_register_values(walker, device):
    entered = set()
    for old, loaded in starts():
        for new in VALUES:
            if not walker.enter(old, loaded):
                assert states.write_v1(device, R, old)[0], f"{old} was not entered"
                break
            entered.add(old)
            wanted = states.write_v1(device, old, new, loaded)
            walker.expect(wanted, walker.client.set_bits(new), f"{old} to {new}, loaded {loaded}")
    assert {R, Z, states.ERROR_BITS} <= entered or device.fail == "stop"
    if not device.fail:
        ns = {N, N | R, N | S, N | S | R, N | Z} if device.ndma else set()
        assert entered == {0, R, S, S | R, Z, states.ERROR_BITS} | ns


@DEVICES
def test_every_pair_of_v2_states_and_the_hops_between(walker, device):
    reached = set()
    for start in range(8):
        for loaded in {False, start == states.RESUMING}:
            for to in [*range(8), 8, 0xFFFFFFFF]:
                walker.client.reset()
                if start == states.ERROR:
                    if not walker.enter(states.ERROR_BITS, False):
                        break
                else:
                    wanted = states.set_v2(device, R, start)
                    walker.expect(wanted, walker.client.set_state(start), f"to {start}")
                    if wanted[0]:
                        break
                    if loaded:
                        walker.client.write_data(walker.stream)
                reached.add(start)
                wanted = states.set_v2(device, states.BITS[start], to, loaded)
                walker.expect(wanted, walker.client.set_state(to), f"{start} to {to}, loaded {loaded}")
    if not device.fail:
        assert reached == states.supported(device) | {states.ERROR}


@DEVICES
def test_every_v1_value_then_every_v2_state_and_back(walker, device):
    """Two dialects on one device in turn: each sees what the other did, and acts on it."""
    for old, loaded in starts():
        for to in range(8):
            if not walker.enter(old, loaded):
                break
            failed, bits = states.set_v2(device, old, to, loaded)
            walker.expect((failed, bits), walker.client.set_state(to), f"{old} to v2 {to}")
            back = states.write_v1(device, bits, R, loaded)
            walker.expect(back, walker.client.set_bits(R), f"{old}, v2 {to}, back to 1")


def test_pairs_table_has_the_hops_of_the_uapi():
    """The derivation itself, against the paths that the uAPI's text names."""
    full, small = states.Device(), states.Device(False, True)
    assert states.path(full, states.RUNNING, states.STOP_COPY) == [5, 1, 3]
    assert states.path(full, states.PRE_COPY, states.STOP_COPY) == [7, 3]
    assert states.path(full, states.PRE_COPY, states.STOP) == [2, 5, 1]
    assert states.path(full, states.RESUMING, states.RUNNING) == [1, 5, 2]
    assert states.path(full, states.STOP_COPY, states.PRE_COPY) is None
    assert states.path(small, states.RUNNING, states.STOP) == [1]
    assert states.path(small, states.PRE_COPY, states.RESUMING) == [2, 1, 4]
    assert states.path(small, states.PRE_COPY, states.STOP_COPY) == [3]


def test_null_device_walks_the_same_pairs(servers):
    client = servers("null").connect()
    device = states.Device()
    for start in states.supported(device):
        for to in range(8):
            client.reset()
            assert client.set_state(start) == 0
            failed, bits = states.set_v2(device, states.BITS[start], to)
            assert client.set_state(to) == failed
            assert (client.bits(), client.state()) == (bits, states.seen_in_v2(device, bits))


def test_refused_write_leaves_the_stream_undisturbed(client):
    """The same state again, and refused values, do not restart what is being read (X2)."""
    assert client.set_state(states.STOP_COPY) == 0
    head = client.ok(wire.MIG_DATA_READ, wire.mig_data(100))
    for value in (S, S | Z, S | R, 16):
        client.set_bits(value)
    for value in (states.STOP_COPY, states.ERROR, states.PRE_COPY, 9):
        client.set_state(value)
    stream = head[8:] + client.read_all_data()
    assert client.set_state(states.RESUMING) == 0
    client.write_data(stream)
    assert client.set_state(states.RUNNING) == 0


@pytest.mark.parametrize("value", [0, S, Z, S | R])
def test_n_is_read_back_as_written(client, value):
    """N beside !R is kept, so that read-modify-write keeps it."""
    assert client.set_bits(value | N) == 0
    assert client.bits() == value | N


@pytest.mark.parametrize("v1", [N, N | R, N | S, N | S | R, N | Z])
def test_n_without_the_feature_is_einval(servers, v1):
    client = servers("dma", "--no-ndma").connect()
    assert client.set_bits(v1) == errno.EINVAL
    assert client.bits() == R
