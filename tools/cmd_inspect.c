/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig inspect: prints a stream, also one that is cut or damaged, up to there. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "engine/inspect.h"
#include "options.h"

static bool json, quiet;

static const struct tool_option options[] = {
    {"json", TOOL_FLAG, &json, NULL, "one JSON object a line: each record, then the totals"},
    {"quiet", TOOL_FLAG, &quiet, NULL, "the totals only"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "inspect",
    .operands = "FILE",
    .about = "Prints what is in FILE: a guest put there by vfmig save, or one direction of one\n"
             "connection of a migration as it was captured; - is standard input. What is cut or\n"
             "damaged is printed up to there. Claims nothing and changes nothing.",
    .options = options,
    .operand_min = 1,
    .operand_max = 1,
    .after = "exit status: 0 whole, 1 cut, damaged or not readable (the last line says where and\n"
             "  why), 2 wrong command line",
};

static ssize_t read_fd(void *user, void *buf, size_t size)
{
    int fd = *(int *)user;
    size_t done = 0;

    while (done < size) {
        ssize_t got = read(fd, (char *)buf + done, size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

static void print_json(const struct vfmig_inspect_item *item)
{
    struct json_object *object = json_object_new_object();

    json_object_object_add(object, "offset", json_object_new_uint64(item->offset));
    json_object_object_add(object, item->log ? "log" : "record", json_object_new_string(item->name));
    json_object_object_add(object, item->log ? "number" : "sequence", json_object_new_uint64(item->sequence));
    if (!item->log)
        json_object_object_add(object, "channel", json_object_new_uint64(item->channel));
    json_object_object_add(object, "bytes", json_object_new_uint64(item->bytes));
    if (!item->known)
        json_object_object_add(object, "known", json_object_new_boolean(false));
    for (uint32_t i = 0; i < item->field_count; i++) {
        const struct vfmig_inspect_field *field = &item->fields[i];
        json_object_object_add(object, field->name, field->text ? json_object_new_string(field->text)
                                                                : json_object_new_uint64(field->number));
    }
    puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));
    json_object_put(object);
}

/* Text of several lines comes last, indented. */
static void print_lines(const char *text)
{
    while (*text) {
        int length = (int)strcspn(text, "\n");
        printf("%14s%.*s\n", "", length, text);
        text += length + (text[length] == '\n');
    }
}

static void print_item(void *user, const struct vfmig_inspect_item *item)
{
    const char *lines = NULL;

    if (quiet)
        return;
    if (json) {
        print_json(item);
        return;
    }
    printf("%12" PRIu64 "  %s%-8s %8" PRIu64 " %10u bytes", item->offset, item->log ? "log " : "",
           item->name, item->sequence, item->bytes);
    if (!item->known)
        printf("  not known here, skipped");
    for (uint32_t i = 0; i < item->field_count; i++) {
        const struct vfmig_inspect_field *field = &item->fields[i];
        if (field->text && strchr(field->text, '\n'))
            lines = field->text;
        else if (field->text)
            printf("  %s %s", field->name, field->text);
        else
            printf("  %s %" PRIu64, field->name, field->number);
    }
    putchar('\n');
    if (lines)
        print_lines(lines);
}

static const char *claim_text(const struct vfmig_inspect_totals *totals)
{
    if (!totals->log.complete.kind)
        return "incomplete: it cannot be restored";
    if (totals->log.discarded)
        return "discarded: its guest went on at the source";
    return totals->log.claim.kind ? "claimed" : "not claimed: it can be restored";
}

static void print_totals(const struct vfmig_inspect_totals *t)
{
    printf("%" PRIu64 " bytes, %" PRIu64 " records: %" PRIu64 " pages and %" PRIu64
           " of zeros in %" PRIu64 " rounds, %" PRIu64 " bytes of machine state\n",
           t->offset, t->records, t->pages, t->zero_pages, t->rounds, t->state_bytes);
    for (uint32_t i = 0; i < t->device_count; i++)
        printf("device %u: %" PRIu64 " segments, %" PRIu64 " bytes%s\n", i, t->devices[i].segments,
               t->devices[i].bytes, t->devices[i].ended ? "" : ", without an end");
    if (t->unpacked_bytes)
        printf("compressed: %" PRIu64 " bytes in %" PRIu64 "\n", t->unpacked_bytes, t->packed_bytes);
    if (t->doubtful)
        printf("pages written while they were sent, or damaged: %" PRIu64 " copies\n", t->doubtful);
    if (t->is_file)
        printf("%s\n", claim_text(t));
}

static void print_totals_json(const struct vfmig_inspect_totals *t, const struct vfmig_error *err)
{
    struct json_object *object = json_object_new_object(), *devices = json_object_new_array();
    const struct {
        const char *name;
        uint64_t number;
    } rows[] = {{"offset", t->offset}, {"records", t->records}, {"pages", t->pages},
                {"zero-pages", t->zero_pages}, {"rounds", t->rounds}, {"state-bytes", t->state_bytes},
                {"packed-bytes", t->packed_bytes}, {"unpacked-bytes", t->unpacked_bytes},
                {"doubtful", t->doubtful}};

    json_object_object_add(object, "whole", json_object_new_boolean(!err->code));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        json_object_object_add(object, rows[i].name, json_object_new_uint64(rows[i].number));
    for (uint32_t i = 0; i < t->device_count; i++) {
        struct json_object *device = json_object_new_object();
        json_object_object_add(device, "segments", json_object_new_uint64(t->devices[i].segments));
        json_object_object_add(device, "bytes", json_object_new_uint64(t->devices[i].bytes));
        json_object_object_add(device, "ended", json_object_new_boolean(t->devices[i].ended));
        json_object_array_add(devices, device);
    }
    json_object_object_add(object, "devices", devices);
    if (t->is_file)
        json_object_object_add(object, "file", json_object_new_string(claim_text(t)));
    if (err->code)
        json_object_object_add(object, "reason", json_object_new_string(err->text));
    puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));
    json_object_put(object);
}

int cmd_inspect(int argc, char **argv)
{
    static struct vfmig_inspect_totals totals;
    struct tool_list operands = {.count = 0};
    struct vfmig_error err = {0};
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
    const char *path = operands.items[0];
    bool standard = !strcmp(path, "-");
    int fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tool_fail(&usage, TOOL_FAILED, "cannot open %s: %s", path, strerror(errno));
    int ret = vfmig_inspect(read_fd, &fd, print_item, NULL, &totals, &err);
    if (!standard)
        close(fd);
    if (json)
        print_totals_json(&totals, &err);
    else
        print_totals(&totals);
    if (ret)
        return tool_fail(&usage, TOOL_FAILED, "%s at offset %" PRIu64 ": %s", path, totals.offset, err.text);
    return TOOL_OK;
}
