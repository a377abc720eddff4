/* Nobody may write to the program that enters a workload (CVE-2019-5736).
 *
 * Between the check of what is to be executed and execve(2) a process inside may swap the program for a link
 * to /proc/self/exe, or an ELF interpreter may be called that: then our own program runs inside, where its
 * file can be opened through /proc/PID/exe. So it runs from a mount of its own that is read-only, is in no
 * mount namespace and can therefore not be made writable again; its pages are shared with the file's. Where
 * such a mount cannot be made, a sealed copy in memory serves.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "sys.h"
#include "vmm.h"

#define SELF "/proc/self/exe"
#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

bool vmm_program_sealed(void) {
    struct statvfs fs;
    VMM_CLOSE int fd = open(SELF, O_RDONLY | O_CLOEXEC);
    int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS);
    if (seals >= 0 && seals & F_SEAL_WRITE) /* every file of a tmpfs has seals, mostly not this one */
        return true;
    return fd >= 0 && fstatvfs(fd, &fs) == 0 && fs.f_flag & ST_RDONLY;
}

static int clone_readonly(void) {
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
                              .propagation = MS_PRIVATE};
    int tree = sys_open_tree(AT_FDCWD, SELF, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree >= 0 && sys_mount_setattr(tree, 0, &attr) < 0)
        vmm_close(&tree);
    return tree;
}

static int copy_to_memory(void) {
    struct stat st;
    VMM_CLOSE int from = open(SELF, O_RDONLY | O_CLOEXEC);
    int to = memfd_create("vmm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (from < 0 || to < 0 || fstat(from, &st) < 0)
        goto failed;
    for (off_t at = 0; at < st.st_size;)
        if (sendfile(to, from, &at, (size_t)(st.st_size - at)) <= 0)
            goto failed;
    if (fcntl(to, F_ADD_SEALS, SEALS) == 0)
        return to;
failed:
    vmm_close(&to);
    return -1;
}

int vmm_program_seal(struct vmm_error *e) {
    int program = clone_readonly();
    if (program < 0)
        program = copy_to_memory();
    snprintf(e->step, sizeof e->step, "program");
    return program < 0 ? vmm_fail(e, 125, errno, "the program cannot be protected from the workload")
                       : program;
}

int vmm_program_execute(int program, char **argv, char **environment, struct vmm_error *e) {
    syscall(SYS_execveat, program, "", argv, environment, AT_EMPTY_PATH);
    return vmm_fail(e, 125, errno, "%.200s", argv[0]);
}
