/* SPDX-License-Identifier: BSD-3-Clause */
/* Kernel targets: mappings, and the three logs of what is written through them. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "kernel_help.h"

#define PAGES 1000u

static int memory = -1;

static int setup_memory(void **state)
{
    setup(state);
    memory = memfd_create("memory", MFD_CLOEXEC);
    return memory < 0 || ftruncate(memory, PAGES * FAKE_PAGE) < 0 ? -1 : 0;
}

static int teardown_memory(void **state)
{
    close(memory);
    return teardown(state);
}

#define LOG_CASE(function) cmocka_unit_test_setup_teardown(function, setup_memory, teardown_memory)

enum who { DEVICE, IOMMUFD, TYPE1, WHOS };

static struct vfmig_target *open_log(enum who who)
{
    fake.device_log = who == DEVICE;
    fake.iommu_log = who != DEVICE;
    return open_at(who == IOMMUFD ? CDEV_ADDRESS : GROUP_ADDRESS);
}

static int map(struct vfmig_target *t, uint64_t page, uint64_t pages)
{
    return t->ops->dma_map(t, page * FAKE_PAGE, pages * FAKE_PAGE, memory, page * FAKE_PAGE, 3,
                           &err);
}

static int unmap(struct vfmig_target *t, uint64_t page, uint64_t pages)
{
    return t->ops->dma_unmap(t, page * FAKE_PAGE, pages * FAKE_PAGE, &err);
}

static void write_page(uint64_t page)
{
    fake_dma_write(&fake, page * FAKE_PAGE + 17, 0xa5);
}

static int start(struct vfmig_target *t)
{
    const struct vfmig_iova_range all = {0, PAGES * FAKE_PAGE};

    return t->ops->log_start(t, FAKE_PAGE, &all, 1, &err);
}

/* Reports [page, page + pages) and needs exactly the pages listed, up to UINT64_MAX. */
static void need_dirty(struct vfmig_target *t, uint64_t page, uint64_t pages, const uint64_t *want)
{
    uint64_t bits[FAKE_SPACE_PAGES / 64 + 1] = {0};
    uint64_t words = vfmig_bitmap_words(pages), count = 0;

    bits[words] = UINT64_C(0x5555555555555555); /* beyond the end: nobody's */
    int r = t->ops->log_report(t, page * FAKE_PAGE, pages * FAKE_PAGE, FAKE_PAGE, bits, &err);
    if (r < 0)
        fail_msg("%s", err.text);
    assert_int_equal(bits[words], UINT64_C(0x5555555555555555));
    for (; want[count] != UINT64_MAX; count++)
        if (!vfmig_bitmap_test(bits, want[count] - page))
            fail_msg("page %llu is not reported", (unsigned long long)want[count]);
    assert_int_equal(vfmig_bitmap_count(bits, words * 64), count);
}

#define NEED(t, page, pages, ...)                                                                  \
    need_dirty(t, page, pages, (const uint64_t[]){__VA_ARGS__ __VA_OPT__(, ) UINT64_MAX})

/* ---- mappings ---- */

static void maps_memory(void **state)
{
    static const char *const addresses[] = {CDEV_ADDRESS, GROUP_ADDRESS};

    for (unsigned i = 0; i < 2; i++) {
        struct vfmig_target *t = open_at(addresses[i]);
        assert_int_equal(map(t, 10, 5), 0);
        assert_int_equal(map(t, 20, 5), 0);
        assert_int_equal(map(t, 15, 5), 0);
        uint8_t seen = 0;
        fake_dma_write(&fake, 16 * FAKE_PAGE, (uint8_t)(0x40 + i));
        assert_int_equal(pread(memory, &seen, 1, 16 * FAKE_PAGE), 1);
        assert_int_equal(seen, 0x40 + i);
        /* One that the device may only read. */
        assert_int_equal(t->ops->dma_map(t, 0, FAKE_PAGE, memory, 0, 1, &err), 0);
        assert_false(fake.maps[3].writable);

        assert_int_equal(map(t, 14, 1), -EEXIST);
        assert_int_equal(map(t, 24, 2), -EEXIST);
        assert_int_equal(t->ops->dma_map(t, 0x100000, 0, memory, 0, 3, &err), -EINVAL);
        assert_int_equal(t->ops->dma_map(t, UINT64_MAX - 4095, 8192, memory, 0, 3, &err), -EINVAL);
        assert_int_equal(t->ops->dma_map(t, 0x100000, FAKE_PAGE, -1, 0, 3, &err), -ENOTSUP);
        assert_int_equal(t->ops->dma_map(t, 0x100000, FAKE_PAGE, memory, 1, 3, &err), -EINVAL);
        assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
        assert_int_equal(t->ops->dma_map(t, 0x100200, 512, memory, 0, 3, &err), -EINVAL);

        assert_int_equal(unmap(t, 11, 4), -EINVAL);
        assert_int_equal(unmap(t, 10, 4), -EINVAL);
        assert_int_equal(unmap(t, 100, 4), -EINVAL);
        assert_int_equal(unmap(t, 10, 0), -EINVAL);
        assert_int_equal(unmap(t, 12, UINT64_MAX / FAKE_PAGE), -EINVAL);
        assert_int_equal(unmap(t, 10, 10), 0); /* two of them */
        assert_int_equal(fake.map_count, 2);
        /* The kernel did part of it: what the device may still reach stays. */
        uint32_t before = fake.munmaps;
        fake.quirk.short_unmap = true;
        assert_int_equal(unmap(t, 20, 5), -EIO);
        assert_int_equal(fake.munmaps, before);
        fake.quirk.short_unmap = false;
        t->ops->close(t);
    }
}

/* ---- logs ---- */

static void each_log(void **state)
{
    for (enum who who = DEVICE; who < WHOS; who++) {
        struct vfmig_target *t = open_log(who);
        assert_true(t->info.dma_log);
        assert_int_equal(t->info.log_page_size, FAKE_PAGE);
        /* No neighbour of a word's edge is left out, and holes do no harm. */
        assert_int_equal(map(t, 3, 300), 0);
        assert_int_equal(map(t, 400, 70), 0);
        write_page(5);
        assert_int_equal(start(t), 0);
        write_page(3);
        write_page(66);
        write_page(67);
        write_page(302);
        write_page(469);
        NEED(t, 0, PAGES, 3, 66, 67, 302, 469);
        NEED(t, 0, PAGES); /* read and cleared */
        write_page(400);
        NEED(t, 400, 70, 400);
        /* Again: nothing of before is in it. */
        write_page(401);
        assert_int_equal(start(t), 0);
        NEED(t, 0, PAGES);
        assert_int_equal(t->ops->log_stop(t, &err), 0);
        t->ops->close(t);
    }
}

static void bits_beyond_the_range(void **state)
{
    for (enum who who = DEVICE; who < WHOS; who++) {
        struct vfmig_target *t = open_log(who);
        fake.quirk.stray_bits = true;
        assert_int_equal(map(t, 3, 300), 0);
        assert_int_equal(start(t), 0);
        write_page(4);
        NEED(t, 3, 300, 4);
        NEED(t, 3, 301);
        t->ops->close(t);
    }
}

/* What was written before the mapping went is told once more. */
static void unmapped_pages(void **state)
{
    for (enum who who = IOMMUFD; who < WHOS; who++) {
        struct vfmig_target *t = open_log(who);
        assert_int_equal(map(t, 10, 10), 0);
        assert_int_equal(map(t, 30, 10), 0);
        assert_int_equal(start(t), 0);
        write_page(12);
        write_page(19);
        write_page(31);
        assert_int_equal(unmap(t, 10, 10), 0);
        assert_int_equal(map(t, 10, 20), 0);
        write_page(11);
        NEED(t, 0, PAGES, 11, 12, 19, 31);
        NEED(t, 0, PAGES);
        /* Nobody asked yet, and a new log begins. */
        write_page(32);
        assert_int_equal(unmap(t, 30, 10), 0);
        assert_int_equal(start(t), 0);
        NEED(t, 0, PAGES);
        t->ops->close(t);
    }
}

/* More mappings that went than are kept: nobody knows any more, and that is an error. */
static void too_many_went(void **state)
{
    struct vfmig_target *t = open_log(TYPE1);
    uint64_t bits[4] = {0};

    assert_int_equal(start(t), 0);
    for (uint32_t i = 0; i < 257; i++) {
        assert_int_equal(map(t, 10, 2), 0);
        write_page(11);
        assert_int_equal(unmap(t, 10, 2), 0);
    }
    assert_int_equal(t->ops->log_report(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits, &err), -ENOSPC);
    assert_true(vfmig_bitmap_test(bits, 11));
    NEED(t, 0, 64);
    t->ops->close(t);
}

static void many_ranges(void **state)
{
    struct vfmig_target *t = open_log(DEVICE);
    static struct vfmig_iova_range ranges[600];

    /* Backwards, every second one overlaps. */
    for (uint32_t i = 0; i < 600; i++)
        ranges[i] = (struct vfmig_iova_range){(600 - i) * UINT64_C(16) * FAKE_PAGE,
                                              (i % 2 ? 17 : 1) * (uint64_t)FAKE_PAGE};
    assert_int_equal(map(t, 0, PAGES), 0);
    assert_int_equal(t->ops->log_start(t, FAKE_PAGE, ranges, 600, &err), 0);
    assert_true(fake.log_ranges <= 256);
    for (uint32_t i = 0; i < 600; i++) {
        bool covered = false;
        for (uint32_t r = 0; r < fake.log_ranges; r++)
            covered |= ranges[i].iova >= fake.ranges[r].iova &&
                       ranges[i].iova + ranges[i].size <= fake.ranges[r].iova + fake.ranges[r].size;
        assert_true(covered);
    }
    write_page(16);
    NEED(t, 0, 17, 16);
    /* A few are told as they are; none are what is mapped. */
    assert_int_equal(t->ops->log_start(t, FAKE_PAGE, ranges, 2, &err), 0);
    assert_int_equal(fake.log_ranges, 1);
    assert_int_equal(t->ops->log_start(t, FAKE_PAGE, NULL, 0, &err), 0);
    assert_int_equal(fake.log_ranges, 1);
    assert_int_equal(fake.ranges[0].size, PAGES * FAKE_PAGE);
    t->ops->close(t);
}

static void refusals(void **state)
{
    uint64_t bits[FAKE_SPACE_PAGES / 64];

    for (enum who who = DEVICE; who < WHOS; who++) {
        struct vfmig_target *t = open_log(who);
        assert_int_equal(map(t, 0, 64), 0);
        assert_int_equal(t->ops->log_start(t, 512, NULL, 0, &err), -ENOTSUP);
        assert_int_equal(t->ops->log_start(t, 5000, NULL, 0, &err), -ENOTSUP);
        assert_int_equal(t->ops->log_report(t, 0, FAKE_PAGE, 0, bits, &err), -EINVAL);
        assert_int_equal(t->ops->log_report(t, 1, FAKE_PAGE, FAKE_PAGE, bits, &err), -EINVAL);
        assert_int_equal(t->ops->log_report(t, 0, 0, FAKE_PAGE, bits, &err), -EINVAL);
        assert_int_equal(t->ops->log_report(t, 0x2000, UINT64_MAX, FAKE_PAGE, bits, &err), -EINVAL);
        /* Not started, and stopped: no log can be read then. */
        assert_int_equal(t->ops->log_report(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits, &err), -EINVAL);
        fake.quirk.start_error = -EBUSY;
        assert_int_equal(start(t), -EBUSY);
        fake.quirk.start_error = 0;
        assert_int_equal(start(t), 0);
        fake.quirk.report_error = -EFAULT;
        assert_int_equal(t->ops->log_report(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits, &err), -EFAULT);
        if (who == IOMMUFD) /* the mapping stays with its log */
            assert_int_equal(unmap(t, 0, 64), -EFAULT);
        fake.quirk.report_error = 0;
        assert_int_equal(t->ops->log_stop(t, &err), 0);
        assert_int_equal(t->ops->log_report(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits, &err), -EINVAL);
        t->ops->close(t);
    }
    struct vfmig_target *t = open_log(TYPE1);
    assert_int_equal(map(t, 0, 64), 0);
    assert_int_equal(start(t), 0);
    assert_int_equal(t->ops->log_report(t, 0, 63 * FAKE_PAGE, FAKE_PAGE, bits, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    /* As it is said: the kernel refuses it, or has nothing against it. */
    assert_int_equal(vfmig_kernel_log_once(t, true, FAKE_PAGE), 0);
    memset(bits, 0, sizeof(bits));
    write_page(5);
    assert_int_equal(vfmig_kernel_report_once(t, 0, 63 * FAKE_PAGE, FAKE_PAGE, bits), -EINVAL);
    assert_int_equal(vfmig_kernel_report_once(t, 0, 64 * FAKE_PAGE, 0, bits), -EINVAL);
    assert_int_equal(vfmig_kernel_report_once(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits), 0);
    assert_int_equal(bits[0], 1 << 5);
    assert_int_equal(vfmig_kernel_log_once(t, false, FAKE_PAGE), 0);
    assert_int_equal(vfmig_kernel_report_once(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits), -EINVAL);
    assert_int_equal(t->ops->log_start(t, 65536, NULL, 0, &err), -ENOTSUP);
    t->ops->close(t);
    fake.device_log = fake.iommu_log = false;
    t = open_at(GROUP_ADDRESS);
    assert_false(t->info.dma_log);
    assert_int_equal(start(t), -ENOTSUP);
    assert_int_equal(t->ops->log_stop(t, &err), -ENOTSUP);
    assert_int_equal(t->ops->log_report(t, 0, FAKE_PAGE, FAKE_PAGE, bits, &err), -ENOTSUP);
    assert_int_equal(vfmig_kernel_report_once(t, 0, FAKE_PAGE, FAKE_PAGE, bits), -ENOTSUP);
    assert_int_equal(vfmig_kernel_log_once(t, true, FAKE_PAGE), -ENOTSUP);
    t->ops->close(t);
}

/* Pages of the log that are larger, or smaller, than those that are asked for. */
static void page_sizes(void **state)
{
    const struct vfmig_iova_range all = {0, 512 * FAKE_PAGE};
    uint64_t bits[FAKE_SPACE_PAGES / 64];

    for (enum who who = DEVICE; who < TYPE1; who++) {
        struct vfmig_target *t = open_log(who);
        assert_int_equal(map(t, 0, 512), 0);
        assert_int_equal(t->ops->log_start(t, 65536, &all, 1, &err), 0);
        write_page(17);
        memset(bits, 0, sizeof(bits));
        assert_int_equal(t->ops->log_report(t, 0, 512 * FAKE_PAGE, 65536, bits, &err), 0);
        assert_int_equal(bits[0], 2);
        if (who == IOMMUFD) {
            write_page(33);
            assert_int_equal(unmap(t, 0, 512), 0);
            /* All sixteen pages, also to those who ask for a part; it is not forgotten then. */
            memset(bits, 0, sizeof(bits));
            assert_int_equal(
                t->ops->log_report(t, 40 * FAKE_PAGE, 64 * FAKE_PAGE, FAKE_PAGE, bits, &err), 0);
            assert_int_equal(bits[0], 0xff);
            memset(bits, 0, sizeof(bits));
            assert_int_equal(t->ops->log_report(t, 0, 64 * FAKE_PAGE, FAKE_PAGE, bits, &err), 0);
            assert_int_equal(bits[0], UINT64_C(0xffff) << 32);
            NEED(t, 0, 64);
            /* A mapping that ends in the middle of a page of the log. */
            assert_int_equal(map(t, 0, 18), 0);
            write_page(17);
            assert_int_equal(unmap(t, 0, 18), 0);
            NEED(t, 0, 18, 16, 17);
            NEED(t, 0, 64);
        }
        t->ops->close(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOG_CASE(maps_memory),    LOG_CASE(each_log),      LOG_CASE(bits_beyond_the_range),
        LOG_CASE(unmapped_pages), LOG_CASE(too_many_went), LOG_CASE(many_ranges),
        LOG_CASE(refusals),       LOG_CASE(page_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
