/* SPDX-License-Identifier: BSD-3-Clause */
/* The conformance checker: rules, a run over one device, its results.
 *
 * It judges a device by what can be seen of it, and knows neither the engine nor the device machine
 * of this project: it uses wire, io and base.
 *
 * How to add a rule: a row in rules.def (the one truth: command, report, docs/rules.md and tests
 * come from it) and a function in the rules_*.c of its theme; rule.h says what such a function may
 * use. How to add a workload: workload.h. */
#ifndef VFMIG_CHECK_CHECK_H
#define VFMIG_CHECK_CHECK_H

#include <signal.h>
#include <stdio.h>

#include "check/port.h"

/* How much a broken rule weighs: by the wording of its source. */
enum check_severity {
    CHECK_MUST = 0, /* fail */
    CHECK_SHOULD,   /* warn */
};

/* What a rule needs beside its dialect. Missing capabilities of a device make it not applicable;
 * what the checker was not given makes it skipped. */
enum check_need {
    CHECK_NEED_NONE = 0,
    CHECK_NEED_PRE_COPY = 1 << 0,
    CHECK_NEED_NDMA = 1 << 1,
    CHECK_NEED_LOG = 1 << 2,
    CHECK_NEED_DATA_SIZE = 1 << 3,
    CHECK_NEED_PRECOPY_INFO = 1 << 4,
    CHECK_NEED_BAR = 1 << 5, /* a BAR that can be accessed */
    CHECK_NEED_MSIX = 1 << 6,
    CHECK_NEED_CONFIG = 1 << 7,
    CHECK_NEED_RAW = 1 << 8,      /* messages that are wrong (vfio-user) */
    CHECK_NEED_POSTED = 1 << 9,   /* commands without a reply */
    CHECK_NEED_MESSAGE = 1 << 10, /* DMA by message */
    CHECK_NEED_LOG_TOLD = 1 << 11, /* a log that VERSION tells of, answered or not */
    CHECK_NEED_DMA = 1 << 16,     /* a workload that makes DMA happen */
    CHECK_NEED_CHANGE = 1 << 17,  /* a workload that changes and reads internal state */
    CHECK_NEED_PEER = 1 << 18,    /* a second device */
    CHECK_NEED_IRQ = 1 << 19,     /* a workload that raises interrupts */
};

enum check_flag {
    CHECK_PLAIN = 0,
    CHECK_DESTRUCTIVE = 1 << 0, /* may upset a device that is not isolated; --allow-destructive */
    CHECK_DEEP = 1 << 1,        /* takes long or needs a workload: not among the quick ones */
};

enum check_verdict {
    CHECK_PASS = 0,
    CHECK_FAIL,
    CHECK_WARN,
    CHECK_SKIPPED,
    CHECK_NOT_APPLICABLE,
    CHECK_VERDICT_COUNT
};

const char *check_verdict_name(enum check_verdict verdict);

struct check;

struct check_rule {
    const char *id;     /* "C42", "V2-ARCS" */
    const char *clause; /* the source's own number, "C42, X10" */
    void (*run)(struct check *c);
    enum check_severity severity;
    unsigned dialects;  /* enum check_dialect bits */
    unsigned needs;     /* enum check_need bits */
    unsigned flags;     /* enum check_flag bits */
    const char *title;  /* a few words */
    const char *text;   /* what a device does that conforms, one sentence */
    const char *source; /* RFC, UAPI, v2 ... */
    const char *theme;  /* the rules_*.c it is in */
};

extern const struct check_rule check_rules[];
extern const unsigned check_rule_count;

/* The rule called id, or NULL. */
const struct check_rule *check_rule_find(const char *id);

#define CHECK_TEXT 320u

struct check_result {
    const struct check_rule *rule;
    enum check_dialect dialect;
    enum check_verdict verdict;
    unsigned round;   /* of --repeat, from 0 */
    uint64_t stimuli; /* what was tried and judged */
    uint64_t steps;   /* what was done to the device */
    double ms;
    char why[CHECK_TEXT];  /* skipped, not applicable */
    char done[CHECK_TEXT]; /* fail, warn */
    char expected[CHECK_TEXT];
    char seen[CHECK_TEXT];
    char *sequence; /* fail, warn: steps that show it again, one a line; may be NULL */
};

struct check_workload;

struct check_options {
    const char *target;
    const char *peer;        /* a second device, or NULL */
    unsigned dialects;       /* 0: all that the device speaks */
    const char *const *only; /* ids, clauses or themes; none: all */
    unsigned only_count;
    const char *const *skip;
    unsigned skip_count;
    const char *workload; /* NULL: one that fits the device; "none" */
    bool allow_destructive;
    bool quick;      /* without the deep rules */
    bool fail_fast;  /* end at the first rule that fails or warns */
    bool bare;       /* without looking for the shortest sequence */
    unsigned repeat; /* 0 is 1 */
    uint64_t seed;
    uint32_t deadline_ms; /* 0: 2 s */
    const volatile sig_atomic_t *interrupted; /* not NULL, and set: no further rule begins */
    void (*progress)(void *opaque, const struct check_result *result);
    void *opaque;
};

struct check_report {
    char target[128];
    char workload[32];
    uint64_t seed;
    struct check_facts facts;
    struct check_result *results;
    unsigned count, room;
    unsigned tally[CHECK_VERDICT_COUNT];
    double ms;
};

/* Runs the rules. 0 also when the device does not conform: see the report's tally; negative when
 * nothing could be judged. The report is to be freed in both cases. */
int check_run(const struct check_options *options, struct check_report *report,
              struct vfmig_error *reterr);
void check_report_free(struct check_report *report);

enum check_replay_end {
    CHECK_REPLAY_DIFFERS = 0, /* the last step ended otherwise than it was recorded */
    CHECK_REPLAY_SAME,
    CHECK_REPLAY_UNSEEN, /* the same, but what was found is not in the outcome of a step */
};

/* Does the steps of a file again and prints what came of each. */
int check_replay(const char *target, const char *path, uint32_t deadline_ms, FILE *out,
                 enum check_replay_end *ret_end, struct vfmig_error *reterr);

/* Prints a report: "table", "tap", "junit" or "json". */
int check_print(const struct check_report *report, const char *format, bool color, FILE *out);
/* Prints the rules, as a table or as docs/rules.md. */
void check_list(FILE *out);
void check_print_rules(FILE *out);

#endif
