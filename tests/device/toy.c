/* SPDX-License-Identifier: BSD-3-Clause */
#include "toy.h"

#include "base/sabotage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One page of memory in the stream; page TOY_PAGES carries scratch. */
struct record {
    uint64_t page;
    uint8_t data[TOY_PAGE];
};

static void async_done(void *user, int err)
{
    struct toy *toy = user;

    toy->status = err;
    vfmig_dma_end(&toy->dma);
    toy->in_flight = false;
    if (err == 0)
        vfmig_device_irq(toy->dev, 0);
}

static void start_async(struct toy *toy, bool write)
{
    int r = vfmig_device_dma_begin(toy->dev, &toy->dma);

    toy->status = r;
    if (r < 0)
        return;
    toy->in_flight = true;
    r = write ? vfmig_dma_write_async(&toy->dma, toy->iova, &toy->value, 8, async_done, toy)
              : vfmig_dma_read_async(&toy->dma, toy->iova, &toy->value, 8, async_done, toy);
    if (r != -EINPROGRESS)
        async_done(toy, r);
    else
        toy->status = r;
}

static void doorbell(struct toy *toy, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case TOY_IRQ:
        toy->status = vfmig_device_irq(toy->dev, value);
        break;
    case TOY_WRITE:
        toy->status = vfmig_device_dma_write(toy->dev, toy->iova, &toy->value, 8);
        toy->dma_pages++;
        break;
    case TOY_BEGIN:
        toy->status = vfmig_device_dma_begin(toy->dev, &toy->dma);
        toy->in_flight = toy->status == 0;
        break;
    case TOY_END:
        toy->status = vfmig_dma_write(&toy->dma, toy->iova, &toy->value, 8);
        vfmig_device_irq(toy->dev, 0);
        vfmig_dma_end(&toy->dma);
        toy->in_flight = false;
        break;
    case TOY_ASYNC:
    case TOY_READ:
        start_async(toy, offset == TOY_ASYNC);
        break;
    default:
        break;
    }
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct toy *toy = user;
    uint64_t value = 0;

    if (offset >= TOY_MEMORY && offset + size <= TOY_MEMORY + TOY_MEMORY_SIZE) {
        memcpy(toy->memory + (offset - TOY_MEMORY), data, size);
        for (uint64_t at = offset - TOY_MEMORY; at < offset - TOY_MEMORY + size; at++)
            toy->dirty |= UINT64_C(1) << (at / TOY_PAGE);
        return 0;
    }
    if (size > 8)
        return -EINVAL;
    memcpy(&value, data, size);
    if (offset == TOY_SCRATCH)
        toy->scratch = value;
    else if (offset == TOY_IOVA)
        toy->iova = value;
    else if (offset == TOY_VALUE)
        toy->value = value;
    else
        doorbell(toy, offset, (uint32_t)value);
    return 0;
}

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    struct toy *toy = user;
    uint64_t value = offset == TOY_SCRATCH  ? toy->scratch
                     : offset == TOY_IOVA   ? toy->iova
                     : offset == TOY_VALUE  ? toy->value
                     : offset == TOY_GATES  ? toy->gates
                     : offset == TOY_STATUS ? (uint64_t)(uint32_t)toy->status
                                            : 0;

    if (offset >= TOY_MEMORY && offset + size <= TOY_MEMORY + TOY_MEMORY_SIZE)
        memcpy(data, toy->memory + (offset - TOY_MEMORY), size);
    else if (size <= 8)
        memcpy(data, &value, size);
    else
        memset(data, 0, size);
    return 0;
}

static void reset(void *user)
{
    struct toy *toy = user;

    toy->scratch = toy->iova = toy->value = 0;
    memset(toy->memory, 0, sizeof(toy->memory));
    toy->in_flight = toy->logging = false;
    toy->resets++;
}

static int stop(void *user)
{
    struct toy *toy = user;
    toy->stops++;
    return toy->fail_stop;
}

static int start(void *user)
{
    struct toy *toy = user;
    toy->starts++;
    return toy->fail_start;
}

static void gate(void *user, bool open)
{
    struct toy *toy = user;
    toy->gates += open ? 0x10000 : 1;
}

static int save_begin(void *user, bool running)
{
    struct toy *toy = user;

    if (toy->fail_save_begin)
        return toy->fail_save_begin;
    if (!toy->logging) /* a new save: everything is to be sent */
        toy->dirty = UINT64_MAX;
    toy->logging = running;
    toy->final_done = false;
    return 0;
}

static ssize_t next_page(struct toy *toy, void *buf)
{
    struct record *record = buf;

    if (!toy->dirty)
        return 0;
    record->page = (uint64_t)__builtin_ctzll(toy->dirty);
    if (toy->scribble) /* what if the client changed it before we look again? */
        memset(toy->scribble + toy->saves++ * toy->scribble_stride, 0, toy->scribble_stride);
    memcpy(record->data, toy->memory + record->page * TOY_PAGE, TOY_PAGE);
    toy->dirty &= toy->dirty - 1;
    return sizeof(*record);
}

static ssize_t save_precopy(void *user, void *buf, size_t size)
{
    struct toy *toy = user;
    ssize_t n = next_page(toy, buf);
    toy->precopy_bytes += (unsigned)n;
    return n;
}

static ssize_t save(void *user, void *buf, size_t size)
{
    struct toy *toy = user;
    struct record *record = buf;
    ssize_t n = next_page(toy, buf);

    if (n || toy->final_done)
        return n;
    if (toy->dma_pages && vfmig_sabotage("toy-saves-guest-memory")) {
        toy->dma_pages--;
        memset(record, 0, sizeof(*record));
        return sizeof(*record);
    }
    toy->final_done = true;
    memset(record, 0, sizeof(*record));
    record->page = TOY_PAGES;
    memcpy(record->data, &toy->scratch, 8);
    return sizeof(*record);
}

static void save_end(void *user)
{
    struct toy *toy = user;
    toy->logging = false;
}

static int load(void *user, const void *data, size_t size)
{
    struct toy *toy = user;
    const struct record *record = data;

    if (toy->scribble)
        memset(toy->scribble + toy->loads * toy->scribble_stride, 0xff, toy->scribble_stride);
    toy->loads++;
    if (size != sizeof(*record) || record->page > TOY_PAGES)
        return -EBADMSG;
    if (record->page == TOY_PAGES)
        memcpy(&toy->scratch, record->data, 8);
    else
        memcpy(toy->memory + record->page * TOY_PAGE, record->data, TOY_PAGE);
    return 0;
}

static int load_end(void *user)
{
    struct toy *toy = user;
    return toy->fail_load_end;
}

static struct toy *make(struct vfmig_device_config config, bool migratable)
{
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;
    struct toy *toy = calloc(1, sizeof(*toy));

    config.name = "toy";
    config.pci_vendor = 0x1b36;
    config.pci_device = 0x7fdf;
    config.bars[0].size = TOY_BAR_SIZE;
    config.msix_vectors = TOY_VECTORS;
    config.msix_table = TOY_TABLE;
    config.msix_pba = TOY_PBA;
    config.answers_stopped = true;
    ops.region_read = region_read;
    ops.region_write = region_write;
    ops.reset = reset;
    ops.stop = stop;
    ops.start = start;
    ops.gate = gate;
    if (migratable) {
        ops.save_begin = save_begin;
        ops.save_precopy = save_precopy;
        ops.save = save;
        ops.save_end = save_end;
        ops.load = load;
        ops.load_end = load_end;
    }
    if (vfmig_device_new(&config, &ops, toy, &toy->dev, NULL) < 0)
        abort();
    return toy;
}

struct toy *toy_new(bool ndma, bool precopy, bool migratable, uint64_t drain_timeout_ns)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;

    config.no_ndma = !ndma;
    config.no_precopy = !precopy;
    config.drain_timeout_ns = drain_timeout_ns;
    return make(config, migratable);
}

struct toy *toy_new_windows(uint32_t window_count, bool save_writes_only)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;

    config.window_count = window_count;
    config.save_writes_only = save_writes_only;
    return make(config, true);
}

void toy_free(struct toy *toy)
{
    vfmig_device_free(toy->dev);
    free(toy);
}
