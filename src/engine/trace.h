/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines of a trace: the table of events (tables/trace.def) and the one function that writes a line.
 */
#ifndef VFMIG_ENGINE_TRACE_H
#define VFMIG_ENGINE_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VFMIG_TRACE_VERSION 1u
#define VFMIG_TRACE_LINE    900u /* bytes of a line with its terminator; longer texts are cut */
#define VFMIG_TRACE_FIELDS  18u  /* most fields of one event */

enum vfmig_trace_event {
#define TRACE(name, text, side, when, ...) VFMIG_TRACE_##name,
#include "../tables/trace.def"
    VFMIG_TRACE_COUNT
};

enum vfmig_field_kind {
    VFMIG_FIELD_NONE = 0,
    VFMIG_FIELD_U,
    VFMIG_FIELD_I,
    VFMIG_FIELD_S,
    VFMIG_FIELD_B
};
enum vfmig_trace_side { VFMIG_TRACE_SOURCE = 1, VFMIG_TRACE_DEST = 2, VFMIG_TRACE_BOTH = 3 };

struct vfmig_trace_field {
    enum vfmig_field_kind kind; /* NONE: no more */
    const char *name, *text;
};

struct vfmig_trace_info {
    const char *name;
    enum vfmig_trace_side side;
    const char *when;
    struct vfmig_trace_field fields[VFMIG_TRACE_FIELDS + 1];
};

/* What a line says in the place of a field. */
struct vfmig_trace_value {
    enum vfmig_field_kind kind;
    union {
        uint64_t u;
        int64_t i;
        const char *s; /* NULL is "" */
    };
};

#define VFMIG_U(value)                                                                             \
    {                                                                                              \
        .kind = VFMIG_FIELD_U, .u = (uint64_t)(value)                                              \
    }
#define VFMIG_I(value)                                                                             \
    {                                                                                              \
        .kind = VFMIG_FIELD_I, .i = (int64_t)(value)                                               \
    }
#define VFMIG_S(value)                                                                             \
    {                                                                                              \
        .kind = VFMIG_FIELD_S, .s = (value)                                                        \
    }
#define VFMIG_B(value)                                                                             \
    {                                                                                              \
        .kind = VFMIG_FIELD_B, .u = (value) ? 1 : 0                                                \
    }

/* NULL for a number that is no event. */
const struct vfmig_trace_info *vfmig_trace_info(unsigned event);
/* VFMIG_TRACE_COUNT when no event is called so. */
unsigned vfmig_trace_find(const char *name);
unsigned vfmig_trace_field_count(const struct vfmig_trace_info *info);

/* What is the same in front of every line. */
struct vfmig_trace_head {
    uint64_t t_ns;
    uint64_t n; /* number of the line since its HEAD, from 0: a gap is a lost line */
    bool source;
};

/* One line without newline into line[VFMIG_TRACE_LINE]. Values are those of the event's fields, in
 * order, and end with one of kind NONE. -EINVAL when they are not; nothing was written then. */
int vfmig_trace_format(char *line, const struct vfmig_trace_head *head,
                       enum vfmig_trace_event event, const struct vfmig_trace_value *values);

#endif
