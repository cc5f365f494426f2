/* SPDX-License-Identifier: BSD-3-Clause */
/* Who may restore a file: claimed once, given back, discarded, damaged. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <limits.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/journal.h"
#include "engine/save_file.h"

static const uint8_t id[VFMIG_SAVE_ID_BYTES] = "a saved guest...";

struct place {
    char folder[64], path[96], journals[96];
};

static int set_up(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    snprintf(p->folder, sizeof(p->folder), "/tmp/vfmig-save-XXXXXX");
    if (!p || !mkdtemp(p->folder))
        return -1;
    snprintf(p->path, sizeof(p->path), "%s/guest", p->folder);
    snprintf(p->journals, sizeof(p->journals), "%s/journals", p->folder);
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct place *p = *state;
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", p->folder);
    int ret = system(command);
    free(p);
    return ret;
}

static struct vfmig_save_file *create(struct place *p)
{
    struct vfmig_save_file *file = NULL;
    struct vfmig_error err = {0};

    if (vfmig_save_create(p->path, id, 1, "/j/source", &file, &err))
        fail_msg("%s", err.text);
    assert_int_equal(write(vfmig_save_fd(file), "stream", 6), 6);
    return file;
}

static struct vfmig_save_file *save(struct place *p)
{
    struct vfmig_save_file *file = create(p);
    struct vfmig_error err = {0};
    atomic_bool never = false;

    if (vfmig_save_complete(file, &never, &err))
        fail_msg("%s", err.text);
    vfmig_save_release(file);
    return file;
}

static struct vfmig_save_file *open_it(struct place *p)
{
    struct vfmig_save_file *file = NULL;
    struct vfmig_error err = {0};

    if (vfmig_save_open(p->path, /* claim= */ true, &file, &err))
        fail_msg("%s", err.text);
    return file;
}

/* 0, or what the claim said. */
static int claim(struct vfmig_save_file *file, const char *journal, uint32_t *ret_number,
                 struct vfmig_error *err)
{
    int ret = vfmig_save_claim_begin(file, ret_number, err);

    return ret ? ret : vfmig_save_claim(file, journal, err);
}

static void claimed_once(void **state)
{
    struct vfmig_save_file *source = save(*state), *first = open_it(*state), *second = open_it(*state);
    struct vfmig_error err = {0};
    uint32_t number = 0;

    assert_int_equal(claim(first, "/j/first", &number, &err), 0);
    assert_int_equal(number, 1);
    /* The second one had read the log before. */
    assert_int_equal(claim(second, "/j/second", &number, &err), -EBUSY);
    assert_non_null(strstr(err.text, "/j/first"));
    assert_int_equal(vfmig_save_discard(source, &err), -EBUSY);
    assert_non_null(strstr(err.text, "/j/first"));
    vfmig_save_close(first); /* a claim does not end with its process */
    assert_int_equal(claim(second, "/j/second", &number, &err), -EBUSY);
    vfmig_save_close(second);
    vfmig_save_close(source);
}

static void given_back(void **state)
{
    struct vfmig_save_file *source = save(*state), *first = open_it(*state), *second = open_it(*state);
    struct vfmig_error err = {0};
    uint32_t number = 0;

    assert_int_equal(vfmig_save_give_back(second, &err), 0); /* it has none: nothing happens */
    assert_int_equal(claim(first, "/j/first", &number, &err), 0);
    assert_true(vfmig_save_is_claimed(first));
    assert_int_equal(vfmig_save_give_back(first, &err), 0);
    assert_int_equal(claim(second, "/j/second", &number, &err), 0);
    assert_int_equal(number, 2);
    assert_int_equal(vfmig_save_give_back(first, &err), 0); /* not of the second one's claim */
    assert_int_equal(claim(first, "/j/first", &number, &err), -EBUSY);
    vfmig_save_close(first);
    vfmig_save_close(second);
    vfmig_save_close(source);
}

static void nobody_has_it_while_it_is_written(void **state)
{
    struct place *p = *state;
    struct vfmig_save_file *source = create(p), *other = NULL;
    struct vfmig_error err = {0};
    atomic_bool never = false, now = true;
    uint32_t number = 0;

    assert_int_equal(vfmig_save_create(p->path, id, 1, "/j", &other, &err), -EBUSY);
    assert_int_equal(vfmig_save_complete(source, &never, &err), 0);
    other = open_it(p);
    assert_int_equal(claim(other, "/j/other", &number, &err), -EBUSY);
    vfmig_save_release(source);
    assert_int_equal(claim(other, "/j/other", &number, &err), 0);
    vfmig_save_close(other);
    vfmig_save_close(source);
    assert_int_equal(vfmig_save_create(p->path, id, 1, "/j", &other, &err), -EEXIST);
    /* One that is given up leaves nothing; what a dead process has left is replaced. */
    assert_int_equal(unlink(p->path), 0);
    char partial[112];
    snprintf(partial, sizeof(partial), "%s.partial", p->path);
    assert_int_equal(close(open(partial, O_WRONLY | O_CREAT, 0600)), 0);
    source = create(p);
    assert_int_equal(vfmig_save_complete(source, &now, &err), -ECANCELED);
    vfmig_save_close(source);
    assert_int_not_equal(access(p->path, F_OK), 0);
    assert_int_not_equal(access(partial, F_OK), 0);
}

static void discarded_for_good(void **state)
{
    struct place *p = *state;
    struct vfmig_save_file *source = save(p), *other = open_it(p);
    struct vfmig_error err = {0};
    uint32_t number = 0;

    assert_int_equal(vfmig_save_discard(source, &err), 0);
    assert_int_not_equal(access(p->path, F_OK), 0);
    assert_int_equal(claim(other, "/j/other", &number, &err), -ESTALE);
    assert_int_equal(vfmig_save_check(other, /* clone= */ true, &err), 0);
    assert_int_equal(vfmig_save_discard(source, &err), 0); /* again */
    vfmig_save_close(other);
    vfmig_save_close(source);
}

static void a_claim_that_its_journal_refuses_is_none(void **state)
{
    struct place *p = *state;
    struct vfmig_save_file *source = save(p), *first = open_it(p), *second = open_it(p);
    struct vfmig_journal *journal = NULL;
    struct vfmig_error err = {0};
    uint32_t number = 0;

    if (vfmig_journal_open(p->journals, id, VFMIG_HO_DESTINATION, true, NULL, &journal, &err))
        fail_msg("%s", err.text);
    assert_int_equal(claim(first, vfmig_journal_name(journal), &number, &err), 0);
    assert_int_equal(vfmig_journal_append(journal, 2, VFMIG_HO_RECORD_REFUSED, NULL, NULL, &err), 0);
    assert_int_equal(claim(second, "/j/second", &number, &err), -EBUSY); /* of another claim */
    assert_int_equal(vfmig_journal_append(journal, 1, VFMIG_HO_RECORD_REFUSED, NULL, NULL, &err), 0);
    assert_int_equal(claim(second, "/j/second", &number, &err), 0);
    assert_int_equal(number, 2);
    vfmig_journal_close(journal);
    vfmig_save_close(first);
    vfmig_save_close(second);
    vfmig_save_close(source);
}

static void damage_is_never_guessed_at(void **state)
{
    struct place *p = *state;
    struct vfmig_save_file *source = save(p), *file = open_it(p);
    struct vfmig_error err = {0};
    uint32_t number = 0;
    uint8_t byte;

    assert_int_equal(claim(file, "/j/first", &number, &err), 0);
    vfmig_save_close(file);
    for (off_t at = 2 * VFMIG_SAVE_RECORD_BYTES; at < 3 * VFMIG_SAVE_RECORD_BYTES; at += 37) {
        assert_int_equal(pread(vfmig_save_fd(source), &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(vfmig_save_fd(source), &byte, 1, at), 1);
        file = open_it(p);
        assert_int_equal(claim(file, "/j/second", &number, &err), -EBADMSG);
        assert_int_equal(vfmig_save_check(file, /* clone= */ true, &err), 0);
        assert_int_equal(vfmig_save_discard(file, &err), -EBADMSG);
        vfmig_save_close(file);
        byte ^= 0x10;
        assert_int_equal(pwrite(vfmig_save_fd(source), &byte, 1, at), 1);
    }
    assert_int_equal(ftruncate(vfmig_save_fd(source), VFMIG_SAVE_HEAD_BYTES + 5), 0);
    file = open_it(p);
    assert_int_equal(vfmig_save_check(file, /* clone= */ true, &err), -EBADMSG);
    vfmig_save_close(file);
    vfmig_save_close(source);
}

static void a_log_that_is_full(void **state)
{
    struct vfmig_save_file *source = save(*state), *file = open_it(*state);
    struct vfmig_error err = {0};
    uint32_t number = 0;

    for (unsigned i = 0; i < (VFMIG_SAVE_RECORDS - 2) / 2; i++) {
        assert_int_equal(claim(file, "/j/again", &number, &err), 0);
        assert_int_equal(vfmig_save_give_back(file, &err), 0);
    }
    assert_int_equal(claim(file, "/j/again", &number, &err), -EFBIG);
    assert_int_equal(vfmig_save_check(file, /* clone= */ false, &err), 0);
    vfmig_save_close(file);
    vfmig_save_close(source);
}

/* Processes that all begin at once, as in a race of two operators. */
static void one_of_many(void **state)
{
    enum { CHILDREN = 8, ROUNDS = 10 };
    struct vfmig_save_file *source = save(*state);
    struct vfmig_error err = {0};
    uint32_t number = 0;

    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned winners = 0;
        int gate[2], status;
        assert_int_equal(pipe(gate), 0);
        for (unsigned i = 0; i < CHILDREN; i++) {
            if (fork() == 0) {
                char byte;
                struct vfmig_save_file *file = open_it(*state);
                close(gate[1]);
                (void)!read(gate[0], &byte, 1); /* its end is the signal */
                int ret = claim(file, "/j/one", &number, &err);
                if (ret == 0 && vfmig_save_is_claimed(file) && number != round + 1)
                    _exit(2);
                _exit(ret == 0 ? 0 : ret == -EBUSY ? 1 : 3);
            }
        }
        close(gate[0]);
        close(gate[1]);
        for (unsigned i = 0; i < CHILDREN; i++) {
            assert_true(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) < 2);
            winners += WEXITSTATUS(status) == 0;
        }
        assert_int_equal(winners, 1);
        /* Given back in their place: its journal, which is not there, cannot say so. */
        struct vfmig_save_entry entry = {.kind = VFMIG_SAVE_GIVEN_BACK, .epoch = round + 1};
        uint8_t raw[VFMIG_SAVE_RECORD_BYTES];
        memcpy(entry.id, id, sizeof(id));
        vfmig_save_entry_encode(&entry, 3 + 2 * round, raw);
        assert_int_equal(pwrite(vfmig_save_fd(source), raw, sizeof(raw),
                                (off_t)(3 + 2 * round) * VFMIG_SAVE_RECORD_BYTES), sizeof(raw));
    }
    vfmig_save_close(source);
}

/* With a name: that test alone. */
static void names_that_are_none(void **state)
{
    static char long_one[PATH_MAX + 10];
    static const struct {
        const char *path;
        int code; /* 0: any */
    } names[] = {{"", -EINVAL},     {".", -EINVAL},      {"..", -EINVAL},               {"/", -EINVAL},
                 {"/tmp/", -EINVAL}, {"/tmp/..", -EINVAL}, {"/nowhere/at/all", -ENOENT}, {long_one, -EINVAL},
                 {"/proc/guest", 0}};
    struct vfmig_save_file *file = NULL;
    struct vfmig_error err = {0};
    struct place *p = *state;
    char deep[400];

    memset(long_one, 'x', sizeof(long_one) - 1);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        int ret = vfmig_save_create(names[i].path, id, 1, "/j/source", &file, &err);
        assert_true(ret < 0 && ret == err.code && !file);
        if (names[i].code)
            assert_int_equal(ret, names[i].code);
        ret = vfmig_save_open(names[i].path, /* claim= */ true, &file, &err);
        assert_true(ret < 0 && ret == err.code && !file);
    }
    /* Too long for a record, and what is no file. */
    snprintf(deep, sizeof(deep), "%s/%0250d", p->folder, 1);
    assert_true(vfmig_save_create(deep, id, 1, "/j/source", &file, &err) < 0);
    assert_true(vfmig_save_open(p->folder, /* claim= */ false, &file, &err) < 0);
    /* In the folder where the process stands. */
    assert_int_equal(chdir(p->folder), 0);
    assert_int_equal(vfmig_save_create("here", id, 1, "/j/source", &file, &err), 0);
    vfmig_save_abandon(file);
    vfmig_save_close(file);
    assert_int_equal(chdir("/"), 0);
}

int main(int argc, char **argv)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(claimed_once),
        TEST(given_back),
        TEST(one_of_many),
        TEST(names_that_are_none),
        TEST(nobody_has_it_while_it_is_written),
        TEST(discarded_for_good),
        TEST(a_claim_that_its_journal_refuses_is_none),
        TEST(damage_is_never_guessed_at),
        TEST(a_log_that_is_full),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
