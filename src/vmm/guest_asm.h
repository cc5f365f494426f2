/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's numbers as its assembly needs them, and the header of its image. */
#ifndef VFMIG_VMM_GUEST_ASM_H
#define VFMIG_VMM_GUEST_ASM_H

#define GUEST_IMAGE_MAGIC 0x4547414d4947564d
#define GUEST_STUB_SIZE   16
#define GUEST_HALT_NUMBER 0x68616c74 /* in eax at a ud2: sleep until the next interrupt */

#ifdef __ASSEMBLER__
#define GUEST_IRQ_COUNTS    0x4000
#define GUEST_CONTROL_DEAD  0xfe000008
#define GUEST_VECTOR_TIMER  0x20
#else
#include <stdint.h>

/* First bytes of the image, at GUEST_IMAGE. */
struct guest_image_header {
    uint64_t magic;
    uint64_t entry;     /* of every vCPU */
    uint64_t stubs;     /* interrupt stub of vector 0; the others follow */
    uint64_t stub_size; /* bytes from one stub to the next */
};

extern const unsigned char vfmig_guest_image[];
extern const unsigned int vfmig_guest_image_size;
#endif

#endif
