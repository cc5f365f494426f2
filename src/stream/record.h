/* SPDX-License-Identifier: BSD-3-Clause */
/* The migration stream's format, pure: bytes in, checked fields out. docs/stream-format.md.
 *
 * A channel carries records, each a head of VFMIG_RECORD_HEAD_BYTES and a payload, all numbers
 * little endian:
 *
 *     0 magic u32 | 4 tag u16 | 6 flags u16 | 8 name[8] | 16 sequence u64
 *    24 length u32 | 28 payload CRC-32C u32 | 32 channel u32 | 36 CRC-32C of bytes 0-35
 *
 * The sequence counts the records of one channel and one direction from 0, so that a lost,
 * repeated or reordered record is seen; the channel number shows crossed connections. */
#ifndef VFMIG_STREAM_RECORD_H
#define VFMIG_STREAM_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bounds.h"
#include "vfmig/error.h"
#include "vfmig/memory.h"

#define VFMIG_STREAM_VERSION      1u
#define VFMIG_RECORD_MAGIC        UINT32_C(0x52464d56) /* "VMFR" */
#define VFMIG_RECORD_HEAD_BYTES   40u
#define VFMIG_RECORD_NAME_BYTES   8u
#define VFMIG_RECORD_REQUIRED     0x1u /* flag: who does not know the tag must refuse */
#define VFMIG_RECORD_KNOWN_FLAGS  VFMIG_RECORD_REQUIRED
#define VFMIG_RECORD_CONTROL      0u   /* the channel of control records */

enum vfmig_record_tag {
    VFMIG_RECORD_NONE = 0,
#define STREAM_RECORD(name, tag, min, max, required, senders, channels, text)                      \
    VFMIG_RECORD_##name = (tag),
#include "../tables/stream.def"
#undef STREAM_RECORD
    VFMIG_RECORD_COUNT
};

/* Bits, so that BOTH is the sum. */
enum vfmig_side {
    VFMIG_SIDE_SOURCE = 1,
    VFMIG_SIDE_DEST = 2,
    VFMIG_SIDE_BOTH = 3,
};

/* A row of tables/stream.def. */
struct vfmig_record_info {
    const char *name;
    uint32_t min_bytes, max_bytes;
    bool required;
    enum vfmig_side senders;
    bool any_channel;
    const char *text;
};

/* The row of a tag; NULL for one that is not in the table. */
const struct vfmig_record_info *vfmig_record_info(uint32_t tag);

/* A head in fields. */
struct vfmig_record_head {
    uint16_t tag;
    uint16_t flags;
    char name[VFMIG_RECORD_NAME_BYTES + 1];
    uint64_t sequence;
    uint32_t length;
    uint32_t payload_crc;
    uint32_t channel;
};

/* What a reader expects next on a channel. */
struct vfmig_record_expect {
    enum vfmig_side sender; /* the peer's side */
    uint32_t channel;
    uint64_t sequence;
};

/* Writes the head of a record of the table; flags and name come from its row. */
void vfmig_record_head_encode(uint8_t out[VFMIG_RECORD_HEAD_BYTES], enum vfmig_record_tag tag,
                              uint32_t channel, uint64_t sequence, uint32_t length,
                              uint32_t payload_crc);

/* Checks everything a head can be checked for, in the order magic, CRC, sequence, channel, flags,
 * tag, name, sender, channel kind, length. Returns 1 for a record of the table, 0 for an unknown
 * optional record that the caller must skip (read and check its payload, then forget it);
 * -EBADMSG (bytes altered, lost, repeated or out of order), -EPROTONOSUPPORT (required and
 * unknown), -EPROTO (known, but not from this side or on this channel), -EMSGSIZE; origin STREAM. */
int vfmig_record_head_decode(const uint8_t in[VFMIG_RECORD_HEAD_BYTES],
                             const struct vfmig_record_expect *expect,
                             struct vfmig_record_head *ret_head, struct vfmig_error *reterr);

/* Compares a CRC computed over the payload with the head's. 0 or -EBADMSG, origin STREAM. */
int vfmig_record_payload_check(const struct vfmig_record_head *head, uint32_t payload_crc,
                               struct vfmig_error *reterr);

/* --- MEMORY and ZERO: u32 run count, u32 page count, the table {u32 block, u32 pages, u64 first
 * page}; then, MEMORY only, a CRC-32C for each page and the pages. The head's payload CRC covers
 * everything before the pages and is checked before the first page is received, because pages are
 * received in place: altered bytes may spoil a page, but never choose where bytes go.
 *
 * Each page has its own CRC because a guest may write a page between its checksum and its way
 * through the socket. Such a page is in doubt, not the stream: the same write is in the log, and the
 * page comes again. A page still in doubt when the last round is complete was altered. */
struct vfmig_page_run {
    uint32_t block;
    uint32_t page_count;
    uint64_t first_page; /* in the block */
};

#define VFMIG_RUNS_PREFIX_BYTES 8u
#define VFMIG_RUN_BYTES         16u
#define VFMIG_PAGE_CRC_BYTES    4u
#define VFMIG_MAX_RUNS_BYTES                                                                       \
    (VFMIG_RUNS_PREFIX_BYTES + VFMIG_RUN_BYTES * VFMIG_MAX_MEMORY_RUNS +                           \
     VFMIG_PAGE_CRC_BYTES * VFMIG_MAX_MEMORY_PAGES)

/* Writes prefix and table, and page_crcs unless it is NULL; returns the bytes written. */
size_t vfmig_runs_encode(uint8_t out[VFMIG_MAX_RUNS_BYTES], const struct vfmig_page_run *runs,
                         uint32_t run_count, const uint32_t *page_crcs);

/* Checks the prefix of a MEMORY or ZERO record against its length and the bounds; *ret_bytes is
 * where the pages begin, or the end. */
int vfmig_runs_prefix_decode(const uint8_t in[VFMIG_RUNS_PREFIX_BYTES],
                             const struct vfmig_record_head *head, size_t *ret_bytes,
                             struct vfmig_error *reterr);

/* Checks all of it, prefix included: the CRC, every run inside the memory map, counts in sum as
 * announced. *ret_page_crcs points into `in` (little endian, unaligned). */
int vfmig_runs_decode(const uint8_t *in, size_t size, const struct vfmig_record_head *head,
                      const struct vfmig_memory *memory, struct vfmig_page_run *ret_runs,
                      uint32_t *ret_run_count, const uint8_t **ret_page_crcs,
                      struct vfmig_error *reterr);

/* --- HELLO. The destination's answer on channel 0 chooses the version and makes the token; the
 * source's HELLO on every further channel repeats it. */
struct vfmig_hello {
    uint32_t version_min, version_max; /* an answer has the chosen one in both */
    uint8_t migration_id[16];
    uint8_t token[16]; /* zeros in the first HELLO */
    uint32_t channel;
    uint32_t channel_count;
    uint32_t page_size;
    uint32_t reserved; /* 0 */
};
#define VFMIG_HELLO_BYTES 56u
void vfmig_hello_encode(uint8_t out[VFMIG_HELLO_BYTES], const struct vfmig_hello *hello);
int vfmig_hello_decode(const uint8_t *in, size_t size, struct vfmig_hello *ret_hello,
                       struct vfmig_error *reterr);

/* --- ROUND: pages and records of this channel up to here, so that a reader can count. */
struct vfmig_round {
    uint64_t round;
    uint64_t pages;      /* sent as bytes since the channel was opened */
    uint64_t zero_pages; /* sent as ZERO since then */
};
#define VFMIG_ROUND_BYTES 24u
void vfmig_round_encode(uint8_t out[VFMIG_ROUND_BYTES], const struct vfmig_round *round);
int vfmig_round_decode(const uint8_t *in, size_t size, struct vfmig_round *ret_round,
                       struct vfmig_error *reterr);

/* --- DEVDATA: a segment is what one save of the device returned; it goes in pieces of at most
 * VFMIG_MAX_DEVICE_PIECE, the last one without MORE, and is loaded whole. */
struct vfmig_device_piece {
    uint32_t device;
    bool more;        /* the segment goes on in the next piece */
    uint64_t segment; /* counts from 0 for each device */
};
#define VFMIG_DEVICE_PIECE_BYTES 16u
void vfmig_device_piece_encode(uint8_t out[VFMIG_DEVICE_PIECE_BYTES],
                               const struct vfmig_device_piece *piece);
/* The bytes of the segment follow at in + VFMIG_DEVICE_PIECE_BYTES. */
int vfmig_device_piece_decode(const uint8_t *in, size_t size, struct vfmig_device_piece *ret_piece,
                              struct vfmig_error *reterr);

struct vfmig_device_end {
    uint32_t device;
    uint64_t segments;
    uint64_t bytes;
};
#define VFMIG_DEVICE_END_BYTES 24u
void vfmig_device_end_encode(uint8_t out[VFMIG_DEVICE_END_BYTES],
                             const struct vfmig_device_end *end);
int vfmig_device_end_decode(const uint8_t *in, size_t size, struct vfmig_device_end *ret_end,
                            struct vfmig_error *reterr);

/* --- PACKED: u32 tag, u32 bytes of the payload that is compressed, one zstd frame that gives just
 * these. The bytes are inside the row of that tag, so that what is unpacked is bounded before. */
struct vfmig_packed {
    enum vfmig_record_tag tag;
    uint32_t bytes;
};
#define VFMIG_PACKED_BYTES 8u
void vfmig_packed_encode(uint8_t out[VFMIG_PACKED_BYTES], const struct vfmig_packed *packed);
int vfmig_packed_decode(const uint8_t *in, size_t size, struct vfmig_packed *ret_packed,
                        struct vfmig_error *reterr);

/* --- CREDIT. A source has at most a window of a device's data on its way that is not loaded yet, or
 * one segment that is larger. So a device that loads slowly does not stop a channel. */
struct vfmig_credit {
    uint32_t device;
    uint64_t bytes; /* of its data, loaded since the beginning */
};
#define VFMIG_CREDIT_BYTES 16u
void vfmig_credit_encode(uint8_t out[VFMIG_CREDIT_BYTES], const struct vfmig_credit *credit);
int vfmig_credit_decode(const uint8_t *in, size_t size, struct vfmig_credit *ret_credit,
                        struct vfmig_error *reterr);
/* Bytes of one device's window when so many devices migrate; both sides compute it. */
uint64_t vfmig_device_window(uint32_t device_count);

/* --- RAMFDS, on a unix socket: u32 blocks, u32 0, and for each block {u64 guest address, u64 bytes, u64
 * offset in its descriptor}. One descriptor a block, in order, comes with the record's first byte. */
struct vfmig_shared_block {
    uint64_t gpa;
    uint64_t size;
    uint64_t fd_offset;
};
#define VFMIG_SHARED_BYTES_MAX (8u + 24u * VFMIG_MAX_MSG_FDS)
/* At most VFMIG_MAX_MSG_FDS blocks. Returns the bytes written. */
size_t vfmig_shared_encode(uint8_t out[VFMIG_SHARED_BYTES_MAX],
                           const struct vfmig_shared_block *blocks, uint32_t count);
/* ret_blocks has room for VFMIG_MAX_MSG_FDS. Whole pages, none of which ends beyond what an off_t holds. */
int vfmig_shared_decode(const uint8_t *in, size_t size, struct vfmig_shared_block *ret_blocks,
                        uint32_t *ret_count, struct vfmig_error *reterr);

/* --- VERDICT and ERROR: text is always terminated and made printable by the decoder. */
struct vfmig_verdict {
    bool accept;
    char text[232];
};
#define VFMIG_VERDICT_BYTES_MAX (4u + 232u)
/* Returns the bytes written. */
size_t vfmig_verdict_encode(uint8_t out[VFMIG_VERDICT_BYTES_MAX],
                            const struct vfmig_verdict *verdict);
int vfmig_verdict_decode(const uint8_t *in, size_t size, struct vfmig_verdict *ret_verdict,
                         struct vfmig_error *reterr);

#define VFMIG_STREAM_ERROR_BYTES_MAX (8u + 232u)
size_t vfmig_stream_error_encode(uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX],
                                 const struct vfmig_error *error);
int vfmig_stream_error_decode(const uint8_t *in, size_t size, struct vfmig_error *ret_error,
                              struct vfmig_error *reterr);

/* --- PING and PONG. */
struct vfmig_ping {
    uint64_t id;
    uint64_t sent_ns; /* asker's clock */
};
struct vfmig_pong {
    uint64_t id;
    uint64_t sent_ns;     /* copied from the PING */
    uint64_t received_ns; /* answerer's clock */
    uint64_t answered_ns;
};
#define VFMIG_PING_BYTES 16u
#define VFMIG_PONG_BYTES 32u
void vfmig_ping_encode(uint8_t out[VFMIG_PING_BYTES], const struct vfmig_ping *ping);
int vfmig_ping_decode(const uint8_t *in, size_t size, struct vfmig_ping *ret_ping,
                      struct vfmig_error *reterr);
void vfmig_pong_encode(uint8_t out[VFMIG_PONG_BYTES], const struct vfmig_pong *pong);
int vfmig_pong_decode(const uint8_t *in, size_t size, struct vfmig_pong *ret_pong,
                      struct vfmig_error *reterr);

/* The best of the PONGs seen so far: the one with the shortest round trip. The peer's clock reads
 * ours + offset_ns, within +- error_ns. Zeroed before the first. */
struct vfmig_clock_offset {
    int64_t offset_ns;
    uint64_t error_ns;
    uint64_t rtt_ns;
    uint32_t samples;
};
void vfmig_clock_offset_add(struct vfmig_clock_offset *clock, const struct vfmig_pong *pong,
                            uint64_t arrived_ns);

#endif
