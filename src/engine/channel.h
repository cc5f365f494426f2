/* SPDX-License-Identifier: BSD-3-Clause */
/* One connection of a migration: records out, records in, straight from and to guest memory.
 *
 * Sending is safe from any thread (a record is never interleaved with another); receiving belongs
 * to one thread at a time. Everything blocks; what unblocks it is the peer, the stall timeout
 * (-ETIMEDOUT, origin PEER) or vfmig_channel_shutdown from any thread (-ECANCELED, origin LOCAL).
 * After the first failure of a direction that direction stays failed with the same error. */
#ifndef VFMIG_ENGINE_CHANNEL_H
#define VFMIG_ENGINE_CHANNEL_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>

#include "dirty/tracker.h"
#include "base/fds.h"
#include "stream/record.h"
#include "vfmig/error.h"
#include "vfmig/memory.h"

struct vfmig_channel;
struct vfmig_tls_creds;

/* A received record; payload points into the channel's buffer until the next receive. */
struct vfmig_record {
    enum vfmig_record_tag tag;
    uint32_t channel;
    uint32_t length;
    const uint8_t *payload;
    uint64_t received_ns; /* CLOCK_MONOTONIC, when its head was read */
};

struct vfmig_channel_stats {
    uint64_t bytes_sent, bytes_received; /* heads included */
    uint64_t pages_sent, pages_received; /* as bytes */
    uint64_t zero_pages_sent, zero_pages_received;
};

/* Takes a connected stream socket (unix or TCP), on failure too. side is our own. */
int vfmig_channel_new(int fd, uint32_t index, enum vfmig_side side,
                      struct vfmig_channel **ret_channel, struct vfmig_error *reterr);
/* The same records in a file, from where its descriptor stands. Nobody answers in a file: what the
 * destination would send goes nowhere. */
int vfmig_channel_new_file(int fd, enum vfmig_side side, struct vfmig_channel **ret_channel,
                           struct vfmig_error *reterr);
void vfmig_channel_free(struct vfmig_channel *channel);

uint32_t vfmig_channel_index(const struct vfmig_channel *channel);
int vfmig_channel_fd(const struct vfmig_channel *channel); /* for poll; stays the channel's */

/* A receiver's thread for this channel gives up what it does not need (confine.h). Before it is made. */
void vfmig_channel_set_confined(struct vfmig_channel *channel);

/* Everything from here on under TLS (io/tls.h); the handshake is done when it returns 0. */
int vfmig_channel_start_tls(struct vfmig_channel *channel, const struct vfmig_tls_creds *creds,
                            const char *peer_name, uint64_t deadline_ns, struct vfmig_error *reterr);
/* The destination's half of the handshake in steps that do not wait: 0 when it is done, 1: when the socket is
 * readable again there is more. */
int vfmig_channel_try_tls(struct vfmig_channel *channel, const struct vfmig_tls_creds *creds,
                          struct vfmig_error *reterr);
const char *vfmig_channel_cipher(const struct vfmig_channel *channel); /* NULL: plain */

/* A send or receive in which no byte moves for this long fails; 0 is for ever. */
int vfmig_channel_set_stall(struct vfmig_channel *channel, uint64_t timeout_ns,
                            struct vfmig_error *reterr);

/* Ends sending only, so that the peer reads to the end of what was sent. */
void vfmig_channel_end_sending(struct vfmig_channel *channel);

/* Sends for whom nobody shall wait: one that finds no room fails after this long. Receiving is as it was. */
int vfmig_channel_hurry(struct vfmig_channel *channel, uint64_t timeout_ns, struct vfmig_error *reterr);

/* Where MEMORY and ZERO records go; without it they are refused. Kept by reference. */
void vfmig_channel_set_memory(struct vfmig_channel *channel, const struct vfmig_memory *memory);

/* The pages that may come here: those of every count-th stripe (memory_mover.h). Without it, any. */
void vfmig_channel_set_stripes(struct vfmig_channel *channel, uint32_t count);

/* Where pages in doubt are noted (record.h); every channel of a migration shares it. Without it a
 * page whose CRC is wrong ends the stream. Kept by reference. */
void vfmig_channel_set_doubt(struct vfmig_channel *channel, struct vfmig_dirty_map *doubt);

/* Where pages are noted that were written here once; every channel of a migration shares it. Kept by
 * reference. */
void vfmig_channel_set_warm(struct vfmig_channel *channel, struct vfmig_dirty_map *warm);

/* Both ends of a TCP connection are on this host. */
bool vfmig_channel_is_near(const struct vfmig_channel *channel);

/* While *when, the thread that receives keeps to the CPU of a sender on this host (engine/seats.h). Kept by
 * reference; before anything is received. */
void vfmig_channel_set_follow(struct vfmig_channel *channel, const atomic_bool *when);

/* Ends both directions at once; whoever is inside returns -ECANCELED. Any thread. */
void vfmig_channel_shutdown(struct vfmig_channel *channel);

/* From now on memory and device data are compressed by zstd of this level where it makes them shorter;
 * -ENOTSUP without zstd. The peer was asked before. */
int vfmig_channel_set_pack(struct vfmig_channel *channel, unsigned level, struct vfmig_error *reterr);

/* One record from parts, payload at most the table's maximum. */
int vfmig_channel_send(struct vfmig_channel *channel, enum vfmig_record_tag tag, const void *data,
                       size_t size, struct vfmig_error *reterr);
int vfmig_channel_sendv(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                        const struct iovec *parts, int part_count, struct vfmig_error *reterr);

/* One record with descriptors, which stay the caller's; over a unix socket only. */
int vfmig_channel_send_fds(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                           const void *data, size_t size, const struct vfmig_fds *fds,
                           struct vfmig_error *reterr);
/* Before anything else is received: descriptors that come are kept from now on. */
void vfmig_channel_expect_fds(struct vfmig_channel *channel);
/* Those that came up to the record that was received last, perhaps some behind it; the caller's then.
 * Receiving thread. */
void vfmig_channel_take_fds(struct vfmig_channel *channel, struct vfmig_fds *ret_fds);

/* The pages of runs as one MEMORY record straight from guest memory, at most VFMIG_MAX_MEMORY_PAGES;
 * they may be written meanwhile (record.h). */
int vfmig_channel_send_pages(struct vfmig_channel *channel, const struct vfmig_memory *memory,
                             const struct vfmig_page_run *runs, uint32_t run_count,
                             struct vfmig_error *reterr);
int vfmig_channel_send_zero(struct vfmig_channel *channel, const struct vfmig_page_run *runs,
                            uint32_t run_count, struct vfmig_error *reterr);

/* A ROUND mark with this channel's counts. */
int vfmig_channel_send_round(struct vfmig_channel *channel, uint64_t round,
                             struct vfmig_error *reterr);

/* A segment of device state in as many DEVDATA records as it needs. */
int vfmig_channel_send_segment(struct vfmig_channel *channel, uint32_t device, uint64_t segment,
                               const void *data, size_t size, struct vfmig_error *reterr);

/* The same for a part of one; more: the rest follows, with the same number. */
int vfmig_channel_send_part(struct vfmig_channel *channel, uint32_t device, uint64_t segment,
                            const void *data, size_t size, bool more, struct vfmig_error *reterr);

/* The next record that is not memory: MEMORY and ZERO are applied on the way, unknown optional
 * ones are skipped. 0, or a negative errno: -ECONNRESET when the peer closed (origin PEER between
 * records, STREAM inside one), -EBADMSG and the others of record.h. */
int vfmig_channel_recv(struct vfmig_channel *channel, struct vfmig_record *ret_record,
                       struct vfmig_error *reterr);

/* The same without waiting, before anything was received by the other way, and of a record with a payload of at
 * most `most` bytes, which is all that is held: 1, or 0 when it is not whole yet. One that is to be skipped is
 * VFMIG_RECORD_NONE. The first record says which channel this is. */
int vfmig_channel_try_recv(struct vfmig_channel *channel, uint32_t most, struct vfmig_record *ret_record,
                           struct vfmig_error *reterr);
/* 1: vfmig_channel_try_recv will return it. */
int vfmig_channel_is_whole(struct vfmig_channel *channel, uint32_t most, struct vfmig_error *reterr);

/* Reads and drops everything until the peer closes, the stall limit or a shutdown. */
void vfmig_channel_drain(struct vfmig_channel *channel);

/* How many threads wait for their turn to send. Turns are taken in the order in which they were asked
 * for, record by record. Any thread, any time; so is stats. */
uint32_t vfmig_channel_waiting(struct vfmig_channel *channel);
void vfmig_channel_stats(const struct vfmig_channel *channel, struct vfmig_channel_stats *ret_stats);

/* How a source's connections come about. next_fd returns one more connected socket at a time; it may block, a
 * negative errno ends the attempt. */
typedef int (*vfmig_next_fd)(void *user, struct vfmig_error *reterr);
struct vfmig_dial {
    vfmig_next_fd next_fd;
    void *user;
    uint64_t stall_ns;
    const struct vfmig_tls_creds *tls; /* NULL: plain */
    const char *peer_name;             /* whose certificate the destination must have */
};

/* The HELLO exchange, which binds several connections to one migration: the source's half; the destination's is
 * engine/door.h. The next one is asked for only when the one before was answered, so that the order of
 * connections cannot be confused. Who is turned out before it was answered begins again, VFMIG_MAX_GREETING_TRIES
 * times and for as long as stall_ns at most.
 *
 * On failure everything is closed. ret_channels has room for count channels. */
int vfmig_channels_open(const struct vfmig_dial *dial, uint32_t count, const uint8_t migration_id[16],
                        struct vfmig_channel **ret_channels, struct vfmig_error *reterr);
int vfmig_hello_send(struct vfmig_channel *channel, const struct vfmig_hello *hello,
                     struct vfmig_error *reterr);
/* Of the record that came: the peer's HELLO, or why there is none. */
int vfmig_hello_take(const struct vfmig_record *record, struct vfmig_hello *ret_hello,
                     struct vfmig_error *reterr);

/* Round trip and clock offset by one PING on a channel that nobody else receives from and whose
 * peer runs a receiver (engine/memory_mover.h); no other record may be on its way. */
int vfmig_channel_ping(struct vfmig_channel *channel, uint64_t id, struct vfmig_clock_offset *clock,
                       struct vfmig_error *reterr);

/* Answers a received PING at once. The receiver does it by itself. */
int vfmig_channel_pong(struct vfmig_channel *channel, const struct vfmig_record *ping,
                       struct vfmig_error *reterr);

#endif
