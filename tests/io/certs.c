/* SPDX-License-Identifier: BSD-3-Clause */
#include "certs.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAY_S (24L * 3600)

static void need(int good, const char *what)
{
    if (good)
        return;
    perror(what);
    exit(1);
}

static EVP_PKEY *new_key(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");

    need(key != NULL, "a key");
    return key;
}

static void extend(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;

    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    need(extension && X509_add_ext(cert, extension, -1), value);
    X509_EXTENSION_free(extension);
}

/* ca NULL: signs itself. */
static X509 *new_cert(EVP_PKEY *key, const char *name, const struct authority *ca, const char *names,
                      int days)
{
    static long serial;
    X509 *cert = X509_new();

    need(cert && X509_set_version(cert, 2), "a certificate");
    ASN1_INTEGER_set(X509_get_serialNumber(cert), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(cert), days < 0 ? (days - 1) * DAY_S : -DAY_S);
    X509_gmtime_adj(X509_getm_notAfter(cert), days * DAY_S);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               (const unsigned char *)name, -1, -1, 0);
    X509 *issuer = ca ? ca->cert : cert;
    X509_set_issuer_name(cert, X509_get_subject_name(issuer));
    extend(cert, issuer, NID_basic_constraints, ca ? "critical,CA:FALSE" : "critical,CA:TRUE");
    extend(cert, issuer, NID_subject_key_identifier, "hash");
    if (names)
        extend(cert, issuer, NID_subject_alt_name, names);
    need(X509_sign(cert, ca ? ca->key : key, EVP_sha256()), "a signature");
    return cert;
}

void authority_init(struct authority *ca, const char *name)
{
    ca->key = new_key();
    ca->cert = new_cert(ca->key, name, NULL, NULL, 1);
}

void authority_done(struct authority *ca)
{
    EVP_PKEY_free(ca->key);
    X509_free(ca->cert);
}

static FILE *create(const char *dir, const char *name, mode_t mode)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    need(fd >= 0, path);
    FILE *file = fdopen(fd, "w");
    need(file != NULL, path);
    return file;
}

static void write_cert(const char *dir, const char *name, X509 *cert)
{
    FILE *file = create(dir, name, 0644);

    need(PEM_write_X509(file, cert), name);
    fclose(file);
}

static void write_pair(const char *dir, const char *cert_name, const char *key_name,
                       const struct authority *signer, const char *names, int days)
{
    EVP_PKEY *key = new_key();
    X509 *cert = new_cert(key, "a host", signer, names, days);

    write_cert(dir, cert_name, cert);
    FILE *file = create(dir, key_name, 0600);
    need(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), key_name);
    fclose(file);
    X509_free(cert);
    EVP_PKEY_free(key);
}

void certs_write(const char *dir, const struct authority *believed, const struct authority *signer,
                 const char *names, int days)
{
    need(mkdir(dir, 0700) == 0 || errno == EEXIST, dir);
    write_cert(dir, "ca.pem", believed->cert);
    write_pair(dir, "cert.pem", "key.pem", signer, names, days);
}

void certs_write_as_qemu(const char *dir, const struct authority *ca, const char *names)
{
    need(mkdir(dir, 0700) == 0 || errno == EEXIST, dir);
    write_cert(dir, "ca-cert.pem", ca->cert);
    write_pair(dir, "server-cert.pem", "server-key.pem", ca, names, 1);
    write_pair(dir, "client-cert.pem", "client-key.pem", ca, names, 1);
}
