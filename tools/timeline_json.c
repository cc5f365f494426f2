/* SPDX-License-Identifier: BSD-3-Clause */
/* The summary for programs. Times are nanoseconds from the begin of the attempt, on the source's
 * clock. */
#include <json-c/json.h>

#include "timeline.h"

static void add_ns(struct json_object *object, const char *name, int64_t ns)
{
    json_object_object_add(object, name, json_object_new_int64(ns));
}

static void add_text(struct json_object *object, const char *name, const char *text)
{
    json_object_object_add(object, name, json_object_new_string(text));
}

static struct json_object *spans_json(const struct timeline_row *row, enum timeline_layer layer)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < row->count; i++) {
        const struct timeline_span *span = &row->spans[i];
        struct json_object *object;
        if (span->layer != layer)
            continue;
        object = json_object_new_object();
        add_text(object, "name",
                 row->kind == TIMELINE_DEVICE && layer != TIMELINE_DATA ? span->look : span->label);
        add_ns(object, "begin", span->begin);
        add_ns(object, "end", span->end);
        if (span->bad)
            json_object_object_add(object, "failed", json_object_new_boolean(true));
        json_object_array_add(list, object);
    }
    return list;
}

static struct json_object *side_json(const struct timeline *t, bool source)
{
    static const char *const names[] = {[TIMELINE_STEPS] = "steps",
                                        [TIMELINE_VCPUS] = "vcpus",
                                        [TIMELINE_MEMORY] = "memory",
                                        [TIMELINE_WORK] = "works",
                                        [TIMELINE_HANDOVER] = "journal"};
    struct json_object *side = json_object_new_object(), *devices = json_object_new_array();

    for (size_t i = 0; i < t->row_count; i++) {
        const struct timeline_row *row = &t->rows[i];
        if (row->source != source)
            continue;
        if (row->kind != TIMELINE_DEVICE) {
            json_object_object_add(side, names[row->kind], spans_json(row, TIMELINE_STATE));
            continue;
        }
        struct json_object *device = json_object_new_object();
        add_text(device, "id", row->label);
        json_object_object_add(device, "states", spans_json(row, TIMELINE_STATE));
        json_object_object_add(device, "changes", spans_json(row, TIMELINE_CHANGE));
        json_object_object_add(device, "data", spans_json(row, TIMELINE_DATA));
        json_object_array_add(devices, device);
    }
    json_object_object_add(side, "devices", devices);
    return side;
}

static struct json_object *parts_json(const struct timeline *t, bool share)
{
    struct json_object *parts = json_object_new_array();

    for (size_t i = 0; i < t->part_count; i++) {
        if (t->parts[i].share != share)
            continue;
        struct json_object *part = json_object_new_object();
        add_text(part, "name", t->parts[i].name);
        add_ns(part, "ns", (int64_t)t->parts[i].ns);
        json_object_array_add(parts, part);
    }
    return parts;
}

static struct json_object *barriers_json(const struct timeline *t)
{
    struct json_object *barriers = json_object_new_array();

    for (size_t i = 0; i < t->barrier_count; i++) {
        struct json_object *barrier = json_object_new_object();
        add_text(barrier, "side", t->barriers[i].source ? "source" : "destination");
        add_text(barrier, "row", t->barriers[i].row);
        add_ns(barrier, "first", t->barriers[i].first);
        add_ns(barrier, "last", t->barriers[i].t);
        add_text(barrier, "last-device", t->barriers[i].last_id);
        json_object_array_add(barriers, barrier);
    }
    return barriers;
}

void timeline_json(const struct timeline *t, FILE *out)
{
    struct json_object *object = json_object_new_object();

    add_text(object, "id", t->id);
    add_text(object, "state", t->state);
    if (*t->failure)
        add_text(object, "failure", t->failure);
    add_ns(object, "begin", t->begin);
    add_ns(object, "end", t->end);
    if (t->stop)
        add_ns(object, "vcpus-stopping", t->stop);
    if (t->run) {
        add_ns(object, "vcpus-running", t->run);
        add_ns(object, "standstill-ns", t->run - t->stop);
        add_text(object, "runs-at", t->run_at_source ? "source" : "destination");
    }
    add_ns(object, "limit-ns", (int64_t)t->limit_ns);
    add_ns(object, "rounds", (int64_t)t->rounds);
    add_ns(object, "sent-bytes", (int64_t)t->total_bytes);
    add_ns(object, "device-bytes", (int64_t)t->device_bytes);
    json_object_object_add(object, "clocks-compared", json_object_new_boolean(t->aligned));
    add_ns(object, "clock-offset-ns", t->offset_ns);
    add_ns(object, "clock-error-ns", t->clock_error_ns);
    json_object_object_add(object, "parts", parts_json(t, false));
    json_object_object_add(object, "shares", parts_json(t, true));
    json_object_object_add(object, "barriers", barriers_json(t));
    if (t->source)
        json_object_object_add(object, "source", side_json(t, true));
    if (t->dest)
        json_object_object_add(object, "destination", side_json(t, false));
    fprintf(out, "%s\n", json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY));
    json_object_put(object);
}
