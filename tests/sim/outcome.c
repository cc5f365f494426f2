/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of a run: exactly one side runs the guest, with all that it had, or what stands is a
 * named outcome that both journals tell (docs/handover.md), and is true. */
#include "sim.h"

#include <string.h>

static bool named(uint8_t outcome, const uint8_t *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (list[i] == outcome)
            return true;
    return false;
}

static void check_runs(unsigned side, const struct vfmig_resolve_view *view)
{
    struct side *s = &sim.side[side];
    uint8_t must =
        side == SRC ? VFMIG_HO_OUTCOME_RUNS_AT_SOURCE : VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION;

    if (sim.owner != side)
        broke("two", "side %u runs the guest of the other", side);
    /* An attempt whose every record failed has left none: nothing was ever sent, then. */
    bool none = side == SRC && (view->own.last.record == VFMIG_HO_RECORD_OFFERED ||
                                view->own.last.record == VFMIG_HO_RECORD_NONE);
    if (view->outcome != must && !none)
        broke("outcome", "the guest runs at side %u, and its journal says %s: %s", side,
              vfmig_ho_outcome_name(view->outcome), view->now);
    oracle_compares(side);
    for (unsigned d = 0; d < DEVICES && !sim.broken; d++) {
        if (sim.excused[d])
            continue;
        if (s->vm.issued[d] != s->vm.completed[d] + s->vm.pending[d])
            broke(
                "lost",
                "device %u answered %u of %u commands at side %u: %u taken, %u begun, %u finished, "
                "%u put off",
                d, s->vm.completed[d] + s->vm.pending[d], s->vm.issued[d], side, s->dev[d].is.taken,
                s->dev[d].is.begun, s->dev[d].is.finished, s->dev[d].is.kept_count);
    }
    for (unsigned d = 0; d < DEVICES && !sim.broken; d++)
        if (vfmig_dev_state(&s->dev[d].m) != VFMIG_STATE_RUNNING && !sim.excused[d])
            broke("outcome", "device %u is not back in RUNNING at side %u, and nobody said so", d,
                  side);
}

/* Nobody runs: a process that had it has died, or the destination could not start it. */
static void check_stands(const struct vfmig_resolve_view *source,
                         const struct vfmig_resolve_view *destination)
{
    static const uint8_t died_there[] = {VFMIG_HO_OUTCOME_DIED_AT_DESTINATION};
    static const uint8_t died_here[] = {VFMIG_HO_OUTCOME_DIED_AT_SOURCE,
                                        VFMIG_HO_OUTCOME_UNDECIDED};
    const struct side *s = &sim.side[SRC], *d = &sim.side[DST];

    sim.outcome = source->outcome;
    bool theirs = d->h.state == VFMIG_HO_DST_RUNNING || d->h.state == VFMIG_HO_DST_FENCED ||
                  (d->h.state == VFMIG_HO_DST_GRANTED && sim.crashed & (1u << SRC));
    if (theirs && d->h.memory && d->handover_active) {
        sim.outcome = VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION;
        if (d->h.outcome != VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION)
            broke("outcome", "the guest stands at the destination as %s",
                  vfmig_ho_outcome_name(d->h.outcome));
        return;
    }
    if (sim.moved) {
        if (!(sim.crashed & (1u << DST)))
            broke("lost", "the guest ran at the destination, and is gone");
        else if (!named(source->outcome, died_there, 1) &&
                 !named(destination->outcome, died_there, 1))
            broke("outcome", "the guest died at the destination, the journals say %s and %s",
                  vfmig_ho_outcome_name(source->outcome),
                  vfmig_ho_outcome_name(destination->outcome));
        sim.outcome = VFMIG_HO_OUTCOME_DIED_AT_DESTINATION;
        return;
    }
    if (!(sim.crashed & (1u << SRC))) {
        /* RUNNING was on record, and it died before anything ran. */
        if (s->h.state == VFMIG_HO_SRC_RELEASED && sim.crashed & (1u << DST) &&
            named(destination->outcome, died_there, 1)) {
            sim.outcome = VFMIG_HO_OUTCOME_DIED_AT_DESTINATION;
            return;
        }
        broke("lost", "the guest runs nowhere: source %s (%s), destination %s (%s)",
              vfmig_ho_state_name(s->h.state), vfmig_ho_outcome_name(source->outcome),
              vfmig_ho_state_name(d->h.state), vfmig_ho_outcome_name(destination->outcome));
        return;
    }
    if (d->h.memory && d->handover_active)
        broke("lost", "a complete guest stands at the destination in %s",
              vfmig_ho_state_name(d->h.state));
    bool there = named(destination->outcome, died_there, 1);
    if (there)
        sim.outcome = VFMIG_HO_OUTCOME_DIED_AT_DESTINATION;
    else if (source->own.last.record == VFMIG_HO_RECORD_NONE)
        sim.outcome = VFMIG_HO_OUTCOME_DIED_AT_SOURCE;
    else if (!named(source->outcome, died_here, 2))
        broke("outcome", "the guest died at the source, and its journal says %s: %s",
              vfmig_ho_outcome_name(source->outcome), source->now);
}

void check_end(void)
{
    struct vfmig_journal_summary source, destination;
    struct vfmig_resolve_view views[2];
    struct side *s = &sim.side[SRC], *d = &sim.side[DST];

    disk_summary(&s->disk, s->alive, &source);
    disk_summary(&d->disk, d->alive, &destination);
    if (source.damage || destination.damage) {
        broke("journal", "a journal is damaged: %s",
              source.damage ? source.error.text : destination.error.text);
        return;
    }
    vfmig_resolve_judge(&source, &destination, &views[SRC]);
    vfmig_resolve_judge(&destination, &source, &views[DST]);
    if (s->vcpus && d->vcpus)
        broke("two", "both run");
    if (s->vcpus || d->vcpus) {
        unsigned side = s->vcpus ? SRC : DST;
        check_runs(side, &views[side]);
        sim.outcome =
            side == SRC ? VFMIG_HO_OUTCOME_RUNS_AT_SOURCE : VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION;
    } else {
        check_stands(&views[SRC], &views[DST]);
    }
    if (s->vcpus && s->tracking)
        broke("tracker", "the tracker is still on");
    for (unsigned i = 0; i < 2; i++)
        if (sim.side[i].alive && sim.side[i].flow_active &&
            sim.outcome != VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION)
            broke("dead-end", "side %u hangs in %s", i, vfmig_row_name(sim.side[i].flow.row));
}
