/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/resolve.h"

static const uint8_t id[VFMIG_HO_ID_BYTES] = {7, [15] = 9};

struct place {
    char top[64];
    char source[96], destination[96];
};

static int make_place_in(const char *folder, void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    snprintf(p->top, sizeof(p->top), "%s/vfmig-resolve-XXXXXX", folder);
    assert_non_null(mkdtemp(p->top));
    snprintf(p->source, sizeof(p->source), "%s/s", p->top);
    snprintf(p->destination, sizeof(p->destination), "%s/d", p->top);
    *state = p;
    return 0;
}

static int make_place(void **state)
{
    return make_place_in("/tmp", state);
}

/* Where a sync costs nothing. */
static int make_place_in_memory(void **state)
{
    return make_place_in("/dev/shm", state);
}

static void empty(const struct place *p)
{
    char command[160];

    snprintf(command, sizeof(command), "rm -rf '%s' && mkdir '%s'", p->top, p->top);
    assert_int_equal(system(command), 0);
}

static int remove_place(void **state)
{
    struct place *p = *state;

    empty(p);
    int r = rmdir(p->top);
    free(p);
    return r;
}

/* A journal that ends with the record; stays held if ret_journal is given. */
static void put(const char *dir, enum vfmig_ho_role role, enum vfmig_ho_record record,
                struct vfmig_journal **ret_journal)
{
    struct vfmig_journal *journal = NULL;

    assert_int_equal(vfmig_journal_open(dir, id, role, true, NULL, &journal, NULL), 0);
    if (record)
        assert_int_equal(vfmig_journal_append(journal, 1, record, NULL, NULL, NULL), 0);
    if (ret_journal)
        *ret_journal = journal;
    else
        vfmig_journal_close(journal);
}

static struct vfmig_resolve_view look(const char *dir, const char *peer)
{
    struct vfmig_resolve_view *views = NULL, view;
    struct vfmig_error err = {0};
    size_t count = 0;

    if (vfmig_resolve_status(dir, peer, &views, &count, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(count, 1);
    view = views[0];
    free(views);
    return view;
}

static struct vfmig_resolve_view resolve(const char *dir, const char *peer)
{
    const struct vfmig_resolve_request settle = {0};
    struct vfmig_resolve_view view = look(dir, peer);
    struct vfmig_error err = {0};

    if (vfmig_resolve_apply(dir, &view, &settle, &err) < 0)
        fail_msg("%s", err.text);
    return view;
}

/* Which pairs of last records a run can leave behind. */
static bool possible(enum vfmig_ho_record s, enum vfmig_ho_record d)
{
    switch (s) {
    case VFMIG_HO_RECORD_OFFERED:
    case VFMIG_HO_RECORD_ABORTED:
        return d != VFMIG_HO_RECORD_GRANTED;
    case VFMIG_HO_RECORD_GRANT_SENT:
        return d != VFMIG_HO_RECORD_NONE;
    case VFMIG_HO_RECORD_RELEASED:
        return d == VFMIG_HO_RECORD_RUNNING;
    case VFMIG_HO_RECORD_RESUMED:
        return d == VFMIG_HO_RECORD_REFUSED;
    default:
        return false;
    }
}

/* RUNNING says whose the guest is, and status must not take it for one that runs when its start failed. */
static void a_guest_that_was_not_started_is_not_said_to_run(void **state)
{
    struct place *p = *state;
    struct vfmig_journal *source, *destination;
    struct vfmig_error err = {0};

    put(p->source, VFMIG_HO_SOURCE, VFMIG_HO_RECORD_GRANT_SENT, &source);
    put(p->destination, VFMIG_HO_DESTINATION, VFMIG_HO_RECORD_GRANTED, &destination);
    assert_int_equal(vfmig_journal_note_standing(destination, true, "no", &err), -EINVAL);
    assert_int_equal(vfmig_journal_append(destination, 1, VFMIG_HO_RECORD_RUNNING, NULL, NULL, NULL), 0);
    assert_int_equal(look(p->destination, p->source).outcome, VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION);
    assert_int_equal(vfmig_journal_note_standing(destination, true, "device x is gone", &err), 0);
    struct vfmig_resolve_view there = look(p->destination, p->source);
    assert_int_equal(there.outcome, VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION);
    assert_int_equal(there.own.last.record, VFMIG_HO_RECORD_RUNNING);
    assert_string_equal(there.own.last.text, "device x is gone");
    assert_non_null(strstr(there.todo, "cont"));
    assert_true(there.memory_here && !there.settled && !there.may_start);
    /* The source has not learnt that it is over, and gives it up all the same. */
    struct vfmig_resolve_view here = look(p->source, p->destination);
    assert_int_equal(here.outcome, VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION);
    assert_false(here.settled);
    vfmig_journal_close(source);
    here = resolve(p->source, p->destination);
    assert_int_equal(here.own.last.record, VFMIG_HO_RECORD_RELEASED);
    assert_int_equal(here.outcome, VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION);
    assert_true(here.settled && !here.may_start);

    assert_int_equal(vfmig_journal_note_standing(destination, false, NULL, &err), 0);
    there = look(p->destination, p->source);
    assert_int_equal(there.outcome, VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION);
    assert_true(there.settled);
    assert_int_equal(look(p->source, p->destination).outcome, VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION);

    assert_int_equal(vfmig_journal_note_standing(destination, true, "again", &err), 0);
    vfmig_journal_close(destination);
    there = look(p->destination, p->source);
    assert_int_equal(there.outcome, VFMIG_HO_OUTCOME_DIED_AT_DESTINATION);
    assert_true(there.settled && there.may_start);
    assert_int_equal(look(p->source, p->destination).outcome, VFMIG_HO_OUTCOME_DIED_AT_DESTINATION);
}

static void after_both_died_resolve_settles_every_pair(void **state)
{
    struct place *p = *state;
    unsigned seen = 0;

    for (unsigned s = VFMIG_HO_RECORD_OFFERED; s <= VFMIG_HO_RECORD_RESUMED; s++) {
        for (unsigned d = VFMIG_HO_RECORD_READY; d < VFMIG_HO_RECORD_COUNT; d++) {
            if (!possible(s, d))
                continue;
            put(p->source, VFMIG_HO_SOURCE, s, NULL);
            put(p->destination, VFMIG_HO_DESTINATION, d, NULL);
            struct vfmig_resolve_view before = look(p->source, p->destination);
            assert_string_not_equal(before.now, "");
            assert_true(before.settled || *before.todo);
            struct vfmig_resolve_view there = resolve(p->destination, NULL);
            assert_true(there.settled);
            struct vfmig_resolve_view here = resolve(p->source, p->destination);
            assert_true(here.settled);
            bool ran = d == VFMIG_HO_RECORD_RUNNING;
            assert_int_equal(here.outcome, ran ? VFMIG_HO_OUTCOME_DIED_AT_DESTINATION
                                               : VFMIG_HO_OUTCOME_DIED_AT_SOURCE);
            /* One place where it may be started afresh, and not two. */
            assert_int_equal(here.may_start, !ran);
            assert_int_equal(there.may_start, ran);
            assert_int_equal(vfmig_resolve_check_start(p->source, true, NULL), 0);
            empty(p);
            seen++;
        }
    }
    assert_int_equal(seen, 15);
}

static void a_source_that_returns_learns_the_outcome_first(void **state)
{
    static const uint8_t open_ends[] = {VFMIG_HO_RECORD_OFFERED, VFMIG_HO_RECORD_GRANT_SENT,
                                        VFMIG_HO_RECORD_ABORTED};
    struct place *p = *state;
    struct vfmig_error err;

    assert_int_equal(vfmig_resolve_check_start(p->source, true, &err), 0);
    for (unsigned i = 0; i < 3; i++) {
        struct vfmig_journal *held = NULL;
        put(p->source, VFMIG_HO_SOURCE, open_ends[i], NULL);
        assert_int_equal(vfmig_resolve_check_start(p->source, true, &err), -EBUSY);
        assert_non_null(strstr(err.text, "is not settled"));
        assert_false(resolve(p->source, NULL).settled);
        put(p->destination, VFMIG_HO_DESTINATION, VFMIG_HO_RECORD_RUNNING, &held);
        struct vfmig_resolve_view view = resolve(p->source, p->destination);
        assert_true(view.settled);
        assert_int_equal(view.own.last.record, VFMIG_HO_RECORD_RELEASED);
        assert_int_equal(view.outcome, VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION);
        assert_false(view.may_start);
        vfmig_journal_close(held);
        empty(p);
    }
}

static void a_held_journal_is_left_to_its_process(void **state)
{
    const struct vfmig_resolve_request settle = {0}, run = {.decision = VFMIG_RESOLVE_RUN};
    struct place *p = *state;
    struct vfmig_journal *held = NULL;
    struct vfmig_error err;

    put(p->destination, VFMIG_HO_DESTINATION, VFMIG_HO_RECORD_READY, &held);
    put(p->source, VFMIG_HO_SOURCE, VFMIG_HO_RECORD_OFFERED, NULL);
    struct vfmig_resolve_view view = look(p->destination, p->source);
    assert_int_equal(view.outcome, VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION);
    assert_true(view.memory_here);
    assert_int_equal(vfmig_resolve_apply(p->destination, &view, &settle, &err), -EBUSY);
    vfmig_journal_close(held);
    view = look(p->destination, p->source);
    assert_false(view.memory_here);
    assert_int_equal(vfmig_resolve_apply(p->destination, &view, &run, &err), -ENODATA);
    /* A process that came back without memory holds it: nothing is kept there. */
    struct vfmig_journal *back = NULL;
    assert_int_equal(vfmig_journal_open(p->destination, id, VFMIG_HO_DESTINATION, false, NULL, &back, NULL), 0);
    view = look(p->destination, p->source);
    assert_true(view.own.held);
    assert_false(view.memory_here);
    assert_int_equal(view.outcome, VFMIG_HO_OUTCOME_REFUSED);
    vfmig_journal_close(back);
}

static void running_needs_a_grant_or_an_operators_word(void **state)
{
    struct vfmig_handover h;
    struct vfmig_ho_event event;
    struct vfmig_resolve_request run = {.decision = VFMIG_RESOLVE_RUN, .peer_epoch = 1};
    struct vfmig_error err;

    vfmig_handover_init(&h, VFMIG_HO_DESTINATION, id, 1, VFMIG_HO_RECORD_READY, true);
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
    assert_non_null(strstr(err.text, "--source-is-fenced"));
    run.peer_record = VFMIG_HO_RECORD_OFFERED;
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
    run.peer_record = VFMIG_HO_RECORD_GRANT_SENT;
    run.peer_epoch = 2;
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
    run.peer_epoch = 1;
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), 0);
    assert_int_equal(event.msg.kind, VFMIG_HO_MSG_GRANT);
    run.peer_record = VFMIG_HO_RECORD_NONE;
    run.source_is_fenced = true;
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), 0);
    assert_int_equal(event.kind, VFMIG_HO_EVENT_FENCED);
    run.peer_record = VFMIG_HO_RECORD_ABORTED;
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
    assert_non_null(strstr(err.text, "stale"));
    run.peer_record = VFMIG_HO_RECORD_NONE;
    vfmig_handover_init(&h, VFMIG_HO_DESTINATION, id, 1, VFMIG_HO_RECORD_REFUSED, true);
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
    vfmig_handover_init(&h, VFMIG_HO_DESTINATION, id, 1, VFMIG_HO_RECORD_READY, false);
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
    vfmig_handover_init(&h, VFMIG_HO_SOURCE, id, 1, VFMIG_HO_RECORD_OFFERED, false);
    assert_int_equal(vfmig_resolve_event(&h, &run, &event, &err), -EPERM);
}

static void a_destination_that_never_heard_of_it_can_refuse(void **state)
{
    struct place *p = *state;
    struct vfmig_error err;

    put(p->source, VFMIG_HO_SOURCE, VFMIG_HO_RECORD_GRANT_SENT, NULL);
    assert_false(resolve(p->source, NULL).settled);
    assert_int_equal(vfmig_resolve_refuse_unknown(p->destination, id, 1, &err), 0);
    assert_int_equal(vfmig_resolve_refuse_unknown(p->destination, id, 1, &err), -EEXIST);
    struct vfmig_resolve_view view = resolve(p->source, p->destination);
    assert_true(view.settled && view.may_start);
    assert_int_equal(view.own.last.record, VFMIG_HO_RECORD_RESUMED);
}

static void damage_and_a_saved_guest(void **state)
{
    struct vfmig_resolve_request discard = {.decision = VFMIG_RESOLVE_DISCARD};
    const struct vfmig_resolve_request refuse = {.decision = VFMIG_RESOLVE_REFUSE};
    struct place *p = *state;
    struct vfmig_error err;

    put(p->source, VFMIG_HO_SOURCE, VFMIG_HO_RECORD_SAVED, NULL);
    struct vfmig_resolve_view view = resolve(p->source, NULL);
    assert_int_equal(view.outcome, VFMIG_HO_OUTCOME_SAVED);
    assert_int_equal(vfmig_resolve_apply(p->source, &view, &refuse, &err), -EPERM);
    /* The journal of this test names a file that never was. */
    assert_int_equal(vfmig_resolve_apply(p->source, &view, &discard, &err), -ENOENT);
    discard.file_is_gone = true;
    assert_int_equal(vfmig_resolve_apply(p->source, &view, &discard, &err), 0);
    assert_true(view.may_start);
    FILE *file = fopen(view.own.path, "r+");
    assert_non_null(file);
    fputs("garbage", file);
    fclose(file);
    view = look(p->source, NULL);
    assert_int_equal(vfmig_resolve_apply(p->source, &view, &discard, &err), -EBADMSG);
    assert_int_equal(vfmig_resolve_check_start(p->source, true, &err), -EBUSY);
}

/* What every decision does with every pair of records, also with those that no run leaves behind. */
static void decide(const struct place *p, unsigned decision, bool at_source, bool peer_known)
{
    const char *dir = at_source ? p->source : p->destination, *peer = at_source ? p->destination : p->source;
    const struct vfmig_resolve_request request = {
        .decision = (enum vfmig_resolve_decision)decision, .file_is_gone = decision & 1, .peer_epoch = 1};
    struct vfmig_resolve_view view = look(dir, peer_known ? peer : NULL), again;
    struct vfmig_error err = {0};
    uint8_t before = view.own.last.record;

    assert_string_not_equal(view.now, "");
    int ret = vfmig_resolve_apply(dir, &view, &request, &err);
    again = look(dir, peer_known ? peer : NULL);
    if (ret) {
        assert_true(ret == err.code && err.text[0]);
        assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    }
    /* Nobody is made to run by a journal alone, and what was decided stays. */
    assert_int_not_equal(ret == 0 && decision == VFMIG_RESOLVE_RUN, true);
    assert_true(again.own.last.record != VFMIG_HO_RECORD_RUNNING || before == VFMIG_HO_RECORD_RUNNING);
    if (ret == 0) {
        assert_int_equal(again.own.last.record, view.own.last.record);
        assert_int_equal(again.settled, view.settled);
        assert_int_equal(again.may_start, view.may_start);
    }
}

static void remove_journals(const struct place *p)
{
    char path[192], text[2 * VFMIG_HO_ID_BYTES + 1];

    vfmig_ho_id_format(id, text);
    snprintf(path, sizeof(path), "%s/%s.source", p->source, text);
    unlink(path);
    snprintf(path, sizeof(path), "%s/%s.destination", p->destination, text);
    unlink(path);
}

static void every_decision_over_every_pair(void **state)
{
    struct place *p = *state;

    for (unsigned s = VFMIG_HO_RECORD_NONE; s < VFMIG_HO_RECORD_READY; s++)
        for (unsigned d = VFMIG_HO_RECORD_NONE; d < VFMIG_HO_RECORD_COUNT; d = d ? d + 1 : VFMIG_HO_RECORD_READY)
            for (unsigned way = 0; way < 4 * VFMIG_RESOLVE_DECISION_COUNT; way++) {
                put(p->source, VFMIG_HO_SOURCE, s, NULL);
                put(p->destination, VFMIG_HO_DESTINATION, d, NULL);
                decide(p, way / 4, way & 1, way & 2);
                remove_journals(p);
            }
}

/* The peer's journal as one file, and one that is none. */
static void a_peer_s_journal_by_its_name(void **state)
{
    const struct vfmig_resolve_request settle = {0};
    struct vfmig_resolve_view *views = NULL;
    struct place *p = *state;
    char path[192], text[2 * VFMIG_HO_ID_BYTES + 1];
    struct vfmig_error err;
    size_t count = 0;

    put(p->source, VFMIG_HO_SOURCE, VFMIG_HO_RECORD_GRANT_SENT, NULL);
    put(p->destination, VFMIG_HO_DESTINATION, VFMIG_HO_RECORD_NONE, NULL);
    vfmig_ho_id_format(id, text);
    snprintf(path, sizeof(path), "%s/%s.destination", p->destination, text);
    assert_true(look(p->source, path).peer_known);
    put(p->destination, VFMIG_HO_DESTINATION, VFMIG_HO_RECORD_READY, NULL);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    fputs("garbage", file);
    fclose(file);
    assert_true(vfmig_resolve_status(p->source, path, &views, &count, &err) < 0);
    assert_true(vfmig_resolve_status(p->source, path, &views, &count, NULL) < 0);
    assert_true(vfmig_resolve_status(p->source, "/nowhere/at/all", &views, &count, &err) < 0);
    struct vfmig_resolve_view view = look(p->destination, NULL);
    assert_true(vfmig_resolve_apply(p->destination, &view, &settle, NULL) < 0);
    assert_true(vfmig_resolve_apply(p->destination, &view, &settle, &err) < 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_guest_that_was_not_started_is_not_said_to_run),
        TEST(after_both_died_resolve_settles_every_pair),
        TEST(a_source_that_returns_learns_the_outcome_first),
        TEST(a_held_journal_is_left_to_its_process),
        TEST(running_needs_a_grant_or_an_operators_word),
        TEST(a_destination_that_never_heard_of_it_can_refuse),
        TEST(damage_and_a_saved_guest),
        cmocka_unit_test_setup_teardown(every_decision_over_every_pair, make_place_in_memory, remove_place),
        TEST(a_peer_s_journal_by_its_name),
    };
    return cmocka_run_group_tests_name("resolve", tests, NULL, NULL);
}
