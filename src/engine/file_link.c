/* SPDX-License-Identifier: BSD-3-Clause */
/* A file in the place of the other side: records go into it or come from it, and what the handover
 * protocol needs to hear is answered here, by what the file's log says (docs/handover.md, "Files").
 * COMPLETE in the log is the grant; a claim is its receipt. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/le.h"
#include "engine/engine.h"
#include "io/sock.h"

bool engine_uri_is_file(const char *uri, const char **ret_path)
{
    bool is = !strncmp(uri, "file:", 5) && uri[5];

    if (is && ret_path)
        *ret_path = uri + 5;
    return is;
}

/* --- source --- */

static int send_opening(struct engine *e, struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    struct vfmig_buffer text = {.limit = VFMIG_MAX_IDENTITY};
    uint8_t out[VFMIG_HELLO_BYTES];
    struct vfmig_hello hello = {
        .version_min = VFMIG_STREAM_VERSION,
        .version_max = VFMIG_STREAM_VERSION,
        .channel_count = 1,
        .page_size = VFMIG_PAGE_SIZE,
    };

    memcpy(hello.migration_id, e->options.migration_id, sizeof(hello.migration_id));
    vfmig_hello_encode(out, &hello);
    int ret = engine_identity(&e->vm, &text, reterr);
    if (ret == 0)
        ret = engine_identity_needs(&e->options, &text, reterr);
    if (ret == 0)
        ret = vfmig_channel_send(channel, VFMIG_RECORD_HELLO, out, sizeof(out), reterr);
    if (ret == 0)
        ret = vfmig_channel_send(channel, VFMIG_RECORD_IDENTITY, text.data, text.size, reterr);
    vfmig_buffer_free(&text);
    return ret;
}

int engine_file_create(struct engine *e, struct vfmig_error *reterr)
{
    struct vfmig_channel *channel = NULL;
    char journal[VFMIG_SAVE_PATH_BYTES];
    const char *path;

    engine_uri_is_file(e->uri, &path);
    int ret = vfmig_journal_path(e->journal_dir, e->options.migration_id, VFMIG_HO_SOURCE, journal,
                                 sizeof(journal), reterr);
    if (ret == 0)
        ret = vfmig_save_create(path, e->options.migration_id, e->epoch, journal, &e->file, reterr);
    if (ret)
        return ret;
    int fd = fcntl(vfmig_save_fd(e->file), F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "no descriptor: %s",
                               strerror(errno));
    ret = vfmig_channel_new_file(fd, VFMIG_SIDE_SOURCE, &channel, reterr);
    if (ret)
        return ret;
    pthread_mutex_lock(&e->link_lock);
    e->channels[0] = channel;
    e->channel_count = 1;
    e->generation++;
    pthread_mutex_unlock(&e->link_lock);
    e->linked = true;
    ret = send_opening(e, channel, reterr);
    if (ret == 0)
        ret = engine_pack(e, reterr);
    if (ret)
        engine_link_free(e, /* bye= */ false);
    return ret;
}

static void *complete_main(void *arg)
{
    struct engine *e = arg;
    struct engine_event event = {.kind = ENGINE_EVENT_FILE};

    (void)vfmig_save_complete(e->file, &e->file_give_up, &event.error);
    engine_post(e, &event);
    return NULL;
}

/* The record, and behind SEAL the end of the stream; syncing takes its time in a thread. */
static int write_msg(struct engine *e, const struct vfmig_ho_msg *msg, struct vfmig_error *reterr)
{
    uint8_t out[sizeof(*msg)];

    memcpy(out, msg, sizeof(out));
    vfmig_le32_put(out + VFMIG_HO_ID_BYTES, msg->epoch);
    int ret = vfmig_channel_send(e->channels[0], VFMIG_RECORD_HANDOVER, out, sizeof(out), reterr);
    if (ret || msg->kind != VFMIG_HO_MSG_SEAL)
        return ret;
    ret = vfmig_channel_send(e->channels[0], VFMIG_RECORD_BYE, NULL, 0, reterr);
    if (ret)
        return ret;
    ret = -pthread_create(&e->file_thread, NULL, complete_main, e);
    e->file_ending = ret == 0;
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread") : 0;
}

static void answer(struct engine *e, const struct vfmig_ho_msg *msg, uint8_t kind, uint8_t record,
                   bool memory)
{
    struct engine_event event = {.kind = ENGINE_EVENT_MESSAGE, .at_ns = vfmig_now_ns()};

    event.msg = (struct vfmig_ho_msg){
        .epoch = msg->epoch, .kind = kind, .record = record, .memory = memory};
    memcpy(event.msg.id, msg->id, sizeof(msg->id));
    engine_post(e, &event);
}

static int source_msg(struct engine *e, const struct vfmig_ho_msg *msg, struct vfmig_error *reterr)
{
    struct engine_event event = {.kind = ENGINE_EVENT_FILE};
    int ret = 0;

    switch (msg->kind) {
    case VFMIG_HO_MSG_OFFER:
    case VFMIG_HO_MSG_SEAL:
        if (e->file_ending)
            return 0;
        ret = write_msg(e, msg, &event.error);
        if (ret && reterr)
            *reterr = event.error;
        if (ret && msg->kind == VFMIG_HO_MSG_SEAL)
            engine_post(e, &event);
        return ret;
    case VFMIG_HO_MSG_ABORT:
        /* It is not complete, or void: source.c sees to that before it lets the machine abort. */
        answer(e, msg, VFMIG_HO_MSG_REFUSED, VFMIG_HO_RECORD_REFUSED, /* memory= */ false);
        return 0;
    default:
        return 0;
    }
}

/* --- destination --- */

/* The source behind the file has given the guest away for good, and what it has given can be had
 * again as long as nothing has run. */
static int destination_msg(struct engine *e, const struct vfmig_ho_msg *msg,
                           struct vfmig_error *reterr)
{
    switch (msg->kind) {
    case VFMIG_HO_MSG_READY:
        answer(e, msg, VFMIG_HO_MSG_GRANT, VFMIG_HO_RECORD_GRANT_SENT, /* memory= */ true);
        return 0;
    case VFMIG_HO_MSG_QUERY:
        answer(e, msg, VFMIG_HO_MSG_OUTCOME, VFMIG_HO_RECORD_GRANT_SENT, /* memory= */ true);
        return 0;
    case VFMIG_HO_MSG_RUNNING:
        answer(e, msg, VFMIG_HO_MSG_RELEASED, VFMIG_HO_RECORD_RELEASED, /* memory= */ false);
        return 0;
    case VFMIG_HO_MSG_REFUSED:
        /* Without a record of it the claim stands: it is given back when there is one. */
        return msg->record == VFMIG_HO_RECORD_REFUSED ? vfmig_save_give_back(e->file, reterr) : 0;
    default:
        return 0;
    }
}

/* Nothing but these two is ever in a file: a grant in it would be none. */
int engine_file_heard(struct engine *e, struct vfmig_ho_msg *msg, struct vfmig_error *reterr)
{
    if (msg->kind != VFMIG_HO_MSG_OFFER && msg->kind != VFMIG_HO_MSG_SEAL)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_HANDOVER,
                               "message %s in a file", vfmig_ho_msg_name(msg->kind));
    memcpy(msg->id, e->file_id, sizeof(msg->id));
    msg->epoch = e->file_epoch;
    return 0;
}

int engine_file_msg(struct engine *e, const struct vfmig_ho_msg *msg, struct vfmig_error *reterr)
{
    int ret = e->role == VFMIG_FLOW_SOURCE ? source_msg(e, msg, reterr)
                                           : destination_msg(e, msg, reterr);

    if (ret && reterr)
        engine_note(e, reterr);
    return ret;
}

void engine_file_done(struct engine *e)
{
    if (e->file_ending)
        pthread_join(e->file_thread, NULL);
    e->file_ending = false;
    vfmig_save_close(e->file);
    e->file = NULL;
}
