/* SPDX-License-Identifier: BSD-3-Clause */
/* Where metrics go: a file that is replaced when a migration begins or ends, or a socket that answers GET /metrics. */
#ifndef VFMIG_VMM_VM_METRICS_H
#define VFMIG_VMM_VM_METRICS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "vfmig/error.h"
#include "vmm/metrics.h"

struct vmm_publisher {
    char path[256], fresh[272]; /* of the file, "": none */
    int listener;               /* -1: none */
    int wake;                   /* an eventfd */
    atomic_bool ending;
    bool running;
    pthread_t thread;
    int (*print)(void *opaque, struct vfmig_buffer *out);
    void *opaque;
};

/* where: "file:PATH", "unix:PATH" or "tcp:HOST:PORT" on loopback; NULL: nowhere. print appends the
 * text; called from a thread of its own. */
int vmm_publisher_start(struct vmm_publisher *publisher, const char *where,
                        int (*print)(void *opaque, struct vfmig_buffer *out), void *opaque,
                        struct vfmig_error *reterr);
/* Something has begun or ended: the file is written soon. Any thread, at once. */
void vmm_publisher_wake(struct vmm_publisher *publisher);
/* Writes what is to be written, and ends. */
void vmm_publisher_stop(struct vmm_publisher *publisher);

#endif
