/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define U(field, meaning)                                                                          \
    {                                                                                              \
        VFMIG_FIELD_U, field, meaning                                                              \
    }
#define I(field, meaning)                                                                          \
    {                                                                                              \
        VFMIG_FIELD_I, field, meaning                                                              \
    }
#define S(field, meaning)                                                                          \
    {                                                                                              \
        VFMIG_FIELD_S, field, meaning                                                              \
    }
#define B(field, meaning)                                                                          \
    {                                                                                              \
        VFMIG_FIELD_B, field, meaning                                                              \
    }

static const struct vfmig_trace_info events[VFMIG_TRACE_COUNT] = {
#define TRACE(id, text, who, what, ...)                                                            \
    [VFMIG_TRACE_##                                                                                \
        id] = {.name = text, .side = VFMIG_TRACE_##who, .when = what, .fields = {__VA_ARGS__}},
#include "../tables/trace.def"
};

const struct vfmig_trace_info *vfmig_trace_info(unsigned event)
{
    return event < VFMIG_TRACE_COUNT ? &events[event] : NULL;
}

unsigned vfmig_trace_find(const char *name)
{
    unsigned event = 0;

    while (event < VFMIG_TRACE_COUNT && strcmp(events[event].name, name))
        event++;
    return event;
}

unsigned vfmig_trace_field_count(const struct vfmig_trace_info *info)
{
    unsigned count = 0;

    while (info->fields[count].kind != VFMIG_FIELD_NONE)
        count++;
    return count;
}

/* --- a line --- */

struct out {
    char *line;
    size_t used;
};

/* Room for what closes the line is kept. */
#define ROOM (VFMIG_TRACE_LINE - 4)

static void add(struct out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct out *out, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int size = vsnprintf(out->line + out->used, ROOM - out->used, format, args);
    va_end(args);
    if (size > 0)
        out->used += (size_t)size < ROOM - out->used ? (size_t)size : ROOM - out->used - 1;
}

/* Escaped as JSON wants it; `reserve` bytes are left for what follows. What is not ASCII comes from
 * a peer and need not be UTF-8. */
static void add_text(struct out *out, const char *text, size_t reserve)
{
    add(out, "\"");
    for (; text && *text && out->used + reserve + 8 < ROOM; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\')
            add(out, "\\%c", c);
        else if (c < ' ' || c >= 127)
            add(out, "\\u%04x", c);
        else
            add(out, "%c", c);
    }
    add(out, "\"");
}

/* Bytes that the fields behind this one may need: a text may be cut to "", a number may not. */
static size_t reserve_for(const struct vfmig_trace_field *field)
{
    size_t bytes = 0;

    for (field++; field->kind != VFMIG_FIELD_NONE; field++)
        bytes += strlen(field->name) + 4 + (field->kind == VFMIG_FIELD_S ? 2 : 20);
    return bytes;
}

int vfmig_trace_format(char *line, const struct vfmig_trace_head *head,
                       enum vfmig_trace_event event, const struct vfmig_trace_value *values)
{
    const struct vfmig_trace_info *info = vfmig_trace_info(event);
    struct out out = {.line = line};

    if (!info || !(info->side & (head->source ? VFMIG_TRACE_SOURCE : VFMIG_TRACE_DEST)))
        return -EINVAL;
    for (unsigned i = 0; i <= vfmig_trace_field_count(info); i++)
        if (values[i].kind != info->fields[i].kind)
            return -EINVAL;
    add(&out, "{\"t_ns\":%" PRIu64 ",\"n\":%" PRIu64 ",\"side\":\"%s\",\"ev\":\"%s\"", head->t_ns,
        head->n, head->source ? "source" : "destination", info->name);
    for (const struct vfmig_trace_field *field = info->fields; field->kind != VFMIG_FIELD_NONE;
         field++, values++) {
        add(&out, ",\"%s\":", field->name);
        if (field->kind == VFMIG_FIELD_U)
            add(&out, "%" PRIu64, values->u);
        else if (field->kind == VFMIG_FIELD_I)
            add(&out, "%" PRId64, values->i);
        else if (field->kind == VFMIG_FIELD_B)
            add(&out, "%s", values->u ? "true" : "false");
        else
            add_text(&out, values->s, reserve_for(field));
    }
    strcpy(line + out.used, "}");
    return 0;
}
