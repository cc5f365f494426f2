/* SPDX-License-Identifier: BSD-3-Clause */
/* A device of the kernel: its life, and what both dialects have in common. */
#include "target/kernel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/sabotage.h"
#include "core/state.h"
#include "target/kernel_private.h"

#define DEFAULT_TIMEOUT_NS UINT64_C(5000000000)
#define DEFAULT_RESET_NS   UINT64_C(30000000000)
#define RESET_PAUSE_NS     10000000L /* between looks at the state after a reset */

static const char cdev_scheme[] = "vfio:", group_scheme[] = "vfio-group:";

/* ---- system calls ---- */

int kernel_ioctl(struct kernel *k, int fd, unsigned long request, void *argument)
{
    return k->calls->ioctl(k->opt.opaque, fd, request, argument);
}

int kernel_need(struct kernel *k, int fd, unsigned long request, void *argument, const char *what,
                struct vfmig_error *reterr)
{
    int r = kernel_ioctl(k, fd, request, argument);

    if (r == 0)
        return 0;
    if (r > 0)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_KERNEL, 0,
                               "%s: %s: the kernel can do %d only", k->base.info.name, what, r);
    return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0, "%s: %s: %s", k->base.info.name, what,
                           strerror(-r));
}

int kernel_open_file(struct kernel *k, const char *path, int *ret_fd, struct vfmig_error *reterr)
{
    int fd = k->calls->open(k->opt.opaque, path);

    if (fd < 0)
        return vfmig_error_set(reterr, fd, VFMIG_ORIGIN_KERNEL, 0, "%s: %s: %s", k->base.info.name,
                               path, strerror(-fd));
    *ret_fd = fd;
    return 0;
}

void kernel_close_file(struct kernel *k, int *fd)
{
    if (*fd >= 0)
        k->calls->close(k->opt.opaque, *fd);
    *fd = -1;
}

/* Beginning of every info struct that has capabilities; the third word is an index, or output. */
struct info_head {
    uint32_t argsz, flags, index;
};

int kernel_get_info(struct kernel *k, int fd, unsigned long request, uint32_t fixed, uint32_t index,
                    void **ret_info, uint32_t *ret_size, struct vfmig_error *reterr)
{
    uint32_t size = fixed;

    for (;;) {
        struct info_head *head = calloc(1, size);
        if (!head)
            return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                   "no memory for what a device is");
        head->argsz = size;
        head->index = index;
        int r = kernel_need(k, fd, request, head, "description", reterr);
        if (r < 0) {
            free(head);
            return r;
        }
        /* Once more with room for the capabilities; a kernel that then wants even more gets no
         * third chance, and one that wants nonsense none at all. */
        if (size > fixed || head->argsz <= size || head->argsz > KERNEL_MAX_INFO) {
            *ret_info = head;
            *ret_size = size;
            return 0;
        }
        size = head->argsz;
        free(head);
    }
}

/* ---- reset ---- */

int kernel_send_reset(struct kernel *k, uint32_t argument, struct vfmig_error *reterr)
{
    int r = kernel_need(k, k->device, VFIO_DEVICE_RESET, NULL, "reset", reterr);

    if (r < 0)
        return r;
    kernel_session_end(k);
    k->halfway = k->held = k->saved_before = k->saved = false;
    k->asked = VFMIG_STATE_RUNNING;
    return 0;
}

int kernel_reset(struct vfmig_target *t, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    int r = kernel_work_until(k, kernel_send_reset, 0, k->opt.reset_ns, reterr);

    if (r < 0 || t->info.features == 0 || vfmig_sabotage("kernel-reset-is-believed"))
        return r;
    return vfmig_target_await_running(t, k->opt.reset_ns, RESET_PAUSE_NS, reterr);
}

/* ---- life ---- */

bool vfmig_kernel_address(const char *address)
{
    return !strncmp(address, cdev_scheme, sizeof(cdev_scheme) - 1) ||
           !strncmp(address, group_scheme, sizeof(group_scheme) - 1);
}

/* With AUTO the feature dialect is taken if it is there: a driver has one of them. */
static int choose_dialect(struct kernel *k, struct vfmig_error *reterr)
{
    struct vfmig_target_info *info = &k->base.info;
    uint32_t feature = k->opt.dialect != VFMIG_DIALECT_REGION ? kernel_feature_probe(k) : 0;
    uint32_t region = k->opt.dialect != VFMIG_DIALECT_FEATURE ? kernel_region_probe(k) : 0;
    bool by_region = k->opt.dialect == VFMIG_DIALECT_REGION || (!feature && region);

    info->dialect = by_region ? VFMIG_DIALECT_REGION : VFMIG_DIALECT_FEATURE;
    info->features = by_region ? region : feature;
    info->quiet = !(info->features & VFMIG_FEATURE_NDMA) ? VFMIG_QUIET_NONE
                  : by_region                            ? VFMIG_QUIET_ALL
                                                         : VFMIG_QUIET_P2P;
    info->max_data_xfer = VFMIG_MAX_DATA_XFER;
    k->base.ops = by_region ? &kernel_region_ops : &kernel_feature_ops;
    kernel_choose_log(k);
    if (info->features || k->opt.dialect == VFMIG_DIALECT_AUTO)
        return 0;
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                           "%s does not migrate in the %s dialect", info->name,
                           by_region ? "region" : "feature");
}

void kernel_free(struct kernel *k)
{
    kernel_session_end(k);
    kernel_close_file(k, &k->earlier_fd);
    if (k->window)
        k->calls->munmap(k->opt.opaque, k->window, (size_t)k->window_size);
    /* The device is let go before the memory that it reaches. */
    if (k->iommu)
        k->iommu->detach(k);
    kernel_close_file(k, &k->device);
    kernel_close_file(k, &k->group);
    kernel_close_file(k, &k->container);
    kernel_close_file(k, &k->iommufd);
    kernel_forget_maps(k);
    kernel_forget_rests(k);
    pthread_mutex_destroy(&k->maps_lock);
    pthread_mutex_destroy(&k->worker.lock);
    pthread_cond_destroy(&k->worker.changed);
    free(k);
}

void kernel_close(struct vfmig_target *t)
{
    struct kernel *k = (struct kernel *)t;

    if (kernel_worker_done(k))
        kernel_free(k);
}

static struct kernel *new_kernel(const char *address, const struct vfmig_kernel_options *options)
{
    struct kernel *k = calloc(1, sizeof(*k));

    if (!k)
        return NULL;
    if (options)
        k->opt = *options;
    if (k->opt.timeout_ns == 0)
        k->opt.timeout_ns = DEFAULT_TIMEOUT_NS;
    if (k->opt.reset_ns == 0)
        k->opt.reset_ns = DEFAULT_RESET_NS;
    k->calls = k->opt.calls ? k->opt.calls : &vfmig_kernel_real;
    k->device = k->group = k->container = k->iommufd = k->data_fd = k->earlier_fd = -1;
    k->asked = VFMIG_STATE_RUNNING;
    snprintf(k->base.info.name, sizeof(k->base.info.name), "%s", address);
    pthread_mutex_init(&k->maps_lock, NULL);
    return k;
}

int vfmig_kernel_open(const char *address, const struct vfmig_kernel_options *options,
                      struct vfmig_target **ret_target, struct vfmig_error *reterr)
{
    bool by_group = !strncmp(address, group_scheme, sizeof(group_scheme) - 1);

    if (!vfmig_kernel_address(address))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "'%s' is neither vfio:PATH nor vfio-group:N:NAME", address);
    struct kernel *k = new_kernel(address, options);
    if (!k)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a target");
    int r = kernel_worker_init(k, reterr);
    if (r == 0)
        r = by_group ? kernel_group_attach(k, address + sizeof(group_scheme) - 1, reterr)
                     : kernel_cdev_attach(k, address + sizeof(cdev_scheme) - 1, reterr);
    if (r == 0)
        r = kernel_describe(k, reterr);
    if (r == 0)
        r = choose_dialect(k, reterr);
    if (r == 0 && k->opt.incoming && k->base.info.dialect == VFMIG_DIALECT_REGION &&
        k->base.info.features)
        r = kernel_try_halt(k, reterr);
    if (r < 0) {
        kernel_close(&k->base);
        return r;
    }
    *ret_target = &k->base;
    return 0;
}
