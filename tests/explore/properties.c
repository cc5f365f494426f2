/* SPDX-License-Identifier: BSD-3-Clause */
/* What must hold, from the devices', the guest's and a user's side; nothing here looks at the
 * tables that the machines are made of. */
#include <stdio.h>
#include <string.h>

#include "core/state.h"
#include "world.h"

static const char barrier[] = "barrier: no device goes past a barrier early";
static const char mmio[] = "mmio: no MMIO to a device that forbids it";
static const char dma[] = "dma: a device that must be quiet starts no DMA and has none under way";
static const char tracker[] = "tracker: the tracker goes off only after the last snapshot";
static const char lost[] = "memory: all that was written to memory is sent";
static const char early_load[] = "load: a device is loaded when all of its data is there";
static const char one[] = "one: without faults exactly one side runs in the end";
static const char two[] = "two: never two running";
static const char granted[] = "record: whoever runs has the guest on record";
static const char named[] = "outcome: every failure ends in a named outcome";

static const char *only;

bool is_property(const char *broken, const char *name)
{
    return broken && !strncmp(broken, name, strlen(name)) && broken[strlen(name)] == ':';
}

void look_for(const char *property)
{
    only = property;
}

void broke(struct world *w, const char *property, const char *detail)
{
    if (w->broken || (only && !is_property(property, only)))
        return;
    w->broken = property;
    snprintf(w->detail, sizeof(w->detail), "%s", detail);
}

/* May it still write to memory, or to another device? */
static bool may_write(const struct side *s, uint32_t i)
{
    return !dev_is_lost(s, i) && !vfmig_dev_is_quiet(&s->dev[i].m) &&
           !(s->dev[i].idle && !s->vcpus);
}

/* A device that failed or is being reset answers with ones: that is its error, not the order's. */
static bool forbids_mmio(const struct side *s, uint32_t i)
{
    const struct device *d = &s->dev[i];
    bool resets = d->wait == WAIT_CALL && d->call == VFMIG_DEV_CALL_RESET;

    return !dev_is_lost(s, i) && !d->m.failed && !resets && !vfmig_dev_mmio_allowed(&d->m);
}

static bool grace(const struct side *s)
{
    for (uint32_t i = 0; i < s->flow.device_count; i++)
        if (dev_has_ndma(s, i) && may_write(s, i))
            return false;
    return true;
}

/* C19: a step begins when every device of the one before is where it should be. A flow that turns
 * back waits in its first row instead. */
void check_row(struct world *w, unsigned side, uint32_t row)
{
    const struct side *s = &w->side[side];

    if (row == VFMIG_ROW_U0 || row == VFMIG_ROW_D0)
        return;
    for (uint32_t i = 0; i < s->flow.device_count; i++)
        if (!dev_is_lost(s, i) && (s->dev[i].wait || s->dev[i].answered))
            broke(w, barrier, vfmig_row_name(row));
}

/* C11, C36: without R only when nobody can reach it any more. */
void check_go(struct world *w, unsigned side, uint32_t device)
{
    const struct side *s = &w->side[side];
    uint32_t bits = 0;

    if (side == DST || s->flow.want[device] == VFMIG_WANT_RESET)
        return;
    vfmig_state_to_bits(s->flow.want[device], &bits);
    if (!(bits & VFMIG_V1_RUNNING) && !s->fell && (s->vcpus || !grace(s)))
        broke(w, barrier, "a device is stopped that the guest or a peer may reach");
}

void check_call(struct world *w, unsigned side, uint32_t device, enum vfmig_dev_call call)
{
    const struct side *s = &w->side[side];

    if (call == VFMIG_DEV_CALL_LOAD && !s->fell && !s->dev[device].complete)
        broke(w, early_load, "load");
}

static void check_source_work(struct world *w, uint32_t work)
{
    const struct side *s = &w->side[SRC];
    bool stopped = true, answered = true;

    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        stopped &= !may_write(s, i);
        answered &= s->dev[i].fault == FAULT_NONE;
    }
    if (work == VFMIG_WORK_VCPU_STOP && (!grace(s) || !answered)) /* C10, C61, C62 */
        broke(w, barrier,
              answered ? "vCPUs stop before devices are quiet"
                       : "vCPUs stop before they have answered a page request");
    if (work == VFMIG_WORK_SNAPSHOT && (!grace(s) || s->vcpus))
        broke(w, barrier, "a snapshot of a log that grows");
    if ((work == VFMIG_WORK_FINAL_LOG || work == VFMIG_WORK_VM_STATE) && (!stopped || s->vcpus))
        broke(w, barrier, vfmig_work_name(work));
    if (work == VFMIG_WORK_TRACK_STOP && !s->fell && (!stopped || !w->snapshot || !w->final_log))
        broke(w, tracker, "it is told to stop"); /* C29 */
}

/* Before vCPUs run, all devices answer them. */
void check_work(struct world *w, unsigned side, uint32_t work)
{
    const struct side *s = &w->side[side];

    if (side == SRC)
        check_source_work(w, work);
    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        enum vfmig_state state = vfmig_dev_state(&s->dev[i].m);
        if (dev_is_lost(s, i))
            continue;
        if (work == VFMIG_WORK_VCPU_START && state != VFMIG_STATE_RUNNING &&
            (side == DST || state != VFMIG_STATE_PRE_COPY))
            broke(w, barrier, "vCPUs start before their devices");
        if (work == VFMIG_WORK_VCPU_START && side == DST && !s->dev[i].loaded)
            broke(w, early_load, "vCPUs start and a device has not taken its data over");
        if (work == VFMIG_WORK_EXTERNAL && state != VFMIG_STATE_STOP)
            broke(w, barrier, "external state goes in before devices are halted");
    }
    if (work != VFMIG_WORK_VCPU_START)
        return;
    if (side == SRC && w->granted && w->side[DST].disk != VFMIG_HO_RECORD_REFUSED)
        broke(w, granted, "the source takes back what it has granted");
}

/* The ladder: nobody is given up who was not reset in vain, or who answers. */
void check_lost(struct world *w, unsigned side, uint32_t device, bool answered)
{
    const struct device *d = &w->side[side].dev[device];

    if (answered ? !d->reset_failed : !d->wait)
        broke(w, named, "a device is given up that was not reset, or that has answered");
}

void check_sent(struct world *w)
{
    world_apply_writes(w);
    if (!w->vm_state)
        broke(w, lost, "the vCPUs' state is not sent");
    if (w->dirty || w->known || w->sending)
        broke(w, lost,
              w->dirty ? "a page that was written is not in any log that was read"
                       : "a page of the last log is not sent");
}

/* What each device may rely on of itself (C34, C36, C60). */
static void check_device(struct world *w, const struct device *d)
{
    uint32_t bits = d->m.bits;
    bool stopped = !(bits & VFMIG_V1_RUNNING) && d->wait == WAIT_NOTHING;

    if (vfmig_dev_is_quiet(&d->m) && d->fault == FAULT_OPEN)
        broke(w, dma, "it says that it is quiet and waits for a page");
    if (vfmig_dev_dma_allowed(&d->m) && vfmig_bits_quiet(bits))
        broke(w, dma, "it may start DMA");
    if ((stopped || d->call == VFMIG_DEV_CALL_STOP) && vfmig_dev_mmio_allowed(&d->m))
        broke(w, mmio, "a device without R lets MMIO through");
}

static void check_reach(struct world *w, unsigned side)
{
    const struct side *s = &w->side[side];

    for (uint32_t j = 0; j < s->flow.device_count; j++) {
        if (!forbids_mmio(s, j))
            continue;
        if (s->vcpus)
            broke(w, mmio, "vCPUs run, and a device does not answer"); /* C36 */
        for (uint32_t i = 0; i < s->flow.device_count; i++)
            if (i != j && dev_has_ndma(s, i) && dev_has_ndma(s, j) && may_write(s, i))
                broke(w, mmio, "a peer may write to a device that does not answer"); /* C55 */
    }
}

void check_state(struct world *w)
{
    const struct side *s = &w->side[SRC], *d = &w->side[DST];
    bool forward = s->flow_active && !s->fell && s->flow.row >= VFMIG_ROW_S1_ALL;
    bool writes = s->vcpus;

    for (uint32_t i = 0; i < s->flow.device_count; i++)
        writes |= may_write(s, i);
    if (forward && writes && !w->tracking)
        broke(w, tracker, "the guest or a device writes and nobody logs it");
    if (s->vcpus && d->vcpus)
        broke(w, two, "vCPUs run on both sides");
    if (s->vcpus && !s->returned && !vfmig_handover_may_run(&s->h))
        broke(w, granted, "the source runs and its handover forbids it");
    if (d->vcpus && (!vfmig_handover_may_run(&d->h) || d->disk != VFMIG_HO_RECORD_RUNNING))
        broke(w, granted, "the destination runs without RUNNING on record");
    if (d->vcpus && !w->granted && !w->fenced)
        broke(w, granted, "the destination runs without a grant");
    if (d->vcpus && w->stale && !w->fenced)
        broke(w, granted, "the destination runs what the source has left behind");
    if (s->returned && s->h.memory)
        broke(w, granted, "memory that did not survive is counted on");
    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        check_device(w, &s->dev[i]);
        check_device(w, &d->dev[i]);
    }
    check_reach(w, SRC);
    check_reach(w, DST);
}

/* --- ends --- */

/* The guest stands still, and the runbook says what to do. */
static bool kept_under_a_name(const struct side *s, const struct side *peer)
{
    switch (s->h.outcome) {
    case VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION: /* a source that still has it takes it back */
        return s->h.memory && (s->h.state != VFMIG_HO_DST_GRANTED || !peer->h.memory);
    case VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION:
        return s->h.memory && s->h.state == VFMIG_HO_DST_READY;
    case VFMIG_HO_OUTCOME_DIED_AT_DESTINATION:
        return s->h.state == VFMIG_HO_SRC_GRANTED && s->h.memory;
    default:
        return false;
    }
}

bool world_ended(const struct world *w)
{
    const struct side *s = &w->side[SRC], *d = &w->side[DST];
    bool source = s->h.state == VFMIG_HO_SRC_RESUMED || s->h.state == VFMIG_HO_SRC_RELEASED ||
                  (s->h.state == VFMIG_HO_SRC_IDLE && s->returned);
    bool destination = d->h.state == VFMIG_HO_DST_LISTEN || d->h.state == VFMIG_HO_DST_REFUSED ||
                       d->h.state == VFMIG_HO_DST_RUNNING;

    if (!s->alive || !d->alive || s->h.pending || d->h.pending)
        return false;
    if (kept_under_a_name(s, d) || kept_under_a_name(d, s))
        return true;
    return source && destination && !s->flow_active && !d->flow_active;
}

/* Everything is as it was before: C6, and the runbook's "the guest has noticed nothing". */
static bool works_again(const struct side *s)
{
    for (uint32_t i = 0; i < s->flow.device_count; i++)
        if (!dev_is_lost(s, i) && (vfmig_dev_state(&s->dev[i].m) != VFMIG_STATE_RUNNING ||
                                   !vfmig_dev_dma_allowed(&s->dev[i].m)))
            return false;
    return s->vcpus;
}

static bool stopped_for_good(const struct side *s)
{
    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        enum vfmig_state state = vfmig_dev_state(&s->dev[i].m);
        if (!dev_is_lost(s, i) && state != VFMIG_STATE_STOP && state != VFMIG_STATE_ERROR &&
            !s->dev[i].slow)
            return false;
    }
    return true;
}

static void check_source_end(struct world *w)
{
    const struct side *s = &w->side[SRC];

    if (s->h.state == VFMIG_HO_SRC_RELEASED && !s->returned && !s->flow_active &&
        !stopped_for_good(s))
        broke(w, named, "the source has given the guest away and keeps its devices");
    switch (s->h.outcome) {
    case VFMIG_HO_OUTCOME_RUNS_AT_SOURCE:
        if (!works_again(s))
            broke(w, named, "it runs at the source by name, and not all of it does");
        break;
    case VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION:
    case VFMIG_HO_OUTCOME_DIED_AT_DESTINATION:
    case VFMIG_HO_OUTCOME_DIED_AT_SOURCE:
    case VFMIG_HO_OUTCOME_UNDECIDED:
    case VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION:
        if (s->vcpus && !s->returned)
            broke(w, named, "it runs at the source under another name");
        break;
    case VFMIG_HO_OUTCOME_NONE: /* no journal: it died before it had offered anything */
        if (s->disk != VFMIG_HO_RECORD_NONE && s->h.state != VFMIG_HO_SRC_GRANTED &&
            s->h.state != VFMIG_HO_SRC_STOPPED && s->h.state != VFMIG_HO_SRC_OFFERED)
            broke(w, named, "the source has no name for it");
        break;
    default:
        broke(w, named, "the source has a name that is not its own");
    }
}

static void check_destination_end(struct world *w)
{
    const struct side *d = &w->side[DST];
    uint8_t state = d->h.state, outcome = d->h.outcome;

    if (state == VFMIG_HO_DST_REFUSED && outcome != VFMIG_HO_OUTCOME_REFUSED)
        broke(w, named, "the destination has refused without a name for it");
    if (state == VFMIG_HO_DST_RUNNING && d->vcpus &&
        (outcome != VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION || !works_again(d)))
        broke(w, named, "it runs at the destination, not all of it or not by name");
    if (state == VFMIG_HO_DST_RUNNING && !d->vcpus &&
        outcome != VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION &&
        outcome != VFMIG_HO_OUTCOME_DIED_AT_DESTINATION)
        broke(w, named, "it stands at the destination without a name");
}

void check_end(struct world *w, const struct scope *scope)
{
    const struct side *s = &w->side[SRC], *d = &w->side[DST];

    if (w->faults == scope->faults && w->messages == scope->messages &&
        (s->vcpus || !d->vcpus || s->h.outcome != VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION ||
         d->h.outcome != VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION))
        broke(w, one, "nothing went wrong, and the guest is not at the destination");
    if (w->tracking)
        broke(w, named, "the tracker is still on");
    check_source_end(w);
    check_destination_end(w);
}
