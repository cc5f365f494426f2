/* SPDX-License-Identifier: BSD-3-Clause */
/* Certificates for tests, made anew each time. */
#ifndef TESTS_IO_CERTS_H
#define TESTS_IO_CERTS_H

#include <openssl/evp.h>
#include <openssl/x509.h>

struct authority {
    EVP_PKEY *key;
    X509 *cert;
};

void authority_init(struct authority *ca, const char *name);
void authority_done(struct authority *ca);

/* dir/ca.pem is believed, dir/cert.pem signed by signer for the names (as in "IP:127.0.0.1,DNS:here"),
 * and valid until days from now, which may be past. dir is made. */
void certs_write(const char *dir, const struct authority *believed, const struct authority *signer,
                 const char *names, int days);
/* The same two with QEMU's names, for both sides. */
void certs_write_as_qemu(const char *dir, const struct authority *ca, const char *names);

#endif
