/* SPDX-License-Identifier: BSD-3-Clause */
/* A file with a saved guest: its life on disk, and who may restore it (docs/handover.md, "Files").
 * The log at its head (stream/savefile.h) is changed under an exclusive lock of the open file, which
 * ends with the process; every record of it is synced before it counts. */
#ifndef VFMIG_ENGINE_SAVE_FILE_H
#define VFMIG_ENGINE_SAVE_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "stream/savefile.h"
#include "vfmig/error.h"

struct vfmig_save_file;

/* --- Source --- */

/* Makes PATH.partial, locked, with its log begun; the descriptor stands where the stream begins. A
 * partial file that nobody holds is replaced. -EEXIST when PATH is there: it may hold a guest. */
int vfmig_save_create(const char *path, const uint8_t *id, uint32_t epoch, const char *journal,
                      struct vfmig_save_file **ret_file, struct vfmig_error *reterr);
/* Stays the file's. */
int vfmig_save_fd(const struct vfmig_save_file *file);
const char *vfmig_save_path(const struct vfmig_save_file *file); /* absolute */

/* Syncs everything, gives the file its name, and puts COMPLETE on record; give_up is looked at last
 * of all before that (-ECANCELED). The lock is kept, so that nobody restores it before the source's
 * journal says SAVED. A failure may leave COMPLETE on record: discard. */
int vfmig_save_complete(struct vfmig_save_file *file, const atomic_bool *give_up,
                        struct vfmig_error *reterr);
/* SAVED is on record: whoever is first may restore it. */
void vfmig_save_release(struct vfmig_save_file *file);
/* Makes the file void for good and removes it. -EBUSY, naming who, when it is claimed. 0 also when
 * the file has been removed from its file system. */
int vfmig_save_discard(struct vfmig_save_file *file, struct vfmig_error *reterr);

/* --- Destination, and an operator --- */

/* Opens a file and reads its log. Without claim it is only read. */
int vfmig_save_open(const char *path, bool claim, struct vfmig_save_file **ret_file,
                    struct vfmig_error *reterr);
const struct vfmig_save_log *vfmig_save_log(const struct vfmig_save_file *file);

/* 0 when the file is whole; clone: whatever else its log says. */
int vfmig_save_check(struct vfmig_save_file *file, bool clone, struct vfmig_error *reterr);
/* Claims it in two steps, once, and for good unless it is given back. The first locks it and says
 * which number the claim will have, so that this can be put on record before; -EBUSY, naming who, when
 * somebody else has claimed it. A claim that its own journal refuses is none. The second writes it;
 * journal: where what comes of it is put on record. */
int vfmig_save_claim_begin(struct vfmig_save_file *file, uint32_t *ret_number,
                           struct vfmig_error *reterr);
int vfmig_save_claim(struct vfmig_save_file *file, const char *journal, struct vfmig_error *reterr);
bool vfmig_save_is_claimed(const struct vfmig_save_file *file); /* by this process */
/* REFUSED is on record: somebody else may claim it. */
int vfmig_save_give_back(struct vfmig_save_file *file, struct vfmig_error *reterr);

/* Removes it if it was never complete; it may still be written, for nobody. */
void vfmig_save_abandon(struct vfmig_save_file *file);
/* Closes it, and removes it if it was never complete. NULL is fine. */
void vfmig_save_close(struct vfmig_save_file *file);

#endif
