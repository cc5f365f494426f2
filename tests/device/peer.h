/* SPDX-License-Identifier: BSD-3-Clause */
/* A scripted vfio-user client for tests of the server: it shares the structures of the protocol
 * with it and nothing else. Every function fails the test when the server misbehaves. */
#ifndef VFMIG_TESTS_DEVICE_PEER_H
#define VFMIG_TESTS_DEVICE_PEER_H

#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "vfmig/device.h"
#include "wire/proto.h"

#define PEER_REPLY_MAX (2u << 20)
#define PEER_FDS_MAX   4
#define RAM_SIZE       (1u << 20)
#define RAM_IOVA       0x100000ull

struct peer {
    int fd;
    int twin;
    uint16_t next_id;
    uint8_t *reply;      /* payload of the last reply */
    uint32_t reply_size;
    int fds[PEER_FDS_MAX]; /* that came with it; closed by the next one */
    unsigned fd_count;
    int ram_fd;
    uint8_t *ram;        /* RAM_SIZE bytes, DMA_MAPped by peer_map_ram */
    pthread_t server;
    struct vfmig_device *dev;
};

/* Connects to dev by a socketpair and serves it in a thread. */
struct peer *peer_start(struct vfmig_device *dev);
/* Closes the connection, waits until the server has noticed, frees the client, not dev. */
void peer_end(struct peer *p);

/* A control client of a device that is being served: connects to path, says VERSION with token.
 * NULL and *ret_err: refused. peer_leave closes it; the server notices later. */
struct peer *peer_control(const char *path, const char *token, int *ret_err);
void peer_leave(struct peer *p);

uint16_t peer_send(struct peer *p, uint16_t command, uint32_t flags, const void *payload,
                   uint32_t size, const int *fds, unsigned fd_count);
/* The next message; must be the reply to id. 0, or the negative errno of an error reply. */
int peer_wait(struct peer *p, uint16_t id);
bool peer_readable(int fd);
int peer_call(struct peer *p, uint16_t command, const void *payload, uint32_t size);

/* json NULL: none. Leaves the reply's text in p->reply + 4; takes the twin socket. */
int peer_version(struct peer *p, const char *json);
void peer_map_ram(struct peer *p);
int peer_map(struct peer *p, uint64_t iova, uint64_t size, int fd, uint64_t offset, uint32_t prot);
int peer_unmap(struct peer *p, uint64_t iova, uint64_t size);

int peer_read(struct peer *p, uint32_t region, uint64_t offset, void *data, uint32_t size);
int peer_write(struct peer *p, uint32_t region, uint64_t offset, const void *data, uint32_t size);
uint64_t peer_get(struct peer *p, uint32_t region, uint64_t offset, uint32_t size);
int peer_put(struct peer *p, uint32_t region, uint64_t offset, uint64_t value, uint32_t size);
/* Without a reply. */
void peer_post(struct peer *p, uint32_t region, uint64_t offset, uint64_t value, uint32_t size);

/* Maps the data section of the migration region and tells where it begins in the region. The
 * caller unmaps *ret_size bytes. */
uint8_t *peer_map_section(struct peer *p, uint64_t *ret_offset, size_t *ret_size);
/* Takes entry index of the last reply's descriptors. */
int peer_take_fd(struct peer *p, unsigned index);

/* Attaches a fresh eventfd to MSI-X vector v and returns it. */
int peer_vector(struct peer *p, uint32_t v);
/* Interrupts counted on it since last asked. */
uint64_t peer_irqs(int eventfd);

int peer_set_v2(struct peer *p, uint32_t state);
uint32_t peer_get_v2(struct peer *p);
/* DEVICE_FEATURE with size bytes of data; what a GET gives is left in p->reply + 8. */
int peer_feature(struct peer *p, uint32_t flags, const void *data, uint32_t size);
int peer_set_v1(struct peer *p, uint32_t bits);
uint32_t peer_get_v1(struct peer *p);
int peer_reset(struct peer *p);

/* Until the end, or until there is nothing now. Returns bytes; *ret_data is malloc'ed. */
size_t peer_save_v2(struct peer *p, uint8_t **ret_data, uint32_t piece);
size_t peer_save_v1(struct peer *p, uint8_t **ret_data);
int peer_load_v2(struct peer *p, const uint8_t *data, size_t size, uint32_t piece);
int peer_load_v1(struct peer *p, const uint8_t *data, size_t size, uint32_t piece);

int peer_log_start(struct peer *p, uint64_t page_size, uint64_t iova, uint64_t length);
int peer_log_stop(struct peer *p);
/* Bits set in the report, whose bitmap is left in *ret_bitmap (of the caller). */
int peer_log_report(struct peer *p, uint64_t iova, uint64_t length, uint64_t page_size,
                    uint64_t *ret_bitmap);

#endif
