/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the destination share. */
#ifndef VFMIG_ENGINE_DESTINATION_H
#define VFMIG_ENGINE_DESTINATION_H

#include "engine/door.h"
#include "engine/engine.h"

/* What a destination holds at most, whatever it is promised, beside guest memory and its bitmaps: what waits to be
 * loaded, segments that are not whole, the machine's state and the identity, what those have said who are not let in
 * yet, and for each channel a record, what it unpacks to, and a segment on its way from the one to the other. */
#define DESTINATION_HOLDS(channels)                                                                      \
    (VFMIG_MAX_BACKLOG + VFMIG_MAX_UNFINISHED + 4u * VFMIG_MAX_VMSTATE + 2u * VFMIG_MAX_IDENTITY +       \
     VFMIG_MAX_GREETINGS * VFMIG_MAX_GREETING_BYTES +                                                    \
     (channels) * (2u * VFMIG_MAX_MEMORY_RECORD + 2u * VFMIG_MAX_DEVICE_SEGMENT))

struct vfmig_destination {
    struct engine e;
    int listener;
    int wake; /* eventfd: quit was set, or the arrival was taken */
    uint16_t port;
    const struct vfmig_tls_creds *tls; /* the engine's, where TLS belongs */
    bool listening; /* threads were started */
    bool accepting; /* acceptor is one of them */
    bool asked;     /* whoever is linked only asks for an outcome */
    bool ended;     /* for the waiters: completed, paused or cancelled; under status_lock */
    atomic_bool quit;

    pthread_t acceptor;
    struct door *door;   /* acceptor only */
    uint64_t told_at_ns; /* the last CONNECTION_REFUSED; acceptor only, as is untold */
    uint64_t untold;
    pthread_mutex_t arrival_lock;
    struct arrival *arrival; /* waits for the control thread */
};

/* destination_accept.c */
void *destination_acceptor(void *arg);
void destination_refused(void *destination, const struct vfmig_error *why); /* door_rules */
/* The control thread's: the arrival that waits, if one does. */
struct arrival *destination_let_in(struct vfmig_destination *destination);

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
