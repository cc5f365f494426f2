/* SPDX-License-Identifier: BSD-3-Clause */
/* The handover machine a second time, from the rules of docs/handover.md instead of its table: what
 * each state answers to each message, to time, to a link that is back, and to a record that was
 * written or was not. Every state, whatever it remembers, is asked. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "core/handover.h"

#define M(name) VFMIG_HO_MSG_##name
#define J(name) VFMIG_HO_RECORD_##name
#define O(name) VFMIG_HO_OUTCOME_##name
#define S(name) VFMIG_HO_##name

/* What should come: a record to write, or a message and acts; and where the machine then is. */
struct answer {
    unsigned journal, send, flags, outcome, next;
    bool refused; /* the event makes no sense */
};

enum { KEPT = O(RUNS_AT_DESTINATION) }; /* what the test has stored before; any name would do */

static const uint8_t id[VFMIG_HO_ID_BYTES] = "rules";

static struct answer stay(const struct vfmig_handover *h)
{
    return (struct answer){.next = h->state};
}

static struct answer say(const struct vfmig_handover *h, unsigned msg)
{
    return (struct answer){.send = msg, .next = h->state};
}

static struct answer write_down(const struct vfmig_handover *h, unsigned record)
{
    return (struct answer){.journal = record, .next = h->state};
}

static struct answer name_it(const struct vfmig_handover *h, unsigned outcome)
{
    return (struct answer){.outcome = outcome, .next = h->state};
}

/* --- what is said again and again --- */

static struct answer on_time(const struct vfmig_handover *h, bool link_up)
{
    switch (h->state) {
    case S(SRC_OFFERED):
        return say(h, h->memory ? M(OFFER) : h->abort ? M(ABORT) : M(QUERY));
    case S(SRC_STOPPED):
        return say(h, M(SEAL));
    case S(SRC_ABORTING):
        return write_down(h, J(ABORTED));
    case S(SRC_GRANTED):
        return say(h, h->memory && h->abort ? M(ABORT) : M(GRANT));
    case S(SRC_ABORTED):
        return say(h, M(ABORT));
    case S(DST_READY):
        return h->memory ? say(h, M(READY)) : write_down(h, J(REFUSED));
    case S(DST_GRANTED):
    case S(DST_FENCED):
        if (!h->memory)
            return write_down(h, J(REFUSED));
        if (h->prepared)
            return write_down(h, J(RUNNING));
        return h->failed && h->state == S(DST_GRANTED) ? say(h, M(QUERY)) : stay(h);
    case S(DST_RUNNING):
        return h->acked ? stay(h) : say(h, M(RUNNING));
    case S(DST_REFUSED):
        if (!link_up)
            return stay(h);
        return h->record == J(REFUSED) ? say(h, M(REFUSED)) : write_down(h, J(REFUSED));
    default:
        return stay(h);
    }
}

/* --- what the peer says --- */

static struct answer source_hears(const struct vfmig_handover *h, const struct vfmig_ho_msg *m)
{
    bool grants =
        h->state == S(SRC_STOPPED) || h->state == S(SRC_ABORTING) || h->state == S(SRC_GRANTED);

    switch (m->kind) {
    case M(READY):
        if (h->state == S(SRC_OFFERED) && !h->memory)
            return name_it(h, O(ONLY_AT_DESTINATION));
        if (h->state == S(SRC_STOPPED) && m->memory)
            return write_down(h, J(GRANT_SENT));
        if (h->state == S(SRC_GRANTED))
            return say(h, h->memory && h->abort ? M(ABORT) : M(GRANT));
        return h->state == S(SRC_ABORTED) || h->state == S(SRC_RESUMED) ? say(h, M(ABORT))
                                                                        : stay(h);
    case M(RUNNING):
        if (h->state == S(SRC_RELEASED))
            return say(h, M(RELEASED));
        if ((h->state == S(SRC_ABORTED) || h->state == S(SRC_RESUMED)) && h->memory)
            return name_it(h, O(CONFLICT));
        if (h->state == S(SRC_GRANTED) && h->memory && !m->memory)
            return name_it(h, O(DIED_AT_DESTINATION));
        if (grants || ((h->state == S(SRC_OFFERED) || h->state == S(SRC_ABORTED)) && !h->memory))
            return write_down(h, J(RELEASED));
        return stay(h);
    case M(REFUSED):
        if (m->record != J(REFUSED)) /* never an answer to a grant */
            return h->state == S(SRC_STOPPED)                ? write_down(h, J(ABORTED))
                   : h->state == S(SRC_OFFERED) && h->memory ? write_down(h, J(RESUMED))
                                                             : stay(h);
        return grants || h->state == S(SRC_OFFERED) || h->state == S(SRC_ABORTED)
                   ? write_down(h, J(RESUMED))
                   : stay(h);
    case M(QUERY):
        return say(h, M(OUTCOME));
    default:
        return stay(h);
    }
}

/* Whoever has its last word on record says it to everything that asks. */
static struct answer last_word(const struct vfmig_handover *h, unsigned kind)
{
    if (kind == M(OUTCOME) || kind == M(RELEASED))
        return stay(h);
    if (h->state == S(DST_RUNNING))
        return say(h, M(RUNNING));
    if (h->record != J(REFUSED) && kind != M(OFFER) && kind != M(SEAL))
        return write_down(h, J(REFUSED));
    return say(h, M(REFUSED));
}

static struct answer loading_hears(const struct vfmig_handover *h, unsigned kind)
{
    if (kind == M(SEAL))
        return h->loaded ? write_down(h, J(READY)) : stay(h);
    if (kind == M(QUERY) && h->sealed)
        return say(h, M(OUTCOME));
    return kind == M(ABORT) || kind == M(QUERY) ? write_down(h, J(REFUSED)) : stay(h);
}

static struct answer ready_hears(const struct vfmig_handover *h, const struct vfmig_ho_msg *m)
{
    struct answer ready = say(h, M(READY));

    if (m->kind == M(ABORT))
        return write_down(h, J(REFUSED));
    if (m->kind == M(GRANT))
        return write_down(h, h->memory ? J(GRANTED) : J(REFUSED));
    if (m->kind == M(QUERY) && !h->memory)
        return write_down(h, J(REFUSED));
    if (m->kind == M(QUERY) && !m->memory)
        ready.outcome = O(ONLY_AT_DESTINATION);
    return h->memory && m->kind != M(OUTCOME) && m->kind != M(RELEASED) ? ready : stay(h);
}

static struct answer granted_hears(const struct vfmig_handover *h, const struct vfmig_ho_msg *m)
{
    bool by_grant = h->state == S(DST_GRANTED);

    switch (m->kind) {
    case M(GRANT):
        return by_grant && !h->memory ? write_down(h, J(REFUSED)) : say(h, M(OUTCOME));
    case M(ABORT): /* only to a source that has the memory; a fenced image is stale then */
        return !by_grant || m->memory ? write_down(h, J(REFUSED)) : stay(h);
    case M(QUERY):
        return say(h, M(OUTCOME));
    case M(OUTCOME):
        return by_grant && h->memory && h->failed && m->memory && m->record == J(GRANT_SENT)
                   ? write_down(h, J(REFUSED))
                   : stay(h);
    default:
        return stay(h);
    }
}

static struct answer destination_hears(const struct vfmig_handover *h, const struct vfmig_ho_msg *m)
{
    switch (h->state) {
    case S(DST_LISTEN):
        if (m->kind == M(OFFER))
            return (struct answer){.next = S(DST_LOADING)};
        return m->kind == M(OUTCOME) || m->kind == M(RELEASED) ? stay(h)
                                                               : write_down(h, J(REFUSED));
    case S(DST_LOADING):
        return loading_hears(h, m->kind);
    case S(DST_READY):
        return ready_hears(h, m);
    case S(DST_RUNNING):
    case S(DST_REFUSED):
        return last_word(h, m->kind);
    default:
        return granted_hears(h, m);
    }
}

/* --- what happens here --- */

static struct answer no_sense(const struct vfmig_handover *h)
{
    return (struct answer){.next = h->state, .refused = true};
}

static struct answer begun(const struct vfmig_handover *h)
{
    struct answer open = say(h, h->state == S(SRC_OFFERED)   ? M(QUERY)
                                : h->state == S(SRC_GRANTED) ? M(GRANT)
                                                             : M(ABORT));

    open.outcome = O(UNDECIDED);
    switch (h->state) {
    case S(SRC_IDLE):
        return write_down(h, J(OFFERED));
    case S(SRC_OFFERED):
    case S(SRC_GRANTED):
    case S(SRC_ABORTED):
        return open;
    case S(SRC_RESUMED):
        return h->memory ? no_sense(h) : name_it(h, O(DIED_AT_SOURCE));
    case S(SRC_RELEASED):
        return name_it(h, O(RUNS_AT_DESTINATION));
    case S(SRC_SAVED):
        return name_it(h, O(SAVED));
    case S(DST_LISTEN):
        return stay(h);
    case S(DST_READY):
    case S(DST_GRANTED):
    case S(DST_FENCED): /* nothing had run */
        return h->memory ? no_sense(h) : write_down(h, J(REFUSED));
    case S(DST_RUNNING):
        return h->memory ? no_sense(h)
                         : (struct answer){0, M(RUNNING), 0, O(DIED_AT_DESTINATION), h->state, 0};
    case S(DST_REFUSED):
        return (struct answer){0, M(REFUSED), 0, O(REFUSED), h->state, 0};
    default:
        return no_sense(h);
    }
}

static struct answer aborted(const struct vfmig_handover *h)
{
    switch (h->state) {
    case S(SRC_IDLE):
        return (struct answer){0, 0, VFMIG_HO_ACT_RESUME, O(RUNS_AT_SOURCE), S(SRC_RESUMED), 0};
    case S(SRC_OFFERED):
        return h->memory ? write_down(h, J(RESUMED)) : say(h, M(ABORT));
    case S(SRC_STOPPED):
    case S(SRC_ABORTING):
        return write_down(h, J(ABORTED));
    case S(SRC_GRANTED):
        return h->memory ? say(h, M(ABORT)) : stay(h);
    case S(DST_LOADING):
    case S(DST_READY):
        return write_down(h, J(REFUSED));
    case S(DST_GRANTED): /* whether the source still has it is asked first */
        return h->memory ? (struct answer){0, M(QUERY), 0, O(PAUSED_AT_DESTINATION), h->state, 0}
                         : stay(h);
    default:
        return stay(h);
    }
}

static struct answer unlinked(const struct vfmig_handover *h)
{
    switch (h->state) {
    case S(SRC_OFFERED):
        return h->memory ? write_down(h, J(RESUMED)) : stay(h);
    case S(SRC_STOPPED):
        return write_down(h, J(ABORTED));
    case S(SRC_GRANTED):
        return h->outcome == O(DIED_AT_DESTINATION) ? stay(h) : name_it(h, O(UNDECIDED));
    case S(DST_LOADING):
        return h->sealed ? stay(h) : write_down(h, J(REFUSED));
    case S(DST_READY):
        return h->outcome == O(ONLY_AT_DESTINATION) ? stay(h) : name_it(h, O(UNDECIDED));
    default:
        return stay(h);
    }
}

static struct answer source_does(const struct vfmig_handover *h, unsigned kind)
{
    bool dead_there = h->state == S(SRC_GRANTED) && h->outcome == O(DIED_AT_DESTINATION);

    if (kind == VFMIG_HO_EVENT_STOPPED && h->state == S(SRC_OFFERED) && h->memory)
        return (struct answer){0, M(SEAL), 0, 0, S(SRC_STOPPED), 0};
    if (kind == VFMIG_HO_EVENT_SAVED && h->state == S(SRC_STOPPED))
        return write_down(h, J(SAVED));
    if (kind == VFMIG_HO_EVENT_DISCARD && h->state == S(SRC_SAVED))
        return write_down(h, J(RESUMED));
    if (kind == VFMIG_HO_EVENT_DISCARD && dead_there)
        return write_down(h, J(RELEASED));
    return no_sense(h);
}

static struct answer destination_does(const struct vfmig_handover *h, unsigned kind)
{
    bool prepares = (h->state == S(DST_GRANTED) || h->state == S(DST_FENCED)) && h->memory;
    bool runs = h->state == S(DST_RUNNING);

    switch (kind) {
    case VFMIG_HO_EVENT_LOADED:
        return h->state == S(DST_LOADING) && h->sealed ? write_down(h, J(READY)) : stay(h);
    case VFMIG_HO_EVENT_LOAD_FAILED:
        return h->state == S(DST_LOADING) ? write_down(h, J(REFUSED)) : stay(h);
    case VFMIG_HO_EVENT_PREPARED:
        return prepares ? write_down(h, J(RUNNING)) : stay(h);
    case VFMIG_HO_EVENT_PREPARE_FAILED:
        return prepares ? (struct answer){0,        h->state == S(DST_GRANTED) ? M(QUERY) : 0,
                                          0,        O(PAUSED_AT_DESTINATION),
                                          h->state, 0}
                        : stay(h);
    case VFMIG_HO_EVENT_RUN_DONE:
        return runs ? name_it(h, O(RUNS_AT_DESTINATION)) : no_sense(h);
    case VFMIG_HO_EVENT_RUN_FAILED:
        return runs ? name_it(h, O(PAUSED_AT_DESTINATION)) : no_sense(h);
    default: /* FENCED */
        if (h->state == S(DST_READY) && h->memory)
            return write_down(h, J(FENCED));
        return h->state == S(DST_GRANTED) && h->memory ? stay(h) : no_sense(h);
    }
}

static struct answer happens(const struct vfmig_handover *h, unsigned kind)
{
    bool source = h->role == VFMIG_HO_SOURCE;
    bool source_s = kind == VFMIG_HO_EVENT_STOPPED || kind == VFMIG_HO_EVENT_SAVED ||
                    kind == VFMIG_HO_EVENT_DISCARD;

    switch (kind) {
    case VFMIG_HO_EVENT_START:
        return begun(h);
    case VFMIG_HO_EVENT_ABORT:
        return aborted(h);
    case VFMIG_HO_EVENT_LINK_LOST:
        return unlinked(h);
    default:
        return source != source_s ? no_sense(h)
               : source           ? source_does(h, kind)
                                  : destination_does(h, kind);
    }
}

/* --- records --- */


static struct answer written(const struct vfmig_handover *h)
{
    switch (h->pending) {
    case J(OFFERED):
        return (struct answer){0, M(OFFER), 0, 0, S(SRC_OFFERED), 0};
    case J(GRANT_SENT):
        return (struct answer){0, M(GRANT), 0, 0, S(SRC_GRANTED), 0};
    case J(RELEASED):
        return (struct answer){0, M(RELEASED), VFMIG_HO_ACT_RELEASE, KEPT, S(SRC_RELEASED), 0};
    case J(SAVED):
        return (struct answer){0, 0, 0, KEPT, S(SRC_SAVED), 0};
    case J(ABORTED):
        return (struct answer){0, M(ABORT), VFMIG_HO_ACT_RESUME, KEPT, S(SRC_ABORTED), 0};
    case J(RESUMED): /* an aborted one runs already; one that was never sealed tells it */
        return (struct answer){0,
                               h->state == S(SRC_OFFERED) && h->memory ? M(ABORT) : 0,
                               h->memory && h->state != S(SRC_ABORTED) ? VFMIG_HO_ACT_RESUME : 0,
                               KEPT,
                               S(SRC_RESUMED),
                               0};
    case J(READY):
        return (struct answer){0, M(READY), 0, 0, S(DST_READY), 0};
    case J(GRANTED):
        return (struct answer){0, 0, VFMIG_HO_ACT_PREPARE, 0, S(DST_GRANTED), 0};
    case J(FENCED):
        return (struct answer){0, 0, VFMIG_HO_ACT_PREPARE, 0, S(DST_FENCED), 0};
    case J(RUNNING):
        return (struct answer){0, M(RUNNING), VFMIG_HO_ACT_RUN, 0, S(DST_RUNNING), 0};
    default:
        return (struct answer){0,
                               M(REFUSED),
                               h->state == S(DST_REFUSED) ? 0 : VFMIG_HO_ACT_RELEASE,
                               h->state == S(DST_REFUSED) ? 0 : KEPT,
                               S(DST_REFUSED),
                               0};
    }
}

static struct answer source_unwritten(const struct vfmig_handover *h)
{
    bool was_ready = h->state == S(SRC_STOPPED) || h->state == S(SRC_ABORTING);

    switch (h->pending) {
    case J(OFFERED): /* nothing was sent yet */
        return (struct answer){0, 0, VFMIG_HO_ACT_RESUME, O(RUNS_AT_SOURCE), S(SRC_RESUMED), 0};
    case J(GRANT_SENT): /* it may be on disk after all */
        return (struct answer){J(ABORTED), 0, 0, 0, S(SRC_ABORTING)};
    case J(SAVED):
        return (struct answer){0, 0, 0, O(SAVED), S(SRC_SAVED), 0};
    case J(RELEASED):
        return (struct answer){0, 0, 0, O(UNDECIDED), was_ready ? S(SRC_GRANTED) : h->state};
    case J(ABORTED):
        return h->state == S(SRC_STOPPED) ? written(h)
                                          : (struct answer){0, M(ABORT), 0, O(UNDECIDED), h->state};
    default: /* RESUMED: the guest does not wait for a disk */
        if (h->state == S(SRC_ABORTED))
            return stay(h);
        if (h->memory)
            return written(h);
        return name_it(h, h->state == S(SRC_SAVED) ? O(SAVED) : O(UNDECIDED));
    }
}

static struct answer destination_unwritten(const struct vfmig_handover *h)
{
    if (h->state == S(DST_LOADING))
        return h->pending == J(READY) ? write_down(h, J(REFUSED)) : written(h);
    if (h->state == S(DST_REFUSED))
        return say(h, M(REFUSED));
    if (h->state == S(DST_LISTEN))
        return stay(h);
    return name_it(h, h->state == S(DST_READY) ? O(UNDECIDED) : O(PAUSED_AT_DESTINATION));
}

/* What it will be called once the record is durable. */
static unsigned name_of(const struct vfmig_handover *h, unsigned record,
                        const struct vfmig_ho_event *event)
{
    /* Stopped and not granted yet: no process comes back into these, so the memory is there. */
    bool stands = h->state == S(SRC_STOPPED) || h->state == S(SRC_ABORTING);

    switch (record) {
    case J(RESUMED):
        return h->memory || stands ? O(RUNS_AT_SOURCE) : O(DIED_AT_SOURCE);
    case J(ABORTED):
        return O(RUNS_AT_SOURCE);
    case J(RELEASED): /* who runs it says whether it still does; an operator only discards a dead
                         one */
        return event->msg.memory ? O(RUNS_AT_DESTINATION) : O(DIED_AT_DESTINATION);
    case J(SAVED):
        return O(SAVED);
    case J(REFUSED):
        return O(REFUSED);
    default:
        return O(NONE);
    }
}

/* --- the machine is asked --- */

static void compare(const struct vfmig_handover *before, const struct vfmig_ho_event *event,
                    const struct answer *want)
{
    struct vfmig_handover h = *before;
    struct vfmig_ho_actions acts;
    unsigned outcome = want->outcome == before->outcome ? 0 : want->outcome;

    assert_int_equal(vfmig_handover_step(&h, event, &acts), want->refused ? -EINVAL : 0);
    if (acts.journal != want->journal || acts.send.kind != want->send ||
        (acts.flags & ~VFMIG_HO_ACT_REPORT) != want->flags || h.state != want->next ||
        (acts.flags & VFMIG_HO_ACT_REPORT ? acts.outcome : 0) != outcome)
        fail_msg("%s (memory %u, record %s, writes %s) event %u message %s: writes %s, says %s, "
                 "flags %x, "
                 "is %s, calls it %s",
                 vfmig_ho_state_name(before->state), before->memory,
                 vfmig_ho_record_name(before->record), vfmig_ho_record_name(before->pending),
                 event->kind, vfmig_ho_msg_name(event->msg.kind),
                 vfmig_ho_record_name(acts.journal), vfmig_ho_msg_name(acts.send.kind), acts.flags,
                 vfmig_ho_state_name(h.state), vfmig_ho_outcome_name(acts.outcome));
    assert_int_equal(h.pending, want->journal);
    if (want->journal && h.kept != name_of(before, want->journal, event))
        fail_msg("%s event %u message %s memory %u/%u: %s kept as %s",
                 vfmig_ho_state_name(before->state), event->kind,
                 vfmig_ho_msg_name(event->msg.kind), before->memory, event->msg.memory,
                 vfmig_ho_record_name(want->journal), vfmig_ho_outcome_name(h.kept));
}

/* Calls for each state and whatever it may remember. */
static void each(void (*ask)(const struct vfmig_handover *h))
{
    for (unsigned state = 0; state < VFMIG_HO_STATE_COUNT; state++) {
        for (unsigned bits = 0; bits < 64; bits++) {
            bool source = state < S(DST_LISTEN);
            struct vfmig_handover h;
            vfmig_handover_init(&h, source ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION, id, 1,
                                VFMIG_HO_RECORD_NONE, bits & 1);
            h.state = (uint8_t)state;
            h.abort = source && bits & 2;
            h.sealed = bits >> 1 & 1;
            h.loaded = bits >> 2 & 1;
            h.prepared = bits >> 3 & 1;
            h.failed = bits >> 4 & 1;
            h.acked = bits >> 5 & 1;
            h.record = state == S(DST_REFUSED) && bits & 2 ? J(REFUSED) : J(NONE);
            h.kept = KEPT; /* of an earlier record: nobody asks for it again */
            ask(&h);
        }
    }
}

static void ask_time(const struct vfmig_handover *h)
{
    static const uint8_t kinds[] = {VFMIG_HO_EVENT_RETRY, VFMIG_HO_EVENT_LINK_UP};

    for (unsigned i = 0; i < 2; i++) {
        struct vfmig_ho_event event = {.kind = kinds[i]};
        struct answer want = on_time(h, i);
        compare(h, &event, &want);
    }
}

static void ask_local(const struct vfmig_handover *asked)
{
    static const uint8_t outcomes[] = {O(NONE), O(DIED_AT_DESTINATION), O(ONLY_AT_DESTINATION)};

    for (unsigned kind = 1; kind < VFMIG_HO_EVENT_COUNT; kind++) {
        bool elsewhere = kind == VFMIG_HO_EVENT_MESSAGE || kind == VFMIG_HO_EVENT_RETRY ||
                         kind == VFMIG_HO_EVENT_LINK_UP || kind == VFMIG_HO_EVENT_JOURNAL_DONE ||
                         kind == VFMIG_HO_EVENT_JOURNAL_FAILED;
        for (unsigned i = 0; i < sizeof(outcomes) && !elsewhere; i++) {
            struct vfmig_handover h = *asked;
            h.outcome = outcomes[i];
            struct answer want = happens(&h, kind);
            compare(&h, &(struct vfmig_ho_event){.kind = (uint8_t)kind}, &want);
        }
    }
}

static void ask_messages(const struct vfmig_handover *h)
{
    bool source = h->role == VFMIG_HO_SOURCE;
    static const uint8_t to_source[] = {M(READY), M(RUNNING), M(REFUSED), M(QUERY)};
    static const uint8_t to_destination[] = {M(OFFER), M(SEAL),    M(GRANT),   M(ABORT),
                                             M(QUERY), M(OUTCOME), M(RELEASED)};
    static const uint8_t records[2][3] = {{J(NONE), J(OFFERED), J(GRANT_SENT)},
                                          {J(NONE), J(READY), J(REFUSED)}};

    for (unsigned i = 0; i < (source ? sizeof(to_source) : sizeof(to_destination)); i++) {
        for (unsigned n = 0; n < 6; n++) {
            struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE, .msg = {.epoch = 1}};
            memcpy(event.msg.id, id, sizeof(id));
            event.msg.kind = source ? to_source[i] : to_destination[i];
            event.msg.memory = n & 1;
            event.msg.record = records[source][n / 2];
            struct answer want =
                source ? source_hears(h, &event.msg) : destination_hears(h, &event.msg);
            compare(h, &event, &want);
        }
    }
}

/* The answer to a QUERY is as good as the message that went with the record, and no other record's is: a grant is never
 * in it. */
static void ask_outcomes(const struct vfmig_handover *h)
{
    static const uint8_t meanings[VFMIG_HO_RECORD_COUNT] = {
        [J(READY)] = M(READY),   [J(RUNNING)] = M(RUNNING), [J(REFUSED)] = M(REFUSED),
        [J(ABORTED)] = M(ABORT), [J(RESUMED)] = M(ABORT),   [J(RELEASED)] = M(RELEASED),
    };
    bool source = h->role == VFMIG_HO_SOURCE;

    for (unsigned record = 1; record < VFMIG_HO_RECORD_COUNT; record++) {
        for (unsigned memory = 0; memory < 2 && (record >= J(READY)) == source; memory++) {
            struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE, .msg = {.epoch = 1}};
            memcpy(event.msg.id, id, sizeof(id));
            event.msg.kind = meanings[record] ? meanings[record] : M(OUTCOME);
            event.msg.memory = (uint8_t)memory;
            event.msg.record = (uint8_t)record;
            struct answer want = source ? source_hears(h, &event.msg) : destination_hears(h, &event.msg);
            event.msg.kind = M(OUTCOME);
            compare(h, &event, &want);
        }
    }
}

/* Asking again is worth while where there is something to say or to write again; an offer is said
 * again but not waited for, and a fenced guest that could not be prepared waits for its operator.
 */
static void ask_waits(const struct vfmig_handover *h)
{
    struct answer again = on_time(h, /* link_up= */ false);
    bool waits = again.send || again.journal;
    bool running = h->state == S(SRC_IDLE) || h->state == S(SRC_OFFERED) ||
                   h->state == S(SRC_ABORTED) || h->state == S(SRC_RESUMED) ||
                   h->state == S(DST_RUNNING);
    struct vfmig_handover writing = *h;

    if (h->state == S(SRC_OFFERED))
        waits = !h->memory;
    if (h->state == S(DST_FENCED))
        waits = waits || h->failed;
    assert_int_equal(vfmig_handover_waits(h), waits);
    assert_int_equal(vfmig_handover_may_run(h), running && h->memory);
    writing.pending = J(REFUSED);
    assert_false(vfmig_handover_waits(&writing));
}

/* Which records a state writes. */
static bool writes(unsigned state, unsigned record, bool memory)
{
    switch (state) {
    case S(SRC_IDLE):
        return record == J(OFFERED);
    case S(SRC_OFFERED):
        return record == J(RESUMED) || (record == J(RELEASED) && !memory);
    case S(SRC_STOPPED):
        return record != J(OFFERED) && record < J(READY) && record && memory;
    case S(SRC_ABORTING):
        return (record == J(ABORTED) || record == J(RESUMED) || record == J(RELEASED)) && memory;
    case S(SRC_GRANTED):
    case S(SRC_ABORTED):
        return record == J(RESUMED) || record == J(RELEASED);
    case S(SRC_SAVED):
        return record == J(RESUMED);
    case S(DST_LISTEN):
    case S(DST_REFUSED):
        return record == J(REFUSED);
    case S(DST_LOADING):
        return record == J(READY) || record == J(REFUSED);
    case S(DST_READY):
        return record == J(GRANTED) || record == J(FENCED) || record == J(REFUSED);
    case S(DST_GRANTED):
    case S(DST_FENCED):
        return record == J(RUNNING) || record == J(REFUSED);
    default:
        return false;
    }
}

static void ask_records(const struct vfmig_handover *asked)
{
    for (unsigned record = 1; record < VFMIG_HO_RECORD_COUNT; record++) {
        struct vfmig_handover h = *asked;
        if (!writes(h.state, record, h.memory) || h.abort)
            continue;
        h.pending = (uint8_t)record;
        h.kept = KEPT;
        struct answer done = written(&h), not_done = h.role == VFMIG_HO_SOURCE
                                                         ? source_unwritten(&h)
                                                         : destination_unwritten(&h);
        compare(&h, &(struct vfmig_ho_event){.kind = VFMIG_HO_EVENT_JOURNAL_DONE}, &done);
        compare(&h, &(struct vfmig_ho_event){.kind = VFMIG_HO_EVENT_JOURNAL_FAILED}, &not_done);
    }
}

/* A later attempt of the same migration finds nothing of the one before; whoever has more of it than a load does not
 * hear of another. */
static void ask_later_attempt(const struct vfmig_handover *asked)
{
    bool idle = asked->state == S(DST_LISTEN) || asked->state == S(DST_LOADING) || asked->state == S(DST_REFUSED);
    struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE, .msg = {.epoch = 2, .kind = M(OFFER)}};
    struct vfmig_handover h = *asked;
    struct vfmig_ho_actions acts;

    if (h.role != VFMIG_HO_DESTINATION)
        return;
    memcpy(event.msg.id, id, sizeof(id));
    h.outcome = O(REFUSED);
    assert_int_equal(vfmig_handover_step(&h, &event, &acts), idle ? 0 : -ESTALE);
    if (!idle)
        return;
    assert_int_equal(h.state, S(DST_LOADING));
    assert_int_equal(h.epoch, 2);
    assert_int_equal(acts.flags, asked->state == S(DST_LOADING) ? VFMIG_HO_ACT_DROP_LOAD : 0);
    assert_int_equal(h.outcome, O(NONE));
    assert_int_equal(h.record, J(NONE));
    assert_false(h.memory || h.sealed || h.loaded || h.prepared || h.failed);

    struct vfmig_handover other[3] = {*asked, *asked, *asked};
    other[0].epoch = 3; /* that one is the later one */
    other[1].id[0]++;
    other[2].pending = J(REFUSED);
    for (unsigned i = 0; i < 3; i++) {
        h = other[i];
        assert_int_equal(vfmig_handover_step(&h, &event, &acts), -ESTALE);
        assert_memory_equal(&h, &other[i], sizeof(h));
    }
}

static void time_and_links(void **state)
{
    each(ask_time);
}

static void what_happens_here(void **state)
{
    each(ask_local);
}

static void who_waits_and_who_may_run(void **state)
{
    each(ask_waits);
}

static void a_journal_is_continued_where_it_ended(void **state)
{
    static const uint8_t states[VFMIG_HO_RECORD_COUNT] = {
        [J(NONE)] = S(SRC_IDLE),          [J(OFFERED)] = S(SRC_OFFERED),
        [J(GRANT_SENT)] = S(SRC_GRANTED), [J(RELEASED)] = S(SRC_RELEASED),
        [J(SAVED)] = S(SRC_SAVED),        [J(ABORTED)] = S(SRC_ABORTED),
        [J(RESUMED)] = S(SRC_RESUMED),    [J(READY)] = S(DST_READY),
        [J(GRANTED)] = S(DST_GRANTED),    [J(FENCED)] = S(DST_FENCED),
        [J(RUNNING)] = S(DST_RUNNING),    [J(REFUSED)] = S(DST_REFUSED),
    };

    for (unsigned record = 0; record < VFMIG_HO_RECORD_COUNT; record++) {
        struct vfmig_handover h;
        assert_int_equal(
            vfmig_handover_init(&h, record < J(READY) ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION, id,
                                1, record, false),
            0);
        assert_int_equal(h.state, states[record]);
    }
}

static void messages(void **state)
{
    each(ask_messages);
}

static void answers(void **state)
{
    each(ask_outcomes);
}

static void later_attempts(void **state)
{
    each(ask_later_attempt);
}

static void records(void **state)
{
    each(ask_records);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_and_links),
        cmocka_unit_test(what_happens_here),
        cmocka_unit_test(who_waits_and_who_may_run),
        cmocka_unit_test(a_journal_is_continued_where_it_ended),
        cmocka_unit_test(messages),
        cmocka_unit_test(answers),
        cmocka_unit_test(later_attempts),
        cmocka_unit_test(records),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
