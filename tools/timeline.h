/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig timeline: from the lines of one or two traces (docs/trace.md) to rows of spans, and from
 * these to pictures and text. Traces come from anywhere: whatever is read is bounded and checked.
 */
#ifndef VFMIG_TOOLS_TIMELINE_H
#define VFMIG_TOOLS_TIMELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/bounds.h"
#include "engine/trace.h"
#include "vfmig/error.h"

#define TIMELINE_MAX_FILE     (256ull << 20) /* bytes of a trace */
#define TIMELINE_MAX_LINE     65536u
#define TIMELINE_MAX_EVENTS   (1u << 20) /* of all attempts of all files */
#define TIMELINE_MAX_ATTEMPTS 4096u
#define TIMELINE_MAX_NS       INT64_C(0x3fffffffffffffff) /* a moment or a duration */

/* --- lines --- */

struct trace_event {
    unsigned line;
    int64_t
        t; /* as read; timeline_build() makes it relative to the beginning, on the source's clock */
    const struct vfmig_trace_info *info;
    enum vfmig_trace_event event;
    struct vfmig_trace_value *values; /* as many as the event has fields */
};

/* One attempt of one side. The first event is its HEAD. */
struct trace_attempt {
    const char *path;
    bool source, ended; /* END was seen */
    struct trace_event *events;
    size_t count, capacity;
};

struct trace_file_note {
    const char *path;
    unsigned line; /* that is cut short; 0: none */
};

struct trace {
    struct trace_attempt *attempts;
    size_t attempt_count, event_count;
    struct trace_file_note cut[2];
    unsigned file_count;
};

/* Adds a file's attempts. path must outlive the trace. -EBADMSG with file and line when it is no
 * trace; a last line that is cut short is noted and left out. */
int trace_read(struct trace *trace, const char *path, struct vfmig_error *reterr);
void trace_free(struct trace *trace);
/* The last migration, or the last one whose id begins with id; *ret_dest or *ret_source may be
 * NULL, never both. -ENOENT when there is none. */
int trace_choose(const struct trace *trace, const char *id, struct trace_attempt **ret_source,
                 struct trace_attempt **ret_dest, struct vfmig_error *reterr);

/* A field of an event by name; the name is in the event's row of tables/trace.def. */
uint64_t trace_u(const struct trace_event *event, const char *field);
int64_t trace_i(const struct trace_event *event, const char *field);
const char *trace_s(const struct trace_event *event, const char *field);

/* --- what is drawn --- */

enum timeline_layer { TIMELINE_STATE = 0, TIMELINE_CHANGE, TIMELINE_DATA };

struct timeline_span {
    int64_t begin, end;
    enum timeline_layer layer;
    bool bad;      /* it failed */
    char look[24]; /* a state's name, or what timeline_look() knows */
    char *label;   /* short */
    char *detail;  /* lines */
};

enum timeline_kind {
    TIMELINE_STEPS,
    TIMELINE_VCPUS,
    TIMELINE_MEMORY,
    TIMELINE_DEVICE,
    TIMELINE_WORK,
    TIMELINE_HANDOVER
};

struct timeline_row {
    bool source;
    enum timeline_kind kind;
    char *label;
    char *detail;
    struct timeline_span *spans;
    size_t count, capacity;
};

/* The moment in which the last device is where all of them were asked to be. */
struct timeline_barrier {
    bool source;
    int64_t t, first;          /* last and first arrival */
    const char *row, *last_id; /* that is entered; device that came last */
    char *detail;
};

struct timeline_mark {
    bool source, bad;
    int64_t t;
    char *text;
};

struct timeline_arrow {
    bool from_source;
    int64_t begin, end;
    const char *name;
};

struct timeline_rate {
    int64_t begin, end;
    double sent, dirty; /* bytes a second */
};

struct timeline_part {
    const char *name;
    int64_t begin, end; /* 0, 0: not seen */
    uint64_t ns;        /* as the source reported it */
    bool share;         /* of the parts, not one of them */
};

#define TIMELINE_PARTS 16u
struct timeline {
    struct trace_attempt *source, *dest;
    const struct trace *trace;
    char id[40], state[16], failure[208];
    bool aligned; /* the clocks were compared; otherwise by the time of day */
    int64_t begin, end, offset_ns, clock_error_ns;
    int64_t stop, run; /* vCPUs told to stop .. run again; run 0: not seen */
    bool run_at_source;
    int64_t zero;                 /* the standstill, or the failure, begins; 0: neither */
    int64_t zoom_begin, zoom_end; /* equal: nothing to look at more closely */
    uint64_t devices, memory_bytes, limit_ns, total_bytes, rounds, device_bytes;
    struct timeline_row *rows;
    size_t row_count;
    struct timeline_barrier *barriers;
    size_t barrier_count;
    struct timeline_mark *marks;
    size_t mark_count;
    struct timeline_arrow *arrows;
    size_t arrow_count;
    struct timeline_rate *rates;
    size_t rate_count;
    struct timeline_part parts[TIMELINE_PARTS];
    size_t part_count;
};

/* Aborts for want of memory, as do all functions here: a tool has nothing better to do. */
void timeline_build(struct timeline *t, const struct trace *trace, struct trace_attempt *source,
                    struct trace_attempt *dest);
void timeline_free(struct timeline *t);

/* timeline_more.c: what is not a row. */
void timeline_add_parts(struct timeline *t);
void timeline_add_arrows(struct timeline *t);
void timeline_add_barriers(struct timeline *t, const struct trace_attempt *attempt);
void timeline_add_marks(struct timeline *t, const struct trace_attempt *attempt);
void timeline_add_rates(struct timeline *t);
/* One line about the whole. */
void timeline_headline(const struct timeline *t, char *text, size_t size);

/* How a look is drawn: fill colour, the letter of the text form, its SGR colour. */
struct timeline_look {
    const char *name, *colour;
    char letter;
    int sgr;
    const char *legend; /* NULL: not in the legend */
};
extern const struct timeline_look timeline_looks[];
const struct timeline_look *timeline_look(const char *name);

void timeline_svg(const struct timeline *t, FILE *out);
void timeline_html(const struct timeline *t, FILE *out);
struct timeline_text_options {
    unsigned width; /* columns */
    bool colour, utf8;
};
void timeline_text(const struct timeline *t, const struct timeline_text_options *options,
                   FILE *out);
void timeline_json(const struct timeline *t, FILE *out);

/* "12.3 ms"; size 16 is enough. */
void timeline_time(char *text, size_t size, int64_t ns);
void timeline_bytes(char *text, size_t size, double bytes);

void *timeline_alloc(size_t size); /* zeroed */
/* Room for one more at the end of *array, which is zeroed and returned. */
void *timeline_grow(void *array, size_t *count, size_t *capacity, size_t size);
char *timeline_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
