/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory over TCP loopback against the limit: a bare socket copy of as many bytes between
 * the same prefaulted buffers, over as many connections, by as many threads, in the same run. The
 * two take turns; of each the median counts, because where the kernel happens to put the threads
 * makes a turn faster as well as slower. The bare copy tries three sizes of its calls, and the size
 * with the best median is the limit. The cold row does the same into memory that the host has not
 * given yet. Prints a JSON list of rows. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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

#define MEMORY_BYTES (256u << 20)
#define MAX_CHANNELS 4u
#define TURNS        7

static const size_t bare_sizes[] = {128u << 10, 512u << 10, 2u << 20};
#define BARE_SIZES (sizeof(bare_sizes) / sizeof(bare_sizes[0]))

static void tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;

    need(listener >= 0, "socket");
    need(bind(listener, (struct sockaddr *)&address, length) == 0, "bind");
    need(listen(listener, 1) == 0, "listen");
    need(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    need(connect(fds[0], (struct sockaddr *)&address, length) == 0, "connect");
    fds[1] = accept(listener, NULL, NULL);
    need(fds[1] >= 0, "accept");
    setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fds[1], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    close(listener);
}

static void make_block(struct vfmig_ram_block *block, uint64_t seed)
{
    int fd = memfd_create("bench", MFD_CLOEXEC);

    need(fd >= 0 && ftruncate(fd, MEMORY_BYTES) == 0, "memfd");
    uint64_t *words = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(words != MAP_FAILED, "mmap");
    for (size_t i = 0; i < MEMORY_BYTES / 8; i++) {
        seed += UINT64_C(0x9e3779b97f4a7c15);
        words[i] = seed ^ seed >> 29;
    }
    *block = (struct vfmig_ram_block){.size = MEMORY_BYTES, .host = words, .fd = fd};
}

/* Gives the block's memory back, so that every page is written for the first time again. */
static void make_cold(const struct vfmig_ram_block *block)
{
    need(fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)block->size) == 0,
         "fallocate");
}

struct bare {
    pthread_t thread;
    int fd;
    uint8_t *at;
    size_t left, piece;
};

static void *bare_send(void *argument)
{
    struct bare *b = argument;

    while (b->left) {
        ssize_t sent = send(b->fd, b->at, b->left < b->piece ? b->left : b->piece, MSG_NOSIGNAL);
        need(sent > 0, "send");
        b->at += sent;
        b->left -= (size_t)sent;
    }
    return NULL;
}

static void *bare_recv(void *argument)
{
    struct bare *b = argument;

    while (b->left) {
        ssize_t got = recv(b->fd, b->at, b->left < b->piece ? b->left : b->piece, 0);
        need(got > 0, "recv");
        b->at += got;
        b->left -= (size_t)got;
    }
    return NULL;
}

static double bare_turn(const struct vfmig_ram_block *from, const struct vfmig_ram_block *to,
                        uint32_t channels, size_t piece)
{
    struct bare out[MAX_CHANNELS], in[MAX_CHANNELS];
    size_t share = MEMORY_BYTES / channels;

    for (uint32_t i = 0; i < channels; i++) {
        int fds[2];
        tcp_pair(fds);
        out[i] = (struct bare){.fd = fds[0], .at = (uint8_t *)from->host + i * share,
                               .left = share, .piece = piece};
        in[i] = (struct bare){.fd = fds[1], .at = (uint8_t *)to->host + i * share,
                              .left = share, .piece = piece};
    }
    double begin = now_s();
    for (uint32_t i = 0; i < channels; i++) {
        need(pthread_create(&in[i].thread, NULL, bare_recv, &in[i]) == 0, "thread");
        need(pthread_create(&out[i].thread, NULL, bare_send, &out[i]) == 0, "thread");
    }
    for (uint32_t i = 0; i < channels; i++) {
        pthread_join(out[i].thread, NULL);
        pthread_join(in[i].thread, NULL);
    }
    double passed = now_s() - begin;
    for (uint32_t i = 0; i < channels; i++) {
        close(out[i].fd);
        close(in[i].fd);
    }
    return MEMORY_BYTES / passed / 1e6;
}

static int no_record(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    return 0;
}

static double our_turn(const struct vfmig_ram_block *from, const struct vfmig_ram_block *to,
                       uint32_t channels)
{
    const struct vfmig_memory source = {from, 1}, dest = {to, 1};
    struct vfmig_channel *out[MAX_CHANNELS], *in[MAX_CHANNELS];
    struct vfmig_mover *mover;
    struct vfmig_receiver *receiver;
    struct vfmig_error error = {0};
    uint64_t pages = MEMORY_BYTES / VFMIG_PAGE_SIZE;
    uint64_t *bitmap = calloc(vfmig_bitmap_words(pages), sizeof(*bitmap));
    struct vfmig_dirty_map map = {.memory = source, .bitmaps = &bitmap};

    need(bitmap != NULL, "bitmap");
    vfmig_bitmap_set_range(bitmap, 0, pages);
    for (uint32_t i = 0; i < channels; i++) {
        int fds[2];
        tcp_pair(fds);
        need(vfmig_channel_new(fds[0], i, VFMIG_SIDE_SOURCE, &out[i], &error) == 0, error.text);
        need(vfmig_channel_new(fds[1], i, VFMIG_SIDE_DEST, &in[i], &error) == 0, error.text);
    }
    double begin = now_s();
    need(vfmig_receiver_new(in, channels, &dest, no_record, NULL, &receiver, &error) == 0,
         error.text);
    need(vfmig_mover_new(out, channels, &source, &mover, &error) == 0, error.text);
    need(vfmig_mover_send(mover, &map, 1, &error) == 0, error.text);
    need(vfmig_receiver_wait_round(receiver, 1, UINT64_MAX, &error) == 0, error.text);
    double passed = now_s() - begin;
    need(memcmp(from->host, to->host, MEMORY_BYTES) == 0, "memory arrived wrong");
    memset(to->host, 0x55, MEMORY_BYTES); /* so that nothing is right by chance; make_cold undoes it */
    vfmig_mover_free(mover);
    vfmig_receiver_free(receiver);
    for (uint32_t i = 0; i < channels; i++) {
        vfmig_channel_free(out[i]);
        vfmig_channel_free(in[i]);
    }
    free(bitmap);
    return MEMORY_BYTES / passed / 1e6;
}

static void row(const struct vfmig_ram_block *from, const struct vfmig_ram_block *to,
                uint32_t channels, bool cold)
{
    double ours[BARE_SIZES * TURNS], bare[BARE_SIZES][TURNS], limit = 0;

    for (size_t turn = 0; turn < TURNS; turn++) {
        for (size_t i = 0; i < BARE_SIZES; i++) {
            if (cold)
                make_cold(to);
            bare[i][turn] = bare_turn(from, to, channels, bare_sizes[i]);
            if (cold)
                make_cold(to);
            ours[turn * BARE_SIZES + i] = our_turn(from, to, channels);
        }
    }
    for (size_t i = 0; i < BARE_SIZES; i++) {
        double middle = median(bare[i], TURNS);
        limit = middle > limit ? middle : limit;
    }
    double middle = median(ours, BARE_SIZES * TURNS);
    printf("{\"name\": \"memory-tcp-%u%s\", \"unit\": \"MB/s\", \"ours\": %.0f, "
           "\"limit\": %.0f, \"ratio\": %.3f, \"floor\": 0.8}",
           channels, cold ? "-cold" : "", middle, limit, middle / limit);
}

int main(int argc, char **argv)
{
    struct vfmig_ram_block from, to;

    make_block(&from, 1);
    make_block(&to, 2);
    for (uint32_t channels = 1; channels <= MAX_CHANNELS; channels *= 2) {
        printf("%s", channels > 1 ? ",\n " : "[");
        row(&from, &to, channels, /* cold= */ false);
        fflush(stdout);
    }
    printf(",\n ");
    row(&from, &to, 2, /* cold= */ true);
    printf("]\n");
    return 0;
}
