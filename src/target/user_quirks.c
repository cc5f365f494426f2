/* SPDX-License-Identifier: BSD-3-Clause */
/* What servers of other makes need beyond the protocol (docs/foreign.md): set-up that they refuse in
 * a stopped state is remembered, and the log is asked for mapping by mapping. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "target/user_private.h"

/* ---- config space ---- */

void user_keep_config(struct user *u)
{
    uint64_t size = u->base.info.region_size[VFMIG_REGION_CONFIG];

    u->config_size = 0;
    if (u->ours || size == 0 || vfmig_sabotage("config-not-kept"))
        return;
    size = size < sizeof(u->config) ? size : sizeof(u->config);
    if (user_region_access(u, VFMIG_REGION_CONFIG, 0, u->config, NULL, (uint32_t)size,
                           vfmig_deadline_ns(u->opt.timeout_ns), NULL) == 0)
        u->config_size = (uint32_t)size;
}

bool user_kept_config(const struct user *u, uint32_t region, uint64_t offset, void *data,
                      uint32_t size)
{
    if (u->asked != VFMIG_STATE_STOP_COPY || region != VFMIG_REGION_CONFIG ||
        offset > u->config_size || size > u->config_size - offset)
        return false;
    memcpy(data, u->config + offset, size);
    return true;
}

/* ---- interrupts ---- */

struct user_irqs {
    uint32_t index, start, count;
    bool attach;
    int fds[]; /* ours */
};

static void irqs_free(struct user_irqs *irqs)
{
    for (uint32_t i = 0; irqs && irqs->attach && i < irqs->count; i++)
        if (irqs->fds[i] >= 0)
            close(irqs->fds[i]);
    free(irqs);
}

bool user_may_defer(const struct user *u)
{
    enum vfmig_state asked = u->asked;

    /* Z may be left for {} at this very moment, by another thread. */
    return (asked == VFMIG_STATE_STOP || asked == VFMIG_STATE_STOP_COPY ||
            asked == VFMIG_STATE_RESUMING) && !u->ours && !vfmig_sabotage("irqs-at-once");
}

/* The place of a call that this one replaces, or a free one; USER_MAX_DEFERRED: none. */
static uint32_t place_of(const struct user *u, const struct user_irqs *irqs)
{
    uint32_t i = 0;

    while (i < u->deferred_count &&
           (u->deferred[i]->index != irqs->index || u->deferred[i]->start != irqs->start ||
            u->deferred[i]->count != irqs->count))
        i++;
    return i;
}

int user_defer_irqs(struct user *u, uint32_t index, uint32_t start, uint32_t count, const int *fds,
                    struct vfmig_error *reterr)
{
    struct user_irqs *irqs = calloc(1, sizeof(*irqs) + count * sizeof(irqs->fds[0]));
    bool copied = irqs != NULL;

    if (irqs) {
        *irqs = (struct user_irqs){.index = index, .start = start, .count = count, .attach = fds};
        for (uint32_t i = 0; fds && i < count; i++) {
            irqs->fds[i] = fds[i] < 0 ? -1 : fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
            copied &= fds[i] < 0 || irqs->fds[i] >= 0;
        }
    }
    pthread_mutex_lock(&u->deferred_lock);
    uint32_t at = copied ? place_of(u, irqs) : USER_MAX_DEFERRED;
    if (at == USER_MAX_DEFERRED) {
        pthread_mutex_unlock(&u->deferred_lock);
        irqs_free(irqs);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0,
                               "%s: no room for interrupts that it takes later", u->base.info.name);
    }
    if (at == u->deferred_count)
        u->deferred_count++;
    else
        irqs_free(u->deferred[at]);
    u->deferred[at] = irqs;
    pthread_mutex_unlock(&u->deferred_lock);
    return 0;
}

int user_catch_up(struct user *u, struct vfmig_error *reterr)
{
    int r = 0;

    enum vfmig_state asked = u->asked;

    if (asked == VFMIG_STATE_STOP || asked == VFMIG_STATE_STOP_COPY)
        return 0;
    pthread_mutex_lock(&u->deferred_lock);
    for (uint32_t i = 0; i < u->deferred_count; i++) {
        struct user_irqs *irqs = u->deferred[i];
        if (r == 0)
            r = user_send_irqs(u, irqs->index, irqs->start, irqs->count,
                              irqs->attach ? irqs->fds : NULL, reterr);
        irqs_free(irqs);
    }
    u->deferred_count = 0;
    pthread_mutex_unlock(&u->deferred_lock);
    return r;
}

/* ---- mappings ---- */

uint64_t user_map_piece(const struct user *u)
{
    return u->ours || !u->base.info.dma_log || !u->base.info.log_page_size ||
                   vfmig_sabotage("maps-not-split")
               ? UINT64_MAX
               : user_report_bytes(u) * 8 * u->base.info.log_page_size;
}

void user_note_map(struct user *u, uint64_t iova, uint64_t size, bool by_message)
{
    pthread_mutex_lock(&u->maps_lock);
    struct user_map *maps = u->map_count < VFMIG_MAX_DMA_REGIONS
                                ? realloc(u->maps, (u->map_count + 1) * sizeof(*maps))
                                : NULL;
    if (maps) {
        u->maps = maps;
        maps[u->map_count++] = (struct user_map){iova, size, by_message};
    } else {
        u->maps_unknown = true; /* reports go as they come */
    }
    pthread_mutex_unlock(&u->maps_lock);
}

void user_note_unmap(struct user *u, uint64_t iova, uint64_t size)
{
    pthread_mutex_lock(&u->maps_lock);
    for (uint32_t i = 0; i < u->map_count; i++)
        if (u->maps[i].iova == iova && u->maps[i].size == size) {
            u->maps[i] = u->maps[--u->map_count];
            break;
        }
    pthread_mutex_unlock(&u->maps_lock);
}

/* The mapping with the lowest address that ends after iova and begins before end. */
static bool next_map(struct user *u, uint64_t iova, uint64_t end, struct user_map *ret_map)
{
    bool found = false;

    pthread_mutex_lock(&u->maps_lock);
    for (uint32_t i = 0; i < u->map_count; i++) {
        const struct user_map *map = &u->maps[i];
        if (map->iova < end && map->iova + map->size > iova &&
            (!found || map->iova < ret_map->iova)) {
            *ret_map = *map;
            found = true;
        }
    }
    pthread_mutex_unlock(&u->maps_lock);
    return found;
}

/* From a log whose pages are larger than those asked for. */
static int report_large(struct user *u, user_report_fn fetch, uint64_t iova, uint64_t size,
                        uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr)
{
    uint64_t ratio = u->log_size / page_size, pages = (size + page_size - 1) / page_size;
    uint64_t count = (size + u->log_size - 1) / u->log_size;

    if (iova % u->log_size)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s logs pages of %llu bytes, and a mapping is not aligned to that",
                               u->base.info.name, (unsigned long long)u->log_size);
    uint64_t *bits = calloc(vfmig_bitmap_words(count), sizeof(*bits));
    if (!bits)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for a dirty bitmap");
    int r = user_report_range(u, fetch, iova, size, u->log_size, bits, reterr);
    for (uint64_t i = vfmig_bitmap_next(bits, count, 0); r == 0 && i < count;
         i = vfmig_bitmap_next(bits, count, i + 1))
        for (uint64_t page = i * ratio; page < pages && page < (i + 1) * ratio; page++)
            bitmap[page / 64] |= UINT64_C(1) << (page % 64);
    free(bits);
    return r;
}

static int report_part(struct user *u, user_report_fn fetch, uint64_t iova, uint64_t size,
                       uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr)
{
    return u->log_size > page_size && !vfmig_sabotage("log-size-ignored")
               ? report_large(u, fetch, iova, size, page_size, bitmap, reterr)
               : user_report_range(u, fetch, iova, size, page_size, bitmap, reterr);
}

static int report_map(struct user *u, user_report_fn fetch, const struct user_map *map,
                      uint64_t iova, uint64_t end, uint64_t page_size, uint64_t *bitmap,
                      struct vfmig_error *reterr)
{
    uint64_t from = map->iova > iova ? map->iova : iova;
    uint64_t to = map->iova + map->size < end ? map->iova + map->size : end;
    uint64_t first = (from - iova) / page_size, pages = (to - from + page_size - 1) / page_size;

    /* Its pages are marked as the messages are served. */
    if (map->by_message && atomic_load(&u->own))
        return 0;
    if (first % 64 == 0)
        return report_part(u, fetch, from, to - from, page_size, bitmap + first / 64, reterr);
    uint64_t *bits = calloc(vfmig_bitmap_words(pages), sizeof(*bits));
    if (!bits)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for a dirty bitmap");
    int r = report_part(u, fetch, from, to - from, page_size, bits, reterr);
    for (uint64_t i = vfmig_bitmap_next(bits, pages, 0); r == 0 && i < pages;
         i = vfmig_bitmap_next(bits, pages, i + 1))
        bitmap[(first + i) / 64] |= UINT64_C(1) << ((first + i) % 64);
    free(bits);
    return r;
}

int user_log_report(struct user *u, user_report_fn fetch, uint64_t iova, uint64_t size,
                    uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr)
{
    uint64_t end = iova + size;
    struct user_map map = {0};
    int r = 0;

    if (u->ours || u->maps_unknown || page_size == 0 || end < iova ||
        vfmig_sabotage("report-as-asked") || !next_map(u, iova, end, &map))
        return report_part(u, fetch, iova, size, page_size, bitmap, reterr);
    for (uint64_t at = iova; r == 0 && next_map(u, at, end, &map); at = map.iova + map.size)
        r = report_map(u, fetch, &map, iova, end, page_size, bitmap, reterr);
    return r;
}

void user_quirks_done(struct user *u)
{
    for (uint32_t i = 0; i < u->deferred_count; i++)
        irqs_free(u->deferred[i]);
    free(u->maps);
    free(u->copy);
    pthread_mutex_destroy(&u->maps_lock);
    pthread_mutex_destroy(&u->deferred_lock);
}
