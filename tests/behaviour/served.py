# SPDX-License-Identifier: BSD-3-Clause
"""A running `vfmig device` and what can be seen of it from outside."""
import os
import pathlib
import signal
import struct
import subprocess
import time

import wire

VFMIG = os.environ["VFMIG"]
SCRATCH = 0x20  # register of the dma device, 8 bytes


class Served:
    def __init__(self, folder, number, kind, *options):
        self.path = folder / f"{number}.sock"
        self.log = folder / f"{number}.log"
        self.kind = kind
        self.clients = []
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                [VFMIG, "device", kind, "--socket", str(self.path), *options], stdout=out,
                stderr=out, stdin=subprocess.DEVNULL)
        end = time.monotonic() + wire.PATIENCE
        while not self._is_listening():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "the device does not listen"
            time.sleep(0.01)
        self.plain_fds = self._fresh()

    def _is_listening(self):
        with open("/proc/net/unix") as table:
            rows = (line.split() for line in table)
            return any(row[-1] == str(self.path) and row[3] == "00010000" for row in rows)

    def connect(self, **kwargs):
        client = wire.Client(self.path, **kwargs)
        self.clients.append(client)
        return client

    def open_fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def mapped_pages(self):
        """Pages of a client's memory that the server has mapped."""
        total = 0
        for line in pathlib.Path(f"/proc/{self.process.pid}/maps").read_text().splitlines():
            if "/memfd:guest" in line:
                start, end = line.split()[0].split("-")
                total += int(end, 16) - int(start, 16)
        return total // 4096

    def _fresh(self):
        client = wire.Client(self.path)
        info = client.ok(wire.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0))
        assert info[:8] == struct.pack("=II", 16, 3)
        assert client.state() == 2 and client.bits() == 1
        if self.kind == "dma":
            assert client.read(wire.BAR0, SCRATCH, 8) == bytes(8)
        client.fails(22, wire.FEATURE, wire.log_report(0, 4096, 4096))
        assert self.mapped_pages() == 0
        fds = self.open_fds()
        client.close()
        return fds

    def assert_fresh(self):
        """The server lives, and the next client finds nothing of the last one: neither state nor
        mappings, eventfds or sockets."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        assert self.process.poll() is None, self.log.read_text()
        fds = self._fresh()
        assert fds == self.plain_fds, f"{fds - self.plain_fds} descriptors have leaked"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(wire.PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
        text = self.log.read_text()
        assert code == 0 and text == "", f"ended with {code}: {text}"
