/* SPDX-License-Identifier: BSD-3-Clause */
/* The vIOMMU alone: registers, mappings, accesses in flight, page requests, a guest that means
 * harm. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>

#include "iommu_rig.h"

#define RW (IOMMU_MAP_READ | IOMMU_MAP_WRITE)

static void registers(void **state)
{
    struct rig r;
    uint64_t word = 0;

    rig_open(&r, 0x5);
    assert_int_equal(rig_get(&r, IOMMU_REG_ID), IOMMU_ID);
    assert_int_equal(rig_get(&r, IOMMU_REG_DEVICES), 5);
    assert_int_equal(rig_get(&r, IOMMU_REG_ERRORS), 0);
    rig_put(&r, IOMMU_REG_CMD_BASE, 0x3000, 8); /* not while enabled */
    vmm_iommu_mmio(r.iommu, IOMMU_REG_CMD_BASE, false, &word, 8);
    assert_int_equal(word, RIG_COMMANDS);
    rig_put(&r, IOMMU_REG_CMD_TAIL, RIG_ENTRIES + 1, 4); /* more than the queue holds */
    rig_put(&r, IOMMU_REG_PRQ_HEAD, 1, 4);               /* what was never written */
    rig_put(&r, IOMMU_REG_ID, 1, 4);
    rig_put(&r, 0x800, 1, 4);
    rig_put(&r, IOMMU_REG_CMD_BASE + 2, 1, 2);
    rig_put(&r, IOMMU_REG_CTRL, 2, 4);
    assert_int_equal(rig_get(&r, IOMMU_REG_ERRORS), 7);
    assert_int_equal(rig_get(&r, IOMMU_REG_CMD_HEAD), 0);
    assert_int_equal(rig_get(&r, 0xffc), 0);
    rig_disable(&r);
    static const struct {
        uint64_t base;
        uint32_t entries;
    } bad[] = {
        {0x1020, 16},           {0x1000, 0},
        {0x1000, 12},           {0x1000, 2048},
        {RIG_PAGES * 4096, 16}, {RIG_PAGES * 4096 - 64, 2},
        {UINT64_MAX - 63, 1},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rig_put(&r, IOMMU_REG_CMD_BASE, bad[i].base, 8);
        rig_put(&r, IOMMU_REG_CMD_ENTRIES, bad[i].entries, 4);
        rig_put(&r, IOMMU_REG_CTRL, IOMMU_CTRL_ENABLE, 4);
        assert_int_equal(rig_get(&r, IOMMU_REG_CTRL), 0);
    }
    rig_enable(&r);
    assert_int_equal(rig_get(&r, IOMMU_REG_CTRL), 1);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(rig_domain(&r, 1, true), ENODEV);
    assert_int_equal(rig_domain(&r, 32, true), ENODEV);
    assert_int_equal(rig_do(&r, (struct iommu_command){.op = IOMMU_NOP}), 0);
    assert_int_equal(rig_do(&r, (struct iommu_command){.op = 99, .device = 0}), EINVAL);
    rig_close(&r);
}

static uint64_t leads_to(struct rig *r, struct rig_access *a, uint64_t iova, uint64_t *ret_left)
{
    uint64_t gpa;

    vmm_iommu_translate(r->iommu, &a->access, iova, &gpa, ret_left);
    return gpa;
}

static void mappings(void **state)
{
    struct rig r;
    struct rig_access a;
    uint64_t left;

    rig_open(&r, 1);
    assert_int_equal(rig_begin(&r, &a, 0, 0, 8, false, false), -EFAULT); /* domain off */
    assert_int_equal(rig_map(&r, 0, 0, 0, 4096, RW), ENXIO);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(rig_begin(&r, &a, 0, 0, 8, false, false), -EAGAIN);
    assert_int_equal(rig_map(&r, 0, 0x10000, 0x20000, 0x2000, RW), 0);
    assert_int_equal(rig_map(&r, 0, 0x12000, 0x8000, 0x1000, IOMMU_MAP_READ), 0);
    static const struct iommu_command wrong[] = {
        {.iova = 1, .size = 4096, .flags = RW},
        {.gpa = 1, .size = 4096, .flags = RW},
        {.size = 1, .flags = RW},
        {.flags = RW},
        {.size = 4096},
        {.size = 4096, .flags = 4},
        {.iova = UINT64_C(1) << IOMMU_IOVA_BITS, .size = 4096, .flags = RW},
        {.gpa = UINT64_MAX - 4095, .size = 8192, .flags = RW},
        {.size = UINT64_MAX - 4095, .flags = RW},
    };
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(rig_map(&r, 0, wrong[i].iova, wrong[i].gpa, wrong[i].size, wrong[i].flags),
                         EINVAL);
    assert_int_equal(rig_map(&r, 0, 0x11000, 0, 4096, RW), EEXIST);
    assert_int_equal(rig_map(&r, 0, 0xf000, 0, 0x2000, RW), EEXIST);
    assert_int_equal(rig_begin(&r, &a, 0, 0x11ffc, 0x1004, false, false), 0); /* over both */
    assert_int_equal(leads_to(&r, &a, 0x11ffc, &left), 0x21ffc);
    assert_int_equal(left, 4);
    assert_int_equal(leads_to(&r, &a, 0x12000, &left), 0x8000);
    assert_int_equal(left, 0x1000);
    vmm_iommu_end(r.iommu, &a.access);
    assert_int_equal(rig_begin(&r, &a, 0, 0x11ffc, 8, true, false), -EAGAIN); /* read only */
    assert_int_equal(rig_begin(&r, &a, 0, 0x12fff, 2, false, false), -EAGAIN);
    assert_int_equal(rig_begin(&r, &a, 0, UINT64_MAX - 3, 8, false, false), -EFAULT);
    assert_int_equal(rig_begin(&r, &a, 0, (UINT64_C(1) << IOMMU_IOVA_BITS) - 4, 8, false, false),
                     -EFAULT);
    assert_int_equal(rig_begin(&r, &a, 1, 0x10000, 8, false, false), -EFAULT); /* not behind it */
    assert_int_equal(rig_unmap(&r, 0, 0x10000, 0x1000), EINVAL);               /* part of one */
    assert_int_equal(rig_unmap(&r, 0, 0x11000, 0x2000), EINVAL);
    assert_int_equal(rig_unmap(&r, 0, 0, 0), EINVAL);
    assert_int_equal(rig_unmap(&r, 0, 0, 0x12000), 0);
    assert_int_equal(rig_begin(&r, &a, 0, 0x10000, 8, false, false), -EAGAIN);
    assert_int_equal(rig_begin(&r, &a, 0, 0x12000, 8, false, false), 0);
    vmm_iommu_end(r.iommu, &a.access);
    assert_int_equal(rig_domain(&r, 0, true), 0); /* on again: empty */
    assert_int_equal(rig_begin(&r, &a, 0, 0x12000, 8, false, false), -EAGAIN);
    for (uint64_t i = 0; i < VFMIG_MAX_IOMMU_MAPPINGS; i++)
        assert_int_equal(rig_map(&r, 0, i * 8192, 0, 4096, RW), 0);
    assert_int_equal(rig_map(&r, 0, VFMIG_MAX_IOMMU_MAPPINGS * UINT64_C(8192), 0, 4096, RW),
                     ENOSPC);
    assert_int_equal(rig_unmap(&r, 0, 0, 4096), 0);
    assert_int_equal(rig_map(&r, 0, VFMIG_MAX_IOMMU_MAPPINGS * UINT64_C(8192), 0, 4096, RW), 0);
    rig_close(&r);
}

static uint32_t expect_request(struct rig *r, uint64_t iova, bool is_write)
{
    const struct iommu_request *request = rig_request(r);

    assert_non_null(request);
    assert_int_equal(request->iova, iova);
    assert_int_equal(request->flags, is_write ? IOMMU_REQUEST_WRITE : 0);
    return request->id;
}

/* Answered late and out of order, granted and refused; an access that finds the next page missing
 * asks for it too, and two that miss the same page ask once. */
static void page_requests(void **state)
{
    struct rig r;
    struct rig_access a, b, c, again;

    rig_open(&r, 3);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(rig_domain(&r, 1, true), 0);
    assert_int_equal(rig_begin(&r, &a, 0, 0x5ffc, 8, true, true), -EINPROGRESS);
    assert_int_equal(rig_begin(&r, &b, 1, 0x5000, 8, false, true), -EINPROGRESS);
    assert_int_equal(rig_begin(&r, &c, 0, 0x7123, 8, true, true), -EINPROGRESS);
    assert_int_equal(rig_begin(&r, &again, 0, 0x7000, 4, true, true), -EINPROGRESS);
    assert_int_equal(vmm_iommu_faults(r.iommu), 4);
    uint32_t first = expect_request(&r, 0x5000, true);
    uint32_t other = expect_request(&r, 0x5000, false);
    uint32_t third = expect_request(&r, 0x7000, true);
    assert_null(rig_request(&r));
    assert_int_equal(rig_get(&r, IOMMU_REG_OPEN), 3);
    assert_int_equal(rig_respond(&r, third, IOMMU_RESPONSE_REFUSED), 0);
    assert_int_equal(c.result, -EFAULT);
    assert_int_equal(again.result, -EFAULT);
    assert_int_equal(rig_map(&r, 1, 0x5000, 0x9000, 4096, IOMMU_MAP_READ), 0);
    assert_int_equal(b.result, 1); /* mapped alone is no answer */
    assert_int_equal(rig_respond(&r, other, IOMMU_RESPONSE_TRY), 0);
    assert_int_equal(b.result, 0);
    assert_int_equal(rig_again(&r, &b), 0);
    vmm_iommu_end(r.iommu, &b.access);
    assert_int_equal(rig_respond(&r, first, IOMMU_RESPONSE_TRY), 0); /* without a mapping */
    assert_int_equal(a.result, 0);
    assert_int_equal(rig_again(&r, &a), -EINPROGRESS);
    uint32_t once_more = expect_request(&r, 0x5000, true);
    assert_int_not_equal(once_more, first);
    assert_int_equal(rig_map(&r, 0, 0x5000, 0xa000, 4096, RW), 0);
    assert_int_equal(rig_respond(&r, once_more, IOMMU_RESPONSE_TRY), 0);
    assert_int_equal(rig_again(&r, &a), -EINPROGRESS);
    uint32_t next = expect_request(&r, 0x6000, true);
    assert_int_equal(rig_map(&r, 0, 0x6000, 0xb000, 4096, RW), 0);
    assert_int_equal(rig_respond(&r, next, IOMMU_RESPONSE_TRY), 0);
    assert_int_equal(rig_again(&r, &a), 0);
    vmm_iommu_end(r.iommu, &a.access);
    /* Ids that are over, were never, or belong to nobody. */
    assert_int_equal(rig_respond(&r, first, IOMMU_RESPONSE_TRY), ENOENT);
    assert_int_equal(rig_respond(&r, next ^ 0x100, IOMMU_RESPONSE_TRY), ENOENT);
    assert_int_equal(rig_respond(&r, 0xffffffff, IOMMU_RESPONSE_TRY), ENOENT);
    assert_int_equal(rig_respond(&r, first, 2), EINVAL);
    assert_int_equal(rig_get(&r, IOMMU_REG_OPEN), 0);
    assert_int_equal(vmm_iommu_faults(r.iommu), 4);
    struct rig_access *all[] = {&a, &b, &c, &again};
    for (unsigned i = 0; i < 4; i++)
        vmm_iommu_release(r.iommu, &all[i]->access);
    assert_int_equal(vmm_iommu_faults(r.iommu), 0);
    rig_close(&r);
}

/* More faults than the guest's queue holds: none is lost, and each is written once. */
static void a_full_queue(void **state)
{
    struct rig r;
    static struct rig_access many[VFMIG_MAX_LATE_DMA];
    uint32_t ids[VFMIG_MAX_LATE_DMA], seen = 0;

    rig_open(&r, 1);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    for (unsigned i = 0; i < VFMIG_MAX_LATE_DMA; i++)
        assert_int_equal(rig_begin(&r, &many[i], 0, i * UINT64_C(4096), 8, i % 2, true),
                         -EINPROGRESS);
    assert_int_equal(rig_get(&r, IOMMU_REG_PRQ_TAIL), RIG_ENTRIES);
    while (seen < VFMIG_MAX_LATE_DMA) {
        ids[seen] = expect_request(&r, seen * UINT64_C(4096), seen % 2);
        rig_put(&r, IOMMU_REG_PRQ_HEAD, ++seen, 4);
    }
    assert_null(rig_request(&r));
    for (unsigned i = VFMIG_MAX_LATE_DMA; i-- > 0;) {
        assert_int_equal(rig_respond(&r, ids[i], IOMMU_RESPONSE_REFUSED), 0);
        assert_int_equal(many[i].result, -EFAULT);
    }
    /* Domain off, vIOMMU off, vIOMMU gone: whoever waits is told. */
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(rig_begin(&r, &many[0], 0, 0, 8, false, true), -EINPROGRESS);
        if (i == 0)
            assert_int_equal(rig_domain(&r, 0, false), 0);
        else if (i == 1)
            rig_disable(&r);
        else
            rig_close(&r);
        assert_int_equal(many[0].result, -EFAULT);
        if (i == 1)
            rig_enable(&r);
        if (i < 2)
            assert_int_equal(rig_domain(&r, 0, true), 0);
    }
}

/* An unmap waits for the DMA that uses the page, and for no other; meanwhile the page is missing to
 * whoever comes. */
static void unmap_waits(void **state)
{
    struct rig r;
    struct rig_access a, b, c, late;

    rig_open(&r, 3);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(rig_domain(&r, 1, true), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(rig_map(&r, 0, i * 4096, 0x8000 + i * 4096, 4096, RW), 0);
    assert_int_equal(rig_map(&r, 1, 4096, 0x20000, 4096, RW), 0);
    assert_int_equal(rig_begin(&r, &a, 0, 0, 4096, true, false), 0);
    assert_int_equal(rig_begin(&r, &b, 0, 4096, 4096, true, false), 0);
    assert_int_equal(rig_begin(&r, &c, 1, 4096, 4096, true, false), 0);
    assert_int_equal(rig_begin(&r, &late, 0, 0x9000, 4096, true, true), -EINPROGRESS); /* a fault */
    assert_int_equal(rig_unmap(&r, 0, 8192, 4096), 0);
    const struct iommu_command *unmap =
        rig_queue(&r, (struct iommu_command){.op = IOMMU_UNMAP, .iova = 4096, .size = 4096});
    int ret;
    struct rig_access probe;
    while ((ret = rig_begin(&r, &probe, 0, 4096, 8, false, false)) == 0)
        vmm_iommu_end(r.iommu, &probe.access);
    assert_int_equal(ret, -EAGAIN);
    uint64_t left;
    assert_int_equal(leads_to(&r, &b, 4100, &left), 0x9004); /* in flight it goes on */
    assert_false(rig_is_done(unmap));
    vmm_iommu_end(r.iommu, &b.access);
    while (!rig_is_done(unmap))
        sched_yield();
    assert_int_equal(unmap->status, IOMMU_STATUS_DONE);
    vmm_iommu_end(r.iommu, &a.access);
    vmm_iommu_end(r.iommu, &c.access);
    rig_close(&r);
}

/* What the vIOMMU writes to guest memory is marked. */
static void marks(void **state)
{
    struct rig r;
    struct rig_access a;
    struct vfmig_dirty_map map;

    rig_open(&r, 1);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(vfmig_dirty_map_init(&map, &r.space.memory, NULL), 0);
    assert_int_equal(r.space.own->ops->start(r.space.own, &r.space.memory, NULL), 0);
    assert_int_equal(rig_begin(&r, &a, 0, 0, 4096, true, true), -EINPROGRESS);
    assert_int_equal(r.space.own->ops->sync(r.space.own, &map, NULL), 0);
    assert_int_equal(map.bitmaps[0][0], 1u << (RIG_REQUESTS >> 12));
    assert_int_equal(rig_map(&r, 0, 0, 0, 4096, RW), 0);
    vmm_iommu_pause(r.iommu); /* the mark follows the status */
    assert_int_equal(r.space.own->ops->sync(r.space.own, &map, NULL), 0);
    assert_int_equal(map.bitmaps[0][0], 1u << (RIG_REQUESTS >> 12) | 1u << (RIG_COMMANDS >> 12));
    vfmig_dirty_map_done(&map);
    rig_close(&r);
}

static const uint64_t odd[] = {
    0,  4096, 8192,       0x10000,           UINT64_C(1) << 38, 1,         2, 3,
    32, 4095, UINT32_MAX, UINT64_C(1) << 39, UINT64_MAX - 4095, UINT64_MAX};
#define ODD    (sizeof(odd) / sizeof(odd[0]))
#define FLYERS 64u

struct attack {
    struct rig r;
    uint64_t seed;
    struct rig_access accesses[FLYERS]; /* result 2: free */
    unsigned granted, refused, done;
};

static uint32_t die(struct attack *a, uint32_t sides)
{
    a->seed = a->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(a->seed >> 33) % sides;
}

/* Until the vIOMMU has nothing to do, or is off. */
static void settle(struct rig *r)
{
    while (rig_get(r, IOMMU_REG_CTRL) &&
           rig_get(r, IOMMU_REG_CMD_HEAD) != rig_get(r, IOMMU_REG_CMD_TAIL))
        sched_yield();
}

static void attack_command(struct attack *a)
{
    struct rig *r = &a->r;
    uint32_t head = rig_get(r, IOMMU_REG_CMD_HEAD), device = die(a, 4);
    struct iommu_command *at =
        (struct iommu_command *)(r->memory + RIG_COMMANDS) + head % RIG_ENTRIES;

    *at = (struct iommu_command){
        .op = die(a, 7),
        .device = device,
        .iova = odd[die(a, die(a, 2) ? 4 : ODD)],
        .gpa = odd[die(a, die(a, 2) ? 4 : ODD)],
        .size = odd[die(a, die(a, 2) ? 4 : ODD)],
        .flags = die(a, 4),
        .id = device << 24 | die(a, 16) << 8 | die(a, 4),
    };
    if (at->op == IOMMU_DOMAIN && die(a, 4))
        at->op = IOMMU_NOP;
    rig_put(r, IOMMU_REG_CMD_TAIL, head + 1 + (die(a, 16) ? 0 : odd[die(a, ODD)]), 4);
    settle(r);
    a->done += rig_is_done(at);
}

static void attack_access(struct attack *a)
{
    struct rig_access *access = &a->accesses[die(a, FLYERS)];

    if (access->result == 2) {
        int ret =
            rig_begin(&a->r, access, die(a, 4), odd[die(a, ODD)], die(a, 4000), die(a, 2), true);
        if (ret == -EINPROGRESS)
            return;
        if (ret == 0)
            vmm_iommu_end(a->r.iommu, &access->access);
        a->granted += ret == 0;
        vmm_iommu_release(a->r.iommu, &access->access);
        access->result = 2;
    } else if (access->result <= 0) {
        a->refused++;
        vmm_iommu_release(a->r.iommu, &access->access);
        access->result = 2;
    }
}

/* Any command, any register, in any order, while devices access memory: it stays inside its bounds,
 * and every access ends. */
static void a_hostile_guest(void **state)
{
    struct attack *a = calloc(1, sizeof(*a));
    struct rig *r = &a->r;

    rig_open(r, 0x80000007);
    a->seed = 1;
    for (unsigned i = 0; i < FLYERS; i++)
        a->accesses[i].result = 2;
    for (unsigned round = 0; round < 20000; round++) {
        if (round % 256 == 0) {
            rig_disable(r);
            rig_enable(r);
            assert_int_equal(rig_domain(r, 0, true), 0);
            assert_int_equal(rig_domain(r, 1, true), 0);
        }
        uint32_t what = die(a, 16);
        if (what == 0)
            rig_put(r, die(a, 64), odd[die(a, ODD)], 1u << die(a, 4));
        else if (what < 8)
            attack_access(a);
        else
            attack_command(a);
        assert_true(rig_get(r, IOMMU_REG_OPEN) <= FLYERS);
    }
    vmm_iommu_close(r->iommu);
    for (unsigned i = 0; i < FLYERS; i++) {
        assert_int_not_equal(a->accesses[i].result, 1);
        vmm_iommu_release(r->iommu, &a->accesses[i].access);
    }
    assert_int_equal(vmm_iommu_faults(r->iommu), 0);
    assert_true(a->granted > 20 && a->refused > 100 && a->done > 1000);
    vmm_iommu_free(r->iommu);
    r->space.own->ops->free(r->space.own);
    free(r->memory);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers),       cmocka_unit_test(mappings),
        cmocka_unit_test(page_requests),   cmocka_unit_test(a_full_queue),
        cmocka_unit_test(unmap_waits),     cmocka_unit_test(marks),
        cmocka_unit_test(a_hostile_guest),
    };

    return cmocka_run_group_tests_name("iommu", tests, NULL, NULL);
}
