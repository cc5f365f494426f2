/* SPDX-License-Identifier: BSD-3-Clause */
/* Between a source and a destination on unix sockets: sees each record's head before it goes on, and can hold a
 * direction of a channel, or cut it. */
#ifndef TESTS_ENGINE_RELAY_H
#define TESTS_ENGINE_RELAY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RELAY_MOST 16u
#define RELAY_HEAD 40u

struct relay_way {
    int from, to; /* -1: cut */
    uint8_t head[RELAY_HEAD];
    size_t head_bytes;
    uint64_t payload; /* of the record under way, still to come */
    bool held;
    uint8_t *kept; /* what came since */
    size_t kept_bytes;
};

struct relay {
    char path[128], target[128], uri[160];
    int listener;
    pthread_t thread;
    atomic_bool quit, open_up, cut; /* what the thread is asked for; it answers by clearing it */
    uint32_t count;                 /* connections; two ways each, the first to the destination */
    struct relay_way ways[2 * RELAY_MOST];
    /* Whether the record goes on; if not, it and all that follows is held until relay_open_up. */
    bool (*pass)(struct relay *relay, bool to_destination, uint16_t tag, uint32_t channel);
    /* A record has gone on whole. True: its connection is cut, so that nothing comes after it. */
    bool (*passed)(struct relay *relay, bool to_destination, uint16_t tag, uint32_t channel);
    atomic_uint seen; /* for the two */
};

void relay_start(struct relay *relay, const char *dir, const char *target_uri);
void relay_open_up(struct relay *relay);
void relay_cut(struct relay *relay);
void relay_end(struct relay *relay);

#endif
