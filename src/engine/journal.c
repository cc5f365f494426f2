/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/journal.h"

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
    struct vfmig_journal_log log;
};

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

/* --- the file as a store --- */

static int64_t read_file(void *opaque, void *data, size_t size, uint64_t offset)
{
    const struct vfmig_journal *journal = opaque;
    ssize_t n;

    do {
        n = pread(journal->fd, data, size, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int64_t write_file(void *opaque, const void *data, size_t size, uint64_t offset)
{
    const struct vfmig_journal *journal = opaque;
    ssize_t n;

    do {
        n = pwrite(journal->fd, data, size, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int sync_file(void *opaque, bool all)
{
    const struct vfmig_journal *journal = opaque;

    return (all ? fsync(journal->fd) : fdatasync(journal->fd)) < 0 ? -errno : 0;
}

/* --- records --- */

static void fill_entry(const char *text, struct vfmig_journal_entry *ret_entry)
{
    *ret_entry = (struct vfmig_journal_entry){
        .pid = (uint32_t)getpid(),
        .time_ns = clock_ns(CLOCK_REALTIME),
    };
    snprintf(ret_entry->text, sizeof(ret_entry->text), "%s", text ? text : "");
}

/* Somebody may have removed the directory, or put another one there: what is written then is on record for nobody. */
static int check_place(const struct vfmig_journal *journal, struct vfmig_error *reterr)
{
    struct stat here, there;

    if (fstat(journal->fd, &here) < 0 || stat(journal->log.path, &there) < 0)
        return kernel_error(reterr, -errno, "find journal", journal->log.path);
    if (here.st_dev == there.st_dev && here.st_ino == there.st_ino)
        return 0;
    return vfmig_error_set(reterr, -ESTALE, VFMIG_ORIGIN_LOCAL, 0, "journal %s is another file by now",
                           journal->log.path);
}

int vfmig_journal_append(struct vfmig_journal *journal, uint32_t epoch, enum vfmig_ho_record record,
                         const char *text, uint64_t *ret_sync_ns, struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;
    uint64_t start_ns = clock_ns(CLOCK_MONOTONIC);
    bool source = record < VFMIG_HO_RECORD_READY;

    if (record == VFMIG_HO_RECORD_NONE || record >= VFMIG_HO_RECORD_COUNT ||
        source != (journal->log.role == VFMIG_HO_SOURCE))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, record,
                               "record %s does not belong into journal %s",
                               vfmig_ho_record_name(record), journal->log.path);
    fill_entry(text, &entry);
    entry.epoch = epoch;
    entry.record = (uint8_t)record;
    vfmig_sabotage_point("before", vfmig_ho_record_name(record));
    /* Before these the attempt can be unwound; later the guest is better off with a record that nobody finds. */
    bool turns = record == VFMIG_HO_RECORD_READY || record == VFMIG_HO_RECORD_GRANT_SENT;
    int r = turns && !vfmig_sabotage("journal-anywhere") ? check_place(journal, reterr) : 0;
    if (r == 0)
        r = vfmig_journal_log_append(&journal->log, &entry, reterr);
    if (r < 0)
        return r;
    vfmig_sabotage_point("after", vfmig_ho_record_name(record));
    if (ret_sync_ns)
        *ret_sync_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
    return 0;
}

int vfmig_journal_probe(struct vfmig_journal *journal, uint64_t *ret_sync_ns,
                        struct vfmig_error *reterr)
{
    uint64_t start_ns = clock_ns(CLOCK_MONOTONIC);
    int r = vfmig_journal_log_probe(&journal->log, reterr);

    if (r == 0)
        *ret_sync_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
    return r;
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

/* The directory stays one that status and a VMM that starts can read. */
static int check_room(const struct vfmig_journal *journal, const char *dir, bool memory, struct vfmig_error *reterr)
{
    uint32_t most = memory ? VFMIG_MAX_JOURNALS : VFMIG_MAX_JOURNALS / 2;

    if (access(journal->log.path, F_OK) == 0 || vfmig_journal_count(dir) < most || vfmig_sabotage("journals-unbounded"))
        return 0;
    return vfmig_error_set(reterr, -E2BIG, VFMIG_ORIGIN_LOCAL, 0,
                           "directory %s has %u journals, and there may be no more: move some away whose migrations are "
                           "long over",
                           dir, most);
}

static int open_locked(struct vfmig_journal *journal, const char *dir, struct vfmig_error *reterr)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return kernel_error(reterr, -errno, "make journal directory", dir);
    journal->fd = open(journal->log.path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (journal->fd < 0)
        return kernel_error(reterr, -errno, "open journal", journal->log.path);
    if (fcntl(journal->fd, F_OFD_SETLK, &lock) < 0) {
        int code = errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_LOCAL, 0,
                               "journal %s is held by another process", journal->log.path);
    }
    return sync_directory(dir, reterr);
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
    journal->log.store = (struct vfmig_journal_store){read_file, write_file, sync_file, journal};
    journal->log.role = role;
    memcpy(journal->log.id, id, sizeof(journal->log.id));
    int r = vfmig_journal_path(dir, id, role, journal->log.path, sizeof(journal->log.path), reterr);
    if (r == 0)
        r = check_room(journal, dir, memory, reterr);
    if (r == 0)
        r = open_locked(journal, dir, reterr);
    if (r == 0)
        r = vfmig_journal_log_take_up(&journal->log, reterr);
    if (r == 0) {
        fill_entry(control, &entry);
        entry.memory = memory;
        r = vfmig_journal_log_opened(&journal->log, &entry, reterr);
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

    fill_entry(control, &entry);
    entry.epoch = epoch;
    entry.memory = true;
    return vfmig_journal_log_append(&journal->log, &entry, reterr);
}

int vfmig_journal_note_standing(struct vfmig_journal *journal, bool stands, const char *text,
                                struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;

    if (journal->log.last.record != VFMIG_HO_RECORD_RUNNING)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, journal->log.last.record,
                               "the guest of journal %s was not to run yet", journal->log.path);
    fill_entry(text, &entry);
    entry.epoch = journal->log.last.epoch;
    entry.record = VFMIG_HO_RECORD_RUNNING;
    entry.stands = stands;
    return vfmig_journal_log_append(&journal->log, &entry, reterr);
}

const char *vfmig_journal_name(const struct vfmig_journal *journal)
{
    return journal->log.path;
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
    return &journal->log.last;
}
