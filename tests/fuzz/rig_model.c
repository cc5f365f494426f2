/* SPDX-License-Identifier: BSD-3-Clause */
/* What the client knows: which of its commands must be answered, what is mapped, what the device
 * may do. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"
#include "world.h"

static bool is_quiet(enum vfmig_state state)
{
    return state != VFMIG_STATE_RUNNING && state != VFMIG_STATE_PRE_COPY;
}

void model_forget(struct rig *rig)
{
    for (uint32_t i = 0; i < rig->request_count; i++)
        free(rig->requests[i].payload);
    rig->request_count = rig->ask_count = rig->region_count = 0;
    rig->part_have = 0;
    if (rig->window >= 0)
        close(rig->window);
    rig->window = -1;
    rig->max_data = VFMIG_MAX_DATA_XFER;
    rig->closed = rig->negotiated = rig->may_close = rig->must_close = rig->blurred = rig->garbled =
        rig->twin_gone = false;
}

/* Its bytes of the file may be written from now on, also where it came without a descriptor: whose
 * descriptor it was is not known here. */
static void add_writable(struct rig *rig, const struct vfmig_user_dma_map *map)
{
    if (!(map->flags & VFMIG_USER_DMA_F_WRITE) || map->offset >= RAM_SIZE)
        return;
    uint64_t room = RAM_SIZE - map->offset;
    CHECK(rig->writable_count < REGIONS_MAX, "too many mappings for the model");
    rig->writable[rig->writable_count].from = map->offset;
    rig->writable[rig->writable_count++].to = map->offset + (map->size < room ? map->size : room);
    rig->over |= rig->writable_count == REGIONS_MAX;
}

/* ---- commands of the client ------------------------------------------------------------------ */

static void may_be_mapped(struct rig *rig, uint16_t command, const uint8_t *payload, uint32_t size)
{
    struct vfmig_user_dma_map map;

    if (command != VFMIG_USER_DMA_MAP || size != sizeof(map))
        return;
    memcpy(&map, payload, sizeof(map));
    add_writable(rig, &map);
}

/* C31 holds from the answer to a state write on; a doorbell or a map changes nothing about it. */
static bool may_change_state(uint16_t command, const uint8_t *payload, uint32_t size)
{
    struct vfmig_user_region_access access = {.region = VFMIG_REGION_MIGRATION};

    memcpy(&access, payload, size < sizeof(access) ? size : sizeof(access));
    return command == VFMIG_USER_FEATURE || command == VFMIG_USER_RESET ||
           (command == VFMIG_USER_REGION_WRITE && access.region == VFMIG_REGION_MIGRATION);
}

void model_ask(struct rig *rig, struct request *requests, uint32_t *count,
               const struct vfmig_user_header *h, const uint8_t *payload)
{
    uint32_t size = h->size - (uint32_t)sizeof(*h);
    struct request *request = &requests[*count];

    CHECK(*count < REQUESTS_MAX, "too many commands for the model");
    rig->over |= *count + 8 >= REQUESTS_MAX;
    *request = (struct request){h->id, h->command, size, malloc(size + 1u), rig->next_turn++};
    memcpy(request->payload, payload, size);
    for (uint32_t i = 0; i < *count; i++)
        if (requests[i].id == h->id && requests[i].command == h->command)
            requests[i].loose = request->loose = true;
    ++*count;
}

static void command_sent(struct rig *rig, const struct vfmig_user_header *h, const uint8_t *payload)
{
    uint32_t size = h->size - (uint32_t)sizeof(*h);
    bool memory = h->command == VFMIG_USER_DMA_MAP || h->command == VFMIG_USER_DMA_UNMAP;

    if ((h->flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY)
        return;
    rig->state_may_change |= may_change_state(h->command, payload, size);
    if (h->flags & VFMIG_USER_NO_REPLY) {
        rig->blurred |= memory || h->command == VFMIG_USER_VERSION;
        may_be_mapped(rig, h->command, payload, size);
        return;
    }
    for (uint32_t i = 0; i < rig->request_count; i++)
        if (memory && rig->requests[i].id == h->id && rig->requests[i].command == h->command) {
            rig->blurred = true; /* which of both is answered is not to be seen */
            may_be_mapped(rig, h->command, payload, size);
        }
    model_ask(rig, rig->requests, &rig->request_count, h, payload);
}

/* fds: descriptors that went with the first byte. Unless they went with exactly one message, which
 * may be in pieces, it is not said here whose they are. */
void model_sent(struct rig *rig, const void *data, size_t size, unsigned fds)
{
    const uint8_t *at = data;
    uint32_t messages = 0;

    if (fds && rig->part_have)
        rig->may_close = rig->blurred = true;
    while (size && !rig->must_close) {
        struct vfmig_user_header h = {0};
        size_t want = sizeof(h);
        if (rig->part_have >= sizeof(h)) {
            memcpy(&h, rig->part, sizeof(h));
            want = h.size;
        }
        size_t part = want - rig->part_have < size ? want - rig->part_have : size;
        memcpy(rig->part + rig->part_have, at, part);
        rig->part_have += part;
        at += part;
        size -= part;
        if (rig->part_have < sizeof(h))
            break;
        memcpy(&h, rig->part, sizeof(h));
        if (h.size < sizeof(h) || h.size > vfmig_user_message_max(RIG_MAX_DATA)) {
            rig->may_close = rig->must_close = true;
        } else if (rig->part_have == h.size) {
            command_sent(rig, &h, rig->part + sizeof(h));
            rig->part_have = 0;
            messages++;
        }
    }
    if (fds && (messages > 1 || (messages == 1 && rig->part_have)))
        rig->may_close = rig->blurred = true;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void mapped(struct rig *rig, const struct request *request)
{
    struct vfmig_user_dma_map map;

    memcpy(&map, request->payload, sizeof(map));
    rig->reach[REACH_MAPS]++;
    add_writable(rig, &map);
    if (rig->region_count == REGIONS_MAX) {
        rig->blurred = rig->over = true;
        return;
    }
    rig->regions[rig->region_count++] =
        (struct region){map.address, map.size, map.flags, false, request->turn};
}

/* An unmap may be answered late, behind a map of the same range that was sent after it. */
static void unmapped(struct rig *rig, const struct request *request,
                     const struct vfmig_user_msg *msg)
{
    struct vfmig_user_dma_unmap un;

    memcpy(&un, request->payload, sizeof(un));
    rig->reach[REACH_UNMAPS]++;
    rig->reach[REACH_BITMAPS] += msg->size > sizeof(un);
    for (uint32_t i = 0; i < rig->region_count; i++)
        if (rig->regions[i].turn < request->turn &&
            ((un.flags & VFMIG_USER_UNMAP_F_ALL) ||
             (rig->regions[i].iova == un.address && rig->regions[i].size == un.size)))
            rig->regions[i].retired = true;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void model_check_memory(struct rig *rig, const uint8_t *ram)
{
    uint64_t at = 0;

    while (at < RAM_SIZE) {
        uint64_t end = RAM_SIZE, skip = at;
        for (uint32_t i = 0; i < rig->writable_count; i++) {
            if (rig->writable[i].from <= skip && rig->writable[i].to > skip)
                skip = rig->writable[i].to;
            else if (rig->writable[i].from > skip)
                end = least(end, rig->writable[i].from);
        }
        if (skip == at) {
            CHECK(!memcmp(ram + at, rig->expected + at, end - at),
                  "guest memory from 0x%llx was written without leave", (unsigned long long)at);
            skip = end;
        }
        at = skip;
    }
    rig->reach[REACH_GUEST_WRITES] += memcmp(ram, rig->expected, RAM_SIZE) != 0;
}

/* ---- from the server ------------------------------------------------------------------------- */

void model_window(const struct vfmig_user_caps *caps, struct vfmig_user_msg *msg, int *window)
{
    CHECK(caps->window_fd_index < msg->fds.count && caps->windows, "a window without memory");
    *window = vfmig_fds_take(&msg->fds, caps->window_fd_index);
    CHECK(lseek(*window, 0, SEEK_END) == (off_t)caps->window * caps->windows, "another size");
    CHECK(ftruncate(*window, 0) < 0 && ftruncate(*window, (off_t)1 << 40) < 0, "not sealed");
}

static void agreed(struct rig *rig, const struct request *request, struct vfmig_user_msg *msg)
{
    struct vfmig_user_caps theirs, ours;
    uint32_t head = sizeof(struct vfmig_user_version);

    CHECK(!vfmig_user_caps_parse(request->payload + head, request->size - head, &ours, NULL),
          "a VERSION was accepted that cannot be read");
    CHECK(!vfmig_user_caps_parse(msg->payload + head, msg->size - head, &theirs, NULL),
          "the reply to VERSION cannot be read");
    rig->max_data = ours.max_data_xfer_size;
    CHECK(theirs.max_data_xfer_size == RIG_MAX_DATA, "another limit than that of the device");
    CHECK(!rig->negotiated, "agreed twice");
    rig->negotiated = true;
    if (theirs.window) {
        CHECK(ours.window >= theirs.window, "a window not asked for");
        model_window(&theirs, msg, &rig->window);
        rig->reach[REACH_WINDOWS]++;
    }
    CHECK(!theirs.twin_socket || msg->fds.count, "no twin socket");
    if (theirs.twin_socket) {
        CHECK(ours.twin_socket && rig->twin.fd < 0, "a socket not asked for");
        rig->twin.fd = vfmig_fds_take(&msg->fds, 0);
        rig->reach[REACH_TWIN]++;
    }
}

static void succeeded(struct rig *rig, const struct request *request, struct vfmig_user_msg *msg)
{
    rig->reach[REACH_REPLIES]++;
    switch (request->command) {
    case VFMIG_USER_VERSION:
        agreed(rig, request, msg);
        break;
    case VFMIG_USER_DMA_MAP:
        mapped(rig, request);
        break;
    case VFMIG_USER_DMA_UNMAP:
        unmapped(rig, request, msg);
        break;
    case VFMIG_USER_FEATURE:
        rig->reach[REACH_REPORTS] += msg->size > 32;
        break;
    default:
        break;
    }
}

/* Long enough to be granted. */
static bool is_whole(const struct request *request)
{
    return request->size >= (request->command == VFMIG_USER_DMA_MAP     ? 32u
                             : request->command == VFMIG_USER_DMA_UNMAP ? 24u
                                                                        : 0u);
}

/* True when it may be the answer to this request. */
bool model_fits(const struct request *request, const struct vfmig_user_msg *msg)
{
    if (request->id != msg->header.id || request->command != msg->header.command)
        return false;
    if (msg->header.flags & VFMIG_USER_ERROR)
        return msg->size == 0 && msg->header.error > 0 && msg->header.error < 4096;
    if (!is_whole(request))
        return false;
    return request->loose || vfmig_user_check_reply(msg, request->command, request->payload, request->size, NULL) ==
           0;
}

void model_reply(struct rig *rig, struct vfmig_user_msg *msg)
{
    uint32_t at = rig->request_count;

    /* Of several with one id a refusal is that of a malformed one, which nothing else can answer. */
    for (uint32_t i = 0; i < rig->request_count; i++)
        if (model_fits(&rig->requests[i], msg) &&
            (at == rig->request_count || (is_whole(&rig->requests[at]) && !is_whole(&rig->requests[i]))))
            at = i;
    CHECK(at < rig->request_count,
          "reply to nobody: id %u, command %u, flags 0x%x, error %u, size %u", msg->header.id,
          msg->header.command, msg->header.flags, msg->header.error, msg->size);
    CHECK(msg->size <= vfmig_user_message_max(RIG_MAX_DATA), "a reply of %u bytes", msg->size);
    struct request request = rig->requests[at];
    rig->request_count--;
    memmove(&rig->requests[at], &rig->requests[at + 1],
            (rig->request_count - at) * sizeof(rig->requests[0]));
    if (msg->header.flags & VFMIG_USER_ERROR)
        rig->reach[REACH_REFUSALS]++;
    else
        succeeded(rig, &request, msg);
    if (request.id == rig->want) {
        rig->got = msg->header.flags & VFMIG_USER_ERROR ? -(int)msg->header.error : (int)msg->size;
        memcpy(rig->reply, msg->payload, msg->size);
        rig->want = UINT32_MAX;
    }
    free(request.payload);
}

/* Is [at, at + size) inside mappings with this right, one after another? */
static bool is_mapped(const struct rig *rig, uint64_t at, uint64_t size, uint32_t prot)
{
    while (size) {
        uint64_t piece = 0;
        for (uint32_t i = 0; i < rig->region_count && !piece; i++) {
            const struct region *r = &rig->regions[i];
            if (r->iova <= at && at - r->iova < r->size && (r->prot & prot))
                piece = least(size, r->size - (at - r->iova));
        }
        if (!piece)
            return false;
        at += piece;
        size -= piece;
    }
    return true;
}

void model_command(struct rig *rig, const struct vfmig_user_msg *msg, bool twin)
{
    struct dma_ask ask = {.twin = twin, .header = msg->header};
    bool write = msg->header.command == VFMIG_USER_DMA_WRITE;
    int r = vfmig_user_check_command(msg, /* from_server= */ true, rig->max_data, NULL);

    CHECK(r == 0, "the server sends a broken command %u: %d", msg->header.command, r);
    CHECK(twin == (rig->twin.fd >= 0) && !rig->twin_gone, "a DMA message on the wrong socket");
    memcpy(&ask.access, msg->payload, sizeof(ask.access));
    CHECK(rig->blurred || is_mapped(rig, ask.access.address, ask.access.count, write ? 2 : 1),
          "a DMA message for memory that is not mapped: 0x%llx + 0x%llx",
          (unsigned long long)ask.access.address, (unsigned long long)ask.access.count);
    CHECK(!rig->was_quiet || rig->state_may_change || !is_quiet(vfmig_device_get_state(rig->dev)),
          "a DMA message in state %d", vfmig_device_get_state(rig->dev));
    CHECK(rig->ask_count < DMA_MAX, "too many DMA messages at once");
    rig->asks[rig->ask_count++] = ask;
    rig->reach[REACH_DMA_MESSAGES]++;
}
