/* SPDX-License-Identifier: BSD-3-Clause */
/* Who says HELLO a byte at a time has as much time as who says nothing. The clock is the test's. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <time.h>

#include "io/sock.h"
#include "mover_rig.h"

#define STALL_NS UINT64_C(40000000000) /* a greeting has a quarter of it */
#define STEPS    16u                   /* of that quarter, one a byte; HELLO has more bytes */
#define STEP_NS  (STALL_NS / 4 / STEPS)

_Static_assert(VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES > 2 * STEPS,
               "too few bytes to be late with");

static _Atomic uint64_t passed_ns;

int __real_clock_gettime(clockid_t clock, struct timespec *ret_ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret_ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret_ts)
{
    int rc = __real_clock_gettime(clock, ret_ts);
    uint64_t ns = (uint64_t)ret_ts->tv_nsec + atomic_load(&passed_ns);

    ret_ts->tv_sec += (time_t)(ns / 1000000000u);
    ret_ts->tv_nsec = (long)(ns % 1000000000u);
    return rc;
}

struct door {
    int fd;
    pthread_t thread;
    uint8_t id[16];
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    uint32_t count;
    int rc;
    struct vfmig_error error;
};

static int next_fd(void *user, struct vfmig_error *reterr)
{
    struct door *door = user;
    int fd = door->fd;

    door->fd = -1;
    return fd >= 0 ? fd
                   : vfmig_error_set(reterr, -ENOTCONN, VFMIG_ORIGIN_LOCAL, 0,
                                     "nobody knocks any more");
}

static void *accept_main(void *opaque)
{
    struct door *door = opaque;
    const struct vfmig_dial dial = {.next_fd = next_fd, .user = door, .stall_ns = STALL_NS};

    door->rc = vfmig_channels_accept(&dial, door->id, door->channels, &door->count, &door->error);
    return NULL;
}

/* False: the other end has closed it. */
static bool say(int fd, const uint8_t *byte)
{
    int unread = 1;

    if (send(fd, byte, 1, MSG_NOSIGNAL) < 0)
        return false;
    while (unread) {
        struct pollfd look = {.fd = fd, .events = POLLIN};
        if (ioctl(fd, SIOCOUTQ, &unread) < 0 || (poll(&look, 1, 0) == 1 && look.revents & POLLHUP))
            return false;
        sched_yield();
    }
    return true;
}

static size_t hello(uint8_t out[VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES])
{
    const struct vfmig_hello ours = {.version_min = VFMIG_STREAM_VERSION,
                                     .version_max = VFMIG_STREAM_VERSION,
                                     .channel_count = 1,
                                     .page_size = VFMIG_PAGE_SIZE};
    struct vfmig_channel *channel;
    uint8_t payload[VFMIG_HELLO_BYTES];
    int pair[2];

    vfmig_hello_encode(payload, &ours);
    rig_pair(/* tcp= */ false, pair);
    assert_int_equal(vfmig_channel_new(pair[0], 0, VFMIG_SIDE_SOURCE, &channel, NULL), 0);
    assert_int_equal(
        vfmig_channel_send(channel, VFMIG_RECORD_HELLO, payload, sizeof(payload), NULL), 0);
    ssize_t size = recv(pair[1], out, VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES, 0);
    vfmig_channel_free(channel);
    close(pair[1]);
    return (size_t)size;
}

static void a_greeting_that_trickles(void **state)
{
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES + VFMIG_HELLO_BYTES];
    size_t size = hello(bytes), said = 0;
    static struct door door;
    int pair[2];

    assert_int_equal(size, sizeof(bytes));
    rig_pair(/* tcp= */ false, pair);
    door.fd = pair[1];
    assert_int_equal(pthread_create(&door.thread, NULL, accept_main, &door), 0);
    for (; said < size && say(pair[0], &bytes[said]); said++)
        atomic_fetch_add(&passed_ns, STEP_NS);
    close(pair[0]);
    pthread_join(door.thread, NULL);
    if (door.rc == 0)
        vfmig_channel_free(door.channels[0]);
    assert_int_equal(door.rc, -ETIMEDOUT);
    assert_string_equal(door.error.text,
                        "the peer's greeting on channel 0 took longer than the time limit");
    assert_in_range(said, STEPS / 2, 2 * STEPS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_greeting_that_trickles),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
