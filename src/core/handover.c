/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/handover.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/sabotage.h"

/* A REFUSED whose sender has no record of it. It is an answer before the grant, never after. */
#define VFMIG_HO_MSG_DECLINED VFMIG_HO_MSG_COUNT

/* One number space for everything that can move the machine. */
enum {
    MSG_BASE = 32,
    DONE_BASE = 64,
    FAIL_BASE = 96,
};

#define EV(e)   VFMIG_HO_EVENT_##e
#define MSG(m)  (MSG_BASE + VFMIG_HO_MSG_##m)
#define DONE(r) (DONE_BASE + VFMIG_HO_RECORD_##r)
#define FAIL(r) (FAIL_BASE + VFMIG_HO_RECORD_##r)

enum guard {
    ALWAYS = 0,
    MEM,         /* this side has the memory */
    NO_MEM,      /* it came back without */
    MEM_ABORT,   /* with memory, and a user wants out */
    NO_MEM_ABORT,
    PEER_MEM, /* the message's sender has the memory */
    MEM_PEER_NO_MEM,
    NO_MEM_PEER_MEM,
    COMPLETE,    /* sealed and loaded */
    SEALED,
    PREPARED,    /* all but the record RUNNING is there */
    FAILED,      /* PREPARE failed */
    FAILED_PEER_MEM,
    UNACKED,
    UNRECORDED,  /* refused, but not on record yet */
    DEAD_THERE,  /* the destination said that the guest died there */
    LOST_THERE,  /* the source said that its memory is lost */
};

enum {
    KEEP = VFMIG_HO_OUTCOME_COUNT, /* outcome: report the one stored when the record was asked for */
};

/* The first row whose state, trigger and guard fit is taken. With a journal: next holds at once, the
 * outcome is stored for a KEEP, everything else follows from the DONE or FAIL row. */
struct row {
    uint8_t state;
    uint8_t trigger;
    uint8_t guard;
    uint8_t journal;
    uint8_t next;
    uint8_t send;
    uint8_t outcome;
    uint16_t flags;
};

#define DROP    VFMIG_HO_ACT_DROP_LOAD
#define RELEASE VFMIG_HO_ACT_RELEASE
#define RESUME  VFMIG_HO_ACT_RESUME
#define PREPARE VFMIG_HO_ACT_PREPARE
#define RUN     VFMIG_HO_ACT_RUN

/* clang-format off */
#define O(name) VFMIG_HO_OUTCOME_##name
#define JOURNAL(s, t, g, record, nx, out)                                                          \
    {VFMIG_HO_##s, t, g, VFMIG_HO_RECORD_##record, VFMIG_HO_##nx, 0, out, 0},
#define ACT(s, t, g, nx, message, out, acts)                                                       \
    {VFMIG_HO_##s, t, g, 0, VFMIG_HO_##nx, VFMIG_HO_MSG_##message, out, acts},
static const struct row rows[] = {
#include "core/handover.def"
};
/* clang-format on */

static bool guard_holds(const struct vfmig_handover *h, const struct vfmig_ho_msg *msg, uint8_t guard)
{
    switch ((enum guard)guard) {
    case ALWAYS:
        return true;
    case MEM:
        return h->memory;
    case NO_MEM:
        return !h->memory;
    case MEM_ABORT:
        return h->memory && h->abort;
    case NO_MEM_ABORT:
        return !h->memory && h->abort;
    case PEER_MEM:
        return msg->memory;
    case MEM_PEER_NO_MEM:
        return h->memory && !msg->memory;
    case NO_MEM_PEER_MEM:
        return !h->memory && msg->memory;
    case COMPLETE:
        return (h->sealed || vfmig_sabotage("ready-without-seal")) && h->loaded;
    case SEALED:
        return h->sealed;
    case PREPARED:
        return h->memory && h->prepared;
    case FAILED:
        return h->memory && h->failed;
    case FAILED_PEER_MEM:
        return h->memory && h->failed && msg->memory && msg->record == VFMIG_HO_RECORD_GRANT_SENT;
    case UNACKED:
        return !h->acked;
    case UNRECORDED:
        return h->record != VFMIG_HO_RECORD_REFUSED;
    case DEAD_THERE:
        return h->outcome == VFMIG_HO_OUTCOME_DIED_AT_DESTINATION;
    case LOST_THERE:
        return h->outcome == VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION;
    }
    return false;
}

static const struct row *find_row(const struct vfmig_handover *h, const struct vfmig_ho_msg *msg,
                                  unsigned trigger)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (rows[i].state == h->state && rows[i].trigger == trigger &&
            guard_holds(h, msg, rows[i].guard))
            return &rows[i];
    return NULL;
}

static void fill_message(const struct vfmig_handover *h, uint8_t kind, struct vfmig_ho_msg *ret_msg)
{
    memcpy(ret_msg->id, h->id, sizeof(ret_msg->id));
    ret_msg->epoch = h->epoch;
    ret_msg->kind = kind;
    ret_msg->record = h->record;
    ret_msg->memory = h->memory || vfmig_sabotage("memory-claimed");
    ret_msg->reserved = 0;
}

static void apply(struct vfmig_handover *h, const struct row *row, struct vfmig_ho_actions *acts)
{
    h->state = row->next;
    if (row->journal) {
        *acts = (struct vfmig_ho_actions){.journal = row->journal};
        h->pending = row->journal;
        h->kept = row->outcome;
        if (row->journal == VFMIG_HO_RECORD_GRANT_SENT && vfmig_sabotage("grant-before-journal"))
            fill_message(h, VFMIG_HO_MSG_GRANT, &acts->send);
        return;
    }
    acts->flags |= row->flags;
    if (row->flags & RELEASE)
        h->memory = 0;
    if (row->send)
        fill_message(h, row->send, &acts->send);
    uint8_t outcome = row->outcome == KEEP ? h->kept : row->outcome;
    if (outcome != VFMIG_HO_OUTCOME_NONE && outcome != h->outcome) {
        h->outcome = outcome;
        acts->outcome = outcome;
        acts->flags |= VFMIG_HO_ACT_REPORT;
    }
}

static int journal_answered(struct vfmig_handover *h, bool done, struct vfmig_ho_actions *acts)
{
    static const struct vfmig_ho_msg nothing;
    uint8_t record = h->pending;

    if (record == VFMIG_HO_RECORD_NONE)
        return -EINVAL;
    const struct row *row = find_row(h, &nothing, (done ? DONE_BASE : FAIL_BASE) + record);
    if (!row)
        return -EINVAL;
    h->pending = VFMIG_HO_RECORD_NONE;
    if (done) {
        h->record = record;
        if (record == VFMIG_HO_RECORD_READY)
            h->memory = 1;
    }
    apply(h, row, acts);
    /* READY waits for the first RETRY: else a quick grant may still win. */
    if (h->state == VFMIG_HO_DST_READY && vfmig_sabotage("run-before-grant"))
        *acts = (struct vfmig_ho_actions){.flags = PREPARE | RUN};
    if (!done || !h->abort)
        return 0;
    /* A user asked to stop while the record was being written. */
    if (h->role == VFMIG_HO_DESTINATION)
        h->abort = 0;
    row = find_row(h, &nothing, EV(ABORT));
    if (row)
        apply(h, row, acts);
    if (row && h->state == VFMIG_HO_DST_GRANTED)
        h->failed = 1;
    return 0;
}

static bool from_destination(uint8_t kind)
{
    return kind == VFMIG_HO_MSG_READY || kind == VFMIG_HO_MSG_RUNNING ||
           kind == VFMIG_HO_MSG_REFUSED;
}

static bool record_of_role(uint8_t record, uint8_t role)
{
    if (record == VFMIG_HO_RECORD_NONE)
        return true;
    if (record >= VFMIG_HO_RECORD_COUNT)
        return false;
    return (record >= VFMIG_HO_RECORD_READY) == (role == VFMIG_HO_DESTINATION);
}

static int check_message(const struct vfmig_handover *h, const struct vfmig_ho_msg *msg)
{
    bool both_ways = msg->kind == VFMIG_HO_MSG_QUERY || msg->kind == VFMIG_HO_MSG_OUTCOME;
    uint8_t peer = h->role == VFMIG_HO_SOURCE ? VFMIG_HO_DESTINATION : VFMIG_HO_SOURCE;

    if (msg->kind == VFMIG_HO_MSG_NONE || msg->kind >= VFMIG_HO_MSG_COUNT)
        return -EPROTO;
    if (!both_ways && from_destination(msg->kind) != (peer == VFMIG_HO_DESTINATION))
        return -EPROTO;
    if (!record_of_role(msg->record, peer) || msg->memory > 1 || msg->reserved || !msg->epoch)
        return -EPROTO;
    return 0;
}

/* A destination that holds nothing takes up the first attempt it hears of, and a later attempt of
 * the same migration; the source opens one only after the earlier is closed for good. */
static int adopt_attempt(struct vfmig_handover *h, const struct vfmig_ho_msg *msg,
                         struct vfmig_ho_actions *acts)
{
    bool fresh = h->state == VFMIG_HO_DST_LISTEN && !h->epoch;
    bool idle = h->state == VFMIG_HO_DST_LISTEN || h->state == VFMIG_HO_DST_LOADING ||
                h->state == VFMIG_HO_DST_REFUSED;
    bool opens = msg->kind != VFMIG_HO_MSG_RELEASED && msg->kind != VFMIG_HO_MSG_OUTCOME;

    if (!fresh && memcmp(h->id, msg->id, sizeof(h->id)) && !vfmig_sabotage("id-ignored"))
        return -ESTALE;
    if (!fresh && (msg->epoch == h->epoch || vfmig_sabotage("epoch-ignored")))
        return 0;
    if (h->pending || !idle || !opens || msg->epoch < h->epoch)
        return -ESTALE;
    if (h->state == VFMIG_HO_DST_LOADING)
        acts->flags |= DROP;
    memcpy(h->id, msg->id, sizeof(h->id));
    h->epoch = msg->epoch;
    h->state = VFMIG_HO_DST_LISTEN;
    h->record = VFMIG_HO_RECORD_NONE;
    h->memory = h->sealed = h->loaded = h->prepared = h->failed = 0;
    h->outcome = VFMIG_HO_OUTCOME_NONE;
    return 0;
}

/* An answer to QUERY says the same as the message that went with the record. It never stands for a
 * grant: that is one message alone. */
static uint8_t meaning(const struct vfmig_ho_msg *msg)
{
    if (msg->kind == VFMIG_HO_MSG_REFUSED && msg->record != VFMIG_HO_RECORD_REFUSED)
        return VFMIG_HO_MSG_DECLINED;
    if (msg->kind != VFMIG_HO_MSG_OUTCOME)
        return msg->kind;
    switch (msg->record) {
    case VFMIG_HO_RECORD_READY:
        return VFMIG_HO_MSG_READY;
    case VFMIG_HO_RECORD_RUNNING:
        return VFMIG_HO_MSG_RUNNING;
    case VFMIG_HO_RECORD_REFUSED:
        return VFMIG_HO_MSG_REFUSED;
    case VFMIG_HO_RECORD_ABORTED:
    case VFMIG_HO_RECORD_RESUMED:
        return VFMIG_HO_MSG_ABORT;
    case VFMIG_HO_RECORD_RELEASED:
        return VFMIG_HO_MSG_RELEASED;
    default:
        return VFMIG_HO_MSG_OUTCOME;
    }
}

static int message_received(struct vfmig_handover *h, const struct vfmig_ho_msg *msg,
                            struct vfmig_ho_actions *acts)
{
    int r = check_message(h, msg);
    if (r < 0)
        return r;
    if (h->role == VFMIG_HO_SOURCE) {
        if (memcmp(h->id, msg->id, sizeof(h->id)) && !vfmig_sabotage("id-ignored"))
            return -ESTALE;
        if (h->epoch != msg->epoch && !vfmig_sabotage("epoch-ignored"))
            return -ESTALE;
    } else {
        r = adopt_attempt(h, msg, acts);
        if (r < 0)
            return r;
    }
    if (h->pending)
        return 0;
    uint8_t kind = meaning(msg);
    if (kind == VFMIG_HO_MSG_SEAL && h->state == VFMIG_HO_DST_LOADING)
        h->sealed = 1;
    if (kind == VFMIG_HO_MSG_RELEASED && h->state == VFMIG_HO_DST_RUNNING)
        h->acked = 1;
    const struct row *row = find_row(h, msg, MSG_BASE + kind);
    if (row)
        apply(h, row, acts);
    else if (kind == VFMIG_HO_MSG_QUERY)
        fill_message(h, VFMIG_HO_MSG_OUTCOME, &acts->send);
    return 0;
}

/* Events that may come at any time: late answers of the shell, the link, the user. */
static bool comes_any_time(const struct vfmig_handover *h, uint8_t kind)
{
    switch (kind) {
    case VFMIG_HO_EVENT_LINK_UP:
    case VFMIG_HO_EVENT_LINK_LOST:
    case VFMIG_HO_EVENT_RETRY:
    case VFMIG_HO_EVENT_ABORT:
        return true;
    case VFMIG_HO_EVENT_LOADED:
    case VFMIG_HO_EVENT_LOAD_FAILED:
    case VFMIG_HO_EVENT_PREPARED:
    case VFMIG_HO_EVENT_PREPARE_FAILED:
        return h->role == VFMIG_HO_DESTINATION;
    default:
        return false;
    }
}

static void note_event(struct vfmig_handover *h, uint8_t kind)
{
    bool granted = h->state == VFMIG_HO_DST_GRANTED || h->state == VFMIG_HO_DST_FENCED;

    switch (kind) {
    case VFMIG_HO_EVENT_LINK_LOST:
        if (h->pending == VFMIG_HO_RECORD_OFFERED)
            h->abort = 1;
        break;
    case VFMIG_HO_EVENT_ABORT:
        if (h->role == VFMIG_HO_SOURCE || h->pending)
            h->abort = 1;
        else if (h->state == VFMIG_HO_DST_GRANTED)
            h->failed = 1;
        break;
    case VFMIG_HO_EVENT_LOADED:
        h->loaded = h->state == VFMIG_HO_DST_LOADING;
        break;
    case VFMIG_HO_EVENT_PREPARED:
        h->prepared = granted;
        h->failed = 0;
        break;
    case VFMIG_HO_EVENT_PREPARE_FAILED:
        h->prepared = 0;
        h->failed = granted;
        break;
    default:
        break;
    }
}

static int local_event(struct vfmig_handover *h, uint8_t kind, struct vfmig_ho_actions *acts)
{
    static const struct vfmig_ho_msg nothing;

    if (comes_any_time(h, kind)) {
        note_event(h, kind);
        if (h->pending)
            return 0;
    } else if (h->pending) {
        return -EINVAL;
    }
    const struct row *row = find_row(h, &nothing, kind);
    if (row)
        apply(h, row, acts);
    if (h->state == VFMIG_HO_SRC_GRANTED && kind == VFMIG_HO_EVENT_LINK_LOST && h->memory &&
        vfmig_sabotage("resume-after-grant")) {
        h->state = VFMIG_HO_SRC_RESUMED;
        acts->flags |= RESUME;
    }
    return row || comes_any_time(h, kind) ? 0 : -EINVAL;
}

int vfmig_handover_step(struct vfmig_handover *h, const struct vfmig_ho_event *event,
                        struct vfmig_ho_actions *ret_actions)
{
    *ret_actions = (struct vfmig_ho_actions){0};
    switch (event->kind) {
    case VFMIG_HO_EVENT_MESSAGE:
        return message_received(h, &event->msg, ret_actions);
    case VFMIG_HO_EVENT_JOURNAL_DONE:
        return journal_answered(h, /* done= */ true, ret_actions);
    case VFMIG_HO_EVENT_JOURNAL_FAILED:
        return journal_answered(h, /* done= */ false, ret_actions);
    default:
        if (event->kind == VFMIG_HO_EVENT_NONE || event->kind >= VFMIG_HO_EVENT_COUNT)
            return -EINVAL;
        return local_event(h, event->kind, ret_actions);
    }
}

int vfmig_handover_init(struct vfmig_handover *h, enum vfmig_ho_role role, const uint8_t *id,
                        uint32_t epoch, enum vfmig_ho_record record, bool memory)
{
    static const uint8_t source_states[] = {
        [VFMIG_HO_RECORD_NONE] = VFMIG_HO_SRC_IDLE,
        [VFMIG_HO_RECORD_OFFERED] = VFMIG_HO_SRC_OFFERED,
        [VFMIG_HO_RECORD_GRANT_SENT] = VFMIG_HO_SRC_GRANTED,
        [VFMIG_HO_RECORD_RELEASED] = VFMIG_HO_SRC_RELEASED,
        [VFMIG_HO_RECORD_SAVED] = VFMIG_HO_SRC_SAVED,
        [VFMIG_HO_RECORD_ABORTED] = VFMIG_HO_SRC_ABORTED,
        [VFMIG_HO_RECORD_RESUMED] = VFMIG_HO_SRC_RESUMED,
    };
    static const uint8_t destination_states[] = {
        [VFMIG_HO_RECORD_NONE] = VFMIG_HO_DST_LISTEN,
        [VFMIG_HO_RECORD_READY] = VFMIG_HO_DST_READY,
        [VFMIG_HO_RECORD_GRANTED] = VFMIG_HO_DST_GRANTED,
        [VFMIG_HO_RECORD_FENCED] = VFMIG_HO_DST_FENCED,
        [VFMIG_HO_RECORD_RUNNING] = VFMIG_HO_DST_RUNNING,
        [VFMIG_HO_RECORD_REFUSED] = VFMIG_HO_DST_REFUSED,
    };

    if (role != VFMIG_HO_SOURCE && role != VFMIG_HO_DESTINATION)
        return -EINVAL;
    if (!record_of_role((uint8_t)record, (uint8_t)role))
        return -EINVAL;
    *h = (struct vfmig_handover){.epoch = epoch, .role = (uint8_t)role, .record = (uint8_t)record};
    if (id)
        memcpy(h->id, id, sizeof(h->id));
    h->memory = memory;
    h->state = role == VFMIG_HO_SOURCE ? source_states[record] : destination_states[record];
    return 0;
}

bool vfmig_handover_waits(const struct vfmig_handover *h)
{
    if (h->pending)
        return false;
    switch (h->state) {
    case VFMIG_HO_SRC_OFFERED:
        return !h->memory;
    case VFMIG_HO_SRC_STOPPED:
    case VFMIG_HO_SRC_ABORTING:
    case VFMIG_HO_SRC_GRANTED:
    case VFMIG_HO_SRC_ABORTED:
    case VFMIG_HO_DST_READY:
        return true;
    case VFMIG_HO_DST_GRANTED:
    case VFMIG_HO_DST_FENCED:
        return h->prepared || h->failed || !h->memory;
    case VFMIG_HO_DST_RUNNING:
        return !h->acked;
    default:
        return false;
    }
}

bool vfmig_handover_may_run(const struct vfmig_handover *h)
{
    switch (h->state) {
    case VFMIG_HO_SRC_IDLE:
    case VFMIG_HO_SRC_OFFERED:
    case VFMIG_HO_SRC_ABORTED:
    case VFMIG_HO_SRC_RESUMED:
    case VFMIG_HO_DST_RUNNING:
        return h->memory;
    default:
        return false;
    }
}
