/* SPDX-License-Identifier: BSD-3-Clause */
/* Documents of which nothing but a table is behind. */
#ifndef VFMIG_TOOLS_TABLES_MORE_H
#define VFMIG_TOOLS_TABLES_MORE_H

#include <stdio.h>

void tables_print_metrics(FILE *out);
void tables_print_probes(FILE *out);

#endif
