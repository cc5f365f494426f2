/* SPDX-License-Identifier: BSD-3-Clause */
/* A guest that is here for good, by RUNNING on record, and could not be started: nothing brings it back to the
 * source any more, and an operator who reads the journal must not take it for one that runs. */
#include "base/sabotage.h"
#include "engine/destination.h"

void destination_standing(struct engine *e, bool stands)
{
    struct vfmig_error error = {0};

    if (!e->journal || vfmig_journal_last(e->journal)->stands == stands ||
        (stands && vfmig_sabotage("standing-untold")))
        return;
    int ret = vfmig_journal_note_standing(e->journal, stands, stands ? e->failure.text : NULL, &error);
    engine_trace(e, JOURNAL, VFMIG_S(vfmig_ho_record_name(VFMIG_HO_RECORD_RUNNING)), VFMIG_I(ret), VFMIG_U(0));
    if (ret)
        engine_note(e, &error);
}

void vfmig_destination_started(struct vfmig_destination *destination)
{
    engine_post(&destination->e, &(struct engine_event){.kind = ENGINE_EVENT_STARTED});
}
