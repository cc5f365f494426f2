/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA by message that the client answers later, from another thread and out of order. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dirty/trackers.h"
#include "served.h"
#include "target/user_private.h"
#include "wire/proto.h"

#define SLOTS 16u
#define PAGES 64u

/* ---- a device with SLOTS DMAs at once: slot i is at i * 32 of its BAR ---- */

enum { SLOT_IOVA = 0, SLOT_VALUE = 8, SLOT_GO = 16, SLOT_STATUS = 24 };

struct slot {
    uint64_t iova, value;
    int status;
    struct vfmig_dma dma;
};

struct many {
    struct vfmig_device *dev;
    struct slot slot[SLOTS];
    pthread_t thread;
    char path[64];
};

static void slot_done(void *user, int err)
{
    struct slot *slot = user;

    slot->status = err;
    vfmig_dma_end(&slot->dma);
}

static int many_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    struct many *many = user;
    struct slot *slot = &many->slot[offset / 32 % SLOTS];

    if (offset % 32 == SLOT_STATUS)
        memcpy(data, &slot->status, 4);
    else
        memcpy(data, &slot->value, size);
    return 0;
}

static int many_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct many *many = user;
    struct slot *slot = &many->slot[offset / 32 % SLOTS];
    uint32_t write = 0;

    if (offset % 32 != SLOT_GO) {
        memcpy(offset % 32 == SLOT_IOVA ? &slot->iova : &slot->value, data, size);
        return 0;
    }
    memcpy(&write, data, size);
    int r = vfmig_device_dma_begin(many->dev, &slot->dma);
    if (r == 0)
        r = write ? vfmig_dma_write_async(&slot->dma, slot->iova, &slot->value, 8, slot_done, slot)
                  : vfmig_dma_read_async(&slot->dma, slot->iova, &slot->value, 8, slot_done, slot);
    slot->status = r;
    return 0;
}

static void *many_run(void *arg)
{
    vfmig_device_run(((struct many *)arg)->dev, NULL);
    return NULL;
}

static void many_start(struct many *many)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    memset(many, 0, sizeof(*many));
    config.name = "many";
    config.bars[0].size = 4096;
    ops.region_read = many_read;
    ops.region_write = many_write;
    served_path(many->path, sizeof(many->path));
    assert_int_equal(vfmig_device_new(&config, &ops, many, &many->dev, NULL), 0);
    assert_int_equal(vfmig_device_listen(many->dev, many->path, NULL), 0);
    assert_int_equal(pthread_create(&many->thread, NULL, many_run, many), 0);
}

static void many_end(struct many *many)
{
    vfmig_device_stop(many->dev);
    pthread_join(many->thread, NULL);
    vfmig_device_free(many->dev);
}

/* ---- a client that holds what the test says ---- */

struct held {
    struct vfmig_user_later later;
    uint64_t iova;
    uint64_t *data;
};

struct client {
    struct vfmig_target *target;
    uint8_t memory[PAGES * 4096];
    bool hold;  /* accesses are held from now on */
    int refuse; /* instead of -EINPROGRESS after a handle was taken */
    int second; /* what a second call for a handle said */
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct held held[SLOTS];
    unsigned count;
};

static int hold(struct client *c, uint64_t iova)
{
    struct held held = {.iova = iova}, again;
    void *data;
    int r = vfmig_user_later(c->target, &held.later, &data);

    if (r < 0)
        return r;
    c->second = vfmig_user_later(c->target, &again.later, &data);
    held.data = data;
    pthread_mutex_lock(&c->lock);
    c->held[c->count++ % SLOTS] = held;
    pthread_cond_broadcast(&c->more);
    pthread_mutex_unlock(&c->lock);
    return c->refuse ? c->refuse : -EINPROGRESS;
}

static int on_read(void *opaque, uint64_t iova, void *data, uint32_t size)
{
    struct client *c = opaque;

    if (c->hold)
        return hold(c, iova);
    memcpy(data, c->memory + iova, size);
    return 0;
}

static int on_write(void *opaque, uint64_t iova, const void *data, uint32_t size)
{
    struct client *c = opaque;

    if (c->hold)
        return hold(c, iova);
    memcpy(c->memory + iova, data, size);
    return 0;
}

static void open_client(struct client *c, const struct many *many, bool no_twin,
                        struct vfmig_tracker *own)
{
    const struct vfmig_user_options opt = {
        .dma = {.opaque = c, .read = on_read, .write = on_write}, .own = own, .no_twin = no_twin};
    struct vfmig_error err;

    memset(c, 0, sizeof(*c));
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->more, NULL);
    if (vfmig_user_open(many->path, &opt, &c->target, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(vfmig_user_has_twin(c->target), !no_twin);
    assert_int_equal(c->target->ops->dma_map(c->target, 0, sizeof(c->memory), -1, 0, 3, NULL), 0);
}

static void close_client(struct client *c)
{
    c->target->ops->close(c->target);
    pthread_cond_destroy(&c->more);
    pthread_mutex_destroy(&c->lock);
}

static uint64_t get(struct client *c, unsigned slot, uint32_t reg)
{
    uint64_t value = 0;

    assert_int_equal(c->target->ops->region_read(c->target, 0, slot * 32 + reg, &value,
                                                 reg == SLOT_STATUS ? 4 : 8, NULL),
                     0);
    return value;
}

static void put(struct client *c, unsigned slot, uint32_t reg, uint64_t value)
{
    assert_int_equal(c->target->ops->region_write(c->target, 0, slot * 32 + reg, &value,
                                                  reg == SLOT_GO ? 4 : 8, false, NULL),
                     0);
}

static void go(struct client *c, unsigned slot, uint64_t iova, uint64_t value, bool write)
{
    put(c, slot, SLOT_IOVA, iova);
    put(c, slot, SLOT_VALUE, value);
    put(c, slot, SLOT_GO, write);
}

/* Reads a register until so many accesses are held: without a twin socket somebody has to wait for
 * a reply, so that the commands of the server are read at all. */
static void until_held(struct client *c, unsigned count)
{
    unsigned now;

    do {
        get(c, 0, SLOT_STATUS);
        pthread_mutex_lock(&c->lock);
        now = c->count;
        pthread_mutex_unlock(&c->lock);
    } while (now < count);
}

static int result_of(struct client *c, unsigned slot)
{
    int status;

    do
        status = (int)(int32_t)get(c, slot, SLOT_STATUS);
    while (status == -EINPROGRESS);
    return status;
}

static struct held *find(struct client *c, uint64_t iova)
{
    for (unsigned i = 0; i < c->count && i < SLOTS; i++)
        if (c->held[i].iova == iova)
            return &c->held[i];
    fail_msg("nothing is held at 0x%llx", (unsigned long long)iova);
    return NULL;
}

static void *answer_backwards(void *arg)
{
    struct client *c = arg;

    for (unsigned i = c->count; i-- > 0;)
        vfmig_user_answer(c->held[i].later, 0);
    return NULL;
}

/* ---- tests ---- */

/* Reads and writes of many DMAs are held. Everything else goes on, DMA that is not held too; the
 * answers come in reverse from a thread that waits for nothing. */
static void out_of_order(void **state)
{
    struct many many;
    struct client *c = malloc(sizeof(*c));

    for (unsigned no_twin = 0; no_twin < 2; no_twin++) {
        many_start(&many);
        open_client(c, &many, no_twin, NULL);
        c->hold = true;
        for (unsigned i = 0; i < SLOTS - 1; i++)
            go(c, i, (i + 1) * 4096u, 100 + i, i % 2);
        until_held(c, SLOTS - 1);
        assert_int_equal(c->second, -EINVAL);
        c->hold = false;
        uint64_t word = 4711;
        memcpy(c->memory + 8, &word, 8);
        go(c, SLOTS - 1, 8, 0, false);
        assert_int_equal(result_of(c, SLOTS - 1), 0);
        assert_int_equal(get(c, SLOTS - 1, SLOT_VALUE), 4711);
        for (unsigned i = 0; i < SLOTS - 1; i++) {
            assert_int_equal((int32_t)get(c, i, SLOT_STATUS), -EINPROGRESS);
            struct held *held = find(c, (i + 1) * 4096u);
            assert_int_equal(*held->data, i % 2 ? 100 + i : 0);
            if (i % 2 == 0)
                *held->data = 7000 + i;
        }
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, answer_backwards, c), 0);
        for (unsigned i = 0; i < SLOTS - 1; i++) {
            assert_int_equal(result_of(c, i), 0);
            assert_int_equal(get(c, i, SLOT_VALUE), i % 2 ? 100 + i : 7000 + i);
        }
        pthread_join(thread, NULL);
        close_client(c);
        many_end(&many);
    }
    free(c);
}

/* An answer that is an error, a second answer to the same, a callback that takes a handle and
 * answers at once: each DMA ends once, and the tracker is marked before a held write ends. */
static void one_answer_each(void **state)
{
    struct many many;
    struct client *c = malloc(sizeof(*c));
    struct vfmig_ram_block block = {.size = PAGES * 4096, .fd = -1};
    const struct vfmig_memory memory = {&block, 1};
    struct vfmig_tracker *own;
    struct vfmig_dirty_map map;

    many_start(&many);
    assert_int_equal(vfmig_tracker_own_new(&own, NULL), 0);
    open_client(c, &many, false, own);
    block.host = c->memory;
    assert_int_equal(vfmig_dirty_map_init(&map, &memory, NULL), 0);
    assert_int_equal(own->ops->start(own, &memory, NULL), 0);
    c->hold = true;
    go(c, 0, 4096, 1, true);
    go(c, 1, 8192, 1, false);
    until_held(c, 2);
    assert_int_equal(own->ops->sync(own, &map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&map), 0);
    struct vfmig_user_later write = find(c, 4096)->later, read = find(c, 8192)->later;
    vfmig_user_answer(read, -EFAULT);
    assert_int_equal(result_of(c, 1), -EFAULT);
    vfmig_user_answer(write, 0);
    assert_int_equal(result_of(c, 0), 0);
    assert_int_equal(own->ops->sync(own, &map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&map), 1);
    c->count = 0;
    go(c, 1, 12288, 1, false);
    until_held(c, 1);
    vfmig_user_answer(read, 0); /* stale: not the one that is open now */
    vfmig_user_answer(write, 0);
    vfmig_user_answer((struct vfmig_user_later){.target = NULL}, 0);
    assert_int_equal((int32_t)get(c, 1, SLOT_STATUS), -EINPROGRESS);
    vfmig_user_answer(find(c, 12288)->later, 0);
    assert_int_equal(result_of(c, 1), 0);
    c->refuse = -EPERM;
    go(c, 2, 16384, 1, false);
    assert_int_equal(result_of(c, 2), -EPERM);
    vfmig_user_answer(c->held[(c->count - 1) % SLOTS].later, 0);
    c->refuse = -EINPROGRESS;
    c->hold = false;
    go(c, 2, 0, 1, false);
    assert_int_equal(result_of(c, 2), 0);
    vfmig_dirty_map_done(&map);
    own->ops->free(own);
    close_client(c);
    many_end(&many);
    free(c);
}

/* What is open is bounded in number and in bytes; and outside of a callback there is no handle. The
 * accesses are made up here, because this project's server keeps below both limits. */
static void bounded(void **state)
{
    static struct vfmig_user_later later[VFMIG_MAX_LATE_DMA];
    struct many many;
    struct client *c = malloc(sizeof(*c));
    struct vfmig_user_later one;
    void *data;

    many_start(&many);
    open_client(c, &many, false, NULL);
    struct user *u = (struct user *)c->target;
    assert_int_equal(vfmig_user_later(c->target, &one, &data), -EINVAL);
    struct user_serving serving = {
        .conn = u->twin,
        .request = vfmig_user_make_command(9999, VFMIG_USER_DMA_READ, 16, true),
        .access = {.count = 4096},
    };
    for (unsigned i = 0; i < VFMIG_MAX_LATE_DMA; i++) {
        serving.taken = false;
        u->late.serving = &serving;
        assert_int_equal(vfmig_user_later(c->target, &later[i], &data), 0);
    }
    serving.taken = false;
    assert_int_equal(vfmig_user_later(c->target, &one, &data), -ENOSPC);
    for (unsigned i = 0; i < VFMIG_MAX_LATE_DMA - 1; i++)
        vfmig_user_answer(later[i], 0);
    serving.access.count = VFMIG_MAX_LATE_DMA_BYTES - 4095;
    assert_int_equal(vfmig_user_later(c->target, &one, &data), -ENOSPC);
    serving.access.count -= 1;
    assert_int_equal(vfmig_user_later(c->target, &one, &data), 0);
    u->late.serving = NULL;
    close_client(c); /* with two of them open */
    many_end(&many);
    free(c);
}

/* The device goes away: handles stay usable, and nothing comes of them. */
static void after_disconnect(void **state)
{
    struct many many;
    struct client *c = malloc(sizeof(*c));
    uint64_t value;

    many_start(&many);
    open_client(c, &many, false, NULL);
    c->hold = true;
    go(c, 0, 4096, 1, true);
    go(c, 1, 8192, 1, false);
    until_held(c, 2);
    many_end(&many);
    while (c->target->ops->region_read(c->target, 0, 0, &value, 8, NULL) == 0)
        ;
    *find(c, 8192)->data = 1;
    assert_int_equal(*find(c, 4096)->data, 1);
    vfmig_user_answer(find(c, 8192)->later, 0);
    close_client(c);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(out_of_order),
        cmocka_unit_test(one_answer_each),
        cmocka_unit_test(bounded),
        cmocka_unit_test(after_disconnect),
    };

    return cmocka_run_group_tests_name("target-later", tests, served_setup, served_teardown);
}
