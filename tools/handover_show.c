/* SPDX-License-Identifier: BSD-3-Clause */
#include "handover_show.h"

#include <json-c/json.h>
#include <stdio.h>
#include <time.h>

static const char *role_name(const struct vfmig_journal_summary *side)
{
    return side->last.role == VFMIG_HO_SOURCE ? "source" : "destination";
}

static void format_time(uint64_t time_ns, char *text, size_t size)
{
    time_t seconds = (time_t)(time_ns / 1000000000u);
    struct tm parts;

    text[0] = 0;
    if (time_ns && gmtime_r(&seconds, &parts))
        strftime(text, size, "%Y-%m-%dT%H:%M:%SZ", &parts);
}

/* Records say nothing of their time when there are none. */
static const char *record_text(const struct vfmig_journal_summary *side)
{
    return side->damage ? "unreadable" : vfmig_ho_record_name(side->last.record);
}

static const char *outcome_text(const struct vfmig_resolve_view *view)
{
    return view->own.damage ? "unknown" : vfmig_ho_outcome_name(view->outcome);
}

void handover_print(const struct vfmig_resolve_view *view)
{
    const struct vfmig_journal_summary *own = &view->own;
    char id[2 * VFMIG_HO_ID_BYTES + 1], when[32];

    vfmig_ho_id_format(own->last.id, id);
    format_time(own->last.time_ns, when, sizeof(when));
    printf("%s %s: %s\n", id, role_name(own), outcome_text(view));
    printf("  record   %s, epoch %u%s%s%s\n", record_text(own), own->last.epoch, *when ? ", " : "",
           when, own->torn ? ", an unfinished record behind it was ignored" : "");
    if (own->held)
        printf("  process  %u%s%s, %s the guest's memory\n", own->opened.pid,
               *own->opened.text ? ", control " : "", own->opened.text,
               view->memory_here ? "with" : "without");
    else
        printf("  process  gone, and memory with it\n");
    if (view->peer_known)
        printf("  peer     %s, %s\n", record_text(&view->peer), view->peer.held ? "alive" : "gone");
    printf("  now      %s\n", own->damage ? own->error.text : view->now);
    if (own->last.stands && *own->last.text)
        printf("  why      %s\n", own->last.text);
    if (*view->todo)
        printf("  to do    %s\n", view->todo);
    if (view->may_start)
        printf("  start    a guest may be started afresh here\n");
}

static void add_text(struct json_object *object, const char *name, const char *text)
{
    json_object_object_add(object, name, json_object_new_string(text));
}

static void add_bool(struct json_object *object, const char *name, bool value)
{
    json_object_object_add(object, name, json_object_new_boolean(value));
}

struct json_object *handover_json(const struct vfmig_resolve_view *view)
{
    const struct vfmig_journal_summary *own = &view->own;
    struct json_object *object = json_object_new_object();
    char id[2 * VFMIG_HO_ID_BYTES + 1], when[32];

    vfmig_ho_id_format(own->last.id, id);
    format_time(own->last.time_ns, when, sizeof(when));
    add_text(object, "id", id);
    add_text(object, "role", role_name(own));
    add_text(object, "journal", own->path);
    add_text(object, "outcome", outcome_text(view));
    add_text(object, "record", record_text(own));
    json_object_object_add(object, "epoch", json_object_new_int64(own->last.epoch));
    if (*when)
        add_text(object, "time", when);
    add_bool(object, "alive", own->held);
    if (own->held) {
        json_object_object_add(object, "pid", json_object_new_int64(own->opened.pid));
        add_text(object, "control", own->opened.text);
    }
    add_bool(object, "memory", view->memory_here);
    if (view->peer_known) {
        add_text(object, "peer-record", record_text(&view->peer));
        add_bool(object, "peer-alive", view->peer.held);
    }
    add_bool(object, "torn", own->torn);
    add_bool(object, "damaged", own->damage != 0);
    add_bool(object, "settled", view->settled);
    add_bool(object, "may-start", view->may_start);
    add_text(object, "now", own->damage ? own->error.text : view->now);
    if (own->last.stands)
        add_text(object, "why", own->last.text);
    add_text(object, "to-do", view->todo);
    return object;
}
