/* SPDX-License-Identifier: BSD-3-Clause */
/* What a destination holds in memory stays bounded, by a source that promises a hundred times as
 * much as fits, and by devices that load slowly. Counted is what is allocated: the linker puts the
 * calls through here. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#ifdef VFMIG_HAVE_ZSTD
#include <zstd.h>
#endif

#include "base/crc32c.h"
#include "base/le.h"
#include "engine/channel_private.h"
#include "engine/destination.h"
#include "doorway.h"
#include "io/sock.h"
#include "io/tls.h"
#include "rig.h"

#define DEVICES  4u
#define PIECE    VFMIG_MAX_DEVICE_PIECE
#define TIMES    100u
#define SMALL    (1u << 20) /* what a refusal may take, and who is refused */
#define STALL_NS UINT64_C(60000000000)

static const uint32_t features[DEVICES] = {VFMIG_FEATURE_STOP_COPY, VFMIG_FEATURE_STOP_COPY,
                                           VFMIG_FEATURE_STOP_COPY, VFMIG_FEATURE_STOP_COPY};
static struct rig rig;

/* --- what is held --- */

static _Atomic int64_t held, peak;

static void *count(void *at)
{
    int64_t now =
        atomic_fetch_add(&held, (int64_t)malloc_usable_size(at)) + (int64_t)malloc_usable_size(at);
    int64_t most = atomic_load(&peak);

    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now))
        ;
    return at;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
    return count(__real_malloc(size));
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    return count(__real_calloc(n, size));
}

void __real_free(void *at);
void __wrap_free(void *at);
void __wrap_free(void *at)
{
    atomic_fetch_sub(&held, (int64_t)malloc_usable_size(at));
    __real_free(at);
}

/* The old and the new one are there at once. */
void *__real_realloc(void *at, size_t size);
void *__wrap_realloc(void *at, size_t size);
void *__wrap_realloc(void *at, size_t size)
{
    int64_t before = (int64_t)malloc_usable_size(at);
    void *fresh = count(__real_realloc(at, size));

    if (fresh)
        atomic_fetch_sub(&held, before);
    return fresh;
}

static int64_t baseline;

static void begin_to_count(void)
{
    baseline = atomic_load(&held);
    atomic_store(&peak, baseline);
}

static void assert_held_at_most(uint64_t bytes, const char *by)
{
    int64_t most = atomic_load(&peak) - baseline;

    if (most > (int64_t)bytes)
        fail_msg("%s: %lld bytes were held, at most %llu may be", by, (long long)most,
                 (unsigned long long)bytes);
}

/* --- devices that load when they are let --- */

static struct vfmig_target_ops slow_ops;
static atomic_bool may_load;
static atomic_uint loads;

static int slow_load(struct vfmig_target *t, const void *data, size_t size,
                     struct vfmig_error *reterr)
{
    while (!atomic_load(&may_load))
        sched_yield();
    atomic_fetch_add(&loads, 1);
    return 0;
}

/* --- a source of bad faith --- */

static struct vfmig_channel *ours[2];

static int next_fd(void *user, struct vfmig_error *reterr)
{
    int fd, ret = vfmig_sock_connect(rig.uri, VFMIG_NEVER, &fd, reterr);

    return ret ? ret : fd;
}

/* The destination has accepted; it, its devices and two channels to it are there. */
static void open_door(void)
{
    const struct vfmig_dial dial = {.next_fd = next_fd, .stall_ns = STALL_NS};
    struct vfmig_buffer text = {.limit = VFMIG_MAX_IDENTITY};
    struct vfmig_verdict verdict;
    struct vfmig_record record;
    struct vfmig_error error = {0};
    const uint8_t id[16] = {42};

    rig_open(&rig, DEVICES, features, /* tcp= */ false);
    rig.options.stall_ns = STALL_NS;
    slow_ops = *rig.side[RIG_DEST].targets[0]->ops;
    slow_ops.load = slow_load;
    for (uint32_t i = 0; i < DEVICES; i++)
        rig.side[RIG_DEST].targets[i]->ops = &slow_ops;
    atomic_store(&may_load, true);
    atomic_store(&loads, 0);
    assert_int_equal(
        vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), 0);
    assert_int_equal(vfmig_channels_open(&dial, 2, id, ours, &error), 0);
    assert_int_equal(engine_identity(&rig.side[RIG_DEST].vm, &text, &error), 0);
    assert_int_equal(
        vfmig_channel_send(ours[0], VFMIG_RECORD_IDENTITY, text.data, text.size, &error), 0);
    vfmig_buffer_free(&text);
    assert_int_equal(vfmig_channel_recv(ours[0], &record, &error), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_VERDICT);
    assert_int_equal(vfmig_verdict_decode(record.payload, record.length, &verdict, &error), 0);
    if (!verdict.accept)
        fail_msg("%s", verdict.text);
}

/* What devices wait for before they load. */
static void send_external(void)
{
    struct vfmig_vm *vm = &rig.side[RIG_SOURCE].vm;
    struct vfmig_buffer state = {.limit = VFMIG_MAX_VMSTATE};
    const uint8_t first[VMSTATE_HEAD_BYTES] = {VMSTATE_EXTERNAL_FIRST};

    assert_int_equal(vfmig_buffer_append(&state, first, sizeof(first)), 0);
    assert_int_equal(vm->ops->external_save(vm->opaque, &state, NULL), 0);
    assert_int_equal(
        vfmig_channel_send(ours[0], VFMIG_RECORD_VMSTATE, state.data, state.size, NULL), 0);
    vfmig_buffer_free(&state);
}

static void close_door(void)
{
    vfmig_channel_free(ours[0]);
    vfmig_channel_free(ours[1]);
    rig_close(&rig);
}

/* Waits for the ERROR: its sentence. */
static const char *reason(void)
{
    static struct vfmig_error said, error;
    struct vfmig_record record;

    do {
        if (vfmig_channel_recv(ours[0], &record, &error))
            return error.text;
    } while (record.tag != VFMIG_RECORD_ERROR);
    assert_int_equal(vfmig_stream_error_decode(record.payload, record.length, &said, &error), 0);
    return said.text;
}

static void send_bytes(unsigned channel, const void *data, size_t size)
{
    struct iovec iov = {(void *)data, size};

    (void)vfmig_sock_send(vfmig_channel_fd(ours[channel]), &iov, 1, NULL, VFMIG_NEVER, NULL, NULL);
}

/* A record with a right head and sequence that says it has as much. */
static void promise(unsigned channel, enum vfmig_record_tag tag, uint32_t length, const void *data,
                    size_t size)
{
    uint8_t head[VFMIG_RECORD_HEAD_BYTES];

    vfmig_record_head_encode(head, tag, channel, ours[channel]->send_sequence++, length,
                             vfmig_crc32c(0, data, size));
    send_bytes(channel, head, sizeof(head));
    send_bytes(channel, data, size);
}

static uint8_t zeroes[PIECE];

static void longer_records(void)
{
    promise(0, VFMIG_RECORD_VMSTATE, TIMES * VFMIG_MAX_VMSTATE, zeroes, 64);
    vfmig_channel_end_sending(ours[0]);
}

static void longer_pages(void)
{
    promise(1, VFMIG_RECORD_MEMORY, TIMES * VFMIG_MAX_MEMORY_RECORD, zeroes, 64);
    vfmig_channel_end_sending(ours[1]);
}

static void more_runs(void)
{
    uint8_t prefix[VFMIG_RUNS_PREFIX_BYTES];

    vfmig_le32_put(prefix, TIMES * VFMIG_MAX_MEMORY_RUNS);
    vfmig_le32_put(prefix + 4, TIMES * VFMIG_MAX_MEMORY_RUNS);
    promise(0, VFMIG_RECORD_MEMORY, VFMIG_MAX_MEMORY_RECORD, prefix, sizeof(prefix));
}

static void more_memory(void)
{
    const struct vfmig_page_run run = {
        .first_page = TIMES * rig.side[RIG_DEST].blocks[0].size / VFMIG_PAGE_SIZE, .page_count = 1};
    uint8_t table[VFMIG_MAX_RUNS_BYTES];
    size_t size = vfmig_runs_encode(table, &run, 1, NULL);

    promise(0, VFMIG_RECORD_ZERO, (uint32_t)size, table, size);
}

static void more_devices(void)
{
    (void)vfmig_channel_send_segment(ours[0], TIMES * DEVICES, 0, zeroes, 64, NULL);
}

static void state_again_and_again(void)
{
    uint8_t head[16] = {1};

    for (unsigned i = 0; i < TIMES; i++)
        if (vfmig_channel_send(ours[0], VFMIG_RECORD_VMSTATE, head, sizeof(head), NULL))
            return;
}

/* Of each device a hundred times the segment that is kept until it is whole, and no segment ends.
 */
static void segments_without_end(void)
{
    for (unsigned i = 0; i < TIMES * (VFMIG_MAX_DEVICE_SEGMENT / PIECE); i++)
        for (uint32_t device = 0; device < DEVICES; device++) {
            uint8_t head[VFMIG_DEVICE_PIECE_BYTES];
            const struct vfmig_device_piece piece = {.device = device, .more = true};
            struct iovec parts[2] = {{head, sizeof(head)}, {zeroes, PIECE - sizeof(head)}};
            vfmig_device_piece_encode(head, &piece);
            if (vfmig_channel_sendv(ours[device % 2], VFMIG_RECORD_DEVDATA, parts, 2, NULL))
                return;
        }
}

#ifdef VFMIG_HAVE_ZSTD
/* A frame that says truly how much it is, and a record that says as much. */
static void a_bomb_that_is_told(void)
{
    static uint8_t frame[1u << 20];
    const uint32_t claim = TIMES * VFMIG_MAX_MEMORY_RECORD;
    uint8_t *much = calloc(1, 1u << 20);
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_outBuffer out = {frame, sizeof(frame), 8};

    assert_non_null(much);
    vfmig_le32_put(frame, VFMIG_RECORD_MEMORY);
    vfmig_le32_put(frame + 4, claim);
    ZSTD_CCtx_setPledgedSrcSize(context, claim);
    for (size_t left = claim; left;) {
        ZSTD_inBuffer in = {much, left < 1u << 20 ? left : 1u << 20, 0};
        left -= in.size;
        while (ZSTD_compressStream2(context, &out, &in, left ? ZSTD_e_continue : ZSTD_e_end) ||
               in.pos < in.size)
            assert_true(out.pos < out.size);
    }
    ZSTD_freeCCtx(context);
    free(much);
    begin_to_count();
    promise(0, VFMIG_RECORD_PACKED, (uint32_t)out.pos, frame, out.pos);
}

/* The same in a record that says what may be: so does its frame, falsely. */
static void a_bomb_that_is_not(void)
{
    static uint8_t frame[1u << 20];
    const uint32_t claim = VFMIG_MAX_MEMORY_RECORD;
    size_t size;

    vfmig_le32_put(frame, VFMIG_RECORD_MEMORY);
    vfmig_le32_put(frame + 4, claim);
    uint8_t *much = calloc(1, 8 * (size_t)claim);
    assert_non_null(much);
    size = ZSTD_compress(frame + 8, sizeof(frame) - 8, much, 8 * (size_t)claim, 1);
    assert_false(ZSTD_isError(size));
    free(much);
    /* Magic, a descriptor whose upper bits say that the size has four bytes, perhaps the window's.
     */
    assert_int_equal(frame[12] >> 6, 2);
    vfmig_le32_put(frame + 13 + !(frame[12] & 0x20), claim);
    begin_to_count();
    promise(0, VFMIG_RECORD_PACKED, (uint32_t)size + 8, frame, size + 8);
}
#endif

struct attack {
    void (*run)(void);
    const char *why;
    uint64_t most; /* that may be held */
};

static void refuse(const struct attack *attack)
{
    open_door();
    begin_to_count();
    attack->run();
    const char *why = reason();
    assert_held_at_most(attack->most, attack->why);
    if (!strstr(why, attack->why))
        fail_msg("'%s' instead of '%s'", why, attack->why);
    close_door();
}

static void promises_are_refused_before_anything_is_held(void **state)
{
    static const struct attack attacks[] = {
        {longer_records, "it must have", SMALL},
        {longer_pages, "it must have", SMALL},
        {more_runs, "announces 51200 runs", SMALL},
        {more_memory, "outside", SMALL},
        {more_devices, "fields that contradict each other", SMALL},
        {state_again_and_again, "came twice", SMALL},
    };

    for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++)
        refuse(&attacks[i]);
}

static void segments_that_do_not_end(void **state)
{
    const struct attack attack = {segments_without_end,
                                  "unfinished segments of all devices are larger than",
                                  DESTINATION_HOLDS(2)};

    refuse(&attack);
}

static void bombs_do_not_go_off(void **state)
{
#ifdef VFMIG_HAVE_ZSTD
    static const struct attack attacks[] = {
        {a_bomb_that_is_told, "PACKED says that its MEMORY has", 2 * SMALL},
        {a_bomb_that_is_not, "compressed data cannot be unpacked",
         VFMIG_MAX_MEMORY_RECORD + 2 * SMALL},
    };

    for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++)
        refuse(&attacks[i]);
#else
    skip();
#endif
}

/* --- slow loaders --- */

#define FLOOD (4u * VFMIG_MAX_BACKLOG / PIECE) /* segments, which obey no CREDIT */

static atomic_bool all_sent;

static void *flood_main(void *arg)
{
    for (uint32_t i = 0; i < FLOOD; i++)
        if (vfmig_channel_send_segment(ours[i % 2], i % DEVICES, i / DEVICES, zeroes,
                                       PIECE - VFMIG_DEVICE_PIECE_BYTES, NULL))
            break;
    atomic_store(&all_sent, true);
    return NULL;
}

/* Both channels wait for room. */
static bool is_full(struct engine *e)
{
    pthread_mutex_lock(&e->inbox_lock);
    bool full = e->stopped_channels == 2;
    assert_in_range(e->queued_bytes, 0, VFMIG_MAX_BACKLOG + 2 * (PIECE + SMALL));
    pthread_mutex_unlock(&e->inbox_lock);
    return full;
}

static void devices_that_load_slowly(void **state)
{
    struct vfmig_error error = {0};
    pthread_t sender;

    open_door();
    atomic_store(&may_load, false);
    atomic_store(&all_sent, false);
    send_external();
    begin_to_count();
    assert_int_equal(pthread_create(&sender, NULL, flood_main, NULL), 0);
    while (!is_full(&rig.destination->e) && !atomic_load(&all_sent))
        sched_yield();
    assert_int_equal(atomic_load(&loads), 0);
    atomic_store(&may_load, true);
    pthread_join(sender, NULL);
    while (atomic_load(&loads) < FLOOD &&
           !vfmig_receiver_failure(rig.destination->e.receiver, &error))
        sched_yield();
    if (error.code)
        fail_msg("%s", error.text);
    /* In each channel one more is in the channel's buffer, and one already out of it. */
    assert_held_at_most(VFMIG_MAX_BACKLOG + 2 * 3 * (uint64_t)PIECE + SMALL, "slow devices");
    close_door();
}

/* Who fills all windows and keeps back what devices wait for holds the destination up for the stall
 * limit. */
static void data_that_cannot_be_loaded(void **state)
{
    pthread_t sender;

    open_door();
    rig.destination->e.options.stall_ns =
        1; /* over as soon as it begins; what came before had time */
    begin_to_count();
    assert_int_equal(pthread_create(&sender, NULL, flood_main, NULL), 0);
    const char *why = reason();
    pthread_join(sender, NULL);
    assert_non_null(strstr(why, "the state that comes first does not come"));
    assert_int_equal(atomic_load(&loads), 0);
    assert_held_at_most(VFMIG_MAX_BACKLOG + 2 * 3 * (uint64_t)PIECE + SMALL, "data too early");
    close_door();
}

/* --- strangers at the door --- */

/* As much as a place there can have it hold: half an identity in plain text, half a handshake under TLS with a
 * certificate's worth of bytes. */
static void the_door_is_full(void **state)
{
    char path[] = "/tmp/vfmig-key-XXXXXX";
    int key = mkstemp(path);
    struct vfmig_hello hello = {.version_min = VFMIG_STREAM_VERSION,
                                .version_max = VFMIG_STREAM_VERSION,
                                .channel_count = 1,
                                .page_size = VFMIG_PAGE_SIZE};
    uint8_t said[2 * VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES + 1], *payload = said + VFMIG_RECORD_HEAD_BYTES;
    const uint8_t tls[] = {0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3};

    assert_true(key >= 0 && dprintf(key, "move:%032x\n", 7) > 0);
    close(key);
    vfmig_hello_encode(payload, &hello);
    vfmig_record_head_encode(said, VFMIG_RECORD_HELLO, 0, 0, VFMIG_HELLO_BYTES,
                             vfmig_crc32c(0, payload, VFMIG_HELLO_BYTES));
    vfmig_record_head_encode(payload + VFMIG_HELLO_BYTES, VFMIG_RECORD_IDENTITY, 0, 1, VFMIG_MAX_IDENTITY, 0);
    for (int secure = 0; secure < 2; secure++) {
        struct vfmig_tls_creds *creds = NULL;
        int fds[2 * VFMIG_MAX_GREETINGS];
        struct doorway door;
        if (secure && vfmig_tls_creds_load(NULL, path, /* server= */ true, &creds, NULL))
            break; /* a build without TLS */
        doorway_open(&door, STALL_NS, creds);
        begin_to_count();
        for (unsigned i = 0; i < 2 * VFMIG_MAX_GREETINGS; i++) {
            fds[i] = doorway_knock(&door);
            assert_true(send(fds[i], secure ? tls : said, secure ? sizeof(tls) : sizeof(said), MSG_NOSIGNAL) > 0);
            doorway_turn(&door, 1);
        }
        assert_int_equal(door_count(door.door), VFMIG_MAX_GREETINGS);
        assert_true(atomic_load(&held) - baseline > (int64_t)VFMIG_MAX_GREETINGS * VFMIG_MAX_IDENTITY);
        assert_held_at_most(VFMIG_MAX_GREETINGS * VFMIG_MAX_GREETING_BYTES, "strangers at the door");
        for (unsigned i = 0; i < 2 * VFMIG_MAX_GREETINGS; i++)
            close(fds[i]);
        doorway_close(&door);
        vfmig_tls_creds_free(creds);
    }
    unlink(path);
}

/* What is no greeting is refused by its head. */
static void more_than_a_greeting_is_not_held(void **state)
{
    uint8_t head[VFMIG_RECORD_HEAD_BYTES];
    struct doorway door;

    doorway_open(&door, STALL_NS, /* tls= */ NULL);
    begin_to_count();
    int fd = doorway_knock(&door);
    vfmig_record_head_encode(head, VFMIG_RECORD_IDENTITY, 0, 0, VFMIG_MAX_IDENTITY, 0);
    assert_int_equal(send(fd, head, sizeof(head), MSG_NOSIGNAL), sizeof(head));
    doorway_turn(&door, 1);
    assert_int_equal(door.why.code, -EMSGSIZE);
    assert_held_at_most(VFMIG_MAX_IDENTITY / 2, "an identity in place of HELLO");
    close(fd);
    doorway_close(&door);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(promises_are_refused_before_anything_is_held),
        cmocka_unit_test(segments_that_do_not_end),
        cmocka_unit_test(bombs_do_not_go_off),
        cmocka_unit_test(devices_that_load_slowly),
        cmocka_unit_test(data_that_cannot_be_loaded),
        cmocka_unit_test(the_door_is_full),
        cmocka_unit_test(more_than_a_greeting_is_not_held),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
