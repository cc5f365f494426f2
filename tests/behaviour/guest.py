# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory, and a driver for the dma device."""
import mmap
import os
import struct

import wire

STAMP = 0x1122334455667788
PAGE = 4096

CTRL, RING, ENTRIES, TAIL, HEAD, ERRORS, SCRATCH, IRQS = 0x4, 0x8, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x28
MSIX_TABLE, MSIX_PBA, SRAM = 0x8000, 0x9000, 0x10000
BAR_SIZE, VECTORS = 0x20000, 4
NOP, COPY, FILL, CRC, SRAM_LOAD, SRAM_STORE = range(6)
IRQ = 1
DONE = 0x80000000
DESC = struct.Struct("=IIQQIIQIIQQ")


class Memory:
    """A memfd that both sides can map."""

    def __init__(self, size):
        self.size = size
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.view = mmap.mmap(self.fd, size)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.view.close()
        os.close(self.fd)

    def __getitem__(self, where):
        return self.view[where]

    def __setitem__(self, where, value):
        self.view[where] = value


def map_memory(client, memory, iova, size=None, offset=0, flags=wire.MAP_READ | wire.MAP_WRITE):
    size = memory.size - offset if size is None else size
    assert client.ok(wire.DMA_MAP, wire.dma_map(iova, size, flags, offset), fds=[memory.fd]) == b""


class Driver:
    """One descriptor at a time, from a ring of 16 in `ring`, a Memory mapped at `iova`."""

    def __init__(self, client, ring, iova, at=0):
        self.client, self.ring, self.iova, self.at = client, ring, iova, at
        self.enable()

    def enable(self):
        self.tail = 0
        for offset, size, value in ((CTRL, 4, 0), (RING, 8, self.iova), (ENTRIES, 4, 16), (CTRL, 4, 1)):
            self.client.write_int(wire.BAR0, offset, size, value)

    def queue(self, op, src=0, dst=0, length=0, pattern=0, vector=None, cookie=0):
        """The bytes go to the ring; the bell is not rung."""
        flags = 0 if vector is None else IRQ
        self.slot = self.at + self.tail % 16 * DESC.size
        self.tail += 1
        desc = DESC.pack(op, flags, src, dst, length, vector or 0, pattern, 0, 0, 0, cookie)
        self.ring[self.slot:self.slot + DESC.size] = desc

    def ring_bell(self):
        self.client.write_int(wire.BAR0, TAIL, 4, self.tail)

    def result(self):
        """(status, result, serial) of the last descriptor."""
        return DESC.unpack(self.ring[self.slot:self.slot + DESC.size])[7:10]

    def run(self, op, **kwargs):
        """Status of a descriptor whose memory is all mapped: it is done when the bell is answered."""
        self.queue(op, **kwargs)
        self.ring_bell()
        assert self.client.read_int(wire.BAR0, HEAD, 4) == self.tail
        status = self.result()[0]
        assert status & DONE
        return status & ~DONE


def filled(pattern, length):
    """What FILL writes."""
    words = -(-length // 8)
    return b"".join(struct.pack("=Q", pattern + i) for i in range(words))[:length]


class Vectors:
    """An eventfd for each vector of the dma device."""

    def __init__(self, client):
        self.client = client
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(VECTORS)]

    def attach(self, start, count):
        client = self.client
        assert client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_EVENTFD | wire.TRIGGER, start, count),
                         self.fds[start:start + count]) == b""

    def fire(self, start=0, count=VECTORS):
        self.client.ok(wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, start, count))

    def taken(self):
        """How often each vector was signalled since the last call."""
        counts = []
        for fd in self.fds:
            try:
                counts.append(os.eventfd_read(fd))
            except BlockingIOError:
                counts.append(0)
        return counts

    def close(self):
        for fd in self.fds:
            os.close(fd)
