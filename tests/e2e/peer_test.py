# SPDX-License-Identifier: BSD-3-Clause
"""Peers that are careless, broken or hostile, and streams that are cut or altered on their way: one
clear sentence, the documented code, the source's guest runs on and the destination waits for the next."""
import socket
import struct
import subprocess
import threading

import pytest

import stream
from world import VFMIG, World, assert_guest_lives, migrate, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
ACCEPTED = struct.pack("<I", 1)


@pytest.fixture
def world():
    with World() as it:
        yield it


def assert_failed(source, code, err, *words):
    assert code == 1, err
    assert err.startswith("vfmig migrate: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    assert source("query-status") == {"running": True, "status": "running"}
    assert_guest_lives(source)


def start_source(world):
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")])
    assert_guest_lives(source)
    return source


def start_migration(world, source, *args):
    return subprocess.Popen([VFMIG, "migrate", "--qmp", str(source.path), "--quiet", *args, world.uri()],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- what a destination can do to a source ---

def refuse(channels, _):
    channels[0].send("VERDICT", struct.pack("<I", 0) + b"the moon is full")


def give_up(channels, _):
    channels[0].send("ERROR", struct.pack("<II", 5, 2) + b"the moon is full")


def say_nonsense(channels, _):
    channels[0].socket.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def answer_with_another_record(channels, _):
    channels[0].send("BYE")


def answer_in_part(channels, _):
    channels[0].socket.sendall(channels[0].record("VERDICT", ACCEPTED)[:20])


def answer_altered(channels, _):
    record = bytearray(channels[0].record("VERDICT", ACCEPTED))
    record[-1] ^= 0x80
    channels[0].socket.sendall(record)


def leave(channels, _):
    pass


def answer_pings(channel, count=8):
    for _ in range(count):
        ping = channel.expect("PING")
        channel.send("PONG", ping + ping)


def accept_and_leave(channels, _):
    channels[0].send("VERDICT", ACCEPTED)
    answer_pings(channels[0])
    channels[0].expect("HANDOVER")


def read_away(channels):
    """Until the source has noticed, and closes."""
    for channel in channels:
        try:
            while channel.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass


def accept_and_say_nonsense(channels, _):
    accept_and_leave(channels, _)
    channels[0].socket.sendall(bytes(64))
    read_away(channels)


def accept_and_send_what_only_sources_send(channels, _):
    accept_and_leave(channels, _)
    channels[0].send("ROUND", bytes(24))
    read_away(channels)


def accept_and_close_one_channel(channels, _):
    accept_and_leave(channels, _)
    channels[1].socket.close()
    read_away(channels[:1])


def claim_to_run_it(channels, migration):
    """RUNNING without a grant: nothing moves, the source has not even stopped."""
    accept_and_leave(channels, migration)
    channels[0].message("RUNNING", migration, record=10)
    channels[0].message("READY", migration, record=7)


@pytest.mark.parametrize("conduct, words", [
    (refuse, ("the destination refuses", "the moon is full")),
    (give_up, ("gave up", "the moon is full")),
    (say_nonsense, ("magic",)),
    (answer_with_another_record, ("BYE",)),
    (answer_in_part, ("in the middle of a record",)),
    (answer_altered, ("altered",)),
    (leave, ("closed",)),
    (accept_and_leave, ("closed",)),
    (accept_and_say_nonsense, ("magic",)),
    (accept_and_send_what_only_sources_send, ("ROUND",)),
    (accept_and_close_one_channel, ("closed",)),
    (claim_to_run_it, ("closed",)),
])
def test_a_destination_that_misbehaves(world, conduct, words):
    source = start_source(world)
    server = stream.listen(world.folder / "move.sock")
    process = start_migration(world, source, "--max-bandwidth", "1M")
    channels, migration, _ = stream.accept(server)
    conduct(channels, migration)
    for channel in channels:
        channel.socket.close()
    server.close()
    _, err = process.communicate(timeout=60)
    assert_failed(source, process.returncode, err, *words)


def test_a_listener_that_speaks_something_else(world):
    source = start_source(world)
    server = stream.listen(world.folder / "move.sock")
    process = start_migration(world, source)
    connection, _ = server.accept()
    connection.sendall(b"220 mail.example.org ESMTP ready, as ever and for everybody\r\n")
    _, err = process.communicate(timeout=60)
    connection.close()
    server.close()
    assert_failed(source, process.returncode, err, "magic")


# --- what a source can do to a destination ---

def learn_identity(world, source):
    """What a source would have to say to be accepted."""
    server = stream.listen(world.folder / "spy.sock")
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", str(source.path), "--quiet",
                                world.uri("spy")], stderr=subprocess.DEVNULL)
    channels, _, identity = stream.accept(server)
    for channel in channels:
        channel.socket.close()
    server.close()
    process.wait(60)
    return identity


def assert_next_one_succeeds(world, source, target):
    def moved():
        result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
        # The end of the last one: it is unwound there, or further connections of it are awaited.
        assert result.returncode == 0 or "another migration is under way" in result.stderr or \
            "closed channel 0 without a BYE" in result.stderr, result.stderr
        return result.returncode == 0
    wait_until(moved, "the next migration")
    assert_guest_lives(target)


@pytest.mark.parametrize("name, payload", [
    ("DEVEND", struct.pack("<IIQQ", 0, 0, 0, 0)),
    ("DEVDATA", struct.pack("<IIQ", 0, 0, 0) + b"x"),
    ("VMSTATE", bytes(64)),
    ("ZERO", struct.pack("<IIIIQ", 1, 1, 0, 1, 0)),
])
def test_one_that_only_asks_cannot_send_data(world, name, payload):
    source = start_source(world)
    target = world.vm("b", devices=[world.device("dev-b")], incoming=world.uri())
    [channel], migration = stream.connect(world.folder / "move.sock")
    channel.message("QUERY", migration, record=1, memory=1)
    channel.send(name, payload)
    try:
        assert name.encode() in channel.expect("ERROR")
    except stream.Closed:
        pass  # the question was answered, and all was said, before the rest was looked at
    channel.socket.close()
    assert target("query-status") == {"running": False, "status": "inmigrate"}
    assert_next_one_succeeds(world, source, target)


# --- what happens on the way ---

class Proxy:
    """Between a source and its destination; the byte at `place` of the connection that reaches it
    first, in one direction, is altered, or everything ends there."""

    def __init__(self, path, target, upstream, place, alter):
        self.server, self.target = stream.listen(path), str(target)
        self.upstream, self.place, self.alter = upstream, place, alter
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.sockets, self.threads = [], []
        self.start(self.serve)

    def start(self, function, *args):
        thread = threading.Thread(target=function, args=args)
        self.threads.append(thread)
        thread.start()

    def serve(self):
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.target)
            self.sockets += [near, far]
            self.start(self.copy, near, far, self.upstream)
            self.start(self.copy, far, near, not self.upstream)

    def copy(self, from_, to, watched):
        at = 0
        try:
            while True:
                data = bytearray(from_.recv(1 << 16))
                if not data:
                    break
                if watched and at <= self.place < at + len(data):
                    with self.lock:
                        first = not self.done.is_set()
                        self.done.set()
                    if first and self.alter:
                        data[self.place - at] ^= 0x10
                    elif first:
                        to.sendall(data[:self.place - at])
                        break
                at += len(data)
                to.sendall(data)
        except OSError:
            pass
        for end in (from_, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for end in self.sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads:
            thread.join()
        for end in self.sockets:
            end.close()


# In the greeting, in the identity, in memory; in what comes back: greeting, verdict, later. A stream
# of the destination's own has some 10 KiB at most before the end.
PLACES = [("up", place) for place in (0, 50, 200, 3000, 100_000, 1_000_000)] + \
         [("down", place) for place in (0, 50, 120, 300)]


HELLO_BYTES = 96  # with its head


def comes_again(way, place, alter):
    """A source whose greeting was not answered begins anew, and only one connection is spoiled."""
    return place < HELLO_BYTES if way == "up" else place == 0 and not alter


@pytest.mark.parametrize("alter", (True, False), ids=("altered", "cut"))
@pytest.mark.parametrize("way, place", PLACES)
def test_a_stream_that_does_not_arrive_as_it_was_sent(world, way, place, alter):
    source = start_source(world)
    target = world.vm("b", devices=[world.device("dev-b")], incoming=world.uri())
    source("stop")  # else a page that was altered may be written, and sent again
    proxy = Proxy(world.folder / "way.sock", world.folder / "move.sock", way == "up", place, alter)
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", str(source.path), "--quiet",
                                "--downtime-limit", "2000", world.uri("way")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=120)
    proxy.close()
    assert proxy.done.is_set()
    if comes_again(way, place, alter):
        assert process.returncode == 0, err
        assert not source("query-status")["running"]
        target("cont")
        assert_guest_lives(target)
        return
    assert source("query-status") == {"running": False, "status": "paused"}
    source("cont")
    assert_failed(source, process.returncode, err)
    assert not target("query-status")["running"]
    assert_next_one_succeeds(world, source, target)
