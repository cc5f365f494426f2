/* SPDX-License-Identifier: BSD-3-Clause */
/* The log at the head of a saved guest's file: every order of records, every altered byte. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "stream/savefile.h"

#define LONGEST 6

static void put(uint8_t *log, uint32_t number, uint8_t kind, uint32_t epoch)
{
    struct vfmig_save_entry entry = {.kind = kind, .epoch = epoch, .id = "id", .length = 99,
                                     .host = "here", .journal = "/j", .time_ns = 5, .pid = 7};

    vfmig_save_entry_encode(&entry, number, log + (size_t)number * VFMIG_SAVE_RECORD_BYTES);
}

/* What may follow what, said a second time: as a walk through states. */
static int judge(const uint8_t *kinds, unsigned count)
{
    enum { EMPTY, BEGUN, FREE, CLAIMED, VOID } at = EMPTY;

    for (unsigned i = 0; i < count; i++) {
        uint8_t kind = kinds[i];
        if (at == EMPTY && kind == VFMIG_SAVE_BEGUN)
            at = BEGUN;
        else if (at == BEGUN && kind == VFMIG_SAVE_COMPLETE)
            at = FREE;
        else if (at == FREE && kind == VFMIG_SAVE_CLAIMED)
            at = CLAIMED;
        else if (at == CLAIMED && kind == VFMIG_SAVE_GIVEN_BACK)
            at = FREE;
        else if ((at == FREE || at == BEGUN) && kind == VFMIG_SAVE_DISCARDED)
            at = VOID;
        else
            return -EBADMSG;
    }
    return at;
}

static void every_order_of_records(void **state)
{
    uint8_t *log = calloc(1, VFMIG_SAVE_HEAD_BYTES);
    unsigned good = 0, all = 1;

    for (unsigned i = 0; i < LONGEST; i++)
        all *= VFMIG_SAVE_KINDS - 1;
    for (unsigned word = 0; word < all; word++) {
        uint8_t kinds[LONGEST];
        uint32_t claims = 0;
        struct vfmig_save_log got;

        for (unsigned i = 0, rest = word; i < LONGEST; i++, rest /= VFMIG_SAVE_KINDS - 1) {
            kinds[i] = (uint8_t)(1 + rest % (VFMIG_SAVE_KINDS - 1));
            claims += kinds[i] == VFMIG_SAVE_CLAIMED;
            put(log, i, kinds[i], claims);
        }
        int wanted = judge(kinds, LONGEST);
        int ret = vfmig_save_log_decode(log, &got, NULL);
        assert_int_equal(ret < 0, wanted < 0);
        if (ret == 0) {
            assert_int_equal(got.count, LONGEST);
            assert_int_equal(got.claims, claims);
            assert_int_equal(got.claim.kind != 0, wanted == 3);
            assert_int_equal(got.discarded, wanted == 4);
            good++;
        }
    }
    assert_true(good > 0 && good < all / 100);
    free(log);
}

static void every_altered_byte_is_seen(void **state)
{
    uint8_t *log = calloc(1, VFMIG_SAVE_HEAD_BYTES);
    struct vfmig_save_log got;

    put(log, 0, VFMIG_SAVE_BEGUN, 1);
    put(log, 1, VFMIG_SAVE_COMPLETE, 0);
    put(log, 2, VFMIG_SAVE_CLAIMED, 1);
    assert_int_equal(vfmig_save_log_decode(log, &got, NULL), 0);
    assert_int_equal(got.complete.length, 99);
    assert_string_equal(got.claim.journal, "/j");
    assert_false(got.torn);
    for (size_t at = 0; at < 3 * VFMIG_SAVE_RECORD_BYTES; at++) {
        log[at] ^= 0x40;
        int ret = vfmig_save_log_decode(log, &got, NULL);
        assert_true(at < 8 ? ret == -EMEDIUMTYPE
                           : ret == (at < 2 * VFMIG_SAVE_RECORD_BYTES ? -EBADMSG : 0));
        if (ret == 0)
            assert_true(got.torn && !got.claim.kind);
        log[at] ^= 0x40;
    }
    log[5 * VFMIG_SAVE_RECORD_BYTES] = 1; /* behind the end */
    assert_int_equal(vfmig_save_log_decode(log, &got, NULL), -EBADMSG);
    free(log);
}

/* Every field, whatever was in the sector before. */
static void an_entry_survives_the_trip(void **state)
{
    struct vfmig_save_entry entry = {.kind = VFMIG_SAVE_CLAIMED, .epoch = 0x01020304, .pid = 0x05060708,
                                     .time_ns = UINT64_C(0x1112131415161718),
                                     .length = UINT64_C(0x2122232425262728),
                                     .host = "a host ~", .journal = "/a path/j"};
    uint8_t raw[VFMIG_SAVE_RECORD_BYTES], again[VFMIG_SAVE_RECORD_BYTES];
    struct vfmig_save_entry got;

    memset(entry.id, 0x5a, sizeof(entry.id));
    memset(&got, 0xee, sizeof(got));
    memset(raw, 0xee, sizeof(raw));
    memset(again, 0x11, sizeof(again));
    vfmig_save_entry_encode(&entry, 3, raw);
    vfmig_save_entry_encode(&entry, 3, again);
    assert_memory_equal(raw, again, sizeof(raw));
    assert_int_equal(vfmig_save_entry_decode(raw, 3, &got, NULL), 1);
    assert_int_equal(got.kind, entry.kind);
    assert_memory_equal(got.id, entry.id, sizeof(got.id));
    assert_true(got.epoch == entry.epoch && got.pid == entry.pid);
    assert_true(got.time_ns == entry.time_ns && got.length == entry.length);
    assert_string_equal(got.host, entry.host);
    assert_string_equal(got.journal, entry.journal);
}

/* Whole records of what is not known here are newer, not damaged. */
static void versions_and_kinds_are_known_ones(void **state)
{
    static const struct {
        uint16_t version;
        uint8_t kind;
        int ret;
    } cases[] = {{VFMIG_SAVE_VERSION, VFMIG_SAVE_BEGUN, 1},
                 {VFMIG_SAVE_VERSION, VFMIG_SAVE_KINDS - 1, 1},
                 {VFMIG_SAVE_VERSION, VFMIG_SAVE_KINDS, -EPROTONOSUPPORT},
                 {VFMIG_SAVE_VERSION, VFMIG_SAVE_NONE, -EPROTONOSUPPORT},
                 {VFMIG_SAVE_VERSION, 255, -EPROTONOSUPPORT},
                 {VFMIG_SAVE_VERSION + 1, VFMIG_SAVE_BEGUN, -EPROTONOSUPPORT},
                 {0, VFMIG_SAVE_BEGUN, -EPROTONOSUPPORT}};
    uint8_t raw[VFMIG_SAVE_RECORD_BYTES];
    struct vfmig_save_entry got;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put(raw, 0, cases[i].kind, 1);
        vfmig_le16_put(raw + 8, cases[i].version);
        vfmig_le32_put(raw + sizeof(raw) - 4, vfmig_crc32c(0, raw, sizeof(raw) - 4));
        assert_int_equal(vfmig_save_entry_decode(raw, 0, &got, NULL), cases[i].ret);
    }
    for (unsigned kind = 0; kind < VFMIG_SAVE_KINDS; kind++)
        assert_string_not_equal(vfmig_save_kind_name(kind), "unknown");
    assert_string_equal(vfmig_save_kind_name(VFMIG_SAVE_KINDS), "unknown");
}

/* A record of another save's is none of this file's; the last one is remembered. */
static void records_are_of_one_save(void **state)
{
    uint8_t *log = calloc(1, VFMIG_SAVE_HEAD_BYTES);
    struct vfmig_save_entry other = {.kind = VFMIG_SAVE_COMPLETE, .id = "ie"};
    struct vfmig_save_log got;

    put(log, 0, VFMIG_SAVE_BEGUN, 1);
    assert_int_equal(vfmig_save_log_decode(log, &got, NULL), 0);
    assert_int_equal(got.last.kind, VFMIG_SAVE_BEGUN);
    put(log, 1, VFMIG_SAVE_COMPLETE, 0);
    assert_int_equal(vfmig_save_log_decode(log, &got, NULL), 0);
    assert_int_equal(got.last.kind, VFMIG_SAVE_COMPLETE);
    vfmig_save_entry_encode(&other, 1, log + VFMIG_SAVE_RECORD_BYTES);
    assert_int_equal(vfmig_save_log_decode(log, &got, NULL), -EBADMSG);
    free(log);
}

static void texts_are_printable_and_end(void **state)
{
    uint8_t raw[VFMIG_SAVE_RECORD_BYTES];
    struct vfmig_save_entry entry = {.kind = VFMIG_SAVE_BEGUN}, got;

    memset(entry.host, '\n', sizeof(entry.host));
    memset(entry.journal, 0xff, sizeof(entry.journal));
    vfmig_save_entry_encode(&entry, 0, raw);
    assert_int_equal(vfmig_save_entry_decode(raw, 0, &got, NULL), 1);
    assert_int_equal(strlen(got.host), VFMIG_SAVE_HOST_BYTES - 1);
    assert_int_equal(strspn(got.journal, "?"), VFMIG_SAVE_PATH_BYTES - 1);
    assert_int_equal(vfmig_save_entry_decode(raw, 1, &got, NULL), -EBADMSG); /* not its place */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_order_of_records),
        cmocka_unit_test(every_altered_byte_is_seen),
        cmocka_unit_test(an_entry_survives_the_trip),
        cmocka_unit_test(versions_and_kinds_are_known_ones),
        cmocka_unit_test(records_are_of_one_save),
        cmocka_unit_test(texts_are_printable_and_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
