/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig device: one simulated device behind a vfio-user socket. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "devices/devices.h"
#include "options.h"

static const char *socket_path, *control_path, *fail_step = "none";
static uint64_t latency_us, quiesce_us, pad_bytes, fail_at, drain_timeout_ms, max_data;
static bool no_ndma, no_precopy, json;

static const struct tool_option options[] = {
    {"socket", TOOL_TEXT, &socket_path, "PATH", "unix socket to listen on", .required = true},
    {"control", TOOL_TEXT, &control_path, "PATH",
     "unix socket for a migration engine beside the VMM (docs/control.md)"},
    {"latency-us", TOOL_NUMBER, &latency_us, "US",
     "each DMA descriptor stays in flight for this long", .max = 60000000},
    {"quiesce-us", TOOL_NUMBER, &quiesce_us, "US",
     "the one in flight when NDMA is asked for ends after this long", .max = 60000000},
    {"no-ndma", TOOL_FLAG, &no_ndma, NULL, "a device that cannot stop its DMA alone"},
    {"no-precopy", TOOL_FLAG, &no_precopy, NULL, "a device that cannot log its changes"},
    {"state-pad", TOOL_SIZE, &pad_bytes, "SIZE", "make the device's state larger by this",
     .max = UINT64_C(1) << 40},
    {"drain-timeout-ms", TOOL_NUMBER, &drain_timeout_ms, "MS",
     "give up stopping DMA after this (default 10000)", .max = 3600000},
    {"max-data", TOOL_SIZE, &max_data, "SIZE", "most data in one message (default 1M)",
     .min = 4096, .max = 64 << 20},
    {"fail", TOOL_CHOICE, &fail_step, "STEP", "a step that fails",
     .choices = "none|stop|start|save_begin|save_precopy|save|load|load_end"},
    {"fail-at", TOOL_NUMBER, &fail_at, "N", "fail only the Nth time (default: every time)",
     .max = UINT32_MAX},
    {"json", TOOL_FLAG, &json, NULL, "print the counters as one JSON object at the end"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "device",
    .operands = "NAME",
    .about = "Serves a simulated device to one vfio-user client after another, until SIGTERM\n"
             "or SIGINT. Devices: null (no state, registers or DMA), dma (copies, fills and\n"
             "checks guest memory from a descriptor ring).",
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
           ", \"irqs_latched\": %" PRIu64 ", \"irqs_delivered\": %" PRIu64 "}\n",
           c.clients, c.resets, c.bad_messages, c.mmio_stopped_reads, c.mmio_stopped_writes,
           c.dma_refused, c.dma_faults, c.drains_waited, c.irqs_raised, c.irqs_latched,
           c.irqs_delivered);
}

static enum vfmig_device_step find_step(const char *name)
{
    int step = VFMIG_DEVICE_STEP_NONE;

    while (strcmp(name, vfmig_device_step_name((enum vfmig_device_step)step)))
        step++; /* the option's choices are these names */
    return (enum vfmig_device_step)step;
}

int cmd_device(int argc, char **argv)
{
    struct tool_list names = {0};
    struct vfmig_error err = {0};
    int code = tool_parse(&usage, argc, argv, &names);

    if (code >= 0)
        return code;
    const struct vfmig_device_kind *kind = vfmig_device_kind_find(names.items[0]);
    if (!kind)
        return tool_fail(&usage, TOOL_USAGE, "there is no device called '%s'", names.items[0]);
    struct vfmig_device_knobs knobs = {
        .latency_ns = latency_us * 1000,
        .quiesce_ns = quiesce_us * 1000,
        .pad_bytes = pad_bytes,
        .drain_timeout_ns = drain_timeout_ms * 1000000,
        .max_data_xfer_bytes = (uint32_t)max_data,
        .no_ndma = no_ndma,
        .no_precopy = no_precopy,
        .fail_step = find_step(fail_step),
        .fail_at = (uint32_t)fail_at,
    };
    if (kind->make(&knobs, &device, &err) < 0)
        return tool_fail(&usage, TOOL_FAILED, "%s", err.text);
    struct sigaction act = {.sa_handler = on_signal};
    sigemptyset(&act.sa_mask);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    int r = vfmig_device_listen(device, socket_path, &err);
    if (r == 0 && control_path)
        r = vfmig_device_listen_control(device, control_path, &err);
    if (r == 0)
        r = vfmig_device_run(device, &err);
    if (json && r == 0)
        print_counters();
    vfmig_device_free(device);
    return r < 0 ? tool_fail(&usage, TOOL_FAILED, "%s", err.text) : TOOL_OK;
}
