/* SPDX-License-Identifier: BSD-3-Clause */
/* What all ports share: the memory they hand out, and their trouble. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check/kernel.h"
#include "check/port.h"
#include "wire/proto.h"

const char *check_trouble_name(enum check_trouble trouble)
{
    static const char *const names[] = {"fine", "hung", "died", "broken", "flooding"};

    return (unsigned)trouble < sizeof(names) / sizeof(names[0]) ? names[trouble] : "unknown";
}

int check_port_init(struct check_port *port, struct vfmig_error *reterr)
{
    port->memory = MAP_FAILED;
    memset(port->irq_fd, -1, sizeof(port->irq_fd));
    port->memory_fd = memfd_create("vfmig-check", MFD_CLOEXEC);
    if (port->memory_fd >= 0 && ftruncate(port->memory_fd, CHECK_MEMORY) == 0)
        port->memory =
            mmap(NULL, CHECK_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, port->memory_fd, 0);
    if (port->memory == MAP_FAILED)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for the device under test: %s", strerror(errno));
    for (unsigned i = 0; i < CHECK_MAX_VECTORS; i++)
        if ((port->irq_fd[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
            return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "no eventfd: %s",
                                   strerror(errno));
    return 0;
}

void check_port_done(struct check_port *port)
{
    if (port->memory != MAP_FAILED)
        munmap(port->memory, CHECK_MEMORY);
    if (port->memory_fd >= 0)
        close(port->memory_fd);
    for (unsigned i = 0; i < CHECK_MAX_VECTORS; i++)
        if (port->irq_fd[i] >= 0)
            close(port->irq_fd[i]);
}

void check_port_trouble(struct check_port *port, enum check_trouble trouble, const char *format,
                        ...)
{
    va_list args;

    if (port->trouble)
        return;
    port->trouble = trouble;
    va_start(args, format);
    vsnprintf(port->trouble_text, sizeof(port->trouble_text), format, args);
    va_end(args);
}

bool check_port_log_page_fits(uint64_t page)
{
    return page >= CHECK_MIN_LOG_PAGE && page <= CHECK_MAX_LOG_PAGE && !(page & (page - 1));
}

/* PCI: capabilities of config space. */
#define PCI_STATUS      0x06u
#define PCI_STATUS_CAPS 0x10u
#define PCI_CAPS        0x34u
#define PCI_CAP_MSIX    0x11u
#define PCI_MAX_CAPS    48u

static bool config_read(struct check_port *port, uint64_t offset, void *data, uint32_t size)
{
    struct check_step step = {.kind = CHECK_STEP_REGION_READ,
                              .arg = {VFMIG_REGION_CONFIG, offset, size},
                              .room = data,
                              .room_size = size};

    port->ops->run(port, &step);
    return step.result == size;
}

static void look_at_msix(struct check_port *port, uint8_t at)
{
    struct check_facts *facts = &port->facts;
    uint16_t control;
    uint32_t table, pba;

    if (!config_read(port, at + 2u, &control, 2) || !config_read(port, at + 4u, &table, 4) ||
        !config_read(port, at + 8u, &pba, 4))
        return;
    facts->msix_vectors = (control & 0x7ffu) + 1;
    facts->msix_bar = table & 7;
    facts->msix_table = table & ~7u;
    facts->msix_pba_bar = pba & 7;
    facts->msix_pba = pba & ~7u;
    facts->msix_control = at + 2u;
}

void check_port_look_at_pci(struct check_port *port)
{
    struct check_facts *facts = &port->facts;
    uint8_t head[64], cap[2];

    if (facts->region_count <= VFMIG_REGION_CONFIG ||
        facts->region_size[VFMIG_REGION_CONFIG] < 256 || !config_read(port, 0, head, sizeof(head)))
        return;
    facts->pci = true;
    memcpy(&facts->pci_vendor, head, 2);
    memcpy(&facts->pci_device, head + 2, 2);
    uint8_t at = head[PCI_STATUS] & PCI_STATUS_CAPS ? head[PCI_CAPS] & 0xfcu : 0;
    for (unsigned i = 0; at >= 64 && i < PCI_MAX_CAPS && config_read(port, at, cap, 2); i++) {
        if (cap[0] == PCI_CAP_MSIX)
            look_at_msix(port, at);
        at = cap[1] & 0xfcu;
    }
}

/* Kinds of target, by what their names begin with. */
static const struct {
    const char *prefix;
    int (*open)(const char *rest, uint32_t deadline_ms, struct check_port **ret_port,
                struct vfmig_error *reterr);
} kinds[] = {
    {"vfio-user:", check_user_open},
    {"vfio:", check_kernel_open},
    {"vfio-group:", check_kernel_group_open},
};

/* What the very first connection finds: later ones follow a reset. */
static void note_first_state(struct check_port *port)
{
    for (unsigned d = CHECK_DIALECT_REGION; d <= CHECK_DIALECT_FEATURE; d++) {
        struct check_step step = {.kind = CHECK_STEP_STATE_GET};
        if (!(port->facts.dialects & d))
            continue;
        port->dialect = (enum check_dialect)d;
        port->ops->run(port, &step);
        port->facts.first_raw[d] = step.result < 0 ? UINT32_MAX : (uint32_t)step.value;
    }
}

int check_port_open(const char *target, uint32_t deadline_ms, struct check_port **ret_port,
                    struct vfmig_error *reterr)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strncmp(target, kinds[i].prefix, strlen(kinds[i].prefix)))
            continue;
        int r = kinds[i].open(target + strlen(kinds[i].prefix), deadline_ms, ret_port, reterr);
        if (r == 0)
            note_first_state(*ret_port);
        return r;
    }
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                           "%s: not a target; vfio-user:PATH, vfio:PATH and "
                           "vfio-group:N:NAME are",
                           target);
}

void check_port_free(struct check_port *port)
{
    if (port)
        port->ops->free(port);
}
