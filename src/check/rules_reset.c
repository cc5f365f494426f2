/* SPDX-License-Identifier: BSD-3-Clause */
/* Reset: from every state, in the middle of things, out of ERROR. */
#include "check/rule.h"
#include "check/rules.h"

void check_reset_from_every_state(struct check *c)
{
    for (unsigned state = VFMIG_STATE_STOP; state < VFMIG_STATE_COUNT && !check_over(c); state++) {
        if (!check_has(c, (enum vfmig_state)state))
            continue;
        check_doing(c, "reset in %s", check_state_name(state));
        if (!check_reach(c, (enum vfmig_state)state))
            return;
        if (check_ok(c, check_reset(c), "RESET"))
            check_is(c, VFMIG_STATE_RUNNING, "after the reset");
    }
}
