/* SPDX-License-Identifier: BSD-3-Clause */
/* The programs as a user starts them: the example, and vfmig device. */
#include "peer.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices/dma_regs.h"

static const char *example, *vfmig, *two_devices;
static char path[2][64];

static pid_t spawn(const char *const *argv)
{
    pid_t pid = fork();

    if (pid == 0) {
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

/* Connects once the program listens; it must not end before. */
static int connect_to(pid_t pid, const char *to)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), status;

    strcpy(addr.sun_path, to);
    while (connect(fd, (void *)&addr, sizeof(addr)) < 0) {
        assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
        usleep(1000);
    }
    return fd;
}

static void bye(struct peer *p, pid_t pid)
{
    int status;

    close(p->fd);
    free(p->reply);
    kill(pid, SIGTERM);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static struct peer hello(pid_t pid, const char *to)
{
    struct peer p = {.fd = connect_to(pid, to), .twin = -1, .reply = malloc(PEER_REPLY_MAX)};
    assert_int_equal(peer_version(&p, NULL), 0);
    return p;
}

static void move_register(const char *const *from, const char *const *to, uint64_t offset)
{
    pid_t pids[2] = {spawn(from), spawn(to)};
    struct peer a = hello(pids[0], path[0]), b = hello(pids[1], path[1]);
    uint8_t *data;

    assert_int_equal(peer_put(&a, 0, offset, 0xfeedfacecafebeef, 8), 0);
    assert_int_equal(peer_set_v2(&a, VFMIG_STATE_STOP_COPY), 0);
    size_t size = peer_save_v2(&a, &data, 4096);
    assert_int_equal(peer_set_v1(&b, 4), 0);
    assert_int_equal(peer_load_v1(&b, data, size, 4096), 0);
    assert_int_equal(peer_set_v1(&b, 1), 0);
    assert_int_equal(peer_get(&b, 0, offset, 8), 0xfeedfacecafebeef);
    bye(&a, pids[0]);
    bye(&b, pids[1]);
    assert_int_equal(access(path[0], F_OK), -1);
    free(data);
}

static void the_example_migrates(void **state)
{
    const char *a[] = {example, path[0], NULL}, *b[] = {example, path[1], NULL};
    move_register(a, b, 0);
}

/* From one of its devices to the other. The write is under way when the state write comes: stop
 * waits for it, so the state has it. */
static void two_devices_answer_later(void **state)
{
    const char *argv[] = {two_devices, path[0], path[1], NULL};
    pid_t pid = spawn(argv);
    struct peer a = hello(pid, path[0]), b = hello(pid, path[1]);
    struct {
        struct vfmig_user_region_access access;
        uint64_t value;
    } VFMIG_PACKED req = {{0, 0, 8}, 0xfeedfacecafebeef};
    uint8_t *data;

    uint16_t id = peer_send(&a, VFMIG_USER_REGION_WRITE, 0, &req, sizeof(req), NULL, 0);
    peer_post(&a, VFMIG_REGION_MIGRATION, 0, 2, 4);
    assert_int_equal(peer_get(&b, 0, 0, 8), 0); /* is served meanwhile */
    assert_int_equal(peer_wait(&a, id), 0);
    while (peer_get_v1(&a) != 2)
        ;
    size_t size = peer_save_v2(&a, &data, 4096);
    assert_int_equal(peer_set_v1(&b, 4), 0);
    assert_int_equal(peer_load_v1(&b, data, size, 4096), 0);
    assert_int_equal(peer_set_v1(&b, 1), 0);
    assert_int_equal(peer_get(&b, 0, 0, 8), 0xfeedfacecafebeef);
    close(a.fd);
    free(a.reply);
    bye(&b, pid);
    free(data);
}

static void vfmig_device_migrates(void **state)
{
    const char *a[] = {vfmig, "device", "dma", "--socket", path[0], "--no-ndma", NULL};
    const char *b[] = {vfmig, "device", "dma", "--socket", path[1], "--state-size", "1M", NULL};
    move_register(a, b, DMA_REG_SCRATCH);
}

static void a_knob_that_makes_a_step_fail(void **state)
{
    const char *a[] = {vfmig, "device", "dma", "--socket", path[0], "--fail", "save_begin=EPERM",
                       "--fail-at", "2", NULL};
    pid_t pid = spawn(a);
    struct peer p = hello(pid, path[0]);

    assert_int_equal(peer_set_v2(&p, VFMIG_STATE_PRE_COPY), 0);
    assert_int_equal(peer_set_v2(&p, VFMIG_STATE_STOP_COPY), -EPERM);
    assert_int_equal(peer_reset(&p), 0);
    assert_int_equal(peer_set_v2(&p, VFMIG_STATE_STOP_COPY), 0);
    bye(&p, pid);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_migrates),
        cmocka_unit_test(two_devices_answer_later),
        cmocka_unit_test(vfmig_device_migrates),
        cmocka_unit_test(a_knob_that_makes_a_step_fail),
    };

    if (argc != 4)
        return 2;
    example = argv[1];
    vfmig = argv[2];
    two_devices = argv[3];
    for (unsigned i = 0; i < 2; i++)
        snprintf(path[i], sizeof(path[i]), "/tmp/vfmig-programs-%d-%u.sock", (int)getpid(), i);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
