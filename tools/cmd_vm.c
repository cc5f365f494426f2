/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig vm: the reference VMM. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "devices/dma_regs.h"
#include "options.h"
#include "vfmig/error.h"
#include "vmm/vm.h"

static struct tool_list devices;
static const char *accel = "auto";
static const char *p2p = "auto";
static const char *tracker = "auto";
static const char *name = "guest";
static const char *tls_creds, *tls_psk;
static const char *qmp_path, *incoming, *journal, *trace, *flight, *metrics;
static uint64_t memory = 512 << 20, cpus = 2, channels = 2;
static uint64_t working_set, dirty_rate = 100 << 20, dma_rate, dma_in_flight = 16, seed = 1;
static uint64_t viommu_timeout_ms;
static const char *iommu_answers = "late";
static const char *run_as;
static bool no_confine;
static bool plaintext, paused, discard_released, prefault, as_clone;

static const struct tool_option options[] = {
    {"name", TOOL_TEXT, &name, "NAME", "name of the guest, in messages"},
    {"accel", TOOL_CHOICE, &accel, NULL, "how vCPUs run; auto is kvm where it works",
     .choices = "kvm|none|auto"},
    {"tracker", TOOL_CHOICE, &tracker, NULL,
     "who logs what vCPUs write; auto is the cheapest, as measured at the start",
     .choices = "auto|kvm-bitmap|kvm-ring|pagemap|wp"},
    {"memory", TOOL_SIZE, &memory, "SIZE", "guest memory", .min = GUEST_MIN_MEMORY,
     .max = UINT64_C(1) << 40},
    {"cpus", TOOL_NUMBER, &cpus, "N", "vCPUs", .min = 1, .max = GUEST_MAX_VCPUS},
    {"device", TOOL_LIST, &devices, "DEVICE",
     "vfio-user:PATH, vfio:PATH or vfio-group:N:NAME (kernel devices), each "
     "[,dialect=feature|region][,iommu=on|off][,pasid=N][,late-load][,id=NAME]; may be repeated"},
    {"p2p", TOOL_CHOICE, &p2p, NULL,
     "peer to peer DMA: auto is among devices that have NDMA, on among all, which then may be "
     "refused a migration", .choices = "auto|on|off"},
    {"qmp", TOOL_TEXT, &qmp_path, "PATH", "control socket that speaks QMP"},
    {"incoming", TOOL_TEXT, &incoming, "URI",
     "wait for a guest at tcp:HOST:PORT or unix:PATH; restore the one in file:PATH; or defer"},
    {"tls-creds", TOOL_TEXT, &tls_creds, "DIR",
     "TLS with certificates, for migrations over TCP: ca.pem, cert.pem, key.pem, or as QEMU names them"},
    {"tls-psk", TOOL_TEXT, &tls_psk, "FILE", "TLS with a key that both sides know: a line NAME:HEX"},
    {"plaintext", TOOL_FLAG, &plaintext, NULL, "migrations over TCP without TLS, off this host too"},
    {"user", TOOL_TEXT, &run_as, "NAME",
     "be this user, without capabilities, once KVM and the devices are open"},
    {"no-confine", TOOL_FLAG, &no_confine, NULL,
     "let the threads that receive keep all rights of the process"},
    {"clone", TOOL_FLAG, &as_clone, NULL, "with --incoming file:PATH: restore it whoever else does, or did"},
    {"journal", TOOL_TEXT, &journal, "DIR", "directory of the handover journal"},
    {"discard-released", TOOL_FLAG, &discard_released, NULL,
     "start a fresh guest although the journal says that it moved away"},
    {"trace", TOOL_TEXT, &trace, "FILE", "write what each migration does, as lines of JSON"},
    {"flight-recorder", TOOL_TEXT, &flight, "FILE",
     "where the last lines of a trace go when a migration fails; otherwise into the journal's "
     "directory, as flight-recorder.jsonl"},
    {"metrics", TOOL_TEXT, &metrics, "WHERE",
     "metrics for Prometheus: file:PATH, written when a migration begins or ends; unix:PATH or "
     "tcp:HOST:PORT on loopback, by HTTP"},
    {"channels", TOOL_NUMBER, &channels, "N", "connections of a migration", .min = 1, .max = 16},
    {"working-set", TOOL_SIZE, &working_set, "SIZE",
     "memory that the guest dirties; 0: half of all", .min = 0, .max = UINT64_C(1) << 40},
    {"dirty-rate", TOOL_SIZE, &dirty_rate, "SIZE", "bytes that the guest dirties each second",
     .min = 1 << 20, .max = UINT64_C(1) << 40},
    {"dma-rate", TOOL_NUMBER, &dma_rate, "N", "DMAs each second and device; 0: without limit",
     .min = 0, .max = UINT32_MAX},
    {"dma-in-flight", TOOL_NUMBER, &dma_in_flight, "N", "descriptors kept queued per device",
     .min = 1, .max = 48},
    {"page-answers", TOOL_CHOICE, &iommu_answers, NULL,
     "when the guest answers page requests: late, once another device has worked, or never",
     .choices = "late|peer|never"},
    {"viommu-timeout", TOOL_NUMBER, &viommu_timeout_ms, "MS",
     "how long a migration waits for the guest's last answers to page requests; 0: 10000",
     .min = 0, .max = 3600000},
    {"seed", TOOL_NUMBER, &seed, "N", "of the guest's random order", .min = 1, .max = UINT64_MAX},
    {"prefault", TOOL_FLAG, &prefault, NULL, "take all of the guest's memory from the host at once"},
    {"paused", TOOL_FLAG, &paused, NULL, "do not run the guest before QMP says cont"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "vm",
    .about = "Runs a guest with VFIO devices, or with --incoming takes one over. The guest is\n"
             "built in: it dirties memory, drives its devices and checks everything it reads.",
    .options = options,
};

static struct vfmig_vmm *vmm; /* for the signal handler */

static void on_signal(int number)
{
    vfmig_vmm_quit(vmm);
}

/* 0 to what the dma device leaves for a host's PASID. */
static bool parse_pasid(const char *text, struct vfmig_vmm_device_config *ret_device)
{
    char *end;
    unsigned long value = strtoul(text, &end, 0);

    if (*text < '0' || *text > '9' || *end || value >= DMA_PASID_NONE)
        return false;
    ret_device->tagged = true;
    ret_device->pasid = (uint32_t)value;
    return true;
}

/* Length of the scheme that text begins with, if anything comes after it, else 0. */
static size_t scheme_of(const char *text, const char *scheme)
{
    size_t n = strlen(scheme);

    return !strncmp(text, scheme, n) && text[n] && text[n] != ',' ? n : 0;
}

/* "vfio-user:PATH[,dialect=D][,pasid=N][,late-load][,id=NAME]", or a kernel device's address instead;
 * text is cut into its parts. */
static int parse_device(char *text, struct vfmig_vmm_device_config *ret_device)
{
    size_t user = scheme_of(text, "vfio-user:");
    char *rest = text + user;

    if (!user && !scheme_of(text, "vfio:") && !scheme_of(text, "vfio-group:"))
        return tool_fail(&usage, TOOL_USAGE,
                         "--device: '%s' is not vfio-user:PATH, vfio:PATH or vfio-group:N:NAME",
                         text);
    *ret_device = (struct vfmig_vmm_device_config){.path = strsep(&rest, ",")};
    for (char *part; (part = strsep(&rest, ","));) {
        if (!strcmp(part, "dialect=feature"))
            ret_device->dialect = VFMIG_DIALECT_FEATURE;
        else if (!strcmp(part, "dialect=region"))
            ret_device->dialect = VFMIG_DIALECT_REGION;
        else if (!strcmp(part, "late-load"))
            ret_device->late_load = true;
        else if (!strcmp(part, "iommu=on") || !strcmp(part, "iommu=off"))
            ret_device->iommu = !strcmp(part, "iommu=on");
        else if (!strncmp(part, "pasid=", 6) && parse_pasid(part + 6, ret_device))
            continue;
        else if (!strncmp(part, "id=", 3) && part[3])
            ret_device->id = part + 3;
        else
            return tool_fail(&usage, TOOL_USAGE,
                             "--device: '%s' is neither dialect=feature|region, iommu=on|off, "
                             "pasid=N, late-load nor id=NAME", part);
    }
    return -1;
}

static int run(struct vfmig_vmm_config *config)
{
    struct vfmig_error err = {0};
    struct sigaction action = {.sa_handler = on_signal};

    int ret = vfmig_vmm_create(config, &vmm, &err);
    bool wrong = ret == -EINVAL && err.origin == VFMIG_ORIGIN_LOCAL; /* a device may say EINVAL, too */
    if (ret)
        return tool_fail(&usage, wrong ? TOOL_USAGE : TOOL_FAILED, "%s", err.text);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    ret = vfmig_vmm_run(vmm, &err);
    /* From here on a second signal ends the process at once, cleaned up or not. */
    action.sa_handler = SIG_DFL;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    vfmig_vmm_free(vmm);
    return ret ? tool_fail(&usage, TOOL_FAILED, "%s", err.text) : TOOL_OK;
}

int cmd_vm(int argc, char **argv)
{
    struct vfmig_vmm_device_config device_configs[TOOL_LIST_MAX];
    char *texts[TOOL_LIST_MAX] = {NULL};
    int code = tool_parse(&usage, argc, argv, NULL);

    if (code >= 0)
        return code;
    for (unsigned i = 0; code < 0 && i < devices.count; i++) {
        texts[i] = strdup(devices.items[i]);
        code = texts[i] ? parse_device(texts[i], &device_configs[i])
                        : tool_fail(&usage, TOOL_FAILED, "no memory");
    }
    if (code < 0 && incoming && paused)
        code = tool_fail(&usage, TOOL_USAGE, "--paused makes no sense with --incoming");
    if (code < 0 && discard_released && (incoming || !journal))
        code = tool_fail(&usage, TOOL_USAGE,
                         incoming ? "--discard-released makes no sense with --incoming"
                                  : "--discard-released makes no sense without --journal");
    if (code < 0 && !!tls_creds + !!tls_psk + plaintext > 1)
        code = tool_fail(&usage, TOOL_USAGE, "only one of --tls-creds, --tls-psk and --plaintext");
    if (code < 0 && as_clone && (!incoming || strncmp(incoming, "file:", 5)))
        code = tool_fail(&usage, TOOL_USAGE, "--clone goes with --incoming file:PATH");
    if (code < 0 && as_clone)
        fprintf(stderr, "vfmig vm: warning: a clone: the guest of this file may run, or have run, "
                        "elsewhere; what it shares with others, its addresses and disks, is not its own\n");
    if (code < 0 && no_confine)
        fprintf(stderr, "vfmig vm: warning: threads that receive a migration have all rights of this "
                        "process (--no-confine)\n");
    if (code < 0) {
        struct vfmig_vmm_config config = {
            .name = name,
            .vcpu_count = (uint32_t)cpus,
            .memory_bytes = memory,
            .devices = device_configs,
            .device_count = devices.count,
            .qmp_path = qmp_path,
            .incoming = incoming,
            .clone = as_clone,
            .journal_dir = journal,
            .security = {.tls_creds = tls_creds, .tls_psk = tls_psk, .plaintext = plaintext},
            .unconfined = no_confine,
            .user = run_as,
            .trace_path = trace,
            .flight_path = flight,
            .metrics = metrics,
            .viommu_timeout_ns = viommu_timeout_ms * 1000000,
            .channels = (uint32_t)channels,
            .prefault = prefault,
            .paused = paused,
            .discard_released = discard_released,
            .guest = {.working_set_bytes = working_set,
                      .rate_mib_s = (uint32_t)(dirty_rate >> 20),
                      .dma_ops_s = (uint32_t)dma_rate,
                      .dma_in_flight = (uint32_t)dma_in_flight,
                      .iommu_answers = !strcmp(iommu_answers, "never")  ? GUEST_ANSWERS_NEVER
                                       : !strcmp(iommu_answers, "peer") ? GUEST_ANSWERS_PEER
                                                                        : GUEST_ANSWERS_LATE,
                      .seed = seed},
        };
        vfmig_accel_parse(accel, &config.accel);
        vmm_p2p_parse(p2p, &config.p2p);
        vfmig_tracker_kind_parse(tracker, &config.tracker);
        code = run(&config);
    }
    for (unsigned i = 0; i < devices.count; i++)
        free(texts[i]);
    return code;
}
