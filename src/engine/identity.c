/* SPDX-License-Identifier: BSD-3-Clause */
/* What both sides must have in common, as lines "key=value"; differences are named. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bounds.h"
#include "base/sabotage.h"
#include "engine/engine.h"
#include "engine/pack.h"

#define IDENTITY_VERSION 1
#define NEEDS            "needs"
#define ZSTD             "zstd"
#define MAX_SHOWN        48 /* characters of a value in a sentence */

static int append_device(struct vfmig_buffer *out, uint32_t index, const char *id,
                         const struct vfmig_target_info *info)
{
    int ret = vfmig_buffer_printf(out, "device.%u.id=%s\n", index, id);

    if (!ret)
        ret = vfmig_buffer_printf(out, "device.%u.pci=%04x:%04x:%04x:%04x:%02x\n", index,
                                  info->pci_vendor, info->pci_device, info->pci_subvendor,
                                  info->pci_subdevice, info->pci_revision);
    for (uint32_t i = 0; !ret && i < 7 && i < info->region_count; i++)
        ret = vfmig_buffer_printf(out, "device.%u.region.%u=%#" PRIx64 "\n", index, i,
                                  info->region_size[i]);
    for (uint32_t i = 0; !ret && i < 3; i++)
        ret = vfmig_buffer_printf(out, "device.%u.irqs.%u=%u\n", index, i, info->irq_count[i]);
    if (!ret)
        ret = vfmig_buffer_printf(out, "info.device.%u.features=%#x\n", index, info->features);
    return ret;
}

int engine_identity(const struct vfmig_vm *vm, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    int ret = vfmig_buffer_printf(out, "identity=%d\nmemory.blocks=%u\n", IDENTITY_VERSION,
                                  vm->memory.block_count);

    for (uint32_t i = 0; !ret && i < vm->memory.block_count; i++)
        ret = vfmig_buffer_printf(out, "memory.%u=%#" PRIx64 "+%#" PRIx64 "\n", i,
                                  vm->memory.blocks[i].gpa, vm->memory.blocks[i].size);
    if (!ret)
        ret = vfmig_buffer_printf(out, "devices=%u\n", vm->device_count);
    for (uint32_t i = 0; !ret && i < vm->device_count; i++)
        ret = append_device(out, i, vm->device_ids[i], &vm->devices[i]->info);
    char boot_id[ENGINE_BOOT_ID_BYTES];
    if (!ret && vm->ops->memory_adopt && engine_boot_id(boot_id) == 0)
        ret = vfmig_buffer_printf(out, ENGINE_LOCAL_INFO "=%s\n", boot_id);
    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "no memory for the identity");
    return vm->ops->identity ? vm->ops->identity(vm->opaque, out, reterr) : 0;
}

int engine_identity_needs(const struct vfmig_migrate_options *options, struct vfmig_buffer *out,
                          struct vfmig_error *reterr)
{
    int ret = options->zstd_level ? vfmig_buffer_printf(out, NEEDS "=" ZSTD "\n") : 0;
    char boot_id[ENGINE_BOOT_ID_BYTES];

    if (ret == 0 && options->local && engine_boot_id(boot_id))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "the kernel does not say which host this is");
    if (ret == 0 && options->local)
        ret = vfmig_buffer_printf(out, NEEDS "=" ENGINE_LOCAL_NEED "%s\n", boot_id);
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "no memory for the identity") : 0;
}

int engine_pack(struct engine *e, struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; ret == 0 && e->options.zstd_level && i < e->channel_count; i++)
        ret = vfmig_channel_set_pack(e->channels[i], e->options.zstd_level, reterr);
    return ret;
}

struct line {
    const char *key, *value;
    int key_size, value_size;
};

/* The line at *at, which moves on; false at the end. Lines without '=' are all key. */
static bool next_line(const char **at, struct line *ret_line)
{
    const char *begin = *at, *end, *equal;

    if (!*begin)
        return false;
    end = strchrnul(begin, '\n');
    equal = memchr(begin, '=', (size_t)(end - begin));
    ret_line->key = begin;
    ret_line->key_size = (int)((equal ? equal : end) - begin);
    ret_line->value = equal ? equal + 1 : end;
    ret_line->value_size = (int)(end - ret_line->value);
    *at = *end ? end + 1 : end;
    return true;
}

static bool find_line(const char *text, const struct line *wanted, struct line *ret_line)
{
    while (next_line(&text, ret_line))
        if (ret_line->key_size == wanted->key_size &&
            memcmp(ret_line->key, wanted->key, (size_t)wanted->key_size) == 0)
            return true;
    return false;
}

static int shown(int size)
{
    return size < MAX_SHOWN ? size : MAX_SHOWN;
}

static bool begins(const struct line *line, const char *with)
{
    return line->key_size >= 5 && memcmp(line->key, with, 5) == 0;
}

static bool is_info(const struct line *line)
{
    return begins(line, "info.");
}

/* Memory is passed on to a VMM that takes it, on the same host: 1 or -ENOTSUP. */
static int meet_local(const char *ours, const struct line *line, struct vfmig_error *reterr)
{
    static const char key[] = ENGINE_LOCAL_INFO;
    const struct line wanted = {.key = key, .key_size = sizeof(key) - 1};
    int skip = (int)strlen(ENGINE_LOCAL_NEED);
    struct line host;

    if (!find_line(ours, &wanted, &host))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                               "the destination's VMM cannot take over memory by its descriptor");
    if (host.value_size == line->value_size - skip &&
        memcmp(host.value, line->value + skip, (size_t)host.value_size) == 0)
        return 1;
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                           "memory cannot be passed on by its descriptor: the destination is "
                           "another host");
}

/* Not compared but answered for: 1, 0 when the line is something else, or -ENOTSUP. */
static int meet_need(const char *ours, const struct line *line, struct vfmig_error *reterr)
{
    bool have = vfmig_pack_supported() && !vfmig_sabotage("no-zstd");

    if (line->key_size != (int)strlen(NEEDS) || memcmp(line->key, NEEDS, strlen(NEEDS)))
        return 0;
    if (line->value_size > (int)strlen(ENGINE_LOCAL_NEED) &&
        memcmp(line->value, ENGINE_LOCAL_NEED, strlen(ENGINE_LOCAL_NEED)) == 0)
        return meet_local(ours, line, reterr);
    if (have && line->value_size == (int)strlen(ZSTD) && !memcmp(line->value, ZSTD, strlen(ZSTD)))
        return 1;
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                           "the stream needs %.*s, which the destination does not have",
                           shown(line->value_size), line->value);
}

/* A finding that nobody collects ends the search, in *reterr. */
static int find(const struct engine_findings *all, struct vfmig_error *reterr,
                const struct vfmig_error *error)
{
    if (!all) {
        if (reterr)
            *reterr = *error;
        return error->code;
    }
    all->found(all->opaque, error->text);
    return 0;
}

static int differs(const struct engine_findings *all, struct vfmig_error *reterr,
                   const struct line *line, const char *source, const struct line *other)
{
    struct vfmig_error error = {0};

    if (other)
        vfmig_error_set(&error, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                        "%.*s is %.*s at the source and %.*s at the destination",
                        shown(line->key_size), line->key, shown(line->value_size), line->value,
                        shown(other->value_size), other->value);
    else
        vfmig_error_set(&error, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                        "%.*s is %.*s at the %s and missing at the %s", shown(line->key_size),
                        line->key, shown(line->value_size), line->value, source,
                        *source == 's' ? "destination" : "source");
    return find(all, reterr, &error);
}

int engine_identity_compare(const char *ours, const char *theirs, const struct engine_findings *all,
                            struct vfmig_error *reterr)
{
    struct line line, other;
    int ret = 0;

    for (const char *at = theirs; ret == 0 && next_line(&at, &line);) {
        if (is_info(&line))
            continue;
        struct vfmig_error unmet = {0};
        int met = meet_need(ours, &line, &unmet);
        if (met < 0)
            ret = find(all, reterr, &unmet);
        if (met)
            continue;
        if (!find_line(ours, &line, &other))
            ret = differs(all, reterr, &line, "source", NULL);
        else if (other.value_size != line.value_size ||
                 memcmp(other.value, line.value, (size_t)line.value_size))
            ret = differs(all, reterr, &line, "source", &other);
    }
    for (const char *at = ours; ret == 0 && next_line(&at, &line);)
        if (!is_info(&line) && !begins(&line, "need.") && !find_line(theirs, &line, &other))
            ret = differs(all, reterr, &line, "destination", NULL);
    return ret;
}

/* What peer to peer mappings a device without N has, in a sentence; NULL: none. One that reaches
 * others would write to stopped ones, and the RFC wants none that is reached either (C57, C70). */
static const char *peer_trouble(const struct vfmig_vm *vm, uint32_t device)
{
    uint8_t flags = VFMIG_PEER_REACHES | VFMIG_PEER_REACHED;

    if (!vm->peer_mappings || vm->device_count < 2)
        return NULL;
    if (vm->peer_devices)
        flags = vm->peer_devices[device];
    return flags & VFMIG_PEER_REACHED   ? "others can reach it by peer to peer DMA"
           : flags & VFMIG_PEER_REACHES ? "it can reach others by peer to peer DMA"
                                        : NULL;
}

/* Why no migration can do anything about this device; code 0: it can. */
static void device_trouble(const struct vfmig_vm *vm, uint32_t i, struct vfmig_error *ret_error)
{
    const struct vfmig_target_info *info = &vm->devices[i]->info;
    bool quiet = (info->features & VFMIG_FEATURE_NDMA) && info->quiet != VFMIG_QUIET_NONE;
    quiet |= vfmig_sabotage("allow-without-ndma");
    const char *peers = quiet ? NULL : peer_trouble(vm, i);

    if (!(info->features & VFMIG_FEATURE_STOP_COPY))
        vfmig_error_set(ret_error, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0, "device %s cannot migrate",
                        vm->device_ids[i]);
    else if (peers)
        vfmig_error_set(ret_error, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                        "device %s has no NDMA, and %s", vm->device_ids[i], peers);
    /* P2P alone leaves DMA under way that the guest would have to page in (A7). */
    else if ((!quiet || (info->quiet == VFMIG_QUIET_P2P && !vfmig_sabotage("p2p-is-quiet"))) &&
             vm->page_faults)
        vfmig_error_set(ret_error, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                        "device %s cannot stop all of its DMA while it runs, which may "
                        "wait for the guest",
                        vm->device_ids[i]);
}

int engine_vm_check(const struct vfmig_vm *vm, const struct engine_findings *all,
                    struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; ret == 0 && i < vm->device_count; i++) {
        struct vfmig_error error = {0};
        device_trouble(vm, i, &error);
        if (error.code)
            ret = find(all, reterr, &error);
    }
    return ret;
}

int engine_vm_check_incoming(const struct vfmig_vm *vm, const struct engine_findings *all,
                             struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; ret == 0 && i < vm->device_count; i++) {
        struct vfmig_error error = {0};
        if (vm->devices[i]->info.halt != VFMIG_HALT_NEVER || vfmig_sabotage("halt-unchecked"))
            continue;
        vfmig_error_set(&error, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                        "device %s cannot be halted once its state is loaded: whether it "
                        "is any good would be found out too late",
                        vm->device_ids[i]);
        ret = find(all, reterr, &error);
    }
    return ret ? ret : engine_vm_check(vm, all, reterr);
}
