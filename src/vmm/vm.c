/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/vm_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "devices/dma_regs.h"
#include "dirty/trackers.h"
#include "target/open.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define HIGH_RAM 0x100000000u /* RAM that does not fit below the PCI windows goes above 4 GiB */

const char *vmm_run_state_name(enum vmm_run_state state)
{
    static const char *const names[VMM_RUN_STATES] = {
        [VMM_PRELAUNCH] = "prelaunch",
        [VMM_RUNNING] = "running",
        [VMM_PAUSED] = "paused",
        [VMM_INMIGRATE] = "inmigrate",
        [VMM_FINISH_MIGRATE] = "finish-migrate",
        [VMM_POSTMIGRATE] = "postmigrate",
        [VMM_INTERNAL_ERROR] = "internal-error",
    };
    return names[state];
}

/* --- memory --- */

/* Memory that is there cannot run out later, and no first write has to wait for it. */
static int prefault_block(const struct vfmig_ram_block *block, struct vfmig_error *reterr)
{
    int ret = madvise(block->host, block->size, MADV_POPULATE_WRITE) < 0 ? -errno : 0;

    if (ret == -EINVAL) { /* before Linux 5.14 */
        ret = 0;
        for (uint64_t at = 0; at < block->size; at += VFMIG_PAGE_SIZE)
            ((volatile char *)block->host)[at] = 0;
    }
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0,
                                 "cannot take %llu bytes of guest memory at once: %s",
                                 (unsigned long long)block->size, strerror(-ret))
               : 0;
}

static int map_block(struct vfmig_vmm *vmm, uint64_t gpa, uint64_t size, struct vfmig_error *reterr)
{
    struct vfmig_ram_block *block = &vmm->blocks[vmm->memory.block_count];

    /* Sealed: neither a device nor we can cut it short under somebody's mapping (SIGBUS). */
    int fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot create guest memory: %s", strerror(errno));
    int ret = 0;
    void *host = MAP_FAILED;
    if (ftruncate(fd, (off_t)size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        ret = -errno;
    else
        host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!ret && host == MAP_FAILED)
        ret = -errno;
    if (ret) {
        close(fd);
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot map %llu bytes of guest memory: %s",
                               (unsigned long long)size, strerror(-ret));
    }
    /* Dirt is counted in pages of 4 KiB; and a core dump is no place for a guest. Advice only. */
    madvise(host, size, MADV_NOHUGEPAGE);
    madvise(host, size, MADV_DONTDUMP);
    *block = (struct vfmig_ram_block){.gpa = gpa, .size = size, .host = host, .fd = fd};
    vmm->memory.block_count++;
    return 0;
}

static int map_memory(struct vfmig_vmm *vmm, uint64_t size, struct vfmig_error *reterr)
{
    vmm->memory.blocks = vmm->blocks;
    if (size % VFMIG_PAGE_SIZE || size < GUEST_MIN_MEMORY)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "guest memory must be whole pages, at least %u MiB",
                               GUEST_MIN_MEMORY >> 20);
    uint64_t low = size < VFMIG_PCI_WINDOW ? size : VFMIG_PCI_WINDOW;
    int ret = map_block(vmm, 0, low, reterr);
    if (!ret && size > low)
        ret = map_block(vmm, HIGH_RAM, size - low, reterr);
    return ret;
}

static void unmap_memory(struct vfmig_vmm *vmm)
{
    vmm_memory_left(vmm);
    for (uint32_t i = 0; i < vmm->memory.block_count; i++) {
        munmap(vmm->blocks[i].host, vmm->blocks[i].size);
        if (vmm->blocks[i].fd >= 0)
            close(vmm->blocks[i].fd);
    }
    vmm_memory_keep(vmm);
}

/* --- accesses by the guest and by devices --- */

static struct vfmig_pci *find_bar(struct vfmig_vmm *vmm, uint64_t gpa, uint32_t size,
                                  const struct vfmig_pci_bar **ret_bar)
{
    uint32_t count = __atomic_load_n(&vmm->device_count, __ATOMIC_ACQUIRE);

    for (uint32_t i = 0; i < count; i++) {
        *ret_bar = vfmig_pci_find(&vmm->pci[i], gpa, size);
        if (*ret_bar)
            return &vmm->pci[i];
    }
    return NULL;
}

/* As on a bus: a read that nobody answers gives ones, a write is lost. */
static void on_mmio(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                    uint32_t size)
{
    struct vfmig_vmm *vmm = opaque;
    const struct vfmig_pci_bar *bar;
    struct vfmig_pci *pci = find_bar(vmm, gpa, size, &bar);

    if (vmm->iommu && gpa >= IOMMU_GPA && gpa < IOMMU_GPA + IOMMU_BYTES)
        vmm_iommu_mmio(vmm->iommu, (uint32_t)(gpa - IOMMU_GPA), is_write, data, size);
    else if (pci)
        vfmig_pci_access(pci, bar, gpa, is_write, data, size);
    else if (!is_write)
        memset(data, 0xff, size);
}

static void on_own_write(void *opaque, uint64_t gpa, uint64_t size)
{
    struct vfmig_vmm *vmm = opaque;
    vfmig_own_mark(vmm->own, gpa, size);
}

/* --- devices --- */

/* Every device reaches all of RAM by descriptor. */
static int map_ram(struct vfmig_vmm *vmm, struct vfmig_target *target, struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; !ret && i < vmm->memory.block_count; i++) {
        const struct vfmig_ram_block *block = &vmm->blocks[i];
        ret = target->ops->dma_map(target, block->gpa, block->size, block->fd, block->fd_offset, 3,
                                   reterr);
    }
    return ret;
}

int vmm_attach_device(struct vfmig_vmm *vmm, const struct vfmig_vmm_device_config *config,
                      struct vfmig_error *reterr)
{
    struct vfmig_target *target;
    uint64_t window = vmm->window;
    uint32_t index = vmm->device_count;
    char id[64];

    snprintf(id, sizeof(id), "dev%u", index);
    const char *name = config->id ? config->id : id;
    for (uint32_t i = 0; i < index; i++)
        if (!strcmp(vmm->pci[i].id, name))
            return vfmig_error_set(reterr, -EEXIST, VFMIG_ORIGIN_LOCAL, 0,
                                   "two devices have the id %s", name);
    vmm->dma_devices[index] = (struct vmm_dma_device){
        .space = &vmm->dma, .index = index, .iommu = config->iommu ? vmm->iommu : NULL,
        .tagged = config->tagged, .pasid = config->pasid};
    const struct vfmig_user_options options = {
        .dialect = config->dialect,
        .dma = vmm_dma_callbacks(&vmm->dma_devices[index]),
        .incoming = vmm->run_state == VMM_INMIGRATE,
        .late_load = config->late_load,
    };
    int ret = vfmig_open_address(config->path, &options, &target, reterr);
    if (ret)
        return ret;
    ret = vfmig_pci_init(&vmm->pci[index], index, name, target, &window, reterr);
    if (ret) {
        target->ops->close(target);
        return ret;
    }
    bool translated = vmm->dma_devices[index].iommu != NULL;
    ret = config->tagged ? vmm_pasid_attach(vmm, index, reterr)
          : translated   ? vmm_viommu_attach(vmm, index, reterr)
                         : map_ram(vmm, target, reterr);
    if (!ret)
        ret = vfmig_pci_start(&vmm->pci[index], vmm->machine, reterr);
    vmm->peers.serves[index] = vfmig_user_has_twin(target);
    vmm->peers.translated[index] = translated || config->tagged;
    if (!ret)
        ret = vmm_peers_add(&vmm->peers, index + 1, reterr);
    if (ret) {
        vmm_dma_detach(&vmm->dma_devices[index]);
        vfmig_pci_done(&vmm->pci[index]);
        return ret;
    }
    vmm->window = window;
    __atomic_store_n(&vmm->device_count, index + 1, __ATOMIC_RELEASE);
    return 0;
}

static int attach_devices(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                          struct vfmig_error *reterr)
{
    int ret = vmm_viommu_setup(vmm, config, reterr);

    vmm->window = VFMIG_PCI_WINDOW;
    vmm_peers_init(&vmm->peers, vmm->pci, config->p2p);
    for (uint32_t i = 0; !ret && i < config->device_count; i++)
        ret = vmm_attach_device(vmm, &config->devices[i], reterr);
    vmm->first_plugged = vmm->device_count;
    return ret;
}

/* --- running --- */

void vmm_emit(struct vfmig_vmm *vmm, const char *event, struct json_object *data)
{
    if (vmm->qmp)
        vfmig_qmp_event(vmm->qmp, event, data);
    else
        json_object_put(data);
}

int vmm_stop(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    int ret = 0;

    pthread_mutex_lock(&vmm->lock);
    vmm->run_wanted = false;
    if (vmm->run_state == VMM_RUNNING) {
        ret = vfmig_machine_stop(vmm->machine, reterr);
        if (!ret) {
            vmm->run_state = VMM_PAUSED;
            vmm_emit(vmm, "STOP", NULL);
        }
    }
    pthread_mutex_unlock(&vmm->lock);
    return ret;
}

int vmm_cont(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    bool started = false;
    int ret = 0;

    pthread_mutex_lock(&vmm->lock);
    switch (vmm->run_state) {
    case VMM_PRELAUNCH:
    case VMM_PAUSED:
        ret = vfmig_machine_start(vmm->machine, reterr);
        if (!ret) {
            started = true;
            vmm->run_state = VMM_RUNNING;
            vmm_emit(vmm, "RESUME", NULL);
        }
        break;
    case VMM_RUNNING:
        break;
    case VMM_INMIGRATE:
    case VMM_FINISH_MIGRATE:
        vmm->run_wanted = true; /* once the migration lets it */
        break;
    default:
        ret = vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                              vmm->run_state == VMM_POSTMIGRATE && vmm->migration.saved
                                  ? "the guest is in a file: it goes on here only when that is "
                                    "given up, by vfmig resolve --discard-file"
                              : vmm->run_state == VMM_POSTMIGRATE
                                  ? "the guest was migrated away; it must not run here"
                                  : "the guest cannot run: it failed");
    }
    pthread_mutex_unlock(&vmm->lock);
    if (started)
        vmm_migration_started(vmm);
    return ret;
}

/* --- life --- */

static int create_machine(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                          struct vfmig_error *reterr)
{
    struct vfmig_machine_config machine = {
        .accel = config->accel,
        .vcpu_count = config->vcpu_count,
        .memory = vmm->memory,
        .mmio = on_mmio,
        .own_write = on_own_write,
        .opaque = vmm,
    };
    int ret = vmm_tracker_choose(vmm, config, &machine.dirty_ring, reterr);

    return ret ? ret : vfmig_machine_create(&machine, &vmm->machine, reterr);
}

/* Each dma device of those that reach one another drives the next one's memory, the last the first's:
 * two are a pair. The guest is told of no other mapping. */
static void choose_peers(const struct vfmig_vmm *vmm, const uint32_t *places,
                         struct vfmig_guest_config *guest)
{
    const uint8_t both = VFMIG_PEER_REACHES | VFMIG_PEER_REACHED;
    uint32_t ring[GUEST_MAX_DEVICES], count = 0;

    for (uint32_t i = 0; i < guest->device_count; i++) {
        const struct vfmig_target_info *info = &vmm->pci[places[i]].target->info;
        if (info->pci_vendor == DMA_PCI_VENDOR && info->pci_device == DMA_PCI_DEVICE &&
            vmm->peers.flags[places[i]] == both)
            ring[count++] = i;
    }
    for (uint32_t i = 0; count > 1 && i < count; i++)
        guest->device_peer[ring[i]] = ring[(i + 1) % count] + 1;
}

static int load_guest(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                      struct vfmig_error *reterr)
{
    struct vfmig_guest_config guest = config->guest;

    uint32_t places[GUEST_MAX_DEVICES]; /* among all devices of those that the guest drives */
    guest.device_count = 0;
    for (uint32_t i = 0; i < vmm->device_count; i++) {
        if (!vmm->pci[i].bars[0].size)
            continue;
        places[guest.device_count] = i;
        guest.device_pasid[guest.device_count] =
            vmm->dma_devices[i].tagged ? vmm_pasid_handle(i) : 0;
        guest.device_iommu[guest.device_count] = vmm->dma_devices[i].iommu ? i + 1 : 0;
        guest.device_bar[guest.device_count++] = vmm->pci[i].bars[0].gpa;
    }
    choose_peers(vmm, places, &guest);
    return vfmig_machine_load_guest(vmm->machine, &guest, reterr);
}

int vfmig_vmm_create(const struct vfmig_vmm_config *config, struct vfmig_vmm **ret_vmm,
                     struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = calloc(1, sizeof(*vmm));

    if (!vmm)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the VMM");
    snprintf(vmm->name, sizeof(vmm->name), "%s", config->name ? config->name : "guest");
    pthread_mutex_init(&vmm->lock, NULL);
    vmm->run_state = config->incoming ? VMM_INMIGRATE : VMM_PRELAUNCH;
    int ret = vmm_trace_init(&vmm->trace, config->trace_path, reterr);
    if (!ret)
        ret = vmm_flight_init(&vmm->flight, config->flight_path, config->journal_dir, reterr);
    vmm_metrics_init(&vmm->metrics);
    vmm->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!ret && vmm->quit_fd < 0)
        ret = vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                              "cannot create an eventfd: %s", strerror(errno));
    if (!ret && config->device_count > GUEST_MAX_DEVICES)
        ret = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "more than %u devices",
                              GUEST_MAX_DEVICES);
    /* A source that returns learns the outcome before it may run (docs/handover.md). */
    if (!ret && config->journal_dir && !config->incoming)
        ret = vfmig_resolve_check_start(config->journal_dir, config->discard_released, reterr);
    if (!ret)
        ret = map_memory(vmm, config->memory_bytes, reterr);
    for (uint32_t i = 0; !ret && config->prefault && i < vmm->memory.block_count; i++)
        ret = prefault_block(&vmm->blocks[i], reterr);
    if (!ret)
        ret = vfmig_tracker_own_new(&vmm->own, reterr);
    vmm->dma = (struct vmm_dma_space){
        .memory = vmm->memory, .own = vmm->own, .beside = vmm_peers_access, .opaque = &vmm->peers};
    if (!ret)
        ret = create_machine(vmm, config, reterr);
    if (!ret)
        ret = attach_devices(vmm, config, reterr);
    if (!ret && !config->incoming)
        ret = load_guest(vmm, config, reterr);
    if (!ret)
        ret = vmm_migration_init(vmm, config, reterr);
    struct vfmig_qmp *qmp = NULL;
    if (!ret && config->qmp_path)
        ret = vfmig_qmp_start(config->qmp_path, vmm_qmp_commands, vmm, &qmp, reterr);
    vmm->qmp = qmp;
    if (!ret)
        ret = vmm_publisher_start(&vmm->publisher, config->metrics, vmm_metrics_text, vmm, reterr);
    if (!ret && !config->incoming && !config->paused)
        ret = vmm_cont(vmm, reterr);
    if (ret) {
        vfmig_vmm_free(vmm);
        return ret;
    }
    *ret_vmm = vmm;
    return 0;
}

void vfmig_vmm_free(struct vfmig_vmm *vmm)
{
    if (!vmm)
        return;
    vmm_emit(vmm, "SHUTDOWN", NULL);
    vmm_migration_done(vmm);
    vmm_publisher_stop(&vmm->publisher);
    vfmig_qmp_stop(vmm->qmp);
    vmm_migration_forget(vmm);
    vfmig_machine_free(vmm->machine);
    vmm_viommu_end(vmm);
    vmm_peers_shut(&vmm->peers);
    for (uint32_t i = 0; i < vmm->device_count; i++)
        vfmig_pci_done(&vmm->pci[i]);
    vmm_peers_done(&vmm->peers);
    vmm_iommu_free(vmm->iommu);
    if (vmm->own)
        vmm->own->ops->free(vmm->own);
    unmap_memory(vmm);
    if (vmm->quit_fd >= 0)
        close(vmm->quit_fd);
    vmm_metrics_done(&vmm->metrics);
    vmm_flight_done(&vmm->flight);
    vmm_trace_done(&vmm->trace);
    pthread_mutex_destroy(&vmm->lock);
    free(vmm);
}

/* A vCPU that died cannot be helped; the VMM stays to be asked about it. */
static void check_health(struct vfmig_vmm *vmm)
{
    struct vfmig_error err = {0};

    pthread_mutex_lock(&vmm->lock);
    if (vmm->run_state == VMM_RUNNING && vfmig_machine_failed(vmm->machine, &err)) {
        fprintf(stderr, "vfmig vm: the guest stopped: %s\n", err.text);
        vfmig_machine_stop(vmm->machine, NULL);
        vmm->run_state = VMM_INTERNAL_ERROR;
        vmm_emit(vmm, "STOP", NULL);
    }
    pthread_mutex_unlock(&vmm->lock);
}

int vfmig_vmm_run(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    struct pollfd pollfd = {.fd = vmm->quit_fd, .events = POLLIN};

    for (;;) {
        int ready = poll(&pollfd, 1, 200);
        if (ready > 0) {
            pthread_mutex_lock(&vmm->lock);
            struct vfmig_error failed = vmm->migration.failed;
            pthread_mutex_unlock(&vmm->lock);
            if (failed.code && reterr)
                *reterr = failed;
            return failed.code;
        }
        if (ready < 0 && errno != EINTR)
            return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "poll: %s",
                                   strerror(errno));
        check_health(vmm);
    }
}

void vfmig_vmm_quit(struct vfmig_vmm *vmm)
{
    uint64_t one = 1;
    int saved = errno;

    if (write(vmm->quit_fd, &one, sizeof(one)) < 0)
        errno = saved; /* it is full, so it is readable: that is all we want */
    errno = saved;
}
