/* SPDX-License-Identifier: BSD-3-Clause */
/* The registers and the data section of the v1 migration region. */
#include "check/rule.h"
#include "check/rules.h"

#define REG_RESERVED 4u
#define REG_PENDING  8u
#define REG_OFFSET   16u
#define REG_SIZE     24u

static uint32_t region_of(const struct check *c)
{
    return c->port->facts.mig_region;
}

static int get64(struct check *c, uint32_t reg, uint64_t *ret_value)
{
    *ret_value = 0;
    return check_read(c, region_of(c), reg, ret_value, 8);
}

void check_region_is_there(struct check *c)
{
    const uint32_t both = VFMIG_USER_REGION_F_READ | VFMIG_USER_REGION_F_WRITE;
    uint32_t raw = 0;

    check_doing(c, "four bytes at 0 of the region of type 3, subtype 1");
    int r = check_read(c, region_of(c), 0, &raw, 4);
    if (check_ok(c, r, "reading device_state"))
        check_that(c, raw == VFMIG_V1_RUNNING, "device_state is 1 on a fresh connection", "%u",
                   raw);
    check_that(c, (c->port->facts.region_flags[region_of(c)] & both) == both,
               "a region that says it can be read and written", "flags 0x%x",
               c->port->facts.region_flags[region_of(c)]);
    check_that(c, c->port->facts.region_size[region_of(c)] > sizeof(struct vfmig_user_mig_region),
               "room for registers and data", "%llu bytes",
               (unsigned long long)c->port->facts.region_size[region_of(c)]);
}

void check_region_reserved(struct check *c)
{
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        uint32_t before = 1, ones = 0xffffffffu, after = 1;
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "the reserved register in %s", check_state_name(s));
        if (!check_ok(c, check_read(c, region_of(c), REG_RESERVED, &before, 4), "reading it"))
            return;
        check_that(c, before == 0, "it reads 0", "0x%x", before);
        check_ok(c, check_write(c, region_of(c), REG_RESERVED, &ones, 4),
                 "writing it, which is ignored");
        check_read(c, region_of(c), REG_RESERVED, &after, 4);
        check_that(c, after == 0, "it still reads 0", "0x%x", after);
        check_is(c, (enum vfmig_state)s, "after it");
    }
}

/* Wrong width: an error, and no change. */
void check_region_widths(struct check *c)
{
    static const uint8_t widths[] = {1, 2, 8};
    uint64_t value = 0;

    for (size_t i = 0; i < sizeof(widths) && !check_over(c); i++) {
        check_doing(c, "device_state accessed with %u bytes", widths[i]);
        check_refused(c, check_read(c, region_of(c), 0, &value, widths[i]), "the read");
        value = 0;
        check_refused(c, check_write(c, region_of(c), 0, &value, widths[i]), "the write");
    }
    for (uint32_t reg = REG_PENDING; reg <= REG_SIZE && !check_over(c); reg += 8) {
        check_doing(c, "the register at %u accessed with 4 bytes, and out of line", reg);
        check_refused(c, check_read(c, region_of(c), reg, &value, 4), "a read of 4 bytes");
        check_refused(c, check_read(c, region_of(c), reg + 4, &value, 8), "a read out of line");
    }
}

void check_region_width_changes_nothing(struct check *c)
{
    static const uint8_t widths[] = {1, 2, 8};
    uint64_t zero = 0;

    for (size_t i = 0; i < sizeof(widths) && !check_over(c); i++) {
        check_doing(c, "0 written to device_state with %u bytes", widths[i]);
        int r = check_write(c, region_of(c), 0, &zero, widths[i]);
        if (r < 0)
            check_is(c, VFMIG_STATE_RUNNING, "after the refusal");
        else
            check_that(c, check_now(c) != CHECK_STATE_NONE, "a state", "none");
    }
}

void check_region_read_only(struct check *c)
{
    static const uint8_t states[] = {VFMIG_STATE_RUNNING, VFMIG_STATE_PRE_COPY,
                                     VFMIG_STATE_STOP_COPY, VFMIG_STATE_RESUMING};
    uint64_t value = 0x123456789abull, before, after;

    for (size_t i = 0; i < sizeof(states); i++)
        for (uint32_t reg = REG_PENDING; reg <= REG_OFFSET && !check_over(c); reg += 8) {
            if (!check_reach(c, (enum vfmig_state)states[i]))
                return;
            check_doing(c, "a write to the register at %u in %s", reg, check_state_name(states[i]));
            int read_before = get64(c, reg, &before);
            check_write(c, region_of(c), reg, &value, 8);
            int read_after = get64(c, reg, &after);
            check_that(c, read_before < 0 || read_after < 0 || after != value || before == value,
                       "a register that is only read does not change by a write", "it reads 0x%llx",
                       (unsigned long long)after);
            check_is(c, (enum vfmig_state)states[i], "after it");
        }
}

/* One look at pending, offset, size. */
struct look {
    uint64_t pending, offset, size;
};

static bool look(struct check *c, struct look *l)
{
    return get64(c, REG_PENDING, &l->pending) >= 0 && l->pending &&
           get64(c, REG_OFFSET, &l->offset) >= 0 && get64(c, REG_SIZE, &l->size) >= 0;
}

void check_region_reads_repeat(struct check *c)
{
    uint64_t first = 0, again = 0, offset = 0, size = 0;

    check_doing(c, "pending_bytes, data_offset and data_size read over and over in STOP_COPY");
    if (!check_reach(c, VFMIG_STATE_STOP_COPY) || get64(c, REG_PENDING, &first) < 0)
        return;
    for (unsigned i = 0; i < 4; i++)
        get64(c, REG_PENDING, &again);
    check_that(c, again == first, "reading pending_bytes changes nothing", "%llu, then %llu",
               (unsigned long long)first, (unsigned long long)again);
    if (first == 0)
        return;
    get64(c, REG_OFFSET, &offset);
    get64(c, REG_SIZE, &size);
    for (unsigned i = 0; i < 4 && !check_over(c); i++) {
        uint64_t o, n;
        get64(c, i % 2 ? REG_OFFSET : REG_SIZE, i % 2 ? &o : &n);
        get64(c, i % 2 ? REG_SIZE : REG_OFFSET, i % 2 ? &n : &o);
        check_that(c, o == offset && n == size,
                   "data_offset and data_size stay until pending_bytes is read",
                   "%llu and %llu, then %llu and %llu", (unsigned long long)offset,
                   (unsigned long long)size, (unsigned long long)o, (unsigned long long)n);
    }
}

void check_region_geometry(struct check *c)
{
    uint64_t region = c->port->facts.region_size[region_of(c)], offset = 0;
    static const uint8_t states[] = {VFMIG_STATE_STOP_COPY, VFMIG_STATE_PRE_COPY,
                                     VFMIG_STATE_PRE_COPY_NDMA};

    for (size_t i = 0; i < sizeof(states) && !check_over(c); i++) {
        struct look l = {0, 0, 0};
        if (!check_has(c, (enum vfmig_state)states[i]))
            continue;
        check_doing(c, "where the data lies in %s", check_state_name(states[i]));
        if (!check_reach(c, (enum vfmig_state)states[i]))
            return;
        if (look(c, &l) && l.size)
            check_that(c, l.offset >= 32 && l.offset < region && l.size <= region - l.offset,
                       "the data lies behind the registers and inside of the region",
                       "data_offset %llu, data_size %llu of %llu", (unsigned long long)l.offset,
                       (unsigned long long)l.size, (unsigned long long)region);
    }
    check_doing(c, "data_offset in RESUMING");
    if (check_reach(c, VFMIG_STATE_RESUMING) &&
        check_ok(c, get64(c, REG_OFFSET, &offset), "reading data_offset"))
        check_that(c, offset >= 32 && offset < region,
                   "room for data behind the registers and inside of the region",
                   "data_offset %llu of %llu", (unsigned long long)offset,
                   (unsigned long long)region);
}

/* The section takes accesses of 1, 2, 4 and 8 bytes in any order. */
void check_region_any_access(struct check *c)
{
    uint8_t whole[64], parts[64];
    struct look l = {0, 0, 0};

    check_doing(c, "the first bytes of a portion read with accesses of 8, 4, 2 and 1 bytes");
    if (!check_reach(c, VFMIG_STATE_STOP_COPY))
        return;
    if (!look(c, &l) || l.size == 0) {
        if (!check_over(c))
            check_skip(c, "the device gives no data in STOP_COPY");
        return;
    }
    uint32_t size = l.size < sizeof(whole) ? (uint32_t)l.size : (uint32_t)sizeof(whole);
    if (!check_ok(c, check_read(c, region_of(c), l.offset, whole, size), "reading all at once"))
        return;
    for (uint32_t width = 8; width && !check_over(c); width /= 2) {
        memset(parts, 0, sizeof(parts));
        for (uint32_t at = size / width * width; at >= width && !check_over(c); at -= width)
            check_ok(c,
                     check_read(c, region_of(c), l.offset + at - width, parts + at - width, width),
                     "a read of the data section");
        check_that(c, !memcmp(whole, parts, size / width * width),
                   "the same bytes whatever the width and order", "other bytes with width %u",
                   width);
    }
}

void check_region_outside(struct check *c)
{
    uint64_t region = c->port->facts.region_size[region_of(c)], value = 0;
    const uint64_t places[] = {region - 4, region, region + 4096, UINT64_MAX - 3};

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && !check_over(c); i++) {
        check_doing(c, "8 bytes at 0x%llx of a region of 0x%llx bytes",
                    (unsigned long long)places[i], (unsigned long long)region);
        check_refused(c, check_read(c, region_of(c), places[i], &value, 8), "the read");
        check_refused(c, check_write(c, region_of(c), places[i], &value, 8), "the write");
    }
}

/* data_size says more than can be there. */
void check_region_size_too_large(struct check *c)
{
    const uint64_t region = c->port->facts.region_size[region_of(c)];
    const uint64_t sizes[] = {region, region + 1, 1ull << 40, UINT64_MAX};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]) && !check_over(c); i++) {
        uint64_t offset;
        check_doing(c, "data_size 0x%llx in RESUMING", (unsigned long long)sizes[i]);
        if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, VFMIG_STATE_RESUMING))
            return;
        get64(c, REG_OFFSET, &offset);
        check_refused(c, check_write(c, region_of(c), REG_SIZE, &sizes[i], 8),
                      "more than the region has");
    }
}
