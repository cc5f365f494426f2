/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's DMA map, the gate, and DMA through both. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/guard.h"
#include "base/sabotage.h"
#include "device/internal.h"

/* DMA goes on all the time: without preference for the writer an unmap or a report of the log might
 * wait for ever. */
void dma_lock_init(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attr;

    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(lock, &attr);
    pthread_rwlockattr_destroy(&attr);
}

void dma_init(struct vfmig_device *dev)
{
    dma_lock_init(&dev->dma.lock);
    atomic_init(&dev->gate, 0);
    dev->gate_told = true;
}

void dma_done(struct vfmig_device *dev)
{
    dma_map_clear(dev);
    free(dev->dma.list);
    pthread_rwlock_destroy(&dev->dma.lock);
}

/* ---- the map -------------------------------------------------------------------------------- */

/* Index of the first region that ends after iova; count when there is none. */
static uint32_t find(const struct dma_map *map, uint64_t iova)
{
    uint32_t low = 0, high = map->count;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (map->list[mid].iova + (map->list[mid].size - 1) < iova)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static int map_file(const struct vfmig_user_dma_map *req, int fd, struct dma_region *region)
{
    uint64_t skip = req->offset % PAGE;
    int prot = (req->flags & VFMIG_USER_DMA_F_READ ? PROT_READ : 0) |
               (req->flags & VFMIG_USER_DMA_F_WRITE ? PROT_WRITE : 0);

    if (req->size > SIZE_MAX - skip || req->offset > INT64_MAX)
        return -EINVAL;
    region->map_size = (size_t)(req->size + skip);
    region->map = mmap(NULL, region->map_size, prot ? prot : PROT_READ, MAP_SHARED | MAP_NORESERVE,
                       fd, (off_t)(req->offset - skip));
    if (region->map == MAP_FAILED)
        return -errno;
    vfmig_guard_arm();
    madvise(region->map, region->map_size, MADV_DONTFORK);
    region->host = (uint8_t *)region->map + skip;
    return 0;
}

int dma_map_add(struct vfmig_device *dev, const struct vfmig_user_dma_map *req, int fd)
{
    struct dma_map *map = &dev->dma;
    struct dma_region region = {.iova = req->address, .size = req->size, .prot = req->flags};
    uint32_t at = find(map, req->address);

    if (at < map->count && map->list[at].iova <= req->address + (req->size - 1))
        return vfmig_sabotage("overlap-mapped") ? 0 : -EEXIST;
    if (map->count == VFMIG_MAX_DMA_REGIONS)
        return -ENOSPC;
    if (map->count == map->room) {
        uint32_t room = map->room ? map->room * 2 : 16;
        struct dma_region *list = malloc(room * sizeof(*list));
        if (!list)
            return -ENOMEM;
        pthread_rwlock_wrlock(&map->lock);
        if (map->count)
            memcpy(list, map->list, map->count * sizeof(*list));
        free(map->list);
        map->list = list;
        map->room = room;
        pthread_rwlock_unlock(&map->lock);
    }
    int r = fd >= 0 ? map_file(req, fd, &region) : 0;
    if (r == 0)
        r = log_mapped(dev, req->address, req->size);
    if (r < 0) {
        if (region.host)
            munmap(region.map, region.map_size);
        return r;
    }
    pthread_rwlock_wrlock(&map->lock);
    memmove(&map->list[at + 1], &map->list[at], (map->count - at) * sizeof(region));
    map->list[at] = region;
    map->count++;
    pthread_rwlock_unlock(&map->lock);
    return 0;
}

static void release(struct dma_map *map, const struct dma_region *region)
{
    if (region->host)
        munmap(region->map, region->map_size);
}

int dma_map_remove(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_map *map = &dev->dma;
    uint32_t at = find(map, iova);

    if (at == map->count || map->list[at].iova != iova || map->list[at].size != size)
        return -ENOENT;
    /* The writer's lock waits for every copy under way: afterwards no access is in flight. */
    pthread_rwlock_wrlock(&map->lock);
    release(map, &map->list[at]);
    map->count--;
    memmove(&map->list[at], &map->list[at + 1], (map->count - at) * sizeof(map->list[0]));
    pthread_rwlock_unlock(&map->lock);
    return 0;
}

/* On the serving thread, which alone changes the map. */
bool dma_map_touches(const struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    const struct dma_map *map = &dev->dma;
    uint32_t at = find(map, iova);

    return at < map->count && map->list[at].iova <= iova + (size - 1);
}

void dma_map_clear(struct vfmig_device *dev)
{
    struct dma_map *map = &dev->dma;

    pthread_rwlock_wrlock(&map->lock);
    for (uint32_t i = 0; i < map->count; i++)
        release(map, &map->list[i]);
    map->count = 0;
    pthread_rwlock_unlock(&map->lock);
}

void dma_by_message(struct vfmig_device *dev, bool all)
{
    /* The writer's lock waits for copies under way: the client's own dirty log misses none. */
    pthread_rwlock_wrlock(&dev->dma.lock);
    dev->dma.all_by_message = all;
    pthread_rwlock_unlock(&dev->dma.lock);
}

uint32_t dma_map_entries(struct vfmig_device *dev, uint64_t *next, void *entries, uint32_t room,
                         bool *ret_more)
{
    const struct dma_map *map = &dev->dma;
    struct vfmig_user_map_entry *to = entries;
    uint32_t count = 0, i = find(map, *next);

    for (; i < map->count && count < room; i++, count++) {
        const struct dma_region *region = &map->list[i];
        to[count] = (struct vfmig_user_map_entry){
            .iova = region->iova,
            .size = region->size,
            .flags = region->prot | (region->host ? 0 : VFMIG_USER_MAP_F_BY_MESSAGE),
        };
    }
    *ret_more = i < map->count;
    if (*ret_more)
        *next = map->list[i].iova;
    return count;
}

/* ---- the gate ------------------------------------------------------------------------------- */

void dma_gate_shut(struct vfmig_device *dev)
{
    if (vfmig_sabotage("dma-under-ndma"))
        return;
    atomic_fetch_or(&dev->gate, GATE_SHUT_BIT);
}

void dma_gate_open(struct vfmig_device *dev)
{
    atomic_fetch_and(&dev->gate, ~GATE_SHUT_BIT);
}

void dma_gate_cut(struct vfmig_device *dev)
{
    uint_fast64_t word = atomic_load(&dev->gate), next;

    do {
        next = GATE_SHUT_BIT | ((word + GATE_GEN_ONE) & GATE_GEN);
    } while (!atomic_compare_exchange_weak(&dev->gate, &word, next));
    message_abort(dev, -ECANCELED);
    /* Copies under way look at the generation first; wait for those that are past it. */
    pthread_rwlock_wrlock(&dev->dma.lock);
    pthread_rwlock_unlock(&dev->dma.lock);
}

int vfmig_device_dma_begin(struct vfmig_device *dev, struct vfmig_dma *ret_dma)
{
    uint_fast64_t word = atomic_load(&dev->gate);

    do {
        if (word & GATE_SHUT_BIT) {
            COUNT(dev, dma_refused);
            return -EAGAIN;
        }
    } while (!atomic_compare_exchange_weak(&dev->gate, &word, word + 1));
    ret_dma->dev = dev;
    ret_dma->generation = word & GATE_GEN;
    return 0;
}

void vfmig_dma_end(struct vfmig_dma *dma)
{
    struct vfmig_device *dev = dma->dev;

    if (!dev)
        return;
    uint_fast64_t word = atomic_load(&dev->gate);
    do {
        if ((word & GATE_GEN) != dma->generation)
            return;
    } while (!atomic_compare_exchange_weak(&dev->gate, &word, word - 1));
    dma->dev = NULL;
    if ((word & GATE_SHUT_BIT) && (word & GATE_COUNT) == 1)
        server_wake(dev);
}

/* ---- access --------------------------------------------------------------------------------- */

static int copy_piece(struct vfmig_device *dev, const struct dma_region *region, bool write,
                      uint64_t iova, uint8_t *buf, uint64_t size)
{
    uint8_t *host = region->host + (iova - region->iova);
    int r = write ? vfmig_guard_copy(host, buf, size) : vfmig_guard_copy(buf, host, size);

    /* After the bytes: who takes the bit before it reads them must not miss them. A copy that
     * failed in the middle may have written too. */
    if (write)
        log_mark(dev, iova, size);
    return r;
}

int dma_access(struct vfmig_device *dev, uint64_t generation, bool write, uint64_t *iova,
               uint8_t **buf, uint64_t *size, uint64_t *ret_piece)
{
    struct dma_map *map = &dev->dma;
    uint32_t need = write ? VFMIG_USER_DMA_F_WRITE : VFMIG_USER_DMA_F_READ;
    int r = 0;

    if (*size && *iova + (*size - 1) < *iova)
        r = -EFAULT;
    pthread_rwlock_rdlock(&map->lock);
    while (r == 0 && *size) {
        uint32_t at = find(map, *iova);
        const struct dma_region *region = at < map->count ? &map->list[at] : NULL;
        if ((atomic_load(&dev->gate) & GATE_GEN) != generation) {
            r = -ECANCELED;
            break;
        }
        if (!region || region->iova > *iova || !(region->prot & need)) {
            r = -EFAULT;
            break;
        }
        uint64_t piece = region->size - (*iova - region->iova);
        piece = piece < *size ? piece : *size;
        if (!region->host || map->all_by_message) {
            *ret_piece = piece;
            r = 1;
            break;
        }
        r = copy_piece(dev, region, write, *iova, *buf, piece);
        *iova += piece;
        *buf += piece;
        *size -= piece;
    }
    pthread_rwlock_unlock(&map->lock);
    if (r == -EFAULT)
        COUNT(dev, dma_faults);
    return r;
}

static int access_wait(struct vfmig_dma *dma, bool write, uint64_t iova, uint8_t *buf,
                       uint64_t size)
{
    uint64_t piece;
    int r = dma_access(dma->dev, dma->generation, write, &iova, &buf, &size, &piece);

    if (r <= 0)
        return r;
    return server_on_thread(dma->dev) ? -EDEADLK : message_wait(dma, write, iova, buf, size);
}

int vfmig_dma_read(struct vfmig_dma *dma, uint64_t iova, void *buf, size_t size)
{
    return access_wait(dma, false, iova, buf, size);
}

int vfmig_dma_write(struct vfmig_dma *dma, uint64_t iova, const void *buf, size_t size)
{
    return access_wait(dma, true, iova, (uint8_t *)buf, size);
}

static int access_async(struct vfmig_dma *dma, bool write, uint64_t iova, uint8_t *buf,
                        uint64_t size, void (*done)(void *, int), void *user)
{
    uint64_t piece;
    int r = dma_access(dma->dev, dma->generation, write, &iova, &buf, &size, &piece);

    return r <= 0 ? r : message_start(dma, write, iova, buf, size, done, user);
}

int vfmig_dma_read_async(struct vfmig_dma *dma, uint64_t iova, void *buf, size_t size,
                         void (*done)(void *user, int err), void *user)
{
    return access_async(dma, false, iova, buf, size, done, user);
}

int vfmig_dma_write_async(struct vfmig_dma *dma, uint64_t iova, const void *buf, size_t size,
                          void (*done)(void *user, int err), void *user)
{
    return access_async(dma, true, iova, (uint8_t *)buf, size, done, user);
}

static int one_shot(struct vfmig_device *dev, bool write, uint64_t iova, void *buf, size_t size)
{
    struct vfmig_dma dma;
    int r = vfmig_device_dma_begin(dev, &dma);

    if (r == 0) {
        r = access_wait(&dma, write, iova, buf, size);
        vfmig_dma_end(&dma);
    }
    return r;
}

int vfmig_device_dma_read(struct vfmig_device *dev, uint64_t iova, void *buf, size_t size)
{
    return one_shot(dev, false, iova, buf, size);
}

int vfmig_device_dma_write(struct vfmig_device *dev, uint64_t iova, const void *buf, size_t size)
{
    return one_shot(dev, true, iova, (void *)buf, size);
}
