/* SPDX-License-Identifier: BSD-3-Clause */
/* A report as a table, TAP, JUnit XML, JSON. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "check/rule.h"

static const char *dialect_name(enum check_dialect dialect)
{
    return dialect == CHECK_DIALECT_REGION ? "region" : "feature";
}

/* ---- table ---- */

static void print_sequence(FILE *out, const char *sequence, const char *indent)
{
    for (const char *line = sequence; line && *line;) {
        size_t size = strcspn(line, "\n");
        if (line[0] != '#') /* what was expected and seen is there already */
            fprintf(out, "%s%.*s%s\n", indent, (int)(size < 160 ? size : 160), line,
                    size > 160 ? "..." : "");
        line += size + (line[size] == '\n');
    }
}

static void print_finding(FILE *out, const struct check_result *r)
{
    fprintf(out, "    clause    %s (%s)\n", r->rule->clause, r->rule->source);
    fprintf(out, "    rule      %s\n", r->rule->text);
    if (r->done[0])
        fprintf(out, "    done      %s\n", r->done);
    fprintf(out, "    expected  %s\n    seen      %s\n", r->expected, r->seen);
    if (r->sequence) {
        fputs("    steps     (--steps DIR writes them into files for --replay)\n", out);
        print_sequence(out, r->sequence, "      ");
    }
}

static void print_table(const struct check_report *report, bool color, FILE *out)
{
    static const char *const colors[CHECK_VERDICT_COUNT] = {"\033[32m", "\033[31m", "\033[33m",
                                                            "\033[36m", "\033[2m"};
    const struct check_facts *facts = &report->facts;

    fprintf(out, "device     %s%s%s, workload %s, seed %" PRIu64 "\n", report->target,
            facts->dialects & CHECK_DIALECT_FEATURE ? ", feature dialect" : "",
            facts->dialects & CHECK_DIALECT_REGION ? ", region dialect" : "", report->workload,
            report->seed);
    for (unsigned i = 0; i < report->count; i++) {
        const struct check_result *r = &report->results[i];
        fprintf(out, "%s%-8s%s %-7s %-16s %s", color ? colors[r->verdict] : "",
                check_verdict_name(r->verdict), color ? "\033[0m" : "", dialect_name(r->dialect),
                r->rule->id, r->rule->title);
        if (r->verdict == CHECK_SKIPPED || r->verdict == CHECK_NOT_APPLICABLE)
            fprintf(out, ": %s\n", r->why);
        else
            fprintf(out, " (%" PRIu64 " tried)\n", r->stimuli);
        if (r->verdict == CHECK_FAIL || r->verdict == CHECK_WARN)
            print_finding(out, r);
    }
    fprintf(out, "%u passed, %u failed, %u warned, %u skipped, %u not applicable, %.1f s: %s\n",
            report->tally[CHECK_PASS], report->tally[CHECK_FAIL], report->tally[CHECK_WARN],
            report->tally[CHECK_SKIPPED], report->tally[CHECK_NOT_APPLICABLE], report->ms / 1e3,
            report->tally[CHECK_FAIL] ? "NOT CONFORMING" : "conforming");
}

/* ---- TAP ---- */

static void print_tap(const struct check_report *report, FILE *out)
{
    fprintf(out, "TAP version 13\n1..%u\n", report->count);
    for (unsigned i = 0; i < report->count; i++) {
        const struct check_result *r = &report->results[i];
        fprintf(out, "%sok %u - %s %s %s", r->verdict == CHECK_FAIL ? "not " : "", i + 1,
                dialect_name(r->dialect), r->rule->id, r->rule->title);
        if (r->verdict == CHECK_SKIPPED || r->verdict == CHECK_NOT_APPLICABLE)
            fprintf(out, " # SKIP %s", r->why);
        fputc('\n', out);
        if (r->verdict == CHECK_FAIL || r->verdict == CHECK_WARN)
            fprintf(out, "# %s: %s; done: %s; expected: %s; seen: %s\n",
                    check_verdict_name(r->verdict), r->rule->clause, r->done, r->expected, r->seen);
    }
}

/* ---- JUnit ---- */

static void print_xml(FILE *out, const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc((unsigned char)*text < 32 && *text != '\n' ? '?' : *text, out);
        }
}

static void print_junit(const struct check_report *report, FILE *out)
{
    fprintf(
        out,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"vfmig check\" tests=\"%u\" "
        "failures=\"%u\" skipped=\"%u\" time=\"%.3f\">\n",
        report->count, report->tally[CHECK_FAIL],
        report->tally[CHECK_SKIPPED] + report->tally[CHECK_NOT_APPLICABLE], report->ms / 1e3);
    for (unsigned i = 0; i < report->count; i++) {
        const struct check_result *r = &report->results[i];
        fprintf(out, "  <testcase classname=\"%s.%s\" name=\"", dialect_name(r->dialect),
                r->rule->theme);
        print_xml(out, r->rule->id);
        fputs(" ", out);
        print_xml(out, r->rule->title);
        fprintf(out, "\" time=\"%.3f\">\n", r->ms / 1e3);
        if (r->verdict == CHECK_SKIPPED || r->verdict == CHECK_NOT_APPLICABLE) {
            fputs("    <skipped message=\"", out);
            print_xml(out, r->why);
            fputs("\"/>\n", out);
        } else if (r->verdict != CHECK_PASS) {
            fputs(r->verdict == CHECK_FAIL ? "    <failure message=\"" : "    <system-out>", out);
            if (r->verdict == CHECK_FAIL) {
                print_xml(out, r->seen);
                fputs("\">", out);
            }
            print_xml(out, r->rule->clause);
            fputs("\ndone: ", out);
            print_xml(out, r->done);
            fputs("\nexpected: ", out);
            print_xml(out, r->expected);
            fputs("\nseen: ", out);
            print_xml(out, r->seen);
            fputs("\n", out);
            print_xml(out, r->sequence ? r->sequence : "");
            fputs(r->verdict == CHECK_FAIL ? "</failure>\n" : "</system-out>\n", out);
        }
        fputs("  </testcase>\n", out);
    }
    fputs("</testsuite>\n", out);
}

/* ---- JSON ---- */

static void print_string(FILE *out, const char *name, const char *text, const char *after)
{
    fprintf(out, "\"%s\": \"", name);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            fprintf(out, "\\%c", *text);
        else if ((unsigned char)*text < 32)
            fprintf(out, "\\u%04x", (unsigned char)*text);
        else
            fputc(*text, out);
    fprintf(out, "\"%s", after);
}

static void print_json(const struct check_report *report, FILE *out)
{
    fputs("{", out);
    print_string(out, "target", report->target, ", ");
    print_string(out, "workload", report->workload, ", ");
    fprintf(out, "\"seed\": %" PRIu64 ", \"conforming\": %s, \"ms\": %.1f,\n \"tally\": {",
            report->seed, report->tally[CHECK_FAIL] ? "false" : "true", report->ms);
    for (unsigned i = 0; i < CHECK_VERDICT_COUNT; i++)
        fprintf(out, "%s\"%s\": %u", i ? ", " : "", check_verdict_name((enum check_verdict)i),
                report->tally[i]);
    fputs("},\n \"results\": [", out);
    for (unsigned i = 0; i < report->count; i++) {
        const struct check_result *r = &report->results[i];
        fprintf(out, "%s\n  {", i ? "," : "");
        print_string(out, "id", r->rule->id, ", ");
        print_string(out, "clause", r->rule->clause, ", ");
        print_string(out, "theme", r->rule->theme, ", ");
        print_string(out, "dialect", dialect_name(r->dialect), ", ");
        print_string(out, "severity", r->rule->severity == CHECK_MUST ? "must" : "should", ", ");
        print_string(out, "verdict", check_verdict_name(r->verdict), ", ");
        fprintf(out,
                "\"round\": %u, \"stimuli\": %" PRIu64 ", \"steps\": %" PRIu64 ", \"ms\": %.1f, ",
                r->round, r->stimuli, r->steps, r->ms);
        print_string(out, "why", r->why, ", ");
        print_string(out, "done", r->done, ", ");
        print_string(out, "expected", r->expected, ", ");
        print_string(out, "seen", r->seen, ", ");
        print_string(out, "sequence", r->sequence ? r->sequence : "", "}");
    }
    fputs("\n]}\n", out);
}

int check_print(const struct check_report *report, const char *format, bool color, FILE *out)
{
    if (!strcmp(format, "table"))
        print_table(report, color, out);
    else if (!strcmp(format, "tap"))
        print_tap(report, out);
    else if (!strcmp(format, "junit"))
        print_junit(report, out);
    else if (!strcmp(format, "json"))
        print_json(report, out);
    else
        return -EINVAL;
    return fflush(out) || ferror(out) ? -EIO : 0;
}
