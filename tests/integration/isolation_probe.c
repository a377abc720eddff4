/* Attacks of a workload on its host, tried for real from inside; each says how it ended. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* `name=ok` or `name=ERRNO`. */
static void say(const char *name, long result) {
    printf("%s=%s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}

/* In a child, so that what one attack changes does not help or hinder the next. */
#define TRY(name, expression)           \
    do {                                \
        pid_t pid_ = fork();            \
        if (pid_ == 0) {                \
            errno = 0;                  \
            say(name, (expression));    \
            _exit(0);                   \
        }                               \
        waitpid(pid_, NULL, 0);         \
    } while (0)

static long open_device(const char *type, const char *major, const char *minor) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/node-%d", (int)getpid());
    mode_t kind = *type == 'b' ? S_IFBLK : S_IFCHR;
    if (mknod(path, kind | 0600, makedev((unsigned)atoi(major), (unsigned)atoi(minor))) < 0)
        return -1;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    int error = errno;
    unlink(path);
    errno = error;
    return fd;
}

static long open_by_handle(void) {
    union {
        struct file_handle head;
        char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } handle = {.head.handle_bytes = MAX_HANDLE_SZ};
    int mount;
    /* The host's root directory is inode 2 of an ext4: an attacker need not ask for the handle. */
    if (name_to_handle_at(AT_FDCWD, "/etc/hosts", &handle.head, &mount, 0) < 0) {
        handle.head.handle_bytes = 8;
        handle.head.handle_type = 1;
        ((uint32_t *)(void *)handle.head.f_handle)[0] = 2;
    }
    int at = open("/etc/hosts", O_RDONLY);
    return open_by_handle_at(at, &handle.head, O_RDONLY);
}

static long clone_user(void) {
    long pid = syscall(SYS_clone, (unsigned long)(CLONE_NEWUSER | SIGCHLD), 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long clone3_user(void) {
    struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long join(const char *path) {
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : setns(fd, 0);
}

/* To be able to write is success enough: the host is to survive a test that fails. */
static long write_to(const char *path) {
    return open(path, O_WRONLY);
}

#ifdef __x86_64__
/* The 32-bit entry has numbers of its own, which a filter must know too. */
static long compat(long number, long a, long b) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(0), "S"(0), "D"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}
#endif

static void kernel_calls(void) {
    char area[256] = {0};
    TRY("mount", mount("none", "/mnt", "tmpfs", 0, NULL));
    TRY("remount", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("umount", umount2("/proc/sys", MNT_DETACH));
    TRY("fsopen", syscall(430, "tmpfs", 0));
    TRY("open_tree", syscall(428, AT_FDCWD, "/", 1));
    TRY("mount_setattr", syscall(442, AT_FDCWD, "/proc/sys", 0, area, 32));
    TRY("pivot_root", syscall(SYS_pivot_root, "/", "/mnt"));
    TRY("unshare_user", unshare(CLONE_NEWUSER));
    TRY("unshare_mount", unshare(CLONE_NEWNS));
    TRY("unshare_cgroup", unshare(CLONE_NEWCGROUP));
    TRY("clone_user", clone_user());
    TRY("clone3_user", clone3_user());
    TRY("setns", join("/proc/1/ns/mnt"));
    TRY("open_by_handle_at", open_by_handle());
    TRY("keyctl", syscall(SYS_keyctl, 0, -3, 0));
    TRY("add_key", syscall(SYS_add_key, "user", "name", "v", 1, -3));
    TRY("request_key", syscall(SYS_request_key, "user", "name", NULL, 0));
    TRY("bpf", syscall(SYS_bpf, 0, area, sizeof area));
    TRY("perf_event_open", syscall(SYS_perf_event_open, area, 0, -1, -1, 0));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
    TRY("io_uring_setup", syscall(425, 4, area));
    TRY("init_module", syscall(SYS_init_module, area, 0, ""));
    TRY("finit_module", syscall(SYS_finit_module, 0, "", 0));
    TRY("delete_module", syscall(SYS_delete_module, "no-such-module", 0));
    TRY("kexec_load", syscall(SYS_kexec_load, 0, 1000, area, 0));
    TRY("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    TRY("swapon", syscall(SYS_swapon, "/no-such-file", 0));
    TRY("acct", syscall(SYS_acct, "/no-such-file"));
    TRY("quotactl", syscall(SYS_quotactl, 0x80000100, "/no-such-file", 0, 0));
    TRY("syslog", syscall(SYS_syslog, 3, area, 16));
    TRY("sethostname", sethostname("taken", 5));
#ifdef __x86_64__
    TRY("iopl", syscall(SYS_iopl, 3));
    TRY("ioperm", syscall(SYS_ioperm, 0x80, 1, 1));
    TRY("x32_mount", syscall(0x40000000 + SYS_mount, "none", "/mnt", "tmpfs", 0, NULL));
    TRY("i386_unshare", compat(310, CLONE_NEWUSER, 0));
    TRY("i386_keyctl", compat(288, 0, -3));
    TRY("i386_bpf", compat(357, 0, 0));
#endif
}

/* To what it is already. */
static long set_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return clock_settime(CLOCK_REALTIME, &now);
}

static int calls(char **argv) {
    kernel_calls();
    TRY("clock_settime", set_clock());
    TRY("disk", open_device("b", argv[0], argv[1]));
    TRY("mem", open_device("c", "1", "1"));
    TRY("kmsg", open_device("c", "1", "11"));
    TRY("fuse", open_device("c", "10", "229"));
    TRY("loop-control", open_device("c", "10", "237"));
    TRY("sysrq", write_to("/proc/sysrq-trigger"));
    TRY("core_pattern", write_to("/proc/sys/kernel/core_pattern"));
    TRY("uevent_helper", write_to("/sys/kernel/uevent_helper"));
    TRY("release_agent", write_to("/sys/fs/cgroup/memory/release_agent"));
    TRY("cgroup", write_to("/sys/fs/cgroup/memory/notify_on_release"));
    TRY("lift_limit", write_to("/sys/fs/cgroup/pids/pids.max"));
    TRY("lift_limit2", write_to("/sys/fs/cgroup/pids.max"));
    TRY("vsock", socket(40, SOCK_STREAM, 0));
    TRY("harmless", socket(AF_UNIX, SOCK_STREAM, 0));
    return 0;
}

/* Every open descriptor, by asking for each: /proc could lie. */
static int descriptors(void) {
    for (int fd = 0; fd < 65536; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf("%d\n", fd);
    return 0;
}

static void look(const char *pid, const char *what) {
    char path[300], text[512];
    snprintf(path, sizeof path, "/proc/%s/%s", pid, what);
    ssize_t size = readlink(path, text, sizeof text - 1);
    if (size < 0)
        return;
    text[size] = 0;
    int writable = !strcmp(what, "exe") && open(path, O_WRONLY) >= 0;
    printf("%s %s%s\n", what, text, writable ? " WRITABLE" : "");
}

static void look_at_all(const char *pid) {
    char path[300];
    look(pid, "exe");
    look(pid, "cwd");
    look(pid, "root");
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    DIR *list = opendir(path);
    for (struct dirent *entry; list && (entry = readdir(list));)
        if (entry->d_name[0] != '.') {
            snprintf(path, sizeof path, "fd/%s", entry->d_name);
            look(pid, path);
        }
    if (list)
        closedir(list);
}

/* Watch for new processes and reach for what they have open, as long as /stop is not there. */
static int lurk(void) {
    char own[16];
    snprintf(own, sizeof own, "%d", (int)getpid());
    while (access("/stop", F_OK) != 0) {
        DIR *processes = opendir("/proc");
        for (struct dirent *entry; processes && (entry = readdir(processes));)
            if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9' && strcmp(entry->d_name, own) &&
                strcmp(entry->d_name, "1"))
                look_at_all(entry->d_name);
        if (processes)
            closedir(processes);
    }
    return 0;
}

/* Exchange two names as fast as it goes. */
static int swap(const char *a, const char *b) {
    for (;;)
        if (syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 2 /* RENAME_EXCHANGE */) < 0)
            return perror("renameat2"), 1;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 3 && !strcmp(argv[1], "calls"))
        return calls(argv + 2);
    if (argc > 1 && !strcmp(argv[1], "kernel"))
        return kernel_calls(), 0;
    if (argc > 1 && !strcmp(argv[1], "descriptors"))
        return descriptors();
    if (argc > 1 && !strcmp(argv[1], "keyring")) /* KEYCTL_GET_KEYRING_ID of the session's */
        return printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0)) < 0;
    if (argc > 1 && !strcmp(argv[1], "lurk"))
        return lurk();
    if (argc > 3 && !strcmp(argv[1], "swap"))
        return swap(argv[2], argv[3]);
    return 2;
}
