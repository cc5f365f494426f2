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
/* Dies on the spot, as in a power cut, when it lists "kill-WHEN-WHAT". */
void vfmig_sabotage_kill(const char *when, const char *what);
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

static inline void vfmig_sabotage_kill(const char *when, const char *what)
{
    (void)when;
    (void)what;
}
#endif

#endif
