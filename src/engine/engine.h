/* SPDX-License-Identifier: BSD-3-Clause */
/* What source and destination share: one control thread that runs the machines, a thread per
 * device that carries out what blocks there, two for the rest, and the events they all post.
 *
 * The control thread owns the machines (flow, handover), the journal and the attempt's life. What
 * other threads read is either constant during an attempt or under one of the locks. */
#ifndef VFMIG_ENGINE_ENGINE_H
#define VFMIG_ENGINE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "core/converge.h"
#include "core/flow.h"
#include "core/handover.h"
#include "dirty/tracker.h"
#include "engine/channel.h"
#include "engine/journal.h"
#include "engine/measure.h"
#include "engine/memory_mover.h"
#include "engine/resolve.h"
#include "engine/save_file.h"
#include "engine/trace.h"
#include "target/target.h"
#include "vfmig/migrate.h"

struct engine;
struct engine_link;

#define ENGINE_MAX_EVENTS   2048u
#define ENGINE_MAX_MESSAGES 64u /* of the peer, waiting; it repeats what is dropped */

enum engine_event_kind {
    ENGINE_EVENT_FLOW = 1,   /* flow, error */
    ENGINE_EVENT_MESSAGE,    /* msg, at_ns */
    ENGINE_EVENT_LINK_LOST,  /* error, generation */
    ENGINE_EVENT_REPORT,     /* destination's times have arrived */
    ENGINE_EVENT_ROUND,      /* destination: all of a round is here */
    ENGINE_EVENT_CONNECTION, /* destination: a connection with its first record is waiting */
    ENGINE_EVENT_RESOLVE,    /* ask is filled */
    ENGINE_EVENT_FILE,       /* source: the file is complete; error says that it is not */
    ENGINE_EVENT_CANCEL,
    ENGINE_EVENT_STARTED, /* destination: a guest that could not be started runs after all */
    ENGINE_EVENT_QUIT,
};

struct engine_event {
    enum engine_event_kind kind;
    uint32_t generation; /* of the link it came from */
    struct vfmig_flow_event flow;
    struct vfmig_error error;
    struct vfmig_ho_msg msg;
    uint64_t at_ns;
};

/* Moments on this side's clock; 0: has not happened. */
struct engine_stamps {
    uint64_t stop_asked, parked, snapshot_begin, snapshot_end, devices_asked, devices_stopped;
    uint64_t state_begin, state_end, log_begin, log_end, sent, ready, grant_journal_begin,
        grant_journal_end, grant_sent;
    uint64_t grant_received, running; /* destination */
    uint64_t load_begin, load_end, state_load_begin, state_load_end;
    uint64_t journal_stopped_ns; /* fsyncs since the vCPUs were parked */
};

/* What the destination tells when the guest runs; on its own clock. */
struct engine_report {
    bool valid;
    uint64_t grant_received, running, journal_ns, device_load_ns, state_load_ns;
};

/* An operator's decision on its way to the control thread and back. */
struct engine_ask {
    struct vfmig_resolve_request request;
    struct vfmig_error error;
    int ret;
    uint64_t asked, answered; /* numbers; equal when nothing is under way */
};

enum device_command { DEVICE_NONE = 0, DEVICE_GO, DEVICE_DATA, DEVICE_RECOVER, DEVICE_QUIT };

struct device_job {
    enum device_command command;
    uint32_t arg; /* state or VFMIG_WANT_RESET; enum vfmig_work */
};

/* A received segment that waits to be loaded; size 0 with end set: nothing follows. */
struct segment {
    struct segment *next;
    bool end;
    bool more; /* a part: the rest of the portion follows */
    size_t size;
    uint8_t data[];
};

struct device_worker {
    struct engine *engine;
    struct vfmig_target *target;
    const char *id;
    uint32_t index;
    pthread_t thread;
    bool started, made;
    uint64_t timeout_ns;      /* for one change, one piece of data */
    _Atomic uint64_t call_ns; /* since when the device has been asked for, or given, data; 0: it is not */

    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct device_job jobs[4]; /* two at most, but for sabotages of the barrier */
    uint32_t job_count;

    _Atomic uint64_t credit_bytes; /* source: loaded at the destination; changes under inbox_lock */

    /* Source: what was sent. */
    uint64_t segments, bytes;
    uint64_t left_bytes;    /* estimate of what the stopped device still says; under lock */
    uint64_t rate_bytes;    /* per second, as measured */
    uint64_t load_rate;     /* the destination's, as told */
    struct vfmig_samples changes; /* what its state changes took; both sides, under lock */
    /* Destination: what has arrived; under lock. */
    struct segment *head, **tail;
    bool cut; /* the link is gone: what has not come by then never comes */
    uint64_t received_segments, received_bytes;
    uint64_t loaded_bytes, loaded_ns, loaded_told;
    struct vfmig_buffer partial; /* receiver's thread only, as: */
    size_t passed;               /* bytes of the segment under way that are passed on already */
    uint64_t told_bytes;   /* by CREDIT; its own thread only */
    uint64_t queued_bytes; /* under inbox_lock */
    bool ended;
};

/* A thread that does works one after the other. */
struct work_thread {
    struct engine *engine;
    pthread_t thread;
    bool started, quit;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    uint32_t jobs[VFMIG_WORK_COUNT];
    uint32_t job_count;
    uint32_t current; /* the work that it is doing; VFMIG_WORK_COUNT: none */
};

struct engine {
    enum vfmig_flow_role role;
    struct vfmig_vm vm;
    struct vfmig_migrate_options options;
    char journal_dir[256], control_path[256], uri[256];
    struct vfmig_tls_creds *tls; /* NULL: plain */
    char tls_name[256];          /* whom the destination's certificate must name */

    /* Events to the control thread. */
    pthread_mutex_t event_lock;
    pthread_cond_t event_wake;
    struct engine_event *events; /* ring of ENGINE_MAX_EVENTS */
    uint32_t event_head, event_count, message_count;

    /* Control thread. */
    pthread_t control;
    bool control_started;
    struct vfmig_flow flow;
    bool flow_active; /* begun and not ended */
    struct vfmig_handover handover;
    bool handover_active;
    struct vfmig_journal *journal;
    struct vfmig_error failure; /* the first one of the attempt */
    bool cancelled, run_early, finished, quit, closing;
    bool mute; /* destination: the source expects no message before its offer */
    uint32_t epoch;
    uint64_t shutdown_at_ns; /* when an aborted attempt that still sends is cut off; 0: never */
    /* standing.c. When it was last seen to who is late; 0: nobody was to be. How long nobody was since the guest
     * was asked to stop. Answers that came meanwhile have been given their time. */
    uint64_t looked_ns, stood_ns;
    bool spared;
    uint64_t retry_at_ns, give_up_at_ns, reconnect_at_ns, beat_at_ns;
    uint64_t tell_until_ns; /* source, unwound: how long a destination that has not heard is looked for */
    uint64_t again_at_ns;  /* source: when the next round begins; 0: it need not wait */
    uint64_t answer_at_ns; /* source: when a destination that is there must have answered; 0: none */
    uint8_t answer_state;  /* enum vfmig_ho_state that it waits in */
    int (*do_work)(struct engine *e, uint32_t work, struct vfmig_error *reterr);
    int (*do_data)(struct engine *e, struct device_worker *dev, bool final,
                   struct vfmig_error *reterr);
    void (*on_action)(struct engine *e, const struct vfmig_flow_action *action);
    void (*on_handover)(struct engine *e, const struct vfmig_ho_actions *actions);

    /* Workers. */
    struct device_worker *devices;
    struct work_thread memory_thread, vm_thread;
    atomic_bool abort;      /* what runs is of no use any more */
    atomic_bool peer_stopped; /* destination: so the source says of its guest */
    bool told_stopped;        /* source: said last; work threads, one after the other */
    atomic_bool round_over; /* memory of this round is through: pre-copy data may end too */

    /* The link. generation counts links, so that news of an old one are told from the new. */
    pthread_mutex_t link_lock; /* channels and receiver against status and shutdown */
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    uint32_t channel_count;
    struct vfmig_receiver *receiver;
    struct engine_link *link;
    uint32_t generation;
    bool linked;

    /* A file in the peer's place (file_link.c); NULL when there is a peer. */
    struct vfmig_save_file *file;
    pthread_t file_thread; /* source: completes it */
    bool file_ending;      /* the thread exists */
    atomic_bool file_give_up;
    bool clone; /* destination: the file is read and not claimed */
    uint8_t file_id[VFMIG_MIGRATION_ID_BYTES]; /* destination: the file's own, or the clone's */
    uint32_t file_epoch; /* destination: number of the claim; 1 of a clone */

    /* Source: memory. Work threads, one after the other; map's words are atomic. */
    struct vfmig_dirty_map map, fresh, seen;
    bool maps_made, trackers_on;
    _Atomic(struct vfmig_tracker *) asked_tracker; /* and has not answered */
    struct vfmig_mover *mover; /* under link_lock for status */
    uint64_t round, stop_round;
    uint64_t last_sync_ns, last_quiet_ns, dirty_pages, cold_pages, dirty_rate;
    struct engine_measure measure;
    uint64_t bytes_at_stop, pages_at_stop;
    struct vfmig_clock_offset clock;
    struct vfmig_buffer blob;
    uint64_t vm_state_bytes;
    uint64_t final_log_pages;
    uint32_t rounds;

    /* Destination: what arrived for the works. */
    pthread_mutex_t inbox_lock;
    pthread_cond_t inbox_wake;
    struct vfmig_buffer inbox[4]; /* by kind of VMSTATE */
    bool inbox_full[4];
    bool inbox_cut; /* the link is gone: what has not come by then never comes */
    size_t queued_bytes, unfinished_bytes; /* of all devices' data: waits to be loaded; in pieces */
    uint32_t stopped_channels; /* what they bring has no room */
    uint64_t window; /* of one device's data (record.h); source: 0 without a destination that answers */
    uint64_t final_round;
    bool local, adopted; /* memory is not sent but passed on; the VM was given it */
    struct vfmig_fds shared; /* under inbox_lock until adopted */
    uint64_t shared_offset[VFMIG_MAX_MSG_FDS];
    struct engine_report report;
    bool report_lost; /* source: not to be expected, the link broke */
    char peer_reason[232];

    /* Told to others. */
    pthread_mutex_t status_lock;
    pthread_cond_t status_changed;
    struct vfmig_progress progress;
    struct engine_stamps stamps;
    struct engine_ask ask;
    pthread_mutex_t trace_lock;
    uint64_t trace_lines; /* since the last HEAD */
    bool trace_wanted;    /* destination: its source asked; source: more of the peer's may come */
    struct vfmig_buffer trace_kept; /* destination: lines with their terminators */
    size_t trace_taken;             /* source: bytes of the peer's */
};

/* Kinds of VMSTATE; 16 bytes {u32 kind, u32 0, u64 final round} come before the blob. */
enum {
    VMSTATE_EXTERNAL_FIRST = 1,
    VMSTATE_EXTERNAL_FINAL = 2,
    VMSTATE_VCPUS = 3,
};
#define VMSTATE_HEAD_BYTES 16u

/* engine.c */
int engine_init(struct engine *e, enum vfmig_flow_role role, const struct vfmig_vm *vm,
                const struct vfmig_migrate_options *options, struct vfmig_error *reterr);
void engine_done(struct engine *e);
void engine_post(struct engine *e, const struct engine_event *event);
/* Waits until an event comes or it is until_ns (UINT64_MAX: for ever): true with an event. */
bool engine_next(struct engine *e, uint64_t until_ns, struct engine_event *ret_event);
uint64_t engine_wakeup(const struct engine *e);
void engine_sleep_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns);
void engine_cond_init(pthread_cond_t *cond);
bool engine_still_running(const struct engine *e); /* source: not on the way to the switchover yet */
uint64_t engine_deadline(const struct engine *e); /* of the way to the switchover; 0: none */

/* drive.c: the machines */
int engine_flow(struct engine *e, const struct vfmig_flow_event *event);
int engine_flow_kind(struct engine *e, enum vfmig_flow_event_kind kind);
int engine_handover(struct engine *e, enum vfmig_ho_event_kind kind);
int engine_handover_msg(struct engine *e, const struct vfmig_ho_msg *msg);
void engine_note(struct engine *e, const struct vfmig_error *error); /* keeps the first failure */
bool engine_due(uint64_t *at_ns, uint64_t now_ns);
void engine_tick(struct engine *e, uint64_t now_ns); /* deadlines of the flow */

/* standing.c: before any limit is looked at. While there are limits, it is called again by engine_look_at. */
void engine_look(struct engine *e, uint64_t now_ns);
uint64_t engine_look_at(const struct engine *e); /* 0: no need */
uint64_t engine_patience(const struct engine *e); /* source: with a destination that is there and does not answer */
int engine_flow_init(struct engine *e); /* of an attempt whose workers have started */
void engine_beat(struct engine *e, uint64_t now_ns);

/* engine_resolve.c */
int engine_resolve(struct engine *e, const struct vfmig_resolve_request *request,
                   struct vfmig_error *reterr); /* any thread */
void engine_resolve_asked(struct engine *e);    /* control thread */

/* workers.c */
int engine_workers_start(struct engine *e, struct vfmig_error *reterr);
void engine_workers_stop(struct engine *e);
void engine_workers_free(struct engine *e);
void engine_device_job(struct device_worker *dev, enum device_command command, uint32_t arg);
void engine_work_job(struct engine *e, uint32_t work);

/* link.c */
int engine_link_new(struct engine *e, struct vfmig_channel **channels, uint32_t count,
                    uint32_t receive_count, const struct vfmig_memory *memory,
                    vfmig_record_fn on_record, struct vfmig_error *reterr);
void engine_link_shutdown(struct engine *e); /* unblocks whoever is inside; any thread */
void engine_link_free(struct engine *e, bool bye);
/* That a connection broke is often a consequence: puts what the receiver found in its place. */
void engine_link_cause(struct engine *e, struct vfmig_error *error);
int engine_send_msg(struct engine *e, const struct vfmig_ho_msg *msg, struct vfmig_error *reterr);
/* HANDOVER, PROGRESS and ERROR records of either side; 1: not one of them. */
int engine_common_record(struct engine *e, const struct vfmig_record *record,
                         struct vfmig_error *reterr);
int engine_credit_record(struct engine *e, const struct vfmig_record *record,
                         struct vfmig_error *reterr);
int engine_send_vmstate(struct engine *e, uint32_t kind, uint64_t final_round,
                        const struct vfmig_buffer *blob, struct vfmig_error *reterr);
int engine_ho_msg_decode(const struct vfmig_record *record, struct vfmig_ho_msg *ret_msg,
                         struct vfmig_error *reterr);
/* First byte of a PROGRESS record. */
#define PROGRESS_ALIVE  'a' /* nothing but that */
#define PROGRESS_REPORT 'r' /* struct engine_report */
#define PROGRESS_TAKEN  'm' /* struct engine_taken: what the destination measured */
#define PROGRESS_LOADED 'l' /* of a device: index, bytes loaded, and how long that took */
#define PROGRESS_STOPPED 's' /* one byte: the guest is about to stop (1), or runs again (0) and wants the CPUs */
#define PROGRESS_REASON 't' /* why the destination will refuse */
#define PROGRESS_FINDING 'f' /* what stands against a migration, to one that only asks */
#define PROGRESS_TRACE  'e' /* a line of the destination's trace; none: that was all */
int engine_send_progress(struct engine *e, char kind, const void *data, size_t size);
int engine_send_report(struct engine *e, const struct engine_report *report);
/* Source: PROGRESS_STOPPED, unless that was said last. Work threads. */
void engine_tell_stopped(struct engine *e, bool stopped);

/* file_link.c: a file stands in for the other side */
/* secure.c. load: *ret_creds is NULL when there are none. check: before anything is connected or awaited;
 * peer: of a connection. uri: whether TLS belongs on it. */
int engine_secure_load(const struct vfmig_security *security, bool server,
                       struct vfmig_tls_creds **ret_creds, struct vfmig_error *reterr);
int engine_secure_check(const struct vfmig_security *security, const char *uri, struct vfmig_error *reterr);
/* Listens where nobody can read along, or where that was asked for. */
int engine_secure_listen(const struct vfmig_security *security, const char *uri, int *ret_fd,
                         struct vfmig_error *reterr);
int engine_secure_peer(const struct vfmig_security *security, const char *uri, int fd,
                       struct vfmig_error *reterr);
int engine_secure_init(struct engine *e, struct vfmig_error *reterr); /* role and options are known */
bool engine_secure_uri(const char *uri);
void engine_secure_name(const struct vfmig_security *security, const char *uri, char *ret_name,
                        size_t size);

bool engine_uri_is_file(const char *uri, const char **ret_path);
/* The source's stream into a file: HELLO and IDENTITY are in it then. */
int engine_file_create(struct engine *e, struct vfmig_error *reterr);
/* What would be sent to the other side; what the file answers comes as an event. */
int engine_file_msg(struct engine *e, const struct vfmig_ho_msg *msg, struct vfmig_error *reterr);
/* A message that the source wrote into the file: made one of this claim. */
int engine_file_heard(struct engine *e, struct vfmig_ho_msg *msg, struct vfmig_error *reterr);
void engine_file_done(struct engine *e); /* after the link has gone */

/* local.c: memory that is passed on and not sent */
#define ENGINE_LOCAL_NEED "local-memory@" /* and the host's boot id: a value of the line "needs" */
#define ENGINE_LOCAL_INFO "info.adopts-memory"
#define ENGINE_BOOT_ID_BYTES 64u
int engine_boot_id(char out[ENGINE_BOOT_ID_BYTES]);
/* Whether a source can pass its memory on to uri; else why not. */
int engine_local_check(const struct vfmig_vm *vm, const char *uri, struct vfmig_error *reterr);
/* Source, once it was accepted. */
int engine_local_send(struct engine *e, struct vfmig_channel *channel, struct vfmig_error *reterr);
/* Destination: whether its source wants to; RAMFDS came (receiver's thread); devices are in {}: the VM
 * takes it; the attempt failed and devices are fresh: the VM has its own again. */
bool engine_local_asked(const char *identity);
int engine_local_record(struct engine *e, const struct vfmig_record *record,
                        struct vfmig_error *reterr);
int engine_local_adopt(struct engine *e, struct vfmig_error *reterr);
int engine_local_return(struct engine *e, struct vfmig_error *reterr);
void engine_local_forget(struct engine *e);

/* identity.c */
int engine_identity(const struct vfmig_vm *vm, struct vfmig_buffer *out, struct vfmig_error *reterr);
/* What the stream of this source will need: a line that the destination answers for. */
int engine_identity_needs(const struct vfmig_migrate_options *options, struct vfmig_buffer *out,
                          struct vfmig_error *reterr);
/* After it was accepted: the source's channels begin to compress, if they are to. */
int engine_pack(struct engine *e, struct vfmig_error *reterr);
/* Somebody who wants to know all that stands against a migration, and not only the first of it. */
struct engine_findings {
    void (*found)(void *opaque, const char *text);
    void *opaque;
};
/* 0 when text (the peer's) agrees with ours, else -EINVAL naming the first difference; with all,
 * every one is told, and it is 0. */
int engine_identity_compare(const char *ours, const char *theirs, const struct engine_findings *all,
                            struct vfmig_error *reterr);
/* What no migration can do anything about: C63, C70, devices that cannot migrate. */
int engine_vm_check(const struct vfmig_vm *vm, const struct engine_findings *all,
                    struct vfmig_error *reterr);
/* The same and, for a side where the guest is to arrive, that nothing stands against loading. */
int engine_vm_check_incoming(const struct vfmig_vm *vm, const struct engine_findings *all,
                             struct vfmig_error *reterr);

/* check.c: a source that only asks is told all findings and a verdict; nothing changes. */
bool engine_is_dry_run(const char *identity);
void engine_answer_dry_run(struct engine *e, const char *identity, const char *busy,
                           struct vfmig_channel *channel);

/* engine_trace.c */
/* engine_trace(e, ROW, VFMIG_S(name), ...): a line of the trace, fields as in tables/trace.def. */
#define engine_trace(e, event, ...)                                                                \
    engine_trace_event((e), VFMIG_TRACE_##event,                                                   \
                       (const struct vfmig_trace_value[]){__VA_ARGS__ __VA_OPT__(, ){0}})
void engine_trace_event(struct engine *e, enum vfmig_trace_event event,
                        const struct vfmig_trace_value *values);
void engine_trace_begin(struct engine *e, const uint8_t *id, uint32_t epoch);
void engine_trace_vmstate(struct engine *e, uint32_t kind, uint64_t bytes, int ret);
int engine_vcpus_start(struct engine *e, struct vfmig_error *reterr); /* and traces it */
/* The destination's lines at the source: it wishes for them in its identity, they come when the
 * attempt is over. */
int engine_trace_wish(struct engine *e, struct vfmig_buffer *identity, struct vfmig_error *reterr);
void engine_trace_wished(struct engine *e, const char *identity);
void engine_trace_send(struct engine *e);
void engine_trace_take(struct engine *e, const uint8_t *data, size_t size);
bool engine_trace_awaited(struct engine *e);

/* report.c */
void engine_stamp(struct engine *e, uint64_t *stamp);
void engine_enter_step(struct engine *e, enum vfmig_step step);
void engine_state(struct engine *e, enum vfmig_migrate_state state);
void engine_count_bytes(struct engine *e); /* while the channels are there */
void engine_snapshot(struct engine *e, struct vfmig_progress *ret_progress);
void engine_downtime(struct engine *e);
int engine_wait_state(struct engine *e, uint64_t timeout_ns, struct vfmig_error *reterr);

/* memory.c: the source's works on memory and trackers */
int engine_maps_init(struct engine *e, struct vfmig_error *reterr);
void engine_maps_done(struct engine *e);
int engine_trackers_start(struct engine *e, struct vfmig_error *reterr);
int engine_trackers_stop(struct engine *e, struct vfmig_error *reterr);
/* Which trackers are read: the atomic ones, those that are not (their devices are quiet), all
 * (everything is quiet). */
enum engine_log { ENGINE_LOG_RUNNING, ENGINE_LOG_QUIET, ENGINE_LOG_STOPPED };
void engine_trackers_sync(struct engine *e, enum engine_log log, uint64_t *ret_pages);
bool engine_log_wants_quiet(const struct engine *e); /* rounds have S2_QUIET to S2_AGAIN */
int engine_round(struct engine *e, struct vfmig_error *reterr);
/* The part of it that MEMORY and LAST_MEMORY are, too. */
int engine_send_round(struct engine *e, uint32_t work, uint64_t round, struct vfmig_error *reterr);

#endif
