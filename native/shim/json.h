/* Write JSON text into a fixed area; parses nothing. */
#ifndef SHIM_JSON_H
#define SHIM_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* `full` is set, and nothing more written, once the text did not fit. */
struct text {
    char *at;
    size_t size, capacity;
    bool full;
};

void text_add(struct text *t, const char *data, size_t size);
void text_puts(struct text *t, const char *string);
void text_format(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A quoted JSON string, escaped as Docker's json-file log does (encoding/json with HTML escapes):
 * invalid UTF-8 becomes \ufffd, U+2028 and U+2029 are escaped. */
void text_json(struct text *t, const void *data, size_t size);

/* RFC 3339 with nanoseconds, trailing zeros removed as Go's time.RFC3339Nano does. */
void text_time(struct text *t, int64_t nanoseconds);

/* Length of the valid UTF-8 sequence (RFC 3629) at `p`, 0 when it is invalid or cut short. */
size_t utf8_length(const uint8_t *p, size_t size);

/* Largest length <= `size` that does not end within a UTF-8 sequence. */
size_t utf8_boundary(const uint8_t *p, size_t size);

#endif
