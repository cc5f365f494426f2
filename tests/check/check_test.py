# SPDX-License-Identifier: BSD-3-Clause
"""Good devices pass in both dialects; a device with a fault is told apart, whatever the format."""
import concurrent.futures
import os
import signal
import socket
import subprocess
import struct
import threading
import xml.etree.ElementTree

import pytest

import between
from judged import EXPLAINED, PATIENCE, VFMIG, Device, check, judge, verdicts

# VFMIG_CHECK=long: other random numbers, many times.
SEEDS = ("--repeat", "20") if os.environ.get("VFMIG_CHECK") == "long" else ()
OPTIONS = {"null": (), "dma": (), "bulk": ("--state-size", "256K")}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_good_device_passes(tmp_path, kind):
    with Device(tmp_path, kind, *OPTIONS[kind]) as device:
        report, status = judge(device.path, "--allow-destructive", *SEEDS)
    assert not verdicts(report, "fail") and not verdicts(report, "warn"), report
    assert status == 0 and report["conforming"]
    for row in verdicts(report, "skipped"):
        assert row["why"].startswith(EXPLAINED), row
    passed = verdicts(report, "pass")
    assert passed and all(row["stimuli"] > 0 for row in passed)
    assert {row["dialect"] for row in passed} == {"feature", "region"}


def faulty(tmp_path):
    return Device(tmp_path, "null", sabotage="dev-reset-keeps-state")


def test_a_faulty_device_is_caught_and_the_steps_show_it(tmp_path):
    with faulty(tmp_path) as device:
        report, status = judge(device.path, "--only", "C42")
        assert status == 3 and not report["conforming"]
        rows = verdicts(report, "fail")
        assert {row["dialect"] for row in rows} == {"feature", "region"}
        steps = tmp_path / "steps"
        steps.write_text(rows[0]["sequence"])
        assert rows[0]["sequence"].count("\n") <= 7, rows[0]["sequence"]
        again = check(device.path, "--replay", str(steps))
        assert again.returncode == 3, again.stdout
    with Device(tmp_path, "null") as device:
        again = check(device.path, "--replay", str(steps))
        assert again.returncode == 0, again.stdout


def test_the_steps_of_each_finding_are_written(tmp_path):
    with faulty(tmp_path) as device:
        result = check(device.path, "--fail-fast", "--steps", str(tmp_path))
        assert result.returncode == 3 and result.stdout.count("fail  ") == 1, result.stdout
        assert check(device.path, "--replay", str(tmp_path / "C42-feature.steps")).returncode == 3
        assert not (tmp_path / "C42-region.steps").exists()  # another rule was not begun


def test_what_only_the_rule_sees_is_not_replayed(tmp_path):
    steps = tmp_path / "steps"
    steps.write_text("# not in the outcome of a step: only the rule sees it\ndialect feature\nstate-set 1 = 0\n")
    with Device(tmp_path, "null") as device:
        again = check(device.path, "--replay", str(steps))
    assert again.returncode == 1 and "--only RULE" in again.stdout


def test_a_report_that_cannot_be_written_is_an_error(tmp_path):
    with Device(tmp_path, "null") as device:
        full = check(device.path, "--only", "reset", "--output", "/dev/full")
        missing = check(device.path, "--only", "reset", "--output", str(tmp_path / "no" / "report"))
    assert full.returncode == 1 and "/dev/full" in full.stderr and "No space" in full.stderr
    assert missing.returncode == 1 and "No such file" in missing.stderr


def test_an_interrupt_tells_what_was_judged(tmp_path):
    with Device(tmp_path, "null") as device:
        run = subprocess.Popen([VFMIG, "check", f"vfio-user:{device.path}", "--repeat", "1000", "--verbose"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = run.stderr.readline()
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=PATIENCE)
    assert first.startswith("pass") and run.returncode == 1, (first, err)
    assert "interrupted after" in err and "pass     feature C42" in out


def test_every_format_tells_the_failure(tmp_path):
    with faulty(tmp_path) as device:
        tap = check(device.path, "--only", "C42", "--format", "tap")
        junit = check(device.path, "--only", "C42", "--format", "junit")
        table = check(device.path, "--only", "C42")
    assert [tap.returncode, junit.returncode, table.returncode] == [3, 3, 3]
    assert "not ok 1 - feature C42" in tap.stdout and "1..2" in tap.stdout
    suite = xml.etree.ElementTree.fromstring(junit.stdout)
    assert suite.get("failures") == "2" and len(suite.findall("testcase/failure")) == 2
    assert "NOT CONFORMING" in table.stdout and "expected" in table.stdout


def test_a_server_that_closes_ends_in_a_sentence(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "odd.sock"))
    listener.listen()

    def serve():
        """Says VERSION and no more."""
        client = listener.accept()[0]
        with client:
            number = struct.unpack("=H", client.recv(65536)[:2])[0]
            text = b'{"capabilities":{}}\0'
            client.sendall(struct.pack("=HHIIIHH", number, 1, 20 + len(text), 1, 0, 0, 0) + text)
            client.recv(65536)

    server = threading.Thread(target=serve)
    server.start()
    result = check(tmp_path / "odd.sock", "--timeout-ms", "20000")
    server.join()
    listener.close()
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    assert "GET_INFO" in result.stderr


def test_rules_are_listed():
    result = check("none", "--list")
    assert result.returncode == 0
    ids = [line.split()[0] for line in result.stdout.splitlines()]
    assert len(ids) == len(set(ids)) and "C42" in ids


@pytest.mark.parametrize("options", [("--only", "C1000"), ("--workload", "steam"), ("--format", "pdf")])
def test_wrong_options_are_refused(tmp_path, options):
    with Device(tmp_path, "null") as device:
        assert check(device.path, *options).returncode == 2


def test_no_device_is_a_failure(tmp_path):
    assert check(tmp_path / "nobody.sock").returncode == 1


def assert_found_at_once_and_gone_on(report, status, seen):
    assert status == 3
    first = report["results"][0]
    assert first["verdict"] == "fail" and f"the device is {seen}" in first["seen"], first
    assert first["id"] == "C42" and first["clause"].startswith("C42")
    rest = report["results"][1:]
    assert rest and all(row["verdict"] == "pass" for row in rest), rest


@pytest.mark.parametrize("fault, seen", [
    (between.die, "died"), (between.nonsense, "broken"), (between.other_reply, "broken"),
    (between.flood, "flooding")])
def test_whatever_a_device_does_instead_of_answering_is_a_finding(tmp_path, fault, seen):
    with Device(tmp_path, "null") as device, \
            between.Between(tmp_path / "between.sock", device.path, fault) as odd:
        report, status = judge(odd.path, "--only", "reset")
    assert_found_at_once_and_gone_on(report, status, seen)


def test_a_device_that_hangs_is_a_finding(tmp_path):
    """What is waited for has to be long for a busy machine: both ways to hang at the same time."""
    def hangs(fault):
        folder = tmp_path / fault.__name__
        folder.mkdir()
        with Device(folder, "null") as device, \
                between.Between(folder / "between.sock", device.path, fault) as odd:
            return judge(odd.path, "--only", "reset", "--timeout-ms", "6000")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for report, status in pool.map(hangs, [between.hang, between.byte_by_byte]):
            assert_found_at_once_and_gone_on(report, status, "hung")


@pytest.mark.parametrize("kind, options", [
    ("dma", ("--no-ndma",)), ("dma", ("--no-precopy",)), ("null", ("--mask", "p2p,precopy,log"))])
def test_a_device_that_claims_less_is_judged_by_what_it_claims(tmp_path, kind, options):
    with Device(tmp_path, kind, *options) as device:
        report, status = judge(device.path)
    assert status == 0 and not verdicts(report, "warn"), report
    missing = {row["why"] for row in verdicts(report, "n.a.")}
    assert any("NDMA" in why or "pre-copy" in why for why in missing)
    if "--no-ndma" in options:
        assert any(row["id"] == "C69" for row in verdicts(report, "pass"))


def test_two_devices_are_judged_together(tmp_path):
    (tmp_path / "second").mkdir()
    with Device(tmp_path, "dma") as device, Device(tmp_path / "second", "dma") as second:
        report, status = judge(device.path, "--peer", f"vfio-user:{second.path}", "--only", "peer")
    assert status == 0 and len(verdicts(report, "pass")) == len(report["results"]) == 8, report


@pytest.mark.parametrize("line", [
    "state-sit 1", "state-set", "memory-put 0 4 hex 00", "memory-fill 0xffffffffffffffff 0x1000 1 = 0",
    "irqs 2 0xffffffffffffffff 1 = 0", "region-read 7 0 0xffffffff = 4", "map 0 0xffffffffffff 0 0 = 0",
    "map 0 0x10000 0x7fffffff 0x100000000 = 0", "dma-serve 0x80000000 = 0",
    "log-report 0 0xffffffffffffffff 1 = 8", "data-read 0xffffffffff = 0"])
def test_a_file_of_steps_is_not_believed(tmp_path, line):
    """Wrong lines are refused by name, steps that cannot be done just fail."""
    steps = tmp_path / "steps"
    steps.write_text(f"dialect feature\n{line}\n")
    with Device(tmp_path, "null") as device:
        result = check(device.path, "--replay", str(steps))
    if "=" in line:
        assert result.returncode == 0 and "    recorded: " in result.stdout, result
    else:
        assert result.returncode == 2 and "line 2" in result.stderr, result


def test_a_bug_is_listed_and_found(tmp_path):
    listed = subprocess.run([VFMIG, "device", "--bug", "list"], capture_output=True, text=True, timeout=PATIENCE)
    if "this build has no bugs" in listed.stdout:
        result = subprocess.run([VFMIG, "device", "dma", "--socket", "x", "--bug", "no-drain"], capture_output=True,
                                text=True, timeout=PATIENCE)
        assert result.returncode == 2 and "this build has no bugs" in result.stderr
        return
    assert [line.split()[1] for line in listed.stdout.splitlines() if line.startswith("no-drain ")] == ["C32-MESSAGE"]
    wrong = subprocess.run([VFMIG, "device", "dma", "--socket", "x", "--bug", "moth"], capture_output=True, text=True,
                           timeout=PATIENCE)
    assert wrong.returncode == 2 and "moth" in wrong.stderr
    with Device(tmp_path, "dma", "--bug", "no-drain") as device:
        assert judge(device.path, "--only", "C32-MESSAGE")[1] == 3
