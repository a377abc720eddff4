/* Records: LAUNCH.md, "Encoding". Makes no system call; safe on any bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm.h"

#define MAX_SIZE (16u << 20)
#define MAX_ARGUMENTS 4096u

struct cursor {
    const uint8_t *at;
    size_t left;
};

static uint32_t load32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void store32(uint8_t *p, uint32_t value) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

static bool take32(struct cursor *c, uint32_t *out) {
    if (c->left < 4)
        return false;
    *out = load32(c->at);
    c->at += 4;
    c->left -= 4;
    return true;
}

/* The bytes of one argument; they end with a NUL that is checked. */
static const uint8_t *take_argument(struct cursor *c, uint32_t *length) {
    const uint8_t *bytes;
    if (!take32(c, length) || *length >= c->left || c->at[*length] != 0)
        return NULL;
    bytes = c->at;
    c->at += (size_t)*length + 1;
    c->left -= (size_t)*length + 1;
    return bytes;
}

static int broken(struct vmm_error *e, const char *what) {
    return vmm_fail(e, 125, 0, "broken records: %s", what);
}

/* Count records and arguments, checking every length. */
static int measure(struct cursor c, size_t *records, size_t *arguments, struct vmm_error *e) {
    *records = *arguments = 0;
    while (c.left) {
        uint32_t count, length;
        if (!take32(&c, &count))
            return broken(e, "cut off");
        if (count < 1 || count > MAX_ARGUMENTS)
            return broken(e, "a record must have 1 to 4096 arguments");
        for (uint32_t i = 0; i < count; i++) {
            const uint8_t *bytes = take_argument(&c, &length);
            if (!bytes)
                return broken(e, "an argument is cut off or unterminated");
            if (i == 0 && memchr(bytes, 0, length))
                return broken(e, "an operation's name contains a NUL");
        }
        *records += 1;
        *arguments += count;
    }
    return 0;
}

/* One allocation: the argument pointers, their lengths, then a copy of the data. */
static void fill(struct vmm_records *out, size_t arguments, size_t size) {
    char **argv = out->storage;
    uint32_t *len = (uint32_t *)(argv + arguments + out->count);
    uint8_t *copy = (uint8_t *)(len + arguments);
    struct cursor c = {copy, size};
    for (size_t r = 0; r < out->count; r++) {
        struct vmm_record *record = &out->items[r];
        take32(&c, &record->argc);
        record->argv = argv;
        record->len = len;
        for (uint32_t i = 0; i < record->argc; i++)
            argv[i] = (char *)(uintptr_t)take_argument(&c, &len[i]);
        argv[record->argc] = NULL;
        argv += record->argc + 1;
        len += record->argc;
    }
}

int vmm_records_decode(const void *data, size_t size, struct vmm_records *out, struct vmm_error *e) {
    struct cursor c = {data, size};
    size_t arguments, pointers;
    *out = (struct vmm_records){0};
    if (size > MAX_SIZE)
        return broken(e, "larger than 16 MiB");
    if (measure(c, &out->count, &arguments, e) < 0)
        return -1;
    pointers = arguments + out->count; /* each argv ends with NULL */
    out->items = calloc(out->count + 1, sizeof *out->items);
    out->storage = malloc(pointers * sizeof(char *) + arguments * sizeof(uint32_t) + size + 1);
    if (!out->items || !out->storage) {
        vmm_records_free(out);
        return vmm_fail(e, 125, ENOMEM, "records");
    }
    uint8_t *copy = (uint8_t *)out->storage + pointers * sizeof(char *) + arguments * sizeof(uint32_t);
    if (size)
        memcpy(copy, data, size);
    fill(out, arguments, size);
    return 0;
}

void vmm_records_free(struct vmm_records *records) {
    free(records->items);
    free(records->storage);
    *records = (struct vmm_records){0};
}

int vmm_record_encode(uint32_t argc, const char *const *argv, const uint32_t *len, uint8_t **out,
                      size_t *size) {
    uint8_t *p;
    *size = 4;
    for (uint32_t i = 0; i < argc; i++)
        *size += 5 + (size_t)len[i];
    *out = p = malloc(*size);
    if (!p)
        return -1;
    store32(p, argc);
    p += 4;
    for (uint32_t i = 0; i < argc; i++) {
        store32(p, len[i]);
        memcpy(p + 4, argv[i], len[i]);
        p[4 + (size_t)len[i]] = 0;
        p += 5 + (size_t)len[i];
    }
    return 0;
}
