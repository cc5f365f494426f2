/* SPDX-License-Identifier: BSD-3-Clause */
/* A shell around the device machine: it carries actions out on a device that knows what may be
 * asked of it, and writes them down, one letter each. */
#ifndef VFMIG_TESTS_DEV_RIG_H
#define VFMIG_TESTS_DEV_RIG_H

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "core/dev.h"

#define R 1u
#define S 2u
#define Z 4u
#define N 8u

#define NEVER 99u

struct rig {
    struct vfmig_dev dev;
    char trace[64]; /* letters of rig_letter() */
    unsigned length;
    /* the device as it really is */
    bool runs, loading, captured, logging, gate_open, latched;
    char stream; /* '<' saving, '>' loading, 0 none */
    /* the awaited action */
    struct vfmig_dev_action waiting;
    bool waits;
    uint64_t now;
    /* answers */
    unsigned replies;
    uint64_t reply_id[8];
    int reply_err[8];
};

static inline char rig_letter(const struct vfmig_dev_action *action)
{
    static const char calls[] = " eplzcrwR", types[] = " fDaXO()-\0<>|.!";

    return action->type == VFMIG_DEV_ACT_CALL ? calls[action->call] : types[action->type];
}

static inline void rig_note(struct rig *rig, char letter)
{
    assert_in_range(rig->length, 0, sizeof(rig->trace) - 2);
    rig->trace[rig->length++] = letter;
    rig->trace[rig->length] = 0;
}

/* What a device may rely on when it is called: the rules of design section 4, row A18, seen from
 * the device's end. */
static inline void rig_call_begins(struct rig *rig, enum vfmig_dev_call call)
{
    switch (call) {
    case VFMIG_DEV_CALL_STOP:
        assert_true(rig->runs);
        assert_false(rig->gate_open); /* C34 */
        rig->runs = false;
        break;
    case VFMIG_DEV_CALL_START:
        assert_false(rig->runs || rig->loading); /* no run before the load */
        assert_false(rig->gate_open);            /* the gate opens last */
        break;
    case VFMIG_DEV_CALL_CAPTURE:
        assert_false(rig->runs || rig->loading || rig->captured); /* no capture before load */
        break;
    case VFMIG_DEV_CALL_SELF_RESET:
        assert_false(rig->runs || rig->captured || rig->logging); /* never S with Z */
        break;
    case VFMIG_DEV_CALL_LOAD:
        assert_true(rig->loading && !rig->runs);
        break;
    case VFMIG_DEV_CALL_END_STREAM:
        assert_true(rig->captured || rig->logging);
        break;
    case VFMIG_DEV_CALL_PRECOPY_START:
        assert_true(rig->runs && !rig->logging && !rig->captured); /* no S to SR */
        break;
    case VFMIG_DEV_CALL_RESET:
        rig->runs = false;
        break;
    default:
        fail_msg("call %d", (int)call);
    }
}

static inline void rig_call_ends(struct rig *rig, enum vfmig_dev_call call)
{
    switch (call) {
    case VFMIG_DEV_CALL_START:
        rig->runs = true;
        break;
    case VFMIG_DEV_CALL_CAPTURE:
        rig->captured = true;
        rig->logging = false;
        break;
    case VFMIG_DEV_CALL_SELF_RESET:
        rig->loading = true;
        break;
    case VFMIG_DEV_CALL_LOAD:
        rig->loading = false;
        break;
    case VFMIG_DEV_CALL_END_STREAM:
        rig->captured = rig->logging = false;
        break;
    case VFMIG_DEV_CALL_PRECOPY_START:
        rig->logging = true;
        break;
    case VFMIG_DEV_CALL_RESET:
        rig->runs = true;
        rig->loading = rig->captured = rig->logging = false;
        break;
    default:
        break;
    }
}

static inline void rig_act(struct rig *rig, const struct vfmig_dev_action *action)
{
    rig_note(rig, rig_letter(action));
    switch (action->type) {
    case VFMIG_DEV_ACT_GATE_SHUT:
    case VFMIG_DEV_ACT_GATE_CUT:
        assert_true(rig->latched); /* no interrupt slips out behind a shut gate (A6) */
        rig->gate_open = false;
        break;
    case VFMIG_DEV_ACT_GATE_OPEN:
        assert_true(rig->runs);
        rig->gate_open = true;
        break;
    case VFMIG_DEV_ACT_IRQ_LATCH:
        rig->latched = true;
        break;
    case VFMIG_DEV_ACT_IRQ_DELIVER:
        assert_true(rig->gate_open);
        rig->latched = false;
        break;
    case VFMIG_DEV_ACT_STREAM_SAVE:
    case VFMIG_DEV_ACT_STREAM_LOAD:
        assert_int_equal(rig->stream, 0);
        rig->stream = rig_letter(action);
        break;
    case VFMIG_DEV_ACT_STREAM_DROP:
        assert_int_not_equal(rig->stream, 0);
        rig->stream = 0;
        break;
    case VFMIG_DEV_ACT_CALL:
        rig_call_begins(rig, action->call);
        break;
    case VFMIG_DEV_ACT_REPLY:
        assert_in_range(rig->replies, 0, 7);
        rig->reply_id[rig->replies] = action->id;
        rig->reply_err[rig->replies++] = action->err;
        break;
    default:
        break;
    }
}

/* What must hold after every event, whatever it was. */
static inline void rig_check(const struct rig *rig)
{
    const struct vfmig_dev *dev = &rig->dev;
    uint32_t bits = vfmig_dev_bits(dev);

    assert_int_equal(vfmig_dev_dma_allowed(dev), rig->gate_open);
    assert_int_equal(vfmig_dev_irq_latched(dev), rig->latched);
    assert_int_equal(vfmig_dev_saving(dev), rig->stream == '<');
    assert_int_equal(vfmig_dev_loading(dev), rig->stream == '>');
    assert_false(rig->stream == '<' && rig->loading);
    if (bits == 6) {
        assert_false(vfmig_dev_mmio_allowed(dev));
        assert_false(rig->gate_open);
        assert_int_equal(rig->stream, 0);
    } else {
        assert_int_equal(vfmig_dev_mmio_allowed(dev), rig->runs);
    }
    if (vfmig_dev_busy(dev) || bits == 6)
        return;
    /* At rest the register says what is true of the device. */
    assert_int_equal(rig->runs, (bits & R) != 0);
    assert_int_equal(rig->gate_open, !vfmig_bits_quiet(bits));
    assert_int_equal(vfmig_dev_is_quiet(dev), vfmig_bits_quiet(bits));
    assert_int_equal(rig->loading, (bits & Z) != 0);
    assert_int_equal(rig->captured, (bits & S) && !(bits & R));
    assert_int_equal(rig->stream, (bits & S) ? '<' : (bits & Z) ? '>' : 0);
    assert_int_equal(vfmig_dev_precopying(dev), (bits & (S | R)) == (S | R));
    assert_int_equal(vfmig_dev_deadline(dev), UINT64_MAX);
}

static inline void rig_event(struct rig *rig, struct vfmig_dev_event event)
{
    struct vfmig_dev_actions actions;

    assert_int_equal(vfmig_dev_step(&rig->dev, &event, rig->now, &actions), 0);
    assert_in_range(actions.count, 0, VFMIG_DEV_MAX_ACTIONS);
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct vfmig_dev_action *action = &actions.list[i];
        rig_act(rig, action);
        if (action->type == VFMIG_DEV_ACT_CALL || action->type == VFMIG_DEV_ACT_GATE_SHUT) {
            assert_int_equal(i, actions.count - 1); /* an awaited action is the last one */
            rig->waiting = *action;
            rig->waits = true;
        }
    }
    rig_check(rig);
}

/* Ends the awaited action. */
static inline void rig_done(struct rig *rig, int err)
{
    struct vfmig_dev_action was = rig->waiting;

    assert_true(rig->waits);
    rig->waits = false;
    if (!err && was.type == VFMIG_DEV_ACT_CALL)
        rig_call_ends(rig, was.call);
    else if (err && was.call == VFMIG_DEV_CALL_STOP)
        rig->runs = true; /* it could not be stopped */
    rig_event(rig, (struct vfmig_dev_event){
                       .type = VFMIG_DEV_EVENT_STEP_DONE, .token = was.token, .err = err});
}

static inline void rig_ask(struct rig *rig, enum vfmig_dev_event_type type, uint32_t value,
                           uint64_t id)
{
    rig_event(rig, (struct vfmig_dev_event){.type = type, .value = value, .id = id});
}

static inline void rig_start(struct rig *rig, uint32_t features, uint64_t timeout_ns)
{
    memset(rig, 0, sizeof(*rig));
    rig->runs = rig->gate_open = true;
    rig->now = 1000;
    assert_int_equal(vfmig_dev_init(&rig->dev, features, timeout_ns), 0);
    rig_check(rig);
}

/* One write with every step a success; returns the answer. */
static inline int rig_write(struct rig *rig, uint32_t value)
{
    unsigned before = rig->replies = 0;

    rig_ask(rig, VFMIG_DEV_EVENT_WRITE_V1, value, 1);
    while (rig->waits)
        rig_done(rig, 0);
    assert_int_equal(rig->replies, before + 1);
    return rig->reply_err[0];
}

static inline void rig_forget(struct rig *rig)
{
    rig->replies = 0;
    rig->length = 0;
    rig->trace[0] = 0;
}

/* A device in the given v1 value; 6 by a load that fails. */
static inline void rig_reach(struct rig *rig, uint32_t features, uint32_t bits)
{
    rig_start(rig, features, 0);
    if (bits == 6) {
        assert_int_equal(rig_write(rig, Z), 0);
        rig_ask(rig, VFMIG_DEV_EVENT_WRITE_V1, 0, 1);
        rig_done(rig, -EBADMSG);
    } else {
        assert_int_equal(rig_write(rig, bits), 0);
    }
    assert_int_equal(vfmig_dev_bits(&rig->dev), bits);
    rig_forget(rig);
}

#endif
