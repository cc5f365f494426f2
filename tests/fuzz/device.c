/* SPDX-License-Identifier: BSD-3-Clause */
#include "device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGES      (POOL_STATE_SIZE / POOL_PAGE)
#define GATE_TIMER 0u
#define GATE_NS    1000000u /* what a held operation takes once N is asked for */

struct slot {
    struct pool *pool;
    bool used, held;
    struct vfmig_dma dma;
    uint8_t *buf;
};

struct pool {
    struct vfmig_device *dev;
    uint64_t iova;
    uint32_t size;
    uint8_t state[POOL_STATE_SIZE];
    uint32_t dirty; /* pages to be saved */
    bool logging;
    struct slot slots[POOL_SLOTS];
};

struct record {
    uint32_t page, reserved;
    uint8_t data[POOL_PAGE];
};

/* ---- accesses -------------------------------------------------------------------------------- */

static void forget(struct slot *slot)
{
    free(slot->buf);
    slot->buf = NULL;
    slot->used = slot->held = false;
}

static void end(struct slot *slot)
{
    vfmig_dma_end(&slot->dma);
    forget(slot);
}

/* What was read is state: it has to be whole. */
static void done(void *user, int err)
{
    struct slot *slot = user;
    struct pool *pool = slot->pool;

    if (err == 0) {
        pool->state[0] ^= slot->buf[0];
        pool->dirty |= 1;
    }
    end(slot);
    vfmig_device_irq(pool->dev, err == 0 ? 0 : 1);
}

static void go_sync(struct pool *pool, bool write)
{
    uint8_t *buf = calloc(1, pool->size + 1u);
    int r = write ? vfmig_device_dma_write(pool->dev, pool->iova, buf, pool->size)
                  : vfmig_device_dma_read(pool->dev, pool->iova, buf, pool->size);

    pool->state[1] ^= r == 0 ? buf[0] : (uint8_t)-r;
    free(buf);
}

static void go(struct pool *pool, uint32_t how)
{
    struct slot *slot = NULL;
    int r = 0;

    if (how & POOL_GO_SYNC) {
        go_sync(pool, how & POOL_GO_WRITE);
        return;
    }
    for (unsigned i = 0; i < POOL_SLOTS && !slot; i++)
        slot = pool->slots[i].used ? NULL : &pool->slots[i];
    if (!slot || vfmig_device_dma_begin(pool->dev, &slot->dma) < 0)
        return;
    slot->used = true;
    slot->held = how & POOL_GO_HOLD;
    if (slot->held)
        return;
    slot->buf = malloc(pool->size + 1u);
    memset(slot->buf, 0xd5, pool->size + 1u);
    r = how & POOL_GO_WRITE
            ? vfmig_dma_write_async(&slot->dma, pool->iova, slot->buf, pool->size, done, slot)
            : vfmig_dma_read_async(&slot->dma, pool->iova, slot->buf, pool->size, done, slot);
    if (r != -EINPROGRESS)
        done(slot, r);
}

static void end_held(struct pool *pool)
{
    for (unsigned i = 0; i < POOL_SLOTS; i++)
        if (pool->slots[i].held)
            end(&pool->slots[i]);
}

static void gate(void *user, bool open)
{
    struct pool *pool = user;

    if (!open)
        vfmig_device_timer(pool->dev, GATE_TIMER, vfmig_device_now_ns() + GATE_NS);
}

static void timer(void *user, uint32_t number)
{
    struct pool *pool = user;

    if (number == GATE_TIMER)
        end_held(pool);
    else
        vfmig_device_irq(pool->dev, number);
}

/* ---- registers ------------------------------------------------------------------------------- */

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    struct pool *pool = user;

    memset(data, 0, size);
    if (bar == 2)
        memcpy(data, pool->state + offset, size);
    else if (offset >= POOL_STATE && offset + size <= POOL_STATE + POOL_STATE_SIZE)
        memcpy(data, pool->state + (offset - POOL_STATE), size);
    return offset == 0x7ff8 ? -EIO : 0;
}

static void write_state(struct pool *pool, uint64_t offset, const void *data, uint32_t size)
{
    memcpy(pool->state + offset, data, size);
    for (uint64_t page = offset / POOL_PAGE; size && page <= (offset + size - 1) / POOL_PAGE;
         page++)
        pool->dirty |= 1u << page;
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct pool *pool = user;
    uint64_t value = 0;

    if (bar == 2 || (offset >= POOL_STATE && offset + size <= POOL_STATE + POOL_STATE_SIZE)) {
        write_state(pool, bar == 2 ? offset : offset - POOL_STATE, data, size);
        return 0;
    }
    memcpy(&value, data, size < sizeof(value) ? size : sizeof(value));
    switch (offset) {
    case POOL_IOVA:
        pool->iova = value;
        break;
    case POOL_SIZE:
        pool->size = value < POOL_SIZE_MAX ? (uint32_t)value : POOL_SIZE_MAX;
        break;
    case POOL_GO:
        go(pool, (uint32_t)value);
        break;
    case POOL_IRQ:
        return vfmig_device_irq(pool->dev, (uint32_t)value);
    case POOL_END:
        if (value < POOL_SLOTS && pool->slots[value].held)
            end(&pool->slots[value]);
        break;
    case POOL_TIMER:
        return vfmig_device_timer(pool->dev, value & 0xff,
                                  vfmig_device_now_ns() + (uint32_t)value / 256 * 1000ull);
    default:
        break;
    }
    return 0;
}

static void reset(void *user)
{
    struct pool *pool = user;

    for (unsigned i = 0; i < POOL_SLOTS; i++)
        forget(&pool->slots[i]); /* their handles are dead */
    memset(pool->state, 0, sizeof(pool->state));
    pool->iova = pool->size = 0;
    pool->logging = false;
}

/* ---- state ----------------------------------------------------------------------------------- */

static int save_begin(void *user, bool running)
{
    struct pool *pool = user;

    if (!pool->logging)
        pool->dirty = (1u << PAGES) - 1;
    pool->logging = running;
    return 0;
}

static ssize_t save(void *user, void *buf, size_t size)
{
    struct pool *pool = user;
    size_t at = 0;

    for (; pool->dirty && size - at >= sizeof(struct record); pool->dirty &= pool->dirty - 1) {
        struct record record = {.page = (uint32_t)__builtin_ctz(pool->dirty)};
        memcpy(record.data, pool->state + record.page * POOL_PAGE, POOL_PAGE);
        memcpy((uint8_t *)buf + at, &record, sizeof(record));
        at += sizeof(record);
    }
    return (ssize_t)at;
}

static void save_end(void *user)
{
    struct pool *pool = user;
    pool->logging = false;
}

static int load(void *user, const void *data, size_t size)
{
    struct pool *pool = user;
    struct record record;

    if (size % sizeof(record))
        return -EBADMSG;
    for (size_t at = 0; at < size; at += sizeof(record)) {
        memcpy(&record, (const uint8_t *)data + at, sizeof(record));
        if (record.page >= PAGES || record.reserved)
            return -EBADMSG;
        memcpy(pool->state + record.page * POOL_PAGE, record.data, POOL_PAGE);
    }
    return 0;
}

static void pool_free(void *user)
{
    struct pool *pool = user;

    for (unsigned i = 0; i < POOL_SLOTS; i++)
        forget(&pool->slots[i]);
    free(pool);
}

struct vfmig_device *pool_device_new(bool no_ndma, bool no_precopy, uint32_t max_data)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    for (unsigned i = 0; i < POOL_SLOTS; i++)
        pool->slots[i].pool = pool;
    config.name = "pool";
    config.pci_vendor = POOL_VENDOR;
    config.pci_device = POOL_DEVICE;
    config.bars[0].size = POOL_BAR_SIZE;
    config.bars[2] = (struct vfmig_device_bar){POOL_STATE_SIZE, true, true};
    config.bars[5].size = 16;
    config.msix_vectors = POOL_VECTORS;
    config.msix_table = POOL_TABLE;
    config.msix_pba = POOL_PBA;
    config.no_ndma = no_ndma;
    config.no_precopy = no_precopy;
    config.max_data_xfer_bytes = max_data;
    ops.region_read = region_read;
    ops.region_write = region_write;
    ops.reset = reset;
    ops.gate = gate;
    ops.timer = timer;
    ops.save_begin = save_begin;
    ops.save_precopy = save;
    ops.save = save;
    ops.save_end = save_end;
    ops.load = load;
    ops.free = pool_free;
    if (vfmig_device_new(&config, &ops, pool, &pool->dev, NULL) < 0)
        abort();
    return pool->dev;
}
