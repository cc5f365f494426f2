/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/sabotage.h"

#ifdef VFMIG_SABOTAGE
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static int points = -1;

/* From the start: threads that are confined pass points and can open nothing. */
__attribute__((constructor)) static void open_points(void)
{
    const char *path = getenv("VFMIG_POINTS");

    if (path)
        points = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static void note_point(const char *point)
{
    char line[80];
    int length = snprintf(line, sizeof(line), "%s\n", point);
    ssize_t written = points < 0 ? 0 : write(points, line, (size_t)length);

    (void)written; /* whoever reads the file misses it */
}

/* There is one such entry at most: it says where, and the how manieth time. */
static bool is_time_to_stop(const char *point)
{
    static atomic_uint passed;
    const char *list = getenv("VFMIG_SABOTAGE");
    const char *entry = list ? strstr(list, "stop-") : NULL;
    size_t length = strlen(point);

    if (!entry || strncmp(entry + 5, point, length) != 0 || entry[5 + length] != '#')
        return false;
    return atomic_fetch_add(&passed, 1) + 1 == strtoul(entry + 5 + length + 1, NULL, 10);
}

void vfmig_sabotage_point(const char *when, const char *what)
{
    char point[64];

    snprintf(point, sizeof(point), "%s-%s", when, what);
    note_point(point);
    if (vfmig_sabotage_on("kill", point))
        raise(SIGKILL);
    if (is_time_to_stop(point))
        raise(SIGSTOP); /* this thread first: it goes no further */
}
#else
typedef int vfmig_sabotage_is_not_built; /* ISO C wants a declaration in every unit */
#endif
