/* SPDX-License-Identifier: BSD-3-Clause */
/* The flight recorder: the last lines of the trace are kept, whether somebody asked for them or not, and
 * written to a file when a migration fails. */
#ifndef VFMIG_VMM_VM_FLIGHT_H
#define VFMIG_VMM_VM_FLIGHT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "vfmig/error.h"

#define VMM_FLIGHT_NAME "flight-recorder.jsonl" /* in the journal's directory */

struct vmm_flight {
    pthread_mutex_t lock;
    bool made;
    char path[272], fresh[280]; /* of the file; while it is written. Empty: no recorder */
    bool source;                /* whose lines are this side's */
    char *head, *ring;          /* `trace` and `device` lines; the last of the others */
    size_t head_size, start, size;
    int fd;         /* -1: nothing is being written */
    size_t written; /* to it */
    bool told;      /* this attempt is in the file */
};

/* path NULL: in the journal's directory; without one (NULL), no recorder. */
int vmm_flight_init(struct vmm_flight *flight, const char *path, const char *journal_dir,
                    struct vfmig_error *reterr);
void vmm_flight_done(struct vmm_flight *flight);
/* From now on this side is a source. */
void vmm_flight_leave(struct vmm_flight *flight);
/* One line of the trace. Any thread; outside the downtime when it writes. */
void vmm_flight_line(struct vmm_flight *flight, const char *line);
/* Whether the last attempt is in the file. */
bool vmm_flight_told(struct vmm_flight *flight);

/* Whether a line of the trace is of that side and its event, and what follows, begins so. */
bool vmm_trace_is(const char *line, bool source, const char *event);

#endif
