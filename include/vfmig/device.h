/* SPDX-License-Identifier: BSD-3-Clause */
/* The device side: write a PCI device as a few callbacks, get a vfio-user server with the whole
 * migration driver of the RFC "vfio: Documentation for the migration region" in both dialects
 * (DEVICE_FEATURE messages, and the v1 migration region).
 *
 * Threads. Every callback runs on the serving thread: the one in vfmig_device_run() or
 * vfmig_device_dispatch(), or the one of vfmig_device_start(). Functions marked [any thread] may be
 * called from others as well, all others only on the serving thread or while nothing serves the
 * device.
 *
 * States. A device runs, or it is stopped (!R). While it is stopped the library answers region
 * reads with all ones and drops writes (C51), holds timers, keeps interrupts as pending causes and
 * refuses DMA; MSI-X table, PBA and config space go on working (C46-C49). Under N ("NDMA") it runs
 * but may start no DMA (C31).
 *
 * Results: 0 or positive is success, negative is an errno. Where there is a reterr it may be NULL. */
#ifndef VFMIG_DEVICE_H
#define VFMIG_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "vfmig/error.h"
#include "vfmig/limits.h"
#include "vfmig/state.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VFMIG_DEVICE_VERSION 1u

struct vfmig_device;

/* One BAR. Accesses outside 1, 2, 4, 8 bytes at natural alignment reach region_read and
 * region_write as they came. */
struct vfmig_device_bar {
    uint64_t size;     /* bytes, a power of two of at least 16; 0: absent */
    bool is_64bit;     /* takes the next BAR's place too */
    bool prefetchable;
};

/* What the device is. Start from VFMIG_DEVICE_CONFIG_INIT; members left 0 take the defaults. It
 * and the callbacks only ever grow at their end: a program built for an older library hands in a
 * smaller struct, whose missing members are 0; one built for a newer library a larger one, which is
 * taken as long as what this library does not know is 0. */
struct vfmig_device_config {
    size_t size;      /* of this struct */
    uint32_t version; /* VFMIG_DEVICE_VERSION */

    const char *name; /* for messages; copied; default "device" */
    uint16_t pci_vendor, pci_device, pci_subvendor, pci_subdevice;
    uint32_t pci_class; /* 24 bits: class, subclass, interface; default 0xff0000 */
    uint8_t pci_revision;
    struct vfmig_device_bar bars[VFMIG_DEVICE_BARS];

    uint32_t msix_vectors; /* 0: no MSI-X */
    uint32_t msix_bar;     /* the BAR with table and PBA, each 8-byte aligned inside it */
    uint64_t msix_table;
    uint64_t msix_pba;

    bool no_ndma;            /* the device cannot stop its DMA alone: N is refused (C69) */
    bool no_precopy;         /* save_precopy is not used */
    bool no_dma_log;         /* the library's log of the device's DMA is not offered to clients */
    uint32_t state_format;   /* tells kinds of device state apart; default from the PCI ids */
    uint32_t state_version;  /* of what save writes */
    uint32_t state_oldest;   /* oldest version that load takes */
    uint64_t drain_timeout_ns; /* for DMA in flight when N is asked for (A21); default 10 s */
    uint32_t window_bytes;     /* one window of device data, mapped by the client, and the most in
                                  a portion of the region dialect; default and least 1 MiB, most
                                  64 MiB, whole pages */
    uint32_t max_data_xfer_bytes; /* data in one message; default 1 MiB, most 64 MiB */
    bool answers_stopped; /* region_read and region_write may be called after stop, when a control
                             client froze the device (docs/control.md): they behave as under N, and
                             what they change is not in the state that was saved */
    uint32_t window_count; /* windows that are used in turn; default 2, most 8 */
    bool save_writes_only; /* save and save_precopy never read what they wrote into buf: it may then
                              be memory that the client can change meanwhile, which saves a copy */
};

#define VFMIG_DEVICE_CONFIG_INIT {.size = sizeof(struct vfmig_device_config), \
                                  .version = VFMIG_DEVICE_VERSION}

/* What the device does. Start from VFMIG_DEVICE_OPS_INIT. A device that leaves out save or load
 * cannot be migrated and says so; everything else has the default given. user is the pointer
 * given to vfmig_device_new(). No callback may call run, dispatch, join or free.
 *
 * Those marked [later] need not answer at once: see vfmig_device_later(). */
struct vfmig_device_ops {
    size_t size;
    uint32_t version;

    /* An access to BAR `bar`, inside it and outside MSI-X table and PBA, only while the device
     * runs. A negative errno becomes the client's error. A write of size 0 is a doorbell. Default: reads 0, drops writes. [later:
     * data stays until the handle is ended; other accesses may come before] */
    int (*region_read)(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size);
    int (*region_write)(void *user, uint32_t bar, uint64_t offset, const void *data,
                        uint32_t size);

    /* Internal state as at power on; forget DMA under way (its handles are dead) and timers.
     * Called on a client's reset, when the client is gone, and before data is loaded. It may not
     * fail. Default: nothing. [later] */
    void (*reset)(void *user);

    /* The device is about to stop (R is cleared): DMA is drained already, internal state must
     * not change any more (C33), nor by an access that is still to be answered. Default: success.
     * [later] */
    int (*stop)(void *user);

    /* The device runs again (R is set), or for the first time after load: look at the loaded
     * state and set timers. DMA may still be refused: see gate. Default: success. [later] */
    int (*start)(void *user);

    /* DMA is refused from now on (open = false), or allowed again: go on with what was put off.
     * Called only while the device runs. Default: nothing. */
    void (*gate)(void *user, bool open);

    /* A save begins. running: pre-copy, log changes of internal state from now on (C21, C38).
     * Otherwise capture: save() is next. After a pre-copy save_begin is called again with
     * running = false, and save() presents what was not yet saved and what changed (C65).
     * Default: success. [later] */
    int (*save_begin)(void *user, bool running);

    /* Pre-copy: up to size bytes of state into buf. 0: nothing now (A16). Size is at least 4096,
     * buf is aligned to 8 bytes (so is data of load).
     * Default (or config.no_precopy): the device has no pre-copy in the feature dialect, and an
     * empty one in the region dialect (C22). [later: it is called again] */
    ssize_t (*save_precopy)(void *user, void *buf, size_t size);

    /* The same while stopped, until it returns 0: all is saved. [later: it is called again] */
    ssize_t (*save)(void *user, void *buf, size_t size);

    /* Nobody wants the rest of this save: stop logging changes. Default: nothing. */
    void (*save_end)(void *user);

    /* Data of one save or save_precopy call, whole and in the order of saving; reset() came
     * before the first. The bytes are known to be those of one save of a device with the same
     * state_format. They come from another machine: check them. A negative errno refuses them.
     * [later: it is called again with the same bytes, which may then be at another place] */
    int (*load)(void *user, const void *data, size_t size);

    /* All data was there and is loaded: last checks. Default: success. [later] */
    int (*load_end)(void *user);

    /* Estimates, any state: bytes that save_precopy (0: nothing now) and save would still give.
     * Default: found out by asking save_precopy; unknown for save. */
    void (*left)(void *user, uint64_t *ret_precopy, uint64_t *ret_final);

    /* Timer `timer` is due. Default: nothing. */
    void (*timer)(void *user, uint32_t timer);

    /* vfmig_device_free() is at its end: the device handle is dead, free what user points to.
     * Also called when vfmig_device_new() fails. Default: nothing. */
    void (*free)(void *user);
};

#define VFMIG_DEVICE_OPS_INIT {.size = sizeof(struct vfmig_device_ops), \
                               .version = VFMIG_DEVICE_VERSION}

/* Makes a device that runs and has no client yet; config and ops are copied.
 * -EINVAL: a member is out of range (the sentence says which). -ENOMEM. On failure too, user is
 * freed by ops->free where there is one. */
int vfmig_device_new(const struct vfmig_device_config *config, const struct vfmig_device_ops *ops,
                     void *user, struct vfmig_device **ret_dev, struct vfmig_error *reterr)
    __attribute__((warn_unused_result));

/* Closes everything and calls ops->free, nothing else; NULL is fine. No other thread may use the
 * device. */
void vfmig_device_free(struct vfmig_device *dev);

/* Listens on a unix socket at path; one client at a time, the next one waits until it has gone.
 * A socket that nobody listens on any more is replaced; the path is removed by free.
 * -EADDRINUSE: another server is there. -ENAMETOOLONG; other errnos from the system. */
int vfmig_device_listen(struct vfmig_device *dev, const char *path, struct vfmig_error *reterr)
    __attribute__((warn_unused_result));

/* Listens for a control client beside the owner: a migration engine that drives the migration of a
 * device whose VMM cannot (docs/control.md). Whoever may open the path has that right. As above. */
int vfmig_device_listen_control(struct vfmig_device *dev, const char *path,
                                struct vfmig_error *reterr) __attribute__((warn_unused_result));

/* Serves an already connected socket; fd belongs to the device now, also on failure.
 * -EBUSY: there is a client. */
int vfmig_device_attach_fd(struct vfmig_device *dev, int fd, struct vfmig_error *reterr)
    __attribute__((warn_unused_result));

/* Serves until vfmig_device_stop(), or until the only client has gone when nothing listens.
 * Returns 0 then. A client that breaks the protocol is dropped; that is no failure here. */
int vfmig_device_run(struct vfmig_device *dev, struct vfmig_error *reterr);

/* Makes run, and the thread of start, return soon. [any thread, signal handlers] */
void vfmig_device_stop(struct vfmig_device *dev);

/* run in a thread of the library's own, which takes no signals but those of faults. From then on
 * until join only what is marked [any thread] may be called, callbacks apart. -EBUSY: started
 * already, and not joined. Other errnos: there is no thread. */
int vfmig_device_start(struct vfmig_device *dev, struct vfmig_error *reterr)
    __attribute__((warn_unused_result));

/* Waits until that run has returned (see stop), and returns what it did. -EINVAL: not started.
 * free does both where it was not done. */
int vfmig_device_join(struct vfmig_device *dev, struct vfmig_error *reterr);

/* For a caller's own loop, of one device or of many: a descriptor that is readable whenever
 * dispatch has work, and the work, without waiting for more. dispatch returns 1 when run would have
 * returned, else 0. */
int vfmig_device_poll_fd(struct vfmig_device *dev);
int vfmig_device_dispatch(struct vfmig_device *dev, struct vfmig_error *reterr);

/* state_version of the machine that saved what is being loaded. Valid in load and load_end. */
uint32_t vfmig_device_load_version(const struct vfmig_device *dev);

/* Raises MSI-X vector `vector`. Under N or !R, with the vector masked, or without an eventfd it
 * becomes a pending cause: seen in the PBA, saved with the device, delivered once, when the
 * device next runs without N and unmasked, on whichever machine that is (A6).
 * -EINVAL: no such vector. [any thread] */
int vfmig_device_irq(struct vfmig_device *dev, uint32_t vector);

/* ---- answers that come later ----------------------------------------------------------------
 * A callback marked [later] takes a handle, returns -EINPROGRESS (reset, which returns nothing,
 * just takes it), and the handle is ended when the work is done. Meanwhile the library serves
 * everything else. Every handle that was given is to be ended, whatever happened in between: the
 * place of an access, and its data, are only free again then.
 *
 * - A region access, stop, start, save_begin, load_end and reset end with the result, as if the
 *   callback had returned it; the result of reset is not looked at.
 * - save, save_precopy and load end with 0: call me again; or with a negative errno: it failed. The
 *   client's command waits, one at a time: others that move data get -EBUSY, and so does leaving Z.
 * - A reset, also the one after the owner has gone, makes all handles stale: ending them has no
 *   effect. The client's commands that wait for them end with -ECANCELED. Entering Z does that to
 *   accesses, clearing S to a save.
 * - While one of the calls is open a second state write gets -EBUSY, and save_precopy is not
 *   called. No call has a time limit: a client that has waited enough resets the device.
 * - After its client has gone the next one comes in once reset has ended. */

/* A value, to be copied as needed; nothing is allocated for it. Members are the library's. */
struct vfmig_later {
    struct vfmig_device *dev; /* NULL: no handle */
    uint64_t id;
};

/* The handle of the callback that is being called; no handle outside of those marked [later].
 * Called again in the same callback it is the same handle. */
struct vfmig_later vfmig_device_later(struct vfmig_device *dev);

/* Ends it: 0 or positive, or a negative errno. Also allowed before the callback has returned. Not
 * after vfmig_device_free(). [any thread] */
void vfmig_later_done(struct vfmig_later later, int result);

/* ---- DMA ------------------------------------------------------------------------------------
 * The one-shot forms are refused with -EAGAIN while the gate is shut (N, !R): put the work off
 * until ops->gate(open) or ops->start. An operation that takes time, or several accesses, is
 * begun and ended: N then waits for it (C32), and may end it by -EINTR at half the time-out. */

/* Handle of one operation in flight. Members are the library's. */
struct vfmig_dma {
    struct vfmig_device *dev;
    uint64_t generation;
};

/* Reads or writes guest memory at iova. -EAGAIN: gate shut. -EFAULT: not mapped, not allowed, or
 * the memory behind it is gone. -EDEADLK: memory without descriptor, which the client must be
 * asked for, and this is the serving thread: use the async form. [any thread] */
int vfmig_device_dma_read(struct vfmig_device *dev, uint64_t iova, void *buf, size_t size)
    __attribute__((warn_unused_result));
int vfmig_device_dma_write(struct vfmig_device *dev, uint64_t iova, const void *buf, size_t size)
    __attribute__((warn_unused_result));

/* Begins an operation in flight. -EAGAIN: gate shut. Every success needs one end.
 * [any thread] */
int vfmig_device_dma_begin(struct vfmig_device *dev, struct vfmig_dma *ret_dma)
    __attribute__((warn_unused_result));

/* Ends it; the state write that waits for the last one is answered then. [any thread] */
void vfmig_dma_end(struct vfmig_dma *dma);

/* Accesses of an operation in flight, allowed until its end even while N waits for it. As above,
 * but never -EAGAIN; -ECANCELED: a reset has ended the operation; end it and forget it.
 * [any thread] */
int vfmig_dma_read(struct vfmig_dma *dma, uint64_t iova, void *buf, size_t size)
    __attribute__((warn_unused_result));
int vfmig_dma_write(struct vfmig_dma *dma, uint64_t iova, const void *buf, size_t size)
    __attribute__((warn_unused_result));

/* The same without waiting, on the serving thread. 0: done. -EINPROGRESS: the client was asked;
 * done(user, err) follows on the serving thread, buf must stay until then. -EAGAIN:
 * VFMIG_DEVICE_OPEN_DMA are open already; try again when one of them has ended. err -EINTR: given up
 * because N waits too long; end the operation, keep the request as state, issue it again when the
 * gate opens. After a reset done is not called. */
int vfmig_dma_read_async(struct vfmig_dma *dma, uint64_t iova, void *buf, size_t size,
                         void (*done)(void *user, int err), void *user)
    __attribute__((warn_unused_result));
int vfmig_dma_write_async(struct vfmig_dma *dma, uint64_t iova, const void *buf, size_t size,
                          void (*done)(void *user, int err), void *user)
    __attribute__((warn_unused_result));

/* ---- doorbells ------------------------------------------------------------------------------ */

/* A client may have the kernel turn writes of size (1, 2, 4, 8) bytes at offset of a BAR, with
 * datamatch only those of that value, into the signal of an eventfd (GET_REGION_IO_FDS). What
 * comes of it is a call of region_write with that value, or with size 0 where there is none and
 * the value is not known. Signals that came close together are one call. Whoever does not ask for
 * the eventfd writes as ever, so both forms may come.
 *
 * A signal that came before a state write was sent takes effect before it. While the device is
 * stopped signals are dropped and counted, like writes; a reset forgets those that came before.
 *
 * Before there is a client. -EINVAL: not inside the BAR, not aligned, in MSI-X table or PBA, a
 * value larger than size. -EEXIST: two would take the same write. -ENOSPC: more than
 * VFMIG_DEVICE_DOORBELLS in this BAR. -EBUSY: there is a client. */
int vfmig_device_doorbell(struct vfmig_device *dev, uint32_t bar, uint64_t offset, uint32_t size,
                          const uint64_t *datamatch) __attribute__((warn_unused_result));

/* ---- handles --------------------------------------------------------------------------------
 * What a guest names by a number of its own and the host by another: PASID, IMS (C71). Device state
 * holds the number. The client says what it stands for here, on each host anew; a state is refused as
 * long as it uses a number that means nothing here. Serving thread only. */

/* The device uses this handle from now on; naming it again is fine. The library saves its list of them
 * and loads it, so nothing is named after a load. reset() empties the list.
 * -EINVAL: no such kind, or a PASID above VFMIG_PASID_MAX. -ENOSPC: VFMIG_DEVICE_HANDLES are in use. */
int vfmig_device_handle_use(struct vfmig_device *dev, enum vfmig_handle_kind kind, uint32_t number);
void vfmig_device_handle_drop(struct vfmig_device *dev, enum vfmig_handle_kind kind,
                              uint32_t number);
/* What a handle in use stands for here: look whenever it is needed, and keep it out of what save
 * gives. -ENOENT: not in use, or the client has not said. */
int vfmig_device_handle_value(const struct vfmig_device *dev, enum vfmig_handle_kind kind,
                              uint32_t number, uint64_t *ret_value);

/* ---- time -----------------------------------------------------------------------------------
 * Timers are the device's own clock: they wait while it is stopped. */

/* CLOCK_MONOTONIC, nanoseconds. [any thread] */
uint64_t vfmig_device_now_ns(void);

/* ops->timer(timer) is called once at or after when_ns; replaces an earlier setting. UINT64_MAX
 * stops it. -EINVAL: timer is not below VFMIG_DEVICE_TIMERS. */
int vfmig_device_timer(struct vfmig_device *dev, uint32_t timer, uint64_t when_ns);

/* ---- looking ------------------------------------------------------------------------------- */

struct vfmig_device_counters {
    uint64_t mmio_stopped_reads;  /* answered with all ones */
    uint64_t mmio_stopped_writes; /* dropped */
    uint64_t dma_refused;         /* -EAGAIN given */
    uint64_t dma_faults;          /* -EFAULT given */
    uint64_t irqs_raised;
    uint64_t irqs_latched;        /* of those, not delivered at once */
    uint64_t irqs_delivered;      /* eventfd written */
    uint64_t drains_waited;       /* state writes that found DMA in flight */
    uint64_t resets;
    uint64_t clients;
    uint64_t bad_messages;        /* answered with an error because of their form */
    uint64_t doorbells;           /* signals that were looked at, dropped ones too */
    uint64_t answered_later;      /* accesses, calls and data commands that waited for the device */
    uint64_t data_messages;       /* that carried device data, in either dialect */
    uint64_t windows_filled;      /* with device data, in either dialect */
    uint64_t windows_loaded;
};

void vfmig_device_get_counters(const struct vfmig_device *dev,
                               struct vfmig_device_counters *ret_counters);

/* The state as a client would read it. */
enum vfmig_state vfmig_device_get_state(const struct vfmig_device *dev);

#ifdef __cplusplus
}
#endif
#endif
