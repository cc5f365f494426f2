/* SPDX-License-Identifier: BSD-3-Clause */
/* What the engine reports, as JSON: QEMU's names where QEMU has them, the rest in "x-vfmig". */
#include "vmm/vm_priv.h"

#include <json-c/json.h>
#include <stdio.h>
#include <time.h>

#include "core/state.h"

static void add_u64(struct json_object *object, const char *name, uint64_t value)
{
    json_object_object_add(object, name, json_object_new_uint64(value));
}

static void add_text(struct json_object *object, const char *name, const char *text)
{
    json_object_object_add(object, name, json_object_new_string(text));
}

const char *vmm_migration_word(enum vfmig_migrate_state state)
{
    switch (state) {
    case VFMIG_MIGRATE_ACTIVE:
        return "active";
    case VFMIG_MIGRATE_COMPLETED:
    case VFMIG_MIGRATE_SAVED: /* "x-vfmig" tells */
        return "completed";
    case VFMIG_MIGRATE_CANCELLED:
        return "cancelled";
    case VFMIG_MIGRATE_FAILED:
    case VFMIG_MIGRATE_UNDECIDED: /* QEMU has no word for it; "unresolved" tells */
    case VFMIG_MIGRATE_PAUSED:
        return "failed";
    default:
        return "none";
    }
}

static struct json_object *ram_json(const struct vfmig_progress *p)
{
    struct json_object *ram = json_object_new_object();

    add_u64(ram, "total", p->memory_bytes);
    add_u64(ram, "transferred", p->sent_running_bytes + p->sent_stopped_bytes);
    add_u64(ram, "remaining", p->remaining_bytes);
    add_u64(ram, "duplicate", p->zero_pages);
    add_u64(ram, "normal", p->pages - (p->zero_pages < p->pages ? p->zero_pages : p->pages));
    add_u64(ram, "page-size", VFMIG_PAGE_SIZE);
    add_u64(ram, "dirty-pages-rate", p->dirty_bytes / VFMIG_PAGE_SIZE);
    add_u64(ram, "dirty-sync-count", p->rounds);
    json_object_object_add(ram, "mbps", json_object_new_double((double)p->rate_bytes * 8 / 1e6));
    return ram;
}

static struct json_object *devices_json(struct vfmig_vmm *vmm, const struct vfmig_progress *p)
{
    struct json_object *devices = json_object_new_array();

    for (uint32_t i = 0; i < p->device_count && i < VFMIG_PROGRESS_DEVICES && i < vmm->device_count;
         i++) {
        struct json_object *device = json_object_new_object();
        add_text(device, "id", vmm->pci[i].id);
        add_text(device, "state", vfmig_state_name(p->device_state[i]));
        json_object_array_add(devices, device);
    }
    return devices;
}

static struct json_object *sample_json(const struct vfmig_vm_sample *sample)
{
    struct json_object *object = json_object_new_object();

    add_u64(object, "guest-progress", sample->guest_progress);
    add_u64(object, "dma-in-flight", sample->dma_in_flight);
    add_u64(object, "interrupts-latched", sample->interrupts_latched);
    add_u64(object, "page-faults-open", sample->page_faults_open);
    add_u64(object, "peer-accesses", sample->peer_accesses);
    return object;
}

/* The steps that happened, in the order in which they began. */
static struct json_object *steps_json(const struct vfmig_progress *p)
{
    struct json_object *steps = json_object_new_array();
    uint64_t after = 0;

    for (;;) {
        unsigned next = VFMIG_STEP_COUNT;
        for (unsigned i = 0; i < VFMIG_STEP_COUNT; i++) {
            /* Ties go by number: key is start and then index. */
            uint64_t key = p->steps[i].start_ns * VFMIG_STEP_COUNT + i;
            if (p->steps[i].start_ns && key > after &&
                (next == VFMIG_STEP_COUNT ||
                 key < p->steps[next].start_ns * VFMIG_STEP_COUNT + next))
                next = i;
        }
        if (next == VFMIG_STEP_COUNT)
            return steps;
        const struct vfmig_step_report *report = &p->steps[next];
        after = report->start_ns * VFMIG_STEP_COUNT + next;
        struct json_object *step = json_object_new_object();
        add_text(step, "name", vfmig_step_name(next));
        add_u64(step, "start-ns", report->start_ns > p->started_ns ? report->start_ns - p->started_ns : 0);
        if (report->end_ns)
            add_u64(step, "ns", report->end_ns - report->start_ns);
        json_object_object_add(step, "vcpus-ran", json_object_new_boolean(report->vcpus_ran));
        json_object_object_add(step, "at-start", sample_json(&report->at_start));
        json_object_object_add(step, "at-end", sample_json(&report->at_end));
        json_object_array_add(steps, step);
    }
}

/* Names and numbers of struct vfmig_downtime; shares are inside the parts. */
static void add_downtime(struct json_object *ours, const struct vfmig_downtime *d)
{
    const struct {
        const char *name;
        uint64_t ns;
        bool share;
    } rows[] = {
        {"vCPUs stopped", d->vcpus_stop_ns, false},
        {"dirty log read, devices quiet", d->snapshot_ns, false},
        {"part of memory sent, check", d->check_ns, false},
        {"devices stopped", d->devices_stop_ns, false},
        {"vCPU and external state sent", d->vm_state_ns, false},
        {"final dirty log read", d->final_log_ns, false},
        {"last memory and device data sent", d->final_data_ns, false},
        {"destination ready", d->ready_ns, false},
        {"grant journalled", d->grant_journal_ns, false},
        {"grant on its way", d->grant_ns, false},
        {"destination resumed", d->resume_ns, false},
        {"unaccounted", d->unaccounted_ns, false},
        {"journals of both sides", d->journal_ns, true},
        {"devices loaded", d->device_load_ns, true},
        {"vCPU state loaded", d->state_load_ns, true},
        {"clock error", d->clock_error_ns, true},
    };
    struct json_object *parts = json_object_new_array();
    struct json_object *shares = json_object_new_array();

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct json_object *row = json_object_new_object();
        add_text(row, "name", rows[i].name);
        add_u64(row, "ns", rows[i].ns);
        json_object_array_add(rows[i].share ? shares : parts, row);
    }
    add_u64(ours, "downtime-ns", d->total_ns);
    json_object_object_add(ours, "parts", parts);
    json_object_object_add(ours, "shares", shares);
}

/* Both calculations, and the first one's parts beside what came. */
static void add_prediction(struct json_object *ours, const struct vfmig_progress *p)
{
    const struct vfmig_prediction *expected = &p->prediction;
    const struct vfmig_downtime *d = &p->downtime;
    const struct {
        const char *name;
        uint64_t expected_ns, ns;
    } rows[] = {
        {"vCPUs stopped", expected->stop_ns, d->vcpus_stop_ns},
        {"dirty logs read", expected->logs_ns, d->snapshot_ns + d->final_log_ns},
        {"everything sent", expected->send_ns,
         d->check_ns + d->devices_stop_ns + d->vm_state_ns + d->final_data_ns},
        {"destination ready", expected->ready_ns, d->ready_ns},
        {"granted", expected->grant_ns, d->grant_journal_ns + d->grant_ns},
        {"destination resumed", expected->resume_ns, d->resume_ns},
    };
    struct json_object *object = json_object_new_object(), *parts = json_object_new_array();

    add_u64(object, "ns", expected->total_ns);
    add_u64(object, "bound-ns", expected->bound_ns);
    add_u64(object, "decided-ns", p->decided_downtime_ns);
    add_u64(object, "returns", p->returns);
    add_u64(object, "pages", expected->pages);
    add_u64(object, "cold-pages", expected->cold_pages);
    add_u64(object, "cold-ns", expected->cold_ns);
    add_u64(object, "devices-ns", expected->devices_ns);
    add_u64(object, "bandwidth", expected->bandwidth);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct json_object *row = json_object_new_object();
        add_text(row, "name", rows[i].name);
        add_u64(row, "expected-ns", rows[i].expected_ns);
        add_u64(row, "ns", rows[i].ns);
        json_object_array_add(parts, row);
    }
    json_object_object_add(object, "parts", parts);
    if (d->total_ns) {
        json_object_object_add(object, "error", json_object_new_double(p->prediction_error / 1e3));
        json_object_object_add(object, "decided-error", json_object_new_double(p->decided_error / 1e3));
    }
    json_object_object_add(ours, "prediction", object);
}

static void add_id(struct json_object *ours, const uint8_t *id)
{
    char text[2 * VFMIG_MIGRATION_ID_BYTES + 1];

    for (unsigned i = 0; i < VFMIG_MIGRATION_ID_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", id[i]);
    add_text(ours, "migration-id", text);
}

/* What was chosen and why: the costs as measured at the start, and as they were. */
static void add_trackers(struct json_object *ours, const struct vfmig_vmm *vmm,
                         const struct vfmig_progress *p)
{
    const struct vmm_migration *migration = &vmm->migration;
    struct json_object *trackers = json_object_new_array();
    struct json_object *costs = json_object_new_object();

    for (uint32_t i = 0; i < p->tracker_count && i < VFMIG_PROGRESS_TRACKERS; i++) {
        struct json_object *tracker = json_object_new_object();
        add_text(tracker, "name", p->trackers[i].name);
        add_u64(tracker, "page-bytes", p->trackers[i].page_bytes);
        add_u64(tracker, "syncs", p->trackers[i].syncs);
        add_u64(tracker, "failures", p->trackers[i].failures);
        add_u64(tracker, "full", p->trackers[i].full);
        add_u64(tracker, "sync-ns", p->trackers[i].sync_ns);
        add_u64(tracker, "longest-ns", p->trackers[i].longest_ns);
        json_object_array_add(trackers, tracker);
    }
    for (unsigned i = 1; i < VFMIG_TRACKER_KINDS; i++)
        if (migration->costs.of[i].offered)
            add_u64(costs, vfmig_tracker_kind_name((enum vfmig_tracker_kind)i),
                    vfmig_tracker_cost_ns(&migration->costs.of[i], p->memory_bytes));
    add_text(ours, "tracker", vfmig_tracker_kind_name(migration->kind));
    json_object_object_add(ours, "tracker-costs-ns", costs);
    json_object_object_add(ours, "trackers", trackers);
}

static struct json_object *ours_json(struct vfmig_vmm *vmm, const struct vfmig_progress *p,
                                     uint64_t elapsed)
{
    struct json_object *ours = json_object_new_object();

    add_text(ours, "state", vfmig_migrate_state_name(p->state));
    add_text(ours, "step", vfmig_step_name(p->step));
    json_object_object_add(ours, "unresolved",
                           json_object_new_boolean(p->state == VFMIG_MIGRATE_UNDECIDED));
    add_id(ours, p->migration_id);
    add_u64(ours, "epoch", p->epoch);
    if (vmm_flight_told(&vmm->flight))
        add_text(ours, "flight-recorder", vmm->flight.path);
    json_object_object_add(ours, "devices", devices_json(vmm, p));
    add_u64(ours, "devices-lost", p->devices_lost);
    add_u64(ours, "devices-reset", p->devices_reset);
    add_u64(ours, "total-ns", elapsed);
    add_u64(ours, "rounds", p->rounds);
    add_u64(ours, "rate-bytes-s", p->rate_bytes);
    add_u64(ours, "dirty-bytes-s", p->dirty_bytes);
    if (p->predicted_downtime_ns)
        add_u64(ours, "predicted-downtime-ns", p->predicted_downtime_ns);
    add_u64(ours, "downtime-limit-ns", p->downtime_limit_ns);
    if (p->prediction.bound_ns)
        add_prediction(ours, p);
    add_u64(ours, "stuck-rounds", p->stuck_rounds);
    json_object_object_add(ours, "not-converging", json_object_new_boolean(p->not_converging));
    add_u64(ours, "sent-running-bytes", p->sent_running_bytes);
    add_u64(ours, "sent-stopped-bytes", p->sent_stopped_bytes);
    add_u64(ours, "memory-running-bytes", p->memory_running_bytes);
    add_u64(ours, "memory-stopped-bytes", p->memory_stopped_bytes);
    add_u64(ours, "pages", p->pages);
    add_u64(ours, "zero-pages", p->zero_pages);
    add_u64(ours, "device-bytes", p->device_bytes);
    add_u64(ours, "working-set-pages", p->working_set_pages);
    add_u64(ours, "dma-in-flight", p->dma_in_flight);
    add_u64(ours, "interrupts-latched", p->interrupts_latched);
    add_u64(ours, "page-faults-open", p->page_faults_open);
    add_u64(ours, "final-log-pages", p->final_log_pages);
    json_object_object_add(ours, "clock-offset-ns", json_object_new_int64(p->clock_offset_ns));
    add_u64(ours, "clock-error-ns", p->clock_error_ns);
    add_u64(ours, "rtt-ns", p->rtt_ns);
    add_u64(ours, "journal-total-ns", p->journal_total_ns);
    add_u64(ours, "journal-writes", p->journal_writes);
    add_trackers(ours, vmm, p);
    json_object_object_add(ours, "steps", steps_json(p));
    add_downtime(ours, &p->downtime);
    return ours;
}

static uint64_t elapsed_ns(const struct vfmig_progress *p)
{
    struct timespec now;

    if (!p->started_ns)
        return 0;
    if (p->ended_ns)
        return p->ended_ns - p->started_ns;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec - p->started_ns;
}

struct json_object *vmm_progress_json(struct vfmig_vmm *vmm, const struct vfmig_progress *progress)
{
    struct json_object *result = json_object_new_object();
    const uint64_t elapsed = elapsed_ns(progress);

    if (progress->state == VFMIG_MIGRATE_NONE)
        return result; /* as QEMU: no migration, nothing to say */
    add_text(result, "status", vmm_migration_word(progress->state));
    add_u64(result, "total-time", elapsed / 1000000);
    if (progress->state == VFMIG_MIGRATE_COMPLETED)
        add_u64(result, "downtime", progress->downtime.total_ns / 1000000);
    else
        add_u64(result, "expected-downtime", progress->predicted_downtime_ns / 1000000);
    if (progress->error.code)
        add_text(result, "error-desc", progress->error.text);
    if (progress->throttle_percent) /* QEMU's name, and it has it only while it is not 0, too */
        add_u64(result, "cpu-throttle-percentage", progress->throttle_percent);
    json_object_object_add(result, "ram", ram_json(progress));
    json_object_object_add(result, "x-vfmig", ours_json(vmm, progress, elapsed));
    return result;
}

int vmm_metrics_text(void *opaque, struct vfmig_buffer *out)
{
    struct vfmig_vmm *vmm = opaque;
    struct vfmig_progress progress;

    vmm_migration_status(vmm, &progress);
    vmm_metrics_note(&vmm->metrics, &progress);
    return vmm_metrics_print(&vmm->metrics, out);
}
