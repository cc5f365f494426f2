/* SPDX-License-Identifier: BSD-3-Clause */
#include "tables_more.h"

#include "engine/probes.h"
#include "engine/trace.h"
#include "vmm/metrics.h"

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

static void print_row(FILE *out, const struct vmm_metric *metric)
{
    static const char *const units[] = {[VMM_SECONDS] = "seconds",
                                        [VMM_BYTES] = "bytes",
                                        [VMM_PLAIN] = "",
                                        [VMM_PERCENT] = "0 to 1"};

    fprintf(out, "| `%s%s%s%s` | %s | %s | `%s` | %s |\n", metric->name, *metric->labels ? "{" : "",
            metric->labels, *metric->labels ? "}" : "",
            metric->type == VMM_COUNTER ? "counter" : "gauge", units[metric->unit], metric->field,
            metric->help);
}

void tables_print_metrics(FILE *out)
{
    fputs("# Metrics\n\n"
          "Printed by `make docs` from tables/metrics.def.\n\n"
          "    vfmig vm --metrics file:/var/lib/node_exporter/textfile/guest.prom ...\n"
          "    vfmig vm --metrics tcp:127.0.0.1:9400 ...      # GET /metrics; or unix:PATH\n"
          "    vfmig status --metrics --qmp /tmp/a.qmp\n\n"
          "The text format of Prometheus, of one VMM. A file is written when the VMM starts, when a migration\n"
          "begins and when one ends, and replaced as a whole. The socket takes one client at a time, for two\n"
          "seconds at most; there is no password, so an address that is not loopback is refused. QMP's\n"
          "`x-vfmig-metrics` has the same text.\n\n"
          "Gauges tell of the last or current migration, out of this VMM or into it; they stay when it has\n"
          "ended, and are 0 before the first. Counters are sums over the migrations out of this VMM that have\n"
          "ended, since it started. `vfmig_migrations_total{role,outcome}` counts attempts of either side by\n"
          "the state that they came to (completed, failed, cancelled, undecided, paused, saved); one whose\n"
          "outcome was open counts as undecided and, once it is settled, as what it was.\n"
          "`vfmig_migration_state{state}` is 1 for one state, `vfmig_build_info{version}` always. Names and\n"
          "meanings are for good; others may come. The field is that of `struct vfmig_progress`\n"
          "(`man 3 vfmig_migrate.h`); times there are in nanoseconds.\n\n"
          "| metric | type | unit | field | meaning |\n|---|---|---|---|---|\n",
          out);
    for (const struct vmm_metric *metric = vmm_metrics(); metric->name; metric++)
        print_row(out, metric);
}
