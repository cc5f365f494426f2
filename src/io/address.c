/* SPDX-License-Identifier: BSD-3-Clause */
/* Addresses as text, and the sockets that are made from them. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "io/sock.h"

union any_address {
    struct sockaddr sa;
    struct sockaddr_un un;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_storage room;
};

struct place {
    union any_address addr;
    socklen_t size;
};

static int wrong_address(const char *address, const char *why, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "address '%.150s': %s", address, why);
}

static int failed(int err, const char *what, const char *address, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "%s %.150s: %s", what, address,
                           strerror(err));
}

static int parse_unix(const char *address, const char *path, struct place *ret_place,
                      struct vfmig_error *reterr)
{
    struct sockaddr_un *un = &ret_place->addr.un;

    if (*path == 0)
        return wrong_address(address, "the path is empty", reterr);
    if (strlen(path) >= sizeof(un->sun_path))
        return wrong_address(address, "the path is too long for a unix socket", reterr);
    memset(ret_place, 0, sizeof(*ret_place));
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, path);
    ret_place->size = sizeof(*un);
    return 0;
}

static int parse_tcp(const char *address, const char *text, bool listening, struct place *ret_place,
                     struct vfmig_error *reterr)
{
    char host[256];
    const char *end = strrchr(text, ':');
    size_t size = end ? (size_t)(end - text) : 0;

    if (!end || size == 0 || size >= sizeof(host) || end[1] == 0)
        return wrong_address(address, "tcp:HOST:PORT is wanted", reterr);
    if (text[0] == '[' && text[size - 1] == ']' && size > 2) {
        text++;
        size -= 2;
    }
    memcpy(host, text, size);
    host[size] = 0;
    if (strspn(end + 1, "0123456789") != strlen(end + 1) || strlen(end + 1) > 5)
        return wrong_address(address, "the port is not a number", reterr);
    if (strtoul(end + 1, NULL, 10) > UINT16_MAX) /* getaddrinfo would cut it */
        return wrong_address(address, "the port is larger than 65535", reterr);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM,
                             .ai_flags = listening ? AI_PASSIVE : 0}, *list = NULL;
    int r = getaddrinfo(host, end + 1, &hints, &list);
    if (r != 0)
        return vfmig_error_set(reterr, -EHOSTUNREACH, VFMIG_ORIGIN_LOCAL, 0,
                               "address '%.150s': %s", address, gai_strerror(r));
    memcpy(&ret_place->addr, list->ai_addr, list->ai_addrlen);
    ret_place->size = list->ai_addrlen;
    freeaddrinfo(list);
    return 0;
}

static int parse(const char *address, bool listening, struct place *ret_place,
                 struct vfmig_error *reterr)
{
    if (strncmp(address, "unix:", 5) == 0)
        return parse_unix(address, address + 5, ret_place, reterr);
    if (strncmp(address, "tcp:", 4) == 0)
        return parse_tcp(address, address + 4, listening, ret_place, reterr);
    if (strchr(address, '/'))
        return parse_unix(address, address, ret_place, reterr);
    return wrong_address(address, "unix:PATH or tcp:HOST:PORT is wanted", reterr);
}

static bool is_far(const struct sockaddr *address)
{
    const struct in6_addr *six = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    uint32_t four = 0;

    if (address->sa_family == AF_UNIX)
        return false;
    if (address->sa_family == AF_INET)
        four = ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr);
    else if (address->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(six))
        four = (uint32_t)six->s6_addr[12] << 24;
    else if (address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(six))
        return false;
    return four >> 24 != IN_LOOPBACKNET;
}

int vfmig_sock_is_far(const char *address, bool *ret_far, struct vfmig_error *reterr)
{
    struct place place;
    int r = parse(address, false, &place, reterr);

    *ret_far = r < 0 || is_far(&place.addr.sa);
    return r;
}

bool vfmig_sock_peer_is_far(int fd)
{
    union any_address addr;
    socklen_t size = sizeof(addr);

    memset(&addr, 0, sizeof(addr));
    return getpeername(fd, &addr.sa, &size) < 0 || is_far(&addr.sa);
}

/* An address of IPv4, be it written as one of IPv6. All of loopback is one host. */
static uint64_t host_of(uint32_t address)
{
    return (address >> 24) == 127 ? 127 : address;
}

uint64_t vfmig_sock_whose(int fd)
{
    union any_address addr;
    struct ucred who = {.uid = 0};
    socklen_t size = sizeof(addr), who_size = sizeof(who);
    uint64_t net = 0;

    memset(&addr, 0, sizeof(addr));
    if (getpeername(fd, &addr.sa, &size) < 0)
        return 0;
    if (addr.sa.sa_family == AF_INET)
        return host_of(ntohl(addr.in.sin_addr.s_addr));
    if (addr.sa.sa_family == AF_INET6) {
        const struct in6_addr *in6 = &addr.in6.sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(in6))
            return host_of(ntohl(in6->s6_addr32[3]));
        if (IN6_IS_ADDR_LOOPBACK(in6))
            return 127;
        memcpy(&net, in6, sizeof(net));
        return net;
    }
    (void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_size);
    return who.uid;
}

static int make_socket(const struct place *place, struct vfmig_error *reterr)
{
    int one = 1, fd = socket(place->addr.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "socket: %s",
                               strerror(errno));
    if (place->addr.sa.sa_family != AF_UNIX) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    }
    return fd;
}

/* A socket file left behind by a process that is gone: nobody listens there any more. */
static bool stale(const struct place *place)
{
    const char *path = place->addr.un.sun_path;
    struct stat st;

    if (place->addr.sa.sa_family != AF_UNIX || lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    int fd = make_socket(place, NULL);
    if (fd < 0)
        return false;
    bool refused = connect(fd, &place->addr.sa, place->size) < 0 && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

static int listen_at(const struct place *place, const char *address, int *ret_fd, struct vfmig_error *reterr)
{
    int fd = make_socket(place, reterr);

    if (fd < 0)
        return fd;
    int r = bind(fd, &place->addr.sa, place->size);
    if (r < 0 && errno == EADDRINUSE && stale(place)) {
        unlink(place->addr.un.sun_path);
        r = bind(fd, &place->addr.sa, place->size);
    }
    if (r < 0 || listen(fd, VFMIG_MAX_KNOCKS) < 0) {
        r = failed(errno, "listen on", address, reterr);
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

int vfmig_sock_listen(const char *address, int *ret_fd, struct vfmig_error *reterr)
{
    struct place place;
    int r = parse(address, true, &place, reterr);

    return r < 0 ? r : listen_at(&place, address, ret_fd, reterr);
}

int vfmig_sock_listen_near(const char *address, int *ret_fd, struct vfmig_error *reterr)
{
    struct place place;
    int r = parse(address, true, &place, reterr);

    if (r == 0 && is_far(&place.addr.sa))
        return vfmig_error_set(reterr, -EREMOTE, VFMIG_ORIGIN_LOCAL, 0, "%.150s is off this host", address);
    return r < 0 ? r : listen_at(&place, address, ret_fd, reterr);
}

int vfmig_sock_address(int fd, char *buf, size_t size, struct vfmig_error *reterr)
{
    union any_address addr;
    socklen_t addr_size = sizeof(addr);
    char host[NI_MAXHOST], port[NI_MAXSERV];
    int n;

    memset(&addr, 0, sizeof(addr));
    if (getsockname(fd, &addr.sa, &addr_size) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "getsockname: %s",
                               strerror(errno));
    if (addr.sa.sa_family == AF_UNIX) {
        n = snprintf(buf, size, "unix:%s", addr.un.sun_path);
    } else {
        int r = getnameinfo(&addr.sa, addr_size, host, sizeof(host), port, sizeof(port),
                            NI_NUMERICHOST | NI_NUMERICSERV);
        if (r != 0)
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_KERNEL, 0, "getnameinfo: %s",
                                   gai_strerror(r));
        n = snprintf(buf, size, addr.sa.sa_family == AF_INET6 ? "tcp:[%s]:%s" : "tcp:%s:%s", host, port);
    }
    if (n < 0 || (size_t)n >= size)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0, "the address does not fit");
    return 0;
}

/* connect with a deadline: non-blocking for its time only. */
static int connect_until(int fd, const struct place *place, const char *address,
                         uint64_t deadline_ns, struct vfmig_error *reterr)
{
    int flags = fcntl(fd, F_GETFL), err = 0;
    socklen_t err_size = sizeof(err);

    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while (connect(fd, &place->addr.sa, place->size) < 0) {
        if (errno == EINPROGRESS) {
            if (vfmig_sock_wait(fd, POLLOUT, deadline_ns, NULL) < 0)
                return failed(ETIMEDOUT, "connect to", address, reterr);
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &err_size);
            if (err)
                return failed(err, "connect to", address, reterr);
            break;
        }
        /* A full backlog of a unix listener: it says EAGAIN and nothing tells when to retry. */
        if (errno == EAGAIN && vfmig_now_ns() < deadline_ns) {
            poll(NULL, 0, 1);
            continue;
        }
        if (errno != EINTR)
            return failed(errno, "connect to", address, reterr);
    }
    fcntl(fd, F_SETFL, flags);
    return 0;
}

int vfmig_sock_connect(const char *address, uint64_t deadline_ns, int *ret_fd,
                       struct vfmig_error *reterr)
{
    struct place place;
    int r = parse(address, false, &place, reterr);

    if (r < 0)
        return r;
    int fd = make_socket(&place, reterr);
    if (fd < 0)
        return fd;
    r = connect_until(fd, &place, address, deadline_ns, reterr);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

int vfmig_sock_accept(int listener, uint64_t deadline_ns, int *ret_fd, struct vfmig_error *reterr)
{
    int one = 1;

    for (;;) {
        int r = vfmig_sock_wait(listener, POLLIN, deadline_ns, reterr);
        if (r < 0)
            return r;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* fails on unix: fine */
            *ret_fd = fd;
            return 0;
        }
        if (errno != EINTR && errno != EAGAIN && errno != ECONNABORTED)
            return failed(errno, "accept", "a connection", reterr);
    }
}

int vfmig_sock_pair(int ret_fds[2], struct vfmig_error *reterr)
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_fds) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "socketpair: %s",
                               strerror(errno));
    return 0;
}
