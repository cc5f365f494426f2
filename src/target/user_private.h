/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the vfio-user client share. */
#ifndef VFMIG_TARGET_USER_PRIVATE_H
#define VFMIG_TARGET_USER_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/bounds.h"
#include "target/conn.h"
#include "target/user.h"

/* Data bytes in one request to a server that might read a body with a single recv (seen in
 * libvfio-user). The whole message stays below one chunk of a unix socket. */
#define USER_CAREFUL_BYTES 32768u

#define USER_CONFIG_BYTES 4096u /* of config space that are kept for a time when it is refused */
#define USER_MAX_DEFERRED 8u    /* set_irqs calls that wait for another state */

/* Place of the registers in the v1 migration region. */
#define USER_REG(field) offsetof(struct vfmig_user_mig_region, field)

/* A DMA by message that is being served; held is its place in user_late while it is open. */
struct user_serving {
    struct vfmig_conn *conn;
    struct vfmig_user_header request;
    struct vfmig_user_dma_access access;
    const uint8_t *written; /* NULL: a read */
    bool taken;             /* a handle was given ... */
    uint64_t id;            /* ... this one */
};

/* DMAs by message whose answer comes later. */
struct user_late {
    pthread_mutex_t lock;
    struct user_late_dma *open[VFMIG_MAX_LATE_DMA]; /* by the low bits of the id */
    uint64_t bytes;
    uint64_t turns; /* makes every id another one */
    struct user_serving *serving; /* what the callback under way is for; its thread only */
};

/* A DMA mapping, as the server was told. */
struct user_map {
    uint64_t iova, size;
    bool by_message; /* no descriptor */
};

struct user_irqs;

struct user {
    struct vfmig_target base;
    struct vfmig_user_options opt; /* timeouts filled in */
    struct vfmig_conn *conn;

    /* DMA by message. */
    struct vfmig_conn *twin; /* NULL: commands come over conn */
    pthread_t twin_thread;
    void *dma_buffer;        /* max_data bytes, of whoever serves (one at a time) */
    _Atomic(struct vfmig_tracker *) own;
    struct user_late late;

    /* Negotiated. */
    uint32_t max_data;   /* bytes of data that both sides handle in one message */
    uint32_t max_write;  /* bytes of data in one of our requests */
    uint32_t max_fds;
    uint64_t region_flags[16];
    uint64_t log_size;   /* feature dialect: page size that the log insists on, 0: ours */
    uint64_t region_pgsize; /* page size of DIRTY_PAGES */
    bool ours;           /* the server is this project's */
    bool log_region;     /* VERSION has the migration capability: DIRTY_PAGES may work */

    /* Region dialect; index 0 is a BAR, so 0 means none. */
    uint32_t mig_index;
    uint64_t mig_size;
    bool mig_ndma;
    uint8_t *window;     /* mapping of part of the migration region, or NULL */
    uint64_t window_offset, window_size;
    void *copy;          /* a portion that is not mapped, for save_in_place; copy_size bytes */
    uint64_t copy_size;
    bool sealed;         /* the mapping cannot lose its pages */
    bool halfway;        /* a change out of R failed: it may have stopped all the same */
    bool held;           /* Z stands for {} (options.late_load) */
    bool saved_before;   /* an earlier session had data, and no reset came after it */
    bool saved;          /* this session has had some */
    bool unacknowledged; /* a portion is in use where it lies */
    uint64_t part_offset, part_left; /* saving: of a portion that is taken in parts */
    uint64_t load_offset, load_size; /* loading: window in use, and bytes written to it */
    bool loading_part;   /* ... and not told yet */
    uint64_t pending;    /* what the acknowledging read of pending_bytes said; 0: ask again */

    /* Feature dialect. */
    uint8_t *shared;     /* mapping of shared_count windows of shared_size bytes, or NULL */
    uint32_t shared_size, shared_count;
    uint32_t turn;       /* which of them is next */
    bool data_size;      /* the server counts what is left to save: one of ours */
    bool ended;          /* S: the last read was short, or empty, so the stream is over */
    bool doubtful;       /* S: the last read was short, which need not be the end */
    struct vfmig_ticket *loading; /* MIG_DATA_WRITE whose reply is not looked at yet */
    _Atomic(enum vfmig_state) asked; /* by the last successful set_state */

    /* For servers of other makes (user_quirks.c). */
    uint8_t config[USER_CONFIG_BYTES];
    uint32_t config_size; /* 0: none kept */
    struct user_irqs *deferred[USER_MAX_DEFERRED];
    uint32_t deferred_count;
    pthread_mutex_t deferred_lock;
    pthread_mutex_t maps_lock;
    struct user_map *maps;
    uint32_t map_count;
    bool maps_unknown; /* there were too many */
};

extern const struct vfmig_target_ops user_feature_ops, user_region_ops;

/* One request with the target's usual deadline, or another one; the error gets the name. */
int user_call(struct user *u, struct vfmig_call *call, struct vfmig_error *reterr);
int user_call_until(struct user *u, struct vfmig_call *call, uint64_t deadline_ns,
                    struct vfmig_error *reterr);

/* True when a failed call left the connection usable and the server just refused. */
bool user_refused(struct user *u, const struct vfmig_error *err);

/* The reply to the last MIG_DATA_WRITE, if it is still to come. */
int user_settle(struct user *u, struct vfmig_error *reterr);

/* DEVICE_FEATURE. flags: operation and feature. size bytes of data go with it and, for GET, up to
 * room bytes come back; *ret_size (may be NULL) tells how many. */
int user_feature(struct user *u, uint32_t flags, void *data, uint32_t size, uint32_t room,
                 uint32_t *ret_size, uint64_t deadline_ns, struct vfmig_error *reterr);

/* Config space is read before a change to S, in case the server refuses to tell it there; true: data
 * was answered from that. */
void user_keep_config(struct user *u);
bool user_kept_config(const struct user *u, uint32_t region, uint64_t offset, void *data,
                      uint32_t size);

/* Interrupts that the server refuses now, because it is stopped, are attached by user_catch_up once it
 * is in another state. Descriptors are duplicated. */
bool user_may_defer(const struct user *u);
int user_defer_irqs(struct user *u, uint32_t index, uint32_t start, uint32_t count, const int *fds,
                    struct vfmig_error *reterr);
int user_catch_up(struct user *u, struct vfmig_error *reterr);

/* Servers of other makes get a mapping in pieces of at most so many bytes: they report from the start
 * of a mapping only, and one report is one message. */
uint64_t user_map_piece(const struct user *u);
void user_note_map(struct user *u, uint64_t iova, uint64_t size, bool by_message);
void user_note_unmap(struct user *u, uint64_t iova, uint64_t size);
void user_quirks_done(struct user *u);

/* The common operations of both dialects. */
int user_reset(struct vfmig_target *t, struct vfmig_error *reterr);
int user_dma_map(struct vfmig_target *t, uint64_t iova, uint64_t size, int fd, uint64_t fd_offset,
                 uint32_t prot, struct vfmig_error *reterr);
int user_dma_unmap(struct vfmig_target *t, uint64_t iova, uint64_t size,
                   struct vfmig_error *reterr);
int user_region_read(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                     uint32_t size, struct vfmig_error *reterr);
int user_region_write(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                      uint32_t size, bool posted, struct vfmig_error *reterr);
int user_set_irqs(struct vfmig_target *t, uint32_t index, uint32_t start, uint32_t count,
                  const int *fds, struct vfmig_error *reterr);
void user_close(struct vfmig_target *t);
int user_get_handles(struct vfmig_target *t, struct vfmig_handle *ret_handles, uint32_t room,
                     uint32_t *ret_count, struct vfmig_error *reterr);
int user_set_handles(struct vfmig_target *t, const struct vfmig_handle *handles, uint32_t count,
                     struct vfmig_error *reterr);

/* Just the commands. */
int user_send_irqs(struct user *u, uint32_t index, uint32_t start, uint32_t count, const int *fds,
                   struct vfmig_error *reterr);
int user_send_reset(struct user *u, struct vfmig_error *reterr);

/* Region access with a deadline of its own. */
int user_region_access(struct user *u, uint32_t region, uint64_t offset, void *read_to,
                       const void *write_from, uint32_t size, uint64_t deadline_ns,
                       struct vfmig_error *reterr);

/* What vfmig_user_open finds out (user_setup.c): the VERSION exchange, the description, and which
 * dialects the device speaks. */
int user_negotiate(struct user *u, struct vfmig_error *reterr);
int user_describe(struct user *u, struct vfmig_error *reterr);
int user_choose_dialect(struct user *u, struct vfmig_error *reterr);

/* Region dialect, a fresh device: can it go from Z to {}? Fills info.halt. */
int user_try_halt(struct user *u, struct vfmig_error *reterr);

/* Serves a command that came over the main socket (a vfmig_conn_serve; user_dma.c), and the twin
 * socket's thread, which takes fd. */
int user_main_serve(void *opaque, struct vfmig_user_msg *msg, struct vfmig_error *reterr);
int user_twin_start(struct user *u, int fd, struct vfmig_error *reterr);
void user_twin_stop(struct user *u);

/* DMA that is answered later (user_later.c). The callback for serving has returned r: what is to be
 * replied now, or -EINPROGRESS for nothing. */
int user_late_settle(struct user *u, struct user_serving *serving, int r);
/* The target is closed: nobody may use a handle or its data any more. Before that they stay, also
 * when the connection has ended, because another thread may be at work on the data. */
void user_late_forget(struct user *u);
int user_dma_reply(struct vfmig_conn *conn, const struct vfmig_user_header *request,
                   const struct vfmig_user_dma_access *access, const void *data, int r,
                   struct vfmig_error *reterr);

/* Bytes of the bitmap of size bytes of memory. */
static inline uint64_t user_bitmap_bytes(uint64_t size, uint64_t page_size)
{
    uint64_t bits = size / page_size + (size % page_size != 0);
    return (bits / 64 + (bits % 64 != 0)) * 8;
}

/* Bytes of bitmap in one message. */
uint64_t user_report_bytes(const struct user *u);

/* Fetches a log in pieces that fit a message and ORs them into bitmap; one fetches the bytes of a
 * piece into words. */
typedef int (*user_report_fn)(struct user *u, uint64_t iova, uint64_t size, uint64_t page_size,
                              uint64_t *words, uint32_t bytes, struct vfmig_error *reterr);
int user_same_report(const struct user *u, const struct vfmig_user_feature_log_report *asked,
                     const struct vfmig_user_feature_log_report *told, struct vfmig_error *reterr);
int user_report_range(struct user *u, user_report_fn fetch, uint64_t iova, uint64_t size,
                      uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr);
/* The same, from servers of other makes mapping by mapping. */
int user_log_report(struct user *u, user_report_fn fetch, uint64_t iova, uint64_t size,
                    uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr);

#endif
