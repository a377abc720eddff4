/* System calls without a libc wrapper, for Python. Each returns a descriptor or 0, or -errno. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

enum { OPEN_TRIES = 1000 };

static int result(long value) { return value < 0 ? -errno : (int)value; }

static int vmm_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    for (int tries = 0;; tries++) {
        /* EAGAIN: a rename raced with RESOLVE_IN_ROOT (openat2(2)). In a detached mount some links that
         * lead round in a circle through `..` give it every time. */
        long fd = syscall(SYS_openat2, dirfd, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN || tries == OPEN_TRIES)
            return result(fd);
    }
}

static int vmm_pidfd_open(int pid) { return result(syscall(SYS_pidfd_open, pid, 0)); }

static int vmm_pidfd_signal(int pidfd, int sig)
{
    return result(syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0));
}

static int vmm_bpf(int command, void *attributes, unsigned size)
{
    return result(syscall(SYS_bpf, command, attributes, size));
}

static int vmm_setns(int fd, int kinds) { return result(setns(fd, kinds)); }

static int vmm_tree(int dirfd, const char *path, int recursive)
{
    return result(syscall(SYS_open_tree, dirfd, path,
                          OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0)));
}

/* A detached tree takes part in no propagation any more and, if asked, cannot be written through. */
static int vmm_tree_private(int tree, int readonly)
{
    struct mount_attr attr = {.attr_set = readonly ? MOUNT_ATTR_RDONLY : 0,
                              .propagation = MS_PRIVATE};
    unsigned flags = AT_EMPTY_PATH | AT_RECURSIVE;
    return result(syscall(SYS_mount_setattr, tree, "", flags, &attr, sizeof attr));
}

/* Attach a detached tree; a last symbolic link of `path` is not followed. */
static int vmm_tree_attach(int tree, const char *path)
{
    return result(syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH));
}

static int vmm_mount(const char *type, const char *target, unsigned long flags, const char *data)
{
    return result(mount(type, target, type, flags, data));
}

static int vmm_unmount(const char *target)
{
    return result(umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW));
}

struct overlay {
    const char *layers, *options;
    int readonly, result;
};

/* Runs in a mount namespace of its own, with the caller's memory and descriptors. */
static int mount_overlay(void *argument)
{
    struct overlay *o = argument;
    unsigned long flags = o->readonly ? MS_RDONLY : 0;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || chdir(o->layers) ||
        mount("overlay", ".", "overlay", flags, o->options))
        o->result = -errno;
    else
        o->result = vmm_tree(AT_FDCWD, o->layers, 0);
    return 0;
}

/* A detached overlay mount: it has no place in any directory tree and ends with its descriptor.
 * `options` has lower directories relative to `layers`, so that 127 of them fit mount(2)'s 4 KiB;
 * hence the child with a working directory of its own (and lowerdir+ needs Linux 6.5). */
static int vmm_overlay_tree(const char *layers, const char *options, int readonly)
{
    static const size_t size = 64 << 10;
    struct overlay o = {layers, options, readonly, -EINVAL};
    char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        return -errno;
    int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWNS | SIGCHLD;
    pid_t pid = clone(mount_overlay, stack + size, flags, &o);
    if (pid < 0)
        o.result = -errno;
    else
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    munmap(stack, size);
    return o.result;
}
