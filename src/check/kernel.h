/* SPDX-License-Identifier: BSD-3-Clause */
/* The kernel ports, "vfio:" and "vfio-group:". */
#ifndef VFMIG_CHECK_KERNEL_H
#define VFMIG_CHECK_KERNEL_H

#include "check/port.h"
#include "target/kernel.h"

int check_kernel_open(const char *rest, uint32_t deadline_ms, struct check_port **ret_port,
                      struct vfmig_error *reterr);
int check_kernel_group_open(const char *rest, uint32_t deadline_ms, struct check_port **ret_port,
                            struct vfmig_error *reterr);

/* Which kernel is asked by ports opened from now on; NULL: the real one. For tests. */
void check_kernel_use(const struct vfmig_kernel_calls *calls, void *opaque);

#endif
