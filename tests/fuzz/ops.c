/* SPDX-License-Identifier: BSD-3-Clause */
/* What libFuzzer calls of the targets without devices, and their mutator. */
#include "ops.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

size_t ops_parse(const uint8_t *data, size_t size, struct op ret_ops[OPS_MAX])
{
    size_t count = 0, at = 0;

    while (count < OPS_MAX && size - at >= OP_HEAD) {
        struct op *op = &ret_ops[count++];
        size_t left = size - at - OP_HEAD, bytes = data[at + 2] | (size_t)data[at + 3] << 8;
        *op = (struct op){.kind = data[at],
                          .how = data[at + 1],
                          .size = (uint16_t)(bytes < left ? bytes : left),
                          .data = data + at + OP_HEAD};
        at += OP_HEAD + op->size;
    }
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct op ops[OPS_MAX];

    (void)ops_run(ops, ops_parse(data, size, ops));
    return 0;
}

static uint32_t next(unsigned *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static size_t put(uint8_t *out, size_t at, size_t max, const struct op *op)
{
    if (at + OP_HEAD + op->size > max)
        return at;
    out[at] = op->kind;
    out[at + 1] = op->how;
    out[at + 2] = (uint8_t)op->size;
    out[at + 3] = (uint8_t)(op->size >> 8);
    if (op->size)
        memcpy(out + at + OP_HEAD, op->data, op->size);
    return at + OP_HEAD + op->size;
}

/* One of: drop, double, swap, insert, another kind, another way, other bytes, another size. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    static const uint8_t edges[] = {0, 1, 2, 0x7f, 0x80, 0xfe, 0xff};
    static uint8_t out[OPS_INPUT], copy[OPS_INPUT], fresh[256];
    struct op ops[OPS_MAX], made;

    size = size < sizeof(copy) ? size : sizeof(copy);
    max = max < sizeof(out) ? max : sizeof(out);
    memcpy(copy, data, size);
    size_t count = ops_parse(copy, size, ops), at = 0;
    size_t which = count ? next(&seed) % count : 0;
    unsigned change = next(&seed) % 8;
    for (size_t i = 0; i < sizeof(fresh); i++)
        fresh[i] = next(&seed) % 3 ? 0 : (uint8_t)next(&seed);
    made = (struct op){.kind = (uint8_t)next(&seed), .how = next(&seed) % 4 ? 0 : (uint8_t)next(&seed),
                       .size = (uint16_t)(next(&seed) % sizeof(fresh)), .data = fresh};
    if (!count || change == 3)
        at = put(out, at, max, &made);
    for (size_t i = 0; i < count; i++) {
        struct op op = ops[i];
        bool here = i == which;
        if (here && change == 0 && count > 1)
            continue;
        if (here && change == 2)
            op = ops[count - 1 - i];
        if (here && change == 4)
            op.kind = made.kind;
        if (here && change == 5)
            op.how ^= (uint8_t)(1u << next(&seed) % 8);
        if (here && change == 6 && op.size) {
            size_t byte = (size_t)(op.data - copy) + next(&seed) % op.size;
            copy[byte] = next(&seed) % 2 ? edges[next(&seed) % sizeof(edges)] : (uint8_t)next(&seed);
        }
        if (here && change == 7)
            op.size = (uint16_t)(next(&seed) % (op.size + 1u));
        at = put(out, at, max, &op);
        if (here && change == 1)
            at = put(out, at, max, &op);
    }
    memcpy(data, out, at);
    return at;
}
