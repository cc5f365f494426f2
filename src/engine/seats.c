/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/seats.h"

static bool is_free(const struct vfmig_seats *seats, const struct vfmig_seat *seat, int cpu)
{
    return cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &seat->before) &&
           !CPU_ISSET(cpu, &seats->taken);
}

void vfmig_seat_take(struct vfmig_seats *seats, struct vfmig_seat *seat)
{
    cpu_set_t only;
    int cpu = sched_getcpu();

    /* Fails on a host with more CPUs than the set holds, too. */
    if (seat->taken || sched_getaffinity(0, sizeof(seat->before), &seat->before) < 0)
        return;
    for (int i = 0; i < CPU_SETSIZE && !is_free(seats, seat, cpu); i++)
        cpu = i;
    CPU_ZERO(&only);
    if (!is_free(seats, seat, cpu))
        return;
    CPU_SET(cpu, &only);
    if (sched_setaffinity(0, sizeof(only), &only) < 0)
        return;
    CPU_SET(cpu, &seats->taken);
    seat->cpu = cpu;
    seat->taken = true;
}

void vfmig_seat_leave(struct vfmig_seats *seats, struct vfmig_seat *seat)
{
    if (!seat->taken)
        return;
    (void)sched_setaffinity(0, sizeof(seat->before), &seat->before);
    CPU_CLR(seat->cpu, &seats->taken);
    seat->taken = false;
}
