/* SPDX-License-Identifier: BSD-3-Clause */
/* USDT probes at events of the trace (tables/probes.def): instructions that do nothing until bpftrace,
 * perf or SystemTap puts something in their place. Without <sys/sdt.h> there are none. */
#ifndef VFMIG_ENGINE_PROBES_H
#define VFMIG_ENGINE_PROBES_H

#include <stdbool.h>

#include "engine/trace.h"

struct vfmig_probe_info {
    const char *name; /* NULL: no more */
    enum vfmig_trace_event event;
    unsigned arguments;
};

/* The table. */
const struct vfmig_probe_info *vfmig_probes(void);

/* values as for vfmig_trace_format(), at least those of the probe's arguments. */
void vfmig_probe(enum vfmig_trace_event event, bool source, const struct vfmig_trace_value *values);

#endif
