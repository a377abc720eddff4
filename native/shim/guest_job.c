/* Runs of a guest's control program: `CONTROL… start|destroy|suspend|resume|reason`. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { READS = 256 }; /* more than a pipe holds */

static const char *const words[] = {"", "start", "destroy", "suspend", "resume", "reason"};

void text_tame(char *out, size_t size, const char *text, size_t length)
{
    size_t n = length < size ? length : size - 1;
    for (size_t i = 0; i < n; i++)
        out[i] = text[i] >= ' ' && text[i] < 127 ? text[i] : ' ';
    while (n && out[n - 1] == ' ')
        n--;
    out[n] = 0;
}

/* The arguments and the word; freed by the caller. */
static const char **arguments(const struct shim *s, enum job_kind kind)
{
    size_t count = 0;
    while (s->config.guest && s->config.guest[count])
        count++;
    const char **argv = count ? malloc((count + 2) * sizeof *argv) : NULL;
    if (!argv)
        return NULL;
    memcpy(argv, s->config.guest, count * sizeof *argv);
    argv[count] = words[kind];
    argv[count + 1] = NULL;
    return argv;
}

static _Noreturn void job_child(const char **argv, int out, int err)
{
    sigset_t none;
    int null = open("/dev/null", O_RDWR);
    sigemptyset(&none);
    platform_die_with_parent();
    if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(127);
    for (int i = 1; i < 32; i++)
        signal(i, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    vmm_files_restore();
    vmm_close_except(NULL, 0);
    execv(argv[0], (char *const *)argv);
    dprintf(2, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static int make_pipe(int *ours, int *theirs)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -1;
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    *ours = ends[0];
    *theirs = ends[1];
    return 0;
}

static void job_clear(struct job *job)
{
    vmm_close(&job->out);
    vmm_close(&job->err);
    *job = (struct job){.out = -1, .err = -1, .at = NEVER};
}

int job_start(struct shim *s, enum job_kind kind, int64_t limit_ms, struct asker asker)
{
    struct job *job = &s->guest->job;
    VMM_FREE const char **argv = arguments(s, kind);
    VMM_CLOSE int out = -1;
    VMM_CLOSE int err = -1;
    if (job->kind != JOB_NONE || !argv || make_pipe(&job->out, &out) || make_pipe(&job->err, &err))
        return -1;
    job->pid = fork();
    if (job->pid == 0)
        job_child(argv, out, err);
    if (job->pid < 0) {
        job_clear(job);
        return -1;
    }
    job->kind = kind;
    job->at = now_ms() + limit_ms;
    job->asker = asker;
    return 0;
}

/* Something more urgent is to be done. */
void job_cancel(struct shim *s)
{
    struct job *job = &s->guest->job;
    if (job->kind == JOB_NONE)
        return;
    kill(job->pid, SIGKILL);
    waitpid(job->pid, NULL, 0);
    asker_refuse(&job->asker, "the guest is being ended");
    job_clear(job);
}

/* ---- what it prints ---- */

static void read_line(struct shim *s, struct job *job)
{
    char byte[512];
    ssize_t n = -1;
    for (int i = 0; i < READS && (n = read(job->out, byte, sizeof byte)) > 0; i++) {
        size_t room = sizeof job->line - 1 - job->line_size;
        size_t take = (size_t)n < room ? (size_t)n : room;
        memcpy(job->line + job->line_size, byte, take);
        job->line_size += take;
    }
    if (n == 0)
        vmm_close(&job->out);
    guest_job_line(s);
}

/* Keep the end of it: Python prints the error last. */
static void read_text(struct job *job)
{
    char part[512];
    ssize_t n = -1;
    for (int i = 0; i < READS && (n = read(job->err, part, sizeof part)) > 0; i++) {
        size_t room = sizeof job->text - 1 - job->text_size;
        if ((size_t)n > room) {
            size_t drop = (size_t)n - room;
            memmove(job->text, job->text + drop, job->text_size - drop);
            job->text_size -= drop;
        }
        memcpy(job->text + job->text_size, part, (size_t)n);
        job->text_size += (size_t)n;
    }
    if (n == 0)
        vmm_close(&job->err);
}

static void out_ready(struct shim *s, void *object, short events)
{
    struct job *job = object;
    (void)events;
    if (job->out >= 0)
        read_line(s, job);
}

static void err_ready(struct shim *s, void *object, short events)
{
    struct job *job = object;
    (void)s;
    (void)events;
    if (job->err >= 0)
        read_text(job);
}

void job_watch(struct shim *s)
{
    struct job *job = &s->guest->job;
    if (job->out >= 0)
        watch(job->out, POLLIN, out_ready, job);
    if (job->err >= 0)
        watch(job->err, POLLIN, err_ready, job);
}

static void last_line(const struct job *job, char *out, size_t size)
{
    size_t end = job->text_size;
    while (end && (job->text[end - 1] == '\n' || job->text[end - 1] == ' '))
        end--;
    size_t from = end;
    while (from && job->text[from - 1] != '\n')
        from--;
    text_tame(out, size, job->text + from, end - from);
}

void job_tick(struct shim *s, int64_t now)
{
    struct job *job = &s->guest->job;
    if (job->kind == JOB_NONE || now < job->at)
        return;
    job->late = true;
    job->at = NEVER;
    kill(job->pid, SIGKILL); /* its end is reaped as any other */
}

void job_reaped(struct shim *s, pid_t pid, int code)
{
    struct job *job = &s->guest->job;
    char text[320];
    if (job->kind == JOB_NONE || pid != job->pid)
        return;
    if (job->out >= 0)
        read_line(s, job);
    if (job->err >= 0)
        read_text(job);
    enum job_kind kind = job->kind;
    if (job->late)
        snprintf(text, sizeof text, "%s took too long", words[kind]);
    else if (code)
        last_line(job, text, sizeof text);
    else
        text_tame(text, sizeof text, job->line, strcspn(job->line, "\n"));
    if (code && !text[0])
        snprintf(text, sizeof text, "%s failed with %d", words[kind], code);
    struct asker asker = job->asker;
    job_clear(job);
    if (code)
        asker_refuse(&asker, text);
    struct client *c = asker_client(&asker);
    guest_job_done(s, kind, code != 0, text);
    if (c)
        client_ok(c, asker.channel);
}
