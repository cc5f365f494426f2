/* SPDX-License-Identifier: BSD-3-Clause */
/* The handover of a running guest: never two running, nothing lost (design section 7).
 *
 * Pure: an event goes in, actions come out; no I/O, no clock, no memory. One object is one side of
 * one attempt (migration id and epoch). docs/handover.md describes the protocol, model/handover.pml
 * is its model.
 *
 * How a shell drives it:
 *  - If actions.journal is not NONE, nothing else is asked: write that record durably (write, fsync),
 *    then step JOURNAL_DONE or JOURNAL_FAILED. The actions that depend on it come from that step.
 *  - Otherwise do actions.flags first, in the order of their bits, then send actions.send.
 *  - After DROP_LOAD or RELEASE step no late answer (LOADED, PREPARED ...) of the work before it.
 *  - Every message may be lost, doubled or late: step RETRY now and then (a second is fine) while
 *    vfmig_handover_waits() is true, and LINK_UP whenever a connection to the peer exists again. */
#ifndef VFMIG_CORE_HANDOVER_H
#define VFMIG_CORE_HANDOVER_H

#include <stdbool.h>
#include <stdint.h>

#define VFMIG_HO_ID_BYTES 16u

enum vfmig_ho_role {
    VFMIG_HO_SOURCE = 1,
    VFMIG_HO_DESTINATION = 2,
};

/* What a journal says last. The numbers are on disk and on the wire; never renumber. */
enum vfmig_ho_record {
    VFMIG_HO_RECORD_NONE = 0,
    VFMIG_HO_RECORD_OFFERED = 1,    /* source: an attempt exists; the guest runs or stands here */
    VFMIG_HO_RECORD_GRANT_SENT = 2, /* source: the grant may be on its way; never run here again
                                       unless the destination has journalled REFUSED */
    VFMIG_HO_RECORD_RELEASED = 3,   /* source: the destination runs it; memory given up */
    VFMIG_HO_RECORD_SAVED = 4,      /* source: the guest is in a file */
    VFMIG_HO_RECORD_ABORTED = 5,    /* source: unwound, the grant was never sent; the destination may
                                       still hold a complete, now stale, image */
    VFMIG_HO_RECORD_RESUMED = 6,    /* source: the guest is this side's alone; nothing can run it
                                       elsewhere */
    VFMIG_HO_RECORD_READY = 7,      /* destination: loaded and validated, nothing runs */
    VFMIG_HO_RECORD_GRANTED = 8,    /* destination: the grant is here, nothing runs yet */
    VFMIG_HO_RECORD_FENCED = 9,     /* destination: an operator vouched that the source is fenced */
    VFMIG_HO_RECORD_RUNNING = 10,   /* destination: from here on it runs, no way back */
    VFMIG_HO_RECORD_REFUSED = 11,   /* destination: never runs this attempt */
    VFMIG_HO_RECORD_COUNT
};

enum vfmig_ho_state {
    VFMIG_HO_SRC_IDLE = 0,  /* before START */
    VFMIG_HO_SRC_OFFERED,   /* pre-copy: the guest runs (or: came back without memory) */
    VFMIG_HO_SRC_STOPPED,   /* guest stopped, SEAL sent, READY expected */
    VFMIG_HO_SRC_ABORTING,  /* paused; the journal failed at the grant: needs ABORTED or REFUSED */
    VFMIG_HO_SRC_GRANTED,   /* paused with memory kept; RUNNING or REFUSED expected */
    VFMIG_HO_SRC_ABORTED,   /* unwound; tells the destination to refuse */
    VFMIG_HO_SRC_RESUMED,   /* end: the guest is here alone */
    VFMIG_HO_SRC_RELEASED,  /* end: the guest is at the destination */
    VFMIG_HO_SRC_SAVED,     /* end: paused, the guest is in a file */
    VFMIG_HO_DST_LISTEN,    /* nothing known yet */
    VFMIG_HO_DST_LOADING,   /* receives; READY needs both LOADED and SEAL */
    VFMIG_HO_DST_READY,     /* waits for the grant */
    VFMIG_HO_DST_GRANTED,   /* prepares to run, may still refuse */
    VFMIG_HO_DST_FENCED,    /* the same, on an operator's word instead of a grant */
    VFMIG_HO_DST_RUNNING,   /* end: the guest is here */
    VFMIG_HO_DST_REFUSED,   /* end of this attempt: the guest is the source's */
    VFMIG_HO_STATE_COUNT
};

enum vfmig_ho_msg_kind {
    VFMIG_HO_MSG_NONE = 0,
    VFMIG_HO_MSG_OFFER,    /* s->d: attempt begins, get ready to receive */
    VFMIG_HO_MSG_SEAL,     /* s->d: the guest is stopped and everything was sent */
    VFMIG_HO_MSG_READY,    /* d->s: READY is journalled */
    VFMIG_HO_MSG_GRANT,    /* s->d: run it; the one message that moves the guest */
    VFMIG_HO_MSG_RUNNING,  /* d->s: RUNNING is journalled */
    VFMIG_HO_MSG_REFUSED,  /* d->s: REFUSED is journalled, or nothing was ever loaded */
    VFMIG_HO_MSG_ABORT,    /* s->d: unwound or given up, please refuse */
    VFMIG_HO_MSG_RELEASED, /* s->d: memory at the source is given up */
    VFMIG_HO_MSG_QUERY,    /* either: what does your journal say? */
    VFMIG_HO_MSG_OUTCOME,  /* either: the answer, in record and memory */
    VFMIG_HO_MSG_COUNT
};

/* A message as the stream carries it; fields are checked by the step, not by the codec. */
struct vfmig_ho_msg {
    uint8_t id[VFMIG_HO_ID_BYTES];
    uint32_t epoch;
    uint8_t kind;   /* enum vfmig_ho_msg_kind */
    uint8_t record; /* sender's last journalled record, in every message */
    uint8_t memory; /* 1: the sender still has the guest's memory, in every message */
    uint8_t reserved; /* 0 */
};

enum vfmig_ho_event_kind {
    VFMIG_HO_EVENT_NONE = 0,
    VFMIG_HO_EVENT_MESSAGE,        /* .msg was received */
    VFMIG_HO_EVENT_START,          /* both: first event; begins an attempt or continues a journal */
    VFMIG_HO_EVENT_LINK_UP,        /* a connection to the peer exists (again) */
    VFMIG_HO_EVENT_LINK_LOST,      /* it is gone, beyond what the channel repairs itself */
    VFMIG_HO_EVENT_RETRY,          /* some time has passed without progress */
    VFMIG_HO_EVENT_JOURNAL_DONE,   /* the record asked for is durable */
    VFMIG_HO_EVENT_JOURNAL_FAILED, /* it may or may not be */
    VFMIG_HO_EVENT_ABORT,          /* a user or a failure asks to unwind (source) or refuse (dest.) */
    VFMIG_HO_EVENT_STOPPED,        /* source: vCPUs and devices stopped, all data sent */
    VFMIG_HO_EVENT_SAVED,          /* source, to a file: the file is complete and durable */
    VFMIG_HO_EVENT_DISCARD,        /* source: the file is void, by its own log (SAVED), or the memory is
                                      given up that is kept after the destination died with the
                                      guest (GRANTED) */
    VFMIG_HO_EVENT_LOADED,         /* destination: everything loaded and validated, nothing runs */
    VFMIG_HO_EVENT_LOAD_FAILED,    /* destination: it never will be */
    VFMIG_HO_EVENT_PREPARED,       /* destination: PREPARE is done; only RUN is missing */
    VFMIG_HO_EVENT_PREPARE_FAILED, /* destination: PREPARE failed; a later PREPARED is still welcome */
    VFMIG_HO_EVENT_RUN_DONE,       /* destination: the guest runs */
    VFMIG_HO_EVENT_RUN_FAILED,     /* destination: RUN failed; the guest stays here, paused */
    VFMIG_HO_EVENT_FENCED,         /* destination: an operator says the source is fenced: run */
    VFMIG_HO_EVENT_COUNT
};

struct vfmig_ho_event {
    uint8_t kind; /* enum vfmig_ho_event_kind */
    struct vfmig_ho_msg msg;
};

/* Done in this order. */
enum {
    VFMIG_HO_ACT_DROP_LOAD = 1u << 0, /* destination: forget what was received, expect it anew */
    VFMIG_HO_ACT_RELEASE = 1u << 1,   /* free guest memory and devices; this side is done with them */
    VFMIG_HO_ACT_RESUME = 1u << 2,    /* source: devices back to R, vCPUs run (no-op if they run) */
    VFMIG_HO_ACT_PREPARE = 1u << 3,   /* destination: all that the guest and its peers cannot see:
                                         devices {} to NR, memory in place; no DMA, no vCPU */
    VFMIG_HO_ACT_RUN = 1u << 4,       /* destination: devices without NDMA to R, N cleared, vCPUs */
    VFMIG_HO_ACT_REPORT = 1u << 5,    /* actions.outcome has changed: tell the user */
};

/* Who has the guest, as far as this side knows. Every end and every wait has one of these. */
enum vfmig_ho_outcome {
    VFMIG_HO_OUTCOME_NONE = 0,              /* under way */
    VFMIG_HO_OUTCOME_RUNS_AT_SOURCE,        /* unwound, guest none the wiser */
    VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION,   /* moved */
    VFMIG_HO_OUTCOME_SAVED,                 /* stands in a file, paused here */
    VFMIG_HO_OUTCOME_UNDECIDED,             /* grant sent or awaited, no answer: both stand still */
    VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION, /* the destination has it but could not start it */
    VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION,   /* source died before the grant: the only copy stands at
                                               the destination, and needs an operator's decision */
    VFMIG_HO_OUTCOME_REFUSED,               /* destination: not here, the source has it */
    VFMIG_HO_OUTCOME_DIED_AT_SOURCE,        /* source died, destination had no complete copy */
    VFMIG_HO_OUTCOME_DIED_AT_DESTINATION,   /* it ran at the destination and died with it */
    VFMIG_HO_OUTCOME_CONFLICT,              /* an operator vouched wrongly for a source that runs */
    VFMIG_HO_OUTCOME_COUNT
};

struct vfmig_ho_actions {
    uint8_t journal;  /* enum vfmig_ho_record: if not NONE, this and nothing else */
    uint8_t outcome;  /* enum vfmig_ho_outcome, valid with VFMIG_HO_ACT_REPORT */
    uint16_t flags;   /* VFMIG_HO_ACT_* */
    struct vfmig_ho_msg send; /* kind NONE: nothing to send; complete otherwise */
};

/* Flat, no pointers, no padding: may be copied, hashed and compared. Read it freely, change it only
 * by init and step. */
struct vfmig_handover {
    uint8_t id[VFMIG_HO_ID_BYTES];
    uint32_t epoch;
    uint8_t role;     /* enum vfmig_ho_role */
    uint8_t state;    /* enum vfmig_ho_state */
    uint8_t record;   /* last durable record */
    uint8_t pending;  /* record being written, NONE otherwise */
    uint8_t memory;   /* this side has guest memory (source) or a complete image (destination) */
    uint8_t abort;    /* source: a user wants out; destination: the same, while a record is written */
    uint8_t sealed;   /* destination: SEAL received */
    uint8_t loaded;   /* destination: LOADED seen */
    uint8_t prepared; /* destination: PREPARED seen */
    uint8_t failed;   /* destination: PREPARE or RUN failed */
    uint8_t outcome;  /* last one reported */
    uint8_t acked;    /* destination: RELEASED received, nothing is left to say */
    uint8_t kept;     /* outcome to report when the pending record is durable */
    uint8_t reserved[3];
};

_Static_assert(sizeof(struct vfmig_handover) == VFMIG_HO_ID_BYTES + 4 + 16, "no padding");
_Static_assert(sizeof(struct vfmig_ho_msg) == VFMIG_HO_ID_BYTES + 8, "no padding");

/* A new attempt of a source: record NONE, memory true. A new epoch (one above the last) of a known id
 * only if its last record is RESUMED; while it is ABORTED take a new id, so that the old journal
 * stays open until the old destination has refused.
 * A destination that waits for whoever comes: id NULL, epoch 0, record NONE, memory false. If a
 * journal exists for the id of the first message, init from that journal before stepping it.
 * Continuing a journal after a crash: what the journal says, memory false. Step START first.
 * Returns 0, or -EINVAL for a record that is not of this role. */
int vfmig_handover_init(struct vfmig_handover *h, enum vfmig_ho_role role, const uint8_t *id,
                        uint32_t epoch, enum vfmig_ho_record record, bool memory);

/* One step. Returns 0; -EINVAL when a local event makes no sense in this state (nothing changed,
 * no actions: a bug of the shell); -ESTALE when a message belongs to another migration or epoch, and
 * -EPROTO when it is malformed or comes from the wrong side (nothing changed, no actions, to be
 * logged). Messages that arrive while a record is being written are dropped with 0: the peer
 * repeats them. */
int vfmig_handover_step(struct vfmig_handover *h, const struct vfmig_ho_event *event,
                        struct vfmig_ho_actions *ret_actions);

/* True while an answer of the peer is expected: RETRY is worth while. */
bool vfmig_handover_waits(const struct vfmig_handover *h);

/* True if this side may let the guest run now (its machine says so, no record is being written). */
bool vfmig_handover_may_run(const struct vfmig_handover *h);

/* Names for reports and JSON: "GRANT-SENT", "src-granted", "grant", "runs-at-destination";
 * "unknown" for anything else. */
const char *vfmig_ho_record_name(unsigned record);
const char *vfmig_ho_state_name(unsigned state);
const char *vfmig_ho_msg_name(unsigned kind);
const char *vfmig_ho_outcome_name(unsigned outcome);

#endif
