/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfmig/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int vfmig_error_set(struct vfmig_error *err, int code, enum vfmig_origin origin, uint32_t state,
                    const char *format, ...)
{
    if (!err)
        return code;
    err->code = code;
    err->origin = origin;
    err->state = state;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    return code;
}

int vfmig_error_prefix(struct vfmig_error *err, const char *format, ...)
{
    if (!err)
        return 0;
    char text[sizeof(err->text)];
    va_list args;
    va_start(args, format);
    int used = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof(text))
        snprintf(text + used, sizeof(text) - (size_t)used, ": %s", err->text);
    memcpy(err->text, text, sizeof(text));
    return err->code;
}

const char *vfmig_origin_name(enum vfmig_origin origin)
{
    static const char *const names[VFMIG_ORIGIN_COUNT] = {
        [VFMIG_ORIGIN_NONE] = "none",     [VFMIG_ORIGIN_LOCAL] = "local",
        [VFMIG_ORIGIN_PEER] = "peer",     [VFMIG_ORIGIN_DEVICE] = "device",
        [VFMIG_ORIGIN_KERNEL] = "kernel", [VFMIG_ORIGIN_STREAM] = "stream",
    };
    return (unsigned)origin < VFMIG_ORIGIN_COUNT ? names[origin] : names[VFMIG_ORIGIN_NONE];
}
