/* SPDX-License-Identifier: BSD-3-Clause */
/* What a migration measures of itself while the guest runs, and the decision made of it. The source
 * keeps it; the destination tells its share at the end of every round. */
#ifndef VFMIG_ENGINE_MEASURE_H
#define VFMIG_ENGINE_MEASURE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/converge.h"
#include "core/throttle.h"
#include "engine/memory_mover.h"

struct engine;
struct device_worker;

/* What the destination tells once it has all of a round. */
struct engine_taken {
    uint64_t round;
    uint64_t cold_pages;    /* written there for the first time, in all */
    uint64_t cold_page_ns;  /* what one costs more, usually and at worst; 0: not known */
    uint64_t cold_page_high_ns;
    uint64_t change_ns;     /* state change of the slowest device there, usually and at worst */
    uint64_t change_high_ns;
    uint64_t load_ns;             /* external state */
    uint64_t journal_ns;          /* a durable record, as tried last; 0: not tried */
    uint64_t load_alone_ns, journal_alone_ns; /* the last two without the waits for a CPU */
};

struct engine_measure {
    pthread_mutex_t lock;
    struct vfmig_measured samples; /* under lock, like the rest */
    struct engine_taken taken;     /* the newest, and when it came */
    uint64_t taken_ns;
    struct vfmig_log_reading readings[2]; /* the last ones */
    /* The round that was sent last, until the destination has it. */
    uint64_t round, round_bytes, round_busy_ns, round_alone_ns, round_sent_ns;
    uint64_t rough_bandwidth; /* cold memory included */
    bool mostly_empty; /* the round that it is of had hardly any bytes: no rate of sending */
    struct vfmig_trial trial;   /* work thread, then the control thread, like the next */
    uint64_t snapshot_alone_ns; /* of the first snapshot, without waiting for a CPU */
    /* Control thread. */
    struct vfmig_throttle throttle;
    uint64_t lag_since_ns; /* the destination is rounds behind; 0: it is not */
    uint64_t extra_ns; /* what the last check found on top of the bound; halved with each round */
    atomic_bool throttled; /* the thread that parks the vCPUs, too */
    /* Destination. */
    atomic_uint_fast64_t round_done; /* for the control thread */
    atomic_bool round_posted;
    uint64_t external_load_ns, external_load_alone_ns, journal_ns, journal_alone_ns;
    uint64_t probe_at_ns; /* control thread */
};

void engine_measure_init(struct engine_measure *measure);
void engine_measure_done(struct engine_measure *measure);

/* Source: a round was sent; the logs were read; what the destination says. Any thread. */
/* process_ns: CPU time of all threads, the guest's too. */
void engine_measure_round(struct engine *e, uint64_t bytes, const struct vfmig_mover_progress *moved,
                          uint64_t process_ns);
void engine_measure_log(struct engine *e, uint64_t pages, uint64_t since_ns, uint64_t took_ns);
void engine_measure_taken(struct engine *e, const void *data, size_t size);
void engine_measure_sample(struct vfmig_samples *all, uint64_t took_ns, struct vfmig_samples *alone,
                           uint64_t alone_ns);
void engine_measure_loaded(struct engine *e, const void *data, size_t size);

/* Both sides: what a durable record costs right now. Control thread. */
void engine_measure_journal(struct engine *e);

/* Destination. on_round: on a channel's thread; tell: in the control thread. */
void engine_measure_on_round(void *user, uint64_t round);
void engine_measure_tell(struct engine *e);

/* Source: GO, another round, or the end; slows a guest down that does not converge. */
enum vfmig_converge_verdict engine_decide(struct engine *e);
void engine_measure_input(struct engine *e, bool careful, struct vfmig_converge_input *ret_input);
/* How long to wait before the next round. Control thread, after a decision. */
uint64_t engine_pause(const struct engine *e);
/* The vCPUs get all of their time again. Control thread, or the one that has just parked them. */
void engine_throttle_off(struct engine *e);
/* recheck.c: a part of the memory, timed, with the vCPUs parked; and then, before a device is stopped,
 * whether the limit can be kept: GO, AGAIN (back to the rounds; the guest is to run) or the end. */
int engine_trial(struct engine *e, struct vfmig_error *reterr);
enum vfmig_converge_verdict engine_recheck(struct engine *e);
/* How far off the prediction was. */
void engine_measure_judge(struct engine *e);

#endif
