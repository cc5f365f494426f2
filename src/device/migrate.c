/* SPDX-License-Identifier: BSD-3-Clause */
/* Carries out what the device machine decides (core/dev.h), and speaks the feature dialect. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

int migrate_init(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    const struct vfmig_device_config *c = &dev->config;
    uint32_t features = VFMIG_FEATURE_STOP_COPY | (c->no_ndma ? 0 : VFMIG_FEATURE_NDMA);

    if (!c->no_precopy && dev->ops.save_precopy)
        features |= VFMIG_FEATURE_PRE_COPY;
    dev->features = dev->ops.save && dev->ops.load ? features : 0;
    int r = vfmig_dev_init(&dev->mig, features, c->drain_timeout_ns);
    if (r == 0)
        r = vfmig_window_init(&dev->window, DATA_OFFSET, c->window_bytes, c->window_count);
    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_LOCAL, 0, "no such device is possible");
    return 0;
}

/* ---- actions --------------------------------------------------------------------------------- */

static void tell_gate(struct vfmig_device *dev, bool open)
{
    if (dev->gate_told == open)
        return;
    dev->gate_told = open;
    if (dev->ops.gate)
        dev->ops.gate(dev->user, open);
}

/* -EINPROGRESS: the device has taken a handle. */
static int device_reset(struct vfmig_device *dev)
{
    later_cancel_accesses(dev);
    for (unsigned i = 0; i < VFMIG_DEVICE_TIMERS; i++)
        dev->timers[i] = UINT64_MAX;
    handle_reset(dev);
    if (dev->ops.reset)
        dev->ops.reset(dev->user);
    return later_taken(dev, LATER_CALL) ? -EINPROGRESS : 0;
}

static int save_begin(struct vfmig_device *dev, bool running)
{
    if (!running && dev->window.mode == VFMIG_WINDOW_SAVE && dev->stream.enc.sequence &&
        vfmig_sabotage("final-phase-too-late"))
        return -EIO;
    if (running && (atomic_load(&dev->gate) & GATE_COUNT) && vfmig_sabotage("precopy-waits-for-dma"))
        return -EBUSY;
    return dev->ops.save_begin ? dev->ops.save_begin(dev->user, running) : 0;
}

static int load_end(struct vfmig_device *dev)
{
    int r = stream_finish(dev);

    if (r == 0)
        r = handle_check(dev);
    if (r < 0 || !dev->ops.load_end)
        return r;
    return dev->ops.load_end(dev->user);
}

/* Begins a call; -EINPROGRESS: its end comes later. */
static int call_device(struct vfmig_device *dev, enum vfmig_dev_call call)
{
    switch (call) {
    case VFMIG_DEV_CALL_END_STREAM:
        if (dev->ops.save_end)
            dev->ops.save_end(dev->user);
        return 0;
    case VFMIG_DEV_CALL_STOP:
        return dev->ops.stop ? dev->ops.stop(dev->user) : 0;
    case VFMIG_DEV_CALL_LOAD:
        return load_end(dev);
    case VFMIG_DEV_CALL_SELF_RESET:
        if (vfmig_sabotage("resume-resets-pci"))
            pci_reset(dev);
        if (vfmig_sabotage("resume-needs-reset"))
            return 0;
        return device_reset(dev);
    case VFMIG_DEV_CALL_CAPTURE:
        return save_begin(dev, false);
    case VFMIG_DEV_CALL_START:
        return dev->ops.start ? dev->ops.start(dev->user) : 0;
    case VFMIG_DEV_CALL_PRECOPY_START:
        return save_begin(dev, true);
    case VFMIG_DEV_CALL_RESET:
        COUNT(dev, resets);
        if (!dev->keep_pci)
            pci_reset(dev);
        dev->keep_pci = false;
        log_client_reset(dev);
        if (vfmig_sabotage("irq-lost-after-load"))
            dev->stream.library_loaded = false;
        if (vfmig_sabotage("save-once"))
            dev->stream.enc.last_kind = 0;
        if (!vfmig_sabotage("doorbells-survive-reset"))
            doorbell_drop(dev);
        return vfmig_sabotage("reset-keeps-device") ? 0 : device_reset(dev);
    case VFMIG_DEV_CALL_NONE:
    case VFMIG_DEV_CALL_COUNT:
        break;
    }
    return -EINVAL;
}

/* What follows from a call that has ended. */
static int call_done(struct vfmig_device *dev, enum vfmig_dev_call call, ssize_t result)
{
    int r = result < 0 ? (int)result : 0;

    switch (call) {
    case VFMIG_DEV_CALL_LOAD:
        dev->session.loaded = r == 0;
        if (r == 0)
            stream_loaded(dev);
        return r;
    case VFMIG_DEV_CALL_SELF_RESET:
        irq_drop(dev); /* pending causes are internal state, and come with the data */
        return 0;
    case VFMIG_DEV_CALL_RESET:
        return 0; /* may not fail */
    default:
        return r;
    }
}

/* As act. */
static bool act_call(struct vfmig_device *dev, const struct vfmig_dev_action *action, int *ret_err)
{
    later_begin(dev, LATER_CALL); /* a call that is still open is over: a reset has ended it */
    ssize_t r = later_end(dev, LATER_CALL, call_device(dev, action->call));
    dev->call = r == -EINPROGRESS ? action->call : VFMIG_DEV_CALL_NONE;
    dev->call_token = action->token;
    if (r == -EINPROGRESS)
        COUNT(dev, answered_later);
    if (r == -EINPROGRESS && !vfmig_sabotage("later-at-once"))
        return false;
    *ret_err = call_done(dev, action->call, r == -EINPROGRESS ? 0 : r);
    return true;
}

static bool drained(struct vfmig_device *dev)
{
    return (atomic_load(&dev->gate) & GATE_COUNT) == 0 || vfmig_sabotage("no-drain") ||
           vfmig_sabotage("dma-hurried");
}

/* Carries out one action. True when it is awaited and ended already, with *ret_err. */
static bool act(struct vfmig_device *dev, const struct vfmig_dev_action *action, int *ret_err)
{
    switch (action->type) {
    case VFMIG_DEV_ACT_FLUSH:
        /* Done: one socket is in order, and see control_before and migrate_event. */
        return false;
    case VFMIG_DEV_ACT_GATE_SHUT:
        dma_gate_shut(dev);
        tell_gate(dev, false);
        *ret_err = 0;
        if (drained(dev))
            return true;
        dev->drain_token = action->token;
        COUNT(dev, drains_waited);
        return false;
    case VFMIG_DEV_ACT_DRAIN_ABORT:
        message_abort(dev, -EINTR);
        return false;
    case VFMIG_DEV_ACT_GATE_CUT:
        dma_gate_cut(dev);
        dev->gate_told = false; /* the device is about to be reset */
        return false;
    case VFMIG_DEV_ACT_GATE_OPEN:
        dma_gate_open(dev);
        tell_gate(dev, true);
        return false;
    case VFMIG_DEV_ACT_IRQ_LATCH:
        irq_latch(dev, true);
        return false;
    case VFMIG_DEV_ACT_IRQ_DELIVER:
        irq_latch(dev, false);
        return false;
    case VFMIG_DEV_ACT_IRQ_DROP:
        irq_drop(dev);
        return false;
    case VFMIG_DEV_ACT_CALL:
        return act_call(dev, action, ret_err);
    case VFMIG_DEV_ACT_STREAM_SAVE:
        if (vfmig_devstream_sealed_end(&dev->stream.enc) && dev->window.mode == VFMIG_WINDOW_SAVE &&
            vfmig_sabotage("dev-same-state-restarts"))
            return false;
        stream_save_begin(dev);
        return false;
    case VFMIG_DEV_ACT_STREAM_LOAD:
        stream_load_begin(dev);
        return false;
    case VFMIG_DEV_ACT_STREAM_DROP:
        stream_drop(dev);
        return false;
    case VFMIG_DEV_ACT_REPLY:
        server_answer(dev, action->id, action->err);
        return false;
    case VFMIG_DEV_ACT_RELEASED: /* C45 */
        dev->releasing = false;
        server_listen_again(dev, &dev->owner);
        return false;
    case VFMIG_DEV_ACT_INVALID:
    case VFMIG_DEV_ACT_COUNT:
        break;
    }
    return false;
}

static void step(struct vfmig_device *dev, struct vfmig_dev_event event)
{
    struct vfmig_dev_actions actions;
    bool again = true;

    while (again) {
        again = false;
        vfmig_dev_step(&dev->mig, &event, vfmig_device_now_ns(), &actions);
        for (uint32_t i = 0; i < actions.count; i++) {
            int err = 0;
            if (act(dev, &actions.list[i], &err)) {
                event = (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_STEP_DONE,
                                                 .token = actions.list[i].token,
                                                 .err = err};
                again = true;
            }
        }
    }
    server_rearm(dev);
}

void migrate_event(struct vfmig_device *dev, enum vfmig_dev_event_type type, uint32_t value,
                   uint64_t id)
{
    bool writes = type == VFMIG_DEV_EVENT_WRITE_V1 || type == VFMIG_DEV_EVENT_SET_V2;

    /* Before the machine looks: it may have stopped the device by the time it says FLUSH. */
    if (writes && !vfmig_sabotage("doorbells-not-first"))
        doorbell_flush(dev);
    step(dev, (struct vfmig_dev_event){.type = type, .value = value, .id = id});
}

void migrate_call_done(struct vfmig_device *dev, ssize_t result)
{
    enum vfmig_dev_call call = dev->call;

    dev->call = VFMIG_DEV_CALL_NONE;
    step(dev, (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_STEP_DONE,
                                       .token = dev->call_token,
                                       .err = call_done(dev, call, result)});
}

static void answer_unmaps(struct vfmig_device *dev)
{
    for (unsigned i = 0; dev->pending_unmaps && i < VFMIG_MAX_PENDING; i++) {
        struct pending *p = &dev->pending[i];
        if (p->client && p->unmap && !message_touches(dev, p->iova, p->size))
            server_answer(dev, (uint64_t)p->serial * VFMIG_MAX_PENDING + i, 0);
    }
}

void migrate_poll(struct vfmig_device *dev)
{
    if (dev->drain_token && drained(dev)) {
        uint32_t token = dev->drain_token;
        dev->drain_token = 0;
        step(dev, (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_STEP_DONE, .token = token});
    }
    later_poll(dev);
    answer_unmaps(dev);
    control_poll(dev);
}

enum vfmig_state vfmig_device_get_state(const struct vfmig_device *dev)
{
    return vfmig_dev_state(&dev->mig);
}

/* ---- the feature dialect --------------------------------------------------------------------- */

int feature_reply(struct client *c, struct vfmig_user_msg *msg, const void *data, uint32_t size)
{
    struct vfmig_user_feature head;

    memcpy(&head, msg->payload, sizeof(head));
    if (head.argsz < sizeof(head) + size)
        return -EINVAL;
    head.argsz = (uint32_t)sizeof(head) + size;
    return server_reply(c, &msg->header, &head, sizeof(head), data, size, NULL, 0);
}

static int set_state(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_feature_state state;
    uint64_t id;
    uint32_t echo = sizeof(struct vfmig_user_feature) + sizeof(state);

    memcpy(&state, msg->payload + sizeof(struct vfmig_user_feature), sizeof(state));
    if (park_loads(dev) || !server_defer(c, &msg->header, msg->payload, echo, &id))
        return -EBUSY;
    migrate_event(dev, VFMIG_DEV_EVENT_SET_V2, state.device_state, id);
    return 0;
}

static int feature_state(struct client *c, struct vfmig_user_msg *msg, bool set)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_feature_state state = {vfmig_dev_state(&dev->mig), UINT32_MAX};
    return set ? set_state(c, msg) : feature_reply(c, msg, &state, sizeof(state));
}

/* Which operations a feature has: what PROBE asks. 0: no such feature here. */
static uint32_t feature_ops(const struct client *c, uint32_t feature)
{
    const struct vfmig_device *dev = c->dev;

    if (!dev->features)
        return 0;
    switch (feature) {
    case VFMIG_USER_F_MIGRATION:
        return VFMIG_USER_FEATURE_GET;
    case VFMIG_USER_F_LOG_REPORT:
        return dev->config.no_dma_log ? 0 : VFMIG_USER_FEATURE_GET;
    case VFMIG_USER_F_DATA_SIZE:
        return dev->ops.left ? VFMIG_USER_FEATURE_GET : 0;
    case VFMIG_USER_F_DEVICE_STATE:
    case VFMIG_USER_F_HANDLES:
        return VFMIG_USER_FEATURE_GET | VFMIG_USER_FEATURE_SET;
    case VFMIG_USER_F_LOG_START:
    case VFMIG_USER_F_LOG_STOP:
        return dev->config.no_dma_log ? 0 : VFMIG_USER_FEATURE_SET;
    case VFMIG_USER_F_PRECOPY_INFO:
        return dev->features & VFMIG_FEATURE_PRE_COPY ? VFMIG_USER_FEATURE_GET : 0;
    case VFMIG_USER_F_WINDOW_READ:
        return c->window.map ? VFMIG_USER_FEATURE_GET : 0;
    case VFMIG_USER_F_WINDOW_WRITE:
        return c->window.map ? VFMIG_USER_FEATURE_SET : 0;
    default:
        return control_feature_ops(c, feature);
    }
}

/* MIG_DATA_READ and MIG_DATA_WRITE with the bytes in the shared window; same states, same rules. */
static int window_access(struct client *c, struct vfmig_user_msg *msg, bool write)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_window_message message;
    const struct vfmig_user_feature_window *place = &message.place;

    memcpy(&message, msg->payload, sizeof(message));
    if (message.head.argsz < sizeof(message))
        return -EINVAL; /* before anything is taken out of the stream */
    if (write ? !vfmig_dev_loading(&dev->mig) : !vfmig_dev_saving(&dev->mig))
        return -EINVAL;
    if ((place->offset > c->window.size || place->size > c->window.size - place->offset) &&
        !vfmig_sabotage("window-bounds-unchecked"))
        return -EINVAL;
    int r = park_check(dev);
    if (r < 0)
        return r;
    uint8_t *at = c->window.map + place->offset;
    if (write) {
        COUNT(dev, windows_loaded);
        r = stream_write(dev, at, place->size, /* shared= */ true);
        if (r == -EINPROGRESS)
            return park_write(c, msg, at, place->size);
        return r < 0 ? r : server_reply(c, &msg->header, &message, sizeof(message), NULL, 0, NULL, 0);
    }
    ssize_t n = stream_read(dev, at, place->size, /* shared= */ true);
    if (park_is_short(dev, n, place->size))
        return park_window_read(c, msg, n, place->size);
    if (n < 0)
        return (int)n;
    COUNT(dev, windows_filled);
    message.place.size = (uint32_t)n;
    message.head.argsz = sizeof(message);
    return server_reply(c, &msg->header, &message, sizeof(message), NULL, 0, NULL, 0);
}

/* As VFIO_MIG_GET_PRECOPY_INFO: only while there is pre-copy data to speak of. */
static int get_precopy_info(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_user_feature_precopy info = {0};

    if (!vfmig_dev_precopying(&c->dev->mig) && !vfmig_sabotage("precopy-info-anywhere"))
        return -EINVAL;
    info.initial_bytes = vfmig_sabotage("precopy-info-stays") ? 4096 : 0;
    info.dirty_bytes = stream_left(c->dev);
    return feature_reply(c, msg, &info, sizeof(info));
}

int migrate_feature(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_feature head;

    memcpy(&head, msg->payload, sizeof(head));
    uint32_t feature = head.flags & VFMIG_USER_FEATURE_MASK;
    uint32_t asked = head.flags & (VFMIG_USER_FEATURE_GET | VFMIG_USER_FEATURE_SET);
    uint32_t ops = feature_ops(c, feature);
    bool set = asked == VFMIG_USER_FEATURE_SET;

    if (!ops)
        return -ENOTTY;
    if ((asked & ~ops) && vfmig_sabotage("feature-takes-anything"))
        return server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
    if (asked & ~ops)
        return -EINVAL;
    if (head.flags & VFMIG_USER_FEATURE_PROBE)
        return server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
    switch (feature) {
    case VFMIG_USER_F_MIGRATION: {
        struct vfmig_user_feature_migration flags = {
            dev->features | (vfmig_sabotage("flags-unknown") ? 1u << 20 : 0)};
        return feature_reply(c, msg, &flags, sizeof(flags));
    }
    case VFMIG_USER_F_DATA_SIZE: {
        struct vfmig_user_feature_data_size data = {
            vfmig_sabotage("data-size-nothing") ? 0 : stream_final_size(dev)};
        return feature_reply(c, msg, &data, sizeof(data));
    }
    case VFMIG_USER_F_DEVICE_STATE:
        return feature_state(c, msg, set);
    case VFMIG_USER_F_HANDLES:
        return handle_feature(c, msg, set);
    case VFMIG_USER_F_PRECOPY_INFO:
        return get_precopy_info(c, msg);
    case VFMIG_USER_F_WINDOW_READ:
    case VFMIG_USER_F_WINDOW_WRITE:
        return window_access(c, msg, set);
    case VFMIG_USER_F_LOG_START:
    case VFMIG_USER_F_LOG_STOP:
    case VFMIG_USER_F_LOG_REPORT:
        return log_feature(c, msg, feature, set);
    default:
        return control_feature(c, msg, feature, set);
    }
}

int migrate_data_read(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_mig_data req;

    memcpy(&req, msg->payload, sizeof(req));
    if (!dev->features)
        return -EOPNOTSUPP;
    if (!vfmig_dev_saving(&dev->mig) &&
        (vfmig_sabotage("data-read-anywhere") ||
         (vfmig_dev_bits(&dev->mig) == 0 && dev->stream.enc.sequence &&
          !vfmig_devstream_sealed_end(&dev->stream.enc) && vfmig_sabotage("session-outlives-save")))) {
        req.size = 0;
        req.argsz = sizeof(req);
        return server_reply(c, &msg->header, &req, sizeof(req), NULL, 0, NULL, 0);
    }
    if (!vfmig_dev_saving(&dev->mig))
        return -EINVAL;
    if (req.size > c->reply_room)
        return -E2BIG;
    int r = park_check(dev);
    if (r < 0)
        return r;
    COUNT(dev, data_messages);
    ssize_t n = stream_read(dev, c->reply, req.size, /* shared= */ false);
    if (park_is_short(dev, n, req.size))
        return park_read(c, msg, n, req.size);
    if (n < 0)
        return (int)n;
    req.size = (uint32_t)n;
    req.argsz = (uint32_t)sizeof(req) + req.size;
    return server_reply(c, &msg->header, &req, sizeof(req), c->reply, req.size, NULL, 0);
}

int migrate_data_write(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    const struct vfmig_user_mig_data *req = (const void *)msg->payload;

    if (!dev->features)
        return -EOPNOTSUPP;
    if (!vfmig_dev_loading(&dev->mig))
        return -EINVAL;
    int r = park_check(dev);
    if (r < 0)
        return r;
    COUNT(dev, data_messages);
    r = stream_write(dev, msg->payload + sizeof(*req), req->size, /* shared= */ false);
    if (r == -EINPROGRESS)
        return park_write(c, msg, msg->payload + sizeof(*req), req->size);
    return r < 0 ? r : server_reply(c, &msg->header, NULL, 0, NULL, 0, NULL, 0);
}
