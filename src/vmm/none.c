/* SPDX-License-Identifier: BSD-3-Clause */
/* The accelerator `none`: the guest program runs on threads of this process. Its state is all in
 * guest memory and every step ends at a complete piece of work, so that a vCPU is parked between
 * two steps; what is left to carry are interrupts on their way and the clock. */
#include "vmm/machine_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "guest/guest.h"

#define NONE_TSC_KHZ 1000000u /* the guest's TSC counts nanoseconds */

enum { TAG_PENDING = 16, TAG_TSC };

struct none_machine {
    uint32_t pending[GUEST_MAX_VCPUS][256]; /* atomic: interrupts not yet taken, by vector */
    uint64_t tsc_offset;
    int epoll_fd; /* the MSI eventfds, and stop_fd */
    int stop_fd;
    pthread_t thread; /* reads the eventfds */
    bool has_thread;
};

static struct none_machine *none_of(struct vfmig_machine *m)
{
    return m->accel;
}

static uint64_t read_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t none_tsc(void *opaque)
{
    return read_ns() + none_of(opaque)->tsc_offset;
}

static void none_mmio(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                      uint32_t size)
{
    machine_mmio(opaque, vcpu, gpa, is_write, data, size);
}

/* Takes what one eventfd holds into the pending counts; under msi_lock. */
static uint32_t collect(struct vfmig_machine *m, uint32_t gsi)
{
    struct machine_msi *msi = &m->msis[gsi];
    uint64_t count = 0;
    if (msi->fd < 0 || read(msi->fd, &count, sizeof(count)) != sizeof(count))
        return 0;
    uint32_t vcpu = (uint32_t)(msi->address >> 12) & 0xff;
    if (vcpu < m->config.vcpu_count)
        __atomic_fetch_add(&none_of(m)->pending[vcpu][msi->data & 0xff], (uint32_t)count,
                           __ATOMIC_ACQ_REL);
    return (uint32_t)count;
}

static void *collector_main(void *arg)
{
    struct vfmig_machine *m = arg;
    struct epoll_event events[16];
    for (;;) {
        int count = epoll_wait(none_of(m)->epoll_fd, events, 16, -1);
        pthread_mutex_lock(&m->msi_lock);
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == GUEST_MAX_GSIS) {
                pthread_mutex_unlock(&m->msi_lock);
                return NULL;
            }
            collect(m, events[i].data.u32);
        }
        pthread_mutex_unlock(&m->msi_lock);
    }
}

static int watch(struct none_machine *n, int fd, uint32_t number)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    return epoll_ctl(n->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void none_destroy(struct vfmig_machine *m)
{
    struct none_machine *n = none_of(m);
    if (n->has_thread) {
        eventfd_write(n->stop_fd, 1);
        pthread_join(n->thread, NULL);
    }
    if (n->epoll_fd >= 0)
        close(n->epoll_fd);
    if (n->stop_fd >= 0)
        close(n->stop_fd);
    free(n);
    m->accel = NULL;
}

static int none_create(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    struct none_machine *n = calloc(1, sizeof(*n));
    if (!n)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a machine");
    m->accel = n;
    n->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    n->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int ret = n->epoll_fd < 0 || n->stop_fd < 0 ? -errno : watch(n, n->stop_fd, GUEST_MAX_GSIS);
    if (ret == 0)
        ret = -pthread_create(&n->thread, NULL, collector_main, m);
    if (ret < 0) {
        none_destroy(m);
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot prepare the machine's interrupts: %s", strerror(-ret));
    }
    n->has_thread = true;
    return 0;
}

static int none_boot(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr)
{
    (void)m;
    (void)vcpu;
    (void)reterr;
    return 0; /* a vCPU that never ran starts with its first step */
}

/* What an interrupt stub does: counts. */
static void take_interrupts(struct vfmig_machine *m, uint32_t vcpu)
{
    uint32_t *pending = none_of(m)->pending[vcpu];
    uint32_t *counts = machine_memory(m, GUEST_IRQ_COUNTS, 1024);
    for (uint32_t i = GUEST_VECTOR_DEVICE; i < 256; i++)
        if (__atomic_load_n(&pending[i], __ATOMIC_RELAXED))
            __atomic_fetch_add(&counts[i], __atomic_exchange_n(&pending[i], 0, __ATOMIC_ACQ_REL),
                               __ATOMIC_ACQ_REL);
}

static void none_run(struct vfmig_machine *m, uint32_t vcpu)
{
    bool outside = false;
    struct guest_env env = {.base = m->blocks[0].host,
                            .size = m->blocks[0].size,
                            .outside = &outside,
                            .opaque = m,
                            .mmio = none_mmio,
                            .tsc = none_tsc};
    while (!machine_stopping(m) && !m->vcpus[vcpu].dead) {
        if (machine_throttle_due(m, vcpu))
            machine_throttle_sleep(m, vcpu);
        take_interrupts(m, vcpu);
        guest_step(&env, vcpu);
        if (outside)
            machine_vcpu_died(m, vcpu, "the guest reached outside its memory");
    }
}

static void none_kick(struct vfmig_machine *m, uint32_t vcpu)
{
    (void)m;
    (void)vcpu; /* each step ends soon, and a sleep ends with the stop */
}

static int none_resume(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    (void)m;
    (void)reterr;
    return 0;
}

static int none_flush_irqs(struct vfmig_machine *m, uint32_t *ret_unread, struct vfmig_error *reterr)
{
    (void)reterr;
    for (uint32_t i = 0; i < GUEST_MAX_GSIS; i++)
        *ret_unread += collect(m, i);
    return 0;
}

static int none_save(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct none_machine *n = none_of(m);
    struct machine_tsc tsc;
    machine_tsc_fill(&tsc, read_ns, n->tsc_offset, NONE_TSC_KHZ);
    int ret = machine_put(out, TAG_TSC, 0, &tsc, sizeof(tsc));
    for (uint32_t i = 0; i < m->config.vcpu_count && ret == 0; i++)
        ret = machine_put(out, TAG_PENDING, i, n->pending[i], sizeof(n->pending[i]));
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0,
                               "no room for the state of the vCPUs");
    return 0;
}

static int none_load(struct vfmig_machine *m, const void *data, size_t size,
                     struct vfmig_error *reterr)
{
    struct none_machine *n = none_of(m);
    struct machine_record record;
    size_t offset = 0;
    uint32_t found = 0;
    while (machine_get(data, size, &offset, &record) > 0) {
        struct machine_tsc tsc;
        if (record.tag == TAG_PENDING && record.size == sizeof(n->pending[0])) {
            memcpy(n->pending[record.vcpu], record.data, record.size);
            found++;
        } else if (record.tag == TAG_TSC && record.size == sizeof(tsc)) {
            memcpy(&tsc, record.data, sizeof(tsc));
            n->tsc_offset = machine_tsc_offset(&tsc, read_ns);
            found++;
        }
    }
    if (found == m->config.vcpu_count + 1)
        return 0;
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                           "a record of the machine's state is missing or has a wrong size");
}

static int none_identity(struct vfmig_machine *m, struct vfmig_buffer *out,
                         struct vfmig_error *reterr)
{
    (void)m;
    int ret = vfmig_buffer_printf(out, "guest_abi=%u\n", GUEST_ABI_VERSION);
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0, "no room for the identity text");
    return 0;
}

static int none_msi(struct vfmig_machine *m, uint32_t gsi, struct vfmig_error *reterr)
{
    struct machine_msi *msi = &m->msis[gsi];
    int ret = msi->attached ? 0 : watch(none_of(m), msi->fd, gsi);
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot watch an eventfd: %s",
                               strerror(-ret));
    msi->attached = true;
    return 0;
}

static int none_ioeventfd(struct vfmig_machine *m, uint64_t gpa, uint32_t size, int fd, bool add,
                          struct vfmig_error *reterr)
{
    (void)m;
    (void)gpa;
    (void)size;
    (void)fd;
    (void)add;
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                           "the accelerator none has no ioeventfd");
}

static uint64_t none_tsc_khz(struct vfmig_machine *m)
{
    (void)m;
    return NONE_TSC_KHZ;
}

static uint32_t none_guest_flags(struct vfmig_machine *m)
{
    (void)m;
    return 0;
}

const struct machine_ops machine_none_ops = {
    .accel = VFMIG_ACCEL_NONE,
    .create = none_create,
    .destroy = none_destroy,
    .boot = none_boot,
    .run = none_run,
    .kick = none_kick,
    .resume = none_resume,
    .flush_irqs = none_flush_irqs,
    .save = none_save,
    .load = none_load,
    .identity = none_identity,
    .msi = none_msi,
    .ioeventfd = none_ioeventfd,
    .tsc_khz = none_tsc_khz,
    .guest_flags = none_guest_flags,
};
