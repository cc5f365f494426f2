/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory over several channels at once.
 *
 * Order between copies of one page: a page belongs to one channel for the whole migration, by the
 * stripe of VFMIG_STRIPE_PAGES it is in. TCP keeps the order of one channel, so an older copy can
 * never overtake a newer one, without barriers between rounds. ROUND marks say when a round is
 * complete on each channel.
 *
 * A page may be written while it is sent, even between its checksum and its way through the socket.
 * Then it arrives with a wrong CRC and is in doubt; but the log was read before the page was, so
 * the same write is in the log and the page comes again. A page that is still in doubt when the
 * last round is complete was altered on its way, or written by somebody who is not logged. */
#ifndef VFMIG_ENGINE_MEMORY_MOVER_H
#define VFMIG_ENGINE_MEMORY_MOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/rates.h"
#include "dirty/tracker.h"
#include "engine/channel.h"
#include "engine/cpu_use.h"

#define VFMIG_STRIPE_PAGES 512u /* 2 MiB; a multiple of 64, so that no two channels share a word */

/* --- Source --- */

struct vfmig_mover;

struct vfmig_mover_progress {
    uint64_t round;       /* of the last start */
    uint64_t pages_total; /* set in the map when the round was started */
    uint64_t pages_done;  /* of this round, zero pages included */
    uint64_t pages_sent;  /* as bytes, all rounds */
    uint64_t zero_pages;  /* all rounds */
    uint64_t bytes_sent;  /* everything on these channels, heads included */
    uint64_t busy_ns;     /* the last round's time without the waits for its share of the bandwidth */
    struct vfmig_cpu_use use; /* the last round's: of all threads; the longest wait of one */
    bool running;
    uint64_t bandwidth;   /* that all have a share of; 0: no limit */
    bool sends;           /* pages on the first channel, at this moment */
};

/* One thread a channel. Channels and memory stay the caller's and must outlive the mover. */
int vfmig_mover_new(struct vfmig_channel *const *channels, uint32_t channel_count,
                    const struct vfmig_memory *memory, struct vfmig_mover **ret_mover,
                    struct vfmig_error *reterr);
/* Cancels what runs, joins the threads. NULL is fine. */
void vfmig_mover_free(struct vfmig_mover *mover);

/* Bytes per second over all channels together (core/pace.h); 0 is without limit, and ends the waits
 * of an earlier one. Any thread, any time. */
void vfmig_mover_set_bandwidth(struct vfmig_mover *mover, uint64_t bytes_per_second);
/* Waits for the share of that limit that so many bytes need, which somebody else is about to send
 * on these channels: 0, or -ECANCELED. */
int vfmig_mover_share(struct vfmig_mover *mover, uint64_t bytes, uint64_t *ret_waited_ns,
                      struct vfmig_error *reterr);
/* Pages of map that were never sent as bytes: what writing them costs the destination is not only
 * their way there. */
uint64_t vfmig_mover_count_new(const struct vfmig_mover *mover, const struct vfmig_dirty_map *map);

/* Sends every page set in map, clearing its bits as they are taken, then a ROUND mark on every
 * channel. start returns at once (-EBUSY while a round runs); wait returns when the round is
 * over: 0, or the first failure. Other threads may set bits in the map meanwhile, atomically: they are
 * sent in this round or stay set. After a failure the map is incomplete: begin from all dirty. */
int vfmig_mover_start(struct vfmig_mover *mover, struct vfmig_dirty_map *map, uint64_t round,
                      struct vfmig_error *reterr);
int vfmig_mover_wait(struct vfmig_mover *mover, struct vfmig_error *reterr);
/* start and wait. */
int vfmig_mover_send(struct vfmig_mover *mover, struct vfmig_dirty_map *map, uint64_t round,
                     struct vfmig_error *reterr);
/* From the next round on: threads whose peers are on this host keep to a CPU of their own each
 * (engine/seats.h), or go where they like again. For while the guest has no use for the CPUs. */
void vfmig_mover_set_seated(struct vfmig_mover *mover, bool seated);
/* About so many pages and no more in the following rounds; the others' bits stay set. 0: all. Between
 * two rounds. */
void vfmig_mover_set_part(struct vfmig_mover *mover, uint64_t pages);
/* An eventfd that is readable from the end of a round until its wait. Stays the mover's. */
int vfmig_mover_fd(const struct vfmig_mover *mover);

void vfmig_mover_progress(struct vfmig_mover *mover, struct vfmig_mover_progress *ret_progress);

/* Ends the running round with -ECANCELED, between two records, so that an ERROR or BYE can still be
 * sent; no further round can be started. A peer that takes nothing holds it up until the stall limit
 * or vfmig_channel_shutdown. Any thread. */
void vfmig_mover_cancel(struct vfmig_mover *mover);

/* --- Destination (and the source's control channel, with memory NULL) --- */

struct vfmig_receiver;

/* Called on the channel's thread for every record that is not memory, a ROUND mark or a PING. A
 * negative return ends all channels with that error. BYE is passed on and ends its thread. */
typedef int (*vfmig_record_fn)(void *user, const struct vfmig_record *record,
                               struct vfmig_error *reterr);

/* One thread a channel. */
int vfmig_receiver_new(struct vfmig_channel *const *channels, uint32_t channel_count,
                       const struct vfmig_memory *memory, vfmig_record_fn on_record, void *user,
                       struct vfmig_receiver **ret_receiver, struct vfmig_error *reterr);
/* Shuts the channels down if they are still open, joins the threads. NULL is fine. Not from
 * inside the callback. */
void vfmig_receiver_free(struct vfmig_receiver *receiver);

/* Called with user, on a channel's thread, when all channels are past the mark of a round. */
void vfmig_receiver_on_round(struct vfmig_receiver *receiver,
                             void (*on_round)(void *user, uint64_t round));

/* Pages that were written here for the first time, up to the last marks, and the rates at which such
 * pages are made, in bytes per second on one channel. */
void vfmig_receiver_cold(struct vfmig_receiver *receiver, struct vfmig_rates *ret_rates,
                         uint64_t *ret_pages);

/* A stream's first failure also ends the stream for the peer: it is told by an ERROR record (unless an ERROR
 * was what failed), all channels but 0 are closed, and channel 0 is read until the peer closes it.
 *
 * Until every channel is past the mark of this round: 0, -ETIMEDOUT, or the first error of any
 * channel; UINT64_MAX waits for ever. Meant for the last round, with the writers stopped: a page
 * in doubt is -EBADMSG, origin STREAM. May be called inside the callback of channel 0 only for a
 * round whose mark on channel 0 has passed. */
int vfmig_receiver_wait_round(struct vfmig_receiver *receiver, uint64_t round, uint64_t timeout_ns,
                              struct vfmig_error *reterr);

/* Why it failed, 0 when it has not; any thread. Sending fails later than this when it is the
 * receiver that ended it. */
int vfmig_receiver_failure(struct vfmig_receiver *receiver, struct vfmig_error *reterr);

/* Until every channel said BYE (0) or one failed (its error). */
int vfmig_receiver_wait_end(struct vfmig_receiver *receiver, struct vfmig_error *reterr);

#endif
