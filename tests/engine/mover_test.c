/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory through channels: complete, in order, refused when altered, never stuck. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/crc32c.h"
#include "doorway.h"
#include "mover_rig.h"

struct seen {
    atomic_uint records, byes, errors, rounds;
    struct vfmig_error error;
};

static int note_record(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    struct seen *seen = user;

    if (record->tag == VFMIG_RECORD_BYE)
        seen->byes++;
    else if (record->tag == VFMIG_RECORD_ERROR) {
        int rc = vfmig_stream_error_decode(record->payload, record->length, &seen->error, reterr);
        seen->errors++;
        if (rc == 0 && reterr)
            *reterr = seen->error;
        return rc < 0 ? rc : seen->error.code;
    } else
        seen->records++;
    return 0;
}

struct writer {
    struct rig_memory *memory;
    struct rig_map *dirty;
    atomic_bool stop;
    uint64_t writes;
};

/* A guest: writes pages, then says so, as a tracker would. */
static void *write_pages(void *argument)
{
    struct writer *w = argument;
    uint64_t seed = 0x1234567;

    while (!atomic_load(&w->stop) || w->writes < 500) {
        const struct vfmig_ram_block *block = &w->memory->blocks[rig_random(&seed) % RIG_BLOCKS];
        uint64_t page = rig_random(&seed) % (block->size / VFMIG_PAGE_SIZE);
        uint8_t *at = (uint8_t *)block->host + page * VFMIG_PAGE_SIZE;
        for (int i = 0; i < 16; i++) {
            uint64_t *word = (uint64_t *)(void *)at + rig_random(&seed) % 512;
            __atomic_store_n(word, rig_random(&seed) % 3 ? seed : 0, __ATOMIC_RELAXED);
        }
        vfmig_bitmap_set_range_atomic(w->dirty->bitmaps[block - w->memory->blocks], page, 1);
        w->writes++;
    }
    return NULL;
}

static void move(uint32_t channels, bool tcp, bool with_writer)
{
    const uint64_t pages[RIG_BLOCKS] = {2 * VFMIG_STRIPE_PAGES + 77, VFMIG_STRIPE_PAGES + 1};
    struct rig_memory from, to;
    struct rig_channels c;
    struct rig_map map;
    struct seen seen = {0};
    struct vfmig_mover *mover;
    struct vfmig_receiver *receiver;
    uint64_t seed = 42, round = 0, total = pages[0] + pages[1];
    struct vfmig_error error = {0};

    rig_memory_init(&from, pages);
    rig_memory_init(&to, pages);
    rig_memory_randomise(&from, &seed);
    memset(to.blocks[0].host, 0xee, to.blocks[0].size); /* what must become zero is not yet */
    rig_channels_init(&c, channels, tcp);
    rig_map_init(&map, &from.memory);
    rig_map_fill(&map);
    assert_int_equal(vfmig_receiver_new(c.dest, channels, &to.memory, note_record, &seen,
                                        &receiver, &error), 0);
    assert_int_equal(vfmig_mover_new(c.source, channels, &from.memory, &mover, &error), 0);

    struct writer writer = {.memory = &from, .dirty = &map};
    pthread_t thread;
    if (with_writer)
        assert_int_equal(pthread_create(&thread, NULL, write_pages, &writer), 0);
    while (round < (with_writer ? 4 : 1))
        assert_int_equal(vfmig_mover_send(mover, &map.map, round++, &error), 0);
    if (with_writer) {
        atomic_store(&writer.stop, true);
        pthread_join(thread, NULL);
        assert_int_equal(vfmig_mover_send(mover, &map.map, round++, &error), 0);
    }
    assert_int_equal(rig_map_count(&map), 0);
    assert_int_equal(vfmig_receiver_wait_round(receiver, round - 1, UINT64_MAX, &error), 0);
    assert_true(rig_memory_equal(&from, &to));

    struct vfmig_mover_progress progress;
    vfmig_mover_progress(mover, &progress);
    assert_false(progress.running);
    assert_int_equal(progress.pages_done, progress.pages_total);
    if (!with_writer)
        assert_true(progress.zero_pages > total / 6);
    assert_true(progress.pages_sent + progress.zero_pages >= total);
    assert_true(progress.bytes_sent > progress.pages_sent * VFMIG_PAGE_SIZE);

    for (uint32_t i = 0; i < channels; i++)
        assert_int_equal(vfmig_channel_send(c.source[i], VFMIG_RECORD_BYE, NULL, 0, &error), 0);
    assert_int_equal(vfmig_receiver_wait_end(receiver, &error), 0);
    assert_int_equal(seen.byes, channels);
    assert_int_equal(seen.records, 0);
    vfmig_mover_free(mover);
    vfmig_receiver_free(receiver);
    rig_map_done(&map);
    rig_channels_done(&c);
    rig_memory_done(&from);
    rig_memory_done(&to);
}

static void memory_arrives_over_1_2_and_4_channels(void **state)
{
    for (uint32_t channels = 1; channels <= 4; channels *= 2) {
        move(channels, /* tcp= */ false, /* with_writer= */ false);
        move(channels, /* tcp= */ true, /* with_writer= */ false);
    }
}

static void memory_arrives_while_it_is_written(void **state)
{
    for (uint32_t channels = 1; channels <= 4; channels *= 2) {
        move(channels, /* tcp= */ false, /* with_writer= */ true);
        move(channels, /* tcp= */ true, /* with_writer= */ true);
    }
}

static void holes_stay_holes_on_both_sides(void **state)
{
    const uint64_t pages[RIG_BLOCKS] = {4 * VFMIG_STRIPE_PAGES, VFMIG_STRIPE_PAGES};
    struct rig_memory from, to;
    struct rig_channels c;
    struct rig_map map;
    struct seen seen = {0};
    struct vfmig_mover *mover;
    struct vfmig_receiver *receiver;
    struct stat before, after;

    rig_memory_init(&from, pages);
    rig_memory_init(&to, pages);
    memset((uint8_t *)from.blocks[0].host + 700 * VFMIG_PAGE_SIZE, 7, 3 * VFMIG_PAGE_SIZE);
    rig_channels_init(&c, 2, /* tcp= */ false);
    rig_map_init(&map, &from.memory);
    rig_map_fill(&map);
    assert_int_equal(fstat(from.blocks[0].fd, &before), 0);
    assert_int_equal(vfmig_receiver_new(c.dest, 2, &to.memory, note_record, &seen, &receiver, NULL),
                     0);
    assert_int_equal(vfmig_mover_new(c.source, 2, &from.memory, &mover, NULL), 0);
    assert_int_equal(vfmig_mover_send(mover, &map.map, 1, NULL), 0);
    assert_int_equal(vfmig_receiver_wait_round(receiver, 1, UINT64_MAX, NULL), 0);
    vfmig_mover_free(mover);
    vfmig_receiver_free(receiver);

    assert_int_equal(fstat(from.blocks[0].fd, &after), 0);
    assert_true(after.st_blocks <= before.st_blocks + 64 * 8); /* one group of 64 pages */
    assert_int_equal(fstat(to.blocks[0].fd, &after), 0);
    assert_true(after.st_blocks <= before.st_blocks + 64 * 8);
    assert_int_equal(fstat(to.blocks[1].fd, &after), 0);
    assert_int_equal(after.st_blocks, 0);
    assert_true(rig_memory_equal(&from, &to));
    rig_map_done(&map);
    rig_channels_done(&c);
    rig_memory_done(&from);
    rig_memory_done(&to);
}

/* --- One recorded channel, replayed with faults --- */

struct recording {
    const uint64_t pages[RIG_BLOCKS];
    struct rig_memory memory;
    uint8_t *bytes;
    size_t size;
};

/* What a source sends for 6 pages of bytes, some zero pages, a mark, a segment, and BYE. */
static void record_stream(struct recording *r)
{
    struct rig_channels c;
    struct rig_map map;
    struct vfmig_mover *mover;
    uint64_t seed = 7;
    const size_t room = 256 * 1024;

    rig_memory_init(&r->memory, r->pages);
    for (int i = 0; i < 6; i++)
        rig_fill_page((uint8_t *)r->memory.blocks[0].host + (size_t)i / 2 * 3 * VFMIG_PAGE_SIZE +
                          (size_t)(i % 2) * VFMIG_PAGE_SIZE, &seed);
    rig_channels_init(&c, 1, /* tcp= */ false);
    rig_map_init(&map, &r->memory.memory);
    rig_map_fill(&map);
    assert_int_equal(vfmig_mover_new(c.source, 1, &r->memory.memory, &mover, NULL), 0);
    assert_int_equal(vfmig_mover_send(mover, &map.map, 1, NULL), 0);
    vfmig_mover_free(mover);
    assert_int_equal(vfmig_channel_send_segment(c.source[0], 3, 0, "device", 6, NULL), 0);
    assert_int_equal(vfmig_channel_send(c.source[0], VFMIG_RECORD_BYE, NULL, 0, NULL), 0);
    vfmig_channel_shutdown(c.source[0]);
    r->bytes = malloc(room);
    assert_non_null(r->bytes);
    r->size = 0;
    for (ssize_t got = 1; got > 0; r->size += (size_t)got)
        got = read(vfmig_channel_fd(c.dest[0]), r->bytes + r->size, room - r->size);
    rig_map_done(&map);
    rig_channels_done(&c);
}

/* Plays bytes to a fresh destination; returns how it ended: 0 when BYE was reached. */
static int play(const struct recording *r, const uint8_t *bytes, size_t size,
                struct rig_memory *to, struct vfmig_error *reterr)
{
    int fds[2], rc, big = 1 << 20;
    struct vfmig_channel *channel;
    struct vfmig_record record = {0};

    rig_pair(/* tcp= */ false, fds);
    assert_int_equal(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big)), 0);
    assert_int_equal(vfmig_channel_new(fds[1], 0, VFMIG_SIDE_DEST, &channel, NULL), 0);
    vfmig_channel_set_memory(channel, &to->memory);
    assert_int_equal(send(fds[0], bytes, size, MSG_DONTWAIT), (ssize_t)size);
    close(fds[0]);
    do {
        rc = vfmig_channel_recv(channel, &record, reterr);
    } while (rc == 0 && record.tag != VFMIG_RECORD_BYE);
    vfmig_channel_free(channel);
    return rc;
}

/* Heads and tables at every byte, pages now and then. */
static size_t next_position(size_t at)
{
    return at < 600 ? at + 1 : at + 89;
}

static void a_stream_cut_anywhere_is_an_error(void **state)
{
    struct recording r = {.pages = {20, 3}};
    struct rig_memory to;
    struct vfmig_error error;

    record_stream(&r);
    rig_memory_init(&to, r.pages);
    assert_int_equal(play(&r, r.bytes, r.size, &to, &error), 0);
    assert_true(rig_memory_equal(&r.memory, &to));
    for (size_t cut = 0; cut < r.size; cut = cut + 400 > r.size ? cut + 1 : next_position(cut)) {
        assert_int_equal(play(&r, r.bytes, cut, &to, &error), -ECONNRESET);
        assert_true(error.origin == VFMIG_ORIGIN_PEER || error.origin == VFMIG_ORIGIN_STREAM);
    }
    free(r.bytes);
    rig_memory_done(&r.memory);
    rig_memory_done(&to);
}

static void a_stream_altered_anywhere_is_an_error_of_the_stream(void **state)
{
    struct recording r = {.pages = {20, 3}};
    struct rig_memory to;
    struct vfmig_error error;

    record_stream(&r);
    rig_memory_init(&to, r.pages);
    for (size_t at = 0; at < r.size; at = at + 400 > r.size ? at + 1 : next_position(at)) {
        r.bytes[at] ^= (uint8_t)(1u << at % 8);
        assert_true(play(&r, r.bytes, r.size, &to, &error) < 0);
        assert_int_equal(error.origin, VFMIG_ORIGIN_STREAM);
        r.bytes[at] ^= (uint8_t)(1u << at % 8);
    }
    free(r.bytes);
    rig_memory_done(&r.memory);
    rig_memory_done(&to);
}

/* --- Pages in doubt: altered on the way, or written between checksum and socket --- */

static void a_page_in_doubt_is_forgiven_only_if_it_comes_again(void **state)
{
    for (int again = 0; again < 2; again++) {
        struct recording r = {.pages = {20, 3}};
        struct rig_memory to;
        struct rig_channels c;
        struct seen seen = {0};
        struct vfmig_receiver *receiver;
        struct vfmig_error error = {0};

        record_stream(&r);
        rig_memory_init(&to, r.pages);
        rig_channels_init(&c, 1, /* tcp= */ false);
        assert_int_equal(vfmig_receiver_new(c.dest, 1, &to.memory, note_record, &seen, &receiver,
                                            NULL), 0);
        /* A page altered behind its checksum, as a guest's write would. */
        const struct vfmig_page_run run = {.block = 0, .page_count = 2, .first_page = 0};
        uint8_t *stream = malloc(64 * 1024);
        int fds[2];
        struct vfmig_channel *tap;
        assert_non_null(stream);
        rig_pair(/* tcp= */ false, fds);
        assert_int_equal(vfmig_channel_new(fds[0], 0, VFMIG_SIDE_SOURCE, &tap, NULL), 0);
        assert_int_equal(vfmig_channel_send_pages(tap, &r.memory.memory, &run, 1, NULL), 0);
        ssize_t first = read(fds[1], stream, 64 * 1024);
        assert_true(first > 2 * (ssize_t)VFMIG_PAGE_SIZE);
        stream[first - 5] ^= 4;
        if (again)
            assert_int_equal(vfmig_channel_send_pages(tap, &r.memory.memory, &run, 1, NULL), 0);
        else
            assert_int_equal(vfmig_channel_send_zero(tap, &run, 1, NULL), 0);
        assert_int_equal(write(vfmig_channel_fd(c.source[0]), stream, (size_t)first), first);
        ssize_t second = read(fds[1], stream, 64 * 1024);
        if (again)
            assert_int_equal(write(vfmig_channel_fd(c.source[0]), stream, (size_t)second), second);
        uint8_t mark[VFMIG_RECORD_HEAD_BYTES + VFMIG_ROUND_BYTES];
        vfmig_round_encode(mark + VFMIG_RECORD_HEAD_BYTES,
                           &(struct vfmig_round){.round = 1, .pages = again ? 4 : 2});
        vfmig_record_head_encode(mark, VFMIG_RECORD_ROUND, 0, again ? 2 : 1, VFMIG_ROUND_BYTES,
                                 vfmig_crc32c(0, mark + VFMIG_RECORD_HEAD_BYTES,
                                              VFMIG_ROUND_BYTES));
        assert_int_equal(write(vfmig_channel_fd(c.source[0]), mark, sizeof(mark)), sizeof(mark));
        int rc = vfmig_receiver_wait_round(receiver, 1, UINT64_MAX, &error);
        assert_int_equal(rc, again ? 0 : -EBADMSG);
        if (!again) {
            assert_int_equal(error.origin, VFMIG_ORIGIN_STREAM);
            assert_non_null(strstr(error.text, "page 1 of block 0"));
        }
        vfmig_channel_shutdown(c.source[0]);
        vfmig_receiver_free(receiver);
        vfmig_channel_free(tap);
        close(fds[1]);
        free(stream);
        free(r.bytes);
        rig_channels_done(&c);
        rig_memory_done(&r.memory);
        rig_memory_done(&to);
    }
}

/* --- Threads: a fault on one channel ends all, and the source learns why --- */

struct live {
    struct rig_memory from, to;
    struct rig_channels c;
    struct rig_map map;
    struct seen dest_seen, source_seen;
    struct vfmig_mover *mover;
    struct vfmig_receiver *dest, *source;
};

static void live_init(struct live *l, uint32_t channels, bool tcp)
{
    const uint64_t pages[RIG_BLOCKS] = {6 * VFMIG_STRIPE_PAGES + 9, VFMIG_STRIPE_PAGES};
    uint64_t seed = 11;

    memset(l, 0, sizeof(*l));
    rig_memory_init(&l->from, pages);
    rig_memory_init(&l->to, pages);
    rig_memory_randomise(&l->from, &seed);
    rig_channels_init(&l->c, channels, tcp);
    rig_map_init(&l->map, &l->from.memory);
    rig_map_fill(&l->map);
    assert_int_equal(vfmig_mover_new(l->c.source, channels, &l->from.memory, &l->mover, NULL), 0);
}

static void live_receive(struct live *l)
{
    assert_int_equal(vfmig_receiver_new(l->c.dest, l->c.count, &l->to.memory, note_record,
                                        &l->dest_seen, &l->dest, NULL), 0);
    assert_int_equal(vfmig_receiver_new(l->c.source, 1, NULL, note_record, &l->source_seen,
                                        &l->source, NULL), 0);
}

static void live_done(struct live *l)
{
    vfmig_mover_free(l->mover);
    vfmig_receiver_free(l->source);
    for (uint32_t i = 0; i < l->c.count; i++)
        vfmig_channel_shutdown(l->c.source[i]);
    vfmig_receiver_free(l->dest);
    rig_map_done(&l->map);
    rig_channels_done(&l->c);
    rig_memory_done(&l->from);
    rig_memory_done(&l->to);
}

static void a_fault_on_one_channel_reaches_the_source_as_a_sentence(void **state)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        struct live l;
        struct vfmig_error error = {0};
        const uint8_t rubbish[VFMIG_RECORD_HEAD_BYTES] = {0};

        live_init(&l, 2, tcp);
        assert_int_equal(write(vfmig_channel_fd(l.c.source[1]), rubbish, sizeof(rubbish)),
                         sizeof(rubbish));
        live_receive(&l);
        int rc = vfmig_mover_send(l.mover, &l.map.map, 1, &error);
        assert_true(rc == 0 || rc == -ECONNRESET);
        assert_int_equal(vfmig_receiver_wait_round(l.dest, 1, UINT64_MAX, &error), -EBADMSG);
        assert_int_equal(error.origin, VFMIG_ORIGIN_STREAM);
        assert_int_equal(vfmig_receiver_wait_end(l.source, &error), -EBADMSG);
        assert_int_equal(l.source_seen.errors, 1);
        assert_non_null(strstr(error.text, "magic"));
        live_done(&l);
    }
}

/* As bytes and as zero; in the first block and, by the stripes before it, in the second; whole, and
 * only its end. */
static void a_page_on_the_channel_of_another_stripe_is_refused(void **state)
{
    static const struct {
        struct vfmig_page_run run;
        uint32_t channel;
        bool right;
    } cases[] = {
        {{0, 1, 0}, 0, true},
        {{0, 1, 0}, 1, false},
        {{0, 1, VFMIG_STRIPE_PAGES}, 1, true},
        {{0, 1, VFMIG_STRIPE_PAGES}, 0, false},
        {{0, 2, VFMIG_STRIPE_PAGES - 1}, 0, false},
        {{1, 1, 0}, 1, true}, /* seven stripes, the last one short, are before it */
        {{1, 1, 0}, 0, false},
    };

    for (unsigned i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        const struct vfmig_page_run *run = &cases[i / 2].run;
        uint32_t on = cases[i / 2].channel;
        struct live l;
        struct vfmig_error error = {0};

        live_init(&l, 2, /* tcp= */ false);
        live_receive(&l);
        if (i % 2)
            assert_int_equal(vfmig_channel_send_zero(l.c.source[on], run, 1, NULL), 0);
        else
            assert_int_equal(vfmig_channel_send_pages(l.c.source[on], &l.from.memory, run, 1, NULL), 0);
        for (uint32_t c = 0; c < 2; c++)
            (void)vfmig_channel_send_round(l.c.source[c], 1, NULL);
        int rc = vfmig_receiver_wait_round(l.dest, 1, UINT64_MAX, &error);
        assert_int_equal(rc, cases[i / 2].right ? 0 : -EBADMSG);
        if (rc)
            assert_non_null(strstr(error.text, "stripe of another channel"));
        live_done(&l);
    }
}

static void a_peer_that_goes_away_is_an_error(void **state)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        struct live l;
        struct vfmig_error error = {0};

        live_init(&l, 2, tcp);
        vfmig_channel_shutdown(l.c.dest[1]);
        l.dest = l.source = NULL;
        /* Nobody receives on channel 0: the failure of the other one must end it, too. */
        assert_int_equal(vfmig_mover_send(l.mover, &l.map.map, 1, &error), -ECONNRESET);
        assert_int_equal(error.origin, VFMIG_ORIGIN_PEER);
        assert_int_equal(vfmig_mover_send(l.mover, &l.map.map, 2, &error), -ECONNRESET);
        live_done(&l);
    }
}

static void a_peer_that_takes_nothing_is_an_error(void **state)
{
    struct live l;
    struct vfmig_error error = {0};

    live_init(&l, 1, /* tcp= */ false);
    assert_int_equal(vfmig_channel_set_stall(l.c.source[0], 1000000, NULL), 0);
    assert_int_equal(vfmig_mover_send(l.mover, &l.map.map, 1, &error), -ETIMEDOUT);
    assert_int_equal(error.origin, VFMIG_ORIGIN_PEER);
    assert_int_equal(vfmig_channel_set_stall(l.c.dest[0], 1000000, NULL), 0);
    struct vfmig_record record;
    vfmig_channel_set_memory(l.c.dest[0], &l.to.memory);
    assert_true(vfmig_channel_recv(l.c.dest[0], &record, &error) < 0);
    live_done(&l);
}

static void cancelling_ends_a_round_between_records(void **state)
{
    struct live l;
    struct vfmig_error error = {0};

    live_init(&l, 2, /* tcp= */ false);
    live_receive(&l);
    vfmig_mover_set_bandwidth(l.mover, 1000000); /* 20 s for all of it */
    assert_int_equal(vfmig_mover_start(l.mover, &l.map.map, 1, &error), 0);
    assert_int_equal(vfmig_mover_start(l.mover, &l.map.map, 1, &error), -EBUSY);
    vfmig_mover_cancel(l.mover);
    assert_int_equal(vfmig_mover_wait(l.mover, &error), -ECANCELED);
    assert_int_equal(error.origin, VFMIG_ORIGIN_LOCAL);
    assert_int_equal(vfmig_mover_send(l.mover, &l.map.map, 2, &error), -ECANCELED);
    /* The stream is still whole: the destination can be told. */
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];
    size_t size = vfmig_stream_error_encode(out, &error);
    assert_int_equal(vfmig_channel_send(l.c.source[0], VFMIG_RECORD_ERROR, out, size, NULL), 0);
    assert_int_equal(vfmig_receiver_wait_end(l.dest, &error), -ECANCELED);
    assert_int_equal(l.dest_seen.errors, 1);
    live_done(&l);
}

static void count_round(void *user, uint64_t round)
{
    struct seen *seen = user;

    assert_int_equal(atomic_fetch_add(&seen->rounds, 1) + 1, round);
}

/* Cold is what was never sent as bytes: zero pages stay cold, and the same page is cold once. */
static void both_sides_know_what_is_cold(void **state)
{
    struct vfmig_mover_progress sent;
    struct vfmig_rates rates;
    struct live l;
    uint64_t cold, all, waited;

    live_init(&l, 2, /* tcp= */ true);
    live_receive(&l);
    vfmig_receiver_on_round(l.dest, count_round);
    all = rig_map_count(&l.map);
    assert_int_equal(vfmig_mover_count_new(l.mover, &l.map.map), all);
    for (uint64_t round = 1; round <= 2; round++) {
        rig_map_fill(&l.map);
        assert_int_equal(vfmig_mover_send(l.mover, &l.map.map, round, NULL), 0);
        assert_int_equal(vfmig_receiver_wait_round(l.dest, round, UINT64_MAX, NULL), 0);
        rig_map_fill(&l.map);
        vfmig_mover_progress(l.mover, &sent);
        assert_true(sent.busy_ns > 0);
        /* The search for zero pages is not thorough, so every round may find others. */
        uint64_t unsent = vfmig_mover_count_new(l.mover, &l.map.map);
        vfmig_receiver_cold(l.dest, &rates, &cold);
        assert_int_equal(cold, all - unsent);
        assert_true(unsent > 0 && unsent <= sent.zero_pages);
        assert_true(rates.total > 0 && rates.total <= cold * VFMIG_PAGE_SIZE);
    }
    while (atomic_load(&l.dest_seen.rounds) < 2)
        usleep(1000); /* told after it is done */
    /* Whoever else sends has his share of the limit, and the end of the limit ends the wait. */
    assert_int_equal(vfmig_mover_share(l.mover, 1000, &waited, NULL), 0);
    assert_int_equal(waited, 0);
    vfmig_mover_set_bandwidth(l.mover, 1);
    assert_int_equal(vfmig_mover_share(l.mover, 1, &waited, NULL), 0); /* the next one is due in 1 s */
    vfmig_mover_cancel(l.mover);
    assert_int_equal(vfmig_mover_share(l.mover, 1, &waited, NULL), -ECANCELED);
    live_done(&l);
}

static void freeing_a_running_mover_ends_it(void **state)
{
    struct live l;

    live_init(&l, 2, /* tcp= */ true);
    assert_int_equal(vfmig_mover_start(l.mover, &l.map.map, 1, NULL), 0);
    l.dest = l.source = NULL; /* nobody takes a byte */
    live_done(&l);
}

static void memory_before_the_map_is_agreed_is_refused(void **state)
{
    struct rig_channels c;
    uint8_t page[VFMIG_PAGE_SIZE] = {1};
    const struct vfmig_ram_block block = {.size = sizeof(page), .host = page, .fd = -1};
    const struct vfmig_memory memory = {&block, 1};
    struct vfmig_record record;
    struct vfmig_error error;

    rig_channels_init(&c, 1, /* tcp= */ false);
    const struct vfmig_page_run run = {.page_count = 1};
    assert_int_equal(vfmig_channel_send_pages(c.source[0], &memory, &run, 1, NULL), 0);
    assert_int_equal(vfmig_channel_recv(c.dest[0], &record, &error), -EPROTO);
    assert_int_equal(error.origin, VFMIG_ORIGIN_STREAM);
    rig_channels_done(&c);
}

/* --- HELLO --- */

static struct doorway doorway;

struct callers {
    int next, stranger; /* before which connection somebody comes who belongs to nobody */
};

static int call_in(void *user, struct vfmig_error *reterr)
{
    struct callers *callers = user;
    int fds[2] = {-1, -1}, count = callers->next++ == callers->stranger ? 2 : 1;

    for (int i = 0; i < count; i++)
        assert_int_equal(vfmig_sock_connect(doorway.uri, VFMIG_NEVER, &fds[i], reterr), 0);
    if (count == 2)
        close(fds[1]);
    return fds[0];
}

static void *accept_all(void *arrival)
{
    *(struct arrival **)arrival = doorway_let_in(&doorway);
    return NULL;
}

static void open_channels(int stranger)
{
    struct callers callers = {.stranger = stranger};
    const struct vfmig_dial dial = {call_in, &callers, 5000000000u, NULL, NULL};
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    struct arrival *arrival = NULL;
    const uint8_t id[16] = {1, 2, 3};
    struct vfmig_error error = {0};
    struct vfmig_clock_offset clock = {0};
    pthread_t thread;

    doorway_open(&doorway, 5000000000u, /* tls= */ NULL);
    assert_int_equal(pthread_create(&thread, NULL, accept_all, &arrival), 0);
    assert_int_equal(vfmig_channels_open(&dial, 3, id, channels, &error), 0);
    assert_int_equal(vfmig_channel_send(channels[0], VFMIG_RECORD_IDENTITY, "me", 2, &error), 0);
    pthread_join(thread, NULL);
    assert_int_equal(doorway.refused, stranger >= 0);
    doorway_close(&doorway);
    assert_int_equal(arrival->count, 3);
    assert_memory_equal(arrival->id, id, 16);
    assert_string_equal((const char *)arrival->text.data, "me");

    struct seen seen = {0};
    struct vfmig_receiver *receiver;
    assert_int_equal(vfmig_receiver_new(arrival->channels, 3, NULL, note_record, &seen, &receiver, NULL),
                     0);
    for (uint64_t i = 0; i < 5; i++)
        assert_int_equal(vfmig_channel_ping(channels[0], i, &clock, &error), 0);
    assert_int_equal(clock.samples, 5);
    /* One clock on both sides: the true offset is 0 and must be inside the error. */
    assert_true((uint64_t)llabs(clock.offset_ns) <= clock.error_ns);
    for (uint32_t i = 0; i < 3; i++)
        vfmig_channel_free(channels[i]);
    assert_int_equal(vfmig_receiver_wait_end(receiver, &error), -ECONNRESET);
    vfmig_receiver_free(receiver);
    arrival_free(arrival);
}

static void hello_binds_channels(void **state)
{
    open_channels(/* stranger= */ -1);
}

static void hello_turns_strangers_away(void **state)
{
    open_channels(/* stranger= */ 1);
    open_channels(/* stranger= */ 2);
}

struct sending {
    struct vfmig_channel *channel;
    const uint8_t *data;
    size_t size;
    int rc;
};

static void *send_segment(void *argument)
{
    struct sending *s = argument;

    s->rc = vfmig_channel_send_segment(s->channel, 9, 4, s->data, s->size, NULL);
    return NULL;
}

static void segments_keep_their_boundaries(void **state)
{
    const size_t size = VFMIG_MAX_DEVICE_PIECE * 2 + 5;
    struct rig_channels c;
    struct vfmig_record record;
    struct vfmig_device_piece piece;
    uint8_t *data = malloc(size), *got = malloc(size);
    size_t at = 0;
    uint64_t seed = 3;
    pthread_t thread;
    struct vfmig_error error = {0};

    assert_true(data && got);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)rig_random(&seed);
    rig_channels_init(&c, 1, /* tcp= */ false);
    struct sending sending = {.channel = c.source[0], .data = data, .size = size};
    assert_int_equal(pthread_create(&thread, NULL, send_segment, &sending), 0);
    do {
        assert_int_equal(vfmig_channel_recv(c.dest[0], &record, &error), 0);
        assert_int_equal(record.tag, VFMIG_RECORD_DEVDATA);
        assert_int_equal(vfmig_device_piece_decode(record.payload, record.length, &piece, &error),
                         0);
        assert_int_equal(piece.device, 9);
        assert_int_equal(piece.segment, 4);
        size_t bytes = record.length - VFMIG_DEVICE_PIECE_BYTES;
        assert_true(at + bytes <= size);
        memcpy(got + at, record.payload + VFMIG_DEVICE_PIECE_BYTES, bytes);
        at += bytes;
    } while (piece.more);
    pthread_join(thread, NULL);
    assert_int_equal(sending.rc, 0);
    assert_int_equal(at, size);
    assert_memory_equal(got, data, size);
    free(data);
    free(got);
    rig_channels_done(&c);
}

static atomic_uint signals;

static void note_signal(int number)
{
    atomic_fetch_add(&signals, 1);
}

struct interrupter {
    pthread_t target;
    int fd;
    const uint8_t *bytes;
    size_t size;
};

/* The page of a record comes after its head and after many signals, each of which was taken before the next one. */
static void *interrupt_a_record(void *argument)
{
    struct interrupter *late = argument;
    size_t head = VFMIG_RECORD_HEAD_BYTES + 100;

    assert_int_equal(write(late->fd, late->bytes, head), head);
    for (unsigned i = 0; i < 100; i++) {
        usleep(200);
        pthread_kill(late->target, SIGUSR1);
        while (atomic_load(&signals) <= i)
            usleep(50);
    }
    assert_int_equal(write(late->fd, late->bytes + head, late->size - head), late->size - head);
    return NULL;
}

/* A program that has a handler for a signal is not told that its peer is silent. */
static void a_signal_ends_no_waiting(void **state)
{
    const uint64_t pages[RIG_BLOCKS] = {1, 1};
    const struct sigaction action = {.sa_handler = note_signal};
    const struct vfmig_page_run run = {.block = 0, .page_count = 1, .first_page = 0};
    static uint8_t bytes[3 * VFMIG_PAGE_SIZE];
    struct interrupter late = {.target = pthread_self(), .bytes = bytes};
    struct rig_memory from, to;
    struct vfmig_channel *sender, *receiver;
    struct vfmig_record record;
    struct vfmig_error error = {0};
    struct sigaction before;
    uint64_t seed = 5;
    int first[2], second[2];
    pthread_t thread;

    rig_memory_init(&from, pages);
    rig_memory_init(&to, pages);
    rig_fill_page(from.blocks[0].host, &seed);
    rig_pair(/* tcp= */ false, first);
    rig_pair(/* tcp= */ false, second);
    assert_int_equal(vfmig_channel_new(first[0], 0, VFMIG_SIDE_SOURCE, &sender, NULL), 0);
    assert_int_equal(vfmig_channel_new(second[1], 0, VFMIG_SIDE_DEST, &receiver, NULL), 0);
    vfmig_channel_set_memory(receiver, &to.memory);
    assert_int_equal(vfmig_channel_send_pages(sender, &from.memory, &run, 1, NULL), 0);
    assert_int_equal(vfmig_channel_send(sender, VFMIG_RECORD_BYE, NULL, 0, NULL), 0);
    vfmig_channel_free(sender);
    for (ssize_t got; (got = read(first[1], bytes + late.size, sizeof(bytes) - late.size)) > 0;)
        late.size += (size_t)got;
    assert_true(late.size > VFMIG_PAGE_SIZE && late.size < sizeof(bytes));
    late.fd = second[0];
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    assert_int_equal(pthread_create(&thread, NULL, interrupt_a_record, &late), 0);
    int ret = vfmig_channel_recv(receiver, &record, &error);
    pthread_join(thread, NULL);
    assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
    if (ret)
        print_error("%s\n", error.text);
    assert_int_equal(ret, 0);
    assert_int_equal(record.tag, VFMIG_RECORD_BYE);
    assert_true(rig_memory_equal(&from, &to));
    vfmig_channel_free(receiver);
    close(first[1]);
    close(second[0]);
    rig_memory_done(&from);
    rig_memory_done(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_arrives_over_1_2_and_4_channels),
        cmocka_unit_test(memory_arrives_while_it_is_written),
        cmocka_unit_test(holes_stay_holes_on_both_sides),
        cmocka_unit_test(a_stream_cut_anywhere_is_an_error),
        cmocka_unit_test(a_stream_altered_anywhere_is_an_error_of_the_stream),
        cmocka_unit_test(a_page_in_doubt_is_forgiven_only_if_it_comes_again),
        cmocka_unit_test(a_fault_on_one_channel_reaches_the_source_as_a_sentence),
        cmocka_unit_test(a_page_on_the_channel_of_another_stripe_is_refused),
        cmocka_unit_test(a_peer_that_goes_away_is_an_error),
        cmocka_unit_test(a_peer_that_takes_nothing_is_an_error),
        cmocka_unit_test(cancelling_ends_a_round_between_records),
        cmocka_unit_test(both_sides_know_what_is_cold),
        cmocka_unit_test(freeing_a_running_mover_ends_it),
        cmocka_unit_test(memory_before_the_map_is_agreed_is_refused),
        cmocka_unit_test(hello_binds_channels),
        cmocka_unit_test(hello_turns_strangers_away),
        cmocka_unit_test(segments_keep_their_boundaries),
        cmocka_unit_test(a_signal_ends_no_waiting),
    };
    return cmocka_run_group_tests_name("mover", tests, NULL, NULL);
}
