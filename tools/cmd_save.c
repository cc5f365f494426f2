/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig save: asks a VMM over QMP to put its guest into a file. */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "follow.h"

static const char *qmp_path, *compress;
static uint64_t bandwidth;
static bool json, quiet;

static const struct tool_option options[] = {
    {"qmp", TOOL_TEXT, &qmp_path, "PATH", "control socket of the VMM that runs the guest",
     .required = true},
    {"max-bandwidth", TOOL_SIZE, &bandwidth, "SIZE", "bytes each second at most; 0: no limit"},
    {"compress", TOOL_TEXT, &compress, "HOW", "zstd or zstd:LEVEL, 1 to 19; memory and device data"},
    {"json", TOOL_FLAG, &json, NULL, "print the result as one JSON object"},
    {"quiet", TOOL_FLAG, &quiet, NULL, "no progress"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "save",
    .operands = "FILE",
    .about = "Puts the guest of the VMM behind --qmp into FILE, which must not exist. The guest runs\n"
             "on while most of its memory is written, and then stands still: it is in the file, to\n"
             "be restored once. Ctrl-C cancels: the guest goes on and no file is left. It goes on\n"
             "here later only when the file is given up: vfmig resolve --discard-file.",
    .options = options,
    .operand_min = 1,
    .operand_max = 1,
    .after = "exit status: 0 saved, 1 failed (the guest goes on, no file is left), 2 wrong command\n"
             "  line, 4 cancelled, 5 unknown, or saved and no report could be written: see vfmig\n"
             "  status",
};

/* The VMM has a working directory of its own. */
static int start(struct qmp_client *client, const char *file, struct vfmig_error *reterr)
{
    struct json_object *args = json_object_new_object();
    char folder[4096] = "", uri[8192];

    json_object_object_add(args, "max-bandwidth", json_object_new_uint64(bandwidth));
    int ret = follow_add_compression(compress, args, reterr);
    if (ret) {
        json_object_put(args);
        return ret;
    }
    ret = qmp_execute(client, "migrate-set-parameters", args, NULL, reterr);
    if (ret)
        return ret;
    if (file[0] != '/' && !getcwd(folder, sizeof(folder)))
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "no working directory: %s",
                               strerror(errno));
    snprintf(uri, sizeof(uri), "file:%s%s%s", folder, *folder ? "/" : "", file);
    args = json_object_new_object();
    json_object_object_add(args, "uri", json_object_new_string(uri));
    return qmp_execute(client, "migrate", args, NULL, reterr);
}

static int show(struct json_object *status, const char *file)
{
    struct json_object *ours = follow_get(status, "x-vfmig");
    bool saved = !strcmp(follow_text(ours, "state"), "saved");

    if (json)
        puts(json_object_to_json_string_ext(status, JSON_C_TO_STRING_PRETTY));
    else if (!quiet)
        printf("saved to %s in %.2f s: %.0f MiB, guest %s; it stands still here\n", file,
               follow_number(status, "total-time") / 1e3,
               follow_number(follow_get(status, "ram"), "transferred") / (1 << 20),
               follow_text(ours, "migration-id"));
    if (!saved)
        return tool_fail(&usage, TOOL_UNRESOLVED, "the VMM says %s; see vfmig status",
                         follow_text(ours, "state"));
    if (fflush(stdout) || ferror(stdout))
        return tool_fail(&usage, TOOL_UNRESOLVED,
                         "the guest is saved, but the report cannot be written: %s; see vfmig status",
                         strerror(errno));
    return TOOL_OK;
}

int cmd_save(int argc, char **argv)
{
    struct tool_list operands = {.count = 0};
    struct json_object *status = NULL;
    struct vfmig_error err = {0};
    struct qmp_client *client;
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
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
