/* SPDX-License-Identifier: BSD-3-Clause */
/* A kernel with one VFIO device, as far as a target sees it, from the facts of the uAPI: what it
 * checks, what it answers, and which descriptors it gives. Its tables are its own, not those of
 * src/core. */
#ifndef VFMIG_TESTS_FAKE_KERNEL_H
#define VFMIG_TESTS_FAKE_KERNEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "target/kernel.h"
#include "target/kernel_uapi.h"

#define FAKE_PAGE        4096u
#define FAKE_SPACE_PAGES 16384u /* of IOVA space */
#define FAKE_IMAGE       5000u  /* bytes of the device's state ... */
#define FAKE_PRE_COPY    3000u  /* ... that can be had in pre-copy */
#define FAKE_REGION      9u     /* index of the migration region */
#define FAKE_REGION_SIZE (3u * FAKE_PAGE)

enum fake_kind { FAKE_FREE, FAKE_GROUP, FAKE_CONTAINER, FAKE_IOMMUFD, FAKE_DEVICE, FAKE_DATA };

struct fake_file {
    enum fake_kind kind;
    uint32_t session; /* FAKE_DATA: which */
    bool nonblock;
};

struct fake_mapping {
    uint64_t iova, size;
    uint8_t *at;
    bool writable;
};

/* What is unlike the good device. All zero is none of it. */
struct fake_quirks {
    /* set-up */
    bool not_viable, no_type1, no_iommufd, no_pci, no_device;
    uint32_t regions, irqs;       /* instead of the true numbers */
    uint32_t caps_argsz;          /* what GET_REGION_INFO wants */
    bool caps_loop, caps_outside; /* the chain of the migration region's */
    int irq_result;               /* of SET_IRQS */
    /* feature dialect */
    uint64_t flags;       /* of MIGRATION, instead of features */
    uint32_t fail_arc_to; /* the arc into this state fails (0: none) ... */
    int fail_arc;         /* ... with this errno */
    bool arc_is_error;    /* ... and the device is in ERROR */
    bool bad_state;       /* the state read is 77 */
    bool no_fd, stray_fd; /* none where one belongs, one where none does */
    bool empty_precopy;   /* 0 instead of ENOMSG */
    bool enomsg_in_s;     /* ENOMSG at the end instead of 0 */
    uint32_t read_piece;  /* most bytes of one read, 0: any number */
    uint32_t write_piece;
    bool read_too_much, write_nothing, write_too_much;
    uint32_t busy_reads; /* that say EAGAIN until somebody polls */
    bool never_ready;    /* for as long as anybody polls */
    int size_error;      /* of MIG_DATA_SIZE */
    bool huge_amounts;   /* PRECOPY_INFO near 2^64 */
    bool stall;          /* SET of a state does not return before fake_release */
    int reset_error;
    uint32_t late_resets; /* states read after a reset that are old */
    bool reset_keeps_state;
    /* logs */
    bool stray_bits; /* bits beyond the range */
    bool short_unmap;
    int report_error, start_error;
    /* region dialect */
    bool arrows_only;                /* {} to Z and Z to {} are refused (mlx5 of 2021) */
    bool no_way_back;                /* ... and so is {} to R */
    bool pending_before;             /* pending_bytes before the window moves on (mlx5) */
    bool old_image;                  /* S for a second time: nothing (mlx5) */
    bool short_failure;              /* a failed write of the state takes 0 bytes (hisi_acc) */
    bool short_pending;              /* pending_bytes without image is a read of 0 bytes (mlx5) */
    bool halts_by_stop;              /* S to R does not start it, {} does (hisi_acc) */
    bool gives_again;                /* a change gives an open portion again (libvfio-user) */
    uint64_t data_offset, data_size; /* what is said instead */
    bool no_mmap, ndma;
    uint32_t reserved_bits; /* that are set in device_state */
};

struct fake_kernel {
    /* Made by the test. */
    uint32_t features; /* feature dialect, 0: the region's */
    bool device_log, iommu_log, data_size;
    struct fake_quirks quirk;
    bool strict; /* a stream of nothing is refused, and the BAR of a stopped device reads all ones */
    void (*on_read)(struct fake_kernel *f); /* of device data, while it runs; NULL: nothing */

    /* Seen. */
    struct fake_file files[64];
    uint32_t opened, closed, munmaps, mmaps, resets, polls, detached;
    uint32_t irq_vectors, irq_attached;
    uint32_t log_ranges;
    struct vfmig_iova_range ranges[256];

    bool container_used, iommu_set, bound, attached, has_ioas, has_hwpt;
    struct fake_mapping maps[32];
    uint32_t map_count;
    bool log_on, iommu_log_on;
    uint64_t device_dirty[FAKE_SPACE_PAGES / 64], iommu_dirty[FAKE_SPACE_PAGES / 64];

    pthread_mutex_t calls; /* one at a time, but for one that stalls */
    pthread_mutex_t lock;  /* of what stalls */
    pthread_cond_t changed;
    bool released, stalled;
    uint32_t state, state_before;
    uint32_t stale_reads;
    uint32_t session; /* the one that is open, 0: none */
    uint32_t sessions;
    uint64_t at; /* in the image, saving */
    uint8_t image[FAKE_IMAGE];
    uint8_t loaded[FAKE_IMAGE * 2];
    uint64_t loaded_size;
    bool running; /* region dialect: the queues run */

    uint32_t bits; /* region dialect */
    bool image_spent, segment_open;
    uint64_t segment; /* bytes of the one that is open */
    uint32_t commits;
    uint8_t *window; /* the region's memory */
    uint8_t bar[FAKE_PAGE], config[256];
};

extern const struct vfmig_kernel_calls fake_calls;

void fake_init(struct fake_kernel *f);
void fake_done(struct fake_kernel *f);
/* Descriptors of the fake that are open. */
uint32_t fake_open_files(const struct fake_kernel *f);
/* A write of the device's: into memory, and every log that is on. */
void fake_dma_write(struct fake_kernel *f, uint64_t iova, uint8_t byte);
/* Lets a stalled change go on; await: until one stalls. */
void fake_release(struct fake_kernel *f);
void fake_await_stall(struct fake_kernel *f);
/* Until another thread has closed everything. */
void fake_await_closed(struct fake_kernel *f);

/* fake_device.c */
int fake_feature(struct fake_kernel *f, struct kernel_feature *head);
int fake_precopy_info(struct fake_kernel *f, struct kernel_precopy_info *info);
ssize_t fake_read(struct fake_kernel *f, const struct fake_file *file, uint8_t *data, size_t size);
ssize_t fake_write(struct fake_kernel *f, const struct fake_file *file, const uint8_t *data,
                   size_t size);
int fake_new_data_fd(struct fake_kernel *f); /* fake_kernel.c */
int fake_reset(struct fake_kernel *f);
bool fake_runs(const struct fake_kernel *f);
ssize_t fake_region(struct fake_kernel *f, uint64_t offset, uint8_t *read_to,
                    const uint8_t *write_from, size_t size);
/* fake_dirty.c: type1, iommufd and the device's log */
int fake_container(struct fake_kernel *f, unsigned long request, void *argument);
int fake_iommufd(struct fake_kernel *f, unsigned long request, void *argument);
int fake_log_start(struct fake_kernel *f, const struct kernel_log_start *start);
int fake_log_report(struct fake_kernel *f, const struct kernel_log_report *report);

#endif
