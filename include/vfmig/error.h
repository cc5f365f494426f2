/* SPDX-License-Identifier: BSD-3-Clause */
/* Errors: who failed, where, and one clear sentence. */
#ifndef VFMIG_ERROR_H
#define VFMIG_ERROR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Who failed. It decides what a caller does next: fix the call, give up the peer, reset the
 * device, look at the host, or distrust the stream. */
enum vfmig_origin {
    VFMIG_ORIGIN_NONE = 0,
    VFMIG_ORIGIN_LOCAL,  /* this process: wrong argument, limit, invariant, cancelled by the user */
    VFMIG_ORIGIN_PEER,   /* the other end of a migration or of a vfio-user socket */
    VFMIG_ORIGIN_DEVICE, /* the device: a refused state, bad data, a deadline missed */
    VFMIG_ORIGIN_KERNEL, /* a system call: no memory, no space, no such file */
    VFMIG_ORIGIN_STREAM, /* the bytes of a migration stream: CRC, order, truncation */
    VFMIG_ORIGIN_COUNT
};

/* Filled by a failing function when its reterr argument is not NULL; untouched on success.
 * Set once, where the failure is found; callers only prefix context. */
struct vfmig_error {
    int code;                 /* negative errno, the same value the function returned */
    enum vfmig_origin origin; /* who failed */
    uint32_t state;           /* state of the object that failed, 0 when it has none */
    char text[232];           /* one sentence, no newline, always terminated */
};

/* Fills *err (NULL is fine) and returns code, so that `return vfmig_error_set(...)` reads well.
 * code must be a negative errno. The text is cut at the size of the field. */
int vfmig_error_set(struct vfmig_error *err, int code, enum vfmig_origin origin, uint32_t state,
                    const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Puts "context: " in front of the text; code and origin stay. Returns err->code (0 for NULL). */
int vfmig_error_prefix(struct vfmig_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* "local", "peer", "device", "kernel", "stream"; "none" for anything else. */
const char *vfmig_origin_name(enum vfmig_origin origin);

#ifdef __cplusplus
}
#endif
#endif
