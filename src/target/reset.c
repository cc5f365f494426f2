/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <time.h>

#include "core/state.h"
#include "target/target.h"

#define RESET_LOOKS 50u /* at the state, until it is R */

int vfmig_target_await_running(struct vfmig_target *t, uint64_t reset_ns, long pause_ns,
                               struct vfmig_error *reterr)
{
    const struct timespec pause = {.tv_nsec = pause_ns};
    struct vfmig_error err = {.code = 0};
    enum vfmig_state state;
    int asked = 0;

    for (unsigned look = 0; look < RESET_LOOKS; look++) {
        int r = t->ops->get_state(t, &state, reterr);
        if (r < 0 || state == VFMIG_STATE_RUNNING)
            return r;
        if (look == 0)
            asked = t->ops->set_state(t, VFMIG_STATE_RUNNING, reset_ns, &err);
        else
            nanosleep(&pause, NULL);
    }
    if (asked == 0)
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_DEVICE, state,
                               "%s was reset and says that it is in %s", t->info.name,
                               vfmig_state_name(state));
    if (reterr)
        *reterr = err;
    return asked;
}
