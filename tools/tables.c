/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints docs/states.md from the tables and from the device machine itself, or with --trace the
 * table of docs/trace.md, and other documents; with --check, --trace-check ... FILE says whether
 * FILE is, or has, what would be printed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check/check.h"
#include "core/dev.h"
#include "engine/trace.h"
#include "tables_more.h"

static const struct {
    uint32_t features;
    const char *title;
} sets[] = {
    {7, "every feature"},
    {5, "pre-copy, no NDMA"},
    {3, "NDMA, no pre-copy"},
    {1, "neither"},
};

static const uint8_t values[] = {0, 1, 2, 3, 4, 8, 9, 10, 11, 12};

static void print_states(FILE *out)
{
    fputs("## States\n\n| value | name | bits | register | v2 name | needs | meaning |\n"
          "|---|---|---|---|---|---|---|\n",
          out);
    for (uint32_t s = 0; s < VFMIG_STATE_COUNT; s++) {
        const struct vfmig_state_info *info = vfmig_state_info(s);
        fprintf(out, "| %u | %s | ", s, info->name);
        for (const char *c = info->v1_name; *c; c++)
            fprintf(out, "%s%c", *c == '|' ? "\\" : "", *c);
        fprintf(out, " | %u | %s | %s%s | %s |\n", info->bits, info->v2_name,
                info->features & VFMIG_FEATURE_NDMA ? "NDMA " : "",
                info->features & VFMIG_FEATURE_PRE_COPY ? "PRE_COPY" : "", info->meaning);
    }
}

static void print_next_hops(FILE *out)
{
    fputs("\n## Feature dialect: the next state on the way\n\n"
          "Row: where the device is; column: what was asked for; x: refused with EINVAL.\n",
          out);
    for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
        fprintf(out, "\nDevice with %s:\n\n|", sets[i].title);
        for (int line = 0; line < 2; line++) {
            fputs(line ? "|---|" : " |", out);
            for (uint32_t s = 1; s < VFMIG_STATE_COUNT; s++)
                if (vfmig_state_supported(sets[i].features, s))
                    fprintf(out, line ? "---|" : " %s |", vfmig_state_name(s));
            fputs("\n", out);
        }
        for (uint32_t from = 1; from < VFMIG_STATE_COUNT; from++) {
            if (!vfmig_state_supported(sets[i].features, from))
                continue;
            fprintf(out, "| %s |", vfmig_state_name(from));
            for (uint32_t to = 1; to < VFMIG_STATE_COUNT; to++) {
                enum vfmig_state next;
                if (!vfmig_state_supported(sets[i].features, to))
                    continue;
                int err = vfmig_state_next(sets[i].features, from, to, &next);
                fprintf(out, " %s |", err ? "x" : from == to ? "=" : vfmig_state_name(next));
            }
            fputs("\n", out);
        }
    }
}

/* Writes value and lets every step succeed; notes the steps. False: refused. */
static bool write_value(struct vfmig_dev *dev, uint32_t value, char *notes)
{
    static const char calls[] = " epLzcrwX", others[] = " fD  O";
    struct vfmig_dev_event event = {.type = VFMIG_DEV_EVENT_WRITE_V1, .value = value};

    for (;;) {
        struct vfmig_dev_actions actions;
        if (vfmig_dev_step(dev, &event, 0, &actions) != 0)
            return false;
        for (uint32_t i = 0; i < actions.count; i++) {
            const struct vfmig_dev_action *action = &actions.list[i];
            if (action->type == VFMIG_DEV_ACT_REPLY)
                return action->err == 0;
            char note = action->type == VFMIG_DEV_ACT_CALL       ? calls[action->call]
                        : action->type < VFMIG_DEV_ACT_IRQ_LATCH ? others[action->type]
                                                                 : ' ';
            if (note != ' ')
                *notes++ = note;
            event =
                (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_STEP_DONE, .token = action->token};
        }
    }
}

static void print_writes(FILE *out)
{
    fputs(
        "\n## Region dialect: what one write does\n\n"
        "Row: the register before; column: the value written; on a device with every feature.\n"
        "Steps in their order, without the empty ones: f consume posted writes, D shut the DMA\n"
        "gate and drain, e end the saved stream, p stop, L load, z reset itself and open the\n"
        "window, c capture, r run, w start pre-copy, O open the gate. = nothing to do, x refused\n"
        "with EINVAL. 5, 6, 7, 13, 14, 15 and values with unknown bits are refused everywhere.\n\n"
        "A failure of e, L or z, or after one of them, ends in ERROR; any other is taken back and\n"
        "the old value stands; if that fails too, ERROR. From ERROR (6) only reset leads out.\n\n|",
        out);
    for (int line = 0; line < 2; line++) {
        fputs(line ? "|---|" : " |", out);
        for (size_t i = 0; i < sizeof(values); i++)
            fprintf(out, line ? "---|" : " %u |", values[i]);
        fputs("\n", out);
    }
    for (size_t i = 0; i < sizeof(values); i++) {
        fprintf(out, "| %u |", values[i]);
        for (size_t j = 0; j < sizeof(values); j++) {
            char notes[2][32] = {{0}};
            struct vfmig_dev dev;
            if (vfmig_dev_init(&dev, 7, 0) != 0 || !write_value(&dev, values[i], notes[0]))
                exit(1);
            bool done = write_value(&dev, values[j], notes[1]);
            fprintf(out, " %s |", !done ? "x" : notes[1][0] ? notes[1] : "=");
        }
        fputs("\n", out);
    }
}

static void print_all(FILE *out)
{
    fputs("# Device states\n\nPrinted by `make docs` from tables/states.def, tables/next_hop.def "
          "and the device machine\n(src/core/dev.c). R RUNNING, S SAVING, Z RESUMING, N NDMA. N "
          "beside !R is accepted and read back as\nwritten; it says nothing new.\n\n",
          out);
    print_states(out);
    print_next_hops(out);
    print_writes(out);
}

/* --- the trace --- */

static void print_side(FILE *out, enum vfmig_trace_side side)
{
    fputs(side == VFMIG_TRACE_BOTH     ? "both"
          : side == VFMIG_TRACE_SOURCE ? "source"
                                       : "destination",
          out);
}

static void print_trace(FILE *out)
{
    static const char *const kinds[] = {[VFMIG_FIELD_U] = "unsigned",
                                        [VFMIG_FIELD_I] = "signed",
                                        [VFMIG_FIELD_S] = "text",
                                        [VFMIG_FIELD_B] = "boolean"};

    for (unsigned i = 0; i < VFMIG_TRACE_COUNT; i++) {
        const struct vfmig_trace_info *info = vfmig_trace_info(i);

        fprintf(out, "%s### `%s`\n\n", i ? "\n" : "", info->name);
        print_side(out, info->side);
        fprintf(out, ": %s\n", info->when);
        if (vfmig_trace_field_count(info))
            fputs("\n| field | is | meaning |\n|---|---|---|\n", out);
        for (const struct vfmig_trace_field *field = info->fields; field->kind; field++)
            fprintf(out, "| `%s` | %s | %s |\n", field->name, kinds[field->kind], field->text);
    }
}

/* The part of a document between its marks is what `make docs` puts there. */
static int check_part(const char *path, const char *text)
{
    static const char begin[] = "<!-- table: begin -->\n", end[] = "<!-- table: end -->";
    FILE *file = fopen(path, "r");
    char *found = NULL, *at;
    size_t size = 0;
    bool same = false;

    if (file && getdelim(&found, &size, 0, file) > 0 && (at = strstr(found, begin))) {
        at += strlen(begin);
        same = !strncmp(at, text, strlen(text)) && !strncmp(at + strlen(text), end, strlen(end));
    }
    if (file)
        fclose(file);
    free(found);
    if (!same)
        fprintf(stderr, "%s is stale: run `make docs`\n", path);
    return same ? 0 : 1;
}

static int check(const char *path, const char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    char *found = malloc(size + 1);
    size_t got = file && found ? fread(found, 1, size + 1, file) : 0;
    bool same = file && found && got == size && memcmp(found, text, size) == 0;

    if (file)
        fclose(file);
    free(found);
    if (!same)
        fprintf(stderr, "%s is stale: run `make docs`\n", path);
    return same ? 0 : 1;
}

/* "--NAME" prints it, "--NAME-check FILE" compares. */
static const struct {
    const char *name;
    void (*print)(FILE *out);
    bool part; /* of a document, between marks */
} documents[] = {
    {"", print_all, false},
    {"trace", print_trace, true},
    {"rules", check_print_rules, false},
    {"probes", tables_print_probes, false},
    {"metrics", tables_print_metrics, false},
};

#define DOCUMENTS (sizeof(documents) / sizeof(documents[0]))

int main(int argc, char **argv)
{
    char flag[32], check_flag[32], *text = NULL;
    size_t size = 0, which = 0;
    bool checks = false, prints = false;

    for (; which < DOCUMENTS; which++) {
        const char *name = documents[which].name;
        snprintf(flag, sizeof(flag), "--%s", name);
        snprintf(check_flag, sizeof(check_flag), "--%s%scheck", name, *name ? "-" : "");
        checks = argc == 3 && !strcmp(argv[1], check_flag);
        prints = *name ? argc == 2 && !strcmp(argv[1], flag) : argc == 1;
        if (checks || prints)
            break;
    }
    FILE *out = open_memstream(&text, &size);
    if (!out || which == DOCUMENTS) {
        fputs("usage: vfmig-tables [", stderr);
        for (size_t i = 1; i < DOCUMENTS; i++)
            fprintf(stderr, "%s--%s", i > 1 ? " | " : "", documents[i].name);
        fputs("], or with --check, --trace-check ... FILE\n", stderr);
        return 2;
    }
    documents[which].print(out);
    fclose(out);
    int result = prints                  ? fputs(text, stdout) < 0
                 : documents[which].part ? check_part(argv[2], text)
                                         : check(argv[2], text, size);
    free(text);
    return result;
}
