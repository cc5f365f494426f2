/* SPDX-License-Identifier: BSD-3-Clause */
/* Negotiation, description, regions, memory and interrupts, as any vfio-user client sees them. */
#include "peer.h"
#include "toy.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct toy *toy;
static struct peer *peer;

static int start(void **state)
{
    toy = toy_new(true, true, true, 0);
    peer = peer_start(toy->dev);
    return peer_version(peer, NULL);
}

static int start_silent(void **state)
{
    toy = toy_new(true, true, true, 0);
    peer = peer_start(toy->dev);
    return 0;
}

static int stop(void **state)
{
    peer_end(peer);
    toy_free(toy);
    return 0;
}

static void qemu_version_is_answered_in_kind(void **state)
{
    static const char json[] =
        "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,"
        "\"max_dma_maps\":65535,\"pgsizes\":4096,\"migration\":{\"pgsize\":4096,"
        "\"max_bitmap_size\":268435456},\"write_multiple\":true}}";
    struct vfmig_user_version version;

    assert_int_equal(peer_version(peer, json), 0);
    memcpy(&version, peer->reply, sizeof(version));
    assert_int_equal(version.major, 0);
    assert_int_equal(version.minor, 2);
    const char *text = (char *)peer->reply + sizeof(version);
    assert_true(peer->reply_size <= sizeof(version) + 194);
    assert_int_equal(text[peer->reply_size - sizeof(version) - 1], 0);
    assert_non_null(strstr(text, "max_data_xfer_size"));
    assert_null(strstr(text, "write_multiple"));
    assert_null(strstr(text, "twin_socket"));
    assert_int_equal(peer->twin, -1);
}

static void version_without_text_gets_no_keys_it_did_not_send(void **state)
{
    assert_int_equal(peer_version(peer, NULL), 0);
    assert_string_equal((char *)peer->reply + 4, "{\"capabilities\":{}}");
}

static void a_client_that_cannot_agree_is_let_go(void **state)
{
    struct vfmig_user_version version = {1, 0};

    assert_int_equal(peer_call(peer, VFMIG_USER_VERSION, &version, sizeof(version)), -EINVAL);
    assert_int_equal(peer_wait(peer, 0), -ECONNRESET);
}

static void nothing_goes_before_version(void **state)
{
    assert_int_equal(peer_reset(peer), -EINVAL);
}

static void description(void **state)
{
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    struct vfmig_user_irq_info irq = {.argsz = sizeof(irq), .index = VFMIG_IRQ_MSIX};

    assert_int_equal(peer_call(peer, VFMIG_USER_GET_INFO, &info, sizeof(info)), 0);
    memcpy(&info, peer->reply, sizeof(info));
    assert_int_equal(info.flags, VFMIG_USER_INFO_F_PCI | VFMIG_USER_INFO_F_RESET);
    assert_int_equal(info.num_regions, 10);
    assert_int_equal(info.num_irqs, 5);
    assert_int_equal(peer_call(peer, VFMIG_USER_GET_IRQ_INFO, &irq, sizeof(irq)), 0);
    memcpy(&irq, peer->reply, sizeof(irq));
    assert_int_equal(irq.count, TOY_VECTORS);
    irq.index = 5;
    assert_int_equal(peer_call(peer, VFMIG_USER_GET_IRQ_INFO, &irq, sizeof(irq)), -EINVAL);
    assert_int_equal(peer_call(peer, 99, NULL, 0), -EOPNOTSUPP);
    assert_int_equal(peer_call(peer, VFMIG_USER_REGION_WRITE_MULTI, "\0\0\0\0\0\0\0", 8),
                     -EOPNOTSUPP);
}

/* C1: found by its type capability (3, 1); NDMA by capability 6. */
static void migration_region_is_found_by_its_capabilities(void **state)
{
    struct {
        struct vfmig_user_region_info info;
        struct vfmig_user_cap_type type;
        struct vfmig_user_cap_sparse sparse;
        struct vfmig_user_cap ndma;
    } VFMIG_PACKED r;
    struct vfmig_user_region_info info = {.argsz = sizeof(info), .index = VFMIG_REGION_MIGRATION};

    assert_int_equal(peer_call(peer, VFMIG_USER_GET_REGION_INFO, &info, sizeof(info)), 0);
    assert_int_equal(peer->reply_size, sizeof(info));
    memcpy(&r, peer->reply, sizeof(info));
    assert_int_equal(r.info.cap_offset, 0);
    assert_int_equal(r.info.argsz, sizeof(r));
    info.argsz = r.info.argsz;
    assert_int_equal(peer_call(peer, VFMIG_USER_GET_REGION_INFO, &info, sizeof(info)), 0);
    assert_int_equal(peer->reply_size, sizeof(r));
    memcpy(&r, peer->reply, sizeof(r));
    assert_true(r.info.flags & VFMIG_USER_REGION_F_CAPS);
    assert_int_equal(r.info.cap_offset, 32);
    assert_int_equal(r.type.cap.id, VFMIG_USER_CAP_TYPE);
    assert_int_equal(r.type.type, 3);
    assert_int_equal(r.type.subtype, 1);
    assert_int_equal(r.type.cap.next, 48);
    assert_int_equal(r.sparse.cap.id, VFMIG_USER_CAP_SPARSE_MMAP);
    assert_int_equal(r.sparse.cap.next, 80);
    assert_int_equal(r.ndma.id, VFMIG_USER_CAP_NDMA);
    assert_int_equal(r.ndma.next, 0);
    assert_int_equal(peer_get_v1(peer), 1);
    info.index = 10;
    assert_int_equal(peer_call(peer, VFMIG_USER_GET_REGION_INFO, &info, sizeof(info)), -EINVAL);
}

static void config_space(void **state)
{
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0, 4), 0x7fdf1b36);
    assert_int_equal(peer_put(peer, VFMIG_REGION_CONFIG, 0, 0x12345678, 4), 0);
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0, 4), 0x7fdf1b36);
    assert_int_equal(peer_put(peer, VFMIG_REGION_CONFIG, 0x10, UINT32_MAX, 4), 0);
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0x10, 4), ~(TOY_BAR_SIZE - 1));
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0x34, 1), 0x40);
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0x40, 1), 0x11);
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0x42, 2), TOY_VECTORS - 1);
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0x44, 4), TOY_TABLE);
    uint8_t all[257];
    assert_int_equal(peer_read(peer, VFMIG_REGION_CONFIG, 0, all, 256), 0);
    assert_int_equal(peer_read(peer, VFMIG_REGION_CONFIG, 0, all, 257), -EINVAL);
}

static void region_bounds(void **state)
{
    uint8_t buf[16];

    assert_int_equal(peer_read(peer, 0, TOY_BAR_SIZE - 1, buf, 1), 0);
    assert_int_equal(peer_read(peer, 0, TOY_BAR_SIZE, buf, 1), -EINVAL);
    assert_int_equal(peer_read(peer, 0, TOY_BAR_SIZE - 1, buf, 2), -EINVAL);
    assert_int_equal(peer_read(peer, 0, UINT64_MAX, buf, 1), -EINVAL);
    assert_int_equal(peer_read(peer, 1, 0, buf, 1), -EINVAL);
    assert_int_equal(peer_read(peer, 10, 0, buf, 1), -EINVAL);
    assert_int_equal(peer_read(peer, 0, 0, buf, 0), 0);
}

static void scratch_and_posted_writes(void **state)
{
    assert_int_equal(peer_put(peer, 0, TOY_SCRATCH, 0x1122334455667788, 8), 0);
    assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 0x1122334455667788);
    for (unsigned i = 1; i <= 100; i++)
        peer_post(peer, 0, TOY_SCRATCH, i, 8);
    peer_post(peer, 0, TOY_BAR_SIZE, 1, 4); /* fails, and says nothing */
    assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 100);
}

/* Requests in one burst, and a request a byte at a time. */
static void any_segmentation(void **state)
{
    uint8_t burst[50 * 32];
    uint16_t first = peer->next_id;

    for (unsigned i = 0; i < 50; i++) {
        struct vfmig_user_header h = {peer->next_id++, VFMIG_USER_REGION_READ, 32, 0, 0};
        struct vfmig_user_region_access access = {TOY_SCRATCH, 0, 8};
        memcpy(burst + i * 32, &h, 16);
        memcpy(burst + i * 32 + 16, &access, 16);
    }
    assert_int_equal(send(peer->fd, burst, sizeof(burst), 0), sizeof(burst));
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(peer_wait(peer, (uint16_t)(first + i)), 0);
    for (unsigned i = 0; i < 32; i++)
        assert_int_equal(send(peer->fd, burst + i, 1, 0), 1);
    assert_int_equal(peer_wait(peer, first), 0);
}

static void bad_size_ends_the_connection(void **state)
{
    struct vfmig_user_header h = {1, VFMIG_USER_REGION_READ, 15, 0, 0};

    assert_int_equal(send(peer->fd, &h, sizeof(h), 0), sizeof(h));
    assert_int_equal(peer_wait(peer, 1), -ECONNRESET);
}

static void dma_reaches_guest_memory(void **state)
{
    uint64_t value;

    peer_map_ram(peer);
    peer_put(peer, 0, TOY_IOVA, RAM_IOVA + 0x123, 8);
    peer_put(peer, 0, TOY_VALUE, 0xabcdef, 8);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal(peer_get(peer, 0, TOY_STATUS, 4), 0);
    memcpy(&value, peer->ram + 0x123, 8);
    assert_int_equal(value, 0xabcdef);
    peer_put(peer, 0, TOY_IOVA, RAM_IOVA + RAM_SIZE - 4, 8); /* runs over the end */
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EFAULT);
    assert_int_equal(peer_unmap(peer, RAM_IOVA, RAM_SIZE), 0);
    assert_int_equal(peer->reply_size, 24);
    peer_put(peer, 0, TOY_IOVA, RAM_IOVA, 8);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EFAULT);
}

static void dma_map_rules(void **state)
{
    peer_map_ram(peer);
    assert_int_equal(peer_map(peer, RAM_IOVA + 0x1000, 0x1000, -1, 0, 3), -EEXIST);
    assert_int_equal(peer_map(peer, RAM_IOVA - 0x1000, 0x1001, -1, 0, 3), -EEXIST);
    assert_int_equal(peer_map(peer, RAM_IOVA - 0x1000, 0x1000, -1, 0, 3), 0);
    assert_int_equal(peer_unmap(peer, RAM_IOVA, 0x1000), -ENOENT);
    assert_int_equal(peer_unmap(peer, RAM_IOVA - 0x1000, RAM_SIZE + 0x1000), -ENOENT);
    /* Read-only memory is not written; the last byte of the address space can be mapped. */
    assert_int_equal(peer_map(peer, UINT64_MAX - 0xfff, 0x1000, peer->ram_fd, 0, 1), 0);
    peer_put(peer, 0, TOY_IOVA, UINT64_MAX - 7, 8);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EFAULT);
    peer_put(peer, 0, TOY_READ, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);
    peer_put(peer, 0, TOY_IOVA, UINT64_MAX - 6, 8);
    peer_put(peer, 0, TOY_READ, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EFAULT);
    struct vfmig_user_dma_unmap un = {sizeof(un), VFMIG_USER_UNMAP_F_ALL, 0, 0};
    assert_int_equal(peer_call(peer, VFMIG_USER_DMA_UNMAP, &un, sizeof(un)), 0);
    assert_int_equal(peer_unmap(peer, RAM_IOVA, RAM_SIZE), -ENOENT);
}

/* A file that shrinks under its mapping costs that DMA, not the server. */
static void truncated_memory_is_a_fault(void **state)
{
    peer_map_ram(peer);
    assert_int_equal(ftruncate(peer->ram_fd, 0x1000), 0);
    peer_put(peer, 0, TOY_IOVA, RAM_IOVA + 0x2000, 8);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EFAULT);
    peer_put(peer, 0, TOY_IOVA, RAM_IOVA, 8);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);
}

/* Memory without descriptor: the server asks, on the twin socket when there is one. */
static void dma_by_message(int fd)
{
    struct {
        struct vfmig_user_header h;
        struct vfmig_user_dma_access access;
        uint64_t value;
    } VFMIG_PACKED m;

    assert_int_equal(peer_map(peer, 0x1000, 0x1000, -1, 0, 3), 0);
    peer_put(peer, 0, TOY_IOVA, 0x1ff8, 8);
    peer_put(peer, 0, TOY_VALUE, 77, 8);
    peer_post(peer, 0, TOY_ASYNC, 1, 4);
    assert_int_equal(recv(fd, &m, sizeof(m), MSG_WAITALL), sizeof(m));
    assert_int_equal(m.h.command, VFMIG_USER_DMA_WRITE);
    assert_int_equal(m.h.flags, 0);
    assert_int_equal(m.access.address, 0x1ff8);
    assert_int_equal(m.access.count, 8);
    assert_int_equal(m.value, 77);
    /* Meanwhile everything else is served. */
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EINPROGRESS);
    m.h.flags = VFMIG_USER_TYPE_REPLY;
    m.h.size = 32;
    assert_int_equal(send(fd, &m, 32, 0), 32);
    while ((int)peer_get(peer, 0, TOY_STATUS, 4) == -EINPROGRESS)
        ;
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);

    peer_post(peer, 0, TOY_READ, 1, 4);
    assert_int_equal(recv(fd, &m, 32, MSG_WAITALL), 32);
    assert_int_equal(m.h.command, VFMIG_USER_DMA_READ);
    m.h.flags = VFMIG_USER_TYPE_REPLY;
    m.h.size = 40;
    m.value = 0x5555;
    assert_int_equal(send(fd, &m, 40, 0), 40);
    while ((int)peer_get(peer, 0, TOY_STATUS, 4) == -EINPROGRESS)
        ;
    assert_int_equal(peer_get(peer, 0, TOY_VALUE, 8), 0x5555);

    peer_post(peer, 0, TOY_READ, 1, 4);
    assert_int_equal(recv(fd, &m, 32, MSG_WAITALL), 32);
    m.h.flags = VFMIG_USER_TYPE_REPLY | VFMIG_USER_ERROR;
    m.h.size = 16;
    m.h.error = EPERM;
    assert_int_equal(send(fd, &m, 16, 0), 16);
    while ((int)peer_get(peer, 0, TOY_STATUS, 4) == -EINPROGRESS)
        ;
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EPERM);
}

static void dma_by_message_on_the_twin_socket(void **state)
{
    assert_int_equal(peer_version(peer, "{\"capabilities\":{\"max_msg_fds\":8,"
                                        "\"twin_socket\":{\"supported\":true}}}"), 0);
    assert_non_null(strstr((char *)peer->reply + 4, "\"twin_socket\":{\"supported\":true,"
                                                    "\"fd_index\":0}"));
    assert_true(peer->twin >= 0);
    dma_by_message(peer->twin);
}

static void dma_by_message_on_the_one_socket(void **state)
{
    dma_by_message(peer->fd);
}

static void *read_value(void *arg)
{
    uint64_t *value = arg;
    return vfmig_device_dma_read(toy->dev, 0x1008, value, 8) ? arg : NULL;
}

/* A device's own thread may wait for the client's memory; the serving thread may not. */
static void dma_by_message_from_another_thread(void **state)
{
    struct {
        struct vfmig_user_header h;
        struct vfmig_user_dma_access access;
        uint64_t value;
    } VFMIG_PACKED m;
    uint64_t value = 0;
    pthread_t thread;
    void *failed;

    assert_int_equal(peer_map(peer, 0x1000, 0x1000, -1, 0, 3), 0);
    peer_put(peer, 0, TOY_IOVA, 0x1008, 8);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EDEADLK);
    pthread_create(&thread, NULL, read_value, &value);
    assert_int_equal(recv(peer->fd, &m, 32, MSG_WAITALL), 32);
    assert_int_equal(m.h.command, VFMIG_USER_DMA_READ);
    m.h.flags = VFMIG_USER_TYPE_REPLY;
    m.h.size = 40;
    m.value = 0x9876;
    assert_int_equal(send(peer->fd, &m, 40, 0), 40);
    pthread_join(thread, &failed);
    assert_null(failed);
    assert_int_equal(value, 0x9876);
}

/* Unmap waits for the DMA in flight on that memory, and for that alone. */
static void unmap_waits_for_its_message(void **state)
{
    struct {
        struct vfmig_user_header h;
        struct vfmig_user_dma_access access;
        uint64_t value;
    } VFMIG_PACKED m;
    struct vfmig_user_dma_unmap un = {sizeof(un), 0, 0x1000, 0x1000};

    assert_int_equal(peer_version(peer, "{\"capabilities\":{\"max_msg_fds\":8,"
                                        "\"twin_socket\":{\"supported\":true}}}"), 0);
    assert_int_equal(peer_map(peer, 0x1000, 0x1000, -1, 0, 3), 0);
    assert_int_equal(peer_map(peer, 0x2000, 0x1000, -1, 0, 3), 0);
    peer_put(peer, 0, TOY_IOVA, 0x1800, 8);
    peer_post(peer, 0, TOY_ASYNC, 1, 4);
    assert_int_equal(recv(peer->twin, &m, sizeof(m), MSG_WAITALL), sizeof(m));
    uint16_t id = peer_send(peer, VFMIG_USER_DMA_UNMAP, 0, &un, sizeof(un), NULL, 0);
    assert_int_equal(peer_unmap(peer, 0x2000, 0x1000), 0); /* overtakes it */
    m.h.flags = VFMIG_USER_TYPE_REPLY;
    m.h.size = 32;
    assert_int_equal(send(peer->twin, &m, 32, 0), 32);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer_unmap(peer, 0x1000, 0x1000), -ENOENT);
}

static void interrupts(void **state)
{
    int fd = peer_vector(peer, 1);

    peer_put(peer, 0, TOY_IRQ, 1, 4);
    assert_int_equal(peer_irqs(fd), 1);
    peer_put(peer, 0, TOY_IRQ, 1, 4);
    peer_put(peer, 0, TOY_IRQ, 1, 4);
    assert_int_equal(peer_irqs(fd), 2);
    peer_put(peer, 0, TOY_IRQ, TOY_VECTORS, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EINVAL);
    close(fd);
}

/* C46-C49: masked in the table means pending, seen in the PBA, delivered once when unmasked. */
static void masked_vectors_are_pending(void **state)
{
    int fd = peer_vector(peer, 2);

    assert_int_equal(peer_put(peer, 0, TOY_TABLE + 2 * 16, 0xfee00000, 8), 0);
    assert_int_equal(peer_put(peer, 0, TOY_TABLE + 2 * 16 + 12, 1, 4), 0);
    peer_put(peer, 0, TOY_IRQ, 2, 4);
    peer_put(peer, 0, TOY_IRQ, 2, 4);
    assert_int_equal(peer_irqs(fd), 0);
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 8), 4);
    assert_int_equal(peer_put(peer, 0, TOY_PBA, 0, 8), 0); /* read-only */
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 4), 4);
    assert_int_equal(peer_put(peer, 0, TOY_TABLE + 2 * 16 + 12, 0, 4), 0);
    assert_int_equal(peer_irqs(fd), 1);
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 8), 0);
    assert_int_equal(peer_get(peer, 0, TOY_TABLE + 2 * 16, 4), 0xfee00000);
    /* A vector without an eventfd keeps its interrupt until it has one. */
    peer_put(peer, 0, TOY_IRQ, 0, 4);
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 8), 1);
    int late = peer_vector(peer, 0);
    assert_int_equal(peer_irqs(late), 1);
    /* The function mask of config space. */
    assert_int_equal(peer_put(peer, VFMIG_REGION_CONFIG, 0x42, 0xc000, 2), 0);
    peer_put(peer, 0, TOY_IRQ, 0, 4);
    assert_int_equal(peer_irqs(late), 0);
    assert_int_equal(peer_put(peer, VFMIG_REGION_CONFIG, 0x42, 0x8000, 2), 0);
    assert_int_equal(peer_irqs(late), 1);
    close(fd);
    close(late);
}

static int set_irqs(uint32_t flags, uint32_t index, uint32_t first, uint32_t count,
                    const uint8_t *bools)
{
    struct {
        struct vfmig_user_set_irqs irqs;
        uint8_t bools[8];
    } VFMIG_PACKED req = {{28, flags, index, first, count}, {0}};

    if (bools)
        memcpy(req.bools, bools, count);
    return peer_call(peer, VFMIG_USER_SET_IRQS, &req,
                     (uint32_t)sizeof(req.irqs) + (bools ? count : 0));
}

static void set_irqs_rules(void **state)
{
    int fds[3] = {peer_vector(peer, 0), peer_vector(peer, 1), peer_vector(peer, 2)};
    static const uint8_t some[3] = {1, 0, 1};

    assert_int_equal(set_irqs(0x22, VFMIG_IRQ_MSIX, 0, 3, some), 0); /* fired by the client */
    assert_int_equal(peer_irqs(fds[0]) + 10 * peer_irqs(fds[1]) + 100 * peer_irqs(fds[2]), 101);
    assert_int_equal(set_irqs(0x09, VFMIG_IRQ_MSIX, 1, 1, NULL), 0); /* mask */
    peer_put(peer, 0, TOY_IRQ, 1, 4);
    assert_int_equal(peer_irqs(fds[1]), 0);
    assert_int_equal(set_irqs(0x11, VFMIG_IRQ_MSIX, 1, 1, NULL), 0); /* unmask */
    assert_int_equal(peer_irqs(fds[1]), 1);
    assert_int_equal(set_irqs(0x24, VFMIG_IRQ_MSIX, 1, 1, NULL), 0); /* detach one */
    peer_put(peer, 0, TOY_IRQ, 1, 4);
    assert_int_equal(peer_irqs(fds[1]), 0);
    assert_int_equal(set_irqs(0x21, VFMIG_IRQ_MSIX, 0, 0, NULL), 0); /* disable */
    peer_put(peer, 0, TOY_IRQ, 0, 4);
    assert_int_equal(peer_irqs(fds[0]), 0);
    assert_int_equal(set_irqs(0x21, VFMIG_IRQ_INTX, 0, 0, NULL), 0);
    assert_int_equal(set_irqs(0x21, VFMIG_IRQ_MSIX, 2, 2, NULL), -EINVAL);
    assert_int_equal(set_irqs(0x21, VFMIG_IRQ_MSIX, 3, 1, NULL), -EINVAL);
    assert_int_equal(set_irqs(0x21, VFMIG_IRQ_MSI, 0, 1, NULL), -EINVAL);
    assert_int_equal(set_irqs(0x21, 5, 0, 0, NULL), -EINVAL);
    assert_int_equal(set_irqs(0x0c, VFMIG_IRQ_MSIX, 0, 1, NULL), -EINVAL);
    for (unsigned i = 0; i < 3; i++)
        close(fds[i]);
}

/* Every descriptor that came over the socket is closed with the client. */
static unsigned open_fds(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 200; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void descriptors_do_not_stay(void **state)
{
    struct toy *other = toy_new(true, true, true, 0);
    unsigned before = open_fds();
    struct peer *p = peer_start(other->dev);

    assert_int_equal(peer_version(p, "{\"capabilities\":{\"max_msg_fds\":8,"
                                     "\"twin_socket\":{\"supported\":true}}}"), 0);
    peer_map_ram(p);
    close(peer_vector(p, 0));
    close(peer_vector(p, 0));
    struct vfmig_user_dma_unmap un = {sizeof(un), 0, 1, 1}; /* takes no descriptor */
    uint16_t id = peer_send(p, VFMIG_USER_DMA_UNMAP, 0, &un, sizeof(un), &p->ram_fd, 1);
    assert_int_equal(peer_wait(p, id), -EINVAL);
    peer_end(p);
    assert_int_equal(open_fds(), before);
    toy_free(other);
}

static void not_migratable_says_so(void **state)
{
    struct toy *other = toy_new(true, true, false, 0);
    struct peer *p = peer_start(other->dev);
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    struct vfmig_user_feature head = {16, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_MIGRATION};

    assert_int_equal(peer_version(p, NULL), 0);
    assert_int_equal(peer_call(p, VFMIG_USER_GET_INFO, &info, sizeof(info)), 0);
    memcpy(&info, p->reply, sizeof(info));
    assert_int_equal(info.num_regions, 9);
    assert_int_equal(peer_call(p, VFMIG_USER_FEATURE, &head, sizeof(head)), -ENOTTY);
    peer_end(p);
    toy_free(other);
}

static void listening_twice_and_stale_sockets(void **state)
{
    struct toy *a = toy_new(true, true, true, 0), *b = toy_new(true, true, true, 0);
    struct vfmig_error err = {0};
    char path[64];

    snprintf(path, sizeof(path), "/tmp/vfmig-test-%d.sock", (int)getpid());
    assert_int_equal(vfmig_device_listen(a->dev, path, &err), 0);
    assert_int_equal(vfmig_device_listen(b->dev, path, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, path));
    toy_free(a);
    assert_int_equal(access(path, F_OK), -1);
    /* A file left by a server that died. */
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, path);
    int dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(dead, (void *)&addr, sizeof(addr)), 0);
    close(dead);
    assert_int_equal(vfmig_device_listen(b->dev, path, &err), 0);
    toy_free(b);
}

int main(void)
{
#define WITH(test, setup) cmocka_unit_test_setup_teardown(test, setup, stop)
    const struct CMUnitTest tests[] = {
        WITH(qemu_version_is_answered_in_kind, start_silent),
        WITH(version_without_text_gets_no_keys_it_did_not_send, start_silent),
        WITH(a_client_that_cannot_agree_is_let_go, start_silent),
        WITH(nothing_goes_before_version, start_silent),
        WITH(description, start),
        WITH(migration_region_is_found_by_its_capabilities, start),
        WITH(config_space, start),
        WITH(region_bounds, start),
        WITH(scratch_and_posted_writes, start),
        WITH(any_segmentation, start),
        WITH(bad_size_ends_the_connection, start),
        WITH(dma_reaches_guest_memory, start),
        WITH(dma_map_rules, start),
        WITH(truncated_memory_is_a_fault, start),
        WITH(dma_by_message_on_the_twin_socket, start_silent),
        WITH(dma_by_message_on_the_one_socket, start),
        WITH(dma_by_message_from_another_thread, start),
        WITH(unmap_waits_for_its_message, start_silent),
        WITH(interrupts, start),
        WITH(masked_vectors_are_pending, start),
        WITH(set_irqs_rules, start),
        cmocka_unit_test(descriptors_do_not_stay),
        cmocka_unit_test(not_migratable_says_so),
        cmocka_unit_test(listening_twice_and_stale_sockets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
