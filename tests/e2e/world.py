# SPDX-License-Identifier: BSD-3-Clause
"""Processes of a migration under test: devices, VMMs, and a QMP client for them."""
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

VFMIG = os.environ["VFMIG"]
ORDER_JUDGE = pathlib.Path(VFMIG).parents[1] / "tests/engine/order_judge"
KVM_CHECK_EXTENSION = 0xAE03
CAP_DIRTY_LOG_RING = (192, 223)
VCPUS = 2  # of a guest of vfmig vm
PATIENCE = 60  # seconds until something that must happen has not happened


def wait_until(condition, what, patience=PATIENCE):
    """Polls; the time limit is only there to end a test that has failed."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def have_kvm():
    """Whether a guest of ours can run on KVM here."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def ring_entries():
    """Of the largest dirty ring that KVM offers, 0 without."""
    if not have_kvm():
        return 0
    fd = os.open("/dev/kvm", os.O_RDWR)
    try:
        return max(fcntl.ioctl(fd, KVM_CHECK_EXTENSION, cap) for cap in CAP_DIRTY_LOG_RING) // 16
    finally:
        os.close(fd)


def is_listening(path, pid="self"):
    """Without connecting: a device would take that for its client. pid: of a process in the same network."""
    with open(f"/proc/{pid}/net/unix") as table:
        # Num RefCount Protocol Flags Type St Inode Path; flag 0x10000: accepts connections
        rows = (line.split() for line in table)
        return any(row[-1] == str(path) and row[3] == "00010000" for row in rows)


class QmpError(Exception):
    pass


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rw", newline="\n")
        self.events = []
        assert "QMP" in self._read()
        self("qmp_capabilities")

    def _read(self):
        line = self.stream.readline()
        if not line:
            raise ConnectionError("QMP closed")
        return json.loads(line)

    def __call__(self, command, **arguments):
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer["event"])
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            else:
                return answer["return"]

    def close(self):
        self.stream.close()
        self.socket.close()


def quit_vm(path):
    """By its control socket: a signal may come before the process is ready for it."""
    client = Qmp(path)
    client("quit")
    client.close()


class World:
    """Starts processes in a short-named folder and ends them all.

    Every VMM writes a trace, and the order clauses are judged over all of them in the end. judge False:
    no traces; a test that breaks an order on purpose looks at `verdict` itself, and sets `orders_break`."""

    say = staticmethod(print)

    def __init__(self, judge=True):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vfmig-", dir="/tmp"))
        self.processes = []
        self.clients = []
        self.traces = [] if judge else None
        self.orders_break, self.verdict = False, ""
        self.env, self.prefix = {}, {}  # by name of process: variables, and what it is started by
        self.killed = set()  # names of processes that are killed, by a sabotage or a test

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for client in self.clients:
            client.close()
        for process, _ in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        ends = []
        for process, log in reversed(self.processes):
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            ends.append((code, log.stem, log.read_text()))
        self.verdict = self.judge_traces()
        shutil.rmtree(self.folder)
        for _, name, text in ends:
            self.say(f"--- {name}\n{text}" if text else "", end="")
        for code, name, text in ends:
            assert "Sanitizer" not in text and "runtime error" not in text
            if exc[0] is None:
                wanted = -signal.SIGKILL if name in self.killed else 0
                assert code == wanted, f"{name} ended with {code}: {text}"
        assert exc[0] is not None or self.orders_break or not self.verdict, self.verdict

    def judge_traces(self):
        """Which order clause was broken, and by which line; nothing: none."""
        traces = [path for path in self.traces or () if path.exists()]
        if not traces:
            return ""
        result = subprocess.run([ORDER_JUDGE, *traces], capture_output=True, text=True, timeout=PATIENCE)
        self.say(result.stdout + result.stderr, end="")
        return "" if result.returncode == 0 else f"order_judge ended with {result.returncode}: {result.stderr}"

    def kill(self, name):
        """As by an operator's mistake, or the kernel's out-of-memory killer."""
        [process] = [p for p, log in self.processes if log.stem == name]
        self.killed.add(name)
        process.kill()
        process.wait()

    def start(self, name, *args, ready, sabotage=None):
        log = self.folder / f"{name}.log"
        env = dict(os.environ, **self.env.get(name, {}))
        if sabotage:
            env["VFMIG_SABOTAGE"] = sabotage
        with open(log, "w") as out:
            process = subprocess.Popen([*self.prefix.get(name, ()), VFMIG, *map(str, args)], stdout=out,
                                       stderr=out, stdin=subprocess.DEVNULL, env=env)
        self.processes.append((process, log))

        def is_ready():
            assert process.poll() is None, f"{name} ended: {log.read_text()}"
            return is_listening(ready, process.pid)
        wait_until(is_ready, name)
        return process

    def device(self, name, *args, kind="dma"):
        path = self.folder / f"{name}.sock"
        self.start(name, "device", kind, "--socket", path, *args, ready=path)
        return path

    def counters(self, name):
        """Ends a device that was started with --json and tells what it counted."""
        [(process, log)] = [(p, log) for p, log in self.processes if log.stem == name]
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        return json.loads(log.read_text().splitlines()[-1])

    def vm(self, name, *args, accel="none", memory="48M", cpus=2, devices=(), incoming=None,
           journal=None, sabotage=None):
        """A VMM with small memory; returns its QMP client, with .path and .process."""
        path = self.folder / f"{name}.qmp"
        if not journal:
            journal = self.folder / f"{name}.journal"
            journal.mkdir()
        command = ["vm", "--name", name, "--accel", accel, "--memory", memory, "--cpus", cpus,
                   "--qmp", path, "--journal", journal]
        for device in devices:
            command += ["--device", f"vfio-user:{device}"]
        if incoming:
            command += ["--incoming", incoming]
        if self.traces is not None and "--trace" not in args:
            args += ("--trace", self.folder / f"{name}{len(self.traces)}.trace")
        if "--trace" in args and self.traces is not None:
            self.traces.append(pathlib.Path(args[args.index("--trace") + 1]))
        process = self.start(name, *command, *args, ready=path, sabotage=sabotage)
        if sabotage and sabotage.startswith("kill-"):
            self.killed.add(name)
        qmp = Qmp(path)
        self.clients.append(qmp)
        qmp.path, qmp.process, qmp.journal = path, process, journal
        return qmp

    def restart(self, dead, **kwargs):
        """A new process in the place, and on the journal, of one that is gone."""
        dead.path.unlink()
        return self.vm("again", journal=dead.journal, **kwargs)

    def uri(self, name="move"):
        return f"unix:{self.folder / name}.sock"


def migrate(qmp, uri, *args, **kwargs):
    """vfmig migrate, to its end."""
    return subprocess.run([VFMIG, "migrate", "--qmp", str(qmp.path), *args, uri],
                          capture_output=True, text=True, timeout=2 * PATIENCE, **kwargs)


def migrate_slowly(qmp, uri, *args, bandwidth="1M"):
    """vfmig migrate that will not end by itself; returns once memory is on its way."""
    process = subprocess.Popen([VFMIG, "migrate", "--qmp", str(qmp.path), "--max-bandwidth", bandwidth,
                                "--quiet", *args, uri], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    wait_until(lambda: qmp("query-migrate").get("ram", {}).get("transferred", 0) > 0,
               "memory on its way")
    return process


def heartbeats(qmp):
    return sum(cpu["heartbeats"] for cpu in qmp("x-guest")["cpus"])


def assert_guest_lives(qmp):
    """The guest makes progress, drives its devices, and has found nothing wrong."""
    wait_until(lambda: len(qmp("x-guest")["cpus"]) == VCPUS, "both vCPUs")
    before = qmp("x-guest")

    def progressed():
        now = qmp("x-guest")
        return all(a["heartbeats"] < b["heartbeats"]
                   for a, b in zip(before["cpus"], now["cpus"])) and \
            all(a["checked"] < b["checked"] and (a["irq-remaps"] < b["irq-remaps"] or not any(b["irqs"]))
                for a, b in zip(before["devices"], now["devices"]))
    wait_until(progressed, "progress of the guest")
    now = qmp("x-guest")
    assert now["errors"] == 0, now
