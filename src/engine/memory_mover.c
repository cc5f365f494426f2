/* SPDX-License-Identifier: BSD-3-Clause */
/* The source's half: one thread a channel walks its stripes of the dirty map. */
#include "engine/memory_mover.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/zero.h"
#include "core/pace.h"
#include "engine/channel_private.h"
#include "engine/seats.h"

/* Pages in one record: each system call of a loopback connection costs as much as the copying of some
 * dozen pages. docs/performance.md has the measurements. */
#define RECORD_PAGES 512u
#define STRIPE_WORDS (VFMIG_STRIPE_PAGES / 64)

_Static_assert(VFMIG_STRIPE_PAGES % 64 == 0, "a word of the bitmap belongs to one channel");
_Static_assert(RECORD_PAGES <= VFMIG_MAX_MEMORY_PAGES, "a record the peer accepts");

/* Adaptive search for zero pages: after so many pages without one, look at every 16th only. */
#define ZERO_PATIENCE_PAGES 256u
#define ZERO_PROBE_EVERY    16u

struct worker {
    struct vfmig_mover *mover;
    struct vfmig_channel *channel;
    uint32_t index;
    pthread_t thread;
    uint64_t round_seen;
    uint64_t waited_ns; /* of this round, for its share of the bandwidth */
    atomic_bool sends;  /* a record, at this moment */
    uint64_t taken;     /* pages of it */
    struct vfmig_cpu_use use; /* of its thread, when the round began */
    struct vfmig_seat seat;
    uint32_t zero_misses;
    uint32_t page_count, run_count, zero_run_count;
    struct vfmig_page_run runs[RECORD_PAGES];
    struct vfmig_page_run zero_runs[VFMIG_MAX_MEMORY_RUNS];
    /* Up to where the block's file is known to have no pages, and the last group of 64 pages that
     * it was asked about; both only while one stripe is sent. */
    uint64_t hole_end, hole_asked;
    uint8_t resident[VFMIG_STRIPE_PAGES]; /* as mincore has it, of the same stripe */
};

struct vfmig_mover {
    const struct vfmig_memory *memory;
    uint32_t worker_count, thread_count;
    struct worker *workers;
    int event_fd;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct vfmig_dirty_map *map; /* of the running round */
    uint64_t round, rounds_started, pages_total;
    uint64_t part; /* of a round: pages of each worker; 0: all */
    bool seated;
    struct vfmig_seats seats;
    uint32_t busy; /* workers that have not finished the round */
    bool running, stopping;
    struct vfmig_error failed;
    struct vfmig_pace pace;
    uint64_t busy_ns; /* of the round: the longest of its workers */
    struct vfmig_cpu_use use; /* and of all of them; waits: the longest */

    atomic_bool cancelled;
    _Atomic uint64_t bytes_per_second;
    _Atomic uint64_t pages_done;
    struct vfmig_dirty_map written; /* pages that went as bytes in any round */
};

static int check_cancelled(const struct vfmig_mover *mover, struct vfmig_error *reterr)
{
    if (!atomic_load_explicit(&mover->cancelled, memory_order_relaxed))
        return 0;
    return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                           "sending memory was cancelled");
}

int vfmig_mover_share(struct vfmig_mover *mover, uint64_t bytes, uint64_t *ret_waited_ns,
                      struct vfmig_error *reterr)
{
    *ret_waited_ns = 0;
    if (!atomic_load_explicit(&mover->bytes_per_second, memory_order_relaxed))
        return 0;
    pthread_mutex_lock(&mover->lock);
    uint64_t begin_ns = vfmig_channel_now_ns();
    vfmig_pace_set(&mover->pace, atomic_load(&mover->bytes_per_second));
    uint64_t due_ns = vfmig_pace_take(&mover->pace, bytes, begin_ns);
    struct timespec due = {(time_t)(due_ns / 1000000000u), (long)(due_ns % 1000000000u)};
    /* Ends early when it is cancelled, or the limit is lifted. */
    while (!mover->cancelled && atomic_load(&mover->bytes_per_second) &&
           vfmig_channel_now_ns() < due_ns)
        pthread_cond_timedwait(&mover->changed, &mover->lock, &due);
    *ret_waited_ns = vfmig_channel_now_ns() - begin_ns;
    pthread_mutex_unlock(&mover->lock);
    return check_cancelled(mover, reterr);
}

/* What a MEMORY record of these pages is on the wire, its head included. */
static uint64_t record_bytes(uint32_t runs, uint64_t pages)
{
    return VFMIG_RECORD_HEAD_BYTES + VFMIG_RUNS_PREFIX_BYTES + (uint64_t)runs * VFMIG_RUN_BYTES +
           pages * (VFMIG_PAGE_CRC_BYTES + VFMIG_PAGE_SIZE);
}

static int wait_for_share(struct worker *w, uint64_t bytes, struct vfmig_error *reterr)
{
    uint64_t waited_ns;
    int rc = vfmig_mover_share(w->mover, bytes, &waited_ns, reterr);

    w->waited_ns += waited_ns;
    return rc;
}

static void note_written(struct worker *w)
{
    for (uint32_t i = 0; i < w->run_count; i++)
        vfmig_bitmap_set_range_atomic(w->mover->written.bitmaps[w->runs[i].block],
                                      w->runs[i].first_page, w->runs[i].page_count);
}

static int flush_pages(struct worker *w, struct vfmig_error *reterr)
{
    if (w->page_count == 0)
        return 0;
    int rc = check_cancelled(w->mover, reterr);
    if (rc == 0)
        rc = wait_for_share(w, record_bytes(w->run_count, w->page_count), reterr);
    note_written(w);
    atomic_store_explicit(&w->sends, true, memory_order_relaxed);
    if (rc == 0)
        rc = vfmig_channel_send_pages(w->channel, w->mover->memory, w->runs, w->run_count, reterr);
    atomic_store_explicit(&w->sends, false, memory_order_relaxed);
    atomic_fetch_add_explicit(&w->mover->pages_done, w->page_count, memory_order_relaxed);
    w->page_count = w->run_count = 0;
    return rc;
}

static int flush_zero(struct worker *w, struct vfmig_error *reterr)
{
    if (w->zero_run_count == 0)
        return 0;
    uint64_t pages = 0;
    for (uint32_t i = 0; i < w->zero_run_count; i++)
        pages += w->zero_runs[i].page_count;
    int rc = wait_for_share(w, VFMIG_RECORD_HEAD_BYTES + VFMIG_RUNS_PREFIX_BYTES +
                                   w->zero_run_count * VFMIG_RUN_BYTES, reterr);
    if (rc == 0)
        rc = vfmig_channel_send_zero(w->channel, w->zero_runs, w->zero_run_count, reterr);
    atomic_fetch_add_explicit(&w->mover->pages_done, pages, memory_order_relaxed);
    w->zero_run_count = 0;
    return rc;
}

/* Adds a page to the last run when it goes on there, else opens a new one. */
static uint32_t add_to_runs(struct vfmig_page_run *runs, uint32_t count, uint32_t block,
                            uint64_t page)
{
    struct vfmig_page_run *last = count ? &runs[count - 1] : NULL;

    if (last && last->block == block && last->first_page + last->page_count == page &&
        last->page_count < UINT32_MAX) {
        last->page_count++;
        return count;
    }
    runs[count] = (struct vfmig_page_run){.block = block, .page_count = 1, .first_page = page};
    return count + 1;
}

/* Which pages of a stripe are in core; all of them when the kernel does not say. */
static void ask_resident(struct worker *w, const struct vfmig_ram_block *block, uint64_t first_page,
                         uint64_t page_count)
{
    uint8_t *host = (uint8_t *)block->host + first_page * VFMIG_PAGE_SIZE;

    w->hole_end = 0;
    w->hole_asked = UINT64_MAX;
    if (block->fd < 0 || mincore(host, page_count * VFMIG_PAGE_SIZE, w->resident) < 0)
        memset(w->resident, 1, sizeof(w->resident));
}

/* A page that the block's file does not have is zero, and reading it would allocate it. One that is
 * not in core may be that, or swapped out, so the file is asked: after the page's bit was taken,
 * therefore a later write is in the next round. */
static bool in_hole(struct worker *w, const struct vfmig_ram_block *block, uint64_t page)
{
    uint64_t at = page * VFMIG_PAGE_SIZE;

    if (w->resident[page % VFMIG_STRIPE_PAGES] & 1)
        return false;
    if (at >= w->hole_end && page / 64 != w->hole_asked) {
        off_t data = lseek(block->fd, (off_t)(block->fd_offset + at), SEEK_DATA);
        int code = data < 0 ? -errno : 0;
        w->hole_asked = page / 64;
        if (data >= 0)
            w->hole_end = (uint64_t)data - block->fd_offset;
        else
            w->hole_end = code == -ENXIO ? UINT64_MAX : 0;
    }
    return at + VFMIG_PAGE_SIZE <= w->hole_end;
}

static bool page_is_zero(struct worker *w, const uint8_t *page)
{
    if (w->zero_misses > ZERO_PATIENCE_PAGES && ++w->zero_misses % ZERO_PROBE_EVERY)
        return false;
    if (vfmig_is_zero(page, VFMIG_PAGE_SIZE)) {
        w->zero_misses = 0;
        return true;
    }
    w->zero_misses++;
    return false;
}

static int send_page(struct worker *w, uint32_t block_index, uint64_t page,
                     struct vfmig_error *reterr)
{
    const struct vfmig_ram_block *block = &w->mover->memory->blocks[block_index];
    const uint8_t *host = (const uint8_t *)block->host + page * VFMIG_PAGE_SIZE;

    if (in_hole(w, block, page) || page_is_zero(w, host)) {
        w->zero_run_count = add_to_runs(w->zero_runs, w->zero_run_count, block_index, page);
        return w->zero_run_count == VFMIG_MAX_MEMORY_RUNS ? flush_zero(w, reterr) : 0;
    }
    w->run_count = add_to_runs(w->runs, w->run_count, block_index, page);
    return ++w->page_count == RECORD_PAGES ? flush_pages(w, reterr) : 0;
}

static int send_stripe(struct worker *w, uint32_t block, uint64_t first_page, uint64_t end_page,
                       struct vfmig_error *reterr)
{
    uint64_t *bitmap = w->mover->map->bitmaps[block];
    uint64_t taken[STRIPE_WORDS];
    uint64_t first_word = first_page / 64, words = vfmig_bitmap_words(end_page - first_page);

    for (uint64_t i = 0; i < words; i++)
        taken[i] = vfmig_bitmap_take_word(&bitmap[first_word + i]);
    uint64_t count = end_page - first_page;
    if (vfmig_bitmap_next(taken, count, 0) < count)
        ask_resident(w, &w->mover->memory->blocks[block], first_page, count);
    for (uint64_t bit = vfmig_bitmap_next(taken, count, 0); bit < count;
         bit = vfmig_bitmap_next(taken, count, bit + 1)) {
        w->taken++;
        int rc = send_page(w, block, first_page + bit, reterr);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* All stripes of this worker, then its mark. */
static int send_round(struct worker *w, struct vfmig_error *reterr)
{
    const struct vfmig_memory *memory = w->mover->memory;
    uint64_t stripe = 0;
    uint64_t part = w->mover->part;

    w->waited_ns = w->taken = 0;
    w->page_count = w->run_count = w->zero_run_count = 0;
    for (uint32_t block = 0; block < memory->block_count; block++) {
        uint64_t pages = memory->blocks[block].size / VFMIG_PAGE_SIZE;
        for (uint64_t first = 0; first < pages; first += VFMIG_STRIPE_PAGES, stripe++) {
            uint64_t end = pages - first < VFMIG_STRIPE_PAGES ? pages : first + VFMIG_STRIPE_PAGES;
            if (stripe % w->mover->worker_count != w->index)
                continue;
            if (part && w->taken >= part)
                break;
            int rc = send_stripe(w, block, first, end, reterr);
            if (rc < 0)
                return rc;
        }
    }
    int rc = flush_pages(w, reterr);
    if (rc == 0)
        rc = flush_zero(w, reterr);
    if (rc == 0)
        rc = vfmig_channel_send_round(w->channel, w->mover->round, reterr);
    return rc;
}

/* Under the lock. */
static void add_use(struct worker *w)
{
    const struct vfmig_cpu_use now = vfmig_cpu_use();
    uint64_t waited_ns = now.waited_ns - w->use.waited_ns;

    w->mover->use.cpu_ns += now.cpu_ns - w->use.cpu_ns;
    if (waited_ns > w->mover->use.waited_ns)
        w->mover->use.waited_ns = waited_ns;
}

/* The first failure ends the round for all: half a round has no use. */
static void end_of_round(struct worker *w, uint64_t took_ns, const struct vfmig_error *error)
{
    struct vfmig_mover *mover = w->mover;
    const uint64_t one = 1;

    pthread_mutex_lock(&mover->lock);
    if (took_ns - w->waited_ns > mover->busy_ns)
        mover->busy_ns = took_ns - w->waited_ns;
    add_use(w);
    if (error->code && !mover->failed.code) {
        mover->failed = *error;
        mover->cancelled = true;
        /* Only the sending half: the peer's reason may be on its way on channel 0. */
        for (uint32_t i = 0; error->code != -ECANCELED && i < mover->worker_count; i++)
            vfmig_channel_end_sending(mover->workers[i].channel);
        pthread_cond_broadcast(&mover->changed);
    }
    if (--mover->busy == 0) {
        ssize_t written = write(mover->event_fd, &one, sizeof(one));
        (void)written; /* only a full counter could refuse, and it counts to one */
        pthread_cond_broadcast(&mover->changed);
    }
    pthread_mutex_unlock(&mover->lock);
}

static void *worker_main(void *argument)
{
    struct worker *w = argument;
    struct vfmig_mover *mover = w->mover;

    for (;;) {
        pthread_mutex_lock(&mover->lock);
        while (!mover->stopping && mover->rounds_started == w->round_seen)
            pthread_cond_wait(&mover->changed, &mover->lock);
        bool stop = mover->rounds_started == w->round_seen;
        w->round_seen = mover->rounds_started;
        if (mover->seated && w->channel->near && !stop)
            vfmig_seat_take(&mover->seats, &w->seat);
        else
            vfmig_seat_leave(&mover->seats, &w->seat);
        pthread_mutex_unlock(&mover->lock);
        if (stop)
            return NULL;
        struct vfmig_error error = {0};
        uint64_t begin_ns = vfmig_channel_now_ns();
        w->use = vfmig_cpu_use();
        send_round(w, &error);
        end_of_round(w, vfmig_channel_now_ns() - begin_ns, &error);
    }
}

static int start_workers(struct vfmig_mover *mover, struct vfmig_channel *const *channels,
                         struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < mover->worker_count; i++) {
        struct worker *w = &mover->workers[i];
        w->mover = mover;
        w->channel = channels[i];
        w->index = i;
        int code = pthread_create(&w->thread, NULL, worker_main, w);
        if (code)
            return vfmig_error_set(reterr, -code, VFMIG_ORIGIN_KERNEL, 0,
                                   "no thread for channel %u: %s", i, strerror(code));
        mover->thread_count++;
    }
    return 0;
}

int vfmig_mover_new(struct vfmig_channel *const *channels, uint32_t channel_count,
                    const struct vfmig_memory *memory, struct vfmig_mover **ret_mover,
                    struct vfmig_error *reterr)
{
    pthread_condattr_t attributes;
    struct vfmig_mover *mover = calloc(1, sizeof(*mover));

    if (!mover)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the mover");
    mover->memory = memory;
    mover->worker_count = channel_count;
    mover->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&mover->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&mover->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    mover->workers = calloc(channel_count ? channel_count : 1, sizeof(*mover->workers));
    int rc = 0;
    if (mover->event_fd < 0 || !mover->workers)
        rc = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the mover");
    else if (channel_count == 0 || channel_count > VFMIG_MAX_CHANNELS)
        rc = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%u channels for memory",
                             channel_count);
    else
        rc = vfmig_dirty_map_init(&mover->written, memory, reterr);
    if (rc == 0)
        rc = start_workers(mover, channels, reterr);
    if (rc < 0)
        vfmig_mover_free(mover);
    else
        *ret_mover = mover;
    return rc;
}

void vfmig_mover_free(struct vfmig_mover *mover)
{
    if (!mover)
        return;
    pthread_mutex_lock(&mover->lock);
    bool running = mover->busy;
    mover->stopping = true;
    pthread_cond_broadcast(&mover->changed);
    pthread_mutex_unlock(&mover->lock);
    if (running)
        vfmig_mover_cancel(mover);
    for (uint32_t i = 0; running && i < mover->thread_count; i++)
        vfmig_channel_shutdown(mover->workers[i].channel);
    for (uint32_t i = 0; i < mover->thread_count; i++)
        pthread_join(mover->workers[i].thread, NULL);
    free(mover->workers);
    vfmig_dirty_map_done(&mover->written);
    pthread_cond_destroy(&mover->changed);
    pthread_mutex_destroy(&mover->lock);
    if (mover->event_fd >= 0)
        close(mover->event_fd);
    free(mover);
}

void vfmig_mover_set_bandwidth(struct vfmig_mover *mover, uint64_t bytes_per_second)
{
    atomic_store(&mover->bytes_per_second, bytes_per_second);
    pthread_mutex_lock(&mover->lock);
    pthread_cond_broadcast(&mover->changed); /* who waits for its share of the old one */
    pthread_mutex_unlock(&mover->lock);
}

uint64_t vfmig_mover_count_new(const struct vfmig_mover *mover, const struct vfmig_dirty_map *map)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < map->memory.block_count; i++) {
        size_t words = vfmig_bitmap_words(map->memory.blocks[i].size / VFMIG_PAGE_SIZE);
        for (size_t word = 0; word < words; word++)
            count += (uint64_t)__builtin_popcountll(
                __atomic_load_n(&map->bitmaps[i][word], __ATOMIC_RELAXED) &
                ~__atomic_load_n(&mover->written.bitmaps[i][word], __ATOMIC_RELAXED));
    }
    return count;
}

/* For the progress only: others may be setting bits, so every word is read atomically. */
static uint64_t count_bits(const uint64_t *bitmap, uint64_t bits)
{
    uint64_t count = 0;

    for (size_t word = 0; word < vfmig_bitmap_words(bits); word++)
        count += (uint64_t)__builtin_popcountll(__atomic_load_n(&bitmap[word], __ATOMIC_RELAXED));
    return count;
}

int vfmig_mover_start(struct vfmig_mover *mover, struct vfmig_dirty_map *map, uint64_t round,
                      struct vfmig_error *reterr)
{
    uint64_t total = 0;
    int rc = 0;

    for (uint32_t i = 0; i < map->memory.block_count; i++)
        total += count_bits(map->bitmaps[i], map->memory.blocks[i].size / VFMIG_PAGE_SIZE);
    pthread_mutex_lock(&mover->lock);
    if (mover->failed.code) {
        if (reterr)
            *reterr = mover->failed;
        rc = mover->failed.code;
    } else if (mover->cancelled) {
        rc = check_cancelled(mover, reterr);
    } else if (mover->running) {
        rc = vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                             "a round of memory is still being sent");
    } else {
        mover->map = map;
        mover->round = round;
        mover->pages_total = total;
        mover->busy_ns = 0;
        mover->use = (struct vfmig_cpu_use){0};
        atomic_store(&mover->pages_done, 0);
        mover->busy = mover->worker_count;
        mover->running = true;
        mover->rounds_started++;
        pthread_cond_broadcast(&mover->changed);
    }
    pthread_mutex_unlock(&mover->lock);
    return rc;
}

int vfmig_mover_wait(struct vfmig_mover *mover, struct vfmig_error *reterr)
{
    uint64_t count;

    pthread_mutex_lock(&mover->lock);
    while (mover->running && mover->busy)
        pthread_cond_wait(&mover->changed, &mover->lock);
    mover->running = false;
    mover->map = NULL;
    ssize_t got = read(mover->event_fd, &count, sizeof(count));
    (void)got; /* nothing to read when no round was started */
    int rc = mover->failed.code;
    if (rc && reterr)
        *reterr = mover->failed;
    pthread_mutex_unlock(&mover->lock);
    return rc;
}

int vfmig_mover_send(struct vfmig_mover *mover, struct vfmig_dirty_map *map, uint64_t round,
                     struct vfmig_error *reterr)
{
    int rc = vfmig_mover_start(mover, map, round, reterr);

    return rc < 0 ? rc : vfmig_mover_wait(mover, reterr);
}

void vfmig_mover_set_seated(struct vfmig_mover *mover, bool seated)
{
    pthread_mutex_lock(&mover->lock);
    mover->seated = seated;
    pthread_mutex_unlock(&mover->lock);
}

void vfmig_mover_set_part(struct vfmig_mover *mover, uint64_t pages)
{
    pthread_mutex_lock(&mover->lock);
    mover->part = (pages + mover->worker_count - 1) / mover->worker_count;
    pthread_mutex_unlock(&mover->lock);
}

int vfmig_mover_fd(const struct vfmig_mover *mover)
{
    return mover->event_fd;
}

void vfmig_mover_progress(struct vfmig_mover *mover, struct vfmig_mover_progress *ret_progress)
{
    struct vfmig_mover_progress progress = {0};

    pthread_mutex_lock(&mover->lock);
    progress.round = mover->round;
    progress.pages_total = mover->pages_total;
    progress.busy_ns = mover->busy_ns;
    progress.use = mover->use;
    progress.running = mover->running && mover->busy;
    progress.bandwidth = atomic_load(&mover->bytes_per_second);
    progress.sends = atomic_load(&mover->workers[0].sends);
    pthread_mutex_unlock(&mover->lock);
    progress.pages_done = atomic_load(&mover->pages_done);
    for (uint32_t i = 0; i < mover->worker_count; i++) {
        struct vfmig_channel_stats stats;
        vfmig_channel_stats(mover->workers[i].channel, &stats);
        progress.pages_sent += stats.pages_sent;
        progress.zero_pages += stats.zero_pages_sent;
        progress.bytes_sent += stats.bytes_sent;
    }
    *ret_progress = progress;
}

void vfmig_mover_cancel(struct vfmig_mover *mover)
{
    pthread_mutex_lock(&mover->lock);
    mover->cancelled = true;
    pthread_cond_broadcast(&mover->changed);
    pthread_mutex_unlock(&mover->lock);
}
