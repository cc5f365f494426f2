/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/converge.h"

#include "vfmig/memory.h"

#define SECOND_NS       UINT64_C(1000000000)
#define STOP_VCPUS_NS   UINT64_C(2000000) /* kick, finish the exit, park */
#define START_VCPUS_NS  UINT64_C(2000000)
#define DEVICE_MIN_NS   UINT64_C(500000) /* a state change, when nobody has measured one */
#define JOURNAL_MIN_NS  UINT64_C(1000000)
#define JOURNAL_WRITES  4u /* READY, GRANT-SENT, GRANTED, RUNNING */
#define DEVICE_CHANGES  4u /* S; Z to {}; {} to NR; N cleared */
#define MESSAGES        3u /* SEAL and READY, GRANT: in half round trips */
#define PAGE_HEAD_BYTES 16u

static uint64_t add(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static uint64_t mul(uint64_t a, uint64_t b)
{
    uint64_t product;

    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

/* bytes at rate, in ns; split so that it does not overflow for anything below 16 GiB/s * s. */
static uint64_t time_of(uint64_t bytes, uint64_t rate)
{
    if (rate == 0)
        return bytes ? UINT64_MAX : 0;
    return add(mul(bytes / rate, SECOND_NS), mul(bytes % rate, SECOND_NS) / rate);
}

static uint64_t max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

uint64_t vfmig_converge_predict(const struct vfmig_converge_input *in)
{
    uint64_t change = max(in->device_change_ns, DEVICE_MIN_NS);
    uint64_t journal = max(in->journal_ns, JOURNAL_MIN_NS);
    /* Dirtied after this moment: while the devices go to N and until the vCPUs are parked. */
    uint64_t before_stop = add(STOP_VCPUS_NS, mul(change, 2));
    uint64_t late_pages =
        add(mul(in->dirty_pages_per_s, before_stop / 1000) / (SECOND_NS / 1000), 1);
    uint64_t bytes = mul(add(in->dirty_pages, late_pages), VFMIG_PAGE_SIZE + PAGE_HEAD_BYTES);
    uint64_t moving = time_of(add(add(bytes, in->device_bytes), in->vm_state_bytes), in->bandwidth);
    uint64_t total = max(moving, in->slowest_device_ns);

    total = add(total, STOP_VCPUS_NS + START_VCPUS_NS);
    total = add(total, mul(change, DEVICE_CHANGES));
    total = add(total, mul(in->log_ns, 2));
    total = add(total, mul(journal, JOURNAL_WRITES));
    return add(total, mul(in->rtt_ns, MESSAGES) / 2);
}

enum vfmig_converge_verdict vfmig_converge_decide(const struct vfmig_converge *converge,
                                                  const struct vfmig_converge_input *input,
                                                  uint64_t now_ns)
{
    if (converge->deadline_ns && now_ns >= converge->deadline_ns)
        return converge->force ? VFMIG_CONVERGE_GO : VFMIG_CONVERGE_GIVE_UP;
    if (input->rounds < VFMIG_CONVERGE_MIN_ROUNDS)
        return VFMIG_CONVERGE_AGAIN;
    return vfmig_converge_predict(input) <= converge->limit_ns ? VFMIG_CONVERGE_GO
                                                               : VFMIG_CONVERGE_AGAIN;
}
