/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits that the author of a device meets. What only bounds a peer is the library's own. */
#ifndef VFMIG_LIMITS_H
#define VFMIG_LIMITS_H

#define VFMIG_DEVICE_BARS           6u
#define VFMIG_DEVICE_TIMERS         16u
#define VFMIG_DEVICE_VECTORS        256u         /* most MSI-X vectors of one device */
#define VFMIG_DEVICE_NAME           63u          /* characters of its name that are kept */
#define VFMIG_DEVICE_WINDOW_MIN     (1u << 20)   /* bytes of the data window of the v1 region */
#define VFMIG_DEVICE_WINDOW_MAX     (64u << 20)
#define VFMIG_DEVICE_WINDOWS        2u           /* of them, used in turn; by default */
#define VFMIG_DEVICE_WINDOWS_MAX    8u
#define VFMIG_DEVICE_DATA_XFER      (1u << 20)   /* data bytes in one message, by default */
#define VFMIG_DEVICE_DATA_XFER_MAX  (64u << 20)
#define VFMIG_DEVICE_SAVE_MIN       4096u        /* least size of a buffer that save is given */
#define VFMIG_DEVICE_SAVE_MAX       (256u << 10) /* most bytes of one save or load call */
#define VFMIG_DEVICE_OPEN_DMA       256u         /* DMAs by message open at once, then -EAGAIN */
#define VFMIG_DEVICE_LATER_ACCESSES 64u          /* region accesses to be answered later */
#define VFMIG_DEVICE_DOORBELLS      16u          /* of one BAR: what one message can hand over */
#define VFMIG_DEVICE_HANDLES        64u          /* that a device uses at once */

#endif
