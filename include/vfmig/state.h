/* SPDX-License-Identifier: BSD-3-Clause */
/* The eight device states, named as in the RFC and numbered as in the VFIO v2 uAPI. */
#ifndef VFMIG_STATE_H
#define VFMIG_STATE_H

#include <stdint.h>

/* Device states. The values are those of enum vfio_device_mig_state, so they go on the wire as
 * they are; the bits of the v1 device_state register stand beside each (R RUNNING, S SAVING,
 * Z RESUMING, N NDMA). */
enum vfmig_state {
    VFMIG_STATE_ERROR = 0,         /* S|Z = 6, never requested; left by reset only */
    VFMIG_STATE_STOP = 1,          /* {} */
    VFMIG_STATE_RUNNING = 2,       /* R, the default */
    VFMIG_STATE_STOP_COPY = 3,     /* S */
    VFMIG_STATE_RESUMING = 4,      /* Z */
    VFMIG_STATE_RUNNING_NDMA = 5,  /* N|R, v2 RUNNING_P2P */
    VFMIG_STATE_PRE_COPY = 6,      /* S|R */
    VFMIG_STATE_PRE_COPY_NDMA = 7, /* S|N|R, v2 PRE_COPY_P2P */
    VFMIG_STATE_COUNT = 8
};

/* Bits of the v1 device_state register (RFC; NDMA from its cover notes). */
#define VFMIG_V1_RUNNING  0x1u
#define VFMIG_V1_SAVING   0x2u
#define VFMIG_V1_RESUMING 0x4u
#define VFMIG_V1_NDMA     0x8u
#define VFMIG_V1_MASK     0xfu
#define VFMIG_V1_ERROR    (VFMIG_V1_SAVING | VFMIG_V1_RESUMING)

/* What a device can do; also the flags of DEVICE_FEATURE MIGRATION (v2). */
#define VFMIG_FEATURE_STOP_COPY 0x1u
#define VFMIG_FEATURE_NDMA      0x2u /* v2 P2P, v1 region capability 6 */
#define VFMIG_FEATURE_PRE_COPY  0x4u

/* A host resource that a guest uses by a number of its own: device state holds the number, and the VMM
 * says what it stands for on its host (C71). */
enum vfmig_handle_kind {
    VFMIG_HANDLE_IMS = 1,   /* an interrupt of the device's own store */
    VFMIG_HANDLE_PASID = 2, /* an address space, which tags DMA; number and value have 20 bits */
};

#define VFMIG_PASID_MAX       0xfffffu
#define VFMIG_HANDLE_UNMAPPED UINT64_MAX

struct vfmig_handle {
    uint32_t kind; /* enum vfmig_handle_kind */
    uint32_t number;
    uint64_t value; /* of this host, or VFMIG_HANDLE_UNMAPPED */
};

#endif
