#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Moves a running guest with four devices between processes: once in vain, there, and back. Checks that
all devices work again after the attempt that failed, and what arrived after the others. The last line
is `demo: verified: ...` or `demo: FAILED: ...`.

    demo.py BUILD [--quick] [--accel kvm|none|auto] [--expect-failure REGEX]

--quick is a small guest that does not go back. --expect-failure turns the verdict around: a build with
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
ATTEMPTS = 6

# Name, kind, options of the device and of the VMM. Two reach each other's memory, and the guest pages in
# for them; one has much state; one has no NDMA, so nobody reaches it and it reaches nobody (C57).
NIC = ("--latency-us", 100, "--quiesce-us", 8000, "--look-ahead", 8)
DEVICES = (("nic0", "dma", NIC, ",iommu=on"),
           ("nic1", "dma", NIC, ",iommu=on"),
           ("bulk0", "bulk", (), ""),
           ("old0", "dma", ("--latency-us", 3000, "--mask", "p2p"), ""))
NAMES = [name for name, *_ in DEVICES]
PAIR = ("nic0", "nic1")
# Said when the destination loads its last device for the first time: the source has stopped all by then.
REFUSAL = ("--fail", "load_end", "--fail-at", 1)


class Failed(Exception):
    """The demo saw something that must not be."""


class ByChance(Failed):
    """All is well, but what was to be shown did not happen: a guest may have nothing open just then."""


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
        self.counted = {}
        # The bandwidth keeps the migration going for longer than the guest needs to dirty all of
        # its working set once.
        self.memory, self.working, self.rate, self.bandwidth = (768, 288, 250, 300)
        self.state, self.limit = (64, 35)
        if options.quick:
            self.memory, self.working, self.rate, self.bandwidth = (192, 64, 100, 300)
            self.state, self.limit = (8, 100)

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

    def device(self, side, name, kind, *options):
        path = self.folder / f"{side}-{name}.sock"
        self.counted[side, name] = self.spawn(path.stem, "device", kind, "--socket", path, "--json",
                                              *options)
        self.wait_for(f"the socket of {path.stem}", lambda: listening(path))
        return path

    def devices(self, side, dialects, refusal=()):
        """Four processes; returns what --device says of each."""
        arguments = []
        for (name, kind, options, more), dialect in zip(DEVICES, dialects):
            if kind == "bulk":
                options = (*options, "--state-size", f"{self.state}M", "--dirty-rate",
                           f"{self.state // 8}M")
            path = self.device(side, name, kind, *options, *(refusal if name == NAMES[-1] else ()))
            arguments += ["--device", f"vfio-user:{path},dialect={dialect},id={name}{more}"]
        return arguments

    def vm(self, side, dialects, incoming=None, refusal=()):
        name = f"vm-{side}"
        qmp = self.folder / f"{name}.qmp"
        arguments = ["vm", "--name", name, "--accel", self.options.accel, "--memory",
                     f"{self.memory}M", "--cpus", 2, "--working-set", f"{self.working}M",
                     "--dirty-rate", f"{self.rate}M", "--dma-in-flight", 4, "--p2p", "auto",
                     "--qmp", qmp, "--channels", 2, "--journal", self.folder / f"{name}.journal",
                     *self.devices(side, dialects, refusal)]
        if incoming:
            arguments += ["--incoming", incoming]
        (self.folder / f"{name}.journal").mkdir(exist_ok=True)
        self.spawn(name, *arguments)
        self.wait_for(f"the control socket of {name}", lambda: listening(qmp))
        return Qmp(qmp), qmp

    def expect(self, side, dialects, refusal=()):
        """A VMM that waits for a guest, and at which port."""
        port = free_port()
        return self.vm(side, dialects, f"tcp:127.0.0.1:{port}", refusal), port

    def hits(self):
        """Ends all processes, and says which devices were reached while they were stopped."""
        self.end()
        found = {}
        for (side, name), process in self.counted.items():
            log = (self.folder / f"{side}-{name}.log").read_text()
            if process.returncode or not log.strip():
                raise Failed(f"{name} of vm-{side} ended with {process.returncode}")
            counted = json.loads(log.splitlines()[-1])
            count = counted["mmio_stopped_reads"] + counted["mmio_stopped_writes"]
            if count:
                found[f"{name} of vm-{side}"] = count
        return found

    def migrate(self, qmp, port, *more, quiet=False):
        """vfmig migrate; what it says of an error if it is quiet, else that goes to the terminal."""
        command = [self.vfmig, "migrate", "--qmp", qmp, f"tcp:127.0.0.1:{port}", "--channels", 2,
                   *more]
        if quiet or not sys.stdout.isatty():
            command.append("--quiet")
        return subprocess.run([str(part) for part in command], timeout=60, check=False, text=True,
                              stderr=subprocess.PIPE if quiet else None)

    def draw(self, trace, name):
        """The migration as a picture, and as a page to look around in."""
        folder = self.folder if self.options.quick else self.options.build
        for suffix in ("svg", "html"):
            picture = folder / f"demo-{name}.{suffix}"
            subprocess.run([self.vfmig, "timeline", trace, "-o", picture], check=True, timeout=60)
        if folder != self.folder:
            print(f"demo: {name}: {os.path.relpath(picture)} shows what happened", flush=True)

    def judge(self):
        """The RFC's order clauses, over all that both sides have told of each migration."""
        traces = sorted(self.folder.glob("*.jsonl"))
        judged = subprocess.run([self.options.build / "tests/engine/order_judge", *traces], timeout=60,
                                capture_output=True, text=True, check=False)
        if judged.returncode or not traces:
            raise Failed(f"order clauses over {len(traces)} traces: {judged.stderr}")
        print(f"demo: order clauses: {judged.stdout.strip()}, none is broken", flush=True)

    def end(self):
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

    def close(self):
        self.end()
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
    devices = guest["devices"]
    return {"pages": sum(cpu["pages-verified"] for cpu in guest["cpus"]),
            "dmas": sum(device["checked"] for device in devices if device["id"] != "bulk0"),
            "digests": sum(device["checked"] for device in devices if device["id"] == "bulk0"),
            "peers": sum(device["p2p-checked"] for device in devices),
            "irqs": sum(sum(device["irqs"]) for device in devices)}


def works(before, now):
    """A device has been asked for all it can, and what it did was right."""
    if now["id"] == "bulk0":
        return now["checked"] > before["checked"]
    keys = ("p2p-checked", "p2p-looks") if now["id"] in PAIR else ()
    return (now["checked"] > before["checked"] + 10 and all(now[key] > before[key] for key in keys)
            and all(a > b for a, b in zip(now["irqs"], before["irqs"])))


def settle(demo, qmp, name, passes):
    """The guest goes over its whole working set again and its devices answer, without an error."""
    before = healthy(qmp.run("x-guest"), name)
    start = cycles(before)

    def done():
        guest = healthy(qmp.run("x-guest"), name)
        faults = guest["iommu"]["answered"] > before["iommu"]["answered"]
        return (guest if cycles(guest) >= start + passes and faults
                and all(map(works, before["devices"], guest["devices"])) else None)
    return demo.wait_for(f"a pass of the guest over its memory and devices ({name})", done, 45)


def progress(step):
    """What the guest did in a step, by its own counter."""
    return step["at-end"]["guest-progress"] - step["at-start"]["guest-progress"]


def accesses(step):
    """Made by devices to others in a step."""
    return step["at-end"]["peer-accesses"] - step["at-start"]["peer-accesses"]


def check_quiet(report, way):
    """When the vCPUs stop, devices with NDMA are quiet (C55), and no page fault is open (C10)."""
    if report["steps"][0]["at-start"]["interrupts-latched"]:
        raise Failed(f"{way}: it begins with interrupts of the attempt before")
    for step in report["steps"]:
        if step["name"] in ("S4", "S5", "handover") and accesses(step):
            raise Failed(f"{way}: {accesses(step)} accesses to the memory of peers in {step['name']}, "
                         f"when each device with NDMA must be quiet")
        if step["name"] in ("S4", "S5", "S6") and step["at-start"]["page-faults-open"]:
            raise Failed(f"{way}: {step['at-start']['page-faults-open']} page faults open in "
                         f"{step['name']}, when nobody can answer")


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
    if report["device-bytes"] < demo.state * MIB:
        need.append(f"{report['device-bytes']} bytes of devices")
    for step in report["steps"]:
        if step["vcpus-ran"] and progress(step) <= 0:
            need.append(f"no guest progress in {step['name']}")
    if not next(part["ns"] for part in report["parts"] if part["name"] == "destination resumed"):
        need.append("the guest ran at the destination before the grant")
    if need:
        raise Failed(f"{way}: " + "; ".join(need))
    shown = {"no DMA was in flight when N was asked for": report["dma-in-flight"],
             "no page fault was open when N was asked for": report["page-faults-open"],
             "no interrupt was latched": report["interrupts-latched"],
             "no device reached another one in S2": peers_in_pre_copy(report)}
    for sentence, count in shown.items():
        if not count:
            raise ByChance(f"{way}: {sentence}")
    return share


def peers_in_pre_copy(report):
    return sum(accesses(step) for step in report["steps"] if step["name"] == "S2")


def check_pause(guest, report, way, quick):
    seen = max(cpu["pause-move-ns"] for cpu in guest["cpus"]) / 1e6
    engine = report["downtime-ns"] / 1e6
    if not quick and abs(seen - engine) > max(10, 0.2 * engine):
        raise Failed(f"{way}: the guest saw a pause of {seen:.1f} ms, the engine says {engine:.1f}")
    return seen, engine


def check_not_here(destination, way):
    steps = destination.run("query-migrate")["x-vfmig"]["steps"]
    if sum(progress(step) for step in steps if step["name"] in ("R0", "R1", "R2", "loaded")):
        raise Failed(f"{way}: the guest ran at the destination before the grant")


def check_alone(source, destination, way):
    """Only one of the two may run, and the destination not before the grant."""
    if source.run("query-status")["running"]:
        raise Failed(f"{way}: the source still runs")
    check_not_here(destination, way)
    before = source.run("x-guest")
    time.sleep(0.1)
    if source.run("x-guest")["cpus"] != before["cpus"]:
        raise Failed(f"{way}: the guest makes progress at the source after it moved")


def be_refused(demo, way, source, destination, port):
    """The destination does not like what it got: all goes on at the source, each device too."""
    (source_qmp, source_path), (destination_qmp, _) = source, destination
    result = demo.migrate(source_path, port, "--downtime-limit", 5000, quiet=True)
    answer = source_qmp.run("query-migrate")
    report = answer["x-vfmig"]
    why = result.stderr.strip().removeprefix("vfmig migrate: ")
    check_not_here(destination_qmp, way)
    if result.returncode != 1 or report["state"] != "failed" or NAMES[-1] not in why:
        raise Failed(f"{way}: vfmig migrate ended with {result.returncode}, the migration is "
                     f"{report['state']}: {why}")
    if "S5" not in (step["name"] for step in report["steps"]):
        raise Failed(f"{way}: refused before all devices had stopped")
    check_quiet(report, way)
    for device in report["devices"]:
        if device["state"] != "RUNNING":
            raise Failed(f"{way}: {device['id']} is in {device['state']} after it")
    if not source_qmp.run("query-status")["running"]:
        raise Failed(f"{way}: the source does not run after it")
    settle(demo, source_qmp, f"after {way}", 1)
    print(f"demo: {way}: \"{why}\"; all devices work again at the source", flush=True)


def describe(way, report, counts):
    """What was seen, for those who watch."""
    parts = ", ".join(f"{part['name']} {part['ns'] / 1e6:.1f}" for part in report["parts"])
    name = way.split()[0]
    print(f"demo: {way}: {counts['rounds']} rounds, {counts['share']:.1%} of the memory while vCPUs "
          f"ran, working set {counts['working']} MiB, {report['device-bytes'] / MIB:.1f} MiB of "
          f"devices\n"
          f"demo: {name}: {counts['p2p']} accesses from device to device in S2, none once all were "
          f"quiet\n"
          f"demo: {name}: when N was asked for {counts['flight']} DMA in flight, {counts['faults']} "
          f"page faults open, then {counts['latched']} interrupts latched\n"
          f"demo: {name}: downtime {counts['engine']:.1f} ms, the guest saw {counts['seen']:.1f} ms; "
          f"in ms: {parts}", flush=True)


def migrate(demo, way, source, destination, port, *options):
    (source_qmp, source_path), (destination_qmp, _) = source, destination
    before = totals(healthy(source_qmp.run("x-guest"), "before " + way))
    source_qmp.run("x-guest-reset-pause")
    time.sleep(0.1)
    trace = demo.folder / f"{way.split()[0]}.jsonl"
    # On a busy host the limit may be too much to ask for; then it is not what is to be shown.
    result = demo.migrate(source_path, port, "--trace", trace, "--downtime-limit", demo.limit, "--deadline", 6,
                          "--on-deadline", "force", "--max-bandwidth", f"{demo.bandwidth}M", *options)
    if result.returncode:
        raise Failed(f"{way}: vfmig migrate ended with {result.returncode}: "
                     f"{source_qmp.run('query-migrate').get('error-desc')}")
    report = source_qmp.run("query-migrate")["x-vfmig"]
    if report["state"] != "completed":
        raise Failed(f"{way}: the source says {report['state']}")
    check_alone(source_qmp, destination_qmp, way)
    check_quiet(report, way)
    # The pass under way when it moved counts as one: only the second has seen every page.
    guest = settle(demo, destination_qmp, f"after {way}", 2)
    seen, engine = check_pause(guest, report, way, demo.options.quick)
    share = check_report(report, demo, way)
    after = totals(guest)
    counts = {"rounds": report["rounds"], "share": share, "engine": engine, "seen": seen,
              "working": report["working-set-pages"] * PAGE // MIB,
              "flight": report["dma-in-flight"], "faults": report["page-faults-open"],
              "latched": report["interrupts-latched"], "p2p": peers_in_pre_copy(report),
              **{key: after[key] - before[key] for key in after}}
    describe(way, report, counts)
    demo.draw(trace, way.split()[0])
    return counts


def check_peers(qmp):
    """Only devices that can be made quiet reach one another."""
    for device in qmp.run("x-query-peers"):
        wrong = [name for name in [device["id"], *device["reaches"]] if name == NAMES[-1]]
        if device["reaches"] and wrong:
            raise Failed(f"{device['id']} reaches {' and '.join(device['reaches'])}, but "
                         f"{NAMES[-1]} has no NDMA")
        if device["id"] in PAIR and not set(PAIR) - {device["id"]} <= set(device["reaches"]):
            raise Failed(f"{device['id']} does not reach its peer")


def move(demo, way, sides, source, target, dialects, *options):
    """Migrates until all that is to be shown was seen, each time to another process."""
    for left in reversed(range(ATTEMPTS)):
        vm, port = target
        try:
            return migrate(demo, way, source, vm, port, *options), vm
        except ByChance as error:
            if not left:
                raise
            print(f"demo: {error}; the guest is well, and moves once more", flush=True)
        source[0].run("quit")
        source, target = vm, demo.expect(f"{sides}{left}", dialects)
    return None


def run(demo):
    one = ("feature", "region", "feature", "feature")
    source = demo.vm("a", one)
    check_peers(source[0])
    target = demo.expect("b", one, REFUSAL)
    print(f"demo: guest of {demo.memory} MiB writes {demo.rate} MiB/s in a working set of "
          f"{demo.working} MiB; nic0 and nic1 (dma) write to each other's memory, and the guest pages "
          f"in for them; bulk0 has {demo.state} MiB of state; old0 (dma) has no NDMA", flush=True)
    settle(demo, source[0], "at the start", 1)
    be_refused(demo, "in vain", source, *target)
    way, there = move(demo, "there (nic1 in the region dialect)", "b", source, target, one)
    ways = [way]
    if not demo.options.quick:
        other = ("region", "feature", "region", "region")
        way, _ = move(demo, "back (region dialect, nic1 in the feature dialect at the end)", "c", there,
                      demo.expect("c", other), other, "--dialect", "region")
        ways.append(way)
    hits = demo.hits()
    if hits:
        raise Failed("reached while stopped: " + ", ".join(f"{name} {count} times"
                                                           for name, count in hits.items()))
    demo.judge()
    return ways


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--accel", default=os.environ.get("VFMIG_ACCEL", "auto"))
    parser.add_argument("--expect-failure", metavar="REGEX")
    options = parser.parse_args()
    options.build = options.build.resolve()
    demo = Demo(options)
    try:
        ways = run(demo)
    except (Failed, OSError, subprocess.TimeoutExpired, ValueError) as error:
        print(f"demo: FAILED: {error}")
        wanted = options.expect_failure and re.search(options.expect_failure, str(error))
        return 0 if wanted and isinstance(error, Failed) else 1
    finally:
        demo.close()
    total = {key: sum(way[key] for way in ways)
             for key in ("pages", "dmas", "peers", "digests", "irqs")}

    def each(key, form="{}"):
        return " and ".join(form.format(way[key]) for way in ways)
    print(f"demo: verified: {total['pages']} pages, {total['dmas']} DMAs, {total['peers']} peer to peer, "
          f"{total['digests']} digests of bulk0, {total['irqs']} interrupts checked; rounds "
          f"{each('rounds')}; sent while running {each('share', '{:.1%}')}; working set "
          f"{each('working', '{} MiB')}; at N in flight {each('flight')}, page faults {each('faults')}; "
          f"latched {each('latched')}; from device to device in S2 {each('p2p')}; downtime "
          f"{each('engine', '{:.1f} ms')}; the guest saw {each('seen', '{:.1f} ms')}")
    return 1 if options.expect_failure else 0


if __name__ == "__main__":
    sys.exit(main())
