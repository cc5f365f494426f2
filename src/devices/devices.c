/* SPDX-License-Identifier: BSD-3-Clause */
#include "devices/devices.h"

#include <string.h>

const struct vfmig_device_kind vfmig_device_kinds[] = {
    {"null", "no state, no registers, no DMA", vfmig_null_device_new},
    {"dma", "copies, fills and checks guest memory from a descriptor ring", vfmig_dma_device_new},
    {NULL, NULL, NULL},
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
    config.no_ndma = knobs->no_ndma;
    config.no_precopy = knobs->no_precopy;
    config.max_data_xfer_bytes = knobs->max_data_xfer_bytes;
    ops.save_precopy = null_save;
    ops.save = null_save;
    ops.load = null_load;
    return vfmig_device_new(&config, &ops, NULL, ret_dev, reterr);
}
