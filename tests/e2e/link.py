# SPDX-License-Identifier: BSD-3-Clause
"""Links between two VMMs that can be cut and stalled: a proxy, and two network namespaces."""
import os
import select
import socket
import struct
import subprocess
import threading

CHUNK = 1 << 16


def reset(sock):
    """Closes it so that the peer sees a reset where the kind of socket knows one."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Proxy:
    """From a TCP port of this host to the destination's unix socket. cut(): every connection is reset, and
    new ones are until heal(); stall(): nothing moves until heal(), and nobody is told."""

    words = ()  # what both sides have to be told, besides

    def __init__(self, path):
        self.path = str(path)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = "tcp:127.0.0.1:{}".format(self.listener.getsockname()[1])
        self.incoming = f"unix:{path}"
        self.peers = {}  # each socket: the other end's
        self.pending = {}  # each socket that takes no more just now: what is to be sent to it
        self.is_cut, self.is_stalled, self.ends = False, False, False
        self.wake, self.waker = socket.socketpair()
        self.changed = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def prefix(self, _):
        return ()

    def _close(self, sock):
        other = self.peers.pop(sock)
        self.peers.pop(other, None)
        for each in (sock, other):
            self.pending.pop(each, None)
            reset(each)

    def _accept(self):
        client, _ = self.listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            if self.is_cut:
                raise ConnectionError("cut")
            server.connect(self.path)
        except OSError:
            reset(client)
            server.close()
            return
        self.peers[client], self.peers[server] = server, client

    def _relay(self, sock):
        try:
            data = sock.recv(CHUNK)
        except OSError:
            data = b""
        if data:
            self.pending[self.peers[sock]] = data
            self._send(self.peers[sock])
        else:
            self._close(sock)

    def _send(self, sock):
        """What it takes. Nobody waits here: whoever stands still takes nothing, and is to be cut off then."""
        data = self.pending.pop(sock)
        try:
            data = data[sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL):]
        except BlockingIOError:
            pass
        except OSError:
            self._close(sock)
            return
        if data:
            self.pending[sock] = data

    def _run(self):
        while not self.ends:
            readers, writers = [self.wake], []
            if not self.is_stalled:
                readers += [self.listener, *(sock for sock, other in self.peers.items() if other not in self.pending)]
                writers = list(self.pending)
            ready, writable, _ = select.select(readers, writers, [])
            if self.wake in ready:
                self.wake.recv(CHUNK)
                if self.is_cut or self.ends:
                    for sock in list(self.peers):
                        if sock in self.peers:
                            self._close(sock)
                self.changed.set()
                continue
            for sock in ready:
                if sock is self.listener:
                    self._accept()
                elif sock in self.peers:
                    self._relay(sock)
            for sock in writable:
                if sock in self.pending:
                    self._send(sock)
        self.listener.close()

    def _change(self, **what):
        self.changed.clear()
        self.__dict__.update(what)
        self.waker.send(b"x")
        self.changed.wait()

    def cut(self):
        self._change(is_cut=True)

    def stall(self):
        self._change(is_stalled=True)

    def heal(self):
        self._change(is_cut=False, is_stalled=False)

    def close(self):
        self._change(ends=True, is_stalled=False)
        self.thread.join()
        self.wake.close()
        self.waker.close()


def run(*command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


class Namespaces:
    """Each VMM in a network of its own, with a pair of virtual cards in between. cut(): the card of the
    source goes down; stall(): packets vanish in the given directions, a queue that keeps nothing."""
    PORT = 4444
    words = ("--plaintext",)  # its addresses are not of this host

    def __init__(self, name):
        self.names = {"source": f"{name}s", "destination": f"{name}d"}
        self.uri = self.incoming = f"tcp:10.97.0.2:{self.PORT}"
        here, there = self.names.values()
        try:
            for command in (("netns", "add", here), ("netns", "add", there),
                            ("-n", here, "link", "add", "card", "type", "veth", "peer", "name", "card", "netns", there)):
                self._ip(*command)
            for i, each in enumerate((here, there)):
                self._ip("-n", each, "addr", "add", f"10.97.0.{i + 1}/24", "dev", "card")
                self._ip("-n", each, "link", "set", "card", "up")
        except (OSError, subprocess.CalledProcessError):
            self.close()
            raise

    @staticmethod
    def _ip(*command):
        subprocess.run(["ip", *command], check=True, stderr=subprocess.DEVNULL)

    def prefix(self, side):
        return ("ip", "netns", "exec", self.names[side])

    def cut(self):
        self._ip("-n", self.names["source"], "link", "set", "card", "down")

    def stall(self, sides=("source", "destination")):
        for side in sides:
            subprocess.run(["tc", "-n", self.names[side], "qdisc", "replace", "dev", "card", "root", "blackhole"],
                           check=True, stderr=subprocess.DEVNULL)

    def heal(self):
        for side in self.names:
            run("tc", "-n", self.names[side], "qdisc", "del", "dev", "card", "root")
        self._ip("-n", self.names["source"], "link", "set", "card", "up")

    def close(self):
        for name in self.names.values():
            run("ip", "netns", "del", name)


def can_have_namespaces():
    if os.geteuid():
        return False
    try:
        link = Namespaces(f"vfmig{os.getpid()}t")
    except (OSError, subprocess.CalledProcessError):
        return False
    try:
        link.stall()
        return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        link.close()
