/* SPDX-License-Identifier: BSD-3-Clause */
/* Judgements of a rule, and the ways to a state that most rules start with. */
#include <stdarg.h>
#include <stdio.h>

#include "check/rule.h"

void check_doing(struct check *c, const char *format, ...)
{
    va_list args;

    if (c->found)
        return;
    va_start(args, format);
    vsnprintf(c->result.done, sizeof(c->result.done), format, args);
    va_end(args);
}

bool check_gone(const struct check *c)
{
    return c->port->trouble != CHECK_FINE;
}

bool check_over(const struct check *c)
{
    return c->found || check_gone(c);
}

static void find(struct check *c, bool last, const char *expected, const char *seen)
{
    if (c->found)
        return;
    c->found = true;
    c->last_shows = last;
    c->found_at = c->kept_count;
    snprintf(c->result.expected, sizeof(c->result.expected), "%s", expected);
    snprintf(c->result.seen, sizeof(c->result.seen), "%s", seen);
}

bool check_that(struct check *c, bool good, const char *expected, const char *seen, ...)
{
    char text[CHECK_TEXT];
    va_list args;

    /* What is told of a device that does not answer is the runner's to say. */
    if (check_gone(c))
        return false;
    c->result.stimuli++;
    if (good)
        return true;
    va_start(args, seen);
    vsnprintf(text, sizeof(text), seen, args);
    va_end(args);
    find(c, false, expected, text);
    return false;
}

static const char *error_name(int error)
{
    const char *name = strerrorname_np(error);

    return name ? name : "an unknown error";
}

const char *check_outcome(const struct check *c, int64_t r)
{
    if (r == -ENOTCONN && check_gone(c))
        return c->port->trouble_text;
    return r < 0 ? error_name((int)-r) : "success";
}

static bool judge_last(struct check *c, bool good, const char *expected, const char *seen)
{
    if (check_gone(c))
        return false;
    c->result.stimuli++;
    if (!good)
        find(c, true, expected, seen);
    return good;
}

bool check_ok(struct check *c, int64_t r, const char *what)
{
    char expected[CHECK_TEXT], seen[CHECK_TEXT];

    snprintf(expected, sizeof(expected), "%s succeeds", what);
    snprintf(seen, sizeof(seen), "%s", check_outcome(c, r));
    return judge_last(c, r >= 0, expected, seen);
}

bool check_need(struct check *c, int64_t r, const char *what)
{
    uint64_t stimuli = c->result.stimuli;
    bool good = check_ok(c, r, what);

    if (good)
        c->result.stimuli = stimuli;
    return good;
}

bool check_refused(struct check *c, int64_t r, const char *what)
{
    char expected[CHECK_TEXT];

    snprintf(expected, sizeof(expected), "%s is refused", what);
    return judge_last(c, r < 0, expected, "success");
}

bool check_errno(struct check *c, int64_t r, int error, const char *what)
{
    char expected[CHECK_TEXT], seen[CHECK_TEXT];

    snprintf(expected, sizeof(expected), "%s is refused with %s", what, error_name(error));
    snprintf(seen, sizeof(seen), "%s", check_outcome(c, r));
    return judge_last(c, r == -error, expected, seen);
}

bool check_is(struct check *c, enum vfmig_state state, const char *what)
{
    char expected[CHECK_TEXT], seen[CHECK_TEXT];
    uint32_t raw = 0;
    int r = check_raw(c, &raw);
    unsigned now = r < 0 ? CHECK_STATE_NONE : check_state_of(c, raw);

    snprintf(expected, sizeof(expected), "%s: the state is %s", what, check_state_name(state));
    if (r < 0)
        snprintf(seen, sizeof(seen), "reading it: %s", check_outcome(c, r));
    else
        snprintf(seen, sizeof(seen), "%s (%u)", check_state_name(now), raw);
    return judge_last(c, now == (unsigned)state, expected, seen);
}

void check_skip(struct check *c, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(c->result.why, sizeof(c->result.why), format, args);
    va_end(args);
    c->result.verdict = CHECK_SKIPPED;
    c->result.stimuli = 0;
}

void check_not_applicable(struct check *c, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(c->result.why, sizeof(c->result.why), format, args);
    va_end(args);
    c->result.verdict = CHECK_NOT_APPLICABLE;
}

bool check_reach(struct check *c, enum vfmig_state state)
{
    char what[64];
    unsigned now = check_now(c);

    if (now == (unsigned)state)
        return true;
    if (now != VFMIG_STATE_RUNNING) {
        check_reset(c);
        if (check_now(c) != VFMIG_STATE_RUNNING)
            check_go(c, VFMIG_STATE_RUNNING);
    }
    if (state == VFMIG_STATE_RUNNING)
        return check_is(c, state, "on the way back");
    snprintf(what, sizeof(what), "RUNNING to %s", check_state_name(state));
    int r = check_go(c, state);
    if (r < 0)
        return check_ok(c, r, what);
    return !check_gone(c);
}

bool check_reach_error(struct check *c)
{
    static const char nonsense[256] = "this is not the state of any device";

    if (!check_reach(c, VFMIG_STATE_RESUMING))
        return false;
    check_load(c, nonsense, sizeof(nonsense));
    check_go(c, VFMIG_STATE_STOP);
    return check_now(c) == VFMIG_STATE_ERROR;
}
