/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/devstream.h"

#include <errno.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/sabotage.h"

#define MAGIC   UINT32_C(0x31534456) /* "VDS1" */
#define CRC_AT  32u
#define HEADER  VFMIG_DEVSTREAM_HEADER
#define MAX_SEQ (UINT32_MAX - 1)

_Static_assert(sizeof(struct vfmig_devstream_enc) == 32, "no padding");
_Static_assert(sizeof(struct vfmig_devstream_dec) == 48, "no padding");

static void put32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void put64(uint8_t *at, uint64_t value)
{
    put32(at, (uint32_t)value);
    put32(at + 4, (uint32_t)(value >> 32));
}

static uint32_t get32(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t get64(const uint8_t *at)
{
    return get32(at) | (uint64_t)get32(at + 4) << 32;
}

static uint32_t frame_crc(uint32_t before, const uint8_t *frame, uint32_t length)
{
    uint32_t crc = vfmig_crc32c(before, frame, CRC_AT);

    return vfmig_crc32c(crc, frame + CRC_AT + 4, HEADER - CRC_AT - 4 + length);
}

/* PRECOPY frames, then FINAL frames, then END: never back (C16). */
static bool kind_may_follow(uint32_t last, uint32_t kind)
{
    return kind >= VFMIG_DEVSTREAM_PRECOPY && kind <= VFMIG_DEVSTREAM_END && kind >= last &&
           last != VFMIG_DEVSTREAM_END;
}

void vfmig_devstream_begin(struct vfmig_devstream_enc *enc, uint64_t id, uint32_t format,
                           uint32_t version)
{
    memset(enc, 0, sizeof(*enc));
    enc->id = id;
    enc->format = format;
    enc->version = version;
}

int64_t vfmig_devstream_seal(struct vfmig_devstream_enc *enc, enum vfmig_devstream_kind kind,
                             uint8_t *frame, uint32_t length)
{
    if (!kind_may_follow(enc->last_kind, kind) || (kind == VFMIG_DEVSTREAM_END && length))
        return -EINVAL;
    if (enc->sequence == MAX_SEQ)
        return -EOVERFLOW;
    put32(frame, MAGIC);
    put32(frame + 4, kind);
    put64(frame + 8, enc->id);
    put32(frame + 16, enc->format);
    put32(frame + 20, enc->version);
    put32(frame + 24, enc->sequence);
    put32(frame + 28, length);
    put32(frame + 36, 0);
    enc->crc = frame_crc(enc->crc, frame, length);
    put32(frame + CRC_AT, enc->crc);
    enc->sequence++;
    enc->last_kind = kind;
    return (int64_t)HEADER + length;
}

bool vfmig_devstream_sealed_end(const struct vfmig_devstream_enc *enc)
{
    return enc->last_kind == VFMIG_DEVSTREAM_END;
}

void vfmig_devstream_accept(struct vfmig_devstream_dec *dec, uint32_t format, uint32_t version_min,
                            uint32_t version_max)
{
    memset(dec, 0, sizeof(*dec));
    dec->format = format;
    dec->version_min = version_min;
    dec->version_max = version_max;
}

static int refuse(struct vfmig_devstream_dec *dec, int code, struct vfmig_error *reterr,
                  const char *why)
{
    dec->failed = code;
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_STREAM, dec->sequence,
                           "device data frame %u: %s", dec->sequence, why);
}

/* A deliberate fault: the beginning may be missing. */
static bool joins_late(const struct vfmig_devstream_dec *dec, const uint8_t *frame)
{
    return dec->sequence == 0 && get32(frame + 24) && vfmig_sabotage("load-without-precopy");
}

/* Is this the header that must come next? */
static int check_header(struct vfmig_devstream_dec *dec, const uint8_t *frame, uint32_t capacity,
                        struct vfmig_error *reterr)
{
    uint32_t kind = get32(frame + 4), version = get32(frame + 20);

    if (get32(frame) != MAGIC || get32(frame + 36) != 0)
        return refuse(dec, -EPROTO, reterr, "not a device stream of this library");
    if (get32(frame + 16) != dec->format)
        return refuse(dec, -EPROTO, reterr, "state of another kind of device");
    if (version < dec->version_min || version > dec->version_max ||
        (dec->sequence && version != dec->version))
        return refuse(dec, -EPROTO, reterr, "a state version that this device does not load");
    if (dec->sequence && get64(frame + 8) != dec->id)
        return refuse(dec, -EPROTO, reterr, "it belongs to another save");
    if (joins_late(dec, frame))
        return get32(frame + 28) > capacity - HEADER ? -EMSGSIZE : 0;
    if (get32(frame + 24) != dec->sequence && !vfmig_sabotage("devstream-no-order"))
        return refuse(dec, -EILSEQ, reterr, "out of order, or one before it is missing");
    if (!kind_may_follow(dec->last_kind, kind))
        return refuse(dec, -EILSEQ, reterr, "its kind may not follow here");
    if (get32(frame + 28) > capacity - HEADER || (kind == VFMIG_DEVSTREAM_END && get32(frame + 28)))
        return refuse(dec, -EMSGSIZE, reterr, "larger than a frame may be");
    return 0;
}

static int take_frame(struct vfmig_devstream_dec *dec, const uint8_t *frame,
                      struct vfmig_devstream_frame *ret_frame, struct vfmig_error *reterr)
{
    uint32_t length = get32(frame + 28);
    uint32_t crc = frame_crc(dec->crc, frame, length);

    if (joins_late(dec, frame)) {
        crc = get32(frame + CRC_AT);
        dec->sequence = get32(frame + 24);
    }

    if (crc != get32(frame + CRC_AT) && !vfmig_sabotage("devstream-no-crc"))
        return refuse(dec, -EBADMSG, reterr, "its checksum is wrong");
    dec->crc = crc;
    dec->id = get64(frame + 8);
    dec->version = get32(frame + 20);
    dec->last_kind = get32(frame + 4);
    dec->sequence++;
    dec->have = 0;
    *ret_frame = (struct vfmig_devstream_frame){
        .kind = (enum vfmig_devstream_kind)dec->last_kind,
        .version = dec->version,
        .payload = frame + HEADER,
        .length = length,
    };
    return 1;
}

/* Moves input until the frame has `want` bytes. */
static void fill(struct vfmig_devstream_dec *dec, uint8_t *buf, uint32_t want, const uint8_t **data,
                 size_t *size)
{
    size_t part = want - dec->have;

    if (part > *size)
        part = *size;
    if (part)
        memcpy(buf + dec->have, *data, part);
    dec->have += (uint32_t)part;
    *data += part;
    *size -= part;
}

int vfmig_devstream_feed(struct vfmig_devstream_dec *dec, uint8_t *buf, uint32_t capacity,
                         const uint8_t **data, size_t *size,
                         struct vfmig_devstream_frame *ret_frame, struct vfmig_error *reterr)
{
    if (dec->failed)
        return refuse(dec, dec->failed, reterr, "refused before");
    if (capacity < HEADER)
        return refuse(dec, -EMSGSIZE, reterr, "no room for a frame");
    if (dec->have < HEADER) {
        fill(dec, buf, HEADER, data, size);
        if (dec->have < HEADER)
            return 0;
        int err = check_header(dec, buf, capacity, reterr);
        if (err)
            return err;
    }
    uint32_t whole = HEADER + get32(buf + 28);
    fill(dec, buf, whole, data, size);
    return dec->have < whole ? 0 : take_frame(dec, buf, ret_frame, reterr);
}

int vfmig_devstream_take(struct vfmig_devstream_dec *dec, uint32_t capacity, const uint8_t **data,
                         size_t *size, struct vfmig_devstream_frame *ret_frame,
                         struct vfmig_error *reterr)
{
    const uint8_t *frame = *data;

    if (dec->failed || dec->have || capacity < HEADER || *size < HEADER)
        return 0;
    int err = check_header(dec, frame, capacity, reterr);
    if (err)
        return err;
    uint32_t whole = HEADER + get32(frame + 28);
    if (*size < whole)
        return 0;
    *data += whole;
    *size -= whole;
    return take_frame(dec, frame, ret_frame, reterr);
}

int vfmig_devstream_finish(const struct vfmig_devstream_dec *dec, struct vfmig_error *reterr)
{
    if (dec->failed)
        return vfmig_error_set(reterr, dec->failed, VFMIG_ORIGIN_STREAM, dec->sequence,
                               "the device data was refused at frame %u", dec->sequence);
    if (vfmig_sabotage("devstream-no-end"))
        return 0;
    if (dec->last_kind != VFMIG_DEVSTREAM_END || dec->have)
        return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, dec->sequence,
                               "the device data ends after %u whole frames, without its end mark",
                               dec->sequence);
    return 0;
}
