/* SPDX-License-Identifier: BSD-3-Clause */
/* A device, its server and its client in one thread, and what has to hold whatever the client and
 * the guest do. docs/fuzzing.md lists the properties. */
#ifndef VFMIG_TESTS_FUZZ_RIG_H
#define VFMIG_TESTS_FUZZ_RIG_H

#include "input.h"
#include "vfmig/device.h"
#include "wire/wire.h"

/* Guest memory with a descriptor, and an area without one, which is read and written by message. */
#define RAM_IOVA     0x100000u
#define RAM_SIZE     0x10000u
#define MESSAGE_IOVA 0x40000000u
#define MESSAGE_SIZE 0x40000u

#define RIG_MAX_DATA 0x10000u /* data in one message, agreed by all devices of the rig */
#define REQUESTS_MAX 512u
#define DMA_MAX      256u
#define REGIONS_MAX  256u
#define SAVED_MAX    0x40000u
#define MESSAGE_MAX  (RIG_MAX_DATA + VFMIG_USER_FIXED_MAX)

/* A device to fuzz. */
struct variant {
    struct vfmig_device *(*make)(void);
    uint32_t format; /* of its state */
    uint32_t version;
    bool is_ring;  /* the dma device: its ring is set up */
    bool quiesces; /* has NDMA */
    bool control;  /* listens for a control client */
};

/* What a run reached; a harness that has gone blind shows in it. */
enum reach {
    REACH_REPLIES,
    REACH_REFUSALS,
    REACH_CLOSED,
    REACH_MAPS,
    REACH_UNMAPS,
    REACH_BITMAPS,
    REACH_REPORTS,
    REACH_DMA_MESSAGES,
    REACH_ANSWERS,
    REACH_TWIN,
    REACH_FDS,
    REACH_FRAMES,
    REACH_LOADS,
    REACH_SAVES,
    REACH_ERRORS,
    REACH_GUEST_WRITES,
    REACH_SESSIONS,
    REACH_ENDED,
    REACH_ASIDE,
    REACH_LISTS,
    REACH_FROZEN,
    REACH_WINDOWS,
    REACH_WINDOW_DATA,
    REACH_COUNT
};

/* A command without reply so far. */
struct request {
    uint16_t id, command;
    uint32_t size;
    uint8_t *payload;
    uint64_t turn; /* among all that were sent */
    bool loose;    /* another one like it is open: which is answered is not to be seen */
};

/* A DMA message without answer so far. */
struct dma_ask {
    bool twin;
    struct vfmig_user_header header;
    struct vfmig_user_dma_access access;
};

struct region {
    uint64_t iova, size;
    uint32_t prot;
    bool retired;  /* unmapped in this round */
    uint64_t turn; /* of the command that mapped it */
};

/* The client's end of one socket. */
struct rig_end {
    int fd;
    size_t have;
    uint8_t in[2 * MESSAGE_MAX];
};

/* The control client: what it is owed. The owner's session is modelled; of this one only that every
 * command has one reply of its form, and that nobody is let go without a reason. */
struct control {
    struct rig_end end;
    bool closed, negotiated, may_close, must_close;
    uint8_t part[MESSAGE_MAX];
    size_t part_have;
    struct request requests[REQUESTS_MAX];
    uint32_t request_count;
    int window; /* memory shared with the server, -1: none */
};

struct rig {
    const struct variant *variant;
    struct vfmig_device *dev;
    struct rig_end main, twin;
    struct control control;
    int window;  /* the owner's */
    bool closed; /* by the server */
    bool negotiated;
    bool may_close;  /* the client has given a reason */
    bool must_close; /* and one that cannot be overlooked */
    bool blurred;    /* a command without reply changed what is modelled here */
    bool twin_gone;  /* closed by the client */
    bool garbled;    /* answers on the second socket may be lost in what is no message */
    bool over;       /* enough for one run */
    bool held;       /* there are bytes that the server has not seen */
    /* The stream of what was sent on the main socket, cut into messages again. */
    uint8_t part[MESSAGE_MAX];
    size_t part_have;
    struct request requests[REQUESTS_MAX];
    uint32_t request_count;
    uint16_t next_id;
    uint64_t next_turn;
    uint32_t want; /* id that is waited for, or above UINT16_MAX */
    int got;       /* its payload's size, or an error */
    uint8_t reply[MESSAGE_MAX];
    struct dma_ask asks[DMA_MAX];
    uint32_t ask_count;
    uint32_t max_data; /* what the client has said that it takes */
    struct region regions[REGIONS_MAX];
    uint32_t region_count;
    bool state_may_change, was_quiet;
    enum vfmig_state last_state;
    /* Guest memory: what it must be where the device was never allowed to write. */
    uint8_t expected[RAM_SIZE];
    uint8_t quiet[RAM_SIZE]; /* what it was when the device's DMA came to rest */
    struct {
        uint64_t from, to;
    } writable[REGIONS_MAX];
    uint32_t writable_count;
    /* The device stream. */
    uint32_t frame_sequence, frame_crc;
    uint8_t saved[SAVED_MAX];
    uint32_t saved_size;
    uint64_t reach[REACH_COUNT];
};

/* One run of a program on the chosen one of four devices; aborts when a property does not hold.
 * Counts into reach. */
void rig_run(const struct program *program, const struct variant variants[4],
             uint64_t reach[REACH_COUNT]);

/* rig_ops.c: operations. */
void ops_do(struct rig *rig, const struct op *op);
void ops_state(struct rig *rig, uint32_t value, uint8_t how);

/* rig_control.c */
void control_begin(struct rig *rig); /* the device listens */
void control_do(struct rig *rig, const struct op *op);
void control_read(struct rig *rig); /* all that is there */
void control_settle(struct rig *rig);
void control_leave(struct rig *rig);

/* rig.c, for rig_ops.c: to the server and back. */
void rig_send(struct rig *rig, bool twin, const void *data, size_t size, const int *fds,
              unsigned count);
void rig_command(struct rig *rig, uint16_t command, uint32_t flags, const void *payload,
                 uint32_t size);
/* Waits for the reply as long as the server has something to do: payload size (in rig->reply), a
 * negative error, or -EAGAIN when none came. */
int rig_call(struct rig *rig, uint16_t command, const void *payload, uint32_t size, int fd);
void rig_pump(struct rig *rig);
/* Once, behind what end has: bytes, 0 at the end, or a negative errno; *ret_fds is the caller's. */
ssize_t rig_receive(struct rig_end *end, struct vfmig_fds *ret_fds);
void rig_connect(struct rig *rig, uint8_t text);
void rig_disconnect(struct rig *rig);
int rig_ram(void);    /* guest memory */
int rig_shrink(void); /* a file that OP_TRUNCATE cuts */

/* The model, rig_model.c. A descriptor that belongs to the client is taken from msg. */
void model_sent(struct rig *rig, const void *data, size_t size, unsigned fds);
void model_reply(struct rig *rig, struct vfmig_user_msg *msg);
void model_command(struct rig *rig, const struct vfmig_user_msg *msg, bool twin);
void model_forget(struct rig *rig);
/* A new one in the list. */
void model_ask(struct rig *rig, struct request *requests, uint32_t *count,
               const struct vfmig_user_header *h, const uint8_t *payload);
bool model_fits(const struct request *request, const struct vfmig_user_msg *msg);
/* The memory that came with a reply to VERSION: *window becomes its descriptor. */
void model_window(const struct vfmig_user_caps *caps, struct vfmig_user_msg *msg, int *window);
void model_check_memory(struct rig *rig, const uint8_t *ram);

#endif
