/* Directories, device nodes, links, names and kernel settings inside. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define MAX_ID 4294967294ll

struct owner {
    long long mode, uid, gid;
};

static int parse_owner(char *const *argv, struct owner *out, struct vmm_error *e) {
    return vmm_number(argv[0], 8, 0, 07777, &out->mode, e) < 0 ||
                   vmm_number(argv[1], 10, 0, MAX_ID, &out->uid, e) < 0 ||
                   vmm_number(argv[2], 10, 0, MAX_ID, &out->gid, e) < 0
               ? -1
               : 0;
}

/* Give what we just made as `name` its owner; the mode came with it (the umask is 0). */
static int set_owner(int parent, const char *name, const struct owner *owner, struct vmm_error *e) {
    if ((owner->uid || owner->gid) && fchownat(parent, name, (uid_t)owner->uid, (gid_t)owner->gid,
                                               AT_SYMLINK_NOFOLLOW) < 0)
        return vmm_fail(e, 125, errno, "cannot change the owner of %s", name);
    return 0;
}

/* Owner and mode of a directory that exists already stay as they are. */
int vmm_make_directory(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    char name[NAME_MAX + 1];
    struct owner owner;
    struct stat st;
    if (parse_owner(r->argv + 2, &owner, e) < 0)
        return -1;
    VMM_CLOSE int there = vmm_root_open(child->root, r->argv[1], O_PATH, 0);
    if (there >= 0 && fstat(there, &st) == 0)
        return S_ISDIR(st.st_mode)
                   ? 0
                   : vmm_fail(e, 125, ENOTDIR, "\"%.200s\" in the image", r->argv[1]);
    VMM_CLOSE int parent = vmm_root_parent(child->root, r->argv[1], name, e);
    if (parent < 0)
        return -1;
    if (mkdirat(parent, name, (mode_t)owner.mode & 0777) < 0)
        return vmm_fail(e, 125, errno, "cannot make \"%.200s\"", r->argv[1]);
    /* Changed by descriptor: in a shared volume the name may be another thing's by now. */
    VMM_CLOSE int made = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (made < 0 || fchown(made, (uid_t)owner.uid, (gid_t)owner.gid) < 0 || fchmod(made, (mode_t)owner.mode) < 0)
        return vmm_fail(e, 125, errno, "cannot make \"%.200s\"", r->argv[1]);
    return 0;
}

int vmm_make_node(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    char name[NAME_MAX + 1];
    struct owner owner;
    long long major, minor;
    mode_t type = !strcmp(r->argv[2], "c") ? S_IFCHR : !strcmp(r->argv[2], "b") ? S_IFBLK : 0;
    if (!type)
        return vmm_fail(e, 125, 0, "a device is of type c or b");
    if (vmm_number(r->argv[3], 10, 0, 4095, &major, e) < 0 ||
        vmm_number(r->argv[4], 10, 0, 1048575, &minor, e) < 0 ||
        parse_owner(r->argv + 5, &owner, e) < 0)
        return -1;
    VMM_CLOSE int parent = vmm_root_parent(child->root, r->argv[1], name, e);
    if (parent < 0)
        return -1;
    if (mknodat(parent, name, type | (mode_t)owner.mode, makedev((unsigned)major, (unsigned)minor)) < 0)
        return vmm_fail(e, 125, errno, "cannot make the device \"%.200s\"", r->argv[1]);
    return set_owner(parent, name, &owner, e);
}

/* ---- all nodes ---- */

enum { DEV_DEPTH = 8 };

struct copying {
    int root;
    dev_t device; /* file systems mounted below /dev are not its own */
    const struct vmm_record *skipped;
};

static bool is_skipped(const struct vmm_record *r, const char *name) {
    for (size_t i = 1; i < r->argc; i++)
        if (!strncmp(name, r->argv[i], r->len[i]))
            return true;
    return false;
}

static int copy_node(const struct copying *c, const char *path, const struct stat *st,
                     struct vmm_error *e) {
    char name[NAME_MAX + 1];
    VMM_CLOSE int parent = vmm_root_parent(c->root, path, name, e);
    if (parent < 0)
        return -1;
    if (mknodat(parent, name, st->st_mode, st->st_rdev) < 0)
        return errno == EEXIST ? 0 : vmm_fail(e, 125, errno, "cannot make the device \"%.200s\"", path);
    return set_owner(parent, name, &(struct owner){.uid = st->st_uid, .gid = st->st_gid}, e);
}

static int copy_nodes(const struct copying *c, int from, const char *path, int depth,
                      struct vmm_error *e);

/* A name that is gone by now was a device that was taken away. */
static int copy_entry(const struct copying *c, int from, const char *path, int depth,
                      struct vmm_error *e) {
    struct stat st;
    const char *name = strrchr(path, '/') + 1;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
        return copy_node(c, path, &st, e);
    if (!S_ISDIR(st.st_mode) || st.st_dev != c->device || !depth)
        return 0;
    int below = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return below < 0 ? 0 : copy_nodes(c, below, path, depth - 1, e);
}

/* `from` is closed. */
static int copy_nodes(const struct copying *c, int from, const char *path, int depth,
                      struct vmm_error *e) {
    int result = 0;
    char below[PATH_MAX];
    DIR *directory = fdopendir(from);
    if (!directory) {
        close(from);
        return vmm_fail(e, 125, errno, "cannot read %.200s", path);
    }
    for (struct dirent *entry; !result && (entry = readdir(directory));) {
        bool top = depth == DEV_DEPTH;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            (top && is_skipped(c->skipped, entry->d_name)))
            continue;
        int size = snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (size > 0 && size < (int)sizeof below)
            result = copy_entry(c, dirfd(directory), below, depth, e);
    }
    closedir(directory);
    return result;
}

/* Of the host, or of the machine that vmm-init is the first process of. */
int vmm_make_all_nodes(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct stat st;
    int from = open("/dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (from < 0 || fstat(from, &st) < 0) {
        vmm_close(&from);
        return vmm_fail(e, 125, errno, "cannot read /dev");
    }
    struct copying c = {.root = child->root, .device = st.st_dev, .skipped = r};
    return copy_nodes(&c, from, "/dev", DEV_DEPTH, e);
}

int vmm_make_symlink(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    char name[NAME_MAX + 1], target[PATH_MAX];
    VMM_CLOSE int parent = vmm_root_parent(child->root, r->argv[2], name, e);
    if (parent < 0)
        return -1;
    if (symlinkat(r->argv[1], parent, name) == 0)
        return 0;
    int err = errno;
    ssize_t size = err == EEXIST ? readlinkat(parent, name, target, sizeof target) : -1;
    if (size == (ssize_t)strlen(r->argv[1]) && !memcmp(target, r->argv[1], (size_t)size))
        return 0;
    return vmm_fail(e, 125, err, "cannot make the link \"%.200s\"", r->argv[2]);
}

int vmm_set_hostname(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)context;
    if (sethostname(r->argv[1], r->len[1]) < 0)
        return vmm_fail(e, 125, errno, "cannot set the host name");
    return 0;
}

int vmm_set_domainname(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)context;
    if (setdomainname(r->argv[1], r->len[1]) < 0)
        return vmm_fail(e, 125, errno, "cannot set the domain name");
    return 0;
}

/* ---- sysctl ---- */

/* /proc, proven to be procfs: a link or mount in its place gets no writes (CVE-2019-16884, 2025-52881). */
static int open_proc(struct vmm_child *child, struct vmm_error *e) {
    struct statfs fs;
    int fd = vmm_root_open(child->root, "/proc", O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return vmm_fail(e, 125, errno, "cannot open /proc");
    if (fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC)
        return fd;
    close(fd);
    return vmm_fail(e, 125, 0, "/proc is not the process file system");
}

/* sysctl(8): where `.` separates, `/` stands for a dot in a name; and the other way round. */
static int key_to_path(const char *key, char *path, size_t size) {
    const char *first = key + strcspn(key, "./");
    bool swap = *first == '.';
    int used = snprintf(path, size, "sys/%s", key);
    for (char *p = path + 4; swap && used < (int)size && *p; p++)
        *p = *p == '.' ? '/' : *p == '/' ? '.' : *p;
    return used >= (int)size ? -1 : 0;
}

int vmm_set_sysctl(void *context, const struct vmm_record *r, struct vmm_error *e) {
    char path[PATH_MAX];
    VMM_CLOSE int proc = open_proc(context, e);
    if (proc < 0)
        return -1;
    if (key_to_path(r->argv[1], path, sizeof path) < 0)
        return vmm_fail(e, 125, ENAMETOOLONG, "sysctl");
    VMM_CLOSE int fd = sys_openat2(proc, path, O_WRONLY | O_NONBLOCK,
                                   RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
    if (fd < 0 || write(fd, r->argv[2], r->len[2]) != (ssize_t)r->len[2])
        return vmm_fail(e, 125, errno, "cannot set %.100s to \"%.100s\"", r->argv[1], r->argv[2]);
    return 0;
}

/* ---- working directory ---- */

/* getcwd(2) begins with "(unreachable)" for a directory outside the root (CVE-2024-21626). */
static bool is_inside(void) {
    char path[PATH_MAX];
    return syscall(SYS_getcwd, path, sizeof path) > 0 && path[0] == '/';
}

int vmm_change_directory(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    bool create = !strcmp(r->argv[2], "create");
    int code = create ? 125 : 126;
    VMM_CLOSE int fd = create ? vmm_root_make(child->root, r->argv[1], VMM_DIRECTORY, e)
                              : vmm_root_open(child->root, r->argv[1], O_PATH, 0);
    if (fd < 0 && create)
        return -1;
    if (fd < 0 || fchdir(fd) < 0)
        return vmm_fail(e, code, errno, "cannot change to the working directory \"%.200s\"",
                        r->argv[1]);
    if (!is_inside())
        return vmm_fail(e, code, 0, "the working directory \"%.200s\" is outside the root", r->argv[1]);
    return 0;
}
