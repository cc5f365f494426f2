/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/savefile.h"

#include <errno.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "base/zero.h"

/* magic u64 | version u16, kind u8, 0 u8 | number u32 | id[16] | epoch u32 | pid u32 | time u64 |
 * length u64 | host[64] | journal[388] | CRC-32C of all before */
enum {
    AT_VERSION = 8,
    AT_KIND = 10,
    AT_NUMBER = 12,
    AT_ID = 16,
    AT_EPOCH = 32,
    AT_PID = 36,
    AT_TIME = 40,
    AT_LENGTH = 48,
    AT_HOST = 56,
    AT_JOURNAL = AT_HOST + VFMIG_SAVE_HOST_BYTES,
    AT_CRC = AT_JOURNAL + VFMIG_SAVE_PATH_BYTES,
};
_Static_assert(AT_CRC + 4 == VFMIG_SAVE_RECORD_BYTES, "one sector");

const char *vfmig_save_kind_name(unsigned kind)
{
    static const char *const names[VFMIG_SAVE_KINDS] = {"none",    "begun",      "complete",
                                                        "claimed", "given-back", "discarded"};

    return kind < VFMIG_SAVE_KINDS ? names[kind] : "unknown";
}

void vfmig_save_entry_encode(const struct vfmig_save_entry *entry, uint32_t number,
                             uint8_t out[VFMIG_SAVE_RECORD_BYTES])
{
    memset(out, 0, VFMIG_SAVE_RECORD_BYTES);
    vfmig_le64_put(out, VFMIG_SAVE_MAGIC);
    vfmig_le16_put(out + AT_VERSION, VFMIG_SAVE_VERSION);
    out[AT_KIND] = entry->kind;
    vfmig_le32_put(out + AT_NUMBER, number);
    memcpy(out + AT_ID, entry->id, VFMIG_SAVE_ID_BYTES);
    vfmig_le32_put(out + AT_EPOCH, entry->epoch);
    vfmig_le32_put(out + AT_PID, entry->pid);
    vfmig_le64_put(out + AT_TIME, entry->time_ns);
    vfmig_le64_put(out + AT_LENGTH, entry->length);
    memcpy(out + AT_HOST, entry->host, VFMIG_SAVE_HOST_BYTES);
    memcpy(out + AT_JOURNAL, entry->journal, VFMIG_SAVE_PATH_BYTES);
    vfmig_le32_put(out + AT_CRC, vfmig_crc32c(0, out, AT_CRC));
}

static void copy_text(char *to, const uint8_t *from, size_t size)
{
    memcpy(to, from, size);
    to[size - 1] = 0;
    for (; *to; to++)
        if (*to < ' ' || *to > '~')
            *to = '?';
}

int vfmig_save_entry_decode(const uint8_t in[VFMIG_SAVE_RECORD_BYTES], uint32_t number,
                            struct vfmig_save_entry *ret_entry, struct vfmig_error *reterr)
{
    if (vfmig_is_zero(in, VFMIG_SAVE_RECORD_BYTES))
        return 0;
    if (vfmig_le64_get(in) != VFMIG_SAVE_MAGIC ||
        vfmig_le32_get(in + AT_CRC) != vfmig_crc32c(0, in, AT_CRC) ||
        vfmig_le32_get(in + AT_NUMBER) != number)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, number,
                               "record %u of the file's log is damaged", number);
    if (vfmig_le16_get(in + AT_VERSION) != VFMIG_SAVE_VERSION || in[AT_KIND] >= VFMIG_SAVE_KINDS ||
        in[AT_KIND] == VFMIG_SAVE_NONE)
        return vfmig_error_set(reterr, -EPROTONOSUPPORT, VFMIG_ORIGIN_STREAM, number,
                               "record %u of the file's log is of version %u and kind %u, which are "
                               "not known here",
                               number, vfmig_le16_get(in + AT_VERSION), in[AT_KIND]);
    *ret_entry = (struct vfmig_save_entry){
        .kind = in[AT_KIND],
        .epoch = vfmig_le32_get(in + AT_EPOCH),
        .pid = vfmig_le32_get(in + AT_PID),
        .time_ns = vfmig_le64_get(in + AT_TIME),
        .length = vfmig_le64_get(in + AT_LENGTH),
    };
    memcpy(ret_entry->id, in + AT_ID, VFMIG_SAVE_ID_BYTES);
    copy_text(ret_entry->host, in + AT_HOST, VFMIG_SAVE_HOST_BYTES);
    copy_text(ret_entry->journal, in + AT_JOURNAL, VFMIG_SAVE_PATH_BYTES);
    return 1;
}

/* Is this a record that may come next? Then it takes effect. */
static bool take(struct vfmig_save_log *log, const struct vfmig_save_entry *entry)
{
    bool ready = log->complete.kind && !log->discarded;

    if (log->begun.kind && memcmp(entry->id, log->begun.id, sizeof(entry->id)))
        return false;
    switch (entry->kind) {
    case VFMIG_SAVE_BEGUN:
        if (log->begun.kind)
            return false;
        log->begun = *entry;
        break;
    case VFMIG_SAVE_COMPLETE:
        if (!log->begun.kind || log->complete.kind || log->discarded)
            return false;
        log->complete = *entry;
        break;
    case VFMIG_SAVE_CLAIMED:
        if (!ready || log->claim.kind || entry->epoch != log->claims + 1)
            return false;
        log->claim = *entry;
        log->claims++;
        break;
    case VFMIG_SAVE_GIVEN_BACK:
        if (!log->claim.kind || entry->epoch != log->claims)
            return false;
        log->claim.kind = VFMIG_SAVE_NONE;
        break;
    default:
        if (!log->begun.kind || log->claim.kind || log->discarded)
            return false;
        log->discarded = true;
    }
    log->last = *entry;
    log->count++;
    return true;
}

int vfmig_save_log_decode(const uint8_t in[VFMIG_SAVE_HEAD_BYTES], struct vfmig_save_log *ret_log,
                          struct vfmig_error *reterr)
{
    struct vfmig_save_log log = {.count = 0};
    int ret = 1;

    if (vfmig_le64_get(in) != VFMIG_SAVE_MAGIC)
        return vfmig_error_set(reterr, -EMEDIUMTYPE, VFMIG_ORIGIN_STREAM, 0,
                               "this is not a file with a saved guest");
    while (log.count < VFMIG_SAVE_RECORDS) {
        const uint8_t *at = in + (size_t)log.count * VFMIG_SAVE_RECORD_BYTES;
        size_t behind = VFMIG_SAVE_HEAD_BYTES - (size_t)(log.count + 1) * VFMIG_SAVE_RECORD_BYTES;
        struct vfmig_save_entry entry;

        ret = vfmig_save_entry_decode(at, log.count, &entry, reterr);
        if (ret == -EBADMSG && log.count && vfmig_is_zero(at + VFMIG_SAVE_RECORD_BYTES, behind)) {
            log.torn = true;
            ret = 0;
        } else if (ret == 0 && !vfmig_is_zero(at + VFMIG_SAVE_RECORD_BYTES, behind)) {
            ret = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, log.count,
                                  "record %u of the file's log is missing", log.count);
        }
        if (ret <= 0)
            break;
        if (!take(&log, &entry))
            return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, log.count,
                                   "record %u of the file's log, %s, does not fit those before it",
                                   log.count, vfmig_save_kind_name(entry.kind));
    }
    if (ret < 0)
        return ret;
    *ret_log = log;
    return 0;
}
