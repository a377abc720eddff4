/* The new process, from clone3(2) to execve(2). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

_Noreturn void vmm_child_fail(int sock, const struct vmm_error *e) {
    struct vmm_message message = {.type = 'E', .error = *e};
    send(sock, &message, sizeof message, MSG_NOSIGNAL);
    _exit(e->code ? e->code : 125);
}

/* ---- first pass: check every operation, note what comes last, open what is outside ---- */

static int note_nothing(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)context, (void)r, (void)e;
    return 0;
}

static int note_groups(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_child *)context)->process.groups = r;
    return 0;
}

static int note_user(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_child *)context)->process.user = r;
    return 0;
}

static int note_caps(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_child *)context)->process.caps = r;
    return 0;
}

static int note_privs(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)r, (void)e;
    ((struct vmm_child *)context)->process.no_new_privs = true;
    return 0;
}

static int note_seccomp(void *context, const struct vmm_record *r, struct vmm_error *e) {
    if (r->len[1] == 0 || r->len[1] % 8 || r->len[1] / 8 > 4096)
        return vmm_fail(e, 125, 0, "a filter has 1 to 4096 instructions of 8 bytes");
    ((struct vmm_child *)context)->process.seccomp = r;
    return 0;
}

static int note_umask(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_child *)context)->process.umask = r;
    return 0;
}

static int note_rlimit(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_process *process = &((struct vmm_child *)context)->process;
    if (process->rlimits == VMM_MAX_RLIMITS)
        return vmm_fail(e, 125, 0, "more than %d limits", VMM_MAX_RLIMITS);
    process->rlimit[process->rlimits++] = r;
    return 0;
}

static int note_env(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_process *process = &((struct vmm_child *)context)->process;
    char **env = realloc(process->env, (process->env_count + r->argc) * sizeof *env);
    if (!env)
        return vmm_fail(e, 125, ENOMEM, "environment");
    for (uint32_t i = 1; i < r->argc; i++)
        env[process->env_count++] = r->argv[i];
    env[process->env_count] = NULL;
    process->env = env;
    return 0;
}

static int note_exec(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_child *)context)->process.exec = r;
    return 0;
}

static const struct vmm_op child_ops[] = {
    {"root.overlay", 5, 4095, note_nothing, vmm_root_overlay},
    {"root.directory", 1, 1, note_nothing, vmm_root_directory},
    {"root.pivot", 0, 0, note_nothing, vmm_root_pivot},
    {"root.readonly", 0, 0, note_nothing, vmm_root_readonly},
    {"mount.fs", 5, 5, note_nothing, vmm_mount_fs},
    {"mount.bind", 3, 3, vmm_note_bind, vmm_mount_bind},
    {"mount.cgroup", 3, 3, note_nothing, vmm_mount_cgroup},
    {"mount.proc-mask", 1, 1, note_nothing, vmm_mount_mask},
    {"mount.readonly", 1, 1, note_nothing, vmm_mount_readonly},
    {"mkdir", 4, 4, note_nothing, vmm_make_directory},
    {"dev.node", 7, 7, note_nothing, vmm_make_node},
    {"dev.all", 0, 16, note_nothing, vmm_make_all_nodes},
    {"dev.console", 0, 0, note_nothing, vmm_tty_console},
    {"symlink", 2, 2, note_nothing, vmm_make_symlink},
    {"file.write", 3, 3, note_nothing, vmm_make_file},
    {"hostname", 1, 1, note_nothing, vmm_set_hostname},
    {"domainname", 1, 1, note_nothing, vmm_set_domainname},
    {"sysctl", 2, 2, note_nothing, vmm_set_sysctl},
    {"cwd", 2, 2, note_nothing, vmm_change_directory},
    {"rlimit", 3, 3, note_rlimit, note_nothing},
    {"umask", 1, 1, note_umask, note_nothing},
    {"groups", 0, 4095, note_groups, note_nothing},
    {"user", 2, 2, note_user, note_nothing},
    {"caps", 5, 5, note_caps, note_nothing},
    {"no-new-privs", 0, 0, note_privs, note_nothing},
    {"seccomp", 1, 1, note_seccomp, note_nothing},
    {"env", 0, 4095, note_env, note_nothing},
    {"init", 1, 1, vmm_note_init, note_nothing},
    {"exec", 1, 4095, note_exec, note_nothing},
    {"archive.get", 2, 2, vmm_note_archive, note_nothing},
    {"archive.put", 1, 1, vmm_note_archive, note_nothing},
};

static int note_all(struct vmm_child *child, struct vmm_error *e) {
    child->source = malloc((child->count + 1) * sizeof *child->source);
    if (!child->source)
        return vmm_fail(e, 125, ENOMEM, "operations");
    for (size_t i = 0; i < child->count; i++) {
        const struct vmm_record *r = &child->ops[i];
        const struct vmm_op *op = vmm_op_find(child_ops, COUNT(child_ops), r, e);
        child->source[i] = -1;
        if (!op || op->note(child, r, e) < 0)
            return -1;
    }
    if (!child->process.exec == !child->process.archive)
        return vmm_fail(e, 125, 0, "the plan executes %s", child->process.exec ? "two things" : "nothing");
    return 0;
}

/* ---- entering ---- */

/* Lowering below what was inherited takes CAP_SYS_RESOURCE; then it stays as it is. */
static int set_score(const struct vmm_host *host, struct vmm_error *e) {
    char text[16];
    if (!host->has_score)
        return 0;
    snprintf(text, sizeof text, "%d", host->score);
    if (vmm_write_file(AT_FDCWD, "/proc/self/oom_score_adj", text) < 0 && errno != EACCES &&
        errno != EPERM) {
        snprintf(e->step, sizeof e->step, "oom-score %s", text);
        return vmm_fail(e, 125, errno, "cannot set the OOM score");
    }
    return 0;
}

static int enter_new(struct vmm_child *child, struct vmm_error *e) {
    const struct vmm_host *host = child->host;
    if (child->net >= 0 && setns(child->net, CLONE_NEWNET) < 0)
        return vmm_fail(e, 125, errno, "cannot enter the network namespace");
    if (vmm_ns_join(host, ~(unsigned long)(CLONE_NEWPID | CLONE_NEWUSER), e) < 0)
        return -1;
    if ((host->fresh & CLONE_NEWCGROUP) && unshare(CLONE_NEWCGROUP) < 0)
        return vmm_fail(e, 125, errno, "cannot make a cgroup namespace");
    /* Nothing mounted from here on shows on the host; binds that are to be shared were opened before. */
    if ((host->fresh & CLONE_NEWNS) && sys_mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return vmm_fail(e, 125, errno, "cannot detach the mounts from the host's");
    return 0;
}

static int enter_running(struct vmm_child *child, struct vmm_error *e) {
    unsigned long kinds = vmm_ns_all(child->host) & ~(unsigned long)(CLONE_NEWPID | CLONE_NEWUSER);
    if (kinds && setns(child->target, (int)kinds) < 0)
        return vmm_fail(e, 125, errno, "cannot join the workload; it may have ended");
    return 0;
}

static int enter(struct vmm_child *child, struct vmm_error *e) {
    snprintf(e->step, sizeof e->step, "ns");
    if (!child->cgroups_joined && vmm_cgroup_join(child, !child->in_v2, e) < 0)
        return -1;
    if (set_score(child->host, e) < 0)
        return -1;
    return child->target < 0 ? enter_new(child, e) : enter_running(child, e);
}

static int run_all(struct vmm_child *child, struct vmm_error *e) {
    for (size_t i = 0; i < child->count; i++) {
        const struct vmm_op *op = vmm_op_find(child_ops, COUNT(child_ops), &child->ops[i], e);
        if (!op || op->run(child, &child->ops[i], e) < 0)
            return -1;
    }
    return 0;
}

/* A process inside with CAP_SYS_PTRACE may reach into this one once it is there: it shall find nothing of the
 * launcher's (control sockets, logs, other workloads' streams). */
static void drop_inherited(const struct vmm_child *child) {
    const int keep[] = {child->sock,      child->io->fd[0], child->io->fd[1],
                        child->io->fd[2], child->net,       child->target};
    vmm_close_except(keep, COUNT(keep));
}

static int prepare(struct vmm_child *child, struct vmm_error *e) {
    snprintf(e->step, sizeof e->step, "process");
    child->init = child->mask = child->slave = child->root = -1;
    drop_inherited(child); /* the launcher's end of the socket too, so that its death shows as a hang-up */
    umask(0);
    setsid();
    if (note_all(child, e) < 0 || enter(child, e) < 0)
        return -1;
    child->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return child->root < 0 ? vmm_fail(e, 125, errno, "cannot open /") : 0;
}

static int become(struct vmm_child *child, struct vmm_error *e) {
    if (child->process.archive)
        return vmm_stdio_enter(child, e) < 0 ? -1 : vmm_archive_enter(child, e);
    return vmm_process_find(child, e) < 0 || vmm_stdio_enter(child, e) < 0 ? -1 : vmm_process_enter(child, e);
}

_Noreturn void vmm_child_main(struct vmm_child *child) {
    struct vmm_error e = {0};
    /* Until execve(2) nobody inside may look into this process or open its /proc/PID/exe. */
    prctl(PR_SET_DUMPABLE, 0);
    if (prepare(child, &e) == 0 && run_all(child, &e) == 0)
        become(child, &e);
    vmm_child_fail(child->sock, &e);
}
