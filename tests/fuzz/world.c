/* SPDX-License-Identifier: BSD-3-Clause */
#include "world.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "wire/wire.h"

#define PAGE     4096u
#define MAPS_MAX 4096u
#define NEVER    UINT64_MAX

static struct {
    bool on;
    uint64_t now, timer_due;
    int timer_fd, first_free_fd;
    void (*make_room)(void *user);
    void *user;
    struct guarded {
        uint8_t *at;
        size_t size;
    } maps[MAPS_MAX];
    unsigned map_count;
} world;

/* What --wrap calls the functions themselves, and what takes their place. */
int __real_poll(struct pollfd *fds, nfds_t count, int timeout);
int __real_clock_gettime(clockid_t clock, struct timespec *ts);
int __real_timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old);
ssize_t __real_getrandom(void *buf, size_t size, unsigned flags);
void *__real_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t size);
int __real_vfmig_framer_next(struct vfmig_framer *f, struct vfmig_user_msg *ret_msg);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old);
ssize_t __wrap_getrandom(void *buf, size_t size, unsigned flags);
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t size);
int __wrap_vfmig_framer_next(struct vfmig_framer *f, struct vfmig_user_msg *ret_msg);

/* The lowest free descriptor: grows with every one that is forgotten. */
static int free_fd(void)
{
    int fd = dup(STDERR_FILENO);

    CHECK(fd >= 0, "no descriptor is left");
    close(fd);
    return fd;
}

void world_begin(void (*make_room)(void *user), void *user)
{
    world.now = 1000000000u;
    world.timer_due = NEVER;
    world.timer_fd = -1;
    world.make_room = make_room;
    world.user = user;
    world.first_free_fd = free_fd();
    world.on = true;
}

void world_end(void)
{
    world.on = false;
    CHECK(world.map_count == 0, "%u mappings are left", world.map_count);
    int fd = free_fd();
    CHECK(fd == world.first_free_fd, "descriptor %d is still open", world.first_free_fd);
}

/* ---- time ------------------------------------------------------------------------------------ */

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
    if (!world.on || clock != CLOCK_MONOTONIC)
        return __real_clock_gettime(clock, ts);
    ts->tv_sec = (time_t)(world.now / 1000000000u);
    ts->tv_nsec = (long)(world.now % 1000000000u);
    return 0;
}

/* A timer that is due in our time is made due in the kernel's, and waited for: it is readable
 * before the server looks again, in every run. */
static int set_timer(void)
{
    struct itimerspec spec = {0};
    bool due = world.timer_due <= world.now;

    spec.it_value.tv_nsec = due;
    int r = __real_timerfd_settime(world.timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
    struct pollfd p = {.fd = world.timer_fd, .events = POLLIN};
    if (r == 0 && due)
        CHECK(__real_poll(&p, 1, 5000) == 1, "a timer of the past does not fire");
    if (due)
        world.timer_due = NEVER;
    return r;
}

int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
    if (!world.on)
        return __real_timerfd_settime(fd, flags, new, old);
    CHECK(flags == TFD_TIMER_ABSTIME && !old && !new->it_interval.tv_nsec, "an unknown timer");
    CHECK(new->it_value.tv_nsec >= 0 && new->it_value.tv_nsec < 1000000000, "not a time");
    world.timer_fd = fd;
    world.timer_due =
        (uint64_t) new->it_value.tv_sec * 1000000000u + (uint64_t) new->it_value.tv_nsec;
    return set_timer();
}

void world_advance(uint64_t ns)
{
    world.now += ns;
    if (world.timer_due <= world.now)
        set_timer();
}

ssize_t __wrap_getrandom(void *buf, size_t size, unsigned flags)
{
    if (!world.on)
        return __real_getrandom(buf, size, flags);
    memset(buf, 0x5a, size);
    return (ssize_t)size;
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* The server is the only thread: if it waits for room, its client has to read here. */
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    if (!world.on)
        return __real_poll(fds, count, timeout);
    int r = __real_poll(fds, count, 0);
    if (r != 0 || timeout == 0)
        return r;
    world.make_room(world.user);
    r = __real_poll(fds, count, 0);
    CHECK(r != 0, "the server waits for something that cannot come");
    return r;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Files are mapped between pages that may not be touched. */
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    size_t whole = (size + PAGE - 1) & ~(size_t)(PAGE - 1);

    if (!world.on || fd < 0 || at || size == 0 || size > 1ull << 46 || world.map_count == MAPS_MAX)
        return __real_mmap(at, size, prot, flags, fd, offset);
    uint8_t *fence = __real_mmap(NULL, whole + 2 * PAGE, PROT_NONE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fence == MAP_FAILED)
        return MAP_FAILED;
    void *map = __real_mmap(fence + PAGE, size, prot, flags | MAP_FIXED, fd, offset);
    int err = errno;
    if (map == MAP_FAILED)
        __real_munmap(fence, whole + 2 * PAGE);
    else
        world.maps[world.map_count++] = (struct guarded){map, size};
    errno = err;
    return map;
}

int __wrap_munmap(void *at, size_t size)
{
    for (unsigned i = 0; i < world.map_count; i++) {
        struct guarded *map = &world.maps[i];
        size_t whole = (size + PAGE - 1) & ~(size_t)(PAGE - 1);
        if (map->at != at)
            continue;
        CHECK(map->size == size, "only a part of a mapping is undone");
        *map = world.maps[--world.map_count];
        return __real_munmap((uint8_t *)at - PAGE, whole + 2 * PAGE);
    }
    return __real_munmap(at, size);
}

/* While a message is handled its neighbours in the buffer may not be read. */
int __wrap_vfmig_framer_next(struct vfmig_framer *f, struct vfmig_user_msg *ret_msg)
{
    ASAN_UNPOISON_MEMORY_REGION(f->buf, f->capacity);
    int r = __real_vfmig_framer_next(f, ret_msg);

    if (world.on && r == 1) {
        size_t before = (size_t)(ret_msg->payload - f->buf), after = before + ret_msg->size;
        ASAN_POISON_MEMORY_REGION(f->buf, before - before % 8);
        ASAN_POISON_MEMORY_REGION(f->buf + after, f->capacity - after);
    }
    return r;
}
