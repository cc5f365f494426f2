/* SPDX-License-Identifier: BSD-3-Clause */
/* A whole migration in one thread: both sides' real machines (src/core), the real stream codec
 * (src/stream) and the real journal (src/engine/journal_log.c, resolve_judge.c) over a simulated
 * network, disks, clocks, devices, memory and vCPUs. Everything follows from the seed: events are
 * taken in the order of virtual time, and chance is one generator.
 *
 * The shells between them are the simulator's own and mirror the engine's (engine/source.c,
 * engine/destination.c, engine/drive.c, engine/workers.c); docs/reliability.md says what that
 * means. */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bounds.h"
#include "core/dev.h"
#include "core/devstream.h"
#include "core/flow.h"
#include "core/handover.h"
#include "engine/journal_file.h"
#include "engine/resolve.h"
#include "stream/record.h"

enum { SRC = 0, DST = 1 };
enum {
    DEVICES = 4,
    PAGES = 256,
    PAGE_WORDS = PAGES / 64,
    VCPUS = 2,
    CHANNELS = 2,
    REGISTERS = 16, /* of a device: its state that pre-copy streams */
    OPS_MAX = 4,    /* DMA under way of one device */
    REQUESTS_MAX = 32,
    FAULTS_MAX = 8,
    EVENTS_MAX = 4096,
    DISK_BYTES = 64 * VFMIG_JOURNAL_RECORD_BYTES,
    JOBS_MAX = 16,
    SEGMENTS_MAX = 64,
    SEGMENT_BYTES = 512,
    RECORD_PAGES = 8, /* in one MEMORY record */
    RX_BYTES = 2 * 65536,
    EPOCHS_MAX = 3,
};

#define MS UINT64_C(1000000)

/* --- chance --- */

struct chance {
    uint64_t state;
};

static inline uint64_t chance_next(struct chance *c)
{
    uint64_t z = (c->state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline uint64_t chance_below(struct chance *c, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)chance_next(c) * n) >> 64);
}

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    struct chance c = {a ^ (b * UINT64_C(0xd6e8feb86659fd93))};

    return chance_next(&c);
}

/* --- faults --- */

enum fault_kind {
#define FAULT(name, text, target, deadly) FAULT_##name,
#include "faults.def"
    FAULT_COUNT
};

/* Where it begins: a step of one side's flow. */
enum step_of {
#define STEP(name, side, step) STEP_##name,
#include "steps.def"
    STEP_COUNT
};

struct fault {
    uint8_t kind;     /* enum fault_kind */
    uint8_t step;     /* enum step_of */
    uint8_t wait;     /* actions of that side to let pass first */
    uint8_t arg;      /* device, direction ...: what the kind makes of it */
    uint8_t attempt;  /* not before this one */
    uint8_t off;      /* left out: --keep */
    uint8_t begun;    /* it has been set on */
    uint8_t began_at; /* enum step_of, where it really began */
    uint8_t struck;
};

/* --- events --- */

enum event_kind {
    EVENT_NONE = 0,
    EVENT_VCPU,   /* a: which */
    EVENT_DMA,    /* a: device, b: op, arg: its command */
    EVENT_CALL,   /* a: device, b: 1 fails, arg: token */
    EVENT_DRAIN,  /* a: device: a deadline of its machine */
    EVENT_JOB,    /* a: device: the next thing in its thread */
    EVENT_WORK,   /* a: work: the next piece of it */
    EVENT_ANSWER, /* arg: number of a page request */
    EVENT_CHUNK,  /* side: receiver, a: channel, arg: generation */
    EVENT_NOTICE, /* the link is gone; arg: generation */
    EVENT_CONNECT,
    EVENT_POLL,
    EVENT_RETURN, /* a crashed process comes back */
    EVENT_COPY,   /* a: a copy of a handover message, in copies[] */
    EVENT_CANCEL,
    EVENT_RESET_LINK,
};

struct event {
    uint64_t at;
    uint64_t arg;
    uint32_t order;
    uint16_t life; /* of the side's process; events of an earlier one are void */
    uint8_t kind, side, a, b;
};

/* --- parts --- */

struct request { /* to the guest, for a page */
    uint32_t number;
    uint32_t command;
    uint8_t device, op, open, aborted;
    uint8_t held; /* the guest holds its answer back: until another is given, or for good */
};

struct op {
    uint32_t command; /* 0: free */
    uint16_t page;
    uint8_t faulted; /* waits for the guest's answer */
};

/* What migrates with a device. */
struct device_state {
    uint64_t registers[REGISTERS];
    uint64_t chain; /* of all commands it took */
    uint64_t done;  /* sum over all commands it finished */
    uint32_t taken, begun, finished;
    uint32_t raised;  /* interrupts, numbered */
    uint32_t latched; /* raised and not delivered */
    uint32_t kept_count;
    struct op kept[OPS_MAX]; /* DMA to be issued again */
};

struct segment {
    uint16_t size; /* 0: the end */
    uint8_t data[SEGMENT_BYTES];
};

struct job {
    uint8_t kind; /* enum job_kind */
    uint8_t arg;
};
enum job_kind { JOB_NONE = 0, JOB_GO, JOB_DATA, JOB_RECOVER };

struct device {
    struct vfmig_dev m;
    struct device_state is, staged;
    uint32_t unsaved; /* registers changed since they were saved */
    struct op op[OPS_MAX];
    uint8_t wait;     /* 0 nothing, 1 quiet, 2 call */
    uint8_t call;     /* enum vfmig_dev_call */
    uint8_t captured; /* the final part is due */
    uint8_t precopied;
    uint8_t excused; /* it was reset or lost: what it had is gone, and that was told */
    uint8_t reset_done;
    struct vfmig_devstream_enc enc;
    struct vfmig_devstream_dec dec;
    uint8_t frame[SEGMENT_BYTES];
    /* Its thread in the engine. */
    struct job jobs[JOBS_MAX];
    uint8_t job_count, working, answered;
    int32_t err;
    uint64_t segments, bytes; /* sent or received */
    uint64_t call_since;      /* its data is asked for, and the device is what is waited for */
    uint8_t ended;
    /* Received and not loaded. */
    struct segment *in[SEGMENTS_MAX];
    uint16_t in_count;
    /* Faults. */
    uint8_t slow, hangs, fails_old, fails_error;
};

struct vcpu_state {
    uint64_t sequence;
    uint64_t hash;
};

/* What migrates with the VM beside memory and devices. */
struct vm_state {
    struct vcpu_state vcpu[VCPUS];
    uint32_t issued[DEVICES], completed[DEVICES]; /* of the driver */
    uint32_t serial[DEVICES];  /* last interrupt seen by the interrupt controller */
    uint32_t pending[DEVICES]; /* delivered, not taken */
};

struct disk {
    uint8_t cache[DISK_BYTES], durable[DISK_BYTES];
    uint32_t size, durable_size;
    uint32_t dirty_from[16], dirty_size[16], dirty_count; /* writes since the last sync */
    bool exists;
    uint32_t asked[EPOCHS_MAX + 1]; /* records that were to be written, by attempt */
    uint8_t full, sync_fails, torn_io;
};

struct chunk {
    struct chunk *next;
    uint64_t at;
    uint32_t size, taken;
    uint8_t data[];
};

struct pipe {                /* one direction of one channel */
    uint64_t sent, expected; /* sequences */
    uint64_t last_at;
    struct chunk *head, **tail;
    uint8_t *rx;
    uint32_t rx_size;
};

struct side {
    /* The process. */
    bool alive, returned;
    uint16_t life;
    uint64_t busy_until; /* its control thread is in a system call */
    struct vfmig_flow flow;
    struct vfmig_handover h;
    bool handover_active, flow_active, linked, run_early, abort, closing, cancelled;
    bool cut; /* the link of this attempt is gone: what has not come over it never comes */
    bool received; /* destination: a guest was sent to this process */
    bool began;    /* the source has been accepted; the destination has accepted */
    struct vfmig_journal_log log;
    bool journal_open;
    uint32_t epoch;
    uint32_t generation; /* of the link that it uses */
    uint64_t retry_at, reconnect_at, answer_at, deadline_at, standstill_at, close_at, connect_until,
        unwinding_since;
    uint8_t answer_state;
    struct device dev[DEVICES];
    uint32_t works; /* under way */
    uint32_t work_at[VFMIG_WORK_COUNT];
    uint32_t round, stop_round;
    bool tracking;
    uint64_t written[PAGE_WORDS], known[PAGE_WORDS], sending[PAGE_WORDS];
    uint64_t pages_sent[CHANNELS], zero_sent[CHANNELS];
    /* Receiving. */
    uint64_t doubt[PAGE_WORDS];
    uint64_t round_seen[CHANNELS];
    uint64_t pages_got[CHANNELS], zero_got[CHANNELS];
    struct vm_state inbox[4];
    uint8_t inbox_full[4];
    uint64_t final_round;
    /* The VM. */
    bool vcpus;
    uint32_t vcpu_runs; /* how often they were started */
    struct vm_state vm;
    struct request requests[REQUESTS_MAX];
    uint32_t request_number;
    uint8_t out_of_memory;
    uint8_t answers_late, answers_missing, answers_reordered;
    uint32_t fault_actions; /* of the fault that waits to begin */
    /* What outlives it. */
    struct disk disk;
};

struct copy {
    struct vfmig_ho_msg msg;
    uint8_t side;
};

struct sim {
    uint64_t seed;
    struct chance chance, plan;
    uint64_t now, heal_at, end_at;
    struct event heap[EVENTS_MAX];
    uint32_t heap_count, order;
    struct side side[2];
    struct pipe pipe[2][CHANNELS]; /* by sender */
    bool link_up;
    uint32_t generation;
    uint64_t partition_until;
    uint8_t next_send[FAULT_COUNT]; /* faults that the next record meets */
    uint32_t features[DEVICES];
    uint32_t attempts;
    bool migrate_again;
    /* The oracle: what the one guest is, whoever has it. */
    struct vm_state vm;
    struct device_state dev[DEVICES];
    uint8_t excused[DEVICES];
    uint64_t tag[PAGES][2];
    unsigned owner;
    bool moved;
    uint32_t sealed; /* attempt of which the destination has had the SEAL */
    uint8_t crashed; /* bit per side */
    bool precopied, fenced, finishing;
    struct fault faults[FAULTS_MAX];
    unsigned fault_count, struck;
    struct copy copies[16];
    unsigned copy_count;
    jmp_buf died;
    const char *broken;
    char detail[160];
    uint8_t outcome;
    bool verbose;
    uint64_t events;
};

extern struct sim sim;
extern uint8_t memory_of[2][PAGES][VFMIG_PAGE_SIZE];
extern const uint8_t guest_id[VFMIG_HO_ID_BYTES];

/* main.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* world.c: the queue of events, and a whole run. */
void sim_run(uint64_t seed, unsigned keep);
void event_in(uint64_t delay, enum event_kind kind, unsigned side, unsigned a, unsigned b,
              uint64_t arg);
void broke(const char *property, const char *format, ...) __attribute__((format(printf, 2, 3)));
uint64_t some(uint64_t from, uint64_t to);
bool one_in(unsigned n);

/* fault.c */
void faults_plan(unsigned keep);
/* An action of a side is about to be carried out: what waits for it begins, and the process may
 * die. */
void fault_point(unsigned side);
void fault_struck(enum fault_kind kind, unsigned side);
void faults_heal(void);
bool faults_rest(void);
enum step_of step_now(unsigned side);
const char *fault_name(unsigned kind);
const char *step_name(unsigned step);
bool fault_possible(unsigned kind, unsigned step);
unsigned fault_side(const struct fault *fault);

/* disk.c */
void disk_store(struct disk *disk, struct vfmig_journal_store *ret_store);
void disk_crash(struct disk *disk);
/* As a reader finds it. */
void disk_summary(struct disk *disk, bool held, struct vfmig_journal_summary *ret_summary);

/* net.c */
void link_begin(void); /* a new connection of all channels */
void link_reset(void);
void link_partition(uint64_t length);
void link_forget(void);
bool send_record(unsigned side, unsigned channel, enum vfmig_record_tag tag, const void *payload,
                 uint32_t size, uint32_t crc_size);
void chunk_arrives(unsigned side, unsigned channel, uint32_t generation);

/* receive.c: a whole record; false: it is refused. */
bool take_record(unsigned side, unsigned channel, const struct vfmig_record_head *head,
                 const uint8_t *payload, struct vfmig_error *error);
bool send_message(unsigned side, const struct vfmig_ho_msg *msg);

/* guest.c */
void guest_boot(void);
void vcpu_runs(unsigned side, unsigned vcpu, uint32_t since);
void vcpus_start(unsigned side);
void dma_writes(unsigned side, unsigned device, uint32_t command, unsigned page);
void interrupt(unsigned side, unsigned device, uint32_t serial);
void page_request(unsigned side, unsigned device, unsigned op);
void page_answer(unsigned side, uint32_t number);
bool requests_open(const struct side *s);
void oracle_takes_over(unsigned side);
void oracle_excuses(unsigned side, unsigned device);
void oracle_compares(unsigned side);
void requests_heal(unsigned side);
uint64_t page_writer(const uint8_t *page); /* 0: never written */

/* device.c */
void device_fresh(unsigned side, unsigned device);
void device_drop(unsigned side, unsigned device); /* what it has received */
void device_event(unsigned side, unsigned device, struct vfmig_dev_event event);
void device_call_ends(unsigned side, unsigned device, uint32_t token, bool fails);
void device_dma_ends(unsigned side, unsigned device, unsigned op, uint32_t command);
void device_doorbell(unsigned side, unsigned device, uint32_t command);
void device_kick(unsigned side, unsigned device);
void device_heals(unsigned side, unsigned device);
void device_page_answered(unsigned side, unsigned device, unsigned op, uint32_t command);
/* One frame of its data: bytes in frame, 0: nothing now; negative: it cannot. */
int device_save(unsigned side, unsigned device, bool final);
int device_load(unsigned side, unsigned device, const uint8_t *data, size_t size);

/* jobs.c: the threads of the engine: one a device, and the works. */
void job_add(unsigned side, unsigned device, enum job_kind kind, unsigned arg);
void job_runs(unsigned side, unsigned device);
void device_answered(unsigned side, unsigned device, int err);
void work_begins(unsigned side, unsigned work);
void work_goes_on(unsigned side, unsigned work);
bool source_sends_first(void);

/* shell.c */
void side_fresh(unsigned side);
void flow_event(unsigned side, const struct vfmig_flow_event *event);
void flow_kind(unsigned side, enum vfmig_flow_event_kind kind);
void handover_kind(unsigned side, enum vfmig_ho_event_kind kind);
void handover_msg(unsigned side, const struct vfmig_ho_msg *msg);
void side_link_lost(unsigned side, uint32_t generation);
int journal_open(unsigned side, bool memory);
void side_cancel(unsigned side);
void source_begins(void);
bool destination_idle(void);
void destination_asked(void);
void destination_heard(const struct vfmig_ho_msg *msg); /* over the link */
void destination_message(const struct vfmig_ho_msg *msg);

/* time.c: what a side does because time has passed, crashes and returns, operators. */
void side_polls(unsigned side);
void side_crashes(unsigned side); /* does not return */
void side_returns(unsigned side);
void source_connects(void);
void operators_act(void);

/* outcome.c */
void check_end(void);

#endif
