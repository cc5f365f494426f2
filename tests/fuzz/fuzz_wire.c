/* SPDX-License-Identifier: BSD-3-Clause */
/* Framing and dispatch: any bytes in any pieces with any descriptors, to the codec alone and to a
 * server. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices.h"
#include "target.h"

#define LIMIT    vfmig_user_message_max(VFMIG_USER_DATA_MIN)
#define CAPACITY (2u * (VFMIG_USER_DATA_MIN + VFMIG_USER_FIXED_MAX))

/* Where messages have to begin and end, told from the whole stream at once. */
struct cutter {
    const uint8_t *data;
    size_t size, at;
};

/* 1: a message; 0: no more whole one; -1: broken. */
static int cut(struct cutter *c, struct vfmig_user_header *h, const uint8_t **ret_payload)
{
    if (c->size - c->at < sizeof(*h))
        return 0;
    memcpy(h, c->data + c->at, sizeof(*h));
    if (h->size < sizeof(*h) || h->size > LIMIT)
        return -1;
    if (h->size > c->size - c->at)
        return 0;
    *ret_payload = c->data + c->at + sizeof(*h);
    c->at += h->size;
    return 1;
}

/* Every check of one message, from a buffer of exactly its size. last is a copy of the payload of
 * the message before, which it may be the reply to. */
static uint8_t *check_message(const struct vfmig_user_msg *msg, uint8_t *last, uint32_t last_size)
{
    uint8_t *exact = malloc(msg->size ? msg->size : 1);
    struct vfmig_user_msg copy = *msg;
    struct vfmig_user_caps caps;
    uint32_t room;

    memcpy(exact, msg->payload, msg->size);
    copy.payload = exact;
    int to_server = vfmig_user_check_command(&copy, false, VFMIG_USER_DATA_MIN, NULL);
    int to_client = vfmig_user_check_command(&copy, true, VFMIG_USER_DATA_MIN, NULL);
    CHECK(to_server < 0 || to_client < 0, "command %u goes both ways", msg->header.command);
    int reply = vfmig_user_check_reply(&copy, msg->header.command, last, last_size, NULL);
    CHECK(to_server <= 0 && to_client <= 0 && reply <= 0, "a verdict above 0");
    for (uint16_t id = 0; id < 8; id++) {
        const uint8_t *cap = vfmig_user_find_cap(exact, msg->size, id, &room);
        CHECK(!cap || (cap >= exact && room >= 8 && cap + room == exact + msg->size),
              "a capability outside the message");
    }
    if (msg->size >= 4 && vfmig_user_caps_parse(exact + 4, msg->size - 4, &caps, NULL) == 0) {
        char text[512];
        CHECK(vfmig_user_caps_format(&caps, text, sizeof(text)) > 0, "a long text");
    }
    free(last);
    return exact;
}

/* The messages do not depend on the pieces. */
static void frame(struct cutter *whole, const uint16_t *pieces, uint32_t count)
{
    static uint8_t buf[CAPACITY];
    struct vfmig_framer framer;
    struct vfmig_user_msg msg;
    uint8_t *last = NULL;
    uint32_t last_size = 0;
    size_t fed = 0;
    int r = 0;

    vfmig_framer_init(&framer, buf, sizeof(buf), LIMIT);
    for (uint32_t i = 0; fed < whole->size && r >= 0; i++) {
        size_t room, piece = count ? pieces[i % count] % 4096u + 1u : whole->size;
        struct vfmig_fds fds = {0};
        void *to = vfmig_framer_space(&framer, &room);
        CHECK(room > 0, "no room and no message");
        piece = piece < room ? piece : room;
        piece = piece < whole->size - fed ? piece : whole->size - fed;
        memcpy(to, whole->data + fed, piece);
        fed += piece;
        if (i % 3 == 2)
            fds.fd[fds.count++] = dup(STDERR_FILENO);
        r = vfmig_framer_fed(&framer, piece, &fds);
        CHECK(fds.count == 0, "descriptors are not taken");
        while (r >= 0 && (r = vfmig_framer_next(&framer, &msg)) == 1) {
            struct vfmig_user_header h;
            const uint8_t *payload;
            CHECK(cut(whole, &h, &payload) == 1 && !memcmp(&h, &msg.header, sizeof(h)) &&
                      msg.size == h.size - sizeof(h) && !memcmp(payload, msg.payload, msg.size),
                  "another message than without pieces");
            last = check_message(&msg, last, last_size);
            last_size = msg.size;
            vfmig_fds_close(&msg.fds);
        }
    }
    struct vfmig_user_header h;
    const uint8_t *payload;
    CHECK(r < 0 || cut(whole, &h, &payload) == 0, "a message is missing");
    vfmig_framer_done(&framer);
    free(last);
}

static void codec(const struct program *program)
{
    static uint8_t data[INPUT_MAX];
    uint16_t pieces[OPS_MAX];
    uint32_t count = 0;
    struct cutter whole = {data, 0, 0};

    for (uint32_t i = 0; i < program->count; i++) {
        const struct op *op = &program->ops[i];
        if (op->kind != OP_SEND || op->size <= 2)
            continue;
        memcpy(data + whole.size, op->body + 2, op->size - 2u);
        whole.size += op->size - 2u;
        pieces[count++] = op->body[1] ? op->body[1] : op->size;
    }
    int before = dup(STDERR_FILENO);
    close(before);
    frame(&whole, pieces, count);
    int after = dup(STDERR_FILENO);
    close(after);
    CHECK(after == before, "descriptor %d is left open", before);
}

const struct fuzz_target fuzz_target = {
    .name = "wire",
    .variants = {VARIANT_POOL, VARIANT_POOL_PLAIN, VARIANT_DMA, VARIANT_NULL},
    .weights = {{[OP_SEND] = 30,
                 [OP_ANSWER] = 4,
                 [OP_POKE] = 2,
                 [OP_TIME] = 1,
                 [OP_RECONNECT] = 1,
                 [OP_STATE] = 4,
                 [OP_SAVE] = 1,
                 [OP_BACK] = 1}},
    .extra = codec,
    .must_reach = BIT(REACH_REPLIES) | BIT(REACH_REFUSALS) | BIT(REACH_CLOSED) | BIT(REACH_MAPS) |
                  BIT(REACH_UNMAPS) | BIT(REACH_DMA_MESSAGES) | BIT(REACH_ANSWERS) |
                  BIT(REACH_TWIN) | BIT(REACH_FDS) | BIT(REACH_SAVES) | BIT(REACH_LOADS),
};
