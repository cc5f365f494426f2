/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS 1.3 over a connected stream socket, with certificates of both sides or a key that both know; no
 * older version is spoken, and nobody is let in without proof. Without OpenSSL in the build loading
 * credentials says so, and nothing else can be reached.
 *
 * One thread sends and another receives at the same time; each direction belongs to one thread. Nothing
 * waits while it holds what the two share, so that neither direction ever waits for the other. */
#ifndef VFMIG_IO_TLS_H
#define VFMIG_IO_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "vfmig/error.h"

struct vfmig_tls_creds; /* what a side shows, and whom it believes */
struct vfmig_tls;       /* a connection */

/* dir holds ca.pem, cert.pem and key.pem, or as QEMU's x509 directories do ca-cert.pem and
 * server-cert.pem, server-key.pem or client-cert.pem, client-key.pem by the side. psk_file holds a line
 * NAME:KEY, the key of 16 to 64 bytes in hex. One of the two is NULL. Files with a key that everybody can
 * read are refused. */
int vfmig_tls_creds_load(const char *dir, const char *psk_file, bool server,
                         struct vfmig_tls_creds **ret_creds, struct vfmig_error *reterr);
void vfmig_tls_creds_free(struct vfmig_tls_creds *creds);

/* The handshake. fd stays the caller's. peer_name: what the certificate of a server must be for, a name or
 * an address; not looked at with a key. -EACCES when the other side has no proof, or takes ours for none. */
int vfmig_tls_new(const struct vfmig_tls_creds *creds, int fd, const char *peer_name,
                  uint64_t deadline_ns, struct vfmig_tls **ret_tls, struct vfmig_error *reterr);
/* The same in steps, for who has others to listen to as well. shake never waits: 0 when TLS is agreed, 1: the
 * socket has to become readable first. Nothing else may be done with it before. */
int vfmig_tls_begin(const struct vfmig_tls_creds *creds, int fd, const char *peer_name,
                    struct vfmig_tls **ret_tls, struct vfmig_error *reterr);
int vfmig_tls_shake(struct vfmig_tls *tls, struct vfmig_error *reterr);
void vfmig_tls_free(struct vfmig_tls *tls);

/* Sends all of iov, and waits for VFMIG_STALL_PARTS times SO_SNDTIMEO. The bytes, or -1 and errno; EPROTO: see why. */
ssize_t vfmig_tls_send(struct vfmig_tls *tls, const struct iovec *iov, size_t count);

/* Receives what is there, at least one byte, as recvmsg does; waits for VFMIG_STALL_PARTS times SO_RCVTIMEO. 0:
 * the peer ended the connection, in TLS's way. -1 and errno; ECONNRESET with vfmig_tls_cut: it was cut, by
 * whomever; EPROTO: see why. */
ssize_t vfmig_tls_recv(struct vfmig_tls *tls, struct iovec *iov, size_t count);
/* The same without waiting: EAGAIN when nothing is there. */
ssize_t vfmig_tls_try_recv(struct vfmig_tls *tls, struct iovec *iov, size_t count);
bool vfmig_tls_cut(struct vfmig_tls *tls);
const char *vfmig_tls_why(struct vfmig_tls *tls);

/* Something was received already that the socket will not wake anybody for. */
bool vfmig_tls_pending(struct vfmig_tls *tls);

/* Tells the peer that nothing follows, as far as it goes without waiting. The sending thread's. */
void vfmig_tls_end(struct vfmig_tls *tls);

/* For reports: the cipher's name. */
const char *vfmig_tls_cipher(const struct vfmig_tls *tls);

#endif
