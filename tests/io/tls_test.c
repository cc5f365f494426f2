/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS between two ends: who is let in, who is not and why, and what is told when it is cut. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "certs.h"
#include "io/sock.h"
#include "io/tls.h"

#define LONG_NS  UINT64_C(20000000000)
#define KEY_ONE  "00112233445566778899aabbccddeeff"
#define KEY_TWO  "00112233445566778899aabbccddeefe"

static char folder[] = "/tmp/vfmig-tls-XXXXXX";

static const char *path(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *at = paths[next++ % 4];

    snprintf(at, sizeof(paths[0]), "%s/%s", folder, name);
    return at;
}

static const char *write_file(const char *name, const char *text, mode_t mode)
{
    const char *at = path(name);
    FILE *file = fopen(at, "w");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(at, mode), 0);
    return at;
}

static int make_folder(void **state)
{
    struct authority ours, others;

    if (!mkdtemp(folder))
        return -1;
    authority_init(&ours, "ours");
    authority_init(&others, "others");
    certs_write(path("a"), &ours, &ours, "DNS:here,IP:127.0.0.1", 1);
    certs_write(path("b"), &ours, &ours, "DNS:here,IP:127.0.0.1,IP:::1", 1);
    certs_write(path("stranger"), &ours, &others, "DNS:here", 1);
    certs_write(path("credulous"), &others, &ours, "DNS:here", 1);
    certs_write(path("expired"), &ours, &ours, "DNS:here", -1);
    certs_write_as_qemu(path("qemu"), &ours, "DNS:here");
    authority_done(&ours);
    authority_done(&others);
    write_file("one", "move:" KEY_ONE "\n", 0600);
    write_file("two", "move:" KEY_TWO "\n", 0600);
    write_file("other-name", "mova:" KEY_ONE "\n", 0600);
    return 0;
}

static int remove_folder(void **state)
{
    char command[300];

    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

/* --- two ends --- */

struct end {
    int fd;
    const char *name; /* peer's */
    struct vfmig_tls_creds *creds;
    struct vfmig_tls *tls;
    int rc;
    struct vfmig_error error;
    pthread_t thread;
};

struct pair {
    struct end client, server;
};

static void *shake(void *opaque)
{
    struct end *end = opaque;

    end->rc = vfmig_tls_new(end->creds, end->fd, end->name, vfmig_deadline_ns(LONG_NS), &end->tls,
                            &end->error);
    if (end->rc < 0)
        shutdown(end->fd, SHUT_WR); /* as closing does; what was said before is still there */
    return NULL;
}

static struct vfmig_tls_creds *creds_of(const char *name, bool server)
{
    struct vfmig_tls_creds *creds = NULL;
    struct vfmig_error error = {0};
    const char *at = path(name);
    struct stat st;

    assert_int_equal(stat(at, &st), 0);
    bool dir = S_ISDIR(st.st_mode);
    int rc = vfmig_tls_creds_load(dir ? at : NULL, dir ? NULL : at, server, &creds, &error);
    if (rc)
        fail_msg("%s: %s", name, error.text);
    return creds;
}

static void pair_init(struct pair *pair, const char *client, const char *server, const char *name)
{
    int fds[2];

    memset(pair, 0, sizeof(*pair));
    assert_int_equal(vfmig_sock_pair(fds, NULL), 0);
    pair->client = (struct end){.fd = fds[0], .name = name, .creds = creds_of(client, false)};
    pair->server = (struct end){.fd = fds[1], .creds = creds_of(server, true)};
    assert_int_equal(pthread_create(&pair->server.thread, NULL, shake, &pair->server), 0);
    shake(&pair->client);
    /* In TLS 1.3 a client is done before the server has judged it: the first read tells. */
    pthread_join(pair->server.thread, NULL);
    if (pair->client.rc == 0 && pair->server.rc < 0) {
        uint8_t byte;
        struct iovec iov = {&byte, 1};
        assert_int_equal(vfmig_tls_recv(pair->client.tls, &iov, 1), -1);
    }
}

static void end_done(struct end *end)
{
    vfmig_tls_free(end->tls);
    vfmig_tls_creds_free(end->creds);
    if (end->fd >= 0)
        close(end->fd);
}

static void pair_done(struct pair *pair)
{
    end_done(&pair->client);
    end_done(&pair->server);
}

static ssize_t receive(struct end *end, void *data, size_t size)
{
    struct iovec iov = {data, size};

    return vfmig_tls_recv(end->tls, &iov, 1);
}

static void send_text(struct end *from, struct end *to, const char *text)
{
    char got[64] = {0};
    struct iovec iov[2] = {{(void *)(uintptr_t)text, 1}, {(void *)(uintptr_t)(text + 1), strlen(text) - 1}};

    assert_int_equal(vfmig_tls_send(from->tls, iov, 2), strlen(text));
    assert_int_equal(receive(to, got, sizeof(got)), strlen(text));
    assert_string_equal(got, text);
}

static void works(const char *client, const char *server, const char *name)
{
    struct pair pair;

    pair_init(&pair, client, server, name);
    if (pair.client.rc || pair.server.rc)
        fail_msg("%s and %s: %s / %s", client, server, pair.client.error.text, pair.server.error.text);
    assert_string_equal(vfmig_tls_cipher(pair.client.tls), "TLS_AES_256_GCM_SHA384");
    send_text(&pair.client, &pair.server, "there");
    send_text(&pair.server, &pair.client, "and back");
    vfmig_tls_end(pair.client.tls);
    char byte;
    assert_int_equal(receive(&pair.server, &byte, 1), 0); /* an end, not a cut */
    assert_false(vfmig_tls_cut(pair.server.tls));
    send_text(&pair.server, &pair.client, "the other way goes on");
    pair_done(&pair);
}

static void both_sides_prove_who_they_are(void **state)
{
    works("a", "b", "here");
    works("b", "a", "here");
    works("a", "b", "127.0.0.1");
    works("a", "b", "::1");
    works("qemu", "a", "here");
    works("a", "qemu", "here");
    works("one", "one", "whoever");
}

/* OpenSSL takes an empty name for no wish at all. */
static void without_a_name_nobody_is_asked(void **state)
{
    struct end client = {.creds = creds_of("a", false), .name = ""};
    int fds[2];

    assert_int_equal(vfmig_sock_pair(fds, NULL), 0);
    client.fd = fds[0];
    shake(&client);
    assert_int_equal(client.rc, -EINVAL);
    assert_non_null(strstr(client.error.text, "is no name for a certificate"));
    end_done(&client);
    close(fds[1]);
}

/* said: by the client; judged: by the server. NULL: that side finds nothing. */
static void refused(const char *client, const char *server, const char *name, const char *said,
                    const char *judged)
{
    struct pair pair;

    pair_init(&pair, client, server, name);
    assert_true(pair.client.rc < 0 || pair.server.rc < 0);
    if (said) {
        assert_int_equal(pair.client.rc, -EACCES);
        assert_int_equal(pair.client.error.origin, VFMIG_ORIGIN_PEER);
        if (!strstr(pair.client.error.text, said))
            fail_msg("'%s' instead of '%s'", pair.client.error.text, said);
    }
    if (judged) {
        assert_int_equal(pair.server.rc, -EACCES);
        if (!strstr(pair.server.error.text, judged))
            fail_msg("'%s' instead of '%s'", pair.server.error.text, judged);
    }
    pair_done(&pair);
}

static void a_stranger_is_refused(void **state)
{
    refused("a", "stranger", "here", "the peer's certificate: unable to get local issuer", NULL);
    refused("stranger", "a", "here", NULL, "the peer's certificate: unable to get local issuer");
    refused("credulous", "a", "here", "the peer's certificate: self-signed certificate", NULL);
    refused("a", "credulous", "here", NULL, "the peer's certificate: self-signed certificate");
    refused("a", "expired", "here", "the peer's certificate: certificate has expired", NULL);
    refused("expired", "a", "here", NULL, "the peer's certificate: certificate has expired");
}

static void a_certificate_of_another_host_is_refused(void **state)
{
    refused("a", "b", "there", "the peer's certificate: hostname mismatch", NULL);
    refused("a", "b", "127.0.0.2", "the peer's certificate: IP address mismatch", NULL);
    refused("a", "qemu", "127.0.0.1", "the peer's certificate: IP address mismatch", NULL);
}

static void another_key_is_refused(void **state)
{
    refused("one", "two", "x", NULL, "binder does not verify");
    refused("one", "other-name", "x", NULL, "TLS with the peer failed");
    refused("one", "a", "x", "TLS with the peer failed", NULL);
    refused("a", "one", "here", NULL, "TLS with the peer failed");
}

/* --- peers that are not ours --- */

struct other {
    int fd;
    bool server;
    int oldest, newest; /* TLS versions */
    const char *dir;    /* NULL: no certificate */
    int rc;
    pthread_t thread;
};

static void *other_main(void *opaque)
{
    struct other *other = opaque;
    SSL_CTX *ctx = SSL_CTX_new(other->server ? TLS_server_method() : TLS_client_method());
    char file[300];

    SSL_CTX_set_min_proto_version(ctx, other->oldest);
    SSL_CTX_set_max_proto_version(ctx, other->newest);
    if (other->dir) {
        snprintf(file, sizeof(file), "%s/cert.pem", other->dir);
        SSL_CTX_use_certificate_chain_file(ctx, file);
        snprintf(file, sizeof(file), "%s/key.pem", other->dir);
        SSL_CTX_use_PrivateKey_file(ctx, file, SSL_FILETYPE_PEM);
    }
    SSL *ssl = SSL_new(ctx);
    SSL_set_fd(ssl, other->fd);
    other->rc = other->server ? SSL_accept(ssl) : SSL_connect(ssl);
    char byte;
    if (other->rc == 1)
        other->rc = SSL_read(ssl, &byte, 1); /* nothing is ever sent: what comes is the refusal */
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    shutdown(other->fd, SHUT_WR);
    return NULL;
}

/* Ours is the other side. */
static int meet(struct other *other, struct vfmig_error *error)
{
    struct end ours = {.creds = creds_of("a", !other->server), .name = "here"};
    int fds[2];

    assert_int_equal(vfmig_sock_pair(fds, NULL), 0);
    ours.fd = fds[0];
    other->fd = fds[1];
    assert_int_equal(pthread_create(&other->thread, NULL, other_main, other), 0);
    shake(&ours);
    if (ours.rc == 0)
        shutdown(ours.fd, SHUT_RDWR);
    pthread_join(other->thread, NULL);
    *error = ours.error;
    int rc = ours.rc;
    end_done(&ours);
    close(other->fd);
    return rc;
}

static void without_a_certificate_nobody_gets_in(void **state)
{
    struct other other = {.oldest = TLS1_3_VERSION, .newest = TLS1_3_VERSION};
    struct vfmig_error error = {0};

    assert_int_equal(meet(&other, &error), -EACCES);
    assert_non_null(strstr(error.text, "did not return a certificate"));
    assert_true(other.rc <= 0);
}

static void nothing_older_than_1_3_is_spoken(void **state)
{
    char dir[256];

    snprintf(dir, sizeof(dir), "%s", path("b"));
    for (int server = 0; server < 2; server++) {
        struct other other = {.server = server, .oldest = TLS1_2_VERSION, .newest = TLS1_2_VERSION,
                              .dir = dir};
        struct vfmig_error error = {0};
        assert_int_equal(meet(&other, &error), -EACCES);
        assert_non_null(strstr(error.text, server ? "alert protocol version" : "unsupported protocol"));
        assert_true(other.rc <= 0);
    }
}

static void what_is_no_tls_is_refused(void **state)
{
    struct end server = {.creds = creds_of("a", true)};
    char zeros[64] = {0};
    int fds[2];

    assert_int_equal(vfmig_sock_pair(fds, NULL), 0);
    server.fd = fds[0];
    assert_int_equal(write(fds[1], zeros, sizeof(zeros)), sizeof(zeros));
    shake(&server);
    assert_int_equal(server.rc, -EACCES);
    end_done(&server);
    close(fds[1]);
}

static void whoever_says_nothing_is_not_waited_for(void **state)
{
    struct end server = {.creds = creds_of("a", true)};
    int fds[2];

    assert_int_equal(vfmig_sock_pair(fds, NULL), 0);
    server.fd = fds[0];
    assert_int_equal(vfmig_tls_new(server.creds, fds[0], NULL, vfmig_deadline_ns(1000000), &server.tls,
                                   &server.error), -ETIMEDOUT);
    end_done(&server);
    close(fds[1]);
}

/* --- the connection --- */

static void a_cut_is_no_end(void **state)
{
    struct pair pair;
    char byte;

    pair_init(&pair, "a", "b", "here");
    close(pair.client.fd);
    pair.client.fd = -1;
    assert_int_equal(receive(&pair.server, &byte, 1), -1);
    assert_int_equal(errno, ECONNRESET);
    assert_true(vfmig_tls_cut(pair.server.tls));
    pair_done(&pair);
}

static void an_altered_byte_is_an_error(void **state)
{
    struct pair pair;
    uint8_t wire[512], byte;
    struct iovec iov = {(void *)"secret", 6};
    int relay[2];

    pair_init(&pair, "one", "one", "here");
    assert_int_equal(vfmig_tls_send(pair.client.tls, &iov, 1), 6);
    ssize_t size = recv(pair.server.fd, wire, sizeof(wire), 0);
    assert_true(size > 6);
    assert_null(memmem(wire, (size_t)size, "secret", 6));
    wire[size - 1] ^= 1;
    /* Back to where it came from: the server's own socket, from the other end. */
    relay[0] = pair.client.fd;
    assert_int_equal(send(relay[0], wire, (size_t)size, 0), size);
    assert_int_equal(receive(&pair.server, &byte, 1), -1);
    assert_int_equal(errno, EPROTO);
    for (int again = 0; again < 2; again++) { /* OpenSSL tells the cause once */
        if (!strstr(vfmig_tls_why(pair.server.tls), "bad record mac"))
            fail_msg("'%s'", vfmig_tls_why(pair.server.tls));
        assert_int_equal(receive(&pair.server, &byte, 1), -1);
        assert_int_equal(errno, EPROTO);
    }
    pair_done(&pair);
}

static void receiving_waits_as_the_socket_says(void **state)
{
    struct pair pair;
    struct timeval limit = {.tv_usec = 1000};
    char byte;

    pair_init(&pair, "one", "one", "here");
    assert_int_equal(setsockopt(pair.server.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    assert_int_equal(receive(&pair.server, &byte, 1), -1);
    assert_int_equal(errno, EAGAIN);
    send_text(&pair.client, &pair.server, "later");
    pair_done(&pair);
}

/* Parts of the limit that go by in silence: this process stood still, or nobody said anything. Calls that do not
 * wait are the socket's. */
static unsigned silent_parts;
static struct end *late_sender; /* says a byte after them */

int __real_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask)
{
    struct iovec iov = {(void *)(uintptr_t)"x", 1};

    if (silent_parts) {
        silent_parts--;
        return 0;
    }
    if (late_sender)
        assert_int_equal(vfmig_tls_send(late_sender->tls, &iov, 1), 1);
    late_sender = NULL;
    return __real_ppoll(fds, count, limit, mask);
}

ssize_t __real_send(int fd, const void *data, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags)
{
    if (!silent_parts || flags & MSG_DONTWAIT)
        return __real_send(fd, data, size, flags);
    silent_parts--;
    errno = EAGAIN;
    return -1;
}

static void a_part_of_the_limit_is_not_all_of_it(void **state)
{
    struct pair pair;
    struct iovec iov = {(void *)(uintptr_t)"x", 1};
    char byte;

    pair_init(&pair, "one", "one", "here");
    silent_parts = VFMIG_STALL_PARTS - 1;
    send_text(&pair.client, &pair.server, "sent after all");
    assert_int_equal(silent_parts, 0);
    silent_parts = VFMIG_STALL_PARTS - 1;
    late_sender = &pair.client;
    assert_int_equal(receive(&pair.server, &byte, 1), 1);
    assert_null(late_sender);
    silent_parts = VFMIG_STALL_PARTS + 1;
    assert_int_equal(receive(&pair.server, &byte, 1), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(silent_parts, 1);
    silent_parts = VFMIG_STALL_PARTS + 1;
    assert_int_equal(vfmig_tls_send(pair.client.tls, &iov, 1), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(silent_parts, 1);
    silent_parts = 0;
    pair_done(&pair);
}

/* --- both directions at once: nobody waits for the other direction --- */

#define FLOOD_BYTES (6u << 20)

static uint8_t pattern(size_t at)
{
    return (uint8_t)(at * 31 + (at >> 12));
}

static void *flood_send(void *opaque)
{
    struct end *end = opaque;
    uint8_t *data = malloc(FLOOD_BYTES);

    for (size_t i = 0; i < FLOOD_BYTES; i++)
        data[i] = pattern(i);
    /* Parts of all sizes: whole records, less, more, nothing. */
    static const size_t sizes[] = {40, 1 << 20, 5000, 0, 16384, 16385, 4096, 1, 70000};
    size_t done = 0, turn = 0;
    end->rc = 0;
    while (done < FLOOD_BYTES && end->rc == 0) {
        struct iovec iov[3];
        size_t total = 0;
        for (int i = 0; i < 3; i++) {
            size_t size = sizes[turn++ % 9];
            if (size > FLOOD_BYTES - done - total)
                size = FLOOD_BYTES - done - total;
            iov[i] = (struct iovec){data + done + total, size};
            total += size;
        }
        end->rc = vfmig_tls_send(end->tls, iov, 3) == (ssize_t)total ? 0 : -1;
        done += total;
    }
    free(data);
    return NULL;
}

static bool flood_receive(struct end *end)
{
    static uint8_t data[3][50000];
    size_t done = 0;

    while (done < FLOOD_BYTES) {
        struct iovec iov[3] = {{data[0], 10}, {data[1], sizeof(data[1])}, {data[2], 7}};
        ssize_t got = vfmig_tls_recv(end->tls, iov, 3);
        if (got <= 0)
            return false;
        for (size_t i = 0, part = 0, at = 0; i < (size_t)got; i++, at++) {
            if (at == iov[part].iov_len) {
                part++;
                at = 0;
            }
            if (((uint8_t *)iov[part].iov_base)[at] != pattern(done + i))
                return false;
        }
        done += (size_t)got;
    }
    return done == FLOOD_BYTES;
}

static void *flood_receive_main(void *opaque)
{
    return flood_receive(opaque) ? opaque : NULL;
}

static void both_directions_at_once(void **state)
{
    struct pair pair;
    pthread_t threads[3];
    void *result;

    pair_init(&pair, "a", "b", "here");
    assert_int_equal(pthread_create(&threads[0], NULL, flood_send, &pair.client), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, flood_send, &pair.server), 0);
    /* Not before both are stuck in full sockets, where a shared lock would keep them for ever: the
     * client's side is read first, and whole. */
    assert_int_equal(pthread_create(&threads[2], NULL, flood_receive_main, &pair.client), 0);
    pthread_join(threads[2], &result);
    assert_ptr_equal(result, &pair.client);
    pthread_join(threads[1], NULL);
    assert_int_equal(pair.server.rc, 0);
    /* flood_receive's room is shared, so one after the other. */
    assert_true(flood_receive(&pair.server));
    pthread_join(threads[0], NULL);
    assert_int_equal(pair.client.rc, 0);
    pair_done(&pair);
}

/* --- files --- */

static void unusable(const char *dir, const char *psk, const char *why)
{
    struct vfmig_tls_creds *creds;
    struct vfmig_error error = {0};

    assert_true(vfmig_tls_creds_load(dir, psk, false, &creds, &error) < 0);
    assert_int_equal(error.origin, VFMIG_ORIGIN_LOCAL);
    if (!strstr(error.text, why))
        fail_msg("'%s' instead of '%s'", error.text, why);
}

/* Nobody is asked for it at a terminal. */
static void a_key_with_a_password_is_refused(void **state)
{
    const char *key_path = path("stranger/key.pem");
    EVP_PKEY *key = EVP_EC_gen("P-256");
    FILE *file = fopen(key_path, "w"); /* keeps its mode */

    assert_non_null(file);
    assert_int_equal(PEM_write_PrivateKey(file, key, EVP_aes_128_cbc(), (unsigned char *)(uintptr_t) "secret",
                                          6, NULL, NULL), 1);
    fclose(file);
    EVP_PKEY_free(key);
    unusable(path("stranger"), NULL, "key.pem: a key with a password");
}

static void files_that_do_not_do_are_named(void **state)
{
    unusable(NULL, path("nowhere"), "No such file");
    unusable(path("nowhere"), NULL, "neither ca.pem nor ca-cert.pem");
    unusable(NULL, write_file("open", "a:" KEY_ONE, 0604), "everybody may read");
    unusable(NULL, write_file("short", "a:00112233445566778899aabbccddee", 0600), "not a line NAME:KEY");
    unusable(NULL, write_file("odd", "a:" KEY_ONE "0", 0600), "not a line NAME:KEY");
    unusable(NULL, write_file("nohex", "a:0011223344556677889x9aabbccddeeff", 0600), "not a line");
    unusable(NULL, write_file("noname", ":" KEY_ONE, 0600), "not a line");
    unusable(NULL, write_file("empty", "", 0600), "not a line");
    assert_int_equal(chmod(path("expired/key.pem"), 0644), 0);
    unusable(path("expired"), NULL, "everybody may read");
    assert_int_equal(chmod(path("expired/key.pem"), 0600), 0);
    write_file("expired/cert.pem", "nothing", 0600);
    unusable(path("expired"), NULL, "cert.pem: ");
    write_file("expired/ca.pem", "nothing", 0600);
    unusable(path("expired"), NULL, "ca.pem: ");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_prove_who_they_are),
        cmocka_unit_test(a_stranger_is_refused),
        cmocka_unit_test(a_certificate_of_another_host_is_refused),
        cmocka_unit_test(without_a_name_nobody_is_asked),
        cmocka_unit_test(another_key_is_refused),
        cmocka_unit_test(without_a_certificate_nobody_gets_in),
        cmocka_unit_test(nothing_older_than_1_3_is_spoken),
        cmocka_unit_test(what_is_no_tls_is_refused),
        cmocka_unit_test(whoever_says_nothing_is_not_waited_for),
        cmocka_unit_test(a_cut_is_no_end),
        cmocka_unit_test(an_altered_byte_is_an_error),
        cmocka_unit_test(receiving_waits_as_the_socket_says),
        cmocka_unit_test(a_part_of_the_limit_is_not_all_of_it),
        cmocka_unit_test(both_directions_at_once),
        cmocka_unit_test(files_that_do_not_do_are_named),
        cmocka_unit_test(a_key_with_a_password_is_refused),
    };

    signal(SIGPIPE, SIG_IGN); /* the peers that are not ours may write to who has left */
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
