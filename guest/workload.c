/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's main loop: dirties pages, checks them before it overwrites them, watches the clock. */
#include "guest/guest.h"

#include "vmm/guest_asm.h"

#define PAUSE_MIN_NS    2000000u
#define CREDIT_MAX_US   50000u /* what a vCPU that was held up may catch up with */
#define PAGES_PER_STEP  64u
#define WAIT_STEP_US    10000u /* a time that the guest did not run is no waiting time */

/* Four of these are in a page, the first at its start and the last at its end. */
struct guest_tag {
    uint64_t page;
    uint32_t writer;
    uint32_t sequence;
    uint64_t filler;
    uint64_t check;
};

static const uint32_t tag_offsets[] = {0, 1376, 2720, 4096 - sizeof(struct guest_tag)};
#define TAGS (sizeof(tag_offsets) / sizeof(tag_offsets[0]))

void guest_fail(const struct guest_env *env, uint32_t vcpu, enum guest_error_code code, uint64_t d0,
                uint64_t d1, uint64_t d2, uint64_t d3)
{
    struct guest_scoreboard *score = guest_scoreboard(env);
    if (__atomic_fetch_add(&score->errors, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    score->first_vcpu = vcpu;
    score->first_detail[0] = d0;
    score->first_detail[1] = d1;
    score->first_detail[2] = d2;
    score->first_detail[3] = d3;
    __atomic_store_n(&score->first_error, (uint32_t)code, __ATOMIC_RELEASE);
}

static uint64_t ns_of(const struct guest_env *env, uint64_t tsc)
{
    uint64_t khz = guest_params(env)->tsc_khz;
    return tsc / khz * 1000000 + tsc % khz * 1000000 / khz;
}

static uint64_t tsc_of_us(const struct guest_env *env, uint64_t us)
{
    return us * guest_params(env)->tsc_khz / 1000;
}

static void start_cycle(const struct guest_env *env, struct guest_cpu *c)
{
    c->cycle++;
    c->steps = 0;
    c->order = guest_mix(guest_params(env)->seed + (c->cycle << 8) + c->index);
}

static void start_cpu(const struct guest_env *env, struct guest_cpu *c, uint32_t vcpu)
{
    const struct guest_params *params = guest_params(env);
    struct guest_scoreboard *score = guest_scoreboard(env);
    c->index = vcpu;
    c->share_first = params->working_pages * vcpu / params->vcpu_count;
    c->share_pages = params->working_pages * (vcpu + 1) / params->vcpu_count - c->share_first;
    uint32_t bits = 1;
    while (UINT64_C(1) << bits < c->share_pages)
        bits++;
    c->share_mask = (UINT64_C(1) << bits) - 1;
    c->share_shift = bits / 2 + 1;
    start_cycle(env, c);
    c->last_tsc = guest_tsc(env);
    c->started = 1;
    __atomic_store_n(&score->magic, GUEST_PARAMS_MAGIC, __ATOMIC_RELEASE);
    __atomic_fetch_add(&score->vcpus_started, 1, __ATOMIC_ACQ_REL);
}

/* The next page of this vCPU's share, in an order that meets each exactly once a cycle: a linear
 * congruential generator of full period, its bits spread by a bijection. */
static uint64_t next_page(const struct guest_env *env, struct guest_cpu *c)
{
    for (;;) {
        if (c->steps > c->share_mask) {
            guest_bump(&guest_scoreboard(env)->cpu[c->index].cycles, 1);
            start_cycle(env, c);
        }
        c->order = c->order * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        c->steps++;
        uint64_t x = c->order & c->share_mask;
        x ^= x >> c->share_shift;
        x = x * UINT64_C(0x9e3779b97f4a7c15) & c->share_mask;
        x ^= x >> c->share_shift;
        if (x < c->share_pages)
            return c->share_first + x;
    }
}

static void make_tag(struct guest_tag *tag, uint64_t page, uint32_t writer, uint32_t sequence,
                     uint32_t place)
{
    tag->page = page;
    tag->writer = writer;
    tag->sequence = sequence;
    tag->filler = guest_mix(page << 20 ^ sequence);
    tag->check = guest_mix(tag->filler ^ (uint64_t)writer << 40 ^ place);
    if (sequence == 0) /* never written: memory starts as zeroes */
        *tag = (struct guest_tag){0};
}

/* The order says which sequence a page must hold; the table says it again, from another page. */
static void write_page(const struct guest_env *env, struct guest_cpu *c)
{
    const struct guest_params *params = guest_params(env);
    uint64_t page = next_page(env, c);
    uint32_t old = (uint32_t)c->cycle - 1;
    uint8_t *data = guest_at(env, params->working_gpa + page * 4096, 4096);
    uint32_t *table = guest_at(env, params->table_gpa + page * 4, 4);
    if (*table != old)
        guest_fail(env, c->index, GUEST_ERROR_TABLE, page, old, *table, c->cycle);
    bool same = true;
    for (uint32_t i = 0; i < TAGS; i++) {
        struct guest_tag want, *tag = (struct guest_tag *)(data + tag_offsets[i]);
        make_tag(&want, page, c->index, old, i);
        if (tag->page != want.page || tag->writer != want.writer || tag->sequence != want.sequence ||
            tag->filler != want.filler || tag->check != want.check) {
            if (same)
                guest_fail(env, c->index, GUEST_ERROR_PAGE, page, old, tag->sequence, i);
            same = false;
        }
        make_tag(tag, page, c->index, old + 1, i);
    }
    *table = old + 1;
}

/* Returns the time since the last one. */
static uint64_t account_gap(const struct guest_env *env, struct guest_cpu *c, uint64_t expected_tsc)
{
    struct guest_scoreboard *board = guest_scoreboard(env);
    struct guest_cpu_score *score = &board->cpu[c->index];
    uint64_t now, moves;
    do { /* a move between the two belongs to the next interval, where its pause is */
        moves = __atomic_load_n(&board->moves, __ATOMIC_ACQUIRE);
        now = guest_tsc(env);
    } while (moves != __atomic_load_n(&board->moves, __ATOMIC_ACQUIRE));
    uint64_t gap = now - c->last_tsc;
    c->last_tsc = now;
    uint64_t ns = gap > expected_tsc ? ns_of(env, gap - expected_tsc) : 0;
    uint64_t reset = __atomic_load_n(&board->pause_reset, __ATOMIC_ACQUIRE);
    if (reset != score->resets) {
        score->pause_max_ns = 0;
        __atomic_store_n(&score->resets, reset, __ATOMIC_RELEASE);
    }
    if (moves != score->moves) {
        score->pause_move_ns = ns;
        __atomic_store_n(&score->moves, moves, __ATOMIC_RELEASE);
    }
    if (ns > score->pause_max_ns)
        __atomic_store_n(&score->pause_max_ns, ns, __ATOMIC_RELAXED);
    if (ns < PAUSE_MIN_NS)
        return gap;
    score->pause_last_ns = ns;
    score->pause_last_tsc = now;
    guest_bump(&score->pauses, 1);
    return gap;
}

static void check_timer(const struct guest_env *env, struct guest_cpu *c, uint64_t elapsed_tsc)
{
    const struct guest_params *params = guest_params(env);
    if (!(params->flags & GUEST_FLAG_IRQ) || !params->timer_hz)
        return;
    uint32_t ticks = guest_irq_count(env, GUEST_VECTOR_TIMER + c->index);
    uint64_t most = tsc_of_us(env, WAIT_STEP_US);
    c->tick_wait_tsc += elapsed_tsc < most ? elapsed_tsc : most;
    if (ticks != c->ticks) {
        guest_bump(&guest_scoreboard(env)->cpu[c->index].ticks, ticks - c->ticks);
        c->ticks = ticks;
        c->tick_wait_tsc = 0;
    } else if (c->tick_wait_tsc > tsc_of_us(env, params->irq_timeout_ms * UINT64_C(1000))) {
        guest_fail(env, c->index, GUEST_ERROR_TIMER, ticks, c->tick_wait_tsc, c->loops, 0);
        c->tick_wait_tsc = 0;
    }
}

/* Pages that are due by now; 0 when the vCPU may rest. */
static uint32_t pages_due(const struct guest_env *env, struct guest_cpu *c, uint64_t elapsed_tsc)
{
    const struct guest_params *params = guest_params(env);
    if (params->rate_mib_s == GUEST_RATE_UNLIMITED)
        return PAGES_PER_STEP;
    uint64_t page_tsc =
        params->tsc_khz * 1000 * params->vcpu_count / (params->rate_mib_s * UINT64_C(256)) + 1;
    uint64_t most = tsc_of_us(env, CREDIT_MAX_US);
    c->credit_tsc += elapsed_tsc;
    if (c->credit_tsc > most)
        c->credit_tsc = most;
    uint64_t due = c->credit_tsc / page_tsc;
    if (due > PAGES_PER_STEP)
        due = PAGES_PER_STEP;
    c->credit_tsc -= due * page_tsc;
    return (uint32_t)due;
}

static void read_count(const struct guest_env *env, struct guest_cpu *c)
{
    uint64_t count = guest_read64(env, c->index, GUEST_CONTROL + GUEST_CTL_COUNT);
    if (count != c->reads)
        guest_fail(env, c->index, GUEST_ERROR_REGISTER, UINT64_C(1) << 32, c->reads, count, 0);
    c->reads = count + 1;
}

/* A sleep is no pause, but what it lasts longer than asked is one. */
static void rest(const struct guest_env *env, struct guest_cpu *c)
{
    const struct guest_params *params = guest_params(env);
    uint64_t expected = 0;
    if (params->idle == GUEST_IDLE_SLEEP) {
        expected = tsc_of_us(env, params->sleep_us);
        guest_write32(env, c->index, GUEST_CONTROL + GUEST_CTL_SLEEP, params->sleep_us);
    } else if (params->idle == GUEST_IDLE_READ) {
        read_count(env, c);
    }
#if !__STDC_HOSTED__
    if (params->idle == GUEST_IDLE_HALT && params->timer_hz) {
        expected = params->tsc_khz * 1000 / params->timer_hz;
        __asm__ volatile("ud2" : : "a"(GUEST_HALT_NUMBER) : "memory");
    }
#endif
    if (expected) {
        guest_bump(&guest_scoreboard(env)->cpu[c->index].sleeps, 1);
        c->rested_tsc = account_gap(env, c, expected);
    }
}

void guest_step(const struct guest_env *env, uint32_t vcpu)
{
    const struct guest_params *params = guest_params(env);
    struct guest_cpu *c = guest_at(env, params->cpu_gpa + vcpu * UINT64_C(4096), sizeof(*c));
    if (!c->started)
        start_cpu(env, c, vcpu);
    c->index = vcpu;
    struct guest_cpu_score *score = &guest_scoreboard(env)->cpu[vcpu];
    uint64_t elapsed = account_gap(env, c, 0) + c->rested_tsc;
    c->rested_tsc = 0;
    check_timer(env, c, elapsed);
    uint32_t pages = pages_due(env, c, elapsed);
    for (uint32_t i = 0; i < pages; i++)
        write_page(env, c);
    guest_bump(&score->pages_written, pages);
    guest_bump(&score->pages_verified, pages);
    if (params->device_count)
        guest_device_step(env, vcpu, elapsed);
    c->loops++;
    guest_bump(&score->heartbeats, 1);
    if (!pages)
        rest(env, c);
}
