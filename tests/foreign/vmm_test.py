# SPDX-License-Identifier: BSD-3-Clause
"""A few of the foreign devices with the reference VMM and its guest around them; and devices of ours
where the others are, for what is believed of them."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))
from quirks import QUIRKS  # noqa: E402
from v2 import Kernel  # noqa: E402
from world import VFMIG, World, migrate, wait_until  # noqa: E402

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
FREE = 40 << 20     # of 48 MiB; the guest has nothing behind it

# The registers of a dma device are memory in a foreign one.
MOVE = ["U-all", "M-all", "H-all", "L-late", "K4"]
STAY = ["L1"]


def assert_guest_lives(qmp):
    """It takes the device for one of ours, which keeps what is written to it and never completes
    anything, and checks that, and its memory."""
    def checks():
        return qmp("x-guest")["devices"][0]["sram-checks"]

    before = checks()
    wait_until(lambda: checks() > before + 1, "progress of the guest")
    assert qmp("x-guest")["errors"] == 0


class Pair:
    def __init__(self, world, name, late=False):
        [row] = [row for row in QUIRKS if row.id == name]
        self.devices = [row.device(world.folder / side, side == "source", dma_from=FREE, bar_bytes=128 << 10,
                                   bar_id=0x414d4456,
                                   **{**row.quirks, **row.only.get(side, {})})
                        for side in ("source", "destination")]
        option = ",late-load" if late else ""
        paths = [f"{one.path},id=odd{option}" for one in self.devices]
        self.source = world.vm("a", *GUEST, devices=paths[:1])
        self.target = world.vm("b", devices=paths[1:], incoming=world.uri())
        self.row = row

    def join(self):
        for one in self.devices:
            one.join()
            assert one.complaints == []


@pytest.mark.parametrize("name", MOVE)
def test_it_moves(name):
    with World() as world:
        pair = Pair(world, name, late=name == "L-late")
        assert_guest_lives(pair.source)
        result = migrate(pair.source, world.uri(), "--quiet", "--downtime-limit", "2000")
        assert result.returncode == 0, result.stderr
        assert_guest_lives(pair.target)
    pair.join()
    source, destination = pair.devices
    assert destination.content == source.content and destination.loaded_seq == source.seq > 0


@pytest.mark.parametrize("name", STAY)
def test_it_stays(name):
    with World() as world:
        pair = Pair(world, name)
        result = migrate(pair.source, world.uri(), "--quiet")
        assert result.returncode == 1
        assert pair.row.refused in result.stderr
        assert_guest_lives(pair.source)
    pair.join()


@pytest.mark.parametrize("answer", [b"{", b"{}", b"[]\0", b'{"capabilities":[]}\0',
                                    b'{"capabilities":{"max_msg_fds":-1}}\0'])
def test_it_talks_nonsense(answer):
    """Which one, of many devices, is said."""
    class Nonsense(Kernel):
        def version(self, payload, fds):
            return bytes(4) + answer

    with tempfile.TemporaryDirectory(prefix="vfmig-", dir="/tmp") as folder:
        device = Nonsense(pathlib.Path(folder) / "odd", True)
        result = subprocess.run([VFMIG, "vm", "--accel", "none", "--memory", "48M", "--device",
                                 f"vfio-user:{device.path}"], capture_output=True, text=True, timeout=60)
        device.join()
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result
    assert f"{device.path}: VERSION" in result.stderr


@pytest.mark.parametrize("dialect", ["--feature", "--region"])
@pytest.mark.parametrize("mask, quiet", [((), "ndma_all"), (("--no-ndma",), "none")])
def test_how_quiet_ours_are(dialect, mask, quiet):
    with World() as world:
        paths = [world.device(name, *mask) for name in ("a", "b")]
        host = subprocess.run([os.environ["FOREIGN_HOST"], dialect, *paths, world.folder],
                              capture_output=True, text=True, timeout=120)
        assert host.returncode == 0, host.stdout + host.stderr
        result = json.loads(host.stdout)
        assert result["quiet"] == quiet and result["dialect"] == dialect[2:]
        assert [one["state"] for one in result["attempts"]] == ["completed"]
        assert result["memory"] == "equal" and result["destination_runs"]
