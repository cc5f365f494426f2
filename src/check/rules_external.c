/* SPDX-License-Identifier: BSD-3-Clause */
/* External state: config space, the MSI-X table, interrupts. It is the VMM's: a load does not
 * change it, and the VMM may change it at any time. */
#include "check/rule.h"
#include "check/rules.h"

#define CONFIG_COMMAND   0x04u
#define CONFIG_INTR_LINE 0x3cu
#define COMMAND_INTX_OFF 0x400u
#define MSIX_MASK_ALL    0x4000u
#define MAX_EXAMPLES     4u

/* A register of external state, with the bits that a VMM may change. */
struct example {
    const char *what;
    uint32_t region;
    uint64_t offset;
    uint32_t width;
    uint32_t bits;
    bool works; /* it holds what is written in RUNNING */
};

static int put(struct check *c, const struct example *e, uint32_t value)
{
    uint32_t now = 0;
    int r = check_read(c, e->region, e->offset, &now, e->width);

    now = (now & ~e->bits) | (value & e->bits);
    return r < 0 ? r : check_write(c, e->region, e->offset, &now, e->width);
}

static uint32_t get(struct check *c, const struct example *e)
{
    uint32_t now = 0;

    check_read(c, e->region, e->offset, &now, e->width);
    return now & e->bits;
}

/* The examples that this device has; in RUNNING. */
static unsigned find_examples(struct check *c, struct example *examples)
{
    const struct check_facts *facts = &c->port->facts;
    unsigned count = 0;

    examples[count++] = (struct example){"the interrupt line in config space",
                                         VFMIG_REGION_CONFIG,
                                         CONFIG_INTR_LINE,
                                         1,
                                         0xff,
                                         false};
    examples[count++] = (struct example){"INTx disable in the command register",
                                         VFMIG_REGION_CONFIG,
                                         CONFIG_COMMAND,
                                         2,
                                         COMMAND_INTX_OFF,
                                         false};
    if (facts->msix_vectors) {
        examples[count++] = (struct example){"an address in the MSI-X table",
                                             facts->msix_bar,
                                             facts->msix_table,
                                             4,
                                             0xfffffffcu,
                                             false};
        examples[count++] = (struct example){"the function mask of MSI-X",
                                             VFMIG_REGION_CONFIG,
                                             facts->msix_control,
                                             2,
                                             MSIX_MASK_ALL,
                                             false};
    }
    unsigned works = 0;
    for (unsigned i = 0; i < count; i++) {
        put(c, &examples[i], 0xa5a5a5a4u);
        examples[i].works = get(c, &examples[i]) == (0xa5a5a5a4u & examples[i].bits);
        put(c, &examples[i], ~0xa5a5a5a4u);
        examples[i].works =
            examples[i].works && get(c, &examples[i]) == (~0xa5a5a5a4u & examples[i].bits);
        if (examples[i].works)
            examples[works++] = examples[i];
    }
    if (!works && !check_gone(c))
        check_skip(c, "nothing in config space or the MSI-X table holds what is written");
    return works;
}

static void keep(struct check *c, const struct example *e, uint32_t value, const char *when)
{
    uint32_t got = get(c, e);

    check_that(c, got == (value & e->bits), "external state stays what the VMM made it",
               "%s %s: 0x%x, not 0x%x", e->what, when, got, value & e->bits);
}

static void put_all(struct check *c, const struct example *examples, unsigned count, uint32_t value)
{
    for (unsigned i = 0; i < count; i++)
        put(c, &examples[i], value);
}

static void keep_all(struct check *c, const struct example *examples, unsigned count,
                     uint32_t value, const char *when)
{
    for (unsigned i = 0; i < count && !check_over(c); i++)
        keep(c, &examples[i], value, when);
}

void check_external_stays(struct check *c)
{
    struct example examples[MAX_EXAMPLES];
    struct check_blob image = {0};
    unsigned count = find_examples(c, examples);

    put_all(c, examples, count, 0x5a5a5a58u);
    check_doing(c, "an image of other values is loaded");
    if (!count || !check_take_image(c, &image))
        goto done;
    put_all(c, examples, count, 0xa5a5a5a4u);
    if (!check_need(c, check_go(c, VFMIG_STATE_RESUMING), "RESUMING"))
        goto done;
    keep_all(c, examples, count, 0xa5a5a5a4u, "on entering RESUMING");
    if (!check_over(c) && check_need(c, check_load_all(c, &image), "loading the image"))
        keep_all(c, examples, count, 0xa5a5a5a4u, "with the image loaded");
    if (!check_over(c) && check_need(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        keep_all(c, examples, count, 0xa5a5a5a4u, "after RESUMING");
done:
    check_blob_free(&image);
}

void check_external_while_saving(struct check *c)
{
    struct example examples[MAX_EXAMPLES];
    struct check_blob stream = {0};
    unsigned count = find_examples(c, examples);

    check_doing(c, "external state changes in PRE_COPY and STOP_COPY; the stream is loaded");
    if (!count || (check_has_pre_copy(c) && !check_reach(c, VFMIG_STATE_PRE_COPY)))
        goto done;
    for (unsigned round = 0; round < 2 && !check_over(c); round++) {
        if (round && !check_need(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP_COPY"))
            goto done;
        if ((check_has_pre_copy(c) || round) && !check_ok(c, check_save(c, &stream), "a portion"))
            goto done;
        for (unsigned i = 0; i < count && !check_over(c); i++) {
            put(c, &examples[i], round ? 0x5a5a5a58u : 0xa5a5a5a4u);
            keep(c, &examples[i], round ? 0x5a5a5a58u : 0xa5a5a5a4u, "when written");
        }
    }
    if (!check_over(c) && check_ok(c, check_save_all(c, &stream), "the rest of the stream") &&
        check_need(c, check_reset(c), "RESET") &&
        check_need(c, check_go(c, VFMIG_STATE_RESUMING), "RESUMING") &&
        check_ok(c, check_load_all(c, &stream), "loading the stream"))
        check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING");
done:
    check_blob_free(&stream);
}

void check_external_while_resuming(struct check *c)
{
    struct example examples[MAX_EXAMPLES];
    struct check_blob image = {0};
    unsigned count = find_examples(c, examples);

    check_doing(c, "external state changes in RESUMING, between the portions");
    if (!count || !check_take_image(c, &image) || !check_reach(c, VFMIG_STATE_RESUMING))
        goto done;
    uint32_t half = (uint32_t)image.size / 2;
    check_ok(c, check_load(c, image.bytes, half), "half of the image");
    put_all(c, examples, count, 0xa5a5a5a4u);
    check_ok(c, check_load(c, image.bytes + half, (uint32_t)image.size - half), "the other half");
    if (!check_over(c) && check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        keep_all(c, examples, count, 0xa5a5a5a4u, "after RESUMING");
done:
    check_blob_free(&image);
}

/* Interrupts may be set up and taken down in any state. */
void check_irqs_in_every_state(struct check *c)
{
    uint32_t index = VFMIG_IRQ_MSIX;

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        struct check_step on = {.kind = CHECK_STEP_IRQS, .arg = {index, 0, 1}};
        struct check_step off = {.kind = CHECK_STEP_IRQS, .arg = {index, 0, 0}};
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "an eventfd for MSI-X vector 0 in %s", check_state_name(s));
        check_ok(c, check_do(c, &on), "SET_IRQS");
        check_ok(c, check_do(c, &off), "SET_IRQS that disables");
        check_is(c, (enum vfmig_state)s, "after it");
    }
}

/* Mappings too: a destination sets up a stopped device. */
void check_maps_in_every_state(struct check *c)
{
    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "a mapping made and taken away in %s", check_state_name(s));
        if (check_ok(c, check_map(c, 0x40000000, 0x10000, 0, false), "MAP"))
            check_ok(c, check_unmap(c, 0x40000000, 0x10000), "UNMAP");
        check_is(c, (enum vfmig_state)s, "after it");
    }
}
