/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the destination share. */
#ifndef VFMIG_ENGINE_DESTINATION_H
#define VFMIG_ENGINE_DESTINATION_H

#include "engine/engine.h"

/* What a destination holds at most, whatever it is promised, beside guest memory and its bitmaps: what waits to be
 * loaded, segments that are not whole, the machine's state and the identity, and for each channel a record, what it
 * unpacks to, and a segment on its way from the one to the other. */
#define DESTINATION_HOLDS(channels)                                                                      \
    (VFMIG_MAX_BACKLOG + VFMIG_MAX_UNFINISHED + 4u * VFMIG_MAX_VMSTATE + 2u * VFMIG_MAX_IDENTITY +       \
     (channels) * (2u * VFMIG_MAX_MEMORY_RECORD + 2u * VFMIG_MAX_DEVICE_SEGMENT))

/* A connection that said HELLO and one record more. */
struct arrival {
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    uint32_t count;
    uint8_t id[VFMIG_MIGRATION_ID_BYTES];
    bool identity;          /* text, else msg */
    struct vfmig_buffer text;
    struct vfmig_ho_msg msg;
};

struct vfmig_destination {
    struct engine e;
    int listener;
    int wake; /* eventfd: quit was set */
    uint16_t port;
    const struct vfmig_tls_creds *tls; /* the engine's, where TLS belongs */
    bool listening; /* threads were started */
    bool accepting; /* acceptor is one of them */
    bool ended;     /* for the waiters: completed, paused or cancelled; under status_lock */
    atomic_bool quit;

    pthread_t acceptor;
    uint32_t taken; /* connections of the arrival under way; acceptor only */
    pthread_mutex_t arrival_lock;
    pthread_cond_t arrival_wake;
    struct arrival *arrival; /* waits for the control thread */
};

/* destination_accept.c */
void *destination_acceptor(void *arg);
void arrival_free(struct arrival *arrival); /* closes what was not taken */

/* destination_file.c */
/* After the identity was found to fit and the journal was opened: from here on it is claimed. */
int destination_claim(struct engine *e, struct vfmig_error *reterr);
/* The attempt is over and the guest did not run: what no message gave back is given back. */
void destination_unclaim(struct engine *e);
/* What a file must have brought when it ends; 0 or -ENODATA. */
int destination_file_complete(struct engine *e, struct vfmig_error *reterr);

/* standing.c: puts on record that the guest, which is here for good, could not be started, or that it was
 * started after all. */
void destination_standing(struct engine *e, bool stands);

/* destination.c */
void *destination_main(void *arg);

/* destination_accept.c */
/* The first record says what the connection is for. */
int arrival_read(struct arrival *arrival, struct vfmig_error *reterr);

/* handles.c: the device's data is loaded, Z is next to be left. */
int destination_translate(struct engine *e, struct device_worker *dev, struct vfmig_error *reterr);

/* destination_works.c */
int destination_do_work(struct engine *e, uint32_t work, struct vfmig_error *reterr);
/* The link is gone: devices wait for no more data. */
void destination_cut_data(struct engine *e);
int destination_do_data(struct engine *e, struct device_worker *dev, bool final,
                        struct vfmig_error *reterr);
int destination_on_record(void *user, const struct vfmig_record *record, struct vfmig_error *reterr);
/* Of a link that only asks for the outcome: nothing of an attempt is there to take data. */
int destination_on_question(void *user, const struct vfmig_record *record,
                            struct vfmig_error *reterr);

#endif
