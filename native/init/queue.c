#include <stdlib.h>
#include <string.h>

#include "guest.h"

static int make_room(struct queue *q, size_t size) {
    if (q->capacity - q->start - q->size >= size)
        return 0;
    bool enough = q->capacity - q->size >= size && q->start >= q->size; /* else all is moved again soon */
    if (q->start && q->size)
        memmove(q->data, q->data + q->start, q->size);
    q->start = 0;
    if (enough)
        return 0;
    size_t capacity = q->capacity ? 2 * q->capacity : 512;
    while (capacity - q->size < size)
        capacity *= 2;
    uint8_t *data = realloc(q->data, capacity);
    if (!data)
        return -1;
    q->data = data;
    q->capacity = capacity;
    return 0;
}

int queue_append(struct queue *q, const void *data, size_t size) {
    if (!size)
        return 0;
    if (make_room(q, size) < 0)
        return -1;
    memcpy(q->data + q->start + q->size, data, size);
    q->size += size;
    return 0;
}

const uint8_t *queue_head(const struct queue *q) {
    return q->data + q->start;
}

void queue_consume(struct queue *q, size_t size) {
    q->start += size;
    q->size -= size;
    if (!q->size)
        queue_clear(q);
}

void queue_clear(struct queue *q) {
    free(q->data);
    *q = (struct queue){0};
}
