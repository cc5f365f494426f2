/* SPDX-License-Identifier: BSD-3-Clause */
/* Sources that say what they must not, on every record that a destination takes: each is told one sentence, the
 * destination stays what it was, and the next migration goes through. */
#include "liar.h"

/* --- sources that lie to a destination --- */

static int knock(void *user, struct vfmig_error *reterr)
{
    int fd = -1;
    int ret = vfmig_sock_connect(rig.uri, vfmig_deadline_ns(20 * SECOND), &fd, reterr);

    return ret ? ret : fd;
}

static struct vfmig_buffer identity_text(const char *more)
{
    struct vfmig_buffer text = {.limit = VFMIG_MAX_IDENTITY};

    assert_int_equal(engine_identity(&rig.side[RIG_SOURCE].vm, &text, NULL), 0);
    assert_int_equal(vfmig_buffer_printf(&text, "%s", more), 0);
    return text;
}

/* The answer of the other side that says why: what an ERROR or a VERDICT says. */
static void hear_why(char *ret_text, size_t size)
{
    struct vfmig_error error = {0};
    struct vfmig_verdict verdict = {.accept = true};
    struct vfmig_record record;

    snprintf(ret_text, size, "%s", "");
    while (verdict.accept && !error.code && vfmig_channel_recv(liar[0], &record, NULL) == 0) {
        if (record.tag == VFMIG_RECORD_VERDICT)
            assert_int_equal(vfmig_verdict_decode(record.payload, record.length, &verdict, NULL), 0);
        if (record.tag == VFMIG_RECORD_ERROR)
            assert_int_equal(vfmig_stream_error_decode(record.payload, record.length, &error, NULL), 0);
    }
    snprintf(ret_text, size, "%s", verdict.accept ? error.text : verdict.text);
}

static bool introduced(const char *more)
{
    static const uint8_t id[VFMIG_MIGRATION_ID_BYTES] = "a liar";
    const struct vfmig_dial dial = {.next_fd = knock, .stall_ns = 20 * SECOND};
    struct vfmig_verdict verdict = {0};
    struct vfmig_error error = {0};
    struct vfmig_record record;

    if (vfmig_channels_open(&dial, 2, id, liar, &error))
        fail_msg("%s", error.text);
    struct vfmig_buffer text = identity_text(more);
    say(0, VFMIG_RECORD_IDENTITY, text.data, text.size);
    vfmig_buffer_free(&text);
    assert_int_equal(vfmig_channel_recv(liar[0], &record, NULL), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_VERDICT);
    assert_int_equal(vfmig_verdict_decode(record.payload, record.length, &verdict, NULL), 0);
    return verdict.accept;
}

/* The end of the last one may still be under way. */
static void introduce(const char *more)
{
    for (unsigned i = 0; !introduced(more); i++) {
        hang_up();
        usleep(1000);
        assert_true(i < 20000);
    }
}

static void unknown_device(void) { WORDS(0, DEVDATA, 9, 0, 0, 0, 1); }
static void other_channel(void) { WORDS(0, DEVDATA, 1, 0, 0, 0, 1); }
static void later_segment(void) { WORDS(0, DEVDATA, 0, 0, 1, 0, 1); }
static void odd_piece(void) { WORDS(0, DEVDATA, 0, 4, 0, 0, 1); }
static void short_piece(void) { WORDS(0, DEVDATA, 0, 0, 0); }

static void after_the_end(void)
{
    WORDS(0, DEVEND, 0, 0, 0, 0, 0, 0);
    WORDS(0, DEVDATA, 0, 0, 0, 0, 1);
}

static void end_of_another_count(void) { WORDS(0, DEVEND, 0, 0, 1, 0, 5, 0); }
static void end_of_other_bytes(void)
{
    WORDS(0, DEVDATA, 0, 0, 0, 0, 1);
    WORDS(0, DEVEND, 0, 0, 1, 0, 5, 0);
}
static void end_of_nothing(void) { WORDS(0, DEVEND, 7, 0, 0, 0, 0, 0); }
static void end_within_a_segment(void)
{
    WORDS(0, DEVDATA, 0, 1, 0, 0, 1);
    WORDS(0, DEVEND, 0, 0, 0, 0, 4, 0);
}

/* More in one segment than there may be. */
static void endless_segment(void)
{
    static uint8_t piece[VFMIG_MAX_DEVICE_PIECE];

    for (unsigned i = 0; i <= VFMIG_MAX_DEVICE_SEGMENT / VFMIG_MAX_DEVICE_PIECE; i++)
        (void)vfmig_channel_send_part(liar[0], 0, 0, piece, sizeof(piece), /* more= */ true, NULL);
}

static void vm_state_of_no_kind(void) { WORDS(0, VMSTATE, 4, 0, 0, 0); }
static void vm_state_of_kind_none(void) { WORDS(0, VMSTATE, 0, 0, 0, 0); }
static void vm_state_twice(void)
{
    WORDS(0, VMSTATE, VMSTATE_VCPUS, 0, 0, 0);
    WORDS(0, VMSTATE, VMSTATE_VCPUS, 0, 0, 0);
}

static void memory_not_agreed(void) { WORDS(0, RAMFDS, 1, 0, 0, 0, 4096, 0, 0, 0); }
static void no_blocks(void) { WORDS(0, RAMFDS, 0, 0); }
static void identity_again(void) { say(0, VFMIG_RECORD_IDENTITY, "identity=1", 10); }
static void hello_again(void)
{
    uint8_t zeros[VFMIG_HELLO_BYTES] = {0};
    say(0, VFMIG_RECORD_HELLO, zeros, sizeof(zeros));
}
static void gives_up(void)
{
    WORDS(0, ERROR, 5, 2, 0x6f6f6d);
}
static void gives_up_in_no_way(void) { WORDS(0, ERROR, 5, 200, 0x6f6f6d); }
static void not_a_source_s(void) { WORDS(0, CREDIT, 0, 0, 1, 0); }
static void not_control(void) { WORDS(1, VMSTATE, 1, 0, 0, 0); }
static void message_cut(void) { WORDS(0, HANDOVER, 1, 2); }
static void rounds_backwards(void)
{
    WORDS(0, ROUND, 5, 0, 0, 0, 0, 0);
    WORDS(0, ROUND, 5, 0, 0, 0, 0, 0);
}
static void pages_not_sent(void) { WORDS(0, ROUND, 1, 0, 7, 0, 0, 0); }
static void zeros_not_sent(void) { WORDS(0, ROUND, 1, 0, 0, 0, 7, 0); }
static void short_round(void) { WORDS(0, ROUND, 1, 0); }
static void no_runs(void) { WORDS(0, ZERO, 0, 0, 0, 0, 0, 0); }
static void other_pages(void) { WORDS(0, ZERO, 1, 9, 0, 8, 0, 0); }
static void other_block(void) { WORDS(0, ZERO, 1, 8, 2, 8, 0, 0); }
static void outside(void) { WORDS(0, ZERO, 1, 8, 0, 8, 0xfffffff0, 0xffffffff); }
static void other_stripe(void) { WORDS(1, ZERO, 1, 8, 0, 8, 0, 0); }
static void run_of_nothing(void) { WORDS(0, ZERO, 1, 0, 0, 0, 0, 0); }
static void memory_cut(void) { WORDS(0, MEMORY, 1, 1, 0, 1, 0, 0, 0); }
static void packed_cut(void) { WORDS(0, PACKED, VFMIG_RECORD_DEVDATA, 20, 0); }
static void packed_of_what_is_not(void) { WORDS(0, PACKED, VFMIG_RECORD_HANDOVER, 24, 0); }
static void packed_of_too_much(void) { WORDS(0, PACKED, VFMIG_RECORD_DEVDATA, 0xffffffff, 0); }
static void packed_memory_of_nothing(void) { WORDS(0, PACKED, VFMIG_RECORD_MEMORY, 4132, 0); }
static void altered(void)
{
    struct iovec iov[2] = {{0}, {(void *)"identity=1", 10}};
    (void)vfmig_channel_send_record(liar[0], VFMIG_RECORD_IDENTITY, iov, 2, 10, 1, NULL);
}
static void out_of_order(void)
{
    liar[0]->send_sequence += 2;
    WORDS(0, VMSTATE, 1, 0, 0, 0);
}
static void of_another_channel(void)
{
    liar[0]->index = 5;
    WORDS(0, VMSTATE, 1, 0, 0, 0);
}

static const struct lie to_destinations[] = {
    {unknown_device, "data for device 9 of 2"},
    {other_channel, "data for device dev1 on channel 0"},
    {later_segment, "segment 1 of device dev0 instead of 0"},
    {odd_piece, "DEVDATA"},
    {short_piece, "DEVDATA"},
    {after_the_end, "data for device dev0 after its end"},
    {end_of_another_count, "device dev0: 1 segments of 5 bytes were sent, and 0 of 0 bytes arrived"},
    {end_of_other_bytes, "device dev0: 1 segments of 5 bytes were sent, and 1 of 4 bytes arrived"},
    {end_of_nothing, "data for device 7 of 2"},
    {end_within_a_segment, "arrived"},
    {endless_segment, "larger than"},
    {vm_state_of_no_kind, "VM state of an unknown kind 4"},
    {vm_state_of_kind_none, "VM state of an unknown kind 0"},
    {vm_state_twice, "came twice"},
    {memory_not_agreed, "which was not agreed"},
    {no_blocks, "RAMFDS"},
    {identity_again, "the source sent IDENTITY"},
    {hello_again, "the source sent HELLO"},
    {gives_up, "the other side gave up: moo"},
    {gives_up_in_no_way, "ERROR"},
    {not_a_source_s, "CREDIT"},
    {not_control, "VMSTATE"},
    {message_cut, "a handover message of 8 bytes"},
    {rounds_backwards, "round"},
    {pages_not_sent, "pages"},
    {zeros_not_sent, "pages"},
    {short_round, "ROUND"},
    {no_runs, "ZERO"},
    {other_pages, "pages"},
    {other_block, "block"},
    {outside, ""},
    {other_stripe, ""},
    {run_of_nothing, ""},
    {memory_cut, "MEMORY"},
    {packed_cut, ""},
    {packed_of_what_is_not, "PACKED"},
    {packed_of_too_much, "PACKED"},
    {packed_memory_of_nothing, ""},
    {altered, "IDENTITY"},
    {out_of_order, ""},
    {of_another_channel, ""},
};

static struct vfmig_progress destination_status(void)
{
    struct vfmig_progress progress;

    vfmig_destination_status(rig.destination, &progress);
    return progress;
}

static unsigned patience_ms = 20000; /* until what must happen has not happened */

/* Until it takes the next one. */
static struct vfmig_progress wait_until_over(void)
{
    struct vfmig_progress progress = destination_status();

    for (unsigned i = 0; (progress.state != VFMIG_MIGRATE_FAILED || !progress.error.code) && i < patience_ms; i++) {
        usleep(1000);
        progress = destination_status();
    }
    assert_int_equal(progress.state, VFMIG_MIGRATE_FAILED);
    return progress;
}

static void listen_alone(void)
{
    struct vfmig_error error = {0};

    rig_open(&rig, 2, features, /* tcp= */ false);
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), 0);
}

static enum vfmig_migrate_state try_honestly(struct vfmig_progress *ret_progress)
{
    struct vfmig_error error = {0};

    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    enum vfmig_migrate_state state = rig_wait(&rig);
    vfmig_source_status(rig.source, ret_progress);
    return state;
}

static void then_an_honest_one(void)
{
    struct vfmig_progress progress;

    /* The end of the last lie may still be under way. */
    while (try_honestly(&progress) != VFMIG_MIGRATE_COMPLETED) {
        if (!strstr(progress.error.text, "another migration is under way"))
            fail_msg("%s", progress.error.text);
        vfmig_source_free(rig.source);
    }
    assert_int_equal(vfmig_destination_wait(rig.destination, 20 * SECOND, NULL), 0);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

static void lies_to_a_destination(void **state)
{
    listen_alone();
    for (size_t i = 0; i < COUNT(to_destinations); i++) {
        char why[VFMIG_MAX_STREAM_TEXT];

        introduce("");
        to_destinations[i].tell();
        hear_why(why, sizeof(why));
        hang_up();
        const struct vfmig_progress progress = wait_until_over();
        if (getenv("LIES_SHOW"))
            print_message("%zu: %s | %s\n", i, why, progress.error.text);
        assert_true(progress.error.code < 0);
        if (!strstr(progress.error.text, to_destinations[i].why))
            fail_msg("%zu: %s", i, progress.error.text);
        /* What it is told is what happened. */
        if (to_destinations[i].tell != gives_up && to_destinations[i].tell != gives_up_in_no_way)
            assert_non_null(strstr(why, to_destinations[i].why));
    }
    then_an_honest_one();
}

/* --- a seal on what is not complete --- */

static void message(uint32_t epoch, enum vfmig_ho_msg_kind kind)
{
    uint8_t msg[24] = "a liar";

    vfmig_le32_put(msg + 16, epoch);
    msg[20] = kind;
    msg[21] = VFMIG_HO_RECORD_OFFERED;
    msg[22] = 1;
    say(0, VFMIG_RECORD_HANDOVER, msg, sizeof(msg));
}

/* What was said before is in the destination's hands when it answers this. */
static void wait_for_pong(void)
{
    struct vfmig_record record = {0};

    WORDS(0, PING, 1, 0, 1, 0);
    while (record.tag != VFMIG_RECORD_PONG)
        assert_int_equal(vfmig_channel_recv(liar[0], &record, NULL), 0);
}

static void nothing(void) {}
static void first_external(void)
{
    const uint32_t words[4 + 2 * 64 / 4] = {VMSTATE_EXTERNAL_FIRST}; /* as much as the rig's devices have */
    say_words(0, VFMIG_RECORD_VMSTATE, words, COUNT(words));
}
static void all_but_the_vcpus(void)
{
    first_external();
    WORDS(0, VMSTATE, VMSTATE_EXTERNAL_FINAL, 0, 0, 0);
}
static void all_but_the_last_external(void)
{
    first_external();
    for (uint32_t i = 0; i < 2; i++) {
        WORDS(i, DEVEND, i, 0, 0, 0, 0, 0);
        WORDS(i, ROUND, 1, 0, 0, 0, 0, 0);
    }
    WORDS(0, VMSTATE, VMSTATE_VCPUS, 0, 1, 0);
}

/* A source that says that all was sent, and is gone: what never comes is not waited for. */
static void seals_and_leaves(void **state)
{
    static void (*const lies[])(void) = {nothing, first_external, all_but_the_vcpus, all_but_the_last_external};

    listen_alone();
    for (uint32_t i = 0; i < COUNT(lies); i++) {
        introduce("");
        message(i + 1, VFMIG_HO_MSG_OFFER);
        lies[i]();
        message(i + 1, VFMIG_HO_MSG_SEAL);
        wait_for_pong();
        hang_up();
        const struct vfmig_progress progress = wait_until_over();
        if (getenv("LIES_SHOW"))
            print_message("%u: %s\n", i, progress.error.text);
        assert_true(progress.error.code < 0);
    }
    then_an_honest_one();
}

/* --- a source that asks too early --- */

static struct vfmig_target_ops slow_ops;
static atomic_bool halts, may_halt;

/* {} takes until the test lets it go. */
static int slow_set_state(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                          struct vfmig_error *reterr)
{
    atomic_store(&halts, true);
    while (!atomic_load(&may_halt))
        usleep(1000);
    return rig.side[RIG_SOURCE].targets[0]->ops->set_state(t, state, timeout_ns, reterr);
}

/* The kind of the destination's answer to a source that lost its link, over one that stays; NONE: it hung up. */
static uint8_t ask_again(void)
{
    static const uint8_t id[VFMIG_MIGRATION_ID_BYTES] = "a liar";
    const struct vfmig_dial dial = {.next_fd = knock, .stall_ns = 20 * SECOND};
    struct vfmig_record record = {0};

    if (!liar[0])
        assert_int_equal(vfmig_channels_open(&dial, 1, id, liar, NULL), 0);
    message(1, VFMIG_HO_MSG_QUERY);
    while (record.tag != VFMIG_RECORD_HANDOVER && vfmig_channel_recv(liar[0], &record, NULL) == 0)
        ;
    if (record.tag == VFMIG_RECORD_HANDOVER)
        return record.payload[20];
    hang_up();
    return VFMIG_HO_MSG_NONE;
}

/* All was sent, a device of the destination is slow, the source loses its link and asks meanwhile: the new link
 * does not take away what came over the old one, and the question is answered in the end. */
static void asks_while_it_is_received(void **state)
{
    uint8_t kind = VFMIG_HO_MSG_NONE;

    listen_alone();
    slow_ops = *rig.side[RIG_DEST].targets[0]->ops;
    slow_ops.set_state = slow_set_state;
    rig.side[RIG_DEST].targets[0]->ops = &slow_ops;
    introduce("");
    message(1, VFMIG_HO_MSG_OFFER);
    all_but_the_last_external();
    WORDS(0, VMSTATE, VMSTATE_EXTERNAL_FINAL, 0, 0, 0);
    message(1, VFMIG_HO_MSG_SEAL);
    wait_for_pong();
    while (!atomic_load(&halts))
        usleep(1000);
    hang_up();
    while (!destination_status().error.code) /* until it has noticed */
        usleep(1000);
    (void)ask_again();
    atomic_store(&may_halt, true);
    for (unsigned i = 0; kind != VFMIG_HO_MSG_READY && kind != VFMIG_HO_MSG_REFUSED && i < patience_ms / 10; i++) {
        kind = ask_again();
        usleep(10000);
    }
    if (kind != VFMIG_HO_MSG_READY && kind != VFMIG_HO_MSG_REFUSED)
        fail_msg("nothing comes of it: %u", kind);
    hang_up();
    rig_close(&rig);
}

/* --- before anything is agreed --- */

static void begins_with_a_round(void) { WORDS(0, ROUND, 1, 0, 0, 0, 0, 0); }
static void begins_with_half_a_message(void) { WORDS(0, HANDOVER, 1); }
static void identity_without_end(void)
{
    static char long_one[VFMIG_MAX_IDENTITY + 2];
    memset(long_one, 'x', sizeof(long_one) - 1);
    say_raw(0, VFMIG_RECORD_IDENTITY, long_one, sizeof(long_one) - 1);
}
static void identity_of_nothing(void) { say(0, VFMIG_RECORD_IDENTITY, "x", 1); }
static void question_of_nobody(void)
{
    uint8_t msg[24] = {[16] = 1, [20] = VFMIG_HO_MSG_QUERY};
    say(0, VFMIG_RECORD_HANDOVER, msg, sizeof(msg));
}
static void question_out_of_range(void)
{
    uint8_t msg[24] = {[16] = 1, [20] = 99};
    say(0, VFMIG_RECORD_HANDOVER, msg, sizeof(msg));
}

static void lies_at_the_door(void **state)
{
    static void (*const lies[])(void) = {begins_with_a_round, begins_with_half_a_message, identity_without_end,
                                         identity_of_nothing, question_of_nobody, question_out_of_range};
    static const uint8_t id[VFMIG_MIGRATION_ID_BYTES] = "knocks";

    listen_alone();
    for (size_t i = 0; i < COUNT(lies); i++) {
        const struct vfmig_dial dial = {.next_fd = knock, .stall_ns = 20 * SECOND};
        char why[VFMIG_MAX_STREAM_TEXT];

        assert_int_equal(vfmig_channels_open(&dial, 1, id, liar, NULL), 0);
        lies[i]();
        if (lies[i] == identity_of_nothing)
            hear_why(why, sizeof(why));
        hang_up();
        assert_int_not_equal(destination_status().state, VFMIG_MIGRATE_COMPLETED);
    }
    then_an_honest_one();
}

/* --- memory that is passed on --- */

static int adopt_nothing(void *opaque, uint32_t block, int fd, uint64_t fd_offset, struct vfmig_error *reterr)
{
    return 0;
}

static const struct passed {
    const char *what;
    uint32_t blocks, fds;
    uint64_t shift; /* of the second block's address */
    unsigned seals;
    bool read_only, shorter, no_memfd, twice;
    const char *why;
} passed[] = {
    {"one block less", 1, 1, .seals = F_SEAL_SHRINK, .why = "1 descriptors came for 1 blocks of memory, there are 2"},
    {"one descriptor less", 2, 1, .seals = F_SEAL_SHRINK, .why = "1 descriptors came for 2 blocks"},
    {"another block", 2, 2, .shift = 4096, .seals = F_SEAL_SHRINK, .why = "block 1 that was passed on is another one"},
    {"not sealed", 2, 2, .why = "sealed against shrinking"},
    {"sealed against writes", 2, 2, .seals = F_SEAL_SHRINK | F_SEAL_WRITE, .why = "it cannot be written"},
    {"to be read", 2, 2, .seals = F_SEAL_SHRINK, .read_only = true, .why = "it cannot be written"},
    {"too short", 2, 2, .seals = F_SEAL_SHRINK, .shorter = true, .why = "it is shorter than the block"},
    {"a pipe", 2, 2, .no_memfd = true, .why = "it is no memfd"},
    {"twice", 2, 2, .seals = F_SEAL_SHRINK, .twice = true, .why = "memory was passed on twice"},
};

static int descriptor(const struct passed *row, uint64_t size)
{
    char path[64];
    int fd = memfd_create("passed", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)(row->shorter ? size - 4096 : size)), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, row->seals), 0);
    if (row->no_memfd) {
        close(fd);
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        close(ends[1]);
        return ends[0];
    }
    if (!row->read_only)
        return fd;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = open(path, O_RDONLY | O_CLOEXEC);
    close(fd);
    assert_true(again >= 0);
    return again;
}

static void pass_on(const struct passed *row)
{
    struct vfmig_shared_block blocks[2];
    uint8_t out[VFMIG_SHARED_BYTES_MAX];
    struct vfmig_fds fds = {.count = row->fds};

    for (uint32_t i = 0; i < 2; i++) {
        const struct vfmig_ram_block *block = &rig.side[RIG_SOURCE].blocks[i];
        blocks[i] = (struct vfmig_shared_block){block->gpa + i * row->shift, block->size, 0};
    }
    for (uint32_t i = 0; i < row->fds; i++)
        fds.fd[i] = descriptor(row, blocks[i].size);
    for (unsigned i = 0; i < 1u + row->twice; i++)
        (void)vfmig_channel_send_fds(liar[0], VFMIG_RECORD_RAMFDS, out,
                                     vfmig_shared_encode(out, blocks, row->blocks), &fds, NULL);
    vfmig_fds_close(&fds);
}

static struct vfmig_vm_ops adopting;

static void lies_about_memory(void **state)
{
    char boot_id[ENGINE_BOOT_ID_BYTES], need[128];

    rig_open(&rig, 2, features, /* tcp= */ false);
    adopting = *rig.side[RIG_DEST].vm.ops;
    adopting.memory_adopt = adopt_nothing;
    rig.side[RIG_DEST].vm.ops = &adopting;
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, NULL), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, NULL), 0);
    assert_int_equal(engine_boot_id(boot_id), 0);
    snprintf(need, sizeof(need), "needs=" ENGINE_LOCAL_NEED "%s\n", boot_id);
    for (size_t i = 0; i < COUNT(passed); i++) {
        char why[VFMIG_MAX_STREAM_TEXT];

        introduce(need);
        pass_on(&passed[i]);
        hear_why(why, sizeof(why));
        hang_up();
        const struct vfmig_progress progress = wait_until_over();
        if (!strstr(progress.error.text, passed[i].why) || !strstr(why, passed[i].why))
            fail_msg("%s: %s; told: %s", passed[i].what, progress.error.text, why);
    }
    then_an_honest_one();
}

/* hostile_test [TEST [PATIENCE]]: a test that must fail need not be waited for so long. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lies_to_a_destination),
        cmocka_unit_test(seals_and_leaves),
        cmocka_unit_test(asks_while_it_is_received),
        cmocka_unit_test(lies_at_the_door),
        cmocka_unit_test(lies_about_memory),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (argc > 2)
        patience_ms = (unsigned)atoi(argv[2]);
    return cmocka_run_group_tests_name("hostile", tests, NULL, NULL);
}
