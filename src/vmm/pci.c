/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/pci.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/sabotage.h"

/* Configuration space, PCI Local Bus 3.0 section 6.1 and 6.8.2. */
#define CONFIG_COMMAND    0x04u
#define CONFIG_STATUS     0x06u
#define CONFIG_CACHE_LINE 0x0cu
#define CONFIG_BAR0       0x10u
#define CONFIG_CAP        0x34u
#define CONFIG_INTERRUPT  0x3cu
#define COMMAND_MEMORY    0x2u
#define COMMAND_MASTER    0x4u
#define STATUS_CAP_LIST   0x10u
#define BAR_IO            0x1u
#define BAR_TYPE_64       0x4u
#define BAR_TYPE_MASK     0x6u
#define BAR_PREFETCHABLE  0x8u
#define CAP_MSIX          0x11u
#define CAP_MAX           48u /* capabilities that fit in 192 bytes: ends a list that loops */
#define MSIX_CONTROL      2u
#define MSIX_TABLE        4u
#define MSIX_PBA          8u
#define MSIX_ENABLE       0x8000u
#define MSIX_MASK_ALL     0x4000u
#define MSIX_SIZE_MASK    0x7ffu
#define MSIX_BIR_MASK     0x7u
#define MSIX_ENTRY_BYTES  16u
#define ENTRY_MASKED      0x1u

static int config_read(struct vfmig_pci *pci, uint32_t offset, void *data, uint32_t size,
                       struct vfmig_error *reterr)
{
    return pci->target->ops->region_read(pci->target, VFMIG_PCI_CONFIG, offset, data, size, reterr);
}

static int config_write(struct vfmig_pci *pci, uint32_t offset, const void *data, uint32_t size,
                        struct vfmig_error *reterr)
{
    return pci->target->ops->region_write(pci->target, VFMIG_PCI_CONFIG, offset, data, size, false,
                                          reterr);
}

static int refuse(struct vfmig_pci *pci, struct vfmig_error *reterr, const char *what)
{
    return vfmig_error_set(reterr, -ENODEV, VFMIG_ORIGIN_DEVICE, 0, "device %s: %s", pci->id, what);
}

static uint16_t word_at(const uint8_t *config, uint32_t offset)
{
    return (uint16_t)(config[offset] | config[offset + 1] << 8);
}

static uint32_t dword_at(const uint8_t *config, uint32_t offset)
{
    return word_at(config, offset) | (uint32_t)word_at(config, offset + 2) << 16;
}

/* Finds MSI-X in a capability list that the device may have made up. */
static int find_msix(struct vfmig_pci *pci, const uint8_t *config, struct vfmig_error *reterr)
{
    uint8_t cap = config[CONFIG_CAP] & 0xfc;

    if (!(word_at(config, CONFIG_STATUS) & STATUS_CAP_LIST))
        return 0;
    for (unsigned i = 0; cap && i < CAP_MAX; i++, cap = config[cap + 1] & 0xfc) {
        if (cap < 0x40 || cap > VFMIG_PCI_CONFIG_BYTES - 12)
            return refuse(pci, reterr, "its list of capabilities leaves configuration space");
        if (config[cap] != CAP_MSIX)
            continue;
        uint32_t vectors = (word_at(config, cap + MSIX_CONTROL) & MSIX_SIZE_MASK) + 1u;
        uint32_t table = dword_at(config, cap + MSIX_TABLE);
        uint32_t bar = table & MSIX_BIR_MASK;
        uint32_t offset = table & ~MSIX_BIR_MASK;
        if (bar >= VFMIG_PCI_BARS ||
            offset + (uint64_t)vectors * MSIX_ENTRY_BYTES > pci->target->info.region_size[bar])
            return refuse(pci, reterr, "its MSI-X table is not inside one of its BARs");
        pci->msix_cap = cap;
        pci->table_bar = (uint8_t)bar;
        pci->table_offset = offset;
        uint32_t pba = dword_at(config, cap + MSIX_PBA);
        if ((pba & MSIX_BIR_MASK) >= VFMIG_PCI_BARS ||
            (pba & ~MSIX_BIR_MASK) + (uint64_t)(vectors + 63) / 64 * 8 >
                pci->target->info.region_size[pba & MSIX_BIR_MASK])
            return refuse(pci, reterr, "its MSI-X pending bits are not inside one of its BARs");
        pci->pba_bar = pba & MSIX_BIR_MASK;
        pci->pba_offset = pba & ~MSIX_BIR_MASK;
        pci->table_entries = vectors;
        pci->vectors = vectors < VFMIG_PCI_MAX_VECTORS ? vectors : VFMIG_PCI_MAX_VECTORS;
        if (pci->vectors > pci->target->info.irq_count[VFMIG_PCI_IRQ_MSIX])
            return refuse(pci, reterr, "it has more MSI-X vectors than interrupts");
        return 0;
    }
    return 0;
}

static int place_bars(struct vfmig_pci *pci, const uint8_t *config, uint64_t *window,
                      struct vfmig_error *reterr)
{
    for (unsigned i = 0; i < VFMIG_PCI_BARS; i++) {
        uint64_t size = pci->target->info.region_size[i];
        uint32_t bar = dword_at(config, CONFIG_BAR0 + 4 * i);
        if (!size || (bar & BAR_IO))
            continue;
        uint64_t room = VFMIG_PCI_WINDOW_STEP;
        while (room < size && room <= VFMIG_PCI_WINDOW_END)
            room *= 2; /* BARs are powers of two, at their natural alignment */
        uint64_t gpa = (*window + room - 1) & ~(room - 1);
        if (room < size || gpa + room > VFMIG_PCI_WINDOW_END)
            return refuse(pci, reterr, "no room for its BARs");
        pci->bars[i] = (struct vfmig_pci_bar){
            .gpa = gpa, .size = size, .prefetchable = bar & BAR_PREFETCHABLE};
        *window = gpa + room;
    }
    return 0;
}

int vfmig_pci_init(struct vfmig_pci *pci, uint32_t index, const char *id,
                   struct vfmig_target *target, uint64_t *window, struct vfmig_error *reterr)
{
    uint8_t config[VFMIG_PCI_CONFIG_BYTES];

    *pci = (struct vfmig_pci){.index = index, .target = target};
    snprintf(pci->id, sizeof(pci->id), "%s", id);
    int ret = config_read(pci, 0, config, sizeof(config), reterr);
    if (!ret)
        ret = find_msix(pci, config, reterr);
    if (!ret)
        ret = place_bars(pci, config, window, reterr);
    if (ret) {
        pci->target = NULL; /* stays the caller's */
        return ret;
    }
    for (unsigned i = 0; i < VFMIG_PCI_MAX_VECTORS; i++)
        pci->table[i].control = ENTRY_MASKED; /* as after power-on */
    pthread_mutex_init(&pci->lock, NULL);
    return 0;
}

void vfmig_pci_done(struct vfmig_pci *pci)
{
    if (!pci->target)
        return;
    pci->target->ops->close(pci->target);
    pthread_mutex_destroy(&pci->lock);
    pci->target = NULL;
}

/* Route of one vector for KVM; returns its eventfd. */
static int route(struct vfmig_pci *pci, uint32_t vector, struct vfmig_error *reterr)
{
    const struct vfmig_pci_msix_entry *entry = &pci->table[vector];

    return vfmig_machine_msi_eventfd(pci->machine, pci->index * VFMIG_PCI_MAX_VECTORS + vector,
                                     entry->address ? entry->address : GUEST_MSI_BASE, entry->data,
                                     reterr);
}

static int connect_vectors(struct vfmig_pci *pci, struct vfmig_error *reterr)
{
    int fds[VFMIG_PCI_MAX_VECTORS];

    for (uint32_t vector = 0; vector < pci->vectors; vector++) {
        fds[vector] = route(pci, vector, reterr);
        if (fds[vector] < 0)
            return fds[vector];
    }
    if (!pci->vectors)
        return 0;
    return pci->target->ops->set_irqs(pci->target, VFMIG_PCI_IRQ_MSIX, 0, pci->vectors, fds, reterr);
}

static int write_bars(struct vfmig_pci *pci, struct vfmig_error *reterr)
{
    for (unsigned i = 0; i < VFMIG_PCI_BARS; i++) {
        uint32_t old;
        if (!pci->bars[i].size)
            continue;
        int ret = config_read(pci, CONFIG_BAR0 + 4 * i, &old, sizeof(old), reterr);
        uint32_t parts[2] = {htole32((uint32_t)pci->bars[i].gpa), 0};
        bool wide = !ret && (le32toh(old) & BAR_TYPE_MASK) == BAR_TYPE_64;
        for (unsigned part = 0; !ret && part < (wide ? 2u : 1u); part++)
            ret = config_write(pci, CONFIG_BAR0 + 4 * (i + part), &parts[part], 4, reterr);
        if (ret)
            return ret;
    }
    return 0;
}

static int write_word(struct vfmig_pci *pci, uint32_t offset, uint16_t value,
                      struct vfmig_error *reterr)
{
    uint16_t word = htole16(value);
    return config_write(pci, offset, &word, sizeof(word), reterr);
}

int vfmig_pci_start(struct vfmig_pci *pci, struct vfmig_machine *machine,
                    struct vfmig_error *reterr)
{
    pci->machine = machine;
    int ret = write_bars(pci, reterr);
    if (!ret)
        ret = connect_vectors(pci, reterr);
    if (!ret && pci->vectors)
        ret = write_word(pci, pci->msix_cap + MSIX_CONTROL, MSIX_ENABLE, reterr);
    if (!ret)
        ret = write_word(pci, CONFIG_COMMAND, COMMAND_MEMORY | COMMAND_MASTER, reterr);
    return ret;
}

const struct vfmig_pci_bar *vfmig_pci_find(const struct vfmig_pci *pci, uint64_t gpa, uint32_t size)
{
    for (unsigned i = 0; i < VFMIG_PCI_BARS; i++) {
        const struct vfmig_pci_bar *bar = &pci->bars[i];
        if (bar->size >= size && gpa >= bar->gpa && gpa - bar->gpa <= bar->size - size)
            return bar;
    }
    return NULL;
}

/* The guest's write is in the shadow before the device sees it: a vector unmasked by this very
 * write may fire at once. Returns false when the access is not to the table. */
static bool table_write(struct vfmig_pci *pci, uint32_t bar, uint64_t offset, const void *data,
                        uint32_t size)
{
    uint64_t table_size = (uint64_t)pci->vectors * MSIX_ENTRY_BYTES;

    if (!pci->vectors || bar != pci->table_bar || offset < pci->table_offset ||
        offset - pci->table_offset + size > table_size || (size != 4 && size != 8))
        return false;
    offset -= pci->table_offset;
    uint32_t vector = (uint32_t)(offset / MSIX_ENTRY_BYTES);
    uint8_t raw[MSIX_ENTRY_BYTES];
    struct vfmig_pci_msix_entry *entry = &pci->table[vector];
    pthread_mutex_lock(&pci->lock);
    memcpy(raw, &(uint64_t){htole64(entry->address)}, 8);
    memcpy(raw + 8, &(uint32_t){htole32(entry->data)}, 4);
    memcpy(raw + 12, &(uint32_t){htole32(entry->control)}, 4);
    memcpy(raw + offset % MSIX_ENTRY_BYTES, data, size);
    entry->address = dword_at(raw, 0) | (uint64_t)dword_at(raw, 4) << 32;
    entry->data = dword_at(raw, 8);
    entry->control = dword_at(raw, 12);
    if (!(entry->control & ENTRY_MASKED) && route(pci, vector, NULL) < 0)
        pci->failures++;
    pthread_mutex_unlock(&pci->lock);
    return true;
}

void vfmig_pci_access(struct vfmig_pci *pci, const struct vfmig_pci_bar *bar, uint64_t gpa,
                      bool is_write, void *data, uint32_t size)
{
    uint32_t index = (uint32_t)(bar - pci->bars);
    uint64_t offset = gpa - bar->gpa;
    const struct vfmig_target_ops *ops = pci->target->ops;

    if (!is_write) {
        pci->reads++;
        if (ops->region_read(pci->target, index, offset, data, size, NULL)) {
            pci->failures++;
            memset(data, 0xff, size);
        }
        return;
    }
    pci->writes++;
    bool is_table = table_write(pci, index, offset, data, size);
    if (ops->region_write(pci->target, index, offset, data, size, !is_table, NULL))
        pci->failures++;
}

/* The largest naturally aligned piece, 8 bytes at most. */
static uint32_t bus_piece(uint64_t offset, uint32_t size)
{
    uint32_t piece = 8;

    while (piece > size || offset % piece)
        piece /= 2;
    return piece;
}

int vfmig_pci_forward(struct vfmig_pci *pci, const struct vfmig_pci_bar *bar, uint64_t gpa,
                      bool is_write, void *data, uint32_t size)
{
    const struct vfmig_target_ops *ops = pci->target->ops;
    uint32_t index = (uint32_t)(bar - pci->bars);
    uint64_t offset = gpa - bar->gpa;
    char *bytes = data;

    (*(is_write ? &pci->peer_writes : &pci->peer_reads))++;
    while (size) {
        uint32_t piece = bar->prefetchable ? size : bus_piece(offset, size);
        int ret = is_write ? ops->region_write(pci->target, index, offset, bytes, piece,
                                               /* posted= */ true, NULL)
                           : ops->region_read(pci->target, index, offset, bytes, piece, NULL);
        if (ret) {
            pci->peer_failures++;
            return -EIO;
        }
        offset += piece;
        bytes += piece;
        size -= piece;
    }
    return 0;
}

uint32_t vfmig_pci_pending(struct vfmig_pci *pci)
{
    uint64_t bits = 0;

    if (pci->vectors && pci->target->ops->region_read(pci->target, pci->pba_bar, pci->pba_offset,
                                                      &bits, sizeof(bits), NULL))
        return 0;
    return (uint32_t)__builtin_popcountll(bits);
}

/* What travels; little-endian, version first. The table follows, vectors times 16 bytes. */
struct saved_pci {
    uint32_t version;
    uint32_t vectors;
    uint64_t bar_gpa[VFMIG_PCI_BARS];
    uint8_t config[VFMIG_PCI_CONFIG_BYTES];
} __attribute__((packed));

struct saved_entry {
    uint64_t address;
    uint32_t data;
    uint32_t control;
} __attribute__((packed));

_Static_assert(sizeof(struct saved_pci) + VFMIG_PCI_MAX_VECTORS * sizeof(struct saved_entry) <=
                   VFMIG_PCI_MAX_SAVED,
               "a device's PCI state is bounded");
_Static_assert(sizeof(struct saved_entry) == MSIX_ENTRY_BYTES, "an entry is as in the BAR");

#define SAVED_VERSION 1u

static void save_table(const struct vfmig_pci *pci, struct saved_entry *ret_entries)
{
    for (uint32_t i = 0; i < pci->vectors; i++)
        ret_entries[i] = (struct saved_entry){.address = htole64(pci->table[i].address),
                                              .data = htole32(pci->table[i].data),
                                              .control = htole32(pci->table[i].control)};
}

int vfmig_pci_save(struct vfmig_pci *pci, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct saved_entry entries[VFMIG_PCI_MAX_VECTORS];
    struct saved_pci saved = {.version = htole32(SAVED_VERSION), .vectors = htole32(pci->vectors)};

    for (unsigned i = 0; i < VFMIG_PCI_BARS; i++)
        saved.bar_gpa[i] = htole64(pci->bars[i].gpa);
    int ret = config_read(pci, 0, saved.config, sizeof(saved.config), reterr);
    if (ret)
        return ret;
    memcpy(pci->config, saved.config, sizeof(pci->config));
    pci->saved = true;
    ret = vfmig_buffer_append(out, &saved, sizeof(saved));
    /* The first copy is taken while vCPUs run, and write the table. */
    pthread_mutex_lock(&pci->lock);
    save_table(pci, entries);
    pthread_mutex_unlock(&pci->lock);
    if (!ret)
        ret = vfmig_buffer_append(out, entries, pci->vectors * sizeof(entries[0]));
    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0,
                               "device %s: no memory for its PCI state", pci->id);
    return 0;
}

static int check_saved(struct vfmig_pci *pci, const struct saved_pci *saved, size_t size,
                       struct vfmig_error *reterr)
{
    uint8_t config[VFMIG_PCI_CONFIG_BYTES];
    const char *why = NULL;

    if (size < sizeof(*saved) || le32toh(saved->version) != SAVED_VERSION)
        why = "its PCI state has an unknown format";
    else if (le32toh(saved->vectors) != pci->vectors ||
             size != sizeof(*saved) + (size_t)pci->vectors * sizeof(struct saved_entry))
        why = "its number of MSI-X vectors differs";
    for (unsigned i = 0; !why && i < VFMIG_PCI_BARS; i++)
        if (le64toh(saved->bar_gpa[i]) != pci->bars[i].gpa)
            why = "its BARs are at other addresses";
    if (why)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "device %s: %s", pci->id, why);
    int ret = config_read(pci, 0, config, sizeof(config), reterr);
    if (ret)
        return ret;
    if (memcmp(config, saved->config, 4))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "device %s: it is not the kind of device that was saved", pci->id);
    return 0;
}

/* Only what software may write: the rest is the device's own, and status bits clear on write. */
static int load_config(struct vfmig_pci *pci, const uint8_t *config, struct vfmig_error *reterr)
{
    int ret = config_write(pci, CONFIG_CACHE_LINE, &config[CONFIG_CACHE_LINE], 2, reterr);

    if (!ret)
        ret = write_bars(pci, reterr);
    if (!ret)
        ret = config_write(pci, CONFIG_INTERRUPT, &config[CONFIG_INTERRUPT], 1, reterr);
    if (!ret && pci->vectors)
        ret = write_word(pci, pci->msix_cap + MSIX_CONTROL,
                         word_at(config, pci->msix_cap + MSIX_CONTROL) &
                             (MSIX_ENABLE | MSIX_MASK_ALL),
                         reterr);
    if (!ret)
        ret = config_write(pci, CONFIG_COMMAND, &config[CONFIG_COMMAND], 2, reterr);
    return ret;
}

/* Quadwords, as software may write the table (PCI 3.0, 6.8.2). */
static int load_table(struct vfmig_pci *pci, const struct saved_entry *entries,
                      struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; !ret && i < 2 * pci->vectors; i++)
        ret = pci->target->ops->region_write(pci->target, pci->table_bar, pci->table_offset + 8 * i,
                                             (const uint8_t *)entries + 8 * i, 8, false, reterr);
    return ret;
}

int vfmig_pci_restore(struct vfmig_pci *pci, struct vfmig_error *reterr)
{
    struct saved_entry entries[VFMIG_PCI_MAX_VECTORS];

    if (!pci->saved)
        return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_LOCAL, 0,
                               "device %s: its configuration was never saved", pci->id);
    int ret = load_config(pci, pci->config, reterr);
    if (!ret)
        ret = connect_vectors(pci, reterr);
    pthread_mutex_lock(&pci->lock);
    save_table(pci, entries);
    if (!ret)
        ret = load_table(pci, entries, reterr);
    pthread_mutex_unlock(&pci->lock);
    return ret;
}

int vfmig_pci_load(struct vfmig_pci *pci, const void *data, size_t size, struct vfmig_error *reterr)
{
    const struct saved_pci *saved = data;
    int ret = check_saved(pci, saved, size, reterr);

    if (ret)
        return ret;
    const struct saved_entry *entries = (const struct saved_entry *)(saved + 1);
    for (uint32_t i = 0; i < pci->vectors; i++)
        pci->table[i] = (struct vfmig_pci_msix_entry){.address = le64toh(entries[i].address),
                                                      .data = le32toh(entries[i].data),
                                                      .control = le32toh(entries[i].control)};
    ret = load_config(pci, saved->config, reterr);
    if (!ret)
        ret = connect_vectors(pci, reterr);
    if (ret || vfmig_sabotage("msix-table-stays-behind"))
        return ret;
    return load_table(pci, entries, reterr);
}
