/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/seats.h"

#include <sys/socket.h>

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

static void stand_up(struct vfmig_seat *seat)
{
    (void)sched_setaffinity(0, sizeof(seat->before), &seat->before);
    seat->taken = false;
}

void vfmig_seat_leave(struct vfmig_seats *seats, struct vfmig_seat *seat)
{
    if (!seat->taken)
        return;
    CPU_CLR(seat->cpu, &seats->taken);
    stand_up(seat);
}

void vfmig_seat_follow(struct vfmig_seat *seat, int fd, uint32_t channels, bool wanted)
{
    cpu_set_t only;
    int cpu;
    socklen_t size = sizeof(cpu);

    if (!wanted && seat->taken)
        stand_up(seat);
    /* Over loopback a segment is received where it was sent. */
    if (!wanted || getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, &size) < 0 ||
        (seat->taken && cpu == seat->cpu))
        return;
    if (!seat->taken && sched_getaffinity(0, sizeof(seat->before), &seat->before) < 0)
        return;
    if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &seat->before) ||
        2 * (uint64_t)channels <= (uint64_t)CPU_COUNT(&seat->before))
        return;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    if (sched_setaffinity(0, sizeof(only), &only) < 0)
        return;
    seat->cpu = cpu;
    seat->taken = true;
}
