/* SPDX-License-Identifier: BSD-3-Clause */
/* Receiving without waiting, for who has others to listen to: a record is put together beside the
 * channel, as its bytes come, and taken by the way that all records take when it is whole. */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/le.h"
#include "base/sabotage.h"
#include "engine/channel_private.h"
#include "io/tls.h"

#define HEAD_CHANNEL_AT 32u /* stream/record.h */

/* As many bytes as are missing up to `wanted`: 1 when they are there, 0 when they are not yet. */
static int gather(struct vfmig_channel *channel, size_t wanted, struct vfmig_error *reterr)
{
    int rc = vfmig_channel_grow(&channel->early, &channel->early_room, wanted, reterr);

    if (rc < 0)
        return rc;
    while (channel->early_bytes < wanted) {
        struct iovec iov = {channel->early + channel->early_bytes, wanted - channel->early_bytes};
        ssize_t got = channel->tls ? vfmig_tls_try_recv(channel->tls, &iov, 1)
                                   : recv(channel->fd, iov.iov_base, iov.iov_len, MSG_DONTWAIT);
        int code = got < 0 ? -errno : 0;
        if (code == -EAGAIN)
            return 0;
        if (code == -EINTR)
            continue;
        if (got <= 0)
            return vfmig_channel_recv_error(channel, got, code,
                                            /* inside= */ channel->early_bytes != 0, reterr);
        channel->early_bytes += (size_t)got;
        atomic_fetch_add_explicit(&channel->bytes_received, (uint64_t)got, memory_order_relaxed);
    }
    return 1;
}

/* Who is greeted says itself which channel it is. */
static void learn_index(struct vfmig_channel *channel)
{
    uint32_t index = vfmig_le32_get(channel->early + HEAD_CHANNEL_AT);

    if (channel->recv_sequence == 0 && index < VFMIG_MAX_CHANNELS)
        channel->index = index;
}

int vfmig_channel_is_whole(struct vfmig_channel *channel, uint32_t most, struct vfmig_error *reterr)
{
    struct vfmig_record_head head;
    int rc = gather(channel, VFMIG_RECORD_HEAD_BYTES, reterr);

    if (rc <= 0)
        return rc;
    if (channel->early_bytes == VFMIG_RECORD_HEAD_BYTES)
        learn_index(channel);
    const struct vfmig_record_expect expect = vfmig_channel_expects(channel);
    rc = vfmig_record_head_decode(channel->early, &expect, &head, reterr);
    if (rc < 0)
        return rc;
    if (head.length > most && !vfmig_sabotage("greeting-any-size"))
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_STREAM, head.tag,
                               "%s of %u bytes comes too early: at most %u may", head.name,
                               head.length, most);
    return gather(channel, VFMIG_RECORD_HEAD_BYTES + head.length, reterr);
}

int vfmig_channel_try_recv(struct vfmig_channel *channel, uint32_t most,
                           struct vfmig_record *ret_record, struct vfmig_error *reterr)
{
    int rc = vfmig_channel_is_whole(channel, most, reterr);

    if (rc <= 0)
        return rc;
    channel->ahead_from = channel->early;
    channel->ahead_at = 0;
    channel->ahead_end = channel->early_bytes;
    rc = vfmig_channel_receive_record(channel, ret_record, reterr);
    channel->ahead_from = channel->ahead;
    channel->ahead_at = channel->ahead_end = 0;
    free(channel->early);
    channel->early = NULL;
    channel->early_bytes = channel->early_room = 0;
    if (rc == 0)
        *ret_record = (struct vfmig_record){.tag = VFMIG_RECORD_NONE, .channel = channel->index};
    return rc < 0 ? rc : 1;
}
