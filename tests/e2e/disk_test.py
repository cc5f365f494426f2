# SPDX-License-Identifier: BSD-3-Clause
"""Full disks, before and in the middle: one clear sentence, the documented code, the guest runs on."""
import json
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from world import VFMIG, World, assert_guest_lives, migrate, migrate_slowly, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
FULL = "No space left on device"


class Disk:
    """A small file system of its own."""

    def __init__(self, path, options):
        path.mkdir()
        self.path = path
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path],
                              capture_output=True, text=True)
        if made.returncode:
            path.rmdir()
            pytest.skip(f"no tmpfs can be mounted: {made.stderr.strip()}")

    def fill(self):
        with open(self.path / "ballast", "wb", buffering=0) as ballast:
            with pytest.raises(OSError, match=FULL):
                while True:
                    ballast.write(bytes(4096))

    def empty(self):
        (self.path / "ballast").unlink()

    def done(self):
        subprocess.run(["umount", self.path], check=True)


@pytest.fixture
def world():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vfmig-disks-", dir="/tmp"))
    disks = []

    def disk(name, options="size=256k"):
        disks.append(Disk(folder / name, options))
        return disks[-1]
    try:
        with World() as it:
            it.disk = disk
            yield it
    finally:
        for each in disks:
            each.done()
        shutil.rmtree(folder)


def start(world, source_journal=None, target_journal=None):
    source = world.vm("a", *GUEST, devices=[world.device("dev-a")], journal=source_journal)
    target = world.vm("b", devices=[world.device("dev-b")], incoming=world.uri(), journal=target_journal)
    assert_guest_lives(source)
    return source, target


def assert_sentence(code, err, wanted, *words):
    assert code == wanted and err.startswith("vfmig") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_journal_that_finds_no_room(world, side):
    disk = world.disk("disk")
    source, target = start(world, **{"source": {"source_journal": disk.path},
                                     "destination": {"target_journal": disk.path}}[side])
    disk.fill()
    result = migrate(source, world.uri(), "--quiet")
    assert_sentence(result.returncode, result.stderr, 1, FULL, "journal")
    assert source("query-status") == {"running": True, "status": "running"}
    assert_guest_lives(source)
    assert not target("query-status")["running"]
    disk.empty()
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(target)


@pytest.mark.parametrize("ending", ["moved", "cancelled"])
def test_a_disk_that_fills_up_meanwhile_stops_nothing(world, ending):
    """Room for the records of an attempt was laid out when it began."""
    disks = [world.disk(name) for name in ("disk-a", "disk-b")]
    source, target = start(world, disks[0].path, disks[1].path)
    if ending == "moved":
        source("stop")  # so that it ends in spite of the bandwidth
    process = migrate_slowly(source, world.uri(), "--downtime-limit", "2000", bandwidth="2M")
    for disk in disks:
        disk.fill()
    assert process.poll() is None
    if ending == "moved":
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        target("cont")
        assert_guest_lives(target)
    else:
        source("migrate_cancel")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 4, err
        assert_guest_lives(source)
    views = json.loads(subprocess.run([VFMIG, "status", "--json", disks[0].path, "--peer-journal",
                                       disks[1].path], capture_output=True, check=True).stdout)
    wanted = ("RELEASED", "runs-at-destination") if ending == "moved" else ("RESUMED", "runs-at-source")
    assert [(view["record"], view["outcome"]) for view in views] == [wanted]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_journal_that_is_removed_meanwhile(world, side):
    """What nobody would find again must not be relied upon: before the grant the guest stays where it is."""
    source, target = start(world)
    source("stop")  # so that it ends in spite of the bandwidth
    process = migrate_slowly(source, world.uri(), "--downtime-limit", "2000", bandwidth="2M")
    shutil.rmtree((source if side == "source" else target).journal)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "cannot find journal" in err, err
    source("cont")
    assert_guest_lives(source)
    assert not target("query-status")["running"]


def test_sockets_that_find_no_room(world):
    disk = world.disk("disk", "nr_inodes=2")  # the root, and one more
    (disk.path / "ballast").touch()
    path = disk.path / "sock"
    for args in (["device", "dma", "--socket", path],
                 ["vm", "--accel", "none", "--memory", "48M", "--qmp", path],
                 ["vm", "--accel", "none", "--memory", "48M", "--journal", world.folder,
                  "--incoming", f"unix:{path}"]):
        result = subprocess.run([VFMIG, *map(str, args)], capture_output=True, text=True, timeout=60)
        assert_sentence(result.returncode, result.stderr, 1, FULL, str(path))


def test_output_that_finds_no_room(world):
    """The guest has moved, and who asked is sent to vfmig status: 1 would say that it did not move."""
    source, target = start(world)
    with open("/dev/full", "w") as full:
        result = subprocess.run([VFMIG, "migrate", "--qmp", str(source.path), "--json",
                                 "--downtime-limit", "2000", world.uri()], stdout=full,
                                stderr=subprocess.PIPE, text=True, timeout=60)
    assert_sentence(result.returncode, result.stderr.splitlines()[-1] + "\n", 5, FULL,
                    "the guest moved", "vfmig status")
    wait_until(lambda: target("query-status")["running"], "the guest at its destination")
    assert_guest_lives(target)
    for command in ("status", "resolve"):
        with open("/dev/full", "w") as full:
            result = subprocess.run([VFMIG, command, source.journal, "--json"], stdout=full,
                                    stderr=subprocess.PIPE, text=True, timeout=60)
        assert_sentence(result.returncode, result.stderr, 1, FULL, "write")
