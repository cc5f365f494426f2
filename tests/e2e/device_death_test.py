# SPDX-License-Identifier: BSD-3-Clause
"""The process of one of two devices is killed with -9 as its side enters a step of a migration: nothing
aborts, the attempt unwinds by the ladder, and the guest lives on at the source with the other device. With
RUNNING on record it stands still at the destination, which vfmig status says, until QMP's cont starts it.
`make torture` does it at all of them."""
import concurrent.futures

import pytest

from attempt import Case, play

BACK, MOVED, STANDS = "runs-at-source", "runs-at-destination", "paused-at-destination"
# Rows of tables/flow.def, and where the guest may be in the end. More than one where the other side may be
# quicker or not.
SOURCE = {
    "S1_LOG": (BACK,), "S2_LOOP": (BACK,), "S3_ENTER": (BACK,), "S4_STOP": (BACK,), "S5_ENTER": (BACK,),
    "S5_LAST": (BACK, MOVED), "HAND_OVER": (MOVED,),
}
DESTINATION = {"R0_RESET": (BACK,), "R2_DATA": (BACK,), "R2_LOAD": (BACK,), "R3_ENTER": (BACK,), "R4_RUN": (STANDS,)}
CASES = [Case("moved", side, f"enter-{row}#1", "kill-device")
         for side, rows in (("source", SOURCE), ("destination", DESTINATION)) for row in rows]


@pytest.fixture(scope="module")
def played(request):
    """All that were asked for, two at a time."""
    cases = [item.callspec.params["case"] for item in request.session.items]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {case: pool.submit(play, case) for case in cases}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.who}-{case.point}")
def test_a_device_dies(played, case):
    reached, outcome, _ = played[case].result()
    row = case.point[len("enter-"):-len("#1")]
    assert reached
    assert outcome in (SOURCE if case.who == "source" else DESTINATION)[row]
