# SPDX-License-Identifier: BSD-3-Clause
"""A guest with a bulk device moves: every byte of 64 MiB is as the number of writes says."""
import json
import os
import subprocess

import pytest

from world import World, assert_guest_lives, have_kvm, migrate, wait_until

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
STATE = 64 << 20
NONE_YET = (1 << 64) - 1
ACCELS = ["none", pytest.param("kvm", marks=pytest.mark.skipif(not have_kvm(), reason="no KVM"))]


@pytest.fixture
def world():
    with World() as it:
        yield it


def expected(written):
    result = subprocess.run([os.environ["BULK_DIGEST"], str(STATE // 4096), str(written)],
                            capture_output=True, text=True, check=True)
    return int(result.stdout)


def digest_of_a_new_round(qmp):
    """What the device makes of its state from now on, with the number of writes it is of."""
    before = qmp("x-guest")["devices"][0]["checked"]

    def made():
        device = qmp("x-guest")["devices"][0]
        at = device["digest-at"]
        if device["checked"] < before + 2 or at == NONE_YET:
            return None
        again = qmp("x-guest")["devices"][0]  # the three were not written at once
        same = all(device[key] == again[key] for key in ("digest", "digest-at", "checked"))
        return (device["digest"], at) if same else None
    return wait_until(made, "a digest")


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("dialect", ["feature", "region"])
@pytest.mark.parametrize("knobs", [("--dirty-rate", "32M"), ("--no-precopy",)],
                         ids=["changing", "all at once"])
def test_the_state_comes_over_whole(world, dialect, knobs, accel):
    def device(name, *args):
        path = world.device(name, "--state-size", STATE, *args, kind="bulk")
        return f"{path},dialect={dialect}"
    source = world.vm("a", *GUEST, accel=accel, devices=[device("dev-a", *knobs)])
    target = world.vm("b", accel=accel, devices=[device("dev-b")], incoming=world.uri())
    assert_guest_lives(source)
    digest, at = digest_of_a_new_round(source)
    assert digest == expected(at)
    # Slowly enough that the device writes what it has sent already, in pre-copy.
    slowly = ("--max-bandwidth", "48M") if knobs[0] == "--dirty-rate" else ()
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "20000", *slowly)
    assert result.returncode == 0, result.stderr
    assert source("query-migrate")["x-vfmig"]["device-bytes"] >= STATE
    assert_guest_lives(target)
    digest, now = digest_of_a_new_round(target)
    assert now >= at and digest == expected(now)
    assert target("x-guest")["errors"] == 0


def test_a_device_that_loads_late_is_waited_for(world):
    """Before the guest is stopped: afterwards it would have to be, too."""
    source = world.vm("a", *GUEST, devices=[world.device("dev-a", "--state-size", 4 << 20, kind="bulk")])
    world.vm("b", devices=[world.device("dev-b", "--state-size", 4 << 20, "--load-rate", "4M", kind="bulk")],
             incoming=world.uri())
    assert_guest_lives(source)
    result = migrate(source, world.uri(), "--quiet", "--downtime-limit", "20000")
    assert result.returncode == 0, result.stderr
    with open(world.traces[0], encoding="utf-8") as trace:
        decided = [line for line in map(json.loads, trace) if line["ev"] == "decide"]
    # Within the limit, and not let go: at the first of them most of 4 MiB were still to be loaded.
    assert [line for line in decided if line["verdict"] == "again" and line["bound_ns"] <= line["limit_ns"]]
    assert decided[-1]["verdict"] == "go"
