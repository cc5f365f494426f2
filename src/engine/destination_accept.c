/* SPDX-License-Identifier: BSD-3-Clause */
/* The thread at the door (door.h): lets one arrival after the other in to the control thread, a new
 * migration or the source of an old one that asks for its outcome. */
#include "engine/destination.h"

#include <sys/eventfd.h>

#include "engine/confine.h"
#include "io/sock.h"

#define TELL_NS UINT64_C(1000000000) /* strangers shall not fill a trace */

void destination_refused(void *user, const struct vfmig_error *why)
{
    struct vfmig_destination *destination = user;
    uint64_t now = vfmig_now_ns();

    destination->untold++;
    if (destination->told_at_ns && now < destination->told_at_ns + TELL_NS)
        return;
    engine_trace(&destination->e, CONNECTION_REFUSED, VFMIG_I(why->code),
                 VFMIG_U(destination->untold));
    destination->told_at_ns = now;
    destination->untold = 0;
}

/* Whoever the control thread has no time for stays at the door, where others are listened to
 * meanwhile. */
static void offer(struct vfmig_destination *destination)
{
    pthread_mutex_lock(&destination->arrival_lock);
    bool taken = !destination->arrival;
    pthread_mutex_unlock(&destination->arrival_lock);
    struct arrival *arrival = taken ? door_let_in(destination->door) : NULL;
    if (!arrival)
        return;
    pthread_mutex_lock(&destination->arrival_lock);
    destination->arrival = arrival;
    pthread_mutex_unlock(&destination->arrival_lock);
    engine_post(&destination->e, &(struct engine_event){.kind = ENGINE_EVENT_CONNECTION});
}

struct arrival *destination_let_in(struct vfmig_destination *destination)
{
    pthread_mutex_lock(&destination->arrival_lock);
    struct arrival *arrival = destination->arrival;
    destination->arrival = NULL;
    pthread_mutex_unlock(&destination->arrival_lock);
    if (destination->wake >= 0)
        (void)eventfd_write(destination->wake, 1);
    return arrival;
}

void *destination_acceptor(void *arg)
{
    struct vfmig_destination *destination = arg;
    struct engine *e = &destination->e;

    if (e->options.confine && vfmig_confine(NULL))
        return NULL; /* engine_init() has found that it works: nobody gets in without it */
    while (!atomic_load(&destination->quit)) {
        door_turn(destination->door);
        offer(destination);
    }
    return NULL;
}
