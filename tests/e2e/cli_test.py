# SPDX-License-Identifier: BSD-3-Clause
"""Every mistake on a command line gets one sentence on stderr and the documented exit code."""
import os
import subprocess

import pytest

VFMIG = os.environ["VFMIG"]
USAGE = 2


def run(*args, **kwargs):
    return subprocess.run([VFMIG, *args], capture_output=True, text=True, timeout=30, **kwargs)


def assert_sentence(result, code, *words):
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("vfmig")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    for word in words:
        assert word in result.stderr


def test_help_lists_the_exit_codes():
    result = run("--help")
    assert result.returncode == 0 and result.stderr == ""
    assert "exit status" in result.stdout


def test_version():
    result = run("--version")
    assert result.returncode == 0 and result.stdout.startswith("vfmig ")


@pytest.mark.parametrize("args, words", [
    ((), ("missing",)),
    (("frobnicate",), ("unknown command", "frobnicate")),
    (("--frobnicate",), ("unknown command", "--frobnicate")),
])
def test_mistakes_before_the_command(args, words):
    assert_sentence(run(*args), USAGE, *words)


def test_output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "w") as full:
        result = subprocess.run([VFMIG, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and "cannot write" in result.stderr
