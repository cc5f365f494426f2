# SPDX-License-Identifier: BSD-3-Clause
"""Servers are started once for all tests of a file; every test ends with a look at each of them."""
import os
import pathlib
import shutil
import tempfile

import hypothesis
import pytest

import guest
import served

# `make check` runs the same bounded examples every time; VFMIG_BEHAVIOUR=long looks for new ones.
COMMON = {"deadline": None, "database": None, "print_blob": True,
          "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("check", derandomize=True, max_examples=25,
                                     stateful_step_count=30, **COMMON)
hypothesis.settings.register_profile("long", max_examples=400, stateful_step_count=60, **COMMON)
hypothesis.settings.load_profile(os.environ.get("VFMIG_BEHAVIOUR", "check"))


class Servers:
    """One process for each command line."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vfmig-", dir="/tmp"))
        self.running = {}

    def __call__(self, kind="dma", *options):
        key = (kind, *options)
        if key not in self.running:
            self.running[key] = served.Served(self.folder, len(self.running), *key)
        return self.running[key]

    def stop(self):
        try:
            for server in self.running.values():
                server.stop()
        finally:
            shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def all_servers():
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture
def servers(all_servers):
    yield all_servers
    for server in all_servers.running.values():
        server.assert_fresh()


@pytest.fixture
def server(servers):
    """The dma device with every feature."""
    return servers("dma")


@pytest.fixture
def client(server):
    return server.connect()


@pytest.fixture
def memory():
    """Guest memory of 64 pages that can be passed to a server."""
    with guest.Memory(64 * 4096) as one:
        yield one


@pytest.fixture(scope="session")
def saved_stream(all_servers):
    """A whole, valid data stream of a dma device whose scratch register holds STAMP."""
    client = all_servers("dma").connect()
    client.write_int(0, served.SCRATCH, 8, guest.STAMP)
    assert client.set_state(3) == 0
    stream = client.read_all_data()
    client.close()
    return stream


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """No test here may skip: what cannot be tested has failed."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped:
        report.outcome = "failed"
