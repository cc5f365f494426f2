# SPDX-License-Identifier: BSD-3-Clause
"""Migrations over TCP under TLS, and what is refused without it."""
import os
import subprocess

import pytest

from world import World, QmpError, assert_guest_lives, migrate

GUEST = ("--working-set", "8M", "--dirty-rate", "20M")
KEY = "move:00112233445566778899aabbccddeeff"


@pytest.fixture
def world():
    with World() as it:
        yield it


@pytest.fixture
def certs(world):
    folder = world.folder / "certs"
    folder.mkdir()
    subprocess.run([os.environ["MAKE_CERTS"], folder], check=True)
    return folder


def key(world, name, text=KEY):
    path = world.folder / name
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def incoming(world, name, *args):
    vm = world.vm(name, *args, devices=[world.device(f"dev-{name}")], incoming="tcp:127.0.0.1:0")
    return vm, f"tcp:127.0.0.1:{vm('query-migrate')['socket-address'][0]['port']}"


def source(world):
    vm = world.vm("a", *GUEST, devices=[world.device("dev-a")])
    assert_guest_lives(vm)
    return vm


@pytest.mark.parametrize("kind", ["certificates", "key"])
def test_a_guest_moves_under_tls(world, certs, kind):
    if kind == "key":
        here = there = ("--tls-psk", key(world, "psk"))
    else:
        here, there = ("--tls-creds", certs / "a"), ("--tls-creds", certs / "b")
    a = source(world)
    b, uri = incoming(world, "b", *there)
    dry = migrate(a, uri, "--quiet", "--dry-run", *map(str, here))
    assert dry.returncode == 0, dry.stderr
    plain = migrate(a, uri, "--quiet")
    assert plain.returncode == 1
    assert_guest_lives(a)
    result = migrate(a, uri, "--quiet", "--channels", "4", "--downtime-limit", "20000", *map(str, here))
    assert result.returncode == 0, result.stderr
    assert_guest_lives(b)


def test_whoever_has_no_proof_gets_no_guest(world, certs):
    a = source(world)
    b, uri = incoming(world, "b", "--tls-creds", certs / "b")
    for args, why in ((("--tls-creds", certs / "stranger"), "the peer's certificate"),
                      (("--tls-creds", certs / "a", "--tls-hostname", "elsewhere"), "hostname mismatch"),
                      (("--tls-psk", key(world, "psk")), "TLS with the peer failed"),
                      (("--tls-creds", certs), "neither ca.pem nor ca-cert.pem")):
        result = migrate(a, uri, "--quiet", *map(str, args))
        assert result.returncode == 1 and why in result.stderr, result.stderr
    assert_guest_lives(a)
    result = migrate(a, uri, "--quiet", "--downtime-limit", "20000", "--tls-creds", str(certs / "a"))
    assert result.returncode == 0, result.stderr
    assert_guest_lives(b)


# 192.0.2.0/24 is for documentation: nobody is there, and nobody is asked.
FAR = "tcp:192.0.2.77:4444"


def test_plain_text_off_this_host_is_refused_on_both_sides(world):
    a = source(world)
    for args in ((), ("--dry-run",)):
        result = migrate(a, FAR, *args)
        assert result.returncode == 1
        said = result.stderr if not args else result.stdout
        assert "192.0.2.77:4444 is off this host" in said and "--plaintext" in said
    assert_guest_lives(a)
    b = world.vm("b", devices=[world.device("dev-b")], incoming="defer")
    for uri in ("tcp:0.0.0.0:0", "tcp:[::]:0", FAR):
        with pytest.raises(QmpError, match="is off this host"):
            b("migrate-incoming", uri=uri)
    b("migrate-incoming", uri="tcp:0.0.0.0:0", x_plaintext=True)
    port = b("query-migrate")["socket-address"][0]["port"]
    result = migrate(a, f"tcp:127.0.0.1:{port}", "--quiet")
    assert result.returncode == 0, result.stderr
    assert_guest_lives(b)


def test_incoming_off_this_host_does_not_start_in_plain_text(world):
    vfmig, journal = os.environ["VFMIG"], world.folder / "j"
    journal.mkdir()
    result = subprocess.run([vfmig, "vm", "--accel", "none", "--memory", "48M", "--journal", journal,
                             "--incoming", "tcp:0.0.0.0:0"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "is off this host" in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and not list(journal.iterdir())
