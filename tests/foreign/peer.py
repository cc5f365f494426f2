# SPDX-License-Identifier: BSD-3-Clause
"""A foreign device behind a vfio-user socket, written from the protocol's documents and sharing
nothing with the library but the numbers of the wire (tests/behaviour/wire.py), so that a
misunderstanding cannot be on both sides.

It does DMA before each command that it serves, as long as its state lets it: something is always
written between any two events of a migration. How it misbehaves is set by attributes; each is one
quirk, and off unless said otherwise."""
import array
import errno
import json
import mmap
import os
import pathlib
import random
import socket
import struct
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "behaviour"))
from wire import (COMMAND, CONFIG, DIRTY_PAGES, DMA_MAP, DMA_UNMAP, DMA_WRITE, ERROR, FEATURE,  # noqa: E402
                  GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, HEADER, MIG_DATA_READ, MIG_DATA_WRITE, MSIX,
                  NO_REPLY, REGION_READ, REGION_WRITE, REPLY, RESET, SET_IRQS, VERSION, bitmap_bytes)

PAGE = 4096
SPARED = 8           # pages at the end of a mapping that are the guest's own
CHUNK = 36 << 10     # what a unix socket holds in one piece
PATIENCE = 60        # seconds; only ends a test that has failed already


class Refuse(Exception):
    """The command is answered with an errno."""

    def __init__(self, number):
        super().__init__(errno.errorcode[number])
        self.errno = number


class Silence(Exception):
    """The command is never answered."""


class Gone(Exception):
    """The connection is of no use any more."""


class Map:
    def __init__(self, iova, size, memory, key):
        self.iova, self.size, self.memory, self.key = iova, size, memory, key


class Device:
    """State, DMA and the wire; the dialects are in v1.py and v2.py."""

    # the wire
    single_recv = False         # a request is read with one recv, which takes what is there
    byte_by_byte = False        # replies arrive in pieces
    twin = True                 # a second socket for its own commands, when it is offered one
    max_data = 1 << 20          # max_data_xfer_size
    extra_caps = False          # keys in VERSION and capabilities of regions that nobody knows
    zero_count_header = False   # an access of nothing is answered by a bare header
    answers_once = False        # silent to the first change of state
    einval_only = False         # every error is EINVAL
    # memory
    dma_from = 0                # bytes at the begin of a mapping that it leaves alone
    no_dma = False              # maps are accepted and ignored
    overlap_einval = False      # instead of EEXIST; the same map again is fine
    report_region_start = False # reports begin at a mapped region and stay in it
    report_page = 0             # reports are in pages of this size, and say so
    report_empty = False        # a report across two regions is a success without a bitmap
    # state
    size = 200_000              # bytes of device state
    blank = False               # no state at all
    bar_bytes = 4096            # BAR 0 is memory, and state
    bar_id = 0                  # its first word at power on
    stop_refuses_setup = False  # in STOP and STOP_COPY
    reset_stale = 0             # reads of the state after a reset that still tell the old one
    reset_leaves_state = False
    reset_from_error_fails = False
    fail = {}                   # (state, state): [errno, times]; the state is kept
    left_in = None              # state that an earlier client left it in

    def __init__(self, path, source, **quirks):
        for name, value in quirks.items():
            assert hasattr(self, name), f"no such quirk: {name}"
            setattr(self, name, value)
        self.path = str(path)
        self.fail = {arc: list(how) for arc, how in self.fail.items()}
        noise = random.Random(1)
        self.content = noise.randbytes(0 if self.blank else self.size) if source else b""
        self.bar = self.fresh_bar()
        self.seq = self.seq_at_run = 0
        self.loaded_seq = None
        self.source = source
        self.maps, self.dirty, self.logging = [], set(), None
        self.irqs = self.command = 0
        self.complaints = []    # what a client must not do
        self.told = self.unspoken = 0
        self.client = self.channel = None
        self.init_state()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    # --- the wire ---

    def serve(self):
        try:
            self.client, _ = self.listener.accept()
        except OSError:
            return
        self.listener.close()
        self.client.settimeout(PATIENCE)
        try:
            while True:
                self.one_command()
        except (Gone, ConnectionError):
            pass
        self.client.close()

    def join(self):
        if not self.client:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.channel:
            self.channel.close()
        for one in self.maps:
            if one.memory:
                one.memory.close()

    def take(self, sock, size, fds):
        data = b""
        while len(data) < size:
            piece, ancillary, _, _ = sock.recvmsg(size - len(data), socket.CMSG_SPACE(64))
            for _, _, content in ancillary:
                fds.extend(array.array("i", content))
            if not piece:
                raise Gone()
            data += piece
            if self.single_recv and len(data) < size:
                raise Gone()
        return data

    def one_command(self):
        fds = []
        ident, command, size, flags, _ = struct.unpack("=HHIII", self.take(self.client, HEADER, fds))
        if self.single_recv and size > CHUNK:
            raise Gone()        # the rest of the body would be read as headers
        if size - HEADER > self.max_data + 64:
            self.complaints.append(f"{size} bytes at once")
        payload = self.take(self.client, size - HEADER, fds)
        try:
            if command != VERSION:
                self.dma()
            answer, out = self.dispatch(command, payload, fds), []
            if isinstance(answer, tuple):
                answer, out = answer
            error = 0
        except Refuse as refusal:
            answer, out, error = b"", [], errno.EINVAL if self.einval_only else refusal.errno
        except Silence:
            return
        finally:
            for fd in fds:
                os.close(fd)
        if not flags & NO_REPLY:
            head = struct.pack("=HHIII", ident, command, HEADER + len(answer),
                               REPLY | (ERROR if error else 0), error)
            self.reply(head + answer, out)
        for fd in out:
            os.close(fd)

    def reply(self, data, fds):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        first = 1 if self.byte_by_byte and len(data) < 256 else len(data)
        sent = self.client.sendmsg([data[:first]], ancillary)
        if first == 1:
            for at in range(1, len(data)):
                self.client.sendall(data[at:at + 1])
        elif sent < len(data):
            self.client.sendall(data[sent:])

    def dispatch(self, command, payload, fds):
        if self.stop_refuses_setup:
            self.check_stopped(command, payload)
        handlers = {VERSION: self.version, DMA_MAP: self.dma_map, DMA_UNMAP: self.dma_unmap,
                    GET_INFO: self.get_info, GET_REGION_INFO: self.get_region_info,
                    GET_IRQ_INFO: self.get_irq_info, SET_IRQS: self.set_irqs,
                    REGION_READ: self.region_read, REGION_WRITE: self.region_write,
                    RESET: self.on_reset, FEATURE: self.feature, DIRTY_PAGES: self.dirty_pages,
                    MIG_DATA_READ: self.data_read, MIG_DATA_WRITE: self.data_write}
        if command not in handlers:
            raise Refuse(errno.EINVAL)
        return handlers[command](payload, fds)

    def version(self, payload, fds):
        asked = json.loads(payload[4:].rstrip(b"\0"))["capabilities"]
        self.client_data = asked.get("max_data_xfer_size", 1 << 20)
        caps = {"max_msg_fds": 8, "max_data_xfer_size": self.max_data, "migration": {"pgsize": PAGE}}
        out = []
        if self.extra_caps:
            caps.update({"cookies": True, "twin": {"fd": 3}, "migration_v9": [1, 2]})
        if self.twin and asked.get("twin_socket", {}).get("supported"):
            self.channel, theirs = socket.socketpair()
            self.channel.settimeout(PATIENCE)
            out.append(theirs.detach())
            caps["twin_socket"] = {"supported": True, "fd_index": 0}
        return struct.pack("=HH", 0, 0) + json.dumps({"capabilities": caps}).encode() + b"\0", out

    # --- description ---

    regions = 9

    def get_info(self, payload, fds):
        return struct.pack("=IIII", 16, 3, self.regions, 5)

    def region_size(self, index):
        return {0: self.bar_bytes, CONFIG: 256}.get(index, 0)

    def region_caps(self, index):
        """Capabilities as (id, body), flags, descriptor."""
        return ([(77, b"odd!")] if self.extra_caps and index == 0 else []), 3, None

    def get_region_info(self, payload, fds):
        room, _, index = struct.unpack_from("=III", payload)
        if index >= self.regions:
            raise Refuse(errno.EINVAL)
        caps, flags, fd = self.region_caps(index)
        chain = b""
        for number, (ident, body) in enumerate(caps):
            end = 32 + len(chain) + 8 + len(body)
            chain += struct.pack("=HHI", ident, 1, end if number + 1 < len(caps) else 0) + body
        size = 32 + len(chain)
        fits = room >= size
        head = struct.pack("=IIIIQQ", size, flags | (8 if chain and fits else 0), index,
                           32 if chain and fits else 0, self.region_size(index), 0)
        return (head + chain, [os.dup(fd)] if fd is not None else []) if fits else (head, [])

    def get_irq_info(self, payload, fds):
        index = struct.unpack_from("=I", payload, 8)[0]
        return struct.pack("=IIII", 16, 1, index, 2 if index == MSIX else 0)

    def set_irqs(self, payload, fds):
        _, flags, index, start, count = struct.unpack_from("=IIIII", payload)
        if index != MSIX or start + count > 2:
            raise Refuse(errno.EINVAL)
        self.irqs = len(fds)
        return b""

    # --- memory and DMA ---

    def dma_map(self, payload, fds):
        _, flags, offset, iova, size = struct.unpack("=IIQQQ", payload)
        key = (iova, size, offset)
        if self.no_dma:
            return b""
        for one in self.maps:
            if iova < one.iova + one.size and one.iova < iova + size:
                if self.overlap_einval and one.key == key:
                    return b""
                raise Refuse(errno.EINVAL if self.overlap_einval else errno.EEXIST)
        memory = mmap.mmap(fds[0], size, offset=offset) if fds else None
        self.maps.append(Map(iova, size, memory, key))
        return b""

    def dma_unmap(self, payload, fds):
        _, flags, iova, size = struct.unpack_from("=IIQQ", payload)
        for one in self.maps:
            if (one.iova, one.size) == (iova, size):
                self.maps.remove(one)
                if one.memory:
                    one.memory.close()
                return payload[:24]
        raise Refuse(errno.ENOENT)

    def dma(self):
        """A little DMA into every mapping, if the device may do it now."""
        if not self.may_dma() or not self.command & 4:
            return
        for one in self.maps:
            self.seq += 1
            first = self.dma_from // PAGE
            page = first + self.seq * 7919 % (one.size // PAGE - SPARED - first)
            self.store(one, page * PAGE + self.seq * 16 % PAGE, struct.pack("=QQ", 0xD0D0D0D0, self.seq))

    def store(self, one, offset, data):
        if one.memory:
            one.memory[offset:offset + len(data)] = data
            if self.logging:
                self.dirty.add((one.iova + offset) // PAGE)
            return
        # by message, and nothing else is done until the answer is there; the client marks the page
        body = struct.pack("=QQ", one.iova + offset, len(data)) + data
        self.channel.sendall(struct.pack("=HHIII", 7, DMA_WRITE, HEADER + len(body), COMMAND, 0) + body)
        try:
            head = self.take(self.channel, HEADER, [])
            _, _, size, flags, error = struct.unpack("=HHIII", head)
            self.take(self.channel, size - HEADER, [])
        except ConnectionError:
            raise Gone() from None
        if error:
            self.complaints.append(f"DMA_WRITE refused: {os.strerror(error)}")

    def start_log(self, page_size):
        if self.logging is None:
            self.dirty.clear()
        self.logging = page_size

    def report(self, iova, length, page_size):
        """The bitmap of the range; what it tells is forgotten."""
        if self.logging is None:
            raise Refuse(errno.EINVAL)
        if page_size != self.logging:
            self.complaints.append(f"report in pages of {page_size}")
            raise Refuse(errno.EINVAL)
        if self.report_region_start:
            of = [one for one in self.maps if one.iova <= iova < one.iova + one.size]
            if not of:
                raise Refuse(errno.ENOENT)
            if of[0].iova != iova:
                raise Refuse(errno.ENOTSUP)
            if not of[0].memory:
                raise Refuse(errno.EINVAL)
            if iova + length > of[0].iova + of[0].size:
                if self.report_empty:
                    return b""
                raise Refuse(errno.ENOTSUP)
        bits = bytearray(bitmap_bytes(length, page_size))
        for page in sorted(self.dirty):
            at = page * PAGE - iova
            if 0 <= at < length:
                self.dirty.discard(page)
                bits[at // page_size // 8] |= 1 << at // page_size % 8
        return bytes(bits)

    def told_report(self, iova, length, page_size):
        """The page size that is told, and the bitmap."""
        bits = self.report(iova, length, page_size)
        if not self.report_page or not bits:
            return page_size, bits
        other = bytearray(len(bits))
        for page in range(length // page_size):
            if bits[page // 8] >> page % 8 & 1:
                large = page * page_size // self.report_page
                other[large // 8] |= 1 << large % 8
        return self.report_page, bytes(other)

    # --- state ---

    def stream(self):
        """All that a migration carries: the content, and the DMA's place."""
        return b"" if self.blank else self.content + self.bar + struct.pack("=Q", self.seq)

    def fresh_bar(self):
        return bytearray(struct.pack("=I", self.bar_id) + bytes(self.bar_bytes - 4))

    def take_stream(self, data):
        """At the destination. -EINVAL when it is not whole."""
        if len(data) != self.size + self.bar_bytes + 8:
            raise Refuse(errno.EINVAL)
        self.content, self.bar = data[:self.size], bytearray(data[self.size:-8])
        self.seq = struct.unpack("=Q", data[-8:])[0]
        self.loaded_seq = self.seq

    def fails(self, arc):
        """Raises when this change is to fail."""
        how = self.fail.get(arc)
        if how and how[1]:
            how[1] -= 1
            raise Refuse(how[0])

    def silent(self):
        if self.answers_once:
            self.answers_once = False
            raise Silence()

    def on_reset(self, payload, fds):
        if self.reset_refused():
            raise Refuse(errno.EINVAL)
        self.command = 0
        self.forget_data()
        self.bar = self.fresh_bar()
        if not self.reset_leaves_state:
            self.unspoken = self.reset_stale
            self.reset_state()
        return b""

    # --- regions ---

    def region_read(self, payload, fds):
        offset, index, count = struct.unpack_from("=QII", payload)
        if count == 0:
            self.complaints.append("an access of nothing")
            return b"" if self.zero_count_header else payload[:16]
        if offset + count > self.region_size(index):
            raise Refuse(errno.EINVAL)
        if index == CONFIG:
            config = bytearray(256)
            config[:4], config[4:6] = b"\x34\x12\x78\x56", struct.pack("=H", self.command)
            return payload[:16] + bytes(config[offset:offset + count])
        if index == 0:
            return payload[:16] + bytes(self.bar[offset:offset + count])
        return payload[:16] + self.read_register(index, offset, count)

    def region_write(self, payload, fds):
        offset, index, count = struct.unpack_from("=QII", payload)
        if offset + count > self.region_size(index) or len(payload) != 16 + count:
            raise Refuse(errno.EINVAL)
        if index == CONFIG:
            if offset == 4:
                self.command = struct.unpack_from("=H", payload, 16)[0]
            return payload[:16]
        if index == 0:
            self.bar[offset:offset + count] = payload[16:]
            return payload[:16]
        took = self.write_register(index, offset, payload[16:])
        return payload[:12] + struct.pack("=I", count if took is None else took)

    def read_register(self, index, offset, count):
        return bytes(count)

    def write_register(self, index, offset, data):
        return None

    def feature(self, payload, fds):
        raise Refuse(errno.EINVAL)

    def dirty_pages(self, payload, fds):
        raise Refuse(errno.EINVAL)

    def data_read(self, payload, fds):
        raise Refuse(errno.EINVAL)

    def data_write(self, payload, fds):
        raise Refuse(errno.EINVAL)
