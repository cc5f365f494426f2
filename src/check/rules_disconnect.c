/* SPDX-License-Identifier: BSD-3-Clause */
/* A client that goes away: whoever comes next finds a device that runs and nothing of the last one.
 */
#include "check/rule.h"
#include "check/rules.h"

static void next_client(struct check *c)
{
    if (check_ok(c, check_reconnect(c), "a new connection"))
        check_is(c, VFMIG_STATE_RUNNING, "a fresh connection");
}

void check_first_connection(struct check *c)
{
    uint32_t raw = c->port->facts.first_raw[c->dialect];

    check_doing(c, "the state, before anything was done to the device");
    check_that(c, check_state_of(c, raw) == VFMIG_STATE_RUNNING, "RUNNING", "%s (%u)",
               check_state_name(check_state_of(c, raw)), raw);
}

void check_disconnect_in_every_state(struct check *c)
{
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "the connection is closed in %s", check_state_name(s));
        if (!check_reach(c, (enum vfmig_state)s))
            return;
        next_client(c);
    }
    check_doing(c, "the connection is closed in ERROR");
    if (!check_over(c) && check_reach_error(c))
        next_client(c);
}

void check_disconnect_drops_data(struct check *c)
{
    struct check_blob whole = {0}, part = {0}, again = {0};

    check_doing(c, "a portion is taken, the connection closed, a whole save made");
    if (check_take_image(c, &whole) && check_reach(c, VFMIG_STATE_STOP_COPY)) {
        check_save_some(c, &part, 100);
        next_client(c);
        if (!check_over(c) && check_take_image(c, &again))
            check_that(c, (again.size == 0) == (whole.size == 0), "the next save begins anew",
                       "%zu bytes after %zu in the save before", again.size, whole.size);
    }
    check_blob_free(&whole);
    check_blob_free(&part);
    check_blob_free(&again);
}

void check_disconnect_drops_load(struct check *c)
{
    struct check_blob whole = {0};

    check_doing(c, "half of an image is loaded, the connection closed, all of it loaded");
    if (check_take_image(c, &whole) && check_reach(c, VFMIG_STATE_RESUMING)) {
        if (whole.count)
            check_load(c, whole.bytes, whole.ends[0]);
        next_client(c);
        if (!check_over(c) &&
            check_ok(c, check_go(c, VFMIG_STATE_RESUMING), "RUNNING to RESUMING") &&
            check_ok(c, check_load_all(c, &whole), "loading the image"))
            check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING");
    }
    check_blob_free(&whole);
}

void check_disconnect_ends_log(struct check *c)
{
    uint64_t bitmap[8];

    check_doing(c, "the log is started and the connection closed");
    if (!check_need(c, check_map(c, 0x100000, 0x10000, 0, false), "MAP"))
        return;
    check_need(c, check_log_start(c, 4096, 0x100000, 0x10000), "LOG_START");
    next_client(c);
    if (!check_over(c)) {
        check_map(c, 0x100000, 0x10000, 0, false);
        check_refused(c, check_log_report(c, 0x100000, 0x10000, 4096, bitmap, sizeof(bitmap)),
                      "a report to a client that started no log");
    }
}

/* Messages that end in the middle. */
void check_disconnect_in_a_message(struct check *c)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED set = {{sizeof(set), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {VFMIG_STATE_STOP, 0}};
    struct vfmig_user_region_access access = {0, VFMIG_REGION_CONFIG, 4096};

    for (unsigned bytes = 0; bytes <= sizeof(set) && !check_over(c); bytes += 4) {
        struct check_step step = {
            .kind = CHECK_STEP_CUT,
            .arg = {VFMIG_USER_FEATURE, sizeof(struct vfmig_user_header) + 4096, bytes},
            .data = &set};
        check_doing(c, "DEVICE_FEATURE that ends after %u bytes of 4096", bytes);
        check_do(c, &step);
        next_client(c);
    }
    struct check_step step = {.kind = CHECK_STEP_CUT,
                              .arg = {VFMIG_USER_REGION_WRITE,
                                      sizeof(struct vfmig_user_header) + sizeof(access) + 4096,
                                      sizeof(access)},
                              .data = &access};
    check_doing(c, "REGION_WRITE that ends before its data");
    check_do(c, &step);
    if (!check_over(c))
        next_client(c);
}
