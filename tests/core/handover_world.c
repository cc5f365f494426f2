/* SPDX-License-Identifier: BSD-3-Clause */
#include "handover_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t guest_id[VFMIG_HO_ID_BYTES] = "sixteen-byte-id";

/* Distinct messages of each side, in the order of their discovery. */
static struct vfmig_ho_msg known[2][64];
static unsigned known_count[2];

static unsigned message_index(unsigned side, const struct vfmig_ho_msg *msg)
{
    for (unsigned i = 0; i < known_count[side]; i++)
        if (!memcmp(&known[side][i], msg, sizeof(*msg)))
            return i;
    if (known_count[side] == 64)
        abort();
    known[side][known_count[side]] = *msg;
    return known_count[side]++;
}

static const char *check(const struct world *w)
{
    const struct side *s = &w->side[SRC], *d = &w->side[DST];

    if (s->runs && d->runs)
        return "two running";
    if (s->runs && !s->returned && !vfmig_handover_may_run(&s->h))
        return "the source runs although its machine forbids it";
    if (d->runs && (!vfmig_handover_may_run(&d->h) || d->disk != VFMIG_HO_RECORD_RUNNING))
        return "the destination runs without RUNNING on record";
    if (s->returned && s->h.memory)
        return "memory that did not survive is counted on";
    return NULL;
}

static const char *source_runs(struct world *w)
{
    if (w->granted && w->side[DST].disk != VFMIG_HO_RECORD_REFUSED && !w->side[SRC].runs)
        return "the source runs again although the grant was sent and not refused on record";
    w->stale = w->side[SRC].h.state != VFMIG_HO_SRC_OFFERED;
    w->side[SRC].runs = 1;
    return NULL;
}

static const char *destination_runs(struct world *w)
{
    if (!w->granted && !w->fenced)
        return "the destination runs without a grant";
    if (w->stale && !w->fenced)
        return "the destination runs an image that the source has left behind";
    if (!w->side[DST].has_data)
        return "the destination runs what it does not have";
    w->side[DST].runs = w->ran_there = 1;
    return NULL;
}

static const char *do_actions(struct world *w, unsigned side, const struct vfmig_ho_actions *acts)
{
    struct side *me = &w->side[side];

    if (acts->journal)
        return acts->flags & ~VFMIG_HO_ACT_DROP_LOAD || acts->send.kind
                   ? "acts before the record is durable"
                   : NULL;
    if (acts->flags & VFMIG_HO_ACT_DROP_LOAD)
        me->has_data = me->work = 0;
    if (acts->flags & VFMIG_HO_ACT_RELEASE)
        me->runs = me->has_data = me->work = 0;
    if (acts->flags & VFMIG_HO_ACT_RESUME) {
        const char *broken = source_runs(w);
        if (broken)
            return broken;
    }
    if (acts->flags & VFMIG_HO_ACT_PREPARE)
        me->work = 1;
    if (acts->flags & VFMIG_HO_ACT_RUN) {
        me->work = 2;
        const char *broken = destination_runs(w);
        if (broken)
            return broken;
    }
    if (acts->send.kind) {
        me->sent |= UINT64_C(1) << message_index(side, &acts->send);
        if (acts->send.kind == VFMIG_HO_MSG_GRANT)
            w->granted = 1;
    }
    return NULL;
}

static const char *step(struct world *w, unsigned side, const struct vfmig_ho_event *event)
{
    struct vfmig_ho_actions acts;
    struct side *me = &w->side[side];
    uint32_t epoch = me->h.epoch;

    int r = vfmig_handover_step(&me->h, event, &acts);
    if (r < 0)
        return event->kind == VFMIG_HO_EVENT_MESSAGE ? NULL : "a possible event is refused";
    if (me->h.epoch != epoch)
        me->has_data = me->work = 0;
    const char *broken = do_actions(w, side, &acts);
    return broken ? broken : check(w);
}

static const char *local(struct world *w, unsigned side, uint8_t kind)
{
    const struct vfmig_ho_event event = {.kind = kind};

    return step(w, side, &event);
}

void world_start(struct world *w, const struct limits *limits)
{
    memset(w, 0, sizeof(*w));
    vfmig_handover_init(&w->side[SRC].h, VFMIG_HO_SOURCE, guest_id, 1, VFMIG_HO_RECORD_NONE, true);
    vfmig_handover_init(&w->side[DST].h, VFMIG_HO_DESTINATION, NULL, 0, VFMIG_HO_RECORD_NONE, false);
    w->side[SRC].alive = w->side[DST].alive = w->side[SRC].runs = 1;
    w->crashes = limits->crashes;
    w->failures = limits->failures;
    w->aborts = limits->aborts;
    w->links = limits->links;
}

static void add(struct move *moves, unsigned *count, uint8_t kind, unsigned side, unsigned arg)
{
    if (*count == MOVES_MAX)
        abort();
    moves[(*count)++] = (struct move){kind, (uint8_t)side, (uint8_t)arg};
}

static void add_source_moves(const struct world *w, const struct limits *limits, struct move *m,
                             unsigned *n)
{
    const struct side *s = &w->side[SRC];

    if (s->h.pending)
        return;
    if (s->h.state == VFMIG_HO_SRC_IDLE && !s->returned)
        add(m, n, MOVE_EVENT, SRC, VFMIG_HO_EVENT_START);
    if (s->h.state == VFMIG_HO_SRC_OFFERED && s->h.memory)
        add(m, n, MOVE_EVENT, SRC, VFMIG_HO_EVENT_STOPPED);
    if (s->h.state == VFMIG_HO_SRC_GRANTED && s->h.memory &&
        s->h.outcome == VFMIG_HO_OUTCOME_DIED_AT_DESTINATION)
        add(m, n, MOVE_EVENT, SRC, VFMIG_HO_EVENT_DISCARD);
    if (s->returned && !s->runs &&
        (s->h.state == VFMIG_HO_SRC_RESUMED || s->h.state == VFMIG_HO_SRC_IDLE))
        add(m, n, MOVE_BOOT, SRC, 0);
    if (s->h.state == VFMIG_HO_SRC_RESUMED && s->h.memory && s->runs &&
        s->disk == VFMIG_HO_RECORD_RESUMED && s->h.epoch < limits->epochs)
        add(m, n, MOVE_REOFFER, SRC, 0);
}

static void add_destination_moves(const struct world *w, struct move *m, unsigned *n)
{
    const struct side *d = &w->side[DST];

    if (d->h.state == VFMIG_HO_DST_LOADING && d->has_data && !d->h.loaded)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_LOADED);
    if (d->h.state == VFMIG_HO_DST_LOADING && w->failures)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_LOAD_FAILED);
    if (d->work == 1)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_PREPARED);
    if (d->work == 1 && w->failures)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_PREPARE_FAILED);
    if (d->work == 2)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_RUN_DONE);
    if (d->work == 2 && w->failures)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_RUN_FAILED);
    if (!w->side[SRC].alive && !d->h.pending && d->h.state == VFMIG_HO_DST_READY && d->h.memory)
        add(m, n, MOVE_EVENT, DST, VFMIG_HO_EVENT_FENCED);
}

static void add_common_moves(const struct world *w, unsigned side, struct move *m, unsigned *n)
{
    const struct side *me = &w->side[side];

    if (w->links)
        add(m, n, MOVE_EVENT, side, VFMIG_HO_EVENT_LINK_LOST);
    add(m, n, MOVE_EVENT, side, VFMIG_HO_EVENT_LINK_UP);
    add(m, n, MOVE_EVENT, side, VFMIG_HO_EVENT_RETRY);
    if (w->aborts)
        add(m, n, MOVE_EVENT, side, VFMIG_HO_EVENT_ABORT);
    if (me->h.pending)
        add(m, n, MOVE_JOURNAL, side, 0);
    for (unsigned durable = 0; me->h.pending && w->failures && durable < 2; durable++)
        add(m, n, MOVE_JOURNAL_FAIL, side, durable);
    for (unsigned i = 0; i < 64; i++)
        if (w->side[!side].sent & UINT64_C(1) << i)
            add(m, n, MOVE_DELIVER, side, i);
}

unsigned world_moves(const struct world *w, const struct limits *limits, struct move *moves)
{
    unsigned n = 0;

    if (w->side[SRC].alive)
        add_source_moves(w, limits, moves, &n);
    if (w->side[DST].alive)
        add_destination_moves(w, moves, &n);
    for (unsigned side = 0; side < 2; side++) {
        if (!w->side[side].alive) {
            add(moves, &n, MOVE_RETURN, side, 0);
            continue;
        }
        add_common_moves(w, side, moves, &n);
        for (unsigned durable = 0; w->crashes && durable <= !!w->side[side].h.pending; durable++)
            add(moves, &n, MOVE_CRASH, side, durable);
    }
    return n;
}

static void write_disk(struct side *me)
{
    me->disk = me->h.pending;
    me->disk_epoch = (uint8_t)me->h.epoch;
}

static void crash(struct world *w, unsigned side, bool durable)
{
    struct side *me = &w->side[side];

    if (durable)
        write_disk(me);
    if (side == SRC)
        w->excused |= w->side[DST].h.failed || w->side[DST].h.pending == VFMIG_HO_RECORD_REFUSED;
    memset(&me->h, 0, sizeof(me->h));
    me->alive = me->runs = me->work = me->has_data = 0;
}

static const char *come_back(struct world *w, unsigned side)
{
    struct side *me = &w->side[side];
    bool listens = side == DST && me->disk == VFMIG_HO_RECORD_NONE;

    me->alive = me->returned = 1;
    vfmig_handover_init(&me->h, side == SRC ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION,
                        listens ? NULL : guest_id, listens ? 0 : me->disk_epoch, me->disk, false);
    if (side == SRC && me->disk == VFMIG_HO_RECORD_NONE)
        return NULL; /* no journal: nothing to continue */
    return local(w, side, VFMIG_HO_EVENT_START);
}

/* What the world does along with a local event. */
static const char *make_event(struct world *w, unsigned side, uint8_t kind)
{
    struct side *me = &w->side[side];

    if (kind == VFMIG_HO_EVENT_ABORT)
        w->aborts--;
    if (kind == VFMIG_HO_EVENT_LINK_LOST)
        w->links--;
    if (kind == VFMIG_HO_EVENT_LOAD_FAILED || kind == VFMIG_HO_EVENT_PREPARE_FAILED ||
        kind == VFMIG_HO_EVENT_RUN_FAILED)
        w->failures--;
    if (kind == VFMIG_HO_EVENT_STOPPED) {
        struct side *d = &w->side[DST];
        me->runs = w->stale = 0;
        d->has_data = d->alive && d->h.state == VFMIG_HO_DST_LOADING && d->h.epoch == me->h.epoch;
    }
    if (kind == VFMIG_HO_EVENT_FENCED)
        w->fenced = 1;
    if (kind == VFMIG_HO_EVENT_RUN_DONE || kind == VFMIG_HO_EVENT_RUN_FAILED ||
        kind == VFMIG_HO_EVENT_PREPARED)
        me->work = 0;
    if (kind == VFMIG_HO_EVENT_RUN_FAILED)
        me->runs = 0;
    return local(w, side, kind);
}

static const char *reoffer(struct world *w)
{
    struct side *me = &w->side[SRC];

    vfmig_handover_init(&me->h, VFMIG_HO_SOURCE, guest_id, me->h.epoch + 1, VFMIG_HO_RECORD_NONE, true);
    w->granted = 0;
    return local(w, SRC, VFMIG_HO_EVENT_START);
}

const char *world_make(struct world *w, const struct move *move)
{
    struct side *me = &w->side[move->side];
    struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE};

    switch ((enum move_kind)move->kind) {
    case MOVE_EVENT:
        return make_event(w, move->side, move->arg);
    case MOVE_DELIVER:
        event.msg = known[!move->side][move->arg];
        return step(w, move->side, &event);
    case MOVE_JOURNAL:
        write_disk(me);
        return local(w, move->side, VFMIG_HO_EVENT_JOURNAL_DONE);
    case MOVE_JOURNAL_FAIL:
        w->failures--;
        if (move->arg)
            write_disk(me);
        return local(w, move->side, VFMIG_HO_EVENT_JOURNAL_FAILED);
    case MOVE_CRASH:
        w->crashes--;
        crash(w, move->side, move->arg);
        return NULL;
    case MOVE_RETURN:
        return come_back(w, move->side);
    case MOVE_BOOT: {
        const char *broken = source_runs(w);
        return broken ? broken : check(w);
    }
    case MOVE_REOFFER:
        return reoffer(w);
    }
    return "no such move";
}

/* Everything that the shells and a healthy channel would do by themselves, once. */
static const char *settle_round(struct world *w)
{
    const char *broken = NULL;

    for (unsigned side = 0; side < 2 && !broken; side++) {
        struct side *me = &w->side[side];
        if (!me->alive)
            continue;
        if (me->h.pending)
            broken = world_make(w, &(struct move){MOVE_JOURNAL, (uint8_t)side, 0});
        else if (side == DST && me->work == 1)
            broken = make_event(w, DST, VFMIG_HO_EVENT_PREPARED);
        else if (side == DST && me->work == 2)
            broken = make_event(w, DST, VFMIG_HO_EVENT_RUN_DONE);
        else if (side == DST && me->h.state == VFMIG_HO_DST_LOADING && me->has_data && !me->h.loaded)
            broken = make_event(w, DST, VFMIG_HO_EVENT_LOADED);
        else if (side == DST && me->h.state == VFMIG_HO_DST_LOADING && me->h.sealed && !me->has_data)
            broken = local(w, DST, VFMIG_HO_EVENT_LOAD_FAILED); /* the stream ends too early */
        else if (vfmig_handover_waits(&me->h))
            broken = local(w, side, VFMIG_HO_EVENT_RETRY);
        uint64_t inbox = w->side[!side].sent;
        w->side[!side].sent = 0;
        for (unsigned i = 0; i < 64 && !broken; i++)
            if (inbox & UINT64_C(1) << i)
                broken = world_make(w, &(struct move){MOVE_DELIVER, (uint8_t)side, (uint8_t)i});
    }
    return broken;
}

const char *world_settle(struct world *w, unsigned returning)
{
    const char *broken = NULL;

    w->side[SRC].sent = w->side[DST].sent = 0;
    for (unsigned side = 0; side < 2 && !broken; side++)
        if (!w->side[side].alive && returning & 1u << side)
            broken = come_back(w, side);
    /* Whoever lost its peer noticed; the connection is new. */
    bool crashed = false;
    for (unsigned side = 0; side < 2; side++)
        crashed |= !w->side[side].alive || w->side[side].returned;
    for (unsigned side = 0; side < 2 && !broken && crashed; side++)
        if (w->side[side].alive)
            broken = local(w, side, VFMIG_HO_EVENT_LINK_LOST);
    bool both = w->side[SRC].alive && w->side[DST].alive;
    for (unsigned side = 0; side < 2 && !broken && both; side++)
        broken = local(w, side, VFMIG_HO_EVENT_LINK_UP);
    for (unsigned round = 0; round < 24 && !broken; round++)
        broken = settle_round(w);
    return broken;
}

const char *move_text(const struct move *move, char *text, unsigned size)
{
    static const char *const kinds[] = {"event", "deliver", "journal", "journal-fail",
                                        "crash", "return",  "boot",    "reoffer"};
    const char *what = "";

    if (move->kind == MOVE_DELIVER)
        what = vfmig_ho_msg_name(known[!move->side][move->arg].kind);
    snprintf(text, size, "%s %s %u %s", move->side == SRC ? "source" : "destination",
             kinds[move->kind], move->arg, what);
    return text;
}
