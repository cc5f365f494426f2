/* SPDX-License-Identifier: BSD-3-Clause */
/* Peer to peer DMA between two dma devices, and proof that none of it was lost, doubled or late.
 * The driver of a device alone writes to the peer's blocks, in turn. Before a block is written
 * again its device reads it back, as late as possible: it must hold the last write and no other. In
 * between the peer's owner and the CPU look at it, who may find any write that is not older than
 * what they know of. */
#include "guest/guest.h"

#include "devices/dma_regs.h"

#define BLOCK_STEP            UINT64_C(0x9e3779b97f4a7c15)
#define TAG_SEQUENCE          ((UINT64_C(1) << 48) - 1)
#define TAG(writer, sequence) ((uint64_t)(writer) << 48 | (sequence))

static struct guest_dma *driver_of(const struct guest_env *env, uint32_t index)
{
    return guest_at(env, guest_params(env)->devices[index % GUEST_MAX_DEVICES].heap_gpa,
                    sizeof(struct guest_dma));
}

static struct guest_device_score *score_of(const struct guest_env *env, uint32_t index)
{
    return &guest_scoreboard(env)->device[index];
}

static uint32_t block_bytes(const struct guest_env *env)
{
    uint32_t most = guest_params(env)->dma_bytes;
    return most < GUEST_PEER_BYTES ? most : GUEST_PEER_BYTES;
}

static uint32_t block_at(uint32_t block)
{
    return GUEST_SRAM_PEER + block * GUEST_PEER_BYTES;
}

static void fail(const struct guest_env *env, uint32_t index, uint32_t block, uint64_t want,
                 uint64_t found, uint64_t more)
{
    guest_fail(env, guest_params(env)->devices[index].vcpu, GUEST_ERROR_P2P,
               (uint64_t)index << 32 | block, want, found, more);
}

static void put_block(const struct guest_env *env, uint64_t gpa, uint64_t tag)
{
    uint32_t bytes = block_bytes(env);
    uint64_t *words = guest_at(env, gpa, bytes), seed = guest_mix(tag);
    words[0] = tag;
    for (uint32_t i = 1; i < bytes / 8; i++)
        words[i] = seed + i * BLOCK_STEP;
}

/* Turns: two of three of the descriptors that are chosen for it go to the peer, the rest to what
 * the peer's peer wrote here. */
bool guest_p2p_prepare(const struct guest_env *env, uint32_t index, uint32_t slot, uint64_t random,
                       uint64_t buffer_gpa, struct dma_descriptor *desc)
{
    const struct guest_device_params *device = &guest_params(env)->devices[index];
    struct guest_p2p *p = &driver_of(env, index)->p2p;
    p->op[slot] = GUEST_P2P_NONE;
    if ((random >> 16) % 2 || (!device->peer_bar_gpa && !device->writer))
        return false;
    desc->length = block_bytes(env);
    if (!device->peer_bar_gpa || (device->writer && (random >> 24) % 3 == 0)) {
        uint32_t block = (uint32_t)(random >> 40) % GUEST_PEER_BLOCKS;
        p->op[slot] = GUEST_P2P_OWN;
        p->block[slot] = (uint8_t)block;
        desc->op = DMA_OP_SRAM_STORE;
        desc->src = block_at(block);
        desc->dst = buffer_gpa;
        put_block(env, buffer_gpa, ~random);
        return true;
    }
    uint32_t block = (uint32_t)(p->step / 2 % GUEST_PEER_BLOCKS);
    uint64_t there = device->peer_bar_gpa + DMA_SRAM + block_at(block);
    bool write = p->step++ % 2;
    p->block[slot] = (uint8_t)block;
    p->op[slot] = write ? GUEST_P2P_WRITE : GUEST_P2P_READ;
    desc->op = DMA_OP_COPY;
    desc->src = write ? buffer_gpa : there;
    desc->dst = write ? there : buffer_gpa;
    if (write) {
        p->queued[block] = TAG(index + 1, p->sequence + 1);
        __atomic_store_n(&p->sequence, p->sequence + 1, __ATOMIC_RELEASE);
    }
    p->tag[slot] = p->queued[block];
    put_block(env, buffer_gpa, write ? p->tag[slot] : ~random);
    return true;
}

/* What the device read back is what was written last, or nothing if that never was. */
static bool check_read(const struct guest_env *env, uint32_t index, uint32_t slot, uint64_t gpa)
{
    const struct guest_p2p *p = &driver_of(env, index)->p2p;
    uint32_t bytes = block_bytes(env), i = 1;
    const uint64_t *words = guest_at(env, gpa, bytes);
    uint64_t tag = p->tag[slot], seed = guest_mix(tag);
    if (words[0] != tag) {
        fail(env, index, p->block[slot], tag, words[0], p->sequence);
        return false;
    }
    while (tag && i < bytes / 8 && words[i] == seed + i * BLOCK_STEP)
        i++;
    if (!tag || i == bytes / 8)
        return true;
    fail(env, index, p->block[slot], tag, i, p->sequence);
    return false;
}

/* The own block: of the right writer, never an older write than before, and none that was not made.
 */
static bool check_own(const struct guest_env *env, uint32_t index, uint32_t block, uint64_t tag)
{
    struct guest_p2p *p = &driver_of(env, index)->p2p;
    uint32_t writer = guest_params(env)->devices[index].writer;
    const struct guest_p2p *theirs = &driver_of(env, writer - 1)->p2p;
    uint64_t made = __atomic_load_n(&theirs->sequence, __ATOMIC_ACQUIRE);
    uint64_t sequence = tag & TAG_SEQUENCE;
    bool right =
        tag ? tag >> 48 == writer && sequence <= made && tag >= p->seen[block] : !p->seen[block];
    if (!right)
        fail(env, index, block, p->seen[block], tag, made);
    p->seen[block] = tag;
    return right;
}

bool guest_p2p_complete(const struct guest_env *env, uint32_t index, uint32_t slot,
                        uint64_t buffer_gpa, bool *ret_right)
{
    struct guest_p2p *p = &driver_of(env, index)->p2p;
    struct guest_device_score *score = score_of(env, index);
    uint32_t block = p->block[slot] % GUEST_PEER_BLOCKS;
    switch ((enum guest_p2p_op)p->op[slot]) {
    case GUEST_P2P_READ:
        *ret_right = check_read(env, index, slot, buffer_gpa);
        guest_bump(&score->p2p_checked, *ret_right);
        return true;
    case GUEST_P2P_WRITE:
        p->done[block] = p->tag[slot];
        guest_bump(&score->p2p_done, 1);
        *ret_right = true;
        return true;
    case GUEST_P2P_OWN:
        *ret_right = check_own(env, index, block, *(uint64_t *)guest_at(env, buffer_gpa, 8));
        guest_bump(&score->p2p_looks, *ret_right);
        return true;
    case GUEST_P2P_NONE:
        break;
    }
    return false;
}

/* Whatever the device said is complete must be seen by a CPU that looks at the peer afterwards. */
void guest_p2p_look(const struct guest_env *env, uint32_t index)
{
    const struct guest_device_params *device = &guest_params(env)->devices[index];
    struct guest_p2p *p = &driver_of(env, index)->p2p;
    if (!device->peer_bar_gpa)
        return;
    uint32_t block = (uint32_t)(p->looks++ % GUEST_PEER_BLOCKS);
    uint64_t tag =
        guest_read64(env, device->vcpu, device->peer_bar_gpa + DMA_SRAM + block_at(block));
    if (tag >= p->done[block] && tag <= p->queued[block])
        guest_bump(&score_of(env, index)->p2p_looks, 1);
    else
        fail(env, index, block, p->done[block], tag, p->queued[block]);
}
