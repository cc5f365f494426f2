# SPDX-License-Identifier: BSD-3-Clause
"""Foreign devices of the feature dialect: as kernel drivers behave, and as libvfio-user does."""
import errno
import struct

from peer import (FEATURE, MIG_DATA_READ, REGION_READ, REGION_WRITE, VERSION, Device, Refuse,
                  bitmap_bytes)
from wire import (F_GET, F_LOG_REPORT, F_LOG_START, F_LOG_STOP, F_MIGRATION, F_PROBE, F_SET, F_STATE)

ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(8)
HAS_P2P, HAS_PRE_COPY = 2, 4
NEEDS = {RUNNING_P2P: HAS_P2P, PRE_COPY: HAS_PRE_COPY, PRE_COPY_P2P: HAS_P2P | HAS_PRE_COPY}

# Next single arc, by current and requested state; None: refused.
_S, _R, _C, _Z, _RP, _P, _PP = STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P
_ORDER = (_S, _R, _C, _Z, _RP, _P, _PP)
_HOPS = {
    _S: (_S, _RP, _C, _Z, _RP, _RP, _RP), _R: (_RP, _R, _RP, _RP, _RP, _P, _RP),
    _C: (_S, _S, _C, _S, _S, None, None), _Z: (_S, _S, _S, _Z, _S, _S, _S),
    _RP: (_S, _R, _S, _S, _RP, _R, _PP), _P: (_R, _R, _PP, _R, _R, _P, _PP),
    _PP: (_RP, _RP, _C, _RP, _RP, _P, _PP)}


class Kernel(Device):
    """A v2 driver."""

    flags = 7
    dma_in_p2p = False      # P2P stops peer to peer DMA alone: memory is still written
    pre_copy_data = True
    enomsg = False          # nothing now, in pre-copy, is an error
    read_most = 1 << 30     # bytes that one read yields at most
    pad_reads = False       # replies are as long as was asked for
    other_page = 0          # page size that the log insists on
    error_on_bad_data = False
    needs_reset = False     # RESUMING only after a reset
    bad_data = 0            # times that what was loaded is refused
    partial_writes_refused = True

    def init_state(self):
        self.state = self.left_in or RUNNING
        self.at = self.avail = 0
        self.loaded = b""
        self.session = None
        self.was_reset = False
        self.forgiven = False    # reset in RESUMING: there is nothing to load any more

    def may_dma(self):
        return self.state in (RUNNING, PRE_COPY) or \
            self.dma_in_p2p and self.state in (RUNNING_P2P, PRE_COPY_P2P)

    def reset_state(self):
        self.state, self.content, self.session = RUNNING, b"", None
        self.seq = self.seq_at_run = 0

    def forget_data(self):
        self.was_reset = True
        self.loaded, self.forgiven = b"", True

    def reset_refused(self):
        return self.stop_refuses_setup and self.state in (STOP, STOP_COPY)

    def check_stopped(self, command, payload):
        if self.state in (STOP, STOP_COPY) and \
                command not in (VERSION, REGION_READ, REGION_WRITE, FEATURE, MIG_DATA_READ):
            raise Refuse(errno.EINVAL)
        if self.state == STOP_COPY and command in (REGION_READ, REGION_WRITE):
            raise Refuse(errno.EINVAL)

    def supported(self, state):
        return STOP <= state <= PRE_COPY_P2P and not NEEDS.get(state, 0) & ~self.flags

    def next_hop(self, state, want):
        hop = _HOPS.get(state, {STOP: None})[_ORDER.index(want)] if state in _HOPS else None
        while hop is not None and not self.supported(hop):
            hop = _HOPS[hop][_ORDER.index(want)]
        return hop

    def set_state(self, want):
        self.silent()
        if not self.supported(want):
            raise Refuse(errno.EINVAL)
        while self.state != want:
            hop = self.next_hop(self.state, want)
            if hop is None:
                raise Refuse(errno.EINVAL)
            self.fails((self.state, hop))
            self.arc(hop)
            self.state = hop
            if hop == RUNNING:
                self.seq_at_run = self.seq

    def arc(self, new):
        saving = (PRE_COPY, PRE_COPY_P2P, STOP_COPY)
        if new in saving and self.state not in saving:
            self.at, self.session = 0, "save"
        if new in (PRE_COPY, PRE_COPY_P2P):
            self.avail = len(self.content) // 2 if self.pre_copy_data else 0
        elif new == STOP_COPY:
            self.avail = len(self.stream())
        elif new == RESUMING:
            if self.needs_reset and not self.was_reset:
                raise Refuse(errno.EINVAL)
            self.loaded, self.session, self.forgiven = b"", "load", False
        elif self.state == RESUMING:
            if self.bad_data:
                self.bad_data -= 1
                if self.error_on_bad_data:
                    self.state = ERROR
                raise Refuse(errno.EINVAL)
            if self.loaded or not self.forgiven:
                self.take_stream(self.loaded)
            self.session = None

    # --- DEVICE_FEATURE ---

    unknown_feature = errno.ENOTTY

    def feature(self, payload, fds):
        argsz, flags = struct.unpack_from("=II", payload)
        ident, ops = flags & 0xFFFF, flags & (F_GET | F_SET)
        known = {F_MIGRATION: F_GET, F_STATE: F_GET | F_SET, F_LOG_START: F_SET, F_LOG_STOP: F_SET,
                 F_LOG_REPORT: F_GET}
        if ident not in known:
            raise Refuse(self.unknown_feature)
        if ops & ~known[ident]:
            raise Refuse(errno.EINVAL)
        if flags & F_PROBE:
            return payload
        data = payload[8:]
        if ident == F_MIGRATION:
            return self.got(argsz, flags, struct.pack("=Q", self.flags))
        if ident == F_STATE:
            if ops == F_GET:
                state = self.state
                if self.unspoken:
                    self.unspoken, state = self.unspoken - 1, ERROR
                return self.got(argsz, flags, struct.pack("=II", state, 0))
            if len(data) != 8:
                self.complaints.append("a short SET of the state")
            self.set_state(struct.unpack_from("=I", data)[0])
            return payload
        if ident == F_LOG_START:
            return self.log_start(payload, data)
        if ident == F_LOG_STOP:
            if self.logging is None:
                raise Refuse(errno.EINVAL)
            self.logging = None
            return payload
        iova, length, page_size = struct.unpack_from("=QQQ", data)
        if argsz < 32 + bitmap_bytes(length, page_size):
            raise Refuse(errno.EINVAL)
        page_size, bits = self.told_report(iova, length, page_size)
        return payload[:24] + struct.pack("=Q", page_size) + bits

    def got(self, argsz, flags, data):
        if argsz < 8 + len(data):
            raise Refuse(errno.EINVAL)
        return struct.pack("=II", 8 + len(data), flags) + data

    def log_start(self, payload, data):
        page_size, count = struct.unpack_from("=QI", data)
        if len(data) != 16 + 16 * count:
            raise Refuse(errno.EINVAL)
        page_size = self.other_page or page_size
        if self.logging not in (None, page_size):
            raise Refuse(errno.EINVAL)
        self.start_log(page_size)
        return payload[:8] + struct.pack("=Q", page_size) + payload[16:]

    # --- data ---

    def data_read(self, payload, fds):
        argsz, size = struct.unpack("=II", payload)
        if self.session != "save" or size > self.client_data or argsz < 8 + size:
            raise Refuse(errno.EINVAL)
        data = self.stream()[self.at:min(self.avail, self.at + min(size, self.read_most))]
        if not data and self.enomsg and self.state != STOP_COPY:
            raise Refuse(errno.ENOMSG)
        self.at += len(data)
        if self.pad_reads:
            return struct.pack("=II", 8 + size, len(data)) + data + bytes(size - len(data))
        return struct.pack("=II", 8 + len(data), len(data)) + data

    def data_write(self, payload, fds):
        argsz, size = struct.unpack_from("=II", payload)
        if self.session != "load" or argsz < 8 + size or len(payload) != 8 + size:
            raise Refuse(errno.EINVAL)
        self.loaded += payload[8:]
        return b""


class Lvu(Kernel):
    """libvfio-user of 2026: no P2P, a walk of its own, nothing but EINVAL for what it does not know."""

    flags = 5
    unknown_feature = errno.EINVAL

    def next_hop(self, state, want):
        if state == want:
            return want
        if state == STOP:
            return want if want in (RUNNING, STOP_COPY, RESUMING) else RUNNING
        if state == RUNNING:
            return want if want in (STOP, PRE_COPY) else STOP
        if state == STOP_COPY:
            return None if want == PRE_COPY else STOP
        if state == RESUMING:
            return STOP
        return STOP_COPY if want == STOP_COPY else RUNNING
