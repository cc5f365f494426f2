# SPDX-License-Identifier: BSD-3-Clause
"""What `make install` leaves: binary, manual, and a library that others can build against."""
import os
import shutil
import subprocess

import pytest


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


def test_the_command_and_its_manual_are_there(root):
    assert os.access(root / "bin/vfmig", os.X_OK)
    for page in ("vfmig", "vfmig-vm", "vfmig-migrate"):
        assert (root / f"share/man/man1/{page}.1").exists()


@pytest.mark.parametrize("compiler, language", [("gcc", "c"), ("g++", "c++")])
def test_every_header_stands_alone(root, compiler, language):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    headers = sorted((root / "include/vfmig").glob("*.h"))
    assert headers
    for header in headers:
        subprocess.run([compiler, "-x", language, "-Wall", "-Werror", "-fsyntax-only", "-",
                        *pkg_config(root, "--cflags")], input=f'#include "vfmig/{header.name}"\n',
                       text=True, check=True)


def test_a_program_links(root, tmp_path):
    source = tmp_path / "main.c"
    source.write_text('#include <vfmig/error.h>\n'
                      'int main(void) { return vfmig_origin_name(VFMIG_ORIGIN_PEER)[0] != 112; }\n')
    flags = pkg_config(root, "--cflags") + pkg_config(root, "--static", "--libs")
    built = subprocess.run(["gcc", source, "-o", tmp_path / "main", "-fsanitize=address,undefined",
                            *flags], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([tmp_path / "main"]).returncode == 0
