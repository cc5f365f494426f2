# SPDX-License-Identifier: BSD-3-Clause
"""VERSION: what is agreed, what is refused, and that the answers are kept to.

    vfio-user 2     order, numbers, text, each key with its default and its limits
    vfio-user 2.1   twin socket
    vfio-user 10    a text that QEMU's client accepts
"""
import errno
import json
import struct

import guest
import pytest
import wire
from cases import INFO


def say(server, payload, fds=()):
    """A client that has sent this as its first message, and the reply."""
    client = server.connect(negotiate=False)
    return client, client.call(wire.VERSION, payload, fds)


def caps_of(reply):
    assert reply.flags == wire.REPLY and reply.payload[-1:] == b"\0"
    assert reply.payload[4:].count(b"\0") == 1
    return json.loads(reply.payload[4:-1])["capabilities"]


def agreed(server, **keys):
    client, reply = say(server, wire.version_payload(caps={"capabilities": keys}))
    return client, caps_of(reply)


def refused(server, payload, fds=()):
    """An error reply, then the connection is closed."""
    client, reply = say(server, payload, fds)
    wire.assert_error(reply, errno.EINVAL)
    client.assert_closed()


# ---- order and numbers ---------------------------------------------------------------------------

@pytest.mark.parametrize("command", [0, *wire.CLIENT_COMMANDS, 11, 15, 19])
def test_nothing_goes_before_version(server, command):
    client = server.connect(negotiate=False)
    client.fails(errno.EINVAL, command, INFO)
    client.assert_closed()


def test_version_is_agreed_once(client):
    client.write_int(wire.BAR0, guest.SCRATCH, 8, 3)
    client.fails(errno.EINVAL, wire.VERSION, wire.version_payload())
    assert client.read_int(wire.BAR0, guest.SCRATCH, 8) == 3


def test_commands_may_follow_version_in_the_same_segment(server):
    client = server.connect(negotiate=False)
    payload = wire.version_payload()
    client.send(wire.header(1, wire.VERSION, len(payload)) + payload +
                wire.header(2, wire.GET_INFO, 16) + INFO)
    assert client.await_reply(1).error == 0
    assert client.await_reply(2).error == 0


@pytest.mark.parametrize("minor, wanted", [(0, 0), (1, 1), (2, 2), (3, 2), (0xFFFF, 2)])
def test_minor_is_not_above_the_clients(server, minor, wanted):
    _, reply = say(server, wire.version_payload(0, minor))
    assert struct.unpack_from("=HH", reply.payload) == (0, wanted)


@pytest.mark.parametrize("major", [1, 2, 0xFFFF])
def test_another_major_is_refused(server, major):
    refused(server, wire.version_payload(major))


@pytest.mark.parametrize("size", range(4))
def test_version_shorter_than_its_numbers_is_refused(server, size):
    refused(server, bytes(size))


def test_descriptors_on_version_are_refused(server, memory):
    refused(server, wire.version_payload(), [memory.fd])


# ---- the text ------------------------------------------------------------------------------------

def test_text_is_optional(server):
    """All defaults: a client without a text is served."""
    client, reply = say(server, struct.pack("=HH", 0, 0))
    assert caps_of(reply) == {}
    client.ok(wire.GET_INFO, INFO)


@pytest.mark.parametrize("text", [
    b"{}", b'{"capabilities":{}}', b"\0", b"{}\0\0", b"{\0}\0", b"[]\0", b"1\0", b"null\0", b'"x"\0',
    b"{\0", b"{}x\0", b'{"capabilities":[]}\0', b'{"capabilities":1}\0', b"\xff\xfe\0",
    b'{"capabilities":' * 200 + b"\0", b"[" * 4000 + b"\0"])
def test_text_that_is_no_terminated_object_is_refused(server, text):
    refused(server, wire.version_payload(caps=text))


def test_text_above_4096_bytes_is_refused(server):
    refused(server, wire.version_payload(caps=b"{}" + b" " * 4094 + b"\0"))
    _, reply = say(server, wire.version_payload(caps=b"{}" + b" " * 4093 + b"\0"))
    assert reply.error == 0


@pytest.mark.parametrize("key, value", [
    ("max_msg_fds", "8"), ("max_msg_fds", -1), ("max_msg_fds", 1025), ("max_msg_fds", 1.5),
    ("max_data_xfer_size", "1"), ("max_data_xfer_size", 0), ("max_data_xfer_size", -4096),
    ("max_data_xfer_size", True), ("max_dma_maps", []), ("max_dma_maps", -1), ("pgsizes", "4096"),
    ("pgsizes", 0), ("write_multiple", 1), ("migration", 4096), ("migration", {"pgsize": "4096"}),
    ("migration", {"pgsize": 4095}), ("migration", {"pgsize": 0}), ("twin_socket", True),
    ("twin_socket", {"supported": 1}), ("twin_socket", {"supported": "yes"})])
def test_key_of_a_wrong_type_or_value_is_refused(server, key, value):
    refused(server, wire.version_payload(caps={"capabilities": {key: value}}))


def test_unknown_keys_are_ignored(server):
    client, reply = say(server, wire.version_payload(caps={
        "capabilities": {"colour": "red", "deep": {"er": [1, {}]}}, "more": [], "": None}))
    assert caps_of(reply) == {}
    client.ok(wire.GET_INFO, INFO)


def test_only_keys_that_the_client_sent_come_back(server):
    """QEMU warns about others."""
    offered = wire.TWIN_CAPS["capabilities"] | wire.QEMU_CAPS["capabilities"]
    for key in ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "migration"):
        client, caps = agreed(server, **{key: offered[key]})
        assert set(caps) == {key}
        client.close()


def test_reply_to_qemu_fits_its_buffer(server):
    """Minor 0, NUL at the end, not longer than the request: 194 bytes of text at most; and none of
    write_multiple, which makes QEMU queue every message."""
    request = wire.version_payload()
    client, reply = say(server, request)
    assert len(reply.payload) <= len(request) and len(reply.payload) - 4 <= 194
    assert reply.payload[:4] == bytes(4)
    caps = caps_of(reply)
    assert set(caps) <= set(wire.QEMU_CAPS["capabilities"]) - {"write_multiple"}
    assert caps["max_msg_fds"] <= 16 and caps["max_data_xfer_size"] <= 64 << 20
    assert caps["max_dma_maps"] <= 65535 and caps["migration"]["pgsize"] % 4096 == 0
    assert caps["pgsizes"] >= 4096 and caps["pgsizes"] % 4096 == 0


# ---- what the numbers mean -----------------------------------------------------------------------

def test_max_msg_fds_of_the_server_is_kept(server):
    _, caps = agreed(server, max_msg_fds=1)
    assert caps["max_msg_fds"] == 16


def test_max_dma_maps_of_the_server_is_kept(server):
    client, caps = agreed(server, max_dma_maps=65535)
    most = caps["max_dma_maps"]
    for number in range(most):
        client.command(wire.DMA_MAP, wire.dma_map(number * 8192, 4096))
        if number % 64 == 63:
            for _ in range(64):
                assert client.next_reply().error == 0
    for _ in range(most % 64):
        assert client.next_reply().error == 0
    client.fails(errno.ENOSPC, wire.DMA_MAP, wire.dma_map(most * 8192, 4096))
    assert client.ok(wire.DMA_UNMAP, wire.dma_unmap(0, 4096)) == wire.dma_unmap(0, 4096)
    client.ok(wire.DMA_MAP, wire.dma_map(most * 8192, 4096))


@pytest.mark.parametrize("value", [1 << 20, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1])
def test_max_data_xfer_size_of_any_width_is_understood(server, value):
    client, caps = agreed(server, max_data_xfer_size=value)
    assert caps["max_data_xfer_size"] == 1 << 20
    assert client.set_state(3) == 0
    assert struct.unpack_from("=II", client.ok(wire.MIG_DATA_READ, wire.mig_data(1 << 20)))[1] > 65536


@pytest.mark.parametrize("value", [9000, 65536])
def test_servers_replies_keep_to_the_clients_max_data_xfer_size(server, value):
    client, _ = agreed(server, max_data_xfer_size=value)
    assert client.set_state(3) == 0
    client.ok(wire.MIG_DATA_READ, wire.mig_data(value))
    client.fails(errno.E2BIG, wire.MIG_DATA_READ, wire.mig_data(value + 1))
    client.reset()
    client.read(wire.BAR0, guest.SRAM, value if value < guest.SRAM else 65536)
    client.fails(errno.E2BIG, wire.REGION_READ, wire.region(0, wire.BAR0, value + 1))


def test_default_of_max_data_xfer_size_is_one_mebibyte(server):
    client, _ = agreed(server)
    assert client.set_state(3) == 0
    client.ok(wire.MIG_DATA_READ, wire.mig_data(1 << 20))
    client.fails(errno.E2BIG, wire.MIG_DATA_READ, wire.mig_data((1 << 20) + 1))


def test_larger_max_data_xfer_size_is_told_and_used(servers):
    """A server that takes more than the default says so; what goes out is bounded by the client."""
    server = servers("dma", "--max-data", "4M", "--state-size", "8M")
    client, caps = agreed(server, max_data_xfer_size=64 << 20)
    assert caps["max_data_xfer_size"] == 4 << 20
    assert client.set_state(3) == 0
    got = client.ok(wire.MIG_DATA_READ, wire.mig_data(4 << 20))
    assert len(got) == 8 + (4 << 20)
    client.fails(errno.E2BIG, wire.MIG_DATA_READ, wire.mig_data((4 << 20) + 1))
    client.close()
    client, caps = agreed(server)
    assert caps["max_data_xfer_size"] == 4 << 20
    assert client.set_state(3) == 0
    client.fails(errno.E2BIG, wire.MIG_DATA_READ, wire.mig_data((1 << 20) + 1))


def test_pgsizes_is_4096(server):
    _, caps = agreed(server, pgsizes=4096 | 1 << 21)
    assert caps["pgsizes"] == 4096


@pytest.mark.parametrize("pgsize", [4096, 65536, 1 << 21])
def test_smaller_migration_pgsize_wins(server, pgsize):
    """Also of a client with larger host pages, which is not refused for it."""
    client, caps = agreed(server, migration={"pgsize": pgsize})
    assert caps["migration"]["pgsize"] == 4096
    client.ok(wire.DIRTY_PAGES, wire.dirty_pages(wire.DIRTY_START))


def test_absent_migration_stays_absent(server):
    _, caps = agreed(server, max_msg_fds=8)
    assert "migration" not in caps


# ---- 2.1 -----------------------------------------------------------------------------------------

def test_twin_socket_comes_with_the_reply_at_its_index(server):
    client, reply = say(server, wire.version_payload(caps=wire.TWIN_CAPS))
    assert caps_of(reply)["twin_socket"] == {"supported": True, "fd_index": 0}
    assert len(reply.fds) == 1
    client.twin = wire.Link(wire.socket.socket(fileno=reply.fds[0]))
    assert client.twin.sock.family == wire.socket.AF_UNIX
    assert client.twin.sock.type == wire.socket.SOCK_STREAM


@pytest.mark.parametrize("keys", [
    {}, {"twin_socket": {}}, {"twin_socket": {"supported": False}},
    {"twin_socket": {"supported": True}, "max_msg_fds": 0}])
def test_twin_socket_only_for_a_client_that_can_take_it(server, keys):
    _, reply = say(server, wire.version_payload(caps={"capabilities": keys}))
    assert "twin_socket" not in caps_of(reply) and reply.fds == []


def test_lost_twin_socket_is_a_lost_client(server):
    client = server.connect(caps=wire.TWIN_CAPS)
    client.twin.close()
    client.assert_closed()


def test_twin_socket_takes_no_commands(server):
    """Replies only: a command there is not answered and changes nothing."""
    client = server.connect(caps=wire.TWIN_CAPS)
    payload = wire.region(guest.SCRATCH, 0, 8, b"intruder")
    client.twin.send_piece(wire.header(1, wire.REGION_WRITE, len(payload)) + payload)
    assert client.read(wire.BAR0, guest.SCRATCH, 8) == bytes(8)
    assert client.twin.is_silent()
