/* SPDX-License-Identifier: BSD-3-Clause */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "rig.h"
#include "rig_source.h"

#include "base/bitmap.h"
#include "base/buffer.h"
#include "core/state.h"

#define BLOCK0_BYTES (UINT64_C(3) << 20)
#define BLOCK1_BYTES (UINT64_C(10) << 20) /* with all dirty there is enough for a trial */
#define BLOCK1_GPA   (UINT64_C(1) << 30)
#define GUEST_PAGES  600u
#define PRE_PIECES   3u
#define PIECE_BYTES  700u
#define MANY         8u /* devices; the DMA of more would fill the log */

/* --- the log and the fault --- */

static void put(struct rig *rig, const struct rig_entry *entry)
{
    pthread_mutex_lock(&rig->lock);
    /* Data that never ends, and DMA beside what takes long, leave room for what comes after it. */
    bool endless = entry->op == RIG_SAVE || entry->op == RIG_DMA;
    uint32_t room = endless ? RIG_MAX_LOG / 2 : RIG_MAX_LOG;
    if (rig->log_count < room && !rig->log_ended)
        rig->log[rig->log_count++] = *entry;
    pthread_mutex_unlock(&rig->lock);
    if (rig->watch)
        rig->watch(rig, entry);
}

/* The fault's answer to this call: 0 when it is not meant. Under the lock. */
static int apply(struct rig *rig, const struct rig_fault *fault, uint32_t *calls,
                 const struct rig_entry *entry)
{
    if (fault->op != entry->op || fault->side != entry->side ||
        (fault->arg != RIG_ANY && fault->arg != entry->arg) ||
        (fault->only && fault->only != entry->device + 1))
        return 0;
    uint32_t call = (*calls)++;
    if (call < fault->after || call >= fault->after + fault->times)
        return 0;
    if (fault->lie)
        return (int)fault->lie;
    if (fault->err)
        return fault->err;
    rig->hung = true;
    while (!rig->release)
        pthread_cond_wait(&rig->released, &rig->lock);
    return -EIO;
}

static bool is_device_op(enum rig_op op)
{
    return op == RIG_SET_STATE || op == RIG_RESET || op == RIG_SAVE || op == RIG_LOAD;
}

static bool into_error(const struct rig_fault *fault, const struct rig_entry *entry)
{
    return fault->into_error && fault->side == entry->side && fault->op == entry->op &&
           (!fault->only || fault->only == entry->device + 1);
}

/* What a fault does to the device itself. */
static int strike(struct rig_device *dev, const struct rig_entry *entry, int ret)
{
    pthread_mutex_lock(&dev->lock);
    dev->dead |= ret == RIG_DIES;
    dev->endless |= ret == RIG_SAYS_MORE;
    if (dev->dead)
        ret = -ECONNRESET;
    else if (ret < 0 && entry->op == RIG_SET_STATE &&
             (into_error(&dev->vm->rig->fault, entry) || into_error(&dev->vm->rig->second, entry)))
        dev->state = VFMIG_STATE_ERROR;
    pthread_mutex_unlock(&dev->lock);
    return ret;
}

/* Begin of a call: 0, what the fault says, or a lie (positive). */
static int enter(struct rig_vm *vm, enum rig_op op, uint32_t device, uint32_t arg)
{
    struct rig *rig = vm->rig;
    struct rig_entry entry = {.side = vm->side, .op = op, .device = device, .arg = arg};

    put(rig, &entry);
    pthread_mutex_lock(&rig->lock);
    int ret = apply(rig, &rig->fault, &rig->calls, &entry);
    int other = apply(rig, &rig->second, &rig->second_calls, &entry);
    pthread_mutex_unlock(&rig->lock);
    ret = ret ? ret : other;
    return is_device_op(op) ? strike(&vm->devices[device], &entry, ret) : ret;
}

static int leave(struct rig_vm *vm, enum rig_op op, uint32_t device, uint32_t arg, int ret,
                 struct vfmig_error *reterr)
{
    put(vm->rig, &(struct rig_entry){
                     .side = vm->side, .op = op, .device = device, .arg = arg, .end = true, .ret = ret});
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_DEVICE, 0, "fault of operation %d", op) : 0;
}

void rig_end_log(struct rig *rig)
{
    pthread_mutex_lock(&rig->lock);
    rig->log_ended = true;
    pthread_mutex_unlock(&rig->lock);
}

uint32_t rig_find(const struct rig *rig, uint32_t from, enum rig_side side, enum rig_op op,
                  uint32_t device, uint32_t arg, bool end)
{
    for (uint32_t i = from; i < rig->log_count; i++) {
        const struct rig_entry *entry = &rig->log[i];
        if (entry->side == side && entry->op == op && entry->end == end &&
            (device == RIG_ANY || entry->device == device) && (arg == RIG_ANY || entry->arg == arg))
            return i;
    }
    return rig->log_count;
}

/* --- devices --- */

/* Where N stops nothing but DMA to peers, memory is written until the device stops. */
static bool may_dma(const struct rig_device *dev)
{
    bool n = dev->state == VFMIG_STATE_PRE_COPY_NDMA || dev->state == VFMIG_STATE_RUNNING_NDMA;

    return dev->state == VFMIG_STATE_RUNNING || dev->state == VFMIG_STATE_PRE_COPY ||
           (n && dev->base.info.quiet == VFMIG_QUIET_P2P);
}

bool rig_dma(struct rig_device *dev, uint64_t page, uint64_t value)
{
    struct rig_vm *vm = dev->vm;

    pthread_mutex_lock(&dev->lock);
    bool may = may_dma(dev) && !dev->dead;
    if (may)
        rig_write(vm, dev->index + 1, page, value);
    pthread_mutex_unlock(&dev->lock);
    return may;
}

uint64_t rig_read(const struct rig_vm *vm, uint64_t page)
{
    const uint64_t *words =
        (const uint64_t *)((const uint8_t *)vm->blocks[0].host + page * VFMIG_PAGE_SIZE);

    return __atomic_load_n(words, __ATOMIC_RELAXED);
}

void rig_write(struct rig_vm *vm, uint32_t tracker, uint64_t page, uint64_t value)
{
    uint64_t *words = (uint64_t *)((uint8_t *)vm->blocks[0].host + page * VFMIG_PAGE_SIZE);

    __atomic_store_n(words, value, __ATOMIC_RELAXED);
    if (atomic_load(&vm->trackers[tracker].on))
        vfmig_bitmap_set_range_atomic(vm->trackers[tracker].map.bitmaps[0], page, 1);
}

static struct rig_device *device_of(struct vfmig_target *t)
{
    return (struct rig_device *)t;
}

static int get_state(struct vfmig_target *t, enum vfmig_state *ret_state, struct vfmig_error *reterr)
{
    struct rig_device *dev = device_of(t);

    pthread_mutex_lock(&dev->lock);
    *ret_state = dev->state;
    bool dead = dev->dead;
    pthread_mutex_unlock(&dev->lock);
    return dead ? vfmig_error_set(reterr, -ECONNRESET, VFMIG_ORIGIN_PEER, 0, "its process is gone") : 0;
}

static int leave_resuming(struct rig_device *dev)
{
    if (!dev->last_seen || dev->loaded != RIG_STATE_BYTES)
        return -EBADMSG;
    memcpy(dev->content, dev->loading, sizeof(dev->content));
    return 0;
}

static int change(struct rig_device *dev, enum vfmig_state state)
{
    enum vfmig_state next;
    int ret = 0;

    /* Only what the table of states allows from here, arc by arc. */
    if (vfmig_state_next(dev->base.info.features, dev->state, state, &next))
        return -EINVAL;
    if (dev->state == VFMIG_STATE_RESUMING && state != VFMIG_STATE_RESUMING)
        ret = leave_resuming(dev);
    if (state == VFMIG_STATE_PRE_COPY && dev->state == VFMIG_STATE_RUNNING) {
        dev->sequence = 0;
        dev->pre_left = PRE_PIECES;
    }
    if (state == VFMIG_STATE_STOP_COPY) {
        dev->at = 0;
        dev->bulk_left = dev->bulk_pieces;
        if (dev->state != VFMIG_STATE_PRE_COPY && dev->state != VFMIG_STATE_PRE_COPY_NDMA)
            dev->sequence = 0;
    }
    if (state == VFMIG_STATE_RESUMING) {
        dev->sequence = 0;
        dev->loaded = 0;
        dev->last_seen = false;
        memset(dev->content, 0, sizeof(dev->content));
    }
    dev->state = ret ? VFMIG_STATE_ERROR : state;
    return ret;
}

static int set_state(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                     struct vfmig_error *reterr)
{
    struct rig_device *dev = device_of(t);
    int ret = enter(dev->vm, RIG_SET_STATE, dev->index, state);

    pthread_mutex_lock(&dev->lock);
    if (ret == 0)
        ret = change(dev, state);
    else if (ret == RIG_SAYS_YES)
        ret = 0;
    pthread_mutex_unlock(&dev->lock);
    if (ret == 0 && dev->on_state)
        dev->on_state(dev, state);
    return leave(dev->vm, RIG_SET_STATE, dev->index, state, ret, reterr);
}

static int reset(struct vfmig_target *t, struct vfmig_error *reterr)
{
    struct rig_device *dev = device_of(t);
    int ret = enter(dev->vm, RIG_RESET, dev->index, 0);

    pthread_mutex_lock(&dev->lock);
    if (ret == 0) {
        dev->state = VFMIG_STATE_RUNNING;
        dev->endless = false;
        memset(dev->content, 0, sizeof(dev->content));
        memset(dev->external, 0, sizeof(dev->external));
    } else if (ret == RIG_SAYS_YES) {
        ret = 0;
    }
    pthread_mutex_unlock(&dev->lock);
    return leave(dev->vm, RIG_RESET, dev->index, 0, ret, reterr);
}

struct piece {
    uint32_t sequence;
    uint32_t kind; /* 'P' logged changes, 'S' content, 'E' its end */
    uint32_t size;
};

static ssize_t save(struct vfmig_target *t, void *buf, size_t size, struct vfmig_error *reterr)
{
    struct rig_device *dev = device_of(t);
    int ret = enter(dev->vm, RIG_SAVE, dev->index, dev->state);
    struct piece piece = {.sequence = dev->sequence, .kind = 'P'};
    bool some = false;

    if (ret == RIG_SAYS_END)
        dev->at = RIG_STATE_BYTES + 1; /* and stays with it */
    if (ret > 0)
        ret = 0;
    if (ret == 0 && dev->endless) {
        piece.size = PIECE_BYTES;
        some = true;
    } else if (ret == 0 && dev->state == VFMIG_STATE_PRE_COPY && dev->pre_left) {
        dev->pre_left--;
        piece.size = PIECE_BYTES;
        some = true;
    } else if (ret == 0 && dev->state == VFMIG_STATE_STOP_COPY && dev->bulk_left &&
               size >= sizeof(piece) + dev->bulk_bytes) {
        dev->bulk_left--;
        piece.size = dev->bulk_bytes;
        some = true;
    } else if (ret == 0 && dev->state == VFMIG_STATE_STOP_COPY && dev->at <= RIG_STATE_BYTES) {
        size_t left = RIG_STATE_BYTES - dev->at;
        piece.kind = left ? 'S' : 'E';
        piece.size = left < PIECE_BYTES ? (uint32_t)left : PIECE_BYTES;
        some = true;
    }
    if (some) {
        memcpy(buf, &piece, sizeof(piece));
        if (piece.kind == 'S')
            memcpy((uint8_t *)buf + sizeof(piece), dev->content + dev->at, piece.size);
        else
            memset((uint8_t *)buf + sizeof(piece), 0, piece.size);
        dev->sequence++;
        dev->at += piece.kind == 'P' ? 0 : piece.kind == 'E' ? 1 : piece.size;
    }
    ret = leave(dev->vm, RIG_SAVE, dev->index, dev->state, ret, reterr);
    return ret ? ret : some ? (ssize_t)(sizeof(piece) + piece.size) : 0;
}

static int take_piece(struct rig_device *dev, const void *data, size_t size)
{
    struct piece piece;

    if (size < sizeof(piece))
        return -EBADMSG;
    memcpy(&piece, data, sizeof(piece));
    if (piece.sequence != dev->sequence++ || size != sizeof(piece) + piece.size || dev->last_seen)
        return -EBADMSG;
    if (piece.kind == 'S' && dev->loaded + piece.size <= RIG_STATE_BYTES) {
        memcpy(dev->loading + dev->loaded, (const uint8_t *)data + sizeof(piece), piece.size);
        dev->loaded += piece.size;
    }
    dev->last_seen = piece.kind == 'E';
    return 0;
}

static int load(struct vfmig_target *t, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct rig_device *dev = device_of(t);
    int ret = enter(dev->vm, RIG_LOAD, dev->index, dev->state);

    if (ret == 0)
        ret = dev->state == VFMIG_STATE_RESUMING ? take_piece(dev, data, size) : -EINVAL;
    return leave(dev->vm, RIG_LOAD, dev->index, dev->state, ret, reterr);
}

static int left(struct vfmig_target *t, uint64_t *ret_bytes, struct vfmig_error *reterr)
{
    *ret_bytes = RIG_STATE_BYTES;
    return 0;
}

static const struct vfmig_target_ops target_ops = {
    .name = "rig", .get_state = get_state, .set_state = set_state, .reset = reset,
    .save = save, .load = load, .left = left,
};

/* --- trackers --- */

static int track_start(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                       struct vfmig_error *reterr)
{
    struct rig_tracker *tracker = (struct rig_tracker *)t;
    int ret = enter(tracker->vm, RIG_TRACK_START, tracker->index, 0);

    if (ret == 0) {
        for (uint32_t b = 0; b < 2; b++)
            memset(tracker->map.bitmaps[b], 0,
                   vfmig_bitmap_words(memory->blocks[b].size / VFMIG_PAGE_SIZE) * 8);
        atomic_store(&tracker->on, true);
    }
    return leave(tracker->vm, RIG_TRACK_START, tracker->index, 0, ret, reterr);
}

static int track_sync(struct vfmig_tracker *t, struct vfmig_dirty_map *map, struct vfmig_error *reterr)
{
    struct rig_tracker *tracker = (struct rig_tracker *)t;
    int ret = enter(tracker->vm, RIG_TRACK_SYNC, tracker->index, 0);

    for (uint32_t b = 0; ret == 0 && b < 2; b++) {
        size_t words = vfmig_bitmap_words(tracker->vm->blocks[b].size / VFMIG_PAGE_SIZE);
        for (size_t i = 0; i < words; i++)
            map->bitmaps[b][i] |= vfmig_bitmap_take_word(&tracker->map.bitmaps[b][i]);
    }
    return leave(tracker->vm, RIG_TRACK_SYNC, tracker->index, 0, ret, reterr);
}

/* DMA to a page that is written by nobody else: what the clear loses, nothing brings back. */
static void write_between(struct rig_tracker *tracker, struct rig_device *dev)
{
    uint64_t page = GUEST_PAGES + dev->index * 50 + dev->dma_count % 50;
    uint8_t *at = (uint8_t *)tracker->vm->blocks[0].host + page * VFMIG_PAGE_SIZE;

    *(uint64_t *)at = ++dev->dma_count;
    vfmig_bitmap_set_range_atomic(tracker->map.bitmaps[0], page, 1);
    put(tracker->vm->rig, &(struct rig_entry){.side = tracker->vm->side, .op = RIG_DMA,
                                              .device = dev->index, .arg = dev->state});
}

/* There is something in the log, however slow the device is. */
static int track_start_split(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                             struct vfmig_error *reterr)
{
    struct rig_tracker *tracker = (struct rig_tracker *)t;
    struct rig_device *dev = &tracker->vm->devices[tracker->index - 1];
    int ret = track_start(t, memory, reterr);

    pthread_mutex_lock(&dev->lock);
    if (may_dma(dev))
        write_between(tracker, dev);
    pthread_mutex_unlock(&dev->lock);
    return ret;
}

/* C68. With its lock held a device neither changes its state nor does DMA of its own accord. */
static int track_sync_split(struct vfmig_tracker *t, struct vfmig_dirty_map *map,
                            struct vfmig_error *reterr)
{
    struct rig_tracker *tracker = (struct rig_tracker *)t;
    struct rig_device *dev = &tracker->vm->devices[tracker->index - 1];
    int ret = enter(tracker->vm, RIG_TRACK_SYNC, tracker->index, 0);

    pthread_mutex_lock(&dev->lock);
    for (uint32_t b = 0; ret == 0 && b < 2; b++) {
        size_t words = vfmig_bitmap_words(tracker->vm->blocks[b].size / VFMIG_PAGE_SIZE);
        for (size_t i = 0; i < words; i++) {
            map->bitmaps[b][i] |= tracker->map.bitmaps[b][i];
            tracker->splits += tracker->map.bitmaps[b][i] != 0;
        }
    }
    if (may_dma(dev))
        write_between(tracker, dev);
    for (uint32_t b = 0; ret == 0 && b < 2; b++)
        memset(tracker->map.bitmaps[b], 0,
               vfmig_bitmap_words(tracker->vm->blocks[b].size / VFMIG_PAGE_SIZE) * 8);
    pthread_mutex_unlock(&dev->lock);
    return leave(tracker->vm, RIG_TRACK_SYNC, tracker->index, 0, ret, reterr);
}

static int track_stop(struct vfmig_tracker *t, struct vfmig_error *reterr)
{
    struct rig_tracker *tracker = (struct rig_tracker *)t;
    int ret = enter(tracker->vm, RIG_TRACK_STOP, tracker->index, 0);

    atomic_store(&tracker->on, false);
    return leave(tracker->vm, RIG_TRACK_STOP, tracker->index, 0, ret, reterr);
}

static const struct vfmig_tracker_ops tracker_ops = {
    .name = "rig", .start = track_start, .sync = track_sync, .stop = track_stop};

static const struct vfmig_tracker_ops split_ops = {
    .name = "rig-split", .start = track_start_split, .sync = track_sync_split, .stop = track_stop};

void rig_split_logs(struct rig *rig)
{
    for (uint32_t i = 1; i < rig->side[RIG_SOURCE].vm.tracker_count; i++) {
        rig->side[RIG_SOURCE].trackers[i].base.ops = &split_ops;
        rig->side[RIG_SOURCE].trackers[i].base.atomic = false;
    }
}

/* --- the guest --- */

static void write_page(struct rig_vm *vm, struct rig_tracker *tracker, uint64_t value)
{
    vm->random = vm->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    uint64_t page = (vm->random >> 33) % GUEST_PAGES;
    uint32_t b = vm->random >> 63 ? 1 : 0;
    uint64_t pages = vm->blocks[b].size / VFMIG_PAGE_SIZE;

    page %= pages;
    uint64_t *words = (uint64_t *)((uint8_t *)vm->blocks[b].host + page * VFMIG_PAGE_SIZE);
    __atomic_store_n(&words[vm->random % 512], value, __ATOMIC_RELAXED);
    if (atomic_load(&tracker->on))
        vfmig_bitmap_set_range_atomic(tracker->map.bitmaps[b], page, 1);
}

/* One round of a vCPU's life: memory, a register of each device, and what the devices do meanwhile. */
static void guest_round(struct rig_vm *vm)
{
    uint64_t value = atomic_fetch_add(&vm->progress, 1) + 1;

    write_page(vm, &vm->trackers[0], value);
    for (uint32_t i = 0; i < vm->vm.device_count; i++) {
        struct rig_device *dev = &vm->devices[i];
        uint32_t bits = 0;
        pthread_mutex_lock(&dev->lock);
        if (vfmig_state_to_bits(dev->state, &bits) || !(bits & VFMIG_V1_RUNNING))
            put(vm->rig, &(struct rig_entry){
                             .side = vm->side, .op = RIG_MMIO, .device = i, .arg = dev->state});
        else
            dev->content[value % RIG_STATE_BYTES] = (uint8_t)value;
        pthread_mutex_unlock(&dev->lock);
    }
}

/* DMA does not depend on the vCPUs. */
static void device_round(struct rig_vm *vm)
{
    for (uint32_t i = 0; i < vm->vm.device_count; i++) {
        struct rig_device *dev = &vm->devices[i];
        pthread_mutex_lock(&dev->lock);
        if (may_dma(dev) && vm->progress && !dev->dead) {
            write_page(vm, &vm->trackers[i + 1], ++dev->dma_count << 32);
            if (vm->vm.device_count <= MANY)
                put(vm->rig, &(struct rig_entry){.side = vm->side, .op = RIG_DMA, .device = i,
                                                 .arg = dev->state});
        }
        pthread_mutex_unlock(&dev->lock);
    }
}

static void *guest_main(void *arg)
{
    struct rig_vm *vm = arg;
    struct timespec nap = {.tv_nsec = 100000};

    pthread_mutex_lock(&vm->lock);
    while (!vm->quit) {
        if (vm->run)
            guest_round(vm);
        if (vm->parked != !vm->run) {
            vm->parked = !vm->run;
            pthread_cond_broadcast(&vm->wake);
        }
        pthread_mutex_unlock(&vm->lock);
        device_round(vm);
        nanosleep(&nap, NULL);
        pthread_mutex_lock(&vm->lock);
    }
    pthread_mutex_unlock(&vm->lock);
    return NULL;
}

static void wait_run(struct rig_vm *vm, bool run)
{
    pthread_mutex_lock(&vm->lock);
    vm->run = run;
    while (vm->parked == run)
        pthread_cond_wait(&vm->wake, &vm->lock);
    pthread_mutex_unlock(&vm->lock);
}

static bool running(struct rig_vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    bool run = vm->run;
    pthread_mutex_unlock(&vm->lock);
    return run;
}

bool rig_progresses(struct rig_vm *vm)
{
    struct timespec nap = {.tv_nsec = 200000};
    uint64_t before = atomic_load(&vm->progress);

    for (unsigned i = 0; i < 100000 && running(vm); i++) {
        if (atomic_load(&vm->progress) > before)
            return true;
        nanosleep(&nap, NULL);
    }
    return false;
}

/* --- the VM's callbacks --- */

static int vcpus_stop(void *opaque, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_VCPU_STOP, 0, 0);

    if (ret == 0)
        wait_run(vm, false);
    return leave(vm, RIG_VCPU_STOP, 0, 0, ret, reterr);
}

static int vcpus_start(void *opaque, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_VCPU_START, 0, 0);

    if (ret == 0) {
        if (running(&vm->rig->side[!vm->side]))
            vm->rig->both_running++;
        wait_run(vm, true);
    }
    return leave(vm, RIG_VCPU_START, 0, 0, ret, reterr);
}

static int throttle(void *opaque, uint32_t percent, struct vfmig_error *reterr)
{
    int ret = enter(opaque, RIG_THROTTLE, 0, percent);

    return leave(opaque, RIG_THROTTLE, 0, percent, ret, reterr);
}

static int viommu_idle(void *opaque, uint64_t timeout_ns, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_VIOMMU_IDLE, 0, 0);

    /* The guest is busy meanwhile: there is something for the final snapshots to find. */
    for (unsigned i = 0; ret == 0 && i < 20; i++)
        (void)rig_progresses(vm);
    return leave(vm, RIG_VIOMMU_IDLE, 0, 0, ret, reterr);
}

static int state_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    uint64_t progress = atomic_load(&vm->progress);
    int ret = enter(vm, RIG_STATE_SAVE, 0, 0);

    if (ret == 0)
        ret = vfmig_buffer_append(out, &progress, sizeof(progress));
    if (ret == 0)
        ret = vfmig_buffer_append(out, &vm->random, sizeof(vm->random));
    return leave(vm, RIG_STATE_SAVE, 0, 0, ret, reterr);
}

static int state_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_STATE_LOAD, 0, 0);
    uint64_t words[2];

    if (ret == 0 && size != sizeof(words))
        ret = -EBADMSG;
    if (ret == 0) {
        memcpy(words, data, sizeof(words));
        atomic_store(&vm->progress, words[0]);
        vm->random = words[1];
    }
    return leave(vm, RIG_STATE_LOAD, 0, 0, ret, reterr);
}

static int external_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_EXTERNAL_SAVE, 0, 0);

    for (uint32_t i = 0; ret == 0 && i < vm->vm.device_count; i++)
        ret = vfmig_buffer_append(out, vm->devices[i].external, sizeof(vm->devices[i].external));
    return leave(vm, RIG_EXTERNAL_SAVE, 0, 0, ret, reterr);
}

static int external_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_EXTERNAL_LOAD, 0, 0);

    if (ret == 0 && size != vm->vm.device_count * sizeof(vm->devices[0].external))
        ret = -EBADMSG;
    for (uint32_t i = 0; ret == 0 && i < vm->vm.device_count; i++)
        memcpy(vm->devices[i].external, (const uint8_t *)data + i * 64, 64);
    return leave(vm, RIG_EXTERNAL_LOAD, 0, 0, ret, reterr);
}

/* What a device's external state is when nobody has forgotten it. */
static void make_external(struct rig_device *dev)
{
    for (size_t k = 0; k < sizeof(dev->external); k++)
        dev->external[k] = (uint8_t)(k + dev->index + 1);
}

static int device_reset(void *opaque, uint32_t device, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;

    assert_int_equal(vm->side, RIG_SOURCE);
    make_external(&vm->devices[device]);
    return 0;
}

static int identity(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    int ret = enter(vm, RIG_IDENTITY, 0, 0);

    if (ret == 0)
        ret = vfmig_buffer_printf(out, "%s\n", vm->identity);
    return leave(vm, RIG_IDENTITY, 0, 0, ret, reterr);
}

static void sample(void *opaque, struct vfmig_vm_sample *ret_sample)
{
    struct rig_vm *vm = opaque;

    ret_sample->guest_progress = atomic_load(&vm->progress);
}

static void trace(void *opaque, const char *json)
{
    struct rig_vm *vm = opaque;

    if (getenv("RIG_TRACE"))
        fprintf(stderr, "%d %s\n", vm->side, json);
    order_rules_feed(&vm->rules, json);
    if (vm->rig->listen)
        vm->rig->listen(vm->rig, vm->side, json);
}

static const struct vfmig_vm_ops vm_ops = {
    .size = sizeof(vm_ops), .version = VFMIG_VM_OPS_VERSION,
    .vcpus_stop = vcpus_stop, .vcpus_start = vcpus_start, .viommu_idle = viommu_idle,
    .state_save = state_save, .state_load = state_load,
    .external_save = external_save, .external_load = external_load,
    .device_reset = device_reset, .identity = identity, .sample = sample, .trace = trace,
    .throttle = throttle,
};

/* --- set-up --- */

static char names[RIG_MAX_DEVICES][8];

static void open_device(struct rig_vm *vm, uint32_t i, uint32_t features)
{
    struct rig_device *dev = &vm->devices[i];

    snprintf(names[i], sizeof(names[i]), "dev%u", i);
    dev->base.ops = &target_ops;
    dev->base.info = (struct vfmig_target_info){
        .name = "rig", .dialect = VFMIG_DIALECT_FEATURE, .features = features,
        .quiet = features & VFMIG_FEATURE_NDMA ? VFMIG_QUIET_ALL : VFMIG_QUIET_NONE,
        .pci_vendor = 0x1234, .pci_device = (uint16_t)(0x10 + i), .region_count = 1,
        .region_size = {4096}, .dma_log = true, .log_page_size = 4096, .max_data_xfer = 4096};
    dev->vm = vm;
    dev->index = i;
    dev->state = VFMIG_STATE_RUNNING;
    pthread_mutex_init(&dev->lock, NULL);
    for (size_t k = 0; vm->side == RIG_SOURCE && k < sizeof(dev->content); k++)
        dev->content[k] = (uint8_t)(k * 7 + i);
    if (vm->side == RIG_SOURCE)
        make_external(dev);
    vm->targets[i] = &dev->base;
    vm->ids[i] = names[i];
}

static void open_vm(struct rig *rig, enum rig_side side, uint32_t count, const uint32_t *features)
{
    struct rig_vm *vm = &rig->side[side];
    static const uint64_t sizes[2] = {BLOCK0_BYTES, BLOCK1_BYTES};

    vm->rig = rig;
    vm->side = side;
    vm->random = 12345;
    vm->identity = "vcpus=1";
    for (uint32_t b = 0; b < 2; b++) {
        void *host = mmap(NULL, sizes[b], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(host != MAP_FAILED);
        vm->blocks[b] = (struct vfmig_ram_block){
            .gpa = b * BLOCK1_GPA, .size = sizes[b], .host = host, .fd = -1};
    }
    vm->vm = (struct vfmig_vm){.ops = &vm_ops, .opaque = vm,
                               .memory = {.blocks = vm->blocks, .block_count = 2},
                               .devices = vm->targets, .device_ids = vm->ids, .device_count = count,
                               .trackers = vm->tracker_list, .tracker_count = count + 1};
    for (uint32_t i = 0; i < count; i++)
        open_device(vm, i, features[i]);
    for (uint32_t i = 0; i <= count; i++) {
        vm->trackers[i].base.ops = &tracker_ops;
        vm->trackers[i].base.atomic = true;
        vm->trackers[i].vm = vm;
        vm->trackers[i].index = i;
        assert_int_equal(vfmig_dirty_map_init(&vm->trackers[i].map, &vm->vm.memory, NULL), 0);
        vm->tracker_list[i] = &vm->trackers[i].base;
    }
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->wake, NULL);
    vm->parked = true;
    assert_int_equal(pthread_create(&vm->guest, NULL, guest_main, vm), 0);
}

void rig_open(struct rig *rig, uint32_t device_count, const uint32_t *features, bool tcp)
{
    memset(rig, 0, sizeof(*rig));
    pthread_mutex_init(&rig->lock, NULL);
    pthread_mutex_init(&rig->source_lock, NULL);
    pthread_cond_init(&rig->released, NULL);
    strcpy(rig->dir, "/tmp/vfmig-rig-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    if (tcp)
        strcpy(rig->uri, "tcp:127.0.0.1:0");
    else
        snprintf(rig->uri, sizeof(rig->uri), "unix:%s/sock", rig->dir);
    open_vm(rig, RIG_SOURCE, device_count, features);
    open_vm(rig, RIG_DEST, device_count, features);
    rig->options = (struct vfmig_migrate_options){.journal_dir = rig->dir,
                                                  .downtime_limit_ns = UINT64_C(5000000000),
                                                  .stall_ns = UINT64_C(5000000000),
                                                  .reconnect_ns = 100000000};
    wait_run(&rig->side[RIG_SOURCE], true);
}

void rig_start(struct rig *rig)
{
    struct vfmig_error error = {0};

    assert_int_equal(vfmig_destination_new(&rig->side[RIG_DEST].vm, &rig->options, &rig->destination,
                                           &error), 0);
    assert_int_equal(vfmig_destination_listen(rig->destination, rig->uri, &error), 0);
    if (strncmp(rig->uri, "tcp:", 4) == 0)
        snprintf(rig->uri, sizeof(rig->uri), "tcp:127.0.0.1:%u",
                 vfmig_destination_port(rig->destination));
    assert_int_equal(vfmig_source_new(&rig->side[RIG_SOURCE].vm, &rig->options, &rig->source, &error),
                     0);
    assert_int_equal(vfmig_source_start(rig->source, rig->uri, &error), 0);
}

enum vfmig_migrate_state rig_wait(struct rig *rig)
{
    struct vfmig_progress progress;

    (void)vfmig_source_wait(rig->source, UINT64_C(60000000000), NULL);
    vfmig_source_status(rig->source, &progress);
    return progress.state;
}

void rig_release(struct rig *rig)
{
    pthread_mutex_lock(&rig->lock);
    rig->release = true;
    pthread_cond_broadcast(&rig->released);
    pthread_mutex_unlock(&rig->lock);
}

static void close_vm(struct rig_vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->quit = true;
    pthread_mutex_unlock(&vm->lock);
    pthread_join(vm->guest, NULL);
    for (uint32_t i = 0; i < vm->vm.tracker_count; i++)
        vfmig_dirty_map_done(&vm->trackers[i].map);
    for (uint32_t b = 0; b < 2; b++)
        munmap(vm->blocks[b].host, vm->blocks[b].size);
}

void rig_close(struct rig *rig)
{
    char path[512];
    DIR *dir;

    rig_release(rig);
    rig_free_source(rig);
    vfmig_destination_free(rig->destination);
    close_vm(&rig->side[RIG_SOURCE]);
    close_vm(&rig->side[RIG_DEST]);
    for (unsigned side = 0; side < 2; side++) {
        if (rig->side[side].rules.broken[0])
            print_error("%s\n", rig->side[side].rules.broken);
        assert_string_equal(rig->side[side].rules.broken, "");
    }
    dir = opendir(rig->dir);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        snprintf(path, sizeof(path), "%s/%s", rig->dir, entry->d_name);
        if (entry->d_name[0] != '.')
            unlink(path);
    }
    if (dir)
        closedir(dir);
    rmdir(rig->dir);
}

static void assert_quiet_trackers(struct rig_vm *vm)
{
    for (uint32_t i = 0; i < vm->vm.tracker_count; i++)
        assert_false(atomic_load(&vm->trackers[i].on));
}

void rig_assert_source_runs(struct rig *rig)
{
    struct rig_vm *source = &rig->side[RIG_SOURCE], *dest = &rig->side[RIG_DEST];

    for (uint32_t i = 0; i < source->vm.device_count; i++) {
        if (source->devices[i].dead)
            continue;
        assert_int_equal(source->devices[i].state, VFMIG_STATE_RUNNING);
        assert_int_equal(source->devices[i].external[0], i + 1); /* after a reset, too */
    }
    assert_quiet_trackers(source);
    assert_true(rig_progresses(source));
    assert_false(running(dest));
    assert_int_equal(rig->both_running, 0);
}

void rig_assert_moved(struct rig *rig)
{
    struct rig_vm *source = &rig->side[RIG_SOURCE], *dest = &rig->side[RIG_DEST];

    /* The order rules have seen all of it. */
    assert_true(source->rules.judged >= 6 + 3 * source->vm.device_count);
    assert_true(dest->rules.judged >= 1 + 3 * dest->vm.device_count);
    assert_false(running(source));
    assert_quiet_trackers(source);
    assert_int_equal(rig->both_running, 0);
    for (uint32_t i = 0; i < source->vm.device_count; i++) {
        if (!source->devices[i].dead)
            assert_int_equal(source->devices[i].state, VFMIG_STATE_STOP);
        assert_int_equal(dest->devices[i].state, VFMIG_STATE_RUNNING);
    }
    assert_true(rig_progresses(dest));
}
