/* SPDX-License-Identifier: BSD-3-Clause */
/* The checker's own end of a vfio-user socket: one command at a time, with a deadline for the whole
 * answer, and the device's DMA by message served meanwhile. What a device does wrong here becomes
 * the port's trouble. No thread: the device's DMA waits between steps. */
#ifndef VFMIG_CHECK_LINK_H
#define VFMIG_CHECK_LINK_H

#include "check/port.h"
#include "wire/wire.h"

#define CHECK_MAX_MAPS 4096u
#define CHECK_MAX_HELD 64u /* DMAs by message that are held unanswered */

struct check_map {
    uint64_t iova, size, offset;
    uint32_t how; /* of CHECK_STEP_MAP */
};

struct check_held {
    bool on_twin;
    struct vfmig_user_header header;
    struct vfmig_user_dma_access access;
    uint64_t came_ns;
};

struct check_link {
    struct check_port *port;
    int fd[2]; /* main and twin, -1: none */
    struct vfmig_framer framer[2];
    uint8_t *buffer[2];
    uint16_t next_id;
    uint32_t max_data;
    uint32_t hold_ms;
    uint64_t call_ns; /* when the command was sent that waits for its reply, 0: none */
    struct check_map *maps;
    uint32_t map_count;
    struct check_held held[CHECK_MAX_HELD];
    uint32_t held_count;
    uint64_t dmas; /* during this step */
    /* A command whose answer is not waited for at once: at most one. */
    bool asking, asked_open;
    uint16_t asked_id;
    int asked_result;
};

/* One command. Reply bytes go to reply, at most reply_room. */
struct check_call {
    uint16_t command;
    uint32_t flags;    /* header flags beside the type */
    const void *fixed; /* payload in two parts */
    uint32_t fixed_size;
    const void *data;
    uint32_t data_size;
    int fds[VFMIG_MAX_MSG_FDS];
    uint32_t fd_count;
    void *reply;
    uint32_t reply_room;
    uint32_t ret_size;         /* payload bytes of the reply */
    struct vfmig_fds *ret_fds; /* NULL: those that come are trouble */
    uint32_t deadline_ms;
    bool any_reply; /* only its header is looked at: a wrong command was sent */
    bool pieces;    /* sent byte by byte */
};

int check_link_init(struct check_link *link, struct check_port *port);
void check_link_done(struct check_link *link);
int check_link_connect(struct check_link *link, const char *path, struct vfmig_error *reterr);
void check_link_close(struct check_link *link);
void check_link_take_twin(struct check_link *link, int fd);

/* 0, the negative errno of an error reply, or -ENOTCONN and the port's trouble. */
int check_link_call(struct check_link *link, struct check_call *call);

/* The answer to the command that was sent with asking set, as check_link_call would have had it. */
int check_link_answer(struct check_link *link, uint32_t deadline_ms);
/* Serves DMA for so long. */
int check_link_serve(struct check_link *link, uint32_t ms);

/* Part of a message whose header says size, as far as the bytes go. */
int check_link_send_part(struct check_link *link, uint16_t command, uint32_t size, const void *data,
                         uint32_t bytes);

/* Mappings as the device was told. */
int check_link_map(struct check_link *link, uint64_t iova, uint64_t size, uint64_t offset,
                   uint32_t how);
void check_link_unmap(struct check_link *link, uint64_t iova, uint64_t size);

#endif
