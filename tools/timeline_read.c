/* SPDX-License-Identifier: BSD-3-Clause */
/* Traces as files: every line is checked against the table of events before anybody looks at it. */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "timeline.h"

#define MAX_DEPTH 3

struct reader {
    struct trace *trace;
    const char *path;
    unsigned line;
    json_tokener *tokener;
    struct trace_attempt *now[2]; /* of each side, by number: attempts move when there are more */
    size_t index[2];
    bool begun[2];
    struct vfmig_error *reterr;
};

static int bad(struct reader *r, const char *what)
{
    return vfmig_error_set(r->reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, r->line, "%s: line %u: %s",
                           r->path, r->line, what);
}

static int bad_field(struct reader *r, const char *what, const char *field)
{
    return vfmig_error_set(r->reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, r->line,
                           "%s: line %u: %s '%.40s'", r->path, r->line, what, field);
}

/* --- fields --- */

static int read_number(struct reader *r, struct json_object *object, const char *name, int64_t min,
                       int64_t *ret_number)
{
    struct json_object *value = NULL;

    if (!json_object_object_get_ex(object, name, &value))
        return bad_field(r, "there is no field", name);
    if (!json_object_is_type(value, json_type_int))
        return bad_field(r, "not a number:", name);
    *ret_number = json_object_get_int64(value);
    if (*ret_number < min || *ret_number > TIMELINE_MAX_NS)
        return bad_field(r, "out of range:", name);
    return 0;
}

static int read_text(struct reader *r, struct json_object *object, const char *name,
                     const char **ret_text)
{
    struct json_object *value = NULL;

    if (!json_object_object_get_ex(object, name, &value))
        return bad_field(r, "there is no field", name);
    if (!json_object_is_type(value, json_type_string))
        return bad_field(r, "not a text:", name);
    *ret_text = json_object_get_string(value);
    return 0;
}

/* Texts go to terminals and into documents, and need not come from a friend. */
static char *plain(const char *text)
{
    char *copy = timeline_printf("%s", text);

    for (char *at = copy; *at; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
    return copy;
}

static int read_field(struct reader *r, struct json_object *object,
                      const struct vfmig_trace_field *field, struct vfmig_trace_value *ret_value)
{
    struct json_object *value = NULL;
    const char *text = NULL;
    int ret = 0;

    ret_value->kind = field->kind;
    switch (field->kind) {
    case VFMIG_FIELD_U:
    case VFMIG_FIELD_I:
        return read_number(r, object, field->name,
                           field->kind == VFMIG_FIELD_U ? 0 : -TIMELINE_MAX_NS, &ret_value->i);
    case VFMIG_FIELD_B:
        if (!json_object_object_get_ex(object, field->name, &value) ||
            !json_object_is_type(value, json_type_boolean))
            return bad_field(r, "neither true nor false:", field->name);
        ret_value->u = (uint64_t)json_object_get_boolean(value);
        return 0;
    default:
        ret = read_text(r, object, field->name, &text);
        if (ret == 0)
            ret_value->s = plain(text);
        return ret;
    }
}

static void free_values(struct trace_event *event)
{
    for (unsigned i = 0; i < vfmig_trace_field_count(event->info); i++)
        if (event->values[i].kind == VFMIG_FIELD_S)
            free((void *)event->values[i].s);
    free(event->values);
}

static const struct vfmig_trace_value *find(const struct trace_event *event, const char *field)
{
    static const struct vfmig_trace_value nothing;

    for (unsigned i = 0; i < vfmig_trace_field_count(event->info); i++)
        if (!strcmp(event->info->fields[i].name, field))
            return &event->values[i];
    return &nothing;
}

uint64_t trace_u(const struct trace_event *event, const char *field)
{
    return find(event, field)->u;
}

int64_t trace_i(const struct trace_event *event, const char *field)
{
    return find(event, field)->i;
}

const char *trace_s(const struct trace_event *event, const char *field)
{
    const char *text = find(event, field)->s;

    return text ? text : "";
}

/* --- lines --- */

static struct trace_attempt *attempt_of(struct reader *r, bool source)
{
    return &r->trace->attempts[r->index[source]];
}

static int begin_attempt(struct reader *r, bool source, const struct trace_event *head)
{
    struct trace *trace = r->trace;

    if (trace_u(head, "version") != VFMIG_TRACE_VERSION)
        return bad(r, "a trace of a version that this program does not know");
    if (trace_u(head, "devices") > VFMIG_MAX_DEVICES)
        return bad(r, "more devices than there can be");
    if (trace->attempt_count == TIMELINE_MAX_ATTEMPTS)
        return bad(r, "too many attempts");
    trace->attempts =
        realloc(trace->attempts, (trace->attempt_count + 1) * sizeof(*trace->attempts));
    if (!trace->attempts)
        abort();
    r->index[source] = trace->attempt_count++;
    r->begun[source] = true;
    *attempt_of(r, source) = (struct trace_attempt){.path = r->path, .source = source};
    return 0;
}

/* What a line may say only when the ones before it agree. */
static int check_order(struct reader *r, bool source, const struct trace_event *event)
{
    const struct trace_attempt *attempt = attempt_of(r, source);
    const struct vfmig_trace_value *device = find(event, "device");

    if (attempt->events[attempt->count - 1].t > event->t)
        return bad(r, "time goes back");
    if (device->kind == VFMIG_FIELD_U && device->u >= trace_u(&attempt->events[0], "devices"))
        return bad(r, "a device that the head does not count");
    if (r->trace->event_count == TIMELINE_MAX_EVENTS)
        return bad(r, "too many events");
    return 0;
}

static int take_event(struct reader *r, struct json_object *object, bool source,
                      struct trace_event *event)
{
    unsigned count = vfmig_trace_field_count(event->info);
    int ret = 0;

    event->values = timeline_alloc((count + 1) * sizeof(*event->values));
    for (unsigned i = 0; ret == 0 && i < count; i++)
        ret = read_field(r, object, &event->info->fields[i], &event->values[i]);
    if (ret == 0 && event->event == VFMIG_TRACE_HEAD)
        ret = begin_attempt(r, source, event);
    else if (ret == 0 && !r->begun[source])
        ret = bad(r, "no line \"trace\" of this side comes before it");
    else if (ret == 0)
        ret = check_order(r, source, event);
    if (ret) {
        free_values(event);
        return ret;
    }
    struct trace_attempt *attempt = attempt_of(r, source);
    attempt->events =
        timeline_grow(attempt->events, &attempt->count, &attempt->capacity, sizeof(*event));
    attempt->events[attempt->count - 1] = *event;
    attempt->ended |= event->event == VFMIG_TRACE_END;
    r->trace->event_count++;
    return 0;
}

static int take_object(struct reader *r, struct json_object *object)
{
    struct trace_event event = {.line = r->line};
    const char *side, *name;
    int ret = read_number(r, object, "t_ns", 0, &event.t);

    if (ret == 0)
        ret = read_text(r, object, "side", &side);
    if (ret == 0)
        ret = read_text(r, object, "ev", &name);
    if (ret)
        return ret;
    bool source = !strcmp(side, "source");
    if (!source && strcmp(side, "destination"))
        return bad(r, "'side' is neither source nor destination");
    event.event = vfmig_trace_find(name);
    event.info = vfmig_trace_info(event.event);
    return event.info ? take_event(r, object, source, &event) : 0;
}

static int take_line(struct reader *r, const char *text, size_t size, bool whole)
{
    json_tokener_reset(r->tokener);
    struct json_object *object = json_tokener_parse_ex(r->tokener, text, (int)size);
    enum json_tokener_error error = json_tokener_get_error(r->tokener);
    size_t end = json_tokener_get_parse_end(r->tokener);
    int ret;

    if (!whole && error == json_tokener_continue) {
        r->trace->cut[r->trace->file_count].line = r->line;
        ret = 0;
    } else if (error != json_tokener_success || end != size ||
               !json_object_is_type(object, json_type_object)) {
        ret = bad(r, "not an object of JSON");
    } else {
        ret = take_object(r, object);
    }
    json_object_put(object);
    return ret;
}

static int read_lines(struct reader *r, FILE *file)
{
    char *text = malloc(TIMELINE_MAX_LINE + 2);
    uint64_t total = 0;
    int ret = 0;

    if (!text)
        abort();
    while (ret == 0 && fgets(text, TIMELINE_MAX_LINE + 2, file)) {
        size_t size = strcspn(text, "\n");
        bool whole = text[size] == '\n';

        r->line++;
        total += size;
        if (size > TIMELINE_MAX_LINE)
            ret = bad(r, "longer than a line of a trace can be");
        else if (total > TIMELINE_MAX_FILE)
            ret = bad(r, "the file is larger than a trace can be");
        else if (!whole && !feof(file))
            ret = bad(r, "a byte that is zero");
        else
            ret = take_line(r, text, size, whole);
    }
    if (ret == 0 && ferror(file))
        ret = vfmig_error_set(r->reterr, -EIO, VFMIG_ORIGIN_LOCAL, 0, "cannot read %s: %s", r->path,
                              strerror(errno));
    free(text);
    return ret;
}

int trace_read(struct trace *trace, const char *path, struct vfmig_error *reterr)
{
    struct reader r = {.trace = trace, .path = path, .reterr = reterr};
    struct stat info;
    FILE *file = fopen(path, "re");

    if (!file)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_LOCAL, 0, "cannot read %s: %s", path,
                               strerror(errno));
    if (fstat(fileno(file), &info) == 0 && S_ISDIR(info.st_mode)) {
        fclose(file);
        return vfmig_error_set(reterr, -EISDIR, VFMIG_ORIGIN_LOCAL, 0, "%s is a directory", path);
    }
    r.tokener = json_tokener_new_ex(MAX_DEPTH);
    if (!r.tokener)
        abort();
    trace->cut[trace->file_count].path = path;
    int ret = read_lines(&r, file);
    json_tokener_free(r.tokener);
    fclose(file);
    trace->file_count++;
    if (ret == 0 && !r.begun[0] && !r.begun[1])
        ret = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                              "%s is empty: no line of a trace", path);
    return ret;
}

void trace_free(struct trace *trace)
{
    for (size_t i = 0; i < trace->attempt_count; i++) {
        for (size_t j = 0; j < trace->attempts[i].count; j++)
            free_values(&trace->attempts[i].events[j]);
        free(trace->attempts[i].events);
    }
    free(trace->attempts);
}

/* --- which one --- */

static const char *id_of(const struct trace_attempt *attempt)
{
    return trace_s(&attempt->events[0], "id");
}

static struct trace_attempt *last(const struct trace *trace, bool source, const char *id)
{
    for (size_t i = trace->attempt_count; i-- > 0;) {
        struct trace_attempt *attempt = &trace->attempts[i];
        if (attempt->source == source && *id_of(attempt) &&
            !strncmp(id_of(attempt), id, strlen(id)))
            return attempt;
    }
    return NULL;
}

int trace_choose(const struct trace *trace, const char *id, struct trace_attempt **ret_source,
                 struct trace_attempt **ret_dest, struct vfmig_error *reterr)
{
    *ret_source = last(trace, true, id);
    *ret_dest = last(trace, false, *ret_source ? id_of(*ret_source) : id);
    if (!*ret_source && !*ret_dest)
        return vfmig_error_set(reterr, -ENOENT, VFMIG_ORIGIN_LOCAL, 0,
                               *id ? "there is no migration whose id begins with %s"
                                   : "there is no migration in it%s",
                               id);
    if (trace->file_count < 2 || (*ret_source && *ret_dest))
        return 0;
    return vfmig_error_set(
        reterr, -ENOENT, VFMIG_ORIGIN_LOCAL, 0,
        "the traces are not of one migration: %s has nothing of %.32s",
        trace->cut[(*ret_source ? *ret_source : *ret_dest)->path == trace->cut[0].path].path,
        id_of(*ret_source ? *ret_source : *ret_dest));
}
