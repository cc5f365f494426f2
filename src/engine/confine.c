/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/sabotage.h"

static int refused(const char *what, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0, "%s cannot be had here: %s", what,
                           strerror(errno));
}

/* --- Landlock; its numbers are the kernel's ABI, whatever headers there are --- */

#define LANDLOCK_CREATE_RULESET 444
#define LANDLOCK_RESTRICT_SELF  446
#define LANDLOCK_ASK_VERSION    1u

struct landlock_ruleset {
    uint64_t files; /* what is refused unless a rule allows it, and there are none */
    uint64_t net;   /* from version 4 on */
};

/* How many kinds of access to files each version knows, from 1 on. */
static const unsigned file_kinds[] = {0, 13, 14, 15, 15, 16};
#define NEWEST ((long)(sizeof(file_kinds) / sizeof(file_kinds[0])) - 1)

int vfmig_confine_files(struct vfmig_error *reterr)
{
    long version = syscall(LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_ASK_VERSION);

    if (version < 1)
        return refused("Landlock", reterr);
    if (version > NEWEST)
        version = NEWEST;
    struct landlock_ruleset rules = {.files = (UINT64_C(1) << file_kinds[version]) - 1,
                                     .net = version >= 4 ? 3 : 0};
    size_t size = version >= 4 ? sizeof(rules) : sizeof(rules.files);
    int fd = (int)syscall(LANDLOCK_CREATE_RULESET, &rules, size, 0);
    if (fd < 0)
        return refused("Landlock", reterr);
    bool on = !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !syscall(LANDLOCK_RESTRICT_SELF, fd, 0);
    int ret = on ? 0 : refused("Landlock", reterr);
    close(fd);
    return ret;
}

/* --- capabilities, which are a thread's own --- */

static int drop_capabilities(struct vfmig_error *reterr)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &head, none))
        return refused("a thread without capabilities", reterr);
    return 0;
}

/* --- seccomp --- */

#ifdef __x86_64__

/* Receiving, answering, waiting, memory, the ends of threads; and what a run-time that watches memory asks
 * for. The first are the most frequent. */
static const uint16_t allowed[] = {
    SYS_recvmsg, SYS_sendmsg, SYS_poll, SYS_futex, SYS_recvfrom, SYS_sendto, SYS_ppoll, SYS_setsockopt,
    SYS_getsockopt, SYS_read, SYS_readv, SYS_write, SYS_writev, SYS_lseek, SYS_madvise, SYS_mincore,
    SYS_munmap, SYS_mremap, SYS_brk, SYS_fallocate, SYS_close, SYS_fcntl, SYS_fstat, SYS_newfstatat,
    SYS_fstatfs, SYS_shutdown, SYS_accept4, SYS_getsockname, SYS_getpeername, SYS_timerfd_settime, SYS_clock_gettime,
    SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_sched_yield, SYS_sched_getaffinity,
    SYS_getpid, SYS_gettid, SYS_getrandom, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack,
    SYS_rt_sigaction, SYS_restart_syscall, SYS_set_robust_list, SYS_membarrier, SYS_exit, SYS_exit_group,
#ifdef SYS_rseq
    SYS_rseq,
#endif
};
/* Their first argument is whom it is about. A signal: this process only, which may end (abort) as it likes. A
 * CPU to stay on: the thread itself. */
static const struct {
    uint16_t call;
    bool process; /* else 0 */
} about[] = {{SYS_tgkill, true}, {SYS_sched_setaffinity, false}};
/* Their third argument is what memory may be used for: never for code. */
static const uint16_t mapping[] = {SYS_mmap, SYS_mprotect};

#define ALLOWED  (sizeof(allowed) / sizeof(allowed[0]))
#define ABOUT    (sizeof(about) / sizeof(about[0]))
#define MAPPING  (sizeof(mapping) / sizeof(mapping[0]))
#define X32_BIT  0x40000000u
#define REFUSE   (SECCOMP_RET_ERRNO | EPERM)
#define OFFSET(field) (uint32_t) offsetof(struct seccomp_data, field)

static unsigned write_filter(struct sock_filter *at)
{
    struct sock_filter *begin = at;

    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, REFUSE);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(nr));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, REFUSE);
    for (size_t i = 0; i < ALLOWED; i++) {
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
        *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    for (size_t i = 0; i < ABOUT; i++) {
        uint32_t whom = about[i].process ? (uint32_t)getpid() : 0;
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, about[i].call, 0, 4);
        *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(args[0]));
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, whom, 0, 1);
        *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, REFUSE);
    }
    for (size_t i = 0; i < MAPPING; i++) {
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, mapping[i], 0, 4);
        *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(args[2]));
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0);
        *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, REFUSE);
    }
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, REFUSE);
    return (unsigned)(at - begin);
}

int vfmig_confine_calls(struct vfmig_error *reterr)
{
    struct sock_filter filter[7 + 2 * ALLOWED + 5 * ABOUT + 5 * MAPPING];
    struct sock_fprog program = {.len = (unsigned short)write_filter(filter), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return refused("a filter of system calls", reterr);
    return 0;
}

#else

int vfmig_confine_calls(struct vfmig_error *reterr)
{
    errno = ENOSYS;
    return refused("a filter of system calls", reterr);
}

#endif

int vfmig_confine(struct vfmig_error *reterr)
{
    if (vfmig_sabotage("unconfined"))
        return 0;
    (void)vfmig_confine_files(NULL);
    int ret = drop_capabilities(reterr);
    return ret ? ret : vfmig_confine_calls(reterr);
}

static void *confine_main(void *error)
{
    (void)vfmig_confine(error);
    return NULL;
}

int vfmig_confine_check(struct vfmig_error *reterr)
{
    struct vfmig_error error = {0};
    pthread_t thread;
    int ret = -pthread_create(&thread, NULL, confine_main, &error);

    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    pthread_join(thread, NULL);
    if (error.code && reterr)
        *reterr = error;
    return error.code;
}

int vfmig_confine_stray(struct vfmig_error *reterr)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd >= 0 ? vfmig_error_set(reterr, -EACCES, VFMIG_ORIGIN_LOCAL, 0,
                                     "a thread that receives has opened a file")
                   : 0;
}
