/* SPDX-License-Identifier: BSD-3-Clause */
/* Strangers at a destination's door, of every kind and more than it has places: a source gets in
 * all the same, at once. Clock, turns and whose a connection is are the test's; nothing here waits.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>

#include "base/crc32c.h"
#include "doorway.h"
#include "engine/channel_private.h"
#include "io/tls.h"

#define STALL_NS UINT64_C(40000000000)
#define CROWD    (VFMIG_MAX_GREETINGS + 8u)
#define SOURCE   1u /* whose connections are: theirs, ours */
#define STRANGER 2u

static _Atomic uint64_t passed_ns;

int __real_clock_gettime(clockid_t clock, struct timespec *ret_ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret_ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret_ts)
{
    int rc = __real_clock_gettime(clock, ret_ts);
    uint64_t ns = (uint64_t)ret_ts->tv_nsec + atomic_load(&passed_ns);

    ret_ts->tv_sec += (time_t)(ns / 1000000000u);
    ret_ts->tv_nsec = (long)(ns % 1000000000u);
    return rc;
}

static uint64_t whose;

uint64_t __wrap_vfmig_sock_whose(int fd);
uint64_t __wrap_vfmig_sock_whose(int fd)
{
    return whose;
}

static struct doorway door;
static struct vfmig_tls_creds *inside, *outside; /* NULL: plain */

/* False in a build without TLS. */
static bool load_key(void)
{
    char path[] = "/tmp/vfmig-key-XXXXXX";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    assert_true(dprintf(fd, "move:%032x\n", 7) > 0);
    close(fd);
    int rc = vfmig_tls_creds_load(NULL, path, /* server= */ true, &inside, NULL);
    if (rc != -ENOTSUP) {
        assert_int_equal(rc, 0);
        assert_int_equal(vfmig_tls_creds_load(NULL, path, /* server= */ false, &outside, NULL), 0);
    }
    unlink(path);
    return rc == 0;
}

static void forget_key(void)
{
    vfmig_tls_creds_free(inside);
    vfmig_tls_creds_free(outside);
    inside = outside = NULL;
}

/* --- what is said --- */

#define HELLO_ALL (VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES)

static const uint8_t id[16] = {1, 2, 3};

static void record_of(uint8_t *out, enum vfmig_record_tag tag, uint32_t channel, uint64_t sequence,
                      const void *payload, uint32_t size)
{
    vfmig_record_head_encode(out, tag, channel, sequence, size, vfmig_crc32c(0, payload, size));
    memcpy(out + VFMIG_RECORD_HEAD_BYTES, payload, size);
}

static void hello_of(uint8_t out[HELLO_ALL], uint32_t channel, uint32_t count,
                     const uint8_t token[16])
{
    struct vfmig_hello hello = {.version_min = VFMIG_STREAM_VERSION,
                                .version_max = VFMIG_STREAM_VERSION,
                                .channel = channel,
                                .channel_count = count,
                                .page_size = VFMIG_PAGE_SIZE};
    uint8_t payload[VFMIG_HELLO_BYTES];

    memcpy(hello.migration_id, id, sizeof(id));
    if (token)
        memcpy(hello.token, token, 16);
    vfmig_hello_encode(payload, &hello);
    record_of(out, VFMIG_RECORD_HELLO, channel, 0, payload, sizeof(payload));
}

static bool is_closed(int fd)
{
    char byte;

    return recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0 || errno == ECONNRESET;
}

/* --- an honest source, step by step --- */

struct source {
    struct vfmig_channel *channels[2];
    uint8_t token[16];
};

/* Between its steps others may come. */
static void (*meanwhile)(void);

static void step(void)
{
    doorway_turn(&door, 1);
    if (meanwhile)
        meanwhile();
    whose = SOURCE;
}

/* False: nobody has greeted it. */
static bool greets(struct source *source, uint32_t channel)
{
    struct vfmig_channel **ours = &source->channels[channel];
    struct vfmig_record record;
    struct vfmig_hello answer;
    uint8_t bytes[HELLO_ALL];
    int rc = outside ? 1 : 0;

    whose = SOURCE;
    assert_int_equal(
        vfmig_channel_new(doorway_knock(&door), channel, VFMIG_SIDE_SOURCE, ours, NULL), 0);
    for (unsigned i = 0; i < 8 && rc == 1; i++) {
        rc = vfmig_channel_try_tls(*ours, outside, NULL);
        step();
    }
    if (rc)
        return false;
    hello_of(bytes, channel, 2, channel ? source->token : NULL);
    assert_int_equal(vfmig_channel_send(*ours, VFMIG_RECORD_HELLO, bytes + VFMIG_RECORD_HEAD_BYTES,
                                        VFMIG_HELLO_BYTES, NULL),
                     0);
    step();
    if (vfmig_channel_try_recv(*ours, VFMIG_MAX_STREAM_TEXT, &record, NULL) != 1 ||
        vfmig_hello_take(&record, &answer, NULL))
        return false;
    memcpy(source->token, answer.token, 16);
    return true;
}

static bool gets_in(void)
{
    struct source source = {.channels = {NULL}};
    struct arrival *arrival = NULL;

    if (greets(&source, 0) && greets(&source, 1)) {
        assert_int_equal(
            vfmig_channel_send(source.channels[0], VFMIG_RECORD_IDENTITY, "me", 2, NULL), 0);
        doorway_turn(&door, 1);
        arrival = door_let_in(door.door);
    }
    for (unsigned i = 0; i < 2; i++)
        vfmig_channel_free(source.channels[i]);
    if (arrival)
        assert_int_equal(arrival->count, 2);
    arrival_free(arrival);
    return arrival;
}

/* --- strangers --- */

static int strangers[8 * CROWD];
static unsigned stranger_count;
static uint64_t from = STRANGER; /* where the next one is from */

static int comes(const void *data, size_t size)
{
    whose = from;
    int fd = doorway_knock(&door);
    if (size)
        assert_int_equal(send(fd, data, size, MSG_NOSIGNAL), size);
    doorway_turn(&door, 1);
    assert_true(stranger_count < sizeof(strangers) / sizeof(strangers[0]));
    strangers[stranger_count++] = fd;
    return fd;
}

static void silent(void)
{
    comes(NULL, 0);
}

/* All of these say a byte more whenever one of them comes. */
static void trickling(void)
{
    uint8_t bytes[HELLO_ALL];

    hello_of(bytes, 0, 1, NULL);
    comes(bytes, 1);
    for (unsigned i = 0; i + 1 < stranger_count; i++)
        (void)send(strangers[i], &bytes[stranger_count - i], 1, MSG_NOSIGNAL);
    doorway_turn(&door, 1);
}

static void half_a_tls_hello(void)
{
    static const uint8_t bytes[] = {0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3};

    comes(bytes, sizeof(bytes));
}

static void rubbish(void)
{
    comes("GET / HTTP/1.1\r\nHost: nobody at all, to be sure\r\n\r\n", 50);
}

static void unknown_token(void)
{
    uint8_t bytes[HELLO_ALL];

    hello_of(bytes, 1, 2, id);
    comes(bytes, sizeof(bytes));
}

static void of_no_migration(void)
{
    uint8_t bytes[HELLO_ALL], payload[VFMIG_HELLO_BYTES];

    hello_of(bytes, 1, 2, NULL);
    memcpy(payload, bytes + VFMIG_RECORD_HEAD_BYTES, sizeof(payload));
    payload[8] ^= 0x80; /* of the id */
    record_of(bytes, VFMIG_RECORD_HELLO, 1, 0, payload, sizeof(payload));
    comes(bytes, sizeof(bytes));
}

/* Announces all connections that there may be, and none comes. */
static void half_open(void)
{
    uint8_t bytes[HELLO_ALL];

    hello_of(bytes, 0, VFMIG_MAX_CHANNELS, NULL);
    comes(bytes, sizeof(bytes));
}

static void half_an_identity(void)
{
    uint8_t bytes[HELLO_ALL + VFMIG_RECORD_HEAD_BYTES + 100] = {0};

    hello_of(bytes, 0, 1, NULL);
    vfmig_record_head_encode(bytes + HELLO_ALL, VFMIG_RECORD_IDENTITY, 0, 1, VFMIG_MAX_IDENTITY, 0);
    comes(bytes, sizeof(bytes));
}

static void (*const kinds[])(void) = {silent,    trickling,       half_a_tls_hello,
                                      rubbish,   unknown_token,   of_no_migration,
                                      half_open, half_an_identity};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void open_door(void)
{
    stranger_count = 0;
    from = STRANGER;
    doorway_open(&door, STALL_NS, inside);
}

static void close_door(void)
{
    for (unsigned i = 0; i < stranger_count; i++)
        close(strangers[i]);
    doorway_close(&door);
}

/* The places are taken, then a source comes; while it is greeted more of them do. */
static void strangers_do_not_keep_a_source_out(void **state)
{
    for (int tls = 0; tls < 2; tls++) {
        if (tls && !load_key())
            break;
        for (size_t kind = 0; kind < KINDS; kind++) {
            open_door();
            for (unsigned i = 0; i < CROWD; i++)
                kinds[kind]();
            assert_in_range(door_count(door.door), 0, VFMIG_MAX_GREETINGS);
            meanwhile = kinds[kind];
            bool in = gets_in();
            meanwhile = NULL;
            if (!in)
                fail_msg("strangers of kind %zu%s keep a source out", kind,
                         tls ? " under TLS" : "");
            assert_in_range(door_count(door.door), 0, VFMIG_MAX_GREETINGS);
            close_door();
        }
    }
    forget_key();
    assert_int_equal(atomic_load(&passed_ns), 0);
}

/* Both its connections are greeted: its identity comes, and it is let in. */
static void comes_to_the_end_of_it(struct source *source)
{
    assert_int_equal(vfmig_channel_send(source->channels[0], VFMIG_RECORD_IDENTITY, "me", 2, NULL), 0);
    doorway_turn(&door, 1);
    struct arrival *arrival = door_let_in(door.door);
    assert_non_null(arrival);
    arrival_free(arrival);
    vfmig_channel_free(source->channels[0]);
    vfmig_channel_free(source->channels[1]);
    close_door();
}

/* Whoever comes first leaves first, so that the crowd turns out itself and not who comes now and
 * then. */
static void a_crowd_turns_out_its_own(void **state)
{
    struct source slow = {.channels = {NULL}};

    open_door();
    assert_true(greets(&slow, 0));
    for (unsigned i = 0; i < 4 * CROWD; i++)
        silent();
    assert_int_equal(door_count(door.door), VFMIG_MAX_GREETINGS);
    assert_int_equal(door.why.code, -EBUSY);
    assert_int_equal(door.refused, 4 * CROWD + 1 - VFMIG_MAX_GREETINGS);
    for (unsigned i = 0; i < stranger_count; i++)
        assert_int_equal(is_closed(strangers[i]), i <= 4 * CROWD - VFMIG_MAX_GREETINGS);
    assert_true(greets(&slow, 1));
    comes_to_the_end_of_it(&slow);
}

/* Strangers from everywhere, none of whom has a key. */
static void who_has_proof_stays(void **state)
{
    struct source slow = {.channels = {NULL}};

    if (!load_key())
        skip();
    open_door();
    assert_true(greets(&slow, 0));
    for (unsigned i = 0; i < 2 * CROWD; i++) {
        from = STRANGER + i;
        silent();
    }
    assert_true(greets(&slow, 1));
    comes_to_the_end_of_it(&slow);
    forget_key();
}

/* Those that are ready wait for the destination, and are not turned out for it; who comes waits
 * outside. */
static void who_is_ready_stays(void **state)
{
    uint8_t bytes[HELLO_ALL + VFMIG_RECORD_HEAD_BYTES + 2];
    struct arrival *arrival;
    unsigned in = 0;

    open_door();
    hello_of(bytes, 0, 1, NULL);
    record_of(bytes + HELLO_ALL, VFMIG_RECORD_IDENTITY, 0, 1, "me", 2);
    for (unsigned i = 0; i < CROWD; i++)
        comes(bytes, sizeof(bytes));
    assert_int_equal(door_count(door.door), VFMIG_MAX_GREETINGS);
    atomic_fetch_add(&passed_ns, 2 * STALL_NS);
    doorway_turn(&door, 1);
    assert_int_equal(door.refused, 0);
    for (; (arrival = door_let_in(door.door)); in++) {
        arrival_free(arrival);
        doorway_turn(&door, 1);
    }
    assert_int_equal(in, CROWD);
    close_door();
}

/* --- how long --- */

#define STEPS   16u /* of the time that there is, one a byte; HELLO has more bytes */
#define STEP_NS (STALL_NS / STEPS)

_Static_assert(HELLO_ALL > 2 * STEPS, "too few bytes to be late with");

/* A byte a step from here on: how many steps until it is sent away. */
static unsigned steps_until_late(int fd, const uint8_t *bytes, unsigned most)
{
    unsigned said = 0;

    while (said < most && !is_closed(fd)) {
        assert_int_equal(send(fd, bytes + said++, 1, MSG_NOSIGNAL), 1);
        doorway_turn(&door, 1);
        atomic_fetch_add(&passed_ns, STEP_NS);
        doorway_turn(&door, 1);
    }
    return said;
}

static void a_greeting_that_trickles(void **state)
{
    uint8_t bytes[2 * HELLO_ALL];

    hello_of(bytes, 0, 1, NULL);
    vfmig_record_head_encode(bytes + HELLO_ALL, VFMIG_RECORD_IDENTITY, 0, 1, VFMIG_MAX_IDENTITY, 0);
    for (int greeted = 0; greeted < 2; greeted++) {
        open_door();
        int fd = comes(bytes, greeted ? HELLO_ALL : 0);
        if (greeted)
            assert_int_equal(recv(fd, bytes, HELLO_ALL, 0), HELLO_ALL);
        assert_in_range(steps_until_late(fd, bytes + HELLO_ALL * greeted, 2 * STEPS), STEPS - 1,
                        STEPS + 1);
        assert_int_equal(door.why.code, -ETIMEDOUT);
        assert_string_equal(door.why.text, "a greeting took longer than the time limit");
        assert_int_equal(door_count(door.door), 0);
        close_door();
    }
}

/* Each thing that it does has as much time as a source waits for its answer. */
static void a_source_that_is_slow_gets_in(void **state)
{
    struct source slow = {.channels = {NULL}};

    open_door();
    for (uint32_t channel = 0; channel < 2; channel++) {
        atomic_fetch_add(&passed_ns, STALL_NS - STEP_NS);
        assert_true(greets(&slow, channel));
    }
    atomic_fetch_add(&passed_ns, STALL_NS - STEP_NS);
    doorway_turn(&door, 1);
    comes_to_the_end_of_it(&slow);
}

/* --- how much --- */

/* Records of a later version that may be left out are, some of them; and what is no greeting is
 * refused by its head. */
static void what_nobody_knows_is_skipped_a_few_times(void **state)
{
    uint8_t bytes[HELLO_ALL], record[VFMIG_RECORD_HEAD_BYTES];

    for (unsigned more = 0; more < 2; more++) {
        open_door();
        hello_of(bytes, 0, 1, NULL);
        int fd = comes(bytes, sizeof(bytes));
        for (unsigned i = 0; i < VFMIG_MAX_GREETING_SKIPS + more; i++) {
            record_of(record, VFMIG_RECORD_PROGRESS, 0, 1 + i, "", 0);
            record[4] = 0xee; /* another tag */
            record[6] = 0;    /* not required */
            uint32_t crc = vfmig_crc32c(0, record, 36);
            memcpy(record + 36, &crc, 4);
            assert_int_equal(send(fd, record, sizeof(record), MSG_NOSIGNAL), sizeof(record));
            doorway_turn(&door, 1);
            assert_null(door_let_in(door.door));
        }
        assert_int_equal(door.refused, more);
        uint8_t last[VFMIG_RECORD_HEAD_BYTES + 2];
        record_of(last, VFMIG_RECORD_IDENTITY, 0, 1 + VFMIG_MAX_GREETING_SKIPS, "me", 2);
        (void)send(fd, last, sizeof(last), MSG_NOSIGNAL);
        doorway_turn(&door, 1);
        struct arrival *arrival = door_let_in(door.door);
        assert_int_equal(!arrival, more);
        arrival_free(arrival);
        close_door();
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_do_not_keep_a_source_out),
        cmocka_unit_test(a_crowd_turns_out_its_own),
        cmocka_unit_test(who_has_proof_stays),
        cmocka_unit_test(who_is_ready_stays),
        cmocka_unit_test(a_greeting_that_trickles),
        cmocka_unit_test(a_source_that_is_slow_gets_in),
        cmocka_unit_test(what_nobody_knows_is_skipped_a_few_times),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
