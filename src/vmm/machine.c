/* SPDX-License-Identifier: BSD-3-Clause */
/* The part of the machine that the accelerators have in common: threads, parking, sleeping. */
#include "vmm/machine_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "devices/dma_regs.h"

#define SLEEP_MAX_US 1000000u

const char *vfmig_accel_name(enum vfmig_accel accel)
{
    static const char *const names[] = {"auto", "kvm", "none"};
    return (unsigned)accel < 3 ? names[accel] : "unknown";
}

int vfmig_accel_parse(const char *name, enum vfmig_accel *ret_accel)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(name, vfmig_accel_name((enum vfmig_accel)i)) == 0) {
            *ret_accel = (enum vfmig_accel)i;
            return 0;
        }
    return -EINVAL;
}

void *machine_memory(struct vfmig_machine *m, uint64_t gpa, uint64_t size)
{
    for (uint32_t i = 0; i < m->config.memory.block_count; i++) {
        const struct vfmig_ram_block *block = &m->blocks[i];
        if (gpa >= block->gpa && size <= block->size && gpa - block->gpa <= block->size - size)
            return (uint8_t *)block->host + (gpa - block->gpa);
    }
    return NULL;
}

void machine_vcpu_died(struct vfmig_machine *m, uint32_t vcpu, const char *format, ...)
{
    char text[sizeof(m->failure.text)];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    pthread_mutex_lock(&m->lock);
    m->vcpus[vcpu].dead = true;
    if (!m->failure.code)
        vfmig_error_set(&m->failure, -EIO, VFMIG_ORIGIN_LOCAL, vcpu, "vCPU %u died: %s", vcpu, text);
    pthread_mutex_unlock(&m->lock);
}

static void add_us(struct timespec *when, uint64_t us)
{
    when->tv_sec += (time_t)(us / 1000000);
    when->tv_nsec += (long)(us % 1000000 * 1000);
    if (when->tv_nsec >= 1000000000) {
        when->tv_nsec -= 1000000000;
        when->tv_sec++;
    }
}

static void sleep_vcpu(struct vfmig_machine *m, uint64_t us)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    add_us(&until, us < SLEEP_MAX_US ? us : SLEEP_MAX_US);
    pthread_mutex_lock(&m->lock);
    while (!machine_stopping(m) && pthread_cond_timedwait(&m->wake, &m->lock, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&m->lock);
}

static void control_page(struct vfmig_machine *m, uint32_t vcpu, uint32_t reg, bool is_write,
                         void *data, uint32_t size)
{
    uint64_t value = 0;
    memcpy(&value, data, is_write ? size : 0);
    if (is_write && reg == GUEST_CTL_SLEEP) {
        sleep_vcpu(m, value);
    } else if (is_write && reg == GUEST_CTL_DEAD) {
        machine_vcpu_died(m, vcpu, "the guest gave up: vector %u, rip or error code %#llx",
                          (unsigned)(value & 0xff), (unsigned long long)(value >> 8));
    } else if (!is_write) {
        value = reg == GUEST_CTL_COUNT ? m->vcpus[vcpu].reads++ : 0;
        memcpy(data, &value, size);
    }
}

void machine_mmio(struct vfmig_machine *m, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                  uint32_t size)
{
    if (gpa >= GUEST_CONTROL && gpa < GUEST_CONTROL + 4096)
        control_page(m, vcpu, (uint32_t)(gpa - GUEST_CONTROL), is_write, data, size);
    else if (m->config.mmio)
        m->config.mmio(m->config.opaque, vcpu, gpa, is_write, data, size);
    else if (!is_write)
        memset(data, 0xff, size);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *vcpu_main(void *arg)
{
    struct machine_vcpu *v = arg;
    struct vfmig_machine *m = v->machine;
    pthread_mutex_lock(&m->lock);
    while (!m->quit) {
        if (!m->running || v->dead) {
            v->parked = true;
            pthread_cond_broadcast(&m->parked);
            pthread_cond_wait(&m->wake, &m->lock);
            continue;
        }
        v->run_ns = v->parked ? now_ns() : v->run_ns;
        v->parked = false;
        pthread_mutex_unlock(&m->lock);
        m->ops->run(m, v->index);
        pthread_mutex_lock(&m->lock);
    }
    v->parked = true;
    pthread_cond_broadcast(&m->parked);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

static int start_threads(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < m->config.vcpu_count; i++) {
        struct machine_vcpu *v = &m->vcpus[i];
        int ret = pthread_create(&v->thread, NULL, vcpu_main, v);
        if (ret)
            return vfmig_error_set(reterr, -ret, VFMIG_ORIGIN_KERNEL, 0,
                                   "cannot start the thread of vCPU %u: %s", i, strerror(ret));
        v->has_thread = true;
    }
    return 0;
}

static int check_config(const struct vfmig_machine_config *config, struct vfmig_error *reterr)
{
    const struct vfmig_memory *memory = &config->memory;
    if (!config->vcpu_count || config->vcpu_count > GUEST_MAX_VCPUS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u vCPUs asked for, 1 to %u are possible", config->vcpu_count,
                               GUEST_MAX_VCPUS);
    if (!memory->block_count || memory->block_count > VFMIG_MAX_RAM_BLOCKS ||
        memory->blocks[0].gpa || memory->blocks[0].size < GUEST_MIN_MEMORY)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "guest memory must start at 0 and have %u MiB at least",
                               GUEST_MIN_MEMORY >> 20);
    uint64_t end = 0;
    for (uint32_t i = 0; i < memory->block_count; i++) {
        const struct vfmig_ram_block *block = &memory->blocks[i];
        bool on_mmio = block->gpa < (UINT64_C(1) << 32) && block->gpa + block->size > GUEST_CONTROL;
        if (block->gpa % VFMIG_PAGE_SIZE || block->size % VFMIG_PAGE_SIZE || block->gpa < end ||
            on_mmio)
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, i,
                                   "memory block %u is misplaced", i);
        end = block->gpa + block->size;
    }
    return 0;
}

static struct vfmig_machine *alloc_machine(const struct vfmig_machine_config *config)
{
    struct vfmig_machine *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    m->config = *config;
    memcpy(m->blocks, config->memory.blocks, config->memory.block_count * sizeof(m->blocks[0]));
    m->config.memory.blocks = m->blocks;
    m->stop = true;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->wake, &attr);
    pthread_cond_init(&m->parked, &attr);
    pthread_cond_init(&m->throttle_wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->msi_lock, NULL);
    pthread_mutex_init(&m->throttle_lock, NULL);
    for (uint32_t i = 0; i < GUEST_MAX_VCPUS; i++) {
        m->vcpus[i].machine = m;
        m->vcpus[i].index = i;
        m->vcpus[i].parked = true;
    }
    for (uint32_t i = 0; i < GUEST_MAX_GSIS; i++)
        m->msis[i].fd = -1;
    return m;
}

int vfmig_machine_create(const struct vfmig_machine_config *config,
                         struct vfmig_machine **ret_machine, struct vfmig_error *reterr)
{
    int ret = check_config(config, reterr);
    if (ret < 0)
        return ret;
    struct vfmig_machine *m = alloc_machine(config);
    if (!m)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a machine");
    m->ops = config->accel == VFMIG_ACCEL_NONE ? &machine_none_ops : &machine_kvm_ops;
    ret = m->ops->create(m, reterr);
    if (ret < 0 && config->accel == VFMIG_ACCEL_AUTO) {
        m->ops = &machine_none_ops;
        ret = m->ops->create(m, reterr);
    }
    if (ret < 0)
        m->ops = NULL;
    else
        ret = start_threads(m, reterr);
    if (ret < 0) {
        vfmig_machine_free(m);
        return ret;
    }
    *ret_machine = m;
    return 0;
}

void vfmig_machine_free(struct vfmig_machine *m)
{
    if (!m)
        return;
    vfmig_machine_throttle(m, 0, NULL);
    pthread_mutex_lock(&m->lock);
    m->quit = true;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
    if (m->ops)
        vfmig_machine_stop(m, NULL);
    for (uint32_t i = 0; i < GUEST_MAX_VCPUS; i++)
        if (m->vcpus[i].has_thread)
            pthread_join(m->vcpus[i].thread, NULL);
    if (m->ops)
        m->ops->destroy(m);
    for (uint32_t i = 0; i < GUEST_MAX_GSIS; i++)
        if (m->msis[i].fd >= 0)
            close(m->msis[i].fd);
    pthread_cond_destroy(&m->wake);
    pthread_cond_destroy(&m->parked);
    pthread_cond_destroy(&m->throttle_wake);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->msi_lock);
    pthread_mutex_destroy(&m->throttle_lock);
    free(m);
}

enum vfmig_accel vfmig_machine_accel(const struct vfmig_machine *m)
{
    return m->ops->accel;
}

const struct guest_scoreboard *vfmig_machine_scoreboard(const struct vfmig_machine *m)
{
    return machine_memory((struct vfmig_machine *)m, GUEST_SCOREBOARD,
                          sizeof(struct guest_scoreboard));
}

static void count_for_guest(struct vfmig_machine *m, size_t offset)
{
    uint64_t gpa = GUEST_SCOREBOARD + offset;
    __atomic_fetch_add((uint64_t *)machine_memory(m, gpa, 8), 1, __ATOMIC_RELEASE);
    if (m->config.own_write)
        m->config.own_write(m->config.opaque, gpa, 8);
}

void vfmig_machine_reset_pause(struct vfmig_machine *m)
{
    count_for_guest(m, offsetof(struct guest_scoreboard, pause_reset));
}

/* The program of accelerator none trusts its parameters; they may have come from a peer. */
static int check_params(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    const struct guest_params *p = machine_memory(m, GUEST_PARAMS, sizeof(*p));
    if (p->magic != GUEST_PARAMS_MAGIC || p->version != GUEST_ABI_VERSION)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "there is no guest in the machine's memory");
    if (p->vcpu_count != m->config.vcpu_count || p->device_count > GUEST_MAX_DEVICES ||
        p->dma_bytes > DMA_MAX_LENGTH || !p->tsc_khz || !p->rate_mib_s ||
        p->dma_ops_s > p->tsc_khz)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "the guest's parameters do not fit this machine");
    return 0;
}

int vfmig_machine_start(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    int ret = vfmig_machine_failed(m, reterr);
    if (ret < 0 || vfmig_machine_running(m))
        return ret;
    ret = check_params(m, reterr);
    if (ret == 0)
        ret = m->ops->resume(m, reterr);
    if (ret < 0)
        return ret;
    if (m->moved)
        count_for_guest(m, offsetof(struct guest_scoreboard, moves));
    m->moved = false;
    pthread_mutex_lock(&m->lock);
    m->running = true;
    __atomic_store_n(&m->stop, false, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static bool all_parked(const struct vfmig_machine *m)
{
    for (uint32_t i = 0; i < m->config.vcpu_count; i++)
        if (m->vcpus[i].has_thread && !m->vcpus[i].parked)
            return false;
    return true;
}

/* C39: whoever returns from here has vCPUs that touch neither memory nor devices. */
int vfmig_machine_stop(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&m->lock);
    if (vfmig_sabotage("vcpu-runs-on") && !m->quit) {
        pthread_mutex_unlock(&m->lock);
        return 0;
    }
    m->running = false;
    __atomic_store_n(&m->stop, true, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&m->wake);
    for (uint32_t i = 0; i < m->config.vcpu_count; i++)
        if (m->vcpus[i].has_thread && !m->vcpus[i].parked)
            m->ops->kick(m, i);
    while (!all_parked(m))
        pthread_cond_wait(&m->parked, &m->lock);
    pthread_mutex_unlock(&m->lock);
    return vfmig_machine_failed(m, reterr);
}

bool vfmig_machine_running(const struct vfmig_machine *m)
{
    return !machine_stopping((struct vfmig_machine *)m);
}

uint64_t vfmig_machine_run_since(struct vfmig_machine *m)
{
    uint64_t last_ns = 0;
    bool waits = false;

    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < m->config.vcpu_count; i++) {
        const struct machine_vcpu *v = &m->vcpus[i];
        waits |= v->has_thread && !v->dead && v->parked;
        if (v->has_thread && !v->dead && v->run_ns > last_ns)
            last_ns = v->run_ns;
    }
    pthread_mutex_unlock(&m->lock);
    return waits ? 0 : last_ns;
}

int vfmig_machine_failed(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&m->lock);
    int code = m->failure.code;
    if (code && reterr)
        *reterr = m->failure;
    pthread_mutex_unlock(&m->lock);
    return code;
}

static int need_parked(const struct vfmig_machine *m, struct vfmig_error *reterr)
{
    if (!vfmig_machine_running(m))
        return 0;
    return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "the vCPUs are running");
}

int vfmig_machine_flush_irqs(struct vfmig_machine *m, uint32_t *ret_unread,
                             struct vfmig_error *reterr)
{
    int ret = need_parked(m, reterr);
    if (ret < 0)
        return ret;
    uint32_t unread = 0;
    pthread_mutex_lock(&m->msi_lock);
    ret = m->ops->flush_irqs(m, &unread, reterr);
    pthread_mutex_unlock(&m->msi_lock);
    if (ret_unread)
        *ret_unread = unread;
    return ret;
}

int vfmig_machine_identity(struct vfmig_machine *m, struct vfmig_buffer *out,
                           struct vfmig_error *reterr)
{
    int ret = vfmig_buffer_printf(out, "accel=%s\nvcpus=%u\ntsc_khz=%llu\n",
                                  vfmig_accel_name(m->ops->accel), m->config.vcpu_count,
                                  (unsigned long long)m->ops->tsc_khz(m));
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0, "no room for the identity text");
    return m->ops->identity(m, out, reterr);
}

int vfmig_machine_msi_eventfd(struct vfmig_machine *m, uint32_t gsi, uint64_t address, uint32_t data,
                              struct vfmig_error *reterr)
{
    if (gsi >= GUEST_MAX_GSIS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "no such GSI: %u", gsi);
    pthread_mutex_lock(&m->msi_lock);
    struct machine_msi *msi = &m->msis[gsi];
    /* KVM waits for an RCU grace period for every change of its routes, now and then for a tenth of a
     * second; what a migration puts in once more, inside the downtime, is mostly the same. */
    bool changed = msi->fd < 0 || msi->address != address || msi->data != data;
    int ret = 0;
    if (msi->fd < 0) {
        msi->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (msi->fd < 0)
            ret = vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                                  "cannot make an eventfd: %s", strerror(errno));
    }
    if (ret == 0 && changed) {
        msi->address = address;
        msi->data = data;
        ret = m->ops->msi(m, gsi, reterr);
    }
    int fd = msi->fd;
    pthread_mutex_unlock(&m->msi_lock);
    return ret < 0 ? ret : fd;
}

int vfmig_machine_ioeventfd(struct vfmig_machine *m, uint64_t gpa, uint32_t size, int fd, bool add,
                            struct vfmig_error *reterr)
{
    return m->ops->ioeventfd(m, gpa, size, fd, add, reterr);
}
