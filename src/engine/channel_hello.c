/* SPDX-License-Identifier: BSD-3-Clause */
/* The HELLO exchange: which connections are one migration. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/sabotage.h"
#include "engine/channel.h"
#include "io/sock.h"

/* Of the time that a source waits for an answer: how long one connection may take for its greeting, TLS and all,
 * and whether it says nothing or a byte now and then. */
#define HELLO_SHARE 4u

static int send_hello(struct vfmig_channel *channel, const struct vfmig_hello *hello,
                      struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_HELLO_BYTES];

    vfmig_hello_encode(out, hello);
    return vfmig_channel_send(channel, VFMIG_RECORD_HELLO, out, sizeof(out), reterr);
}

static int recv_hello(struct vfmig_channel *channel, struct vfmig_hello *ret_hello,
                      struct vfmig_error *reterr)
{
    struct vfmig_record record;
    int rc = vfmig_channel_recv(channel, &record, reterr);

    if (rc < 0)
        return rc;
    if (record.tag == VFMIG_RECORD_ERROR) {
        struct vfmig_error said = {0};
        rc = vfmig_stream_error_decode(record.payload, record.length, &said, reterr);
        return rc ? rc
                  : vfmig_error_set(reterr, -EREMOTEIO, VFMIG_ORIGIN_PEER, 0,
                                    "the other side refuses channel %u: %s", record.channel,
                                    said.text);
    }
    if (record.tag != VFMIG_RECORD_HELLO)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                               "channel %u begins with %s instead of HELLO", record.channel,
                               vfmig_record_info(record.tag)->name);
    return vfmig_hello_decode(record.payload, record.length, ret_hello, reterr);
}

static void close_all(struct vfmig_channel **channels, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        vfmig_channel_free(channels[i]);
        channels[i] = NULL;
    }
}

/* quiet_ns: how long the peer may say nothing for now. */
static int next_channel(const struct vfmig_dial *dial, uint32_t index, enum vfmig_side side,
                        uint64_t quiet_ns, struct vfmig_channel **ret_channel,
                        struct vfmig_error *reterr)
{
    int fd = dial->next_fd(dial->user, reterr);

    if (fd < 0)
        return fd;
    int rc = vfmig_channel_new(fd, index, side, ret_channel, reterr);
    if (rc == 0)
        rc = vfmig_channel_set_stall(*ret_channel, quiet_ns, reterr);
    return rc;
}

static int secure(const struct vfmig_dial *dial, struct vfmig_channel *channel, uint64_t until_ns,
                  struct vfmig_error *reterr)
{
    return dial->tls ? vfmig_channel_start_tls(channel, dial->tls, dial->peer_name, until_ns, reterr) : 0;
}

/* Says HELLO and checks the answer; the first answer brings the token. */
static int greet(struct vfmig_channel *channel, struct vfmig_hello *hello,
                 struct vfmig_error *reterr)
{
    struct vfmig_hello answer;
    int rc = send_hello(channel, hello, reterr);

    if (rc == 0)
        rc = recv_hello(channel, &answer, reterr);
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

int vfmig_channels_open(const struct vfmig_dial *dial, uint32_t count, const uint8_t migration_id[16],
                        struct vfmig_channel **ret_channels, struct vfmig_error *reterr)
{
    struct vfmig_hello hello = {
        .version_min = VFMIG_STREAM_VERSION,
        .version_max = VFMIG_STREAM_VERSION,
        .channel_count = count,
        .page_size = VFMIG_PAGE_SIZE,
    };
    int rc = 0;

    if (count == 0 || count > VFMIG_MAX_CHANNELS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u channels: a migration has 1 to %u", count, VFMIG_MAX_CHANNELS);
    memcpy(hello.migration_id, migration_id, 16);
    memset(ret_channels, 0, count * sizeof(*ret_channels));
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        hello.channel = i;
        rc = next_channel(dial, i, VFMIG_SIDE_SOURCE, dial->stall_ns, &ret_channels[i], reterr);
        if (rc == 0)
            rc = secure(dial, ret_channels[i], vfmig_deadline_ns(dial->stall_ns), reterr);
        if (rc == 0)
            rc = greet(ret_channels[i], &hello, reterr);
    }
    if (rc < 0)
        close_all(ret_channels, count);
    return rc;
}

/* The first HELLO decides id and count; the token is made here. */
static int accept_first(struct vfmig_channel *channel, struct vfmig_hello *ret_hello,
                        struct vfmig_error *reterr)
{
    int rc = recv_hello(channel, ret_hello, reterr);

    if (rc < 0)
        return rc;
    if (ret_hello->channel != 0)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_HELLO,
                               "the first connection is channel %u instead of 0",
                               ret_hello->channel);
    if (getrandom(ret_hello->token, sizeof(ret_hello->token), 0) != sizeof(ret_hello->token))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0, "no random token: %s",
                               strerror(errno));
    return send_hello(channel, ret_hello, reterr);
}

/* Not memcmp: how long the comparison takes must not tell how much of a guess was right. */
static bool same_token(const uint8_t a[16], const uint8_t b[16])
{
    uint8_t differ = 0;

    for (size_t i = 0; i < 16; i++)
        differ |= (uint8_t)(a[i] ^ b[i]);
    return !differ || vfmig_sabotage("token-unchecked");
}

/* The sentence goes to whoever knocked, too: it may be an operator's mistake. */
static int refuse(struct vfmig_channel *channel, const char *why, struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];
    struct vfmig_error error = {0};
    int rc = vfmig_error_set(&error, -EACCES, VFMIG_ORIGIN_PEER, VFMIG_RECORD_HELLO,
                             "a connection does not belong to this migration: %s", why);

    (void)vfmig_channel_send(channel, VFMIG_RECORD_ERROR, out,
                             vfmig_stream_error_encode(out, &error), NULL);
    if (reterr)
        *reterr = error;
    return rc;
}

/* 0 when the connection is the channel that is due. */
static int accept_further(struct vfmig_channel *channel, struct vfmig_hello *hello,
                          struct vfmig_error *reterr)
{
    struct vfmig_hello got;
    int rc = recv_hello(channel, &got, reterr);

    if (rc < 0)
        return rc;
    if (memcmp(got.migration_id, hello->migration_id, 16) != 0)
        return refuse(channel, "it is of another one", reterr);
    if (!same_token(got.token, hello->token))
        return refuse(channel, "it does not know the token", reterr);
    if (got.channel != hello->channel || got.channel_count != hello->channel_count)
        return refuse(channel, "another channel is due", reterr);
    return send_hello(channel, hello, reterr);
}

/* A connection that says nothing must not cost the source its patience, which has stall_ns. */
static int accept_one(const struct vfmig_dial *dial, struct vfmig_channel *channel, bool first,
                      struct vfmig_hello *hello, struct vfmig_error *reterr)
{
    uint64_t until_ns = vfmig_deadline_ns(dial->stall_ns / HELLO_SHARE);

    vfmig_channel_set_until(channel, vfmig_sabotage("greeting-unbounded") ? 0 : until_ns);
    int rc = secure(dial, channel, until_ns, reterr);
    if (rc == 0)
        rc = first ? accept_first(channel, hello, reterr) : accept_further(channel, hello, reterr);
    vfmig_channel_set_until(channel, 0);
    if (rc == 0)
        rc = vfmig_channel_set_stall(channel, dial->stall_ns, reterr);
    return rc;
}

int vfmig_channels_accept(const struct vfmig_dial *dial, uint8_t ret_migration_id[16],
                          struct vfmig_channel **ret_channels, uint32_t *ret_count,
                          struct vfmig_error *reterr)
{
    struct vfmig_hello hello = {.channel_count = 1};
    uint32_t done = 0, strangers = 0;
    int rc = 0;

    memset(ret_channels, 0, VFMIG_MAX_CHANNELS * sizeof(*ret_channels));
    while (rc == 0 && done < hello.channel_count) {
        struct vfmig_channel *channel = NULL;
        hello.channel = done;
        rc = next_channel(dial, done, VFMIG_SIDE_DEST, dial->stall_ns / HELLO_SHARE, &channel, reterr);
        if (rc < 0) {
            vfmig_channel_free(channel);
            break;
        }
        rc = accept_one(dial, channel, /* first= */ done == 0, &hello, reterr);
        if (rc == 0) {
            ret_channels[done++] = channel;
        } else {
            vfmig_channel_free(channel);
            if (done && ++strangers < VFMIG_MAX_CHANNELS)
                rc = 0;
        }
    }
    if (rc < 0) {
        close_all(ret_channels, done);
        return rc;
    }
    memcpy(ret_migration_id, hello.migration_id, 16);
    *ret_count = done;
    return 0;
}
