/* SPDX-License-Identifier: BSD-3-Clause */
/* A channel under TLS: the same records, and errors that say what TLS found. */
#include <errno.h>
#include <string.h>

#include "engine/channel_private.h"
#include "io/tls.h"

int vfmig_channel_start_tls(struct vfmig_channel *channel, const struct vfmig_tls_creds *creds,
                            const char *peer_name, uint64_t deadline_ns, struct vfmig_error *reterr)
{
    return vfmig_tls_new(creds, channel->fd, peer_name, deadline_ns, &channel->tls, reterr);
}

int vfmig_channel_try_tls(struct vfmig_channel *channel, const struct vfmig_tls_creds *creds,
                          struct vfmig_error *reterr)
{
    int rc = channel->tls ? 0 : vfmig_tls_begin(creds, channel->fd, /* peer_name= */ NULL, &channel->tls, reterr);

    return rc ? rc : vfmig_tls_shake(channel->tls, reterr);
}

int vfmig_channel_tls_error(struct vfmig_channel *channel, bool inside, struct vfmig_error *reterr)
{
    if (vfmig_tls_cut(channel->tls))
        return vfmig_error_set(reterr, -ECONNRESET, inside ? VFMIG_ORIGIN_STREAM : VFMIG_ORIGIN_PEER,
                               0, "channel %u was cut: the peer did not end TLS on it",
                               channel->index);
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "TLS on channel %u: %s",
                           channel->index, vfmig_tls_why(channel->tls));
}

void vfmig_channel_tls_end(struct vfmig_channel *channel)
{
    if (channel->tls && !atomic_load(&channel->cancelled))
        vfmig_tls_end(channel->tls);
}

const char *vfmig_channel_cipher(const struct vfmig_channel *channel)
{
    return channel->tls ? vfmig_tls_cipher(channel->tls) : NULL;
}
