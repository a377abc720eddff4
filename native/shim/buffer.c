#include "buffer.h"

#include <stdlib.h>
#include <string.h>

static void compact(struct buffer *b)
{
    if (b->start && b->size)
        memmove(b->data, b->data + b->start, b->size);
    b->start = 0;
}

uint8_t *buffer_reserve(struct buffer *b, size_t size)
{
    if (b->capacity - b->start - b->size >= size)
        return b->data + b->start + b->size;
    compact(b);
    if (b->capacity - b->size < size) {
        size_t capacity = b->capacity ? b->capacity : 512;
        while (capacity - b->size < size)
            capacity *= 2;
        uint8_t *data = realloc(b->data, capacity);
        if (!data)
            return NULL;
        b->data = data;
        b->capacity = capacity;
    }
    return b->data + b->size;
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
