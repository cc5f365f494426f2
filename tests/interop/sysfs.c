/* SPDX-License-Identifier: BSD-3-Clause */
/* How the interop guest reaches a PCI function, modules and physical memory: files of the kernel.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "interop/guest.h"

#define DEVICES     "/sys/bus/pci/devices"
#define PAGEMAP_PFN ((UINT64_C(1) << 55) - 1)
#define PAGEMAP_IN  (UINT64_C(1) << 63)
#define PAGE        4096u

static int open_file(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);

    if (fd < 0)
        failed("cannot open %s: %s", path, strerror(errno));
    return fd;
}

void file_write(const char *path, const char *text)
{
    int fd = open_file(path, O_WRONLY);

    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        failed("cannot write '%s' to %s: %s", text, path, strerror(errno));
    close(fd);
}

static int function_open(const struct function *fn, const char *file, int flags)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", fn->folder, file);
    return open_file(path, flags);
}

void function_write(const struct function *fn, const char *file, const char *text)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", fn->folder, file);
    file_write(path, text);
}

void function_read(const struct function *fn, const char *file, char *text, size_t size)
{
    int fd = function_open(fn, file, O_RDONLY);
    ssize_t n = read(fd, text, size - 1);

    if (n < 0)
        failed("cannot read %s of %s: %s", file, fn->name, strerror(errno));
    text[n] = 0;
    close(fd);
}

static uint32_t function_number(const struct function *fn, const char *file)
{
    char text[32];

    function_read(fn, file, text, sizeof(text));
    return (uint32_t)strtoul(text, NULL, 0);
}

bool function_find(struct function *fn, uint32_t vendor, uint32_t device)
{
    DIR *dir = opendir(DEVICES);
    struct dirent *entry;
    unsigned found = 0;

    while (dir && (entry = readdir(dir))) {
        struct function it;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(it.name, sizeof(it.name), "%.31s", entry->d_name);
        snprintf(it.folder, sizeof(it.folder), DEVICES "/%.31s", entry->d_name);
        if (function_number(&it, "vendor") != vendor || function_number(&it, "device") != device)
            continue;
        *fn = it;
        found++;
    }
    if (dir)
        closedir(dir);
    return found == 1;
}

uint32_t config_read(const struct function *fn, unsigned offset, unsigned bytes)
{
    uint32_t value = 0;
    int fd = function_open(fn, "config", O_RDONLY);

    if (pread(fd, &value, bytes, offset) != (ssize_t)bytes)
        failed("cannot read config %#x of %s", offset, fn->name);
    close(fd);
    return value;
}

void config_write(const struct function *fn, unsigned offset, uint32_t value, unsigned bytes)
{
    int fd = function_open(fn, "config", O_WRONLY);

    if (pwrite(fd, &value, bytes, offset) != (ssize_t)bytes)
        failed("cannot write config %#x of %s", offset, fn->name);
    close(fd);
}

/* Offset of a capability, 0 when there is none. */
unsigned find_capability(const struct function *fn, unsigned id)
{
    unsigned at = config_read(fn, 0x34, 1), seen = 0;

    if (!(config_read(fn, 0x06, 2) & 0x10))
        return 0;
    while (at >= 0x40 && seen++ < 48 && config_read(fn, at, 1) != id)
        at = config_read(fn, at + 1, 1);
    return at >= 0x40 && seen < 48 ? at : 0;
}

volatile uint8_t *bar_map(const struct function *fn, unsigned bar, size_t size)
{
    char file[16];

    snprintf(file, sizeof(file), "resource%u", bar);
    int fd = function_open(fn, file, O_RDWR);
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        failed("cannot map %s of %s: %s", file, fn->name, strerror(errno));
    close(fd);
    return map;
}

void module_load(const char *path)
{
    int fd = open_file(path, O_RDONLY);

    if (syscall(SYS_finit_module, fd, "", 0) < 0)
        failed("cannot load %s: %s", path, strerror(errno));
    close(fd);
}

static uint64_t physical(const void *at)
{
    uint64_t entry = 0;
    int fd = open_file("/proc/self/pagemap", O_RDONLY);

    if (pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)at / PAGE * sizeof(entry))) !=
            sizeof(entry) ||
        !(entry & PAGEMAP_IN) || !(entry & PAGEMAP_PFN))
        failed("the kernel does not tell where %p is", at);
    close(fd);
    return (entry & PAGEMAP_PFN) * PAGE;
}

/* Zeroed memory that stays where it is, in one piece. */
uint8_t *huge_page(uint64_t *ret_gpa)
{
    uint8_t *at = mmap(NULL, HUGE_PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);

    if (at == MAP_FAILED)
        failed("no huge page: %s", strerror(errno));
    memset(at, 0, HUGE_PAGE);
    *ret_gpa = physical(at);
    for (uint32_t offset = 0; offset < HUGE_PAGE; offset += PAGE)
        if (physical(at + offset) != *ret_gpa + offset)
            failed("a huge page is in pieces");
    return at;
}
