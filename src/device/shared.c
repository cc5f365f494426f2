/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory that a client maps, to take device data from and to put it in. It belongs to one client,
 * or to one control session: a descriptor that was given away stays usable, and whoever comes next
 * must not share it with whoever was here before. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device/internal.h"

void shared_init(struct shared *s)
{
    *s = (struct shared){.fd = -1};
}

int shared_make(struct shared *s, uint64_t offset, uint64_t size)
{
    struct shared made = {.size = (size_t)size};
    int r = 0;

    made.fd = memfd_create("vfmig-window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made.fd < 0)
        return -errno;
    /* Sealed, so that no client can take the pages away from under our feet. */
    if (ftruncate(made.fd, (off_t)(offset + size)) < 0 ||
        fcntl(made.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        r = -errno;
    void *map = r < 0 ? MAP_FAILED
                      : mmap(NULL, made.size, PROT_READ | PROT_WRITE, MAP_SHARED, made.fd,
                             (off_t)offset);
    if (r == 0 && map == MAP_FAILED)
        r = -errno;
    if (r < 0) {
        close(made.fd);
        return r;
    }
    made.map = map;
    *s = made;
    return 0;
}

void shared_drop(struct shared *s)
{
    if (s->map)
        munmap(s->map, s->size);
    if (s->fd >= 0)
        close(s->fd);
    shared_init(s);
}
