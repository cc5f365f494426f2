#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Stock QEMU attaches to `vfmig device dma` and `null`, and a Linux guest works with them. The last
line is `interop: verified: ...` or `interop: FAILED: ...`.

    interop.py BUILD CACHE [--quick]

Everything comes from Debian, by debootstrap, into CACHE, where the next run finds it: QEMU, a
kernel, and what builds the guest's module. The guest's program is tests/interop. --quick boots
once only, with shared memory. A failed run leaves its logs in CACHE/failed. Environment: INTEROP_SUITE (default trixie with its backports; sid),
INTEROP_MIRROR (default: what apt uses here).
"""
import argparse
import collections
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
SUITE = os.environ.get("INTEROP_SUITE", "trixie")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ["qemu-system-x86", "linux-headers-cloud-amd64", "make", "binutils"]
KERNEL = "linux-image-cloud-amd64"
MEMORY = "512M"
BOOT_SECONDS = 300   # bounds for emulation on a busy host, not expectations
STEP_SECONDS = 120
GUEST_FACTS = 17     # "ok" lines of one boot (tests/interop)
QEMU_JSON_MAX = 194  # bytes that QEMU takes as the JSON of a VERSION reply, its NUL included
# What QEMU says of a function without an interrupt for errors. Anything else is a failure.
QEMU_SAYS = re.compile(r"warning: vfio vfio-user:.*: Could not enable error recovery for the device$")
DMA_READ, DMA_WRITE = 11, 12
KINDS = ("dma", "null")


class Failed(Exception):
    """Something is not as it must be."""


def say(text):
    print(f"interop: {text}", flush=True)


def read(folder, name):
    path = folder / f"{name}.log"
    return path.read_text(errors="replace").strip() if path.exists() else ""


def kill(process):
    if process.poll() is None:
        process.kill()
        process.wait()


def run(command, seconds, log=None):
    """A command's output; its failure is ours, with the end of what it said."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=seconds, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError as error:
        raise Failed(f"{command[0]} is missing") from error
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(done.stdout)
    if done.returncode:
        raise Failed(f"{' '.join(command[:6])}... ended with {done.returncode}: "
                     f"{done.stdout[-600:].strip()}")
    return done.stdout


# ---- what is needed from Debian ------------------------------------------------------------------

class Debian:
    """A Debian tree with QEMU and a kernel; made once."""

    def __init__(self, cache):
        self.cache = cache
        self.root = cache / SUITE
        self.log = cache / f"{SUITE}.log"
        self.su = [] if os.getuid() == 0 else ["sudo"]

    def chroot(self, script, seconds=900):
        """In a mount namespace of its own, so that /proc does not stay mounted."""
        inside = ('mount -t proc proc "$0/proc" && exec env DEBIAN_FRONTEND=noninteractive '
                  'LC_ALL=C chroot "$0" sh -ec "$1"')
        return run([*self.su, "unshare", "--mount", "sh", "-ec", inside, self.root, script], seconds,
                   self.log)

    def mirror(self):
        if os.environ.get("INTEROP_MIRROR"):
            return os.environ["INTEROP_MIRROR"]
        lines = run(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)"], 60)
        sites = [line.split() for line in lines.splitlines()]
        for site, codename in (site for site in sites if len(site) == 2):
            if re.fullmatch(r"[a-z]+", codename) and not site.endswith("-security"):
                return site
        raise Failed("apt knows no mirror here: set INTEROP_MIRROR")

    def bootstrap(self):
        if re.search(r"\s", str(self.root)):
            raise Failed(f"debootstrap takes no folder with a space in its name: {self.root}")
        say(f"debootstrap of Debian {SUITE} into {self.root}")
        if not shutil.which("debootstrap"):
            run([*self.su, "apt-get", "install", "-y", "--no-install-recommends", "debootstrap"], 600)
        run([*self.su, "rm", "-rf", self.root], 600)
        mirror = self.mirror()
        run([*self.su, "debootstrap", "--variant=minbase", f"--keyring={KEYRING}", SUITE, self.root,
             mirror], 1800, self.log)
        # A snapshot of sid may be older than its lists say they are good for.
        sources = [f"deb [check-valid-until=no] {mirror} {SUITE} main"]
        if SUITE != "sid":
            sources.append(f"deb {mirror} {SUITE}-backports main")
        proxies = [line for line in run(["apt-config", "dump"], 60).splitlines()
                   if re.match(r"Acquire::(http|https)::Proxy ", line)]
        for name, lines in (("sources.list", sources), ("apt.conf.d/90proxy", proxies)):
            subprocess.run([*self.su, "tee", self.root / "etc/apt" / name], check=True, timeout=60,
                           input="\n".join(lines) + "\n", text=True, stdout=subprocess.DEVNULL)
        target = "" if SUITE == "sid" else f"-t {SUITE}-backports"
        install = f"apt-get install -y -q --no-install-recommends {target}"
        say(f"installing {' '.join(PACKAGES)} there")
        self.chroot(f"apt-get update -q; {install} {' '.join(PACKAGES)}", 1800)
        # The kernel is only unpacked: it is never booted from that tree.
        self.chroot(f"{install} -d {KERNEL}; mkdir -p /kernel; "
                    "for deb in /var/cache/apt/archives/linux-*.deb; do "
                    "case $deb in */linux-image-[0-9]*|*/linux-binary-[0-9]*) "
                    "dpkg-deb -x $deb /kernel;; esac; done; apt-get clean", 1800)
        # So that whoever runs this can also remove it.
        run([*self.su, "chown", "-R", f"{os.getuid()}:{os.getgid()}", self.root], 600)

    def prepare(self):
        self.cache.mkdir(parents=True, exist_ok=True)
        stamp = self.cache / f"{SUITE}.ready"
        if not stamp.exists():
            self.bootstrap()
            stamp.touch()
        kernels = [*self.root.glob("kernel/boot/vmlinuz-*"),
                   *self.root.glob("kernel/usr/lib/modules/*/vmlinuz"),
                   *self.root.glob("kernel/lib/modules/*/vmlinuz")]
        if len(kernels) != 1:
            raise Failed(f"{len(kernels)} kernels in {self.root}/kernel; remove {stamp} to begin anew")
        self.kernel = kernels[0]
        self.release = (self.kernel.parent.name if self.kernel.name == "vmlinuz"
                        else self.kernel.name[len("vmlinuz-"):])

    def qemu(self):
        """Runs in this system, by that tree's loader and libraries."""
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        return [self.root / "lib64/ld-linux-x86-64.so.2", "--library-path", libraries,
                self.root / "usr/bin/qemu-system-x86_64", "-L", self.root / "usr/share/qemu",
                "-L", self.root / "usr/share/seabios"]

    def module(self):
        """The guest's module, built against the kernel's headers by that tree's compiler."""
        folder, source = self.root / "build/irqs", TOP / "tests/interop/irqs.c"
        built, copy = folder / "irqs.ko", folder / "irqs.c"
        if built.exists() and copy.read_bytes() == source.read_bytes():
            return built
        folder.mkdir(parents=True, exist_ok=True)
        built.unlink(missing_ok=True)
        shutil.copy(source, copy)
        self.chroot("cd /build/irqs; echo 'obj-m := irqs.o' > Kbuild; "
                    f"make -C /usr/src/linux-headers-{self.release} M=/build/irqs modules; "
                    "strip --strip-debug irqs.ko", 600)
        return built


# ---- initramfs -----------------------------------------------------------------------------------

def cpio(files):
    """newc, as the kernel reads it: [(name, bytes)], all executable."""
    out = bytearray()
    for number, (name, data) in enumerate([*files, ("TRAILER!!!", None)]):
        mode = 0 if data is None else 0o100755
        data = data or b""
        fields = [number + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def build_initramfs(debian):
    program = debian.cache / "init"
    sources = sorted(path for path in (TOP / "tests/interop").glob("*.c") if path.name != "irqs.c")
    run([os.environ.get("CC", "gcc"), "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror",
         "-Wno-unused-parameter", "-static", f"-I{TOP / 'src'}", f"-I{TOP / 'tests'}", *sources, "-o",
         program], 120)
    image = debian.cache / "initramfs"
    image.write_bytes(cpio([("init", program.read_bytes()),
                            ("irqs.ko", debian.module().read_bytes())]))
    return image


# ---- device servers and machines -----------------------------------------------------------------

class Servers:
    """`vfmig device` of each kind; every machine attaches to the same ones, one after another."""

    def __init__(self, vfmig, folder):
        self.folder = folder
        self.processes = {}
        try:
            for kind in KINDS:
                self.serve(vfmig, kind)
        except BaseException:
            self.close()
            raise

    def path(self, kind):
        return self.folder / f"{kind}.sock"

    def serve(self, vfmig, kind):
        command = [vfmig, "device", kind, "--socket", self.path(kind), "--json"]
        # Long enough in flight that a reset finds some of them.
        command += ["--latency-us", "5000"] if kind == "dma" else []
        with open(self.folder / f"{kind}.log", "wb") as log:
            self.processes[kind] = subprocess.Popen([str(part) for part in command], stdout=log,
                                                    stderr=subprocess.STDOUT,
                                                    stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not self.path(kind).exists():
            if time.monotonic() > end or self.processes[kind].poll() is not None:
                raise Failed(f"vfmig device {kind} does not listen: {read(self.folder, kind)}")
            time.sleep(0.02)

    def end(self, kind):
        """Ends a server and takes what it counted."""
        self.processes[kind].send_signal(signal.SIGTERM)
        if self.processes[kind].wait(30):
            raise Failed(f"vfmig device {kind} ended with {self.processes[kind].returncode}: "
                         f"{read(self.folder, kind)[-500:]}")
        return json.loads(read(self.folder, kind).splitlines()[-1])

    def close(self):
        for process in self.processes.values():
            kill(process)


class Machine:
    """QEMU with a guest, attached to the device servers."""

    def __init__(self, debian, initramfs, servers, name, options):
        self.name, self.folder = name, servers.folder
        self.lines = queue.Queue()
        self.heard = []
        command = [*debian.qemu(), "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
                   "-smp", "2", "-m", MEMORY, *options, "-serial", "stdio",
                   "-kernel", debian.kernel, "-initrd", initramfs,
                   "-append", "console=ttyS0 quiet panic=0",
                   "-trace", "vfio_user_version", "-trace", "vfio_user_recv_request",
                   "-D", self.folder / f"{name}-trace.log"]
        for number, kind in enumerate(KINDS):
            device = {"driver": "vfio-user-pci", "bus": f"port{number}",
                      "socket": {"type": "unix", "path": str(servers.path(kind))}}
            command += ["-device", f"pcie-root-port,id=port{number},chassis={number + 1}",
                        "-device", json.dumps(device)]
        with open(self.folder / f"{name}-qemu.log", "wb") as log:
            self.qemu = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=log)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        with open(self.folder / f"{self.name}-console.log", "wb") as log:
            for line in self.qemu.stdout:
                log.write(line)
                self.lines.put(line.decode(errors="replace").strip())
        self.lines.put(None)

    def log(self, name):
        return read(self.folder, f"{self.name}-{name}")

    def line(self, deadline):
        """The next line of the console; None when the machine is off."""
        try:
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise Failed(f"{self.name}: the guest is silent; its last lines: {self.heard[-5:]}") from None
        if line is not None:
            self.heard.append(line)
            if "Kernel panic" in line or "Oops" in line:
                raise Failed(f"{self.name}: {line}")
        return line

    def boot(self, which):
        """Follows one boot to its "done"; the number of facts that the guest verified."""
        facts, deadline = 0, time.monotonic() + BOOT_SECONDS
        while True:
            line = self.line(deadline)
            if line is None:
                raise Failed(f"{self.name}, {which}: QEMU ended: {self.log('qemu')[-500:]} "
                             f"{self.heard[-3:]}")
            found = re.search(r"guest: (boot|ok|FAILED|done): (.*)", line)
            if not found:
                continue
            deadline = time.monotonic() + STEP_SECONDS
            if found[1] == "FAILED":
                raise Failed(f"{self.name}, {which}: {found[2]}")
            if found[1] == "done":
                break
            facts += found[1] == "ok"
            say(f"{self.name}, {which}: {found[1]}: {found[2]}")
        if facts != GUEST_FACTS:
            raise Failed(f"{self.name}, {which}: the guest verified {facts} facts, not {GUEST_FACTS}")
        return facts

    def tell(self, word):
        self.qemu.stdin.write(word.encode() + b"\n")
        self.qemu.stdin.flush()

    def wait_off(self):
        self.tell("off")
        deadline = time.monotonic() + STEP_SECONDS
        while self.line(deadline) is not None:
            pass
        if self.qemu.wait(60):
            raise Failed(f"{self.name}: QEMU ended with {self.qemu.returncode}: {self.log('qemu')}")


# ---- what the host sees --------------------------------------------------------------------------

def check_version(machine):
    """The JSON of VERSION as QEMU traced it, its own and our reply, and QEMU's log."""
    texts = re.findall(r"vfio_user_version .*?caps: (.*)", machine.log("trace"))
    if len(texts) != 2 * len(KINDS):
        raise Failed(f"{machine.name}: QEMU traced {len(texts)} VERSION messages")
    sizes = []
    for asked, reply in zip(texts[0::2], texts[1::2]):
        ours, theirs = (set(json.loads(text)["capabilities"]) for text in (reply, asked))
        if not ours <= theirs or "write_multiple" in ours or len(reply) + 1 > QEMU_JSON_MAX:
            raise Failed(f"{machine.name}: VERSION reply of {len(reply) + 1} bytes: {reply}")
        sizes.append(str(len(reply) + 1))
    say(f"{machine.name}: host: ok: VERSION replies of {' and '.join(sizes)} bytes of JSON (at most "
        f"{QEMU_JSON_MAX}), with no key that QEMU did not send")
    wrong = [line for line in machine.log("qemu").splitlines() if not QEMU_SAYS.search(line)]
    if wrong:
        raise Failed(f"{machine.name}: QEMU says: {wrong[0]}")
    say(f"{machine.name}: host: ok: QEMU warns of nothing but functions without an error interrupt")


def check_messages(machine, shared, boots):
    """DMA requests that QEMU received: all of the DMA, or none."""
    commands = re.findall(r"vfio_user_recv_request .*?command (0x[0-9a-f]+|\d+)", machine.log("trace"))
    asked = collections.Counter(int(command, 0) for command in commands)
    reads, writes = asked[DMA_READ], asked[DMA_WRITE]
    if shared and (reads or writes):
        raise Failed(f"{machine.name}: DMA came by message, {reads} reads and {writes} writes")
    if not shared and min(reads, writes) < 500 * boots:
        raise Failed(f"{machine.name}: only {reads} reads and {writes} writes came by message")
    say(f"{machine.name}: host: ok: {reads} DMA_READ and {writes} DMA_WRITE messages")
    return reads + writes


def check_servers(servers, machines, boots):
    """What the servers counted over all machines."""
    counted = {kind: servers.end(kind) for kind in KINDS}
    for kind, it in counted.items():
        if it["clients"] != machines or it["bad_messages"] or it["mmio_stopped_reads"]:
            raise Failed(f"the {kind} server counts {it}")
        if it["resets"] < 2 * boots: # the guest's own, and one before each boot
            raise Failed(f"{it['resets']} resets of {kind} in {boots} boots")
    dma = counted["dma"]
    if dma["irqs_delivered"] != dma["irqs_raised"]:
        raise Failed(f"{dma['irqs_raised']} interrupts raised, {dma['irqs_delivered']} delivered")
    say(f"host: ok: {machines} clients one after another, no message refused, {dma['resets']} resets of "
        f"dma, {counted['null']['resets']} of null, {dma['irqs_delivered']} interrupts delivered")
    return dma


def one_machine(debian, initramfs, servers, shared, boots):
    name = "shared" if shared else "private"
    options = ["-machine", "q35"]
    if shared:
        options = ["-machine", "q35,memory-backend=ram", "-object",
                   f"memory-backend-memfd,id=ram,size={MEMORY},share=on"]
    machine = Machine(debian, initramfs, servers, name, options)
    try:
        facts = 0
        for boot in range(boots):
            if boot:
                machine.tell("reboot")
            facts += machine.boot(f"boot {boot + 1}")
        machine.wait_off()
    finally:
        kill(machine.qemu)
    check_version(machine)
    return {"facts": facts, "boots": boots, "messages": check_messages(machine, shared, boots)}


def all_machines(vfmig, debian, initramfs, quick):
    boots = 1 if quick else 2
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vfmig-interop-"))
    servers = None
    try:
        servers = Servers(vfmig, folder)
        results = [one_machine(debian, initramfs, servers, True, boots)]
        if not quick:
            results.append(one_machine(debian, initramfs, servers, False, boots))
        total = {key: sum(result[key] for result in results) for key in results[0]}
        dma = check_servers(servers, len(results), total["boots"])
        return {**total, "machines": len(results), "irqs": dma["irqs_delivered"],
                "resets": dma["resets"]}
    except BaseException:
        kept = debian.cache / "failed"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("*.sock"))
        say(f"logs are in {kept}")
        raise
    finally:
        if servers:
            servers.close()
        shutil.rmtree(folder, ignore_errors=True)


def interop(options):
    vfmig = (options.build / "tools/vfmig").resolve()
    debian = Debian(options.cache.resolve())
    debian.prepare()
    version = run([*debian.qemu(), "--version"], 60).splitlines()[0]
    if "vfio-user-pci" not in run([*debian.qemu(), "-device", "vfio-user-pci,help"], 60):
        raise Failed(f"{version} has no vfio-user-pci")
    say(f"{version}, Linux {debian.release}, TCG")
    initramfs = build_initramfs(debian)
    begin = time.monotonic()
    total = all_machines(vfmig, debian, initramfs, options.quick)
    say(f"verified: {version}: {total['facts']} facts in {total['boots']} boots of {total['machines']} "
        f"machines; {total['irqs']} MSI-X interrupts, {total['messages']} DMA messages, "
        f"{total['resets']} resets; {time.monotonic() - begin:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("cache", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    try:
        interop(options)
    except (Failed, OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
        say(f"FAILED: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
