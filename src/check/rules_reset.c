/* SPDX-License-Identifier: BSD-3-Clause */
/* Reset: from every state, in the middle of things, out of ERROR. */
#include "check/rule.h"
#include "check/rules.h"

void check_reset_from_every_state(struct check *c)
{
    for (unsigned s = VFMIG_STATE_STOP; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "reset in %s", check_state_name(s));
        if (!check_reach(c, (enum vfmig_state)s))
            return;
        if (check_ok(c, check_reset(c), "RESET"))
            check_is(c, VFMIG_STATE_RUNNING, "after the reset");
    }
}

/* What a save gives after a reset in the middle of another is a whole stream. */
static void after_reset(struct check *c, const struct check_blob *whole)
{
    struct check_blob again = {0};

    if (check_ok(c, check_reset(c), "RESET") &&
        check_is(c, VFMIG_STATE_RUNNING, "after the reset")) {
        if (c->dialect == CHECK_DIALECT_FEATURE) {
            struct check_blob rest = {0};
            check_that(c, check_save(c, &rest) <= 0, "no data session after a reset",
                       "%zu bytes can still be read", rest.size);
            check_blob_free(&rest);
        }
        if (check_take_image(c, &again))
            check_that(c, (again.size == 0) == (whole->size == 0),
                       "a save after the reset begins anew",
                       "%zu bytes after %zu in the save before", again.size, whole->size);
    }
    check_blob_free(&again);
}

void check_reset_in_the_middle(struct check *c)
{
    static const uint8_t at[] = {VFMIG_STATE_STOP_COPY, VFMIG_STATE_PRE_COPY, VFMIG_STATE_RESUMING};
    struct check_blob whole = {0};

    check_doing(c, "a whole save");
    if (!check_take_image(c, &whole)) {
        check_blob_free(&whole);
        return;
    }
    for (size_t i = 0; i < sizeof(at) && !check_over(c); i++) {
        struct check_blob part = {0};
        enum vfmig_state s = (enum vfmig_state)at[i];
        if (!check_has(c, s))
            continue;
        check_doing(c, "reset in %s after a portion", check_state_name(s));
        if (check_reach(c, s)) {
            if (s == VFMIG_STATE_RESUMING && whole.count)
                check_load(c, whole.bytes, whole.ends[0]);
            else if (s != VFMIG_STATE_RESUMING)
                check_save_some(c, &part, 100);
            after_reset(c, &whole);
        }
        check_blob_free(&part);
    }
    check_blob_free(&whole);
}

/* What a reset in Z has thrown away is not part of the next load. */
void check_reset_drops_what_was_loaded(struct check *c)
{
    struct check_blob whole = {0};
    static const char nonsense[64] = "half of something else";

    check_doing(c, "half of something is loaded, reset, a whole image is loaded");
    if (check_take_image(c, &whole) && check_reach(c, VFMIG_STATE_RESUMING)) {
        check_load(c, nonsense, sizeof(nonsense));
        check_reset(c);
        if (check_is(c, VFMIG_STATE_RUNNING, "after the reset") &&
            check_ok(c, check_go(c, VFMIG_STATE_RESUMING), "RUNNING to RESUMING") &&
            check_ok(c, check_load_all(c, &whole), "loading the image") &&
            check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING"))
            check_is(c, VFMIG_STATE_RUNNING, "after the load");
    }
    check_blob_free(&whole);
}

void check_error_until_reset(struct check *c)
{
    check_doing(c, "bad data is loaded, for ERROR");
    if (!check_reach_error(c)) {
        if (!check_over(c))
            check_skip(c, "the device did not go to ERROR by bad data");
        return;
    }
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "%s asked for in ERROR", check_state_name(s));
        if (check_refused(c, check_go(c, (enum vfmig_state)s), "every state"))
            check_is(c, VFMIG_STATE_ERROR, "after the refusal");
    }
    check_doing(c, "reset in ERROR");
    if (!check_over(c) && check_ok(c, check_reset(c), "RESET"))
        check_is(c, VFMIG_STATE_RUNNING, "after the reset");
}

void check_works_after_error(struct check *c)
{
    struct check_blob blob = {0};

    check_doing(c, "ERROR, reset, a save and a load");
    if (!check_reach_error(c)) {
        if (!check_over(c))
            check_skip(c, "the device did not go to ERROR by bad data");
        return;
    }
    if (check_ok(c, check_reset(c), "RESET") && check_take_image(c, &blob) &&
        check_ok(c, check_go(c, VFMIG_STATE_RESUMING), "RUNNING to RESUMING") &&
        check_ok(c, check_load_all(c, &blob), "loading the image"))
        check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING");
    check_blob_free(&blob);
}
