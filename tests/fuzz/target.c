/* SPDX-License-Identifier: BSD-3-Clause */
/* What libFuzzer calls. */
#include "target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max, unsigned seed);

void target_run(const uint8_t *data, size_t size, uint64_t reach[REACH_COUNT])
{
    struct program program;

    if (size > INPUT_MAX)
        return;
    program_parse(data, size, &program);
    if (fuzz_target.extra)
        fuzz_target.extra(&program);
    rig_run(&program, fuzz_target.variants, reach);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t reach[REACH_COUNT] = {0};

    target_run(data, size, reach);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    return program_mutate(data, size, max, seed, &fuzz_target.weights);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max, unsigned seed)
{
    return program_cross(a, a_size, b, b_size, out, max, seed);
}
