/* SPDX-License-Identifier: BSD-3-Clause */
#include "devices/devices.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define NULL_DEVICE 1u
#define DMA_DEVICE  2u
#define BULK_DEVICE 4u
#define ANY_DEVICE  (NULL_DEVICE | DMA_DEVICE | BULK_DEVICE)

const struct vfmig_device_kind vfmig_device_kinds[] = {
    {"null", "no state, no registers, no DMA", vfmig_null_device_new, NULL_DEVICE},
    {"dma", "copies, fills and checks guest memory from a descriptor ring", vfmig_dma_device_new,
     DMA_DEVICE},
    {"bulk", "much internal state, which changes by itself and can be verified",
     vfmig_bulk_device_new, BULK_DEVICE},
    {NULL, NULL, NULL, 0},
};

const struct vfmig_device_kind *vfmig_device_kind_find(const char *name)
{
    for (const struct vfmig_device_kind *kind = vfmig_device_kinds; kind->name; kind++)
        if (!strcmp(kind->name, name))
            return kind;
    return NULL;
}

const char *vfmig_device_step_name(enum vfmig_device_step step)
{
    static const char *const names[VFMIG_DEVICE_STEP_COUNT] = {
        "none", "stop", "start", "save_begin", "save_precopy", "save", "load", "load_end"};

    return step >= 0 && step < VFMIG_DEVICE_STEP_COUNT ? names[step] : NULL;
}

const char *vfmig_device_arc_name(enum vfmig_device_arc arc)
{
    static const char *const names[VFMIG_DEVICE_ARC_COUNT] = {"quiesce", "stop", "start", "precopy",
                                                              "save",    "load", "reset"};

    return arc >= 0 && arc < VFMIG_DEVICE_ARC_COUNT ? names[arc] : NULL;
}

/* ---- knobs ----------------------------------------------------------------------------------- */

/* Which kinds have which knob. A knob is turned when a byte of it is not zero. */
#define KNOB(option, member, kinds)                               \
    {option, offsetof(struct vfmig_device_knobs, member),         \
     sizeof(((struct vfmig_device_knobs *)NULL)->member), kinds}

static const struct {
    const char *option;
    size_t offset, size;
    uint32_t kinds;
} knob_rows[] = {
    KNOB("state-size", state_bytes, DMA_DEVICE | BULK_DEVICE),
    KNOB("dirty-rate", dirty_rate, BULK_DEVICE),
    KNOB("save-rate", save_rate, DMA_DEVICE | BULK_DEVICE),
    KNOB("load-rate", load_rate, DMA_DEVICE | BULK_DEVICE),
    KNOB("latency", arc_ns, ANY_DEVICE),
    KNOB("latency-us", latency_ns, DMA_DEVICE),
    KNOB("quiesce-us", quiesce_ns, DMA_DEVICE),
    KNOB("look-ahead", look_ahead, DMA_DEVICE),
    KNOB("drain-timeout-ms", drain_timeout_ns, ANY_DEVICE),
    KNOB("max-data", max_data_xfer_bytes, ANY_DEVICE),
    KNOB("no-ndma", no_ndma, ANY_DEVICE),
    KNOB("no-precopy", no_precopy, ANY_DEVICE),
    KNOB("mask", no_dma_log, ANY_DEVICE),
    KNOB("fail", fail_step, ANY_DEVICE),
    KNOB("fail-at", fail_at, ANY_DEVICE),
    KNOB("fail-byte", fail_byte, DMA_DEVICE | BULK_DEVICE),
};

static int refuse(struct vfmig_error *reterr, const char *option, const char *why)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "--%s: %s", option, why);
}

static bool moves_bytes(enum vfmig_device_step step)
{
    return step == VFMIG_DEVICE_STEP_SAVE_PRECOPY || step == VFMIG_DEVICE_STEP_SAVE ||
           step == VFMIG_DEVICE_STEP_LOAD;
}

int vfmig_device_knobs_check(const struct vfmig_device_kind *kind,
                             const struct vfmig_device_knobs *knobs, struct vfmig_error *reterr)
{
    static const struct vfmig_device_knobs plain; /* static: its padding is zero too */

    for (size_t i = 0; i < sizeof(knob_rows) / sizeof(knob_rows[0]); i++) {
        const void *at = (const char *)knobs + knob_rows[i].offset;
        const void *zero = (const char *)&plain + knob_rows[i].offset;
        if (!(knob_rows[i].kinds & kind->bit) && memcmp(at, zero, knob_rows[i].size))
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                   "--%s: the device %s has no use for it", knob_rows[i].option,
                                   kind->name);
    }
    if (!knobs->fail_step && knobs->fail_at)
        return refuse(reterr, "fail-at", "no step was given with --fail");
    if (!knobs->fail_step && knobs->fail_byte)
        return refuse(reterr, "fail-byte", "no step was given with --fail");
    if (knobs->fail_byte && !moves_bytes(knobs->fail_step))
        return refuse(reterr, "fail-byte", "only save_precopy, save and load move bytes");
    if (knobs->fail_byte && knobs->fail_at)
        return refuse(reterr, "fail-byte", "makes no sense with --fail-at");
    if (knobs->fail_step == VFMIG_DEVICE_STEP_LOAD && kind->bit == NULL_DEVICE)
        return refuse(reterr, "fail", "the device null has no data to load");
    if (knobs->fail_step == VFMIG_DEVICE_STEP_SAVE_PRECOPY && knobs->no_precopy)
        return refuse(reterr, "fail", "save_precopy is never called without pre-copy");
    return 0;
}

/* ---- null ------------------------------------------------------------------------------------ */

static ssize_t null_save(void *user, void *buf, size_t size)
{
    return 0;
}

static int null_load(void *user, const void *data, size_t size)
{
    return -1; /* there is nothing to load */
}

int vfmig_null_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                          struct vfmig_error *reterr)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    config.name = "null";
    config.pci_vendor = 0x1b36;
    config.pci_device = 0x7fd1;
    ops.save_precopy = null_save;
    ops.save = null_save;
    ops.load = null_load;
    return vfmig_device_new_with_knobs(knobs, &config, &ops, NULL, ret_dev, reterr);
}
