/* SPDX-License-Identifier: BSD-3-Clause */
/* The saved state of a machine: a header, records, a CRC; and the clock that goes with it. */
#include "vmm/machine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/crc32c.h"

#define BLOB_MAGIC   0x30534d56u /* "VMS0" */
#define BLOB_VERSION 1u

struct blob_header {
    uint32_t magic;
    uint32_t version;
    uint32_t accel;
    uint32_t vcpus;
    uint32_t size; /* of the records behind */
    uint32_t crc;  /* of the header with crc 0, and the records */
};

struct record_header {
    uint32_t tag;
    uint32_t vcpu;
    uint32_t size;
    uint32_t zero;
};

int machine_put(struct vfmig_buffer *out, uint32_t tag, uint32_t vcpu, const void *data, size_t size)
{
    struct record_header header = {.tag = tag, .vcpu = vcpu, .size = (uint32_t)size};
    int ret = vfmig_buffer_append(out, &header, sizeof(header));
    if (ret == 0)
        ret = vfmig_buffer_append(out, data, size);
    if (ret == 0 && size % 8)
        ret = vfmig_buffer_append(out, NULL, 8 - size % 8);
    return ret;
}

int machine_get(const void *data, size_t size, size_t *offset, struct machine_record *ret_record)
{
    struct record_header header;
    if (*offset == size)
        return 0;
    if (size - *offset < sizeof(header))
        return -EBADMSG;
    memcpy(&header, (const uint8_t *)data + *offset, sizeof(header));
    size_t left = size - *offset - sizeof(header);
    size_t padded = ((size_t)header.size + 7) & ~(size_t)7;
    if (padded > left || header.zero)
        return -EBADMSG;
    ret_record->tag = header.tag;
    ret_record->vcpu = header.vcpu;
    ret_record->size = header.size;
    ret_record->data = (const uint8_t *)data + *offset + sizeof(header);
    *offset += sizeof(header) + padded;
    return 1;
}

static int save_records(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < m->config.vcpu_count; i++)
        if (machine_put(out, MACHINE_TAG_READS, i, &m->vcpus[i].reads, 8) < 0)
            return vfmig_error_set(reterr, -ENOBUFS, VFMIG_ORIGIN_LOCAL, 0,
                                   "no room for the machine's state");
    return m->ops->save(m, out, reterr);
}

int vfmig_machine_save(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    if (vfmig_machine_running(m))
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "the vCPUs are running");
    size_t start = out->size;
    struct blob_header header = {.magic = BLOB_MAGIC,
                                 .version = BLOB_VERSION,
                                 .accel = m->ops->accel,
                                 .vcpus = m->config.vcpu_count};
    int ret = vfmig_buffer_append(out, &header, sizeof(header));
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0, "no room for the machine's state");
    ret = save_records(m, out, reterr);
    if (ret < 0) {
        out->size = start;
        return ret;
    }
    header.size = (uint32_t)(out->size - start - sizeof(header));
    memcpy(out->data + start, &header, sizeof(header));
    header.crc = vfmig_crc32c(0, out->data + start, out->size - start);
    memcpy(out->data + start, &header, sizeof(header));
    return 0;
}

static int check_blob(struct vfmig_machine *m, const void *data, size_t size,
                      size_t *ret_size, struct vfmig_error *reterr)
{
    struct blob_header header, zero_crc;
    if (size < sizeof(header))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "the machine's state is cut off at %zu bytes", size);
    memcpy(&header, data, sizeof(header));
    if (header.magic != BLOB_MAGIC || header.version != BLOB_VERSION)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "not a machine's state of version %u", BLOB_VERSION);
    if (header.size != size - sizeof(header))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "the machine's state has %zu bytes, not %zu", size,
                               header.size + sizeof(header));
    zero_crc = header;
    zero_crc.crc = 0;
    uint32_t crc = vfmig_crc32c(0, &zero_crc, sizeof(zero_crc));
    crc = vfmig_crc32c(crc, (const uint8_t *)data + sizeof(header), header.size);
    if (crc != header.crc)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "the machine's state is damaged (CRC)");
    if (header.accel != (uint32_t)m->ops->accel || header.vcpus != m->config.vcpu_count)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                               "the state is of a %s machine with %u vCPUs, this is %s with %u",
                               vfmig_accel_name((enum vfmig_accel)header.accel), header.vcpus,
                               vfmig_accel_name(m->ops->accel), m->config.vcpu_count);
    *ret_size = header.size;
    return 0;
}

int vfmig_machine_load(struct vfmig_machine *m, const void *data, size_t size,
                       struct vfmig_error *reterr)
{
    if (vfmig_machine_running(m))
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "the vCPUs are running");
    size_t records_size = 0;
    int ret = check_blob(m, data, size, &records_size, reterr);
    if (ret < 0)
        return ret;
    const uint8_t *records = (const uint8_t *)data + sizeof(struct blob_header);
    struct machine_record record;
    size_t offset = 0;
    while ((ret = machine_get(records, records_size, &offset, &record)) > 0)
        if (record.vcpu >= m->config.vcpu_count ||
            (record.tag == MACHINE_TAG_READS && record.size != 8))
            ret = -EBADMSG;
        else if (record.tag == MACHINE_TAG_READS)
            memcpy(&m->vcpus[record.vcpu].reads, record.data, 8);
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_STREAM, 0,
                               "a record of the machine's state is malformed");
    ret = m->ops->load(m, records, records_size, reterr);
    m->moved = ret == 0;
    return ret;
}

/* Reads the counter and the wall clock at the same time, as near as can be. */
static void read_clocks(machine_counter counter, uint64_t *ret_tsc, uint64_t *ret_realtime_ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        struct timespec now;
        uint64_t before = counter();
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t after = counter();
        if (after - before >= best)
            continue;
        best = after - before;
        *ret_tsc = before + best / 2;
        *ret_realtime_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
}

/* 16 bytes that name this boot of this host. */
static void read_boot_id(uint8_t ret_id[16])
{
    memset(ret_id, 0, 16);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file)
        return;
    int nibble, count = 0;
    while (count < 32 && (nibble = fgetc(file)) != EOF) {
        int value = nibble >= '0' && nibble <= '9' ? nibble - '0' : (nibble | 32) - 'a' + 10;
        if (value < 0 || value > 15)
            continue;
        ret_id[count / 2] = (uint8_t)(ret_id[count / 2] << 4 | value);
        count++;
    }
    fclose(file);
}

void machine_tsc_fill(struct machine_tsc *tsc, machine_counter counter, uint64_t offset,
                      uint64_t khz)
{
    uint64_t host = 0;
    memset(tsc, 0, sizeof(*tsc));
    read_boot_id(tsc->boot_id);
    read_clocks(counter, &host, &tsc->realtime_ns);
    tsc->offset = offset;
    tsc->tsc = host + offset;
    tsc->khz = khz;
}

uint64_t machine_tsc_offset(const struct machine_tsc *tsc, machine_counter counter)
{
    uint8_t boot_id[16];
    uint64_t host = 0, realtime_ns = 0;
    read_boot_id(boot_id);
    if (memcmp(boot_id, tsc->boot_id, 16) == 0)
        return tsc->offset; /* the same counter: exact */
    read_clocks(counter, &host, &realtime_ns);
    /* Clocks of two hosts may disagree; a guest's time never goes back. */
    uint64_t passed_ns = realtime_ns > tsc->realtime_ns ? realtime_ns - tsc->realtime_ns : 0;
    uint64_t passed = passed_ns / 1000000 * tsc->khz + passed_ns % 1000000 * tsc->khz / 1000000;
    return tsc->tsc + passed - host;
}
