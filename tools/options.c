/* SPDX-License-Identifier: BSD-3-Clause */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int tool_fail(const struct tool_usage *usage, enum tool_exit code, const char *format, ...)
{
    va_list args;

    fprintf(stderr, "vfmig %s: ", usage->command);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return code;
}

int tool_parse_number(const char *text, uint64_t *ret_number)
{
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    /* A leading zero means decimal too: nobody types octal sizes on purpose. */
    int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
    errno = 0;
    uint64_t number = strtoull(text, &end, base);
    if (errno)
        return -ERANGE;
    if (*end)
        return -EINVAL;
    *ret_number = number;
    return 0;
}

int tool_parse_size(const char *text, uint64_t *ret_bytes)
{
    static const char suffixes[] = "KMGT";
    size_t length = strlen(text);
    char digits[32];
    unsigned shift = 0;

    if (!length || length >= sizeof(digits))
        return -EINVAL;
    memcpy(digits, text, length + 1);
    const char *suffix = strchr(suffixes, toupper((unsigned char)digits[length - 1]));
    if (suffix && *suffix) {
        shift = 10 * (unsigned)(suffix - suffixes + 1);
        digits[length - 1] = 0;
    }
    uint64_t number;
    int ret = tool_parse_number(digits, &number);
    if (ret)
        return ret;
    if (number > UINT64_MAX >> shift)
        return -ERANGE;
    *ret_bytes = number << shift;
    return 0;
}

static void print_size(FILE *out, uint64_t bytes)
{
    static const char suffixes[] = "TGMK";

    for (unsigned i = 0; i < 4; i++) {
        unsigned shift = 10 * (4 - i);
        if (bytes >> shift && !(bytes & ((UINT64_C(1) << shift) - 1))) {
            fprintf(out, "%llu%c", (unsigned long long)(bytes >> shift), suffixes[i]);
            return;
        }
    }
    fprintf(out, "%llu", (unsigned long long)bytes);
}

static void print_default(FILE *out, const struct tool_option *option)
{
    if (strstr(option->help, "default")) /* 0 stands for something that the sentence says */
        return;
    if (option->kind == TOOL_TEXT || option->kind == TOOL_CHOICE) {
        const char *text = *(const char **)option->value;
        if (text)
            fprintf(out, " (default %s)", text);
        return;
    }
    if (option->kind != TOOL_NUMBER && option->kind != TOOL_SIZE)
        return;
    uint64_t number = *(uint64_t *)option->value;
    if (option->required || (!number && option->min))
        return;
    fputs(" (default ", out);
    if (option->kind == TOOL_SIZE)
        print_size(out, number);
    else
        fprintf(out, "%llu", (unsigned long long)number);
    fputc(')', out);
}

static void print_help(const struct tool_usage *usage)
{
    printf("usage: vfmig %s [OPTIONS]%s%s\n\n%s\n\noptions:\n", usage->command,
           usage->operands ? " " : "", usage->operands ? usage->operands : "", usage->about);
    for (const struct tool_option *option = usage->options; option->name; option++) {
        char left[128];
        const char *operand = option->kind == TOOL_CHOICE ? option->choices : option->operand;
        snprintf(left, sizeof(left), "--%s%s%s", option->name, operand ? " " : "",
                 operand ? operand : "");
        if (strlen(left) > 28)
            printf("  %s\n  %-28s %s", left, "", option->help);
        else
            printf("  %-28s %s", left, option->help);
        if (option->required)
            printf(" (required)");
        print_default(stdout, option);
        putchar('\n');
    }
    printf("  %-28s %s\n", "--help", "print this and exit");
    if (usage->after)
        printf("\n%s\n", usage->after);
}

static bool is_choice(const char *choices, const char *text)
{
    size_t length = strlen(text);

    for (const char *item = choices; *item;) {
        size_t size = strcspn(item, "|");
        if (size == length && memcmp(item, text, length) == 0)
            return true;
        item += size + (item[size] == '|');
    }
    return false;
}

static int store_number(const struct tool_usage *usage, const struct tool_option *option,
                        const char *text)
{
    uint64_t number = 0;
    int ret = option->kind == TOOL_SIZE ? tool_parse_size(text, &number)
                                        : tool_parse_number(text, &number);

    if (ret == -EINVAL)
        return tool_fail(usage, TOOL_USAGE, "--%s: '%s' is not a %s", option->name, text,
                         option->kind == TOOL_SIZE ? "size (bytes, or with K, M, G, T)" : "number");
    if (ret || (option->max && (number < option->min || number > option->max))) {
        fprintf(stderr, "vfmig %s: --%s: %s is out of range", usage->command, option->name, text);
        if (option->max && option->kind == TOOL_SIZE) {
            fputs(", ", stderr);
            print_size(stderr, option->min);
            fputs(" to ", stderr);
            print_size(stderr, option->max);
        } else if (option->max) {
            fprintf(stderr, ", %llu to %llu", (unsigned long long)option->min,
                    (unsigned long long)option->max);
        }
        fputc('\n', stderr);
        return TOOL_USAGE;
    }
    *(uint64_t *)option->value = number;
    return -1;
}

static int store(const struct tool_usage *usage, const struct tool_option *option, const char *text)
{
    struct tool_list *list;

    switch (option->kind) {
    case TOOL_NUMBER:
    case TOOL_SIZE:
        return store_number(usage, option, text);
    case TOOL_CHOICE:
        if (!is_choice(option->choices, text))
            return tool_fail(usage, TOOL_USAGE, "--%s: '%s' is not one of %s", option->name, text,
                             option->choices);
        *(const char **)option->value = text;
        return -1;
    case TOOL_LIST:
        list = option->value;
        if (list->count == TOOL_LIST_MAX)
            return tool_fail(usage, TOOL_USAGE, "--%s is given more than %u times", option->name,
                             TOOL_LIST_MAX);
        list->items[list->count++] = text;
        return -1;
    case TOOL_TEXT:
        if (!*text)
            return tool_fail(usage, TOOL_USAGE, "--%s: the value is empty", option->name);
        *(const char **)option->value = text;
        return -1;
    case TOOL_FLAG:
        break;
    }
    *(bool *)option->value = true;
    return -1;
}

/* The long name of "-x"; NULL when no option is called so. */
static const char *name_of_letter(const struct tool_usage *usage, const char *arg)
{
    for (const struct tool_option *option = usage->options; option->name; option++)
        if (option->letter && option->letter == arg[1] && !arg[2])
            return option->name;
    return NULL;
}

/* One option by its name without dashes; *index moves on when the value is the next argument. */
static int parse_option(const struct tool_usage *usage, const char *name, int argc, char **argv,
                        int *index, uint64_t *seen)
{
    size_t length = strcspn(name, "=");
    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    const struct tool_option *option = usage->options;

    while (option->name && (strlen(option->name) != length || memcmp(option->name, name, length)))
        option++;
    if (!option->name)
        return tool_fail(usage, TOOL_USAGE, "unknown option --%.*s; see vfmig %s --help",
                         (int)length, name, usage->command);
    uint64_t bit = UINT64_C(1) << (option - usage->options);
    if (option->kind != TOOL_LIST && (*seen & bit))
        return tool_fail(usage, TOOL_USAGE, "--%s is given twice", option->name);
    *seen |= bit;
    if (option->kind == TOOL_FLAG)
        return value ? tool_fail(usage, TOOL_USAGE, "--%s takes no value", option->name)
                     : store(usage, option, "");
    if (!value) {
        if (*index + 1 >= argc)
            return tool_fail(usage, TOOL_USAGE, "--%s needs a value", option->name);
        value = argv[++*index];
    }
    return store(usage, option, value);
}

static int check_complete(const struct tool_usage *usage, uint64_t seen, unsigned operands)
{
    for (unsigned i = 0; usage->options[i].name; i++)
        if (usage->options[i].required && !(seen >> i & 1))
            return tool_fail(usage, TOOL_USAGE, "--%s is missing; see vfmig %s --help",
                             usage->options[i].name, usage->command);
    if (operands < usage->operand_min)
        return tool_fail(usage, TOOL_USAGE, "%s is missing; see vfmig %s --help", usage->operands,
                         usage->command);
    return -1;
}

int tool_parse(const struct tool_usage *usage, int argc, char **argv,
               struct tool_list *ret_operands)
{
    bool options_end = false;
    unsigned operands = 0;
    uint64_t seen = 0; /* bit i: options[i] was given; tables are far shorter than 64 rows */

    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!options_end && (!strcmp(arg, "--help") || !strcmp(arg, "-h"))) {
            print_help(usage);
            return TOOL_OK;
        }
        if (!options_end && !strcmp(arg, "--")) {
            options_end = true;
        } else if (!options_end && arg[0] == '-' && arg[1]) {
            const char *name = arg[1] == '-' ? arg + 2 : name_of_letter(usage, arg);
            if (!name)
                return tool_fail(usage, TOOL_USAGE, "unknown option %s; see vfmig %s --help", arg,
                                 usage->command);
            int ret = parse_option(usage, name, argc, argv, &i, &seen);
            if (ret >= 0)
                return ret;
        } else {
            if (operands >= usage->operand_max)
                return tool_fail(usage, TOOL_USAGE, "unexpected argument '%s'", arg);
            ret_operands->items[operands++] = arg;
            ret_operands->count = operands;
        }
    }
    return check_complete(usage, seen, operands);
}
