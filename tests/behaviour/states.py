# SPDX-License-Identifier: BSD-3-Clause
"""What a write of device_state must lead to, derived from the rules alone (design, "The device
machine"; the v2 arcs from the VFIO uAPI), for any set of features and any failing step."""
import collections
import errno

R, S, Z, N = 1, 2, 4, 8
ERROR_BITS = S | Z
ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(8)
BITS = {ERROR: ERROR_BITS, STOP: 0, RUNNING: R, STOP_COPY: S, RESUMING: Z, RUNNING_P2P: N | R,
        PRE_COPY: S | R, PRE_COPY_P2P: S | N | R}
SAVING = {STOP_COPY, PRE_COPY, PRE_COPY_P2P}

# fail: "stop", "start", "save_begin", "load_end" or None
Device = collections.namedtuple("Device", "ndma precopy fail", defaults=(True, True, None))


def refusal(device, old, new):
    """Why a v1 write is not even begun, or 0."""
    if old == ERROR_BITS or new & ~(R | S | Z | N):
        return errno.EINVAL
    if new & Z and new & (R | S):
        return errno.EINVAL
    if new & N and not device.ndma:
        return errno.EINVAL
    if old & S and not old & R and new & S and new & R:  # the data of S would be lost
        return errno.EINVAL
    return 0


def steps(device, old, new):
    """The calls that a change makes, in order, with whether there is a way back from it."""
    rising, falling = new & ~old, old & ~new
    if falling & S:
        yield None, False
    if falling & R:
        yield "stop", True
    if falling & Z:
        yield "load_end", False
    if rising & Z:
        yield None, False
    if new & (S | R) == S and old & (S | R) != S:
        yield "save_begin", True
    if rising & R:
        yield "start", True
    if new & R and rising & S:
        yield "save_begin" if device.precopy else None, True


def change(device, old, new, loaded):
    """(errno, bits afterwards) of one change that was not refused. loaded: Z has all its data."""
    lost = False
    for call, way_back in steps(device, old, new):
        lost = lost or not way_back
        if call == "load_end" and not loaded:
            return errno.ENODATA, ERROR_BITS
        if call and call == device.fail:
            return errno.EIO, ERROR_BITS if lost else old
    return 0, new


def write_v1(device, old, new, loaded=False):
    refused = refusal(device, old, new)
    if refused or old == new:
        return refused, old
    return change(device, old, new, loaded)


def seen_in_v2(device, bits):
    """The state of the feature dialect for register bits."""
    if bits == ERROR_BITS:
        return ERROR
    if not bits & R:
        bits &= ~N
    elif not device.precopy:
        bits &= ~S
    return next(state for state, value in BITS.items() if value == bits)


def supported(device):
    states = {STOP, RUNNING, STOP_COPY, RESUMING}
    if device.ndma:
        states.add(RUNNING_P2P)
    if device.precopy:
        states.add(PRE_COPY)
    if device.ndma and device.precopy:
        states.add(PRE_COPY_P2P)
    return states


def arcs(device):
    """The direct changes that the uAPI defines for these features."""
    quiet = RUNNING_P2P if device.ndma else RUNNING
    last = PRE_COPY_P2P if device.ndma else PRE_COPY
    both = [(STOP, STOP_COPY), (STOP, RESUMING), (quiet, STOP)]
    one = []
    if device.ndma:
        both.append((RUNNING, RUNNING_P2P))
    if device.precopy:
        both.append((RUNNING, PRE_COPY))
        one.append((last, STOP_COPY))
    if device.ndma and device.precopy:
        both += [(PRE_COPY, PRE_COPY_P2P), (RUNNING_P2P, PRE_COPY_P2P)]
    return set(both) | {(to, start) for start, to in both} | set(one)


def path(device, start, to):
    """The shortest way; it stays among the saving states between two of them and has none strictly
    inside otherwise. None when there is no way."""
    within = start in SAVING and to in SAVING
    ways = collections.deque([[start]])
    seen = {start}
    while ways:
        way = ways.popleft()
        if way[-1] == to:
            return way[1:]
        for at, after in sorted(arcs(device)):
            allowed = after in SAVING if within else after == to or after not in SAVING
            if at == way[-1] and after not in seen and allowed:
                seen.add(after)
                ways.append(way + [after])
    return None


def set_v2(device, bits, to, loaded=False):
    """(errno, register bits afterwards) of SET MIG_DEVICE_STATE."""
    start = seen_in_v2(device, bits)
    if ERROR in (start, to) or to not in supported(device):
        return errno.EINVAL, bits
    way = path(device, start, to)
    if way is None:
        return errno.EINVAL, bits
    for state in way:
        failed, bits = change(device, bits, BITS[state], loaded)
        if failed:
            return failed, bits
    return 0, bits


EVERY = range(8)  # a device with all features has all of them


def enter(client, state):
    """On a device with all features; ERROR by loading nothing."""
    if state == ERROR:
        assert client.set_state(RESUMING) == 0
        assert client.set_state(STOP) == errno.ENODATA
    else:
        assert client.set_state(state) == 0
    assert client.state() == state
