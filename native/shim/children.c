/* Processes of the shim's own: reaping, the helper (port relay), the reaper. */
#include "guest.h"
#include "shim.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HELPER_RETRIES = 8, HELPER_STEADY_MS = 10000, REAPER_RETRIES = 6 };

static void decode(int status, int *code, int *signal)
{
    *signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    *code = *signal ? 128 + *signal : WEXITSTATUS(status);
}

/* Start the helper again, later each time; one that never stays up is given up. */
static void helper_exited(struct shim *s)
{
    int64_t now = now_ms();
    s->helper = 0;
    if (s->phase == PHASE_ENDING)
        return;
    if (now - s->helper_started >= HELPER_STEADY_MS)
        s->helper_failures = 0;
    if (s->helper_failures++ < HELPER_RETRIES)
        s->helper_at = now + (INT64_C(50) << s->helper_failures);
}

static void reaped(struct shim *s, pid_t pid, int status)
{
    int code, signal;
    decode(status, &code, &signal);
    if (pid == s->helper) {
        helper_exited(s);
        return;
    }
    if (s->guest) { /* pids of its sessions are not this kernel's */
        job_reaped(s, pid, code);
        return;
    }
    if (pid == s->workload.pid) {
        workload_exited(s, code, signal);
        return;
    }
    for (struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->pid == pid)
            exec_exited(s, exec, code, signal);
}

void children_ready(struct shim *s, void *object, short events)
{
    int signal, status;
    pid_t pid;
    (void)object;
    (void)events;
    while (platform_signal_next(s->signal_fd, &signal))
        if (signal == SIGTERM)
            workload_stop(s, s->config.stop_signal, s->config.stop_timeout_ms, false);
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        reaped(s, pid, status);
}

static void null_stdio(void)
{
    int fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

static void default_signals(void)
{
    sigset_t none;
    for (int i = 1; i < 32; i++)
        signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void helper_child(const struct shim *s, pid_t parent)
{
    platform_die_with_parent();
    if (getppid() != parent)
        _exit(1);
    null_stdio();
    default_signals();
    vmm_files_restore();
    for (size_t i = 0; i < s->config.helper_fd_count; i++)
        fcntl(s->config.helper_fds[i], F_SETFD, 0);
    vmm_close_except(s->config.helper_fds, s->config.helper_fd_count);
    execv(s->config.helper[0], (char *const *)s->config.helper);
    _exit(127);
}

void helper_start(struct shim *s)
{
    pid_t self = getpid();
    s->helper_at = NEVER;
    if (!s->config.helper || s->helper > 0)
        return;
    s->helper_started = now_ms();
    s->helper = fork();
    if (s->helper == 0)
        helper_child(s, self);
    if (s->helper < 0)
        helper_exited(s);
}

void helper_stop(struct shim *s)
{
    s->helper_at = NEVER;
    if (s->helper <= 0)
        return;
    kill(s->helper, SIGKILL);
    waitpid(s->helper, NULL, 0);
    s->helper = 0;
}

/* fork(2), again a little later while processes or memory are short: 3 s in all. */
static pid_t fork_patiently(void)
{
    pid_t pid = fork();
    for (int i = 0; pid < 0 && i < REAPER_RETRIES; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
        pid = fork();
    }
    return pid;
}

/* Detached: a session of its own, nothing inherited but the environment. */
int reaper_start(struct shim *s)
{
    if (!s->config.reaper)
        return 0;
    pid_t pid = fork_patiently();
    if (pid != 0)
        return pid < 0 ? -1 : 0;
    setsid();
    null_stdio();
    default_signals();
    vmm_files_restore();
    vmm_close_except(NULL, 0);
    execv(s->config.reaper[0], (char *const *)s->config.reaper);
    _exit(127);
}
