# SPDX-License-Identifier: BSD-3-Clause
"""vfmig migrate against a VMM that is played by the test: progress, Ctrl-C, exit codes."""
import json
import os
import pty
import select
import signal
import socket
import subprocess
import tempfile
import threading

import pytest

VFMIG = os.environ["VFMIG"]


def status(word, **more):
    return {"status": word, "total-time": 1234,
            "ram": {"transferred": 5 << 20, "remaining": 7 << 20, "dirty-sync-count": 3},
            "x-vfmig": {"step": "S2", "rate-bytes-s": 9 << 20, "predicted-downtime-ns": 42000000,
                        "devices": [{"id": "nic", "state": "PRE_COPY"}], "downtime-ns": 33500000,
                        "steps": [{"name": "S5", "start-ns": 1000000000, "ns": 2500000}],
                        "parts": [{"name": "vCPUs stopped", "ns": 700000}], **more}}


class Vmm:
    """Answers query-migrate with `active` until told; then with `last`."""

    def __init__(self, last, ends_when=None, dies=False, refuses=None, active=None):
        self.folder = tempfile.mkdtemp(prefix="vfmig-", dir="/tmp")
        self.path = f"{self.folder}/qmp"
        self.last, self.ends_when, self.dies, self.refuses = last, ends_when, dies, refuses
        self.commands, self.active = [], active or status("active")
        self.queried = threading.Event()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)
        self.server.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def answer(self, request):
        command = request["execute"]
        self.commands.append(request)
        if command == self.refuses:
            return {"error": {"class": "GenericError", "desc": "not today"}}
        if command != "query-migrate":
            return {"return": {}}
        self.queried.set()
        seen = [r["execute"] for r in self.commands]
        over = seen.count("query-migrate") > 3 if not self.ends_when else self.ends_when in seen
        return {"return": self.last if over else self.active}

    def serve(self):
        connection, _ = self.server.accept()
        stream = connection.makefile("rw")
        stream.write('{"QMP": {"version": {}, "capabilities": []}}\r\n')
        stream.flush()
        for line in stream:
            answer = self.answer(json.loads(line))
            if self.dies and self.queried.is_set():
                break
            stream.write('{"event": "STOP"}\r\n' + json.dumps(answer) + "\r\n")
            stream.flush()
        stream.close()
        connection.close()

    def close(self):
        self.thread.join()
        self.server.close()
        os.unlink(self.path)
        os.rmdir(self.folder)


@pytest.fixture
def vmm():
    made = []

    def make(*args, **kwargs):
        made.append(Vmm(*args, **kwargs))
        return made[-1]
    yield make
    for it in made:
        it.close()


def run(vmm, *args):
    return subprocess.run([VFMIG, "migrate", "--qmp", vmm.path, *args, "unix:/x"],
                          capture_output=True, text=True, timeout=60)


def test_the_report_of_a_completed_migration(vmm):
    it = vmm(status("completed"))
    result = run(it, "--downtime-limit", "70", "--max-bandwidth", "1G", "--deadline", "9")
    assert result.returncode == 0
    for words in ("downtime 33.5 ms", "3 rounds", "S5", "2.500 ms", "0.700 ms  vCPUs stopped"):
        assert words in result.stdout
    assert result.stderr == ""  # it was over before a line was due
    arguments = {r["execute"]: r.get("arguments") for r in it.commands}
    assert arguments["migrate-set-parameters"] == {
        "downtime-limit": 70, "max-bandwidth": 1 << 30, "multifd-channels": 2,
        "max-cpu-throttle": 0, "multifd-compression": "none"}
    assert arguments["migrate"] == {"uri": "unix:/x", "x-deadline": 9}


def test_what_is_said_about_convergence(vmm):
    told = status("completed", prediction={"ns": 44400000, "bound-ns": 66600000})
    it = vmm(told)
    result = run(it, "--deadline", "9", "--on-deadline", "force", "--throttle-max", "70")
    assert result.returncode == 0
    assert "predicted 44.4 ms, reckoned with up to 66.6 ms" in result.stdout
    arguments = {r["execute"]: r.get("arguments") for r in it.commands}
    assert arguments["migrate-set-parameters"]["max-cpu-throttle"] == 70
    assert arguments["migrate"] == {"uri": "unix:/x", "x-deadline": 9, "x-on-deadline": "force"}


def test_json_is_the_answer_and_nothing_else(vmm):
    result = run(vmm(status("completed")), "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == status("completed")


def test_quiet_is_quiet(vmm):
    result = run(vmm(status("completed")), "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("last, code, words", [
    ({**status("failed"), "error-desc": "the sky fell"}, 1, "the sky fell"),
    (status("failed"), 1, "the migration failed"),
    (status("cancelled"), 4, "the guest runs on at the source"),
    ({**status("failed", unresolved=True), "error-desc": "no answer"}, 5, "vfmig status"),
])
def test_exit_codes(vmm, last, code, words):
    result = run(vmm(last), "--quiet")
    assert result.returncode == code
    assert words in result.stderr and result.stderr.count("\n") == 1


def test_a_vmm_that_refuses(vmm):
    result = run(vmm(status("completed"), refuses="migrate"))
    assert (result.returncode, result.stderr) == (1, "vfmig migrate: not today\n")


def test_a_vmm_that_dies_leaves_the_outcome_open(vmm):
    result = run(vmm(status("completed"), dies=True))
    assert result.returncode == 5
    assert "lost sight" in result.stderr and "vfmig status" in result.stderr


def test_ctrl_c_cancels(vmm):
    it = vmm(status("cancelled"), ends_when="migrate_cancel")
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", it.path, "unix:/x"],
                               stderr=subprocess.PIPE, text=True)
    it.queried.wait(30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4 and "cancelled" in err


def test_a_second_ctrl_c_leaves(vmm):
    it = vmm(status("completed"), ends_when="never")
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", it.path, "unix:/x"],
                               stderr=subprocess.PIPE, text=True)
    it.queried.wait(30)
    process.send_signal(signal.SIGINT)
    while "migrate_cancel" not in [r["execute"] for r in it.commands]:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5 and "left while" in err


def seen_on_a_terminal(it):
    master, slave = pty.openpty()
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", it.path, "unix:/x"], stderr=slave,
                               stdout=subprocess.DEVNULL)
    os.close(slave)
    text = b""
    while select.select([master], [], [], 30)[0]:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        text += piece
    os.close(master)
    assert process.wait(30) == 0
    return text


def test_a_terminal_gets_one_line_that_changes(vmm):
    text = seen_on_a_terminal(vmm(status("completed")))
    assert b"\r\x1b[KS2" in text and b"nic PRE_COPY" in text
    assert b"7 MiB left" in text and b"would be 42 ms" in text
    assert b"\n" not in text


def test_many_devices_leave_room_for_the_figures(vmm):
    devices = [{"id": f"a-long-name-{i}", "state": "PRE_COPY" if i else "RUNNING"} for i in range(64)]
    text = seen_on_a_terminal(vmm(status("completed"), active=status("active", devices=devices)))
    assert b"S2  1 device RUNNING  63 devices PRE_COPY  9 MiB/s  7 MiB left" in text
