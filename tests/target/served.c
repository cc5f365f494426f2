/* SPDX-License-Identifier: BSD-3-Clause */
#include "served.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[32] = "/tmp/vfmig-target-XXXXXX";
static unsigned paths;

int served_setup(void **state)
{
    return mkdtemp(dir) ? 0 : -1;
}

int served_teardown(void **state)
{
    return rmdir(dir);
}

void served_path(char *buf, size_t size)
{
    snprintf(buf, size, "%s/%u", dir, paths++);
}

static void *serve(void *arg)
{
    vfmig_device_run(((struct served *)arg)->toy->dev, NULL);
    return NULL;
}

void served_start(struct served *s, bool ndma, bool precopy, bool migratable)
{
    s->toy = toy_new(ndma, precopy, migratable, 0);
    served_path(s->path, sizeof(s->path));
    if (vfmig_device_listen(s->toy->dev, s->path, NULL) < 0 ||
        pthread_create(&s->thread, NULL, serve, s) != 0)
        abort();
}

void served_end(struct served *s)
{
    vfmig_device_stop(s->toy->dev);
    pthread_join(s->thread, NULL);
    toy_free(s->toy);
}

struct vfmig_target *served_open(const struct served *s, enum vfmig_dialect dialect)
{
    const struct vfmig_user_options opt = {.dialect = dialect};
    struct vfmig_target *t;
    struct vfmig_error err;

    if (vfmig_user_open(s->path, &opt, &t, &err) < 0) {
        fprintf(stderr, "open: %s\n", err.text);
        abort();
    }
    return t;
}

int open_descriptors(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}
