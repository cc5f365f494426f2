# SPDX-License-Identifier: BSD-3-Clause
"""vfmig status and vfmig resolve on journals as a crash leaves them."""
import fcntl
import json
import os
import struct
import subprocess
import time

import pytest

from world import is_listening, quit_vm

VFMIG = os.environ["VFMIG"]
ID = bytes(range(16))
RECORD = {"OFFERED": 1, "GRANT-SENT": 2, "RELEASED": 3, "ABORTED": 5, "RESUMED": 6, "READY": 7,
          "GRANTED": 8, "FENCED": 9, "RUNNING": 10, "REFUSED": 11}


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def raw(number, role, record, text=b"", memory=1, second=0):
    body = struct.pack("<IHBB16sIIQIB7x200s", 0x4c4a4656, 1, role, record, ID, 1 if record else 0, number,
                       (1_800_000_000 + second) * 10**9, 4242, memory, text)
    return body + struct.pack("<I", crc32c(body))


def journal(folder, role, *records, text=b"", second=0):
    folder.mkdir(exist_ok=True)
    path = folder / f"{ID.hex()}.{role}"
    number = {"source": 1, "destination": 2}[role]
    data = raw(0, number, 0, text) + b"".join(
        raw(i + 1, number, RECORD[r], second=second) for i, r in enumerate(records))
    path.write_bytes(data.ljust(4096, b"\0"))
    return path


def run(*args):
    return subprocess.run([VFMIG, *map(str, args)], capture_output=True, text=True, timeout=30)


def status(*args):
    return json.loads(run("status", "--json", *args).stdout)


def test_an_empty_place(tmp_path):
    result = run("status", tmp_path / "none")
    assert result.returncode == 0 and "no migration" in result.stdout
    assert run("resolve", tmp_path / "none").returncode == 0
    assert status(tmp_path / "none") == []


def test_a_source_learns_from_its_peers_journal(tmp_path):
    journal(tmp_path / "s", "source", "OFFERED", "GRANT-SENT")
    result = run("status", tmp_path / "s")
    assert result.returncode == 5 and "--peer-journal" in result.stdout
    assert run("resolve", tmp_path / "s").returncode == 5
    peer = journal(tmp_path / "d", "destination", "READY", "GRANTED")
    assert run("resolve", tmp_path / "d").returncode == 0
    result = run("resolve", tmp_path / "s", "--peer-journal", peer, "--json")
    assert result.returncode == 0
    seen = json.loads(result.stdout)
    assert seen["record"] == "RESUMED" and seen["may-start"] and seen["outcome"] == "died-at-source"
    assert [v["record"] for v in status(tmp_path / "d")] == ["REFUSED"]


def test_both_sides_in_one_directory(tmp_path):
    journal(tmp_path, "source", "OFFERED", "GRANT-SENT")
    journal(tmp_path, "destination", "READY", "GRANTED", "RUNNING")
    result = run("resolve", tmp_path)
    assert result.returncode == 0 and "died-at-destination" in result.stdout
    assert sorted(v["record"] for v in status(tmp_path)) == ["RELEASED", "RUNNING"]


def test_a_copy_that_died_cannot_be_run(tmp_path):
    journal(tmp_path, "destination", "READY")
    result = run("resolve", tmp_path, "--run", "--source-is-fenced")
    assert result.returncode == 1 and "gone" in result.stderr
    assert status(tmp_path)[0]["record"] == "READY"


def test_a_destination_refuses_what_it_never_saw(tmp_path):
    result = run("resolve", tmp_path / "d", "--refuse", "--id", ID.hex())
    assert result.returncode == 0
    assert status(tmp_path / "d")[0]["record"] == "REFUSED"


def test_a_living_process_decides_itself(tmp_path):
    path = journal(tmp_path, "destination", "READY", text=b"/nowhere/control")
    with open(path, "r+b") as held:
        # Of the open file, as the journal's own lock: flock in the system's layout.
        fcntl.fcntl(held, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        seen = status(tmp_path)[0]
        assert seen["alive"] and seen["memory"] and seen["pid"] == 4242
        result = run("resolve", tmp_path, "--run", "--source-is-fenced")
        assert result.returncode == 1 and "/nowhere/control" in result.stderr


def start_vm(folder, *args):
    """Until it refuses, or has a control socket."""
    qmp = folder / "qmp"
    process = subprocess.Popen([VFMIG, "vm", "--accel", "none", "--memory", "48M", "--qmp", qmp,
                                "--journal", folder, *args], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not is_listening(qmp):
        time.sleep(0.01)
    if process.poll() is None:
        quit_vm(qmp)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_a_guest_that_moved_away_is_not_started_again(tmp_path):
    journal(tmp_path, "source", "OFFERED", "GRANT-SENT", "RELEASED")
    code, err = start_vm(tmp_path)
    assert code == 1 and "moved away" in err and err.count("\n") == 1
    assert start_vm(tmp_path, "--discard-released") == (0, "")


@pytest.mark.parametrize("record, second, code", [
    ("RUNNING", 1, 0), ("RUNNING", -1, 1), ("REFUSED", 1, 1)])
def test_a_guest_that_came_back_may_be_started(tmp_path, record, second, code):
    journal(tmp_path, "source", "OFFERED", "GRANT-SENT", "RELEASED")
    journal(tmp_path, "destination", "READY", *(["GRANTED"] if record == "RUNNING" else []), record,
            second=second)
    assert start_vm(tmp_path)[0] == code


def test_damage_is_named(tmp_path):
    path = journal(tmp_path, "source", "OFFERED", "GRANT-SENT")
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    result = run("status", tmp_path)
    assert result.returncode == 1 and "record 1 of journal" in result.stderr
    assert "source: unknown" in result.stdout and "to do    see what the other side" in result.stdout
    assert status(tmp_path)[0]["outcome"] == "unknown"
    assert run("resolve", tmp_path).returncode == 1


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / f"{ID.hex()}.source")
    for command in ("status", "resolve"):
        result = run(command, tmp_path)
        assert result.returncode == 1 and "cannot read journal" in result.stderr


def test_a_destination_that_died_with_nothing_has_refused(tmp_path):
    journal(tmp_path / "d", "destination")
    journal(tmp_path / "s", "source", "OFFERED", "RESUMED")
    for args in ((), ("--peer-journal", tmp_path / "s")):
        seen = status(tmp_path / "d", *args)[0]
        assert seen["outcome"] == "refused" and seen["settled"] and not seen["alive"]


@pytest.mark.parametrize("args, word", [
    ((), "DIR"),
    (("x", "--run", "--refuse"), "exclude"),
    (("x", "--source-is-fenced"), "--run"),
    (("x", "--id", "zz"), "not an id"),
    (("x", "--role", "third"), "role"),
])
def test_mistakes(args, word):
    result = run("resolve", *args)
    assert result.returncode == 2 and word in result.stderr and result.stderr.count("\n") == 1
