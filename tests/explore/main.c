/* SPDX-License-Identifier: BSD-3-Clause */
/* explore [--quick] [--breaks PROPERTY] [SCOPE...]: explores these scopes, or all. With --breaks
 * only that property is looked at, and it is a success when it is broken: a deliberate fault was
 * found. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "search.h"

#define STOP VFMIG_FEATURE_STOP_COPY
#define NDMA (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA)
#define PRE  (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY)
#define FULL (NDMA | PRE)

static const struct scope scopes[] = {
    {.name = "faultless",
     .devices = 3,
     .features = {FULL, PRE, NDMA},
     .region = 2,
     .rounds = 1,
     .page_faults = 1,
     .own_steps_first = true,
     .room = 100000,
     .quick = true},
    {.name = "mixed",
     .devices = 2,
     .features = {FULL, STOP},
     .region = 1,
     .page_faults = 1,
     .faults = 1,
     .own_steps_first = true,
     .room = 400000,
     .quick = true},
    {.name = "pair",
     .devices = 2,
     .features = {FULL, NDMA},
     .region = 1,
     .page_faults = 1,
     .faults = 1,
     .own_steps_first = true,
     .room = 400000},
    {.name = "quiet-log",
     .devices = 2,
     .features = {FULL, NDMA},
     .region = 2,
     .quiet_log = 1,
     .page_faults = 1,
     .faults = 1,
     .own_steps_first = true,
     .room = 400000},
    {.name = "one",
     .devices = 1,
     .features = {FULL},
     .rounds = 1,
     .page_faults = 1,
     .faults = 1,
     .messages = 2,
     .room = 4000000},
    {.name = "one-two",
     .devices = 1,
     .features = {FULL},
     .page_faults = 1,
     .faults = 2,
     .own_steps_first = true,
     .room = 1000000},
    {.name = "one-three",
     .devices = 1,
     .features = {NDMA},
     .page_faults = 0,
     .faults = 3,
     .own_steps_first = true,
     .room = 6000000},
    {.name = "one-two-all",
     .devices = 1,
     .features = {FULL},
     .page_faults = 1,
     .faults = 2,
     .messages = 1,
     .room = 6000000},
    {.name = "pair-all",
     .devices = 2,
     .features = {FULL, PRE},
     .region = 2,
     .page_faults = 1,
     .faults = 1,
     .messages = 1,
     .room = 5000000},
    {.name = "pair-two",
     .devices = 2,
     .features = {FULL, NDMA},
     .region = 1,
     .page_faults = 0,
     .faults = 2,
     .messages = 0,
     .own_steps_first = true,
     .room = 4000000},
    {.name = "mixed-two",
     .devices = 2,
     .features = {FULL, PRE},
     .region = 1,
     .page_faults = 1,
     .faults = 2,
     .messages = 0,
     .own_steps_first = true,
     .room = 4000000},
    {.name = "three",
     .devices = 3,
     .features = {FULL, PRE, NDMA},
     .region = 2,
     .page_faults = 1,
     .faults = 1,
     .messages = 1,
     .own_steps_first = true,
     .room = 4000000},
    {.name = "three-all",
     .devices = 3,
     .features = {FULL, FULL, STOP},
     .region = 2,
     .faults = 1,
     .room = 4500000},
};

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void print_outcomes(const struct search *x)
{
    for (unsigned s = 0; s < VFMIG_HO_OUTCOME_COUNT; s++)
        for (unsigned d = 0; d < VFMIG_HO_OUTCOME_COUNT; d++)
            if (x->outcomes[s][d])
                printf("    %8u ends: source %s, destination %s\n", x->outcomes[s][d],
                       vfmig_ho_outcome_name(s), vfmig_ho_outcome_name(d));
}

static bool explore(const struct scope *scope, const char *breaks)
{
    struct search x;
    double begin = seconds();
    bool good = search_run(&x, scope);

    printf("%s: %u devices, %u page faults, %u faults, %u messages lost or doubled, %u more "
           "rounds%s\n",
           scope->name, scope->devices, scope->page_faults, scope->faults, scope->messages,
           scope->rounds, scope->own_steps_first ? ", the destination's own steps first" : "");
    printf("    %u worlds of %u bytes, %llu transitions, %u moves deep, %u ends, %.1f s\n", x.count,
           x.size, (unsigned long long)x.transitions, x.depth, x.ends, seconds() - begin);
    print_outcomes(&x);
    if (!good) {
        printf("BROKEN %s%s%s\nshortest way:\n", x.broken, x.detail[0] ? ": " : "", x.detail);
        search_print_way(&x);
    }
    bool expected = breaks ? is_property(x.broken, breaks) : good;
    search_done(&x);
    fflush(stdout);
    return expected;
}

static bool wanted(const struct scope *scope, char **names, int count, bool quick)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(names[i], scope->name))
            return true;
    return count == 0 && (scope->quick || !quick);
}

int main(int argc, char **argv)
{
    const char *breaks = NULL;
    bool quick = false, good = true;
    unsigned explored = 0;
    int i = 1;

    for (; i < argc && argv[i][0] == '-'; i++) {
        if (!strcmp(argv[i], "--quick")) {
            quick = true;
        } else if (!strcmp(argv[i], "--breaks") && i + 1 < argc) {
            look_for(breaks = argv[++i]);
        } else {
            fprintf(stderr, "usage: explore [--quick] [--breaks PROPERTY] [SCOPE...]\n");
            return 2;
        }
    }
    for (size_t s = 0; s < sizeof(scopes) / sizeof(scopes[0]); s++) {
        if (!wanted(&scopes[s], argv + i, argc - i, quick))
            continue;
        good &= explore(&scopes[s], breaks);
        explored++;
    }
    if (!explored) {
        fprintf(stderr, "explore: no such scope\n");
        return 2;
    }
    return good ? 0 : 1;
}
