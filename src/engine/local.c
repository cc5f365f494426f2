/* SPDX-License-Identifier: BSD-3-Clause */
/* A handover on one host: the destination is given the descriptors of the guest's memory and maps it,
 * and no page is sent. Until the grant the memory is the source's: the destination's devices are
 * quiet and nothing of it writes (docs/design.md, Same-host handover). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "engine/engine.h"

#define NEED "needs=" ENGINE_LOCAL_NEED
#define BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"

int engine_boot_id(char out[ENGINE_BOOT_ID_BYTES])
{
    int fd = open(BOOT_ID_PATH, O_RDONLY | O_CLOEXEC);
    size_t size = 0;
    ssize_t got = fd < 0 ? 0 : 1;

    /* A part of it would be another machine's for the peer. */
    while (got > 0 && size < ENGINE_BOOT_ID_BYTES - 1) {
        got = read(fd, out + size, ENGINE_BOOT_ID_BYTES - 1 - size);
        if (got < 0 && errno == EINTR)
            got = 1;
        else if (got > 0)
            size += (size_t)got;
    }
    if (fd >= 0)
        close(fd);
    out[got < 0 ? 0 : size] = 0;
    out[strcspn(out, "\n")] = 0;
    return *out ? 0 : -ENOENT;
}

/* Shared memory that both can write and that nobody can cut short under the other's mapping. */
static int check_fd(int fd, uint64_t offset, uint64_t size, uint32_t block, enum vfmig_origin whose,
                    struct vfmig_error *reterr)
{
    struct stat stat = {0};
    struct statfs fs = {0};
    const char *why = NULL;
    int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS);

    if (seals < 0 || fstat(fd, &stat) < 0 || !S_ISREG(stat.st_mode) || fstatfs(fd, &fs) < 0 ||
        ((long)fs.f_type != TMPFS_MAGIC && (long)fs.f_type != HUGETLBFS_MAGIC))
        why = "it is no memfd";
    else if (!(seals & F_SEAL_SHRINK))
        why = "it is not sealed against shrinking";
    else if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) || (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR)
        why = "it cannot be written";
    else if ((uint64_t)stat.st_size < size || offset > (uint64_t)stat.st_size - size)
        why = "it is shorter than the block";
    return why ? vfmig_error_set(reterr, -ENOTSUP, whose, block,
                                 "the memory of block %u cannot be passed on: %s", block, why)
               : 0;
}

int engine_local_check(const struct vfmig_vm *vm, const char *uri, struct vfmig_error *reterr)
{
    const struct vfmig_memory *memory = &vm->memory;
    int ret = 0;

    if (strncmp(uri, "unix:", 5))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "memory is passed on over unix:PATH only, not to %s", uri);
    if (memory->block_count > VFMIG_MAX_MSG_FDS)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                               "%u blocks of memory, at most %u can be passed on",
                               memory->block_count, VFMIG_MAX_MSG_FDS);
    for (uint32_t i = 0; ret == 0 && i < memory->block_count; i++)
        ret = check_fd(memory->blocks[i].fd, memory->blocks[i].fd_offset, memory->blocks[i].size, i,
                       VFMIG_ORIGIN_LOCAL, reterr);
    return ret;
}

bool engine_local_asked(const char *identity)
{
    const char *at = strstr(identity, "\n" NEED);

    return at || strncmp(identity, NEED, strlen(NEED)) == 0;
}

int engine_local_send(struct engine *e, struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    struct vfmig_shared_block blocks[VFMIG_MAX_MSG_FDS];
    uint8_t out[VFMIG_SHARED_BYTES_MAX];
    struct vfmig_fds fds = {.count = e->vm.memory.block_count};

    if (!e->options.local)
        return 0;
    for (uint32_t i = 0; i < fds.count; i++) {
        const struct vfmig_ram_block *block = &e->vm.memory.blocks[i];
        blocks[i] = (struct vfmig_shared_block){block->gpa, block->size, block->fd_offset};
        fds.fd[i] = block->fd;
    }
    return vfmig_channel_send_fds(channel, VFMIG_RECORD_RAMFDS, out,
                                  vfmig_shared_encode(out, blocks, fds.count), &fds, reterr);
}

/* What came must be the memory that both sides have agreed upon. */
static int check_blocks(const struct vfmig_memory *memory, const struct vfmig_shared_block *blocks,
                        uint32_t count, const struct vfmig_fds *fds, struct vfmig_error *reterr)
{
    int ret = 0;

    if (count != memory->block_count || fds->count != count)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_RAMFDS,
                               "%u descriptors came for %u blocks of memory, there are %u",
                               fds->count, count, memory->block_count);
    for (uint32_t i = 0; ret == 0 && i < count; i++) {
        if (blocks[i].gpa != memory->blocks[i].gpa || blocks[i].size != memory->blocks[i].size)
            return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_RAMFDS,
                                   "block %u that was passed on is another one", i);
        ret = check_fd(fds->fd[i], blocks[i].fd_offset, blocks[i].size, i, VFMIG_ORIGIN_PEER, reterr);
    }
    return ret;
}

int engine_local_record(struct engine *e, const struct vfmig_record *record,
                        struct vfmig_error *reterr)
{
    struct vfmig_shared_block blocks[VFMIG_MAX_MSG_FDS];
    struct vfmig_fds fds = {0};
    uint32_t count = 0;
    int ret;

    if (!e->local)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record->tag,
                               "memory was passed on, which was not agreed");
    vfmig_channel_take_fds(e->channels[0], &fds);
    ret = vfmig_shared_decode(record->payload, record->length, blocks, &count, reterr);
    if (ret == 0)
        ret = check_blocks(&e->vm.memory, blocks, count, &fds, reterr);
    pthread_mutex_lock(&e->inbox_lock);
    if (ret == 0 && e->shared.count)
        ret = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record->tag,
                              "memory was passed on twice");
    if (ret == 0) {
        vfmig_fds_move(&e->shared, &fds);
        for (uint32_t i = 0; i < count; i++)
            e->shared_offset[i] = blocks[i].fd_offset;
        pthread_cond_broadcast(&e->inbox_wake);
    }
    pthread_mutex_unlock(&e->inbox_lock);
    vfmig_fds_close(&fds);
    return ret;
}

int engine_local_adopt(struct engine *e, struct vfmig_error *reterr)
{
    int ret = 0;

    if (!e->local || vfmig_sabotage("skip-adoption"))
        return 0;
    pthread_mutex_lock(&e->inbox_lock);
    while (!e->shared.count && !e->inbox_cut && !atomic_load(&e->abort))
        pthread_cond_wait(&e->inbox_wake, &e->inbox_lock);
    bool here = e->shared.count;
    pthread_mutex_unlock(&e->inbox_lock);
    if (!here && atomic_load(&e->abort))
        return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                               "the migration was given up");
    if (!here)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_RAMFDS,
                               "the stream ended before memory was passed on");
    e->adopted = true;
    for (uint32_t i = 0; i < e->shared.count; i++) {
        int fd = vfmig_fds_take(&e->shared, i); /* the count stays: they came once */
        if (ret == 0)
            ret = e->vm.ops->memory_adopt(e->vm.opaque, i, fd, e->shared_offset[i], reterr);
        close(fd);
    }
    return ret;
}

int engine_local_return(struct engine *e, struct vfmig_error *reterr)
{
    int first = 0;

    for (uint32_t i = 0; e->adopted && i < e->vm.memory.block_count; i++) {
        int ret = e->vm.ops->memory_adopt(e->vm.opaque, i, -1, 0, first ? NULL : reterr);
        first = first ? first : ret;
    }
    e->adopted = false;
    return first;
}

void engine_local_forget(struct engine *e)
{
    vfmig_fds_close(&e->shared);
    e->local = false;
}
