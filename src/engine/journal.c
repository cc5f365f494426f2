/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/journal.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bounds.h"
#include "base/sabotage.h"
#include "engine/journal_file.h"

struct vfmig_journal {
    int fd;
    enum vfmig_ho_role role;
    uint8_t id[VFMIG_HO_ID_BYTES];
    uint32_t count; /* durable records; the next goes behind them */
    uint32_t room;  /* records that the file has space for */
    struct vfmig_journal_entry last;
    uint32_t opened_epoch; /* of the newest opening: an attempt of which nothing may be on record */
    char path[512];
};

/* Space is laid out in steps of this many records: one block of the usual file systems. */
#define ROOM_RECORDS 16u

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int kernel_error(struct vfmig_error *reterr, int code, const char *what, const char *path)
{
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot %s %s: %s", what, path,
                           strerror(-code));
}

static int write_all(int fd, const void *data, size_t size, off_t offset)
{
    const char *p = data;

    while (size) {
        ssize_t n = pwrite(fd, p, size, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENOSPC;
        p += n;
        offset += n;
        size -= (size_t)n;
    }
    return 0;
}

static int lay_out_room(struct vfmig_journal *journal, struct vfmig_error *reterr)
{
    static const char zeros[ROOM_RECORDS * VFMIG_JOURNAL_RECORD_BYTES];

    if (journal->room >= VFMIG_MAX_JOURNAL_RECORDS)
        return vfmig_error_set(reterr, -EFBIG, VFMIG_ORIGIN_LOCAL, 0,
                               "journal %s has %u records, the most there may be", journal->path,
                               VFMIG_MAX_JOURNAL_RECORDS);
    /* The first free record may hold a torn one; what lies behind it is zero or absent. */
    int r = write_all(journal->fd, zeros, sizeof(zeros),
                      (off_t)journal->count * VFMIG_JOURNAL_RECORD_BYTES);
    if (r == 0 && fsync(journal->fd) < 0)
        r = -errno;
    if (r < 0)
        return kernel_error(reterr, r, "make room in journal", journal->path);
    journal->room = journal->count + ROOM_RECORDS;
    return 0;
}

static int append_entry(struct vfmig_journal *journal, const struct vfmig_journal_entry *entry,
                        struct vfmig_error *reterr)
{
    uint8_t raw[VFMIG_JOURNAL_RECORD_BYTES];

    if (journal->count == journal->room) {
        int r = lay_out_room(journal, reterr);
        if (r < 0)
            return r;
    }
    vfmig_journal_encode(entry, journal->count, raw);
    bool full = vfmig_sabotage("journal-full") ||
                vfmig_sabotage_on("journal-full", vfmig_ho_record_name(entry->record));
    int r = full && entry->record ? -ENOSPC : 0;
    if (r == 0)
        r = write_all(journal->fd, raw, sizeof(raw), (off_t)journal->count * (off_t)sizeof(raw));
    if (r == 0 && !vfmig_sabotage("journal-no-sync") && fdatasync(journal->fd) < 0)
        r = -errno;
    if (r < 0)
        return kernel_error(reterr, r, "write journal", journal->path);
    journal->count++;
    if (entry->record)
        journal->last = *entry;
    return 0;
}

static void fill_entry(const struct vfmig_journal *journal, uint32_t epoch, uint8_t record,
                       const char *text, struct vfmig_journal_entry *ret_entry)
{
    *ret_entry = (struct vfmig_journal_entry){
        .epoch = epoch,
        .role = (uint8_t)journal->role,
        .record = record,
        .pid = (uint32_t)getpid(),
        .time_ns = clock_ns(CLOCK_REALTIME),
    };
    memcpy(ret_entry->id, journal->id, sizeof(ret_entry->id));
    snprintf(ret_entry->text, sizeof(ret_entry->text), "%s", text ? text : "");
}

int vfmig_journal_append(struct vfmig_journal *journal, uint32_t epoch, enum vfmig_ho_record record,
                         const char *text, uint64_t *ret_sync_ns, struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;
    uint64_t start_ns = clock_ns(CLOCK_MONOTONIC);
    bool source = record < VFMIG_HO_RECORD_READY;

    if (record == VFMIG_HO_RECORD_NONE || record >= VFMIG_HO_RECORD_COUNT ||
        source != (journal->role == VFMIG_HO_SOURCE))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, record,
                               "record %s does not belong into journal %s",
                               vfmig_ho_record_name(record), journal->path);
    fill_entry(journal, epoch, (uint8_t)record, text, &entry);
    vfmig_sabotage_kill("before", vfmig_ho_record_name(record));
    int r = append_entry(journal, &entry, reterr);
    if (r < 0)
        return r;
    vfmig_sabotage_kill("after", vfmig_ho_record_name(record));
    if (ret_sync_ns)
        *ret_sync_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
    return 0;
}

int vfmig_journal_probe(struct vfmig_journal *journal, uint64_t *ret_sync_ns,
                        struct vfmig_error *reterr)
{
    static const uint8_t zeros[VFMIG_JOURNAL_RECORD_BYTES];
    uint64_t start_ns = clock_ns(CLOCK_MONOTONIC);
    int r = journal->count == journal->room ? lay_out_room(journal, reterr) : 0;

    if (r < 0)
        return r;
    r = write_all(journal->fd, zeros, sizeof(zeros), (off_t)journal->count * (off_t)sizeof(zeros));
    if (r == 0 && fdatasync(journal->fd) < 0)
        r = -errno;
    if (r < 0)
        return kernel_error(reterr, r, "write journal", journal->path);
    *ret_sync_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
    return 0;
}

static int sync_directory(const char *dir, struct vfmig_error *reterr)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = fd < 0 ? -errno : 0;

    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (fd >= 0)
        close(fd);
    return r < 0 ? kernel_error(reterr, r, "sync directory", dir) : 0;
}

static int open_locked(struct vfmig_journal *journal, const char *dir, struct vfmig_error *reterr)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return kernel_error(reterr, -errno, "make journal directory", dir);
    journal->fd = open(journal->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (journal->fd < 0)
        return kernel_error(reterr, -errno, "open journal", journal->path);
    if (fcntl(journal->fd, F_OFD_SETLK, &lock) < 0) {
        int code = errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_LOCAL, 0,
                               "journal %s is held by another process", journal->path);
    }
    return sync_directory(dir, reterr);
}

static int take_up(struct vfmig_journal *journal, struct vfmig_error *reterr)
{
    struct vfmig_journal_summary found;

    int r = vfmig_journal_read_fd(journal->fd, journal->path, &found, reterr);
    if (r < 0)
        return r;
    if (found.damage) {
        if (reterr)
            *reterr = found.error;
        return found.damage;
    }
    if (found.count && (memcmp(found.opened.id, journal->id, sizeof(journal->id)) ||
                        found.opened.role != journal->role))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_LOCAL, 0,
                               "journal %s holds the records of another migration", journal->path);
    journal->count = found.count;
    journal->room = found.count; /* laid out anew: a torn record goes with it */
    journal->last = found.last;
    journal->opened_epoch = found.opened.epoch;
    return 0;
}

int vfmig_journal_open(const char *dir, const uint8_t *id, enum vfmig_ho_role role, bool memory,
                       const char *control, struct vfmig_journal **ret_journal,
                       struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;
    struct vfmig_journal *journal = calloc(1, sizeof(*journal));

    if (!journal)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a journal");
    journal->fd = -1;
    journal->role = role;
    memcpy(journal->id, id, sizeof(journal->id));
    int r = vfmig_journal_path(dir, id, role, journal->path, sizeof(journal->path), reterr);
    if (r == 0)
        r = open_locked(journal, dir, reterr);
    if (r == 0)
        r = take_up(journal, reterr);
    if (r == 0) {
        uint32_t epoch = journal->last.epoch > journal->opened_epoch ? journal->last.epoch
                                                                     : journal->opened_epoch;
        fill_entry(journal, epoch, VFMIG_HO_RECORD_NONE, control, &entry);
        entry.memory = memory;
        r = append_entry(journal, &entry, reterr);
    }
    if (r < 0) {
        vfmig_journal_close(journal);
        return r;
    }
    *ret_journal = journal;
    return 0;
}

int vfmig_journal_note(struct vfmig_journal *journal, uint32_t epoch, const char *control,
                       struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;

    fill_entry(journal, epoch, VFMIG_HO_RECORD_NONE, control, &entry);
    entry.memory = true;
    return append_entry(journal, &entry, reterr);
}

const char *vfmig_journal_name(const struct vfmig_journal *journal)
{
    return journal->path;
}

void vfmig_journal_close(struct vfmig_journal *journal)
{
    if (!journal)
        return;
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal);
}

const struct vfmig_journal_entry *vfmig_journal_last(const struct vfmig_journal *journal)
{
    return &journal->last;
}
