/* SPDX-License-Identifier: BSD-3-Clause */
/* Two handover machines, their shells, journals and a channel that loses, doubles, delays and
 * reorders: every message ever sent may be delivered at any later time, any number of times, or
 * never. Flat, so that an explorer can hash and compare it. */
#ifndef TESTS_CORE_HANDOVER_WORLD_H
#define TESTS_CORE_HANDOVER_WORLD_H

#include <stdio.h>

#include "core/handover.h"

enum { SRC = 0, DST = 1 };

struct side {
    uint64_t sent; /* messages on their way to the other side, by index */
    struct vfmig_handover h;
    uint8_t alive;       /* the process exists */
    uint8_t returned;    /* it exists again, after a crash: memory is gone */
    uint8_t runs;        /* vCPUs run here */
    uint8_t disk;        /* record that a reader of the journal would find */
    uint8_t disk_epoch;
    uint8_t work;        /* PREPARE (1) or RUN (2) under way in the shell */
    uint8_t has_data;    /* destination: the whole image of this epoch went to this incarnation */
    uint8_t reserved[5];
};
_Static_assert(sizeof(struct side) % 8 == 0, "no padding");

struct world {
    struct side side[2];
    uint8_t stale;   /* the source has run since the image was taken */
    uint8_t fenced;  /* an operator vouched for the source */
    uint8_t granted; /* a grant of this epoch was handed to the channel */
    uint8_t excused;   /* the source died while the destination handed back: nobody's mistake */
    uint8_t ran_there; /* the guest has run at the destination */
    uint8_t crashes, failures, aborts, links; /* faults left to happen */
};

struct move {
    uint8_t kind; /* enum move_kind */
    uint8_t side;
    uint8_t arg;
};

enum move_kind {
    MOVE_EVENT,     /* local event arg */
    MOVE_DELIVER,   /* message arg of the other side */
    MOVE_JOURNAL,   /* JOURNAL_DONE */
    MOVE_JOURNAL_FAIL, /* arg: 1 if the record is on disk nevertheless */
    MOVE_CRASH,     /* arg: 1 if the record being written is on disk */
    MOVE_RETURN,
    MOVE_BOOT,      /* a returned source boots the guest afresh */
    MOVE_REOFFER,   /* the source opens another attempt after a closed one */
};

struct limits {
    uint8_t crashes, failures, aborts, links, epochs;
};

void world_start(struct world *w, const struct limits *limits);

/* All moves that are possible; at most MOVES_MAX. */
enum { MOVES_MAX = 160 };
unsigned world_moves(const struct world *w, const struct limits *limits, struct move *moves);

/* Makes the move. Returns NULL, or the property that it broke. */
const char *world_make(struct world *w, const struct move *move);

/* No more faults: dead sides of the mask (bit 0 source, bit 1 destination) return, the shells do
 * their work and both talk until nothing changes. Returns NULL or the property that was broken. */
const char *world_settle(struct world *w, unsigned returning);

/* Calls visit for every reachable world; a broken property ends the program. */
void world_each(const struct limits *limits, void (*visit)(const struct world *w, void *opaque),
                void *opaque);

/* handover_table.c: the table of docs/handover.md. */
void print_table(FILE *out);

const char *move_text(const struct move *move, char *text, unsigned size);

#endif
