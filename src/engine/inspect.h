/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads any migration stream, of a file or as one direction of a channel was captured, up to where it
 * ends or is damaged. Nothing in it is trusted: memory is bounded by one record of each form and one
 * bit a page. */
#ifndef VFMIG_ENGINE_INSPECT_H
#define VFMIG_ENGINE_INSPECT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/bounds.h"
#include "stream/record.h"
#include "stream/savefile.h"
#include "vfmig/error.h"

/* Bytes read, fewer than size only at the end; or a negative errno. */
typedef ssize_t (*vfmig_inspect_read)(void *user, void *buf, size_t size);

struct vfmig_inspect_field {
    const char *name;
    const char *text; /* NULL: a number; else printable, may have newlines */
    uint64_t number;
};

#define VFMIG_INSPECT_FIELDS 12u

/* A record of the file's log, or one of the stream; valid until the next one. */
struct vfmig_inspect_item {
    uint64_t offset;
    bool log;          /* of the log at the head of a file */
    const char *name;  /* printable */
    uint64_t sequence; /* of a log record: its number */
    uint32_t channel, bytes;
    bool known; /* false: an optional record of a newer version */
    uint32_t field_count;
    struct vfmig_inspect_field fields[VFMIG_INSPECT_FIELDS];
};
typedef void (*vfmig_inspect_item_fn)(void *user, const struct vfmig_inspect_item *item);

struct vfmig_inspect_device {
    uint64_t segments, bytes;
    bool ended;
};

struct vfmig_inspect_totals {
    uint64_t offset; /* up to here everything was read and is as its checksums say */
    uint64_t records, pages, zero_pages, rounds, state_bytes;
    uint64_t packed_bytes, unpacked_bytes;
    uint64_t doubtful; /* copies of pages whose CRC is wrong: written while they were sent, or damaged */
    uint64_t in_doubt; /* of them, pages of which no later copy is right; UINT64_MAX: not known */
    uint32_t device_count;
    struct vfmig_inspect_device devices[VFMIG_MAX_DEVICES];
    bool is_file; /* it has a log */
    struct vfmig_save_log log;
    bool bye;
};

/* 0 when it is whole; else why it is not, with totals->offset where. Origin STREAM, or KERNEL when it
 * could not be read. */
int vfmig_inspect(vfmig_inspect_read read, void *read_user, vfmig_inspect_item_fn on_item,
                  void *item_user, struct vfmig_inspect_totals *ret_totals,
                  struct vfmig_error *reterr);

#endif
