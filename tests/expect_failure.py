#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A deliberate fault must be found, and by the check that is meant: a test that fails for another reason,
or crashes, has proved nothing.

    expect_failure.py REASON COMMAND...

REASON is a regular expression for what the command's output says. Exit code 0: the command has failed with
it, by an exit code of its own, and no sanitizer had anything to say.
"""
import os
import re
import subprocess
import sys

SANITIZER = re.compile(r"AddressSanitizer|UndefinedBehaviorSanitizer|runtime error:|exception: ")
SANITIZER_EXIT = 125  # no test framework's


def judge(reason, code, output):
    """What is wrong with that failure, or nothing."""
    if code == 0:
        return "the fault was not noticed"
    if code == 77:
        return "the test was skipped"
    if code < 0 or code >= SANITIZER_EXIT:
        return f"it ended with {code}"
    if SANITIZER.search(output):
        return "it crashed"
    return "" if re.search(reason, output) else f"it does not say {reason!r}"


def main():
    reason, command = sys.argv[1], sys.argv[2:]
    # A failed assertion leaves its memory behind, so leaks say nothing here.
    env = dict(os.environ, ASAN_OPTIONS=f"detect_leaks=0:exitcode={SANITIZER_EXIT}",
               UBSAN_OPTIONS=f"halt_on_error=1:exitcode={SANITIZER_EXIT}")
    result = subprocess.run(command, env=env, text=True, errors="replace", stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wrong = judge(reason, result.returncode, result.stdout)
    if wrong:
        print(f"{result.stdout}\nVFMIG_SABOTAGE={os.environ.get('VFMIG_SABOTAGE')}: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
