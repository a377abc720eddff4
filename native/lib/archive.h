/* File streams (LAUNCH.md, "File streams"): what archive.get and archive.put share. */
#ifndef VMM_ARCHIVE_H
#define VMM_ARCHIVE_H

#include <limits.h>
#include <sys/stat.h>

#include "internal.h"

/* Sizes of one entry, all its extended attributes included, and of what is read or written at once. */
enum {
    VMM_CHUNK = 64 << 10,
    VMM_ENTRY_MAX = 2 << 20,
    VMM_XATTRS_BYTES = 1 << 20,
    VMM_XATTRS_MAX = 2000,
    VMM_TREE_DEPTH = 1000,
};

/* ---- archive.c ---- */

/* A descriptor that is written in chunks. Functions return 0, or -1 with errno. */
struct vmm_out {
    int fd;
    size_t used;
    uint8_t data[VMM_CHUNK];
};

int vmm_out_bytes(struct vmm_out *out, const void *data, size_t size);
int vmm_out_zeroes(struct vmm_out *out, uint64_t size);
int vmm_out_record(struct vmm_out *out, uint32_t argc, const char *const *argv, const uint32_t *len);
int vmm_out_flush(struct vmm_out *out);

struct vmm_in {
    int fd;
    size_t at, size;
    uint8_t data[VMM_CHUNK];
};

/* Exactly `size` bytes, or -1 with errno, which is 0 for a stream that ends before. */
int vmm_in_exactly(struct vmm_in *in, void *data, size_t size);
/* The next record. */
int vmm_in_record(struct vmm_in *in, struct vmm_records *out, struct vmm_error *e);

/* Whether the extended attribute belongs to a host and not to a file. */
bool vmm_xattr_is_foreign(const char *name);

/* ---- archive_links.c: which of several names of a file was the first ---- */

struct vmm_links {
    struct vmm_link *slots;
    size_t room, count, bytes;
};

/* The name under which the file of `st` came before; NULL after noting that it is `name`. Beyond a bound
 * of memory nothing more is noted: then a file's further names are copies of it. */
const char *vmm_links_first(struct vmm_links *links, const struct stat *st, const char *name);

/* ---- archive_get.c, archive_put.c: to standard output, from standard input ---- */

int vmm_archive_get(int root, const char *path, bool follow, struct vmm_out *out, struct vmm_error *e);
int vmm_archive_put(int root, const char *path, struct vmm_error *e);

#endif
