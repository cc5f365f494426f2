/* SPDX-License-Identifier: BSD-3-Clause */
/* Sequences of steps: the shortest that shows a finding, and doing one again from a file. */
#include <inttypes.h>

#include "check/rule.h"
#include "io/sock.h"

#define SHORTEN_NS 3000000000ull /* spent on looking for a shorter sequence */
#define MAX_LINE   (CHECK_MAX_DATA * 2 + 256)
#define MAX_ROOM   CHECK_MAX_DATA
/* A comment of a sequence whose finding is in the bytes, the memory or the DMA that a rule saw. */
#define BESIDE "# not in the outcome of a step: only the rule sees it"

/* Does a kept step again. */
static void redo(struct check *c, const struct check_kept *kept, uint8_t *room,
                 struct check_step *step)
{
    *step = kept->step;
    step->room = room;
    step->room_size = MAX_ROOM;
    step->result = 0;
    step->value = 0;
    check_run_step(c->port, step);
}

/* True when the steps that are still wanted end as the finding did. */
static bool shows(struct check *c, const bool *wanted, uint32_t count, uint8_t *room)
{
    struct check_step step = {.result = 0};

    if (!check_baseline(c))
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (wanted[i])
            redo(c, &c->kept[i], room, &step);
    const struct check_step *last = &c->kept[count - 1].step;
    return step.result == last->result &&
           (step.kind != CHECK_STEP_STATE_GET || step.value == last->value);
}

static bool observes(enum check_step_kind kind)
{
    return kind == CHECK_STEP_STATE_GET || kind == CHECK_STEP_REGION_READ ||
           kind == CHECK_STEP_DATA_READ || kind == CHECK_STEP_LOG_REPORT ||
           kind == CHECK_STEP_FEATURE_GET;
}

/* The last step that does something, and what is seen after it, always stay. */
static uint32_t first_to_stay(const struct check *c, uint32_t count)
{
    uint32_t at = count - 1;

    while (at > 0 && observes(c->kept[at].step.kind))
        at--;
    return at;
}

/* Leaves out halves, quarters ... single steps, as long as the last one ends the same. */
static void shorten(struct check *c, bool *wanted, uint32_t count, uint8_t *room)
{
    uint64_t end = vfmig_now_ns() + SHORTEN_NS;
    uint32_t stay = first_to_stay(c, count);

    if (!shows(c, wanted, count, room))
        return; /* it does not come again: all of it is shown */
    for (uint32_t size = stay / 2 ? stay / 2 : 1; size && vfmig_now_ns() < end; size /= 2)
        for (uint32_t from = 0; from + size <= stay && vfmig_now_ns() < end; from += size) {
            bool before[CHECK_MAX_KEPT];
            memcpy(before, wanted, count * sizeof(*wanted));
            memset(wanted + from, 0, size * sizeof(*wanted));
            if (memcmp(before, wanted, count * sizeof(*wanted)) && !shows(c, wanted, count, room))
                memcpy(wanted, before, count * sizeof(*wanted));
        }
}

char *check_shortest(struct check *c)
{
    uint32_t count = c->found_at < c->kept_count ? (uint32_t)c->found_at : c->kept_count;
    bool *wanted = malloc(CHECK_MAX_KEPT * sizeof(*wanted));
    uint8_t *room = malloc(MAX_ROOM);
    char *text = NULL;
    size_t size = 0;
    FILE *out = wanted && room && !c->kept_cut && count ? open_memstream(&text, &size) : NULL;

    if (out) {
        memset(wanted, true, CHECK_MAX_KEPT * sizeof(*wanted));
        if (c->last_shows && !check_gone(c))
            shorten(c, wanted, count, room);
        fprintf(out, "# vfmig check, rule %s (%s)\n# expected: %s\n# seen: %s\n%sdialect %s\n",
                c->rule->id, c->rule->clause, c->result.expected, c->result.seen,
                c->last_shows ? "" : BESIDE "\n",
                c->dialect == CHECK_DIALECT_REGION ? "region" : "feature");
        for (uint32_t i = 0; i < count; i++)
            if (wanted[i])
                check_step_print(out, &c->kept[i].step, true);
        fclose(out);
    }
    free(wanted);
    free(room);
    return text;
}

/* ---- from a file ---- */

struct replay {
    struct check c;
    FILE *in, *out;
    char *line;
    uint8_t *data, *room;
    bool started, same, beside;
    unsigned number; /* of the line */
};

static int bad_line(struct replay *r, const char *path, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s, line %u: not a step", path,
                           r->number);
}

static int replay_step(struct replay *r, const char *path, struct vfmig_error *reterr)
{
    struct check_kept kept = {.data = r->data};
    struct check_step step;

    if (check_step_parse(r->line, &kept.step, r->data, CHECK_MAX_DATA) < 0)
        return bad_line(r, path, reterr);
    if (!r->started && !check_baseline(&r->c))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_DEVICE, 0,
                               "the device cannot be had in RUNNING: %s", r->c.port->trouble_text);
    r->started = true;
    redo(&r->c, &kept, r->room, &step);
    r->same = step.result == kept.step.result &&
              (step.kind != CHECK_STEP_STATE_GET || step.value == kept.step.value);
    check_step_print(r->out, &step, true);
    if (!r->same)
        fprintf(r->out, "    recorded: %" PRId64 " %" PRIu64 "\n", kept.step.result,
                kept.step.value);
    if (r->c.port->trouble && step.result == -ENOTCONN)
        fprintf(r->out, "    the device is %s: %s\n", check_trouble_name(r->c.port->trouble),
                r->c.port->trouble_text);
    return 0;
}

static int replay_lines(struct replay *r, const char *path, struct vfmig_error *reterr)
{
    int result = 0;

    while (result == 0 && fgets(r->line, MAX_LINE, r->in)) {
        r->number++;
        r->beside = r->beside || !strncmp(r->line, BESIDE, strlen(BESIDE));
        if (r->line[0] == '#' || r->line[0] == '\n')
            fputs(r->line, r->out);
        else if (!strcmp(r->line, "dialect region\n") && !r->started)
            r->c.dialect = CHECK_DIALECT_REGION;
        else if (!strcmp(r->line, "dialect feature\n") && !r->started)
            r->c.dialect = CHECK_DIALECT_FEATURE;
        else
            result = replay_step(r, path, reterr);
    }
    if (result == 0 && ferror(r->in))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0, "%s: %s", path,
                               strerror(errno));
    if (result == 0 && !r->started)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s: no steps in it", path);
    return result;
}

int check_replay(const char *target, const char *path, uint32_t deadline_ms, FILE *out,
                 enum check_replay_end *ret_end, struct vfmig_error *reterr)
{
    struct replay r = {.out = out, .c.dialect = CHECK_DIALECT_FEATURE};
    int result = 0;

    r.in = fopen(path, "re");
    if (!r.in)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "%s: %s", path,
                               strerror(errno));
    r.line = malloc(MAX_LINE);
    r.data = malloc(CHECK_MAX_DATA);
    r.room = malloc(MAX_ROOM);
    if (!r.line || !r.data || !r.room)
        result = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a replay");
    if (result == 0)
        result = check_port_open(target, deadline_ms ? deadline_ms : 2000, &r.c.port, reterr);
    if (result == 0)
        result = replay_lines(&r, path, reterr);
    *ret_end = !r.same ? CHECK_REPLAY_DIFFERS : r.beside ? CHECK_REPLAY_UNSEEN : CHECK_REPLAY_SAME;
    check_port_free(r.c.port);
    free(r.line);
    free(r.data);
    free(r.room);
    fclose(r.in);
    return result;
}
