/* SPDX-License-Identifier: BSD-3-Clause */
/* This process' writes, by write protection of its page tables (userfaultfd). Two methods:
 *
 *   scan     the kernel takes the fault itself and remembers the page (WP_ASYNC); PAGEMAP_SCAN
 *            reads the written pages and protects them again in one step.
 *   handler  each first write to a page waits for a thread of ours, which marks and lets go. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "dirty/private.h"

/* uAPI that released headers of our oldest distribution lack. */
#define UFFD_WP_UNPOPULATED UINT64_C(0x2000)
#define UFFD_WP_ASYNC       UINT64_C(0x8000)

struct page_region {
    uint64_t start, end, categories;
};

struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define PAGEMAP_SCAN_CALL _IOWR('f', 16, struct scan_arg)
#define SCAN_PROTECT      1u /* PM_SCAN_WP_MATCHING */
#define SCAN_CHECK_ASYNC  2u /* PM_SCAN_CHECK_WPASYNC */
#define SCAN_WRITTEN      2u /* PAGE_IS_WRITTEN */
#define SCAN_REGIONS      512u

struct wp {
    struct vfmig_tracker base;
    enum vfmig_wp_method method;
    int uffd;
    int pagemap;              /* scan */
    int stop_event;           /* handler */
    pthread_t thread;         /* handler */
    pthread_mutex_t lock;     /* handler: mark and let go, or take and protect, as one step */
    struct vfmig_dirty_map log; /* memory map of the last start; its bits are the handler's log */
    bool running;
};

static int failed(const char *what, struct vfmig_error *reterr)
{
    int err = errno;
    return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "%s: %s", what, strerror(err));
}

static uint64_t wanted_features(enum vfmig_wp_method method)
{
    uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

    return method == VFMIG_WP_SCAN ? features | UFFD_WP_UNPOPULATED | UFFD_WP_ASYNC : features;
}

/* The handler needs the kernel's own accesses to fault too (a recv into guest memory), which an
 * unprivileged process may not have. */
static int open_uffd(enum vfmig_wp_method method)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd < 0 && errno == EPERM) {
        int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (dev >= 0) {
            fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
            close(dev);
        }
        if (fd < 0 && method == VFMIG_WP_SCAN)
            fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        if (fd < 0)
            return -EPERM;
    }
    if (fd < 0)
        return -ENOTSUP;
    struct uffdio_api api = {.api = UFFD_API, .features = wanted_features(method)};
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        return -ENOTSUP;
    }
    return fd;
}

int vfmig_tracker_wp_probe(enum vfmig_wp_method method, enum vfmig_wp_method *ret_method)
{
    enum vfmig_wp_method first = method == VFMIG_WP_AUTO ? VFMIG_WP_SCAN : method;
    enum vfmig_wp_method last = method == VFMIG_WP_AUTO ? VFMIG_WP_HANDLER : method;
    int fd = -ENOTSUP;

    for (enum vfmig_wp_method m = first; m <= last; m++) {
        fd = open_uffd(m);
        if (fd >= 0) {
            close(fd);
            if (ret_method)
                *ret_method = m;
            return 0;
        }
    }
    return fd;
}

static int protect(const struct wp *wp, const void *start, uint64_t size, bool on)
{
    struct uffdio_writeprotect arg = {
        .range = {.start = (uintptr_t)start, .len = size},
        .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };

    while (ioctl(wp->uffd, UFFDIO_WRITEPROTECT, &arg) < 0)
        if (errno != EAGAIN && errno != EINTR)
            return -1;
    return 0;
}

/* One run of pages that a scan found. */
static void add_region(struct vfmig_dirty_map *map, uint32_t i, const struct page_region *region)
{
    uint64_t base = (uintptr_t)map->memory.blocks[i].host;
    uint64_t first = (region->start - base) / VFMIG_PAGE_SIZE;

    vfmig_bitmap_set_range_atomic(map->bitmaps[i], first,
                                  (region->end - region->start) / VFMIG_PAGE_SIZE);
}

/* Written pages of block i go into map and are protected again. */
static int scan_block(struct wp *wp, uint32_t i, struct vfmig_dirty_map *map,
                      struct vfmig_error *reterr)
{
    const struct vfmig_ram_block *block = &wp->log.memory.blocks[i];
    struct page_region regions[SCAN_REGIONS];
    uint64_t end = (uintptr_t)block->host + block->size;
    struct scan_arg arg = {
        .size = sizeof(arg),
        .flags = SCAN_PROTECT | SCAN_CHECK_ASYNC,
        .start = (uintptr_t)block->host,
        .end = end,
        .vec = (uintptr_t)regions,
        .vec_len = SCAN_REGIONS,
        .category_mask = SCAN_WRITTEN,
        .return_mask = SCAN_WRITTEN,
    };

    if (vfmig_sabotage("scan-forgets-page"))
        arg.start += VFMIG_PAGE_SIZE;
    while (arg.start < end) {
        arg.walk_end = 0;
        int n = ioctl(wp->pagemap, PAGEMAP_SCAN_CALL, &arg);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || arg.walk_end <= arg.start)
            return failed("PAGEMAP_SCAN", reterr);
        for (int r = 0; r < n; r++)
            add_region(map, i, &regions[r]);
        arg.start = arg.walk_end;
    }
    return 0;
}

/* The handler's log of block i goes into map and its pages are protected again, word by word. */
static int take_block(struct wp *wp, uint32_t i, struct vfmig_dirty_map *map,
                      struct vfmig_error *reterr)
{
    const struct vfmig_ram_block *block = &wp->log.memory.blocks[i];
    uint64_t words = vfmig_bitmap_words(vfmig_block_pages(block));

    for (uint64_t w = 0; w < words; w++) {
        int r = 0;
        if (!__atomic_load_n(&wp->log.bitmaps[i][w], __ATOMIC_RELAXED))
            continue; /* a write that waits for its mark right now belongs to the next sync */
        pthread_mutex_lock(&wp->lock);
        uint64_t bits = vfmig_bitmap_take_word(&wp->log.bitmaps[i][w]);
        for (uint64_t at = vfmig_bitmap_next(&bits, 64, 0); at < 64 && r == 0;) {
            uint64_t to = vfmig_bitmap_next_zero(&bits, 64, at);
            r = protect(wp, (char *)block->host + (w * 64 + at) * VFMIG_PAGE_SIZE,
                        (to - at) * VFMIG_PAGE_SIZE, true);
            at = vfmig_bitmap_next(&bits, 64, to);
        }
        pthread_mutex_unlock(&wp->lock);
        if (r < 0)
            return failed("write protection", reterr);
        vfmig_dirty_map_merge(map, i, w * 64, &bits,
                              vfmig_block_pages(block) - w * 64 < 64
                                  ? vfmig_block_pages(block) - w * 64
                                  : 64);
    }
    return 0;
}

static void handle_fault(struct wp *wp, uint64_t address)
{
    for (uint32_t i = 0; i < wp->log.memory.block_count; i++) {
        const struct vfmig_ram_block *block = &wp->log.memory.blocks[i];
        uint64_t offset = address - (uintptr_t)block->host;
        if (address < (uintptr_t)block->host || offset >= block->size)
            continue;
        uint64_t page = offset / VFMIG_PAGE_SIZE;
        pthread_mutex_lock(&wp->lock);
        vfmig_bitmap_set_range_atomic(wp->log.bitmaps[i], page, 1);
        protect(wp, (char *)block->host + page * VFMIG_PAGE_SIZE, VFMIG_PAGE_SIZE, false);
        pthread_mutex_unlock(&wp->lock);
        return;
    }
}

static void *handler(void *arg)
{
    struct wp *wp = arg;
    struct pollfd pfds[2] = {{.fd = wp->uffd, .events = POLLIN},
                             {.fd = wp->stop_event, .events = POLLIN}};
    struct uffd_msg msgs[16];

    for (;;) {
        if (poll(pfds, 2, -1) < 0 && errno != EINTR)
            return NULL;
        if (pfds[1].revents)
            return NULL;
        ssize_t n = read(wp->uffd, msgs, sizeof(msgs));
        for (ssize_t i = 0; n > 0 && i < n / (ssize_t)sizeof(msgs[0]); i++)
            if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
                handle_fault(wp, msgs[i].arg.pagefault.address & ~(uint64_t)(VFMIG_PAGE_SIZE - 1));
    }
}

static int close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return 0;
}

/* Closing the userfaultfd lets every protected page and every waiting writer go. */
static int wp_stop(struct vfmig_tracker *t, struct vfmig_error *reterr)
{
    struct wp *wp = (struct wp *)t;

    if (wp->running && wp->method == VFMIG_WP_HANDLER) {
        uint64_t one = 1;
        /* Unregistering first: no write waits for a thread that is gone. */
        for (uint32_t i = 0; i < wp->log.memory.block_count; i++) {
            struct uffdio_range range = {.start = (uintptr_t)wp->log.memory.blocks[i].host,
                                         .len = wp->log.memory.blocks[i].size};
            ioctl(wp->uffd, UFFDIO_UNREGISTER, &range);
        }
        if (write(wp->stop_event, &one, sizeof(one)) == sizeof(one))
            pthread_join(wp->thread, NULL);
    }
    wp->running = false;
    close_fd(&wp->uffd);
    close_fd(&wp->pagemap);
    close_fd(&wp->stop_event);
    return 0;
}

static int register_block(struct wp *wp, const struct vfmig_ram_block *block,
                          struct vfmig_error *reterr)
{
    struct uffdio_register reg = {
        .range = {.start = (uintptr_t)block->host, .len = block->size},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };

    if (!block->host)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a memory block is not mapped");
    if (ioctl(wp->uffd, UFFDIO_REGISTER, &reg) < 0)
        return failed("userfaultfd on guest memory", reterr);
    if (protect(wp, block->host, block->size, true) < 0)
        return failed("write protection", reterr);
    return 0;
}

static int open_fds(struct wp *wp, struct vfmig_error *reterr)
{
    wp->uffd = open_uffd(wp->method);
    if (wp->uffd < 0) {
        errno = -wp->uffd;
        return failed("userfaultfd", reterr);
    }
    if (wp->method == VFMIG_WP_SCAN) {
        wp->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        return wp->pagemap < 0 ? failed("/proc/self/pagemap", reterr) : 0;
    }
    wp->stop_event = eventfd(0, EFD_CLOEXEC);
    return wp->stop_event < 0 ? failed("eventfd", reterr) : 0;
}

static int wp_start(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                    struct vfmig_error *reterr)
{
    struct wp *wp = (struct wp *)t;

    wp_stop(t, NULL);
    vfmig_dirty_map_done(&wp->log);
    int r = vfmig_dirty_map_init(&wp->log, memory, reterr);
    if (r == 0)
        r = open_fds(wp, reterr);
    if (r == 0 && wp->method == VFMIG_WP_HANDLER) {
        /* Before the first protected page: writers may be running. */
        int err = pthread_create(&wp->thread, NULL, handler, wp);
        if (err)
            r = vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "thread: %s", strerror(err));
    }
    wp->running = r == 0;
    for (uint32_t i = 0; r == 0 && i < memory->block_count; i++)
        r = register_block(wp, &memory->blocks[i], reterr);
    if (r < 0)
        wp_stop(t, NULL);
    return r;
}

static int wp_sync(struct vfmig_tracker *t, struct vfmig_dirty_map *map, struct vfmig_error *reterr)
{
    struct wp *wp = (struct wp *)t;
    int r = vfmig_dirty_check(&wp->log.memory, wp->running, map, reterr);

    for (uint32_t i = 0; r == 0 && i < wp->log.memory.block_count; i++)
        r = wp->method == VFMIG_WP_SCAN ? scan_block(wp, i, map, reterr)
                                        : take_block(wp, i, map, reterr);
    return r;
}

static void wp_free(struct vfmig_tracker *t)
{
    struct wp *wp = (struct wp *)t;

    wp_stop(t, NULL);
    vfmig_dirty_map_done(&wp->log);
    pthread_mutex_destroy(&wp->lock);
    free(wp);
}

static const struct vfmig_tracker_ops scan_ops = {
    .name = "pagemap",
    .start = wp_start,
    .sync = wp_sync,
    .stop = wp_stop,
    .free = wp_free,
};

static const struct vfmig_tracker_ops handler_ops = {
    .name = "wp",
    .start = wp_start,
    .sync = wp_sync,
    .stop = wp_stop,
    .free = wp_free,
};

int vfmig_tracker_wp_new(enum vfmig_wp_method method, struct vfmig_tracker **ret_tracker,
                         struct vfmig_error *reterr)
{
    enum vfmig_wp_method usable;
    int r = vfmig_tracker_wp_probe(method, &usable);

    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0,
                               "this kernel cannot track the process' own writes: %s",
                               r == -EPERM ? "userfaultfd is not permitted"
                                           : "userfaultfd has no write protection for memfds");
    struct wp *wp = calloc(1, sizeof(*wp));
    if (!wp)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a tracker");
    wp->base.ops = usable == VFMIG_WP_SCAN ? &scan_ops : &handler_ops;
    wp->base.atomic = true;
    wp->base.slow_stop = true;
    wp->method = usable;
    wp->uffd = wp->pagemap = wp->stop_event = -1;
    pthread_mutex_init(&wp->lock, NULL);
    *ret_tracker = &wp->base;
    return 0;
}
