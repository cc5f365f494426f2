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

static void good(void **state)
{
    struct check_report report;

    one(CDEV, false, (struct fake_quirks){0}, &report);
    assert_int_equal(report.tally[CHECK_FAIL], 0);
    assert_true(report.tally[CHECK_PASS] > 50);
    check_report_free(&report);
    one(GROUP, true, (struct fake_quirks){0}, &report);
    assert_int_equal(report.tally[CHECK_FAIL], 0);
    assert_true(report.tally[CHECK_PASS] > 50);
    check_report_free(&report);
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(good), cmocka_unit_test(broken)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
