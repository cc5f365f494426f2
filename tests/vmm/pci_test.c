/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM's side of a PCI function, with a device of 256 bytes of configuration space and one BAR
 * in memory behind it, honest and otherwise. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/pci.h"

#define BAR_BYTES 0x20000u
#define TABLE     0x8000u
#define PBA       0x9000u
#define VECTORS   4u

struct fake {
    struct vfmig_target target;
    uint8_t config[256];
    uint8_t bar[BAR_BYTES];
    int fds[VECTORS];
    bool broken; /* every access fails */
};

struct vfmig_machine {
    uint64_t address[GUEST_MAX_GSIS];
    uint32_t data[GUEST_MAX_GSIS];
    unsigned calls;
};

/* Stands in for the machine: the test is about what it is told. */
int vfmig_machine_msi_eventfd(struct vfmig_machine *m, uint32_t gsi, uint64_t address, uint32_t data,
                              struct vfmig_error *reterr)
{
    assert_true(gsi < GUEST_MAX_GSIS);
    m->address[gsi] = address;
    m->data[gsi] = data;
    m->calls++;
    return 1000 + (int)gsi;
}

static uint8_t *at(struct vfmig_target *t, uint32_t region, uint64_t offset, uint32_t size)
{
    struct fake *fake = (struct fake *)t;
    if (fake->broken)
        return NULL;
    if (region == VFMIG_PCI_CONFIG && offset + size <= sizeof(fake->config))
        return fake->config + offset;
    if (region == 0 && offset + size <= sizeof(fake->bar))
        return fake->bar + offset;
    return NULL;
}

static int fake_read(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                     uint32_t size, struct vfmig_error *reterr)
{
    uint8_t *from = at(t, region, offset, size);
    if (!from)
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_DEVICE, 0, "broken");
    memcpy(data, from, size);
    return 0;
}

static int fake_write(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                      uint32_t size, bool posted, struct vfmig_error *reterr)
{
    uint8_t *to = at(t, region, offset, size);
    if (!to)
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_DEVICE, 0, "broken");
    memcpy(to, data, size);
    return 0;
}

static int fake_set_irqs(struct vfmig_target *t, uint32_t index, uint32_t start, uint32_t count,
                         const int *fds, struct vfmig_error *reterr)
{
    struct fake *fake = (struct fake *)t;
    assert_int_equal(index, VFMIG_PCI_IRQ_MSIX);
    assert_true(start + count <= VECTORS);
    memcpy(fake->fds + start, fds, count * sizeof(*fds));
    return 0;
}

static void fake_close(struct vfmig_target *t)
{
    free(t);
}

static const struct vfmig_target_ops ops = {
    .name = "fake",
    .region_read = fake_read,
    .region_write = fake_write,
    .set_irqs = fake_set_irqs,
    .close = fake_close,
};

static struct fake *fake_new(void)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    const uint8_t msix[12] = {0x11, 0, VECTORS - 1, 0, 0x00, 0x80, 0, 0, 0x00, 0x90, 0, 0};

    fake->target.ops = &ops;
    fake->target.info.region_size[0] = BAR_BYTES;
    fake->target.info.irq_count[VFMIG_PCI_IRQ_MSIX] = VECTORS;
    memcpy(fake->config, "\x36\x1b\xd0\x7f", 4);
    fake->config[0x06] = 0x10;
    fake->config[0x34] = 0x40;
    memcpy(fake->config + 0x40, msix, sizeof(msix));
    return fake;
}

static int init(struct vfmig_pci *pci, struct fake *fake, struct vfmig_error *err)
{
    uint64_t window = VFMIG_PCI_WINDOW;
    return vfmig_pci_init(pci, 3, "d", &fake->target, &window, err);
}

static void a_device_that_lies_is_refused(void **state)
{
    static const struct {
        uint8_t offset, value;
        const char *word;
    } lies[] = {
        {0x34, 0xf8, "leaves configuration space"}, {0x34, 0x3c, "leaves configuration space"},
        {0x44, 0x01, "MSI-X table"},                {0x44, 0x07, "MSI-X table"},
        {0x47, 0xff, "MSI-X table"},                {0x48, 0x05, "pending bits"},
        {0x4b, 0x80, "pending bits"},               {0x42, 0x08, "more MSI-X vectors"},
    };
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct fake *fake = fake_new();
        struct vfmig_pci pci;
        struct vfmig_error err = {0};
        fake->config[lies[i].offset] = lies[i].value;
        assert_int_equal(init(&pci, fake, &err), -ENODEV);
        assert_non_null(strstr(err.text, lies[i].word));
        fake_close(&fake->target);
    }
}

static void a_list_of_capabilities_that_loops_ends(void **state)
{
    struct fake *fake = fake_new();
    struct vfmig_pci pci;

    fake->config[0x40] = 0x09;
    fake->config[0x41] = 0x40;
    assert_int_equal(init(&pci, fake, NULL), 0);
    assert_int_equal(pci.vectors, 0);
    vfmig_pci_done(&pci);
}

static void bars_are_aligned_and_do_not_overlap(void **state)
{
    static const uint64_t sizes[] = {0x1000, 0x400000, 0x20000, 0x8000000};
    uint64_t window = VFMIG_PCI_WINDOW, end = VFMIG_PCI_WINDOW;
    struct vfmig_pci pci;
    struct vfmig_error err = {0};

    for (size_t i = 0; i < 4; i++) {
        struct fake *fake = fake_new();
        fake->config[0x34] = 0;
        fake->target.info.region_size[2] = sizes[i];
        assert_int_equal(vfmig_pci_init(&pci, (uint32_t)i, "d", &fake->target, &window, &err), 0);
        assert_true(pci.bars[0].gpa >= end);
        assert_true(pci.bars[2].gpa >= pci.bars[0].gpa + pci.bars[0].size);
        assert_int_equal(pci.bars[2].gpa % sizes[i], 0);
        end = pci.bars[2].gpa + sizes[i];
        assert_true(end <= window && end <= VFMIG_PCI_WINDOW_END);
        assert_ptr_equal(vfmig_pci_find(&pci, end - 8, 8), &pci.bars[2]);
        assert_null(vfmig_pci_find(&pci, end - 4, 8));
        vfmig_pci_done(&pci);
    }
    struct fake *fake = fake_new();
    fake->target.info.region_size[1] = 0x20000000;
    assert_int_equal(vfmig_pci_init(&pci, 9, "d", &fake->target, &window, &err), -ENODEV);
    fake_close(&fake->target);
}

static void write_entry(struct vfmig_pci *pci, unsigned vector, uint64_t address, uint32_t data,
                        uint32_t control)
{
    uint64_t gpa = pci->bars[0].gpa + TABLE + 16 * vector;
    vfmig_pci_access(pci, &pci->bars[0], gpa, true, &(uint32_t){(uint32_t)address}, 4);
    vfmig_pci_access(pci, &pci->bars[0], gpa + 4, true, &(uint32_t){(uint32_t)(address >> 32)}, 4);
    vfmig_pci_access(pci, &pci->bars[0], gpa + 8, true, &data, 4);
    vfmig_pci_access(pci, &pci->bars[0], gpa + 12, true, &control, 4);
}

static void the_table_reaches_machine_and_device(void **state)
{
    struct fake *fake = fake_new();
    struct vfmig_machine machine = {.calls = 0};
    struct vfmig_pci pci;

    assert_int_equal(init(&pci, fake, NULL), 0);
    assert_int_equal(vfmig_pci_start(&pci, &machine, NULL), 0);
    assert_int_equal(fake->config[4] & 6, 6);
    assert_int_equal(fake->config[0x43], 0x80); /* MSI-X enabled */
    assert_int_equal(fake->config[0x13], pci.bars[0].gpa >> 24);
    for (int i = 0; i < (int)VECTORS; i++)
        assert_int_equal(fake->fds[i], 1000 + 3 * (int)VFMIG_PCI_MAX_VECTORS + i);
    unsigned calls = machine.calls;
    write_entry(&pci, 2, 0xfee01000, 0x46, 1);
    assert_int_equal(machine.calls, calls); /* masked: no route yet */
    write_entry(&pci, 2, 0xfee01000, 0x46, 0);
    assert_true(machine.calls > calls);
    assert_int_equal(machine.address[3 * VFMIG_PCI_MAX_VECTORS + 2], 0xfee01000);
    assert_int_equal(machine.data[3 * VFMIG_PCI_MAX_VECTORS + 2], 0x46);
    assert_int_equal(fake->bar[TABLE + 32 + 8], 0x46);
    fake->bar[PBA] = 0x5;
    assert_int_equal(vfmig_pci_pending(&pci), 2);
    vfmig_pci_done(&pci);
}

static void a_device_that_is_gone_reads_as_ones(void **state)
{
    struct fake *fake = fake_new();
    struct vfmig_pci pci;
    uint32_t value = 0;

    assert_int_equal(init(&pci, fake, NULL), 0);
    fake->broken = true;
    vfmig_pci_access(&pci, &pci.bars[0], pci.bars[0].gpa, false, &value, 4);
    assert_int_equal(value, 0xffffffff);
    vfmig_pci_access(&pci, &pci.bars[0], pci.bars[0].gpa, true, &value, 4);
    assert_int_equal(pci.failures, 2);
    assert_int_equal(pci.reads, 1);
    assert_int_equal(pci.writes, 1);
    vfmig_pci_done(&pci);
}

/* What one function saves makes another one the same; anything altered in its head is refused. */
static void saved_state_makes_a_twin(void **state)
{
    struct vfmig_machine here = {.calls = 0}, there = {.calls = 0};
    struct fake *fake = fake_new(), *twin = fake_new();
    struct vfmig_pci pci, other;
    struct vfmig_buffer saved = {0};

    assert_int_equal(init(&pci, fake, NULL), 0);
    assert_int_equal(init(&other, twin, NULL), 0);
    assert_int_equal(vfmig_pci_start(&pci, &here, NULL), 0);
    assert_int_equal(vfmig_pci_start(&other, &there, NULL), 0);
    for (unsigned i = 0; i < VECTORS; i++)
        write_entry(&pci, i, 0xfee00000 + 0x1000 * i, 0x50 + i, i & 1);
    fake->config[0x3c] = 11;
    assert_int_equal(vfmig_pci_save(&pci, &saved, NULL), 0);
    memset(twin->config + 4, 0, 2); /* as after its reset */
    memset(twin->config + 0x10, 0, 24);
    assert_int_equal(vfmig_pci_load(&other, saved.data, saved.size, NULL), 0);
    assert_memory_equal(twin->config, fake->config, sizeof(fake->config));
    assert_memory_equal(twin->bar + TABLE, fake->bar + TABLE, 16 * VECTORS);
    assert_memory_equal(other.table, pci.table, sizeof(pci.table));
    assert_memory_equal(there.data, here.data, 8);

    for (size_t cut = 0; cut < saved.size; cut++)
        assert_int_equal(vfmig_pci_load(&other, saved.data, cut, NULL), -EBADMSG);
    const size_t heads[] = {0, 4, 8, 8 + 8, 56, 58}; /* version, vectors, BARs, vendor, device */
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
        saved.data[heads[i]] ^= 1;
        assert_int_equal(vfmig_pci_load(&other, saved.data, saved.size, NULL), -EBADMSG);
        saved.data[heads[i]] ^= 1;
    }
    assert_int_equal(vfmig_pci_load(&other, saved.data, saved.size, NULL), 0);
    vfmig_buffer_free(&saved);
    vfmig_pci_done(&pci);
    vfmig_pci_done(&other);
}

static void load_both(struct vfmig_pci *pci, const struct vfmig_buffer *early,
                      const struct vfmig_buffer *last)
{
    assert_int_equal(vfmig_pci_load(pci, early->data, early->size, NULL), 0);
    assert_int_equal(vfmig_pci_load(pci, last->data, last->size, NULL), 0);
}

/* Between the first copy and the final one the guest masks, unmasks and redirects vectors, and
 * configuration changes: the destination has the last of it in the device, in the table that routes
 * are made from, and in the routes themselves (C46-C49). */
static void what_the_guest_wrote_last_wins(void **state)
{
    struct vfmig_machine here = {.calls = 0}, there = {.calls = 0};
    struct fake *fake = fake_new(), *twin = fake_new();
    struct vfmig_pci pci, other;

    assert_int_equal(init(&pci, fake, NULL), 0);
    assert_int_equal(init(&other, twin, NULL), 0);
    assert_int_equal(vfmig_pci_start(&pci, &here, NULL), 0);
    assert_int_equal(vfmig_pci_start(&other, &there, NULL), 0);
    for (unsigned round = 0; round < 16; round++) {
        struct vfmig_buffer early = {0}, last = {0};
        for (unsigned i = 0; i < VECTORS; i++)
            write_entry(&pci, i, 0xfee00000 + 0x1000 * i, 0x50 + round, round >> i & 1);
        fake->config[0x04] = 2;
        fake->config[0x3c] = (uint8_t)round;
        assert_int_equal(vfmig_pci_save(&pci, &early, NULL), 0);
        for (unsigned i = 0; i < VECTORS; i++)
            write_entry(&pci, i, 0xfee00000 + 0x1000 * (VECTORS - i), 0x90 + round,
                        ~round >> i & 1);
        fake->config[0x04] = 6; /* bus master */
        fake->config[0x3c] = (uint8_t)(round + 100);
        fake->config[0x43] = round & 1 ? 0xc0 : 0x80; /* every vector masked, or not */
        assert_int_equal(vfmig_pci_save(&pci, &last, NULL), 0);
        load_both(&other, &early, &last);
        assert_memory_equal(twin->config, fake->config, sizeof(fake->config));
        assert_memory_equal(twin->bar + TABLE, fake->bar + TABLE, 16 * VECTORS);
        assert_memory_equal(other.table, pci.table, sizeof(pci.table));
        for (unsigned i = 0; i < VECTORS; i++) {
            uint32_t gsi = 3 * VFMIG_PCI_MAX_VECTORS + i;
            assert_int_equal(there.data[gsi], 0x90 + round);
            assert_int_equal(there.address[gsi], 0xfee00000 + 0x1000 * (VECTORS - i));
        }
        vfmig_buffer_free(&early);
        vfmig_buffer_free(&last);
    }
    vfmig_pci_done(&pci);
    vfmig_pci_done(&other);
}

/* The device forgets everything, the guest is not asked: what it wrote last is there again. */
static void a_device_that_was_reset_is_as_before(void **state)
{
    struct vfmig_machine machine = {.calls = 0};
    struct fake *fake = fake_new();
    struct vfmig_pci pci;
    struct vfmig_buffer saved = {0};
    struct fake before;

    assert_int_equal(init(&pci, fake, NULL), 0);
    assert_int_equal(vfmig_pci_start(&pci, &machine, NULL), 0);
    assert_int_equal(vfmig_pci_restore(&pci, NULL), -ENODATA);
    fake->config[0x3c] = 11;
    assert_int_equal(vfmig_pci_save(&pci, &saved, NULL), 0);
    for (unsigned i = 0; i < VECTORS; i++)
        write_entry(&pci, i, 0xfee00000 + 0x1000 * i, 0x60 + i, i & 1);
    before = *fake;
    memset(fake->config + 4, 0, 2);
    memset(fake->config + 0x0c, 0, 2);
    memset(fake->config + 0x10, 0, 24);
    fake->config[0x3c] = 0;
    memset(fake->config + 0x42, 0, 2); /* MSI-X off */
    fake->config[0x42] = VECTORS - 1;
    memset(fake->bar + TABLE, 0, 16 * VECTORS);
    memset(fake->fds, 0xff, sizeof(fake->fds));
    assert_int_equal(vfmig_pci_restore(&pci, NULL), 0);
    assert_memory_equal(fake->config, before.config, sizeof(before.config));
    assert_memory_equal(fake->bar, before.bar, sizeof(before.bar));
    assert_memory_equal(fake->fds, before.fds, sizeof(before.fds));
    vfmig_buffer_free(&saved);
    vfmig_pci_done(&pci);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_lies_is_refused),
        cmocka_unit_test(a_list_of_capabilities_that_loops_ends),
        cmocka_unit_test(bars_are_aligned_and_do_not_overlap),
        cmocka_unit_test(the_table_reaches_machine_and_device),
        cmocka_unit_test(a_device_that_is_gone_reads_as_ones),
        cmocka_unit_test(saved_state_makes_a_twin),
        cmocka_unit_test(what_the_guest_wrote_last_wins),
        cmocka_unit_test(a_device_that_was_reset_is_as_before),
    };
    return cmocka_run_group_tests_name("pci", tests, NULL, NULL);
}
