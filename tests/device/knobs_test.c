/* SPDX-License-Identifier: BSD-3-Clause */
/* The knobs of the simulated devices: what each one makes a client see, and which are refused.
 * Time is only ever compared from below: a busy machine is slow, not wrong. */
#include "peer.h"

#include "devices/bulk_regs.h"
#include "devices/devices.h"

#define MS    UINT64_C(1000000)
#define STATE (1u << 20)

static struct vfmig_device *dev;
static struct peer *peer;

static void open_kind(const char *name, const struct vfmig_device_knobs *knobs)
{
    const struct vfmig_device_kind *kind = vfmig_device_kind_find(name);
    struct vfmig_error err = {0};

    if (vfmig_device_knobs_check(kind, knobs, &err) < 0 || kind->make(knobs, &dev, &err) < 0)
        fail_msg("%s", err.text);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, "{\"capabilities\":{\"migration\":{\"pgsize\":4096}}}"), 0);
}

static void close_device(void)
{
    peer_end(peer);
    vfmig_device_free(dev);
}

static const char *const kinds[] = {"null", "dma", "bulk"};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static int probe(uint32_t feature)
{
    struct vfmig_user_feature head = {8, feature | VFMIG_USER_FEATURE_PROBE};
    return peer_call(peer, VFMIG_USER_FEATURE, &head, sizeof(head));
}

static uint32_t migration_flags(void)
{
    struct vfmig_user_feature head = {16, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_MIGRATION};
    uint64_t flags;

    assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &head, sizeof(head)), 0);
    memcpy(&flags, peer->reply + 8, sizeof(flags));
    return (uint32_t)flags;
}

static int dirty_start(void)
{
    struct vfmig_user_dirty_pages req = {sizeof(req), VFMIG_USER_DIRTY_START};
    return peer_call(peer, VFMIG_USER_DIRTY_PAGES, &req, sizeof(req));
}

/* ---- masks ----------------------------------------------------------------------------------- */

static void nothing_is_masked(void **state)
{
    for (unsigned i = 0; i < KINDS; i++) {
        open_kind(kinds[i], &(struct vfmig_device_knobs){0});
        assert_non_null(strstr((char *)peer->reply + 4, "migration"));
        assert_int_equal(migration_flags(), VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA |
                                                VFMIG_FEATURE_PRE_COPY);
        assert_int_equal(probe(VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START), 0);
        assert_int_equal(dirty_start(), 0);
        close_device();
    }
}

/* No way to log is left in either dialect, and nothing else is missing. */
static void the_log_is_masked(void **state)
{
    for (unsigned i = 0; i < KINDS; i++) {
        uint64_t bitmap;
        open_kind(kinds[i], &(struct vfmig_device_knobs){.no_dma_log = true});
        assert_null(strstr((char *)peer->reply + 4, "migration"));
        assert_int_equal(probe(VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START), -ENOTTY);
        assert_int_equal(probe(VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_STOP), -ENOTTY);
        assert_int_equal(probe(VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT), -ENOTTY);
        assert_int_equal(peer_log_start(peer, 4096, 0, 0), -ENOTTY);
        assert_int_equal(peer_log_report(peer, RAM_IOVA, 4096, 4096, &bitmap), -ENOTTY);
        assert_int_equal(dirty_start(), -EOPNOTSUPP);
        assert_int_equal(migration_flags(), VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA |
                                                VFMIG_FEATURE_PRE_COPY);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY_NDMA), 0);
        close_device();
    }
}

static void ndma_is_masked(void **state)
{
    for (unsigned i = 0; i < KINDS; i++) {
        open_kind(kinds[i], &(struct vfmig_device_knobs){.no_ndma = true});
        assert_int_equal(migration_flags(), VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING_NDMA), -EINVAL);
        assert_int_equal(peer_set_v1(peer, 9), -EINVAL);
        close_device();
    }
}

static void precopy_is_masked(void **state)
{
    for (unsigned i = 0; i < KINDS; i++) {
        open_kind(kinds[i], &(struct vfmig_device_knobs){.no_precopy = true});
        assert_int_equal(migration_flags(), VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), -EINVAL);
        assert_int_equal(peer_set_v1(peer, 3), 0); /* C22 */
        assert_int_equal(peer_get(peer, VFMIG_REGION_MIGRATION, 8, 8), 0);
        close_device();
    }
}

/* ---- latency --------------------------------------------------------------------------------- */

static uint64_t since(uint64_t begin)
{
    return vfmig_device_now_ns() - begin;
}

static void every_arc_takes_longer(void **state)
{
    static const struct {
        enum vfmig_device_arc arc;
        uint32_t from, to; /* v1 bits */
    } cases[] = {
        {VFMIG_DEVICE_ARC_QUIESCE, 1, 9}, {VFMIG_DEVICE_ARC_QUIESCE, 1, 0},
        {VFMIG_DEVICE_ARC_STOP, 1, 0},    {VFMIG_DEVICE_ARC_START, 0, 1},
        {VFMIG_DEVICE_ARC_PRECOPY, 1, 3}, {VFMIG_DEVICE_ARC_SAVE, 1, 2},
        {VFMIG_DEVICE_ARC_SAVE, 3, 2},    {VFMIG_DEVICE_ARC_RESET, 0, 4},
    };

    for (unsigned k = 0; k < KINDS; k++) {
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct vfmig_device_knobs knobs = {0};
            knobs.arc_ns[cases[i].arc] = 20 * MS;
            open_kind(kinds[k], &knobs);
            assert_int_equal(peer_set_v1(peer, cases[i].from), 0);
            uint64_t begin = vfmig_device_now_ns();
            assert_int_equal(peer_set_v1(peer, cases[i].to), 0);
            assert_true(since(begin) >= 20 * MS);
            close_device();
        }
    }
}

static void loading_takes_longer(void **state)
{
    uint8_t *data;

    open_kind("null", &(struct vfmig_device_knobs){.arc_ns[VFMIG_DEVICE_ARC_LOAD] = 20 * MS});
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    size_t size = peer_save_v2(peer, &data, 4096);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(peer_load_v2(peer, data, size, 4096), 0);
    uint64_t begin = vfmig_device_now_ns();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), 0);
    assert_true(since(begin) >= 20 * MS);
    free(data);
    close_device();
}

static uint16_t send_v1(uint32_t bits)
{
    struct {
        struct vfmig_user_region_access access;
        uint32_t value;
    } VFMIG_PACKED req = {{0, VFMIG_REGION_MIGRATION, 4}, bits};
    return peer_send(peer, VFMIG_USER_REGION_WRITE, 0, &req, sizeof(req), NULL, 0);
}

/* The server serves while the device becomes quiet, which here takes an hour; reset ends it. */
static void quiescing_blocks_nobody(void **state)
{
    open_kind("bulk", &(struct vfmig_device_knobs){
                          .arc_ns[VFMIG_DEVICE_ARC_QUIESCE] = 3600000 * MS,
                          .drain_timeout_ns = 3600000 * MS});
    for (unsigned i = 0; i < 2; i++) {
        uint16_t id = send_v1(9);
        assert_int_equal(peer_get(peer, BULK_BAR, BULK_REG_ID, 4), BULK_ID);
        assert_int_equal(peer_get_v1(peer), 1); /* the old state until it is done */
        uint16_t reset = peer_send(peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
        assert_int_equal(peer_wait(peer, reset), 0);
        assert_int_equal(peer_wait(peer, id), -ECANCELED);
    }
    close_device();
}

/* A21: the old state stands, and the next attempt has to wait as long. */
static void quiescing_past_the_deadline(void **state)
{
    open_kind("dma", &(struct vfmig_device_knobs){
                         .arc_ns[VFMIG_DEVICE_ARC_QUIESCE] = 3600000 * MS,
                         .drain_timeout_ns = 20 * MS});
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(peer_set_v1(peer, 9), -ETIMEDOUT);
        assert_int_equal(peer_get_v1(peer), 1);
    }
    close_device();
}

/* ---- rates ----------------------------------------------------------------------------------- */

static void rates(void **state)
{
    struct vfmig_device_knobs knobs = {.state_bytes = STATE, .save_rate = 4 * STATE};
    uint8_t *data;

    for (unsigned i = 1; i < KINDS; i++) {
        open_kind(kinds[i], &knobs);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
        uint64_t begin = vfmig_device_now_ns();
        size_t size = peer_save_v2(peer, &data, 65536);
        /* All but the burst that a rate allows: a tenth of a second's. */
        assert_true(since(begin) >= 240 * MS - 100 * MS && size >= STATE);
        close_device();
        open_kind(kinds[i], &(struct vfmig_device_knobs){.state_bytes = STATE,
                                                         .load_rate = 4 * STATE});
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
        begin = vfmig_device_now_ns();
        assert_int_equal(peer_load_v2(peer, data, size, 65536), 0);
        assert_true(since(begin) >= 240 * MS);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
        free(data);
        close_device();
    }
}

/* Pre-copy does not wait: it says "nothing now" until the rate allows more, in both dialects, and
 * all comes in the end. */
static void a_slow_precopy_says_nothing_now(void **state)
{
    struct vfmig_device_knobs slow = {.state_bytes = STATE, .save_rate = 1};
    struct vfmig_device_knobs fast = {.state_bytes = STATE, .save_rate = 8 * STATE};
    uint8_t *data;

    open_kind("bulk", &slow);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    assert_int_equal(peer_save_v2(peer, &data, 1 << 20), 0);
    assert_true(peer_get(peer, VFMIG_REGION_MIGRATION, 8, 8) >= STATE); /* X6 */
    assert_int_equal(peer_get(peer, VFMIG_REGION_MIGRATION, 16, 8),
                     peer_get(peer, VFMIG_REGION_MIGRATION, 16, 8));
    assert_int_equal(peer_get(peer, VFMIG_REGION_MIGRATION, 24, 8), 0);
    free(data);
    close_device();
    for (unsigned i = 0; i < 2; i++) {
        open_kind("bulk", &fast);
        assert_int_equal(peer_set_v1(peer, 3), 0);
        for (size_t size = 0; size < STATE;) {
            size += i ? peer_save_v1(peer, &data) : peer_save_v2(peer, &data, 1 << 20);
            free(data);
        }
        close_device();
    }
}

/* ---- failures -------------------------------------------------------------------------------- */

/* What a whole way there and back says: the first error. */
static int there_and_back(void)
{
    uint8_t *data = NULL;
    struct vfmig_user_mig_data req = {8 + 65536, 65536}, got = {0};
    size_t size = 0;
    int r = peer_set_v2(peer, VFMIG_STATE_PRE_COPY);

    for (unsigned stopped = 0; r == 0 && stopped < 2; stopped++) {
        if (stopped)
            r = peer_set_v2(peer, VFMIG_STATE_STOP_COPY);
        do {
            if (r == 0)
                r = peer_call(peer, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req));
            if (r < 0)
                break;
            memcpy(&got, peer->reply, sizeof(got));
            data = realloc(data, size + got.size + 1);
            memcpy(data + size, peer->reply + 8, got.size);
            size += got.size;
        } while (got.size == req.size);
    }
    if (r == 0)
        r = peer_set_v2(peer, VFMIG_STATE_RESUMING);
    if (r == 0)
        r = peer_load_v2(peer, data, size, 65536);
    if (r == 0)
        r = peer_set_v2(peer, VFMIG_STATE_RUNNING);
    free(data);
    return r;
}

/* Every step of every kind, by the errno that was asked for; a reset brings the device back. */
static void failing_steps(void **state)
{
    for (unsigned k = 0; k < KINDS; k++) {
        struct vfmig_device_knobs knobs = {.state_bytes = k ? STATE : 0, .fail_errno = ENOSPC};
        open_kind(kinds[k], &knobs);
        assert_int_equal(there_and_back(), 0);
        close_device();
        for (int step = VFMIG_DEVICE_STEP_STOP; step < VFMIG_DEVICE_STEP_COUNT; step++) {
            knobs.fail_step = (enum vfmig_device_step)step;
            if (k == 0 && step == VFMIG_DEVICE_STEP_LOAD)
                continue;
            open_kind(kinds[k], &knobs);
            assert_int_equal(there_and_back(), -ENOSPC);
            assert_int_equal(peer_reset(peer), 0);
            assert_int_equal(peer_get_v2(peer), VFMIG_STATE_RUNNING);
            close_device();
        }
    }
}

/* At a byte: one byte more than there are never comes, the last one does. */
static void failing_at_a_byte(void **state)
{
    static const enum vfmig_device_step steps[] = {
        VFMIG_DEVICE_STEP_SAVE_PRECOPY, VFMIG_DEVICE_STEP_SAVE, VFMIG_DEVICE_STEP_LOAD};

    for (unsigned i = 0; i < 3; i++) {
        struct vfmig_device_knobs knobs = {.state_bytes = STATE, .fail_step = steps[i]};
        bool final = steps[i] == VFMIG_DEVICE_STEP_SAVE; /* registers only: the rest went before */
        knobs.fail_byte = final ? 16 : STATE;
        open_kind("bulk", &knobs);
        assert_int_equal(there_and_back(), -EIO);
        close_device();
        knobs.fail_byte = final ? 4096 : 2 * STATE;
        open_kind("bulk", &knobs);
        assert_int_equal(there_and_back(), 0);
        close_device();
    }
}

static void knobs_without_use_are_refused(void **state)
{
    static const struct {
        const char *kind;
        struct vfmig_device_knobs knobs;
        const char *word; /* of the sentence; NULL: accepted */
    } cases[] = {
        {"null", {.state_bytes = 4096}, "--state-size"},
        {"null", {.dirty_rate = 1}, "--dirty-rate"},
        {"null", {.save_rate = 1}, "--save-rate"},
        {"null", {.load_rate = 1}, "--load-rate"},
        {"null", {.latency_ns = 1}, "--latency-us"},
        {"null", {.quiesce_ns = 1}, "--quiesce-us"},
        {"null", {.fail_step = VFMIG_DEVICE_STEP_LOAD}, "--fail"},
        {"null", {.fail_step = VFMIG_DEVICE_STEP_SAVE, .fail_byte = 1}, "--fail-byte"},
        {"null", {.arc_ns = {[VFMIG_DEVICE_ARC_RESET] = 1}, .drain_timeout_ns = 1}, NULL},
        {"null", {.no_ndma = true, .no_precopy = true, .no_dma_log = true}, NULL},
        {"dma", {.dirty_rate = 1}, "--dirty-rate"},
        {"dma", {.fail_at = 1}, "--fail-at"},
        {"dma", {.fail_byte = 1}, "--fail-byte"},
        {"dma", {.fail_step = VFMIG_DEVICE_STEP_STOP, .fail_byte = 1}, "--fail-byte"},
        {"dma", {.fail_step = VFMIG_DEVICE_STEP_SAVE, .fail_byte = 1, .fail_at = 1}, "--fail-at"},
        {"dma", {.fail_step = VFMIG_DEVICE_STEP_SAVE_PRECOPY, .no_precopy = true}, "--fail"},
        {"dma", {.latency_ns = 1, .quiesce_ns = 1, .save_rate = 1, .state_bytes = 1 << 20}, NULL},
        {"bulk", {.latency_ns = 1}, "--latency-us"},
        {"bulk", {.look_ahead = 1}, "--look-ahead"},
        {"bulk", {.quiesce_ns = 1}, "--quiesce-us"},
        {"bulk", {.dirty_rate = 1, .save_rate = 1, .load_rate = 1, .state_bytes = 4096}, NULL},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct vfmig_error err = {0};
        const struct vfmig_device_kind *kind = vfmig_device_kind_find(cases[i].kind);
        int r = vfmig_device_knobs_check(kind, &cases[i].knobs, &err);
        assert_int_equal(r, cases[i].word ? -EINVAL : 0);
        if (cases[i].word)
            assert_non_null(strstr(err.text, cases[i].word));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_masked),
        cmocka_unit_test(the_log_is_masked),
        cmocka_unit_test(ndma_is_masked),
        cmocka_unit_test(precopy_is_masked),
        cmocka_unit_test(every_arc_takes_longer),
        cmocka_unit_test(loading_takes_longer),
        cmocka_unit_test(quiescing_blocks_nobody),
        cmocka_unit_test(quiescing_past_the_deadline),
        cmocka_unit_test(rates),
        cmocka_unit_test(a_slow_precopy_says_nothing_now),
        cmocka_unit_test(failing_steps),
        cmocka_unit_test(failing_at_a_byte),
        cmocka_unit_test(knobs_without_use_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
