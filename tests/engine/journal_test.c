/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bounds.h"
#include "base/crc32c.h"
#include "engine/journal.h"
#include "engine/journal_file.h"

static unsigned syncs;

/* In the place of the C library's: whoever says that a record is durable has asked for it. */
int fdatasync(int fd)
{
    syncs++;
    return (int)syscall(SYS_fdatasync, fd);
}

static unsigned synced_files, synced_directories;

int fsync(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    synced_directories += S_ISDIR(st.st_mode);
    synced_files += S_ISREG(st.st_mode);
    return (int)syscall(SYS_fsync, fd);
}

static unsigned pretended; /* journals in a directory: thousands of files take long to make */

struct dirent *readdir(DIR *stream)
{
    static struct dirent entry;

    if (!pretended)
        return NULL;
    snprintf(entry.d_name, sizeof(entry.d_name), "%032x.source", pretended--);
    return &entry;
}

static const uint8_t id[VFMIG_HO_ID_BYTES] = {0xab, 0xcd, [15] = 0x01};

struct place {
    char top[64];
    char dir[96];
    char file[256];
};

static int make_place(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    strcpy(p->top, "/tmp/vfmig-journal-XXXXXX");
    assert_non_null(mkdtemp(p->top));
    snprintf(p->dir, sizeof(p->dir), "%s/journal", p->top);
    vfmig_journal_path(p->dir, id, VFMIG_HO_SOURCE, p->file, sizeof(p->file), NULL);
    *state = p;
    return 0;
}

static int remove_place(void **state)
{
    struct place *p = *state;
    char command[160];

    snprintf(command, sizeof(command), "rm -rf '%s'", p->top);
    int r = system(command);
    free(p);
    return r;
}

static struct vfmig_journal *open_it(struct place *p)
{
    struct vfmig_journal *journal = NULL;
    struct vfmig_error err = {0};

    if (vfmig_journal_open(p->dir, id, VFMIG_HO_SOURCE, true, "/run/control", &journal, &err) < 0)
        fail_msg("%s", err.text);
    return journal;
}

static struct vfmig_journal_summary read_it(struct place *p)
{
    struct vfmig_journal_summary s;
    struct vfmig_error err = {0};

    if (vfmig_journal_read(p->file, &s, &err) < 0)
        fail_msg("%s", err.text);
    return s;
}

static void append(struct vfmig_journal *journal, uint32_t epoch, enum vfmig_ho_record record)
{
    struct vfmig_error err = {0};
    uint64_t sync_ns = 0;

    if (vfmig_journal_append(journal, epoch, record, NULL, &sync_ns, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(sync_ns > 0);
}

static void poke(struct place *p, off_t offset, const void *data, size_t size)
{
    int fd = open(p->file, O_WRONLY);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, data, size, offset), size);
    close(fd);
}

static void records_are_there_after_reopening(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p);

    assert_int_equal(vfmig_journal_last(journal)->record, VFMIG_HO_RECORD_NONE);
    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT);
    vfmig_journal_close(journal);
    journal = open_it(p);
    assert_int_equal(vfmig_journal_last(journal)->record, VFMIG_HO_RECORD_GRANT_SENT);
    assert_int_equal(vfmig_journal_last(journal)->epoch, 1);
    for (uint32_t epoch = 2; epoch < 40; epoch++)
        append(journal, epoch, VFMIG_HO_RECORD_OFFERED);
    vfmig_journal_close(journal);
    struct vfmig_journal_summary s = read_it(p);
    assert_int_equal(s.damage, 0);
    assert_int_equal(s.count, 42);
    assert_int_equal(s.last.epoch, 39);
    assert_int_equal(s.opened.pid, getpid());
    assert_int_equal(s.opened.memory, 1);
    assert_string_equal(s.opened.text, "/run/control");
    assert_false(s.held || s.torn);
}

static void every_record_is_synced(void **state)
{
    struct vfmig_journal *journal = open_it(*state);
    unsigned before = syncs;

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    assert_int_equal(syncs, before + 1);
    append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT);
    assert_int_equal(syncs, before + 2);
    vfmig_journal_close(journal);
}

static void records_of_the_other_role_are_refused(void **state)
{
    struct vfmig_journal *journal = open_it(*state);
    struct vfmig_error err;

    assert_int_equal(vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_READY, NULL, NULL, &err), -EINVAL);
    assert_int_equal(vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_NONE, NULL, NULL, &err), -EINVAL);
    assert_int_equal(vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_COUNT, NULL, NULL, &err), -EINVAL);
    vfmig_journal_close(journal);
}

/* The lock is of the open file: even this process cannot open it twice, and it dies with its owner. */
static void two_cannot_write_one(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p), *second = NULL;
    struct vfmig_error err;

    assert_int_equal(vfmig_journal_open(p->dir, id, VFMIG_HO_SOURCE, false, NULL, &second, &err), -EBUSY);
    assert_non_null(strstr(err.text, "held by another process"));
    assert_true(read_it(p).held);
    vfmig_journal_close(journal);
    assert_false(read_it(p).held);

    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        journal = open_it(p);
        append(journal, 1, VFMIG_HO_RECORD_OFFERED);
        if (write(ready[1], "x", 1) != 1)
            _exit(1);
        pause();
        _exit(1);
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_true(read_it(p).held);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    close(ready[0]);
    close(ready[1]);
    struct vfmig_journal_summary s = read_it(p);
    assert_false(s.held);
    assert_int_equal(s.last.record, VFMIG_HO_RECORD_OFFERED);
    assert_int_equal(s.opened.pid, child);
}

/* Every length at which a power cut may have left the last record. */
static void a_torn_last_record_is_ignored(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p);
    uint8_t whole[256], zeros[256] = {0};

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT);
    vfmig_journal_close(journal);
    int fd = open(p->file, O_RDONLY);
    assert_int_equal(pread(fd, whole, sizeof(whole), 512), 256);
    close(fd);
    size_t end = sizeof(whole); /* a record whose last bytes are 0 is whole without them */
    while (end && !whole[end - 1])
        end--;
    for (size_t cut = 0; cut < end; cut++) {
        poke(p, 512, zeros, sizeof(zeros));
        poke(p, 512, whole, cut);
        struct vfmig_journal_summary s = read_it(p);
        assert_int_equal(s.damage, 0);
        assert_int_equal(s.torn, cut > 0);
        assert_int_equal(s.last.record, VFMIG_HO_RECORD_OFFERED);
    }
    poke(p, 512, whole, 100);
    poke(p, 612, zeros, 156);
    journal = open_it(p);
    assert_int_equal(vfmig_journal_last(journal)->record, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_RESUMED);
    vfmig_journal_close(journal);
    struct vfmig_journal_summary s = read_it(p);
    assert_false(s.torn);
    assert_int_equal(s.last.record, VFMIG_HO_RECORD_RESUMED);
}

/* Room is laid out and synced before a record is written: no power cut makes the file shorter. */
static void a_file_that_was_cut_off_is_damaged(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p);
    struct vfmig_error err;

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT);
    vfmig_journal_close(journal);
    for (off_t size = 4095; size > 0; size -= size > 1024 ? 1023 : 97) {
        assert_int_equal(truncate(p->file, size), 0);
        struct vfmig_journal_summary s = read_it(p);
        assert_int_equal(s.damage, -EBADMSG);
        assert_non_null(strstr(s.error.text, "cut off"));
        assert_int_equal(vfmig_journal_open(p->dir, id, VFMIG_HO_SOURCE, true, NULL, &journal, &err), -EBADMSG);
    }
    assert_int_equal(truncate(p->file, 0), 0); /* as it is before anything was written */
    assert_int_equal(read_it(p).damage, 0);
}

/* The last record is what counts: with one byte of it wrong it was written whole, and is not torn. */
static void a_last_record_that_was_altered_is_named(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p);
    struct vfmig_error err;
    uint8_t record[256];
    unsigned named = 0;

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_ABORTED);
    vfmig_journal_close(journal);
    int fd = open(p->file, O_RDONLY);
    assert_int_equal(pread(fd, record, sizeof(record), 512), 256);
    close(fd);
    for (size_t i = 0; i < sizeof(record); i += i < 60 || i > 248 ? 1 : 29) {
        const uint8_t changed = record[i] ^ (uint8_t)(i % 3 ? 0x10 : 0xa5);
        poke(p, 512 + (off_t)i, &changed, 1);
        struct vfmig_journal_summary s = read_it(p);
        /* Without this byte it might be torn. */
        if (changed && (i == sizeof(record) - 1 || record[sizeof(record) - 1])) {
            named++;
            assert_int_equal(s.damage, -EBADMSG);
            assert_non_null(strstr(s.error.text, "record 2 of journal"));
            assert_int_equal(vfmig_journal_open(p->dir, id, VFMIG_HO_SOURCE, true, NULL, &journal, &err), -EBADMSG);
        }
        poke(p, 512 + (off_t)i, &record[i], 1);
    }
    assert_int_equal(read_it(p).last.record, VFMIG_HO_RECORD_ABORTED);
    assert_true(named || !record[sizeof(record) - 1]);
}

/* Its name and its room are on disk before anything is in it. */
static void a_new_journal_is_synced_with_its_directory(void **state)
{
    struct place *p = *state;

    synced_files = synced_directories = 0;
    vfmig_journal_close(open_it(p));
    assert_int_equal(synced_directories, 1);
    assert_int_equal(synced_files, 1);
}

static void a_journal_under_another_name_is_not_taken_up(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p);
    const uint8_t other[VFMIG_HO_ID_BYTES] = {7};
    struct vfmig_error err;
    char path[256];

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    vfmig_journal_close(journal);
    assert_int_equal(vfmig_journal_path(p->dir, other, VFMIG_HO_SOURCE, path, sizeof(path), NULL), 0);
    assert_int_equal(rename(p->file, path), 0);
    assert_int_equal(vfmig_journal_open(p->dir, other, VFMIG_HO_SOURCE, true, NULL, &journal, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "another migration"));
    assert_int_equal(vfmig_journal_path(p->dir, id, VFMIG_HO_DESTINATION, p->file, sizeof(p->file), NULL), 0);
    assert_int_equal(rename(path, p->file), 0);
    assert_int_equal(vfmig_journal_open(p->dir, id, VFMIG_HO_DESTINATION, true, NULL, &journal, &err), -EBADMSG);
}

/* Nobody would find the grant again. */
static void a_journal_that_was_removed_takes_no_grant(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p), *other = NULL;
    struct vfmig_error err;

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    assert_int_equal(unlink(p->file), 0);
    assert_int_equal(vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT, NULL, NULL, &err), -ENOENT);
    assert_non_null(strstr(err.text, p->file));
    other = open_it(p);
    assert_int_equal(vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT, NULL, NULL, &err), -ESTALE);
    assert_int_equal(vfmig_journal_last(journal)->record, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_ABORTED); /* it can be unwound all the same */
    append(other, 1, VFMIG_HO_RECORD_OFFERED);
    append(other, 1, VFMIG_HO_RECORD_GRANT_SENT);
    vfmig_journal_close(other);
    vfmig_journal_close(journal);
}

static void any_other_damage_is_named(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p);
    struct vfmig_error err;
    uint8_t record[256], changed[256];

    append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_ABORTED);
    vfmig_journal_close(journal);
    int fd = open(p->file, O_RDONLY);
    assert_int_equal(pread(fd, record, sizeof(record), 256), 256);
    close(fd);
    for (size_t i = 0; i < sizeof(record); i += 3) {
        memcpy(changed, record, sizeof(record));
        changed[i] ^= 0x10;
        poke(p, 256, changed, sizeof(changed));
        struct vfmig_journal_summary s = read_it(p);
        assert_int_equal(s.damage, -EBADMSG);
        assert_non_null(strstr(s.error.text, "record 1 of journal"));
        assert_int_equal(vfmig_journal_open(p->dir, id, VFMIG_HO_SOURCE, true, NULL, &journal, &err),
                         -EBADMSG);
    }
    struct vfmig_journal_raw newer;
    memcpy(&newer, record, sizeof(newer));
    newer.version = 2;
    newer.crc = vfmig_crc32c(0, &newer, offsetof(struct vfmig_journal_raw, crc));
    poke(p, 256, &newer, sizeof(newer));
    assert_int_equal(read_it(p).damage, -ENOTSUP);
    newer.version = 1;
    newer.id[3] ^= 1;
    newer.crc = vfmig_crc32c(0, &newer, offsetof(struct vfmig_journal_raw, crc));
    poke(p, 256, &newer, sizeof(newer));
    assert_non_null(strstr(read_it(p).error.text, "another migration"));
    poke(p, 256, record, sizeof(record));
    assert_int_equal(read_it(p).damage, 0);
}

/* A limit on the file's size stands for a full disk: what was laid out before stays writable. */
static void a_full_disk_is_an_error_and_does_not_stop_an_unwinding(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *journal = open_it(p), *second = NULL;
    struct vfmig_error err = {0};
    struct rlimit limit, old;
    int r = 0;

    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 16 * 256;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    for (int i = 0; i < 15; i++)
        append(journal, 1, VFMIG_HO_RECORD_OFFERED);
    r = vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT, NULL, NULL, &err);
    limit.rlim_cur = 1024;
    setrlimit(RLIMIT_FSIZE, &limit);
    int second_r = vfmig_journal_open(p->dir, id, VFMIG_HO_DESTINATION, true, NULL, &second, NULL);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(r, -EFBIG);
    assert_non_null(strstr(err.text, "make room in journal"));
    assert_int_equal(second_r, -EFBIG);
    assert_int_equal(read_it(p).last.record, VFMIG_HO_RECORD_OFFERED);
    append(journal, 1, VFMIG_HO_RECORD_ABORTED);
    vfmig_journal_close(journal);
    assert_int_equal(read_it(p).last.record, VFMIG_HO_RECORD_ABORTED);
}

static void a_directory_lists_its_journals(void **state)
{
    struct place *p = *state;
    struct vfmig_journal_summary *list = NULL;
    struct vfmig_journal *journal;
    size_t count = 99;
    char junk[160];

    assert_int_equal(vfmig_journal_list(p->dir, &list, &count, NULL), 0);
    assert_int_equal(count, 0);
    free(list);
    journal = open_it(p);
    append(journal, 4, VFMIG_HO_RECORD_OFFERED);
    struct vfmig_journal *other = NULL;
    assert_int_equal(vfmig_journal_open(p->dir, id, VFMIG_HO_DESTINATION, false, NULL, &other, NULL), 0);
    append(other, 5, VFMIG_HO_RECORD_READY);
    vfmig_journal_close(other);
    snprintf(junk, sizeof(junk), "%s/readme.txt", p->dir);
    close(open(junk, O_CREAT | O_WRONLY, 0600));
    snprintf(junk, sizeof(junk), "%s/abcd0000000000000000000000000002.source", p->dir);
    assert_int_equal(link(p->file, junk), 0);
    assert_int_equal(vfmig_journal_list(p->dir, &list, &count, NULL), 0);
    assert_int_equal(count, 3);
    assert_int_equal(list[0].last.record, VFMIG_HO_RECORD_READY);
    assert_false(list[0].held);
    assert_int_equal(list[1].last.epoch, 4);
    assert_true(list[1].held);
    assert_int_equal(list[2].damage, -EBADMSG);
    assert_int_equal(list[2].last.id[15], 2);
    free(list);
    vfmig_journal_close(journal);
}

/* Strangers' questions and attempts in vain leave a journal each; status reads all of them. */
static void a_directory_takes_no_more_than_status_reads(void **state)
{
    static const struct {
        unsigned there;
        bool memory;
        int ret;
    } cases[] = {
        {VFMIG_MAX_JOURNALS / 2 - 1, false, 0},
        {VFMIG_MAX_JOURNALS / 2, false, -E2BIG},
        {VFMIG_MAX_JOURNALS - 1, true, 0},
        {VFMIG_MAX_JOURNALS, true, -E2BIG},
    };
    struct place *p = *state;
    struct vfmig_journal *journal;
    struct vfmig_error err;
    uint8_t other[VFMIG_HO_ID_BYTES] = {1};

    vfmig_journal_close(open_it(p));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        other[1] = (uint8_t)i;
        pretended = cases[i].there;
        int ret = vfmig_journal_open(p->dir, other, VFMIG_HO_DESTINATION, cases[i].memory, NULL, &journal, &err);
        assert_int_equal(ret, cases[i].ret);
        if (ret == 0)
            vfmig_journal_close(journal);
        else
            assert_non_null(strstr(err.text, "move some away"));
    }
    pretended = VFMIG_MAX_JOURNALS;
    vfmig_journal_close(open_it(p)); /* what is there already is */
    pretended = 0;
}

static void paths_and_ids_are_checked(void **state)
{
    char text[33], longdir[600];
    uint8_t back[VFMIG_HO_ID_BYTES];
    struct vfmig_journal *journal = NULL;
    struct vfmig_error err;

    vfmig_ho_id_format(id, text);
    assert_string_equal(text, "abcd0000000000000000000000000001");
    assert_int_equal(vfmig_ho_id_parse(text, back), 0);
    assert_memory_equal(back, id, sizeof(id));
    assert_int_equal(vfmig_ho_id_parse("abcd", back), -EINVAL);
    assert_int_equal(vfmig_ho_id_parse("abcd00000000000000000000000000012", back), -EINVAL);
    assert_int_equal(vfmig_ho_id_parse("xbcd0000000000000000000000000001", back), -EINVAL);
    memset(longdir, 'a', sizeof(longdir) - 1);
    longdir[sizeof(longdir) - 1] = 0;
    assert_int_equal(vfmig_journal_open(longdir, id, VFMIG_HO_SOURCE, true, NULL, &journal, &err),
                     -ENAMETOOLONG);
    assert_int_equal(vfmig_journal_open("/proc/nowhere/x", id, VFMIG_HO_SOURCE, true, NULL, &journal, &err),
                     -ENOENT);
    assert_int_equal(vfmig_journal_open("/dev/null", id, VFMIG_HO_SOURCE, true, NULL, &journal, &err),
                     -ENOTDIR);
}

/* A disk whose sync fails once: what was written then is in its cache only, and no later sync takes it
 * along. */
struct flaky {
    uint8_t cache[16 * VFMIG_JOURNAL_RECORD_BYTES * 2], disk[16 * VFMIG_JOURNAL_RECORD_BYTES * 2];
    bool dirty[32];
    bool fails;
};

static int64_t flaky_read(void *opaque, void *data, size_t size, uint64_t offset)
{
    const struct flaky *f = opaque;

    if (offset + size > sizeof(f->cache))
        return 0;
    memcpy(data, f->cache + offset, size);
    return (int64_t)size;
}

static int64_t flaky_write(void *opaque, const void *data, size_t size, uint64_t offset)
{
    struct flaky *f = opaque;

    if (offset + size > sizeof(f->cache))
        return -ENOSPC;
    memcpy(f->cache + offset, data, size);
    for (uint64_t i = offset; i < offset + size; i += VFMIG_JOURNAL_RECORD_BYTES)
        f->dirty[i / VFMIG_JOURNAL_RECORD_BYTES] = true;
    return (int64_t)size;
}

static int flaky_sync(void *opaque, bool all)
{
    struct flaky *f = opaque;
    bool fails = f->fails;

    (void)all;
    f->fails = false;
    for (size_t i = 0; i < 32; i++) {
        if (f->dirty[i] && !fails)
            memcpy(f->disk + i * VFMIG_JOURNAL_RECORD_BYTES, f->cache + i * VFMIG_JOURNAL_RECORD_BYTES,
                   VFMIG_JOURNAL_RECORD_BYTES);
        f->dirty[i] = false;
    }
    return fails ? -EIO : 0;
}

static void open_log(struct flaky *f, struct vfmig_journal_log *ret_log)
{
    struct vfmig_journal_entry opened = {.memory = 1};

    *ret_log = (struct vfmig_journal_log){.store = {flaky_read, flaky_write, flaky_sync, f},
                                          .role = VFMIG_HO_SOURCE};
    memcpy(ret_log->id, id, sizeof(ret_log->id));
    assert_int_equal(vfmig_journal_log_take_up(ret_log, NULL), 0);
    assert_int_equal(vfmig_journal_log_opened(ret_log, &opened, NULL), 0);
}

static void what_a_failed_sync_left_in_the_cache_is_written_again(void **state)
{
    struct flaky *f = calloc(1, sizeof(*f));
    struct vfmig_journal_entry entry = {.epoch = 1, .record = VFMIG_HO_RECORD_OFFERED};
    struct vfmig_journal_summary found;
    struct vfmig_journal_log log;

    assert_non_null(f);
    open_log(f, &log);
    f->fails = true;
    assert_int_equal(vfmig_journal_log_append(&log, &entry, NULL), -EIO);
    open_log(f, &log); /* it is read from the cache, and counts */
    assert_int_equal(log.last.record, VFMIG_HO_RECORD_OFFERED);
    memcpy(f->cache, f->disk, sizeof(f->cache)); /* a crash */
    assert_int_equal(vfmig_journal_scan(&log.store, "flaky", &found, NULL), 0);
    assert_int_equal(found.damage, 0);
    assert_int_equal(found.last.record, VFMIG_HO_RECORD_OFFERED);
    assert_int_equal(found.count, 3);
    free(f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(records_are_there_after_reopening),
        TEST(every_record_is_synced),
        TEST(records_of_the_other_role_are_refused),
        TEST(two_cannot_write_one),
        TEST(a_torn_last_record_is_ignored),
        TEST(a_file_that_was_cut_off_is_damaged),
        TEST(a_journal_that_was_removed_takes_no_grant),
        TEST(a_new_journal_is_synced_with_its_directory),
        TEST(a_journal_under_another_name_is_not_taken_up),
        TEST(a_last_record_that_was_altered_is_named),
        TEST(any_other_damage_is_named),
        TEST(a_full_disk_is_an_error_and_does_not_stop_an_unwinding),
        TEST(a_directory_lists_its_journals),
        TEST(a_directory_takes_no_more_than_status_reads),
        TEST(paths_and_ids_are_checked),
        TEST(what_a_failed_sync_left_in_the_cache_is_written_again),
    };
    return cmocka_run_group_tests_name("journal", tests, NULL, NULL);
}
