/* SPDX-License-Identifier: BSD-3-Clause */
/* The vIOMMU in a migration: the grace state, and its state on the way to another one. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>

#include "iommu_rig.h"

#define RW     (IOMMU_MAP_READ | IOMMU_MAP_WRITE)
#define SECOND UINT64_C(1000000000)

struct wait {
    struct rig *r;
    pthread_t thread;
    bool guest_runs;
    int result;
    atomic_bool done;
};

static void *wait_main(void *arg)
{
    struct wait *w = arg;

    w->result = vmm_iommu_idle(w->r->iommu, w->guest_runs, 30 * SECOND, NULL);
    w->done = true;
    return NULL;
}

static void start(struct wait *w, struct rig *r)
{
    *w = (struct wait){.r = r, .guest_runs = true};
    assert_int_equal(pthread_create(&w->thread, NULL, wait_main, w), 0);
}

/* Waits for the request's withdrawal and says its id. */
static uint32_t withdrawal(struct rig *r)
{
    const struct iommu_request *request;

    while (!(request = rig_request(r)))
        sched_yield();
    assert_true(request->flags & IOMMU_REQUEST_WITHDRAWN);
    return request->id;
}

/* C10: idle means that the guest has responded to everything. Requests that are open then belong to
 * DMA that was given up; their accesses fail, whatever the guest says. */
static void waits_for_the_guest(void **state)
{
    struct rig r;
    struct rig_access a, b, c;
    struct wait w;

    rig_open(&r, 3);
    assert_int_equal(vmm_iommu_idle(r.iommu, true, 0, NULL), 0);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(rig_domain(&r, 1, true), 0);
    assert_int_equal(rig_begin(&r, &a, 0, 0, 8, true, true), -EINPROGRESS);
    assert_int_equal(rig_begin(&r, &b, 1, 0, 8, true, true), -EINPROGRESS);
    uint32_t ids[2] = {rig_request(&r)->id, rig_request(&r)->id};
    start(&w, &r);
    assert_int_equal(withdrawal(&r), ids[0]);
    assert_int_equal(withdrawal(&r), ids[1]);
    assert_int_equal(a.result, -ECANCELED);
    assert_int_equal(b.result, -ECANCELED);
    /* The same page again is another request, and nobody waits for the old one. */
    assert_int_equal(rig_map(&r, 0, 0, 0x8000, 4096, RW), 0);
    assert_int_equal(rig_respond(&r, ids[0], IOMMU_RESPONSE_TRY), 0);
    assert_int_equal(a.result, -ECANCELED);
    vmm_iommu_release(r.iommu, &a.access);
    assert_false(w.done);
    assert_int_equal(rig_respond(&r, ids[1], IOMMU_RESPONSE_REFUSED), 0);
    assert_false(w.done); /* the device has no answer yet */
    vmm_iommu_release(r.iommu, &b.access);
    pthread_join(w.thread, NULL);
    assert_int_equal(w.result, 0);
    assert_int_equal(rig_begin(&r, &c, 1, 0, 8, true, true), -EINPROGRESS);
    assert_int_not_equal(rig_request(&r)->id, ids[1]);
    vmm_iommu_close(r.iommu);
    vmm_iommu_release(r.iommu, &c.access);
    assert_int_equal(c.result, -EFAULT);
    vmm_iommu_free(r.iommu);
    r.space.own->ops->free(r.space.own);
    free(r.memory);
}

/* A guest that never responds, one that does not run, one that was never told. */
static void other_guests(void **state)
{
    struct rig r;
    static struct rig_access many[RIG_ENTRIES + 4];
    struct vfmig_error err;

    rig_open(&r, 1);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    for (unsigned i = 0; i < RIG_ENTRIES + 4; i++)
        assert_int_equal(rig_begin(&r, &many[i], 0, i * UINT64_C(4096), 8, true, true),
                         -EINPROGRESS);
    assert_int_equal(vmm_iommu_idle(r.iommu, true, 1000, &err), -ETIMEDOUT);
    assert_non_null(strstr(err.text, "16 page requests")); /* it has heard of so many */
    for (unsigned i = 0; i < RIG_ENTRIES + 4; i++) {
        assert_int_equal(many[i].result, -ECANCELED);
        vmm_iommu_release(r.iommu, &many[i].access);
    }
    assert_int_equal(vmm_iommu_idle(r.iommu, true, 1000, NULL), -ETIMEDOUT);
    assert_int_equal(vmm_iommu_idle(r.iommu, false, 1000, NULL), 0);
    assert_int_equal(rig_get(&r, IOMMU_REG_OPEN), 0);
    assert_int_equal(rig_respond(&r, rig_request(&r)->id, IOMMU_RESPONSE_TRY), ENOENT);
    rig_close(&r);
}

static void save(struct rig *r, struct vfmig_buffer *out)
{
    vmm_iommu_pause(r->iommu);
    assert_int_equal(vmm_iommu_save(r->iommu, out, NULL), 0);
}

/* What arrives does what the original did; commands that were queued and not begun are done there.
 */
static void travels(void **state)
{
    struct rig r, to;
    struct rig_access a;
    struct vfmig_buffer state_bytes = {0};
    uint64_t gpa, left;

    rig_open(&r, 6);
    assert_int_equal(rig_domain(&r, 2, true), 0);
    assert_int_equal(rig_map(&r, 2, 0x4000, 0x8000, 0x2000, RW), 0);
    assert_int_equal(rig_map(&r, 2, 0x7000, 0x1000, 0x1000, IOMMU_MAP_READ), 0);
    assert_int_equal(rig_begin(&r, &a, 2, 0, 8, true, true), -EINPROGRESS);
    uint32_t id = rig_request(&r)->id;
    struct vfmig_error err;
    vmm_iommu_pause(r.iommu);
    assert_int_equal(vmm_iommu_save(r.iommu, &state_bytes, &err), -EBUSY); /* C61 */
    vmm_iommu_resume(r.iommu);
    assert_int_equal(rig_respond(&r, id, IOMMU_RESPONSE_REFUSED), 0);
    vmm_iommu_release(r.iommu, &a.access);
    assert_int_equal(vmm_iommu_save(r.iommu, &state_bytes, &err), -EBUSY); /* it is not paused */
    vmm_iommu_pause(r.iommu);
    const struct iommu_command *late = rig_queue(
        &r,
        (struct iommu_command){.op = IOMMU_MAP, .device = 2, .iova = 0, .size = 4096, .flags = RW});
    save(&r, &state_bytes);
    assert_false(rig_is_done(late));

    rig_open(&to, 6);
    memcpy(to.memory, r.memory, RIG_PAGES * 4096);
    assert_int_equal(vmm_iommu_load(to.iommu, state_bytes.data, state_bytes.size, &err), -EBUSY);
    vmm_iommu_pause(to.iommu);
    assert_int_equal(vmm_iommu_load(to.iommu, state_bytes.data, state_bytes.size, &err), 0);
    to.tail = r.tail;
    to.taken = r.taken;
    late = (const struct iommu_command *)(to.memory + RIG_COMMANDS) + (to.tail - 1) % RIG_ENTRIES;
    assert_int_equal(rig_begin(&to, &a, 2, 0, 8, true, false), -EAGAIN);
    vmm_iommu_resume(to.iommu);
    while (!rig_is_done(late))
        sched_yield();
    assert_int_equal(rig_begin(&to, &a, 2, 0x5ff8, 8, true, false), 0);
    vmm_iommu_translate(to.iommu, &a.access, 0x5ff8, &gpa, &left);
    assert_int_equal(gpa, 0x9ff8);
    vmm_iommu_end(to.iommu, &a.access);
    assert_int_equal(rig_begin(&to, &a, 2, 0x7000, 8, true, false), -EAGAIN);
    assert_int_equal(rig_begin(&to, &a, 1, 0x7000, 8, true, false), -EFAULT);
    assert_int_equal(rig_begin(&to, &a, 2, 0x6000, 8, true, true), -EINPROGRESS);
    assert_int_not_equal(rig_request(&to)->id, id); /* a response that is late meets nobody */
    assert_int_equal(rig_respond(&to, id, IOMMU_RESPONSE_TRY), ENOENT);
    rig_close(&to);
    vfmig_buffer_free(&state_bytes);
    rig_close(&r);
}

/* A state that was cut, or has a wrong word anywhere, is refused, or is a state like any other; and
 * where it is refused nothing has changed. */
static void checks_what_arrives(void **state)
{
    struct rig r, to;
    struct rig_access a;
    struct vfmig_buffer good = {0};
    unsigned refused = 0;

    rig_open(&r, 3);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    assert_int_equal(rig_domain(&r, 1, true), 0);
    assert_int_equal(rig_map(&r, 0, 0x4000, 0x8000, 0x2000, RW), 0);
    assert_int_equal(rig_map(&r, 0, 0x6000, 0x8000, 0x2000, RW), 0);
    save(&r, &good);
    rig_open(&to, 3);
    assert_int_equal(rig_domain(&to, 0, true), 0);
    assert_int_equal(rig_map(&to, 0, 0x30000, 0x8000, 0x1000, RW), 0);
    vmm_iommu_pause(to.iommu);
    for (size_t size = 0; size < good.size; size++)
        assert_int_equal(vmm_iommu_load(to.iommu, good.data, size, NULL), -EBADMSG);
    uint8_t *bad = malloc(good.size + 1);
    for (size_t at = 0; at + 4 <= good.size; at += 4) {
        static const uint32_t words[] = {1, 0x7fff, 0x80000000, UINT32_MAX};
        for (unsigned i = 0; i < 4; i++) {
            uint32_t word;
            memcpy(bad, good.data, good.size);
            memcpy(&word, bad + at, 4);
            word += words[i];
            memcpy(bad + at, &word, 4);
            int ret = vmm_iommu_load(to.iommu, bad, good.size, NULL);
            assert_true(ret == 0 || ret == -EBADMSG);
            if (ret == 0)
                assert_int_equal(vmm_iommu_load(to.iommu, good.data, good.size, NULL), 0);
            else if (!refused++)
                assert_int_equal(rig_begin(&to, &a, 0, 0x30000, 8, true, false), 0);
        }
    }
    vmm_iommu_end(to.iommu, &a.access);
    memcpy(bad, good.data, good.size);
    assert_int_equal(vmm_iommu_load(to.iommu, bad, good.size + 1, NULL), -EBADMSG);
    assert_true(refused > 60);
    free(bad);
    vfmig_buffer_free(&good);
    rig_close(&to);
    rig_open(&to, 7); /* another set of devices */
    vmm_iommu_pause(to.iommu);
    save(&r, &good);
    assert_int_equal(vmm_iommu_load(to.iommu, good.data, good.size, NULL), -EBADMSG);
    struct vfmig_buffer ours = {0}, theirs = {0};
    assert_int_equal(vmm_iommu_identity(r.iommu, &ours), 0);
    assert_int_equal(vmm_iommu_identity(to.iommu, &theirs), 0);
    assert_string_not_equal((char *)ours.data, (char *)theirs.data);
    vfmig_buffer_free(&ours);
    vfmig_buffer_free(&theirs);
    vfmig_buffer_free(&good);
    rig_close(&to);
    rig_close(&r);
}

/* While it is paused nothing is written to guest memory; a fault that comes then is told later. */
static void paused(void **state)
{
    struct rig r;
    struct rig_access a;

    rig_open(&r, 1);
    assert_int_equal(rig_domain(&r, 0, true), 0);
    vmm_iommu_pause(r.iommu);
    const struct iommu_command *nop = rig_queue(&r, (struct iommu_command){.op = IOMMU_NOP});
    assert_int_equal(rig_begin(&r, &a, 0, 0, 8, true, true), -EINPROGRESS);
    assert_null(rig_request(&r));
    assert_false(rig_is_done(nop));
    vmm_iommu_resume(r.iommu);
    assert_non_null(rig_request(&r));
    while (!rig_is_done(nop))
        sched_yield();
    rig_close(&r);
    assert_int_equal(a.result, -EFAULT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_for_the_guest),
        cmocka_unit_test(other_guests),
        cmocka_unit_test(travels),
        cmocka_unit_test(checks_what_arrives),
        cmocka_unit_test(paused),
    };

    return cmocka_run_group_tests_name("iommu-grace", tests, NULL, NULL);
}
