/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM's QMP commands. Names and fields are QEMU's where QEMU has them. */
#include "vmm/vm_priv.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "base/bounds.h"
#include "base/buffer.h"
#include "engine/pack.h"

static void add_u64(struct json_object *object, const char *name, uint64_t value)
{
    json_object_object_add(object, name, json_object_new_uint64(value));
}

static int run_query_version(void *opaque, struct json_object *args,
                             struct json_object **ret_result, struct vfmig_error *reterr)
{
    *ret_result = vfmig_qmp_version();
    return 0;
}

static int run_query_status(void *opaque, struct json_object *args,
                            struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct json_object *result = json_object_new_object();

    pthread_mutex_lock(&vmm->lock);
    enum vmm_run_state state = vmm->run_state;
    pthread_mutex_unlock(&vmm->lock);
    json_object_object_add(result, "running", json_object_new_boolean(state == VMM_RUNNING));
    json_object_object_add(result, "status", json_object_new_string(vmm_run_state_name(state)));
    *ret_result = result;
    return 0;
}

static int run_query_name(void *opaque, struct json_object *args, struct json_object **ret_result,
                          struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;

    *ret_result = json_object_new_object();
    json_object_object_add(*ret_result, "name", json_object_new_string(vmm->name));
    return 0;
}

static int run_stop(void *opaque, struct json_object *args, struct json_object **ret_result,
                    struct vfmig_error *reterr)
{
    return vmm_stop(opaque, reterr);
}

static int run_cont(void *opaque, struct json_object *args, struct json_object **ret_result,
                    struct vfmig_error *reterr)
{
    return vmm_cont(opaque, reterr);
}

static int run_quit(void *opaque, struct json_object *args, struct json_object **ret_result,
                    struct vfmig_error *reterr)
{
    vfmig_vmm_quit(opaque);
    return 0;
}

static int run_system_reset(void *opaque, struct json_object *args,
                            struct json_object **ret_result, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EOPNOTSUPP, VFMIG_ORIGIN_LOCAL, 0,
                           "this VMM cannot reset its guest; start a new one");
}

static struct json_object *cpu_score(const struct guest_cpu_score *cpu)
{
    struct json_object *object = json_object_new_object();

    add_u64(object, "heartbeats", cpu->heartbeats);
    add_u64(object, "pages-written", cpu->pages_written);
    add_u64(object, "pages-verified", cpu->pages_verified);
    add_u64(object, "cycles", cpu->cycles);
    add_u64(object, "sleeps", cpu->sleeps);
    add_u64(object, "ticks", cpu->ticks);
    add_u64(object, "register-checks", cpu->register_checks);
    add_u64(object, "pause-max-ns", cpu->pause_max_ns);
    add_u64(object, "pause-last-ns", cpu->pause_last_ns);
    add_u64(object, "pause-last-tsc", cpu->pause_last_tsc);
    add_u64(object, "pauses", cpu->pauses);
    add_u64(object, "pause-move-ns", cpu->pause_move_ns);
    add_u64(object, "resets", cpu->resets);
    return object;
}

static struct json_object *device_score(const struct guest_device_score *device)
{
    struct json_object *object = json_object_new_object();
    struct json_object *irqs = json_object_new_array();
    struct json_object *asked = json_object_new_array();

    add_u64(object, "queued", device->queued);
    add_u64(object, "completed", device->completed);
    add_u64(object, "checked", device->checked);
    add_u64(object, "targets-rechecked", device->targets_rechecked);
    add_u64(object, "sram-checks", device->sram_checks);
    add_u64(object, "doorbells", device->doorbells);
    add_u64(object, "irq-remaps", device->irq_remaps);
    add_u64(object, "p2p-done", device->p2p_done);
    add_u64(object, "p2p-checked", device->p2p_checked);
    add_u64(object, "p2p-looks", device->p2p_looks);
    add_u64(object, "digest", device->digest);
    add_u64(object, "digest-at", device->digest_at);
    for (unsigned i = 0; i < GUEST_VECTORS; i++) {
        json_object_array_add(irqs, json_object_new_uint64(device->irqs[i]));
        json_object_array_add(asked, json_object_new_uint64(device->irqs_asked[i]));
    }
    json_object_object_add(object, "irqs", irqs);
    json_object_object_add(object, "irqs-asked", asked);
    return object;
}

static struct json_object *iommu_score(const struct guest_iommu_score *iommu)
{
    struct json_object *object = json_object_new_object();

    add_u64(object, "faults", iommu->faults);
    add_u64(object, "answered", iommu->answered);
    add_u64(object, "refused", iommu->refused);
    add_u64(object, "withdrawn", iommu->withdrawn);
    add_u64(object, "late", iommu->late);
    add_u64(object, "open", iommu->open);
    add_u64(object, "maps", iommu->maps);
    add_u64(object, "unmaps", iommu->unmaps);
    add_u64(object, "efaults", iommu->efaults);
    return object;
}

/* What the guest says about itself. The counters change while they are read. */
static int run_guest(void *opaque, struct json_object *args, struct json_object **ret_result,
                     struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    const struct guest_scoreboard *board = vfmig_machine_scoreboard(vmm->machine);
    struct json_object *result = json_object_new_object();
    struct json_object *cpus = json_object_new_array();
    struct json_object *devices = json_object_new_array();
    struct json_object *details = json_object_new_array();

    json_object_object_add(result, "alive", json_object_new_boolean(board->magic == GUEST_PARAMS_MAGIC));
    json_object_object_add(result, "accel",
                           json_object_new_string(vfmig_accel_name(vfmig_machine_accel(vmm->machine))));
    add_u64(result, "vcpus-started", board->vcpus_started);
    add_u64(result, "errors", board->errors);
    add_u64(result, "first-error", board->first_error);
    add_u64(result, "first-vcpu", board->first_vcpu);
    for (unsigned i = 0; i < 4; i++)
        json_object_array_add(details, json_object_new_uint64(board->first_detail[i]));
    json_object_object_add(result, "first-detail", details);
    for (uint32_t i = 0; i < board->vcpus_started && i < GUEST_MAX_VCPUS; i++)
        json_object_array_add(cpus, cpu_score(&board->cpu[i]));
    json_object_object_add(result, "cpus", cpus);
    if (vmm->iommu)
        json_object_object_add(result, "iommu", iommu_score(&board->iommu));
    for (uint32_t i = 0; i < vmm->device_count; i++) {
        struct json_object *device = device_score(&board->device[i]);
        json_object_object_add(device, "id", json_object_new_string(vmm->pci[i].id));
        add_u64(device, "mmio-reads", vmm->pci[i].reads);
        add_u64(device, "mmio-writes", vmm->pci[i].writes);
        add_u64(device, "mmio-failures", vmm->pci[i].failures);
        json_object_array_add(devices, device);
    }
    json_object_object_add(result, "devices", devices);
    *ret_result = result;
    return 0;
}

static int run_guest_reset_pause(void *opaque, struct json_object *args,
                                 struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;

    vfmig_machine_reset_pause(vmm->machine);
    return 0;
}

/* --- migration --- */

static bool get_bool(struct json_object *args, const char *name)
{
    return json_object_get_boolean(json_object_object_get(args, name));
}

/* 0 when it is not there. Ranges are checked by the callers. */
static int64_t get_int(struct json_object *args, const char *name)
{
    struct json_object *value;
    return json_object_object_get_ex(args, name, &value) ? json_object_get_int64(value) : 0;
}

static int check_range(struct json_object *args, const char *name, int64_t min, int64_t max,
                       struct vfmig_error *reterr)
{
    struct json_object *value;

    if (!json_object_object_get_ex(args, name, &value) ||
        (json_object_get_int64(value) >= min && json_object_get_int64(value) <= max))
        return 0;
    return vfmig_error_set(reterr, -ERANGE, VFMIG_ORIGIN_PEER, 0, "%s must be from %lld to %lld", name,
                           (long long)min, (long long)max);
}

static int get_on_deadline(struct json_object *args, struct vmm_migration_request *request,
                           struct vfmig_error *reterr)
{
    const char *word = json_object_get_string(json_object_object_get(args, "x-on-deadline"));

    if (!word)
        return 0;
    if (!request->deadline_ns)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "x-on-deadline says nothing without x-deadline");
    if (strcmp(word, "fail") && strcmp(word, "force"))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "x-on-deadline must be fail or force");
    request->on_deadline = strcmp(word, "force") ? VFMIG_ON_DEADLINE_FAIL : VFMIG_ON_DEADLINE_FORCE;
    return 0;
}

static int run_migrate(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr)
{
    struct json_object *uri = json_object_object_get(args, "uri");
    struct vmm_migration_request request = {
        .channels = (uint32_t)get_int(args, "x-channels"),
        .deadline_ns = (uint64_t)get_int(args, "x-deadline") * 1000000000u,
        .local = get_bool(args, "x-local"),
        .trace = get_bool(args, "x-trace"),
        .security = vmm_qmp_security(args)};
    int ret = check_range(args, "x-channels", 1, VFMIG_MAX_CHANNELS, reterr);

    if (!ret)
        ret = check_range(args, "x-deadline", 1, 1000000, reterr);
    if (!ret)
        ret = get_on_deadline(args, &request, reterr);
    return ret ? ret : vmm_migration_start(opaque, json_object_get_string(uri), &request, reterr);
}

static int run_check(void *opaque, struct json_object *args, struct json_object **ret_result,
                     struct vfmig_error *reterr)
{
    const struct vfmig_security security = vmm_qmp_security(args);

    return vmm_migration_check(opaque, json_object_get_string(json_object_object_get(args, "uri")),
                               get_bool(args, "x-local"), &security, ret_result, reterr);
}

static int run_trace(void *opaque, struct json_object *args, struct json_object **ret_result,
                     struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    int ret = check_range(args, "from", 0, INT64_MAX, reterr);

    if (!ret)
        *ret_result = vmm_trace_fetch(&vmm->trace, (uint64_t)get_int(args, "from"));
    return ret;
}

static int run_set_dialect(void *opaque, struct json_object *args,
                           struct json_object **ret_result, struct vfmig_error *reterr)
{
    const char *name = json_object_get_string(json_object_object_get(args, "dialect"));

    if (!strcmp(name, "feature"))
        return vmm_set_dialect(opaque, VFMIG_DIALECT_FEATURE, reterr);
    if (!strcmp(name, "region"))
        return vmm_set_dialect(opaque, VFMIG_DIALECT_REGION, reterr);
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                           "'dialect' is neither feature nor region");
}

static int run_migrate_incoming(void *opaque, struct json_object *args,
                                struct json_object **ret_result, struct vfmig_error *reterr)
{
    const char *uri = json_object_get_string(json_object_object_get(args, "uri"));
    const struct vfmig_security security = vmm_qmp_security(args);

    return vmm_migration_incoming(opaque, uri, get_bool(args, "x-clone"), &security, reterr);
}

static int run_migrate_cancel(void *opaque, struct json_object *args,
                              struct json_object **ret_result, struct vfmig_error *reterr)
{
    vmm_migration_cancel(opaque);
    return 0;
}

/* What vfmig resolve asks for. */
static int run_resolve(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr)
{
    static const char *const decisions[VFMIG_RESOLVE_DECISION_COUNT] = {
        [VFMIG_RESOLVE_SETTLE] = "settle",
        [VFMIG_RESOLVE_RUN] = "run",
        [VFMIG_RESOLVE_REFUSE] = "refuse",
        [VFMIG_RESOLVE_DISCARD] = "discard",
    };
    const char *word = json_object_get_string(json_object_object_get(args, "decision"));
    const char *role = json_object_get_string(json_object_object_get(args, "role"));
    struct vfmig_resolve_request request = {
        .source_is_fenced = get_bool(args, "source-is-fenced"),
        .peer_memory = get_bool(args, "peer-memory"),
        .peer_record = (uint8_t)get_int(args, "peer-record"),
        .peer_epoch = (uint32_t)get_int(args, "peer-epoch"),
    };
    int ret = check_range(args, "peer-record", 0, VFMIG_HO_RECORD_COUNT - 1, reterr);

    if (!ret)
        ret = check_range(args, "peer-epoch", 0, UINT32_MAX, reterr);
    if (ret)
        return ret;
    unsigned decision = 0;
    while (decision < VFMIG_RESOLVE_DECISION_COUNT && strcmp(decisions[decision], word))
        decision++;
    bool source = !strcmp(role, "source");
    if (decision == VFMIG_RESOLVE_DECISION_COUNT || (!source && strcmp(role, "destination")) ||
        vfmig_ho_id_parse(json_object_get_string(json_object_object_get(args, "id")), request.id))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "no such decision, role or migration id");
    request.decision = decision;
    return vmm_migration_resolve(opaque, source, &request, reterr);
}

static int run_set_parameters(void *opaque, struct json_object *args,
                              struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct vfmig_migrate_options *options = &vmm->migration.options;
    int ret = check_range(args, "downtime-limit", 1, 2000000, reterr);

    if (!ret)
        ret = check_range(args, "max-bandwidth", 0, INT64_MAX, reterr);
    if (!ret)
        ret = check_range(args, "multifd-channels", 1, VFMIG_MAX_CHANNELS, reterr);
    if (!ret)
        ret = check_range(args, "max-cpu-throttle", 0, VFMIG_MACHINE_MAX_THROTTLE, reterr);
    if (!ret)
        ret = check_range(args, "multifd-zstd-level", 1, VFMIG_PACK_LEVEL_MAX, reterr);
    const char *compression = json_object_get_string(json_object_object_get(args, "multifd-compression"));
    if (!ret && compression && strcmp(compression, "none") && strcmp(compression, "zstd"))
        ret = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                              "multifd-compression is neither none nor zstd");
    if (!ret && compression && !strcmp(compression, "zstd") && !vfmig_pack_supported())
        ret = vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0, "this build has no zstd");
    if (ret)
        return ret;
    pthread_mutex_lock(&vmm->migration.lock);
    if (compression)
        options->zstd_level = strcmp(compression, "zstd") ? 0 : VFMIG_PACK_LEVEL_DEFAULT;
    if (options->zstd_level && json_object_object_get(args, "multifd-zstd-level"))
        options->zstd_level = (uint32_t)get_int(args, "multifd-zstd-level");
    if (json_object_object_get(args, "downtime-limit"))
        options->downtime_limit_ns = (uint64_t)get_int(args, "downtime-limit") * 1000000u;
    if (json_object_object_get(args, "max-bandwidth"))
        options->max_bandwidth = (uint64_t)get_int(args, "max-bandwidth");
    if (json_object_object_get(args, "multifd-channels"))
        options->channels = (uint32_t)get_int(args, "multifd-channels");
    if (json_object_object_get(args, "max-cpu-throttle"))
        options->throttle_max = (uint32_t)get_int(args, "max-cpu-throttle");
    pthread_mutex_unlock(&vmm->migration.lock);
    return 0;
}

static int run_query_parameters(void *opaque, struct json_object *args,
                                struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct json_object *result = json_object_new_object();

    pthread_mutex_lock(&vmm->migration.lock);
    add_u64(result, "downtime-limit", vmm->migration.options.downtime_limit_ns / 1000000u);
    add_u64(result, "max-bandwidth", vmm->migration.options.max_bandwidth);
    add_u64(result, "multifd-channels", vmm->migration.options.channels);
    add_u64(result, "max-cpu-throttle", vmm->migration.options.throttle_max);
    json_object_object_add(result, "multifd-compression",
                           json_object_new_string(vmm->migration.options.zstd_level ? "zstd" : "none"));
    if (vmm->migration.options.zstd_level)
        add_u64(result, "multifd-zstd-level", vmm->migration.options.zstd_level);
    pthread_mutex_unlock(&vmm->migration.lock);
    *ret_result = result;
    return 0;
}

static int run_query_migrate(void *opaque, struct json_object *args,
                             struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct vfmig_progress progress;

    vmm_migration_status(opaque, &progress);
    *ret_result = vmm_progress_json(opaque, &progress);
    uint16_t port = vmm_migration_port(opaque);
    if (port) {
        struct json_object *list = json_object_new_array(), *address = json_object_new_object();
        json_object_object_add(address, "type", json_object_new_string("inet"));
        json_object_object_add(address, "port", json_object_new_int(port));
        json_object_array_add(list, address);
        json_object_object_add(*ret_result, "socket-address", list);
    }
    return 0;
}

static int run_metrics(void *opaque, struct json_object *args, struct json_object **ret_result,
                       struct vfmig_error *reterr)
{
    struct vfmig_buffer text = {0};

    if (vmm_metrics_text(opaque, &text)) {
        vfmig_buffer_free(&text);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the metrics");
    }
    *ret_result = json_object_new_object();
    json_object_object_add(*ret_result, "text",
                           json_object_new_string_len((const char *)text.data, (int)text.size));
    vfmig_buffer_free(&text);
    return 0;
}

/* vmm_qmp_security takes them. */
#define SECURITY "x-tls-creds:s?,x-tls-psk:s?,x-tls-hostname:s?,x-plaintext:b?"

const struct vfmig_qmp_command vmm_qmp_commands[] = {
    {"query-version", NULL, run_query_version},
    {"query-status", NULL, run_query_status},
    {"query-name", NULL, run_query_name},
    {"stop", NULL, run_stop},
    {"cont", NULL, run_cont},
    {"quit", NULL, run_quit},
    {"system_reset", NULL, run_system_reset},
    {"migrate", "uri:s,x-channels:i?,x-deadline:n?,x-on-deadline:s?,x-local:b?,x-trace:b?," SECURITY,
     run_migrate},
    {"x-vfmig-trace", "from:i", run_trace},
    {"migrate-incoming", "uri:s,x-clone:b?," SECURITY, run_migrate_incoming},
    {"x-vfmig-check", "uri:s,x-local:b?," SECURITY, run_check},
    {"migrate_cancel", NULL, run_migrate_cancel},
    {"x-set-dialect", "dialect:s", run_set_dialect},
    {"migrate-set-parameters",
     "downtime-limit:i?,max-bandwidth:i?,multifd-channels:i?,max-cpu-throttle:i?,"
     "multifd-compression:s?,multifd-zstd-level:i?",
     run_set_parameters},
    {"query-migrate-parameters", NULL, run_query_parameters},
    {"query-migrate", NULL, run_query_migrate},
    {"x-vfmig-metrics", NULL, run_metrics},
    {"x-vfmig-resolve",
     "id:s,role:s,decision:s,source-is-fenced:b?,peer-record:i?,peer-epoch:i?,peer-memory:b?",
     run_resolve},
    {"device_add", "driver:s,id:s,socket:o,x-dialect:s?", vmm_qmp_device_add},
    {"device_del", "id:s", vmm_qmp_device_del},
    {"x-query-peers", NULL, vmm_qmp_query_peers},
    {"x-guest", NULL, run_guest},
    {"x-guest-reset-pause", NULL, run_guest_reset_pause},
    {NULL, NULL, NULL},
};
