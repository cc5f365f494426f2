/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/fds.h"

#include <unistd.h>

void vfmig_fds_close(struct vfmig_fds *fds)
{
    for (uint32_t i = 0; i < fds->count; i++)
        if (fds->fd[i] >= 0)
            close(fds->fd[i]);
    fds->count = 0;
}
