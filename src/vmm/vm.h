/* SPDX-License-Identifier: BSD-3-Clause */
/* The reference VMM: guest memory, machine, devices and a control socket put together. */
#ifndef VFMIG_VMM_VM_H
#define VFMIG_VMM_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "dirty/choose.h"
#include "target/target.h"
#include "vfmig/migrate.h"
#include "vfmig/error.h"
#include "vmm/machine.h"
#include "vmm/peers.h"

struct vfmig_vmm;

struct vfmig_vmm_device_config {
    const char *id;   /* NULL: "dev" and a number; both sides of a migration use the same */
    const char *path; /* of the vfio-user socket, or a kernel device's address (target/open.h) */
    enum vfmig_dialect dialect;
    bool late_load; /* struct vfmig_user_options */
    bool tagged; /* its DMA carries a PASID ... */
    uint32_t pasid; /* ... which is this one on this host; 0: none is left here */
    bool iommu; /* behind the vIOMMU: its DMA may wait for page requests; needs NDMA (C63) */
};

struct vfmig_vmm_config {
    const char *name;
    enum vfmig_accel accel;
    uint32_t vcpu_count;
    uint64_t memory_bytes;
    const struct vfmig_vmm_device_config *devices;
    uint32_t device_count;
    const char *qmp_path;    /* NULL: none */
    const char *incoming;    /* where a migration comes in, "tcp:HOST:PORT" or "unix:PATH"; a file to
                                restore, "file:PATH"; or "defer": QMP will say */
    bool clone;              /* of file:PATH: it is read and not claimed */
    const char *journal_dir; /* NULL: none, and then no migration */
    struct vfmig_security security; /* of both directions, when QMP does not say; copied */
    bool unconfined;         /* threads that receive keep all rights (docs/security.md) */
    const char *user;        /* who this process is from then on that it has KVM and its devices; NULL: as it is */
    const char *trace_path;  /* NULL: none. The trace of every migration */
    const char *metrics;     /* where they go: file:PATH, unix:PATH, tcp:HOST:PORT; NULL: nowhere */
    const char *flight_path; /* of the flight recorder; NULL: in the journal's directory, if there is one */
    uint64_t viommu_timeout_ns; /* for the guest's last responses to page requests; 0: 10 s */
    uint32_t channels;       /* of an outgoing migration, when `migrate` does not say */
    enum vmm_p2p p2p;        /* peer to peer DMA between devices */
    bool prefault;           /* all of the guest's memory is there from the start */
    enum vfmig_tracker_kind tracker; /* who follows the vCPUs' writes */
    bool paused;             /* wait for `cont` */
    bool discard_released; /* a fresh guest is wanted although the last one moved away */
    struct vfmig_guest_config guest; /* device windows are filled in by the VMM */
};

/* Connects everything; with incoming the guest stays empty and the socket listens, otherwise it is
 * loaded, and runs unless paused. */
int vfmig_vmm_create(const struct vfmig_vmm_config *config, struct vfmig_vmm **ret_vmm,
                     struct vfmig_error *reterr);
/* Stops everything and frees it. NULL is fine. */
void vfmig_vmm_free(struct vfmig_vmm *vmm);

/* Until `quit`, vfmig_vmm_quit() or a failure from which the VMM cannot go on (negative). */
int vfmig_vmm_run(struct vfmig_vmm *vmm, struct vfmig_error *reterr);
/* Async-signal-safe. */
void vfmig_vmm_quit(struct vfmig_vmm *vmm);

#endif
