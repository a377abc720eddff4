/* Places inside the workload's root, resolved so that no link of the image's leads out of it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define MAX_LINKS 40

int vmm_root_open(int root, const char *path, uint64_t flags, uint64_t resolve) {
    resolve |= RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    for (int tries = 0;; tries++) { /* EAGAIN: something was renamed meanwhile, openat2(2) */
        int fd = sys_openat2(root, *path ? path : "/", flags, resolve);
        if (fd >= 0 || errno != EAGAIN || tries == 100)
            return fd;
    }
}

/* Put the target of the link `name` in `parent` (whose path is `prefix`) before `rest`. 1: not a link. */
static int follow(int parent, const char *prefix, const char *name, const char *rest, char *out) {
    char target[PATH_MAX], built[2 * PATH_MAX];
    ssize_t size = readlinkat(parent, name, target, sizeof target - 1);
    if (size < 0)
        return errno == EINVAL || errno == ENOENT ? 1 : -1;
    target[size] = 0;
    int used = target[0] == '/' ? snprintf(built, sizeof built, "%s%s", target, rest)
                                : snprintf(built, sizeof built, "%s/%s%s", prefix, target, rest);
    if (used < 0 || used >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(out, built, (size_t)used + 1);
    return 0;
}

static int create(int parent, const char *name, bool directory) {
    if (directory)
        return mkdirat(parent, name, 0755);
    VMM_CLOSE int fd =
        openat(parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, 0644);
    return fd < 0 ? -1 : 0;
}

/* Make what `prefix`/`name` lacks. 0: go on, 1: `path` was rewritten, -1: errno. */
static int make_one(int parent, const char *prefix, const char *name, const char *rest,
                    bool directory, char *path) {
    char rewritten[PATH_MAX];
    int link = follow(parent, prefix, name, rest, rewritten);
    if (link < 0)
        return -1;
    if (link == 0) {
        memcpy(path, rewritten, strlen(rewritten) + 1);
        return 1;
    }
    return create(parent, name, directory) < 0 && errno != EEXIST ? -1 : 0;
}

/* Walk `path`, making what is missing. 0: done, 1: a dangling link rewrote `path`, -1: errno. */
static int walk(int root, char *path, enum vmm_kind kind) {
    char prefix[PATH_MAX] = "", next[PATH_MAX + NAME_MAX + 2];
    VMM_CLOSE int parent = vmm_root_open(root, "/", O_PATH | O_DIRECTORY, 0);
    for (const char *at = path; parent >= 0;) {
        at += strspn(at, "/");
        size_t size = strcspn(at, "/");
        if (!size)
            return 0;
        char name[NAME_MAX + 1];
        if (size > NAME_MAX || strlen(prefix) + size + 2 > sizeof prefix)
            return errno = ENAMETOOLONG, -1;
        memcpy(name, at, size);
        name[size] = 0;
        at += size;
        snprintf(next, sizeof next, "%s/%s", prefix, name);
        bool directory = at[strspn(at, "/")] || kind == VMM_DIRECTORY;
        int fd = vmm_root_open(root, next, O_PATH, 0);
        if (fd < 0 && errno == ENOENT) {
            int made = make_one(parent, prefix, name, at, directory, path);
            if (made)
                return made;
            fd = vmm_root_open(root, next, O_PATH, 0);
        }
        vmm_close(&parent);
        parent = fd;
        memcpy(prefix, next, strlen(next) + 1);
    }
    return -1;
}

int vmm_root_make(int root, const char *path, enum vmm_kind kind, struct vmm_error *e) {
    char work[PATH_MAX];
    int fd = vmm_root_open(root, path, O_PATH, 0);
    if (fd >= 0)
        return fd;
    if (errno != ENOENT || strlen(path) >= sizeof work)
        return vmm_fail(e, 125, errno, "cannot open \"%.200s\" in the image", path);
    memcpy(work, path, strlen(path) + 1);
    for (int links = 0; links < MAX_LINKS; links++) {
        int result = walk(root, work, kind);
        if (result == 0)
            fd = vmm_root_open(root, work, O_PATH, 0);
        if (result < 0 || fd >= 0)
            break;
        errno = ELOOP;
    }
    if (fd < 0)
        return vmm_fail(e, 125, errno, "cannot make \"%.200s\" in the image", path);
    return fd;
}

int vmm_root_parent(int root, const char *path, char *name, struct vmm_error *e) {
    char work[PATH_MAX];
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/')
        size--;
    if (size >= sizeof work)
        return vmm_fail(e, 125, ENAMETOOLONG, "\"%.200s\"", path);
    memcpy(work, path, size);
    work[size] = 0;
    char *slash = strrchr(work, '/');
    const char *last = slash ? slash + 1 : work;
    if (!*last || !strcmp(last, ".") || !strcmp(last, "..") || strlen(last) > NAME_MAX)
        return vmm_fail(e, 125, 0, "\"%.200s\" names no file", path);
    memcpy(name, last, strlen(last) + 1);
    if (slash)
        *slash = 0;
    return vmm_root_make(root, slash ? work : "/", VMM_DIRECTORY, e);
}
