/* SPDX-License-Identifier: BSD-3-Clause */
/* Whole destinations with strangers at the door (greeting_test.c has the door itself): a migration,
 * a dry run and a question go through as if nobody were there, and quitting waits for none of them.
 * The stall limit is an hour: who waited for it would not live to see the end of this test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "engine/destination.h"
#include "io/sock.h"
#include "io/tls.h"
#include "rig.h"

#define FULL    (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define HOUR_NS UINT64_C(3600000000000)
#define CROWD   (VFMIG_MAX_GREETINGS + 8u)

static const uint32_t features[] = {FULL, FULL};
static struct rig rig;
static int strangers[CROWD + 1];
static unsigned stranger_count;
static unsigned ways; /* unix, tcp, and TLS if this build has it */
static char key_path[] = "/tmp/vfmig-key-XXXXXX";

static int knock(void *user, struct vfmig_error *reterr)
{
    int fd, ret = vfmig_sock_connect(rig.uri, VFMIG_NEVER, &fd, reterr);

    return ret ? ret : fd;
}

/* One after the other says nothing, half a TLS hello, a HELLO with which nothing follows, half an
 * identity. */
static void crowd(void)
{
    static const uint8_t tls[] = {0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3};
    struct vfmig_hello hello = {.version_min = VFMIG_STREAM_VERSION,
                                .version_max = VFMIG_STREAM_VERSION,
                                .channel_count = VFMIG_MAX_CHANNELS,
                                .page_size = VFMIG_PAGE_SIZE};
    uint8_t said[2 * VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES + 100] = {0},
                                                                   *payload =
                                                                       said +
                                                                       VFMIG_RECORD_HEAD_BYTES;
    const size_t sizes[] = {0, sizeof(tls), VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES,
                            sizeof(said)};

    for (stranger_count = 0; stranger_count < CROWD; stranger_count++) {
        int fd = knock(NULL, NULL);
        unsigned kind = stranger_count % 4;
        assert_true(fd >= 0);
        hello.channel_count = kind == 3 ? 1 : VFMIG_MAX_CHANNELS;
        vfmig_hello_encode(payload, &hello);
        vfmig_record_head_encode(said, VFMIG_RECORD_HELLO, 0, 0, VFMIG_HELLO_BYTES,
                                 vfmig_crc32c(0, payload, VFMIG_HELLO_BYTES));
        vfmig_record_head_encode(payload + VFMIG_HELLO_BYTES, VFMIG_RECORD_IDENTITY, 0, 1,
                                 VFMIG_MAX_IDENTITY, 0);
        assert_int_equal(send(fd, kind == 1 ? tls : said, sizes[kind], MSG_NOSIGNAL), sizes[kind]);
        strangers[stranger_count] = fd;
    }
}

static void leave(void)
{
    while (stranger_count)
        close(strangers[--stranger_count]);
}

static void listen_in_a_crowd(bool tcp, bool tls)
{
    struct vfmig_error error = {0};

    rig_open(&rig, 2, features, tcp);
    rig.options.stall_ns = HOUR_NS;
    rig.options.channels = 4;
    rig.options.security.tls_psk = tls ? key_path : NULL;
    if (vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error) ||
        vfmig_destination_listen(rig.destination, rig.uri, &error))
        fail_msg("%s", error.text);
    if (tcp)
        snprintf(rig.uri, sizeof(rig.uri), "tcp:127.0.0.1:%u",
                 vfmig_destination_port(rig.destination));
    crowd();
}

static void count_finding(void *opaque, bool source, const char *text)
{
    ++*(unsigned *)opaque;
}

static void a_migration_goes_through(void **state)
{
    for (unsigned way = 0; way < ways; way++) {
        struct vfmig_error error = {0};
        unsigned findings = 0;

        listen_in_a_crowd(/* tcp= */ way > 0, /* tls= */ way > 1);
        if (vfmig_source_check(&rig.side[RIG_SOURCE].vm, &rig.options, rig.uri, count_finding,
                               &findings, &error))
            fail_msg("%s", error.text);
        assert_int_equal(findings, 0);
        if (vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error) ||
            vfmig_source_start(rig.source, rig.uri, &error))
            fail_msg("%s", error.text);
        assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
        assert_int_equal(vfmig_destination_wait(rig.destination, HOUR_NS, NULL), 0);
        rig_assert_moved(&rig);
        assert_true(door_count(rig.destination->door) > 0);
        rig_close(&rig);
        leave();
    }
}

/* Whoever asks for the outcome of what never was is answered, and does not hang up. */
static struct vfmig_channel *asks(uint8_t whose)
{
    const struct vfmig_dial dial = {.next_fd = knock, .stall_ns = HOUR_NS};
    const uint8_t id[VFMIG_MIGRATION_ID_BYTES] = {whose};
    uint8_t msg[24] = {whose, [16] = 1, [20] = VFMIG_HO_MSG_QUERY};
    struct vfmig_channel *channel;
    struct vfmig_record record;
    struct vfmig_error error = {0};

    if (vfmig_channels_open(&dial, 1, id, &channel, &error) ||
        vfmig_channel_send(channel, VFMIG_RECORD_HANDOVER, msg, sizeof(msg), &error))
        fail_msg("%s", error.text);
    do {
        if (vfmig_channel_recv(channel, &record, &error))
            fail_msg("%s", error.text);
    } while (record.tag != VFMIG_RECORD_HANDOVER);
    return channel;
}

static void a_question_is_answered_and_keeps_nobody_out(void **state)
{
    struct vfmig_channel *askers[2];
    struct vfmig_error error = {0};

    listen_in_a_crowd(/* tcp= */ false, /* tls= */ false);
    for (uint8_t i = 0; i < 2; i++)
        askers[i] = asks(i + 1);
    if (vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error) ||
        vfmig_source_start(rig.source, rig.uri, &error))
        fail_msg("%s", error.text);
    enum vfmig_migrate_state end = rig_wait(&rig);
    for (unsigned i = 0; i < 2; i++)
        vfmig_channel_free(askers[i]);
    leave();
    assert_int_equal(end, VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, HOUR_NS, NULL), 0);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

static void quitting_waits_for_nobody(void **state)
{
    for (unsigned way = 0; way < ways; way++) {
        listen_in_a_crowd(/* tcp= */ way > 0, /* tls= */ way > 1);
        while (door_count(rig.destination->door) <
               CROWD / 2) /* under TLS some are refused at once */
            sched_yield();
        vfmig_destination_cancel(rig.destination);
        assert_int_equal(vfmig_destination_wait(rig.destination, HOUR_NS, NULL), -ECANCELED);
        vfmig_destination_free(rig.destination);
        rig.destination = NULL;
        rig_close(&rig);
        leave();
    }
}

static int make_key(void **state)
{
    struct vfmig_tls_creds *creds = NULL;
    int fd = mkstemp(key_path);
    int rc = fd < 0 || dprintf(fd, "move:%032x\n", 7) < 0;

    close(fd);
    if (rc == 0)
        ways = vfmig_tls_creds_load(NULL, key_path, /* server= */ true, &creds, NULL) == -ENOTSUP
                   ? 2
                   : 3;
    vfmig_tls_creds_free(creds);
    return rc;
}

static int drop_key(void **state)
{
    return unlink(key_path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_migration_goes_through),
        cmocka_unit_test(a_question_is_answered_and_keeps_nobody_out),
        cmocka_unit_test(quitting_waits_for_nobody),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("strangers", tests, make_key, drop_key);
}
