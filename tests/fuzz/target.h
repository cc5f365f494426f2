/* SPDX-License-Identifier: BSD-3-Clause */
/* A fuzz target: devices, which operations its programs are made of, and what its corpus has to
 * reach. The same target is linked with libFuzzer and with corpus.c. */
#ifndef VFMIG_TESTS_FUZZ_TARGET_H
#define VFMIG_TESTS_FUZZ_TARGET_H

#include "input.h"
#include "rig.h"

struct fuzz_target {
    const char *name;
    struct variant variants[4];
    struct weights weights;
    void (*extra)(const struct program *program); /* beside the run on a device; may be NULL */
    uint32_t must_reach;                          /* bits of enum reach */
};

extern const struct fuzz_target fuzz_target;

/* One input, from beginning to end. */
void target_run(const uint8_t *data, size_t size, uint64_t reach[REACH_COUNT]);

#endif
