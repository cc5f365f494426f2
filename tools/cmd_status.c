/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig status: who has the guest, from the journals of a directory. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "handover_show.h"
#include "options.h"
#include "qmp_client.h"

static const char *peer_path, *qmp_path;
static bool json, metrics;

static const struct tool_option options[] = {
    {"peer-journal", TOOL_TEXT, &peer_path, "PATH",
     "journals of the other side: a directory or a file, perhaps a copy"},
    {"json", TOOL_FLAG, &json, NULL, "print a JSON array"},
    {"metrics", TOOL_FLAG, &metrics, NULL, "print a running VMM's metrics for Prometheus, without DIR"},
    {"qmp", TOOL_TEXT, &qmp_path, "PATH", "with --metrics: the VMM's control socket"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "status",
    .operands = "DIR",
    .about = "Says for every migration in journal directory DIR who has the guest, whether its\n"
             "memory still exists, and what there is to do.",
    .options = options,
    .operand_min = 0,
    .operand_max = 1,
    .after = "exit status: 0 everything was read, 1 a journal could not be read, 2 wrong command\n"
             "  line, 5 something is left to do",
};

static void print_json(const struct vfmig_resolve_view *views, size_t count)
{
    struct json_object *array = json_object_new_array();

    for (size_t i = 0; i < count; i++)
        json_object_array_add(array, handover_json(&views[i]));
    puts(json_object_to_json_string_ext(array, JSON_C_TO_STRING_PRETTY));
    json_object_put(array);
}

static int print_metrics(void)
{
    struct json_object *answer = NULL, *text = NULL;
    struct qmp_client *client = NULL;
    struct vfmig_error error = {0};
    int ret = qmp_connect(qmp_path, &client, &error);

    if (!ret) {
        ret = qmp_execute(client, "x-vfmig-metrics", NULL, &answer, &error);
        qmp_close(client);
    }
    if (ret)
        return tool_fail(&usage, TOOL_FAILED, "%s", error.text);
    bool there = json_object_object_get_ex(answer, "text", &text);
    if (there)
        fputs(json_object_get_string(text), stdout);
    json_object_put(answer);
    if (!there || fflush(stdout) || ferror(stdout))
        return tool_fail(&usage, TOOL_FAILED, "the metrics cannot be %s", there ? "written" : "had");
    return TOOL_OK;
}

int cmd_status(int argc, char **argv)
{
    struct vfmig_resolve_view *views = NULL;
    struct vfmig_error error = {0};
    struct tool_list operands = {.count = 0};
    size_t count = 0;
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
    if (metrics != (qmp_path != NULL))
        return tool_fail(&usage, TOOL_USAGE, "--metrics and --qmp PATH go together");
    if (metrics == (operands.count == 1))
        return tool_fail(&usage, TOOL_USAGE, metrics ? "--metrics goes without DIR" : "DIR is missing");
    if (metrics)
        return print_metrics();
    if (vfmig_resolve_status(operands.items[0], peer_path, &views, &count, &error) < 0)
        return tool_fail(&usage, TOOL_FAILED, "%s", error.text);
    code = TOOL_OK;
    for (size_t i = 0; i < count; i++) {
        if (!json)
            handover_print(&views[i]);
        if (!views[i].settled && code == TOOL_OK)
            code = TOOL_UNRESOLVED;
        if (views[i].own.damage)
            code = tool_fail(&usage, TOOL_FAILED, "%s", views[i].own.error.text);
    }
    if (json)
        print_json(views, count);
    else if (!count)
        printf("no migration in %s\n", operands.items[0]);
    free(views);
    return code;
}
