/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/metrics.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buffer.h"
#include "vmm/vm_flight.h"

static const struct vmm_metric table[] = {
#define METRIC(metric, kind, in, text, value, about)                                               \
    {.name = #metric, .type = VMM_##kind, .unit = VMM_##in, .labels = text, .field = #value,       \
     .help = about},
#include "../tables/metrics.def"
    {0},
};

#define ROWS (sizeof(table) / sizeof(table[0]) - 1)
_Static_assert(ROWS <= VMM_MAX_METRICS, "a row without room for its sum");

const struct vmm_metric *vmm_metrics(void)
{
    return table;
}

static void take_values(const struct vfmig_progress *p, uint64_t values[VMM_MAX_METRICS])
{
    unsigned row = 0;
#define METRIC(metric, kind, in, text, value, about) values[row++] = (uint64_t)p->value;
#include "../tables/metrics.def"
    assert(row == ROWS);
}

void vmm_metrics_init(struct vmm_metrics *metrics)
{
    *metrics = (struct vmm_metrics){0};
    pthread_mutex_init(&metrics->lock, NULL);
}

void vmm_metrics_done(struct vmm_metrics *metrics)
{
    pthread_mutex_destroy(&metrics->lock);
}

void vmm_metrics_leave(struct vmm_metrics *metrics)
{
    pthread_mutex_lock(&metrics->lock);
    metrics->source = true;
    pthread_mutex_unlock(&metrics->lock);
}

bool vmm_metrics_line(struct vmm_metrics *metrics, const char *line)
{
    char event[64];

    pthread_mutex_lock(&metrics->lock);
    bool source = metrics->source, over = vmm_trace_is(line, source, "end\"");
    if (vmm_trace_is(line, source, "state\"")) {
        unsigned state = VFMIG_MIGRATE_ACTIVE + 1;
        for (; state < VFMIG_MIGRATE_STATE_COUNT; state++) {
            snprintf(event, sizeof(event), "state\",\"state\":\"%s\"", vfmig_migrate_state_name(state));
            metrics->ended[source][state] += vmm_trace_is(line, source, event);
        }
    }
    pthread_mutex_unlock(&metrics->lock);
    return over;
}

/* Whether nothing more will come of it: an open outcome is settled some day. */
static bool has_ended(enum vfmig_migrate_state state)
{
    return state == VFMIG_MIGRATE_COMPLETED || state == VFMIG_MIGRATE_FAILED ||
           state == VFMIG_MIGRATE_CANCELLED || state == VFMIG_MIGRATE_SAVED;
}

void vmm_metrics_note(struct vmm_metrics *metrics, const struct vfmig_progress *progress)
{
    uint64_t values[VMM_MAX_METRICS];

    if (progress->state == VFMIG_MIGRATE_NONE)
        return;
    pthread_mutex_lock(&metrics->lock);
    metrics->last = *progress;
    if (metrics->source && has_ended(progress->state)) {
        if (memcmp(metrics->counted, progress->migration_id, sizeof(metrics->counted)))
            memset(metrics->share, 0, sizeof(metrics->share));
        memcpy(metrics->counted, progress->migration_id, sizeof(metrics->counted));
        take_values(progress, values);
        for (unsigned row = 0; row < ROWS; row++) {
            if (values[row] <= metrics->share[row])
                continue;
            metrics->sums[row] += values[row] - metrics->share[row];
            metrics->share[row] = values[row];
        }
    }
    pthread_mutex_unlock(&metrics->lock);
}

/* --- the text --- */

static int begin_metric(struct vfmig_buffer *out, const char *name, const char *type, const char *help)
{
    return vfmig_buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static int print_value(struct vfmig_buffer *out, enum vmm_metric_unit unit, uint64_t value)
{
    if (unit == VMM_SECONDS)
        return vfmig_buffer_printf(out, "%" PRIu64 ".%09u\n", value / 1000000000u,
                                   (unsigned)(value % 1000000000u));
    if (unit == VMM_PERCENT)
        return vfmig_buffer_printf(out, "%" PRIu64 ".%02u\n", value / 100u, (unsigned)(value % 100u));
    return vfmig_buffer_printf(out, "%" PRIu64 "\n", value);
}

static int print_rows(const struct vmm_metrics *metrics, struct vfmig_buffer *out)
{
    uint64_t values[VMM_MAX_METRICS];
    int ret = 0;

    take_values(&metrics->last, values);
    for (unsigned row = 0; !ret && row < ROWS; row++) {
        const struct vmm_metric *metric = &table[row];
        bool counter = metric->type == VMM_COUNTER;

        if (!row || strcmp(metric->name, table[row - 1].name))
            ret = begin_metric(out, metric->name, counter ? "counter" : "gauge", metric->help);
        if (!ret)
            ret = *metric->labels
                      ? vfmig_buffer_printf(out, "%s{%s} ", metric->name, metric->labels)
                      : vfmig_buffer_printf(out, "%s ", metric->name);
        if (!ret)
            ret = print_value(out, metric->unit, counter ? metrics->sums[row] : values[row]);
    }
    return ret;
}

static int print_states(const struct vmm_metrics *metrics, struct vfmig_buffer *out)
{
    int ret = begin_metric(out, "vfmig_build_info", "gauge", "1, with the version");

    if (!ret)
        ret = vfmig_buffer_printf(out, "vfmig_build_info{version=\"%s\"} 1\n", VFMIG_VERSION);
    if (!ret)
        ret = begin_metric(out, "vfmig_migration_state", "gauge",
                           "1 for the state of the last or current migration");
    for (unsigned state = 0; !ret && state < VFMIG_MIGRATE_STATE_COUNT; state++)
        ret = vfmig_buffer_printf(out, "vfmig_migration_state{state=\"%s\"} %d\n",
                                  vfmig_migrate_state_name(state), metrics->last.state == state);
    if (!ret)
        ret = begin_metric(out, "vfmig_migrations_total", "counter",
                           "attempts that came to this state; an open outcome counts besides what comes of it");
    for (unsigned i = 0; i < 2 * VFMIG_MIGRATE_STATE_COUNT; i++) {
        unsigned state = i % VFMIG_MIGRATE_STATE_COUNT, source = i < VFMIG_MIGRATE_STATE_COUNT;
        if (!ret && state > VFMIG_MIGRATE_ACTIVE)
            ret = vfmig_buffer_printf(
                out, "vfmig_migrations_total{role=\"%s\",outcome=\"%s\"} %" PRIu64 "\n",
                source ? "source" : "destination", vfmig_migrate_state_name(state),
                metrics->ended[source][state]);
    }
    return ret;
}

int vmm_metrics_print(struct vmm_metrics *metrics, struct vfmig_buffer *out)
{
    pthread_mutex_lock(&metrics->lock);
    int ret = print_states(metrics, out);
    if (!ret)
        ret = print_rows(metrics, out);
    pthread_mutex_unlock(&metrics->lock);
    return ret;
}
