/* SPDX-License-Identifier: BSD-3-Clause */
/* Accesses to the device's registers while it runs, while it is quiet, while it is stopped. */
#include "check/rule.h"
#include "check/rules.h"

#define FUZZ_ACCESSES 200u

static uint32_t read32(struct check *c, uint32_t region, uint64_t offset, int *ret_r)
{
    uint32_t value = 0;

    *ret_r = check_read(c, region, offset, &value, 4);
    return value;
}

void check_mmio_while_running(struct check *c)
{
    uint32_t region = 0;
    uint64_t size;
    int r;

    check_bar(c, &region, &size);
    check_doing(c, "four bytes of region %u in RUNNING", region);
    read32(c, region, 0, &r);
    if (r < 0 && !check_gone(c)) {
        check_skip(c, "region %u refuses a read of four bytes at 0: %s", region,
                   check_outcome(c, r));
        return;
    }
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_runs((enum vfmig_state)s) ||
            !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "four bytes of region %u in %s", region, check_state_name(s));
        read32(c, region, 0, &r);
        check_ok(c, r, "the read");
    }
}

/* Reading is answered as in RUNNING: the register at 0 of most devices says what it is. */
void check_mmio_means_something(struct check *c)
{
    uint64_t digest = 0, before = 0;

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_runs((enum vfmig_state)s))
            continue;
        check_doing(c, "state changed by MMIO in %s", check_state_name(s));
        check_reset(c);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (!check_need(c, c->workload->set_up(c), "making the device ready") ||
            !check_need(c, c->workload->digest(c, &before), "reading its state") ||
            !check_reach(c, (enum vfmig_state)s))
            return;
        if (check_ok(c, c->workload->change(c, 7 + s), "changing its state") &&
            check_ok(c, c->workload->digest(c, &digest), "reading its state"))
            check_that(c, digest != before, "the change can be read back", "the state of before");
    }
}

static const uint8_t stopped[] = {VFMIG_STATE_STOP, VFMIG_STATE_STOP_COPY, VFMIG_STATE_RESUMING};

void check_mmio_reads_ones(struct check *c)
{
    uint32_t region = 0;
    uint64_t size;

    check_bar(c, &region, &size);
    for (size_t i = 0; i < sizeof(stopped) && !check_over(c); i++) {
        int r;
        check_doing(c, "four bytes of region %u in %s", region, check_state_name(stopped[i]));
        if (!check_reach(c, (enum vfmig_state)stopped[i]))
            return;
        uint32_t value = read32(c, region, 0, &r);
        check_that(c, r >= 0 && value == 0xffffffffu, "all ones", "%s, 0x%x", check_outcome(c, r),
                   value);
    }
}

void check_mmio_writes_are_dropped(struct check *c)
{
    uint64_t before = 0, after = 0;

    for (size_t i = 0; i < 2 && !check_over(c); i++) {
        check_doing(c, "state changed by MMIO in %s, then RUNNING", check_state_name(stopped[i]));
        check_reset(c);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (!check_need(c, c->workload->set_up(c), "making the device ready") ||
            !check_need(c, c->workload->change(c, 1), "changing its state") ||
            !check_need(c, c->workload->digest(c, &before), "reading its state") ||
            !check_reach(c, (enum vfmig_state)stopped[i]))
            return;
        c->workload->change(c, 2 + i); /* refused or ignored */
        if (check_need(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING") &&
            check_need(c, c->workload->digest(c, &after), "reading its state"))
            check_that(c, before == after, "the state of before: writes have no effect",
                       "another (digest %llx, not %llx)", (unsigned long long)after,
                       (unsigned long long)before);
    }
}

/* Config space is external state: it is served in every state. */
void check_config_in_every_state(struct check *c)
{
    uint32_t want = 0;

    check_read(c, VFMIG_REGION_CONFIG, 0, &want, 4);
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        int r;
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "vendor and device of config space in %s", check_state_name(s));
        uint32_t got = read32(c, VFMIG_REGION_CONFIG, 0, &r);
        if (check_ok(c, r, "the read"))
            check_that(c, got == want, "as in RUNNING", "0x%x, not 0x%x", got, want);
    }
}

void check_msix_in_every_state(struct check *c)
{
    const struct check_facts *facts = &c->port->facts;

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        uint32_t put = 0xfee00000u + s * 4096u, got = 0;
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "the first entry of the MSI-X table written and read in %s",
                    check_state_name(s));
        if (check_ok(c, check_write(c, facts->msix_bar, facts->msix_table, &put, 4), "the write") &&
            check_ok(c, check_read(c, facts->msix_bar, facts->msix_table, &got, 4), "the read"))
            check_that(c, got == put, "what was written", "0x%x, not 0x%x", got, put);
    }
}

/* What guests may do: accesses of any kind anywhere in the BARs of a device that is stopped. */
void check_mmio_fuzz(struct check *c)
{
    uint32_t region = 0;
    uint64_t size;

    check_bar(c, &region, &size);
    for (size_t i = 0; i <= sizeof(stopped) && !check_over(c); i++) {
        bool error = i == sizeof(stopped);
        if (error ? !check_reach_error(c) : !check_reach(c, (enum vfmig_state)stopped[i]))
            return;
        enum vfmig_state s = error ? VFMIG_STATE_ERROR : (enum vfmig_state)stopped[i];
        uint64_t before = c->port->dma.reads + c->port->dma.writes;
        check_doing(c, "%u accesses to region %u in %s", FUZZ_ACCESSES, region,
                    check_state_name(s));
        for (unsigned n = 0; n < FUZZ_ACCESSES && !check_gone(c); n++) {
            uint64_t value = check_random(c, UINT64_MAX);
            uint32_t width = 1u << check_random(c, 4);
            uint64_t offset = check_random(c, size - width + 1) / width * width;
            if (check_random(c, 4))
                check_write(c, region, offset, &value, width);
            else
                check_read(c, region, offset, &value, width);
        }
        check_serve(c, 1);
        check_that(c, c->port->dma.reads + c->port->dma.writes == before, "no DMA comes of it",
                   "%llu commands",
                   (unsigned long long)(c->port->dma.reads + c->port->dma.writes - before));
        check_is(c, s, "after it");
        check_doing(c, "reset after accesses in %s", check_state_name(s));
        if (!check_over(c) && check_ok(c, check_reset(c), "RESET"))
            check_is(c, VFMIG_STATE_RUNNING, "after the reset");
    }
}
