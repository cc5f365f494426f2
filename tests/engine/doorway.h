/* SPDX-License-Identifier: BSD-3-Clause */
/* A door (engine/door.h) with an address, and the test in place of its thread: what happens there
 * happens when the test lets it take a turn. */
#ifndef TESTS_ENGINE_DOORWAY_H
#define TESTS_ENGINE_DOORWAY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/door.h"
#include "io/sock.h"

struct doorway {
    char dir[32], uri[128];
    int listener, bell;
    struct door *door;
    unsigned refused;
    struct vfmig_error why; /* of the last one */
};

static inline void doorway_note(void *opaque, const struct vfmig_error *why)
{
    struct doorway *d = opaque;

    d->refused++;
    d->why = *why;
}

/* A door at a listener that is the caller's. */
static inline void doorway_at(struct doorway *d, int listener, uint64_t stall_ns,
                              const struct vfmig_tls_creds *tls)
{
    *d = (struct doorway){.listener = listener, .bell = eventfd(0, EFD_CLOEXEC)};
    assert_true(d->bell >= 0);
    assert_int_equal(door_new(&(struct door_rules){.listener = listener,
                                                   .bell = d->bell,
                                                   .stall_ns = stall_ns,
                                                   .tls = tls,
                                                   .on_refused = doorway_note,
                                                   .user = d},
                              &d->door, NULL),
                     0);
}

static inline void doorway_left(struct doorway *d)
{
    door_free(d->door);
    close(d->bell);
}

static inline void doorway_open(struct doorway *d, uint64_t stall_ns,
                                const struct vfmig_tls_creds *tls)
{
    char dir[] = "/tmp/vfmig-door-XXXXXX", uri[128];
    int listener;

    assert_non_null(mkdtemp(dir));
    snprintf(uri, sizeof(uri), "unix:%s/door", dir);
    assert_int_equal(vfmig_sock_listen(uri, &listener, NULL), 0);
    doorway_at(d, listener, stall_ns, tls);
    strcpy(d->dir, dir);
    strcpy(d->uri, uri);
}

static inline void doorway_close(struct doorway *d)
{
    doorway_left(d);
    close(d->listener);
    unlink(strchr(d->uri, '/'));
    assert_int_equal(rmdir(d->dir), 0);
}

/* Turns that do not wait. In one of them one comes in, and all that is said is heard. */
static inline void doorway_turn(struct doorway *d, unsigned turns)
{
    while (turns--) {
        assert_int_equal(eventfd_write(d->bell, 1), 0);
        door_turn(d->door);
    }
}

/* Our end of a connection that has come in. */
static inline int doorway_knock(struct doorway *d)
{
    int fd;

    assert_int_equal(
        vfmig_sock_connect(d->uri, vfmig_deadline_ns(UINT64_C(20000000000)), &fd, NULL), 0);
    doorway_turn(d, 1);
    return fd;
}

/* Until somebody may be let in. */
static inline struct arrival *doorway_let_in(struct doorway *d)
{
    struct arrival *arrival;

    while (!(arrival = door_let_in(d->door)))
        door_turn(d->door);
    return arrival;
}

#endif
