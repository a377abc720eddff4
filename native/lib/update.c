/* Limits of a running workload, written again. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const struct vmm_op update_ops[] = {
    {"cgroup.write", 2, 2, NULL, NULL},
    {"cgroup.try", 2, 2, NULL, NULL},
};

static int check_all(const struct vmm_records *ops, struct vmm_error *e) {
    for (size_t i = 0; i < ops->count; i++)
        if (!vmm_op_find(update_ops, 2, &ops->items[i], e))
            return -1;
    return 0;
}

/* Write those in `todo` (all: NULL), noting the failed ones in `failed`; how many failed. */
static size_t write_all(const struct vmm_records *ops, const int *todo, int *failed) {
    size_t count = 0;
    for (size_t i = 0; i < ops->count; i++) {
        char *const *argv = ops->items[i].argv;
        bool wanted = !todo || todo[i];
        failed[i] = wanted && vmm_write_file(AT_FDCWD, argv[1], argv[2]) < 0 ? errno : 0;
        count += failed[i] != 0;
    }
    return count;
}

/* ---- groups that are made once a limit needs them (`cgroup.later`) ---- */

enum { PASSES = 20 };

/* Have every process in the group `from` enter `to` too, those that are forked meanwhile as well. */
static int move_all(const char *from, const char *to) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/cgroup.procs", to) >= (int)sizeof path)
        return -1;
    for (int pass = 0; pass < PASSES; pass++) {
        VMM_FREE char *wanted = vmm_cgroup_procs(from);
        VMM_FREE char *there = vmm_cgroup_procs(to);
        if (!wanted || !there)
            return -1;
        if (!strcmp(wanted, there)) /* v1 lists them sorted */
            return 0;
        for (char *rest = wanted, *pid; (pid = strsep(&rest, "\n"));)
            if (*pid && vmm_write_file(AT_FDCWD, path, pid) < 0 && errno != ESRCH)
                return -1;
    }
    errno = EBUSY;
    return -1;
}

static int enter(struct vmm_host *host, const char *group, struct vmm_error *e) {
    for (size_t i = 0; i < host->group_count; i++)
        if (!strcmp(host->groups[i], group))
            return 0;
    snprintf(e->step, sizeof e->step, "cgroup.later %.150s", group);
    if (!host->kill_group || host->group_count == VMM_MAX_JOINS)
        return vmm_fail(e, 125, 0, "the workload cannot enter the cgroup %.300s while it runs", group);
    if (vmm_cgroup_make(group) < 0)
        return vmm_fail(e, 125, errno, "cannot make the cgroup %.300s", group);
    host->groups[host->group_count++] = group; /* before the others: an exec enters by itself */
    if (move_all(host->kill_group, group) == 0)
        return 0;
    int err = errno;
    host->group_count--;
    return vmm_fail(e, 125, err, "the workload cannot enter the cgroup %.300s", group);
}

/* Enter the group that `file` belongs to, if it is one of those. */
static int enter_for(struct vmm_host *host, const char *file, struct vmm_error *e) {
    for (size_t i = 0; i < host->plan->host_count; i++) {
        const struct vmm_record *r = &host->plan->host[i];
        if (strcmp(r->argv[0], "cgroup.later") != 0)
            continue;
        size_t size = strlen(r->argv[1]);
        if (!strncmp(file, r->argv[1], size) && file[size] == '/')
            return enter(host, r->argv[1], e);
    }
    return 0;
}

static int enter_all(struct vmm_host *host, const struct vmm_records *ops, struct vmm_error *e) {
    for (size_t i = 0; i < ops->count; i++)
        if (enter_for(host, ops->items[i].argv[1], e) < 0)
            return -1;
    return 0;
}

/* The kernel refuses a memory limit above that of memory and swap together, and the other way round: which
 * of them has to go first depends on what they are. So what failed is tried once more after the others. */
int vmm_launch_update(struct vmm_launcher *launcher, const struct vmm_records *ops,
                      struct vmm_error *e) {
    snprintf(e->step, sizeof e->step, "update");
    if (launcher->target < 0)
        return vmm_fail(e, 125, 0, "the workload is not running");
    if (check_all(ops, e) < 0 || enter_all(&launcher->host, ops, e) < 0)
        return -1;
    VMM_FREE int *failed = calloc(ops->count + 1, sizeof *failed);
    if (!failed)
        return vmm_fail(e, 125, ENOMEM, "update");
    if (write_all(ops, NULL, failed))
        write_all(ops, failed, failed);
    for (size_t i = 0; i < ops->count; i++) {
        const struct vmm_record *r = &ops->items[i];
        if (!failed[i] || !strcmp(r->argv[0], "cgroup.try"))
            continue;
        vmm_step(e, r);
        return vmm_fail(e, 125, failed[i], "cannot write \"%.100s\" to %.300s", r->argv[2], r->argv[1]);
    }
    return 0;
}
