/* Small files inside the workload's root. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

/* Opened by name again, as what vmm_root_make() found or made: a regular file, which alone is cut at once, so
 * that an overlay does not copy up what is thrown away. */
static int open_regular(int root, const char *path, struct vmm_error *e) {
    struct stat st;
    VMM_CLOSE int found = vmm_root_make(root, path, VMM_REGULAR, e);
    if (found < 0)
        return -1;
    if (fstat(found, &st) < 0 || !S_ISREG(st.st_mode))
        return vmm_fail(e, 125, 0, "\"%.200s\" in the image is no regular file", path);
    int fd = vmm_root_open(root, path, O_WRONLY | O_TRUNC | O_NONBLOCK | O_NOCTTY, 0);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        return fd;
    vmm_close(&fd);
    return vmm_fail(e, 125, errno, "cannot write \"%.200s\"", path);
}

int vmm_root_write(int root, const char *path, int mode, const void *content, size_t size,
                   struct vmm_error *e) {
    VMM_CLOSE int fd = open_regular(root, path, e);
    const char *at = content;
    if (fd < 0)
        return -1;
    while (size > 0) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && errno != EINTR)
            return vmm_fail(e, 125, errno, "cannot write \"%.200s\"", path);
        at += done > 0 ? done : 0;
        size -= done > 0 ? (size_t)done : 0;
    }
    if (mode >= 0 && fchmod(fd, (mode_t)mode) < 0)
        return vmm_fail(e, 125, errno, "cannot change the mode of \"%.200s\"", path);
    return 0;
}

int vmm_make_file(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    long long mode;
    if (vmm_number(r->argv[2], 8, 0, 07777, &mode, e) < 0)
        return -1;
    return vmm_root_write(child->root, r->argv[1], (int)mode, r->argv[3], r->len[3], e);
}
