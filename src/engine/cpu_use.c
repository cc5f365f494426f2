/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/cpu_use.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct vfmig_cpu_use vfmig_cpu_use(void)
{
    struct vfmig_cpu_use use = {0};
    char text[64] = {0};
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return use;
    if (read(fd, text, sizeof(text) - 1) > 0) {
        char *end;
        use.cpu_ns = strtoull(text, &end, 10);
        use.waited_ns = strtoull(end, NULL, 10);
    }
    close(fd);
    return use;
}

uint64_t vfmig_cpu_alone(const struct vfmig_cpu_use *begin, uint64_t took_ns)
{
    uint64_t waited_ns = vfmig_cpu_use().waited_ns - begin->waited_ns;

    return waited_ns < took_ns ? took_ns - waited_ns : 0;
}
