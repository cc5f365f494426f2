/* SPDX-License-Identifier: BSD-3-Clause */
/* Kernel targets: set-up by both addresses, and the feature dialect. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>

#include "kernel_help.h"
#include "target/open.h"
#include "vfmig/target.h"

/* ---- set-up ---- */

static void describes(void **state)
{
    static const char *const addresses[] = {CDEV_ADDRESS, GROUP_ADDRESS};

    for (unsigned i = 0; i < 2; i++) {
        struct vfmig_target *t = open_at(addresses[i]);
        const struct vfmig_target_info *info = &t->info;
        assert_string_equal(info->name, addresses[i]);
        assert_int_equal(info->dialect, VFMIG_DIALECT_FEATURE);
        assert_int_equal(info->features, 7);
        assert_int_equal(info->quiet, VFMIG_QUIET_P2P);
        assert_int_equal(info->pci_vendor, 0x15b3);
        assert_int_equal(info->pci_device, 0x101e);
        assert_int_equal(info->pci_revision, 0x42);
        assert_int_equal(info->pci_subvendor, 0x11);
        assert_int_equal(info->pci_subdevice, 0x22);
        assert_int_equal(info->region_count, 10);
        assert_int_equal(info->region_size[0], FAKE_PAGE);
        assert_int_equal(info->region_size[7], 256);
        assert_int_equal(info->irq_count[2], 8);
        assert_true(info->dma_log);
        assert_int_equal(info->log_page_size, 4096);
        assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
        t->ops->close(t);
        assert_int_equal(fake_open_files(&fake), 0);
        assert_int_equal(fake.detached, i + 1);
    }
}

static void need_failure(const char *address, int code, const char *text)
{
    struct vfmig_target *t = NULL;

    assert_int_equal(try_open(address, VFMIG_DIALECT_AUTO, false, false, &t), code);
    assert_int_equal(err.code, code);
    if (!strstr(err.text, text))
        fail_msg("'%s' is not in '%s'", text, err.text);
    assert_int_equal(fake_open_files(&fake), 0);
}

static void refuses_addresses(void **state)
{
    need_failure("vfio:vfio0", -EINVAL, "is not vfio:/PATH");
    need_failure("vfio:/dev/vfio/devices/vfio9", -ENOENT, "vfio9: No such file");
    need_failure("/dev/vfio/7", -EINVAL, "is neither");
    need_failure("vfio-group:7", -EINVAL, "is not vfio-group:N:NAME");
    need_failure("vfio-group:7:", -EINVAL, "is not vfio-group:N:NAME");
    need_failure("vfio-group:-7:x", -EINVAL, "is not vfio-group:N:NAME");
    need_failure("vfio-group:99999999999:x", -EINVAL, "is not vfio-group:N:NAME");
    need_failure("vfio-group:8:0000:01:00.1", -ENOENT, "/dev/vfio/8");
    need_failure("vfio-group:7:0000:01:00.2", -ENODEV, "the device");
}

/* A descriptor taken before the failure is given back, whatever fails. */
static void refuses_hosts(void **state)
{
    fake.quirk.not_viable = true;
    need_failure(GROUP_ADDRESS, -EPERM, "used by drivers of the host");
    fake.quirk = (struct fake_quirks){.no_type1 = true};
    need_failure(GROUP_ADDRESS, -ENOENT, "/dev/vfio/vfio");
    fake.quirk = (struct fake_quirks){.no_iommufd = true};
    need_failure(CDEV_ADDRESS, -ENOENT, "/dev/iommu");
    fake.quirk = (struct fake_quirks){.no_pci = true};
    need_failure(CDEV_ADDRESS, -ENOTSUP, "is no PCI device");
    fake.quirk = (struct fake_quirks){.regions = 1000};
    need_failure(CDEV_ADDRESS, -EPROTO, "has 1000 regions");
    fake.quirk = (struct fake_quirks){.irqs = 100000};
    need_failure(CDEV_ADDRESS, -EPROTO, "has 100000 vectors");
    fake.bound = true; /* by somebody else */
    fake.quirk = (struct fake_quirks){0};
    need_failure(CDEV_ADDRESS, -EINVAL, "binding to iommufd");
}

static void dialects(void **state)
{
    struct vfmig_target *t = NULL;

    assert_int_equal(try_open(CDEV_ADDRESS, VFMIG_DIALECT_REGION, false, false, &t), -ENOTSUP);
    fake.quirk.flags = VFMIG_FEATURE_PRE_COPY; /* not a set of the uAPI */
    assert_int_equal(try_open(CDEV_ADDRESS, VFMIG_DIALECT_FEATURE, false, false, &t), -ENOTSUP);
    fake.quirk.flags = UINT64_C(0x8000000000000001); /* and one that came later */
    t = open_cdev();
    assert_int_equal(t->info.features, VFMIG_FEATURE_STOP_COPY);
    assert_int_equal(t->info.quiet, VFMIG_QUIET_NONE);
    assert_int_equal(go(t, VFMIG_STATE_PRE_COPY), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    t->ops->close(t);
    /* A device that cannot migrate is of use all the same. */
    fake.quirk.flags = 4;
    fake.quirk.caps_outside = true;
    t = open_cdev();
    assert_int_equal(t->info.features, 0);
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(fake.resets, 4);
    t->ops->close(t);
}

static void registers(void **state)
{
    struct vfmig_target *t = open_cdev();
    uint32_t value = 0x12345678, seen = 0;

    assert_int_equal(t->ops->region_write(t, 0, 8, &value, 4, false, &err), 0);
    assert_int_equal(t->ops->region_read(t, 0, 8, &seen, 4, &err), 0);
    assert_int_equal(seen, value);
    assert_int_equal(t->ops->region_read(t, 0, FAKE_PAGE - 2, &seen, 4, &err), -EINVAL);
    assert_int_equal(t->ops->region_read(t, 0, UINT64_MAX, &seen, 4, &err), -EINVAL);
    assert_int_equal(t->ops->region_read(t, 77, 0, &seen, 4, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    uint32_t index;
    uint64_t size;
    assert_false(vfmig_kernel_migration_region(t, &index, &size));
    t->ops->close(t);
}

/* All vectors come on at the first time: none can be added later. */
static void interrupts(void **state)
{
    struct vfmig_target *t = open_cdev();
    const int two[] = {5, 6}, mixed[] = {7, -1};

    assert_int_equal(t->ops->set_irqs(t, 2, 0, 8, NULL, &err), 0); /* they are off */
    assert_int_equal(t->ops->set_irqs(t, 2, 1, 2, two, &err), 0);
    assert_int_equal(fake.irq_vectors, 8);
    assert_int_equal(fake.irq_attached, 0x06);
    assert_int_equal(t->ops->set_irqs(t, 2, 6, 2, two, &err), 0);
    assert_int_equal(fake.irq_attached, 0xc6);
    assert_int_equal(t->ops->set_irqs(t, 2, 1, 2, mixed, &err), 0);
    assert_int_equal(fake.irq_attached, 0xc2);
    assert_int_equal(t->ops->set_irqs(t, 2, 6, 1, NULL, &err), 0);
    assert_int_equal(fake.irq_attached, 0x82);
    assert_int_equal(t->ops->set_irqs(t, 2, 0, 8, NULL, &err), 0);
    assert_int_equal(fake.irq_vectors, 0);
    assert_int_equal(t->ops->set_irqs(t, 2, 7, 2, two, &err), -EINVAL);
    assert_int_equal(t->ops->set_irqs(t, 2, 0xffffffff, 2, two, &err), -EINVAL);
    assert_int_equal(t->ops->set_irqs(t, 99, 0, 1, two, &err), -EINVAL);
    assert_int_equal(t->ops->set_irqs(t, 99, 0, 0, NULL, &err), -EINVAL);
    fake.quirk.irq_result = 3; /* the host has so many vectors left */
    assert_int_equal(t->ops->set_irqs(t, 2, 0, 2, two, &err), -ENOSPC);
    fake.quirk.irq_result = -EBUSY;
    assert_int_equal(t->ops->set_irqs(t, 2, 0, 2, two, &err), -EBUSY);
    t->ops->close(t);
}

static void by_any_address(void **state)
{
    struct vfmig_target *t = NULL;

    assert_true(vfmig_kernel_address("vfio:/dev/vfio/devices/vfio0"));
    assert_true(vfmig_kernel_address("vfio-group:1:x"));
    assert_false(vfmig_kernel_address("vfio-user:/tmp/x"));
    /* With the real calls: there is no such file. */
    assert_int_equal(vfmig_open_address("vfio:/nowhere/vfio0", NULL, &t, &err), -ENOENT);
    assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
    assert_int_equal(vfmig_open_address("vfio-user:/nowhere/sock", NULL, &t, &err), -ENOENT);
    assert_int_equal(vfmig_open_address("/nowhere/sock", NULL, &t, &err), -ENOENT);
    t = open_cdev();
    assert_false(vfmig_user_has_twin(t));
    assert_int_equal(vfmig_target_set_handles(t, NULL, 0, &err), -ENOTSUP);
    t->ops->close(t);
}

/* ---- states ---- */

/* Where each pair must end: the shell adds nothing to what the kernel does. */
static void all_pairs(void **state)
{
    static const uint32_t sets[] = {1, 3, 5, 7};

    for (unsigned s = 0; s < 4; s++)
        for (uint32_t from = 1; from < VFMIG_STATE_COUNT; from++)
            for (uint32_t to = 0; to < VFMIG_STATE_COUNT + 1; to++) {
                fake.features = sets[s];
                struct vfmig_target *t = open_cdev();
                if (go(t, (enum vfmig_state)from) == 0) {
                    bool barred = from == VFMIG_STATE_STOP_COPY && to >= VFMIG_STATE_PRE_COPY;
                    int r = go(t, (enum vfmig_state)to);
                    if (r == 0)
                        assert_int_equal(state_of(t), to);
                    else
                        assert_int_equal(r, -EINVAL);
                    if (barred || to == 0 || to == 8)
                        assert_int_equal(r, -EINVAL);
                    if (sets[s] == 7 && !barred && to >= 1 && to < 8)
                        assert_int_equal(r, 0);
                    /* One descriptor of a session at most, in the states that have one. */
                    enum vfmig_state now = state_of(t);
                    bool session = now == VFMIG_STATE_STOP_COPY || now == VFMIG_STATE_RESUMING ||
                                   now >= VFMIG_STATE_PRE_COPY;
                    assert_int_equal(fake_open_files(&fake), session ? 3 : 2);
                }
                t->ops->close(t);
            }
}

static void change_fails(void **state)
{
    struct vfmig_target *t = open_cdev();

    /* Half way: RUNNING_NDMA is reached, STOP is not. */
    must_go(t, VFMIG_STATE_PRE_COPY);
    fake.quirk.fail_arc_to = VFMIG_STATE_STOP;
    fake.quirk.fail_arc = -EBUSY;
    assert_int_equal(go(t, VFMIG_STATE_STOP), -EBUSY);
    assert_int_equal(err.origin, VFMIG_ORIGIN_DEVICE);
    assert_int_equal(err.state, VFMIG_STATE_STOP);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING_NDMA);
    assert_int_equal(fake_open_files(&fake), 2); /* the session is over */
    must_go(t, VFMIG_STATE_RUNNING);
    /* Where a session is open it goes on. */
    must_go(t, VFMIG_STATE_PRE_COPY);
    fake.quirk.fail_arc_to = VFMIG_STATE_STOP_COPY;
    assert_int_equal(go(t, VFMIG_STATE_STOP_COPY), -EBUSY);
    assert_int_equal(state_of(t), VFMIG_STATE_PRE_COPY_NDMA);
    uint8_t byte;
    assert_int_equal(t->ops->save(t, &byte, 1, &err), 1);
    must_go(t, VFMIG_STATE_RUNNING);
    /* ERROR is left by a reset only. */
    fake.quirk.fail_arc_to = VFMIG_STATE_RUNNING_NDMA;
    fake.quirk.fail_arc = -EIO;
    fake.quirk.arc_is_error = true;
    assert_int_equal(go(t, VFMIG_STATE_STOP), -EIO);
    assert_int_equal(state_of(t), VFMIG_STATE_ERROR);
    assert_int_equal(go(t, VFMIG_STATE_RUNNING), -EINVAL);
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
    t->ops->close(t);
}

static void answers_that_make_no_sense(void **state)
{
    struct vfmig_target *t = open_cdev();
    enum vfmig_state now;
    uint8_t byte;

    fake.quirk.bad_state = true;
    assert_int_equal(t->ops->get_state(t, &now, &err), -EPROTO);
    fake.quirk = (struct fake_quirks){.stray_fd = true};
    assert_int_equal(go(t, VFMIG_STATE_RUNNING_NDMA), -EPROTO);
    assert_true(fcntl(0, F_GETFD) >= 0); /* not ours to close */
    fake.quirk = (struct fake_quirks){.no_fd = true};
    assert_int_equal(go(t, VFMIG_STATE_PRE_COPY), -EPROTO);
    assert_int_equal(t->ops->save(t, &byte, 1, &err), -EBADF);
    must_go(t, VFMIG_STATE_RUNNING);
    fake.quirk = (struct fake_quirks){.read_too_much = true};
    must_go(t, VFMIG_STATE_PRE_COPY);
    assert_int_equal(t->ops->save(t, &byte, 1, &err), -EPROTO);
    must_go(t, VFMIG_STATE_RESUMING);
    fake.quirk = (struct fake_quirks){.write_nothing = true};
    assert_int_equal(t->ops->load(t, &byte, 1, &err), -EIO);
    fake.quirk = (struct fake_quirks){.write_too_much = true};
    assert_int_equal(t->ops->load(t, &byte, 1, &err), -EIO);
    t->ops->close(t);
}

/* ---- data ---- */

/* Everything that comes until there is nothing, one read at a time. */
static size_t drain(struct vfmig_target *t, uint8_t *to, size_t piece)
{
    size_t at = 0;
    ssize_t n;

    while ((n = t->ops->save(t, to + at, piece, &err)) > 0)
        at += (size_t)n;
    if (n < 0)
        fail_msg("%s", err.text);
    return at;
}

static void save_all(struct vfmig_target *t, uint8_t image[FAKE_IMAGE + 64])
{
    uint64_t left;

    must_go(t, VFMIG_STATE_PRE_COPY);
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, FAKE_IMAGE);
    size_t at = drain(t, image, 64);
    assert_int_equal(at, FAKE_PRE_COPY);
    must_go(t, VFMIG_STATE_PRE_COPY_NDMA);
    assert_int_equal(drain(t, image + at, 64), 0);
    must_go(t, VFMIG_STATE_STOP_COPY);
    at += drain(t, image + at, 64);
    assert_int_equal(at, FAKE_IMAGE);
    assert_int_equal(t->ops->save(t, image, 1, &err), 0); /* for good */
    assert_int_equal(fake.sessions, 1);
}

static void load_all(struct vfmig_target *t, const uint8_t *image, size_t size)
{
    must_go(t, VFMIG_STATE_RESUMING);
    for (size_t at = 0; at < size; at += 1000)
        assert_int_equal(t->ops->load(t, image + at, size - at < 1000 ? size - at : 1000, &err), 0);
}

static void round_trip_with(struct fake_quirks quirk)
{
    uint8_t image[FAKE_IMAGE + 64];
    struct vfmig_target *t = open_cdev();

    fake.quirk = quirk;
    save_all(t, image);
    must_go(t, VFMIG_STATE_STOP);
    load_all(t, image, FAKE_IMAGE);
    must_go(t, VFMIG_STATE_STOP);
    must_go(t, VFMIG_STATE_RUNNING);
    assert_int_equal(fake.loaded_size, FAKE_IMAGE);
    t->ops->close(t);
}

static void round_trip(void **state)
{
    round_trip_with((struct fake_quirks){0});
}

static void reads_end_anywhere(void **state)
{
    round_trip_with((struct fake_quirks){.read_piece = 1, .write_piece = 7});
}

static void nothing_now_is_zero(void **state)
{
    round_trip_with((struct fake_quirks){.empty_precopy = true});
}

static void enomsg_is_no_end(void **state)
{
    struct vfmig_target *t = open_cdev();
    uint8_t image[FAKE_IMAGE];

    fake.quirk.enomsg_in_s = true;
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(t->ops->save(t, image, sizeof(image), &err), FAKE_IMAGE);
    assert_int_equal(t->ops->save(t, image, sizeof(image), &err), -ENOMSG);
    assert_int_equal(err.origin, VFMIG_ORIGIN_DEVICE);
    t->ops->close(t);
}

/* The data is fetched first: it is waited for in S, and not in pre-copy. */
static void data_that_comes_late(void **state)
{
    struct vfmig_target *t = open_cdev();
    uint8_t byte;

    must_go(t, VFMIG_STATE_PRE_COPY);
    fake.quirk.busy_reads = 1;
    assert_int_equal(t->ops->save(t, &byte, 1, &err), 0);
    assert_int_equal(fake.polls, 0);
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(t->ops->save(t, &byte, 1, &err), 1);
    assert_int_equal(fake.polls, 1);
    fake.quirk.never_ready = true;
    assert_int_equal(t->ops->save(t, &byte, 1, &err), -ETIMEDOUT);
    must_go(t, VFMIG_STATE_RESUMING);
    assert_int_equal(t->ops->load(t, &byte, 1, &err), -ETIMEDOUT);
    fake.quirk.never_ready = false;
    fake.quirk.busy_reads = 1;
    assert_int_equal(t->ops->load(t, &byte, 1, &err), 0);
    t->ops->close(t);
}

static void bad_data(void **state)
{
    struct vfmig_target *t = open_cdev();
    uint8_t image[FAKE_IMAGE] = {0};

    load_all(t, image, sizeof(image));
    assert_int_equal(go(t, VFMIG_STATE_STOP), -EINVAL);
    assert_int_equal(state_of(t), VFMIG_STATE_ERROR);
    assert_int_equal(t->ops->reset(t, &err), 0);
    /* An attempt that is given up: by reset, from the middle. */
    load_all(t, image, 100);
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(t->ops->load(t, image, 1, &err), -EBADF);
    assert_int_equal(fake_open_files(&fake), 2);
    t->ops->close(t);
}

static void amounts(void **state)
{
    struct vfmig_target *t = open_cdev();
    uint64_t left;

    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, FAKE_IMAGE);
    fake.quirk.size_error = -EIO;
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, UINT64_MAX);
    must_go(t, VFMIG_STATE_PRE_COPY);
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, FAKE_PRE_COPY);
    fake.quirk.huge_amounts = true;
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, UINT64_MAX - 1); /* UINT64_MAX is "unknown" */
    t->ops->close(t);
    /* A kernel before 6.2. */
    fake.data_size = false;
    t = open_cdev();
    assert_int_equal(t->ops->left(t, &left, &err), 0);
    assert_int_equal(left, UINT64_MAX);
    t->ops->close(t);
}

/* ---- reset, and calls that do not return ---- */

static void resets(void **state)
{
    struct vfmig_target *t = open_cdev();

    for (uint32_t s = 1; s < VFMIG_STATE_COUNT; s++) {
        must_go(t, (enum vfmig_state)s);
        assert_int_equal(t->ops->reset(t, &err), 0);
        assert_int_equal(state_of(t), VFMIG_STATE_RUNNING);
        assert_int_equal(fake_open_files(&fake), 2);
    }
    /* Done in the background: the old state is seen for a while. */
    must_go(t, VFMIG_STATE_STOP);
    fake.quirk.late_resets = 3;
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(fake.stale_reads, 0);
    /* One that leaves the state alone is told to run. */
    fake.quirk = (struct fake_quirks){.reset_keeps_state = true};
    must_go(t, VFMIG_STATE_STOP);
    assert_int_equal(t->ops->reset(t, &err), 0);
    assert_int_equal(fake.state, VFMIG_STATE_RUNNING);
    /* One that refuses that, too, says why. */
    must_go(t, VFMIG_STATE_STOP);
    fake.quirk.fail_arc_to = VFMIG_STATE_RUNNING_NDMA; /* on its way */
    fake.quirk.fail_arc = -ENOSPC;
    assert_int_equal(t->ops->reset(t, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "change to RUNNING"));
    fake.quirk = (struct fake_quirks){.reset_error = -EIO};
    assert_int_equal(t->ops->reset(t, &err), -EIO);
    t->ops->close(t);
}

static void a_change_takes_long(void **state)
{
    struct vfmig_target *t = open_cdev();
    enum vfmig_state now;

    fake.quirk.stall = true;
    assert_int_equal(t->ops->set_state(t, VFMIG_STATE_PRE_COPY, SECOND / 1000, &err), -ETIMEDOUT);
    assert_int_equal(err.origin, VFMIG_ORIGIN_DEVICE);
    fake_await_stall(&fake);
    /* Nothing is asked of the driver meanwhile, and nobody waits for ever. */
    assert_int_equal(t->ops->get_state(t, &now, &err), -ETIMEDOUT);
    assert_int_equal(t->ops->set_state(t, VFMIG_STATE_STOP, SECOND / 1000, &err), -ETIMEDOUT);
    assert_int_equal(vfmig_kernel_feature(t, 8, 0, NULL, 0), -ETIMEDOUT);
    /* What it gave is not lost when it returns after all. */
    fake_release(&fake);
    must_go(t, VFMIG_STATE_PRE_COPY_NDMA);
    assert_int_equal(state_of(t), VFMIG_STATE_PRE_COPY_NDMA);
    uint8_t byte;
    assert_int_equal(t->ops->save(t, &byte, 1, &err), 1);
    t->ops->close(t);
}

/* Closed while a call is in the kernel: what it holds is given back when it returns. */
static void closed_meanwhile(void **state)
{
    struct vfmig_target *t = open_cdev();

    fake.quirk.stall = true;
    assert_int_equal(t->ops->set_state(t, VFMIG_STATE_PRE_COPY, SECOND / 1000, &err), -ETIMEDOUT);
    fake_await_stall(&fake);
    t->ops->close(t);
    assert_int_equal(fake_open_files(&fake), 2);
    fake_release(&fake);
    fake_await_closed(&fake);
}

/* ---- nothing in between ---- */

static void raw(void **state)
{
    struct vfmig_target *t = open_cdev();
    uint8_t data[64] = {0};
    uint64_t initial, dirty;
    bool opened;
    int earlier;

    assert_int_equal(vfmig_kernel_feature(t, 8, KERNEL_FEATURE_PROBE | 77, NULL, 0), -ENOTTY);
    assert_int_equal(vfmig_kernel_feature(t, 7, KERNEL_FEATURE_PROBE | 1, NULL, 0), -EINVAL);
    assert_int_equal(vfmig_kernel_feature(t, 8, KERNEL_FEATURE_GET | 1, data, 8), -EINVAL);
    assert_int_equal(vfmig_kernel_feature(t, 16, KERNEL_FEATURE_SET | 1, data, 8), -EINVAL);
    assert_int_equal(vfmig_kernel_feature(t, 16, KERNEL_FEATURE_GET | 1, data, 8), 0);
    assert_int_equal(data[0], 7);
    assert_int_equal(vfmig_kernel_feature(t, 17, KERNEL_FEATURE_GET | 1, data, 8), -E2BIG);
    assert_int_equal(vfmig_kernel_read_data(t, data, 1), -EBADF);
    assert_int_equal(vfmig_kernel_write_data(t, data, 1), -EBADF);
    assert_int_equal(vfmig_kernel_precopy_info(t, 24, &initial, &dirty), -EBADF);

    assert_int_equal(vfmig_kernel_ask_state(t, 0, LONG, &opened, &earlier), -EINVAL);
    assert_int_equal(vfmig_kernel_ask_state(t, UINT32_MAX, LONG, &opened, &earlier), -EINVAL);
    assert_false(opened);
    assert_int_equal(vfmig_kernel_ask_state(t, VFMIG_STATE_PRE_COPY, LONG, &opened, &earlier), 0);
    assert_true(opened && earlier == -1);
    assert_int_equal(vfmig_kernel_precopy_info(t, 8, &initial, &dirty), -EINVAL);
    assert_int_equal(vfmig_kernel_precopy_info(t, 25, &initial, &dirty), -E2BIG);
    assert_int_equal(vfmig_kernel_precopy_info(t, 24, &initial, &dirty), 0);
    assert_int_equal(initial, FAKE_PRE_COPY);
    assert_int_equal(vfmig_kernel_read_data(t, data, sizeof(data)), sizeof(data));
    assert_int_equal(vfmig_kernel_ask_state(t, VFMIG_STATE_STOP_COPY, LONG, &opened, &earlier), 0);
    assert_false(opened);
    assert_int_equal(vfmig_kernel_ask_state(t, VFMIG_STATE_PRE_COPY, LONG, &opened, &earlier),
                     -EINVAL);
    assert_int_equal(vfmig_kernel_precopy_info(t, 24, &initial, &dirty), -EINVAL);
    /* The old session's descriptor is dead, and there to be tried. */
    assert_int_equal(vfmig_kernel_ask_state(t, VFMIG_STATE_RESUMING, LONG, &opened, &earlier), 0);
    assert_true(opened && earlier >= 0);
    assert_int_equal(fake_calls.read(&fake, earlier, data, 1), -ENODEV);
    assert_int_equal(fake_calls.close(&fake, earlier), 0);
    assert_int_equal(vfmig_kernel_write_data(t, data, 1), 1);
    fake.quirk.never_ready = true;
    assert_int_equal(vfmig_kernel_write_data(t, data, 1), -EAGAIN);
    assert_int_equal(vfmig_kernel_await_data(t, true), -ETIMEDOUT);
    fake.quirk.never_ready = false;
    assert_int_equal(vfmig_kernel_await_data(t, true), 0);
    assert_int_equal(t->ops->reset(t, &err), 0);
    must_go(t, VFMIG_STATE_STOP_COPY);
    assert_int_equal(vfmig_kernel_ask_state(t, VFMIG_STATE_RESUMING, LONG, &opened, NULL), 0);
    assert_int_equal(fake_open_files(&fake), 3); /* the earlier one is closed */
    must_go(t, VFMIG_STATE_RESUMING);
    /* Any value can be read, and a reset is one. */
    uint32_t value;
    fake.quirk.bad_state = true;
    assert_int_equal(vfmig_kernel_look_state(t, &value), 0);
    assert_int_equal(value, 77);
    fake.quirk = (struct fake_quirks){.reset_keeps_state = true};
    assert_int_equal(vfmig_kernel_reset_once(t, LONG), 0);
    assert_int_equal(vfmig_kernel_look_state(t, &value), 0);
    assert_int_equal(value, VFMIG_STATE_RESUMING);
    t->ops->close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(describes),
        CASE(refuses_addresses),
        CASE(refuses_hosts),
        CASE(dialects),
        CASE(registers),
        CASE(interrupts),
        CASE(by_any_address),
        CASE(all_pairs),
        CASE(change_fails),
        CASE(answers_that_make_no_sense),
        CASE(round_trip),
        CASE(reads_end_anywhere),
        CASE(nothing_now_is_zero),
        CASE(enomsg_is_no_end),
        CASE(data_that_comes_late),
        CASE(bad_data),
        CASE(amounts),
        CASE(resets),
        CASE(a_change_takes_long),
        CASE(closed_meanwhile),
        CASE(raw),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
