# SPDX-License-Identifier: BSD-3-Clause
"""vfmig migrate --dry-run: every mismatch of both sides by name, and nothing is changed."""
import json

from world import World, assert_guest_lives, migrate


def dry(source, world, *args):
    return migrate(source, world.uri(), "--dry-run", *args)


def assert_untouched(source, dest):
    """No attempt was made of it, at either side."""
    assert source("query-migrate") == {}
    assert source("query-status")["status"] == "running"
    assert "status" not in dest("query-migrate")
    assert dest("query-status")["status"] == "inmigrate"
    for vm in (source, dest):
        assert not list(vm.journal.iterdir())
    assert_guest_lives(source)


def test_what_could_be_moved_is_said_and_can_be_moved_after():
    with World() as world:
        source = world.vm("source", devices=[f"{world.device('a')},id=ring"])
        dest = world.vm("dest", "--trace", world.folder / "t.jsonl", devices=[f"{world.device('b')},id=ring"],
                        incoming=world.uri())
        for _ in range(2):
            result = dry(source, world)
            assert (result.returncode, result.stderr) == (0, ""), result
            assert "48 MiB of memory" in result.stdout and "nothing is against it" in result.stdout
            assert "device ring: feature dialect, stop-copy ndma pre-copy, logs its DMA" in result.stdout
        assert_untouched(source, dest)
        assert '"change-begin"' not in (world.folder / "t.jsonl").read_text()
        assert migrate(source, world.uri()).returncode == 0
        assert_guest_lives(dest)
        result = dry(source, world)
        assert result.returncode == 1 and "migrated away already" in result.stderr


def test_every_mismatch_is_named():
    with World() as world:
        paths = [world.device("a0"), world.device("a1", "--mask", "log", kind="bulk"),
                 world.device("b0", kind="bulk"), world.device("b1", kind="bulk")]
        source = world.vm("source", memory="48M", devices=[f"{paths[0]},id=ring", f"{paths[1]},id=lake"])
        dest = world.vm("dest", memory="64M", cpus=3, devices=[f"{paths[2]},id=ring", f"{paths[3]},id=sea"],
                        incoming=world.uri())
        result = dry(source, world, "--json")
        assert result.returncode == 1 and "cannot be moved there" in result.stderr
        answer = json.loads(result.stdout)
        assert answer["accept"] is False
        found = {(item["side"], item["text"]) for item in answer["mismatches"]}
        for side, *words in (("source", "device lake cannot log its DMA"),
                             ("destination", "memory.0 is ", " at the source and ", " at the destination"),
                             ("destination", "device.0.pci is "),
                             ("destination", "device.1.id is lake at the source and sea at the destination"),
                             ("destination", "vcpus")):
            assert any(side == where and all(word in text for word in words) for where, text in found), (words, found)
        text = dry(source, world).stdout
        for side, sentence in found:
            assert f"  {side}: {sentence}\n" in text
        assert_untouched(source, dest)


def test_a_journal_that_cannot_be_written_is_a_mismatch():
    with World() as world:
        source = world.vm("source")
        dest = world.vm("dest", incoming=world.uri())
        source.journal.rmdir()
        source.journal.parent.joinpath(source.journal.name).write_text("a file")
        result = dry(source, world)
        assert result.returncode == 1
        assert f"source: the journal {source.journal} cannot be written: " in result.stdout
        assert dest("query-status")["status"] == "inmigrate"


def test_a_destination_that_is_not_there():
    with World() as world:
        source = world.vm("source")
        result = dry(source, world)
        assert result.returncode == 1 and "No such file" in result.stderr and result.stderr.count("\n") == 1
        assert source("query-migrate") == {}


def test_a_destination_that_is_busy_says_so():
    with World() as world:
        first, second = world.vm("first"), world.vm("second")
        world.vm("dest", incoming=world.uri())
        assert migrate(first, world.uri()).returncode == 0
        result = dry(second, world)
        assert result.returncode == 1
        assert "destination: another migration is under way or done" in result.stdout
