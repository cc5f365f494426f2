/* SPDX-License-Identifier: BSD-3-Clause */
/* What is refused before anything moves: sets of devices that cannot be made quiet together, and
 * sides that differ. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "engine/engine.h"

#define REACHES VFMIG_PEER_REACHES
#define REACHED VFMIG_PEER_REACHED

static struct vfmig_target targets[3];

/* Two devices with NDMA, one of them of the kind that stops peer to peer DMA only, and "plain". */
static struct vfmig_vm make_set(const uint8_t *peer_devices)
{
    static struct vfmig_target *const devices[] = {&targets[0], &targets[1], &targets[2]};
    static const char *const ids[] = {"all", "p2p", "plain"};

    for (uint32_t i = 0; i < 3; i++)
        targets[i].info.features = VFMIG_FEATURE_STOP_COPY | (i < 2 ? VFMIG_FEATURE_NDMA : 0);
    targets[0].info.quiet = VFMIG_QUIET_ALL;
    targets[1].info.quiet = VFMIG_QUIET_P2P;
    return (struct vfmig_vm){.devices = devices,
                             .device_ids = ids,
                             .device_count = 3,
                             .peer_mappings = true,
                             .peer_devices = peer_devices};
}

static void assert_refused(const struct vfmig_vm *vm, const char *why)
{
    struct vfmig_error err = {0};

    assert_int_equal(engine_vm_check(vm, NULL, &err), why ? -ENOTSUP : 0);
    assert_string_equal(err.text, why ? why : "");
}

static void a_device_without_ndma_must_be_apart(void **state)
{
    static const char reached[] = "device plain has no NDMA, and others can reach it by peer to peer DMA";
    static const char reaches[] = "device plain has no NDMA, and it can reach others by peer to peer DMA";
    static const struct {
        uint8_t peers[3];
        const char *why;
    } sets[] = {
        {{REACHES | REACHED, REACHES | REACHED, 0}, NULL},
        {{REACHES, REACHED, 0}, NULL},
        {{REACHES, 0, REACHED}, reached},
        {{REACHED, 0, REACHES}, reaches},
        {{REACHES | REACHED, 0, REACHES | REACHED}, reached},
    };
    struct vfmig_vm vm = make_set(NULL);

    for (unsigned i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
        vm = make_set(sets[i].peers);
        assert_refused(&vm, sets[i].why);
        vm.peer_mappings = false;
        assert_refused(&vm, NULL);
    }
    vm = make_set(NULL); /* not said: each reaches all */
    assert_refused(&vm, reached);
    vm.device_count = 2;
    assert_refused(&vm, NULL);
    targets[1].info.quiet = VFMIG_QUIET_NONE; /* a bit that the device does not live up to */
    assert_refused(&vm, "device p2p has no NDMA, and others can reach it by peer to peer DMA");
    vm.device_count = 1;
    assert_refused(&vm, NULL);
}

static void assert_differ(const char *ours, const char *theirs, const char *why)
{
    struct vfmig_error err = {0};

    assert_int_equal(engine_identity_compare(ours, theirs, NULL, &err), why ? -EINVAL : 0);
    assert_string_equal(err.text, why ? why : "");
}

static void what_the_source_needs_the_destination_has(void **state)
{
    assert_differ("a=1\nneed.x=yes\nneed.y=yes\ninfo.n=1\n", "a=1\nneed.x=yes\ninfo.m=2\n", NULL);
    assert_differ("a=1\n", "a=1\nneed.x=yes\n",
                  "need.x is yes at the source and missing at the destination");
    assert_differ("a=1\nneed.x=no\n", "a=1\nneed.x=yes\n",
                  "need.x is yes at the source and no at the destination");
    assert_differ("a=1\nb=2\n", "a=1\n", "b is 2 at the destination and missing at the source");
}

static void memory_is_passed_on_on_one_host_only(void **state)
{
    const char *here = "needs=local-memory@abc\n";
    struct vfmig_error err = {0};

    assert_differ("info.adopts-memory=abc\n", here, NULL);
    assert_int_equal(engine_identity_compare("info.adopts-memory=abd\n", here, NULL, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "another host"));
    assert_int_equal(engine_identity_compare("info.x=abc\n", here, NULL, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "cannot take over memory by its descriptor"));
    assert_true(engine_local_asked(here) && engine_local_asked("a=1\nneeds=local-memory@abc\n"));
    assert_false(engine_local_asked("a=1\nx.needs=local-memory@abc\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_without_ndma_must_be_apart),
        cmocka_unit_test(memory_is_passed_on_on_one_host_only),
        cmocka_unit_test(what_the_source_needs_the_destination_has),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
