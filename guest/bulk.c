/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's driver of the bulk device. In rounds: it stops the device's own writing, lets it make
 * a digest twice and compares them, looks at a block, and lets the device write again. A move in
 * the middle of a round must change neither the digest nor the number of writes. */
#include "guest/guest.h"

#include "devices/bulk_regs.h"

#define CHECK_US 20000u  /* a step of a round this often, because each access is an exit */
#define WRITE_US 150000u /* between rounds, in which the device writes */

enum phase { PHASE_NONE = 0, PHASE_FIRST, PHASE_SECOND };

struct driver {
    const struct guest_env *env;
    struct guest_bulk *bulk;
    struct guest_device_score *score;
    uint64_t bar_gpa;
    uint32_t index, vcpu;
};

static uint64_t get(const struct driver *d, uint32_t offset)
{
    return guest_read64(d->env, d->vcpu, d->bar_gpa + offset);
}

static void put(const struct driver *d, uint32_t offset, uint32_t value)
{
    guest_write32(d->env, d->vcpu, d->bar_gpa + offset, value);
}

static void expect(const struct driver *d, uint32_t what, uint64_t want, uint64_t found)
{
    if (want != found)
        guest_fail(d->env, d->vcpu, GUEST_ERROR_SRAM, (uint64_t)d->index << 32 | what, want, found,
                   d->bulk->written);
}

static void begin(const struct driver *d)
{
    struct guest_bulk *b = d->bulk;
    if (!b->blocks) {
        b->blocks = get(d, BULK_REG_SIZE) / BULK_BLOCK;
        if (!b->blocks || b->blocks > UINT32_MAX / 2) {
            guest_fail(d->env, d->vcpu, GUEST_ERROR_DEVICE, (uint64_t)d->index << 32 | BULK_REG_SIZE,
                       1, b->blocks, 0);
            b->blocks = 1;
        }
        b->inverse = bulk_inverse(b->blocks);
    }
    expect(d, BULK_REG_SIZE, b->blocks * BULK_BLOCK, get(d, BULK_REG_SIZE));
    put(d, BULK_REG_CTRL, 0);
    b->written = get(d, BULK_REG_WRITTEN);
    put(d, BULK_REG_COMMAND, BULK_COMMAND_DIGEST);
    b->phase = PHASE_FIRST;
}

/* A block at random must be as the last write to it left it; some of its words are read. */
static void check_block(const struct driver *d)
{
    struct guest_bulk *b = d->bulk;
    if (!b->blocks) /* only in a foreign state, which must not end a host that runs this program */
        return;
    b->order += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t random = guest_mix(b->order), block = random % b->blocks;
    uint64_t sequence = bulk_sequence(b->blocks, b->inverse, block, b->written);
    uint32_t words[] = {0, 1, 2 + (uint32_t)(random >> 40) % (BULK_BLOCK_WORDS - 2),
                        BULK_BLOCK_WORDS - 1};
    guest_write64(d->env, d->vcpu, d->bar_gpa + BULK_REG_SELECT, block);
    for (uint32_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        expect(d, BULK_WINDOW + words[i] * 8, bulk_word(block, sequence, words[i]),
               get(d, BULK_WINDOW + words[i] * 8));
}

static void end(const struct driver *d)
{
    struct guest_bulk *b = d->bulk;
    expect(d, BULK_REG_DIGEST, b->digest, get(d, BULK_REG_DIGEST));
    check_block(d);
    expect(d, BULK_REG_WRITTEN, b->written, get(d, BULK_REG_WRITTEN));
    put(d, BULK_REG_CTRL, BULK_CTRL_RUN);
    __atomic_store_n(&d->score->digest_at, UINT64_MAX, __ATOMIC_RELEASE);
    __atomic_store_n(&d->score->digest, b->digest, __ATOMIC_RELEASE);
    __atomic_store_n(&d->score->digest_at, b->written, __ATOMIC_RELEASE);
    guest_bump(&d->score->sram_checks, 1);
    guest_bump(&d->score->checked, 1);
    b->phase = PHASE_NONE;
}

void guest_bulk_step(const struct guest_env *env, uint32_t vcpu, uint32_t index, uint64_t elapsed_tsc)
{
    const struct guest_params *params = guest_params(env);
    const struct guest_device_params *device = &params->devices[index];
    struct guest_bulk *b = guest_at(env, device->heap_gpa, sizeof(*b));
    struct driver d = {.env = env, .bulk = b, .bar_gpa = device->bar_gpa, .index = index, .vcpu = vcpu};
    d.score = &guest_scoreboard(env)->device[index];
    b->check_tsc += elapsed_tsc;
    uint64_t wait_us = b->phase == PHASE_NONE && b->blocks ? WRITE_US : CHECK_US;
    if (b->check_tsc < wait_us * params->tsc_khz / 1000)
        return;
    b->check_tsc = 0;
    if (b->phase == PHASE_NONE) {
        begin(&d);
    } else if (!(guest_read32(env, vcpu, device->bar_gpa + BULK_REG_STATUS) & BULK_STATUS_BUSY)) {
        expect(&d, BULK_REG_DIGEST_AT, b->written, get(&d, BULK_REG_DIGEST_AT));
        if (b->phase == PHASE_SECOND) {
            end(&d);
            return;
        }
        b->digest = get(&d, BULK_REG_DIGEST);
        put(&d, BULK_REG_COMMAND, BULK_COMMAND_DIGEST);
        b->phase = PHASE_SECOND;
    }
}
