/* SPDX-License-Identifier: BSD-3-Clause */
/* From an address to a link: connections, identity and verdict, clocks; and again after a loss. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "engine/source.h"
#include "io/sock.h"

#define PINGS        8u
#define AGAIN_NS     UINT64_C(500000000) /* one attempt to reach a lost peer */

static int check_cancel(struct vfmig_source *source, struct vfmig_error *reterr)
{
    if (!atomic_load(&source->cancel))
        return 0;
    return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the migration was cancelled");
}

/* Names may lead elsewhere than when they were looked at. */
static int take(struct vfmig_source *source, int fd, struct vfmig_error *reterr)
{
    int ret = engine_secure_peer(&source->e.options.security, source->e.uri, fd, reterr);

    if (ret)
        close(fd);
    return ret ? ret : fd;
}

static struct vfmig_dial dial_of(struct vfmig_source *source, vfmig_next_fd next)
{
    struct engine *e = &source->e;

    return (struct vfmig_dial){.next_fd = next,
                               .user = source,
                               .stall_ns = e->options.stall_ns,
                               .tls = engine_secure_uri(e->uri) ? e->tls : NULL,
                               .peer_name = e->tls_name};
}

static int next_fd(void *user, struct vfmig_error *reterr)
{
    struct vfmig_source *source = user;
    int fd = -1;
    int ret = check_cancel(source, reterr);

    if (ret == 0)
        ret = vfmig_sock_connect(source->e.uri, vfmig_deadline_ns(source->e.options.stall_ns), &fd,
                                 reterr);
    return ret ? ret : take(source, fd, reterr);
}

static int next_fd_again(void *user, struct vfmig_error *reterr)
{
    struct vfmig_source *source = user;
    int fd = -1;
    int ret = vfmig_sock_connect(source->e.uri, vfmig_deadline_ns(AGAIN_NS), &fd, reterr);

    return ret ? ret : take(source, fd, reterr);
}

/* Both sides say who they are; the destination judges, before any memory moves. */
static int agree(struct engine *e, struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    struct vfmig_buffer text = {.limit = VFMIG_MAX_IDENTITY};
    struct vfmig_verdict verdict;
    struct vfmig_record record;
    int ret = engine_identity(&e->vm, &text, reterr);

    if (ret == 0)
        ret = engine_trace_wish(e, &text, reterr);
    if (ret == 0)
        ret = engine_identity_needs(&e->options, &text, reterr);
    if (ret == 0)
        ret = vfmig_channel_send(channel, VFMIG_RECORD_IDENTITY, text.data, text.size, reterr);
    vfmig_buffer_free(&text);
    if (ret == 0)
        ret = vfmig_channel_recv(channel, &record, reterr);
    if (ret)
        return ret;
    if (record.tag == VFMIG_RECORD_ERROR) {
        ret = engine_common_record(e, &record, reterr);
        return ret < 0 ? ret : -EPROTO;
    }
    if (record.tag != VFMIG_RECORD_VERDICT)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                               "the destination answered an identity with %s",
                               vfmig_record_info(record.tag)->name);
    ret = vfmig_verdict_decode(record.payload, record.length, &verdict, reterr);
    if (ret == 0 && !verdict.accept)
        ret = vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_PEER, 0, "the destination refuses: %s",
                              verdict.text);
    return ret;
}

static int measure_clock(struct engine *e, struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint64_t i = 0; ret == 0 && i < PINGS; i++)
        ret = vfmig_channel_ping(channel, i, &e->clock, reterr);
    pthread_mutex_lock(&e->status_lock);
    e->progress.clock_offset_ns = e->clock.offset_ns;
    e->progress.clock_error_ns = e->clock.error_ns;
    e->progress.rtt_ns = e->clock.rtt_ns;
    pthread_mutex_unlock(&e->status_lock);
    if (ret == 0)
        engine_trace(e, CLOCK, VFMIG_I(e->clock.offset_ns), VFMIG_U(e->clock.error_ns),
                     VFMIG_U(e->clock.rtt_ns));
    return ret;
}

static int on_record(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    int ret;

    if (record->tag == VFMIG_RECORD_CREDIT)
        return engine_credit_record(user, record, reterr);
    ret = engine_common_record(user, record, reterr);

    return ret <= 0 ? ret
                    : vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record->tag,
                                      "the destination sent %s", vfmig_record_info(record->tag)->name);
}

int source_connect(struct vfmig_source *source, struct vfmig_error *reterr)
{
    struct engine *e = &source->e;
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    uint32_t count = e->options.channels;

    if (engine_uri_is_file(e->uri, NULL))
        return engine_file_create(e, reterr);
    const struct vfmig_dial dial = dial_of(source, next_fd);
    /* Here, because a name may take its time to be looked up. */
    int ret = engine_secure_check(&e->options.security, e->uri, reterr);
    if (ret)
        return ret;
    ret = vfmig_channels_open(&dial, count, e->options.migration_id, channels, reterr);
    if (ret)
        return ret;
    /* From here on a cancel can cut them. */
    pthread_mutex_lock(&e->link_lock);
    memcpy(e->channels, channels, count * sizeof(*channels));
    e->channel_count = count;
    pthread_mutex_unlock(&e->link_lock);
    e->window = vfmig_device_window(e->vm.device_count);
    ret = check_cancel(source, reterr);
    if (ret == 0)
        ret = agree(e, channels[0], reterr);
    if (ret == 0)
        ret = measure_clock(e, channels[0], reterr);
    if (ret == 0)
        ret = engine_local_send(e, channels[0], reterr);
    if (ret == 0)
        ret = engine_pack(e, reterr);
    if (ret) {
        engine_link_free(e, /* bye= */ false);
        return ret;
    }
    return engine_link_new(e, channels, count, 1, NULL, on_record, reterr);
}

int source_reconnect(struct vfmig_source *source, struct vfmig_error *reterr)
{
    struct engine *e = &source->e;
    const struct vfmig_dial dial = dial_of(source, next_fd_again);
    struct vfmig_channel *channel;
    int ret = vfmig_channels_open(&dial, 1, e->options.migration_id, &channel, reterr);

    return ret ? ret : engine_link_new(e, &channel, 1, 1, NULL, on_record, reterr);
}
