/* SPDX-License-Identifier: BSD-3-Clause */
/* The dma device's state in a migration: records {kind, length, offset} and data. SRAM pages go
 * out in pre-copy and again when they change; registers and padding only when it is stopped. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "devices/dma_priv.h"

enum record_kind { RECORD_SRAM = 1, RECORD_REGS = 2, RECORD_PAD = 3, RECORD_IMS = 4 };

struct record {
    uint32_t kind;
    uint32_t length;
    uint64_t offset;
};

#define PAD_PIECE 65536u

static int start(void *user)
{
    dma_device_kick(user);
    return 0;
}

static int save_begin(void *user, bool running)
{
    struct dma_device *d = user;

    if (d->logging && !running && d->dirty == UINT64_MAX && vfmig_sabotage("dma-precopy-forgets"))
        d->dirty = 0;
    if (!running && vfmig_sabotage("dma-save-changes-state"))
        for (uint32_t i = 0; i < DMA_SRAM_SIZE; i++)
            d->sram[i]++;
    if (!d->logging)
        d->dirty = UINT64_MAX;
    d->logging = running;
    d->regs_saved = false;
    d->pad_saved = 0;
    return 0;
}

static void save_end(void *user)
{
    struct dma_device *d = user;
    d->logging = false;
}

static size_t put_record(uint8_t *to, uint32_t kind, uint64_t offset, const void *data,
                         uint32_t length)
{
    struct record record = {kind, length, offset};

    memcpy(to, &record, sizeof(record));
    memcpy(to + sizeof(record), data, length);
    return sizeof(record) + length;
}

/* As many changed SRAM pages as fit. */
static size_t save_sram(struct dma_device *d, uint8_t *buf, size_t size)
{
    size_t at = 0;

    while (d->dirty && size - at >= sizeof(struct record) + SRAM_PAGE) {
        uint64_t offset = (uint64_t)__builtin_ctzll(d->dirty) * SRAM_PAGE;
        at += put_record(buf + at, RECORD_SRAM, offset, d->sram + offset, SRAM_PAGE);
        d->dirty &= d->dirty - 1;
    }
    return at;
}

/* What padding contains: a function of its place, so that the other side can check it. */
static uint64_t pad_word(uint64_t offset)
{
    uint64_t x = (offset + 1) * UINT64_C(0xbf58476d1ce4e5b9);
    return (x ^ x >> 31) * UINT64_C(0x94d049bb133111eb);
}

static size_t save_pad(struct dma_device *d, uint8_t *buf, size_t size)
{
    size_t at = 0;

    while (d->pad_saved < d->pad_bytes && size - at > sizeof(struct record) + 8) {
        uint64_t left = d->pad_bytes - d->pad_saved;
        uint64_t room = (size - at - sizeof(struct record)) & ~7ull;
        uint32_t length = (uint32_t)(room < PAD_PIECE ? room : PAD_PIECE);
        length = left < length ? (uint32_t)left : length;
        struct record record = {RECORD_PAD, length, d->pad_saved};
        memcpy(buf + at, &record, sizeof(record));
        at += sizeof(record);
        for (uint32_t i = 0; i < length; i += 8) {
            uint64_t word = pad_word(d->pad_saved + i);
            memcpy(buf + at + i, &word, length - i < 8 ? length - i : 8);
        }
        at += length;
        d->pad_saved += length;
    }
    return at;
}

static ssize_t save_precopy(void *user, void *buf, size_t size)
{
    return (ssize_t)save_sram(user, buf, size);
}

static ssize_t save(void *user, void *buf, size_t size)
{
    struct dma_device *d = user;
    size_t at = save_sram(d, buf, size);

    if (d->regs_loaded && vfmig_sabotage("dma-no-save-after-load"))
        return -EIO;
    if (at == 0)
        at = save_pad(d, buf, size);
    if (at == 0 && !d->regs_saved) {
        bool old = d->saved_once && vfmig_sabotage("dma-second-save-old");
        at = put_record(buf, RECORD_REGS, 0, old ? &d->saved : &d->regs, sizeof(d->regs));
        d->saved = old ? d->saved : d->regs;
        d->saved_once = true;
        /* Only of those who have one: streams without it are as they were before there was any. */
        if (d->ims)
            at += put_record((uint8_t *)buf + at, RECORD_IMS, 0, &d->ims, sizeof(d->ims));
        d->regs_saved = true;
    }
    return (ssize_t)at;
}

static void left(void *user, uint64_t *ret_precopy, uint64_t *ret_final)
{
    const struct dma_device *d = user;
    uint64_t pages = (uint64_t)__builtin_popcountll(d->dirty);
    uint64_t sram = pages * (sizeof(struct record) + SRAM_PAGE);
    uint64_t whole = SRAM_PAGES * (sizeof(struct record) + SRAM_PAGE);
    uint64_t regs = sizeof(struct record) + sizeof(d->regs) +
                    (d->ims ? sizeof(struct record) + sizeof(d->ims) : 0);
    bool saving = d->logging || d->pad_saved || d->regs_saved;

    *ret_precopy = d->logging ? sram : 0;
    *ret_final = (saving ? sram : whole) + (d->pad_bytes - d->pad_saved) +
                 (d->regs_saved ? 0 : regs);
}

/* ---- loading --------------------------------------------------------------------------------- */

static int load_pad(struct dma_device *d, const struct record *record, const uint8_t *data)
{
    if (record->offset != d->pad_loaded)
        return -EBADMSG;
    for (uint32_t i = 0; i < record->length; i += 8) {
        uint64_t word = pad_word(record->offset + i);
        if (memcmp(data + i, &word, record->length - i < 8 ? record->length - i : 8))
            return -EBADMSG;
    }
    d->pad_loaded += record->length;
    return 0;
}

static int load_record(struct dma_device *d, const struct record *record, const uint8_t *data)
{
    switch (record->kind) {
    case RECORD_SRAM:
        if (record->length != SRAM_PAGE || record->offset % SRAM_PAGE ||
            record->offset >= DMA_SRAM_SIZE)
            return -EBADMSG;
        if (record->offset != 0 || !vfmig_sabotage("dma-load-drops-page"))
            memcpy(d->sram + record->offset, data, SRAM_PAGE);
        d->pages_loaded |= UINT64_C(1) << (record->offset / SRAM_PAGE);
        return 0;
    case RECORD_REGS:
        if (record->length != sizeof(d->regs) || record->offset || d->regs_loaded)
            return -EBADMSG;
        uint64_t scratch = vfmig_sabotage("dma-state-merges") ? d->regs.scratch : 0;
        memcpy(&d->regs, data, sizeof(d->regs));
        d->regs.scratch |= scratch;
        d->regs_loaded = true;
        return dma_regs_valid(&d->regs) ? 0 : -EBADMSG;
    case RECORD_PAD:
        return load_pad(d, record, data);
    case RECORD_IMS:
        if (record->length != sizeof(d->ims) || record->offset || d->ims)
            return -EBADMSG;
        memcpy(&d->ims, data, sizeof(d->ims));
        return d->ims ? 0 : -EBADMSG;
    default:
        return -EBADMSG;
    }
}

static int load(void *user, const void *data, size_t size)
{
    struct dma_device *d = user;
    const uint8_t *at = data, *end = at + size;
    int r = 0;

    while (r == 0 && at < end) {
        struct record record;
        if ((size_t)(end - at) < sizeof(record))
            return -EBADMSG;
        memcpy(&record, at, sizeof(record));
        at += sizeof(record);
        if (record.length > (size_t)(end - at))
            return -EBADMSG;
        r = load_record(d, &record, at);
        at += record.length;
    }
    return r;
}

static int load_end(void *user)
{
    const struct dma_device *d = user;
    uint64_t value;
    int r = 0;

    if (!d->regs_loaded || 
        (d->pages_loaded != UINT64_MAX && !vfmig_sabotage("load-without-precopy")))
        return -ENODATA;
    /* In use without having been declared: nobody was asked for it (C71). */
    if (d->regs.pasid)
        r = vfmig_device_handle_value(d->dev, VFMIG_HANDLE_PASID, d->regs.pasid, &value);
    if (r == 0 && d->ims)
        r = vfmig_device_handle_value(d->dev, VFMIG_HANDLE_IMS, d->ims, &value);
    return r;
}

void dma_state_ops(struct vfmig_device_ops *ops)
{
    ops->start = start;
    ops->save_begin = save_begin;
    ops->save_precopy = save_precopy;
    ops->save = save;
    ops->save_end = save_end;
    ops->load = load;
    ops->load_end = load_end;
    ops->left = left;
}
