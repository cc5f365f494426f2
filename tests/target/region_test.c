/* SPDX-License-Identifier: BSD-3-Clause */
/* The region dialect against a server that no one here wrote: a small scripted one, whose registers
 * behave as those of other drivers did (X6, X7). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/sock.h"
#include "served.h"
#include "wire/wire.h"

#define MESSAGE     (2u << 20)
#define DATA_OFFSET 0x1000u
#define COMMITS     64u

/* Registers, as one driver had them: pending_bytes is the value before the window advances, so after
 * the last portion it is not zero once more, and the data_size that follows is. */
struct script {
    char path[64];
    int listener;
    pthread_t thread;
    uint32_t window;           /* bytes of the data section */
    uint32_t state;
    const uint8_t *image;      /* what is saved */
    uint32_t image_size, at;   /* at: taken so far */
    uint32_t portion;          /* of the iteration under way */
    uint8_t data[1u << 20];    /* the data section */
    uint8_t loaded[1u << 20];
    uint32_t loaded_size, commits[COMMITS], commit_count;
};

static struct script script;

static uint64_t read_register(uint64_t offset)
{
    switch (offset) {
    case 0:
        return script.state;
    case 8: { /* pending_bytes acknowledges, and tells what there was before that */
        uint64_t before = script.image_size - script.at;
        script.at += script.portion;
        script.portion = 0;
        return before;
    }
    case 16:
        if (script.state & VFMIG_V1_SAVING) {
            uint32_t left = script.image_size - script.at;
            script.portion = left < script.window ? left : script.window;
            memcpy(script.data, script.image + script.at, script.portion);
        }
        return DATA_OFFSET;
    case 24:
        return script.portion;
    default:
        return 0;
    }
}

static int write_register(uint64_t offset, uint64_t value)
{
    if (offset == 0) {
        script.state = (uint32_t)value;
        script.at = script.portion = 0;
    } else if (offset == 24 && script.commit_count < COMMITS && value <= script.window) {
        memcpy(script.loaded + script.loaded_size, script.data, value);
        script.loaded_size += (uint32_t)value;
        script.commits[script.commit_count++] = (uint32_t)value;
    } else {
        return -EINVAL;
    }
    return 0;
}

/* One command; the reply's payload goes to out. Its size, or a negative errno. */
static int serve_command(const struct vfmig_user_msg *msg, uint8_t *out)
{
    struct vfmig_user_region_access access;
    struct {
        struct vfmig_user_region_info info;
        struct vfmig_user_cap_type type;
    } VFMIG_PACKED region = {0};

    memcpy(out, msg->payload, msg->size < 64 ? msg->size : 64);
    switch (msg->header.command) {
    case VFMIG_USER_VERSION: {
        static const uint8_t version[4] = {0, 0, 2, 0};
        static const char json[] = "{\"capabilities\":{\"migration\":{\"pgsize\":4096}}}";
        memcpy(out, version, sizeof(version));
        memcpy(out + sizeof(version), json, sizeof(json));
        return (int)(sizeof(version) + sizeof(json));
    }
    case VFMIG_USER_GET_INFO: {
        struct vfmig_user_device_info info = {sizeof(info), 3, VFMIG_REGION_COUNT, VFMIG_IRQ_COUNT};
        memcpy(out, &info, sizeof(info));
        return sizeof(info);
    }
    case VFMIG_USER_GET_REGION_INFO:
        memcpy(&region.info, msg->payload, sizeof(region.info));
        uint32_t room = region.info.argsz;
        region.info.argsz = sizeof(region.info);
        region.info.flags = 3;
        region.info.size = region.info.index == VFMIG_REGION_CONFIG ? 256 : 0;
        if (region.info.index != VFMIG_REGION_MIGRATION) {
            memcpy(out, &region.info, sizeof(region.info));
            return sizeof(region.info);
        }
        region.info.argsz = sizeof(region);
        region.info.size = DATA_OFFSET + script.window;
        if (room < sizeof(region)) { /* told what the rest takes */
            memcpy(out, &region.info, sizeof(region.info));
            return sizeof(region.info);
        }
        region.info.flags |= VFMIG_USER_REGION_F_CAPS;
        region.info.cap_offset = sizeof(region.info);
        region.type = (struct vfmig_user_cap_type){
            {VFMIG_USER_CAP_TYPE, 1, 0}, VFMIG_USER_REGION_TYPE_MIGRATION,
            VFMIG_USER_REGION_SUBTYPE_MIGRATION};
        memcpy(out, &region, sizeof(region));
        return sizeof(region);
    case VFMIG_USER_GET_IRQ_INFO:
    case VFMIG_USER_DIRTY_PAGES:
        return (int)msg->size;
    case VFMIG_USER_REGION_READ:
    case VFMIG_USER_REGION_WRITE:
        break;
    default:
        return -EOPNOTSUPP;
    }
    memcpy(&access, msg->payload, sizeof(access));
    bool write = msg->header.command == VFMIG_USER_REGION_WRITE;
    bool in_data = access.region == VFMIG_REGION_MIGRATION && access.offset >= DATA_OFFSET;
    uint64_t value = 0, at = access.offset - DATA_OFFSET;
    int r = 0;
    if (in_data && (at > script.window || access.count > script.window - at))
        return -EINVAL;
    if (in_data && write)
        memcpy(script.data + at, msg->payload + sizeof(access), access.count);
    else if (in_data)
        memcpy(out + sizeof(access), script.data + at, access.count);
    else if (write) {
        memcpy(&value, msg->payload + sizeof(access), access.count <= 8 ? access.count : 8);
        r = write_register(access.offset, value);
    } else {
        value = access.region == VFMIG_REGION_MIGRATION ? read_register(access.offset) : 0;
        memset(out + sizeof(access), 0, access.count);
        memcpy(out + sizeof(access), &value, access.count <= 8 ? access.count : 8);
    }
    return r < 0 ? r : (int)(sizeof(access) + (write ? 0 : access.count));
}

static void *run_script(void *arg)
{
    uint8_t *in = malloc(MESSAGE), *out = malloc(MESSAGE);
    struct vfmig_framer framer;
    struct vfmig_user_msg msg;
    int fd;

    assert_int_equal(vfmig_sock_accept(script.listener, VFMIG_NEVER, &fd, NULL), 0);
    vfmig_framer_init(&framer, in, MESSAGE, MESSAGE);
    for (;;) {
        size_t space;
        void *to = vfmig_framer_space(&framer, &space);
        ssize_t n = vfmig_sock_recv(fd, to, space, NULL, NULL, VFMIG_NEVER, NULL);
        if (n <= 0)
            break;
        vfmig_framer_fed(&framer, (size_t)n, NULL);
        while (vfmig_framer_next(&framer, &msg) == 1) {
            int size = serve_command(&msg, out);
            struct vfmig_user_header h =
                size < 0 ? vfmig_user_make_error(&msg.header, size)
                         : vfmig_user_make_reply(&msg.header, (uint32_t)size);
            struct iovec iov[2] = {{&h, sizeof(h)}, {out, size < 0 ? 0 : (size_t)size}};
            if (!(msg.header.flags & VFMIG_USER_NO_REPLY))
                vfmig_sock_send(fd, iov, 2, NULL, VFMIG_NEVER, NULL, NULL);
        }
    }
    vfmig_framer_done(&framer);
    close(fd);
    free(in);
    free(out);
    return NULL;
}

static struct vfmig_target *open_script(uint32_t window)
{
    const struct vfmig_user_options options = {.dialect = VFMIG_DIALECT_REGION};
    struct vfmig_target *t;
    struct vfmig_error err = {0};

    memset(&script, 0, sizeof(script));
    script.window = window;
    script.state = VFMIG_V1_RUNNING;
    served_path(script.path, sizeof(script.path));
    assert_int_equal(vfmig_sock_listen(script.path, &script.listener, NULL), 0);
    assert_int_equal(pthread_create(&script.thread, NULL, run_script, NULL), 0);
    if (vfmig_user_open(script.path, &options, &t, &err) < 0)
        fail_msg("%s", err.text);
    return t;
}

static void close_script(struct vfmig_target *t)
{
    t->ops->close(t);
    pthread_join(script.thread, NULL);
    close(script.listener);
    unlink(script.path);
}

/* X6: after the last portion pending_bytes is not zero once more; data_size is, and that is the end
 * of this phase, not a fault. */
static void pending_without_data_ends_the_phase(void **state)
{
    static uint8_t image[10000], buf[8192], got[sizeof(image)];
    struct vfmig_error err = {0};
    size_t total = 0;
    ssize_t n;

    for (unsigned i = 0; i < sizeof(image); i++)
        image[i] = (uint8_t)(i * 31 + i / 256);
    struct vfmig_target *t = open_script(4096);
    script.image = image;
    script.image_size = sizeof(image);
    static const enum vfmig_state states[] = {VFMIG_STATE_PRE_COPY, VFMIG_STATE_STOP_COPY};
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(t->ops->set_state(t, states[i], VFMIG_NEVER, &err), 0);
        for (total = 0; (n = t->ops->save(t, buf, sizeof(buf), &err)) > 0; total += (size_t)n) {
            assert_true(total + (size_t)n <= sizeof(got));
            memcpy(got + total, buf, (size_t)n);
        }
        assert_int_equal(n, 0);
        assert_int_equal(total, sizeof(image));
        assert_memory_equal(got, image, sizeof(image));
    }
    close_script(t);
}

/* X7: a portion larger than the window here goes in as several, in order, each committed; one that
 * fits is kept whole. */
static void portions_are_split_for_a_smaller_window(void **state)
{
    static uint8_t image[10000];
    struct vfmig_error err = {0};

    for (unsigned i = 0; i < sizeof(image); i++)
        image[i] = (uint8_t)(i * 17 + i / 256);
    struct vfmig_target *t = open_script(4096);
    assert_int_equal(t->ops->set_state(t, VFMIG_STATE_RESUMING, VFMIG_NEVER, &err), 0);
    int r = t->ops->load(t, image, sizeof(image), &err);
    if (r < 0)
        fail_msg("%s", err.text);
    assert_int_equal(t->ops->load(t, image, 100, &err), 0);
    assert_int_equal(script.commit_count, 4);
    assert_int_equal(script.commits[0], 4096);
    assert_int_equal(script.commits[1], 4096);
    assert_int_equal(script.commits[2], sizeof(image) - 2 * 4096);
    assert_int_equal(script.commits[3], 100);
    assert_memory_equal(script.loaded, image, sizeof(image));
    assert_memory_equal(script.loaded + sizeof(image), image, 100);
    close_script(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pending_without_data_ends_the_phase),
        cmocka_unit_test(portions_are_split_for_a_smaller_window),
    };
    return cmocka_run_group_tests(tests, served_setup, served_teardown);
}
