/* SPDX-License-Identifier: BSD-3-Clause */
/* A running guest is moved by its dirty pages alone, as the engine does it: everything once, then
 * what the tracker names. A page that is left out must be noticed. Argument: kvm or none. */
#include "machine_rig.h"

#include "base/bitmap.h"
#include "dirty/trackers.h"

#define ROUNDS 3

static enum vfmig_accel accel;

struct track {
    struct rig_vm vm[2];
    struct vfmig_memory memory;
    struct vfmig_dirty_map map;
    struct vfmig_tracker *tracker;
};

static void open_track(struct track *t)
{
    const struct vfmig_guest_config guest = {
        .working_set_bytes = 16u << 20, .rate_mib_s = 100, .irq_timeout_ms = 60000};
    memset(t, 0, sizeof(*t));
    rig_open(&t->vm[0], accel, NULL, NULL);
    rig_open(&t->vm[1], accel, NULL, NULL);
    t->memory = (struct vfmig_memory){.blocks = &t->vm[0].block, .block_count = 1};
    RIG_OK(vfmig_dirty_map_init(&t->map, &t->memory, &rig_error));
    int fd = vfmig_machine_vm_fd(t->vm[0].machine);
    if (fd >= 0)
        RIG_OK(vfmig_tracker_kvm_new(fd, NULL, 1, &t->tracker, &rig_error));
    else
        RIG_OK(vfmig_tracker_wp_new(VFMIG_WP_AUTO, &t->tracker, &rig_error));
    RIG_OK(vfmig_machine_load_guest(t->vm[0].machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(t->vm[0].machine, &rig_error));
}

static void close_track(struct track *t)
{
    t->tracker->ops->free(t->tracker);
    vfmig_dirty_map_done(&t->map);
    rig_close(&t->vm[0]);
    rig_close(&t->vm[1]);
}

/* Copies the dirty pages except those of [skip_first, skip_end). Returns how many were left out. */
static uint64_t copy_dirty(struct track *t, uint64_t skip_first, uint64_t skip_end)
{
    uint64_t *map = t->map.bitmaps[0], pages = RIG_MEMORY / 4096, skipped = 0;
    for (uint64_t page = vfmig_bitmap_next(map, pages, 0); page < pages;
         page = vfmig_bitmap_next(map, pages, page + 1)) {
        if (page >= skip_first && page < skip_end)
            skipped++;
        else
            memcpy((uint8_t *)t->vm[1].block.host + page * 4096,
                   (uint8_t *)t->vm[0].block.host + page * 4096, 4096);
        vfmig_bitmap_clear(map, page);
    }
    return skipped;
}

/* Afterwards vm[1] runs. Returns pages of the working set that were dirty in the final snapshot
 * and, with lose_some, left out. */
static uint64_t move(struct track *t, bool lose_some)
{
    const struct guest_params *params =
        (const void *)((const uint8_t *)t->vm[0].block.host + GUEST_PARAMS);
    const struct guest_scoreboard *score = rig_score(&t->vm[0]);
    uint64_t first = params->working_gpa / 4096, end = first + params->working_pages;
    struct vfmig_buffer state = {0};
    RIG_OK(t->tracker->ops->start(t->tracker, &t->memory, &rig_error));
    memcpy(t->vm[1].block.host, t->vm[0].block.host, RIG_MEMORY);
    for (int i = 0; i < ROUNDS; i++) {
        rig_progress(&t->vm[0], &score->cpu[i % 2].pages_written, 500);
        RIG_OK(t->tracker->ops->sync(t->tracker, &t->map, &rig_error));
        assert_true(vfmig_dirty_map_count(&t->map) > 400);
        copy_dirty(t, 0, 0);
    }
    rig_progress(&t->vm[0], &score->cpu[0].pages_written, 500);
    RIG_OK(vfmig_machine_stop(t->vm[0].machine, &rig_error));
    RIG_OK(vfmig_machine_flush_irqs(t->vm[0].machine, NULL, &rig_error));
    RIG_OK(vfmig_machine_save(t->vm[0].machine, &state, &rig_error));
    RIG_OK(t->tracker->ops->sync(t->tracker, &t->map, &rig_error));
    RIG_OK(t->tracker->ops->stop(t->tracker, &rig_error));
    uint64_t lost = copy_dirty(t, lose_some ? first : 0, lose_some ? end : 0);
    RIG_OK(vfmig_machine_load(t->vm[1].machine, state.data, state.size, &rig_error));
    vfmig_buffer_free(&state);
    RIG_OK(vfmig_machine_start(t->vm[1].machine, &rig_error));
    return lost;
}

static void test_dirty_pages_are_enough(void **state)
{
    (void)state;
    struct track t;
    open_track(&t);
    rig_progress(&t.vm[0], &rig_score(&t.vm[0])->cpu[0].cycles, 1);
    move(&t, false);
    for (int i = 0; i < 2; i++)
        rig_progress(&t.vm[1], &rig_score(&t.vm[1])->cpu[i].cycles, 2);
    rig_no_errors(&t.vm[1]);
    close_track(&t);
}

static void test_lost_pages_are_noticed(void **state)
{
    (void)state;
    struct track t;
    open_track(&t);
    rig_progress(&t.vm[0], &rig_score(&t.vm[0])->cpu[0].cycles, 1);
    assert_true(move(&t, true) >= 400);
    const struct guest_scoreboard *score = rig_score(&t.vm[1]);
    for (uint32_t ms = 0; !__atomic_load_n(&score->first_error, __ATOMIC_ACQUIRE); ms++) {
        assert_true(ms < RIG_WAIT_MS);
        usleep(1000);
    }
    assert_int_equal(score->first_error, GUEST_ERROR_PAGE);
    close_track(&t);
}

int main(int argc, char **argv)
{
    if (argc != 2 || vfmig_accel_parse(argv[1], &accel) < 0)
        return 2;
    if (accel == VFMIG_ACCEL_KVM && access("/dev/kvm", R_OK | W_OK) < 0) {
        printf("SKIPPED: /dev/kvm cannot be used here, nothing of the kvm accelerator was tested\n");
        return RIG_SKIPPED;
    }
    if (accel == VFMIG_ACCEL_NONE && vfmig_tracker_wp_probe(VFMIG_WP_AUTO, NULL) < 0) {
        printf("SKIPPED: this kernel cannot track a process' own writes\n");
        return RIG_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dirty_pages_are_enough),
        cmocka_unit_test(test_lost_pages_are_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
