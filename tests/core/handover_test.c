/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "handover_explorer.h"
#include "handover_world.h"

static const char *broken_text(const struct explorer *x)
{
    return x->broken ? x->broken : "";
}

static void explore(struct explorer *x, uint32_t room, const struct limits *limits)
{
    if (!explorer_run(x, room, limits))
        fail_msg("%s", broken_text(x));
}

static const struct limits faultless = {.epochs = 1};

/* "Two running" and the other rules are checked by world_make at every single step. */
static void never_two_running_whatever_fails(void **state)
{
    static const struct limits bounds[] = {
        {.crashes = 2, .aborts = 1, .links = 1, .epochs = 1},
        {.crashes = 1, .failures = 1, .aborts = 1, .links = 1, .epochs = 1},
        {.crashes = 1, .aborts = 1, .epochs = 2},
    };

    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        struct explorer x;
        explore(&x, /* room= */ 400000, &bounds[i]);
        printf("handover: %u worlds with %u crashes, %u failures, %u attempts\n", x.count,
               bounds[i].crashes, bounds[i].failures, bounds[i].epochs);
        explorer_done(&x);
    }
}

/* After the last fault the guest runs once, or its memory is kept under a name, or it had died. */
static const char *settled_badly(const struct world *before, const struct world *after,
                                 bool asked_for)
{
    const struct side *s = &after->side[SRC], *d = &after->side[DST];
    /* Once the source has ABORTED on record, it may have run: the image counts as stale. */
    bool image = before->side[DST].h.memory && !before->stale &&
                 before->side[SRC].disk != VFMIG_HO_RECORD_ABORTED;
    bool had = before->side[SRC].h.memory || image;
    bool nameless = (!s->h.outcome && s->disk) ||
                    (!d->h.outcome && d->h.state != VFMIG_HO_DST_LISTEN);

    if (s->h.pending || d->h.pending)
        return "still writing";
    if (s->runs || d->runs)
        return NULL;
    if (nameless)
        return "nobody runs, without a name for it";
    /* RUNNING on record and dead: nobody can tell whether it ran. The source keeps what it has,
     * unless an operator has told it to give it up. */
    if (d->disk == VFMIG_HO_RECORD_RUNNING)
        return !before->ran_there && before->side[SRC].h.memory && !s->h.memory &&
                       before->side[SRC].h.pending != VFMIG_HO_RECORD_RELEASED
                   ? "memory is given up that nobody else has"
                   : NULL;
    if (had && !asked_for && !s->h.memory && !d->h.memory)
        return "memory is lost that was there";
    if (s->h.memory)
        return "the source has the guest and does not run it";
    if (d->h.memory && d->h.outcome != VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION &&
        d->h.outcome != VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION)
        return "the destination keeps the guest under a wrong name";
    return NULL;
}

static void settle_all(const struct explorer *x)
{
    for (uint32_t i = 0; i < x->count; i++) {
        const struct world *before = &x->worlds[i];
        struct world after = *before;
        bool abort_asked = x->limits.aborts && !before->aborts;
        const char *broken = world_settle(&after, /* returning= */ 3);
        if (!broken)
            broken = settled_badly(before, &after, abort_asked || before->excused);
        if (broken) {
            explorer_print(x, i);
            world_print(&after);
            fail_msg("%s", broken);
        }
    }
}

static void every_world_settles_and_nothing_is_lost(void **state)
{
    static const struct limits bounds[] = {
        {.crashes = 2, .links = 1, .epochs = 1},
        {.crashes = 1, .failures = 1, .aborts = 1, .epochs = 1},
        {.crashes = 1, .aborts = 1, .epochs = 2},
    };

    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        struct explorer x;
        explore(&x, /* room= */ 400000, &bounds[i]);
        settle_all(&x);
        explorer_done(&x);
    }
}

static void without_faults_exactly_one_runs_at_the_end(void **state)
{
    struct explorer x;
    unsigned ended = 0;

    explore(&x, /* room= */ 10000, &faultless);
    for (uint32_t i = 0; i < x.count; i++) {
        struct world after = x.worlds[i];
        assert_null(world_settle(&after, /* returning= */ 3));
        assert_int_equal(after.side[SRC].runs + after.side[DST].runs, 1);
        if (after.side[DST].runs) {
            assert_int_equal(after.side[SRC].disk, VFMIG_HO_RECORD_RELEASED);
            assert_int_equal(after.side[DST].h.outcome, VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION);
            assert_int_equal(after.side[SRC].h.outcome, VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION);
            assert_true(after.side[DST].h.acked);
            ended++;
        }
    }
    assert_true(ended > 10);
    explorer_done(&x);
}

/* One machine under a script of events: what it journals and sends. */
static struct vfmig_ho_actions take(struct vfmig_handover *h, uint8_t kind)
{
    const struct vfmig_ho_event event = {.kind = kind};
    struct vfmig_ho_actions acts;

    assert_int_equal(vfmig_handover_step(h, &event, &acts), 0);
    return acts;
}

static void saving_leaves_the_source_stopped_until_the_file_is_discarded(void **state)
{
    const uint8_t id[VFMIG_HO_ID_BYTES] = "save";
    struct vfmig_handover h;

    assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_SOURCE, id, 1, VFMIG_HO_RECORD_NONE, true), 0);
    assert_int_equal(take(&h, VFMIG_HO_EVENT_START).journal, VFMIG_HO_RECORD_OFFERED);
    take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    take(&h, VFMIG_HO_EVENT_STOPPED);
    assert_int_equal(take(&h, VFMIG_HO_EVENT_SAVED).journal, VFMIG_HO_RECORD_SAVED);
    struct vfmig_ho_actions acts = take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    assert_int_equal(acts.flags, VFMIG_HO_ACT_REPORT);
    assert_int_equal(acts.outcome, VFMIG_HO_OUTCOME_SAVED);
    assert_false(vfmig_handover_may_run(&h));
    take(&h, VFMIG_HO_EVENT_ABORT);
    assert_int_equal(h.state, VFMIG_HO_SRC_SAVED);
    assert_int_equal(take(&h, VFMIG_HO_EVENT_DISCARD).journal, VFMIG_HO_RECORD_RESUMED);
    struct vfmig_handover unwritten = h;
    assert_true(take(&h, VFMIG_HO_EVENT_JOURNAL_DONE).flags & VFMIG_HO_ACT_RESUME);
    assert_true(vfmig_handover_may_run(&h));
    /* The file is void by its own log: the guest goes on although the journal takes nothing. */
    assert_true(take(&unwritten, VFMIG_HO_EVENT_JOURNAL_FAILED).flags & VFMIG_HO_ACT_RESUME);
    assert_true(vfmig_handover_may_run(&unwritten));
}

static void a_complete_file_is_discarded_before_the_guest_goes_on(void **state)
{
    const uint8_t id[VFMIG_HO_ID_BYTES] = "save";
    struct vfmig_handover h;

    assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_SOURCE, id, 1, VFMIG_HO_RECORD_NONE, true), 0);
    take(&h, VFMIG_HO_EVENT_START);
    take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    take(&h, VFMIG_HO_EVENT_STOPPED);
    take(&h, VFMIG_HO_EVENT_SAVED);
    struct vfmig_ho_actions acts = take(&h, VFMIG_HO_EVENT_JOURNAL_FAILED);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_NONE);
    assert_int_equal(acts.flags, VFMIG_HO_ACT_REPORT);
    assert_false(vfmig_handover_may_run(&h));
    assert_int_equal(take(&h, VFMIG_HO_EVENT_DISCARD).journal, VFMIG_HO_RECORD_RESUMED);
    assert_false(vfmig_handover_may_run(&h));
    assert_true(take(&h, VFMIG_HO_EVENT_JOURNAL_DONE).flags & VFMIG_HO_ACT_RESUME);
}

static void messages_that_are_not_ours_change_nothing(void **state)
{
    const uint8_t id[VFMIG_HO_ID_BYTES] = "mine";
    struct vfmig_handover h, before;
    struct vfmig_ho_actions acts;
    struct vfmig_ho_event good = {.kind = VFMIG_HO_EVENT_MESSAGE,
                                  .msg = {.id = "mine", .epoch = 3, .kind = VFMIG_HO_MSG_GRANT,
                                          .record = VFMIG_HO_RECORD_GRANT_SENT, .memory = 1}};
    struct vfmig_ho_event bad[7];

    assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_DESTINATION, id, 3, VFMIG_HO_RECORD_READY, true), 0);
    before = h;
    for (unsigned i = 0; i < 7; i++)
        bad[i] = good;
    bad[0].msg.id[0] ^= 1;
    bad[1].msg.epoch = 2;
    bad[2].msg.epoch = 0;
    bad[3].msg.kind = VFMIG_HO_MSG_RUNNING;
    bad[4].msg.kind = VFMIG_HO_MSG_COUNT;
    bad[5].msg.record = VFMIG_HO_RECORD_READY;
    bad[6].msg.memory = 2;
    for (unsigned i = 0; i < 7; i++) {
        int r = vfmig_handover_step(&h, &bad[i], &acts);
        assert_int_equal(r, i < 2 ? -ESTALE : -EPROTO);
        assert_memory_equal(&h, &before, sizeof(h));
        assert_int_equal(acts.journal | acts.flags | acts.send.kind, 0);
    }
    assert_int_equal(vfmig_handover_step(&h, &good, &acts), 0);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_GRANTED);
    const struct vfmig_ho_event local[] = {{.kind = VFMIG_HO_EVENT_NONE}, {.kind = VFMIG_HO_EVENT_COUNT},
                                           {.kind = VFMIG_HO_EVENT_START}, {.kind = VFMIG_HO_EVENT_FENCED}};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(vfmig_handover_step(&h, &local[i], &acts), -EINVAL);
}

/* A message of the source; returns what comes of it. */
static int hear(struct vfmig_handover *h, uint8_t kind, uint32_t epoch, uint8_t record, struct vfmig_ho_actions *ret_acts)
{
    const struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE,
                                         .msg = {.id = "mine", .epoch = epoch, .kind = kind, .record = record,
                                                 .memory = 1}};

    return vfmig_handover_step(h, &event, ret_acts);
}

static struct vfmig_handover destination_with(uint8_t record)
{
    const uint8_t id[VFMIG_HO_ID_BYTES] = "mine";
    struct vfmig_handover h;
    bool fresh = record == VFMIG_HO_RECORD_NONE;

    assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_DESTINATION, fresh ? NULL : id, fresh ? 0 : 1, record, !fresh), 0);
    return h;
}

/* Neither the seal of an attempt nor a user who gave it up is the next one's. */
static void an_attempt_leaves_nothing_to_the_next(void **state)
{
    struct vfmig_handover h = destination_with(VFMIG_HO_RECORD_NONE);
    struct vfmig_ho_actions acts;

    for (uint32_t epoch = 1; epoch <= 2; epoch++) {
        assert_int_equal(hear(&h, VFMIG_HO_MSG_OFFER, epoch, VFMIG_HO_RECORD_OFFERED, &acts), 0);
        acts = take(&h, VFMIG_HO_EVENT_LOADED);
        assert_int_equal(acts.journal, VFMIG_HO_RECORD_NONE);
        assert_int_equal(hear(&h, VFMIG_HO_MSG_SEAL, epoch, VFMIG_HO_RECORD_OFFERED, &acts), 0);
        assert_int_equal(acts.journal, VFMIG_HO_RECORD_READY);
        if (epoch == 1)
            (void)take(&h, VFMIG_HO_EVENT_ABORT); /* while READY is written */
        acts = take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
        assert_int_equal(acts.journal, epoch == 1 ? VFMIG_HO_RECORD_REFUSED : VFMIG_HO_RECORD_NONE);
        if (epoch == 1)
            (void)take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    }
    assert_int_equal(h.state, VFMIG_HO_DST_READY);
}

static void nobody_begins_anew_while_a_record_is_written(void **state)
{
    struct vfmig_handover h = destination_with(VFMIG_HO_RECORD_NONE);
    struct vfmig_ho_actions acts;

    assert_int_equal(hear(&h, VFMIG_HO_MSG_OFFER, 1, VFMIG_HO_RECORD_OFFERED, &acts), 0);
    acts = take(&h, VFMIG_HO_EVENT_LOAD_FAILED);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_REFUSED);
    const struct vfmig_handover before = h;
    assert_int_equal(hear(&h, VFMIG_HO_MSG_OFFER, 2, VFMIG_HO_RECORD_OFFERED, &acts), -ESTALE);
    assert_memory_equal(&h, &before, sizeof(h));
    acts = take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    assert_int_equal(acts.send.kind, VFMIG_HO_MSG_REFUSED);
    assert_int_equal(hear(&h, VFMIG_HO_MSG_OFFER, 2, VFMIG_HO_RECORD_OFFERED, &acts), 0);
    assert_int_equal(h.state, VFMIG_HO_DST_LOADING);
}

/* Nobody says it a second time. */
static void a_link_that_is_lost_while_the_offer_is_written_is_not_forgotten(void **state)
{
    const uint8_t id[VFMIG_HO_ID_BYTES] = "mine";
    struct vfmig_handover h;
    struct vfmig_ho_actions acts;

    assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_SOURCE, id, 1, VFMIG_HO_RECORD_NONE, true), 0);
    acts = take(&h, VFMIG_HO_EVENT_START);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_OFFERED);
    (void)take(&h, VFMIG_HO_EVENT_LINK_LOST);
    acts = take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_RESUMED);
}

/* Prepared at the second try, and RUNNING could not be written: it is not handed back for the first one. */
static void a_try_that_succeeds_makes_up_for_the_one_before(void **state)
{
    struct vfmig_handover h = destination_with(VFMIG_HO_RECORD_READY);
    struct vfmig_ho_actions acts;

    assert_int_equal(hear(&h, VFMIG_HO_MSG_GRANT, 1, VFMIG_HO_RECORD_GRANT_SENT, &acts), 0);
    acts = take(&h, VFMIG_HO_EVENT_JOURNAL_DONE);
    assert_int_equal(acts.flags & VFMIG_HO_ACT_PREPARE, VFMIG_HO_ACT_PREPARE);
    acts = take(&h, VFMIG_HO_EVENT_PREPARE_FAILED);
    assert_int_equal(acts.send.kind, VFMIG_HO_MSG_QUERY);
    acts = take(&h, VFMIG_HO_EVENT_PREPARED);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_RUNNING);
    (void)take(&h, VFMIG_HO_EVENT_JOURNAL_FAILED);
    assert_int_equal(hear(&h, VFMIG_HO_MSG_OUTCOME, 1, VFMIG_HO_RECORD_GRANT_SENT, &acts), 0);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_NONE);
    acts = take(&h, VFMIG_HO_EVENT_RETRY);
    assert_int_equal(acts.journal, VFMIG_HO_RECORD_RUNNING);
}

static void records_are_of_one_role_and_have_names(void **state)
{
    struct vfmig_handover h;

    for (unsigned record = 0; record <= VFMIG_HO_RECORD_COUNT; record++) {
        bool source = record < VFMIG_HO_RECORD_READY;
        bool destination = !record || (!source && record < VFMIG_HO_RECORD_COUNT);
        assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_SOURCE, NULL, 1, record, false),
                         source ? 0 : -EINVAL);
        assert_int_equal(vfmig_handover_init(&h, VFMIG_HO_DESTINATION, NULL, 1, record, false),
                         destination ? 0 : -EINVAL);
        bool named = strcmp(vfmig_ho_record_name(record), "unknown") != 0;
        assert_int_equal(named, record < VFMIG_HO_RECORD_COUNT);
    }
    for (unsigned i = 0; i < VFMIG_HO_STATE_COUNT; i++)
        assert_string_not_equal(vfmig_ho_state_name(i), "unknown");
    for (unsigned i = 0; i < VFMIG_HO_MSG_COUNT; i++)
        assert_string_not_equal(vfmig_ho_msg_name(i), "unknown");
    for (unsigned i = 0; i < VFMIG_HO_OUTCOME_COUNT; i++)
        assert_string_not_equal(vfmig_ho_outcome_name(i), "unknown");
    assert_string_equal(vfmig_ho_state_name(UINT32_MAX), "unknown");
    assert_string_equal(vfmig_ho_msg_name(VFMIG_HO_MSG_COUNT), "unknown");
    assert_string_equal(vfmig_ho_outcome_name(VFMIG_HO_OUTCOME_COUNT), "unknown");
}

/* docs/handover.md shows what the code does, between two marks. */
static void the_table_of_the_document_is_the_code_s(void **state)
{
    char *table = NULL, *text = calloc(1, 1 << 18);
    size_t size = 0;
    FILE *out = open_memstream(&table, &size), *doc = fopen(DOCS "/handover.md", "r");

    assert_non_null(out);
    assert_non_null(doc);
    print_table(out);
    fclose(out);
    assert_true(fread(text, 1, (1 << 18) - 1, doc) > 0);
    fclose(doc);
    char *begin = strstr(text, "<!-- table: begin -->\n"), *end = strstr(text, "<!-- table: end -->");
    assert_non_null(begin);
    assert_non_null(end);
    *end = 0;
    assert_string_equal(begin + strlen("<!-- table: begin -->\n"), table);
    free(table);
    free(text);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--table")) {
        print_table(stdout);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_faults_exactly_one_runs_at_the_end),
        cmocka_unit_test(never_two_running_whatever_fails),
        cmocka_unit_test(every_world_settles_and_nothing_is_lost),
        cmocka_unit_test(saving_leaves_the_source_stopped_until_the_file_is_discarded),
        cmocka_unit_test(a_complete_file_is_discarded_before_the_guest_goes_on),
        cmocka_unit_test(messages_that_are_not_ours_change_nothing),
        cmocka_unit_test(an_attempt_leaves_nothing_to_the_next),
        cmocka_unit_test(nobody_begins_anew_while_a_record_is_written),
        cmocka_unit_test(a_link_that_is_lost_while_the_offer_is_written_is_not_forgotten),
        cmocka_unit_test(a_try_that_succeeds_makes_up_for_the_one_before),
        cmocka_unit_test(records_are_of_one_role_and_have_names),
        cmocka_unit_test(the_table_of_the_document_is_the_code_s),
    };
    return cmocka_run_group_tests_name("handover", tests, NULL, NULL);
}
