/* SPDX-License-Identifier: BSD-3-Clause */
/* The timeline as text: a row of letters for each row, the whole and the interesting part of it. */
#include <stdlib.h>
#include <string.h>

#include "timeline.h"

#define NAME_WIDTH 14u

struct text {
    FILE *out;
    const struct timeline *t;
    const struct timeline_text_options *how;
    unsigned columns;   /* of time */
    int64_t begin, end; /* shown */
    char *letters;      /* of one row */
    const struct timeline_look **looks;
};

/* --- words --- */

static void set_colour(const struct text *x, int sgr)
{
    if (x->how->colour)
        fprintf(x->out, "\033[%dm", sgr);
}

/* What is not ASCII is ours: an arrow, a dot, a micro sign. */
static void put(const struct text *x, const char *text)
{
    for (; *text; text++) {
        if (x->how->utf8 || !(*text & 0x80)) {
            fputc(*text, x->out);
            continue;
        }
        fputc(!strncmp(text, "µ", 2) ? 'u' : !strncmp(text, "·", 2) ? '-' : '>', x->out);
        while ((text[1] & 0xc0) == 0x80)
            text++;
    }
}

static unsigned shown_width(const char *text)
{
    unsigned width = 0;

    for (; *text; text++)
        width += (*text & 0xc0) != 0x80;
    return width;
}

/* Broken between words, so that no line is wider than the terminal. */
static void put_wrapped(const struct text *x, const char *text)
{
    unsigned at = 0;

    while (*text) {
        size_t size = strcspn(text, " ");
        char *word = strndup(text, size);
        if (!word)
            abort();
        if (at && at + 1 + shown_width(word) > x->how->width) {
            fputc('\n', x->out);
            at = 0;
        } else if (at) {
            fputc(' ', x->out);
            at++;
        }
        put(x, word);
        at += shown_width(word);
        free(word);
        text += size + strspn(text + size, " ");
    }
    fputc('\n', x->out);
}

/* --- rows --- */

static int column(const struct text *x, int64_t t)
{
    return (int)((double)(t - x->begin) / (double)(x->end - x->begin) * x->columns);
}

static void paint(struct text *x, const struct timeline_span *span)
{
    const struct timeline_look *look = timeline_look(span->look);

    if (span->end < x->begin || span->begin > x->end)
        return;
    int from = column(x, span->begin > x->begin ? span->begin : x->begin);
    int to = column(x, span->end < x->end ? span->end : x->end);
    for (int i = from; i <= to && i < (int)x->columns; i++) {
        /* What ends here leaves its last column to what begins in it. */
        if (i == to && i > from && span->layer == TIMELINE_STATE)
            break;
        x->letters[i] = span->bad ? '!' : span->layer == TIMELINE_CHANGE ? '/' : look->letter;
        x->looks[i] = look;
    }
}

static void put_letters(const struct text *x)
{
    int sgr = 0;

    for (unsigned i = 0; i < x->columns; i++) {
        int wanted = x->letters[i] == '!' ? 31 : x->looks[i] ? x->looks[i]->sgr : 0;
        if (wanted != sgr)
            set_colour(x, wanted);
        sgr = wanted;
        fputc(x->letters[i], x->out);
    }
    if (sgr)
        set_colour(x, 0);
}

/* Names of steps go where there is room for them. */
static void put_names(struct text *x, const struct timeline_row *row)
{
    for (size_t i = 0; i < row->count; i++) {
        const struct timeline_span *span = &row->spans[i];
        int from = column(x, span->begin > x->begin ? span->begin : x->begin);
        int to = column(x, span->end < x->end ? span->end : x->end),
            size = (int)strlen(span->label);
        if (span->end < x->begin || span->begin > x->end || to - from < size + 1 ||
            to > (int)x->columns)
            continue;
        x->letters[from] = '|';
        memcpy(x->letters + from + 1, span->label, (size_t)size);
    }
}

static void put_row(struct text *x, const struct timeline_row *row)
{
    memset(x->letters, ' ', x->columns);
    memset(x->looks, 0, x->columns * sizeof(*x->looks));
    for (int layer = TIMELINE_STATE; layer <= TIMELINE_CHANGE; layer++)
        for (size_t i = 0; i < row->count; i++)
            if (row->spans[i].layer == (enum timeline_layer)layer)
                paint(x, &row->spans[i]);
    if (row->kind == TIMELINE_STEPS)
        put_names(x, row);
    fprintf(x->out, "%*.*s ", NAME_WIDTH, NAME_WIDTH, row->label);
    put_letters(x);
    fputc('\n', x->out);
}

static void put_window(struct text *x, const char *title, int64_t zero)
{
    char from[24], to[24], step[24], line[96];

    timeline_time(from, sizeof(from), x->begin < zero ? zero - x->begin : x->begin - zero);
    timeline_time(to, sizeof(to), x->end - zero);
    snprintf(line, sizeof(line), "%s: %s%s to %s%s, one column is ", title,
             x->begin < zero ? "-" : "", from, zero ? "+" : "", to);
    timeline_time(step, sizeof(step), (x->end - x->begin) / x->columns);
    char *whole = timeline_printf("%s%s", line, step);
    fputc('\n', x->out);
    set_colour(x, 1);
    put_wrapped(x, whole);
    set_colour(x, 0);
    free(whole);
    for (int source = 1; source >= 0; source--) {
        if (source ? !x->t->source : !x->t->dest)
            continue;
        fputs(source ? "source\n" : "destination\n", x->out);
        for (size_t i = 0; i < x->t->row_count; i++)
            if (x->t->rows[i].source == source)
                put_row(x, &x->t->rows[i]);
    }
}

/* --- lists --- */

static void put_parts(const struct text *x)
{
    char took[24];
    uint64_t most = 1;

    for (size_t i = 0; i < x->t->part_count; i++)
        most = x->t->parts[i].ns > most ? x->t->parts[i].ns : most;
    fputs(x->t->run_at_source ? "\nstandstill in parts\n" : "\ndowntime in parts\n", x->out);
    for (size_t i = 0; i < x->t->part_count; i++) {
        const struct timeline_part *part = &x->t->parts[i];
        unsigned room = x->how->width > 44 ? x->how->width - 42 : 0;
        unsigned bar = (unsigned)((double)part->ns / (double)most * room);
        timeline_time(took, sizeof(took), (int64_t)part->ns);
        /* Bytes, not characters, are what printf counts. */
        int width = 10 + (int)(strlen(took) - shown_width(took));
        char *line = timeline_printf("%*s  %-28s ", x->how->utf8 ? width : 10, took, part->name);
        put(x, line);
        free(line);
        for (unsigned j = 0; !part->share && j < bar; j++)
            fputc('#', x->out);
        fputc('\n', x->out);
    }
}

static void put_rounds(const struct text *x)
{
    for (size_t i = 0; i < x->t->row_count; i++) {
        const struct timeline_row *row = &x->t->rows[i];
        if (row->kind != TIMELINE_MEMORY || !row->count)
            continue;
        fputs("\nmemory\n", x->out);
        for (size_t j = 0; j < row->count; j++) {
            char *detail = timeline_printf("  %s", row->spans[j].detail);
            for (char *at = detail; *at; at++)
                *at = *at == '\n' ? ' ' : *at;
            put_wrapped(x, detail);
            free(detail);
        }
    }
}

static void put_legend(const struct text *x)
{
    char *line = timeline_printf("%s", "\n/ on its way, ! failed");

    for (const struct timeline_look *look = timeline_looks; look->name; look++) {
        if (!look->legend || !strcmp(look->name, "data"))
            continue;
        char *longer = timeline_printf("%s, %c %s", line, look->letter, look->legend);
        free(line);
        line = longer;
    }
    put_wrapped(x, line);
    free(line);
}

void timeline_text(const struct timeline *t, const struct timeline_text_options *options, FILE *out)
{
    struct text x = {.out = out, .t = t, .how = options};
    char line[320];

    x.columns = options->width - NAME_WIDTH - 1;
    x.letters = timeline_alloc(x.columns + 1);
    x.looks = timeline_alloc(x.columns * sizeof(*x.looks));
    x.begin = t->begin;
    x.end = t->end;
    fprintf(out, "migration %.32s\n", t->id);
    timeline_headline(t, line, sizeof(line));
    put_wrapped(&x, line);
    if (*t->failure) {
        set_colour(&x, 31);
        put_wrapped(&x, t->failure);
        set_colour(&x, 0);
    }
    put_window(&x, "all of it", 0);
    if (t->zoom_end > t->zoom_begin) {
        x.begin = t->zoom_begin;
        x.end = t->zoom_end;
        put_window(&x, t->stop ? "the standstill" : "the end", t->zero);
    }
    put_legend(&x);
    if (t->part_count)
        put_parts(&x);
    put_rounds(&x);
    free(x.letters);
    free(x.looks);
}
