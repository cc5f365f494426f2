/* SPDX-License-Identifier: BSD-3-Clause */
/* What makes a run repeatable and its faults visible: the server's clock, randomness, mappings and
 * waiting go through the linker's --wrap to here while a run is on. */
#ifndef VFMIG_TESTS_FUZZ_WORLD_H
#define VFMIG_TESTS_FUZZ_WORLD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* A property does not hold: says which and ends the process as a crash. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, "\n");                                                                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* A run begins. make_room(user) reads all that the server has sent: it is called where the server
 * waits for a client that does not read. */
void world_begin(void (*make_room)(void *user), void *user);

/* It ends: no mapping and no descriptor may be left. */
void world_end(void);

/* Time passes; timers that are due are readable afterwards. */
void world_advance(uint64_t ns);

#endif
