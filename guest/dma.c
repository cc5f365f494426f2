/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's driver of the dma device, which checks everything the device does. */
#include "guest/guest.h"

#include "devices/bulk_regs.h"
#include "devices/dma_regs.h"

#define COPY_STRIDE    UINT64_C(0x9e3779b97f4a7c15)
#define CHECK_US       50000u /* registers and SRAM words are looked at this often */
#define CREDIT_MAX_US  20000u
#define WAIT_STEP_US   10000u
#define REMAP_US       10000u /* two MSI-X entries are exchanged this often */
#define SCRATCH_SALT   UINT64_C(0x5c4a7c8800000000)
#define FIRST_DETAIL(index, what) ((uint64_t)(index) << 32 | (what))

/* What the functions below work on; lives for one step. */
struct driver {
    const struct guest_env *env;
    const struct guest_params *params;
    const struct guest_device_params *device;
    struct guest_dma *dma;
    struct guest_device_score *score;
    struct dma_descriptor *ring;
    uint64_t ring_gpa, sources_gpa, targets_gpa, buffer_bytes;
    uint32_t index, vcpu;
};

static void fail(const struct driver *d, enum guest_error_code code, uint32_t what, uint64_t want,
                 uint64_t found, uint64_t more)
{
    guest_fail(d->env, d->vcpu, code, FIRST_DETAIL(d->index, what), want, found, more);
}

static uint64_t tsc_of_us(const struct driver *d, uint64_t us)
{
    return us * d->params->tsc_khz / 1000;
}

static uint64_t next_random(struct guest_dma *dma)
{
    dma->order += COPY_STRIDE;
    return guest_mix(dma->order);
}

static void put_words(const struct driver *d, uint64_t gpa, uint64_t bytes, uint64_t seed,
                      uint64_t stride)
{
    uint64_t *words = guest_at(d->env, gpa, bytes);
    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = seed + i * stride;
}

/* Index of the first word that is not as expected, or the number of words. */
static uint64_t compare_words(const struct driver *d, uint64_t gpa, uint64_t bytes, uint64_t seed,
                              uint64_t stride)
{
    const uint64_t *words = guest_at(d->env, gpa, bytes);
    uint64_t i = 0;
    while (i < bytes / 8 && words[i] == seed + i * stride)
        i++;
    return i;
}

static uint32_t crc_words(const struct driver *d, uint64_t gpa, uint64_t bytes)
{
    const uint64_t *words = guest_at(d->env, gpa, bytes);
    uint64_t crc = 0xffffffffu;
    for (uint64_t i = 0; i < bytes / 8; i++)
        __asm__("crc32q %1, %0" : "+r"(crc) : "rm"(words[i]));
    return ~(uint32_t)crc;
}

static uint64_t reg(const struct driver *d, uint32_t offset)
{
    return d->device->bar_gpa + offset;
}

/* Masked while it changes, as the PCI specification wants it. */
static void write_entry(const struct driver *d, uint32_t v)
{
    uint64_t entry = reg(d, DMA_MSIX_TABLE + v * 16);
    guest_write32(d->env, d->vcpu, entry + 12, 1);
    guest_write32(d->env, d->vcpu, entry, GUEST_MSI_BASE | d->vcpu << 12);
    guest_write32(d->env, d->vcpu, entry + 4, 0);
    guest_write32(d->env, d->vcpu, entry + 8, d->device->first_vector + d->dma->irq_at[v]);
    guest_write32(d->env, d->vcpu, entry + 12, 0);
}

static void set_up_vectors(const struct driver *d)
{
    for (uint32_t v = 0; v < GUEST_VECTORS; v++) {
        d->dma->irq_at[v] = v;
        write_entry(d, v);
    }
}

static void keep_word(const struct driver *d, uint32_t i)
{
    d->dma->kept[i] = next_random(d->dma);
    guest_write64(d->env, d->vcpu, reg(d, DMA_SRAM + GUEST_SRAM_WORDS + i * 8), d->dma->kept[i]);
}

static void set_up(const struct driver *d, uint32_t id)
{
    if (id != DMA_ID)
        fail(d, GUEST_ERROR_DEVICE, DMA_REG_ID, DMA_ID, id, 0);
    d->dma->order = guest_mix(d->params->seed ^ (uint64_t)(d->index + 1) << 48);
    set_up_vectors(d);
    for (uint32_t i = 0; i < GUEST_SRAM_KEPT; i++)
        keep_word(d, i);
    guest_write64(d->env, d->vcpu, reg(d, DMA_REG_SCRATCH), SCRATCH_SALT | d->index);
    guest_write32(d->env, d->vcpu, reg(d, DMA_REG_CTRL), 0);
    guest_write32(d->env, d->vcpu, reg(d, DMA_REG_PASID), d->device->pasid);
    guest_write64(d->env, d->vcpu, reg(d, DMA_REG_RING),
                  guest_iommu_heap(d->env, d->index, d->ring_gpa));
    guest_write32(d->env, d->vcpu, reg(d, DMA_REG_ENTRIES), GUEST_RING_ENTRIES);
    guest_write32(d->env, d->vcpu, reg(d, DMA_REG_CTRL), DMA_CTRL_ENABLE);
    d->dma->driver = GUEST_DRIVER_DMA;
}

static uint64_t source_gpa(const struct driver *d, uint32_t slot)
{
    return d->sources_gpa + slot * d->buffer_bytes;
}

static uint64_t target_gpa(const struct driver *d, uint32_t target)
{
    return d->targets_gpa + target * d->buffer_bytes;
}

/* A target keeps what was last checked in it until its turn comes again. */
static void take_target(const struct driver *d, uint32_t slot, uint64_t seed, uint64_t stride)
{
    struct guest_dma *dma = d->dma;
    uint32_t target = dma->next_target++ % GUEST_DMA_TARGETS;
    uint64_t bytes = d->params->dma_bytes;
    uint64_t at = compare_words(d, target_gpa(d, target), bytes, dma->target[target].seed,
                                dma->target[target].stride);
    if (at != bytes / 8)
        fail(d, GUEST_ERROR_STALE_DMA, target, dma->target[target].seed, at, dma->queued);
    guest_bump(&d->score->targets_rechecked, 1);
    dma->slot_target[slot] = target;
    dma->target[target].seed = seed;
    dma->target[target].stride = stride;
}

static void prepare_sram(const struct driver *d, uint32_t slot, struct dma_descriptor *desc,
                         uint64_t seed, bool store)
{
    desc->length = GUEST_SRAM_BYTES < d->params->dma_bytes ? GUEST_SRAM_BYTES : d->params->dma_bytes;
    if (store && d->dma->sram_seed[slot]) {
        desc->op = DMA_OP_SRAM_STORE;
        desc->src = slot * GUEST_SRAM_BYTES;
        desc->dst = source_gpa(d, slot);
        put_words(d, desc->dst, desc->length, ~seed, COPY_STRIDE);
        return;
    }
    desc->op = DMA_OP_SRAM_LOAD;
    desc->src = source_gpa(d, slot);
    desc->dst = slot * GUEST_SRAM_BYTES;
    put_words(d, desc->src, desc->length, seed, COPY_STRIDE);
    d->dma->sram_seed[slot] = seed;
}

static void prepare(const struct driver *d, uint32_t slot, struct dma_descriptor *desc)
{
    uint64_t seed = next_random(d->dma) | 1;
    uint32_t kind = (uint32_t)(seed >> 32) % 8;
    d->dma->slot_seed[slot] = seed;
    if (guest_p2p_prepare(d->env, d->index, slot, seed, source_gpa(d, slot), desc))
        return;
    desc->length = d->params->dma_bytes;
    if (kind < 4) {
        desc->op = DMA_OP_COPY;
        desc->src = source_gpa(d, slot);
        take_target(d, slot, seed, COPY_STRIDE);
        desc->dst = target_gpa(d, d->dma->slot_target[slot]);
        put_words(d, desc->src, desc->length, seed, COPY_STRIDE);
    } else if (kind == 4) {
        desc->op = DMA_OP_FILL;
        desc->pattern = seed;
        take_target(d, slot, seed, 1);
        desc->dst = target_gpa(d, d->dma->slot_target[slot]);
    } else if (kind == 5) {
        desc->op = DMA_OP_CRC;
        desc->src = source_gpa(d, slot);
        put_words(d, desc->src, desc->length, seed, COPY_STRIDE);
    } else {
        prepare_sram(d, slot, desc, seed, kind == 7);
    }
}

static bool remap_is_due(const struct driver *d)
{
    return d->dma->remap_tsc >= tsc_of_us(d, REMAP_US);
}

/* Which two: every pair in its turn. */
static void remap_pair(const struct driver *d, uint32_t *ret_a, uint32_t *ret_b)
{
    uint64_t n = d->score->irq_remaps;
    *ret_a = (uint32_t)(n % GUEST_VECTORS);
    *ret_b = (uint32_t)((n + 1 + n / GUEST_VECTORS % (GUEST_VECTORS - 1)) % GUEST_VECTORS);
}

/* External state changes all the time (C47, C48): two vectors that have nothing outstanding exchange
 * their entries, so that a table of another moment raises the wrong interrupt. */
static void remap(const struct driver *d, uint64_t elapsed_tsc)
{
    struct guest_dma *dma = d->dma;
    uint32_t a, b;
    dma->remap_tsc += elapsed_tsc;
    remap_pair(d, &a, &b);
    if (!remap_is_due(d) || dma->irq_state[a] != GUEST_IRQ_IDLE || dma->irq_state[b] != GUEST_IRQ_IDLE)
        return;
    uint32_t at = dma->irq_at[a], seen = dma->irq_seen[a];
    dma->irq_at[a] = dma->irq_at[b];
    dma->irq_seen[a] = dma->irq_seen[b];
    dma->irq_at[b] = at;
    dma->irq_seen[b] = seen;
    write_entry(d, a);
    write_entry(d, b);
    dma->remap_tsc = 0;
    guest_bump(&d->score->irq_remaps, 1);
}

/* Asks for an interrupt when a vector has none outstanding: at most one of each is on its way, so
 * that a lost and a doubled one can be told. */
static void ask_irq(const struct driver *d, uint32_t slot, struct dma_descriptor *desc)
{
    uint32_t v = d->dma->queued % GUEST_VECTORS, a, b;
    remap_pair(d, &a, &b);
    if (d->dma->irq_state[v] != GUEST_IRQ_IDLE || (remap_is_due(d) && (v == a || v == b)))
        return;
    desc->flags = DMA_FLAG_IRQ;
    desc->vector = v;
    d->dma->irq_state[v] = GUEST_IRQ_QUEUED;
    d->dma->irq_slot[v] = slot;
    d->dma->irq_wait_tsc[v] = 0;
    guest_bump(&d->score->irqs_asked[v], 1);
}

static void queue_one(const struct driver *d)
{
    uint32_t slot = d->dma->queued % GUEST_RING_ENTRIES;
    struct dma_descriptor desc = {.cookie = next_random(d->dma)};
    prepare(d, slot, &desc);
    ask_irq(d, slot, &desc);
    guest_iommu_prepare(d->env, d->index, slot, d->dma->slot_seed[slot], &desc);
    d->ring[slot] = desc;
    d->dma->queued++;
    guest_bump(&d->score->queued, 1);
}

/* Fills up in halves, because a doorbell is an exit. */
static void refill(const struct driver *d, uint64_t elapsed_tsc)
{
    struct guest_dma *dma = d->dma;
    uint32_t flying = dma->queued - dma->completed, most = d->params->dma_in_flight;
    uint32_t room = flying > most / 2 ? 0 : most - flying;
    if (d->params->dma_ops_s) {
        uint64_t cost = d->params->tsc_khz * 1000 / d->params->dma_ops_s;
        uint64_t limit = tsc_of_us(d, CREDIT_MAX_US) + cost;
        dma->credit_tsc += elapsed_tsc;
        if (dma->credit_tsc > limit)
            dma->credit_tsc = limit;
        if (room > dma->credit_tsc / cost)
            room = (uint32_t)(dma->credit_tsc / cost);
        dma->credit_tsc -= room * cost;
    }
    uint32_t before = dma->queued;
    while (room-- && guest_iommu_slot_ready(d->env, d->index, dma->queued % GUEST_RING_ENTRIES))
        queue_one(d);
    if (dma->queued == before)
        return;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    guest_write32(d->env, d->vcpu, reg(d, DMA_REG_TAIL), dma->queued);
    guest_bump(&d->score->doorbells, 1);
}

static bool result_is_right(const struct driver *d, uint32_t slot, const struct dma_descriptor *desc)
{
    struct guest_dma *dma = d->dma;
    uint64_t words = desc->length / 8, at = words;
    bool right = false;
    if (guest_p2p_complete(d->env, d->index, slot, source_gpa(d, slot), &right))
        return right;
    if (desc->op == DMA_OP_COPY)
        at = compare_words(d, desc->dst, desc->length, dma->slot_seed[slot], COPY_STRIDE);
    else if (desc->op == DMA_OP_FILL)
        at = compare_words(d, desc->dst, desc->length, dma->slot_seed[slot], 1);
    else if (desc->op == DMA_OP_SRAM_STORE)
        at = compare_words(d, desc->dst, desc->length, dma->sram_seed[slot], COPY_STRIDE);
    else if (desc->op == DMA_OP_CRC && desc->result != crc_words(d, desc->src, desc->length))
        at = 0;
    if (at == words)
        return true;
    fail(d, desc->op == DMA_OP_SRAM_STORE ? GUEST_ERROR_SRAM : GUEST_ERROR_RESULT, desc->op,
         dma->slot_seed[slot], at, desc->serial);
    return false;
}

static void complete_one(const struct driver *d, uint32_t slot, uint32_t status)
{
    struct guest_dma *dma = d->dma;
    struct dma_descriptor taken = d->ring[slot], *desc = &taken;
    bool doomed = guest_iommu_complete(d->env, d->index, slot, desc);
    bool good = status == DMA_STATUS_DONE;
    if (doomed && status == (DMA_STATUS_DONE | GUEST_EFAULT))
        guest_bump(&guest_scoreboard(d->env)->iommu.efaults, 1);
    else if (!good || doomed)
        fail(d, GUEST_ERROR_STATUS, desc->op, DMA_STATUS_DONE, status, desc->serial);
    if (dma->serial && desc->serial != dma->serial + 1) {
        fail(d, GUEST_ERROR_SERIAL, slot, dma->serial + 1, desc->serial, dma->completed);
        good = false;
    }
    dma->serial = desc->serial;
    if (good && desc->length > d->params->dma_bytes) {
        fail(d, GUEST_ERROR_STATUS, desc->op, d->params->dma_bytes, desc->length, desc->serial);
        good = false;
    }
    if (good && result_is_right(d, slot, desc))
        guest_bump(&d->score->checked, 1);
    if (desc->op == DMA_OP_SRAM_STORE)
        guest_bump(&d->score->sram_checks, 1);
    for (uint32_t v = 0; v < GUEST_VECTORS; v++)
        if (dma->irq_state[v] == GUEST_IRQ_QUEUED && dma->irq_slot[v] == slot)
            dma->irq_state[v] = GUEST_IRQ_DUE;
    dma->completed++;
    guest_bump(&d->score->completed, 1);
}

static void reap(const struct driver *d)
{
    struct guest_dma *dma = d->dma;
    while (dma->completed != dma->queued) {
        uint32_t slot = dma->completed % GUEST_RING_ENTRIES;
        uint32_t status = __atomic_load_n(&d->ring[slot].status, __ATOMIC_ACQUIRE);
        if (!(status & DMA_STATUS_DONE))
            return;
        complete_one(d, slot, status);
    }
}

/* came: the vector's counter as it was read before the completions were. */
static void check_irq(const struct driver *d, uint32_t v, uint32_t came, uint64_t elapsed_tsc)
{
    struct guest_dma *dma = d->dma;
    uint32_t news = came - dma->irq_seen[v];
    uint64_t most = tsc_of_us(d, WAIT_STEP_US);
    if (news) {
        dma->irq_seen[v] = came;
        guest_bump(&d->score->irqs[v], news);
        if (news > 1 || dma->irq_state[v] != GUEST_IRQ_DUE)
            fail(d, GUEST_ERROR_IRQ_TWICE, v, 1, news, dma->irq_state[v]);
        if (dma->irq_state[v] == GUEST_IRQ_DUE)
            dma->irq_state[v] = GUEST_IRQ_IDLE;
        return;
    }
    if (dma->irq_state[v] != GUEST_IRQ_DUE)
        return;
    dma->irq_wait_tsc[v] += elapsed_tsc < most ? elapsed_tsc : most;
    if (dma->irq_wait_tsc[v] <= tsc_of_us(d, d->params->irq_timeout_ms * UINT64_C(1000)))
        return;
    fail(d, GUEST_ERROR_IRQ_LOST, v, 1, 0, dma->irq_wait_tsc[v]);
    dma->irq_state[v] = GUEST_IRQ_IDLE;
}

/* Now and then one register and one SRAM word, because each is an exit. */
static void check_device(const struct driver *d, uint64_t elapsed_tsc)
{
    struct guest_dma *dma = d->dma;
    dma->check_tsc += elapsed_tsc;
    if (dma->check_tsc < tsc_of_us(d, CHECK_US))
        return;
    dma->check_tsc = 0;
    uint32_t i = (uint32_t)(dma->generation++ % GUEST_SRAM_KEPT);
    uint64_t word = guest_read64(d->env, d->vcpu, reg(d, DMA_SRAM + GUEST_SRAM_WORDS + i * 8));
    if (word != dma->kept[i])
        fail(d, GUEST_ERROR_SRAM, i, dma->kept[i], word, dma->generation);
    guest_bump(&d->score->sram_checks, 1);
    keep_word(d, i);
    guest_p2p_look(d->env, d->index);
    if (i == 0) {
        uint64_t scratch = guest_read64(d->env, d->vcpu, reg(d, DMA_REG_SCRATCH));
        if (scratch != (SCRATCH_SALT | d->index))
            fail(d, GUEST_ERROR_DEVICE, DMA_REG_SCRATCH, SCRATCH_SALT | d->index, scratch, 0);
    } else if (i == 1) {
        uint32_t head = guest_read32(d->env, d->vcpu, reg(d, DMA_REG_HEAD));
        if (head - dma->completed > dma->queued - dma->completed)
            fail(d, GUEST_ERROR_DEVICE, DMA_REG_HEAD, dma->completed, head, dma->queued);
    }
}

static void drive(const struct driver *d, uint64_t elapsed_tsc)
{
    uint32_t came[GUEST_VECTORS];
    for (uint32_t v = 0; v < GUEST_VECTORS; v++)
        came[v] = guest_irq_count(d->env, d->device->first_vector + d->dma->irq_at[v]);
    reap(d);
    for (uint32_t v = 0; v < GUEST_VECTORS; v++)
        check_irq(d, v, came[v], elapsed_tsc);
    remap(d, elapsed_tsc);
    refill(d, elapsed_tsc);
    check_device(d, elapsed_tsc);
}

/* Whose driver a device is in for, by its first register. A device that is neither is a dma device
 * that answers nonsense. */
static void find_driver(const struct driver *d)
{
    uint32_t id = guest_read32(d->env, d->vcpu, reg(d, DMA_REG_ID));
    if (id == BULK_ID)
        d->dma->driver = GUEST_DRIVER_BULK;
    else
        set_up(d, id);
}

void guest_device_step(const struct guest_env *env, uint32_t vcpu, uint64_t elapsed_tsc)
{
    const struct guest_params *params = guest_params(env);
    guest_iommu_step(env, vcpu, elapsed_tsc);
    for (uint32_t i = 0; i < params->device_count; i++) {
        const struct guest_device_params *device = &params->devices[i];
        if (device->vcpu != vcpu || !guest_iommu_ready(env, i))
            continue;
        struct driver d = {.env = env, .params = params, .device = device, .index = i, .vcpu = vcpu};
        d.dma = guest_at(env, device->heap_gpa, sizeof(*d.dma));
        d.score = &guest_scoreboard(env)->device[i];
        d.ring_gpa = device->heap_gpa + GUEST_DMA_STATE_BYTES;
        d.ring = guest_at(env, d.ring_gpa, GUEST_RING_ENTRIES * sizeof(*d.ring));
        d.buffer_bytes = guest_page_up(params->dma_bytes);
        d.sources_gpa = d.ring_gpa + 4096;
        d.targets_gpa = d.sources_gpa + GUEST_RING_ENTRIES * d.buffer_bytes;
        if (d.dma->driver == GUEST_DRIVER_UNKNOWN)
            find_driver(&d);
        if (d.dma->driver == GUEST_DRIVER_BULK)
            guest_bulk_step(env, vcpu, i, elapsed_tsc);
        else
            drive(&d, elapsed_tsc);
    }
}
