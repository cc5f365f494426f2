/* SPDX-License-Identifier: BSD-3-Clause */
/* Both ways to a device of the fake kernel. Included once by each test, after cmocka.h. */
#ifndef VFMIG_TESTS_KERNEL_HELP_H
#define VFMIG_TESTS_KERNEL_HELP_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fake_kernel.h"

#define SECOND        UINT64_C(1000000000)
#define LONG          (60 * SECOND) /* what does not depend on how busy the machine is */
#define CDEV_ADDRESS  "vfio:/dev/vfio/devices/vfio0"
#define GROUP_ADDRESS "vfio-group:7:0000:01:00.1"

static struct fake_kernel fake;
static struct vfmig_error err;

static int try_open(const char *address, enum vfmig_dialect dialect, bool incoming, bool late_load,
                    struct vfmig_target **ret_target)
{
    const struct vfmig_kernel_options options = {.dialect = dialect,
                                                 .timeout_ns = SECOND / 1000,
                                                 .incoming = incoming,
                                                 .late_load = late_load,
                                                 .calls = &fake_calls,
                                                 .opaque = &fake};

    err = (struct vfmig_error){.code = 0};
    return vfmig_kernel_open(address, &options, ret_target, &err);
}

static struct vfmig_target *open_at(const char *address)
{
    struct vfmig_target *t = NULL;

    if (try_open(address, VFMIG_DIALECT_AUTO, false, false, &t) < 0)
        fail_msg("%s", err.text);
    return t;
}

static inline struct vfmig_target *open_cdev(void)
{
    return open_at(CDEV_ADDRESS);
}

static inline int go(struct vfmig_target *t, enum vfmig_state state)
{
    return t->ops->set_state(t, state, LONG, &err);
}

static inline void must_go(struct vfmig_target *t, enum vfmig_state state)
{
    if (go(t, state) < 0)
        fail_msg("%s", err.text);
}

static inline enum vfmig_state state_of(struct vfmig_target *t)
{
    enum vfmig_state state;

    assert_int_equal(t->ops->get_state(t, &state, &err), 0);
    return state;
}

static int setup(void **state)
{
    fake_init(&fake);
    return 0;
}

/* Nothing stays behind. A test that failed with a call in the fake kernel is the last one: its
 * thread would go on in the next one's. */
static int teardown(void **state)
{
    if (fake.stalled && !fake.released) {
        print_error("failed, and a call has not returned\n");
        fflush(NULL);
        _exit(1);
    }
    uint32_t open_files = fake_open_files(&fake), mapped = fake.mmaps - fake.munmaps;

    fake_done(&fake);
    if (open_files || mapped)
        print_error("%u descriptors and %u mappings are left\n", open_files, mapped);
    return open_files || mapped ? -1 : 0;
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

#endif
