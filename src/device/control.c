/* SPDX-License-Identifier: BSD-3-Clause */
/* The control client: a migration engine beside a VMM that cannot migrate its devices. It has the
 * migration, the VMM (the owner) keeps the device. docs/control.md. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

/* ---- rights ---------------------------------------------------------------------------------- */

enum right {
    RIGHT_LOOK = 1,    /* descriptions, config space, device_state: nothing changes */
    RIGHT_OWN,         /* memory, interrupts, config space, doorbells */
    RIGHT_BAR,         /* the device itself */
    RIGHT_RESET,
    RIGHT_MIGRATE,     /* state, data, dirty log */
    RIGHT_SESSION,     /* what only an engine beside the VMM needs */
    RIGHT_COUNT
};

enum who {
    NOBODY = 0,
    ALWAYS,
    HOLDER, /* the control client while it has a session, else the owner */
};

static const struct {
    enum who owner, control;
} rights[RIGHT_COUNT] = {
    [RIGHT_LOOK] = {ALWAYS, ALWAYS},
    [RIGHT_OWN] = {ALWAYS, NOBODY},
    [RIGHT_BAR] = {ALWAYS, NOBODY},
    [RIGHT_RESET] = {ALWAYS, HOLDER},
    [RIGHT_MIGRATE] = {HOLDER, HOLDER},
    [RIGHT_SESSION] = {NOBODY, HOLDER},
};

static enum right region_right(const struct vfmig_user_msg *msg, bool write)
{
    struct vfmig_user_region_access access;

    memcpy(&access, msg->payload, sizeof(access));
    if (access.region == VFMIG_REGION_MIGRATION)
        return access.offset == 0 && !write ? RIGHT_LOOK : RIGHT_MIGRATE;
    if (access.region == VFMIG_REGION_CONFIG)
        return write ? RIGHT_OWN : RIGHT_LOOK;
    return RIGHT_BAR;
}

static enum right feature_right(const struct vfmig_user_msg *msg)
{
    struct vfmig_user_feature head;

    memcpy(&head, msg->payload, sizeof(head));
    if (head.flags & VFMIG_USER_FEATURE_PROBE)
        return RIGHT_LOOK;
    switch (head.flags & VFMIG_USER_FEATURE_MASK) {
    case VFMIG_USER_F_LOG_START:
    case VFMIG_USER_F_LOG_STOP:
    case VFMIG_USER_F_LOG_REPORT:
    case VFMIG_USER_F_WINDOW_READ: /* a GET that takes data out of the stream */
    case VFMIG_USER_F_WINDOW_WRITE:
        return RIGHT_MIGRATE;
    case VFMIG_USER_F_FREEZE:
    case VFMIG_USER_F_DMA_MODE:
    case VFMIG_USER_F_DIRTY_LIST:
    case VFMIG_USER_F_PENDING:
    case VFMIG_USER_F_HOLD:
    case VFMIG_USER_F_DMA_MAP_LIST:
        return RIGHT_SESSION;
    default:
        return head.flags & VFMIG_USER_FEATURE_SET ? RIGHT_MIGRATE : RIGHT_LOOK;
    }
}

static enum right right_of(const struct vfmig_user_msg *msg)
{
    switch ((enum vfmig_user_command)msg->header.command) {
    case VFMIG_USER_REGION_READ:
        return region_right(msg, false);
    case VFMIG_USER_REGION_WRITE:
        return region_right(msg, true);
    case VFMIG_USER_FEATURE:
        return feature_right(msg);
    case VFMIG_USER_DIRTY_PAGES:
    case VFMIG_USER_MIG_DATA_READ:
    case VFMIG_USER_MIG_DATA_WRITE:
        return RIGHT_MIGRATE;
    case VFMIG_USER_RESET:
        return RIGHT_RESET;
    case VFMIG_USER_DMA_MAP:
    case VFMIG_USER_DMA_UNMAP:
    case VFMIG_USER_SET_IRQS:
    case VFMIG_USER_GET_REGION_IO_FDS:
    case VFMIG_USER_REGION_WRITE_MULTI:
        return RIGHT_OWN;
    default:
        return RIGHT_LOOK;
    }
}

int control_allowed(struct client *c, const struct vfmig_user_msg *msg)
{
    const struct vfmig_device *dev = c->dev;
    bool is_owner = c == &dev->owner;
    enum right right = right_of(msg);
    enum who who = is_owner ? rights[right].owner : rights[right].control;

    if (who == ALWAYS || vfmig_sabotage("no-rights"))
        return 0;
    if (who == NOBODY)
        return -EPERM;
    if (is_owner)
        return dev->session.open ? -EBUSY : 0;
    return dev->session.open ? 0 : -ECONNABORTED;
}

/* ---- the session ----------------------------------------------------------------------------- */

static void end_session(struct vfmig_device *dev)
{
    if (!dev->session.open)
        return;
    control_set_hold(dev, false);
    dma_by_message(dev, false);
    region_drop_section(dev, &dev->session_section);
    dev->session = (struct session){.ended = true};
}

int control_join(struct client *c, const char *token)
{
    struct session *s = &c->dev->session;

    if (c == &c->dev->owner)
        return 0; /* the owner needs none */
    if (!token[0])
        return -EINVAL;
    if (s->open && !s->leaving)
        return strcmp(s->token, token) ? -EBUSY : 0;
    if (s->open)
        return -EBUSY; /* the device is still on its way back */
    *s = (struct session){.open = true};
    memcpy(s->token, token, strlen(token) + 1);
    int r = region_hand_over(c->dev);
    if (r < 0)
        end_session(c->dev);
    return r;
}

/* The client has gone and no state write is open. Before S the device goes back to R; once it has
 * stopped, nothing restarts it but whoever comes back with the token, or the owner's reset. */
static void settle(struct vfmig_device *dev)
{
    uint32_t bits = vfmig_dev_bits(&dev->mig);

    dev->session.leaving = false;
    if (!(bits & VFMIG_V1_RUNNING) && !vfmig_sabotage("control-gone-restarts"))
        return;
    if (bits != VFMIG_V1_RUNNING && !vfmig_sabotage("control-gone-stays"))
        migrate_event(dev, VFMIG_DEV_EVENT_WRITE_V1, VFMIG_V1_RUNNING, NO_REQUEST);
    log_forget(dev);
    end_session(dev);
    dev->session.ended = false;
}

void control_gone(struct vfmig_device *dev)
{
    struct session *s = &dev->session;

    s->ended = false;
    if (!s->open)
        return;
    s->leaving = true;
    control_poll(dev);
}

void control_poll(struct vfmig_device *dev)
{
    struct session *s = &dev->session;

    if (s->leaving && !vfmig_dev_busy(&dev->mig))
        settle(dev);
    if (s->frozen && !vfmig_dev_busy(&dev->mig) && !vfmig_bits_quiet(vfmig_dev_bits(&dev->mig)))
        s->frozen = false; /* it could not be frozen, or runs again */
    if (s->hold && s->loaded && vfmig_dev_mmio_allowed(&dev->mig))
        control_set_hold(dev, false);
}

void control_owner_gone(struct vfmig_device *dev)
{
    server_cancel(&dev->control);
    end_session(dev);
}

void control_owner_reset(struct vfmig_device *dev)
{
    if (!vfmig_sabotage("session-survives-reset"))
        control_owner_gone(dev);
}

static bool writes_state(const struct vfmig_user_msg *msg)
{
    struct vfmig_user_region_access access;
    struct vfmig_user_feature head;

    if (msg->header.command == VFMIG_USER_REGION_WRITE) {
        memcpy(&access, msg->payload, sizeof(access));
        return access.region == VFMIG_REGION_MIGRATION && access.offset == 0;
    }
    if (msg->header.command != VFMIG_USER_FEATURE)
        return false;
    memcpy(&head, msg->payload, sizeof(head));
    uint32_t feature = head.flags & VFMIG_USER_FEATURE_MASK;
    return (head.flags & VFMIG_USER_FEATURE_SET) &&
           (feature == VFMIG_USER_F_DEVICE_STATE || feature == VFMIG_USER_F_FREEZE);
}

void control_before(struct client *c, const struct vfmig_user_msg *msg)
{
    struct client *owner = &c->dev->owner;

    if (c == owner || !writes_state(msg) || vfmig_sabotage("control-no-flush"))
        return;
    for (unsigned i = 0; owner->socket.fd >= 0 && i < VFMIG_MAX_FLUSH_READS; i++)
        if (!client_readable(owner))
            break;
}

/* ---- held accesses --------------------------------------------------------------------------- */

int control_hold_access(struct client *c, const struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct held *h;

    if (dev->held_count == VFMIG_MAX_HELD || msg->size > sizeof(h->payload))
        return -EBUSY;
    h = &dev->held[dev->held_count++];
    h->header = msg->header;
    h->size = msg->size;
    memcpy(h->payload, msg->payload, msg->size);
    return 0;
}

void control_set_hold(struct vfmig_device *dev, bool hold)
{
    dev->session.hold = hold;
    dev->session.loaded = false;
    if (hold)
        return;
    uint32_t count = dev->held_count;
    dev->held_count = 0;
    for (uint32_t i = 0; i < count && dev->owner.socket.fd >= 0; i++) {
        struct vfmig_user_msg msg = {.header = dev->held[i].header,
                                     .payload = dev->held[i].payload,
                                     .size = dev->held[i].size};
        int r = command_handle(&dev->owner, &msg);
        if (r < 0)
            server_error(&dev->owner, &msg.header, r);
    }
    doorbell_release(dev);
}

/* ---- its features ---------------------------------------------------------------------------- */

static int set_freeze(struct client *c, struct vfmig_user_msg *msg, bool freeze)
{
    struct vfmig_device *dev = c->dev;
    uint32_t bits = vfmig_dev_bits(&dev->mig);
    uint32_t echo = sizeof(struct vfmig_user_feature) + sizeof(struct vfmig_user_feature_switch);
    uint64_t id;

    if (!(dev->features & VFMIG_FEATURE_NDMA) || !dev->config.answers_stopped)
        return -EOPNOTSUPP;
    if (freeze ? !(bits & VFMIG_V1_RUNNING) : bits >= VFMIG_V1_RESUMING && bits < VFMIG_V1_NDMA)
        return -EINVAL; /* stopped already; or Z or ERROR, which thawing does not lead out of */
    if (!server_defer(c, &msg->header, msg->payload, echo, &id))
        return -EBUSY;
    dev->session.frozen = freeze;
    migrate_event(dev, VFMIG_DEV_EVENT_WRITE_V1, freeze ? bits | VFMIG_V1_NDMA : VFMIG_V1_RUNNING,
                  id);
    return 0;
}

static int get_pending(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_user_feature_pending pending = {.vectors = c->dev->config.msix_vectors};
    uint64_t bits[VFMIG_DEVICE_VECTORS / 64];

    irq_get_pending(c->dev, bits);
    memcpy(pending.bits, bits, sizeof(bits));
    return feature_reply(c, msg, &pending, sizeof(pending));
}

static int set_pending(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_user_feature_pending pending;

    memcpy(&pending, msg->payload + sizeof(struct vfmig_user_feature), sizeof(pending));
    if (pending.reserved || pending.vectors != c->dev->config.msix_vectors)
        return -EINVAL;
    for (uint32_t v = pending.vectors; v < VFMIG_DEVICE_VECTORS; v++)
        if (pending.bits[v / 64] >> (v % 64) & 1)
            return -EINVAL;
    for (uint32_t v = 0; v < pending.vectors; v++)
        if (pending.bits[v / 64] >> (v % 64) & 1)
            vfmig_device_irq(c->dev, v);
    return server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
}

/* A reply of a list: head, then as many entries as fit argsz and what was agreed. */
static int reply_list(struct client *c, struct vfmig_user_msg *msg, uint32_t entry_size,
                      uint32_t (*fill)(struct vfmig_device *dev, uint64_t *next, void *entries,
                                       uint32_t room, bool *ret_more))
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_list list;
    } VFMIG_PACKED r;
    bool more = false;

    memcpy(&r, msg->payload, sizeof(r));
    if (r.head.argsz < sizeof(r) + entry_size)
        return -EINVAL;
    uint32_t room = r.head.argsz - (uint32_t)sizeof(r);
    room = (room < c->reply_room ? room : c->reply_room) / entry_size;
    uint64_t next = r.list.next;
    r.list.count = fill(c->dev, &next, c->reply, room, &more);
    r.list.next = next;
    r.list.more = more;
    r.head.argsz = (uint32_t)sizeof(r) + r.list.count * entry_size;
    return server_reply(c, &msg->header, &r, sizeof(r), c->reply, r.list.count * entry_size, NULL,
                        0);
}

uint32_t control_feature_ops(const struct client *c, uint32_t feature)
{
    if (c == &c->dev->owner)
        return 0;
    switch (feature) {
    case VFMIG_USER_F_FREEZE:
    case VFMIG_USER_F_DMA_MODE:
    case VFMIG_USER_F_PENDING:
    case VFMIG_USER_F_HOLD:
        return VFMIG_USER_FEATURE_GET | VFMIG_USER_FEATURE_SET;
    case VFMIG_USER_F_DIRTY_LIST:
    case VFMIG_USER_F_DMA_MAP_LIST:
        return VFMIG_USER_FEATURE_GET;
    default:
        return 0;
    }
}

int control_feature(struct client *c, struct vfmig_user_msg *msg, uint32_t feature, bool set)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_feature_switch sw = {0};

    if (set && feature != VFMIG_USER_F_PENDING)
        memcpy(&sw, msg->payload + sizeof(struct vfmig_user_feature), sizeof(sw));
    switch (feature) {
    case VFMIG_USER_F_PENDING:
        return set ? set_pending(c, msg) : get_pending(c, msg);
    case VFMIG_USER_F_DMA_MAP_LIST:
        return reply_list(c, msg, sizeof(struct vfmig_user_map_entry), dma_map_entries);
    case VFMIG_USER_F_DIRTY_LIST:
        if (dev->log.mode == LOG_OFF)
            return -EINVAL;
        return reply_list(c, msg, sizeof(struct vfmig_user_log_range), log_take_ranges);
    case VFMIG_USER_F_FREEZE:
        if (set)
            return set_freeze(c, msg, sw.value);
        sw.value = dev->session.frozen;
        break;
    case VFMIG_USER_F_DMA_MODE:
        if (set)
            dma_by_message(dev, sw.value);
        sw.value = dev->dma.all_by_message;
        break;
    default:
        if (set)
            control_set_hold(dev, sw.value);
        sw.value = dev->session.hold;
        break;
    }
    if (set)
        return server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
    return feature_reply(c, msg, &sw, sizeof(sw));
}
