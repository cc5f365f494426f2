/* SPDX-License-Identifier: BSD-3-Clause */
/* Standing still: the process, and a guest. */
#include "base/sabotage.h"
#include "engine/destination.h"

/* --- the process --- */

/* While there are limits, they are looked at this often. Whoever comes much later than that was stopped (SIGSTOP, a
 * paused host), or had no time on a CPU: of what has passed so much counts, and the rest is nobody's. So no excuse is
 * longer than what was stood still, and a limit is reached after as many looks as it is long, however slow they are. */
#define LOOK_NS 250000000u

uint64_t engine_look_at(const struct engine *e)
{
    return e->flow_active && e->looked_ns ? e->looked_ns + LOOK_NS : 0;
}

/* Its devices may need all of their time, and are asked a second time if that fails. */
uint64_t engine_patience(const struct engine *e)
{
    return 2 * e->options.device_timeout_ns + e->options.reconnect_ns;
}

static void excuse(struct engine *e, uint64_t stood_ns, uint64_t now_ns)
{
    /* Who has answered meanwhile is not late, and the answer has yet to be taken. Once: else who is always slow
     * would wait for ever. */
    uint64_t least_ns = e->spared ? 0 : LOOK_NS;

    vfmig_flow_excuse(&e->flow, stood_ns, now_ns, least_ns);
    if (e->answer_at_ns) {
        uint64_t most_ns = now_ns + engine_patience(e);
        e->answer_at_ns += stood_ns;
        if (e->answer_at_ns < now_ns + least_ns)
            e->answer_at_ns = now_ns + least_ns;
        if (e->answer_at_ns > most_ns)
            e->answer_at_ns = most_ns;
    }
    e->stood_ns += stood_ns;
    e->spared = true;
}

void engine_look(struct engine *e, uint64_t now_ns)
{
    uint64_t passed_ns = e->looked_ns ? now_ns - e->looked_ns : 0;

    e->looked_ns = e->flow_active ? now_ns : 0;
    if (passed_ns <= 2 * LOOK_NS)
        e->spared = false;
    else if (!vfmig_sabotage("no-excuse"))
        excuse(e, passed_ns - LOOK_NS, now_ns);
}

/* --- a guest --- */

/* One that is here for good, by RUNNING on record, and could not be started: nothing brings it back to the
 * source any more, and an operator who reads the journal must not take it for one that runs. */
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
