/* SPDX-License-Identifier: BSD-3-Clause */
/* A connection under TLS. OpenSSL has one lock for both directions, and never sees the socket wait: what it
 * encrypts goes to a buffer, which is sent when the lock is free again. */
#include "io/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/sabotage.h"
#include "io/sock.h"
#include "io/tls_private.h"

#define RECORD_BYTES  SSL3_RT_MAX_PLAIN_LENGTH
#define RECORD_EXTRA  256u         /* what encrypting a record adds, or an alert takes, at most */
#define OUT_BYTES     (128u << 10) /* goes to the socket in one piece */
#define OUT_ROOM      (OUT_BYTES + RECORD_BYTES + 4u * RECORD_EXTRA)

struct out {
    uint8_t *data;
    size_t size;
};

struct vfmig_tls {
    SSL *ssl;
    int fd;
    bool key_known; /* proof is a key that both sides know */
    pthread_mutex_t lock; /* ssl and out */
    struct out out;       /* encrypted, not sent; the receiving side puts alerts here */
    struct out sending;   /* sending thread only */
    uint8_t staged[RECORD_BYTES]; /* small parts until they fill a record; the same */
    size_t staged_bytes;
    int recv_errno; /* why OpenSSL's read found nothing */
    bool cut;
    bool send_broken; /* the connection ends inside a record of ours */
    char why[160];
};

/* --- OpenSSL's view of the socket, under the lock --- */

static int bio_write(BIO *bio, const char *data, int size)
{
    struct vfmig_tls *tls = BIO_get_data(bio);

    BIO_clear_retry_flags(bio);
    if (size <= 0 || (size_t)size > OUT_ROOM - tls->out.size)
        return -1;
    memcpy(tls->out.data + tls->out.size, data, (size_t)size);
    tls->out.size += (size_t)size;
    return size;
}

static int bio_read(BIO *bio, char *data, int size)
{
    struct vfmig_tls *tls = BIO_get_data(bio);
    ssize_t got;

    BIO_clear_retry_flags(bio);
    do {
        got = recv(tls->fd, data, (size_t)size, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    tls->recv_errno = got < 0 ? errno : 0;
    if (got == 0) {
        tls->cut = true;
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    }
    if (got < 0 && errno == EAGAIN)
        BIO_set_retry_read(bio);
    return (int)got;
}

static long bio_ctrl(BIO *bio, int command, long number, void *data)
{
    if (command == BIO_CTRL_EOF)
        return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *method;
static pthread_once_t method_once = PTHREAD_ONCE_INIT;

static void make_method(void)
{
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "vfmig socket");
    if (method && (!BIO_meth_set_write(method, bio_write) || !BIO_meth_set_read(method, bio_read) ||
                   !BIO_meth_set_ctrl(method, bio_ctrl))) {
        BIO_meth_free(method);
        method = NULL;
    }
}

/* --- errors --- */

/* The sentence of what OpenSSL noted in this thread, which is forgotten. The first one stays: OpenSSL tells
 * a cause once, and whoever comes later finds none. Under the lock. */
static void note_why(struct vfmig_tls *tls)
{
    unsigned long code = ERR_peek_last_error();
    const char *text = code ? ERR_reason_error_string(code) : NULL;
    long verdict = SSL_get_verify_result(tls->ssl);

    ERR_clear_error();
    if (tls->why[0])
        return;
    if (verdict != X509_V_OK && ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED)
        snprintf(tls->why, sizeof(tls->why), "the peer's certificate: %s",
                 X509_verify_cert_error_string(verdict));
    else
        snprintf(tls->why, sizeof(tls->why), "%s",
                 text ? text : tls->cut ? "the peer closed the connection" : "unknown error");
}

/* --- sending --- */

/* Sends what is encrypted. flags: MSG_DONTWAIT for as much as there is room for. */
static int flush(struct vfmig_tls *tls, int flags)
{
    pthread_mutex_lock(&tls->lock);
    struct out filled = tls->out;
    tls->out = tls->sending;
    tls->out.size = 0;
    tls->sending = filled;
    pthread_mutex_unlock(&tls->lock);
    unsigned silent = 0;
    for (size_t done = 0; done < filled.size;) {
        ssize_t sent = send(tls->fd, filled.data + done, filled.size - done, MSG_NOSIGNAL | flags);
        if (sent < 0 && (errno == EINTR || (errno == EAGAIN && !flags && vfmig_sock_go_on(&silent))))
            continue;
        if (sent < 0) {
            tls->send_broken = true;
            return -1;
        }
        silent = 0;
        done += (size_t)sent;
    }
    return 0;
}

/* At most a record. */
static int encrypt(struct vfmig_tls *tls, const void *data, size_t size)
{
    size_t taken = 0;

    pthread_mutex_lock(&tls->lock);
    ERR_clear_error();
    bool good = SSL_write_ex(tls->ssl, data, size, &taken) == 1 && taken == size;
    bool full = tls->out.size >= OUT_BYTES;
    if (!good)
        note_why(tls);
    pthread_mutex_unlock(&tls->lock);
    if (!good) {
        tls->send_broken = true;
        errno = EPROTO;
        return -1;
    }
    return full ? flush(tls, 0) : 0;
}

static int stage(struct vfmig_tls *tls, const uint8_t **at, size_t *left)
{
    size_t size = RECORD_BYTES - tls->staged_bytes;

    if (size > *left)
        size = *left;
    memcpy(tls->staged + tls->staged_bytes, *at, size);
    tls->staged_bytes += size;
    *at += size;
    *left -= size;
    if (tls->staged_bytes < RECORD_BYTES)
        return 0;
    tls->staged_bytes = 0;
    return encrypt(tls, tls->staged, RECORD_BYTES);
}

ssize_t vfmig_tls_send(struct vfmig_tls *tls, const struct iovec *iov, size_t count)
{
    size_t total = 0;

    if (tls->send_broken) {
        errno = EPIPE;
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        total += left;
        while (left) {
            int rc;
            if (tls->staged_bytes || left < RECORD_BYTES) {
                rc = stage(tls, &at, &left);
            } else {
                rc = encrypt(tls, at, RECORD_BYTES);
                at += RECORD_BYTES;
                left -= RECORD_BYTES;
            }
            if (rc < 0)
                return -1;
        }
    }
    size_t staged = tls->staged_bytes;
    tls->staged_bytes = 0;
    if ((staged && encrypt(tls, tls->staged, staged) < 0) || flush(tls, 0) < 0)
        return -1;
    return (ssize_t)total;
}

void vfmig_tls_end(struct vfmig_tls *tls)
{
    if (tls->send_broken || vfmig_sabotage("tls-no-end"))
        return;
    pthread_mutex_lock(&tls->lock);
    ERR_clear_error();
    if (!(SSL_get_shutdown(tls->ssl) & SSL_SENT_SHUTDOWN))
        (void)SSL_shutdown(tls->ssl);
    ERR_clear_error();
    pthread_mutex_unlock(&tls->lock);
    (void)flush(tls, MSG_DONTWAIT);
    tls->send_broken = true;
}

/* --- receiving --- */

/* As the socket itself would, in parts; 0, or -1 and errno. */
static int wait_input(const struct vfmig_tls *tls)
{
    struct timeval limit = {0};
    socklen_t size = sizeof(limit);

    (void)getsockopt(tls->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &size);
    uint64_t limit_ns = (uint64_t)limit.tv_sec * 1000000000u + (uint64_t)limit.tv_usec * 1000u;
    unsigned silent = 0;
    do {
        uint64_t until_ns = limit_ns ? vfmig_now_ns() + limit_ns : VFMIG_NEVER;
        if (vfmig_sock_wait(tls->fd, POLLIN, until_ns, NULL) == 0)
            return 0;
    } while (vfmig_sock_go_on(&silent));
    errno = EAGAIN;
    return -1;
}

/* Why a read brought nothing: 0 at the peer's end, 1 when there is more to wait for, -1 and errno. */
static int judge_read(struct vfmig_tls *tls, int rc)
{
    switch (SSL_get_error(tls->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return 1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        break;
    }
    if (tls->recv_errno && tls->recv_errno != EAGAIN) {
        errno = tls->recv_errno;
    } else if (tls->cut) {
        if (vfmig_sabotage("tls-cut-is-end"))
            return 0;
        errno = ECONNRESET;
    } else {
        int code = EPROTO;
        note_why(tls);
        errno = code;
    }
    return -1;
}

ssize_t vfmig_tls_try_recv(struct vfmig_tls *tls, struct iovec *iov, size_t count)
{
    size_t total = 0;
    int more = 1;

    pthread_mutex_lock(&tls->lock);
    ERR_clear_error();
    for (size_t i = 0, at = 0; i < count && more == 1;) {
        size_t got = 0;
        if (at == iov[i].iov_len) {
            i++;
            at = 0;
            continue;
        }
        int rc = SSL_read_ex(tls->ssl, (uint8_t *)iov[i].iov_base + at, iov[i].iov_len - at, &got);
        at += got;
        total += got;
        if (rc != 1) {
            more = judge_read(tls, 0);
            break;
        }
    }
    int code = more == 1 ? EAGAIN : errno;
    ERR_clear_error();
    pthread_mutex_unlock(&tls->lock);
    errno = code;
    if (total) /* what ended it comes again, the next time */
        return (ssize_t)total;
    return more == 1 ? -1 : more;
}

ssize_t vfmig_tls_recv(struct vfmig_tls *tls, struct iovec *iov, size_t count)
{
    for (;;) {
        ssize_t got = vfmig_tls_try_recv(tls, iov, count);
        if (got >= 0 || errno != EAGAIN)
            return got;
        if (wait_input(tls) < 0)
            return -1;
    }
}

/* The other direction's thread may be the one that finds out. */
bool vfmig_tls_cut(struct vfmig_tls *tls)
{
    pthread_mutex_lock(&tls->lock);
    bool cut = tls->cut;
    pthread_mutex_unlock(&tls->lock);
    return cut;
}

const char *vfmig_tls_why(struct vfmig_tls *tls)
{
    pthread_mutex_lock(&tls->lock);
    const char *why = tls->why[0] ? tls->why : "unknown error"; /* what is there stays as it is */
    pthread_mutex_unlock(&tls->lock);
    return why;
}

bool vfmig_tls_pending(struct vfmig_tls *tls)
{
    pthread_mutex_lock(&tls->lock);
    bool pending = SSL_has_pending(tls->ssl);
    pthread_mutex_unlock(&tls->lock);
    return pending;
}

const char *vfmig_tls_cipher(const struct vfmig_tls *tls)
{
    return SSL_get_cipher_name(tls->ssl);
}

/* --- the handshake --- */

/* Whose certificate it must be. An address is another kind of name. */
static bool set_name(SSL *ssl, const char *name)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);
    struct in6_addr room;

    if (vfmig_sabotage("tls-any-name"))
        return true;
    if (!name || !*name) /* to OpenSSL that is: whoever it is */
        return false;
    if (inet_pton(AF_INET, name, &room) == 1 || inet_pton(AF_INET6, name, &room) == 1)
        return X509_VERIFY_PARAM_set1_ip_asc(param, name) == 1;
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return X509_VERIFY_PARAM_set1_host(param, name, 0) == 1 && SSL_set_tlsext_host_name(ssl, name) == 1;
}

static bool prepare(struct vfmig_tls *tls, const struct vfmig_tls_creds *creds, const char *peer_name)
{
    pthread_once(&method_once, make_method);
    BIO *bio = method ? BIO_new(method) : NULL;

    tls->ssl = SSL_new(creds->ctx);
    if (!tls->ssl || !bio) {
        BIO_free(bio);
        return false;
    }
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    SSL_set_bio(tls->ssl, bio, bio);
    if (creds->server)
        SSL_set_accept_state(tls->ssl);
    else
        SSL_set_connect_state(tls->ssl);
    if (creds->server || creds->psk || set_name(tls->ssl, peer_name))
        return true;
    snprintf(tls->why, sizeof(tls->why), "'%.80s' is no name for a certificate", peer_name ? peer_name : "");
    return false;
}

static int refused(struct vfmig_tls *tls, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EACCES, VFMIG_ORIGIN_PEER, 0, "TLS with the peer failed: %s",
                           tls->why);
}

int vfmig_tls_shake(struct vfmig_tls *tls, struct vfmig_error *reterr)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(tls->ssl);
    int what = rc == 1 ? SSL_ERROR_NONE : SSL_get_error(tls->ssl, rc);
    if (what != SSL_ERROR_NONE && what != SSL_ERROR_WANT_READ)
        note_why(tls);
    bool broken = flush(tls, MSG_DONTWAIT) < 0; /* an alert too: the peer shall know why */
    bool failed = what != SSL_ERROR_NONE && what != SSL_ERROR_WANT_READ;
    bool gone = failed && (tls->cut || tls->recv_errno == ECONNRESET);
    if (failed && !gone)
        return refused(tls, reterr);
    if (broken || gone)
        return vfmig_error_set(reterr, -ECONNRESET, VFMIG_ORIGIN_PEER, 0,
                               "the peer closed the connection before TLS was agreed");
    if (what == SSL_ERROR_WANT_READ)
        return 1;
    if (tls->key_known && !SSL_session_reused(tls->ssl)) {
        snprintf(tls->why, sizeof(tls->why), "the peer does not know the key");
        return refused(tls, reterr);
    }
    return 0;
}

int vfmig_tls_begin(const struct vfmig_tls_creds *creds, int fd, const char *peer_name,
                    struct vfmig_tls **ret_tls, struct vfmig_error *reterr)
{
    struct vfmig_tls *tls = calloc(1, sizeof(*tls));

    if (!tls)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for TLS");
    tls->fd = fd;
    tls->key_known = creds->psk;
    pthread_mutex_init(&tls->lock, NULL);
    tls->out.data = malloc(OUT_ROOM);
    tls->sending.data = malloc(OUT_ROOM);
    if (tls->out.data && tls->sending.data && prepare(tls, creds, peer_name)) {
        *ret_tls = tls;
        return 0;
    }
    int rc = *tls->why ? vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "TLS: %s", tls->why)
                       : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for TLS");
    vfmig_tls_free(tls);
    return rc;
}

int vfmig_tls_new(const struct vfmig_tls_creds *creds, int fd, const char *peer_name,
                  uint64_t deadline_ns, struct vfmig_tls **ret_tls, struct vfmig_error *reterr)
{
    struct vfmig_tls *tls;
    int rc = vfmig_tls_begin(creds, fd, peer_name, &tls, reterr);

    if (rc < 0)
        return rc;
    while ((rc = vfmig_tls_shake(tls, reterr)) == 1) {
        rc = vfmig_sock_wait(fd, POLLIN, deadline_ns, NULL);
        if (rc < 0) {
            vfmig_error_set(reterr, rc, VFMIG_ORIGIN_PEER, 0, "the peer did not agree on TLS in time");
            break;
        }
    }
    if (rc < 0) {
        vfmig_tls_free(tls);
        return rc;
    }
    *ret_tls = tls;
    return 0;
}

void vfmig_tls_free(struct vfmig_tls *tls)
{
    if (!tls)
        return;
    SSL_free(tls->ssl);
    ERR_clear_error();
    pthread_mutex_destroy(&tls->lock);
    free(tls->out.data);
    free(tls->sending.data);
    free(tls);
}
