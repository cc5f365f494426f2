/* SPDX-License-Identifier: BSD-3-Clause */
/* How a device under test is reached: one function that does a step, and what was found out.
 *
 * The checker is a judge of its own. It has its own client, because it must be able to say wrong
 * things and to survive every wrong answer: nothing here uses the engine's targets for vfio-user.
 * A port does not block longer than its deadline (a system call that a kernel driver does not end
 * is an exception, kernel.c); what the device did instead of answering is its
 * trouble, after which every step fails with -ENOTCONN until CHECK_STEP_CONNECT. */
#ifndef VFMIG_CHECK_PORT_H
#define VFMIG_CHECK_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bounds.h"
#include "vfmig/error.h"
#include "vfmig/state.h"

#define CHECK_MEMORY       (64u << 20) /* bytes of memory that a device can be given */
#define CHECK_MAX_DATA     (1u << 20)  /* bytes of one step */
#define CHECK_MAX_REGIONS  16u
#define CHECK_MAX_VECTORS  16u
#define CHECK_MAX_DMA      65536u   /* DMA commands of the device during one step */
#define CHECK_DMA_LOG      256u     /* of its last writes by message are kept */
#define CHECK_MAX_SERVE_MS 3600000u /* of one DMA_SERVE */
#define CHECK_MIN_LOG_PAGE 4096u    /* pages of a v1 log that the rules' ranges are made for */
#define CHECK_MAX_LOG_PAGE 524288u

/* How memory is given by CHECK_STEP_MAP. */
#define CHECK_MAP_DIRECT  0u
#define CHECK_MAP_MESSAGE 1u
#define CHECK_MAP_PEER    2u /* + region: by message, to that region of the other device */

enum check_dialect {
    CHECK_DIALECT_REGION = 1,  /* v1: the migration region */
    CHECK_DIALECT_FEATURE = 2, /* v2: DEVICE_FEATURE */
    CHECK_DIALECT_BOTH = 3,
};

enum check_step_kind {
#define STEP(id, name, numbers, sends, gets, help) CHECK_STEP_##id,
#include "check/steps.def"
    CHECK_STEP_COUNT
};

struct check_step {
    enum check_step_kind kind;
    uint64_t arg[4];
    const void *data; /* bytes that go with it, as many as its last number says */
    void *room;       /* where bytes that come back go */
    uint32_t room_size;
    /* Filled by the port. */
    int64_t result; /* 0 or bytes, or a negative errno; -ENOTCONN: see the port's trouble */
    uint64_t
        value; /* STATE_GET: what was read, as the dialect has it; LOG_START: page size taken */
};

/* What a device did instead of answering. */
enum check_trouble {
    CHECK_FINE = 0,
    CHECK_HUNG,   /* no complete answer in time */
    CHECK_DIED,   /* the connection ended */
    CHECK_BROKEN, /* an answer that is none: wrong size, wrong command, nobody asked */
    CHECK_FLOOD,  /* more than anybody asked for, without end */
};

const char *check_trouble_name(enum check_trouble trouble);

struct check_dma_write {
    uint64_t iova;
    uint64_t size;
    uint64_t step; /* number of the step during which it came */
};

/* What the device did by message. */
struct check_dma {
    uint64_t reads, writes;
    uint64_t refused;       /* outside of what was mapped */
    uint64_t peer_hits;     /* that went to the other device */
    uint64_t answered_open; /* replies to STATE_SET that came while a DMA was held unanswered */
    uint64_t open;          /* held now */
    struct check_dma_write log[CHECK_DMA_LOG]; /* number n at n % CHECK_DMA_LOG */
};

/* What is known about a device before any rule runs. */
struct check_facts {
    char name[128];
    unsigned dialects;                      /* enum check_dialect bits that it speaks */
    uint32_t first_raw[CHECK_DIALECT_BOTH]; /* state of the first connection, by dialect */
    uint64_t features;                      /* VFMIG_FEATURE_*, of the feature dialect */
    bool region_ndma;                       /* region capability 6 */
    bool by_message;                        /* DMA by message is possible */
    bool raw;                               /* CHECK_STEP_COMMAND and _CUT are possible */
    bool posted;                            /* steps without a reply are possible */
    bool data_size;                         /* feature 9 answers */
    bool precopy_info;                      /* the amounts in pre-copy can be asked for */
    bool data_fd;                           /* data is read as from a file: 0 is its end */
    bool log_feature;                       /* features 6 to 8 answer */
    bool log_region;                        /* v1 DIRTY_PAGES answers */
    bool log_told;                          /* VERSION has the page size of its bitmaps */
    uint64_t log_region_pgsize;
    uint32_t max_read;  /* bytes of one DATA_READ, REGION_READ */
    uint32_t max_write; /* bytes of one DATA_WRITE, REGION_WRITE */
    uint32_t region_count;
    uint64_t region_size[CHECK_MAX_REGIONS];
    uint32_t region_flags[CHECK_MAX_REGIONS];
    uint32_t mig_region; /* index, 0: none */
    uint32_t irq_count[8];
    bool pci;
    uint16_t pci_vendor, pci_device;
    uint32_t msix_vectors; /* 0: none */
    uint32_t msix_bar;
    uint32_t msix_control;         /* offset in config space */
    uint64_t msix_table, msix_pba; /* offsets in their BARs */
    uint32_t msix_pba_bar;
};

struct check_port;

struct check_port_ops {
    const char *name;
    /* Does step->kind; fills step->result and ->value. Steps that a port has not: -ENOTSUP. */
    void (*run)(struct check_port *port, struct check_step *step);
    void (*free)(struct check_port *port);
};

struct check_port {
    const struct check_port_ops *ops;
    struct check_port *peer;    /* the other device, or NULL */
    enum check_dialect dialect; /* in which STATE_*, DATA_* and LOG_* are said */
    uint32_t deadline_ms;       /* of every step but RESET and STATE_SET */
    uint32_t state_ms;          /* of those two */
    uint64_t step_number;
    struct check_facts facts;
    enum check_trouble trouble;
    char trouble_text[200];
    uint8_t *memory; /* CHECK_MEMORY bytes that MAP hands out */
    int memory_fd;
    int irq_fd[CHECK_MAX_VECTORS]; /* eventfds that IRQS hands out */
    struct check_dma dma;
};

/* Opens a target: "vfio-user:PATH". Connects, asks what it is. */
int check_port_open(const char *target, uint32_t deadline_ms, struct check_port **ret_port,
                    struct vfmig_error *reterr);
void check_port_free(struct check_port *port);

/* For ports. Fills what config space says; after region sizes are known. */
void check_port_look_at_pci(struct check_port *port);
/* The page size of a v1 log, which the device chooses, is one that the rules can use. */
bool check_port_log_page_fits(uint64_t page);
/* Memory for MAP; sets trouble once, and closes nothing. */
int check_port_init(struct check_port *port, struct vfmig_error *reterr);
void check_port_done(struct check_port *port);
void check_port_trouble(struct check_port *port, enum check_trouble trouble, const char *format,
                        ...) __attribute__((format(printf, 3, 4)));

/* The vfio-user port (user.c). */
int check_user_open(const char *path, uint32_t deadline_ms, struct check_port **ret_port,
                    struct vfmig_error *reterr);

#endif
