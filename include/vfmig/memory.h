/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory as the VMM describes it: a list of blocks, and one dirty bitmap over them. */
#ifndef VFMIG_MEMORY_H
#define VFMIG_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define VFMIG_PAGE_SHIFT 12u
#define VFMIG_PAGE_SIZE  4096u

/* One piece of guest RAM. host is the VMM's own shared mapping of fd at fd_offset. */
struct vfmig_ram_block {
    uint64_t gpa;       /* guest physical address, page aligned */
    uint64_t size;      /* bytes, a multiple of VFMIG_PAGE_SIZE */
    void *host;         /* mapping of size bytes, readable and writable */
    int fd;             /* memfd behind it, -1 when there is none */
    uint64_t fd_offset; /* where the block starts in fd */
};

/* A memory map in force; blocks are sorted by gpa and do not overlap. */
struct vfmig_memory {
    const struct vfmig_ram_block *blocks;
    uint32_t block_count;
};

#endif
