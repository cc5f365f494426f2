/* SPDX-License-Identifier: BSD-3-Clause */
/* The handover's machines: a source and a destination, their journals, and what is on the way
 * between them, which an operation delivers, drops, doubles, holds back or forges. Sides fail to
 * write, crash and come back. Without forgery never two may run; with it each still keeps its own
 * word. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/handover.h"
#include "engine/engine.h"
#include "ops.h"

#define WAY_MAX 8u

/* Of an operation: what it does is kind % ACTIONS, to whom is the lowest bit of how. */
enum action { EVENT, DELIVER, LATER, DROP, TWICE, FORGE, WRITE, WRITE_FAILS, CRASH, ACTIONS };
enum how { DESTINATION = 1, DURABLE = 2, OTHER_ID = 4, OTHER_EPOCH = 8, RAW = 16 };

struct side {
    struct vfmig_handover h;
    uint8_t disk; /* the last record that is durable */
    bool asked_prepare, asked_run;
    bool was_refused;                 /* the destination has said that it never runs it */
    struct vfmig_ho_msg way[WAY_MAX]; /* what the other one sent, oldest first */
    uint32_t way_count;
};

static struct side sides[2];
static bool forged, moved;
static const uint8_t id[VFMIG_HO_ID_BYTES] = {7};

static void need(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

static void begin(struct side *s, enum vfmig_ho_role role, bool memory)
{
    bool known = role == VFMIG_HO_SOURCE || s->disk != VFMIG_HO_RECORD_NONE;

    need(vfmig_handover_init(&s->h, role, known ? id : NULL, known ? 1 : 0, s->disk, memory) == 0,
         "its own record is not the role's");
    s->asked_prepare = s->asked_run = false;
}

/* The source's guest runs while the attempt is put on record, the destination's only when it is. */
static bool may_run(const struct vfmig_handover *h)
{
    return vfmig_handover_may_run(h) && (h->role == VFMIG_HO_SOURCE || !h->pending);
}

/* What holds for each side whatever it was told. */
static void check(const struct side *s)
{
    const struct vfmig_handover *h = &s->h;
    bool source = h->role == VFMIG_HO_SOURCE;

    need(h->state < VFMIG_HO_STATE_COUNT && (h->state < VFMIG_HO_DST_LISTEN) == source,
         "the other role's state");
    need(h->record < VFMIG_HO_RECORD_COUNT &&
             (h->record == VFMIG_HO_RECORD_NONE || (h->record < VFMIG_HO_RECORD_READY) == source),
         "the other role's record");
    need(h->outcome < VFMIG_HO_OUTCOME_COUNT, "an outcome that is none");
    if (!may_run(h))
        return;
    need(h->memory, "runs without memory");
    if (source)
        need(s->disk != VFMIG_HO_RECORD_RELEASED && s->disk != VFMIG_HO_RECORD_SAVED &&
                 (s->disk != VFMIG_HO_RECORD_GRANT_SENT || s->was_refused),
             "runs although it has given the guest away");
    else
        need(s->disk == VFMIG_HO_RECORD_RUNNING, "runs without RUNNING on record");
}

static void send(struct side *to, const struct vfmig_ho_msg *msg)
{
    struct vfmig_record record = {.tag = VFMIG_RECORD_HANDOVER, .length = sizeof(*msg)};
    struct vfmig_ho_msg out;

    need(msg->kind < VFMIG_HO_MSG_COUNT && !msg->reserved, "a message that is none");
    record.payload = (const uint8_t *)msg;
    need(engine_ho_msg_decode(&record, &out, NULL) == 0 && !memcmp(&out, msg, sizeof(out)),
         "a message that does not come out as it went in");
    if (to->way_count < WAY_MAX)
        to->way[to->way_count++] = out;
}

/* A destination that listens takes whoever comes; one that has nothing to lose, a later attempt. */
static bool stranger(const struct vfmig_handover *h, const struct vfmig_ho_event *event)
{
    bool open = h->state == VFMIG_HO_DST_LOADING || h->state == VFMIG_HO_DST_REFUSED;

    if (event->kind != VFMIG_HO_EVENT_MESSAGE || h->state == VFMIG_HO_DST_LISTEN)
        return false;
    return memcmp(event->msg.id, h->id, sizeof(h->id)) || event->msg.epoch < h->epoch ||
           (event->msg.epoch > h->epoch && !open);
}

static void step(unsigned who, const struct vfmig_ho_event *event)
{
    struct side *s = &sides[who];
    struct vfmig_handover before = s->h;
    struct vfmig_ho_actions actions;
    int rc = vfmig_handover_step(&s->h, event, &actions);

    s->was_refused |=
        !rc && event->kind == VFMIG_HO_EVENT_MESSAGE && event->msg.kind == VFMIG_HO_MSG_REFUSED;
    need(rc == 0 || rc == -EINVAL || rc == -ESTALE || rc == -EPROTO,
         "an error that is none of the three");
    if (rc) {
        need(!memcmp(&before, &s->h, sizeof(before)), "refused, and changed");
        need(!actions.journal && !actions.flags && !actions.send.kind, "refused, and acted upon");
        need((rc == -EINVAL) == (event->kind != VFMIG_HO_EVENT_MESSAGE),
             "the wrong reason to refuse");
    }
    need(!stranger(&before, event) || rc || before.pending,
         "a message of another migration was taken");
    need(actions.journal != VFMIG_HO_RECORD_READY || (s->h.sealed && s->h.loaded),
         "ready without everything");
    need(!(actions.flags & VFMIG_HO_ACT_RUN) || s->disk == VFMIG_HO_RECORD_RUNNING,
         "runs without RUNNING on record");
    need(!actions.send.kind ||
             (actions.send.memory == s->h.memory && actions.send.record == s->h.record),
         "says what it does not have");
    need(!actions.journal || (!actions.flags && !actions.send.kind),
         "acts before its record is durable");
    need(actions.journal == VFMIG_HO_RECORD_NONE || actions.journal == s->h.pending,
         "another record is pending");
    if (actions.flags & (VFMIG_HO_ACT_DROP_LOAD | VFMIG_HO_ACT_RELEASE))
        s->asked_prepare = s->asked_run = false;
    s->asked_prepare |= !!(actions.flags & VFMIG_HO_ACT_PREPARE);
    s->asked_run |= !!(actions.flags & VFMIG_HO_ACT_RUN);
    if (actions.send.kind)
        send(&sides[!who], &actions.send);
    check(s);
    need(forged || !may_run(&sides[0].h) || !may_run(&sides[1].h), "two may run");
    moved |= may_run(&sides[1].h);
}

/* What a shell that keeps the rules would say now; an operator's word is not among it. */
static bool may_say(const struct side *s, uint8_t kind)
{
    switch (kind) {
    case VFMIG_HO_EVENT_NONE:
    case VFMIG_HO_EVENT_MESSAGE:
    case VFMIG_HO_EVENT_START:
    case VFMIG_HO_EVENT_JOURNAL_DONE:
    case VFMIG_HO_EVENT_JOURNAL_FAILED:
    case VFMIG_HO_EVENT_SAVED:
    case VFMIG_HO_EVENT_DISCARD:
    case VFMIG_HO_EVENT_FENCED:
        return false;
    case VFMIG_HO_EVENT_PREPARED:
    case VFMIG_HO_EVENT_PREPARE_FAILED:
        return s->asked_prepare;
    case VFMIG_HO_EVENT_RUN_DONE:
    case VFMIG_HO_EVENT_RUN_FAILED:
        return s->asked_run;
    default:
        return true;
    }
}

static void written(unsigned who, bool good, bool durable)
{
    struct side *s = &sides[who];

    if (!s->h.pending)
        return;
    if (good || durable)
        s->disk = s->h.pending;
    step(who, &(struct vfmig_ho_event){.kind = good ? VFMIG_HO_EVENT_JOURNAL_DONE
                                                    : VFMIG_HO_EVENT_JOURNAL_FAILED});
}

static void deliver(unsigned who, uint32_t place, bool keep)
{
    struct side *s = &sides[who];

    if (place >= s->way_count)
        return;
    struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE, .msg = s->way[place]};
    if (!keep)
        memmove(&s->way[place], &s->way[place + 1], (--s->way_count - place) * sizeof(event.msg));
    step(who, &event);
}

/* Fields of the operation's bytes over a message that fits, or the bytes as they are. */
static void forge(unsigned who, const struct op *op)
{
    struct vfmig_ho_event event = {
        .kind = VFMIG_HO_EVENT_MESSAGE,
    };
    uint8_t raw[sizeof(event.msg)] = {0};
    struct vfmig_record record = {
        .tag = VFMIG_RECORD_HANDOVER, .length = op->size, .payload = op->data};

    memcpy(raw, op->data, op->size < sizeof(raw) ? op->size : sizeof(raw));
    if (op->how & RAW) {
        if (engine_ho_msg_decode(&record, &event.msg, NULL))
            return;
    } else {
        memcpy(event.msg.id, id, sizeof(id));
        event.msg.kind = raw[0] % (VFMIG_HO_MSG_COUNT + 1);
        event.msg.record = raw[1] % (VFMIG_HO_RECORD_COUNT + 1);
        event.msg.memory = raw[2];
        event.msg.reserved = raw[3];
        event.msg.id[15] = op->how & OTHER_ID ? 1 : 0;
        event.msg.epoch = op->how & OTHER_EPOCH ? raw[4] + 2u : 1;
    }
    forged = true;
    step(who, &event);
}

static void crash(unsigned who)
{
    begin(&sides[who], who ? VFMIG_HO_DESTINATION : VFMIG_HO_SOURCE, /* memory= */ false);
    step(who, &(struct vfmig_ho_event){.kind = VFMIG_HO_EVENT_START});
}

static void run(const struct op *op)
{
    unsigned who = op->how & DESTINATION ? 1 : 0;
    struct side *s = &sides[who];
    uint8_t event = op->size ? op->data[0] % VFMIG_HO_EVENT_COUNT : VFMIG_HO_EVENT_RETRY;

    switch ((enum action)(op->kind % ACTIONS)) {
    case EVENT:
        if (may_say(s, event))
            step(who, &(struct vfmig_ho_event){.kind = event});
        break;
    case DELIVER:
    case TWICE:
        deliver(who, 0, op->kind % ACTIONS == TWICE);
        break;
    case LATER:
        deliver(who, op->size ? op->data[0] % WAY_MAX : 1, false);
        break;
    case DROP:
        if (s->way_count)
            memmove(s->way, s->way + 1, --s->way_count * sizeof(s->way[0]));
        break;
    case FORGE:
        forge(who, op);
        break;
    case WRITE:
    case WRITE_FAILS:
        written(who, op->kind % ACTIONS == WRITE, op->how & DURABLE);
        break;
    default:
        crash(who);
    }
}

bool ops_run(const struct op *ops, size_t count)
{
    memset(sides, 0, sizeof(sides));
    forged = moved = false;
    begin(&sides[0], VFMIG_HO_SOURCE, /* memory= */ true);
    begin(&sides[1], VFMIG_HO_DESTINATION, /* memory= */ false);
    for (unsigned who = 0; who < 2; who++)
        step(who, &(struct vfmig_ho_event){.kind = VFMIG_HO_EVENT_START});
    for (size_t i = 0; i < count; i++)
        run(&ops[i]);
    return moved && !forged;
}
