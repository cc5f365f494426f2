/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/save_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "engine/journal.h"

struct vfmig_save_file {
    int fd;
    bool ours;     /* being written by this process */
    bool named;    /* it has its final name */
    bool locked;
    bool claimed;  /* by this process, and not given back */
    struct vfmig_save_log log;
    char journal[VFMIG_SAVE_PATH_BYTES]; /* who writes into the log */
    char path[VFMIG_SAVE_PATH_BYTES];
    char partial[VFMIG_SAVE_PATH_BYTES + 8];
};

static int kernel_error(struct vfmig_error *reterr, int code, const char *what, const char *path)
{
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot %s %s: %s", what, path,
                           strerror(-code));
}

static int lock(struct vfmig_save_file *file, const char *path, struct vfmig_error *reterr)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (file->locked)
        return 0;
    if (fcntl(file->fd, F_OFD_SETLK, &all) < 0) {
        int code = errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
        if (code == -EBUSY)
            return vfmig_error_set(reterr, code, VFMIG_ORIGIN_LOCAL, 0,
                                   "%s is being written, claimed or discarded by another process",
                                   path);
        return kernel_error(reterr, code, "lock", path);
    }
    file->locked = true;
    return 0;
}

static void unlock(struct vfmig_save_file *file)
{
    struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

    if (file->locked)
        (void)fcntl(file->fd, F_OFD_SETLK, &all);
    file->locked = false;
}

void vfmig_save_release(struct vfmig_save_file *file)
{
    unlock(file);
}

static int write_all(int fd, const uint8_t *data, size_t size, off_t at)
{
    while (size) {
        ssize_t done = pwrite(fd, data, size, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -ENOSPC;
        data += done;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

static int read_log(struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    uint8_t *head = calloc(1, VFMIG_SAVE_HEAD_BYTES);
    size_t size = 0;
    int ret = head ? 0 : -ENOMEM;

    while (ret == 0 && size < VFMIG_SAVE_HEAD_BYTES) {
        ssize_t got = pread(file->fd, head + size, VFMIG_SAVE_HEAD_BYTES - size, (off_t)size);
        if (got < 0 && errno != EINTR)
            ret = -errno;
        if (got == 0)
            break;
        size += got > 0 ? (size_t)got : 0;
    }
    if (ret)
        kernel_error(reterr, ret, "read", file->path);
    else
        ret = vfmig_save_log_decode(head, &file->log, reterr);
    if (ret && reterr && reterr->origin == VFMIG_ORIGIN_STREAM)
        vfmig_error_prefix(reterr, "%s", file->path);
    free(head);
    return ret;
}

/* Under the lock, or before anybody else can have it. */
static int append(struct vfmig_save_file *file, enum vfmig_save_kind kind, uint32_t epoch,
                  uint64_t length, struct vfmig_error *reterr)
{
    struct vfmig_save_entry entry = {.kind = (uint8_t)kind, .epoch = epoch, .length = length,
                                     .pid = (uint32_t)getpid()};
    uint8_t raw[VFMIG_SAVE_RECORD_BYTES];
    struct timespec now;

    if (file->log.count >= VFMIG_SAVE_RECORDS)
        return vfmig_error_set(reterr, -EFBIG, VFMIG_ORIGIN_LOCAL, 0,
                               "the log of %s has %u records, the most there may be", file->path,
                               VFMIG_SAVE_RECORDS);
    clock_gettime(CLOCK_REALTIME, &now);
    entry.time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    memcpy(entry.id, file->log.begun.id, sizeof(entry.id));
    (void)gethostname(entry.host, sizeof(entry.host) - 1);
    memcpy(entry.journal, file->journal, sizeof(entry.journal));
    vfmig_save_entry_encode(&entry, file->log.count, raw);
    vfmig_sabotage_point("before", vfmig_save_kind_name(kind));
    int ret = vfmig_sabotage_on("fail", vfmig_save_kind_name(kind)) ? -EIO : 0;
    if (ret == 0)
        ret = write_all(file->fd, raw, sizeof(raw),
                        (off_t)file->log.count * VFMIG_SAVE_RECORD_BYTES);
    if (ret == 0 && fdatasync(file->fd) < 0)
        ret = -errno;
    if (ret)
        return kernel_error(reterr, ret, "put a record into", file->path);
    file->log.count++;
    vfmig_sabotage_point("after", vfmig_save_kind_name(kind));
    return 0;
}

/* The folder exists, and its links are followed once, now. */
static int make_absolute(const char *path, char *out, size_t size, struct vfmig_error *reterr)
{
    char folder[PATH_MAX], real[PATH_MAX];
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t length = slash ? (size_t)(slash - path) : 0;

    if (!*name || !strcmp(name, ".") || !strcmp(name, "..") || strlen(path) >= sizeof(folder))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "'%s' is no name of a file",
                               path);
    memcpy(folder, path, length);
    strcpy(folder + length, slash && !length ? "/" : length ? "" : ".");
    if (!realpath(folder, real))
        return kernel_error(reterr, -errno, "find the folder of", path);
    int n = snprintf(out, size, "%s/%s", strcmp(real, "/") ? real : "", name);
    if (n < 0 || (size_t)n >= size)
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                               "the path of %s is too long: at most %zu characters go on record",
                               path, size - 1);
    return 0;
}

static int sync_folder(const char *path, struct vfmig_error *reterr)
{
    char folder[VFMIG_SAVE_PATH_BYTES];

    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    slash[slash == folder ? 1 : 0] = 0;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return ret ? kernel_error(reterr, ret, "sync", folder) : 0;
}

/* --- source --- */

static int lay_out(struct vfmig_save_file *file, const uint8_t *id, uint32_t epoch,
                   struct vfmig_error *reterr)
{
    static const uint8_t zeros[VFMIG_SAVE_HEAD_BYTES];
    int ret = ftruncate(file->fd, 0) < 0 ? -errno : write_all(file->fd, zeros, sizeof(zeros), 0);

    if (ret)
        return kernel_error(reterr, ret, "write", file->partial);
    memcpy(file->log.begun.id, id, VFMIG_SAVE_ID_BYTES);
    ret = append(file, VFMIG_SAVE_BEGUN, epoch, 0, reterr);
    if (ret == 0 && lseek(file->fd, VFMIG_SAVE_HEAD_BYTES, SEEK_SET) < 0)
        ret = kernel_error(reterr, -errno, "write", file->partial);
    return ret;
}

int vfmig_save_create(const char *path, const uint8_t *id, uint32_t epoch, const char *journal,
                      struct vfmig_save_file **ret_file, struct vfmig_error *reterr)
{
    struct vfmig_save_file *file = calloc(1, sizeof(*file));
    struct stat st;

    if (!file)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a file");
    file->fd = -1;
    snprintf(file->journal, sizeof(file->journal), "%s", journal);
    /* Shorter than here: the source's journal keeps it in a record's text. */
    int ret = make_absolute(path, file->path, VFMIG_JOURNAL_TEXT_BYTES, reterr);
    if (ret == 0 && lstat(file->path, &st) == 0)
        ret = vfmig_error_set(reterr, -EEXIST, VFMIG_ORIGIN_LOCAL, 0,
                              "%s exists, and may hold a guest: it is not replaced", file->path);
    if (ret == 0) {
        snprintf(file->partial, sizeof(file->partial), "%s.partial", file->path);
        file->fd = open(file->partial, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (file->fd < 0)
            ret = kernel_error(reterr, -errno, "make", file->partial);
    }
    if (ret == 0)
        ret = lock(file, file->partial, reterr);
    /* Only from here on is it ours to write, and to remove. */
    if (ret == 0 && (fstat(file->fd, &st) < 0 || !S_ISREG(st.st_mode)))
        ret = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s is no file", file->partial);
    if (ret == 0) {
        file->ours = true;
        ret = lay_out(file, id, epoch, reterr);
    }
    if (ret) {
        vfmig_save_close(file);
        return ret;
    }
    *ret_file = file;
    return 0;
}

int vfmig_save_fd(const struct vfmig_save_file *file)
{
    return file->fd;
}

const char *vfmig_save_path(const struct vfmig_save_file *file)
{
    return file->path;
}

static int give_name(struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    int ret = renameat2(AT_FDCWD, file->partial, AT_FDCWD, file->path, RENAME_NOREPLACE) ? -errno : 0;

    if (ret == -EINVAL || ret == -ENOSYS) { /* a file system that does not know it */
        ret = link(file->partial, file->path) ? -errno : 0;
        if (ret == 0)
            (void)unlink(file->partial);
    }
    if (ret)
        return kernel_error(reterr, ret, "give its name to", file->path);
    file->named = true;
    return sync_folder(file->path, reterr);
}

int vfmig_save_complete(struct vfmig_save_file *file, const atomic_bool *give_up,
                        struct vfmig_error *reterr)
{
    off_t length = lseek(file->fd, 0, SEEK_CUR);
    int ret = length < 0 ? -errno : 0;

    vfmig_sabotage_point("before", "sync");
    if (ret == 0 && fsync(file->fd) < 0)
        ret = -errno;
    if (ret)
        return kernel_error(reterr, ret, "sync", file->partial);
    ret = give_name(file, reterr);
    if (ret == 0 && atomic_load(give_up))
        ret = vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "saving was cancelled");
    if (ret)
        return ret;
    file->log.complete.kind = VFMIG_SAVE_COMPLETE; /* on disk or not: from here on it may be */
    return append(file, VFMIG_SAVE_COMPLETE, 0, (uint64_t)length, reterr);
}

static void remove_it(struct vfmig_save_file *file)
{
    const char *path = file->named ? file->path : file->partial;
    struct stat ours, there;

    if (fstat(file->fd, &ours) == 0 && lstat(path, &there) == 0 && ours.st_ino == there.st_ino &&
        ours.st_dev == there.st_dev && unlink(path) == 0)
        (void)sync_folder(file->path, NULL);
}

static int claimed_error(const struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    const struct vfmig_save_entry *claim = &file->log.claim;

    return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                           "it is claimed by process %u of %.40s, see %.100s", claim->pid,
                           claim->host, claim->journal);
}

/* It fits into a sector, so that a crash leaves all of it or nothing; and nothing is guessed. */
static int torn_error(const struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, file->log.count,
                           "record %u of its log is damaged, and may be a claim", file->log.count);
}

/* The journal of a claim speaks for it: one that is refused there was only not given back. */
static bool is_void(const struct vfmig_save_entry *claim)
{
    struct vfmig_journal_summary summary;

    return claim->journal[0] == '/' && vfmig_journal_read(claim->journal, &summary, NULL) == 0 &&
           !summary.damage && summary.last.record == VFMIG_HO_RECORD_REFUSED &&
           summary.last.epoch == claim->epoch &&
           !memcmp(summary.last.id, claim->id, sizeof(claim->id));
}

/* Under the lock: 0 when nobody has it. */
static int check_free(struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    if (file->log.torn && !file->ours)
        return torn_error(file, reterr);
    if (!file->log.claim.kind)
        return 0;
    if (!is_void(&file->log.claim))
        return claimed_error(file, reterr);
    int ret = append(file, VFMIG_SAVE_GIVEN_BACK, file->log.claims, 0, reterr);
    if (ret == 0)
        file->log.claim.kind = VFMIG_SAVE_NONE;
    return ret;
}

int vfmig_save_discard(struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    struct stat st;
    int ret = lock(file, file->path, reterr);

    if (ret)
        return ret;
    if (fstat(file->fd, &st) == 0 && st.st_nlink == 0)
        return 0; /* nobody can open it any more */
    ret = read_log(file, reterr);
    if (ret == 0 && !file->log.discarded) {
        ret = vfmig_sabotage("discard-claimed") ? 0 : check_free(file, reterr);
        if (ret == 0)
            ret = append(file, VFMIG_SAVE_DISCARDED, 0, 0, reterr);
    }
    if (ret == 0)
        remove_it(file);
    unlock(file);
    return ret ? vfmig_error_prefix(reterr, "%s cannot be discarded", file->path), ret : 0;
}

/* --- destination --- */

int vfmig_save_open(const char *path, bool claim, struct vfmig_save_file **ret_file,
                    struct vfmig_error *reterr)
{
    struct vfmig_save_file *file = calloc(1, sizeof(*file));
    struct stat st;

    if (!file)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a file");
    file->named = true;
    file->fd = open(path, (claim ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    int ret = file->fd < 0 ? kernel_error(reterr, -errno, "open", path) : 0;
    if (ret == 0 && (fstat(file->fd, &st) < 0 || !S_ISREG(st.st_mode)))
        ret = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s is no file", path);
    if (ret == 0)
        ret = make_absolute(path, file->path, sizeof(file->path), reterr);
    if (ret == 0)
        ret = read_log(file, reterr);
    if (ret == 0 && lseek(file->fd, VFMIG_SAVE_HEAD_BYTES, SEEK_SET) < 0)
        ret = kernel_error(reterr, -errno, "read", path);
    if (ret) {
        vfmig_save_close(file);
        return ret;
    }
    *ret_file = file;
    return 0;
}

const struct vfmig_save_log *vfmig_save_log(const struct vfmig_save_file *file)
{
    return &file->log;
}

int vfmig_save_check(struct vfmig_save_file *file, bool clone, struct vfmig_error *reterr)
{
    const struct vfmig_save_log *log = &file->log;
    struct stat st;

    if (log->torn && !clone) {
        torn_error(file, reterr);
        vfmig_error_prefix(reterr, "%s cannot be restored", file->path);
        return -EBADMSG;
    }
    if (!log->complete.kind)
        return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, 0,
                               "%s is incomplete: saving it has not ended", file->path);
    if (fstat(file->fd, &st) < 0 || (uint64_t)st.st_size != log->complete.length)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "%s has %lld bytes and should have %llu: it was cut or grew", file->path,
                               (long long)st.st_size, (unsigned long long)log->complete.length);
    if (log->discarded && !clone)
        return vfmig_error_set(reterr, -ESTALE, VFMIG_ORIGIN_LOCAL, 0,
                               "%s is discarded: its guest went on at the source", file->path);
    return 0;
}

int vfmig_save_claim_begin(struct vfmig_save_file *file, uint32_t *ret_number,
                           struct vfmig_error *reterr)
{
    int ret = lock(file, file->path, reterr);

    if (ret)
        return ret;
    ret = read_log(file, reterr);
    if (ret == 0)
        ret = vfmig_save_check(file, /* clone= */ false, reterr);
    *ret_number = file->log.claims;
    if (ret == 0 && vfmig_sabotage("claim-twice") && file->log.claim.kind)
        return 0;
    if (ret == 0) {
        ret = check_free(file, reterr);
        if (ret)
            vfmig_error_prefix(reterr, "%s cannot be restored", file->path);
    }
    ++*ret_number;
    if (ret)
        unlock(file);
    return ret;
}

int vfmig_save_claim(struct vfmig_save_file *file, const char *journal, struct vfmig_error *reterr)
{
    int ret = 0;

    snprintf(file->journal, sizeof(file->journal), "%s", journal);
    if (!file->log.claim.kind) {
        ret = append(file, VFMIG_SAVE_CLAIMED, file->log.claims + 1, 0, reterr);
        file->claimed = true; /* it may be on disk: given back like one that is */
        file->log.claims++;
    }
    unlock(file);
    return ret;
}

bool vfmig_save_is_claimed(const struct vfmig_save_file *file)
{
    return file->claimed;
}

int vfmig_save_give_back(struct vfmig_save_file *file, struct vfmig_error *reterr)
{
    uint32_t number = file->log.claims;
    int ret = file->claimed ? lock(file, file->path, reterr) : 0;

    if (ret || !file->claimed)
        return ret;
    ret = read_log(file, reterr);
    if (ret == 0 && file->log.claim.kind && file->log.claims == number)
        ret = append(file, VFMIG_SAVE_GIVEN_BACK, number, 0, reterr);
    unlock(file);
    if (ret == 0)
        file->claimed = false;
    return ret;
}

void vfmig_save_abandon(struct vfmig_save_file *file)
{
    if (file->ours && !file->log.complete.kind)
        remove_it(file);
}

void vfmig_save_close(struct vfmig_save_file *file)
{
    if (!file)
        return;
    vfmig_save_abandon(file);
    if (file->fd >= 0)
        close(file->fd);
    free(file);
}
