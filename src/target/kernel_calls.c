/* SPDX-License-Identifier: BSD-3-Clause */
/* The system calls themselves. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "target/kernel.h"

/* As often as a signal comes in between. */
#define RETRY(call)                                                                                \
    ({                                                                                             \
        __typeof__(call) result_;                                                                  \
        do                                                                                         \
            result_ = (call);                                                                      \
        while (result_ < 0 && errno == EINTR);                                                     \
        result_ < 0 ? -errno : result_;                                                            \
    })

static int real_open(void *opaque, const char *path)
{
    return RETRY(open(path, O_RDWR | O_CLOEXEC));
}

static int real_close(void *opaque, int fd)
{
    return close(fd) < 0 ? -errno : 0;
}

static int real_ioctl(void *opaque, int fd, unsigned long request, void *argument)
{
    return RETRY(ioctl(fd, request, argument));
}

static ssize_t real_read(void *opaque, int fd, void *data, size_t size)
{
    return RETRY(read(fd, data, size));
}

static ssize_t real_write(void *opaque, int fd, const void *data, size_t size)
{
    return RETRY(write(fd, data, size));
}

static ssize_t real_pread(void *opaque, int fd, void *data, size_t size, uint64_t offset)
{
    return RETRY(pread(fd, data, size, (off_t)offset));
}

static ssize_t real_pwrite(void *opaque, int fd, const void *data, size_t size, uint64_t offset)
{
    return RETRY(pwrite(fd, data, size, (off_t)offset));
}

/* Not repeated: the caller knows how much of the time is left. */
static int real_poll(void *opaque, int fd, short events, int timeout_ms)
{
    struct pollfd one = {.fd = fd, .events = events};
    int n = poll(&one, 1, timeout_ms);

    return n < 0 ? -errno : n ? one.revents : 0;
}

static int real_nonblock(void *opaque, int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static int real_mmap(void *opaque, int fd, uint64_t offset, size_t size, bool writable,
                     void **ret_at)
{
    void *at = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                    (off_t)offset);

    if (at == MAP_FAILED)
        return -errno;
    *ret_at = at;
    return 0;
}

static int real_munmap(void *opaque, void *at, size_t size)
{
    return munmap(at, size) < 0 ? -errno : 0;
}

const struct vfmig_kernel_calls vfmig_kernel_real = {
    .open = real_open,
    .close = real_close,
    .ioctl = real_ioctl,
    .read = real_read,
    .write = real_write,
    .pread = real_pread,
    .pwrite = real_pwrite,
    .poll = real_poll,
    .nonblock = real_nonblock,
    .mmap = real_mmap,
    .munmap = real_munmap,
};
