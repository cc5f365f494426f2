/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_kernel.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FIRST_FD 100000 /* none of the process' */

/* ---- files ---- */

static int new_file(struct fake_kernel *f, enum fake_kind kind)
{
    for (int i = 0; i < 64; i++)
        if (f->files[i].kind == FAKE_FREE) {
            f->files[i] = (struct fake_file){.kind = kind};
            f->opened++;
            return FIRST_FD + i;
        }
    return -EMFILE;
}

int fake_new_data_fd(struct fake_kernel *f)
{
    int fd = new_file(f, FAKE_DATA);

    if (fd >= 0)
        f->files[fd - FIRST_FD].session = f->session;
    return fd;
}

static struct fake_file *file_of(struct fake_kernel *f, int fd)
{
    return fd >= FIRST_FD && fd < FIRST_FD + 64 && f->files[fd - FIRST_FD].kind
               ? &f->files[fd - FIRST_FD]
               : NULL;
}

uint32_t fake_open_files(const struct fake_kernel *f)
{
    return f->opened - f->closed;
}

static int fake_open(void *opaque, const char *path)
{
    struct fake_kernel *f = opaque;

    if (!strcmp(path, "/dev/vfio/7"))
        return new_file(f, FAKE_GROUP);
    if (!strcmp(path, "/dev/vfio/vfio"))
        return f->quirk.no_type1 ? -ENOENT : new_file(f, FAKE_CONTAINER);
    if (!strcmp(path, "/dev/iommu"))
        return f->quirk.no_iommufd ? -ENOENT : new_file(f, FAKE_IOMMUFD);
    return strcmp(path, "/dev/vfio/devices/vfio0") ? -ENOENT : new_file(f, FAKE_DEVICE);
}

static int fake_close(void *opaque, int fd)
{
    struct fake_kernel *f = opaque;
    struct fake_file *file = file_of(f, fd);

    if (!file)
        return -EBADF;
    pthread_mutex_lock(&f->calls);
    if (file->kind == FAKE_DEVICE) {
        fake_reset(f);
        f->bound = f->log_on = false;
    }
    if (file->kind == FAKE_CONTAINER || file->kind == FAKE_IOMMUFD)
        f->map_count = 0;
    file->kind = FAKE_FREE;
    pthread_mutex_unlock(&f->calls);
    pthread_mutex_lock(&f->lock);
    f->closed++;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    return 0;
}

/* ---- the group ---- */

static int group_ioctl(struct fake_kernel *f, unsigned long request, void *argument)
{
    switch (request) {
    case VFIO_GROUP_GET_STATUS: {
        struct vfio_group_status *status = argument;
        if (status->argsz < sizeof(*status))
            return -EINVAL;
        status->flags = (f->quirk.not_viable ? 0 : VFIO_GROUP_FLAGS_VIABLE) |
                        (f->container_used ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0);
        return 0;
    }
    case VFIO_GROUP_SET_CONTAINER: {
        struct fake_file *file = file_of(f, *(int *)argument);
        if (f->container_used || !file || file->kind != FAKE_CONTAINER)
            return -EINVAL;
        f->container_used = true;
        return 0;
    }
    case VFIO_GROUP_UNSET_CONTAINER:
        if (!f->container_used)
            return -EINVAL;
        f->container_used = false;
        f->detached++;
        return 0;
    case VFIO_GROUP_GET_DEVICE_FD:
        if (!f->iommu_set)
            return -EINVAL;
        return f->quirk.no_device || strcmp(argument, "0000:01:00.1") ? -ENODEV
                                                                      : new_file(f, FAKE_DEVICE);
    default:
        return -ENOTTY;
    }
}

/* ---- the device's description ---- */

/* Capabilities behind the fixed part: type, NDMA, what can be mapped. */
static uint32_t fill_caps(const struct fake_kernel *f, uint8_t *info)
{
    struct vfio_region_info_cap_type type = {
        {VFIO_REGION_INFO_CAP_TYPE, 1, 0}, KERNEL_REGION_MIGRATION, KERNEL_SUBTYPE_MIGRATION};
    struct vfio_info_cap_header ndma = {KERNEL_CAP_NDMA, 1, 0};
    struct {
        struct vfio_region_info_cap_sparse_mmap head;
        struct vfio_region_sparse_mmap_area area;
    } sparse = {{{VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, 0}, 1, 0}, {FAKE_PAGE, FAKE_PAGE}};
    uint32_t at = sizeof(struct vfio_region_info);

    if (f->quirk.ndma) {
        ndma.next = (uint16_t)(at + sizeof(ndma));
        memcpy(info + at, &ndma, sizeof(ndma));
        at += sizeof(ndma);
    }
    type.header.next = (uint16_t)(at + sizeof(type));
    if (f->quirk.caps_loop)
        type.header.id = sparse.head.header.id = 99, type.header.next = (uint16_t)at;
    if (f->quirk.caps_outside)
        type.header.id = 99, type.header.next = 60000;
    memcpy(info + at, &type, sizeof(type));
    at += sizeof(type);
    memcpy(info + at, &sparse, sizeof(sparse));
    return at + (uint32_t)sizeof(sparse);
}

static int get_region_info(struct fake_kernel *f, struct vfio_region_info *info)
{
    uint32_t fixed = sizeof(*info), room = info->argsz;

    if (room < fixed || info->index > FAKE_REGION)
        return -EINVAL;
    info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    info->size = 0;
    info->cap_offset = 0;
    info->offset = (uint64_t)info->index << 40;
    if (info->index == VFIO_PCI_VGA_REGION_INDEX)
        return -EINVAL;
    if (info->index == VFIO_PCI_BAR0_REGION_INDEX)
        info->size = sizeof(f->bar);
    if (info->index == VFIO_PCI_CONFIG_REGION_INDEX)
        info->size = sizeof(f->config);
    if (info->index != FAKE_REGION || f->features)
        return 0;
    uint8_t caps[256] = {0};
    uint32_t need = fill_caps(f, caps);
    info->size = FAKE_REGION_SIZE;
    info->flags |= VFIO_REGION_INFO_FLAG_CAPS | VFIO_REGION_INFO_FLAG_MMAP;
    info->argsz = f->quirk.caps_argsz ? f->quirk.caps_argsz : need;
    if (room < need)
        return 0;
    memcpy((uint8_t *)info + fixed, caps + fixed, need - fixed);
    info->cap_offset = fixed;
    return 0;
}

static int set_irqs(struct fake_kernel *f, const struct vfio_irq_set *set)
{
    const int32_t *fds = (const int32_t *)set->data;
    bool eventfds = set->flags & VFIO_IRQ_SET_DATA_EVENTFD;

    if (set->argsz < sizeof(*set) + (eventfds ? set->count * sizeof(int32_t) : 0) ||
        set->index != VFIO_PCI_MSIX_IRQ_INDEX)
        return -EINVAL;
    if (f->quirk.irq_result)
        return f->quirk.irq_result;
    if (!eventfds) { /* all off */
        f->irq_vectors = f->irq_attached = 0;
        return 0;
    }
    if (!f->irq_vectors)
        f->irq_vectors = set->start + set->count;
    if (set->start + set->count > f->irq_vectors) /* none are added while it is on */
        return -EINVAL;
    for (uint32_t i = 0; i < set->count; i++) {
        uint32_t bit = 1u << (set->start + i);
        f->irq_attached = fds[i] >= 0 ? f->irq_attached | bit : f->irq_attached & ~bit;
    }
    return 0;
}

static int device_ioctl(struct fake_kernel *f, unsigned long request, void *argument)
{
    switch (request) {
    case VFIO_DEVICE_GET_INFO: {
        struct vfio_device_info *info = argument;
        info->flags = f->quirk.no_pci ? 0 : VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
        info->num_regions = f->quirk.regions ? f->quirk.regions : FAKE_REGION + 1;
        info->num_irqs = VFIO_PCI_NUM_IRQS;
        return 0;
    }
    case VFIO_DEVICE_GET_REGION_INFO:
        return get_region_info(f, argument);
    case VFIO_DEVICE_GET_IRQ_INFO: {
        struct vfio_irq_info *info = argument;
        if (info->index == VFIO_PCI_ERR_IRQ_INDEX)
            return -EINVAL;
        info->count = f->quirk.irqs                            ? f->quirk.irqs
                      : info->index == VFIO_PCI_MSIX_IRQ_INDEX ? 8
                                                               : 0;
        return 0;
    }
    case VFIO_DEVICE_SET_IRQS:
        return set_irqs(f, argument);
    case VFIO_DEVICE_RESET:
        return f->quirk.reset_error ? f->quirk.reset_error : fake_reset(f);
    case KERNEL_FEATURE:
        return fake_feature(f, argument);
    case KERNEL_BIND_IOMMUFD: {
        struct kernel_bind *bind = argument;
        struct fake_file *file = file_of(f, bind->iommufd);
        if (bind->argsz < sizeof(*bind) || bind->flags || f->bound || !file ||
            file->kind != FAKE_IOMMUFD)
            return -EINVAL;
        f->bound = true;
        bind->ret_device = 1;
        return 0;
    }
    case KERNEL_ATTACH_PT: {
        const struct kernel_attach *attach = argument;
        bool known = (attach->table == 2 && f->has_ioas) || (attach->table == 3 && f->has_hwpt);
        if (attach->argsz < sizeof(*attach) || !f->bound || !known)
            return -EINVAL;
        f->attached = true;
        return 0;
    }
    case KERNEL_DETACH_PT:
        if (!f->attached)
            return -EINVAL;
        f->attached = false;
        f->detached++;
        return 0;
    default:
        return -ENOTTY;
    }
}

static int any_ioctl(struct fake_kernel *f, int fd, unsigned long request, void *argument)
{
    struct fake_file *file = file_of(f, fd);

    if (!file)
        return -EBADF;
    switch (file->kind) {
    case FAKE_GROUP:
        return group_ioctl(f, request, argument);
    case FAKE_CONTAINER:
        return fake_container(f, request, argument);
    case FAKE_IOMMUFD:
        return fake_iommufd(f, request, argument);
    case FAKE_DEVICE:
        return device_ioctl(f, request, argument);
    case FAKE_DATA:
        if (request != KERNEL_PRECOPY_INFO)
            return -ENOTTY;
        return file->session != f->session ? -ENODEV : fake_precopy_info(f, argument);
    default:
        return -EBADF;
    }
}

static int fake_ioctl(void *opaque, int fd, unsigned long request, void *argument)
{
    struct fake_kernel *f = opaque;

    pthread_mutex_lock(&f->calls);
    int r = any_ioctl(f, fd, request, argument);
    pthread_mutex_unlock(&f->calls);
    return r;
}

/* ---- data ---- */

static ssize_t data_read(void *opaque, int fd, void *data, size_t size)
{
    struct fake_kernel *f = opaque;

    pthread_mutex_lock(&f->calls);
    struct fake_file *file = file_of(f, fd);
    ssize_t n = file && file->kind == FAKE_DATA ? fake_read(f, file, data, size) : -EBADF;
    pthread_mutex_unlock(&f->calls);
    return n;
}

static ssize_t data_write(void *opaque, int fd, const void *data, size_t size)
{
    struct fake_kernel *f = opaque;

    pthread_mutex_lock(&f->calls);
    struct fake_file *file = file_of(f, fd);
    ssize_t n = file && file->kind == FAKE_DATA ? fake_write(f, file, data, size) : -EBADF;
    pthread_mutex_unlock(&f->calls);
    return n;
}

static ssize_t any_access(struct fake_kernel *f, int fd, uint8_t *read_to,
                          const uint8_t *write_from, size_t size, uint64_t offset)
{
    struct fake_file *file = file_of(f, fd);
    uint64_t index = offset >> 40, at = offset & ((UINT64_C(1) << 40) - 1);

    if (!file || file->kind != FAKE_DEVICE)
        return -EBADF;
    if (index == FAKE_REGION && !f->features)
        return fake_region(f, at, read_to, write_from, size);
    uint8_t *bytes = index == VFIO_PCI_BAR0_REGION_INDEX     ? f->bar
                     : index == VFIO_PCI_CONFIG_REGION_INDEX ? f->config
                                                             : NULL;
    uint64_t room = bytes == f->bar ? sizeof(f->bar) : sizeof(f->config);
    if (!bytes || at > room || size > room - at)
        return -EINVAL;
    bool dead = f->strict && bytes == f->bar && !fake_runs(f);
    if (read_to && dead)
        memset(read_to, 0xff, size);
    else if (read_to)
        memcpy(read_to, bytes + at, size);
    else if (write_from && !dead)
        memcpy(bytes + at, write_from, size);
    return (ssize_t)size;
}

static ssize_t device_access(struct fake_kernel *f, int fd, uint8_t *read_to,
                             const uint8_t *write_from, size_t size, uint64_t offset)
{
    pthread_mutex_lock(&f->calls);
    ssize_t n = any_access(f, fd, read_to, write_from, size, offset);
    pthread_mutex_unlock(&f->calls);
    return n;
}

static ssize_t fake_pread(void *opaque, int fd, void *data, size_t size, uint64_t offset)
{
    return device_access(opaque, fd, data, NULL, size, offset);
}

static ssize_t fake_pwrite(void *opaque, int fd, const void *data, size_t size, uint64_t offset)
{
    return device_access(opaque, fd, NULL, data, size, offset);
}

static int fake_poll(void *opaque, int fd, short events, int timeout_ms)
{
    struct fake_kernel *f = opaque;

    f->polls++;
    if (f->quirk.never_ready)
        return 0;
    f->quirk.busy_reads = 0;
    return events;
}

static int fake_nonblock(void *opaque, int fd)
{
    struct fake_file *file = file_of(opaque, fd);

    if (!file)
        return -EBADF;
    file->nonblock = true;
    return 0;
}

/* Memory of the process is mapped as it is. */
static int fake_mmap(void *opaque, int fd, uint64_t offset, size_t size, bool writable,
                     void **ret_at)
{
    struct fake_kernel *f = opaque;

    if (fd < FIRST_FD) {
        int r = vfmig_kernel_real.mmap(NULL, fd, offset, size, writable, ret_at);
        f->mmaps += r == 0;
        return r;
    }
    if (f->quirk.no_mmap || offset != ((uint64_t)FAKE_REGION << 40) + FAKE_PAGE ||
        size != FAKE_PAGE)
        return -EINVAL;
    f->mmaps++;
    *ret_at = f->window + FAKE_PAGE;
    return 0;
}

static int fake_munmap(void *opaque, void *at, size_t size)
{
    struct fake_kernel *f = opaque;

    f->munmaps++;
    return (uint8_t *)at == f->window + FAKE_PAGE ? 0 : vfmig_kernel_real.munmap(NULL, at, size);
}

const struct vfmig_kernel_calls fake_calls = {
    .open = fake_open,
    .close = fake_close,
    .ioctl = fake_ioctl,
    .read = data_read,
    .write = data_write,
    .pread = fake_pread,
    .pwrite = fake_pwrite,
    .poll = fake_poll,
    .nonblock = fake_nonblock,
    .mmap = fake_mmap,
    .munmap = fake_munmap,
};

/* ---- life ---- */

void fake_init(struct fake_kernel *f)
{
    static const uint8_t head[] = {0xb3, 0x15, 0x1e, 0x10, 0, 0, 0, 0, 0x42};

    memset(f, 0, sizeof(*f));
    f->features = VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY;
    f->device_log = f->data_size = f->running = true;
    f->state = VFMIG_STATE_RUNNING;
    f->bits = VFMIG_V1_RUNNING;
    pthread_mutex_init(&f->calls, NULL);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    f->window = calloc(1, FAKE_REGION_SIZE);
    memcpy(f->config, head, sizeof(head));
    f->config[0x2c] = 0x11;
    f->config[0x2e] = 0x22;
    for (uint32_t i = 0; i < FAKE_IMAGE; i++)
        f->image[i] = (uint8_t)(i * 7 + i / 251);
}

void fake_done(struct fake_kernel *f)
{
    free(f->window);
    pthread_mutex_destroy(&f->calls);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
}

void fake_release(struct fake_kernel *f)
{
    pthread_mutex_lock(&f->lock);
    f->released = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

void fake_await_stall(struct fake_kernel *f)
{
    pthread_mutex_lock(&f->lock);
    while (!f->stalled)
        pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
}

void fake_await_closed(struct fake_kernel *f)
{
    pthread_mutex_lock(&f->lock);
    while (f->closed < f->opened)
        pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
}
