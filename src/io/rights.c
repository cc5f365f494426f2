/* SPDX-License-Identifier: BSD-3-Clause */
#include "io/rights.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void vfmig_rights_put(struct msghdr *msg, struct vfmig_rights *room, const struct vfmig_fds *fds)
{
    size_t bytes = fds->count * sizeof(int);

    memset(room, 0, sizeof(*room));
    msg->msg_control = room->bytes;
    msg->msg_controllen = CMSG_SPACE(bytes);
    struct cmsghdr *head = CMSG_FIRSTHDR(msg);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(head), fds->fd, bytes);
}

void vfmig_rights_expect(struct msghdr *msg, struct vfmig_rights *room)
{
    msg->msg_control = room->bytes;
    msg->msg_controllen = sizeof(room->bytes);
}

static int take(const struct cmsghdr *head, struct vfmig_fds *fds)
{
    size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int ret = 0;

    for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(head) + i * sizeof(fd), sizeof(fd));
        if (fds->count < VFMIG_MAX_MSG_FDS) {
            fds->fd[fds->count++] = fd;
        } else {
            close(fd);
            ret = -EPROTO;
        }
    }
    return ret;
}

int vfmig_rights_take(struct msghdr *msg, struct vfmig_fds *fds)
{
    int ret = msg->msg_flags & MSG_CTRUNC ? -EPROTO : 0; /* the kernel closed some */

    for (struct cmsghdr *head = CMSG_FIRSTHDR(msg); head; head = CMSG_NXTHDR(msg, head))
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && take(head, fds))
            ret = -EPROTO;
    return ret;
}
