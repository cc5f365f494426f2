/* SPDX-License-Identifier: BSD-3-Clause */
/* How vfmig status and vfmig resolve show one side of a migration. */
#ifndef VFMIG_TOOLS_HANDOVER_SHOW_H
#define VFMIG_TOOLS_HANDOVER_SHOW_H

#include "engine/resolve.h"

struct json_object;

void handover_print(const struct vfmig_resolve_view *view);
struct json_object *handover_json(const struct vfmig_resolve_view *view);

#endif
