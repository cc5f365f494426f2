/* SPDX-License-Identifier: BSD-3-Clause */
/* VERSION, and what is asked of a device before any rule runs. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check/user.h"

#define MAX_INFO 4096u

/* A failed call as an error with a sentence. */
static int explain(struct check_user *u, int r, const char *what, struct vfmig_error *reterr)
{
    if (r == -ENOTCONN)
        return vfmig_error_set(reterr, -ECONNRESET, VFMIG_ORIGIN_PEER, 0,
                               "the device is %s, asked for %s: %s",
                               check_trouble_name(u->base.trouble), what, u->base.trouble_text);
    return vfmig_error_set(reterr, r, VFMIG_ORIGIN_PEER, 0, "%s was refused: %s", what,
                           strerror(-r));
}

static int take_answer(struct check_user *u, const uint8_t *reply, uint32_t size,
                       struct vfmig_fds *fds, struct vfmig_error *reterr)
{
    struct check_facts *facts = &u->base.facts;
    struct vfmig_user_caps theirs;
    int r = vfmig_user_caps_parse(reply + sizeof(struct vfmig_user_version),
                                  size - sizeof(struct vfmig_user_version), &theirs, reterr);

    if (r < 0)
        return r;
    u->link.max_data =
        theirs.max_data_xfer_size < CHECK_MAX_DATA ? theirs.max_data_xfer_size : CHECK_MAX_DATA;
    facts->max_read = u->link.max_data;
    facts->max_write =
        u->link.max_data < CHECK_CAREFUL_BYTES ? u->link.max_data : CHECK_CAREFUL_BYTES;
    facts->log_told = theirs.has_migration;
    facts->log_region_pgsize = theirs.migration_pgsize;
    if (theirs.twin_socket) {
        int fd = theirs.has_twin_fd_index ? vfmig_fds_take(fds, theirs.twin_fd_index) : -1;
        if (fd < 0)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                                   "VERSION: the twin socket is missing");
        check_link_take_twin(&u->link, fd);
    }
    return 0;
}

int check_user_connect(struct check_user *u, struct vfmig_error *reterr)
{
    struct vfmig_user_version version = {VFMIG_USER_MAJOR, VFMIG_USER_MINOR};
    struct vfmig_user_caps ours;
    struct vfmig_fds fds = {.count = 0};
    uint8_t reply[sizeof(version) + VFMIG_MAX_JSON];
    char text[512];
    int r = check_link_connect(&u->link, u->path, reterr);

    if (r < 0)
        return r;
    vfmig_user_caps_default(&ours);
    ours.has_max_msg_fds = ours.has_max_data_xfer_size = ours.has_migration = true;
    ours.max_msg_fds = VFMIG_MAX_MSG_FDS;
    ours.max_data_xfer_size = CHECK_MAX_DATA;
    ours.twin_socket = true;
    int size = vfmig_user_caps_format(&ours, text, sizeof(text));
    struct check_call call = {.command = VFMIG_USER_VERSION,
                              .fixed = &version,
                              .fixed_size = sizeof(version),
                              .data = text,
                              .data_size = size > 0 ? (uint32_t)size : 0,
                              .reply = reply,
                              .reply_room = sizeof(reply),
                              .ret_fds = &fds,
                              .deadline_ms = u->base.deadline_ms};
    r = check_link_call(&u->link, &call);
    if (r < 0)
        r = explain(u, r, "VERSION", reterr);
    else
        r = take_answer(u, reply, call.ret_size, &fds, reterr);
    vfmig_fds_close(&fds);
    return r;
}

static int ask_region(struct check_user *u, uint32_t index, void *info, uint32_t room)
{
    struct vfmig_user_region_info request = {.argsz = room, .index = index};
    struct vfmig_fds fds = {.count = 0};
    struct check_call call = {.command = VFMIG_USER_GET_REGION_INFO,
                              .fixed = &request,
                              .fixed_size = sizeof(request),
                              .reply = info,
                              .reply_room = room,
                              .ret_fds = &fds,
                              .deadline_ms = u->base.deadline_ms};
    int r = check_link_call(&u->link, &call);

    vfmig_fds_close(&fds);
    return r < 0 ? r : (int)call.ret_size;
}

static int describe_region(struct check_user *u, uint32_t index)
{
    struct check_facts *facts = &u->base.facts;
    union {
        struct vfmig_user_region_info info;
        uint8_t bytes[MAX_INFO];
    } buf;
    uint32_t cap_size = 0;
    int r = ask_region(u, index, &buf, sizeof(buf.info));

    if (r >= (int)sizeof(buf.info) && buf.info.argsz > sizeof(buf.info) &&
        buf.info.argsz <= sizeof(buf))
        r = ask_region(u, index, &buf, buf.info.argsz);
    if (r < (int)sizeof(buf.info))
        return r < 0 ? r : -EPROTO;
    facts->region_size[index] = buf.info.size;
    facts->region_flags[index] = buf.info.flags;
    const struct vfmig_user_cap_type *type =
        vfmig_user_find_cap(&buf, (uint32_t)r, VFMIG_USER_CAP_TYPE, &cap_size);
    if (!facts->mig_region && index >= VFMIG_REGION_MIGRATION && type &&
        cap_size >= sizeof(*type) && type->type == VFMIG_USER_REGION_TYPE_MIGRATION &&
        type->subtype == VFMIG_USER_REGION_SUBTYPE_MIGRATION && buf.info.size) {
        facts->mig_region = index;
        facts->region_ndma =
            vfmig_user_find_cap(&buf, (uint32_t)r, VFMIG_USER_CAP_NDMA, &cap_size) != NULL;
    }
    return 0;
}

static int describe_irqs(struct check_user *u, uint32_t count)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < count && i < VFMIG_IRQ_COUNT; i++) {
        struct vfmig_user_irq_info info = {.argsz = sizeof(info), .index = i};
        struct check_call call = {.command = VFMIG_USER_GET_IRQ_INFO,
                                  .fixed = &info,
                                  .fixed_size = sizeof(info),
                                  .reply = &info,
                                  .reply_room = sizeof(info),
                                  .deadline_ms = u->base.deadline_ms};
        r = check_link_call(&u->link, &call);
        if (r == 0)
            u->base.facts.irq_count[i] = info.count;
    }
    return r;
}

/* True when the operation is there; *ret_r collects trouble. */
static bool probe(struct check_user *u, uint32_t flags, int *ret_r)
{
    int r = check_user_feature(u, flags | VFMIG_USER_FEATURE_PROBE, NULL, 0, NULL, 0,
                               u->base.deadline_ms);

    if (r == -ENOTCONN)
        *ret_r = r;
    return r >= 0;
}

/* DIRTY_PAGES without a bitmap. */
static int say_dirty(struct check_user *u, uint32_t flag)
{
    struct vfmig_user_dirty_pages say = {sizeof(say), flag};
    uint64_t room[2];
    struct check_call call = {.command = VFMIG_USER_DIRTY_PAGES,
                              .fixed = &say,
                              .fixed_size = sizeof(say),
                              .reply = room,
                              .reply_room = sizeof(room),
                              .deadline_ms = u->base.deadline_ms};

    return check_link_call(&u->link, &call);
}

/* The v1 log is there when it can be stopped; or started, if a log that is off refuses to stop. */
static int describe_region_log(struct check_user *u)
{
    int r = say_dirty(u, VFMIG_USER_DIRTY_STOP);
    bool there = r == 0;

    if (!there && r != -ENOTCONN && (r = say_dirty(u, VFMIG_USER_DIRTY_START)) == 0) {
        there = true;
        r = say_dirty(u, VFMIG_USER_DIRTY_STOP);
    }
    u->base.facts.log_region = there && check_port_log_page_fits(u->base.facts.log_region_pgsize);
    return r == -ENOTCONN ? r : 0;
}

static int describe_dialects(struct check_user *u)
{
    struct check_facts *facts = &u->base.facts;
    struct vfmig_user_feature_migration migration = {0};
    uint64_t room[2];
    int trouble = 0;
    int r = check_user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_MIGRATION, NULL, 0,
                               &migration, sizeof(migration), u->base.deadline_ms);

    if (r == (int)sizeof(migration) && migration.flags) {
        facts->dialects |= CHECK_DIALECT_FEATURE;
        facts->features = migration.flags;
    }
    if (facts->mig_region)
        facts->dialects |= CHECK_DIALECT_REGION;
    if (r == -ENOTCONN)
        return r;
    facts->log_feature = probe(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START, &trouble) &&
                         probe(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT, &trouble);
    r = check_user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DATA_SIZE, NULL, 0, room, 8,
                           u->base.deadline_ms);
    facts->data_size = r == 8;
    facts->precopy_info = probe(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_PRECOPY_INFO, &trouble);
    r = describe_region_log(u);
    return r < 0 ? r : trouble;
}

int check_user_describe(struct check_user *u, struct vfmig_error *reterr)
{
    struct check_facts *facts = &u->base.facts;
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    struct check_call call = {.command = VFMIG_USER_GET_INFO,
                              .fixed = &info,
                              .fixed_size = sizeof(info),
                              .reply = &info,
                              .reply_room = sizeof(info),
                              .deadline_ms = u->base.deadline_ms};
    int r = check_link_call(&u->link, &call);

    if (r < 0)
        return explain(u, r, "GET_INFO", reterr);
    facts->raw = facts->posted = true;
    facts->by_message = true;
    facts->region_count =
        info.num_regions < CHECK_MAX_REGIONS ? info.num_regions : CHECK_MAX_REGIONS;
    for (uint32_t i = 0; r == 0 && i < facts->region_count; i++)
        r = describe_region(u, i);
    if (r == 0)
        r = describe_irqs(u, info.num_irqs);
    if (r == 0)
        r = describe_dialects(u);
    if (r == 0)
        check_port_look_at_pci(&u->base);
    if (r == 0 && u->base.trouble)
        r = -ENOTCONN;
    if (r < 0)
        return explain(u, r, "asking what the device is", reterr);
    strncpy(facts->name, u->path, sizeof(facts->name) - 1);
    return 0;
}
