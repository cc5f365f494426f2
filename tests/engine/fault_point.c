/* SPDX-License-Identifier: BSD-3-Clause */
#include "fault_point.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define FRAMES 6u /* of which the first two are here */

/* Shared by all processes: what one of them comes upon is known to the others. */
static struct seen {
    pthread_mutex_t lock;
    struct fault_point points[FAULT_POINTS];
    uint32_t count;
} * seen;
static uint32_t hits[FAULT_POINTS];
static uint64_t target;
static uint32_t target_nth;
static enum fault_kind target_kind;
static bool armed, struck, mended;

void fault_points_init(void)
{
    pthread_mutexattr_t attr;
    void *frames[FRAMES];

    (void)backtrace(frames, FRAMES); /* it loads a library the first time */
    seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED)
        abort();
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&seen->lock, &attr);
    pthread_mutexattr_destroy(&attr);
}

void fault_points_arm(uint64_t key, enum fault_kind kind, uint32_t nth)
{
    pthread_mutex_lock(&seen->lock);
    memset(hits, 0, sizeof(hits));
    target = key;
    target_kind = kind;
    target_nth = nth;
    struck = mended = false;
    armed = true;
    pthread_mutex_unlock(&seen->lock);
}

bool fault_points_disarm(void)
{
    pthread_mutex_lock(&seen->lock);
    bool happened = struck;
    armed = false;
    pthread_mutex_unlock(&seen->lock);
    return happened;
}

void fault_points_mend(void)
{
    pthread_mutex_lock(&seen->lock);
    mended = true;
    pthread_mutex_unlock(&seen->lock);
}

uint32_t fault_points_count(void)
{
    pthread_mutex_lock(&seen->lock);
    uint32_t count = seen->count;
    pthread_mutex_unlock(&seen->lock);
    return count;
}

const struct fault_point *fault_point(uint32_t point)
{
    return &seen->points[point];
}

const char *fault_kind_name(enum fault_kind kind)
{
    static const char *const names[] = {"fails", "signal", "short", "late", "eof", "stays"};

    return names[kind];
}

/* FNV-1a over where the program is loaded from: the same in each run. */
static uint64_t key_of(const char *call)
{
    void *frames[FRAMES];
    uint64_t key = UINT64_C(0xcbf29ce484222325);
    int count = backtrace(frames, FRAMES);

    for (const char *c = call; *c; c++)
        key = (key ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    for (int i = 2; i < count; i++) {
        uint64_t at = (uint64_t)((uintptr_t)frames[i] - (uintptr_t)&fault_points_init);
        /* What lies outside of the program, libc's start of a thread, is elsewhere each time. */
        if (at + (UINT64_C(1) << 30) > UINT64_C(1) << 31)
            break;
        for (unsigned byte = 0; byte < 8; byte++)
            key = (key ^ (at >> 8 * byte & 0xff)) * UINT64_C(0x100000001b3);
    }
    return key;
}

/* Under the lock. */
static struct fault_point *find(const char *call, uint32_t kinds, uint64_t key)
{
    for (uint32_t i = 0; i < seen->count; i++)
        if (seen->points[i].key == key)
            return &seen->points[i];
    if (seen->count == FAULT_POINTS)
        abort();
    struct fault_point *point = &seen->points[seen->count++];
    *point = (struct fault_point){.key = key, .kinds = kinds};
    snprintf(point->call, sizeof(point->call), "%s", call);
    return point;
}

/* Whether this call meets the fault: its kind, -1 if not. */
__attribute__((noinline)) static int meets(const char *call, uint32_t kinds)
{
    int error = errno, kind = -1;

    if (!__atomic_load_n(&armed, __ATOMIC_RELAXED))
        return -1;
    uint64_t key = key_of(call);
    pthread_mutex_lock(&seen->lock);
    if (armed) {
        struct fault_point *point = find(call, kinds, key);
        uint32_t call_number = hits[point - seen->points]++;
        bool due = target_kind == FAULT_STAYS ? call_number >= target_nth && !mended
                                              : call_number == target_nth;
        if (target == key && due) {
            struck = true;
            kind = (int)target_kind;
        }
    }
    pthread_mutex_unlock(&seen->lock);
    errno = error;
    return kind;
}

#define FAILS  (1u << FAULT_FAILS)
#define STAYS  (1u << FAULT_FAILS | 1u << FAULT_STAYS)
#define BLOCKS (1u << FAULT_FAILS | 1u << FAULT_SIGNAL)
#define MOVES  (BLOCKS | 1u << FAULT_SHORT)

static int code_of(int kind, int usual)
{
    return kind == FAULT_SIGNAL ? EINTR : kind == FAULT_LATE ? EAGAIN : usual;
}

/* Says `failed` with errno `code`. */
#define WRAP(type, name, parameters, arguments, kinds, failed, code)                               \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters                                                                  \
    {                                                                                              \
        int kind = meets(#name, kinds);                                                            \
        if (kind < 0)                                                                              \
            return __real_##name arguments;                                                        \
        errno = code_of(kind, code);                                                               \
        return failed;                                                                             \
    }

WRAP(void *, calloc, (size_t n, size_t size), (n, size), STAYS, NULL, ENOMEM)
WRAP(void *, malloc, (size_t size), (size), STAYS, NULL, ENOMEM)
WRAP(void *, realloc, (void *at, size_t size), (at, size), STAYS, NULL, ENOMEM)
WRAP(int, fsync, (int fd), (fd), STAYS, -1, EIO)
WRAP(int, fdatasync, (int fd), (fd), STAYS, -1, EIO)
WRAP(int, fstat64, (int fd, struct stat *st), (fd, st), FAILS, -1, EIO)
WRAP(int, stat64, (const char *path, struct stat *st), (path, st), FAILS, -1, EACCES)
WRAP(int, fstatfs64, (int fd, struct statfs *st), (fd, st), FAILS, -1, EIO)
WRAP(int, statvfs64, (const char *path, struct statvfs *st), (path, st), FAILS, -1, EIO)
WRAP(int, rename, (const char *from, const char *to), (from, to), STAYS, -1, EACCES)
WRAP(int, renameat2, (int from_at, const char *from, int to_at, const char *to, unsigned flags),
     (from_at, from, to_at, to, flags), FAILS, -1, EINVAL)
WRAP(off_t, lseek64, (int fd, off_t at, int from), (fd, at, from), FAILS, -1, EINVAL)
WRAP(int, lstat64, (const char *path, struct stat *st), (path, st), FAILS, -1, EACCES)
WRAP(char *, realpath, (const char *path, char *to), (path, to), FAILS, NULL, EACCES)
WRAP(int, link, (const char *from, const char *to), (from, to), STAYS, -1, EMLINK)
WRAP(int, unlink, (const char *path), (path), STAYS, -1, EACCES)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), STAYS, -1, EACCES)
WRAP(int, access, (const char *path, int mode), (path, mode), FAILS, -1, EACCES)
WRAP(int, eventfd, (unsigned count, int flags), (count, flags), FAILS, -1, EMFILE)
WRAP(int, socket, (int domain, int type, int protocol), (domain, type, protocol), FAILS, -1, EMFILE)
WRAP(int, bind, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size), FAILS, -1,
     EADDRINUSE)
WRAP(int, listen, (int fd, int backlog), (fd, backlog), FAILS, -1, EADDRINUSE)
WRAP(int, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size), BLOCKS, -1,
     ECONNREFUSED)
WRAP(int, accept4, (int fd, struct sockaddr *from, socklen_t *size, int flags),
     (fd, from, size, flags), BLOCKS, -1, EMFILE)
WRAP(int, getsockname, (int fd, struct sockaddr *to, socklen_t *size), (fd, to, size), FAILS, -1,
     ENOBUFS)
WRAP(int, getpeername, (int fd, struct sockaddr *to, socklen_t *size), (fd, to, size), FAILS, -1,
     ENOTCONN)
WRAP(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
     (fd, level, name, value, size), FAILS, -1, EDOM)
WRAP(int, poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout), BLOCKS, -1,
     ENOMEM)
WRAP(ssize_t, getrandom, (void *data, size_t size, unsigned flags), (data, size, flags), FAILS, -1,
     ENOSYS)
WRAP(int, madvise, (void *at, size_t size, int advice), (at, size, advice), FAILS, -1, EINVAL)
WRAP(int, ftruncate64, (int fd, off_t size), (fd, size), FAILS, -1, ENOSPC)
WRAP(FILE *, fopen64, (const char *path, const char *mode), (path, mode), FAILS, NULL, EMFILE)
WRAP(void *, mmap64, (void *at, size_t size, int protection, int flags, int fd, off_t offset),
     (at, size, protection, flags, fd, offset), FAILS, MAP_FAILED, ENOMEM)

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                          void *arg)
{
    return meets("pthread_create", STAYS) < 0 ? __real_pthread_create(thread, attr, start, arg)
                                              : EAGAIN;
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;

    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (meets("open", STAYS) < 0)
        return __real_open64(path, flags, mode);
    errno = EMFILE;
    return -1;
}

int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...)
{
    va_list args;

    va_start(args, command);
    void *what = va_arg(args, void *);
    va_end(args);
    if (meets("fcntl", FAILS) < 0)
        return __real_fcntl64(fd, command, what);
    errno = command == F_DUPFD_CLOEXEC ? EMFILE : ENOLCK;
    return -1;
}

/* --- calls that move bytes: they may move fewer --- */

/* size: of which a byte is left. */
#define WRAP_MOVE(name, parameters, arguments, short_arguments, kinds, code)                       \
    ssize_t __real_##name parameters;                                                              \
    ssize_t __wrap_##name parameters;                                                              \
    ssize_t __wrap_##name parameters                                                               \
    {                                                                                              \
        int kind = meets(#name, kinds);                                                            \
        if (kind < 0)                                                                              \
            return __real_##name arguments;                                                        \
        if (kind == FAULT_SHORT)                                                                   \
            return __real_##name short_arguments;                                                  \
        if (kind == FAULT_EOF)                                                                     \
            return 0;                                                                              \
        errno = code_of(kind, code);                                                               \
        return -1;                                                                                 \
    }

#define RECEIVES  (MOVES | 1u << FAULT_LATE | 1u << FAULT_EOF)
#define SENDS     (MOVES | 1u << FAULT_LATE)
#define ONE(size) ((size) ? (size_t)1 : (size_t)0)

WRAP_MOVE(read, (int fd, void *data, size_t size), (fd, data, size), (fd, data, ONE(size)), MOVES,
          EIO)
WRAP_MOVE(write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, ONE(size)),
          MOVES, ENOSPC)
WRAP_MOVE(pread64, (int fd, void *data, size_t size, off_t at), (fd, data, size, at),
          (fd, data, ONE(size), at), MOVES, EIO)
WRAP_MOVE(pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at),
          (fd, data, ONE(size), at), MOVES | 1u << FAULT_STAYS, ENOSPC)
WRAP_MOVE(send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags),
          (fd, data, ONE(size), flags), SENDS, ECONNRESET)
WRAP_MOVE(recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags),
          (fd, data, ONE(size), flags), RECEIVES, ECONNRESET)

/* The first byte alone. */
static struct iovec first_byte(const struct iovec *iov, size_t count)
{
    size_t i = 0;

    while (i + 1 < count && !iov[i].iov_len)
        i++;
    return (struct iovec){iov[i].iov_base, ONE(iov[i].iov_len)};
}

static struct msghdr first_of(const struct msghdr *msg, struct iovec *ret_byte)
{
    struct msghdr less = *msg;

    *ret_byte = first_byte(msg->msg_iov, msg->msg_iovlen);
    less.msg_iov = ret_byte;
    less.msg_iovlen = 1;
    return less;
}

ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    int kind = meets("sendmsg", SENDS);
    struct iovec byte;

    if (kind < 0)
        return __real_sendmsg(fd, msg, flags);
    if (kind == FAULT_SHORT) {
        struct msghdr less = first_of(msg, &byte);
        return __real_sendmsg(fd, &less, flags);
    }
    errno = code_of(kind, ECONNRESET);
    return -1;
}

ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags)
{
    int kind = meets("recvmsg", RECEIVES);
    struct iovec byte;

    if (kind < 0)
        return __real_recvmsg(fd, msg, flags);
    if (kind == FAULT_SHORT) {
        struct msghdr less = first_of(msg, &byte);
        ssize_t got = __real_recvmsg(fd, &less, flags);
        msg->msg_flags = less.msg_flags;
        msg->msg_controllen = less.msg_controllen;
        return got;
    }
    if (kind == FAULT_EOF)
        return 0;
    errno = code_of(kind, ECONNRESET);
    return -1;
}

#define WRAP_VECTOR(name, kinds, code)                                                             \
    ssize_t __real_##name(int fd, const struct iovec *iov, int count);                             \
    ssize_t __wrap_##name(int fd, const struct iovec *iov, int count);                             \
    ssize_t __wrap_##name(int fd, const struct iovec *iov, int count)                              \
    {                                                                                              \
        int kind = meets(#name, kinds);                                                            \
        if (kind < 0)                                                                              \
            return __real_##name(fd, iov, count);                                                  \
        if (kind == FAULT_SHORT) {                                                                 \
            struct iovec byte = first_byte(iov, (size_t)count);                                    \
            return __real_##name(fd, &byte, 1);                                                    \
        }                                                                                          \
        if (kind == FAULT_EOF)                                                                     \
            return 0;                                                                              \
        errno = code_of(kind, code);                                                               \
        return -1;                                                                                 \
    }

WRAP_VECTOR(writev, MOVES | 1u << FAULT_STAYS, ENOSPC)
WRAP_VECTOR(readv, MOVES | 1u << FAULT_EOF, EIO)
