/* SPDX-License-Identifier: BSD-3-Clause */
/* Steps: done, recorded; what a rule starts from. */
#include <unistd.h>

#include "check/rule.h"
#include "io/sock.h"

static const struct {
    const char *name;
    uint32_t bits;
} states[VFMIG_STATE_COUNT] = {
    [VFMIG_STATE_ERROR] = {"ERROR", VFMIG_V1_ERROR},
    [VFMIG_STATE_STOP] = {"STOP", 0},
    [VFMIG_STATE_RUNNING] = {"RUNNING", VFMIG_V1_RUNNING},
    [VFMIG_STATE_STOP_COPY] = {"STOP_COPY", VFMIG_V1_SAVING},
    [VFMIG_STATE_RESUMING] = {"RESUMING", VFMIG_V1_RESUMING},
    [VFMIG_STATE_RUNNING_NDMA] = {"RUNNING_NDMA", VFMIG_V1_NDMA | VFMIG_V1_RUNNING},
    [VFMIG_STATE_PRE_COPY] = {"PRE_COPY", VFMIG_V1_SAVING | VFMIG_V1_RUNNING},
    [VFMIG_STATE_PRE_COPY_NDMA] = {"PRE_COPY_NDMA",
                                   VFMIG_V1_SAVING | VFMIG_V1_NDMA | VFMIG_V1_RUNNING},
};

const char *check_state_name(unsigned state)
{
    return state < VFMIG_STATE_COUNT ? states[state].name : "no state";
}

uint32_t check_raw_of(const struct check *c, enum vfmig_state state)
{
    return c->dialect == CHECK_DIALECT_REGION ? states[state].bits : (uint32_t)state;
}

unsigned check_state_of(const struct check *c, uint32_t raw)
{
    if (c->dialect == CHECK_DIALECT_FEATURE)
        return raw < VFMIG_STATE_COUNT ? raw : CHECK_STATE_NONE;
    /* N says nothing new without R (8, 10, 12), except that S|Z|N is none. */
    if (!(raw & VFMIG_V1_RUNNING) && raw != (VFMIG_V1_ERROR | VFMIG_V1_NDMA))
        raw &= ~VFMIG_V1_NDMA;
    for (unsigned i = 0; i < VFMIG_STATE_COUNT; i++)
        if (states[i].bits == raw)
            return i;
    return CHECK_STATE_NONE;
}

bool check_runs(enum vfmig_state state)
{
    return state != VFMIG_STATE_ERROR && (states[state].bits & VFMIG_V1_RUNNING);
}

bool check_has_ndma(const struct check *c)
{
    return c->dialect == CHECK_DIALECT_REGION ? c->port->facts.region_ndma
                                              : (c->port->facts.features & VFMIG_FEATURE_NDMA) != 0;
}

bool check_has_pre_copy(const struct check *c)
{
    /* Every v1 driver must accept it. */
    return c->dialect == CHECK_DIALECT_REGION || c->port->facts.features & VFMIG_FEATURE_PRE_COPY;
}

bool check_has(const struct check *c, enum vfmig_state state)
{
    if (state == VFMIG_STATE_RUNNING_NDMA)
        return check_has_ndma(c);
    if (state == VFMIG_STATE_PRE_COPY)
        return check_has_pre_copy(c);
    return state != VFMIG_STATE_PRE_COPY_NDMA || (check_has_ndma(c) && check_has_pre_copy(c));
}

/* xorshift64*, seeded with anything but 0. */
uint64_t check_random(struct check *c, uint64_t below)
{
    c->random ^= c->random >> 12;
    c->random ^= c->random << 25;
    c->random ^= c->random >> 27;
    return below ? (c->random * 0x2545f4914f6cdd1dull >> 11) % below : 0;
}

bool check_bar(const struct check *c, uint32_t *ret_region, uint64_t *ret_size)
{
    const struct check_facts *facts = &c->port->facts;
    uint32_t both = VFMIG_USER_REGION_F_READ | VFMIG_USER_REGION_F_WRITE;

    for (uint32_t i = 0; i <= VFMIG_REGION_BAR5 && i < facts->region_count; i++)
        if (facts->region_size[i] >= 8 && (facts->region_flags[i] & both) == both) {
            *ret_region = i;
            *ret_size = facts->region_size[i];
            return true;
        }
    return false;
}

/* ---- steps ---- */

static void keep(struct check *c, const struct check_step *step, uint64_t bytes)
{
    struct check_kept *kept = &c->kept[c->kept_count];

    if (!c->kept || c->kept_count == CHECK_MAX_KEPT ||
        c->kept_bytes + bytes > CHECK_MAX_KEPT_BYTES) {
        c->kept_cut = true;
        return;
    }
    kept->step = *step;
    kept->data = bytes ? malloc(bytes) : NULL;
    if (bytes && !kept->data) {
        c->kept_cut = true;
        return;
    }
    if (bytes)
        memcpy(kept->data, step->data, bytes);
    kept->step.data = kept->data;
    kept->step.room = NULL;
    c->kept_bytes += bytes;
    c->kept_count++;
}

static uint64_t bytes_sent(const struct check_step *step)
{
    switch (step->kind) {
#define STEP(id, name, numbers, sends, gets, help)                                                 \
    case CHECK_STEP_##id:                                                                          \
        return (sends) ? step->arg[(numbers) > 0 ? (numbers)-1 : 0] : 0;
#include "check/steps.def"
    default:
        return 0;
    }
}

/* Memory is ours: no port is asked. */
static bool run_memory(struct check_port *port, struct check_step *step)
{
    uint64_t offset = step->arg[0], size = step->arg[1];

    if (step->kind != CHECK_STEP_MEMORY_FILL && step->kind != CHECK_STEP_MEMORY_PUT)
        return false;
    step->result = offset <= CHECK_MEMORY && size <= CHECK_MEMORY - offset ? 0 : -ERANGE;
    if (step->result == 0 && step->kind == CHECK_STEP_MEMORY_FILL)
        memset(port->memory + offset, (int)step->arg[2], size);
    else if (step->result == 0 && size)
        memcpy(port->memory + offset, step->data, size);
    return true;
}

void check_run_step(struct check_port *port, struct check_step *step)
{
    port->step_number++;
    if (port->trouble && step->kind != CHECK_STEP_CONNECT)
        step->result = -ENOTCONN;
    else if (!run_memory(port, step))
        port->ops->run(port, step);
}

int64_t check_do(struct check *c, struct check_step *step)
{
    if (c->port->trouble && step->kind != CHECK_STEP_CONNECT)
        return step->result = -ENOTCONN;
    check_run_step(c->port, step);
    c->result.steps++;
    keep(c, step, bytes_sent(step));
    return step->result;
}

int check_raw(struct check *c, uint32_t *ret_raw)
{
    struct check_step step = {.kind = CHECK_STEP_STATE_GET};
    int64_t r = check_do(c, &step);

    *ret_raw = (uint32_t)step.value;
    return (int)r;
}

unsigned check_now(struct check *c)
{
    uint32_t raw = 0;

    return check_raw(c, &raw) < 0 ? CHECK_STATE_NONE : check_state_of(c, raw);
}

int check_set_raw(struct check *c, uint32_t raw)
{
    struct check_step step = {.kind = CHECK_STEP_STATE_SET, .arg = {raw}};

    return (int)check_do(c, &step);
}

int check_go(struct check *c, enum vfmig_state state)
{
    return check_set_raw(c, check_raw_of(c, state));
}

int check_reset(struct check *c)
{
    struct check_step step = {.kind = CHECK_STEP_RESET};

    return (int)check_do(c, &step);
}

int check_reconnect(struct check *c)
{
    struct check_step step = {.kind = CHECK_STEP_CONNECT};

    return (int)check_do(c, &step);
}

int check_read(struct check *c, uint32_t region, uint64_t offset, void *data, uint32_t size)
{
    struct check_step step = {.kind = CHECK_STEP_REGION_READ,
                              .arg = {region, offset, size},
                              .room = data,
                              .room_size = size};

    return (int)check_do(c, &step);
}

int check_write(struct check *c, uint32_t region, uint64_t offset, const void *data, uint32_t size)
{
    struct check_step step = {
        .kind = CHECK_STEP_REGION_WRITE, .arg = {region, offset, size}, .data = data};

    return (int)check_do(c, &step);
}

int check_get_feature(struct check *c, uint32_t id, void *data, uint32_t size)
{
    struct check_step step = {
        .kind = CHECK_STEP_FEATURE_GET, .arg = {id, size, 0}, .room = data, .room_size = size};

    return (int)check_do(c, &step);
}

int check_command(struct check *c, uint32_t command, uint32_t flags, const void *payload,
                  uint32_t size)
{
    static uint8_t room[CHECK_MAX_DATA];
    struct check_step step = {.kind = CHECK_STEP_COMMAND,
                              .arg = {command, flags, size},
                              .data = payload,
                              .room = room,
                              .room_size = sizeof(room)};

    return (int)check_do(c, &step);
}

int check_log_start(struct check *c, uint64_t page_size, uint64_t iova, uint64_t length)
{
    struct vfmig_user_log_range range = {iova, length};
    struct check_step step = {.kind = CHECK_STEP_LOG_START,
                              .arg = {page_size, length ? sizeof(range) : 0},
                              .data = &range};

    return (int)check_do(c, &step);
}

int check_log_stop(struct check *c)
{
    struct check_step step = {.kind = CHECK_STEP_LOG_STOP};

    return (int)check_do(c, &step);
}

int check_log_report(struct check *c, uint64_t iova, uint64_t length, uint64_t page_size,
                     uint64_t *bitmap, uint32_t room)
{
    struct check_step step = {.kind = CHECK_STEP_LOG_REPORT,
                              .arg = {iova, length, page_size},
                              .room = bitmap,
                              .room_size = room};

    memset(bitmap, 0, room);
    return (int)check_do(c, &step);
}

int check_map(struct check *c, uint64_t iova, uint64_t length, uint64_t offset, bool by_message)
{
    struct check_step step = {.kind = CHECK_STEP_MAP, .arg = {iova, length, offset, by_message}};

    return (int)check_do(c, &step);
}

int check_unmap(struct check *c, uint64_t iova, uint64_t length)
{
    struct check_step step = {.kind = CHECK_STEP_UNMAP, .arg = {iova, length}};

    return (int)check_do(c, &step);
}

int check_irqs(struct check *c, uint32_t count)
{
    struct check_step step = {.kind = CHECK_STEP_IRQS, .arg = {VFMIG_IRQ_MSIX, 0, count}};

    for (uint32_t v = 0; v < CHECK_MAX_VECTORS; v++)
        check_irq_seen(c, v);
    return (int)check_do(c, &step);
}

bool check_irq_seen(struct check *c, uint32_t vector)
{
    uint64_t count;

    return read(c->port->irq_fd[vector], &count, sizeof(count)) == sizeof(count);
}

void check_fill(struct check *c, uint64_t offset, uint64_t size, uint8_t value)
{
    struct check_step step = {.kind = CHECK_STEP_MEMORY_FILL, .arg = {offset, size, value}};

    check_do(c, &step);
}

void check_serve(struct check *c, uint32_t ms)
{
    struct check_step step = {.kind = CHECK_STEP_DMA_SERVE, .arg = {ms}};

    check_do(c, &step);
}

void check_hold(struct check *c, uint32_t ms)
{
    struct check_step step = {.kind = CHECK_STEP_DMA_HOLD, .arg = {ms}};

    check_do(c, &step);
}

bool check_wait(struct check *c, uint64_t *begin)
{
    uint64_t now = vfmig_now_ns();

    if (*begin == 0)
        *begin = now;
    check_serve(c, 1);
    return !c->port->trouble && now - *begin < c->port->deadline_ms * 1000000ull;
}

/* ---- where a rule starts ---- */

/* Outside of the record: every replay starts so too. */
static int64_t quietly(struct check_port *port, enum check_step_kind kind, uint64_t arg0,
                       uint64_t *ret_value)
{
    struct check_step step = {.kind = kind, .arg = {arg0}};

    if (port->trouble && kind != CHECK_STEP_CONNECT)
        return -ENOTCONN;
    port->ops->run(port, &step);
    if (ret_value)
        *ret_value = step.value;
    return step.result;
}

static bool is_running(struct check *c)
{
    uint64_t raw = 0;

    return quietly(c->port, CHECK_STEP_STATE_GET, 0, &raw) == 0 &&
           raw == check_raw_of(c, VFMIG_STATE_RUNNING);
}

/* A connection that is new has no mappings and no log, and by C45 a device that runs. */
static bool fresh(struct check *c)
{
    struct check_port *port = c->port;

    if (quietly(port, CHECK_STEP_CONNECT, 0, NULL) < 0)
        return false;
    if (!is_running(c)) {
        quietly(port, CHECK_STEP_RESET, 0, NULL);
        if (!is_running(c))
            quietly(port, CHECK_STEP_STATE_SET, check_raw_of(c, VFMIG_STATE_RUNNING), NULL);
    }
    return is_running(c);
}

bool check_baseline(struct check *c)
{
    struct check_port *port = c->port;

    port->dialect = c->dialect;
    memset(&port->dma, 0, sizeof(port->dma));
    return fresh(c);
}

bool check_peer_begin(struct check *c)
{
    struct check second = {.port = c->peer, .dialect = c->dialect};

    return check_baseline(&second) ||
           check_that(c, false, "the second device can be had in RUNNING", "it cannot: %s",
                      c->peer->trouble_text);
}

int check_peer_go(struct check *c, enum vfmig_state state)
{
    struct check_step step = {.kind = CHECK_STEP_STATE_SET, .arg = {check_raw_of(c, state)}};

    check_run_step(c->peer, &step);
    return (int)step.result;
}

int check_peer_read(struct check *c, uint32_t region, uint64_t offset, void *data, uint32_t size)
{
    struct check_step step = {.kind = CHECK_STEP_REGION_READ,
                              .arg = {region, offset, size},
                              .room = data,
                              .room_size = size};

    check_run_step(c->peer, &step);
    return (int)step.result;
}

void check_session_begin(struct check *c)
{
    c->kept = calloc(CHECK_MAX_KEPT, sizeof(*c->kept));
    c->kept_count = 0;
    c->kept_bytes = 0;
    c->kept_cut = c->kept == NULL;
    c->found = c->last_shows = false;
}

void check_session_end(struct check *c)
{
    for (uint32_t i = 0; i < c->kept_count; i++)
        free(c->kept[i].data);
    free(c->kept);
    c->kept = NULL;
    c->kept_count = 0;
}
