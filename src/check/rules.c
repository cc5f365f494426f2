/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of rules, as rows of C, as a list, and as docs/rules.md. */
#include <string.h>
#include <strings.h>

#include "check/check.h"
#include "check/rules.h"

/* Words of rules.def. */
#define MUST         CHECK_MUST
#define SHOULD       CHECK_SHOULD
#define BOTH         CHECK_DIALECT_BOTH
#define REGION       CHECK_DIALECT_REGION
#define FEATURE      CHECK_DIALECT_FEATURE
#define PLAIN        CHECK_PLAIN
#define DESTRUCTIVE  CHECK_DESTRUCTIVE
#define DEEP         CHECK_DEEP
#define NONE         CHECK_NEED_NONE
#define PRE_COPY     CHECK_NEED_PRE_COPY
#define NDMA         CHECK_NEED_NDMA
#define LOG          CHECK_NEED_LOG
#define LOG_TOLD     CHECK_NEED_LOG_TOLD
#define DATA_SIZE    CHECK_NEED_DATA_SIZE
#define PRECOPY_INFO CHECK_NEED_PRECOPY_INFO
#define BAR          CHECK_NEED_BAR
#define MSIX         CHECK_NEED_MSIX
#define CONFIG       CHECK_NEED_CONFIG
#define RAW          CHECK_NEED_RAW
#define POSTED       CHECK_NEED_POSTED
#define MESSAGE      CHECK_NEED_MESSAGE
#define DMA          CHECK_NEED_DMA
#define CHANGE       CHECK_NEED_CHANGE
#define PEER         CHECK_NEED_PEER
#define IRQ CHECK_NEED_IRQ

const struct check_rule check_rules[] = {
#define RULE(theme, id, function, clause, severity, dialects, needs, flags, title, text, source)   \
    {#id, clause, function, severity, dialects, needs, flags, title, text, source, #theme},
#include "check/rules.def"
};
const unsigned check_rule_count = sizeof(check_rules) / sizeof(check_rules[0]);

const struct check_rule *check_rule_find(const char *id)
{
    for (unsigned i = 0; i < check_rule_count; i++)
        if (!strcasecmp(check_rules[i].id, id))
            return &check_rules[i];
    return NULL;
}

static const char *dialects_of(const struct check_rule *rule)
{
    return rule->dialects == BOTH ? "both" : rule->dialects == REGION ? "region" : "feature";
}

static const struct {
    unsigned bit;
    const char *word;
} words[] = {
    {PRE_COPY, "pre-copy"},
    {NDMA, "NDMA"},
    {LOG, "DMA log"},
    {LOG_TOLD, "a DMA log in VERSION"},
    {DATA_SIZE, "MIG_DATA_SIZE"},
    {PRECOPY_INFO, "PRECOPY_INFO"},
    {BAR, "a BAR"},
    {MSIX, "MSI-X"},
    {CONFIG, "PCI config"},
    {RAW, "raw messages"},
    {POSTED, "posted commands"},
    {MESSAGE, "DMA by message"},
    {DMA, "workload: DMA"},
    {CHANGE, "workload: state"},
    {PEER, "a second device"},
    {IRQ, "workload: interrupts"},
};

static void print_needs(FILE *out, const struct check_rule *rule)
{
    const char *separator = "";

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (rule->needs & words[i].bit) {
            fprintf(out, "%s%s", separator, words[i].word);
            separator = ", ";
        }
}

void check_list(FILE *out)
{
    for (unsigned i = 0; i < check_rule_count; i++) {
        const struct check_rule *rule = &check_rules[i];
        fprintf(out, "%-16s %-8s %-7s %s %s%s\n", rule->id, rule->theme, dialects_of(rule),
                rule->severity == MUST ? "must  " : "should", rule->title,
                rule->flags & DESTRUCTIVE ? " (destructive)" : "");
    }
}

void check_print_rules(FILE *out)
{
    const char *theme = "";

    fprintf(out,
            "# Rules of `vfmig check`\n\nPrinted by `make docs` from src/check/rules.def. "
            "%u rules. must: a device that breaks it fails; should: it is\nwarned about. "
            "How to run them: [checker.md](checker.md).\n",
            check_rule_count);
    for (unsigned i = 0; i < check_rule_count; i++) {
        const struct check_rule *rule = &check_rules[i];
        if (strcmp(theme, rule->theme))
            fprintf(out, "\n## %s\n", rule->theme);
        theme = rule->theme;
        fprintf(out,
                "\n### %s: %s\n\n%s\n\n- clause: %s; source: %s\n- severity: %s; dialects: %s%s\n",
                rule->id, rule->title, rule->text, rule->clause, rule->source,
                rule->severity == MUST ? "must" : "should", dialects_of(rule),
                rule->flags & DESTRUCTIVE ? "; destructive" : "");
        if (rule->needs) {
            fputs("- needs: ", out);
            print_needs(out, rule);
            fputc('\n', out);
        }
    }
}
