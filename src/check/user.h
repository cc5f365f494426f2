/* SPDX-License-Identifier: BSD-3-Clause */
/* The vfio-user port: its state, for user.c (steps) and user_setup.c (what the device is). */
#ifndef VFMIG_CHECK_USER_H
#define VFMIG_CHECK_USER_H

#include "check/link.h"

#define CHECK_CAREFUL_BYTES 32768u /* some servers read a request with one recv */

struct check_user {
    struct check_port base;
    struct check_link link;
    char path[108];
};

/* Connects, VERSION, twin socket. */
int check_user_connect(struct check_user *u, struct vfmig_error *reterr);
/* Fills base.facts: regions, interrupts, dialects, features. */
int check_user_describe(struct check_user *u, struct vfmig_error *reterr);

/* DEVICE_FEATURE: size bytes of data go, up to room come back. Bytes, or a negative errno. */
int check_user_feature(struct check_user *u, uint32_t flags, const void *data, uint32_t size,
                       void *room, uint32_t room_size, uint32_t deadline_ms);
int check_user_region(struct check_user *u, uint32_t region, uint64_t offset, void *read_to,
                      const void *write_from, uint32_t size, uint32_t flags, uint32_t deadline_ms);

#endif
