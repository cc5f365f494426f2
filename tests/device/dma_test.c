/* SPDX-License-Identifier: BSD-3-Clause */
/* The dma device: every operation, its interrupts, and its state through every way of saving. */
#include "peer.h"

#include <unistd.h>

#include "base/crc32c.h"
#include "devices/devices.h"
#include "devices/dma_regs.h"

#define RING    0x1000u /* in RAM */
#define ENTRIES 16u
#define SRC     0x10000u
#define DST     0x20000u

static struct vfmig_device *dev;
static struct peer *peer;
static uint32_t tail;

static void open_device(const struct vfmig_device_knobs *knobs)
{
    struct vfmig_error err = {0};

    if (vfmig_dma_device_new(knobs, &dev, &err) < 0)
        fail_msg("%s", err.text);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    peer_map_ram(peer);
    tail = 0;
}

static void close_device(void)
{
    peer_end(peer);
    vfmig_device_free(dev);
}

static void enable(void)
{
    peer_put(peer, 0, DMA_REG_RING, RAM_IOVA + RING, 8);
    peer_put(peer, 0, DMA_REG_ENTRIES, ENTRIES, 4);
    peer_put(peer, 0, DMA_REG_CTRL, DMA_CTRL_ENABLE, 4);
}

static struct dma_descriptor *slot(uint32_t n)
{
    return (struct dma_descriptor *)(peer->ram + RING) + n % ENTRIES;
}

/* Queues one and rings the doorbell, without a reply. */
static struct dma_descriptor *queue(struct dma_descriptor desc)
{
    struct dma_descriptor *at = slot(tail);

    *at = desc;
    peer_post(peer, 0, DMA_REG_TAIL, ++tail, 4);
    return at;
}

static void wait_head(uint32_t head)
{
    while ((uint32_t)peer_get(peer, 0, DMA_REG_HEAD, 4) != head)
        ;
}

static void fill_source(void)
{
    for (unsigned i = 0; i < 0x8000; i++)
        peer->ram[SRC + i] = (uint8_t)(i * 31 + 7);
}

static void every_operation(void **state)
{
    open_device(&(struct vfmig_device_knobs){0});
    enable();
    fill_source();
    int fd = peer_vector(peer, 2);
    assert_int_equal(peer_get(peer, 0, DMA_REG_ID, 4), DMA_ID);

    struct dma_descriptor *d = queue((struct dma_descriptor){
        .op = DMA_OP_COPY, .flags = DMA_FLAG_IRQ, .vector = 2, .src = RAM_IOVA + SRC,
        .dst = RAM_IOVA + DST, .length = 5000, .cookie = 9});
    wait_head(1);
    assert_int_equal(d->status, DMA_STATUS_DONE);
    assert_int_equal(d->serial, 1);
    assert_memory_equal(peer->ram + DST, peer->ram + SRC, 5000);
    assert_int_equal(peer->ram[DST + 5000], 0);
    assert_int_equal(peer_irqs(fd), 1);

    queue((struct dma_descriptor){.op = DMA_OP_FILL, .dst = RAM_IOVA + DST, .length = 20,
                                  .pattern = 0x1111});
    wait_head(2);
    assert_int_equal(*(uint64_t *)(peer->ram + DST + 8), 0x1112);
    assert_int_equal(*(uint32_t *)(peer->ram + DST + 16), 0x1113);
    assert_int_equal(peer->ram[DST + 20], peer->ram[SRC + 20]);

    d = queue((struct dma_descriptor){.op = DMA_OP_CRC, .src = RAM_IOVA + SRC, .length = 1000});
    wait_head(3);
    assert_int_equal(d->result, vfmig_crc32c(0, peer->ram + SRC, 1000));

    queue((struct dma_descriptor){.op = DMA_OP_SRAM_LOAD, .src = RAM_IOVA + SRC, .dst = 100,
                                  .length = 3000});
    queue((struct dma_descriptor){.op = DMA_OP_SRAM_STORE, .src = 101, .dst = RAM_IOVA + DST,
                                  .length = 2999});
    wait_head(5);
    assert_memory_equal(peer->ram + DST, peer->ram + SRC + 1, 2999);
    assert_int_equal(peer_get(peer, 0, DMA_SRAM + 100, 1), peer->ram[SRC]);

    uint64_t chain = 0;
    for (uint32_t i = 0; i < 5; i++)
        chain = dma_chain(chain, i + 1, slot(i)->status, slot(i)->result, slot(i)->cookie);
    assert_int_equal(peer_get(peer, 0, DMA_REG_CHAIN, 8), chain);
    close(fd);
    close_device();
}

static void bad_descriptors_end_with_an_error(void **state)
{
    static const struct {
        struct dma_descriptor desc;
        uint32_t err;
    } cases[] = {
        {{.op = 99}, EINVAL},
        {{.op = DMA_OP_NOP, .flags = 2}, EINVAL},
        {{.op = DMA_OP_NOP, .flags = DMA_FLAG_IRQ, .vector = DMA_VECTORS}, EINVAL},
        {{.op = DMA_OP_COPY, .src = RAM_IOVA, .dst = RAM_IOVA, .length = 0}, EINVAL},
        {{.op = DMA_OP_COPY, .length = DMA_MAX_LENGTH + 1}, EINVAL},
        {{.op = DMA_OP_COPY, .src = 1, .dst = RAM_IOVA, .length = 8}, EFAULT},
        {{.op = DMA_OP_COPY, .src = RAM_IOVA, .dst = 1, .length = 8}, EFAULT},
        {{.op = DMA_OP_SRAM_LOAD, .src = RAM_IOVA, .dst = DMA_SRAM_SIZE, .length = 1}, ERANGE},
        {{.op = DMA_OP_SRAM_STORE, .src = UINT64_MAX, .dst = RAM_IOVA, .length = 2}, ERANGE},
    };
    uint32_t count = sizeof(cases) / sizeof(cases[0]);

    open_device(&(struct vfmig_device_knobs){0});
    enable();
    for (uint32_t i = 0; i < count; i++) {
        struct dma_descriptor *d = queue(cases[i].desc);
        wait_head(i + 1);
        assert_int_equal(d->status, DMA_STATUS_DONE | cases[i].err);
    }
    assert_int_equal(peer_get(peer, 0, DMA_REG_ERRORS, 4), count);
    /* A tail beyond the ring, a ring that is moved while it runs: counted, not followed. */
    peer_put(peer, 0, DMA_REG_TAIL, count + ENTRIES + 1, 4);
    peer_put(peer, 0, DMA_REG_RING, 0, 8);
    assert_int_equal(peer_get(peer, 0, DMA_REG_ERRORS, 4), count + 2);
    assert_int_equal(peer_get(peer, 0, DMA_REG_RING, 8), RAM_IOVA + RING);
    close_device();
}

/* ---- migration ------------------------------------------------------------------------------- */

enum way { FEATURE, REGION };

static int set_state(enum way way, uint32_t state)
{
    static const uint32_t bits[] = {6, 0, 1, 2, 4, 9, 3, 11};
    return way == FEATURE ? peer_set_v2(peer, state) : peer_set_v1(peer, bits[state]);
}

static size_t save(enum way way, uint8_t **ret_data)
{
    return way == FEATURE ? peer_save_v2(peer, ret_data, 100000) : peer_save_v1(peer, ret_data);
}

static uint64_t chain_at_source, irqs_at_source;

/* Runs a source to the end with something of everything in it. The stream is pre-copy and final
 * data in order; one interrupt stays latched. */
static size_t make_stream(enum way way, uint8_t **ret_data)
{
    uint8_t *first, *last;

    open_device(&(struct vfmig_device_knobs){.latency_ns = 1000000, .state_bytes = DMA_SRAM_SIZE + 300001});
    enable();
    fill_source();
    int fd = peer_vector(peer, 1);
    peer_put(peer, 0, DMA_REG_SCRATCH, 0x1234567890abcdef, 8);
    peer_put(peer, 0, DMA_SRAM + 0x8000, 0x11, 1);
    assert_int_equal(set_state(way, VFMIG_STATE_PRE_COPY), 0);
    size_t size = save(way, &first);
    assert_true(size > DMA_SRAM_SIZE);
    peer_put(peer, 0, DMA_SRAM + 0x8000, 0x22, 1); /* after it was streamed: C38 */
    queue((struct dma_descriptor){.op = DMA_OP_SRAM_LOAD, .src = RAM_IOVA + SRC, .dst = 0x4000,
                                  .length = 0x1000, .flags = DMA_FLAG_IRQ, .vector = 1});
    /* In flight when N is asked for, for a millisecond: finished before the answer (C32). */
    assert_int_equal(set_state(way, VFMIG_STATE_PRE_COPY_NDMA), 0);
    assert_int_equal(slot(0)->status, DMA_STATUS_DONE);
    assert_int_equal(peer_irqs(fd), 0); /* latched (A6) */
    queue((struct dma_descriptor){.op = DMA_OP_CRC, .src = RAM_IOVA + SRC, .length = 8});
    assert_int_equal(peer_get(peer, 0, DMA_REG_HEAD, 4), 1); /* not begun (C31) */
    chain_at_source = peer_get(peer, 0, DMA_REG_CHAIN, 8);
    irqs_at_source = peer_get(peer, 0, DMA_REG_IRQS, 8);
    assert_int_equal(set_state(way, VFMIG_STATE_STOP_COPY), 0);
    size_t more = save(way, &last);
    assert_true(more > 300001 && more < 350000); /* not the whole SRAM again (C65) */
    *ret_data = realloc(first, size + more);
    memcpy(*ret_data + size, last, more);
    free(last);
    assert_int_equal(set_state(way, VFMIG_STATE_STOP), 0);
    assert_int_equal(peer_irqs(fd), 0);
    close(fd);
    close_device();
    return size + more;
}

static void move(enum way from, enum way to, uint32_t piece)
{
    uint8_t *data;
    size_t size = make_stream(from, &data);

    open_device(&(struct vfmig_device_knobs){0});
    fill_source();
    int fd = peer_vector(peer, 1);
    *slot(1) = (struct dma_descriptor){.op = DMA_OP_CRC, .src = RAM_IOVA + SRC, .length = 8};
    assert_int_equal(set_state(to, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(to == FEATURE ? peer_load_v2(peer, data, size, piece)
                                   : peer_load_v1(peer, data, size, piece), 0);
    assert_int_equal(set_state(to, VFMIG_STATE_RUNNING_NDMA), 0);
    assert_int_equal(peer_irqs(fd), 0);
    assert_int_equal(peer_get(peer, 0, DMA_REG_HEAD, 4), 1);
    assert_int_equal(peer_get(peer, 0, DMA_REG_CHAIN, 8), chain_at_source);
    assert_int_equal(set_state(to, VFMIG_STATE_RUNNING), 0);
    wait_head(2); /* the descriptor that waited on the other side */
    assert_int_equal(slot(1)->result, vfmig_crc32c(0, peer->ram + SRC, 8));
    assert_int_equal(slot(1)->serial, 2);
    assert_int_equal(peer_irqs(fd), 1); /* once */
    assert_int_equal(peer_get(peer, 0, DMA_REG_IRQS, 8), irqs_at_source);
    assert_int_equal(peer_get(peer, 0, DMA_REG_SCRATCH, 8), 0x1234567890abcdef);
    assert_int_equal(peer_get(peer, 0, DMA_SRAM + 0x8000, 1), 0x22);
    uint8_t sram[0x1000];
    assert_int_equal(peer_read(peer, 0, DMA_SRAM + 0x4000, sram, sizeof(sram)), 0);
    assert_memory_equal(sram, peer->ram + SRC, sizeof(sram));
    close(fd);
    close_device();
    free(data);
}

static void feature_to_feature(void **state)
{
    move(FEATURE, FEATURE, 100000);
}

static void feature_to_region(void **state)
{
    move(FEATURE, REGION, 65536);
}

static void region_to_feature(void **state)
{
    move(REGION, FEATURE, 33);
}

static void region_to_region(void **state)
{
    move(REGION, REGION, 50000);
}

/* Every failing step leaves the source running or in ERROR, and reset brings it back. */
static void failing_steps(void **state)
{
    for (int step = VFMIG_DEVICE_STEP_STOP; step < VFMIG_DEVICE_STEP_COUNT; step++) {
        uint8_t buf[16] = {0};
        struct vfmig_user_mig_data req = {8 + 65536, 65536};

        open_device(&(struct vfmig_device_knobs){.fail_step = (enum vfmig_device_step)step});
        int r = peer_set_v2(peer, VFMIG_STATE_PRE_COPY);
        if (r == 0)
            r = peer_call(peer, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req));
        if (r == 0)
            r = peer_set_v2(peer, VFMIG_STATE_STOP_COPY);
        if (r == 0)
            r = peer_call(peer, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req));
        if (r == 0)
            r = peer_set_v2(peer, VFMIG_STATE_RUNNING);
        if (r == 0 && peer_set_v2(peer, VFMIG_STATE_RESUMING) == 0) {
            r = peer_load_v2(peer, buf, sizeof(buf), 16);
            r = r ? r : peer_set_v2(peer, VFMIG_STATE_RUNNING);
        }
        assert_true(r < 0);
        assert_int_equal(peer_reset(peer), 0);
        assert_int_equal(peer_get_v2(peer), VFMIG_STATE_RUNNING);
        close_device();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_operation),
        cmocka_unit_test(bad_descriptors_end_with_an_error),
        cmocka_unit_test(feature_to_feature),
        cmocka_unit_test(feature_to_region),
        cmocka_unit_test(region_to_feature),
        cmocka_unit_test(region_to_region),
        cmocka_unit_test(failing_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
