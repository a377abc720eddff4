/* A byte queue that holds memory only while it holds bytes. */
#ifndef VMM_BUFFER_H
#define VMM_BUFFER_H

#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *data;
    size_t start, size, capacity; /* bytes are at data + start */
};

/* Append; -1 when memory is short (nothing was appended). */
int buffer_append(struct buffer *b, const void *data, size_t size);

/* Room for `size` more bytes in one piece, to be counted with buffer_added(); NULL without memory. */
uint8_t *buffer_reserve(struct buffer *b, size_t size);
void buffer_added(struct buffer *b, size_t size);

const uint8_t *buffer_head(const struct buffer *b);
void buffer_consume(struct buffer *b, size_t size);
void buffer_clear(struct buffer *b);

#endif
