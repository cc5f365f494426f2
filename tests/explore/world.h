/* SPDX-License-Identifier: BSD-3-Clause */
/* One migration as the explorer sees it: both sides' flow and handover machines and up to three
 * device machines each, all from src/core, and around them the least that they need: a shell as
 * thin as the engine's (engine/source.c, engine/destination.c), a journal, a link and a guest.
 *
 * Whatever may happen next is a move; a move that needs luck or malice uses up one fault of the
 * scope. */
#ifndef TESTS_EXPLORE_WORLD_H
#define TESTS_EXPLORE_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dev.h"
#include "core/flow.h"
#include "core/handover.h"

enum { SRC = 0, DST = 1 };
extern const uint8_t guest_id[VFMIG_HO_ID_BYTES];
enum { DEVICES_MAX = 3, QUEUE_MAX = 2, MOVES_MAX = 96 };

/* What is explored: the devices, and how much may go wrong on one way. */
struct scope {
    const char *name;
    uint8_t devices;
    uint8_t features[DEVICES_MAX];
    uint8_t region;       /* bit per device: it speaks the region dialect */
    uint8_t quiet_log;    /* rounds have S2_QUIET (C68) */
    uint8_t rounds;       /* rounds of pre-copy beyond the first */
    uint8_t page_faults;  /* of devices, in the guest's IOMMU */
    uint8_t faults;       /* failures, hangs, crashes, lost links, cancels: in all */
    uint8_t messages;     /* messages lost or doubled */
    bool own_steps_first; /* what the destination does by itself until it waits for the source is
                             done first: one order of what does not depend on each other */
    uint32_t room;        /* worlds at most */
    bool quick;           /* part of make check */
};

enum wait_for { WAIT_NOTHING = 0, WAIT_QUIET, WAIT_CALL };
enum page_fault { FAULT_NONE = 0, FAULT_OPEN, FAULT_ABORTED };
enum slowness { SLOW_NOT = 0, SLOW_LATE, SLOW_TOLD, SLOW_NEVER };

struct device {
    struct vfmig_dev m;
    uint8_t wait;     /* enum wait_for: the awaited action of the machine */
    uint8_t call;     /* enum vfmig_dev_call, of WAIT_CALL */
    uint8_t fault;    /* enum page_fault */
    uint8_t slow;     /* enum slowness, of what is under way */
    uint8_t answered; /* the change is over, and the flow has not heard of it */
    int8_t err;
    uint8_t data;     /* its data is under way */
    uint8_t complete; /* destination: it has all its data */
    uint8_t loaded;   /* and has taken it over */
    uint8_t reset_failed;
    uint8_t idle; /* it was reset: it starts nothing until vCPUs tell it, or it is loaded */
    uint8_t reserved[5];
};

struct message {
    uint8_t kind, record, memory;
};

struct side {
    struct vfmig_flow flow;
    struct vfmig_handover h;
    struct device dev[DEVICES_MAX];
    uint32_t works; /* begun and not over */
    uint8_t alive;
    uint8_t returned; /* a new process on the old journal: memory and devices' state are gone */
    uint8_t flow_active;
    uint8_t vcpus;      /* they run */
    uint8_t disk;       /* what a reader of the journal would find */
    uint8_t notice;     /* the link is lost, and this side has not noticed */
    uint8_t idle_hangs; /* the guest answers no page request any more */
    uint8_t fell;       /* the attempt failed here, or was taken back */
    uint8_t over;       /* the flow came to its end */
    uint8_t run_early;  /* destination: RUN came before PREPARED, by a deliberate fault only */
    uint8_t queued;
    struct message queue[QUEUE_MAX]; /* on their way to the other side */
};

struct world {
    struct side side[2];
    uint8_t link; /* enum link */
    uint8_t sent; /* the source has sent all of the guest */
    uint8_t cut;  /* part of it is lost with the link */
    uint8_t tracking, snapshot, final_log, vm_state;
    uint8_t dirty, known, sending; /* memory: written since the log was read; known so; under way */
    uint8_t granted;               /* a grant was handed to the link */
    uint8_t stale;                 /* the source may have run since the image was taken */
    uint8_t fenced;                /* an operator's word: the source is off */
    uint8_t rounds, page_faults, faults, messages; /* left */
    const char *broken;                            /* the property that the last move broke */
    char detail[96];
};

enum move_kind {
    MOVE_START,  /* source: the migration begins */
    MOVE_CHANGE, /* device: what it was asked for is done */
    MOVE_CHANGE_FAIL,
    MOVE_CHANGE_SLOW, /* it takes longer than its limit */
    MOVE_CHANGE_HANG, /* it never answers */
    MOVE_ABORT_DMA,   /* half of the drain deadline: DMA that waits for the guest is put off */
    MOVE_DRAIN_LATE,  /* the drain deadline */
    MOVE_PAGE_FAULT,
    MOVE_PAGE_ANSWER,
    MOVE_DATA,
    MOVE_DATA_FAIL,
    MOVE_DATA_CUT, /* destination: no more of it comes */
    MOVE_WORK,
    MOVE_WORK_FAIL,
    MOVE_WORK_CUT,
    MOVE_IDLE_HANG,
    MOVE_TICK,
    MOVE_AGAIN,
    MOVE_GO,
    MOVE_CANCEL,
    MOVE_JOURNAL,
    MOVE_JOURNAL_FAIL, /* arg: the record is on disk nevertheless */
    MOVE_CRASH,        /* arg: the record being written is on disk */
    MOVE_RETURN,
    MOVE_BOOT,    /* the guest is started afresh at the source */
    MOVE_DELIVER, /* the first message on its way to this side */
    MOVE_DOUBLE,  /* the same, and it comes again */
    MOVE_LOSE,
    MOVE_RETRY,
    MOVE_LINK_CUT, /* arg: part of what was sent goes with it */
    MOVE_LEAVE,    /* nothing is left to do or to say here, and the link is closed */
    MOVE_NOTICE,
    MOVE_LINK_UP,
    MOVE_FENCE,   /* operator, at the destination */
    MOVE_DISCARD, /* operator, at the source */
    MOVE_COUNT
};

struct move {
    uint8_t kind, side, arg;
};

enum link { LINK_UP = 0, LINK_DOWN };

/* world.c: the start, and one move. False: a property is broken, see w->broken. */
void world_start(struct world *w, const struct scope *scope);
bool world_move(struct world *w, const struct move *move);

/* moves.c */
unsigned world_moves(const struct world *w, const struct scope *scope, struct move *moves);
bool move_is_fault(const struct move *move);
void move_print(const struct world *before, const struct move *move);
void world_print(const struct world *w);

/* properties.c: each sets w->broken when it does not hold. */
void check_row(struct world *w, unsigned side, uint32_t row);
void check_go(struct world *w, unsigned side, uint32_t device);
void check_call(struct world *w, unsigned side, uint32_t device, enum vfmig_dev_call call);
void check_work(struct world *w, unsigned side, uint32_t work);
void check_lost(struct world *w, unsigned side, uint32_t device, bool answered);
void check_sent(struct world *w);
void check_state(struct world *w);
void broke(struct world *w, const char *property, const char *detail);
/* Only this property counts from now on. */
void look_for(const char *property);
bool is_property(const char *broken, const char *name);
/* Nothing is left to do, and the names that both sides give it. False: not an end. */
bool world_ended(const struct world *w);
/* Call at an end. */
void check_end(struct world *w, const struct scope *scope);

/* pack.c: the world as few bytes, and back. */
enum { PACKED_MAX = 512 };
unsigned world_pack(const struct world *w, uint8_t *bytes);
void world_unpack(struct world *w, const struct scope *scope, const uint8_t *bytes);

/* Shared questions. */
bool dev_is_lost(const struct side *s, uint32_t device);
bool dev_has_ndma(const struct side *s, uint32_t device);
bool dev_is_late(const struct device *d);
void world_apply_writes(struct world *w);

#endif
