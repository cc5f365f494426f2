/* SPDX-License-Identifier: BSD-3-Clause */
/* vfmig timeline: what a migration did, drawn from its trace. */
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "commands.h"
#include "options.h"
#include "timeline.h"

static const char *output, *id = "";
static uint64_t width;
static bool json;

static const struct tool_option options[] = {
    {"output", TOOL_TEXT, &output, "FILE",
     "or -o FILE: draw .svg, a picture, or .html, a page to look around in", .letter = 'o'},
    {"json", TOOL_FLAG, &json, NULL, "print a summary as one JSON object"},
    {"id", TOOL_TEXT, &id, "HEX", "the migration whose id begins so; otherwise the last one"},
    {"width", TOOL_NUMBER, &width, "N", "columns of the text; otherwise those of the terminal",
     .min = 40, .max = 1000},
    {NULL},
};

static const struct tool_usage usage = {
    .command = "timeline",
    .operands = "TRACE [TRACE]",
    .about = "Draws a migration from what --trace wrote: of the source, with the destination's\n"
             "lines in it or as a second file. Without --output as text.",
    .options = options,
    .operand_min = 1,
    .operand_max = 2,
    .after = "exit status: 0 drawn, 1 no trace, or it cannot be written, 2 wrong command line",
};

static bool ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), tail = strlen(end);

    return size > tail && !strcmp(text + size - tail, end);
}

static int draw(const struct timeline *t)
{
    FILE *file = fopen(output, "we");

    if (!file)
        return tool_fail(&usage, TOOL_FAILED, "cannot write %s: %s", output, strerror(errno));
    if (ends_with(output, ".svg"))
        timeline_svg(t, file);
    else
        timeline_html(t, file);
    bool bad = ferror(file) != 0;
    if (fclose(file) || bad)
        return tool_fail(&usage, TOOL_FAILED, "cannot write %s: %s", output, strerror(errno));
    return TOOL_OK;
}

static void print(const struct timeline *t)
{
    struct timeline_text_options how = {.width = (unsigned)width};
    struct winsize size = {0};
    const char *no_colour = getenv("NO_COLOR"), *columns = getenv("COLUMNS");
    bool terminal = isatty(STDOUT_FILENO);

    setlocale(LC_CTYPE, "");
    how.utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
    how.colour = terminal && !(no_colour && *no_colour);
    if (!how.width && terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0)
        how.width = size.ws_col;
    if (!how.width && columns)
        how.width = (unsigned)strtoul(columns, NULL, 10);
    how.width = !how.width ? 100 : how.width < 40 ? 40 : how.width > 1000 ? 1000 : how.width;
    timeline_text(t, &how, stdout);
}

static int show(struct trace *trace)
{
    struct trace_attempt *source, *dest;
    struct vfmig_error err = {0};
    struct timeline t;
    int code = TOOL_OK;

    if (trace_choose(trace, id, &source, &dest, &err))
        return tool_fail(&usage, TOOL_FAILED, "%s", err.text);
    for (unsigned i = 0; i < trace->file_count; i++)
        if (trace->cut[i].line)
            fprintf(stderr,
                    "vfmig timeline: %s: line %u is cut short; what is before it is shown\n",
                    trace->cut[i].path, trace->cut[i].line);
    timeline_build(&t, trace, source, dest);
    if (json)
        timeline_json(&t, stdout);
    else if (!output)
        print(&t);
    if (output)
        code = draw(&t);
    timeline_free(&t);
    return code;
}

int cmd_timeline(int argc, char **argv)
{
    struct tool_list operands = {.count = 0};
    struct vfmig_error err = {0};
    struct trace trace = {0};
    int code = tool_parse(&usage, argc, argv, &operands);

    if (code >= 0)
        return code;
    if (output && !ends_with(output, ".svg") && !ends_with(output, ".html"))
        return tool_fail(&usage, TOOL_USAGE, "--output: %s ends neither with .svg nor with .html",
                         output);
    code = TOOL_OK;
    for (unsigned i = 0; i < operands.count && code == TOOL_OK; i++)
        if (trace_read(&trace, operands.items[i], &err))
            code = tool_fail(&usage, TOOL_FAILED, "%s", err.text);
    if (code == TOOL_OK)
        code = show(&trace);
    trace_free(&trace);
    return code;
}
