/* SPDX-License-Identifier: BSD-3-Clause */
/* A VMM that was started by root for what only root can open, and need not be root after that. */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "vmm/vm_priv.h"

static int failed(const char *what, const char *name, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "%s %.100s: %s", what, name,
                           strerror(errno));
}

/* What comes later is opened by the user. That it cannot be is better known now than in a handover.
 */
static int check_journal(const char *name, const char *dir, struct vfmig_error *reterr)
{
    if (!dir ||
        ((mkdir(dir, 0700) == 0 || errno == EEXIST) && access(dir, R_OK | W_OK | X_OK) == 0))
        return 0;
    return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_LOCAL, 0,
                           "the journal %.200s is not %.100s's to write: %s", dir, name,
                           strerror(errno));
}

int vmm_become(const char *name, const char *journal_dir, struct vfmig_error *reterr)
{
    errno = 0;
    const struct passwd *user = getpwnam(name);

    if (!user && errno)
        return failed("cannot look up the user", name, reterr);
    if (!user)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "there is no user %.100s",
                               name);
    if (geteuid() && geteuid() != user->pw_uid)
        return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                               "only root can become the user %.100s", name);
    if (vfmig_sabotage("stay-root"))
        return 0;
    /* The bounding set while this is root, the others when nothing needs them any more. */
    if (!vfmig_sabotage("keep-rights") && (errno = -vmm_drop_rights(false)))
        return failed("cannot give up rights as", name, reterr);
    /* Groups first: who is no longer root cannot change them. All threads follow (C library). */
    if (geteuid() == 0 &&
        (initgroups(name, user->pw_gid) || setresgid(user->pw_gid, user->pw_gid, user->pw_gid) ||
         setresuid(user->pw_uid, user->pw_uid, user->pw_uid)))
        return failed("cannot become the user", name, reterr);
    /* Root's are gone by now. They may have come with the file, or from whoever started it, too. */
    if (!vfmig_sabotage("keep-rights") && (errno = -vmm_drop_rights(true)))
        return failed("cannot give up rights as", name, reterr);
    return check_journal(name, journal_dir, reterr);
}
