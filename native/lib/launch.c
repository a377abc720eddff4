/* The launcher: what is made once, and starting a process in it. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "internal.h"
#include "sys.h"

/* For set-up and execve(2) together; only a hung file system takes it. The caller waits meanwhile, and while
 * it waits for an exec it leaves a workload that runs alone. */
enum { DEADLINE_MS = 120000, EXEC_DEADLINE_MS = 20000, KILLED_MS = 1000 };

struct vmm_launcher *vmm_launcher_new(const struct vmm_plan *plan) {
    struct vmm_launcher *launcher = calloc(1, sizeof *launcher);
    if (launcher) {
        launcher->plan = plan;
        launcher->user = launcher->net = launcher->target = -1;
    }
    return launcher;
}

static int carry_out_host(struct vmm_launcher *launcher, struct vmm_error *e) {
    if (vmm_host_read(launcher->plan, &launcher->host, e) < 0 ||
        vmm_cgroup_setup(&launcher->host, e) < 0 ||
        vmm_ns_make(&launcher->host, &launcher->user, &launcher->net, e) < 0 ||
        vmm_net_setup(&launcher->host, launcher->net, e) < 0)
        return -1;
    return 0;
}

/* Carry out the host section, once. A failed attempt lets go of its links at once, and starts over. */
static int prepare(struct vmm_launcher *launcher, struct vmm_error *e) {
    if (launcher->ready)
        return 0;
    launcher->ready = carry_out_host(launcher, e) == 0;
    if (launcher->ready)
        return 0;
    vmm_close(&launcher->user);
    vmm_close(&launcher->net);
    return -1;
}

/* ---- the processes ---- */

/* Kinds that clone3(2) makes: not those kept by the launcher, nor the cgroup namespace, which is made
 * after its cgroups were entered. */
static uint64_t clone_flags(const struct vmm_child *child) {
    return child->target >= 0
               ? 0
               : child->host->fresh & ~(uint64_t)(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWCGROUP);
}

/* Joining a pid or user namespace shows only in children: then a process comes between. */
static bool needs_between(const struct vmm_child *child) {
    unsigned long joined =
        child->target >= 0 ? vmm_ns_all(child->host)
                           : vmm_ns_all(child->host) & ~(child->host->fresh & ~CLONE_NEWUSER);
    return joined & (CLONE_NEWPID | CLONE_NEWUSER);
}

static int join_shared(struct vmm_launcher *launcher, struct vmm_child *child,
                       unsigned long wanted, struct vmm_error *e) {
    if (child->target >= 0 && setns(child->target, (int)wanted) < 0)
        return vmm_fail(e, 125, errno, "cannot join the workload; it may have ended");
    if (child->target >= 0)
        return 0;
    if (launcher->user >= 0 && setns(launcher->user, CLONE_NEWUSER) < 0)
        return vmm_fail(e, 125, errno, "cannot join the user namespace");
    return vmm_ns_join(child->host, wanted, e);
}

static int join_between(struct vmm_launcher *launcher, struct vmm_child *child,
                        struct vmm_error *e) {
    unsigned long wanted = vmm_ns_all(child->host) & (CLONE_NEWPID | CLONE_NEWUSER);
    snprintf(e->step, sizeof e->step, "ns");
    if (!(wanted & CLONE_NEWUSER))
        return join_shared(launcher, child, wanted, e);
    if (vmm_cgroup_join(child, true, e) < 0) /* afterwards they are out of reach */
        return -1;
    child->cgroups_joined = true;
    if (join_shared(launcher, child, wanted, e) < 0)
        return -1;
    /* Still the host's user, who has no number in there and may make no file: become its root. */
    if ((setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0) && errno != EINVAL)
        return vmm_fail(e, 125, errno, "cannot become the user namespace's root");
    return 0;
}

/* Join, then fork the process proper as a child of the launcher. */
static _Noreturn void between(struct vmm_launcher *launcher, struct vmm_child *child) {
    struct vmm_message message = {.type = 'P'};
    struct clone_args args = {.flags = CLONE_PARENT | clone_flags(child)};
    prctl(PR_SET_DUMPABLE, 0);
    if (join_between(launcher, child, &message.error) < 0)
        vmm_child_fail(child->sock, &message.error);
    message.pid = sys_clone3(&args);
    if (message.pid == 0)
        vmm_child_main(child);
    if (message.pid < 0) {
        vmm_fail(&message.error, 125, errno, "cannot create a process");
        vmm_child_fail(child->sock, &message.error);
    }
    _exit(send(child->sock, &message, sizeof message, MSG_NOSIGNAL) < 0);
}

static int start_between(struct vmm_launcher *launcher, struct vmm_child *child, pid_t *helper,
                         struct vmm_error *e) {
    struct clone_args args = {.exit_signal = SIGCHLD};
    *helper = sys_clone3(&args);
    if (*helper == 0)
        between(launcher, child);
    return *helper < 0 ? vmm_fail(e, 125, errno, "cannot create a process") : 0;
}

static int start_direct(struct vmm_child *child, pid_t *pid, int *pidfd, struct vmm_error *e) {
    VMM_CLOSE int group = child->frozen ? -1 : vmm_cgroup_v2(child->host);
    struct clone_args args = {.flags = CLONE_PIDFD | clone_flags(child),
                              .exit_signal = SIGCHLD,
                              .pidfd = (uint64_t)(uintptr_t)pidfd};
    if (group >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)group;
        child->in_v2 = true;
    }
    *pid = sys_clone3(&args);
    if (*pid == 0)
        vmm_child_main(child);
    return *pid < 0 ? vmm_fail(e, 125, errno, "cannot create the process in its namespaces") : 0;
}

/* ---- its report ---- */

static int take_fd(struct msghdr *message) {
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    int fd = -1;
    if (control && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_RIGHTS &&
        control->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(control), sizeof fd);
    return fd;
}

/* One message within `limit` ms: 1 got, 0 end (the program runs), -1 with errno. */
static int receive(int sock, int limit, struct vmm_message *message, int *fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {message, sizeof *message};
    struct msghdr head = {.msg_iov = &part,
                          .msg_iovlen = 1,
                          .msg_control = &control,
                          .msg_controllen = sizeof control};
    struct pollfd ready = {.fd = sock, .events = POLLIN};
    int polled;
    while ((polled = poll(&ready, 1, limit)) < 0 && errno == EINTR)
        ;
    if (polled == 0)
        errno = ETIMEDOUT;
    if (polled <= 0)
        return -1;
    ssize_t got = recvmsg(sock, &head, MSG_CMSG_CLOEXEC);
    *fd = got > 0 ? take_fd(&head) : -1;
    if (got > 0 && got != sizeof *message)
        errno = EPROTO;
    return got == 0 ? 0 : got == sizeof *message ? 1 : -1;
}

/* Listen until the program runs (0) or an error was reported (-1). */
static int listen_to(int sock, const struct vmm_child *child, pid_t *pid, int *pidfd, bool *runs,
                     struct vmm_error *e) {
    struct vmm_stdio *io = child->io;
    struct vmm_message message;
    int limit = child->target >= 0 ? EXEC_DEADLINE_MS : DEADLINE_MS;
    int fd, got;
    while ((got = receive(sock, limit, &message, &fd)) > 0) {
        if (message.type == 'T' && io->master < 0) {
            io->master = fd;
            continue;
        }
        vmm_close(&fd);
        if (message.type == 'P' && *pid <= 0) { /* our own child, not reaped yet: the pid is its */
            *pid = message.pid;
            *pidfd = sys_pidfd_open(*pid);
            continue;
        }
        if (message.type == 'R') {
            *runs = true;
            continue;
        }
        message.error.step[sizeof message.error.step - 1] = 0;
        message.error.message[sizeof message.error.message - 1] = 0;
        *e = message.error;
        return -1;
    }
    if (got < 0 && errno == ETIMEDOUT)
        return vmm_fail(e, 125, 0, "the new process did not reach its program within %d s; "
                        "a file system may hang", limit / 1000);
    return got < 0 ? vmm_fail(e, 125, errno, "no answer from the new process") : 0;
}

static void reap(pid_t pid) {
    while (pid > 0 && waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
        ;
}

/* It may be where even SIGKILL comes late (a file system that hangs): then the caller's loop reaps it. */
static void end(pid_t pid, int pidfd) {
    struct pollfd gone = {.fd = pidfd, .events = POLLIN};
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    if (pidfd < 0 || poll(&gone, 1, KILLED_MS) > 0)
        reap(pid);
}

static int fail_early(const struct vmm_launcher *launcher, const siginfo_t *info,
                      struct vmm_error *e) {
    bool killed = info->si_code != CLD_EXITED;
    bool oom = killed && info->si_status == SIGKILL && vmm_launch_oom(launcher);
    return vmm_fail(e, 125, 0, "the new process %s %d before it could execute its program%s",
                    killed ? "was killed by signal" : "ended with", info->si_status,
                    oom ? ": its memory limit is too small" : "");
}

/* exec's close-on-exec shows as the end of the socket; so does death before it, whose files close before
 * it can be waited for. */
static int check_executed(const struct vmm_launcher *launcher, pid_t pid, int pidfd,
                          struct vmm_error *e) {
    siginfo_t info = {0};
    if (pid <= 0 || pidfd < 0)
        return vmm_fail(e, 125, 0, "the new process vanished");
    if (!vmm_never_executed(pid))
        return 0;
    if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) < 0)
        return vmm_fail(e, 125, errno, "the new process vanished");
    return fail_early(launcher, &info, e);
}

static int finish(const struct vmm_launcher *launcher, struct vmm_child *child, int sock,
                  pid_t helper, pid_t *pid, int *pidfd, struct vmm_error *e) {
    bool runs = false; /* an archive, which executes nothing */
    int failed = listen_to(sock, child, pid, pidfd, &runs, e);
    if (failed && helper > 0)
        kill(helper, SIGKILL);
    reap(helper);
    if (!failed && !runs)
        failed = check_executed(launcher, *pid, *pidfd, e);
    if (!failed)
        return 0;
    end(*pid, *pidfd);
    vmm_close(pidfd);
    vmm_close(&child->io->master);
    *pid = -1;
    return -1;
}

int vmm_spawn(struct vmm_launcher *launcher, struct vmm_child *child, pid_t *pid, int *pidfd,
              struct vmm_error *e) {
    int pair[2];
    pid_t helper = -1;
    *pid = *pidfd = child->io->master = -1;
    snprintf(e->step, sizeof e->step, "process");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return vmm_fail(e, 125, errno, "cannot make a socket pair");
    VMM_CLOSE int ours = pair[0];
    VMM_CLOSE int theirs = pair[1];
    child->sock = theirs;
    int failed = needs_between(child) ? start_between(launcher, child, &helper, e)
                                      : start_direct(child, pid, pidfd, e);
    if (failed)
        return -1;
    vmm_close(&theirs);
    return finish(launcher, child, ours, helper, pid, pidfd, e);
}

/* ---- the interface ---- */

int vmm_launch(struct vmm_launcher *launcher, struct vmm_stdio *io, pid_t *pid, int *pidfd,
               struct vmm_error *e) {
    *pid = *pidfd = io->master = -1;
    launcher->frozen = false;
    vmm_close(&launcher->target);
    if (launcher->ready)
        vmm_cgroup_clear(&launcher->host);
    if (prepare(launcher, e) < 0)
        return -1;
    launcher->oom = vmm_cgroup_oom(&launcher->host);
    struct vmm_child child = {.host = &launcher->host,
                              .ops = launcher->plan->child,
                              .count = launcher->plan->child_count,
                              .io = io,
                              .net = launcher->net,
                              .target = -1};
    if (vmm_spawn(launcher, &child, pid, pidfd, e) < 0)
        return -1;
    launcher->target = fcntl(*pidfd, F_DUPFD_CLOEXEC, 3);
    return 0;
}

int vmm_launch_exec(struct vmm_launcher *launcher, const struct vmm_records *ops,
                    struct vmm_stdio *io, pid_t *pid, int *pidfd, struct vmm_error *e) {
    *pid = *pidfd = io->master = -1;
    snprintf(e->step, sizeof e->step, "exec");
    if (launcher->target < 0)
        return vmm_fail(e, 125, 0, "the workload is not running");
    struct vmm_child child = {.host = &launcher->host,
                              .ops = ops->items,
                              .count = ops->count,
                              .io = io,
                              .net = -1,
                              .target = launcher->target,
                              .frozen = launcher->frozen};
    return vmm_spawn(launcher, &child, pid, pidfd, e);
}

int vmm_launch_kill_all(struct vmm_launcher *launcher, int signal) {
    bool done = launcher->host.kill_group && vmm_cgroup_signal(launcher->host.kill_group, signal) >= 0;
    if (!done && (launcher->target < 0 || sys_pidfd_signal(launcher->target, signal) < 0))
        return -1;
    if (signal == SIGKILL) /* what is frozen in v1 dies once it is thawed */
        vmm_cgroup_thaw(&launcher->host);
    return 0;
}

bool vmm_launch_oom(const struct vmm_launcher *launcher) {
    return vmm_cgroup_oom(&launcher->host) > launcher->oom;
}

void vmm_launcher_free(struct vmm_launcher *launcher) {
    if (!launcher)
        return;
    if (launcher->target >= 0)
        sys_pidfd_signal(launcher->target, SIGKILL);
    if (launcher->host.plan)
        vmm_cgroup_remove(&launcher->host);
    vmm_close(&launcher->target);
    vmm_close(&launcher->net);
    vmm_close(&launcher->user);
    free(launcher);
}
