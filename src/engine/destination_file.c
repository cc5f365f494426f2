/* SPDX-License-Identifier: BSD-3-Clause */
/* A destination whose source is a file: claimed once its identity fits, given back unless it runs. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "engine/confine.h"
#include "engine/destination.h"

/* A process that is gone had claimed it by this very journal, which is ours now. What it has on
 * record counts, as for any side that returns: before RUNNING it is refused. */
static int settle_old_claim(struct engine *e, const struct vfmig_save_entry *claim,
                            struct vfmig_error *reterr)
{
    const struct vfmig_journal_entry *last = vfmig_journal_last(e->journal);
    bool same = last->record && last->epoch == claim->epoch;

    if (same && last->record == VFMIG_HO_RECORD_RUNNING)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "the guest of this file was restored here before, and has run: "
                               "journal %s",
                               claim->journal);
    if (same && last->record == VFMIG_HO_RECORD_REFUSED)
        return 0;
    return vfmig_journal_append(e->journal, claim->epoch, VFMIG_HO_RECORD_REFUSED,
                                "its process was gone when the file was claimed again", NULL, reterr);
}

int destination_claim(struct engine *e, struct vfmig_error *reterr)
{
    const struct vfmig_save_entry *claim = &vfmig_save_log(e->file)->claim;
    char journal[PATH_MAX];
    int ret = 0;

    e->file_epoch = 1;
    if (!e->clone && !realpath(vfmig_journal_name(e->journal), journal))
        ret = vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "cannot find journal %s: %s",
                              vfmig_journal_name(e->journal), strerror(errno));
    if (ret == 0 && !e->clone && strlen(journal) >= VFMIG_SAVE_PATH_BYTES)
        ret = vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                              "the journal's path is too long to be put on record in the file");
    if (ret == 0 && !e->clone && claim->kind && !strcmp(claim->journal, journal))
        ret = settle_old_claim(e, claim, reterr);
    if (ret == 0 && !e->clone)
        ret = vfmig_save_claim_begin(e->file, &e->file_epoch, reterr);
    if (ret == 0)
        ret = vfmig_journal_note(e->journal, e->file_epoch, e->control_path, reterr);
    if (ret == 0 && !e->clone)
        ret = vfmig_save_claim(e->file, journal, reterr);
    engine_trace(e, CLAIM, VFMIG_I(ret), VFMIG_U(e->file_epoch), VFMIG_B(e->clone));
    /* Attempts before this one are closed, whatever the journal says last. */
    return ret ? ret
               : vfmig_handover_init(&e->handover, VFMIG_HO_DESTINATION, NULL, 0,
                                     VFMIG_HO_RECORD_NONE, /* memory= */ false);
}

void destination_unclaim(struct engine *e)
{
    struct vfmig_error error = {0};
    int ret = 0;

    if (e->clone || !vfmig_save_is_claimed(e->file))
        return;
    const struct vfmig_journal_entry *last = vfmig_journal_last(e->journal);
    if (last->record != VFMIG_HO_RECORD_REFUSED || last->epoch != e->file_epoch)
        ret = vfmig_journal_append(e->journal, e->file_epoch, VFMIG_HO_RECORD_REFUSED,
                                   e->failure.text, NULL, &error);
    if (ret == 0)
        ret = vfmig_save_give_back(e->file, &error);
    engine_trace(e, GIVE_BACK, VFMIG_I(ret));
}

int destination_file_complete(struct engine *e, struct vfmig_error *reterr)
{
    int ret = 0;

    pthread_mutex_lock(&e->inbox_lock);
    for (unsigned kind = VMSTATE_EXTERNAL_FIRST; kind <= VMSTATE_VCPUS; kind++)
        if (!e->inbox_full[kind])
            ret = vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_VMSTATE,
                                  "the file ends without the state of the machine");
    pthread_mutex_unlock(&e->inbox_lock);
    for (uint32_t i = 0; ret == 0 && i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        pthread_mutex_lock(&dev->lock);
        if (!dev->ended)
            ret = vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVEND,
                                  "the file ends without the state of device %s", dev->id);
        pthread_mutex_unlock(&dev->lock);
    }
    if (ret == 0 && !e->handover.sealed)
        ret = vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_HANDOVER,
                              "the file ends without a SEAL");
    return ret;
}

/* HELLO and IDENTITY. */
static int read_opening(struct engine *e, struct arrival *arrival, struct vfmig_error *reterr)
{
    struct vfmig_record record;
    struct vfmig_hello hello;
    int ret = vfmig_channel_recv(arrival->channels[0], &record, reterr);

    if (ret)
        return ret;
    if (record.tag != VFMIG_RECORD_HELLO)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                               "the stream begins with %s", vfmig_record_info(record.tag)->name);
    ret = vfmig_hello_decode(record.payload, record.length, &hello, reterr);
    if (ret)
        return ret;
    if (hello.channel_count != 1 ||
        memcmp(hello.migration_id, vfmig_save_log(e->file)->begun.id, sizeof(hello.migration_id)))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record.tag,
                               "its log and its stream are of different guests");
    ret = vfmig_channel_recv(arrival->channels[0], &record, reterr);
    if (ret == 0)
        ret = arrival_take(arrival, &record, reterr);
    if (ret == 0 && !arrival->identity)
        ret = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_HANDOVER,
                              "no identity comes first");
    return ret;
}

struct opening {
    struct engine *e;
    struct arrival *arrival;
    int ret;
    struct vfmig_error error;
};

static void *opening_main(void *opaque)
{
    struct opening *opening = opaque;

    opening->ret = vfmig_confine(&opening->error);
    if (opening->ret == 0)
        opening->ret = read_opening(opening->e, opening->arrival, &opening->error);
    return NULL;
}

/* A file is a stranger's like a connection. */
static int read_opening_confined(struct engine *e, struct arrival *arrival, struct vfmig_error *reterr)
{
    struct opening opening = {.e = e, .arrival = arrival};
    pthread_t thread;
    int ret = -pthread_create(&thread, NULL, opening_main, &opening);

    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    pthread_join(thread, NULL);
    if (opening.ret && reterr)
        *reterr = opening.error;
    return opening.ret;
}

static int choose_id(struct engine *e, struct vfmig_error *reterr)
{
    memcpy(e->file_id, vfmig_save_log(e->file)->begun.id, sizeof(e->file_id));
    if (e->clone && getrandom(e->file_id, sizeof(e->file_id), 0) != sizeof(e->file_id))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0, "no random migration id");
    return 0;
}

static int open_file(struct engine *e, const char *path, struct arrival *arrival,
                     struct vfmig_error *reterr)
{
    int ret = vfmig_save_open(path, /* claim= */ !e->clone, &e->file, reterr);

    if (ret == 0)
        ret = vfmig_save_check(e->file, e->clone, reterr);
    if (ret == 0)
        ret = choose_id(e, reterr);
    if (ret)
        return ret;
    int fd = fcntl(vfmig_save_fd(e->file), F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "no descriptor: %s",
                               strerror(errno));
    memcpy(arrival->id, e->file_id, sizeof(arrival->id));
    ret = vfmig_channel_new_file(fd, VFMIG_SIDE_DEST, &arrival->channels[0], reterr);
    arrival->count = ret == 0;
    if (ret == 0)
        ret = e->options.confine ? read_opening_confined(e, arrival, reterr)
                                 : read_opening(e, arrival, reterr);
    if (ret)
        vfmig_error_prefix(reterr, "%s", path);
    return ret;
}

int vfmig_destination_restore(struct vfmig_destination *destination, const char *path, bool clone,
                              struct vfmig_error *reterr)
{
    struct engine *e = &destination->e;
    struct arrival *arrival;
    int ret;

    if (destination->listening)
        return vfmig_error_set(reterr, -EALREADY, VFMIG_ORIGIN_LOCAL, 0, "it listens already");
    arrival = calloc(1, sizeof(*arrival));
    if (!arrival)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a file");
    e->clone = clone;
    ret = open_file(e, path, arrival, reterr);
    if (ret) {
        arrival_free(arrival);
        return ret;
    }
    engine_state(e, VFMIG_MIGRATE_ACTIVE);
    destination->arrival = arrival;
    engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_CONNECTION});
    ret = -pthread_create(&e->control, NULL, destination_main, destination);
    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    destination->listening = true;
    return 0;
}
