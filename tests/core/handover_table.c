/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of docs/handover.md, from the machines themselves: every pair of records, either side or
 * both dying, what is left then, and what comes of it once the dead have returned. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "handover_world.h"

enum { DIES_SOURCE = 1, DIES_DESTINATION = 2 };

/* Bits of what was seen for a pair. */
enum {
    KEPT_SOURCE = 1, KEPT_DESTINATION = 2, KEPT_BOTH = 4, KEPT_NONE = 8,
    RUNS_SOURCE = 1, RUNS_DESTINATION = 2, DIED_SOURCE = 4, DIED_DESTINATION = 8, ONLY_DESTINATION = 16,
};

static unsigned kept[VFMIG_HO_RECORD_COUNT][VFMIG_HO_RECORD_COUNT][4];
static unsigned comes[VFMIG_HO_RECORD_COUNT][VFMIG_HO_RECORD_COUNT][4];

static unsigned what_is_kept(const struct world *w)
{
    bool s = w->side[SRC].alive && w->side[SRC].h.memory;
    bool d = w->side[DST].alive && w->side[DST].h.memory;

    return s && d ? KEPT_BOTH : s ? KEPT_SOURCE : d ? KEPT_DESTINATION : KEPT_NONE;
}

static unsigned what_comes(const struct world *w)
{
    if (w->side[SRC].runs)
        return RUNS_SOURCE;
    if (w->side[DST].runs)
        return RUNS_DESTINATION;
    if (w->side[DST].disk == VFMIG_HO_RECORD_RUNNING)
        return DIED_DESTINATION;
    return w->side[DST].h.memory ? ONLY_DESTINATION : DIED_SOURCE;
}

static void try_deaths(const struct world *w)
{
    uint8_t s = w->side[SRC].disk, d = w->side[DST].disk;

    if (w->side[SRC].h.pending || w->side[DST].h.pending || s == VFMIG_HO_RECORD_NONE)
        return;
    for (unsigned dies = DIES_SOURCE; dies <= (DIES_SOURCE | DIES_DESTINATION); dies++) {
        struct world after = *w;
        for (uint8_t side = 0; side < 2; side++)
            if (dies & 1u << side && world_make(&after, &(struct move){MOVE_CRASH, side, 0}))
                exit(1);
        kept[s][d][dies] |= what_is_kept(&after);
        if (world_settle(&after, /* returning= */ 3))
            exit(1);
        comes[s][d][dies] |= what_comes(&after);
    }
}

static void visit(const struct world *w, void *opaque)
{
    try_deaths(w);
}

static void join(char *text, size_t size, unsigned bits, const char *const *names, unsigned count)
{
    text[0] = 0;
    for (unsigned i = 0; i < count; i++)
        if (bits & 1u << i)
            snprintf(text + strlen(text), size - strlen(text), "%s%s", *text ? ", or " : "", names[i]);
}

static const char *operator_does(unsigned bits, unsigned left)
{
    if (bits & ONLY_DESTINATION)
        return "if it stands at the destination: decide there, `--run --source-is-fenced` or `--refuse`";
    if (bits == DIED_SOURCE)
        return "start it afresh at the source";
    if (bits == DIED_DESTINATION)
        return left & KEPT_SOURCE ? "`--discard` at the source; start it afresh at the destination"
                                  : "start it afresh at the destination";
    return bits & DIED_SOURCE ? "if it died: start it afresh at the source" : "nothing";
}

void print_table(FILE *out)
{
    static const struct limits limits = {.aborts = 1, .links = 1, .epochs = 1};
    static const char *const kept_names[] = {"source", "destination", "both", "nowhere"};
    static const char *const comes_names[] = {"runs at the source", "runs at the destination",
                                              "died with the source", "died with the destination",
                                              "stands at the destination"};
    static const char *const dies_names[] = {"", "source", "destination", "both"};
    char left[80], then[160];

    memset(kept, 0, sizeof(kept));
    memset(comes, 0, sizeof(comes));
    world_each(&limits, visit, NULL);
    fprintf(out, "| source says | destination says | dies | memory is left at | after the return | "
                 "operator |\n|---|---|---|---|---|---|\n");
    for (unsigned s = 0; s < VFMIG_HO_RECORD_COUNT; s++)
        for (unsigned d = 0; d < VFMIG_HO_RECORD_COUNT; d++)
            for (unsigned dies = 1; dies < 4; dies++) {
                if (!kept[s][d][dies])
                    continue;
                join(left, sizeof(left), kept[s][d][dies], kept_names, 4);
                join(then, sizeof(then), comes[s][d][dies], comes_names, 5);
                fprintf(out, "| %s | %s | %s | %s | %s | %s |\n", vfmig_ho_record_name(s),
                        vfmig_ho_record_name(d), dies_names[dies], left, then,
                        operator_does(comes[s][d][dies], kept[s][d][dies]));
            }
}
