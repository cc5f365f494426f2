# SPDX-License-Identifier: BSD-3-Clause
"""vfmig timeline: what it draws is what the trace says; what is no trace is refused by its line."""
import json
import os
import pty
import random
import re
import subprocess
import xml.etree.ElementTree as xml

import pytest

from world import VFMIG, World, heartbeats, migrate, wait_until

SVG = "{http://www.w3.org/2000/svg}"


def timeline(*args, env=None, code=0):
    result = subprocess.run([VFMIG, "timeline", *map(str, args)], capture_output=True, text=True,
                            env=dict(os.environ, **{"LC_ALL": "C.UTF-8", **(env or {})}), timeout=60)
    assert "Sanitizer" not in result.stderr and "runtime error" not in result.stderr, result.stderr
    assert result.returncode == code, result.stderr
    return result


def record(folder, *fail):
    """Both sides' traces of a migration of two devices: the source's file and the destination's own."""
    with World() as world:
        devices = {"a": [world.device("a0"), world.device("a1", "--state-size", "1M", kind="bulk")],
                   "b": [world.device("b0"), world.device("b1", "--state-size", "1M", *fail, kind="bulk")]}
        ids = ("ring", "lake")
        paths = {side: [f"{path},id={name}" for path, name in zip(devices[side], ids)] for side in "ab"}
        source = world.vm("source", "--trace", folder / "source.jsonl", devices=paths["a"])
        world.vm("dest", "--trace", folder / "dest.jsonl", devices=paths["b"], incoming=world.uri())
        wait_until(lambda: heartbeats(source) > 0, "the guest")
        result = migrate(source, world.uri(), "--trace", folder / "both.jsonl")
        assert result.returncode == (1 if fail else 0), result.stderr
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    return record(tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    return record(tmp_path_factory.mktemp("failed"), "--fail", "load_end")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path):
    return [node.text for node in xml.parse(path).iter(SVG + "text")]


def titles(path):
    return [node.text for node in xml.parse(path).iter(SVG + "title")]


def test_the_picture_of_a_migration(moved, tmp_path):
    timeline(moved / "both.jsonl", "-o", tmp_path / "out.svg")
    words = texts(tmp_path / "out.svg")
    for word in ("source", "destination", "steps", "vCPUs", "memory", "rates", "downtime"):
        assert word in words, words
    assert words.count("ring") == words.count("lake") == 4 # both sides, whole and magnified
    assert re.search(r"completed in .* downtime .* rounds?,", " ".join(words))
    details = "\n".join(titles(tmp_path / "out.svg"))
    for state in ("PRE_COPY_NDMA", "STOP_COPY", "RESUMING", "RUNNING_NDMA"):
        assert f"ring\n→ {state}\n" in details and f"lake\n→ {state}\n" in details
    for row in ("S2_LOOP", "S3_IDLE", "S5_STATE", "R1_HALT", "R2_DATA", "R4_VCPU"):
        assert f"barrier before {row}\n2 devices\nfirst " in details, row
    for record in ("GRANT-SENT", "GRANTED", "RUNNING"):
        assert f"{record}\n" in details


def test_the_picture_of_a_failure(failed, tmp_path):
    timeline(failed / "both.jsonl", "-o", tmp_path / "out.svg")
    words = " ".join(texts(tmp_path / "out.svg"))
    assert "failed in" in words and "the guest stood still for" in words and "lake" in words
    assert "the destination refused" in words and "standstill" in words
    marks = [node for node in xml.parse(tmp_path / "out.svg").iter(SVG + "line")
             if node.get("class") == "mark failed"]
    # Each side, whole and magnified; what was under way may have failed with it.
    assert len(marks) >= 4
    assert "lake\n→ STOP\n" in "\n".join(titles(tmp_path / "out.svg"))


def up_to_the_end(path, to):
    """Without what becomes of the connections: when that is, and whether it is in a file, is luck."""
    texts = path.read_text().splitlines(keepends=True)
    lines = [json.loads(text) for text in texts]
    last = {line["side"]: at for at, line in enumerate(lines) if line["ev"] == "end"}
    to.write_text("".join(text for at, text in enumerate(texts) if at <= last[lines[at]["side"]]))
    return to


@pytest.mark.parametrize("order", [("source", "dest"), ("dest", "source")])
def test_two_traces_are_as_good_as_one(moved, tmp_path, order):
    timeline(up_to_the_end(moved / "both.jsonl", tmp_path / "both.jsonl"), "-o", tmp_path / "one.svg")
    timeline(*(up_to_the_end(moved / f"{name}.jsonl", tmp_path / f"{name}.jsonl") for name in order),
             "-o", tmp_path / "two.svg")
    assert sorted(texts(tmp_path / "two.svg")) == sorted(texts(tmp_path / "one.svg"))


def test_the_page_needs_nothing_but_itself(moved, tmp_path):
    timeline(moved / "both.jsonl", "-o", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert set(re.findall(r"https?://[^\"'<> ]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page and not re.search(r"\b(src|href)=", page)
    picture = page[page.index("<svg"):page.index("</svg>") + 6]
    moving = [node for node in xml.fromstring(picture).iter() if node.get("data-b")]
    assert len(moving) > 50
    for node in moving:
        assert int(node.get("data-b")) <= int(node.get("data-e")) or node.get("class") == "arrow"
    for needed in re.findall(r'getElementById\("(\w+)"\)', page):
        assert f'id="{needed}"' in page


def test_the_summary_agrees_with_the_trace(moved):
    summary = json.loads(timeline(moved / "both.jsonl", "--json").stdout)
    lines = lines_of(moved / "both.jsonl")
    source = [line for line in lines if line["side"] == "source"]
    begin = source[0]["t_ns"]

    def at(ev, **fields):
        return next(line["t_ns"] for line in source if line["ev"] == ev and fields.items() <= line.items()) - begin
    assert summary["state"] == "completed" and summary["id"] == source[0]["id"]
    assert summary["vcpus-stopping"] == at("vcpus-stopping")
    [clock] = [line for line in source if line["ev"] == "clock"]
    [running] = [line for line in lines if line["ev"] == "vcpus-running"]
    assert summary["vcpus-running"] == running["t_ns"] - clock["offset_ns"] - begin
    assert summary["standstill-ns"] == summary["vcpus-running"] - summary["vcpus-stopping"]
    assert [step["name"] for step in summary["source"]["steps"]] == \
        ["connect", "S1", "S2", "S3", "S4", "S5", "handover", "S6"]
    for side in ("source", "destination"):
        assert [device["id"] for device in summary[side]["devices"]] == ["ring", "lake"]
    for device in summary["source"]["devices"]:
        assert [change["name"] for change in device["changes"]] == ["PRE_COPY", "PRE_COPY_NDMA", "STOP_COPY", "STOP"]
        for state, change in zip(device["states"], device["changes"]):
            assert state["end"] == change["begin"] <= change["end"]
    rows = [barrier["row"] for barrier in summary["barriers"] if barrier["side"] == "source"]
    assert rows == ["S2_LOOP", "S3_IDLE", "S5_STATE"]
    [downtime] = [line for line in source if line["ev"] == "downtime"]
    assert sum(part["ns"] for part in summary["parts"]) == downtime["total_ns"]
    assert abs(downtime["total_ns"] - summary["standstill-ns"]) < summary["standstill-ns"]


@pytest.mark.parametrize("width", [40, 80, 233])
def test_text_fits_the_width(moved, failed, width):
    for folder in (moved, failed):
        result = timeline(folder / "both.jsonl", "--width", width)
        assert max(len(line) for line in result.stdout.splitlines()) <= max(width, 44)
        assert "\033" not in result.stdout
    assert "ring" in result.stdout and "standstill in parts" in result.stdout
    letters = re.search(r"^ +lake (.*)$", result.stdout, re.M)[1]
    assert len(letters) <= width and "R" in letters
    assert set(letters) <= set("RrPpSZ.Ex/! ")


def on_a_terminal(path, **env):
    master, slave = pty.openpty()
    process = subprocess.Popen([VFMIG, "timeline", path], stdout=slave, env=dict(os.environ, **env))
    os.close(slave)
    out = b""
    try:
        while piece := os.read(master, 65536):
            out += piece
    except OSError:
        pass # the other end was closed
    os.close(master)
    assert process.wait() == 0
    return out.decode()


def test_colours_are_for_terminals_that_want_them(moved):
    assert "\033[32mR" in on_a_terminal(moved / "both.jsonl", LC_ALL="C.UTF-8", NO_COLOR="")
    assert "\033" not in on_a_terminal(moved / "both.jsonl", LC_ALL="C.UTF-8", NO_COLOR="1")


def test_text_is_ascii_where_nothing_else_can_be_shown(moved):
    assert timeline(moved / "both.jsonl", env={"LC_ALL": "C"}).stdout.isascii()
    assert not timeline(moved / "both.jsonl").stdout.isascii()


# --- what is no trace ---

HEAD = {"t_ns": 100, "n": 0, "side": "source", "ev": "trace", "version": 1, "id": "ab" * 16, "epoch": 1,
        "wall_ns": 5, "devices": 1, "memory_bytes": 4096, "limit_ns": 3, "channels": 2}
CHANGE = {"t_ns": 200, "n": 1, "side": "source", "ev": "change-begin", "device": 0, "id": "x", "want": "STOP"}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("second, words", [
    ("hello", "not an object of JSON"),
    ("[1]", "not an object of JSON"),
    ("{}", "no field 't_ns'"),
    ("{" * 50, "not an object of JSON"),
    ('{"a":1} {"b":2}', "not an object of JSON"),
    ("x" * 70000, "longer than a line"),
    ("\0", "a byte that is zero"),
    ({**CHANGE, "t_ns": "now"}, "not a number: 't_ns'"),
    ({**CHANGE, "t_ns": -1}, "out of range: 't_ns'"),
    ({**CHANGE, "t_ns": 1 << 63}, "out of range: 't_ns'"),
    ({**CHANGE, "t_ns": 99}, "time goes back"),
    ({**CHANGE, "side": "left"}, "neither source nor destination"),
    ({**CHANGE, "side": "destination"}, 'no line "trace" of this side'),
    ({**CHANGE, "device": 1}, "a device that the head does not count"),
    ({**CHANGE, "device": -1}, "out of range: 'device'"),
    ({**CHANGE, "want": 7}, "not a text: 'want'"),
    ({key: value for key, value in CHANGE.items() if key != "want"}, "no field 'want'"),
    ({**HEAD, "version": 2}, "a version that this program does not know"),
    ({**HEAD, "devices": 1 << 40}, "more devices than there can be"),
    ({"t_ns": 200, "side": "source", "ev": "step", "step": "S1", "vcpus": 1, "progress": 0, "in_flight": 0,
      "latched": 0}, "neither true nor false: 'vcpus'"),
])
def test_a_line_that_is_wrong_is_named(tmp_path, second, words):
    path = write(tmp_path / "t.jsonl", HEAD, second, CHANGE)
    err = timeline(path, code=1).stderr
    assert err == f"vfmig timeline: {path}: line 2: {err.split('line 2: ')[1]}"
    assert words in err and err.count("\n") == 1


def test_events_and_fields_that_are_not_known_are_passed_over(tmp_path):
    path = write(tmp_path / "t.jsonl", {**HEAD, "colour": "red"}, {"t_ns": 150, "side": "source", "ev": "dawn"}, CHANGE)
    assert "migration " + "ab" * 16 in timeline(path).stdout


def test_a_trace_that_was_cut_is_shown_up_to_the_cut(moved, tmp_path):
    whole = (moved / "source.jsonl").read_text()
    for near in (700, len(whole) // 2, len(whole) - 200):
        size = whole.index("\n", near) + 12 # in the middle of a line
        (tmp_path / "cut.jsonl").write_text(whole[:size])
        result = timeline(tmp_path / "cut.jsonl", "-o", tmp_path / "cut.svg")
        number = whole[:size].count("\n") + 1
        assert result.stderr == f"vfmig timeline: {tmp_path}/cut.jsonl: line {number} is cut short; " \
                                "what is before it is shown\n"
        assert f"is cut short in line {number}" in " ".join(texts(tmp_path / "cut.svg"))


@pytest.mark.parametrize("args, code, words", [
    (("/nonexistent/t.jsonl",), 1, "/nonexistent/t.jsonl: No such file"),
    (("/tmp",), 1, "is a directory"),
    (("/dev/null",), 1, "is empty"),
    (("{trace}", "--id", "ffff"), 1, "no migration whose id begins with ffff"),
    (("{trace}", "{other}"), 1, "not of one migration"),
    (("{trace}", "-o", "/nonexistent/out.svg"), 1, "/nonexistent/out.svg"),
    (("{trace}", "-o", "/dev/full.png"), 2, "ends neither with .svg nor with .html"),
    ((), 2, "TRACE [TRACE] is missing"),
    (("{trace}", "-x"), 2, "unknown option -x"),
    (("{trace}", "-o"), 2, "--output needs a value"),
])
def test_mistakes(tmp_path, args, code, words):
    trace = write(tmp_path / "t.jsonl", HEAD, CHANGE)
    other = write(tmp_path / "o.jsonl", {**HEAD, "side": "destination", "id": "cd" * 16})
    result = timeline(*(arg.format(trace=trace, other=other) for arg in args), code=code)
    assert words in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""


def test_names_of_a_trace_cannot_leave_their_place(tmp_path):
    bad = '</text><script>alert("1")</script>\x1b[31m\u202e&'
    device = {"t_ns": 150, "n": 1, "side": "source", "ev": "device", "device": 0, "id": bad, "features": bad, "log": True}
    path = write(tmp_path / "t.jsonl", HEAD, device, {**CHANGE, "id": bad, "want": bad})
    timeline(path, "-o", tmp_path / "out.svg")
    assert any("<script>" in text for text in titles(tmp_path / "out.svg"))
    timeline(path, "-o", tmp_path / "out.html")
    assert "alert(\"1\")" not in (tmp_path / "out.html").read_text()
    assert "\x1b" not in timeline(path).stdout


def test_bytes_that_are_altered_do_no_harm(moved, tmp_path):
    """Whatever comes out: an error that names a line, or a picture that is well-formed."""
    whole = (moved / "both.jsonl").read_bytes()
    chance = random.Random(1)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 20))):
            at = chance.randrange(len(data))
            data[at:at + chance.randrange(3)] = bytes(chance.choices(b'0123456789"{},:-\n\x00\xffae', k=chance.randrange(4)))
        (tmp_path / "t.jsonl").write_bytes(data)
        result = subprocess.run([VFMIG, "timeline", tmp_path / "t.jsonl", "-o", tmp_path / "out.svg"],
                                capture_output=True, text=True, timeout=60)
        assert result.returncode in (0, 1) and "runtime error" not in result.stderr, result.stderr
        if result.returncode:
            assert ": line " in result.stderr or "no migration" in result.stderr, result.stderr
        else:
            xml.parse(tmp_path / "out.svg")
