/* SPDX-License-Identifier: BSD-3-Clause */
/* The device machine, fact by fact: what the exhaustive test does not vary. */
#include "dev_rig.h"

#define ALL     7u
#define TIMEOUT 1000u

static void a_new_device_runs(void **state)
{
    struct vfmig_dev dev;
    struct rig rig;

    rig_start(&rig, ALL, 0);
    memset(&dev, 0xff, sizeof(dev));
    assert_int_equal(vfmig_dev_init(&dev, ALL, 0), 0);
    assert_memory_equal(&dev, &rig.dev, sizeof(dev)); /* whatever was in memory before */
    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
    assert_int_equal(vfmig_dev_state(&rig.dev), VFMIG_STATE_RUNNING);
    assert_true(vfmig_dev_mmio_allowed(&rig.dev));
    for (uint32_t features = 0; features < 16; features++)
        assert_int_equal(vfmig_dev_init(&dev, features, 0),
                         vfmig_features_valid(features) ? 0 : -EINVAL);
}

static void events_that_do_not_exist_change_nothing(void **state)
{
    const uint32_t types[] = {VFMIG_DEV_EVENT_INVALID, VFMIG_DEV_EVENT_COUNT, 1000};
    struct rig rig;

    rig_start(&rig, ALL, 0);
    for (size_t i = 0; i < 3; i++) {
        struct vfmig_dev before = rig.dev;
        struct vfmig_dev_actions actions;
        struct vfmig_dev_event event = {.type = (enum vfmig_dev_event_type)types[i]};
        assert_int_equal(vfmig_dev_step(&rig.dev, &event, 0, &actions), -EINVAL);
        assert_int_equal(actions.count, 0);
        assert_memory_equal(&before, &rig.dev, sizeof(before));
    }
}

/* C31, C32: nothing starts from the first moment, the answer waits for what is in flight. */
static void n_is_answered_when_the_last_dma_is_done(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, 0);
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, R | N, 7);
    assert_string_equal(rig.trace, "f(D");
    assert_false(vfmig_dev_dma_allowed(&rig.dev));
    assert_false(vfmig_dev_is_quiet(&rig.dev));
    assert_int_equal(rig.replies, 0);
    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
    rig_done(&rig, 0);
    assert_int_equal(rig.replies, 1);
    assert_int_equal(vfmig_dev_bits(&rig.dev), R | N);
    assert_true(vfmig_dev_is_quiet(&rig.dev));
    assert_true(vfmig_dev_mmio_allowed(&rig.dev)); /* C37 */
    assert_true(vfmig_dev_irq_latched(&rig.dev));  /* A6 */
    rig_forget(&rig);
    assert_int_equal(rig_write(&rig, R), 0);
    assert_string_equal(rig.trace, "O)."); /* latched interrupts go out now */
}

/* Posted writes and doorbells come before R falls or N is set, and only then. */
static void posted_writes_are_consumed_before_the_device_goes_quiet(void **state)
{
    const struct {
        uint8_t from, to, flush;
    } cases[] = {{R, 0, 1},         {R, R | N, 1}, {R | N, 0, 1}, {S | R, S | R | N, 1},
                 {R, S | R, 0},     {0, R, 0},     {S, 0, 0},     {R | N, S | R | N, 0},
                 {S | R | N, S, 1}, {R, Z, 1},     {Z, R, 0}};
    struct rig rig;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        rig_reach(&rig, ALL, cases[i].from);
        assert_int_equal(rig_write(&rig, cases[i].to), 0);
        assert_int_equal(rig.trace[0] == 'f', cases[i].flush);
        assert_null(strchr(rig.trace + 1, 'f'));
    }
}

static void n_beside_not_running_reads_back_as_written(void **state)
{
    struct rig rig;

    for (uint32_t base = 0; base <= Z; base += S) {
        rig_reach(&rig, ALL, base);
        assert_int_equal(rig_write(&rig, base | N), 0);
        assert_string_equal(rig.trace, "."); /* nothing to do: !R implies N (C34) */
        assert_int_equal(vfmig_dev_bits(&rig.dev), base | N);
        assert_int_equal(rig_write(&rig, base), 0);
        assert_int_equal(vfmig_dev_bits(&rig.dev), base);
    }
}

static void n_survives_a_read_modify_write_of_r(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, Z | N);
    assert_int_equal(rig_write(&rig, (vfmig_dev_bits(&rig.dev) & ~Z) | R), 0);
    assert_int_equal(vfmig_dev_bits(&rig.dev), R | N);
    assert_null(strchr(rig.trace, 'O'));
}

/* Pre-copy: the stream that began in SR goes on in S (A14); a new SR begins a new one (C21). */
static void sr_to_s_is_one_stream_and_a_new_sr_is_a_new_one(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, S | R);
    assert_int_equal(rig_write(&rig, S | R | N), 0);
    assert_int_equal(rig_write(&rig, S), 0);
    assert_null(strchr(rig.trace, '<'));
    assert_null(strchr(rig.trace, '|'));
    assert_non_null(strchr(rig.trace, 'c')); /* C23, C65 */
    rig_forget(&rig);
    assert_int_equal(rig_write(&rig, R), 0);
    assert_string_equal(rig.trace, "e|rO).");
    rig_forget(&rig);
    assert_int_equal(rig_write(&rig, S | R), 0);
    assert_string_equal(rig.trace, "w<.");
}

/* C22: SR is there without pre-copy too, empty; the device is not asked for anything. */
static void sr_without_pre_copy_is_an_empty_stream(void **state)
{
    struct rig rig;

    rig_start(&rig, VFMIG_FEATURE_STOP_COPY, 0);
    assert_int_equal(rig_write(&rig, S | R), 0);
    assert_string_equal(rig.trace, "<.");
    assert_true(vfmig_dev_saving(&rig.dev));
    assert_int_equal(vfmig_dev_state(&rig.dev), VFMIG_STATE_RUNNING); /* v2 has no such state */
    rig_forget(&rig);
    assert_int_equal(rig_write(&rig, S), 0);
    assert_string_equal(rig.trace, "f(Dpc.");
    rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, VFMIG_STATE_PRE_COPY, 2);
    assert_int_equal(rig.reply_err[rig.replies - 1], -EINVAL);
}

static void resuming_into_nr_starts_no_dma(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, Z);
    assert_int_equal(rig_write(&rig, R | N), 0); /* C17 */
    assert_string_equal(rig.trace, "l|r.");
    assert_false(vfmig_dev_dma_allowed(&rig.dev));
    assert_true(vfmig_dev_mmio_allowed(&rig.dev));
}

static void bad_data_ends_in_error(void **state)
{
    const uint32_t after[] = {0, R, R | N, S, S | R};
    struct rig rig;

    for (size_t i = 0; i < 5; i++) {
        rig_reach(&rig, ALL, Z);
        rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, after[i], 7);
        rig_done(&rig, -EBADMSG);
        assert_string_equal(rig.trace, "l|.");
        assert_int_equal(rig.reply_err[0], -EBADMSG);
        assert_int_equal(vfmig_dev_bits(&rig.dev), 6);
        assert_int_equal(vfmig_dev_state(&rig.dev), VFMIG_STATE_ERROR);
    }
}

static void only_reset_leaves_error(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, 6);
    for (uint32_t value = 0; value < 16; value++) {
        assert_int_equal(rig_write(&rig, value), -EINVAL);
        rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, value, 1);
        assert_int_equal(rig.reply_err[1], -EINVAL);
        assert_int_equal(vfmig_dev_bits(&rig.dev), 6);
        assert_false(vfmig_dev_mmio_allowed(&rig.dev));
        assert_false(vfmig_dev_dma_allowed(&rig.dev));
    }
    rig_forget(&rig);
    rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 9);
    rig_done(&rig, 0);
    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
    assert_string_equal(rig.trace, "R-O).");
}

/* C42-C44, X10 */
static void reset_brings_every_state_to_r(void **state)
{
    const uint32_t values[] = {0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12};
    struct rig rig;

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        rig_reach(&rig, ALL, values[i]);
        rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 9);
        assert_int_equal(rig.stream, 0);
        assert_false(vfmig_dev_dma_allowed(&rig.dev));
        assert_false(vfmig_dev_mmio_allowed(&rig.dev));
        rig_done(&rig, 0);
        assert_int_equal(rig.replies, 1);
        assert_int_equal(rig.reply_id[0], 9);
        assert_int_equal(rig.reply_err[0], 0);
        assert_int_equal(vfmig_dev_bits(&rig.dev), R);
        assert_non_null(strchr(rig.trace, '-')); /* no stale interrupt */
        rig_forget(&rig);
        assert_int_equal(rig_write(&rig, Z), 0); /* and the machine works on */
        assert_int_equal(rig_write(&rig, R), 0);
    }
}

static void a_reset_that_fails_is_error_and_may_be_tried_again(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, S);
    rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 9);
    rig_done(&rig, -EIO);
    assert_int_equal(rig.reply_err[0], -EIO);
    assert_int_equal(vfmig_dev_bits(&rig.dev), 6);
    rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 10);
    rig_done(&rig, 0);
    assert_int_equal(rig.replies, 2);
    assert_int_equal(rig.reply_id[1], 10);
    assert_int_equal(rig.reply_err[1], 0);
    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
}

static void every_request_is_answered_once(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, TIMEOUT);
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, 0, 7);
    rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 8);
    assert_int_equal(vfmig_dev_deadline(&rig.dev), UINT64_MAX); /* the drain is over */
    rig.now += TIMEOUT;
    rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
    assert_int_equal(rig.replies, 0);
    rig_done(&rig, 0);
    assert_int_equal(rig.replies, 2);
    for (uint64_t id = 9; id < 12; id++) {
        rig_forget(&rig);
        rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, id);
        rig_done(&rig, 0);
        assert_int_equal(rig.replies, 1);
        assert_int_equal(rig.reply_id[0], id);
    }
}

/* One device, both dialects in turn, also after a failure in the other one. */
static void the_dialects_take_turns(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, 0);
    for (unsigned round = 0; round < 3; round++) {
        rig_forget(&rig);
        rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, VFMIG_STATE_STOP_COPY, 7);
        while (rig.waits)
            rig_done(&rig, 0);
        assert_int_equal(vfmig_dev_bits(&rig.dev), S);
        assert_int_equal(rig_write(&rig, 0), 0);
        assert_int_equal(vfmig_dev_bits(&rig.dev), 0);
        assert_int_equal(vfmig_dev_state(&rig.dev), VFMIG_STATE_STOP);
        rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, S | R, 7);
        rig_done(&rig, -EIO);
        assert_int_equal(vfmig_dev_bits(&rig.dev), 0);
        rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, VFMIG_STATE_RUNNING, 7);
        while (rig.waits)
            rig_done(&rig, 0);
        assert_int_equal(vfmig_dev_bits(&rig.dev), R);
    }
}

static void resets_join_up_to_a_limit(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, 0);
    for (uint64_t id = 1; id <= VFMIG_DEV_MAX_RESETS + 1; id++)
        rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, id);
    assert_int_equal(rig.replies, 1);
    assert_int_equal(rig.reply_id[0], VFMIG_DEV_MAX_RESETS + 1);
    assert_int_equal(rig.reply_err[0], -EBUSY);
    rig_done(&rig, 0);
    assert_int_equal(rig.replies, 1 + VFMIG_DEV_MAX_RESETS);
    assert_string_equal(rig.trace, "(XR.-O)...."); /* the device was reset once */
}

static void a_second_write_meets_ebusy(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, 0);
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, S, 7);
    for (unsigned i = 0; rig.waits; i++) {
        rig_forget(&rig);
        rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, R, 100 + i);
        rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, VFMIG_STATE_STOP, 200 + i);
        assert_int_equal(rig.replies, 2);
        assert_int_equal(rig.reply_id[0], 100 + i);
        assert_int_equal(rig.reply_err[0], -EBUSY);
        assert_int_equal(rig.reply_err[1], -EBUSY);
        rig_done(&rig, 0);
    }
    assert_int_equal(vfmig_dev_bits(&rig.dev), S);
}

/* A21: half-way the fault that cannot be resolved is given up, at the end the write. */
static void a_drain_that_takes_too_long_leaves_the_old_state(void **state)
{
    const uint32_t from[] = {R, S | R}, to[] = {R | N, 0, S, Z};
    struct rig rig;

    for (size_t i = 0; i < 8; i++) {
        rig_reach(&rig, ALL, from[i / 4]);
        rig.dev.drain_timeout_ns = TIMEOUT;
        char stream = rig.stream;
        rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, to[i % 4], 7);
        struct vfmig_dev_event late = {.type = VFMIG_DEV_EVENT_STEP_DONE,
                                       .token = rig.waiting.token};
        assert_int_equal(vfmig_dev_deadline(&rig.dev), rig.now + TIMEOUT / 2);
        rig.now += TIMEOUT / 2 - 1;
        rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
        assert_string_equal(rig.trace, "f(D");
        rig.now += 1;
        rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
        rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
        assert_string_equal(rig.trace, "f(Da");
        rig.now = vfmig_dev_deadline(&rig.dev);
        assert_int_equal(rig.now, 1000 + TIMEOUT);
        rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
        assert_string_equal(rig.trace, "f(DaO).");
        assert_int_equal(rig.reply_err[0], -ETIMEDOUT);
        assert_int_equal(vfmig_dev_bits(&rig.dev), from[i / 4]);
        assert_int_equal(rig.stream, stream);
        rig_event(&rig, late); /* too late: no effect */
        assert_int_equal(vfmig_dev_bits(&rig.dev), from[i / 4]);
        assert_true(vfmig_dev_dma_allowed(&rig.dev));
    }
}

/* A tick that comes after the deadline (a busy host) aborts first, and then gives as long again. */
static void a_late_tick_still_aborts_before_it_gives_up(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, TIMEOUT);
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, R | N, 7);
    rig.now += 3 * TIMEOUT;
    rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
    assert_string_equal(rig.trace, "f(Da");
    assert_int_equal(vfmig_dev_deadline(&rig.dev), rig.now + TIMEOUT / 2);
    rig.now += TIMEOUT / 2 - 1;
    rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
    assert_int_equal(rig.replies, 0);
    rig.now += 1;
    rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
    assert_int_equal(rig.reply_err[0], -ETIMEDOUT);
    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
}

static void aborting_the_fault_half_way_lets_the_drain_end_in_time(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, TIMEOUT);
    rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, VFMIG_STATE_PRE_COPY_NDMA, 7);
    rig.now += TIMEOUT / 2;
    rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
    rig_done(&rig, 0);
    assert_int_equal(vfmig_dev_deadline(&rig.dev), UINT64_MAX); /* later steps have no limit */
    while (rig.waits)
        rig_done(&rig, 0);
    assert_string_equal(rig.trace, "f(Daw<.");
    assert_int_equal(vfmig_dev_state(&rig.dev), VFMIG_STATE_PRE_COPY_NDMA);
}

static void a_deadline_beyond_the_end_of_time_is_far_away(void **state)
{
    struct rig rig;

    rig_start(&rig, ALL, UINT64_MAX);
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, 0, 7);
    rig_ask(&rig, VFMIG_DEV_EVENT_TICK, 0, 0);
    assert_int_equal(rig.replies, 0);
    rig_done(&rig, 0);
    rig_done(&rig, 0);
    assert_int_equal(rig.reply_err[0], 0);
}

/* Each kind of event is looked at for what belongs to it: a request that carries the number of the step under way does not end
 * it. */
static void only_an_answer_ends_a_step(void **state)
{
    const enum vfmig_dev_event_type types[] = {VFMIG_DEV_EVENT_WRITE_V1, VFMIG_DEV_EVENT_SET_V2, VFMIG_DEV_EVENT_TICK};

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct rig rig;
        rig_start(&rig, ALL, TIMEOUT);
        rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, S, 7);
        uint32_t token = rig.waiting.token;
        rig_event(&rig, (struct vfmig_dev_event){.type = types[i], .token = token, .id = 8});
        assert_int_equal(rig.waiting.token, token); /* nothing new was begun */
        assert_int_equal(vfmig_dev_bits(&rig.dev), R);
        while (rig.waits)
            rig_done(&rig, 0);
        assert_int_equal(vfmig_dev_bits(&rig.dev), S);
    }
}

/* C45: whatever the client left behind, the next one finds R; nobody is answered. */
static void a_lost_owner_leaves_a_fresh_device(void **state)
{
    const uint32_t values[] = {0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12};
    struct rig rig;

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        for (int open = 0; open < 3; open++) {
            rig_reach(&rig, ALL, values[i]);
            if (open == 1)
                rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, values[i] == 0 ? S : 0, 7);
            if (open == 2)
                rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 8);
            rig_forget(&rig);
            rig_ask(&rig, VFMIG_DEV_EVENT_OWNER_GONE, 0, 0);
            assert_false(vfmig_dev_dma_allowed(&rig.dev));
            rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, R, 20); /* too early a newcomer */
            rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 21);
            assert_int_equal(rig.replies, 2);
            assert_int_equal(rig.reply_err[0], -EBUSY);
            assert_int_equal(rig.reply_err[1], -EBUSY);
            rig_done(&rig, 0);
            assert_int_equal(rig.replies, 2);
            assert_non_null(strchr(rig.trace, '!'));
            assert_int_equal(vfmig_dev_bits(&rig.dev), R);
            rig_forget(&rig);
            rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 22); /* the next client is served */
            rig_done(&rig, 0);
            assert_int_equal(rig.replies, 1);
            assert_int_equal(rig.reply_err[0], 0);
            assert_null(strchr(rig.trace, '!'));
        }
    }
}

static void positive_error_numbers_are_failures_too(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, 0);
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, R, 7);
    rig_done(&rig, 5);
    assert_int_equal(rig.reply_err[0], -EIO);
    assert_int_equal(vfmig_dev_bits(&rig.dev), 0);
}

/* Reference 5.3: the walk keeps what it reached, and the gate follows that. */
static void a_v2_walk_stops_where_it_failed(void **state)
{
    struct rig rig;

    rig_reach(&rig, ALL, R);
    rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, VFMIG_STATE_STOP_COPY, 7);
    rig_done(&rig, 0);
    rig_done(&rig, 0);
    assert_string_equal(rig.trace, "f(Dpc");
    rig_done(&rig, -ENOMEM);
    assert_int_equal(rig.reply_err[0], -ENOMEM);
    assert_int_equal(vfmig_dev_state(&rig.dev), VFMIG_STATE_STOP);
    assert_int_equal(vfmig_dev_bits(&rig.dev), 0);
}

/* C22: it has nothing to stream in SR, so it is not asked to begin or to end. */
static void a_device_without_pre_copy_is_not_asked_for_it(void **state)
{
    struct rig rig;

    rig_start(&rig, VFMIG_FEATURE_STOP_COPY, 0);
    assert_int_equal(rig_write(&rig, S | R), 0);
    assert_int_equal(rig_write(&rig, R), 0);
    assert_null(strchr(rig.trace, 'w'));
    assert_null(strchr(rig.trace, 'e'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_device_runs),
        cmocka_unit_test(events_that_do_not_exist_change_nothing),
        cmocka_unit_test(n_is_answered_when_the_last_dma_is_done),
        cmocka_unit_test(posted_writes_are_consumed_before_the_device_goes_quiet),
        cmocka_unit_test(n_beside_not_running_reads_back_as_written),
        cmocka_unit_test(n_survives_a_read_modify_write_of_r),
        cmocka_unit_test(sr_to_s_is_one_stream_and_a_new_sr_is_a_new_one),
        cmocka_unit_test(sr_without_pre_copy_is_an_empty_stream),
        cmocka_unit_test(resuming_into_nr_starts_no_dma),
        cmocka_unit_test(bad_data_ends_in_error),
        cmocka_unit_test(only_reset_leaves_error),
        cmocka_unit_test(reset_brings_every_state_to_r),
        cmocka_unit_test(a_reset_that_fails_is_error_and_may_be_tried_again),
        cmocka_unit_test(every_request_is_answered_once),
        cmocka_unit_test(the_dialects_take_turns),
        cmocka_unit_test(resets_join_up_to_a_limit),
        cmocka_unit_test(a_second_write_meets_ebusy),
        cmocka_unit_test(a_drain_that_takes_too_long_leaves_the_old_state),
        cmocka_unit_test(a_late_tick_still_aborts_before_it_gives_up),
        cmocka_unit_test(aborting_the_fault_half_way_lets_the_drain_end_in_time),
        cmocka_unit_test(a_deadline_beyond_the_end_of_time_is_far_away),
        cmocka_unit_test(only_an_answer_ends_a_step),
        cmocka_unit_test(a_lost_owner_leaves_a_fresh_device),
        cmocka_unit_test(positive_error_numbers_are_failures_too),
        cmocka_unit_test(a_v2_walk_stops_where_it_failed),
        cmocka_unit_test(a_device_without_pre_copy_is_not_asked_for_it),
    };
    return cmocka_run_group_tests_name("dev", tests, NULL, NULL);
}
