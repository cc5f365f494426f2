/* SPDX-License-Identifier: BSD-3-Clause */
/* What a caller may get wrong, by table: each is refused with its reason before anything is done, and the same call
 * that is right goes through. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "engine/pack.h"
#include "engine/source.h"
#include "mover_rig.h"
#include "rig.h"

#define FULL (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static const uint32_t features[] = {FULL, FULL};
static struct rig rig;
static char long_path[600];

/* --- what is migrated, and how --- */

static struct vfmig_vm vm;
static struct vfmig_vm_ops ops;
static struct vfmig_migrate_options options;

static void no_callbacks(void) { vm.ops = NULL; }
static void other_size(void) { ops.size--; }
static void other_version(void) { ops.version++; }
static void no_stop(void) { ops.vcpus_stop = NULL; }
static void no_start(void) { ops.vcpus_start = NULL; }
static void no_save(void) { ops.state_save = NULL; }
static void no_load(void) { ops.state_load = NULL; }
static void no_memory(void) { vm.memory.block_count = 0; }
static void many_blocks(void) { vm.memory.block_count = VFMIG_MAX_RAM_BLOCKS + 1; }
static void many_devices(void) { vm.device_count = VFMIG_MAX_DEVICES + 1; }
static void no_journal(void) { options.journal_dir = NULL; }
static void long_journal(void) { options.journal_dir = long_path; }
static void long_control(void) { options.control_path = long_path; }
static void many_channels(void) { options.channels = VFMIG_MAX_CHANNELS + 1; }
static void stands_still(void) { options.throttle_max = 100; }
static void cannot_throttle(void)
{
    options.throttle_max = 50;
    ops.throttle = NULL;
}
static void no_such_level(void) { options.zstd_level = VFMIG_PACK_LEVEL_MAX + 1; }
static void both_keys(void) { options.security = (struct vfmig_security){.tls_creds = "/x", .tls_psk = "/y"}; }
static void plain_tls(void) { options.security = (struct vfmig_security){.tls_psk = "/y", .plaintext = true}; }
static void no_key(void) { options.security = (struct vfmig_security){.tls_psk = "/nowhere/key"}; }
static void long_name(void) { options.security = (struct vfmig_security){.tls_hostname = long_path}; }

static const struct row {
    void (*spoil)(void);
    const char *why;
} rows[] = {
    {no_callbacks, "callbacks are of another version"},
    {other_size, "callbacks are of another version"},
    {other_version, "callbacks are of another version"},
    {no_stop, "a callback of the VM is missing"},
    {no_start, "a callback of the VM is missing"},
    {no_save, "a callback of the VM is missing"},
    {no_load, "a callback of the VM is missing"},
    {no_memory, "0 blocks of memory"},
    {many_blocks, "blocks of memory, 1 to 64"},
    {many_devices, "devices, at most 256"},
    {no_journal, "no directory for the journal"},
    {long_journal, "the path of the journal is too long"},
    {long_control, "the path of the control socket is too long"},
    {many_channels, "channels, at most 16"},
    {stands_still, "cannot be slowed down by 100 %"},
    {cannot_throttle, "cannot slow its vCPUs down"},
    {no_such_level, "zstd has no level"},
    {both_keys, "not both"},
    {plain_tls, "either in plain text or under TLS"},
    {no_key, "/nowhere/key"},
    {long_name, "the TLS host name is too long"},
};

static void what_cannot_be_migrated(void **state)
{
    rig_open(&rig, 1, features, /* tcp= */ false);
    memset(long_path, 'x', sizeof(long_path) - 1);
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct vfmig_destination *destination = NULL;
        struct vfmig_source *source = NULL;
        struct vfmig_error here = {0}, there = {0};

        vm = rig.side[RIG_SOURCE].vm;
        ops = *vm.ops;
        vm.ops = &ops;
        options = rig.options;
        rows[i].spoil();
        int ret = vfmig_source_new(&vm, &options, &source, &here);
        assert_true(ret < 0 && ret == here.code && !source);
        ret = vfmig_destination_new(&vm, &options, &destination, &there);
        assert_true(ret < 0 && ret == there.code && !destination);
        if (!strstr(here.text, rows[i].why) || !strstr(there.text, rows[i].why))
            fail_msg("%zu: %s; %s", i, here.text, there.text);
    }
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(20000000000), NULL), 0);
    rig_close(&rig);
}

static void what_was_done_before(void **state)
{
    struct vfmig_source *source = NULL;
    struct vfmig_error error = {0};

    rig_open(&rig, 1, features, /* tcp= */ false);
    memset(long_path, 'x', sizeof(long_path) - 1);
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error), 0);
    assert_true(vfmig_destination_listen(rig.destination, "carrier:pigeon", &error) < 0);
    assert_true(vfmig_destination_listen(rig.destination, "unix:/nowhere/at/all", &error) < 0);
    assert_true(vfmig_destination_restore(rig.destination, "/nowhere/at/all", false, &error) < 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), -EALREADY);
    assert_int_equal(vfmig_destination_restore(rig.destination, "/x", false, &error), -EALREADY);
    assert_int_equal(vfmig_destination_wait(rig.destination, 1, &error), -ETIMEDOUT);
    assert_non_null(strstr(error.text, "no guest has arrived"));

    memcpy(rig.options.migration_id, "always this one.", 16);
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_true(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &source, &error) < 0); /* its journal is held */
    assert_int_equal(vfmig_source_start(rig.source, long_path, &error), -ENAMETOOLONG);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), -EALREADY);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(20000000000), NULL), 0);
    vfmig_source_free(rig.source);
    rig.source = NULL;
    /* The guest is gone: no second attempt gives it away again. */
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &source, &error), -EBUSY);
    assert_non_null(strstr(error.text, "an earlier attempt with this id ended with"));
    rig_close(&rig);
}

static void memory_that_cannot_be_passed_on(void **state)
{
    struct vfmig_ram_block blocks[VFMIG_MAX_MSG_FDS + 1] = {{0}};
    struct vfmig_error error = {0};

    rig_open(&rig, 0, NULL, /* tcp= */ false);
    vm = rig.side[RIG_SOURCE].vm;
    assert_int_equal(engine_local_check(&vm, "tcp:127.0.0.1:1", &error), -EINVAL);
    assert_int_equal(engine_local_check(&vm, rig.uri, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "it is no memfd"));
    vm.memory = (struct vfmig_memory){blocks, COUNT(blocks)};
    assert_int_equal(engine_local_check(&vm, rig.uri, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "17 blocks of memory"));
    rig.options.local = true;
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), -ENOTSUP);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

/* --- what a dry run finds on its own side --- */

static unsigned findings;
static char last_finding[400];

static void keep_finding(void *opaque, bool source, const char *text)
{
    findings++;
    snprintf(last_finding, sizeof(last_finding), "%s", text);
}

static void what_a_dry_run_finds(void **state)
{
    static const struct {
        const char *journal;
        bool local;
        uint32_t features;
        const char *uri, *finding;
    } runs[] = {
        {NULL, false, FULL, NULL, "there is no directory for the journal"},
        {"/nowhere/at/all", false, FULL, NULL, "the journal /nowhere/at/all cannot be written"},
        {"/proc/journal", false, FULL, NULL, "journal /proc/journal"},
        {"/", false, FULL, NULL, ""},
        {"not-there-yet", false, FULL, NULL, ""},
        {"/not-there-yet", false, FULL, NULL, ""},
        {"/dev/shm", true, FULL, NULL, "cannot be passed on"},
        {"/dev/shm", false, 0, NULL, "device dev0 cannot migrate"},
        {"/dev/shm", false, FULL, "tcp:192.0.2.1:7", "is off this host"},
        {"/dev/shm", false, FULL, "unix:/nowhere/at/all", ""},
    };

    rig_open(&rig, 1, features, /* tcp= */ false);
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, NULL), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, NULL), 0);
    for (size_t i = 0; i < COUNT(runs); i++) {
        struct vfmig_error error = {0};

        findings = 0;
        last_finding[0] = 0;
        options = rig.options;
        options.journal_dir = runs[i].journal;
        options.local = runs[i].local;
        rig.side[RIG_SOURCE].devices[0].base.info.features = runs[i].features;
        int ret = vfmig_source_check(&rig.side[RIG_SOURCE].vm, &options, runs[i].uri ? runs[i].uri : rig.uri,
                                     keep_finding, NULL, &error);
        assert_true(ret == error.code && (ret < 0 || !findings));
        if (runs[i].finding[0])
            assert_true(findings > 0 && ret == -EPERM);
        if (runs[i].finding[0] && findings == 1 && !strstr(last_finding, runs[i].finding))
            fail_msg("%zu: %s", i, last_finding);
        if (runs[i].uri && !runs[i].finding[0])
            assert_int_equal(error.origin, VFMIG_ORIGIN_KERNEL);
    }
    rig.side[RIG_SOURCE].devices[0].base.info.features = FULL;
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

/* --- whom a certificate must name, and who is off this host --- */

static void names_of_peers(void **state)
{
    static const struct {
        const char *uri, *given, *name;
    } names[] = {
        {"tcp:host.example:7000", NULL, "host.example"}, {"tcp:[::1]:7000", NULL, "::1"},
        {"tcp:[]:7000", NULL, "[]"},                     {"tcp:[host:7000", NULL, "[host"},
        {"tcp:host]:7000", NULL, "host]"},               {"unix:/a/b", NULL, "unix"},
        {"nothing", NULL, "nothing"},                    {"tcp:host:1", "other.example", "other.example"},
    };
    char name[64];

    for (size_t i = 0; i < COUNT(names); i++) {
        const struct vfmig_security security = {.tls_hostname = names[i].given};
        engine_secure_name(&security, names[i].uri, name, sizeof(name));
        assert_string_equal(name, names[i].name);
    }
    memset(long_path, 'x', sizeof(long_path) - 1);
    engine_secure_name(&(struct vfmig_security){0}, long_path, name, sizeof(name));
    assert_int_equal(strlen(name), sizeof(name) - 1);

    static const struct {
        const char *uri;
        struct vfmig_security security;
        int ret;
    } far[] = {
        {"tcp:192.0.2.1:1", {0}, -EPERM},
        {"tcp:192.0.2.1:1", {.plaintext = true}, 0},
        {"tcp:192.0.2.1:1", {.tls_psk = "x"}, 0},
        {"tcp:192.0.2.1:1", {.tls_creds = "x"}, 0},
        {"tcp:127.0.0.1:1", {0}, 0},
        {"file:/x", {0}, 0},
        {"nonsense", {0}, 0}, /* whoever connects tells */
    };
    for (size_t i = 0; i < COUNT(far); i++) {
        struct vfmig_error error = {0};
        assert_int_equal(engine_secure_check(&far[i].security, far[i].uri, &error), far[i].ret);
    }
    int fd = -1;
    assert_int_equal(engine_secure_listen(&(struct vfmig_security){0}, "tcp:192.0.2.1:1", &fd, NULL), -EPERM);
    assert_true(engine_secure_listen(&(struct vfmig_security){0}, "nonsense", &fd, NULL) < 0);
    assert_int_equal(fd, -1);
}

/* --- a channel --- */

static void what_is_no_record(void **state)
{
    static uint8_t data[VFMIG_MAX_DEVICE_PIECE + 100];
    static const struct vfmig_page_run many[VFMIG_MAX_MEMORY_RUNS + 1];
    struct rig_channels c;
    struct iovec parts[6];
    struct vfmig_error error = {0};
    struct rig_memory m;
    const uint64_t pages[RIG_BLOCKS] = {4, 4};
    const struct vfmig_page_run run = {.page_count = 1}, huge = {.page_count = VFMIG_MAX_MEMORY_PAGES + 1};

    rig_channels_init(&c, 1, /* tcp= */ false);
    rig_memory_init(&m, pages);
    for (size_t i = 0; i < COUNT(parts); i++)
        parts[i] = (struct iovec){data, 1};
    assert_int_equal(vfmig_channel_sendv(c.source[0], VFMIG_RECORD_IDENTITY, parts, 6, &error), -EINVAL);
    assert_int_equal(vfmig_channel_send(c.source[0], VFMIG_RECORD_HELLO, data, 1, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_send(c.source[0], VFMIG_RECORD_HELLO, data, 100, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_send(c.source[0], (enum vfmig_record_tag)99, data, 1, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_send_segment(c.source[0], 0, 0, data, 0, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_send_segment(c.source[0], 0, 0, data, VFMIG_MAX_DEVICE_PORTION + 1ull, &error),
                     -EMSGSIZE);
    assert_int_equal(vfmig_channel_send_pages(c.source[0], &m.memory, &run, 0, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_send_pages(c.source[0], &m.memory, many, COUNT(many), &error),
                     -EMSGSIZE);
    assert_int_equal(vfmig_channel_send_pages(c.source[0], &m.memory, &huge, 1, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_send_zero(c.source[0], &run, 0, &error), -EMSGSIZE);
    assert_int_equal(vfmig_channel_set_stall(c.source[0], 1, &error), 0);
    assert_int_equal(vfmig_channel_set_stall(c.source[0], UINT64_C(1) << 62, &error), 0);
    assert_int_equal(vfmig_channel_set_stall(c.source[0], 0, &error), 0);
    /* None of it went out. */
    assert_int_equal(vfmig_channel_send(c.source[0], VFMIG_RECORD_BYE, NULL, 0, &error), 0);
    struct vfmig_record record;
    assert_int_equal(vfmig_channel_recv(c.dest[0], &record, &error), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_BYE);
    /* And nothing does any more. */
    vfmig_channel_shutdown(c.source[0]);
    assert_int_equal(vfmig_channel_send_pages(c.source[0], &m.memory, &run, 1, &error), -ECANCELED);
    assert_int_equal(vfmig_channel_send_zero(c.source[0], &run, 1, &error), -ECANCELED);
    assert_int_equal(vfmig_channel_send_segment(c.source[0], 0, 0, data, sizeof(data), NULL), -ECANCELED);
    rig_channels_done(&c);
    rig_memory_done(&m);
}

/* --- decisions of an operator for sides that live --- */

static void decisions_that_fit_nobody(void **state)
{
    struct vfmig_resolve_request request = {.id = "nobody has it.."};
    struct vfmig_progress progress;
    struct vfmig_error error = {0};

    rig_open(&rig, 1, features, /* tcp= */ false);
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(20000000000), NULL), 0);
    for (unsigned d = 0; d < VFMIG_RESOLVE_DECISION_COUNT; d++) {
        request.decision = (enum vfmig_resolve_decision)d;
        assert_int_equal(vfmig_destination_resolve(rig.destination, &request, &error), -ENOENT);
    }
    vfmig_destination_status(rig.destination, &progress);
    memcpy(request.id, progress.migration_id, sizeof(request.id));
    request.decision = VFMIG_RESOLVE_RUN;
    assert_int_equal(vfmig_destination_resolve(rig.destination, &request, &error), -EPERM);
    request.decision = VFMIG_RESOLVE_DISCARD;
    assert_int_equal(vfmig_destination_resolve(rig.destination, &request, &error), -EPERM);
    /* The guest that runs here runs on. */
    request.decision = VFMIG_RESOLVE_REFUSE;
    (void)vfmig_destination_resolve(rig.destination, &request, &error);
    request.decision = VFMIG_RESOLVE_SETTLE;
    (void)vfmig_destination_resolve(rig.destination, &request, &error);
    request.peer_record = VFMIG_HO_RECORD_ABORTED;
    request.peer_epoch = 1;
    (void)vfmig_destination_resolve(rig.destination, &request, &error);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* A destination that nobody has come to yet can be told to refuse one that will. */
static void a_decision_before_anybody_came(void **state)
{
    struct vfmig_resolve_request request = {.id = "who is not here", .decision = VFMIG_RESOLVE_REFUSE};
    struct vfmig_error error = {0};

    rig_open(&rig, 1, features, /* tcp= */ false);
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), 0);
    assert_int_equal(vfmig_destination_resolve(rig.destination, &request, &error), -ENOENT);
    assert_non_null(strstr(error.text, "no such migration"));
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(20000000000), NULL), 0);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_migrated),
        cmocka_unit_test(what_was_done_before),
        cmocka_unit_test(memory_that_cannot_be_passed_on),
        cmocka_unit_test(what_a_dry_run_finds),
        cmocka_unit_test(names_of_peers),
        cmocka_unit_test(what_is_no_record),
        cmocka_unit_test(decisions_that_fit_nobody),
        cmocka_unit_test(a_decision_before_anybody_came),
    };

    return cmocka_run_group_tests_name("arguments", tests, NULL, NULL);
}
