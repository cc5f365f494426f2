/* SPDX-License-Identifier: BSD-3-Clause */
/* The door of a destination: who has connected and is not let in yet. Any of them may be a stranger
 * who says nothing, so all are listened to at once, by one thread that waits for none of them.
 *
 * A connection is greeted (TLS, HELLO) and then is a migration's first, which gets a token, or
 * shows the token of one and is its next. A migration is let in when all its connections are there
 * and its first record is: the identity, or a question of a source that came back.
 * VFMIG_MAX_GREETINGS connections may be at the door; who leaves when one more comes is a rule of
 * door.c. docs/security.md. */
#ifndef VFMIG_ENGINE_DOOR_H
#define VFMIG_ENGINE_DOOR_H

#include "base/buffer.h"
#include "core/handover.h"
#include "engine/channel.h"

/* A migration's connections, greeted, and one record more. */
struct arrival {
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    uint32_t count;
    uint8_t id[VFMIG_HO_ID_BYTES];
    bool identity; /* text, else msg */
    struct vfmig_buffer text;
    struct vfmig_ho_msg msg;
};

/* Closes what was not taken out of it. */
void arrival_free(struct arrival *arrival);
/* The record that says what it is for. */
int arrival_take(struct arrival *arrival, const struct vfmig_record *record,
                 struct vfmig_error *reterr);

struct door_rules {
    int listener; /* the caller's, as is bell: an eventfd that ends a turn */
    int bell;
    uint64_t stall_ns; /* how long a greeting may take, and what comes next may not come */
    const struct vfmig_tls_creds *tls; /* NULL: plain */
    void (*on_refused)(void *user,
                       const struct vfmig_error *why); /* of each connection that is not let in */
    void *user;
};

struct door;

int door_new(const struct door_rules *rules, struct door **ret_door, struct vfmig_error *reterr);
void door_free(struct door *door);
/* Waits until somebody comes, says something or is late, or the bell rings, and deals with it. */
void door_turn(struct door *door);
/* Who may be let in: the first one that was ready, the caller's then. NULL: nobody. */
struct arrival *door_let_in(struct door *door);
/* How many connections there are. Any thread. */
uint32_t door_count(const struct door *door);

#endif
