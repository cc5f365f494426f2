/* SPDX-License-Identifier: BSD-3-Clause */
/* Rows of spans from the events of an attempt. */
#include "timeline.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* --- memory and numbers --- */

void *timeline_alloc(size_t size)
{
    void *memory = calloc(1, size ? size : 1);

    if (!memory)
        abort();
    return memory;
}

void *timeline_grow(void *array, size_t *count, size_t *capacity, size_t size)
{
    if (*count == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 16;
        array = realloc(array, *capacity * size);
        if (!array)
            abort();
    }
    memset((char *)array + *count * size, 0, size);
    ++*count;
    return array;
}

char *timeline_printf(const char *format, ...)
{
    char *text;
    va_list args;

    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        abort();
    va_end(args);
    return text;
}

void timeline_time(char *text, size_t size, int64_t ns)
{
    double value = (double)ns;

    if (ns < 1000)
        snprintf(text, size, "%d ns", (int)ns);
    else if (ns < 1000000)
        snprintf(text, size, "%.*f µs", ns < 100000, value / 1e3);
    else if (ns < 1000000000)
        snprintf(text, size, "%.*f ms", ns < 10000000 ? 2 : ns < 100000000, value / 1e6);
    else
        snprintf(text, size, "%.2f s", value / 1e9);
}

void timeline_bytes(char *text, size_t size, double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    unsigned unit = 0;

    for (; bytes >= 1000 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(text, size, "%.*f %s", unit && bytes < 10 ? 1 : 0, bytes, units[unit]);
}

/* --- looks --- */

const struct timeline_look timeline_looks[] = {
    {"RUNNING", "#5fae7e", 'R', 32, "RUNNING"},
    {"RUNNING_NDMA", "#c9cf6a", 'r', 33, "RUNNING_NDMA (grace)"},
    {"PRE_COPY", "#5b93d6", 'P', 34, "PRE_COPY"},
    {"PRE_COPY_NDMA", "#e8b04a", 'p', 33, "PRE_COPY_NDMA (grace)"},
    {"STOP_COPY", "#9a72c7", 'S', 35, "STOP_COPY"},
    {"STOP", "#c3c8d0", '.', 90, "STOP"},
    {"RESUMING", "#43b0b0", 'Z', 36, "RESUMING"},
    {"ERROR", "#d8504d", 'E', 31, "ERROR"},
    {"reset", "#7d8794", 'x', 37, NULL},
    {"run", "#5fae7e", 'R', 32, NULL},
    {"stand", "#f0b6b1", '_', 31, "vCPUs stand still"},
    {"step", "#e3e8ef", '-', 0, NULL},
    {"step-stopped", "#d3dae5", '=', 0, NULL},
    {"unwind", "#f3cfa0", '<', 33, NULL},
    {"round", "#7aa2cf", 'm', 34, "memory sent"},
    {"round-stopped", "#3f6fa8", 'M', 34, "memory sent, vCPUs stopped"},
    {"data", "#1f3552", 'd', 36, "device data moves"},
    {"work", "#9fb3c8", 'w', 36, NULL},
    {"journal", "#7a5c3e", 'j', 33, "journal written"},
    {NULL, "#999999", '?', 0, NULL},
};

const struct timeline_look *timeline_look(const char *name)
{
    const struct timeline_look *look = timeline_looks;

    while (look->name && strcmp(look->name, name))
        look++;
    return look;
}

/* --- rows --- */

static struct timeline_row *add_row(struct timeline *t, bool source, enum timeline_kind kind,
                                    char *label)
{
    size_t capacity = t->row_count;

    /* Rows are few, and their addresses are not kept. */
    t->rows = timeline_grow(t->rows, &t->row_count, &capacity, sizeof(*t->rows));
    struct timeline_row *row = &t->rows[t->row_count - 1];
    *row = (struct timeline_row){.source = source, .kind = kind, .label = label};
    return row;
}

static struct timeline_span *add_span(struct timeline_row *row, enum timeline_layer layer,
                                      int64_t begin, int64_t end, const char *look)
{
    row->spans = timeline_grow(row->spans, &row->count, &row->capacity, sizeof(*row->spans));
    struct timeline_span *span = &row->spans[row->count - 1];
    span->layer = layer;
    span->begin = begin;
    span->end = end > begin ? end : begin;
    snprintf(span->look, sizeof(span->look), "%s", look);
    return span;
}

static void describe(struct timeline_span *span, const char *label, char *more)
{
    char took[24];

    timeline_time(took, sizeof(took), span->end - span->begin);
    span->label = timeline_printf("%s", label);
    span->detail = timeline_printf("%s\n%s%s%s", label, took, *more ? "\n" : "", more);
    free(more);
}

/* What was given up because something else failed is no failure of its own. */
static bool is_bad(int64_t ret)
{
    return ret && ret != -ECANCELED;
}

static char *result(int64_t ret)
{
    if (ret == -ECANCELED)
        return timeline_printf("given up");
    return ret ? timeline_printf("failed: %s", strerror((int)-ret)) : timeline_printf("%s", "");
}

/* --- steps and vCPUs --- */

static void add_step(struct timeline_row *row, const struct trace_event *event, int64_t end)
{
    const char *step = trace_s(event, "step");
    bool back = !strcmp(step, "unwind") || !strcmp(step, "drop");
    struct timeline_span *span = add_span(row, TIMELINE_STATE, event->t, end,
                                          back                      ? "unwind"
                                          : trace_u(event, "vcpus") ? "step"
                                                                    : "step-stopped");

    describe(span, step,
             timeline_printf("DMAs in flight at its begin %" PRIu64 ", interrupts latched %" PRIu64,
                             trace_u(event, "in_flight"), trace_u(event, "latched")));
}

static void add_steps(struct timeline *t, const struct trace_attempt *attempt)
{
    struct timeline_row *row =
        add_row(t, attempt->source, TIMELINE_STEPS, timeline_printf("steps"));
    const struct trace_event *open = NULL;

    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event != VFMIG_TRACE_STEP)
            continue;
        if (open)
            add_step(row, open, event->t);
        open = strcmp(trace_s(event, "step"), "end") ? event : NULL;
    }
    if (open)
        add_step(row, open, attempt->events[attempt->count - 1].t);
}

/* What a side is in when its attempt is over, it stays in. */
static int64_t last_moment(const struct timeline *t, const struct trace_attempt *attempt)
{
    return attempt->ended ? t->end : attempt->events[attempt->count - 1].t;
}

static void add_vcpus(struct timeline *t, const struct trace_attempt *attempt)
{
    struct timeline_row *row =
        add_row(t, attempt->source, TIMELINE_VCPUS, timeline_printf("vCPUs"));
    bool run = attempt->source;
    int64_t since = attempt->events[0].t, end = last_moment(t, attempt);

    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        bool stops = event->event == VFMIG_TRACE_VCPUS_STOPPING;
        bool runs = event->event == VFMIG_TRACE_VCPUS_RUNNING && !trace_i(event, "ret");
        if ((!stops || !run) && (!runs || run))
            continue;
        /* The destination's wait for its guest is no downtime. */
        if (run || attempt->source)
            describe(add_span(row, TIMELINE_STATE, since, event->t, run ? "run" : "stand"),
                     run ? "run" : "stand still", timeline_printf("%s", ""));
        run = runs;
        since = event->t;
    }
    if (run || attempt->source)
        describe(add_span(row, TIMELINE_STATE, since, end, run ? "run" : "stand"),
                 run ? "run" : "stand still", timeline_printf("%s", ""));
}

/* --- devices --- */

struct device_cursor {
    const struct trace_event *change, *data; /* begun */
    char state[24];
    int64_t since; /* in state */
};

static void end_state(struct timeline_row *row, struct device_cursor *at, int64_t t)
{
    if (t > at->since && *at->state)
        describe(add_span(row, TIMELINE_STATE, at->since, t, at->state), at->state,
                 timeline_printf("%s", ""));
}

static void device_changed(struct timeline_row *row, struct device_cursor *at,
                           const struct trace_event *event)
{
    int64_t ret = trace_i(event, "ret"), begin = at->change ? at->change->t : event->t;
    const char *want = trace_s(event, "want");

    end_state(row, at, begin);
    struct timeline_span *span = add_span(row, TIMELINE_CHANGE, begin, event->t, want);
    span->bad = is_bad(ret);
    char *label = timeline_printf("→ %s", want);
    describe(span, label, result(ret));
    free(label);
    snprintf(at->state, sizeof(at->state), "%s", trace_s(event, "state"));
    at->since = event->t;
    at->change = NULL;
}

static void data_moved(struct timeline_row *row, struct device_cursor *at,
                       const struct trace_event *event)
{
    char bytes[24], total[24];
    int64_t ret = trace_i(event, "ret");
    struct timeline_span *span =
        add_span(row, TIMELINE_DATA, at->data ? at->data->t : event->t, event->t, "data");

    timeline_bytes(bytes, sizeof(bytes), (double)trace_u(event, "bytes"));
    timeline_bytes(total, sizeof(total), (double)trace_u(event, "total_bytes"));
    span->bad = is_bad(ret);
    char *why = result(ret);
    describe(span, strcmp(trace_s(event, "work"), "data") ? "all of its data" : "pre-copy data",
             timeline_printf("%s, %s in all%s%s", bytes, total, *why ? "\n" : "", why));
    free(why);
    at->data = NULL;
}

static void device_event(struct timeline_row *row, struct device_cursor *at,
                         const struct trace_event *event)
{
    switch (event->event) {
    case VFMIG_TRACE_CHANGE_BEGIN:
        at->change = event;
        break;
    case VFMIG_TRACE_CHANGE_END:
        device_changed(row, at, event);
        break;
    case VFMIG_TRACE_DATA_BEGIN:
        at->data = event;
        break;
    case VFMIG_TRACE_DATA_END:
        data_moved(row, at, event);
        break;
    default:
        break;
    }
}

static bool is_of_device(const struct trace_event *event)
{
    return event->event == VFMIG_TRACE_CHANGE_BEGIN || event->event == VFMIG_TRACE_CHANGE_END ||
           event->event == VFMIG_TRACE_DATA_BEGIN || event->event == VFMIG_TRACE_DATA_END;
}

/* What had begun when the trace ended, has no end: it is drawn to the end. */
static void end_device(struct timeline_row *row, struct device_cursor *at, int64_t t)
{
    if (at->change) {
        end_state(row, at, at->change->t);
        struct timeline_span *span =
            add_span(row, TIMELINE_CHANGE, at->change->t, t, trace_s(at->change, "want"));
        span->bad = true;
        describe(span, trace_s(at->change, "want"), timeline_printf("no answer in this trace"));
    } else {
        end_state(row, at, t);
    }
    if (at->data)
        describe(add_span(row, TIMELINE_DATA, at->data->t, t, "data"), "data",
                 timeline_printf("no end in this trace"));
}

static void add_devices(struct timeline *t, const struct trace_attempt *attempt)
{
    uint64_t count = trace_u(&attempt->events[0], "devices");
    struct device_cursor *at = timeline_alloc(count * sizeof(*at));
    size_t first = t->row_count;

    for (uint64_t i = 0; i < count; i++) {
        add_row(t, attempt->source, TIMELINE_DEVICE, timeline_printf("device %" PRIu64, i));
        at[i].since = attempt->events[0].t;
        strcpy(at[i].state, "RUNNING");
    }
    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        uint64_t device = trace_u(event, "device");
        if (event->event == VFMIG_TRACE_DEVICE) {
            struct timeline_row *row = &t->rows[first + device];
            free(row->label);
            free(row->detail);
            row->label = timeline_printf("%s", trace_s(event, "id"));
            row->detail =
                timeline_printf("%s\n%s%s", trace_s(event, "id"), trace_s(event, "features"),
                                trace_u(event, "log") ? ", logs its DMA" : "");
        } else if (is_of_device(event)) {
            device_event(&t->rows[first + device], &at[device], event);
        }
    }
    for (uint64_t i = 0; i < count; i++)
        end_device(&t->rows[first + i], &at[i], last_moment(t, attempt));
    free(at);
}

/* --- memory, works, journal --- */

static void end_round(struct timeline *t, struct timeline_row *row, const struct trace_event *begin,
                      const struct trace_event *end)
{
    bool stopped = strcmp(trace_s(end, "work"), "round") != 0;
    char bytes[24], rate[24];
    struct timeline_span *span = add_span(row, TIMELINE_STATE, begin ? begin->t : end->t, end->t,
                                          stopped ? "round-stopped" : "round");

    t->rounds += !stopped;
    t->total_bytes += trace_u(end, "bytes");
    timeline_bytes(bytes, sizeof(bytes), (double)trace_u(end, "bytes"));
    timeline_bytes(rate, sizeof(rate), (double)trace_u(end, "rate"));
    span->bad = is_bad(trace_i(end, "ret"));
    char *why = result(trace_i(end, "ret"));
    char *label = timeline_printf("round %" PRIu64, trace_u(end, "round"));
    describe(span, label,
             timeline_printf("%s%" PRIu64 " pages, %s sent\n%s/s%s%s",
                             stopped ? "vCPUs stopped\n" : "", trace_u(end, "pages"), bytes, rate,
                             *why ? "\n" : "", why));
    free(label);
    free(why);
}

static void log_read(struct timeline_row *row, const struct trace_event *event)
{
    struct timeline_span *span =
        add_span(row, TIMELINE_STATE, event->t - trace_i(event, "took_ns"), event->t, "work");

    describe(span, "log read",
             timeline_printf("%" PRIu64 " pages dirtied since, %" PRIu64 " known dirty",
                             trace_u(event, "pages"), trace_u(event, "dirty")));
}

static void add_memory(struct timeline *t, const struct trace_attempt *attempt)
{
    struct timeline_row *row =
        add_row(t, attempt->source, TIMELINE_MEMORY, timeline_printf("memory"));
    const struct trace_event *begin = NULL;

    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event == VFMIG_TRACE_ROUND_BEGIN) {
            begin = event;
        } else if (event->event == VFMIG_TRACE_ROUND_END) {
            end_round(t, row, begin, event);
            begin = NULL;
        } else if (event->event == VFMIG_TRACE_LOG) {
            log_read(row, event);
        }
    }
    if (begin)
        describe(
            add_span(row, TIMELINE_STATE, begin->t, attempt->events[attempt->count - 1].t, "round"),
            "round", timeline_printf("no end in this trace"));
}

/* Works that have a row of their own are not drawn here. */
static bool is_drawn_work(const char *work)
{
    static const char *const others[] = {"round",      "memory",   "last-memory", "vcpu-stop",
                                         "vcpu-start", "snapshot", "final-log"};

    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (!strcmp(work, others[i]))
            return false;
    return true;
}

static void end_work(struct timeline_row *row, const struct trace_event *begin, int64_t end,
                     int64_t ret)
{
    struct timeline_span *span = add_span(row, TIMELINE_STATE, begin->t, end, "work");

    span->bad = is_bad(ret);
    describe(span, trace_s(begin, "work"), result(ret));
}

static void add_works(struct timeline *t, const struct trace_attempt *attempt)
{
    struct timeline_row *row =
        add_row(t, attempt->source, TIMELINE_WORK, timeline_printf("VM, trackers"));
    const struct trace_event *open[VFMIG_TRACE_FIELDS] = {NULL};
    size_t count = 0;

    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        bool begins = event->event == VFMIG_TRACE_WORK_BEGIN;
        if ((!begins && event->event != VFMIG_TRACE_WORK_END) ||
            !is_drawn_work(trace_s(event, "work")))
            continue;
        if (begins && count < VFMIG_TRACE_FIELDS)
            open[count++] = event;
        for (size_t j = 0; !begins && j < count; j++)
            if (!strcmp(trace_s(open[j], "work"), trace_s(event, "work"))) {
                end_work(row, open[j], event->t, trace_i(event, "ret"));
                open[j--] = open[--count];
            }
    }
    for (size_t j = 0; j < count; j++)
        end_work(row, open[j], attempt->events[attempt->count - 1].t, 0);
}

static void add_handover(struct timeline *t, const struct trace_attempt *attempt)
{
    struct timeline_row *row =
        add_row(t, attempt->source, TIMELINE_HANDOVER, timeline_printf("handover"));

    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event != VFMIG_TRACE_JOURNAL)
            continue;
        struct timeline_span *span = add_span(
            row, TIMELINE_STATE, event->t - trace_i(event, "took_ns"), event->t, "journal");
        span->bad = trace_i(event, "ret") != 0;
        describe(span, trace_s(event, "record"), timeline_printf("written to the journal"));
    }
}

/* --- the whole --- */

/* Of traces that lie, too: no difference of two moments overflows. */
static int64_t clamp(__int128 t)
{
    const int64_t limit = TIMELINE_MAX_NS / 4;

    return t > limit ? limit : t < -limit ? -limit : (int64_t)t;
}

static void shift(struct trace_attempt *attempt, __int128 by)
{
    for (size_t i = 0; i < attempt->count; i++)
        attempt->events[i].t = clamp(attempt->events[i].t + by);
}

/* The destination's clock is ahead of the source's by so much: measured, or by their times of day.
 */
static __int128 offset(struct timeline *t)
{
    const struct trace_event *here = t->source->events, *there = t->dest->events;

    for (size_t i = 0; i < t->source->count; i++)
        if (here[i].event == VFMIG_TRACE_CLOCK) {
            t->aligned = true;
            t->clock_error_ns = trace_i(&here[i], "error_ns");
            return trace_i(&here[i], "offset_ns");
        }
    return (__int128)(there->t - trace_i(there, "wall_ns")) - (here->t - trace_i(here, "wall_ns"));
}

/* Everything on the source's clock, 0 at the begin of the attempt. */
static void align(struct timeline *t)
{
    struct trace_attempt *source = t->source, *dest = t->dest;
    __int128 zero = source ? source->events[0].t : dest->events[0].t;
    __int128 ahead = source && dest ? offset(t) : 0;

    t->aligned |= !source || !dest;
    t->offset_ns = clamp(ahead);
    if (source)
        shift(source, -zero);
    if (dest)
        shift(dest, -zero - ahead);
    t->begin = dest && dest->events[0].t < 0 ? dest->events[0].t : 0;
    t->end = t->begin + 1;
    if (source && source->events[source->count - 1].t > t->end)
        t->end = source->events[source->count - 1].t;
    if (dest && dest->events[dest->count - 1].t > t->end)
        t->end = dest->events[dest->count - 1].t;
}

static void note_head(struct timeline *t)
{
    const struct trace_attempt *attempt = t->source ? t->source : t->dest;
    const struct trace_event *head = &attempt->events[0];

    snprintf(t->id, sizeof(t->id), "%s", trace_s(head, "id"));
    snprintf(t->state, sizeof(t->state), "active");
    t->devices = trace_u(head, "devices");
    t->memory_bytes = trace_u(head, "memory_bytes");
    t->limit_ns = trace_u(head, "limit_ns");
    for (size_t i = 0; i < attempt->count; i++) {
        const struct trace_event *event = &attempt->events[i];
        if (event->event == VFMIG_TRACE_STATE)
            snprintf(t->state, sizeof(t->state), "%s", trace_s(event, "state"));
        if (event->event == VFMIG_TRACE_FAILURE && !*t->failure)
            snprintf(t->failure, sizeof(t->failure), "%s", trace_s(event, "text"));
        if (event->event == VFMIG_TRACE_DATA_END)
            t->device_bytes += trace_u(event, "bytes");
    }
}

static void add_side(struct timeline *t, const struct trace_attempt *attempt)
{
    /* Handovers are next to each other: messages are drawn between them. */
    if (!attempt->source)
        add_handover(t, attempt);
    add_steps(t, attempt);
    add_vcpus(t, attempt);
    if (attempt->source)
        add_memory(t, attempt);
    add_devices(t, attempt);
    add_works(t, attempt);
    if (attempt->source)
        add_handover(t, attempt);
    timeline_add_barriers(t, attempt);
    timeline_add_marks(t, attempt);
}

void timeline_build(struct timeline *t, const struct trace *trace, struct trace_attempt *source,
                    struct trace_attempt *dest)
{
    memset(t, 0, sizeof(*t));
    t->trace = trace;
    t->source = source;
    t->dest = dest;
    align(t);
    note_head(t);
    if (source)
        add_side(t, source);
    if (dest)
        add_side(t, dest);
    timeline_add_rates(t);
    timeline_add_arrows(t);
    timeline_add_parts(t);
}

void timeline_free(struct timeline *t)
{
    for (size_t i = 0; i < t->row_count; i++) {
        for (size_t j = 0; j < t->rows[i].count; j++) {
            free(t->rows[i].spans[j].label);
            free(t->rows[i].spans[j].detail);
        }
        free(t->rows[i].spans);
        free(t->rows[i].label);
        free(t->rows[i].detail);
    }
    for (size_t i = 0; i < t->barrier_count; i++)
        free(t->barriers[i].detail);
    for (size_t i = 0; i < t->mark_count; i++)
        free(t->marks[i].text);
    free(t->rows);
    free(t->barriers);
    free(t->marks);
    free(t->arrows);
    free(t->rates);
}
