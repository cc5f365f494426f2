#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Real processes of a migration are stopped at every point that they pass (records of the journal, messages,
steps, what a device is asked), and there something is done to them, their peer, the link or the disk. Then an
operator does what docs/handover.md says. In the end exactly one guest runs, or a named outcome says why none
does, and the guest itself has found nothing wrong.

    torture.py BUILD [--seed N] [--count N] [--seconds S] [--jobs N] [--quick] [--only TEXT] [--hops N]

BUILD has deliberate faults (-Dsabotage=true). First every point is killed at, then --count other cases,
which the seed chooses; --hops migrations there and back in the end. --quick: a few of each, for make check.
The last line is `torture: verified: ...` or `torture: FAILED: ...`. --only TEXT: --count of the cases with that in
their names, WAY:WHO:POINT:ACTION, and no hops unless asked for; a failed case is repeated by its name.
"""
import argparse
import collections
import concurrent.futures
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


class Figures:
    def __init__(self):
        self.lock = threading.Lock()
        self.played = collections.Counter()  # by action
        self.outcomes = collections.Counter()  # by action and outcome
        self.unreached, self.by_operator, self.failed = 0, 0, []

    def add(self, case, reached, outcome, done):
        with self.lock:
            self.played[case.action] += 1
            self.outcomes[case.action, outcome] += 1
            self.unreached += not reached
            self.by_operator += bool(done)

    def table(self):
        names = sorted({outcome for _, outcome in self.outcomes})
        rows = [("done there", "cases", *names)]
        rows += [(action, self.played[action], *(self.outcomes[action, name] for name in names))
                 for action in attempt.ACTIONS if self.played[action]]
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


def torture(args, figures):
    ways = ["moved"] if args.quick else list(attempt.WAYS)
    cases = quick_cases(args.seed) if args.quick else [case for way in ways for case in cases_of(way)]
    points = len({(case.way, case.who, case.point) for case in cases})
    chosen = choose(args, cases)
    print(f"torture: seed {args.seed}: {points} points of {len(ways)} ways, {len(cases)} cases, "
          f"{len(chosen)} of them chosen", flush=True)
    if not chosen:
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
        try:
            figures.add(case, *attempt.play(case, name))
        except Exception as err:  # whatever it is, it belongs to this case
            with figures.lock:
                figures.failed.append(case)
            print(f"torture: {attempt.name_of(case)}: {err!r}\n{traceback.format_exc()}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, chosen))
    print(figures.table())
    print(f"torture: {sum(figures.played.values())} cases, {figures.unreached} did not reach their point, "
          f"{figures.by_operator} needed an operator, {len(chosen) - sum(figures.played.values()) - len(figures.failed)} "
          f"left out for want of time", flush=True)
    return points


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=4)
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
    figures = Figures()
    torture(args, figures)
    count = args.hops if args.hops is not None else 0 if args.only else 6 if args.quick else 200
    try:
        if args.quick:
            assert not figures.unreached, f"{figures.unreached} points that every attempt passes were not reached"
        if count:
            count = max(count, hops.FIRST + 2)  # something to compare
            print("torture: " + hops.there_and_back(count), flush=True)
            print("torture: " + hops.in_vain(max(count // 4, 6)), flush=True)
    except AssertionError as err:
        figures.failed.append(attempt.Case("hops", "", "", repr(err)))
        traceback.print_exc()
    if figures.failed:
        print("torture: FAILED: " + ", ".join(map(attempt.name_of, figures.failed)))
        return 1
    print("torture: verified: in each case one guest ran on, or a named outcome said why none did")
    return 0


if __name__ == "__main__":
    sys.exit(main())
