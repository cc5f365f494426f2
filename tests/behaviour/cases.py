# SPDX-License-Identifier: BSD-3-Clause
"""One good message of every type, and some that are refused, each with what must come before it."""
import errno
import os
import struct

import guest
import wire

IOVA = 0x100000


class Case:
    """prepare(client, memory) on a fresh connection, then the message. The reply's payload is
    comparable up to `same` bytes (the rest of it is different every time, but for its length)."""

    def __init__(self, name, command, payload=b"", prepare=None, fds=None, wanted=0, same=1 << 30):
        self.name, self.command, self.payload = name, command, payload
        self.prepare = prepare or (lambda client, memory: None)
        self.fds = fds or (lambda memory: [])
        self.wanted = wanted
        self.same = same

    def bytes(self, ident=77, flags=wire.COMMAND):
        return wire.header(ident, self.command, len(self.payload), flags) + self.payload

    def essence(self, reply):
        """What two replies to the same message have in common."""
        return reply.id, reply.command, reply.flags, reply.error, len(reply.payload), \
            reply.payload[:self.same], len(reply.fds)


class Eventfds:
    """Descriptors that live as long as the test process needs them."""
    one = os.eventfd(0, os.EFD_NONBLOCK)


def mapped(client, memory):
    guest.map_memory(client, memory, IOVA)


def logged(client, memory):
    mapped(client, memory)
    client.ok(wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START))


def logged_v2(client, memory):
    mapped(client, memory)
    client.ok(wire.FEATURE, wire.log_start(4096))


def state(value):
    def prepare(client, memory):
        assert client.set_state(value) == 0
    return prepare


def written(client, memory):
    assert client.set_state(4) == 0
    client.write(wire.MIGRATION, 4096, b"VDS1")


SIZE = 64 * 4096
BITMAP = wire.bitmap_bytes(SIZE, 4096)
INFO = struct.pack("=IIII", 16, 0, 0, 0)
REGION_INFO = struct.pack("=IIIIQQ", 256, 0, wire.MIGRATION, 0, 0, 0)
RANGES = [(IOVA, 4096), (IOVA + 8192, 8192)]

CASES = [
    Case("map-with-descriptor", wire.DMA_MAP, wire.dma_map(IOVA, SIZE), fds=lambda m: [m.fd]),
    Case("map-without-descriptor", wire.DMA_MAP, wire.dma_map(IOVA, SIZE)),
    Case("map-refused", wire.DMA_MAP, wire.dma_map(IOVA, 4096), mapped, wanted=errno.EEXIST,
         fds=lambda m: [m.fd]),
    Case("unmap", wire.DMA_UNMAP, wire.dma_unmap(IOVA, SIZE), mapped),
    Case("unmap-all", wire.DMA_UNMAP, wire.dma_unmap(0, 0, wire.UNMAP_ALL), mapped),
    Case("unmap-bitmap", wire.DMA_UNMAP, wire.dma_unmap(
        IOVA, SIZE, wire.UNMAP_BITMAP, 40 + BITMAP, (4096, BITMAP)), logged),
    Case("unmap-refused", wire.DMA_UNMAP, wire.dma_unmap(IOVA, 4096), mapped, wanted=errno.ENOENT),
    Case("get-info", wire.GET_INFO, INFO),
    Case("region-info", wire.GET_REGION_INFO, REGION_INFO),
    Case("region-io-fds", wire.GET_REGION_IO_FDS, INFO),
    Case("irq-info", wire.GET_IRQ_INFO, struct.pack("=IIII", 16, 0, wire.MSIX, 0)),
    Case("irqs-eventfd", wire.SET_IRQS, wire.set_irqs(wire.DATA_EVENTFD | wire.TRIGGER, 1, 1),
         fds=lambda m: [Eventfds.one]),
    Case("irqs-bool", wire.SET_IRQS,
         wire.set_irqs(wire.DATA_BOOL | wire.TRIGGER, 0, 4, bools=b"\1\0\1\0")),
    Case("irqs-disable", wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 0, 0)),
    Case("irqs-refused", wire.SET_IRQS, wire.set_irqs(wire.DATA_NONE | wire.TRIGGER, 4, 1),
         wanted=errno.EINVAL),
    Case("read", wire.REGION_READ, wire.region(0, wire.BAR0, 64)),
    Case("write", wire.REGION_WRITE, wire.region(guest.SCRATCH, wire.BAR0, 8, b"scratchy")),
    Case("write-config", wire.REGION_WRITE, wire.region(4, wire.CONFIG, 2, b"\6\0")),
    Case("write-state", wire.REGION_WRITE, wire.region(0, wire.MIGRATION, 4, b"\2\0\0\0")),
    Case("write-window", wire.REGION_WRITE, wire.region(4096, wire.MIGRATION, 8, b"portions"), state(4)),
    Case("write-data-size", wire.REGION_WRITE, wire.region(24, wire.MIGRATION, 8, b"\4" + bytes(7)),
         written),
    Case("read-pending", wire.REGION_READ, wire.region(8, wire.MIGRATION, 8), state(3)),
    Case("read-refused", wire.REGION_READ, wire.region(guest.BAR_SIZE, wire.BAR0, 1),
         wanted=errno.EINVAL),
    Case("reset", wire.RESET, prepare=state(3)),
    Case("dirty-start", wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START), mapped),
    Case("dirty-stop", wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_STOP), logged),
    Case("dirty-get", wire.DIRTY_PAGES,
         wire.dirty_pages(wire.DIRTY_GET, IOVA, SIZE, 4096, BITMAP, 40 + BITMAP), logged),
    Case("write-multi", wire.REGION_WRITE_MULTI,
         struct.pack("=QQII8s", 1, guest.SCRATCH, wire.BAR0, 8, b"multiply"), wanted=errno.EOPNOTSUPP),
    Case("feature-migration", wire.FEATURE, wire.feature(wire.F_GET | wire.F_MIGRATION, argsz=16)),
    Case("feature-state", wire.FEATURE, wire.feature(wire.F_GET | wire.F_STATE, argsz=16)),
    Case("feature-set-state", wire.FEATURE, wire.set_state(3)),
    Case("feature-refused", wire.FEATURE, wire.set_state(8), wanted=errno.EINVAL),
    Case("feature-probe", wire.FEATURE, wire.feature(wire.F_PROBE | wire.F_SET | wire.F_STATE)),
    Case("log-start", wire.FEATURE, wire.log_start(4096, RANGES), mapped),
    Case("log-stop", wire.FEATURE, wire.feature(wire.F_SET | wire.F_LOG_STOP), logged_v2),
    Case("log-report", wire.FEATURE, wire.log_report(IOVA, SIZE, 4096), logged_v2),
    Case("data-read", wire.MIG_DATA_READ, wire.mig_data(100), state(3), same=8),
    Case("data-write", wire.MIG_DATA_WRITE, wire.mig_data(4, b"VDS1"), state(4)),
    Case("unknown", 19, b"whatever", wanted=errno.EOPNOTSUPP),
]
assert {case.command for case in CASES} >= set(wire.CLIENT_COMMANDS)


def run(client, memory, case, send):
    """The reply, and what the device looks like afterwards."""
    case.prepare(client, memory)
    send(case.bytes(), case.fds(memory))
    reply = client.await_reply(77)
    assert reply.error == case.wanted, f"{case.name}: {os.strerror(reply.error)}"
    return case.essence(reply), client.state(), client.bits(), \
        client.read(wire.BAR0, guest.SCRATCH, 8), client.read(wire.CONFIG, 0, 256)
