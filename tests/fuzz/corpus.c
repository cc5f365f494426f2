/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a target without libFuzzer:
 *
 *     fuzz_NAME_test CORPUS RUNS     every file of the folder, then RUNS changed ones, from a fixed
 * seed fuzz_NAME_test FILE            one input */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "target.h"
#include "world.h"

#define FILES_MAX 4096u

static const char *const reach_names[REACH_COUNT] = {
    "replies",      "refusals",     "closed by the server",
    "maps",         "unmaps",       "bitmaps",
    "log reports",  "DMA messages", "answers",
    "twin sockets", "descriptors",  "frames",
    "loads",        "saves",        "errors",
    "guest writes",
    "control sessions",
    "sessions ended",
    "control replies",
    "lists",
    "freezes",
    "windows",
    "data in windows",
};

struct input {
    char *name;
    uint8_t *data;
    size_t size;
};

static struct input inputs[FILES_MAX];
static uint32_t input_count;
static uint8_t current[INPUT_MAX];
static size_t current_size;

/* An input that fails is left in the working directory, as libFuzzer does. */
static void keep_input(void)
{
    FILE *file = fopen("crash-input", "wb");

    if (!file)
        return;
    fwrite(current, 1, current_size, file);
    fclose(file);
    fprintf(stderr, "the input is in crash-input\n");
}

void __asan_on_error(void);
void __asan_on_error(void)
{
    keep_input();
}

static void on_abort(int number)
{
    keep_input();
}

static void on_alarm(int number)
{
    keep_input();
    _exit(1);
}

static void run(const uint8_t *data, size_t size, uint64_t *reach)
{
    memmove(current, data, size);
    current_size = size;
    alarm(60); /* a server that waits for ever */
    target_run(current, size, reach);
    alarm(0);
}

/* One input is one run: the second time everything happens again. */
static void run_twice(const struct input *input, uint64_t *reach)
{
    uint64_t once[REACH_COUNT] = {0}, again[REACH_COUNT] = {0};

    run(input->data, input->size, once);
    run(input->data, input->size, again);
    CHECK(!memcmp(once, again, sizeof(once)), "%s: another run than before", input->name);
    for (unsigned i = 0; i < REACH_COUNT; i++)
        reach[i] += once[i];
}

static void read_input(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct input *input = &inputs[input_count];

    CHECK(file && input_count < FILES_MAX, "cannot read %s", path);
    input->name = strdup(path);
    input->data = malloc(INPUT_MAX + 1u);
    input->size = fread(input->data, 1, INPUT_MAX + 1u, file);
    CHECK(input->size <= INPUT_MAX, "%s is too long", path);
    fclose(file);
    input_count++;
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of their names: the order of a folder is not the same everywhere. */
static void read_folder(const char *path)
{
    static char *names[FILES_MAX];
    DIR *dir = opendir(path);
    uint32_t count = 0;

    CHECK(dir, "cannot read %s", path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char name[4096];
        if (entry->d_name[0] == '.' || count == FILES_MAX)
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        names[count++] = strdup(name);
    }
    closedir(dir);
    qsort(names, count, sizeof(names[0]), compare);
    for (uint32_t i = 0; i < count; i++) {
        read_input(names[i]);
        free(names[i]);
    }
}

static void mutate(uint64_t runs, uint64_t *reach)
{
    static uint8_t data[INPUT_MAX];

    for (uint64_t i = 0; i < runs; i++) {
        const struct input *from = &inputs[i % input_count], *other = &inputs[i * 7 % input_count];
        size_t size = from->size;
        memcpy(data, from->data, size);
        if (i % 5 == 4)
            size = program_cross(from->data, from->size, other->data, other->size, data,
                                 sizeof(data), i);
        for (uint64_t n = 0; n <= i % 3; n++)
            size = program_mutate(data, size, sizeof(data), i * 3 + n, &fuzz_target.weights);
        run(data, size, reach);
    }
}

int main(int argc, char **argv)
{
    uint64_t reach[REACH_COUNT] = {0};
    struct stat st;
    int missing = 0;

    if (argc < 2 || stat(argv[1], &st) < 0) {
        fprintf(stderr, "usage: %s CORPUS RUNS | FILE\n", argv[0]);
        return 2;
    }
    signal(SIGABRT, on_abort);
    signal(SIGALRM, on_alarm);
    bool folder = S_ISDIR(st.st_mode);
    if (folder)
        read_folder(argv[1]);
    else
        read_input(argv[1]);
    CHECK(input_count > 0, "no input in %s", argv[1]);
    for (uint32_t i = 0; i < input_count; i++)
        run_twice(&inputs[i], reach);
    printf("%s: %u inputs\n", fuzz_target.name, input_count);
    for (unsigned i = 0; i < REACH_COUNT; i++) {
        bool blind = folder && (fuzz_target.must_reach >> i & 1) && !reach[i];
        printf("%10llu %s%s\n", (unsigned long long)reach[i], reach_names[i],
               blind ? ": not reached by the corpus" : "");
        missing += blind;
    }
    if (folder && argc > 2) {
        mutate(strtoull(argv[2], NULL, 0), reach);
        printf("and %s more, %llu replies\n", argv[2], (unsigned long long)reach[REACH_REPLIES]);
    }
    for (uint32_t i = 0; i < input_count; i++) {
        free(inputs[i].name);
        free(inputs[i].data);
    }
    return missing ? 1 : 0;
}
