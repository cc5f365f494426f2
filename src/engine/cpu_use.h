/* SPDX-License-Identifier: BSD-3-Clause */
/* What the scheduler says of a thread. While the guest runs it has the CPUs, and whoever is timed waits for
 * them; when it is stopped nobody does. */
#ifndef VFMIG_ENGINE_CPU_USE_H
#define VFMIG_ENGINE_CPU_USE_H

#include <stdint.h>

/* CPU time used, and time that a CPU was waited for. */
struct vfmig_cpu_use {
    uint64_t cpu_ns, waited_ns;
};

/* The calling thread's so far; nothing where the kernel does not tell. */
struct vfmig_cpu_use vfmig_cpu_use(void);

/* Of took_ns, since begin was asked in this thread, what was not waiting for a CPU. */
uint64_t vfmig_cpu_alone(const struct vfmig_cpu_use *begin, uint64_t took_ns);

#endif
