/* SPDX-License-Identifier: BSD-3-Clause */
/* A device may misbehave when MMIO hits it while it is stopped (C50, C52), but hurts nobody else
 * (C53): another device beside it, its memory, its DMA map and its stream are as before. */
#include "peer.h"
#include "toy.h"

#include <stdio.h>
#include <unistd.h>

#define BAR_SIZE 0x1000u
#define STEPS    400u

/* Does everything it should not when it is touched while stopped. */
static struct villain {
    struct vfmig_device *dev;
    bool stopped, touched;
    unsigned reached_stopped; /* accesses that reached it while it was stopped */
    unsigned dma_done;
} villain;

static struct peer *his, *control, *hers;
static struct toy *victim;
static char path[64];

static void misbehave(void)
{
    uint64_t junk = 0xdeadbeef;

    villain.reached_stopped++;
    villain.touched = true;
    villain.dma_done += vfmig_device_dma_write(villain.dev, RAM_IOVA, &junk, 8) == 0;
    villain.dma_done += vfmig_device_dma_write(villain.dev, 0, &junk, 8) == 0;
    villain.dma_done += vfmig_device_dma_read(villain.dev, RAM_IOVA + RAM_SIZE - 4, &junk, 8) == 0;
    vfmig_device_irq(villain.dev, 0);
}

static int villain_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    memset(data, 0xee, size);
    if (villain.stopped)
        misbehave();
    return villain.stopped ? -EIO : 0;
}

static int villain_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    if (villain.stopped)
        misbehave();
    return 0;
}

static int villain_stop(void *user)
{
    villain.stopped = true;
    return 0;
}

static int villain_start(void *user)
{
    villain.stopped = false;
    return 0;
}

static void villain_reset(void *user)
{
    villain.stopped = villain.touched = false;
}

static ssize_t villain_save(void *user, void *buf, size_t size)
{
    return villain.touched ? -EIO : 0; /* the migration is corrupted or aborted */
}

static int villain_load(void *user, const void *data, size_t size)
{
    return 0;
}

static struct vfmig_device *villain_new(void)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    memset(&villain, 0, sizeof(villain));
    config.name = "villain";
    config.bars[0].size = BAR_SIZE;
    config.msix_vectors = 1;
    config.msix_table = 0x800;
    config.msix_pba = 0x900;
    config.answers_stopped = true;
    ops.region_read = villain_read;
    ops.region_write = villain_write;
    ops.stop = villain_stop;
    ops.start = villain_start;
    ops.reset = villain_reset;
    ops.save = villain_save;
    ops.load = villain_load;
    assert_int_equal(vfmig_device_new(&config, &ops, NULL, &villain.dev, NULL), 0);
    return villain.dev;
}

static int start(void **state)
{
    char dir[] = "/tmp/vfmig-hostile-XXXXXX";
    int err;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/c", dir);
    assert_int_equal(vfmig_device_listen_control(villain_new(), path, NULL), 0);
    his = peer_start(villain.dev);
    assert_int_equal(peer_version(his, NULL), 0);
    peer_map_ram(his);
    control = peer_control(path, "t", &err);
    assert_non_null(control);
    victim = toy_new(true, true, true, 0);
    hers = peer_start(victim->dev);
    assert_int_equal(peer_version(hers, NULL), 0);
    peer_map_ram(hers);
    for (unsigned i = 0; i < RAM_SIZE; i++)
        his->ram[i] = hers->ram[i] = (uint8_t)(i * 7);
    assert_int_equal(peer_put(hers, 0, TOY_SCRATCH, 0x5eed, 8), 0);
    return 0;
}

static int stop(void **state)
{
    if (control)
        peer_leave(control);
    peer_end(his);
    vfmig_device_free(villain.dev);
    peer_end(hers);
    toy_free(victim);
    *strrchr(path, '/') = 0;
    rmdir(path);
    return 0;
}

static void check_ram(const struct peer *p)
{
    for (unsigned i = 0; i < RAM_SIZE; i++)
        assert_int_equal(p->ram[i], (uint8_t)(i * 7));
}

/* What there is to be hurt: memory of both, the map of the villain, the other device's stream. */
static void nobody_is_hurt(const uint8_t *stream, size_t size)
{
    struct vfmig_user_feature_list ask = {0}, got;
    struct vfmig_user_map_entry entry;
    uint8_t *now;

    check_ram(his);
    check_ram(hers);
    assert_int_equal(villain.dma_done, 0);
    assert_int_equal(peer_feature(control, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DMA_MAP_LIST, &ask,
                                  sizeof(ask)),
                     0);
    memcpy(&got, control->reply + 8, sizeof(got));
    memcpy(&entry, control->reply + 8 + sizeof(got), sizeof(entry));
    assert_int_equal(got.count, 1);
    assert_int_equal(entry.iova, RAM_IOVA);
    assert_int_equal(entry.size, RAM_SIZE);
    assert_int_equal(peer_set_v2(hers, VFMIG_STATE_STOP_COPY), 0);
    assert_int_equal(peer_save_v2(hers, &now, 4096), size);
    /* Frames carry the id of their save: behind the first header only payloads are compared. */
    assert_memory_equal(now + 40, stream + 40, 64);
    assert_int_equal(peer_set_v2(hers, VFMIG_STATE_RUNNING), 0);
    assert_int_equal(peer_get(hers, 0, TOY_SCRATCH, 8), 0x5eed);
    free(now);
}

static size_t save_victim(uint8_t **ret_stream)
{
    assert_int_equal(peer_set_v2(hers, VFMIG_STATE_STOP_COPY), 0);
    size_t size = peer_save_v2(hers, ret_stream, 4096);
    assert_int_equal(peer_set_v2(hers, VFMIG_STATE_RUNNING), 0);
    return size;
}

static void touch(uint32_t seed)
{
    static const uint32_t sizes[] = {1, 2, 4, 8, 3, 64};
    uint8_t data[64];

    for (unsigned i = 0; i < STEPS; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t size = sizes[(seed >> 8) % 6], offset = (seed >> 12) % (BAR_SIZE + 8);
        bool outside = offset + size > BAR_SIZE;
        memset(data, (int)(seed >> 24), sizeof(data));
        int r = seed & 1 << 30 ? peer_read(his, 0, offset, data, size)
                               : peer_write(his, 0, offset, data, size);
        if (outside)
            assert_int_equal(r, -EINVAL);
        else
            assert_true(r == 0 || r == -EIO);
    }
}

static int set_freeze(uint32_t value)
{
    struct vfmig_user_feature_switch sw = {value, 0};
    return peer_feature(control, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_FREEZE, &sw, sizeof(sw));
}

/* C52: MMIO reaches it in S, because it said that it answers and was frozen. Its own migration
 * fails; a reset makes it whole. */
static void it_hurts_itself_alone(void **state)
{
    struct vfmig_user_mig_data req = {sizeof(req) + 4096, 4096};
    uint8_t *stream;
    size_t size = save_victim(&stream);

    assert_int_equal(set_freeze(1), 0);
    assert_int_equal(peer_set_v2(control, VFMIG_STATE_STOP_COPY), 0);
    touch(1);
    assert_true(villain.reached_stopped > STEPS / 2);
    nobody_is_hurt(stream, size);
    assert_int_equal(peer_call(control, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), -EIO);
    assert_int_equal(peer_reset(control), 0);
    assert_int_equal(peer_get_v2(control), VFMIG_STATE_RUNNING);
    nobody_is_hurt(stream, size);
    free(stream);
}

/* C50, C53: in {}, S, Z and ERROR nothing reaches it, wherever it is touched. */
static void stopped_it_is_out_of_reach(void **state)
{
    static const uint32_t states[] = {VFMIG_STATE_STOP, VFMIG_STATE_STOP_COPY,
                                      VFMIG_STATE_RESUMING, VFMIG_STATE_ERROR};
    uint8_t *stream, junk[64] = {1};
    size_t size = save_victim(&stream);

    for (unsigned i = 0; i < 4; i++) {
        bool error = states[i] == VFMIG_STATE_ERROR;
        assert_int_equal(peer_set_v2(control, error ? VFMIG_STATE_RESUMING : states[i]), 0);
        if (error) {
            peer_load_v2(control, junk, sizeof(junk), sizeof(junk));
            assert_true(peer_set_v2(control, VFMIG_STATE_RUNNING) < 0);
        }
        assert_int_equal(peer_get_v2(control), states[i]);
        touch(100 + i);
        assert_int_equal(villain.reached_stopped, 0);
        nobody_is_hurt(stream, size);
        assert_int_equal(peer_reset(control), 0);
    }
    free(stream);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(it_hurts_itself_alone),
        TEST(stopped_it_is_out_of_reach),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
