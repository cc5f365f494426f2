/* SPDX-License-Identifier: BSD-3-Clause */
/* The connections of a migration prove by a token that they belong together. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "doorway.h"
#include "mover_rig.h"

#define STALL_NS UINT64_C(20000000000)

static const uint8_t id[16] = {1, 2, 3};

static struct doorway door;

/* Comes in, says HELLO and reads the answer: its tag, with the token or the sentence. */
static enum vfmig_record_tag say_hello(uint32_t channel, uint32_t count, const uint8_t who[16],
                                       const uint8_t token[16], uint8_t ret_token[16],
                                       struct vfmig_channel **ret_channel, struct vfmig_error *ret_said)
{
    struct vfmig_hello hello = {.version_min = VFMIG_STREAM_VERSION,
                                .version_max = VFMIG_STREAM_VERSION,
                                .channel = channel,
                                .channel_count = count,
                                .page_size = VFMIG_PAGE_SIZE};
    uint8_t out[VFMIG_HELLO_BYTES];
    struct vfmig_record record;
    struct vfmig_hello answer;

    memcpy(hello.migration_id, who, 16);
    if (token)
        memcpy(hello.token, token, 16);
    vfmig_hello_encode(out, &hello);
    assert_int_equal(vfmig_channel_new(doorway_knock(&door), channel, VFMIG_SIDE_SOURCE, ret_channel, NULL), 0);
    assert_int_equal(vfmig_channel_send(*ret_channel, VFMIG_RECORD_HELLO, out, sizeof(out), NULL), 0);
    doorway_turn(&door, 1);
    assert_int_equal(vfmig_channel_recv(*ret_channel, &record, NULL), 0);
    if (record.tag == VFMIG_RECORD_ERROR) {
        assert_int_equal(vfmig_stream_error_decode(record.payload, record.length, ret_said, NULL), 0);
        return record.tag;
    }
    assert_int_equal(vfmig_hello_decode(record.payload, record.length, &answer, NULL), 0);
    memcpy(ret_token, answer.token, 16);
    return record.tag;
}

/* The first record, after which it is let in with all its connections; ours are closed. */
static void comes_in_with(struct vfmig_channel **ours, uint32_t count)
{
    assert_int_equal(vfmig_channel_send(ours[0], VFMIG_RECORD_IDENTITY, "me", 2, NULL), 0);
    doorway_turn(&door, 1);
    struct arrival *arrival = door_let_in(door.door);
    assert_non_null(arrival);
    assert_int_equal(arrival->count, count);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(vfmig_channel_index(arrival->channels[i]), i);
        vfmig_channel_free(ours[i]);
    }
    assert_memory_equal(arrival->id, id, sizeof(id));
    assert_string_equal((const char *)arrival->text.data, "me");
    arrival_free(arrival);
}

/* Every single wrong bit counts, at both ends of the token. */
static void a_connection_without_the_token_is_refused(void **state)
{
    static const struct {
        int byte; /* -1: no token at all */
        uint8_t flip;
    } wrong[] = {{-1, 0}, {0, 0x80}, {0, 1}, {7, 0x10}, {15, 1}, {15, 0x80}};
    const uint32_t strangers = sizeof(wrong) / sizeof(wrong[0]);
    struct vfmig_channel *ours[2], *stranger;
    uint8_t token[16], again[16];
    struct vfmig_error said = {0};

    doorway_open(&door, STALL_NS, /* tls= */ NULL);
    assert_int_equal(say_hello(0, 2, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
    for (uint32_t i = 0; i < strangers; i++) {
        uint8_t guess[16] = {0};
        if (wrong[i].byte >= 0) {
            memcpy(guess, token, 16);
            guess[wrong[i].byte] ^= wrong[i].flip;
        }
        assert_int_equal(say_hello(1, 2, id, guess, again, &stranger, &said), VFMIG_RECORD_ERROR);
        assert_int_equal(said.code, -EACCES);
        assert_string_equal(said.text, "a connection does not belong to a migration that begins: "
                                       "it does not know the token");
        vfmig_channel_free(stranger);
    }
    assert_int_equal(door.refused, strangers);
    assert_int_equal(say_hello(1, 2, id, token, again, &ours[1], &said), VFMIG_RECORD_HELLO);
    assert_memory_equal(again, token, 16);
    comes_in_with(ours, 2);
    doorway_close(&door);
}

static void the_token_alone_does_not_do(void **state)
{
    const uint8_t other[16] = {9};
    struct vfmig_channel *ours[3], *stranger;
    uint8_t token[16], again[16];
    struct vfmig_error said = {0};

    doorway_open(&door, STALL_NS, /* tls= */ NULL);
    assert_int_equal(say_hello(0, 3, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
    assert_int_equal(say_hello(1, 3, other, token, again, &stranger, &said), VFMIG_RECORD_ERROR);
    assert_non_null(strstr(said.text, "none with this id does"));
    vfmig_channel_free(stranger);
    for (uint32_t wrong = 0; wrong < 2; wrong++) { /* the count, then the number */
        assert_int_equal(say_hello(1 + wrong, 2 + wrong, id, token, again, &stranger, &said), VFMIG_RECORD_ERROR);
        assert_non_null(strstr(said.text, "another channel is due"));
        vfmig_channel_free(stranger);
    }
    assert_int_equal(say_hello(1, 3, id, token, again, &ours[1], &said), VFMIG_RECORD_HELLO);
    assert_int_equal(door_count(door.door), 2);
    assert_int_equal(say_hello(2, 3, id, token, again, &ours[2], &said), VFMIG_RECORD_HELLO);
    comes_in_with(ours, 3);
    doorway_close(&door);
}

/* Two that begin side by side, under one id: each gets its own connections. */
static void every_migration_has_a_token_of_its_own(void **state)
{
    struct vfmig_channel *ours[2][2];
    struct vfmig_error said = {0};
    uint8_t tokens[2][16], again[16];

    doorway_open(&door, STALL_NS, /* tls= */ NULL);
    for (int i = 0; i < 2; i++)
        assert_int_equal(say_hello(0, 2, id, NULL, tokens[i], &ours[i][0], &said), VFMIG_RECORD_HELLO);
    assert_memory_not_equal(tokens[0], tokens[1], 16);
    for (int i = 1; i >= 0; i--) {
        assert_int_equal(say_hello(1, 2, id, tokens[i], again, &ours[i][1], &said), VFMIG_RECORD_HELLO);
        comes_in_with(ours[i], 2);
    }
    assert_int_equal(door_count(door.door), 0);
    doorway_close(&door);
}

/* It is let in when all that it announced is there, whatever comes first. */
static void an_identity_that_comes_early_waits(void **state)
{
    struct vfmig_channel *ours[2];
    struct vfmig_error said = {0};
    uint8_t token[16], again[16];

    doorway_open(&door, STALL_NS, /* tls= */ NULL);
    assert_int_equal(say_hello(0, 2, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
    assert_int_equal(vfmig_channel_send(ours[0], VFMIG_RECORD_IDENTITY, "me", 2, NULL), 0);
    doorway_turn(&door, 1);
    assert_null(door_let_in(door.door));
    assert_int_equal(say_hello(1, 2, id, token, again, &ours[1], &said), VFMIG_RECORD_HELLO);
    struct arrival *arrival = door_let_in(door.door);
    assert_non_null(arrival);
    assert_int_equal(arrival->count, 2);
    arrival_free(arrival);
    vfmig_channel_free(ours[0]);
    vfmig_channel_free(ours[1]);
    doorway_close(&door);
}

/* Who hangs up takes with it what had joined it. */
static void who_leaves_half_way_is_forgotten(void **state)
{
    for (int early = 0; early < 2; early++) {
        struct vfmig_channel *ours[2], *stranger;
        struct vfmig_error said = {0};
        uint8_t token[16], again[16];

        doorway_open(&door, STALL_NS, /* tls= */ NULL);
        assert_int_equal(say_hello(0, 3, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
        assert_int_equal(say_hello(1, 3, id, token, again, &ours[1], &said), VFMIG_RECORD_HELLO);
        if (early)
            assert_int_equal(vfmig_channel_send(ours[0], VFMIG_RECORD_IDENTITY, "me", 2, NULL), 0);
        doorway_turn(&door, 1);
        assert_int_equal(door_count(door.door), 2);
        vfmig_channel_free(ours[0]);
        doorway_turn(&door, 1);
        assert_int_equal(door_count(door.door), 0);
        assert_int_equal(door.why.code, -ECONNRESET);
        assert_int_equal(say_hello(2, 3, id, token, again, &stranger, &said), VFMIG_RECORD_ERROR);
        vfmig_channel_free(stranger);
        vfmig_channel_free(ours[1]);
        doorway_close(&door);
    }
}

static int next_of(void *fds, struct vfmig_error *reterr)
{
    int **next = fds;

    return *(*next)++;
}

/* The source hears the sentence of whoever turned it away. */
static void a_refused_source_says_why(void **state)
{
    int fds[2], *next = fds;
    const struct vfmig_dial dial = {next_of, &next, STALL_NS, NULL, NULL};
    struct vfmig_channel *channels[2], *peers[2];
    struct vfmig_record record;
    struct vfmig_hello hello;
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];
    const struct vfmig_error no = {.code = -EACCES, .origin = VFMIG_ORIGIN_PEER, .text = "not you"};
    struct vfmig_error error = {0};

    for (uint32_t i = 0; i < 2; i++) {
        int pair[2];
        rig_pair(/* tcp= */ false, pair);
        fds[i] = pair[0];
        assert_int_equal(vfmig_channel_new(pair[1], i, VFMIG_SIDE_DEST, &peers[i], NULL), 0);
    }
    /* Answers that wait already: the first is what a destination would say, the second is a refusal. */
    hello = (struct vfmig_hello){.version_min = VFMIG_STREAM_VERSION,
                                 .version_max = VFMIG_STREAM_VERSION,
                                 .channel_count = 2,
                                 .page_size = VFMIG_PAGE_SIZE};
    memcpy(hello.migration_id, id, 16);
    vfmig_hello_encode(out, &hello);
    assert_int_equal(vfmig_channel_send(peers[0], VFMIG_RECORD_HELLO, out, VFMIG_HELLO_BYTES, NULL), 0);
    assert_int_equal(vfmig_channel_send(peers[1], VFMIG_RECORD_ERROR, out,
                                        vfmig_stream_error_encode(out, &no), NULL), 0);
    assert_int_equal(vfmig_channels_open(&dial, 2, id, channels, &error), -EREMOTEIO);
    assert_string_equal(error.text, "the other side refuses channel 1: not you");
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(vfmig_channel_recv(peers[i], &record, NULL), 0);
        vfmig_channel_free(peers[i]);
    }
}

/* What a source meets at its connections, one after the other. */
enum meets { CLOSED, FORGOTTEN, REFUSED, GREETED, NOBODY };

struct meeting {
    const enum meets *next;
    uint32_t channel, calls;
    struct vfmig_channel *peers[4];
    unsigned peer_count;
};

static int meet(void *opaque, struct vfmig_error *reterr)
{
    static const int codes[] = {[FORGOTTEN] = -EAGAIN, [REFUSED] = -EACCES};
    struct meeting *meeting = opaque;
    enum meets what = meeting->next[0];
    struct vfmig_hello hello = {.version_min = VFMIG_STREAM_VERSION,
                                .version_max = VFMIG_STREAM_VERSION,
                                .channel = meeting->channel,
                                .channel_count = 2,
                                .page_size = VFMIG_PAGE_SIZE};
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];
    struct vfmig_channel *peer;
    int pair[2];

    meeting->calls++;
    if (what == NOBODY)
        return vfmig_error_set(reterr, -ENOENT, VFMIG_ORIGIN_KERNEL, 0, "nobody is there");
    if (meeting->next[1] != what || what != CLOSED)
        meeting->next++; /* closed for ever, if the last two are */
    rig_pair(/* tcp= */ false, pair);
    assert_int_equal(vfmig_channel_new(pair[1], meeting->channel, VFMIG_SIDE_DEST, &peer, NULL), 0);
    memcpy(hello.migration_id, id, 16);
    if (what == GREETED) {
        vfmig_hello_encode(out, &hello);
        assert_int_equal(vfmig_channel_send(peer, VFMIG_RECORD_HELLO, out, VFMIG_HELLO_BYTES, NULL), 0);
    } else if (what != CLOSED) {
        const struct vfmig_error no = {.code = codes[what], .origin = VFMIG_ORIGIN_PEER, .text = "no"};
        assert_int_equal(vfmig_channel_send(peer, VFMIG_RECORD_ERROR, out, vfmig_stream_error_encode(out, &no), NULL), 0);
    }
    meeting->channel = what == GREETED;
    if (what == CLOSED)
        vfmig_channel_free(peer);
    else
        meeting->peers[meeting->peer_count++] = peer;
    return pair[0];
}

/* Who had to make room for others before it was answered comes again; who was refused does not. */
static void a_source_that_is_turned_out_comes_again(void **state)
{
    static const struct {
        enum meets meets[6];
        int rc;
        uint32_t calls;
    } rows[] = {
        {{CLOSED, GREETED, GREETED}, 0, 3},
        {{GREETED, FORGOTTEN, GREETED, GREETED}, 0, 4},
        {{GREETED, CLOSED, GREETED, GREETED}, 0, 4},
        {{REFUSED, GREETED, GREETED}, -EREMOTEIO, 1},
        {{CLOSED, NOBODY}, -ECONNRESET, 2},
        {{NOBODY, GREETED, GREETED}, -ENOENT, 1},
        {{CLOSED, CLOSED}, -ECONNRESET, VFMIG_MAX_GREETING_TRIES},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct meeting meeting = {.next = rows[i].meets};
        const struct vfmig_dial dial = {meet, &meeting, STALL_NS, NULL, NULL};
        struct vfmig_channel *channels[2];
        struct vfmig_error error = {0};

        assert_int_equal(vfmig_channels_open(&dial, 2, id, channels, &error), rows[i].rc);
        assert_int_equal(error.code, rows[i].rc);
        assert_int_equal(meeting.calls, rows[i].calls);
        for (unsigned c = 0; c < 2; c++)
            vfmig_channel_free(channels[c]);
        while (meeting.peer_count)
            vfmig_channel_free(meeting.peers[--meeting.peer_count]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_without_the_token_is_refused),
        cmocka_unit_test(the_token_alone_does_not_do),
        cmocka_unit_test(every_migration_has_a_token_of_its_own),
        cmocka_unit_test(an_identity_that_comes_early_waits),
        cmocka_unit_test(who_leaves_half_way_is_forgotten),
        cmocka_unit_test(a_refused_source_says_why),
        cmocka_unit_test(a_source_that_is_turned_out_comes_again),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
