/* SPDX-License-Identifier: BSD-3-Clause */
/* State changes: every ordered pair, values that are none, failures. */
#include "check/rule.h"
#include "check/rules.h"

/* Every value of the v1 register that means a state. */
static const uint32_t v1_values[] = {0, 1, 2, 3, 4, 8, 9, 10, 11, 12};
#define V1_COUNT (sizeof(v1_values) / sizeof(v1_values[0]))

static bool v1_has(const struct check *c, uint32_t value)
{
    return !(value & VFMIG_V1_NDMA) || check_has_ndma(c);
}

/* From RUNNING, which the rule is in or comes back to by reset, to a register value. */
static bool reach_raw(struct check *c, uint32_t value)
{
    uint32_t raw = 0;

    if (check_reset(c) < 0 || check_raw(c, &raw) < 0)
        return false;
    return raw == value || check_ok(c, check_set_raw(c, value), "from RUNNING") ||
           check_that(c, false, "a state that RUNNING leads to", "device_state %u is refused",
                      value);
}

/* N says nothing new beside !R: it may be read back or not. */
static bool same_v1(uint32_t a, uint32_t b)
{
    if (!(a & VFMIG_V1_RUNNING))
        a &= ~VFMIG_V1_NDMA;
    if (!(b & VFMIG_V1_RUNNING))
        b &= ~VFMIG_V1_NDMA;
    return a == b;
}

/* In Z only a device with data to load can be left: image is what it has saved itself. */
static void try_v1_pair(struct check *c, uint32_t from, uint32_t to, const struct check_blob *image)
{
    uint32_t raw = 0;

    check_doing(c, "device_state %u, then %u", from, to);
    if (!reach_raw(c, from))
        return;
    if (from & VFMIG_V1_RESUMING && !check_ok(c, check_load_all(c, image), "loading what it saved"))
        return;
    int r = check_set_raw(c, to);
    if (check_gone(c) || check_raw(c, &raw) < 0)
        return;
    if (r == 0)
        check_that(c, same_v1(raw, to), "a write that succeeds ends in the state that was written",
                   "%u was written over %u and succeeded, then %u is read", to, from, raw);
    else
        check_that(c, same_v1(raw, from) || raw == VFMIG_V1_ERROR,
                   "after a write that failed the state is the old one or ERROR",
                   "%u was written over %u and failed with %s, then %u is read", to, from,
                   check_outcome(c, r), raw);
}

void check_region_pairs(struct check *c)
{
    struct check_blob image = {0};

    check_doing(c, "a save, for what leaves RESUMING");
    check_take_image(c, &image);
    for (size_t from = 0; from < V1_COUNT; from++)
        for (size_t to = 0; to < V1_COUNT && !check_over(c); to++)
            if (v1_has(c, v1_values[from]) && v1_has(c, v1_values[to]))
                try_v1_pair(c, v1_values[from], v1_values[to], &image);
    check_blob_free(&image);
}

/* What the header draws, QEMU does, and the RFC's flows have: paths of register values from 1. */
struct path {
    bool ndma;
    uint8_t count;
    uint8_t value[5];
};

static void walk(struct check *c, const struct path *path)
{
    struct check_blob image = {0};
    uint32_t raw = 0;

    if (path->ndma && !check_has_ndma(c))
        return;
    check_doing(c, "a save, for what leaves RESUMING");
    check_take_image(c, &image);
    check_reset(c);
    check_raw(c, &raw);
    for (unsigned i = 0; i < path->count && !check_over(c); i++) {
        uint32_t to = path->value[i];
        check_doing(c, "device_state %u, then %u", raw, to);
        if (raw & VFMIG_V1_RESUMING)
            check_ok(c, check_load_all(c, &image), "loading what it saved");
        if (!check_ok(c, check_set_raw(c, to), "the write"))
            break;
        check_raw(c, &raw);
        check_that(c, same_v1(raw, to), "the state that was written", "%u", raw);
    }
    check_blob_free(&image);
}

void check_region_arrows(struct check *c)
{
    static const struct path paths[] = {
        {false, 2, {0, 1}},    /* shutdown and back */
        {false, 2, {2, 0}},    /* save */
        {false, 3, {3, 2, 0}}, /* live migration */
        {false, 2, {4, 1}},    /* resume */
    };

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]) && !check_over(c); i++)
        walk(c, &paths[i]);
}

void check_region_flows(struct check *c)
{
    static const struct path paths[] = {
        {true, 4, {3, 11, 2, 0}}, /* the RFC's save */
        {true, 2, {4, 9}},        /* Z to NR in one write */
        {true, 2, {9, 1}},
        {true, 5, {3, 11, 3, 11, 3}}, /* atomic read and clear made of NDMA */
        {true, 2, {11, 1}},           /* unwinding */
    };

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]) && !check_over(c); i++)
        walk(c, &paths[i]);
}

void check_region_halted_resume(struct check *c)
{
    static const struct path path = {false, 3, {0, 4, 1}};

    walk(c, &path);
}

/* A value that no device may take: refused, nothing changed. */
static void try_refused(struct check *c, uint32_t before, uint32_t value, bool einval)
{
    uint32_t raw = 0;
    int r = check_set_raw(c, value);

    if (einval ? !check_errno(c, r, EINVAL, "the request") : !check_refused(c, r, "the write"))
        return;
    check_raw(c, &raw);
    check_that(c, raw == before, "nothing is changed by a value that is refused",
               "%u was asked for in %u, then %u is read", value, before, raw);
}

void check_region_values(struct check *c)
{
    static const uint32_t wrong[] = {5, 7, 13, 14, 15, 6};

    for (unsigned s = VFMIG_STATE_STOP; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        uint32_t before = 0;
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_raw(c, &before);
        for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
            check_doing(c, "device_state %u in %s", wrong[i], check_state_name(s));
            try_refused(c, before, wrong[i], false);
        }
        for (unsigned bit = 4; bit < 32 && !check_over(c);
             bit += s == VFMIG_STATE_RUNNING ? 1 : 9) {
            check_doing(c, "unknown bit %u in %s", bit, check_state_name(s));
            try_refused(c, before, before | 1u << bit, false);
        }
    }
}

void check_region_without_ndma(struct check *c)
{
    static const uint32_t wrong[] = {9, 11, 8, 10, 12};

    if (check_has_ndma(c)) {
        check_not_applicable(c, "the device has NDMA");
        return;
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
        check_doing(c, "device_state %u without capability 6", wrong[i]);
        try_refused(c, VFMIG_V1_RUNNING, wrong[i], false);
    }
}

static void try_v2_pair(struct check *c, unsigned from, unsigned to, const struct check_blob *image)
{
    check_doing(c, "%s to %s", check_state_name(from), check_state_name(to));
    if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, (enum vfmig_state)from))
        return;
    if (from == VFMIG_STATE_RESUMING &&
        !check_ok(c, check_load_all(c, image), "loading what it saved"))
        return;
    if (check_model_next(c->port->facts.features, from, to) == CHECK_STATE_NONE)
        try_refused(c, from, to, true);
    else if (check_ok(c, check_go(c, (enum vfmig_state)to), "the request"))
        check_is(c, (enum vfmig_state)to, "after it");
}

void check_feature_pairs(struct check *c)
{
    struct check_blob image = {0};

    check_doing(c, "a save, for what leaves RESUMING");
    check_take_image(c, &image);
    for (unsigned from = 1; from < VFMIG_STATE_COUNT; from++)
        for (unsigned to = 1; to < VFMIG_STATE_COUNT && !check_over(c); to++)
            if (check_has(c, (enum vfmig_state)from) && check_has(c, (enum vfmig_state)to))
                try_v2_pair(c, from, to, &image);
    check_blob_free(&image);
}

void check_feature_values(struct check *c)
{
    static const uint32_t wrong[] = {VFMIG_STATE_ERROR, 8, 9, 11, 0xff, 0x80000001u, 0xffffffffu};

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
            check_doing(c, "state %u in %s", wrong[i], check_state_name(s));
            try_refused(c, s, wrong[i], true);
        }
    }
}

void check_feature_unsupported(struct check *c)
{
    bool all = true;

    for (unsigned to = 1; to < VFMIG_STATE_COUNT && !check_over(c); to++) {
        if (check_has(c, (enum vfmig_state)to))
            continue;
        all = false;
        check_doing(c, "%s of a device that does not offer it", check_state_name(to));
        try_refused(c, VFMIG_STATE_RUNNING, to, true);
    }
    if (all)
        check_not_applicable(c, "the device has every state");
}

void check_feature_flags(struct check *c)
{
    uint64_t flags = 0;
    int r = check_get_feature(c, VFMIG_USER_F_MIGRATION, &flags, sizeof(flags));
    uint64_t known = VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY;

    check_doing(c, "GET of feature MIGRATION");
    if (!check_ok(c, r, "GET"))
        return;
    check_that(c, r == 8, "eight bytes of flags", "%d bytes", r);
    check_that(c, (flags & VFMIG_FEATURE_STOP_COPY) && !(flags & ~known),
               "STOP_COPY is set, and with it none, P2P, PRE_COPY or both", "flags 0x%llx",
               (unsigned long long)flags);
}

void check_same_state(struct check *c)
{
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "%s over %s", check_state_name(s), check_state_name(s));
        if (!check_reach(c, (enum vfmig_state)s))
            return;
        if (check_ok(c, check_go(c, (enum vfmig_state)s), "the same state again"))
            check_is(c, (enum vfmig_state)s, "after it");
    }
}

void check_aborts(struct check *c)
{
    static const uint8_t from[] = {VFMIG_STATE_PRE_COPY, VFMIG_STATE_STOP_COPY,
                                   VFMIG_STATE_PRE_COPY_NDMA, VFMIG_STATE_RUNNING_NDMA};

    for (unsigned half = 0; half < 2; half++)
        for (size_t i = 0; i < sizeof(from) && !check_over(c); i++) {
            struct check_blob blob = {0};
            if (!check_has(c, (enum vfmig_state)from[i]))
                continue;
            check_doing(c, "%s to RUNNING, %s", check_state_name(from[i]),
                        half ? "a portion taken" : "nothing taken");
            bool there = check_reach(c, (enum vfmig_state)from[i]);
            if (there && half && from[i] != VFMIG_STATE_RUNNING_NDMA)
                check_save_some(c, &blob, 100);
            if (there && check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "the way back"))
                check_is(c, VFMIG_STATE_RUNNING, "after it");
            check_blob_free(&blob);
        }
}

void check_final_phase_any_time(struct check *c)
{
    for (unsigned portions = 0; portions < 3 && !check_over(c); portions++) {
        struct check_blob blob = {0};
        check_doing(c, "PRE_COPY to STOP_COPY after %u portions", portions);
        if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, VFMIG_STATE_PRE_COPY))
            return;
        for (unsigned i = 0; i < portions; i++)
            check_save(c, &blob);
        if (check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "the request"))
            check_is(c, VFMIG_STATE_STOP_COPY, "after it");
        check_blob_free(&blob);
    }
}

/* A change that fails because what was loaded is nonsense. */
void check_failed_change(struct check *c)
{
    static const uint8_t targets[] = {VFMIG_STATE_STOP, VFMIG_STATE_RUNNING,
                                      VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_STOP_COPY};
    static const char nonsense[512] = "not what any device has saved";

    for (size_t i = 0; i < sizeof(targets) && !check_over(c); i++) {
        enum vfmig_state to = (enum vfmig_state)targets[i];
        if (!check_has(c, to))
            continue;
        check_doing(c, "nonsense is loaded, then RESUMING to %s", check_state_name(to));
        if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, VFMIG_STATE_RESUMING))
            return;
        check_load(c, nonsense, sizeof(nonsense));
        int r = check_go(c, to);
        unsigned now = check_now(c);
        bool region = c->dialect == CHECK_DIALECT_REGION;
        bool good =
            r == 0
                ? now == (unsigned)to
                : now == VFMIG_STATE_ERROR || now == VFMIG_STATE_RESUMING ||
                      (!region && now != (unsigned)to &&
                       check_model_on_path(c->port->facts.features, VFMIG_STATE_RESUMING, to, now));
        check_that(c, good,
                   region ? "the old state or ERROR after a failure, the new one after success"
                          : "the old state, one on the way or ERROR after a failure, the new one "
                            "after success",
                   "%s, then %s", check_outcome(c, r), check_state_name(now));
    }
}

/* Only a request or a reset changes the state: reading, waiting, accesses do not. */
void check_no_change_by_itself(struct check *c)
{
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        struct check_blob blob = {0};
        uint8_t byte = 0;
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "reads, and a moment, in %s", check_state_name(s));
        check_read(c, VFMIG_REGION_CONFIG, 0, &byte, 1);
        if (s == VFMIG_STATE_PRE_COPY || s == VFMIG_STATE_STOP_COPY)
            check_save_all(c, &blob);
        check_serve(c, 2);
        check_is(c, (enum vfmig_state)s, "after it");
        check_blob_free(&blob);
    }
}

void check_log_leaves_state(struct check *c)
{
    uint32_t raw = 0;

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "the log on and off in %s", check_state_name(s));
        check_map(c, 0x100000, 0x10000, 0, false);
        check_log_start(c, 4096, 0x100000, 0x10000);
        if (check_is(c, (enum vfmig_state)s, "with the log on"))
            check_log_stop(c);
        check_is(c, (enum vfmig_state)s, "with the log off again");
        check_raw(c, &raw);
        check_that(c, raw < 16, "no bit above NDMA is ever set", "0x%x", raw);
        check_unmap(c, 0x100000, 0x10000);
    }
}
