# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong before the grant: one clear sentence, the documented code, the guest runs on."""
import signal
import socket

import pytest

from world import World, assert_guest_lives, have_kvm, migrate, migrate_slowly, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")


@pytest.fixture
def world():
    with World() as it:
        yield it


def start(world, target_args=(), **target):
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")])
    target.setdefault("devices", [world.device("dev-b")])
    target = world.vm("b", *target_args, incoming=world.uri(), **target)
    assert_guest_lives(source)
    return source, target


def assert_failed(source, returncode, err, *words):
    assert returncode == 1, err
    assert err.startswith("vfmig migrate: ") and err.count("\n") == 1
    for word in words:
        assert word in err
    assert source("query-status") == {"running": True, "status": "running"}
    assert_guest_lives(source)


@pytest.mark.parametrize("difference, words", [
    ({"memory": "64M"}, "memory"),
    ({"cpus": 1}, "vcpu"),
    pytest.param({"accel": "kvm"}, "accel",
                 marks=pytest.mark.skipif(not have_kvm(), reason="no KVM")),
    ({"devices": []}, "device"),
])
def test_a_mismatch_is_refused_by_name(world, difference, words):
    source, _ = start(world, **difference)
    result = migrate(source, world.uri(), "--quiet")
    assert_failed(source, result.returncode, result.stderr.lower(), words)


def test_other_names_of_devices_are_refused(world):
    source, _ = start(world, devices=[f"{world.device('dev-x')},id=nic"])
    result = migrate(source, world.uri(), "--quiet")
    assert_failed(source, result.returncode, result.stderr, "dev0")


def test_another_kind_of_device_is_refused(world):
    path = world.folder / "null.sock"
    world.start("null", "device", "null", "--socket", path, ready=path)
    source, _ = start(world, devices=[path])
    result = migrate(source, world.uri(), "--quiet")
    assert_failed(source, result.returncode, result.stderr, "device.0")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("address, words", [
    ("tcp:127.0.0.1:{port}", ("Connection refused",)),
    ("tcp:name.invalid:{port}", ("name.invalid",)),
    ("tcp:127.0.0.1:65536", ("65535",)),
    ("tcp:127.0.0.1", ("tcp:HOST:PORT",)),
    ("tcp:127.0.0.1:http", ("not a number",)),
    ("unix:{folder}/dev-a.journal", ("dev-a.journal",)),
    ("unix:" + "x" * 200, ("too long",)),
])
def test_an_address_that_leads_nowhere(world, address, words):
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")])
    assert_guest_lives(source)
    result = migrate(source, address.format(port=free_port(), folder=world.folder), "--quiet")
    assert_failed(source, result.returncode, result.stderr, *words)


def test_the_destination_dies(world):
    source, target = start(world)
    process = migrate_slowly(source, world.uri())
    world.kill("b")
    _, err = process.communicate(timeout=60)
    assert_failed(source, process.returncode, err)


def test_the_destination_stops_in_an_orderly_way(world):
    source, target = start(world)
    process = migrate_slowly(source, world.uri())
    target("quit")
    _, err = process.communicate(timeout=60)
    assert_failed(source, process.returncode, err)
    assert target.process.wait(60) == 0


def test_the_device_at_the_destination_dies(world):
    source, _ = start(world)
    process = migrate_slowly(source, world.uri(), bandwidth="8M")
    world.kill("dev-b")
    _, err = process.communicate(timeout=60)
    assert_failed(source, process.returncode, err)


def test_the_source_stops_and_another_guest_comes(world):
    source, target = start(world)
    process = migrate_slowly(source, world.uri())
    source.process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 5  # it cannot know
    assert source.process.wait(60) == 0
    other = world.vm("c", *GUEST, devices=[world.device("dev-c")])
    assert_guest_lives(other)
    result = migrate(other, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


@pytest.mark.parametrize("side, step", [
    ("dev-a", "save_begin"), ("dev-a", "save"), ("dev-a", "stop"),
    ("dev-b", "load"), ("dev-b", "load_end"),
])
def test_a_device_that_fails_a_step(world, side, step):
    args = {name: ("--fail", step) if name == side else () for name in ("dev-a", "dev-b")}
    source = world.vm("a", *GUEST, devices=[world.device("dev-a", *args["dev-a"])])
    world.vm("b", devices=[world.device("dev-b", *args["dev-b"])], incoming=world.uri())
    assert_guest_lives(source)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert_failed(source, result.returncode, result.stderr)


def test_a_deadline_that_passes(world):
    source, _ = start(world)
    process = migrate_slowly(source, world.uri(), "--deadline", "1")
    _, err = process.communicate(timeout=60)
    assert_failed(source, process.returncode, err, "deadline")


def test_a_deadline_that_forces(world):
    source, target = start(world)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "1", "--deadline", "1",
                     "--on-deadline", "force")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


def test_a_guest_that_does_not_converge_is_slowed_down_until_then(world):
    source, _ = start(world)
    process = migrate_slowly(source, world.uri(), "--downtime-limit", "1", "--throttle-max", "50",
                             "--deadline", "60", bandwidth="100M")
    report = wait_until(lambda: (lambda r: r["x-vfmig"]["not-converging"] and r)(source("query-migrate")),
                        "the news that it does not converge")
    assert report["cpu-throttle-percentage"] == 50 and report["x-vfmig"]["stuck-rounds"] >= 3
    assert source("query-migrate-parameters")["max-cpu-throttle"] == 50
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert_guest_lives(source)


def test_journals_that_cannot_be_written(world):
    source, _ = start(world)
    source.journal.rmdir()
    source.journal.write_text("not a directory")
    result = migrate(source, world.uri(), "--quiet")
    assert_failed(source, result.returncode, result.stderr, str(source.journal))
