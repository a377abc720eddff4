/* The first process of a container started with `--init`.
 *
 * `vmm-init PROGRAM ARGV…` runs PROGRAM, hands on every signal, reaps what is orphaned, and ends with the
 * program's exit code (128+n for a signal). Descriptor 3 is the launcher's socket: it closes when PROGRAM was
 * executed; a failure is reported through it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "internal.h"

static _Noreturn void fail(int err, const char *program) {
    struct vmm_message message = {.type = 'E'};
    int code = err == ENOENT || err == ENOTDIR ? 127 : 126;
    snprintf(message.error.step, sizeof message.error.step, "exec %.150s", program);
    vmm_fail(&message.error, code, err, "exec \"%.300s\"", program);
    send(LAUNCHER, &message, sizeof message, MSG_NOSIGNAL);
    _exit(code);
}

/* In the foreground of the terminal, if there is one, as its own process group. */
static _Noreturn void run(char **argv, const sigset_t *none) {
    setpgid(0, 0);
    if (isatty(0))
        tcsetpgrp(0, getpid()); /* SIGTTOU is still blocked */
    sigprocmask(SIG_SETMASK, none, NULL);
    execv(argv[1], argv + 2);
    fail(errno, argv[2]);
}

/* Collect all that ended; the program's exit code once it is among them, else -1. */
static int reap(pid_t program) {
    int status, code = -1;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == program)
            code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return code;
}

static _Noreturn void keep(pid_t program, const sigset_t *all) {
    for (;;) {
        int signal = sigwaitinfo(all, NULL);
        int code = signal == SIGCHLD ? reap(program) : -1;
        if (code >= 0)
            _exit(code);
        if (signal > 0 && signal != SIGCHLD)
            kill(program, signal);
    }
}

int container_main(char **argv) {
    sigset_t all, none;
    if (fcntl(LAUNCHER, F_SETFD, FD_CLOEXEC) < 0)
        return 125;
    sigfillset(&all);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_NAME, "vmm-init");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t program = fork();
    if (program == 0)
        run(argv, &none);
    if (program < 0)
        fail(errno, argv[2]);
    close(LAUNCHER);
    keep(program, &all);
}
