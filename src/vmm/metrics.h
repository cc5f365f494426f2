/* SPDX-License-Identifier: BSD-3-Clause */
/* Metrics in the text format of Prometheus (tables/metrics.def). */
#ifndef VFMIG_VMM_METRICS_H
#define VFMIG_VMM_METRICS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfmig/migrate.h"

enum vmm_metric_type { VMM_GAUGE, VMM_COUNTER };
enum vmm_metric_unit { VMM_SECONDS, VMM_BYTES, VMM_PLAIN, VMM_PERCENT };

struct vmm_metric {
    const char *name; /* NULL: no more */
    enum vmm_metric_type type;
    enum vmm_metric_unit unit;
    const char *labels, *field, *help;
};

/* The table. */
const struct vmm_metric *vmm_metrics(void);

#define VMM_MAX_METRICS 64u /* rows of the table, at most */

struct vmm_metrics {
    pthread_mutex_t lock;
    bool source;                                  /* whose states are this side's */
    uint64_t ended[2][VFMIG_MIGRATE_STATE_COUNT]; /* attempts by side (1: source) and state */
    uint64_t sums[VMM_MAX_METRICS];               /* of counters, by row */
    uint8_t counted[VFMIG_MIGRATION_ID_BYTES];    /* the last migration that is in them, ... */
    uint64_t share[VMM_MAX_METRICS];              /* ... and with how much: its end adds some more */
    struct vfmig_progress last;                   /* what was noted last */
};

void vmm_metrics_init(struct vmm_metrics *metrics);
void vmm_metrics_done(struct vmm_metrics *metrics);
/* From now on this side is a source. */
void vmm_metrics_leave(struct vmm_metrics *metrics);
/* One line of the trace; states are counted. True: this side's attempt is over. Any thread. */
bool vmm_metrics_line(struct vmm_metrics *metrics, const char *line);
/* The last or current migration as it is now, or state NONE: what was noted before stays. Counted when it
 * has ended and is not yet. Any thread. */
void vmm_metrics_note(struct vmm_metrics *metrics, const struct vfmig_progress *progress);
/* Appends the text of what was noted. Any thread. */
int vmm_metrics_print(struct vmm_metrics *metrics, struct vfmig_buffer *out);

#endif
