/* SPDX-License-Identifier: BSD-3-Clause */
/* The JSON text of VERSION. */
#include <errno.h>
#include <string.h>

#include <json-c/json.h>

#include "wire/wire.h"

#define JSON_DEPTH 6

void vfmig_user_caps_default(struct vfmig_user_caps *caps)
{
    *caps = (struct vfmig_user_caps){
        .max_msg_fds = 1,
        .max_data_xfer_size = VFMIG_MAX_DATA_XFER,
        .max_dma_maps = 65535,
        .pgsizes = 4096,
        .migration_pgsize = 4096,
        .windows = 1,
    };
}

static int wrong(struct vfmig_error *reterr, const char *what)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0, "VERSION text: %s", what);
}

/* 1 and *ret_value: key is there as a number in [0, INT64_MAX]; 0: absent; -EINVAL: otherwise. */
static int get_number(json_object *obj, const char *key, uint64_t *ret_value)
{
    json_object *value;

    if (!json_object_object_get_ex(obj, key, &value))
        return 0;
    if (!json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0)
        return -EINVAL;
    *ret_value = (uint64_t)json_object_get_int64(value);
    return 1;
}

static int get_bool(json_object *obj, const char *key, bool *ret_value)
{
    json_object *value;

    if (!json_object_object_get_ex(obj, key, &value))
        return 0;
    if (!json_object_is_type(value, json_type_boolean))
        return -EINVAL;
    *ret_value = json_object_get_boolean(value);
    return 1;
}

static int get_object(json_object *obj, const char *key, json_object **ret_value)
{
    if (!json_object_object_get_ex(obj, key, ret_value))
        return 0;
    return json_object_is_type(*ret_value, json_type_object) ? 1 : -EINVAL;
}

static uint32_t cut(uint64_t value, uint32_t most)
{
    return value < most ? (uint32_t)value : most;
}

static int parse_numbers(json_object *caps, struct vfmig_user_caps *out, struct vfmig_error *reterr)
{
    uint64_t value;
    int r;

    r = get_number(caps, "max_msg_fds", &value);
    if (r < 0 || (r && value > 1024))
        return wrong(reterr, "max_msg_fds is not a number from 0 to 1024");
    if ((out->has_max_msg_fds = r))
        out->max_msg_fds = (uint32_t)value;
    r = get_number(caps, "max_data_xfer_size", &value);
    if (r < 0 || (r && value == 0))
        return wrong(reterr, "max_data_xfer_size is not a positive number");
    if ((out->has_max_data_xfer_size = r))
        out->max_data_xfer_size = cut(value, VFMIG_MAX_DATA_XFER_CAP);
    r = get_number(caps, "max_dma_maps", &value);
    if (r < 0)
        return wrong(reterr, "max_dma_maps is not a number");
    if ((out->has_max_dma_maps = r))
        out->max_dma_maps = cut(value, UINT32_MAX);
    r = get_number(caps, "pgsizes", &value);
    if (r < 0 || (r && value == 0))
        return wrong(reterr, "pgsizes is not a positive number");
    if ((out->has_pgsizes = r))
        out->pgsizes = value;
    return 0;
}

static int parse_objects(json_object *caps, struct vfmig_user_caps *out, struct vfmig_error *reterr)
{
    json_object *obj;
    uint64_t value;
    int r;

    if (get_bool(caps, "write_multiple", &out->write_multiple) < 0)
        return wrong(reterr, "write_multiple is not a boolean");
    r = get_object(caps, "migration", &obj);
    if (r < 0)
        return wrong(reterr, "migration is not an object");
    if ((out->has_migration = r)) {
        r = get_number(obj, "pgsize", &value);
        if (r < 0 || (r && (value < 512 || (value & (value - 1)))))
            return wrong(reterr, "migration.pgsize is not a page size");
        if (r)
            out->migration_pgsize = value;
    }
    r = get_object(caps, "twin_socket", &obj);
    if (r < 0)
        return wrong(reterr, "twin_socket is not an object");
    if (r) {
        if (get_bool(obj, "supported", &out->twin_socket) < 0)
            return wrong(reterr, "twin_socket.supported is not a boolean");
        r = get_number(obj, "fd_index", &value);
        if (r < 0 || (r && value >= VFMIG_MAX_MSG_FDS))
            return wrong(reterr, "twin_socket.fd_index is not an index");
        if ((out->has_twin_fd_index = r))
            out->twin_fd_index = (uint32_t)value;
    }
    return 0;
}

static int parse_window(json_object *obj, struct vfmig_user_caps *out, struct vfmig_error *reterr)
{
    uint64_t value;
    int r = get_number(obj, "window", &value);

    if (r < 0 || (r && value == 0))
        return wrong(reterr, "vfmig.window is not a positive number");
    if (r)
        out->window = cut(value, VFMIG_MAX_DATA_XFER_CAP);
    r = get_number(obj, "windows", &value);
    if (r < 0 || (r && (value == 0 || value > VFMIG_MAX_WINDOWS)))
        return wrong(reterr, "vfmig.windows is not a number from 1 to 8");
    if (r)
        out->windows = (uint32_t)value;
    r = get_number(obj, "fd_index", &value);
    if (r < 0 || (r && value >= VFMIG_MAX_MSG_FDS))
        return wrong(reterr, "vfmig.fd_index is not an index");
    if ((out->has_window_fd_index = r))
        out->window_fd_index = (uint32_t)value;
    return 0;
}

static int parse_own(json_object *caps, struct vfmig_user_caps *out, struct vfmig_error *reterr)
{
    json_object *obj, *token;
    int r = get_object(caps, "vfmig", &obj);

    if (r < 0)
        return wrong(reterr, "vfmig is not an object");
    if (r == 0)
        return 0;
    r = parse_window(obj, out, reterr);
    if (r < 0 || !json_object_object_get_ex(obj, "token", &token))
        return r;
    size_t length = json_object_is_type(token, json_type_string)
                        ? (size_t)json_object_get_string_len(token)
                        : 0;
    if (length == 0 || length >= sizeof(out->token) ||
        strlen(json_object_get_string(token)) != length)
        return wrong(reterr, "vfmig.token is not a text of 1 to 64 characters");
    memcpy(out->token, json_object_get_string(token), length + 1);
    return 0;
}

int vfmig_user_caps_parse(const void *text, size_t size, struct vfmig_user_caps *ret_caps,
                          struct vfmig_error *reterr)
{
    struct vfmig_user_caps out;
    json_object *caps;
    int r = 0;

    vfmig_user_caps_default(&out);
    if (size == 0) {
        *ret_caps = out;
        return 0;
    }
    if (size > VFMIG_MAX_JSON)
        return wrong(reterr, "too long");
    if (memchr(text, 0, size) != (const char *)text + size - 1)
        return wrong(reterr, "not terminated by exactly one NUL");
    json_tokener *tokener = json_tokener_new_ex(JSON_DEPTH);
    if (!tokener)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0, "out of memory");
    json_object *root = json_tokener_parse_ex(tokener, text, (int)size);
    const char *rest = (const char *)text + json_tokener_get_parse_end(tokener);
    if (!root || json_tokener_get_error(tokener) != json_tokener_success ||
        !json_object_is_type(root, json_type_object) || (rest < (const char *)text + size && *rest))
        r = wrong(reterr, "not a JSON object");
    else if ((r = get_object(root, "capabilities", &caps)) < 0)
        r = wrong(reterr, "capabilities is not an object");
    else if (r == 1) {
        r = parse_numbers(caps, &out, reterr);
        if (r == 0)
            r = parse_objects(caps, &out, reterr);
        if (r == 0)
            r = parse_own(caps, &out, reterr);
    }
    json_object_put(root);
    json_tokener_free(tokener);
    if (r == 0)
        *ret_caps = out;
    return r;
}

static void add_number(json_object *obj, const char *key, uint64_t value)
{
    json_object_object_add(obj, key, json_object_new_int64((int64_t)value));
}

int vfmig_user_caps_format(const struct vfmig_user_caps *caps, char *buf, size_t size)
{
    json_object *root = json_object_new_object(), *obj = json_object_new_object(), *sub;
    size_t length;

    json_object_object_add(root, "capabilities", obj);
    if (caps->has_max_msg_fds)
        add_number(obj, "max_msg_fds", caps->max_msg_fds);
    if (caps->has_max_data_xfer_size)
        add_number(obj, "max_data_xfer_size", caps->max_data_xfer_size);
    if (caps->has_max_dma_maps)
        add_number(obj, "max_dma_maps", caps->max_dma_maps);
    if (caps->has_pgsizes)
        add_number(obj, "pgsizes", caps->pgsizes);
    if (caps->has_migration) {
        json_object_object_add(obj, "migration", sub = json_object_new_object());
        add_number(sub, "pgsize", caps->migration_pgsize);
    }
    if (caps->twin_socket) {
        json_object_object_add(obj, "twin_socket", sub = json_object_new_object());
        json_object_object_add(sub, "supported", json_object_new_boolean(true));
        if (caps->has_twin_fd_index)
            add_number(sub, "fd_index", caps->twin_fd_index);
    }
    if (caps->write_multiple)
        json_object_object_add(obj, "write_multiple", json_object_new_boolean(true));
    if (caps->token[0] || caps->window) {
        json_object_object_add(obj, "vfmig", sub = json_object_new_object());
        if (caps->token[0])
            json_object_object_add(sub, "token", json_object_new_string(caps->token));
        if (caps->window)
            add_number(sub, "window", caps->window);
        if (caps->has_window_fd_index) { /* an answer */
            add_number(sub, "windows", caps->windows);
            add_number(sub, "fd_index", caps->window_fd_index);
        }
    }
    const char *text = json_object_to_json_string_length(root, JSON_C_TO_STRING_PLAIN, &length);
    int r = -ENOSPC;
    if (text && length < size) {
        memcpy(buf, text, length + 1);
        r = (int)length + 1;
    }
    json_object_put(root);
    return r;
}
