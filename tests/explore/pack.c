/* SPDX-License-Identifier: BSD-3-Clause */
/* A world as few bytes: what differs between worlds of one scope. One walk serves both directions,
 * so that they cannot disagree. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

struct coder {
    uint8_t *bytes;
    unsigned at;
    bool reads;
};

static void code(struct coder *c, void *field, unsigned size)
{
    if (c->at + size > PACKED_MAX)
        abort();
    if (c->reads)
        memcpy(field, c->bytes + c->at, size);
    else
        memcpy(c->bytes + c->at, field, size);
    c->at += size;
}

#define FIELD(c, f) code(c, &(f), sizeof(f))

/* Fields that are wider than what they can hold here; worlds that differ must not become one. */
#define NARROW(c, f, type)                                                                         \
    do {                                                                                           \
        type narrow_ = (type)(f);                                                                  \
        if (!(c)->reads && (__typeof__(f))narrow_ != (f))                                          \
            abort();                                                                               \
        code(c, &narrow_, sizeof(narrow_));                                                        \
        (f) = narrow_;                                                                             \
    } while (0)

static void code_time(struct coder *c, uint64_t *time)
{
    uint8_t is = *time == UINT64_MAX ? 255 : (uint8_t)*time;

    FIELD(c, is);
    *time = is == 255 ? UINT64_MAX : is;
}

static void code_dev(struct coder *c, struct device *d)
{
    struct vfmig_dev *m = &d->m;

    code_time(c, &m->half_ns);
    code_time(c, &m->deadline_ns);
    NARROW(c, m->write_id, uint8_t);
    NARROW(c, m->reset_ids[0], uint8_t);
    NARROW(c, m->reset_count, uint8_t);
    NARROW(c, m->token, uint8_t);
    NARROW(c, m->err, int8_t);
    FIELD(c, m->done);
    code(c, &m->bits, sizeof(*m) - offsetof(struct vfmig_dev, bits));
    code(c, &d->wait, offsetof(struct device, reserved) - offsetof(struct device, wait));
}

static void code_flow(struct coder *c, struct vfmig_flow *f)
{
    NARROW(c, f->deadline_ns, uint8_t);
    NARROW(c, f->works_due_ns, uint8_t);
    NARROW(c, f->busy.word[0], uint8_t);
    NARROW(c, f->streaming.word[0], uint8_t);
    NARROW(c, f->to_stream.word[0], uint8_t);
    NARROW(c, f->lost.word[0], uint8_t);
    NARROW(c, f->late.word[0], uint8_t);
    NARROW(c, f->row, uint8_t);
    FIELD(c, f->running);
    NARROW(c, f->cause, int8_t);
    FIELD(c, f->halted);
    FIELD(c, f->tracking);
    FIELD(c, f->parked);
    FIELD(c, f->ended);
    for (uint32_t i = 0; i < f->device_count; i++) {
        NARROW(c, f->due_ns[i], uint8_t);
        FIELD(c, f->state[i]);
        FIELD(c, f->want[i]);
        FIELD(c, f->tries[i]);
    }
}

/* There is one migration id: a destination has it from its first message on. */
static void code_handover(struct coder *c, struct vfmig_handover *h, bool learns)
{
    uint8_t known = h->id[0] != 0;

    NARROW(c, h->epoch, uint8_t);
    code(c, &h->role,
         offsetof(struct vfmig_handover, reserved) - offsetof(struct vfmig_handover, role));
    if (learns)
        FIELD(c, known);
    memset(h->id, 0, sizeof(h->id));
    if (known)
        memcpy(h->id, guest_id, sizeof(h->id));
}

static void code_side(struct coder *c, struct side *s, unsigned side)
{
    code_flow(c, &s->flow);
    code_handover(c, &s->h, side == DST);
    for (uint32_t i = 0; i < s->flow.device_count; i++)
        code_dev(c, &s->dev[i]);
    code(
        c, &s->works,
        (unsigned)(offsetof(struct side, queue) + sizeof(s->queue) - offsetof(struct side, works)));
}

static unsigned code_world(struct world *w, struct coder *c)
{
    code_side(c, &w->side[SRC], SRC);
    code_side(c, &w->side[DST], DST);
    code(c, &w->link, offsetof(struct world, messages) + 1 - offsetof(struct world, link));
    return c->at;
}

unsigned world_pack(const struct world *w, uint8_t *bytes)
{
    struct coder c = {bytes, 0, false};

    return code_world((struct world *)(uintptr_t)w, &c);
}

void world_unpack(struct world *w, const struct scope *scope, const uint8_t *bytes)
{
    static struct world start;
    static const struct scope *of;
    struct coder c = {(uint8_t *)(uintptr_t)bytes, 0, true};

    if (of != scope)
        world_start(&start, scope);
    of = scope;
    *w = start;
    w->broken = NULL;
    code_world(w, &c);
}
