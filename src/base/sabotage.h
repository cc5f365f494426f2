/* SPDX-License-Identifier: BSD-3-Clause */
/* Deliberate faults that a named test must notice. Only builds with -Dsabotage=true carry them;
 * everywhere else the question is a constant and the compiler drops the branch. */
#ifndef VFMIG_BASE_SABOTAGE_H
#define VFMIG_BASE_SABOTAGE_H

#include <stdbool.h>

#ifdef VFMIG_SABOTAGE
/* True when the environment's VFMIG_SABOTAGE lists name (comma separated). */
bool vfmig_sabotage(const char *name);
#else
static inline bool vfmig_sabotage(const char *name)
{
    (void)name;
    return false;
}
#endif

#endif
