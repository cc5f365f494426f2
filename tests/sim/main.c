/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs seeds and tells what became of them. A seed that fails is made smaller, and the command that
 * plays it again is printed. */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct tally {
    uint64_t begun[FAULT_COUNT][STEP_COUNT], struck[FAULT_COUNT][STEP_COUNT];
    uint64_t outcome[VFMIG_HO_OUTCOME_COUNT];
    uint64_t runs, faults, strikes, three, precopied, events, attempts, again;
};

static struct tally tally;

void say(const char *format, ...)
{
    va_list args;

    if (!sim.verbose)
        return;
    printf("%9.3f ms  ", (double)sim.now / 1e6);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

static void count(void)
{
    unsigned begun = 0;

    tally.runs++;
    tally.outcome[sim.outcome]++;
    tally.precopied += sim.precopied;
    tally.events += sim.events;
    tally.attempts += sim.attempts;
    for (unsigned i = 0; i < sim.fault_count; i++) {
        const struct fault *f = &sim.faults[i];
        if (!f->begun)
            continue;
        begun++;
        if (f->began_at == STEP_COUNT)
            continue;
        tally.begun[f->kind][f->began_at]++;
        tally.struck[f->kind][f->began_at] += f->struck;
    }
    tally.faults += begun;
    tally.strikes += sim.struck;
    tally.three += begun >= 3;
}

static void report(double seconds)
{
    printf("%-28s", "fault (struck, by step)");
    for (unsigned step = 0; step < STEP_COUNT; step++)
        printf(" %8s", step_name(step));
    putchar('\n');
    for (unsigned kind = 0; kind < FAULT_COUNT; kind++) {
        printf("%-28s", fault_name(kind));
        for (unsigned step = 0; step < STEP_COUNT; step++)
            printf(" %8llu", (unsigned long long)tally.struck[kind][step]);
        putchar('\n');
    }
    for (unsigned i = 0; i < VFMIG_HO_OUTCOME_COUNT; i++)
        if (tally.outcome[i])
            printf("outcome %-24s %8llu  %5.1f %%\n", vfmig_ho_outcome_name(i),
                   (unsigned long long)tally.outcome[i],
                   100.0 * (double)tally.outcome[i] / (double)tally.runs);
    printf("%llu seeds, %.2f faults begun and %.2f struck a seed, 3 and more in %.1f %%; pre-copy "
           "in %.1f %%; "
           "%.2f attempts and %.0f events a seed\n",
           (unsigned long long)tally.runs, (double)tally.faults / (double)tally.runs,
           (double)tally.strikes / (double)tally.runs,
           100.0 * (double)tally.three / (double)tally.runs,
           100.0 * (double)tally.precopied / (double)tally.runs,
           (double)tally.attempts / (double)tally.runs, (double)tally.events / (double)tally.runs);
    printf("%.1f s, %.0f seeds an hour\n", seconds, 3600.0 * (double)tally.runs / seconds);
}

/* Faults are left out while it still fails the same way. */
static unsigned shrink(uint64_t seed, unsigned keep, const char *broken)
{
    for (unsigned i = 0; i < FAULTS_MAX; i++) {
        unsigned fewer = keep & ~(1u << i);
        if (fewer == keep)
            continue;
        sim_run(seed, fewer);
        if (sim.broken && !strcmp(sim.broken, broken))
            keep = fewer;
    }
    return keep;
}

static void failed(uint64_t seed, unsigned keep)
{
    const char *broken = sim.broken;

    printf("seed %llu: %s: %s\n", (unsigned long long)seed, broken, sim.detail);
    keep = shrink(seed, keep & ((1u << sim.fault_count) - 1), broken);
    sim_run(seed, keep);
    printf("with these faults alone:");
    for (unsigned i = 0; i < sim.fault_count; i++)
        if (keep & (1u << i))
            printf(" %s in %s;", fault_name(sim.faults[i].kind), step_name(sim.faults[i].step));
    printf("\nplay it again: vfmig-sim --seed %llu --keep 0x%x\n", (unsigned long long)seed, keep);
}

static int usage(const char *name)
{
    fprintf(stderr,
            "usage: %s [--from SEED] [--count N] [--until-broken]\n"
            "       %s --seed SEED [--keep BITS]   play one, event by event\n",
            name, name);
    return 2;
}

int main(int argc, char **argv)
{
    uint64_t from = 1, number = 1000, seed = 0;
    unsigned keep = ~0u;
    bool one = false, until_broken = false;
    struct timespec begin, end;

    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--from") && more)
            from = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--count") && more)
            number = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--seed") && more)
            seed = strtoull(argv[++i], NULL, 0), one = true;
        else if (!strcmp(argv[i], "--keep") && more)
            keep = (unsigned)strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--until-broken"))
            until_broken = true;
        else
            return usage(argv[0]);
    }
    if (one) {
        sim.verbose = true;
        sim_run(seed, keep);
        printf(sim.broken ? "%s: %s\n" : "%s%s\n",
               sim.broken ? sim.broken : vfmig_ho_outcome_name(sim.outcome), sim.detail);
        return sim.broken != NULL;
    }
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (uint64_t i = 0; i < number; i++) {
        sim_run(from + i, keep);
        if (!sim.broken) {
            count();
            continue;
        }
        if (until_broken) {
            printf("caught by seed number %llu: %s: %s\n", (unsigned long long)(i + 1), sim.broken,
                   sim.detail);
            return 0;
        }
        failed(from + i, keep);
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (until_broken) {
        printf("not caught by %llu seeds\n", (unsigned long long)number);
        return 1;
    }
    report((double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
    return 0;
}
