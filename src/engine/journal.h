/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal of one side of one migration: what survives a crash (design section 7).
 *
 * A file per migration and role, "<32 hex digits>.source" or ".destination", in a directory. It is a
 * row of 256-byte records, each of them inside one disk sector, written and synced before it counts.
 * Room for the next records is laid out (zeros, synced) when the file is created, so that a disk that
 * fills up later cannot stop an unwinding, and a sync has no metadata to write.
 *
 * The process that has it open holds an exclusive lock (of the open file, so that it ends with the
 * process whatever happens): a held journal means a living holder. */
#ifndef VFMIG_ENGINE_JOURNAL_H
#define VFMIG_ENGINE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/handover.h"
#include "vfmig/error.h"

#define VFMIG_JOURNAL_TEXT_BYTES 200u

struct vfmig_journal;

/* One record, as read. */
struct vfmig_journal_entry {
    uint8_t id[VFMIG_HO_ID_BYTES];
    uint32_t epoch;
    uint8_t role;     /* enum vfmig_ho_role */
    uint8_t record;   /* enum vfmig_ho_record; NONE: a process opened the journal */
    uint8_t memory;   /* opened: the process had the guest's memory or was to receive it */
    uint8_t stands;   /* RUNNING: the guest is here for good, and its start has failed */
    uint32_t pid;     /* writer */
    uint64_t time_ns; /* CLOCK_REALTIME */
    char text[VFMIG_JOURNAL_TEXT_BYTES]; /* opened: path of the control socket, or ""; else a reason */
};

/* Everything a reader learns from one file. */
struct vfmig_journal_summary {
    struct vfmig_journal_entry last;   /* newest handover record; record NONE if there is none */
    struct vfmig_journal_entry opened; /* newest opening; pid 0 if there is none */
    uint32_t count;                    /* whole records */
    bool torn;                         /* an unfinished record at the end was ignored */
    bool held;                         /* a living process has it open */
    int damage;                        /* 0, or -EBADMSG/-ENOTSUP/-errno: unreadable; see error */
    struct vfmig_error error;
    char path[512];
};

/* Opens the journal of a migration, makes directory (one level) and file if needed, locks it, and
 * puts on record that this process holds it. memory: this process has the guest's memory, or waits
 * for it. control: path of its control socket, may be NULL.
 * Returns 0; -E2BIG when it would be one journal too many (without memory half as many are let in, so that
 * whoever asks for what nobody knows cannot use up the room of migrations), -EBUSY when another process
 * holds it, -EBADMSG when it is damaged (a torn last record is not damage, an altered one is), -ENOTSUP for
 * a newer format, -ENOSPC, or another errno of the file system. */
int vfmig_journal_open(const char *dir, const uint8_t *id, enum vfmig_ho_role role, bool memory,
                       const char *control, struct vfmig_journal **ret_journal,
                       struct vfmig_error *reterr);
void vfmig_journal_close(struct vfmig_journal *journal); /* NULL is fine */

/* Newest handover record; record NONE and epoch 0 if there is none. Valid until close. */
const struct vfmig_journal_entry *vfmig_journal_last(const struct vfmig_journal *journal);

/* Writes one record and returns when it is durable; ret_sync_ns (may be NULL) says how long writing
 * and syncing took. On failure the record may or may not be on disk; the next append overwrites it.
 * READY and GRANT-SENT are refused when the file is not in its place any more. */
int vfmig_journal_append(struct vfmig_journal *journal, uint32_t epoch, enum vfmig_ho_record record,
                         const char *text, uint64_t *ret_sync_ns, struct vfmig_error *reterr);

/* How long a record would take now: the first free one is written as it is, zero, and synced. Like
 * append it belongs to the thread that owns the journal. */
int vfmig_journal_probe(struct vfmig_journal *journal, uint64_t *ret_sync_ns,
                        struct vfmig_error *reterr);
/* Puts on record once more that this process holds the journal, now for the attempt of this epoch. */
int vfmig_journal_note(struct vfmig_journal *journal, uint32_t epoch, const char *control,
                       struct vfmig_error *reterr);
/* Writes RUNNING, which is the newest record, once more: the guest stands still because of what text says,
 * or has been started after all. Who has the guest stays the same. */
int vfmig_journal_note_standing(struct vfmig_journal *journal, bool stands, const char *text,
                                struct vfmig_error *reterr);
/* Absolute; valid until close. */
const char *vfmig_journal_name(const struct vfmig_journal *journal);

/* Reads without locking. Returns 0 even for a damaged file: the summary says so. */
int vfmig_journal_read(const char *path, struct vfmig_journal_summary *ret_summary,
                       struct vfmig_error *reterr);

/* Every journal of a directory, sorted by name; the caller frees the array. A directory that does
 * not exist has none. Returns 0, -E2BIG above VFMIG_MAX_JOURNALS, or an errno. */
int vfmig_journal_list(const char *dir, struct vfmig_journal_summary **ret_list, size_t *ret_count,
                       struct vfmig_error *reterr);

/* How many journals a directory has, whatever is in them. */
uint32_t vfmig_journal_count(const char *dir);

/* Path of a journal in its directory; -ENAMETOOLONG when it does not fit. */
int vfmig_journal_path(const char *dir, const uint8_t *id, enum vfmig_ho_role role, char *ret_path,
                       size_t size, struct vfmig_error *reterr);

void vfmig_ho_id_format(const uint8_t *id, char ret_text[2 * VFMIG_HO_ID_BYTES + 1]);
int vfmig_ho_id_parse(const char *text, uint8_t *ret_id); /* 0 or -EINVAL */

#endif
