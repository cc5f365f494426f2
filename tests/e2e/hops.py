# SPDX-License-Identifier: BSD-3-Clause
"""Many migrations one after the other: nothing is left behind in those who live through them, nothing grows."""
import json
import os
import pathlib

from world import World, assert_guest_lives, migrate, wait_until

FIRST = 4  # so many until all that is kept for the next has been made
SLACK_KIB = 1024  # buffers that fill up to a limit: a flight recorder's
SLACK_SOURCE_KIB = 128  # most of its buffers are full after FIRST
# What each thread and arena of the allocator keeps for later would be taken for a leak of half a KiB an attempt.
PLAIN_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}
GUEST = ("--working-set", "4M", "--dirty-rate", "10M")


def is_sanitized(pid):
    """Freed memory stays in a quarantine there: only descriptors and threads tell."""
    return "asan" in pathlib.Path(f"/proc/{pid}/maps").read_text()


def footprint(pid):
    """Descriptors, threads, KiB of memory of its own: guest memory is shared."""
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["RssAnon"].split()[0])


def assert_no_more(name, pid, before, after, slack=SLACK_KIB):
    assert after[:2] <= before[:2] and after[1] <= before[1], \
        f"{name}: descriptors and threads {before[:2]} have become {after[:2]}"
    assert is_sanitized(pid) or after[2] <= before[2] + slack, \
        f"{name}: {before[2]} KiB of memory have become {after[2]}"


def settle_down(pid, limit):
    """What ends with an attempt ends in its own time."""
    def is_down():
        now = footprint(pid)
        return now[0] <= limit[0] and now[1] <= limit[1]
    wait_until(is_down, f"descriptors and threads to be {limit[:2]} again")
    return footprint(pid)


def there_and_back(count):
    """Two hosts; the devices' processes live through it all, and the guest: of the VMMs, each takes a guest in
    once, and none is larger than the ones before."""
    with World() as world:
        paths = [world.device(f"dev-{host}") for host in "ab"]
        pids = [process.pid for process, _ in world.processes]
        journals = [world.folder / f"journal-{host}" for host in "ab"]
        for path in journals:
            path.mkdir()
        vm = world.vm("vm0", *GUEST, devices=[paths[0]], journal=journals[0])
        assert_guest_lives(vm)
        first, at_first, data = {}, {}, []
        for hop in range(1, count + 1):
            host = hop % 2
            uri = world.uri(f"hop{hop}")
            target = world.vm(f"vm{hop}", devices=[paths[host]], journal=journals[host], incoming=uri)
            result = migrate(vm, uri, "--json", "--quiet", "--downtime-limit", "2000")
            assert result.returncode == 0, result.stderr
            data.append(json.loads(result.stdout)["x-vfmig"]["device-bytes"])
            vm("quit")
            vm.process.wait(60)
            vm = target
            assert_guest_lives(vm)
            now = footprint(vm.process.pid) if hop <= FIRST else settle_down(vm.process.pid, at_first)
            if hop <= FIRST:
                first = {i: footprint(pid) for i, pid in enumerate(pids)}
                at_first = tuple(map(max, zip(now, at_first or now)))
            else:
                assert_no_more(f"the VMM of migration {hop}", vm.process.pid, at_first, now)
        for i, pid in enumerate(pids):
            assert_no_more(f"device {i}", pid, first[i], settle_down(pid, first[i]))
        assert max(data[FIRST:]) <= 2 * max(data[:FIRST]), f"device data grows: {data}"
        return f"{count} migrations there and back: descriptors, threads and KiB of a VMM {at_first}, then {now}"


def in_vain(count):
    """Attempts that the destination refuses: both VMMs live through them."""
    with World() as world:
        world.env.update(dict.fromkeys(("a", "b", "dev-a", "dev-b"), PLAIN_HEAP))
        source = world.vm("a", *GUEST, devices=[world.device("dev-a")])
        target = world.vm("b", devices=[world.device("dev-b", "--fail", "load_end")], incoming=world.uri())
        assert_guest_lives(source)
        pids = {log.stem: process.pid for process, log in world.processes}
        first = {}
        for attempt in range(1, count + 1):
            result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "2000")
            assert result.returncode == 1, result.stderr
            source("query-status")  # with it come the events, which the VMM would keep for who does not read
            if attempt == FIRST:
                first = {name: footprint(pid) for name, pid in pids.items()}
        last = {name: settle_down(pid, first[name]) for name, pid in pids.items()}
        for name, pid in pids.items():
            assert_no_more(name, pid, first[name], last[name], SLACK_SOURCE_KIB if name == "a" else SLACK_KIB)
        assert_guest_lives(source)
        assert not target("query-status")["running"]
        return f"{count} attempts in vain: source {first['a']}, then {last['a']}; destination {first['b']}, then {last['b']}"
