/* SPDX-License-Identifier: BSD-3-Clause */
/* The rows of a picture: spans, barriers, messages, marks. */
#include "timeline_svg.h"

#include <string.h>

#define GROUP_GAP 22.0 /* above a side's rows, for its name */
#define ARROW_GAP 30.0 /* between the sides, for messages */
#define LABEL_MIN 10.0 /* least height of a row that has room for text */

double svg_at(const struct svg_band *band, int64_t t)
{
    return band->x + band->width * (double)(t - band->begin) / (double)(band->end - band->begin);
}

bool svg_clip(const struct svg *s, const struct svg_band *band, int64_t begin, int64_t end,
              double *ret_x, double *ret_width)
{
    bool outside = end < band->begin || begin > band->end;

    if (outside && !(s->page && band->zoom))
        return false;
    /* The script puts right what is outside for now. */
    if (outside)
        begin = end = end < band->begin ? band->begin : band->end;
    *ret_x = svg_at(band, begin > band->begin ? begin : band->begin);
    *ret_width = svg_at(band, end < band->end ? end : band->end) - *ret_x;
    return true;
}

void svg_when(const struct svg *s, const struct svg_band *band, int64_t begin, int64_t end)
{
    if (s->page && band->zoom)
        fprintf(s->out, " data-b=\"%lld\" data-e=\"%lld\"", (long long)begin, (long long)end);
}

double svg_row_height(const struct svg_band *band, const struct timeline_row *row)
{
    return row->kind == TIMELINE_DEVICE ? band->device : band->row;
}

/* --- spans --- */

static void draw_label(const struct svg *s, const struct svg_band *band,
                       const struct timeline_span *span, double x, double width, double middle)
{
    double needed = svg_text_width(span->label) + 6;
    bool dark = !strcmp(span->look, "round-stopped") || !strcmp(span->look, "journal");
    bool fits = width >= needed;

    if (!fits && !(s->page && band->zoom))
        return;
    fprintf(s->out, "<text class=\"in%s\" x=\"%.2f\" y=\"%.2f\"", dark ? " lit" : "", x + width / 2,
            middle + 3.6);
    svg_when(s, band, span->begin, span->end);
    if (s->page && band->zoom)
        fprintf(s->out, " data-w=\"%.0f\"%s", needed, fits ? "" : " display=\"none\"");
    fputc('>', s->out);
    svg_escape(s->out, span->label);
    fputs("</text>\n", s->out);
}

static void draw_span(const struct svg *s, const struct svg_band *band,
                      const struct timeline_row *row, const struct timeline_span *span, double y)
{
    double height = svg_row_height(band, row), x, width;
    double top = height > 6 ? 1 : 0, inner = height - 2 * top,
           bar = height > 18  ? 4
                 : height > 9 ? 2.4
                              : height / 3;
    /* Only names that are ours get into attributes; of a change that is not known there is no
     * hatching. */
    const struct timeline_look *look = timeline_look(span->look);
    bool data = span->layer == TIMELINE_DATA, change = span->layer == TIMELINE_CHANGE && look->name;

    if (!svg_clip(s, band, span->begin, span->end, &x, &width))
        return;
    fprintf(s->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"", x,
            data ? y + height - bar - (height > 6 ? 1.5 : 0) : y + top, width > 0.8 ? width : 0.8,
            data ? bar : inner);
    if (data)
        fputs(" class=\"data", s->out);
    else
        fprintf(s->out, " fill=\"%s%s%s\" class=\"span", change ? "url(#h-" : "",
                change ? look->name : look->colour, change ? ")" : "");
    fputs(span->bad ? " bad\"" : "\"", s->out);
    svg_when(s, band, span->begin, span->end);
    fputs("><title>", s->out);
    if (row->kind == TIMELINE_DEVICE) {
        svg_escape(s->out, row->label);
        fputs("\n", s->out);
    }
    svg_escape(s->out, span->detail);
    fputs("</title></rect>\n", s->out);
    if (!data && height >= LABEL_MIN)
        draw_label(s, band, span, x, width,
                   y + height / 2 - (row->kind == TIMELINE_DEVICE ? 1 : 0));
}

static void draw_row(const struct svg *s, const struct svg_band *band,
                     const struct timeline_row *row, double y)
{
    double height = svg_row_height(band, row);
    char label[40];

    if (height >= LABEL_MIN) {
        snprintf(label, sizeof(label), "%.22s%s", row->label, strlen(row->label) > 22 ? "…" : "");
        fprintf(s->out, "<text class=\"name\" x=\"%.0f\" y=\"%.2f\">", SVG_GUTTER - 8,
                y + height / 2 + 3.8);
        svg_escape(s->out, label);
        if (row->detail) {
            fputs("<title>", s->out);
            svg_escape(s->out, row->detail);
            fputs("</title>", s->out);
        }
        fputs("</text>\n", s->out);
    }
    for (int layer = TIMELINE_STATE; layer <= TIMELINE_DATA; layer++)
        for (size_t i = 0; i < row->count; i++)
            if (row->spans[i].layer == (enum timeline_layer)layer)
                draw_span(s, band, row, &row->spans[i], y);
}

/* --- what crosses rows --- */

static void draw_line(const struct svg *s, const struct svg_band *band, const char *class,
                      int64_t t, double top, double bottom, const char *detail)
{
    double x, width;

    if (!svg_clip(s, band, t, t, &x, &width))
        return;
    fprintf(s->out, "<line class=\"%s\" x1=\"%.2f\" x2=\"%.2f\" y1=\"%.2f\" y2=\"%.2f\"", class, x,
            x, top, bottom);
    svg_when(s, band, t, t);
    fputs("><title>", s->out);
    svg_escape(s->out, detail);
    fputs("</title></line>\n", s->out);
}

/* Barriers go through a side's devices, marks through all of its rows. */
static void draw_crossing(const struct svg *s, const struct svg_band *band, bool source, double top,
                          double bottom, double devices_top, double devices_bottom)
{
    const struct timeline *t = s->t;

    for (size_t i = 0; i < t->barrier_count; i++)
        if (t->barriers[i].source == source && devices_bottom > devices_top)
            draw_line(s, band, "barrier", t->barriers[i].t, devices_top - 3, devices_bottom + 3,
                      t->barriers[i].detail);
    for (size_t i = 0; i < t->mark_count; i++)
        if (t->marks[i].source == source)
            draw_line(s, band, t->marks[i].bad ? "mark failed" : "mark", t->marks[i].t, top - 5,
                      t->marks[i].bad ? bottom + 5 : top + 4, t->marks[i].text);
}

static double draw_side(const struct svg *s, const struct svg_band *band, bool source, double y)
{
    double top = y, devices_top = 0, devices_bottom = 0;
    unsigned count = 0;

    for (size_t i = 0; i < s->t->row_count; i++) {
        const struct timeline_row *row = &s->t->rows[i];
        if (row->source != source)
            continue;
        if (row->kind == TIMELINE_DEVICE) {
            devices_top = count++ ? devices_top : y;
            devices_bottom = y + band->device;
        }
        draw_row(s, band, row, y);
        y += svg_row_height(band, row);
    }
    if (band->device < LABEL_MIN && count) {
        char label[32];
        snprintf(label, sizeof(label), "%u devices", count);
        svg_text(s, SVG_GUTTER - 8, (devices_top + devices_bottom) / 2 + 4, "name", label);
    }
    draw_crossing(s, band, source, top, y, devices_top, devices_bottom);
    return y;
}

static void draw_arrows(const struct svg *s, const struct svg_band *band, double above,
                        double below)
{
    double last = -1e9;

    for (size_t i = 0; i < s->t->arrow_count; i++) {
        const struct timeline_arrow *arrow = &s->t->arrows[i];
        double x1, x2, width;
        if (!svg_clip(s, band, arrow->begin, arrow->begin, &x1, &width) ||
            !svg_clip(s, band, arrow->end, arrow->end, &x2, &width))
            continue;
        fprintf(s->out,
                "<line class=\"arrow\" marker-end=\"url(#tip)\" x1=\"%.2f\" x2=\"%.2f\" "
                "y1=\"%.2f\" y2=\"%.2f\"",
                x1, x2, arrow->from_source ? above : below, arrow->from_source ? below : above);
        svg_when(s, band, arrow->begin, arrow->end);
        char took[24];
        timeline_time(took, sizeof(took),
                      arrow->end > arrow->begin ? arrow->end - arrow->begin : 0);
        fprintf(s->out, "><title>%s: %s</title></line>\n",
                arrow->from_source ? "to the destination" : "to the source", took);
        /* Names that would lie on each other are left to the tooltip. */
        bool room = x1 > last + 4;
        if (!room && !(s->page && band->zoom))
            continue;
        last = room ? x1 + svg_text_width(arrow->name) : last;
        fprintf(s->out, "<text class=\"message\" x=\"%.2f\" y=\"%.2f\"%s", x1 + 4,
                (above + below) / 2 + 3.5, room ? "" : " display=\"none\"");
        svg_when(s, band, arrow->begin, arrow->begin);
        if (s->page && band->zoom)
            fprintf(s->out, " data-m=\"%.0f\"", svg_text_width(arrow->name));
        fputc('>', s->out);
        svg_escape(s->out, arrow->name);
        fputs("</text>\n", s->out);
    }
}

double svg_rows(const struct svg *s, const struct svg_band *band, double y)
{
    const struct timeline *t = s->t;
    double above, gap = band->zoom && t->arrow_count ? ARROW_GAP : 6;

    if (t->source) {
        svg_text(s, SVG_MARGIN, y + 12, "side", "source");
        y = draw_side(s, band, true, y + GROUP_GAP);
    }
    above = y;
    if (t->dest) {
        y += t->source ? gap : 0;
        svg_text(s, SVG_MARGIN, y + (t->source ? -2 : 12), "side", "destination");
        y += t->source ? 6 : GROUP_GAP;
        double below = y;
        y = draw_side(s, band, false, y);
        if (band->zoom && t->source)
            draw_arrows(s, band, above - band->row / 2, below + band->row / 2);
    }
    return y;
}
