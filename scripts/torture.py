#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Real processes of a migration are stopped at every point that they pass (records of the journal, messages,
steps, what a device is asked), and there something is done to them, their peer, the link or the disk. Then an
operator does what docs/handover.md says. In the end exactly one guest runs, or a named outcome says why none
does, and the guest itself has found nothing wrong.

    torture.py BUILD [--seed N] [--count N] [--seconds S] [--jobs N] [--quick] [--only TEXT] [--hops N]
    torture.py BUILD --keep FILE [--seconds S] [--only TEXT] [--again]

BUILD has deliberate faults (-Dsabotage=true). First every point is killed at, then --count other cases,
which the seed chooses; --hops migrations there and back in the end. --quick: a few of each, for make check.
The last line is `torture: verified: ...` or `torture: FAILED: ...`. --only TEXT: --count of the cases with that in
their names, WAY:WHO:POINT:ACTION, and no hops unless asked for; a failed case is repeated by its name.

--keep: all cases, in pieces. The first one writes the list of them to FILE, each adds what came of those that it
began within --seconds, and the next goes on from there; --again does those once more that failed. The figures are
those of FILE, and the exit code is 4 as long as there are cases left: `until torture.py ...; [ $? -ne 4 ]; do :; done`.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import sys
import threading
import time
import traceback

TOP = pathlib.Path(__file__).resolve().parent.parent
MOST_OF_A_POINT = 3  # so many times of one point that is passed again and again
MOST_OF_A_DEVICE = 12  # a change of its state is one time of the same message
# For --quick: who passes what, whatever else happens.
SURE = [("source", f"{point}#1") for point in (
            "before-OFFERED", "after-OFFERED", "before-send-IDENTITY", "enter-S1_ALL", "enter-S3_ENTER",
            "enter-S5_ENTER", "before-send-VMSTATE", "before-send-seal", "on-receipt-ready", "before-GRANT-SENT",
            "after-GRANT-SENT", "after-send-grant", "before-RELEASED", "after-RELEASED")] + \
       [("destination", f"{point}#1") for point in (
            "on-receipt-IDENTITY", "on-receipt-offer", "enter-R1_HALT", "enter-R2_DATA", "before-READY",
            "after-READY", "on-receipt-grant", "before-GRANTED", "after-GRANTED", "enter-R3_ENTER",
            "before-RUNNING", "after-RUNNING")]


def cases_of(way):
    """All that can be done at the points that such an attempt passes."""
    points = attempt.play(attempt.Case(way, "source", "", "none"))
    for who, passed in points.items():
        count = collections.Counter()
        for point in passed:
            kind = point.split("#")[0]
            count[kind] += 1
            if count[kind] > (MOST_OF_A_POINT if who in attempt.SIDES else MOST_OF_A_DEVICE):
                continue
            for action in attempt.ACTIONS if who in attempt.SIDES else attempt.DEVICE_ACTIONS:
                yield attempt.Case(way, who, point, action)


def quick_cases(seed):
    """Of points that every attempt passes, each action but those that wait for a limit of ten seconds."""
    rng = random.Random(seed)
    actions = [action for action in attempt.ACTIONS if action not in ("stall", "freeze", "full")] + ["kill"] * 2
    return [attempt.Case("moved", *rng.choice(SURE), action) for action in actions] + \
        [attempt.Case("moved", "destination", "before-send-ready#1", "cut")]


def kind_of(who):
    return who if who in attempt.SIDES else f"{'source' if who.startswith('dev-a') else 'destination'}'s device"


class Figures:
    """What came of each case; with a file, also of those of earlier pieces."""

    def __init__(self, path=None):
        self.lock = threading.Lock()
        self.results, self.cases, self.path, self.failed = {}, None, path, []
        if path and path.exists():
            first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
            self.cases = [attempt.Case(*case) for case in first["cases"]]
            for line in rest:
                self.results[attempt.Case(*line.pop("case"))] = line

    def begin(self, cases):
        self.cases = cases
        if self.path:
            self.path.write_text(json.dumps({"cases": cases}) + "\n")

    def add(self, case, **result):
        with self.lock:
            self.results[case] = result
            if self.path:
                with open(self.path, "a") as out:
                    out.write(json.dumps({"case": case, **result}) + "\n")

    def passed(self):
        return [(case, result) for case, result in self.results.items() if not result.get("error")]

    def broken(self):
        return [case for case, result in self.results.items() if result.get("error")] + self.failed

    def count(self, key):
        return sum(bool(result[key]) for _, result in self.passed())

    def table(self):
        """By action and side: an outcome is one to which the case came, whoever had to help."""
        played, outcomes = collections.Counter(), collections.Counter()
        for case, result in self.passed():
            key = (case.action, kind_of(case.who))
            played[key] += 1
            outcomes[(*key, result["outcome"])] += 1
        names = sorted({outcome for *_, outcome in outcomes})
        rows = [("done there", "at a point of the", "cases", *names), ("---",) * (3 + len(names))]
        rows += [(f"`{key[0]}`", key[1], played[key], *(outcomes[(*key, name)] for name in names))
                 for key in sorted(played, key=lambda key: (attempt.ACTIONS.index(key[0]), key[1] not in attempt.SIDES, key[1]))]
        return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def choose(args, cases):
    rng = random.Random(args.seed)
    kills = [case for case in cases if case.action == "kill"]
    others = [case for case in cases if case.action != "kill"]
    rng.shuffle(others)
    if args.quick and not args.only:
        return cases
    if args.only:
        cases = [case for case in cases if args.only in attempt.name_of(case)]
        return rng.sample(cases, min(len(cases), args.count))
    return kills + others[:args.count]


def all_cases(args):
    ways = ["moved"] if args.quick else list(attempt.WAYS)
    cases = quick_cases(args.seed) if args.quick else [case for way in ways for case in cases_of(way)]
    points = len({(case.way, case.who, case.point) for case in cases})
    print(f"torture: seed {args.seed}: {points} points of {len(ways)} ways, {len(cases)} cases", flush=True)
    return cases


def piece_of(args, figures):
    """Of the cases that the file keeps: what is not done yet, or was done in vain."""
    if figures.cases is None:
        cases = all_cases(args)
        random.Random(args.seed).shuffle(cases)
        figures.begin(cases)
    broken = figures.broken()
    return [case for case in figures.cases if args.only in attempt.name_of(case) and
            (case in broken if args.again else case not in figures.results)]


def torture(args, figures):
    chosen = piece_of(args, figures) if args.keep else choose(args, all_cases(args))
    print(f"torture: {len(chosen)} cases chosen", flush=True)
    if not chosen and not args.keep:
        sys.exit(f"torture: FAILED: no case has {args.only!r} in its name")
    names = None
    if not args.quick and link.can_have_namespaces():
        names = (f"vfmig{os.getpid()}{n}" for n in range(1 << 30))
    print("torture: links are " + ("network namespaces" if names else "a proxy"), flush=True)
    end = time.monotonic() + args.seconds if args.seconds else None
    lock = threading.Lock()

    def one(case):
        if end and time.monotonic() > end:
            return
        with lock:
            name = iter([next(names)]) if names else None
        began = time.monotonic()
        try:
            reached, outcome, done = attempt.play(case, name)
            figures.add(case, reached=reached, outcome=outcome, done=done, seconds=time.monotonic() - began)
        except Exception as err:  # whatever it is, it belongs to this case
            figures.add(case, error=f"{err!r}"[:4000], seconds=time.monotonic() - began)
            print(f"torture: {attempt.name_of(case)}: {err!r}\n{traceback.format_exc()}", flush=True)
    # Those that do nothing but wait for a limit of ten seconds need no processor.
    waiting = [case for case in chosen if case.action in ("stall", "freeze")]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool, \
            concurrent.futures.ThreadPoolExecutor(args.waiting) as bench:
        played = [bench.submit(one, case) for case in waiting] + \
            [pool.submit(one, case) for case in chosen if case not in waiting]
        for each in played:
            each.result()
    print(figures.table())
    left = sum(case not in figures.results for case in (figures.cases if args.keep else chosen))
    print(f"torture: {len(figures.results)} cases, {figures.count('reached')} reached their point, "
          f"{figures.count('done')} needed an operator, "
          f"{sum(result['seconds'] for result in figures.results.values()):.0f} s one after the other, {left} left", flush=True)
    return left


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--waiting", type=int, default=8, help="cases of stall and freeze at a time, besides")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--hops", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    os.environ["VFMIG"] = str((args.build / "tools/vfmig").resolve())
    sys.path.insert(0, str(TOP / "tests/e2e"))
    global attempt, hops, link
    import attempt
    import hops
    import link
    from world import World
    World.say = staticmethod(lambda *_, **__: None)  # what a process has said: by its test
    figures = Figures(args.keep)
    left = torture(args, figures)
    count = args.hops if args.hops is not None else 0 if args.only or args.keep else 6 if args.quick else 200
    try:
        if args.quick:
            missed = len(figures.passed()) - figures.count("reached")
            assert not missed, f"{missed} points that every attempt passes were not reached"
        if count:
            count = max(count, hops.FIRST + 2)  # something to compare
            print("torture: " + hops.there_and_back(count), flush=True)
            print("torture: " + hops.in_vain(max(count // 4, 6)), flush=True)
    except AssertionError as err:
        figures.failed.append(attempt.Case("hops", "", "", repr(err)))
        traceback.print_exc()
    if args.keep and left:
        print(f"torture: so far {len(figures.results)} cases, {len(figures.broken())} failed, {left} left")
        return 4
    if figures.broken():
        print("torture: FAILED: " + ", ".join(map(attempt.name_of, figures.broken())))
        return 1
    print("torture: verified: in each case one guest ran on, or a named outcome said why none did")
    return 0


if __name__ == "__main__":
    sys.exit(main())
