/* SPDX-License-Identifier: BSD-3-Clause */
/* The liar's half of a connection: says what is no record, or one that is not due. */
#ifndef TESTS_ENGINE_LIAR_H
#define TESTS_ENGINE_LIAR_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "engine/channel.h"
#include "engine/channel_private.h"
#include "engine/engine.h"
#include "doorway.h"
#include "io/sock.h"
#include "rig.h"

#define FULL   (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define SECOND UINT64_C(1000000000)
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static const uint32_t features[] = {FULL, FULL};
static struct rig rig;

struct lie {
    void (*tell)(void);
    const char *why; /* part of the sentence that it is answered with */
};

static struct vfmig_channel *liar[2];

static inline void say(unsigned channel, enum vfmig_record_tag tag, const void *data, size_t size)
{
    /* Whoever is lied to may have hung up. */
    (void)vfmig_channel_send(liar[channel], tag, data, size, NULL);
}

/* As many bytes as the table would not let through, or a tag that it does not have. */
static inline void say_raw(unsigned channel, enum vfmig_record_tag tag, const void *data, uint32_t size)
{
    struct iovec iov[2] = {{0}, {(void *)(uintptr_t)data, size}};

    (void)vfmig_channel_send_record(liar[channel], tag, iov, size ? 2 : 1, size, vfmig_crc32c(0, data, size), NULL);
}

static inline void say_words(unsigned channel, enum vfmig_record_tag tag, const uint32_t *words, uint32_t count)
{
    uint8_t out[256];

    for (uint32_t i = 0; i < count; i++)
        vfmig_le32_put(out + 4 * i, words[i]);
    say_raw(channel, tag, out, 4 * count);
}

#define WORDS(channel, tag, ...)                                                                   \
    say_words(channel, VFMIG_RECORD_##tag, (const uint32_t[]){__VA_ARGS__},                        \
              COUNT(((const uint32_t[]){__VA_ARGS__})))

static inline void hang_up(void)
{
    for (unsigned i = 0; i < 2; i++) {
        vfmig_channel_free(liar[i]);
        liar[i] = NULL;
    }
}

#endif
