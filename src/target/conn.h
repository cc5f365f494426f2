/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's end of one vfio-user socket, used by many threads at once.
 *
 * Whoever waits for a reply reads the socket itself; with others waiting, one of them reads for
 * all (leader and followers). A lone request thus costs one sendmsg and one recvmsg and no switch
 * of threads inside this process.
 *
 * A request that times out leaves the connection usable: its reply is thrown away when it comes.
 * A reply that nobody asked for or that breaks the protocol, and a peer that closes, end the
 * connection: every request open then and later fails with that error. */
#ifndef VFMIG_TARGET_CONN_H
#define VFMIG_TARGET_CONN_H

#include "io/sock.h"
#include "wire/wire.h"

#define VFMIG_CONN_ABANDONED 32u /* requests given up whose reply has not come yet */

struct vfmig_conn;

/* Serves a command of the server. Called without locks; may send a reply. < 0: the connection is
 * of no use any more (*reterr filled). */
typedef int (*vfmig_conn_serve)(void *opaque, struct vfmig_user_msg *msg,
                                struct vfmig_error *reterr);

/* One request. Zero members are left out. */
struct vfmig_call {
    uint16_t command;
    bool no_reply;              /* posted */
    uint32_t request_size;      /* bytes of request: the fixed part */
    uint32_t data_size;         /* bytes of data that follow it */
    const void *request;
    const void *data;
    const struct vfmig_fds *fds; /* stay the caller's */

    /* Payload of the reply: reply_room bytes to reply, what is more to reply_data. One that does
     * not fit breaks the protocol. Beyond the reply, and after a failure, reply_data may have bytes
     * of another message in it; the others are left alone by a bare header (refusals). */
    void *reply;
    void *reply_data;
    uint32_t reply_room;
    uint32_t reply_data_room;
    uint32_t ret_size;           /* payload bytes that came */
    struct vfmig_fds *ret_fds;   /* NULL: descriptors break the protocol, or are closed unseen */
};

/* Takes fd, on failure too. max_data: data bytes that the VERSION text offers. serve may be NULL:
 * no commands are expected. */
int vfmig_conn_new(int fd, uint32_t max_data, vfmig_conn_serve serve, void *opaque,
                   struct vfmig_conn **ret_conn, struct vfmig_error *reterr);

/* No call may be open. NULL is fine. */
void vfmig_conn_free(struct vfmig_conn *conn);

/* 0, the peer's errno (origin PEER), -ETIMEDOUT, -EPROTO, -ECONNRESET ... Any thread. */
int vfmig_conn_call(struct vfmig_conn *conn, struct vfmig_call *call, uint64_t deadline_ns,
                    struct vfmig_error *reterr);

/* A request whose reply is looked at later, so that the next one is on its way meanwhile. begin
 * sends it: what call points to is not needed any more. request_size and reply_room are at most
 * VFMIG_USER_FIXED_MAX; the payload of the reply is only checked. Every ticket is to be finished, also after vfmig_conn_end(). deadline_ns is that of the reply. */
struct vfmig_ticket;
int vfmig_conn_begin(struct vfmig_conn *conn, const struct vfmig_call *call, uint64_t deadline_ns,
                     struct vfmig_ticket **ret_ticket, struct vfmig_error *reterr);
int vfmig_conn_finish(struct vfmig_conn *conn, struct vfmig_ticket *ticket,
                      struct vfmig_error *reterr);

/* The connection has ended: what a call just said is not a mere refusal. */
bool vfmig_conn_failed(struct vfmig_conn *conn);

/* Reply to a served command. Any thread. */
int vfmig_conn_reply(struct vfmig_conn *conn, const struct vfmig_user_header *header,
                     const void *fixed, uint32_t fixed_size, const void *data, uint32_t data_size,
                     struct vfmig_error *reterr);

/* Reads and serves until the connection ends (the twin socket's thread), and says why. */
int vfmig_conn_run(struct vfmig_conn *conn, struct vfmig_error *reterr);

/* Ends the connection from any thread: open calls and vfmig_conn_run return. error (may be NULL)
 * is what they say; the first one stays. */
void vfmig_conn_end(struct vfmig_conn *conn, const struct vfmig_error *error);

#endif
