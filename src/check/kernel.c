/* SPDX-License-Identifier: BSD-3-Clause */
/* The steps of steps.def on a device of the kernel's VFIO (docs/kernel-targets.md). Only what waits
 * for a state or a reset has a deadline: nothing ends another call that a driver does not end. */
#include "check/kernel.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check/port.h"
#include "target/kernel_uapi.h"
#include "wire/proto.h"

#define NS_PER_MS UINT64_C(1000000)

struct check_kernel {
    struct check_port base;
    char address[128];
    struct vfmig_target *target; /* NULL: closed */
};

static const struct vfmig_kernel_calls *calls_used;
static void *calls_opaque;

void check_kernel_use(const struct vfmig_kernel_calls *calls, void *opaque)
{
    calls_used = calls;
    calls_opaque = opaque;
}

static int open_target(struct check_kernel *k, struct vfmig_error *reterr)
{
    const struct vfmig_kernel_options options = {
        .timeout_ns = k->base.deadline_ms * NS_PER_MS, .calls = calls_used, .opaque = calls_opaque};

    return vfmig_kernel_open(k->address, &options, &k->target, reterr);
}

static void close_target(struct check_kernel *k)
{
    if (k->target)
        k->target->ops->close(k->target);
    k->target = NULL;
}

/* A call that is late is a device that hangs. */
static int64_t judged(struct check_kernel *k, int64_t r)
{
    if (r != -ETIMEDOUT)
        return r;
    check_port_trouble(&k->base, CHECK_HUNG, "a call into the driver did not return in time");
    return -ENOTCONN;
}

/* ---- steps ---- */

static int64_t connect_again(struct check_kernel *k)
{
    struct vfmig_error err = {0};

    close_target(k);
    k->base.trouble = CHECK_FINE;
    if (open_target(k, &err) == 0)
        return 0;
    check_port_trouble(&k->base, err.code == -ETIMEDOUT ? CHECK_HUNG : CHECK_DIED, "%s", err.text);
    return -ENOTCONN;
}

/* Ready without anything to give, or room to take, as often as that: it hangs. */
#define IDLE_WAITS 64u

static int64_t data(struct check_kernel *k, struct check_step *step, bool write)
{
    size_t size = (size_t)step->arg[0], at = 0;
    unsigned idle = 0;

    if (step->arg[0] > CHECK_MAX_DATA || (!write && size > step->room_size))
        return -E2BIG;
    for (;;) {
        ssize_t n =
            write ? vfmig_kernel_write_data(k->target, (const char *)step->data + at, size - at)
                  : vfmig_kernel_read_data(k->target, step->room, size);
        if (n == -EAGAIN) {
            int r = ++idle < IDLE_WAITS ? vfmig_kernel_await_data(k->target, write) : -ETIMEDOUT;
            if (r < 0)
                return r;
            continue;
        }
        if (n < 0)
            return n;
        if ((size_t)n > size - at)
            return -EPROTO; /* more than it was given, or had room for */
        at += (size_t)n;
        if (!write || n == 0 || at >= size)
            return (int64_t)at;
        idle = 0;
    }
}

/* The kernel has no such feature: the question is one of the session's descriptor. Where there is
 * none there is nobody to ask, which is as good as refused. */
static int64_t precopy_info(struct check_kernel *k, struct check_step *step)
{
    struct vfmig_user_feature_precopy info;
    uint64_t initial, dirty;
    int r =
        vfmig_kernel_precopy_info(k->target, sizeof(struct kernel_precopy_info), &initial, &dirty);

    if (r < 0)
        return r == -EBADF ? -EINVAL : r;
    info = (struct vfmig_user_feature_precopy){.initial_bytes = initial, .dirty_bytes = dirty};
    uint32_t n = step->room_size < sizeof(info) ? step->room_size : (uint32_t)sizeof(info);
    memcpy(step->room, &info, n);
    return n;
}

/* Those whose data has addresses of this process in it are said as steps of the log only, and
 * states as states, so that no descriptor is lost. */
static int64_t feature(struct check_kernel *k, struct check_step *step)
{
    uint32_t id = (uint32_t)step->arg[0] & 0xffff, size;
    uint8_t buffer[64] = {0};
    bool get = step->kind == CHECK_STEP_FEATURE_GET;
    uint32_t sent = (uint32_t)(get ? step->arg[2] : step->arg[1]);

    if (step->kind == CHECK_STEP_FEATURE_PROBE)
        return vfmig_kernel_feature(k->target, sizeof(struct kernel_feature),
                                    (uint32_t)step->arg[0] | KERNEL_FEATURE_PROBE, NULL, 0);
    if (get && id == VFMIG_USER_F_PRECOPY_INFO)
        return precopy_info(k, step);
    size = get && step->arg[1] > sent ? (uint32_t)step->arg[1] : sent;
    if (id == KERNEL_F_LOG_START || id == KERNEL_F_LOG_REPORT || size > 32 || sent > size ||
        (!get && id == KERNEL_F_DEVICE_STATE && size >= sizeof(struct kernel_state)))
        return -ENOTSUP;
    if (sent)
        memcpy(buffer, step->data, sent);
    int r =
        vfmig_kernel_feature(k->target, (uint32_t)sizeof(struct kernel_feature) + size,
                             id | (get ? KERNEL_FEATURE_GET : KERNEL_FEATURE_SET), buffer, size);
    if (r < 0 || !get)
        return r;
    size = size < step->room_size ? size : step->room_size;
    memcpy(step->room, buffer, size);
    return size;
}

/* No ranges mean all of memory to a rule, and are an error to the kernel. */
static int64_t log_start(struct check_kernel *k, struct check_step *step)
{
    const struct vfmig_iova_range all = {0, UINT64_C(1) << 40};
    uint32_t count = (uint32_t)(step->arg[1] / sizeof(all));
    struct kernel_log_start start = {
        .page_size = step->arg[0],
        .range_count = count ? count : 1,
        .ranges = (uintptr_t)(count ? step->data : &all),
    };

    step->value = step->arg[0];
    if (!k->base.facts.log_feature)
        return vfmig_kernel_log_once(k->target, /* on= */ true, step->arg[0]);
    int r = vfmig_kernel_feature(k->target, sizeof(struct kernel_feature) + sizeof(start),
                                 KERNEL_FEATURE_SET | KERNEL_F_LOG_START, &start, sizeof(start));
    step->value = start.page_size;
    return r;
}

static int64_t report(struct check_kernel *k, struct check_step *step)
{
    uint64_t page = step->arg[2],
             bits = page ? step->arg[1] / page + (step->arg[1] % page != 0) : 0;
    uint64_t bytes = (bits / 64 + (bits % 64 != 0)) * 8;
    uint64_t *words = bytes <= CHECK_MAX_DATA ? calloc(1, bytes + 8) : NULL;
    int r = words ? 0 : -E2BIG;

    if (r == 0 && step->kind == CHECK_STEP_UNMAP_REPORT)
        r = k->target->ops->dma_unmap(k->target, step->arg[0], step->arg[1], NULL);
    if (r == 0)
        r = step->kind == CHECK_STEP_UNMAP_REPORT
                ? k->target->ops->log_report(k->target, step->arg[0], step->arg[1], page, words,
                                             NULL)
                : vfmig_kernel_report_once(k->target, step->arg[0], step->arg[1], page, words);
    bytes = bytes < step->room_size ? bytes : step->room_size;
    if (r == 0)
        memcpy(step->room, words, bytes);
    free(words);
    return r < 0 ? r : (int64_t)bytes;
}

static int64_t map(struct check_kernel *k, const struct check_step *step)
{
    if (step->arg[3])
        return -ENOTSUP; /* by message */
    if (step->arg[1] > CHECK_MEMORY || step->arg[2] > CHECK_MEMORY - step->arg[1])
        return -EINVAL;
    return k->target->ops->dma_map(k->target, step->arg[0], step->arg[1], k->base.memory_fd,
                                   step->arg[2], 3, NULL);
}

static int64_t irqs(struct check_kernel *k, const struct check_step *step)
{
    uint32_t index = (uint32_t)step->arg[0], count = (uint32_t)step->arg[2];

    if (step->arg[2] > CHECK_MAX_VECTORS || step->arg[1] > CHECK_MAX_VECTORS - step->arg[2] ||
        index >= 5)
        return -EINVAL;
    if (count == 0)
        return k->target->ops->set_irqs(k->target, index, 0, k->target->info.irq_count[index], NULL,
                                        NULL);
    return k->target->ops->set_irqs(k->target, index, (uint32_t)step->arg[1], count,
                                    k->base.irq_fd + step->arg[1], NULL);
}

static int64_t access_region(struct check_kernel *k, struct check_step *step, bool write)
{
    uint32_t region = (uint32_t)step->arg[0], size = (uint32_t)step->arg[2];

    if (step->arg[2] > CHECK_MAX_DATA || (!write && size > step->room_size))
        return -E2BIG;
    int r = write ? k->target->ops->region_write(k->target, region, step->arg[1], step->data, size,
                                                 /* posted= */ false, NULL)
                  : k->target->ops->region_read(k->target, region, step->arg[1], step->room, size,
                                                NULL);
    return r < 0 ? (int64_t)r : (int64_t)size;
}

static int64_t run(struct check_kernel *k, struct check_step *step)
{
    uint64_t state_ns = k->base.state_ms * NS_PER_MS;
    uint32_t value = 0;
    bool opened;
    int r;

    switch (step->kind) {
    case CHECK_STEP_STATE_GET:
        r = vfmig_kernel_look_state(k->target, &value);
        step->value = value;
        return r;
    case CHECK_STEP_STATE_SET:
        return vfmig_kernel_ask_state(k->target, (uint32_t)step->arg[0], state_ns, &opened, NULL);
    case CHECK_STEP_RESET:
        return vfmig_kernel_reset_once(k->target, state_ns);
    case CHECK_STEP_DATA_READ:
    case CHECK_STEP_DATA_WRITE:
        return data(k, step, step->kind == CHECK_STEP_DATA_WRITE);
    case CHECK_STEP_REGION_READ:
    case CHECK_STEP_REGION_WRITE:
        return access_region(k, step, step->kind == CHECK_STEP_REGION_WRITE);
    case CHECK_STEP_FEATURE_GET:
    case CHECK_STEP_FEATURE_SET:
    case CHECK_STEP_FEATURE_PROBE:
        return feature(k, step);
    case CHECK_STEP_LOG_START:
        return log_start(k, step);
    case CHECK_STEP_LOG_STOP:
        return vfmig_kernel_log_once(k->target, /* on= */ false, 0);
    case CHECK_STEP_LOG_REPORT:
    case CHECK_STEP_UNMAP_REPORT:
        return report(k, step);
    case CHECK_STEP_MAP:
        return map(k, step);
    case CHECK_STEP_UNMAP:
        return k->target->ops->dma_unmap(k->target, step->arg[0], step->arg[1], NULL);
    case CHECK_STEP_IRQS:
        return irqs(k, step);
    case CHECK_STEP_DMA_SERVE: /* the device's time: its DMA asks nobody here */
        if (step->arg[0] > CHECK_MAX_SERVE_MS)
            return -EINVAL;
        (void)poll(NULL, 0, (int)step->arg[0]);
        return 0;
    default:
        return -ENOTSUP;
    }
}

static void kernel_run(struct check_port *port, struct check_step *step)
{
    struct check_kernel *k = (struct check_kernel *)port;

    if (step->kind == CHECK_STEP_CONNECT) {
        step->result = connect_again(k);
    } else if (step->kind == CHECK_STEP_CLOSE) {
        close_target(k);
        step->result = 0;
    } else if (!k->target || port->trouble) {
        check_port_trouble(port, CHECK_DIED, "the device is closed");
        step->result = -ENOTCONN;
    } else {
        step->result = judged(k, run(k, step));
    }
}

static void kernel_free(struct check_port *port)
{
    close_target((struct check_kernel *)port);
    check_port_done(port);
    free(port);
}

static const struct check_port_ops kernel_ops = {"kernel", kernel_run, kernel_free};

/* ---- what it is ---- */

static bool probed(struct check_kernel *k, uint32_t flags)
{
    return vfmig_kernel_feature(k->target, sizeof(struct kernel_feature),
                                KERNEL_FEATURE_PROBE | flags, NULL, 0) == 0;
}

static void describe(struct check_kernel *k)
{
    const struct vfmig_target_info *info = &k->target->info;
    struct check_facts *facts = &k->base.facts;
    bool region = info->dialect == VFMIG_DIALECT_REGION;
    uint32_t index;
    uint64_t size;

    snprintf(facts->name, sizeof(facts->name), "%s", k->address);
    if (info->features)
        facts->dialects = region ? CHECK_DIALECT_REGION : CHECK_DIALECT_FEATURE;
    facts->features = region ? 0 : info->features;
    facts->region_ndma = region && (info->features & VFMIG_FEATURE_NDMA);
    facts->log_feature = probed(k, KERNEL_FEATURE_SET | KERNEL_F_LOG_START) &&
                         probed(k, KERNEL_FEATURE_GET | KERNEL_F_LOG_REPORT);
    facts->log_region = region && info->dma_log && !facts->log_feature;
    facts->log_region_pgsize = info->log_page_size;
    facts->data_size = probed(k, KERNEL_FEATURE_GET | KERNEL_F_DATA_SIZE);
    facts->data_fd = !region;
    facts->precopy_info = !region && (info->features & VFMIG_FEATURE_PRE_COPY);
    facts->max_read = facts->max_write = CHECK_MAX_DATA;
    facts->region_count = info->region_count;
    for (uint32_t i = 0; i < info->region_count && i < CHECK_MAX_REGIONS; i++) {
        facts->region_size[i] = info->region_size[i];
        facts->region_flags[i] = info->region_size[i] ? 3 : 0; /* read and write */
    }
    /* One beyond the regions that are looked at is none. */
    if (vfmig_kernel_migration_region(k->target, &index, &size) && index < CHECK_MAX_REGIONS)
        facts->mig_region = index;
    else if (region)
        facts->dialects = 0;
    memcpy(facts->irq_count, info->irq_count, sizeof(info->irq_count));
    check_port_look_at_pci(&k->base);
}

static int open_port(const char *scheme, const char *rest, uint32_t deadline_ms,
                     struct check_port **ret_port, struct vfmig_error *reterr)
{
    struct check_kernel *k = calloc(1, sizeof(*k));

    if (!k)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for the checker");
    k->base.ops = &kernel_ops;
    k->base.deadline_ms = k->base.state_ms = deadline_ms;
    int n = snprintf(k->address, sizeof(k->address), "%s%s", scheme, rest);
    int r = check_port_init(&k->base, reterr);
    if (r == 0 && (size_t)n >= sizeof(k->address))
        r = vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                            "'%s' is too long an address", k->address);
    if (r == 0)
        r = open_target(k, reterr);
    if (r < 0) {
        kernel_free(&k->base);
        return r;
    }
    describe(k);
    *ret_port = &k->base;
    return 0;
}

int check_kernel_open(const char *rest, uint32_t deadline_ms, struct check_port **ret_port,
                      struct vfmig_error *reterr)
{
    return open_port("vfio:", rest, deadline_ms, ret_port, reterr);
}

int check_kernel_group_open(const char *rest, uint32_t deadline_ms, struct check_port **ret_port,
                            struct vfmig_error *reterr)
{
    return open_port("vfio-group:", rest, deadline_ms, ret_port, reterr);
}
