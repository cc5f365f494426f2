/* SPDX-License-Identifier: BSD-3-Clause */
/* C6: a client that knows nothing of migration finds a device at work. */
#include "peer.h"

#include "devices/devices.h"
#include "devices/dma_regs.h"

#define RING  0x1000u /* in RAM */
#define SRC   0x2000u
#define DST   0x3000u
#define BYTES 1000u

static void a_device_works_that_was_never_told_to(void **state)
{
    struct vfmig_device *dev;
    struct vfmig_device_counters counters;
    struct vfmig_error err = {0};

    if (vfmig_dma_device_new(&(struct vfmig_device_knobs){0}, &dev, &err) < 0)
        fail_msg("%s", err.text);
    struct peer *peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    peer_map_ram(peer);
    int irq = peer_vector(peer, 1);
    assert_int_equal(peer_get(peer, 0, DMA_REG_ID, 4), DMA_ID);
    for (unsigned i = 0; i < BYTES; i++)
        peer->ram[SRC + i] = (uint8_t)(i * 11 + 3);
    struct dma_descriptor *desc = (struct dma_descriptor *)(peer->ram + RING);
    *desc = (struct dma_descriptor){.op = DMA_OP_COPY, .flags = DMA_FLAG_IRQ, .vector = 1,
                                    .src = RAM_IOVA + SRC, .dst = RAM_IOVA + DST, .length = BYTES};
    peer_put(peer, 0, DMA_REG_RING, RAM_IOVA + RING, 8);
    peer_put(peer, 0, DMA_REG_ENTRIES, 4, 4);
    peer_put(peer, 0, DMA_REG_CTRL, DMA_CTRL_ENABLE, 4);
    peer_put(peer, 0, DMA_REG_TAIL, 1, 4);
    while ((uint32_t)peer_get(peer, 0, DMA_REG_HEAD, 4) != 1)
        ;
    assert_int_equal(desc->status, DMA_STATUS_DONE);
    assert_memory_equal(peer->ram + DST, peer->ram + SRC, BYTES);
    assert_int_equal(peer_irqs(irq), 1);
    vfmig_device_get_counters(dev, &counters);
    assert_int_equal(counters.mmio_stopped_reads + counters.mmio_stopped_writes, 0);
    assert_int_equal(counters.dma_refused + counters.irqs_latched, 0);
    peer_end(peer);
    vfmig_device_free(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_device_works_that_was_never_told_to)};

    return cmocka_run_group_tests_name("normal", tests, NULL, NULL);
}
