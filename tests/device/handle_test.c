/* SPDX-License-Identifier: BSD-3-Clause */
/* C71: PASID and IMS handles travel as numbers, mean what the client says on each host, and are
 * refused as long as they mean nothing. */
#include "peer.h"
#include "toy.h"

#include "core/devstream.h"
#include "devices/devices.h"
#include "devices/dma_regs.h"
#include "wire/wire.h"

#define RING    0x1000u
#define SRC     0x10000u
#define DST     0x20000u
#define LENGTH  4000u
#define HANDLE  5u
#define SOURCE_VALUE 0xabcd1u /* of the hosts */
#define TARGET_VALUE 0x31337u
#define GET (VFMIG_USER_FEATURE_GET | VFMIG_USER_F_HANDLES)
#define SET (VFMIG_USER_FEATURE_SET | VFMIG_USER_F_HANDLES)

struct list {
    struct vfmig_user_feature_handles head;
    struct vfmig_user_handle list[VFMIG_DEVICE_HANDLES + 1];
} VFMIG_PACKED;

static struct vfmig_device *dev;
static struct peer *peer;

static int set_handles(const struct list *list)
{
    return peer_feature(peer, SET, list,
                        (uint32_t)(sizeof(list->head) + list->head.count * sizeof(list->list[0])));
}

static int set_handle(uint32_t kind, uint32_t number, uint64_t value)
{
    return set_handles(&(struct list){{1, 0}, {{kind, number, value}}});
}

static struct list get_handles(void)
{
    struct list list = {0};

    assert_int_equal(peer_feature(peer, GET, NULL, 0), 0);
    assert_true(peer->reply_size - 8 <= sizeof(list));
    memcpy(&list, peer->reply + 8, peer->reply_size - 8);
    assert_int_equal(peer->reply_size - 8, sizeof(list.head) + list.head.count * sizeof(list.list[0]));
    return list;
}

static void open_dma(uint64_t pasid)
{
    assert_int_equal(vfmig_dma_device_new(&(struct vfmig_device_knobs){0}, &dev, NULL), 0);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    /* This host's address space of that value, and no other, reaches memory. */
    assert_int_equal(peer_map(peer, dma_tagged(pasid, RAM_IOVA), RAM_SIZE, peer->ram_fd, 0, 3), 0);
    for (uint32_t i = 0; i < LENGTH; i++)
        peer->ram[SRC + i] = (uint8_t)(i * 31 + 7);
}

static void close_dma(void)
{
    peer_end(peer);
    vfmig_device_free(dev);
}

static const struct dma_descriptor *copy(uint32_t n)
{
    struct dma_descriptor *at = (struct dma_descriptor *)(peer->ram + RING) + n;

    *at = (struct dma_descriptor){.op = DMA_OP_COPY, .src = RAM_IOVA + SRC, .dst = RAM_IOVA + DST,
                                  .length = LENGTH};
    memset(peer->ram + DST, 0, LENGTH);
    peer_put(peer, 0, DMA_REG_TAIL, n + 1, 4);
    while ((uint32_t)peer_get(peer, 0, DMA_REG_HEAD, 4) != n + 1)
        ;
    return at;
}

static void enable(uint32_t pasid)
{
    peer_put(peer, 0, DMA_REG_PASID, pasid, 4);
    peer_put(peer, 0, DMA_REG_RING, RAM_IOVA + RING, 8);
    peer_put(peer, 0, DMA_REG_ENTRIES, 16, 4);
    peer_put(peer, 0, DMA_REG_CTRL, DMA_CTRL_ENABLE, 4);
}

/* DMA goes where the value of the moment says, and nowhere without one. */
static void dma_carries_the_value(void **state)
{
    open_dma(SOURCE_VALUE);
    enable(HANDLE);
    assert_int_equal(copy(0)->status, 0); /* not even its descriptor can be reached */
    assert_int_equal(peer_get(peer, 0, DMA_REG_ERRORS, 4), 1);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, HANDLE, TARGET_VALUE), 0);
    assert_int_equal(copy(1)->status, 0);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, HANDLE, SOURCE_VALUE), 0);
    assert_int_equal(copy(2)->status, DMA_STATUS_DONE);
    assert_memory_equal(peer->ram + DST, peer->ram + SRC, LENGTH);
    peer_put(peer, 0, DMA_REG_PASID, HANDLE + 1, 4); /* of a ring that is enabled: refused */
    assert_int_equal(peer_get(peer, 0, DMA_REG_PASID, 4), HANDLE);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, HANDLE, VFMIG_HANDLE_UNMAPPED), 0);
    assert_int_equal(copy(3)->status, 0);
    close_dma();
}

enum way { FEATURE, REGION };

static int set_state(enum way way, uint32_t state)
{
    static const uint32_t bits[] = {6, 0, 1, 2, 4, 9, 3, 11};
    return way == FEATURE ? peer_set_v2(peer, state) : peer_set_v1(peer, bits[state]);
}

static int load(enum way way, const uint8_t *data, size_t size)
{
    return way == FEATURE ? peer_load_v2(peer, data, size, 60000)
                          : peer_load_v1(peer, data, size, 65536);
}

static size_t make_stream(enum way way, uint8_t **ret_data)
{
    open_dma(SOURCE_VALUE);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, HANDLE, SOURCE_VALUE), 0);
    enable(HANDLE);
    assert_int_equal(copy(0)->status, DMA_STATUS_DONE);
    assert_int_equal(set_state(way, VFMIG_STATE_STOP_COPY), 0);
    size_t size = way == FEATURE ? peer_save_v2(peer, ret_data, 100000)
                                 : peer_save_v1(peer, ret_data);
    close_dma();
    uint32_t value = SOURCE_VALUE; /* a host value is nowhere in the state */
    assert_null(memmem(*ret_data, size, &value, sizeof(value)));
    return size;
}

static void expect_wanted(uint64_t value)
{
    struct list list = get_handles();

    assert_int_equal(list.head.count, 1);
    assert_int_equal(list.list[0].kind, VFMIG_HANDLE_PASID);
    assert_int_equal(list.list[0].number, HANDLE);
    assert_int_equal(list.list[0].value, value);
}

static void move(enum way from, enum way to)
{
    uint8_t *data;
    size_t size = make_stream(from, &data);

    open_dma(TARGET_VALUE);
    assert_int_equal(get_handles().head.count, 0);
    assert_int_equal(set_state(to, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(load(to, data, size), 0);
    expect_wanted(VFMIG_HANDLE_UNMAPPED);
    assert_int_equal(set_state(to, VFMIG_STATE_STOP), -ENOENT); /* before Z is cleared */
    assert_int_equal(peer_get_v2(peer), VFMIG_STATE_ERROR);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(get_handles().head.count, 0); /* nothing of it was applied */
    assert_int_equal(peer_get(peer, 0, DMA_REG_PASID, 4), 0);

    assert_int_equal(set_state(to, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(load(to, data, size), 0);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, HANDLE, TARGET_VALUE), 0);
    expect_wanted(TARGET_VALUE);
    assert_int_equal(set_state(to, VFMIG_STATE_STOP), 0);
    assert_int_equal(set_state(to, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(peer_get(peer, 0, DMA_REG_PASID, 4), HANDLE);
    assert_int_equal(copy(1)->status, DMA_STATUS_DONE);
    assert_memory_equal(peer->ram + DST, peer->ram + SRC, LENGTH);
    close_dma();
    free(data);
}

static void every_pair_of_dialects(void **state)
{
    for (int i = 0; i < 4; i++)
        move((enum way)(i / 2), (enum way)(i % 2));
}

/* A map given in {} counts; it stays over resets, and goes with the client. */
static void the_map_is_the_clients(void **state)
{
    uint8_t *data;
    size_t size = make_stream(FEATURE, &data);

    open_dma(TARGET_VALUE);
    assert_int_equal(set_state(FEATURE, VFMIG_STATE_STOP), 0);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, HANDLE, TARGET_VALUE), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(set_state(FEATURE, VFMIG_STATE_RESUMING), 0);
        assert_int_equal(load(FEATURE, data, size), 0);
        expect_wanted(TARGET_VALUE);
        assert_int_equal(set_state(FEATURE, VFMIG_STATE_RUNNING), 0);
        assert_int_equal(peer_reset(peer), 0);
    }
    peer_end(peer);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    assert_int_equal(set_state(FEATURE, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(load(FEATURE, data, size), 0);
    expect_wanted(VFMIG_HANDLE_UNMAPPED);
    close_dma();
    free(data);
}

/* ---- what a client or a stream may not say ---------------------------------------------------- */

static struct toy *toy;

static void open_toy(void)
{
    toy = toy_new(true, true, true, 0);
    dev = toy->dev;
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
}

static void close_toy(void)
{
    peer_end(peer);
    toy_free(toy);
}

static void maps_that_are_refused(void **state)
{
    struct list list = {{VFMIG_DEVICE_HANDLES, 0}, {{0}}};

    open_toy();
    assert_int_equal(set_handle(0, 1, 1), -EINVAL);
    assert_int_equal(set_handle(3, 1, 1), -EINVAL);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, VFMIG_PASID_MAX + 1, 1), -EINVAL);
    assert_int_equal(set_handle(VFMIG_HANDLE_PASID, 1, VFMIG_PASID_MAX + 1), -EINVAL);
    assert_int_equal(peer_feature(peer, SET, &list, 4), -EINVAL);
    assert_int_equal(peer_feature(peer, SET, &list, sizeof(list.head)), -EINVAL); /* too short */
    for (uint32_t i = 0; i <= VFMIG_DEVICE_HANDLES; i++)
        list.list[i] = (struct vfmig_user_handle){VFMIG_HANDLE_IMS, UINT32_MAX - i, i};
    list.head.reserved = 1;
    assert_int_equal(set_handles(&list), -EINVAL);
    list.head.reserved = 0;
    list.list[9].number = list.list[3].number;
    assert_int_equal(set_handles(&list), -EINVAL); /* two answers */
    list.list[9].number = 0;
    list.head.count++;
    assert_int_equal(set_handles(&list), -E2BIG);
    list.head.count--;
    assert_int_equal(set_handles(&list), 0);
    assert_int_equal(set_handles(&list), 0); /* in their places */
    assert_int_equal(set_handle(VFMIG_HANDLE_IMS, 1, 1), -ENOSPC);
    assert_int_equal(set_handle(VFMIG_HANDLE_IMS, 0, VFMIG_HANDLE_UNMAPPED), 0);
    assert_int_equal(set_handle(VFMIG_HANDLE_IMS, 1, 1), 0);
    close_toy();
}

static size_t add_frame(struct vfmig_devstream_enc *enc, uint8_t *at, uint32_t section,
                        const void *data, uint32_t size)
{
    uint32_t head[2] = {section, 0};

    memcpy(at + VFMIG_DEVSTREAM_HEADER, head, sizeof(head));
    memcpy(at + VFMIG_DEVSTREAM_HEADER + sizeof(head), data, size);
    return (size_t)vfmig_devstream_seal(enc, VFMIG_DEVSTREAM_FINAL, at, (uint32_t)sizeof(head) + size);
}

/* Whole streams of a toy with these bytes as its handles, `times` over. What load says. */
static int load_handles(const void *handles, uint32_t size, unsigned times, bool library_first)
{
    static uint8_t stream[16384];
    struct vfmig_devstream_enc enc;
    uint64_t library[1 + VFMIG_DEVICE_VECTORS / 64] = {TOY_VECTORS};
    size_t at = 0;

    vfmig_devstream_begin(&enc, 1, 0x1b367fdf, 0);
    if (library_first)
        at += add_frame(&enc, stream + at, 2, library, sizeof(library));
    for (unsigned i = 0; i < times; i++)
        at += add_frame(&enc, stream + at, 3, handles, size);
    if (!library_first)
        at += add_frame(&enc, stream + at, 2, library, sizeof(library));
    at += (size_t)vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_END, stream + at, 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    return peer_load_v2(peer, stream, at, 3000);
}

static void streams_that_are_refused(void **state)
{
    uint32_t many[VFMIG_DEVICE_HANDLES + 1][2];

    open_toy();
    for (uint32_t i = 0; i <= VFMIG_DEVICE_HANDLES; i++) {
        many[i][0] = VFMIG_HANDLE_IMS;
        many[i][1] = i;
    }
    const struct {
        const void *handles;
        uint32_t size;
        unsigned times;
        bool library_first;
    } bad[] = {
        {many, sizeof(many), 1, false},
        {many, 0, 1, false},
        {many, 12, 1, false},
        {many, 16, 2, false},
        {many, 16, 1, true},
        {(uint32_t[]){VFMIG_HANDLE_IMS, 7, VFMIG_HANDLE_PASID, 7, VFMIG_HANDLE_IMS, 7}, 24, 1, false},
        {(uint32_t[]){0, 7}, 8, 1, false},
        {(uint32_t[]){3, 7}, 8, 1, false},
        {(uint32_t[]){VFMIG_HANDLE_PASID, VFMIG_PASID_MAX + 1}, 8, 1, false},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(load_handles(bad[i].handles, bad[i].size, bad[i].times, bad[i].library_first),
                         -EBADMSG);
        assert_true(peer_set_v2(peer, VFMIG_STATE_STOP) < 0);
        assert_int_equal(peer_reset(peer), 0);
        assert_int_equal(get_handles().head.count, 0);
    }
    /* As many as there may be, and one of them that means nothing here. */
    assert_int_equal(load_handles(many, sizeof(many) - 8, 1, false), 0);
    struct list wanted = get_handles();
    assert_int_equal(wanted.head.count, VFMIG_DEVICE_HANDLES);
    for (uint32_t i = 0; i < wanted.head.count; i++)
        wanted.list[i].value = 1000 + i;
    wanted.head.count--;
    assert_int_equal(set_handles(&wanted), 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), -ENOENT);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(load_handles(many, sizeof(many) - 8, 1, false), 0);
    wanted.head.count++;
    assert_int_equal(set_handles(&wanted), 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), 0);
    close_toy();
}

/* The author's side, on a device that nothing serves. */
static void what_an_author_may_name(void **state)
{
    uint64_t value;

    toy = toy_new(true, true, true, 0);
    dev = toy->dev;
    assert_int_equal(vfmig_device_handle_use(dev, 0, 1), -EINVAL);
    assert_int_equal(vfmig_device_handle_use(dev, VFMIG_HANDLE_PASID, VFMIG_PASID_MAX + 1), -EINVAL);
    for (uint32_t i = 0; i < VFMIG_DEVICE_HANDLES; i++)
        assert_int_equal(vfmig_device_handle_use(dev, VFMIG_HANDLE_IMS, i), 0);
    assert_int_equal(vfmig_device_handle_use(dev, VFMIG_HANDLE_IMS, 5), 0);
    assert_int_equal(vfmig_device_handle_use(dev, VFMIG_HANDLE_PASID, 5), -ENOSPC);
    assert_int_equal(vfmig_device_handle_value(dev, VFMIG_HANDLE_IMS, 5, &value), -ENOENT);
    vfmig_device_handle_drop(dev, VFMIG_HANDLE_PASID, 5); /* not in use: nothing */
    vfmig_device_handle_drop(dev, VFMIG_HANDLE_IMS, 5);
    assert_int_equal(vfmig_device_handle_use(dev, VFMIG_HANDLE_PASID, 5), 0);
    toy_free(toy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dma_carries_the_value),
        cmocka_unit_test(every_pair_of_dialects),
        cmocka_unit_test(the_map_is_the_clients),
        cmocka_unit_test(maps_that_are_refused),
        cmocka_unit_test(streams_that_are_refused),
        cmocka_unit_test(what_an_author_may_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
