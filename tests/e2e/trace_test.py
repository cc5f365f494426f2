# SPDX-License-Identifier: BSD-3-Clause
"""Traces of whole migrations: every line is as docs/trace.md says, and tells what happened."""
import json
import pathlib
import re
import struct
import subprocess

import pytest

import stream
from world import VFMIG, World, assert_guest_lives, heartbeats, migrate, migrate_slowly, wait_until

DOC = pathlib.Path(__file__).resolve().parents[2] / "docs/trace.md"
KINDS = {"unsigned": int, "signed": int, "text": str, "boolean": bool}


def documented():
    """event: (who writes it, {field: its type}) of the document."""
    events = {}
    for part in DOC.read_text().split("### `")[1:]:
        name, who = re.match(r"([\w-]+)`\n\n(\w+): ", part).groups()
        fields = re.findall(r"^\| `(\w+)` \| (\w+) \|", part, re.M)
        events[name] = (who, [(field, KINDS[kind]) for field, kind in fields])
    return events


EVENTS = documented()


def read(path, side):
    """The attempts of one side in a file, each a list of lines that are as documented."""
    attempts = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        if line["side"] != side:
            continue
        assert list(line)[:4] == ["t_ns", "n", "side", "ev"]
        who, fields = EVENTS[line["ev"]]
        assert who in ("both", line["side"]), line
        assert list(line)[4:] == [name for name, _ in fields], line
        for name, kind in fields:
            assert type(line[name]) is kind, line
        if line["ev"] == "trace":
            attempts.append([])
        last = attempts[-1][-1] if attempts[-1] else None
        assert line["n"] == len(attempts[-1])
        assert not last or last["t_ns"] <= line["t_ns"]
        attempts[-1].append(line)
    return attempts


def find(lines, ev, **fields):
    return [line for line in lines if line["ev"] == ev and fields.items() <= line.items()]


def two_vms(world, **kwargs):
    paths = {side: [f"{world.device(side + str(i))},id=dma{i}" for i in range(2)] for side in "ab"}
    source = world.vm("source", devices=paths["a"], **kwargs)
    dest = world.vm("dest", "--trace", world.folder / "dest.jsonl", devices=paths["b"],
                    incoming=world.uri())
    wait_until(lambda: heartbeats(source) > 0, "the guest")
    return source, dest


def test_a_migration_tells_everything_it_does():
    with World() as world:
        source, dest = two_vms(world)
        result = migrate(source, world.uri(), "--trace", world.folder / "trace.jsonl")
        assert result.returncode == 0, result.stderr
        assert_guest_lives(dest)
        [lines] = read(world.folder / "trace.jsonl", "source")
        [sent] = read(world.folder / "trace.jsonl", "destination")
        listening, there = read(world.folder / "dest.jsonl", "destination")
    assert sent == there[:len(sent)] # what the destination saw is in the source's file
    assert lines[-1]["ev"] == sent[-1]["ev"] == "end"
    begins_and_ends(lines)
    begins_and_ends(there)
    head = lines[0]
    assert (head["version"], head["side"], head["devices"]) == (1, "source", 2)
    assert [line["id"] for line in lines[1:3]] == ["dma0", "dma1"]
    assert [line["ev"] for line in listening] == ["trace", "device", "device"]
    assert listening[0]["id"] == "" and there[0]["id"] == head["id"]
    steps = [line["step"] for line in find(lines, "step")]
    assert steps == ["connect", "S1", "S2", "S3", "S4", "S5", "handover", "S6", "end"]
    assert [line["step"] for line in find(there, "step")] == ["R0", "R1", "R2", "loaded", "R3", "R4", "end"]
    for device in ("dma0", "dma1"):
        states = [line["state"] for line in find(lines, "change-end", id=device)]
        assert states == ["PRE_COPY", "PRE_COPY_NDMA", "STOP_COPY", "STOP"]
        states = [line["state"] for line in find(there, "change-end", id=device)]
        assert states == ["RUNNING", "STOP", "RESUMING", "STOP", "RUNNING_NDMA", "RUNNING"]
        # All that the source sent of a device was loaded.
        sent = find(lines, "data-end", id=device, work="last-data")[0]["total_bytes"]
        assert sent and sent == find(there, "data-end", id=device)[0]["total_bytes"]
    assert len(find(lines, "clock")) == 1
    assert find(lines, "round-end", ret=0)[0]["pages"] == head["memory_bytes"] // 4096
    assert find(lines, "decide")[-1]["verdict"] == "go"
    assert find(lines, "downtime")[0]["total_ns"] > 0
    assert find(lines, "state")[-1]["state"] == find(there, "state")[-1]["state"] == "completed"
    assert [line["record"] for line in find(lines, "journal")] == ["OFFERED", "GRANT-SENT", "RELEASED"]


def begins_and_ends(lines):
    """Whatever begins ends once, and one thing at a time of a device or of a work."""
    open_now = set()
    for line in lines:
        what, _, when = line["ev"].partition("-")
        if what not in ("change", "data", "work", "round") or when not in ("begin", "end"):
            continue
        key = (what, line.get("device"), line.get("work"))
        assert (key in open_now) == (when == "end"), line
        open_now ^= {key}
    assert not open_now


def test_one_that_is_cancelled_ends_with_the_guest_at_home():
    with World() as world:
        source, dest = two_vms(world)
        process = migrate_slowly(source, world.uri(), "--trace", str(world.folder / "trace.jsonl"))
        source("migrate_cancel")
        _, text = process.communicate(timeout=60)
        assert process.returncode == 4, text
        assert_guest_lives(source)
        [lines] = read(world.folder / "trace.jsonl", "source")
        [there] = read(world.folder / "trace.jsonl", "destination")
    begins_and_ends(lines)
    begins_and_ends(there)
    assert find(lines, "failure")[0]["ret"] == -125
    assert [line["step"] for line in find(lines, "step")][-2:] == ["unwind", "end"]
    assert not find(lines, "vcpus-stopping")
    assert find(lines, "state")[-1]["state"] == "cancelled"
    assert [line["step"] for line in find(there, "step")][-2:] == ["drop", "end"]
    assert lines[-1]["ev"] == there[-1]["ev"] == "end"


def test_a_device_that_fails_at_the_destination_takes_the_guest_back():
    with World() as world:
        devices = [world.device("a"), world.device("b", "--fail", "load_end")]
        source = world.vm("source", devices=[f"{devices[0]},id=dma0"])
        world.vm("dest", devices=[f"{devices[1]},id=dma0"], incoming=world.uri())
        result = migrate(source, world.uri(), "--trace", world.folder / "trace.jsonl")
        assert result.returncode == 1
        assert_guest_lives(source)
        [lines] = read(world.folder / "trace.jsonl", "source")
        [there] = read(world.folder / "trace.jsonl", "destination")
    begins_and_ends(lines)
    begins_and_ends(there)
    assert find(lines, "vcpus-stopped") and find(lines, "vcpus-running")[-1]["ret"] == 0
    assert find(there, "change-end", want="STOP")[-1]["ret"] < 0
    assert find(lines, "change-end")[-1]["state"] == "RUNNING"
    assert find(lines, "state")[-1]["state"] == "failed"


LINE = b'{"t_ns":1,"n":0,"side":"destination","ev":"end"}'


def test_a_peers_lines_are_looked_at_before_they_are_taken():
    junk = [b'{"t_ns":1,"n":0,"side":"source","ev":"end"}', b"hello", LINE[:-1], LINE.replace(b"end", b"e\nd"),
            LINE.replace(b"end", b"\xff"), b'{"t_ns":x,"n":0,"side":"destination","ev":"end"}', b"{" * 900]
    with World() as world:
        source = world.vm("source")
        server = stream.listen(world.folder / "move.sock")
        process = subprocess.Popen([VFMIG, "migrate", "--qmp", source.path, "--max-bandwidth", "1M", "--quiet",
                                    "--trace", world.folder / "trace.jsonl", world.uri()],
                                   stderr=subprocess.PIPE, text=True)
        channels, _, identity = stream.accept(server)
        assert b"\ninfo.trace=1\n" in identity
        channels[0].send("VERDICT", struct.pack("<I", 1))
        for _ in range(8):
            ping = channels[0].expect("PING")
            channels[0].send("PONG", ping + ping)
        for line in [LINE, *junk, LINE]:
            channels[0].send("PROGRESS", b"e" + line)
        for channel in channels:
            channel.socket.close()
        _, text = process.communicate(timeout=60)
        assert process.returncode == 1, text
        taken = [line for line in (world.folder / "trace.jsonl").read_text().splitlines()
                 if '"side":"source"' not in line[:60]]
        server.close()
    assert taken == 2 * [LINE.decode()]


def test_a_refusal_is_in_both():
    with World() as world:
        source = world.vm("source", memory="48M")
        dest = world.vm("dest", "--trace", world.folder / "dest.jsonl", memory="64M", incoming=world.uri())
        result = migrate(source, world.uri(), "--trace", world.folder / "trace.jsonl")
        assert result.returncode == 1
        [lines] = read(world.folder / "trace.jsonl", "source")
        _, there = read(world.folder / "dest.jsonl", "destination")
    assert "memory" in find(lines, "failure")[0]["text"]
    assert find(there, "verdict")[0]["accept"] is False
    assert find(there, "verdict")[0]["text"] in find(lines, "failure")[0]["text"]


def test_lines_are_fetched_by_number():
    with World() as world:
        source = world.vm("source")
        world.vm("dest", incoming=world.uri())
        assert migrate(source, world.uri(), "--trace", world.folder / "trace.jsonl").returncode == 0
        lines = (world.folder / "trace.jsonl").read_text().splitlines()
        answer = source("x-vfmig-trace", **{"from": 0})
        assert answer == {"lines": lines, "next": len(lines), "lost": 0}
        assert source("x-vfmig-trace", **{"from": 7})["lines"] == lines[7:]
        assert source("x-vfmig-trace", **{"from": len(lines)}) == {"lines": [], "next": len(lines), "lost": 0}


@pytest.mark.parametrize("command", ["vm", "migrate"])
def test_a_file_that_cannot_be_written_is_named(command):
    with World() as world:
        bad = str(world.folder / "missing/trace.jsonl")
        source = world.vm("source")
        if command == "migrate":
            result = migrate(source, world.uri(), "--trace", bad)
            assert source("query-migrate") == {}
        else:
            result = subprocess.run([VFMIG, "vm", "--trace", bad], capture_output=True, text=True)
        assert result.returncode == 1
        assert bad in result.stderr and "No such file" in result.stderr
