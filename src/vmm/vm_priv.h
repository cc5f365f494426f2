/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the reference VMM; not for others. */
#ifndef VFMIG_VMM_VM_PRIV_H
#define VFMIG_VMM_VM_PRIV_H

#include <pthread.h>

#include "dirty/tracker.h"
#include "engine/resolve.h"
#include "vfmig/migrate.h"
#include "vmm/dma.h"
#include "vmm/pci.h"
#include "vmm/peers.h"
#include "vmm/qmp.h"
#include "vmm/vm.h"
#include "vmm/vm_flight.h"
#include "vmm/vm_metrics.h"
#include "vmm/vm_trace.h"

/* As QEMU's RunState, so that clients of QMP know them. */
enum vmm_run_state {
    VMM_PRELAUNCH, /* loaded, never ran */
    VMM_RUNNING,
    VMM_PAUSED,
    VMM_INMIGRATE,      /* waits for an incoming migration, or takes it in */
    VMM_FINISH_MIGRATE, /* stopped by an outgoing migration */
    VMM_POSTMIGRATE,    /* the guest is elsewhere */
    VMM_INTERNAL_ERROR,
    VMM_RUN_STATES
};

#define VMM_MAX_TRACKERS (GUEST_MAX_DEVICES + 2u) /* every device's log, the vCPUs', our own */

/* Everything about migration; both directions, one at a time. */
struct vmm_migration {
    struct vfmig_vm vm;
    struct vfmig_target *devices[GUEST_MAX_DEVICES];
    const char *device_ids[GUEST_MAX_DEVICES];
    struct vfmig_tracker *trackers[VMM_MAX_TRACKERS];
    uint32_t owned_trackers; /* of them, the first ones are freed with the VMM */
    bool tracked[GUEST_MAX_DEVICES]; /* the device has one of them */
    enum vfmig_tracker_kind wanted, kind; /* of the vCPUs' one; the one chosen */
    struct vfmig_tracker_costs costs;     /* as measured at the start */
    struct vfmig_migrate_options options; /* QMP's parameters; journal_dir is ours */
    char journal_dir[256];
    char control_path[128];
    char security_texts[3][256]; /* what options.security points to */
    atomic_uint_fast64_t latched; /* interrupts pending in quiet devices */

    pthread_mutex_t lock; /* of what follows */
    struct vfmig_source *source; /* the last outgoing migration, NULL before the first */
    struct vfmig_destination *destination;
    bool watching; /* watcher exists and is to be joined */
    bool ending;   /* the VMM goes away */
    bool checking; /* a dry run is under way, without the lock; its end: */
    pthread_cond_t checked;
    bool local;    /* the outgoing one passes memory on */
    atomic_bool saved; /* the guest is in a file; it stands still here */
    bool restoring;    /* destination reads a file; under lock */
    bool must_arrive;  /* --incoming file: without its guest this VMM is of no use */
    struct vfmig_error failed; /* then why; under the VMM's lock */
    pthread_t watcher;
};

struct vfmig_vmm {
    char name[64];
    struct vfmig_ram_block blocks[2];
    struct vfmig_memory memory;
    struct vmm_own_memory {
        bool replaced; /* the block is another VMM's; what was here before: */
        int fd;
    } own_memory[2];
    pthread_t leaver; /* unmaps what was passed on; exists: */
    bool leaving;
    struct vfmig_machine *machine;
    struct vfmig_pci pci[GUEST_MAX_DEVICES];
    uint32_t device_count;
    uint32_t first_plugged; /* devices from here on came while the VMM ran */
    struct vmm_dma_space dma;
    struct vmm_dma_device dma_devices[GUEST_MAX_DEVICES];
    struct vmm_iommu *iommu;   /* NULL: no device is behind one */
    uint64_t window;           /* where the next BAR goes */
    struct vmm_peers peers;    /* who reaches whose BARs */
    struct vfmig_tracker *own; /* what this process itself writes to guest memory */
    struct vfmig_qmp *_Atomic qmp; /* starts last, when others already emit events */
    int quit_fd;

    pthread_mutex_t lock; /* of the machine's control functions and run_state */
    enum vmm_run_state run_state;
    bool run_wanted; /* the guest was running when a migration stopped it */

    struct vmm_trace trace;
    struct vmm_flight flight;
    struct vmm_metrics metrics;
    struct vmm_publisher publisher;
    struct vmm_migration migration;
};

/* All of the device's DMA is by message: no memory is mapped for it by descriptor, and this process sees
 * what it writes. */
static inline bool vmm_served_here(const struct vfmig_vmm *vmm, uint32_t device)
{
    return vmm->dma_devices[device].iommu || vmm->dma_devices[device].tagged;
}

const char *vmm_run_state_name(enum vmm_run_state state);

/* QMP's stop and cont. */
int vmm_stop(struct vfmig_vmm *vmm, struct vfmig_error *reterr);
int vmm_cont(struct vfmig_vmm *vmm, struct vfmig_error *reterr);

/* Connects one more device, the last of all, and maps for it and its peers what there is to map. */
int vmm_attach_device(struct vfmig_vmm *vmm, const struct vfmig_vmm_device_config *config,
                      struct vfmig_error *reterr);

/* vm_local.c: the engine's callback memory_adopt; the guest runs here, and has the memory that was
 * adopted for good; it runs elsewhere in the memory that was passed on. */
int vmm_memory_adopt(void *opaque, uint32_t block, int fd, uint64_t fd_offset,
                     struct vfmig_error *reterr);
void vmm_memory_keep(struct vfmig_vmm *vmm);
void vmm_memory_leave(struct vfmig_vmm *vmm);
void vmm_memory_left(struct vfmig_vmm *vmm); /* before memory is unmapped for good */

void vmm_emit(struct vfmig_vmm *vmm, const char *event, struct json_object *data);

/* Before the machine is made: KVM logs by rings, or not, from the start. *ret_entries: of a ring,
 * 0: no rings. */
int vmm_tracker_choose(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                       uint32_t *ret_entries, struct vfmig_error *reterr);
/* The chosen tracker. */
int vmm_tracker_new(struct vfmig_vmm *vmm, struct vfmig_tracker **ret_tracker,
                    struct vfmig_error *reterr);

/* Before it is freed: no vCPU is inside. */
void vmm_tracker_done(struct vfmig_vmm *vmm);

/* vm_rights.c: every thread of this process has no_new_privs from now on, no inheritable and no ambient capabilities
 * and, where it may drop it, no bounding set; with all, no capabilities. A negative errno when one cannot. */
int vmm_drop_rights(bool all);

/* vm_user.c: this process is NAME from now on, with that user's groups and no capabilities, and cannot be more
 * again. Before any thread is confined: it could not follow. */
int vmm_become(const char *name, const char *journal_dir, struct vfmig_error *reterr);

/* Trackers and callbacks; listens when the configuration says incoming. */
int vmm_migration_init(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                       struct vfmig_error *reterr);
/* Cancels what can be cancelled, and ends; QMP may go on asking. */
void vmm_migration_done(struct vfmig_vmm *vmm);
/* After QMP has ended. */
void vmm_migration_forget(struct vfmig_vmm *vmm);

/* The last or current migration of either direction; state NONE when there was none. */
void vmm_migration_status(struct vfmig_vmm *vmm, struct vfmig_progress *ret_progress);
/* Where an incoming migration is awaited, 0 when it is not by TCP. */
uint16_t vmm_migration_port(struct vfmig_vmm *vmm);
/* What `migrate` says about this one migration; zero: as the parameters have it. */
struct vmm_migration_request {
    uint32_t channels;
    uint64_t deadline_ns;
    enum vfmig_on_deadline on_deadline;
    bool local; /* memory is passed on and not copied */
    bool trace; /* the destination's events are wanted too */
    struct vfmig_security security; /* nothing said: as the VMM was told */
};
/* vm_secure.c. Options: the VMM's with what was asked for; args: as QMP has them, which it points into. */
struct vfmig_security vmm_qmp_security(struct json_object *args);
struct vfmig_migrate_options vmm_migration_options(const struct vfmig_vmm *vmm,
                                                   const struct vfmig_security *security);
int vmm_migration_secure(struct vmm_migration *migration, const struct vfmig_security *from,
                         struct vfmig_error *reterr);

int vmm_migration_start(struct vfmig_vmm *vmm, const char *uri,
                        const struct vmm_migration_request *request, struct vfmig_error *reterr);
/* Listens for a guest, or restores one: what --incoming defer left open. */
int vmm_migration_incoming(struct vfmig_vmm *vmm, const char *uri, bool clone,
                           const struct vfmig_security *security, struct vfmig_error *reterr);
/* {"accept", "mismatches": [{"side", "text"}], ...}: a migration that is only asked about. */
int vmm_migration_startable(struct vfmig_vmm *vmm, struct vfmig_error *reterr); /* lock is held */
void vmm_migration_find(struct vfmig_vmm *vmm, bool local, void *opaque,
                        void (*found)(void *opaque, bool source, const char *text));
int vmm_migration_check(struct vfmig_vmm *vmm, const char *uri, bool local,
                        const struct vfmig_security *security,
                        struct json_object **ret_result, struct vfmig_error *reterr);
void vmm_migration_cancel(struct vfmig_vmm *vmm);
void vmm_migration_started(struct vfmig_vmm *vmm); /* a guest that stood still, by whatever it was */

/* With the migration's lock held. 0 when no migration is under way or open. */
int vmm_migration_check_idle(struct vfmig_vmm *vmm, struct vfmig_error *reterr);
/* The VMM's last device is one of those that migrate, or no longer. */
int vmm_migration_device_added(struct vfmig_vmm *vmm, struct vfmig_error *reterr);
void vmm_migration_device_removed(struct vfmig_vmm *vmm);
/* Who reaches whom has changed. */
void vmm_migration_note_peers(struct vfmig_vmm *vmm);

/* vm_devices.c: device_add, device_del, x-query-peers */
int vmm_qmp_device_add(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr);
int vmm_qmp_device_del(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr);
int vmm_qmp_query_peers(void *opaque, struct json_object *args, struct json_object **ret_result,
                        struct vfmig_error *reterr);
/* An operator's decision for the side that this VMM is of a migration. */
int vmm_migration_resolve(struct vfmig_vmm *vmm, bool source,
                          const struct vfmig_resolve_request *request, struct vfmig_error *reterr);
/* All devices are spoken to in this dialect from the next migration on. */
int vmm_set_dialect(struct vfmig_vmm *vmm, enum vfmig_dialect dialect, struct vfmig_error *reterr);

/* query-migrate's answer; an empty object when there was no migration. */
struct json_object *vmm_progress_json(struct vfmig_vmm *vmm, const struct vfmig_progress *progress);

/* The VMM's metrics, as Prometheus reads them. */
int vmm_metrics_text(void *opaque, struct vfmig_buffer *out);

/* QEMU's MigrationStatus that comes nearest. */
const char *vmm_migration_word(enum vfmig_migrate_state state);

/* The vIOMMU: before devices are attached; for each device behind it, whose target is open; before
 * a migration starts, because a dialect may change what a device can; before targets are closed. */
int vmm_viommu_setup(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                     struct vfmig_error *reterr);
int vmm_viommu_attach(struct vfmig_vmm *vmm, uint32_t index, struct vfmig_error *reterr);
int vmm_viommu_check(struct vfmig_vmm *vmm, struct vfmig_error *reterr);
void vmm_viommu_end(struct vfmig_vmm *vmm);
/* The engine's callback. */
int vmm_viommu_idle(void *opaque, uint64_t timeout_ns, struct vfmig_error *reterr);

/* vm_pasid.c: a device whose DMA carries a PASID, whose target is open. The handle that its guest has
 * for it is the same on every host. */
static inline uint32_t vmm_pasid_handle(uint32_t index)
{
    return index + 1;
}
int vmm_pasid_attach(struct vfmig_vmm *vmm, uint32_t index, struct vfmig_error *reterr);
int vmm_pasid_identity(const struct vfmig_vmm *vmm, struct vfmig_buffer *out);
/* The engine's callback. */
int vmm_pasid_translate(void *opaque, uint32_t device, uint32_t kind, uint32_t number,
                        uint64_t *ret_value, struct vfmig_error *reterr);

extern const struct vfmig_qmp_command vmm_qmp_commands[];

#endif
