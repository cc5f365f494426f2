/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors on a channel that is a unix socket. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/channel_private.h"

void vfmig_channel_put_fds(struct msghdr *msg, struct vfmig_channel_control *control,
                           const struct vfmig_fds *fds)
{
    size_t bytes = fds->count * sizeof(int);

    memset(control, 0, sizeof(*control));
    msg->msg_control = control->bytes;
    msg->msg_controllen = CMSG_SPACE(bytes);
    struct cmsghdr *head = CMSG_FIRSTHDR(msg);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(head), fds->fd, bytes);
}

/* False when there was no room for all of them; the rest is closed. */
static bool keep(struct vfmig_fds *fds, struct cmsghdr *head)
{
    size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    bool room = true;

    for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(head) + i * sizeof(fd), sizeof(fd));
        room = fds->count < VFMIG_MAX_MSG_FDS;
        if (room)
            fds->fd[fds->count++] = fd;
        else
            close(fd);
    }
    return room;
}

int vfmig_channel_keep_fds(struct vfmig_channel *channel, struct msghdr *msg,
                           struct vfmig_error *reterr)
{
    bool room = !(msg->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *head = CMSG_FIRSTHDR(msg); head; head = CMSG_NXTHDR(msg, head))
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
            room &= keep(&channel->fds, head);
    return room ? 0
                : vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, 0,
                                  "more than %u descriptors came on channel %u",
                                  VFMIG_MAX_MSG_FDS, channel->index);
}

void vfmig_channel_expect_fds(struct vfmig_channel *channel)
{
    channel->wants_fds = !channel->file;
}

void vfmig_channel_take_fds(struct vfmig_channel *channel, struct vfmig_fds *ret_fds)
{
    vfmig_fds_move(ret_fds, &channel->fds);
}
