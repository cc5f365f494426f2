# SPDX-License-Identifier: BSD-3-Clause
"""A running guest with a device moves between two processes, and the ways in which it does not."""
import concurrent.futures
import json
import signal

import pytest

from world import (Qmp, QmpError, World, assert_guest_lives, have_kvm, heartbeats, migrate,
                   migrate_slowly, wait_until)

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
ACCELS = ["none", pytest.param("kvm", marks=pytest.mark.skipif(not have_kvm(), reason="no KVM"))]


@pytest.fixture
def world():
    with World() as it:
        yield it


def pair(world, accel="none", dialect="", incoming_args=(), uri=None):
    """A running guest with a device, and a VMM with a like device that waits for it."""
    sockets = [world.device(name, "--json") for name in ("dev-a", "dev-b")]
    sockets = [f"{path}{dialect}" for path in sockets]
    source = world.vm("a", *GUEST, accel=accel, devices=sockets[:1])
    target = world.vm("b", *incoming_args, accel=accel, devices=sockets[1:],
                      incoming=uri or world.uri())
    assert_guest_lives(source)
    return source, target


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("dialect", [",dialect=feature", ",dialect=region"])
def test_a_guest_moves(world, accel, dialect):
    source, target = pair(world, accel, dialect)
    result = migrate(source, world.uri(), "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert "downtime" in result.stdout and "S5" in result.stdout
    assert source("query-status") == {"running": False, "status": "postmigrate"}
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    assert_guest_lives(target)
    with pytest.raises(QmpError, match="must not run here"):
        source("cont")
    report = source("query-migrate")
    assert report["status"] == "completed"
    assert report["x-vfmig"]["devices"][0]["state"] == "STOP"
    # Device data went through shared memory, in either dialect, and not by message.
    for vm in (source, target):
        vm("quit")
        assert vm.process.wait(60) == 0
    left, arrived = world.counters("dev-a"), world.counters("dev-b")
    assert left["windows_filled"] > 0 and arrived["windows_loaded"] > 0
    assert left["data_messages"] == arrived["data_messages"] == 0


def test_there_and_back_over_tcp(world):
    source, target = pair(world, uri="tcp:127.0.0.1:0")
    port = target("query-migrate")["socket-address"][0]["port"]
    result = migrate(source, f"tcp:127.0.0.1:{port}", "--json", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["status"] == "completed"
    told = report["x-vfmig"]["prediction"]
    assert told["ns"] == sum(part["expected-ns"] for part in told["parts"])
    assert 0 < told["bound-ns"] <= 2e9 and told["error"] >= -1
    assert report["x-vfmig"]["total-ns"] // 1000000 == report["total-time"]
    assert told["parts"][0]["ns"] == report["x-vfmig"]["parts"][0]["ns"]
    assert "cpu-throttle-percentage" not in report and not report["x-vfmig"]["not-converging"]
    back = world.vm("c", devices=[world.device("dev-c")], incoming=world.uri())
    result = migrate(target, world.uri(), "--quiet", "--downtime-limit", "2000", "--channels", "4")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert_guest_lives(back)


def test_a_cancelled_migration_leaves_the_guest_running(world):
    source, _ = pair(world)
    process = migrate_slowly(source, world.uri())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "cancelled" in err
    assert source("query-status")["running"]
    assert_guest_lives(source)
    result = migrate(source, world.uri(), "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr


def ask_until_it_ends(path):
    try:
        asking = Qmp(path)
        while True:
            asking("query-migrate")
    except (OSError, ValueError):  # it has ended
        pass


def test_a_vmm_ends_while_it_is_asked_about_its_migration(world):
    source, target = pair(world)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask_until_it_ends, qmp.path) for qmp in (source, target) * 3]
        process = migrate_slowly(source, world.uri())
        for qmp in (source, target):
            qmp.process.terminate()
        process.communicate(timeout=60)
        assert process.returncode in (1, 4, 5)  # unwound, cancelled, or it cannot know
        assert [qmp.process.wait(60) for qmp in (source, target)] == [0, 0]
        for future in asked:
            future.result()


def test_an_address_where_nobody_listens(world):
    source, _ = pair(world)
    result = migrate(source, "unix:/nonexistent/socket", "--quiet")
    assert result.returncode == 1
    assert "/nonexistent/socket" in result.stderr and result.stderr.count("\n") == 1
    assert_guest_lives(source)


def test_a_paused_guest_moves_and_stays_paused(world):
    source, target = pair(world)
    source("stop")
    still = heartbeats(source)
    result = migrate(source, world.uri())
    assert result.returncode == 0, result.stderr
    assert target("query-status") == {"running": False, "status": "paused"}
    assert heartbeats(target) == still
    target("cont")
    assert_guest_lives(target)


def test_what_cannot_be_done_is_said(world):
    source, target = pair(world)
    for qmp, command, arguments, words in (
            (source, "system_reset", {}, "cannot reset"),
            (source, "migrate-set-parameters", {"multifd_channels": 99}, "from 1 to 16"),
            (source, "migrate-set-parameters", {"downtime_limit": 0}, "from 1"),
            (source, "migrate-set-parameters", {"max_cpu_throttle": 100}, "from 0 to 99"),
            (source, "migrate-set-parameters", {"max_bandwidth": -1}, "from 0"),
            (source, "migrate", {"uri": "unix:/x", "x_deadline": 0}, "from 1"),
            (source, "migrate", {"uri": "unix:/x", "x_on_deadline": "force"}, "without x-deadline"),
            (source, "migrate", {"uri": "unix:/x", "x_deadline": 1, "x_on_deadline": "x"}, "fail or force"),
            (target, "migrate", {"uri": "unix:/x"}, "not arrived yet")):
        with pytest.raises(QmpError, match=words):
            qmp(command, **arguments)
    source("migrate", uri="carrier-pigeon:")
    report = wait_until(lambda: (lambda r: r["status"] != "active" and r)(source("query-migrate")),
                        "the end of the attempt")
    assert report["status"] == "failed" and "carrier-pigeon" in report["error-desc"]
    assert_guest_lives(source)


def test_stop_and_cont(world):
    source = world.vm("a", *GUEST, "--paused", devices=[world.device("dev-a")])
    assert source("query-status") == {"running": False, "status": "prelaunch"}
    source("cont")
    assert_guest_lives(source)
    source("stop")
    still = heartbeats(source)
    assert source("query-status") == {"running": False, "status": "paused"}
    assert heartbeats(source) == still
    source("cont")
    assert_guest_lives(source)
    source("query-status")
    assert source.events == ["RESUME", "STOP", "RESUME"]
    source("quit")
    assert source.process.wait(60) == 0
