/* SPDX-License-Identifier: BSD-3-Clause */
/* The picture: an overview, the interesting part magnified below it, rates, the downtime in parts.
 */
#include "timeline_svg.h"

#include <stdlib.h>
#include <string.h>

#define RATES_HEIGHT 58.0

static const char *const part_colours[] = {"#4e79a7", "#f28e2b", "#e15759", "#76b7b2",
                                           "#59a14f", "#edc948", "#b07aa1", "#ff9da7",
                                           "#9c755f", "#86bcb6", "#bab0ac"};
#define PART_COLOURS (sizeof(part_colours) / sizeof(part_colours[0]))

void svg_escape(FILE *out, const char *text)
{
    for (; *text; text++) {
        const char *entity = *text == '&'   ? "&amp;"
                             : *text == '<' ? "&lt;"
                             : *text == '>' ? "&gt;"
                             : *text == '"' ? "&quot;"
                                            : NULL;
        if (entity)
            fputs(entity, out);
        else
            fputc(*text, out);
    }
}

/* Of the fonts that are likely, at 11 pixels; a little too much rather than too little. */
double svg_text_width(const char *text)
{
    double width = 0;

    for (; *text; text++)
        if ((*text & 0xc0) != 0x80) /* a character may have several bytes */
            width += strchr("ABCDEFGHJKLMNOPQRSTUVWXYZ_mw→", *text) ? 7.6 : 6;
    return width;
}

void svg_text(const struct svg *s, double x, double y, const char *class, const char *text)
{
    fprintf(s->out, "<text class=\"%s\" x=\"%.2f\" y=\"%.2f\">", class, x, y);
    svg_escape(s->out, text);
    fputs("</text>\n", s->out);
}

void svg_style(FILE *out)
{
    fputs("text{font:11px system-ui,'Segoe UI',Roboto,'Helvetica "
          "Neue',Arial,sans-serif;fill:#2b3440}\n"
          ".title{font-size:17px;font-weight:600}.sub{font-size:12.5px;fill:#4a5563}\n"
          ".fail{font-size:12.5px;fill:#b3261e;font-weight:600}.head{font-size:12.5px;font-weight:"
          "600}\n"
          ".name{text-anchor:end;fill:#3c4654}.side{font-weight:700;fill:#1d2733;font-size:12px}\n"
          ".in{text-anchor:middle;fill:#18212c;pointer-events:none}.lit{fill:#fff}\n"
          ".tick{fill:#6b7684;font-size:10px;text-anchor:middle}.grid{stroke:#e6eaf0;stroke-width:"
          "1}\n"
          ".value{text-anchor:end;font-variant-numeric:tabular-nums}\n"
          ".span{stroke:#fff;stroke-width:.4}.data{fill:#1f3552;fill-opacity:.8}\n"
          ".bad{stroke:#c62828;stroke-width:1.6}\n"
          ".barrier{stroke:#27313d;stroke-width:1;stroke-dasharray:3 2;stroke-opacity:.65}\n"
          ".mark{stroke:#27313d;stroke-width:2}.failed{stroke:#c62828;stroke-width:2}\n"
          ".arrow{stroke:#46525f;stroke-width:1}.message{fill:#46525f;font-size:10px;font-style:"
          "italic}\n"
          ".down{fill:#d8504d;fill-opacity:.09}.lens{fill:#5b93d6;fill-opacity:.10;stroke:#5b93d6;"
          "stroke-opacity:.55}\n"
          ".sent{fill:#7aa2cf;fill-opacity:.55}.dirty{stroke:#c2571a;stroke-width:1.6;fill:none}\n"
          ".total{stroke:#b3261e;stroke-width:1.2}\n",
          out);
}

/* A change is hatched in the colour of where it leads. */
void svg_defs(FILE *out)
{
    fputs("<defs><marker id=\"tip\" markerWidth=\"7\" markerHeight=\"7\" refX=\"6\" refY=\"3.5\" "
          "orient=\"auto\"><path d=\"M0,0.5 L6.5,3.5 L0,6.5 z\" fill=\"#46525f\"/></marker>\n",
          out);
    for (const struct timeline_look *look = timeline_looks; look->name; look++)
        fprintf(
            out,
            "<pattern id=\"h-%s\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" "
            "patternTransform=\"rotate(45)\"><rect width=\"5\" height=\"5\" fill=\"%s\"/>"
            "<rect width=\"2\" height=\"5\" fill=\"#27313d\" fill-opacity=\".38\"/></pattern>\n",
            look->name, look->colour);
    fputs("</defs>\n", out);
}

/* --- time --- */

static int64_t tick_step(int64_t span)
{
    int64_t step = 1;

    for (unsigned i = 0; step * 11 < span && step < TIMELINE_MAX_NS / 20; i++)
        step = i % 3 == 1 ? step / 2 * 5 : step * 2;
    return step;
}

static void draw_axis(const struct svg *s, const struct svg_band *band, int64_t zero, double y,
                      double bottom)
{
    int64_t step = tick_step(band->end - band->begin);
    int64_t from = zero + (band->begin - zero) / step * step;

    for (int64_t t = from < band->begin ? from + step : from; t <= band->end; t += step) {
        char text[24];
        timeline_time(text, sizeof(text), t < zero ? zero - t : t - zero);
        fprintf(s->out, "<line class=\"grid\" x1=\"%.2f\" x2=\"%.2f\" y1=\"%.2f\" y2=\"%.2f\"/>\n",
                svg_at(band, t), svg_at(band, t), y + 4, bottom);
        fprintf(s->out, "<text class=\"tick\" x=\"%.2f\" y=\"%.2f\">%s%s</text>\n", svg_at(band, t),
                y,
                t < zero                ? "−"
                : zero != 0 && t > zero ? "+"
                                        : "",
                t == zero ? "0" : text);
    }
}

static double rows_height(const struct svg *s, const struct svg_band *band)
{
    double height = 22;

    for (size_t i = 0; i < s->t->row_count; i++)
        height += svg_row_height(band, &s->t->rows[i]);
    return height + (s->t->source && s->t->dest ? band->zoom && s->t->arrow_count ? 36 : 12 : 0);
}

/* The guest stands still. */
static void shade(const struct svg *s, const struct svg_band *band, double top, double bottom)
{
    double x, width;
    int64_t run = s->t->run ? s->t->run : s->t->end;

    if (!s->t->stop || !svg_clip(s, band, s->t->stop, run, &x, &width))
        return;
    fprintf(s->out, "<rect class=\"down\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"", x,
            top, width > 1 ? width : 1, bottom - top);
    svg_when(s, band, s->t->stop, run);
    fputs("/>\n", s->out);
}

static double draw_band(struct svg *s, const struct svg_band *band, double y)
{
    double bottom = y + 6 + rows_height(s, band);

    s->axis_top = y;
    s->axis_bottom = bottom;

    fprintf(s->out, "<g%s>", band->zoom ? " id=\"axis\"" : "");
    draw_axis(s, band, band->zoom ? s->t->zero : 0, y, bottom);
    fprintf(s->out, "</g>\n<g%s>\n", band->zoom ? " id=\"zoom\"" : "");
    shade(s, band, y + 5, bottom);
    double end = svg_rows(s, band, y + 6);
    fputs("</g>\n", s->out);
    return end;
}

/* --- rates --- */

static double greater(double a, double b)
{
    return a > b ? a : b;
}

static double draw_rates(const struct svg *s, const struct svg_band *band, double y)
{
    const struct timeline *t = s->t;
    double most = 0, x, width;
    char text[24], label[40];

    for (size_t i = 0; i < t->rate_count; i++)
        most = greater(most, greater(t->rates[i].sent, t->rates[i].dirty));
    if (most <= 0)
        return y;
    timeline_bytes(text, sizeof(text), most);
    snprintf(label, sizeof(label), "%s/s", text);
    svg_text(s, SVG_GUTTER - 8, y + 9, "name", label);
    svg_text(s, SVG_GUTTER - 8, y + RATES_HEIGHT / 2 + 4, "name", "rates");
    svg_text(s, SVG_GUTTER - 8, y + RATES_HEIGHT, "name", "0");
    fprintf(s->out, "<line class=\"grid\" x1=\"%.2f\" x2=\"%.2f\" y1=\"%.2f\" y2=\"%.2f\"/>\n",
            band->x, band->x + band->width, y + RATES_HEIGHT, y + RATES_HEIGHT);
    for (size_t i = 0; i < t->rate_count; i++) {
        const struct timeline_rate *rate = &t->rates[i];
        double value = greater(rate->sent, rate->dirty), height = RATES_HEIGHT * value / most;
        if (!svg_clip(s, band, rate->begin, rate->end, &x, &width))
            continue;
        width = width > 0.8 ? width : 0.8;
        timeline_bytes(text, sizeof(text), value);
        if (rate->sent >= 0)
            fprintf(s->out,
                    "<rect class=\"sent\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\">"
                    "<title>sent at %s/s</title></rect>\n",
                    x, y + RATES_HEIGHT - height, width, height, text);
        else
            fprintf(s->out,
                    "<line class=\"dirty\" x1=\"%.2f\" x2=\"%.2f\" y1=\"%.2f\" y2=\"%.2f\">"
                    "<title>dirtied at %s/s</title></line>\n",
                    x, x + width, y + RATES_HEIGHT - height, y + RATES_HEIGHT - height, text);
    }
    return y + RATES_HEIGHT + 8;
}

/* --- downtime in parts --- */

static void draw_ribbon(const struct svg *s, const struct svg_band *band, double y)
{
    double x, width;
    char took[24];

    svg_text(s, SVG_GUTTER - 8, y + 14, "name", s->t->run_at_source ? "standstill" : "downtime");
    for (size_t i = 0; i < s->t->part_count; i++) {
        const struct timeline_part *part = &s->t->parts[i];
        if (part->end <= part->begin || !svg_clip(s, band, part->begin, part->end, &x, &width))
            continue;
        timeline_time(took, sizeof(took), (int64_t)part->ns);
        fprintf(
            s->out,
            "<rect class=\"span\" fill=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"18\"",
            part_colours[i % PART_COLOURS], x, y, width > 0.8 ? width : 0.8);
        svg_when(s, band, part->begin, part->end);
        fprintf(s->out, "><title>%s: %s</title></rect>\n", part->name, took);
    }
}

/* In columns; parts first, then what is inside of them. */
static double draw_parts(const struct svg *s, double y)
{
    const double column = (SVG_WIDTH - SVG_GUTTER - SVG_MARGIN) / 4;
    char took[24], total[64];
    size_t shown = 0;

    for (size_t i = 0; i < s->t->part_count; i++) {
        const struct timeline_part *part = &s->t->parts[i];
        double x = SVG_GUTTER + column * (double)(shown % 4), top = y + 18 * (double)(shown / 4);
        if (!part->ns)
            continue;
        shown++;
        timeline_time(took, sizeof(took), (int64_t)part->ns);
        if (part->share)
            fprintf(s->out,
                    "<rect fill=\"none\" stroke=\"#8a94a0\" x=\"%.2f\" y=\"%.2f\" width=\"9\" "
                    "height=\"9\"/>\n",
                    x + 0.5, top + 0.5);
        else
            fprintf(s->out,
                    "<rect fill=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"10\" height=\"10\"/>\n",
                    part_colours[i % PART_COLOURS], x, top);
        svg_text(s, x + 15, top + 9.5, "", part->name);
        svg_text(s, x + column - 24, top + 9.5, "value", took);
    }
    if (s->t->run) {
        timeline_time(took, sizeof(took), s->t->run - s->t->stop);
        snprintf(total, sizeof(total), "%s in all", took);
        svg_text(s, SVG_GUTTER - 8, y + 10, "name", total);
    }
    return y + 18 * (double)((shown + 3) / 4) + 4;
}

/* --- legend and head --- */

static double draw_legend(const struct svg *s, double y)
{
    double x = SVG_GUTTER;

    svg_text(s, SVG_GUTTER - 8, y + 9.5, "name", "legend");
    for (const struct timeline_look *look = timeline_looks; look->name; look++) {
        if (!look->legend)
            continue;
        double width = svg_text_width(look->legend) + 30;
        if (x + width > SVG_WIDTH - SVG_MARGIN) {
            x = SVG_GUTTER;
            y += 18;
        }
        fprintf(s->out, "<rect fill=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"12\" height=\"%d\"/>\n",
                look->colour, x, strcmp(look->name, "data") ? y : y + 6,
                strcmp(look->name, "data") ? 10 : 3);
        svg_text(s, x + 17, y + 9.5, "", look->legend);
        x += width;
    }
    if (x > SVG_WIDTH - 330) {
        x = SVG_GUTTER;
        y += 18;
    }
    fprintf(s->out,
            "<rect fill=\"url(#h-PRE_COPY)\" x=\"%.2f\" y=\"%.2f\" width=\"12\" height=\"10\"/>\n",
            x, y);
    svg_text(s, x + 17, y + 9.5, "", "on its way there");
    fprintf(s->out, "<line class=\"barrier\" x1=\"%.2f\" x2=\"%.2f\" y1=\"%.2f\" y2=\"%.2f\"/>\n",
            x + 127, x + 127, y - 2, y + 12);
    svg_text(s, x + 134, y + 9.5, "", "barrier: the last device is there");
    return y + 22;
}

static double draw_head(const struct svg *s)
{
    const struct timeline *t = s->t;
    char text[320];
    double y = 50;

    snprintf(text, sizeof(text), "Migration %.32s", t->id);
    svg_text(s, SVG_MARGIN, 28, "title", text);
    timeline_headline(t, text, sizeof(text));
    svg_text(s, SVG_MARGIN, y, "sub", text);
    if (*t->failure) {
        y += 18;
        svg_text(s, SVG_MARGIN, y, "fail", t->failure);
    }
    for (unsigned i = 0; i < t->trace->file_count; i++)
        if (t->trace->cut[i].line) {
            y += 18;
            snprintf(text, sizeof(text), "%.200s is cut short in line %u: this is what is before",
                     t->trace->cut[i].path, t->trace->cut[i].line);
            svg_text(s, SVG_MARGIN, y, "fail", text);
        }
    if (t->source && t->dest) {
        char error[24];
        y += 18;
        timeline_time(error, sizeof(error), t->clock_error_ns);
        snprintf(text, sizeof(text),
                 t->aligned
                     ? "the destination is shown on the source's clock, give or take %s"
                     : "the clocks were never compared: sides are aligned by time of day%.0s",
                 error);
        svg_text(s, SVG_MARGIN, y, "sub", text);
    }
    return y + 26;
}

static double height_of(uint64_t devices, const double *heights)
{
    return devices <= 4    ? heights[0]
           : devices <= 8  ? heights[1]
           : devices <= 16 ? heights[2]
           : devices <= 32 ? heights[3]
                           : heights[4];
}

/* From the part of the overview that is magnified to the band below. */
static void draw_lens(const struct svg *s, const struct svg_band *over, const struct svg_band *zoom,
                      double top, double bottom, double below)
{
    double x = svg_at(over, zoom->begin), end = svg_at(over, zoom->end);

    end = end > x + 1.5 ? end : x + 1.5;
    fprintf(s->out,
            "<path id=\"lens\" class=\"lens\" data-top=\"%.2f\" data-bottom=\"%.2f\" "
            "data-below=\"%.2f\" "
            "d=\"M%.2f,%.2f H%.2f V%.2f L%.2f,%.2f H%.2f L%.2f,%.2f Z\"/>\n",
            top, bottom, below, x, top, end, bottom, zoom->x + zoom->width, below, zoom->x, x,
            bottom);
}

double svg_body(struct svg *s)
{
    static const double over_heights[] = {15, 13, 8, 5, 3}, zoom_heights[] = {22, 19, 15, 11, 7};
    const struct timeline *t = s->t;
    struct svg_band over = {.x = SVG_GUTTER,
                            .width = SVG_WIDTH - SVG_GUTTER - SVG_MARGIN,
                            .begin = t->begin,
                            .end = t->end,
                            .row = 15,
                            .device = height_of(t->devices, over_heights)};
    struct svg_band zoom = over;
    bool zooms = t->zoom_end > t->zoom_begin;

    zoom.zoom = true;
    zoom.row = 20;
    zoom.device = height_of(t->devices, zoom_heights);
    zoom.begin = zooms ? t->zoom_begin : t->begin;
    zoom.end = zooms ? t->zoom_end : t->end;
    double y = draw_head(s) + 8, top = y;
    y = draw_band(s, &over, y) + 10;
    y = draw_rates(s, &over, y);
    if (zooms || s->page) {
        draw_lens(s, &over, &zoom, top + 5, y, y + 20);
        y = draw_band(s, &zoom, y + 36) + 12;
        if (t->stop) {
            draw_ribbon(s, &zoom, y);
            y = draw_parts(s, y + 28);
        }
    }
    return draw_legend(s, y + 10) + 8;
}

void timeline_svg(const struct timeline *t, FILE *out)
{
    struct svg s = {.out = out, .t = t};
    char *body = NULL;
    size_t size = 0;

    /* The height is known when everything is drawn. */
    s.out = open_memstream(&body, &size);
    if (!s.out)
        abort();
    double height = svg_body(&s);
    fclose(s.out);
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 "
            "0 %.0f %.0f\">\n"
            "<title>Migration %.32s</title>\n<style>\n",
            SVG_WIDTH, height, SVG_WIDTH, height, t->id);
    svg_style(out);
    fputs("</style>\n", out);
    svg_defs(out);
    fprintf(out, "<rect width=\"%.0f\" height=\"%.0f\" fill=\"#fff\"/>\n", SVG_WIDTH, height);
    fwrite(body, 1, size, out);
    fputs("</svg>\n", out);
    free(body);
}
