# SPDX-License-Identifier: BSD-3-Clause
"""Foreign devices of the region dialect: as the two driver series of 2021 behaved, and as
libvfio-user did until 2023."""
import errno
import fcntl
import mmap
import os
import struct

from peer import DIRTY_PAGES, PAGE, REGION_READ, REGION_WRITE, VERSION, Device, Refuse, bitmap_bytes
from wire import DIRTY_GET, DIRTY_START, DIRTY_STOP, MIGRATION

R, S, Z, N = 1, 2, 4, 8
SR, FAILED = R | S, S | Z
STATE, RESERVED, PENDING, OFFSET, SIZE, INFO = 0, 4, 8, 16, 24, 32

# Moves that the header draws.
DRAWN = {(R, 0), (R, S), (R, SR), (SR, S), (S, 0), (R, Z), (Z, R)}
# Moves that libvfio-user makes; staying is one of them, but not in pre-copy.
LVU_MOVES = {(0, R), (R, 0), (R, S), (R, SR), (R, Z), (S, R), (S, 0), (SR, S), (SR, 0), (SR, R), (Z, R),
             (0, 0), (R, R), (S, S), (Z, Z)}


class V1(Device):
    """What the uAPI says, and nothing odd."""

    regions = 10
    window = 64 << 10        # bytes of the data section
    data_offset = 0x1000
    ndma = False             # region capability 6: N stops all DMA
    sealed = False           # what is mapped cannot be cut short
    mapped = False           # the data section can be mapped: "whole", "part"
    truncate = False         # ... and its file is cut short when the device is stopped
    pre_copy = True          # there is data in SR
    framed = True            # portions carry their size: they must come as they were
    moves = None             # pairs that are allowed; None: all between valid states
    strict = None            # register accesses that are refused, and how: "mlx5", "hisi", "lvu"
    # saving
    pending_before = False   # pending_bytes is the value before the window advances
    pending_by_reads = False # it falls as data is read, not by acknowledgement; in Z it grows
    pending_short = False    # a read of it without an image yields no bytes
    sticky_end = False       # once 0 in SR it stays 0
    open_dropped = False     # a write of the state gives a portion that is open a second time
    keeps_image = False      # S again, without Z or reset between, goes on at the end of the old image
    fail_into_error = False  # the changes that are to fail end in ERROR
    save_fails = 0           # times that the image cannot be saved: frozen, and the state is the old one
    # loading
    early_match = False      # a block in SR tells what kind of device it was
    kind = 1
    bad_image = 0            # times that what was loaded is refused, which is an ERROR
    # hisi
    stop_restarts = False    # {} starts the queues that S stopped, and R does not
    short_failure = False    # a write of the state that fails takes 0 bytes, and says nothing

    def init_state(self):
        self.bits = R if self.left_in is None else self.left_in
        self.stopped = self.frozen = False
        self.at = self.avail = 0
        self.portion = None      # prepared and not acknowledged
        self.image = None        # what S saved, until it is dropped
        self.loaded = b""
        self.portions, self.commits = [], []
        self.ended = False
        self.fsm = 0             # libvfio-user's: 0 initial, 1 started, 2 data prepared, 3 finished
        self.file = None
        self.section = bytearray(self.window)
        if self.mapped:
            self.file = os.memfd_create("section", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.file, self.data_offset + self.window)
            if self.sealed:
                fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.section = mmap.mmap(self.file, self.window, offset=self.data_offset)

    def join(self):
        super().join()
        if self.file is not None:
            os.close(self.file)

    def may_dma(self):
        return self.bits & (R | N) == R and not self.stopped and not self.frozen

    def reset_state(self):
        self.bits, self.seq, self.seq_at_run, self.content = R, 0, 0, b""
        self.stopped = self.frozen = False
        self.image, self.portion = None, None

    def forget_data(self):
        self.loaded = b""

    def reset_refused(self):
        return self.stop_refuses_setup and self.bits in (0, S) or \
            self.reset_from_error_fails and self.bits == FAILED

    def check_stopped(self, command, payload):
        if self.bits not in (0, S):
            return
        if command not in (VERSION, REGION_READ, REGION_WRITE, DIRTY_PAGES):
            raise Refuse(errno.EINVAL)
        if self.bits == S and command in (REGION_READ, REGION_WRITE) and \
                struct.unpack_from("=QI", payload)[1] != MIGRATION:
            raise Refuse(errno.EINVAL)

    # --- the region ---

    def region_size(self, index):
        return self.data_offset + self.window if index == MIGRATION else super().region_size(index)

    def region_caps(self, index):
        if index != MIGRATION:
            return super().region_caps(index)
        caps = [(77, bytes(24))] if self.extra_caps else []
        caps.append((2, struct.pack("=II", 3, 1)))
        if self.ndma:
            caps.append((6, b""))
        if not self.mapped:
            return caps, 3, None
        size = self.window if self.mapped == "whole" else self.window // 2 // PAGE * PAGE
        caps.append((1, struct.pack("=IIQQ", 1, 0, self.data_offset, size)))
        return caps, 7, self.file

    # --- registers ---

    def odd_access(self, offset, size, write):
        """What other servers refuse; a client that does it makes a mistake."""
        widths = {STATE: 4, PENDING: 8, OFFSET: 8, SIZE: 8}
        if widths.get(offset) == size and not (write and offset in (PENDING, OFFSET)):
            return
        self.complaints.append(f"{'write' if write else 'read'} of {size} at {offset}")
        raise Refuse(errno.EFAULT if self.strict == "mlx5" and offset in (RESERVED, PENDING, OFFSET)
                     else errno.EINVAL)

    def read_register(self, index, offset, count):
        if index != MIGRATION:
            return bytes(count)
        if offset >= self.data_offset:
            return self.read_section(offset - self.data_offset, count)
        self.odd_access(offset, count, write=False)
        if offset == STATE:
            if self.unspoken:
                self.unspoken -= 1
                return struct.pack("=I", FAILED)
            return struct.pack("=I", self.bits)
        value = {PENDING: self.read_pending, OFFSET: self.read_offset, SIZE: self.read_size}[offset]()
        return b"" if value is None else struct.pack("=Q", value)

    def write_register(self, index, offset, data):
        if index != MIGRATION:
            return None
        if offset >= self.data_offset:
            if not self.bits & Z:
                raise Refuse(errno.EINVAL)
            at = offset - self.data_offset
            self.section[at:at + len(data)] = data
            return None
        self.odd_access(offset, len(data), write=True)
        if offset == STATE:
            return self.write_state(struct.unpack("=I", data)[0])
        self.write_size(struct.unpack("=Q", data)[0])
        return None

    # --- saving ---

    def portion_room(self):
        return self.window - 4 if self.framed else self.window

    def left(self):
        return max(0, self.avail - self.at)

    def acknowledge(self):
        if self.portion is not None and not self.pending_by_reads:
            self.at += self.portion
        self.portion = None

    def read_pending(self):
        if self.bits & Z and self.pending_by_reads:
            return len(self.loaded)
        if not self.bits & S:
            if self.strict == "lvu":
                raise Refuse(errno.EINVAL)
            return None if self.pending_short and not self.image else 0
        before = self.left()
        self.acknowledge()
        if self.ended:
            return 0
        now = before if self.pending_before else self.left()
        self.fsm = 1 if now else 3
        if now == 0 and self.bits & R:
            self.ended = self.sticky_end
            if self.pre_copy and not self.sticky_end and not self.early_match:
                self.avail = max(self.avail, len(self.content) * 3 // 4)
        return now

    def read_offset(self):
        if self.bits & S and self.portion is None:
            if self.strict == "lvu" and self.fsm != 1:
                self.complaints.append("data_offset out of turn")
                raise Refuse(errno.EINVAL)
            self.fsm = 2
            data = self.early_block() if self.early_match and self.bits & R else \
                self.stream_now()[self.at:self.at + min(self.left(), self.portion_room())]
            self.portion = len(data)
            if data:
                body = (struct.pack("=I", len(data)) if self.framed else b"") + data
                self.section[:len(body)] = body
                self.portions.append(len(body))
        return self.data_offset

    def read_size(self):
        if not self.bits & S or (self.strict == "mlx5" and self.bits == SR) or \
                (self.strict == "lvu" and self.fsm != 2):
            self.complaints.append("data_size out of turn")
            raise Refuse(errno.EINVAL)
        if self.truncate and self.bits == S:
            self.section = bytearray(self.section)
            os.ftruncate(self.file, 0)
        return (self.portion or 0) + (4 if self.framed and self.portion else 0)

    def read_section(self, at, count):
        if self.portion is None or at + count > self.portion + (4 if self.framed else 0):
            self.complaints.append("data beyond the portion")
            raise Refuse(errno.EINVAL)
        if self.pending_by_reads and at + count == self.portion + (4 if self.framed else 0):
            self.at += self.portion
        return bytes(self.section[at:at + count])

    def stream_now(self):
        return self.image if self.image is not None else self.stream()

    def early_block(self):
        return struct.pack("=QQ", 0xACC, self.kind)

    # --- loading ---

    def write_size(self, size):
        if not self.bits & Z or size > self.window:
            raise Refuse(errno.EINVAL)
        data = bytes(self.section[:size])
        self.commits.append(size)
        if self.framed:
            if struct.unpack_from("=I", data)[0] != size - 4:
                raise Refuse(errno.EINVAL)
            data = data[4:]
        if self.early_match and len(data) == 16:
            if data != self.early_block():
                raise Refuse(errno.EINVAL)
            return
        self.loaded += data

    # --- device_state ---

    def write_state(self, new):
        try:
            self.silent()
            self.change(new)
        except Refuse:
            if self.short_failure:
                return 0
            raise
        return None

    def change(self, new):
        old = self.bits
        if self.ndma and not new & R:
            new &= ~N           # says nothing new
        if new & ~(15 if self.ndma else 7) or new & 7 in (5, 6, 7) or old == FAILED:
            raise Refuse(errno.EINVAL)
        if self.moves is not None and (old, new) not in self.moves:
            raise Refuse(errno.EINVAL)
        try:
            self.fails((old, new))
        except Refuse:
            if self.fail_into_error:
                self.bits = FAILED
            raise
        if old == new:
            return
        if old & R and not new & R:
            self.frozen = True
        if new & S and not new & R:
            self.enter_save()
        elif new & S and not old & S and self.image is None:
            self.at = self.avail = 0
            if self.pre_copy:
                self.avail = 16 if self.early_match else len(self.content) // 2
        if new & Z and not old & Z:
            self.loaded, self.image, self.commits = b"", None, []
        if old & Z and not new & Z:
            self.load()
        if old & S and not new & S and not self.keeps_image:
            self.image = None
        if self.open_dropped:
            self.portion = None
        self.fsm, self.ended = 0, False
        self.run_queues(old, new)
        self.bits = new
        if new == R:
            self.seq_at_run = self.seq

    def run_queues(self, old, new):
        if self.stop_restarts:
            if new == S:
                self.stopped = True
            elif new == 0:
                self.stopped = False
        if new & R and not old & R:
            self.frozen = False

    def enter_save(self):
        if self.save_fails:
            self.save_fails -= 1
            raise Refuse(errno.EIO)
        if self.image is None or not self.keeps_image:
            self.image = self.stream()
            self.avail = len(self.image)
            if self.early_match or not self.bits & S:
                self.at = 0
                self.portion = None

    def load(self):
        if not self.loaded:     # no image, nothing to do
            self.loaded_seq = 0 if self.blank else None
            return
        if self.bad_image:
            self.bad_image -= 1
            self.bits = FAILED
            raise Refuse(errno.EINVAL)
        try:
            self.take_stream(self.loaded)
        except Refuse:
            self.bits = FAILED
            raise

    # --- DIRTY_PAGES ---

    def dirty_pages(self, payload, fds):
        argsz, flags = struct.unpack_from("=II", payload)
        if flags == DIRTY_START:
            self.start_log(PAGE)
            return b""
        if flags == DIRTY_STOP:
            if self.logging is None:
                raise Refuse(errno.EINVAL)
            self.logging = None
            return b""
        if flags != DIRTY_GET:
            raise Refuse(errno.EINVAL)
        iova, length, page_size, size = struct.unpack_from("=QQQQ", payload, 8)
        if argsz < 40 + size or size < bitmap_bytes(length, page_size):
            raise Refuse(errno.EINVAL)
        page_size, bits = self.told_report(iova, length, page_size)
        return struct.pack("=IIQQQQ", 40 + len(bits), flags, iova, length, page_size, len(bits)) + bits
