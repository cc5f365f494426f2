/* SPDX-License-Identifier: BSD-3-Clause */
/* An input is a program: one byte that chooses the device and its client, then operations of
 * kind u8, size u16 (little-endian) and body. Any bytes are a program; what does not fit is cut. */
#ifndef VFMIG_TESTS_FUZZ_INPUT_H
#define VFMIG_TESTS_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INPUT_MAX 16384u /* bytes */
#define OPS_MAX   256u

enum op_kind {
    OP_SEND = 0,  /* how, cut, bytes: to a socket of the server */
    OP_ANSWER,    /* which, way, errno: to a DMA message */
    OP_POKE,      /* offset u32, bytes: into guest memory; top bit: into the file that shrinks */
    OP_TRUNCATE,  /* size u32 of the file that shrinks */
    OP_TIME,      /* microseconds as a power of two */
    OP_RECONNECT, /* text: the client goes, another comes; or the second socket goes */
    OP_STATE,     /* value, how: device_state */
    OP_FRAME,     /* how, kind, bytes: one frame of the device stream */
    OP_PAGES,     /* how, first, count, fill: a frame with SRAM pages of the dma device */
    OP_SAVE,      /* how, size u16: reads what the device saves, and keeps it */
    OP_BACK,      /* how, (position u32, value u8)...: loads what was kept, changed there */
    OP_CONTROL,   /* what: a control client comes, with this text, or goes */
    OP_ASIDE,     /* how, cut, bytes: as OP_SEND, from the control client */
    OP_WINDOW,    /* whose, offset u32, bytes: into the shared window, at any time */
    OP_KINDS
};

/* how of OP_SEND */
#define SEND_TWIN       0x01u /* on the second socket */
#define SEND_FIX_SIZE   0x02u /* the header's size becomes that of the bytes */
#define SEND_HOLD       0x04u /* the server does not look yet */
#define SEND_FDS(how)   ((how) >> 3 & 7u)
#define SEND_COUNT(how) (((how) >> 6) + 1u)
enum send_fds { FDS_NONE, FDS_RAM, FDS_EVENT, FDS_SHRINK, FDS_PIPE, FDS_FULL, FDS_MANY, FDS_FILE };

#define RECONNECT_TWIN 0x80u
#define CONTROL_GOES   0x80u

/* way of OP_ANSWER */
enum answer_way {
    ANSWER_GOOD,
    ANSWER_ERROR,
    ANSWER_SHORT,
    ANSWER_COUNT,
    ANSWER_COMMAND,
    ANSWER_ID,
    ANSWER_LONG,
    ANSWER_TWICE,
};
#define ANSWER_ELSEWHERE 0x08u /* on the other socket */

/* how of the operations that move device data */
#define DATA_V1          0x01u /* through the window of the region */
#define DATA_BAD_CRC     0x02u
#define DATA_SEQUENCE    0x04u /* one frame is missing before it */
#define DATA_OTHER_ID    0x08u
#define DATA_DEVICE      0x10u        /* in front: the head of a section of the device ... */
#define DATA_LIBRARY     0x20u        /* ... or of the library */
#define DATA_PIECES(how) ((how) >> 6) /* 0: whole; otherwise smaller and smaller pieces */
#define STATE_V1         0x01u
#define STATE_NO_REPLY   0x02u

struct op {
    uint8_t kind;
    uint16_t size;
    const uint8_t *body;
};

struct program {
    uint8_t choice;
    uint32_t count;
    struct op ops[OPS_MAX];
};

void program_parse(const uint8_t *data, size_t size, struct program *ret_program);

/* Bytes of an operation's body; 0 beyond its end. */
uint8_t op_byte(const struct op *op, uint32_t at);
uint32_t op_word(const struct op *op, uint32_t at);

/* How often an operation of each kind is made up. */
struct weights {
    uint8_t of[OP_KINDS];
};

/* Changes the program in data to another one, at most max bytes; a function of its arguments. */
size_t program_mutate(uint8_t *data, size_t size, size_t max, uint64_t seed,
                      const struct weights *weights);

/* The head of one program and the tail of another. */
size_t program_cross(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                     uint8_t *ret_data, size_t max, uint64_t seed);

#endif
