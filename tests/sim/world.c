/* SPDX-License-Identifier: BSD-3-Clause */
/* The queue of events, and a whole run. */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAST_NS (12000 * MS)
#define HEAL_NS (2500 * MS)

struct sim sim;
uint8_t memory_of[2][PAGES][VFMIG_PAGE_SIZE];
const uint8_t guest_id[VFMIG_HO_ID_BYTES] = "sixteen-byte-id";

void broke(const char *property, const char *format, ...)
{
    va_list args;

    if (sim.broken)
        return;
    sim.broken = property;
    va_start(args, format);
    vsnprintf(sim.detail, sizeof(sim.detail), format, args);
    va_end(args);
}

uint64_t some(uint64_t from, uint64_t to)
{
    return from + chance_below(&sim.chance, to - from + 1);
}

bool one_in(unsigned n)
{
    return chance_below(&sim.chance, n) == 0;
}

/* --- the heap: by time, then in the order of coming --- */

static bool earlier(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void push(struct event event)
{
    if (sim.heap_count == EVENTS_MAX) {
        broke("dead-end", "too many events are under way");
        return;
    }
    uint32_t i = sim.heap_count++;
    event.order = sim.order++;
    for (; i && earlier(&event, &sim.heap[(i - 1) / 2]); i = (i - 1) / 2)
        sim.heap[i] = sim.heap[(i - 1) / 2];
    sim.heap[i] = event;
}

static struct event pop(void)
{
    struct event first = sim.heap[0], last = sim.heap[--sim.heap_count];
    uint32_t i = 0;

    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= sim.heap_count)
            break;
        if (child + 1 < sim.heap_count && earlier(&sim.heap[child + 1], &sim.heap[child]))
            child++;
        if (!earlier(&sim.heap[child], &last))
            break;
        sim.heap[i] = sim.heap[child];
        i = child;
    }
    sim.heap[i] = last;
    return first;
}

void event_in(uint64_t delay, enum event_kind kind, unsigned side, unsigned a, unsigned b,
              uint64_t arg)
{
    push((struct event){.at = sim.now + delay,
                        .arg = arg,
                        .life = sim.side[side].life,
                        .kind = (uint8_t)kind,
                        .side = (uint8_t)side,
                        .a = (uint8_t)a,
                        .b = (uint8_t)b});
}

/* --- a run --- */

static bool in_control(enum event_kind kind)
{
    return kind != EVENT_VCPU && kind != EVENT_DMA && kind != EVENT_ANSWER &&
           kind != EVENT_RETURN && kind != EVENT_RESET_LINK;
}

static void copy_arrives(const struct event *e)
{
    struct side *s = &sim.side[e->side];

    if (!s->alive || !s->handover_active)
        return;
    if (e->side == DST)
        destination_message(&sim.copies[e->a].msg);
    else
        handover_msg(SRC, &sim.copies[e->a].msg);
}

static void dispatch(const struct event *e)
{
    switch ((enum event_kind)e->kind) {
    case EVENT_VCPU:
        vcpu_runs(e->side, e->a, (uint32_t)e->arg);
        break;
    case EVENT_DMA:
        device_dma_ends(e->side, e->a, e->b, (uint32_t)e->arg);
        break;
    case EVENT_CALL:
        device_call_ends(e->side, e->a, (uint32_t)e->arg, e->b);
        break;
    case EVENT_DRAIN:
        device_event(e->side, e->a, (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_TICK});
        break;
    case EVENT_JOB:
        job_runs(e->side, e->a);
        break;
    case EVENT_WORK:
        work_goes_on(e->side, e->a);
        break;
    case EVENT_ANSWER:
        page_answer(e->side, (uint32_t)e->arg);
        break;
    case EVENT_CHUNK:
        chunk_arrives(e->side, e->a, (uint32_t)e->arg);
        break;
    case EVENT_NOTICE:
        side_link_lost(e->side, (uint32_t)e->arg);
        break;
    case EVENT_CONNECT:
        source_connects();
        break;
    case EVENT_POLL:
        side_polls(e->side);
        event_in(10 * MS, EVENT_POLL, e->side, 0, 0, 0);
        break;
    case EVENT_RETURN:
        side_returns(e->side);
        break;
    case EVENT_COPY:
        copy_arrives(e);
        break;
    case EVENT_CANCEL:
        side_cancel(e->side);
        break;
    case EVENT_RESET_LINK:
        if (e->arg == sim.generation)
            link_reset();
        break;
    default:
        abort();
    }
}

static void step(void)
{
    struct event e = pop();
    struct side *s = &sim.side[e.side];

    sim.now = e.at;
    sim.events++;
    if (e.life != s->life && e.kind != EVENT_RETURN && e.kind != EVENT_RESET_LINK)
        return;
    if (in_control((enum event_kind)e.kind) && s->busy_until > sim.now) {
        e.at = s->busy_until;
        push(e);
        return;
    }
    /* A crash ends whatever its side was about to do. */
    if (setjmp(sim.died) == 0)
        dispatch(&e);
}

/* Nothing is under way and nobody waits: what is left is a guest that runs. */
static bool settled(void)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct side *s = &sim.side[i];
        /* A destination that runs may wait for ever for a source that has nothing left to say. */
        bool waits = s->handover_active && vfmig_handover_waits(&s->h) &&
                     (s->h.state != VFMIG_HO_DST_RUNNING || s->linked);
        if (!s->alive || s->flow_active || waits || s->h.pending || s->reconnect_at)
            return false;
        for (unsigned d = 0; d < DEVICES; d++)
            if (s->dev[d].job_count || s->dev[d].working)
                return false;
    }
    if (!sim.attempts)
        return false;
    /* One more attempt is to be made once this one is over. */
    return !sim.migrate_again || sim.side[SRC].h.state != VFMIG_HO_SRC_RESUMED ||
           !sim.side[SRC].h.memory || sim.now >= sim.heal_at;
}

/* A guest that the destination has and cannot start: named, and it goes on asking. */
static bool stands(void)
{
    const struct vfmig_handover *h = &sim.side[DST].h;

    return sim.side[DST].alive && h->memory && h->outcome == VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION;
}

static void start(uint64_t seed, unsigned keep)
{
    link_forget();
    for (unsigned i = 0; i < 2; i++)
        for (unsigned d = 0; d < DEVICES; d++)
            device_drop(i, d);
    bool verbose = sim.verbose;
    memset(&sim, 0, sizeof(sim));
    memset(memory_of, 0, sizeof(memory_of));
    sim.verbose = verbose;
    sim.seed = seed;
    sim.chance.state = mix(seed, 1);
    sim.plan.state = mix(seed, 2);
    sim.heal_at = HEAL_NS;
    sim.end_at = LAST_NS;
    faults_plan(keep);
    for (unsigned d = 0; d < DEVICES; d++) {
        sim.features[d] = VFMIG_FEATURE_STOP_COPY;
        sim.features[d] |= chance_below(&sim.plan, 4) ? VFMIG_FEATURE_NDMA : 0;
        sim.features[d] |= chance_below(&sim.plan, 4) ? VFMIG_FEATURE_PRE_COPY : 0;
    }
    for (unsigned i = 0; i < 2; i++) {
        sim.side[i].life = 1;
        sim.side[i].alive = true;
        side_fresh(i);
        event_in(some(0, 10 * MS), EVENT_POLL, i, 0, 0, 0);
    }
    guest_boot();
    event_in(20 * MS, EVENT_CONNECT, SRC, 0, 0, 0);
}

void sim_run(uint64_t seed, unsigned keep)
{
    bool healed = false;
    uint64_t calm_since = 0, operators_at = 0;

    start(seed, keep);
    while (sim.heap_count && !sim.broken && sim.now < sim.end_at) {
        step();
        if (!healed && sim.now >= sim.heal_at) {
            healed = true;
            calm_since = 0;
            operators_at = sim.now + 500 * MS;
            faults_heal();
        }
        if (healed && sim.now > operators_at) {
            operators_act();
            operators_at = sim.now + 300 * MS;
        }
        if (!settled() || sim.broken) {
            calm_since = 0;
            sim.finishing = false;
            continue;
        }
        if (!calm_since)
            calm_since = sim.now;
        /* What the guest has asked of its devices gets its time to be done. */
        if (!healed && sim.now > calm_since + 20 * MS && !faults_rest())
            sim.heal_at = sim.now;
        sim.finishing = healed && sim.now > calm_since + 10 * MS;
        if (healed && sim.now > calm_since + 300 * MS)
            break;
    }
    if (!sim.broken && sim.now >= sim.end_at && !stands())
        broke("dead-end", "nothing goes wrong any more, and it does not come to an end");
    if (!sim.broken)
        check_end();
}
