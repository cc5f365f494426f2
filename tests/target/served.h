/* SPDX-License-Identifier: BSD-3-Clause */
/* A toy device behind a real server thread, for tests of the client. */
#ifndef VFMIG_TESTS_TARGET_SERVED_H
#define VFMIG_TESTS_TARGET_SERVED_H

#include <pthread.h>

#include "target/user.h"
#include "toy.h"

struct served {
    char path[64];
    struct toy *toy;
    pthread_t thread;
};

/* Makes a directory under /tmp for the sockets; removes it. */
int served_setup(void **state);
int served_teardown(void **state);

/* A path in that directory that nobody uses yet. */
void served_path(char *buf, size_t size);

void served_start(struct served *s, bool ndma, bool precopy, bool migratable);
void served_end(struct served *s);

/* Opens the device; aborts when that fails. */
struct vfmig_target *served_open(const struct served *s, enum vfmig_dialect dialect);

/* Descriptors that are open in this process. */
int open_descriptors(void);

#endif
