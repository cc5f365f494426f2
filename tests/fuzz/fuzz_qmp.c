/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines of QMP: requests made from the VMM's own table of commands, right or wrong in one way each,
 * and bytes. Whatever the pieces that they come in, the answers are the same; each request has one
 * answer; and after anything at all the next line is understood. Commands that reach outside only
 * look at their arguments. */
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bounds.h"
#include "ops.h"
#include "vmm/qmp_session.h"
#include "vmm/vm_priv.h"

#define TEXT_MAX  (256u << 10)
#define LONG_TEXT (VFMIG_MAX_QMP_INPUT - 64u)
#define COMMANDS  64u
#define LAST_ID   1000000

/* The lower three bits of how: a request unless it is one of these. */
enum { REQUESTS = 4, BYTES = 4, NESTED, LONG, BLANK };
enum how { WRONG_TYPE = 8, ONE_MORE = 16, ONE_LESS = 32, CUT = 64, NO_NEWLINE = 128 };

static char text[TEXT_MAX];
static size_t text_size;
static bool wild; /* not all of it is lines of one request each */
static struct vfmig_qmp_command
    commands[2][COMMANDS]; /* all look at their arguments; some are the real ones */
static uint32_t command_count;
static struct vfmig_vmm *vmm;

static void need(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz: %s\n%.*s\n", what, (int)(text_size < 2000 ? text_size : 2000), text);
    abort();
}

static bool is_type(char type, struct json_object *value)
{
    static const struct {
        char letter;
        enum json_type type;
    } kinds[] = {{'s', json_type_string}, {'i', json_type_int},   {'b', json_type_boolean},
                 {'o', json_type_object}, {'a', json_type_array}, {'n', json_type_int},
                 {'n', json_type_double}};

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (kinds[i].letter == type && json_object_is_type(value, kinds[i].type))
            return true;
    return false;
}

/* In the place of a command: everything that its table promises is so. opaque is its row. */
static int look(void *opaque, struct json_object *args, struct json_object **ret_result,
                struct vfmig_error *reterr)
{
    need(json_object_is_type(args, json_type_object), "arguments that are no object");
    json_object_object_foreach(args, name, value)
    {
        bool found = false;
        for (uint32_t i = 0; i < command_count && !found; i++)
            for (const char *at = commands[0][i].args; at && *at && !found;
                 at += strcspn(at, ",") + (strchr(at, ',') != NULL)) {
                size_t size = strcspn(at, ":");
                found =
                    size == strlen(name) && !memcmp(at, name, size) && is_type(at[size + 1], value);
            }
        need(found, "an argument of no command, or of another type");
    }
    return 0;
}

/* Nothing of these reaches outside this process, and none of them ends it. */
static bool harmless(const char *name)
{
    static const char *const names[] = {"query-version",
                                        "query-status",
                                        "query-name",
                                        "x-vfmig-trace",
                                        "migrate_cancel",
                                        "x-set-dialect",
                                        "migrate-set-parameters",
                                        "query-migrate-parameters",
                                        "query-migrate",
                                        "x-vfmig-metrics",
                                        "x-vfmig-resolve",
                                        "device_del",
                                        "x-query-peers",
                                        "x-guest-reset-pause"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(names[i], name))
            return true;
    return false;
}

static void forget_vmm(void)
{
    vfmig_vmm_free(vmm);
}

static void prepare(void)
{
    const struct vfmig_vmm_config config = {.accel = VFMIG_ACCEL_NONE,
                                            .vcpu_count = 1,
                                            .paused = true,
                                            .memory_bytes = GUEST_MIN_MEMORY,
                                            .guest = {.rate_mib_s = 1, .seed = 1}};
    struct vfmig_error error = {0};

    if (vmm)
        return;
    if (vfmig_vmm_create(&config, &vmm, &error))
        need(0, error.text);
    atexit(forget_vmm);
    while (vmm_qmp_commands[command_count].name) {
        need(command_count + 1 < COMMANDS, "too many commands");
        commands[0][command_count] = commands[1][command_count] = vmm_qmp_commands[command_count];
        commands[0][command_count].run = look;
        if (!harmless(commands[1][command_count].name))
            commands[1][command_count].run = look;
        command_count++;
    }
}

/* --- text --- */

static void put(const void *bytes, size_t size)
{
    if (size > TEXT_MAX - text_size)
        size = TEXT_MAX - text_size;
    memcpy(text + text_size, bytes, size);
    text_size += size;
}

static void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void print(const char *format, ...)
{
    char line[256];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    put(line, strlen(line));
}

/* The operation's bytes, taken one after the other; zeroes when there are no more. */
static unsigned next(struct op *op)
{
    if (!op->size)
        return 0;
    op->size--;
    return *op->data++;
}

static void put_string(struct op *op)
{
    static const char *const words[] = {"",
                                        "unix:/nonexistent/x",
                                        "tcp:[::1]:1",
                                        "file:/nonexistent/f",
                                        "region",
                                        "source",
                                        "destination",
                                        "resume",
                                        "zstd",
                                        "dev0",
                                        "abort",
                                        "vfio-user-pci"};
    unsigned first = next(op), size = first % 16;

    if (first >= 128) {
        print("\"%s\"", words[first % (sizeof(words) / sizeof(words[0]))]);
        return;
    }
    put("\"", 1);
    while (size--) {
        unsigned byte = next(op);
        if (byte < 0x20 || byte == '"' || byte == '\\')
            print("\\u%04x", byte);
        else if (byte < 0x80)
            print("%c", (int)byte);
        else
            print("\\ud8%02x\\udc%02x", byte & 3, byte); /* a pair; of it one half is nothing */
    }
    put("\"", 1);
}

static void put_number(struct op *op)
{
    static const char *const edges[] = {"0",
                                        "-1",
                                        "1",
                                        "16",
                                        "17",
                                        "99",
                                        "100",
                                        "9223372036854775807",
                                        "9223372036854775808",
                                        "-9223372036854775808",
                                        "18446744073709551616"};
    unsigned first = next(op);

    if (first & 1)
        print("%s", edges[first / 2 % (sizeof(edges) / sizeof(edges[0]))]);
    else
        print("%d", (int)(next(op) | next(op) << 8 | next(op) << 16) >> (first & 8));
}

static void put_value(struct op *op, char type)
{
    switch (type) {
    case 's':
        put_string(op);
        break;
    case 'i':
        put_number(op);
        break;
    case 'n':
        put_number(op);
        print("%s", next(op) & 1 ? ".5e3" : "");
        break;
    case 'b':
        print("%s", next(op) & 1 ? "true" : "false");
        break;
    case 'o':
        print("{\"type\":\"unix\",\"path\":");
        put_string(op);
        print("}");
        break;
    default:
        print("[null]");
    }
}

static void put_args(const char *list, struct op *op)
{
    unsigned wanted = next(op), which = 0;
    char between = '{';

    for (const char *at = list; *at; which++) {
        size_t size = strcspn(at, ","), name = strcspn(at, ":");
        bool optional = at[size - 1] == '?', here = which == wanted >> 5;
        bool left = (optional && !(wanted >> which % 5 & 1)) || (here && op->how & ONE_LESS);
        if (!left) {
            print("%c\"%.*s\":", between, (int)name, at);
            put_value(op, here && op->how & WRONG_TYPE ? "asibo"[next(op) % 5] : at[name + 1]);
            between = ',';
        }
        at += size + (at[size] == ',');
    }
    if (op->how & ONE_MORE)
        print("%c\"x\":null", between);
    else if (between == '{')
        put("{", 1);
    put("}", 1);
}

static void put_request(struct op op, size_t number)
{
    uint32_t which = op.kind % (command_count + 3);
    const char *own[] = {"qmp_capabilities", "query-commands", "no-such-command"};
    bool known = which < command_count;

    print("{\"id\":%zu,\"execute\":\"%s\"", number,
          known ? commands[0][which].name : own[which - command_count]);
    if ((known && commands[0][which].args) || op.how & ONE_MORE) {
        print(",\"arguments\":");
        put_args(known && commands[0][which].args ? commands[0][which].args : "", &op);
    }
    if (op.how & CUT)
        wild = true;
    else
        put("}", 1);
}

static void put_op(const struct op *op, size_t number)
{
    unsigned shape = op->how & 7;

    if (shape >= REQUESTS)
        wild = true;
    if (shape < REQUESTS)
        put_request(*op, number);
    else if (shape == BYTES)
        put(op->data, op->size);
    else if (shape == NESTED)
        for (unsigned i = 0; i < (op->size ? op->data[0] : 17u); i++)
            print("%s", op->how & WRONG_TYPE ? "[" : "{\"a\":");
    else if (shape == LONG) {
        print("{\"id\":\"");
        for (unsigned i = 0; i < LONG_TEXT + (op->size ? op->data[0] : 0u); i++)
            put("y", 1);
        print("\",\"execute\":\"query-commands\"}");
    }
    wild |= !!(op->how & NO_NEWLINE);
    if (!(op->how & NO_NEWLINE))
        put("\n", 1);
}

/* --- what must hold --- */

struct answers {
    uint32_t count, good, greetings;
    int64_t last_id;
};

static struct answers judge(const struct qmp_session *s)
{
    struct answers all = {.last_id = -1};
    const char *at = s->out, *end = s->out + s->out_size;

    need(s->out_size <= VFMIG_MAX_QMP_OUTPUT, "more is queued than its bound");
    need(s->pending <= VFMIG_MAX_QMP_INPUT, "more is kept than its bound");
    while (at < end) {
        const char *line = memchr(at, '\n', (size_t)(end - at));
        struct json_object *id = NULL, *value = NULL;
        need(line && line > at && line[-1] == '\r', "an answer without an end");
        struct json_tokener *tokener = json_tokener_new_ex(VFMIG_MAX_QMP_DEPTH + 8);
        struct json_object *answer = json_tokener_parse_ex(tokener, at, (int)(line - at));
        need(json_object_is_type(answer, json_type_object), "an answer that is no object");
        bool good = json_object_object_get_ex(answer, "return", &value);
        bool bad = json_object_object_get_ex(answer, "error", &value);
        bool greeting = json_object_object_get_ex(answer, "QMP", &value);
        need(good + bad + greeting == 1, "an answer that is none, or two");
        if (json_object_object_get_ex(answer, "id", &id) && json_object_is_type(id, json_type_int))
            all.last_id = json_object_get_int64(id);
        all.count += good + bad;
        all.good += good;
        all.greetings += greeting;
        json_object_put(answer);
        json_tokener_free(tokener);
        at = line + 1;
    }
    need(all.greetings == 1 || s->closing, "not one greeting");
    return all;
}

/* piece 0: all at once. Then a line must be understood, whatever was before. */
static struct answers talk(struct qmp_session *s, const struct vfmig_qmp_command *table,
                           void *opaque, size_t piece, size_t lines)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    char last[128];

    need(qmp_session_begin(s, table, opaque, &lock) == 0, "no memory");
    for (size_t at = 0; at < text_size; at += piece ? piece : text_size)
        qmp_session_feed(s, text + at, piece && piece < text_size - at ? piece : text_size - at);
    struct answers all = judge(s);
    need(wild || s->closing || all.count == lines, "a request without an answer, or with two");
    snprintf(last, sizeof(last), "\xff\n{\"id\":%d,\"execute\":\"qmp_capabilities\"}\n", LAST_ID);
    qmp_session_feed(s, last, strlen(last));
    need(s->closing || judge(s).last_id == LAST_ID, "a line that is not understood any more");
    return all;
}

bool ops_run(const struct op *ops, size_t count)
{
    struct qmp_session whole, pieces, real;

    prepare();
    text_size = 0;
    wild = false;
    for (size_t i = 0; i < count; i++)
        put_op(&ops[i], i);
    (void)talk(&whole, commands[0], NULL, 0, count);
    (void)talk(&pieces, commands[0], NULL, text_size < 4096 ? 1 : 61, count);
    need(whole.out_size == pieces.out_size && !memcmp(whole.out, pieces.out, whole.out_size),
         "other answers when the same comes in pieces");
    struct answers answers = talk(&real, commands[1], vmm, 4096, count);
    qmp_session_end(&whole);
    qmp_session_end(&pieces);
    qmp_session_end(&real);
    return answers.good > 2;
}
