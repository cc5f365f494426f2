/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFMIG_IO_TLS_PRIVATE_H
#define VFMIG_IO_TLS_PRIVATE_H

#include <openssl/ssl.h>

#include "io/tls.h"

#define TLS_MAX_KEY  64u /* bytes of a key that both sides know */
#define TLS_MIN_KEY  16u
#define TLS_MAX_NAME 128u

struct vfmig_tls_creds {
    SSL_CTX *ctx;
    bool server;
    bool psk;
    bool locked; /* a file wanted a password */
    unsigned char key[TLS_MAX_KEY];
    size_t key_bytes;
    char name[TLS_MAX_NAME];
};

#endif
