/* SPDX-License-Identifier: BSD-3-Clause */
#include "follow.h"

#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static volatile sig_atomic_t interrupts;

static void on_interrupt(int number)
{
    interrupts++;
}

void follow_catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    sigaction(SIGINT, &action, NULL);
}

struct json_object *follow_get(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;

    if (json_object_is_type(object, json_type_object))
        json_object_object_get_ex(object, name, &value);
    return value;
}

double follow_number(struct json_object *object, const char *name)
{
    return json_object_get_double(follow_get(object, name));
}

const char *follow_text(struct json_object *object, const char *name)
{
    struct json_object *value = follow_get(object, name);
    return value ? json_object_get_string(value) : "";
}

int follow_not_begun(const struct tool_usage *usage, const struct vfmig_error *err)
{
    if (err->code == -ECONNRESET)
        return tool_fail(usage, TOOL_UNRESOLVED, "lost sight of it: %s; see vfmig status", err->text);
    return tool_fail(usage, err->code == -EINVAL ? TOOL_USAGE : TOOL_FAILED, "%s", err->text);
}

int follow_add_compression(const char *text, struct json_object *args, struct vfmig_error *reterr)
{
    uint64_t level = 0;

    json_object_object_add(args, "multifd-compression", json_object_new_string(text ? "zstd" : "none"));
    if (!text || !strcmp(text, "zstd"))
        return 0;
    if (strncmp(text, "zstd:", 5) || tool_parse_number(text + 5, &level) || level < 1 || level > 19)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "--compress: '%s' is neither zstd nor zstd:LEVEL, with a level of 1 to 19",
                               text);
    json_object_object_add(args, "multifd-zstd-level", json_object_new_uint64(level));
    return 0;
}

int follow_fail(const struct tool_usage *usage, enum tool_exit code, struct json_object *status,
                const char *why)
{
    const char *path = follow_text(follow_get(status, "x-vfmig"), "flight-recorder");

    return tool_fail(usage, code, "%s%s%s", why, *path ? "; what led to it: vfmig timeline " : "", path);
}

/* The exit code of what has ended. */
static int judge(const struct tool_usage *usage, struct json_object *status)
{
    const char *state = follow_text(status, "status");
    const char *why = follow_text(status, "error-desc");

    if (!strcmp(state, "completed"))
        return TOOL_OK;
    if (json_object_get_boolean(follow_get(follow_get(status, "x-vfmig"), "unresolved")))
        return tool_fail(usage, TOOL_UNRESOLVED, "%s; see vfmig status", why);
    if (!strcmp(state, "cancelled"))
        return tool_fail(usage, TOOL_CANCELLED, "cancelled; the guest is where it was");
    return follow_fail(usage, TOOL_FAILED, status, *why ? why : "it failed without a reason");
}

int follow_to_end(const struct tool_usage *usage, struct qmp_client *client, bool quiet,
                  struct json_object **ret_status)
{
    const struct timespec nap = {.tv_nsec = 50000000};
    struct vfmig_error err = {0};
    sig_atomic_t seen = 0;
    int ret = 0;

    for (unsigned tick = 1;; tick++) {
        struct json_object *status;
        if (interrupts > 1)
            return tool_fail(usage, TOOL_UNRESOLVED, "left while the cancellation was under way");
        if (interrupts > seen) {
            seen = interrupts;
            /* Too late to cancel is no failure: what happened is told below. */
            ret = qmp_execute(client, "migrate_cancel", NULL, NULL, &err);
        }
        if (!ret || ret == -EREMOTEIO)
            ret = qmp_execute(client, "query-migrate", NULL, &status, &err);
        if (ret)
            return tool_fail(usage, TOOL_UNRESOLVED, "lost sight of it: %s; see vfmig status",
                             err.text);
        const char *state = follow_text(status, "status");
        if (!strcmp(state, "completed") || !strcmp(state, "failed") || !strcmp(state, "cancelled")) {
            int code = judge(usage, status);
            if (code == TOOL_OK)
                *ret_status = status;
            else
                json_object_put(status);
            return code;
        }
        if (!quiet && tick % 40 == 0)
            fprintf(stderr, "vfmig %s: %s  %.0f MiB/s  %.0f MiB left\n", usage->command,
                    follow_text(follow_get(status, "x-vfmig"), "step"),
                    follow_number(follow_get(status, "x-vfmig"), "rate-bytes-s") / (1 << 20),
                    follow_number(follow_get(status, "ram"), "remaining") / (1 << 20));
        json_object_put(status);
        nanosleep(&nap, NULL);
    }
}
