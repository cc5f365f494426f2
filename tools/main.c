/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig: one command, one table of subcommands. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "options.h"

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    {"device", cmd_device, "serve a simulated device over vfio-user"},
    {"vm", cmd_vm, "run the reference VMM with a guest, or wait for one"},
    {"migrate", cmd_migrate, "move a guest to another VMM"},
    {"save", cmd_save, "put a guest into a file"},
    {"restore", cmd_restore, "take a guest out of a file, once"},
    {"inspect", cmd_inspect, "print what is in a file or a captured stream"},
    {"status", cmd_status, "who has the guest of each migration, by the journals"},
    {"timeline", cmd_timeline, "draw what a migration did, from its trace"},
    {"check", cmd_check, "judge how a device migrates, rule by rule"},
    {"resolve", cmd_resolve, "settle a migration that cannot settle itself"},
    {NULL, NULL, NULL},
};

static int print_help(void)
{
    puts("usage: vfmig COMMAND [OPTIONS] ...\n\n"
         "Live migration of guests with VFIO devices.\n\ncommands:");
    for (const struct command *command = commands; command->name; command++)
        printf("  %-10s %s\n", command->name, command->help);
    puts("\n  --help     print this; vfmig COMMAND --help for the options of one command\n"
         "  --version  print the version\n\n"
         "exit status: 0 fine, 1 failed, 2 wrong command line, 3 a device does not conform,\n"
         "  4 cancelled (the source guest runs on), 5 outcome of a handover unknown (see\n"
         "  vfmig status), 77 this host cannot do it");
    return TOOL_OK;
}

/* Output that could not be written is a failure even when the work went well. */
static int finish(int code)
{
    if ((fflush(stdout) || ferror(stdout)) && code == TOOL_OK) {
        fprintf(stderr, "vfmig: cannot write the output: %s\n", strerror(errno));
        return TOOL_FAILED;
    }
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "vfmig: a command is missing; see vfmig --help\n");
        return TOOL_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
        return finish(print_help());
    if (!strcmp(argv[1], "--version")) {
        puts("vfmig " VFMIG_VERSION);
        return finish(TOOL_OK);
    }
    for (const struct command *command = commands; command->name; command++)
        if (!strcmp(argv[1], command->name))
            return finish(command->run(argc - 1, argv + 1));
    fprintf(stderr, "vfmig: unknown command '%s'; see vfmig --help\n", argv[1]);
    return TOOL_USAGE;
}
