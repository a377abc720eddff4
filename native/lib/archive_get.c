/* archive.get: a file or a tree as a stream, while others may change it: names are taken one by one, relative to
 * descriptors, and no link is followed; what vanishes meanwhile is left out. */
#include "archive.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "sys.h"

#define FIXED 10 /* arguments of an entry before its extended attributes */
#define LISTED 8192
#define MQUEUE_MAGIC 0x19800202
#define READ (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

struct get {
    struct vmm_out *out;
    struct vmm_links links;
    char name[PATH_MAX]; /* of the entry, relative to the top; "" for the top itself */
    size_t size;
    uint32_t argc;
    const char *argv[FIXED + 2 * VMM_XATTRS_MAX];
    uint32_t len[FIXED + 2 * VMM_XATTRS_MAX];
    char listed[XATTR_LIST_MAX + 1];
    char values[VMM_XATTRS_BYTES];
    char target[PATH_MAX];   /* here, so that the frames of a deep tree stay small */
    uint8_t data[VMM_CHUNK];
};

static int fail(const struct get *g, int err, struct vmm_error *e) {
    return vmm_fail(e, 1, err, "cannot read \"%.300s\"", g->size ? g->name : ".");
}

/* The stream is of no more use: the reader went away, or the content of a file is cut short. */
static int broken(const struct get *g, int err, struct vmm_error *e) {
    return vmm_fail(e, 2, err, "cannot send \"%.300s\"", g->size ? g->name : ".");
}

static void add(struct get *g, const char *text, size_t size) {
    g->argv[g->argc] = text;
    g->len[g->argc++] = (uint32_t)size;
}

/* ---- extended attributes: of `fd`, or of what is called `leaf` in the directory `fd` ---- */

static ssize_t list_xattrs(struct get *g, int fd, const char *leaf) {
    if (!leaf)
        return flistxattr(fd, g->listed, sizeof g->listed - 1);
    return fchdir(fd) < 0 ? -1 : llistxattr(leaf, g->listed, sizeof g->listed - 1);
}

static ssize_t get_xattr(int fd, const char *leaf, const char *name, char *value, size_t room) {
    ssize_t size = leaf ? lgetxattr(leaf, name, value, room) : fgetxattr(fd, name, value, room);
    if (size < 0 && (errno == ENODATA || errno == EPERM || errno == EACCES || errno == EOPNOTSUPP))
        return -2; /* removed meanwhile, or not for us */
    return size;
}

static int add_xattrs(struct get *g, int fd, const char *leaf, struct vmm_error *e) {
    ssize_t all = list_xattrs(g, fd, leaf), size;
    size_t used = 0;
    if (all < 0)
        return errno == EOPNOTSUPP || errno == EPERM || errno == ENOENT ? 0 : fail(g, errno, e);
    g->listed[all] = 0;
    for (const char *name = g->listed; name < g->listed + all; name += strlen(name) + 1) {
        if (vmm_xattr_is_foreign(name))
            continue;
        /* A size of 0 would only ask how much there is. */
        if (g->argc + 2 > FIXED + 2 * VMM_XATTRS_MAX || used == sizeof g->values)
            return fail(g, E2BIG, e);
        size = get_xattr(fd, leaf, name, g->values + used, sizeof g->values - used);
        if (size == -1)
            return fail(g, errno == ERANGE ? E2BIG : errno, e);
        if (size < 0)
            continue;
        add(g, name, strlen(name));
        add(g, g->values + used, (size_t)size);
        used += (size_t)size;
    }
    return 0;
}

/* ---- records ---- */

static void describe(struct get *g, char type, const struct stat *st, const char *link,
                     char numbers[8][24]) {
    long long mtime = (long long)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    const char *name = g->size ? g->name : ".";
    snprintf(numbers[0], 24, "%c", type);
    snprintf(numbers[1], 24, "%o", st->st_mode & 07777);
    snprintf(numbers[2], 24, "%u", st->st_uid);
    snprintf(numbers[3], 24, "%u", st->st_gid);
    snprintf(numbers[4], 24, "%lld", type == 'f' ? (long long)st->st_size : 0);
    snprintf(numbers[5], 24, "%lld", mtime);
    snprintf(numbers[6], 24, "%llu", type == 'c' || type == 'b' ? (unsigned long long)st->st_rdev : 0);
    g->argc = 0;
    add(g, "entry", 5);
    add(g, name, strlen(name));
    for (int i = 0; i < 7; i++)
        add(g, numbers[i], strlen(numbers[i]));
    add(g, link, strlen(link));
}

/* `fd` and `leaf` as for the attributes; `fd` -1 takes none. */
static int send_entry(struct get *g, char type, const struct stat *st, const char *link, int fd,
                      const char *leaf, struct vmm_error *e) {
    char numbers[8][24];
    describe(g, type, st, link, numbers);
    if (fd >= 0 && add_xattrs(g, fd, leaf, e) < 0)
        return -1;
    return vmm_out_record(g->out, g->argc, g->argv, g->len) < 0 ? broken(g, errno, e) : 0;
}

/* ---- one file ---- */

static int send_content(struct get *g, int fd, uint64_t left, struct vmm_error *e) {
    while (left) {
        ssize_t got = read(fd, g->data, left < sizeof g->data ? (size_t)left : sizeof g->data);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return broken(g, errno, e);
        if (got == 0) /* it shrank */
            return vmm_out_zeroes(g->out, left) < 0 ? broken(g, errno, e) : 0;
        if (vmm_out_bytes(g->out, g->data, (size_t)got) < 0)
            return broken(g, errno, e);
        left -= (uint64_t)got;
    }
    return 0;
}

static int send_file(struct get *g, int fd, struct vmm_error *e) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return fail(g, errno, e);
    if (!S_ISREG(st.st_mode))
        return 0; /* it was replaced meanwhile */
    const char *first = st.st_nlink > 1 ? vmm_links_first(&g->links, &st, g->name) : NULL;
    if (first)
        return send_entry(g, 'h', &st, first, -1, NULL, e);
    if (send_entry(g, 'f', &st, "", fd, NULL, e) < 0)
        return -1;
    return send_content(g, fd, (uint64_t)st.st_size, e);
}

/* What cannot be opened: `leaf` in `parent`, or without a leaf `parent` itself, by an O_PATH descriptor. */
static int send_special(struct get *g, int parent, const char *leaf, const struct stat *st,
                        struct vmm_error *e) {
    char type = S_ISLNK(st->st_mode) ? 'l' : S_ISCHR(st->st_mode) ? 'c' : S_ISBLK(st->st_mode) ? 'b' : 'p';
    const char *first = leaf && st->st_nlink > 1 ? vmm_links_first(&g->links, st, g->name) : NULL;
    if (first)
        return send_entry(g, 'h', st, first, -1, NULL, e);
    ssize_t size = type == 'l' ? readlinkat(parent, leaf ? leaf : "", g->target, sizeof g->target) : 0;
    if (size == sizeof g->target)
        return fail(g, ENAMETOOLONG, e);
    if (size < 0)
        return errno == ENOENT || errno == EINVAL ? 0 : fail(g, errno, e);
    g->target[size] = 0;
    return send_entry(g, type, st, g->target, leaf ? parent : -1, leaf, e);
}

/* ---- a tree ---- */

/* What the kernel makes up and nobody wants a copy of. */
static bool is_made_up(int fd) {
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return false;
    return fs.f_type == PROC_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC ||
           fs.f_type == CGROUP_SUPER_MAGIC || fs.f_type == CGROUP2_SUPER_MAGIC ||
           fs.f_type == DEVPTS_SUPER_MAGIC || fs.f_type == MQUEUE_MAGIC;
}

static int send_tree(struct get *g, int fd, dev_t above, int depth, struct vmm_error *e);

static bool vanished(int err) {
    return err == ENOENT || err == ELOOP || err == ENOTDIR || err == ENXIO || err == ESTALE;
}

static int send_leaf(struct get *g, int parent, const char *leaf, dev_t device, int depth,
                     struct vmm_error *e) {
    struct stat st;
    if (fstatat(parent, leaf, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return vanished(errno) ? 0 : fail(g, errno, e);
    if (S_ISSOCK(st.st_mode))
        return 0;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return send_special(g, parent, leaf, &st, e);
    VMM_CLOSE int fd = openat(parent, leaf, READ | (S_ISDIR(st.st_mode) ? O_DIRECTORY : 0));
    if (fd < 0)
        return vanished(errno) ? 0 : fail(g, errno, e);
    return S_ISDIR(st.st_mode) ? send_tree(g, fd, device, depth + 1, e) : send_file(g, fd, e);
}

/* Append `leaf` to the name, send it, and take it off again. */
static int send_named(struct get *g, int parent, const char *leaf, dev_t device, int depth,
                      struct vmm_error *e) {
    size_t before = g->size, size = strlen(leaf);
    if (before + size + 2 > sizeof g->name)
        return fail(g, ENAMETOOLONG, e);
    if (before)
        g->name[g->size++] = '/';
    memcpy(g->name + g->size, leaf, size + 1);
    g->size += size;
    int failed = send_leaf(g, parent, leaf, device, depth, e);
    g->size = before;
    g->name[before] = 0;
    return failed;
}

static int send_listed(struct get *g, int fd, dev_t device, int depth, struct vmm_error *e) {
    VMM_FREE char *list = malloc(LISTED); /* no DIR: that has 32 KiB, for each level */
    long got;
    if (!list)
        return fail(g, ENOMEM, e);
    while ((got = syscall(SYS_getdents64, fd, list, LISTED)) > 0)
        for (long at = 0; at < got;) {
            const struct dirent64 *entry = (const void *)(list + at);
            const char *leaf = entry->d_name;
            at += entry->d_reclen;
            if (strcmp(leaf, ".") && strcmp(leaf, "..") && send_named(g, fd, leaf, device, depth, e) < 0)
                return -1;
        }
    return got < 0 && errno != ENOENT ? fail(g, errno, e) : 0; /* ENOENT: the directory was removed */
}

static int send_tree(struct get *g, int fd, dev_t above, int depth, struct vmm_error *e) {
    struct stat st;
    if (depth > VMM_TREE_DEPTH)
        return vmm_fail(e, 1, 0, "\"%.200s…\" is deeper than %d directories", g->name, VMM_TREE_DEPTH);
    if (fstat(fd, &st) < 0)
        return fail(g, errno, e);
    if (send_entry(g, 'd', &st, "", fd, NULL, e) < 0)
        return -1;
    if (st.st_dev != above && depth && is_made_up(fd))
        return 0;
    return send_listed(g, fd, st.st_dev, depth, e);
}

/* ---- the top ---- */

static int send_top(struct get *g, int root, const char *path, bool follow, struct vmm_error *e) {
    uint64_t last = follow ? 0 : O_NOFOLLOW;
    struct stat st;
    VMM_CLOSE int top = vmm_root_open(root, path, O_PATH | last, 0);
    if (top < 0 || fstat(top, &st) < 0)
        return vmm_fail(e, 1, errno, "\"%.300s\"", path);
    if (S_ISSOCK(st.st_mode))
        return vmm_fail(e, 1, 0, "\"%.300s\" is a socket, which cannot be copied", path);
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return send_special(g, top, NULL, &st, e);
    VMM_CLOSE int fd = S_ISDIR(st.st_mode)
                           ? openat(top, ".", READ | O_DIRECTORY)
                           : vmm_root_open(root, path, (READ & ~O_NOFOLLOW) | last, 0);
    if (fd < 0)
        return vmm_fail(e, 1, errno, "\"%.300s\"", path);
    return S_ISDIR(st.st_mode) ? send_tree(g, fd, st.st_dev, 0, e) : send_file(g, fd, e);
}

int vmm_archive_get(int root, const char *path, bool follow, struct vmm_out *out, struct vmm_error *e) {
    static struct get g;
    const char *const argv[] = {"end"};
    const uint32_t len[] = {3};
    g.out = out;
    if (send_top(&g, root, path, follow, e) < 0)
        return -1;
    if (vmm_out_record(out, 1, argv, len) < 0 || vmm_out_flush(out) < 0)
        return broken(&g, errno, e);
    return 0;
}
