/* SPDX-License-Identifier: BSD-3-Clause */
/* How the VMM's migrations are protected: as it was started, unless QMP says otherwise. */
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "vmm/vm_priv.h"

static const char *text_of(struct json_object *args, const char *name)
{
    struct json_object *value;

    return json_object_object_get_ex(args, name, &value) ? json_object_get_string(value) : NULL;
}

struct vfmig_security vmm_qmp_security(struct json_object *args)
{
    return (struct vfmig_security){
        .tls_creds = text_of(args, "x-tls-creds"),
        .tls_psk = text_of(args, "x-tls-psk"),
        .tls_hostname = text_of(args, "x-tls-hostname"),
        .plaintext = json_object_get_boolean(json_object_object_get(args, "x-plaintext")),
    };
}

struct vfmig_migrate_options vmm_migration_options(const struct vfmig_vmm *vmm,
                                                   const struct vfmig_security *security)
{
    struct vfmig_migrate_options options = vmm->migration.options;

    /* A host name alone goes with the VMM's own credentials. */
    if (security->tls_creds || security->tls_psk || security->plaintext)
        options.security = *security;
    else if (security->tls_hostname)
        options.security.tls_hostname = security->tls_hostname;
    return options;
}

int vmm_migration_secure(struct vmm_migration *migration, const struct vfmig_security *from,
                         struct vfmig_error *reterr)
{
    struct vfmig_security *to = &migration->options.security;
    const char *const texts[] = {from->tls_creds, from->tls_psk, from->tls_hostname};
    const char **const kept[] = {&to->tls_creds, &to->tls_psk, &to->tls_hostname};

    to->plaintext = from->plaintext;
    for (unsigned i = 0; i < 3; i++) {
        if (!texts[i])
            continue;
        if (strlen(texts[i]) >= sizeof(migration->security_texts[i]))
            return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                                   "a path of TLS credentials is too long");
        *kept[i] = strcpy(migration->security_texts[i], texts[i]);
    }
    return 0;
}
