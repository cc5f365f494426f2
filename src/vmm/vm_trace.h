/* SPDX-License-Identifier: BSD-3-Clause */
/* The lines of a migration's trace: written to a file as they come, or kept for whoever asks by
 * QMP. */
#ifndef VFMIG_VMM_VM_TRACE_H
#define VFMIG_VMM_VM_TRACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfmig/error.h"

struct json_object;
struct vmm_trace_line;

struct vmm_trace {
    pthread_mutex_t lock;
    bool made;
    int fd; /* -1: no file */
    bool keep;
    struct vmm_trace_line *head, **tail; /* kept, oldest first */
    uint64_t first, next; /* numbers of the oldest one that is kept and of the next one */
    size_t bytes;
};

/* path NULL: no file. What is in the file is lost. */
int vmm_trace_init(struct vmm_trace *trace, const char *path, struct vfmig_error *reterr);
void vmm_trace_done(struct vmm_trace *trace);
/* One line without newline. Any thread. */
void vmm_trace_line(struct vmm_trace *trace, const char *line);
/* Forgets what is kept, and keeps lines from now on, or does not. */
void vmm_trace_keep(struct vmm_trace *trace, bool keep);
/* {"lines": [...], "next": number, "lost": lines that nobody fetched in time}: some of the lines
 * from this number on. No lines: there are no more for now. */
struct json_object *vmm_trace_fetch(struct vmm_trace *trace, uint64_t from);

#endif
