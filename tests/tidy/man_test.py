#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Manual pages: well-formed, installed, and in step with the headers that they speak of."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1])
MANDOC = sys.argv[2]
# Pages have no date: they are those of the version they come with.
EXPECTED = re.compile(r'WARNING: missing date, using "": TH$')


def functions(header):
    """name: its prototype, blanks and attributes apart."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    found = {}
    for match in re.finditer(r"^(?:[a-z_]\w* )+\**(vfmig_\w+)\((?:[^;]*?)\)(?=\s*(?:__attribute__.*?)?;)",
                             text, flags=re.M | re.S):
        found[match[1]] = squeeze(match[0])
    return found


def squeeze(text):
    return re.sub(r"\s+", "", text)


def rendered(page):
    """Text of a page as a reader sees it."""
    out = subprocess.run([MANDOC, "-T", "utf8", page], capture_output=True, text=True, check=True).stdout
    return re.sub(".\b", "", out)


def check_header(header, report):
    page = ROOT / "man" / f"vfmig_{header.name}.3"
    if not page.exists():
        report(f"{header.name} has no manual page")
        return
    text = rendered(page)
    for name, prototype in functions(header).items():
        if prototype + ";" not in squeeze(text):
            report(f"{page.name}: not as in the header: {name}")
    for name, value in re.findall(r"^#define (VFMIG_DEVICE_\w+)\s+([\d(][^/\n]*)", header.read_text(), re.M):
        if header.name == "limits.h" and f"{name} ({eval(value.replace('u', ''))})" not in text:
            report(f"{page.name}: {name} is missing or has another value")


def main():
    troubles = []
    pages = sorted(ROOT.glob("man/*.[1-9]"))
    headers = sorted(ROOT.glob("include/vfmig/*.h"))
    listed = (ROOT / "man/meson.build").read_text()
    known = "\n".join(header.read_text() for header in headers)
    for page in pages:
        lint = subprocess.run([MANDOC, "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
        troubles += [line for line in (lint.stdout + lint.stderr).splitlines() if not EXPECTED.search(line)]
        if f"'{page.name}'" not in listed:
            troubles.append(f"{page.name} is not installed")
        source = page.read_text()
        for name in set(re.findall(r"\b(?:vfmig_[a-z]\w*|VFMIG_[A-Z]\w*)", source)):
            if not re.search(rf"\b{name}", known) and not (ROOT / "man" / f"{name}.h.3").exists():
                troubles.append(f"{page.name}: no header has {name}")
        for name, section in re.findall(r"^\.BR ([\w.-]+) \((\d)\)", source, re.M):
            if not (ROOT / "man" / f"{name}.{section}").exists():
                troubles.append(f"{page.name}: there is no {name}({section})")
    for header in headers:
        check_header(header, troubles.append)
    found = sum(len(functions(header)) for header in headers)
    for trouble in troubles:
        print(trouble)
    print(f"{len(pages)} pages, {len(headers)} headers with {found} functions, {len(troubles)} troubles")
    return 1 if troubles or not found else 0


if __name__ == "__main__":
    sys.exit(main())
