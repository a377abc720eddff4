/* Control groups: v1, v2 and both at once (cgroups(7)). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define RETRIES 5
#define REMOVE_MS 2000

static bool is_v2(const char *directory) {
    struct statfs fs;
    return statfs(directory, &fs) == 0 && fs.f_type == CGROUP2_SUPER_MAGIC;
}

/* A new v1 cpuset is empty and takes no process: give it what its parent has, cpuset(7). */
static void inherit_cpuset(const char *directory) {
    static const char *const files[] = {"cpuset.cpus", "cpuset.mems"};
    char path[PATH_MAX], value[4096];
    for (int i = 0; i < 2; i++) {
        if (snprintf(path, sizeof path, "%s/%s", directory, files[i]) >= (int)sizeof path ||
            vmm_read_file(AT_FDCWD, path, value, sizeof value) != 1)
            continue; /* not a cpuset, or set already */
        char parent[PATH_MAX];
        if (snprintf(parent, sizeof parent, "%s/../%s", directory, files[i]) < (int)sizeof parent &&
            vmm_read_file(AT_FDCWD, parent, value, sizeof value) > 0)
            vmm_write_file(AT_FDCWD, path, value);
    }
}

static bool in_hierarchy(const char *directory) {
    struct statfs fs;
    return statfs(directory, &fs) == 0 &&
           (fs.f_type == CGROUP2_SUPER_MAGIC || fs.f_type == CGROUP_SUPER_MAGIC);
}

/* A group to be read from inside by anybody, whatever our umask; it may exist already. */
static int make_one(const char *path) {
    if (mkdir(path, 0755) < 0)
        return errno == EEXIST ? 0 : -1;
    if (in_hierarchy(path) && chmod(path, 0755) == 0) {
        inherit_cpuset(path);
        return 0;
    }
    rmdir(path);
    errno = ENODEV; /* never a plain directory beside the hierarchies */
    return -1;
}

static int make_group(char *path) {
    char *slash = strrchr(path, '/');
    if (make_one(path) == 0)
        return 0;
    if (errno != ENOENT || !slash || slash == path)
        return -1;
    *slash = 0;
    int made = make_group(path);
    *slash = '/';
    return made < 0 ? -1 : make_one(path);
}

static int run_one(const struct vmm_record *r, struct vmm_error *e) {
    const char *name = r->argv[0];
    if (!strcmp(name, "cgroup.make")) {
        char path[PATH_MAX];
        if (snprintf(path, sizeof path, "%s", r->argv[1]) >= (int)sizeof path)
            errno = ENAMETOOLONG;
        else if (make_group(path) == 0)
            return 0;
        vmm_step(e, r);
        return vmm_fail(e, 125, errno, "cannot make the cgroup %.300s", r->argv[1]);
    }
    if (!strcmp(name, "cgroup.devices"))
        return vmm_devices_limit(r, e);
    if (strcmp(name, "cgroup.write") != 0 && strcmp(name, "cgroup.try") != 0)
        return 0;
    if (vmm_write_file(AT_FDCWD, r->argv[1], r->argv[2]) == 0 || !strcmp(name, "cgroup.try"))
        return 0;
    vmm_step(e, r);
    return vmm_fail(e, 125, errno, "cannot write \"%.100s\" to %.300s", r->argv[2], r->argv[1]);
}

/* Another workload's end may remove the common parent while we are about it: then once more. */
int vmm_cgroup_setup(const struct vmm_host *host, struct vmm_error *e) {
    int failed = 0;
    for (int tries = 0; tries < RETRIES; tries++) {
        failed = 0;
        for (size_t i = 0; !failed && i < host->plan->host_count; i++)
            failed = run_one(&host->plan->host[i], e);
        if (!failed || e->err != ENOENT)
            break;
    }
    return failed;
}

/* Number of the process of a pidfd (proc_pid_fdinfo(5)); 0: it ended. */
static long pid_of(int pidfd) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
    if (vmm_read_file(AT_FDCWD, path, text, sizeof text) < 0)
        return 0;
    char *at = strstr(text, "\nPid:");
    long pid = at ? strtol(at + 5, NULL, 10) : 0;
    return pid > 0 ? pid : 0;
}

/* Name of `target`'s v2 group below `group`, "" or "/a/b", in `out`. The last part of `group` is unique,
 * so that its place in the path tells, wherever the hierarchy is mounted. */
static int group_below(const char *group, int target, char *out, size_t size) {
    char path[64], text[PATH_MAX];
    long pid = pid_of(target);
    const char *name = strrchr(group, '/');
    snprintf(path, sizeof path, "/proc/%ld/cgroup", pid);
    if (!pid || !name || vmm_read_file(AT_FDCWD, path, text, sizeof text) < 0)
        return -1;
    char *line = strncmp(text, "0::", 3) ? strstr(text, "\n0::") : text;
    char *end = line ? strchr(line + 1, '\n') : NULL;
    if (end)
        *end = 0;
    char *found = line ? strstr(line, name) : NULL;
    if (!found)
        return -1;
    return snprintf(out, size, "%s", found + strlen(name)) < (int)size ? 0 : -1;
}

/* A v2 group whose controllers are handed on takes no process (EBUSY): a workload that may write its
 * groups, as systemd's do, has moved itself below. Then enter the group of its first process. */
static int join_below(const char *group, int target) {
    char path[2 * PATH_MAX], below[PATH_MAX];
    if (target < 0 || group_below(group, target, below, sizeof below) < 0) {
        errno = EBUSY;
        return -1;
    }
    snprintf(path, sizeof path, "%s%s/cgroup.procs", group, below);
    return vmm_write_file(AT_FDCWD, path, "0");
}

/* A process that writes 0 moves itself, without the grace period that writing a pid costs. */
int vmm_cgroup_join(const struct vmm_host *host, bool v2, int target, struct vmm_error *e) {
    for (size_t i = 0; i < host->group_count; i++) {
        char path[PATH_MAX];
        bool unified = is_v2(host->groups[i]);
        if (unified && !v2)
            continue;
        snprintf(path, sizeof path, "%s/%s", host->groups[i], unified ? "cgroup.procs" : "tasks");
        int failed = vmm_write_file(AT_FDCWD, path, "0");
        if (failed && errno == EBUSY && unified)
            failed = join_below(host->groups[i], target);
        if (failed) {
            snprintf(e->step, sizeof e->step, "cgroup.join %.150s", host->groups[i]);
            return vmm_fail(e, 125, errno, "cannot enter the cgroup %.300s", host->groups[i]);
        }
    }
    return 0;
}

int vmm_cgroup_v2(const struct vmm_host *host) {
    for (size_t i = 0; i < host->group_count; i++)
        if (is_v2(host->groups[i]))
            return open(host->groups[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return -1;
}

/* `oom_kill N` of v1's memory.oom_control and of v2's memory.events. */
uint64_t vmm_cgroup_oom(const struct vmm_host *host) {
    char text[4096];
    if (!host->oom_file || vmm_read_file(AT_FDCWD, host->oom_file, text, sizeof text) < 0)
        return 0;
    for (char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (!strncmp(line, "oom_kill ", 9))
            return strtoull(line + 9, NULL, 10);
    }
    return 0;
}

/* ---- the end ---- */

/* Processes of `directory` as allocated text; NULL with errno. */
static char *read_procs(const char *directory) {
    char path[PATH_MAX];
    size_t size = 4096;
    snprintf(path, sizeof path, "%s/cgroup.procs", directory);
    for (;; size *= 4) {
        char *text = malloc(size);
        ssize_t got = text ? vmm_read_file(AT_FDCWD, path, text, size) : -1;
        if (got >= 0 && (size_t)got < size - 1)
            return text;
        free(text);
        if (got < 0)
            return NULL;
    }
}

static bool lists(const char *text, long pid) {
    for (char *end; *text; text = *end ? end + 1 : end)
        if (strtol(text, &end, 10) == pid)
            return true;
        else if (end == text)
            return false;
    return false;
}

/* A pid may have been reused since the group was read. Once we hold it by descriptor, and the group
 * still lists it, it is a process of the group. */
static void signal_member(const char *directory, long pid, int signal) {
    VMM_CLOSE int fd = sys_pidfd_open((pid_t)pid);
    if (fd < 0)
        return;
    VMM_FREE char *now = read_procs(directory);
    if (now && lists(now, pid))
        sys_pidfd_signal(fd, signal);
}

int vmm_cgroup_signal(const char *directory, int signal) {
    char path[PATH_MAX];
    VMM_FREE char *text = read_procs(directory);
    int count = 0;
    if (!text)
        return -1;
    snprintf(path, sizeof path, "%s/cgroup.kill", directory);
    bool killed = *text && signal == SIGKILL && vmm_write_file(AT_FDCWD, path, "1") == 0;
    for (char *at = text, *end; *at; at = *end ? end + 1 : end, count++) {
        long pid = strtol(at, &end, 10);
        if (end == at)
            break;
        if (!killed && pid > 0)
            signal_member(directory, pid, signal);
    }
    return count;
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* Groups that a workload made below its own (v1 delegation, systemd inside), deepest first. */
static void remove_children(const char *path, int depth) {
    DIR *directory = depth < 16 ? opendir(path) : NULL;
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char child[PATH_MAX];
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.' ||
            snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= (int)sizeof child)
            continue;
        vmm_cgroup_signal(child, SIGKILL);
        remove_children(child, depth + 1);
        rmdir(child);
    }
    if (directory)
        closedir(directory);
}

/* Have a v2 group keep its controllers to itself again. */
static void withdraw(const char *group) {
    char path[PATH_MAX], text[512], order[1024] = "";
    size_t used = 0;
    if (snprintf(path, sizeof path, "%s/cgroup.subtree_control", group) >= (int)sizeof path ||
        vmm_read_file(AT_FDCWD, path, text, sizeof text) <= 0)
        return;
    for (char *rest = text, *name; (name = strsep(&rest, " \n"));)
        if (*name)
            used += (size_t)snprintf(order + used, sizeof order - used, "-%s ", name);
    vmm_write_file(AT_FDCWD, path, order);
}

void vmm_cgroup_clear(const struct vmm_host *host) {
    for (size_t i = 0; i < host->group_count; i++) {
        if (!is_v2(host->groups[i]))
            continue;
        remove_children(host->groups[i], 0);
        withdraw(host->groups[i]);
    }
}

/* A frozen process of v1 does not die before it is thawed. */
static void thaw(const char *group) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/freezer.state", group);
    vmm_write_file(AT_FDCWD, path, "THAWED");
}

/* Remove `path`, killing what is in it; `waited` is shared by all groups of a workload. */
static void remove_group(const char *path, long *waited) {
    for (long pause = 1; rmdir(path) < 0 && errno == EBUSY; pause = pause < 16 ? pause * 2 : 16) {
        if (*waited >= REMOVE_MS)
            return;
        vmm_cgroup_signal(path, SIGKILL);
        thaw(path);
        remove_children(path, 0);
        sleep_ms(pause);
        *waited += pause;
    }
}

/* The group that all workloads of an instance share (`vmm`, `vmm-…`) goes with the last of them. */
static void remove_parent(const char *path) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    for (char *slash; (slash = strrchr(parent, '/')); rmdir(parent)) {
        *slash = 0;
        char *name = strrchr(parent, '/');
        if (!name || strncmp(name, "/vmm", 4) != 0)
            return;
    }
}

static bool is_shared(const struct vmm_host *host, const char *path) {
    size_t size = strlen(path);
    for (size_t i = 0; i < host->plan->host_count; i++) {
        const struct vmm_record *r = &host->plan->host[i];
        if (!strcmp(r->argv[0], "cgroup.make") && !strncmp(r->argv[1], path, size) &&
            r->argv[1][size] == '/')
            return true;
    }
    return false;
}

void vmm_cgroup_remove(const struct vmm_host *host) {
    long waited = 0;
    for (size_t i = host->plan->host_count; i-- > 0;) {
        const struct vmm_record *r = &host->plan->host[i];
        if (strcmp(r->argv[0], "cgroup.make") != 0)
            continue;
        if (is_shared(host, r->argv[1])) { /* a parent of another one: perhaps of other workloads too */
            rmdir(r->argv[1]);
            continue;
        }
        remove_group(r->argv[1], &waited);
        remove_parent(r->argv[1]);
    }
}
