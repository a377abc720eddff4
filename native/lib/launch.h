/* Start processes in isolation, as a launch plan says (native/LAUNCH.md). */
#ifndef VMM_LAUNCH_H
#define VMM_LAUNCH_H

#include "vmm.h"

/* A plan by section. */
struct vmm_plan {
    struct vmm_records all;
    const struct vmm_record *shim, *host, *child;
    size_t shim_count, host_count, child_count;
    /* Set by vmm-init in a virtual machine: the machine is the workload's, so `guest.*` is understood, and
     * without a network namespace of its own `net.*` is about the machine's links. */
    bool guest;
};

int vmm_plan_read(const char *path, struct vmm_plan *out, struct vmm_error *e);
/* The same from memory; `data` is copied. */
int vmm_plan_decode(const char *data, size_t size, struct vmm_plan *out, struct vmm_error *e);
void vmm_plan_free(struct vmm_plan *plan);

/* What a process gets as 0, 1, 2; -1 or any null device: the workload's own /dev/null. With `tty`, a terminal is allocated from the workload's own devpts,
 * made its controlling terminal, and its master is returned in `master` (the fds are ignored). */
struct vmm_stdio {
    int fd[3];
    bool tty;
    unsigned short rows, columns;
    int master; /* out: -1 without tty */
};

/* Keeps what lives over restarts: the network namespace, the cgroups, the last process. */
struct vmm_launcher;

/* `plan` must outlive the launcher. Makes nothing yet. */
struct vmm_launcher *vmm_launcher_new(const struct vmm_plan *plan);

/* Carry out the host and child sections. Returns when execve(2) succeeded, or failed. On success `pid` is a
 * child of the caller (waitid(2) works) that dies with the caller (PR_SET_PDEATHSIG), and `pidfd` is open.
 * On failure nothing is left running. */
int vmm_launch(struct vmm_launcher *launcher, struct vmm_stdio *io, pid_t *pid, int *pidfd,
               struct vmm_error *e);

/* A further process in the running workload: its namespaces (by the workload's pidfd), cgroups, then `ops`
 * (child operations). Also a waitable child of the caller. While the workload is frozen it stays out of the
 * cgroup that is, and in the caller's. */
int vmm_launch_exec(struct vmm_launcher *launcher, const struct vmm_records *ops,
                    struct vmm_stdio *io, pid_t *pid, int *pidfd, struct vmm_error *e);

/* Signal every process of the workload (cgroup.kill, or each pid of the kill cgroup). */
int vmm_launch_kill_all(struct vmm_launcher *launcher, int signal);

/* Whether an OOM kill happened since the last vmm_launch(). */
bool vmm_launch_oom(const struct vmm_launcher *launcher);

/* Freeze or thaw every process of the workload (`cgroup.freeze`). */
int vmm_launch_freeze(struct vmm_launcher *launcher, bool frozen, struct vmm_error *e);

/* Numbers of STATS (native/PROTOCOL.md, "Statistics"): how many were filled in. */
struct vmm_stat {
    const char *name;
    int64_t value;
};
enum { VMM_STATS_MAX = 24 };
size_t vmm_launch_stats(const struct vmm_launcher *launcher, struct vmm_stat out[VMM_STATS_MAX]);

/* Each process of the workload as a line of TOP, without its newline; `line` returns non-zero to stop. */
int vmm_launch_top(const struct vmm_launcher *launcher,
                   int (*line)(void *context, const char *text, size_t size), void *context);

/* Carry out `cgroup.write` and `cgroup.try` operations on the running workload; others are refused. */
int vmm_launch_update(struct vmm_launcher *launcher, const struct vmm_records *ops,
                      struct vmm_error *e);

/* After the end: kill stragglers, remove the cgroups (bounded wait), drop the network namespace. */
void vmm_launcher_free(struct vmm_launcher *launcher);

#endif
