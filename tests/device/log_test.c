/* SPDX-License-Identifier: BSD-3-Clause */
/* DIRTY TRACKING of the device's DMA: exact, clean on start, read and cleared at once, readable
 * after stop; in both dialects. The device writes 8 bytes wherever a test points it. */
#include "peer.h"
#include "toy.h"

#include <stdio.h>
#include <unistd.h>

#define PAGES (RAM_SIZE / 4096)

static struct toy *toy;
static struct peer *peer;
static uint64_t bitmap[PAGES / 64];

static int start(void **state)
{
    toy = toy_new(true, true, true, 0);
    peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    peer_map_ram(peer);
    return 0;
}

static int stop(void **state)
{
    peer_end(peer);
    toy_free(toy);
    return 0;
}

static void dma(uint64_t ram_offset)
{
    peer_post(peer, 0, TOY_IOVA, RAM_IOVA + ram_offset, 8);
    peer_post(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);
}

static bool bit(uint64_t page)
{
    return bitmap[page / 64] >> (page % 64) & 1;
}

static int report(uint64_t ram_offset, uint64_t length, uint64_t page_size)
{
    memset(bitmap, 0, sizeof(bitmap));
    return peer_log_report(peer, RAM_IOVA + ram_offset, length, page_size, bitmap);
}

static int all(void)
{
    return report(0, RAM_SIZE, 4096);
}

/* C27: what was written before the start is not in the first report. C40: all else is. */
static void clean_start_and_exact(void **state)
{
    dma(0);
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(all(), 0);
    dma(0x3000);
    dma(0x5ffc); /* over a page's end */
    dma(RAM_SIZE - 8);
    assert_int_equal(all(), 4);
    assert_true(bit(3) && bit(5) && bit(6) && bit(PAGES - 1));
    dma(0x1000);
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(all(), 0);
}

/* C30: a report takes the bits with it, those of its range only. */
static void report_reads_and_clears(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    for (unsigned page = 0; page < 130; page += 2)
        dma(page * 4096);
    assert_int_equal(report(0x1000, 70 * 4096, 4096), 35); /* pages 1 to 70 */
    assert_true(bit(1) && !bit(0) && bit(69));             /* pages 2 and 70 */
    assert_int_equal(all(), 30);
    assert_true(bit(0) && !bit(2) && !bit(70) && bit(72) && bit(128));
    assert_int_equal(all(), 0);
    dma(4 * 4096);
    assert_int_equal(all(), 1);
}

/* C28: off freezes: no new bits, the old ones readable until the next start or reset. */
static void stop_freezes(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    dma(0x2000);
    dma(0x80000);
    assert_int_equal(peer_log_stop(peer), 0);
    dma(0x7000);
    assert_int_equal(report(0, 0x10000, 4096), 1);
    assert_true(bit(2));
    assert_int_equal(all(), 1);
    assert_true(bit(0x80));
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(all(), -EINVAL);
}

/* A26: a client's reset leaves map and tracking alone. */
static void reset_keeps_tracking(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    dma(0x2000);
    assert_int_equal(peer_reset(peer), 0);
    dma(0x4000);
    assert_int_equal(all(), 2);
}

static void other_page_sizes(void **state)
{
    assert_int_equal(peer_log_start(peer, 8192, RAM_IOVA, RAM_SIZE), 0);
    dma(0x3000);
    assert_int_equal(report(0, RAM_SIZE, 4096), 2); /* an 8 KiB page is two */
    assert_true(bit(2) && bit(3));
    dma(0x3000);
    dma(0x7000);
    assert_int_equal(report(0, RAM_SIZE, 16384), 2);
    assert_true(bit(0) && bit(1));
    dma(RAM_SIZE - 8);
    assert_int_equal(report(0, RAM_SIZE, 8192), 1);
    assert_true(bit(RAM_SIZE / 8192 - 1));
}

static void bad_requests(void **state)
{
    assert_int_equal(all(), -EINVAL); /* not started */
    assert_int_equal(peer_log_start(peer, 4097, RAM_IOVA, RAM_SIZE), -EINVAL);
    assert_int_equal(peer_log_start(peer, 4096, 0, UINT64_MAX), -E2BIG);
    assert_int_equal(peer_log_start(peer, 512, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(*(uint64_t *)(peer->reply + 8), 4096); /* what was chosen */
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), -EINVAL);
    assert_int_equal(report(0, RAM_SIZE, 2048), -EINVAL);
    assert_int_equal(report(0, RAM_SIZE, 12288), -EINVAL);
    assert_int_equal(report(RAM_SIZE, 4096, 4096), -ENOENT);
    assert_int_equal(report(RAM_SIZE - 4096, 8192, 4096), 0);
}

/* No ranges means all that is mapped, also later; what is unmapped leaves with its bits. */
static void everything_follows_the_map(void **state)
{
    struct {
        struct vfmig_user_dma_unmap un;
        struct vfmig_user_bitmap bitmap;
    } VFMIG_PACKED req = {{40 + 8, VFMIG_USER_UNMAP_F_BITMAP, 0x800000, 0x10000}, {4096, 8}};

    assert_int_equal(peer_call(peer, VFMIG_USER_DMA_UNMAP, &req, sizeof(req)), -EINVAL);
    assert_int_equal(peer_log_start(peer, 4096, 0, 0), 0);
    assert_int_equal(peer_map(peer, 0x800000, 0x10000, peer->ram_fd, 0x8000, 3), 0);
    dma(0x800000 + 0x3008 - RAM_IOVA);
    assert_int_equal(*(uint64_t *)(peer->ram + 0xb008), 0);
    dma(0x5000);
    assert_int_equal(peer_call(peer, VFMIG_USER_DMA_UNMAP, &req, sizeof(req)), 0);
    assert_int_equal(peer->reply_size, 48);
    assert_int_equal(*(uint64_t *)(peer->reply + 40), 1 << 3);
    assert_int_equal(report(0x700000, 0x1000, 4096), -ENOENT);
    assert_int_equal(all(), 1);
    assert_true(bit(5));
    /* Mapped again, it is clean. */
    assert_int_equal(peer_map(peer, 0x800000, 0x10000, peer->ram_fd, 0x8000, 3), 0);
    assert_int_equal(report(0x700000, 0x10000, 4096), 0);
    req.bitmap.size = 0;
    assert_int_equal(peer_call(peer, VFMIG_USER_DMA_UNMAP, &req, sizeof(req)), -EINVAL);
    req.un.flags = 0;
    assert_int_equal(peer_call(peer, VFMIG_USER_DMA_UNMAP, &req, sizeof(req.un)), 0);
}

/* The same log in the region dialect's message. */
static int dirty(uint32_t flags)
{
    struct vfmig_user_dirty_pages req = {8, flags};
    return peer_call(peer, VFMIG_USER_DIRTY_PAGES, &req, sizeof(req));
}

static int dirty_get(uint32_t argsz)
{
    struct {
        struct vfmig_user_dirty_pages head;
        struct vfmig_user_dirty_range range;
    } VFMIG_PACKED req = {{argsz, VFMIG_USER_DIRTY_GET}, {RAM_IOVA, RAM_SIZE, {4096, PAGES / 8}}};
    return peer_call(peer, VFMIG_USER_DIRTY_PAGES, &req, sizeof(req));
}

static void dirty_pages_message(void **state)
{
    assert_int_equal(dirty_get(40 + PAGES / 8), -EINVAL);
    assert_int_equal(dirty(VFMIG_USER_DIRTY_START), 0);
    dma(0x9000);
    assert_int_equal(dirty(VFMIG_USER_DIRTY_START), 0); /* no effect when on */
    assert_int_equal(dirty_get(40), 0);                 /* told the size, nothing cleared */
    assert_int_equal(peer->reply_size, 40);
    assert_int_equal(*(uint32_t *)peer->reply, 40 + PAGES / 8);
    assert_int_equal(dirty_get(40 + PAGES / 8), 0);
    assert_int_equal(peer->reply_size, 40 + PAGES / 8);
    assert_int_equal(*(uint64_t *)(peer->reply + 40), 1 << 9);
    assert_int_equal(dirty_get(40 + PAGES / 8), 0);
    assert_int_equal(*(uint64_t *)(peer->reply + 40), 0);
    dma(0xa000);
    assert_int_equal(dirty(VFMIG_USER_DIRTY_STOP), 0);
    assert_int_equal(dirty_get(40 + PAGES / 8), 0);
    assert_int_equal(*(uint64_t *)(peer->reply + 40), 1 << 10);
    assert_int_equal(dirty(VFMIG_USER_DIRTY_START), 0);
    assert_int_equal(dirty_get(40 + PAGES / 8), 0);
    assert_int_equal(*(uint64_t *)(peer->reply + 40), 0);
}

/* C9, C30 against a writer in another thread: what it wrote is in one of the reports. */
static void *write_all(void *arg)
{
    for (unsigned page = 0; page < PAGES; page++) {
        uint64_t value = page;
        if (vfmig_device_dma_write(arg, RAM_IOVA + page * 4096, &value, 8) < 0)
            return arg;
    }
    return NULL;
}

static void no_bit_is_lost_to_a_parallel_writer(void **state)
{
    uint64_t seen[PAGES / 64] = {0};
    pthread_t writer;
    void *failed;

    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    pthread_create(&writer, NULL, write_all, toy->dev);
    for (unsigned round = 0; round < 50; round++) {
        all();
        for (unsigned i = 0; i < PAGES / 64; i++) {
            assert_int_equal(seen[i] & bitmap[i], 0); /* each page was written once */
            seen[i] |= bitmap[i];
        }
    }
    pthread_join(writer, &failed);
    assert_null(failed);
    all();
    for (unsigned i = 0; i < PAGES / 64; i++)
        assert_int_equal(seen[i] ^ bitmap[i], UINT64_MAX);
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup_teardown(test, start, stop)
    const struct CMUnitTest tests[] = {
        WITH(clean_start_and_exact),
        WITH(report_reads_and_clears),
        WITH(stop_freezes),
        WITH(reset_keeps_tracking),
        WITH(other_page_sizes),
        WITH(bad_requests),
        WITH(everything_follows_the_map),
        WITH(dirty_pages_message),
        WITH(no_bit_is_lost_to_a_parallel_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
