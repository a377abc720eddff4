/* Frames of the control protocol (native/PROTOCOL.md). Pure: makes no system calls, allocates nothing. */
#ifndef VMM_PROTO_H
#define VMM_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VMM_FRAME_HEADER 8
#define VMM_FRAME_MAX 65536
#define VMM_ARGS_MAX 64

enum vmm_frame_type {
    VMM_HELLO = 1,
    VMM_OK = 2,
    VMM_ERROR = 3,
    VMM_STATUS = 10,
    VMM_START = 11,
    VMM_SIGNAL = 12,
    VMM_STOP = 13,
    VMM_WAIT = 14,
    VMM_WAIT_NEXT = 15,
    VMM_ATTACH = 16,
    VMM_RESIZE = 17,
    VMM_EXEC = 18,
    VMM_EXEC_SIGNAL = 19,
    VMM_DETACH = 20,
    VMM_PAUSE = 21,
    VMM_UNPAUSE = 22,
    VMM_STATS = 23,
    VMM_TOP = 24,
    VMM_UPDATE = 25,
    VMM_FILE = 26,
    VMM_STDIN = 30,
    VMM_STDOUT = 31,
    VMM_STDERR = 32,
    VMM_EXIT = 33,
    VMM_EXEC_ATTACH = 34,
    VMM_LISTING = 35,
    VMM_LAUNCH = 40,
    VMM_CREDIT = 41,
    VMM_SHUTDOWN = 42,
    VMM_TIME = 43,
    VMM_POWER = 44,
};

struct vmm_frame {
    uint32_t length;
    uint16_t channel;
    uint8_t type;
    uint8_t flags;
    const uint8_t *payload; /* into the caller's data */
};

/* 1: `out` is the first frame of `data`; 0: more bytes are needed; -1: the framing is broken. */
int vmm_frame_decode(const uint8_t *data, size_t size, struct vmm_frame *out);

/* The bytes a decoded frame occupied. */
size_t vmm_frame_size(const struct vmm_frame *frame);

void vmm_frame_header(uint8_t out[VMM_FRAME_HEADER], uint32_t length, uint16_t channel,
                      uint8_t type);

/* The arguments of a request; `at` points into the frame and is NUL-terminated. */
struct vmm_args {
    uint32_t count;
    const char *at[VMM_ARGS_MAX];
    uint32_t length[VMM_ARGS_MAX];
};

/* Decode a bare argument list; an empty payload is the empty list. Returns 0 or -1. */
int vmm_args_decode(const uint8_t *data, size_t size, struct vmm_args *out);

/* Argument `index` as a decimal number within [low, high]; false when it is not one. */
bool vmm_args_number(const struct vmm_args *args, uint32_t index, int64_t low, int64_t high,
                     int64_t *out);

/* Arguments 5 and 6 of EXEC, the rows and columns its terminal begins with; 0 and 0 where they are missing.
 * False when they are no such numbers. */
bool vmm_args_terminal(const struct vmm_args *args, unsigned short *rows, unsigned short *columns);

/* Encode `count` strings into `out` (capacity `size`). Returns the length, 0 when they do not fit. */
size_t vmm_args_encode(uint8_t *out, size_t size, uint32_t count, const char *const *strings);

/* Whether a peer of protocol version `text` ("MAJOR.MINOR") can be understood. */
bool vmm_version_understood(const char *text);

#endif
