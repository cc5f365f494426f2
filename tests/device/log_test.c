/* SPDX-License-Identifier: BSD-3-Clause */
/* DIRTY TRACKING of the device's DMA: exact, clean on start, read and cleared at once, readable
 * after stop; in both dialects. The device writes 8 bytes wherever a test points it. */
#include "peer.h"
#include "toy.h"

#include <stdio.h>
#include <sys/socket.h>
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

/* Several ranges. */
static int start_ranges(uint64_t page_size, const struct vfmig_user_log_range *ranges,
                        uint32_t count)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_log_start start;
        struct vfmig_user_log_range range[4];
    } VFMIG_PACKED req = {.start = {page_size, count, 0}};

    memcpy(req.range, ranges, count * sizeof(*ranges));
    req.head.flags = VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START;
    req.head.argsz = (uint32_t)(sizeof(req) - (4 - count) * sizeof(*ranges));
    return peer_call(peer, VFMIG_USER_FEATURE, &req, req.head.argsz);
}

/* A range is one of addresses: parts of mappings, gaps and what is mapped later are in it. */
static void ranges_apart_from_mappings(void **state)
{
    const struct vfmig_user_log_range ranges[] = {{RAM_IOVA + 0x2800, 0x1000},
                                                  {RAM_IOVA + RAM_SIZE - 0x2000, 0x8000}};

    assert_int_equal(start_ranges(4096, ranges, 2), 0);
    dma(0x1000); /* not in a range */
    dma(0x2800);
    dma(0x3ff8); /* in a page of a range, not in it */
    dma(RAM_SIZE - 0x1000);
    assert_int_equal(peer_map(peer, RAM_IOVA + RAM_SIZE + 0x3000, 0x1000, peer->ram_fd, 0, 3), 0);
    dma(RAM_SIZE + 0x3000); /* mapped after the start, behind a gap */
    assert_int_equal(report(0, RAM_SIZE, 4096), 2);
    assert_true(bit(2) && bit(PAGES - 1));
    assert_int_equal(report(RAM_SIZE - 0x3000, 0x9000, 4096), 1);
    assert_true(bit(6));
    assert_int_equal(report(0, 0x2000, 4096), -ENOENT);
}

/* A start that is refused changes nothing, not even a frozen log. */
static void refused_starts(void **state)
{
    const struct vfmig_user_log_range overlap[] = {{0x1000, 0x1000}, {0x3000, 0x1000},
                                                   {0x1fff, 0x10}};
    const struct vfmig_user_log_range empty = {0x1000, 0}, wraps = {UINT64_MAX - 0xfff, 0x1001};
    const struct vfmig_user_log_range top = {UINT64_MAX - 0xfff, 0x1000};

    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    dma(0x5000);
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(start_ranges(4096, overlap, 3), -EINVAL);
    assert_int_equal(start_ranges(4096, &empty, 1), -EOVERFLOW);
    assert_int_equal(start_ranges(4096, &wraps, 1), -EOVERFLOW);
    assert_int_equal(start_ranges(UINT64_C(1) << 31, &top, 1), -EINVAL);
    assert_int_equal(peer_log_start(peer, 4096, 0, UINT64_MAX), -E2BIG); /* VFMIG_MAX_LOG_BYTES */
    assert_int_equal(all(), 1);
    assert_true(bit(5));
    assert_int_equal(start_ranges(UINT64_C(1) << 30, overlap, 2), 0); /* in one page, apart */
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(start_ranges(4096, &top, 1), 0);
    assert_int_equal(peer_log_report(peer, top.iova, 0x1000, 4096, bitmap), 0);
}

/* A page of the log that is larger than mappings: each has its own bit in it. */
static void small_mappings_in_a_large_page(void **state)
{
    assert_int_equal(peer_map(peer, 0x800000, 0x1000, peer->ram_fd, 0, 3), 0);
    assert_int_equal(peer_log_start(peer, 1 << 30, 0, 0), 0);
    assert_int_equal(peer_map(peer, 0x801000, 0x1000, peer->ram_fd, 0, 3), 0);
    assert_int_equal(peer_map(peer, 0x803000, 0x3000, peer->ram_fd, 0, 3), 0);
    dma(0x804000 - RAM_IOVA);
    assert_int_equal(report(0x800000 - RAM_IOVA, 0x3000, 4096), 0);
    assert_int_equal(report(0x804000 - RAM_IOVA, 0x1000, 4096), 1);
    assert_int_equal(report(0x800000 - RAM_IOVA, 0x8000, 4096), 2); /* the rest of that page */
    assert_true(bit(3) && bit(5));
    assert_int_equal(report(0x800000 - RAM_IOVA, 0x8000, 4096), 0);
    assert_int_equal(peer_unmap(peer, 0x801000, 0x1000), 0);
    assert_int_equal(peer_map(peer, 0x801000, 0x2000, peer->ram_fd, 0, 3), 0);
    dma(0x802000 - RAM_IOVA);
    assert_int_equal(report(0x800000 - RAM_IOVA, 0x8000, 4096), 2);
    assert_true(bit(1) && bit(2));
}

static void unmap_all(void)
{
    struct vfmig_user_dma_unmap un = {sizeof(un), VFMIG_USER_UNMAP_F_ALL, 0, 0};
    assert_int_equal(peer_call(peer, VFMIG_USER_DMA_UNMAP, &un, sizeof(un)), 0);
}

static void mapped_again_while_logging(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, 0, 0), 0);
    dma(0x3000);
    unmap_all();
    assert_int_equal(all(), -ENOENT);
    peer_map_ram(peer);
    dma(0x4000);
    assert_int_equal(all(), 1);
    assert_true(bit(4));
    /* Ranges that were given stay what they are. */
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    dma(0x5000);
    unmap_all();
    peer_map_ram(peer);
    dma(0x6000);
    assert_int_equal(all(), 2);
    assert_true(bit(5) && bit(6));
}

/* C28: frozen is frozen, whatever happens to the mappings. */
static void frozen_log_outlives_mappings(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, 0, 0), 0);
    dma(0x3000);
    dma(0x9000);
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(peer_unmap(peer, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(report(0, 0x8000, 4096), 1);
    assert_true(bit(3));
    assert_int_equal(peer_map(peer, 0x800000, 0x10000, peer->ram_fd, 0, 3), 0);
    dma(0x800000 - RAM_IOVA);
    assert_int_equal(report(0x800000 - RAM_IOVA, 0x10000, 4096), 0);
    peer_map_ram(peer);
    assert_int_equal(all(), 1);
    assert_true(bit(9));
}

static int unmap_with_bitmap(uint64_t iova, uint64_t size)
{
    struct {
        struct vfmig_user_dma_unmap un;
        struct vfmig_user_bitmap bitmap;
    } VFMIG_PACKED req = {{40 + 8, VFMIG_USER_UNMAP_F_BITMAP, iova, size}, {4096, 8}};

    return peer_call(peer, VFMIG_USER_DMA_UNMAP, &req, sizeof(req));
}

static void unmap_with_bitmap_of_what_is_not_logged(void **state)
{
    assert_int_equal(peer_map(peer, 0x800000, 0x10000, peer->ram_fd, 0, 3), 0);
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(unmap_with_bitmap(0x800000, 0x10000), -EINVAL); /* and it is still there */
    assert_int_equal(peer_unmap(peer, 0x800000, 0x10000), 0);
    assert_int_equal(unmap_with_bitmap(0x800000, 0x10000), -EINVAL);
    assert_int_equal(peer_log_stop(peer), 0);
    assert_int_equal(peer_log_start(peer, 4096, 0, 0), 0);
    assert_int_equal(unmap_with_bitmap(0x800000, 0x10000), -ENOENT);
}

/* ---- memory without descriptor ---- */

struct dma_write {
    struct vfmig_user_header h;
    struct vfmig_user_dma_access access;
    uint64_t value;
} VFMIG_PACKED;

/* The device writes to 0x800000 + offset, by a message that waits for its answer. */
static struct dma_write write_by_message(uint64_t offset)
{
    struct dma_write m;

    peer_put(peer, 0, TOY_IOVA, 0x800000 + offset, 8);
    peer_post(peer, 0, TOY_ASYNC, 1, 4);
    assert_int_equal(recv(peer->twin, &m, sizeof(m), MSG_WAITALL), sizeof(m));
    assert_int_equal(m.h.command, VFMIG_USER_DMA_WRITE);
    return m;
}

static void answer(struct dma_write m, int err)
{
    m.h.flags = VFMIG_USER_TYPE_REPLY | (err ? VFMIG_USER_ERROR : 0);
    m.h.error = (uint32_t)err;
    m.h.size = err ? 16 : 32;
    assert_int_equal(send(peer->twin, &m, m.h.size, 0), m.h.size);
}

static void wait_status(int status)
{
    while ((int)peer_get(peer, 0, TOY_STATUS, 4) == -EINPROGRESS)
        ;
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), status);
}

static int start_twin(void **state)
{
    toy = toy_new(true, true, true, 0);
    peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, "{\"capabilities\":{\"max_msg_fds\":8,"
                                        "\"twin_socket\":{\"supported\":true}}}"), 0);
    assert_int_equal(peer_map(peer, 0x800000, 0x10000, -1, 0, 3), 0);
    return 0;
}

static int message_report(void)
{
    return report(0x800000 - RAM_IOVA, 0x10000, 4096);
}

/* C40: what the client wrote for the device is in the log as everything else. The client may write
 * any time between message and reply, so a report before the reply does not have the last word. */
static void writes_by_message(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, 0, 0), 0);
    assert_int_equal(message_report(), 0);
    struct dma_write m = write_by_message(0x2000);
    assert_int_equal(message_report(), 1);
    assert_true(bit(2));
    answer(m, 0);
    wait_status(0);
    assert_int_equal(message_report(), 1);
    assert_true(bit(2));
    assert_int_equal(message_report(), 0);
    m = write_by_message(0x5ffc); /* refused, but the page before the bad one may be written */
    answer(m, EFAULT);
    wait_status(-EFAULT);
    assert_int_equal(message_report(), 2);
    assert_true(bit(5) && bit(6));
}

/* A reset forgets the message; the client does not, and answers when it has written. */
static void writes_by_message_and_reset(void **state)
{
    assert_int_equal(peer_log_start(peer, 4096, 0x800000, 0x10000), 0);
    struct dma_write m = write_by_message(0x3000);
    assert_int_equal(message_report(), 1);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(message_report(), 1);
    assert_int_equal(message_report(), 0);
    answer(m, 0);
    answer(write_by_message(0x8000), 0); /* behind it on the same socket */
    wait_status(0);
    assert_int_equal(message_report(), 2);
    assert_true(bit(3) && bit(8));
    m.access.count = UINT64_MAX; /* a reply that nobody waits for says nothing */
    m.access.address = 0;
    answer(m, 0);
    answer(write_by_message(0x8000), 0);
    wait_status(0);
    assert_int_equal(message_report(), 1);
}

/* The bitmap of an unmap comes with its answer, and so has what was under way. */
static void writes_by_message_and_unmap(void **state)
{
    struct {
        struct vfmig_user_dma_unmap un;
        struct vfmig_user_bitmap bitmap;
    } VFMIG_PACKED req = {{40 + 8, VFMIG_USER_UNMAP_F_BITMAP, 0x800000, 0x10000}, {4096, 8}};

    assert_int_equal(peer_log_start(peer, 4096, 0, 0), 0);
    struct dma_write m = write_by_message(0x4000);
    assert_int_equal(message_report(), 1);
    uint16_t id = peer_send(peer, VFMIG_USER_DMA_UNMAP, 0, &req, sizeof(req), NULL, 0);
    /* What is sent behind the unmap is handled after it. */
    assert_int_equal(peer_map(peer, 0x800000, 0x10000, -1, 0, 3), 0);
    answer(m, 0);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer->reply_size, 48);
    assert_int_equal(*(uint64_t *)(peer->reply + 40), 1 << 4);
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
#define WITH_TWIN(test) cmocka_unit_test_setup_teardown(test, start_twin, stop)
    const struct CMUnitTest tests[] = {
        WITH(clean_start_and_exact),
        WITH(report_reads_and_clears),
        WITH(stop_freezes),
        WITH(reset_keeps_tracking),
        WITH(other_page_sizes),
        WITH(bad_requests),
        WITH(everything_follows_the_map),
        WITH(dirty_pages_message),
        WITH(ranges_apart_from_mappings),
        WITH(refused_starts),
        WITH(small_mappings_in_a_large_page),
        WITH(mapped_again_while_logging),
        WITH(frozen_log_outlives_mappings),
        WITH(unmap_with_bitmap_of_what_is_not_logged),
        WITH_TWIN(writes_by_message),
        WITH_TWIN(writes_by_message_and_reset),
        WITH_TWIN(writes_by_message_and_unmap),
        WITH(no_bit_is_lost_to_a_parallel_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
