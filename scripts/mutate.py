#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Mechanical mutation: one cell of a table, one condition or one statement is changed at a time, in a copy of
the tree; what depends on it is compiled anew, and a few fast test programs say whether they notice.

  mutate.py DIR [--set core|device|checker] [--count N] [--seed S] [--seconds T] [--jobs J] [FILE...]
  mutate.py DIR --report [--set ...]      the shares and the survivors of all parts so far
  mutate.py DIR --report --set checker --document docs/conformance.md   and the section there
  mutate.py DIR --kill-with 'CMD' ...     CMD in the copy instead of the set's own programs; not zero: killed

DIR keeps the copy, its objects and one line of JSON for each mutant that was tried; what is there is not tried
again, so a run may be cut in pieces. Mutants that change nothing
that can be seen are listed in tests/mutation/equivalent.txt with the reason; why others survive the checker, in
survivors.txt."""
import argparse
import concurrent.futures
import glob
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("base", "core", "wire", "stream", "io", "device", "target", "dirty", "engine", "devices", "check")
FLAGS = ["-O0", "-g0", "-std=gnu11", "-w", "-D_GNU_SOURCE", "-fno-common", "-DVFMIG_HAVE_ZSTD", "-pthread",
         '-DVFMIG_VERSION="0"', f'-DDOCS="{ROOT}/docs"', "-Iinclude", "-Isrc", "-I."]
LIBRARIES = ["-pthread", "-ljson-c", "-lzstd", "-lcmocka"]
PATIENCE_S = 20  # of a CPU, for a program that takes a second or two
EXPLORE = ["main", "moves", "pack", "properties", "search", "world"]


def program(folder, name, *arguments):
    """A killer: its name, its sources, what it is called with."""
    return name + "".join(" " + a for a in arguments), [f"tests/{folder}/{name}.c"], list(arguments)


def explorer(scope):
    return "explore " + scope, [f"tests/explore/{name}.c" for name in EXPLORE], [scope]


DEVICE = [program("core", "state_test"), program("core", "dev_test"), program("core", "dev_pairs_test"),
          program("core", "dev_walk_test")]
HANDOVER = ("handover_test handover", [f"tests/core/handover_{part}.c" for part in
                                       ("test", "explorer", "table", "world")], [])
SETS = {
    "core": {
        "files": ["src/core/*.c", "src/core/handover.def", "tables/flow.def", "tables/next_hop.def",
                  "tables/states.def", "src/stream/*.c"],
        "killers": DEVICE + [
            program("core", "handover_rules_test"), program("core", "flow_test"), program("core", "flow_rows_test"),
            explorer("faultless"), program("core", "window_test"),
            program("core", "devstream_test"), program("core", "converge_test"), program("core", "pace_test"),
            program("core", "rates_test"), program("core", "samples_test"), program("core", "throttle_test"),
            program("stream", "record_test"), program("stream", "savefile_test"), explorer("mixed"), explorer("quiet-log"), HANDOVER]},
    "device": {
        "files": ["src/core/dev.c", "src/core/state.c", "tables/next_hop.def", "tables/states.def",
                  "src/device/log.c"],
        "killers": DEVICE + [explorer("faultless"), ("device_log_model_test", ["tests/device/log_model_test.c"], [])]},
    # What the conformance checker sees of the device alone, from outside.
    "checker": {
        "files": ["src/core/dev.c", "src/core/state.c", "tables/next_hop.def", "tables/states.def",
                  "src/device/log.c"],
        "killers": [program("check", "mutants", "--devices")],
        # What nobody outside can see is no mutant of a device, and is told apart mechanically: the compiler makes the
        # same of it (what is there for deliberate faults only), or the machine does the same whatever happens.
        "unseen": {"machine": ["src/core/dev.c", "src/core/state.c"]}, "patience": 100,
        # Never by a client of the device: messages of vfmig's own control session (docs/control.md).
        "elsewhere": {"log_forget", "take_run", "log_take_ranges"},
        # What other threads, or a checker of memory, may see and no client: make check has both.
        "inside": r"\s*(pthread_rwlock_\w+|free)\(.*"},
}
# Which killers can see a file at all: the others are not asked.
ONLY = {
    "src/core/converge.c": "converge", "src/core/pace.c": "pace", "src/core/rates.c": "rates",
    "src/core/samples.c": "samples", "src/core/throttle.c": "throttle", "src/core/window.c": "window",
    "src/core/devstream.c": "devstream", "src/stream/record.c": "record_test savefile",
    "src/stream/payload.c": "record_test savefile", "src/stream/savefile.c": "savefile",
    "src/core/handover.c": "handover explore", "src/core/handover.def": "explore handover",
    "src/core/handover_names.c": "handover_test", "src/core/flow.c": "flow explore", "tables/flow.def": "flow explore",
    "src/core/dev.c": "dev_ explore", "src/core/state.c": "state dev_ explore",
}

LOG_LOCK = threading.Lock()

# --- mutants ---


TEXTS = {}  # as they were when the run began


def strip_comments(text):
    """The same length, comments and strings blank: only code is changed."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group(0))
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', blank, text, flags=re.S)


def balanced(text, at):
    """The end of the parenthesis that opens at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text)


def of_a_fault(code, end):
    """A condition that ends there chooses between deliberate faults only, which are off."""
    return re.match(r"[^\n]*\)\n\s+return vfmig_sabotage\(", code[end:])


EDGES = (r"([\w.>-]+) [<>]=? ([\w.>-]+) \? (?:\([\w ]+\))?(?:\1 : \2|\2 : (?:\([\w ]+\))?\1)[;,)\]]",
         r"([\w.>-]+) >=? ([\w.>-]+) \? \1 - \2 : 0[;,)]", r"if \(([\w.>-]+) [<>]=? ([\w.>*-]+)\)\n\s+\1 = \2;")


def takes_the_edge(text, start, end):
    """The smaller or the larger one of two, or by how much: when both are the same it does not matter which."""
    part = text[text.rfind("\n", 0, start) + 1:text.find("\n", text.find("\n", end) + 1)]
    at = start - text.rfind("\n", 0, start) - 1
    return text[start] in "<>" and any(m.start() <= at < m.end() for edge in EDGES for m in re.finditer(edge, part))


def conditions(name, text, code):
    for match in re.finditer(r"\b(?:if|while) (\()", code):
        end = balanced(code, match.start(1))
        inner = text[match.start(1) + 1:end]
        if "vfmig_sabotage(" not in inner and not of_a_fault(code, end):
            yield match.start(1) + 1, end, f"!({inner})", "negate"
    for match in re.finditer(r"&&|\|\||==|!=|<=|>=|(?<=\s)[<>](?=\s)", code):
        other = {"&&": "||", "||": "&&", "==": "!=", "!=": "==", "<=": "<", ">=": ">", "<": "<=", ">": ">="}
        line = code[code.rfind("\n", 0, match.start()) + 1:code.find("\n", match.start())]
        if line.lstrip().startswith("#") or "sizeof" in line or "_Static_assert" in line or "vfmig_sabotage" in line:
            continue
        if of_a_fault(code, match.end()) or takes_the_edge(code, match.start(), match.end()):
            continue
        yield match.start(), match.end(), other[match.group(0)], "negate"


DECLARATION = re.compile(r"\s*(?:const|static|struct|enum|unsigned|u?int\w*|bool|size_t|char|uint8_t|double|extern|"
                         r"typedef|_Static_assert)\b")


def statements(name, text, code):
    depth, before, above = 0, ";", ""
    for match in re.finditer(r"[^\n]*\n", code):
        line = match.group(0)
        if depth > 0 and re.fullmatch(r"\s+[\w*(+-].*;\s*", line) and not DECLARATION.match(line) and \
                before[-1] in ";{}:)" and "vfmig_sabotage" not in above + before + line and not line.strip().startswith("for"):
            start = match.start() + len(line) - len(line.lstrip())
            # A function that ends without its value has no meaning, and a return at its end does nothing.
            ends = re.match(r"[\s}]*\n}", code[match.end() - 1:]) or code[match.end():match.end() + 2] == "}\n"
            if line.strip().startswith("return") and ends:
                continue
            yield start, match.end() - 1, ";", "drop"
        if not line.lstrip().startswith("#"):
            depth += line.count("{") - line.count("}")
        if line.strip():
            above, before = before, line.strip()
    del text


def reads_not(name, text, row, column):
    """Cells that their machine does not look at: no devices, so no state for them and nothing that they do wrong; no
    work that is waited for, so no limit of it; no ERROR is ever left by a hop."""
    cell = [text[a:b].strip() for a, b in row]
    if name == "tables/flow.def":
        return (cell[2] == "NONE" and column in (3, 7)) or (cell[5] == "0" and column == 6)
    return name == "tables/next_hop.def" and (cell[0] == "ERROR" or column == 1)


def cells(name, text, code):
    """In a table of macros a cell becomes another one of its column; in an initialiser of an array of constants the
    value of the row before."""
    rows = {}
    for match in re.finditer(r"^([A-Z_]+)(\()", code, flags=re.M):
        end, at, arguments = balanced(code, match.start(2)), match.end(), []
        depth = 0
        for i in range(at, end + 1):
            depth += {"(": 1, ")": -1}.get(code[i], 0)
            if i == end or (code[i] == "," and depth == 0):
                arguments.append((at, i))
                at = i + 1
        rows.setdefault((match.group(1), len(arguments)), []).append(arguments)
    for group in rows.values():
        for column in range(len(group[0])):
            values = sorted({text[a:b].strip() for a, b in (row[column] for row in group)})
            if len(values) < 2 or values[0].startswith('"'):
                continue
            for row in group:
                if reads_not(name, text, row, column):
                    continue
                a, b = row[column]
                mine = text[a:b].strip()
                others = [value for value in values if value != mine]
                choose = random.Random(f"{name} {mine} {text[row[0][0]:row[-1][1]]} {column}")
                yield a, b, " " + choose.choice(others), "cell"


def array_cells(name, text, code):
    found = list(re.finditer(r"^\s+\[(\w+)\] = (\w+),", code, flags=re.M))
    for here, other in zip(found, found[1:] + found[:1]):
        if here.group(2) != other.group(2):
            yield here.start(2), here.end(2), other.group(2), "cell"


def function_at(code, position):
    """The name of the function that position is in."""
    names = re.findall(r"^[a-z][^;{}#]*?\b(\w+)\([^;{}]*\)\n\{", code[:position], flags=re.M)
    return names[-1] if names else ""


def leaves_out(chosen, code, mutant):
    """By construction nothing of this set's tests can see it."""
    line = code[code.rfind("\n", 0, mutant["start"]) + 1:code.find("\n", mutant["start"])]
    return (function_at(code, mutant["start"]) in chosen.get("elsewhere", ()) or
            (mutant["kind"] == "drop" and "inside" in chosen and re.fullmatch(chosen["inside"], line)))


def mutants_of(name, chosen={}):
    text = TEXTS.setdefault(name, (ROOT / name).read_text())
    code = strip_comments(text)
    kinds = (cells,) if name.endswith(".def") else (conditions, statements, array_cells)
    for kind in kinds:
        for start, end, new, what in kind(name, text, code):
            first = text.rfind("\n", 0, start) + 1
            last = text.find("\n", end)
            line = " ".join(text[first:last].split())
            changed = " ".join((text[first:start] + new + text[end:last]).split())
            if line != changed:
                mutant = {"file": name, "line": text.count("\n", 0, start) + 1, "kind": what, "start": start, "end": end,
                          "new": new, "key": f"{name}: {line} => {changed}"}
                if not leaves_out(chosen, code, mutant):
                    yield mutant


# --- the copy, and what is built in it ---

def copy_changed(source, target):
    """A run that was cut short leaves a mutant behind: what differs is new, and compiled anew."""
    target = pathlib.Path(target)
    if not target.exists() or target.read_bytes() != pathlib.Path(source).read_bytes():
        shutil.copyfile(source, target)


class Copy:
    def __init__(self, folder, chosen):
        self.folder = folder
        self.unseen = chosen.get("unseen")
        self.patience = chosen.get("patience", PATIENCE_S)
        self.said = ""
        self.clean, self.tree = {}, None
        self.objects = folder / "obj"

    def run(self, command, **more):
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, errors="replace", **more)

    def fill(self):
        for part in ("src", "include", "tables", "tests"):
            shutil.copytree(ROOT / part, self.folder / part, dirs_exist_ok=True, copy_function=copy_changed)
        self.objects.mkdir(exist_ok=True)

    def object_of(self, source):
        return self.objects / (source.replace("/", "_")[:-2] + ".o")

    def compile(self, source):
        # Tests are compiled once and run often.
        flags = FLAGS + (["-O1"] if source.startswith("tests/") else [])
        return self.run(["gcc", *flags, "-MMD", "-c", source, "-o", str(self.object_of(source))]).returncode == 0

    def is_fresh(self, source):
        made = self.object_of(source)
        parts = made.with_suffix(".d")
        if not made.exists() or not parts.exists():
            return False
        names = parts.read_text().replace("\\\n", " ").split()[1:]
        return all((self.folder / name).stat().st_mtime < made.stat().st_mtime for name in names)

    def build(self, killers):
        sources = [str(path.relative_to(self.folder)) for folder in FOLDERS
                   for path in sorted((self.folder / "src" / folder).glob("*.c"))]
        tests = sorted({source for _, files, _ in killers for source in files})
        for source in sources + tests:
            if not self.is_fresh(source) and not self.compile(source):
                sys.exit(f"{source} does not compile")
        self.run(["ar", "rcs", "lib.a", *[str(self.object_of(source)) for source in sources]])
        self.depends = {}
        for source in sources + tests:
            for part in self.object_of(source).with_suffix(".d").read_text().replace("\\\n", " ").split()[1:]:
                self.depends.setdefault(os.path.normpath(part), []).append(source)

    def link(self, killer):
        name, files, _ = killer
        binary = self.folder / name.split()[0]
        objects = [str(self.object_of(source)) for source in files]
        return binary if self.run(["gcc", "-o", str(binary), *objects, "lib.a", *LIBRARIES]).returncode == 0 else None

    def change(self, mutant):
        """False: it does not compile."""
        text = TEXTS[mutant["file"]]
        path = self.folder / mutant["file"]
        path.write_text(text[:mutant["start"]] + mutant["new"] + text[mutant["end"]:])
        return self.rebuild(mutant["file"])

    def rebuild(self, name):
        for source in self.depends.get(name, []):
            if not self.compile(source):
                return False
            if source.startswith("src/"):
                self.run(["ar", "r", "lib.a", str(self.object_of(source))])
        return True

    def restore(self, mutant):
        (self.folder / mutant["file"]).write_text(TEXTS[mutant["file"]])
        self.rebuild(mutant["file"])

    # --- a tree that was tried without a mutant is not tried again by the next piece of a run ---

    def digest(self):
        found = hashlib.sha256()
        for part in ("src", "include", "tables", "tests"):
            for path in sorted((self.folder / part).rglob("*.*")):
                found.update(path.read_bytes() if path.is_file() else b"")
        return found.hexdigest()

    def is_known_clean(self):
        note = self.folder / "clean"
        return note.exists() and note.read_text() == self.digest()

    def note_clean(self):
        (self.folder / "clean").write_text(self.digest())

    # --- what nobody outside can see ---

    def optimised(self, source):
        """What the compiler makes of it; without deliberate faults, as everything here."""
        made = self.objects / "optimised.o"
        if self.run(["gcc", *FLAGS, "-O2", "-c", source, "-o", str(made)]).returncode:
            return None
        return made.read_bytes()

    def machine(self, name):
        made = self.folder / name
        done = self.run(["gcc", *FLAGS, "-O1", "-fPIC", "-shared", "-Wl,-Bsymbolic", *self.unseen["machine"], "-o", str(made)])
        return made if done.returncode == 0 else None

    def remember(self, mutant):
        """What the unchanged tree makes of the mutant's files, to be compared with."""
        for source in self.depends.get(mutant["file"], []):
            if source.startswith("src/") and source not in self.clean:
                self.clean[source] = self.optimised(source)
        if self.tree:
            return
        self.tree = self.machine("tree.so")
        self.outside = self.folder / "outside"
        self.run(["gcc", *FLAGS, "-O2", "tests/mutation/outside.c", "-o", str(self.outside)])
        if not self.tree or self.is_same_machine(self.tree) is not True:
            sys.exit("the machine is not even the same as itself")

    def is_same_machine(self, other):
        try:
            done = self.run([str(self.outside), str(self.tree), str(other)], timeout=2 * self.patience)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def why_unseen(self, mutant):
        sources = [s for s in self.depends.get(mutant["file"], []) if s.startswith("src/")]
        if all(self.optimised(source) == self.clean[source] for source in sources):
            return "the same code"
        others = [s for s in sources if s not in self.unseen["machine"] and self.optimised(s) != self.clean[s]]
        changed = None if others else self.machine("changed.so")
        return "the same machine" if changed and self.is_same_machine(changed) else None

    def killed_by(self, killers):
        linked = set()
        for killer in killers:
            name = killer[0].split()[0]
            if name not in linked and not self.link(killer):
                return killer[0] + " (does not link)"
            linked.add(name)
            # What others do on the machine must kill no mutant: the time is that of the program itself.
            try:
                done = self.run(["prlimit", f"--cpu={self.patience}", str(self.folder / name), *killer[2]],
                                timeout=20 * self.patience)
            except subprocess.TimeoutExpired:
                return killer[0] + " (no end)"
            if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
                return killer[0] + " (no end)"
            self.said = done.stdout.strip().split("\n")[-1]
            if done.returncode:
                return killer[0]
        return None

    def killed_by_command(self, commands):
        for command in commands:
            try:
                if self.run(command, shell=True, timeout=10 * PATIENCE_S).returncode:
                    return command
            except subprocess.TimeoutExpired:
                return command + " (no end)"
        return None


def killers_for(name, killers):
    words = ONLY.get(name, "").split()
    chosen = [k for k in killers if not words or any(word in k[0] for word in words)]
    return chosen or killers


def work_off(folder, chosen, options, killers):
    """One worker: its own copy."""
    copy = Copy(folder, SETS[options.set])
    folder.mkdir(parents=True, exist_ok=True)
    copy.fill()
    copy.build(killers)
    if not copy.is_known_clean():
        failed = copy.killed_by_command(options.kill_with) if options.kill_with else copy.killed_by(killers)
        if failed:
            sys.exit(f"without any mutant, {failed} fails already: {copy.said}")
        copy.note_clean()
    for mutant in chosen:
        if time.monotonic() > options.until:
            return
        unseen, copy.said = None, ""
        if not copy.change(mutant):
            verdict = "not built"
        elif options.kill_with:
            verdict = copy.killed_by_command(options.kill_with)
        else:
            verdict = copy.killed_by(killers_for(mutant["file"], killers))
        copy.restore(mutant)
        if not verdict and copy.unseen:
            copy.remember(mutant)
            copy.change(mutant)
            unseen = copy.why_unseen(mutant)
            copy.restore(mutant)
        result = {**{key: mutant[key] for key in ("file", "line", "kind", "key")}, "by": verdict}
        if unseen:
            result["unseen"] = unseen
        if verdict and copy.said:
            result["said"] = copy.said
        with LOG_LOCK, options.log.open("a") as out:
            out.write(json.dumps(result) + "\n")
        print(f"{mutant['file']}:{mutant['line']}: {mutant['kind']}: {verdict or unseen or 'SURVIVED ' + mutant['key']}"
              f"{': ' + copy.said if verdict and copy.said else ''}", flush=True)


# --- what came of it ---


def reasons(name):
    path = ROOT / "tests/mutation" / name
    reason, result = None, {}
    for line in path.read_text().split("\n") if path.exists() else []:
        if line.startswith("# "):
            reason = line[2:]
        elif line.strip():
            result[line.strip()] = reason
    return result


def report(results):
    known = reasons("equivalent.txt")
    built = {r["key"]: r for r in results if r["by"] != "not built"}.values()
    for r in built:
        if not r["by"] and r["key"] in known:
            r.setdefault("unseen", known[r["key"]])
    counted = [r for r in built if not r.get("unseen")]
    for title, key in (("file", "file"), ("kind", "kind")):
        print(f"| {title} | mutants | killed | share |\n|---|---|---|---|")
        for value in sorted({r[key] for r in counted}) + ["all"]:
            mine = [r for r in counted if value in (r[key], "all")]
            killed = sum(1 for r in mine if r["by"])
            print(f"| {value} | {len(mine)} | {killed} | {100 * killed // len(mine)} % |")
        print()
    killers = {}
    for r in counted:
        if r["by"]:
            killers[r["by"]] = killers.get(r["by"], 0) + 1
    for name, count in sorted(killers.items(), key=lambda item: -item[1]):
        print(f"{count:5} {name}")
    for r in built:
        if not r["by"]:
            print(f"{'equivalent' if r.get('unseen') else 'SURVIVED'}: {r['line']}: {r['key']}")
    share = 100 * sum(1 for r in counted if r["by"]) / max(len(counted), 1)
    print(f"{len(counted)} mutants, {share:.1f} % killed, {len(built) - len(counted)} equivalent")
    return share


SECTION = "## Mechanical mutation"


def write_section(path, chosen, results, seed):
    """What came of it, behind the table of the document; survivors with the reasons of survivors.txt. False: one of
    them has none."""
    why = reasons("survivors.txt")
    built = list({r["key"]: r for r in results if r["by"] != "not built"}.values())
    counted = [r for r in built if not r.get("unseen")]
    caught = [r for r in counted if r["by"]]
    same = {what: sum(1 for r in built if r.get("unseen") == what) for what in ("the same code", "the same machine")}
    rules, survivors = {}, {}
    for r in caught:
        said = re.match(r"[^:]*: ([A-Z0-9-]+):", r.get("said", ""))
        rule = said.group(1) if said else "no device any more"
        rules[rule] = rules.get(rule, 0) + 1
    for r in counted:
        if not r["by"]:
            survivors.setdefault(why.get(r["key"], "no reason is known"), []).append(r)
    lines = [SECTION, "", f"Written by `scripts/mutate.py DIR --set checker --seed {seed} --report --document` of {len(built)} mutants, "
             "picked at random: a cell of a table,", "a condition or a statement of the device machine and of the DMA log is "
             "changed, and `vfmig check` is asked what it thinks of such devices.", "Rules were added for some that survived at "
             "first; all survivors were tried again then.", "",
             "Not counted, because nobody outside can see them:", "",
             f"- {same['the same code']} of which the compiler makes the same code: what is there for deliberate faults only;",
             f"- {same['the same machine']} that are the same machine for every client: `tests/mutation/outside.c` leads both through all "
             "that can happen, side by side;",
             "- never made: in functions of the DMA log that only vfmig's own control session calls "
             f"({', '.join(f'`{name}`' for name in sorted(chosen['elsewhere']))}), and where a lock is taken or given back, or memory is",
             "  (seen by other threads and by the sanitizers of `make check`).", "",
             "| file | mutants | caught | share |", "|---|---|---|---|"]
    for name in sorted({r["file"] for r in counted}) + ["all"]:
        mine = [r for r in counted if name in (r["file"], "all")]
        hits = sum(1 for r in mine if r["by"])
        lines.append(f"| {name} | {len(mine)} | {hits} | {100 * hits // len(mine)} % |")
    lines += ["", "Caught first by: " + ", ".join(f"{rule} {n}" for rule, n in sorted(rules.items(), key=lambda i: (-i[1], i[0]))) +
              ".", "", "### Survivors", ""]
    for reason, mine in sorted(survivors.items()):
        lines += [f"{reason[0].upper()}{reason[1:]}:", ""]
        lines += [f"- `{r['key']}`" for r in sorted(mine, key=lambda r: r["key"])] + [""]
    text = path.read_text()
    head = text[:text.index(SECTION)] if SECTION in text else text + "\n"
    path.write_text(head + "\n".join(lines).rstrip() + "\n")
    return "no reason is known" not in survivors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--set", choices=SETS, default="core")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further mutant after these")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kill-with", action="append", default=[])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--document", type=pathlib.Path, help="the section on mechanical mutation is written there")
    parser.add_argument("--floor", type=float, default=0, help="fail below this share")
    options = parser.parse_intermixed_args()
    log = options.log = options.dir.resolve() / f"{options.set}.jsonl"
    options.until = time.monotonic() + options.seconds
    chosen = SETS[options.set]
    names = options.files or [os.path.relpath(path, ROOT) for pattern in chosen["files"]
                              for path in sorted(glob.glob(str(ROOT / pattern)))]
    every = [mutant for name in names for mutant in mutants_of(name, chosen)]
    if not options.report:
        mutants = list(every)
        random.Random(options.seed).shuffle(mutants)
        tried = {json.loads(line)["key"] for line in log.read_text().splitlines()} if log.exists() else set()
        mutants = [mutant for mutant in mutants[:options.count] if mutant["key"] not in tried]
        options.dir.mkdir(parents=True, exist_ok=True)
        jobs = min(options.jobs, len(mutants)) or 1
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            runs = [pool.submit(work_off, options.dir.resolve() / f"copy-{job}", mutants[job::jobs], options,
                                chosen["killers"]) for job in range(jobs)]
            for run in runs:
                run.result()
    if not log.exists():
        sys.exit("nothing was tried yet")
    current = {mutant["key"] for mutant in every}
    results = [r for r in map(json.loads, log.read_text().splitlines()) if r["key"] in current]
    share = report(results)
    if options.document and not write_section(options.document, chosen, results, options.seed):
        return 1
    return 1 if share < options.floor else 0


if __name__ == "__main__":
    sys.exit(main())
