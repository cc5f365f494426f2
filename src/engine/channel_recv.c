/* SPDX-License-Identifier: BSD-3-Clause */
/* The receiving half of a channel. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/crc32c.h"
#include "base/le.h"
#include "base/sabotage.h"
#include "base/zero.h"
#include "engine/channel_private.h"
#include "engine/memory_mover.h"
#include "io/sock.h"
#include "io/tls.h"

/* Bytes of pages that are worth a wake-up: one costs as much as copying about so many. */
#define PAGES_AT_ONCE (128u << 10)

int vfmig_channel_recv_error(struct vfmig_channel *channel, ssize_t got, int code, bool inside,
                             struct vfmig_error *reterr)
{
    if (atomic_load(&channel->cancelled))
        return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                               "receiving on channel %u was cancelled", channel->index);
    if (channel->file && got == 0)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               inside ? "the file ends in the middle of a record"
                                      : "the file ends without a BYE");
    if (channel->file)
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot read the file: %s",
                               strerror(-code));
    if (channel->tls && (code == -EPROTO || (code == -ECONNRESET && vfmig_tls_cut(channel->tls))))
        return vfmig_channel_tls_error(channel, inside, reterr);
    if (got == 0 || code == -ECONNRESET)
        return vfmig_error_set(reterr, -ECONNRESET,
                               inside ? VFMIG_ORIGIN_STREAM : VFMIG_ORIGIN_PEER, 0,
                               inside ? "the peer closed channel %u in the middle of a record"
                                      : "the peer closed channel %u without a BYE",
                               channel->index);
    if (code == -EAGAIN)
        return vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                               "the peer sent no byte on channel %u within the time limit",
                               channel->index);
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0,
                           "receiving on channel %u failed: %s", channel->index, strerror(-code));
}

/* The kernel wakes nobody before this many bytes have come. */
static void set_low_water(struct vfmig_channel *channel, size_t bytes)
{
    int low = (int)bytes;

    if (channel->low_water == low)
        return;
    channel->low_water = low;
    /* A kernel that refuses wakes us more often, and that is all. */
    (void)setsockopt(channel->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low));
}

/* Waits for the low-water mark, the end of the connection, or a part of the stall limit; a signal is none of them. The
 * call that reads must not wait itself: having taken a part, it would not be woken for a rest below the mark. */
static void wait_low_water(struct vfmig_channel *channel)
{
    uint64_t part_ns = channel->part_ms ? (uint64_t)channel->part_ms * 1000000u : VFMIG_NEVER;

    (void)vfmig_sock_wait(channel->fd, POLLIN, vfmig_deadline_ns(part_ns), NULL);
}

/* What TLS has decrypted, or will have next. */
static ssize_t receive_tls(struct vfmig_channel *channel, struct iovec *iov, size_t count,
                           bool inside, struct vfmig_error *reterr)
{
    ssize_t got = vfmig_tls_recv(channel->tls, iov, count);
    int code = got < 0 ? -errno : 0;

    if (got <= 0)
        return vfmig_channel_recv_error(channel, got, code, inside, reterr);
    atomic_fetch_add_explicit(&channel->bytes_received, (uint64_t)got, memory_order_relaxed);
    return got;
}

/* One recvmsg; the last element of iov is the read-ahead buffer, which is empty. at_least is how
 * much is worth a wake-up (fewer bytes may come), inside whether the end of the connection would
 * cut a record. Returns the bytes read. */
static ssize_t receive_some(struct vfmig_channel *channel, struct iovec *iov, size_t count,
                            size_t at_least, bool inside, struct vfmig_error *reterr)
{
    bool patient = at_least > 1 && !channel->file;
    unsigned silent = 0;

    if (channel->tls)
        return receive_tls(channel, iov, count, inside, reterr);

    if (!channel->file)
        set_low_water(channel, at_least);
    for (;;) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};
        struct vfmig_rights control;
        if (channel->wants_fds)
            vfmig_rights_expect(&msg, &control);
        if (patient)
            wait_low_water(channel);
        if (channel->file && atomic_load(&channel->cancelled))
            return vfmig_channel_recv_error(channel, 0, 0, inside, reterr);
        ssize_t got = channel->file ? readv(channel->fd, iov, (int)count)
                                    : recvmsg(channel->fd, &msg,
                                              MSG_CMSG_CLOEXEC | (patient ? MSG_DONTWAIT : 0));
        int code = got < 0 ? -errno : 0;
        if (got > 0 && channel->wants_fds && vfmig_channel_keep_fds(channel, &msg, reterr))
            return -EPROTO;
        if (got > 0) {
            atomic_fetch_add_explicit(&channel->bytes_received, (uint64_t)got,
                                      memory_order_relaxed);
            return got;
        }
        if (code != -EINTR && !(code == -EAGAIN && vfmig_sock_go_on(&silent)))
            return vfmig_channel_recv_error(channel, got, code, inside, reterr);
    }
}

/* Drops size bytes from the front of iov; returns how many elements are used up. */
static size_t advance(struct iovec *iov, size_t count, size_t size)
{
    size_t used = 0;

    while (used < count && size >= iov[used].iov_len)
        size -= iov[used++].iov_len;
    if (used < count) {
        iov[used].iov_base = (uint8_t *)iov[used].iov_base + size;
        iov[used].iov_len -= size;
    }
    return used;
}

/* Moves what was read ahead to the front of iov; returns how many elements are used up. */
static size_t take_ahead(struct vfmig_channel *channel, struct iovec *iov, size_t count)
{
    size_t used = 0;

    while (used < count && channel->ahead_at < channel->ahead_end) {
        size_t size = channel->ahead_end - channel->ahead_at;
        if (size > iov[used].iov_len)
            size = iov[used].iov_len;
        memcpy(iov[used].iov_base, channel->ahead_from + channel->ahead_at, size);
        channel->ahead_at += size;
        used += advance(iov + used, 1, size);
    }
    return used;
}

/* The pages of a record that is being received: checked as they come, while they are in the cache. */
struct pages {
    const struct vfmig_record_head *head;
    const uint8_t *crcs;
    const struct vfmig_page_run *run;
    uint32_t page;     /* next to be checked, in the run */
    uint64_t unchecked; /* bytes from there to the end of the record */
};

/* Checks every page that is complete when left bytes of the record are still to come. */
static int check_pages(struct vfmig_channel *channel, struct pages *pages, uint64_t left,
                       struct vfmig_error *reterr);

/* Fills iov[0..count) whole; iov has room for one more element. The array is consumed. pages is NULL
 * for anything but pages. */
static int receive_all(struct vfmig_channel *channel, struct iovec *iov, size_t count, bool inside,
                       struct pages *pages, struct vfmig_error *reterr)
{
    size_t used = take_ahead(channel, iov, count);
    size_t left = 0;

    iov += used;
    count -= used;
    for (size_t i = 0; i < count; i++)
        left += iov[i].iov_len;
    while (left) {
        iov[count] = (struct iovec){channel->ahead, AHEAD_BYTES};
        size_t at_least = pages && left > PAGES_AT_ONCE ? PAGES_AT_ONCE : pages ? left : 1;
        ssize_t got = receive_some(channel, iov, count + 1, at_least, inside, reterr);
        if (got < 0)
            return (int)got;
        inside = true;
        channel->ahead_at = 0;
        channel->ahead_end = (size_t)got > left ? (size_t)got - left : 0;
        left -= (size_t)got - channel->ahead_end;
        used = advance(iov, count, (size_t)got - channel->ahead_end);
        iov += used;
        count -= used;
        int rc = pages ? check_pages(channel, pages, left, reterr) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int receive_bytes(struct vfmig_channel *channel, void *data, size_t size, bool inside,
                         struct vfmig_error *reterr)
{
    struct iovec iov[2] = {{data, size}};

    return receive_all(channel, iov, size ? 1 : 0, inside, /* pages= */ NULL, reterr);
}

int vfmig_channel_grow(uint8_t **buffer, size_t *room, size_t size, struct vfmig_error *reterr)
{
    uint8_t *larger;

    if (size <= *room)
        return 0;
    larger = realloc(*buffer, size);
    if (!larger)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for a record of %zu bytes", size);
    *buffer = larger;
    *room = size;
    return 0;
}

/* The whole payload into the channel's buffer; the head's check has bounded it. */
static int receive_payload(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                           struct vfmig_error *reterr)
{
    int rc = vfmig_channel_grow(&channel->buffer, &channel->buffer_bytes, head->length, reterr);

    if (rc == 0)
        rc = receive_bytes(channel, channel->buffer, head->length, /* inside= */ true, reterr);
    if (rc == 0)
        rc = vfmig_record_payload_check(head, vfmig_crc32c(0, channel->buffer, head->length),
                                        reterr);
    return rc;
}

static int need_memory(const struct vfmig_channel *channel, const struct vfmig_record_head *head,
                       struct vfmig_error *reterr)
{
    if (channel->memory)
        return 0;
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, head->tag,
                           "record %s arrived on channel %u before the memory map was agreed",
                           head->name, channel->index);
}

/* Copies of one page are in order only on one channel, so a page of another one's stripe is refused
 * (docs/stream-format.md, Order). */
static int check_stripes(const struct vfmig_channel *channel, const struct vfmig_page_run *run,
                         const struct vfmig_record_head *head, struct vfmig_error *reterr)
{
    uint64_t first = run->first_page / VFMIG_STRIPE_PAGES;
    uint64_t last = (run->first_page + run->page_count - 1) / VFMIG_STRIPE_PAGES;

    if (channel->stripe_count < 2)
        return 0;
    for (uint32_t i = 0; i < run->block; i++) {
        uint64_t stripes = (channel->memory->blocks[i].size / VFMIG_PAGE_SIZE +
                            VFMIG_STRIPE_PAGES - 1) / VFMIG_STRIPE_PAGES;
        first += stripes;
        last += stripes;
    }
    if (first == last && first % channel->stripe_count == channel->index)
        return 0;
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head->tag,
                           "record %s on channel %u: page %" PRIu64
                           " of block %u is in a stripe of another channel",
                           head->name, channel->index, run->first_page, run->block);
}

/* Table and page CRCs of a MEMORY or ZERO record into channel->table and channel->runs. */
int vfmig_channel_check_runs(struct vfmig_channel *channel, const uint8_t *table, size_t size,
                             const struct vfmig_record_head *head, uint32_t *ret_run_count,
                             const uint8_t **ret_page_crcs, struct vfmig_error *reterr)
{
    int rc = need_memory(channel, head, reterr);

    if (rc == 0)
        rc = vfmig_runs_decode(table, size, head, channel->memory, channel->runs, ret_run_count,
                               ret_page_crcs, reterr);
    for (uint32_t i = 0; rc == 0 && i < *ret_run_count; i++)
        rc = check_stripes(channel, &channel->runs[i], head, reterr);
    return rc;
}

static int receive_runs(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                        uint32_t *ret_run_count, const uint8_t **ret_page_crcs,
                        struct vfmig_error *reterr)
{
    const size_t prefix = VFMIG_RUNS_PREFIX_BYTES;
    size_t size = 0;
    int rc = need_memory(channel, head, reterr);

    if (rc == 0)
        rc = receive_bytes(channel, channel->table, prefix, /* inside= */ true, reterr);
    if (rc == 0)
        rc = vfmig_runs_prefix_decode(channel->table, head, &size, reterr);
    if (rc == 0)
        rc = receive_bytes(channel, channel->table + prefix, size - prefix, /* inside= */ true,
                           reterr);
    if (rc == 0)
        rc = vfmig_channel_check_runs(channel, channel->table, size, head, ret_run_count,
                                      ret_page_crcs, reterr);
    return rc;
}

/* Of a page whose CRC is wrong: the peer's guest wrote it, or it was altered (record.h). */
static int doubt_page(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                      uint32_t block, uint64_t page, struct vfmig_error *reterr)
{
    if (!channel->doubt)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head->tag,
                               "page %" PRIu64 " of block %u was altered on its way", page, block);
    vfmig_bitmap_set_range_atomic(channel->doubt->bitmaps[block], page, 1);
    return 0;
}

static void trust_page(struct vfmig_channel *channel, uint32_t block, uint64_t page)
{
    uint64_t *word = channel->doubt ? &channel->doubt->bitmaps[block][page / 64] : NULL;
    uint64_t bit = UINT64_C(1) << page % 64;

    if (word && __atomic_load_n(word, __ATOMIC_RELAXED) & bit)
        __atomic_fetch_and(word, ~bit, __ATOMIC_RELAXED);
}

int vfmig_channel_check_page(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                             uint32_t block, uint64_t page, uint8_t *at, uint32_t crc,
                             struct vfmig_error *reterr)
{
    if (vfmig_sabotage("alter-page"))
        at[page % VFMIG_PAGE_SIZE] ^= 1;
    if (vfmig_crc32c(0, at, VFMIG_PAGE_SIZE) != crc)
        return doubt_page(channel, head, block, page, reterr);
    trust_page(channel, block, page);
    return 0;
}

static int check_pages(struct vfmig_channel *channel, struct pages *pages, uint64_t left,
                       struct vfmig_error *reterr)
{
    int rc = 0;

    for (; rc == 0 && pages->unchecked >= left + VFMIG_PAGE_SIZE;
         pages->unchecked -= VFMIG_PAGE_SIZE, pages->crcs += VFMIG_PAGE_CRC_BYTES) {
        if (pages->page == pages->run->page_count) {
            pages->run++;
            pages->page = 0;
        }
        uint64_t page = pages->run->first_page + pages->page;
        uint8_t *at = vfmig_page_address(channel->memory, pages->run) +
                      (size_t)pages->page++ * VFMIG_PAGE_SIZE;
        rc = vfmig_channel_check_page(channel, pages->head, pages->run->block, page, at,
                                      vfmig_le32_get(pages->crcs), reterr);
    }
    return rc;
}

/* Table first, so that it is known where the pages go; then the pages into their places. */
static int receive_memory(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                          struct vfmig_error *reterr)
{
    struct pages pages = {.head = head, .run = channel->runs};
    uint32_t run_count = 0;
    int rc = receive_runs(channel, head, &run_count, &pages.crcs, reterr);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < run_count; i++) {
        size_t size = (size_t)channel->runs[i].page_count * VFMIG_PAGE_SIZE;
        channel->iov[i] = (struct iovec){vfmig_page_address(channel->memory, &channel->runs[i]),
                                         size};
        pages.unchecked += size;
    }
    uint64_t page_count = pages.unchecked / VFMIG_PAGE_SIZE;
    vfmig_channel_note_cold(channel, run_count);
    rc = receive_all(channel, channel->iov, run_count, /* inside= */ true, &pages, reterr);
    if (rc == 0)
        atomic_fetch_add_explicit(&channel->pages_received, page_count, memory_order_relaxed);
    return rc;
}

void vfmig_zero_apply(const struct vfmig_ram_block *block, uint64_t first_page, uint64_t page_count)
{
    uint64_t at = first_page * VFMIG_PAGE_SIZE, end = at + page_count * VFMIG_PAGE_SIZE;

    while (at < end) {
        /* A page that the file does not have yet is zero; reading it would make the file have
         * it. Not mincore: a page that is swapped out is not in core, and need not be zero. */
        if (block->fd >= 0) {
            off_t data = lseek(block->fd, (off_t)(block->fd_offset + at), SEEK_DATA);
            if (data < 0 && errno == ENXIO)
                return; /* nothing but a hole to the end of the file */
            if (data >= 0 && (uint64_t)data - block->fd_offset > at)
                at = ((uint64_t)data - block->fd_offset) & ~(uint64_t)(VFMIG_PAGE_SIZE - 1);
        }
        for (unsigned i = 0; i < 64 && at < end; i++, at += VFMIG_PAGE_SIZE) {
            uint8_t *page = (uint8_t *)block->host + at;
            if (!vfmig_is_zero(page, VFMIG_PAGE_SIZE))
                memset(page, 0, VFMIG_PAGE_SIZE);
        }
    }
}

static int receive_zero(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                        struct vfmig_error *reterr)
{
    const uint8_t *no_crcs;
    uint32_t run_count = 0;
    int rc = receive_runs(channel, head, &run_count, &no_crcs, reterr);

    for (uint32_t i = 0; rc == 0 && i < run_count; i++) {
        const struct vfmig_page_run *run = &channel->runs[i];
        vfmig_zero_apply(&channel->memory->blocks[run->block], run->first_page, run->page_count);
        for (uint32_t page = 0; channel->doubt && page < run->page_count; page++)
            trust_page(channel, run->block, run->first_page + page);
        atomic_fetch_add_explicit(&channel->zero_pages_received, run->page_count,
                                  memory_order_relaxed);
    }
    return rc;
}

/* A mark counts what was before it, so that a reader that lost pages without noticing says so. */
static int check_round(struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    struct vfmig_round round;
    int rc = vfmig_round_decode(channel->buffer, VFMIG_ROUND_BYTES, &round, reterr);

    if (rc == 0 && (round.pages != atomic_load(&channel->pages_received) ||
                    round.zero_pages != atomic_load(&channel->zero_pages_received)))
        rc = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_ROUND,
                             "channel %u: pages were lost before the end of the round",
                             channel->index);
    return rc;
}

struct vfmig_record_expect vfmig_channel_expects(const struct vfmig_channel *channel)
{
    return (struct vfmig_record_expect){
        .sender = channel->side == VFMIG_SIDE_SOURCE ? VFMIG_SIDE_DEST : VFMIG_SIDE_SOURCE,
        .channel = channel->index,
        .sequence = channel->recv_sequence,
    };
}

int vfmig_channel_receive_record(struct vfmig_channel *channel, struct vfmig_record *ret_record,
                                 struct vfmig_error *reterr)
{
    const struct vfmig_record_expect expect = vfmig_channel_expects(channel);
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
    struct vfmig_record_head head;
    int rc = receive_bytes(channel, bytes, sizeof(bytes), channel->ahead_at < channel->ahead_end,
                           reterr);
    if (rc < 0)
        return rc;
    channel->head_ns = vfmig_channel_now_ns();
    int known = vfmig_record_head_decode(bytes, &expect, &head, reterr);
    if (known < 0)
        return known;
    channel->recv_sequence++;
    if (channel->follow && channel->near)
        vfmig_seat_follow(&channel->seat, channel->fd, channel->stripe_count, atomic_load(channel->follow));
    vfmig_sabotage_point("on-receipt", head.name);
    if (known && head.tag == VFMIG_RECORD_MEMORY)
        return receive_memory(channel, &head, reterr);
    if (known && head.tag == VFMIG_RECORD_ZERO)
        return receive_zero(channel, &head, reterr);
    rc = receive_payload(channel, &head, reterr);
    if (rc == 0 && known && head.tag == VFMIG_RECORD_ROUND)
        rc = check_round(channel, reterr);
    if (rc < 0 || !known)
        return rc;
    if (head.tag == VFMIG_RECORD_PACKED)
        return vfmig_channel_unpack(channel, channel->buffer, head.length, ret_record, reterr);
    *ret_record = (struct vfmig_record){
        .tag = (enum vfmig_record_tag)head.tag,
        .channel = channel->index,
        .length = head.length,
        .payload = channel->buffer,
        .received_ns = channel->head_ns,
    };
    return 1;
}

int vfmig_channel_recv(struct vfmig_channel *channel, struct vfmig_record *ret_record,
                       struct vfmig_error *reterr)
{
    struct vfmig_error error = channel->recv_failed;
    int rc = error.code;

    while (rc == 0)
        rc = vfmig_channel_receive_record(channel, ret_record, &error);
    if (rc > 0)
        return 0;
    channel->recv_failed = error;
    if (reterr)
        *reterr = error;
    return rc;
}

void vfmig_channel_drain(struct vfmig_channel *channel)
{
    uint8_t dropped[4096];
    unsigned silent = 0;
    ssize_t got;

    do {
        got = recv(channel->fd, dropped, sizeof(dropped), 0);
        silent = got > 0 ? 0 : silent;
    } while (got > 0 || (got < 0 && (errno == EINTR || (errno == EAGAIN && vfmig_sock_go_on(&silent)))));
}

int vfmig_channel_ping(struct vfmig_channel *channel, uint64_t id, struct vfmig_clock_offset *clock,
                       struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_PING_BYTES];
    struct vfmig_ping ping = {.id = id, .sent_ns = vfmig_channel_now_ns()};
    struct vfmig_record record;
    struct vfmig_pong pong;

    vfmig_ping_encode(out, &ping);
    int rc = vfmig_channel_send(channel, VFMIG_RECORD_PING, out, sizeof(out), reterr);
    do { /* PROGRESS comes whenever the peer likes: here it says no more than that it lives */
        if (rc == 0)
            rc = vfmig_channel_recv(channel, &record, reterr);
    } while (rc == 0 && record.tag == VFMIG_RECORD_PROGRESS);
    if (rc == 0 && record.tag != VFMIG_RECORD_PONG)
        rc = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                             "the peer answered a PING with %s", vfmig_record_info(record.tag)->name);
    if (rc == 0)
        rc = vfmig_pong_decode(record.payload, record.length, &pong, reterr);
    if (rc == 0 && (pong.id != ping.id || pong.sent_ns != ping.sent_ns))
        rc = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                             "the peer answered another PING than the one sent");
    if (rc == 0)
        vfmig_clock_offset_add(clock, &pong, record.received_ns);
    return rc;
}
