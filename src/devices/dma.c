/* SPDX-License-Identifier: BSD-3-Clause */
/* The dma device: registers, and the engine that works the ring. One descriptor is in flight at a
 * time; each of its accesses may have to wait for the client, so the engine is a list of phases. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/sabotage.h"
#include "devices/dma_priv.h"

#define TIMER_DELAY 0u
#define TIMER_NEXT  1u
#define BURST       64u /* descriptors in a row before the sockets are looked at again */

static void run(struct dma_device *d);

static void step_done(void *user, int err)
{
    struct dma_device *d = user;

    if (err == -EINTR) {
        /* N waits too long for this one: nothing of it is kept, it is fetched again when the
         * gate opens (head has not moved). */
        vfmig_dma_end(&d->dma);
        d->phase = DMA_IDLE;
        if (vfmig_sabotage("aborted-dma-lost"))
            d->regs.tail = d->regs.head;
        return;
    }
    d->err = d->err ? d->err : err;
    run(d);
    dma_ahead_kick(d);
}

/* C71: looked up for every access, because the value is the client's. */
uint64_t dma_iova(const struct dma_device *d, uint64_t iova)
{
    uint64_t value = 0;

    if (!d->regs.pasid)
        return iova;
    if (vfmig_device_handle_value(d->dev, VFMIG_HANDLE_PASID, d->regs.pasid, &value) < 0 ||
        iova >> DMA_PASID_SHIFT)
        return dma_tagged(DMA_PASID_NONE, iova & ((UINT64_C(1) << DMA_PASID_SHIFT) - 1));
    return dma_tagged(value, iova);
}

static uint64_t desc_iova(const struct dma_device *d)
{
    uint32_t index = d->regs.head & (d->regs.entries - 1);

    return dma_iova(d, d->regs.ring + (uint64_t)index * sizeof(d->desc));
}

static bool reads_memory(const struct dma_device *d)
{
    return d->desc.op == DMA_OP_COPY || d->desc.op == DMA_OP_CRC || d->desc.op == DMA_OP_SRAM_LOAD;
}

static bool writes_memory(const struct dma_device *d)
{
    return d->desc.op == DMA_OP_COPY || d->desc.op == DMA_OP_FILL ||
           d->desc.op == DMA_OP_SRAM_STORE;
}

static bool in_sram(uint64_t offset, uint32_t length)
{
    return offset <= DMA_SRAM_SIZE && length <= DMA_SRAM_SIZE - offset;
}

/* The descriptor comes from the guest: checked once, from the device's own copy. */
static int check_desc(const struct dma_device *d)
{
    const struct dma_descriptor *desc = &d->desc;

    if (desc->op > DMA_OP_SRAM_STORE || (desc->flags & ~DMA_FLAG_IRQ))
        return -EINVAL;
    if ((desc->flags & DMA_FLAG_IRQ) && desc->vector >= DMA_VECTORS)
        return -EINVAL;
    if (desc->op == DMA_OP_NOP)
        return 0;
    if (desc->length == 0 || desc->length > DMA_MAX_LENGTH)
        return -EINVAL;
    if (desc->op == DMA_OP_SRAM_LOAD && !in_sram(desc->dst, desc->length))
        return -ERANGE;
    if (desc->op == DMA_OP_SRAM_STORE && !in_sram(desc->src, desc->length))
        return -ERANGE;
    return 0;
}

static void fill(struct dma_device *d)
{
    for (uint64_t i = 0; i * 8 < d->desc.length; i++) {
        uint64_t word = d->desc.pattern + i;
        memcpy(d->data + i * 8, &word, 8);
    }
}

static void work(struct dma_device *d)
{
    const struct dma_descriptor *desc = &d->desc;

    switch ((enum dma_op)desc->op) {
    case DMA_OP_FILL:
        fill(d);
        break;
    case DMA_OP_CRC:
        d->desc.result = vfmig_crc32c(0, d->data, desc->length);
        break;
    case DMA_OP_SRAM_LOAD:
        memcpy(d->sram + desc->dst, d->data, desc->length);
        dma_touch_sram(d, desc->dst, desc->length);
        break;
    case DMA_OP_SRAM_STORE:
        memcpy(d->data, d->sram + desc->src, desc->length);
        break;
    case DMA_OP_NOP:
    case DMA_OP_COPY:
        break;
    }
}

/* Result and serial first, status last: the guest looks at status and then trusts the rest. */
static int write_result(struct dma_device *d)
{
    uint64_t at = desc_iova(d) + offsetof(struct dma_descriptor, result);

    d->desc.serial = d->regs.serial + 1;
    return vfmig_dma_write_async(&d->dma, at, &d->desc.result,
                                 sizeof(d->desc.result) + sizeof(d->desc.serial), step_done, d);
}

static int write_status(struct dma_device *d)
{
    uint64_t at = desc_iova(d) + offsetof(struct dma_descriptor, status);

    d->desc.status = DMA_STATUS_DONE | (uint32_t)-d->err;
    return vfmig_dma_write_async(&d->dma, at, &d->desc.status, sizeof(d->desc.status), step_done,
                                 d);
}

static bool sends_message(const struct dma_device *d)
{
    return d->ims && (d->desc.flags & DMA_FLAG_IRQ) && !d->abandoned;
}

/* C71: as with a PASID, the value is looked up each time. It is a DMA like any other, so N holds it. */
static int write_message(struct dma_device *d)
{
    uint64_t value;
    int r = vfmig_device_handle_value(d->dev, VFMIG_HANDLE_IMS, d->ims, &value);

    if (r < 0)
        return r;
    d->message = (uint32_t)value;
    return vfmig_dma_write_async(&d->dma, DMA_IMS_AT, &d->message, sizeof(d->message), step_done, d);
}

/* The completion is in memory (or cannot be): counted, announced, over. */
static void finish(struct dma_device *d)
{
    struct dma_regs *r = &d->regs;

    if (vfmig_sabotage("dma-stream-grows"))
        d->pad_bytes += d->desc.length;
    if (!d->abandoned) {
        r->serial++;
        r->head++;
        r->errors += d->err != 0;
        r->chain = dma_chain(r->chain, r->serial, d->desc.status, d->desc.result, d->desc.cookie);
        if ((d->desc.flags & DMA_FLAG_IRQ) && d->desc.vector < DMA_VECTORS) {
            r->irqs++;
            if (!d->ims)
                vfmig_device_irq(d->dev, d->desc.vector);
        }
    }
    d->phase = DMA_IDLE;
    vfmig_dma_end(&d->dma);
}

/* One phase. 0: go on; -EINPROGRESS: step_done or a timer goes on; other: of the descriptor. */
static int run_phase(struct dma_device *d)
{
    switch (d->phase) {
    case DMA_FETCH:
        d->phase = DMA_DELAY;
        return vfmig_dma_read_async(&d->dma, desc_iova(d), &d->desc, sizeof(d->desc), step_done, d);
    case DMA_DELAY:
        d->err = d->err ? d->err : check_desc(d);
        d->desc.result = 0;
        d->phase = d->err ? DMA_COMPLETE : DMA_FETCH_DATA;
        if (d->knobs.latency_ns && !d->err) {
            vfmig_device_timer(d->dev, TIMER_DELAY, vfmig_device_now_ns() + d->knobs.latency_ns);
            return -EINPROGRESS;
        }
        return 0;
    case DMA_FETCH_DATA:
        d->phase = DMA_WORK;
        return reads_memory(d) ? vfmig_dma_read_async(&d->dma, dma_iova(d, d->desc.src), d->data,
                                                      d->desc.length, step_done, d)
                               : 0;
    case DMA_WORK:
        if (!d->err && !d->abandoned)
            work(d);
        d->phase = d->err || d->abandoned ? DMA_COMPLETE : DMA_STORE_DATA;
        return 0;
    case DMA_STORE_DATA:
        d->phase = DMA_COMPLETE;
        return writes_memory(d) ? vfmig_dma_write_async(&d->dma, dma_iova(d, d->desc.dst), d->data,
                                                        d->desc.length, step_done, d)
                                : 0;
    case DMA_COMPLETE:
        d->phase = d->abandoned ? DMA_FINISH : DMA_STATUS;
        return d->abandoned ? 0 : write_result(d);
    case DMA_STATUS:
        d->phase = sends_message(d) ? DMA_MESSAGE : DMA_FINISH;
        return write_status(d);
    case DMA_MESSAGE:
        d->phase = DMA_FINISH;
        return write_message(d);
    case DMA_FINISH:
        finish(d);
        return 0;
    case DMA_IDLE:
        break;
    }
    return 0;
}

/* Starts the next descriptor when there is one and DMA is allowed. */
static bool start_next(struct dma_device *d)
{
    if (d->phase != DMA_IDLE || !(d->regs.ctrl & DMA_CTRL_ENABLE) || !d->regs.entries ||
        d->regs.head == d->regs.tail)
        return false;
    if (vfmig_device_dma_begin(d->dev, &d->dma) < 0)
        return false; /* the gate's opening kicks again */
    d->phase = DMA_FETCH;
    d->abandoned = false;
    d->err = 0;
    memset(&d->desc, 0, sizeof(d->desc));
    return true;
}

static void run(struct dma_device *d)
{
    for (unsigned done = 0; d->phase != DMA_IDLE || start_next(d);) {
        int r = run_phase(d);
        if (r == -EINPROGRESS)
            return;
        d->err = d->err ? d->err : r;
        if (d->phase == DMA_IDLE && ++done == BURST) {
            vfmig_device_timer(d->dev, TIMER_NEXT, 0);
            return;
        }
    }
}

void dma_device_kick(struct dma_device *d)
{
    if (d->phase == DMA_IDLE)
        run(d);
    dma_ahead_kick(d);
}

static void on_timer(void *user, uint32_t timer)
{
    struct dma_device *d = user;

    if (timer == TIMER_DELAY && d->phase == DMA_FETCH_DATA)
        run(d);
    else if (timer == TIMER_NEXT)
        dma_device_kick(d);
}

static void on_gate(void *user, bool open)
{
    struct dma_device *d = user;

    if (open)
        dma_device_kick(d);
    else if (d->knobs.quiesce_ns && d->phase == DMA_FETCH_DATA)
        vfmig_device_timer(d->dev, TIMER_DELAY, vfmig_device_now_ns() + d->knobs.quiesce_ns);
}

/* ---- registers ------------------------------------------------------------------------------- */

bool dma_regs_valid(const struct dma_regs *r)
{
    return r->ring % 64 == 0 && r->entries <= RING_MAX && (r->entries & (r->entries - 1)) == 0 &&
           r->ring <= UINT64_MAX - (uint64_t)RING_MAX * sizeof(struct dma_descriptor) &&
           r->tail - r->head <= r->entries && !(r->ctrl & ~DMA_CTRL_ENABLE) &&
           r->pasid <= VFMIG_PASID_MAX;
}

static uint64_t read_register(const struct dma_device *d, uint64_t offset)
{
    const struct dma_regs *r = &d->regs;

    switch (offset) {
    case DMA_REG_ID:
        return DMA_ID | (uint64_t)r->ctrl << 32;
    case DMA_REG_RING:
        return r->ring;
    case DMA_REG_ENTRIES:
        return r->entries | (uint64_t)r->tail << 32;
    case DMA_REG_HEAD:
        return r->head | (uint64_t)r->errors << 32;
    case DMA_REG_SCRATCH:
        return r->scratch;
    case DMA_REG_IRQS:
        return r->irqs;
    case DMA_REG_CHAIN:
        return r->chain;
    case DMA_REG_PASID:
        return r->pasid;
    case DMA_REG_IMS:
        return d->ims;
    default:
        return 0;
    }
}

/* A deliberate fault: an access ends the delay of the descriptor in flight. */
static void hurry(struct dma_device *d)
{
    if (d->phase == DMA_FETCH_DATA && d->knobs.latency_ns && vfmig_sabotage("dma-hurried"))
        run(d);
}

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    struct dma_device *d = user;

    hurry(d);
    if (offset >= DMA_SRAM) {
        memcpy(data, d->sram + (offset - DMA_SRAM), size);
        return 0;
    }
    memset(data, 0, size);
    if ((size == 4 || size == 8) && offset % size == 0) {
        uint64_t word = read_register(d, offset & ~7ull) >> (offset % 8 * 8);
        memcpy(data, &word, size);
    }
    return 0;
}

static void write_ctrl(struct dma_device *d, uint32_t value)
{
    d->regs.ctrl = value & DMA_CTRL_ENABLE;
    if (d->regs.ctrl)
        return;
    d->regs.head = d->regs.tail = 0;
    d->abandoned = d->phase != DMA_IDLE;
}

/* Two handles are in use at most, so there is room for them. */
static void write_ims(struct dma_device *d, uint32_t number)
{
    if (d->regs.ctrl & DMA_CTRL_ENABLE) {
        d->regs.errors++;
        return;
    }
    if (d->ims)
        vfmig_device_handle_drop(d->dev, VFMIG_HANDLE_IMS, d->ims);
    if (number)
        (void)vfmig_device_handle_use(d->dev, VFMIG_HANDLE_IMS, number);
    d->ims = number;
}

static void take_registers(struct dma_device *d, const struct dma_regs *next)
{
    if (next->pasid != d->regs.pasid) {
        vfmig_device_handle_drop(d->dev, VFMIG_HANDLE_PASID, d->regs.pasid);
        if (next->pasid)
            (void)vfmig_device_handle_use(d->dev, VFMIG_HANDLE_PASID, next->pasid);
    }
    d->regs = *next;
}

static void write_register(struct dma_device *d, uint64_t offset, uint64_t value)
{
    struct dma_regs *r = &d->regs;
    struct dma_regs next = *r;
    uint32_t low = (uint32_t)value;

    switch (offset) {
    case DMA_REG_CTRL:
        write_ctrl(d, low);
        break;
    case DMA_REG_RING:
        next.ring = value;
        break;
    case DMA_REG_ENTRIES:
        next.entries = low;
        break;
    case DMA_REG_TAIL:
        next.tail = low;
        break;
    case DMA_REG_PASID:
        next.pasid = low;
        break;
    case DMA_REG_IMS:
        write_ims(d, low);
        return;
    case DMA_REG_SCRATCH:
        r->scratch = value;
        return;
    default:
        return;
    }
    if (offset == DMA_REG_CTRL)
        return;
    /* Ring and entries belong to a disabled ring; a tail that goes back would be overtaken by the head
     * while a descriptor is in flight. A value that makes no sense is counted. */
    if (!dma_regs_valid(&next) || (offset != DMA_REG_TAIL && (r->ctrl & DMA_CTRL_ENABLE)) ||
        next.tail - next.head < r->tail - r->head)
        r->errors++;
    else
        take_registers(d, &next);
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct dma_device *d = user;
    uint64_t value = 0;

    if (offset >= DMA_SRAM) {
        memcpy(d->sram + (offset - DMA_SRAM), data, size);
        if (!vfmig_sabotage("sram-change-unlogged"))
            dma_touch_sram(d, offset - DMA_SRAM, size);
        return 0;
    }
    if ((size != 4 && size != 8) || offset % size)
        return 0;
    memcpy(&value, data, size);
    hurry(d);
    write_register(d, offset, value);
    dma_device_kick(d);
    return 0;
}

static void reset(void *user)
{
    struct dma_device *d = user;

    uint64_t scratch = vfmig_sabotage("dma-state-merges") ? d->regs.scratch : 0;

    memset(&d->regs, 0, sizeof(d->regs));
    d->regs.scratch = scratch;
    d->saved_once = false;
    memset(d->sram, 0, sizeof(d->sram));
    d->ims = 0;
    d->phase = DMA_IDLE;
    dma_ahead_reset(d);
    d->logging = false;
    d->pages_loaded = d->pad_loaded = 0;
    d->regs_loaded = false;
}

static void dma_free(void *user)
{
    struct dma_device *d = user;

    free(d->data);
    free(d);
}

int vfmig_dma_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                         struct vfmig_error *reterr)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    if (knobs->state_bytes && knobs->state_bytes < DMA_SRAM_SIZE)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "--state-size: the SRAM of the dma device is 64K already");
    if (knobs->look_ahead > DMA_AHEAD_MAX)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "--look-ahead: %u descriptors at most", DMA_AHEAD_MAX);
    struct dma_device *d = calloc(1, sizeof(*d));
    if (d)
        d->data = malloc(DMA_MAX_LENGTH + 8);
    if (!d || !d->data) {
        free(d);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0, "out of memory");
    }
    d->knobs = *knobs;
    d->pad_bytes = knobs->state_bytes ? knobs->state_bytes - DMA_SRAM_SIZE : 0;
    config.name = "dma";
    config.pci_vendor = DMA_PCI_VENDOR;
    config.pci_device = DMA_PCI_DEVICE;
    config.bars[DMA_BAR].size = DMA_BAR_SIZE;
    config.bars[DMA_BAR].prefetchable = true; /* no read has a side effect */
    config.msix_vectors = DMA_VECTORS;
    config.msix_bar = DMA_BAR;
    config.msix_table = DMA_MSIX_TABLE;
    config.msix_pba = DMA_MSIX_PBA;
    config.state_version = 1;
    config.state_oldest = 1;
    config.answers_stopped = true; /* a doorbell is put off until the gate opens */
    ops.region_read = region_read;
    ops.region_write = region_write;
    ops.reset = reset;
    ops.gate = on_gate;
    ops.timer = on_timer;
    ops.free = dma_free;
    dma_state_ops(&ops);
    int r = vfmig_device_new_with_knobs(knobs, &config, &ops, d, ret_dev, reterr);
    if (r == 0)
        d->dev = *ret_dev;
    return r;
}
