/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors on a channel that is a unix socket. */
#include <errno.h>

#include "engine/channel_private.h"

int vfmig_channel_keep_fds(struct vfmig_channel *channel, struct msghdr *msg,
                           struct vfmig_error *reterr)
{
    if (vfmig_rights_take(msg, &channel->fds) == 0)
        return 0;
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, 0,
                           "more than %u descriptors came on channel %u", VFMIG_MAX_MSG_FDS,
                           channel->index);
}

void vfmig_channel_expect_fds(struct vfmig_channel *channel)
{
    channel->wants_fds = !channel->file;
}

void vfmig_channel_take_fds(struct vfmig_channel *channel, struct vfmig_fds *ret_fds)
{
    vfmig_fds_move(ret_fds, &channel->fds);
}
