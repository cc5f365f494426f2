/* SPDX-License-Identifier: BSD-3-Clause */
/* How a save ends. The guest goes on only when the file is not complete, or is void by its own log. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "engine/source.h"

/* What comes after everything was written: from here on only the file's end decides. */
bool source_file_abort(struct engine *e)
{
    if (!e->file || !e->file_ending || e->handover.state != VFMIG_HO_SRC_STOPPED)
        return false;
    atomic_store(&e->file_give_up, true);
    return true;
}

/* SAVED could not be put on record, or COMPLETE may or may not be: nobody has the file yet, the lock
 * is ours. */
static bool discard(struct engine *e)
{
    struct vfmig_error error = {0};
    int ret = vfmig_sabotage("resume-saved") ? 0 : vfmig_save_discard(e->file, &error);

    engine_trace(e, DISCARD, VFMIG_I(ret));
    if (ret)
        engine_note(e, &error);
    return ret == 0;
}

void source_file_ended(struct engine *e, const struct vfmig_error *error)
{
    if (e->file_ending)
        pthread_join(e->file_thread, NULL);
    e->file_ending = false;
    if (e->handover.state != VFMIG_HO_SRC_STOPPED)
        return;
    if (error->code == -ECANCELED && !e->failure.code)
        e->cancelled = true;
    if (error->code)
        engine_note(e, error);
    if (error->code && (!vfmig_save_log(e->file)->complete.kind || discard(e))) {
        engine_handover(e, VFMIG_HO_EVENT_ABORT);
        return;
    }
    engine_handover(e, VFMIG_HO_EVENT_SAVED);
    if (e->handover.state == VFMIG_HO_SRC_SAVED && e->handover.record != VFMIG_HO_RECORD_SAVED &&
        discard(e))
        engine_handover(e, VFMIG_HO_EVENT_DISCARD);
    else if (e->handover.state == VFMIG_HO_SRC_SAVED &&
             e->handover.record != VFMIG_HO_RECORD_SAVED)
        source_file_saved(e); /* neither on record nor void: it stands still, and says why */
}

/* The machine says that the guest is in the file. */
void source_file_saved(struct engine *e)
{
    if (e->handover.record == VFMIG_HO_RECORD_SAVED)
        vfmig_save_release(e->file);
    engine_count_bytes(e);
    engine_downtime(e);
    engine_enter_step(e, VFMIG_STEP_END);
    engine_state(e, VFMIG_MIGRATE_SAVED);
}
