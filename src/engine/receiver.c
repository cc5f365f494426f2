/* SPDX-License-Identifier: BSD-3-Clause */
/* One thread a channel: memory into its place, marks counted, everything else to the callback. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "engine/channel_private.h"
#include "engine/confine.h"
#include "engine/memory_mover.h"

/* How long the end of a failed migration waits for the peer to take the reason. */
#define FAREWELL_NS UINT64_C(1000000000)

struct lane {
    struct vfmig_receiver *receiver;
    struct vfmig_channel *channel;
    pthread_t thread;
    bool any_round, ended;
    uint64_t round; /* of the last mark */
    struct vfmig_rates cold; /* as it was then */
    uint64_t cold_pages;
};

struct vfmig_receiver {
    vfmig_record_fn on_record;
    void *user;
    uint32_t lane_count, thread_count;
    struct lane *lanes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct vfmig_error failed;
    bool telling; /* the peer, of it */
    bool stopping;
    struct vfmig_dirty_map doubt, warm; /* empty without memory */
    void (*on_round)(void *user, uint64_t round); /* under the lock, like the next */
    uint64_t round_told;
};

static void signal_end(struct lane *lane)
{
    pthread_mutex_lock(&lane->receiver->lock);
    lane->ended = true;
    pthread_cond_broadcast(&lane->receiver->changed);
    pthread_mutex_unlock(&lane->receiver->lock);
}

/* Channel 0 carries the reason to the peer, so it is only half closed here: closing it with
 * unread bytes would make TCP throw the reason away. */
static void fail(struct vfmig_receiver *receiver, const struct vfmig_error *error, bool tell)
{
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];

    pthread_mutex_lock(&receiver->lock);
    bool first = !receiver->failed.code && !receiver->stopping;
    if (!receiver->failed.code)
        receiver->failed = *error;
    receiver->telling |= first;
    pthread_cond_broadcast(&receiver->changed);
    pthread_mutex_unlock(&receiver->lock);
    if (!first)
        return;
    for (uint32_t i = 1; i < receiver->lane_count; i++)
        vfmig_channel_shutdown(receiver->lanes[i].channel);
    struct vfmig_channel *control = receiver->lanes[0].channel;
    if (tell && vfmig_channel_index(control) == VFMIG_RECORD_CONTROL)
        (void)vfmig_channel_send(control, VFMIG_RECORD_ERROR, out,
                                 vfmig_stream_error_encode(out, error), NULL);
    vfmig_channel_end_sending(control);
    pthread_mutex_lock(&receiver->lock);
    receiver->telling = false;
    pthread_cond_broadcast(&receiver->changed);
    pthread_mutex_unlock(&receiver->lock);
}

static bool has_failed(struct vfmig_receiver *receiver)
{
    pthread_mutex_lock(&receiver->lock);
    bool failed = receiver->failed.code || receiver->stopping;
    pthread_mutex_unlock(&receiver->lock);
    return failed;
}

/* Under the lock: the round that every lane has passed and that was not told yet, else 0. */
static uint64_t round_to_tell(struct vfmig_receiver *receiver)
{
    uint64_t round = UINT64_MAX;

    for (uint32_t i = 0; i < receiver->lane_count; i++) {
        const struct lane *lane = &receiver->lanes[i];
        uint64_t past = lane->any_round ? lane->round : 0;
        round = past < round ? past : round;
    }
    if (!receiver->on_round || round <= receiver->round_told)
        return 0;
    receiver->round_told = round;
    return round;
}

static int pass_round(struct lane *lane, const struct vfmig_record *record,
                      struct vfmig_error *reterr)
{
    struct vfmig_round round;
    int rc = vfmig_round_decode(record->payload, record->length, &round, reterr);

    if (rc < 0)
        return rc;
    pthread_mutex_lock(&lane->receiver->lock);
    if (lane->any_round && round.round <= lane->round)
        rc = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_ROUND,
                             "channel %u: round %" PRIu64 " ended after round %" PRIu64,
                             record->channel, round.round, lane->round);
    lane->any_round = true;
    lane->cold = lane->channel->cold;
    lane->cold_pages = lane->channel->cold_pages;
    lane->round = round.round;
    uint64_t told = rc == 0 ? round_to_tell(lane->receiver) : 0;
    pthread_cond_broadcast(&lane->receiver->changed);
    pthread_mutex_unlock(&lane->receiver->lock);
    if (told)
        lane->receiver->on_round(lane->receiver->user, told);
    return rc;
}

static int dispatch(struct lane *lane, const struct vfmig_record *record,
                    struct vfmig_error *reterr)
{
    switch (record->tag) {
    case VFMIG_RECORD_ROUND:
        return pass_round(lane, record, reterr);
    case VFMIG_RECORD_PING:
        return vfmig_channel_pong(lane->channel, record, reterr);
    default:
        break;
    }
    int rc = vfmig_sabotage("stray-call") ? vfmig_confine_stray(reterr) : 0;
    return rc ? rc : lane->receiver->on_record(lane->receiver->user, record, reterr);
}

static void *lane_main(void *argument)
{
    struct lane *lane = argument;
    struct vfmig_record record = {0};
    struct vfmig_error error = {0};
    int rc = lane->channel->confined ? vfmig_confine(&error) : 0;

    if (rc < 0)
        fail(lane->receiver, &error, /* tell= */ true);
    while (rc == 0 && record.tag != VFMIG_RECORD_BYE) {
        bool received = false;
        rc = vfmig_channel_recv(lane->channel, &record, &error);
        if (rc == 0 && has_failed(lane->receiver))
            break; /* nothing of a failed migration is acted upon, least of all a grant */
        if (rc == 0) {
            received = true;
            rc = dispatch(lane, &record, &error);
        }
        /* An ERROR is not answered with an ERROR. */
        if (rc < 0)
            fail(lane->receiver, &error, !received || record.tag != VFMIG_RECORD_ERROR);
    }
    /* The rest of channel 0 is read away until the peer has closed it: see fail. */
    if (has_failed(lane->receiver) && vfmig_channel_index(lane->channel) == VFMIG_RECORD_CONTROL)
        vfmig_channel_drain(lane->channel);
    signal_end(lane);
    return NULL;
}

int vfmig_receiver_new(struct vfmig_channel *const *channels, uint32_t channel_count,
                       const struct vfmig_memory *memory, vfmig_record_fn on_record, void *user,
                       struct vfmig_receiver **ret_receiver, struct vfmig_error *reterr)
{
    pthread_condattr_t attributes;
    struct vfmig_receiver *receiver = calloc(1, sizeof(*receiver));
    struct lane *lanes = calloc(VFMIG_MAX_CHANNELS, sizeof(*lanes));

    if (!receiver || !lanes || channel_count == 0 || channel_count > VFMIG_MAX_CHANNELS) {
        free(receiver);
        free(lanes);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory to receive %u channels", channel_count);
    }
    *receiver = (struct vfmig_receiver){
        .on_record = on_record, .user = user, .lane_count = channel_count, .lanes = lanes};
    int rc = memory ? vfmig_dirty_map_init(&receiver->doubt, memory, reterr) : 0;
    if (rc == 0 && memory)
        rc = vfmig_dirty_map_init(&receiver->warm, memory, reterr);
    if (rc < 0) {
        vfmig_dirty_map_done(&receiver->doubt);
        free(receiver);
        free(lanes);
        return rc;
    }
    pthread_mutex_init(&receiver->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&receiver->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    for (uint32_t i = 0; i < channel_count; i++) {
        lanes[i].receiver = receiver;
        lanes[i].channel = channels[i];
        vfmig_channel_set_memory(channels[i], memory);
        vfmig_channel_set_stripes(channels[i], channel_count);
        vfmig_channel_set_doubt(channels[i], memory ? &receiver->doubt : NULL);
        vfmig_channel_set_warm(channels[i], memory ? &receiver->warm : NULL);
    }
    for (; receiver->thread_count < channel_count; receiver->thread_count++) {
        struct lane *lane = &lanes[receiver->thread_count];
        int code = pthread_create(&lane->thread, NULL, lane_main, lane);
        if (code) {
            vfmig_receiver_free(receiver);
            return vfmig_error_set(reterr, -code, VFMIG_ORIGIN_KERNEL, 0,
                                   "no thread to receive a channel: %s", strerror(code));
        }
    }
    *ret_receiver = receiver;
    return 0;
}

/* Under the lock. */
static int timed_wait(struct vfmig_receiver *receiver, uint64_t until_ns)
{
    struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};

    if (until_ns == UINT64_MAX)
        return pthread_cond_wait(&receiver->changed, &receiver->lock);
    return pthread_cond_timedwait(&receiver->changed, &receiver->lock, &until);
}

static uint64_t later(uint64_t timeout_ns)
{
    uint64_t now_ns = vfmig_channel_now_ns();

    return timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
}

void vfmig_receiver_free(struct vfmig_receiver *receiver)
{
    if (!receiver)
        return;
    pthread_mutex_lock(&receiver->lock);
    uint64_t until_ns = later(FAREWELL_NS);
    while (receiver->failed.code && receiver->thread_count && !receiver->lanes[0].ended &&
           timed_wait(receiver, until_ns) == 0)
        ;
    receiver->stopping = true;
    pthread_mutex_unlock(&receiver->lock);
    for (uint32_t i = 0; i < receiver->thread_count; i++) {
        pthread_mutex_lock(&receiver->lock);
        bool ended = receiver->lanes[i].ended;
        pthread_mutex_unlock(&receiver->lock);
        if (!ended)
            vfmig_channel_shutdown(receiver->lanes[i].channel);
    }
    for (uint32_t i = 0; i < receiver->thread_count; i++)
        pthread_join(receiver->lanes[i].thread, NULL);
    pthread_cond_destroy(&receiver->changed);
    pthread_mutex_destroy(&receiver->lock);
    vfmig_dirty_map_done(&receiver->doubt);
    vfmig_dirty_map_done(&receiver->warm);
    free(receiver->lanes);
    free(receiver);
}

void vfmig_receiver_on_round(struct vfmig_receiver *receiver,
                             void (*on_round)(void *user, uint64_t round))
{
    pthread_mutex_lock(&receiver->lock);
    receiver->on_round = on_round;
    pthread_mutex_unlock(&receiver->lock);
}

void vfmig_receiver_cold(struct vfmig_receiver *receiver, struct vfmig_rates *ret_rates,
                         uint64_t *ret_pages)
{
    memset(ret_rates, 0, sizeof(*ret_rates));
    *ret_pages = 0;
    pthread_mutex_lock(&receiver->lock);
    for (uint32_t i = 0; i < receiver->lane_count; i++) {
        vfmig_rates_merge(ret_rates, &receiver->lanes[i].cold);
        *ret_pages += receiver->lanes[i].cold_pages;
    }
    pthread_mutex_unlock(&receiver->lock);
}

static bool all_past(const struct vfmig_receiver *receiver, uint64_t round)
{
    for (uint32_t i = 0; i < receiver->lane_count; i++)
        if (!receiver->lanes[i].any_round || receiver->lanes[i].round < round)
            return false;
    return true;
}

static bool all_ended(const struct vfmig_receiver *receiver)
{
    for (uint32_t i = 0; i < receiver->lane_count; i++)
        if (!receiver->lanes[i].ended)
            return false;
    return true;
}

static int check_doubt(const struct vfmig_receiver *receiver, struct vfmig_error *reterr)
{
    const struct vfmig_memory *memory = &receiver->doubt.memory;

    for (uint32_t i = 0; i < memory->block_count; i++) {
        uint64_t pages = memory->blocks[i].size / VFMIG_PAGE_SIZE;
        uint64_t page = vfmig_bitmap_next(receiver->doubt.bitmaps[i], pages, 0);
        if (page < pages)
            return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_MEMORY,
                                   "page %" PRIu64 " of block %u was altered on its way, or "
                                   "written on the source without being logged",
                                   page, i);
    }
    return 0;
}

int vfmig_receiver_wait_round(struct vfmig_receiver *receiver, uint64_t round, uint64_t timeout_ns,
                              struct vfmig_error *reterr)
{
    uint64_t until_ns = later(timeout_ns);
    int rc = 0;

    pthread_mutex_lock(&receiver->lock);
    while (!receiver->failed.code && !all_past(receiver, round) && rc == 0) {
        if (all_ended(receiver))
            rc = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_ROUND,
                                 "the stream ended before round %" PRIu64, round);
        else if (timed_wait(receiver, until_ns) == ETIMEDOUT)
            rc = vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                                 "round %" PRIu64 " did not arrive within the time limit", round);
    }
    /* What came after that round, if only the end of the connection, makes it no less complete. */
    if (receiver->failed.code && !all_past(receiver, round)) {
        rc = receiver->failed.code;
        if (reterr)
            *reterr = receiver->failed;
    }
    pthread_mutex_unlock(&receiver->lock);
    return rc < 0 ? rc : check_doubt(receiver, reterr);
}

int vfmig_receiver_wait_end(struct vfmig_receiver *receiver, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&receiver->lock);
    while (!receiver->failed.code && !all_ended(receiver))
        pthread_cond_wait(&receiver->changed, &receiver->lock);
    /* Whoever learns of it cuts the connections. */
    uint64_t until_ns = later(FAREWELL_NS);
    while (receiver->telling && timed_wait(receiver, until_ns) == 0)
        ;
    int rc = receiver->failed.code;
    if (rc && reterr)
        *reterr = receiver->failed;
    pthread_mutex_unlock(&receiver->lock);
    return rc;
}

int vfmig_receiver_failure(struct vfmig_receiver *receiver, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&receiver->lock);
    int rc = receiver->failed.code;
    if (rc && reterr)
        *reterr = receiver->failed;
    pthread_mutex_unlock(&receiver->lock);
    return rc;
}
