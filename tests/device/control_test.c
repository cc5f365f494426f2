/* SPDX-License-Identifier: BSD-3-Clause */
/* A migration engine beside the VMM that owns the device (docs/control.md). */
#include "peer.h"
#include "toy.h"

#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MIG VFMIG_REGION_MIGRATION
#define GET VFMIG_USER_FEATURE_GET
#define SET VFMIG_USER_FEATURE_SET

static struct toy *toy;
static struct peer *owner, *control;
static char path[sizeof("/tmp/vfmig-control-XXXXXX") + 8];

static struct peer *join(const char *token)
{
    int err;
    struct peer *p = peer_control(path, token, &err);

    assert_int_equal(err, 0);
    return p;
}

static void leave(void)
{
    if (control)
        peer_leave(control);
    control = NULL;
}

static int refused(const char *token)
{
    int err;

    assert_null(peer_control(path, token, &err));
    return err;
}

static int open_toy(uint64_t drain_timeout_ns)
{
    char dir[] = "/tmp/vfmig-control-XXXXXX";

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/c", dir);
    toy = toy_new(true, true, true, drain_timeout_ns);
    assert_int_equal(vfmig_device_listen_control(toy->dev, path, NULL), 0);
    owner = peer_start(toy->dev);
    assert_int_equal(peer_version(owner, NULL), 0);
    peer_map_ram(owner);
    return 0;
}

static int start(void **state)
{
    open_toy(0);
    control = join("token");
    return 0;
}

static void close_owner(void)
{
    peer_end(owner);
    toy_free(toy);
    *strrchr(path, '/') = 0;
    rmdir(path);
}

static int stop(void **state)
{
    if (control)
        leave();
    close_owner();
    return 0;
}

static int set_switch(struct peer *p, uint32_t feature, uint32_t value)
{
    struct vfmig_user_feature_switch sw = {value, 0};
    return peer_feature(p, SET | feature, &sw, sizeof(sw));
}

static uint32_t get_switch(struct peer *p, uint32_t feature)
{
    struct vfmig_user_feature_switch sw;

    assert_int_equal(peer_feature(p, GET | feature, NULL, 0), 0);
    memcpy(&sw, p->reply + 8, sizeof(sw));
    return sw.value;
}

/* The server has noticed that the control client left, when the owner may write the state again. */
static void wait_until_left(void)
{
    int r;

    while ((r = peer_set_v2(owner, peer_get_v2(owner))) == -EBUSY)
        ;
    assert_int_equal(r, 0);
}

static void each_client_has_its_rights(void **state)
{
    uint8_t byte[8] = {0};
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    struct vfmig_user_set_irqs irqs = {
        sizeof(irqs), VFMIG_USER_IRQ_DATA_NONE | VFMIG_USER_IRQ_ACTION_TRIGGER, VFMIG_IRQ_MSIX};

    assert_int_equal(peer_call(control, VFMIG_USER_GET_INFO, &info, sizeof(info)), 0);
    assert_int_equal(peer_get(control, VFMIG_REGION_CONFIG, 0, 4), 0x7fdf1b36);
    assert_int_equal(peer_get_v1(control), 1);
    /* The device is the owner's ... */
    assert_int_equal(peer_read(control, 0, TOY_SCRATCH, byte, 8), -EPERM);
    assert_int_equal(peer_write(control, 0, TOY_SCRATCH, byte, 8), -EPERM);
    assert_int_equal(peer_write(control, VFMIG_REGION_CONFIG, 4, byte, 2), -EPERM);
    assert_int_equal(peer_map(control, 0, 4096, -1, 0, 3), -EPERM);
    assert_int_equal(peer_unmap(control, RAM_IOVA, RAM_SIZE), -EPERM);
    assert_int_equal(peer_call(control, VFMIG_USER_SET_IRQS, &irqs, sizeof(irqs)), -EPERM);
    /* ... and the migration the control client's. */
    assert_int_equal(peer_set_v2(owner, VFMIG_STATE_STOP), -EBUSY);
    assert_int_equal(peer_set_v1(owner, 3), -EBUSY);
    assert_int_equal(peer_log_start(owner, 4096, RAM_IOVA, RAM_SIZE), -EBUSY);
    assert_int_equal(peer_read(owner, MIG, 8, byte, 8), -EBUSY);
    assert_int_equal(set_switch(owner, VFMIG_USER_F_HOLD, 1), -EPERM);
    assert_int_equal(peer_get_v2(owner), VFMIG_STATE_RUNNING);
    assert_int_equal(peer_put(owner, 0, TOY_SCRATCH, 5, 8), 0);
    leave();
    wait_until_left();
    assert_int_equal(peer_set_v2(owner, VFMIG_STATE_STOP), 0);
}

static void a_token_is_needed_and_one_session_is_open(void **state)
{
    leave();
    assert_int_equal(refused(""), -EINVAL);
    control = join("one");
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP), 0);
    leave();
    assert_int_equal(refused("two"), -EBUSY);
    control = join("one");
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_STOP);
}

static void gone_before_s_the_device_runs_again(void **state)
{
    static const uint32_t states[] = {VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_PRE_COPY,
                                      VFMIG_STATE_PRE_COPY_NDMA};
    uint64_t bitmap[RAM_SIZE / 4096 / 64];

    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(peer_log_start(control, 4096, RAM_IOVA, RAM_SIZE), 0);
        assert_int_equal(set_switch(control, VFMIG_USER_F_DMA_MODE, 1), 0);
        assert_int_equal(peer_set_v2(control, states[i]), 0);
        leave();
        wait_until_left();
        assert_int_equal(peer_get_v2(owner), VFMIG_STATE_RUNNING);
        uint64_t value = 0x1234 + i; /* mapped DMA works again */
        assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA, &value, 8), 0);
        assert_memory_equal(owner->ram, &value, 8);
        /* and the log is off */
        assert_int_equal(peer_log_report(owner, RAM_IOVA, RAM_SIZE, 4096, bitmap), -EINVAL);
        control = join("next");
    }
}

static void gone_while_the_device_drains(void **state)
{
    assert_int_equal(peer_put(owner, 0, TOY_BEGIN, 1, 4), 0);
    struct vfmig_user_feature_state to = {VFMIG_STATE_RUNNING_NDMA, 0};
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED req = {{sizeof(req), SET | VFMIG_USER_F_DEVICE_STATE}, to};
    peer_send(control, VFMIG_USER_FEATURE, 0, &req, sizeof(req), NULL, 0);
    while (vfmig_device_dma_write(toy->dev, RAM_IOVA, &to, 8) != -EAGAIN)
        ; /* until the gate is shut */
    leave();
    assert_int_equal(peer_put(owner, 0, TOY_END, 1, 4), 0);
    wait_until_left();
    assert_int_equal(peer_get_v2(owner), VFMIG_STATE_RUNNING);
    assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA, &to, 8), 0);
}

/* S: the stream goes on where it was. */
static void gone_in_s_another_client_goes_on(void **state)
{
    struct vfmig_user_mig_data req = {sizeof(req) + 4096, 4096};
    uint8_t *rest, *all;

    assert_int_equal(peer_put(owner, 0, TOY_SCRATCH, 0xabcdef, 8), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    assert_int_equal(peer_call(control, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), 0);
    uint32_t first = control->reply_size - 8;
    all = malloc(PEER_REPLY_MAX);
    memcpy(all, control->reply + 8, first);
    leave();
    assert_int_equal(refused("thief"), -EBUSY);
    assert_int_equal(peer_get_v2(owner), VFMIG_STATE_STOP_COPY);
    assert_int_equal(peer_set_v2(owner, VFMIG_STATE_RUNNING), -EBUSY);
    control = join("token");
    size_t more = peer_save_v2(control, &rest, 4096);
    memcpy(all + first, rest, more);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(peer_load_v2(control, all, first + more, 4096), 0);
    leave(); /* Z stays too */
    assert_int_equal(refused("thief"), -EBUSY);
    assert_int_equal(peer_get_v2(owner), VFMIG_STATE_RESUMING);
    control = join("token");
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(peer_get(owner, 0, TOY_SCRATCH, 8), 0xabcdef);
    free(rest);
    free(all);
}

static void the_owners_reset_ends_the_session(void **state)
{
    struct vfmig_user_mig_data req = {sizeof(req) + 4096, 4096};
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED set = {{sizeof(set), SET | VFMIG_USER_F_DEVICE_STATE}, {VFMIG_STATE_STOP, 0}};
    uint64_t value = 0;

    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    assert_int_equal(peer_reset(owner), 0);
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_RUNNING);
    assert_int_equal(peer_call(control, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)),
                     -ECONNABORTED);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP), -ECONNABORTED);
    leave();
    control = join("new");
    /* With a state write open, that one hears of it. */
    assert_int_equal(peer_put(owner, 0, TOY_BEGIN, 1, 4), 0);
    uint16_t id = peer_send(control, VFMIG_USER_FEATURE, 0, &set, sizeof(set), NULL, 0);
    while (vfmig_device_dma_write(toy->dev, RAM_IOVA, &value, 8) != -EAGAIN)
        ;
    assert_int_equal(peer_reset(owner), 0);
    assert_int_equal(peer_wait(control, id), -ECANCELED);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP), -ECONNABORTED);
    assert_int_equal(peer_get_v2(owner), VFMIG_STATE_RUNNING);
}

static void the_owner_goes_away(void **state)
{
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    peer_end(owner);
    owner = peer_start(toy->dev);
    assert_int_equal(peer_version(owner, NULL), 0);
    assert_int_equal(peer_get_v2(owner), VFMIG_STATE_RUNNING);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP), -ECONNABORTED);
    leave();
    control = join("new");
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP), 0);
}

/* Its reset is for the device's own state; config space and MSI-X are the owner's (C46-C49). */
static void its_reset_leaves_the_owners_state(void **state)
{
    assert_int_equal(peer_put(owner, VFMIG_REGION_CONFIG, 4, 0x6, 2), 0);
    assert_int_equal(peer_put(owner, 0, TOY_TABLE + 8, 0x4711, 4), 0);
    assert_int_equal(peer_put(owner, 0, TOY_SCRATCH, 7, 8), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(peer_reset(control), 0);
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_RUNNING);
    assert_int_equal(peer_get(owner, VFMIG_REGION_CONFIG, 4, 2), 0x6);
    assert_int_equal(peer_get(owner, 0, TOY_TABLE + 8, 4), 0x4711);
    assert_int_equal(peer_get(owner, 0, TOY_SCRATCH, 8), 0);
    assert_int_equal(peer_reset(owner), 0);
    assert_int_equal(peer_get(owner, VFMIG_REGION_CONFIG, 4, 2), 0);
}

static void freeze_answers_accesses(void **state)
{
    int vector = peer_vector(owner, 1);
    uint64_t value = 1;

    assert_int_equal(peer_put(owner, 0, TOY_SCRATCH, 0x55, 8), 0);
    assert_int_equal(set_switch(control, VFMIG_USER_F_FREEZE, 1), 0);
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_RUNNING_NDMA);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    assert_int_equal(peer_get(owner, 0, TOY_SCRATCH, 8), 0x55);
    assert_int_equal(peer_put(owner, 0, TOY_SCRATCH, 0x66, 8), 0);
    assert_int_equal(peer_put(owner, 0, TOY_IRQ, 1, 4), 0);
    assert_int_equal(peer_irqs(vector), 0);
    assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA, &value, 8), -EAGAIN);
    assert_int_equal(set_switch(control, VFMIG_USER_F_FREEZE, 0), 0);
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_RUNNING);
    assert_int_equal(peer_get(owner, 0, TOY_SCRATCH, 8), 0x66);
    assert_int_equal(peer_irqs(vector), 1);
    assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA, &value, 8), 0);
    /* One that runs again is not frozen, however it came to. */
    assert_int_equal(get_switch(control, VFMIG_USER_F_FREEZE), 0);
    assert_int_equal(set_switch(control, VFMIG_USER_F_FREEZE, 1), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(get_switch(control, VFMIG_USER_F_FREEZE), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(set_switch(control, VFMIG_USER_F_FREEZE, 0), -EINVAL);
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_RESUMING);
    assert_int_equal(peer_reset(control), 0);
    /* Not frozen, a stopped device is silent. */
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP), 0);
    assert_int_equal(peer_get(owner, 0, TOY_SCRATCH, 8), UINT64_MAX);
    assert_int_equal(set_switch(control, VFMIG_USER_F_FREEZE, 1), -EINVAL);
    close(vector);
}

static void dma_by_message_on_demand(void **state)
{
    struct vfmig_user_header h;
    struct vfmig_user_dma_access access;
    uint64_t value;

    assert_int_equal(peer_put(owner, 0, TOY_IOVA, RAM_IOVA + 64, 8), 0);
    assert_int_equal(peer_put(owner, 0, TOY_VALUE, 0x99, 8), 0);
    assert_int_equal(set_switch(control, VFMIG_USER_F_DMA_MODE, 1), 0);
    assert_int_equal(get_switch(control, VFMIG_USER_F_DMA_MODE), 1);
    peer_post(owner, 0, TOY_ASYNC, 1, 4);
    assert_int_equal(recv(owner->fd, &h, sizeof(h), MSG_WAITALL), sizeof(h));
    assert_int_equal(h.command, VFMIG_USER_DMA_WRITE);
    assert_int_equal(recv(owner->fd, &access, sizeof(access), MSG_WAITALL), sizeof(access));
    assert_int_equal(access.address, RAM_IOVA + 64);
    assert_int_equal(recv(owner->fd, &value, 8, MSG_WAITALL), 8);
    assert_int_equal(value, 0x99);
    assert_int_equal(owner->ram[64], 0);
    h.flags = VFMIG_USER_TYPE_REPLY;
    h.size = sizeof(h) + sizeof(access);
    assert_int_equal(send(owner->fd, &h, sizeof(h), MSG_MORE), sizeof(h));
    assert_int_equal(send(owner->fd, &access, sizeof(access), 0), sizeof(access));
    assert_int_equal(set_switch(control, VFMIG_USER_F_DMA_MODE, 0), 0);
    assert_int_equal(peer_put(owner, 0, TOY_ASYNC, 1, 4), 0);
    assert_int_equal(owner->ram[64], 0x99);
}

static void dirty_pages_as_a_list(void **state)
{
    struct vfmig_user_feature_list ask = {0}, got;
    struct vfmig_user_log_range ranges[3];
    uint8_t buf[3 * 4096] = {1};

    assert_int_equal(peer_feature(control, GET | VFMIG_USER_F_DIRTY_LIST, &ask, sizeof(ask)),
                     -EINVAL); /* nothing is logged */
    assert_int_equal(peer_log_start(control, 4096, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA + 0x1800, buf, 4096), 0);
    assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA + 63 * 4096, buf, 3 * 4096), 0);
    assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA + RAM_SIZE - 1, buf, 1), 0);
    for (unsigned round = 0; round < 2; round++) { /* the second is empty: it was taken */
        assert_int_equal(peer_feature(control, GET | VFMIG_USER_F_DIRTY_LIST, &ask, sizeof(ask)),
                         0);
        memcpy(&got, control->reply + 8, sizeof(got));
        assert_int_equal(got.count, round ? 0 : 3);
        assert_int_equal(got.more, 0);
        if (round)
            break;
        memcpy(ranges, control->reply + 8 + sizeof(got), sizeof(ranges));
        assert_int_equal(ranges[0].iova, RAM_IOVA + 0x1000);
        assert_int_equal(ranges[0].length, 0x2000);
        assert_int_equal(ranges[1].iova, RAM_IOVA + 63 * 4096);
        assert_int_equal(ranges[1].length, 3 * 4096);
        assert_int_equal(ranges[2].iova, RAM_IOVA + RAM_SIZE - 4096);
        assert_int_equal(ranges[2].length, 4096);
    }
}

static void lists_come_in_pieces(void **state)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_list list;
    } VFMIG_PACKED req = {{sizeof(req) + 24, GET | VFMIG_USER_F_DMA_MAP_LIST}, {0}};
    struct vfmig_user_feature_list got;
    struct vfmig_user_map_entry entry;

    assert_int_equal(peer_map(owner, 0x800000, 0x1000, -1, 0, 1), 0);
    assert_int_equal(peer_call(control, VFMIG_USER_FEATURE, &req, sizeof(req)), 0);
    memcpy(&got, control->reply + 8, sizeof(got));
    assert_int_equal(got.count, 1);
    assert_int_equal(got.more, 1);
    memcpy(&entry, control->reply + 24, sizeof(entry));
    assert_int_equal(entry.iova, RAM_IOVA);
    assert_int_equal(entry.size, RAM_SIZE);
    assert_int_equal(entry.flags, 3);
    req.list.next = got.next;
    assert_int_equal(peer_call(control, VFMIG_USER_FEATURE, &req, sizeof(req)), 0);
    memcpy(&got, control->reply + 8, sizeof(got));
    memcpy(&entry, control->reply + 24, sizeof(entry));
    assert_int_equal(got.count, 1);
    assert_int_equal(got.more, 0);
    assert_int_equal(entry.iova, 0x800000);
    assert_int_equal(entry.flags, 1 | VFMIG_USER_MAP_F_BY_MESSAGE);
    req.head.argsz--; /* no room for one */
    assert_int_equal(peer_call(control, VFMIG_USER_FEATURE, &req, sizeof(req)), -EINVAL);
}

static void pending_causes_are_seen_and_set(void **state)
{
    struct vfmig_user_feature_pending pending;
    int vector = peer_vector(owner, 2);

    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RUNNING_NDMA), 0);
    assert_int_equal(peer_put(owner, 0, TOY_IRQ, 2, 4), 0);
    assert_int_equal(peer_feature(control, GET | VFMIG_USER_F_PENDING, NULL, 0), 0);
    memcpy(&pending, control->reply + 8, sizeof(pending));
    assert_int_equal(pending.vectors, TOY_VECTORS);
    assert_int_equal(pending.bits[0], 4);
    pending.bits[0] = 2; /* is added */
    assert_int_equal(peer_feature(control, SET | VFMIG_USER_F_PENDING, &pending, sizeof(pending)),
                     0);
    assert_int_equal(peer_get(owner, 0, TOY_PBA, 8), 6);
    pending.bits[0] = 1u << TOY_VECTORS;
    assert_int_equal(peer_feature(control, SET | VFMIG_USER_F_PENDING, &pending, sizeof(pending)),
                     -EINVAL);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(peer_irqs(vector), 1);
    close(vector);
}

static void accesses_are_held_until_the_state_is_there(void **state)
{
    struct vfmig_user_region_access access = {TOY_SCRATCH, 0, 8};
    uint8_t *saved;
    uint64_t value;

    assert_int_equal(peer_put(owner, 0, TOY_SCRATCH, 0xfeed, 8), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    size_t size = peer_save_v2(control, &saved, 4096);
    assert_int_equal(peer_reset(control), 0);
    assert_int_equal(set_switch(control, VFMIG_USER_F_HOLD, 1), 0);
    uint16_t id = peer_send(owner, VFMIG_USER_REGION_READ, 0, &access, sizeof(access), NULL, 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(peer_load_v2(control, saved, size, 4096), 0);
    assert_false(peer_readable(owner->fd));
    assert_int_equal(get_switch(control, VFMIG_USER_F_HOLD), 1);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(peer_wait(owner, id), 0);
    memcpy(&value, owner->reply + sizeof(access), 8);
    assert_int_equal(value, 0xfeed);
    assert_int_equal(get_switch(control, VFMIG_USER_F_HOLD), 0);
    free(saved);
}

/* Bounded: the one too many is refused, the others are answered in order when the hold ends. */
static void too_many_held_accesses_are_refused(void **state)
{
    struct vfmig_user_region_access access = {TOY_SCRATCH, 0, 8};
    uint16_t first = 0, id = 0;

    assert_int_equal(set_switch(control, VFMIG_USER_F_HOLD, 1), 0);
    for (unsigned i = 0; i < 256; i++) {
        id = peer_send(owner, VFMIG_USER_REGION_READ, 0, &access, sizeof(access), NULL, 0);
        first = i ? first : id;
    }
    id = peer_send(owner, VFMIG_USER_REGION_READ, 0, &access, sizeof(access), NULL, 0);
    assert_int_equal(peer_wait(owner, id), -EBUSY);
    assert_int_equal(set_switch(control, VFMIG_USER_F_HOLD, 0), 0);
    for (unsigned i = 0; i < 256; i++)
        assert_int_equal(peer_wait(owner, (uint16_t)(first + i)), 0);
}

static void dispatch(struct vfmig_device *dev)
{
    struct pollfd p = {.fd = vfmig_device_poll_fd(dev), .events = POLLIN};

    while (poll(&p, 1, 0) == 1)
        assert_true(vfmig_device_dispatch(dev, NULL) >= 0);
}

/* Without a thread, so that both sockets are readable when the server looks: the control client's
 * state write first, then the owner's posted write, which was queued before it is handled. */
static void posted_writes_come_before_a_state_write(void **state)
{
    struct vfmig_user_header h = {1, VFMIG_USER_VERSION, sizeof(h) + 4, 0, 0};
    static const char json[] = "{\"capabilities\":{\"vfmig\":{\"token\":\"t\"}}}";
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    uint8_t buf[256];
    int pair[2], fd;

    open_toy(0);
    peer_end(owner);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(vfmig_device_attach_fd(toy->dev, pair[1], NULL), 0);
    memcpy(buf, &h, sizeof(h));
    memset(buf + sizeof(h), 0, 4);
    assert_int_equal(send(pair[0], buf, h.size, 0), h.size);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memcpy(addr.sun_path, path, sizeof(path));
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    h.size += sizeof(json);
    memcpy(buf, &h, sizeof(h));
    memcpy(buf + sizeof(h) + 4, json, sizeof(json));
    assert_int_equal(send(fd, buf, h.size, 0), h.size);
    dispatch(toy->dev);
    assert_true(recv(fd, buf, sizeof(buf), 0) > 16);
    assert_true(recv(pair[0], buf, sizeof(buf), 0) > 16);

    struct {
        struct vfmig_user_header h;
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED set = {{2, VFMIG_USER_FEATURE, sizeof(set), 0, 0},
                          {16, SET | VFMIG_USER_F_DEVICE_STATE},
                          {VFMIG_STATE_STOP, 0}};
    struct {
        struct vfmig_user_header h;
        struct vfmig_user_region_access access;
        uint64_t value;
    } VFMIG_PACKED post = {
        {3, VFMIG_USER_REGION_WRITE, sizeof(post), VFMIG_USER_NO_REPLY, 0}, {TOY_SCRATCH, 0, 8}, 42};
    assert_int_equal(send(fd, &set, sizeof(set), 0), sizeof(set));
    assert_int_equal(send(pair[0], &post, sizeof(post), 0), sizeof(post));
    dispatch(toy->dev);
    assert_int_equal(vfmig_device_get_state(toy->dev), VFMIG_STATE_STOP);
    assert_int_equal(toy->scratch, 42);
    close(fd);
    close(pair[0]);
    dispatch(toy->dev);
    toy_free(toy);
    *strrchr(path, '/') = 0;
    rmdir(path);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_client_has_its_rights),
        TEST(a_token_is_needed_and_one_session_is_open),
        TEST(gone_before_s_the_device_runs_again),
        TEST(gone_while_the_device_drains),
        TEST(gone_in_s_another_client_goes_on),
        TEST(the_owners_reset_ends_the_session),
        TEST(the_owner_goes_away),
        TEST(its_reset_leaves_the_owners_state),
        TEST(freeze_answers_accesses),
        TEST(dma_by_message_on_demand),
        TEST(dirty_pages_as_a_list),
        TEST(lists_come_in_pieces),
        TEST(pending_causes_are_seen_and_set),
        TEST(accesses_are_held_until_the_state_is_there),
        TEST(too_many_held_accesses_are_refused),
        cmocka_unit_test(posted_writes_come_before_a_state_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
