/* SPDX-License-Identifier: BSD-3-Clause */
/* Credentials from files, and what a connection made with them must be: TLS 1.3, both sides proven. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "io/tls_private.h"

#define PATH_BYTES 4096u
#define LINE_BYTES (TLS_MAX_NAME + 1u + 2u * TLS_MAX_KEY + 3u)

/* A key names a hash, and with it the cipher. */
#define PSK_CIPHER "TLS_AES_256_GCM_SHA384"

/* So much is decrypted out of one receive: what is sent in one piece (tls.c), and a record. */
#define READ_AHEAD_BYTES (144u << 10)

static const char *reason(void)
{
    unsigned long code = ERR_peek_last_error();
    const char *text = code ? ERR_reason_error_string(code) : NULL;

    return text ? text : code && ERR_GET_LIB(code) == ERR_LIB_SYS ? strerror(ERR_GET_REASON(code)) : "unknown";
}

static int unusable(const char *path, const char *why, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "TLS: %.150s: %.80s", path, why);
}

/* A secret that everybody on the host can read is none. */
static int check_secret(const char *path, struct vfmig_error *reterr)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_LOCAL, 0, "TLS: %.150s: %s", path,
                               strerror(errno));
    return st.st_mode & 07 ? unusable(path, "everybody may read or write this key", reterr) : 0;
}

/* --- certificates --- */

static void join(char path[PATH_BYTES], const char *dir, const char *name)
{
    snprintf(path, PATH_BYTES, "%s/%s", dir, name);
}

/* In place of OpenSSL's own, which asks at the terminal and waits. */
static int no_password(char *text, int size, int writing, void *opaque)
{
    struct vfmig_tls_creds *creds = opaque;

    creds->locked = true;
    return -1;
}

static int load_dir(struct vfmig_tls_creds *creds, const char *dir, struct vfmig_error *reterr)
{
    char ca[PATH_BYTES], cert[PATH_BYTES], key[PATH_BYTES];

    if (strlen(dir) > PATH_BYTES - 32)
        return unusable(dir, "the path is too long", reterr);
    join(ca, dir, "ca.pem");
    join(cert, dir, "cert.pem");
    join(key, dir, "key.pem");
    if (access(ca, F_OK) < 0) { /* as QEMU has them */
        join(ca, dir, "ca-cert.pem");
        join(cert, dir, creds->server ? "server-cert.pem" : "client-cert.pem");
        join(key, dir, creds->server ? "server-key.pem" : "client-key.pem");
    }
    if (access(ca, R_OK) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_LOCAL, 0,
                               "TLS: %.150s has neither ca.pem nor ca-cert.pem that can be read: %s",
                               dir, strerror(errno));
    int rc = check_secret(key, reterr);
    if (rc < 0)
        return rc;
    if (SSL_CTX_load_verify_locations(creds->ctx, ca, NULL) != 1)
        return unusable(ca, reason(), reterr);
    if (SSL_CTX_use_certificate_chain_file(creds->ctx, cert) != 1)
        return unusable(cert, reason(), reterr);
    if (SSL_CTX_use_PrivateKey_file(creds->ctx, key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(creds->ctx) != 1)
        return unusable(key, creds->locked ? "a key with a password cannot be used" : reason(), reterr);
    return 0;
}

/* --- a key that both sides know --- */

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
        return (c | 0x20) - 'a' + 10;
    return -1;
}

static bool take_key(struct vfmig_tls_creds *creds, const char *hex)
{
    size_t count = strlen(hex);

    if (count % 2 || count < 2 * TLS_MIN_KEY || count > 2 * TLS_MAX_KEY)
        return false;
    for (size_t i = 0; i < count; i += 2) {
        int high = digit(hex[i]), low = digit(hex[i + 1]);
        if (high < 0 || low < 0)
            return false;
        creds->key[i / 2] = (unsigned char)(high << 4 | low);
    }
    creds->key_bytes = count / 2;
    return true;
}

static int load_psk(struct vfmig_tls_creds *creds, const char *path, struct vfmig_error *reterr)
{
    char line[LINE_BYTES] = {0};
    int rc = check_secret(path, reterr);

    if (rc < 0)
        return rc;
    FILE *file = fopen(path, "re");
    if (!file)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_LOCAL, 0, "TLS: %.150s: %s", path,
                               strerror(errno));
    bool got = fgets(line, sizeof(line), file);
    fclose(file);
    line[strcspn(line, "\r\n")] = 0;
    char *colon = strrchr(line, ':');
    size_t name_bytes = colon ? (size_t)(colon - line) : 0;
    bool good = got && name_bytes && name_bytes < sizeof(creds->name) && take_key(creds, colon + 1);
    if (good)
        memcpy(creds->name, line, name_bytes);
    OPENSSL_cleanse(line, sizeof(line));
    return good ? 0 : unusable(path, "not a line NAME:KEY with 16 to 64 bytes in hex", reterr);
}

static const struct vfmig_tls_creds *creds_of(SSL *ssl)
{
    return SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
}

static SSL_SESSION *make_session(SSL *ssl)
{
    const struct vfmig_tls_creds *creds = creds_of(ssl);
    static const unsigned char cipher_id[] = {0x13, 0x02}; /* PSK_CIPHER, RFC 8446 B.4 */
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, cipher_id);
    SSL_SESSION *session = SSL_SESSION_new();

    if (session && cipher && SSL_SESSION_set1_master_key(session, creds->key, creds->key_bytes) &&
        SSL_SESSION_set_cipher(session, cipher) &&
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int offer_key(SSL *ssl, const EVP_MD *md, const unsigned char **ret_name, size_t *ret_bytes,
                     SSL_SESSION **ret_session)
{
    const struct vfmig_tls_creds *creds = creds_of(ssl);

    *ret_session = make_session(ssl);
    *ret_name = (const unsigned char *)creds->name;
    *ret_bytes = strlen(creds->name);
    return *ret_session != NULL;
}

/* An unknown name is no error here: without a certificate to fall back on the handshake fails. */
static int find_key(SSL *ssl, const unsigned char *name, size_t bytes, SSL_SESSION **ret_session)
{
    const struct vfmig_tls_creds *creds = creds_of(ssl);
    bool known = bytes == strlen(creds->name) && !memcmp(name, creds->name, bytes);

    *ret_session = known ? make_session(ssl) : NULL;
    return !known || *ret_session;
}

/* --- both --- */

static bool set_rules(struct vfmig_tls_creds *creds)
{
    SSL_CTX *ctx = creds->ctx;
    int oldest = vfmig_sabotage("tls-downgrade") ? TLS1_2_VERSION : TLS1_3_VERSION;
    int proof = SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT;

    if (vfmig_sabotage("tls-unproven"))
        proof = SSL_VERIFY_NONE;
    SSL_CTX_set_app_data(ctx, creds);
    SSL_CTX_set_default_passwd_cb(ctx, no_password);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, creds);
    /* A key proves both sides; with it no certificate is ever asked for. */
    SSL_CTX_set_verify(ctx, creds->psk && creds->server ? SSL_VERIFY_NONE : proof, NULL);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET);
    SSL_CTX_set_read_ahead(ctx, 1);
    SSL_CTX_set_default_read_buffer_len(ctx, READ_AHEAD_BYTES);
    if (creds->psk && creds->server)
        SSL_CTX_set_psk_find_session_callback(ctx, find_key);
    else if (creds->psk)
        SSL_CTX_set_psk_use_session_callback(ctx, offer_key);
    return SSL_CTX_set_min_proto_version(ctx, oldest) && SSL_CTX_set_num_tickets(ctx, 0) &&
           (!creds->psk || SSL_CTX_set_ciphersuites(ctx, PSK_CIPHER));
}

int vfmig_tls_creds_load(const char *dir, const char *psk_file, bool server,
                         struct vfmig_tls_creds **ret_creds, struct vfmig_error *reterr)
{
    struct vfmig_tls_creds *creds = calloc(1, sizeof(*creds));

    if (!creds)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for TLS");
    ERR_clear_error();
    creds->server = server;
    creds->psk = psk_file != NULL;
    creds->ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    int rc = creds->ctx && set_rules(creds)
                 ? 0
                 : vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_LOCAL, 0, "TLS cannot be set up: %s",
                                   reason());
    if (rc == 0)
        rc = psk_file ? load_psk(creds, psk_file, reterr) : load_dir(creds, dir, reterr);
    ERR_clear_error();
    if (rc < 0) {
        vfmig_tls_creds_free(creds);
        return rc;
    }
    *ret_creds = creds;
    return 0;
}

void vfmig_tls_creds_free(struct vfmig_tls_creds *creds)
{
    if (!creds)
        return;
    SSL_CTX_free(creds->ctx);
    OPENSSL_cleanse(creds->key, sizeof(creds->key));
    free(creds);
}
