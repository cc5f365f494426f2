/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the source share. */
#ifndef VFMIG_ENGINE_SOURCE_H
#define VFMIG_ENGINE_SOURCE_H

#include "engine/engine.h"

struct vfmig_source {
    struct engine e;
    atomic_bool cancel; /* asked for before or while connecting */
    bool started;
};

int source_do_work(struct engine *e, uint32_t work, struct vfmig_error *reterr);
int source_do_data(struct engine *e, struct device_worker *dev, bool final,
                   struct vfmig_error *reterr);
int source_send_external(struct engine *e, uint32_t kind, struct vfmig_error *reterr);

/* source_file.c: the end of a save */
void source_file_ended(struct engine *e, const struct vfmig_error *error);
/* True when the abort waits for the file's last word. */
bool source_file_abort(struct engine *e);
void source_file_saved(struct engine *e);

/* source_connect.c: connections, identity, clock; -errno before anything was begun. */
int source_connect(struct vfmig_source *source, struct vfmig_error *reterr);
/* One connection again, for the handover alone. */
int source_reconnect(struct vfmig_source *source, struct vfmig_error *reterr);

#endif
