/* Control groups: signalling what is in them, and taking them away. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define REMOVE_MS 2000

char *vmm_cgroup_procs(const char *directory) {
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
    VMM_FREE char *now = vmm_cgroup_procs(directory);
    if (now && lists(now, pid))
        sys_pidfd_signal(fd, signal);
}

int vmm_cgroup_signal(const char *directory, int signal) {
    char path[PATH_MAX];
    VMM_FREE char *text = vmm_cgroup_procs(directory);
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
        if (!vmm_cgroup_is_v2(host->groups[i]))
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
static void remove_group(const struct vmm_host *host, const char *path, long *waited) {
    for (long pause = 1; rmdir(path) < 0 && errno == EBUSY; pause = pause < 16 ? pause * 2 : 16) {
        if (*waited >= REMOVE_MS)
            return;
        vmm_cgroup_signal(path, SIGKILL);
        thaw(path);
        vmm_cgroup_thaw(host);
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

static bool is_made(const struct vmm_record *r) {
    return !strcmp(r->argv[0], "cgroup.make") || !strcmp(r->argv[0], "cgroup.later");
}

static bool is_shared(const struct vmm_host *host, const char *path) {
    size_t size = strlen(path);
    for (size_t i = 0; i < host->plan->host_count; i++) {
        const struct vmm_record *r = &host->plan->host[i];
        if (is_made(r) && !strncmp(r->argv[1], path, size) && r->argv[1][size] == '/')
            return true;
    }
    return false;
}

void vmm_cgroup_remove(const struct vmm_host *host) {
    long waited = 0;
    for (size_t i = host->plan->host_count; i-- > 0;) {
        const struct vmm_record *r = &host->plan->host[i];
        if (!is_made(r))
            continue;
        if (is_shared(host, r->argv[1])) { /* a parent of another one: perhaps of other workloads too */
            rmdir(r->argv[1]);
            continue;
        }
        remove_group(host, r->argv[1], &waited);
        remove_parent(r->argv[1]);
    }
}
