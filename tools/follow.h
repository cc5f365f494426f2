/* SPDX-License-Identifier: BSD-3-Clause */
/* Following a save or a restore of a VMM to its end. */
#ifndef VFMIG_TOOLS_FOLLOW_H
#define VFMIG_TOOLS_FOLLOW_H

#include "options.h"
#include "qmp_client.h"

struct json_object;

/* From now on an interrupt cancels, a second one leaves. */
void follow_catch_interrupts(void);

/* Asks again and again until it is over: TOOL_OK with the last answer of query-migrate in
 * *ret_status, to be put by the caller; otherwise an exit code, after its sentence. */
int follow_to_end(const struct tool_usage *usage, struct qmp_client *client, bool quiet,
                  struct json_object **ret_status);

/* What a failure to begin means: the exit code, after its sentence. Who lost the VMM meanwhile does not
 * know whether it began. */
int follow_not_begun(const struct tool_usage *usage, const struct vfmig_error *err);

/* "zstd" or "zstd:LEVEL" of --compress, NULL for none, into the arguments of migrate-set-parameters. */
int follow_add_compression(const char *text, struct json_object *args, struct vfmig_error *reterr);

/* Why it failed, and where the VMM's flight recorder has written what led to it, if it has; returns code. */
int follow_fail(const struct tool_usage *usage, enum tool_exit code, struct json_object *status,
                const char *why);

/* Members by name, whatever is missing is NULL, 0 or "". */
struct json_object *follow_get(struct json_object *object, const char *name);
double follow_number(struct json_object *object, const char *name);
const char *follow_text(struct json_object *object, const char *name);

#endif
