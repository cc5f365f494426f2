/* SPDX-License-Identifier: BSD-3-Clause */
/* Deliberate faults that a named test must notice. Only builds with -Dsabotage=true carry them;
 * everywhere else the question is a constant and the compiler drops the branch. */
#ifndef VFMIG_BASE_SABOTAGE_H
#define VFMIG_BASE_SABOTAGE_H

#include <stdbool.h>

#ifdef VFMIG_SABOTAGE
/* True when the environment's VFMIG_SABOTAGE lists name (comma separated). */
bool vfmig_sabotage(const char *name);
/* True when it lists "VERB-WHAT". */
bool vfmig_sabotage_on(const char *verb, const char *what);
/* A point that a migration passes. Dies on the spot, as in a power cut, when the list has
 * "kill-WHEN-WHAT"; stands still until somebody sends SIGCONT when it has "stop-WHEN-WHAT#N" and this
 * is the Nth time. Each is noted in the file that VFMIG_POINTS names, by which the others are chosen. */
void vfmig_sabotage_point(const char *when, const char *what);
#else
static inline bool vfmig_sabotage(const char *name)
{
    (void)name;
    return false;
}

static inline bool vfmig_sabotage_on(const char *verb, const char *what)
{
    (void)verb;
    (void)what;
    return false;
}

static inline void vfmig_sabotage_point(const char *when, const char *what)
{
    (void)when;
    (void)what;
}
#endif

#endif
