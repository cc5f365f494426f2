/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest, and the oracle that knows what it must be: there is one guest, so whatever acts as it
 * must have all that it did before, wherever that was. Pages carry (writer, sequence), devices a
 * chain over their commands, interrupts a number. */
#include "sim.h"

#include <string.h>

static const char *name_of(unsigned side)
{
    return side == SRC ? "source" : "destination";
}

/* --- pages --- */

struct tag {
    uint64_t writer, sequence;
};

static uint8_t filling(uint64_t writer, uint64_t sequence)
{
    return (uint8_t)(mix(writer, sequence) | 1);
}

static void write_page(unsigned side, unsigned page, uint64_t writer, uint64_t sequence)
{
    struct tag tag = {writer, sequence};
    uint8_t *p = memory_of[side][page];

    memset(p, filling(writer, sequence), VFMIG_PAGE_SIZE);
    memcpy(p, &tag, sizeof(tag));
    memcpy(p + VFMIG_PAGE_SIZE - sizeof(tag), &tag, sizeof(tag));
    if (sim.side[side].tracking)
        sim.side[side].written[page / 64] |= UINT64_C(1) << (page % 64);
    sim.tag[page][0] = writer;
    sim.tag[page][1] = sequence;
}

static bool page_is(unsigned side, unsigned page)
{
    struct tag tag = {sim.tag[page][0], sim.tag[page][1]};
    const uint8_t *p = memory_of[side][page];
    uint8_t fill = tag.writer ? filling(tag.writer, tag.sequence) : 0;

    if (memcmp(p, &tag, sizeof(tag)) ||
        memcmp(p + VFMIG_PAGE_SIZE - sizeof(tag), &tag, sizeof(tag)))
        return false;
    /* All of it is one byte: compared with itself, shifted by one. */
    return p[sizeof(tag)] == fill &&
           !memcmp(p + sizeof(tag), p + sizeof(tag) + 1, VFMIG_PAGE_SIZE - 2 * sizeof(tag) - 1);
}

uint64_t page_writer(const uint8_t *page)
{
    uint64_t writer;

    memcpy(&writer, page, sizeof(writer));
    return writer;
}

/* --- the oracle --- */

static bool acts(unsigned side, const char *what)
{
    if (sim.owner != side)
        broke("two", "%s acts at the %s, and the guest is the other side's", what, name_of(side));
    return sim.owner == side;
}

void oracle_excuses(unsigned side, unsigned device)
{
    struct side *s = &sim.side[side];

    if (side != sim.owner)
        return;
    /* It was reset, which was told: what it had to do is gone, and its driver begins anew. */
    sim.excused[device] = 1;
    sim.dev[device] = s->dev[device].is;
    s->vm.issued[device] = s->vm.completed[device] = s->vm.serial[device] = s->vm.pending[device] =
        0;
    sim.vm = s->vm;
}

static void compare_device(unsigned side, unsigned device)
{
    const struct device_state *is = &sim.side[side].dev[device].is, *must = &sim.dev[device];

    if (is->chain != must->chain || is->taken != must->taken || is->begun != must->begun)
        broke("device", "device %u has taken %u commands, of %u", device, is->taken, must->taken);
    else if (is->done != must->done || is->finished != must->finished)
        broke("device", "device %u has finished %u commands, of %u", device, is->finished,
              must->finished);
    else if (is->raised != must->raised || is->latched != must->latched)
        broke("interrupt", "device %u has raised %u interrupts, of %u", device, is->raised,
              must->raised);
    else if (memcmp(is->registers, must->registers, sizeof(is->registers)))
        broke("device", "device %u has other registers", device);
}

/* It begins to act as the guest, or is asked whether it could. */
void oracle_compares(unsigned side)
{
    const struct side *s = &sim.side[side];

    for (unsigned page = 0; page < PAGES; page++)
        if (!page_is(side, page))
            broke("memory", "page %u at the %s is not what writer %llu left in write %llu", page,
                  name_of(side), (unsigned long long)sim.tag[page][0],
                  (unsigned long long)sim.tag[page][1]);
    if (memcmp(&s->vm.vcpu, &sim.vm.vcpu, sizeof(s->vm.vcpu)))
        broke("vcpu", "vCPUs at the %s are not where they stopped", name_of(side));
    if (memcmp(&s->vm, &sim.vm, sizeof(s->vm)))
        broke("interrupt", "interrupts at the %s are not what they were", name_of(side));
    for (unsigned d = 0; d < DEVICES; d++)
        compare_device(side, d);
}

void oracle_takes_over(unsigned side)
{
    const struct side *other = &sim.side[!side];

    if (sim.owner == side)
        return;
    if (other->vcpus)
        broke("two", "the %s is to run, and vCPUs run at the other side", name_of(side));
    if (!vfmig_handover_may_run(&sim.side[side].h))
        broke("two", "the %s is to run without having it on record", name_of(side));
    if (side == SRC)
        broke("two", "the source is to run after the destination did");
    oracle_compares(side);
    sim.owner = side;
    sim.moved = true;
}

/* --- the guest --- */

void guest_boot(void)
{
    sim.owner = SRC;
    vcpus_start(SRC);
}

void vcpus_start(unsigned side)
{
    struct side *s = &sim.side[side];

    if (s->vcpus)
        return;
    s->vcpus = true;
    s->vcpu_runs++;
    for (unsigned i = 0; i < VCPUS; i++)
        event_in(some(MS / 4, MS), EVENT_VCPU, side, i, 0, s->vcpu_runs);
}

static void take_interrupts(unsigned side, unsigned d)
{
    struct side *s = &sim.side[side];

    s->vm.completed[d] += s->vm.pending[d];
    s->vm.pending[d] = 0;
    if (s->vm.completed[d] > s->vm.issued[d])
        broke("interrupt", "device %u has answered %u commands of %u", d, s->vm.completed[d],
              s->vm.issued[d]);
}

void vcpu_runs(unsigned side, unsigned vcpu, uint32_t since)
{
    struct side *s = &sim.side[side];
    struct vcpu_state *v = &s->vm.vcpu[vcpu];

    if (!s->vcpus || since != s->vcpu_runs)
        return;
    if (!acts(side, "a vCPU"))
        return;
    v->sequence++;
    v->hash = mix(v->hash, v->sequence);
    if (!one_in(3)) {
        /* Most writes are to a few pages, some to any. */
        unsigned page = (unsigned)chance_below(&sim.chance, one_in(4) ? PAGES : 24);
        write_page(side, page, 1 + vcpu, v->sequence);
    }
    unsigned d = (unsigned)chance_below(&sim.chance, DEVICES);
    for (unsigned i = 0; i < DEVICES; i++)
        if (i == d || sim.finishing)
            take_interrupts(side, i);
    if (!sim.finishing && s->vm.issued[d] - s->vm.completed[d] < OPS_MAX &&
        !vfmig_devset_has(&s->flow.lost, d)) {
        s->vm.issued[d]++;
        device_doorbell(side, d, s->vm.issued[d]);
    }
    sim.vm = s->vm;
    event_in(some(MS, 3 * MS), EVENT_VCPU, side, vcpu, 0, since);
}

void dma_writes(unsigned side, unsigned device, uint32_t command, unsigned page)
{
    if (acts(side, "DMA"))
        write_page(side, page, 16 + device, command);
}

void interrupt(unsigned side, unsigned device, uint32_t serial)
{
    struct side *s = &sim.side[side];

    if (!acts(side, "an interrupt"))
        return;
    if (serial != s->vm.serial[device] + 1)
        broke("interrupt", "device %u delivers interrupt %u after %u", device, serial,
              s->vm.serial[device]);
    s->vm.serial[device] = serial;
    s->vm.pending[device]++;
    sim.vm = s->vm;
}

/* --- page requests: a device waits for the guest --- */

static void answer_at(unsigned side, const struct request *r)
{
    struct side *s = &sim.side[side];
    uint64_t delay = some(MS, 8 * MS);

    if (s->answers_late) {
        s->answers_late--;
        fault_struck(FAULT_ANSWER_LATE, side);
        delay += some(40 * MS, 250 * MS);
    }
    event_in(delay, EVENT_ANSWER, side, 0, 0, r->number);
}

void page_request(unsigned side, unsigned device, unsigned op)
{
    struct side *s = &sim.side[side];

    for (unsigned i = 0; i < REQUESTS_MAX; i++) {
        struct request *r = &s->requests[i];
        if (r->open)
            continue;
        *r = (struct request){.number = ++s->request_number,
                              .command = s->dev[device].op[op].command,
                              .device = (uint8_t)device,
                              .op = (uint8_t)op,
                              .open = 1};
        if (s->answers_missing) {
            s->answers_missing--;
            fault_struck(FAULT_ANSWER_MISSING, side);
            r->held = 2;
        } else if (s->answers_reordered) {
            s->answers_reordered--;
            fault_struck(FAULT_ANSWER_ORDER, side);
            r->held = 1;
        } else {
            answer_at(side, r);
        }
        return;
    }
    s->dev[device].op[op].faulted = 0; /* the queue is full: it is not asked */
    event_in(MS, EVENT_DMA, side, device, op, s->dev[device].op[op].command);
}

static void answered(unsigned side, struct request *r)
{
    r->open = 0;
    device_page_answered(side, r->device, r->op, r->command);
}

void page_answer(unsigned side, uint32_t number)
{
    struct side *s = &sim.side[side];

    for (unsigned i = 0; i < REQUESTS_MAX; i++) {
        struct request *r = &s->requests[i];
        if (!r->open || r->number != number)
            continue;
        if (!s->vcpus) { /* who should answer */
            event_in(2 * MS, EVENT_ANSWER, side, 0, 0, number);
            return;
        }
        answered(side, r);
        break;
    }
    /* One that was held back comes after a later one. */
    for (unsigned i = 0; i < REQUESTS_MAX; i++)
        if (s->requests[i].open && s->requests[i].held == 1) {
            s->requests[i].held = 0;
            answer_at(side, &s->requests[i]);
            return;
        }
}

void requests_heal(unsigned side)
{
    struct side *s = &sim.side[side];

    for (unsigned i = 0; i < REQUESTS_MAX; i++)
        if (s->requests[i].open && s->requests[i].held) {
            s->requests[i].held = 0;
            event_in(some(MS, 5 * MS), EVENT_ANSWER, side, 0, 0, s->requests[i].number);
        }
}

bool requests_open(const struct side *s)
{
    for (unsigned i = 0; i < REQUESTS_MAX; i++)
        if (s->requests[i].open)
            return true;
    return false;
}
