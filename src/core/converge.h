/* SPDX-License-Identifier: BSD-3-Clause */
/* When to switch over: the downtime that a switchover right now would cost, from what was measured
 * so far. Pure. Better another round than an overshoot: whatever is not known yet is estimated
 * high, and what is dirtied on the way to the stop is counted in.
 *
 * The same calculation is made twice. From the middle of what was measured it tells what is to be
 * expected, which is reported and compared with what came; from the bad end of it (VFMIG_CAREFUL_*)
 * it tells what must be reckoned with, and that decides. */
#ifndef VFMIG_CORE_CONVERGE_H
#define VFMIG_CORE_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/samples.h"
#include "vfmig/migrate.h"

/* What goes into a calculation; 0 means not known. */
struct vfmig_converge_input {
    /* Memory. */
    uint64_t dirty_pages;       /* known dirty now, after the log was read */
    uint64_t cold_pages;        /* of them, the destination has never written */
    uint64_t memory_pages;      /* all there are; more cannot be dirty */
    uint64_t dirty_pages_per_s; /* until the vCPUs are parked */
    uint64_t until_stop_ns;     /* from that reading until then, when it is more than the parts */
    uint64_t bandwidth;         /* bytes per second on all channels together, into warm memory */
    uint64_t cold_page_ns;      /* what writing one for the first time costs more */
    uint64_t channels;          /* take turns at that */
    uint64_t drain_ns;          /* from the last byte sent until the destination has it */
    /* Devices. */
    uint64_t device_bytes;      /* what all devices together still have to say once stopped */
    uint64_t slowest_device_ns; /* its remaining bytes at its own rate, saving or loading */
    uint64_t change_ns;         /* slowest state change of a device here */
    uint64_t peer_load_ns;      /* the same at the destination, where the data is loaded */
    uint64_t peer_change_ns;    /* and of the two that follow */
    bool devices;               /* there are any */
    /* The rest. */
    uint64_t stop_ns;        /* vCPUs asked to stop until all are parked */
    uint64_t log_ns;         /* reading and clearing all logs */
    uint64_t vm_state_bytes;
    uint64_t vm_state_ns;    /* saving it */
    uint64_t vm_load_ns;     /* loading it */
    uint64_t journal_ns;     /* one durable record of the source */
    uint64_t peer_journal_ns;
    uint64_t rtt_ns;
    uint32_t rounds; /* while vCPUs ran, the first one included */
    bool usual;      /* parts as they mostly are, and not at least what they may be */
};

/* What was measured more than once. */
struct vfmig_measured {
    struct vfmig_samples bandwidth, dirty_rate; /* per second */
    struct vfmig_samples alone; /* bandwidth without the vCPUs beside it: what is to be expected */
    struct vfmig_samples until_stop, drain, stop, log, vm_state, vm_load, journal, peer_journal;
    /* The same without the waits for a CPU that the guest had: what is to be expected. */
    struct vfmig_samples vm_state_alone, vm_load_alone, journal_alone, peer_journal_alone;
};

/* Which end of the measurements the careful calculation takes. */
#define VFMIG_CAREFUL_LOW    10u /* percent: of rates that help */
#define VFMIG_CAREFUL_HIGH   90u /* of times, and of rates that hinder */
#define VFMIG_USUAL_SYNC     25u /* and the other one of what syncs with the disk take */
#define VFMIG_CAREFUL_MARGIN 8u  /* and one part in so many of the whole on top */

/* Puts what was measured into an input; the other fields are left alone. */
void vfmig_measured_fill(const struct vfmig_measured *measured, bool careful,
                         struct vfmig_converge_input *input);

enum vfmig_converge_verdict {
    VFMIG_CONVERGE_AGAIN = 1,
    VFMIG_CONVERGE_GO,
    VFMIG_CONVERGE_GIVE_UP, /* the deadline has passed */
};

struct vfmig_converge {
    uint64_t limit_ns;    /* of the downtime */
    uint64_t deadline_ns; /* absolute, 0: none */
    bool force;           /* at the deadline: go whatever it costs */
    uint64_t extra_ns;    /* on top of the bound, because a check found that much more */
};

#define VFMIG_CONVERGE_MIN_ROUNDS 2u /* one round says nothing about the dirty rate */

/* Parts and their sum; the bound is left alone. */
void vfmig_converge_predict(const struct vfmig_converge_input *input,
                            struct vfmig_prediction *ret_prediction);
/* What must be reckoned with, from the careful input. */
uint64_t vfmig_converge_bound(const struct vfmig_converge_input *careful);
enum vfmig_converge_verdict vfmig_converge_decide(const struct vfmig_converge *converge,
                                                  const struct vfmig_converge_input *careful,
                                                  uint64_t now_ns);

/* --- the check, with the vCPUs parked and no device stopped --- */

/* A part of the memory that was sent, until the destination had it. */
struct vfmig_trial {
    uint64_t bytes, ns; /* 0: none */
    uint32_t parts;     /* that were waited for, one after the other */
};

/* What is known by then; dirty_pages, cold_pages and devices of the input are what is left. */
struct vfmig_converge_parked {
    uint64_t stop_ns, snapshot_ns; /* the parts that are over */
    uint64_t snapshot_alone_ns;    /* without waiting for a CPU; 0: nobody knows */
    uint64_t since_ns;             /* from the end of the snapshot until now */
    struct vfmig_trial trial;
};

/* Of what is dirty a trial takes one part in VFMIG_TRIAL_PART, within these pages; less says little
 * about the rate, more is no trial any more. */
#define VFMIG_TRIAL_PART 3u
#define VFMIG_TRIAL_MIN  384u
#define VFMIG_TRIAL_MAX  32768u
/* How many pages to try. None where they would be more than a third of all, or where waiting for the
 * answer costs a notable part of the limit. */
uint64_t vfmig_converge_trial(uint64_t dirty_pages, uint64_t rtt_ns, uint64_t limit_ns);

/* It was so much slower than the rounds before (bytes per second) that something was in its way: try again. */
bool vfmig_converge_doubts(const struct vfmig_trial *trial, uint64_t bandwidth);
/* Both together, or the second alone where the first was held up. */
struct vfmig_trial vfmig_converge_trials(const struct vfmig_trial *first, const struct vfmig_trial *second);

void vfmig_converge_predict_parked(const struct vfmig_converge_input *input,
                                   const struct vfmig_converge_parked *parked,
                                   struct vfmig_prediction *ret_prediction);
/* The margin is on what is still to come. */
uint64_t vfmig_converge_bound_parked(const struct vfmig_converge_input *careful,
                                     const struct vfmig_converge_parked *parked);

/* So often a guest is stopped in vain; then the deadline's rule holds at once. */
#define VFMIG_MAX_RETURNS 3u
/* AGAIN: back to the rounds. */
enum vfmig_converge_verdict vfmig_converge_recheck(const struct vfmig_converge *converge,
                                                   uint64_t bound_ns, uint32_t returns,
                                                   uint64_t now_ns);

/* How far the expectation was from what came, in thousandths of the latter: positive when it came
 * to less. 0 when nothing was measured. */
int32_t vfmig_converge_error(uint64_t predicted_ns, uint64_t measured_ns);

/* Distinct pages per second that are dirtied in a moment, from the distinct pages that were seen
 * dirty in a longer time: of a working set that is written all over in that time the reading shows
 * no more than its size, however often each page was written. Between 1 and 3 times the plain
 * quotient; UINT64_MAX is never returned. */
uint64_t vfmig_converge_momentary(uint64_t pages, uint64_t working_set_pages, uint64_t time_ns);

/* A reading of all logs: pages that it found, and how long it took. */
struct vfmig_log_reading {
    uint64_t pages, ns;
};

/* What reading them would take that finds so few pages, from two readings that found more: a part
 * of the time goes with the pages, and the final ones find hardly any. Never more than the shorter
 * reading took, never less than nothing. */
uint64_t vfmig_converge_log(const struct vfmig_log_reading *a, const struct vfmig_log_reading *b,
                            uint64_t pages);

/* The time that a round would have taken without the vCPUs beside it: of their CPU time each CPU
 * would have given back its share, but not more than the senders waited for a CPU. */
uint64_t vfmig_converge_alone(uint64_t busy_ns, uint64_t vcpu_ns, uint64_t waited_ns, uint32_t cpus);

#endif
