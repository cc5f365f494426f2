/* SPDX-License-Identifier: BSD-3-Clause */
/* How the channels of a migration are protected: TLS over TCP, and nothing readable off this host unless
 * that was asked for. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "engine/engine.h"
#include "io/sock.h"
#include "io/tls.h"

int engine_secure_load(const struct vfmig_security *security, bool server,
                       struct vfmig_tls_creds **ret_creds, struct vfmig_error *reterr)
{
    *ret_creds = NULL;
    if (security->tls_creds && security->tls_psk)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "TLS has either certificates or a key that both sides know, not both");
    if (!security->tls_creds && !security->tls_psk)
        return 0;
    if (security->plaintext)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a migration is either in plain text or under TLS");
    return vfmig_tls_creds_load(security->tls_creds, security->tls_psk, server, ret_creds, reterr);
}

/* The caller's strings are not kept. */
int engine_secure_init(struct engine *e, struct vfmig_error *reterr)
{
    struct vfmig_security *security = &e->options.security;
    int ret = engine_secure_load(security, e->role == VFMIG_FLOW_DESTINATION, &e->tls, reterr);

    if (ret == 0 && security->tls_hostname) {
        if (strlen(security->tls_hostname) < sizeof(e->tls_name)) {
            strcpy(e->tls_name, security->tls_hostname);
        } else {
            vfmig_tls_creds_free(e->tls);
            ret = vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                                  "the TLS host name is too long");
        }
    }
    security->tls_creds = e->tls ? "loaded" : NULL;
    security->tls_psk = NULL;
    security->tls_hostname = *e->tls_name ? e->tls_name : NULL;
    return ret;
}

static int need_tls(const char *uri, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                           "%.100s is off this host: whoever is on the way would read the guest's memory "
                           "and could change it; give TLS credentials (--tls-creds, --tls-psk), or ask "
                           "for --plaintext", uri);
}

static bool protected_or_asked(const struct vfmig_security *security)
{
    return security->tls_creds || security->tls_psk || security->plaintext ||
           vfmig_sabotage("plaintext-unasked");
}

/* A connection's other end is looked at once more (engine_secure_peer): a name that leads nowhere now may lead
 * far away when it is asked for again. */
int engine_secure_check(const struct vfmig_security *security, const char *uri, struct vfmig_error *reterr)
{
    bool far = false;

    if (protected_or_asked(security) || engine_uri_is_file(uri, NULL))
        return 0;
    if (vfmig_sock_is_far(uri, &far, NULL))
        return 0; /* whoever connects tells */
    return far ? need_tls(uri, reterr) : 0;
}

int engine_secure_listen(const struct vfmig_security *security, const char *uri, int *ret_fd,
                         struct vfmig_error *reterr)
{
    if (protected_or_asked(security))
        return vfmig_sock_listen(uri, ret_fd, reterr);
    int ret = vfmig_sock_listen_near(uri, ret_fd, reterr);
    return ret == -EREMOTE ? need_tls(uri, reterr) : ret;
}

int engine_secure_peer(const struct vfmig_security *security, const char *uri, int fd,
                       struct vfmig_error *reterr)
{
    return protected_or_asked(security) || !vfmig_sock_peer_is_far(fd) ? 0 : need_tls(uri, reterr);
}

bool engine_secure_uri(const char *uri)
{
    return !strncmp(uri, "tcp:", 4);
}

void engine_secure_name(const struct vfmig_security *security, const char *uri, char *ret_name,
                        size_t size)
{
    const char *host = strncmp(uri, "tcp:", 4) ? uri : uri + 4;
    const char *end = strrchr(host, ':');
    size_t bytes = end ? (size_t)(end - host) : strlen(host);

    if (security->tls_hostname == ret_name)
        return;
    if (security->tls_hostname) {
        host = security->tls_hostname;
        bytes = strlen(host);
    } else if (bytes > 2 && host[0] == '[' && host[bytes - 1] == ']') {
        host++;
        bytes -= 2;
    }
    if (bytes >= size)
        bytes = size - 1;
    memcpy(ret_name, host, bytes);
    ret_name[bytes] = 0;
}
