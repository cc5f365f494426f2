/* SPDX-License-Identifier: BSD-3-Clause */
/* Two dma devices behind their servers, and between them what the VMM has for peer to peer DMA: the
 * whole way of an access, wanted and hostile, to a peer that runs and to one that is stopped. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/devices.h"
#include "devices/dma_regs.h"
#include "vmm/dma.h"
#include "vmm/peers.h"

#define RAM_BYTES 0x100000u
#define RING(i)   (0x1000u * ((i) + 1))
#define SRC(i)    (0x20000u * ((i) + 1))
#define DST(i)    (0x20000u * ((i) + 3))
#define ENTRIES   16u
#define SRAM(i)   (pci[i].bars[0].gpa + DMA_SRAM)

static char folder[] = "/tmp/vfmig-p2p-XXXXXX";
static struct vfmig_device *devices[2];
static pthread_t servers[2];
static struct vfmig_pci pci[2];
static struct vmm_peers peers;
static struct vfmig_ram_block block;
static struct vmm_dma_space space;
static struct vmm_dma_device dma[2];
static uint32_t tails[2];
static uint8_t *ram;

static void *serve(void *arg)
{
    vfmig_device_run(arg, NULL);
    return NULL;
}

static void put(uint32_t i, uint32_t offset, uint64_t value, uint32_t size)
{
    assert_int_equal(pci[i].target->ops->region_write(pci[i].target, 0, offset, &value, size, false,
                                                      NULL), 0);
}

static uint64_t get(uint32_t i, uint32_t offset, uint32_t size)
{
    uint64_t value = 0;

    assert_int_equal(pci[i].target->ops->region_read(pci[i].target, 0, offset, &value, size, NULL), 0);
    return value;
}

static void open_device(uint32_t i, uint64_t *window)
{
    struct vfmig_error err = {0};
    struct vfmig_target *target;
    char path[64];

    assert_int_equal(vfmig_dma_device_new(&(struct vfmig_device_knobs){0}, &devices[i], &err), 0);
    snprintf(path, sizeof(path), "%s/%u", folder, i);
    assert_int_equal(vfmig_device_listen(devices[i], path, &err), 0);
    assert_int_equal(pthread_create(&servers[i], NULL, serve, devices[i]), 0);
    dma[i] = (struct vmm_dma_device){.space = &space, .index = i};
    const struct vfmig_user_options options = {.dma = vmm_dma_callbacks(&dma[i])};
    assert_int_equal(vfmig_user_open(path, &options, &target, &err), 0);
    assert_int_equal(vfmig_pci_init(&pci[i], i, i ? "b" : "a", target, window, &err), 0);
    assert_int_equal(target->ops->dma_map(target, 0, RAM_BYTES, block.fd, 0, 3, &err), 0);
    peers.serves[i] = vfmig_user_has_twin(target);
    assert_int_equal(vmm_peers_add(&peers, i + 1, &err), 0);
    put(i, DMA_REG_RING, RING(i), 8);
    put(i, DMA_REG_ENTRIES, ENTRIES, 4);
    put(i, DMA_REG_CTRL, DMA_CTRL_ENABLE, 4);
    tails[i] = 0;
}

static int set_up(void **state)
{
    uint64_t window = VFMIG_PCI_WINDOW;

    block = (struct vfmig_ram_block){.size = RAM_BYTES, .fd = memfd_create("ram", MFD_CLOEXEC)};
    if (block.fd < 0 || ftruncate(block.fd, RAM_BYTES))
        return -1;
    ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, block.fd, 0);
    if (ram == MAP_FAILED)
        return -1;
    block.host = ram;
    vmm_peers_init(&peers, pci, VMM_P2P_AUTO);
    space = (struct vmm_dma_space){
        .memory = {&block, 1}, .beside = vmm_peers_access, .opaque = &peers};
    for (uint32_t i = 0; i < 2; i++)
        open_device(i, &window);
    return 0;
}

static int tear_down(void **state)
{
    vmm_peers_shut(&peers);
    for (uint32_t i = 0; i < 2; i++) {
        vfmig_pci_done(&pci[i]);
        vfmig_device_stop(devices[i]);
        pthread_join(servers[i], NULL);
        vfmig_device_free(devices[i]);
    }
    vmm_peers_done(&peers);
    munmap(ram, RAM_BYTES);
    close(block.fd);
    return 0;
}

/* Queues a copy; the doorbell is the caller's. */
static struct dma_descriptor *queue(uint32_t i, uint64_t dst, uint64_t src, uint32_t length)
{
    struct dma_descriptor *ring = (void *)(ram + RING(i)), *desc = &ring[tails[i]++ % ENTRIES];

    *desc = (struct dma_descriptor){.op = DMA_OP_COPY, .src = src, .dst = dst, .length = length};
    return desc;
}

static void wait_for(uint32_t i)
{
    while ((uint32_t)get(i, DMA_REG_HEAD, 4) != tails[i])
        ;
}

/* The errno of one copy by device i. */
static int copy(uint32_t i, uint64_t dst, uint64_t src, uint32_t length)
{
    struct dma_descriptor *desc = queue(i, dst, src, length);

    put(i, DMA_REG_TAIL, tails[i], 4);
    wait_for(i);
    assert_true(desc->status & DMA_STATUS_DONE);
    return (int)(desc->status & ~DMA_STATUS_DONE);
}

static void fill(uint32_t at, uint32_t size, unsigned seed)
{
    for (uint32_t i = 0; i < size; i++)
        ram[at + i] = (uint8_t)((i + seed) * 37 >> 3);
}

static struct vfmig_device_counters counters(uint32_t i)
{
    struct vfmig_device_counters c;

    vfmig_device_get_counters(devices[i], &c);
    return c;
}

static void any_size_and_alignment_arrives(void **state)
{
    static const struct {
        uint32_t at, size;
    } pieces[] = {{0, 8}, {1, 1}, {3, 1001}, {0xffff, 1}, {4090, 13}, {0x1001, 0x8fff},
                  {0, DMA_SRAM_SIZE}};

    for (unsigned i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        uint32_t at = pieces[i].at, size = pieces[i].size;
        fill(SRC(0), size, i);
        memset(ram + DST(0), 0, size);
        assert_int_equal(copy(0, SRAM(1) + at, SRC(0), size), 0);
        assert_int_equal((uint8_t)get(1, DMA_SRAM + at, 1), ram[SRC(0)]);
        assert_int_equal((uint8_t)get(1, DMA_SRAM + at + size - 1, 1), ram[SRC(0) + size - 1]);
        assert_int_equal(copy(0, DST(0), SRAM(1) + at, size), 0);
        assert_memory_equal(ram + DST(0), ram + SRC(0), size);
    }
    /* From one peer's window to another place in it, without memory. */
    assert_int_equal(copy(0, SRAM(1) + 100, SRAM(1) + 5000, 300), 0);
    assert_int_equal(get(1, DMA_SRAM + 100, 8), get(1, DMA_SRAM + 5000, 8));
}

static void registers_take_what_a_cpu_may_write(void **state)
{
    fill(SRC(0), 64, 3);
    uint64_t bar = pci[1].bars[0].gpa, word;
    memcpy(&word, ram + SRC(0), 8);
    assert_int_equal(copy(0, bar + DMA_REG_SCRATCH, SRC(0), 8), 0);
    assert_int_equal(get(1, DMA_REG_SCRATCH, 8), word);
    assert_int_equal(copy(0, DST(0), bar + DMA_REG_SCRATCH, 8), 0);
    assert_memory_equal(ram + DST(0), ram + SRC(0), 8);
    assert_int_equal(copy(0, bar + DMA_REG_SCRATCH, SRC(0) + 8, 16), 0); /* no register is so wide */
    assert_int_equal(get(1, DMA_REG_SCRATCH, 8), word);
}

static void hostile_copies_end_where_the_window_ends(void **state)
{
    uint64_t bar = pci[1].bars[0].gpa;
    const struct {
        uint64_t at;
        uint32_t size;
    } bad[] = {
        {bar + DMA_MSIX_TABLE, 16},      {bar + DMA_MSIX_PBA, 8},       {bar + DMA_MSIX_TABLE + 12, 4},
        {bar + DMA_MSIX_TABLE - 8, 16},  {bar + 0x9ff8, 16},            {bar - 8, 16},
        {bar + DMA_BAR_SIZE - 8, 16},    {bar + DMA_BAR_SIZE, 8},       {SRAM(0), 8},
        {0xfee00000, 4},                 {UINT64_MAX - 7, 8},           {RAM_BYTES - 8, 16},
        {VFMIG_PCI_WINDOW_END, 4},
    };
    uint64_t table[8];

    for (unsigned i = 0; i < 8; i++)
        table[i] = get(1, DMA_MSIX_TABLE + 8 * i, 8);
    memset(ram + SRC(0), 0xee, 64);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(copy(0, bad[i].at, SRC(0), bad[i].size), EFAULT);
        assert_int_equal(copy(0, DST(0), bad[i].at, bad[i].size), EFAULT);
    }
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(get(1, DMA_MSIX_TABLE + 8 * i, 8), table[i]);
    assert_int_equal(pci[1].peer_failures, 0);
    assert_int_equal(copy(0, SRAM(1), SRC(0), 64), 0); /* none the worse for it */
}

/* Each reads and writes the other one's memory while its own is read and written. */
static void both_at_once_do_not_wait_for_each_other(void **state)
{
    struct dma_descriptor *last[2];

    for (uint32_t i = 0; i < 2; i++)
        fill(SRC(i), 0x8000, i + 10);
    for (unsigned round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < 2; i++) {
            for (unsigned n = 0; n < ENTRIES / 2; n++) {
                queue(i, SRAM(1 - i) + 0x8000 * (n % 2), SRC(i), 0x8000);
                last[i] = queue(i, DST(i), SRAM(1 - i) + 0x8000 * (n % 2), 0x8000);
            }
        }
        for (uint32_t i = 0; i < 2; i++)
            put(i, DMA_REG_TAIL, tails[i], 4);
        for (uint32_t i = 0; i < 2; i++) {
            wait_for(i);
            assert_int_equal(last[i]->status, DMA_STATUS_DONE);
            assert_memory_equal(ram + DST(i), ram + SRC(i), 0x8000);
            memset(ram + DST(i), 0, 0x8000);
        }
    }
}

static void set_state(uint32_t i, enum vfmig_state state)
{
    assert_int_equal(pci[i].target->ops->set_state(pci[i].target, state, 10000000000, NULL), 0);
}

static void a_stopped_peer_answers_ones_and_counts(void **state)
{
    static const uint8_t ones[64] = {[0 ... 63] = 0xff};

    fill(SRC(0), 64, 21);
    assert_int_equal(copy(0, SRAM(1), SRC(0), 64), 0);
    set_state(1, VFMIG_STATE_STOP);
    memset(ram + SRC(0), 0x11, 64);
    assert_int_equal(copy(0, SRAM(1), SRC(0), 64), 0);
    assert_int_equal(copy(0, DST(0), SRAM(1), 64), 0);
    assert_memory_equal(ram + DST(0), ones, 64);
    assert_int_equal(counters(1).mmio_stopped_writes, 1);
    assert_int_equal(counters(1).mmio_stopped_reads, 1);
    set_state(1, VFMIG_STATE_RUNNING);
    fill(SRC(0), 64, 21);
    assert_int_equal(copy(0, DST(0), SRAM(1), 64), 0);
    assert_memory_equal(ram + DST(0), ram + SRC(0), 64);
}

/* Posted, but before whatever comes after its completion. */
static void a_complete_write_comes_before_the_stop(void **state)
{
    uint64_t stopped = counters(1).mmio_stopped_writes;

    for (uint64_t n = 1; n <= 100; n++) {
        memcpy(ram + SRC(0), &n, sizeof(n));
        assert_int_equal(copy(0, SRAM(1) + 8 * n, SRC(0), 8), 0);
        set_state(1, n % 2 ? VFMIG_STATE_STOP : VFMIG_STATE_RUNNING_NDMA);
        set_state(1, VFMIG_STATE_RUNNING);
        assert_int_equal(get(1, DMA_SRAM + 8 * (uint32_t)n, 8), n);
    }
    assert_int_equal(counters(1).mmio_stopped_writes, stopped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_size_and_alignment_arrives),
        cmocka_unit_test(registers_take_what_a_cpu_may_write),
        cmocka_unit_test(hostile_copies_end_where_the_window_ends),
        cmocka_unit_test(both_at_once_do_not_wait_for_each_other),
        cmocka_unit_test(a_stopped_peer_answers_ones_and_counts),
        cmocka_unit_test(a_complete_write_comes_before_the_stop),
    };
    if (!mkdtemp(folder))
        return 1;
    int failed = cmocka_run_group_tests_name("p2p-devices", tests, set_up, tear_down);
    return rmdir(folder) || failed;
}
