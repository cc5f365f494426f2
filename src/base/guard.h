/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies from and to memory whose file belongs to a peer, who may cut it short at any time: -EFAULT
 * instead of SIGBUS. */
#ifndef VFMIG_BASE_GUARD_H
#define VFMIG_BASE_GUARD_H

#include <stddef.h>

/* Puts the handler in place; with every mapping, because somebody else may have set one since. */
void vfmig_guard_arm(void);
int vfmig_guard_copy(void *to, const void *from, size_t size);

#endif
