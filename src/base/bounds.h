/* SPDX-License-Identifier: BSD-3-Clause */
/* Every limit on what a peer, a stream or a device can make grow, by name. */
#ifndef VFMIG_BASE_BOUNDS_H
#define VFMIG_BASE_BOUNDS_H

#define VFMIG_MAX_DEVICES        256u         /* devices in one migration */
#define VFMIG_MAX_RAM_BLOCKS     64u          /* blocks in one memory map */
#define VFMIG_MAX_CHANNELS       16u          /* connections of one migration */
#define VFMIG_MAX_VCPUS          64u          /* vCPUs of one guest */
#define VFMIG_MAX_MSG_FDS        16u          /* descriptors in one vfio-user message */
#define VFMIG_MAX_DATA_XFER      (1u << 20)   /* vfio-user data bytes offered by default */
#define VFMIG_MAX_DATA_XFER_CAP  (64u << 20)  /* most that is ever negotiated */
#define VFMIG_MAX_DMA_REGIONS    4096u        /* DMA_MAPs of one vfio-user client */
#define VFMIG_MAX_REGIONS        16u          /* regions of one device */
#define VFMIG_MAX_IRQS           2048u        /* vectors of one interrupt index */
#define VFMIG_MAX_JSON           4096u        /* bytes of a vfio-user VERSION text */

#endif
