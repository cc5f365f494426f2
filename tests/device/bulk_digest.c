/* SPDX-License-Identifier: BSD-3-Clause */
/* bulk_digest BLOCKS WRITTEN: the digest that a bulk device of so many blocks must give after so
 * many writes, from the definition in bulk_regs.h alone. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/crc32c.h"
#include "devices/bulk_regs.h"

int main(int argc, char **argv)
{
    uint64_t words[BULK_BLOCK_WORDS], sum = 0;

    if (argc != 3)
        return 2;
    uint64_t blocks = strtoull(argv[1], NULL, 10), written = strtoull(argv[2], NULL, 10);
    if (!blocks)
        return 2;
    uint64_t inverse = bulk_inverse(blocks);
    for (uint64_t block = 0; block < blocks; block++) {
        uint64_t sequence = bulk_sequence(blocks, inverse, block, written);
        for (uint32_t i = 0; i < BULK_BLOCK_WORDS; i++)
            words[i] = bulk_word(block, sequence, i);
        sum = bulk_digest_add(sum, block, vfmig_crc32c(0, words, sizeof(words)));
    }
    printf("%" PRIu64 "\n", sum);
    return 0;
}
