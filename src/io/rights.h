/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors beside the bytes of a unix socket's message. */
#ifndef VFMIG_IO_RIGHTS_H
#define VFMIG_IO_RIGHTS_H

#include <sys/socket.h>

#include "base/fds.h"

/* One more than a message may have, so that excess is seen. */
struct vfmig_rights {
    _Alignas(struct cmsghdr) char bytes[CMSG_SPACE((VFMIG_MAX_MSG_FDS + 1) * sizeof(int))];
};

/* They go with the message's first byte, and stay the caller's. */
void vfmig_rights_put(struct msghdr *msg, struct vfmig_rights *room, const struct vfmig_fds *fds);

/* Before a message is received: there is room for what may come with it. */
void vfmig_rights_expect(struct msghdr *msg, struct vfmig_rights *room);

/* After it was: what came is added to *fds, and what does not fit is closed: -EPROTO. */
int vfmig_rights_take(struct msghdr *msg, struct vfmig_fds *fds);

#endif
