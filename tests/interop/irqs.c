/* SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only */
/* Linux module of the interop guest: takes the MSI-X vectors of a PCI function and counts their
 * interrupts, for the guest program to read in the function's sysfs file irq_counts. Everything
 * else about the function is left to that program. The functions it takes are named to it through
 * new_id. */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/pci.h>

#define VECTORS 4

struct irqs {
    atomic_t count[VECTORS];
};

static irqreturn_t came(int irq, void *count)
{
    atomic_inc(count);
    return IRQ_HANDLED;
}

static ssize_t irq_counts_show(struct device *dev, struct device_attribute *attr, char *buf)
{
    struct irqs *irqs = dev_get_drvdata(dev);
    int n = 0;

    for (int v = 0; v < VECTORS; v++)
        n += sysfs_emit_at(buf, n, "%d%c", atomic_read(&irqs->count[v]),
                           v + 1 < VECTORS ? ' ' : '\n');
    return n;
}
static DEVICE_ATTR_RO(irq_counts);

static struct attribute *irqs_attrs[] = {&dev_attr_irq_counts.attr, NULL};
ATTRIBUTE_GROUPS(irqs);

static int irqs_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
    struct irqs *irqs = devm_kzalloc(&pdev->dev, sizeof(*irqs), GFP_KERNEL);

    if (!irqs)
        return -ENOMEM;
    dev_set_drvdata(&pdev->dev, irqs);
    int r = pcim_enable_device(pdev);
    if (r)
        return r;
    pci_set_master(pdev);
    r = pci_alloc_irq_vectors(pdev, VECTORS, VECTORS, PCI_IRQ_MSIX);
    if (r < 0)
        return r;
    for (int v = 0; v < VECTORS; v++) {
        r = devm_request_irq(&pdev->dev, pci_irq_vector(pdev, v), came, 0, "vfmig-irqs",
                             &irqs->count[v]);
        if (r)
            return r;
    }
    return 0;
}

static struct pci_driver irqs_driver = {
    .name = "vfmig-irqs",
    .probe = irqs_probe,
    .dev_groups = irqs_groups,
};
module_pci_driver(irqs_driver);

MODULE_DESCRIPTION("counts the MSI-X interrupts of a PCI function");
MODULE_LICENSE("Dual BSD/GPL");
