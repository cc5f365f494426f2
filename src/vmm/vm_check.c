/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM's half of a dry run: what would be moved, and what stands against it. */
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "base/bounds.h"
#include "base/buffer.h"
#include "vmm/vm_priv.h"

static void add_text(struct json_object *object, const char *name, const char *text)
{
    json_object_object_add(object, name, json_object_new_string(text));
}

static void on_found(void *opaque, bool source, const char *text)
{
    struct json_object *mismatch = json_object_new_object();

    add_text(mismatch, "side", source ? "source" : "destination");
    add_text(mismatch, "text", text);
    json_object_array_add(opaque, mismatch);
}

static struct json_object *device_json(const char *id, const struct vfmig_target_info *info)
{
    struct json_object *device = json_object_new_object(), *features = json_object_new_array();

    if (info->features & VFMIG_FEATURE_STOP_COPY)
        json_object_array_add(features, json_object_new_string("stop-copy"));
    if (info->features & VFMIG_FEATURE_NDMA)
        json_object_array_add(features, json_object_new_string("ndma"));
    if (info->features & VFMIG_FEATURE_PRE_COPY)
        json_object_array_add(features, json_object_new_string("pre-copy"));
    add_text(device, "id", id);
    add_text(device, "dialect", info->dialect == VFMIG_DIALECT_REGION ? "region" : "feature");
    json_object_object_add(device, "features", features);
    json_object_object_add(device, "dma-log", json_object_new_boolean(info->dma_log));
    return device;
}

/* What must agree beside memory and devices, line by line. */
static struct json_object *identity_json(struct vfmig_vmm *vmm)
{
    struct vfmig_buffer text = {.limit = VFMIG_MAX_IDENTITY};
    struct json_object *lines = json_object_new_array();

    if (vmm->migration.vm.ops->identity(vmm, &text, NULL) == 0 && text.size)
        for (char *at = (char *)text.data, *line; (line = strsep(&at, "\n"));)
            if (*line && strncmp(line, "info.", 5))
                json_object_array_add(lines, json_object_new_string(line));
    vfmig_buffer_free(&text);
    return lines;
}

static struct json_object *describe(struct vfmig_vmm *vmm)
{
    struct json_object *result = json_object_new_object(), *devices = json_object_new_array();
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < vmm->memory.block_count; i++)
        bytes += vmm->memory.blocks[i].size;
    for (uint32_t i = 0; i < vmm->device_count; i++)
        json_object_array_add(devices, device_json(vmm->pci[i].id, &vmm->pci[i].target->info));
    json_object_object_add(result, "memory-bytes", json_object_new_uint64(bytes));
    json_object_object_add(result, "identity", identity_json(vmm));
    json_object_object_add(result, "devices", devices);
    return result;
}

int vmm_migration_check(struct vfmig_vmm *vmm, const char *uri, bool local,
                        const struct vfmig_security *security,
                        struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    struct json_object *mismatches = json_object_new_array();
    struct vfmig_error error = {0};

    pthread_mutex_lock(&migration->lock);
    int ret = vmm_migration_startable(vmm, reterr);
    struct vfmig_migrate_options options = vmm_migration_options(vmm, security);
    options.local = local;
    if (ret == 0)
        vmm_migration_find(vmm, local, mismatches, on_found);
    migration->checking = ret == 0;
    pthread_mutex_unlock(&migration->lock);
    /* Not with the lock: the other side may take its time, and metrics are asked for meanwhile. What is looked at
     * changes by commands only, which are taken one after the other, and by the end, which waits. */
    if (ret == 0) {
        ret = vfmig_source_check(&migration->vm, &options, uri, on_found, mismatches, &error);
        if (ret && ret != -EPERM && reterr)
            *reterr = error;
        ret = ret == -EPERM ? 0 : ret;
        pthread_mutex_lock(&migration->lock);
        migration->checking = false;
        pthread_cond_signal(&migration->checked);
        pthread_mutex_unlock(&migration->lock);
    }
    if (ret) {
        json_object_put(mismatches);
        return ret;
    }
    *ret_result = describe(vmm);
    json_object_object_add(*ret_result, "accept",
                           json_object_new_boolean(json_object_array_length(mismatches) == 0));
    json_object_object_add(*ret_result, "mismatches", mismatches);
    return 0;
}
