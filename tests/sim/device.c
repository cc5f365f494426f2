/* SPDX-License-Identifier: BSD-3-Clause */
/* A simulated device around the real machine (core/dev.c) and the real device stream
 * (core/devstream.c): commands become DMA and an interrupt each, and everything it took is in its
 * chain. */
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/state.h"

enum { WAIT_NOTHING = 0, WAIT_QUIET, WAIT_CALL };
enum { NOT_CAPTURED = 0, CAPTURED, FINAL_SAVED, END_SAVED };
enum { FORMAT = 7, BATCH = 6 };

#define DRAIN_NS (60 * MS)

/* The guest's device changes, so what it must be changes. */
static void note(unsigned side, unsigned device)
{
    if (side == sim.owner)
        sim.dev[device] = sim.side[side].dev[device].is;
}

void device_drop(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    for (unsigned i = 0; i < d->in_count; i++)
        free(d->in[i]);
    d->in_count = 0;
}

void device_fresh(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    device_drop(side, device);
    memset(d, 0, sizeof(*d));
    vfmig_dev_init(&d->m, sim.features[device], DRAIN_NS);
}

/* --- DMA --- */

static bool quiet(const struct device *d)
{
    for (unsigned i = 0; i < OPS_MAX; i++)
        if (d->op[i].command)
            return false;
    return true;
}

static void begin_op(unsigned side, unsigned device, unsigned i, struct op op)
{
    struct device *d = &sim.side[side].dev[device];

    d->op[i] = op;
    d->op[i].faulted = one_in(8);
    if (d->op[i].faulted)
        page_request(side, device, i);
    else
        event_in(some(MS / 5, 2 * MS), EVENT_DMA, side, device, i, op.command);
}

void device_kick(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    for (unsigned i = 0; i < OPS_MAX; i++) {
        if (d->op[i].command || !vfmig_dev_dma_allowed(&d->m) || !vfmig_dev_mmio_allowed(&d->m))
            continue;
        if (d->is.kept_count) {
            struct op again = d->is.kept[--d->is.kept_count];
            memset(&d->is.kept[d->is.kept_count], 0, sizeof(again));
            begin_op(side, device, i, again);
        } else if (d->is.begun < d->is.taken) {
            uint32_t command = ++d->is.begun;
            unsigned page = (unsigned)(mix(sim.seed, (uint64_t)device << 32 | command) % PAGES);
            begin_op(side, device, i, (struct op){.command = command, .page = (uint16_t)page});
        }
        note(side, device);
    }
}

static void raise_interrupt(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    d->is.raised++;
    if (vfmig_dev_irq_latched(&d->m))
        d->is.latched++;
    else
        interrupt(side, device, d->is.raised);
}

static void go_on(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->wait != WAIT_QUIET || !quiet(d))
        return;
    d->wait = WAIT_NOTHING;
    device_event(side, device,
                 (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_STEP_DONE, .token = d->m.token});
}

void device_dma_ends(unsigned side, unsigned device, unsigned i, uint32_t command)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->op[i].command != command || d->op[i].faulted)
        return;
    if (vfmig_dev_is_quiet(&d->m))
        broke("dma", "device %u writes at side %u while it must be quiet", device, side);
    dma_writes(side, device, command, d->op[i].page);
    d->op[i] = (struct op){0};
    d->is.done += mix(device, command);
    d->is.finished++;
    raise_interrupt(side, device);
    note(side, device);
    device_kick(side, device);
    go_on(side, device);
}

void device_page_answered(unsigned side, unsigned device, unsigned i, uint32_t command)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->op[i].command != command || !d->op[i].faulted)
        return;
    d->op[i].faulted = 0;
    event_in(some(MS / 5, MS), EVENT_DMA, side, device, i, command);
}

/* What waits for a page is put off, and is part of the state until the device runs again (A7). */
static void put_off(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    for (unsigned i = 0; i < OPS_MAX; i++) {
        if (!d->op[i].command || !d->op[i].faulted)
            continue;
        d->op[i].faulted = 0;
        d->is.kept[d->is.kept_count++] = d->op[i];
        d->op[i] = (struct op){0};
    }
    note(side, device);
}

void device_doorbell(unsigned side, unsigned device, uint32_t command)
{
    struct side *s = &sim.side[side];
    struct device *d = &s->dev[device];

    if (!vfmig_dev_mmio_allowed(&d->m)) {
        if (!d->m.failed && !sim.excused[device] && !vfmig_dev_busy(&d->m))
            broke("mmio", "a vCPU reaches device %u in %s at side %u", device,
                  vfmig_state_name(vfmig_dev_state(&d->m)), side);
        s->vm.issued[device]--; /* it reads all ones, and the driver gives the command up */
        return;
    }
    d->is.taken++;
    if (d->is.taken != command && !sim.excused[device])
        broke("device", "device %u gets command %u after %u", device, command, d->is.taken - 1);
    d->is.chain = mix(d->is.chain, command);
    unsigned r = command % REGISTERS;
    d->is.registers[r] = mix(d->is.registers[r], d->is.chain);
    d->unsaved |= 1u << r;
    note(side, device);
    device_kick(side, device);
}

/* --- what the machine asks for --- */

static void lose_everything(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    memset(d->op, 0, sizeof(d->op));
    memset(&d->is, 0, sizeof(d->is));
    oracle_excuses(side, device);
}

static void ask(unsigned side, unsigned device, const struct vfmig_dev_action *action)
{
    struct device *d = &sim.side[side].dev[device];
    uint64_t takes = some(MS / 5, 3 * MS);

    d->wait = WAIT_CALL;
    d->call = (uint8_t)action->call;
    if (d->hangs) {
        fault_struck(FAULT_HANG, side);
        return; /* until it is healed */
    }
    if (d->slow) {
        d->slow = 0;
        takes += some(60 * MS, 250 * MS);
        fault_struck(FAULT_SLOW, side);
    }
    bool fails = d->fails_error;
    if (fails)
        fault_struck(FAULT_ERROR, side);
    d->fails_error = 0;
    event_in(takes, EVENT_CALL, side, device, fails, action->token);
}

static void deliver(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    while (d->is.latched) {
        d->is.latched--;
        interrupt(side, device, d->is.raised - d->is.latched);
    }
    note(side, device);
}

static void carry_out(unsigned side, unsigned device, const struct vfmig_dev_action *action)
{
    struct device *d = &sim.side[side].dev[device];

    switch (action->type) {
    case VFMIG_DEV_ACT_GATE_SHUT:
        d->wait = WAIT_QUIET;
        break;
    case VFMIG_DEV_ACT_DRAIN_ABORT:
        put_off(side, device);
        break;
    case VFMIG_DEV_ACT_GATE_CUT:
        memset(d->op, 0, sizeof(d->op));
        break;
    case VFMIG_DEV_ACT_GATE_OPEN:
        device_kick(side, device);
        break;
    case VFMIG_DEV_ACT_IRQ_DELIVER:
        deliver(side, device);
        break;
    case VFMIG_DEV_ACT_IRQ_DROP:
        d->is.latched = 0;
        break;
    case VFMIG_DEV_ACT_CALL:
        ask(side, device, action);
        break;
    case VFMIG_DEV_ACT_STREAM_SAVE:
        vfmig_devstream_begin(&d->enc, chance_next(&sim.chance), FORMAT, 1);
        d->unsaved = (1u << REGISTERS) - 1; /* of what went before, nothing is in this one */
        break;
    case VFMIG_DEV_ACT_STREAM_LOAD:
        vfmig_devstream_accept(&d->dec, FORMAT, 1, 1);
        memset(&d->staged, 0, sizeof(d->staged));
        break;
    case VFMIG_DEV_ACT_REPLY:
        d->wait = WAIT_NOTHING;
        device_answered(side, device, action->err);
        break;
    default:
        break;
    }
}

void device_event(unsigned side, unsigned device, struct vfmig_dev_event event)
{
    struct device *d = &sim.side[side].dev[device];
    struct vfmig_dev_actions actions;
    uint64_t before = vfmig_dev_deadline(&d->m);

    vfmig_dev_step(&d->m, &event, sim.now, &actions);
    for (uint32_t i = 0; i < actions.count; i++)
        carry_out(side, device, &actions.list[i]);
    uint64_t due = vfmig_dev_deadline(&d->m);
    if (due != UINT64_MAX && due != before)
        event_in(due > sim.now ? due - sim.now : 0, EVENT_DRAIN, side, device, 0, 0);
    go_on(side, device);
}

static int call_done(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    switch ((enum vfmig_dev_call)d->call) {
    case VFMIG_DEV_CALL_LOAD:
        if (vfmig_devstream_finish(&d->dec, NULL))
            return -EIO;
        d->is = d->staged;
        break;
    case VFMIG_DEV_CALL_SELF_RESET:
        memset(&d->is, 0, sizeof(d->is));
        break;
    case VFMIG_DEV_CALL_CAPTURE:
        d->captured = CAPTURED;
        break;
    case VFMIG_DEV_CALL_PRECOPY_START:
        d->captured = NOT_CAPTURED;
        d->unsaved = (1u << REGISTERS) - 1;
        sim.precopied = true;
        break;
    case VFMIG_DEV_CALL_RESET:
        lose_everything(side, device);
        break;
    default:
        break;
    }
    return 0;
}

void device_call_ends(unsigned side, unsigned device, uint32_t token, bool fails)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->wait != WAIT_CALL || d->m.token != token)
        return;
    int err = fails ? -EIO : call_done(side, device);
    d->wait = WAIT_NOTHING;
    device_event(
        side, device,
        (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_STEP_DONE, .token = token, .err = err});
}

/* One that hung answers after all. */
void device_heals(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->hangs && d->wait == WAIT_CALL)
        event_in(some(MS, 20 * MS), EVENT_CALL, side, device, 0, d->m.token);
    d->hangs = d->slow = d->fails_old = d->fails_error = 0;
}

/* --- data --- */

static uint32_t put_registers(struct device *d, uint8_t *out, unsigned most)
{
    uint32_t mask = 0, size = sizeof(mask);

    for (unsigned r = 0; r < REGISTERS && most; r++) {
        if (!(d->unsaved & (1u << r)))
            continue;
        mask |= 1u << r;
        memcpy(out + size, &d->is.registers[r], 8);
        size += 8;
        most--;
    }
    memcpy(out, &mask, sizeof(mask));
    d->unsaved &= ~mask;
    return size;
}

int device_save(unsigned side, unsigned device, bool final)
{
    struct device *d = &sim.side[side].dev[device];
    uint8_t *out = d->frame + VFMIG_DEVSTREAM_HEADER;
    uint32_t size = 0;

    if (!vfmig_dev_saving(&d->m))
        return -EINVAL;
    if (!final)
        return d->unsaved ? (int)vfmig_devstream_seal(&d->enc, VFMIG_DEVSTREAM_PRECOPY, d->frame,
                                                      put_registers(d, out, BATCH))
                          : 0;
    switch (d->captured) {
    case CAPTURED:
        d->captured = FINAL_SAVED;
        size = put_registers(d, out, REGISTERS);
        memcpy(out + size, &d->is.chain, sizeof(d->is) - offsetof(struct device_state, chain));
        size += (uint32_t)(sizeof(d->is) - offsetof(struct device_state, chain));
        return (int)vfmig_devstream_seal(&d->enc, VFMIG_DEVSTREAM_FINAL, d->frame, size);
    case FINAL_SAVED:
        d->captured = END_SAVED;
        return (int)vfmig_devstream_seal(&d->enc, VFMIG_DEVSTREAM_END, d->frame, 0);
    case END_SAVED:
        return 0;
    default:
        return -EINVAL;
    }
}

static int take_frame(struct device *d, const struct vfmig_devstream_frame *frame)
{
    uint32_t mask, at = sizeof(mask);
    size_t rest = sizeof(d->is) - offsetof(struct device_state, chain);

    if (frame->kind == VFMIG_DEVSTREAM_END)
        return 0;
    if (frame->length < sizeof(mask))
        return -EBADMSG;
    memcpy(&mask, frame->payload, sizeof(mask));
    for (unsigned r = 0; r < REGISTERS; r++) {
        if (!(mask & (1u << r)))
            continue;
        if (frame->length < at + 8)
            return -EBADMSG;
        memcpy(&d->staged.registers[r], frame->payload + at, 8);
        at += 8;
    }
    if (frame->kind == VFMIG_DEVSTREAM_FINAL) {
        if (frame->length != at + rest)
            return -EBADMSG;
        memcpy(&d->staged.chain, frame->payload + at, rest);
    }
    return 0;
}

int device_load(unsigned side, unsigned device, const uint8_t *data, size_t size)
{
    struct device *d = &sim.side[side].dev[device];
    struct vfmig_devstream_frame frame;

    if (!vfmig_dev_loading(&d->m))
        return -EINVAL;
    while (size) {
        int ret =
            vfmig_devstream_feed(&d->dec, d->frame, sizeof(d->frame), &data, &size, &frame, NULL);
        if (ret > 0)
            ret = take_frame(d, &frame);
        if (ret < 0)
            return ret;
    }
    return 0;
}
