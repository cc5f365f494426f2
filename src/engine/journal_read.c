/* SPDX-License-Identifier: BSD-3-Clause */
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bounds.h"
#include "base/crc32c.h"
#include "engine/journal_file.h"

static const char *role_name(unsigned role)
{
    return role == VFMIG_HO_SOURCE ? "source" : "destination";
}

void vfmig_ho_id_format(const uint8_t *id, char ret_text[2 * VFMIG_HO_ID_BYTES + 1])
{
    for (unsigned i = 0; i < VFMIG_HO_ID_BYTES; i++)
        snprintf(ret_text + 2 * i, 3, "%02x", id[i]);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

int vfmig_ho_id_parse(const char *text, uint8_t *ret_id)
{
    uint8_t id[VFMIG_HO_ID_BYTES];

    for (unsigned i = 0; i < VFMIG_HO_ID_BYTES; i++) {
        int high = hex_digit(text[2 * i]);
        int low = high < 0 ? -1 : hex_digit(text[2 * i + 1]);
        if (low < 0)
            return -EINVAL;
        id[i] = (uint8_t)(high << 4 | low);
    }
    if (text[2 * VFMIG_HO_ID_BYTES])
        return -EINVAL;
    memcpy(ret_id, id, sizeof(id));
    return 0;
}

int vfmig_journal_path(const char *dir, const uint8_t *id, enum vfmig_ho_role role, char *ret_path,
                       size_t size, struct vfmig_error *reterr)
{
    char text[2 * VFMIG_HO_ID_BYTES + 1];

    vfmig_ho_id_format(id, text);
    int n = snprintf(ret_path, size, "%s/%s.%s", dir, text, role_name(role));
    if (n < 0 || (size_t)n >= size)
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                               "the path of journal directory %.100s is too long", dir);
    return 0;
}

void vfmig_journal_encode(const struct vfmig_journal_entry *entry, uint32_t number, uint8_t *ret_raw)
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
        le32toh(raw.crc) != vfmig_crc32c(0, &raw, offsetof(struct vfmig_journal_raw, crc)))
        return SLOT_BAD;
    if (le16toh(raw.version) != VFMIG_JOURNAL_VERSION)
        return SLOT_NEWER;
    bool source = raw.role == VFMIG_HO_SOURCE;
    bool fits = raw.record == VFMIG_HO_RECORD_NONE ||
                (raw.record < VFMIG_HO_RECORD_COUNT && (raw.record < VFMIG_HO_RECORD_READY) == source);
    if (le32toh(raw.number) != number || (!source && raw.role != VFMIG_HO_DESTINATION) || !fits)
        return SLOT_FOREIGN;
    *ret_entry = (struct vfmig_journal_entry){
        .epoch = le32toh(raw.epoch),
        .role = raw.role,
        .record = raw.record,
        .memory = raw.memory != 0,
        .pid = le32toh(raw.pid),
        .time_ns = le64toh(raw.time_ns),
    };
    memcpy(ret_entry->id, raw.id, sizeof(raw.id));
    memcpy(ret_entry->text, raw.text, sizeof(raw.text));
    ret_entry->text[sizeof(ret_entry->text) - 1] = 0;
    return SLOT_GOOD;
}

static ssize_t read_slot(int fd, uint32_t number, uint8_t *data)
{
    size_t have = 0;

    while (have < VFMIG_JOURNAL_RECORD_BYTES) {
        ssize_t n = pread(fd, data + have, VFMIG_JOURNAL_RECORD_BYTES - have,
                          (off_t)number * VFMIG_JOURNAL_RECORD_BYTES + (off_t)have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        have += (size_t)n;
    }
    memset(data + have, 0, VFMIG_JOURNAL_RECORD_BYTES - have);
    return (ssize_t)have;
}

static int damaged(struct vfmig_journal_summary *summary, int code, uint32_t number, const char *how)
{
    summary->damage = code;
    vfmig_error_set(&summary->error, code, VFMIG_ORIGIN_LOCAL, 0, "record %u of journal %s %s", number,
                    summary->path, how);
    return 0;
}

static int take_entry(struct vfmig_journal_summary *summary, const struct vfmig_journal_entry *entry)
{
    if (summary->count && (memcmp(entry->id, summary->opened.id, sizeof(entry->id)) ||
                           entry->role != summary->opened.role))
        return damaged(summary, -EBADMSG, summary->count, "belongs to another migration");
    if (entry->record)
        summary->last = *entry;
    else
        summary->opened = *entry;
    summary->count++;
    return 0;
}

int vfmig_journal_read_fd(int fd, const char *path, struct vfmig_journal_summary *ret_summary,
                          struct vfmig_error *reterr)
{
    struct vfmig_journal_entry entry;
    uint8_t data[VFMIG_JOURNAL_RECORD_BYTES];
    bool ended = false;

    memset(ret_summary, 0, sizeof(*ret_summary));
    snprintf(ret_summary->path, sizeof(ret_summary->path), "%s", path);
    for (uint32_t number = 0; number < VFMIG_MAX_JOURNAL_RECORDS + 16; number++) {
        ssize_t n = read_slot(fd, number, data);
        if (n < 0)
            return vfmig_error_set(reterr, (int)n, VFMIG_ORIGIN_KERNEL, 0, "cannot read journal %s: %s",
                                   path, strerror((int)-n));
        if (n == 0)
            return 0;
        enum slot slot = decode(data, number, &entry);
        if (slot == SLOT_EMPTY) {
            ended = true;
            continue;
        }
        if (ended)
            return damaged(ret_summary, -EBADMSG, ret_summary->count, "is damaged: others follow it");
        if (slot == SLOT_NEWER)
            return damaged(ret_summary, -ENOTSUP, number, "is of a newer format");
        if (slot == SLOT_FOREIGN)
            return damaged(ret_summary, -EBADMSG, number, "is not what belongs there");
        if (slot == SLOT_BAD)
            ended = ret_summary->torn = true;
        else if (number == 0 && entry.record)
            return damaged(ret_summary, -EBADMSG, number, "is not an opening");
        else
            take_entry(ret_summary, &entry);
        if (ret_summary->damage)
            return 0;
    }
    return damaged(ret_summary, -EBADMSG, VFMIG_MAX_JOURNAL_RECORDS, "is one too many");
}

int vfmig_journal_read(const char *path, struct vfmig_journal_summary *ret_summary,
                       struct vfmig_error *reterr)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0) {
        int code = -errno;
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot open journal %s: %s", path,
                               strerror(-code));
    }
    int r = vfmig_journal_read_fd(fd, path, ret_summary, reterr);
    if (r == 0 && fcntl(fd, F_OFD_GETLK, &lock) == 0)
        ret_summary->held = lock.l_type != F_UNLCK;
    close(fd);
    return r;
}

static int is_journal_name(const struct dirent *entry)
{
    uint8_t id[VFMIG_HO_ID_BYTES];
    char hex[2 * VFMIG_HO_ID_BYTES + 1];
    const char *dot = strchr(entry->d_name, '.');

    if (!dot || dot - entry->d_name != 2 * VFMIG_HO_ID_BYTES)
        return 0;
    memcpy(hex, entry->d_name, sizeof(hex) - 1);
    hex[sizeof(hex) - 1] = 0;
    return !vfmig_ho_id_parse(hex, id) && (!strcmp(dot, ".source") || !strcmp(dot, ".destination"));
}

/* The name says whose journal it is, even when nothing else can be read. */
static void check_against_name(const char *name, struct vfmig_journal_summary *summary)
{
    char hex[2 * VFMIG_HO_ID_BYTES + 1];
    struct vfmig_journal_entry *last = &summary->last;
    uint8_t role = strstr(name, ".source") ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION;
    uint8_t id[VFMIG_HO_ID_BYTES];

    memcpy(hex, name, sizeof(hex) - 1);
    hex[sizeof(hex) - 1] = 0;
    if (vfmig_ho_id_parse(hex, id) < 0)
        return;
    if (summary->count && !summary->damage &&
        (memcmp(id, summary->opened.id, sizeof(id)) || role != summary->opened.role))
        damaged(summary, -EBADMSG, 0, "belongs to another migration than the file");
    memcpy(last->id, id, sizeof(id));
    last->role = role;
}

static int read_one(const char *dir, const char *name, struct vfmig_journal_summary *ret_summary)
{
    struct vfmig_error error = {0};
    char path[sizeof(ret_summary->path)];

    memset(ret_summary, 0, sizeof(*ret_summary));
    int n = snprintf(path, sizeof(path), "%s/%s", dir, name);
    int r = n < 0 || (size_t)n >= sizeof(path) ? -ENAMETOOLONG
                                               : vfmig_journal_read(path, ret_summary, &error);
    if (r < 0) {
        ret_summary->damage = r;
        ret_summary->error = error;
        snprintf(ret_summary->path, sizeof(ret_summary->path), "%s", path);
    }
    check_against_name(name, ret_summary);
    return r == -ENAMETOOLONG ? r : 0;
}

int vfmig_journal_list(const char *dir, struct vfmig_journal_summary **ret_list, size_t *ret_count,
                       struct vfmig_error *reterr)
{
    struct dirent **names = NULL;
    int n = scandir(dir, &names, is_journal_name, alphasort);
    int code = n < 0 ? -errno : 0;

    if (code == -ENOENT)
        n = code = 0;
    if (code < 0)
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot read journal directory %s: %s", dir, strerror(-code));
    struct vfmig_journal_summary *list = calloc(n > 0 ? (size_t)n : 1, sizeof(*list));
    if (!list)
        code = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for %d journals", n);
    else if ((unsigned)n > VFMIG_MAX_JOURNALS)
        code = vfmig_error_set(reterr, -E2BIG, VFMIG_ORIGIN_LOCAL, 0,
                               "directory %s has more than %u journals", dir, VFMIG_MAX_JOURNALS);
    for (int i = 0; i < n; i++) {
        if (code == 0 && read_one(dir, names[i]->d_name, &list[i]) < 0)
            code = vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                                   "the path of journal directory %.100s is too long", dir);
        free(names[i]);
    }
    free(names);
    if (code < 0) {
        free(list);
        return code;
    }
    *ret_list = list;
    *ret_count = (size_t)n;
    return 0;
}
