/* SPDX-License-Identifier: BSD-3-Clause */
/* Compression of one record's payload by zstd, where the build has it. */
#ifndef VFMIG_ENGINE_PACK_H
#define VFMIG_ENGINE_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfmig/error.h"

#define VFMIG_PACK_LEVEL_MAX     19u
#define VFMIG_PACK_LEVEL_DEFAULT 3u

bool vfmig_pack_supported(void);

/* What one sender needs: a context, room for a payload before and after. */
struct vfmig_pack;
int vfmig_pack_new(unsigned level, size_t max_bytes, struct vfmig_pack **ret_pack,
                   struct vfmig_error *reterr);
void vfmig_pack_free(struct vfmig_pack *pack); /* NULL is fine */
/* The payload is put together here: memory that somebody writes meanwhile is copied, never given to
 * the compressor. Room for max_bytes. */
uint8_t *vfmig_pack_room(struct vfmig_pack *pack);
/* Compresses the first size bytes of the room: true with a frame that is shorter, valid until the next
 * call. */
bool vfmig_pack(struct vfmig_pack *pack, size_t size, const void **ret_frame, size_t *ret_size);

/* One frame that gives exactly out_size bytes, nothing behind it; else -EBADMSG, origin STREAM. Memory
 * is bounded by out_size. -ENOTSUP without zstd. */
int vfmig_unpack(const void *frame, size_t size, void *out, size_t out_size,
                 struct vfmig_error *reterr);

#endif
