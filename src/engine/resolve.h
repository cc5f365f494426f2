/* SPDX-License-Identifier: BSD-3-Clause */
/* Who has the guest, and what an operator may do about it: the logic of `vfmig status` and
 * `vfmig resolve`. It reads journals; where the process of a side is gone it also continues its
 * handover machine from the journal, exactly as the process would have done on its return.
 * docs/handover.md is the operator's view of this. */
#ifndef VFMIG_ENGINE_RESOLVE_H
#define VFMIG_ENGINE_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/handover.h"
#include "engine/journal.h"
#include "vfmig/error.h"

/* One side of one migration, as its journal and, if known, its peer's journal show it. */
struct vfmig_resolve_view {
    struct vfmig_journal_summary own;
    struct vfmig_journal_summary peer; /* of the other role, if peer_known */
    bool peer_known;
    bool memory_here; /* the process of this side lives and has the guest's memory */
    bool settled;     /* nothing is left to decide on this side */
    bool may_start;   /* a guest may be started afresh here: nothing else can run it */
    uint8_t outcome;  /* enum vfmig_ho_outcome */
    const char *now;  /* one sentence: what is */
    const char *todo; /* one sentence: what to do; "" if nothing */
};

enum vfmig_resolve_decision {
    VFMIG_RESOLVE_SETTLE = 0, /* whatever the records allow */
    VFMIG_RESOLVE_RUN,        /* destination: run the copy that stands here */
    VFMIG_RESOLVE_REFUSE,     /* destination: never run it, give the copy up */
    VFMIG_RESOLVE_DISCARD,    /* source: give up the file, which is claimed for that, or the memory of a guest that died there */
    VFMIG_RESOLVE_DECISION_COUNT
};

/* What a living side is asked to do (its control socket carries it), and what is known of the peer. */
struct vfmig_resolve_request {
    uint8_t id[VFMIG_HO_ID_BYTES]; /* for a living side, which checks it */
    enum vfmig_resolve_decision decision;
    bool source_is_fenced; /* RUN without a grant on record: the operator vouches for the source */
    bool file_is_gone;     /* DISCARD of a file that is not where it was: the operator vouches that it
                              is nowhere else either */
    bool peer_memory;      /* the peer lives and has the memory */
    uint8_t peer_record;   /* enum vfmig_ho_record; NONE: unknown */
    uint32_t peer_epoch;
};

/* The views of all journals in dir. Peers are looked for in dir and in peer (a directory, a journal
 * file, or NULL). The caller frees the array. */
int vfmig_resolve_status(const char *dir, const char *peer, struct vfmig_resolve_view **ret_views,
                         size_t *ret_count, struct vfmig_error *reterr);

/* Fills ret_view from the journals of both sides; peer may be NULL. */
void vfmig_resolve_judge(const struct vfmig_journal_summary *own,
                         const struct vfmig_journal_summary *peer,
                         struct vfmig_resolve_view *ret_view);

/* Whether a decision is one for this side at all, its process alive or gone: 0, or -EPERM. */
int vfmig_resolve_check(const struct vfmig_resolve_view *view, const struct vfmig_resolve_request *request,
                        struct vfmig_error *reterr);

/* Decides for a side whose process is gone, and journals it. view comes from vfmig_resolve_status and
 * is brought up to date. Returns 0 also when the records do not allow a decision yet (view->settled
 * says so); -EBUSY when a process holds the journal, -ENODATA when RUN has no memory to run,
 * -EPERM when the decision does not fit, or what the journal said. */
int vfmig_resolve_apply(const char *dir, struct vfmig_resolve_view *view,
                        const struct vfmig_resolve_request *request, struct vfmig_error *reterr);

/* A destination that has no journal of this migration refuses it for good, so that its source, which
 * may have sent a grant, can go on. */
int vfmig_resolve_refuse_unknown(const char *dir, const uint8_t *id, uint32_t epoch,
                                 struct vfmig_error *reterr);

/* For the process of a living side: the event that its machine h is to be stepped with. -EPERM when
 * the request does not fit: above all RUN with neither a grant on record nor source_is_fenced. */
int vfmig_resolve_event(const struct vfmig_handover *h, const struct vfmig_resolve_request *request,
                        struct vfmig_ho_event *ret_event, struct vfmig_error *reterr);

/* The event that makes a destination refuse an attempt of which nothing complete has arrived; epoch 0
 * is the first. */
void vfmig_resolve_unseen_event(const uint8_t *id, uint32_t epoch, struct vfmig_ho_event *ret_event);

/* Asks a living side, and waits until its decision is on record. -ENOENT when it has another
 * migration, -ETIMEDOUT when it does not get to it, otherwise as vfmig_resolve_event. */
struct vfmig_source;
struct vfmig_destination;
int vfmig_source_resolve(struct vfmig_source *source, const struct vfmig_resolve_request *request,
                         struct vfmig_error *reterr);
int vfmig_destination_resolve(struct vfmig_destination *destination,
                              const struct vfmig_resolve_request *request,
                              struct vfmig_error *reterr);

/* May a VMM whose journals are in dir start its guest? -EBUSY with the reason while an unsettled
 * migration of a source that is gone lies there: it learns the outcome before it may run. The same
 * when the guest was last seen to move away from here, unless discard_released says that a fresh one
 * is wanted although it may run elsewhere. */
int vfmig_resolve_check_start(const char *dir, bool discard_released, struct vfmig_error *reterr);

#endif
