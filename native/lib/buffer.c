#include "buffer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Move what is there to the front; whether that alone makes room enough. What is more than half full would be
 * moved again soon: it grows instead. */
static bool compact(struct buffer *b, size_t size)
{
    bool enough = b->capacity - b->size >= size && b->start >= b->size;
    if (b->start && b->size)
        memmove(b->data, b->data + b->start, b->size);
    b->start = 0;
    return enough;
}

static int grow(struct buffer *b, size_t size)
{
    size_t capacity = b->capacity ? 2 * b->capacity : 512;
    while (capacity - b->size < size)
        capacity *= 2;
    uint8_t *data = realloc(b->data, capacity);
    if (!data)
        return -1;
    b->data = data;
    b->capacity = capacity;
    return 0;
}

uint8_t *buffer_reserve(struct buffer *b, size_t size)
{
    bool room = b->capacity - b->start - b->size >= size;
    if (!room && !compact(b, size) && grow(b, size))
        return NULL;
    return b->data + b->start + b->size;
}

void buffer_added(struct buffer *b, size_t size)
{
    b->size += size;
    if (!b->size)
        buffer_clear(b);
}

int buffer_append(struct buffer *b, const void *data, size_t size)
{
    if (!size)
        return 0;
    uint8_t *room = buffer_reserve(b, size);
    if (!room)
        return -1;
    memcpy(room, data, size);
    b->size += size;
    return 0;
}

const uint8_t *buffer_head(const struct buffer *b)
{
    return b->data + b->start;
}

void buffer_consume(struct buffer *b, size_t size)
{
    b->start += size;
    b->size -= size;
    if (!b->size)
        buffer_clear(b);
}

void buffer_clear(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){0};
}
