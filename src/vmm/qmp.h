/* SPDX-License-Identifier: BSD-3-Clause */
/* A control socket that speaks QMP (QEMU Machine Protocol, docs/interop/qmp-spec): greeting,
 * capabilities negotiation, commands, events. The commands themselves come as a table. */
#ifndef VFMIG_VMM_QMP_H
#define VFMIG_VMM_QMP_H

#include "vfmig/error.h"

struct json_object;
struct vfmig_qmp;

struct vfmig_qmp_command {
    const char *name;
    /* Arguments as "name:type" separated by commas; type s string, i integer, n number,
     * b boolean, o object, a array; a '?' after the type makes it optional. Checked before run. */
    const char *args;
    /* args is an object, perhaps empty. *ret_result may stay NULL: an empty object is answered.
     * Runs in the server's thread: it must not block for long. */
    int (*run)(void *opaque, struct json_object *args, struct json_object **ret_result,
               struct vfmig_error *reterr);
};

/* Listens on a unix socket at path (mode 0600; a stale one is replaced, a live one refused) and
 * serves up to VFMIG_MAX_QMP_CLIENTS clients in a thread. commands ends with a NULL name and must
 * outlive the server. */
int vfmig_qmp_start(const char *path, const struct vfmig_qmp_command *commands, void *opaque,
                    struct vfmig_qmp **ret_qmp, struct vfmig_error *reterr);

/* Sends an event with the current time to every negotiated client; consumes data (or NULL).
 * From any thread. */
void vfmig_qmp_event(struct vfmig_qmp *qmp, const char *name, struct json_object *data);

/* What query-version answers, and part of the greeting. */
struct json_object *vfmig_qmp_version(void);

/* Sends what is still queued if the clients take it, closes everything, removes the socket. */
void vfmig_qmp_stop(struct vfmig_qmp *qmp);

#endif
