/* SPDX-License-Identifier: BSD-3-Clause */
/* Deliberate bugs of the simulated devices, for vfmig check to be tried on. */
#ifndef VFMIG_TOOLS_BUGS_H
#define VFMIG_TOOLS_BUGS_H

#include <stdbool.h>

#include "vfmig/error.h"

#define BUGS_NONE "this build has no bugs; one that is configured with -Dsabotage=true has"

/* True when the command line asks for the list, which is printed then: nothing else is needed. */
bool bugs_list(int argc, char **argv);
/* The device that is made next has it. -EINVAL: no such bug, or a build without any. */
int bugs_turn_on(const char *id, struct vfmig_error *reterr);

#endif
