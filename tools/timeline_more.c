/* SPDX-License-Identifier: BSD-3-Clause */
/* What of a timeline is not a row: downtime in parts, barriers, messages, marks, rates. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "timeline.h"

/* --- looking for an event --- */

/* field NULL: any. */
static const struct trace_event *first(const struct trace_attempt *attempt,
                                       enum vfmig_trace_event event, const char *field,
                                       const char *value)
{
    for (size_t i = 0; attempt && i < attempt->count; i++)
        if (attempt->events[i].event == event &&
            (!field || !strcmp(trace_s(&attempt->events[i], field), value)))
            return &attempt->events[i];
    return NULL;
}

static const struct trace_event *vcpus_run(const struct trace_attempt *attempt, int64_t after)
{
    for (size_t i = 0; attempt && i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event == VFMIG_TRACE_VCPUS_RUNNING && !trace_i(event, "ret") &&
            event->t >= after)
            return event;
    }
    return NULL;
}

/* --- the downtime --- */

struct moment {
    bool source;
    enum vfmig_trace_event event;
    const char *field, *value;
    bool at_begin; /* of what the event ends: took_ns before it */
};

static const struct part_row {
    const char *name, *field;
    struct moment begin, end;
    bool share;
} part_rows[] = {
    {"vCPUs stop",
     "vcpus_stop_ns",
     {true, VFMIG_TRACE_VCPUS_STOPPING},
     {true, VFMIG_TRACE_VCPUS_STOPPED}},
    {"log read, devices quiet",
     "snapshot_ns",
     {true, VFMIG_TRACE_WORK_BEGIN, "work", "snapshot"},
     {true, VFMIG_TRACE_WORK_END, "work", "snapshot"}},
    {"part of memory, check",
     "check_ns",
     {true, VFMIG_TRACE_WORK_END, "work", "snapshot"},
     {true, VFMIG_TRACE_ROW, "row", "S5_ENTER"}},
    {"devices stop",
     "devices_stop_ns",
     {true, VFMIG_TRACE_ROW, "row", "S5_ENTER"},
     {true, VFMIG_TRACE_ROW, "row", "S5_STATE"}},
    {"vCPU and external state",
     "vm_state_ns",
     {true, VFMIG_TRACE_WORK_BEGIN, "work", "vm-state"},
     {true, VFMIG_TRACE_WORK_END, "work", "vm-state"}},
    {"last log read",
     "final_log_ns",
     {true, VFMIG_TRACE_WORK_BEGIN, "work", "final-log"},
     {true, VFMIG_TRACE_WORK_END, "work", "final-log"}},
    {"last memory and device data",
     "final_data_ns",
     {true, VFMIG_TRACE_WORK_END, "work", "final-log"},
     {true, VFMIG_TRACE_POINT, "point", "SENT"}},
    {"destination gets ready",
     "ready_ns",
     {true, VFMIG_TRACE_POINT, "point", "SENT"},
     {true, VFMIG_TRACE_RECEIVE, "message", "ready"}},
    {"grant journalled",
     "grant_journal_ns",
     {true, VFMIG_TRACE_JOURNAL, "record", "GRANT-SENT", true},
     {true, VFMIG_TRACE_JOURNAL, "record", "GRANT-SENT"}},
    {"grant on its way",
     "grant_ns",
     {true, VFMIG_TRACE_SEND, "message", "grant"},
     {false, VFMIG_TRACE_RECEIVE, "message", "grant"}},
    {"destination resumes",
     "resume_ns",
     {false, VFMIG_TRACE_RECEIVE, "message", "grant"},
     {false, VFMIG_TRACE_VCPUS_RUNNING}},
    {"unaccounted", "unaccounted_ns", {true, VFMIG_TRACE_COUNT}, {true, VFMIG_TRACE_COUNT}},
    {"including journals",
     "journal_ns",
     {true, VFMIG_TRACE_COUNT},
     {true, VFMIG_TRACE_COUNT},
     true},
    {"including devices load",
     "device_load_ns",
     {true, VFMIG_TRACE_COUNT},
     {true, VFMIG_TRACE_COUNT},
     true},
    {"including vCPU state",
     "state_load_ns",
     {true, VFMIG_TRACE_COUNT},
     {true, VFMIG_TRACE_COUNT},
     true},
};

static bool when(const struct timeline *t, const struct moment *moment, int64_t *ret_t)
{
    const struct trace_event *event =
        first(moment->source ? t->source : t->dest, moment->event, moment->field, moment->value);

    if (!event)
        return false;
    *ret_t = event->t - (moment->at_begin ? trace_i(event, "took_ns") : 0);
    return true;
}

static void add_part(struct timeline *t, const struct part_row *row,
                     const struct trace_event *downtime)
{
    struct timeline_part *part = &t->parts[t->part_count];
    int64_t begin = 0, end = 0;
    bool begun = when(t, &row->begin, &begin), ended = when(t, &row->end, &end);

    *part = (struct timeline_part){.name = row->name, .share = row->share};
    if (downtime)
        part->ns = trace_u(downtime, row->field);
    if (begun && ended && end >= begin) {
        part->begin = begin;
        part->end = end;
        if (!downtime)
            part->ns = (uint64_t)(end - begin);
    }
    if (downtime || part->end > part->begin)
        t->part_count++;
}

/* What is worth a closer look: the guest's standstill, or a failure and what follows. */
static void choose_zoom(struct timeline *t)
{
    const struct trace_event *s3 = first(t->source, VFMIG_TRACE_STEP, "step", "S3");
    int64_t begin = t->stop, end = t->run ? t->run : t->end;

    if (t->stop && s3 && s3->t < begin)
        begin = s3->t;
    for (size_t i = 0; !t->stop && i < t->mark_count; i++)
        if (t->marks[i].bad && (!begin || t->marks[i].t < begin))
            begin = t->marks[i].t;
    if (!begin || begin >= end || (!t->stop && end - begin > (t->end - t->begin) / 4))
        return;
    t->zero = t->stop ? t->stop : begin;
    int64_t margin = (end - begin) / 16 + 1;
    t->zoom_begin = begin - margin > t->begin ? begin - margin : t->begin;
    t->zoom_end = end + margin < t->end ? end + margin : t->end;
}

void timeline_add_parts(struct timeline *t)
{
    const struct trace_event *stop = first(t->source, VFMIG_TRACE_VCPUS_STOPPING, NULL, NULL);
    const struct trace_event *downtime = first(t->source, VFMIG_TRACE_DOWNTIME, NULL, NULL);

    if (stop) {
        const struct trace_event *there = vcpus_run(t->dest, stop->t),
                                 *here = vcpus_run(t->source, stop->t);
        t->stop = stop->t;
        t->run_at_source = here != NULL;
        if (here || there)
            t->run = here ? here->t : there->t;
        else if (downtime && trace_u(downtime, "total_ns"))
            t->run = t->stop + trace_i(downtime, "total_ns");
        for (size_t i = 0; i < sizeof(part_rows) / sizeof(part_rows[0]); i++)
            add_part(t, &part_rows[i], downtime);
    }
    choose_zoom(t);
}

/* --- barriers --- */

/* Devices that arrived since the row before. */
struct arrivals {
    const struct trace_event *first, *last;
    unsigned count;
};

static void add_barrier(struct timeline *t, bool source, const struct arrivals *at,
                        const struct trace_event *row)
{
    size_t capacity = t->barrier_count;
    char spread[24];

    t->barriers = timeline_grow(t->barriers, &t->barrier_count, &capacity, sizeof(*t->barriers));
    struct timeline_barrier *barrier = &t->barriers[t->barrier_count - 1];
    barrier->source = source;
    barrier->t = at->last->t;
    barrier->first = at->first->t;
    barrier->row = trace_s(row, "row");
    barrier->last_id = trace_s(at->last, "id");
    timeline_time(spread, sizeof(spread), barrier->t - barrier->first);
    barrier->detail =
        at->count == 1
            ? timeline_printf("barrier before %s\n%s is there", trace_s(row, "row"),
                              trace_s(at->last, "id"))
            : timeline_printf("barrier before %s\n%u devices\nfirst %s, last %s, %s later",
                              trace_s(row, "row"), at->count, trace_s(at->first, "id"),
                              trace_s(at->last, "id"), spread);
}

void timeline_add_barriers(struct timeline *t, const struct trace_attempt *attempt)
{
    struct arrivals at = {NULL};

    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event == VFMIG_TRACE_CHANGE_END) {
            at.first = at.first ? at.first : event;
            at.last = event;
            at.count++;
        } else if (event->event == VFMIG_TRACE_ROW) {
            if (at.count)
                add_barrier(t, attempt->source, &at, event);
            at = (struct arrivals){NULL};
        }
    }
}

/* --- marks --- */

static char *mark_text(const struct trace_event *event, bool *ret_bad)
{
    char predicted[24], limit[24];

    *ret_bad = true;
    switch (event->event) {
    case VFMIG_TRACE_FAILURE:
        return timeline_printf("failed: %s", trace_s(event, "text"));
    case VFMIG_TRACE_LINK_LOST:
        return timeline_printf("link lost: %s", trace_s(event, "text"));
    case VFMIG_TRACE_DEVICE_LOST:
        return timeline_printf("device %s is lost", trace_s(event, "id"));
    case VFMIG_TRACE_VERDICT:
        return trace_u(event, "accept") ? NULL
                                        : timeline_printf("refused: %s", trace_s(event, "text"));
    case VFMIG_TRACE_DECIDE:
        *ret_bad = false;
        timeline_time(predicted, sizeof(predicted), trace_i(event, "predicted_ns"));
        timeline_time(limit, sizeof(limit), trace_i(event, "limit_ns"));
        return timeline_printf(
            "decided: %s\ndowntime would be %s, limit %s\n%" PRIu64 " pages known dirty",
            trace_s(event, "verdict"), predicted, limit, trace_u(event, "dirty"));
    default:
        return NULL;
    }
}

void timeline_add_marks(struct timeline *t, const struct trace_attempt *attempt)
{
    for (size_t i = 0; i < attempt->count; i++) {
        bool bad, over = attempt->events[i].event == VFMIG_TRACE_LINK_LOST &&
                         !strcmp(t->state, "completed");
        char *text = over ? NULL : mark_text(&attempt->events[i], &bad);
        size_t capacity = t->mark_count;

        if (!text)
            continue;
        t->marks = timeline_grow(t->marks, &t->mark_count, &capacity, sizeof(*t->marks));
        t->marks[t->mark_count - 1] = (struct timeline_mark){
            .source = attempt->source, .bad = bad, .t = attempt->events[i].t, .text = text};
    }
}

/* --- messages --- */

/* The reception of the nth message of this name. */
static const struct trace_event *received(const struct trace_attempt *attempt, const char *name,
                                          unsigned n)
{
    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event == VFMIG_TRACE_RECEIVE && !strcmp(trace_s(event, "message"), name) &&
            n-- == 0)
            return event;
    }
    return NULL;
}

/* Messages are few: they are counted again for each. */
static void arrows_from(struct timeline *t, const struct trace_attempt *from,
                        const struct trace_attempt *to)
{
    for (size_t i = 0; i < from->count && t->arrow_count < 1000; i++) {
        const struct trace_event *event = &from->events[i];
        size_t capacity = t->arrow_count;
        unsigned n = 0;

        if (event->event != VFMIG_TRACE_SEND || trace_i(event, "ret"))
            continue;
        for (size_t j = 0; j < i; j++)
            n += from->events[j].event == VFMIG_TRACE_SEND && !trace_i(&from->events[j], "ret") &&
                 !strcmp(trace_s(&from->events[j], "message"), trace_s(event, "message"));
        const struct trace_event *there = received(to, trace_s(event, "message"), n);
        if (!there)
            continue;
        t->arrows = timeline_grow(t->arrows, &t->arrow_count, &capacity, sizeof(*t->arrows));
        t->arrows[t->arrow_count - 1] = (struct timeline_arrow){.from_source = from->source,
                                                                .begin = event->t,
                                                                .end = there->t,
                                                                .name = trace_s(event, "message")};
    }
}

void timeline_add_arrows(struct timeline *t)
{
    if (!t->source || !t->dest)
        return;
    arrows_from(t, t->source, t->dest);
    arrows_from(t, t->dest, t->source);
}

/* --- rates --- */

static void add_rate(struct timeline *t, int64_t begin, int64_t end, double sent, double dirty)
{
    size_t capacity = t->rate_count;

    t->rates = timeline_grow(t->rates, &t->rate_count, &capacity, sizeof(*t->rates));
    t->rates[t->rate_count - 1] = (struct timeline_rate){begin, end, sent, dirty};
}

void timeline_add_rates(struct timeline *t)
{
    int64_t round = 0, log = 0;

    for (size_t i = 0; t->source && i < t->source->count; i++) {
        const struct trace_event *event = &t->source->events[i];
        if (event->event == VFMIG_TRACE_ROUND_BEGIN) {
            round = event->t;
        } else if (event->event == VFMIG_TRACE_ROUND_END) {
            add_rate(t, round, event->t, (double)trace_u(event, "rate"), -1);
        } else if (event->event == VFMIG_TRACE_LOG) {
            add_rate(t, log, event->t, -1, (double)trace_u(event, "rate") * 4096);
            log = event->t;
        } else if (event->event == VFMIG_TRACE_TRACKER && !strcmp(trace_s(event, "op"), "start")) {
            log = event->t;
        }
    }
}

/* --- one line --- */

void timeline_headline(const struct timeline *t, char *text, size_t size)
{
    char took[24], stood[24] = "", limit[24], memory[24], device[24];

    timeline_time(took, sizeof(took), t->end - t->begin);
    timeline_time(limit, sizeof(limit), (int64_t)t->limit_ns);
    timeline_bytes(memory, sizeof(memory), (double)t->total_bytes);
    timeline_bytes(device, sizeof(device), (double)t->device_bytes);
    if (t->stop && t->run)
        timeline_time(stood, sizeof(stood), t->run - t->stop);
    int used = snprintf(text, size, "%s in %s · ", t->state, took);
    if (t->source && !*stood)
        used +=
            snprintf(text + used, size - (size_t)used,
                     t->stop ? "the guest did not run again · " : "the guest never stood still · ");
    else if (t->source && !strcmp(t->state, "completed"))
        used +=
            snprintf(text + used, size - (size_t)used, "downtime %s, limit %s · ", stood, limit);
    else if (t->source)
        used +=
            snprintf(text + used, size - (size_t)used, "the guest stood still for %s · ", stood);
    snprintf(text + used, size - (size_t)used, "%" PRIu64 " %s, %s sent, %s of device data",
             t->rounds, t->rounds == 1 ? "round" : "rounds", memory, device);
}
