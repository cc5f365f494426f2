#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What some cases of the tests here need of this host: without it they are left out, and this says so, as
a test that is skipped. Usage: host_can.py kvm | dirty-rings | tmpfs | root"""
import os
import subprocess
import sys
import tempfile

from world import have_kvm, ring_entries


def can_mount():
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], stderr=subprocess.DEVNULL).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


CAN = {"kvm": have_kvm, "dirty-rings": ring_entries, "tmpfs": can_mount, "root": lambda: os.geteuid() == 0}
if not CAN[sys.argv[1]]():
    print(f"no {sys.argv[1]} here: tests/e2e leaves out the cases that need it")
    sys.exit(77)
