/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/pack.h"

#include <errno.h>
#include <stdlib.h>

#ifdef VFMIG_HAVE_ZSTD
#include <zstd.h>

struct vfmig_pack {
    ZSTD_CCtx *context;
    int level;
    uint8_t *room, *frame;
    size_t room_bytes, frame_bytes;
};

bool vfmig_pack_supported(void)
{
    return true;
}

int vfmig_pack_new(unsigned level, size_t max_bytes, struct vfmig_pack **ret_pack,
                   struct vfmig_error *reterr)
{
    struct vfmig_pack *pack = calloc(1, sizeof(*pack));

    if (pack) {
        *pack = (struct vfmig_pack){
            .context = ZSTD_createCCtx(),
            .level = (int)level,
            .room = malloc(max_bytes),
            .frame = malloc(max_bytes),
            .room_bytes = max_bytes,
            .frame_bytes = max_bytes,
        };
    }
    if (!pack || !pack->context || !pack->room || !pack->frame) {
        vfmig_pack_free(pack);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory to compress");
    }
    *ret_pack = pack;
    return 0;
}

void vfmig_pack_free(struct vfmig_pack *pack)
{
    if (!pack)
        return;
    ZSTD_freeCCtx(pack->context);
    free(pack->room);
    free(pack->frame);
    free(pack);
}

uint8_t *vfmig_pack_room(struct vfmig_pack *pack)
{
    return pack->room;
}

bool vfmig_pack(struct vfmig_pack *pack, size_t size, const void **ret_frame, size_t *ret_size)
{
    /* No more room than what it must be shorter than: failing is cheap and means "not worth it". */
    size_t got = ZSTD_compressCCtx(pack->context, pack->frame, size - size / 16, pack->room, size,
                                   pack->level);

    if (ZSTD_isError(got))
        return false;
    *ret_frame = pack->frame;
    *ret_size = got;
    return true;
}

int vfmig_unpack(const void *frame, size_t size, void *out, size_t out_size,
                 struct vfmig_error *reterr)
{
    unsigned long long says = ZSTD_getFrameContentSize(frame, size);
    size_t length = ZSTD_findFrameCompressedSize(frame, size);

    if (ZSTD_isError(length) || length != size || says != out_size)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "compressed data is not one frame of %zu bytes", out_size);
    size_t got = ZSTD_decompress(out, out_size, frame, size);
    if (ZSTD_isError(got) || got != out_size)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "compressed data cannot be unpacked: %s",
                               ZSTD_isError(got) ? ZSTD_getErrorName(got) : "it is short");
    return 0;
}

#else

bool vfmig_pack_supported(void)
{
    return false;
}

int vfmig_pack_new(unsigned level, size_t max_bytes, struct vfmig_pack **ret_pack,
                   struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0, "this build has no zstd");
}

void vfmig_pack_free(struct vfmig_pack *pack)
{
}

uint8_t *vfmig_pack_room(struct vfmig_pack *pack)
{
    return NULL;
}

bool vfmig_pack(struct vfmig_pack *pack, size_t size, const void **ret_frame, size_t *ret_size)
{
    return false;
}

int vfmig_unpack(const void *frame, size_t size, void *out, size_t out_size,
                 struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                           "data is compressed by zstd, which this build does not have");
}
#endif
