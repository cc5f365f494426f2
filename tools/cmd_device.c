/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig device: one simulated device behind a vfio-user socket. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "bugs.h"
#include "commands.h"
#include "devices/devices.h"
#include "options.h"

#define LAST_ERRNO 133 /* EHWPOISON */
#define HOUR_MS    3600000u
#define RATE_MIN   (64u << 10) /* a piece of 256 KiB takes 4 s then */
#define RATE_MAX   (UINT64_C(1) << 40)

static const char *socket_path, *control_path, *bug, *fail_text = "none", *mask_text = "none";
static struct tool_list latencies;
static uint64_t state_size, dirty_rate, save_rate, load_rate, latency_us, quiesce_us;
static uint64_t look_ahead, fail_at, fail_byte, drain_timeout_ms, max_data;
static bool no_ndma, no_precopy, json;

static const struct tool_option options[] = {
    {"socket", TOOL_TEXT, &socket_path, "PATH", "unix socket to listen on", .required = true},
    {"control", TOOL_TEXT, &control_path, "PATH",
     "unix socket for a migration engine beside the VMM (docs/control.md)"},
    {"state-size", TOOL_SIZE, &state_size, "SIZE",
     "dma, bulk: internal state (default 64K for dma, 64M for bulk)", .min = 4096,
     .max = VFMIG_BULK_STATE_MAX},
    {"dirty-rate", TOOL_SIZE, &dirty_rate, "SIZE",
     "bulk: bytes of its state that it changes each second by itself", .max = RATE_MAX},
    {"save-rate", TOOL_SIZE, &save_rate, "SIZE",
     "dma, bulk: bytes of state given each second (default: no limit)", .min = RATE_MIN,
     .max = RATE_MAX},
    {"load-rate", TOOL_SIZE, &load_rate, "SIZE",
     "dma, bulk: bytes of state taken each second (default: no limit)", .min = RATE_MIN,
     .max = RATE_MAX},
    {"latency", TOOL_LIST, &latencies, "ARC=MS",
     "an arc takes this much longer (default 0): quiesce, stop, start, precopy, save, load or "
     "reset; may be repeated"},
    {"latency-us", TOOL_NUMBER, &latency_us, "US",
     "dma: each DMA descriptor stays in flight for this long", .max = 60000000},
    {"quiesce-us", TOOL_NUMBER, &quiesce_us, "US",
     "dma: the one in flight when NDMA is asked for ends after this long", .max = 60000000},
    {"look-ahead", TOOL_NUMBER, &look_ahead, "N",
     "dma: descriptors, and what they read, that are fetched before their turn (default 0)",
     .max = 32},
    {"drain-timeout-ms", TOOL_NUMBER, &drain_timeout_ms, "MS",
     "give up stopping DMA after this (default 10000)", .max = HOUR_MS},
    {"max-data", TOOL_SIZE, &max_data, "SIZE", "most data in one message (default 1M)",
     .min = 4096, .max = 64 << 20},
    {"no-ndma", TOOL_FLAG, &no_ndma, NULL, "a device that cannot stop its DMA alone"},
    {"no-precopy", TOOL_FLAG, &no_precopy, NULL, "a device that cannot log its changes"},
    {"mask", TOOL_TEXT, &mask_text, "LIST",
     "hide from clients, separated by commas: p2p (as --no-ndma), precopy (as --no-precopy), log "
     "(the log of DMA)"},
    {"fail", TOOL_TEXT, &fail_text, "STEP[=ERRNO]",
     "a step that fails: stop, start, save_begin, save_precopy, save, load or load_end; the errno "
     "is EIO unless given"},
    {"fail-at", TOOL_NUMBER, &fail_at, "N", "fail only the Nth time (default: every time)",
     .max = UINT32_MAX},
    {"fail-byte", TOOL_SIZE, &fail_byte, "N",
     "dma, bulk: save_precopy, save or load fails at this byte (default: at the first call)",
     .max = VFMIG_BULK_STATE_MAX},
    {"bug", TOOL_TEXT, &bug, "ID",
     "a deliberate bug, for vfmig check to find, in builds that have them; list prints them"},
    {"json", TOOL_FLAG, &json, NULL, "print the counters as one JSON object at the end"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "device",
    .operands = "NAME",
    .about = "Serves a simulated device to one vfio-user client after another, until SIGTERM\n"
             "or SIGINT. Devices: null (no state, registers or DMA), dma (copies, fills and\n"
             "checks guest memory from a descriptor ring), bulk (gigabytes of internal state,\n"
             "which changes by itself and can be verified).",
    .options = options,
    .operand_min = 1,
    .operand_max = 1,
};

static struct vfmig_device *device;

static void on_signal(int number)
{
    vfmig_device_stop(device);
}

static void print_counters(void)
{
    struct vfmig_device_counters c;

    vfmig_device_get_counters(device, &c);
    printf("{\"clients\": %" PRIu64 ", \"resets\": %" PRIu64 ", \"bad_messages\": %" PRIu64
           ", \"mmio_stopped_reads\": %" PRIu64 ", \"mmio_stopped_writes\": %" PRIu64
           ", \"dma_refused\": %" PRIu64 ", \"dma_faults\": %" PRIu64
           ", \"drains_waited\": %" PRIu64 ", \"irqs_raised\": %" PRIu64
           ", \"irqs_latched\": %" PRIu64 ", \"irqs_delivered\": %" PRIu64
           ", \"data_messages\": %" PRIu64 ", \"windows_filled\": %" PRIu64
           ", \"windows_loaded\": %" PRIu64 "}\n",
           c.clients, c.resets, c.bad_messages, c.mmio_stopped_reads, c.mmio_stopped_writes,
           c.dma_refused, c.dma_faults, c.drains_waited, c.irqs_raised, c.irqs_latched,
           c.irqs_delivered, c.data_messages, c.windows_filled, c.windows_loaded);
}

static bool is_word(const char *text, size_t length, const char *word)
{
    return word && strlen(word) == length && !memcmp(text, word, length);
}

/* "STEP" or "STEP=ERRNO", ERRNO by its name. -1, or the exit code. */
static int parse_fail(struct vfmig_device_knobs *knobs)
{
    size_t length = strcspn(fail_text, "=");
    int step = 0;

    while (step < VFMIG_DEVICE_STEP_COUNT && !is_word(fail_text, length, vfmig_device_step_name(step)))
        step++;
    if (step == VFMIG_DEVICE_STEP_COUNT)
        return tool_fail(&usage, TOOL_USAGE, "--fail: there is no step called '%.*s'", (int)length,
                         fail_text);
    knobs->fail_step = (enum vfmig_device_step)step;
    if (!fail_text[length])
        return -1;
    const char *name = fail_text + length + 1;
    int number = 1;
    while (number <= LAST_ERRNO && !is_word(name, strlen(name), strerrorname_np(number)))
        number++;
    if (number > LAST_ERRNO)
        return tool_fail(&usage, TOOL_USAGE, "--fail: '%s' is not the name of an errno", name);
    knobs->fail_errno = number;
    return -1;
}

static int parse_latency(const char *text, struct vfmig_device_knobs *knobs)
{
    size_t length = strcspn(text, "=");
    uint64_t ms;
    int arc = 0;

    while (arc < VFMIG_DEVICE_ARC_COUNT && !is_word(text, length, vfmig_device_arc_name(arc)))
        arc++;
    if (arc == VFMIG_DEVICE_ARC_COUNT)
        return tool_fail(&usage, TOOL_USAGE, "--latency: there is no arc called '%.*s'", (int)length,
                         text);
    if (!text[length] || tool_parse_number(text + length + 1, &ms) || ms > HOUR_MS)
        return tool_fail(&usage, TOOL_USAGE, "--latency: '%s' is not ARC=MS with up to %u ms", text,
                         HOUR_MS);
    knobs->arc_ns[arc] = ms * 1000000;
    return -1;
}

static int parse_mask(struct vfmig_device_knobs *knobs)
{
    for (const char *at = mask_text; strcmp(mask_text, "none");) {
        size_t length = strcspn(at, ",");
        if (is_word(at, length, "p2p"))
            knobs->no_ndma = true;
        else if (is_word(at, length, "precopy"))
            knobs->no_precopy = true;
        else if (is_word(at, length, "log"))
            knobs->no_dma_log = true;
        else
            return tool_fail(&usage, TOOL_USAGE, "--mask: '%.*s' is not one of p2p, precopy and log",
                             (int)length, at);
        at += length;
        if (!*at++)
            break;
    }
    return -1;
}

static int parse_knobs(struct vfmig_device_knobs *knobs)
{
    *knobs = (struct vfmig_device_knobs){
        .state_bytes = state_size,
        .dirty_rate = dirty_rate,
        .save_rate = save_rate,
        .load_rate = load_rate,
        .latency_ns = latency_us * 1000,
        .quiesce_ns = quiesce_us * 1000,
        .look_ahead = (uint32_t)look_ahead,
        .drain_timeout_ns = drain_timeout_ms * 1000000,
        .max_data_xfer_bytes = (uint32_t)max_data,
        .no_ndma = no_ndma,
        .no_precopy = no_precopy,
        .fail_at = (uint32_t)fail_at,
        .fail_byte = fail_byte,
    };
    int code = parse_fail(knobs);

    for (unsigned i = 0; code < 0 && i < latencies.count; i++)
        code = parse_latency(latencies.items[i], knobs);
    return code < 0 ? parse_mask(knobs) : code;
}

int cmd_device(int argc, char **argv)
{
    struct tool_list names = {0};
    struct vfmig_device_knobs knobs;
    struct vfmig_error err = {0};

    if (bugs_list(argc, argv))
        return TOOL_OK;
    int code = tool_parse(&usage, argc, argv, &names);
    if (code < 0)
        code = parse_knobs(&knobs);
    if (code >= 0)
        return code;
    const struct vfmig_device_kind *kind = vfmig_device_kind_find(names.items[0]);
    if (!kind)
        return tool_fail(&usage, TOOL_USAGE, "there is no device called '%s'", names.items[0]);
    int r = vfmig_device_knobs_check(kind, &knobs, &err);
    if (r == 0 && bug)
        r = bugs_turn_on(bug, &err);
    if (r == 0)
        r = kind->make(&knobs, &device, &err);
    if (r < 0)
        return tool_fail(&usage, r == -EINVAL ? TOOL_USAGE : TOOL_FAILED, "%s", err.text);
    struct sigaction act = {.sa_handler = on_signal};
    sigemptyset(&act.sa_mask);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    r = vfmig_device_listen(device, socket_path, &err);
    if (r == 0 && control_path)
        r = vfmig_device_listen_control(device, control_path, &err);
    if (r == 0)
        r = vfmig_device_run(device, &err);
    if (json && r == 0)
        print_counters();
    vfmig_device_free(device);
    return r < 0 ? tool_fail(&usage, TOOL_FAILED, "%s", err.text) : TOOL_OK;
}
