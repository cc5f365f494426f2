/* SPDX-License-Identifier: BSD-3-Clause */
/* A connection: its life and its sending half. The receiving half is channel_recv.c. */
#include "engine/channel.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/sabotage.h"
#include "engine/channel_private.h"
#include "engine/pack.h"
#include "io/sock.h"
#include "io/tls.h"

#define MAX_PARTS 4

/* Send buffer towards a peer on the same host: there is no distance to fill with bytes, and what
 * lies in between stays in the cache of the core that wrote it. docs/performance.md. */
#define NEAR_SEND_BUFFER (192 << 10)

uint64_t vfmig_channel_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Both ends of a TCP connection are on this host. */
static bool peer_is_here(int fd)
{
    struct sockaddr_storage here = {0}, there = {0};
    socklen_t here_size = sizeof(here), there_size = sizeof(there);

    if (getsockname(fd, (struct sockaddr *)&here, &here_size) < 0 ||
        getpeername(fd, (struct sockaddr *)&there, &there_size) < 0 ||
        here.ss_family != there.ss_family)
        return false;
    if (here.ss_family == AF_INET)
        return ((struct sockaddr_in *)&here)->sin_addr.s_addr ==
               ((struct sockaddr_in *)&there)->sin_addr.s_addr;
    return here.ss_family == AF_INET6 &&
           memcmp(&((struct sockaddr_in6 *)&here)->sin6_addr,
                  &((struct sockaddr_in6 *)&there)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

int vfmig_channel_new(int fd, uint32_t index, enum vfmig_side side,
                      struct vfmig_channel **ret_channel, struct vfmig_error *reterr)
{
    struct vfmig_channel *channel = calloc(1, sizeof(*channel));
    int on = 1, near_bytes = NEAR_SEND_BUFFER;

    if (!channel) {
        close(fd);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for migration channel %u", index);
    }
    channel->fd = fd;
    channel->index = index;
    channel->side = side;
    channel->low_water = 1;
    channel->ahead_from = channel->ahead;
    pthread_mutex_init(&channel->turn_lock, NULL);
    channel->last_turn = &channel->first_turn;
    pthread_mutex_init(&channel->pack_lock, NULL);
    /* Control records are small and awaited; a unix socket says no, which is fine. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    channel->near = peer_is_here(fd);
    if (channel->near)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &near_bytes, sizeof(near_bytes));
    *ret_channel = channel;
    return 0;
}

int vfmig_channel_new_file(int fd, enum vfmig_side side, struct vfmig_channel **ret_channel,
                           struct vfmig_error *reterr)
{
    int ret = vfmig_channel_new(fd, VFMIG_RECORD_CONTROL, side, ret_channel, reterr);

    if (ret == 0)
        (*ret_channel)->file = true;
    return ret;
}

void vfmig_channel_free(struct vfmig_channel *channel)
{
    if (!channel)
        return;
    vfmig_channel_tls_end(channel);
    vfmig_tls_free(channel->tls);
    close(channel->fd);
    vfmig_fds_close(&channel->fds);
    pthread_mutex_destroy(&channel->turn_lock);
    pthread_mutex_destroy(&channel->pack_lock);
    vfmig_pack_free(channel->pack);
    free(channel->unpacked);
    free(channel->early);
    free(channel->buffer);
    free(channel);
}

uint32_t vfmig_channel_index(const struct vfmig_channel *channel)
{
    return channel->index;
}

int vfmig_channel_fd(const struct vfmig_channel *channel)
{
    return channel->fd;
}

static uint64_t part_of(uint64_t timeout_ns)
{
    return timeout_ns / VFMIG_STALL_PARTS + (timeout_ns % VFMIG_STALL_PARTS != 0);
}

static int limit(struct vfmig_channel *channel, int option, uint64_t timeout_ns, struct vfmig_error *reterr)
{
    uint64_t part_ns = part_of(timeout_ns);
    struct timeval timeout = {
        .tv_sec = (time_t)(part_ns / 1000000000u),
        .tv_usec = (suseconds_t)(part_ns % 1000000000u / 1000u),
    };

    if (timeout_ns && !timeout.tv_sec && !timeout.tv_usec)
        timeout.tv_usec = 1; /* 0 would mean for ever */
    if (setsockopt(channel->fd, SOL_SOCKET, option, &timeout, sizeof(timeout)) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "channel %u takes no timeout: %s", channel->index, strerror(errno));
    return 0;
}

int vfmig_channel_set_stall(struct vfmig_channel *channel, uint64_t timeout_ns,
                            struct vfmig_error *reterr)
{
    if (channel->file)
        return 0;
    uint64_t part_ns = part_of(timeout_ns);
    uint64_t ms = part_ns / 1000000u + (part_ns % 1000000u != 0);
    channel->part_ms = ms < INT_MAX ? (int)ms : INT_MAX;
    int rc = limit(channel, SO_RCVTIMEO, timeout_ns, reterr);
    return rc ? rc : limit(channel, SO_SNDTIMEO, timeout_ns, reterr);
}

int vfmig_channel_hurry(struct vfmig_channel *channel, uint64_t timeout_ns, struct vfmig_error *reterr)
{
    return channel->file ? 0 : limit(channel, SO_SNDTIMEO, timeout_ns, reterr);
}

void vfmig_channel_set_memory(struct vfmig_channel *channel, const struct vfmig_memory *memory)
{
    channel->memory = memory;
}

void vfmig_channel_set_confined(struct vfmig_channel *channel)
{
    channel->confined = true;
}

void vfmig_channel_set_stripes(struct vfmig_channel *channel, uint32_t count)
{
    channel->stripe_count = count;
}

void vfmig_channel_set_doubt(struct vfmig_channel *channel, struct vfmig_dirty_map *doubt)
{
    channel->doubt = doubt;
}

void vfmig_channel_set_warm(struct vfmig_channel *channel, struct vfmig_dirty_map *warm)
{
    channel->warm = warm;
}

bool vfmig_channel_is_near(const struct vfmig_channel *channel)
{
    return channel->near;
}

void vfmig_channel_set_follow(struct vfmig_channel *channel, const atomic_bool *when)
{
    channel->follow = when;
}

void vfmig_channel_shutdown(struct vfmig_channel *channel)
{
    atomic_store(&channel->cancelled, true);
    shutdown(channel->fd, SHUT_RDWR); /* of a file: nobody is ever stuck inside */
}

void vfmig_channel_end_sending(struct vfmig_channel *channel)
{
    vfmig_channel_tls_end(channel);
    shutdown(channel->fd, SHUT_WR);
}

static int send_error(struct vfmig_channel *channel, int code, struct vfmig_error *reterr)
{
    if (atomic_load(&channel->cancelled))
        return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                               "sending on channel %u was cancelled", channel->index);
    if (code == -EAGAIN)
        return vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                               "the peer took no byte of channel %u within the time limit",
                               channel->index);
    if (code == -EPIPE || code == -ECONNRESET)
        return vfmig_error_set(reterr, -ECONNRESET, VFMIG_ORIGIN_PEER, 0,
                               "the peer closed channel %u", channel->index);
    if (channel->tls && code == -EPROTO)
        return vfmig_channel_tls_error(channel, /* inside= */ true, reterr);
    if (channel->file)
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot write the file: %s",
                               strerror(-code));
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "sending on channel %u failed: %s",
                           channel->index, strerror(-code));
}

/* fds, unless it is NULL, goes with the first byte. */
static ssize_t send_some(struct vfmig_channel *channel, struct iovec *iov, size_t count,
                         const struct vfmig_fds *fds)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};
    struct vfmig_rights control;

    if (channel->tls)
        return vfmig_tls_send(channel->tls, iov, count);
    if (fds)
        vfmig_rights_put(&msg, &control, fds);
    if (!channel->file)
        return sendmsg(channel->fd, &msg, MSG_NOSIGNAL);
    if (atomic_load(&channel->cancelled)) {
        errno = ECANCELED;
        return -1;
    }
    return writev(channel->fd, iov, (int)count);
}

/* Sends all of iov; what it points to is consumed. */
static int send_all(struct vfmig_channel *channel, struct iovec *iov, size_t count,
                    const struct vfmig_fds *fds, struct vfmig_error *reterr)
{
    unsigned silent = 0;

    while (count) {
        ssize_t sent = send_some(channel, iov, count, fds);
        if (sent < 0) {
            int code = -errno;
            /* TLS counts itself. */
            if (code == -EINTR || (code == -EAGAIN && !channel->tls && vfmig_sock_go_on(&silent)))
                continue;
            return send_error(channel, code, reterr);
        }
        silent = 0;
        fds = NULL;
        atomic_fetch_add_explicit(&channel->bytes_sent, (uint64_t)sent, memory_order_relaxed);
        for (size_t left = (size_t)sent; count && left >= iov->iov_len; iov++, count--, sent = (ssize_t)left)
            left -= iov->iov_len;
        if (count) {
            iov->iov_base = (uint8_t *)iov->iov_base + sent;
            iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

/* --- turns: a mutex would let whoever has just sent send again --- */

struct vfmig_turn {
    struct vfmig_turn *next;
    pthread_cond_t mine;
    bool given;
};

static void take_turn(struct vfmig_channel *channel)
{
    struct vfmig_turn turn = {.mine = PTHREAD_COND_INITIALIZER};

    pthread_mutex_lock(&channel->turn_lock);
    if (!channel->sending) {
        channel->sending = true;
        pthread_mutex_unlock(&channel->turn_lock);
        return;
    }
    if (vfmig_sabotage("last-come-first-sent")) {
        turn.next = channel->first_turn;
        channel->first_turn = &turn;
        if (!turn.next)
            channel->last_turn = &turn.next;
    } else {
        *channel->last_turn = &turn;
        channel->last_turn = &turn.next;
    }
    channel->waiting++;
    while (!turn.given)
        pthread_cond_wait(&turn.mine, &channel->turn_lock);
    channel->waiting--;
    pthread_mutex_unlock(&channel->turn_lock);
    pthread_cond_destroy(&turn.mine);
}

static void give_turn(struct vfmig_channel *channel)
{
    pthread_mutex_lock(&channel->turn_lock);
    struct vfmig_turn *next = channel->first_turn;
    channel->sending = next;
    if (next) {
        channel->first_turn = next->next;
        if (!channel->first_turn)
            channel->last_turn = &channel->first_turn;
        next->given = true;
        pthread_cond_signal(&next->mine);
    }
    pthread_mutex_unlock(&channel->turn_lock);
}

uint32_t vfmig_channel_waiting(struct vfmig_channel *channel)
{
    pthread_mutex_lock(&channel->turn_lock);
    uint32_t waiting = channel->waiting;
    pthread_mutex_unlock(&channel->turn_lock);
    return waiting;
}

static int send_record(struct vfmig_channel *channel, enum vfmig_record_tag tag, struct iovec *iov,
                       size_t iov_count, uint32_t length, uint32_t crc,
                       const struct vfmig_fds *fds, struct vfmig_error *reterr)
{
    uint8_t head[VFMIG_RECORD_HEAD_BYTES];

    if (channel->file && channel->side == VFMIG_SIDE_DEST)
        return 0;
    take_turn(channel);
    if (!channel->send_failed.code) {
        vfmig_record_head_encode(head, tag, channel->index, channel->send_sequence++, length, crc);
        iov[0] = (struct iovec){head, sizeof(head)};
        vfmig_sabotage_point("before-send", vfmig_record_info(tag)->name);
        send_all(channel, iov, iov_count, fds, &channel->send_failed);
        vfmig_sabotage_point("after-send", vfmig_record_info(tag)->name);
    }
    int rc = channel->send_failed.code;
    if (rc < 0 && reterr)
        *reterr = channel->send_failed;
    /* Whoever reads a file takes what follows its end for damage. */
    if (rc == 0 && channel->file && tag == VFMIG_RECORD_BYE)
        vfmig_error_set(&channel->send_failed, -EPIPE, VFMIG_ORIGIN_LOCAL, 0,
                        "nothing follows the BYE of a file");
    give_turn(channel);
    return rc;
}

int vfmig_channel_send_record(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                              struct iovec *iov, size_t iov_count, uint32_t length, uint32_t crc,
                              struct vfmig_error *reterr)
{
    return send_record(channel, tag, iov, iov_count, length, crc, /* fds= */ NULL, reterr);
}

int vfmig_channel_send_fds(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                           const void *data, size_t size, const struct vfmig_fds *fds,
                           struct vfmig_error *reterr)
{
    struct iovec iov[2] = {{0}, {(void *)(uintptr_t)data, size}};

    return send_record(channel, tag, iov, 2, (uint32_t)size, vfmig_crc32c(0, data, size), fds,
                       reterr);
}

int vfmig_channel_sendv(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                        const struct iovec *parts, int part_count, struct vfmig_error *reterr)
{
    const struct vfmig_record_info *info = vfmig_record_info(tag);
    struct iovec used[1 + MAX_PARTS];
    size_t used_count = 1, size = 0;
    uint32_t crc = 0;

    for (int i = 0; i < part_count; i++) {
        if (parts[i].iov_len == 0)
            continue;
        if (used_count > MAX_PARTS)
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                   "a record is sent from at most %d parts", MAX_PARTS);
        used[used_count++] = parts[i];
        size += parts[i].iov_len;
        crc = vfmig_crc32c(crc, parts[i].iov_base, parts[i].iov_len);
    }
    if (!info || size < info->min_bytes || size > info->max_bytes)
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_LOCAL, 0,
                               "%zu bytes are no payload of a record %s", size,
                               info ? info->name : "of this version");
    return vfmig_channel_send_record(channel, tag, used, used_count, (uint32_t)size, crc, reterr);
}

int vfmig_channel_send(struct vfmig_channel *channel, enum vfmig_record_tag tag, const void *data,
                       size_t size, struct vfmig_error *reterr)
{
    struct iovec part = {(void *)(uintptr_t)data, size};

    return vfmig_channel_sendv(channel, tag, &part, 1, reterr);
}

static int count_pages(const struct vfmig_page_run *runs, uint32_t run_count, uint64_t max_pages,
                       uint64_t *ret_pages, struct vfmig_error *reterr)
{
    uint64_t pages = 0;

    for (uint32_t i = 0; i < run_count; i++)
        pages += runs[i].page_count;
    if (run_count == 0 || run_count > VFMIG_MAX_MEMORY_RUNS || pages > max_pages)
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_LOCAL, 0,
                               "%u runs of %" PRIu64 " pages do not fit one record", run_count,
                               pages);
    *ret_pages = pages;
    return 0;
}

int vfmig_channel_send_pages(struct vfmig_channel *channel, const struct vfmig_memory *memory,
                             const struct vfmig_page_run *runs, uint32_t run_count,
                             struct vfmig_error *reterr)
{
    uint8_t table[VFMIG_MAX_RUNS_BYTES];
    uint32_t crcs[VFMIG_MAX_MEMORY_PAGES];
    struct iovec iov[2 + VFMIG_MAX_MEMORY_RUNS];
    uint64_t pages = 0, n = 0;
    int rc = count_pages(runs, run_count, VFMIG_MAX_MEMORY_PAGES, &pages, reterr);

    if (rc == 0 && channel->pack) {
        rc = vfmig_channel_pack_pages(channel, memory, runs, run_count, pages, reterr);
        if (rc == 0)
            atomic_fetch_add_explicit(&channel->pages_sent, pages, memory_order_relaxed);
        return rc;
    }
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < run_count; i++) {
        uint8_t *at = vfmig_page_address(memory, &runs[i]);
        iov[2 + i] = (struct iovec){at, (size_t)runs[i].page_count * VFMIG_PAGE_SIZE};
        for (uint32_t page = 0; page < runs[i].page_count; page++, at += VFMIG_PAGE_SIZE)
            crcs[n++] = vfmig_crc32c(0, at, VFMIG_PAGE_SIZE);
    }
    size_t size = vfmig_runs_encode(table, runs, run_count, crcs);
    iov[1] = (struct iovec){table, size};
    rc = vfmig_channel_send_record(channel, VFMIG_RECORD_MEMORY, iov, 2 + run_count,
                                   (uint32_t)(size + pages * VFMIG_PAGE_SIZE),
                                   vfmig_crc32c(0, table, size), reterr);
    if (rc == 0)
        atomic_fetch_add_explicit(&channel->pages_sent, pages, memory_order_relaxed);
    return rc;
}

int vfmig_channel_send_zero(struct vfmig_channel *channel, const struct vfmig_page_run *runs,
                            uint32_t run_count, struct vfmig_error *reterr)
{
    uint8_t table[VFMIG_MAX_RUNS_BYTES];
    uint64_t pages = 0;
    int rc = count_pages(runs, run_count, UINT32_MAX, &pages, reterr);

    if (rc == 0)
        rc = vfmig_channel_send(channel, VFMIG_RECORD_ZERO, table,
                                vfmig_runs_encode(table, runs, run_count, /* page_crcs= */ NULL),
                                reterr);
    if (rc == 0)
        atomic_fetch_add_explicit(&channel->zero_pages_sent, pages, memory_order_relaxed);
    return rc;
}

int vfmig_channel_send_round(struct vfmig_channel *channel, uint64_t round,
                             struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_ROUND_BYTES];

    vfmig_round_encode(out, &(struct vfmig_round){
                                .round = round,
                                .pages = atomic_load(&channel->pages_sent),
                                .zero_pages = atomic_load(&channel->zero_pages_sent),
                            });
    return vfmig_channel_send(channel, VFMIG_RECORD_ROUND, out, sizeof(out), reterr);
}

int vfmig_channel_send_segment(struct vfmig_channel *channel, uint32_t device, uint64_t segment,
                               const void *data, size_t size, struct vfmig_error *reterr)
{
    return vfmig_channel_send_part(channel, device, segment, data, size, /* more= */ false, reterr);
}

int vfmig_channel_send_part(struct vfmig_channel *channel, uint32_t device, uint64_t segment,
                            const void *data, size_t size, bool more, struct vfmig_error *reterr)
{
    const uint8_t *at = data;
    int rc;

    if (size == 0 || size > VFMIG_MAX_DEVICE_PORTION)
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_LOCAL, 0,
                               "%zu bytes are no segment of a device's state", size);
    do {
        uint8_t prefix[VFMIG_DEVICE_PIECE_BYTES];
        size_t piece = size < VFMIG_MAX_DEVICE_PIECE ? size : VFMIG_MAX_DEVICE_PIECE;
        vfmig_device_piece_encode(prefix, &(struct vfmig_device_piece){
                                              .device = device,
                                              .more = more || size > piece,
                                              .segment = segment,
                                          });
        struct iovec parts[2] = {{prefix, sizeof(prefix)}, {(void *)(uintptr_t)at, piece}};
        rc = channel->pack
                 ? vfmig_channel_pack_parts(channel, VFMIG_RECORD_DEVDATA, parts, 2, reterr)
                 : vfmig_channel_sendv(channel, VFMIG_RECORD_DEVDATA, parts, 2, reterr);
        at += piece;
        size -= piece;
    } while (rc == 0 && size);
    return rc;
}

int vfmig_channel_pong(struct vfmig_channel *channel, const struct vfmig_record *record,
                       struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_PONG_BYTES];
    struct vfmig_ping ping;
    int rc = vfmig_ping_decode(record->payload, record->length, &ping, reterr);

    if (rc < 0)
        return rc;
    vfmig_pong_encode(out, &(struct vfmig_pong){
                               .id = ping.id,
                               .sent_ns = ping.sent_ns,
                               .received_ns = record->received_ns,
                               .answered_ns = vfmig_channel_now_ns(),
                           });
    return vfmig_channel_send(channel, VFMIG_RECORD_PONG, out, sizeof(out), reterr);
}

void vfmig_channel_stats(const struct vfmig_channel *channel, struct vfmig_channel_stats *ret_stats)
{
    *ret_stats = (struct vfmig_channel_stats){
        .bytes_sent = atomic_load(&channel->bytes_sent),
        .bytes_received = atomic_load(&channel->bytes_received),
        .pages_sent = atomic_load(&channel->pages_sent),
        .pages_received = atomic_load(&channel->pages_received),
        .zero_pages_sent = atomic_load(&channel->zero_pages_sent),
        .zero_pages_received = atomic_load(&channel->zero_pages_received),
    };
}
