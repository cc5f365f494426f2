/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/qmp_session.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bounds.h"
#include "vmm/qmp.h"

/* Appends one line. A client that does not read what it asked for is cut off, not remembered. */
void qmp_session_queue(struct qmp_session *s, struct json_object *message)
{
    size_t size;
    const char *text = json_object_to_json_string_length(message, JSON_C_TO_STRING_SPACED, &size);

    if (s->closing || !text)
        return;
    if (s->out_size + size + 2 > VFMIG_MAX_QMP_OUTPUT) {
        s->closing = true;
        s->out_size = 0;
        return;
    }
    if (s->out_size + size + 2 > s->out_room) {
        size_t room = 2 * (s->out_size + size + 2);
        char *out = realloc(s->out, room);
        if (!out) {
            s->closing = true;
            return;
        }
        s->out = out;
        s->out_room = room;
    }
    memcpy(s->out + s->out_size, text, size);
    memcpy(s->out + s->out_size + size, "\r\n", 2);
    s->out_size += size + 2;
}

static void answer(struct qmp_session *s, struct json_object *message)
{
    pthread_mutex_lock(s->lock);
    qmp_session_queue(s, message);
    pthread_mutex_unlock(s->lock);
    json_object_put(message);
}

static void fail(struct qmp_session *s, struct json_object *id, const char *class, const char *text)
{
    struct json_object *reply = json_object_new_object();
    struct json_object *error = json_object_new_object();

    json_object_object_add(error, "class", json_object_new_string(class));
    json_object_object_add(error, "desc", json_object_new_string(text));
    json_object_object_add(reply, "error", error);
    if (id)
        json_object_object_add(reply, "id", json_object_get(id));
    answer(s, reply);
}

struct json_object *vfmig_qmp_version(void)
{
    int numbers[3] = {0};
    static const char *const names[3] = {"major", "minor", "micro"};
    struct json_object *number = json_object_new_object();
    struct json_object *version = json_object_new_object();

    sscanf(VFMIG_VERSION, "%d.%d.%d", &numbers[0], &numbers[1], &numbers[2]);
    for (unsigned i = 0; i < 3; i++)
        json_object_object_add(number, names[i], json_object_new_int(numbers[i]));
    json_object_object_add(version, "qemu", number); /* the key that clients look for */
    json_object_object_add(version, "package", json_object_new_string("vfmig " VFMIG_VERSION));
    return version;
}

static void greet(struct qmp_session *s)
{
    struct json_object *greeting = json_object_new_object();
    struct json_object *content = json_object_new_object();

    json_object_object_add(content, "version", vfmig_qmp_version());
    json_object_object_add(content, "capabilities", json_object_new_array());
    json_object_object_add(greeting, "QMP", content);
    answer(s, greeting);
}

static bool type_matches(char type, struct json_object *value)
{
    switch (type) {
    case 's':
        return json_object_is_type(value, json_type_string);
    case 'i':
        return json_object_is_type(value, json_type_int);
    case 'n':
        return json_object_is_type(value, json_type_int) ||
               json_object_is_type(value, json_type_double);
    case 'b':
        return json_object_is_type(value, json_type_boolean);
    case 'o':
        return json_object_is_type(value, json_type_object);
    case 'a':
        return json_object_is_type(value, json_type_array);
    default:
        return false;
    }
}

/* Compares args with the command's list; counts what is known to find what is not. */
static int check_args(const struct vfmig_qmp_command *command, struct json_object *args,
                      struct vfmig_error *reterr)
{
    int known = 0;

    for (const char *item = command->args ? command->args : ""; *item;) {
        size_t size = strcspn(item, ",");
        size_t name_size = strcspn(item, ":");
        char name[64];
        snprintf(name, sizeof(name), "%.*s", (int)name_size, item);
        struct json_object *value;
        if (json_object_object_get_ex(args, name, &value)) {
            known++;
            if (!type_matches(item[name_size + 1], value))
                return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                                       "argument '%s' has the wrong type", name);
        } else if (item[size - 1] != '?') {
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                                   "argument '%s' is missing", name);
        }
        item += size + (item[size] == ',');
    }
    if (json_object_object_length(args) == known)
        return 0;
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                           "%s has an argument it does not know (it takes: %s)", command->name,
                           command->args ? command->args : "none");
}

static struct json_object *list_commands(const struct qmp_session *s)
{
    static const char *const own[] = {"qmp_capabilities", "query-commands"};
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < 2; i++) {
        struct json_object *row = json_object_new_object();
        json_object_object_add(row, "name", json_object_new_string(own[i]));
        json_object_array_add(list, row);
    }
    for (const struct vfmig_qmp_command *command = s->commands; command->name; command++) {
        struct json_object *row = json_object_new_object();
        json_object_object_add(row, "name", json_object_new_string(command->name));
        json_object_array_add(list, row);
    }
    return list;
}

static void reply_result(struct qmp_session *s, struct json_object *id, struct json_object *result)
{
    struct json_object *reply = json_object_new_object();

    json_object_object_add(reply, "return", result ? result : json_object_new_object());
    if (id)
        json_object_object_add(reply, "id", json_object_get(id));
    answer(s, reply);
}

static void run_command(struct qmp_session *s, struct json_object *id, const char *name,
                        struct json_object *args)
{
    const struct vfmig_qmp_command *command = s->commands;
    struct vfmig_error err = {0};
    struct json_object *result = NULL;

    if (!s->negotiated) {
        if (strcmp(name, "qmp_capabilities")) {
            fail(s, id, "CommandNotFound",
                 "expecting capabilities negotiation with 'qmp_capabilities'");
            return;
        }
        pthread_mutex_lock(s->lock);
        s->negotiated = true;
        pthread_mutex_unlock(s->lock);
        reply_result(s, id, NULL);
        return;
    }
    if (!strcmp(name, "query-commands")) {
        reply_result(s, id, list_commands(s));
        return;
    }
    while (command->name && strcmp(command->name, name))
        command++;
    if (!command->name) {
        char text[128];
        snprintf(text, sizeof(text), "The command %.64s has not been found", name);
        fail(s, id, "CommandNotFound", text);
        return;
    }
    if (check_args(command, args, &err) || command->run(s->opaque, args, &result, &err)) {
        json_object_put(result);
        fail(s, id, "GenericError", err.text);
        return;
    }
    reply_result(s, id, result);
}

/* One complete JSON value from the client. */
static void take_request(struct qmp_session *s, struct json_object *request)
{
    struct json_object *execute = NULL, *args = NULL, *id = NULL;
    int known = 0;

    if (!json_object_is_type(request, json_type_object)) {
        fail(s, NULL, "GenericError", "QMP input must be a JSON object");
        return;
    }
    known += json_object_object_get_ex(request, "id", &id);
    known += json_object_object_get_ex(request, "execute", &execute);
    known += json_object_object_get_ex(request, "arguments", &args);
    if (!json_object_is_type(execute, json_type_string)) {
        fail(s, id, "GenericError", "QMP input lacks member 'execute'");
        return;
    }
    if (args && !json_object_is_type(args, json_type_object)) {
        fail(s, id, "GenericError", "QMP input member 'arguments' must be an object");
        return;
    }
    if (json_object_object_length(request) != known) {
        fail(s, id, "GenericError", "QMP input has an unexpected member");
        return;
    }
    struct json_object *empty = args ? NULL : json_object_new_object();
    run_command(s, id, json_object_get_string(execute), args ? args : empty);
    json_object_put(empty);
}

/* Input that cannot be parsed: say so, then drop the rest of the line. */
static void reject_input(struct qmp_session *s, const char *text)
{
    json_tokener_reset(s->tokener);
    s->pending = 0;
    s->utf8 = (struct qmp_utf8){0};
    s->skipping = true;
    fail(s, NULL, "GenericError", text);
}

/* How many bytes are UTF-8, as far as it goes. The tokener could look itself, but takes a letter
 * that comes in two pieces for none, and what follows a request for a part of it. */
static size_t take_utf8(struct qmp_utf8 *state, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)data[i];
        if (state->left) {
            if (byte < state->least || byte > state->most)
                return i;
            *state = (struct qmp_utf8){(uint8_t)(state->left - 1), 0x80, 0xbf};
        } else if (byte >= 0x80) {
            if (byte < 0xc2 || byte > 0xf4)
                return i;
            *state = (struct qmp_utf8){.left = byte < 0xe0   ? 1
                                               : byte < 0xf0 ? 2
                                                             : 3,
                                       .least = byte == 0xe0   ? 0xa0
                                                : byte == 0xf0 ? 0x90
                                                               : 0x80,
                                       .most = byte == 0xed   ? 0x9f
                                               : byte == 0xf4 ? 0x8f
                                                              : 0xbf};
        }
    }
    return size;
}

/* Consumes a prefix of data and returns its length; 0 only when it starts to skip. */
static size_t take_input(struct qmp_session *s, const char *data, size_t size)
{
    if (s->skipping) {
        const char *newline = memchr(data, '\n', size);
        s->skipping = !newline;
        return newline ? (size_t)(newline - data) + 1 : size;
    }
    if (!s->pending) {
        if (data[0] && strchr(" \t\r\n", data[0]))
            return 1;
        if (data[0] != '{') {
            reject_input(s, "JSON parse error, expecting an object");
            return 1;
        }
    }
    size_t room = VFMIG_MAX_QMP_INPUT - s->pending;
    size_t piece = size < room ? size : room;
    const char *end =
        memchr(data, '}', piece); /* perhaps of the request: what follows it is another matter */
    piece = take_utf8(&s->utf8, data, end ? (size_t)(end - data) + 1 : piece);
    if (!piece) {
        reject_input(s, "JSON parse error, invalid utf-8 string");
        return 0;
    }
    struct json_object *request = json_tokener_parse_ex(s->tokener, data, (int)piece);
    enum json_tokener_error error = json_tokener_get_error(s->tokener);
    size_t used = json_tokener_get_parse_end(s->tokener);
    if (error == json_tokener_continue) {
        s->pending += piece;
        if (s->pending >= VFMIG_MAX_QMP_INPUT)
            reject_input(s, "QMP input is too long");
        return piece;
    }
    if (error != json_tokener_success) {
        char text[128];
        snprintf(text, sizeof(text), "JSON parse error, %s", json_tokener_error_desc(error));
        reject_input(s, text);
        return used; /* not the refused byte: it may be the newline that ends the skipping */
    }
    json_tokener_reset(s->tokener);
    s->pending = 0;
    take_request(s, request);
    json_object_put(request);
    return used;
}

int qmp_session_begin(struct qmp_session *s, const struct vfmig_qmp_command *commands, void *opaque,
                      pthread_mutex_t *lock)
{
    struct json_tokener *tokener = json_tokener_new_ex(VFMIG_MAX_QMP_DEPTH);

    if (!tokener)
        return -ENOMEM;
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS);
    *s = (struct qmp_session){
        .commands = commands, .opaque = opaque, .lock = lock, .tokener = tokener};
    greet(s);
    return 0;
}

void qmp_session_end(struct qmp_session *s)
{
    if (s->tokener)
        json_tokener_free(s->tokener);
    free(s->out);
    *s = (struct qmp_session){0};
}

void qmp_session_feed(struct qmp_session *s, const char *data, size_t size)
{
    for (size_t used = 0; used < size && !s->closing;)
        used += take_input(s, data + used, size - used);
}
