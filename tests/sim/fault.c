/* SPDX-License-Identifier: BSD-3-Clause */
/* Faults: the plan of a seed, where each begins, what it does. */
#include "sim.h"

#include <string.h>

enum target { LINK, SIDE, DEVICE };

static const struct {
    const char *text;
    uint8_t target, deadly;
} kinds[FAULT_COUNT] = {
#define FAULT(name, text, target, deadly) [FAULT_##name] = {text, target, deadly},
#include "faults.def"
};

static const struct {
    const char *name;
    uint8_t side, step;
} steps[STEP_COUNT] = {
#define STEP(name, side, step) [STEP_##name] = {#name, side, VFMIG_STEP_##step},
#include "steps.def"
};

const char *fault_name(unsigned kind)
{
    return kinds[kind].text;
}

const char *step_name(unsigned step)
{
    return steps[step].name;
}

unsigned fault_side(const struct fault *fault)
{
    return steps[fault->step].side;
}

/* --- the plan --- */

/* Most runs come as far as they are not stopped, so an attempt that turns back is asked for by a
 * fault before: what is planned for its way back needs one. */
static bool on_the_way_back(unsigned step)
{
    return step == STEP_UNWIND || step == STEP_DROP;
}

static bool disk_fails(unsigned kind)
{
    return kind == FAULT_FULL || kind == FAULT_SYNC;
}

/* What cannot come of it: a source without its guest is asked for no pages. */
bool fault_possible(unsigned kind, unsigned step)
{
    return step != STEP_S6 || (kind != FAULT_ANSWER_LATE && kind != FAULT_ANSWER_MISSING &&
                               kind != FAULT_ANSWER_ORDER);
}

void faults_plan(unsigned keep)
{
    struct chance *c = &sim.plan;
    unsigned count = 3 + (unsigned)chance_below(c, 3);
    unsigned last = 0, resync = 0;
    bool back = false, again = chance_below(c, 2);

    for (unsigned i = 0; i < count; i++) {
        struct fault *f = &sim.faults[i];
        do {
            f->kind = (uint8_t)chance_below(c, FAULT_COUNT);
        } while (i < 2 && kinds[f->kind].deadly); /* the first two leave the attempt alive */
        do {
            f->step = (uint8_t)chance_below(c, STEP_COUNT);
        } while (i < 3 && on_the_way_back(f->step)); /* three are met in any case */
        f->wait = (uint8_t)chance_below(c, chance_below(c, 2) ? 3 : 12);
        f->arg = (uint8_t)chance_below(c, 256);
        f->attempt = again && i >= 3 ? (uint8_t)chance_below(c, 3) : 0;
        if (f->step == STEP_S6 || f->step == STEP_R4)
            f->wait %= 3; /* there is little to be done any more */
        back |= on_the_way_back(f->step);
        last |=
            disk_fails(f->kind) && (f->step == STEP_S6 || f->step == STEP_R4) ? 1u << f->step : 0;
        resync |= f->kind == FAULT_SYNC ? 1u << steps[f->step].side : 0;
    }
    /* After its last record a side writes again when it comes back; and a sync that failed shows in
     * a crash. */
    if (last || (resync && chance_below(c, 2)))
        sim.faults[count++] =
            (struct fault){.kind = FAULT_CRASH,
                           .step = (uint8_t)(last & (1u << STEP_S6) ? STEP_S6
                                             : last                 ? STEP_R4
                                             : resync & (1u << SRC) ? STEP_HANDOVER
                                                                    : STEP_R3),
                           .wait = (uint8_t)chance_below(c, last ? 2 : 6),
                           .attempt = again && !last ? 2 : 0};
    /* The last one makes it turn back. */
    static const uint8_t turning[] = {FAULT_CANCEL, FAULT_STAYS, FAULT_ERROR, FAULT_HANG,
                                      FAULT_MEMORY, FAULT_RESET, FAULT_FLIP};
    if (back) {
        struct fault *f = &sim.faults[count++];
        f->kind = turning[chance_below(c, sizeof(turning))];
        f->step = (uint8_t)(STEP_S1 + chance_below(c, 6));
        f->wait = (uint8_t)chance_below(c, 12);
        f->arg = (uint8_t)chance_below(c, 256);
    }
    sim.fault_count = count;
    for (unsigned i = 0; i < count; i++)
        sim.faults[i].off = !(keep & (1u << i));
    sim.migrate_again = again;
    for (unsigned i = 0; i < count; i++)
        say("plan %u: %s in %s, after %u actions, from attempt %u on", i,
            kinds[sim.faults[i].kind].text, steps[sim.faults[i].step].name, sim.faults[i].wait,
            sim.faults[i].attempt);
}

/* --- where it begins --- */

enum step_of step_now(unsigned side)
{
    const struct side *s = &sim.side[side];
    enum vfmig_step now = vfmig_flow_current(&s->flow);

    if (!s->alive)
        return STEP_COUNT;
    for (unsigned i = 0; i < STEP_COUNT; i++)
        if (steps[i].side == side && steps[i].step == now)
            return (enum step_of)i;
    return STEP_COUNT;
}

static void foreign_message(unsigned side, enum vfmig_ho_msg_kind kind, unsigned memory)
{
    struct side *s = &sim.side[side];
    struct copy *copy;

    if (sim.copy_count == 16 || !s->h.epoch)
        return;
    copy = &sim.copies[sim.copy_count];
    *copy = (struct copy){.side = (uint8_t)side};
    copy->msg = (struct vfmig_ho_msg){
        .epoch = s->h.epoch,
        .kind = (uint8_t)kind,
        .record = side == SRC ? VFMIG_HO_RECORD_REFUSED : VFMIG_HO_RECORD_GRANT_SENT,
        .memory = (uint8_t)memory,
    };
    memcpy(copy->msg.id, "another-migrat-n", sizeof(copy->msg.id));
    event_in(some(0, 30 * MS), EVENT_COPY, side, sim.copy_count++, 0, 0);
}

/* Somebody else's migration talks to both sides at once, with all that can move one. */
static void second_migration(unsigned side)
{
    static const uint8_t to_destination[] = {VFMIG_HO_MSG_OFFER, VFMIG_HO_MSG_SEAL,
                                             VFMIG_HO_MSG_GRANT, VFMIG_HO_MSG_ABORT};
    static const uint8_t to_source[] = {VFMIG_HO_MSG_READY, VFMIG_HO_MSG_REFUSED};

    for (unsigned i = 0; i < sizeof(to_destination); i++)
        foreign_message(DST, to_destination[i], 1);
    for (unsigned i = 0; i < sizeof(to_source); i++)
        foreign_message(SRC, to_source[i], 1);
    fault_struck(FAULT_SECOND, side);
}

static void begin(struct fault *f, unsigned side)
{
    struct side *s = &sim.side[side];
    struct device *d = &s->dev[f->arg % DEVICES];

    f->begun = 1;
    f->began_at = step_now(side);
    say("fault: %s, side %u in %s", kinds[f->kind].text, side,
        f->began_at < STEP_COUNT ? steps[f->began_at].name : "no step");
    switch ((enum fault_kind)f->kind) {
    case FAULT_PARTITION:
        fault_struck(FAULT_PARTITION, side);
        link_partition(some(20 * MS, 400 * MS));
        break;
    case FAULT_SHORT_IO:
        s->disk.torn_io = 1;
        sim.next_send[f->kind] |= (uint8_t)(1u << side);
        break;
    case FAULT_DROP:
    case FAULT_DELAY:
    case FAULT_DUPLICATE:
    case FAULT_REPEAT:
    case FAULT_FLIP:
    case FAULT_RESET:
        sim.next_send[f->kind] |= (uint8_t)(1u << side);
        break;
    case FAULT_SLOW:
        d->slow = 1;
        break;
    case FAULT_HANG:
        d->hangs = 1;
        break;
    case FAULT_STAYS:
        d->fails_old = 1;
        break;
    case FAULT_ERROR:
        d->fails_error = 1;
        break;
    case FAULT_ANSWER_LATE:
        s->answers_late = 2;
        break;
    case FAULT_ANSWER_MISSING:
        s->answers_missing = 1;
        break;
    case FAULT_ANSWER_ORDER:
        s->answers_reordered = 1;
        break;
    case FAULT_MEMORY:
        s->out_of_memory = 1;
        break;
    case FAULT_FULL:
        s->disk.full = 1;
        break;
    case FAULT_SYNC:
        s->disk.sync_fails = 1 + f->arg % 3;
        break;
    case FAULT_CANCEL:
        event_in(0, EVENT_CANCEL, side, 0, 0, 0);
        break;
    case FAULT_SECOND:
        second_migration(side);
        break;
    case FAULT_CRASH:
        fault_struck(FAULT_CRASH, side);
        side_crashes(side);
        break;
    default:
        break;
    }
}

/* A deadly one is not the first: others that are planned begin where they are now. */
static void others_first(void)
{
    unsigned begun = 0;

    for (unsigned i = 0; i < sim.fault_count; i++)
        begun += sim.faults[i].begun;
    for (unsigned i = 0; i < sim.fault_count && begun < 2; i++) {
        struct fault *f = &sim.faults[i];
        unsigned side = fault_side(f);
        if (f->begun || f->off || kinds[f->kind].deadly || step_now(side) == STEP_COUNT)
            continue;
        begin(f, side);
        begun++;
    }
}

void fault_point(unsigned side)
{
    enum step_of now = STEP_COUNT;
    bool asked = false;

    for (unsigned i = 0; i < sim.fault_count; i++) {
        struct fault *f = &sim.faults[i];
        if (f->begun || f->off || steps[f->step].side != side || sim.attempts < f->attempt)
            continue;
        if (!asked)
            now = step_now(side);
        asked = true;
        if (now == STEP_COUNT || now < f->step)
            continue;
        /* A step that is over is not waited for. */
        if (f->wait && now == f->step) {
            f->wait--;
            continue;
        }
        if (kinds[f->kind].deadly)
            others_first();
        begin(f, side);
    }
}

/* All is calm before there were three: what is left begins now. */
bool faults_rest(void)
{
    unsigned begun = 0, more = 0;

    for (unsigned i = 0; i < sim.fault_count; i++)
        begun += sim.faults[i].begun;
    for (unsigned i = 0; i < sim.fault_count && begun + more < 3; i++) {
        struct fault *f = &sim.faults[i];
        if (f->begun || f->off || f->kind == FAULT_CRASH)
            continue;
        begin(f, fault_side(f));
        more++;
    }
    return more;
}

void fault_struck(enum fault_kind kind, unsigned side)
{
    for (unsigned i = 0; i < sim.fault_count; i++) {
        struct fault *f = &sim.faults[i];
        if (f->kind != kind || fault_side(f) != side || !f->begun || f->struck)
            continue;
        f->struck = 1;
        sim.struck++;
        say("fault strikes: %s", kinds[kind].text);
        return;
    }
}

/* From here on nothing goes wrong any more, and what hung answers. */
void faults_heal(void)
{
    say("faults end");
    for (unsigned i = 0; i < sim.fault_count; i++)
        sim.faults[i].off |= !sim.faults[i].begun;
    memset(sim.next_send, 0, sizeof(sim.next_send));
    sim.partition_until = 0;
    for (unsigned i = 0; i < 2; i++) {
        struct side *s = &sim.side[i];
        s->disk.full = s->disk.sync_fails = s->disk.torn_io = 0;
        s->answers_late = s->answers_missing = s->answers_reordered = s->out_of_memory = 0;
        requests_heal(i);
        for (unsigned d = 0; d < DEVICES; d++)
            device_heals(i, d);
    }
}
