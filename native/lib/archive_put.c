/* archive.put: make what a stream names below a directory, while others may change it. Every name is resolved
 * with openat2(2) below the directory, following no link; what is made is made anew (O_EXCL) and dressed by
 * descriptor. */
#include "archive.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "sys.h"

#define FIXED 10
#define BLOCK 4096
#define ID_MAX 4294967294ll
#define BELOW (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)

struct entry {
    const struct vmm_record *record;
    const char *name, *leaf, *link;
    char type;
    long long mode, uid, gid, size, mtime, rdev;
};

/* A directory whose time is set once nothing more is made in it: an ancestor of the last entry. */
struct level {
    size_t size; /* of its name */
    long long mtime;
};

struct put {
    struct vmm_in in;
    int base, parent;
    char above[PATH_MAX]; /* name of `parent`, a directory below `base` */
    char path[PATH_MAX];
    struct level level[PATH_MAX / 2];
    size_t levels;
    uint8_t data[VMM_CHUNK];
};

static int fail(const struct entry *n, int err, struct vmm_error *e) {
    return vmm_fail(e, 1, err, "cannot make \"%.300s\"", n->name);
}

/* ---- entries ---- */

/* `.`, or parts that are neither empty nor `.` nor `..`. */
static bool is_name(const char *name, size_t size) {
    if (!size || size >= PATH_MAX || strlen(name) != size)
        return false;
    if (!strcmp(name, "."))
        return true;
    for (const char *at = name;; at++) {
        size_t part = strcspn(at, "/");
        if (!part || part > NAME_MAX || (part <= 2 && !strncmp(at, "..", part)))
            return false;
        at += part;
        if (!*at)
            return true;
    }
}

static int parse_numbers(const struct vmm_record *r, struct entry *n, struct vmm_error *e) {
    return vmm_number(r->argv[3], 8, 0, 07777, &n->mode, e) < 0 ||
                   vmm_number(r->argv[4], 10, 0, ID_MAX, &n->uid, e) < 0 ||
                   vmm_number(r->argv[5], 10, 0, ID_MAX, &n->gid, e) < 0 ||
                   vmm_number(r->argv[6], 10, 0, LLONG_MAX, &n->size, e) < 0 ||
                   vmm_number(r->argv[7], 10, LLONG_MIN, LLONG_MAX, &n->mtime, e) < 0 ||
                   vmm_number(r->argv[8], 10, 0, LLONG_MAX, &n->rdev, e) < 0
               ? -1
               : 0;
}

static int parse(const struct vmm_record *r, struct entry *n, struct vmm_error *e) {
    if (r->argc < FIXED || r->argc % 2 || strcmp(r->argv[0], "entry") != 0)
        return vmm_fail(e, 1, 0, "this is no stream of files");
    *n = (struct entry){.record = r, .name = r->argv[1], .type = r->argv[2][0], .link = r->argv[9]};
    if (!is_name(n->name, r->len[1]))
        return vmm_fail(e, 1, 0, "the name \"%.300s\" is refused", n->name);
    if (r->len[2] != 1 || !n->type || !strchr("dflhcbp", n->type) || parse_numbers(r, n, e) < 0)
        return vmm_fail(e, 1, 0, "\"%.300s\" is described by nonsense", n->name);
    bool wrong = n->type == 'h' ? !is_name(n->link, r->len[9]) || !strcmp(n->link, ".")
                                : n->type == 'l' && (!r->len[9] || r->len[9] >= PATH_MAX ||
                                                     strlen(n->link) != r->len[9]);
    if (wrong)
        return vmm_fail(e, 1, 0, "\"%.200s\": the link to \"%.200s\" is refused", n->name, n->link);
    const char *slash = strrchr(n->name, '/');
    n->leaf = slash ? slash + 1 : n->name;
    return 0;
}

/* ---- places ---- */

static int open_below(int base, const char *path, uint64_t flags) {
    for (int tries = 0;; tries++) { /* EAGAIN: something was renamed meanwhile, openat2(2) */
        int fd = sys_openat2(base, *path ? path : ".", flags, BELOW);
        if (fd >= 0 || errno != EAGAIN || tries == 100)
            return fd;
    }
}

/* Make what `path` lacks, one part after the other. */
static int make_parents(int base, const char *path) {
    char name[NAME_MAX + 1];
    int fd = open_below(base, "", O_PATH | O_DIRECTORY);
    while (fd >= 0 && *path) {
        VMM_CLOSE int above = fd;
        size_t size = strcspn(path, "/");
        memcpy(name, path, size); /* is_name() checked its size */
        name[size] = 0;
        path += size + (path[size] == '/');
        if (mkdirat(above, name, 0755) < 0 && errno != EEXIST)
            return -1;
        fd = openat(above, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    }
    return fd;
}

/* Open the parent of `name` as p->parent; the last one is kept, as neighbours come one after the other. */
static int open_parent(struct put *p, const char *name) {
    const char *slash = strrchr(name, '/');
    size_t size = slash ? (size_t)(slash - name) : 0;
    if (p->parent >= 0 && strlen(p->above) == size && !memcmp(p->above, name, size))
        return 0;
    vmm_close(&p->parent);
    memcpy(p->above, name, size);
    p->above[size] = 0;
    p->parent = open_below(p->base, p->above, O_PATH | O_DIRECTORY);
    if (p->parent < 0 && errno == ENOENT)
        p->parent = make_parents(p->base, p->above);
    return p->parent < 0 ? -1 : 0;
}

/* Take away the file in the way of one. */
static int clear(const struct put *p, const struct entry *n, struct vmm_error *e) {
    struct stat st;
    if (fstatat(p->parent, n->leaf, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : fail(n, errno, e);
    if (S_ISDIR(st.st_mode))
        return vmm_fail(e, 1, EISDIR, "cannot replace the directory \"%.300s\" with a file", n->name);
    return unlinkat(p->parent, n->leaf, 0) < 0 && errno != ENOENT ? fail(n, errno, e) : 0;
}

/* ---- what belongs to a file ---- */

/* By descriptor; without one what p->leaf is in p->parent. What the file system has no place for, or this process
 * no right to, is left out, as tar(1) does; but never what a program may do. */
static int set_xattrs(const struct put *p, const struct entry *n, int fd, struct vmm_error *e) {
    const struct vmm_record *r = n->record;
    if (fd < 0 && r->argc > FIXED && fchdir(p->parent) < 0)
        return fail(n, errno, e);
    for (uint32_t i = FIXED; i < r->argc; i += 2) {
        const char *name = r->argv[i];
        if (vmm_xattr_is_foreign(name) || strlen(name) != r->len[i])
            return vmm_fail(e, 1, 0, "\"%.200s\": the attribute \"%.100s\" is refused", n->name, name);
        int failed = fd >= 0 ? fsetxattr(fd, name, r->argv[i + 1], r->len[i + 1], 0)
                             : lsetxattr(n->leaf, name, r->argv[i + 1], r->len[i + 1], 0);
        bool optional = (errno == EOPNOTSUPP || errno == EPERM) && strcmp(name, "security.capability");
        if (failed && !optional)
            return vmm_fail(e, 1, errno, "cannot set %.100s of \"%.200s\"", name, n->name);
    }
    return 0;
}

static void split_time(long long ns, struct timespec times[2]) {
    long long rest = ns % 1000000000, whole = ns / 1000000000;
    times[0] = (struct timespec){.tv_sec = whole - (rest < 0), .tv_nsec = rest + (rest < 0 ? 1000000000 : 0)};
    times[1] = times[0];
}

/* The owner first: changing it takes set-user-ID bits and capabilities away, chown(2). */
static int dress(const struct put *p, const struct entry *n, int fd, struct vmm_error *e) {
    struct timespec times[2];
    split_time(n->mtime, times);
    if (fchown(fd, (uid_t)n->uid, (gid_t)n->gid) < 0 || fchmod(fd, (mode_t)n->mode) < 0)
        return fail(n, errno, e);
    if (set_xattrs(p, n, fd, e) < 0)
        return -1;
    if (n->type != 'd' && futimens(fd, times) < 0)
        return fail(n, errno, e);
    return 0;
}

/* ---- directories ---- */

/* Leave the directories that `name` is not in: nothing more is made in them. */
static void leave(struct put *p, const char *name) {
    while (p->levels) {
        struct level *l = &p->level[p->levels - 1];
        struct timespec times[2];
        if (!strncmp(name, p->path, l->size) && name[l->size] == '/')
            return;
        p->path[l->size] = 0;
        split_time(l->mtime, times);
        VMM_CLOSE int fd = open_below(p->base, p->path, O_RDONLY | O_DIRECTORY);
        if (fd >= 0)
            futimens(fd, times);
        p->levels--;
    }
}

static void enter(struct put *p, const struct entry *n) {
    size_t size = strlen(n->name);
    memcpy(p->path, n->name, size + 1);
    p->level[p->levels++] = (struct level){size, n->mtime};
}

static int make_directory(struct put *p, const struct entry *n, struct vmm_error *e) {
    struct stat st;
    if (mkdirat(p->parent, n->leaf, 0700) < 0 && errno != EEXIST)
        return fail(n, errno, e);
    VMM_CLOSE int fd = openat(p->parent, n->leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && fstatat(p->parent, n->leaf, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode))
        return vmm_fail(e, 1, ENOTDIR, "cannot replace the file \"%.300s\" with a directory", n->name);
    if (fd < 0)
        return fail(n, errno, e);
    if (dress(p, n, fd, e) < 0)
        return -1;
    enter(p, n);
    return 0;
}

/* ---- files ---- */

static int write_all(int fd, const uint8_t *data, size_t size, long long offset) {
    while (size) {
        ssize_t done = pwrite(fd, data, size, offset);
        if (done < 0 && errno != EINTR)
            return -1;
        if (done < 0)
            continue;
        data += done;
        size -= (size_t)done;
        offset += done;
    }
    return 0;
}

static size_t block_at(size_t at, size_t size) {
    return size - at < BLOCK ? size - at : BLOCK;
}

static bool is_zero(const uint8_t *data, size_t size) {
    static const uint8_t zeroes[BLOCK];
    return !memcmp(data, zeroes, size);
}

/* Blocks of zeroes are left as holes. */
static int write_sparse(int fd, const uint8_t *data, size_t size, long long offset) {
    for (size_t at = 0, end; at < size; at = end) {
        end = at + block_at(at, size);
        if (is_zero(data + at, end - at))
            continue;
        while (end < size && !is_zero(data + end, block_at(end, size)))
            end += block_at(end, size);
        if (write_all(fd, data + at, end - at, offset + (long long)at) < 0)
            return -1;
    }
    return 0;
}

static int write_content(struct put *p, const struct entry *n, int fd, struct vmm_error *e) {
    for (long long offset = 0, left = n->size; left;) {
        size_t part = left < VMM_CHUNK ? (size_t)left : VMM_CHUNK;
        if (vmm_in_exactly(&p->in, p->data, part) < 0)
            return vmm_fail(e, 1, errno, "\"%.300s\" ends too early", n->name);
        if (write_sparse(fd, p->data, part, offset) < 0)
            return fail(n, errno, e);
        offset += (long long)part;
        left -= (long long)part;
    }
    return ftruncate(fd, n->size) < 0 ? fail(n, errno, e) : 0;
}

static int make_file(struct put *p, const struct entry *n, struct vmm_error *e) {
    if (clear(p, n, e) < 0)
        return -1;
    VMM_CLOSE int fd = openat(p->parent, n->leaf,
                              O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return fail(n, errno, e);
    if (write_content(p, n, fd, e) == 0 && dress(p, n, fd, e) == 0)
        return 0;
    unlinkat(p->parent, n->leaf, 0); /* no half of a file */
    return -1;
}

/* Both names are below the base, and a symbolic link is linked to itself. */
static int make_link(struct put *p, const struct entry *n, struct vmm_error *e) {
    char above[PATH_MAX];
    struct stat here, there;
    const char *slash = strrchr(n->link, '/');
    snprintf(above, sizeof above, "%.*s", slash ? (int)(slash - n->link) : 0, n->link);
    VMM_CLOSE int from = open_below(p->base, above, O_PATH | O_DIRECTORY);
    const char *leaf = slash ? slash + 1 : n->link;
    if (from < 0 || fstatat(from, leaf, &there, AT_SYMLINK_NOFOLLOW) < 0)
        return vmm_fail(e, 1, errno, "cannot link \"%.200s\" to \"%.200s\"", n->name, n->link);
    if (fstatat(p->parent, n->leaf, &here, AT_SYMLINK_NOFOLLOW) == 0 && here.st_ino == there.st_ino &&
        here.st_dev == there.st_dev)
        return 0;
    if (clear(p, n, e) < 0)
        return -1;
    if (linkat(from, leaf, p->parent, n->leaf, 0) < 0)
        return vmm_fail(e, 1, errno, "cannot link \"%.200s\" to \"%.200s\"", n->name, n->link);
    return 0;
}

/* Made with its mode (the umask is 0): by name it could be another thing's later. */
static int make_special(struct put *p, const struct entry *n, struct vmm_error *e) {
    struct timespec times[2];
    mode_t kind = n->type == 'c' ? S_IFCHR : n->type == 'b' ? S_IFBLK : S_IFIFO;
    split_time(n->mtime, times);
    if (clear(p, n, e) < 0)
        return -1;
    int failed = n->type == 'l' ? symlinkat(n->link, p->parent, n->leaf)
                                : mknodat(p->parent, n->leaf, kind | (mode_t)n->mode, (dev_t)n->rdev);
    if (failed || fchownat(p->parent, n->leaf, (uid_t)n->uid, (gid_t)n->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
        utimensat(p->parent, n->leaf, times, AT_SYMLINK_NOFOLLOW) < 0)
        return fail(n, errno, e);
    return set_xattrs(p, n, -1, e);
}

/* ---- the stream ---- */

static int make(struct put *p, const struct entry *n, struct vmm_error *e) {
    if (!strcmp(n->name, "."))
        return n->type == 'd' ? 0 : vmm_fail(e, 1, EISDIR, "a file has no place without a name");
    leave(p, n->name);
    if (open_parent(p, n->name) < 0)
        return vmm_fail(e, 1, errno == ELOOP ? ENOTDIR : errno, "\"%.300s\": its directory", n->name);
    switch (n->type) {
    case 'd':
        return make_directory(p, n, e);
    case 'f':
        return make_file(p, n, e);
    case 'h':
        return make_link(p, n, e);
    default:
        return make_special(p, n, e);
    }
}

static int take_error(const struct vmm_record *r, struct vmm_error *e) {
    return vmm_fail(e, 1, 0, "the sender failed: %.300s", r->argc > 2 ? r->argv[2] : "");
}

/* 1: the stream ended as it should. */
static int take(struct put *p, struct vmm_error *e) {
    struct vmm_records records;
    struct entry entry;
    if (vmm_in_record(&p->in, &records, e) < 0)
        return -1;
    const struct vmm_record *r = &records.items[0];
    int result = !strcmp(r->argv[0], "end")                            ? 1
                 : !strcmp(r->argv[0], "error")                        ? take_error(r, e)
                 : parse(r, &entry, e) < 0 || make(p, &entry, e) < 0 ? -1
                                                                       : 0;
    vmm_records_free(&records);
    return result;
}

int vmm_archive_put(int root, const char *path, struct vmm_error *e) {
    static struct put p; /* no page of it is there until it is used */
    int result;
    umask(0);
    p.parent = -1;
    p.base = vmm_root_open(root, path, O_PATH | O_DIRECTORY, 0);
    if (p.base < 0)
        return vmm_fail(e, 1, errno, "\"%.300s\"", path);
    do
        result = take(&p, e);
    while (result == 0);
    leave(&p, "");
    return result < 0 ? -1 : 0;
}
