/* SPDX-License-Identifier: BSD-3-Clause */
#include "tables_more.h"

#include "engine/probes.h"
#include "engine/trace.h"

void tables_print_probes(FILE *out)
{
    fputs("# USDT probes\n\n"
          "Printed by `make docs` from tables/probes.def and tables/trace.def.\n\n"
          "Where `<sys/sdt.h>` is there when it is built, the engine has probes of provider `vfmig` at\n"
          "events of the [trace](trace.md): an instruction that does nothing until a tool puts something in\n"
          "its place. They are in every program that the library is linked into, `vfmig` among them, whether a\n"
          "trace is written or not; `meson configure -Dprobes=false` leaves them out.\n\n"
          "    bpftrace -l 'usdt:/usr/bin/vfmig:*'\n"
          "    bpftrace -p PID -e 'usdt:/usr/bin/vfmig:vfmig:step { printf(\"%d %s\\n\", arg0, str(arg1)); }'\n"
          "    readelf -n /usr/bin/vfmig\n\n"
          "The first argument is 1 at the source, 0 at the destination; the others are the event's first\n"
          "fields, of which [trace.md](trace.md) says what they are. A text is the address of its\n"
          "characters, or 0; it may hold what a peer wrote. Names and arguments are for good.\n\n"
          "| probe | event | arguments |\n|---|---|---|\n",
          out);
    for (const struct vfmig_probe_info *probe = vfmig_probes(); probe->name; probe++) {
        const struct vfmig_trace_info *event = vfmig_trace_info(probe->event);

        fprintf(out, "| `%s` | `%s` | source", probe->name, event->name);
        for (unsigned i = 0; i + 1 < probe->arguments; i++)
            fprintf(out, ", %s", event->fields[i].name);
        fputs(" |\n", out);
    }
}
