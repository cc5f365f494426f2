/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/vm_flight.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/bounds.h"

int vmm_flight_init(struct vmm_flight *flight, const char *path, const char *journal_dir,
                    struct vfmig_error *reterr)
{
    int size = 0;

    *flight = (struct vmm_flight){.fd = -1};
    pthread_mutex_init(&flight->lock, NULL);
    flight->made = true;
    if (path)
        size = snprintf(flight->path, sizeof(flight->path), "%s", path);
    else if (journal_dir)
        size = snprintf(flight->path, sizeof(flight->path), "%s/%s", journal_dir, VMM_FLIGHT_NAME);
    if (size >= (int)sizeof(flight->path))
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                               "the path of the flight recorder is too long");
    snprintf(flight->fresh, sizeof(flight->fresh), "%s.tmp", flight->path);
    if (!size)
        return 0;
    /* Beforehand: when it is needed, memory may be what is missing. */
    flight->head = malloc(VFMIG_MAX_FLIGHT_HEAD);
    flight->ring = malloc(VFMIG_MAX_FLIGHT_KEPT);
    return flight->head && flight->ring
               ? 0
               : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                 "no memory for the flight recorder");
}

static void close_file(struct vmm_flight *flight)
{
    if (flight->fd >= 0)
        close(flight->fd);
    flight->fd = -1;
}

void vmm_flight_done(struct vmm_flight *flight)
{
    if (!flight->made)
        return;
    close_file(flight);
    free(flight->head);
    free(flight->ring);
    pthread_mutex_destroy(&flight->lock);
    flight->made = false;
}

void vmm_flight_leave(struct vmm_flight *flight)
{
    pthread_mutex_lock(&flight->lock);
    flight->source = true;
    flight->told = false;
    flight->head_size = flight->size = 0;
    close_file(flight);
    pthread_mutex_unlock(&flight->lock);
}

bool vmm_trace_is(const char *line, bool source, const char *event)
{
    static const char side[] = ",\"side\":\"", ev[] = "\",\"ev\":\"";
    const char *name = source ? "source" : "destination";
    const char *at = strstr(line, side); /* only numbers come before it */

    if (!at || strncmp(at += strlen(side), name, strlen(name)))
        return false;
    at += strlen(name);
    return !strncmp(at, ev, strlen(ev)) && !strncmp(at + strlen(ev), event, strlen(event));
}

/* --- what is kept --- */

static void keep_head(struct vmm_flight *flight, const char *line, size_t size)
{
    if (flight->head_size + size + 1 > VFMIG_MAX_FLIGHT_HEAD)
        return; /* the numbers of the lines tell */
    memcpy(flight->head + flight->head_size, line, size);
    flight->head[flight->head_size + size] = '\n';
    flight->head_size += size + 1;
}

static void drop_first(struct vmm_flight *flight)
{
    char last;

    do {
        last = flight->ring[flight->start];
        flight->start = (flight->start + 1) % VFMIG_MAX_FLIGHT_KEPT;
        flight->size--;
    } while (last != '\n' && flight->size);
}

static void put(struct vmm_flight *flight, const char *bytes, size_t size)
{
    size_t at = (flight->start + flight->size) % VFMIG_MAX_FLIGHT_KEPT;
    size_t first = size < VFMIG_MAX_FLIGHT_KEPT - at ? size : VFMIG_MAX_FLIGHT_KEPT - at;

    memcpy(flight->ring + at, bytes, first);
    memcpy(flight->ring, bytes + first, size - first);
    flight->size += size;
}

static void keep(struct vmm_flight *flight, const char *line, size_t size)
{
    if (size + 1 > VFMIG_MAX_FLIGHT_KEPT)
        return;
    while (flight->size + size + 1 > VFMIG_MAX_FLIGHT_KEPT)
        drop_first(flight);
    put(flight, line, size);
    put(flight, "\n", 1);
}

/* --- the file --- */

static void give_up(struct vmm_flight *flight, const char *why)
{
    fprintf(stderr, "vfmig vm: what led to the failure cannot be written to %s: %s\n", flight->path, why);
    close_file(flight);
    unlink(flight->fresh);
}

/* The journal is on the same disk, and what it still has to write matters more (docs/handover.md). */
static bool has_room(int fd, size_t size)
{
    struct statvfs disk;

    return fstatvfs(fd, &disk) ||
           (uint64_t)disk.f_bavail * disk.f_frsize >= size + (uint64_t)VFMIG_FLIGHT_SPARE;
}

static void write_file(struct vmm_flight *flight)
{
    size_t first = VFMIG_MAX_FLIGHT_KEPT - flight->start;
    struct iovec parts[3] = {{.iov_base = flight->head, .iov_len = flight->head_size},
                             {.iov_base = flight->ring + flight->start, .iov_len = flight->size},
                             {.iov_base = flight->ring, .iov_len = 0}};

    if (flight->size > first) {
        parts[1].iov_len = first;
        parts[2].iov_len = flight->size - first;
    }
    flight->written = flight->head_size + flight->size;
    unlink(flight->fresh);
    flight->fd = open(flight->fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (flight->fd < 0) {
        give_up(flight, strerror(errno));
        return;
    }
    if (!has_room(flight->fd, flight->written + VFMIG_MAX_FLIGHT_MORE)) {
        give_up(flight, "the disk is almost full");
        return;
    }
    ssize_t done = writev(flight->fd, parts, 3);
    if (done != (ssize_t)flight->written) {
        give_up(flight, done < 0 ? strerror(errno) : "no space");
        return;
    }
    if (rename(flight->fresh, flight->path)) {
        give_up(flight, strerror(errno));
        return;
    }
    flight->told = true;
    fprintf(stderr, "vfmig vm: what led to it is in %s; vfmig timeline draws it\n", flight->path);
}

/* What comes behind: the way to the end, and what the peer has to say. */
static void add_line(struct vmm_flight *flight, const char *line, size_t size)
{
    struct iovec parts[2] = {{.iov_base = (void *)line, .iov_len = size},
                             {.iov_base = "\n", .iov_len = 1}};

    flight->written += size + 1;
    bool fits = flight->written <= VFMIG_MAX_FLIGHT_HEAD + VFMIG_MAX_FLIGHT_KEPT + VFMIG_MAX_FLIGHT_MORE;
    ssize_t done = fits ? writev(flight->fd, parts, 2) : 0;
    if (done == (ssize_t)size + 1)
        return;
    fprintf(stderr, "vfmig vm: what comes next is missing in %s: %s\n", flight->path,
            !fits ? "it would grow too large" : done < 0 ? strerror(errno) : "no space");
    close_file(flight); /* what is there stays; a line that is cut is the last */
}

static bool has_failed(const struct vmm_flight *flight, const char *line)
{
    return vmm_trace_is(line, flight->source, "state\",\"state\":\"failed\"") ||
           vmm_trace_is(line, flight->source, "state\",\"state\":\"undecided\"") ||
           vmm_trace_is(line, flight->source, "state\",\"state\":\"paused\"");
}

void vmm_flight_line(struct vmm_flight *flight, const char *line)
{
    size_t size = strlen(line);

    pthread_mutex_lock(&flight->lock);
    if (flight->ring) {
        if (vmm_trace_is(line, flight->source, "trace\"")) {
            close_file(flight);
            flight->head_size = flight->size = 0;
            flight->told = false;
        }
        if (flight->fd >= 0)
            add_line(flight, line, size);
        else if (vmm_trace_is(line, true, "trace\"") || vmm_trace_is(line, false, "trace\"") ||
                 vmm_trace_is(line, true, "device\"") || vmm_trace_is(line, false, "device\""))
            keep_head(flight, line, size);
        else
            keep(flight, line, size);
        if (!flight->told && has_failed(flight, line))
            write_file(flight);
        if (vmm_trace_is(line, flight->source, "end\""))
            close_file(flight);
    }
    pthread_mutex_unlock(&flight->lock);
}

bool vmm_flight_told(struct vmm_flight *flight)
{
    pthread_mutex_lock(&flight->lock);
    bool told = flight->told;
    pthread_mutex_unlock(&flight->lock);
    return told;
}
