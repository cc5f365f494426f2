/* SPDX-License-Identifier: BSD-3-Clause */
/* Inputs of the targets that need no device: operations {kind u8, how u8, bytes u16 le} with their
 * bytes. Any bytes are a program; the mutator keeps the frames. */
#ifndef TESTS_FUZZ_OPS_H
#define TESTS_FUZZ_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OPS_MAX    64u
#define OP_HEAD    4u
#define OPS_INPUT  4096u

struct op {
    uint8_t kind, how;
    uint16_t size;
    const uint8_t *data;
};

/* At most OPS_MAX; the last one may be cut short by the end. */
size_t ops_parse(const uint8_t *data, size_t size, struct op ret_ops[OPS_MAX]);

/* The target: one input; true when it reached what the target is for. */
bool ops_run(const struct op *ops, size_t count);

#endif
