/* SPDX-License-Identifier: BSD-3-Clause */
/* The connections of a migration prove by a token that they belong together. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/time.h>

#include "mover_rig.h"

#define STALL_NS UINT64_C(20000000000)

static const uint8_t id[16] = {1, 2, 3};

struct knocks {
    int fds[VFMIG_MAX_CHANNELS + 2];
    uint32_t count, next;
};

/* What vfmig_channels_accept is given: connections that wait already. */
struct door {
    struct knocks inside;
    pthread_t thread;
    uint8_t id[16];
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    uint32_t count;
    int rc;
    struct vfmig_error error;
};

static int next_fd(void *user, struct vfmig_error *reterr)
{
    struct knocks *knocks = user;

    if (knocks->next == knocks->count)
        return vfmig_error_set(reterr, -ENOTCONN, VFMIG_ORIGIN_LOCAL, 0, "nobody knocks any more");
    return knocks->fds[knocks->next++];
}

static void *accept_main(void *opaque)
{
    struct door *door = opaque;

    const struct vfmig_dial dial = {next_fd, &door->inside, STALL_NS, NULL, NULL};

    door->rc = vfmig_channels_accept(&dial, door->id, door->channels, &door->count, &door->error);
    return NULL;
}

/* count connections; our ends are in fds. */
static void door_open(struct door *door, uint32_t count, int *fds)
{
    *door = (struct door){.inside.count = count};
    for (uint32_t i = 0; i < count; i++) {
        int pair[2];
        rig_pair(/* tcp= */ false, pair);
        fds[i] = pair[0];
        door->inside.fds[i] = pair[1];
    }
    assert_int_equal(pthread_create(&door->thread, NULL, accept_main, door), 0);
}

static void door_close(struct door *door)
{
    pthread_join(door->thread, NULL);
    for (uint32_t i = 0; i < door->count; i++)
        vfmig_channel_free(door->channels[i]);
    for (uint32_t i = door->inside.next; i < door->inside.count; i++)
        close(door->inside.fds[i]);
}

/* Says HELLO and reads the answer: its tag, with the token or the sentence. */
static enum vfmig_record_tag say_hello(int fd, uint32_t channel, uint32_t count, const uint8_t who[16],
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
    assert_int_equal(vfmig_channel_new(fd, channel, VFMIG_SIDE_SOURCE, ret_channel, NULL), 0);
    assert_int_equal(vfmig_channel_send(*ret_channel, VFMIG_RECORD_HELLO, out, sizeof(out), NULL), 0);
    assert_int_equal(vfmig_channel_recv(*ret_channel, &record, NULL), 0);
    if (record.tag == VFMIG_RECORD_ERROR) {
        assert_int_equal(vfmig_stream_error_decode(record.payload, record.length, ret_said, NULL), 0);
        return record.tag;
    }
    assert_int_equal(vfmig_hello_decode(record.payload, record.length, &answer, NULL), 0);
    memcpy(ret_token, answer.token, 16);
    return record.tag;
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
    static struct door door; /* its thread outlives a test that fails */
    int fds[2 + 6];

    door_open(&door, 2 + strangers, fds);
    assert_int_equal(say_hello(fds[0], 0, 2, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
    for (uint32_t i = 0; i < strangers; i++) {
        uint8_t guess[16] = {0};
        if (wrong[i].byte >= 0) {
            memcpy(guess, token, 16);
            guess[wrong[i].byte] ^= wrong[i].flip;
        }
        assert_int_equal(say_hello(fds[1 + i], 1, 2, id, guess, again, &stranger, &said),
                         VFMIG_RECORD_ERROR);
        assert_int_equal(said.code, -EACCES);
        assert_string_equal(said.text, "a connection does not belong to this migration: "
                                       "it does not know the token");
        vfmig_channel_free(stranger);
    }
    assert_int_equal(say_hello(fds[1 + strangers], 1, 2, id, token, again, &ours[1], &said),
                     VFMIG_RECORD_HELLO);
    assert_memory_equal(again, token, 16);
    door_close(&door);
    assert_int_equal(door.rc, 0);
    assert_int_equal(door.count, 2);
    vfmig_channel_free(ours[0]);
    vfmig_channel_free(ours[1]);
}

static void the_token_alone_does_not_do(void **state)
{
    const uint8_t other[16] = {9};
    struct vfmig_channel *ours[2], *stranger;
    uint8_t token[16], again[16];
    struct vfmig_error said = {0};
    static struct door door;
    int fds[4];

    door_open(&door, 4, fds);
    assert_int_equal(say_hello(fds[0], 0, 3, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
    assert_int_equal(say_hello(fds[1], 1, 3, other, token, again, &stranger, &said),
                     VFMIG_RECORD_ERROR);
    assert_non_null(strstr(said.text, "it is of another one"));
    vfmig_channel_free(stranger);
    assert_int_equal(say_hello(fds[2], 1, 2, id, token, again, &stranger, &said), VFMIG_RECORD_ERROR);
    assert_non_null(strstr(said.text, "another channel is due"));
    vfmig_channel_free(stranger);
    assert_int_equal(say_hello(fds[3], 1, 3, id, token, again, &ours[1], &said), VFMIG_RECORD_HELLO);
    door_close(&door); /* the third never comes */
    assert_int_equal(door.rc, -ENOTCONN);
    vfmig_channel_free(ours[0]);
    vfmig_channel_free(ours[1]);
}

static void every_migration_has_a_token_of_its_own(void **state)
{
    uint8_t tokens[2][16];

    for (int i = 0; i < 2; i++) {
        struct vfmig_channel *ours;
        struct vfmig_error said = {0};
        static struct door door;
        int fd;
        door_open(&door, 1, &fd);
        assert_int_equal(say_hello(fd, 0, 1, id, NULL, tokens[i], &ours, &said), VFMIG_RECORD_HELLO);
        door_close(&door);
        assert_int_equal(door.rc, 0);
        vfmig_channel_free(ours);
    }
    assert_memory_not_equal(tokens[0], tokens[1], 16);
}

static void strangers_are_counted(void **state)
{
    struct vfmig_channel *ours, *stranger;
    uint8_t token[16], again[16];
    const uint8_t none[16] = {0};
    struct vfmig_error said = {0};
    static struct door door;
    int fds[VFMIG_MAX_CHANNELS + 1];

    door_open(&door, VFMIG_MAX_CHANNELS + 1, fds);
    assert_int_equal(say_hello(fds[0], 0, 2, id, NULL, token, &ours, &said), VFMIG_RECORD_HELLO);
    for (uint32_t i = 1; i <= VFMIG_MAX_CHANNELS; i++) {
        assert_int_equal(say_hello(fds[i], 1, 2, id, none, again, &stranger, &said),
                         VFMIG_RECORD_ERROR);
        vfmig_channel_free(stranger);
    }
    door_close(&door);
    assert_int_equal(door.rc, -EACCES);
    assert_int_equal(door.error.origin, VFMIG_ORIGIN_PEER);
    vfmig_channel_free(ours);
}

/* The source hears the sentence of whoever turned it away. */
static void a_refused_source_says_why(void **state)
{
    struct knocks outside = {.count = 2};
    const struct vfmig_dial dial = {next_fd, &outside, STALL_NS, NULL, NULL};
    struct vfmig_channel *channels[2], *peers[2];
    struct vfmig_record record;
    struct vfmig_hello hello;
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];
    const struct vfmig_error no = {.code = -EACCES, .origin = VFMIG_ORIGIN_PEER, .text = "not you"};
    struct vfmig_error error = {0};

    for (uint32_t i = 0; i < 2; i++) {
        int pair[2];
        rig_pair(/* tcp= */ false, pair);
        outside.fds[i] = pair[0];
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

static uint64_t limit_of(int fd)
{
    struct timeval limit = {0};
    socklen_t size = sizeof(limit);

    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &size), 0);
    return (uint64_t)limit.tv_sec * 1000000000u + (uint64_t)limit.tv_usec * 1000u;
}

/* A source waits STALL_NS for its answer. Who says nothing before it must not take all of that. */
static void a_silent_connection_is_not_listened_to_for_long(void **state)
{
    struct vfmig_channel *ours[2];
    uint8_t token[16], again[16];
    struct vfmig_error said = {0};
    static struct door door;
    int fds[3];

    door_open(&door, 3, fds);
    int inside = fcntl(door.inside.fds[1], F_DUPFD_CLOEXEC, 0); /* the same socket */
    assert_int_equal(say_hello(fds[0], 0, 2, id, NULL, token, &ours[0], &said), VFMIG_RECORD_HELLO);
    while (limit_of(inside) == 0)
        sched_yield(); /* the second one is not taken yet */
    assert_int_equal(limit_of(inside), STALL_NS / 4);
    close(fds[1]); /* in place of waiting until it is given up */
    close(inside);
    inside = fcntl(door.inside.fds[2], F_DUPFD_CLOEXEC, 0);
    assert_int_equal(say_hello(fds[2], 1, 2, id, token, again, &ours[1], &said), VFMIG_RECORD_HELLO);
    door_close(&door);
    assert_int_equal(door.rc, 0);
    close(inside);
    vfmig_channel_free(ours[0]);
    vfmig_channel_free(ours[1]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_without_the_token_is_refused),
        cmocka_unit_test(the_token_alone_does_not_do),
        cmocka_unit_test(every_migration_has_a_token_of_its_own),
        cmocka_unit_test(strangers_are_counted),
        cmocka_unit_test(a_refused_source_says_why),
        cmocka_unit_test(a_silent_connection_is_not_listened_to_for_long),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
