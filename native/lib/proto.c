#include "proto.h"

#include "vmm.h"

#include <string.h>

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
    p[2] = (uint8_t)(value >> 16);
    p[3] = (uint8_t)(value >> 24);
}

int vmm_frame_decode(const uint8_t *data, size_t size, struct vmm_frame *out)
{
    if (size < VMM_FRAME_HEADER)
        return 0;
    out->length = get32(data);
    out->channel = (uint16_t)(data[4] | data[5] << 8);
    out->type = data[6];
    out->flags = data[7];
    out->payload = data + VMM_FRAME_HEADER;
    if (out->length > VMM_FRAME_MAX || out->flags)
        return -1;
    return size - VMM_FRAME_HEADER >= out->length;
}

size_t vmm_frame_size(const struct vmm_frame *frame)
{
    return VMM_FRAME_HEADER + (size_t)frame->length;
}

void vmm_frame_header(uint8_t out[VMM_FRAME_HEADER], uint32_t length, uint16_t channel, uint8_t type)
{
    put32(out, length);
    out[4] = (uint8_t)channel;
    out[5] = (uint8_t)(channel >> 8);
    out[6] = type;
    out[7] = 0;
}

/* One argument at `*p`: u32 length, bytes, NUL. Advances `*p`. */
static int decode_one(const uint8_t **p, const uint8_t *end, const char **at, uint32_t *length)
{
    if (end - *p < 4)
        return -1;
    *length = get32(*p);
    *p += 4;
    if ((size_t)(end - *p) <= *length || (*p)[*length] != 0)
        return -1;
    *at = (const char *)*p;
    *p += *length + 1;
    return 0;
}

int vmm_args_decode(const uint8_t *data, size_t size, struct vmm_args *out)
{
    const uint8_t *p = data, *end = data + size;
    out->count = 0;
    if (size == 0)
        return 0;
    if (size < 4)
        return -1;
    uint32_t count = get32(p);
    p += 4;
    if (count > VMM_ARGS_MAX)
        return -1;
    for (; out->count < count; out->count++)
        if (decode_one(&p, end, &out->at[out->count], &out->length[out->count]))
            return -1;
    return p == end ? 0 : -1;
}

static bool decimal(const char *text, uint32_t length, int64_t *out)
{
    bool negative = length && text[0] == '-';
    uint32_t i = negative;
    if (i == length || length - i > 18)
        return false;
    int64_t value = 0;
    for (; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (text[i] - '0');
    }
    *out = negative ? -value : value;
    return true;
}

bool vmm_args_number(const struct vmm_args *args, uint32_t index, int64_t low, int64_t high,
                     int64_t *out)
{
    return index < args->count && decimal(args->at[index], args->length[index], out) &&
           *out >= low && *out <= high;
}

bool vmm_args_terminal(const struct vmm_args *args, unsigned short *rows, unsigned short *columns)
{
    int64_t r = 0, c = 0;
    bool valid = args->count < 7 || (vmm_args_number(args, 5, 0, 65535, &r) &&
                                     vmm_args_number(args, 6, 0, 65535, &c));
    *rows = (unsigned short)r;
    *columns = (unsigned short)c;
    return valid;
}

size_t vmm_args_encode(uint8_t *out, size_t size, uint32_t count, const char *const *strings)
{
    size_t at = 4;
    if (size < at)
        return 0;
    put32(out, count);
    for (uint32_t i = 0; i < count; i++) {
        size_t length = strlen(strings[i]);
        if (length > size || size - at < length + 5)
            return 0;
        put32(out + at, (uint32_t)length);
        memcpy(out + at + 4, strings[i], length + 1);
        at += length + 5;
    }
    return at;
}

bool vmm_version_understood(const char *text)
{
    const char *dot = strchr(VMM_PROTOCOL, '.');
    size_t major = (size_t)(dot - VMM_PROTOCOL);
    return strncmp(text, VMM_PROTOCOL, major + 1) == 0;
}
