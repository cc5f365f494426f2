/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices that come and go while the VMM runs, and who reaches whom. The guest is not told: it has
 * no hot-plug. What it drives it has from the start. */
#include "vmm/vm_priv.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

static int find_device(const struct vfmig_vmm *vmm, const char *id, uint32_t *ret_index,
                       struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < vmm->device_count; i++) {
        if (!strcmp(vmm->pci[i].id, id)) {
            *ret_index = i;
            return 0;
        }
    }
    return vfmig_error_set(reterr, -ENODEV, VFMIG_ORIGIN_LOCAL, 0, "there is no device %s", id);
}

/* With the vCPUs parked: no access of theirs is under way, vmm_peers_remove() sees to the devices'.
 */
static void detach_last(struct vfmig_vmm *vmm)
{
    struct vfmig_pci *pci = &vmm->pci[vmm->device_count - 1];

    vmm_peers_remove(&vmm->peers);
    __atomic_store_n(&vmm->device_count, vmm->device_count - 1, __ATOMIC_RELEASE);
    for (unsigned bar = 0; bar < VFMIG_PCI_BARS; bar++)
        if (pci->bars[bar].size && pci->bars[bar].gpa < vmm->window)
            vmm->window = pci->bars[bar].gpa;
    vfmig_pci_done(pci);
}

static int detach_parked(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&vmm->lock);
    bool running = vmm->run_state == VMM_RUNNING;
    int ret = running ? vfmig_machine_stop(vmm->machine, reterr) : 0;
    if (!ret) {
        detach_last(vmm);
        if (running)
            ret = vfmig_machine_start(vmm->machine, reterr);
    }
    pthread_mutex_unlock(&vmm->lock);
    return ret;
}

static int device_add(struct vfmig_vmm *vmm, const struct vfmig_vmm_device_config *config,
                      struct vfmig_error *reterr)
{
    int ret = vmm_migration_check_idle(vmm, reterr);

    if (!ret && vmm->device_count == GUEST_MAX_DEVICES)
        ret = vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0, "more than %u devices",
                              GUEST_MAX_DEVICES);
    if (!ret)
        ret = vmm_attach_device(vmm, config, reterr);
    if (ret)
        return ret;
    ret = vmm_migration_device_added(vmm, reterr);
    if (ret)
        (void)detach_parked(vmm, NULL);
    vmm_migration_note_peers(vmm);
    return ret;
}

static int device_del(struct vfmig_vmm *vmm, const char *id, struct vfmig_error *reterr)
{
    uint32_t index = 0, last = vmm->device_count - 1;
    int ret = vmm_migration_check_idle(vmm, reterr);

    if (!ret)
        ret = find_device(vmm, id, &index, reterr);
    if (ret)
        return ret;
    if (index < vmm->first_plugged)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "device %s was there when the guest began, and the guest uses it",
                               id);
    if (index != last)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "device %s was added after %s: remove that one first",
                               vmm->pci[last].id, id);
    vmm_migration_device_removed(vmm);
    ret = detach_parked(vmm, reterr);
    vmm_migration_note_peers(vmm);
    return ret;
}

int vmm_qmp_device_add(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct json_object *socket = json_object_object_get(args, "socket");
    const char *driver = json_object_get_string(json_object_object_get(args, "driver"));
    const char *dialect = json_object_get_string(json_object_object_get(args, "x-dialect"));
    struct vfmig_vmm_device_config config = {
        .id = json_object_get_string(json_object_object_get(args, "id")),
        .path = json_object_get_string(json_object_object_get(socket, "path")),
    };

    if (strcmp(driver, "vfio-user-pci") || !config.path)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "only the driver vfio-user-pci with a socket of type unix is known");
    if (dialect && strcmp(dialect, "feature") && strcmp(dialect, "region"))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "'x-dialect' is neither feature nor region");
    if (dialect)
        config.dialect = strcmp(dialect, "region") ? VFMIG_DIALECT_FEATURE : VFMIG_DIALECT_REGION;
    pthread_mutex_lock(&vmm->migration.lock);
    int ret = device_add(vmm, &config, reterr);
    pthread_mutex_unlock(&vmm->migration.lock);
    return ret;
}

int vmm_qmp_device_del(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    const char *id = json_object_get_string(json_object_object_get(args, "id"));

    pthread_mutex_lock(&vmm->migration.lock);
    int ret = device_del(vmm, id, reterr);
    pthread_mutex_unlock(&vmm->migration.lock);
    if (ret)
        return ret;
    struct json_object *data = json_object_new_object();
    json_object_object_add(data, "device", json_object_new_string(id));
    vmm_emit(vmm, "DEVICE_DELETED", data);
    return 0;
}

int vmm_qmp_query_peers(void *opaque, struct json_object *args, struct json_object **ret_result,
                        struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct json_object *devices = json_object_new_array();

    for (uint32_t i = 0; i < vmm->device_count; i++) {
        struct vfmig_pci *pci = &vmm->pci[i];
        struct json_object *device = json_object_new_object(), *reaches = json_object_new_array();
        for (uint32_t j = 0; j < vmm->device_count; j++)
            if (atomic_load(&vmm->peers.mapped[i][j]))
                json_object_array_add(reaches, json_object_new_string(vmm->pci[j].id));
        json_object_object_add(device, "id", json_object_new_string(pci->id));
        json_object_object_add(device, "reaches", reaches);
        json_object_object_add(device, "reads", json_object_new_uint64(pci->peer_reads));
        json_object_object_add(device, "writes", json_object_new_uint64(pci->peer_writes));
        json_object_object_add(device, "failures", json_object_new_uint64(pci->peer_failures));
        json_object_array_add(devices, device);
    }
    *ret_result = devices;
    return 0;
}
