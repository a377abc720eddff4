/* vmm-launch: carries out a launch plan in the foreground, for tests and for looking into plans.
 *
 * vmm-launch [-n TIMES] [-e OPERATIONS] [-t] [-c] PLAN
 *   -n  launch so many times in a row from one launcher (as a restart does)
 *   -e  run these child operations in the running workload, then kill it; the exit code is theirs
 *   -t  with a terminal, whose output goes to standard output
 *   -c  commands to the running workload come from standard input: freeze, thaw, stats, top, kill SIGNAL,
 *       update OPERATIONS; at the end it is killed
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands.h"

struct options {
    int times;
    bool tty, commands;
    const char *operations, *plan;
};

static int report(const struct vmm_error *e) {
    fprintf(stderr, "%s: %s\n", e->step, e->message);
    return e->code;
}

/* Copy standard input to the terminal and its output to ours, until the last process closed it. */
static void pump(int master) {
    struct pollfd fds[2] = {{.fd = master, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    char data[4096];
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return;
        if (fds[1].revents) {
            ssize_t got = read(0, data, sizeof data);
            if (got <= 0)
                fds[1].fd = -1;
            else if (write(master, data, (size_t)got) < 0)
                return;
        }
        if (fds[0].revents) {
            ssize_t got = read(master, data, sizeof data); /* EIO: all slaves are closed */
            if (got <= 0 || write(1, data, (size_t)got) < 0)
                return;
        }
    }
}

static int wait_for(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 125;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static struct vmm_stdio standard(bool tty) {
    return (struct vmm_stdio){.fd = {0, 1, 2}, .tty = tty, .rows = 24, .columns = 80, .master = -1};
}

static int finish(pid_t pid, struct vmm_stdio *io, int *pidfd) {
    if (io->master >= 0)
        pump(io->master);
    vmm_close(&io->master);
    vmm_close(pidfd);
    return wait_for(pid);
}

static int run_inside(struct vmm_launcher *launcher, const struct options *o, struct vmm_error *e) {
    struct vmm_records operations;
    struct vmm_stdio io = standard(o->tty);
    pid_t pid;
    int pidfd;
    if (read_operations(o->operations, &operations, e) < 0)
        return report(e);
    int failed = vmm_launch_exec(launcher, &operations, &io, &pid, &pidfd, e);
    int code = failed ? report(e) : finish(pid, &io, &pidfd);
    vmm_records_free(&operations);
    return code;
}

static int run_once(struct vmm_launcher *launcher, const struct options *o) {
    struct vmm_error e = {0};
    struct vmm_stdio io = standard(o->tty && !o->operations);
    pid_t pid;
    int pidfd;
    int code = 0;
    if (o->commands)
        io.fd[0] = -1;
    if (vmm_launch(launcher, &io, &pid, &pidfd, &e) < 0)
        return report(&e);
    if (!o->operations && !o->commands)
        return finish(pid, &io, &pidfd);
    if (o->commands)
        run_commands(launcher);
    else
        code = run_inside(launcher, o, &e);
    vmm_launch_kill_all(launcher, SIGKILL);
    int ended = finish(pid, &io, &pidfd);
    return o->commands ? ended : code;
}

static int parse(int argc, char **argv, struct options *o) {
    *o = (struct options){.times = 1};
    for (int c; (c = getopt(argc, argv, "n:e:tc")) != -1;) {
        if (c == '?')
            return -1;
        if (c == 'n')
            o->times = atoi(optarg);
        if (c == 'e')
            o->operations = optarg;
        if (c == 't')
            o->tty = true;
        if (c == 'c')
            o->commands = true;
    }
    o->plan = argv[optind];
    return o->plan && !argv[optind + 1] ? 0 : -1;
}

int main(int argc, char **argv) {
    struct vmm_error e = {0};
    struct vmm_plan plan;
    struct options o;
    int code = 125;
    if (!vmm_program_sealed()) {
        VMM_CLOSE int program = vmm_program_seal(&e);
        if (program >= 0)
            vmm_program_execute(program, argv, environ, &e);
        return report(&e);
    }
    if (parse(argc, argv, &o) < 0) {
        fputs("usage: vmm-launch [-n TIMES] [-e OPERATIONS] [-t] [-c] PLAN\n", stderr);
        return 125;
    }
    if (vmm_plan_read(o.plan, &plan, &e) < 0)
        return report(&e);
    struct vmm_launcher *launcher = vmm_launcher_new(&plan);
    for (int i = 0; launcher && i < o.times; i++)
        code = run_once(launcher, &o);
    if (launcher && vmm_launch_oom(launcher))
        fputs("killed for lack of memory\n", stderr);
    vmm_launcher_free(launcher);
    vmm_plan_free(&plan);
    return code;
}
