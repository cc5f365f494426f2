/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig migrate: asks a VMM over QMP to send its guest away, and shows how it goes. */
#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"
#include "follow.h"
#include "options.h"
#include "qmp_client.h"
#include "vfmig/error.h"

static const char *tls_creds, *tls_psk, *tls_hostname;
static const char *qmp_path, *dialect, *trace_path, *on_deadline, *compress;
static uint64_t channels = 2, downtime_limit = 300, deadline, bandwidth, throttle;
static bool json, quiet, dry_run, local, plaintext;

static const struct tool_option options[] = {
    {"qmp", TOOL_TEXT, &qmp_path, "PATH", "control socket of the VMM that runs the guest",
     .required = true},
    {"channels", TOOL_NUMBER, &channels, "N", "connections to use", .min = 1, .max = 16},
    {"downtime-limit", TOOL_NUMBER, &downtime_limit, "MS",
     "switch over only when the predicted downtime is inside", .min = 1, .max = 600000},
    {"deadline", TOOL_NUMBER, &deadline, "S", "the switchover must have begun by then; 0: never",
     .min = 0, .max = 1000000},
    {"on-deadline", TOOL_CHOICE, &on_deadline, NULL,
     "then: give up, guest unharmed (default), or go whatever the downtime", .choices = "fail|force"},
    {"throttle-max", TOOL_NUMBER, &throttle, "PERCENT",
     "slow a guest down that gets no nearer to the limit, so far; 0: never", .min = 0, .max = 99},
    {"max-bandwidth", TOOL_SIZE, &bandwidth, "SIZE", "bytes each second at most; 0: no limit"},
    {"compress", TOOL_TEXT, &compress, "HOW", "zstd or zstd:LEVEL, 1 to 19; memory and device data"},
    {"local", TOOL_FLAG, &local, NULL,
     "to unix:PATH on this host: pass the memory on, copy nothing of it"},
    {"tls-creds", TOOL_TEXT, &tls_creds, "DIR", "TLS with the certificates in DIR, as of vfmig vm"},
    {"tls-psk", TOOL_TEXT, &tls_psk, "FILE", "TLS with the key in FILE, as of vfmig vm"},
    {"tls-hostname", TOOL_TEXT, &tls_hostname, "NAME",
     "whom the destination's certificate must name, if not the host in URI"},
    {"plaintext", TOOL_FLAG, &plaintext, NULL, "without TLS, off this host too"},
    {"dialect", TOOL_CHOICE, &dialect, NULL, "speak to the devices in another dialect",
     .choices = "feature|region"},
    {"trace", TOOL_TEXT, &trace_path, "FILE", "write what the migration does, as lines of JSON"},
    {"dry-run", TOOL_FLAG, &dry_run, NULL,
     "compare both sides, name all that is against it, change nothing"},
    {"json", TOOL_FLAG, &json, NULL, "print the result as one JSON object"},
    {"quiet", TOOL_FLAG, &quiet, NULL, "no progress"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "migrate",
    .operands = "URI",
    .about = "Moves the guest of the VMM behind --qmp to the VMM that waits at URI\n"
             "(tcp:HOST:PORT or unix:PATH). Ctrl-C cancels: the guest goes on where it is.\n"
             "A second Ctrl-C leaves without waiting for that.",
    .options = options,
    .operand_min = 1,
    .operand_max = 1,
    .after = "exit status: 0 moved (--dry-run: it could be), 1 failed (the guest goes on at the "
             "source), 2 wrong command\n"
             "  line, 4 cancelled, 5 unknown who has the guest, or moved and no report could be\n"
             "  written: see vfmig status",
};

static volatile sig_atomic_t interrupts;

static void on_interrupt(int number)
{
    interrupts++;
}

/* --- reading the answers; whatever is missing is 0, "" or NULL --- */

static struct json_object *get(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;

    if (json_object_is_type(object, json_type_object))
        json_object_object_get_ex(object, name, &value);
    return value;
}

static double number(struct json_object *object, const char *name)
{
    return json_object_get_double(get(object, name));
}

static const char *text(struct json_object *object, const char *name)
{
    struct json_object *value = get(object, name);
    return value ? json_object_get_string(value) : "";
}

static size_t length(struct json_object *array)
{
    return json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
}

/* --- progress --- */

#define NAMED_DEVICES 3u /* more would leave no room for what is behind them */

/* Appends what devices there are, and where: each one, or how many of the same state. */
static int describe_devices(struct json_object *devices, char *line, size_t size)
{
    size_t count = length(devices);
    int used = 0;

    for (size_t i = 0; i < count && used >= 0 && (size_t)used < size; i++) {
        struct json_object *device = json_object_array_get_idx(devices, i);
        const char *state = text(device, "state");
        unsigned same = 0, before = 0;
        for (size_t j = 0; j < count; j++) {
            bool is = !strcmp(text(json_object_array_get_idx(devices, j), "state"), state);
            same += is;
            before += is && j < i;
        }
        if (count <= NAMED_DEVICES)
            used += snprintf(line + used, size - (size_t)used, "%s %s  ", text(device, "id"), state);
        else if (!before)
            used += snprintf(line + used, size - (size_t)used, "%u device%s %s  ", same, same == 1 ? "" : "s", state);
    }
    return used;
}

/* One line about a migration under way. */
static void describe(struct json_object *status, char *line, size_t size)
{
    struct json_object *ours = get(status, "x-vfmig");
    struct json_object *devices = get(ours, "devices");
    struct json_object *ram = get(status, "ram");
    int used = snprintf(line, size, "%s  ", text(ours, "step"));

    if (used >= 0 && (size_t)used < size)
        used += describe_devices(devices, line + used, size - (size_t)used);
    if (used < 0 || (size_t)used >= size)
        return;
    used += snprintf(line + used, size - (size_t)used, "%.0f MiB/s  %.0f MiB left",
                     number(ours, "rate-bytes-s") / (1 << 20), number(ram, "remaining") / (1 << 20));
    if ((size_t)used < size && get(ours, "predicted-downtime-ns"))
        used += snprintf(line + used, size - (size_t)used, "  downtime would be %.0f ms",
                         number(ours, "predicted-downtime-ns") / 1e6);
    if ((size_t)used < size && number(status, "cpu-throttle-percentage") > 0)
        used += snprintf(line + used, size - (size_t)used, "  vCPUs slowed down by %.0f %%",
                         number(status, "cpu-throttle-percentage"));
    if ((size_t)used < size && json_object_get_boolean(get(ours, "not-converging")))
        snprintf(line + used, size - (size_t)used, "  no progress for %.0f rounds",
                 number(ours, "stuck-rounds"));
}

static void show_progress(struct json_object *status, bool terminal, unsigned tick)
{
    char line[256];

    /* Every other look on a terminal, every 20th (2 s) in a log. */
    if (tick % (terminal ? 2 : 20))
        return;
    describe(status, line, sizeof(line));
    if (terminal)
        fprintf(stderr, "\r\033[K%.*s", 100, line);
    else
        fprintf(stderr, "vfmig migrate: %s\n", line);
}

/* --- the report --- */

static void print_steps(struct json_object *steps)
{
    if (length(steps))
        printf("\n%10s %12s  step\n", "at", "took");
    for (size_t i = 0; i < length(steps); i++) {
        struct json_object *step = json_object_array_get_idx(steps, i);
        printf("%8.3f s %9.3f ms  %s", number(step, "start-ns") / 1e9, number(step, "ns") / 1e6,
               text(step, "name"));
        double faults = number(get(step, "at-start"), "page-faults-open");
        if (faults)
            printf(", %.0f page faults open", faults);
        printf("\n");
    }
}

static void print_parts(struct json_object *ours)
{
    struct json_object *parts = get(ours, "parts");

    if (length(parts))
        printf("\ndowntime in parts:\n");
    for (size_t i = 0; i < length(parts); i++) {
        struct json_object *part = json_object_array_get_idx(parts, i);
        printf("%12.3f ms  %s\n", number(part, "ns") / 1e6, text(part, "name"));
    }
}

/* Who logged the writes, and what reading it took. Devices have a log each. */
static void print_trackers(struct json_object *ours)
{
    struct json_object *trackers = get(ours, "trackers");

    if (length(trackers))
        printf("\nwrites logged by (%s for the vCPUs):\n", text(ours, "tracker"));
    for (size_t i = 0; i < length(trackers); i++) {
        struct json_object *tracker = json_object_array_get_idx(trackers, i);
        printf("%12.3f ms  %s, %.0f KiB pages, read %.0f times\n", number(tracker, "sync-ns") / 1e6,
               text(tracker, "name"), number(tracker, "page-bytes") / 1024, number(tracker, "syncs"));
    }
}

static void print_report(struct json_object *status)
{
    struct json_object *ours = get(status, "x-vfmig");
    struct json_object *ram = get(status, "ram");
    struct json_object *prediction = get(ours, "prediction");

    printf("migrated in %.4f s: downtime %.1f ms, %.0f MiB sent, %.0f rounds\n",
           number(ours, "total-ns") / 1e9, number(ours, "downtime-ns") / 1e6,
           number(ram, "transferred") / (1 << 20), number(ram, "dirty-sync-count"));
    print_steps(get(ours, "steps"));
    if (number(ours, "page-faults-open"))
        printf("%.0f page faults open when NDMA was asked for\n", number(ours, "page-faults-open"));
    print_parts(ours);
    if (prediction)
        printf("\npredicted %.1f ms, reckoned with up to %.1f ms (before the stop: %.1f ms)\n",
               number(prediction, "ns") / 1e6, number(prediction, "bound-ns") / 1e6,
               number(prediction, "decided-ns") / 1e6);
    print_trackers(ours);
}

/* The exit code of an ended migration, after its sentence. */
static int conclude(struct json_object *status)
{
    const char *state = text(status, "status");
    const char *why = text(status, "error-desc");

    if (json)
        puts(json_object_to_json_string_ext(status, JSON_C_TO_STRING_PRETTY));
    if (!strcmp(state, "completed")) {
        if (!json && !quiet)
            print_report(status);
        /* "Failed" would be taken for a guest that is still at the source. */
        if (fflush(stdout) || ferror(stdout))
            return tool_fail(&usage, TOOL_UNRESOLVED,
                             "the guest moved, but the report cannot be written: %s; see vfmig status",
                             strerror(errno));
        return TOOL_OK;
    }
    if (json_object_get_boolean(get(get(status, "x-vfmig"), "unresolved")))
        return tool_fail(&usage, TOOL_UNRESOLVED, "%s; see vfmig status", why);
    if (!strcmp(state, "cancelled"))
        return tool_fail(&usage, TOOL_CANCELLED, "cancelled; the guest runs on at the source");
    return follow_fail(&usage, TOOL_FAILED, status, *why ? why : "the migration failed");
}

static bool is_over(const char *state)
{
    return !strcmp(state, "completed") || !strcmp(state, "failed") || !strcmp(state, "cancelled");
}

/* --- the trace --- */

#define LAST_LINES_NAPS 150u /* 3 s */

static FILE *trace;
static uint64_t trace_next;

/* Lines that have come since the last time; false when there will be no more. A VMM that cannot
 * tell is no failed migration. */
static bool fetch_trace(struct qmp_client *client)
{
    bool end = false;

    for (bool more = trace != NULL; more;) {
        struct json_object *args = json_object_new_object(), *answer;
        struct vfmig_error err = {0};

        json_object_object_add(args, "from", json_object_new_uint64(trace_next));
        if (qmp_execute(client, "x-vfmig-trace", args, &answer, &err))
            return false;
        struct json_object *lines = get(answer, "lines");
        for (size_t i = 0; i < length(lines); i++) {
            const char *line = json_object_get_string(json_object_array_get_idx(lines, i));
            fprintf(trace, "%s\n", line);
            end |= strstr(line, "\"side\":\"source\",\"ev\":\"end\"") != NULL;
        }
        more = length(lines) > 0;
        trace_next = json_object_get_uint64(get(answer, "next"));
        json_object_put(answer);
    }
    if (trace)
        fflush(trace);
    return trace && !end;
}

/* The migration is over, and the last lines are on their way. */
static void fetch_last(struct qmp_client *client)
{
    const struct timespec nap = {.tv_nsec = 20000000};

    for (unsigned i = 0; fetch_trace(client) && i < LAST_LINES_NAPS; i++)
        nanosleep(&nap, NULL);
}

/* The exit code, or that of a trace that could not be written. */
static int close_trace(int code)
{
    bool bad = trace && (ferror(trace) != 0);

    if (trace && fclose(trace))
        bad = true;
    trace = NULL;
    return bad && code == TOOL_OK
               ? tool_fail(&usage, TOOL_UNRESOLVED,
                           "the guest moved, but the trace cannot be written to %s; "
                           "see vfmig status",
                           trace_path)
               : code;
}

/* Follows the migration to its end. */
static int follow(struct qmp_client *client, struct vfmig_error *reterr)
{
    bool terminal = isatty(STDERR_FILENO) && !quiet;
    const struct timespec nap = {.tv_nsec = 100000000};
    sig_atomic_t seen = 0;

    for (unsigned tick = 1;; tick++) {
        struct json_object *status;
        if (interrupts > 1) {
            return tool_fail(&usage, TOOL_UNRESOLVED, "%sleft while the cancellation was under way",
                             terminal ? "\r\033[K" : "");
        }
        if (interrupts > seen) {
            seen = interrupts;
            /* Too late to cancel is no failure: what happened is reported below. */
            int ret = qmp_execute(client, "migrate_cancel", NULL, NULL, reterr);
            if (ret && ret != -EREMOTEIO)
                return ret;
        }
        int ret = qmp_execute(client, "query-migrate", NULL, &status, reterr);
        if (ret)
            return ret;
        if (is_over(text(status, "status"))) {
            fetch_last(client);
            if (terminal)
                fputs("\r\033[K", stderr);
            int code = conclude(status);
            json_object_put(status);
            return code;
        }
        fetch_trace(client);
        if (!quiet)
            show_progress(status, terminal, tick);
        json_object_put(status);
        nanosleep(&nap, NULL);
    }
}

static int set_parameters(struct qmp_client *client, struct vfmig_error *reterr)
{
    struct json_object *args = json_object_new_object();

    json_object_object_add(args, "downtime-limit", json_object_new_uint64(downtime_limit));
    json_object_object_add(args, "max-bandwidth", json_object_new_uint64(bandwidth));
    json_object_object_add(args, "multifd-channels", json_object_new_uint64(channels));
    json_object_object_add(args, "max-cpu-throttle", json_object_new_uint64(throttle));
    int ret = follow_add_compression(compress, args, reterr);
    if (ret) {
        json_object_put(args);
        return ret;
    }
    ret = qmp_execute(client, "migrate-set-parameters", args, NULL, reterr);
    if (ret || !dialect)
        return ret;
    args = json_object_new_object();
    json_object_object_add(args, "dialect", json_object_new_string(dialect));
    return qmp_execute(client, "x-set-dialect", args, NULL, reterr);
}

static void add_security(struct json_object *args)
{
    const struct {
        const char *name, *value;
    } texts[] = {{"x-tls-creds", tls_creds}, {"x-tls-psk", tls_psk}, {"x-tls-hostname", tls_hostname}};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (texts[i].value)
            json_object_object_add(args, texts[i].name, json_object_new_string(texts[i].value));
    if (plaintext)
        json_object_object_add(args, "x-plaintext", json_object_new_boolean(true));
}

static int start(struct qmp_client *client, const char *uri, struct vfmig_error *reterr)
{
    struct json_object *args = json_object_new_object();

    json_object_object_add(args, "uri", json_object_new_string(uri));
    add_security(args);
    if (deadline)
        json_object_object_add(args, "x-deadline", json_object_new_uint64(deadline));
    if (local)
        json_object_object_add(args, "x-local", json_object_new_boolean(true));
    if (trace)
        json_object_object_add(args, "x-trace", json_object_new_boolean(true));
    if (on_deadline)
        json_object_object_add(args, "x-on-deadline", json_object_new_string(on_deadline));
    return qmp_execute(client, "migrate", args, NULL, reterr);
}

/* --- the dry run --- */

static void print_devices(struct json_object *devices)
{
    for (size_t i = 0; i < length(devices); i++) {
        struct json_object *device = json_object_array_get_idx(devices, i);
        struct json_object *features = get(device, "features");
        printf("  device %s: %s dialect,", text(device, "id"), text(device, "dialect"));
        for (size_t j = 0; j < length(features); j++)
            printf(" %s", json_object_get_string(json_object_array_get_idx(features, j)));
        puts(json_object_get_boolean(get(device, "dma-log")) ? ", logs its DMA"
                                                             : ", does not log its DMA");
    }
}

static void print_dry_run(struct json_object *answer, const char *uri)
{
    struct json_object *mismatches = get(answer, "mismatches");

    printf("would move to %s:\n  %.0f MiB of memory\n", uri,
           number(answer, "memory-bytes") / (1 << 20));
    print_devices(get(answer, "devices"));
    printf("  %zu lines of vCPUs and machine\n", length(get(answer, "identity")));
    puts(length(mismatches) ? "what is against it:" : "nothing is against it");
    for (size_t i = 0; i < length(mismatches); i++) {
        struct json_object *mismatch = json_object_array_get_idx(mismatches, i);
        printf("  %s: %s\n", text(mismatch, "side"), text(mismatch, "text"));
    }
}

/* The exit code, or a negative errno. */
static int try_out(struct qmp_client *client, const char *uri, struct vfmig_error *reterr)
{
    struct json_object *args = json_object_new_object(), *answer;

    json_object_object_add(args, "uri", json_object_new_string(uri));
    add_security(args);
    if (local)
        json_object_object_add(args, "x-local", json_object_new_boolean(true));
    int ret = qmp_execute(client, "x-vfmig-check", args, &answer, reterr);
    if (ret)
        return ret;
    bool accept = json_object_get_boolean(get(answer, "accept"));
    if (json)
        puts(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PRETTY));
    else if (!quiet)
        print_dry_run(answer, uri);
    json_object_put(answer);
    return accept ? TOOL_OK : tool_fail(&usage, TOOL_FAILED, "the guest cannot be moved there");
}

int cmd_migrate(int argc, char **argv)
{
    struct tool_list operands = {.count = 0};
    struct vfmig_error err = {0};
    struct qmp_client *client;
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
    const char *uri = operands.items[0];
    if (strncmp(uri, "tcp:", 4) && strncmp(uri, "unix:", 5))
        return tool_fail(&usage, TOOL_USAGE, "'%s' is neither tcp:HOST:PORT nor unix:PATH", uri);
    if (local && strncmp(uri, "unix:", 5))
        return tool_fail(&usage, TOOL_USAGE, "--local passes memory on over unix:PATH only");
    if (!!tls_creds + !!tls_psk + plaintext > 1)
        return tool_fail(&usage, TOOL_USAGE, "only one of --tls-creds, --tls-psk and --plaintext");
    if (on_deadline && !deadline)
        return tool_fail(&usage, TOOL_USAGE, "--on-deadline says nothing without --deadline");
    int ret = qmp_connect(qmp_path, &client, &err);
    if (ret)
        return tool_fail(&usage, TOOL_FAILED, "%s", err.text);
    if (dry_run) {
        ret = try_out(client, uri, &err);
        qmp_close(client);
        return ret >= 0 ? ret : tool_fail(&usage, TOOL_FAILED, "%s", err.text);
    }
    if (trace_path && !(trace = fopen(trace_path, "we"))) {
        qmp_close(client);
        return tool_fail(&usage, TOOL_FAILED, "cannot write the trace to %s: %s", trace_path,
                         strerror(errno));
    }
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    ret = set_parameters(client, &err);
    if (!ret)
        ret = start(client, uri, &err);
    if (ret) {
        qmp_close(client);
        return close_trace(tool_fail(&usage, err.code == -EINVAL ? TOOL_USAGE : TOOL_FAILED, "%s",
                                     err.text));
    }
    ret = follow(client, &err);
    qmp_close(client);
    ret = close_trace(ret);
    if (ret >= 0)
        return ret;
    return tool_fail(&usage, TOOL_UNRESOLVED, "lost sight of the migration: %s; see vfmig status",
                     err.text);
}
