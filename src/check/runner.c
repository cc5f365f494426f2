/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs rules: which ones apply, each from the same start, a verdict each, and on after anything. */
#include <stdarg.h>
#include <stdio.h>
#include <strings.h>

#include "check/rule.h"
#include "io/sock.h"

#define DEADLINE_MS 2000u
#define MAX_ROUNDS  1000u
#define MAX_LOST    3u /* rules in a row that find no device: it is gone */

const char *check_verdict_name(enum check_verdict verdict)
{
    static const char *const names[CHECK_VERDICT_COUNT] = {"pass", "fail", "warn", "skipped",
                                                           "n.a."};

    return verdict < CHECK_VERDICT_COUNT ? names[verdict] : "unknown";
}

/* Same clause of "C42, X10"? */
static bool clause_is(const struct check_rule *rule, const char *name)
{
    size_t size = strlen(name);

    for (const char *at = rule->clause; (at = strcasestr(at, name)); at += size)
        if ((at == rule->clause || at[-1] == ' ') && (at[size] == 0 || at[size] == ','))
            return true;
    return false;
}

static bool listed(const struct check_rule *rule, const char *const *names, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (!strcasecmp(rule->id, names[i]) || !strcasecmp(rule->theme, names[i]) ||
            clause_is(rule, names[i]))
            return true;
    return false;
}

/* ---- does it apply? ---- */

/* A need, what says that it is there, and what is said when it is not. */
struct need {
    unsigned bit;
    bool of_checker; /* skipped, not n.a. */
    const char *why;
};

static const struct need needs[] = {
    {CHECK_NEED_PRE_COPY, false, "the device has no pre-copy"},
    {CHECK_NEED_NDMA, false, "the device has no NDMA (P2P) states"},
    {CHECK_NEED_LOG, false, "the device does not log its DMA, in pages of 4 KiB to 512 KiB"},
    {CHECK_NEED_LOG_TOLD, false, "the device does not tell of a log (VERSION: migration.pgsize)"},
    {CHECK_NEED_DATA_SIZE, false, "the device does not tell MIG_DATA_SIZE"},
    {CHECK_NEED_PRECOPY_INFO, false, "the device does not tell PRECOPY_INFO"},
    {CHECK_NEED_BAR, false, "the device has no BAR that can be accessed"},
    {CHECK_NEED_MSIX, false, "the device has no MSI-X"},
    {CHECK_NEED_CONFIG, false, "the device has no PCI config space"},
    {CHECK_NEED_RAW, true, "this kind of target cannot be told wrong messages"},
    {CHECK_NEED_POSTED, true, "this kind of target answers everything"},
    {CHECK_NEED_MESSAGE, true, "this kind of target has no DMA by message"},
    {CHECK_NEED_DMA, true, "no workload that makes the device's DMA happen"},
    {CHECK_NEED_CHANGE, true, "no workload that changes the device's internal state"},
    {CHECK_NEED_IRQ, true, "no workload that raises interrupts"},
    {CHECK_NEED_PEER, true, "no second device (--peer)"},
};

static unsigned what_is_there(const struct check *c)
{
    const struct check_facts *facts = &c->port->facts;
    bool region = c->dialect == CHECK_DIALECT_REGION;
    uint32_t bar;
    uint64_t size;
    unsigned there = 0;

    there |= check_has_pre_copy(c) ? CHECK_NEED_PRE_COPY : 0;
    there |= check_has_ndma(c) ? CHECK_NEED_NDMA : 0;
    there |= (region ? facts->log_region : facts->log_feature) ? CHECK_NEED_LOG : 0;
    there |= facts->log_told ? CHECK_NEED_LOG_TOLD : 0;
    there |= facts->data_size ? CHECK_NEED_DATA_SIZE : 0;
    there |= facts->precopy_info ? CHECK_NEED_PRECOPY_INFO : 0;
    there |= check_bar(c, &bar, &size) ? CHECK_NEED_BAR : 0;
    there |= facts->msix_vectors ? CHECK_NEED_MSIX : 0;
    there |= facts->pci ? CHECK_NEED_CONFIG : 0;
    there |= facts->raw ? CHECK_NEED_RAW : 0;
    there |= facts->posted ? CHECK_NEED_POSTED : 0;
    there |= facts->by_message ? CHECK_NEED_MESSAGE : 0;
    const struct check_workload *w = c->workload; /* its functions are used together */
    there |= w && w->dma_write && w->dma_start && w->dma_done ? CHECK_NEED_DMA : 0;
    there |= w && w->dma_start_irq && w->dma_done ? CHECK_NEED_IRQ : 0;
    there |= w && w->change && w->digest ? CHECK_NEED_CHANGE : 0;
    there |= c->peer && c->peer->facts.dialects & c->dialect ? CHECK_NEED_PEER : 0;
    return there;
}

/* Fills verdict and why when the rule is not run. */
static bool applies(struct check *c)
{
    const struct check_rule *rule = c->rule;
    unsigned missing = rule->needs & ~what_is_there(c);

    for (int of_checker = 0; of_checker < 2; of_checker++)
        for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
            if (missing & needs[i].bit && needs[i].of_checker == (bool)of_checker) {
                (of_checker ? check_skip : check_not_applicable)(c, "%s", needs[i].why);
                return false;
            }
    if (listed(rule, c->options->skip, c->options->skip_count)) {
        check_skip(c, "asked for (--skip)");
        return false;
    }
    if (rule->flags & CHECK_DESTRUCTIVE && !c->options->allow_destructive) {
        check_skip(c, "destructive: --allow-destructive runs it");
        return false;
    }
    if (rule->flags & CHECK_DEEP && c->options->quick) {
        check_skip(c, "not among the quick ones (--quick)");
        return false;
    }
    return true;
}

/* ---- one rule ---- */

static void explain_trouble(struct check *c)
{
    if (c->found || !check_gone(c))
        return;
    snprintf(c->result.expected, sizeof(c->result.expected), "an answer within %u ms",
             c->port->deadline_ms);
    snprintf(c->result.seen, sizeof(c->result.seen), "the device is %s: %s",
             check_trouble_name(c->port->trouble), c->port->trouble_text);
    c->found = true;
    c->last_shows = true;
    c->found_at = c->kept_count;
}

static void conclude(struct check *c)
{
    struct check_result *result = &c->result;

    if (check_gone(c) && !c->found) {
        explain_trouble(c);
        result->stimuli++;
        result->verdict = CHECK_FAIL; /* whatever the wording: a device has to answer */
    } else if (c->found) {
        result->verdict = c->rule->severity == CHECK_MUST ? CHECK_FAIL : CHECK_WARN;
    } else if (result->stimuli == 0) {
        if (result->verdict == CHECK_PASS)
            check_skip(c, "nothing could be tried");
    } else {
        result->verdict = CHECK_PASS;
    }
    if (c->found)
        result->why[0] = 0;
}

static void judge_rule(struct check *c)
{
    check_session_begin(c);
    if (!check_baseline(c)) {
        explain_trouble(c);
        if (!c->found)
            snprintf(c->result.seen, sizeof(c->result.seen),
                     "a fresh connection is not RUNNING, and neither reset nor a request helps");
        snprintf(c->result.expected, sizeof(c->result.expected),
                 "the device can be had in RUNNING before the rule");
        c->result.verdict = CHECK_FAIL;
        c->result.stimuli = 1;
    } else {
        c->rule->run(c);
        conclude(c);
        if (c->found && !c->options->bare)
            c->result.sequence = check_shortest(c);
    }
    check_session_end(c);
}

static int append(struct check_report *report, const struct check_result *result)
{
    if (report->count == report->room) {
        unsigned room = report->room ? report->room * 2 : 128;
        void *results = realloc(report->results, room * sizeof(*result));
        if (!results)
            return -ENOMEM;
        report->results = results;
        report->room = room;
    }
    report->results[report->count++] = *result;
    report->tally[result->verdict]++;
    return 0;
}

static int run_rule(struct check *c, struct check_report *report, unsigned round, unsigned *lost)
{
    uint64_t begin = vfmig_now_ns();

    memset(&c->result, 0, sizeof(c->result));
    c->result.rule = c->rule;
    c->result.dialect = c->dialect;
    c->result.round = round;
    c->random = (c->options->seed + round) * 0x9e3779b97f4a7c15ull | 1;
    if (!applies(c)) {
        c->result.stimuli = 0;
    } else if (*lost >= MAX_LOST) {
        check_skip(c, "the device is gone: %u rules in a row found none", *lost);
    } else {
        judge_rule(c);
        bool found_none = c->result.verdict == CHECK_FAIL && c->result.steps == 0;
        *lost = found_none ? *lost + 1 : 0;
    }
    c->result.ms = (double)(vfmig_now_ns() - begin) / 1e6;
    int r = append(report, &c->result);
    if (r == 0 && c->options->progress)
        c->options->progress(c->options->opaque, &c->result);
    return r;
}

/* ---- all of them ---- */

static const struct check_workload *choose_workload(const struct check_options *options,
                                                    const struct check_facts *facts, int *ret_r,
                                                    struct vfmig_error *reterr)
{
    *ret_r = 0;
    if (options->workload && !strcmp(options->workload, "none"))
        return NULL;
    for (unsigned i = 0; check_workloads[i]; i++) {
        const struct check_workload *w = check_workloads[i];
        if (options->workload ? !strcmp(options->workload, w->name) : w->fits(facts))
            return w;
    }
    if (options->workload)
        *ret_r = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s: no such workload",
                                 options->workload);
    return NULL;
}

static int check_names(const char *const *names, unsigned count, struct vfmig_error *reterr)
{
    for (unsigned i = 0; i < count; i++) {
        bool known = false;
        for (unsigned k = 0; k < check_rule_count; k++)
            known = known || listed(&check_rules[k], &names[i], 1);
        if (!known)
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                   "%s: no rule, clause or theme has this name (see --list)",
                                   names[i]);
    }
    return 0;
}

/* --fail-fast: it was found; or the caller wants no more. */
static bool is_enough(const struct check *c, const struct check_report *report)
{
    if (c->options->interrupted && *c->options->interrupted)
        return true;
    return c->options->fail_fast && report->tally[CHECK_FAIL] + report->tally[CHECK_WARN] != 0;
}

static int run_dialect(struct check *c, struct check_report *report, unsigned round)
{
    unsigned lost = 0;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < check_rule_count && !is_enough(c, report); i++) {
        c->rule = &check_rules[i];
        if (c->options->only_count && !listed(c->rule, c->options->only, c->options->only_count))
            continue;
        if (c->rule->dialects & c->dialect)
            r = run_rule(c, report, round, &lost);
    }
    return r;
}

int check_run(const struct check_options *options, struct check_report *report,
              struct vfmig_error *reterr)
{
    uint32_t deadline = options->deadline_ms ? options->deadline_ms : DEADLINE_MS;
    unsigned rounds = options->repeat && options->repeat <= MAX_ROUNDS ? options->repeat : 1;
    struct check c = {.options = options};
    uint64_t begin = vfmig_now_ns();

    memset(report, 0, sizeof(*report));
    int r = check_names(options->only, options->only_count, reterr);
    if (r == 0)
        r = check_names(options->skip, options->skip_count, reterr);
    if (r == 0)
        r = check_port_open(options->target, deadline, &c.port, reterr);
    if (r == 0 && options->peer)
        r = check_port_open(options->peer, deadline, &c.peer, reterr);
    if (c.port)
        c.port->peer = c.peer;
    if (r == 0) {
        unsigned dialects = options->dialects ? options->dialects : CHECK_DIALECT_BOTH;
        report->facts = c.port->facts;
        report->seed = options->seed;
        snprintf(report->target, sizeof(report->target), "%s", options->target);
        c.workload = choose_workload(options, &c.port->facts, &r, reterr);
        snprintf(report->workload, sizeof(report->workload), "%s",
                 c.workload ? c.workload->name : "none");
        if (r == 0 && !(c.port->facts.dialects & dialects))
            r = vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                                "%s: the device does not migrate in %s", options->target,
                                options->dialects ? "this dialect" : "any dialect");
        for (unsigned round = 0; r == 0 && round < rounds; round++)
            for (unsigned d = CHECK_DIALECT_FEATURE; r == 0 && d; d >>= 1) {
                c.dialect = (enum check_dialect)d;
                if (c.port->facts.dialects & dialects & d)
                    r = run_dialect(&c, report, round);
            }
        if (r == -ENOMEM)
            vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0, "no memory for the report");
    }
    check_port_free(c.peer);
    check_port_free(c.port);
    report->ms = (double)(vfmig_now_ns() - begin) / 1e6;
    return r;
}

void check_report_free(struct check_report *report)
{
    for (unsigned i = 0; i < report->count; i++)
        free(report->results[i].sequence);
    free(report->results);
    memset(report, 0, sizeof(*report));
}
