/* Control groups: v1, v2 and both at once (cgroups(7)). */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "internal.h"

#define RETRIES 5

bool vmm_cgroup_is_v2(const char *directory) {
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

int vmm_cgroup_make(const char *group) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s", group) < (int)sizeof path)
        return make_group(path);
    errno = ENAMETOOLONG;
    return -1;
}

static int run_one(const struct vmm_record *r, struct vmm_error *e) {
    const char *name = r->argv[0];
    if (!strcmp(name, "cgroup.make")) {
        if (vmm_cgroup_make(r->argv[1]) == 0)
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

/* proc_pid_fdinfo(5) */
long vmm_pid_of(int pidfd) {
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
    long pid = vmm_pid_of(target);
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

/* A workload that may write its groups, as systemd's do, moves its processes below its own group,
 * which then takes none (EBUSY) or makes those below invalid by taking one: so enter the group that its
 * first process is in. */
static int join_v2(const char *group, int target) {
    char path[2 * PATH_MAX], below[PATH_MAX] = "";
    if (target >= 0 && group_below(group, target, below, sizeof below) < 0)
        *below = 0;
    snprintf(path, sizeof path, "%s%s/cgroup.procs", group, below);
    return vmm_write_file(AT_FDCWD, path, "0");
}

static int join_v1(const char *group) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/tasks", group);
    return vmm_write_file(AT_FDCWD, path, "0");
}

/* Whether it is the group that `cgroup.freeze` stops. */
static bool is_freezer(const struct vmm_host *host, const char *group) {
    const char *file = host->freeze ? host->freeze->argv[1] : "";
    size_t size = strlen(group);
    return !strncmp(file, group, size) && file[size] == '/' && !strchr(file + size + 1, '/');
}

/* A process that writes 0 moves itself, without the grace period that writing a pid costs. */
int vmm_cgroup_join(const struct vmm_child *child, bool v2, struct vmm_error *e) {
    for (size_t i = 0; i < child->host->group_count; i++) {
        const char *group = child->host->groups[i];
        bool unified = vmm_cgroup_is_v2(group);
        if ((unified && !v2) || (child->frozen && is_freezer(child->host, group)))
            continue;
        if ((unified ? join_v2(group, child->target) : join_v1(group)) < 0) {
            snprintf(e->step, sizeof e->step, "cgroup.join %.150s", group);
            return vmm_fail(e, 125, errno, "cannot enter the cgroup %.300s", group);
        }
    }
    return 0;
}

int vmm_cgroup_v2(const struct vmm_host *host) {
    for (size_t i = 0; i < host->group_count; i++)
        if (vmm_cgroup_is_v2(host->groups[i]))
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
