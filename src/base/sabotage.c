/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/sabotage.h"

#ifdef VFMIG_SABOTAGE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool vfmig_sabotage(const char *name)
{
    const char *list = getenv("VFMIG_SABOTAGE");
    size_t length = strlen(name);

    while (list && *list) {
        size_t item = strcspn(list, ",");
        if (item == length && memcmp(list, name, length) == 0)
            return true;
        list += item + (list[item] == ',');
    }
    return false;
}

bool vfmig_sabotage_on(const char *verb, const char *what)
{
    char name[64];

    snprintf(name, sizeof(name), "%s-%s", verb, what);
    return vfmig_sabotage(name);
}

void vfmig_sabotage_kill(const char *when, const char *what)
{
    char verb[64];

    snprintf(verb, sizeof(verb), "kill-%s", when);
    if (vfmig_sabotage_on(verb, what))
        raise(SIGKILL);
}
#else
typedef int vfmig_sabotage_is_not_built; /* ISO C wants a declaration in every unit */
#endif
