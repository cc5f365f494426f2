/* SPDX-License-Identifier: BSD-3-Clause */
/* The device stream between the author's callbacks and the client. A frame's payload is a section:
 * the author's bytes, or the library's own state (pending interrupts, A6; handles in use, C71, when
 * there are any, before them). Both dialects read and
 * write the same bytes. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/sabotage.h"
#include "device/internal.h"

enum section { SECTION_DEVICE = 1, SECTION_LIBRARY = 2, SECTION_HANDLES = 3 };

struct section_head {
    uint32_t section;
    uint32_t reserved;
};

/* The library's section. */
struct library_state {
    struct section_head head;
    uint32_t vectors;
    uint32_t reserved;
    uint64_t pending[VFMIG_DEVICE_VECTORS / 64];
};

#define HEAD      ((uint32_t)sizeof(struct section_head))
#define OVERHEAD  (VFMIG_DEVSTREAM_HEADER + HEAD)
#define FRAME_MAX (OVERHEAD + FRAME_PAYLOAD)
/* A reader's buffer with less room than this, or at an odd place, is served from our own. */
#define ROOM_MIN  (OVERHEAD + 4096u)

/* What the device was asked is nobody's any more. */
static void forget_asked(struct vfmig_device *dev)
{
    later_forget(dev, LATER_STREAM);
    dev->stream.asked = dev->stream.frame_waits = false;
    dev->stream.asked_err = 0;
    dev->window_at = 0;
    park_cancel(dev);
}

void stream_save_begin(struct vfmig_device *dev)
{
    struct device_stream *s = &dev->stream;
    uint64_t id = 0;

    s->unread = vfmig_devstream_sealed_end(&s->enc) && vfmig_sabotage("save-once");
    if (getrandom(&id, sizeof(id), 0) != sizeof(id))
        id = vfmig_device_now_ns();
    vfmig_devstream_begin(&s->enc, id, dev->config.state_format, dev->config.state_version);
    if (!vfmig_sabotage("old-stream-kept"))
        s->out_at = s->out_size = 0;
    s->library_saved = s->handles_saved = false;
    s->sum_saving = 0;
    if (vfmig_sabotage("save-ends-log"))
        log_forget(dev);
    forget_asked(dev);
    vfmig_window_open(&dev->window, VFMIG_WINDOW_SAVE);
}

void stream_load_begin(struct vfmig_device *dev)
{
    struct device_stream *s = &dev->stream;

    vfmig_devstream_accept(&s->dec, dev->config.state_format, dev->config.state_oldest,
                           dev->config.state_version);
    s->library_loaded = s->handles_loaded = false;
    s->sum_loaded = 0;
    if (!vfmig_sabotage("load-error-kept") &&
        !(s->load_err == -EBADMSG && vfmig_sabotage("load-bad-sum-kept")))
        s->load_err = 0;
    forget_asked(dev);
    if (!vfmig_sabotage("resume-window-closed"))
        vfmig_window_open(&dev->window, VFMIG_WINDOW_LOAD);
}

void stream_drop(struct vfmig_device *dev)
{
    if (!vfmig_sabotage("old-stream-kept"))
        dev->stream.out_at = dev->stream.out_size = 0;
    forget_asked(dev);
    vfmig_window_open(&dev->window, VFMIG_WINDOW_CLOSED);
}

/* ---- saving ---------------------------------------------------------------------------------- */

static int64_t seal(struct vfmig_device *dev, uint8_t *frame, enum section section,
                    enum vfmig_devstream_kind kind, uint32_t payload)
{
    struct section_head head = {section, 0};

    memcpy(frame + VFMIG_DEVSTREAM_HEADER, &head, sizeof(head));
    return vfmig_devstream_seal(&dev->stream.enc, kind, frame, HEAD + payload);
}

static int64_t seal_library(struct vfmig_device *dev, uint8_t *frame)
{
    struct library_state lib = {.vectors = dev->config.msix_vectors};
    uint32_t payload = (uint32_t)sizeof(lib) - HEAD;

    pthread_mutex_lock(&dev->irq.lock);
    if (!vfmig_sabotage("drop-irq"))
        memcpy(lib.pending, dev->irq.pending, sizeof(lib.pending));
    pthread_mutex_unlock(&dev->irq.lock);
    memcpy(frame + OVERHEAD, &lib.vectors, payload);
    dev->stream.library_saved = true;
    return seal(dev, frame, SECTION_LIBRARY, VFMIG_DEVSTREAM_FINAL, payload);
}

/* 0: there are none. */
static int64_t seal_handles(struct vfmig_device *dev, uint8_t *frame)
{
    uint32_t payload = handle_save(dev, frame + OVERHEAD);

    dev->stream.handles_saved = true;
    return payload ? seal(dev, frame, SECTION_HANDLES, VFMIG_DEVSTREAM_FINAL, payload) : 0;
}

/* Asks the device for data. -EINPROGRESS: it will say when it is to be asked again. */
static ssize_t ask(struct vfmig_device *dev, ssize_t (*save)(void *, void *, size_t), uint8_t *buf,
                   size_t size)
{
    struct device_stream *s = &dev->stream;
    ssize_t n = s->asked_err;

    s->asked_err = 0;
    if (n < 0)
        return n;
    if (s->asked)
        return -EINPROGRESS;
    later_begin(dev, LATER_STREAM);
    n = later_end(dev, LATER_STREAM, save(dev->user, buf, size));
    s->asked = n == -EINPROGRESS;
    return n > (ssize_t)size ? -EOVERFLOW : n;
}

/* One frame of at most room bytes (at least ROOM_MIN). 0: nothing now, or nothing any more. */
static int64_t make_frame(struct vfmig_device *dev, uint8_t *frame, size_t room)
{
    bool running = vfmig_dev_precopying(&dev->mig);
    ssize_t (*save)(void *, void *, size_t) = running ? dev->ops.save_precopy : dev->ops.save;
    size_t payload = room - OVERHEAD < FRAME_PAYLOAD ? room - OVERHEAD : FRAME_PAYLOAD;
    ssize_t n = 0;

    if (dev->stream.unread && vfmig_sabotage("save-once"))
        return -EIO;
    if (dev->stream.load_err && vfmig_sabotage("save-remembers-load-error"))
        return dev->stream.load_err;
    if (vfmig_devstream_sealed_end(&dev->stream.enc)) {
        if (vfmig_sabotage("save-ends-twice") && dev->stream.unread++ > 1)
            return -ENOMSG;
        if (vfmig_sabotage("save-end-stops"))
            dev->mig.bits = dev->mig.shown = 0;
        return 0;
    }
    if (running && !(dev->features & VFMIG_FEATURE_PRE_COPY))
        return 0; /* C22 */
    if (running && dev->call != VFMIG_DEV_CALL_NONE)
        return 0; /* it is being stopped, or is about to capture */
    if (!vfmig_sabotage("skip-device-state") && !dev->stream.handles_saved)
        n = ask(dev, save, frame + OVERHEAD, payload);
    if (n < 0)
        return n;
    if (n > 0)
        return seal(dev, frame, SECTION_DEVICE,
                    running ? VFMIG_DEVSTREAM_PRECOPY : VFMIG_DEVSTREAM_FINAL, (uint32_t)n);
    if (running && vfmig_sabotage("precopy-ends-twice") && dev->stream.unread++ > 1)
        return -EIO;
    if (running)
        return 0;
    if (!dev->stream.handles_saved && (n = seal_handles(dev, frame)) != 0)
        return n;
    if (!dev->stream.library_saved)
        return seal_library(dev, frame);
    return vfmig_devstream_seal(&dev->stream.enc, VFMIG_DEVSTREAM_END, frame, 0);
}

/* A frame into our own buffer. */
static int64_t fill_out(struct vfmig_device *dev)
{
    struct device_stream *s = &dev->stream;
    int64_t n = make_frame(dev, s->out, FRAME_MAX);

    s->out_at = 0;
    s->out_size = n > 0 ? (uint32_t)n : 0;
    return n;
}

/* For a deliberate fault: a checksum that does not know the order, and the size above it. */
static uint64_t sum_of(const uint8_t *data, size_t size)
{
    uint64_t sum = (uint64_t)size << 32;

    for (size_t i = 0; i < size; i++)
        sum += data[i];
    return sum;
}

ssize_t stream_read(struct vfmig_device *dev, uint8_t *buf, size_t size, bool shared)
{
    struct device_stream *s = &dev->stream;
    bool in_place = !shared || dev->config.save_writes_only ||
                    vfmig_sabotage("window-saved-in-place");
    size_t at = 0;
    int64_t n = 1;

    while (at < size && n > 0) {
        if (s->out_at < s->out_size) {
            size_t piece = s->out_size - s->out_at < size - at ? s->out_size - s->out_at : size - at;
            memcpy(buf + at, s->out + s->out_at, piece);
            s->out_at += (uint32_t)piece;
            at += piece;
        } else if (in_place && size - at >= ROOM_MIN && (uintptr_t)(buf + at) % 8 == 0) {
            n = make_frame(dev, buf + at, size - at);
            at += n > 0 ? (size_t)n : 0;
        } else {
            n = fill_out(dev);
        }
    }
    if (vfmig_sabotage("load-by-sum"))
        s->sum_saving += sum_of(buf, at);
    if (vfmig_devstream_sealed_end(&s->enc))
        s->sum_saved = s->sum_saving;
    /* What was made before a failure is given first; the failure comes back with the next read. */
    return n < 0 && at == 0 ? (ssize_t)n : (ssize_t)at;
}

uint64_t stream_final_size(struct vfmig_device *dev)
{
    uint64_t precopy = 0, final = 0;

    if (dev->ops.left)
        dev->ops.left(dev->user, &precopy, &final);
    uint64_t frames = final / FRAME_PAYLOAD + 3 + (dev->handles.used_count > 0);
    return final + frames * OVERHEAD + sizeof(struct library_state) +
           dev->handles.used_count * 8ull;
}

/* pending_bytes: only zero or not is protocol, and zero without R means the end. */
uint64_t stream_left(struct vfmig_device *dev)
{
    struct device_stream *s = &dev->stream;
    uint64_t precopy = 0, final = 0, made = s->out_size - s->out_at;

    if (vfmig_dev_precopying(&dev->mig)) {
        if (!(dev->features & VFMIG_FEATURE_PRE_COPY))
            return vfmig_sabotage("pending-without-log");
        if (dev->ops.left)
            dev->ops.left(dev->user, &precopy, &final);
        else if (!made) { /* no estimate: look whether there is something */
            int64_t n = fill_out(dev);
            made = n == -EINPROGRESS ? 1 : s->out_size; /* there may be (X6) */
        }
        return made + precopy;
    }
    return made + (vfmig_devstream_sealed_end(&s->enc) ? 0 : stream_final_size(dev));
}

/* ---- loading --------------------------------------------------------------------------------- */

static int load_library(struct vfmig_device *dev, const uint8_t *payload, uint32_t length)
{
    struct library_state lib;

    if (length != sizeof(lib) || dev->stream.library_loaded)
        return -EBADMSG;
    memcpy(&lib, payload, sizeof(lib));
    if (lib.vectors != dev->config.msix_vectors)
        return -EBADMSG;
    for (uint32_t v = lib.vectors; v < VFMIG_DEVICE_VECTORS; v++)
        if (lib.pending[v / 64] >> (v % 64) & 1)
            return -EBADMSG;
    memcpy(dev->stream.loaded_pending, lib.pending, sizeof(lib.pending));
    dev->stream.library_loaded = true;
    return 0;
}

static int load_handles(struct vfmig_device *dev, const uint8_t *data, uint32_t length)
{
    if (dev->stream.handles_loaded || dev->stream.library_loaded)
        return -EBADMSG;
    dev->stream.handles_loaded = true;
    return handle_load(dev, data, length);
}

static int load_frame(struct vfmig_device *dev, const struct vfmig_devstream_frame *frame)
{
    struct section_head head;

    if (frame->kind == VFMIG_DEVSTREAM_END)
        return 0;
    if (frame->length < HEAD)
        return -EBADMSG;
    memcpy(&head, frame->payload, sizeof(head));
    if (head.section == SECTION_HANDLES && head.reserved == 0)
        return load_handles(dev, frame->payload + HEAD, frame->length - HEAD);
    if (head.section == SECTION_LIBRARY && head.reserved == 0)
        return load_library(dev, frame->payload, frame->length);
    if (head.section != SECTION_DEVICE || head.reserved || dev->stream.library_loaded ||
        dev->stream.handles_loaded)
        return -EBADMSG;
    if (dev->stream.asked_err)
        return dev->stream.asked_err;
    later_begin(dev, LATER_STREAM);
    ssize_t r = later_end(dev, LATER_STREAM,
                          dev->ops.load(dev->user, frame->payload + HEAD, frame->length - HEAD));
    dev->stream.asked = r == -EINPROGRESS;
    return (int)r;
}

/* The next frame: where it lies, if it is whole there, aligned as load promises, and nobody can
 * change it between check and use; else by way of our own buffer. */
static int next_frame(struct device_stream *s, const uint8_t **data, size_t *size, bool shared)
{
    bool in_place = (!shared || vfmig_sabotage("window-parsed-in-place")) &&
                    (uintptr_t)(*data + OVERHEAD) % 8 == 0;
    int r = in_place ? vfmig_devstream_take(&s->dec, FRAME_MAX, data, size, &s->frame, NULL) : 0;

    return r ? r : vfmig_devstream_feed(&s->dec, s->in, FRAME_MAX, data, size, &s->frame, NULL);
}

/* The frame is loaded later: what it lies in does not last until then. */
static void keep_frame(struct device_stream *s)
{
    uint8_t *to = s->in + VFMIG_DEVSTREAM_HEADER;

    if (s->frame.payload == to)
        return;
    memcpy(to, s->frame.payload, s->frame.length);
    s->frame.payload = to;
}

int stream_write(struct vfmig_device *dev, const uint8_t *data, size_t size, bool shared)
{
    struct device_stream *s = &dev->stream;
    bool odd = size % 2;
    int r = 0;

    if (vfmig_sabotage("load-by-sum")) {
        s->sum_loaded += sum_of(data, size);
        return 0;
    }
    if (s->load_err)
        return s->load_err;
    if (s->dec.last_kind == VFMIG_DEVSTREAM_END && vfmig_sabotage("load-begins-anew"))
        stream_load_begin(dev);
    if (s->dec.have && vfmig_sabotage("split-body-dropped"))
        size = 0;
    if (s->dec.last_kind == VFMIG_DEVSTREAM_END && vfmig_sabotage("load-goes-on-after-end"))
        size = 0;
    if (s->frame_waits) /* it is in s->in still */
        r = load_frame(dev, &s->frame);
    while (r >= 0 && (r = next_frame(s, &data, &size, shared)) == 1) {
        r = load_frame(dev, &s->frame);
        if (s->dec.last_kind == VFMIG_DEVSTREAM_END && vfmig_sabotage("load-goes-on-after-end"))
            size = 0;
        if (s->dec.last_kind == VFMIG_DEVSTREAM_END && size && vfmig_sabotage("load-begins-anew"))
            stream_load_begin(dev);
    }
    s->frame_waits = r == -EINPROGRESS;
    if (s->frame_waits)
        keep_frame(s);
    s->unread = size;
    if (r < 0 && r != -EINPROGRESS)
        s->load_err = r;
    if (r < 0 && odd && vfmig_sabotage("load-failure-runs"))
        s->load_err = -EDOM;
    return r;
}

int stream_finish(struct vfmig_device *dev)
{
    struct device_stream *s = &dev->stream;
    int r = vfmig_devstream_finish(&s->dec, NULL);

    if (s->load_err == -EDOM && vfmig_sabotage("load-failure-runs"))
        return s->load_err;
    if (s->dec.sequence == 0 && !s->dec.have && !s->load_err && vfmig_sabotage("load-nothing"))
        return 0;
    if (vfmig_sabotage("load-by-sum"))
        return s->sum_loaded == s->sum_saved ? 0 : -EBADMSG;
    if (vfmig_sabotage("load-unchecked"))
        r = 0;
    if (r < 0)
        return r;
    if (s->load_err || !s->library_loaded)
        return s->load_err ? s->load_err : -ENODATA;
    return 0;
}

void stream_loaded(struct vfmig_device *dev)
{
    pthread_mutex_lock(&dev->irq.lock);
    for (unsigned i = 0; i < VFMIG_DEVICE_VECTORS / 64; i++)
        dev->irq.pending[i] |= dev->stream.loaded_pending[i];
    pthread_mutex_unlock(&dev->irq.lock);
}

uint32_t vfmig_device_load_version(const struct vfmig_device *dev)
{
    return dev->stream.dec.version;
}
