/* SPDX-License-Identifier: BSD-3-Clause */
/* The subcommands of vfmig. Each gets argv[0] = its name and returns an enum tool_exit. */
#ifndef VFMIG_TOOLS_COMMANDS_H
#define VFMIG_TOOLS_COMMANDS_H

int cmd_check(int argc, char **argv);
int cmd_device(int argc, char **argv);
int cmd_vm(int argc, char **argv);
int cmd_migrate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_save(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_resolve(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_timeline(int argc, char **argv);

#endif
