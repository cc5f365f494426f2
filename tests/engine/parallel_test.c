/* SPDX-License-Identifier: BSD-3-Clause */
/* Many devices go through each step together, over few channels, and a slow one holds back nobody.
 * No clocks: a call of one device returns only when the others have come to where they must be able to
 * come meanwhile. Whoever does one thing after the other runs into the device timeout and fails. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "rig.h"

#include "base/bounds.h"
#include "engine/channel.h"
#include "stream/record.h"

#define FULL  (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN (VFMIG_FEATURE_STOP_COPY)
#define MANY  RIG_MAX_DEVICES
#define OPS   RIG_OP_COUNT

static struct rig rig;
static uint32_t features[MANY];

/* --- a latch for each kind of call --- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
/* Devices that have begun, by side, operation and state. */
static uint32_t begun[2][OPS][VFMIG_STATE_COUNT];
static bool seen[2][OPS][VFMIG_STATE_COUNT][MANY];
static uint32_t count;

static void forget(void)
{
    memset(begun, 0, sizeof(begun));
    memset(seen, 0, sizeof(seen));
}

static struct timespec patience(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    return until;
}

/* Until it is so, or so long that it never will be: then the engine has timed out. */
static void wait_for(bool (*so)(void))
{
    struct timespec until = patience();

    pthread_mutex_lock(&lock);
    while (!so() && pthread_cond_timedwait(&changed, &lock, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&lock);
}

static void migrate(void (*watch)(struct rig *, const struct rig_entry *), uint32_t device_count,
                    uint32_t channels, void (*set_up)(void))
{
    struct vfmig_progress progress;

    forget();
    count = device_count;
    rig_open(&rig, device_count, features, true);
    rig.watch = watch;
    rig.options.channels = channels;
    rig.options.device_timeout_ns = 20000000000;
    if (set_up)
        set_up();
    rig_start(&rig);
    enum vfmig_migrate_state state = rig_wait(&rig);
    vfmig_source_status(rig.source, &progress);
    if (state != VFMIG_MIGRATE_COMPLETED)
        print_error("%s: %s\n", vfmig_migrate_state_name(state), progress.error.text);
    assert_int_equal(state, VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 30000000000, NULL), 0);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* --- all of them at once --- */

/* The first call of its kind of each device waits for that of every other one. */
static void together(struct rig *r, const struct rig_entry *entry)
{
    bool change = entry->op == RIG_SET_STATE, reset = entry->op == RIG_RESET;
    bool data = entry->op == RIG_SAVE || entry->op == RIG_LOAD;
    uint32_t side = entry->side, op = entry->op, arg = reset ? 0 : entry->arg;

    if (entry->end || (!change && !reset && !data) || (reset && side == RIG_SOURCE))
        return;
    pthread_mutex_lock(&lock);
    bool *mine = &seen[side][op][arg][entry->device];
    bool first = !*mine;
    *mine = true;
    begun[side][op][arg] += first;
    pthread_cond_broadcast(&changed);
    struct timespec until = patience();
    while (first && begun[side][op][arg] < count &&
           pthread_cond_timedwait(&changed, &lock, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&lock);
}

static void every_step_is_taken_by_all_at_once(void **state)
{
    for (uint32_t i = 0; i < MANY; i++)
        features[i] = FULL;
    migrate(together, MANY, 1, NULL);
    /* Of every kind there was one call of each. */
    static const enum vfmig_state source[] = {VFMIG_STATE_PRE_COPY, VFMIG_STATE_PRE_COPY_NDMA,
                                              VFMIG_STATE_STOP_COPY, VFMIG_STATE_STOP};
    static const enum vfmig_state dest[] = {VFMIG_STATE_STOP, VFMIG_STATE_RESUMING,
                                            VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_RUNNING};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(begun[RIG_SOURCE][RIG_SET_STATE][source[i]], MANY);
        assert_int_equal(begun[RIG_DEST][RIG_SET_STATE][dest[i]], MANY);
    }
    assert_int_equal(begun[RIG_DEST][RIG_RESET][0], MANY);
    assert_int_equal(begun[RIG_SOURCE][RIG_SAVE][VFMIG_STATE_PRE_COPY], MANY);
    assert_int_equal(begun[RIG_SOURCE][RIG_SAVE][VFMIG_STATE_STOP_COPY], MANY);
    assert_int_equal(begun[RIG_DEST][RIG_LOAD][VFMIG_STATE_RESUMING], MANY);
}

/* --- one that is slow --- */

static uint32_t others_loaded, others_saved, ahead;
static bool memory_through;

static bool others_are_loaded(void)
{
    return others_loaded == count - 1 && memory_through;
}

static bool others_are_saved(void)
{
    return others_saved == count - 1;
}

/* Device 0's pieces that are saved and not loaded: as many as its window holds, and the one that waits
 * for credit. */
static uint32_t most_ahead(void)
{
    return (uint32_t)(vfmig_device_window(count) / rig.side[RIG_SOURCE].devices[0].bulk_bytes);
}

static bool window_is_full(void)
{
    return ahead >= most_ahead();
}

static void note_ahead(struct rig *r, const struct rig_entry *entry)
{
    const struct rig_device *from = &r->side[RIG_SOURCE].devices[0];
    const struct rig_device *to = &r->side[RIG_DEST].devices[0];
    uint32_t now, bulk;

    if (entry->side != RIG_SOURCE || entry->op != RIG_SAVE || !entry->end || entry->device)
        return;
    pthread_mutex_lock(&lock);
    now = from->sequence - to->sequence;
    bulk = from->bulk_pieces - from->bulk_left;
    if (bulk < now)
        now = bulk;
    if (from->at == 0 && now > ahead)
        ahead = now;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* What a device's last piece does at the destination. */
static void note_loaded(struct rig *r, const struct rig_entry *entry)
{
    pthread_mutex_lock(&lock);
    if (entry->side == RIG_DEST && entry->op == RIG_LOAD && entry->end && entry->device &&
        r->side[RIG_DEST].devices[entry->device].last_seen)
        others_loaded++;
    if (entry->side == RIG_SOURCE && entry->op == RIG_SAVE && entry->end && entry->device &&
        entry->arg == VFMIG_STATE_STOP_COPY &&
        r->side[RIG_SOURCE].devices[entry->device].at > RIG_STATE_BYTES &&
        !seen[0][RIG_SAVE][0][entry->device]) {
        seen[0][RIG_SAVE][0][entry->device] = true;
        others_saved++;
    }
    /* The last record of memory is behind the final snapshot; that of the VM's state before. */
    memory_through |= entry->side == RIG_SOURCE && entry->op == RIG_STATE_SAVE && entry->end;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void slow_load(struct rig *r, const struct rig_entry *entry)
{
    note_loaded(r, entry);
    note_ahead(r, entry);
    if (entry->side == RIG_DEST && entry->op == RIG_LOAD && !entry->end && entry->device == 0 &&
        r->side[RIG_DEST].devices[0].sequence == 3)
        wait_for(others_are_loaded);
    /* The others begin when device 0 has no credit left, and would be behind all that it sends. */
    if (entry->side == RIG_SOURCE && entry->op == RIG_SAVE && !entry->end && entry->device &&
        entry->arg == VFMIG_STATE_STOP_COPY)
        wait_for(window_is_full);
}

static void slow_save(struct rig *r, const struct rig_entry *entry)
{
    note_loaded(r, entry);
    if (entry->side == RIG_SOURCE && entry->op == RIG_SAVE && !entry->end && entry->device == 0 &&
        entry->arg == VFMIG_STATE_STOP_COPY && r->side[RIG_SOURCE].devices[0].at == 0)
        wait_for(others_are_saved);
}

/* Device 0 has far more data than all buffers on the way can hold. */
static void much_data(void)
{
    struct rig_device *dev = &rig.side[RIG_SOURCE].devices[0];

    dev->bulk_bytes = 256u << 10;
    dev->bulk_pieces = 4 * VFMIG_MAX_BACKLOG / dev->bulk_bytes;
    dev->base.info.max_data_xfer = rig.side[RIG_DEST].devices[0].base.info.max_data_xfer = 1u << 20;
}

static void with_a_slow_one(void (*watch)(struct rig *, const struct rig_entry *), uint32_t devices,
                            uint32_t channels)
{
    for (uint32_t i = 0; i < MANY; i++)
        features[i] = i % 3 == 2 ? PLAIN : FULL;
    others_loaded = others_saved = ahead = 0;
    memory_through = false;
    migrate(watch, devices, channels, much_data);
    assert_int_equal(others_saved, devices - 1);
    assert_int_equal(others_loaded, devices - 1);
}

static void a_slow_load_stops_no_channel(void **state)
{
    with_a_slow_one(slow_load, 4, 1);
    assert_int_equal(ahead, most_ahead());
    with_a_slow_one(slow_load, 16, 2);
    assert_int_equal(ahead, most_ahead());
}

static void a_slow_save_stops_no_channel(void **state)
{
    with_a_slow_one(slow_save, 4, 1);
    with_a_slow_one(slow_save, 16, 2);
}

/* --- whose turn it is to send --- */

struct sender {
    pthread_t thread;
    struct vfmig_channel *channel;
    uint32_t device, records;
};

static uint8_t much[VFMIG_MAX_DEVICE_PIECE];

static void *send_main(void *arg)
{
    struct sender *sender = arg;

    for (uint32_t i = 0; i < sender->records; i++)
        assert_int_equal(vfmig_channel_send_segment(sender->channel, sender->device, i, much,
                                                    sizeof(much), NULL), 0);
    return NULL;
}

/* The peer reads nothing until all three want to send; then their records come in the order in
 * which they were asked for, whoever holds the processor. */
static void turns_are_taken_in_order(void **state)
{
    static const uint32_t order[] = {0, 1, 2, 0};
    struct sender senders[3];
    struct vfmig_channel *there, *here;
    struct vfmig_record record;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(vfmig_channel_new(fds[0], 0, VFMIG_SIDE_SOURCE, &here, NULL), 0);
    assert_int_equal(vfmig_channel_new(fds[1], 0, VFMIG_SIDE_DEST, &there, NULL), 0);
    for (uint32_t i = 0; i < 3; i++) {
        senders[i] = (struct sender){.channel = here, .device = i, .records = i ? 1 : 2};
        assert_int_equal(pthread_create(&senders[i].thread, NULL, send_main, &senders[i]), 0);
        /* The first one is stuck in the socket, the others behind it, one by one. */
        int there_bytes = 0;
        while (vfmig_channel_waiting(here) < i || !there_bytes)
            assert_int_equal(ioctl(fds[1], FIONREAD, &there_bytes), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        bool more = true;
        while (more) {
            struct vfmig_device_piece piece;
            assert_int_equal(vfmig_channel_recv(there, &record, NULL), 0);
            assert_int_equal(vfmig_device_piece_decode(record.payload, record.length, &piece, NULL), 0);
            assert_int_equal(piece.device, order[i]);
            more = piece.more;
        }
    }
    for (uint32_t i = 0; i < 3; i++)
        pthread_join(senders[i].thread, NULL);
    vfmig_channel_free(here);
    vfmig_channel_free(there);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_step_is_taken_by_all_at_once),
        cmocka_unit_test(a_slow_load_stops_no_channel),
        cmocka_unit_test(a_slow_save_stops_no_channel),
        cmocka_unit_test(turns_are_taken_in_order),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("parallel", tests, NULL, NULL);
}
