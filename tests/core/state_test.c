/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "core/state.h"

#define COUNT VFMIG_STATE_COUNT
#define SAVING(s)                                                                                  \
    ((s) == VFMIG_STATE_STOP_COPY || (s) == VFMIG_STATE_PRE_COPY ||                                \
     (s) == VFMIG_STATE_PRE_COPY_NDMA)
#define FAR 1000u

static const uint32_t feature_sets[] = {1, 3, 5, 7};

static void only_states_pass_the_accessor(void **state)
{
    const uint32_t outside[] = {COUNT, COUNT + 1, 0x80000000u, UINT32_MAX};
    uint32_t bits;

    for (uint32_t s = 0; s <= COUNT - 1; s++)
        assert_non_null(vfmig_state_info(s));
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        enum vfmig_state next;
        assert_null(vfmig_state_info(outside[i]));
        assert_string_equal(vfmig_state_name(outside[i]), "invalid");
        assert_int_equal(vfmig_state_to_bits(outside[i], &bits), -EINVAL);
        assert_false(vfmig_state_supported(7, outside[i]));
        assert_int_equal(vfmig_state_next(7, VFMIG_STATE_RUNNING, outside[i], &next), -EINVAL);
        assert_int_equal(vfmig_state_next(7, outside[i], VFMIG_STATE_RUNNING, &next), -EINVAL);
    }
}

/* reference 5.6 */
static void names_are_those_of_the_rfc_and_the_uapi(void **state)
{
    assert_string_equal(vfmig_state_name(VFMIG_STATE_PRE_COPY), "PRE_COPY");
    assert_string_equal(vfmig_state_info(VFMIG_STATE_RUNNING_NDMA)->v2_name, "RUNNING_P2P");
    assert_string_equal(vfmig_state_info(VFMIG_STATE_PRE_COPY_NDMA)->v1_name, "S|N|R");
    assert_string_equal(vfmig_state_info(VFMIG_STATE_STOP)->v1_name, "{}");
    for (uint32_t s = 0; s < COUNT; s++) {
        const struct vfmig_state_info *info = vfmig_state_info(s);
        uint32_t bits = 0;
        for (const char *c = info->v1_name; *c; c++)
            bits |= *c == 'R' ? 1u : *c == 'S' ? 2u : *c == 'Z' ? 4u : *c == 'N' ? 8u : 0;
        assert_int_equal(info->bits, bits);
        for (uint32_t t = 0; t < s; t++)
            assert_string_not_equal(info->name, vfmig_state_info(t)->name);
    }
}

/* Z stands alone (beside a redundant N), ERROR is S|Z exactly, bits above N are unknown. */
static void bits_are_states_by_the_rules(void **state)
{
    for (uint32_t bits = 0; bits < 256; bits++) {
        enum vfmig_state found = VFMIG_STATE_COUNT;
        uint32_t r = bits & 1, s = bits & 2, z = bits & 4, n = bits & 8, back;
        bool valid = bits < 16 && (!z || (!s && !r) || bits == 6);
        int err = vfmig_state_from_bits(bits, &found);

        assert_int_equal(err, valid ? 0 : -EINVAL);
        for (uint32_t features = 0; features < 8; features++) {
            bool may = valid && bits != 6 && (!n || (features & VFMIG_FEATURE_NDMA));
            assert_int_equal(vfmig_state_check_bits(features, bits), may ? 0 : -EINVAL);
        }
        if (!valid)
            continue;
        assert_int_equal(vfmig_state_to_bits(found, &back), 0);
        assert_int_equal(back, r || bits == 6 ? bits : bits & ~8u); /* N beside !R is redundant */
        assert_int_equal(vfmig_bits_quiet(bits), !r || n);
    }
    for (uint32_t bit = 4; bit < 32; bit++)
        assert_int_equal(vfmig_state_check_bits(7, 1u << bit | 1), -EINVAL);
}

static void only_the_four_uapi_feature_sets_are_valid(void **state)
{
    for (uint32_t features = 0; features < 64; features++)
        assert_int_equal(vfmig_features_valid(features),
                         features == 1 || features == 3 || features == 5 || features == 7);
    assert_false(vfmig_features_valid(UINT32_MAX));
}

static bool device_has(uint32_t features, uint32_t s)
{
    if ((s == VFMIG_STATE_PRE_COPY || s == VFMIG_STATE_PRE_COPY_NDMA) && !(features & 4))
        return false;
    if ((s == VFMIG_STATE_RUNNING_NDMA || s == VFMIG_STATE_PRE_COPY_NDMA) && !(features & 2))
        return false;
    return s < COUNT;
}

static bool arc(uint32_t features, uint32_t from, uint32_t to)
{
    static const struct {
        uint8_t from, to, needs, replaced_by;
    } arcs[] = {
#define ARC(a, b, needs, replaced) {VFMIG_STATE_##a, VFMIG_STATE_##b, needs, replaced},
#include "tables/arcs.def"
    };
    for (size_t i = 0; i < sizeof(arcs) / sizeof(arcs[0]); i++)
        if (arcs[i].from == from && arcs[i].to == to &&
            (arcs[i].needs & features) == arcs[i].needs &&
            !(arcs[i].replaced_by && (arcs[i].replaced_by & features) == arcs[i].replaced_by))
            return true;
    return false;
}

/* Length of the shortest way; saving states lie inside a way only between two saving ends. */
static unsigned distance(uint32_t features, uint32_t from, uint32_t to)
{
    unsigned far[COUNT];

    if (from == VFMIG_STATE_STOP_COPY && SAVING(to) && to != from)
        return FAR; /* barred */
    for (uint32_t s = 0; s < COUNT; s++)
        far[s] = s == to ? 0 : FAR;
    for (unsigned round = 0; round < COUNT; round++)
        for (uint32_t a = 0; a < COUNT; a++)
            for (uint32_t b = 0; b < COUNT; b++)
                if (arc(features, a, b) && far[b] + 1 < far[a] &&
                    (b == to || !SAVING(b) || (SAVING(from) && SAVING(to))))
                    far[a] = far[b] + 1;
    return far[from];
}

/* The way of vfmig_state_next() is a shortest permitted way of arcs, and the only first step. */
static void next_hop_follows_the_rules(void **state)
{
    for (size_t f = 0; f < sizeof(feature_sets) / sizeof(feature_sets[0]); f++) {
        uint32_t features = feature_sets[f];
        for (uint32_t from = 0; from < COUNT + 2; from++) {
            for (uint32_t to = 0; to < COUNT + 2; to++) {
                enum vfmig_state next = VFMIG_STATE_COUNT;
                int err = vfmig_state_next(features, from, to, &next);
                bool may = from != VFMIG_STATE_ERROR && to != VFMIG_STATE_ERROR &&
                           device_has(features, from) && device_has(features, to);
                unsigned far = may ? distance(features, from, to) : FAR;

                assert_int_equal(err, far < FAR ? 0 : -EINVAL);
                if (far == FAR)
                    continue;
                if (from == to) {
                    assert_int_equal(next, to);
                    continue;
                }
                unsigned first_steps = 0;
                for (uint32_t hop = 0; hop < COUNT; hop++) {
                    bool inside_ok = hop == to || !SAVING(hop) || (SAVING(from) && SAVING(to));
                    if (arc(features, from, hop) && inside_ok &&
                        distance(features, hop, to) + 1 == far) {
                        first_steps++;
                        assert_int_equal(next, hop);
                    }
                }
                assert_int_equal(first_steps, 1);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_states_pass_the_accessor),
        cmocka_unit_test(names_are_those_of_the_rfc_and_the_uapi),
        cmocka_unit_test(bits_are_states_by_the_rules),
        cmocka_unit_test(only_the_four_uapi_feature_sets_are_valid),
        cmocka_unit_test(next_hop_follows_the_rules),
    };
    return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
