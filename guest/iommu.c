/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's driver of the vIOMMU. A device behind it finds next to nothing mapped: its page
 * requests are answered late, out of order, some refused; and what was mapped is unmapped again
 * after use and mapped anew to another page, so that a translation that is too old shows in the
 * data. */
#include "guest/guest.h"

#include "devices/dma_regs.h"
#include "vmm/iommu_regs.h"

#define DELAY_US      1000u /* most of the answers come within this */
#define DELAY_LONG_US 6000u
#define WAIT_STEP_US  10000u
#define PEER_DONE     256u /* what the other device does first, GUEST_ANSWERS_PEER */
#define PEERS_FIRST   UINT64_C(0xe0000000) /* where BARs of peers are */
#define PEERS_END     UINT64_C(0xf8000000)

struct driver {
    const struct guest_env *env;
    const struct guest_params *params;
    struct guest_iommu *iommu;
    struct guest_iommu_score *score;
    struct iommu_command *commands;
    const struct iommu_request *requests;
};

static struct driver driver_of(const struct guest_env *env)
{
    struct driver d = {.env = env, .params = guest_params(env)};
    uint64_t at = d.params->iommu_gpa;
    d.iommu = guest_at(env, at, sizeof(*d.iommu));
    d.score = &guest_scoreboard(env)->iommu;
    d.commands = guest_at(env, at + GUEST_IOMMU_STATE_BYTES, 4096);
    d.requests = guest_at(env, at + GUEST_IOMMU_STATE_BYTES + 4096, 4096);
    return d;
}

static uint64_t next_random(const struct driver *d)
{
    d->iommu->order += UINT64_C(0x9e3779b97f4a7c15);
    return guest_mix(d->iommu->order);
}

static uint64_t tsc_of_us(const struct driver *d, uint64_t us)
{
    return us * d->params->tsc_khz / 1000;
}

static const struct guest_device_params *device_at(const struct driver *d, uint32_t index)
{
    return &d->params->devices[index % GUEST_MAX_DEVICES];
}

static const struct guest_dma *dma_of(const struct driver *d, uint32_t index)
{
    return guest_at(d->env, device_at(d, index)->heap_gpa, sizeof(struct guest_dma));
}

static uint32_t reg(uint32_t offset)
{
    return IOMMU_GPA + offset;
}

static void fail(const struct driver *d, enum guest_error_code code, uint32_t what, uint64_t want,
                 uint64_t found, uint64_t more)
{
    guest_fail(d->env, 0, code, what, want, found, more);
}

/* --- where things are --- */

static uint64_t buffer_bytes(const struct driver *d)
{
    return guest_page_up(d->params->dma_bytes);
}

/* Bytes that one answer maps: a buffer takes several. */
static uint64_t chunk_bytes(const struct driver *d)
{
    return guest_page_up(buffer_bytes(d) / 4);
}

static uint64_t source_gpa(const struct driver *d, uint32_t index, uint32_t slot)
{
    return device_at(d, index)->heap_gpa + GUEST_DMA_STATE_BYTES + 4096 + slot * buffer_bytes(d);
}

static uint64_t target_gpa(const struct driver *d, uint32_t index, uint32_t target)
{
    return source_gpa(d, index, GUEST_RING_ENTRIES) + target % GUEST_DMA_TARGETS * buffer_bytes(d);
}

static uint64_t slot_iova(uint64_t base, uint32_t slot)
{
    return base + ((uint64_t)slot << GUEST_IOVA_SHIFT);
}

/* --- commands --- */

static bool has_room(const struct driver *d, uint32_t count)
{
    return d->iommu->queued - d->iommu->done + count <= GUEST_IOMMU_ENTRIES;
}

/* The device is the guest's number; reserved[0] is the slot, plus one, whose pages it is about. */
static void command(const struct driver *d, uint32_t index, struct iommu_command c, uint32_t slot)
{
    c.device = device_at(d, index)->iommu - 1;
    c.reserved[0] = slot;
    c.reserved[1] = index;
    d->commands[d->iommu->queued++ % GUEST_IOMMU_ENTRIES] = c;
    guest_bump(&d->score->maps, c.op == IOMMU_MAP);
    guest_bump(&d->score->unmaps, c.op == IOMMU_UNMAP);
}

static void map(const struct driver *d, uint32_t index, uint64_t iova, uint64_t gpa, uint64_t size)
{
    command(d, index,
            (struct iommu_command){.op = IOMMU_MAP,
                                   .iova = iova,
                                   .gpa = gpa,
                                   .size = size,
                                   .flags = IOMMU_MAP_READ | IOMMU_MAP_WRITE},
            0);
}

static void unmap(const struct driver *d, uint32_t index, uint64_t iova, uint64_t size,
                  uint32_t slot)
{
    command(d, index, (struct iommu_command){.op = IOMMU_UNMAP, .iova = iova, .size = size}, slot);
}

static bool is_good(const struct iommu_command *c, uint32_t error)
{
    return !error || (c->op == IOMMU_MAP && error == GUEST_EEXIST) ||
           (c->op == IOMMU_RESPOND && error == GUEST_ENOENT);
}

static void reap(const struct driver *d)
{
    struct guest_iommu *iommu = d->iommu;
    while (iommu->done != iommu->queued) {
        const struct iommu_command *c = &d->commands[iommu->done % GUEST_IOMMU_ENTRIES];
        uint32_t status = __atomic_load_n(&c->status, __ATOMIC_ACQUIRE);
        uint32_t index = c->reserved[1] % GUEST_MAX_DEVICES, slot = c->reserved[0];
        if (!(status & IOMMU_STATUS_DONE))
            return;
        uint32_t error = status & ~IOMMU_STATUS_DONE;
        if (!is_good(c, error))
            fail(d, GUEST_ERROR_IOMMU, c->op, c->iova, error, c->size);
        if (c->op == IOMMU_RESPOND && error)
            guest_bump(&d->score->late, 1);
        if (c->op == IOMMU_DOMAIN)
            iommu->device[index].on = 2;
        if (slot && slot <= GUEST_RING_ENTRIES && --iommu->device[index].unmaps[slot - 1] == 0)
            iommu->device[index].window[slot - 1] = GUEST_WINDOW_FREE;
        iommu->done++;
    }
}

static void ring(const struct driver *d)
{
    if (d->iommu->rung == d->iommu->queued)
        return;
    d->iommu->rung = d->iommu->queued;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    guest_write32(d->env, 0, reg(IOMMU_REG_CMD_TAIL), d->iommu->queued);
}

/* --- page requests --- */

static uint64_t peer_done(const struct driver *d)
{
    for (uint32_t i = 0; i < d->params->device_count % (GUEST_MAX_DEVICES + 1); i++)
        if (!d->params->devices[i].iommu)
            return guest_scoreboard(d->env)->device[i].completed;
    return UINT64_MAX - PEER_DONE;
}

static uint32_t index_of(const struct driver *d, uint32_t number)
{
    uint32_t i = 0;
    while (i + 1 < GUEST_MAX_DEVICES && d->params->devices[i].iommu != number + 1)
        i++;
    return i;
}

static void add_fault(const struct driver *d, uint32_t at, const struct iommu_request *request)
{
    struct guest_iommu *iommu = d->iommu;
    uint64_t random = next_random(d);
    uint32_t most = random % 8 ? DELAY_US : DELAY_LONG_US;
    iommu->fault[at].used = 1;
    iommu->fault[at].device = index_of(d, request->device);
    iommu->fault[at].id = request->id;
    iommu->fault[at].flags = request->flags;
    iommu->fault[at].iova = request->iova;
    iommu->fault[at].due_tsc = guest_tsc(d->env) + tsc_of_us(d, (random >> 8) % most);
    iommu->fault[at].due_done = peer_done(d) + PEER_DONE;
    guest_bump(&d->score->faults, 1);
    guest_bump(&d->score->open, 1);
}

/* A request is no longer of use: it is responded to at once, if it was not. */
static void withdraw(const struct driver *d, uint32_t id)
{
    for (uint32_t i = 0; i < GUEST_IOMMU_FAULTS; i++) {
        if (!d->iommu->fault[i].used || d->iommu->fault[i].id != id)
            continue;
        d->iommu->fault[i].used = 0;
        command(
            d, d->iommu->fault[i].device,
            (struct iommu_command){.op = IOMMU_RESPOND, .id = id, .flags = IOMMU_RESPONSE_REFUSED},
            0);
        guest_bump(&d->score->withdrawn, 1);
        guest_bump(&d->score->open, (uint64_t)-1);
        return;
    }
}

/* Takes page requests while there is a place for them. */
static void take(const struct driver *d)
{
    struct guest_iommu *iommu = d->iommu;
    uint32_t place = 0;
    for (;;) {
        const struct iommu_request *request = &d->requests[iommu->taken % GUEST_IOMMU_ENTRIES];
        if (__atomic_load_n(&request->turn, __ATOMIC_ACQUIRE) != iommu->taken + 1)
            break;
        while (place < GUEST_IOMMU_FAULTS && iommu->fault[place].used)
            place++;
        if (place == GUEST_IOMMU_FAULTS || !has_room(d, 1))
            break;
        if (!(request->flags & IOMMU_REQUEST_WITHDRAWN))
            add_fault(d, place, request);
        else if (d->params->iommu_answers != GUEST_ANSWERS_NEVER)
            withdraw(d, request->id);
        iommu->taken++;
    }
    if (iommu->taken - iommu->freed < GUEST_IOMMU_ENTRIES / 2)
        return;
    iommu->freed = iommu->taken;
    guest_write32(d->env, 0, reg(IOMMU_REG_PRQ_HEAD), iommu->freed);
}

/* The part of a buffer of the slot that holds the page. */
static void map_chunk(const struct driver *d, uint32_t index, uint64_t iova, uint64_t gpa,
                      uint64_t offset)
{
    uint64_t chunk = chunk_bytes(d), at = offset / chunk * chunk, left = buffer_bytes(d) - at;
    map(d, index, iova + at, gpa + at, chunk < left ? chunk : left);
}

/* Maps the page that the device asks for. False: it is not to have it. */
static bool map_page(const struct driver *d, uint32_t index, uint64_t page)
{
    uint64_t heap = page - GUEST_IOVA_HEAP, sources = source_gpa(d, index, 0);
    uint32_t slot = (uint32_t)(page >> GUEST_IOVA_SHIFT) % GUEST_RING_ENTRIES;
    uint64_t offset = page & ((UINT64_C(1) << GUEST_IOVA_SHIFT) - 1);
    if (page >= GUEST_IOVA_WINDOW && page < GUEST_IOVA_HOLE) {
        if (d->iommu->device[index].window[slot] != GUEST_WINDOW_USED || offset >= buffer_bytes(d))
            return false;
        map_chunk(d, index, slot_iova(GUEST_IOVA_WINDOW, slot),
                  target_gpa(d, index, dma_of(d, index)->slot_target[slot]), offset);
        return true;
    }
    if (page >= PEERS_FIRST && page < PEERS_END) {
        map(d, index, page, page, 4096);
        d->iommu->device[index].peer_page = page;
        return true;
    }
    if (heap >= sources && heap < source_gpa(d, index, GUEST_RING_ENTRIES)) {
        slot = (uint32_t)((heap - sources) / buffer_bytes(d));
        offset = (heap - sources) % buffer_bytes(d);
        if (d->iommu->device[index].window[slot] != GUEST_WINDOW_USED)
            return false;
        map_chunk(d, index, page - offset, heap - offset, offset);
        return true;
    }
    if (heap != sources - 4096) /* the ring */
        return false;
    map(d, index, page, heap, 4096);
    return true;
}

/* Nothing is written but for a descriptor in flight. A read may be a look ahead that came late. */
static bool is_expected(const struct driver *d, uint32_t index, uint32_t flags)
{
    const struct guest_dma *dma = dma_of(d, index);
    return !(flags & IOMMU_REQUEST_WRITE) || dma->queued != dma->completed;
}

static void answer(const struct driver *d, uint32_t at)
{
    uint32_t index = d->iommu->fault[at].device;
    uint64_t page = d->iommu->fault[at].iova;
    bool mapped = map_page(d, index, page);
    if (!is_expected(d, index, d->iommu->fault[at].flags))
        fail(d, GUEST_ERROR_IOMMU, index, page, d->iommu->fault[at].id, d->iommu->fault[at].flags);
    command(d, index,
            (struct iommu_command){.op = IOMMU_RESPOND,
                                   .id = d->iommu->fault[at].id,
                                   .flags = mapped ? IOMMU_RESPONSE_TRY : IOMMU_RESPONSE_REFUSED},
            0);
    d->iommu->fault[at].used = 0;
    guest_bump(mapped ? &d->score->answered : &d->score->refused, 1);
    guest_bump(&d->score->open, (uint64_t)-1);
}

static bool is_due(const struct driver *d, uint32_t at, uint64_t now)
{
    if (d->params->iommu_answers == GUEST_ANSWERS_PEER)
        return peer_done(d) >= d->iommu->fault[at].due_done;
    return d->params->iommu_answers == GUEST_ANSWERS_LATE && now >= d->iommu->fault[at].due_tsc;
}

static void answer_all(const struct driver *d)
{
    uint64_t now = guest_tsc(d->env);
    for (uint32_t i = 0; i < GUEST_IOMMU_FAULTS && has_room(d, 2); i++)
        if (d->iommu->fault[i].used && is_due(d, i, now))
            answer(d, i);
}

/* --- pages that are not used any more --- */

/* Takes away what a slot's last descriptor used, and now and then more than that. */
static void leave(const struct driver *d, uint32_t index, uint32_t slot)
{
    uint64_t random = next_random(d), bytes = buffer_bytes(d);
    d->iommu->device[index].window[slot] = GUEST_WINDOW_LEAVING;
    d->iommu->device[index].unmaps[slot] = 1;
    if (random % 4 == 0) {
        d->iommu->device[index].unmaps[slot] = 2;
        unmap(d, index, GUEST_IOVA_HEAP + source_gpa(d, index, slot), bytes, slot + 1);
    }
    unmap(d, index, slot_iova(GUEST_IOVA_WINDOW, slot), bytes, slot + 1);
    /* While the device is using them. */
    if (random >> 8 & 32)
        return;
    if (d->iommu->device[index].peer_page && (random >> 16) % 8 == 0)
        unmap(d, index, d->iommu->device[index].peer_page, 4096, 0);
    else if ((random >> 16) % 16 == 1)
        unmap(d, index, GUEST_IOVA_HEAP + source_gpa(d, index, 0) - 4096, 4096, 0);
}

static void leave_all(const struct driver *d, uint32_t index)
{
    for (uint32_t slot = 0; slot < GUEST_RING_ENTRIES && has_room(d, 3); slot++)
        if (d->iommu->device[index].window[slot] == GUEST_WINDOW_DONE)
            leave(d, index, slot);
}

/* --- the device does not go on --- */

static bool has_fault(const struct driver *d, uint32_t index)
{
    for (uint32_t i = 0; i < GUEST_IOMMU_FAULTS; i++)
        if (d->iommu->fault[i].used && d->iommu->fault[i].device == index)
            return true;
    return d->iommu->queued != d->iommu->done;
}

static void check_progress(const struct driver *d, uint32_t index, uint64_t elapsed_tsc)
{
    const struct guest_dma *dma = dma_of(d, index);
    uint64_t most = tsc_of_us(d, WAIT_STEP_US), *wait = &d->iommu->device[index].wait_tsc;
    if (dma->queued == dma->completed || dma->completed != d->iommu->device[index].completed ||
        dma->driver != GUEST_DRIVER_DMA || has_fault(d, index)) {
        d->iommu->device[index].completed = dma->completed;
        *wait = 0;
        return;
    }
    *wait += elapsed_tsc < most ? elapsed_tsc : most;
    if (*wait <= tsc_of_us(d, d->params->irq_timeout_ms * UINT64_C(1000)))
        return;
    fail(d, GUEST_ERROR_FAULT_LOST, index, dma->queued, dma->completed, d->score->faults);
    *wait = 0;
}

/* --- for the devices' drivers --- */

static bool is_behind(const struct guest_env *env, uint32_t index)
{
    return guest_params(env)->devices[index % GUEST_MAX_DEVICES].iommu != 0;
}

bool guest_iommu_ready(const struct guest_env *env, uint32_t index)
{
    return !is_behind(env, index) || driver_of(env).iommu->device[index].on == 2;
}

bool guest_iommu_slot_ready(const struct guest_env *env, uint32_t index, uint32_t slot)
{
    return !is_behind(env, index) ||
           driver_of(env).iommu->device[index].window[slot] == GUEST_WINDOW_FREE;
}

uint64_t guest_iommu_heap(const struct guest_env *env, uint32_t index, uint64_t gpa)
{
    return is_behind(env, index) ? GUEST_IOVA_HEAP + gpa : gpa;
}

/* The device's address for memory that slot uses. */
static uint64_t to_iova(const struct driver *d, uint32_t index, uint32_t slot, uint64_t gpa)
{
    uint64_t first = target_gpa(d, index, 0);
    uint64_t target = target_gpa(d, index, dma_of(d, index)->slot_target[slot]);
    if (gpa >= first && gpa < first + GUEST_DMA_TARGETS * buffer_bytes(d))
        return slot_iova(GUEST_IOVA_WINDOW, slot) + (gpa - target);
    return gpa >= PEERS_FIRST && gpa < PEERS_END ? gpa : GUEST_IOVA_HEAP + gpa;
}

static uint64_t to_gpa(const struct driver *d, uint32_t index, uint32_t slot, uint64_t iova)
{
    if (iova >= GUEST_IOVA_HOLE)
        return source_gpa(d, index, slot);
    if (iova >= GUEST_IOVA_WINDOW)
        return target_gpa(d, index, dma_of(d, index)->slot_target[slot]) +
               (iova - slot_iova(GUEST_IOVA_WINDOW, slot));
    return iova >= GUEST_IOVA_HEAP ? iova - GUEST_IOVA_HEAP : iova;
}

static bool reads_memory(const struct dma_descriptor *desc)
{
    return desc->op == DMA_OP_COPY || desc->op == DMA_OP_CRC || desc->op == DMA_OP_SRAM_LOAD;
}

static bool writes_memory(const struct dma_descriptor *desc)
{
    return desc->op == DMA_OP_COPY || desc->op == DMA_OP_FILL || desc->op == DMA_OP_SRAM_STORE;
}

void guest_iommu_prepare(const struct guest_env *env, uint32_t index, uint32_t slot,
                         uint64_t random, struct dma_descriptor *desc)
{
    if (!is_behind(env, index))
        return;
    struct driver d = driver_of(env);
    bool hole = (desc->op == DMA_OP_CRC || desc->op == DMA_OP_SRAM_STORE) && random >> 56 & 1 &&
                dma_of(&d, index)->p2p.op[slot] == GUEST_P2P_NONE;
    d.iommu->device[index].window[slot] = GUEST_WINDOW_USED;
    d.iommu->device[index].hole[slot] = hole;
    if (reads_memory(desc))
        desc->src = hole ? slot_iova(GUEST_IOVA_HOLE, slot) : to_iova(&d, index, slot, desc->src);
    if (writes_memory(desc))
        desc->dst = hole ? slot_iova(GUEST_IOVA_HOLE, slot) : to_iova(&d, index, slot, desc->dst);
    /* Half of the windows are there when the device comes, or when it is about to. */
    if (random >> 57 & 1 && writes_memory(desc) && desc->dst >= GUEST_IOVA_WINDOW && !hole &&
        has_room(&d, 8))
        map(&d, index, desc->dst, to_gpa(&d, index, slot, desc->dst), buffer_bytes(&d));
}

bool guest_iommu_complete(const struct guest_env *env, uint32_t index, uint32_t slot,
                          struct dma_descriptor *desc)
{
    if (!is_behind(env, index))
        return false;
    struct driver d = driver_of(env);
    if (reads_memory(desc))
        desc->src = to_gpa(&d, index, slot, desc->src);
    if (writes_memory(desc))
        desc->dst = to_gpa(&d, index, slot, desc->dst);
    d.iommu->device[index].window[slot] = GUEST_WINDOW_DONE;
    return d.iommu->device[index].hole[slot];
}

/* --- the driver's work --- */

static void start(const struct driver *d)
{
    uint64_t at = d->params->iommu_gpa + GUEST_IOMMU_STATE_BYTES;
    uint32_t id = guest_read32(d->env, 0, reg(IOMMU_REG_ID));
    if (id != IOMMU_ID)
        fail(d, GUEST_ERROR_IOMMU, IOMMU_REG_ID, IOMMU_ID, id, 0);
    guest_write64(d->env, 0, reg(IOMMU_REG_CMD_BASE), at);
    guest_write32(d->env, 0, reg(IOMMU_REG_CMD_ENTRIES), GUEST_IOMMU_ENTRIES);
    guest_write64(d->env, 0, reg(IOMMU_REG_PRQ_BASE), at + 4096);
    guest_write32(d->env, 0, reg(IOMMU_REG_PRQ_ENTRIES), GUEST_IOMMU_ENTRIES);
    guest_write32(d->env, 0, reg(IOMMU_REG_CTRL), IOMMU_CTRL_ENABLE);
    d->iommu->order = guest_mix(d->params->seed ^ UINT64_C(0x494f4d4d55));
    d->iommu->started = 1;
}

void guest_iommu_step(const struct guest_env *env, uint32_t vcpu, uint64_t elapsed_tsc)
{
    if (vcpu != 0 || !guest_params(env)->iommu_gpa)
        return;
    struct driver d = driver_of(env);
    if (!d.iommu->started)
        start(&d);
    reap(&d);
    take(&d);
    answer_all(&d);
    for (uint32_t i = 0; i < d.params->device_count && i < GUEST_MAX_DEVICES; i++) {
        if (!d.params->devices[i].iommu)
            continue;
        if (!d.iommu->device[i].on && has_room(&d, 1)) {
            d.iommu->device[i].on = 1;
            command(&d, i, (struct iommu_command){.op = IOMMU_DOMAIN, .flags = IOMMU_DOMAIN_ON}, 0);
        }
        leave_all(&d, i);
        check_progress(&d, i, elapsed_tsc);
    }
    ring(&d);
}
