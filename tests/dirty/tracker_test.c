/* SPDX-License-Identifier: BSD-3-Clause */
/* Trackers against writers that never pause: what a migration would have copied after each sync
 * is compared with memory in the end, so a lost write is a difference. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "dirty/private.h"
#include "dirty/trackers.h"

#define BLOCKS       2u
#define BLOCK0_PAGES 1000u /* no multiple of 64 */
#define BLOCK1_PAGES 256u
#define ROUNDS       25u

/* --- memory, and its copy on a destination --- */

struct world {
    struct vfmig_ram_block blocks[BLOCKS];
    struct vfmig_memory memory;
    uint8_t *copy[BLOCKS];
    struct vfmig_dirty_map map;
};

static void world_init(struct world *w)
{
    static const uint64_t pages[BLOCKS] = {BLOCK0_PAGES, BLOCK1_PAGES};
    uint64_t gpa = 0;

    memset(w, 0, sizeof(*w));
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint64_t size = pages[i] * VFMIG_PAGE_SIZE;
        int fd = memfd_create("world", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, (off_t)size), 0);
        void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(host, MAP_FAILED);
        w->blocks[i] = (struct vfmig_ram_block){gpa, size, host, fd, 0};
        w->copy[i] = calloc(1, size);
        assert_non_null(w->copy[i]);
        gpa += 0x10000000;
    }
    w->memory = (struct vfmig_memory){w->blocks, BLOCKS};
    assert_int_equal(vfmig_dirty_map_init(&w->map, &w->memory, NULL), 0);
}

static void world_done(struct world *w)
{
    vfmig_dirty_map_done(&w->map);
    for (unsigned i = 0; i < BLOCKS; i++) {
        munmap(w->blocks[i].host, w->blocks[i].size);
        close(w->blocks[i].fd);
        free(w->copy[i]);
    }
}

/* Copies the pages set in the map, clearing it; returns how many. */
static uint64_t world_copy(struct world *w)
{
    uint64_t copied = 0;

    for (unsigned i = 0; i < BLOCKS; i++) {
        uint64_t pages = w->blocks[i].size / VFMIG_PAGE_SIZE;
        for (uint64_t p = vfmig_bitmap_next(w->map.bitmaps[i], pages, 0); p < pages;
             p = vfmig_bitmap_next(w->map.bitmaps[i], pages, p + 1)) {
            vfmig_bitmap_clear(w->map.bitmaps[i], p);
            memcpy(w->copy[i] + p * VFMIG_PAGE_SIZE,
                   (uint8_t *)w->blocks[i].host + p * VFMIG_PAGE_SIZE, VFMIG_PAGE_SIZE);
            copied++;
        }
    }
    return copied;
}

static void world_assert_same(const struct world *w)
{
    for (unsigned i = 0; i < BLOCKS; i++)
        assert_memory_equal(w->copy[i], w->blocks[i].host, w->blocks[i].size);
}

/* --- a writer --- */

struct writer {
    struct world *world;
    struct vfmig_tracker *own; /* told of each write, when set */
    atomic_bool stop;
    atomic_ullong writes;
    uint64_t seed;
    pthread_t thread;
};

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

static void write_page(struct world *w, struct vfmig_tracker *own, unsigned block, uint64_t page,
                       uint64_t value)
{
    uint64_t offset = page * VFMIG_PAGE_SIZE + (value % 512) * 8;

    __atomic_store_n((uint64_t *)((uint8_t *)w->blocks[block].host + offset), value,
                     __ATOMIC_RELAXED);
    if (own)
        vfmig_own_mark(own, w->blocks[block].gpa + offset, 8);
}

static void *writer_main(void *arg)
{
    struct writer *writer = arg;

    while (!writer->stop) {
        unsigned block = next_random(&writer->seed) % BLOCKS;
        uint64_t pages = writer->world->blocks[block].size / VFMIG_PAGE_SIZE;
        write_page(writer->world, writer->own, block, next_random(&writer->seed) % pages,
                   ++writer->writes);
    }
    return NULL;
}

/* --- the common test: C9, C27 and the life cycle --- */

static void follow(struct vfmig_tracker *t, bool is_own)
{
    struct world w;
    struct vfmig_error err;

    world_init(&w);
    assert_int_equal(t->ops->sync(t, &w.map, &err), -EINVAL); /* not started */
    for (int again = 0; again < 2; again++) {
        struct writer writer = {.world = &w, .own = is_own ? t : NULL, .seed = 7 + (uint64_t)again};
        /* Written before the start: not in the log. */
        for (uint64_t page = 0; page < 100; page++)
            write_page(&w, is_own ? t : NULL, 0, page, page);
        assert_int_equal(t->ops->start(t, &w.memory, &err), 0);
        assert_int_equal(t->ops->sync(t, &w.map, &err), 0);
        assert_int_equal(vfmig_dirty_map_count(&w.map), 0);
        /* One write, the last page of a block, is one bit, once. */
        write_page(&w, is_own ? t : NULL, 0, BLOCK0_PAGES - 1, 5);
        write_page(&w, is_own ? t : NULL, 1, 0, 5);
        assert_int_equal(t->ops->sync(t, &w.map, &err), 0);
        assert_int_equal(vfmig_dirty_map_count(&w.map), 2);
        assert_true(vfmig_bitmap_test(w.map.bitmaps[0], BLOCK0_PAGES - 1));
        assert_true(vfmig_bitmap_test(w.map.bitmaps[1], 0));
        assert_int_equal(t->ops->sync(t, &w.map, &err), 0);
        assert_int_equal(vfmig_dirty_map_count(&w.map), 2); /* OR: the map keeps what it has */

        vfmig_dirty_map_fill(&w.map);
        assert_int_equal(world_copy(&w), BLOCK0_PAGES + BLOCK1_PAGES);
        pthread_create(&writer.thread, NULL, writer_main, &writer);
        uint64_t synced = 0;
        for (unsigned round = 0; round < ROUNDS; round++) {
            uint64_t goal = writer.writes + 300;
            while (writer.writes < goal)
                sched_yield();
            assert_int_equal(t->ops->sync(t, &w.map, &err), 0);
            synced += world_copy(&w);
        }
        writer.stop = true;
        pthread_join(writer.thread, NULL);
        assert_true(synced > 0);
        assert_int_equal(t->ops->sync(t, &w.map, &err), 0);
        world_copy(&w);
        world_assert_same(&w);
        assert_int_equal(t->ops->sync(t, &w.map, &err), 0);
        assert_int_equal(vfmig_dirty_map_count(&w.map), 0);
        if (again)
            break;
        write_page(&w, is_own ? t : NULL, 0, 2, 1); /* logged, never read: gone at the next start */
        assert_int_equal(t->ops->stop(t, &err), 0);
        write_page(&w, is_own ? t : NULL, 0, 3, 1); /* nobody watches: must not hang */
    }
    t->ops->free(t); /* while it runs */
    write_page(&w, NULL, 0, 4, 1);
    world_done(&w);
}

static void own(void **state)
{
    struct vfmig_tracker *t;

    assert_int_equal(vfmig_tracker_own_new(&t, NULL), 0);
    assert_true(t->atomic);
    follow(t, true);
}

static void wp_with(enum vfmig_wp_method method)
{
    struct vfmig_tracker *t;
    struct vfmig_error err;

    if (vfmig_tracker_wp_probe(method, NULL) < 0) {
        assert_int_not_equal(vfmig_tracker_wp_new(method, &t, &err), 0);
        assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
        skip();
    }
    assert_int_equal(vfmig_tracker_wp_new(method, &t, &err), 0);
    follow(t, false);
}

static void wp_scan(void **state)
{
    wp_with(VFMIG_WP_SCAN);
}

static void wp_handler(void **state)
{
    wp_with(VFMIG_WP_HANDLER);
}

/* What the kernel writes on behalf of the process (a received message) is tracked too. */
static void wp_kernel_writes(void **state)
{
    struct vfmig_tracker *t;
    struct world w;
    int pipe_fds[2];

    for (enum vfmig_wp_method m = VFMIG_WP_SCAN; m <= VFMIG_WP_HANDLER; m++) {
        if (vfmig_tracker_wp_probe(m, NULL) < 0)
            continue;
        world_init(&w);
        assert_int_equal(vfmig_tracker_wp_new(m, &t, NULL), 0);
        assert_int_equal(t->ops->start(t, &w.memory, NULL), 0);
        assert_int_equal(pipe(pipe_fds), 0);
        assert_int_equal(write(pipe_fds[1], "hello", 5), 5);
        assert_int_equal(read(pipe_fds[0], (char *)w.blocks[0].host + 5 * VFMIG_PAGE_SIZE - 2, 5), 5);
        assert_int_equal(t->ops->sync(t, &w.map, NULL), 0);
        assert_int_equal(vfmig_dirty_map_count(&w.map), 2);
        assert_true(vfmig_bitmap_test(w.map.bitmaps[0], 4));
        assert_true(vfmig_bitmap_test(w.map.bitmaps[0], 5));
        t->ops->free(t);
        close(pipe_fds[0]);
        close(pipe_fds[1]);
        world_done(&w);
    }
}

/* --- own: ranges --- */

static void own_ranges(void **state)
{
    struct vfmig_tracker *t;
    struct world w;

    world_init(&w);
    assert_int_equal(vfmig_tracker_own_new(&t, NULL), 0);
    vfmig_own_mark(NULL, 0, 1);
    vfmig_own_mark(t, 0, 1); /* not started */
    assert_int_equal(t->ops->start(t, &w.memory, NULL), 0);
    vfmig_own_mark(t, 4095, 2);
    vfmig_own_mark(t, 10 * 4096, 0);
    vfmig_own_mark(t, 999 * 4096, 1u << 30);     /* runs off the block's end */
    vfmig_own_mark(t, 0x10000000 - 1, 2);        /* begins before a block: not memory */
    vfmig_own_mark(t, 0x10000000, 3 * 4096 + 1); /* the second block */
    vfmig_own_mark(t, UINT64_MAX, 10);
    assert_int_equal(t->ops->stop(t, NULL), 0);
    vfmig_own_mark(t, 20 * 4096, 1);
    /* Frozen, and readable once more (C28). */
    assert_int_equal(t->ops->sync(t, &w.map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&w.map), 2 + 1 + 4);
    assert_true(vfmig_bitmap_test(w.map.bitmaps[1], 3));
    /* Another memory map: the log follows it, the old bitmap does not fit any more. */
    struct vfmig_ram_block one = w.blocks[0];
    struct vfmig_memory less = {&one, 1};
    assert_int_equal(t->ops->start(t, &less, NULL), 0);
    struct vfmig_error err;
    assert_int_equal(t->ops->sync(t, &w.map, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    t->ops->free(t);
    world_done(&w);
}

/* --- device: a target's log --- */

struct fake {
    struct vfmig_target target;
    uint64_t bits[64]; /* from IOVA base on, pages of page_size */
    uint64_t base, page_size;
    bool running;
    int fail;
    uint32_t range_count;
    struct vfmig_iova_range ranges[4];
};

static int fake_log_start(struct vfmig_target *t, uint64_t page_size,
                          const struct vfmig_iova_range *ranges, uint32_t count,
                          struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;

    fake->running = true;
    fake->page_size = page_size;
    fake->range_count = count;
    memcpy(fake->ranges, ranges, count * sizeof(*ranges));
    memset(fake->bits, 0, sizeof(fake->bits));
    return 0;
}

static int fake_log_stop(struct vfmig_target *t, struct vfmig_error *reterr)
{
    ((struct fake *)t)->running = false;
    return 0;
}

static int fake_log_report(struct vfmig_target *t, uint64_t iova, uint64_t size, uint64_t page_size,
                           uint64_t *bitmap, struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;

    if (fake->fail)
        return vfmig_error_set(reterr, fake->fail, VFMIG_ORIGIN_DEVICE, 0, "as asked for");
    assert_int_equal(page_size, fake->page_size);
    for (uint64_t i = 0; i * page_size < size; i++) {
        uint64_t bit = (iova - fake->base) / page_size + i;
        if (vfmig_bitmap_test(fake->bits, bit))
            vfmig_bitmap_set(bitmap, i);
        vfmig_bitmap_clear(fake->bits, bit);
    }
    return 0;
}

static const struct vfmig_target_ops fake_ops = {
    .name = "fake",
    .log_start = fake_log_start,
    .log_stop = fake_log_stop,
    .log_report = fake_log_report,
};

static void fake_init(struct fake *fake, uint64_t page_size)
{
    memset(fake, 0, sizeof(*fake));
    fake->target.ops = &fake_ops;
    fake->target.info.dma_log = true;
    fake->target.info.log_page_size = page_size;
}

static void device_windows(void **state)
{
    /* 70 pages at a GPA page that is no multiple of 64, so that words must be shifted. */
    static const struct vfmig_iova_window windows[] = {{0x40000, 37 * 4096, 70 * 4096},
                                                       {0x40000 + 70 * 4096, 0x10000000, 4 * 4096}};
    struct vfmig_tracker *t;
    struct fake fake;
    struct world w;

    world_init(&w);
    fake_init(&fake, 4096);
    fake.base = 0x40000;
    assert_int_equal(vfmig_tracker_device_new(&fake.target, windows, 2, &t, NULL), 0);
    assert_int_equal(t->ops->sync(t, &w.map, NULL), -EINVAL);
    vfmig_bitmap_set(fake.bits, 0);
    assert_int_equal(t->ops->start(t, &w.memory, NULL), 0);
    assert_int_equal(fake.range_count, 2);
    assert_int_equal(fake.ranges[0].iova, 0x40000);
    static const unsigned set[] = {0, 26, 27, 63, 64, 69, 70, 73};
    for (size_t i = 0; i < sizeof(set) / sizeof(set[0]); i++)
        vfmig_bitmap_set(fake.bits, set[i]);
    assert_int_equal(t->ops->sync(t, &w.map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&w.map), 8);
    for (size_t i = 0; i < 6; i++)
        assert_true(vfmig_bitmap_test(w.map.bitmaps[0], 37 + set[i]));
    assert_true(vfmig_bitmap_test(w.map.bitmaps[1], 0));
    assert_true(vfmig_bitmap_test(w.map.bitmaps[1], 3));
    fake.fail = -EIO;
    struct vfmig_error err;
    assert_int_equal(t->ops->sync(t, &w.map, &err), -EIO);
    fake.fail = 0;
    assert_int_equal(t->ops->stop(t, NULL), 0);
    assert_false(fake.running);
    t->ops->free(t);
    world_done(&w);
}

/* A log of 16 KiB pages over the whole memory, IOVA = GPA; the last bit covers fewer pages. */
static void device_large_pages(void **state)
{
    struct vfmig_tracker *t;
    struct fake fake;
    struct world w;

    world_init(&w);
    w.memory.block_count = 1;
    w.blocks[0].size -= 2 * 4096;
    struct vfmig_dirty_map map;
    assert_int_equal(vfmig_dirty_map_init(&map, &w.memory, NULL), 0);
    fake_init(&fake, 16384);
    assert_int_equal(vfmig_tracker_device_new(&fake.target, NULL, 0, &t, NULL), 0);
    assert_int_equal(t->ops->start(t, &w.memory, NULL), 0);
    vfmig_bitmap_set(fake.bits, 3);
    vfmig_bitmap_set(fake.bits, 249);
    assert_int_equal(t->ops->sync(t, &map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&map), 4 + 2);
    assert_true(vfmig_bitmap_test(map.bitmaps[0], 12));
    assert_true(vfmig_bitmap_test(map.bitmaps[0], 997));
    t->ops->free(t);
    vfmig_dirty_map_done(&map);
    w.blocks[0].size += 2 * 4096;
    world_done(&w);
}

static void device_refusals(void **state)
{
    static const struct vfmig_iova_window wrong[] = {
        {0, 0x5000000, 4096},          /* no memory there */
        {0, 999 * 4096, 2 * 4096},     /* over the block's end */
        {0, 0, 0},                     /* empty */
        {0, 100, 4096},                /* unaligned */
        {UINT64_MAX - 4095, 0, 8192},  /* wraps */
    };
    struct vfmig_tracker *t;
    struct vfmig_error err;
    struct fake fake;
    struct world w;

    world_init(&w);
    fake_init(&fake, 4096);
    fake.target.info.dma_log = false;
    assert_false(vfmig_tracker_device_probe(&fake.target));
    assert_int_equal(vfmig_tracker_device_new(&fake.target, NULL, 0, &t, &err), -ENOTSUP);
    fake_init(&fake, 512);
    assert_int_equal(vfmig_tracker_device_new(&fake.target, NULL, 0, &t, &err), -ENOTSUP);
    fake_init(&fake, 4096);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(vfmig_tracker_device_new(&fake.target, &wrong[i], 1, &t, &err), 0);
        assert_int_equal(t->ops->start(t, &w.memory, &err), -EINVAL);
        assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
        t->ops->free(t);
    }
    world_done(&w);
}

static void map_refusals(void **state)
{
    struct vfmig_ram_block blocks[2] = {{0, 8192, NULL, -1, 0}, {4096, 4096, NULL, -1, 0}};
    struct vfmig_dirty_map map;
    struct vfmig_error err;

    assert_int_equal(vfmig_dirty_map_init(&map, &(struct vfmig_memory){blocks, 0}, &err), -EINVAL);
    assert_int_equal(vfmig_dirty_map_init(&map, &(struct vfmig_memory){blocks, 2}, &err), -EINVAL);
    blocks[1].gpa = 8191;
    assert_int_equal(vfmig_dirty_map_init(&map, &(struct vfmig_memory){blocks, 2}, &err), -EINVAL);
    blocks[1].gpa = UINT64_MAX - 4095;
    assert_int_equal(vfmig_dirty_map_init(&map, &(struct vfmig_memory){blocks, 2}, &err), -EINVAL);
    blocks[1].gpa = 8192;
    assert_int_equal(vfmig_dirty_map_init(&map, &(struct vfmig_memory){blocks, 2}, &err), 0);
    vfmig_dirty_map_fill(&map);
    assert_int_equal(vfmig_dirty_map_count(&map), 3);
    assert_true(vfmig_dirty_map_fits(&map, &(struct vfmig_memory){blocks, 2}));
    blocks[1].size *= 2;
    assert_false(vfmig_dirty_map_fits(&map, &(struct vfmig_memory){blocks, 2}));
    vfmig_dirty_map_done(&map);
    vfmig_dirty_map_done(&map);
}

/* Any number of bits to any place, against one bit at a time. */
static void merged_bits(void **state)
{
    struct vfmig_ram_block block = {0, 512 * 4096, NULL, -1, 0};
    const struct vfmig_memory memory = {&block, 1};
    uint64_t bits[4] = {~UINT64_C(0), UINT64_C(0xa5a5a5a5f00ff00f), ~UINT64_C(0), ~UINT64_C(0)};

    for (uint64_t first = 0; first < 130; first += first % 64 == 62 ? 1 : 7)
        for (uint64_t count = 1; count < 200; count += count % 64 == 63 ? 1 : 9) {
            struct vfmig_dirty_map map;
            assert_int_equal(vfmig_dirty_map_init(&map, &memory, NULL), 0);
            vfmig_dirty_map_merge(&map, 0, first, bits, count);
            for (uint64_t page = 0; page < 512; page++)
                assert_int_equal(vfmig_bitmap_test(map.bitmaps[0], page),
                                 page >= first && page < first + count && vfmig_bitmap_test(bits, page - first));
            vfmig_dirty_map_done(&map);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map_refusals),     cmocka_unit_test(own),
        cmocka_unit_test(own_ranges),       cmocka_unit_test(wp_scan),
        cmocka_unit_test(wp_handler),       cmocka_unit_test(wp_kernel_writes),
        cmocka_unit_test(device_windows),   cmocka_unit_test(device_large_pages),
        cmocka_unit_test(device_refusals),  cmocka_unit_test(merged_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
