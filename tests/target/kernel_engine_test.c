/* SPDX-License-Identifier: BSD-3-Clause */
/* The engine moves a guest from one kernel device to another: by each address and log, in both
 * dialects. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_kernel.h"
#include "vfmig/migrate.h"
#include "vfmig/target.h"
#include "vfmig/tracker.h"

#define MEMORY (4u << 20)
#define LONG   UINT64_C(60000000000)

struct side {
    struct fake_kernel kernel;
    struct vfmig_target *device;
    struct vfmig_tracker *log;
    struct vfmig_ram_block block;
    struct vfmig_vm vm;
    bool running;
};

static struct side here, there;
static char folder[64], uri[96];
static struct vfmig_error err;
static uint32_t writes;

static int vcpus_stop(void *opaque, struct vfmig_error *reterr)
{
    ((struct side *)opaque)->running = false;
    return 0;
}

static int vcpus_start(void *opaque, struct vfmig_error *reterr)
{
    ((struct side *)opaque)->running = true;
    return 0;
}

static int state_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    return vfmig_buffer_append(out, "vcpu", 4);
}

static int state_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    return size == 4 ? 0 : -EINVAL;
}

static const struct vfmig_vm_ops ops = {sizeof(ops),
                                        VFMIG_VM_OPS_VERSION,
                                        .vcpus_stop = vcpus_stop,
                                        .vcpus_start = vcpus_start,
                                        .state_save = state_save,
                                        .state_load = state_load};

/* With each read of its data the device writes memory, here and there. */
static void on_read(struct fake_kernel *f)
{
    writes++;
    fake_dma_write(f, writes * UINT64_C(7919) % (MEMORY / 8) * 8, (uint8_t)writes);
    fake_dma_write(f, 0, (uint8_t)writes);
}

static void open_side(struct side *side, const char *address, bool region, bool own_log)
{
    static const char *const ids[] = {"card"};

    memset(side, 0, sizeof(*side));
    fake_init(&side->kernel);
    if (region)
        side->kernel.features = 0;
    side->kernel.device_log = own_log;
    side->kernel.iommu_log = !own_log;
    side->kernel.quirk.ndma = true;
    side->block =
        (struct vfmig_ram_block){.size = MEMORY, .fd = memfd_create("guest", MFD_CLOEXEC)};
    assert_int_equal(ftruncate(side->block.fd, MEMORY), 0);
    side->block.host = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, side->block.fd, 0);
    assert_true(side->block.host != MAP_FAILED);
    side->vm = (struct vfmig_vm){.ops = &ops,
                                 .opaque = side,
                                 .memory = {&side->block, 1},
                                 .devices = &side->device,
                                 .device_ids = ids,
                                 .device_count = 1,
                                 .trackers = &side->log,
                                 .tracker_count = 1};
    const struct vfmig_kernel_options options = {
        .incoming = side == &there, .calls = &fake_calls, .opaque = &side->kernel};
    if (vfmig_kernel_open(address, &options, &side->device, &err) < 0 ||
        vfmig_target_map_memory(side->device, &side->vm.memory, &err) < 0 ||
        vfmig_tracker_open_device(side->device, &side->log, &err) < 0)
        fail_msg("%s", err.text);
}

static void close_side(struct side *side)
{
    vfmig_tracker_close(side->log);
    vfmig_target_close(side->device);
    assert_int_equal(fake_open_files(&side->kernel), 0);
    assert_int_equal(side->kernel.mmaps, side->kernel.munmaps);
    munmap(side->block.host, MEMORY);
    close(side->block.fd);
    fake_done(&side->kernel);
}

static int move(void)
{
    const struct vfmig_migrate_options options = {.journal_dir = folder};
    struct vfmig_destination *destination;
    struct vfmig_source *source;

    here.running = true;
    here.kernel.on_read = on_read;
    assert_int_equal(vfmig_destination_new(&there.vm, &options, &destination, &err), 0);
    assert_int_equal(vfmig_destination_listen(destination, uri, &err), 0);
    assert_int_equal(vfmig_source_new(&here.vm, &options, &source, &err), 0);
    assert_int_equal(vfmig_source_start(source, uri, &err), 0);
    int moved = vfmig_source_wait(source, LONG, &err);
    if (moved == 0)
        moved = vfmig_destination_wait(destination, LONG, &err);
    vfmig_source_free(source);
    vfmig_destination_free(destination);
    return moved;
}

static void need_moved(const char *from, const char *to, bool region, bool own_log)
{
    writes = 0;
    open_side(&here, from, region, own_log);
    open_side(&there, to, region, own_log);
    if (move() < 0)
        fail_msg("%s", err.text);
    assert_true(writes > 0);
    assert_true(there.running && !here.running);
    assert_memory_equal(there.kernel.loaded, here.kernel.image, FAKE_IMAGE);
    assert_int_equal(there.kernel.loaded_size, FAKE_IMAGE);
    assert_memory_equal(there.block.host, here.block.host, MEMORY);
    if (region)
        assert_int_equal(there.kernel.bits, VFMIG_V1_RUNNING);
    else
        assert_int_equal(there.kernel.state, VFMIG_STATE_RUNNING);
    close_side(&here);
    close_side(&there);
}

#define CDEV  "vfio:/dev/vfio/devices/vfio0"
#define GROUP "vfio-group:7:0000:01:00.1"

static void feature_dialect(void **state)
{
    need_moved(CDEV, GROUP, /* region= */ false, /* own_log= */ true);
}

static void log_of_the_iommu(void **state)
{
    need_moved(CDEV, CDEV, /* region= */ false, /* own_log= */ false);
}

static void region_dialect(void **state)
{
    need_moved(GROUP, GROUP, /* region= */ true, /* own_log= */ false);
}

/* The destination's device cannot be loaded: the guest runs on where it was. */
static void unwinds(void **state)
{
    open_side(&here, CDEV, false, true);
    open_side(&there, GROUP, false, true);
    there.kernel.quirk.write_nothing = true;
    assert_true(move() < 0);
    assert_true(here.running && !there.running);
    assert_int_equal(here.kernel.state, VFMIG_STATE_RUNNING);
    assert_int_equal(here.kernel.session, 0);
    assert_false(here.kernel.log_on);
    close_side(&here);
    close_side(&there);
}

static int make_folder(void **state)
{
    snprintf(folder, sizeof(folder), "/tmp/vfmig-kernel-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(uri, sizeof(uri), "unix:%s/link", folder);
    return 0;
}

static int drop_folder(void **state)
{
    char command[96];

    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

#define MOVE(function) cmocka_unit_test_setup_teardown(function, make_folder, drop_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MOVE(feature_dialect),
        MOVE(log_of_the_iommu),
        MOVE(region_dialect),
        MOVE(unwinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
