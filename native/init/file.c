/* Replacing a file inside the running workload. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "guest.h"
#include "internal.h"
#include "sys.h"

enum { DEADLINE_MS = 2000 };

/* The root itself, without what is mounted on it, and writable although the workload sees it read-only. */
static int open_writable(void) {
    struct mount_attr attr = {.attr_clr = MOUNT_ATTR_RDONLY};
    int tree = sys_open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree >= 0 && sys_mount_setattr(tree, 0, &attr) < 0)
        vmm_close(&tree);
    return tree;
}

static int replace(int pidfd, const char *path, const void *content, size_t size, struct vmm_error *e) {
    if (setns(pidfd, CLONE_NEWNS) < 0)
        return vmm_fail(e, 1, errno, "cannot enter the workload");
    VMM_CLOSE int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (vmm_root_write(root, path, -1, content, size, e) == 0)
        return 0;
    VMM_CLOSE int writable = e->err == EROFS ? open_writable() : -1;
    return writable < 0 ? -1 : vmm_root_write(writable, path, -1, content, size, e);
}

static _Noreturn void work(int pidfd, int report, const char *path, const void *content, size_t size,
                           const struct vmm_error *step) {
    struct vmm_error e = *step;
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (replace(pidfd, path, content, size, &e) == 0)
        e = (struct vmm_error){0};
    else
        e.code = 1;
    _exit(write(report, &e, sizeof e) != sizeof e);
}

/* The workload decides what its paths lead to, perhaps to a file system that never answers: so a process of its own
 * goes there, and is not waited for long. The loop reaps it. */
int file_replace(struct guest *g, const char *path, const void *content, size_t size,
                 struct vmm_error *e) {
    struct vmm_error answer;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return vmm_fail(e, 1, errno, "cannot make a pipe");
    VMM_CLOSE int ours = ends[0];
    VMM_CLOSE int theirs = ends[1];
    pid_t pid = fork();
    if (pid == 0)
        work(g->workload.pidfd, theirs, path, content, size, e);
    vmm_close(&theirs);
    struct pollfd ready = {.fd = ours, .events = POLLIN};
    if (pid > 0 && poll(&ready, 1, DEADLINE_MS) > 0 && read(ours, &answer, sizeof answer) == sizeof answer) {
        *e = answer;
        return answer.code ? -1 : 0;
    }
    if (pid > 0)
        kill(pid, SIGKILL);
    return vmm_fail(e, 1, 0, "\"%.200s\" cannot be written: no answer", path);
}
