/* SPDX-License-Identifier: BSD-3-Clause */
/* CPUs of their own for a few threads that feed sockets whose other end is on this host. Where sender
 * and receiver of a connection share a CPU they share its cache; where the scheduler puts both senders
 * on one and both receivers on another, memory goes at half the speed, and it may change its mind in the middle. */
#ifndef VFMIG_ENGINE_SEATS_H
#define VFMIG_ENGINE_SEATS_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

/* Which are taken; zeroed before use, under the caller's lock. */
struct vfmig_seats {
    cpu_set_t taken;
};

/* A thread's; zeroed before use, its own thread only. */
struct vfmig_seat {
    cpu_set_t before; /* where it might run otherwise */
    int cpu;
    bool taken;
};

/* The calling thread stays on the CPU that it is on, or on another that it may use and nobody has taken. With
 * none left, or where the kernel does not want it, it goes where it always could. */
void vfmig_seat_take(struct vfmig_seats *seats, struct vfmig_seat *seat);
void vfmig_seat_leave(struct vfmig_seats *seats, struct vfmig_seat *seat);

/* The calling thread reads what one of channels senders on this host, each with a seat, sends over fd: with too
 * few CPUs for all of them and their readers it goes to that of its sender, and leaves it when not wanted any
 * more. Elsewhere it stays where it is. Cheap: called for each record. */
void vfmig_seat_follow(struct vfmig_seat *seat, int fd, uint32_t channels, bool wanted);

#endif
