/* SPDX-License-Identifier: BSD-3-Clause */
/* Calls to the system and for memory that fail where they are told to. The linker puts the calls of
 * the library through here (FAULT_POINT_CALLS in meson.build). A point is one of these calls on one
 * way through the code: the return addresses of the innermost frames. Which thread comes first
 * changes nothing about it. */
#ifndef TESTS_ENGINE_FAULT_POINT_H
#define TESTS_ENGINE_FAULT_POINT_H

#include <stdbool.h>
#include <stdint.h>

#define FAULT_POINTS 4096u

enum fault_kind {
    FAULT_FAILS = 0, /* with the error that is usual for the call */
    FAULT_SIGNAL,    /* EINTR: to be tried again */
    FAULT_SHORT,     /* one byte moves, no more */
    FAULT_LATE,      /* EAGAIN: the time limit of the socket is over */
    FAULT_EOF,       /* the other side has closed; zero bytes */
    FAULT_STAYS,     /* fails, and so does each later call of the point, until it is mended */
    FAULT_KIND_COUNT
};

struct fault_point {
    uint64_t key; /* the same in each run of one binary */
    char call[24];
    uint32_t kinds; /* bit per kind that there is for this call */
};

/* Before anything else. */
void fault_points_init(void);
/* A new run: counts begin again. From here on calls are counted, and call number `nth` (from 0) of
 * the point with this key meets the fault, once. FAULT_NOWHERE: none does. */
#define FAULT_NOWHERE 0u
void fault_points_arm(uint64_t key, enum fault_kind kind, uint32_t nth);
/* What failed goes well again. */
void fault_points_mend(void);
/* True when the fault has happened. */
bool fault_points_disarm(void);
/* What has been seen so far by this process and its children; grows, entries stay where they are.
 */
uint32_t fault_points_count(void);
const struct fault_point *fault_point(uint32_t point);
const char *fault_kind_name(enum fault_kind kind);

#endif
