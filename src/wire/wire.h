/* SPDX-License-Identifier: BSD-3-Clause */
/* vfio-user codec, pure: bytes in, messages out, for both roles.
 *
 *   shell: recvmsg into vfmig_framer_space(), then vfmig_framer_fed(), then vfmig_framer_next()
 *   until it returns 0. A short read is a normal case. */
#ifndef VFMIG_WIRE_WIRE_H
#define VFMIG_WIRE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fds.h"
#include "vfmig/error.h"
#include "wire/proto.h"

/* The largest fixed part of any message with data, header included (LOG_REPORT, DIRTY_PAGES). */
#define VFMIG_USER_FIXED_MAX 64u
/* Room that every connection needs whatever was negotiated: VERSION texts, range lists. */
#define VFMIG_USER_DATA_MIN 8192u

/* Largest message on a connection whose data limit is max_data bytes. */
static inline uint32_t vfmig_user_message_max(uint32_t max_data)
{
    return VFMIG_USER_FIXED_MAX + (max_data > VFMIG_USER_DATA_MIN ? max_data : VFMIG_USER_DATA_MIN);
}

/* One complete message. payload points into the framer and is valid until the framer's next
 * vfmig_framer_space or _rebase. The holder owns fds. */
struct vfmig_user_msg {
    struct vfmig_user_header header;
    const uint8_t *payload;
    uint32_t size; /* bytes of payload */
    struct vfmig_fds fds;
};

struct vfmig_framer {
    uint8_t *buf; /* the shell's, at least max_message bytes */
    size_t capacity;
    size_t start, end;    /* unread bytes */
    uint32_t max_message; /* negotiated limit, bytes */
    struct {
        uint64_t at; /* stream position of the first byte of the message they belong to */
        struct vfmig_fds fds;
    } slot[2];
    uint64_t position; /* stream position of buf[start] */
};

/* capacity must be at least max_message. buf stays the caller's. */
void vfmig_framer_init(struct vfmig_framer *f, void *buf, size_t capacity, uint32_t max_message);

/* Moves what is unread to another buffer and changes the limit. The old buffer is the caller's
 * to free. -ENOSPC when the unread bytes do not fit. */
int vfmig_framer_rebase(struct vfmig_framer *f, void *buf, size_t capacity, uint32_t max_message);

/* Closes descriptors not handed out, forgets unread bytes. */
void vfmig_framer_done(struct vfmig_framer *f);

/* Where the next bytes go; *ret_space is at least 1 unless a complete message waits. */
void *vfmig_framer_space(struct vfmig_framer *f, size_t *ret_space);

/* size bytes were put at vfmig_framer_space() and *fds came with them. Takes the descriptors
 * (*fds is empty afterwards, also on failure). They belong to the last message whose header has
 * a byte among the new bytes and whose command carries descriptors; failing that, to the last
 * one. -EPROTO: descriptors in the middle of a message, or a second time for one; the connection
 * is lost. */
int vfmig_framer_fed(struct vfmig_framer *f, size_t size, struct vfmig_fds *fds);

/* 1 and *ret_msg: a complete message. 0: more bytes needed. -EPROTO (size below 16) or -EMSGSIZE
 * (above the limit): where the next message starts is unknown, the connection is lost. */
int vfmig_framer_next(struct vfmig_framer *f, struct vfmig_user_msg *ret_msg);

/* After vfmig_framer_next() returned 0: a message whose header and next `fixed` bytes are there, and
 * no descriptors. Its payload says what it is, of ret_msg->size bytes only *ret_have are there. The
 * shell may receive the rest to a place of its own and then skip the message. */
bool vfmig_framer_partial(const struct vfmig_framer *f, uint32_t fixed,
                          struct vfmig_user_msg *ret_msg, uint32_t *ret_have);
void vfmig_framer_skip(struct vfmig_framer *f);

/* True when every byte fed was handed out: a close now cuts no message. */
bool vfmig_framer_idle(const struct vfmig_framer *f);

/* "DMA_MAP"; "unknown" for any other number. */
const char *vfmig_user_command_name(uint32_t command);

/* Structure of a command from the peer, in the order: type and flags known - payload size
 * between the fixed part and the limit - known and exclusive flags in it - counts, argsz and
 * descriptors as announced - arithmetic (address + size). 0, or a negative errno for the error
 * reply (-EINVAL, -E2BIG above max_data, -EOPNOTSUPP for an unknown command); what depends on
 * the device (ranges, phase) is the caller's. max_data: bytes of data the receiver offered.
 * from_server: which direction's commands are acceptable. */
int vfmig_user_check_command(const struct vfmig_user_msg *msg, bool from_server, uint32_t max_data,
                             struct vfmig_error *reterr);

/* Structure of a reply to `command`, whose request payload is given (NULL for none): type,
 * echoed command, payload size against its fixed part and its own counts, data not more than
 * asked for. An error reply gives its errno, negative (-EIO when it says 0), origin PEER; a
 * broken one gives -EPROTO and the connection is lost. */
int vfmig_user_check_reply(const struct vfmig_user_msg *msg, uint16_t command, const void *request,
                           uint32_t request_size, struct vfmig_error *reterr);

/* First capability `id` in a REGION_INFO reply of size bytes, at least as long as its own struct
 * says, or NULL. Survives chains that loop or leave the payload. *ret_size: bytes to its end. */
const void *vfmig_user_find_cap(const void *info, uint32_t size, uint16_t id, uint32_t *ret_size);

/* Header of a command or of the reply to one; payload_size bytes follow it. */
struct vfmig_user_header vfmig_user_make_command(uint16_t id, uint16_t command,
                                                 uint32_t payload_size, bool no_reply);
struct vfmig_user_header vfmig_user_make_reply(const struct vfmig_user_header *request,
                                               uint32_t payload_size);
/* error: negative errno; 0 is told as EIO because an error reply must say one. */
struct vfmig_user_header vfmig_user_make_error(const struct vfmig_user_header *request, int error);

/* Most characters of a control session's token. */
#define VFMIG_USER_TOKEN_MAX 64u

/* What a VERSION text says. has_* tell what was in the text; the others hold the default. */
struct vfmig_user_caps {
    uint32_t max_msg_fds;
    uint32_t max_data_xfer_size; /* bytes, cut at VFMIG_MAX_DATA_XFER_CAP */
    uint32_t max_dma_maps;
    uint64_t pgsizes;
    uint64_t migration_pgsize;
    uint32_t twin_fd_index;
    bool twin_socket;
    bool write_multiple;
    bool has_max_msg_fds, has_max_data_xfer_size, has_max_dma_maps, has_pgsizes, has_migration;
    bool has_twin_fd_index, has_window_fd_index;
    /* Our own key "vfmig", answered only to a client that sent it; "window" (with "windows" and
     * "fd_index" in an answer only) is the shared memory of docs/vfio-user-extensions.md. */
    uint32_t window_fd_index;
    uint32_t window;  /* bytes of one, cut at VFMIG_MAX_DATA_XFER_CAP; 0: not there */
    uint32_t windows; /* 1 to VFMIG_MAX_WINDOWS, default 1 */
    char token[VFMIG_USER_TOKEN_MAX + 1]; /* "token": whose session this is; empty: not there */
};

void vfmig_user_caps_default(struct vfmig_user_caps *caps);

/* Parses the text of size bytes behind the fixed part of VERSION (0: no text, the defaults).
 * -EINVAL: too long, not terminated, not JSON, a wrong type or a value out of range. Unknown
 * keys are ignored. */
int vfmig_user_caps_parse(const void *text, size_t size, struct vfmig_user_caps *ret_caps,
                          struct vfmig_error *reterr);

/* Writes the keys whose has_* (or bool) is set. Returns bytes written with the NUL, or -ENOSPC. */
int vfmig_user_caps_format(const struct vfmig_user_caps *caps, char *buf, size_t size);

#endif
