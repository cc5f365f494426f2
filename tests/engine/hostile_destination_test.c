/* SPDX-License-Identifier: BSD-3-Clause */
/* Destinations that say what they must not, to a source and to one that only asks: the guest runs on, and why
 * is one sentence. */
#include "liar.h"

/* --- a destination that lies --- */

static int door = -1;

static void accept_it(void)
{
    uint8_t out[VFMIG_VERDICT_BYTES_MAX];

    say(0, VFMIG_RECORD_VERDICT, out, vfmig_verdict_encode(out, &(struct vfmig_verdict){.accept = true}));
}

/* Pings are answered until something else comes. */
static void until_the_offer(void)
{
    struct vfmig_record record;

    accept_it();
    while (vfmig_channel_recv(liar[0], &record, NULL) == 0 && record.tag == VFMIG_RECORD_PING)
        (void)vfmig_channel_pong(liar[0], &record, NULL);
}

static void refuses(void)
{
    uint8_t out[VFMIG_VERDICT_BYTES_MAX];

    say(0, VFMIG_RECORD_VERDICT, out, vfmig_verdict_encode(out, &(struct vfmig_verdict){.text = "no room"}));
}
static void verdict_of_no_kind(void) { WORDS(0, VERDICT, 2, 0x6f6f6d); }
static void bye_for_an_answer(void) { say(0, VFMIG_RECORD_BYE, NULL, 0); }
static void error_for_an_answer(void) { WORDS(0, ERROR, 5, 2, 0x6f6f6d); }
static void bad_error_for_an_answer(void) { WORDS(0, ERROR, 0, 2, 0x6f6f6d); }
static void hangs_up(void) { vfmig_channel_shutdown(liar[0]); }

static void another_pong(void)
{
    uint32_t words[8] = {77};
    accept_it();
    say_words(0, VFMIG_RECORD_PONG, words, 8);
}
static void pong_of_another_time(void)
{
    uint32_t words[8] = {0};
    accept_it();
    say_words(0, VFMIG_RECORD_PONG, words, 8);
}
static void pong_back_in_time(void)
{
    uint32_t words[8] = {[4] = 5};
    accept_it();
    say_words(0, VFMIG_RECORD_PONG, words, 8);
}
static void no_pong(void)
{
    accept_it();
    say(0, VFMIG_RECORD_PROGRESS, "a", 1);
    say(0, VFMIG_RECORD_BYE, NULL, 0);
}
static void sends_state(void)
{
    until_the_offer();
    WORDS(0, VMSTATE, 1, 0, 0, 0);
}
static void verdict_again(void)
{
    until_the_offer();
    accept_it();
}
static void gives_up_later(void)
{
    until_the_offer();
    WORDS(0, ERROR, 5, 2, 0x6f6f6d);
}
static void short_message(void)
{
    until_the_offer();
    WORDS(0, HANDOVER, 1, 2);
}
/* What is no reason to fail, whatever it says; then it leaves. */
static void chatter(void)
{
    static uint8_t much[VFMIG_MAX_STREAM_TEXT];
    static const char *const said[] = {"a", "r", "rxxxx", "mxxx", "lxxx", "zoo", "fno room", "t\x01\x7f\xff no",
                                       "e{\"t_ns\":1,\"n\":2,\"side\":\"destination\",\"ev\":\"x\"}", "enothing", "enothing}",
                                       "e{\"t_ns\":1,\"m\":2}", "e{\"t_ns\":1,\"n\":2,\"side\":\"source\"}",
                                       "e{\"t_ns\":\x01}", "e{\"t_ns\":\x7f}"};

    until_the_offer();
    for (size_t i = 0; i < COUNT(said); i++)
        say(0, VFMIG_RECORD_PROGRESS, said[i], strlen(said[i]));
    memset(much, 't', sizeof(much));
    say(0, VFMIG_RECORD_PROGRESS, much, sizeof(much));
    WORDS(0, PROGRESS, 'l' | 0x700, 0, 0, 0, 0, 0);
    WORDS(0, CREDIT, 200, 0, 0xffffffff, 0xffffffff);
    WORDS(0, CREDIT, 0, 0, 5, 0);
    WORDS(0, CREDIT, 0, 0, 4, 0);
    hangs_up();
}
static void refusal_with_a_reason(void)
{
    uint8_t msg[24] = {[16] = 1, [20] = VFMIG_HO_MSG_REFUSED, [21] = VFMIG_HO_RECORD_REFUSED};

    until_the_offer();
    memcpy(msg, rig.options.migration_id, 16);
    say(0, VFMIG_RECORD_PROGRESS, "tno room at all", 15);
    say(0, VFMIG_RECORD_HANDOVER, msg, sizeof(msg));
}

static const struct lie to_sources[] = {
    {refuses, "the destination refuses: no room"},
    {verdict_of_no_kind, "VERDICT"},
    {bye_for_an_answer, "the destination answered an identity with BYE"},
    {error_for_an_answer, "the other side gave up: moo"},
    {bad_error_for_an_answer, "ERROR"},
    {hangs_up, "closed"},
    {another_pong, "the peer answered another PING"},
    {pong_of_another_time, "the peer answered another PING"},
    {pong_back_in_time, "PONG"},
    {no_pong, "the peer answered a PING with BYE"},
    {sends_state, "VMSTATE"},
    {verdict_again, "the destination sent VERDICT"},
    {gives_up_later, "the other side gave up: moo"},
    {short_message, "a handover message of 8 bytes"},
    {chatter, "closed"},
    {refusal_with_a_reason, "the destination refused: no room at all"},
};

static void greet(void)
{
    struct doorway doorway;

    doorway_at(&doorway, door, 20 * SECOND, /* tls= */ NULL);
    struct arrival *arrival = doorway_let_in(&doorway);
    assert_true(arrival->identity && arrival->count <= COUNT(liar));
    memcpy(liar, arrival->channels, arrival->count * sizeof(*liar));
    arrival->count = 0;
    arrival_free(arrival);
    doorway_left(&doorway);
}

/* What comes is read away: who closes with something unread takes back what it said last. */
static void *read_away(void *arg)
{
    struct vfmig_record record;

    while (vfmig_channel_recv(liar[(uintptr_t)arg], &record, NULL) == 0)
        ;
    vfmig_channel_drain(liar[(uintptr_t)arg]);
    return NULL;
}

/* Its lines may come into the source's trace; what is none does not. */
static struct vfmig_vm_ops sifting;
static unsigned taken_lines;

static void count_line(void *opaque, const char *json)
{
    taken_lines += strstr(json, "\"side\":\"destination\"") != NULL;
}

static void lie_to_a_source(const struct lie *lie)
{
    struct vfmig_progress progress;
    struct vfmig_error error = {0};
    pthread_t readers[2];

    rig_open(&rig, 2, features, /* tcp= */ false);
    memcpy(rig.options.migration_id, "one that is lied", 16);
    rig.options.trace_peer = true;
    sifting = *rig.side[RIG_SOURCE].vm.ops;
    sifting.trace = count_line;
    rig.side[RIG_SOURCE].vm.ops = &sifting;
    taken_lines = 0;
    assert_int_equal(vfmig_sock_listen(rig.uri, &door, &error), 0);
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    greet();
    lie->tell();
    for (uintptr_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, read_away, (void *)i), 0);
    enum vfmig_migrate_state end = rig_wait(&rig);
    vfmig_source_status(rig.source, &progress);
    if (getenv("LIES_SHOW"))
        print_message("%s: %s\n", vfmig_migrate_state_name(end), progress.error.text);
    assert_int_equal(end, VFMIG_MIGRATE_FAILED);
    if (!strstr(progress.error.text, lie->why))
        fail_msg("%s, not: %s", progress.error.text, lie->why);
    rig_assert_source_runs(&rig);
    assert_int_equal(taken_lines, lie->tell == chatter);
    close(door);
    vfmig_source_free(rig.source);
    rig.source = NULL;
    for (unsigned i = 0; i < 2; i++) {
        vfmig_channel_shutdown(liar[i]);
        pthread_join(readers[i], NULL);
    }
    hang_up();
    rig_close(&rig);
}

static void lies_to_a_source(void **state)
{
    for (size_t i = 0; i < COUNT(to_sources); i++)
        lie_to_a_source(&to_sources[i]);
}

/* --- a dry run that is lied to --- */

static void findings_and_no_verdict(void)
{
    for (unsigned i = 0; i < 1100; i++)
        say(0, VFMIG_RECORD_PROGRESS, "fno", 3);
}
static void odd_findings(void)
{
    static uint8_t much[VFMIG_MAX_STREAM_TEXT];

    memset(much, 'f', sizeof(much));
    say(0, VFMIG_RECORD_PROGRESS, "f\x01\x7f\xffno", 6);
    say(0, VFMIG_RECORD_PROGRESS, "a", 1);
    say(0, VFMIG_RECORD_PROGRESS, much, sizeof(much));
    refuses();
}

static const struct answer {
    void (*tell)(void);
    const char *why;
    unsigned findings;
} to_askers[] = {
    {refuses, "the guest cannot be moved there", 1},
    {odd_findings, "the guest cannot be moved there", 2},
    {findings_and_no_verdict, "the destination finds no end", 1024},
    {verdict_of_no_kind, "VERDICT", 0},
    {bye_for_an_answer, "answered an identity with BYE", 0},
    {hangs_up, "closed", 0},
};

static void *answer_main(void *arg)
{
    const struct answer *answer = arg;

    greet();
    answer->tell();
    return NULL;
}

static void count_finding(void *opaque, bool source, const char *text)
{
    assert_false(source);
    for (const char *at = text; *at; at++)
        assert_true(*at >= ' ' && *at < 127);
    (*(unsigned *)opaque)++;
}

static void lies_to_who_asks(void **state)
{
    for (size_t i = 0; i < COUNT(to_askers); i++) {
        struct vfmig_error error = {0};
        unsigned findings = 0;
        pthread_t thread;

        rig_open(&rig, 1, features, /* tcp= */ false);
        assert_int_equal(vfmig_sock_listen(rig.uri, &door, NULL), 0);
        assert_int_equal(pthread_create(&thread, NULL, answer_main, (void *)&to_askers[i]), 0);
        assert_true(vfmig_source_check(&rig.side[RIG_SOURCE].vm, &rig.options, rig.uri, count_finding, &findings,
                                       &error) < 0);
        pthread_join(thread, NULL);
        if (!strstr(error.text, to_askers[i].why))
            fail_msg("%zu: %s", i, error.text);
        assert_in_range(findings, to_askers[i].findings, to_askers[i].findings + 1);
        hang_up();
        close(door);
        rig_assert_source_runs(&rig);
        rig_close(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lies_to_a_source),
        cmocka_unit_test(lies_to_who_asks),
    };

    return cmocka_run_group_tests_name("hostile-destination", tests, NULL, NULL);
}
