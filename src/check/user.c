/* SPDX-License-Identifier: BSD-3-Clause */
/* The steps of steps.def over vfio-user, in both dialects. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check/user.h"

static uint64_t bitmap_bytes(uint64_t size, uint64_t page_size)
{
    uint64_t bits = page_size ? size / page_size + (size % page_size != 0) : 0;

    return (bits / 64 + (bits % 64 != 0)) * 8;
}

static int simple(struct check_user *u, uint16_t command, const void *fixed, uint32_t size,
                  uint32_t deadline_ms)
{
    uint8_t reply[64];
    struct check_call call = {.command = command,
                              .fixed = fixed,
                              .fixed_size = size,
                              .reply = reply,
                              .reply_room = sizeof(reply),
                              .deadline_ms = deadline_ms};

    return check_link_call(&u->link, &call);
}

int check_user_region(struct check_user *u, uint32_t region, uint64_t offset, void *read_to,
                      const void *write_from, uint32_t size, uint32_t flags, uint32_t deadline_ms)
{
    struct vfmig_user_region_access access = {offset, region, size};
    uint32_t room = (uint32_t)sizeof(access) + (read_to ? size : 0);
    uint8_t *reply = malloc(room);
    struct check_call call = {
        .command = read_to ? VFMIG_USER_REGION_READ : VFMIG_USER_REGION_WRITE,
        .flags = flags,
        .fixed = &access,
        .fixed_size = sizeof(access),
        .data = write_from,
        .data_size = read_to ? 0 : size,
        .reply = reply,
        .reply_room = room,
        .deadline_ms = deadline_ms,
    };
    int r = reply ? check_link_call(&u->link, &call) : -ENOMEM;

    if (r == 0 && read_to && call.ret_size == room)
        memcpy(read_to, reply + sizeof(access), size);
    free(reply);
    return r < 0 ? r : (int)size;
}

int check_user_feature(struct check_user *u, uint32_t flags, const void *data, uint32_t size,
                       void *room, uint32_t room_size, uint32_t deadline_ms)
{
    bool get = flags & VFMIG_USER_FEATURE_GET && !(flags & VFMIG_USER_FEATURE_PROBE);
    uint32_t back = get && room_size > size ? room_size : size;
    struct vfmig_user_feature head = {(uint32_t)sizeof(head) + back, flags};
    uint8_t *reply = malloc(sizeof(head) + back);
    struct check_call call = {
        .command = VFMIG_USER_FEATURE,
        .fixed = &head,
        .fixed_size = sizeof(head),
        .data = data,
        .data_size = size,
        .reply = reply,
        .reply_room = (uint32_t)sizeof(head) + back,
        .deadline_ms = deadline_ms,
    };
    int r = reply ? check_link_call(&u->link, &call) : -ENOMEM;

    if (r == 0) {
        r = (int)(call.ret_size > sizeof(head) ? call.ret_size - (uint32_t)sizeof(head) : 0);
        if (room && (uint32_t)r > room_size)
            r = (int)room_size;
        if (room && r > 0)
            memcpy(room, reply + sizeof(head), (size_t)r);
    }
    free(reply);
    return r;
}

/* ---- state and data ---- */

static int state_get(struct check_user *u, uint64_t *ret_value)
{
    struct vfmig_user_feature_state state = {0};
    uint32_t bits = 0;
    int r;

    if (u->base.dialect == CHECK_DIALECT_REGION) {
        r = check_user_region(u, u->base.facts.mig_region, 0, &bits, NULL, 4, 0, u->base.state_ms);
        *ret_value = bits;
        return r < 0 ? r : 0;
    }
    r = check_user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DEVICE_STATE, NULL, 0, &state,
                           sizeof(state), u->base.state_ms);
    *ret_value = state.device_state;
    if (r >= 0 && r < (int)sizeof(state.device_state)) {
        check_port_trouble(&u->base, CHECK_BROKEN, "MIG_DEVICE_STATE answered with %d bytes", r);
        return -ENOTCONN;
    }
    return r < 0 ? r : 0;
}

static int state_set(struct check_user *u, uint64_t value, uint32_t flags)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED set = {{sizeof(set), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {(uint32_t)value, 0}};
    uint32_t bits = (uint32_t)value;
    struct check_call call = {.command = VFMIG_USER_FEATURE,
                              .flags = flags,
                              .fixed = &set,
                              .fixed_size = sizeof(set),
                              .reply = &set,
                              .reply_room = sizeof(set),
                              .deadline_ms = u->base.state_ms};
    int r;

    if (u->base.dialect == CHECK_DIALECT_REGION)
        r = check_user_region(u, u->base.facts.mig_region, 0, NULL, &bits, 4, flags,
                              u->base.state_ms);
    else
        r = check_link_call(&u->link, &call);
    if (u->link.held_count && !u->link.asking)
        u->base.dma.answered_open++;
    return r < 0 ? r : 0;
}

/* Its answer is waited for by STATE_ANSWER. */
static int state_ask(struct check_user *u, uint64_t value)
{
    if (u->link.asked_open)
        return -EBUSY;
    u->link.asking = true;
    int r = state_set(u, value, 0);
    u->link.asking = false;
    return r;
}

static int data_read(struct check_user *u, void *room, uint32_t size)
{
    struct vfmig_user_mig_data head = {(uint32_t)sizeof(head) + size, size};
    uint8_t *reply = malloc(sizeof(head) + size);
    struct check_call call = {.command = VFMIG_USER_MIG_DATA_READ,
                              .fixed = &head,
                              .fixed_size = sizeof(head),
                              .reply = reply,
                              .reply_room = (uint32_t)sizeof(head) + size,
                              .deadline_ms = u->base.deadline_ms};
    int r = reply ? check_link_call(&u->link, &call) : -ENOMEM;

    if (r == 0) {
        memcpy(&head, reply, sizeof(head));
        memcpy(room, reply + sizeof(head), head.size);
        r = (int)head.size;
    }
    free(reply);
    return r;
}

static int data_write(struct check_user *u, const void *data, uint32_t size)
{
    struct vfmig_user_mig_data head = {(uint32_t)sizeof(head) + size, size};
    uint8_t reply[64];
    struct check_call call = {.command = VFMIG_USER_MIG_DATA_WRITE,
                              .fixed = &head,
                              .fixed_size = sizeof(head),
                              .data = data,
                              .data_size = size,
                              .reply = reply,
                              .reply_room = sizeof(reply),
                              .deadline_ms = u->base.deadline_ms};
    int r = check_link_call(&u->link, &call);

    return r < 0 ? r : (int)size;
}

/* ---- the log ---- */

static int log_start(struct check_user *u, struct check_step *step)
{
    struct vfmig_user_feature_log_start *start;
    struct vfmig_user_dirty_pages dirty = {sizeof(dirty), VFMIG_USER_DIRTY_START};
    uint32_t bytes = (uint32_t)step->arg[1];

    if (u->base.dialect == CHECK_DIALECT_REGION) {
        step->value = u->base.facts.log_region_pgsize;
        return simple(u, VFMIG_USER_DIRTY_PAGES, &dirty, sizeof(dirty), u->base.deadline_ms);
    }
    start = calloc(1, sizeof(*start) + bytes);
    if (!start)
        return -ENOMEM;
    start->page_size = step->arg[0];
    start->num_ranges = bytes / (uint32_t)sizeof(struct vfmig_user_log_range);
    if (bytes)
        memcpy(start + 1, step->data, bytes);
    struct vfmig_user_feature_log_start chosen = *start;
    int r = check_user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START, start,
                               (uint32_t)sizeof(*start) + bytes, &chosen, sizeof(chosen),
                               u->base.deadline_ms);
    step->value = chosen.page_size;
    free(start);
    return r < 0 ? r : 0;
}

static int log_stop(struct check_user *u)
{
    struct vfmig_user_dirty_pages dirty = {sizeof(dirty), VFMIG_USER_DIRTY_STOP};

    if (u->base.dialect == CHECK_DIALECT_REGION)
        return simple(u, VFMIG_USER_DIRTY_PAGES, &dirty, sizeof(dirty), u->base.deadline_ms);
    int r = check_user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_STOP, NULL, 0, NULL, 0,
                               u->base.deadline_ms);
    return r < 0 ? r : 0;
}

/* The bitmap of a reply: behind skip bytes. Bytes of it. */
static int take_bitmap(struct check_step *step, const uint8_t *reply, uint32_t size, uint32_t skip)
{
    uint32_t have = size > skip ? size - skip : 0;

    if (have > step->room_size)
        have = step->room_size;
    if (have)
        memcpy(step->room, reply + skip, have);
    return (int)have;
}

/* DIRTY_PAGES or DMA_UNMAP with a bitmap: head_size bytes of head, and the bitmap after as many. */
static int region_report(struct check_user *u, struct check_step *step, uint16_t command,
                         const void *head, uint32_t head_size, uint64_t bytes)
{
    uint8_t *reply = malloc(head_size + bytes);
    struct check_call call = {.command = command,
                              .fixed = head,
                              .fixed_size = head_size,
                              .reply = reply,
                              .reply_room = head_size + (uint32_t)bytes,
                              .deadline_ms = u->base.deadline_ms};
    int r = reply ? check_link_call(&u->link, &call) : -ENOMEM;

    if (r == 0)
        r = take_bitmap(step, reply, call.ret_size, head_size);
    free(reply);
    return r;
}

static int log_report(struct check_user *u, struct check_step *step)
{
    uint64_t iova = step->arg[0], length = step->arg[1], page = step->arg[2];
    uint64_t bytes = bitmap_bytes(length, page);

    if (bytes > CHECK_MAX_DATA)
        return -E2BIG;
    if (u->base.dialect == CHECK_DIALECT_REGION) {
        struct {
            struct vfmig_user_dirty_pages head;
            struct vfmig_user_dirty_range range;
        } VFMIG_PACKED get = {{sizeof(get) + (uint32_t)bytes, VFMIG_USER_DIRTY_GET},
                              {iova, length, {page, bytes}}};
        return region_report(u, step, VFMIG_USER_DIRTY_PAGES, &get, sizeof(get), bytes);
    }
    struct vfmig_user_feature_log_report head = {iova, length, page};
    uint32_t room = (uint32_t)sizeof(head) + (uint32_t)bytes;
    uint8_t *reply = calloc(1, room);
    int r = reply ? check_user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT, &head,
                                       sizeof(head), reply, room, u->base.deadline_ms)
                  : -ENOMEM;
    if (r >= 0)
        r = take_bitmap(step, reply, (uint32_t)r, sizeof(head));
    free(reply);
    return r;
}

/* ---- memory and interrupts ---- */

static int map(struct check_user *u, const struct check_step *step)
{
    bool by_message = step->arg[3] != 0;
    struct vfmig_user_dma_map m = {sizeof(m), VFMIG_USER_DMA_F_READ | VFMIG_USER_DMA_F_WRITE,
                                   by_message ? 0 : step->arg[2], step->arg[0], step->arg[1]};
    struct check_call call = {.command = VFMIG_USER_DMA_MAP,
                              .fixed = &m,
                              .fixed_size = sizeof(m),
                              .fds = {u->base.memory_fd},
                              .fd_count = by_message ? 0 : 1,
                              .deadline_ms = u->base.deadline_ms};

    if (step->arg[3] >= CHECK_MAP_PEER
            ? step->arg[3] - CHECK_MAP_PEER >= CHECK_MAX_REGIONS
            : step->arg[1] > CHECK_MEMORY || step->arg[2] > CHECK_MEMORY - step->arg[1])
        return -EINVAL;
    int r = check_link_call(&u->link, &call);
    return r < 0 ? r
                 : check_link_map(&u->link, step->arg[0], step->arg[1], step->arg[2],
                                  (uint32_t)step->arg[3]);
}

static int unmap(struct check_user *u, struct check_step *step)
{
    struct {
        struct vfmig_user_dma_unmap head;
        struct vfmig_user_bitmap bitmap;
    } VFMIG_PACKED un = {{sizeof(un.head), 0, step->arg[0], step->arg[1]}, {0, 0}};
    int r;

    if (step->kind == CHECK_STEP_UNMAP) {
        r = simple(u, VFMIG_USER_DMA_UNMAP, &un.head, sizeof(un.head), u->base.deadline_ms);
    } else {
        uint64_t bytes = bitmap_bytes(step->arg[1], step->arg[2]);
        if (bytes > CHECK_MAX_DATA)
            return -E2BIG;
        un.head.flags = VFMIG_USER_UNMAP_F_BITMAP;
        un.head.argsz = (uint32_t)(sizeof(un) + bytes);
        un.bitmap = (struct vfmig_user_bitmap){step->arg[2], bytes};
        r = region_report(u, step, VFMIG_USER_DMA_UNMAP, &un, sizeof(un), bytes);
    }
    if (r >= 0)
        check_link_unmap(&u->link, step->arg[0], step->arg[1]);
    return r;
}

static int set_irqs(struct check_user *u, const struct check_step *step)
{
    uint32_t count = (uint32_t)step->arg[2];
    struct vfmig_user_set_irqs irqs = {
        sizeof(irqs),
        VFMIG_USER_IRQ_ACTION_TRIGGER |
            (count ? VFMIG_USER_IRQ_DATA_EVENTFD : VFMIG_USER_IRQ_DATA_NONE),
        (uint32_t)step->arg[0], (uint32_t)step->arg[1], count};
    struct check_call call = {.command = VFMIG_USER_SET_IRQS,
                              .fixed = &irqs,
                              .fixed_size = sizeof(irqs),
                              .fd_count = count,
                              .deadline_ms = u->base.deadline_ms};
    int r = 0;

    if (count > CHECK_MAX_VECTORS || step->arg[1] > CHECK_MAX_VECTORS - count)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++)
        call.fds[i] = u->base.irq_fd[step->arg[1] + i];
    r = check_link_call(&u->link, &call);
    return r;
}

/* ---- wrong things ---- */

static int command(struct check_user *u, struct check_step *step)
{
    struct check_call call = {.command = (uint16_t)step->arg[0],
                              .flags = (uint32_t)step->arg[1],
                              .fixed = step->data,
                              .fixed_size = (uint32_t)step->arg[2],
                              .reply = step->room,
                              .reply_room = step->room_size,
                              .deadline_ms = u->base.deadline_ms,
                              .any_reply = true,
                              .pieces = step->kind == CHECK_STEP_PIECES};
    int r = check_link_call(&u->link, &call);

    return r < 0 ? r : (int)call.ret_size;
}

static int connect_again(struct check_user *u)
{
    struct vfmig_error err = {0};

    check_link_close(&u->link);
    u->base.trouble = CHECK_FINE;
    int r = check_user_connect(u, &err);
    if (r < 0 && !u->base.trouble)
        check_port_trouble(&u->base, r == -ETIMEDOUT ? CHECK_HUNG : CHECK_DIED, "%s", err.text);
    return r < 0 ? -ENOTCONN : 0;
}

static int run_feature(struct check_user *u, struct check_step *step)
{
    uint32_t id = (uint32_t)step->arg[0] & VFMIG_USER_FEATURE_MASK;

    if (step->kind == CHECK_STEP_FEATURE_PROBE)
        return check_user_feature(u, (uint32_t)step->arg[0] | VFMIG_USER_FEATURE_PROBE, NULL, 0,
                                  NULL, 0, u->base.deadline_ms);
    if (step->kind == CHECK_STEP_FEATURE_SET)
        return check_user_feature(u, id | VFMIG_USER_FEATURE_SET, step->data,
                                  (uint32_t)step->arg[1], NULL, 0, u->base.deadline_ms);
    return check_user_feature(
        u, id | VFMIG_USER_FEATURE_GET, step->data, (uint32_t)step->arg[2], step->room,
        (uint32_t)step->arg[1] < step->room_size ? (uint32_t)step->arg[1] : step->room_size,
        u->base.deadline_ms);
}

static int run_access(struct check_user *u, struct check_step *step)
{
    bool read = step->kind == CHECK_STEP_REGION_READ;
    uint32_t flags = step->kind == CHECK_STEP_REGION_POST ? VFMIG_USER_NO_REPLY : 0;

    if (step->arg[2] > CHECK_MAX_DATA || (read && step->arg[2] > step->room_size))
        return -E2BIG;
    return check_user_region(u, (uint32_t)step->arg[0], step->arg[1], read ? step->room : NULL,
                             read ? NULL : step->data, (uint32_t)step->arg[2], flags,
                             u->base.deadline_ms);
}

static int64_t run(struct check_user *u, struct check_step *step)
{
    switch (step->kind) {
    case CHECK_STEP_CONNECT:
        return connect_again(u);
    case CHECK_STEP_CLOSE:
        check_link_close(&u->link);
        return 0;
    case CHECK_STEP_STATE_GET:
        return state_get(u, &step->value);
    case CHECK_STEP_STATE_SET:
        return state_set(u, step->arg[0], 0);
    case CHECK_STEP_STATE_POST:
        return state_set(u, step->arg[0], VFMIG_USER_NO_REPLY);
    case CHECK_STEP_STATE_ASK:
        return state_ask(u, step->arg[0]);
    case CHECK_STEP_STATE_ANSWER:
        return check_link_answer(&u->link, u->base.state_ms);
    case CHECK_STEP_RESET:
        return simple(u, VFMIG_USER_RESET, NULL, 0, u->base.state_ms);
    case CHECK_STEP_DATA_READ:
        if (step->arg[0] > step->room_size)
            return -E2BIG;
        return data_read(u, step->room, (uint32_t)step->arg[0]);
    case CHECK_STEP_DATA_WRITE:
        return data_write(u, step->data, (uint32_t)step->arg[0]);
    case CHECK_STEP_REGION_READ:
    case CHECK_STEP_REGION_WRITE:
    case CHECK_STEP_REGION_POST:
        return run_access(u, step);
    case CHECK_STEP_FEATURE_GET:
    case CHECK_STEP_FEATURE_SET:
    case CHECK_STEP_FEATURE_PROBE:
        return run_feature(u, step);
    case CHECK_STEP_LOG_START:
        return log_start(u, step);
    case CHECK_STEP_LOG_STOP:
        return log_stop(u);
    case CHECK_STEP_LOG_REPORT:
        return log_report(u, step);
    case CHECK_STEP_MAP:
        return map(u, step);
    case CHECK_STEP_UNMAP:
    case CHECK_STEP_UNMAP_REPORT:
        return unmap(u, step);
    case CHECK_STEP_IRQS:
        return set_irqs(u, step);
    case CHECK_STEP_DMA_HOLD:
        u->link.hold_ms = (uint32_t)step->arg[0];
        return 0;
    case CHECK_STEP_DMA_SERVE:
        return step->arg[0] > CHECK_MAX_SERVE_MS
                   ? -EINVAL
                   : check_link_serve(&u->link, (uint32_t)step->arg[0]);
    case CHECK_STEP_COMMAND:
    case CHECK_STEP_PIECES:
        return command(u, step);
    case CHECK_STEP_CUT: {
        int r = check_link_send_part(&u->link, (uint16_t)step->arg[0], (uint32_t)step->arg[1],
                                     step->data, (uint32_t)step->arg[2]);
        check_link_close(&u->link);
        return r;
    }
    default:
        return -ENOTSUP;
    }
}

static void user_run(struct check_port *port, struct check_step *step)
{
    struct check_user *u = (struct check_user *)port;

    step->result = run(u, step);
    port->dma.open = u->link.held_count;
}

static void user_free(struct check_port *port)
{
    struct check_user *u = (struct check_user *)port;

    check_link_done(&u->link);
    check_port_done(port);
    free(u);
}

static const struct check_port_ops user_ops = {"vfio-user", user_run, user_free};

int check_user_open(const char *path, uint32_t deadline_ms, struct check_port **ret_port,
                    struct vfmig_error *reterr)
{
    struct check_user *u = calloc(1, sizeof(*u));
    int r = u ? 0 : -ENOMEM;

    if (!u)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for the checker");
    u->base.ops = &user_ops;
    u->base.deadline_ms = u->base.state_ms = deadline_ms;
    r = check_port_init(&u->base, reterr);
    if (check_link_init(&u->link, &u->base) < 0 && r == 0)
        r = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the checker");
    if (r == 0 && strlen(path) >= sizeof(u->path))
        r = vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0, "the path is too long");
    if (r == 0) {
        strcpy(u->path, path);
        r = check_user_connect(u, reterr);
    }
    if (r == 0)
        r = check_user_describe(u, reterr);
    if (r < 0) {
        user_free(&u->base);
        return r;
    }
    *ret_port = &u->base;
    return 0;
}
