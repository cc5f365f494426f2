/* SPDX-License-Identifier: BSD-3-Clause */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bounds.h"
#include "base/crc32c.h"
#include "base/sabotage.h"
#include "engine/journal_file.h"

/* Space is laid out in steps of this many records: one block of the usual file systems. */
#define ROOM_RECORDS 16u

void vfmig_journal_encode(const struct vfmig_journal_entry *entry, uint32_t number,
                          uint8_t *ret_raw)
{
    struct vfmig_journal_raw raw = {
        .magic = htole32(VFMIG_JOURNAL_MAGIC),
        .version = htole16(VFMIG_JOURNAL_VERSION),
        .role = entry->role,
        .record = entry->record,
        .epoch = htole32(entry->epoch),
        .number = htole32(number),
        .time_ns = htole64(entry->time_ns),
        .pid = htole32(entry->pid),
        .memory = entry->memory,
        .stands = entry->stands,
    };

    memcpy(raw.id, entry->id, sizeof(raw.id));
    memcpy(raw.text, entry->text, sizeof(raw.text));
    raw.crc = htole32(vfmig_crc32c(0, &raw, offsetof(struct vfmig_journal_raw, crc)));
    memcpy(ret_raw, &raw, sizeof(raw));
}

/* What a slot of the file holds. */
enum slot {
    SLOT_EMPTY,
    SLOT_GOOD,
    SLOT_BAD,     /* not a whole record: torn if nothing follows, damage otherwise */
    SLOT_FOREIGN, /* whole, but not of this file or place */
    SLOT_NEWER,   /* whole, of a later version */
};

static enum slot decode(const uint8_t *data, uint32_t number, struct vfmig_journal_entry *ret_entry)
{
    static const uint8_t zeros[VFMIG_JOURNAL_RECORD_BYTES];
    struct vfmig_journal_raw raw;

    if (!memcmp(data, zeros, sizeof(zeros)))
        return SLOT_EMPTY;
    memcpy(&raw, data, sizeof(raw));
    if (le32toh(raw.magic) != VFMIG_JOURNAL_MAGIC ||
        (le32toh(raw.crc) != vfmig_crc32c(0, &raw, offsetof(struct vfmig_journal_raw, crc)) &&
         !vfmig_sabotage("journal-no-crc")))
        return SLOT_BAD;
    if (le16toh(raw.version) != VFMIG_JOURNAL_VERSION)
        return SLOT_NEWER;
    bool source = raw.role == VFMIG_HO_SOURCE;
    bool fits =
        raw.record == VFMIG_HO_RECORD_NONE ||
        (raw.record < VFMIG_HO_RECORD_COUNT && (raw.record < VFMIG_HO_RECORD_READY) == source);
    if (le32toh(raw.number) != number || (!source && raw.role != VFMIG_HO_DESTINATION) || !fits)
        return SLOT_FOREIGN;
    *ret_entry = (struct vfmig_journal_entry){
        .epoch = le32toh(raw.epoch),
        .role = raw.role,
        .record = raw.record,
        .memory = raw.memory != 0,
        .stands = raw.stands != 0,
        .pid = le32toh(raw.pid),
        .time_ns = le64toh(raw.time_ns),
    };
    memcpy(ret_entry->id, raw.id, sizeof(raw.id));
    memcpy(ret_entry->text, raw.text, sizeof(raw.text));
    ret_entry->text[sizeof(ret_entry->text) - 1] = 0;
    return SLOT_GOOD;
}

static int64_t read_slot(const struct vfmig_journal_store *store, uint32_t number, uint8_t *data)
{
    size_t have = 0;

    memset(data, 0, VFMIG_JOURNAL_RECORD_BYTES);
    while (have < VFMIG_JOURNAL_RECORD_BYTES) {
        int64_t n = store->read(store->opaque, data + have, VFMIG_JOURNAL_RECORD_BYTES - have,
                                (uint64_t)number * VFMIG_JOURNAL_RECORD_BYTES + have);
        if (n < 0)
            return n;
        if (n == 0)
            break;
        if ((uint64_t)n > VFMIG_JOURNAL_RECORD_BYTES - have)
            return -EIO; /* more than was asked for */
        have += (size_t)n;
    }
    return (int64_t)have;
}

int vfmig_journal_damaged(struct vfmig_journal_summary *summary, int code, uint32_t number,
                          const char *how)
{
    summary->damage = code;
    vfmig_error_set(&summary->error, code, VFMIG_ORIGIN_LOCAL, 0, "record %u of journal %s %s",
                    number, summary->path, how);
    return 0;
}

/* How the CRC of a record's bytes changes with the bits of the byte at this place. */
static void crc_changes(size_t place, uint32_t ret_changes[8])
{
    uint8_t bytes[offsetof(struct vfmig_journal_raw, crc)] = {0};
    uint32_t none = vfmig_crc32c(0, bytes, sizeof(bytes));

    for (unsigned bit = 0; bit < 8; bit++) {
        bytes[place] = (uint8_t)(1u << bit);
        ret_changes[bit] = vfmig_crc32c(0, bytes, sizeof(bytes)) ^ none;
    }
}

/* A record of which one byte is not as it was written, and not zero: what is missing of a torn one is zero, because
 * its place was. */
static bool is_altered(const uint8_t *data)
{
    struct vfmig_journal_raw raw;
    uint32_t changes[8];

    memcpy(&raw, data, sizeof(raw));
    uint32_t differs = le32toh(raw.crc) ^ vfmig_crc32c(0, data, offsetof(struct vfmig_journal_raw, crc));
    if (!data[0] || !data[sizeof(raw) - 1])
        return false;
    for (unsigned byte = 0; byte < 4; byte++)
        if (!(differs & ~(0xffu << (8 * byte))))
            return data[offsetof(struct vfmig_journal_raw, crc) + byte];
    for (size_t place = 0; place < offsetof(struct vfmig_journal_raw, crc); place++) {
        if (!data[place])
            continue;
        crc_changes(place, changes);
        for (unsigned bits = 1; bits < 256; bits++) {
            uint32_t change = 0;
            for (unsigned bit = 0; bit < 8; bit++)
                change ^= bits & (1u << bit) ? changes[bit] : 0;
            if (change == differs)
                return true;
        }
    }
    return false;
}

static int take_entry(struct vfmig_journal_summary *summary,
                      const struct vfmig_journal_entry *entry)
{
    if (summary->count && (memcmp(entry->id, summary->opened.id, sizeof(entry->id)) ||
                           entry->role != summary->opened.role))
        return vfmig_journal_damaged(summary, -EBADMSG, summary->count,
                                     "belongs to another migration");
    if (entry->record)
        summary->last = *entry;
    else
        summary->opened = *entry;
    summary->count++;
    return 0;
}

int vfmig_journal_scan(const struct vfmig_journal_store *store, const char *path,
                       struct vfmig_journal_summary *ret_summary, struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;
    uint8_t data[VFMIG_JOURNAL_RECORD_BYTES];
    bool ended = false, partial = false;

    memset(ret_summary, 0, sizeof(*ret_summary));
    snprintf(ret_summary->path, sizeof(ret_summary->path), "%s", path);
    for (uint32_t number = 0; number < VFMIG_MAX_JOURNAL_RECORDS + 16; number++) {
        int64_t n = read_slot(store, number, data);
        if (n < 0)
            return vfmig_error_set(reterr, (int)n, VFMIG_ORIGIN_KERNEL, 0,
                                   "cannot read journal %s: %s", path, strerror((int)-n));
        /* Room was there, and synced, before anything was written into it. */
        if (n == 0 && (number < ROOM_RECORDS || partial) && (ret_summary->count || ret_summary->torn))
            return vfmig_journal_damaged(ret_summary, -EBADMSG, number, "is missing: the file was cut off");
        if (n == 0)
            return 0;
        partial = n < VFMIG_JOURNAL_RECORD_BYTES;
        enum slot slot = decode(data, number, &entry);
        if (slot == SLOT_EMPTY) {
            ended = true;
            continue;
        }
        if (ended)
            return vfmig_journal_damaged(ret_summary, -EBADMSG, ret_summary->count,
                                         "is damaged: others follow it");
        if (slot == SLOT_NEWER)
            return vfmig_journal_damaged(ret_summary, -ENOTSUP, number, "is of a newer format");
        if (slot == SLOT_FOREIGN)
            return vfmig_journal_damaged(ret_summary, -EBADMSG, number,
                                         "is not what belongs there");
        if (slot == SLOT_BAD && is_altered(data))
            return vfmig_journal_damaged(ret_summary, -EBADMSG, number, "was altered");
        if (slot == SLOT_BAD)
            ended = ret_summary->torn = true;
        else if (number == 0 && entry.record)
            return vfmig_journal_damaged(ret_summary, -EBADMSG, number, "is not an opening");
        else
            take_entry(ret_summary, &entry);
        if (ret_summary->damage)
            return 0;
    }
    return vfmig_journal_damaged(ret_summary, -EBADMSG, VFMIG_MAX_JOURNAL_RECORDS,
                                 "is one too many");
}

/* --- writing --- */

static int store_error(struct vfmig_error *reterr, int code, const char *what, const char *path)
{
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot %s %s: %s", what, path,
                           strerror(-code));
}

static int write_all(const struct vfmig_journal_store *store, const void *data, size_t size,
                     uint64_t offset)
{
    const uint8_t *p = data;

    while (size) {
        int64_t n = store->write(store->opaque, p, size, offset);
        if (n < 0)
            return (int)n;
        if (n == 0)
            return -ENOSPC;
        p += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static uint64_t end_of(const struct vfmig_journal_log *log)
{
    return (uint64_t)log->count * VFMIG_JOURNAL_RECORD_BYTES;
}

static int lay_out_room(struct vfmig_journal_log *log, struct vfmig_error *reterr)
{
    static const char zeros[ROOM_RECORDS * VFMIG_JOURNAL_RECORD_BYTES];

    if (log->room >= VFMIG_MAX_JOURNAL_RECORDS)
        return vfmig_error_set(reterr, -EFBIG, VFMIG_ORIGIN_LOCAL, 0,
                               "journal %s has %u records, the most there may be", log->path,
                               VFMIG_MAX_JOURNAL_RECORDS);
    /* The first free record may hold a torn one; what lies behind it is zero or absent. */
    int r = write_all(&log->store, zeros, sizeof(zeros), end_of(log));
    if (r == 0)
        r = log->store.sync(log->store.opaque, /* all= */ true);
    if (r < 0)
        return store_error(reterr, r, "make room in journal", log->path);
    log->room = log->count + ROOM_RECORDS;
    log->left = false;
    return 0;
}

/* What a failed append may have left is cleared first, so that a torn record never has parts of two. */
static int clear_left(struct vfmig_journal_log *log)
{
    static const uint8_t zeros[VFMIG_JOURNAL_RECORD_BYTES];
    int r = write_all(&log->store, zeros, sizeof(zeros), end_of(log));

    if (r == 0)
        r = log->store.sync(log->store.opaque, /* all= */ false);
    if (r == 0)
        log->left = false;
    return r;
}

int vfmig_journal_log_append(struct vfmig_journal_log *log, struct vfmig_journal_entry *entry,
                             struct vfmig_error *reterr)
{
    uint8_t raw[VFMIG_JOURNAL_RECORD_BYTES];

    entry->role = (uint8_t)log->role;
    memcpy(entry->id, log->id, sizeof(entry->id));
    if (log->count == log->room) {
        int r = lay_out_room(log, reterr);
        if (r < 0)
            return r;
    }
    vfmig_journal_encode(entry, log->count, raw);
    bool full = vfmig_sabotage("journal-full") ||
                vfmig_sabotage_on("journal-full", vfmig_ho_record_name(entry->record));
    int r = full && entry->record ? -ENOSPC : 0;
    if (r == 0 && log->left)
        r = clear_left(log);
    if (r == 0)
        r = write_all(&log->store, raw, sizeof(raw), end_of(log));
    if (r == 0 && !vfmig_sabotage("journal-no-sync"))
        r = log->store.sync(log->store.opaque, /* all= */ false);
    log->count += r < 0 && vfmig_sabotage("journal-not-overwritten");
    log->left = r < 0;
    if (r < 0)
        return store_error(reterr, r, "write journal", log->path);
    log->count++;
    if (entry->record)
        log->last = *entry;
    return 0;
}

int vfmig_journal_log_opened(struct vfmig_journal_log *log, struct vfmig_journal_entry *entry,
                             struct vfmig_error *reterr)
{
    entry->record = VFMIG_HO_RECORD_NONE;
    entry->epoch = log->last.epoch > log->opened_epoch ? log->last.epoch : log->opened_epoch;
    return vfmig_journal_log_append(log, entry, reterr);
}

int vfmig_journal_log_probe(struct vfmig_journal_log *log, struct vfmig_error *reterr)
{
    static const uint8_t zeros[VFMIG_JOURNAL_RECORD_BYTES];
    int r = log->count == log->room ? lay_out_room(log, reterr) : 0;

    if (r < 0)
        return r;
    r = write_all(&log->store, zeros, sizeof(zeros), end_of(log));
    if (r == 0)
        r = log->store.sync(log->store.opaque, /* all= */ false);
    return r < 0 ? store_error(reterr, r, "write journal", log->path) : 0;
}

/* After a sync that failed, a record may be in the cache and never reach the disk, as the next sync
 * takes it for written. So what is relied upon is written again; the opening's sync covers it. Only
 * the last record can be such a one: those before it had theirs. */
static int write_last_again(struct vfmig_journal_log *log)
{
    uint8_t raw[VFMIG_JOURNAL_RECORD_BYTES];

    if (!log->count || vfmig_sabotage("journal-trusts-cache"))
        return 0;
    int64_t n = read_slot(&log->store, log->count - 1, raw);
    if (n != VFMIG_JOURNAL_RECORD_BYTES)
        return n < 0 ? (int)n : -EIO;
    return write_all(&log->store, raw, sizeof(raw), end_of(log) - sizeof(raw));
}

int vfmig_journal_log_take_up(struct vfmig_journal_log *log, struct vfmig_error *reterr)
{
    struct vfmig_journal_summary found;

    int r = vfmig_journal_scan(&log->store, log->path, &found, reterr);
    if (r < 0)
        return r;
    if (found.damage) {
        if (reterr)
            *reterr = found.error;
        return found.damage;
    }
    if (found.count &&
        (memcmp(found.opened.id, log->id, sizeof(log->id)) || found.opened.role != log->role))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_LOCAL, 0,
                               "journal %s holds the records of another migration", log->path);
    log->count = found.count;
    log->room = found.count; /* laid out anew: a torn record goes with it */
    log->last = found.last;
    log->opened_epoch = found.opened.epoch;
    r = write_last_again(log);
    return r < 0 ? store_error(reterr, r, "write journal", log->path) : 0;
}
