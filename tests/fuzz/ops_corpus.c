/* SPDX-License-Identifier: BSD-3-Clause */
/* Without libFuzzer: CORPUS RUNS runs every file of the folder, then RUNS changed ones, from a fixed seed.
 * Fails when none reached what the target is for. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

#define FILES_MAX 256u

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static uint8_t inputs[FILES_MAX][OPS_INPUT];
static size_t sizes[FILES_MAX];

static size_t load(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    size_t count = 0;

    while (dir && count < FILES_MAX && (entry = readdir(dir))) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!file)
            continue;
        sizes[count] = fread(inputs[count], 1, OPS_INPUT, file);
        count++;
        fclose(file);
    }
    if (dir)
        closedir(dir);
    return count;
}

static unsigned run(const uint8_t *data, size_t size)
{
    struct op ops[OPS_MAX];

    return ops_run(ops, ops_parse(data, size, ops));
}

int main(int argc, char **argv)
{
    size_t count = argc == 3 ? load(argv[1]) : 0;
    unsigned reached = 0, seed = 1, runs = argc == 3 ? (unsigned)atoi(argv[2]) : 0;
    static uint8_t data[OPS_INPUT];

    if (!count) {
        fprintf(stderr, "usage: CORPUS RUNS; there is no input\n");
        return 2;
    }
    for (size_t i = 0; i < count; i++)
        reached += run(inputs[i], sizes[i]);
    printf("%zu inputs, %u of them to the end of what the target is for\n", count, reached);
    for (unsigned i = 0; i < runs; i++) {
        size_t from = i % count, size = sizes[from];
        memcpy(data, inputs[from], size);
        for (unsigned change = 0; change <= i % 4; change++)
            size = LLVMFuzzerCustomMutator(data, size, OPS_INPUT, seed++);
        (void)run(data, size);
    }
    return reached ? 0 : 1;
}
