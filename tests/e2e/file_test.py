# SPDX-License-Identifier: BSD-3-Clause
"""Saving a guest to a file and restoring it: once, whatever dies, fails or fills up meanwhile."""
import json
import os
import signal
import subprocess

import pytest

import stream
from world import VFMIG, World, assert_guest_lives, have_kvm, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")


@pytest.fixture
def world():
    with World() as it:
        yield it


def run(*args, **kwargs):
    return subprocess.run([VFMIG, *map(str, args)], capture_output=True, text=True, timeout=120, **kwargs)


def source_vm(world, name="a", device_args=(), kind="dma", **kwargs):
    device = world.device(f"dev-{name}", *device_args, kind=kind)
    vm = world.vm(name, *GUEST, devices=[device], **kwargs)
    assert_guest_lives(vm)
    return vm


def waiting_vm(world, name, device_args=(), kind="dma", **kwargs):
    return world.vm(name, devices=[world.device(f"dev-{name}", *device_args, kind=kind)],
                    incoming="defer", **kwargs)


def save(vm, file, *args):
    return run("save", "--qmp", vm.path, "--quiet", *args, file)


def restore(vm, file, *args):
    return run("restore", "--qmp", vm.path, "--quiet", *args, file)


def views(journal):
    return json.loads(run("status", "--json", journal).stdout)


def record(journal):
    [view] = views(journal)
    return view["record"]


def assert_fails(result, code, *words):
    assert result.returncode == code, result
    said = [line for line in result.stderr.splitlines() if not line.startswith("vfmig vm: what led to it is in ")]
    assert len(said) == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.mark.parametrize("accel", ["none", pytest.param("kvm", marks=pytest.mark.skipif(
    not have_kvm(), reason="no usable /dev/kvm"))])
def test_a_guest_goes_through_a_file(world, accel):
    file = world.folder / "guest"
    a = source_vm(world, accel=accel)
    result = run("save", "--qmp", a.path, "--json", file)
    assert result.returncode == 0, result.stderr
    saved = json.loads(result.stdout)["x-vfmig"]
    assert saved["state"] == "saved" and saved["rounds"] >= 2
    assert not a("query-status")["running"] and record(a.journal) == "SAVED"
    with pytest.raises(Exception, match="in a file"):
        a("cont")
    with pytest.raises(Exception, match="in a file"):
        a("migrate", uri=world.uri())
    assert not list(world.folder.glob("*.partial"))
    b = waiting_vm(world, "b", accel=accel)
    assert restore(b, file).returncode == 0
    assert_guest_lives(b)
    assert record(b.journal) == "RUNNING"
    # Restored once; also under another name, and by a VMM that needs no command.
    file = file.rename(world.folder / "moved")
    c = waiting_vm(world, "c", accel=accel)
    assert_fails(restore(c, file), 1, "claimed by process", str(b.journal))
    assert not c("query-status")["running"]
    # The source cannot have it back either.
    assert_fails(run("resolve", a.journal, "--discard-file"), 1, "claimed by process")
    assert not a("query-status")["running"]
    # And it can be saved again from where it is.
    assert save(b, world.folder / "second").returncode == 0
    assert restore(c, world.folder / "second").returncode == 0
    assert_guest_lives(c)


def test_incoming_file(world):
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b = world.vm("b", devices=[world.device("dev-b")], incoming=f"file:{file}")
    wait_until(lambda: b("query-status")["running"], "the guest from the file")
    assert_guest_lives(b)
    result = run("vm", "--accel", "none", "--memory", "48M", "--device",
                 f"vfio-user:{world.device('dev-c')}", "--journal", world.folder / "c",
                 "--incoming", f"file:{file}")
    assert_fails(result, 1, "claimed by process", str(b.journal))


def test_a_clone_is_told_aloud(world):
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b, c = waiting_vm(world, "b"), waiting_vm(world, "c")
    assert restore(b, file).returncode == 0
    before = file.read_bytes()
    result = restore(c, file, "--clone")
    assert result.returncode == 0 and "warning: a clone" in result.stderr
    assert_guest_lives(c)
    assert file.read_bytes() == before
    assert views(b.journal)[0]["id"] == views(a.journal)[0]["id"] != views(c.journal)[0]["id"]


def test_a_discarded_file(world):
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    copy = world.folder / "copy"
    assert_fails(run("resolve", a.journal, "--discard"), 1, "waits for such a decision")
    assert record(a.journal) == "SAVED"
    os.link(file, copy)
    assert run("resolve", a.journal, "--discard-file").returncode == 0
    assert not file.exists() and record(a.journal) == "RESUMED"
    assert_guest_lives(a)
    b = waiting_vm(world, "b")
    assert_fails(restore(b, copy), 1, "discarded")
    assert save(a, file).returncode == 0
    assert restore(b, file).returncode == 0
    assert_guest_lives(b)


def test_a_dead_source_gives_its_file_up(world):
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    world.kill("a")
    assert [v["outcome"] for v in views(a.journal)] == ["saved"]
    start = ("vm", "--accel", "none", "--memory", "48M", "--journal", a.journal)
    assert_fails(run(*start), 1, str(file), "--discard-released")
    moved = file.rename(world.folder / "moved")
    assert_fails(run("resolve", a.journal, "--discard-file"), 1, "not there", "--file-is-gone")
    file = moved.rename(file)
    assert run("resolve", a.journal, "--discard-file").returncode == 0
    assert not file.exists() and record(a.journal) == "RESUMED"


def test_nothing_is_replaced(world):
    file = world.folder / "guest"
    file.write_text("something dear")
    a = source_vm(world)
    assert_fails(save(a, file), 1, "exists")
    assert_fails(save(a, world.folder / "none" / "guest"), 1, "No such file")
    assert_fails(restore(a, file), 1, "waits for no guest")
    b = waiting_vm(world, "b")
    assert_fails(restore(b, file), 1, "not a file with a saved guest")
    assert file.read_text() == "something dear"
    assert_guest_lives(a)


def test_a_cancelled_save(world):
    file = world.folder / "guest"
    a = source_vm(world)
    process = subprocess.Popen([VFMIG, "save", "--qmp", a.path, "--max-bandwidth", "1M", "--quiet", file],
                               stderr=subprocess.PIPE, text=True)
    wait_until(lambda: a("query-migrate").get("ram", {}).get("transferred", 0) > 0, "a piece of it")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4 and "cancelled" in err
    assert not list(world.folder.glob("guest*")) and record(a.journal) == "RESUMED"
    assert_guest_lives(a)


def test_an_identity_that_does_not_fit_claims_nothing(world):
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    before = file.read_bytes()
    b = waiting_vm(world, "b", memory="64M")
    assert_fails(restore(b, file), 1, "memory.0")
    assert file.read_bytes() == before
    c = waiting_vm(world, "c")
    assert restore(c, file).returncode == 0


@pytest.mark.parametrize("damage, word", [
    ("cut", "was cut"), ("page", "altered"), ("head", "magic"), ("log", "damaged"), ("tail", "")])
def test_damage(world, damage, word):
    """It is found before the guest runs; then the claim is given back, on record."""
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    data = bytearray(file.read_bytes())
    where = {"cut": None, "page": stream.last_page(data), "head": 32768 + 3, "log": 700, "tail": len(data) - 60}
    if damage == "cut":
        del data[-1:]
    else:
        data[where[damage]] ^= 1
    file.write_bytes(data)
    b = waiting_vm(world, "b")
    result = restore(b, file)
    assert result.returncode == 1 and word in result.stderr, result
    assert not b("query-status")["running"]
    if damage in ("page", "tail"):
        assert record(b.journal) == "REFUSED"
        data[where[damage]] ^= 1
        with open(file, "r+b") as again:
            again.seek(where[damage])
            again.write(data[where[damage]:where[damage] + 1])
        c = waiting_vm(world, "c")
        assert restore(c, file).returncode == 0
        assert_guest_lives(c)


def test_devices_that_cannot_start(world):
    """After the claim became a grant: nothing has run, so it goes back all the same."""
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b", ("--fail", "start", "--latency", "reset=300"))  # which is no end yet
    result = restore(b, file)
    assert result.returncode == 1 and "dev0" in result.stderr, result
    assert record(b.journal) == "REFUSED" and not b("query-status")["running"]
    c = waiting_vm(world, "c")
    assert restore(c, file).returncode == 0
    assert_guest_lives(c)


def test_a_refusal_that_cannot_be_put_on_record(world):
    """The claim stands until it can."""
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b", sabotage="journal-full")
    assert_fails(restore(b, file), 1, "No space left on device")
    assert not b("query-status")["running"]
    c = waiting_vm(world, "c")
    assert_fails(restore(c, file), 1, "claimed by process", str(b.journal))
    world.kill("b")
    assert views(b.journal)[0]["outcome"] == "refused"
    assert run("resolve", b.journal).returncode == 0 and record(b.journal) == "REFUSED"
    assert restore(c, file).returncode == 0
    assert_guest_lives(c)


def test_a_cancelled_restore(world):
    file = world.folder / "guest"
    a = source_vm(world, kind="bulk")
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b", ("--load-rate", "1M"), kind="bulk")
    process = subprocess.Popen([VFMIG, "restore", "--qmp", b.path, "--quiet", file],
                               stderr=subprocess.PIPE, text=True)
    wait_until(lambda: b("query-migrate").get("x-vfmig", {}).get("step") == "R2", "its devices loading")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4 and "cancelled" in err
    assert record(b.journal) == "REFUSED"
    c = waiting_vm(world, "c", kind="bulk")
    assert restore(c, file).returncode == 0
    assert_guest_lives(c)


def test_a_paused_guest_stays_paused(world):
    file = world.folder / "guest"
    a = source_vm(world)
    a("stop")
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b")
    assert restore(b, file).returncode == 0
    assert b("query-status") == {"running": False, "status": "paused"}
    b("cont")
    assert_guest_lives(b)


def test_several_devices(world):
    file = world.folder / "guest"
    devices = [world.device("dev-a"), world.device("dev-a2"), world.device("bulk-a", kind="bulk")]
    a = world.vm("a", *GUEST, devices=devices)
    assert_guest_lives(a)
    assert save(a, file).returncode == 0
    devices = [world.device("dev-b"), world.device("dev-b2"), world.device("bulk-b", kind="bulk")]
    b = world.vm("b", devices=devices, incoming="defer")
    assert restore(b, file).returncode == 0
    assert_guest_lives(b)


def test_a_report_that_finds_no_room(world):
    """The guest is restored: 1 would say that the file can be restored once more."""
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b")
    with open("/dev/full", "w") as full:
        result = subprocess.run([VFMIG, "restore", "--qmp", b.path, "--json", file], stdout=full,
                                stderr=subprocess.PIPE, text=True, timeout=120)
    assert_fails(result, 5, "the guest is restored", "No space left on device", "vfmig status")
    assert_guest_lives(b)


SAVING = ("before-begun", "after-begun", "before-sync", "before-complete", "after-complete", "before-SAVED",
          "after-SAVED")


@pytest.mark.parametrize("kill", SAVING)
def test_a_killed_save(world, kill):
    """Either nothing can be restored, or the guest can, once."""
    file = world.folder / "guest"
    a = source_vm(world, sabotage=f"kill-{kill}")
    assert save(a, file).returncode == 5
    a.process.wait(60)
    b = waiting_vm(world, "b")
    found = [path for path in (file, world.folder / "guest.partial") if path.exists()]
    assert len(found) == 1
    whole = SAVING.index(kill) >= SAVING.index("after-complete")
    assert (found == [file]) == (SAVING.index(kill) >= SAVING.index("before-complete"))
    if not whole:
        assert_fails(restore(b, found[0]), 1, "not a file" if kill == "before-begun" else "incomplete")
    # The source does not start its guest as if nothing had been.
    if not kill.endswith("-begun"):  # before that nothing was offered to anybody
        start = ("vm", "--accel", "none", "--memory", "48M", "--journal", a.journal)
        assert_fails(run(*start), 1, "saved to" if kill == "after-SAVED" else "not settled")
    if whole:
        assert restore(b, file).returncode == 0
        assert_guest_lives(b)
        [view] = json.loads(run("status", "--json", a.journal, "--peer-journal", b.journal).stdout)
        assert view["outcome"] == "runs-at-destination"


RESTORING = ("before-claimed", "after-claimed", "before-READY", "after-READY", "after-GRANTED",
             "before-RUNNING", "after-RUNNING")


@pytest.mark.parametrize("kill", RESTORING)
def test_a_killed_restore(world, kill):
    """What is on record counts: before RUNNING the file goes back, after it never."""
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b", sabotage=f"kill-{kill}")
    assert restore(b, file).returncode == 5
    b.process.wait(60)
    c = waiting_vm(world, "c")
    if kill != "before-claimed":
        assert_fails(restore(c, file), 1, "claimed by process", str(b.journal))
        assert_fails(run("resolve", a.journal, "--discard-file"), 1, "claimed by process")
    resolved = run("resolve", b.journal, "--json")
    assert resolved.returncode == 0, resolved
    if kill == "after-RUNNING":
        assert_fails(restore(c, file), 1, "claimed by process")
        assert record(b.journal) == "RUNNING"
        d = waiting_vm(world, "d", journal=b.journal)
        assert_fails(restore(d, file), 1, "has run")
    else:
        assert restore(c, file).returncode == 0
        assert_guest_lives(c)


def test_a_restore_returns_on_its_journal(world):
    """A second claim of one journal, and its process dies twice: the records of the first say nothing."""
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b", sabotage="kill-before-RUNNING")
    assert restore(b, file).returncode == 5
    b.process.wait(60)
    c = waiting_vm(world, "c", journal=b.journal, sabotage="kill-after-claimed")
    assert restore(c, file).returncode == 5
    c.process.wait(60)
    [view] = views(b.journal)
    assert view["record"] == "REFUSED"
    d = waiting_vm(world, "d", journal=b.journal)
    assert restore(d, file).returncode == 0
    assert_guest_lives(d)


@pytest.mark.parametrize("fault", ["journal-full", "journal-full-SAVED", "fail-complete"])
def test_a_save_that_cannot_be_put_on_record(world, fault):
    """The file may be complete by then: it is void before the guest goes on."""
    file = world.folder / "guest"
    faults = [fault] + [f for f in [os.environ.get("VFMIG_SABOTAGE")] if f]
    a = source_vm(world, sabotage=",".join(faults))
    result = save(a, file)
    assert result.returncode == 1, result
    assert not list(world.folder.glob("guest*"))
    assert_guest_lives(a)


def test_a_full_disk(world):
    """The guest goes on, and nothing is left of the file."""
    disk = world.folder / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True,
                          text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted: {made.stderr.strip()}")
    try:
        a = source_vm(world)
        assert_fails(save(a, disk / "guest"), 1, "No space left on device")
        assert not list(disk.iterdir()) and record(a.journal) == "RESUMED"
        assert_guest_lives(a)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_devices_that_cannot_take_it(world):
    file = world.folder / "guest"
    a = source_vm(world, kind="bulk")
    assert save(a, file).returncode == 0
    b = waiting_vm(world, "b", ("--fail", "load"), kind="bulk")
    result = restore(b, file)
    assert result.returncode == 1 and "dev0" in result.stderr, result
    assert record(b.journal) == "REFUSED" and not b("query-status")["running"]
    c = waiting_vm(world, "c", kind="bulk")
    assert restore(c, file).returncode == 0
    assert_guest_lives(c)


def zstd(vm):
    try:
        vm("migrate-set-parameters", multifd_compression="zstd")
    except Exception as error:  # noqa: B902 - a build without
        pytest.skip(str(error))


def test_compressed(world):
    """By file and by connection; the other side must have it, and says so before anything moves."""
    plain, packed = world.folder / "plain", world.folder / "packed"
    a = source_vm(world)
    zstd(a)
    a("stop")  # so that both files hold the same
    assert save(a, plain).returncode == 0
    size = plain.stat().st_size
    assert run("resolve", a.journal, "--discard-file").returncode == 0
    assert save(a, packed, "--compress", "zstd:1").returncode == 0
    assert packed.stat().st_size < size * 0.7
    without = waiting_vm(world, "b", sabotage="no-zstd")
    assert_fails(restore(without, packed), 1, "needs zstd")
    c = waiting_vm(world, "c")
    assert restore(c, packed).returncode == 0
    c("cont")
    assert_guest_lives(c)
    uri = world.uri()
    without("migrate-incoming", uri=uri)
    result = run("migrate", "--qmp", c.path, "--quiet", "--compress", "zstd", uri)
    assert_fails(result, 1, "needs zstd")
    assert_guest_lives(c)
    d = world.vm("d", devices=[world.device("dev-d")], incoming=world.uri("second"))
    result = run("migrate", "--qmp", c.path, "--quiet", "--compress", "zstd", "--downtime-limit", "2000",
                 world.uri("second"))
    assert result.returncode == 0, result.stderr
    assert_guest_lives(d)


@pytest.mark.parametrize("how", ["lz4", "zstd:", "zstd:0", "zstd:20", "zstd:1x"])
def test_compression_that_is_none(world, how):
    a = world.vm("a")
    assert_fails(save(a, world.folder / "guest", "--compress", how), 2, "--compress")


def inspect(file, **kwargs):
    result = run("inspect", "--json", file, **kwargs)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result, lines[:-1], lines[-1]


def test_inspect(world):
    file = world.folder / "guest"
    a = source_vm(world)
    assert save(a, file).returncode == 0
    result, items, totals = inspect(file)
    assert result.returncode == 0, result.stderr
    assert totals["whole"] and totals["offset"] == file.stat().st_size
    assert totals["file"].startswith("not claimed") and totals["devices"][0]["ended"]
    assert [i["log"] for i in items if "log" in i] == ["begun", "complete"]
    names = [i["record"] for i in items if "record" in i]
    assert names[:2] == ["HELLO", "IDENTITY"] and names[-1] == "BYE"
    assert [i["message"] for i in items if i.get("record") == "HANDOVER"] == ["offer", "seal"]
    # For people, and from a pipe.
    with open(file, "rb") as stream:
        text = run("inspect", "-", stdin=stream)
    assert text.returncode == 0 and "memory.0=" in text.stdout and text.stderr == ""
    assert run("inspect", "--quiet", file).stdout.count("\n") < 8
    # Up to the cut; the head of a file and what follows it are told apart.
    data = file.read_bytes()
    for size in (0, 5, 700, 40000, len(data) - 1):
        cut = world.folder / "cut"
        cut.write_bytes(data[:size])
        result, some, totals = inspect(cut)
        assert_fails(result, 1, f"at offset {totals['offset']}")
        assert not totals["whole"] and some == items[:len(some)]
    stream = world.folder / "stream"
    stream.write_bytes(data[32768:])
    result, rest, _ = inspect(stream)
    assert result.returncode == 0 and [i["record"] for i in rest] == names
    b = waiting_vm(world, "b")
    assert restore(b, file).returncode == 0
    assert inspect(file)[2]["file"] == "claimed"
    assert_fails(run("inspect", world.folder / "none"), 1, "No such file")
