/* SPDX-License-Identifier: BSD-3-Clause */
/* A device by its address, whoever serves it. */
#ifndef VFMIG_TARGET_OPEN_H
#define VFMIG_TARGET_OPEN_H

#include "target/user.h"

/* "vfio:PATH" and "vfio-group:N:NAME" (target/kernel.h), else the socket of a vfio-user server, as
 * PATH, "unix:PATH" or "vfio-user:PATH". Of the options a kernel device uses dialect, timeouts,
 * incoming and late_load: it has no DMA by message. */
int vfmig_open_address(const char *address, const struct vfmig_user_options *options,
                       struct vfmig_target **ret_target, struct vfmig_error *reterr);

#endif
