/* From the kernel's first process to the channel, and from the end to power off. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"
#include "internal.h"
#include "sys.h"

#define PORT "org.vmm.control.0"
#define COMPRESSED 4 /* MODULE_INIT_COMPRESSED_FILE, finit_module(2) */
#define COUNT(a) (sizeof(a) / sizeof *(a))

enum { LOOK_MS = 2, PATIENCE_MS = 10000, KILL_MS = 2000, UNMOUNT_MS = 1000 };

static void pause_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* ---- mounts ---- */

static int fail(struct vmm_error *e, const char *what, const char *name) {
    snprintf(e->step, sizeof e->step, "boot %.100s", name);
    return vmm_fail(e, 125, errno, "vmm-init: %s %s", what, name);
}

/* pivot_root(2) refuses to leave the rootfs itself. A second mount of it, moved on top of the first, is no
 * longer that, and takes no memory. */
static int leave_rootfs(struct vmm_error *e) {
    mkdir("/root", 0755);
    if (sys_mount("/", "/root", NULL, MS_BIND, NULL) < 0 || chdir("/root") < 0 ||
        sys_mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return fail(e, "cannot leave", "rootfs");
    return 0;
}

static const struct {
    const char *type, *target, *data;
    unsigned long flags;
} trees[] = {
    {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
    {"cgroup2", "/sys/fs/cgroup", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

static int mount_trees(struct vmm_error *e) {
    for (size_t i = 0; i < COUNT(trees); i++) {
        mkdir(trees[i].target, 0755);
        if (sys_mount(trees[i].type, trees[i].target, trees[i].type, trees[i].flags, trees[i].data) < 0 &&
            errno != EBUSY) /* devtmpfs.mount: the kernel did it */
            return fail(e, "cannot mount", trees[i].target);
    }
    return 0;
}

/* Every controller, for the groups below. */
static void enable_controllers(void) {
    char names[1024], word[80], *saved = NULL;
    if (vmm_read_file(AT_FDCWD, "/sys/fs/cgroup/cgroup.controllers", names, sizeof names) <= 0)
        return;
    for (char *name = strtok_r(names, " \n", &saved); name; name = strtok_r(NULL, " \n", &saved)) {
        snprintf(word, sizeof word, "+%.64s", name);
        if (vmm_write_file(AT_FDCWD, "/sys/fs/cgroup/cgroup.subtree_control", word) < 0)
            complain("cgroup controller %s: %s", name, strerror(errno));
    }
}

/* ---- modules ---- */

static void load_module(const char *path) {
    size_t size = strlen(path);
    bool plain = size > 3 && !strcmp(path + size - 3, ".ko");
    VMM_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return; /* built in */
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", plain ? 0 : COMPRESSED) < 0 && errno != EEXIST))
        complain("module %s: %s", path, strerror(errno));
}

/* /modules/order names the files one a line. They are of no use afterwards, and lie in memory. */
static void load_modules(void) {
    char names[8192], path[300], *saved = NULL;
    if (vmm_read_file(AT_FDCWD, "/modules/order", names, sizeof names) <= 0)
        return;
    for (char *name = strtok_r(names, "\n", &saved); name; name = strtok_r(NULL, "\n", &saved)) {
        snprintf(path, sizeof path, "/modules/%.255s", name);
        load_module(path);
        unlink(path);
    }
    unlink("/modules/order");
    rmdir("/modules");
}

/* ---- the rest ---- */

static void set_loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    VMM_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        complain("lo: %s", strerror(errno));
}

static bool is_port(const char *name) {
    char path[300], text[64];
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%.200s/name", name);
    return vmm_read_file(AT_FDCWD, path, text, sizeof text) > 0 && !strcmp(text, PORT "\n");
}

static int look_for_port(void) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    char path[300];
    int fd = -1;
    for (struct dirent *entry; ports && fd < 0 && (entry = readdir(ports));) {
        if (entry->d_name[0] == '.' || !is_port(entry->d_name))
            continue;
        snprintf(path, sizeof path, "/dev/%.255s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    }
    if (ports)
        closedir(ports);
    return fd;
}

/* The port shows a little after its driver was loaded. Without it nobody can be told anything, so it is awaited for
 * as long as it takes. */
static int find_port(void) {
    int64_t complain_at = now_ms() + PATIENCE_MS;
    for (;;) {
        int fd = look_for_port();
        if (fd >= 0)
            return fd;
        if (now_ms() >= complain_at) {
            complain("there is no virtio port called " PORT);
            complain_at = NEVER;
        }
        pause_ms(complain_at == NEVER ? 100 : LOOK_MS);
    }
}

/* On the console, whatever it is; nothing waits for it. */
void complain(const char *format, ...) {
    char text[400] = "vmm-init: ";
    va_list list;
    va_start(list, format);
    vsnprintf(text + 10, sizeof text - 12, format, list);
    va_end(list);
    strcat(text, "\r\n");
    VMM_CLOSE int console = getpid() == 1 ? open("/dev/console", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
                                          : fcntl(2, F_DUPFD_CLOEXEC, LAUNCHER);
    if (console >= 0)
        (void)!write(console, text, strlen(text));
}

/* Descriptors 0, 1 and 2 are taken, so that nothing else gets these numbers. */
static void take_standard(void) {
    int fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

_Noreturn void boot_main(void) {
    struct vmm_error e = {0};
    umask(0);
    if (leave_rootfs(&e) < 0 || mount_trees(&e) < 0)
        complain("%s", e.message);
    take_standard();
    enable_controllers();
    load_modules();
    set_loopback_up();
    guest_serve(find_port(), &e);
}

/* ---- the end ---- */

/* What ended of its own or was killed; a process that the kernel does not let go is not waited for. */
void boot_reap(void) {
    for (int64_t end = now_ms() + KILL_MS; now_ms() < end; pause_ms(1)) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG | __WALL)) > 0)
            ;
        if (pid < 0)
            return;
    }
}

/* The workload's mounts go with its processes, a moment later. What stays busy is detached: it was synced. */
void boot_unmount(struct guest *g) {
    for (int64_t end = now_ms() + UNMOUNT_MS; g->mount_count > 0;) {
        const char *target = g->mounts[g->mount_count - 1];
        if (sys_umount(target, 0) < 0 && errno == EBUSY && now_ms() < end) {
            pause_ms(2);
            continue;
        }
        sys_umount(target, SYS_MNT_DETACH);
        g->mount_count--;
    }
}

_Noreturn void boot_poweroff(struct guest *g) {
    kill(-1, SIGKILL);
    boot_reap();
    sync();
    boot_unmount(g);
    reboot(LINUX_REBOOT_CMD_POWER_OFF);
    reboot(LINUX_REBOOT_CMD_RESTART); /* without ACPI there is only this, which the host takes for an end */
    for (;;)
        pause();
}
