#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Moves a running guest with a DMA device between two processes, there and back, and checks what
arrived. The last line is `demo: verified: ...` or `demo: FAILED: ...`.

    demo.py BUILD [--quick] [--accel kvm|none|auto] [--expect-failure REGEX]

--quick is a small guest and one way only. --expect-failure turns the verdict around: a build with
a deliberate fault (VFMIG_SABOTAGE) must fail, and for the reason given, not for any other.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
PAGE = 4096
ATTEMPTS = 3


class Failed(Exception):
    """The demo saw something that must not be."""


class ByChance(Failed):
    """What was to be shown did not happen: on a busy host a guest may be idle just then."""


class Qmp:
    """A client of one control socket."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rwb")
        json.loads(self.file.readline())
        self.run("qmp_capabilities")

    def run(self, command, **arguments):
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.file.write(json.dumps(request).encode() + b"\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise Failed(f"the VMM closed its control socket at {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def listening(path):
    """A socket's file is there a moment before anybody can connect to it."""
    with open("/proc/net/unix") as sockets:
        return any(line.split()[-1] == str(path) and int(line.split()[3], 16) & 0x10000
                   for line in sockets.readlines()[1:])


class Demo:
    def __init__(self, options):
        self.options = options
        self.vfmig = options.build / "tools" / "vfmig"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vfmig-demo-"))
        self.processes = []
        # The bandwidth keeps the migration going for longer than the guest needs to dirty all of
        # its working set once.
        self.memory, self.working, self.rate, self.bandwidth = (768, 288, 250, 375)
        if options.quick:
            self.memory, self.working, self.rate, self.bandwidth = (192, 64, 100, 300)

    def spawn(self, name, *arguments):
        return self.spawn_program(name, self.vfmig, *arguments)

    def spawn_program(self, name, *command):
        log = open(self.folder / f"{name}.log", "wb")
        process = subprocess.Popen([str(part) for part in command], stdout=log,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.processes.append((name, process))
        return process

    def wait_for(self, what, test, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, process in self.processes:
                if process.poll() not in (None, 0):
                    raise Failed(f"{name} ended with {process.returncode}: "
                                 f"{(self.folder / (name + '.log')).read_text()[-300:].strip()}")
            found = test()
            if found:
                return found
            time.sleep(0.02)
        raise Failed(f"{what} did not happen within {seconds} s")

    def device(self, name):
        path = self.folder / f"{name}.sock"
        self.spawn(name, "device", "dma", "--socket", path, "--latency-us", 3000,
                   "--quiesce-us", 8000)
        self.wait_for(f"the socket of {name}", lambda: listening(path))
        return path

    def vm(self, name, device, dialect, incoming=None):
        qmp = self.folder / f"{name}.qmp"
        arguments = ["vm", "--name", name, "--accel", self.options.accel, "--memory",
                     f"{self.memory}M", "--cpus", 2, "--working-set", f"{self.working}M",
                     "--dirty-rate", f"{self.rate}M", "--dma-in-flight", 4, "--qmp", qmp, "--channels", 2,
                     "--journal", self.folder / f"{name}.journal",
                     "--device", f"vfio-user:{device},dialect={dialect},id=dma0"]
        if incoming:
            arguments += ["--incoming", incoming]
        (self.folder / f"{name}.journal").mkdir(exist_ok=True)
        self.spawn(name, *arguments)
        self.wait_for(f"the control socket of {name}", lambda: listening(qmp))
        return Qmp(qmp), qmp

    def migrate_command(self, qmp, port, *more):
        command = [self.vfmig, "migrate", "--qmp", qmp, f"tcp:127.0.0.1:{port}", "--channels", 2,
                   "--downtime-limit", 100, "--max-bandwidth", f"{self.bandwidth}M", *more]
        if not sys.stdout.isatty():
            command.append("--quiet")
        result = subprocess.run([str(part) for part in command], timeout=60, check=False)
        if result.returncode:
            raise Failed(f"vfmig migrate ended with {result.returncode}")

    def draw(self, trace, name):
        """The migration as a picture, and as a page to look around in."""
        folder = self.folder if self.options.quick else self.options.build
        for suffix in ("svg", "html"):
            picture = folder / f"demo-{name}.{suffix}"
            subprocess.run([self.vfmig, "timeline", trace, "-o", picture], check=True, timeout=60)
        if folder != self.folder:
            print(f"demo: {name}: {os.path.relpath(picture)} shows what happened", flush=True)

    def close(self):
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name, process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                print(f"demo: {name} had to be killed", file=sys.stderr)
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cycles(guest):
    """Complete passes of the slowest vCPU over its part of the working set."""
    return min((cpu["cycles"] for cpu in guest["cpus"]), default=0)


def healthy(guest, where):
    if guest["errors"]:
        raise Failed(f"the guest {where} found {guest['errors']} errors, the first of kind "
                     f"{guest['first-error']} {guest['first-detail']}")
    return guest


def totals(guest):
    device = guest["devices"][0]
    return {"pages": sum(cpu["pages-verified"] for cpu in guest["cpus"]),
            "dmas": device["checked"], "irqs": sum(device["irqs"])}


def settle(demo, qmp, name, passes):
    """The guest goes over its whole working set again and its device answers, without an error."""
    before = healthy(qmp.run("x-guest"), name)
    start, device = cycles(before), before["devices"][0]

    def done():
        guest = healthy(qmp.run("x-guest"), name)
        now = guest["devices"][0]
        return (guest if cycles(guest) >= start + passes
                and now["checked"] > device["checked"] + 10
                and all(a > b for a, b in zip(now["irqs"], device["irqs"])) else None)
    return demo.wait_for(f"a pass of the guest over its memory ({name})", done, 45)


def progress(step):
    """What the guest did in a step, by its own counter."""
    return step["at-end"]["guest-progress"] - step["at-start"]["guest-progress"]


def check_report(report, demo, way):
    """What the engine says must be what was asked for."""
    need = []
    if report["rounds"] < 2:
        need.append(f"{report['rounds']} rounds")
    moved = report["memory-running-bytes"] + report["memory-stopped-bytes"]
    share = report["memory-running-bytes"] / moved
    if share < 0.9:
        need.append(f"only {share:.0%} of the memory was sent while vCPUs ran")
    if not demo.options.quick and report["working-set-pages"] * PAGE < 256 * MIB:
        need.append(f"the trackers saw {report['working-set-pages']} pages")
    for step in report["steps"]:
        if step["vcpus-ran"] and progress(step) <= 0:
            need.append(f"no guest progress in {step['name']}")
    if not next(part["ns"] for part in report["parts"] if part["name"] == "destination resumed"):
        need.append("the guest ran at the destination before the grant")
    if need:
        raise Failed(f"{way}: " + "; ".join(need))
    if not report["dma-in-flight"]:
        raise ByChance(f"{way}: no DMA was in flight when N was asked for")
    if not report["interrupts-latched"]:
        raise ByChance(f"{way}: no interrupt was latched")
    return share


def check_pause(guest, report, way, quick):
    seen = max(cpu["pause-move-ns"] for cpu in guest["cpus"]) / 1e6
    engine = report["downtime-ns"] / 1e6
    if not quick and abs(seen - engine) > max(10, 0.2 * engine):
        raise Failed(f"{way}: the guest saw a pause of {seen:.1f} ms, the engine says {engine:.1f}")
    return seen, engine


def check_alone(source, destination, way):
    """Only one of the two may run, and the destination not before the grant."""
    if source.run("query-status")["running"]:
        raise Failed(f"{way}: the source still runs")
    steps = destination.run("query-migrate")["x-vfmig"]["steps"]
    if sum(progress(step) for step in steps if step["name"] in ("R0", "R1", "R2", "loaded")):
        raise Failed(f"{way}: the guest ran at the destination before the grant")
    before = source.run("x-guest")
    time.sleep(0.1)
    if source.run("x-guest")["cpus"] != before["cpus"]:
        raise Failed(f"{way}: the guest makes progress at the source after it moved")


def migrate(demo, way, source, destination, port, dialect):
    (source_qmp, source_path), (destination_qmp, _) = source, destination
    before = totals(healthy(source_qmp.run("x-guest"), "before " + way))
    source_qmp.run("x-guest-reset-pause")
    time.sleep(0.1)
    trace = demo.folder / "trace.jsonl"
    demo.migrate_command(source_path, port, "--dialect", dialect, "--trace", trace)
    report = source_qmp.run("query-migrate")["x-vfmig"]
    if report["state"] != "completed":
        raise Failed(f"{way}: the source says {report['state']}")
    check_alone(source_qmp, destination_qmp, way)
    # The pass under way when it moved counts as one: only the second has seen every page.
    guest = settle(demo, destination_qmp, f"after {way}", 2)
    seen, engine = check_pause(guest, report, way, demo.options.quick)
    share = check_report(report, demo, way)
    after = totals(guest)
    counts = {key: after[key] - before[key] for key in after}
    print(f"demo: {way}: {report['rounds']} rounds, {share:.1%} of the memory while vCPUs ran, "
          f"downtime {engine:.1f} ms, the guest saw {seen:.1f} ms, working set "
          f"{report['working-set-pages'] * PAGE // MIB} MiB, {report['dma-in-flight']} DMA in "
          f"flight at N, {report['interrupts-latched']} interrupts latched", flush=True)
    demo.draw(trace, way.split()[0])
    return {"rounds": report["rounds"], "share": share, "engine": engine, "seen": seen,
            "working": report["working-set-pages"] * PAGE // MIB,
            "flight": report["dma-in-flight"], "latched": report["interrupts-latched"], **counts}


def run(demo):
    source = demo.vm("vm-a", demo.device("dev-a"), "feature")
    port = free_port()
    target = demo.vm("vm-b", demo.device("dev-b"), "feature", f"tcp:127.0.0.1:{port}")
    print(f"demo: guest of {demo.memory} MiB writes {demo.rate} MiB/s in a working set of "
          f"{demo.working} MiB, one dma device", flush=True)
    demo.wait_for("the first pass of the guest", lambda: cycles(
        healthy(source[0].run("x-guest"), "at the start")) >= 1)
    ways = [migrate(demo, "there (feature dialect)", source, target, port, "feature")]
    if not demo.options.quick:
        port = free_port()
        back = demo.vm("vm-c", demo.device("dev-c"), "region", f"tcp:127.0.0.1:{port}")
        ways.append(migrate(demo, "back (region dialect)", target, back, port, "region"))
    return ways


def attempt(options):
    for left in reversed(range(ATTEMPTS)):
        demo = Demo(options)
        try:
            return run(demo)
        except ByChance as error:
            if not left:
                raise
            print(f"demo: {error}; once more", flush=True)
        finally:
            demo.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--accel", default=os.environ.get("VFMIG_ACCEL", "auto"))
    parser.add_argument("--expect-failure", metavar="REGEX")
    options = parser.parse_args()
    options.build = options.build.resolve()
    try:
        ways = attempt(options)
    except (Failed, OSError, subprocess.TimeoutExpired, ValueError) as error:
        print(f"demo: FAILED: {error}")
        wanted = options.expect_failure and re.search(options.expect_failure, str(error))
        return 0 if wanted and isinstance(error, Failed) else 1
    total = {key: sum(way[key] for way in ways) for key in ("pages", "dmas", "irqs")}

    def each(key, form):
        return " and ".join(form.format(way[key]) for way in ways)
    print(f"demo: verified: {total['pages']} pages, {total['dmas']} DMAs, {total['irqs']} interrupts "
          f"checked; rounds {each('rounds', '{}')}; sent while running {each('share', '{:.1%}')}; "
          f"working set {each('working', '{} MiB')}; in flight at N {each('flight', '{}')}; latched "
          f"{each('latched', '{}')}; downtime {each('engine', '{:.1f} ms')}; the guest saw "
          f"{each('seen', '{:.1f} ms')}")
    return 1 if options.expect_failure else 0


if __name__ == "__main__":
    sys.exit(main())
