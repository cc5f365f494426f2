# SPDX-License-Identifier: BSD-3-Clause
"""The migration stream as docs/stream-format.md has it, for a peer that is played by a test."""
import functools
import os
import socket
import struct

MAGIC = 0x52464d56
REQUIRED = 1
TAGS = {"HELLO": 1, "IDENTITY": 2, "VERDICT": 3, "MEMORY": 4, "ZERO": 5, "ROUND": 6, "DEVDATA": 7,
        "DEVEND": 8, "VMSTATE": 9, "HANDOVER": 10, "PROGRESS": 11, "PING": 12, "PONG": 13,
        "ERROR": 14, "BYE": 15, "CREDIT": 17, "RAMFDS": 18}
OPTIONAL = ("PROGRESS", "PING", "PONG", "CREDIT")
MESSAGES = {"OFFER": 1, "SEAL": 2, "READY": 3, "GRANT": 4, "RUNNING": 5, "REFUSED": 6, "ABORT": 7,
            "RELEASED": 8, "QUERY": 9, "OUTCOME": 10}
HEAD_BYTES = 40
PATIENCE = 60


def crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc_table()


@functools.lru_cache(16)
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff


def last_page(data):
    """Where the last byte of memory is, in a stream of one channel: no later copy of its page makes up for it."""
    head = data.rfind(struct.pack("<IHH8s", MAGIC, TAGS["MEMORY"], REQUIRED, b"MEMORY"))
    return head + HEAD_BYTES + struct.unpack_from("<I", data, head + 24)[0] - 1


class Closed(Exception):
    pass


class Channel:
    """One connection; index and sequence numbers are kept, so that records are right by default."""

    def __init__(self, connection, index):
        self.socket, self.index = connection, index
        self.sent = 0
        connection.settimeout(PATIENCE)

    def record(self, name, payload=b"", covered=None):
        """As bytes. covered: what the payload's CRC is over, when it is not all of it."""
        flags = 0 if name in OPTIONAL else REQUIRED
        crc = crc32c(payload if covered is None else covered)
        head = struct.pack("<IHH8sQIII", MAGIC, TAGS[name], flags, name.encode(), self.sent,
                           len(payload), crc, self.index)
        self.sent += 1
        return head + struct.pack("<I", crc32c(head)) + payload

    def send(self, name, payload=b"", **kwargs):
        self.socket.sendall(self.record(name, payload, **kwargs))

    def take(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise Closed
            data += piece
        return data

    def receive(self):
        head = self.take(HEAD_BYTES)
        return head[8:16].rstrip(b"\0").decode(), self.take(struct.unpack_from("<I", head, 24)[0])

    def expect(self, name):
        """The next record of that name; what comes before is passed over."""
        while True:
            got, payload = self.receive()
            if got == name:
                return payload

    def message(self, kind, migration, record=0, memory=1, epoch=1):
        self.send("HANDOVER", migration + struct.pack("<IBBBB", epoch, MESSAGES[kind], record, memory, 0))


def hello(migration, token, channel, count):
    return struct.pack("<II16s16sIIII", 1, 1, migration, token, channel, count, 4096, 0)


def connect(path, count=1, migration=None):
    """A source's connections, greeted: the channels and the migration's id."""
    migration = migration or os.urandom(16)
    token, channels = bytes(16), []
    for index in range(count):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        channel = Channel(connection, index)
        channel.send("HELLO", hello(migration, token, index, count))
        token = channel.expect("HELLO")[24:40]
        channels.append(channel)
    return channels, migration


def accept(server):
    """A destination's half, for one channel or more: the channels, the id, the source's identity."""
    channels, count = [], 1
    while len(channels) < count:
        connection, _ = server.accept()
        channel = Channel(connection, len(channels))
        got = channel.expect("HELLO")
        migration, count = got[8:24], struct.unpack_from("<I", got, 44)[0]
        channel.send("HELLO", hello(migration, b"t" * 16, len(channels), count))
        channels.append(channel)
    return channels, migration, channels[0].expect("IDENTITY")


def listen(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    server.settimeout(PATIENCE)
    return server
