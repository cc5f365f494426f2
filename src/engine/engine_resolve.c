/* SPDX-License-Identifier: BSD-3-Clause */
/* An operator's decision for a side that lives: it goes through the machine like everything else. */
#include "engine/engine.h"

#include <errno.h>
#include <string.h>

#include "io/sock.h"

#define ANSWER_NS (10ull * 1000000000u)

static int decide(struct engine *e, const struct vfmig_resolve_request *request,
                  struct vfmig_error *reterr)
{
    struct vfmig_error gone = {0};
    struct vfmig_ho_event event;

    /* The offer was lost with its source: only the journal knows of which migration it was. */
    if (e->handover_active && e->handover.state == VFMIG_HO_DST_LISTEN && !e->linked &&
        (request->decision == VFMIG_RESOLVE_REFUSE || request->peer_record) &&
        !memcmp(request->id, e->progress.migration_id, sizeof(request->id))) {
        vfmig_resolve_unseen_event(request->id, request->peer_epoch, &event);
        return engine_handover_msg(e, &event.msg);
    }
    if (!e->handover_active || memcmp(request->id, e->handover.id, sizeof(request->id)))
        return vfmig_error_set(reterr, -ENOENT, VFMIG_ORIGIN_LOCAL, 0,
                               "this process has no such migration");
    int ret = vfmig_resolve_event(&e->handover, request, &event, reterr);
    if (ret)
        return ret;
    /* The guest goes on only when nobody can restore it any more (docs/handover.md, "Files"). */
    if (event.kind == VFMIG_HO_EVENT_DISCARD && e->handover.state == VFMIG_HO_SRC_SAVED) {
        ret = vfmig_save_discard(e->file, reterr);
        if (ret)
            return ret;
        e->cancelled = true;
        vfmig_error_set(&gone, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                        "the file was discarded: the guest goes on here");
        engine_note(e, &gone);
    }
    engine_trace(e, RESOLVE, VFMIG_U(request->decision), VFMIG_B(request->source_is_fenced));
    ret = event.kind == VFMIG_HO_EVENT_MESSAGE
              ? engine_handover_msg(e, &event.msg)
              : engine_handover(e, (enum vfmig_ho_event_kind)event.kind);
    return ret ? vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, e->handover.state,
                                 "the migration is %s and does not take this decision",
                                 vfmig_ho_state_name(e->handover.state))
               : 0;
}

void engine_resolve_asked(struct engine *e)
{
    struct vfmig_resolve_request request;
    struct vfmig_error error = {0};

    pthread_mutex_lock(&e->status_lock);
    request = e->ask.request;
    uint64_t number = e->ask.asked;
    bool wanted = number != e->ask.answered;
    pthread_mutex_unlock(&e->status_lock);
    if (!wanted)
        return; /* whoever asked has left */
    int ret = decide(e, &request, &error);
    pthread_mutex_lock(&e->status_lock);
    if (e->ask.asked == number) {
        e->ask.ret = ret;
        e->ask.error = error;
        e->ask.answered = number;
        pthread_cond_broadcast(&e->status_changed);
    }
    pthread_mutex_unlock(&e->status_lock);
}

int engine_resolve(struct engine *e, const struct vfmig_resolve_request *request,
                   struct vfmig_error *reterr)
{
    uint64_t until_ns = vfmig_deadline_ns(ANSWER_NS);

    pthread_mutex_lock(&e->status_lock);
    if (e->ask.asked != e->ask.answered) {
        pthread_mutex_unlock(&e->status_lock);
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "another decision is under way");
    }
    uint64_t number = ++e->ask.asked;
    e->ask.request = *request;
    pthread_mutex_unlock(&e->status_lock);
    engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_RESOLVE});
    pthread_mutex_lock(&e->status_lock);
    while (e->ask.answered != number && vfmig_now_ns() < until_ns)
        engine_sleep_until(&e->status_changed, &e->status_lock, until_ns);
    int ret = e->ask.answered == number ? e->ask.ret : -ETIMEDOUT;
    if (ret == -ETIMEDOUT)
        vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0, "the migration does not answer");
    else if (ret && reterr)
        *reterr = e->ask.error;
    e->ask.answered = number;
    pthread_mutex_unlock(&e->status_lock);
    return ret;
}
