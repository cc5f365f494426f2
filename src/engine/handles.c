/* SPDX-License-Identifier: BSD-3-Clause */
/* C71: a device's state is loaded; what its handles stand for on this host is the VMM's to say, and
 * the device is told before Z is left. */
#include "engine/destination.h"

#include <errno.h>

#include "base/bounds.h"
#include "base/sabotage.h"

static const char *kind_name(uint32_t kind)
{
    return kind == VFMIG_HANDLE_PASID ? "PASID" : kind == VFMIG_HANDLE_IMS ? "IMS" : "unknown";
}

/* The device's id is put in front of what is wrong with it. */
static int translate(const struct engine *e, const struct device_worker *dev,
                     struct vfmig_handle *handle, struct vfmig_error *reterr)
{
    struct vfmig_error why = {0};

    if (e->vm.ops->translate_handle && !vfmig_sabotage("handles-untranslated")) {
        int ret = e->vm.ops->translate_handle(e->vm.opaque, dev->index, handle->kind, handle->number,
                                              &handle->value, &why);
        if (ret < 0)
            return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0,
                                   "it uses %s handle %u, which this VMM refuses: %s",
                                   kind_name(handle->kind), handle->number, why.text);
    }
    /* What it was given beforehand is good where nobody is asked. */
    if (handle->value == VFMIG_HANDLE_UNMAPPED)
        return vfmig_error_set(reterr, -ENOENT, VFMIG_ORIGIN_LOCAL, 0,
                               "it uses %s handle %u, which stands for nothing on this host",
                               kind_name(handle->kind), handle->number);
    return 0;
}

int destination_translate(struct engine *e, struct device_worker *dev, struct vfmig_error *reterr)
{
    struct vfmig_handle handles[VFMIG_MAX_HANDLES];
    const struct vfmig_target_ops *ops = dev->target->ops;
    uint32_t count = 0;
    int ret = ops->get_handles ? ops->get_handles(dev->target, handles, VFMIG_MAX_HANDLES, &count,
                                                  reterr)
                               : 0;

    for (uint32_t i = 0; ret == 0 && i < count; i++)
        ret = translate(e, dev, &handles[i], reterr);
    return ret || !count ? ret : ops->set_handles(dev->target, handles, count, reterr);
}
