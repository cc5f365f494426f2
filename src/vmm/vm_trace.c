/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/vm_trace.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/bounds.h"

struct vmm_trace_line {
    struct vmm_trace_line *next;
    size_t size;
    char text[];
};

int vmm_trace_init(struct vmm_trace *trace, const char *path, struct vfmig_error *reterr)
{
    *trace = (struct vmm_trace){.fd = -1};
    trace->tail = &trace->head;
    pthread_mutex_init(&trace->lock, NULL);
    trace->made = true;
    if (!path)
        return 0;
    trace->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return trace->fd >= 0
               ? 0
               : vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_LOCAL, 0,
                                 "cannot write the trace to %s: %s", path, strerror(errno));
}

static void drop_first(struct vmm_trace *trace)
{
    struct vmm_trace_line *line = trace->head;

    trace->head = line->next;
    if (!trace->head)
        trace->tail = &trace->head;
    trace->bytes -= line->size;
    trace->first++;
    free(line);
}

void vmm_trace_done(struct vmm_trace *trace)
{
    if (!trace->made)
        return;
    while (trace->head)
        drop_first(trace);
    if (trace->fd >= 0)
        close(trace->fd);
    pthread_mutex_destroy(&trace->lock);
    trace->made = false;
}

/* A disk that is full takes the trace, not the migration. */
static void write_line(struct vmm_trace *trace, const char *text, size_t size)
{
    struct iovec parts[2] = {{.iov_base = (void *)text, .iov_len = size},
                             {.iov_base = "\n", .iov_len = 1}};
    ssize_t written = writev(trace->fd, parts, 2);

    if (written == (ssize_t)size + 1)
        return;
    fprintf(stderr, "vfmig vm: the trace ends here, it cannot be written: %s\n",
            written < 0 ? strerror(errno) : "no space");
    close(trace->fd);
    trace->fd = -1;
}

static void keep_line(struct vmm_trace *trace, const char *text, size_t size)
{
    struct vmm_trace_line *line = malloc(sizeof(*line) + size + 1);

    trace->next++;
    if (!line) {
        while (trace->head)
            drop_first(trace);
        trace->first = trace->next; /* lost, and counted so */
        return;
    }
    line->next = NULL;
    line->size = size;
    memcpy(line->text, text, size + 1);
    *trace->tail = line;
    trace->tail = &line->next;
    trace->bytes += size;
    while (trace->bytes > VFMIG_MAX_TRACE_KEPT)
        drop_first(trace);
}

void vmm_trace_line(struct vmm_trace *trace, const char *line)
{
    size_t size = strlen(line);

    pthread_mutex_lock(&trace->lock);
    if (trace->fd >= 0)
        write_line(trace, line, size);
    if (trace->keep)
        keep_line(trace, line, size);
    pthread_mutex_unlock(&trace->lock);
}

void vmm_trace_keep(struct vmm_trace *trace, bool keep)
{
    pthread_mutex_lock(&trace->lock);
    while (trace->head)
        drop_first(trace);
    trace->first = trace->next = 0;
    trace->keep = keep;
    pthread_mutex_unlock(&trace->lock);
}

struct json_object *vmm_trace_fetch(struct vmm_trace *trace, uint64_t from)
{
    struct json_object *result = json_object_new_object();
    struct json_object *lines = json_object_new_array();
    size_t bytes = 0;

    pthread_mutex_lock(&trace->lock);
    uint64_t at = trace->first;
    const struct vmm_trace_line *line = trace->head;
    for (; line && at < from; line = line->next)
        at++;
    uint64_t lost = from < trace->first ? trace->first - from : 0;
    for (; line && bytes < VFMIG_MAX_TRACE_ANSWER; line = line->next) {
        json_object_array_add(lines, json_object_new_string_len(line->text, (int)line->size));
        bytes += line->size;
        at++;
    }
    pthread_mutex_unlock(&trace->lock);
    json_object_object_add(result, "lines", lines);
    json_object_object_add(result, "next", json_object_new_uint64(at));
    json_object_object_add(result, "lost", json_object_new_uint64(lost));
    return result;
}
