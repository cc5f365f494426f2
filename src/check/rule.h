/* SPDX-License-Identifier: BSD-3-Clause */
/* What a rule may use. A rule is a function that
 *
 *   - finds the device in RUNNING, reset, without mappings, its log off;
 *   - does things to it with the functions below (each is recorded, each has a deadline);
 *   - judges with check_that() and its kin: each call is one stimulus, the first that is not good
 * is what the report shows. A rule that judged nothing did not pass;
 *   - may leave the device anywhere, hung or gone too.
 *
 * States are the neutral enum vfmig_state in both dialects; "raw" is the v1 register or the v2
 * number. When the device stops answering, everything returns -ENOTCONN at once: a rule then just
 * returns (loops look at check_over()), and the runner makes the finding. */
#ifndef VFMIG_CHECK_RULE_H
#define VFMIG_CHECK_RULE_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "check/check.h"
#include "check/workload.h"
#include "wire/proto.h"

#define CHECK_STATE_NONE     255u         /* a register value that is no state */
#define CHECK_MAX_STREAM     (256u << 20) /* bytes of one saved stream */
#define CHECK_MAX_PORTIONS   65536u       /* portions of one */
#define CHECK_MAX_KEPT       4096u        /* steps that are recorded of one rule */
#define CHECK_MAX_KEPT_BYTES (4u << 20)
#define CHECK_MAX_SMALL      (1u << 20) /* a stream above this is too long to be tried in many ways */

/* A saved stream, its portions kept apart (v1 wants them so). */
struct check_blob {
    uint8_t *bytes;
    size_t size, room;
    uint32_t *ends; /* where each portion ends */
    uint32_t count, ends_room;
};

/* A step that was done, with its bytes and its outcome. */
struct check_kept {
    struct check_step step;
    uint8_t *data;
};

struct check {
    struct check_port *port;
    struct check_port *peer; /* or NULL */
    const struct check_rule *rule;
    const struct check_workload *workload; /* or NULL */
    const struct check_options *options;
    enum check_dialect dialect;
    uint64_t random;
    struct check_result result;
    bool found;      /* a finding is made */
    bool last_shows; /* ... and it is about the outcome of the last step */
    size_t found_at; /* steps recorded by then */
    struct check_kept *kept;
    uint32_t kept_count;
    uint64_t kept_bytes;
    bool kept_cut; /* some are not kept */
};

/* ---- judging ---- */

/* What is being tried, for the report; before the steps. */
void check_doing(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One stimulus was judged. Not good: a finding. Returns good. */
bool check_that(struct check *c, bool good, const char *expected, const char *seen, ...)
    __attribute__((format(printf, 4, 5)));
/* The state is read and is that one. */
bool check_is(struct check *c, enum vfmig_state state, const char *what);
/* r of the last step is a success, is a refusal, is just that. */
bool check_ok(struct check *c, int64_t r, const char *what);
/* As check_ok, for what only prepares the rule: no stimulus when it succeeds. */
bool check_need(struct check *c, int64_t r, const char *what);
bool check_refused(struct check *c, int64_t r, const char *what);
bool check_errno(struct check *c, int64_t r, int error, const char *what);
/* Nothing could be tried: why. What was judged before does not count, unless it was a finding. */
void check_skip(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_not_applicable(struct check *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* True when there is nothing left to do: a finding, or a device that does not answer. */
bool check_over(const struct check *c);
bool check_gone(const struct check *c);
/* "EINVAL", "success", or what the device did instead of answering. */
const char *check_outcome(const struct check *c, int64_t r);

/* ---- steps ---- */

/* Any step; step->result is returned. */
int64_t check_do(struct check *c, struct check_step *step);

int check_raw(struct check *c, uint32_t *ret_raw);
int check_go(struct check *c, enum vfmig_state state);
int check_set_raw(struct check *c, uint32_t raw);
/* The state now; CHECK_STATE_NONE when it cannot be read or is none. */
unsigned check_now(struct check *c);
/* From anywhere: reset if need be, then there. False: a finding was made, or the device is gone. */
bool check_reach(struct check *c, enum vfmig_state state);
/* By loading nonsense; false without a finding when the device cannot be brought to it. */
bool check_reach_error(struct check *c);
int check_reset(struct check *c);
int check_reconnect(struct check *c);

/* One portion, appended: bytes, 0 for none. */
ssize_t check_save(struct check *c, struct check_blob *blob);
/* Not all of a portion: size bytes of it at most, not acknowledged in v1; for saves that are given
 * up. In v2 it may be part of a stream like any other. */
ssize_t check_save_some(struct check *c, struct check_blob *blob, uint32_t size);
/* All there is now, appended. 0 or a negative errno; -EFBIG with a finding: without end. */
int check_save_all(struct check *c, struct check_blob *blob);
int check_load(struct check *c, const void *data, uint32_t size);
int check_load_all(struct check *c, const struct check_blob *blob);
void check_blob_free(struct check_blob *blob);
int check_blob_add(struct check_blob *blob, const void *data, size_t size);
/* R to S, everything, and back to R. */
bool check_take_image(struct check *c, struct check_blob *blob);

int check_read(struct check *c, uint32_t region, uint64_t offset, void *data, uint32_t size);
int check_write(struct check *c, uint32_t region, uint64_t offset, const void *data, uint32_t size);
int check_get_feature(struct check *c, uint32_t id, void *data, uint32_t size);

/* A vfio-user command as it is, with header flags beside the type; what comes back is not kept. */
int check_command(struct check *c, uint32_t command, uint32_t flags, const void *payload,
                  uint32_t size);

int check_log_start(struct check *c, uint64_t page_size, uint64_t iova, uint64_t length);
int check_log_stop(struct check *c);
/* Bytes of bitmap, or a negative errno. */
int check_log_report(struct check *c, uint64_t iova, uint64_t length, uint64_t page_size,
                     uint64_t *bitmap, uint32_t room);
int check_map(struct check *c, uint64_t iova, uint64_t length, uint64_t offset, bool by_message);
int check_unmap(struct check *c, uint64_t iova, uint64_t length);
/* Eventfds of the checker for the first count MSI-X vectors; and whether a vector was raised since
 * last asked. */
int check_irqs(struct check *c, uint32_t count);
bool check_irq_seen(struct check *c, uint32_t vector);
void check_fill(struct check *c, uint64_t offset, uint64_t size, uint8_t value);
void check_serve(struct check *c, uint32_t ms);
void check_hold(struct check *c, uint32_t ms);
/* Serves for a moment, and says whether to go on waiting for something that *begin (0 at first)
 * began: as long as an answer may take, and while the device is there. */
bool check_wait(struct check *c, uint64_t *begin);

/* ---- what the device is ---- */

/* Its dialect and features have the state. */
bool check_has(const struct check *c, enum vfmig_state state);
bool check_has_ndma(const struct check *c);
bool check_has_pre_copy(const struct check *c);
/* The v1 register value, the v2 number. */
uint32_t check_raw_of(const struct check *c, enum vfmig_state state);
unsigned check_state_of(const struct check *c, uint32_t raw);
const char *check_state_name(unsigned state);
/* State runs: R is set. */
bool check_runs(enum vfmig_state state);
uint64_t check_random(struct check *c, uint64_t below);
/* A BAR that can be read and written, and its size; false: none. */
bool check_bar(const struct check *c, uint32_t *ret_region, uint64_t *ret_size);

/* The kernel's next hop (vfio_mig_get_next_state), worked out from its arcs: model.c.
 * CHECK_STATE_NONE: refused. */
unsigned check_model_next(uint64_t features, unsigned from, unsigned to);
/* state is from, to, or on the way. */
bool check_model_on_path(uint64_t features, unsigned from, unsigned to, unsigned state);

/* ---- the second device ---- */

/* Steps on it; not recorded. It begins in RUNNING, like the first one. False: it cannot be had. */
bool check_peer_begin(struct check *c);
int check_peer_go(struct check *c, enum vfmig_state state);
int check_peer_read(struct check *c, uint32_t region, uint64_t offset, void *data, uint32_t size);

/* ---- for the runner ---- */

void check_run_step(struct check_port *port, struct check_step *step);

void check_session_begin(struct check *c);
void check_session_end(struct check *c);
/* Reset, RUNNING, no mappings, log off; connects again when that does not help. */
bool check_baseline(struct check *c);
/* The steps up to the finding, fewer when fewer show the same; malloc'ed. */
char *check_shortest(struct check *c);

/* step.c: a step as a line of text and back. */
const char *check_step_name(enum check_step_kind kind);
void check_step_print(FILE *out, const struct check_step *step, bool with_outcome);
/* data: room for bytes of the line, its size in *size. -EINVAL. */
int check_step_parse(const char *line, struct check_step *step, uint8_t *data, size_t size);

#endif
