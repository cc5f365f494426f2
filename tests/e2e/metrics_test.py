# SPDX-License-Identifier: BSD-3-Clause
"""Metrics: the text is as Prometheus reads it, says what query-migrate says, and strangers get no further."""
import pathlib
import re
import socket
import subprocess

import pytest

from world import VFMIG, World, assert_guest_lives, migrate, wait_until

DOC = pathlib.Path(__file__).resolve().parents[2] / "docs/metrics.md"
GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
NAME = r"[a-z_:][a-z0-9_:]*"
LABEL = rf'{NAME}="[^"\\\n]*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ([0-9]+(?:\.[0-9]+)?)")


def parse(text):
    """{"name{labels}": value}; every rule of the format that this text could break."""
    assert text.endswith("\n")
    values, kinds, name, helped = {}, {}, None, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped, about = line[7:].split(" ", 1)
            assert about and "\\" not in about and helped not in kinds, line
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name == helped and name not in kinds and kind in ("gauge", "counter"), line
            kinds[name] = kind
            assert name.endswith("_total") == (kind == "counter"), line
        else:
            match = SAMPLE.fullmatch(line)
            assert match and match[1] == name, line  # samples of a name stand together, behind its head
            assert name.startswith("vfmig_")
            key = line.rsplit(" ", 1)[0]
            assert key not in values, line
            values[key] = float(match[3])
    assert kinds.keys() == {key.split("{")[0] for key in values}
    return values


def printed(qmp):
    result = subprocess.run([VFMIG, "status", "--metrics", "--qmp", qmp.path], capture_output=True,
                            text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return parse(result.stdout)


def ask(where, request):
    """An answer by HTTP: its status and body."""
    client = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    client.settimeout(60)
    client.connect(where)
    client.sendall(request)
    answer = b""
    while more := client.recv(65536):
        answer += more
    client.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    if head:
        assert f"Content-Length: {len(body)}\r\n" in head
    return head.split("\r\n")[0], body


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def world():
    with World() as it:
        yield it


def outcomes(values, role):
    return {key.split('outcome="')[1][:-2]: value for key, value in values.items()
            if key.startswith(f'vfmig_migrations_total{{role="{role}"') and value}


def agree(values, report):
    """With query-migrate of a migration that has ended."""
    ours = report["x-vfmig"]
    rows = {
        "vfmig_migration_downtime_seconds": ours["downtime-ns"] / 1e9,
        "vfmig_migration_downtime_limit_seconds": ours["downtime-limit-ns"] / 1e9,
        "vfmig_migration_memory_bytes": report["ram"]["total"],
        'vfmig_migration_sent_bytes{vcpus="running"}': ours["sent-running-bytes"],
        'vfmig_migration_sent_bytes{vcpus="stopped"}': ours["sent-stopped-bytes"],
        "vfmig_migration_device_data_bytes": ours["device-bytes"],
        "vfmig_migration_rounds": ours["rounds"],
        "vfmig_migration_devices": len(ours["devices"]),
        f'vfmig_migration_state{{state="{ours["state"]}"}}': 1,
    }
    for key, value in rows.items():
        assert values[key] == pytest.approx(value, abs=1e-9), key
    parts = [row["ns"] / 1e9 for row in ours["parts"]]
    shown = [value for key, value in values.items() if "downtime_part_seconds{" in key]
    assert shown == pytest.approx(parts, abs=1e-9)
    assert sum(value for key, value in values.items() if "migration_state{" in key) == 1


def test_what_is_said_of_migrations_in_vain_and_of_one_that_moves(world):
    file = world.folder / "a.prom"
    source = world.vm("a", *GUEST, "--metrics", f"file:{file}", devices=[world.device("dev-a")])
    dest = world.vm("b", devices=[world.device("dev-b")],
                    incoming=world.uri())
    assert_guest_lives(source)
    before = printed(source)
    assert before['vfmig_migration_state{state="none"}'] == 1 and not outcomes(before, "source")
    wait_until(file.exists, "the file")
    assert parse(file.read_text()).keys() == before.keys()
    # Nobody is there.
    assert migrate(source, f"unix:{world.folder}/nobody.sock", "--quiet").returncode == 1
    wait_until(lambda: '"ev":"end"' in world.traces[0].read_text(), "the end")
    failed = printed(source)
    agree(failed, source("query-migrate"))
    assert outcomes(failed, "source") == {"failed": 1}
    sent = source("query-migrate")["x-vfmig"]["sent-running-bytes"]
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(dest)
    # What comes behind RUNNING counts, too.
    wait_until(lambda: world.traces[0].read_text().count('"side":"source","ev":"end"') == 2, "the end")
    report, there = source("query-migrate"), printed(dest)
    values = printed(source)
    agree(values, report)
    assert outcomes(values, "source") == {"failed": 1, "completed": 1} and not outcomes(values, "destination")
    assert outcomes(there, "destination") == {"completed": 1} and not outcomes(there, "source")
    assert values['vfmig_sent_bytes_total{vcpus="running"}'] == sent + report["x-vfmig"]["sent-running-bytes"]
    assert values["vfmig_downtime_seconds_total"] == values["vfmig_migration_downtime_seconds"] > 0
    assert printed(source) == values  # asking counts nothing twice

    def is_written():
        return parse(file.read_text()) == values
    wait_until(is_written, "the file that says so")
    source("quit")
    source.process.wait(60)
    assert parse(file.read_text()) == values  # and they stay when the VMM has ended
    assert [path.name for path in world.folder.glob("a.prom*")] == ["a.prom"]


def test_every_metric_is_documented(world):
    vm = world.vm("a", devices=[world.device("dev-a")])
    documented = set(re.findall(r"^\| `([^`]+)` \|", DOC.read_text(), re.M))
    shown = set(printed(vm))
    text = DOC.read_text()
    assert documented <= shown
    for key in shown - documented:  # those that are made from the states
        assert f"`{key.split('{')[0]}{{" in text, key


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_by_http(world, kind):
    port = free_port()
    where = ("127.0.0.1", port) if kind == "tcp" else str(world.folder / "m.sock")
    uri = f"tcp:127.0.0.1:{port}" if kind == "tcp" else f"unix:{where}"
    vm = world.vm("a", "--metrics", uri, devices=[world.device("dev-a")])
    status, body = ask(where, b"GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n")
    assert status == "HTTP/1.1 200 OK" and parse(body) == printed(vm)
    # Strangers.
    assert ask(where, b"GET / HTTP/1.1\r\n\r\n") == ("HTTP/1.1 404 Not Found", "")
    assert ask(where, b"GET /metrics-and-more HTTP/1.1\r\n\r\n") == ("HTTP/1.1 404 Not Found", "")
    assert ask(where, b"POST /metrics HTTP/1.1\r\n\r\n") == ("HTTP/1.1 405 Method Not Allowed", "")
    assert ask(where, b"\0" * 4095) == ("HTTP/1.1 405 Method Not Allowed", "")
    for _ in range(50):  # who says nothing and goes
        client = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        client.connect(where)
        client.close()
    status, body = ask(where, b"GET /metrics?x=y HTTP/1.0\n\n")
    assert status == "HTTP/1.1 200 OK" and parse(body)


def test_a_dry_run_that_waits_for_its_peer_holds_nobody_up(world):
    """Who asks while the other side says nothing is answered before the dry run is."""
    where, silent = str(world.folder / "metrics.sock"), world.folder / "silent.sock"
    vm = world.vm("a", *GUEST, "--metrics", f"unix:{where}", devices=[world.device("dev-a")])
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(silent))
        door.listen()
        dry = subprocess.Popen([VFMIG, "migrate", "--dry-run", "--qmp", vm.path, f"unix:{silent}"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peer, _ = door.accept()
        assert len(peer.recv(1)) == 1  # its HELLO: it waits for ours from here on
        status, body = ask(where, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert dry.poll() is None, "the answer came after the dry run had ended"
        assert status == "HTTP/1.1 200 OK" and parse(body)
        peer.close()
    assert dry.wait(60) == 1 and dry.stderr.read()


@pytest.mark.parametrize("where, words", [
    ("tcp:0.0.0.0:0", "not a loopback address"),
    ("http://here", "neither file:PATH"),
    ("file:" + "x" * 300, "too long"),
])
def test_places_that_are_refused(world, where, words):
    result = subprocess.run([VFMIG, "vm", "--accel", "none", "--memory", "48M", "--metrics", where],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode in (1, 2) and words in result.stderr and result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written_disturbs_nobody(world):
    vm = world.vm("a", *GUEST, "--metrics", f"file:{world.folder}/no/where", devices=[world.device("dev-a")])
    wait_until(lambda: "metrics cannot be written" in (world.folder / "a.log").read_text(), "the sentence")
    assert_guest_lives(vm)


@pytest.mark.parametrize("args, words", [
    (["--metrics"], "go together"),
    (["--qmp", "/x"], "go together"),
    ([], "DIR is missing"),
    (["--metrics", "--qmp", "/x", "/tmp"], "without DIR"),
])
def test_status_wants_one_of_two(args, words):
    result = subprocess.run([VFMIG, "status", *args], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and words in result.stderr
