/* SPDX-License-Identifier: BSD-3-Clause */
/* Device data in both dialects: portions, streams, images. */
#include "check/rule.h"

#define REG_PENDING 8u
#define REG_OFFSET  16u
#define REG_SIZE    24u
#define MAX_BLOB    (UINT32_MAX / 2) /* so that the ends of portions fit, and twice the size */

void check_blob_free(struct check_blob *blob)
{
    free(blob->bytes);
    free(blob->ends);
    memset(blob, 0, sizeof(*blob));
}

static int make_room(struct check_blob *blob, size_t size)
{
    if (size > MAX_BLOB - blob->size)
        return -EFBIG;
    if (size > blob->room - blob->size) {
        size_t room = (blob->size + size) * 2;
        uint8_t *bytes = realloc(blob->bytes, room);
        if (!bytes)
            return -ENOMEM;
        blob->bytes = bytes;
        blob->room = room;
    }
    if (blob->count == blob->ends_room) {
        uint32_t room = blob->ends_room ? blob->ends_room * 2 : 64;
        uint32_t *ends = realloc(blob->ends, room * sizeof(*ends));
        if (!ends)
            return -ENOMEM;
        blob->ends = ends;
        blob->ends_room = room;
    }
    return 0;
}

static void end_portion(struct check_blob *blob, size_t size)
{
    blob->size += size;
    blob->ends[blob->count++] = (uint32_t)blob->size;
}

int check_blob_add(struct check_blob *blob, const void *data, size_t size)
{
    int r = make_room(blob, size);

    if (r < 0)
        return r;
    if (size)
        memcpy(blob->bytes + blob->size, data, size);
    end_portion(blob, size);
    return 0;
}

static int read_register(struct check *c, uint32_t offset, uint64_t *ret_value)
{
    int r = check_read(c, c->port->facts.mig_region, offset, ret_value, 8);

    return r < 0 ? r : 0;
}

/* v1: one iteration as the uAPI has it. */
static ssize_t save_region(struct check *c, struct check_blob *blob)
{
    const struct check_facts *facts = &c->port->facts;
    uint64_t pending = 0, offset = 0, size = 0, region = facts->region_size[facts->mig_region];
    int r = read_register(c, REG_PENDING, &pending);

    if (r < 0 || pending == 0)
        return r;
    r = read_register(c, REG_OFFSET, &offset);
    if (r == 0)
        r = read_register(c, REG_SIZE, &size);
    if (r < 0 || size == 0)
        return r;
    if (offset < sizeof(struct vfmig_user_mig_region) || offset > region ||
        size > region - offset) {
        check_that(c, false, "the data section lies behind the registers and inside of the region",
                   "data_offset %llu, data_size %llu, region of %llu", (unsigned long long)offset,
                   (unsigned long long)size, (unsigned long long)region);
        return -ERANGE;
    }
    if (size > CHECK_MAX_STREAM) {
        check_that(c, false, "a portion that a stream has room for", "data_size %llu",
                   (unsigned long long)size);
        return -EFBIG;
    }
    r = make_room(blob, size);
    for (uint64_t at = 0; r >= 0 && at < size;) {
        uint32_t piece = size - at < facts->max_read ? (uint32_t)(size - at) : facts->max_read;
        r = check_read(c, facts->mig_region, offset + at, blob->bytes + blob->size + at, piece);
        at += piece;
    }
    if (r < 0)
        return r;
    end_portion(blob, size);
    return (ssize_t)size;
}

static ssize_t save_feature(struct check *c, struct check_blob *blob, uint32_t size)
{
    int r = make_room(blob, size);

    if (r < 0)
        return r;
    struct check_step step = {.kind = CHECK_STEP_DATA_READ,
                              .arg = {size},
                              .room = blob->bytes + blob->size,
                              .room_size = size};
    r = (int)check_do(c, &step);
    if (r > 0)
        end_portion(blob, (size_t)r);
    return r == -ENOMSG ? 0 : r; /* the kernel's "nothing now" */
}

ssize_t check_save(struct check *c, struct check_blob *blob)
{
    return c->dialect == CHECK_DIALECT_REGION ? save_region(c, blob)
                                              : save_feature(c, blob, c->port->facts.max_read);
}

ssize_t check_save_some(struct check *c, struct check_blob *blob, uint32_t size)
{
    uint64_t pending = 0, offset = 0, all = 0;
    uint8_t bytes[4096];

    if (c->dialect == CHECK_DIALECT_FEATURE)
        return save_feature(c, blob, size);
    int r = read_register(c, REG_PENDING, &pending);
    if (r < 0 || pending == 0)
        return r;
    r = read_register(c, REG_OFFSET, &offset);
    if (r == 0)
        r = read_register(c, REG_SIZE, &all);
    size = size < all ? size : (uint32_t)all;
    size = size < sizeof(bytes) ? size : (uint32_t)sizeof(bytes);
    if (r == 0 && size)
        r = check_read(c, c->port->facts.mig_region, offset, bytes, size);
    if (r > 0 && check_blob_add(blob, bytes, (size_t)r) < 0)
        return -ENOMEM;
    return r;
}

int check_save_all(struct check *c, struct check_blob *blob)
{
    bool runs = check_runs((enum vfmig_state)check_now(c));

    for (uint32_t portions = 0;; portions++) {
        ssize_t n = check_save(c, blob);
        if (n <= 0)
            return (int)n;
        if (blob->size < CHECK_MAX_STREAM && portions < CHECK_MAX_PORTIONS)
            continue;
        if (runs)
            return 0; /* it changes as fast as it is read: as good an end as any */
        check_that(c, false, "the stream ends", "no end after %zu bytes in %u portions", blob->size,
                   portions);
        return -EFBIG;
    }
}

/* v1: the window may be smaller than the portion; then it is split, as QEMU does. */
static int load_region(struct check *c, const uint8_t *data, uint32_t size)
{
    const struct check_facts *facts = &c->port->facts;
    uint64_t offset = 0, region = facts->region_size[facts->mig_region];

    do {
        int r = read_register(c, REG_OFFSET, &offset);
        if (r < 0)
            return r;
        if (offset < sizeof(struct vfmig_user_mig_region) || offset >= region) {
            check_that(c, false, "data_offset lies behind the registers and inside of the region",
                       "data_offset %llu, region of %llu", (unsigned long long)offset,
                       (unsigned long long)region);
            return -ERANGE;
        }
        uint64_t part = size < region - offset ? size : region - offset;
        for (uint64_t at = 0; at < part;) {
            uint32_t piece =
                part - at < facts->max_write ? (uint32_t)(part - at) : facts->max_write;
            r = check_write(c, facts->mig_region, offset + at, data + at, piece);
            if (r < 0)
                return r;
            at += piece;
        }
        r = check_write(c, facts->mig_region, REG_SIZE, &part, 8);
        if (r < 0)
            return r;
        data += part;
        size -= (uint32_t)part;
    } while (size);
    return 0;
}

int check_load(struct check *c, const void *data, uint32_t size)
{
    const uint8_t *bytes = data;

    if (c->dialect == CHECK_DIALECT_REGION)
        return load_region(c, bytes, size);
    while (size) {
        uint32_t piece = size < c->port->facts.max_write ? size : c->port->facts.max_write;
        struct check_step step = {.kind = CHECK_STEP_DATA_WRITE, .arg = {piece}, .data = bytes};
        int r = (int)check_do(c, &step);
        if (r < 0)
            return r;
        bytes += piece;
        size -= piece;
    }
    return 0;
}

int check_load_all(struct check *c, const struct check_blob *blob)
{
    uint32_t at = 0;

    for (uint32_t i = 0; i < blob->count; i++) {
        int r = check_load(c, blob->bytes + at, blob->ends[i] - at);
        if (r < 0)
            return r;
        at = blob->ends[i];
    }
    return 0;
}

bool check_take_image(struct check *c, struct check_blob *blob)
{
    if (!check_reach(c, VFMIG_STATE_STOP_COPY))
        return false;
    int r = check_save_all(c, blob);
    if (r < 0 && !c->found)
        check_ok(c, r, "reading the stream in STOP_COPY");
    if (r < 0)
        return false;
    return check_need(c, check_go(c, VFMIG_STATE_RUNNING), "STOP_COPY to RUNNING");
}
