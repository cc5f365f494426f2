/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig restore: asks a waiting VMM over QMP to take its guest out of a file. */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "follow.h"

static const char *qmp_path;
static bool clone, json, quiet;

static const struct tool_option options[] = {
    {"qmp", TOOL_TEXT, &qmp_path, "PATH", "control socket of a VMM started with --incoming defer",
     .required = true},
    {"clone", TOOL_FLAG, &clone, NULL,
     "restore it whoever else does, or did; the copy is a guest of its own"},
    {"json", TOOL_FLAG, &json, NULL, "print the result as one JSON object"},
    {"quiet", TOOL_FLAG, &quiet, NULL, "no progress"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "restore",
    .operands = "FILE",
    .about = "Restores the guest that vfmig save put into FILE in the VMM behind --qmp. The file is\n"
             "claimed for good: a guest is restored once. If it fails before the guest runs, the\n"
             "claim is given back, and FILE can be restored by another VMM, or by this one again.",
    .options = options,
    .operand_min = 1,
    .operand_max = 1,
    .after = "exit status: 0 restored, 1 failed, 2 wrong command line, 4 cancelled, 5 unknown, or\n"
             "  restored and no report could be written: see vfmig status",
};

static int start(struct qmp_client *client, const char *file, struct vfmig_error *reterr)
{
    struct json_object *args = json_object_new_object();
    char *path = realpath(file, NULL);
    char uri[8192];

    if (!path) {
        json_object_put(args);
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "cannot find %s: %s", file,
                               strerror(errno));
    }
    snprintf(uri, sizeof(uri), "file:%s", path);
    free(path);
    json_object_object_add(args, "uri", json_object_new_string(uri));
    json_object_object_add(args, "x-clone", json_object_new_boolean(clone));
    return qmp_execute(client, "migrate-incoming", args, NULL, reterr);
}

static int show(struct json_object *status, const char *file)
{
    if (json)
        puts(json_object_to_json_string_ext(status, JSON_C_TO_STRING_PRETTY));
    else if (!quiet)
        printf("restored from %s in %.2f s, %s %s\n", file, follow_number(status, "total-time") / 1e3,
               clone ? "as guest" : "guest",
               follow_text(follow_get(status, "x-vfmig"), "migration-id"));
    /* "Failed" would be taken for a file that can be restored once more. */
    if (fflush(stdout) || ferror(stdout))
        return tool_fail(&usage, TOOL_UNRESOLVED,
                         "the guest is restored, but the report cannot be written: %s; see vfmig status",
                         strerror(errno));
    return TOOL_OK;
}

int cmd_restore(int argc, char **argv)
{
    struct tool_list operands = {.count = 0};
    struct json_object *status = NULL;
    struct vfmig_error err = {0};
    struct qmp_client *client;
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
    if (clone)
        fprintf(stderr, "vfmig restore: warning: a clone: the guest of this file may run, or have "
                        "run, elsewhere; what it shares with others, its addresses and disks, is "
                        "not its own\n");
    if (qmp_connect(qmp_path, &client, &err))
        return tool_fail(&usage, TOOL_FAILED, "%s", err.text);
    follow_catch_interrupts();
    if (start(client, operands.items[0], &err))
        code = follow_not_begun(&usage, &err);
    else
        code = follow_to_end(&usage, client, quiet, &status);
    qmp_close(client);
    if (code == TOOL_OK)
        code = show(status, operands.items[0]);
    json_object_put(status);
    return code;
}
