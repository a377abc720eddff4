#include "guest.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { REPORT_FD = 3, BACKLOG = 64 };

/* Leave the caller's session; the caller waits only for the first process. Returns 0 in the daemon. */
static int become_daemon(struct vmm_error *e)
{
    for (int step = 0; step < 2; step++) {
        pid_t pid = fork();
        if (pid < 0)
            return vmm_fail(e, 125, errno, "vmm-shim: fork");
        if (pid > 0)
            _exit(0);
        if (step == 0)
            setsid();
    }
    return 0;
}

static int null_stdio(struct vmm_error *e)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return vmm_fail(e, 125, errno, "/dev/null");
    for (int i = 0; i < 3; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
    return 0;
}

/* Close what the caller left open, keep the report, our program and the helper's descriptors. */
static int own_descriptors(struct shim *s, int program, struct vmm_error *e)
{
    size_t count = s->config.helper_fd_count;
    VMM_FREE int *keep = malloc((count + 2) * sizeof *keep);
    if (!keep)
        return vmm_fail(e, 125, errno, "vmm-shim");
    for (size_t i = 0; i < count; i++) {
        keep[i] = s->config.helper_fds[i];
        if (keep[i] == s->report_fd || fcntl(keep[i], F_SETFD, FD_CLOEXEC))
            return vmm_fail(e, 125, 0, "helper-fds: descriptor %d was not handed over", keep[i]);
    }
    keep[count] = s->report_fd;
    keep[count + 1] = program;
    fcntl(s->report_fd, F_SETFD, FD_CLOEXEC);
    vmm_close_except(keep, count + 2);
    return null_stdio(e);
}

static int open_socket(struct shim *s, struct vmm_error *e)
{
    char path[200];
    int n = snprintf(path, sizeof path, "%s/ctl.sock", s->config.run_dir);
    if (n < 0 || (size_t)n >= sizeof path)
        return vmm_fail(e, 125, ENAMETOOLONG, "control socket %.300s/ctl.sock", s->config.run_dir);
    return socket_listen(path, BACKLOG, &s->listen_fd, e);
}

static int prepare(struct shim *s, int program, struct vmm_error *e)
{
    if (config_read(&s->plan, &s->config, e) || own_descriptors(s, program, e) || become_daemon(e))
        return -1;
    platform_harden();
    vmm_files_raise();
    s->signal_fd = platform_signals();
    if (s->signal_fd < 0 || chdir("/"))
        return vmm_fail(e, 125, errno, "vmm-shim: signals");
    if (open_socket(s, e))
        return -1;
    if (s->config.guest)
        return guest_new(s, e);
    s->driver = &local_driver;
    s->launcher = vmm_launcher_new(&s->plan);
    if (!s->launcher)
        return vmm_fail(e, 125, errno, "launch plan");
    return 0;
}

static void init_workload(struct shim *s)
{
    struct session *w = &s->workload;
    w->in = w->out = w->err = w->slave = w->pidfd = -1;
    w->tty = s->config.tty;
    w->stdin_open = s->config.stdin_open;
    w->stdin_once = s->config.stdin_once;
    s->stop_at = s->restart_at = s->helper_at = NEVER;
    s->abandoned_at = now_ms() + ABANDONED_MS;
}

static void begin(struct shim *s)
{
    struct vmm_error e = {0};
    report_line(s->report_fd, "ready\n");
    if (s->config.adopt)
        guest_adopt(s);
    if (s->config.wait_start || s->config.adopt)
        return;
    if (workload_start(s, &e) == FAILED)
        workload_start_failed(s, &e);
}

/* Argument `index` as an open descriptor above 2, `fallback` if it is not given; -1: none. */
static int descriptor(int argc, char **argv, int index, int fallback)
{
    int fd = argc > index ? atoi(argv[index]) : fallback;
    return fd > 2 && fcntl(fd, F_GETFD) >= 0 ? fd : -1;
}

/* Go on as a program that the workload cannot write to. Returns only on failure. */
static int seal(char **argv, int report, struct vmm_error *e)
{
    char report_text[16], program_text[16];
    int program = platform_seal(e);
    if (program < 0)
        return -1;
    snprintf(report_text, sizeof report_text, "%d", report);
    snprintf(program_text, sizeof program_text, "%d", program);
    char *all[] = {argv[0], argv[1], report_text, program_text, NULL};
    return vmm_program_execute(program, all, environ, e);
}

/* A prepared shim's life. */
static void live(struct shim *s)
{
    log_open(&s->log, s->config.log_path, s->config.log_max_size, s->config.log_max_files);
    init_workload(s);
    begin(s);
    if (s->config.wait_start || s->phase != PHASE_STARTING)
        vmm_close(&s->report_fd);
    loop_run(s);
    ending_finish(s);
}

int main(int argc, char **argv)
{
    static struct shim s = {.listen_fd = -1, .signal_fd = -1, .report_fd = -1};
    struct vmm_error e = {0};
    if (argc < 2 || argc > 4) {
        report_line(2, "usage: vmm-shim PLANFILE [REPORT-FD]\n");
        return 125;
    }
    signal(SIGPIPE, SIG_IGN);
    s.report_fd = descriptor(argc, argv, 2, REPORT_FD);
    int program = descriptor(argc, argv, 3, -1);
    if ((!vmm_program_sealed() && seal(argv, s.report_fd, &e)) ||
        vmm_plan_read(argv[1], &s.plan, &e) || prepare(&s, program, &e) ||
        state_begin(&s, &e)) {
        report_error(s.report_fd >= 0 ? s.report_fd : 2, &e);
        return 125;
    }
    live(&s);
    return 0;
}
