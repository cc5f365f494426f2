/* SPDX-License-Identifier: BSD-3-Clause */
#include "target/open.h"

#include <string.h>

#include "target/kernel.h"

int vfmig_open_address(const char *address, const struct vfmig_user_options *options,
                       struct vfmig_target **ret_target, struct vfmig_error *reterr)
{
    static const char user_scheme[] = "vfio-user:";

    if (!vfmig_kernel_address(address))
        return vfmig_user_open(address + (strncmp(address, user_scheme, sizeof(user_scheme) - 1)
                                              ? 0
                                              : sizeof(user_scheme) - 1),
                               options, ret_target, reterr);
    struct vfmig_kernel_options kernel = {0};
    if (options) {
        kernel.dialect = options->dialect;
        kernel.timeout_ns = options->timeout_ns;
        kernel.reset_ns = options->reset_ns;
        kernel.incoming = options->incoming;
        kernel.late_load = options->late_load;
    }
    return vfmig_kernel_open(address, &kernel, ret_target, reterr);
}
