/* SPDX-License-Identifier: BSD-3-Clause */
/* The client against a server that dies or answers carelessly. A relay between client and a good
 * server spoils one reply; the whole of a migration is played for every reply there is. Whatever
 * happens, the client says that the peer did it, does not hang and leaks nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/sock.h"
#include "served.h"
#include "wire/wire.h"

#define SECOND   UINT64_C(1000000000)
#define MESSAGE  (2u << 20)
#define RAM_SIZE 65536u

enum fault {
    FAULT_CLOSE,   /* dies before it answers */
    FAULT_SHORT,   /* three bytes of payload only */
    FAULT_JUNK,    /* payload of ones */
    FAULT_CUT,     /* dies in the middle of the answer */
    FAULT_TINY,    /* a size below the header's own */
    FAULT_HUGE,    /* a size beyond every limit */
    FAULT_ID,      /* answers something else */
    FAULT_COMMAND, /* the right id, another command */
    FAULT_TYPE,    /* neither command nor reply */
    FAULT_LONG,    /* more than there is room for */
    FAULT_ERROR0,  /* refuses with errno 0 */
    FAULT_FDS,     /* a descriptor with it */
    FAULT_COUNT
};

/* ---- the relay ---- */

struct relay {
    char path[64];          /* where the client connects */
    const char *server;     /* where it goes on */
    int listener;
    enum fault fault;
    unsigned at;            /* reply to be spoilt, from 1 */
    unsigned replies;       /* passed on so far */
    uint32_t spoilt;        /* its command, 0: that many replies did not come */
    bool refusal;           /* it was an error reply before */
    bool no_window;         /* device data by message */
    pthread_t thread;
};

struct end {
    int fd;
    struct vfmig_framer framer;
    void *buf;
};

static void end_open(struct end *e, int fd)
{
    e->fd = fd;
    e->buf = malloc(MESSAGE);
    vfmig_framer_init(&e->framer, e->buf, MESSAGE, MESSAGE);
}

static void end_close(struct end *e)
{
    vfmig_framer_done(&e->framer);
    close(e->fd);
    free(e->buf);
}

static bool take(struct end *e, struct vfmig_user_msg *msg)
{
    while (vfmig_framer_next(&e->framer, msg) != 1) {
        struct vfmig_fds fds = {.count = 0};
        size_t space;
        void *to = vfmig_framer_space(&e->framer, &space);
        ssize_t n = vfmig_sock_recv(e->fd, to, space, &fds, NULL, VFMIG_NEVER, NULL);
        if (n <= 0 || vfmig_framer_fed(&e->framer, (size_t)n, &fds) < 0)
            return false;
    }
    return true;
}

static bool give(struct end *e, const struct vfmig_user_header *h, const void *payload, size_t size,
                 const struct vfmig_fds *fds)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)h, sizeof(*h)}, {(void *)(uintptr_t)payload, size}};
    return vfmig_sock_send(e->fd, iov, 2, fds, VFMIG_NEVER, NULL, NULL) == 0;
}

/* False: the connection ends here. */
static bool give_spoilt(struct end *e, struct vfmig_user_msg *msg, enum fault fault)
{
    static uint8_t buf[MESSAGE + 64];
    struct vfmig_user_header h = msg->header;
    size_t size = msg->size;

    memcpy(buf, msg->payload, size);
    switch (fault) {
    case FAULT_CLOSE:
        return false;
    case FAULT_SHORT:
        size = size < 3 ? size : 3;
        break;
    case FAULT_JUNK:
        memset(buf, 0xff, size);
        break;
    case FAULT_CUT:
        give(e, &h, buf, size / 2, NULL);
        return size == 0; /* nothing to cut */
    case FAULT_LONG:
        memset(buf + size, 0, 64);
        size += 64;
        break;
    case FAULT_ID:
        h.id = (uint16_t)(h.id + 1000);
        break;
    case FAULT_COMMAND:
        h.command ^= 1;
        break;
    case FAULT_TYPE:
        h.flags = 3;
        break;
    case FAULT_ERROR0:
        h.flags = VFMIG_USER_TYPE_REPLY | VFMIG_USER_ERROR;
        h.error = 0;
        size = 0;
        break;
    case FAULT_FDS:
        msg->fds.fd[msg->fds.count++] = open("/dev/null", O_RDWR | O_CLOEXEC);
        break;
    case FAULT_TINY:
    case FAULT_HUGE:
    case FAULT_COUNT:
        break;
    }
    h.size = fault == FAULT_TINY   ? 8
             : fault == FAULT_HUGE ? 0x7fffffff
                                   : (uint32_t)(sizeof(h) + size);
    return give(e, &h, buf, size, &msg->fds);
}

static bool relay_one(struct relay *relay, struct end *client, struct end *server)
{
    struct vfmig_user_msg msg;
    bool good;

    if (!take(client, &msg))
        return false;
    good = give(server, &msg.header, msg.payload, msg.size, &msg.fds);
    vfmig_fds_close(&msg.fds);
    if (!good || (msg.header.flags & VFMIG_USER_NO_REPLY))
        return good;
    if (!take(server, &msg))
        return false;
    if (++relay->replies == relay->at) {
        relay->spoilt = msg.header.command;
        relay->refusal = msg.header.flags & VFMIG_USER_ERROR;
        good = give_spoilt(client, &msg, relay->fault);
    } else {
        good = give(client, &msg.header, msg.payload, msg.size, &msg.fds);
    }
    vfmig_fds_close(&msg.fds);
    return good;
}

static void *relay_main(void *arg)
{
    struct relay *relay = arg;
    struct end client, server;
    int fd;

    if (vfmig_sock_accept(relay->listener, VFMIG_NEVER, &fd, NULL) < 0)
        return NULL;
    end_open(&client, fd);
    if (vfmig_sock_connect(relay->server, VFMIG_NEVER, &fd, NULL) == 0) {
        end_open(&server, fd);
        while (relay_one(relay, &client, &server))
            ;
        end_close(&server);
    }
    end_close(&client);
    return NULL;
}

/* ---- one migration ---- */

struct scene {
    int ram, irq;
    uint8_t *buf;
    size_t room;
};

static int save_some(struct vfmig_target *t, const struct scene *s, struct vfmig_error *err)
{
    ssize_t n;

    for (unsigned i = 0; i < 200; i++)
        if ((n = t->ops->save(t, s->buf, s->room, err)) <= 0)
            return (int)n;
    return 0;
}

#define STEP(call) \
    if ((r = (call)) < 0) \
        return r;

static int play(struct vfmig_target *t, const struct scene *s, struct vfmig_error *err)
{
    const struct vfmig_iova_range range = {0, RAM_SIZE};
    uint64_t bits[1] = {0}, value = 1;
    enum vfmig_state now;
    struct vfmig_handle handle;
    uint32_t count;
    int r;

    STEP(t->ops->dma_map(t, 0, RAM_SIZE, s->ram, 0, 3, err));
    STEP(t->ops->set_irqs(t, 2, 0, 1, &s->irq, err));
    STEP(t->ops->region_write(t, 0, 0, &value, 4, false, err));
    STEP(t->ops->region_write(t, 0, 0, &value, 4, true, err));
    STEP(t->ops->region_read(t, 0, 0, &value, 4, err));
    STEP(t->ops->log_start(t, 4096, &range, 1, err));
    STEP(t->ops->set_state(t, VFMIG_STATE_PRE_COPY, SECOND, err));
    STEP((int)t->ops->save(t, s->buf, s->room, err));
    STEP(t->ops->left(t, &value, err));
    STEP(t->ops->log_report(t, 0, RAM_SIZE, 4096, bits, err));
    STEP(t->ops->set_state(t, VFMIG_STATE_STOP_COPY, SECOND, err));
    STEP(save_some(t, s, err));
    STEP(t->ops->log_stop(t, err));
    STEP(t->ops->reset(t, err));
    STEP(t->ops->set_state(t, VFMIG_STATE_RESUMING, SECOND, err));
    STEP(t->ops->load(t, "state", 5, err));
    STEP(t->ops->get_handles(t, &handle, 1, &count, err));
    STEP(t->ops->set_handles(t, &(struct vfmig_handle){VFMIG_HANDLE_IMS, 5, 9}, 1, err));
    STEP(t->ops->reset(t, err));
    STEP(t->ops->get_state(t, &now, err));
    STEP(t->ops->set_irqs(t, 2, 0, 1, NULL, err));
    STEP(t->ops->dma_unmap(t, 0, RAM_SIZE, err));
    return 0;
}

/* The whole of it with one reply spoilt. True when that reply came at all. */
static bool one(struct relay *relay, const struct scene *scene, enum vfmig_dialect dialect,
                enum fault fault, unsigned at)
{
    const struct vfmig_user_options opt = {
        .dialect = dialect, .no_twin = true, .no_window = relay->no_window,
        .timeout_ns = SECOND * 5, .reset_ns = SECOND * 5};
    struct vfmig_target *t = NULL;
    struct vfmig_error err = {.code = 0};
    uint32_t word;

    relay->fault = fault;
    relay->at = at;
    relay->replies = relay->spoilt = 0;
    pthread_create(&relay->thread, NULL, relay_main, relay);
    int r = vfmig_user_open(relay->path, &opt, &t, &err);
    bool opened = r == 0;
    if (r == 0)
        r = play(t, scene, &err);
    bool fatal = fault == FAULT_CLOSE || (fault >= FAULT_TINY && fault <= FAULT_TYPE);
    if (opened && fatal && relay->spoilt)
        assert_true(t->ops->region_read(t, 0, 0, &word, 4, NULL) < 0); /* it stays lost */
    if (opened)
        t->ops->close(t);
    pthread_join(relay->thread, NULL);
    if (relay->spoilt == 0) {
        if (r < 0)
            fail_msg("without a fault: %s", err.text);
        return false;
    }
    /* What is missing or too much in an answer that only says "done" may be overlooked. */
    if (fault == FAULT_LONG)
        fatal = relay->spoilt != VFMIG_USER_MIG_DATA_READ && !relay->refusal;
    if (fault == FAULT_SHORT)
        fatal = relay->spoilt == VFMIG_USER_GET_INFO ||
                relay->spoilt == VFMIG_USER_GET_REGION_INFO ||
                relay->spoilt == VFMIG_USER_GET_IRQ_INFO ||
                relay->spoilt == VFMIG_USER_REGION_READ || relay->spoilt == VFMIG_USER_VERSION;
    if (fatal && r == 0)
        fail_msg("fault %d at reply %u (%s) went unnoticed", fault, at,
                 vfmig_user_command_name(relay->spoilt));
    if (r < 0 && err.origin != VFMIG_ORIGIN_PEER && fault != FAULT_ERROR0 && fault != FAULT_JUNK &&
        fault != FAULT_SHORT)
        fail_msg("fault %d at reply %u (%s): blames %s: %s", fault, at,
                 vfmig_user_command_name(relay->spoilt), vfmig_origin_name(err.origin), err.text);
    if (r < 0)
        assert_true(err.code == r && err.text[0] != 0);
    return true;
}

static void spoil_every_reply(enum vfmig_dialect dialect, bool no_window)
{
    int before = open_descriptors();
    struct served served;
    struct relay relay = {.server = served.path, .no_window = no_window};
    struct scene scene = {.room = 2u << 20};

    scene.ram = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(scene.ram, RAM_SIZE), 0);
    scene.irq = eventfd(0, EFD_CLOEXEC);
    scene.buf = malloc(scene.room);
    served_start(&served, true, true, true);
    served_path(relay.path, sizeof(relay.path));
    assert_int_equal(vfmig_sock_listen(relay.path, &relay.listener, NULL), 0);
    /* The first kinds at every reply, the others at every third one, each kind at another third. */
    for (enum fault fault = 0; fault < FAULT_COUNT; fault++) {
        unsigned step = fault <= FAULT_JUNK ? 1 : 3, at = fault <= FAULT_JUNK ? 1 : 1 + fault % 3;
        while (one(&relay, &scene, dialect, fault, at))
            at += step;
        assert_true(at > 40);
    }
    close(relay.listener);
    unlink(relay.path);
    served_end(&served);
    free(scene.buf);
    close(scene.ram);
    close(scene.irq);
    assert_int_equal(open_descriptors(), before);
}

static void feature(void **state)
{
    spoil_every_reply(VFMIG_DIALECT_FEATURE, false);
}

static void feature_by_message(void **state)
{
    spoil_every_reply(VFMIG_DIALECT_FEATURE, true);
}

static void region(void **state)
{
    spoil_every_reply(VFMIG_DIALECT_REGION, false);
}

static void region_by_message(void **state)
{
    spoil_every_reply(VFMIG_DIALECT_REGION, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(feature),
        cmocka_unit_test(feature_by_message),
        cmocka_unit_test(region),
        cmocka_unit_test(region_by_message),
    };
    return cmocka_run_group_tests(tests, served_setup, served_teardown);
}
