/* SPDX-License-Identifier: BSD-3-Clause */
/* A dma device in a few lines, in the test's own process: its registers by the mmio callback, its
 * DMA by a thread, its interrupts by the machine's eventfds. It can be told to misbehave. */
#ifndef VFMIG_TESTS_DMA_MODEL_H
#define VFMIG_TESTS_DMA_MODEL_H

#include <pthread.h>
#include <sys/eventfd.h>

#include "base/crc32c.h"
#include "devices/dma_regs.h"
#include "guest/guest.h"
#include "machine_rig.h"

#define MODEL_BAR 0xe0000000u

enum model_fault {
    MODEL_GOOD = 0,
    MODEL_DROP_IRQ,
    MODEL_EXTRA_IRQ, /* while nothing that was asked for is complete: the last one came twice */
    MODEL_SKIP_SERIAL,
    MODEL_WRONG_DATA,
    MODEL_WRONG_CRC,
    MODEL_FAIL,
    MODEL_LOSE_SRAM,
    MODEL_LOSE_REGISTERS,
    MODEL_LOSE_P2P,  /* a write to the peer is not made */
    MODEL_TEAR_P2P,  /* only its first word is */
    MODEL_TWICE_P2P, /* it is made, and again when the next one to the same place is */
    MODEL_LATE_P2P,  /* it is made when the next one to the same place is, and after that */
};

struct model {
    struct rig_vm *vm;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    pthread_t thread;
    bool quiet, quit; /* under the lock */
    enum model_fault fault; /* under the lock; done once, then MODEL_GOOD again */
    uint64_t bar;
    uint32_t first_gsi;
    struct model *peer; /* whose memory this one reaches; NULL: none */
    struct {
        void *to; /* NULL: nothing is kept */
        uint32_t length;
        uint8_t data[GUEST_PEER_BYTES];
    } kept; /* a write to the peer that is still to come */
    uint32_t ctrl, entries, head, tail;
    uint64_t ring, scratch, serial, irqs;
    uint32_t msix[GUEST_VECTORS][4];
    int irq_fd[GUEST_VECTORS];
    uint8_t sram[DMA_SRAM_SIZE];
};

/* For threads of the model's and the machine's: what a test's own assertions say there is lost. */
#define model_fail(...)                                                                            \
    do {                                                                                           \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
        abort();                                                                                   \
    } while (0)

static void *model_at(struct model *d, uint64_t gpa, uint64_t size)
{
    if (gpa > RIG_MEMORY || size > RIG_MEMORY - gpa)
        model_fail("DMA outside memory: %#lx", gpa);
    return (uint8_t *)d->vm->block.host + gpa;
}

static bool model_takes(struct model *d, enum model_fault fault)
{
    if (d->fault != fault)
        return false;
    d->fault = MODEL_GOOD;
    return true;
}

static void model_irq(struct model *d, uint32_t vector)
{
    if (model_takes(d, MODEL_DROP_IRQ))
        return;
    d->irqs++;
    if (d->irq_fd[vector] >= 0)
        eventfd_write(d->irq_fd[vector], 1);
}

/* Memory, or the peer's. */
static void *model_reach(struct model *d, uint64_t gpa, uint64_t size)
{
    uint64_t sram = d->peer ? d->peer->bar + DMA_SRAM : 0;
    if (sram && gpa >= sram && gpa < sram + DMA_SRAM_SIZE && size <= sram + DMA_SRAM_SIZE - gpa)
        return d->peer->sram + (gpa - sram);
    return model_at(d, gpa, size);
}

static void model_copy_to_peer(struct model *d, uint8_t *to, const void *from, uint32_t length)
{
    bool twice = model_takes(d, MODEL_TWICE_P2P), late = model_takes(d, MODEL_LATE_P2P);
    bool again = d->kept.to == to;
    if (length > sizeof(d->kept.data))
        model_fail("a block of %u bytes", length);
    if (model_takes(d, MODEL_TEAR_P2P))
        memcpy(to, from, 8);
    else if (!late && !model_takes(d, MODEL_LOSE_P2P))
        memcpy(to, from, length);
    if (again)
        memcpy(to, d->kept.data, d->kept.length);
    if (again)
        d->kept.to = NULL;
    if (!twice && !late)
        return;
    d->kept.to = to;
    d->kept.length = length;
    memcpy(d->kept.data, from, length);
}

static void model_copy(struct model *d, const struct dma_descriptor *desc)
{
    uint8_t *to = model_reach(d, desc->dst, desc->length);
    const void *from = model_reach(d, desc->src, desc->length);
    struct model *peer = d->peer;
    bool at_peer = peer && to >= peer->sram && to < peer->sram + DMA_SRAM_SIZE;
    if (at_peer) {
        model_copy_to_peer(d, to, from, desc->length);
        return;
    }
    memcpy(to, from, desc->length);
    if (model_takes(d, MODEL_WRONG_DATA))
        to[desc->length - 8] ^= 1;
}

static void model_execute(struct model *d, struct dma_descriptor *desc)
{
    uint64_t *dst = NULL;
    if (desc->op == DMA_OP_FILL || desc->op == DMA_OP_SRAM_STORE)
        dst = model_at(d, desc->dst, desc->length);
    if (desc->op == DMA_OP_COPY) {
        model_copy(d, desc);
    } else if (desc->op == DMA_OP_FILL) {
        for (uint32_t i = 0; i < desc->length / 8; i++)
            dst[i] = desc->pattern + i;
    } else if (desc->op == DMA_OP_CRC) {
        desc->result = vfmig_crc32c(0, model_at(d, desc->src, desc->length), desc->length);
        desc->result += model_takes(d, MODEL_WRONG_CRC);
    } else if (desc->op == DMA_OP_SRAM_LOAD) {
        memcpy(d->sram + desc->dst, model_at(d, desc->src, desc->length), desc->length);
    } else if (desc->op == DMA_OP_SRAM_STORE) {
        memcpy(dst, d->sram + desc->src, desc->length);
    }
}

static void model_step(struct model *d)
{
    struct dma_descriptor *desc =
        model_at(d, d->ring + d->head % d->entries * sizeof(*desc), sizeof(*desc));
    bool irq = desc->flags & DMA_FLAG_IRQ;
    if (model_takes(d, MODEL_LOSE_SRAM))
        memset(d->sram, 0, sizeof(d->sram));
    if (model_takes(d, MODEL_LOSE_REGISTERS))
        d->scratch = 0;
    model_execute(d, desc);
    if (irq && model_takes(d, MODEL_EXTRA_IRQ)) {
        model_irq(d, desc->vector);
        d->quiet = true; /* so that the guest sees it before anything else */
        return;
    }
    desc->serial = ++d->serial + model_takes(d, MODEL_SKIP_SERIAL);
    uint32_t status = DMA_STATUS_DONE | (model_takes(d, MODEL_FAIL) ? 14 : 0);
    d->head++;
    __atomic_store_n(&desc->status, status, __ATOMIC_RELEASE);
    if (irq)
        model_irq(d, desc->vector);
}

static void *model_main(void *arg)
{
    struct model *d = arg;
    pthread_mutex_lock(&d->lock);
    while (!d->quit) {
        if (d->quiet || !d->ctrl || d->head == d->tail) {
            pthread_cond_wait(&d->cond, &d->lock);
            continue;
        }
        model_step(d);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static void model_route(struct model *d, uint32_t vector)
{
    uint64_t address = d->msix[vector][0] | (uint64_t)d->msix[vector][1] << 32;
    if (d->msix[vector][3] & 1)
        return;
    d->irq_fd[vector] = vfmig_machine_msi_eventfd(d->vm->machine, d->first_gsi + vector, address,
                                                  d->msix[vector][2], &rig_error);
    if (d->irq_fd[vector] < 0)
        model_fail("%s", rig_error.text);
}

static void model_write(struct model *d, uint32_t reg, uint64_t value)
{
    if (reg == DMA_REG_CTRL) {
        d->ctrl = (uint32_t)value;
        d->head = d->tail = 0;
    } else if (reg == DMA_REG_RING) {
        d->ring = value;
    } else if (reg == DMA_REG_ENTRIES) {
        d->entries = (uint32_t)value;
    } else if (reg == DMA_REG_TAIL) {
        d->tail = (uint32_t)value;
        pthread_cond_signal(&d->cond);
    } else if (reg == DMA_REG_SCRATCH) {
        d->scratch = value;
    } else if (reg >= DMA_MSIX_TABLE && reg < DMA_MSIX_TABLE + GUEST_VECTORS * 16) {
        uint32_t vector = (reg - DMA_MSIX_TABLE) / 16, word = reg % 16 / 4;
        d->msix[vector][word] = (uint32_t)value;
        if (word == 3)
            model_route(d, vector);
    }
}

static uint64_t model_read(const struct model *d, uint32_t reg)
{
    switch (reg) {
    case DMA_REG_ID:
        return DMA_ID;
    case DMA_REG_HEAD:
        return d->head;
    case DMA_REG_TAIL:
        return d->tail;
    case DMA_REG_SCRATCH:
        return d->scratch;
    default:
        return 0;
    }
}

static void model_mmio(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                       uint32_t size)
{
    struct model *d = opaque;
    uint64_t value = 0;
    uint32_t reg = (uint32_t)(gpa - d->bar);
    (void)vcpu;
    if (gpa < d->bar || gpa - d->bar > DMA_BAR_SIZE - size)
        model_fail("access outside the BAR: %#lx, %u bytes", gpa, size);
    pthread_mutex_lock(&d->lock);
    memcpy(&value, data, is_write ? size : 0);
    if (reg >= DMA_SRAM && is_write)
        memcpy(d->sram + (reg - DMA_SRAM), data, size);
    else if (reg >= DMA_SRAM)
        memcpy(data, d->sram + (reg - DMA_SRAM), size);
    else if (is_write)
        model_write(d, reg, value);
    else
        value = model_read(d, reg);
    if (!is_write && reg < DMA_SRAM)
        memcpy(data, &value, size);
    pthread_mutex_unlock(&d->lock);
}

static inline void model_open(struct model *d, struct rig_vm *vm)
{
    memset(d, 0, sizeof(*d));
    d->vm = vm;
    d->bar = MODEL_BAR;
    for (uint32_t v = 0; v < GUEST_VECTORS; v++) {
        d->irq_fd[v] = -1;
        d->msix[v][3] = 1;
    }
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->cond, NULL);
    assert_int_equal(pthread_create(&d->thread, NULL, model_main, d), 0);
}

static inline void model_close(struct model *d)
{
    pthread_mutex_lock(&d->lock);
    d->quit = true;
    pthread_cond_broadcast(&d->cond);
    pthread_mutex_unlock(&d->lock);
    pthread_join(d->thread, NULL);
    pthread_mutex_destroy(&d->lock);
    pthread_cond_destroy(&d->cond);
}

/* The device does nothing between quiet and loud; descriptors stay queued meanwhile. */
static inline void model_set_quiet(struct model *d, bool quiet)
{
    pthread_mutex_lock(&d->lock);
    d->quiet = quiet;
    pthread_cond_broadcast(&d->cond);
    pthread_mutex_unlock(&d->lock);
}

static inline void model_set_fault(struct model *d, enum model_fault fault)
{
    pthread_mutex_lock(&d->lock);
    d->fault = fault;
    pthread_mutex_unlock(&d->lock);
}

/* The device stands before another machine; its vectors are routed again, as the VMM does. */
static inline void model_move(struct model *d, struct rig_vm *vm)
{
    pthread_mutex_lock(&d->lock);
    d->vm = vm;
    for (uint32_t v = 0; v < GUEST_VECTORS; v++)
        model_route(d, v);
    pthread_mutex_unlock(&d->lock);
}

#endif
