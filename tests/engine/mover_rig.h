/* SPDX-License-Identifier: BSD-3-Clause */
/* Two guests' memory and the channels between them. */
#ifndef TESTS_ENGINE_MOVER_RIG_H
#define TESTS_ENGINE_MOVER_RIG_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "engine/channel.h"
#include "engine/memory_mover.h"

#define RIG_BLOCKS 2

struct rig_memory {
    struct vfmig_ram_block blocks[RIG_BLOCKS];
    struct vfmig_memory memory;
};

static inline void rig_memory_init(struct rig_memory *m, const uint64_t *pages)
{
    uint64_t gpa = 0;

    for (int i = 0; i < RIG_BLOCKS; i++) {
        uint64_t size = pages[i] * VFMIG_PAGE_SIZE;
        int fd = memfd_create("guest", MFD_CLOEXEC);
        assert_true(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
        void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(host, MAP_FAILED);
        m->blocks[i] = (struct vfmig_ram_block){.gpa = gpa, .size = size, .host = host, .fd = fd};
        gpa += size + (1u << 30);
    }
    m->memory = (struct vfmig_memory){m->blocks, RIG_BLOCKS};
}

static inline void rig_memory_done(struct rig_memory *m)
{
    for (int i = 0; i < RIG_BLOCKS; i++) {
        munmap(m->blocks[i].host, m->blocks[i].size);
        close(m->blocks[i].fd);
    }
}

static inline uint64_t rig_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static inline void rig_fill_page(uint8_t *page, uint64_t *seed)
{
    for (size_t i = 0; i < VFMIG_PAGE_SIZE; i += 8) {
        uint64_t word = rig_random(seed);
        memcpy(page + i, &word, 8);
    }
}

/* About a third of the pages are never touched, a few are touched and zero, the rest is random. */
static inline void rig_memory_randomise(struct rig_memory *m, uint64_t *seed)
{
    for (int b = 0; b < RIG_BLOCKS; b++) {
        uint8_t *host = m->blocks[b].host;
        for (uint64_t at = 0; at < m->blocks[b].size; at += VFMIG_PAGE_SIZE) {
            uint64_t kind = rig_random(seed) % 9;
            if (kind >= 4)
                rig_fill_page(host + at, seed);
            else if (kind == 3)
                *(volatile uint8_t *)(host + at) = 0;
        }
    }
}

static inline bool rig_memory_equal(const struct rig_memory *a, const struct rig_memory *b)
{
    for (int i = 0; i < RIG_BLOCKS; i++)
        if (memcmp(a->blocks[i].host, b->blocks[i].host, a->blocks[i].size) != 0)
            return false;
    return true;
}

struct rig_map {
    struct vfmig_dirty_map map;
    uint64_t *bitmaps[RIG_BLOCKS];
};

static inline void rig_map_init(struct rig_map *m, const struct vfmig_memory *memory)
{
    for (uint32_t i = 0; i < memory->block_count; i++) {
        uint64_t pages = memory->blocks[i].size / VFMIG_PAGE_SIZE;
        m->bitmaps[i] = calloc(vfmig_bitmap_words(pages), sizeof(uint64_t));
        assert_non_null(m->bitmaps[i]);
    }
    m->map = (struct vfmig_dirty_map){.memory = *memory, .bitmaps = m->bitmaps};
}

static inline void rig_map_fill(struct rig_map *m)
{
    for (uint32_t i = 0; i < m->map.memory.block_count; i++)
        vfmig_bitmap_set_range(m->bitmaps[i], 0, m->map.memory.blocks[i].size / VFMIG_PAGE_SIZE);
}

static inline uint64_t rig_map_count(const struct rig_map *m)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < m->map.memory.block_count; i++)
        count += vfmig_bitmap_count(m->bitmaps[i],
                                    m->map.memory.blocks[i].size / VFMIG_PAGE_SIZE);
    return count;
}

static inline void rig_map_done(struct rig_map *m)
{
    for (int i = 0; i < RIG_BLOCKS; i++)
        free(m->bitmaps[i]);
}

static inline void rig_tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(listener >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fds[0], (struct sockaddr *)&address, length), 0);
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fds[1] >= 0);
    close(listener);
}

static inline void rig_pair(bool tcp, int fds[2])
{
    if (tcp)
        rig_tcp_pair(fds);
    else
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

struct rig_channels {
    uint32_t count;
    struct vfmig_channel *source[VFMIG_MAX_CHANNELS];
    struct vfmig_channel *dest[VFMIG_MAX_CHANNELS];
};

static inline void rig_channels_init(struct rig_channels *c, uint32_t count, bool tcp)
{
    c->count = count;
    for (uint32_t i = 0; i < count; i++) {
        int fds[2];
        rig_pair(tcp, fds);
        assert_int_equal(
            vfmig_channel_new(fds[0], i, VFMIG_SIDE_SOURCE, &c->source[i], /* reterr= */ NULL), 0);
        assert_int_equal(
            vfmig_channel_new(fds[1], i, VFMIG_SIDE_DEST, &c->dest[i], /* reterr= */ NULL), 0);
    }
}

static inline void rig_channels_done(struct rig_channels *c)
{
    for (uint32_t i = 0; i < c->count; i++) {
        vfmig_channel_free(c->source[i]);
        vfmig_channel_free(c->dest[i]);
    }
}

#endif
