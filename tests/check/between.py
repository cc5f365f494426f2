# SPDX-License-Identifier: BSD-3-Clause
"""Between a client and a device: passes on everything, and once does something else instead."""
import contextlib
import random
import socket
import struct
import threading

RESET, DMA_READ = 13, 11
NO_REPLY = 0x10
HEADER = 16
FLOOD = 70000  # more than the checker puts up with


def hang(client, device, message):
    """Nobody ever hears of it."""


def die(client, device, message):
    for end in (client, device):
        end.shutdown(socket.SHUT_RDWR)


def nonsense(client, device, message):
    client.sendall(random.Random(1).randbytes(64))


def other_reply(client, device, message):
    number, command = struct.unpack("=HH", message[:4])
    client.sendall(struct.pack("=HHIII", number ^ 1, command, HEADER, 1, 0))


def byte_by_byte(client, device, message):
    """As a device that begins to answer and does not get on with it."""
    number, command = struct.unpack("=HH", message[:4])
    for byte in struct.pack("=HHIII", number, command, HEADER, 1, 0)[:-1]:
        client.sendall(bytes([byte]))


def flood(client, device, message):
    command = struct.pack("=HHIIIQQ", 1, DMA_READ, HEADER + 16, NO_REPLY, 0, 0x1000, 8)
    client.sendall(command * FLOOD)


class Between:
    """Listens at path; the first RESET of all clients meets the fault."""

    def __init__(self, path, device, fault):
        self.path, self.device, self.fault = path, device, fault
        self.due = True
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join()

    def _accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            device = socket.socket(socket.AF_UNIX)
            device.connect(str(self.device))
            for work in (self._from_client, self._from_device):
                thread = threading.Thread(target=self._until_gone, args=(work, client, device), daemon=True)
                self.threads.append(thread)
                thread.start()

    @staticmethod
    def _until_gone(work, client, device):
        with contextlib.suppress(OSError):
            work(client, device)
        for end in (client, device):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _from_device(self, client, device):
        while True:
            data, fds, _, _ = socket.recv_fds(device, 1 << 20, 16)
            if not data:
                return
            self._send(client, data, fds)

    def _from_client(self, client, device):
        held, held_fds = b"", []
        while True:
            data, fds, _, _ = socket.recv_fds(client, 1 << 20, 16)
            if not data:
                return
            held += data
            held_fds += fds
            while len(held) >= HEADER and len(held) >= struct.unpack("=I", held[4:8])[0]:
                size = struct.unpack("=I", held[4:8])[0]
                message, held = held[:size], held[size:]
                if self.due and struct.unpack("=H", message[2:4])[0] == RESET:
                    self.due = False
                    self.fault(client, device, message)
                else:
                    self._send(device, message, held_fds)
                    held_fds = []

    @staticmethod
    def _send(end, data, fds):
        if fds:
            sent = socket.send_fds(end, [data], fds)
            data = data[sent:]
            for fd in fds:
                socket.close(fd)
        end.sendall(data)
