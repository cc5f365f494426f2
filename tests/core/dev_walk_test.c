/* SPDX-License-Identifier: BSD-3-Clause */
/* Long random walks: whatever comes in whatever order, the device is never asked for something it
 * may not be asked for (dev_rig.h) and every request is answered exactly once. */
#include "dev_rig.h"

#define EVENTS 60000u

static uint64_t seed;

static uint32_t roll(uint32_t sides)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % sides;
}

struct asked {
    bool open[4096]; /* by id */
    uint64_t next, count;
};

static uint64_t new_request(struct asked *asked)
{
    uint64_t id = asked->next++ % 4096;

    assert_false(asked->open[id]);
    asked->open[id] = true;
    asked->count++;
    return id;
}

static void settle(struct rig *rig, struct asked *asked)
{
    for (unsigned i = 0; i < rig->replies; i++) {
        assert_true(asked->open[rig->reply_id[i]]);
        asked->open[rig->reply_id[i]] = false;
        asked->count--;
        assert_in_range(-rig->reply_err[i], 0, 4095);
    }
    if (strchr(rig->trace, '!')) /* the next client finds R, or ERROR if the device is broken */
        assert_true(vfmig_dev_bits(&rig->dev) == R || vfmig_dev_bits(&rig->dev) == 6);
    rig_forget(rig);
}

static void one_event(struct rig *rig, struct asked *asked)
{
    static const uint32_t values[] = {0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 5, 6, 14, 16};
    struct vfmig_dev_event stale = {.type = VFMIG_DEV_EVENT_STEP_DONE,
                                    .token = rig->waiting.token - 1 - roll(3)};

    switch (roll(16)) {
    case 0:
    case 1:
    case 2:
        rig_ask(rig, VFMIG_DEV_EVENT_WRITE_V1, values[roll(14)], new_request(asked));
        return;
    case 3:
    case 4:
        rig_ask(rig, VFMIG_DEV_EVENT_SET_V2, roll(9), new_request(asked));
        return;
    case 5:
        if (roll(4) == 0)
            rig_ask(rig, VFMIG_DEV_EVENT_RESET, 0, new_request(asked));
        return;
    case 6:
        if (roll(16) == 0) {
            /* Whoever waited is gone; only a refusal from now on is an answer. */
            memset(asked->open, 0, sizeof(asked->open));
            asked->count = 0;
            rig_ask(rig, VFMIG_DEV_EVENT_OWNER_GONE, 0, 0);
        }
        return;
    case 7:
        rig->now += roll(800);
        rig_ask(rig, VFMIG_DEV_EVENT_TICK, 0, 0);
        return;
    case 8:
        rig_event(rig, stale);
        return;
    default:
        if (rig->waits && vfmig_dev_busy(&rig->dev))
            rig_done(rig, roll(12) == 0 ? -EIO : 0);
        else
            rig->waits = false; /* given up at the deadline */
        return;
    }
}

static void any_order_of_events_keeps_the_rules(void **state)
{
    unsigned reached[16] = {0};

    for (uint32_t features = 1; features < 8; features += 2) {
        struct asked asked = {.next = 0};
        struct rig rig;
        seed = features;
        rig_start(&rig, features, 1000);
        for (unsigned i = 0; i < EVENTS; i++) {
            one_event(&rig, &asked);
            settle(&rig, &asked);
            reached[vfmig_dev_bits(&rig.dev) & 15]++;
        }
        while (vfmig_dev_busy(&rig.dev))
            rig_done(&rig, 0);
        settle(&rig, &asked);
        assert_int_equal(asked.count, 0); /* no request is left without its answer */
    }
    for (unsigned bits = 0; bits < 16; bits++) /* the walk was not a stroll around one place */
        assert_int_equal(reached[bits] > 100, bits != 5 && bits != 7 && bits < 13);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order_of_events_keeps_the_rules),
    };
    return cmocka_run_group_tests_name("dev-walk", tests, NULL, NULL);
}
