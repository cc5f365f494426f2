/* SPDX-License-Identifier: BSD-3-Clause */
/* The bulk device's state in a migration: records {kind, length, offset} and data. The size comes
 * first, then blocks, whole runs of them at a time and again when they change, registers last. Data
 * goes from the state into the library's buffer and from there into the state, nowhere between. */
#include <errno.h>
#include <string.h>

#include "devices/bulk_priv.h"

enum record_kind { RECORD_SIZE = 1, RECORD_DATA = 2, RECORD_REGS = 3 };

struct record {
    uint32_t kind;
    uint32_t length;
    uint64_t offset; /* of data: in the state; of a size: the size */
};

#define HEAD sizeof(struct record)

static int stop(void *user)
{
    return 0; /* timers wait while it is stopped, and nothing else changes the state */
}

static int start(void *user)
{
    bulk_arm(user);
    return 0;
}

/* ---- saving ---------------------------------------------------------------------------------- */

static int save_begin(void *user, bool running)
{
    struct bulk_device *b = user;

    if (!b->logging) {
        vfmig_bitmap_set_range(b->dirty, 0, b->blocks);
        b->dirty_count = b->blocks;
        b->cursor = 0;
        b->save_next = BULK_NOWHERE;
        b->size_saved = false;
    }
    b->regs_saved = false;
    b->logging = running;
    b->saving = true;
    return 0;
}

static void save_end(void *user)
{
    struct bulk_device *b = user;
    b->logging = b->saving = false;
}

static size_t put_head(uint8_t *to, uint32_t kind, uint64_t offset, uint32_t length)
{
    struct record record = {kind, length, offset};

    memcpy(to, &record, HEAD);
    return HEAD;
}

/* The rest of a block that did not fit, or the next dirty one; BULK_NOWHERE when all is sent. */
static uint64_t next_offset(struct bulk_device *b)
{
    if (b->save_next != BULK_NOWHERE)
        return b->save_next;
    if (!b->dirty_count)
        return BULK_NOWHERE;
    b->cursor = vfmig_bitmap_next(b->dirty, b->blocks, b->cursor);
    if (b->cursor == b->blocks)
        b->cursor = vfmig_bitmap_next(b->dirty, b->blocks, 0);
    return b->cursor * BULK_BLOCK;
}

/* One run of dirty blocks from offset, as much as fits: a block that is cut goes on in the next
 * record, whatever it holds then; if it was written meanwhile it is dirty and comes once more. */
static size_t put_run(struct bulk_device *b, uint8_t *buf, size_t room, uint64_t offset)
{
    uint64_t at = offset, end = offset + ((room - HEAD) & ~(size_t)7);

    while (at < end) {
        uint64_t block = at / BULK_BLOCK;
        uint32_t in_block = (uint32_t)(at % BULK_BLOCK);
        if (in_block == 0) {
            if (block == b->blocks || !vfmig_bitmap_test(b->dirty, block))
                break;
            vfmig_bitmap_clear(b->dirty, block);
            b->dirty_count--;
        }
        uint32_t size =
            end - at < BULK_BLOCK - in_block ? (uint32_t)(end - at) : BULK_BLOCK - in_block;
        bulk_block_copy(b, block, in_block, buf + HEAD + (at - offset), size);
        at += size;
    }
    b->save_next = at % BULK_BLOCK ? at : BULK_NOWHERE;
    b->cursor = at / BULK_BLOCK;
    put_head(buf, RECORD_DATA, offset, (uint32_t)(at - offset));
    return HEAD + (at - offset);
}

static size_t save_blocks(struct bulk_device *b, uint8_t *buf, size_t size)
{
    size_t at = 0;

    if (!b->size_saved)
        at = put_head(buf, RECORD_SIZE, b->blocks * BULK_BLOCK, 0);
    b->size_saved = true;
    while (size - at >= HEAD + 8) {
        uint64_t offset = next_offset(b);
        if (offset == BULK_NOWHERE)
            break;
        at += put_run(b, buf + at, size - at, offset);
    }
    return at;
}

static ssize_t save_precopy(void *user, void *buf, size_t size)
{
    return (ssize_t)save_blocks(user, buf, size);
}

static ssize_t save(void *user, void *buf, size_t size)
{
    struct bulk_device *b = user;

    if (b->regs_saved) /* what a frozen device changes after them is not of this save */
        return 0;
    size_t at = save_blocks(b, buf, size);
    if (at == 0) {
        at = put_head(buf, RECORD_REGS, 0, sizeof(b->regs));
        memcpy((uint8_t *)buf + at, &b->regs, sizeof(b->regs));
        at += sizeof(b->regs);
        b->regs_saved = true;
    }
    return (ssize_t)at;
}

static void left(void *user, uint64_t *ret_precopy, uint64_t *ret_final)
{
    const struct bulk_device *b = user;
    uint64_t blocks = b->saving ? b->dirty_count : b->blocks;
    uint64_t data = blocks * (BULK_BLOCK + HEAD);

    if (b->saving && b->save_next != BULK_NOWHERE)
        data += HEAD + BULK_BLOCK - b->save_next % BULK_BLOCK;
    *ret_precopy = b->logging ? data : 0;
    *ret_final = data + (b->saving && b->regs_saved ? 0 : HEAD + sizeof(b->regs));
}

/* ---- loading --------------------------------------------------------------------------------- */

void bulk_state_reset(struct bulk_device *b)
{
    memset(b->loaded, 0, vfmig_bitmap_words(b->blocks) * 8);
    b->load_next = BULK_NOWHERE;
    b->size_loaded = b->regs_loaded = false;
    b->logging = b->saving = false;
    b->save_next = BULK_NOWHERE;
}

static int load_data(struct bulk_device *b, const struct record *record, const uint8_t *data)
{
    uint64_t size = b->blocks * BULK_BLOCK, end = record->offset + record->length;

    if (record->offset % 8 || record->length % 8 || !record->length || record->offset >= size ||
        record->length > size - record->offset)
        return -EBADMSG;
    if (b->load_next == BULK_NOWHERE ? record->offset % BULK_BLOCK != 0
                                     : record->offset != b->load_next)
        return -EBADMSG; /* a block comes whole, in order */
    memcpy(b->memory + record->offset, data, record->length);
    b->load_next = end % BULK_BLOCK ? end : BULK_NOWHERE;
    uint64_t first = record->offset / BULK_BLOCK, count = end / BULK_BLOCK - first;
    vfmig_bitmap_set_range(b->loaded, first, count);
    vfmig_bitmap_set_range(b->present, first, count);
    return 0;
}

static int load_record(struct bulk_device *b, const struct record *record, const uint8_t *data)
{
    if (record->kind == RECORD_SIZE && !b->size_loaded) {
        b->size_loaded = true;
        return record->length == 0 && record->offset == b->blocks * BULK_BLOCK ? 0 : -EINVAL;
    }
    if (!b->size_loaded || b->regs_loaded)
        return -EBADMSG;
    if (record->kind == RECORD_DATA)
        return load_data(b, record, data);
    if (record->kind != RECORD_REGS || record->length != sizeof(b->regs) || record->offset)
        return -EBADMSG;
    memcpy(&b->regs, data, sizeof(b->regs));
    b->regs_loaded = true;
    return bulk_regs_valid(b, &b->regs) ? 0 : -EBADMSG;
}

static int load(void *user, const void *data, size_t size)
{
    const uint8_t *at = data, *end = at + size;
    int r = 0;

    while (r == 0 && at < end) {
        struct record record;
        if ((size_t)(end - at) < HEAD)
            return -EBADMSG;
        memcpy(&record, at, HEAD);
        at += HEAD;
        if (record.length > (size_t)(end - at))
            return -EBADMSG;
        r = load_record(user, &record, at);
        at += record.length;
    }
    return r;
}

static int load_end(void *user)
{
    const struct bulk_device *b = user;

    if (!b->regs_loaded || b->load_next != BULK_NOWHERE)
        return -ENODATA;
    return vfmig_bitmap_next_zero(b->loaded, b->blocks, 0) == b->blocks ? 0 : -ENODATA;
}

void bulk_state_ops(struct vfmig_device_ops *ops)
{
    ops->stop = stop;
    ops->start = start;
    ops->save_begin = save_begin;
    ops->save_precopy = save_precopy;
    ops->save = save;
    ops->save_end = save_end;
    ops->load = load;
    ops->load_end = load_end;
    ops->left = left;
}
