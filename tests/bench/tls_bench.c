/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory under TLS over TCP loopback, against plain AES-GCM of the same bytes: the same buffers, in
 * pieces of a TLS record with a new nonce each, by the cipher that TLS has agreed on and as many threads,
 * half of which encrypt and half decrypt. That is what tls-throughput-crypto has as its limit. The
 * socket between the two ends costs as well, TLS or not: the limit of tls-throughput is the same
 * encryption with a bare socket copy in between, which is the least that anything encrypted over
 * TCP does. All take turns and medians are compared. Prints a JSON list of rows. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#include "base/bitmap.h"
#include "engine/memory_mover.h"
#include "io/sock.h"
#include "io/tls.h"

#define MEMORY_BYTES (256u << 20)
#define RECORD_BYTES (16u << 10)
#define TAG_BYTES    16u
#define WIRE_BYTES   (RECORD_BYTES + TAG_BYTES)
#define AT_ONCE      8u /* records that the bare copy sends in one call: 128 KiB */
#define CHANNELS     2u
#define TURNS        9

static void tcp_pair(int fds[2])
{
    char address[64];
    int listener;
    struct vfmig_error error = {0};

    need(vfmig_sock_listen("tcp:127.0.0.1:0", &listener, &error) == 0, error.text);
    need(vfmig_sock_address(listener, address, sizeof(address), &error) == 0, error.text);
    need(vfmig_sock_connect(address, VFMIG_NEVER, &fds[0], &error) == 0, error.text);
    need(vfmig_sock_accept(listener, VFMIG_NEVER, &fds[1], &error) == 0, error.text);
    close(listener);
}

static uint8_t *make_memory(uint64_t seed)
{
    uint64_t *words = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    need(words != MAP_FAILED, "mmap");
    for (size_t i = 0; i < MEMORY_BYTES / 8; i++) {
        seed += UINT64_C(0x9e3779b97f4a7c15);
        words[i] = seed ^ seed >> 29;
    }
    return (uint8_t *)words;
}

/* --- the limits --- */

static const uint8_t key[32] = {1, 2, 3};

struct half {
    pthread_t thread;
    uint8_t *at;
    size_t bytes;
    int fd; /* -1: nothing is sent, and what is decrypted was encrypted before */
    const uint8_t *wire;
};

static void nonce_of(uint64_t record, uint8_t nonce[12])
{
    memset(nonce, 0, 12);
    memcpy(nonce + 4, &record, 8);
}

static void *encrypt_half(void *opaque)
{
    struct half *half = opaque;
    static _Thread_local uint8_t wire[AT_ONCE * WIRE_BYTES];
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t nonce[12];
    int size;

    need(EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, NULL), "EncryptInit");
    for (size_t at = 0, n = 0; at < half->bytes; at += RECORD_BYTES, n++) {
        uint8_t *out = wire + n % AT_ONCE * WIRE_BYTES;
        nonce_of(n, nonce);
        need(EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, nonce) &&
                 EVP_EncryptUpdate(ctx, out, &size, half->at + at, RECORD_BYTES) &&
                 EVP_EncryptFinal_ex(ctx, out + size, &size) &&
                 EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, out + RECORD_BYTES),
             "encrypt");
        if (half->fd < 0 || n % AT_ONCE != AT_ONCE - 1)
            continue;
        for (size_t sent = 0; sent < sizeof(wire);) {
            ssize_t got = send(half->fd, wire + sent, sizeof(wire) - sent, MSG_NOSIGNAL);
            need(got > 0, "send");
            sent += (size_t)got;
        }
    }
    EVP_CIPHER_CTX_free(ctx);
    return NULL;
}

static void *decrypt_half(void *opaque)
{
    struct half *half = opaque;
    static _Thread_local uint8_t wire[AT_ONCE * WIRE_BYTES];
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t nonce[12];
    int size;

    need(EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, NULL), "DecryptInit");
    for (size_t at = 0, n = 0; at < half->bytes; at += RECORD_BYTES, n++) {
        const uint8_t *in = half->fd < 0 ? half->wire : wire + n % AT_ONCE * WIRE_BYTES;
        for (size_t got = 0; half->fd >= 0 && n % AT_ONCE == 0 && got < sizeof(wire);) {
            ssize_t more = recv(half->fd, wire + got, sizeof(wire) - got, 0);
            need(more > 0, "recv");
            got += (size_t)more;
        }
        nonce_of(half->fd < 0 ? 0 : n, nonce);
        need(EVP_DecryptInit_ex(ctx, NULL, NULL, NULL, nonce) &&
                 EVP_DecryptUpdate(ctx, half->at + at, &size, in, RECORD_BYTES) &&
                 EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, TAG_BYTES,
                                     (void *)(uintptr_t)(in + RECORD_BYTES)) &&
                 EVP_DecryptFinal_ex(ctx, half->at + at + size, &size),
             "decrypt");
    }
    EVP_CIPHER_CTX_free(ctx);
    return NULL;
}

/* One record as it would come, for those who decrypt without a socket. */
static const uint8_t *first_record(const uint8_t *from)
{
    static uint8_t wire[WIRE_BYTES];
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t nonce[12];
    int size;

    nonce_of(0, nonce);
    need(EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, nonce) &&
             EVP_EncryptUpdate(ctx, wire, &size, from, RECORD_BYTES) &&
             EVP_EncryptFinal_ex(ctx, wire + size, &size) &&
             EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, wire + RECORD_BYTES),
         "encrypt");
    EVP_CIPHER_CTX_free(ctx);
    return wire;
}

static double limit_turn(uint8_t *from, uint8_t *to, bool with_socket)
{
    struct half out[CHANNELS], in[CHANNELS];
    const uint8_t *wire = first_record(from);
    size_t share = MEMORY_BYTES / CHANNELS;

    for (uint32_t i = 0; i < CHANNELS; i++) {
        int fds[2] = {-1, -1};
        if (with_socket)
            tcp_pair(fds);
        out[i] = (struct half){.at = from + i * share, .bytes = share, .fd = fds[0]};
        in[i] = (struct half){.at = to + i * share, .bytes = share, .fd = fds[1], .wire = wire};
    }
    double begin = now_s();
    for (uint32_t i = 0; i < CHANNELS; i++) {
        need(pthread_create(&in[i].thread, NULL, decrypt_half, &in[i]) == 0, "thread");
        need(pthread_create(&out[i].thread, NULL, encrypt_half, &out[i]) == 0, "thread");
    }
    for (uint32_t i = 0; i < CHANNELS; i++) {
        pthread_join(out[i].thread, NULL);
        pthread_join(in[i].thread, NULL);
    }
    double passed = now_s() - begin;
    for (uint32_t i = 0; with_socket && i < CHANNELS; i++) {
        close(out[i].fd);
        close(in[i].fd);
    }
    need(!with_socket || memcmp(from, to, MEMORY_BYTES) == 0, "memory arrived wrong");
    return MEMORY_BYTES / passed / 1e6;
}

/* --- ours --- */

struct handshake {
    pthread_t thread;
    struct vfmig_channel *channel;
    struct vfmig_tls_creds *creds;
};

static void *shake(void *opaque)
{
    struct handshake *shake = opaque;
    struct vfmig_error error = {0};

    need(vfmig_channel_start_tls(shake->channel, shake->creds, "bench", VFMIG_NEVER, &error) == 0,
         error.text);
    need(!strcmp(vfmig_channel_cipher(shake->channel), "TLS_AES_256_GCM_SHA384"), "another cipher");
    return NULL;
}

static int no_record(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    return 0;
}

static double our_turn(uint8_t *from, uint8_t *to, struct vfmig_tls_creds *creds[2])
{
    struct vfmig_ram_block blocks[2] = {{.size = MEMORY_BYTES, .host = from, .fd = -1},
                                        {.size = MEMORY_BYTES, .host = to, .fd = -1}};
    const struct vfmig_memory source = {&blocks[0], 1}, dest = {&blocks[1], 1};
    struct vfmig_channel *out[CHANNELS], *in[CHANNELS];
    struct vfmig_mover *mover;
    struct vfmig_receiver *receiver;
    struct vfmig_error error = {0};
    uint64_t pages = MEMORY_BYTES / VFMIG_PAGE_SIZE;
    uint64_t *bitmap = calloc(vfmig_bitmap_words(pages), sizeof(*bitmap));
    struct vfmig_dirty_map map = {.memory = source, .bitmaps = &bitmap};

    need(bitmap != NULL, "bitmap");
    vfmig_bitmap_set_range(bitmap, 0, pages);
    for (uint32_t i = 0; i < CHANNELS; i++) {
        int fds[2];
        tcp_pair(fds);
        need(vfmig_channel_new(fds[0], i, VFMIG_SIDE_SOURCE, &out[i], &error) == 0, error.text);
        need(vfmig_channel_new(fds[1], i, VFMIG_SIDE_DEST, &in[i], &error) == 0, error.text);
        struct handshake server = {.channel = in[i], .creds = creds[1]};
        struct handshake client = {.channel = out[i], .creds = creds[0]};
        need(pthread_create(&server.thread, NULL, shake, &server) == 0, "thread");
        shake(&client);
        pthread_join(server.thread, NULL);
    }
    double begin = now_s();
    need(vfmig_receiver_new(in, CHANNELS, &dest, no_record, NULL, &receiver, &error) == 0, error.text);
    need(vfmig_mover_new(out, CHANNELS, &source, &mover, &error) == 0, error.text);
    need(vfmig_mover_send(mover, &map, 1, &error) == 0, error.text);
    need(vfmig_receiver_wait_round(receiver, 1, UINT64_MAX, &error) == 0, error.text);
    double passed = now_s() - begin;
    need(memcmp(from, to, MEMORY_BYTES) == 0, "memory arrived wrong");
    memset(to, 0x55, MEMORY_BYTES); /* so that nothing is right by chance */
    vfmig_mover_free(mover);
    vfmig_receiver_free(receiver);
    for (uint32_t i = 0; i < CHANNELS; i++) {
        vfmig_channel_free(out[i]);
        vfmig_channel_free(in[i]);
    }
    free(bitmap);
    return MEMORY_BYTES / passed / 1e6;
}

static void make_creds(struct vfmig_tls_creds *creds[2])
{
    char path[] = "/tmp/vfmig-bench-XXXXXX";
    int fd = mkstemp(path);
    struct vfmig_error error = {0};

    need(fd >= 0 && dprintf(fd, "bench:00112233445566778899aabbccddeeff\n") > 0, "a key");
    close(fd);
    need(vfmig_tls_creds_load(NULL, path, false, &creds[0], &error) == 0, error.text);
    need(vfmig_tls_creds_load(NULL, path, true, &creds[1], &error) == 0, error.text);
    unlink(path);
}

int main(void)
{
    uint8_t *from = make_memory(1), *to = make_memory(2);
    double ours[TURNS], crypto[TURNS], socket[TURNS];
    struct vfmig_tls_creds *creds[2];

    make_creds(creds);
    for (int turn = 0; turn < TURNS; turn++) {
        crypto[turn] = limit_turn(from, to, /* with_socket= */ false);
        socket[turn] = limit_turn(from, to, /* with_socket= */ true);
        ours[turn] = our_turn(from, to, creds);
    }
    double our = median(ours, TURNS), alone = median(crypto, TURNS);
    double with_socket = median(socket, TURNS);
    printf("[{\"name\": \"tls-throughput\", \"unit\": \"MB/s\", \"ours\": %.0f, \"limit\": %.0f, "
           "\"ratio\": %.3f, \"floor\": 0.7},\n",
           our, with_socket, our / with_socket);
    printf(" {\"name\": \"tls-throughput-crypto\", \"unit\": \"MB/s\", \"ours\": %.0f, \"limit\": %.0f, "
           "\"ratio\": %.3f}]\n",
           our, alone, our / alone);
    vfmig_tls_creds_free(creds[0]);
    vfmig_tls_creds_free(creds[1]);
    return 0;
}
