/* SPDX-License-Identifier: BSD-3-Clause */
/* Kernel targets: the migration region, and the drivers that were posted for it in 2021. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernel_help.h"

static int setup_region(void **state)
{
    setup(state);
    fake.features = 0;
    fake.device_log = false;
    return 0;
}

#define REGION_CASE(function) cmocka_unit_test_setup_teardown(function, setup_region, teardown)

static struct vfmig_target *open_with(struct fake_quirks quirk)
{
    fake.quirk = quirk;
    return open_at(GROUP_ADDRESS);
}

static size_t drain(struct vfmig_target *t, uint8_t *to, size_t piece)
{
    size_t at = 0;
    bool more;
    ssize_t n;

    while ((n = t->ops->save_part(t, to + at, piece, &more, &err)) > 0)
        at += (size_t)n;
    if (n < 0)
        fail_msg("%s", err.text);
    assert_false(more);
    return at;
}

static void load_all(struct vfmig_target *t)
{
    must_go(t, VFMIG_STATE_RESUMING);
    assert_int_equal(t->ops->load_part(t, fake.image, 100, true, &err), 0);
    assert_int_equal(fake.commits, 0);
    assert_int_equal(t->ops->load_part(t, fake.image + 100, 900, false, &err), 0);
    assert_int_equal(t->ops->load(t, fake.image + 1000, FAKE_IMAGE - 1000, &err), 0);
    assert_int_equal(fake.loaded_size, FAKE_IMAGE);
    assert_memory_equal(fake.loaded, fake.image, FAKE_IMAGE);
}

static void round_trip_with(struct fake_quirks quirk, size_t piece)
{
    struct vfmig_target *t = open_with(quirk);
    uint8_t image[FAKE_IMAGE + FAKE_PAGE];

    must_go(t, VFMIG_STATE_PRE_COPY);
    size_t at = drain(t, image, piece);
    assert_int_equal(at, FAKE_PRE_COPY);
    must_go(t, VFMIG_STATE_STOP_COPY);
    at += drain(t, image + at, piece);
    assert_int_equal(at, FAKE_IMAGE);
    assert_memory_equal(image, fake.image, FAKE_IMAGE);
    must_go(t, VFMIG_STATE_STOP);
    load_all(t);
    must_go(t, VFMIG_STATE_RUNNING);
    assert_true(fake.running);
    t->ops->close(t);
}

static void describes(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){0});
    uint32_t index = 0;
    uint64_t size = 0;

    assert_int_equal(t->info.dialect, VFMIG_DIALECT_REGION);
    assert_int_equal(t->info.features, VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY);
    assert_int_equal(t->info.quiet, VFMIG_QUIET_NONE);
    assert_false(t->info.dma_log);
    assert_true(vfmig_kernel_migration_region(t, &index, &size));
    assert_int_equal(index, FAKE_REGION);
    assert_int_equal(size, FAKE_REGION_SIZE);
    assert_int_equal(go(t, VFMIG_STATE_RUNNING_NDMA), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    t->ops->close(t);

    t = open_with((struct fake_quirks){.ndma = true});
    assert_int_equal(t->info.features, 7);
    assert_int_equal(t->info.quiet, VFMIG_QUIET_ALL);
    for (uint32_t s = 1; s < VFMIG_STATE_COUNT; s++) {
        must_go(t, (enum vfmig_state)s);
        assert_int_equal(state_of(t), s);
        must_go(t, VFMIG_STATE_RUNNING);
    }
    t->ops->close(t);

    struct vfmig_target *none = NULL;
    assert_int_equal(try_open(GROUP_ADDRESS, VFMIG_DIALECT_FEATURE, false, false, &none), -ENOTSUP);
}

/* Capabilities that lead nowhere, or never end, or want more room than anything needs. */
static void chains_of_capabilities(void **state)
{
    static const struct fake_quirks bad[] = {
        {.caps_loop = true}, {.caps_outside = true}, {.caps_argsz = 0x7fffffff}, {.caps_argsz = 1}};

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct vfmig_target *t = open_with(bad[i]);
        assert_int_equal(t->info.features, 0);
        t->ops->close(t);
    }
    /* More room than there are capabilities does no harm. */
    struct vfmig_target *t = open_with((struct fake_quirks){.caps_argsz = 4096});
    assert_int_equal(t->info.dialect, VFMIG_DIALECT_REGION);
    t->ops->close(t);
}

static void raw(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){0});
    uint32_t value = 0;
    bool opened;
    int earlier;

    for (uint32_t bits = 5; bits < 16; bits++)
        assert_int_equal(vfmig_kernel_ask_state(t, bits, LONG, &opened, &earlier), -EINVAL);
    assert_int_equal(vfmig_kernel_ask_state(t, VFMIG_V1_SAVING, LONG, &opened, &earlier), 0);
    assert_false(opened);
    assert_int_equal(vfmig_kernel_look_state(t, &value), 0);
    assert_int_equal(value, VFMIG_V1_SAVING);
    assert_int_equal(vfmig_kernel_reset_once(t, LONG), 0);
    assert_int_equal(vfmig_kernel_look_state(t, &value), 0);
    assert_int_equal(value, VFMIG_V1_RUNNING);
    t->ops->close(t);
}

static void round_trip_mapped(void **state)
{
    round_trip_with((struct fake_quirks){0}, FAKE_PAGE);
    assert_int_equal(fake.mmaps, 1);
}

static void round_trip_staged(void **state)
{
    round_trip_with((struct fake_quirks){.no_mmap = true}, FAKE_PAGE);
    assert_int_equal(fake.mmaps, 0);
}

static void round_trip_in_parts(void **state)
{
    round_trip_with((struct fake_quirks){.ndma = true}, 333);
}

static void reserved_bits_are_kept(void **state)
{
    fake.bits = 0xdead0001;
    round_trip_with((struct fake_quirks){.reserved_bits = 0xdead0000}, FAKE_PAGE);
}

static void pending_runs_behind(void **state)
{
    round_trip_with((struct fake_quirks){.pending_before = true}, FAKE_PAGE);
}

static void small_window(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){.data_offset = FAKE_REGION_SIZE - 512});

    must_go(t, VFMIG_STATE_RESUMING);
    assert_int_equal(t->ops->load(t, fake.image, FAKE_IMAGE, &err), 0);
    assert_int_equal(fake.commits, FAKE_IMAGE / 512 + 1);
    assert_memory_equal(fake.loaded, fake.image, FAKE_IMAGE);
    must_go(t, VFMIG_STATE_STOP);
    t->ops->close(t);
}

static void windows_that_make_no_sense(void **state)
{
    static const struct fake_quirks bad[] = {
        {.data_offset = 16},
        {.data_offset = FAKE_REGION_SIZE + 1},
        {.data_offset = UINT64_MAX - 1},
        {.data_size = FAKE_REGION_SIZE},
        {.data_size = UINT64_MAX},
    };
    uint8_t byte = 0;
    bool more;

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct vfmig_target *t = open_with((struct fake_quirks){0});
        must_go(t, VFMIG_STATE_PRE_COPY);
        fake.quirk = bad[i];
        if (!bad[i].data_size)
            fake.quirk.data_size = 1;
        assert_int_equal(t->ops->save_part(t, &byte, 1, &more, &err), -EPROTO);
        must_go(t, VFMIG_STATE_RUNNING);
        must_go(t, VFMIG_STATE_RESUMING);
        if (bad[i].data_offset)
            assert_int_equal(t->ops->load(t, &byte, 1, &err), -EPROTO);
        t->ops->close(t);
    }
    struct vfmig_target *t = open_with((struct fake_quirks){0});
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(t->ops->save(t, &byte, 1, &err), -EMSGSIZE); /* nobody asks for the rest */
    fake.quirk.short_pending = true;
    must_go(t, VFMIG_STATE_STOP);
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(t->ops->save(t, &byte, 1, &err), -EIO);
    t->ops->close(t);
}

/* A change with a portion open: it is taken already. */
static void portion_is_acknowledged(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){.gives_again = true});
    uint8_t image[FAKE_IMAGE + FAKE_PAGE];
    bool more;

    must_go(t, VFMIG_STATE_PRE_COPY);
    assert_int_equal(t->ops->save_part(t, image, 10, &more, &err), 10);
    assert_true(more);
    uint64_t left;
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, FAKE_PRE_COPY); /* and asking acknowledges nothing */
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(fake.at, FAKE_PAGE / 2);
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, FAKE_IMAGE - FAKE_PAGE / 2);
    t->ops->close(t);
}

static void refused_change(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){0});

    fake.quirk.fail_arc_to = VFMIG_V1_SAVING;
    fake.quirk.fail_arc = -EFAULT;
    assert_int_equal(go(t, VFMIG_STATE_STOP_COPY), -EFAULT);
    assert_int_equal(err.origin, VFMIG_ORIGIN_DEVICE);
    assert_int_equal(err.state, VFMIG_STATE_STOP_COPY);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    /* hisi_acc: 0 bytes instead of an error. */
    fake.quirk.short_failure = true;
    fake.quirk.fail_arc_to = VFMIG_V1_SAVING;
    assert_int_equal(go(t, VFMIG_STATE_STOP_COPY), -EIO);
    assert_non_null(strstr(err.text, "took 0 of 4 bytes"));
    t->ops->close(t);
}

/* hisi_acc: S to R does not start the queues again, {} does. */
static void back_by_stop(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){.halts_by_stop = true});

    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_false(fake.running);
    must_go(t, VFMIG_STATE_RUNNING);
    assert_true(fake.running);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    t->ops->close(t);
}

/* mlx5: what was saved once says nothing the second time. */
static void second_save(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){.old_image = true});
    uint8_t image[FAKE_IMAGE + FAKE_PAGE];
    bool more;

    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(drain(t, image, FAKE_PAGE), FAKE_IMAGE);
    must_go(t, VFMIG_STATE_RUNNING);
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(t->ops->save_part(t, image, FAKE_PAGE, &more, &err), -ENODATA);
    assert_int_equal(t->ops->reset(t, &err), 0);
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(drain(t, image, FAKE_PAGE), FAKE_IMAGE);
    t->ops->close(t);
}

/* mlx5: Z only from R, and Z to R only. */
static void only_the_arrows(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){.arrows_only = true});

    must_go(t, VFMIG_STATE_STOP);
    must_go(t, VFMIG_STATE_RESUMING); /* by R */
    assert_int_equal(go(t, VFMIG_STATE_STOP), -EINVAL);
    must_go(t, VFMIG_STATE_RUNNING);
    fake.quirk.no_way_back = true;
    must_go(t, VFMIG_STATE_STOP);
    must_go(t, VFMIG_STATE_RESUMING); /* by a reset */
    assert_int_equal(fake.resets, 1);
    t->ops->close(t);
}

static void halt_is_tried(void **state)
{
    struct vfmig_target *t = NULL;

    assert_int_equal(try_open(GROUP_ADDRESS, VFMIG_DIALECT_AUTO, true, false, &t), 0);
    assert_int_equal(t->info.halt, VFMIG_HALT_UNKNOWN);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    t->ops->close(t);

    fake.quirk.arrows_only = true;
    assert_int_equal(try_open(GROUP_ADDRESS, VFMIG_DIALECT_AUTO, true, false, &t), 0);
    assert_int_equal(t->info.halt, VFMIG_HALT_NEVER);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    t->ops->close(t);

    assert_int_equal(try_open(GROUP_ADDRESS, VFMIG_DIALECT_AUTO, true, true, &t), 0);
    assert_int_equal(t->info.halt, VFMIG_HALT_LATE);
    load_all(t);
    must_go(t, VFMIG_STATE_STOP);
    assert_int_equal(fake.bits, VFMIG_V1_RESUMING);
    assert_int_equal(state_of(t), VFMIG_STATE_STOP); /* Z stands for it */
    must_go(t, VFMIG_STATE_RUNNING);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    t->ops->close(t);
}

static void bad_data(void **state)
{
    struct vfmig_target *t = open_with((struct fake_quirks){0});

    must_go(t, VFMIG_STATE_RESUMING);
    assert_int_equal(t->ops->load(t, fake.image, 10, &err), 0);
    assert_int_equal(go(t, VFMIG_STATE_STOP), -EIO);
    assert_int_equal(state_of(t), VFMIG_STATE_ERROR);
    assert_int_equal(go(t, VFMIG_STATE_RUNNING), -EINVAL);
    fake.quirk.late_resets = 3;
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    t->ops->close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REGION_CASE(describes),
        REGION_CASE(chains_of_capabilities),
        REGION_CASE(raw),
        REGION_CASE(round_trip_mapped),
        REGION_CASE(round_trip_staged),
        REGION_CASE(round_trip_in_parts),
        REGION_CASE(reserved_bits_are_kept),
        REGION_CASE(pending_runs_behind),
        REGION_CASE(small_window),
        REGION_CASE(windows_that_make_no_sense),
        REGION_CASE(portion_is_acknowledged),
        REGION_CASE(refused_change),
        REGION_CASE(back_by_stop),
        REGION_CASE(second_save),
        REGION_CASE(only_the_arrows),
        REGION_CASE(halt_is_tried),
        REGION_CASE(bad_data),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
