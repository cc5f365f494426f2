# SPDX-License-Identifier: BSD-3-Clause
"""Every mistake on a command line gets one sentence on stderr and the documented exit code."""
import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

VFMIG = os.environ["VFMIG"]
MAN = pathlib.Path(__file__).resolve().parents[2] / "man"
USAGE = 2


def run(*args, **kwargs):
    return subprocess.run([VFMIG, *args], capture_output=True, text=True, timeout=30, **kwargs)


def assert_sentence(result, code, *words):
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("vfmig")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    for word in words:
        assert word in result.stderr


def test_help_lists_the_exit_codes():
    result = run("--help")
    assert result.returncode == 0 and result.stderr == ""
    assert "exit status" in result.stdout


def test_version():
    result = run("--version")
    assert result.returncode == 0 and result.stdout.startswith("vfmig ")


@pytest.mark.parametrize("args, words", [
    ((), ("missing",)),
    (("frobnicate",), ("unknown command", "frobnicate")),
    (("--frobnicate",), ("unknown command", "--frobnicate")),
])
def test_mistakes_before_the_command(args, words):
    assert_sentence(run(*args), USAGE, *words)


DEVICE = ("device", "--socket", "/nonexistent/sock")
COMMANDS = ("check", "device", "vm", "migrate", "timeline", "status", "resolve")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_matches_its_man_page(command):
    result = run(command, "--help")
    assert result.returncode == 0 and result.stderr == ""
    helped = set(re.findall(r"^  --([a-z0-9-]+)", result.stdout, re.M))
    page = (MAN / f"vfmig-{command}.1").read_text()
    documented = set()
    for line in re.findall(r"^\.TP\n(\.BI? .*)$", page, re.M):
        documented |= set(re.findall(r"--([a-z0-9-]+)", line.replace("\\-", "-")))
    assert helped == documented


def test_the_main_page_names_every_command():
    commands = re.findall(r"^  ([a-z]+) ", run("--help").stdout, re.M)
    page = (MAN / "vfmig.1").read_text()
    for command in commands:
        assert f"\n.B {command}\n" in page


@pytest.mark.parametrize("args, words", [
    (("vm", "--colour"), ("unknown option --colour", "vfmig vm --help")),
    (("vm", "-x"), ("unknown option -x",)),
    (("vm", "extra"), ("unexpected argument 'extra'",)),
    (("vm", "--memory"), ("--memory needs a value",)),
    (("vm", "--memory", "lots"), ("--memory", "'lots' is not a size")),
    (("vm", "--memory", "1G5"), ("'1G5' is not a size",)),
    (("vm", "--memory", "99999999999999T"), ("out of range",)),
    (("vm", "--memory=1K"), ("out of range", "32M to 1T")),
    (("vm", "--cpus", "0"), ("out of range", "1 to 16")),
    (("vm", "--cpus", "-1"), ("'-1' is not a number",)),
    (("vm", "--cpus", "1", "--cpus", "2"), ("--cpus is given twice",)),
    (("vm", "--paused=yes"), ("--paused takes no value",)),
    (("vm", "--accel", "magic"), ("'magic' is not one of kvm|none|auto",)),
    (("vm", "--qmp", ""), ("--qmp: the value is empty",)),
    (("vm", "--device", "/tmp/x"), ("'/tmp/x' is not vfio-user:PATH",)),
    (("vm", "--device", "vfio-user:"), ("is not vfio-user:PATH",)),
    (("vm", "--device", "vfio-user:/x,colour=red"), ("'colour=red' is neither",)),
    (("vm", "--device", "vfio-group:,id=a"), ("or vfio-group:N:NAME",)),
    (("vm", "--incoming", "tcp:127.0.0.1:1", "--paused"), ("--paused makes no sense",)),
    (("check",), ("TARGET is missing",)),
    (("check", "pci:1"), ("pci:1: not a target",)),
    (("device", "dma"), ("--socket is missing",)),
    ((*DEVICE, "card"), ("no device called 'card'",)),
    ((*DEVICE, "null", "--state-size", "64M"), ("--state-size: the device null has no use for it",)),
    ((*DEVICE, "null", "--dirty-rate", "1M"), ("--dirty-rate: the device null",)),
    ((*DEVICE, "null", "--save-rate", "1M"), ("--save-rate: the device null",)),
    ((*DEVICE, "null", "--load-rate", "1M"), ("--load-rate: the device null",)),
    ((*DEVICE, "dma", "--dirty-rate", "1M"), ("--dirty-rate: the device dma",)),
    ((*DEVICE, "bulk", "--latency-us", "5"), ("--latency-us: the device bulk",)),
    ((*DEVICE, "bulk", "--quiesce-us", "5"), ("--quiesce-us: the device bulk",)),
    ((*DEVICE, "bulk", "--state-size", "5000"), ("--state-size", "multiples of 4K")),
    ((*DEVICE, "bulk", "--state-size", "1T"), ("--state-size", "out of range", "4K to 64G")),
    ((*DEVICE, "dma", "--state-size", "4K"), ("--state-size", "64K already")),
    ((*DEVICE, "bulk", "--save-rate", "1"), ("--save-rate", "out of range")),
    ((*DEVICE, "bulk", "--latency", "stop"), ("'stop' is not ARC=MS",)),
    ((*DEVICE, "bulk", "--latency", "stop=soon"), ("'stop=soon' is not ARC=MS",)),
    ((*DEVICE, "bulk", "--latency", "pause=5"), ("no arc called 'pause'",)),
    ((*DEVICE, "bulk", "--mask", "p2p,dma"), ("'dma' is not one of p2p, precopy and log",)),
    ((*DEVICE, "bulk", "--mask", "p2p,"), ("--mask: '' is not one of",)),
    ((*DEVICE, "bulk", "--fail", "sto"), ("no step called 'sto'",)),
    ((*DEVICE, "bulk", "--fail", "stop=EFOO"), ("'EFOO' is not the name of an errno",)),
    ((*DEVICE, "bulk", "--fail-at", "1"), ("--fail-at", "no step")),
    ((*DEVICE, "bulk", "--fail", "stop", "--fail-byte", "1"), ("--fail-byte", "move bytes")),
    (("vm", "--discard-released"), ("without --journal",)),
    (("vm", "--discard-released", "--journal", "/x", "--incoming", "tcp:a:1"), ("with --incoming",)),
    (("migrate",), ("--qmp is missing",)),
    (("migrate", "--qmp", "/x"), ("URI is missing",)),
    (("migrate", "--qmp", "/x", "http://x"), ("neither tcp:HOST:PORT nor unix:PATH",)),
    (("migrate", "--qmp", "/x", "tcp:a:1", "tcp:b:1"), ("unexpected argument 'tcp:b:1'",)),
    (("vm", "--accel", "none", "--journal", "/tmp", "--incoming", "carrier-pigeon:"), ("carrier-pigeon",)),
    (("vm", "--accel", "none", "--journal", "/tmp", "--incoming", "tcp:127.0.0.1:99999"), ("65535",)),
    (("vm", "--accel", "none", "--journal", "/tmp", "--incoming", "tcp:127.0.0.1:"), ("tcp:HOST:PORT",)),
    (("vm", "--incoming", "unix:/x"), ("journal",)),
    (("device", "--socket", "/x"), ("NAME is missing",)),
    (("device", "dma", "null", "--socket", "/x"), ("unexpected argument 'null'",)),
    (("device", "dma", "--socket", "/x", "--max-data", "1"), ("out of range", "4K to 64M")),
    (("status",), ("DIR is missing",)),
    (("status", "/x", "/y"), ("unexpected argument '/y'",)),
    (("resolve",), ("DIR is missing",)),
    (("migrate", "--downtime-limit", "0", "--qmp", "/x", "tcp:a:1"), ("1 to 600000",)),
    (("migrate", "--on-deadline", "force", "--qmp", "/x", "tcp:a:1"), ("without --deadline",)),
    (("migrate", "--on-deadline", "wait", "--deadline", "1", "--qmp", "/x", "tcp:a:1"), ("fail", "force")),
    (("migrate", "--tls-psk", "/x", "--plaintext", "--qmp", "/x", "tcp:a:1"), ("only one of",)),
    (("vm", "--tls-psk", "/x", "--tls-creds", "/y"), ("only one of",)),
    (("migrate", "--throttle-max", "100", "--qmp", "/x", "tcp:a:1"), ("0 to 99",)),
    (("migrate", "--channels", "17", "--qmp", "/x", "tcp:a:1"), ("1 to 16",)),
])
def test_mistakes(args, words):
    assert_sentence(run(*args), USAGE, *words)


@pytest.mark.parametrize("args, words", [
    (("vm", "--device", "vfio-user:/nonexistent/sock"), ("/nonexistent/sock",)),
    (("vm", "--device", "vfio:/nonexistent/vfio0"), ("/nonexistent/vfio0", "No such file")),
    (("vm", "--device", "vfio-group:999999:0000:01:00.1,id=a"), ("/dev/vfio/999999", "No such file")),
    (("vm", "--accel", "none", "--qmp", "/nonexistent/qmp"), ("/nonexistent/qmp",)),
    (("vm", "--accel", "none", "--journal", "/tmp", "--incoming", "unix:/nonexistent/s"),
     ("/nonexistent/s",)),
    (("device", "dma", "--socket", "/nonexistent/s"), ("/nonexistent/s",)),
    (("status", "/dev/null"), ("/dev/null", "Not a directory")),
    (("status", "/tmp/nowhere", "--peer-journal", "/nonexistent/p"), ("/nonexistent/p",)),
    (("migrate", "--qmp", "/nonexistent/qmp", "tcp:127.0.0.1:1"), ("/nonexistent/qmp",)),
    (("migrate", "--qmp", "/" + "x" * 200, "tcp:127.0.0.1:1"), ("too long",)),
])
def test_what_is_not_there_is_named(args, words):
    assert_sentence(run(*args), 1, *words)


def test_a_socket_that_does_not_speak_qmp(tmp_path):
    path = str(tmp_path / "sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve():
        connection, _ = server.accept()
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        connection.recv(100)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert_sentence(run("migrate", "--qmp", path, "tcp:127.0.0.1:1"), 1, "does not speak QMP")
    thread.join()
    server.close()


def test_output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "w") as full:
        result = subprocess.run([VFMIG, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and "cannot write" in result.stderr
