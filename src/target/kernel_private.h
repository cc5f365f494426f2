/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the kernel targets share. */
#ifndef VFMIG_TARGET_KERNEL_PRIVATE_H
#define VFMIG_TARGET_KERNEL_PRIVATE_H

#include <pthread.h>

#include "base/bounds.h"
#include "target/kernel.h"
#include "target/kernel_uapi.h"

#define KERNEL_MAX_INFO     65536u /* bytes of an info struct with its capabilities */
#define KERNEL_MAX_REGIONS  64u    /* that are looked at */
#define KERNEL_INFO_REGIONS 16u    /* places in struct vfmig_target_info */
#define KERNEL_IRQS         5u

struct kernel;

/* A state change or a reset, in a thread of the target's: a driver may take as long as it likes,
 * the caller does not (C60). */
typedef int (*kernel_work)(struct kernel *k, uint32_t argument, struct vfmig_error *reterr);

struct kernel_worker {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    kernel_work work; /* NULL: idle */
    uint32_t argument;
    int result;
    struct vfmig_error error;
    bool started, quit;
    bool orphan; /* the target was closed meanwhile: the thread frees it */
};

struct kernel_map {
    uint64_t iova, size;
    void *host;
};

/* Pages that were written before their mapping went away, and nobody has asked for. */
struct kernel_rest {
    uint64_t iova, last, pages, page_size; /* the last page may go beyond last */
    uint64_t *bits;
};

struct kernel_region {
    uint64_t offset, size; /* in the device's file */
    uint32_t flags;
};

/* How DMA reaches memory. */
struct kernel_iommu {
    int (*map)(struct kernel *k, const struct kernel_map *map, uint32_t prot,
               struct vfmig_error *reterr);
    /* All of one mapping. bits: NULL, or where the pages written in it are marked. */
    int (*unmap)(struct kernel *k, const struct kernel_map *map, uint64_t *bits,
                 struct vfmig_error *reterr);
    void (*detach)(struct kernel *k);
};

/* Who logs it. */
struct kernel_log {
    const char *name;
    bool by_mapping; /* only what is mapped can be asked for, and a mapping's pages go with it */
    bool whole;      /* ... all of it at once */
    int (*start)(struct kernel *k, uint64_t page_size, const struct vfmig_iova_range *ranges,
                 uint32_t count, struct vfmig_error *reterr);
    int (*stop)(struct kernel *k, struct vfmig_error *reterr);
    /* Sets bits, from bit 0; words are zero before. */
    int (*fetch)(struct kernel *k, uint64_t iova, uint64_t size, uint64_t page_size,
                 uint64_t *words, struct vfmig_error *reterr);
};

struct kernel {
    struct vfmig_target base;
    struct vfmig_kernel_options opt; /* defaults filled in */
    const struct vfmig_kernel_calls *calls;
    const struct kernel_iommu *iommu;
    const struct kernel_log *log; /* NULL: none */
    struct kernel_worker worker;

    int device;
    int group, container; /* -1: of the other kind */
    int iommufd;
    uint32_t device_id, ioas, hwpt; /* in the iommufd, 0: none */
    bool attached;
    uint64_t type1_page, type1_bytes; /* what its log can do, 0: nothing */

    uint32_t region_count;
    struct kernel_region regions[KERNEL_MAX_REGIONS];
    uint32_t irq_started; /* bit i: index i is on */

    pthread_mutex_t maps_lock;
    struct kernel_map *maps; /* by address */
    uint32_t map_count;
    struct kernel_rest rests[VFMIG_MAX_LOG_RESTS];
    uint32_t rest_count;
    bool rests_lost; /* there were too many */
    bool logging;
    uint64_t log_page;

    /* Of the worker while it works. */
    enum vfmig_state asked; /* by the last successful change */
    int data_fd;            /* feature dialect: the session's, -1: none */
    int earlier_fd; /* ... and the one before, when somebody looks (vfmig_kernel_ask_state) */
    bool opened;
    bool data_size;

    /* Region dialect; index 0 is a BAR, so 0 means none. */
    uint32_t mig_index;
    bool mig_ndma;
    uint8_t *window; /* mapping of part of the region, or NULL */
    uint64_t window_offset, window_size;
    bool halfway; /* a change out of R failed: it may have stopped all the same */
    bool held;    /* Z stands for {} (options.late_load) */
    bool saved_before,
        saved; /* an earlier session had data, and no reset came after it; this one has */
    uint64_t part_offset, part_left; /* saving: of a portion that is taken in parts */
    uint64_t load_offset, load_size; /* loading: window in use, and bytes written to it */
    bool loading_part;               /* ... and not told yet */
    uint64_t pending;                /* as it was last read; 0: ask again */
};

extern const struct vfmig_target_ops kernel_feature_ops, kernel_region_ops;

/* ---- system calls (kernel.c) ---- */

int kernel_ioctl(struct kernel *k, int fd, unsigned long request, void *argument);
/* The same, with one sentence about doing what when it fails. Some answer with a positive number
 * when they did only part: that is a failure here. */
int kernel_need(struct kernel *k, int fd, unsigned long request, void *argument, const char *what,
                struct vfmig_error *reterr);
int kernel_open_file(struct kernel *k, const char *path, int *ret_fd, struct vfmig_error *reterr);
void kernel_close_file(struct kernel *k, int *fd); /* and makes it -1 */

/* An info struct whose capabilities may not fit at first: *ret_info is the caller's to free, of
 * *ret_size bytes, at least fixed. request_at fills what is asked for. */
int kernel_get_info(struct kernel *k, int fd, unsigned long request, uint32_t fixed, uint32_t index,
                    void **ret_info, uint32_t *ret_size, struct vfmig_error *reterr);
/* ---- the device (kernel_device.c) ---- */

int kernel_describe(struct kernel *k, struct vfmig_error *reterr);
int kernel_access(struct kernel *k, uint32_t region, uint64_t offset, void *read_to,
                  const void *write_from, uint64_t size, struct vfmig_error *reterr);
int kernel_region_read(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                       uint32_t size, struct vfmig_error *reterr);
int kernel_region_write(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                        uint32_t size, bool posted, struct vfmig_error *reterr);
int kernel_set_irqs(struct vfmig_target *t, uint32_t index, uint32_t start, uint32_t count,
                    const int *fds, struct vfmig_error *reterr);

/* ---- changes that may take long (kernel_worker.c) ---- */

int kernel_worker_init(struct kernel *k, struct vfmig_error *reterr);
/* -ETIMEDOUT: it goes on by itself, or an earlier one does. */
int kernel_work_until(struct kernel *k, kernel_work work, uint32_t argument, uint64_t timeout_ns,
                      struct vfmig_error *reterr);
/* Waits for a change that is late, options.timeout_ns at most. */
int kernel_settle(struct kernel *k, struct vfmig_error *reterr);
/* False: a call is still in the kernel, and its thread calls kernel_free when it is back. */
bool kernel_worker_done(struct kernel *k);
void kernel_free(struct kernel *k);

/* ---- both dialects (kernel.c) ---- */

int kernel_reset(struct vfmig_target *t, struct vfmig_error *reterr);
void kernel_close(struct vfmig_target *t);
/* VFIO_DEVICE_RESET alone: a kernel_work, and what it does. */
int kernel_send_reset(struct kernel *k, uint32_t argument, struct vfmig_error *reterr);

/* ---- what a device can do (kernel_feature.c, kernel_region.c) ---- */

/* flags: operation and feature. 0 or the kernel's errno. */
int kernel_feature(struct kernel *k, uint32_t flags, void *data, uint32_t size);
/* The same with any argsz; -E2BIG: it is more than there is. */
int kernel_raw_feature(struct kernel *k, uint32_t argsz, uint32_t flags, void *data, size_t size);
/* Features in the dialect, 0: it does not migrate in it. */
uint32_t kernel_feature_probe(struct kernel *k);
uint32_t kernel_region_probe(const struct kernel *k);
/* Region dialect, a fresh device: can it go from Z to {}? Fills info.halt. */
int kernel_try_halt(struct kernel *k, struct vfmig_error *reterr);
void kernel_session_end(struct kernel *k);
/* Region found in the description. */
void kernel_look_at_region(struct kernel *k, uint32_t index, const void *info, uint32_t size);

/* ---- memory (kernel_dma.c, kernel_group.c, kernel_cdev.c) ---- */

int kernel_group_attach(struct kernel *k, const char *where, struct vfmig_error *reterr);
int kernel_cdev_attach(struct kernel *k, const char *path, struct vfmig_error *reterr);
int kernel_dma_map(struct vfmig_target *t, uint64_t iova, uint64_t size, int fd, uint64_t fd_offset,
                   uint32_t prot, struct vfmig_error *reterr);
int kernel_dma_unmap(struct vfmig_target *t, uint64_t iova, uint64_t size,
                     struct vfmig_error *reterr);
void kernel_forget_maps(struct kernel *k);

/* ---- the log (kernel_log.c) ---- */

extern const struct kernel_log kernel_log_device, kernel_log_type1, kernel_log_iommufd;

void kernel_choose_log(struct kernel *k);
int kernel_log_start(struct vfmig_target *t, uint64_t page_size,
                     const struct vfmig_iova_range *ranges, uint32_t range_count,
                     struct vfmig_error *reterr);
int kernel_log_stop(struct vfmig_target *t, struct vfmig_error *reterr);
int kernel_log_report(struct vfmig_target *t, uint64_t iova, uint64_t size, uint64_t page_size,
                      uint64_t *bitmap, struct vfmig_error *reterr);
/* maps_lock held. Keeps what an unmap found for the next report; bits, in pages of the log, is
 * consumed. */
void kernel_keep_rest(struct kernel *k, const struct kernel_map *map, uint64_t *bits);
void kernel_forget_rests(struct kernel *k);

#endif
