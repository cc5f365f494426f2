/* SPDX-License-Identifier: BSD-3-Clause */
/* First process of the interop guest: everything once, then it waits for the host to say how to
 * end ("reboot" or "off"). Each boot checks first that the devices are as after power on. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "interop/guest.h"

#define NULL_DEVICE 0x7fd1u
#define CONSOLE     "/dev/ttyS0"
#define COMMAND     0x04u
#define MEMORY      0x2u
#define BUS_MASTER  0x4u
#define MSIX_CAP    0x11u
#define WAIT_MS     30000u /* a bound for a guest under emulation */
#define MARK        UINT64_C(0x0123456789abcdef)

static void say(const char *verdict, const char *format, va_list args)
{
    printf("guest: %s: ", verdict);
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
}

void ok(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say("ok", format, args);
    va_end(args);
}

/* The first process must not end: the host sees the line and stops the machine. */
void failed(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say("FAILED", format, args);
    va_end(args);
    for (;;)
        pause();
}

static void open_console(void)
{
    struct termios mode;

    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int fd = open(CONSOLE, O_RDWR | O_NOCTTY);
    if (fd < 0)
        for (;;)
            pause(); /* nobody to tell */
    for (int to = 0; to < 3; to++)
        dup2(fd, to);
    if (fd > 2)
        close(fd);
    tcgetattr(0, &mode);
    mode.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(0, TCSANOW, &mode);
}

/* ---- what the kernel found ------------------------------------------------------------------- */

static void check_config(const struct function *fn)
{
    unsigned cap = find_capability(fn, MSIX_CAP);
    unsigned long long start, end, flags;
    char text[1024];

    if (!cap || config_read(fn, cap + 2, 2) != DMA_VECTORS - 1)
        failed("%s: no MSI-X capability with %u vectors, disabled", fn->name, DMA_VECTORS);
    if (config_read(fn, cap + 4, 4) != (DMA_MSIX_TABLE | DMA_BAR) ||
        config_read(fn, cap + 8, 4) != (DMA_MSIX_PBA | DMA_BAR))
        failed("%s: table or PBA are elsewhere", fn->name);
    function_read(fn, "resource", text, sizeof(text));
    if (sscanf(text, "%llx %llx %llx", &start, &end, &flags) != 3 || !start ||
        end - start != DMA_BAR_SIZE - 1)
        failed("%s: BAR 0 is %s", fn->name, text);
    if (config_read(fn, 0x10, 4) != ((uint32_t)start | 8)) /* prefetchable */
        failed("%s: BAR 0 reads %#x", fn->name, config_read(fn, 0x10, 4));
    ok("dma function %s: BAR 0 of 128 KiB at %#llx, MSI-X capability of 4 vectors", fn->name,
       start);
}

static void enable(const struct function *fn)
{
    function_write(fn, "enable", "1");
    config_write(fn, COMMAND, config_read(fn, COMMAND, 2) | MEMORY | BUS_MASTER, 2);
    if ((config_read(fn, COMMAND, 2) & (MEMORY | BUS_MASTER)) != (MEMORY | BUS_MASTER))
        failed("%s: COMMAND reads %#x", fn->name, config_read(fn, COMMAND, 2));
}

/* ---- BAR ------------------------------------------------------------------------------------- */

/* SRAM in one size of access and back in the others: bytes end where they belong. */
static void check_sizes(const struct driver *d)
{
    volatile uint8_t *sram = d->bar + DMA_SRAM;

    for (uint32_t i = 0; i < 4096; i++)
        sram[i] = (uint8_t)(i * 7);
    for (uint32_t i = 0; i < 4096; i += 2)
        if (*(volatile uint16_t *)(sram + i) !=
            (uint16_t)((uint8_t)(i * 7) | (uint8_t)(i * 7 + 7) << 8))
            failed("SRAM written by bytes reads wrong at %#x", i);
    for (uint32_t i = 0; i < 4096; i += 2)
        *(volatile uint16_t *)(sram + i) = (uint16_t)(i * 31);
    for (uint32_t i = 0; i < 4096; i += 4)
        if (*(volatile uint32_t *)(sram + i) !=
            ((uint16_t)(i * 31) | (uint32_t)(uint16_t)(i * 31 + 62) << 16))
            failed("SRAM written by 2 bytes reads wrong at %#x", i);
    for (uint32_t i = 0; i < DMA_SRAM_SIZE; i += 4)
        *(volatile uint32_t *)(sram + i) = i * 2654435761u;
    for (uint32_t i = 0; i < DMA_SRAM_SIZE; i += 8) {
        uint64_t want = (i * 2654435761u) | (uint64_t)((i + 4) * 2654435761u) << 32;
        if (*(volatile uint64_t *)(sram + i) != want)
            failed("SRAM written by 4 bytes reads wrong at %#x", i);
    }
}

static void check_bar(const struct driver *d)
{
    reg64_write(d, DMA_REG_SCRATCH, MARK);
    if (reg64(d, DMA_REG_SCRATCH) != MARK ||
        reg32(d, DMA_REG_SCRATCH + 4) != (uint32_t)(MARK >> 32))
        failed("the scratch register reads %#llx", (unsigned long long)reg64(d, DMA_REG_SCRATCH));
    reg32_write(d, DMA_REG_ID, 0);
    if (reg32(d, DMA_REG_ID) != DMA_ID)
        failed("the id register can be written");
    check_sizes(d);
    ok("BAR 0: registers of 4 and 8 bytes, 64 KiB SRAM in accesses of 1, 2, 4 and 8 bytes");
}

/* ---- reset ----------------------------------------------------------------------------------- */

static uint32_t completed(const struct driver *d)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < RING_ENTRIES; i++)
        n += __atomic_load_n(&d->ring[i].status, __ATOMIC_ACQUIRE) != 0;
    return n;
}

/* A full ring is under way when the function is reset: the device forgets it, and writes no memory
 * any more. */
static void check_reset(struct driver *d)
{
    const struct timespec a_while = {0, 500000000};
    char method[64];

    function_read(&d->fn, "reset_method", method, sizeof(method));
    method[strcspn(method, "\n")] = 0;
    reg64_write(d, DMA_REG_SCRATCH, MARK);
    for (uint32_t i = 0; i < RING_ENTRIES; i++)
        driver_queue(d, (struct dma_descriptor){
                            .op = DMA_OP_FILL, .dst = d->dst_gpa, .length = 8, .pattern = d->tail});
    driver_ring(d);
    uint64_t end = now_ms() + WAIT_MS;
    while (completed(d) < 3)
        if (now_ms() > end)
            failed("a full ring makes no progress");
    function_write(&d->fn, "reset", "1");
    uint32_t done = completed(d);
    uint64_t word = *(volatile uint64_t *)d->dst;
    driver_fresh(d, "after the reset");
    if ((config_read(&d->fn, COMMAND, 2) & (MEMORY | BUS_MASTER)) != (MEMORY | BUS_MASTER))
        failed("after the reset COMMAND reads %#x", config_read(&d->fn, COMMAND, 2));
    nanosleep(&a_while, NULL); /* longer than the rest of the ring would take */
    if (done == RING_ENTRIES)
        failed("no DMA was under way at the reset");
    if (completed(d) != done || *(volatile uint64_t *)d->dst != word)
        failed("the device writes memory after its reset");
    d->serial = d->chain = 0;
    ok("reset (%s) with DMA under way: %u of %u descriptors done, none after it, registers as new",
       method, done, RING_ENTRIES);
}

static void check_null(void)
{
    struct function fn;
    unsigned long long start;
    char text[1024];

    if (!function_find(&fn, DMA_PCI_VENDOR, NULL_DEVICE))
        failed("there is no null function, or more than one");
    function_read(&fn, "resource", text, sizeof(text));
    if (sscanf(text, "%llx", &start) != 1 || start || find_capability(&fn, MSIX_CAP))
        failed("the null function has a BAR or MSI-X");
    config_write(&fn, 0x3c, 0x5a, 1);
    if (config_read(&fn, 0x3c, 1) != 0x5a)
        failed("the null function's interrupt line register cannot be written");
    function_write(&fn, "reset", "1");
    if (config_read(&fn, 0x00, 4) != (DMA_PCI_VENDOR | NULL_DEVICE << 16))
        failed("the null function is gone after its reset");
    ok("null function %s: config space, reset", fn.name);
}

static void check_all(struct driver *d)
{
    char ids[32];

    if (!function_find(&d->fn, DMA_PCI_VENDOR, DMA_PCI_DEVICE))
        failed("there is no dma function, or more than one");
    check_config(&d->fn);
    enable(&d->fn);
    d->bar = bar_map(&d->fn, DMA_BAR, DMA_BAR_SIZE);
    driver_fresh(d, "at boot");
    ok("COMMAND: memory and bus master on; registers as after power on");
    check_bar(d);
    snprintf(ids, sizeof(ids), "%x %x", DMA_PCI_VENDOR, DMA_PCI_DEVICE);
    module_load("/irqs.ko");
    file_write("/sys/bus/pci/drivers/vfmig-irqs/new_id", ids);
    driver_start(d);
    check_dma(d);
    check_irqs(d);
    check_masks(d);
    check_reset(d);
    driver_start(d);
    check_dma(d);
    check_irqs(d);
    check_irq_counts(d, "at the end");
    check_null();
}

static void set_up(struct driver *d)
{
    uint64_t unused;

    file_write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8");
    d->ring = (struct dma_descriptor *)huge_page(&d->ring_gpa);
    d->src = huge_page(&d->src_gpa);
    d->dst = huge_page(&d->dst_gpa);
    d->model = huge_page(&unused);
    d->random = now_ms();
}

int main(void)
{
    static struct driver d;
    struct utsname uts;
    char line[64];

    open_console();
    uname(&uts);
    printf("guest: boot: Linux %s, %ld CPUs\n", uts.release, sysconf(_SC_NPROCESSORS_ONLN));
    set_up(&d);
    check_all(&d);
    /* Left in use, so that a reboot finds something to reset. */
    reg64_write(&d, DMA_REG_SCRATCH, MARK);
    for (uint32_t i = 0; i < RING_ENTRIES; i++)
        driver_queue(&d, (struct dma_descriptor){.op = DMA_OP_FILL, .dst = d.dst_gpa, .length = 8});
    driver_ring(&d);
    printf("guest: done: waits for the host\n");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        if (strncmp(line, "reboot", 6) == 0)
            reboot(RB_AUTOBOOT);
        if (strncmp(line, "off", 3) == 0)
            reboot(RB_POWER_OFF);
    }
    failed("the console ended: %s", strerror(errno));
}
