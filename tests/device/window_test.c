/* SPDX-License-Identifier: BSD-3-Clause */
/* Device data in memory shared with the client: the mapped data section of the migration region,
 * and the window of the feature dialect. What a client does to that memory hurts itself alone. */
#include "peer.h"
#include "toy.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MIG    VFMIG_REGION_MIGRATION
#define MIB    (1u << 20)
#define FRAME  312u /* of one record of the toy: header 40, section 8, record 264 */
#define FRAMES (TOY_PAGES + 1)

static struct toy *toy;
static struct peer *peer;
static uint8_t *section; /* mapping of the data section */
static uint64_t section_at;
static size_t section_size;

static void attach(const char *json)
{
    peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, json), 0);
}

static int start(void **state)
{
    toy = toy_new_windows(3, false);
    attach(NULL);
    section = peer_map_section(peer, &section_at, &section_size);
    return 0;
}

static int stop(void **state)
{
    if (section)
        munmap(section, section_size);
    section = NULL;
    peer_end(peer);
    toy_free(toy);
    return 0;
}

/* The next client, with a mapping of its own. */
static void reopen(void)
{
    munmap(section, section_size);
    peer_end(peer);
    attach(NULL);
    section = peer_map_section(peer, &section_at, &section_size);
}

static void put_memory(uint8_t salt)
{
    uint8_t memory[TOY_MEMORY_SIZE];

    for (unsigned i = 0; i < sizeof(memory); i++)
        memory[i] = (uint8_t)(i * salt + i / 256);
    assert_int_equal(peer_write(peer, 0, TOY_MEMORY, memory, sizeof(memory)), 0);
}

static void check_memory(uint8_t salt)
{
    uint8_t memory[TOY_MEMORY_SIZE];

    assert_int_equal(peer_read(peer, 0, TOY_MEMORY, memory, sizeof(memory)), 0);
    for (unsigned i = 0; i < sizeof(memory); i++)
        assert_int_equal(memory[i], (uint8_t)(i * salt + i / 256));
}

/* A whole save by message, for loading. */
static size_t saved(uint8_t salt, uint8_t **ret_data)
{
    put_memory(salt);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    size_t size = peer_save_v2(peer, ret_data, MIB);
    assert_int_equal(peer_reset(peer), 0);
    return size;
}

static struct vfmig_device_counters counters(void)
{
    struct vfmig_device_counters c;

    vfmig_device_get_counters(toy->dev, &c);
    return c;
}

/* The next portion, open: its place in the mapping and its size. */
static uint8_t *portion(uint64_t *ret_size)
{
    assert_true(peer_get(peer, MIG, 8, 8) > 0);
    uint64_t offset = peer_get(peer, MIG, 16, 8);
    *ret_size = peer_get(peer, MIG, 24, 8);
    assert_int_equal(offset % 4096, 0);
    assert_true(offset >= section_at && offset - section_at + *ret_size <= section_size);
    return section + (offset - section_at);
}

/* Commits size bytes of data, which were put into the mapping, as one portion. */
static int commit(const uint8_t *data, size_t size)
{
    uint64_t offset = peer_get(peer, MIG, 16, 8);

    memcpy(section + (offset - section_at), data, size);
    return peer_put(peer, MIG, 24, size, 8);
}

/* ---- the mapped region ----------------------------------------------------------------------- */

static uint32_t ask_region(uint32_t argsz, struct vfmig_user_region_info *ret_info)
{
    *ret_info = (struct vfmig_user_region_info){.argsz = argsz, .index = MIG};
    assert_int_equal(peer_call(peer, VFMIG_USER_GET_REGION_INFO, ret_info, sizeof(*ret_info)), 0);
    memcpy(ret_info, peer->reply, sizeof(*ret_info));
    return peer->reply_size;
}

/* vfio-user 3.2: capabilities, flag and descriptor come when the capabilities fit, or not at all. */
static void the_data_section_is_offered_when_it_fits(void **state)
{
    struct vfmig_user_region_info info;

    assert_int_equal(ask_region(32, &info), 32);
    uint32_t full = info.argsz;
    for (uint32_t argsz = 32; argsz < full; argsz++) {
        assert_int_equal(ask_region(argsz, &info), 32);
        assert_int_equal(info.argsz, full);
        assert_int_equal(info.flags, VFMIG_USER_REGION_F_READ | VFMIG_USER_REGION_F_WRITE);
        assert_int_equal(info.cap_offset, 0);
        assert_int_equal(peer->fd_count, 0);
    }
    assert_int_equal(ask_region(full, &info), full);
    assert_int_equal(info.flags, 0xf);
    assert_int_equal(peer->fd_count, 1);
    assert_int_equal(section_at, 4096); /* all but the register page */
    assert_int_equal(section_size, 3 * MIB);
    assert_int_equal(info.size, section_at + section_size);
}

/* A register acts when it is accessed, so its page is not in the memory that can be mapped. */
static void registers_are_never_mapped(void **state)
{
    struct vfmig_user_region_info info;

    ask_region(4096, &info);
    int fd = peer_take_fd(peer, 0);
    uint32_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)info.offset);
    if (page != MAP_FAILED) {
        for (unsigned i = 0; i < 1024; i++)
            page[i] = 2;
        assert_int_equal(peer_get_v1(peer), 1);
        assert_int_equal(peer_set_v1(peer, 3), 0);
        assert_int_equal(page[0], 2); /* what was put there, not device_state */
        munmap(page, 4096);
    }
    close(fd);
}

/* Pages under a mapping of the server cannot be taken away. */
static void the_memory_cannot_shrink(void **state)
{
    struct vfmig_user_region_info info;

    ask_region(4096, &info);
    int fd = peer_take_fd(peer, 0);
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 64 * MIB), -1);
    assert_true(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
    close(fd);
}

static void a_client_without_descriptors_has_messages(void **state)
{
    struct vfmig_user_region_info info;
    uint8_t *data;

    munmap(section, section_size);
    section = NULL;
    peer_end(peer);
    attach("{\"capabilities\":{\"max_msg_fds\":0,\"vfmig\":{\"window\":1048576}}}");
    assert_null(strstr((char *)peer->reply + 4, "vfmig"));
    ask_region(4096, &info);
    assert_int_equal(peer->fd_count, 0);
    assert_int_equal(info.flags & VFMIG_USER_REGION_F_MMAP, 0);
    assert_true(info.flags & VFMIG_USER_REGION_F_CAPS);
    put_memory(3);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    size_t size = peer_save_v1(peer, &data);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(peer_set_v1(peer, 4), 0);
    /* Nothing is mapped, so what was not written cannot be committed. */
    assert_int_equal(peer_put(peer, MIG, 24, 8, 8), -EINVAL);
    assert_int_equal(peer_load_v1(peer, data, size, 4096), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(3);
    free(data);
}

/* C4, C24: out and in by the mapping; the same bytes can be had by message. */
static void data_goes_through_the_mapping(void **state)
{
    struct vfmig_device_counters before = counters(), after;
    uint64_t size;
    uint8_t *data = malloc(MIB), *copy = malloc(MIB);

    put_memory(5);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    uint8_t *at = portion(&size);
    assert_true(size > FRAMES * FRAME && size <= MIB);
    memcpy(data, at, size);
    after = counters();
    assert_int_equal(after.data_messages, before.data_messages);
    assert_int_equal(after.windows_filled, before.windows_filled + 1);
    assert_int_equal(peer_read(peer, MIG, section_at + (uint64_t)(at - section), copy,
                               (uint32_t)size), 0);
    assert_memory_equal(copy, data, size);
    assert_int_equal(peer_get(peer, MIG, 8, 8), 0);
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    before = counters();
    for (uint64_t done = 0; done < size; done += 5000) /* turns, and portions that cut frames */
        assert_int_equal(commit(data + done, size - done < 5000 ? size - done : 5000), 0);
    after = counters();
    assert_int_equal(after.data_messages, before.data_messages);
    assert_int_equal(after.windows_loaded, before.windows_loaded + (size + 4999) / 5000);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(5);
    free(data);
    free(copy);
}

/* A device that only writes to buf saves straight into the window. */
static void a_device_may_save_in_place(void **state)
{
    uint64_t size;

    stop(NULL);
    toy = toy_new_windows(2, true);
    attach(NULL);
    section = peer_map_section(peer, &section_at, &section_size);
    put_memory(9);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    uint8_t *at = portion(&size), *data = malloc(size);
    memcpy(data, at, size);
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    assert_int_equal(commit(data, size), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(9);
    free(data);
}

/* Several windows in flight: a portion stays where it is until its window comes round again, also
 * when the client acknowledged it early; by mapping and by message. */
static void an_acknowledged_portion_stays(void **state)
{
    struct {
        uint8_t *at, *copy;
        uint64_t size;
    } kept[4];
    uint8_t byte = 0;

    put_memory(1);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    for (unsigned i = 0; i < 4; i++) {
        kept[i].at = portion(&kept[i].size);
        assert_true(kept[i].size > 0);
        assert_ptr_equal(kept[i].at, section + i % 3 * MIB);
        kept[i].copy = malloc(kept[i].size);
        memcpy(kept[i].copy, kept[i].at, kept[i].size);
        for (unsigned j = i < 2 ? 0 : i - 2; j <= i; j++) {
            assert_memory_equal(kept[j].at, kept[j].copy, kept[j].size);
            uint64_t offset = section_at + (uint64_t)(kept[j].at - section);
            assert_int_equal(peer_read(peer, MIG, offset + kept[j].size - 1, &byte, 1), 0);
            assert_int_equal(byte, kept[j].copy[kept[j].size - 1]);
            assert_int_equal(peer_read(peer, MIG, offset + kept[j].size, &byte, 1), -EINVAL);
        }
        assert_int_equal(peer_put(peer, 0, TOY_MEMORY + i * TOY_PAGE, 77 + i, 8), 0);
    }
    assert_memory_not_equal(kept[0].at, kept[0].copy, kept[0].size < 400 ? kept[0].size : 400);
    for (unsigned i = 0; i < 4; i++)
        free(kept[i].copy);
}

/* The windows end where they end, whatever the register is told. */
static void a_commit_stays_inside(void **state)
{
    const uint64_t sizes[] = {3 * MIB + 1, UINT64_MAX, 1ull << 63, UINT64_MAX - 4095};

    assert_int_equal(peer_set_v1(peer, 4), 0);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        assert_int_equal(peer_put(peer, MIG, 24, sizes[i], 8), -EINVAL);
    assert_int_equal(peer_get(peer, MIG, 16, 8), section_at);
    /* Nothing but zeroes: taken, and refused as a stream. */
    assert_int_equal(peer_put(peer, MIG, 24, 3 * MIB, 8), -EPROTO);
    assert_true(peer_set_v1(peer, 1) < 0);
    assert_int_equal(peer_get_v1(peer), 6);
    assert_int_equal(peer_reset(peer), 0);
    assert_int_equal(peer_get_v1(peer), 1);
}

/* ---- hostile clients ------------------------------------------------------------------------- */

/* Every byte is copied once before it is looked at: what the client changes while the device
 * loads a frame does not reach the device. */
static void changes_while_loading_come_too_late(void **state)
{
    uint8_t *data;
    size_t size = saved(21, &data);

    assert_int_equal(peer_set_v1(peer, 4), 0);
    toy->scribble = section;
    toy->scribble_stride = FRAME;
    toy->loads = 0;
    assert_int_equal(commit(data, size), 0);
    assert_int_equal(toy->loads, FRAMES);
    assert_int_equal(section[FRAME * FRAMES - 1], 0xff); /* it was changed indeed */
    toy->scribble = NULL;
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(21);
    free(data);
}

/* A device that reads what it wrote does not see the client's changes either. */
static void changes_while_saving_do_not_reach_the_device(void **state)
{
    uint64_t size;

    put_memory(23);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    peer_get(peer, MIG, 8, 8);
    toy->scribble = section;
    toy->scribble_stride = FRAME;
    toy->saves = 0;
    uint8_t *at = portion(&size), *data = malloc(size);
    assert_int_equal(toy->saves, TOY_PAGES);
    toy->scribble = NULL;
    memcpy(data, at, size);
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    assert_int_equal(commit(data, size), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(23);
    free(data);
}

static atomic_bool enough;

static void *scribbler(void *arg)
{
    for (uint32_t x = 1; !atomic_load(&enough); x = x * 1664525 + 1013904223)
        ((volatile uint8_t *)section)[x % (FRAME * FRAMES)] ^= (uint8_t)(x >> 24);
    return NULL;
}

/* Bytes that change all the time: the stream is refused or was not hit; the server goes on. */
static void a_client_that_scribbles_hurts_itself(void **state)
{
    pthread_t thread;
    uint8_t *data;
    size_t size = saved(25, &data);

    atomic_store(&enough, false);
    assert_int_equal(pthread_create(&thread, NULL, scribbler, NULL), 0);
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(peer_set_v1(peer, i % 2 ? 2 : 4), 0);
        if (i % 2)
            while (peer_get(peer, MIG, 8, 8))
                peer_get(peer, MIG, 16, 8);
        else
            commit(data, size);
        assert_int_equal(peer_reset(peer), 0);
    }
    atomic_store(&enough, true);
    pthread_join(thread, NULL);
    /* And the next client is fine. */
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    assert_int_equal(commit(data, size), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(25);
    free(data);
}

/* A mapping outlives its connection: the memory is not the next client's. */
static void the_next_client_has_its_own_memory(void **state)
{
    uint64_t size;
    uint8_t *old = section, *zero = calloc(1, section_size);
    size_t old_size = section_size;

    section = NULL;
    peer_end(peer);
    attach(NULL);
    section = peer_map_section(peer, &section_at, &section_size);
    put_memory(27);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    portion(&size);
    assert_int_equal(section_size, old_size);
    assert_memory_equal(old, zero, old_size);
    munmap(old, old_size);
    free(zero);
}

/* ---- the feature dialect --------------------------------------------------------------------- */

static uint8_t *window;
static uint64_t window_size, window_count;

/* A fresh client with this VERSION text. */
static void attach_window(const char *json)
{
    if (window)
        munmap(window, window_size * window_count);
    window = NULL;
    peer_end(peer);
    attach(json);
}

static uint64_t number_in_reply(const char *key)
{
    char name[32];

    snprintf(name, sizeof(name), "\"%s\":", key);
    const char *at = strstr((char *)peer->reply + 4, name);
    assert_non_null(at);
    return strtoull(at + strlen(name), NULL, 10);
}

static void map_window(void)
{
    window_size = number_in_reply("window");
    window_count = number_in_reply("windows");
    int fd = peer_take_fd(peer, (unsigned)number_in_reply("fd_index"));
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, window_size * window_count);
    window = mmap(NULL, window_size * window_count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(window != MAP_FAILED);
    close(fd);
}

#define OFFER(bytes) "{\"capabilities\":{\"max_msg_fds\":8,\"vfmig\":{\"window\":" bytes "}}}"

static int start_window(void **state)
{
    toy = toy_new_windows(3, false);
    attach(OFFER("67108864"));
    map_window();
    return 0;
}

static int stop_window(void **state)
{
    munmap(window, window_size * window_count);
    window = NULL;
    peer_end(peer);
    toy_free(toy);
    return 0;
}

struct window_request {
    struct vfmig_user_feature head;
    struct vfmig_user_feature_window window;
} VFMIG_PACKED;

static int window_call(uint32_t flags, uint64_t offset, uint32_t size)
{
    struct window_request req = {{sizeof(req), flags}, {offset, size, 0}};

    return peer_call(peer, VFMIG_USER_FEATURE, &req, sizeof(req));
}

#define READ  (VFMIG_USER_FEATURE_GET | VFMIG_USER_F_WINDOW_READ)
#define WRITE (VFMIG_USER_FEATURE_SET | VFMIG_USER_F_WINDOW_WRITE)

/* Bytes that WINDOW_READ put at offset. */
static uint32_t window_read(uint64_t offset, uint32_t size)
{
    struct window_request got;

    assert_int_equal(window_call(READ, offset, size), 0);
    assert_int_equal(peer->reply_size, sizeof(got));
    memcpy(&got, peer->reply, sizeof(got));
    assert_int_equal(got.window.offset, offset);
    assert_true(got.window.size <= size);
    return got.window.size;
}

/* The answer to a client that offered nothing has no key of ours and no descriptor. */
static void version_is_unchanged_without_the_offer(void **state)
{
    attach_window(NULL);
    assert_string_equal((char *)peer->reply + 4, "{\"capabilities\":{}}");
    assert_int_equal(peer->fd_count, 0);
    assert_int_equal(window_call(READ, 0, 4096), -ENOTTY);
    attach_window("{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,"
                  "\"max_dma_maps\":65535,\"pgsizes\":4096,\"migration\":{\"pgsize\":4096,"
                  "\"max_bitmap_size\":268435456},\"write_multiple\":true}}"); /* QEMU's */
    assert_true(peer->reply_size <= 4 + 194);
    assert_null(strstr((char *)peer->reply + 4, "vfmig"));
    assert_int_equal(peer->fd_count, 0);
    attach_window("{\"capabilities\":{\"vfmig\":{}}}");
    assert_string_equal((char *)peer->reply + 4, "{\"capabilities\":{}}");
    assert_int_equal(peer->fd_count, 0);
    attach_window(OFFER("1048576"));
    map_window();
}

static void an_offer_is_answered_with_a_window(void **state)
{
    static const struct {
        const char *json;
        uint64_t size;
    } offers[] = {{OFFER("4096"), 4096},
                  {OFFER("9000"), 8192},
                  {OFFER("1048576"), MIB},
                  {OFFER("9223372036854775807"), MIB}};

    for (unsigned i = 0; i < sizeof(offers) / sizeof(offers[0]); i++) {
        attach_window(offers[i].json);
        assert_int_equal(peer->fd_count, 1);
        map_window();
        assert_int_equal(window_size, offers[i].size);
        assert_int_equal(window_count, 3);
    }
    /* Beside the twin socket it is the second descriptor; with room for one, there is none. */
    attach_window("{\"capabilities\":{\"max_msg_fds\":2,\"twin_socket\":{\"supported\":true},"
                  "\"vfmig\":{\"window\":8192}}}");
    assert_non_null(strstr((char *)peer->reply + 4, "\"supported\":true,\"fd_index\":0}"));
    assert_non_null(strstr((char *)peer->reply + 4, "\"vfmig\":{\"window\":8192,\"windows\":3,"
                                                    "\"fd_index\":1}"));
    assert_int_equal(peer->fd_count, 2);
    attach_window("{\"capabilities\":{\"max_msg_fds\":1,\"twin_socket\":{\"supported\":true},"
                  "\"vfmig\":{\"window\":8192}}}");
    assert_int_equal(peer->fd_count, 1);
    assert_null(strstr((char *)peer->reply + 4, "vfmig"));
    attach_window(OFFER("4095")); /* no page */
    assert_null(strstr((char *)peer->reply + 4, "vfmig"));
    attach_window(OFFER("1048576"));
    map_window();
}

/* C4, C24: the same stream, window by window; the messages still work and share it. */
static void data_goes_through_the_window(void **state)
{
    uint8_t *data = malloc(MIB), *rest;
    struct vfmig_device_counters before, after;
    size_t size = 0;
    uint32_t n;

    put_memory(31);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    for (unsigned i = 0; i < 3; i++) {
        n = window_read(i * window_size, 5000);
        assert_int_equal(n, 5000);
        memcpy(data + size, window + i * window_size, n);
        size += n;
    }
    size_t more = peer_save_v2(peer, &rest, 700);
    memcpy(data + size, rest, more);
    free(rest);
    assert_int_equal(window_read(0, 5000), 0); /* the end */
    size += more;

    attach_window(OFFER("1048576"));
    map_window();
    before = counters();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    for (size_t at = 0, turn = 0; at < size; at += n, turn++) {
        n = (uint32_t)(size - at < 5000 ? size - at : 5000);
        uint64_t offset = turn % 3 * window_size + turn; /* any offset */
        memcpy(window + offset, data + at, n);
        assert_int_equal(window_call(WRITE, offset, n), 0);
    }
    after = counters();
    assert_int_equal(after.data_messages, before.data_messages);
    assert_int_equal(after.windows_loaded, before.windows_loaded + (size + 4999) / 5000);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    check_memory(31);
    free(data);
}

/* A short answer: nothing now in PRE_COPY, the end in STOP_COPY. */
static void a_short_window_means_what_a_short_message_means(void **state)
{
    put_memory(33);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    assert_int_equal(window_read(0, MIB), TOY_PAGES * FRAME);
    assert_int_equal(window_read(0, MIB), 0);
    assert_int_equal(peer_put(peer, 0, TOY_MEMORY, 1, 8), 0);
    assert_int_equal(window_read(MIB, MIB), FRAME);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    assert_true(window_read(0, MIB) > 0);
    assert_int_equal(window_read(0, MIB), 0);
}

/* The states of MIG_DATA_READ and MIG_DATA_WRITE, nothing outside the window, and a refusal takes
 * nothing out of the stream. */
static void window_access_is_checked(void **state)
{
    const uint64_t all = window_size * window_count;
    const struct {
        uint64_t offset, size;
    } outside[] = {{all, 1}, {all - 1, 2}, {0, all + 1}, {UINT64_MAX, 1}, {1ull << 63, 8}};

    for (unsigned write = 0; write < 2; write++) {
        uint32_t op = write ? WRITE : READ;
        assert_int_equal(window_call(op, 0, 4096), -EINVAL); /* in R */
        assert_int_equal(peer_set_v1(peer, write ? 4 : 3), 0);
        assert_int_equal(window_call(write ? READ : WRITE, 0, 4096), -EINVAL);
        for (unsigned i = 0; i < sizeof(outside) / sizeof(outside[0]); i++)
            assert_int_equal(window_call(op, outside[i].offset, (uint32_t)outside[i].size), -EINVAL);
        assert_int_equal(window_call(op, all, 0), 0);
        struct window_request req = {{sizeof(req), op}, {0, 4096, 1}};
        assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &req, sizeof(req)), -EINVAL);
        req.window.reserved = 0;
        assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &req, sizeof(req) - 1), -EINVAL);
        req.head.argsz--;
        assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &req, sizeof(req)), -EINVAL);
        struct vfmig_user_feature probe = {8, op | VFMIG_USER_FEATURE_PROBE};
        assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &probe, sizeof(probe)), 0);
        if (!write) /* all of it is still there */
            assert_int_equal(window_read(0, MIB), TOY_PAGES * FRAME);
        assert_int_equal(peer_reset(peer), 0);
    }
    assert_int_equal(window_call(VFMIG_USER_FEATURE_SET | VFMIG_USER_F_WINDOW_READ, 0, 1), -EINVAL);
    assert_int_equal(window_call(VFMIG_USER_FEATURE_GET | VFMIG_USER_F_WINDOW_WRITE, 0, 1),
                     -EINVAL);
}

static void changes_while_the_window_is_loaded_come_too_late(void **state)
{
    uint8_t *data;
    size_t size = saved(35, &data);

    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    memcpy(window, data, size);
    toy->scribble = window;
    toy->scribble_stride = FRAME;
    toy->loads = 0;
    assert_int_equal(window_call(WRITE, 0, (uint32_t)size), 0);
    assert_int_equal(toy->loads, FRAMES);
    toy->scribble = NULL;
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    check_memory(35);
    free(data);
}

/* ---- the control client ---------------------------------------------------------------------- */

/* A second connection with a session, served by the thread that serves the owner. */
static struct peer control_open(const char *path, const char *json)
{
    struct peer c = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), .twin = -1,
                     .reply = malloc(PEER_REPLY_MAX)};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    strcpy(addr.sun_path, path);
    assert_int_equal(connect(c.fd, (void *)&addr, sizeof(addr)), 0);
    assert_int_equal(peer_version(&c, json), 0);
    return c;
}

static void control_close(struct peer *c)
{
    close(c->fd);
    free(c->reply);
}

/* A control client has windows of its own; an owner's open portion goes over to it, and the next
 * session sees nothing of the one before. */
static void a_control_client_has_its_own_windows(void **state)
{
    char dir[] = "/tmp/vfmig-window-XXXXXX", path[64];
    uint64_t size, at;
    size_t bytes;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/control", dir);
    toy = toy_new_windows(2, false);
    assert_int_equal(vfmig_device_listen_control(toy->dev, path, NULL), 0);
    attach(NULL);
    section = peer_map_section(peer, &section_at, &section_size);
    put_memory(41);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    uint8_t *open_portion = portion(&size), *data = malloc(MIB);
    memcpy(data, open_portion, size);

    struct peer c = control_open(path, "{\"capabilities\":{\"max_msg_fds\":8,\"vfmig\":"
                                       "{\"token\":\"t\",\"window\":8192}}}");
    assert_non_null(strstr((char *)c.reply + 4, "\"vfmig\":{\"token\":\"t\",\"window\":8192,"
                                                "\"windows\":2,\"fd_index\":0}"));
    uint8_t *map = peer_map_section(&c, &at, &bytes);
    assert_memory_equal(map, data, size);
    assert_int_equal(peer_get(&c, MIG, 16, 8), at);
    assert_int_equal(peer_get(&c, MIG, 24, 8), size);
    assert_int_equal(window_call(READ, 0, 1), -EBUSY); /* the session has the migration */
    memset(open_portion, 0, size);
    assert_memory_equal(map, data, size); /* not the same memory */
    assert_int_equal(peer_set_v1(&c, 1), 0);
    control_close(&c);

    /* The session is over; a later one starts with memory of its own. */
    while (peer_set_v1(peer, 1) == -EBUSY)
        ;
    c = control_open(path, "{\"capabilities\":{\"vfmig\":{\"token\":\"u\"}}}");
    uint64_t other_at;
    size_t other_bytes;
    uint8_t *other = peer_map_section(&c, &other_at, &other_bytes);
    assert_int_equal(other[0], 0);
    assert_int_equal(peer_set_v1(&c, 3), 0);
    assert_true(peer_get(&c, MIG, 8, 8) > 0);
    peer_get(&c, MIG, 16, 8);
    assert_memory_equal(map, data, size); /* nothing of it is seen there */
    munmap(map, bytes);

    /* The owner's reset ends it: then there is nothing to map any more. */
    assert_int_equal(peer_reset(peer), 0);
    struct vfmig_user_region_info info = {.argsz = 4096, .index = MIG};
    assert_int_equal(peer_call(&c, VFMIG_USER_GET_REGION_INFO, &info, sizeof(info)), 0);
    memcpy(&info, c.reply, sizeof(info));
    assert_int_equal(info.flags & VFMIG_USER_REGION_F_MMAP, 0);
    assert_int_equal(c.fd_count, 0);
    munmap(other, other_bytes);
    control_close(&c);
    free(data);
    stop(NULL);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
#define REGION(test)  cmocka_unit_test_setup_teardown(test, start, stop)
#define FEATURE(test) cmocka_unit_test_setup_teardown(test, start_window, stop_window)
    const struct CMUnitTest tests[] = {
        REGION(the_data_section_is_offered_when_it_fits),
        REGION(registers_are_never_mapped),
        REGION(the_memory_cannot_shrink),
        REGION(a_client_without_descriptors_has_messages),
        REGION(data_goes_through_the_mapping),
        REGION(a_device_may_save_in_place),
        REGION(an_acknowledged_portion_stays),
        REGION(a_commit_stays_inside),
        REGION(changes_while_loading_come_too_late),
        REGION(changes_while_saving_do_not_reach_the_device),
        REGION(a_client_that_scribbles_hurts_itself),
        REGION(the_next_client_has_its_own_memory),
        FEATURE(version_is_unchanged_without_the_offer),
        FEATURE(an_offer_is_answered_with_a_window),
        FEATURE(data_goes_through_the_window),
        FEATURE(a_short_window_means_what_a_short_message_means),
        FEATURE(window_access_is_checked),
        FEATURE(changes_while_the_window_is_loaded_come_too_late),
        cmocka_unit_test(a_control_client_has_its_own_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
