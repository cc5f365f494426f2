# SPDX-License-Identifier: BSD-3-Clause
"""What `make install` leaves: binary, manual, and a library that others can build against."""
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

import pytest

SOURCE = pathlib.Path(os.environ["SOURCE"])
EXAMPLES = sorted(path.stem for path in (SOURCE / "examples").glob("*.c"))
VMMS = ["vmm_loop"]
SANITIZE = "-fsanitize=address,undefined"  # the build under test has it
PROGRAM = ('#include <vfmig/error.h>\n'
           'int main(void) { return vfmig_origin_name(VFMIG_ORIGIN_PEER)[0] != 112; }\n')


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    subprocess.run(["meson", "install", "--no-rebuild", "-C", os.environ["BUILD"], "--destdir", folder],
                   check=True, capture_output=True)
    return folder / "usr/local"


def pkg_config(root, *args):
    [pc] = root.glob("lib/**/vfmig.pc")
    env = dict(os.environ, PKG_CONFIG_PATH=str(pc.parent))
    return subprocess.run(["pkg-config", f"--define-variable=prefix={root}", *args, "vfmig"], env=env,
                          check=True, capture_output=True, text=True).stdout.split()


def library(root, suffix):
    [path] = root.glob(f"lib/**/libvfmig.{suffix}")
    return path


def link(root, kind, source, out):
    """Compiles source outside the tree against what was installed."""
    flags = pkg_config(root, "--cflags")
    if kind == "static":
        libs = [library(root, "a") if flag == "-lvfmig" else flag
                for flag in pkg_config(root, "--static", "--libs")]
    else:
        libs = [*pkg_config(root, "--libs"), f"-Wl,-rpath,{library(root, 'so').parent}"]
    built = subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Werror", source, "-o", out, SANITIZE, *flags,
                            *libs], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    needed = subprocess.run(["readelf", "-d", out], capture_output=True, text=True, check=True).stdout
    assert ("libvfmig.so.0" in needed) == (kind == "shared")


def declared(root):
    """The functions that the installed headers declare."""
    names = set()
    for header in (root / "include/vfmig").glob("*.h"):
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        text = re.sub(r"^#.*$", "", text, flags=re.M)
        names |= set(re.findall(r"(?<!\(\*)(?<!\w)(vfmig_\w+)\s*\(", text))
    return names


def test_the_command_and_its_manual_are_there(root):
    assert os.access(root / "bin/vfmig", os.X_OK)
    for page in SOURCE.glob("man/*.[1-9]"):
        assert (root / f"share/man/man{page.suffix[1]}" / page.name).exists()


@pytest.mark.parametrize("compiler, language", [("gcc", "c"), ("g++", "c++")])
def test_every_header_stands_alone(root, compiler, language):
    if not shutil.which(compiler):
        pytest.fail(f"no {compiler}: scripts/install-deps.sh installs it")
    headers = sorted((root / "include/vfmig").glob("*.h"))
    assert headers
    for header in headers:
        subprocess.run([compiler, "-x", language, "-Wall", "-Werror", "-fsyntax-only", "-",
                        *pkg_config(root, "--cflags")], input=f'#include "vfmig/{header.name}"\n',
                       text=True, check=True)


def test_the_shared_library_exports_what_is_declared(root):
    symbols = subprocess.run(["nm", "-D", "--defined-only", library(root, "so")], check=True,
                             capture_output=True, text=True).stdout
    exported = {line.split()[2].split("@")[0] for line in symbols.splitlines() if " T " in line}
    assert exported == declared(root)


@pytest.mark.parametrize("kind", ["static", "shared"])
def test_a_program_links(root, tmp_path, kind):
    source = tmp_path / "main.c"
    source.write_text(PROGRAM)
    link(root, kind, source, tmp_path / "main")
    assert subprocess.run([tmp_path / "main"]).returncode == 0


def greet(program, path):
    """Says VERSION to the server behind path; its reply is of the same protocol."""
    client = socket.socket(socket.AF_UNIX)
    while True:
        assert program.poll() is None
        try:
            client.connect(str(path))
            break
        except OSError:
            time.sleep(0.01)
    client.sendall(struct.pack("<HHIIIHH", 1, 1, 20, 0, 0, 0, 2))
    message_id, command, size, flags, error, major = struct.unpack("<HHIIIH", client.recv(18))
    assert (message_id, command, flags, error, major) == (1, 1, 1, 0, 0)
    return client


@pytest.mark.parametrize("kind", ["static", "shared"])
@pytest.mark.parametrize("example", [name for name in EXAMPLES if name not in VMMS])
def test_each_example_builds_and_runs_outside_the_tree(root, tmp_path, example, kind):
    source = shutil.copy(SOURCE / "examples" / f"{example}.c", tmp_path)
    link(root, kind, source, tmp_path / example)
    usage = re.search(rf"^ \*     {example}(( SOCKET)+)$", pathlib.Path(source).read_text(), re.M)
    paths = [tmp_path / f"{number}.sock" for number in range(len(usage[1].split()))]
    with subprocess.Popen([tmp_path / example, *paths]) as program:
        clients = [greet(program, path) for path in paths]
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=60) == 0
        for client in clients:
            client.close()
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("sabotage, outcome", [(None, "moved, downtime "), ("skip-sync,skip-final-log", "memory is not what|without being logged")])
@pytest.mark.parametrize("kind", ["static", "shared"])
def test_a_vmm_outside_the_tree_moves_its_guest(root, tmp_path, kind, sabotage, outcome):
    """Between two devices of the smallest kind; a page that is lost does not stay unnoticed."""
    for name in ("null_device", *VMMS):
        link(root, kind, SOURCE / "examples" / f"{name}.c", tmp_path / name)
    paths = [tmp_path / f"{side}.sock" for side in "ab"]
    devices = [subprocess.Popen([tmp_path / "null_device", path]) for path in paths]
    for device, path in zip(devices, paths):
        greet(device, path).close()
    env = dict(os.environ, VFMIG_SABOTAGE=sabotage) if sabotage else None
    result = subprocess.run([tmp_path / "vmm_loop", *paths, f"unix:{tmp_path}/move.sock", tmp_path], env=env,
                            capture_output=True, text=True, timeout=60)
    for device in devices:
        device.send_signal(signal.SIGTERM)
        assert device.wait(timeout=60) == 0
    assert re.search(outcome, result.stdout + result.stderr)
    assert result.returncode == (1 if sabotage else 0), result.stderr


def test_examples_are_short():
    assert len(EXAMPLES) >= 2
    for example in EXAMPLES:
        assert len((SOURCE / "examples" / f"{example}.c").read_text().splitlines()) < 150
