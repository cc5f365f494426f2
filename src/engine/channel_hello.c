/* SPDX-License-Identifier: BSD-3-Clause */
/* The HELLO exchange: which connections are one migration. The destination's half is door.c. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/sabotage.h"
#include "engine/channel.h"
#include "io/sock.h"

int vfmig_hello_send(struct vfmig_channel *channel, const struct vfmig_hello *hello,
                     struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_HELLO_BYTES];

    vfmig_hello_encode(out, hello);
    return vfmig_channel_send(channel, VFMIG_RECORD_HELLO, out, sizeof(out), reterr);
}

int vfmig_hello_take(const struct vfmig_record *record, struct vfmig_hello *ret_hello,
                     struct vfmig_error *reterr)
{
    if (record->tag == VFMIG_RECORD_ERROR) {
        struct vfmig_error said = {0};
        int rc = vfmig_stream_error_decode(record->payload, record->length, &said, reterr);
        return rc ? rc
                  : vfmig_error_set(reterr, said.code == -EAGAIN ? -EAGAIN : -EREMOTEIO, VFMIG_ORIGIN_PEER, 0,
                                    "the other side refuses channel %u: %s", record->channel,
                                    said.text);
    }
    if (record->tag != VFMIG_RECORD_HELLO)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record->tag,
                               "channel %u begins with %s instead of HELLO", record->channel,
                               vfmig_record_info(record->tag)->name);
    return vfmig_hello_decode(record->payload, record->length, ret_hello, reterr);
}

static void close_all(struct vfmig_channel **channels, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        vfmig_channel_free(channels[i]);
        channels[i] = NULL;
    }
}

static int next_channel(const struct vfmig_dial *dial, uint32_t index, struct vfmig_channel **ret_channel,
                        struct vfmig_error *reterr)
{
    int fd = dial->next_fd(dial->user, reterr);

    if (fd < 0)
        return fd;
    int rc = vfmig_channel_new(fd, index, VFMIG_SIDE_SOURCE, ret_channel, reterr);
    if (rc == 0)
        rc = vfmig_channel_set_stall(*ret_channel, dial->stall_ns, reterr);
    return rc;
}

static int secure(const struct vfmig_dial *dial, struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    return dial->tls ? vfmig_channel_start_tls(channel, dial->tls, dial->peer_name,
                                               vfmig_deadline_ns(dial->stall_ns), reterr)
                     : 0;
}

/* Says HELLO and checks the answer; the first answer brings the token. */
static int greet(struct vfmig_channel *channel, struct vfmig_hello *hello,
                 struct vfmig_error *reterr)
{
    struct vfmig_hello answer;
    struct vfmig_record record;
    int rc = vfmig_hello_send(channel, hello, reterr);

    if (rc == 0)
        rc = vfmig_channel_recv(channel, &record, reterr);
    if (rc == 0)
        rc = vfmig_hello_take(&record, &answer, reterr);
    if (rc < 0)
        return rc;
    bool same = memcmp(answer.migration_id, hello->migration_id, 16) == 0 &&
                answer.channel == hello->channel && answer.channel_count == hello->channel_count;
    if (!same || (hello->channel && memcmp(answer.token, hello->token, 16) != 0))
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_HELLO,
                               "the answer on channel %u belongs to another migration",
                               hello->channel);
    memcpy(hello->token, answer.token, 16);
    return 0;
}

/* ret_reached: what failed was not to get a connection. */
static int open_all(const struct vfmig_dial *dial, struct vfmig_hello *hello, struct vfmig_channel **ret_channels,
                    bool *ret_reached, struct vfmig_error *reterr)
{
    int rc = 0;

    memset(ret_channels, 0, hello->channel_count * sizeof(*ret_channels));
    memset(hello->token, 0, sizeof(hello->token));
    for (uint32_t i = 0; rc == 0 && i < hello->channel_count; i++) {
        hello->channel = i;
        rc = next_channel(dial, i, &ret_channels[i], reterr);
        *ret_reached = rc == 0;
        if (rc == 0)
            rc = secure(dial, ret_channels[i], reterr);
        if (rc == 0)
            rc = greet(ret_channels[i], hello, reterr);
    }
    if (rc < 0)
        close_all(ret_channels, hello->channel_count);
    return rc;
}

/* It may have had to make room at the destination's door before it was answered (door.c): it comes again, at once. */
static bool turned_out(const struct vfmig_error *error)
{
    return error->origin == VFMIG_ORIGIN_PEER && (error->code == -ECONNRESET || error->code == -EAGAIN) &&
           !vfmig_sabotage("turned-out-once");
}

int vfmig_channels_open(const struct vfmig_dial *dial, uint32_t count, const uint8_t migration_id[16],
                        struct vfmig_channel **ret_channels, struct vfmig_error *reterr)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    struct vfmig_hello hello = {
        .version_min = VFMIG_STREAM_VERSION,
        .version_max = VFMIG_STREAM_VERSION,
        .channel_count = count,
        .page_size = VFMIG_PAGE_SIZE,
    };
    struct vfmig_error why = {0};
    uint64_t until_ns = vfmig_deadline_ns(dial->stall_ns);

    if (count == 0 || count > VFMIG_MAX_CHANNELS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u channels: a migration has 1 to %u", count, VFMIG_MAX_CHANNELS);
    memcpy(hello.migration_id, migration_id, 16);
    for (unsigned tries = 1;; tries++) {
        struct vfmig_error error = {0};
        bool reached = false;
        if (open_all(dial, &hello, ret_channels, &reached, &error) == 0)
            return 0;
        if (tries == 1 || reached) /* a destination that is gone since has said why before */
            why = error;
        if (!reached || !turned_out(&error) || tries == VFMIG_MAX_GREETING_TRIES || vfmig_now_ns() >= until_ns)
            break;
        nanosleep(&moment, NULL);
    }
    if (reterr)
        *reterr = why;
    return why.code;
}
