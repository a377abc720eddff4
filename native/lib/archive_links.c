/* Hard links met on a walk: a hash table of (device, inode), bounded. */
#include <stdlib.h>
#include <string.h>

#include "archive.h"

#define BYTES_MAX (64u << 20)

struct vmm_link {
    dev_t device;
    ino_t inode;
    char *name; /* NULL: free */
};

static struct vmm_link *find(const struct vmm_links *links, dev_t device, ino_t inode) {
    size_t at = (size_t)((inode ^ device << 32) * 0x9E3779B97F4A7C15u >> 20) & (links->room - 1);
    while (links->slots[at].name &&
           (links->slots[at].inode != inode || links->slots[at].device != device))
        at = (at + 1) & (links->room - 1);
    return &links->slots[at];
}

/* At most half full, so that a search ends soon. */
static int grow(struct vmm_links *links) {
    struct vmm_links next = {.room = links->room ? 2 * links->room : 256,
                             .count = links->count,
                             .bytes = links->bytes};
    next.slots = calloc(next.room, sizeof *next.slots);
    if (!next.slots)
        return -1;
    for (size_t i = 0; i < links->room; i++)
        if (links->slots[i].name)
            *find(&next, links->slots[i].device, links->slots[i].inode) = links->slots[i];
    free(links->slots);
    *links = next;
    return 0;
}

const char *vmm_links_first(struct vmm_links *links, const struct stat *st, const char *name) {
    size_t size = strlen(name) + 1;
    struct vmm_link *slot = links->room ? find(links, st->st_dev, st->st_ino) : NULL;
    if (slot && slot->name)
        return slot->name;
    links->bytes += size + 4 * sizeof *slot;
    if (links->bytes > BYTES_MAX)
        return NULL;
    if (links->count * 2 >= links->room && grow(links) < 0)
        return NULL;
    slot = find(links, st->st_dev, st->st_ino);
    slot->name = malloc(size);
    if (!slot->name)
        return NULL;
    memcpy(slot->name, name, size);
    slot->device = st->st_dev;
    slot->inode = st->st_ino;
    links->count++;
    return NULL;
}
