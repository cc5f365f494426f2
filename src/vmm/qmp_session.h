/* SPDX-License-Identifier: BSD-3-Clause */
/* What is said on one connection of a QMP socket: bytes in, lines out. Knows no socket. */
#ifndef VFMIG_VMM_QMP_SESSION_H
#define VFMIG_VMM_QMP_SESSION_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_object;
struct json_tokener;
struct vfmig_qmp_command;

/* Inside a letter of several bytes: how many are missing, and what the next one may be. */
struct qmp_utf8 {
    uint8_t left, least, most;
};

struct qmp_session {
    const struct vfmig_qmp_command *commands;
    void *opaque;
    pthread_mutex_t *lock; /* of negotiated, closing and out */
    bool negotiated;
    bool skipping;  /* after bad input: everything up to the next newline is dropped */
    bool closing;   /* nothing more is read; over once out is empty */
    struct json_tokener *tokener;
    struct qmp_utf8 utf8;
    size_t pending; /* bytes of the object that is being parsed */
    char *out;      /* queued output */
    size_t out_size, out_room;
};

/* The greeting is queued. -ENOMEM. */
int qmp_session_begin(struct qmp_session *s, const struct vfmig_qmp_command *commands, void *opaque,
                      pthread_mutex_t *lock);
void qmp_session_end(struct qmp_session *s);

/* What came; commands are run and answered here. Ends early when the session is closing. */
void qmp_session_feed(struct qmp_session *s, const char *data, size_t size);

/* Appends one line. A client that does not read what it asked for is cut off, not remembered. With the lock. */
void qmp_session_queue(struct qmp_session *s, struct json_object *message);

#endif
