/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of one channel share. */
#ifndef VFMIG_ENGINE_CHANNEL_PRIVATE_H
#define VFMIG_ENGINE_CHANNEL_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/fds.h"
#include "core/rates.h"
#include "engine/channel.h"
#include "engine/seats.h"
#include "io/rights.h"

/* Read ahead of the record that is being received: enough for the next head, its table and the CRCs
 * of its pages, so that a record of contiguous pages costs one system call. */
#define AHEAD_BYTES 512u

struct vfmig_channel {
    int fd;
    bool file; /* read and written, never waited for */
    bool near; /* both ends of a TCP connection are on this host */
    uint32_t index;
    enum vfmig_side side;
    int part_ms; /* of the stall limit; 0: no limit */
    atomic_bool cancelled;
    struct vfmig_tls *tls; /* NULL: plain */
    bool confined; /* its receiving thread will be, and so will everything that it calls */
    const struct vfmig_memory *memory;
    uint32_t stripe_count; /* channels that share the stripes; 0: not checked */
    struct vfmig_dirty_map *doubt;
    struct vfmig_dirty_map *warm; /* pages that were written here; NULL: nobody wants to know */
    struct vfmig_rates cold;      /* at which new ones are made; receiving thread */
    uint64_t cold_records, cold_pages;

    /* Who sends is the one whose turn it is; the others wait in the order in which they came. */
    pthread_mutex_t turn_lock;
    struct vfmig_turn *first_turn, **last_turn;
    uint32_t waiting;
    bool sending;
    uint64_t send_sequence;         /* theirs whose turn it is */
    struct vfmig_error send_failed; /* the same; code 0 while all is well */
    pthread_mutex_t pack_lock;      /* taken before a turn */
    struct vfmig_pack *pack;        /* NULL: nothing is compressed; its contents under pack_lock */

    /* Receiving thread only. */
    const atomic_bool *follow; /* NULL: never */
    struct vfmig_seat seat;
    uint64_t recv_sequence;
    bool wants_fds; /* else the kernel closes what comes */
    struct vfmig_fds fds; /* came and were not taken */
    uint64_t head_ns;
    struct vfmig_error recv_failed;
    uint8_t ahead[AHEAD_BYTES];
    const uint8_t *ahead_from; /* ahead, or early while that is taken */
    size_t ahead_at, ahead_end;
    uint8_t *early; /* channel_try.c: up to one record that was not whole the last time */
    size_t early_bytes, early_room;
    int low_water; /* what SO_RCVLOWAT is set to */
    uint8_t *buffer; /* grows to the largest record met, at most VFMIG_MAX_CHANNEL_BUFFER, or of PACKED
                        8 bytes and VFMIG_MAX_MEMORY_RECORD */
    uint8_t *unpacked; /* VFMIG_MAX_MEMORY_RECORD bytes from the first PACKED on */
    size_t buffer_bytes;
    uint8_t table[VFMIG_MAX_RUNS_BYTES];
    struct vfmig_page_run runs[VFMIG_MAX_MEMORY_RUNS];
    struct iovec iov[VFMIG_MAX_MEMORY_RUNS + 1];

    _Atomic uint64_t bytes_sent, bytes_received;
    _Atomic uint64_t pages_sent, pages_received;
    _Atomic uint64_t zero_pages_sent, zero_pages_received;
};

static inline uint8_t *vfmig_page_address(const struct vfmig_memory *memory,
                                          const struct vfmig_page_run *run)
{
    return (uint8_t *)memory->blocks[run->block].host + run->first_page * VFMIG_PAGE_SIZE;
}

/* Makes the pages of a run zero, touching none that already is. */
void vfmig_zero_apply(const struct vfmig_ram_block *block, uint64_t first_page, uint64_t page_count);

/* The pages of channel->runs are about to be received: counts those that nothing was written to yet,
 * and now and then times how they are made. */
void vfmig_channel_note_cold(struct vfmig_channel *channel, uint32_t run_count);

uint64_t vfmig_channel_now_ns(void);

/* channel_recv.c. Room for size bytes, which somebody has bounded. */
int vfmig_channel_grow(uint8_t **buffer, size_t *room, size_t size, struct vfmig_error *reterr);
/* What ended receiving. */
int vfmig_channel_recv_error(struct vfmig_channel *channel, ssize_t got, int code, bool inside,
                             struct vfmig_error *reterr);
/* What the next head must say. */
struct vfmig_record_expect vfmig_channel_expects(const struct vfmig_channel *channel);
/* 1 when a record for the caller is in *ret_record, 0 when it was dealt with. */
int vfmig_channel_receive_record(struct vfmig_channel *channel, struct vfmig_record *ret_record,
                                 struct vfmig_error *reterr);

/* channel_tls.c. error: what ended receiving or sending, of a channel that has TLS. */
int vfmig_channel_tls_error(struct vfmig_channel *channel, bool inside, struct vfmig_error *reterr);
void vfmig_channel_tls_end(struct vfmig_channel *channel);

/* channel_fds.c. After a message was received: those that came are the channel's. More than it holds: -EPROTO. */
int vfmig_channel_keep_fds(struct vfmig_channel *channel, struct msghdr *msg,
                           struct vfmig_error *reterr);

/* One record; iov[0] is for the head, the payload's CRC is known. iov is consumed. */
int vfmig_channel_send_record(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                              struct iovec *iov, size_t iov_count, uint32_t length, uint32_t crc,
                              struct vfmig_error *reterr);

/* A table of runs that is here whole: checked, into channel->runs. */
int vfmig_channel_check_runs(struct vfmig_channel *channel, const uint8_t *table, size_t size,
                             const struct vfmig_record_head *head, uint32_t *ret_run_count,
                             const uint8_t **ret_page_crcs, struct vfmig_error *reterr);
/* A page that is in its place: trusted or in doubt by its CRC. */
int vfmig_channel_check_page(struct vfmig_channel *channel, const struct vfmig_record_head *head,
                             uint32_t block, uint64_t page, uint8_t *at, uint32_t crc,
                             struct vfmig_error *reterr);

/* channel_pack.c. Of the first two, the channel has a pack. unpack: 1 when a record for the caller
 * is in *ret_record, 0 when it was pages. */
int vfmig_channel_pack_pages(struct vfmig_channel *channel, const struct vfmig_memory *memory,
                             const struct vfmig_page_run *runs, uint32_t run_count, uint64_t pages,
                             struct vfmig_error *reterr);
int vfmig_channel_pack_parts(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                             const struct iovec *parts, int part_count, struct vfmig_error *reterr);
int vfmig_channel_unpack(struct vfmig_channel *channel, const uint8_t *payload, uint32_t length,
                         struct vfmig_record *ret_record, struct vfmig_error *reterr);

#endif
