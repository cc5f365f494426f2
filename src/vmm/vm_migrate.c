/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM's half of the migration engine's contract (vfmig/migrate.h). */
#include "vmm/vm_priv.h"

#include <endian.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bounds.h"
#include "base/crc32c.h"
#include "dirty/trackers.h"
#include "target/user.h"

/* --- the engine's callbacks --- */

static int on_vcpus_stop(void *opaque, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    int ret = 0;

    pthread_mutex_lock(&vmm->lock);
    if (vmm->run_state == VMM_RUNNING || vmm->run_state == VMM_PAUSED ||
        vmm->run_state == VMM_PRELAUNCH) {
        bool running = vmm->run_state == VMM_RUNNING;
        ret = vfmig_machine_stop(vmm->machine, reterr);
        if (!ret) {
            vmm->run_wanted = running;
            vmm->run_state = VMM_FINISH_MIGRATE;
            if (running)
                vmm_emit(vmm, "STOP", NULL);
        }
    }
    pthread_mutex_unlock(&vmm->lock);
    if (!ret && vmm->iommu)
        vmm_iommu_pause(vmm->iommu);
    return ret;
}

/* The source after unwinding, or the destination with the grant. A guest that was paused stays so. */
static int on_vcpus_start(void *opaque, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    int ret = 0;

    if (vmm->iommu)
        vmm_iommu_resume(vmm->iommu);
    vmm_memory_keep(vmm);
    pthread_mutex_lock(&vmm->lock);
    if (vmm->run_state == VMM_FINISH_MIGRATE || vmm->run_state == VMM_INMIGRATE ||
        (vmm->run_state == VMM_POSTMIGRATE && vmm->migration.saved)) {
        if (vmm->run_wanted)
            ret = vfmig_machine_start(vmm->machine, reterr);
        if (!ret) {
            vmm->run_state = vmm->run_wanted ? VMM_RUNNING : VMM_PAUSED;
            vmm->migration.saved = false; /* the file was discarded */
            if (vmm->run_wanted)
                vmm_emit(vmm, "RESUME", NULL);
        }
    }
    pthread_mutex_unlock(&vmm->lock);
    return ret;
}

/* In front of the vIOMMU's state and the machine's own blob. board_crc is a witness that memory and
 * vCPUs are of the same moment: the guest writes its scoreboard all the time. */
struct saved_vmm {
    uint32_t version;
    uint32_t run_wanted;
    uint32_t board_crc;
    uint32_t iommu_size;
} __attribute__((packed));

#define SAVED_VERSION 3u

static uint32_t board_crc(struct vfmig_vmm *vmm)
{
    return vfmig_crc32c(0, vfmig_machine_scoreboard(vmm->machine), sizeof(struct guest_scoreboard));
}

static int on_state_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct vfmig_buffer iommu = {.limit = VFMIG_MAX_VMSTATE};
    uint32_t unread;

    /* Devices are !R: whatever they signalled is on its way to the vCPUs, and must arrive before
     * their state is read. */
    int ret = vfmig_machine_flush_irqs(vmm->machine, &unread, reterr);
    if (!ret && vmm->iommu)
        ret = vmm_iommu_save(vmm->iommu, &iommu, reterr);
    const struct saved_vmm saved = {.version = htole32(SAVED_VERSION),
                                    .run_wanted = htole32(vmm->run_wanted),
                                    .board_crc = htole32(board_crc(vmm)),
                                    .iommu_size = htole32((uint32_t)iommu.size)};
    if (!ret && (vfmig_buffer_append(out, &saved, sizeof(saved)) ||
                 (iommu.size && vfmig_buffer_append(out, iommu.data, iommu.size))))
        ret = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                              "no memory for the vCPUs' state");
    vfmig_buffer_free(&iommu);
    return ret ? ret : vfmig_machine_save(vmm->machine, out, reterr);
}

static int load_iommu(struct vfmig_vmm *vmm, const void *data, size_t size,
                      struct vfmig_error *reterr)
{
    if (vmm->iommu)
        return vmm_iommu_load(vmm->iommu, data, size, reterr);
    return size ? vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                                  "there is the state of a vIOMMU, and no vIOMMU")
                : 0;
}

static int on_state_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct saved_vmm saved;

    if (size < sizeof(saved))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "the VMM's state is cut short");
    memcpy(&saved, data, sizeof(saved));
    const char *at = (const char *)data + sizeof(saved);
    size_t left = size - sizeof(saved), iommu_size = le32toh(saved.iommu_size);
    if (le32toh(saved.version) != SAVED_VERSION)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "the VMM's state has version %u, only %u is known",
                               le32toh(saved.version), SAVED_VERSION);
    if (le32toh(saved.board_crc) != board_crc(vmm))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "guest memory is not as it was when the vCPUs stopped");
    if (iommu_size > left)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "the VMM's state is cut short");
    int ret = load_iommu(vmm, at, iommu_size, reterr);
    if (!ret)
        ret = vfmig_machine_load(vmm->machine, at + iommu_size, left - iommu_size, reterr);
    if (!ret)
        vmm->run_wanted = le32toh(saved.run_wanted) != 0;
    return ret;
}

/* Each device's part, in order, with its size in front. */
static int on_external_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    uint64_t latched = 0;
    int ret = 0;

    for (uint32_t i = 0; !ret && i < vmm->device_count; i++) {
        struct vfmig_buffer part = {.limit = VFMIG_PCI_MAX_SAVED};
        ret = vfmig_pci_save(&vmm->pci[i], &part, reterr);
        uint32_t size = htole32((uint32_t)part.size);
        if (!ret && (vfmig_buffer_append(out, &size, sizeof(size)) ||
                     vfmig_buffer_append(out, part.data, part.size)))
            ret = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                  "no memory for the devices' external state");
        vfmig_buffer_free(&part);
        latched += vfmig_pci_pending(&vmm->pci[i]);
    }
    vmm->migration.latched = latched;
    return ret;
}

static int on_external_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    const uint8_t *at = data;
    int ret = 0;

    for (uint32_t i = 0; !ret && i < vmm->device_count; i++) {
        uint32_t part;
        if (size < sizeof(part))
            break;
        memcpy(&part, at, sizeof(part));
        part = le32toh(part);
        at += sizeof(part);
        size -= sizeof(part);
        if (part > size)
            return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                                   "the devices' external state is cut short");
        ret = vfmig_pci_load(&vmm->pci[i], at, part, reterr);
        at += part;
        size -= part;
        if (!ret && i + 1 == vmm->device_count && !size)
            return 0;
    }
    if (!ret && (vmm->device_count || size))
        ret = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                              "the devices' external state is of another set of devices");
    return ret;
}

static int on_device_reset(void *opaque, uint32_t device, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;

    return vfmig_pci_restore(&vmm->pci[device], reterr);
}

static int on_identity(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;

    int ret = vfmig_buffer_printf(out, "info.name=%s\n", vmm->name);
    /* What the guest's devices reach here they must reach there. */
    for (uint32_t i = 0; !ret && i < vmm->device_count; i++) {
        const char *id = vmm->pci[i].id;
        if (vmm->peers.flags[i] & VFMIG_PEER_REACHES)
            ret = vfmig_buffer_printf(out, "need.p2p.%s.reaches-peers=yes\n", id);
        if (!ret && (vmm->peers.flags[i] & VFMIG_PEER_REACHED))
            ret = vfmig_buffer_printf(out, "need.p2p.%s.reached-by-peers=yes\n", id);
    }
    if (ret)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory");
    if ((vmm->iommu && vmm_iommu_identity(vmm->iommu, out)) || vmm_pasid_identity(vmm, out))
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory");
    return vfmig_machine_identity(vmm->machine, out, reterr);
}

static int on_throttle(void *opaque, uint32_t percent, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;

    return vfmig_machine_throttle(vmm->machine, percent, reterr);
}

static void on_sample(void *opaque, struct vfmig_vm_sample *ret_sample)
{
    struct vfmig_vmm *vmm = opaque;
    const struct guest_scoreboard *board = vfmig_machine_scoreboard(vmm->machine);

    *ret_sample = (struct vfmig_vm_sample){.interrupts_latched = vmm->migration.latched,
                                           .vcpus_run_since_ns =
                                               vfmig_machine_run_since(vmm->machine)};
    if (vmm->iommu)
        ret_sample->page_faults_open = vmm_iommu_faults(vmm->iommu);
    for (uint32_t i = 0; i < vmm->device_count; i++)
        ret_sample->peer_accesses += vmm->pci[i].peer_reads + vmm->pci[i].peer_writes;
    if (vmm->run_state == VMM_INMIGRATE || vmm->blocks[0].fd < 0)
        return; /* what memory says by then is the source's, or the destination's */
    for (uint32_t i = 0; i < GUEST_MAX_VCPUS; i++)
        ret_sample->guest_progress += board->cpu[i].heartbeats;
    for (uint32_t i = 0; i < vmm->device_count; i++)
        ret_sample->dma_in_flight += board->device[i].queued - board->device[i].completed;
}

static void on_released(void *opaque)
{
    struct vfmig_vmm *vmm = opaque;

    pthread_mutex_lock(&vmm->lock);
    vmm->run_state = VMM_POSTMIGRATE;
    pthread_mutex_unlock(&vmm->lock);
    if (vmm->migration.local)
        vmm_memory_leave(vmm);
}

static void on_trace(void *opaque, const char *line)
{
    struct vfmig_vmm *vmm = opaque;

    vmm_trace_line(&vmm->trace, line);
    vmm_flight_line(&vmm->flight, line);
    if (vmm_metrics_line(&vmm->metrics, line))
        vmm_publisher_wake(&vmm->publisher);
}

static const struct vfmig_vm_ops vm_ops = {
    .size = sizeof(struct vfmig_vm_ops),
    .version = VFMIG_VM_OPS_VERSION,
    .vcpus_stop = on_vcpus_stop,
    .vcpus_start = on_vcpus_start,
    .viommu_idle = vmm_viommu_idle,
    .state_save = on_state_save,
    .state_load = on_state_load,
    .external_save = on_external_save,
    .external_load = on_external_load,
    .device_reset = on_device_reset,
    .throttle = on_throttle,
    .identity = on_identity,
    .sample = on_sample,
    .released = on_released,
    .trace = on_trace,
    .memory_adopt = vmm_memory_adopt,
    .translate_handle = vmm_pasid_translate,
};

/* --- set-up --- */

/* Puts device i into the set that migrates; our own tracker stays the last one. */
static int add_device(struct vfmig_vmm *vmm, uint32_t i, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    struct vfmig_pci *pci = &vmm->pci[i];

    if (pci->target->info.dma_log && !vmm_served_here(vmm, i)) {
        struct vfmig_tracker *tracker;
        int ret = vfmig_tracker_device_new(pci->target, NULL, 0, &tracker, reterr);
        if (ret)
            return ret;
        migration->trackers[migration->owned_trackers++] = tracker;
        migration->trackers[migration->owned_trackers] = vmm->own;
        migration->vm.tracker_count++;
        migration->tracked[i] = true;
    }
    migration->devices[i] = pci->target;
    migration->device_ids[i] = pci->id;
    migration->vm.device_count = i + 1;
    return 0;
}

/* Who writes guest memory: the vCPUs, this process, and each device; one behind the vIOMMU or with a
 * PASID does not itself, this process does it for it. A guest with a device
 * that cannot log runs and can arrive; it cannot leave, which check_logs() says. */
static int make_trackers(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    uint32_t *count = &migration->owned_trackers;
    int ret = vmm_tracker_new(vmm, &migration->trackers[*count], reterr);

    if (ret)
        return ret;
    ++*count;
    migration->trackers[*count] = vmm->own;
    migration->vm.tracker_count = *count + 1;
    for (uint32_t i = 0; !ret && i < vmm->device_count; i++)
        ret = add_device(vmm, i, reterr);
    return ret;
}

int vmm_migration_device_added(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    return add_device(vmm, vmm->device_count - 1, reterr);
}

void vmm_migration_device_removed(struct vfmig_vmm *vmm)
{
    struct vmm_migration *migration = &vmm->migration;
    uint32_t last = --migration->vm.device_count;

    if (!migration->tracked[last])
        return;
    migration->tracked[last] = false;
    struct vfmig_tracker *tracker = migration->trackers[--migration->owned_trackers];
    tracker->ops->free(tracker);
    migration->trackers[migration->owned_trackers] = vmm->own;
    migration->vm.tracker_count--;
}

void vmm_migration_note_peers(struct vfmig_vmm *vmm)
{
    vmm->migration.vm.peer_mappings = vmm->peers.any;
    vmm->migration.vm.peer_devices = vmm->peers.flags;
}

static void emit_status(struct vfmig_vmm *vmm, enum vfmig_migrate_state state)
{
    struct json_object *data = json_object_new_object();

    json_object_object_add(data, "status", json_object_new_string(vmm_migration_word(state)));
    vmm_emit(vmm, "MIGRATION", data);
    vmm_publisher_wake(&vmm->publisher);
}

static void *watch_destination(void *arg)
{
    struct vfmig_vmm *vmm = arg;
    struct vfmig_error err = {0};
    int ret = vfmig_destination_wait(vmm->migration.destination, UINT64_MAX, &err);

    struct vfmig_progress progress;
    vfmig_destination_status(vmm->migration.destination, &progress);
    vmm_metrics_note(&vmm->metrics, &progress);
    if (ret && ret != -ECANCELED) {
        /* The guest is ours, only its start failed: `cont` may try again. A file that could not be
         * restored leaves nothing here. */
        bool paused = progress.state == VFMIG_MIGRATE_PAUSED;
        if (paused || !vmm->migration.must_arrive)
            fprintf(stderr, "vfmig vm: %s\n", err.text);
        pthread_mutex_lock(&vmm->lock);
        if (paused && vmm->run_state == VMM_INMIGRATE)
            vmm->run_state = VMM_PAUSED;
        else if (!paused && vmm->migration.must_arrive)
            vmm->migration.failed = err;
        pthread_mutex_unlock(&vmm->lock);
        if (!paused && vmm->migration.must_arrive)
            vfmig_vmm_quit(vmm);
    }
    emit_status(vmm, ret ? VFMIG_MIGRATE_FAILED : VFMIG_MIGRATE_COMPLETED);
    return NULL;
}

static int listen_for_guest(struct vfmig_vmm *vmm, const char *uri, bool clone,
                            const struct vfmig_security *security, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    const struct vfmig_migrate_options options = vmm_migration_options(vmm, security);
    bool file = !strncmp(uri, "file:", 5);

    if (clone && !file)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "only a guest from file:PATH can be cloned");
    int ret = vfmig_destination_new(&migration->vm, &options, &migration->destination, reterr);
    migration->restoring = file;
    if (!ret && file)
        ret = vfmig_destination_restore(migration->destination, uri + 5, clone, reterr);
    else if (!ret)
        ret = vfmig_destination_listen(migration->destination, uri, reterr);
    if (!ret)
        ret = -pthread_create(&migration->watcher, NULL, watch_destination, vmm);
    migration->watching = !ret;
    if (ret) {
        vfmig_destination_free(migration->destination);
        migration->destination = NULL;
    }
    return ret;
}

/* Called with the lock held: what an earlier migrate-incoming has left, if that has ended. */
static int forget_failed(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    struct vfmig_progress progress;

    if (migration->ending)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "the VMM is about to end");
    if (!migration->destination)
        return 0;
    vfmig_destination_status(migration->destination, &progress);
    bool over = progress.state == VFMIG_MIGRATE_FAILED || progress.state == VFMIG_MIGRATE_CANCELLED;
    if (!over ||
        vfmig_destination_wait(migration->destination, 0, NULL) == -ETIMEDOUT)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "a guest is awaited or taken in already");
    pthread_join(migration->watcher, NULL);
    migration->watching = false;
    vfmig_destination_free(migration->destination);
    migration->destination = NULL;
    return 0;
}

int vmm_migration_incoming(struct vfmig_vmm *vmm, const char *uri, bool clone,
                           const struct vfmig_security *security, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;

    pthread_mutex_lock(&vmm->lock);
    bool waits = vmm->run_state == VMM_INMIGRATE;
    pthread_mutex_unlock(&vmm->lock);
    if (!waits)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                               "this VMM waits for no guest; start it with --incoming defer");
    pthread_mutex_lock(&migration->lock);
    int ret = forget_failed(vmm, reterr);
    if (!ret)
        ret = listen_for_guest(vmm, uri, clone, security, reterr);
    pthread_mutex_unlock(&migration->lock);
    return ret;
}

int vmm_migration_init(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                       struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;

    pthread_mutex_init(&migration->lock, NULL);
    pthread_cond_init(&migration->checked, NULL);
    migration->options.channels = config->channels;
    migration->options.viommu_timeout_ns = config->viommu_timeout_ns;
    migration->options.confine = !config->unconfined;
    if (config->qmp_path) {
        if (strlen(config->qmp_path) >= sizeof(migration->control_path))
            return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                                   "the path of the control socket is too long");
        strcpy(migration->control_path, config->qmp_path);
        migration->options.control_path = migration->control_path;
    }
    if (config->journal_dir) {
        if (strlen(config->journal_dir) >= sizeof(migration->journal_dir))
            return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                                   "the path of the journal is too long");
        strcpy(migration->journal_dir, config->journal_dir);
        migration->options.journal_dir = migration->journal_dir;
    }
    migration->vm = (struct vfmig_vm){
        .ops = &vm_ops,
        .opaque = vmm,
        .memory = vmm->memory,
        .devices = migration->devices,
        .device_ids = migration->device_ids,
        .trackers = migration->trackers,
    };
    vmm_migration_note_peers(vmm);
    int ret = vmm_migration_secure(migration, &config->security, reterr);
    if (!ret)
        ret = make_trackers(vmm, reterr);
    if (!ret && config->user)
        ret = vmm_become(config->user, config->journal_dir, reterr);
    if (ret || !config->incoming || !strcmp(config->incoming, "defer"))
        return ret;
    migration->must_arrive = !strncmp(config->incoming, "file:", 5);
    return listen_for_guest(vmm, config->incoming, config->clone, &migration->options.security, reterr);
}

void vmm_migration_done(struct vfmig_vmm *vmm)
{
    struct vmm_migration *migration = &vmm->migration;

    if (!migration->vm.ops)
        return;
    /* QMP is still served, for the events of the end: it finds nothing to ask about any more. */
    pthread_mutex_lock(&migration->lock);
    migration->ending = true;
    while (migration->checking)
        pthread_cond_wait(&migration->checked, &migration->lock);
    if (migration->source)
        vfmig_source_quit(migration->source);
    if (migration->destination)
        vfmig_destination_quit(migration->destination);
    pthread_mutex_unlock(&migration->lock);
    if (migration->watching)
        pthread_join(migration->watcher, NULL);
    pthread_mutex_lock(&migration->lock);
    struct vfmig_source *source = migration->source;
    struct vfmig_destination *destination = migration->destination;
    migration->source = NULL;
    migration->destination = NULL;
    pthread_mutex_unlock(&migration->lock);
    vfmig_source_free(source);
    vfmig_destination_free(destination);
    vmm_tracker_done(vmm);
    for (uint32_t i = 0; i < migration->owned_trackers; i++)
        migration->trackers[i]->ops->free(migration->trackers[i]);
}

void vmm_migration_forget(struct vfmig_vmm *vmm)
{
    if (!vmm->migration.vm.ops)
        return;
    pthread_cond_destroy(&vmm->migration.checked);
    pthread_mutex_destroy(&vmm->migration.lock);
}

/* --- outgoing --- */

static void *watch_source(void *arg)
{
    struct vfmig_vmm *vmm = arg;
    struct vfmig_progress progress;

    vfmig_source_wait(vmm->migration.source, UINT64_MAX, NULL);
    vfmig_source_status(vmm->migration.source, &progress);
    vmm_metrics_note(&vmm->metrics, &progress);
    pthread_mutex_lock(&vmm->lock);
    if (progress.state == VFMIG_MIGRATE_SAVED && vmm->run_state == VMM_FINISH_MIGRATE)
        vmm->migration.saved = true;
    if (progress.state == VFMIG_MIGRATE_COMPLETED || vmm->migration.saved)
        vmm->run_state = VMM_POSTMIGRATE;
    pthread_mutex_unlock(&vmm->lock);
    emit_status(vmm, progress.state);
    return NULL;
}

/* Called with the lock held: forgets the last outgoing migration, which has ended. */
static void forget_source(struct vmm_migration *migration, struct vmm_metrics *metrics)
{
    struct vfmig_progress progress;

    if (!migration->source)
        return;
    pthread_join(migration->watcher, NULL);
    migration->watching = false;
    vfmig_source_status(migration->source, &progress); /* one that was open and is settled */
    vmm_metrics_note(metrics, &progress);
    vfmig_source_free(migration->source);
    migration->source = NULL;
}

int vmm_migration_check_idle(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    struct vfmig_progress progress;
    const char *why = NULL;

    if (vmm->migration.ending)
        why = "the VMM is about to end";
    pthread_mutex_lock(&vmm->lock);
    if (vmm->run_state == VMM_POSTMIGRATE)
        why = vmm->migration.saved ? "the guest is in a file already"
                                   : "the guest was migrated away already";
    else if (vmm->run_state == VMM_INMIGRATE)
        why = "the guest has not arrived yet";
    else if (vmm->run_state == VMM_INTERNAL_ERROR)
        why = "the guest has failed";
    pthread_mutex_unlock(&vmm->lock);
    if (!why && vmm->migration.source) {
        vfmig_source_status(vmm->migration.source, &progress);
        if (progress.state == VFMIG_MIGRATE_ACTIVE)
            why = "a migration is under way already";
        else if (progress.state == VFMIG_MIGRATE_UNDECIDED)
            why = "the outcome of the last migration is open; see vfmig status";
    }
    return why ? vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "%s", why) : 0;
}

int vmm_migration_startable(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    if (!vmm->migration.ending && !vmm->migration.options.journal_dir)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "the VMM has no journal; start it with --journal DIR");
    return vmm_migration_check_idle(vmm, reterr);
}

static bool is_logged(struct vfmig_vmm *vmm, uint32_t i)
{
    return vmm_served_here(vmm, i) ||
           (vmm->migration.tracked[i] && vmm->pci[i].target->info.dma_log);
}

void vmm_migration_find(struct vfmig_vmm *vmm, bool local, void *opaque,
                        void (*found)(void *opaque, bool source, const char *text))
{
    struct vfmig_error error = {0};

    for (uint32_t i = 0; i < vmm->device_count; i++) {
        if (local || is_logged(vmm, i))
            continue;
        vfmig_error_set(&error, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                        "device %s cannot log its DMA, so the guest cannot be moved",
                        vmm->pci[i].id);
        found(opaque, /* source= */ true, error.text);
    }
    if (vmm_viommu_check(vmm, &error))
        found(opaque, /* source= */ true, error.text);
}

/* Nobody else sees what a device writes into memory: without its log, pages would be lost. */
static int check_logs(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < vmm->device_count; i++)
        if (!is_logged(vmm, i))
            return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                                   "device %s cannot log its DMA, so the guest cannot be moved",
                                   vmm->pci[i].id);
    return 0;
}

int vmm_migration_start(struct vfmig_vmm *vmm, const char *uri,
                        const struct vmm_migration_request *request, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;

    pthread_mutex_lock(&migration->lock);
    int ret = vmm_migration_startable(vmm, reterr);
    if (!ret && !request->local)
        ret = check_logs(vmm, reterr);
    if (!ret)
        ret = vmm_viommu_check(vmm, reterr);
    if (!ret) {
        struct vfmig_migrate_options options = vmm_migration_options(vmm, &request->security);
        options.deadline_ns = request->deadline_ns;
        options.on_deadline = request->on_deadline;
        options.trace_peer = request->trace;
        options.local = migration->local = request->local;
        if (request->channels)
            options.channels = request->channels;
        forget_source(migration, &vmm->metrics);
        migration->latched = 0; /* those of an attempt before were delivered when it was unwound */
        if (migration->destination) {
            /* The guest arrived by it; a source that asks later reads the journal. */
            pthread_join(migration->watcher, NULL);
            migration->watching = false;
            vfmig_destination_free(migration->destination);
            migration->destination = NULL;
        }
        vmm_trace_keep(&vmm->trace, request->trace);
        vmm_flight_leave(&vmm->flight);
        vmm_metrics_leave(&vmm->metrics);
        ret = vfmig_source_new(&migration->vm, &options, &migration->source, reterr);
        if (!ret)
            ret = vfmig_source_start(migration->source, uri, reterr);
        if (!ret)
            emit_status(vmm, VFMIG_MIGRATE_ACTIVE);
        if (!ret && pthread_create(&migration->watcher, NULL, watch_source, vmm))
            ret = vfmig_error_set(reterr, -EAGAIN, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
        migration->watching = !ret;
        if (ret) {
            vfmig_source_free(migration->source);
            migration->source = NULL;
        }
    }
    pthread_mutex_unlock(&migration->lock);
    return ret;
}

int vmm_set_dialect(struct vfmig_vmm *vmm, enum vfmig_dialect dialect, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&vmm->migration.lock);
    int ret = vmm_migration_startable(vmm, reterr);
    for (uint32_t i = 0; !ret && i < vmm->device_count; i++)
        ret = vfmig_user_set_dialect(vmm->pci[i].target, dialect, reterr);
    pthread_mutex_unlock(&vmm->migration.lock);
    return ret;
}

void vmm_migration_cancel(struct vfmig_vmm *vmm)
{
    pthread_mutex_lock(&vmm->migration.lock);
    if (vmm->migration.source)
        vfmig_source_cancel(vmm->migration.source);
    else if (vmm->migration.destination && vmm->migration.restoring)
        vfmig_destination_cancel(vmm->migration.destination);
    pthread_mutex_unlock(&vmm->migration.lock);
}

int vmm_migration_resolve(struct vfmig_vmm *vmm, bool source,
                          const struct vfmig_resolve_request *request, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    int ret;

    pthread_mutex_lock(&migration->lock);
    if (source && migration->source)
        ret = vfmig_source_resolve(migration->source, request, reterr);
    else if (!source && migration->destination)
        ret = vfmig_destination_resolve(migration->destination, request, reterr);
    else
        ret = vfmig_error_set(reterr, -ENOENT, VFMIG_ORIGIN_LOCAL, 0,
                              "this VMM is not the %s of a migration",
                              source ? "source" : "destination");
    pthread_mutex_unlock(&migration->lock);
    return ret;
}

void vmm_migration_started(struct vfmig_vmm *vmm)
{
    pthread_mutex_lock(&vmm->migration.lock);
    if (vmm->migration.destination)
        vfmig_destination_started(vmm->migration.destination);
    pthread_mutex_unlock(&vmm->migration.lock);
}

uint16_t vmm_migration_port(struct vfmig_vmm *vmm)
{
    uint16_t port = 0;

    pthread_mutex_lock(&vmm->migration.lock);
    if (vmm->migration.destination)
        port = vfmig_destination_port(vmm->migration.destination);
    pthread_mutex_unlock(&vmm->migration.lock);
    return port;
}

void vmm_migration_status(struct vfmig_vmm *vmm, struct vfmig_progress *ret_progress)
{
    memset(ret_progress, 0, sizeof(*ret_progress));
    pthread_mutex_lock(&vmm->migration.lock);
    if (vmm->migration.source)
        vfmig_source_status(vmm->migration.source, ret_progress);
    else if (vmm->migration.destination)
        vfmig_destination_status(vmm->migration.destination, ret_progress);
    pthread_mutex_unlock(&vmm->migration.lock);
}
