#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Rules of the tree that a compiler does not know: layers, sizes, headers, leftovers."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1])
PURE = ("core", "wire", "stream")
BANNED_IN_PURE = {"sys/socket.h", "unistd.h", "time.h", "stdio.h", "pthread.h", "stdlib.h"}
# wire/version.c turns JSON into fields: it needs an allocator, and json-c.
PURE_EXCEPTIONS = {"src/wire/version.c"}
# What a folder of src may include from the others; base is open to all.
MAY_INCLUDE = {
    "base": set(),
    "core": set(),
    "wire": set(),
    "stream": {"core"},
    "io": {"wire"},
    "device": {"core", "wire", "io"},
    "devices": {"device", "core"},
    "target": {"core", "wire", "io", "dirty"},
    "dirty": {"target", "io"},
    "engine": {"core", "stream", "io", "target", "dirty"},
    # An independent judge: neither the engine nor the device machine.
    "check": {"wire", "io", "target"},
    "vmm": {"core", "stream", "io", "target", "dirty", "engine", "devices"},
}
LINUX_ONLY = re.compile(r"#include <(linux/|sys/ioctl)")
LINUX_FOLDERS = {"io", "dirty", "vmm", "device", "target", "engine"}
MAX_FILE = 900
MAX_FUNCTION = 80


def tracked():
    git = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    names = git.stdout.split("\n") if git.returncode == 0 else [
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in names if name and not name.startswith("build")]


def functions(lines):
    """(name, length) of each function body that opens with a brace in column one."""
    start = None
    for number, line in enumerate(lines):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            yield lines[start - 1].strip(), number - start - 1
            start = None


def check(name, report):
    path = ROOT / name
    text = path.read_text(errors="replace")
    lines = text.split("\n")
    code = name.endswith((".c", ".h", ".S"))
    if code or name.endswith(".py"):
        if len(lines) > MAX_FILE:
            report(f"{name}: {len(lines)} lines, at most {MAX_FILE}")
        if "SPDX-License-Identifier: BSD-3-Clause" not in text[:300]:
            report(f"{name}: no SPDX line")
    if code and re.search(r"\b(TODO|FIXME|XXX)\b", text):
        report(f"{name}: a leftover marker")
    if name.endswith(".c"):
        for function, length in functions(lines):
            if length > MAX_FUNCTION:
                report(f"{name}: {length} lines in {function}")
    parts = name.split("/")
    if parts[0] == "src" and len(parts) == 3 and code:
        check_layers(name, parts[1], lines, report)


def check_layers(name, folder, lines, report):
    for line in lines:
        local = re.match(r'#include "([a-z_]+)/', line)
        if local and local.group(1) not in {"base", "vfmig", folder}:
            if local.group(1) in MAY_INCLUDE and local.group(1) not in MAY_INCLUDE[folder]:
                report(f"{name}: {folder} may not include {local.group(1)}")
        system = re.match(r"#include <([^>]+)>", line)
        if system and folder in PURE and name not in PURE_EXCEPTIONS:
            if system.group(1) in BANNED_IN_PURE:
                report(f"{name}: pure code includes <{system.group(1)}>")
        if LINUX_ONLY.match(line) and folder not in LINUX_FOLDERS:
            report(f"{name}: {line.strip()} outside the folders that know Linux")


def main():
    troubles = []
    names = tracked()
    if len(names) < 10:
        sys.exit("the tree was not found")
    for name in names:
        check(name, troubles.append)
    for trouble in troubles:
        print(trouble)
    print(f"{len(names)} files, {len(troubles)} troubles")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
