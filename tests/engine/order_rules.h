/* SPDX-License-Identifier: BSD-3-Clause */
/* The RFC's order clauses over a trace (tables/trace.def), whatever else happened in the run: each line is
 * fed as it is written, and the first that breaks a clause is kept with the clause's name. */
#ifndef TESTS_ENGINE_ORDER_RULES_H
#define TESTS_ENGINE_ORDER_RULES_H

#include <stdbool.h>
#include <stdint.h>

#define ORDER_DEVICES 96u

struct order_rules {
    bool source;
    uint32_t count;
    bool ndma[ORDER_DEVICES], lost[ORDER_DEVICES], was_reset[ORDER_DEVICES];
    uint8_t state[ORDER_DEVICES]; /* enum vfmig_state */
    bool tracking, idle, parked, snapshot, final_log, back;
    uint32_t returns;     /* checks that led back to the rounds */
    uint64_t trial_pages; /* sent before them */
    uint32_t trials;
    uint32_t judged;   /* lines that a rule was asked about */
    char broken[400]; /* clause and line; empty: none */
};

/* One line of this side. A line `trace` begins an attempt and forgets the one before. */
void order_rules_feed(struct order_rules *rules, const char *line);

#endif
