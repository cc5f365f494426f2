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
enum { CONTROL = 64, ENOUGH = 50000 };

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

/* Returns how many cells of the table are empty that need not be. */
static unsigned report(double seconds)
{
    unsigned empty = 0;

    printf("%-28s", "fault (struck, by step)");
    for (unsigned step = 0; step < STEP_COUNT; step++)
        printf(" %8s", step_name(step));
    putchar('\n');
    for (unsigned kind = 0; kind < FAULT_COUNT; kind++) {
        printf("%-28s", fault_name(kind));
        for (unsigned step = 0; step < STEP_COUNT; step++) {
            empty += fault_possible(kind, step) && !tally.struck[kind][step];
            if (fault_possible(kind, step))
                printf(" %8llu", (unsigned long long)tally.struck[kind][step]);
            else
                printf(" %8s", "-");
        }
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
    if (empty)
        printf("%u cells of the table are empty\n", empty);
    return empty;
}

/* A run of its own without any fault, now and then: the guest arrives. */
static bool control_run(uint64_t seed)
{
    sim_run(seed, 0);
    if (!sim.broken && sim.outcome != VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION)
        broke("one", "nothing went wrong, and the guest is not at the destination");
    return !sim.broken;
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

/* --- deliberate faults --- */

#ifdef VFMIG_SABOTAGE
static const struct {
    const char *name, *text;
} sabotages[] = {
#define SABOTAGE(name, text) {name, text},
#include "sabotage.def"
};

/* By which seed each is caught, and as what. Returns how many are not. */
static int sabotage_table(uint64_t from, uint64_t number)
{
    int missed = 0;

    if (!control_run(from))
        missed++; /* then nothing that follows means anything */
    printf("| deliberate fault | what it does | caught by seed number | as |\n|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof(sabotages) / sizeof(sabotages[0]); i++) {
        uint64_t n = 0;
        setenv("VFMIG_SABOTAGE", sabotages[i].name, 1);
        bool arrives = control_run(from);
        while (arrives && n < number && !sim.broken)
            sim_run(from + n++, ~0u);
        missed += !sim.broken;
        if (sim.broken)
            printf("| `%s` | %s | %llu | %s: %s |\n", sabotages[i].name, sabotages[i].text,
                   (unsigned long long)n, sim.broken, sim.detail);
        else
            printf("| `%s` | %s | not by %llu | |\n", sabotages[i].name, sabotages[i].text,
                   (unsigned long long)n);
        fflush(stdout);
    }
    return missed;
}
#else
static int sabotage_table(uint64_t from, uint64_t number)
{
    (void)from;
    (void)number;
    fprintf(stderr, "this build has no deliberate faults: meson -Dsabotage=true\n");
    return 1;
}
#endif

static int usage(const char *name)
{
    fprintf(stderr,
            "usage: %s [--from SEED] [--count N] [--until-broken]\n"
            "       %s --seed SEED [--keep BITS]   play one, event by event\n"
            "       %s --sabotage-table [--from SEED] [--count N]\n",
            name, name, name);
    return 2;
}

int main(int argc, char **argv)
{
    uint64_t from = 1, number = 1000, seed = 0;
    unsigned keep = ~0u;
    bool one = false, until_broken = false, table = false;
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
        else if (!strcmp(argv[i], "--sabotage-table"))
            table = true;
        else if (!strcmp(argv[i], "--until-broken"))
            until_broken = true;
        else
            return usage(argv[0]);
    }
    if (!number)
        return usage(argv[0]); /* nothing would be tried, and nothing found */
    if (table)
        return sabotage_table(from, number) != 0;
    if (one) {
        sim.verbose = true;
        sim_run(seed, keep);
        printf(sim.broken ? "%s: %s\n" : "%s%s\n",
               sim.broken ? sim.broken : vfmig_ho_outcome_name(sim.outcome), sim.detail);
        return sim.broken != NULL;
    }
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (uint64_t i = 0; i < number; i++) {
        bool arrives = i % CONTROL || control_run(from + i);
        if (!arrives && !until_broken) {
            failed(from + i, 0);
            return 1;
        }
        if (arrives)
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
    double seconds =
        (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    return report(seconds) && number >= ENOUGH;
}
