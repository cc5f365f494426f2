/* SPDX-License-Identifier: BSD-3-Clause */
/* Every call to the system that journals and saved files make fails once, in turn: what comes back is an
 * error with a sentence or success, never a half truth on disk. The linker puts the calls through here. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/inspect.h"
#include "engine/journal.h"
#include "engine/resolve.h"
#include "engine/save_file.h"

/* --- calls that fail --- */

static unsigned calls, failing; /* failing 0: none */
static bool no_renameat2; /* a file system that does not know it */
static bool interrupted;        /* those that read and write, by a signal: it is to be tried again */

static bool fails(int code)
{
    if (!failing || (interrupted && code != EIO && code != ENOSPC))
        return false;
    if (++calls != failing)
        return false;
    errno = interrupted ? EINTR : code;
    return true;
}

#define WRAP(type, name, parameters, arguments, failed, code)                                      \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters                                                                  \
    {                                                                                              \
        return fails(code) ? failed : __real_##name arguments;                                     \
    }

WRAP(void *, calloc, (size_t n, size_t size), (n, size), NULL, ENOMEM)
WRAP(void *, malloc, (size_t size), (size), NULL, ENOMEM)
WRAP(ssize_t, pread64, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), -1, EIO)
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), -1, ENOSPC)
WRAP(int, fsync, (int fd), (fd), -1, EDQUOT)
WRAP(int, fdatasync, (int fd), (fd), -1, EDQUOT)
WRAP(int, fstat64, (int fd, struct stat *st), (fd, st), -1, EOVERFLOW)
WRAP(int, rename, (const char *from, const char *to), (from, to), -1, EACCES)
WRAP(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags), -1,
     no_renameat2 ? EINVAL : EXDEV)
WRAP(int, link, (const char *from, const char *to), (from, to), -1, EMLINK)

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;

    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails(EMFILE) ? -1 : __real_open64(path, flags, mode);
}

int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...)
{
    va_list args;

    va_start(args, command);
    void *what = va_arg(args, void *);
    va_end(args);
    return fails(ENOLCK) ? -1 : __real_fcntl64(fd, command, what);
}

/* --- one thing after the other, as far as it goes --- */

static const uint8_t id[VFMIG_HO_ID_BYTES] = "a saved guest...";
static char folder[64], path[96], journals[96];

static void check_sentence(int ret, const struct vfmig_error *err)
{
    assert_true(ret <= 0);
    if (ret)
        assert_true(err->text[0] && err->code == ret);
}

static int save(struct vfmig_error *err)
{
    struct vfmig_save_file *file = NULL;
    atomic_bool never = false;
    int ret = vfmig_save_create(path, id, 1, "/j/source", &file, err);

    if (!ret)
        assert_int_equal(write(vfmig_save_fd(file), "stream", 6), 6);
    if (!ret)
        ret = vfmig_save_complete(file, &never, err);
    if (!ret)
        vfmig_save_release(file);
    vfmig_save_close(file);
    return ret;
}

static int claim(struct vfmig_error *err)
{
    struct vfmig_save_file *file = NULL;
    uint32_t number = 0;
    int ret = vfmig_save_open(path, /* claim= */ true, &file, err);

    if (!ret)
        ret = vfmig_save_check(file, /* clone= */ false, err);
    if (!ret)
        ret = vfmig_save_claim_begin(file, &number, err);
    if (!ret)
        ret = vfmig_save_claim(file, "/j/claim", err);
    if (!ret)
        ret = vfmig_save_give_back(file, err);
    vfmig_save_close(file);
    return ret;
}

static int discard(struct vfmig_error *err)
{
    struct vfmig_save_file *file = NULL;
    int ret = vfmig_save_open(path, /* claim= */ true, &file, err);

    if (!ret)
        ret = vfmig_save_discard(file, err);
    vfmig_save_close(file);
    return ret;
}

static int offer(struct vfmig_error *err)
{
    struct vfmig_journal *journal = NULL;
    uint64_t sync_ns = 0;
    int ret = vfmig_journal_open(journals, id, VFMIG_HO_SOURCE, true, "/c", &journal, err);

    if (!ret)
        ret = vfmig_journal_probe(journal, &sync_ns, err);
    if (!ret)
        ret = vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_OFFERED, NULL, NULL, err);
    if (!ret)
        ret = vfmig_journal_note(journal, 1, "/c", err);
    if (!ret)
        ret = vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_GRANT_SENT, NULL, NULL, err);
    vfmig_journal_close(journal);
    return ret;
}

static int look(struct vfmig_error *err)
{
    struct vfmig_resolve_view *views = NULL;
    size_t count = 0;
    int ret = vfmig_resolve_status(journals, journals, &views, &count, err);

    free(views);
    return ret < 0 ? ret : 0;
}

static int set_up(void **state)
{
    strcpy(folder, "/tmp/vfmig-shortage-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/guest", folder);
    snprintf(journals, sizeof(journals), "%s/journals", folder);
    return 0;
}

static int tear_down(void **state)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static unsigned open_files(void)
{
    unsigned count = 0;

    for (int fd = 0; fd < 64; fd++)
        count += __real_fcntl64(fd, F_GETFD) >= 0;
    return count;
}

/* Calls `what` with its first call failing, its second ... until it makes no more; after(ret) looks at
 * what it left, and makes it good. Returns how many calls there were. */
static unsigned in_turn(int (*what)(struct vfmig_error *err), void (*after)(int ret))
{
    unsigned failures = 0, turn = 1, before = open_files();

    for (;; turn++) {
        struct vfmig_error err = {0};

        calls = 0;
        failing = turn;
        int ret = what(&err);
        bool was_there = calls >= turn;
        failing = 0;
        check_sentence(ret, &err);
        assert_int_equal(open_files(), before);
        if (interrupted || !was_there)
            assert_int_equal(ret, 0);
        failures += ret != 0;
        after(ret);
        if (!was_there)
            break;
        assert_true(turn < 1000);
    }
    assert_true(interrupted || failures > 2);
    return turn - 1;
}

static void remove_guest(int ret)
{
    struct vfmig_error err = {0};
    struct vfmig_save_file *file = NULL;

    /* What has the name is whole, or says that it is not. */
    if (access(path, F_OK) == 0 && ret == 0) {
        assert_int_equal(vfmig_save_open(path, false, &file, &err), 0);
        assert_int_equal(vfmig_save_check(file, false, &err), 0);
        vfmig_save_close(file);
    }
    assert_true(ret != 0 || access(path, F_OK) == 0);
    unlink(path);
}

static void another_guest(int ret)
{
    struct vfmig_error err = {0};

    unlink(path);
    assert_int_equal(save(&err), 0);
}

/* Whatever failed, a claim that was not given back is there for all to see, or none is. */
static void still_there(int ret)
{
    struct vfmig_error err = {0};
    struct vfmig_save_file *file = NULL;

    assert_int_equal(vfmig_save_open(path, false, &file, &err), 0);
    int check = vfmig_save_check(file, /* clone= */ true, &err);
    assert_int_equal(check, 0);
    vfmig_save_close(file);
    another_guest(ret);
}

static void discarded_or_not(int ret)
{
    struct vfmig_save_file *file = NULL;
    struct vfmig_error err = {0};

    /* A file that cannot be removed any more is void: its record comes first. */
    if (ret == 0 && vfmig_save_open(path, false, &file, NULL) == 0)
        assert_true(vfmig_save_check(file, /* clone= */ false, &err) < 0);
    vfmig_save_close(file);
    another_guest(ret);
}

/* A journal that is opened again goes on; GRANT-SENT is on it when we were told so. */
static void reopen(int ret)
{
    struct vfmig_journal *journal = NULL;
    struct vfmig_error err = {0};
    char command[128];

    assert_int_equal(vfmig_journal_open(journals, id, VFMIG_HO_SOURCE, false, NULL, &journal, &err), 0);
    if (ret == 0)
        assert_int_equal(vfmig_journal_last(journal)->record, VFMIG_HO_RECORD_GRANT_SENT);
    vfmig_journal_close(journal);
    snprintf(command, sizeof(command), "rm -rf %s", journals);
    assert_int_equal(system(command), 0);
}

static void nothing(int ret)
{
}

static void saved_files(void **state)
{
    assert_true(in_turn(save, remove_guest) > 10);
    another_guest(0);
    assert_true(in_turn(claim, still_there) > 10);
    assert_true(in_turn(discard, discarded_or_not) > 3);
}

static ssize_t read_guest(void *user, void *buf, size_t size)
{
    return read(*(int *)user, buf, size);
}

static void pass_over(void *user, const struct vfmig_inspect_item *item)
{
}

static int inspect(struct vfmig_error *err)
{
    struct vfmig_inspect_totals totals;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return vfmig_error_set(err, -errno, VFMIG_ORIGIN_KERNEL, 0, "cannot be opened");
    int ret = vfmig_inspect(read_guest, &fd, pass_over, NULL, &totals, err);
    close(fd);
    /* What was saved here is no stream: that it says so is all that is asked. */
    if (ret == -ENODATA || ret == -EBADMSG)
        *err = (struct vfmig_error){0};
    return err->code;
}

static void saved_files_elsewhere(void **state)
{
    no_renameat2 = true;
    assert_true(in_turn(save, remove_guest) > 10);
    another_guest(0);
    no_renameat2 = false;
    assert_true(in_turn(inspect, nothing) > 3);
}

static void the_journal(void **state)
{
    struct vfmig_error err = {0};

    assert_true(in_turn(offer, reopen) > 10);
    assert_int_equal(offer(&err), 0);
    assert_true(in_turn(look, nothing) > 3);
}

static void signals_are_no_failures(void **state)
{
    interrupted = true;
    assert_true(in_turn(save, remove_guest) > 2);
    another_guest(0);
    assert_true(in_turn(claim, still_there) > 2);
    assert_true(in_turn(offer, reopen) > 2);
    interrupted = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(saved_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(saved_files_elsewhere, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_journal, set_up, tear_down),
        cmocka_unit_test_setup_teardown(signals_are_no_failures, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
