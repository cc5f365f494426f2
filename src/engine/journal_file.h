/* SPDX-License-Identifier: BSD-3-Clause */
/* The file format of a journal, shared by its writer and its readers. */
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
    uint8_t reserved[7];
    char text[VFMIG_JOURNAL_TEXT_BYTES];
    uint32_t crc;
};
_Static_assert(sizeof(struct vfmig_journal_raw) == VFMIG_JOURNAL_RECORD_BYTES, "one record");

void vfmig_journal_encode(const struct vfmig_journal_entry *entry, uint32_t number, uint8_t *ret_raw);
int vfmig_journal_read_fd(int fd, const char *path, struct vfmig_journal_summary *ret_summary,
                          struct vfmig_error *reterr);

#endif
