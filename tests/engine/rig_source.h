/* SPDX-License-Identifier: BSD-3-Clause */
/* The source for a watch, which may be called by a thread of the destination's while the source is being freed. */
#ifndef TESTS_ENGINE_RIG_SOURCE_H
#define TESTS_ENGINE_RIG_SOURCE_H

#include "engine/engine.h"
#include "engine/source.h"
#include "rig.h"

static inline void rig_cut_link(struct rig *rig)
{
    pthread_mutex_lock(&rig->source_lock);
    if (rig->source)
        engine_link_shutdown(&rig->source->e);
    pthread_mutex_unlock(&rig->source_lock);
}

static inline void rig_cancel_source(struct rig *rig)
{
    pthread_mutex_lock(&rig->source_lock);
    if (rig->source)
        vfmig_source_cancel(rig->source);
    pthread_mutex_unlock(&rig->source_lock);
}

static inline void rig_free_source(struct rig *rig)
{
    pthread_mutex_lock(&rig->source_lock);
    struct vfmig_source *source = rig->source;
    rig->source = NULL;
    pthread_mutex_unlock(&rig->source_lock);
    vfmig_source_free(source);
}

#endif
