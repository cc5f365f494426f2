/* SPDX-License-Identifier: BSD-3-Clause */
/* The server's object, shared by the files of this folder only. */
#ifndef VFMIG_DEVICE_INTERNAL_H
#define VFMIG_DEVICE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "base/bounds.h"
#include "core/dev.h"
#include "core/devstream.h"
#include "core/window.h"
#include "vfmig/device.h"
#include "wire/wire.h"

#define CONFIG_SIZE      256u
#define MSIX_CAP         0x40u
#define DATA_OFFSET      0x1000u /* of the data section in the migration region */
#define FRAME_PAYLOAD    (256u << 10) /* most in one frame of the device stream */
#define PAGE             4096u
#define LATER_SMALL      64u     /* bytes of an access that need no buffer of their own */

/* One DMA_MAP. */
struct dma_region {
    uint64_t iova, size;
    uint8_t *host; /* NULL: by message */
    void *map;     /* what to unmap */
    size_t map_size;
    uint32_t prot; /* VFMIG_USER_DMA_F_* */
};

struct dma_map {
    pthread_rwlock_t lock; /* readers: whoever copies; writer: map, unmap */
    struct dma_region *list; /* by iova */
    uint32_t count, room;
    bool all_by_message; /* also those with one */
};

enum message_state {
    MESSAGE_FREE = 0,
    MESSAGE_QUEUED,    /* its next piece is not sent yet */
    MESSAGE_SENT,
    MESSAGE_DONE,      /* a thread is to take the result */
    MESSAGE_ABANDONED, /* given up; the place, and so the id, is free when the late reply came */
};

/* A DMA access that needs the client: DMA_READ or DMA_WRITE, piece by piece. Its place in the list
 * is the id of its messages. */
struct dma_message {
    enum message_state state;
    bool waiting; /* a thread waits for MESSAGE_DONE; else done() is called */
    bool write;
    bool large;          /* its reply may be received where it belongs */
    uint32_t asked;      /* bytes asked for by the message under way */
    uint64_t turn;       /* queued ones are sent in this order */
    uint64_t iova, left; /* what is not yet done */
    uint8_t *buf;
    int err;
    struct vfmig_dma dma;
    void (*done)(void *user, int err);
    void *user;
};

/* Shut bit, generation and number of operations in flight in one word, so that begin, end, shut
 * and cut from any thread see one truth. */
#define GATE_SHUT_BIT (1ull << 63)
#define GATE_COUNT    0xffffffffull
#define GATE_GEN      (~(GATE_SHUT_BIT | GATE_COUNT))
#define GATE_GEN_ONE  (1ull << 32)

/* One logged range: bytes [iova, last]. Bit 0 is page number base, a multiple of 64. */
struct log_range {
    uint64_t iova, last;
    uint64_t base, words;
    uint64_t *bitmap;
};

/* Dirty bytes of a page whose bit was taken by a report that did not cover them. */
struct log_rest {
    uint64_t iova, last;
};

struct log_set {
    bool everything; /* no ranges were given: follows the DMA map */
    uint32_t page_shift;
    struct log_range *list; /* by iova */
    uint32_t count, room;
    uint64_t bytes;
    uint32_t rest_count;
    struct log_rest rest[VFMIG_MAX_LOG_RESTS];
};

enum log_mode { LOG_OFF = 0, LOG_ON, LOG_FROZEN };

struct dma_log {
    pthread_rwlock_t lock; /* readers: whoever marks; writer: start, stop, map, unmap, report */
    enum log_mode mode;
    struct log_set set;
};

/* Id of a request that nobody waits for. */
#define NO_REQUEST UINT64_MAX

/* A command whose reply comes later. */
struct pending {
    struct client *client; /* NULL: free */
    uint32_t serial;       /* tells it from an earlier one in the same place */
    bool unmap;
    struct vfmig_user_header header;
    uint8_t echo[32]; /* start of the reply's payload */
    uint32_t echo_size;
    uint64_t iova, size; /* unmap, size 0: all */
    uint8_t *data;       /* its bitmap, behind the echo */
    uint32_t data_size;
};

/* A write that comes as a signal. */
struct doorbell {
    uint32_t bar, size;
    uint64_t offset;
    bool match; /* of value only */
    bool held;  /* signalled, and not told to the device yet */
    uint64_t value;
    int fd; /* -1: the client has not asked for it */
};

/* ---- answers that come later (later.c) ---- */

/* What the device may have open: one call of the machine, one of the data stream, accesses. */
enum later_place { LATER_CALL = 0, LATER_STREAM, LATER_ACCESS };
#define LATER_PLACES (LATER_ACCESS + VFMIG_DEVICE_LATER_ACCESSES)

struct later {
    uint64_t serial; /* tells its handle from an earlier one of the same place */
    bool taken;      /* the device has the handle */
    bool done;       /* and has ended it */
    ssize_t result;
};

/* The buffer of an access that the device has. It stays until the device ends it, also when nobody
 * waits for the answer any more. */
struct later_access {
    struct client *client; /* NULL: nobody waits */
    struct vfmig_user_header header;
    struct vfmig_user_region_access access;
    bool write;
    uint8_t small[LATER_SMALL];
    uint8_t *large;
    uint32_t room; /* bytes of large */
};

struct laters {
    pthread_mutex_t lock; /* of places */
    struct later places[LATER_PLACES];
    atomic_bool ready;    /* one of them is done */
    unsigned calling;     /* place of the callback under way, LATER_PLACES: none */
    struct later_access access[VFMIG_DEVICE_LATER_ACCESSES];
    uint64_t bytes;       /* of all large buffers */
};

/* A data command that waits until the device has what was asked for. */
enum park_kind { PARK_NONE = 0, PARK_READ, PARK_WRITE, PARK_OFFSET, PARK_SIZE };

struct park {
    enum park_kind kind;
    struct client *client; /* NULL: nobody waits, but the data is the stream's all the same */
    struct vfmig_user_header header;
    struct vfmig_user_region_access access; /* OFFSET, SIZE */
    struct shared *section;                 /* OFFSET, SIZE: where the data is, ... */
    uint64_t base;                          /* ... SIZE: from here on */
    struct vfmig_user_window_message window; /* READ, WRITE of the shared window, else flags 0 */
    uint8_t *buf;                           /* READ, WRITE: its own */
    uint32_t at, size;
};

struct irq_state {
    pthread_mutex_t lock;
    bool latch; /* N or !R */
    uint32_t fd_count;
    int fds[VFMIG_DEVICE_VECTORS];
    uint64_t pending[VFMIG_DEVICE_VECTORS / 64];
    uint64_t masked[VFMIG_DEVICE_VECTORS / 64];   /* by SET_IRQS */
    uint64_t table_masked[VFMIG_DEVICE_VECTORS / 64]; /* by the table, once the client wrote it */
    uint8_t table[VFMIG_DEVICE_VECTORS * 16];
    bool function_masked;
};

struct device_stream {
    struct vfmig_devstream_enc enc;
    struct vfmig_devstream_dec dec;
    uint8_t *out; /* a frame built here when the reader's buffer is small */
    uint32_t out_at, out_size;
    uint8_t *in;
    bool library_saved; /* the library's own section is in the stream */
    bool library_loaded;
    bool handles_saved, handles_loaded;
    int load_err; /* first refusal by the device; stays */
    bool asked;      /* the device will say when it has data, or room for it */
    int asked_err;   /* what it said instead */
    struct vfmig_devstream_frame frame;
    bool frame_waits; /* to be loaded when the device says so */
    size_t unread;    /* of the data that stream_write was given last; saving: for faults */
    uint64_t sum_saving, sum_saved, sum_loaded; /* for a deliberate fault */
    uint64_t loaded_pending[VFMIG_DEVICE_VECTORS / 64];
};

/* IMS and PASID (C71): those in use, which are device state, and what they stand for here. */
struct handles {
    uint32_t used_count, map_count;
    struct vfmig_user_handle used[VFMIG_MAX_HANDLES]; /* value 0 */
    struct vfmig_user_handle map[VFMIG_MAX_HANDLES];
};

/* Memory shared with a client. Nothing that is relied upon lives in it: what is parsed was copied
 * out of it once before. */
struct shared {
    int fd;       /* -1: there is none */
    uint8_t *map; /* of size bytes */
    size_t size;
};

struct socket {
    int fd;
    pthread_mutex_t send_lock;
    struct vfmig_framer framer;
    uint8_t *buf;
};

/* One connection, and what was agreed on it. Messages are taken in order, replies go back to the
 * client whose command they answer. */
struct client {
    struct vfmig_device *dev;
    struct socket socket;
    bool negotiated;
    bool lost; /* to be dropped once its message is handled */
    uint32_t max_data;        /* bytes we take and give */
    uint32_t client_max_data; /* bytes the client takes */
    uint32_t client_max_fds;
    uint8_t *reply; /* payload of a reply with data */
    uint32_t reply_room;
    struct shared window; /* of the feature dialect, when it was agreed */
};

struct listener {
    int fd;
    char *path;
};

/* What the control client does with the device. It outlives the connection once the device has
 * stopped: whoever comes back with the token goes on. */
struct session {
    bool open;
    bool ended;   /* the owner reset the device or went away: this connection may only look */
    bool leaving; /* the client went away while a state write was open */
    bool frozen;  /* accesses are answered in S too */
    bool hold;    /* the owner's accesses to BARs wait until the state is loaded */
    bool loaded;  /* Z was left well since hold was set */
    char token[VFMIG_USER_TOKEN_MAX + 1];
};

/* An access of the owner that waits (HOLD). */
struct held {
    struct vfmig_user_header header;
    uint32_t size;
    uint8_t payload[VFMIG_MAX_HELD_BYTES];
};

struct vfmig_device {
    struct vfmig_device_config config;
    struct vfmig_device_ops ops;
    void *user;
    char name[VFMIG_DEVICE_NAME + 1];

    struct vfmig_dev mig;
    uint32_t features; /* 0: cannot be migrated */
    struct vfmig_window window;
    /* Data section of the v1 region, made when first needed: the owner's goes with its connection,
     * the other one with the control session, which may have several in turn. */
    struct shared owner_section, session_section;
    struct device_stream stream;
    struct handles handles;
    uint32_t drain_token; /* 0: no drain under way */
    struct laters later;
    enum vfmig_dev_call call; /* the one that is answered later, or NONE */
    uint32_t call_token;
    struct park park;
    struct doorbell doorbells[VFMIG_DEVICE_BARS * VFMIG_DEVICE_DOORBELLS];
    uint32_t doorbell_count;
    uint32_t window_at; /* bytes of the portion being prepared */

    struct irq_state irq;
    uint8_t pci_config[CONFIG_SIZE];
    uint8_t pci_writable[CONFIG_SIZE];

    atomic_uint_fast64_t gate;
    bool gate_told; /* what ops->gate was told last: true is open */
    struct dma_map dma;
    struct dma_log log;
    pthread_mutex_t message_lock;
    pthread_cond_t message_cond;
    struct dma_message messages[VFMIG_MAX_OPEN_DMA];
    uint32_t messages_asked;  /* bytes of messages under way */
    uint32_t messages_queued;
    uint32_t messages_large; /* reads under way whose replies are received where they belong */
    uint64_t message_turn;
    struct dma_message *direct; /* whose reply is being received so, or NULL; serving thread only */
    uint32_t direct_at;         /* bytes of its payload received */

    struct client owner;   /* the VMM that has the device */
    struct client control; /* a migration engine beside it */
    struct socket twin;    /* of the owner, for our DMA_READ and DMA_WRITE */
    struct session session;
    struct pending pending[VFMIG_MAX_PENDING];
    uint32_t pending_unmaps;
    uint32_t pending_serial;
    struct held held[VFMIG_MAX_HELD];
    uint32_t held_count;
    bool releasing; /* the owner has gone, the device is not fresh yet */
    bool keep_pci; /* the reset under way is the control client's: config space is the owner's */

    int epoll, wake, timer_fd;
    struct listener listen_owner, listen_control;
    atomic_bool stopping;
    pthread_t serving;
    bool is_serving;
    bool started; /* own: the library's thread, its result in own_result, own_error */
    pthread_t own;
    int own_result;
    struct vfmig_error own_error;
    uint64_t timers[VFMIG_DEVICE_TIMERS];
    uint64_t timer_armed; /* what timer_fd is set to */
    atomic_uint_fast64_t counts[sizeof(struct vfmig_device_counters) / 8];
};

#define COUNT(dev, member) \
    atomic_fetch_add_explicit( \
        &(dev)->counts[offsetof(struct vfmig_device_counters, member) / 8], 1, memory_order_relaxed)

/* socket.c: one connected socket. */
void socket_init(struct socket *s);
int socket_open(struct socket *s, int fd, uint32_t max_message);
void socket_close(struct socket *s);
/* Reads once, without waiting, at most so many bytes. >0: bytes; 0: closed; -EAGAIN: nothing there;
 * other: lost. */
ssize_t socket_receive(struct socket *s, size_t most);
/* Sends all of it, waiting for room if need be. 0, or an errno: the connection is lost. */
int socket_send(struct socket *s, const struct iovec *iov, unsigned count, const int *fds,
                unsigned fd_count, atomic_bool *give_up);

/* server.c */
enum source {
    SOURCE_LISTEN_OWNER,
    SOURCE_LISTEN_CONTROL,
    SOURCE_OWNER,
    SOURCE_CONTROL,
    SOURCE_TWIN,
    SOURCE_WAKE,
    SOURCE_TIMER,
    SOURCE_DOORBELL, /* and one for each */
    SOURCE_COUNT
};

int server_init(struct vfmig_device *dev, struct vfmig_error *reterr);
void server_done(struct vfmig_device *dev);
int server_watch(struct vfmig_device *dev, int fd, unsigned source);
/* c is gone: the next one may come in. */
void server_listen_again(struct vfmig_device *dev, const struct client *c);
void server_wake(struct vfmig_device *dev);
void server_rearm(struct vfmig_device *dev);
bool server_on_thread(const struct vfmig_device *dev);

/* shared.c */
void shared_init(struct shared *s);
/* size bytes at offset of a new file, both multiples of the page size. */
int shared_make(struct shared *s, uint64_t offset, uint64_t size);
void shared_drop(struct shared *s);

/* client.c */
void client_init(struct client *c, struct vfmig_device *dev);
int client_open(struct client *c, int fd, enum source source);
void client_close(struct client *c);
/* Closes, and does what its going means for the device. */
void client_drop(struct client *c);
/* Reads once and handles all that is whole. False: nothing was there. */
bool client_readable(struct client *c);
void twin_readable(struct vfmig_device *dev);
int server_add_twin(struct vfmig_device *dev, int *ret_client_end);
int server_reply(struct client *c, const struct vfmig_user_header *request, const void *fixed,
                 uint32_t fixed_size, const void *data, uint32_t size, const int *fds,
                 unsigned fd_count);
int server_error(struct client *c, const struct vfmig_user_header *request, int err);
struct pending *server_defer(struct client *c, const struct vfmig_user_header *request,
                             const void *echo, uint32_t size, uint64_t *ret_id);
void server_answer(struct vfmig_device *dev, uint64_t id, int err);
/* Everything that c waits for ends with -ECANCELED. */
void server_cancel(struct client *c);

/* control.c: the control client's session, and the rights of each client. */
int control_allowed(struct client *c, const struct vfmig_user_msg *msg);
int control_join(struct client *c, const char *token);
void control_gone(struct vfmig_device *dev);
void control_owner_gone(struct vfmig_device *dev);
void control_owner_reset(struct vfmig_device *dev);
/* What waited for a state write to end. */
void control_poll(struct vfmig_device *dev);
/* A state write of the control client is next: the owner's posted writes and doorbells that are
 * queued already take effect before it. */
void control_before(struct client *c, const struct vfmig_user_msg *msg);
/* The owner's access to a BAR waits: 0, or -EBUSY when too many do. */
int control_hold_access(struct client *c, const struct vfmig_user_msg *msg);
void control_set_hold(struct vfmig_device *dev, bool hold);
/* Operations of the control client's features, 0 for any other, and what they do. */
uint32_t control_feature_ops(const struct client *c, uint32_t feature);
int control_feature(struct client *c, struct vfmig_user_msg *msg, uint32_t feature, bool set);

/* handle.c */
#define HANDLES_SAVED_MAX (VFMIG_MAX_HANDLES * 8u)
/* A reset: none is in use. The map stays, as the DMA map does; it goes with the client. */
void handle_reset(struct vfmig_device *dev);
void handle_unmap_all(struct vfmig_device *dev);
/* -ENOENT: one in use stands for nothing here. */
int handle_check(const struct vfmig_device *dev);
/* Into buf, at most HANDLES_SAVED_MAX; returns the bytes. */
uint32_t handle_save(const struct vfmig_device *dev, uint8_t *buf);
int handle_load(struct vfmig_device *dev, const uint8_t *data, uint32_t length);
int handle_feature(struct client *c, struct vfmig_user_msg *msg, bool set);

/* doorbell.c */
int doorbell_hand_out(struct client *c, const struct vfmig_user_msg *msg);
void doorbell_rung(struct vfmig_device *dev, unsigned i);
/* All that are signalled take effect now. */
void doorbell_flush(struct vfmig_device *dev);
/* Those that had to wait. */
void doorbell_release(struct vfmig_device *dev);
/* A reset: what was signalled before it is forgotten. */
void doorbell_drop(struct vfmig_device *dev);
/* The client has gone: whoever has its eventfds rings nothing any more. */
void doorbell_close(struct vfmig_device *dev);

/* command.c: 0 when answered or deferred; a negative errno is sent as the error reply. */
int command_handle(struct client *c, struct vfmig_user_msg *msg);

/* Does an access to a BAR reach the device? */
bool mmio_reaches(const struct vfmig_device *dev);

int version_handle(struct client *c, struct vfmig_user_msg *msg);

/* pci.c */
int pci_init(struct vfmig_device *dev, struct vfmig_error *reterr);
void pci_reset(struct vfmig_device *dev);
void pci_config_read(struct vfmig_device *dev, uint64_t offset, uint8_t *data, uint32_t size);
void pci_config_write(struct vfmig_device *dev, uint64_t offset, const uint8_t *data,
                      uint32_t size);
/* True when the access touches table or PBA, and was served. */
bool msix_access(struct vfmig_device *dev, uint32_t bar, uint64_t offset, uint8_t *data,
                 uint32_t size, bool write);
int irq_set(struct vfmig_device *dev, struct vfmig_user_msg *msg);
void irq_init(struct vfmig_device *dev);
void irq_latch(struct vfmig_device *dev, bool latch);
/* A deliberate fault: interrupts all the time. True while they come. */
bool irq_storm(struct vfmig_device *dev);
void irq_drop(struct vfmig_device *dev);
void irq_detach_all(struct vfmig_device *dev);
void irq_get_pending(struct vfmig_device *dev, uint64_t *ret_bits);

/* dma.c */
void dma_lock_init(pthread_rwlock_t *lock);
void dma_init(struct vfmig_device *dev);
void dma_done(struct vfmig_device *dev);
/* Whatever of an access needs no message. 0: all done; 1: a message for *ret_piece bytes is next
 * (buf, iova and size are advanced); -EFAULT; -ECANCELED when the generation is over. */
int dma_access(struct vfmig_device *dev, uint64_t generation, bool write, uint64_t *iova,
               uint8_t **buf, uint64_t *size, uint64_t *ret_piece);
int dma_map_add(struct vfmig_device *dev, const struct vfmig_user_dma_map *map, int fd);
int dma_map_remove(struct vfmig_device *dev, uint64_t iova, uint64_t size);
void dma_map_clear(struct vfmig_device *dev);
/* All DMA by message from now on, mapped memory too, or by mapping again. */
void dma_by_message(struct vfmig_device *dev, bool all);
/* Up to room struct vfmig_user_map_entry from *next on. */
uint32_t dma_map_entries(struct vfmig_device *dev, uint64_t *next, void *entries, uint32_t room,
                         bool *ret_more);
bool dma_map_touches(const struct vfmig_device *dev, uint64_t iova, uint64_t size);
void dma_gate_shut(struct vfmig_device *dev);
void dma_gate_open(struct vfmig_device *dev);
void dma_gate_cut(struct vfmig_device *dev);

/* message.c: DMA by message */
/* -EINPROGRESS: done follows. -EAGAIN: VFMIG_MAX_OPEN_DMA are open. */
int message_start(struct vfmig_dma *dma, bool write, uint64_t iova, uint8_t *buf, uint64_t size,
                  void (*done)(void *, int), void *user);
int message_wait(struct vfmig_dma *dma, bool write, uint64_t iova, uint8_t *buf, uint64_t size);
void message_reply(struct vfmig_device *dev, const struct vfmig_user_msg *msg);
/* The most to receive from the twin socket, so that a large reply can be received directly. */
size_t message_receive_max(struct vfmig_device *dev);
/* Receives from a large reply, whose start is in the twin's framer, straight into the device's
 * buffer. False: no such reply is under way. */
bool message_receive_direct(struct vfmig_device *dev);
/* Ends all that is under way: -EINTR is told to the device, -ECANCELED only to waiting threads. */
void message_abort(struct vfmig_device *dev, int err);
/* The connection has ended: replies that were still to come will not. */
void message_forget(struct vfmig_device *dev);
/* Is a message for [iova, iova + size) under way (size 0: any)? */
bool message_touches(struct vfmig_device *dev, uint64_t iova, uint64_t size);
/* Marks in the log what messages under way write there. */
void message_mark(struct vfmig_device *dev, uint64_t iova, uint64_t size);

/* log.c */
void log_init(struct dma_log *log);
void log_done(struct dma_log *log);
int log_start(struct vfmig_device *dev, uint64_t page_size,
              const struct vfmig_user_log_range *ranges, uint32_t count);
int log_stop(struct vfmig_device *dev);
void log_client_reset(struct vfmig_device *dev);
/* Off, nothing left of it. */
void log_forget(struct vfmig_device *dev);
/* Takes up to room dirty ranges (struct vfmig_user_log_range) from *next on out of the log. */
uint32_t log_take_ranges(struct vfmig_device *dev, uint64_t *next, void *entries, uint32_t room,
                         bool *ret_more);
void log_mark(struct vfmig_device *dev, uint64_t iova, uint64_t size);
/* Reads and clears into bitmap, of which every word that holds a page is written. */
int log_report(struct vfmig_device *dev, uint64_t iova, uint64_t size, uint64_t page_size,
               uint64_t *bitmap);
int log_mapped(struct vfmig_device *dev, uint64_t iova, uint64_t size);
/* Every mapping in [iova, iova + size). */
void log_unmapped(struct vfmig_device *dev, uint64_t iova, uint64_t size);
/* Is any of it logged? */
bool log_covers(const struct vfmig_device *dev, uint64_t iova, uint64_t size);
uint64_t log_bitmap_bytes(uint64_t size, uint64_t page_size);
int log_dirty_pages(struct client *c, struct vfmig_user_msg *msg);
int log_feature(struct client *c, struct vfmig_user_msg *msg, uint32_t feature, bool set);

/* later.c */
void later_init(struct vfmig_device *dev);
void later_done(struct vfmig_device *dev);
/* Around a callback that may be answered later. end: what it returned; -EINPROGRESS only when the
 * device has taken the handle. */
void later_begin(struct vfmig_device *dev, unsigned place);
ssize_t later_end(struct vfmig_device *dev, unsigned place, ssize_t result);
bool later_taken(struct vfmig_device *dev, unsigned place);
/* Whatever place has open is nobody's any more. */
void later_forget(struct vfmig_device *dev, unsigned place);
/* What the device has ended since. */
void later_poll(struct vfmig_device *dev);
/* An access that reaches the device. c NULL: a doorbell. Answered, or the reply comes later; a
 * negative errno is the device's, or -EBUSY when too many are open. */
int later_access(struct client *c, struct vfmig_device *dev, const struct vfmig_user_header *header,
                 const struct vfmig_user_region_access *access, const void *data, bool write);
/* No place for another access. */
bool later_is_full(struct vfmig_device *dev);
/* A reset: open accesses are answered with -ECANCELED. */
void later_cancel_accesses(struct vfmig_device *dev);

/* park.c: data commands that wait for the device. All return 0 when parked. */
/* May a data command be taken? -EBUSY: another one is parked, or the data is being looked at. */
int park_check(const struct vfmig_device *dev);
/* Data is being taken: Z cannot be left yet. */
bool park_loads(const struct vfmig_device *dev);
/* n: what stream_read gave for the first of size bytes in c->reply. True: it is not all. */
bool park_is_short(const struct vfmig_device *dev, ssize_t n, size_t size);
int park_read(struct client *c, const struct vfmig_user_msg *msg, ssize_t n, uint32_t size);
int park_write(struct client *c, const struct vfmig_user_msg *msg, const uint8_t *data,
               uint32_t size);
/* In the region dialect; base: place in the section of what is loaded. */
int park_region(struct client *c, const struct vfmig_user_msg *msg, enum park_kind kind,
                struct shared *section, uint64_t base);
/* n: what stream_read put into c's shared window. */
int park_window_read(struct client *c, const struct vfmig_user_msg *msg, ssize_t n, uint32_t size);
/* The device has said so: go on. */
void park_continue(struct vfmig_device *dev);
/* The stream is over: -ECANCELED. */
void park_cancel(struct vfmig_device *dev);
/* The section goes away, or its content is now in another one. */
void park_drop_section(struct vfmig_device *dev, const struct shared *section);
void park_move_section(struct vfmig_device *dev, const struct shared *from, struct shared *to);
/* c is gone. */
void park_forget(struct client *c);

/* migrate.c */
/* The call that was answered later has ended. */
void migrate_call_done(struct vfmig_device *dev, ssize_t result);
int migrate_init(struct vfmig_device *dev, struct vfmig_error *reterr);
void migrate_event(struct vfmig_device *dev, enum vfmig_dev_event_type type, uint32_t value,
                   uint64_t id);
/* Whatever other threads or time have finished: drains, deadlines, unmaps. */
void migrate_poll(struct vfmig_device *dev);
int migrate_feature(struct client *c, struct vfmig_user_msg *msg);
/* Reply to a GET of DEVICE_FEATURE. */
int feature_reply(struct client *c, struct vfmig_user_msg *msg, const void *data, uint32_t size);
int migrate_data_read(struct client *c, struct vfmig_user_msg *msg);
int migrate_data_write(struct client *c, struct vfmig_user_msg *msg);

/* region.c: the v1 migration region */
int region_v1_read(struct client *c, struct vfmig_user_msg *msg);
int region_v1_write(struct client *c, struct vfmig_user_msg *msg);
/* Prepares a portion. -EINPROGRESS: the device will say when to go on. */
int region_v1_prepare(struct vfmig_device *dev, const struct shared *section, uint64_t *ret_offset);
int region_reply(struct client *c, const struct vfmig_user_header *request,
                    const struct vfmig_user_region_access *access, const void *data);
/* The data section that c uses, or NULL: no memory, or a control client without a session. */
struct shared *region_section(struct client *c);
/* The control session takes the migration over from the owner, portions and all. */
int region_hand_over(struct vfmig_device *dev);
void region_drop_section(struct vfmig_device *dev, struct shared *section);

/* stream.c: the device stream between author and client */
void stream_save_begin(struct vfmig_device *dev);
void stream_load_begin(struct vfmig_device *dev);
void stream_drop(struct vfmig_device *dev);
/* Fills buf; less than size: nothing more now. Negative errno from the device. shared: a client
 * can change the bytes at any time. */
ssize_t stream_read(struct vfmig_device *dev, uint8_t *buf, size_t size, bool shared);
/* -EINPROGRESS: stream.unread bytes are left, to be given again from there when the device says
 * so. */
int stream_write(struct vfmig_device *dev, const uint8_t *data, size_t size, bool shared);
/* Is all there? Then load_end is next, and after it the library's own state is taken over. */
int stream_finish(struct vfmig_device *dev);
void stream_loaded(struct vfmig_device *dev);
uint64_t stream_left(struct vfmig_device *dev);
uint64_t stream_final_size(struct vfmig_device *dev);

#endif
