/* SPDX-License-Identifier: BSD-3-Clause */
/* The smallest device that migrates: one register of 8 bytes, which is all of its state.
 *
 *     null_device SOCKET
 *
 * serves it over vfio-user at the unix socket SOCKET until SIGTERM. A VMM finds a PCI function
 * with one BAR of 4 KiB, whose first 8 bytes hold what was written, also on the machine that the
 * guest has moved to. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vfmig/device.h>

struct null_device {
    uint64_t value;
    bool saved; /* in the save under way */
};

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    const struct null_device *null = user;

    memset(data, 0, size);
    if (offset == 0 && size <= sizeof(null->value))
        memcpy(data, &null->value, size);
    return 0;
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct null_device *null = user;

    if (offset == 0 && size == sizeof(null->value))
        memcpy(&null->value, data, size);
    return 0;
}

static void reset(void *user)
{
    struct null_device *null = user;
    null->value = 0;
}

static int save_begin(void *user, bool running)
{
    struct null_device *null = user;
    null->saved = false;
    return 0;
}

/* All of the state in the first call, nothing in the second: that is the end. */
static ssize_t save(void *user, void *buf, size_t size)
{
    struct null_device *null = user;

    if (null->saved)
        return 0;
    memcpy(buf, &null->value, sizeof(null->value));
    null->saved = true;
    return sizeof(null->value);
}

/* What one save returned comes in one piece. It is another machine's word: check it. */
static int load(void *user, const void *data, size_t size)
{
    struct null_device *null = user;

    if (size != sizeof(null->value))
        return -EINVAL;
    memcpy(&null->value, data, size);
    return 0;
}

static struct vfmig_device *device;

static void on_signal(int number)
{
    vfmig_device_stop(device);
}

int main(int argc, char **argv)
{
    struct null_device null = {0};
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;
    struct vfmig_error err;

    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
        return 2;
    }
    config.name = "null";
    config.pci_vendor = 0x1b36;
    config.pci_device = 0x7fde;
    config.bars[0].size = 4096;
    ops.region_read = region_read;
    ops.region_write = region_write;
    ops.reset = reset;
    ops.save_begin = save_begin;
    ops.save = save;
    ops.load = load;
    if (vfmig_device_new(&config, &ops, &null, &device, &err) < 0 ||
        vfmig_device_listen(device, argv[1], &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        vfmig_device_free(device);
        return 1;
    }
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    int r = vfmig_device_run(device, &err);
    vfmig_device_free(device);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    return r < 0;
}
