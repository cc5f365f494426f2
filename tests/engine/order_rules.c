/* SPDX-License-Identifier: BSD-3-Clause */
#include "order_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/state.h"

#define ONE(state) (1u << VFMIG_STATE_##state)
/* A device that has just failed is dealt with when the others have arrived. */
#define QUIET   (ONE(PRE_COPY_NDMA) | ONE(RUNNING_NDMA) | ONE(STOP_COPY) | ONE(STOP) | ONE(ERROR))
#define STOPPED (ONE(STOP_COPY) | ONE(STOP) | ONE(ERROR))

/* --- lines --- */

static const char *find(const char *line, const char *key)
{
    char quoted[40];

    snprintf(quoted, sizeof(quoted), "\"%s\":", key);
    const char *at = strstr(line, quoted);
    return at ? at + strlen(quoted) : NULL;
}

static bool is(const char *line, const char *key, const char *text)
{
    const char *at = find(line, key);
    size_t length = strlen(text);

    return at && at[0] == '"' && strncmp(at + 1, text, length) == 0 && at[length + 1] == '"';
}

static long number(const char *line, const char *key)
{
    const char *at = find(line, key);

    return at ? strtol(at, NULL, 10) : -1;
}

static uint8_t state_named(const char *line, const char *key)
{
    for (uint32_t i = 0; i < VFMIG_STATE_COUNT; i++)
        if (is(line, key, vfmig_state_name(i)))
            return (uint8_t)i;
    return VFMIG_STATE_ERROR;
}

/* --- rules --- */

static bool all_in(const struct order_rules *r, uint32_t states, bool only_ndma)
{
    for (uint32_t i = 0; i < r->count; i++)
        if (!r->lost[i] && (r->ndma[i] || !only_ndma) && !(states & 1u << r->state[i]))
            return false;
    return true;
}

static void rule(struct order_rules *r, bool holds, const char *clauses, const char *line)
{
    r->judged++;
    if (!holds && !r->broken[0])
        snprintf(r->broken, sizeof(r->broken), "%s: %s", clauses, line);
}

static void source_change(struct order_rules *r, uint8_t want, const char *line)
{
    if (want == VFMIG_STATE_PRE_COPY)
        rule(r, r->tracking, "C7: the log is on before SR", line);
    if (want == VFMIG_STATE_PRE_COPY_NDMA || want == VFMIG_STATE_RUNNING_NDMA)
        rule(r, !r->parked, "C10: N while vCPUs run", line);
    if (want == VFMIG_STATE_STOP_COPY) {
        rule(r, r->parked, "C39: vCPUs are stopped before a device is", line);
        rule(r, all_in(r, QUIET, true), "C19, C55: all are in the grace state before one goes past it", line);
        rule(r, r->snapshot, "C11: the log is read in SNR", line);
    }
    if (want == VFMIG_STATE_STOP)
        rule(r, all_in(r, STOPPED, false) && r->final_log, "C13: halted when all is sent", line);
}

static void destination_change(struct order_rules *r, uint32_t device, uint8_t want, const char *line)
{
    uint32_t running = ONE(RUNNING_NDMA) | ONE(RUNNING) | ONE(ERROR);

    if (want == VFMIG_STATE_RESUMING)
        rule(r, r->was_reset[device] && all_in(r, ONE(STOP) | ONE(RESUMING) | ONE(ERROR), false),
             "C14, C15: reset, and all are halted before Z", line);
    if (want == VFMIG_STATE_RUNNING_NDMA)
        rule(r, all_in(r, ONE(STOP) | running, false), "C17: all are loaded before NR", line);
    if (want == VFMIG_STATE_RUNNING)
        rule(r, all_in(r, running, /* only_ndma= */ !r->ndma[device]),
             "C19, C58: all can be reached before one leaves N", line);
}

static void source_work(struct order_rules *r, const char *line)
{
    if (is(line, "work", "viommu-idle"))
        rule(r, !r->parked && all_in(r, QUIET, true), "C62: all are in N before faults are waited for", line);
    if (is(line, "work", "vcpu-stop"))
        rule(r, r->idle && all_in(r, QUIET, true), "C10, C61: faults are dealt with before vCPUs stop", line);
    if (is(line, "work", "snapshot"))
        rule(r, r->parked && all_in(r, QUIET, true), "C11: SNR with vCPUs stopped", line);
    if (is(line, "work", "final-log"))
        rule(r, r->parked && r->tracking && all_in(r, STOPPED, false), "C12: nobody is left in R", line);
    if (is(line, "work", "last-memory"))
        rule(r, r->final_log, "C12: what the last reading said is sent", line);
    if (is(line, "work", "track-stop"))
        rule(r, r->final_log && all_in(r, STOPPED, false), "C29: the log goes off after its last reading", line);
}

static void begins(struct order_rules *r, const char *line)
{
    uint32_t device = (uint32_t)number(line, "device");

    if (is(line, "ev", "change-begin") && !r->back && !is(line, "want", "reset")) {
        uint8_t want = state_named(line, "want");
        if (r->source)
            source_change(r, want, line);
        else
            destination_change(r, device, want, line);
    }
    if (is(line, "ev", "work-begin") && r->source && !r->back)
        source_work(r, line);
    if (is(line, "ev", "work-begin") && is(line, "work", "vcpu-start"))
        rule(r, all_in(r, ONE(RUNNING) | ONE(PRE_COPY), false), "C18, C36: every device is in R before vCPUs run", line);
    if (is(line, "ev", "data-begin")) {
        uint32_t data = is(line, "work", "data") ? ONE(PRE_COPY)
                        : r->source              ? ONE(STOP_COPY)
                                                 : ONE(RESUMING);
        rule(r, data & 1u << r->state[device], "C8, C16: data moves in SR, S and Z", line);
    }
}

static void ends(struct order_rules *r, const char *line)
{
    uint32_t device = (uint32_t)number(line, "device");

    if (is(line, "ev", "change-end")) {
        r->state[device] = state_named(line, "state");
        r->was_reset[device] |= is(line, "want", "reset") && number(line, "ret") == 0;
    }
    if (is(line, "ev", "device-lost"))
        r->lost[device] = true;
    if (is(line, "ev", "check"))
        r->returns += is(line, "verdict", "back");
    if (is(line, "ev", "round-end") && is(line, "work", "trial")) {
        r->trial_pages += (uint64_t)number(line, "pages");
        r->trials++;
    }
    if (is(line, "ev", "row"))
        r->back |= is(line, "step", "unwind") || is(line, "step", "drop");
    if (!is(line, "ev", "work-end") || number(line, "ret"))
        return;
    r->tracking |= is(line, "work", "track-start");
    r->idle |= is(line, "work", "viommu-idle");
    r->parked |= is(line, "work", "vcpu-stop");
    r->snapshot |= is(line, "work", "snapshot");
    r->final_log |= is(line, "work", "final-log");
    if (is(line, "work", "track-stop"))
        r->tracking = false;
    if (is(line, "work", "vcpu-start")) /* and what was done before the stop has to be done again */
        r->parked = r->idle = r->snapshot = false;
}

void order_rules_feed(struct order_rules *r, const char *line)
{
    const char *features = find(line, "features");
    uint32_t device = (uint32_t)number(line, "device");

    if (is(line, "ev", "trace")) {
        struct order_rules kept = *r;
        memset(r, 0, sizeof(*r));
        memcpy(r->broken, kept.broken, sizeof(r->broken));
        r->judged = kept.judged;
        r->source = is(line, "side", "source");
        r->count = (uint32_t)number(line, "devices");
        for (uint32_t i = 0; i < ORDER_DEVICES; i++)
            r->state[i] = VFMIG_STATE_RUNNING;
        if (r->count > ORDER_DEVICES) {
            r->count = 0;
            rule(r, false, "more devices than can be judged", line);
        }
        return;
    }
    if (device != UINT32_MAX && device >= ORDER_DEVICES)
        return;
    if (is(line, "ev", "device") && features) {
        r->ndma[device] = strstr(features, "ndma");
        return;
    }
    begins(r, line);
    ends(r, line);
}
