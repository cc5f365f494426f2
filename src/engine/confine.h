/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads that read what a stranger may have sent give up what they do not need for it. Only the calling
 * thread is concerned, and for good. */
#ifndef VFMIG_ENGINE_CONFINE_H
#define VFMIG_ENGINE_CONFINE_H

#include "vfmig/error.h"

/* From now on no file can be opened by name (-EACCES) and, from version 4 of Landlock on, no TCP address
 * bound or reached, whatever the rights of the process. -ENOTSUP where the kernel has none. */
int vfmig_confine_files(struct vfmig_error *reterr);

/* From now on system calls that receiving has no use for are refused (-EPERM): files, processes, new
 * sockets, new code. What is open stays open. By seccomp, on x86-64; -ENOTSUP elsewhere. */
int vfmig_confine_calls(struct vfmig_error *reterr);

/* Both, and no capabilities; Landlock only where this kernel has it. What could not be had is told. */
int vfmig_confine(struct vfmig_error *reterr);

/* Whether vfmig_confine() works here: in a thread that is over afterwards. */
int vfmig_confine_check(struct vfmig_error *reterr);

/* For the deliberate fault "stray-call": opens a file where that must be refused. -EACCES when it was not. */
int vfmig_confine_stray(struct vfmig_error *reterr);

#endif
