/* SPDX-License-Identifier: BSD-3-Clause */
/* The RFC's order clauses over traces of whole processes (docs/trace.md), by the rules that judge
 * every engine test. Usage: order_judge FILE...
 *
 * A file has the lines of one VMM, or of both sides; each side for itself is in order. A last line
 * without its end is what a process that was killed has left, and is not looked at.
 *
 * Exit code 0: no clause is broken; 1: one is, or a file is no trace; 2: wrong usage. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "order_rules.h"

struct judge {
    struct order_rules side[2]; /* destination, source */
    uint32_t before[2];         /* lines judged when the attempt began */
};

/* An attempt that went well to its end has asked every device and every work; rules that saw nothing
 * of it have proved nothing. */
static void look_at_end(struct judge *judge, const char *line)
{
    bool source = strstr(line, "\"side\":\"source\"") != NULL;
    struct order_rules *rules = &judge->side[source];

    if (!strstr(line, "\"ev\":\"state\",\"state\":\"completed\""))
        return;
    uint32_t least = source ? 6 + 3 * rules->count : 1 + 3 * rules->count;
    if (rules->judged - judge->before[source] < least && !rules->broken[0])
        snprintf(rules->broken, sizeof(rules->broken), "completed, and only %u lines of it judged: %s",
                 rules->judged - judge->before[source], line);
}

static int feed(struct judge *judge, const char *line)
{
    bool source = strstr(line, "\"side\":\"source\"") != NULL;

    if (strncmp(line, "{\"t_ns\":", 8) != 0 || (!source && !strstr(line, "\"side\":\"destination\"")))
        return -EINVAL;
    if (strstr(line, "\"ev\":\"trace\""))
        judge->before[source] = judge->side[source].judged;
    order_rules_feed(&judge->side[source], line);
    look_at_end(judge, line);
    return 0;
}

/* Lines judged, or a negative errno: it has been told what is wrong. */
static long judge_file(const char *path)
{
    FILE *file = fopen(path, "re");
    struct judge judge = {0};
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    int ret = 0;

    if (!file) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return -EIO;
    }
    while (ret == 0 && (length = getline(&line, &room, file)) > 0) {
        if (line[length - 1] != '\n')
            break;
        line[length - 1] = '\0';
        ret = feed(&judge, line);
        if (ret)
            fprintf(stderr, "%s: no line of a trace: %s\n", path, line);
    }
    free(line);
    fclose(file);
    for (unsigned i = 0; i < 2; i++)
        if (judge.side[i].broken[0]) {
            fprintf(stderr, "%s: %s\n", path, judge.side[i].broken);
            ret = -EPROTO;
        }
    return ret ? ret : (long)(judge.side[0].judged + judge.side[1].judged);
}

int main(int argc, char **argv)
{
    long judged = 0, one = 0;
    int failed = 0;

    if (argc < 2) {
        fprintf(stderr, "usage: order_judge FILE...\n");
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        one = judge_file(argv[i]);
        failed |= one < 0;
        judged += one < 0 ? 0 : one;
    }
    printf("%ld lines judged\n", judged);
    return failed;
}
