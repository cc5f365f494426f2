/* SPDX-License-Identifier: BSD-3-Clause */
/* Prototypes of the functions in rules.def. */
#ifndef VFMIG_CHECK_RULES_H
#define VFMIG_CHECK_RULES_H

struct check;
#define RULE(theme, id, function, clause, severity, dialects, needs, flags, title, text, source)   \
    void function(struct check *c);
#include "check/rules.def"

#endif
