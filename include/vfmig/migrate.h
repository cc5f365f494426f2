/* SPDX-License-Identifier: BSD-3-Clause */
/* The migration engine for a VMM: give it devices, memory, trackers and a few callbacks; it runs
 * the RFC's save and resume flows over all of them and hands the guest over safely.
 *
 * One object is one side of one attempt. The engine's control thread calls the VM's callbacks, or
 * one thread that it runs for that purpose; never two at a time. A VMM leaves the devices' states,
 * the vCPUs' run state and the trackers alone from start (source) or listen (destination) until
 * the end; everything else of the guest's life (MMIO, interrupts, DMA service) goes on. */
#ifndef VFMIG_MIGRATE_H
#define VFMIG_MIGRATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfmig/error.h"
#include "vfmig/memory.h"
#include "vfmig/state.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vfmig_buffer;  /* grows */
struct vfmig_target;  /* a device: vfmig/target.h */
struct vfmig_tracker; /* somebody who logs writes to guest memory: vfmig/tracker.h */

/* For the callbacks that are given a buffer. Appends; data NULL appends zeroes. -ENOMEM or, past
 * the limit, -ENOBUFS; nothing changed then. */
int vfmig_buffer_append(struct vfmig_buffer *buf, const void *data, size_t size);
/* Appends formatted text without its terminator. */
int vfmig_buffer_printf(struct vfmig_buffer *buf, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define VFMIG_MIGRATION_ID_BYTES 16u
#define VFMIG_PROGRESS_TRACKERS  34u /* trackers shown likewise */
#define VFMIG_PROGRESS_DEVICES   32u /* devices shown one by one in a struct vfmig_progress */

/* Steps of the RFC's flows, as reports name them; tables/flow.def says what each is. */
enum vfmig_step {
    VFMIG_STEP_IDLE = 0, /* "idle": not begun, S0 or R0 */
    VFMIG_STEP_CONNECT,  /* connection, identity, journal */
    VFMIG_STEP_S1,
    VFMIG_STEP_S2,
    VFMIG_STEP_S3,
    VFMIG_STEP_S4,
    VFMIG_STEP_S5,
    VFMIG_STEP_HANDOVER, /* everything was sent: READY, GRANT, RUNNING */
    VFMIG_STEP_S6,
    VFMIG_STEP_UNWIND, /* back to S0 */
    VFMIG_STEP_R0,
    VFMIG_STEP_R1,
    VFMIG_STEP_R2,
    VFMIG_STEP_LOADED, /* Z left for {}: loaded and validated, waits for the grant */
    VFMIG_STEP_R3,
    VFMIG_STEP_R4,
    VFMIG_STEP_DROP, /* destination gave up: devices reset */
    VFMIG_STEP_END,
    VFMIG_STEP_COUNT
};

/* "S1" ...; "unknown" for anything else. */
const char *vfmig_step_name(unsigned step);

/* What the VMM knows about the guest at a moment; what it does not know stays 0. */
struct vfmig_vm_sample {
    uint64_t guest_progress;     /* grows while the guest runs */
    uint64_t dma_in_flight;      /* DMAs that devices have begun and not finished */
    uint64_t interrupts_latched; /* raised by quiet devices and not delivered */
    uint64_t page_faults_open;   /* DMAs that wait for the guest to answer a page request */
    uint64_t peer_accesses;      /* DMAs of devices to other devices, so far */
    uint64_t vcpus_run_since_ns; /* CLOCK_MONOTONIC, when the last of the vCPUs that run began to; 0: some wait */
};

/* Callbacks return 0 or a negative errno with *reterr filled. */
struct vfmig_vm_ops {
    size_t size;      /* sizeof(struct vfmig_vm_ops) */
    uint32_t version; /* VFMIG_VM_OPS_VERSION */

    /* Returns when every vCPU is parked: no instruction, no MMIO from then on (C39). Stopping
     * stopped ones is fine. */
    int (*vcpus_stop)(void *opaque, struct vfmig_error *reterr);
    int (*vcpus_start)(void *opaque, struct vfmig_error *reterr);

    /* NULL: there is no vIOMMU. Devices that have NDMA are quiet, vCPUs run: no new page request
     * can come; returns when every open one is answered and the vIOMMU's queues are idle (C10),
     * or -ETIMEDOUT. A device's N is asked for while page requests are still served: the VMM
     * goes on serving them from its own threads at any time before. */
    int (*viommu_idle)(void *opaque, uint64_t timeout_ns, struct vfmig_error *reterr);

    /* vCPUs, interrupt controllers, clock; vCPUs are parked and every device is !R. At most
     * VFMIG_MAX_VMSTATE bytes are appended. load: vCPUs parked, guest memory complete, devices
     * halted; nothing may run yet. */
    int (*state_save)(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr);
    int (*state_load)(void *opaque, const void *data, size_t size, struct vfmig_error *reterr);

    /* NULL: nothing. External state of all devices (C46-C49): config space, SET_IRQS wiring,
     * MSI-X tables. Saved and sent when the migration begins, and again, final, with the vCPUs
     * parked. load is called with the first copy between reset and Z (every device is in {}), and
     * again with the final one while the devices are in Z; both may be refused. */
    int (*external_save)(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr);
    int (*external_load)(void *opaque, const void *data, size_t size, struct vfmig_error *reterr);

    /* NULL: nothing. The source on its way back had to reset this device: its external state is to be
     * what it was. Called from a thread of its own for each device, before the device's state is
     * looked at again; vCPUs may be running. A failure counts as a device that is lost. */
    int (*device_reset)(void *opaque, uint32_t device, struct vfmig_error *reterr);

    /* NULL: cannot. Takes this share of their time from the vCPUs, so that the guest dirties less;
     * 0 gives it back. Returns at once; parked vCPUs stay parked. Only called with throttle_max, and
     * with 0 before vcpus_start on the way back, and at the end in any case. A failure means that
     * the guest is not slowed down. */
    int (*throttle)(void *opaque, uint32_t percent, struct vfmig_error *reterr);

    /* Appends lines "key=value\n": what both sides must have in common (vCPU count, CPUID, TSC
     * kHz ...). A key that starts with "info." is shown and not compared; one that starts with
     * "need." must be the same there, and the destination may have more of them. Memory and devices
     * are the engine's. */
    int (*identity)(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr);

    /* NULL: nothing known. Any thread of the engine, any time; must be quick and touch no device
     * in a !R state. */
    void (*sample)(void *opaque, struct vfmig_vm_sample *ret_sample);

    /* NULL: nobody cares. The source after RUNNING is confirmed and journalled: the guest is
     * elsewhere, its memory may be freed once the attempt has ended. */
    void (*released)(void *opaque);

    /* NULL: nobody cares. One line of JSON without newline for each event of docs/trace.md, in the
     * order of their times. Any thread of the engine, one call at a time; some of them are inside
     * the downtime, so it must be quick. */
    void (*trace)(void *opaque, const char *json);

    /* NULL: cannot. Destination of a source with the option local: block's memory is what fd has at
     * fd_offset (checked: a sealed memfd that is large enough). It is mapped in place of the VM's own at
     * the same host address, and devices' DMA with it; they are in {}. fd stays the engine's. Until
     * vcpus_start the guest is the source's, and nothing of this VM may write there: what
     * a callback before does must leave memory alone. fd -1: the attempt failed; the VM's own memory
     * is back in its place for the next one, also when the block was never adopted. */
    int (*memory_adopt)(void *opaque, uint32_t block, int fd, uint64_t fd_offset,
                        struct vfmig_error *reterr);

    /* NULL: what a device was given beforehand (vfmig_target_set_handles) must do. The destination:
     * the state of this device is loaded and needs this handle; *ret_value is what it stands for on
     * this host. Called before Z is left, from a thread of its own for each device, several at a
     * time. A failure refuses the guest, which stays where it is. */
    int (*translate_handle)(void *opaque, uint32_t device, uint32_t kind, uint32_t number,
                            uint64_t *ret_value, struct vfmig_error *reterr);
};
#define VFMIG_VM_OPS_VERSION 1u

/* What migrates. Everything is the VMM's and must outlive the attempt. */
struct vfmig_vm {
    const struct vfmig_vm_ops *ops;
    void *opaque;
    struct vfmig_memory memory;
    struct vfmig_target *const *devices; /* connected, in R */
    const char *const *device_ids;       /* the same names in the same order on both sides */
    uint32_t device_count;
    const uint64_t *device_timeouts_ns;  /* each device's own device_timeout_ns, 0: the options'; or NULL */
    struct vfmig_tracker *const *trackers; /* together they see every writer of memory */
    uint32_t tracker_count;
    /* Devices can reach each other's BARs by DMA: refused unless all that peer_devices names have
     * NDMA (C70). Looked at when an attempt starts. */
    bool peer_mappings;
    bool page_faults; /* DMA may wait for the guest to page in: refused unless all have it (C63) */
    const uint8_t *peer_devices; /* VFMIG_PEER_* of each device; NULL: each reaches all others */
};

#define VFMIG_PEER_REACHES 0x1u /* BARs of others are mapped for the device */
#define VFMIG_PEER_REACHED 0x2u /* its BARs are mapped for others */

enum vfmig_on_deadline {
    VFMIG_ON_DEADLINE_FAIL = 0, /* unwind, the guest runs on */
    VFMIG_ON_DEADLINE_FORCE,    /* switch over whatever the downtime */
};

/* How the channels of a migration over TCP are protected. unix:PATH is guarded by its file. Without TLS
 * an address off this host is refused, unless plaintext is asked for. */
struct vfmig_security {
    const char *tls_creds;    /* TLS 1.3 with certificates of both sides: a directory with ca.pem, cert.pem
                                 and key.pem, or as QEMU's x509 credentials have them */
    const char *tls_psk;      /* instead: with a key that both sides know; a file of one line NAME:HEX */
    const char *tls_hostname; /* source: whom the destination's certificate must name, unless it is the
                                 host of the address */
    bool plaintext;
};

/* Zero means the default given. */
struct vfmig_migrate_options {
    uint64_t downtime_limit_ns; /* of the downtime that must be reckoned with; 300 ms */
    uint64_t deadline_ns;       /* for the way to the switchover, from the start; none */
    enum vfmig_on_deadline on_deadline;
    uint32_t throttle_max;      /* a guest that makes no progress towards the limit is slowed down
                                   by up to this percentage of its time, 1 to 99; not at all */
    uint64_t max_bandwidth;     /* bytes per second over all channels, before vCPUs stop; no limit */
    uint32_t channels;          /* 2 */
    uint32_t zstd_level;        /* memory and device data compressed by zstd, 1 to 19; 0: not */
    uint64_t device_timeout_ns; /* for one state change or reset of one device; 10 s */
    uint64_t viommu_timeout_ns; /* for the vIOMMU to become idle; 10 s */
    uint64_t stall_ns;          /* a connection on which no byte moves for so long is lost; 10 s */
    uint64_t reconnect_ns;      /* how long the source tries again once the link is lost and the
                                   outcome open, before it reports it undecided; 10 s. A peer that
                                   is there and does not answer has two device timeouts more */
    const char *journal_dir;    /* directory of the journal; required */
    const char *control_path;   /* put on record for `vfmig status`: the VMM's control socket */
    uint8_t migration_id[VFMIG_MIGRATION_ID_BYTES]; /* all zero: a random one */
    struct vfmig_security security; /* its files are read when the attempt is made */
    bool local; /* source: the destination, on this host at unix:PATH, is given the descriptors of guest
                   memory, and nothing of it is copied. From RUNNING on, which `released` tells, it must
                   not be touched here any more */
    bool confine; /* threads that receive give up all system calls that they have no use for, capabilities,
                     and, where the kernel has Landlock, all files (docs/security.md); -ENOTSUP where
                     that cannot be had. The callback trace is called there, too, and must not need
                     more than to write to what is open. The process cannot change its user meanwhile */
    bool trace_peer; /* source: the callback trace is given the destination's lines, too, when the
                        attempt is over; those that can be had */
};

enum vfmig_migrate_state {
    VFMIG_MIGRATE_NONE = 0,  /* not started */
    VFMIG_MIGRATE_ACTIVE,    /* under way */
    VFMIG_MIGRATE_COMPLETED, /* the guest runs at the destination */
    VFMIG_MIGRATE_FAILED,    /* unwound: the guest runs (ran on) at the source */
    VFMIG_MIGRATE_CANCELLED, /* the same, because the user wished it */
    VFMIG_MIGRATE_UNDECIDED, /* grant sent, no answer: the guest stands still, `vfmig status` */
    VFMIG_MIGRATE_PAUSED,    /* destination: the guest is here and could not be started */
    VFMIG_MIGRATE_SAVED,     /* the guest is in a file; it stands still here */
    VFMIG_MIGRATE_STATE_COUNT
};
const char *vfmig_migrate_state_name(unsigned state);

/* A step as it happened. On the clock of its own side (CLOCK_MONOTONIC). */
struct vfmig_step_report {
    uint64_t start_ns, end_ns; /* 0: did not happen; end 0: under way */
    struct vfmig_vm_sample at_start, at_end;
    bool vcpus_ran; /* for the whole of the step */
};

/* The downtime in parts, each from its own two timestamps. Source clock; 0 when it was not seen.
 * Parts overlap only where said; unaccounted is total minus the sum of the parts. */
struct vfmig_downtime {
    uint64_t total_ns;         /* vCPUs asked to stop .. vCPUs run at the destination, converted */
    uint64_t vcpus_stop_ns;    /* asked .. all parked */
    uint64_t snapshot_ns;      /* S4: log read in SNR */
    uint64_t check_ns;         /* a part of the memory is sent, and looked whether to go on */
    uint64_t devices_stop_ns;  /* S5 begins .. last device is in S */
    uint64_t vm_state_ns;      /* vCPU and external state saved and sent */
    uint64_t final_log_ns;     /* the log read with everything quiet */
    uint64_t final_data_ns;    /* from then until the last byte of memory and devices is sent */
    uint64_t ready_ns;         /* SEAL sent .. READY received */
    uint64_t grant_journal_ns; /* GRANT-SENT on disk */
    uint64_t grant_ns;         /* GRANT sent .. received, converted; wants the destination's report */
    uint64_t resume_ns;        /* destination: GRANT received .. vCPUs run */
    uint64_t unaccounted_ns;
    /* Not parts: shares of the parts above. */
    uint64_t journal_ns;        /* all fsyncs of both sides inside the downtime */
    uint64_t device_load_ns;    /* destination: Z left .. last device in {} */
    uint64_t state_load_ns;     /* destination: vCPU state */
    uint64_t clock_error_ns;    /* of what was converted between the clocks */
};

/* The downtime as it is expected before the switchover, from what was measured while the guest ran.
 * The parts are sums of those of struct vfmig_downtime. */
struct vfmig_prediction {
    uint64_t total_ns;  /* what is expected: medians */
    uint64_t bound_ns;  /* what must be reckoned with: the bad ends, and a margin. This one decides */
    uint64_t stop_ns;   /* vcpus_stop */
    uint64_t logs_ns;   /* snapshot, final_log */
    uint64_t send_ns;   /* check, devices_stop, vm_state, final_data */
    uint64_t ready_ns;  /* ready */
    uint64_t grant_ns;  /* grant_journal, grant */
    uint64_t resume_ns; /* resume */
    /* Not parts: what they were calculated from. */
    uint64_t cold_ns;    /* of send: the destination writes memory for the first time */
    uint64_t devices_ns; /* slowest device: state change and data; send is not shorter */
    uint64_t pages;      /* dirty when the vCPUs are parked */
    uint64_t cold_pages; /* of them */
    uint64_t bandwidth;  /* bytes per second that are expected once they are */
};

/* A tracker and what reading its log has cost. */
struct vfmig_tracker_report {
    char name[16];      /* "kvm-bitmap", "kvm-ring", "pagemap", "wp", "device", "own" */
    uint64_t page_bytes; /* of its log */
    uint32_t syncs;     /* times it was read */
    uint32_t failures;  /* of them, times that it had lost what it knew and all was taken as dirty */
    uint64_t full;      /* times that a vCPU waited for its ring to be emptied */
    uint64_t sync_ns;   /* all reads */
    uint64_t longest_ns;
};

/* A snapshot of either side, and its final report. */
struct vfmig_progress {
    enum vfmig_migrate_state state;
    enum vfmig_step step;
    struct vfmig_error error; /* code 0: none. Why it failed, or what went wrong and was survived */
    uint8_t migration_id[VFMIG_MIGRATION_ID_BYTES];
    uint32_t epoch;

    uint32_t device_count;
    uint8_t device_state[VFMIG_PROGRESS_DEVICES]; /* enum vfmig_state, of the first ones */
    uint32_t devices_lost; /* could not be brought back to R, not even by reset */
    uint32_t devices_reset; /* source: brought back to R by a reset only, and fresh for the guest */

    uint64_t started_ns, ended_ns; /* CLOCK_MONOTONIC */
    uint64_t memory_bytes;         /* size of the guest's memory */
    uint32_t rounds;               /* passes over memory while vCPUs ran; the first is everything */
    uint64_t remaining_bytes;      /* of the round under way, or known dirty */
    uint64_t rate_bytes;           /* per second, sent */
    uint64_t dirty_bytes;          /* per second, as the trackers see it */
    uint64_t predicted_downtime_ns; /* of a switchover right now; then: with the vCPUs parked */
    uint64_t decided_downtime_ns;   /* the same, when it was decided to stop them */
    uint64_t downtime_limit_ns;
    struct vfmig_prediction prediction;
    int32_t prediction_error;  /* in thousandths of the downtime that came: positive: it was shorter */
    int32_t decided_error;     /* the same, of decided_downtime_ns */
    uint32_t returns;          /* times that the guest was stopped in vain and ran on */
    uint32_t throttle_percent; /* in force, or when the vCPUs stopped */
    uint32_t stuck_rounds;     /* in a row that brought the limit no nearer */
    bool not_converging;       /* and nothing is left that could be done: it goes on like this until
                                  the deadline, or until somebody cancels */
    uint64_t sent_running_bytes;   /* on all channels while vCPUs ran */
    uint64_t sent_stopped_bytes;   /* after */
    uint64_t memory_running_bytes; /* guest memory (zero pages as pages) moved while vCPUs ran */
    uint64_t memory_stopped_bytes;
    uint64_t pages, zero_pages;    /* sent in all rounds */
    uint64_t device_bytes;         /* device data */
    uint64_t working_set_pages;    /* distinct pages that the trackers saw dirty */
    uint64_t dma_in_flight;        /* when N was asked for */
    uint64_t page_faults_open;     /* the same */
    uint64_t interrupts_latched;   /* while everything was quiet */
    uint64_t final_log_pages;      /* found by the snapshot with everything quiet */

    int64_t clock_offset_ns; /* the peer's clock reads ours + offset */
    uint64_t clock_error_ns, rtt_ns;

    struct vfmig_step_report steps[VFMIG_STEP_COUNT];
    struct vfmig_downtime downtime;
    uint64_t journal_total_ns; /* all fsyncs of this side */
    uint32_t journal_writes;

    uint32_t tracker_count; /* source; those of the first VFMIG_PROGRESS_TRACKERS are shown */
    struct vfmig_tracker_report trackers[VFMIG_PROGRESS_TRACKERS];
};

/* --- Source --- */

struct vfmig_source;

/* Checks vm and options (copied), opens the journal; -EINVAL, or what the journal said. */
int vfmig_source_new(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                     struct vfmig_source **ret_source, struct vfmig_error *reterr);
/* "tcp:HOST:PORT", "unix:PATH", or "file:PATH" of a new file: then the end is SAVED, and the guest stands
 * still with its memory kept until free, or until an operator discards the file. Returns at once;
 * everything else is told by status. Once only. */
int vfmig_source_start(struct vfmig_source *source, const char *uri, struct vfmig_error *reterr);
/* Unwinds unless the grant is already on its way; status tells. Any thread, any time. */
void vfmig_source_cancel(struct vfmig_source *source);
/* Any thread, any time. */
void vfmig_source_status(struct vfmig_source *source, struct vfmig_progress *ret_progress);
/* Until the state is no longer ACTIVE: 0, or the code of progress.error when it is neither COMPLETED
 * nor SAVED; -ETIMEDOUT. UINT64_MAX waits for ever. */
int vfmig_source_wait(struct vfmig_source *source, uint64_t timeout_ns, struct vfmig_error *reterr);
/* For a process that ends: cancels, and what cannot be decided here any more is left to the journal
 * (UNDECIDED), so that every wait ends. Nothing but status and free may follow. */
void vfmig_source_quit(struct vfmig_source *source);
/* Quits, joins all threads. NULL is fine. The guest is left as it is. */
void vfmig_source_free(struct vfmig_source *source);

/* A dry run: connects to the destination at uri, both sides compare what they are (memory, devices,
 * what identity says) and look whether they could (devices, journal, memory), and nothing is
 * changed. Everything that stands against the migration is told to found, as a sentence: of the
 * source, or of the destination. Returns when it is done; calls identity and found in this thread;
 * not while a migration of this VM is under way. 0: nothing was found. -EPERM: something was. Other
 * codes: the destination did not answer. */
int vfmig_source_check(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                       const char *uri, void (*found)(void *opaque, bool source, const char *text),
                       void *opaque, struct vfmig_error *reterr);

/* --- Destination --- */

struct vfmig_destination;

/* vm has the same memory map, empty, devices in R, vCPUs parked. Listens on uri; one attempt at a
 * time, and after a refused or failed one the next is awaited with fresh devices. */
int vfmig_destination_new(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                          struct vfmig_destination **ret_destination, struct vfmig_error *reterr);
int vfmig_destination_listen(struct vfmig_destination *destination, const char *uri,
                             struct vfmig_error *reterr);
/* Restores the guest of a file that the source was told as "file:PATH"; instead of listen. The file is
 * claimed once its identity fits, and given back if the attempt fails before the guest runs. clone:
 * the file is only read, whoever has claimed or discarded it; the copy is a migration of its own.
 * One attempt: wait says how it ended. */
int vfmig_destination_restore(struct vfmig_destination *destination, const char *path, bool clone,
                              struct vfmig_error *reterr);
void vfmig_destination_status(struct vfmig_destination *destination,
                              struct vfmig_progress *ret_progress);
/* Until a guest was taken over (0), could not be started (PAUSED), or the wait for one was
 * cancelled (-ECANCELED); failed attempts are survived and seen in status. Of restore: why it failed.
 * -ETIMEDOUT. */
int vfmig_destination_wait(struct vfmig_destination *destination, uint64_t timeout_ns,
                           struct vfmig_error *reterr);
/* The guest that could not be started (PAUSED) runs now: the journal says so from then on. */
void vfmig_destination_started(struct vfmig_destination *destination);
/* Refuses what can be refused and stops listening. */
void vfmig_destination_cancel(struct vfmig_destination *destination);
/* For a process that ends: cancels, gives a source that still has the guest a moment to take it back,
 * and ends every wait (-ECANCELED). Nothing but status and free may follow. */
void vfmig_destination_quit(struct vfmig_destination *destination);
/* The bound TCP port, for "tcp:HOST:0"; 0 for a unix socket. */
uint16_t vfmig_destination_port(const struct vfmig_destination *destination);
/* Keeps answering a source that asks for the outcome until then. NULL is fine. */
void vfmig_destination_free(struct vfmig_destination *destination);

#ifdef __cplusplus
}
#endif
#endif
