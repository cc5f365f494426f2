/* SPDX-License-Identifier: BSD-3-Clause */
/* MSI-X as the interop guest sees it: the module counts what the kernel was delivered. */
#include <stdio.h>
#include <time.h>

#include "interop/guest.h"

#define EACH           25u
#define WAIT_MS        30000u
#define MSIX_CAP       0x11u
#define FUNCTION_MASK  0x4000u
#define VECTOR_CONTROL 12u

static void counts(const struct driver *d, uint64_t came[DMA_VECTORS])
{
    char text[128];
    unsigned long n[DMA_VECTORS];

    function_read(&d->fn, "irq_counts", text, sizeof(text));
    if (sscanf(text, "%lu %lu %lu %lu", &n[0], &n[1], &n[2], &n[3]) != DMA_VECTORS)
        failed("irq_counts reads '%s'", text);
    for (unsigned v = 0; v < DMA_VECTORS; v++)
        came[v] = n[v];
}

/* Exactly as many as were asked for. Those on their way are waited for; one too many is seen here
 * or at the next check, because counts only grow. */
void check_irq_counts(const struct driver *d, const char *when)
{
    uint64_t end = now_ms() + WAIT_MS, came[DMA_VECTORS];
    bool all;

    do {
        counts(d, came);
        all = true;
        for (unsigned v = 0; v < DMA_VECTORS; v++)
            all = all && came[v] >= d->irqs[v];
    } while (!all && now_ms() < end);
    for (unsigned v = 0; v < DMA_VECTORS; v++)
        if (came[v] != d->irqs[v])
            failed("%s: vector %u came %llu times, not %llu", when, v, (unsigned long long)came[v],
                   (unsigned long long)d->irqs[v]);
}

static void ask(struct driver *d, uint32_t vector)
{
    driver_run(d,
               (struct dma_descriptor){.op = DMA_OP_NOP, .flags = DMA_FLAG_IRQ, .vector = vector});
}

/* A vector that is asked for again before the kernel has seen it may come once for both, so each
 * is waited for. */
void check_irqs(struct driver *d)
{
    for (uint32_t i = 0; i < EACH * DMA_VECTORS; i++) {
        uint32_t v = i * 3 % DMA_VECTORS;
        ask(d, v);
        d->irqs[v]++;
        check_irq_counts(d, "interrupts");
    }
    ok("MSI-X: %u interrupts on each of %u vectors, each counted once on its vector", EACH,
       DMA_VECTORS);
}

/* Asked for under a mask, and then another one, so that the first would have been seen. */
static void under_mask(struct driver *d, uint32_t v)
{
    ask(d, v);
    ask(d, (v + 1) % DMA_VECTORS);
}

/* QEMU keeps the table to itself and pends what comes for a vector that is masked in it; the mask
 * of the function reaches the device, which pends in its PBA. */
void check_masks(struct driver *d)
{
    const struct timespec a_while = {0, 100000000};
    unsigned control = find_capability(&d->fn, MSIX_CAP) + 2;
    uint32_t old = config_read(&d->fn, control, 2);

    for (uint32_t v = 0; v < DMA_VECTORS; v++) {
        uint32_t at = DMA_MSIX_TABLE + v * 16 + VECTOR_CONTROL;
        uint32_t next = (v + 1) % DMA_VECTORS;
        reg32_write(d, at, reg32(d, at) | 1);
        under_mask(d, v);
        d->irqs[next]++;
        check_irq_counts(d, "while a vector is masked");
        reg32_write(d, at, reg32(d, at) & ~1u);
        d->irqs[v]++;
        check_irq_counts(d, "after a vector was unmasked");
    }
    ok("MSI-X: a vector masked in the table does not come, and comes once when unmasked");

    config_write(&d->fn, control, old | FUNCTION_MASK, 2);
    under_mask(d, 0);
    if (reg64(d, DMA_MSIX_PBA) != 3)
        failed("function masked: the PBA reads %#llx", (unsigned long long)reg64(d, DMA_MSIX_PBA));
    nanosleep(&a_while, NULL); /* time for an interrupt that must not come */
    check_irq_counts(d, "while the function is masked");
    config_write(&d->fn, control, old, 2);
    d->irqs[0]++;
    d->irqs[1]++;
    check_irq_counts(d, "after the function was unmasked");
    if (reg64(d, DMA_MSIX_PBA))
        failed("function unmasked: the PBA reads %#llx",
               (unsigned long long)reg64(d, DMA_MSIX_PBA));
    ok("MSI-X: with the function masked interrupts pend in the PBA, and come once when unmasked");
}
