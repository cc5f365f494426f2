/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig device --bug: the table is src/devices/bugs.def, the code of a bug is where a device would
 * have it (base/sabotage.h). */
#include "bugs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef VFMIG_SABOTAGE
static const struct {
    const char *rule, *id, *device, *what;
} bugs[] = {
#define BUG(rule, id, device, dialects, what) {rule, id, device, what},
#include "devices/bugs.def"
};
#define COUNT (sizeof(bugs) / sizeof(bugs[0]))

static void print_list(void)
{
    for (size_t i = 0; i < COUNT; i++)
        printf("%-32s %-17s %s (%s)\n", bugs[i].id, bugs[i].rule, bugs[i].what, bugs[i].device);
}

int bugs_turn_on(const char *id, struct vfmig_error *reterr)
{
    for (size_t i = 0; i < COUNT; i++)
        if (!strcmp(bugs[i].id, id))
            return setenv("VFMIG_SABOTAGE", id, 1) == 0
                       ? 0
                       : vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "--bug %s: %s", id,
                                         strerror(errno));
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                           "--bug: there is no bug called '%s'; --bug list names them", id);
}
#else
static void print_list(void)
{
    puts(BUGS_NONE);
}

int bugs_turn_on(const char *id, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "--bug %s: " BUGS_NONE, id);
}
#endif

bool bugs_list(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--bug=list") ||
            (!strcmp(argv[i], "--bug") && i + 1 < argc && !strcmp(argv[i + 1], "list"))) {
            print_list();
            return true;
        }
    return false;
}
