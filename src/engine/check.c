/* SPDX-License-Identifier: BSD-3-Clause */
/* The dry run: both sides compare what they are, everything that stands against a migration is
 * named, and nothing is changed. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "engine/engine.h"
#include "io/sock.h"
#include "io/tls.h"

/* In the identity of a source that only asks. */
#define WISH          "info.dry-run=1\n"
#define JOURNAL_BYTES 65536u /* that a journal's disk should have left */
#define MAX_FINDINGS  1024u  /* that are taken from a peer */

struct run {
    const char *uri;
    uint64_t stall_ns;
    const struct vfmig_security *security;
    struct vfmig_tls_creds *tls;
    char tls_name[256];
    void (*found)(void *opaque, bool source, const char *text);
    void *opaque;
    uint32_t count;
};

/* --- what a side can look at by itself --- */

static void say(const struct engine_findings *all, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(const struct engine_findings *all, const char *format, ...)
{
    char text[400];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    all->found(all->opaque, text);
}

/* A journal that does not exist yet is made in its parent. */
static void check_journal(const char *dir, const struct engine_findings *all)
{
    char parent[sizeof(((struct engine *)0)->journal_dir)];
    const char *place = dir;
    struct statvfs disk;

    if (access(dir, F_OK) && errno == ENOENT) {
        snprintf(parent, sizeof(parent), "%s", dir);
        char *slash = strrchr(parent, '/');
        if (slash)
            slash[slash == parent] = 0;
        place = slash ? parent : ".";
    }
    if (access(place, W_OK | X_OK))
        say(all, "the journal %s cannot be written: %s", dir, strerror(errno));
    else if (statvfs(place, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < JOURNAL_BYTES)
        say(all, "the disk of the journal %s is full", dir);
}

static uint64_t available_bytes(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    uint64_t kib = UINT64_MAX >> 10;
    char line[128];

    while (file && fgets(line, sizeof(line), file))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib << 10;
}

/* What of the guest's memory is not there yet, this machine must be able to give. */
static void check_memory(const struct vfmig_memory *memory, const struct engine_findings *all)
{
    uint64_t wanted = 0, available = available_bytes();

    for (uint32_t i = 0; i < memory->block_count; i++) {
        struct stat info;
        uint64_t there = 0;
        if (memory->blocks[i].fd >= 0 && fstat(memory->blocks[i].fd, &info) == 0)
            there = (uint64_t)info.st_blocks * 512;
        if (there < memory->blocks[i].size)
            wanted += memory->blocks[i].size - there;
    }
    if (wanted > available)
        say(all, "the guest needs %" PRIu64 " MiB more memory, and %" PRIu64 " MiB are available",
            wanted >> 20, available >> 20);
}

/* --- the destination --- */

bool engine_is_dry_run(const char *identity)
{
    return strstr(identity, "\n" WISH) != NULL;
}

struct answer {
    struct vfmig_channel *channel;
    struct vfmig_verdict verdict;
    uint32_t count;
    bool broken;
};

static void answer_finding(void *opaque, const char *text)
{
    struct answer *answer = opaque;
    char kind = PROGRESS_FINDING;
    struct iovec parts[2] = {{.iov_base = &kind, .iov_len = 1},
                             {.iov_base = (void *)text, .iov_len = strlen(text)}};

    if (!answer->count++)
        snprintf(answer->verdict.text, sizeof(answer->verdict.text), "%s", text);
    if (!answer->broken)
        answer->broken =
            vfmig_channel_sendv(answer->channel, VFMIG_RECORD_PROGRESS, parts, 2, NULL) != 0;
}

void engine_answer_dry_run(struct engine *e, const char *identity, const char *busy,
                           struct vfmig_channel *channel)
{
    struct vfmig_buffer ours = {.limit = VFMIG_MAX_IDENTITY + 1};
    struct answer answer = {.channel = channel};
    const struct engine_findings all = {.found = answer_finding, .opaque = &answer};
    uint8_t out[VFMIG_VERDICT_BYTES_MAX];
    struct vfmig_error error = {0};

    if (busy)
        answer_finding(&answer, busy);
    (void)engine_vm_check_incoming(&e->vm, &all, NULL);
    int ret = engine_identity(&e->vm, &ours, &error);
    if (ret == 0)
        ret = vfmig_buffer_append(&ours, NULL, 1);
    if (ret == 0)
        (void)engine_identity_compare((const char *)ours.data, identity, &all, NULL);
    else
        answer_finding(&answer, error.code ? error.text : "no memory for the identity");
    vfmig_buffer_free(&ours);
    check_journal(e->journal_dir, &all);
    check_memory(&e->vm.memory, &all);
    answer.verdict.accept = answer.count == 0;
    (void)vfmig_channel_send(channel, VFMIG_RECORD_VERDICT, out,
                             vfmig_verdict_encode(out, &answer.verdict), NULL);
}

/* --- the source --- */

static void source_finding(void *opaque, const char *text)
{
    struct run *run = opaque;

    run->count++;
    run->found(run->opaque, /* source= */ true, text);
}

static int next_fd(void *user, struct vfmig_error *reterr)
{
    struct run *run = user;
    int fd = -1;
    int ret = vfmig_sock_connect(run->uri, vfmig_deadline_ns(run->stall_ns), &fd, reterr);

    if (ret == 0)
        ret = engine_secure_peer(run->security, run->uri, fd, reterr);
    if (ret && fd >= 0)
        close(fd);
    return ret ? ret : fd;
}

static void peer_finding(struct run *run, const struct vfmig_record *record)
{
    char text[VFMIG_MAX_STREAM_TEXT];
    size_t size = record->length - 1;

    if (record->payload[0] != PROGRESS_FINDING || size >= sizeof(text))
        return;
    for (size_t i = 0; i < size; i++)
        text[i] = record->payload[1 + i] >= ' ' && record->payload[1 + i] < 127
                      ? (char)record->payload[1 + i]
                      : '?';
    text[size] = 0;
    run->count++;
    run->found(run->opaque, /* source= */ false, text);
}

static int read_answer(struct run *run, struct vfmig_channel *channel, struct vfmig_error *reterr)
{
    struct vfmig_verdict verdict;
    struct vfmig_record record;

    for (uint32_t i = 0; i < MAX_FINDINGS; i++) {
        int ret = vfmig_channel_recv(channel, &record, reterr);
        if (ret)
            return ret;
        if (record.tag == VFMIG_RECORD_PROGRESS) {
            peer_finding(run, &record);
            continue;
        }
        if (record.tag != VFMIG_RECORD_VERDICT)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record.tag,
                                   "the destination answered an identity with %s",
                                   vfmig_record_info(record.tag)->name);
        ret = vfmig_verdict_decode(record.payload, record.length, &verdict, reterr);
        if (ret == 0 && !verdict.accept && !run->count++)
            run->found(run->opaque, /* source= */ false, verdict.text);
        return ret;
    }
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, 0, "the destination finds no end");
}

static int ask_peer(struct run *run, const struct vfmig_vm *vm,
                    const struct vfmig_migrate_options *options, struct vfmig_error *reterr)
{
    struct vfmig_buffer text = {.limit = VFMIG_MAX_IDENTITY};
    const struct vfmig_dial dial = {.next_fd = next_fd,
                                    .user = run,
                                    .stall_ns = run->stall_ns,
                                    .tls = engine_secure_uri(run->uri) ? run->tls : NULL,
                                    .peer_name = run->tls_name};
    struct vfmig_channel *channel;
    uint8_t id[VFMIG_MIGRATION_ID_BYTES];
    int ret = engine_identity(vm, &text, reterr);

    if (ret == 0)
        ret = engine_identity_needs(options, &text, reterr);
    if (ret == 0 &&
        (vfmig_buffer_printf(&text, WISH) || getrandom(id, sizeof(id), 0) != sizeof(id)))
        ret =
            vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the identity");
    if (ret == 0)
        ret = vfmig_channels_open(&dial, 1, id, &channel, reterr);
    if (ret) {
        vfmig_buffer_free(&text);
        return ret;
    }
    ret = vfmig_channel_send(channel, VFMIG_RECORD_IDENTITY, text.data, text.size, reterr);
    vfmig_buffer_free(&text);
    if (ret == 0)
        ret = read_answer(run, channel, reterr);
    vfmig_channel_free(channel);
    return ret;
}

int vfmig_source_check(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                       const char *uri, void (*found)(void *opaque, bool source, const char *text),
                       void *opaque, struct vfmig_error *reterr)
{
    struct run run = {.uri = uri, .security = &options->security, .found = found, .opaque = opaque};
    const struct engine_findings all = {.found = source_finding, .opaque = &run};
    struct vfmig_error unfit = {0};

    run.stall_ns = options->stall_ns ? options->stall_ns : UINT64_C(10000000000);
    if (!options->journal_dir)
        source_finding(&run, "there is no directory for the journal");
    else
        check_journal(options->journal_dir, &all);
    (void)engine_vm_check(vm, &all, NULL);
    if (options->local && engine_local_check(vm, uri, &unfit))
        source_finding(&run, unfit.text);
    engine_secure_name(&options->security, uri, run.tls_name, sizeof(run.tls_name));
    int ret = engine_secure_load(&options->security, /* server= */ false, &run.tls, reterr);
    if (ret == 0 && engine_secure_check(&options->security, uri, &unfit))
        source_finding(&run, unfit.text);
    else if (ret == 0)
        ret = ask_peer(&run, vm, options, reterr);
    vfmig_tls_creds_free(run.tls);
    if (ret == 0 && run.count)
        ret = vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0,
                              "the guest cannot be moved there");
    return ret;
}
