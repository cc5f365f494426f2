/* SPDX-License-Identifier: BSD-3-Clause */
/* Journal files: records with right numbers and checksums unless an operation says otherwise. Whatever a
 * file says, reading ends with a summary, and a journal that is taken up can be written on. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "engine/journal_file.h"
#include "ops.h"

#define DISK_BYTES (128u << 10)

enum how { KEEP_CRC = 1, NUMBER = 2, RAW = 4, OTHER_ID = 8, OTHER_ROLE = 16, CUT = 32 };

static uint8_t disk[DISK_BYTES];
static size_t disk_size;

static void need(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

static int64_t disk_read(void *opaque, void *data, size_t size, uint64_t offset)
{
    if (offset >= disk_size)
        return 0;
    size = size < disk_size - offset ? size : disk_size - (size_t)offset;
    memcpy(data, disk + offset, size);
    return (int64_t)size;
}

static int64_t disk_write(void *opaque, const void *data, size_t size, uint64_t offset)
{
    if (offset >= DISK_BYTES)
        return -ENOSPC;
    size = size < DISK_BYTES - offset ? size : DISK_BYTES - (size_t)offset;
    memcpy(disk + offset, data, size);
    if (offset + size > disk_size)
        disk_size = (size_t)offset + size;
    return (int64_t)size;
}

static int disk_sync(void *opaque, bool all)
{
    return 0;
}

static void add_record(const struct op *op, uint32_t number)
{
    struct vfmig_journal_entry entry = {.epoch = 1, .role = VFMIG_HO_SOURCE, .pid = 1};
    uint8_t raw[VFMIG_JOURNAL_RECORD_BYTES];

    memset(entry.id, op->how & OTHER_ID ? 9 : 1, sizeof(entry.id));
    if (op->how & OTHER_ROLE)
        entry.role = op->kind;
    entry.record = op->kind % 16;
    vfmig_journal_encode(&entry, op->how & NUMBER ? op->kind : number, raw);
    /* {place, byte} pairs change it; the checksum is made anew unless it is to be wrong. */
    for (size_t at = 0; at + 2 <= op->size && !(op->how & RAW); at += 2)
        raw[op->data[at]] = op->data[at + 1];
    if (!(op->how & KEEP_CRC))
        vfmig_le32_put(raw + sizeof(raw) - 4, vfmig_crc32c(0, raw, sizeof(raw) - 4));
    const uint8_t *data = op->how & RAW ? op->data : raw;
    size_t size = op->how & RAW ? op->size : sizeof(raw);
    if (disk_size + size <= DISK_BYTES && size) {
        memcpy(disk + disk_size, data, size);
        disk_size += size;
    }
}

/* A file has room before it has records, unless it was cut. */
static void make_room(void)
{
    const size_t room = 64 * (size_t)VFMIG_JOURNAL_RECORD_BYTES;

    if (disk_size < room) {
        memset(disk + disk_size, 0, room - disk_size);
        disk_size = room;
    }
}

bool ops_run(const struct op *ops, size_t count)
{
    const struct vfmig_journal_store store = {.read = disk_read, .write = disk_write, .sync = disk_sync};
    static struct vfmig_journal_summary summary;
    static struct vfmig_journal_log log;
    struct vfmig_error error = {0};

    bool cut = false;

    disk_size = 0;
    for (size_t i = 0; i < count; i++) {
        add_record(&ops[i], (uint32_t)i);
        cut |= ops[i].how & CUT;
    }
    if (!cut)
        make_room();
    memset(&summary, 0, sizeof(summary));
    int rc = vfmig_journal_scan(&store, "fuzz", &summary, &error);
    need(rc == 0, "a journal whose reading fails");
    need(!summary.damage || summary.error.text[0], "damage without a reason");
    need(summary.count * (size_t)VFMIG_JOURNAL_RECORD_BYTES <= disk_size, "more records than there are");
    need(memchr(summary.last.text, 0, sizeof(summary.last.text)) != NULL, "a text without an end");

    memset(&log, 0, sizeof(log));
    log.store = store;
    log.role = VFMIG_HO_SOURCE;
    memset(log.id, 1, sizeof(log.id));
    if (vfmig_journal_log_take_up(&log, &error))
        return false;
    need(!summary.damage, "a damaged journal was taken up");
    struct vfmig_journal_entry opened = {.pid = 1}, entry = {.epoch = 7, .record = 1};
    if (vfmig_journal_log_opened(&log, &opened, NULL) == 0 &&
        vfmig_journal_log_append(&log, &entry, NULL) == 0) {
        memset(&summary, 0, sizeof(summary));
        need(vfmig_journal_scan(&store, "fuzz", &summary, &error) == 0, "a journal whose reading fails");
        need(!summary.damage, summary.error.text);
        need(summary.last.epoch == 7, "what was appended is not there");
    }
    return summary.count > 1;
}
