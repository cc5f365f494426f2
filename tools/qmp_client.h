/* SPDX-License-Identifier: BSD-3-Clause */
/* The tools' side of QMP: one connection, one command at a time, events skipped. */
#ifndef VFMIG_TOOLS_QMP_CLIENT_H
#define VFMIG_TOOLS_QMP_CLIENT_H

#include "vfmig/error.h"

struct json_object;
struct qmp_client;

/* Connects, reads the greeting, negotiates. */
int qmp_connect(const char *path, struct qmp_client **ret_client, struct vfmig_error *reterr);

/* Runs a command; consumes args (or NULL). Its answer goes to *ret_result (may be NULL), to be
 * put by the caller. An error that the VMM answers is -EREMOTEIO with the VMM's own sentence; a
 * connection that ends is -ECONNRESET. */
int qmp_execute(struct qmp_client *client, const char *command, struct json_object *args,
                struct json_object **ret_result, struct vfmig_error *reterr);

void qmp_close(struct qmp_client *client);

#endif
