/* SPDX-License-Identifier: BSD-3-Clause */
/* The stall limit of a channel is waited out in parts, and a part that went by while this process stood still
 * itself is one part like the others. That one went by is what the calls of the test say: nothing is waited for. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "io/sock.h"
#include "mover_rig.h"

#define STALL_NS UINT64_C(8000000000)
#define PART_S   1

/* In which call so many parts go by in silence before the socket is asked; what a peer says then. */
static enum call { IN_RECVMSG, IN_PPOLL, IN_SENDMSG } silent_call;
static unsigned silent_parts, parts_seen;
static int late_fd = -1;
static const uint8_t *late_data;
static size_t late_size;

static bool part_goes_by(enum call call)
{
    if (call != silent_call)
        return false;
    if (parts_seen < silent_parts) {
        parts_seen++;
        return true;
    }
    if (late_fd >= 0) {
        assert_int_equal(send(late_fd, late_data, late_size, 0), late_size);
        late_fd = -1;
    }
    return false;
}

int __real_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask)
{
    assert_true(limit && limit->tv_sec <= PART_S);
    return part_goes_by(IN_PPOLL) ? 0 : __real_ppoll(fds, count, limit, mask);
}

/* One that does not wait asks for what is there. */
ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags)
{
    if (flags & MSG_DONTWAIT || !part_goes_by(IN_RECVMSG))
        return __real_recvmsg(fd, msg, flags);
    errno = EAGAIN;
    return -1;
}

ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    if (!part_goes_by(IN_SENDMSG))
        return __real_sendmsg(fd, msg, flags);
    errno = EAGAIN;
    return -1;
}

static void parts_go_by(enum call call, unsigned count)
{
    silent_call = call;
    parts_seen = 0;
    silent_parts = count;
}

static struct rig_channels channels;
static struct rig_memory memory;

static int setup(void **state)
{
    static const uint64_t pages[] = {64, 1};

    rig_channels_init(&channels, 1, /* tcp= */ false);
    rig_memory_init(&memory, pages);
    assert_int_equal(vfmig_channel_set_stall(channels.source[0], STALL_NS, NULL), 0);
    assert_int_equal(vfmig_channel_set_stall(channels.dest[0], STALL_NS, NULL), 0);
    vfmig_channel_set_memory(channels.dest[0], &memory.memory);
    parts_go_by(IN_RECVMSG, 0);
    late_fd = -1;
    return 0;
}

static int teardown(void **state)
{
    rig_memory_done(&memory);
    rig_channels_done(&channels);
    return 0;
}

static void who_hears_nothing_in_some_parts_listens_on(void **state)
{
    struct vfmig_record record;

    assert_int_equal(vfmig_channel_send(channels.source[0], VFMIG_RECORD_BYE, NULL, 0, NULL), 0);
    parts_go_by(IN_RECVMSG, VFMIG_STALL_PARTS - 1);
    assert_int_equal(vfmig_channel_recv(channels.dest[0], &record, NULL), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_BYE);
    assert_int_equal(parts_seen, VFMIG_STALL_PARTS - 1);
}

static void who_hears_nothing_in_all_parts_gives_up(void **state)
{
    struct vfmig_record record;
    struct vfmig_error error = {0};

    parts_go_by(IN_RECVMSG, VFMIG_STALL_PARTS + 1);
    assert_int_equal(vfmig_channel_recv(channels.dest[0], &record, &error), -ETIMEDOUT);
    assert_int_equal(parts_seen, VFMIG_STALL_PARTS);
    assert_non_null(strstr(error.text, "sent no byte"));
}

/* The rest of a record of pages is waited for in ppoll. */
static void a_record_that_is_cut_by_silence_is_waited_for(void **state)
{
    static uint8_t bytes[64 << 10];
    const struct vfmig_page_run run = {.page_count = 4};
    struct vfmig_record record;
    struct vfmig_channel *writer, *copy;
    int fds[2];

    rig_pair(/* tcp= */ false, fds);
    assert_int_equal(vfmig_channel_new(fds[0], 0, VFMIG_SIDE_SOURCE, &writer, NULL), 0);
    assert_int_equal(vfmig_channel_new(fds[1], 0, VFMIG_SIDE_DEST, &copy, NULL), 0);
    memset(memory.memory.blocks[0].host, 0x5a, 4 * VFMIG_PAGE_SIZE);
    assert_int_equal(vfmig_channel_send_pages(writer, &memory.memory, &run, 1, NULL), 0);
    assert_int_equal(vfmig_channel_send(writer, VFMIG_RECORD_BYE, NULL, 0, NULL), 0);
    ssize_t size = 0, got;
    while ((got = recv(fds[1], bytes + size, sizeof(bytes) - (size_t)size, MSG_DONTWAIT)) > 0)
        size += got;
    ssize_t head = VFMIG_RECORD_HEAD_BYTES + VFMIG_RUNS_PREFIX_BYTES + 100;
    assert_true(size > head);
    int out = vfmig_channel_fd(channels.source[0]);
    assert_int_equal(send(out, bytes, (size_t)head, 0), head);
    late_fd = out;
    late_data = bytes + head;
    late_size = (size_t)(size - head);
    parts_go_by(IN_PPOLL, VFMIG_STALL_PARTS - 1);
    assert_int_equal(vfmig_channel_recv(channels.dest[0], &record, NULL), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_BYE);
    assert_int_equal(parts_seen, VFMIG_STALL_PARTS - 1);
    vfmig_channel_free(writer);
    vfmig_channel_free(copy);
}

static void who_takes_nothing_in_some_parts_is_waited_for(void **state)
{
    struct vfmig_record record;
    struct vfmig_error error = {0};

    parts_go_by(IN_SENDMSG, VFMIG_STALL_PARTS - 1);
    assert_int_equal(vfmig_channel_send(channels.source[0], VFMIG_RECORD_BYE, NULL, 0, NULL), 0);
    assert_int_equal(parts_seen, VFMIG_STALL_PARTS - 1);
    assert_int_equal(vfmig_channel_recv(channels.dest[0], &record, NULL), 0);
    parts_go_by(IN_SENDMSG, VFMIG_STALL_PARTS + 1);
    assert_int_equal(vfmig_channel_send(channels.dest[0], VFMIG_RECORD_BYE, NULL, 0, &error), -ETIMEDOUT);
    assert_int_equal(parts_seen, VFMIG_STALL_PARTS);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(who_hears_nothing_in_some_parts_listens_on),
        TEST(who_hears_nothing_in_all_parts_gives_up),
        TEST(a_record_that_is_cut_by_silence_is_waited_for),
        TEST(who_takes_nothing_in_some_parts_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
