# SPDX-License-Identifier: BSD-3-Clause
"""One migration of a guest with two devices, in which somebody stands still at a point (VFMIG_SABOTAGE,
src/base/sabotage.h) while something is done to it, its peer, a device, the link or the disk."""
import collections
import os
import pathlib
import signal
import subprocess
import threading
import time

import link
import runbook
from world import PATIENCE, VFMIG, World, wait_until

SIDES = {"source": "a", "destination": "b"}
DEVICES = {"source": ("dev-a0", "dev-a1"), "destination": ("dev-b0", "dev-b1")}
FROZEN_SECONDS = 13  # a connection on which nothing moves is lost after 10
# How an attempt goes when nothing is done to it: arguments of the destination's first device.
WAYS = {"moved": (), "refused": ("--fail", "load_end"), "handed-back": ("--fail", "start"),
        "cancelled": ()}
ACTIONS = ("kill", "kill-peer", "kill-device", "kill-peer-device", "cut", "stall", "freeze", "full")
# On the points of a device's process.
DEVICE_ACTIONS = ("kill", "freeze")
RECORDED = (*SIDES, "dev-a0", "dev-b0")
Case = collections.namedtuple("Case", "way who point action")


def name_of(case):
    return ":".join(case)


class Run:
    """One migration with two devices, and what is done to it."""

    def __init__(self, world, case, namespaces=None):
        self.world, self.case = world, case
        self.disks, self.link = [], None
        self.over, self.keeper = threading.Event(), None
        side = case.who if case.who in SIDES else "source" if case.who.startswith("dev-a") else "destination"
        self.side, self.peer = side, {"source": "destination", "destination": "source"}[side]
        self.link = namespaces or link.Proxy(world.folder / "move.sock")

    def journal(self, side):
        if self.case.action != "full":
            return None
        path = self.world.folder / f"disk-{side}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], check=True)
        self.disks.append(path)
        return path

    def start(self):
        world, case = self.world, self.case
        fault = os.environ.get("VFMIG_SABOTAGE")  # a deliberate one, that is to be found
        stop = {case.who: ",".join(filter(None, (f"stop-{case.point}", fault)))} if case.point else {}
        if not case.point:
            for name in RECORDED:
                name = SIDES.get(name, name)
                world.env[name] = {"VFMIG_POINTS": str(world.folder / f"points-{name}")}
        for side, name in SIDES.items():
            world.prefix[name] = self.link.prefix(side)
        paths = {}
        for side, names in DEVICES.items():
            for name in names:
                args = WAYS[case.way] if name == "dev-b0" else ()
                if name in stop:
                    world.env[name] = {"VFMIG_SABOTAGE": stop[name]}
                paths.setdefault(side, []).append(world.device(name, *args))
        self.vms = {}
        for side, name in SIDES.items():
            # What goes from device to device fails with either of them, or with a VMM in between that stands
            # still for longer than a device waits: not there.
            alone = case.who.startswith("dev-") or case.action in ("kill-device", "kill-peer-device", "freeze")
            args = self.link.words + (("--p2p", "off") if alone else ())
            args += ("--working-set", "4M", "--dirty-rate", "10M") if side == "source" else ()
            self.vms[side] = world.vm(name, *args, devices=paths[side], journal=self.journal(side),
                                      incoming=self.link.incoming if side == "destination" else None,
                                      sabotage=stop.get(side))
        runbook.assert_lives(self.vms["source"])
        self.before = {} if case.point else {name: len(self.points(name)) for name in RECORDED}
        limit = ("--max-bandwidth", "4M") if case.way == "cancelled" else ()
        self.mover = subprocess.Popen([VFMIG, "migrate", "--qmp", str(self.vms["source"].path), "--downtime-limit", "2000",
                                       # Whoever was slow for so long is expected to be, and no limit is kept.
                                       "--deadline", "30",
                                       "--quiet", *limit, *self.link.words, self.link.uri], stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, text=True)
        if case.way == "cancelled":
            self.cancel()

    def points(self, name):
        """What it has passed so far, in a run in which nothing is done."""
        path = self.world.folder / f"points-{SIDES.get(name, name)}"
        return path.read_text().split() if path.exists() else []

    def points_of_attempt(self, name):
        """POINT#N, N counted from the start of its process: what has come since the migration began."""
        count, points = collections.Counter(), []
        for i, point in enumerate(self.points(name)):
            count[point] += 1
            if i >= self.before[name]:
                points.append(f"{point}#{count[point]}")
        return points

    def process(self, name):
        [process] = [p for p, log in self.world.processes if log.stem == SIDES.get(name, name)]
        return process

    def state(self, process):
        try:
            return pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return "Z"

    def is_stopped(self):
        return bool(self.case.point) and self.state(self.process(self.case.who)) == "T"

    def cancel(self):
        """Once memory is on its way, unless it has stopped before."""
        journal = self.vms["source"].journal

        def begun():
            return self.is_stopped() or self.mover.poll() is not None or any(
                path.stat().st_size for path in journal.glob("*.source"))
        wait_until(begun, "the begin")
        self.mover.send_signal(signal.SIGINT)

    def kill(self, name):
        self.world.kill(SIDES.get(name, name))

    def act(self):
        """At the point; whoever stopped there goes on, unless it was killed. Returns the dead devices."""
        case, process = self.case, self.process(self.case.who)
        dead = []
        if case.action == "kill":
            self.kill(case.who)
            dead = [case.who]
        elif case.action == "kill-peer":
            self.kill(self.peer)
        elif case.action in ("kill-device", "kill-peer-device"):
            dead = [DEVICES[self.side if case.action == "kill-device" else self.peer][0]]
            self.kill(dead[0])
        elif case.action == "cut":
            self.link.cut()
        elif case.action == "stall":
            self.link.stall()
        elif case.action == "freeze":
            dead = [case.who]  # a device that comes back may have been given up, and be reset
            time.sleep(FROZEN_SECONDS)  # this is what is done, nothing is judged by it
        elif case.action == "full":
            for disk in self.disks:
                fill(disk)
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
        return dead

    def play(self):
        """Returns whether the point was reached, and the outcome."""
        self.start()
        wait_until(lambda: self.is_stopped() or self.mover.poll() is not None, "the point")
        reached = self.is_stopped()
        dead = self.act() if reached else []
        self.keep_going()
        if reached and self.case.action == "stall":
            time.sleep(FROZEN_SECONDS)
        if reached and self.case.action in ("stall", "cut"):
            wait_until(self.noticed, "somebody to notice that the link is gone")
            self.link.heal()
        try:
            self.mover.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.mover.kill()
            self.mover.communicate()
            raise runbook.Broken("vfmig migrate does not end") from None
        source, target = self.vms["source"], self.vms["destination"]
        outcome, done = runbook.settle(source, target)
        at = outcome[len("runs-at-"):] if outcome.startswith("runs-at-") else None
        if outcome == runbook.STANDS and runbook.view(target, source)["record"] == "RUNNING":
            target("cont")  # the operator takes it without that device
            done.append("destination: cont")
            at = "destination"
            wait_until(lambda: runbook.outcome(target, source) == "runs-at-destination", "status to say so")
        if at:
            places = {side: [names.index(each) for each in dead if each in names] for side, names in DEVICES.items()}
            # What it has found at the source it takes along; at the destination it runs for good.
            runbook.assert_lives(self.vms[at], dead=places[at], suspects=places["source"] + places[at])
        return reached, outcome, done

    def keep_going(self):
        """A point behind the end of vfmig migrate is passed when nobody waits for it any more."""
        def run():
            while not self.over.wait(0.02):
                if self.is_stopped():
                    self.process(self.case.who).send_signal(signal.SIGCONT)
        self.keeper = threading.Thread(target=run)
        self.keeper.start()

    def noticed(self):
        """The attempt is over, or nobody can end it without the link."""
        if self.mover.poll() is not None:
            return True
        seen = runbook.view(self.vms["source"], self.vms["destination"])
        if seen and seen["record"] in ("ABORTED", "RESUMED"):
            return runbook.running(self.vms["source"], self.vms["destination"]) == "source"
        return bool(seen) and seen["record"] in ("GRANT-SENT", "RELEASED")

    def close(self):
        self.over.set()
        if self.keeper:
            self.keeper.join()
        for name in SIDES:
            if hasattr(self, "vms") and name in self.vms and self.vms[name].process.poll() is None:
                self.vms[name].process.send_signal(signal.SIGCONT)
        for process, _ in self.world.processes:
            if self.state(process) == "T":
                process.send_signal(signal.SIGCONT)
        if hasattr(self, "mover") and self.mover.poll() is None:
            self.mover.kill()
            self.mover.communicate()


def fill(folder):
    with open(folder / "ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass


def play(case, names=None):
    """Returns (reached, outcome, what the operator said) of a case, or the points of a run without one."""
    run, where = None, None
    try:
        with World() as world:
            namespaces = link.Namespaces(next(names)) if names and case.action in ("stall", "cut") else None
            run = Run(world, case, namespaces)
            try:
                where = run.play()
                if not case.point:
                    return {name: run.points_of_attempt(name) for name in RECORDED}
            finally:
                run.close()
                for disk in run.disks:
                    subprocess.run(["umount", "-l", disk], check=True)
        return where
    finally:
        if run and run.link:
            run.link.close()
