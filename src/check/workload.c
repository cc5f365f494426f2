/* SPDX-License-Identifier: BSD-3-Clause */
/* The workloads that there are. */
#include <stddef.h>

#include "check/workload.h"

extern const struct check_workload check_workload_bulk, check_workload_dma;

const struct check_workload *const check_workloads[] = {
    &check_workload_dma,
    &check_workload_bulk,
    NULL,
};
