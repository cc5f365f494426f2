/* SPDX-License-Identifier: BSD-3-Clause */
/* The library's device stream: what one save of one device produces, in frames that prove their
 * order, their wholeness and their origin, so that a v1 window and v2 reads carry the same bytes
 * and a short, reordered, mixed or foreign stream is refused before the device sees it (C16, C66,
 * A11). Pure, without allocation; a frame is built and checked in a buffer of the caller's.
 *
 * Frame, little-endian: magic 0:4, kind 4:4, stream id 8:8, format 16:4, format version 20:4,
 * sequence 24:4, payload length 28:4, CRC-32C 32:4, reserved 36:4 (0), payload. The CRC covers the
 * header without the CRC, then the payload, and continues the CRC of the frame before. */
#ifndef VFMIG_CORE_DEVSTREAM_H
#define VFMIG_CORE_DEVSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfmig/error.h"

#define VFMIG_DEVSTREAM_HEADER 40u

enum vfmig_devstream_kind {
    VFMIG_DEVSTREAM_PRECOPY = 1, /* saved with R */
    VFMIG_DEVSTREAM_FINAL,       /* saved without R; no PRECOPY after it */
    VFMIG_DEVSTREAM_END,         /* no payload, nothing after it */
};

struct vfmig_devstream_enc {
    uint64_t id;
    uint32_t format;
    uint32_t version;
    uint32_t sequence;
    uint32_t crc;
    uint32_t last_kind;
    uint32_t zero;
};

/* id tells saves apart (random), format the kind of device state, version its version. */
void vfmig_devstream_begin(struct vfmig_devstream_enc *enc, uint64_t id, uint32_t format,
                           uint32_t version);

/* The payload is at frame + VFMIG_DEVSTREAM_HEADER; puts the header in front. Returns the size of
 * the frame. -EINVAL: kind out of order, payload with END, or after END. -EOVERFLOW: too many. */
int64_t vfmig_devstream_seal(struct vfmig_devstream_enc *enc, enum vfmig_devstream_kind kind,
                             uint8_t *frame, uint32_t length);

/* True once the END frame was sealed. */
bool vfmig_devstream_sealed_end(const struct vfmig_devstream_enc *enc);

struct vfmig_devstream_dec {
    uint64_t id;
    uint32_t format;
    uint32_t version_min;
    uint32_t version_max;
    uint32_t sequence;
    uint32_t crc;
    uint32_t last_kind;
    uint32_t version; /* of this stream, once the first frame is there */
    uint32_t have;    /* bytes of the current frame in the caller's buffer */
    int32_t failed;   /* first failure; stays */
    uint32_t zero;
};

struct vfmig_devstream_frame {
    enum vfmig_devstream_kind kind;
    uint32_t version;
    const uint8_t *payload;
    uint32_t length;
};

void vfmig_devstream_accept(struct vfmig_devstream_dec *dec, uint32_t format, uint32_t version_min,
                            uint32_t version_max);

/* Takes bytes from *data, *size on (both advance) into buf, which keeps the current frame between
 * calls and is capacity bytes large. Returns 1 with a whole, checked frame (its payload is in buf
 * until the next call), 0 when all input is taken and the frame is not whole yet.
 * -EPROTO: not such a stream, foreign format, version or another save. -EILSEQ: order.
 * -EBADMSG: CRC. -EMSGSIZE: larger than the buffer. Once failed, it fails the same way again. */
int vfmig_devstream_feed(struct vfmig_devstream_dec *dec, uint8_t *buf, uint32_t capacity,
                         const uint8_t **data, size_t *size,
                         struct vfmig_devstream_frame *ret_frame, struct vfmig_error *reterr);

/* The same for a frame that lies whole at *data, in memory that nobody else changes: 1 with its
 * payload where it is. 0: it is not whole there, or part of it was fed before; nothing was taken,
 * feed it. */
int vfmig_devstream_take(struct vfmig_devstream_dec *dec, uint32_t capacity, const uint8_t **data,
                         size_t *size, struct vfmig_devstream_frame *ret_frame,
                         struct vfmig_error *reterr);

/* Z is being cleared: 0 when the whole stream was there, -ENODATA when it is short (an empty one
 * is short), or the failure from before. */
int vfmig_devstream_finish(const struct vfmig_devstream_dec *dec, struct vfmig_error *reterr);

#endif
