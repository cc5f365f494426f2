# SPDX-License-Identifier: BSD-3-Clause
"""A vfio-user client of its own, as small as the protocol allows: socket, struct, SCM_RIGHTS. It
shares nothing with the C client, so that the two cannot be wrong in the same way."""
import array
import collections
import errno
import fcntl
import json
import os
import socket
import struct
import termios

PATIENCE = 60  # seconds; only ends a test that has failed already

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO = range(1, 8)
SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET, DIRTY_PAGES = range(8, 15)
REGION_WRITE_MULTI, FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = range(15, 19)
CLIENT_COMMANDS = (DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO,
                   SET_IRQS, REGION_READ, REGION_WRITE, RESET, DIRTY_PAGES, FEATURE, MIG_DATA_READ,
                   MIG_DATA_WRITE)

COMMAND, REPLY, TYPE_MASK, NO_REPLY, ERROR = 0, 1, 0xF, 0x10, 0x20
HEADER = 16

F_GET, F_SET, F_PROBE = 0x10000, 0x20000, 0x40000
F_MIGRATION, F_STATE, F_LOG_START, F_LOG_STOP, F_LOG_REPORT = 1, 2, 6, 7, 8

BAR0, CONFIG, MIGRATION = 0, 7, 9
MSIX = 2
DATA_NONE, DATA_BOOL, DATA_EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
MAP_READ, MAP_WRITE = 1, 2
UNMAP_BITMAP, UNMAP_ALL = 1, 2
DIRTY_START, DIRTY_STOP, DIRTY_GET = 1, 2, 4

QEMU_CAPS = {"capabilities": {
    "max_msg_fds": 16, "max_data_xfer_size": 1048576, "max_dma_maps": 65535, "pgsizes": 4096,
    "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "write_multiple": True}}
TWIN_CAPS = {"capabilities": {"max_msg_fds": 8, "twin_socket": {"supported": True}}}

Message = collections.namedtuple("Message", "id command flags error payload fds")


def header(ident, command, payload_size, flags=COMMAND, error=0):
    return struct.pack("=HHIII", ident, command, HEADER + payload_size, flags, error)


def version_payload(major=0, minor=0, caps=QEMU_CAPS):
    """caps: an object, or bytes to be sent as they are."""
    text = caps if isinstance(caps, bytes) else json.dumps(caps, separators=(",", ":")).encode() + b"\0"
    return struct.pack("=HH", major, minor) + text


def region(offset, index, count, data=b""):
    return struct.pack("=QII", offset, index, count) + data


def dma_map(address, size, flags=MAP_READ | MAP_WRITE, offset=0, argsz=32):
    return struct.pack("=IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(address, size, flags=0, argsz=24, bitmap=None):
    """bitmap: (page size, bytes of bitmap)."""
    tail = struct.pack("=QQ", *bitmap) if bitmap else b""
    return struct.pack("=IIQQ", argsz, flags, address, size) + tail


def set_irqs(flags, start, count, index=MSIX, bools=b"", argsz=20):
    return struct.pack("=IIIII", argsz, flags, index, start, count) + bools


def feature(flags, data=b"", argsz=None):
    return struct.pack("=II", 8 + len(data) if argsz is None else argsz, flags) + data


def set_state(value):
    return feature(F_SET | F_STATE, struct.pack("=II", value, 0))


def log_start(page_size, ranges=()):
    return feature(F_SET | F_LOG_START, struct.pack("=QII", page_size, len(ranges), 0) +
                   b"".join(struct.pack("=QQ", *one) for one in ranges))


def log_report(iova, length, page_size, argsz=1 << 20):
    return feature(F_GET | F_LOG_REPORT, struct.pack("=QQQ", iova, length, page_size), argsz)


def dirty_pages(flags, iova=None, length=0, page_size=4096, size=0, argsz=8):
    tail = b"" if iova is None else struct.pack("=QQQQ", iova, length, page_size, size)
    return struct.pack("=II", argsz, flags) + tail


def mig_data(size, data=b"", argsz=None):
    return struct.pack("=II", 8 + size if argsz is None else argsz, size) + data


def bitmap_bytes(length, page_size):
    pages = -(-length // page_size)
    return -(-pages // 64) * 8


def bits_of(bitmap):
    """Numbers of the bits that are set."""
    return {8 * at + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1}


class Closed(Exception):
    """The server has closed the connection."""


class Link:
    """One stream socket: whole messages, with their descriptors."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(PATIENCE)

    def send(self, data, fds=()):
        """All of it; the descriptors go with the first byte."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([data], ancillary)
        if sent < len(data):
            self.sock.sendall(data[sent:])

    def send_piece(self, data, fds=()):
        """Sends, and waits until the server has taken it out of the socket."""
        self.send(data, fds)
        left = array.array("i", [1])
        while left[0]:
            fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, left)
            os.sched_yield()

    def _read(self, size, fds):
        data = b""
        while len(data) < size:
            try:
                piece, ancillary, flags, _ = self.sock.recvmsg(size - len(data), socket.CMSG_SPACE(64))
            except (ConnectionResetError, BrokenPipeError):
                piece, ancillary, flags = b"", [], 0
            if not piece:
                raise Closed(f"after {len(data)} of {size} bytes")
            assert not flags & socket.MSG_CTRUNC
            for level, kind, content in ancillary:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                fds.extend(array.array("i", content))
            data += piece
        return data

    def receive(self):
        fds = []
        ident, command, size, flags, error = struct.unpack("=HHIII", self._read(HEADER, fds))
        assert size >= HEADER
        payload = self._read(size - HEADER, fds)
        return Message(ident, command, flags, error, payload, fds)

    def is_silent(self):
        """Nothing has come; only meaningful after an answer to something later."""
        self.sock.setblocking(False)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) is None
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(PATIENCE)

    def assert_closed(self):
        try:
            message = self.receive()
        except Closed:
            return
        raise AssertionError(f"still open, and said {message}")

    def close(self):
        self.sock.close()


class Client(Link):
    """A client that has agreed on a version, unless told otherwise."""

    def __init__(self, path, caps=QEMU_CAPS, negotiate=True):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        super().__init__(sock)
        sock.connect(str(path))
        self.next_id = 0
        self.twin = None
        self.on_command = None  # answers the server's commands: callable(message)
        if negotiate:
            self.agreed = self.agree(caps)

    def agree(self, caps):
        reply = self.call(VERSION, version_payload(caps=caps))
        assert reply.error == 0 and reply.flags == REPLY, os.strerror(reply.error)
        text = json.loads(reply.payload[4:-1])["capabilities"]
        twin = text.get("twin_socket", {})
        if twin.get("supported"):
            self.twin = Link(socket.socket(fileno=reply.fds.pop(twin["fd_index"])))
        assert not reply.fds
        return text

    def command(self, command, payload=b"", flags=COMMAND, fds=()):
        """Sends a command; its id."""
        self.next_id = self.next_id % 0xFFFF + 1
        self.send(header(self.next_id, command, len(payload), flags) + payload, fds)
        return self.next_id

    def next_reply(self):
        """The next reply; commands of the server that come before it are served."""
        while True:
            message = self.receive()
            if message.flags & TYPE_MASK == REPLY:
                return message
            assert self.on_command, f"unexpected {message}"
            self.on_command(message)

    def await_reply(self, ident):
        reply = self.next_reply()
        assert reply.id == ident, reply
        return reply

    def call(self, command, payload=b"", fds=()):
        ident = self.command(command, payload, fds=fds)
        reply = self.await_reply(ident)
        assert reply.command == command
        return reply

    def ok(self, command, payload=b"", fds=()):
        """The payload of a reply that must be a success."""
        reply = self.call(command, payload, fds)
        assert reply.flags == REPLY and reply.error == 0, \
            f"command {command}: {os.strerror(reply.error)}"
        return reply.payload

    def fails(self, wanted, command, payload=b"", fds=()):
        """The command is refused with exactly this errno, by a bare header."""
        assert_error(self.call(command, payload, fds), wanted)

    # what most tests need

    def read(self, index, offset, count):
        payload = self.ok(REGION_READ, region(offset, index, count))
        assert payload[:16] == region(offset, index, count) and len(payload) == 16 + count
        return payload[16:]

    def write(self, index, offset, data):
        echo = self.ok(REGION_WRITE, region(offset, index, len(data), data))
        assert echo == region(offset, index, len(data))

    def read_int(self, index, offset, size):
        return int.from_bytes(self.read(index, offset, size), "little")

    def write_int(self, index, offset, size, value):
        self.write(index, offset, value.to_bytes(size, "little"))

    def state(self):
        """v2 device_state."""
        payload = self.ok(FEATURE, feature(F_GET | F_STATE, argsz=16))
        assert len(payload) == 16
        return struct.unpack_from("=I", payload, 8)[0]

    def bits(self):
        """v1 device_state."""
        return self.read_int(MIGRATION, 0, 4)

    def set_state(self, value):
        """0, or the errno of the refusal."""
        reply = self.call(FEATURE, set_state(value))
        assert reply.error or reply.payload == set_state(value)
        return reply.error

    def set_bits(self, value):
        payload = region(0, MIGRATION, 4, struct.pack("=I", value))
        reply = self.call(REGION_WRITE, payload)
        assert reply.error or reply.payload == payload[:16]
        return reply.error

    def reset(self):
        assert self.ok(RESET) == b""

    def read_all_data(self, size=65536):
        """The data stream up to its end, or in pre-copy up to what there is now."""
        stream = b""
        while True:
            argsz, got = struct.unpack_from("=II", payload := self.ok(MIG_DATA_READ, mig_data(size)))
            assert argsz == 8 + got and got <= size
            stream += payload[8:8 + got]
            if got < size:
                return stream

    def write_data(self, stream, size=65536):
        for at in range(0, len(stream), size):
            piece = stream[at:at + size]
            assert self.ok(MIG_DATA_WRITE, mig_data(len(piece), piece)) == b""

    def report(self, iova, length, page_size=4096):
        """Numbers of the dirty pages, by the feature dialect."""
        payload = self.ok(FEATURE, log_report(iova, length, page_size))
        bitmap = payload[32:]
        assert payload[8:32] == struct.pack("=QQQ", iova, length, page_size)
        assert len(bitmap) == bitmap_bytes(length, page_size)
        return bits_of(bitmap)

    def close(self):
        if self.twin:
            self.twin.close()
        super().close()


def assert_error(reply, wanted):
    assert reply.flags == REPLY | ERROR and reply.payload == b"", reply
    assert reply.error == wanted, \
        f"{os.strerror(reply.error)} instead of {errno.errorcode.get(wanted, wanted)}"
