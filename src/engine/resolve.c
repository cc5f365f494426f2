/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/resolve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/save_file.h"

static const struct vfmig_journal_summary *find_peer(const struct vfmig_journal_summary *list,
                                                     size_t count,
                                                     const struct vfmig_journal_summary *own)
{
    for (size_t i = 0; i < count; i++)
        if (!memcmp(list[i].last.id, own->last.id, sizeof(own->last.id)) &&
            list[i].last.role != own->last.role && list[i].last.role)
            return &list[i];
    return NULL;
}

/* The peer's journals: a directory of them, or one file. */
static int read_peers(const char *peer, struct vfmig_journal_summary **ret_list, size_t *ret_count,
                      struct vfmig_error *reterr)
{
    struct stat st;

    *ret_list = NULL;
    *ret_count = 0;
    if (!peer)
        return 0;
    if (stat(peer, &st) < 0) {
        int code = -errno;
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot find the peer's journal %s: %s", peer, strerror(-code));
    }
    if (S_ISDIR(st.st_mode))
        return vfmig_journal_list(peer, ret_list, ret_count, reterr);
    struct vfmig_journal_summary *one = calloc(1, sizeof(*one));
    if (!one)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a journal");
    int r = vfmig_journal_read(peer, one, reterr);
    if (r == 0 && one->damage) {
        r = one->damage;
        if (reterr)
            *reterr = one->error;
    }
    if (r < 0) {
        free(one);
        return r;
    }
    if (!one->last.record) {
        memcpy(one->last.id, one->opened.id, sizeof(one->last.id));
        one->last.role = one->opened.role;
    }
    *ret_list = one;
    *ret_count = 1;
    return 0;
}

int vfmig_resolve_status(const char *dir, const char *peer, struct vfmig_resolve_view **ret_views,
                         size_t *ret_count, struct vfmig_error *reterr)
{
    struct vfmig_journal_summary *own = NULL, *peers = NULL;
    size_t own_count = 0, peer_count = 0;

    int r = vfmig_journal_list(dir, &own, &own_count, reterr);
    if (r == 0)
        r = read_peers(peer, &peers, &peer_count, reterr);
    struct vfmig_resolve_view *views = r == 0 ? calloc(own_count + 1, sizeof(*views)) : NULL;
    if (r == 0 && !views)
        r = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for %zu journals",
                            own_count);
    for (size_t i = 0; r == 0 && i < own_count; i++) {
        const struct vfmig_journal_summary *other = find_peer(peers, peer_count, &own[i]);
        if (!other)
            other = find_peer(own, own_count, &own[i]);
        vfmig_resolve_judge(&own[i], other, &views[i]);
    }
    free(own);
    free(peers);
    if (r < 0)
        return r;
    *ret_views = views;
    *ret_count = own_count;
    return 0;
}

/* Steps a machine whose process is gone; its journal is ours now. */
static int step(struct vfmig_handover *h, struct vfmig_journal *journal,
                const struct vfmig_ho_event *event, const char *reason, struct vfmig_error *reterr)
{
    struct vfmig_ho_actions acts;
    const struct vfmig_ho_event done = {.kind = VFMIG_HO_EVENT_JOURNAL_DONE};

    int r = vfmig_handover_step(h, event, &acts);
    if (r < 0)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                               "a %s that is %s does not take this decision",
                               h->role == VFMIG_HO_SOURCE ? "source" : "destination",
                               vfmig_ho_record_name(h->record));
    while (acts.journal) {
        r = vfmig_journal_append(journal, h->epoch, acts.journal, reason, NULL, reterr);
        if (r < 0)
            return r;
        vfmig_handover_step(h, &done, &acts);
    }
    return 0;
}

static void peer_message(const struct vfmig_handover *h, const struct vfmig_resolve_request *request,
                         uint8_t kind, struct vfmig_ho_event *ret_event)
{
    *ret_event = (struct vfmig_ho_event){
        .kind = VFMIG_HO_EVENT_MESSAGE,
        .msg = {.epoch = request->peer_epoch, .kind = kind, .record = request->peer_record,
                .memory = request->peer_memory},
    };
    memcpy(ret_event->msg.id, h->id, sizeof(h->id));
}

static int check_run(const struct vfmig_handover *h, const struct vfmig_resolve_request *request,
                     struct vfmig_error *reterr)
{
    if (h->role != VFMIG_HO_DESTINATION)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                               "only a destination can be told to run its copy");
    if (h->state == VFMIG_HO_DST_GRANTED || h->state == VFMIG_HO_DST_FENCED)
        return 0;
    if (h->state != VFMIG_HO_DST_READY || !h->memory)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                               "no complete copy stands here to be run (%s)",
                               vfmig_ho_state_name(h->state));
    if (request->peer_record == VFMIG_HO_RECORD_ABORTED ||
        request->peer_record == VFMIG_HO_RECORD_RESUMED)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                               "the source has unwound this migration: the copy is stale");
    return 0;
}

int vfmig_resolve_event(const struct vfmig_handover *h, const struct vfmig_resolve_request *request,
                        struct vfmig_ho_event *ret_event, struct vfmig_error *reterr)
{
    bool granted = request->peer_record == VFMIG_HO_RECORD_GRANT_SENT && request->peer_epoch == h->epoch;
    int r;

    *ret_event = (struct vfmig_ho_event){0};
    switch (request->decision) {
    case VFMIG_RESOLVE_SETTLE:
        if (request->peer_record == VFMIG_HO_RECORD_NONE)
            ret_event->kind = VFMIG_HO_EVENT_RETRY;
        else
            peer_message(h, request, VFMIG_HO_MSG_OUTCOME, ret_event);
        return 0;
    case VFMIG_RESOLVE_RUN:
        r = check_run(h, request, reterr);
        if (r < 0)
            return r;
        if (h->state != VFMIG_HO_DST_READY)
            ret_event->kind = VFMIG_HO_EVENT_RETRY;
        else if (granted)
            peer_message(h, request, VFMIG_HO_MSG_GRANT, ret_event);
        else if (request->source_is_fenced)
            ret_event->kind = VFMIG_HO_EVENT_FENCED;
        else
            return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                                   "no grant is on record: running needs --source-is-fenced, or the "
                                   "source's journal with its grant");
        return 0;
    case VFMIG_RESOLVE_REFUSE:
        ret_event->kind = VFMIG_HO_EVENT_ABORT;
        if (h->state == VFMIG_HO_DST_RUNNING)
            return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                                   "the guest has run here: there is nothing to refuse any more");
        if (h->role == VFMIG_HO_DESTINATION)
            return 0;
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                               "only a destination can refuse");
    default:
        ret_event->kind = VFMIG_HO_EVENT_DISCARD;
        if (h->role == VFMIG_HO_SOURCE)
            return 0;
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, h->state,
                               "only a source has something to discard");
    }
}

void vfmig_resolve_unseen_event(const uint8_t *id, uint32_t epoch, struct vfmig_ho_event *ret_event)
{
    *ret_event = (struct vfmig_ho_event){
        .kind = VFMIG_HO_EVENT_MESSAGE,
        .msg = {.epoch = epoch ? epoch : 1, .kind = VFMIG_HO_MSG_QUERY},
    };
    memcpy(ret_event->msg.id, id, sizeof(ret_event->msg.id));
}

static int refuse(struct vfmig_journal *journal, const uint8_t *id, uint32_t epoch,
                  const char *reason, struct vfmig_error *reterr)
{
    struct vfmig_handover h;
    struct vfmig_ho_event event;

    int r = vfmig_handover_init(&h, VFMIG_HO_DESTINATION, NULL, 0, VFMIG_HO_RECORD_NONE, false);
    vfmig_resolve_unseen_event(id, epoch, &event);
    return r < 0 ? r : step(&h, journal, &event, reason, reterr);
}

/* Nothing complete had arrived. A source that waits for the answer gets one; else it is nobody's
 * business. */
static int refuse_unseen(struct vfmig_journal *journal, const struct vfmig_resolve_view *view,
                         const struct vfmig_resolve_request *request, struct vfmig_error *reterr)
{
    bool waits = view->peer_known && view->peer.last.record;

    if (view->own.last.role != VFMIG_HO_DESTINATION ||
        (!waits && request->decision != VFMIG_RESOLVE_REFUSE))
        return 0;
    return refuse(journal, view->own.last.id, request->peer_epoch,
                  "resolve: nothing complete had arrived", reterr);
}

/* The file of a guest that nobody has any more: nobody may restore it from here on. */
static int discard_file(const char *path, bool is_gone, struct vfmig_error *reterr)
{
    struct vfmig_save_file *file = NULL;
    int r = vfmig_save_open(path, /* claim= */ true, &file, reterr);

    if (r == -ENOENT && is_gone)
        return 0;
    if (r == -ENOENT)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_LOCAL, 0,
                               "%s is not there, so that it cannot be claimed: bring it back, or say "
                               "--file-is-gone",
                               path);
    if (r == 0)
        r = vfmig_save_discard(file, reterr);
    vfmig_save_close(file);
    return r;
}

/* The machine goes on where its process left off; then it hears what its peer has on record. */
static int go_on(struct vfmig_journal *journal, const struct vfmig_resolve_view *view,
                 const struct vfmig_resolve_request *request, struct vfmig_error *reterr)
{
    const struct vfmig_journal_entry *last = vfmig_journal_last(journal);
    struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_START};
    struct vfmig_resolve_request hears = *request;
    struct vfmig_handover h;

    if (last->role != VFMIG_HO_SOURCE && view->own.opened.epoch > last->epoch)
        return refuse(journal, view->own.last.id, view->own.opened.epoch,
                      "resolve: its process is gone", reterr);
    if (!last->record)
        return refuse_unseen(journal, view, request, reterr);
    int r = vfmig_handover_init(&h, last->role, last->id, last->epoch, last->record, /* memory= */ false);
    if (r == 0)
        r = step(&h, journal, &event, "resolve: its process is gone", reterr);
    if (r == 0 && view->peer_known && view->peer.last.record) {
        hears.decision = VFMIG_RESOLVE_SETTLE;
        hears.peer_record = view->peer.last.record;
        hears.peer_epoch = view->peer.last.epoch;
        hears.peer_memory = view->peer.held;
        r = vfmig_resolve_event(&h, &hears, &event, reterr);
        if (r == 0)
            r = step(&h, journal, &event, "resolve: by the peer's journal", reterr);
    }
    if (r == 0 && request->decision == VFMIG_RESOLVE_DISCARD && h.state == VFMIG_HO_SRC_SAVED)
        r = discard_file(last->text, request->file_is_gone, reterr);
    if (r == 0 && request->decision == VFMIG_RESOLVE_DISCARD) {
        r = vfmig_resolve_event(&h, request, &event, reterr);
        if (r == 0)
            r = step(&h, journal, &event, "resolve: discarded by an operator", reterr);
    }
    return r;
}

int vfmig_resolve_check(const struct vfmig_resolve_view *view, const struct vfmig_resolve_request *request,
                        struct vfmig_error *reterr)
{
    bool source = view->own.last.role == VFMIG_HO_SOURCE;

    if (source && request->decision == VFMIG_RESOLVE_REFUSE)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0, "only a destination can refuse");
    if (source && request->decision == VFMIG_RESOLVE_RUN)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                               "only a destination can be told to run its copy");
    if (!source && request->decision == VFMIG_RESOLVE_DISCARD)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0, "only a source has something to discard");
    if (request->decision == VFMIG_RESOLVE_REFUSE && view->own.last.record == VFMIG_HO_RECORD_RUNNING)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                               "the guest has run here: there is nothing to refuse any more");
    return 0;
}

static int check_decision(const struct vfmig_resolve_view *view,
                          const struct vfmig_resolve_request *request, struct vfmig_error *reterr)
{
    if (view->own.held)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "process %u holds journal %s",
                               view->own.opened.pid, view->own.path);
    int r = vfmig_resolve_check(view, request, reterr);
    if (r == 0 && request->decision == VFMIG_RESOLVE_RUN)
        r = vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_LOCAL, 0,
                            "the process that had the copy is gone, and the copy with it");
    return r;
}

int vfmig_resolve_apply(const char *dir, struct vfmig_resolve_view *view,
                        const struct vfmig_resolve_request *request, struct vfmig_error *reterr)
{
    struct vfmig_journal *journal = NULL;
    struct vfmig_journal_summary own;
    struct vfmig_journal_summary peer = view->peer;
    bool peer_known = view->peer_known;

    if (view->own.damage) {
        if (reterr)
            *reterr = view->own.error;
        return view->own.damage;
    }
    int r = check_decision(view, request, reterr);
    if (r < 0)
        return r;
    r = vfmig_journal_open(dir, view->own.last.id, view->own.last.role, /* memory= */ false, NULL,
                           &journal, reterr);
    if (r < 0)
        return r;
    r = go_on(journal, view, request, reterr);
    vfmig_journal_close(journal);
    if (r == 0)
        r = vfmig_journal_read(view->own.path, &own, reterr);
    if (r < 0)
        return r;
    if (!own.last.record) {
        own.last.role = view->own.last.role;
        memcpy(own.last.id, view->own.last.id, sizeof(own.last.id));
    }
    vfmig_resolve_judge(&own, peer_known ? &peer : NULL, view);
    return 0;
}

int vfmig_resolve_refuse_unknown(const char *dir, const uint8_t *id, uint32_t epoch,
                                 struct vfmig_error *reterr)
{
    struct vfmig_journal *journal = NULL;

    int r = vfmig_journal_open(dir, id, VFMIG_HO_DESTINATION, /* memory= */ false, NULL, &journal, reterr);
    if (r < 0)
        return r;
    if (vfmig_journal_last(journal)->record)
        r = vfmig_error_set(reterr, -EEXIST, VFMIG_ORIGIN_LOCAL, 0,
                            "a journal of this migration exists");
    if (r == 0)
        r = refuse(journal, id, epoch, "resolve: never seen here", reterr);
    vfmig_journal_close(journal);
    return r;
}

/* The newest record that says where the guest is; a destination that refused says nothing of it. */
static const struct vfmig_journal_summary *find_newest(const struct vfmig_resolve_view *views,
                                                       size_t count)
{
    const struct vfmig_journal_summary *newest = NULL;

    for (size_t i = 0; i < count; i++) {
        const struct vfmig_journal_entry *last = &views[i].own.last;
        if ((last->role == VFMIG_HO_SOURCE ? last->record != VFMIG_HO_RECORD_NONE
                                           : last->record == VFMIG_HO_RECORD_RUNNING) &&
            (!newest || last->time_ns > newest->last.time_ns))
            newest = &views[i].own;
    }
    return newest;
}

static int check_released(const struct vfmig_resolve_view *views, size_t count, const char *dir,
                          struct vfmig_error *reterr)
{
    const struct vfmig_journal_summary *newest = find_newest(views, count);
    char text[2 * VFMIG_HO_ID_BYTES + 1];

    bool saved = newest && newest->last.record == VFMIG_HO_RECORD_SAVED;
    if (!newest || (newest->last.record != VFMIG_HO_RECORD_RELEASED && !saved))
        return 0;
    vfmig_ho_id_format(newest->last.id, text);
    if (saved)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "the guest was saved to %.160s: a fresh one is started only with "
                               "--discard-released",
                               newest->last.text);
    return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                           "the guest moved away from here in migration %s: a fresh one is started "
                           "only with --discard-released; see vfmig status %s",
                           text, dir);
}

int vfmig_resolve_check_start(const char *dir, bool discard_released, struct vfmig_error *reterr)
{
    struct vfmig_resolve_view *views = NULL;
    char text[2 * VFMIG_HO_ID_BYTES + 1];
    size_t count = 0;

    int r = vfmig_resolve_status(dir, NULL, &views, &count, reterr);
    for (size_t i = 0; r == 0 && i < count; i++) {
        const struct vfmig_journal_summary *own = &views[i].own;
        if (own->last.role != VFMIG_HO_SOURCE || own->held || (views[i].settled && !own->damage))
            continue;
        vfmig_ho_id_format(own->last.id, text);
        r = vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                            "migration %s is not settled: %s; see vfmig status %s", text,
                            own->damage ? own->error.text : views[i].now, dir);
    }
    if (r == 0 && !discard_released)
        r = check_released(views, count, dir, reterr);
    free(views);
    return r;
}
