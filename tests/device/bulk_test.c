/* SPDX-License-Identifier: BSD-3-Clause */
/* The bulk device: what its registers say of its state, and that the state comes over whole, by
 * either dialect, while it changes. */
#include "peer.h"

#include <stdio.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "core/devstream.h"
#include "devices/bulk_regs.h"
#include "devices/devices.h"

#define BLOCKS 100u /* no power of two, and no multiple of what fits in a piece */

static struct vfmig_device *dev;
static struct peer *peer;

static void open_device(const struct vfmig_device_knobs *knobs)
{
    struct vfmig_error err = {0};

    if (vfmig_bulk_device_new(knobs, &dev, &err) < 0)
        fail_msg("%s", err.text);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
}

static void open_blocks(uint64_t blocks)
{
    open_device(&(struct vfmig_device_knobs){.state_bytes = blocks * BULK_BLOCK});
}

static void close_device(void)
{
    peer_end(peer);
    vfmig_device_free(dev);
}

static uint64_t get(uint64_t offset)
{
    return peer_get(peer, BULK_BAR, offset, 8);
}

/* The digest as the device makes it from its bytes, and of which number of writes. */
static uint64_t digest(uint64_t *ret_written)
{
    peer_put(peer, BULK_BAR, BULK_REG_COMMAND, BULK_COMMAND_DIGEST, 4);
    while (peer_get(peer, BULK_BAR, BULK_REG_STATUS, 4) & BULK_STATUS_BUSY)
        ;
    *ret_written = get(BULK_REG_DIGEST_AT);
    return get(BULK_REG_DIGEST);
}

/* The digest as it must be: by counting writes one after the other. */
static uint64_t expected_digest(uint64_t blocks, uint64_t written)
{
    uint64_t *sequences = calloc(blocks, sizeof(*sequences)), words[BULK_BLOCK_WORDS], sum = 0;

    for (uint64_t n = 1; n <= written; n++)
        sequences[bulk_block_of(blocks, n)] = n;
    for (uint64_t block = 0; block < blocks; block++) {
        for (uint32_t i = 0; i < BULK_BLOCK_WORDS; i++)
            words[i] = bulk_word(block, sequences[block], i);
        sum = bulk_digest_add(sum, block, vfmig_crc32c(0, words, BULK_BLOCK));
    }
    free(sequences);
    return sum;
}

static void assert_state(uint64_t blocks, uint64_t written)
{
    uint64_t at, found = digest(&at);

    assert_int_equal(at, written);
    assert_int_equal(get(BULK_REG_WRITTEN), written);
    assert_true(found == expected_digest(blocks, written));
}

static void write_blocks(uint32_t count)
{
    peer_put(peer, BULK_BAR, BULK_REG_WRITE, count, 4);
}

/* The order meets every block once a cycle, and bulk_sequence() finds the last write. */
static void the_order_of_writes(void **state)
{
    static const uint64_t sizes[] = {1, 2, 3, 100, 16384, 1048575};

    for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint64_t blocks = sizes[s], inverse = bulk_inverse(blocks);
        uint8_t *seen = calloc(1, blocks);
        for (uint64_t n = 1; n <= blocks; n++) {
            uint64_t block = bulk_block_of(blocks, n);
            assert_true(block < blocks && !seen[block]++);
            assert_int_equal(bulk_sequence(blocks, inverse, block, n), n);
            assert_int_equal(bulk_sequence(blocks, inverse, block, n - 1), 0);
            assert_int_equal(bulk_sequence(blocks, inverse, block, n + blocks - 1), n);
            assert_int_equal(bulk_sequence(blocks, inverse, block, n + 2 * blocks), n + 2 * blocks);
        }
        free(seen);
    }
}

static void registers(void **state)
{
    open_blocks(BLOCKS);
    assert_int_equal(peer_get(peer, BULK_BAR, BULK_REG_ID, 4), BULK_ID);
    assert_int_equal(peer_get(peer, BULK_BAR, BULK_REG_CTRL, 4), BULK_CTRL_RUN);
    assert_int_equal(get(BULK_REG_SIZE), BLOCKS * BULK_BLOCK);
    assert_int_equal(get(BULK_REG_RATE), 0);
    assert_state(BLOCKS, 0);
    write_blocks(37);
    assert_state(BLOCKS, 37);
    write_blocks(BULK_WRITE_MAX + 1); /* more than one write may do */
    assert_state(BLOCKS, 37 + BULK_WRITE_MAX);
    peer_put(peer, BULK_BAR, BULK_REG_SELECT, 41, 8);
    peer_put(peer, BULK_BAR, BULK_REG_SELECT, BLOCKS, 8); /* there is no such block */
    assert_int_equal(get(BULK_REG_SELECT), 41);
    uint64_t n = bulk_sequence(BLOCKS, bulk_inverse(BLOCKS), 41, 37 + BULK_WRITE_MAX);
    for (uint32_t i = 0; i < BULK_BLOCK_WORDS; i++)
        assert_true(get(BULK_WINDOW + i * 8) == bulk_word(41, n, i));
    assert_int_equal(peer_get(peer, BULK_BAR, BULK_WINDOW, 1), 41);
    assert_int_equal(peer_reset(peer), 0);
    assert_state(BLOCKS, 0);
    close_device();
}

/* By itself it writes while it may, and not at all while it is stopped. */
static void the_writer(void **state)
{
    open_device(&(struct vfmig_device_knobs){.state_bytes = BLOCKS * BULK_BLOCK,
                                             .dirty_rate = 64 << 20});
    assert_int_equal(get(BULK_REG_RATE), 64 << 20);
    while (get(BULK_REG_WRITTEN) < BLOCKS)
        ;
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), 0);
    assert_int_equal(peer_get(peer, BULK_BAR, BULK_REG_WRITTEN, 8), UINT64_MAX); /* C51 */
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    uint64_t before = get(BULK_REG_WRITTEN);
    while (get(BULK_REG_WRITTEN) == before)
        ;
    peer_put(peer, BULK_BAR, BULK_REG_CTRL, 0, 4);
    uint64_t still = get(BULK_REG_WRITTEN);
    assert_state(BLOCKS, still);
    close_device();
}

/* ---- migration ------------------------------------------------------------------------------- */

enum way { FEATURE, REGION };

static int set_state(enum way way, uint32_t state)
{
    static const uint32_t bits[] = {6, 0, 1, 2, 4, 9, 3, 11};
    return way == FEATURE ? peer_set_v2(peer, state) : peer_set_v1(peer, bits[state]);
}

static size_t save(enum way way, uint8_t **ret_data)
{
    return way == FEATURE ? peer_save_v2(peer, ret_data, 100000) : peer_save_v1(peer, ret_data);
}

static int load(enum way way, const uint8_t *data, size_t size)
{
    int r = set_state(way, VFMIG_STATE_RESUMING);

    assert_int_equal(r, 0);
    r = way == FEATURE ? peer_load_v2(peer, data, size, 100000)
                       : peer_load_v1(peer, data, size, 65536);
    return r < 0 ? r : set_state(way, VFMIG_STATE_RUNNING);
}

/* Appends what can be saved now. Returns how much that was. */
static size_t save_more(enum way way, uint8_t **data, size_t *size)
{
    uint8_t *more;
    size_t got = save(way, &more);

    *data = realloc(*data, *size + got + 1);
    if (got)
        memcpy(*data + *size, more, got);
    free(more);
    *size += got;
    return got;
}

/* A stream in which blocks changed during pre-copy and between it and the stop; 47 writes. */
static size_t make_stream(enum way way, uint8_t **ret_data)
{
    size_t size = 0;

    *ret_data = NULL;
    open_blocks(BLOCKS);
    write_blocks(30);
    assert_int_equal(set_state(way, VFMIG_STATE_PRE_COPY), 0);
    assert_true(save_more(way, ret_data, &size) > BLOCKS * BULK_BLOCK);
    assert_int_equal(save_more(way, ret_data, &size), 0); /* nothing now (A16) */
    write_blocks(10);
    size_t more = save_more(way, ret_data, &size);
    assert_true(more > 10 * BULK_BLOCK && more < 11 * BULK_BLOCK); /* changes only (C65) */
    write_blocks(7);
    peer_put(peer, BULK_BAR, BULK_REG_SELECT, 5, 8);
    peer_put(peer, BULK_BAR, BULK_REG_CTRL, 0, 4);
    assert_int_equal(set_state(way, VFMIG_STATE_STOP_COPY), 0);
    more = save_more(way, ret_data, &size);
    assert_true(more > 7 * BULK_BLOCK && more < 8 * BULK_BLOCK);
    close_device();
    return size;
}

static void move(enum way from, enum way to)
{
    uint8_t *data;
    size_t size = make_stream(from, &data);

    open_device(&(struct vfmig_device_knobs){.state_bytes = BLOCKS * BULK_BLOCK,
                                             .dirty_rate = 64 << 20});
    assert_int_equal(load(to, data, size), 0);
    assert_int_equal(peer_get(peer, BULK_BAR, BULK_REG_CTRL, 4), 0); /* stays off */
    assert_int_equal(get(BULK_REG_SELECT), 5);
    assert_state(BLOCKS, 47);
    close_device();
    free(data);
}

static void feature_to_feature(void **state)
{
    move(FEATURE, FEATURE);
}

static void feature_to_region(void **state)
{
    move(FEATURE, REGION);
}

static void region_to_feature(void **state)
{
    move(REGION, FEATURE);
}

static void region_to_region(void **state)
{
    move(REGION, REGION);
}

/* Changes while portions are read one by one, in the middle of blocks too. */
static void changes_during_the_stream(void **state)
{
    struct vfmig_user_mig_data req = {8 + 5000, 5000}, got;
    uint8_t *data = malloc(64 * BLOCKS * BULK_BLOCK);
    size_t size = 0;

    open_blocks(BLOCKS);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    for (unsigned i = 0; i < 300; i++) {
        write_blocks(1);
        assert_int_equal(peer_call(peer, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), 0);
        memcpy(&got, peer->reply, sizeof(got));
        memcpy(data + size, peer->reply + 8, got.size);
        size += got.size;
    }
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    save_more(FEATURE, &data, &size);
    close_device();
    open_blocks(BLOCKS);
    assert_int_equal(load(FEATURE, data, size), 0);
    assert_state(BLOCKS, 300);
    close_device();
    free(data);
}

/* A frozen device answers after it was stopped, and may change while it is saved: what changes
 * before its registers are saved comes over, nothing that changes after them. */
static void frozen(void **state)
{
    const uint32_t one[2] = {1, 0};
    struct vfmig_error err = {0};
    struct vfmig_user_mig_data req = {8 + 5000, 5000}, got;
    struct peer *control;
    uint8_t *data = NULL;
    size_t size = 0;
    char path[64];
    int r = 0;

    snprintf(path, sizeof(path), "/tmp/vfmig-bulk-%d.sock", (int)getpid());
    const struct vfmig_device_knobs knobs = {.state_bytes = BLOCKS * BULK_BLOCK};
    assert_int_equal(vfmig_bulk_device_new(&knobs, &dev, &err), 0);
    assert_int_equal(vfmig_device_listen_control(dev, path, &err), 0);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    control = peer_control(path, "bulk", &r);
    assert_int_equal(r, 0);
    assert_int_equal(peer_feature(control, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_FREEZE, one, 8), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    do {
        write_blocks(1); /* by the owner, before every piece */
        assert_int_equal(peer_call(control, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), 0);
        memcpy(&got, control->reply, sizeof(got));
        data = realloc(data, size + got.size + 1);
        memcpy(data + size, control->reply + 8, got.size);
        size += got.size;
    } while (got.size == req.size);
    uint64_t written = get(BULK_REG_WRITTEN);
    peer_leave(control);
    close_device();
    open_blocks(BLOCKS);
    assert_int_equal(load(FEATURE, data, size), 0);
    assert_true(get(BULK_REG_WRITTEN) <= written);
    assert_state(BLOCKS, get(BULK_REG_WRITTEN));
    close_device();
    free(data);
}

/* A digest that was asked for and not made yet is made on the other side. */
static void a_digest_under_way(void **state)
{
    uint8_t *data;
    uint64_t blocks = 8192;

    open_blocks(blocks);
    write_blocks(1);
    peer_post(peer, BULK_BAR, BULK_REG_COMMAND, BULK_COMMAND_DIGEST, 4);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    size_t size = peer_save_v2(peer, &data, 1 << 20);
    close_device();
    open_blocks(blocks);
    assert_int_equal(load(FEATURE, data, size), 0);
    while (peer_get(peer, BULK_BAR, BULK_REG_STATUS, 4) & BULK_STATUS_BUSY)
        ;
    assert_int_equal(get(BULK_REG_DIGEST_AT), 1);
    assert_true(get(BULK_REG_DIGEST) == expected_digest(blocks, 1));
    close_device();
    free(data);
}

static uint64_t data_size(void)
{
    struct vfmig_user_feature head = {16, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DATA_SIZE};
    uint64_t left;

    assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &head, sizeof(head)), 0);
    memcpy(&left, peer->reply + 8, sizeof(left));
    return left;
}

static void what_is_left_is_said(void **state)
{
    uint8_t *data;

    open_blocks(BLOCKS);
    uint64_t all = data_size();
    assert_true(all >= BLOCKS * BULK_BLOCK && all < (BLOCKS + 2) * (BULK_BLOCK + 64));
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    assert_true(data_size() >= BLOCKS * BULK_BLOCK);
    peer_save_v2(peer, &data, 1 << 20);
    free(data);
    assert_true(data_size() < BULK_BLOCK);
    write_blocks(10);
    assert_true(data_size() >= 10 * BULK_BLOCK && data_size() < 11 * BULK_BLOCK);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(data_size(), all);
    close_device();
}

static void another_size_is_refused(void **state)
{
    uint8_t *data;
    size_t size = make_stream(FEATURE, &data);

    open_blocks(BLOCKS + 1);
    assert_int_equal(load(FEATURE, data, size), -EINVAL);
    assert_int_equal(peer_reset(peer), 0);
    assert_state(BLOCKS + 1, 0);
    close_device();
    free(data);
}

/* One frame of the library's stream around these bytes. */
static size_t seal(const void *records, uint32_t size, uint8_t *frame)
{
    struct vfmig_devstream_enc enc;
    const uint32_t section[2] = {1, 0};
    uint8_t *payload = frame + VFMIG_DEVSTREAM_HEADER;

    vfmig_devstream_begin(&enc, 1, BULK_PCI_VENDOR << 16 | BULK_PCI_DEVICE, 1);
    memcpy(payload, section, sizeof(section));
    memcpy(payload + sizeof(section), records, size);
    return (size_t)vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_FINAL, frame,
                                        (uint32_t)sizeof(section) + size);
}

#define SIZE_RECORD {1, 0, BLOCKS * BULK_BLOCK}

/* The library's frame is in order; what is in it is not. The first case is, and shows that. */
static void bad_records_are_refused(void **state)
{
    struct record {
        uint32_t kind, length;
        uint64_t offset;
    };
    static const struct {
        struct record first, second;
        int err;
    } cases[] = {
        {SIZE_RECORD, {2, 64, 0}, 0},
        {{2, 0, 0}, {2, 64, 0}, -EBADMSG},                                   /* no size first */
        {SIZE_RECORD, SIZE_RECORD, -EBADMSG},                                /* twice */
        {SIZE_RECORD, {2, 64, BLOCKS * BULK_BLOCK}, -EBADMSG},               /* behind the end */
        {SIZE_RECORD, {2, 64, (BLOCKS - 1) * BULK_BLOCK + 64}, -EBADMSG},    /* inside a block */
        {SIZE_RECORD, {2, 64, UINT64_MAX - 4095}, -EBADMSG},
        {SIZE_RECORD, {2, 60, 0}, -EBADMSG},                                 /* no whole words */
        {SIZE_RECORD, {2, 72, 0}, -EBADMSG},                                 /* more than comes */
        {SIZE_RECORD, {3, 64, 0}, -EBADMSG},                                 /* other registers */
        {SIZE_RECORD, {9, 64, 0}, -EBADMSG},                                 /* no such kind */
    };

    open_blocks(BLOCKS);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t records[2 * sizeof(struct record) + 64] = {0}, frame[256];
        memcpy(records, &cases[i].first, sizeof(struct record));
        memcpy(records + sizeof(struct record), &cases[i].second, sizeof(struct record));
        size_t size = seal(records, sizeof(records), frame);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
        assert_int_equal(peer_load_v2(peer, frame, size, 256), cases[i].err);
        assert_true(peer_set_v2(peer, VFMIG_STATE_RUNNING) < 0); /* it is not all (C16) */
        assert_int_equal(peer_reset(peer), 0);
    }
    assert_state(BLOCKS, 0);
    close_device();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_order_of_writes),
        cmocka_unit_test(registers),
        cmocka_unit_test(the_writer),
        cmocka_unit_test(feature_to_feature),
        cmocka_unit_test(feature_to_region),
        cmocka_unit_test(region_to_feature),
        cmocka_unit_test(region_to_region),
        cmocka_unit_test(changes_during_the_stream),
        cmocka_unit_test(frozen),
        cmocka_unit_test(a_digest_under_way),
        cmocka_unit_test(what_is_left_is_said),
        cmocka_unit_test(another_size_is_refused),
        cmocka_unit_test(bad_records_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
