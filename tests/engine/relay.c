/* SPDX-License-Identifier: BSD-3-Clause */
#include "relay.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/le.h"

#define CHUNK    65536u
#define POLL_MS  5
#define MOST_KEPT (64u << 20)

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    return address;
}

static void cut_connection(struct relay *relay, uint32_t connection)
{
    struct relay_way *way = &relay->ways[2 * connection];

    if (way->from < 0)
        return;
    close(way->from);
    close(way->to);
    for (uint32_t i = 0; i < 2; i++)
        way[i].from = way[i].to = -1;
}

static void send_on(struct relay_way *way, const uint8_t *data, size_t size)
{
    for (ssize_t n; size && way->to >= 0; data += n, size -= (size_t)n) {
        n = send(way->to, data, size, MSG_NOSIGNAL);
        if (n <= 0)
            return;
    }
}

static void keep(struct relay_way *way, const uint8_t *data, size_t size)
{
    if (way->kept_bytes + size > MOST_KEPT)
        abort();
    way->kept = realloc(way->kept, way->kept_bytes + size);
    memcpy(way->kept + way->kept_bytes, data, size);
    way->kept_bytes += size;
}

/* Head by head, payloads as they come. */
static void feed(struct relay *relay, uint32_t number, const uint8_t *data, size_t size)
{
    struct relay_way *way = &relay->ways[number];
    bool to_destination = number % 2 == 0;

    while (size && !way->held && way->from >= 0) {
        size_t part = way->payload ? way->payload < size ? (size_t)way->payload : size
                                   : RELAY_HEAD - way->head_bytes < size ? RELAY_HEAD - way->head_bytes : size;
        bool in_payload = way->payload;
        uint16_t tag = vfmig_le16_get(way->head + 4);
        uint32_t channel = vfmig_le32_get(way->head + 32);
        if (in_payload) {
            send_on(way, data, part);
            way->payload -= part;
        } else {
            memcpy(way->head + way->head_bytes, data, part);
            way->head_bytes += part;
        }
        data += part;
        size -= part;
        if (!in_payload && way->head_bytes == RELAY_HEAD) {
            tag = vfmig_le16_get(way->head + 4);
            channel = vfmig_le32_get(way->head + 32);
            way->head_bytes = 0;
            if (relay->pass && !relay->pass(relay, to_destination, tag, channel)) {
                way->held = true;
                keep(way, way->head, RELAY_HEAD);
                break;
            }
            way->payload = vfmig_le32_get(way->head + 24);
            send_on(way, way->head, RELAY_HEAD);
            in_payload = true;
        }
        if (in_payload && !way->payload && relay->passed &&
            relay->passed(relay, to_destination, tag, channel))
            cut_connection(relay, number / 2);
    }
    if (way->held && size)
        keep(way, data, size);
}

static void open_up(struct relay *relay)
{
    for (uint32_t i = 0; i < 2 * relay->count; i++) {
        struct relay_way *way = &relay->ways[i];
        uint8_t *kept = way->kept;
        size_t bytes = way->kept_bytes;
        way->held = false;
        way->kept = NULL;
        way->kept_bytes = 0;
        if (bytes)
            feed(relay, i, kept, bytes);
        free(kept);
    }
}

static void take(struct relay *relay)
{
    struct sockaddr_un address = address_of(relay->target);
    int from = accept(relay->listener, NULL, NULL);
    int to = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (from < 0 || to < 0 || relay->count == RELAY_MOST ||
        connect(to, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(from);
        close(to);
        return;
    }
    relay->ways[2 * relay->count] = (struct relay_way){.from = from, .to = to};
    relay->ways[2 * relay->count + 1] = (struct relay_way){.from = to, .to = from};
    relay->count++;
}

static void *relay_main(void *arg)
{
    static uint8_t data[CHUNK];
    struct relay *relay = arg;

    while (!atomic_load(&relay->quit)) {
        struct pollfd pfds[1 + 2 * RELAY_MOST] = {{.fd = relay->listener, .events = POLLIN}};
        uint32_t count = relay->count;
        for (uint32_t i = 0; i < 2 * count; i++)
            pfds[1 + i] = (struct pollfd){.fd = relay->ways[i].from, .events = POLLIN};
        poll(pfds, 1 + 2 * count, POLL_MS);
        for (uint32_t i = 0; i < 2 * count; i++) {
            if (!pfds[1 + i].revents || relay->ways[i].from != pfds[1 + i].fd)
                continue;
            ssize_t n = recv(relay->ways[i].from, data, sizeof(data), 0);
            if (n > 0)
                feed(relay, i, data, (size_t)n);
            else
                cut_connection(relay, i / 2);
        }
        if (pfds[0].revents)
            take(relay);
        if (atomic_exchange(&relay->open_up, false))
            open_up(relay);
        for (uint32_t i = 0; atomic_load(&relay->cut) && i < relay->count; i++)
            cut_connection(relay, i);
        atomic_store(&relay->cut, false);
    }
    return NULL;
}

void relay_start(struct relay *relay, const char *dir, const char *target_uri)
{
    snprintf(relay->path, sizeof(relay->path), "%s/relay", dir);
    snprintf(relay->uri, sizeof(relay->uri), "unix:%s", relay->path);
    snprintf(relay->target, sizeof(relay->target), "%s", target_uri + strlen("unix:"));
    struct sockaddr_un address = address_of(relay->path);
    relay->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(relay->listener >= 0);
    assert_int_equal(bind(relay->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(relay->listener, (int)RELAY_MOST), 0);
    assert_int_equal(pthread_create(&relay->thread, NULL, relay_main, relay), 0);
}

void relay_open_up(struct relay *relay)
{
    atomic_store(&relay->open_up, true);
}

void relay_cut(struct relay *relay)
{
    atomic_store(&relay->cut, true);
    while (atomic_load(&relay->cut))
        usleep(1000);
}

void relay_end(struct relay *relay)
{
    atomic_store(&relay->quit, true);
    pthread_join(relay->thread, NULL);
    for (uint32_t i = 0; i < relay->count; i++)
        cut_connection(relay, i);
    for (uint32_t i = 0; i < 2 * relay->count; i++)
        free(relay->ways[i].kept);
    close(relay->listener);
    unlink(relay->path);
}
