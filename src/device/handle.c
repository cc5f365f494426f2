/* SPDX-License-Identifier: BSD-3-Clause */
/* Handles (C71): what a guest programs into a device in place of host values. Which ones the device
 * uses is internal state and goes with the stream, in a section of the library's own; what they stand
 * for on this host is the client's, as its DMA map is, and never leaves it. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

_Static_assert(VFMIG_DEVICE_HANDLES == VFMIG_MAX_HANDLES, "what an author is told");

static bool handle_valid(uint32_t kind, uint32_t number)
{
    return kind == VFMIG_HANDLE_IMS || (kind == VFMIG_HANDLE_PASID && number <= VFMIG_PASID_MAX);
}

/* Its place in list, or count. */
static uint32_t find(const struct vfmig_user_handle *list, uint32_t count, uint32_t kind,
                     uint32_t number)
{
    uint32_t i = 0;

    while (i < count && (list[i].kind != kind || list[i].number != number))
        i++;
    return i;
}

static void take_out(struct vfmig_user_handle *list, uint32_t *count, uint32_t at)
{
    if (at < *count)
        list[at] = list[--*count];
}

int vfmig_device_handle_use(struct vfmig_device *dev, enum vfmig_handle_kind kind, uint32_t number)
{
    struct handles *h = &dev->handles;

    if (!handle_valid(kind, number))
        return -EINVAL;
    if (find(h->used, h->used_count, kind, number) < h->used_count)
        return 0;
    if (h->used_count == VFMIG_MAX_HANDLES)
        return -ENOSPC;
    h->used[h->used_count++] = (struct vfmig_user_handle){.kind = kind, .number = number};
    return 0;
}

void vfmig_device_handle_drop(struct vfmig_device *dev, enum vfmig_handle_kind kind, uint32_t number)
{
    struct handles *h = &dev->handles;

    take_out(h->used, &h->used_count, find(h->used, h->used_count, kind, number));
}

int vfmig_device_handle_value(const struct vfmig_device *dev, enum vfmig_handle_kind kind,
                              uint32_t number, uint64_t *ret_value)
{
    const struct handles *h = &dev->handles;
    uint32_t at = find(h->map, h->map_count, kind, number);

    if (find(h->used, h->used_count, kind, number) == h->used_count || at == h->map_count)
        return -ENOENT;
    *ret_value = h->map[at].value;
    return 0;
}

void handle_reset(struct vfmig_device *dev)
{
    dev->handles.used_count = 0;
}

void handle_unmap_all(struct vfmig_device *dev)
{
    dev->handles.map_count = 0;
}

int handle_check(const struct vfmig_device *dev)
{
    const struct handles *h = &dev->handles;

    for (uint32_t i = 0; i < h->used_count; i++)
        if (find(h->map, h->map_count, h->used[i].kind, h->used[i].number) == h->map_count &&
            !vfmig_sabotage("unmapped-handle-taken"))
            return -ENOENT;
    return 0;
}

/* ---- in the stream --------------------------------------------------------------------------- */

/* The number in the stream is never what stands behind it. */
struct saved_handle {
    uint32_t kind;
    uint32_t number;
};

uint32_t handle_save(const struct vfmig_device *dev, uint8_t *buf)
{
    const struct handles *h = &dev->handles;

    if (vfmig_sabotage("handles-not-declared"))
        return 0;
    for (uint32_t i = 0; i < h->used_count; i++) {
        struct saved_handle saved = {h->used[i].kind, h->used[i].number};
        uint32_t at = find(h->map, h->map_count, saved.kind, saved.number);
        if (at < h->map_count && vfmig_sabotage("host-value-saved"))
            saved.number = (uint32_t)h->map[at].value;
        memcpy(buf + i * sizeof(saved), &saved, sizeof(saved));
    }
    return h->used_count * (uint32_t)sizeof(struct saved_handle);
}

/* From another machine. A handle that load() itself has named may be among them. */
int handle_load(struct vfmig_device *dev, const uint8_t *data, uint32_t length)
{
    struct vfmig_user_handle seen[VFMIG_MAX_HANDLES];
    uint32_t count = length / (uint32_t)sizeof(struct saved_handle);

    if (length % sizeof(struct saved_handle) || count == 0 || count > VFMIG_MAX_HANDLES)
        return -EBADMSG;
    for (uint32_t i = 0; i < count; i++) {
        struct saved_handle saved;
        memcpy(&saved, data + i * sizeof(saved), sizeof(saved));
        if (!handle_valid(saved.kind, saved.number) ||
            find(seen, i, saved.kind, saved.number) < i)
            return -EBADMSG;
        seen[i] = (struct vfmig_user_handle){.kind = saved.kind, .number = saved.number};
        if (vfmig_device_handle_use(dev, saved.kind, saved.number) < 0)
            return -EBADMSG;
    }
    return 0;
}

/* ---- DEVICE_FEATURE HANDLES ------------------------------------------------------------------ */

static int get_handles(struct client *c, struct vfmig_user_msg *msg)
{
    const struct handles *h = &c->dev->handles;
    struct {
        struct vfmig_user_feature_handles head;
        struct vfmig_user_handle list[VFMIG_MAX_HANDLES];
    } VFMIG_PACKED reply = {.head.count = h->used_count};

    for (uint32_t i = 0; i < h->used_count; i++) {
        uint32_t at = find(h->map, h->map_count, h->used[i].kind, h->used[i].number);
        reply.list[i] = h->used[i];
        reply.list[i].value = at < h->map_count ? h->map[at].value : VFMIG_HANDLE_UNMAPPED;
    }
    return feature_reply(c, msg, &reply,
                         (uint32_t)(sizeof(reply.head) + h->used_count * sizeof(reply.list[0])));
}

/* All of it or nothing. */
static int set_handles(struct client *c, struct vfmig_user_msg *msg)
{
    const uint8_t *data = msg->payload + sizeof(struct vfmig_user_feature);
    struct handles next = c->dev->handles;
    struct vfmig_user_feature_handles head;
    struct vfmig_user_handle list[VFMIG_MAX_HANDLES];

    memcpy(&head, data, sizeof(head)); /* as long as it says, and within the limit: wire/check.c */
    memcpy(list, data + sizeof(head), head.count * sizeof(list[0]));
    for (uint32_t i = 0; i < head.count; i++) {
        const struct vfmig_user_handle *one = &list[i];
        bool unmaps = one->value == VFMIG_HANDLE_UNMAPPED;
        if (!handle_valid(one->kind, one->number) || find(list, i, one->kind, one->number) < i)
            return -EINVAL;
        if (one->kind == VFMIG_HANDLE_PASID && !unmaps && one->value > VFMIG_PASID_MAX)
            return -EINVAL;
        take_out(next.map, &next.map_count, find(next.map, next.map_count, one->kind, one->number));
        if (!unmaps && next.map_count == VFMIG_MAX_HANDLES)
            return -ENOSPC;
        if (!unmaps)
            next.map[next.map_count++] = *one;
    }
    c->dev->handles = next;
    return server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
}

int handle_feature(struct client *c, struct vfmig_user_msg *msg, bool set)
{
    return set ? set_handles(c, msg) : get_handles(c, msg);
}
