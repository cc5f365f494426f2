/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig check: does a device keep the rules of VFIO migration? */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "check/check.h"
#include "commands.h"
#include "options.h"

static const char *dialect = "auto", *format = "table", *output, *replay, *steps, *workload, *peer;
static struct tool_list only, skip;
static bool list, destructive, quick, fail_fast, verbose;
static volatile sig_atomic_t interrupted;
static uint64_t repeat = 1, seed = 1, timeout_ms = 2000;

static const struct tool_option options[] = {
    {"dialect", TOOL_CHOICE, &dialect, "NAME",
     "auto (all that it speaks), feature (v2) or region (v1)", .choices = "auto|feature|region"},
    {"list", TOOL_FLAG, &list, NULL, "print the rules and do nothing"},
    {"only", TOOL_LIST, &only, "NAME", "just this rule, clause or theme; may be repeated"},
    {"skip", TOOL_LIST, &skip, "NAME", "all but this rule, clause or theme; may be repeated"},
    {"quick", TOOL_FLAG, &quick, NULL, "leave out the rules that take long"},
    {"fail-fast", TOOL_FLAG, &fail_fast, NULL, "end at the first rule that fails or warns"},
    {"allow-destructive", TOOL_FLAG, &destructive, NULL,
     "also the rules that may upset a device that is not isolated"},
    {"workload", TOOL_TEXT, &workload, "NAME",
     "what makes the device work; none, or one that fits it by itself"},
    {"peer", TOOL_TEXT, &peer, "TARGET", "a second device, for what two do to each other"},
    {"repeat", TOOL_NUMBER, &repeat, "N", "run everything so many times, each with the next seed",
     .min = 1, .max = 1000},
    {"seed", TOOL_NUMBER, &seed, "N", "of what is picked at random", .min = 0, .max = UINT64_MAX},
    {"timeout-ms", TOOL_NUMBER, &timeout_ms, "MS", "a device that takes longer to answer is hung",
     .min = 1, .max = 600000},
    {"format", TOOL_CHOICE, &format, "NAME", "table, tap, junit or json",
     .choices = "table|tap|junit|json"},
    {"output", TOOL_TEXT, &output, "FILE", "write the report there"},
    {"steps", TOOL_TEXT, &steps, "DIR",
     "write the steps of each finding to DIR/RULE-DIALECT.steps"},
    {"replay", TOOL_TEXT, &replay, "FILE", "do the steps of FILE again instead"},
    {"verbose", TOOL_FLAG, &verbose, NULL, "say on stderr what came of each rule"},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "check",
    .operands = "TARGET",
    .about =
        "Judges how a device migrates by what can be seen from outside, rule by rule, and names\n"
        "the clause that it breaks. TARGET: vfio-user:PATH, vfio:PATH, vfio-group:N:NAME.",
    .options = options,
    .operand_max = 1,
    .after = "exit status: 0 conforming, 1 nothing could be judged, 2 wrong command line,\n"
             "  3 not conforming",
};

static void show(void *opaque, const struct check_result *result)
{
    fprintf(stderr, "%-8s %s %s (%.0f ms)\n", check_verdict_name(result->verdict), result->rule->id,
            result->dialect == CHECK_DIALECT_REGION ? "region" : "feature", result->ms);
}

static int run_replay(const char *target)
{
    static const char *const ends[] = {
        [CHECK_REPLAY_DIFFERS] = "# the last step ended differently",
        [CHECK_REPLAY_SAME] = "# the last step ended as recorded",
        [CHECK_REPLAY_UNSEEN] = "# the last step ended as recorded; what was found is not in its "
                                "outcome: --only RULE judges it again"};
    static const int codes[] = {[CHECK_REPLAY_DIFFERS] = TOOL_OK,
                                [CHECK_REPLAY_SAME] = TOOL_NOT_CONFORMING,
                                [CHECK_REPLAY_UNSEEN] = TOOL_FAILED};
    struct vfmig_error error = {0};
    enum check_replay_end end = CHECK_REPLAY_DIFFERS;

    if (check_replay(target, replay, (uint32_t)timeout_ms, stdout, &end, &error) < 0)
        return tool_fail(&usage, error.origin == VFMIG_ORIGIN_LOCAL ? TOOL_USAGE : TOOL_FAILED,
                         "%s", error.text);
    puts(ends[end]);
    return codes[end];
}

/* A finding of an earlier round or rule with the same name stays. */
static int write_steps(const struct check_report *report)
{
    char path[512];

    for (unsigned i = 0; i < report->count; i++) {
        const struct check_result *r = &report->results[i];
        if (!r->sequence || r->round)
            continue;
        snprintf(path, sizeof(path), "%s/%s-%s.steps", steps, r->rule->id,
                 r->dialect == CHECK_DIALECT_REGION ? "region" : "feature");
        FILE *out = fopen(path, "we");
        bool written = out && fputs(r->sequence, out) >= 0;
        if (!out || fclose(out) || !written)
            return tool_fail(&usage, TOOL_FAILED, "%s: %s", path, strerror(errno));
    }
    return TOOL_OK;
}

/* out: opened before the device was touched. */
static int print_report(const struct check_report *report, FILE *out)
{
    int r = check_print(report, format, !output && isatty(STDOUT_FILENO), out);

    if ((output ? fclose(out) : fflush(out)) || r < 0)
        return tool_fail(&usage, TOOL_FAILED, "%s: the report could not be written: %s",
                         output ? output : "standard output", strerror(errno));
    int code = steps ? write_steps(report) : TOOL_OK;
    if (code != TOOL_OK)
        return code;
    if (report->tally[CHECK_FAIL])
        return TOOL_NOT_CONFORMING;
    if (interrupted)
        return tool_fail(&usage, TOOL_FAILED, "interrupted after %u rules", report->count);
    if (report->tally[CHECK_PASS] + report->tally[CHECK_WARN] == 0)
        return tool_fail(&usage, TOOL_FAILED, "no rule could be judged");
    return TOOL_OK;
}

/* The rule under way ends, and what was judged is told; a second time kills. */
static void on_interrupt(int number)
{
    interrupted = 1;
}

static int judge(const struct check_options *request)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    struct vfmig_error error = {0};
    struct check_report report;
    FILE *out = output ? fopen(output, "we") : stdout;

    if (!out)
        return tool_fail(&usage, TOOL_FAILED, "%s: %s", output, strerror(errno));
    sigaction(SIGINT, &action, NULL);
    int r = check_run(request, &report, &error);
    int code;
    if (r < 0) {
        if (output)
            fclose(out);
        code = tool_fail(&usage, error.origin == VFMIG_ORIGIN_LOCAL ? TOOL_USAGE : TOOL_FAILED,
                         "%s", error.text);
    } else {
        code = print_report(&report, out);
    }
    check_report_free(&report);
    return code;
}

int cmd_check(int argc, char **argv)
{
    struct tool_list operands = {.count = 0};
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
    if (list) {
        check_list(stdout);
        return TOOL_OK;
    }
    if (operands.count != 1)
        return tool_fail(&usage, TOOL_USAGE, "a TARGET is missing; see vfmig check --help");
    if (replay)
        return run_replay(operands.items[0]);
    struct check_options request = {
        .target = operands.items[0],
        .peer = peer,
        .dialects = !strcmp(dialect, "feature")  ? CHECK_DIALECT_FEATURE
                    : !strcmp(dialect, "region") ? CHECK_DIALECT_REGION
                                                 : 0,
        .only = only.items,
        .only_count = only.count,
        .skip = skip.items,
        .skip_count = skip.count,
        .workload = workload,
        .allow_destructive = destructive,
        .quick = quick,
        .fail_fast = fail_fast,
        .repeat = (unsigned)repeat,
        .seed = seed,
        .deadline_ms = (uint32_t)timeout_ms,
        .interrupted = &interrupted,
        .progress = verbose ? show : NULL,
    };
    return judge(&request);
}
