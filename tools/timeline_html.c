/* SPDX-License-Identifier: BSD-3-Clause */
/* The picture as a page to look around in: one file, nothing is fetched from anywhere. */
#include <stdlib.h>

#include "timeline_page.h"
#include "timeline_svg.h"

static const char page_style[] =
    "html{background:#eceff3}body{margin:16px auto;max-width:1500px;padding:0 16px;"
    "font:13px system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;color:#2b3440}\n"
    "#picture{display:block;width:100%;height:auto;background:#fff;border-radius:8px;"
    "box-shadow:0 1px 4px #0002;touch-action:pan-y;user-select:none}\n"
    "nav{display:flex;gap:8px;align-items:center;margin:0 0 10px}nav "
    "span{margin-left:auto;color:#5a6573}\n"
    "button{font:inherit;padding:4px 12px;border:1px solid "
    "#c4ccd6;border-radius:6px;background:#fff;"
    "cursor:pointer}button:hover{background:#f3f6fa}\n"
    "#tip{position:fixed;white-space:pre-line;background:#1f2833;color:#fff;padding:6px 10px;"
    "border-radius:6px;font-size:12px;line-height:1.45;pointer-events:none;max-width:420px}\n"
    "[data-tip]:hover{filter:brightness(1.08)}#lens{cursor:ew-resize}#zoom{cursor:grab}\n"
    "@media(prefers-color-scheme:dark){html{background:#161b22}body{color:#d5dbe3}"
    "nav span{color:#97a3b1}button{background:#222b36;color:inherit;border-color:#3b4655}"
    "button:hover{background:#2c3745}}\n";

void timeline_html(const struct timeline *t, FILE *out)
{
    struct svg s = {.t = t, .page = true};
    bool zooms = t->zoom_end > t->zoom_begin;
    char *body = NULL;
    size_t size = 0;

    s.out = open_memstream(&body, &size);
    if (!s.out)
        abort();
    double height = svg_body(&s);
    fclose(s.out);
    fprintf(out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
            "<meta name=\"viewport\" content=\"width=device-width\">\n"
            "<title>Migration %.32s</title>\n<style>\n%s",
            t->id, page_style);
    svg_style(out);
    fprintf(out,
            "</style>\n</head>\n<body>\n<nav><button id=\"close\" title=\"0 or a double "
            "click\">%s</button>"
            "<button id=\"all\" title=\"a\">all of it</button>"
            "<button id=\"in\" title=\"+ or the wheel\">zoom in</button>"
            "<button id=\"out\" title=\"- or the wheel\">zoom out</button>"
            "<span id=\"span\"></span></nav>\n"
            "<svg id=\"picture\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\">\n",
            t->stop ? "the standstill" : "the end", SVG_WIDTH, height);
    svg_defs(out);
    fwrite(body, 1, size, out);
    fprintf(out,
            "</svg>\n<div id=\"tip\" hidden></div>\n<script>\nconst T = {x: %.0f, width: %.0f, "
            "begin: %lld, end: %lld, "
            "zoomBegin: %lld, zoomEnd: %lld, zero: %lld, axisTop: %.2f, axisBottom: %.2f};\n",
            SVG_GUTTER, SVG_WIDTH - SVG_GUTTER - SVG_MARGIN, (long long)t->begin, (long long)t->end,
            (long long)(zooms ? t->zoom_begin : t->begin),
            (long long)(zooms ? t->zoom_end : t->end), (long long)t->zero, s.axis_top,
            s.axis_bottom);
    fwrite(timeline_page_js, 1, timeline_page_js_size, out);
    fputs("</script>\n</body>\n</html>\n", out);
    free(body);
}
