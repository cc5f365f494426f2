/* SPDX-License-Identifier: BSD-3-Clause */
/* A step as a line: "region-write 0 32 8 hex 0011223344556677 = 8". */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>

#include "check/rule.h"

static const struct {
    const char *name;
    int numbers;
    bool sends, gets;
} kinds[] = {
#define STEP(id, name, numbers, sends, gets, help) [CHECK_STEP_##id] = {name, numbers, sends, gets},
#include "check/steps.def"
};

const char *check_step_name(enum check_step_kind kind)
{
    return kind < CHECK_STEP_COUNT ? kinds[kind].name : "unknown";
}

/* Bytes in hexadecimal, runs of one value as "XX*COUNT,". */
static void print_bytes(FILE *out, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size;) {
        size_t run = 1;
        while (i + run < size && bytes[i + run] == bytes[i])
            run++;
        if (run >= 8) {
            fprintf(out, "%02x*%zu,", bytes[i], run);
        } else {
            run = 1;
            fprintf(out, "%02x", bytes[i]);
        }
        i += run;
    }
}

void check_step_print(FILE *out, const struct check_step *step, bool with_outcome)
{
    int numbers = kinds[step->kind].numbers;

    fputs(kinds[step->kind].name, out);
    for (int i = 0; i < numbers; i++)
        fprintf(out, step->arg[i] < 4096 ? " %" PRIu64 : " 0x%" PRIx64, step->arg[i]);
    if (kinds[step->kind].sends && step->arg[numbers - 1]) {
        fputs(" hex ", out);
        print_bytes(out, step->data, step->arg[numbers - 1]);
    }
    if (with_outcome) {
        fprintf(out, " = %" PRId64, step->result);
        if (step->kind == CHECK_STEP_STATE_GET && step->result >= 0)
            fprintf(out, " %" PRIu64, step->value);
    }
    fputc('\n', out);
}

static int parse_bytes(const char **at, uint8_t *data, size_t size)
{
    const char *p = *at;
    size_t n = 0;

    while (isxdigit((unsigned char)p[0]) && isxdigit((unsigned char)p[1])) {
        char pair[3] = {p[0], p[1], 0};
        unsigned long value = strtoul(pair, NULL, 16), run = 1;
        p += 2;
        if (*p == '*') {
            char *end;
            run = strtoul(p + 1, &end, 10);
            if (*end != ',')
                return -EINVAL;
            p = end + 1;
        }
        if (run > size - n)
            return -EINVAL;
        memset(data + n, (int)value, run);
        n += run;
    }
    *at = p;
    return (int)n;
}

static enum check_step_kind kind_of(const char *word, size_t size)
{
    for (unsigned i = 0; i < CHECK_STEP_COUNT; i++)
        if (strlen(kinds[i].name) == size && !strncmp(kinds[i].name, word, size))
            return (enum check_step_kind)i;
    return CHECK_STEP_COUNT;
}

int check_step_parse(const char *line, struct check_step *step, uint8_t *data, size_t size)
{
    size_t word = strcspn(line, " \n");

    *step = (struct check_step){.kind = kind_of(line, word), .data = data};
    if (step->kind == CHECK_STEP_COUNT)
        return -EINVAL;
    line += word;
    int numbers = kinds[step->kind].numbers;
    for (int i = 0; i < numbers; i++) {
        char *end;
        errno = 0;
        step->arg[i] = strtoull(line, &end, 0);
        if (end == line || errno)
            return -EINVAL;
        line = end;
    }
    if (kinds[step->kind].sends && step->arg[numbers - 1]) {
        if (strncmp(line, " hex ", 5))
            return -EINVAL;
        line += 5;
        int n = parse_bytes(&line, data, size);
        if (n < 0 || (uint64_t)n != step->arg[numbers - 1])
            return -EINVAL;
    }
    char *end = NULL;
    step->result = 0;
    step->value = 0;
    if (!strncmp(line, " = ", 3)) {
        step->result = strtoll(line + 3, &end, 10);
        if (step->kind == CHECK_STEP_STATE_GET && step->result >= 0)
            step->value = strtoull(end, &end, 10);
        line = end;
    }
    return *line == '\n' || *line == 0 ? 0 : -EINVAL;
}
