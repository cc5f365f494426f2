/* SPDX-License-Identifier: BSD-3-Clause */
/* The file format of a journal, and what is done with it wherever its bytes are: in a file
 * (journal.c), or on the simulator's disk. No system calls here. */
#ifndef VFMIG_ENGINE_JOURNAL_FILE_H
#define VFMIG_ENGINE_JOURNAL_FILE_H

#include "engine/journal.h"

#define VFMIG_JOURNAL_MAGIC        0x4c4a4656u /* "VFJL" */
#define VFMIG_JOURNAL_VERSION      1u
#define VFMIG_JOURNAL_RECORD_BYTES 256u

/* On disk, little endian; crc is CRC-32C of everything before it. */
struct vfmig_journal_raw {
    uint32_t magic;
    uint16_t version;
    uint8_t role;
    uint8_t record;
    uint8_t id[VFMIG_HO_ID_BYTES];
    uint32_t epoch;
    uint32_t number; /* place in the file, from 0 */
    uint64_t time_ns;
    uint32_t pid;
    uint8_t memory;
    uint8_t stands;
    uint8_t reserved[6];
    char text[VFMIG_JOURNAL_TEXT_BYTES];
    uint32_t crc;
};
_Static_assert(sizeof(struct vfmig_journal_raw) == VFMIG_JOURNAL_RECORD_BYTES, "one record");

/* Like pread, pwrite and fsync, with a negative errno: less than asked for may be read or written.
 */
struct vfmig_journal_store {
    int64_t (*read)(void *opaque, void *data, size_t size, uint64_t offset);
    int64_t (*write)(void *opaque, const void *data, size_t size, uint64_t offset);
    int (*sync)(void *opaque, bool all); /* all: the file's size, too */
    void *opaque;
};

struct vfmig_journal_log {
    struct vfmig_journal_store store;
    enum vfmig_ho_role role;
    uint8_t id[VFMIG_HO_ID_BYTES];
    uint32_t count; /* durable records; the next goes behind them */
    uint32_t room;  /* records that there is space for */
    bool left;      /* a failed append may have left something behind them */
    struct vfmig_journal_entry last;
    uint32_t opened_epoch; /* of the newest opening: an attempt of which nothing may be on record */
    char path[512];
};

void vfmig_journal_encode(const struct vfmig_journal_entry *entry, uint32_t number,
                          uint8_t *ret_raw);
/* Says so in the summary; 0. */
int vfmig_journal_damaged(struct vfmig_journal_summary *summary, int code, uint32_t number,
                          const char *how);
int vfmig_journal_scan(const struct vfmig_journal_store *store, const char *path,
                       struct vfmig_journal_summary *ret_summary, struct vfmig_error *reterr);

/* role, id, path and store are set. Reads what is there. */
int vfmig_journal_log_take_up(struct vfmig_journal_log *log, struct vfmig_error *reterr);
/* Puts an opening on record. pid, time_ns, memory and text are the caller's, the rest is filled in.
 */
int vfmig_journal_log_opened(struct vfmig_journal_log *log, struct vfmig_journal_entry *entry,
                             struct vfmig_error *reterr);
/* Returns when the record is durable; role and id are filled in. */
int vfmig_journal_log_append(struct vfmig_journal_log *log, struct vfmig_journal_entry *entry,
                             struct vfmig_error *reterr);
/* Writes and syncs the first free record as it is. */
int vfmig_journal_log_probe(struct vfmig_journal_log *log, struct vfmig_error *reterr);

#endif
