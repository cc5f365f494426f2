/* SPDX-License-Identifier: BSD-3-Clause */
/* What the picture and the page share. */
#ifndef VFMIG_TOOLS_TIMELINE_SVG_H
#define VFMIG_TOOLS_TIMELINE_SVG_H

#include "timeline.h"

#define SVG_WIDTH  1280.0
#define SVG_GUTTER 168.0 /* left of the rows, for their names */
#define SVG_MARGIN 20.0

/* A stretch of time and where it is drawn. */
struct svg_band {
    double x, width;
    int64_t begin, end;
    bool zoom;
    double row, device; /* heights */
};

struct svg {
    FILE *out;
    const struct timeline *t;
    bool page; /* elements say when they are, and are all there: a script moves them */
    double axis_top, axis_bottom; /* of the band that is magnified, once it is drawn */
};

double svg_at(const struct svg_band *band, int64_t t);
/* Clipped to the band; false when nothing of it is to be drawn. */
bool svg_clip(const struct svg *s, const struct svg_band *band, int64_t begin, int64_t end,
              double *ret_x, double *ret_width);
/* Text with what XML reserves escaped. */
void svg_escape(FILE *out, const char *text);
void svg_text(const struct svg *s, double x, double y, const char *class, const char *text);
/* data-b and data-e, for the script. */
void svg_when(const struct svg *s, const struct svg_band *band, int64_t begin, int64_t end);
double svg_text_width(const char *text);

/* timeline_rows.c: draws the rows of both sides from y on; returns where they end. */
double svg_rows(const struct svg *s, const struct svg_band *band, double y);
double svg_row_height(const struct svg_band *band, const struct timeline_row *row);
/* timeline_svg.c: everything between <svg> and </svg>; returns the height. */
double svg_body(struct svg *s);
void svg_style(FILE *out);
void svg_defs(FILE *out);

#endif
