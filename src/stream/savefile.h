/* SPDX-License-Identifier: BSD-3-Clause */
/* The head of a saved guest's file, pure: docs/stream-format.md, "A file".
 *
 * A file begins with a log of VFMIG_SAVE_RECORDS records of one disk sector each, written one after
 * the other into space that is laid out when the file is made; the stream of channel 0 follows. The
 * log goes wherever the file goes: who has claimed it does not depend on its name. */
#ifndef VFMIG_STREAM_SAVEFILE_H
#define VFMIG_STREAM_SAVEFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bounds.h"
#include "vfmig/error.h"

#define VFMIG_SAVE_MAGIC        UINT64_C(0x45564153474d4656) /* "VFMGSAVE" */
#define VFMIG_SAVE_VERSION      1u
#define VFMIG_SAVE_RECORD_BYTES 512u
#define VFMIG_SAVE_RECORDS      VFMIG_MAX_SAVE_RECORDS
#define VFMIG_SAVE_HEAD_BYTES   (VFMIG_SAVE_RECORD_BYTES * VFMIG_SAVE_RECORDS)
#define VFMIG_SAVE_ID_BYTES     16u
#define VFMIG_SAVE_HOST_BYTES   64u
#define VFMIG_SAVE_PATH_BYTES   388u

/* The numbers are on disk; never renumber. */
enum vfmig_save_kind {
    VFMIG_SAVE_NONE = 0,
    VFMIG_SAVE_BEGUN = 1,      /* the first one: whose guest it is */
    VFMIG_SAVE_COMPLETE = 2,   /* everything is synced: this moves the guest */
    VFMIG_SAVE_CLAIMED = 3,    /* somebody restores, or has restored it */
    VFMIG_SAVE_GIVEN_BACK = 4, /* the last claim came to nothing, on record in its journal */
    VFMIG_SAVE_DISCARDED = 5,  /* the source has the guest again: never restore it */
    VFMIG_SAVE_KINDS
};

struct vfmig_save_entry {
    uint8_t kind;
    uint8_t id[VFMIG_SAVE_ID_BYTES]; /* of the migration */
    uint32_t epoch;   /* BEGUN: the source's attempt; CLAIMED, GIVEN_BACK: number of the claim */
    uint32_t pid;
    uint64_t time_ns; /* CLOCK_REALTIME */
    uint64_t length;  /* COMPLETE: bytes of the whole file */
    char host[VFMIG_SAVE_HOST_BYTES];
    char journal[VFMIG_SAVE_PATH_BYTES]; /* of whoever wrote this */
};

/* All of a log. */
struct vfmig_save_log {
    struct vfmig_save_entry begun, complete, last; /* kind NONE: there is none */
    struct vfmig_save_entry claim; /* the one in force; kind NONE: free */
    uint32_t count;  /* whole records: where the next one goes */
    uint32_t claims; /* so far, given back or not: the last one's number */
    bool discarded;
    bool torn; /* the last record is unfinished or damaged: it may have been anything */
};

void vfmig_save_entry_encode(const struct vfmig_save_entry *entry, uint32_t number,
                             uint8_t out[VFMIG_SAVE_RECORD_BYTES]);

/* 1: a record, 0: nothing but zeros, -EBADMSG, -EPROTONOSUPPORT (a newer version). Texts are
 * terminated and made printable. */
int vfmig_save_entry_decode(const uint8_t in[VFMIG_SAVE_RECORD_BYTES], uint32_t number,
                            struct vfmig_save_entry *ret_entry, struct vfmig_error *reterr);

/* -EBADMSG when a record other than the last is damaged, or one comes where it has no meaning;
 * -EPROTONOSUPPORT; -EMEDIUMTYPE when this is no file of ours at all. Origin STREAM. */
int vfmig_save_log_decode(const uint8_t in[VFMIG_SAVE_HEAD_BYTES], struct vfmig_save_log *ret_log,
                          struct vfmig_error *reterr);

/* "claimed" ...; "unknown" for anything else. */
const char *vfmig_save_kind_name(unsigned kind);

#endif
