/* SPDX-License-Identifier: BSD-3-Clause */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bounds.h"
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

static int64_t read_file(void *opaque, void *data, size_t size, uint64_t offset)
{
    const int *fd = opaque;
    ssize_t n;

    do {
        n = pread(*fd, data, size, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int vfmig_journal_read(const char *path, struct vfmig_journal_summary *ret_summary,
                       struct vfmig_error *reterr)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* it may be anything, a pipe without a writer */

    if (fd < 0) {
        int code = -errno;
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "cannot open journal %s: %s",
                               path, strerror(-code));
    }
    struct vfmig_journal_store store = {.read = read_file, .opaque = &fd};
    int r = vfmig_journal_scan(&store, path, ret_summary, reterr);
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

uint32_t vfmig_journal_count(const char *dir)
{
    DIR *stream = opendir(dir);
    uint32_t count = 0;

    for (const struct dirent *entry; stream && (entry = readdir(stream));)
        count += (uint32_t)is_journal_name(entry);
    if (stream)
        closedir(stream);
    return count;
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
        vfmig_journal_damaged(summary, -EBADMSG, 0, "belongs to another migration than the file");
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
        code = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for %d journals",
                               n);
    else if ((unsigned)n > VFMIG_MAX_JOURNALS)
        code = vfmig_error_set(reterr, -E2BIG, VFMIG_ORIGIN_LOCAL, 0,
                               "directory %s has more than %u journals: move some away whose migrations are long over",
                               dir, VFMIG_MAX_JOURNALS);
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
