/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig resolve: settles a migration whose two sides cannot do it by themselves. */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "handover_show.h"
#include "options.h"
#include "qmp_client.h"

static const char *id_text, *role_text, *peer_path;
static bool run, fenced, refuse, discard, discard_file, file_is_gone, json;

static const struct tool_option options[] = {
    {"id", TOOL_TEXT, &id_text, "ID", "the migration; may be left out if DIR has just one open"},
    {"role", TOOL_CHOICE, &role_text, "ROLE", "the side of it, if DIR has journals of both",
     .choices = "source|destination"},
    {"peer-journal", TOOL_TEXT, &peer_path, "PATH",
     "journals of the other side: a directory or a file, perhaps a copy"},
    {"run", TOOL_FLAG, &run, NULL, "destination: run the copy that stands there"},
    {"source-is-fenced", TOOL_FLAG, &fenced, NULL,
     "with --run and no grant on record: the source is off and stays off"},
    {"refuse", TOOL_FLAG, &refuse, NULL, "destination: never run it, give the copy up"},
    {"discard", TOOL_FLAG, &discard, NULL,
     "source: give up the memory of a guest that died elsewhere"},
    {"discard-file", TOOL_FLAG, &discard_file, NULL,
     "source: give up the saved file; a guest that still stands here goes on"},
    {"file-is-gone", TOOL_FLAG, &file_is_gone, NULL,
     "with --discard-file: the file is not there, and nowhere else either"},
    {"json", TOOL_FLAG, &json, NULL, "print the result as one JSON object"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "resolve",
    .operands = "DIR",
    .about = "Settles a migration of journal directory DIR. Without --run, --refuse, --discard or\n"
             "--discard-file it does what the journals of both sides allow by themselves. A living VMM\n"
             "is asked over its control socket; the decision is put on record first.",
    .options = options,
    .operand_min = 1,
    .operand_max = 1,
    .after = "exit status: 0 settled, 1 failed, 2 wrong command line, 5 not settled yet: the text\n"
             "  says what is missing",
};

static int check_options(void)
{
    uint8_t id[VFMIG_HO_ID_BYTES];

    if (run + refuse + discard + discard_file > 1)
        return tool_fail(&usage, TOOL_USAGE,
                         "--run, --refuse, --discard and --discard-file exclude each other");
    if (file_is_gone && !discard_file)
        return tool_fail(&usage, TOOL_USAGE, "--file-is-gone goes with --discard-file");
    if (fenced && !run)
        return tool_fail(&usage, TOOL_USAGE, "--source-is-fenced goes with --run");
    if (id_text && vfmig_ho_id_parse(id_text, id) < 0)
        return tool_fail(&usage, TOOL_USAGE, "'%s' is not an id: 32 digits 0-9a-f are", id_text);
    return -1;
}

static bool wanted(const struct vfmig_resolve_view *view)
{
    uint8_t id[VFMIG_HO_ID_BYTES];
    bool source = view->own.last.role == VFMIG_HO_SOURCE;

    if (role_text && source != !strcmp(role_text, "source"))
        return false;
    if (discard_file && (!source || view->own.last.record != VFMIG_HO_RECORD_SAVED))
        return false;
    if (discard && source && view->own.last.record == VFMIG_HO_RECORD_SAVED)
        return false;
    if (id_text)
        return !vfmig_ho_id_parse(id_text, id) && !memcmp(id, view->own.last.id, sizeof(id));
    if (run || refuse)
        return !source && !view->settled;
    if (discard_file)
        return true;
    return discard ? source && view->own.last.record != VFMIG_HO_RECORD_RESUMED : !view->settled;
}

/* The one journal that is meant. NULL: none, or more than one. */
static struct vfmig_resolve_view *choose(struct vfmig_resolve_view *views, size_t count,
                                         size_t *ret_fitting)
{
    struct vfmig_resolve_view *chosen = NULL;

    *ret_fitting = 0;
    for (size_t i = 0; i < count; i++) {
        if (!wanted(&views[i]))
            continue;
        chosen = &views[i];
        ++*ret_fitting;
    }
    return *ret_fitting == 1 ? chosen : NULL;
}

static int ask_process(const struct vfmig_resolve_view *view,
                       const struct vfmig_resolve_request *request, struct vfmig_error *reterr)
{
    static const char *const decisions[VFMIG_RESOLVE_DECISION_COUNT] = {
        [VFMIG_RESOLVE_SETTLE] = "settle",
        [VFMIG_RESOLVE_RUN] = "run",
        [VFMIG_RESOLVE_REFUSE] = "refuse",
        [VFMIG_RESOLVE_DISCARD] = "discard",
    };
    const char *control = view->own.opened.text;
    struct qmp_client *client = NULL;

    if (!*control)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "process %u has the migration and no control socket on record: only "
                               "it can decide",
                               view->own.opened.pid);
    int ret = qmp_connect(control, &client, reterr);
    if (ret)
        return ret;
    struct json_object *args = json_object_new_object();
    char id[2 * VFMIG_HO_ID_BYTES + 1];
    vfmig_ho_id_format(view->own.last.id, id);
    json_object_object_add(args, "id", json_object_new_string(id));
    json_object_object_add(args, "role", json_object_new_string(
        view->own.last.role == VFMIG_HO_SOURCE ? "source" : "destination"));
    json_object_object_add(args, "decision", json_object_new_string(decisions[request->decision]));
    json_object_object_add(args, "source-is-fenced", json_object_new_boolean(request->source_is_fenced));
    if (request->peer_record) {
        json_object_object_add(args, "peer-record", json_object_new_int(request->peer_record));
        json_object_object_add(args, "peer-epoch", json_object_new_int64(request->peer_epoch));
        json_object_object_add(args, "peer-memory", json_object_new_boolean(request->peer_memory));
    }
    ret = qmp_execute(client, "x-vfmig-resolve", args, NULL, reterr);
    qmp_close(client);
    return ret;
}

/* What was asked for is on record: a process that is through with it does not answer any more. */
static bool is_done(const struct vfmig_resolve_view *view, const struct vfmig_resolve_request *request)
{
    return (request->decision == VFMIG_RESOLVE_SETTLE && view->settled) ||
           (request->decision == VFMIG_RESOLVE_DISCARD && view->own.last.record == VFMIG_HO_RECORD_RELEASED);
}

/* Decides for the chosen journal and looks at it again. */
static int decide(const char *dir, struct vfmig_resolve_view *view, struct vfmig_error *reterr)
{
    struct vfmig_resolve_request request = {
        .decision = run       ? VFMIG_RESOLVE_RUN
                    : refuse  ? VFMIG_RESOLVE_REFUSE
                    : discard || discard_file ? VFMIG_RESOLVE_DISCARD
                              : VFMIG_RESOLVE_SETTLE,
        .source_is_fenced = fenced,
        .file_is_gone = file_is_gone,
    };

    if (view->peer_known) {
        request.peer_record = view->peer.last.record;
        request.peer_epoch = view->peer.last.epoch;
        request.peer_memory = view->peer.held;
    }
    if (!view->own.held || view->own.damage)
        return vfmig_resolve_apply(dir, view, &request, reterr);
    int ret = vfmig_resolve_check(view, &request, reterr);
    if (ret || is_done(view, &request))
        return ret;
    ret = ask_process(view, &request, reterr);
    if (ret)
        return ret;
    struct vfmig_journal_summary own;
    struct vfmig_journal_summary peer = view->peer;
    bool peer_known = view->peer_known;
    ret = vfmig_journal_read(view->own.path, &own, reterr);
    if (ret == 0)
        vfmig_resolve_judge(&own, peer_known ? &peer : NULL, view);
    return ret;
}

static int show(const struct vfmig_resolve_view *view)
{
    if (json) {
        struct json_object *object = handover_json(view);
        puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY));
        json_object_put(object);
    } else {
        handover_print(view);
    }
    return view->settled ? TOOL_OK : TOOL_UNRESOLVED;
}

/* The attempt that the source is at, if its journals are at hand; 0: unknown. */
static uint32_t epoch_of(const uint8_t *id)
{
    struct vfmig_resolve_view *views = NULL;
    uint32_t epoch = 0;
    size_t count = 0;

    if (!peer_path || vfmig_resolve_status(peer_path, NULL, &views, &count, NULL) < 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (!memcmp(views[i].own.last.id, id, VFMIG_HO_ID_BYTES))
            epoch = views[i].own.last.epoch;
    free(views);
    return epoch;
}

static int nothing_chosen(const char *dir, size_t fitting)
{
    struct vfmig_error error = {0};
    uint8_t id[VFMIG_HO_ID_BYTES];

    if (fitting)
        return tool_fail(&usage, TOOL_USAGE,
                         "%zu journals of %s fit; choose with --id and --role (see vfmig status)",
                         fitting, dir);
    if (!refuse || !id_text) {
        if (discard_file)
            return tool_fail(&usage, TOOL_FAILED, "no guest of %s is in a file", dir);
        if (!id_text && !run && !refuse && !discard) {
            printf(json ? "{}\n" : "nothing to settle in %s\n", dir);
            return TOOL_OK;
        }
        return tool_fail(&usage, TOOL_FAILED,
                         id_text ? "no such migration in %s" : "no migration in %s waits for such a decision", dir);
    }
    vfmig_ho_id_parse(id_text, id);
    if (vfmig_resolve_refuse_unknown(dir, id, epoch_of(id), &error) < 0)
        return tool_fail(&usage, TOOL_FAILED, "%s", error.text);
    printf(json ? "{}\n" : "refused: this destination never saw that migration and never will\n");
    return TOOL_OK;
}

int cmd_resolve(int argc, char **argv)
{
    struct vfmig_resolve_view *views = NULL;
    struct vfmig_error error = {0};
    struct tool_list operands = {.count = 0};
    size_t count = 0, fitting = 0;
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code < 0)
        code = check_options();
    if (code >= 0)
        return code;
    const char *dir = operands.items[0];
    if (vfmig_resolve_status(dir, peer_path, &views, &count, &error) < 0)
        return tool_fail(&usage, TOOL_FAILED, "%s", error.text);
    struct vfmig_resolve_view *view = choose(views, count, &fitting);
    if (!view)
        code = nothing_chosen(dir, fitting);
    else if (decide(dir, view, &error) < 0)
        code = tool_fail(&usage, TOOL_FAILED, "%s", error.text);
    else
        code = show(view);
    free(views);
    return code;
}
