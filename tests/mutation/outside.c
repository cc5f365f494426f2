/* SPDX-License-Identifier: BSD-3-Clause */
/* Is there anything that a client of the device could see? For scripts/mutate.py: two builds of the
 * device machine, the one of the tree and a changed one, are led through all that clients can make
 * happen, side by side. Every pair of states that can be reached is visited, so that "the same" is
 * a proof and no sample: nobody outside can tell the two apart.
 *
 * What can happen: any write of device_state, v1 and v2; resets; a client that goes; the end of
 * whatever is awaited, now or later, or of what a reset has ended; the time of a drain. What the
 * machine asks of a device succeeds, as it does with ours, except a load, which a client can spoil.
 *
 *   outside TREE.so CHANGED.so    0: the same, 1: not, and the first difference is printed */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/dev.h"

#define TIMEOUT_NS 10u
#define NOW_NS     1000u
#define TOKEN      100u /* of what is awaited, after each step: tokens are only ever compared */
#define SLOTS      (1u << 24)
#define MAX_PAIRS  (SLOTS / 4)
#define WRITE_ID   6u
#define RESET_ID   10u
#define VALUES_V1  18u /* all of four bits, and some */
#define VALUES_V2  10u

struct machine {
    int (*init)(struct vfmig_dev *, uint32_t, uint64_t);
    int (*step)(struct vfmig_dev *, const struct vfmig_dev_event *, uint64_t,
                struct vfmig_dev_actions *);
    uint64_t (*deadline)(const struct vfmig_dev *);
    enum vfmig_state (*state)(const struct vfmig_dev *);
    bool (*busy)(const struct vfmig_dev *);
};

/* Both machines, and what their world knows. The server drops answers to what is not open. */
struct pair {
    struct vfmig_dev dev[2];
    uint32_t awaited; /* enum vfmig_dev_call, of the last awaited action */
    uint16_t gone;    /* the client is, and the next one waits */
    uint16_t open;    /* requests without an answer, bit per id */
};

static struct machine machines[2];
static struct pair *pairs;
static uint32_t *slots, count;

static void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);

    if (!found) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return found;
}

static void load(struct machine *m, const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    *(void **)&m->init = symbol(library, "vfmig_dev_init");
    *(void **)&m->step = symbol(library, "vfmig_dev_step");
    *(void **)&m->deadline = symbol(library, "vfmig_dev_deadline");
    *(void **)&m->state = symbol(library, "vfmig_dev_state");
    *(void **)&m->busy = symbol(library, "vfmig_dev_busy");
}

static void visit(const struct pair *pair)
{
    const uint8_t *bytes = (const uint8_t *)pair;
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < sizeof(*pair); i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    for (uint32_t at = (uint32_t)(hash >> 20) % SLOTS;; at = (at + 1) % SLOTS) {
        if (slots[at] && !memcmp(&pairs[slots[at] - 1], pair, sizeof(*pair)))
            return;
        if (slots[at])
            continue;
        if (count == MAX_PAIRS) {
            fprintf(stderr, "more than %u pairs of states\n", MAX_PAIRS);
            exit(2);
        }
        pairs[count++] = *pair;
        slots[at] = count;
        return;
    }
}

static _Noreturn void differ(const struct vfmig_dev_event *event, const char *what)
{
    printf("event %d, value %u, err %d: %s\n", event->type, event->value, event->err, what);
    exit(1);
}

static bool is_awaited(const struct vfmig_dev_action *action)
{
    return action->type == VFMIG_DEV_ACT_CALL || action->type == VFMIG_DEV_ACT_GATE_SHUT;
}

static bool same_action(const struct vfmig_dev_action *a, const struct vfmig_dev_action *b)
{
    if (a->type != b->type)
        return false;
    if (a->type == VFMIG_DEV_ACT_REPLY)
        return a->err == b->err && a->id == b->id;
    return a->type != VFMIG_DEV_ACT_CALL || a->call == b->call;
}

static bool same_look(const struct vfmig_dev *a, const struct vfmig_dev *b)
{
    return a->shown == b->shown && a->gate == b->gate && a->running == b->running &&
           a->stream == b->stream && machines[0].state(a) == machines[1].state(b) &&
           machines[0].busy(a) == machines[1].busy(b) &&
           machines[0].deadline(a) == machines[1].deadline(b);
}

/* Leaves out the answers that the server drops; *open: what is open after the others. */
static void drop_answers(struct vfmig_dev_actions *actions, uint16_t *open)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < actions->count; i++) {
        const struct vfmig_dev_action *action = &actions->list[i];
        if (action->type == VFMIG_DEV_ACT_REPLY) {
            uint32_t bit = action->id < 16 ? 1u << action->id : 0;
            if (!(*open & bit))
                continue;
            *open &= (uint16_t)~bit;
        }
        actions->list[kept++] = *action;
    }
    actions->count = kept;
}

static void compare_actions(struct pair *pair, const struct vfmig_dev_event *event,
                            const struct vfmig_dev_actions *actions)
{
    if (actions[0].count != actions[1].count)
        differ(event, "more or fewer actions");
    for (uint32_t i = 0; i < actions[0].count; i++) {
        const struct vfmig_dev_action *a = &actions[0].list[i], *b = &actions[1].list[i];
        if (!same_action(a, b))
            differ(event, "another action");
        if (is_awaited(a) &&
            (a->token != TOKEN + 1 || b->token != TOKEN + 1 || pair->dev[1].token != TOKEN + 1))
            differ(event, "a token that is not the next one");
        if (is_awaited(a))
            pair->awaited = a->type == VFMIG_DEV_ACT_CALL ? a->call : VFMIG_DEV_CALL_NONE;
        if (a->type == VFMIG_DEV_ACT_RELEASED)
            pair->gone = 0;
    }
}

static void happen(const struct pair *from, struct vfmig_dev_event event, uint64_t now_ns)
{
    struct pair pair = *from;
    struct vfmig_dev_actions actions[2];
    uint16_t open[2] = {pair.open, pair.open};

    for (int i = 0; i < 2; i++) {
        memset(&actions[i], 0, sizeof(actions[i]));
        if (machines[i].step(&pair.dev[i], &event, now_ns, &actions[i]))
            differ(&event, "an event is refused");
        drop_answers(&actions[i], &open[i]);
    }
    compare_actions(&pair, &event, actions);
    pair.open = pair.gone ? 0 : open[0];
    if (pair.dev[0].token != pair.dev[1].token)
        differ(&event, "another token");
    if (!same_look(&pair.dev[0], &pair.dev[1]))
        differ(&event, "another look");
    pair.dev[0].token = pair.dev[1].token = TOKEN;
    visit(&pair);
}

/* A request of the client: the first id of its kind that is not open. */
static void request(const struct pair *from, enum vfmig_dev_event_type type, uint32_t value,
                    uint32_t id)
{
    struct pair pair = *from;

    while (pair.open >> id & 1)
        id++;
    pair.open |= (uint16_t)(1u << id);
    happen(&pair, (struct vfmig_dev_event){type, value, id, 0, 0}, NOW_NS);
}

static void all_that_clients_do(const struct pair *pair)
{
    for (uint32_t value = 0; value < VALUES_V1; value++)
        request(pair, VFMIG_DEV_EVENT_WRITE_V1, value, WRITE_ID);
    for (uint32_t value = 0; value < VALUES_V2; value++)
        request(pair, VFMIG_DEV_EVENT_SET_V2, value, WRITE_ID);
    request(pair, VFMIG_DEV_EVENT_RESET, 0, RESET_ID);
    struct pair last = *pair;
    last.gone = 1;
    happen(&last, (struct vfmig_dev_event){VFMIG_DEV_EVENT_OWNER_GONE, 0, 0, 0, 0}, NOW_NS);
}

static void all_that_happens(const struct pair *pair)
{
    uint64_t due = machines[0].deadline(&pair->dev[0]);
    struct vfmig_dev_event done = {VFMIG_DEV_EVENT_STEP_DONE, 0, 0, TOKEN, 0};
    struct vfmig_dev_event tick = {VFMIG_DEV_EVENT_TICK, 0, 0, 0, 0};

    if (!pair->gone)
        all_that_clients_do(pair);
    if (machines[0].busy(&pair->dev[0]))
        happen(pair, done, NOW_NS);
    if (pair->awaited == VFMIG_DEV_CALL_LOAD) {
        done.err = -EINVAL;
        happen(pair, done, NOW_NS);
        done.err = 0;
    }
    done.token = TOKEN - 1; /* of what a reset has ended */
    happen(pair, done, NOW_NS);
    if (due == UINT64_MAX)
        return;
    happen(pair, tick, due - 1);
    happen(pair, tick, due);
    happen(pair, tick, due + TIMEOUT_NS);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    for (int i = 0; i < 2; i++)
        load(&machines[i], argv[1 + i]);
    slots = calloc(SLOTS, sizeof(*slots));
    pairs = malloc(MAX_PAIRS * sizeof(*pairs));
    if (!slots || !pairs)
        return 2;
    for (uint32_t more = 0; more < 4; more++) {
        struct pair pair;
        uint32_t features = VFMIG_FEATURE_STOP_COPY | (more & 1 ? VFMIG_FEATURE_NDMA : 0) |
                            (more & 2 ? VFMIG_FEATURE_PRE_COPY : 0);
        memset(&pair, 0, sizeof(pair));
        for (int i = 0; i < 2; i++) {
            if (machines[i].init(&pair.dev[i], features, TIMEOUT_NS))
                differ(&(struct vfmig_dev_event){0}, "no such device");
            pair.dev[i].token = TOKEN;
        }
        if (!same_look(&pair.dev[0], &pair.dev[1]))
            differ(&(struct vfmig_dev_event){0}, "another beginning");
        visit(&pair);
    }
    for (uint32_t at = 0; at < count; at++) {
        struct pair pair = pairs[at];
        all_that_happens(&pair);
    }
    printf("the same in %u pairs of states\n", count);
    return 0;
}
