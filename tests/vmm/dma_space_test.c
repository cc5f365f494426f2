/* SPDX-License-Identifier: BSD-3-Clause */
/* Where an access of a device goes: RAM of one block or two, what lies beside it, nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "devices/dma_regs.h"
#include "dirty/trackers.h"
#include "vmm/dma.h"

#define LOW_PAGES  2u
#define HIGH_PAGES 2u
#define HIGH       UINT64_C(0x100000000)
#define BESIDE     UINT64_C(0xe0000000)

struct world {
    uint8_t low[LOW_PAGES * 4096], high[HIGH_PAGES * 4096], beside[2 * 4096];
    struct vfmig_ram_block blocks[2];
    struct vmm_dma_space space;
    struct vmm_dma_device device;
    struct vfmig_user_dma dma;
    unsigned calls;
    uint32_t device_seen;
};

static int beside(void *opaque, uint32_t device, uint64_t gpa, bool is_write, void *data,
                  uint32_t size)
{
    struct world *w = opaque;

    w->calls++;
    w->device_seen = device;
    assert_true(size && gpa % 4096 + size <= 4096);
    if (gpa < BESIDE || gpa + size > BESIDE + sizeof(w->beside))
        return -EFAULT;
    memcpy(is_write ? (void *)(w->beside + (gpa - BESIDE)) : data,
           is_write ? data : (void *)(w->beside + (gpa - BESIDE)), size);
    return 0;
}

static void init(struct world *w)
{
    memset(w, 0, sizeof(*w));
    w->blocks[0] = (struct vfmig_ram_block){.size = sizeof(w->low), .host = w->low, .fd = -1};
    w->blocks[1] =
        (struct vfmig_ram_block){.gpa = HIGH, .size = sizeof(w->high), .host = w->high, .fd = -1};
    w->space = (struct vmm_dma_space){.memory = {w->blocks, 2}, .beside = beside, .opaque = w};
    w->device = (struct vmm_dma_device){.space = &w->space, .index = 5};
    w->dma = vmm_dma_callbacks(&w->device);
    assert_int_equal(vfmig_tracker_own_new(&w->space.own, NULL), 0);
}

static void done(struct world *w)
{
    w->space.own->ops->free(w->space.own);
}

static void goes_where_it_belongs(void **state)
{
    struct world w;
    uint8_t data[3 * 4096], back[3 * 4096];

    init(&w);
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + i / 256);
    assert_int_equal(w.dma.write(w.dma.opaque, 4000, data, 200), 0);
    assert_memory_equal(w.low + 4000, data, 200);
    assert_ptr_equal(w.dma.in_place(w.dma.opaque, 4000, 200), w.low + 4000);
    assert_null(w.dma.in_place(w.dma.opaque, sizeof(w.low) - 8, 9));
    assert_null(w.dma.in_place(w.dma.opaque, BESIDE, 8));
    assert_int_equal(w.calls, 0);
    assert_int_equal(w.dma.write(w.dma.opaque, BESIDE + 4000, data, 200), 0);
    assert_int_equal(w.calls, 2); /* one a page */
    assert_int_equal(w.device_seen, 5);
    assert_int_equal(w.dma.read(w.dma.opaque, BESIDE + 4000, back, 200), 0);
    assert_memory_equal(back, data, 200);
    /* Over the end of RAM, where nothing is: what fits is done. */
    assert_int_equal(w.dma.write(w.dma.opaque, sizeof(w.low) - 8, data, 16), -EFAULT);
    assert_memory_equal(w.low + sizeof(w.low) - 8, data, 8);
    assert_int_equal(w.dma.read(w.dma.opaque, UINT64_MAX - 3, back, 8), -EFAULT);
    assert_int_equal(w.dma.read(w.dma.opaque, HIGH + sizeof(w.high), back, 1), -EFAULT);
    w.space.beside = NULL;
    assert_int_equal(w.dma.read(w.dma.opaque, BESIDE, back, 8), -EFAULT);
    /* Two blocks that touch are one to a device. */
    w.blocks[1].gpa = sizeof(w.low);
    assert_int_equal(w.dma.write(w.dma.opaque, sizeof(w.low) - 100, data, 4096), 0);
    assert_memory_equal(w.low + sizeof(w.low) - 100, data, 100);
    assert_memory_equal(w.high, data + 100, 3996);
    done(&w);
}

/* C71: an access counts under the host's PASID of its device and under no other. */
static void under_its_pasid_alone(void **state)
{
    struct world w;
    uint8_t data[16] = {1, 2, 3}, back[16] = {0};
    const uint64_t wrong[] = {100, dma_tagged(6, 100), dma_tagged(DMA_PASID_NONE, 100)};

    init(&w);
    w.device.tagged = true;
    w.device.pasid = 7;
    assert_int_equal(w.dma.write(w.dma.opaque, dma_tagged(7, 100), data, sizeof(data)), 0);
    assert_memory_equal(w.low + 100, data, sizeof(data));
    assert_int_equal(w.dma.read(w.dma.opaque, dma_tagged(7, 100), back, sizeof(back)), 0);
    assert_memory_equal(back, data, sizeof(data));
    assert_ptr_equal(w.dma.in_place(w.dma.opaque, dma_tagged(7, 100), 8), w.low + 100);
    assert_int_equal(w.dma.read(w.dma.opaque, dma_tagged(7, BESIDE), back, 8), 0);
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(w.dma.write(w.dma.opaque, wrong[i], back, 8), -EFAULT);
        assert_int_equal(w.dma.read(w.dma.opaque, wrong[i], back, 8), -EFAULT);
        assert_null(w.dma.in_place(w.dma.opaque, wrong[i], 8));
    }
    w.device.pasid = 0; /* this host has none */
    assert_int_equal(w.dma.read(w.dma.opaque, 100, back, 8), -EFAULT);
    done(&w);
}

/* The page is marked when the write returns, and only the pages that were written. */
static void marks_what_it_writes(void **state)
{
    struct world w;
    struct vfmig_dirty_map map;
    uint8_t data[4096] = {1};

    init(&w);
    assert_int_equal(vfmig_dirty_map_init(&map, &w.space.memory, NULL), 0);
    assert_int_equal(w.space.own->ops->start(w.space.own, &w.space.memory, NULL), 0);
    assert_int_equal(w.dma.read(w.dma.opaque, 0, data, 4096), 0);
    assert_int_equal(w.dma.write(w.dma.opaque, BESIDE, data, 8), 0);
    assert_int_equal(w.space.own->ops->sync(w.space.own, &map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&map), 0);
    assert_int_equal(w.dma.write(w.dma.opaque, HIGH + 4095, data, 2), 0);
    assert_int_equal(w.space.own->ops->sync(w.space.own, &map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&map), 2);
    assert_int_equal(map.bitmaps[1][0], 3);
    vfmig_dirty_map_done(&map);
    done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(under_its_pasid_alone),
        cmocka_unit_test(goes_where_it_belongs),
        cmocka_unit_test(marks_what_it_writes),
    };

    return cmocka_run_group_tests_name("dma-space", tests, NULL, NULL);
}
