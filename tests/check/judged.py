# SPDX-License-Identifier: BSD-3-Clause
"""A device to be judged, and the judgement."""
import json
import os
import subprocess
import time

VFMIG = os.environ["VFMIG"]
PATIENCE = 600 if os.environ.get("VFMIG_CHECK") == "long" else 100
# What the checker may be without: everything else that is skipped has no explanation.
EXPLAINED = ("destructive:", "no second device", "no workload that", "not among the quick ones",
             "the device gives no data in PRE_COPY")


class Device:
    """A `vfmig device` that listens."""

    def __init__(self, folder, kind, *options, sabotage=None):
        self.path = folder / f"{kind}.sock"
        env = dict(os.environ)
        env.pop("VFMIG_SABOTAGE", None)
        if sabotage:
            env["VFMIG_SABOTAGE"] = sabotage
        self.process = subprocess.Popen([VFMIG, "device", kind, "--socket", str(self.path), *options],
                                        stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env)
        end = time.monotonic() + PATIENCE
        while not self._listens():
            assert self.process.poll() is None and time.monotonic() < end, "the device does not listen"
            time.sleep(0.01)

    def _listens(self):
        with open("/proc/net/unix") as table:
            rows = (line.split() for line in table)
            return any(row[-1] == str(self.path) and row[3] == "00010000" for row in rows)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.process.kill()
        self.process.wait()


def check(path, *options, timeout=PATIENCE):
    return subprocess.run([VFMIG, "check", f"vfio-user:{path}", *options], capture_output=True,
                          text=True, timeout=timeout)


def judge(path, *options, timeout=PATIENCE):
    """The report, and the exit status."""
    # A machine that is busy is not a device that hangs.
    patience = () if "--timeout-ms" in options else ("--timeout-ms", "20000")
    result = check(path, "--format", "json", *patience, *options, timeout=timeout)
    assert result.returncode in (0, 3), result.stderr
    return json.loads(result.stdout), result.returncode


def verdicts(report, verdict):
    return [row for row in report["results"] if row["verdict"] == verdict]
