/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty rings without KVM: the other side is a model of what KVM does with them, filled by a thread
 * that writes memory. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "dirty/gfn_ring.h"

#define ENTRIES 64u
#define SOFT    48u  /* a writer stops here */
#define PAGES   300u /* not a multiple of 64 */
#define SMALL   37u
#define SLOT    5u
#define WRITERS 2u
#define WRITES  40000u

struct kvm {
    struct vfmig_gfn_rings rings;
    struct ring {
        struct kvm_dirty_gfn entries[ENTRIES];
        uint32_t dirty, reset; /* KVM's indices */
    } ring[WRITERS];
    bool writable[PAGES];
    _Atomic uint64_t page[PAGES]; /* what is in it */
    uint64_t copy[PAGES];
    pthread_mutex_t lock; /* KVM's */
    struct vfmig_ram_block blocks[2];
    struct vfmig_memory memory;
    struct vfmig_dirty_map map;
    atomic_uint writing;
    uint64_t wraps;
    unsigned late;
};

static void push(struct kvm *kvm, unsigned r, uint32_t slot, uint64_t offset)
{
    struct ring *ring = &kvm->ring[r];
    struct kvm_dirty_gfn *entry = &ring->entries[ring->dirty % ENTRIES];

    entry->slot = slot;
    entry->offset = offset;
    __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
    ring->dirty++;
    kvm->wraps += ring->dirty % ENTRIES == 0;
}

static int reset(void *opaque)
{
    struct kvm *kvm = opaque;

    pthread_mutex_lock(&kvm->lock);
    for (unsigned r = 0; r < kvm->rings.ring_count; r++) {
        struct ring *ring = &kvm->ring[r];
        for (;;) {
            struct kvm_dirty_gfn *entry = &ring->entries[ring->reset % ENTRIES];
            if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET))
                break;
            if (entry->slot == SLOT && entry->offset < PAGES)
                kvm->writable[entry->offset] = false;
            __atomic_store_n(&entry->flags, 0, __ATOMIC_RELEASE);
            ring->reset++;
        }
    }
    pthread_mutex_unlock(&kvm->lock);
    return 0;
}

/* A writer that does not stop in time: the entries that were just taken are written over. */
static int reset_too_late(void *opaque)
{
    struct kvm *kvm = opaque;

    for (; kvm->late; kvm->late--)
        push(kvm, 0, SLOT, 200 + kvm->late);
    return reset(opaque);
}

static void open_kvm(struct kvm *kvm, unsigned rings)
{
    memset(kvm, 0, sizeof(*kvm));
    pthread_mutex_init(&kvm->lock, NULL);
    kvm->blocks[0] = (struct vfmig_ram_block){0, PAGES * VFMIG_PAGE_SIZE, NULL, -1, 0};
    kvm->blocks[1] = (struct vfmig_ram_block){1u << 30, SMALL * VFMIG_PAGE_SIZE, NULL, -1, 0};
    kvm->memory = (struct vfmig_memory){kvm->blocks, 2};
    vfmig_gfn_rings_init(&kvm->rings);
    kvm->rings.slots[0] = SLOT;
    kvm->rings.slots[1] = SLOT + 1;
    kvm->rings.reset = reset;
    kvm->rings.opaque = kvm;
    kvm->rings.ring_count = rings;
    for (unsigned i = 0; i < rings; i++)
        kvm->rings.ring[i] =
            (struct vfmig_gfn_ring){.entries = kvm->ring[i].entries, .count = ENTRIES};
    assert_int_equal(vfmig_dirty_map_init(&kvm->map, &kvm->memory, NULL), 0);
    assert_int_equal(vfmig_gfn_rings_begin(&kvm->rings, &kvm->memory, NULL), 0);
}

static void close_kvm(struct kvm *kvm)
{
    vfmig_gfn_rings_done(&kvm->rings);
    vfmig_dirty_map_done(&kvm->map);
    pthread_mutex_destroy(&kvm->lock);
}

/* True when the writer has to leave and have its ring emptied. */
static bool write_page(struct kvm *kvm, unsigned r, unsigned page)
{
    pthread_mutex_lock(&kvm->lock);
    bool full = kvm->ring[r].dirty - kvm->ring[r].reset >= SOFT;
    if (!full) {
        if (!kvm->writable[page])
            push(kvm, r, SLOT, page);
        kvm->writable[page] = true;
        kvm->page[page]++;
    }
    pthread_mutex_unlock(&kvm->lock);
    return full;
}

struct writer {
    struct kvm *kvm;
    unsigned ring;
};

static void *writer_main(void *arg)
{
    const struct writer *writer = arg;
    struct kvm *kvm = writer->kvm;
    unsigned random = 7 + writer->ring;

    for (unsigned i = 0; i < WRITES; i++) {
        random = random * 1103515245u + 12345u;
        while (write_page(kvm, writer->ring, (random >> 8) % PAGES))
            vfmig_gfn_rings_full(&kvm->rings, writer->ring);
    }
    kvm->writing--;
    return NULL;
}

static void copy_dirty(struct kvm *kvm)
{
    for (uint64_t p = vfmig_bitmap_next(kvm->map.bitmaps[0], PAGES, 0); p < PAGES;
         p = vfmig_bitmap_next(kvm->map.bitmaps[0], PAGES, p + 1)) {
        vfmig_bitmap_clear(kvm->map.bitmaps[0], p);
        kvm->copy[p] = kvm->page[p];
    }
}

static void wrap_full_and_writers(void **state)
{
    static struct kvm kvm;
    struct writer writers[WRITERS];
    pthread_t threads[WRITERS];

    open_kvm(&kvm, WRITERS);
    kvm.writing = WRITERS;
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){&kvm, i};
        assert_int_equal(pthread_create(&threads[i], NULL, writer_main, &writers[i]), 0);
    }
    while (kvm.writing) {
        assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), 0);
        copy_dirty(&kvm);
        sched_yield();
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), 0);
    copy_dirty(&kvm);
    for (unsigned p = 0; p < PAGES; p++)
        assert_int_equal(kvm.copy[p], kvm.page[p]);
    assert_true(kvm.rings.full > 0);
    assert_true(kvm.wraps > 0);
    close_kvm(&kvm);
}

/* The bytes of an entry are not believed. */
static void entries_out_of_range(void **state)
{
    static const struct {
        uint32_t slot;
        uint64_t offset;
    } wrong[] = {
        {SLOT, PAGES},           {SLOT, UINT64_MAX},          {SLOT + 1, SMALL},
        {SLOT + 2, 0},           {SLOT | 1u << 16, 0},        {0, 0},
        {SLOT, UINT64_C(1) << 61}, {UINT32_MAX, UINT64_MAX},
    };
    static struct kvm kvm;
    struct vfmig_error err;

    open_kvm(&kvm, 1);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        push(&kvm, 0, SLOT, i);
        push(&kvm, 0, wrong[i].slot, wrong[i].offset);
        push(&kvm, 0, SLOT + 1, SMALL - 1);
        assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, &err), -EPROTO);
        assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
        assert_true(vfmig_bitmap_test(kvm.map.bitmaps[0], i));
        assert_true(vfmig_bitmap_test(kvm.map.bitmaps[1], SMALL - 1));
        assert_int_equal(vfmig_dirty_map_count(&kvm.map), i + 2);
        /* It was told once. */
        assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), 0);
    }
    close_kvm(&kvm);
}

/* More entries than there is room for: the oldest are written over, in KVM's order. */
static void overrun(void **state)
{
    static struct kvm kvm;

    open_kvm(&kvm, 2);
    for (unsigned more = 0; more < 20; more += 5) {
        for (unsigned i = 0; i < ENTRIES + more; i++)
            push(&kvm, 1, SLOT, i);
        assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), -EPROTO);
        memset(kvm.map.bitmaps[0], 0, vfmig_bitmap_words(PAGES) * 8);
        /* What comes afterwards is found, although KVM counts on from elsewhere. */
        push(&kvm, 1, SLOT, 100);
        push(&kvm, 0, SLOT, 101);
        push(&kvm, 1, SLOT, 102);
        assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), more ? -EPROTO : 0);
        assert_int_equal(vfmig_dirty_map_count(&kvm.map), 3);
        assert_int_equal(kvm.ring[1].dirty, kvm.ring[1].reset);
    }
    close_kvm(&kvm);
}

static void overrun_before_the_reset(void **state)
{
    static struct kvm kvm;

    open_kvm(&kvm, 1);
    kvm.rings.reset = reset_too_late;
    for (unsigned late = 1; late <= SOFT; late += 9) {
        for (unsigned i = 0; i < SOFT; i++)
            push(&kvm, 0, SLOT, i);
        kvm.late = ENTRIES - SOFT + late;
        assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), -EPROTO);
        /* What was written over was taken before; the rest is there. */
        int ret = vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL);
        assert_true(ret == 0 || ret == -EPROTO);
        assert_int_equal(vfmig_dirty_map_count(&kvm.map), SOFT + ENTRIES - SOFT + late);
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), 0);
        assert_int_equal(kvm.ring[0].dirty, kvm.ring[0].reset);
        memset(kvm.map.bitmaps[0], 0, vfmig_bitmap_words(PAGES) * 8);
    }
    close_kvm(&kvm);
}

/* Full and nothing there: the other one's thread was faster, and nothing is lost; or what KVM counts
 * was written over, and the writer goes on. */
static void full_and_empty(void **state)
{
    static struct kvm kvm;

    open_kvm(&kvm, 2);
    vfmig_gfn_rings_full(&kvm.rings, 0);
    vfmig_gfn_rings_full(&kvm.rings, 1);
    push(&kvm, 0, SLOT, 1);
    vfmig_gfn_rings_full(&kvm.rings, 0);
    vfmig_gfn_rings_full(&kvm.rings, 0);
    assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&kvm.map), 1);
    assert_int_equal(kvm.rings.full, 4);

    push(&kvm, 0, SLOT, 1);
    vfmig_gfn_rings_full(&kvm.rings, 0);
    kvm.ring[0].dirty += SOFT;
    assert_true(write_page(&kvm, 0, 2));
    vfmig_gfn_rings_full(&kvm.rings, 0);
    assert_true(write_page(&kvm, 0, 2));
    vfmig_gfn_rings_full(&kvm.rings, 0);
    assert_false(write_page(&kvm, 0, 2));
    assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), -EPROTO);
    assert_true(vfmig_bitmap_test(kvm.map.bitmaps[0], 2));
    vfmig_gfn_rings_full(&kvm.rings, 2); /* there is none */
    close_kvm(&kvm);
}

/* C27: what was in the rings before the log began is not in it. */
static void begins_empty(void **state)
{
    static struct kvm kvm;

    open_kvm(&kvm, 1);
    push(&kvm, 0, SLOT, 1);
    vfmig_gfn_rings_full(&kvm.rings, 0);
    push(&kvm, 0, SLOT, 2);
    assert_int_equal(vfmig_gfn_rings_begin(&kvm.rings, &kvm.memory, NULL), 0);
    push(&kvm, 0, SLOT, 3);
    assert_int_equal(vfmig_gfn_rings_take(&kvm.rings, &kvm.map, NULL), 0);
    assert_int_equal(vfmig_dirty_map_count(&kvm.map), 1);
    assert_true(vfmig_bitmap_test(kvm.map.bitmaps[0], 3));
    close_kvm(&kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrap_full_and_writers), cmocka_unit_test(entries_out_of_range),
        cmocka_unit_test(overrun),               cmocka_unit_test(full_and_empty),
        cmocka_unit_test(begins_empty),          cmocka_unit_test(overrun_before_the_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
