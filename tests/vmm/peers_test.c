/* SPDX-License-Identifier: BSD-3-Clause */
/* Who gets whose windows, and what becomes of DMA that comes by them, wanted and hostile. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>

#include "vfmig/migrate.h"
#include "vmm/dma.h"
#include "vmm/peers.h"

#define DEVICES 4u
#define BAR(i)  (0xe0000000u + (i)*0x100000u)
#define SIZE    0x20000u
#define TABLE   0x8000u
#define PBA     0x9000u
#define NDMA    VFMIG_FEATURE_NDMA
#define MAX_LOG 64u

struct map {
    uint64_t iova, size;
};

struct fake {
    struct vfmig_target target;
    struct map maps[MAX_LOG];
    unsigned map_count, maps_until_full; /* 0: never full */
    uint8_t bar[SIZE];
    uint32_t pieces[MAX_LOG];
    unsigned piece_count, unposted;
    bool broken;
    sem_t *entered, *go; /* a read stands still between the two */
};

static struct fake fakes[DEVICES];
static struct vfmig_pci pci[DEVICES];
static struct vmm_peers peers;

static int fake_map(struct vfmig_target *t, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                    uint32_t prot, struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;

    assert_int_equal(fd, -1);
    assert_int_equal(prot, 3);
    if (fake->maps_until_full && --fake->maps_until_full == 0)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_DEVICE, 0, "the map is full");
    fake->maps[fake->map_count++] = (struct map){iova, size};
    return 0;
}

static int fake_unmap(struct vfmig_target *t, uint64_t iova, uint64_t size, struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;

    for (unsigned i = 0; i < fake->map_count; i++) {
        if (fake->maps[i].iova == iova && fake->maps[i].size == size) {
            fake->maps[i] = fake->maps[--fake->map_count];
            return 0;
        }
    }
    fail_msg("%#lx was not mapped", (unsigned long)iova);
    return -ENOENT;
}

static int access_bar(struct fake *fake, uint32_t region, uint64_t offset, uint32_t size)
{
    assert_int_equal(region, 0);
    assert_true(offset + size <= SIZE);
    if (fake->broken)
        return -EPIPE;
    fake->pieces[fake->piece_count++ % MAX_LOG] = size;
    return 0;
}

static int fake_read(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                     uint32_t size, struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;
    int ret = access_bar(fake, region, offset, size);

    if (fake->entered) {
        sem_post(fake->entered);
        sem_wait(fake->go);
    }
    if (!ret)
        memcpy(data, fake->bar + offset, size);
    return ret;
}

static int fake_write(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                      uint32_t size, bool posted, struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;
    int ret = access_bar(fake, region, offset, size);

    fake->unposted += !posted;
    if (!ret)
        memcpy(fake->bar + offset, data, size);
    return ret;
}

static const struct vfmig_target_ops ops = {
    .name = "fake",
    .dma_map = fake_map,
    .dma_unmap = fake_unmap,
    .region_read = fake_read,
    .region_write = fake_write,
};

/* Device i has the features given, and a twin socket. */
static void set_up(enum vmm_p2p policy, const uint32_t features[DEVICES])
{
    memset(fakes, 0, sizeof(fakes));
    memset(pci, 0, sizeof(pci));
    vmm_peers_init(&peers, pci, policy);
    for (uint32_t i = 0; i < DEVICES; i++) {
        fakes[i].target = (struct vfmig_target){
            .ops = &ops,
            .info = {.features = VFMIG_FEATURE_STOP_COPY | features[i],
                     .quiet = features[i] & NDMA ? VFMIG_QUIET_ALL : VFMIG_QUIET_NONE}};
        pci[i] = (struct vfmig_pci){.index = i,
                                    .target = &fakes[i].target,
                                    .bars[0] = {BAR(i), SIZE, true},
                                    .vectors = 4,
                                    .table_entries = 4,
                                    .table_offset = TABLE,
                                    .pba_offset = PBA};
        strcpy(pci[i].id, (const char[]){'d', (char)('0' + i), 0});
        peers.serves[i] = true;
    }
}

static void add_all(void)
{
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_int_equal(vmm_peers_add(&peers, i + 1, NULL), 0);
}

/* For each device a digit for each other one that it reaches. */
static void assert_reaches(const char *want)
{
    char found[DEVICES * (DEVICES + 1)] = "", *at = found;

    for (uint32_t i = 0; i < DEVICES; i++) {
        for (uint32_t j = 0; j < DEVICES; j++)
            if (atomic_load(&peers.mapped[i][j]))
                *at++ = (char)('0' + j);
        *at++ = i + 1 < DEVICES ? ' ' : 0;
    }
    assert_string_equal(found, want);
    for (uint32_t i = 0; i < DEVICES; i++) {
        unsigned reached = 0, reaches = 0;
        for (uint32_t j = 0; j < DEVICES; j++) {
            reaches += atomic_load(&peers.mapped[i][j]);
            reached |= atomic_load(&peers.mapped[j][i]);
        }
        assert_int_equal(fakes[i].map_count, 2 * reaches); /* below and above the MSI-X pages */
        assert_int_equal(peers.flags[i], (reaches ? VFMIG_PEER_REACHES : 0u) |
                                             (reached ? VFMIG_PEER_REACHED : 0u));
    }
}

static int dma(uint32_t device, uint64_t gpa, bool is_write, void *data, uint32_t size)
{
    return vmm_peers_access(&peers, device, gpa, is_write, data, size);
}

static void with_ndma_all_reach_each_other(void **state)
{
    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, NDMA, NDMA});
    fakes[1].target.info.quiet = VFMIG_QUIET_P2P; /* that is what it stops */
    add_all();
    assert_reaches("123 023 013 012");
    vmm_peers_done(&peers);
}

static void without_ndma_none_reaches_or_is_reached(void **state)
{
    uint64_t word = 0;

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){0, NDMA, 0, NDMA});
    add_all();
    assert_reaches(" 3  1");
    /* Not even when a server asks for what it was not given. */
    for (uint32_t i = 0; i < DEVICES; i++)
        for (uint32_t j = 0; j < DEVICES; j++)
            assert_int_equal(dma(i, BAR(j), true, &word, 8), i + j == 4 && i != j ? 0 : -EFAULT);
    vmm_peers_done(&peers);
}

static void one_alone_takes_no_part(void **state)
{
    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){0, NDMA, 0, 0});
    add_all();
    assert_reaches("   ");
    assert_false(peers.any);
    vmm_peers_done(&peers);
}

static void the_policy_is_obeyed(void **state)
{
    struct vfmig_error err = {0};
    enum vmm_p2p policy;

    set_up(VMM_P2P_OFF, (const uint32_t[DEVICES]){NDMA, NDMA, NDMA, NDMA});
    add_all();
    assert_reaches("   ");
    vmm_peers_done(&peers);
    set_up(VMM_P2P_ON, (const uint32_t[DEVICES]){NDMA, 0, NDMA, NDMA});
    add_all();
    assert_reaches("123 023 013 012");
    vmm_peers_done(&peers);

    /* DMA that nobody serves would stand still for ever. */
    set_up(VMM_P2P_ON, (const uint32_t[DEVICES]){NDMA, NDMA, NDMA, NDMA});
    peers.serves[1] = false;
    assert_int_equal(vmm_peers_add(&peers, 1, &err), 0);
    assert_int_equal(vmm_peers_add(&peers, 2, &err), -ENOTSUP);
    assert_string_equal(err.text,
                        "device d1 has no twin socket, so its peer to peer DMA cannot be served");
    vmm_peers_done(&peers);
    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, NDMA, NDMA});
    peers.serves[1] = false;
    add_all();
    assert_reaches("123  013 012");
    vmm_peers_done(&peers);

    assert_int_equal(vmm_p2p_parse("on", &policy), 0);
    assert_int_equal(policy, VMM_P2P_ON);
    assert_int_equal(vmm_p2p_parse("", &policy), -EINVAL);
}

/* The newcomer, or one that is to reach it, has no room: nobody keeps any of it. */
static void a_newcomer_is_mapped_or_not_at_all(void **state)
{
    for (unsigned who = 0; who < 3; who++) {
        for (unsigned full = 1; full <= (who == 2 ? 4u : 2u); full++) {
            struct vfmig_error err = {0};
            set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, NDMA, NDMA});
            assert_int_equal(vmm_peers_add(&peers, 1, NULL), 0);
            assert_int_equal(vmm_peers_add(&peers, 2, NULL), 0);
            fakes[who].maps_until_full = full;
            assert_int_equal(vmm_peers_add(&peers, 3, &err), -ENOSPC);
            assert_non_null(strstr(err.text, "the map is full"));
            assert_reaches("1 0  ");
            assert_int_equal(peers.count, 2);
            vmm_peers_done(&peers);
        }
    }
}

static void a_device_goes(void **state)
{
    uint64_t word = 0;

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, NDMA});
    add_all();
    assert_reaches("13 03  01");
    vmm_peers_remove(&peers);
    assert_reaches("1 0  ");
    assert_int_equal(dma(0, BAR(3), true, &word, 8), -EFAULT);
    assert_int_equal(vmm_peers_add(&peers, 4, NULL), 0);
    assert_reaches("13 03  01");
    vmm_peers_done(&peers);
}

static void nothing_passes_once_it_is_shut(void **state)
{
    uint64_t word = 0;

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    add_all();
    assert_int_equal(dma(0, BAR(1), true, &word, 8), 0);
    vmm_peers_shut(&peers);
    assert_int_equal(dma(0, BAR(1), true, &word, 8), -EFAULT);
    vmm_peers_done(&peers);
}

static atomic_bool read_is_over;
static bool removed_too_early;

static void *read_slowly(void *arg)
{
    uint64_t word;

    (void)dma(0, BAR(1), false, &word, 8);
    return NULL;
}

static void *remove_last(void *arg)
{
    vmm_peers_remove(&peers);
    removed_too_early = !atomic_load(&read_is_over);
    return NULL;
}

/* Its target is about to be closed: whoever is inside must have left. */
static void a_device_does_not_go_under_an_access(void **state)
{
    sem_t entered, go;
    pthread_t reader, remover;

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    assert_int_equal(vmm_peers_add(&peers, 1, NULL), 0);
    assert_int_equal(vmm_peers_add(&peers, 2, NULL), 0);
    assert_reaches("1 0  ");
    sem_init(&entered, 0, 0);
    sem_init(&go, 0, 0);
    fakes[1].entered = &entered;
    fakes[1].go = &go;
    assert_int_equal(pthread_create(&reader, NULL, read_slowly, NULL), 0);
    sem_wait(&entered);
    assert_int_equal(pthread_create(&remover, NULL, remove_last, NULL), 0);
    while (atomic_load(&peers.mapped[1][0])) /* the last mapping that it takes away */
        ;
    atomic_store(&read_is_over, true);
    sem_post(&go);
    pthread_join(reader, NULL);
    pthread_join(remover, NULL);
    assert_false(removed_too_early);
    sem_destroy(&entered);
    sem_destroy(&go);
    vmm_peers_done(&peers);
}

/* --- windows --- */

static void assert_windows(uint32_t size, uint32_t entries, uint32_t table, uint32_t pba,
                           const struct map *want, unsigned count)
{
    struct vmm_peer_window found[VMM_PEER_WINDOWS];
    const struct vfmig_pci device = {.bars[0] = {BAR(0), size, false},
                                     .vectors = entries < 4 ? entries : 4,
                                     .table_entries = entries,
                                     .table_offset = table,
                                     .pba_offset = pba};

    assert_int_equal(vmm_peers_windows(&device, 0, found), count);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(found[i].gpa, BAR(0) + want[i].iova);
        assert_int_equal(found[i].size, want[i].size);
    }
}

#define WINDOWS(size, entries, table, pba, ...)                                                    \
    assert_windows(size, entries, table, pba, (const struct map[]){__VA_ARGS__},                   \
                   sizeof((const struct map[]){__VA_ARGS__}) / sizeof(struct map))

static void msix_pages_are_in_no_window(void **state)
{
    struct vmm_peer_window windows[VMM_PEER_WINDOWS];

    WINDOWS(SIZE, 0, 0, 0, {0, SIZE});
    WINDOWS(SIZE, 4, TABLE, PBA, {0, TABLE}, {0xa000, SIZE - 0xa000});
    WINDOWS(SIZE, 4, PBA, TABLE, {0, TABLE}, {0xa000, SIZE - 0xa000});
    WINDOWS(SIZE, 4, 0x8000, 0x8040, {0, 0x8000}, {0x9000, SIZE - 0x9000});
    WINDOWS(SIZE, 4, 0x2000, 0x10000, {0, 0x2000}, {0x3000, 0xd000}, {0x11000, SIZE - 0x11000});
    WINDOWS(SIZE, 4, 0, SIZE - 8, {0x1000, SIZE - 0x2000});
    WINDOWS(SIZE, 256, 0x2ff0, 0, {0x1000, 0x1000}, {0x4000, SIZE - 0x4000});
    WINDOWS(SIZE, 2048, 0, 0x8000, {0x9000, SIZE - 0x9000});
    assert_windows(0x1000, 4, 0, 0x800, NULL, 0);
    assert_windows(0x800, 0, 0, 0, NULL, 0);
    /* A table elsewhere is no concern of this BAR. */
    const struct vfmig_pci two = {.bars = {{BAR(0), 0x1000, false}, {BAR(1), SIZE, false}},
                                  .vectors = 4,
                                  .table_entries = 4,
                                  .table_bar = 1,
                                  .pba_bar = 1,
                                  .pba_offset = 0x1000};
    assert_int_equal(vmm_peers_windows(&two, 0, windows), 1);
    assert_int_equal(windows[0].size, 0x1000);
    assert_int_equal(vmm_peers_windows(&two, 1, windows), 1);
    assert_int_equal(windows[0].gpa, BAR(1) + 0x2000);
}

/* --- accesses --- */

static void a_prefetchable_bar_takes_it_whole(void **state)
{
    uint8_t data[4096], back[4096] = {0};

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    add_all();
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(dma(0, BAR(1) + 0x10000, true, data, 4096), 0);
    assert_int_equal(dma(0, BAR(1) + 0x10000, false, back, 4096), 0);
    assert_memory_equal(back, data, sizeof(data));
    assert_int_equal(fakes[1].piece_count, 2);
    assert_int_equal(fakes[1].pieces[0], 4096);
    assert_int_equal(fakes[1].unposted, 0);
    assert_int_equal(pci[1].peer_writes, 1);
    assert_int_equal(pci[1].peer_reads, 1);
    assert_int_equal(pci[1].writes + pci[1].reads, 0); /* those are the guest's */
    vmm_peers_done(&peers);
}

static void elsewhere_it_comes_in_pieces_of_the_bus(void **state)
{
    static const uint32_t want[] = {1, 2, 4, 8, 8, 4, 2, 1};
    uint8_t data[32];

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    pci[1].bars[0].prefetchable = false;
    add_all();
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i + 1);
    for (unsigned is_write = 0; is_write < 2; is_write++) {
        fakes[1].piece_count = 0;
        assert_int_equal(dma(0, BAR(1) + 1, is_write, data, 30), 0);
        assert_int_equal(fakes[1].piece_count, 8);
        assert_memory_equal(fakes[1].pieces, want, sizeof(want));
        memset(data, 0x55, sizeof(data));
    }
    assert_int_equal(fakes[1].bar[0], 0);
    assert_int_equal(fakes[1].bar[31], 0);
    vmm_peers_done(&peers);
}

static void hostile_accesses_reach_nothing(void **state)
{
    static const struct {
        uint64_t gpa;
        uint32_t size;
    } bad[] = {
        {BAR(1) + TABLE, 8},         {BAR(1) + TABLE + 0x3c, 4},  {BAR(1) + PBA, 8},
        {BAR(1) + TABLE - 4, 8},     {BAR(1) + PBA + 0xffc, 8},   {BAR(1) - 4, 8},
        {BAR(1) + SIZE - 4, 8},      {BAR(1) + SIZE, 1},          {BAR(0), 8},
        {BAR(2), 8},                 {BAR(1) + SIZE - 1, 0xffff}, {UINT64_MAX - 3, 4},
        {UINT64_MAX - 3, 8},         {0, 8},                      {0xfee00000, 4},
        {GUEST_CONTROL, 8},          {BAR(1) + 0x80000, 8},       {BAR(1), SIZE + 1},
    };
    uint8_t data[4 * SIZE] = {0};

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    add_all();
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        for (unsigned is_write = 0; is_write < 2; is_write++)
            assert_int_equal(dma(0, bad[i].gpa, is_write, data, bad[i].size), -EFAULT);
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_int_equal(fakes[i].piece_count, 0);
    vmm_peers_done(&peers);
}

/* As the server's message comes in: from RAM into a window, and from a window into the MSI-X page. */
static void what_crosses_an_end_is_done_up_to_it(void **state)
{
    uint8_t data[0x2000], ram[4096] = {0};
    struct vfmig_ram_block block = {.gpa = BAR(1) - 4096, .size = 4096, .host = ram, .fd = -1};
    struct vmm_dma_space space = {
        .memory = {&block, 1}, .beside = vmm_peers_access, .opaque = &peers};

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    add_all();
    memset(data, 0xa5, sizeof(data));
    assert_int_equal(vmm_dma_access(&space, 0, BAR(1) - 16, true, data, 32), 0);
    assert_int_equal(ram[4095], 0xa5);
    assert_int_equal(fakes[1].bar[15], 0xa5);
    assert_int_equal(fakes[1].bar[16], 0);
    assert_int_equal(vmm_dma_access(&space, 0, BAR(1) + TABLE - 64, true, data, 0x100), -EFAULT);
    assert_int_equal(fakes[1].bar[TABLE - 1], 0xa5);
    assert_int_equal(fakes[1].bar[TABLE], 0);
    assert_int_equal(vmm_dma_access(&space, 2, BAR(1), true, data, 8), -EFAULT);
    vmm_peers_done(&peers);
}

static void a_peer_that_is_gone_is_an_error(void **state)
{
    uint64_t word = 0;

    set_up(VMM_P2P_AUTO, (const uint32_t[DEVICES]){NDMA, NDMA, 0, 0});
    add_all();
    fakes[1].broken = true;
    assert_int_equal(dma(0, BAR(1), true, &word, 8), -EIO);
    assert_int_equal(dma(0, BAR(1), false, &word, 8), -EIO);
    assert_int_equal(pci[1].peer_failures, 2);
    vmm_peers_done(&peers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_ndma_all_reach_each_other),
        cmocka_unit_test(without_ndma_none_reaches_or_is_reached),
        cmocka_unit_test(one_alone_takes_no_part),
        cmocka_unit_test(the_policy_is_obeyed),
        cmocka_unit_test(a_newcomer_is_mapped_or_not_at_all),
        cmocka_unit_test(a_device_goes),
        cmocka_unit_test(nothing_passes_once_it_is_shut),
        cmocka_unit_test(a_device_does_not_go_under_an_access),
        cmocka_unit_test(msix_pages_are_in_no_window),
        cmocka_unit_test(a_prefetchable_bar_takes_it_whole),
        cmocka_unit_test(elsewhere_it_comes_in_pieces_of_the_bus),
        cmocka_unit_test(hostile_accesses_reach_nothing),
        cmocka_unit_test(what_crosses_an_end_is_done_up_to_it),
        cmocka_unit_test(a_peer_that_is_gone_is_an_error),
    };
    return cmocka_run_group_tests_name("peers", tests, NULL, NULL);
}
