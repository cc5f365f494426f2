/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors that travel with a message. Whoever holds the struct owns them and closes them. */
#ifndef VFMIG_BASE_FDS_H
#define VFMIG_BASE_FDS_H

#include <stdint.h>

#include "base/bounds.h"

struct vfmig_fds {
    uint32_t count;               /* entries used; a taken entry is -1 */
    int fd[VFMIG_MAX_MSG_FDS];
};

/* Closes what is left and empties the struct. */
void vfmig_fds_close(struct vfmig_fds *fds);

/* Moves entry index out; -1 when there is none or it was taken already. */
static inline int vfmig_fds_take(struct vfmig_fds *fds, uint32_t index)
{
    if (index >= fds->count)
        return -1;
    int fd = fds->fd[index];
    fds->fd[index] = -1;
    return fd;
}

/* Moves everything from one struct to an empty one. */
static inline void vfmig_fds_move(struct vfmig_fds *to, struct vfmig_fds *from)
{
    *to = *from;
    from->count = 0;
}

#endif
