/* The workload's root file system. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define MAX_OPTIONS 4096 /* a page, mount(2) */

struct text {
    char bytes[MAX_OPTIONS];
    size_t used;
};

static void add(struct text *t, const char *more) {
    for (; *more; more++, t->used++)
        if (t->used < sizeof t->bytes - 1)
            t->bytes[t->used] = *more;
}

/* overlayfs takes `:` and `,` in a lower directory's name after a backslash. */
static void add_escaped(struct text *t, const char *more) {
    for (; *more; more++) {
        if (strchr(":,\\", *more))
            add(t, "\\");
        add(t, (char[]){*more, 0});
    }
}

/* Upper and work directory go in by descriptor: no escaping, short, and unreadable from inside. */
static int add_directory(struct text *t, const char *option, const char *path, int *fd,
                         struct vmm_error *e) {
    char name[64];
    *fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0)
        return vmm_fail(e, 125, errno, "%.300s", path);
    snprintf(name, sizeof name, ",%s=/proc/self/fd/%d", option, *fd);
    add(t, name);
    return 0;
}

/* An overlay once mounted `volatile` refuses to be mounted again while this mark is there. */
static void forget_volatile(int work) {
    unlinkat(work, "work/incompat/volatile/dirty", 0);
    unlinkat(work, "work/incompat/volatile", AT_REMOVEDIR);
    unlinkat(work, "work/incompat", AT_REMOVEDIR);
}

/* Take the mount now at `path` (just made by us) as the root. */
static int adopt(struct vmm_child *child, const char *path, struct vmm_error *e) {
    vmm_close(&child->root);
    child->root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return child->root < 0 ? vmm_fail(e, 125, errno, "cannot open the root %.300s", path) : 0;
}

static int mount_overlay(const char *layers, const char *options, unsigned long flags,
                         struct vmm_error *e) {
    if (chdir(layers) < 0)
        return vmm_fail(e, 125, errno, "%.300s", layers);
    if (sys_mount("overlay", ".", "overlay", flags, options) < 0)
        return vmm_fail(e, 125, errno, "cannot mount the overlay in %.200s", layers);
    return 0;
}

int vmm_root_overlay(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    const char *layers = r->argv[1], *upper = r->argv[2], *work = r->argv[3];
    struct text options = {.used = 0};
    struct statfs fs;
    VMM_CLOSE int upper_fd = -1;
    VMM_CLOSE int work_fd = -1;
    add(&options, "lowerdir=");
    for (uint32_t i = 5; i < r->argc; i++) {
        add(&options, i > 5 ? ":" : "");
        add_escaped(&options, r->argv[i]);
    }
    if (*upper && (add_directory(&options, "upperdir", upper, &upper_fd, e) < 0 ||
                   add_directory(&options, "workdir", work, &work_fd, e) < 0))
        return -1;
    if (*upper && !strcmp(r->argv[4], "1"))
        add(&options, ",volatile");
    if (options.used >= sizeof options.bytes)
        return vmm_fail(e, 125, 0, "the layers' names take %zu of 4095 bytes of mount options",
                        options.used);
    options.bytes[options.used] = 0;
    if (work_fd >= 0)
        forget_volatile(work_fd);
    if (mount_overlay(layers, options.bytes, *upper ? 0 : MS_RDONLY, e) < 0 ||
        adopt(child, layers, e) < 0)
        return -1;
    if (fstatfs(child->root, &fs) < 0 || fs.f_type != OVERLAYFS_SUPER_MAGIC)
        return vmm_fail(e, 125, 0, "what is at %.300s is no overlay", layers);
    return 0;
}

int vmm_root_directory(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct mount_attr private = {.propagation = MS_PRIVATE};
    VMM_CLOSE int tree = sys_open_tree(AT_FDCWD, r->argv[1],
                                       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    VMM_CLOSE int place = open(r->argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (tree < 0 || place < 0 || sys_mount_setattr(tree, AT_RECURSIVE, &private) < 0 ||
        sys_move_mount(tree, place) < 0)
        return vmm_fail(e, 125, errno, "cannot take %.300s as the root", r->argv[1]);
    return adopt(child, r->argv[1], e);
}

/* pivot_root(2), "pivot_root(".", ".")": the old root lies on top of the new one and is taken off. */
int vmm_root_pivot(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    (void)r;
    if (!(child->host->fresh & CLONE_NEWNS) || child->target >= 0)
        return vmm_fail(e, 125, 0, "only in a new mount namespace");
    if (fchdir(child->root) < 0 || sys_pivot_root(".", ".") < 0)
        return vmm_fail(e, 125, errno, "cannot change to the new root");
    if (sys_umount(".", SYS_MNT_DETACH) < 0 || chdir("/") < 0)
        return vmm_fail(e, 125, errno, "cannot detach the host's root");
    return adopt(child, "/", e);
}

int vmm_root_readonly(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY};
    (void)r;
    if (sys_mount_setattr(child->root, 0, &readonly) < 0)
        return vmm_fail(e, 125, errno, "cannot make the root read-only");
    return 0;
}
