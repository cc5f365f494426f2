/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "wire/wire.h"

#define MAX 65536u

/* A message of any command with a structurally right payload, data included. */
static uint32_t build(uint8_t *out, uint16_t command, uint32_t data)
{
    uint8_t body[8192] = {0};
    uint32_t size = 0;

#define FIXED(type, ...)                                                                           \
    do {                                                                                           \
        struct type fixed = {__VA_ARGS__};                                                         \
        memcpy(body + size, &fixed, sizeof(fixed));                                                \
        size += sizeof(fixed);                                                                     \
    } while (0)
    switch (command) {
    case VFMIG_USER_VERSION:
        FIXED(vfmig_user_version, 0, 2);
        memset(body + size, ' ', data);
        size += data;
        break;
    case VFMIG_USER_DMA_MAP:
        FIXED(vfmig_user_dma_map, 32, 3, 0, 0x1000, 0x2000);
        break;
    case VFMIG_USER_DMA_UNMAP:
        FIXED(vfmig_user_dma_unmap, 24 + 16 + data, VFMIG_USER_UNMAP_F_BITMAP, 0x1000, 0x2000);
        FIXED(vfmig_user_bitmap, 4096, data);
        break;
    case VFMIG_USER_GET_INFO:
    case VFMIG_USER_GET_REGION_IO_FDS:
    case VFMIG_USER_GET_IRQ_INFO:
        FIXED(vfmig_user_device_info, 16);
        break;
    case VFMIG_USER_GET_REGION_INFO:
        FIXED(vfmig_user_region_info, 32);
        break;
    case VFMIG_USER_SET_IRQS:
        FIXED(vfmig_user_set_irqs, 20 + data,
              VFMIG_USER_IRQ_DATA_BOOL | VFMIG_USER_IRQ_ACTION_TRIGGER, 2, 0, data);
        size += data;
        break;
    case VFMIG_USER_REGION_READ:
        FIXED(vfmig_user_region_access, 8, 0, data);
        break;
    case VFMIG_USER_REGION_WRITE:
        FIXED(vfmig_user_region_access, 8, 0, data);
        size += data;
        break;
    case VFMIG_USER_DMA_READ:
        FIXED(vfmig_user_dma_access, 0x1000, data + 1);
        break;
    case VFMIG_USER_DMA_WRITE:
        FIXED(vfmig_user_dma_access, 0x1000, data + 1);
        size += data + 1;
        break;
    case VFMIG_USER_DIRTY_PAGES:
        FIXED(vfmig_user_dirty_pages, 40 + data, VFMIG_USER_DIRTY_GET);
        FIXED(vfmig_user_dirty_range, 0x1000, 0x1000, {4096, data});
        break;
    case VFMIG_USER_REGION_WRITE_MULTI:
        FIXED(vfmig_user_write_multi, 2);
        size += 48;
        break;
    case VFMIG_USER_FEATURE:
        FIXED(vfmig_user_feature, 40, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START);
        FIXED(vfmig_user_feature_log_start, 4096, 1);
        FIXED(vfmig_user_log_range, 0x1000, 0x1000);
        break;
    case VFMIG_USER_MIG_DATA_READ:
        FIXED(vfmig_user_mig_data, 8 + data, data);
        break;
    case VFMIG_USER_MIG_DATA_WRITE:
        FIXED(vfmig_user_mig_data, 8 + data, data);
        size += data;
        break;
    default:
        break;
    }
#undef FIXED
    for (uint32_t i = 0; i < size && command == VFMIG_USER_MIG_DATA_WRITE && i < data; i++)
        body[8 + i] = (uint8_t)(i * 7 + 1);
    struct vfmig_user_header h = vfmig_user_make_command(command, command, size, false);
    memcpy(out, &h, sizeof(h));
    memcpy(out + sizeof(h), body, size);
    return h.size;
}

static void feed(struct vfmig_framer *f, const uint8_t *bytes, size_t size)
{
    while (size) {
        size_t space;
        void *to = vfmig_framer_space(f, &space);
        size_t n = size < space ? size : space;
        assert_true(n > 0);
        memcpy(to, bytes, n);
        assert_int_equal(vfmig_framer_fed(f, n, NULL), 0);
        bytes += n;
        size -= n;
    }
}

static bool server_sends(uint16_t command)
{
    return command == VFMIG_USER_DMA_READ || command == VFMIG_USER_DMA_WRITE;
}

static void every_command_cut_at_every_byte(void **state)
{
    uint8_t bytes[8192], *buf = malloc(MAX);
    struct vfmig_framer f;
    struct vfmig_user_msg msg;

    for (uint16_t command = 1; command < VFMIG_USER_COMMAND_COUNT; command++) {
        uint32_t size = build(bytes, command, 37);
        for (uint32_t cut = 1; cut < size; cut++) {
            vfmig_framer_init(&f, buf, MAX, 4096);
            feed(&f, bytes, cut);
            assert_int_equal(vfmig_framer_next(&f, &msg), 0);
            feed(&f, bytes + cut, size - cut);
            assert_int_equal(vfmig_framer_next(&f, &msg), 1);
            assert_int_equal(msg.header.command, command);
            assert_int_equal(msg.size, size - 16);
            assert_memory_equal(msg.payload, bytes + 16, msg.size);
            assert_int_equal(vfmig_user_check_command(&msg, server_sends(command), 4096, NULL), 0);
            assert_int_equal(vfmig_user_check_command(&msg, !server_sends(command), 4096, NULL),
                             -EOPNOTSUPP);
            assert_int_equal(vfmig_framer_next(&f, &msg), 0);
            assert_true(vfmig_framer_idle(&f));
        }
    }
    free(buf);
}

/* Any cut of a payload, told honestly by the header, is refused and never read past its end
 * (ASan watches: the payload ends where its allocation ends). */
static void every_short_payload_is_refused(void **state)
{
    uint8_t bytes[8192];

    for (uint16_t command = 1; command < VFMIG_USER_COMMAND_COUNT; command++) {
        uint32_t size = build(bytes, command, 37) - 16;
        for (uint32_t cut = 0; cut < size; cut++) {
            uint8_t *payload = malloc(cut ? cut : 1);
            memcpy(payload, bytes + 16, cut);
            struct vfmig_user_msg msg = {
                .header = vfmig_user_make_command(1, command, cut, false),
                .payload = payload,
                .size = cut,
            };
            int r = vfmig_user_check_command(&msg, server_sends(command), 4096, NULL);
            bool text = command == VFMIG_USER_VERSION && cut >= 4;
            bool longer = (command == VFMIG_USER_GET_INFO && cut >= 16);
            assert_int_equal(r, text || longer ? 0 : -EINVAL);
            free(payload);
        }
    }
}

static void messages_one_after_another_in_any_pieces(void **state)
{
    uint8_t *all = malloc(200000), *buf = malloc(9000);
    size_t total = 0;
    struct vfmig_framer f;
    struct vfmig_user_msg msg;

    for (unsigned i = 0; i < 60; i++)
        total += build(all + total, (uint16_t)(i % 18 + 1), i * 13 % 2000);
    for (size_t piece = 1; piece < 9000; piece = piece * 3 + 1) {
        vfmig_framer_init(&f, buf, 9000, 9000);
        unsigned seen = 0;
        for (size_t at = 0; at < total;) {
            size_t space;
            void *to = vfmig_framer_space(&f, &space);
            assert_true(space > 0);
            size_t n = piece < space ? piece : space;
            n = n < total - at ? n : total - at;
            memcpy(to, all + at, n);
            assert_int_equal(vfmig_framer_fed(&f, n, NULL), 0);
            at += n;
            int r;
            while ((r = vfmig_framer_next(&f, &msg)) == 1)
                assert_int_equal(msg.header.command, seen++ % 18 + 1);
            assert_int_equal(r, 0);
        }
        assert_int_equal(seen, 60);
    }
    free(all);
    free(buf);
}

static void sizes_around_the_limits(void **state)
{
    uint8_t *buf = malloc(MAX);
    struct vfmig_framer f;
    struct vfmig_user_msg msg;
    const struct {
        uint32_t size;
        int want;
    } cases[] = {{0, -EPROTO},  {15, -EPROTO},       {16, 1},          {1000, 1},
                 {1001, -EMSGSIZE}, {UINT32_MAX, -EMSGSIZE}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t bytes[1024] = {0};
        struct vfmig_user_header h = {.command = 13, .size = cases[i].size};
        memcpy(bytes, &h, sizeof(h));
        vfmig_framer_init(&f, buf, MAX, 1000);
        feed(&f, bytes, cases[i].want == 1 ? cases[i].size : 16);
        assert_int_equal(vfmig_framer_next(&f, &msg), cases[i].want);
    }
    free(buf);
}

static void rebase_keeps_what_is_unread(void **state)
{
    uint8_t small[64], *big = malloc(MAX), bytes[8192];
    struct vfmig_framer f;
    struct vfmig_user_msg msg;
    uint32_t size = build(bytes, VFMIG_USER_REGION_WRITE, 3000);

    vfmig_framer_init(&f, small, sizeof(small), 64);
    feed(&f, bytes, 10);
    assert_int_equal(vfmig_framer_rebase(&f, big, 5, 5), -ENOSPC);
    assert_int_equal(vfmig_framer_rebase(&f, big, MAX, MAX), 0);
    feed(&f, bytes + 10, size - 10);
    assert_int_equal(vfmig_framer_next(&f, &msg), 1);
    assert_memory_equal(msg.payload, bytes + 16, msg.size);
    free(big);
}

static int open_null(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* A chunk may hold the end of one message, whole ones, and the start of the one the descriptors
 * came with; cut the chunk anywhere in that message's header. */
static void descriptors_find_their_message(void **state)
{
    uint8_t buf[4096], bytes[1024];
    struct vfmig_framer f;
    struct vfmig_user_msg msg;
    uint32_t first = build(bytes, VFMIG_USER_REGION_WRITE, 5);
    uint32_t second = build(bytes + first, VFMIG_USER_DMA_MAP, 0);
    uint32_t third = build(bytes + first + second, VFMIG_USER_REGION_WRITE, 7);
    uint32_t total = first + second + third;

    for (uint32_t end = first + 1; end <= total; end++) {
        struct vfmig_fds fds = {.count = 1, .fd = {open_null()}};
        vfmig_framer_init(&f, buf, sizeof(buf), 1024);
        feed(&f, bytes, 9); /* a piece of the first, alone */
        size_t space;
        memcpy(vfmig_framer_space(&f, &space), bytes + 9, end - 9);
        assert_int_equal(vfmig_framer_fed(&f, end - 9, &fds), 0);
        assert_int_equal(fds.count, 0);
        feed(&f, bytes + end, total - end);
        assert_int_equal(vfmig_framer_next(&f, &msg), 1);
        assert_int_equal(msg.fds.count, 0);
        assert_int_equal(vfmig_framer_next(&f, &msg), 1);
        assert_int_equal(msg.header.command, VFMIG_USER_DMA_MAP);
        assert_int_equal(msg.fds.count, 1);
        int fd = vfmig_fds_take(&msg.fds, 0);
        assert_int_equal(close(fd), 0);
        assert_int_equal(vfmig_fds_take(&msg.fds, 0), -1);
        assert_int_equal(vfmig_framer_next(&f, &msg), 1);
        assert_int_equal(msg.fds.count, 0);
    }
}

static void descriptors_in_a_body_are_closed(void **state)
{
    uint8_t buf[4096], bytes[1024];
    struct vfmig_framer f;
    size_t space;

    build(bytes, VFMIG_USER_REGION_WRITE, 50);
    vfmig_framer_init(&f, buf, sizeof(buf), 1024);
    feed(&f, bytes, 20);
    int fd = open_null();
    struct vfmig_fds fds = {.count = 1, .fd = {fd}};
    memcpy(vfmig_framer_space(&f, &space), bytes + 20, 5);
    assert_int_equal(vfmig_framer_fed(&f, 5, &fds), -EPROTO);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    /* What was not handed out is closed with the framer. */
    vfmig_framer_init(&f, buf, sizeof(buf), 1024);
    fd = open_null();
    fds = (struct vfmig_fds){.count = 1, .fd = {fd}};
    memcpy(vfmig_framer_space(&f, &space), bytes, 5);
    assert_int_equal(vfmig_framer_fed(&f, 5, &fds), 0);
    vfmig_framer_done(&f);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

/* One field changed in a right message; each must be refused with this code. */
static void bad_counts_and_flags_are_refused(void **state)
{
    static const struct {
        uint16_t command;
        uint32_t at, width; /* in the payload */
        uint64_t value;
        int want;
    } cases[] = {
        {VFMIG_USER_DMA_MAP, 0, 4, 31, -EINVAL},
        {VFMIG_USER_DMA_MAP, 4, 4, 4, -EINVAL},
        {VFMIG_USER_DMA_MAP, 24, 8, 0, -EINVAL},
        {VFMIG_USER_DMA_MAP, 16, 8, UINT64_MAX - 0x1ffe, -EINVAL},
        {VFMIG_USER_DMA_MAP, 8, 8, UINT64_MAX, -EINVAL},
        {VFMIG_USER_DMA_UNMAP, 4, 4, 3, -EINVAL},
        {VFMIG_USER_DMA_UNMAP, 4, 4, 0, -EINVAL},
        {VFMIG_USER_DMA_UNMAP, 0, 4, 76, -EINVAL},
        {VFMIG_USER_DMA_UNMAP, 32, 8, UINT64_MAX, -E2BIG},
        {VFMIG_USER_GET_REGION_INFO, 0, 4, 31, -EINVAL},
        {VFMIG_USER_SET_IRQS, 4, 4, 0x21, -EINVAL},
        {VFMIG_USER_SET_IRQS, 4, 4, 0x3a, -EINVAL},
        {VFMIG_USER_SET_IRQS, 16, 4, 38, -EINVAL},
        {VFMIG_USER_SET_IRQS, 12, 4, UINT32_MAX, -EINVAL},
        {VFMIG_USER_REGION_READ, 12, 4, 4097, -E2BIG},
        {VFMIG_USER_REGION_READ, 0, 8, UINT64_MAX, -EINVAL},
        {VFMIG_USER_REGION_WRITE, 12, 4, 36, -EINVAL},
        {VFMIG_USER_REGION_WRITE, 12, 4, UINT32_MAX, -E2BIG},
        {VFMIG_USER_DMA_READ, 8, 8, UINT64_MAX, -E2BIG},
        {VFMIG_USER_DMA_WRITE, 8, 8, 0, -EINVAL},
        {VFMIG_USER_DIRTY_PAGES, 4, 4, 5, -EINVAL},
        {VFMIG_USER_DIRTY_PAGES, 4, 4, 1, -EINVAL},
        {VFMIG_USER_DIRTY_PAGES, 32, 8, UINT64_MAX, -E2BIG},
        {VFMIG_USER_REGION_WRITE_MULTI, 0, 8, UINT64_MAX / 8, -EINVAL},
        {VFMIG_USER_FEATURE, 4, 4, 0x30006, -EINVAL},
        {VFMIG_USER_FEATURE, 4, 4, 0x80006, -EINVAL},
        {VFMIG_USER_FEATURE, 16, 4, 0x10000001, -EINVAL},
        {VFMIG_USER_FEATURE, 24, 8, UINT64_MAX, -EOVERFLOW},
        {VFMIG_USER_MIG_DATA_READ, 4, 4, UINT32_MAX, -E2BIG},
        {VFMIG_USER_MIG_DATA_READ, 0, 4, 44, -EINVAL},
        {VFMIG_USER_MIG_DATA_WRITE, 4, 4, 36, -EINVAL},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t bytes[8192];
        struct vfmig_error err = {0};
        struct vfmig_user_msg msg = {.payload = bytes + 16};
        msg.size = build(bytes, cases[i].command, 37) - 16;
        memcpy(&msg.header, bytes, 16);
        memcpy(bytes + 16 + cases[i].at, &cases[i].value, cases[i].width);
        int r = vfmig_user_check_command(&msg, server_sends(cases[i].command), 4096, &err);
        if (r != cases[i].want)
            fail_msg("case %u: %d, wanted %d", i, r, cases[i].want);
        assert_int_equal(err.code, r);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        assert_non_null(strstr(err.text, vfmig_user_command_name(cases[i].command)));
    }
}

static void header_flags_types_and_descriptors(void **state)
{
    uint8_t bytes[256];
    struct vfmig_user_msg msg = {.payload = bytes + 16};

    msg.size = build(bytes, VFMIG_USER_GET_INFO, 0) - 16;
    memcpy(&msg.header, bytes, 16);
    msg.header.flags = VFMIG_USER_NO_REPLY;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), 0);
    msg.header.flags = VFMIG_USER_TYPE_REPLY;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), -EINVAL);
    msg.header.flags = 0x40;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), -EINVAL);
    msg.header.flags = 0;
    msg.fds.count = 1;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), -EINVAL);
    msg.fds.count = 0;
    msg.header.command = 0;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), -EOPNOTSUPP);
    msg.header.command = VFMIG_USER_COMMAND_COUNT;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), -EOPNOTSUPP);
    msg.header.command = UINT16_MAX;
    assert_int_equal(vfmig_user_check_command(&msg, false, 4096, NULL), -EOPNOTSUPP);
}

static void replies_are_held_against_their_request(void **state)
{
    uint8_t body[128] = {0};
    struct vfmig_user_region_access ask = {8, 0, 4}, *got = (void *)body;
    struct vfmig_user_header request = vfmig_user_make_command(7, VFMIG_USER_REGION_READ, 16, false);
    struct vfmig_user_msg msg = {.payload = body};
    struct vfmig_error err;

    *got = ask;
    msg.header = vfmig_user_make_reply(&request, 20);
    msg.size = 20;
    assert_int_equal(vfmig_user_check_reply(&msg, 9, &ask, sizeof(ask), &err), 0);
    msg.size = 19;
    assert_int_equal(vfmig_user_check_reply(&msg, 9, &ask, sizeof(ask), &err), -EPROTO);
    msg.size = 20;
    got->count = 5;
    assert_int_equal(vfmig_user_check_reply(&msg, 9, &ask, sizeof(ask), &err), -EPROTO);
    assert_int_equal(vfmig_user_check_reply(&msg, 10, NULL, 0, &err), -EPROTO);
    msg.header = vfmig_user_make_error(&request, -EBUSY);
    msg.size = 0;
    assert_int_equal(vfmig_user_check_reply(&msg, 9, &ask, sizeof(ask), &err), -EBUSY);
    msg.header.error = 0;
    assert_int_equal(vfmig_user_check_reply(&msg, 9, &ask, sizeof(ask), &err), -EIO);

    struct vfmig_user_mig_data want = {72, 64}, *data = (void *)body;
    request.command = VFMIG_USER_MIG_DATA_READ;
    msg.header = vfmig_user_make_reply(&request, 72);
    msg.size = 72; /* padded to the size asked for, as libvfio-user does */
    *data = (struct vfmig_user_mig_data){72, 10};
    assert_int_equal(vfmig_user_check_reply(&msg, 17, &want, sizeof(want), &err), 0);
    data->size = 65;
    assert_int_equal(vfmig_user_check_reply(&msg, 17, &want, sizeof(want), &err), -EPROTO);
    data->size = 10;
    msg.size = 17;
    assert_int_equal(vfmig_user_check_reply(&msg, 17, &want, sizeof(want), &err), -EPROTO);
}

static void capability_chains_end(void **state)
{
    struct {
        struct vfmig_user_region_info info;
        struct vfmig_user_cap_type type;
        struct vfmig_user_cap ndma;
    } VFMIG_PACKED r = {
        .info = {.argsz = 56, .flags = VFMIG_USER_REGION_F_CAPS, .cap_offset = 32},
        .type = {{VFMIG_USER_CAP_TYPE, 1, 48}, 3, 1},
        .ndma = {VFMIG_USER_CAP_NDMA, 1, 0},
    };
    uint32_t left;

    assert_ptr_equal(vfmig_user_find_cap(&r, sizeof(r), VFMIG_USER_CAP_NDMA, &left), &r.ndma);
    assert_int_equal(left, 8);
    assert_ptr_equal(vfmig_user_find_cap(&r, sizeof(r), VFMIG_USER_CAP_TYPE, &left), &r.type);
    assert_null(vfmig_user_find_cap(&r, sizeof(r) - 1, VFMIG_USER_CAP_NDMA, &left));
    assert_null(vfmig_user_find_cap(&r, sizeof(r), 99, &left));
    r.ndma.next = 32; /* a loop */
    assert_null(vfmig_user_find_cap(&r, sizeof(r), 99, &left));
    r.type.cap.next = UINT32_MAX - 3;
    assert_null(vfmig_user_find_cap(&r, sizeof(r), VFMIG_USER_CAP_NDMA, &left));
}

static void version_texts(void **state)
{
    static const struct {
        const char *text;
        int want;
    } cases[] = {
        {"{}", 0},
        {"{\"capabilities\":{}}", 0},
        {"{\"other\":1,\"capabilities\":{\"more\":[1,2]}}", 0},
        {"{\"capabilities\":{\"max_msg_fds\":1025}}", -EINVAL},
        {"{\"capabilities\":{\"max_msg_fds\":-1}}", -EINVAL},
        {"{\"capabilities\":{\"max_msg_fds\":\"8\"}}", -EINVAL},
        {"{\"capabilities\":{\"max_data_xfer_size\":0}}", -EINVAL},
        {"{\"capabilities\":{\"twin_socket\":true}}", -EINVAL},
        {"{\"capabilities\":{\"twin_socket\":{\"fd_index\":16}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":1}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"window\":1}}}", 0},
        {"{\"capabilities\":{\"vfmig\":{\"window\":0}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"window\":-4096}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"window\":\"4096\"}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"windows\":0}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"windows\":9}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"fd_index\":16}}}", -EINVAL},
        {"{\"capabilities\":{\"vfmig\":{\"token\":\"\"}}}", -EINVAL},
        {"{\"capabilities\":{\"write_multiple\":1}}", -EINVAL},
        {"{\"capabilities\":{\"migration\":{\"pgsize\":4097}}}", -EINVAL},
        {"{\"capabilities\":[]}", -EINVAL},
        {"[]", -EINVAL},
        {"{", -EINVAL},
        {"", -EINVAL},
        {"{} trailing", -EINVAL},
        {"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}}}", -EINVAL},
    };
    struct vfmig_user_caps caps;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int r = vfmig_user_caps_parse(cases[i].text, strlen(cases[i].text) + 1, &caps, NULL);
        if (r != cases[i].want)
            fail_msg("%s: %d", cases[i].text, r);
    }
    assert_int_equal(vfmig_user_caps_parse("{}", 2, &caps, NULL), -EINVAL); /* no NUL */
    assert_int_equal(vfmig_user_caps_parse("{}\0\0", 4, &caps, NULL), -EINVAL);
    assert_int_equal(vfmig_user_caps_parse(NULL, 0, &caps, NULL), 0);
    assert_int_equal(caps.max_data_xfer_size, VFMIG_MAX_DATA_XFER);
    char *big = malloc(VFMIG_MAX_JSON + 1);
    memset(big, ' ', VFMIG_MAX_JSON);
    big[VFMIG_MAX_JSON] = 0;
    assert_int_equal(vfmig_user_caps_parse(big, VFMIG_MAX_JSON + 1, &caps, NULL), -EINVAL);
    free(big);
}

static void version_text_round_trip(void **state)
{
    struct vfmig_user_caps caps, back;
    char text[256];

    vfmig_user_caps_default(&caps);
    caps.has_max_msg_fds = caps.has_max_data_xfer_size = caps.has_max_dma_maps = true;
    caps.has_pgsizes = caps.has_migration = caps.twin_socket = caps.has_twin_fd_index = true;
    caps.max_msg_fds = 16;
    caps.max_data_xfer_size = VFMIG_MAX_DATA_XFER_CAP;
    int size = vfmig_user_caps_format(&caps, text, sizeof(text));
    /* QEMU refuses a reply longer than its own request's text, 194 bytes. */
    assert_in_range(size, 1, 194);
    assert_int_equal(vfmig_user_caps_parse(text, (size_t)size, &back, NULL), 0);
    assert_memory_equal(&caps, &back, sizeof(caps));
    assert_int_equal(vfmig_user_caps_format(&caps, text, 20), -ENOSPC);
    /* Sizes above what we ever negotiate are cut, not wrapped (libvfio-user's int). */
    static const char huge[] = "{\"capabilities\":{\"max_data_xfer_size\":4294967296}}";
    assert_int_equal(vfmig_user_caps_parse(huge, sizeof(huge), &back, NULL), 0);
    assert_int_equal(back.max_data_xfer_size, VFMIG_MAX_DATA_XFER_CAP);
}

/* Our own key: an offer says how large, the answer also how many and which descriptor. */
static void version_window_round_trip(void **state)
{
    static const char huge[] = "{\"capabilities\":{\"vfmig\":{\"window\":9223372036854775807}}}";
    struct vfmig_user_caps caps, back;
    char text[256];

    vfmig_user_caps_default(&caps);
    caps.window = 1 << 20;
    int size = vfmig_user_caps_format(&caps, text, sizeof(text));
    assert_string_equal(text, "{\"capabilities\":{\"vfmig\":{\"window\":1048576}}}");
    assert_int_equal(vfmig_user_caps_parse(text, (size_t)size, &back, NULL), 0);
    assert_memory_equal(&caps, &back, sizeof(caps));
    caps.windows = VFMIG_MAX_WINDOWS;
    caps.window_fd_index = 1;
    caps.has_window_fd_index = true;
    strcpy(caps.token, "t");
    size = vfmig_user_caps_format(&caps, text, sizeof(text));
    assert_string_equal(text, "{\"capabilities\":{\"vfmig\":{\"token\":\"t\",\"window\":1048576,"
                              "\"windows\":8,\"fd_index\":1}}}");
    assert_int_equal(vfmig_user_caps_parse(text, (size_t)size, &back, NULL), 0);
    assert_memory_equal(&caps, &back, sizeof(caps));
    assert_int_equal(vfmig_user_caps_parse(huge, sizeof(huge), &back, NULL), 0);
    assert_int_equal(back.window, VFMIG_MAX_DATA_XFER_CAP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_cut_at_every_byte),
        cmocka_unit_test(every_short_payload_is_refused),
        cmocka_unit_test(messages_one_after_another_in_any_pieces),
        cmocka_unit_test(sizes_around_the_limits),
        cmocka_unit_test(rebase_keeps_what_is_unread),
        cmocka_unit_test(descriptors_find_their_message),
        cmocka_unit_test(descriptors_in_a_body_are_closed),
        cmocka_unit_test(bad_counts_and_flags_are_refused),
        cmocka_unit_test(header_flags_types_and_descriptors),
        cmocka_unit_test(replies_are_held_against_their_request),
        cmocka_unit_test(capability_chains_end),
        cmocka_unit_test(version_texts),
        cmocka_unit_test(version_text_round_trip),
        cmocka_unit_test(version_window_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
