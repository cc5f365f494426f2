/* SPDX-License-Identifier: BSD-3-Clause */
/* Saved data: that there is a stream, that it ends, that it can be loaded, what is in it. */
#include "check/rule.h"
#include "check/rules.h"

static const uint8_t saving[] = {VFMIG_STATE_PRE_COPY, VFMIG_STATE_PRE_COPY_NDMA,
                                 VFMIG_STATE_STOP_COPY};

static int try_read(struct check *c)
{
    static uint8_t bytes[64];
    struct check_step step = {.kind = CHECK_STEP_DATA_READ,
                              .arg = {sizeof(bytes)},
                              .room = bytes,
                              .room_size = sizeof(bytes)};

    return (int)check_do(c, &step);
}

/* An image is loaded into a device in RUNNING, which then runs. */
static bool load_and_run(struct check *c, const struct check_blob *image)
{
    return check_reach(c, VFMIG_STATE_RESUMING) &&
           check_ok(c, check_load_all(c, image), "loading the image") &&
           check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING") &&
           check_is(c, VFMIG_STATE_RUNNING, "after the load");
}

void check_round_trip(struct check *c)
{
    struct check_blob image = {0}, again = {0};

    check_doing(c, "a save, reset, a load of it, a save");
    if (check_take_image(c, &image) && check_need(c, check_reset(c), "RESET") &&
        load_and_run(c, &image) && check_take_image(c, &again))
        check_that(c, (again.size == 0) == (image.size == 0), "what was loaded can be saved again",
                   "%zu bytes, then %zu", image.size, again.size);
    check_blob_free(&image);
    check_blob_free(&again);
}

void check_round_trip_precopy(struct check *c)
{
    struct check_blob stream = {0};

    check_doing(c, "PRE_COPY and STOP_COPY read to their ends, reset, both loaded as one");
    if (check_reach(c, VFMIG_STATE_PRE_COPY) &&
        check_ok(c, check_save_all(c, &stream), "reading in PRE_COPY") &&
        check_is(c, VFMIG_STATE_PRE_COPY, "after reading to its end") &&
        check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "PRE_COPY to STOP_COPY") &&
        check_ok(c, check_save_all(c, &stream), "reading in STOP_COPY") &&
        check_need(c, check_reset(c), "RESET"))
        load_and_run(c, &stream);
    check_blob_free(&stream);
}

/* Pre-copy abandoned halfway is carried on in STOP_COPY: nothing lost, nothing twice. */
void check_carried_forward(struct check *c)
{
    for (unsigned portions = 0; portions < 3 && !check_over(c); portions++) {
        struct check_blob stream = {0};
        check_doing(c, "%u portions in PRE_COPY, the rest in STOP_COPY, loaded as one", portions);
        bool good = check_reach(c, VFMIG_STATE_PRE_COPY);
        for (unsigned i = 0; good && i < portions; i++)
            good = check_ok(c,
                            c->dialect == CHECK_DIALECT_FEATURE ? check_save_some(c, &stream, 1000)
                                                                : check_save(c, &stream),
                            "reading a portion");
        /* On the way of the RFC, by PRE_COPY_NDMA and back, it is the same stream too. */
        if (good && portions && check_has(c, VFMIG_STATE_PRE_COPY_NDMA))
            good = check_ok(c, check_go(c, VFMIG_STATE_PRE_COPY_NDMA), "PRE_COPY_NDMA") &&
                   (portions == 1 ||
                    check_ok(c, check_go(c, VFMIG_STATE_PRE_COPY), "PRE_COPY_NDMA to PRE_COPY"));
        if (good && check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "PRE_COPY to STOP_COPY") &&
            check_ok(c, check_save_all(c, &stream), "reading in STOP_COPY") &&
            check_need(c, check_reset(c), "RESET"))
            load_and_run(c, &stream);
        check_blob_free(&stream);
    }
}

/* Behind the end: what v2's read gives (ENOMSG is an error here), or v1's pending_bytes, which is
 * what says that there is an end. */
static ssize_t read_on(struct check *c, struct check_blob *image)
{
    uint64_t pending = 0;

    if (c->dialect == CHECK_DIALECT_FEATURE)
        return try_read(c);
    ssize_t n = check_save(c, image);
    int r = check_read(c, c->port->facts.mig_region, 8, &pending, sizeof(pending));
    check_that(c, r >= 0 && pending == 0, "pending_bytes is 0 at the end", "%s, %llu",
               check_outcome(c, r), (unsigned long long)pending);
    return n;
}

void check_end_is_the_end(struct check *c)
{
    struct check_blob image = {0};

    check_doing(c, "STOP_COPY read to its end, and on");
    if (check_reach(c, VFMIG_STATE_STOP_COPY) &&
        check_ok(c, check_save_all(c, &image), "reading to the end"))
        for (unsigned i = 0; i < 3 && !check_over(c); i++) {
            ssize_t n = read_on(c, &image);
            check_that(c, n == 0, "the end, over and over, and no error", "%s, %zd bytes",
                       check_outcome(c, n), n > 0 ? n : 0);
        }
    check_is(c, VFMIG_STATE_STOP_COPY, "after it");
    check_blob_free(&image);
}

/* From a file 0 bytes are its end, and there is none in PRE_COPY. */
void check_precopy_end_is_temporary(struct check *c)
{
    bool as_file = c->dialect == CHECK_DIALECT_FEATURE && c->port->facts.data_fd;
    struct check_blob stream = {0};

    check_doing(c, "PRE_COPY read to its end, and on");
    if (check_reach(c, VFMIG_STATE_PRE_COPY) &&
        check_ok(c, check_save_all(c, &stream), "reading to the end"))
        for (unsigned i = 0; i < 3 && !check_over(c); i++) {
            ssize_t n = as_file ? try_read(c) : check_save(c, &stream);
            check_that(c, as_file ? n > 0 || n == -ENOMSG : n >= 0,
                       as_file ? "ENOMSG, or more" : "nothing, or more, and no error",
                       "%s, %zd bytes", check_outcome(c, n), n > 0 ? n : 0);
        }
    check_is(c, VFMIG_STATE_PRE_COPY, "after it");
    check_blob_free(&stream);
}

/* A save that is aborted leaves nothing behind for the next one. */
void check_abort_then_save(struct check *c)
{
    static const uint8_t first[] = {VFMIG_STATE_PRE_COPY, VFMIG_STATE_STOP_COPY};

    for (size_t i = 0; i < sizeof(first) && !check_over(c); i++) {
        struct check_blob old = {0}, stream = {0};
        if (!check_has(c, (enum vfmig_state)first[i]))
            continue;
        check_doing(c, "a portion in %s, back to RUNNING, a whole save, loaded",
                    check_state_name(first[i]));
        if (check_reach(c, (enum vfmig_state)first[i]) &&
            check_ok(c, check_save_some(c, &old, 100), "reading a part") &&
            check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "the way back") &&
            check_ok(c, check_go(c, (enum vfmig_state)first[i]), "the next save") &&
            check_ok(c, check_save_all(c, &stream), "reading it") &&
            check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP_COPY") &&
            check_ok(c, check_save_all(c, &stream), "reading it to the end")) {
            check_that(c, old.size == 0 || stream.size >= old.size,
                       "the next save has at least the portion that the first one had",
                       "%zu bytes after %zu", stream.size, old.size);
            if (check_need(c, check_reset(c), "RESET"))
                load_and_run(c, &stream);
        }
        check_blob_free(&old);
        check_blob_free(&stream);
    }
}

/* A second save of a device that ran meanwhile is not the first one's leftover. */
void check_second_save(struct check *c)
{
    struct check_blob first = {0}, second = {0};

    check_doing(c, "two saves one after the other, RUNNING between them");
    if (check_take_image(c, &first) && check_take_image(c, &second))
        check_that(c, (second.size == 0) == (first.size == 0), "the second save is a whole one too",
                   "%zu bytes, then %zu", first.size, second.size);
    if (!check_over(c) && check_need(c, check_reset(c), "RESET"))
        load_and_run(c, &second);
    check_blob_free(&first);
    check_blob_free(&second);
}

/* Bytes that are not the same. */
static size_t differ(const struct check_blob *a, const struct check_blob *b)
{
    size_t count = 0;

    for (size_t i = 0; i < a->size && i < b->size; i++)
        count += a->bytes[i] != b->bytes[i];
    return count;
}

/* A stream may carry a number of its own and the checksums over it, state may not change. */
void check_saves_are_equal(struct check *c)
{
    struct check_blob first = {0}, second = {0};

    check_doing(c, "STOP_COPY read, STOP, STOP_COPY read again");
    if (check_reach(c, VFMIG_STATE_STOP_COPY) &&
        check_ok(c, check_save_all(c, &first), "reading the stream") &&
        check_ok(c, check_go(c, VFMIG_STATE_STOP), "STOP_COPY to STOP") &&
        check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP to STOP_COPY") &&
        check_ok(c, check_save_all(c, &second), "reading it again")) {
        check_that(c, first.size == second.size, "two streams of one length", "%zu and %zu bytes",
                   first.size, second.size);
        check_that(c, differ(&first, &second) <= 64 + first.size / 64,
                   "the same stream but for identifiers and checksums",
                   "%zu of %zu bytes are not the same", differ(&first, &second), first.size);
    }
    check_blob_free(&first);
    check_blob_free(&second);
}

/* A load into a device that was used, or loaded, and not reset. */
void check_load_without_reset(struct check *c)
{
    struct check_blob image = {0};

    check_doing(c, "a save, then two loads of it without a reset");
    if (check_take_image(c, &image) && load_and_run(c, &image))
        load_and_run(c, &image);
    check_blob_free(&image);
}

/* Small pieces: the target's window may be smaller than the source's (QEMU splits then). */
void check_load_in_pieces(struct check *c)
{
    struct check_blob image = {0};
    uint32_t piece = 4096;

    check_doing(c, "a save, loaded in pieces of %u bytes", piece);
    if (check_take_image(c, &image) && check_need(c, check_reset(c), "RESET") &&
        check_reach(c, VFMIG_STATE_RESUMING)) {
        if (image.size > CHECK_MAX_SMALL)
            piece = (uint32_t)(image.size / 256);
        for (size_t at = 0; at < image.size && !check_over(c); at += piece) {
            size_t left = image.size - at;
            check_ok(c, check_load(c, image.bytes + at, (uint32_t)(left < piece ? left : piece)),
                     "loading a piece");
        }
        if (!check_over(c) && check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RESUMING to RUNNING"))
            check_is(c, VFMIG_STATE_RUNNING, "after it");
    }
    check_blob_free(&image);
}

void check_same_state_while_saving(struct check *c)
{
    struct check_blob image = {0}, plain = {0};

    check_doing(c, "the state written again before and between the portions of STOP_COPY");
    if (!check_take_image(c, &plain) || !check_reach(c, VFMIG_STATE_STOP_COPY))
        goto done;
    check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP_COPY over STOP_COPY");
    for (unsigned i = 0; i < 3 && !check_over(c); i++) {
        if (!check_ok(c, check_save(c, &image), "reading a portion"))
            goto done;
        check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP_COPY over STOP_COPY");
    }
    if (!check_over(c) && check_ok(c, check_save_all(c, &image), "reading the rest")) {
        check_that(c, image.size == plain.size, "the stream is as long as without",
                   "%zu and %zu bytes", image.size, plain.size);
        if (!check_over(c) && check_need(c, check_reset(c), "RESET"))
            load_and_run(c, &image);
    }
done:
    check_blob_free(&image);
    check_blob_free(&plain);
}

/* ---- the feature dialect's data session ---- */

void check_session_states(struct check *c)
{
    uint8_t byte = 0;

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "data read and written in %s", check_state_name(s));
        if (!check_reach(c, VFMIG_STATE_RUNNING) || !check_reach(c, (enum vfmig_state)s))
            return;
        if (memchr(saving, (int)s, sizeof(saving)))
            check_ok(c, try_read(c), "reading");
        else
            check_refused(c, try_read(c), "reading outside of the saving states");
        struct check_step step = {.kind = CHECK_STEP_DATA_WRITE, .arg = {1}, .data = &byte};
        int64_t r = check_do(c, &step);
        if (s != VFMIG_STATE_RESUMING)
            check_refused(c, r, "writing outside of RESUMING");
    }
}

void check_session_ends(struct check *c)
{
    static const uint8_t ends[] = {VFMIG_STATE_STOP, VFMIG_STATE_RUNNING};

    for (size_t i = 0; i < sizeof(ends) && !check_over(c); i++) {
        check_doing(c, "a portion in STOP_COPY, then %s", check_state_name(ends[i]));
        if (!check_reach(c, VFMIG_STATE_STOP_COPY))
            return;
        check_ok(c, try_read(c), "reading");
        check_ok(c, check_go(c, (enum vfmig_state)ends[i]), "the request");
        check_refused(c, try_read(c), "reading when the session is over");
        check_reset(c);
    }
}

void check_data_bounds(struct check *c)
{
    struct {
        struct vfmig_user_mig_data head;
        uint8_t data[64];
    } message = {0};
    const struct {
        uint32_t argsz, size;
        const char *what;
    } reads[] = {{8 + 64, 65, "argsz too small"},
                 {4, 64, "argsz below its own size"},
                 {8 + 64, 0xffffffffu, "size above what was negotiated"}};

    for (size_t i = 0; i < sizeof(reads) / sizeof(reads[0]) && !check_over(c); i++) {
        check_doing(c, "MIG_DATA_READ in STOP_COPY: %s", reads[i].what);
        if (!check_reach(c, VFMIG_STATE_STOP_COPY))
            return;
        message.head = (struct vfmig_user_mig_data){reads[i].argsz, reads[i].size};
        check_refused(c,
                      check_command(c, VFMIG_USER_MIG_DATA_READ, 0, &message, sizeof(message.head)),
                      "the command");
    }
    check_doing(c, "MIG_DATA_WRITE in RESUMING with less data than it says");
    if (check_over(c) || !check_reach(c, VFMIG_STATE_RUNNING) ||
        !check_reach(c, VFMIG_STATE_RESUMING))
        return;
    message.head = (struct vfmig_user_mig_data){8 + 4096, 4096};
    check_refused(c, check_command(c, VFMIG_USER_MIG_DATA_WRITE, 0, &message, sizeof(message)),
                  "the command");
}

/* ---- amounts ---- */

void check_data_size(struct check *c)
{
    struct check_blob image = {0};
    uint64_t bytes = 0;

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "MIG_DATA_SIZE in %s", check_state_name(s));
        int r = check_get_feature(c, VFMIG_USER_F_DATA_SIZE, &bytes, sizeof(bytes));
        if (check_ok(c, r, "GET"))
            check_that(c, r == 8, "eight bytes", "%d", r);
    }
    check_doing(c, "MIG_DATA_SIZE before a save, and what is saved");
    if (!check_over(c) && check_reach(c, VFMIG_STATE_RUNNING)) {
        check_get_feature(c, VFMIG_USER_F_DATA_SIZE, &bytes, sizeof(bytes));
        if (check_take_image(c, &image))
            check_that(c, bytes >= image.size / 2 && bytes / 4 <= image.size + 65536,
                       "an estimate that is not far off", "%llu told, %zu saved",
                       (unsigned long long)bytes, image.size);
    }
    check_blob_free(&image);
}

void check_precopy_info(struct check *c)
{
    struct vfmig_user_feature_precopy info = {0}, after = {0};
    struct check_blob stream = {0};

    for (unsigned s = 1; s < VFMIG_STATE_COUNT && !check_over(c); s++) {
        if (!check_has(c, (enum vfmig_state)s) || !check_reach(c, VFMIG_STATE_RUNNING) ||
            !check_reach(c, (enum vfmig_state)s))
            continue;
        check_doing(c, "PRECOPY_INFO in %s", check_state_name(s));
        int r = check_get_feature(c, VFMIG_USER_F_PRECOPY_INFO, &info, sizeof(info));
        if (s == VFMIG_STATE_PRE_COPY || s == VFMIG_STATE_PRE_COPY_NDMA)
            check_that(c, r == (int)sizeof(info), "an answer of the feature's size", "%s, %d bytes",
                       check_outcome(c, r), r < 0 ? 0 : r);
        else
            check_errno(c, r, EINVAL, "GET outside of pre-copy");
    }
    check_doing(c, "PRECOPY_INFO before and after PRE_COPY is read to its end");
    if (check_over(c) || !check_reach(c, VFMIG_STATE_RUNNING) ||
        !check_reach(c, VFMIG_STATE_PRE_COPY))
        return;
    check_get_feature(c, VFMIG_USER_F_PRECOPY_INFO, &info, sizeof(info));
    check_ok(c, check_save_all(c, &stream), "reading to the end");
    if (check_ok(c, check_get_feature(c, VFMIG_USER_F_PRECOPY_INFO, &after, sizeof(after)), "GET"))
        check_that(c, after.initial_bytes <= info.initial_bytes && after.initial_bytes == 0,
                   "initial_bytes falls as data is read, to 0", "%llu, then %llu",
                   (unsigned long long)info.initial_bytes, (unsigned long long)after.initial_bytes);
    check_blob_free(&stream);
}

/* ---- with a workload: what is in the stream ---- */

/* The device is used, saved, reset or changed, loaded: it is as it was when it was saved. */
static void state_travels(struct check *c, bool reset_between)
{
    struct check_blob image = {0};
    uint64_t before = 0, after = 0;

    check_need(c, c->workload->set_up(c), "making the device ready");
    check_need(c, c->workload->change(c, check_random(c, UINT64_MAX)), "changing its state");
    if (!check_over(c) && check_need(c, c->workload->digest(c, &before), "reading its state") &&
        check_take_image(c, &image)) {
        if (reset_between)
            check_need(c, check_reset(c), "RESET");
        else
            check_need(c, c->workload->change(c, check_random(c, UINT64_MAX)), "changing it again");
        if (!check_over(c) && load_and_run(c, &image) &&
            check_need(c, c->workload->digest(c, &after), "reading its state"))
            check_that(c, before == after, "the state that was saved",
                       "another (digest %llx, not %llx)", (unsigned long long)after,
                       (unsigned long long)before);
    }
    check_blob_free(&image);
}

void check_state_travels(struct check *c)
{
    check_doing(c, "state changed, saved, reset, loaded");
    state_travels(c, true);
}

void check_state_travels_to_used(struct check *c)
{
    check_doing(c, "state changed, saved, changed again, loaded without a reset");
    state_travels(c, false);
}

void check_second_save_is_new(struct check *c)
{
    struct check_blob first = {0}, second = {0};
    uint64_t before = 0, after = 0;

    check_doing(c, "state saved, changed, saved again, reset, the second save loaded");
    check_need(c, c->workload->set_up(c), "making the device ready");
    check_need(c, c->workload->change(c, 1), "changing its state");
    if (!check_over(c) && check_take_image(c, &first) &&
        check_need(c, c->workload->change(c, 2), "changing it again") &&
        check_need(c, c->workload->digest(c, &before), "reading its state") &&
        check_take_image(c, &second) && check_need(c, check_reset(c), "RESET") &&
        load_and_run(c, &second) &&
        check_need(c, c->workload->digest(c, &after), "reading its state"))
        check_that(c, before == after, "the state of the second save",
                   "another (digest %llx, not %llx)", (unsigned long long)after,
                   (unsigned long long)before);
    check_blob_free(&first);
    check_blob_free(&second);
}

void check_change_in_precopy(struct check *c)
{
    struct check_blob stream = {0};
    uint64_t before = 0, after = 0;

    check_doing(c, "state changed in PRE_COPY after it was streamed, STOP_COPY, reset, loaded");
    check_need(c, c->workload->set_up(c), "making the device ready");
    check_need(c, c->workload->change(c, 3), "changing its state");
    if (!check_over(c) && check_ok(c, check_go(c, VFMIG_STATE_PRE_COPY), "PRE_COPY") &&
        check_ok(c, check_save_all(c, &stream), "reading in PRE_COPY") &&
        check_need(c, c->workload->change(c, 4), "changing its state") &&
        check_need(c, c->workload->digest(c, &before), "reading its state") &&
        check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "PRE_COPY to STOP_COPY") &&
        check_ok(c, check_save_all(c, &stream), "reading in STOP_COPY") &&
        check_need(c, check_reset(c), "RESET") && load_and_run(c, &stream) &&
        check_need(c, c->workload->digest(c, &after), "reading its state"))
        check_that(c, before == after, "the state at the moment it stopped",
                   "another (digest %llx, not %llx)", (unsigned long long)after,
                   (unsigned long long)before);
    check_blob_free(&stream);
}

void check_precopy_pays(struct check *c)
{
    struct check_blob whole = {0}, early = {0}, late = {0};

    check_doing(c, "STOP_COPY alone, and STOP_COPY after PRE_COPY was read to its end");
    /* A v1 device may do without data in SR (C22): that it has some is said by its v2 side. */
    if (!c->workload->logs_changes || !(c->port->facts.features & VFMIG_FEATURE_PRE_COPY)) {
        check_not_applicable(c, "the device does not say that it logs its changes");
        return;
    }
    check_need(c, c->workload->set_up(c), "making the device ready");
    check_need(c, c->workload->change(c, 5), "changing its state");
    if (!check_over(c) && check_take_image(c, &whole) &&
        check_ok(c, check_go(c, VFMIG_STATE_PRE_COPY), "PRE_COPY") &&
        check_ok(c, check_save_all(c, &early), "reading in PRE_COPY") &&
        check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "PRE_COPY to STOP_COPY") &&
        check_ok(c, check_save_all(c, &late), "reading in STOP_COPY")) {
        check_that(c, early.size > 0, "data in PRE_COPY", "none");
        check_that(c, late.size < whole.size, "STOP_COPY is shorter after PRE_COPY",
                   "%zu bytes, %zu without PRE_COPY", late.size, whole.size);
    }
    check_blob_free(&whole);
    check_blob_free(&early);
    check_blob_free(&late);
}

void check_stream_has_no_memory(struct check *c)
{
    struct check_blob plain = {0}, busy = {0};
    const uint64_t iova = 0x10000000, size = 0x100000;

    check_doing(c, "a save before and after much DMA");
    check_need(c, c->workload->set_up(c), "making the device ready");
    check_need(c, check_map(c, iova, size, 0, false), "MAP");
    check_need(c, c->workload->dma_write(c, iova, 4096, 1), "DMA");
    if (!check_over(c) && check_take_image(c, &plain)) {
        for (uint64_t at = 0; at < size && !check_over(c); at += 65536)
            check_need(c, c->workload->dma_write(c, iova + at, 65536, at), "DMA");
        if (!check_over(c) && check_take_image(c, &busy))
            check_that(c, busy.size < plain.size + size / 2,
                       "a stream that does not grow with the memory that was written",
                       "%zu bytes, then %zu", plain.size, busy.size);
    }
    check_blob_free(&plain);
    check_blob_free(&busy);
}
