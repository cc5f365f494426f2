/* SPDX-License-Identifier: BSD-3-Clause */
/* IMS and PASID handles (C71), by an extension that only servers of this project have; in both
 * dialects. */
#include <errno.h>
#include <string.h>

#include "target/user_private.h"

struct message {
    struct vfmig_user_feature_handles head;
    struct vfmig_user_handle list[VFMIG_MAX_HANDLES];
} VFMIG_PACKED;

_Static_assert(sizeof(struct vfmig_user_handle) == sizeof(struct vfmig_handle) &&
                   offsetof(struct vfmig_user_handle, value) == offsetof(struct vfmig_handle, value),
               "copied as they are");

/* Taken for one of ours, and from before there were handles, or of another make after all. One that has
 * some and refuses to say them refuses to leave Z, too. */
static bool unknown(int err)
{
    return err == -ENOTTY || err == -EINVAL || err == -EOPNOTSUPP;
}

int user_get_handles(struct vfmig_target *t, struct vfmig_handle *ret_handles, uint32_t room,
                     uint32_t *ret_count, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    struct message message = {0};
    struct vfmig_error error;
    uint32_t size = 0;

    *ret_count = 0;
    int r = u->ours ? user_settle(u, reterr) : 0; /* what is loaded is loaded */
    if (r < 0 || !u->ours)
        return r;
    r = user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_HANDLES, &message, 0, sizeof(message),
                     &size, vfmig_deadline_ns(u->opt.timeout_ns), &error);
    if (r < 0 && unknown(r) && user_refused(u, &error))
        return 0;
    if (r < 0) {
        if (reterr)
            *reterr = error;
        return r;
    }
    uint32_t count = size >= sizeof(message.head) ? message.head.count : UINT32_MAX;
    if (count > VFMIG_MAX_HANDLES || count > room ||
        size != sizeof(message.head) + count * sizeof(message.list[0]))
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "%s: its list of handles does not fit its count", t->info.name);
    memcpy(ret_handles, message.list, count * sizeof(message.list[0]));
    *ret_count = count;
    return 0;
}

int user_set_handles(struct vfmig_target *t, const struct vfmig_handle *handles, uint32_t count,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    struct message message = {.head = {.count = count}};
    uint32_t size = (uint32_t)(sizeof(message.head) + count * sizeof(message.list[0]));

    if (!u->ours || count > VFMIG_MAX_HANDLES)
        return vfmig_error_set(reterr, u->ours ? -E2BIG : -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                               u->ours ? "%s: more handles than a device has"
                                       : "%s does not know handles",
                               t->info.name);
    memcpy(message.list, handles, count * sizeof(message.list[0]));
    return user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_HANDLES, &message, size, size, NULL,
                        vfmig_deadline_ns(u->opt.timeout_ns), reterr);
}
