/* SPDX-License-Identifier: BSD-3-Clause */
/* The vfio-user client against this project's device server, in both dialects. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "dirty/trackers.h"
#include "served.h"
#include "wire/proto.h"

#define SECOND UINT64_C(1000000000)

static const enum vfmig_dialect dialects[] = {VFMIG_DIALECT_FEATURE, VFMIG_DIALECT_REGION};

static void go(struct vfmig_target *t, enum vfmig_state state)
{
    struct vfmig_error err;
    enum vfmig_state now;

    if (t->ops->set_state(t, state, 10 * SECOND, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(t->ops->get_state(t, &now, &err), 0);
    assert_int_equal(now, state);
}

static void put(struct vfmig_target *t, uint64_t offset, uint64_t value, uint32_t size)
{
    assert_int_equal(t->ops->region_write(t, 0, offset, &value, size, false, NULL), 0);
}

static uint64_t get(struct vfmig_target *t, uint64_t offset, uint32_t size)
{
    uint64_t value = 0;

    assert_int_equal(t->ops->region_read(t, 0, offset, &value, size, NULL), 0);
    return value;
}

/* ---- what the device is ---- */

static void describes(void **state)
{
    struct served s;

    served_start(&s, true, true, true);
    for (unsigned i = 0; i < 2; i++) {
        struct vfmig_target *t = served_open(&s, dialects[i]);
        const struct vfmig_target_info *info = &t->info;
        assert_int_equal(info->dialect, dialects[i]);
        assert_int_equal(info->features, 7);
        assert_int_equal(info->quiet, VFMIG_QUIET_ALL);
        assert_int_equal(info->pci_vendor, 0x1b36);
        assert_int_equal(info->pci_device, 0x7fdf);
        assert_int_equal(info->region_size[0], TOY_BAR_SIZE);
        assert_int_equal(info->irq_count[2], TOY_VECTORS);
        assert_true(info->dma_log);
        assert_int_equal(info->log_page_size, 4096);
        assert_true(info->max_data_xfer >= 1u << 20);
        enum vfmig_state now;
        assert_int_equal(t->ops->get_state(t, &now, NULL), 0);
        assert_int_equal(now, VFMIG_STATE_RUNNING);
        t->ops->close(t);
    }
    served_end(&s);

    served_start(&s, false, false, true);
    struct vfmig_target *t = served_open(&s, VFMIG_DIALECT_AUTO);
    assert_int_equal(t->info.dialect, VFMIG_DIALECT_FEATURE);
    assert_int_equal(t->info.features, VFMIG_FEATURE_STOP_COPY);
    assert_int_equal(t->info.quiet, VFMIG_QUIET_NONE);
    t->ops->close(t);
    t = served_open(&s, VFMIG_DIALECT_REGION);
    assert_int_equal(t->info.quiet, VFMIG_QUIET_NONE);
    struct vfmig_error err;
    assert_int_equal(t->ops->set_state(t, VFMIG_STATE_RUNNING_NDMA, SECOND, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    t->ops->close(t);
    served_end(&s);

    served_start(&s, true, true, false);
    const struct vfmig_user_options opt = {.dialect = VFMIG_DIALECT_FEATURE};
    assert_int_equal(vfmig_user_open(s.path, &opt, &t, &err), -ENOTSUP);
    assert_int_equal(err.origin, VFMIG_ORIGIN_DEVICE);
    t = served_open(&s, VFMIG_DIALECT_AUTO); /* usable, not migratable */
    assert_int_equal(t->info.features, 0);
    put(t, TOY_SCRATCH, 5, 8);
    assert_int_equal(get(t, TOY_SCRATCH, 8), 5);
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(get(t, TOY_SCRATCH, 8), 0);
    t->ops->close(t);
    served_end(&s);
    assert_int_equal(vfmig_user_open(s.path, NULL, &t, &err), -ENOENT);
    assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
}

/* ---- save and load ---- */

struct piece {
    size_t size;
    uint8_t *data;
};

struct saved {
    struct piece piece[4096];
    unsigned count;
};

/* How data goes: copied out of windows, used in them, by message. */
enum way { BY_WINDOW, IN_PLACE, BY_MESSAGE, WAYS };

static struct vfmig_target *open_way(const struct served *s, enum vfmig_dialect dialect,
                                     enum way way)
{
    const struct vfmig_user_options opt = {.dialect = dialect, .no_window = way == BY_MESSAGE};
    struct vfmig_target *t;
    struct vfmig_error err;

    if (vfmig_user_open(s->path, &opt, &t, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(t->info.data_in_place, way != BY_MESSAGE);
    return t;
}

/* Everything that there is now; returns the bytes. */
static size_t save_all(struct vfmig_target *t, struct saved *saved, enum way way)
{
    size_t room = (size_t)t->info.max_data_xfer, total = 0;
    uint8_t *buf = malloc(room);
    const void *data = buf;
    struct vfmig_error err;
    ssize_t n;

    assert_non_null(buf);
    while ((n = way == IN_PLACE ? t->ops->save_in_place(t, &data, room, &err)
                                : t->ops->save(t, buf, room, &err)) > 0) {
        assert_true(saved->count < 4096);
        struct piece *p = &saved->piece[saved->count++];
        p->size = (size_t)n;
        p->data = malloc(p->size);
        assert_non_null(p->data);
        memcpy(p->data, data, p->size);
        total += p->size;
    }
    if (n < 0)
        fail_msg("%s", err.text);
    free(buf);
    return total;
}

static void assert_way(const struct served *s, enum way way)
{
    struct vfmig_device_counters c;

    vfmig_device_get_counters(s->toy->dev, &c);
    if (way == BY_MESSAGE)
        assert_true(c.data_messages > 0);
    else
        assert_int_equal(c.data_messages, 0);
    if (way != BY_MESSAGE)
        assert_true(c.windows_filled + c.windows_loaded > 0);
}

static void round_trip(enum vfmig_dialect from, enum vfmig_dialect to, enum way way)
{
    struct served a, b;
    struct saved *saved = calloc(1, sizeof(*saved));
    struct vfmig_error err;
    uint64_t left;

    assert_non_null(saved);
    served_start(&a, true, true, true);
    served_start(&b, true, true, true);
    struct vfmig_target *src = open_way(&a, from, way), *dst = open_way(&b, to, way);
    for (uint64_t i = 0; i < TOY_MEMORY_SIZE / 8; i += 7)
        put(src, TOY_MEMORY + i * 8, i * 0x9e3779b97f4a7c15u, 8);
    go(src, VFMIG_STATE_PRE_COPY);
    assert_true(save_all(src, saved, way) > TOY_MEMORY_SIZE);
    assert_int_equal(save_all(src, saved, way), 0); /* nothing now */
    put(src, TOY_MEMORY + 8, 0x1122334455667788, 8);
    assert_true(save_all(src, saved, way) > 0);
    put(src, TOY_MEMORY + 16, 42, 8);
    put(src, TOY_SCRATCH, 4711, 8);
    go(src, VFMIG_STATE_PRE_COPY_NDMA);
    go(src, VFMIG_STATE_STOP_COPY);
    assert_int_equal(src->ops->left(src, &left, &err), 0);
    assert_true(left > 0);
    assert_true(save_all(src, saved, way) > 0);
    assert_int_equal(save_all(src, saved, way), 0); /* the end stays the end */

    go(dst, VFMIG_STATE_STOP);
    go(dst, VFMIG_STATE_RESUMING);
    for (unsigned i = 0; i < saved->count; i++)
        if (dst->ops->load(dst, saved->piece[i].data, saved->piece[i].size, &err) < 0)
            fail_msg("%s", err.text);
    go(dst, VFMIG_STATE_STOP);
    go(dst, VFMIG_STATE_RUNNING_NDMA);
    go(dst, VFMIG_STATE_RUNNING);
    go(src, VFMIG_STATE_STOP);
    go(src, VFMIG_STATE_RUNNING);
    assert_int_equal(get(dst, TOY_SCRATCH, 8), 4711);
    assert_int_equal(get(dst, TOY_MEMORY + 8, 8), 0x1122334455667788);
    for (uint64_t at = 0; at < TOY_MEMORY_SIZE; at += 4096) {
        uint8_t one[4096], two[4096];
        assert_int_equal(src->ops->region_read(src, 0, TOY_MEMORY + at, one, 4096, NULL), 0);
        assert_int_equal(dst->ops->region_read(dst, 0, TOY_MEMORY + at, two, 4096, NULL), 0);
        assert_memory_equal(one, two, 4096);
    }
    assert_way(&a, way);
    assert_way(&b, way);
    src->ops->close(src);
    dst->ops->close(dst);
    served_end(&a);
    served_end(&b);
    for (unsigned i = 0; i < saved->count; i++)
        free(saved->piece[i].data);
    free(saved);
}

static void save_and_load(void **state)
{
    for (unsigned i = 0; i < 4; i++)
        for (enum way way = 0; way < WAYS; way++)
            round_trip(dialects[i / 2], dialects[i % 2], way);
}

/* Bad data: clearing Z is refused, the device is in ERROR, reset brings it back. */
static void bad_data(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct served s;
        struct vfmig_error err;
        enum vfmig_state now;
        served_start(&s, true, true, true);
        struct vfmig_target *t = served_open(&s, dialects[i]);
        go(t, VFMIG_STATE_STOP);
        go(t, VFMIG_STATE_RESUMING);
        t->ops->load(t, "nonsense", 8, NULL);
        assert_true(t->ops->set_state(t, VFMIG_STATE_STOP, SECOND, &err) < 0);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        assert_int_equal(err.state, VFMIG_STATE_STOP);
        assert_int_equal(t->ops->get_state(t, &now, NULL), 0);
        assert_int_equal(now, VFMIG_STATE_ERROR);
        assert_int_equal(t->ops->reset(t, NULL), 0);
        assert_int_equal(t->ops->get_state(t, &now, NULL), 0);
        assert_int_equal(now, VFMIG_STATE_RUNNING);
        t->ops->close(t);
        served_end(&s);
    }
}

/* ---- DMA, log, interrupts ---- */

#define RAM_PAGES 700u
#define RAM_IOVA  0x100000u

struct ram {
    struct vfmig_ram_block block;
    struct vfmig_memory memory;
};

static void ram_init(struct ram *ram)
{
    uint64_t size = RAM_PAGES * VFMIG_PAGE_SIZE;
    int fd = memfd_create("ram", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(host, MAP_FAILED);
    ram->block = (struct vfmig_ram_block){RAM_IOVA, size, host, fd, 0};
    ram->memory = (struct vfmig_memory){&ram->block, 1};
}

static void ram_done(struct ram *ram)
{
    munmap(ram->block.host, ram->block.size);
    close(ram->block.fd);
}

static uint64_t *ram_word(struct ram *ram, uint64_t page)
{
    return (uint64_t *)((uint8_t *)ram->block.host + page * VFMIG_PAGE_SIZE);
}

/* The device writes one word; by message this takes as long as we take to answer. */
static void device_writes(struct vfmig_target *t, uint64_t page, uint64_t value, uint32_t how)
{
    put(t, TOY_IOVA, RAM_IOVA + page * VFMIG_PAGE_SIZE, 8);
    put(t, TOY_VALUE, value, 8);
    put(t, how, 1, 4);
    int status = (int)get(t, TOY_STATUS, 4);
    for (unsigned i = 0; status == -EINPROGRESS && i < 1000000; i++)
        status = (int)get(t, TOY_STATUS, 4);
    assert_int_equal(status, 0);
}

static void logs(void **state)
{
    struct vfmig_error err;
    struct ram ram;

    ram_init(&ram);
    for (unsigned i = 0; i < 2; i++) {
        struct vfmig_dirty_map map;
        struct vfmig_tracker *log;
        struct served s;
        served_start(&s, true, true, true);
        struct vfmig_target *t = served_open(&s, dialects[i]);
        assert_int_equal(vfmig_dirty_map_init(&map, &ram.memory, NULL), 0);
        assert_int_equal(t->ops->dma_map(t, RAM_IOVA, ram.block.size, ram.block.fd, 0, 3, &err), 0);
        device_writes(t, 1, 11, TOY_WRITE);
        assert_int_equal(*ram_word(&ram, 1), 11);
        assert_int_equal(vfmig_tracker_device_new(t, NULL, 0, &log, &err), 0);
        for (unsigned again = 0; again < 2; again++) {
            /* The second start finds a log that is on and not empty: it is clean again (C27). */
            assert_int_equal(log->ops->start(log, &ram.memory, &err), 0);
            assert_int_equal(log->ops->sync(log, &map, &err), 0);
            assert_int_equal(vfmig_dirty_map_count(&map), 0);
            device_writes(t, 3, 12, TOY_WRITE);
            device_writes(t, RAM_PAGES - 1, 13, TOY_WRITE);
            if (again == 0)
                continue;
            assert_int_equal(log->ops->sync(log, &map, &err), 0);
            assert_int_equal(vfmig_dirty_map_count(&map), 2);
            assert_true(vfmig_bitmap_test(map.bitmaps[0], 3));
            assert_true(vfmig_bitmap_test(map.bitmaps[0], RAM_PAGES - 1));
        }
        memset(map.bitmaps[0], 0, vfmig_bitmap_words(RAM_PAGES) * 8);
        assert_int_equal(log->ops->sync(log, &map, &err), 0);
        assert_int_equal(vfmig_dirty_map_count(&map), 0); /* read and cleared (C30) */
        device_writes(t, 5, 14, TOY_WRITE);
        assert_int_equal(log->ops->stop(log, &err), 0);
        device_writes(t, 6, 15, TOY_WRITE);
        assert_int_equal(log->ops->sync(log, &map, &err), 0); /* frozen and readable (C28) */
        assert_int_equal(vfmig_dirty_map_count(&map), 1);
        assert_true(vfmig_bitmap_test(map.bitmaps[0], 5));
        assert_int_equal(t->ops->dma_unmap(t, RAM_IOVA, ram.block.size, &err), 0);
        assert_int_equal(t->ops->dma_unmap(t, RAM_IOVA, ram.block.size, &err), -ENOENT);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        uint64_t bits[20] = {0};
        assert_true(t->ops->log_report(t, RAM_IOVA, ram.block.size, 0, bits, &err) < 0);
        log->ops->free(log);
        vfmig_dirty_map_done(&map);
        t->ops->close(t);
        served_end(&s);
    }
    ram_done(&ram);
}

/* DMA by message, over the twin socket and without one: guest memory is reached, and the page is
 * marked as our own write before the device hears that it is done. */
static void dma_by_message(void **state)
{
    struct vfmig_tracker *own;
    struct vfmig_error err;
    struct ram ram;

    ram_init(&ram);
    assert_int_equal(vfmig_tracker_own_new(&own, NULL), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct served s;
        served_start(&s, true, true, true);
        const struct vfmig_user_options opt = {.memory = &ram.memory, .own = own, .no_twin = i};
        struct vfmig_target *t;
        struct vfmig_dirty_map map;
        assert_int_equal(vfmig_user_open(s.path, &opt, &t, &err), 0);
        assert_int_equal(vfmig_dirty_map_init(&map, &ram.memory, NULL), 0);
        assert_int_equal(own->ops->start(own, &ram.memory, NULL), 0);
        assert_int_equal(t->ops->dma_map(t, RAM_IOVA, ram.block.size, -1, 0, 3, &err), 0);
        device_writes(t, 7, 99 + i, TOY_ASYNC);
        assert_int_equal(*ram_word(&ram, 7), 99 + i);
        assert_int_equal(own->ops->sync(own, &map, NULL), 0);
        assert_int_equal(vfmig_dirty_map_count(&map), 1);
        assert_true(vfmig_bitmap_test(map.bitmaps[0], 7));
        *ram_word(&ram, 8) = 1234 + i;
        device_writes(t, 8, 0, TOY_READ);
        assert_int_equal(get(t, TOY_VALUE, 8), 1234 + i);
        assert_int_equal(own->ops->sync(own, &map, NULL), 0);
        assert_int_equal(vfmig_dirty_map_count(&map), 1);
        vfmig_user_set_own(t, NULL);
        device_writes(t, 9, 1, TOY_ASYNC);
        assert_int_equal(own->ops->sync(own, &map, NULL), 0);
        assert_int_equal(vfmig_dirty_map_count(&map), 1);
        vfmig_dirty_map_done(&map);
        t->ops->close(t);
        served_end(&s);
    }
    own->ops->free(own);
    ram_done(&ram);
}

/* Two blocks that are one range of addresses and lie apart in the client: a read is answered from
 * one block as it lies there, from two put together, and refused when it leaves them. */
static void dma_reads_of_blocks(void **state)
{
    struct ram ram;
    struct served s;
    struct vfmig_target *t;

    ram_init(&ram);
    uint64_t half = ram.block.size / 2, end = RAM_IOVA + ram.block.size;
    uint8_t *low = (uint8_t *)ram.block.host + half, *high = ram.block.host;
    const struct vfmig_ram_block blocks[2] = {
        {RAM_IOVA, half, low, ram.block.fd, half},
        {RAM_IOVA + half, half, high, ram.block.fd, 0},
    };
    const struct vfmig_memory memory = {blocks, 2};
    const struct vfmig_user_options opt = {.memory = &memory};
    const struct {
        uint64_t iova;
        bool reached;
    } reads[] = {
        {RAM_IOVA, true},
        {RAM_IOVA + half - 8, true},
        {RAM_IOVA + half - 3, true},
        {RAM_IOVA + half, true},
        {end - 8, true},
        {end - 7, false},
        {end, false},
    };
    for (uint64_t i = 0; i < half; i++) {
        low[i] = (uint8_t)(i * 7 + 1);
        high[i] = (uint8_t)(i * 11 + 5);
    }
    served_start(&s, true, true, true);
    assert_int_equal(vfmig_user_open(s.path, &opt, &t, NULL), 0);
    assert_int_equal(t->ops->dma_map(t, RAM_IOVA, ram.block.size + 4096, -1, 0, 3, NULL), 0);
    for (unsigned i = 0; i < sizeof(reads) / sizeof(reads[0]); i++) {
        uint8_t expected[8];
        int status;
        for (unsigned b = 0; b < 8 && reads[i].reached; b++) {
            uint64_t at = reads[i].iova - RAM_IOVA + b;
            expected[b] = at < half ? low[at] : high[at - half];
        }
        put(t, TOY_VALUE, 0, 8);
        put(t, TOY_IOVA, reads[i].iova, 8);
        put(t, TOY_READ, 1, 4);
        do
            status = (int)get(t, TOY_STATUS, 4);
        while (status == -EINPROGRESS);
        assert_int_equal(status, reads[i].reached ? 0 : -EFAULT);
        uint64_t value = get(t, TOY_VALUE, 8);
        if (reads[i].reached)
            assert_memory_equal(&value, expected, 8);
    }
    t->ops->close(t);
    served_end(&s);
    ram_done(&ram);
}

static int refuse_read(void *opaque, uint64_t iova, void *data, uint32_t size)
{
    return -EFAULT;
}

/* A callback that refuses is an error of that DMA alone. */
static void dma_refused(void **state)
{
    struct served s;
    struct vfmig_target *t;
    const struct vfmig_user_options opt = {.dma = {.read = refuse_read}};

    served_start(&s, true, true, true);
    assert_int_equal(vfmig_user_open(s.path, &opt, &t, NULL), 0);
    assert_int_equal(t->ops->dma_map(t, RAM_IOVA, 8192, -1, 0, 3, NULL), 0);
    for (unsigned i = 0; i < 2; i++) {
        put(t, TOY_IOVA, RAM_IOVA, 8);
        put(t, i ? TOY_ASYNC : TOY_READ, 1, 4);
        int status;
        do
            status = (int)get(t, TOY_STATUS, 4);
        while (status == -EINPROGRESS);
        assert_int_equal(status, -EFAULT);
    }
    t->ops->close(t);
    served_end(&s);
}

static void interrupts(void **state)
{
    struct served s;
    struct vfmig_error err;
    int fds[TOY_VECTORS];
    uint64_t count;

    served_start(&s, true, true, true);
    struct vfmig_target *t = served_open(&s, VFMIG_DIALECT_AUTO);
    for (unsigned i = 0; i < TOY_VECTORS; i++)
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int hole = fds[1];
    fds[1] = -1; /* a mix goes in runs */
    uint16_t enable = 0x8000;
    uint8_t at = 0;
    assert_int_equal(t->ops->set_irqs(t, 2, 0, TOY_VECTORS, fds, &err), 0);
    assert_int_equal(t->ops->region_read(t, 7, 0x34, &at, 1, NULL), 0);
    assert_int_equal(t->ops->region_write(t, 7, at + 2u, &enable, 2, false, NULL), 0);
    for (unsigned i = 0; i < TOY_VECTORS; i++)
        put(t, TOY_TABLE + i * 16u + 12, 0, 4); /* unmask */
    for (unsigned i = 0; i < TOY_VECTORS; i++) {
        put(t, TOY_IRQ, i, 4);
        assert_int_equal(read(i == 1 ? hole : fds[i], &count, 8), i == 1 ? -1 : 8);
    }
    assert_int_equal(t->ops->set_irqs(t, 2, 0, TOY_VECTORS, NULL, &err), 0);
    put(t, TOY_IRQ, 0, 4);
    assert_int_equal(read(fds[0], &count, 8), -1);
    assert_int_equal(t->ops->set_irqs(t, 2, 1, TOY_VECTORS, NULL, &err), -EINVAL);
    assert_int_equal(t->ops->set_irqs(t, 9, 0, 1, NULL, &err), -EINVAL);
    assert_int_equal(t->ops->set_irqs(t, 0, 0, 0, NULL, &err), 0); /* a type without vectors */
    fds[1] = hole;
    for (unsigned i = 0; i < TOY_VECTORS; i++)
        close(fds[i]);
    t->ops->close(t);
    served_end(&s);
}

/* ---- many threads, time ---- */

#define THREADS 4u
#define ROUNDS  400u

struct user_thread {
    struct vfmig_target *t;
    unsigned index;
    unsigned wrong;
    pthread_t thread;
};

static void *access_main(void *arg)
{
    struct user_thread *me = arg;
    struct vfmig_target *t = me->t;
    uint64_t place = TOY_MEMORY + me->index * 512u;

    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t value = i * THREADS + me->index, back = 0;
        bool posted = i % 3 == 0;
        if (t->ops->region_write(t, 0, place, &value, 8, posted, NULL) < 0 ||
            t->ops->region_read(t, 0, place, &back, 8, NULL) < 0 || back != value)
            me->wrong++;
    }
    return NULL;
}

/* vCPU threads access the device while another one saves its state and reads its log. */
static void concurrent(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct served s;
        struct ram ram;
        struct user_thread threads[THREADS];
        ram_init(&ram);
        served_start(&s, true, true, true);
        struct vfmig_target *t = served_open(&s, dialects[i]);
        uint8_t *buf = malloc((size_t)t->info.max_data_xfer);
        uint64_t bits[RAM_PAGES / 64 + 1] = {0};
        assert_int_equal(t->ops->dma_map(t, RAM_IOVA, ram.block.size, ram.block.fd, 0, 3, NULL), 0);
        const struct vfmig_iova_range range = {RAM_IOVA, ram.block.size};
        assert_int_equal(t->ops->log_start(t, 4096, &range, 1, NULL), 0);
        for (unsigned n = 0; n < THREADS; n++) {
            threads[n] = (struct user_thread){.t = t, .index = n};
            pthread_create(&threads[n].thread, NULL, access_main, &threads[n]);
        }
        for (unsigned n = 0; n < 40; n++) {
            go(t, VFMIG_STATE_PRE_COPY);
            for (unsigned k = 0; k < 5; k++)
                assert_true(t->ops->save(t, buf, (size_t)t->info.max_data_xfer, NULL) >= 0);
            assert_int_equal(t->ops->log_report(t, RAM_IOVA, ram.block.size, 4096, bits, NULL), 0);
            go(t, VFMIG_STATE_RUNNING);
        }
        for (unsigned n = 0; n < THREADS; n++) {
            pthread_join(threads[n].thread, NULL);
            assert_int_equal(threads[n].wrong, 0);
        }
        free(buf);
        t->ops->close(t);
        served_end(&s);
        ram_done(&ram);
    }
}

/* A state write that waits for DMA: it times out, everything else goes on, its late answer hurts
 * nobody, and the state is there in the end. */
static void times_out(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct served s;
        struct ram ram;
        struct vfmig_error err;
        enum vfmig_state now;
        ram_init(&ram);
        served_start(&s, true, true, true);
        struct vfmig_target *t = served_open(&s, dialects[i]);
        assert_int_equal(t->ops->dma_map(t, RAM_IOVA, ram.block.size, ram.block.fd, 0, 3, NULL), 0);
        put(t, TOY_IOVA, RAM_IOVA, 8);
        put(t, TOY_BEGIN, 1, 4);
        assert_int_equal(t->ops->set_state(t, VFMIG_STATE_RUNNING_NDMA, SECOND / 50, &err),
                         -ETIMEDOUT);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        assert_int_equal(t->ops->get_state(t, &now, NULL), 0);
        assert_int_equal(now, VFMIG_STATE_RUNNING); /* the old one while the write is open */
        assert_int_equal(t->ops->set_state(t, VFMIG_STATE_RUNNING_NDMA, SECOND, &err), -EBUSY);
        put(t, TOY_END, 1, 4);
        for (unsigned n = 0; n < 1000000 && now != VFMIG_STATE_RUNNING_NDMA; n++)
            assert_int_equal(t->ops->get_state(t, &now, NULL), 0);
        assert_int_equal(now, VFMIG_STATE_RUNNING_NDMA);
        go(t, VFMIG_STATE_RUNNING);
        t->ops->close(t);
        served_end(&s);
        ram_done(&ram);
    }
}

/* ---- a server that goes away, arguments ---- */

static void *kill_server(void *arg)
{
    struct served *s = arg;

    vfmig_device_stop(s->toy->dev);
    pthread_join(s->thread, NULL);
    toy_free(s->toy);
    return NULL;
}

static void server_gone(void **state)
{
    struct served s;
    struct vfmig_error err;
    pthread_t killer;
    uint64_t value;
    int r, before = open_descriptors();

    for (unsigned i = 0; i < 2; i++) {
        served_start(&s, true, true, true);
        struct vfmig_target *t = served_open(&s, dialects[i]);
        /* A state write is open (it waits for DMA) when the server ends. */
        put(t, TOY_BEGIN, 1, 4);
        pthread_create(&killer, NULL, kill_server, &s);
        r = t->ops->set_state(t, VFMIG_STATE_RUNNING_NDMA, 10 * SECOND, &err);
        assert_true(r < 0 && r != -ETIMEDOUT);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        pthread_join(killer, NULL);
        assert_true(t->ops->region_read(t, 0, 0, &value, 8, &err) < 0);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        assert_true(t->ops->region_write(t, 0, 0, &value, 8, true, &err) < 0);
        t->ops->close(t);
    }
    assert_int_equal(open_descriptors(), before);
}

static void arguments(void **state)
{
    struct served s;
    struct vfmig_error err;
    uint64_t value = 0;

    served_start(&s, true, true, true);
    struct vfmig_target *t = served_open(&s, VFMIG_DIALECT_AUTO);
    assert_int_equal(t->ops->region_read(t, 0, TOY_BAR_SIZE - 4, &value, 8, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    assert_int_equal(t->ops->region_read(t, 0, UINT64_MAX, &value, 8, &err), -EINVAL);
    assert_int_equal(t->ops->region_write(t, 99, 0, &value, 8, false, &err), -EINVAL);
    assert_int_equal(t->ops->set_state(t, VFMIG_STATE_ERROR, SECOND, &err), -EINVAL);
    assert_int_equal(t->ops->set_state(t, (enum vfmig_state)77, SECOND, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    assert_int_equal(t->ops->region_read(t, 0, 0, &value, 0, &err), 0);
    /* Larger than one message is split, and comes back whole. */
    uint8_t *big = malloc(TOY_MEMORY_SIZE), *back = malloc(TOY_MEMORY_SIZE);
    for (uint32_t i = 0; i < TOY_MEMORY_SIZE; i++)
        big[i] = (uint8_t)(i * 31);
    assert_int_equal(t->ops->region_write(t, 0, TOY_MEMORY, big, TOY_MEMORY_SIZE, false, &err), 0);
    assert_int_equal(t->ops->region_read(t, 0, TOY_MEMORY, back, TOY_MEMORY_SIZE, &err), 0);
    assert_memory_equal(big, back, TOY_MEMORY_SIZE);
    free(big);
    free(back);
    t->ops->close(t);
    served_end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(describes),
        cmocka_unit_test(save_and_load),
        cmocka_unit_test(bad_data),
        cmocka_unit_test(logs),
        cmocka_unit_test(dma_by_message),
        cmocka_unit_test(dma_refused),
        cmocka_unit_test(dma_reads_of_blocks),
        cmocka_unit_test(interrupts),
        cmocka_unit_test(concurrent),
        cmocka_unit_test(times_out),
        cmocka_unit_test(server_gone),
        cmocka_unit_test(arguments),
    };
    return cmocka_run_group_tests(tests, served_setup, served_teardown);
}
