/* SPDX-License-Identifier: BSD-3-Clause */
/* Options of the vfmig command: one table per subcommand gives the parser, the limits and --help. */
#ifndef VFMIG_TOOLS_OPTIONS_H
#define VFMIG_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* Exit codes of every subcommand, documented in vfmig(1). */
enum tool_exit {
    TOOL_OK = 0,
    TOOL_FAILED = 1,        /* it was tried and failed; the sentence says why */
    TOOL_USAGE = 2,         /* the command line is wrong; nothing was tried */
    TOOL_NOT_CONFORMING = 3,/* a device broke a clause */
    TOOL_CANCELLED = 4,     /* cancelled; the source guest runs on */
    TOOL_UNRESOLVED = 5,    /* the outcome of a handover is unknown: see vfmig status */
    TOOL_SKIPPED = 77,      /* this host cannot do it (no /dev/kvm, say) */
};

enum tool_kind {
    TOOL_FLAG,   /* bool: --name */
    TOOL_TEXT,   /* const char * */
    TOOL_LIST,   /* struct tool_list: may be given several times */
    TOOL_NUMBER, /* uint64_t, decimal or 0x */
    TOOL_SIZE,   /* uint64_t bytes, with K, M, G or T (powers of 1024) */
    TOOL_CHOICE, /* const char *, one of choices */
};

#define TOOL_LIST_MAX 64u

struct tool_list {
    const char *items[TOOL_LIST_MAX];
    unsigned count;
};

/* A row of a subcommand's table. A table ends with a row whose name is NULL. */
struct tool_option {
    const char *name;    /* without the dashes */
    enum tool_kind kind;
    void *value;         /* where the kind's type is stored; holds the default before */
    const char *operand; /* shown in --help, for example "SIZE"; NULL for flags */
    const char *help;    /* one line */
    uint64_t min, max;   /* of numbers and sizes; max 0: no limits */
    const char *choices; /* of TOOL_CHOICE: "kvm|none|auto" */
    bool required;
    char letter; /* "-o" for short; 0: none */
};

/* A subcommand's command line. */
struct tool_usage {
    const char *command; /* "migrate": messages start with "vfmig migrate: " */
    const char *operands;/* after the options, for example "URI"; NULL for none */
    const char *about;   /* a few lines for --help */
    const struct tool_option *options;
    unsigned operand_min, operand_max; /* at most TOOL_LIST_MAX */
    const char *after;   /* text after the options in --help, NULL for none */
};

/* Parses argv[1..argc); argv[0] is the subcommand's name. Operands go to ret_operands (NULL when
 * operand_max is 0). Returns -1 to go on; otherwise the exit code the subcommand returns at once,
 * after the help or one sentence has been printed. */
int tool_parse(const struct tool_usage *usage, int argc, char **argv,
               struct tool_list *ret_operands);

/* "vfmig COMMAND: " + sentence + newline on stderr; returns code. */
int tool_fail(const struct tool_usage *usage, enum tool_exit code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Text to bytes with K, M, G, T; or plain number. 0 or -EINVAL, -ERANGE. */
int tool_parse_size(const char *text, uint64_t *ret_bytes);
int tool_parse_number(const char *text, uint64_t *ret_number);

#endif
