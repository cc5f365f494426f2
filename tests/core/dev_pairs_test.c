/* SPDX-License-Identifier: BSD-3-Clause */
/* Every change of state, with a failure at every sub-step, against the rules of design section 4
 * written down once more, as straight-line code over the bits. */
#include "dev_rig.h"

/* What is expected of one write. */
struct expected {
    char trace[64];
    unsigned length;
    unsigned tries;   /* steps tried so far */
    unsigned fail_at; /* the step that fails */
    bool undo_fails;
    bool logs; /* the device has pre-copy */
    uint32_t bits;
    bool gate_open;
    bool stream;
    int err;
};

static void mark(struct expected *x, const char *letters)
{
    for (; *letters; letters++)
        x->trace[x->length++] = *letters;
}

static bool try(struct expected *x, char letter)
{
    x->trace[x->length++] = letter;
    return x->tries++ != x->fail_at;
}

static void stream_ends(struct expected *x)
{
    if (x->stream)
        mark(x, "|");
    x->stream = false;
}

static void stream_begins(struct expected *x, const char *kind)
{
    if (!x->stream)
        mark(x, kind);
    x->stream = true;
}

/* One change from bits o to bits n, in the order of A18. lost: something that cannot be undone was
 * tried. back: the call that takes R's change back. */
static bool change(struct expected *x, uint32_t o, uint32_t n)
{
    bool lost = false, good = true;
    char back = 0;

    if (o & ~n & S) {
        lost = true;
        if (x->logs || !(o & R))
            good = try(x, 'e');
        if (good)
            stream_ends(x);
    }
    if (good && (o & ~n & R)) {
        good = try(x, 'p');
        if (good)
            back = 'r';
    }
    if (good && (o & ~n & Z)) {
        lost = true;
        good = try(x, 'l');
        if (good)
            stream_ends(x);
    }
    if (good && (n & ~o & Z)) {
        lost = true;
        good = try(x, 'z');
        if (good)
            stream_begins(x, ">");
    }
    if (good && (n & S) && !(n & R) && ((o & R) || !(o & S))) {
        good = try(x, 'c');
        if (good)
            stream_begins(x, "<");
    }
    if (good && (n & ~o & R)) {
        good = try(x, 'r');
        if (good)
            back = 'p';
    }
    if (good && (n & S) && (n & R) && !(o & S)) {
        if (x->logs)
            good = try(x, 'w');
        if (good)
            stream_begins(x, "<");
    }
    if (good) {
        x->bits = n;
        return true;
    }
    if (!lost && back)
        mark(x, (char[]){back, 0});
    x->bits = lost || (back && x->undo_fails) ? 6 : o;
    return false;
}

static bool dma_quiet(uint32_t bits)
{
    return !(bits & R) || (bits & N);
}

/* The whole write: ways[0] is the old value, ways[1..count] the values that follow it. */
static void expect(struct expected *x, const uint32_t *ways, unsigned count)
{
    uint32_t o = ways[0], n = ways[count];
    bool good = true;

    x->bits = o;
    x->gate_open = !dma_quiet(o);
    x->stream = o & (S | Z);
    if ((o & R) && (!(n & R) || (!dma_quiet(o) && dma_quiet(n))))
        mark(x, "f");
    if (x->gate_open && dma_quiet(n)) {
        mark(x, "(");
        good = try(x, 'D');
        x->gate_open = false;
    }
    for (unsigned i = 0; good && i < count; i++)
        good = change(x, ways[i], ways[i + 1]);
    x->err = good ? 0 : -EIO;
    if (x->bits == 6) {
        mark(x, x->gate_open ? "(X" : "");
        stream_ends(x);
    } else if (!x->gate_open && !dma_quiet(x->bits)) {
        mark(x, "O)");
    }
    mark(x, ".");
}

/* Plays the write on the machine with the same failures, then compares. quiet: X9 is to hold. */
static void play(struct rig *rig, const struct expected *x, uint32_t old,
                 enum vfmig_dev_event_type type, uint32_t value, bool quiet)
{
    unsigned tries = 0;
    bool undoing = false;

    rig_ask(rig, type, value, 7);
    while (rig->waits) {
        assert_int_equal(vfmig_dev_bits(&rig->dev), old); /* not before it is true */
        assert_int_equal(rig->replies, 0);
        if (quiet)
            assert_false(vfmig_dev_dma_allowed(&rig->dev)); /* X9 */
        if (undoing) {
            rig_done(rig, x->undo_fails ? -ENODEV : 0);
        } else {
            undoing = tries == x->fail_at;
            rig_done(rig, tries++ == x->fail_at ? -EIO : 0);
        }
    }
    if (quiet)
        assert_null(strchr(rig->trace, 'O')); /* X9 */
    assert_string_equal(rig->trace, x->trace);
    assert_int_equal(rig->replies, 1);
    assert_int_equal(rig->reply_id[0], 7);
    assert_int_equal(rig->reply_err[0], x->err);
    assert_int_equal(vfmig_dev_bits(&rig->dev), x->bits);
}

/* By the rules, may a v1 client write n when the register says o? */
static bool allowed(uint32_t features, uint32_t o, uint32_t n)
{
    if (o == 6 || n > 15)
        return false;
    if ((n & Z) && (n & (R | S)))
        return false;
    if ((n & N) && !(features & VFMIG_FEATURE_NDMA))
        return false;
    return !((o & S) && !(o & R) && (n & S) && (n & R)); /* A15 */
}

static bool reachable(uint32_t features, uint32_t o)
{
    return o == 6 || (!((o & Z) && (o & (R | S))) && (!(o & N) || (features & 2)));
}

static void refused(uint32_t features, uint32_t o, uint32_t n)
{
    struct rig rig;

    rig_reach(&rig, features, o);
    struct vfmig_dev before = rig.dev;
    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, n, 7);
    assert_string_equal(rig.trace, ".");
    assert_int_equal(rig.reply_err[0], -EINVAL);
    before.write_id = rig.dev.write_id;
    assert_memory_equal(&before, &rig.dev, sizeof(before)); /* nothing changed (X12, C69) */
}

static unsigned cases;

/* One way with no failure, then with each step failing, and with the undo failing too. */
static void all_failures(uint32_t features, const uint32_t *ways, unsigned count,
                         enum vfmig_dev_event_type type, uint32_t value)
{
    bool quiet = dma_quiet(ways[0]) && dma_quiet(ways[count]);
    unsigned steps = NEVER;

    for (unsigned fail_at = 0; fail_at <= steps || steps == NEVER; fail_at++) {
        for (int undo_fails = 0; undo_fails < 2; undo_fails++) {
            struct expected x = {.fail_at = steps == NEVER ? NEVER : fail_at - 1,
                                 .undo_fails = undo_fails,
                                 .logs = features & VFMIG_FEATURE_PRE_COPY};
            struct rig rig;
            expect(&x, ways, count);
            rig_reach(&rig, features, ways[0]);
            play(&rig, &x, ways[0], type, value, quiet);
            cases++;
            if (steps == NEVER) {
                steps = x.tries;
                break;
            }
        }
    }
}

static void every_v1_pair_follows_the_rules_at_every_failure(void **state)
{
    cases = 0;
    for (uint32_t features = 1; features < 8; features += 2)
        for (uint32_t o = 0; o < 16; o++)
            for (uint32_t n = 0; n < 16; n++) {
                if (!reachable(features, o))
                    continue;
                if (!allowed(features, o, n)) {
                    refused(features, o, n);
                    continue;
                }
                if (o == n) { /* X2: no action at all */
                    struct rig rig;
                    rig_reach(&rig, features, o);
                    assert_int_equal(rig_write(&rig, n), 0);
                    assert_string_equal(rig.trace, ".");
                    continue;
                }
                all_failures(features, (uint32_t[]){o, n}, 1, VFMIG_DEV_EVENT_WRITE_V1, n);
            }
    assert_in_range(cases, 800, 100000);
}

static void values_that_cannot_be_reached_are_refused_from_everywhere(void **state)
{
    const uint32_t values[] = {5, 6, 7, 13, 14, 15, 16, 17, 0x101, 0x80000001, UINT32_MAX};

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        for (uint32_t o = 0; o < 16; o++)
            if (reachable(7, o))
                refused(7, o, values[i]);
    for (uint32_t n = 8; n < 16; n++) /* N on a device without it (C69) */
        for (uint32_t o = 0; o < 8; o++)
            if (reachable(5, o))
                refused(5, o, n);
}

/* The v2 way is a walk over arcs; a failure keeps the last state reached, or is ERROR. */
static void every_v2_pair_follows_the_rules_at_every_failure(void **state)
{
    cases = 0;
    for (uint32_t features = 1; features < 8; features += 2)
        for (uint32_t o = 0; o < 16; o++) {
            enum vfmig_state from, at;
            if (!reachable(features, o) || o == 6)
                continue;
            vfmig_state_from_bits(o, &from);
            if (!vfmig_state_supported(features, from))
                from = (o & N) ? VFMIG_STATE_RUNNING_NDMA : VFMIG_STATE_RUNNING;
            for (uint32_t to = 0; to < VFMIG_STATE_COUNT + 1; to++) {
                uint32_t ways[VFMIG_STATE_COUNT + 1] = {o};
                unsigned count = 0;
                struct rig rig;
                bool may = vfmig_state_next(features, from, to, &at) == 0;
                if (!may || at == from) {
                    rig_reach(&rig, features, o);
                    assert_int_equal(vfmig_dev_state(&rig.dev), from);
                    rig_ask(&rig, VFMIG_DEV_EVENT_SET_V2, to, 7);
                    assert_string_equal(rig.trace, ".");
                    assert_int_equal(rig.reply_err[0], may ? 0 : -EINVAL);
                    assert_int_equal(vfmig_dev_bits(&rig.dev), o);
                    continue;
                }
                for (at = from; at != to; count++) {
                    assert_int_equal(vfmig_state_next(features, at, to, &at), 0);
                    assert_int_equal(vfmig_state_to_bits(at, &ways[count + 1]), 0);
                }
                all_failures(features, ways, count, VFMIG_DEV_EVENT_SET_V2, to);
            }
        }
    assert_in_range(cases, 500, 100000);
}

/* A reset at every waiting point of every write wins: R, window gone, the write is answered after
 * it with -ECANCELED; the step that was under way may still report, nobody minds. */
static void reset_wins_over_every_open_write(void **state)
{
    for (uint32_t features = 1; features < 8; features += 2)
        for (uint32_t o = 0; o < 16; o++)
            for (uint32_t n = 0; n < 16; n++) {
                if (!reachable(features, o) || !allowed(features, o, n) || o == n)
                    continue;
                for (unsigned at = 0;; at++) {
                    struct rig rig;
                    rig_reach(&rig, features, o);
                    rig_ask(&rig, VFMIG_DEV_EVENT_WRITE_V1, n, 7);
                    for (unsigned i = 0; i < at && rig.waits; i++)
                        rig_done(&rig, 0);
                    if (!rig.waits)
                        break;
                    struct vfmig_dev_event late = {.type = VFMIG_DEV_EVENT_STEP_DONE,
                                                   .token = rig.waiting.token};
                    rig_ask(&rig, VFMIG_DEV_EVENT_RESET, 0, 8);
                    rig_event(&rig, late);
                    assert_int_equal(rig.replies, 0);
                    assert_int_equal(rig.stream, 0); /* C43 */
                    rig_done(&rig, 0);
                    assert_int_equal(rig.replies, 2);
                    assert_int_equal(rig.reply_id[0], 8);
                    assert_int_equal(rig.reply_err[0], 0);
                    assert_int_equal(rig.reply_id[1], 7);
                    assert_int_equal(rig.reply_err[1], -ECANCELED);
                    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
                    rig_event(&rig, late);
                    assert_int_equal(vfmig_dev_bits(&rig.dev), R);
                }
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_v1_pair_follows_the_rules_at_every_failure),
        cmocka_unit_test(values_that_cannot_be_reached_are_refused_from_everywhere),
        cmocka_unit_test(every_v2_pair_follows_the_rules_at_every_failure),
        cmocka_unit_test(reset_wins_over_every_open_write),
    };
    return cmocka_run_group_tests_name("dev-pairs", tests, NULL, NULL);
}
