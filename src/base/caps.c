/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/caps.h"

#include <string.h>

const void *vfmig_find_cap(const void *info, uint32_t size, uint32_t first, uint16_t id,
                           uint32_t *ret_size)
{
    const uint8_t *bytes = info;
    struct {
        uint16_t id, version;
        uint32_t next;
    } cap;
    uint64_t least = sizeof(cap);

    /* A chain only leads forward: one that does not might never end. */
    for (uint32_t at = first; at >= least && at % 4 == 0; at = cap.next) {
        if (at > size || size - at < sizeof(cap))
            return NULL;
        memcpy(&cap, bytes + at, sizeof(cap));
        if (cap.id == id) {
            *ret_size = size - at;
            return bytes + at;
        }
        least = (uint64_t)at + sizeof(cap);
    }
    return NULL;
}
