/* Descriptors 0, 1, 2 and the terminal. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <termios.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

/* The workload's own ptmx, proven to be devpts: a FIFO or a foreign device in its place is refused. */
static int open_master(struct vmm_child *child, struct vmm_error *e) {
    struct statfs fs;
    struct stat st;
    int fd = vmm_root_open(child->root, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK,
                           RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return vmm_fail(e, 125, errno, "cannot open /dev/pts/ptmx");
    if (fstatfs(fd, &fs) == 0 && fs.f_type == DEVPTS_SUPER_MAGIC && fstat(fd, &st) == 0 &&
        S_ISCHR(st.st_mode) && fcntl(fd, F_SETFL, O_RDWR) == 0)
        return fd;
    close(fd);
    return vmm_fail(e, 125, 0, "/dev/pts is no terminal file system");
}

static int send_master(int sock, int master) {
    struct vmm_message message = {.type = 'T'};
    struct iovec part = {&message, sizeof message};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr head = {.msg_iov = &part,
                          .msg_iovlen = 1,
                          .msg_control = &control,
                          .msg_controllen = sizeof control};
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof master);
    memcpy(CMSG_DATA(&control.header), &master, sizeof master);
    return sendmsg(sock, &head, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* The slave comes from the master itself, never by a name that could be replaced. */
int vmm_tty_open(struct vmm_child *child, struct vmm_error *e) {
    struct winsize size = {.ws_row = child->io->rows, .ws_col = child->io->columns};
    int unlocked = 0;
    if (child->slave >= 0)
        return 0;
    VMM_CLOSE int master = open_master(child, e);
    if (master < 0)
        return -1;
    if (ioctl(master, TIOCSPTLCK, &unlocked) < 0 ||
        (child->slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
        return vmm_fail(e, 125, errno, "cannot open a terminal");
    if ((size.ws_row || size.ws_col) && ioctl(master, TIOCSWINSZ, &size) < 0)
        return vmm_fail(e, 125, errno, "cannot set the terminal's size");
    if (send_master(child->sock, master) < 0)
        return vmm_fail(e, 125, errno, "cannot hand over the terminal");
    return 0;
}

int vmm_tty_console(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    (void)r;
    if (!child->io->tty)
        return 0;
    if (vmm_tty_open(child, e) < 0)
        return -1;
    VMM_CLOSE int place = vmm_root_make(child->root, "/dev/console", VMM_REGULAR, e);
    if (place < 0)
        return -1;
    VMM_CLOSE int tree = sys_open_tree(child->slave, "",
                                       AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0 || sys_move_mount(tree, place) < 0)
        return vmm_fail(e, 125, errno, "cannot bind the terminal on /dev/console");
    return 0;
}

static bool is_null(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

/* The workload's own null device: through the host's it could change the host's node. */
static int open_null(struct vmm_child *child) {
    int fd = vmm_root_open(child->root, "/dev/null", O_PATH, RESOLVE_NO_SYMLINKS);
    bool null = fd >= 0 && is_null(fd);
    vmm_close(&fd);
    fd = null ? vmm_root_open(child->root, "/dev/null", O_RDWR | O_NONBLOCK, RESOLVE_NO_SYMLINKS) : -1;
    if (fd < 0 || !is_null(fd)) {
        vmm_close(&fd);
        errno = ENODEV;
    }
    return fd;
}

/* A copy above 2, so that none of the three is overwritten before it was used. */
static int source_fd(struct vmm_child *child, int number) {
    int fd = child->io->tty ? child->slave : child->io->fd[number];
    if (fd >= 0 && !is_null(fd))
        return fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int null = open_null(child);
    VMM_CLOSE int used = null >= 0 ? null : fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    return used < 0 ? -1 : fcntl(used, F_DUPFD_CLOEXEC, 3);
}

/* A user who is not root must be able to open /dev/stdout again. Never a file of the host's. */
static void give(struct vmm_child *child, int fd) {
    struct stat st;
    if (!child->process.user || fstat(fd, &st) < 0)
        return;
    if (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || child->io->tty)
        (void)!fchown(fd, (uid_t)strtoul(child->process.user->argv[1], NULL, 10), (gid_t)-1);
}

int vmm_stdio_enter(struct vmm_child *child, struct vmm_error *e) {
    int fd[3];
    snprintf(e->step, sizeof e->step, "stdio");
    if (child->io->tty && vmm_tty_open(child, e) < 0)
        return -1;
    for (int i = 0; i < 3; i++)
        if ((fd[i] = source_fd(child, i)) < 0)
            return vmm_fail(e, 125, errno, "descriptor %d", i);
    for (int i = 0; i < 3; i++) {
        if (dup2(fd[i], i) < 0)
            return vmm_fail(e, 125, errno, "descriptor %d", i);
        close(fd[i]);
        give(child, i);
    }
    if (child->io->tty && ioctl(0, TIOCSCTTY, 0) < 0)
        return vmm_fail(e, 125, errno, "cannot take the controlling terminal");
    return 0;
}
