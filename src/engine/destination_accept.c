/* SPDX-License-Identifier: BSD-3-Clause */
/* Accepts connections at any time, one arrival after the other: a new migration, or the source of an
 * old one that asks for its outcome. */
#include "engine/destination.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/confine.h"
#include "io/sock.h"

/* Until somebody knocks: 0; -ECANCELED when the destination is given up, -ETIMEDOUT. */
static int wait_for_knock(struct vfmig_destination *destination, uint64_t until_ns)
{
    struct pollfd fds[2] = {{.fd = destination->listener, .events = POLLIN},
                            {.fd = destination->wake, .events = POLLIN}};

    for (;;) {
        uint64_t now = vfmig_now_ns();
        uint64_t left_ms = until_ns > now ? (until_ns - now) / 1000000 + 1 : 0;
        int timeout = until_ns == UINT64_MAX ? -1 : left_ms > INT_MAX ? INT_MAX : (int)left_ms;
        int ready = poll(fds, 2, timeout);

        if (atomic_load(&destination->quit))
            return -ECANCELED;
        if (ready > 0)
            return 0;
        if (ready == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

static int next_fd(void *user, struct vfmig_error *reterr)
{
    struct vfmig_destination *destination = user;
    struct engine *e = &destination->e;
    uint64_t until_ns = destination->taken++ ? vfmig_deadline_ns(e->options.stall_ns) : UINT64_MAX;
    int fd;
    int ret = wait_for_knock(destination, until_ns);

    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_PEER, 0,
                               "no further connection of this migration came");
    ret = vfmig_sock_accept(destination->listener, vfmig_deadline_ns(e->options.stall_ns), &fd,
                            reterr);
    return ret ? ret : fd;
}

void arrival_free(struct arrival *arrival)
{
    if (!arrival)
        return;
    for (uint32_t i = 0; i < arrival->count; i++)
        vfmig_channel_free(arrival->channels[i]);
    vfmig_buffer_free(&arrival->text);
    free(arrival);
}

int arrival_read(struct arrival *arrival, struct vfmig_error *reterr)
{
    struct vfmig_record record;
    int ret = vfmig_channel_recv(arrival->channels[0], &record, reterr);

    if (ret)
        return ret;
    if (record.tag == VFMIG_RECORD_HANDOVER)
        return engine_ho_msg_decode(&record, &arrival->msg, reterr);
    if (record.tag != VFMIG_RECORD_IDENTITY)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                               "a migration begins with %s", vfmig_record_info(record.tag)->name);
    arrival->identity = true;
    arrival->text.limit = VFMIG_MAX_IDENTITY + 1;
    ret = vfmig_buffer_append(&arrival->text, record.payload, record.length);
    if (ret == 0)
        ret = vfmig_buffer_append(&arrival->text, NULL, 1); /* the terminator */
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "no memory for an identity") : 0;
}

/* While it comes nobody else gets in. */
static int read_in_time(const struct engine *e, struct arrival *arrival, struct vfmig_error *reterr)
{
    vfmig_channel_set_until(arrival->channels[0], vfmig_deadline_ns(e->options.stall_ns));
    int ret = arrival_read(arrival, reterr);
    vfmig_channel_set_until(arrival->channels[0], 0);
    return ret;
}

static void hand_in(struct vfmig_destination *destination, struct arrival *arrival)
{
    pthread_mutex_lock(&destination->arrival_lock);
    destination->arrival = arrival;
    engine_post(&destination->e, &(struct engine_event){.kind = ENGINE_EVENT_CONNECTION});
    while (destination->arrival && !atomic_load(&destination->quit))
        pthread_cond_wait(&destination->arrival_wake, &destination->arrival_lock);
    pthread_mutex_unlock(&destination->arrival_lock);
}

/* Who waits at the door stays there: without this it would be tried again at once, and told of each time. */
static void wait_for_room(void)
{
    const struct timespec moment = {.tv_nsec = 100000000};

    nanosleep(&moment, NULL);
}

void *destination_acceptor(void *arg)
{
    struct vfmig_destination *destination = arg;
    struct engine *e = &destination->e;
    const struct vfmig_dial dial = {.next_fd = next_fd,
                                    .user = destination,
                                    .stall_ns = e->options.stall_ns,
                                    .tls = destination->tls};

    if (e->options.confine && vfmig_confine(NULL))
        return NULL; /* engine_init() has found that it works: nobody gets in without it */
    while (!atomic_load(&destination->quit)) {
        struct vfmig_error error = {0};
        struct arrival *arrival = calloc(1, sizeof(*arrival));
        int ret;

        if (!arrival) {
            wait_for_room();
            continue;
        }
        destination->taken = 0;
        ret = vfmig_channels_accept(&dial, arrival->id, arrival->channels, &arrival->count, &error);
        if (ret == 0)
            ret = read_in_time(e, arrival, &error);
        if (ret == 0) {
            hand_in(destination, arrival);
            continue;
        }
        arrival_free(arrival);
        if (!atomic_load(&destination->quit))
            engine_trace(e, CONNECTION_REFUSED, VFMIG_I(ret));
        if (ret == -EMFILE || ret == -ENFILE || ret == -ENOMEM || ret == -ENOBUFS)
            wait_for_room();
    }
    return NULL;
}
