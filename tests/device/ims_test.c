/* SPDX-License-Identifier: BSD-3-Clause */
/* C71: the dma device with an interrupt message store. The message is the host's, the device state has the
 * handle alone, and a host that gives no message is refused before Z is left. */
#include "peer.h"

#include <unistd.h>

#include "devices/devices.h"
#include "devices/dma_regs.h"
#include "wire/wire.h"

#define RING         0x1000u
#define MESSAGES     0x8000u /* the page of RAM that is mapped where messages go */
#define HANDLE       11u
#define SOURCE_VALUE 0x5eed0001u
#define TARGET_VALUE 0xbeef4321u
#define SET (VFMIG_USER_FEATURE_SET | VFMIG_USER_F_HANDLES)

static struct vfmig_device *dev;
static struct peer *peer;
static int vector; /* MSI-X 1, which nothing may use */

static void open_dma(void)
{
    assert_int_equal(vfmig_dma_device_new(&(struct vfmig_device_knobs){0}, &dev, NULL), 0);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    peer_map_ram(peer);
    assert_int_equal(peer_map(peer, DMA_IMS_AT, 4096, peer->ram_fd, MESSAGES, 3), 0);
    vector = peer_vector(peer, 1);
}

static void close_dma(void)
{
    close(vector);
    peer_end(peer);
    vfmig_device_free(dev);
}

static int set_handle(uint64_t value)
{
    struct {
        struct vfmig_user_feature_handles head;
        struct vfmig_user_handle list[1];
    } VFMIG_PACKED map = {{1, 0}, {{VFMIG_HANDLE_IMS, HANDLE, value}}};

    return peer_feature(peer, SET, &map, sizeof(map));
}

static void enable(void)
{
    peer_put(peer, 0, DMA_REG_IMS, HANDLE, 4);
    peer_put(peer, 0, DMA_REG_RING, RAM_IOVA + RING, 8);
    peer_put(peer, 0, DMA_REG_ENTRIES, 16, 4);
    peer_put(peer, 0, DMA_REG_CTRL, DMA_CTRL_ENABLE, 4);
}

static uint32_t message(void)
{
    uint32_t *at = (uint32_t *)(peer->ram + MESSAGES), value = *at;

    *at = 0;
    return value;
}

/* Descriptor n, which asks for an interrupt: what message came of it. */
static uint32_t interrupt(uint32_t n)
{
    struct dma_descriptor *at = (struct dma_descriptor *)(peer->ram + RING) + n;

    *at = (struct dma_descriptor){.op = DMA_OP_NOP, .flags = DMA_FLAG_IRQ, .vector = 1};
    (void)message();
    peer_put(peer, 0, DMA_REG_TAIL, n + 1, 4);
    while ((uint32_t)peer_get(peer, 0, DMA_REG_HEAD, 4) != n + 1)
        ;
    assert_int_equal(at->status, DMA_STATUS_DONE);
    assert_int_equal(peer_get(peer, 0, DMA_REG_IRQS, 4), n + 1);
    assert_int_equal(peer_irqs(vector), 0);
    return message();
}

static void the_message_is_the_clients(void **state)
{
    open_dma();
    enable();
    assert_int_equal(interrupt(0), 0); /* nobody gave one: an interrupt that is lost is counted */
    assert_int_equal(peer_get(peer, 0, DMA_REG_ERRORS, 4), 1);
    assert_int_equal(set_handle(SOURCE_VALUE), 0);
    assert_int_equal(interrupt(1), SOURCE_VALUE);
    assert_int_equal(set_handle(TARGET_VALUE), 0);
    assert_int_equal(interrupt(2), TARGET_VALUE);
    peer_put(peer, 0, DMA_REG_IMS, HANDLE + 1, 4); /* of a ring that is enabled: refused */
    assert_int_equal(peer_get(peer, 0, DMA_REG_IMS, 4), HANDLE);
    assert_int_equal(peer_get(peer, 0, DMA_REG_ERRORS, 4), 2);
    assert_int_equal(peer_unmap(peer, DMA_IMS_AT, 4096), 0);
    assert_int_equal(interrupt(3), 0); /* and one that goes nowhere, too */
    assert_int_equal(peer_get(peer, 0, DMA_REG_ERRORS, 4), 3);
    close_dma();
}

/* As any DMA: what was asked for while N is set is sent when it is gone. */
static void it_waits_for_n(void **state)
{
    open_dma();
    assert_int_equal(set_handle(SOURCE_VALUE), 0);
    enable();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING_NDMA), 0);
    struct dma_descriptor *at = (struct dma_descriptor *)(peer->ram + RING);
    *at = (struct dma_descriptor){.op = DMA_OP_NOP, .flags = DMA_FLAG_IRQ};
    peer_put(peer, 0, DMA_REG_TAIL, 1, 4);
    assert_int_equal(peer_get(peer, 0, DMA_REG_HEAD, 4), 0);
    assert_int_equal(message(), 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    while ((uint32_t)peer_get(peer, 0, DMA_REG_HEAD, 4) != 1)
        ;
    assert_int_equal(message(), SOURCE_VALUE);
    close_dma();
}

static void load(const uint8_t *data, size_t size)
{
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(peer_load_v2(peer, data, size, 60000), 0);
}

static void another_message_at_the_destination(void **state)
{
    uint8_t *data;
    uint32_t value = SOURCE_VALUE;

    open_dma();
    assert_int_equal(set_handle(SOURCE_VALUE), 0);
    enable();
    assert_int_equal(interrupt(0), SOURCE_VALUE);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    size_t size = peer_save_v2(peer, &data, 100000);
    close_dma();
    assert_null(memmem(data, size, &value, sizeof(value))); /* a host value is nowhere in the state */

    open_dma();
    load(data, size);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), -ENOENT); /* before Z is cleared */
    assert_int_equal(peer_get_v2(peer), VFMIG_STATE_ERROR);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(peer_get(peer, 0, DMA_REG_IMS, 4), 0); /* nothing of it was applied */
    load(data, size);
    assert_int_equal(set_handle(TARGET_VALUE), 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(peer_get(peer, 0, DMA_REG_IMS, 4), HANDLE);
    assert_int_equal(interrupt(1), TARGET_VALUE);
    close_dma();
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_message_is_the_clients),
        cmocka_unit_test(it_waits_for_n),
        cmocka_unit_test(another_message_at_the_destination),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
