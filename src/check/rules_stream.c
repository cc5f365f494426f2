/* SPDX-License-Identifier: BSD-3-Clause */
/* Streams that are not what was saved: cut, extended, flipped, reordered, replayed, empty. Whether
 * a device finds out is judged as "should", because the RFC is silent; that it stays a device, as
 * "must". */
#include <stdio.h>

#include "check/rule.h"
#include "check/rules.h"

/* Loads a stream in pieces like those it was saved in. *ret_refused: the device noticed. */
static bool load_bad(struct check *c, const struct check_blob *blob, bool *ret_refused)
{
    if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, VFMIG_STATE_RESUMING))
        return false;
    int r = check_load_all(c, blob);
    if (r >= 0)
        r = check_go(c, VFMIG_STATE_RUNNING);
    *ret_refused = r < 0;
    return !check_over(c);
}

static void judge(struct check *c, const struct check_blob *blob, const char *what)
{
    bool refused = false;

    check_doing(c, "%s", what);
    if (load_bad(c, blob, &refused))
        check_that(c, refused, "the load or the change out of RESUMING fails", "it succeeds");
    check_reset(c);
}

/* The image as portions, without those for which `keep` is false; order by `order`. */
static void rebuild(struct check_blob *to, const struct check_blob *from, const uint32_t *order,
                    uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t k = order[i], begin = k ? from->ends[k - 1] : 0;
        check_blob_add(to, from->bytes + begin, from->ends[k] - begin);
    }
}

/* A save in small pieces, so that there are several; false: nothing to spoil. */
static bool image_to_spoil(struct check *c, struct check_blob *image)
{
    struct check_blob whole = {0};

    check_doing(c, "a save, to be spoiled");
    if (!check_take_image(c, &whole) || whole.size > CHECK_MAX_SMALL * 64u) {
        check_blob_free(&whole);
        return false;
    }
    if (whole.size < 16) {
        check_blob_free(&whole);
        check_skip(c, "the device saves %zu bytes: nothing to spoil", whole.size);
        return false;
    }
    size_t piece = whole.size / 4 + 1;
    for (size_t at = 0; at < whole.size; at += piece)
        check_blob_add(image, whole.bytes + at, whole.size - at < piece ? whole.size - at : piece);
    check_blob_free(&whole);
    return true;
}

void check_stream_empty(struct check *c)
{
    struct check_blob image = {0}, none = {0};

    if (image_to_spoil(c, &image))
        judge(c, &none, "nothing is loaded");
    check_blob_free(&image);
}

void check_stream_cut(struct check *c)
{
    struct check_blob image = {0};

    if (image_to_spoil(c, &image)) {
        const size_t cuts[] = {1, image.size / 4, image.size / 2, image.size - 1,
                               1 + check_random(c, image.size - 1)};
        for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]) && !check_over(c); i++) {
            struct check_blob cut = {0};
            char what[96];
            snprintf(what, sizeof(what), "the first %zu of %zu bytes are loaded", cuts[i],
                     image.size);
            if (check_blob_add(&cut, image.bytes, cuts[i]) == 0)
                judge(c, &cut, what);
            check_blob_free(&cut);
        }
    }
    check_blob_free(&image);
}

void check_stream_extended(struct check *c)
{
    static const uint8_t zeros[64];
    struct check_blob image = {0};

    if (image_to_spoil(c, &image)) {
        check_blob_add(&image, zeros, sizeof(zeros));
        judge(c, &image, "an image with 64 more bytes is loaded");
    }
    check_blob_free(&image);
}

void check_stream_flipped(struct check *c)
{
    struct check_blob image = {0};

    if (image_to_spoil(c, &image))
        for (unsigned i = 0; i < 8 && !check_over(c); i++) {
            size_t at = i == 0 ? 0 : i == 1 ? image.size - 1 : check_random(c, image.size);
            uint8_t bit = (uint8_t)(1u << check_random(c, 8));
            char what[96];
            snprintf(what, sizeof(what), "an image is loaded with a bit of byte %zu of %zu flipped",
                     at, image.size);
            image.bytes[at] ^= bit;
            judge(c, &image, what);
            image.bytes[at] ^= bit;
        }
    check_blob_free(&image);
}

void check_stream_reordered(struct check *c)
{
    struct check_blob image = {0};
    static const struct {
        const char *what;
        uint32_t order[4];
    } orders[] = {{"the second quarter is loaded before the first", {1, 0, 2, 3}},
                  {"the last quarter is loaded before the third", {0, 1, 3, 2}},
                  {"the quarters are loaded in reverse", {3, 2, 1, 0}}};

    if (image_to_spoil(c, &image) && image.count == 4)
        for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]) && !check_over(c); i++) {
            struct check_blob other = {0};
            rebuild(&other, &image, orders[i].order, 4);
            if (other.size == image.size && memcmp(other.bytes, image.bytes, image.size))
                judge(c, &other, orders[i].what);
            check_blob_free(&other);
        }
    check_blob_free(&image);
}

void check_stream_replayed(struct check *c)
{
    struct check_blob image = {0};
    static const struct {
        const char *what;
        uint32_t count, order[8];
    } orders[] = {{"the second quarter is loaded twice", 5, {0, 1, 1, 2, 3}},
                  {"the whole image is loaded twice", 8, {0, 1, 2, 3, 0, 1, 2, 3}},
                  {"the third quarter is left out", 3, {0, 1, 3}}};

    if (image_to_spoil(c, &image) && image.count == 4)
        for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]) && !check_over(c); i++) {
            struct check_blob other = {0};
            rebuild(&other, &image, orders[i].order, orders[i].count);
            judge(c, &other, orders[i].what);
            check_blob_free(&other);
        }
    check_blob_free(&image);
}

void check_stream_without_precopy(struct check *c)
{
    struct check_blob early = {0}, late = {0};

    check_doing(c, "a save through PRE_COPY");
    if (check_reach(c, VFMIG_STATE_PRE_COPY) &&
        check_ok(c, check_save_all(c, &early), "reading in PRE_COPY") &&
        check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "PRE_COPY to STOP_COPY") &&
        check_ok(c, check_save_all(c, &late), "reading in STOP_COPY") && early.size && late.size) {
        struct check_blob swapped = {0};
        judge(c, &late, "the data of STOP_COPY is loaded without that of PRE_COPY");
        check_blob_add(&swapped, late.bytes, late.size);
        check_blob_add(&swapped, early.bytes, early.size);
        if (!check_over(c))
            judge(c, &swapped, "the data of STOP_COPY is loaded before that of PRE_COPY");
        check_blob_free(&swapped);
        check_blob_add(&swapped, early.bytes, early.size);
        check_blob_add(&swapped, early.bytes, early.size);
        check_blob_add(&swapped, late.bytes, late.size);
        if (!check_over(c))
            judge(c, &swapped, "the data of PRE_COPY is loaded twice");
        check_blob_free(&swapped);
    } else if (!check_over(c)) {
        c->result.stimuli = 0;
        check_skip(c, "the device gives no data in PRE_COPY");
    }
    check_blob_free(&early);
    check_blob_free(&late);
}

/* Bytes of a generator are loaded: the device lives, its state is legal, and reset helps. */
void check_stream_garbage(struct check *c)
{
    uint8_t bytes[2048];

    for (unsigned i = 0; i < 16 && !check_over(c); i++) {
        uint32_t size = 1 + (uint32_t)check_random(c, sizeof(bytes));
        for (uint32_t k = 0; k < size; k++)
            bytes[k] = (uint8_t)check_random(c, 256);
        check_doing(c, "%u random bytes are loaded", size);
        if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, VFMIG_STATE_RESUMING))
            return;
        int r = check_load(c, bytes, size);
        r = check_go(c, VFMIG_STATE_STOP);
        unsigned now = check_now(c);
        check_that(c,
                   r == 0 ? now == VFMIG_STATE_STOP
                          : now == VFMIG_STATE_RESUMING || now == VFMIG_STATE_ERROR,
                   "STOP after success, RESUMING or ERROR after a failure", "%s, then %s",
                   check_outcome(c, r), check_state_name(now));
        if (!check_over(c) && check_need(c, check_reset(c), "RESET"))
            check_is(c, VFMIG_STATE_RUNNING, "after the reset");
    }
}

/* An image with a flipped bit, a cut one, and then the right one: the device takes it. */
void check_stream_right_after_wrong(struct check *c)
{
    struct check_blob image = {0};
    bool refused;

    if (image_to_spoil(c, &image)) {
        check_doing(c, "a spoiled image, reset, the right one");
        image.bytes[image.size / 2] ^= 1;
        load_bad(c, &image, &refused);
        image.bytes[image.size / 2] ^= 1;
        if (!check_over(c) && check_need(c, check_reset(c), "RESET") &&
            check_reach(c, VFMIG_STATE_RESUMING) &&
            check_ok(c, check_load_all(c, &image), "loading the right one") &&
            check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING"))
            check_is(c, VFMIG_STATE_RUNNING, "after it");
    }
    check_blob_free(&image);
}
