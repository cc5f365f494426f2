/* SPDX-License-Identifier: BSD-3-Clause */
/* A build without OpenSSL: there are no credentials, and so no connection. */
#include <errno.h>

#include "io/tls.h"

int vfmig_tls_creds_load(const char *dir, const char *psk_file, bool server,
                         struct vfmig_tls_creds **ret_creds, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0, "this build has no TLS");
}

void vfmig_tls_creds_free(struct vfmig_tls_creds *creds)
{
}

int vfmig_tls_new(const struct vfmig_tls_creds *creds, int fd, const char *peer_name,
                  uint64_t deadline_ns, struct vfmig_tls **ret_tls, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0, "this build has no TLS");
}

int vfmig_tls_begin(const struct vfmig_tls_creds *creds, int fd, const char *peer_name,
                    struct vfmig_tls **ret_tls, struct vfmig_error *reterr)
{
    return vfmig_tls_new(creds, fd, peer_name, 0, ret_tls, reterr);
}

int vfmig_tls_shake(struct vfmig_tls *tls, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0, "this build has no TLS");
}

void vfmig_tls_free(struct vfmig_tls *tls)
{
}

ssize_t vfmig_tls_send(struct vfmig_tls *tls, const struct iovec *iov, size_t count)
{
    errno = ENOTSUP;
    return -1;
}

ssize_t vfmig_tls_recv(struct vfmig_tls *tls, struct iovec *iov, size_t count)
{
    errno = ENOTSUP;
    return -1;
}

ssize_t vfmig_tls_try_recv(struct vfmig_tls *tls, struct iovec *iov, size_t count)
{
    errno = ENOTSUP;
    return -1;
}

bool vfmig_tls_cut(struct vfmig_tls *tls)
{
    return false;
}

const char *vfmig_tls_why(struct vfmig_tls *tls)
{
    return "this build has no TLS";
}

bool vfmig_tls_pending(struct vfmig_tls *tls)
{
    return false;
}

void vfmig_tls_end(struct vfmig_tls *tls)
{
}

const char *vfmig_tls_cipher(const struct vfmig_tls *tls)
{
    return "none";
}
