/* SPDX-License-Identifier: BSD-3-Clause */
/* The choice of the vCPUs' tracker, from made-up costs; and that measuring says something. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "dirty/choose.h"

#define GIB (UINT64_C(1) << 30)

static enum vfmig_tracker_kind choose(const struct vfmig_tracker_costs *costs, uint64_t bytes)
{
    enum vfmig_tracker_kind kind = VFMIG_TRACKER_KINDS;

    assert_int_equal(vfmig_tracker_choose(costs, VFMIG_TRACKER_AUTO, bytes, &kind, NULL), 0);
    return kind;
}

static void by_cost(void **state)
{
    struct vfmig_tracker_costs costs = {
        .kvm = true,
        .of = {[VFMIG_TRACKER_KVM_BITMAP] = {.offered = true, .gib_ns = 100000},
               [VFMIG_TRACKER_KVM_RING] = {.offered = true, .page_ps = 20000},
               [VFMIG_TRACKER_PAGEMAP] = {.offered = true, .gib_ns = 1},
               [VFMIG_TRACKER_WP] = {.offered = true}},
    };

    /* A GiB has 2621 pages of a hundredth: 52 us, more than half of 100. */
    assert_int_equal(vfmig_tracker_cost_ns(&costs.of[VFMIG_TRACKER_KVM_BITMAP], 4 * GIB), 400000);
    assert_int_equal(vfmig_tracker_cost_ns(&costs.of[VFMIG_TRACKER_KVM_RING], GIB), 52428);
    assert_int_equal(choose(&costs, GIB), VFMIG_TRACKER_KVM_BITMAP);
    costs.of[VFMIG_TRACKER_KVM_RING].page_ps = 15000;
    assert_int_equal(choose(&costs, GIB), VFMIG_TRACKER_KVM_RING);
    costs.of[VFMIG_TRACKER_KVM_RING].offered = false;
    assert_int_equal(choose(&costs, GIB), VFMIG_TRACKER_KVM_BITMAP);
    /* Without KVM's logs, and without KVM. */
    costs.of[VFMIG_TRACKER_KVM_BITMAP].offered = false;
    assert_int_equal(choose(&costs, GIB), VFMIG_TRACKER_PAGEMAP);
    costs.kvm = false;
    costs.of[VFMIG_TRACKER_PAGEMAP].offered = false;
    assert_int_equal(choose(&costs, GIB), VFMIG_TRACKER_WP);
}

static void by_name(void **state)
{
    struct vfmig_tracker_costs costs = {.of = {[VFMIG_TRACKER_WP] = {.offered = true}}};
    enum vfmig_tracker_kind kind;
    struct vfmig_error err;

    for (unsigned i = 0; i < VFMIG_TRACKER_KINDS; i++) {
        assert_int_equal(vfmig_tracker_kind_parse(vfmig_tracker_kind_name(i), &kind), 0);
        assert_int_equal(kind, i);
    }
    assert_int_equal(vfmig_tracker_kind_parse("kvm", &kind), -EINVAL);
    assert_string_equal(vfmig_tracker_kind_name(VFMIG_TRACKER_KINDS), "unknown");
    assert_int_equal(vfmig_tracker_choose(&costs, VFMIG_TRACKER_WP, GIB, &kind, &err), 0);
    assert_int_equal(kind, VFMIG_TRACKER_WP);
    assert_int_equal(vfmig_tracker_choose(&costs, VFMIG_TRACKER_KVM_RING, GIB, &kind, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "kvm-ring"));
    assert_non_null(strstr(err.text, "not KVM's"));
    costs.kvm = true;
    assert_int_equal(vfmig_tracker_choose(&costs, VFMIG_TRACKER_KVM_RING, GIB, &kind, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "does not offer"));
    costs.of[VFMIG_TRACKER_WP].offered = false;
    assert_int_equal(vfmig_tracker_choose(&costs, VFMIG_TRACKER_AUTO, GIB, &kind, &err), -ENOTSUP);
}

/* What is offered has a cost, and one of them can be chosen; without KVM none of its logs is. */
static void measured(void **state)
{
    struct vfmig_tracker_costs costs;

    for (int kvm = 0; kvm < 2; kvm++) {
        vfmig_tracker_costs_measure(kvm, &costs);
        for (unsigned i = 1; i < VFMIG_TRACKER_KINDS; i++) {
            const struct vfmig_tracker_cost *cost = &costs.of[i];
            print_message("%s: %s, %llu ns a GiB, %llu ps a page\n", vfmig_tracker_kind_name(i),
                          cost->offered ? "offered" : "not here", (unsigned long long)cost->gib_ns,
                          (unsigned long long)cost->page_ps);
            assert_true(!cost->offered || cost->gib_ns || cost->page_ps);
            assert_true(kvm || !cost->offered || i > VFMIG_TRACKER_KVM_RING);
        }
        assert_in_range(choose(&costs, GIB), 1, VFMIG_TRACKER_KINDS - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_cost),
        cmocka_unit_test(by_name),
        cmocka_unit_test(measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
