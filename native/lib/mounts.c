/* Mounts inside the root, all by descriptor: what is resolved is what is mounted on. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

struct flags {
    struct mount_attr attr;
    bool recursive;
};

static const struct {
    const char *name;
    uint64_t set, clear, propagation;
    bool recursive;
} flag_table[] = {
    {"ro", MOUNT_ATTR_RDONLY, 0, 0, false},
    {"nosuid", MOUNT_ATTR_NOSUID, 0, 0, false},
    {"nodev", MOUNT_ATTR_NODEV, 0, 0, false},
    {"noexec", MOUNT_ATTR_NOEXEC, 0, 0, false},
    {"relatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME, 0, false},
    {"strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME, 0, false},
    {"noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME, 0, false},
    {"rec", 0, 0, 0, true},
    {"private", 0, 0, MS_PRIVATE, false},
    {"rprivate", 0, 0, MS_PRIVATE, true},
    {"shared", 0, 0, MS_SHARED, false},
    {"rshared", 0, 0, MS_SHARED, true},
    {"slave", 0, 0, MS_SLAVE, false},
    {"rslave", 0, 0, MS_SLAVE, true},
};

static int add_flag(struct flags *out, const char *name, size_t size, struct vmm_error *e) {
    for (size_t i = 0; i < COUNT(flag_table); i++) {
        if (strlen(flag_table[i].name) != size || memcmp(flag_table[i].name, name, size) != 0)
            continue;
        out->attr.attr_set |= flag_table[i].set;
        out->attr.attr_clr |= flag_table[i].clear;
        if (flag_table[i].propagation)
            out->attr.propagation = flag_table[i].propagation;
        out->recursive |= flag_table[i].recursive;
        return 0;
    }
    return vmm_fail(e, 125, 0, "unknown mount flag \"%.*s\"", (int)(size < 40 ? size : 40), name);
}

/* `ro,nosuid,…`; anything empty is skipped. */
static int parse_flags(const char *text, struct flags *out, struct vmm_error *e) {
    *out = (struct flags){0};
    for (size_t size; *text; text += size + (text[size] == ',')) {
        size = strcspn(text, ",");
        if (size && add_flag(out, text, size, e) < 0)
            return -1;
    }
    return 0;
}

/* ---- new file systems ---- */

/* What the file system itself says about the failure, fsopen(2). */
static int fail_fs(int fs, const char *what, struct vmm_error *e) {
    char said[200];
    int err = errno;
    ssize_t size = read(fs, said, sizeof said - 1);
    said[size > 0 ? size : 0] = 0;
    said[strcspn(said, "\n")] = 0;
    return vmm_fail(e, 125, err, "%.120s%s%s", what, size > 2 ? ": " : "", size > 2 ? said + 2 : "");
}

static int set_option(int fs, char *option, struct vmm_error *e) {
    char *value = strchr(option, '=');
    if (value)
        *value++ = 0;
    if (sys_fsconfig(fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, option, value) == 0)
        return 0;
    char what[120];
    snprintf(what, sizeof what, "option \"%.80s\"", option);
    return fail_fs(fs, what, e);
}

static int set_options(int fs, const char *data, struct vmm_error *e) {
    VMM_FREE char *copy = strdup(data);
    char *saved = NULL;
    if (!copy)
        return vmm_fail(e, 125, ENOMEM, "mount options");
    for (char *o = strtok_r(copy, ",", &saved); o; o = strtok_r(NULL, ",", &saved))
        if (set_option(fs, o, e) < 0)
            return -1;
    return 0;
}

/* A detached mount of a new file system. `whole`: `data` is one flag although it has commas. */
static int make_fs(const char *type, const char *source, const char *data, uint64_t attributes,
                   struct vmm_error *e) {
    VMM_CLOSE int fs = sys_fsopen(type);
    if (fs < 0)
        return vmm_fail(e, 125, errno, "file system %.40s", type);
    if (*source && sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", source) < 0)
        return fail_fs(fs, "source", e);
    if (set_options(fs, data, e) < 0)
        return -1;
    if (sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL) < 0)
        return fail_fs(fs, "cannot make the file system", e);
    int mount = sys_fsmount(fs, (unsigned)attributes);
    return mount < 0 ? fail_fs(fs, "cannot mount the file system", e) : mount;
}

/* The kernel's own trees must be where everybody will look for them, not where a link leads. */
static int check_kernel_tree(const struct vmm_child *child, const char *type, const char *path,
                             struct vmm_error *e) {
    if (strcmp(type, "proc") != 0 && strcmp(type, "sysfs") != 0)
        return 0;
    VMM_CLOSE int fd =
        vmm_root_open(child->root, path, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (fd < 0 && errno == ELOOP)
        return vmm_fail(e, 125, 0, "\"%.200s\" is a symbolic link in the image; it must be a directory",
                        path);
    return 0;
}

/* A link that leads into procfs would put a mount over what is masked or written there (CVE-2019-16884). */
static int check_place(int place, const char *path, struct vmm_error *e) {
    struct statfs fs;
    if (fstatfs(place, &fs) < 0)
        return vmm_fail(e, 125, errno, "\"%.200s\"", path);
    if (fs.f_type == PROC_SUPER_MAGIC)
        return vmm_fail(e, 125, 0, "\"%.200s\" in the image leads into /proc, where nothing may be mounted",
                        path);
    return 0;
}

static int attach(int mount, int place, const char *path, struct vmm_error *e) {
    if (sys_move_mount(mount, place) < 0)
        return vmm_fail(e, 125, errno, "cannot mount on \"%.200s\"", path);
    return 0;
}

static int mount_new(struct vmm_child *child, const char *type, const char *source,
                     const char *path, const char *data, uint64_t attributes, struct vmm_error *e) {
    if (check_kernel_tree(child, type, path, e) < 0)
        return -1;
    VMM_CLOSE int place = vmm_root_make(child->root, path, VMM_DIRECTORY, e);
    if (place < 0 || (strcmp(type, "proc") != 0 && check_place(place, path, e) < 0))
        return -1;
    VMM_CLOSE int mount = make_fs(type, source, data, attributes, e);
    return mount < 0 ? -1 : attach(mount, place, path, e);
}

int vmm_mount_fs(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct flags flags;
    if (parse_flags(r->argv[4], &flags, e) < 0)
        return -1;
    return mount_new(context, r->argv[1], r->argv[2], r->argv[3], r->argv[5], flags.attr.attr_set,
                     e);
}

int vmm_mount_cgroup(void *context, const struct vmm_record *r, struct vmm_error *e) {
    char path[PATH_MAX];
    bool v2 = !strcmp(r->argv[1], "2");
    if (!v2 && strcmp(r->argv[1], "1") != 0)
        return vmm_fail(e, 125, 0, "cgroup version \"%.20s\"", r->argv[1]);
    snprintf(path, sizeof path, "/sys/fs/cgroup/%.200s", r->argv[2]);
    return mount_new(context, v2 ? "cgroup2" : "cgroup", "cgroup", path, v2 ? "" : r->argv[3],
                     MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, e);
}

/* ---- binds ---- */

/* Cloned before anything of the image is reachable, and while still a peer of the host's mounts. */
int vmm_note_bind(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct flags flags;
    if (parse_flags(r->argv[3], &flags, e) < 0)
        return -1;
    int tree = sys_open_tree(AT_FDCWD, r->argv[1],
                             OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (flags.recursive ? AT_RECURSIVE : 0));
    if (tree < 0)
        return vmm_fail(e, 125, errno, "mount source %.300s", r->argv[1]);
    child->source[r - child->ops] = tree;
    return 0;
}

int vmm_mount_bind(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    int *tree = &child->source[r - child->ops];
    struct flags flags;
    struct stat from, to;
    if (parse_flags(r->argv[3], &flags, e) < 0)
        return -1;
    if (!flags.attr.propagation)
        flags.attr.propagation = MS_PRIVATE;
    if (fstat(*tree, &from) < 0 ||
        sys_mount_setattr(*tree, flags.recursive ? AT_RECURSIVE : 0, &flags.attr) < 0)
        return vmm_fail(e, 125, errno, "mount source %.300s", r->argv[1]);
    bool directory = S_ISDIR(from.st_mode);
    VMM_CLOSE int place =
        vmm_root_make(child->root, r->argv[2], directory ? VMM_DIRECTORY : VMM_REGULAR, e);
    if (place < 0 || check_place(place, r->argv[2], e) < 0)
        return -1;
    if (fstat(place, &to) == 0 && directory != S_ISDIR(to.st_mode))
        return vmm_fail(e, 125, 0, "%.150s is %s, but \"%.150s\" in the image is %s", r->argv[1],
                        directory ? "a directory" : "a file", r->argv[2],
                        directory ? "no directory" : "a directory");
    int failed = attach(*tree, place, r->argv[2], e);
    vmm_close(tree);
    return failed;
}

/* The program run as pid 1 comes from a read-only mount of its own: /proc/1/exe cannot be written. */
int vmm_note_init(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
                              .propagation = MS_PRIVATE};
    child->init = sys_open_tree(AT_FDCWD, r->argv[1], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (child->init < 0 || sys_mount_setattr(child->init, 0, &attr) < 0)
        return vmm_fail(e, 125, errno, "init program %.300s", r->argv[1]);
    return 0;
}

/* ---- masks ---- */

/* The workload's own /dev/null, proven to be the null device (CVE-2025-31133). */
static int clone_null(struct vmm_child *child, struct vmm_error *e) {
    struct stat st;
    VMM_CLOSE int fd = vmm_root_open(child->root, "/dev/null", O_PATH, RESOLVE_NO_SYMLINKS);
    if (fd < 0 || fstat(fd, &st) < 0)
        return vmm_fail(e, 125, errno, "masking needs /dev/null");
    if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
        return vmm_fail(e, 125, 0, "masking: /dev/null is not the null device");
    int tree = sys_open_tree(fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    return tree < 0 ? vmm_fail(e, 125, errno, "cannot bind /dev/null") : tree;
}

/* The first mask's tmpfs serves all: clones share it. Only an attached mount can be cloned (< 6.15). */
static int clone_empty(struct vmm_child *child, struct vmm_error *e) {
    if (child->mask < 0)
        return child->mask = make_fs("tmpfs", "tmpfs", "size=4k,nr_inodes=2,mode=755",
                                     MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                         MOUNT_ATTR_NOEXEC,
                                     e);
    int tree = sys_open_tree(child->mask, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    return tree < 0 ? vmm_fail(e, 125, errno, "cannot mount an empty directory") : tree;
}

/* An existing place, or -1 with *missing if there is none. */
static int find(struct vmm_child *child, const char *path, bool *missing, struct vmm_error *e) {
    int fd = vmm_root_open(child->root, path, O_PATH, 0);
    *missing = fd < 0 && (errno == ENOENT || errno == ENOTDIR);
    if (fd < 0 && !*missing)
        vmm_fail(e, 125, errno, "cannot open \"%.200s\"", path);
    return fd;
}

int vmm_mount_mask(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct stat st;
    bool missing;
    VMM_CLOSE int place = find(child, r->argv[1], &missing, e);
    if (place < 0)
        return missing ? 0 : -1;
    if (fstat(place, &st) < 0)
        return vmm_fail(e, 125, errno, "\"%.200s\"", r->argv[1]);
    int tree = S_ISDIR(st.st_mode) ? clone_empty(child, e) : clone_null(child, e);
    if (tree < 0)
        return -1;
    int failed = attach(tree, place, r->argv[1], e);
    if (tree != child->mask)
        close(tree);
    return failed;
}

/* ---- read-only ---- */

/* A mount's own root is changed in place; anything else is bound onto itself first. */
int vmm_mount_readonly(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY};
    bool missing;
    VMM_CLOSE int place = find(child, r->argv[1], &missing, e);
    if (place < 0)
        return missing ? 0 : -1;
    if (sys_mount_setattr(place, AT_RECURSIVE, &readonly) == 0)
        return 0;
    VMM_CLOSE int tree = sys_open_tree(
        place, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (tree < 0 || sys_mount_setattr(tree, AT_RECURSIVE, &readonly) < 0)
        return vmm_fail(e, 125, errno, "cannot make \"%.200s\" read-only", r->argv[1]);
    return attach(tree, place, r->argv[1], e);
}
