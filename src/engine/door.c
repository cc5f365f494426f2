/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/door.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>

#include "base/sabotage.h"
#include "engine/engine.h"
#include "io/sock.h"

#define ANSWER_NS                                                                                  \
    UINT64_C(1000000) /* an answer to a greeting finds room at once, or nobody reads it */
#define DEAF_NS UINT64_C(100000000) /* without descriptors or memory, until it is tried again */

enum stage {
    STAGE_TLS,
    STAGE_HELLO,
    STAGE_OPENING, /* it has a token; its other connections come, and its first record */
};

/* A connection that came, with those that showed its token. */
struct greeting {
    struct arrival *arrival; /* NULL: the place is free */
    enum stage stage;
    bool proven; /* TLS is agreed */
    bool whole;  /* its first record is here */
    uint32_t skipped;
    uint64_t whose;
    uint64_t order;    /* by which they came, or last showed a proof */
    uint64_t until_ns; /* something happens by then, or it is late */
    struct vfmig_hello hello;
};

struct door {
    struct door_rules rules;
    struct greeting places[VFMIG_MAX_GREETINGS];
    _Atomic uint32_t count; /* connections at all places */
    uint64_t order;
    uint64_t deaf_until_ns; /* nobody is accepted before */
};

/* --- arrivals --- */

void arrival_free(struct arrival *arrival)
{
    if (!arrival)
        return;
    for (uint32_t i = 0; i < arrival->count; i++)
        vfmig_channel_free(arrival->channels[i]);
    vfmig_buffer_free(&arrival->text);
    free(arrival);
}

int arrival_take(struct arrival *arrival, const struct vfmig_record *record,
                 struct vfmig_error *reterr)
{
    int ret;

    if (record->tag == VFMIG_RECORD_HANDOVER)
        return engine_ho_msg_decode(record, &arrival->msg, reterr);
    if (record->tag != VFMIG_RECORD_IDENTITY)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record->tag,
                               "a migration begins with %s", vfmig_record_info(record->tag)->name);
    arrival->identity = true;
    arrival->text.limit = VFMIG_MAX_IDENTITY + 1;
    ret = vfmig_buffer_append(&arrival->text, record->payload, record->length);
    if (ret == 0)
        ret = vfmig_buffer_append(&arrival->text, NULL, 1); /* the terminator */
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "no memory for an identity")
               : 0;
}

/* --- who is there --- */

static struct vfmig_channel *first(const struct greeting *g)
{
    return g->arrival->channels[0];
}

/* All that was asked for has come. */
static bool ready(const struct greeting *g)
{
    return g->whole && g->arrival->count == g->hello.channel_count;
}

static void leave(struct door *door, struct greeting *g)
{
    atomic_fetch_sub(&door->count, g->arrival->count);
    arrival_free(g->arrival);
    memset(g, 0, sizeof(*g));
}

static void refuse(struct door *door, struct greeting *g, const struct vfmig_error *why)
{
    leave(door, g);
    door->rules.on_refused(door->rules.user, why);
}

/* It has its time anew, and all that are like it leave before it does. */
static void renew(struct door *door, struct greeting *g)
{
    g->order = ++door->order;
    g->until_ns = vfmig_sabotage("greeting-unbounded") ? VFMIG_NEVER
                                                       : vfmig_deadline_ns(door->rules.stall_ns);
}

/* How many are like it: of the same host, or user, and as far with their greeting. */
static uint32_t crowd_of(const struct door *door, const struct greeting *g)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
        const struct greeting *other = &door->places[i];
        count += other->arrival && other->whose == g->whose &&
                 (other->stage == STAGE_OPENING) == (g->stage == STAGE_OPENING);
    }
    return count;
}

/* Who has proof leaves after who has none; else first of whom there are most, so that a crowd keeps
 * nobody out who is not of it; else who came first. That somebody says a byte now and then makes no
 * difference: it costs nothing. */
static bool leaves_before(const struct door *door, const struct greeting *a,
                          const struct greeting *b)
{
    if (a->proven != b->proven && !vfmig_sabotage("proof-counts-for-nothing"))
        return b->proven;
    uint32_t as = crowd_of(door, a), bs = crowd_of(door, b);
    if (as != bs && !vfmig_sabotage("crowds-welcome"))
        return as > bs;
    return a->order < b->order;
}

/* Who makes room for the next one; NULL: nobody has to or can. Those that are ready wait for us,
 * not for a peer. */
static struct greeting *who_leaves(struct door *door)
{
    struct greeting *found = NULL;

    if (vfmig_sabotage("nobody-leaves"))
        return NULL;
    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
        struct greeting *g = &door->places[i];
        if (g->arrival && !ready(g) && (!found || leaves_before(door, g, found)))
            found = g;
    }
    return found;
}

static bool has_room(const struct door *door)
{
    return atomic_load(&door->count) < VFMIG_MAX_GREETINGS;
}

/* Whether one more may come in. */
static bool is_open(struct door *door)
{
    if (vfmig_sabotage("greetings-in-turn"))
        return atomic_load(&door->count) == 0;
    return has_room(door) || who_leaves(door);
}

/* --- HELLO --- */

/* Not memcmp: how long the comparison takes must not tell how much of a guess was right. */
static bool same_token(const uint8_t a[16], const uint8_t b[16])
{
    uint8_t differ = 0;

    for (size_t i = 0; i < 16; i++)
        differ |= (uint8_t)(a[i] ^ b[i]);
    return !differ || vfmig_sabotage("token-unchecked");
}

/* The sentence goes to whoever knocked, too: it may be an operator's mistake, or a source's that
 * was turned out. */
static int send_away(struct vfmig_channel *channel, int code, const char *why,
                     struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX];
    int rc = vfmig_error_set(reterr, code, VFMIG_ORIGIN_PEER, VFMIG_RECORD_HELLO,
                             "a connection does not belong to a migration that begins: %s", why);

    (void)vfmig_channel_send(channel, VFMIG_RECORD_ERROR, out,
                             vfmig_stream_error_encode(out, reterr), NULL);
    return rc;
}

/* The first connection's HELLO decides id and count; the token is made here. */
static int open_migration(struct door *door, struct greeting *g, struct vfmig_error *reterr)
{
    if (getrandom(g->hello.token, sizeof(g->hello.token), 0) != sizeof(g->hello.token))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0, "no random token: %s",
                               strerror(errno));
    memcpy(g->arrival->id, g->hello.migration_id, sizeof(g->arrival->id));
    g->stage = STAGE_OPENING;
    g->until_ns = vfmig_deadline_ns(door->rules.stall_ns);
    return vfmig_hello_send(first(g), &g->hello, reterr);
}

/* A further connection goes to whose token it shows; its own place is free then. */
static int join_migration(struct door *door, struct greeting *g, struct vfmig_error *reterr)
{
    struct greeting *to = NULL;
    bool known = false;

    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
        struct greeting *other = &door->places[i];
        if (!other->arrival || other->stage != STAGE_OPENING ||
            memcmp(other->hello.migration_id, g->hello.migration_id, 16) != 0)
            continue;
        known = true;
        if (same_token(other->hello.token, g->hello.token))
            to = other;
    }
    if (!to)
        return known ? send_away(first(g), -EACCES, "it does not know the token", reterr)
                     : send_away(first(g), -EAGAIN, "none with this id does", reterr);
    struct arrival *arrival = to->arrival;
    if (g->hello.channel != arrival->count || g->hello.channel_count != to->hello.channel_count)
        return send_away(first(g), -EACCES, "another channel is due", reterr);
    int rc = vfmig_hello_send(first(g), &g->hello, reterr);
    if (rc)
        return rc;
    arrival->channels[arrival->count++] = first(g);
    g->arrival->count = 0;
    leave(door, g);
    renew(door, to);
    return 0;
}

/* The next record; 1, or 0 when it is not there yet. */
static int next_record(struct greeting *g, uint32_t most, struct vfmig_record *ret_record,
                       struct vfmig_error *reterr)
{
    for (;;) {
        int rc = vfmig_channel_try_recv(first(g), most, ret_record, reterr);
        if (rc <= 0 || ret_record->tag != VFMIG_RECORD_NONE)
            return rc;
        if (++g->skipped > VFMIG_MAX_GREETING_SKIPS)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, 0,
                                   "a greeting has more than %u records that nobody knows",
                                   VFMIG_MAX_GREETING_SKIPS);
    }
}

/* As far as it goes without waiting; an error when it ends here. */
static int go_on(struct door *door, struct greeting *g, struct vfmig_error *reterr)
{
    struct vfmig_record record;
    int rc = 0;

    if (g->stage == STAGE_TLS && door->rules.tls) {
        rc = vfmig_channel_try_tls(first(g), door->rules.tls, reterr);
        if (rc)
            return rc < 0 ? rc : 0;
        g->proven = true;
        g->order = ++door->order;
    }
    if (g->stage == STAGE_TLS)
        g->stage = STAGE_HELLO;
    if (g->stage == STAGE_HELLO) {
        rc = next_record(g, VFMIG_MAX_STREAM_TEXT, &record, reterr);
        if (rc > 0)
            rc = vfmig_hello_take(&record, &g->hello, reterr);
        else if (rc == 0)
            return 0;
        if (rc == 0 && g->hello.channel != record.channel)
            rc = send_away(first(g), -EACCES, "its HELLO is of another channel", reterr);
        if (rc == 0 && g->hello.channel)
            return join_migration(door, g, reterr);
        if (rc == 0)
            rc = open_migration(door, g, reterr);
    }
    if (rc == 0 && !g->whole) {
        rc = vfmig_channel_is_whole(first(g), VFMIG_MAX_IDENTITY, reterr);
        g->whole = rc > 0;
    }
    return rc < 0 ? rc : 0;
}

static void listen_to(struct door *door, struct greeting *g)
{
    struct vfmig_error error = {0};

    if (go_on(door, g, &error))
        refuse(door, g, &error);
}

struct arrival *door_let_in(struct door *door)
{
    for (;;) {
        struct vfmig_error error = {0};
        struct vfmig_record record;
        struct greeting *g = NULL;
        for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
            struct greeting *other = &door->places[i];
            if (other->arrival && ready(other) && (!g || other->order < g->order))
                g = other;
        }
        if (!g)
            return NULL;
        int rc = next_record(g, VFMIG_MAX_IDENTITY, &record, &error);
        if (rc > 0)
            rc = arrival_take(g->arrival, &record, &error);
        else if (rc == 0)
            rc = -EAGAIN; /* what was whole is to be skipped */
        g->whole = rc != -EAGAIN;
        for (uint32_t i = 0; rc == 0 && i < g->arrival->count; i++)
            rc = vfmig_channel_set_stall(g->arrival->channels[i], door->rules.stall_ns, &error);
        if (rc == 0) {
            struct arrival *arrival = g->arrival;
            atomic_fetch_sub(&door->count, arrival->count);
            memset(g, 0, sizeof(*g));
            return arrival;
        }
        if (rc != -EAGAIN)
            refuse(door, g, &error);
    }
}

/* --- who comes and who is late --- */

static int welcome(struct door *door, int fd, struct greeting **ret_greeting,
                   struct vfmig_error *reterr)
{
    struct greeting *g = door->places;
    struct vfmig_channel *channel;
    int rc = vfmig_channel_new(fd, /* index= */ 0, VFMIG_SIDE_DEST, &channel, reterr);

    if (rc)
        return rc;
    while (g->arrival)
        g++;
    g->arrival = calloc(1, sizeof(*g->arrival));
    rc = g->arrival
             ? vfmig_channel_hurry(channel, ANSWER_NS, reterr)
             : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for who comes");
    if (rc) {
        vfmig_channel_free(channel);
        free(g->arrival);
        g->arrival = NULL;
        return rc;
    }
    g->arrival->channels[0] = channel;
    g->arrival->count = 1;
    g->whose = vfmig_sock_whose(fd);
    atomic_fetch_add(&door->count, 1);
    renew(door, g);
    *ret_greeting = g;
    return 0;
}

static void open_up(struct door *door)
{
    const struct vfmig_error crowded = {
        .code = -EBUSY, .origin = VFMIG_ORIGIN_LOCAL, .text = "others came"};
    struct vfmig_error error = {0};
    struct greeting *g = NULL;
    int fd;
    int rc = vfmig_sock_accept(door->rules.listener, /* deadline_ns= */ 0, &fd, &error);

    if (rc == -ETIMEDOUT)
        return; /* it has hung up since */
    if (rc == 0 && !has_room(door))
        refuse(door, who_leaves(door), &crowded);
    if (rc == 0)
        rc = welcome(door, fd, &g, &error);
    if (rc == 0) {
        listen_to(door, g);
        return;
    }
    door->rules.on_refused(door->rules.user, &error);
    /* Who waits outside stays there: without this it would be tried again at once, and told of each
     * time. */
    if (rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM || rc == -ENOBUFS)
        door->deaf_until_ns = vfmig_now_ns() + DEAF_NS;
}

static void send_the_late_away(struct door *door)
{
    const struct vfmig_error late = {.code = -ETIMEDOUT,
                                     .origin = VFMIG_ORIGIN_PEER,
                                     .text = "a greeting took longer than the time limit"};
    uint64_t now = vfmig_now_ns();

    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++)
        if (door->places[i].arrival && !ready(&door->places[i]) && door->places[i].until_ns <= now)
            refuse(door, &door->places[i], &late);
}

static int poll_timeout(const struct door *door)
{
    uint64_t now = vfmig_now_ns(), until_ns = VFMIG_NEVER;

    if (door->deaf_until_ns > now)
        until_ns = door->deaf_until_ns;
    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
        const struct greeting *g = &door->places[i];
        if (g->arrival && !ready(g) && g->until_ns < until_ns)
            until_ns = g->until_ns;
    }
    if (until_ns == VFMIG_NEVER)
        return -1;
    uint64_t left_ms = until_ns > now ? (until_ns - now) / 1000000 + 1 : 0;
    return left_ms < INT_MAX ? (int)left_ms : INT_MAX;
}

enum { LISTENER, BELL, PLACES };

void door_turn(struct door *door)
{
    struct pollfd fds[PLACES + VFMIG_MAX_GREETINGS];
    bool open = vfmig_now_ns() >= door->deaf_until_ns && is_open(door);
    eventfd_t rung;

    fds[LISTENER] = (struct pollfd){.fd = open ? door->rules.listener : -1, .events = POLLIN};
    fds[BELL] = (struct pollfd){.fd = door->rules.bell, .events = POLLIN};
    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
        const struct greeting *g = &door->places[i];
        bool awaited = g->arrival && !ready(g);
        fds[PLACES + i] = (struct pollfd){.fd = awaited ? vfmig_channel_fd(first(g)) : -1,
                                          .events = awaited && g->whole ? POLLRDHUP : POLLIN};
    }
    if (poll(fds, PLACES + VFMIG_MAX_GREETINGS, poll_timeout(door)) < 0)
        return; /* EINTR, or no memory for a moment */
    if (fds[BELL].revents)
        (void)eventfd_read(door->rules.bell, &rung);
    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++) {
        struct greeting *g = &door->places[i];
        const struct vfmig_error gone = {
            .code = -ECONNRESET, .origin = VFMIG_ORIGIN_PEER, .text = "it left"};
        /* A connection that joined another's migration has left its place. */
        if (!fds[PLACES + i].revents || !g->arrival)
            continue;
        if (g->whole)
            refuse(door, g, &gone);
        else
            listen_to(door, g);
    }
    send_the_late_away(door);
    if (fds[LISTENER].revents && is_open(door))
        open_up(door);
}

/* --- life --- */

int door_new(const struct door_rules *rules, struct door **ret_door, struct vfmig_error *reterr)
{
    struct door *door = calloc(1, sizeof(*door));

    if (!door)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a door");
    door->rules = *rules;
    *ret_door = door;
    return 0;
}

void door_free(struct door *door)
{
    if (!door)
        return;
    for (uint32_t i = 0; i < VFMIG_MAX_GREETINGS; i++)
        if (door->places[i].arrival)
            leave(door, &door->places[i]);
    free(door);
}

uint32_t door_count(const struct door *door)
{
    return atomic_load(&door->count);
}
