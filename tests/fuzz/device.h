/* SPDX-License-Identifier: BSD-3-Clause */
/* A device for the fuzzers on the public interface: many accesses to guest memory at once, of
 * every form, answered in any order; state with a log of its changes; timers; interrupts. */
#ifndef VFMIG_TESTS_FUZZ_DEVICE_H
#define VFMIG_TESTS_FUZZ_DEVICE_H

#include "vfmig/device.h"

#define POOL_VENDOR   0x1b36u
#define POOL_DEVICE   0x7fd2u
#define POOL_BAR_SIZE 0x10000u
#define POOL_TABLE    0x8000u
#define POOL_PBA      0x9000u
#define POOL_VECTORS  70u /* more than one word of pending bits */

/* Registers of BAR 0. */
#define POOL_IOVA       0x00u /* rw u64 */
#define POOL_SIZE       0x08u /* rw u32, cut at POOL_SIZE_MAX */
#define POOL_GO         0x0cu /* w u32: POOL_GO_*; starts an access */
#define POOL_IRQ        0x10u /* w u32: raises this vector */
#define POOL_END        0x14u /* w u32: ends the operation held in this slot */
#define POOL_TIMER      0x18u /* w u32: timer (low 8 bits) after that many microseconds (the rest) */
#define POOL_STATE      0x1000u /* rw: state, logged by pages while it is saved */
#define POOL_STATE_SIZE 0x1000u
#define POOL_PAGE       256u
#define POOL_SIZE_MAX   0x10000u
#define POOL_SLOTS      80u /* more than the server takes at once */

#define POOL_GO_WRITE 1u
#define POOL_GO_SYNC  2u /* at once; refused where a message is needed */
#define POOL_GO_HOLD  4u /* begun only, ended by POOL_END or a timer after the gate is shut */

struct vfmig_device *pool_device_new(bool no_ndma, bool no_precopy, uint32_t max_data);

#endif
