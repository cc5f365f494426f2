/* SPDX-License-Identifier: BSD-3-Clause */
/* The checker on the fake kernel's device: what it says of a good one, and of one that is not. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "check/check.h"
#include "check/kernel.h"
#include "check/port.h"
#include "fake_kernel.h"

static struct fake_kernel fake;

static void judge(const char *target, struct check_report *report)
{
    const struct check_options options = {.target = target, .quick = true, .deadline_ms = 60000};
    struct vfmig_error err = {0};

    check_kernel_use(&fake_calls, &fake);
    if (check_run(&options, report, &err) < 0)
        fail_msg("%s", err.text);
    for (unsigned i = 0; i < report->count; i++) {
        const struct check_result *r = &report->results[i];
        if (r->verdict == CHECK_FAIL || r->verdict == CHECK_WARN)
            print_message("%s %s: %s; expected %s; seen %s\n", check_verdict_name(r->verdict),
                          r->rule->id, r->done, r->expected, r->seen);
    }
    check_kernel_use(NULL, NULL);
}

#define CDEV  "vfio:/dev/vfio/devices/vfio0"
#define GROUP "vfio-group:7:0000:01:00.1"

static void one(const char *target, bool region, struct fake_quirks quirk,
                struct check_report *report)
{
    fake_init(&fake);
    fake.strict = true;
    if (region)
        fake.features = 0, fake.device_log = false, fake.iommu_log = true;
    fake.quirk = quirk;
    *report = (struct check_report){0};
    judge(target, report);
    assert_int_equal(fake_open_files(&fake), 0);
    assert_int_equal(fake.mmaps, fake.munmaps);
    fake_done(&fake);
    print_message("pass %u fail %u warn %u skipped %u n/a %u\n", report->tally[0], report->tally[1],
                  report->tally[2], report->tally[3], report->tally[4]);
}

/* What a kernel target, or this run of the checker, is without. */
static bool is_explained(const char *why)
{
    static const char *const reasons[] = {"destructive:",
                                          "not among the quick ones",
                                          "no second device",
                                          "no workload that",
                                          "this kind of target cannot be told wrong messages",
                                          "this kind of target answers everything",
                                          "this kind of target has no DMA by message"};

    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (!strncmp(why, reasons[i], strlen(reasons[i])))
            return true;
    return false;
}

static void all_is_well(const char *target, bool region)
{
    struct check_report report;

    one(target, region, (struct fake_quirks){0}, &report);
    assert_int_equal(report.tally[CHECK_FAIL], 0);
    assert_int_equal(report.tally[CHECK_WARN], 0);
    assert_true(report.tally[CHECK_PASS] > 50);
    for (unsigned i = 0; i < report.count; i++) {
        const struct check_result *r = &report.results[i];
        if (r->verdict == CHECK_PASS)
            assert_true(r->stimuli > 0);
        else if (r->verdict == CHECK_SKIPPED && !is_explained(r->why))
            fail_msg("%s is skipped: %s", r->rule->id, r->why);
    }
    check_report_free(&report);
}

static void good(void **state)
{
    all_is_well(CDEV, false);
    all_is_well(GROUP, true);
}

/* Each breaks a rule, and the report says so. */
static void broken(void **state)
{
    static const struct {
        struct fake_quirks quirk;
        const char *rule;
    } bad[] = {
        {{.bad_state = true}, "C42"},
        {{.reset_keeps_state = true}, "C42"},
        {{.huge_amounts = true}, "V2-PRECOPY-INFO"},
        {{.no_fd = true}, "V2-SESSION"},
        {{.report_error = -EIO}, "C27"},
        {{.empty_precopy = true}, "V2-ENOMSG"}, /* 0 instead of ENOMSG */
        {{.enomsg_in_s = true}, "C12"},         /* ENOMSG at the end instead of 0 */
    };

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct check_report report;
        bool found = false;
        one(CDEV, false, bad[i].quirk, &report);
        for (unsigned r = 0; r < report.count; r++)
            found |= report.results[r].verdict == CHECK_FAIL &&
                     !strcmp(report.results[r].rule->id, bad[i].rule);
        check_report_free(&report);
        if (!found)
            fail_msg("%s finds nothing", bad[i].rule);
    }
}

/* Data that the driver fetches first is waited for: nothing now is not the end of it. */
static void late_data(void **state)
{
    struct check_port *port = NULL;
    struct vfmig_error err;
    uint8_t bytes[64];
    struct check_step set = {.kind = CHECK_STEP_STATE_SET, .arg = {VFMIG_STATE_STOP_COPY}};
    struct check_step read = {.kind = CHECK_STEP_DATA_READ,
                              .arg = {sizeof(bytes)},
                              .room = bytes,
                              .room_size = sizeof(bytes)};

    fake_init(&fake);
    check_kernel_use(&fake_calls, &fake);
    assert_int_equal(check_kernel_open("/dev/vfio/devices/vfio0", 60000, &port, &err), 0);
    port->ops->run(port, &set);
    assert_int_equal(set.result, 0);
    fake.quirk.busy_reads = 1;
    port->ops->run(port, &read);
    assert_int_equal(fake.polls, 1);
    assert_int_equal(read.result, sizeof(bytes));
    fake.quirk.read_too_much = true;
    port->ops->run(port, &read);
    assert_int_equal(read.result, -EPROTO);
    fake.quirk.never_ready = true;
    port->ops->run(port, &read);
    assert_int_equal(read.result, -ENOTCONN);
    assert_int_equal(port->trouble, CHECK_HUNG);
    port->ops->free(port);
    assert_int_equal(fake_open_files(&fake), 0);
    fake_done(&fake);
    check_kernel_use(NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(good), cmocka_unit_test(broken),
                                       cmocka_unit_test(late_data)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
