/* The end of a guest: pulled by us, or found; and what its control program said of it. */
#include "guest.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct asker nobody;

/* The end of what the guest told nothing about. */
static void lose(struct session *session)
{
    struct flow *f = session->flow;
    if (!f || f->exited)
        return;
    f->exited = true;
    f->code = 137;
    f->signal = 9;
}

void guest_lose_execs(struct shim *s)
{
    for (struct session *exec = s->execs; exec; exec = exec->next)
        lose(exec);
}

static void keep_failure(struct shim *s)
{
    if (s->guest->failure.code)
        snprintf(s->state.error, sizeof s->state.error, "%s", s->guest->failure.message);
}

/* No virtual machine is there any more. */
static void off(struct shim *s)
{
    struct guest *g = s->guest;
    bool never_ran = s->phase == PHASE_STARTING && !g->adopting;
    g->life = LIFE_OFF;
    g->at = g->kill_at = g->lost_at = g->destroy_at = NEVER;
    channel_close(g);
    vmm_close(&g->pidfd);
    vmm_close(&g->needs);
    g->needs_at = NEVER;
    s->state.needs = 0;
    s->state.needs_start = 0;
    asks_fail(s, "the guest has ended");
    guest_lose_execs(s);
    if (never_ran) {
        workload_start_failed(s, &g->failure);
        return;
    }
    s->phase = s->phase == PHASE_STARTING ? PHASE_RUNNING : s->phase;
    keep_failure(s);
    if (s->workload.flow)
        lose(&s->workload);
    else if (s->phase == PHASE_RUNNING) /* it was never heard of */
        workload_exited(s, 137, 9);
}

void guest_destroy(struct shim *s)
{
    struct guest *g = s->guest;
    g->life = LIFE_DESTROYING;
    g->at = g->kill_at = g->lost_at = g->destroy_at = NEVER;
    job_cancel(s);
    if (job_start(s, JOB_DESTROY, JOB_MS, nobody))
        guest_job_done(s, JOB_DESTROY, true, "the control program cannot be run");
}

static void fail(struct guest *g, const char *format, va_list arguments)
{
    if (g->failure.code)
        return; /* the first reason is the one */
    g->failure = (struct vmm_error){.code = 125, .step = "guest"};
    vsnprintf(g->failure.message, sizeof g->failure.message, format, arguments);
}

__attribute__((format(printf, 2, 3))) static void because(struct guest *g, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fail(g, format, arguments);
    va_end(arguments);
}

void guest_give_up(struct shim *s, const char *format, ...)
{
    struct guest *g = s->guest;
    va_list arguments;
    if (g->life == LIFE_OFF || g->life >= LIFE_VANISHED)
        return;
    va_start(arguments, format);
    fail(g, format, arguments);
    va_end(arguments);
    channel_close(g);
    asks_fail(s, "the guest is being ended");
    guest_destroy(s);
}

void guest_vanish(struct shim *s)
{
    struct guest *g = s->guest;
    g->life = LIFE_VANISHED;
    g->at = g->kill_at = g->lost_at = NEVER;
    channel_close(g);
    asks_fail(s, "the guest has ended");
    job_cancel(s);
    if (job_start(s, JOB_REASON, JOB_MS, nobody))
        guest_job_done(s, JOB_REASON, true, "");
}

void guest_gone(struct shim *s)
{
    if (s->guest->life == LIFE_LEAVING)
        off(s);
    else if (s->guest->life != LIFE_OFF && s->guest->life < LIFE_LEAVING)
        guest_vanish(s);
}

/* ---- the control program ---- */

/* `WORD N` and the end of the line: N, else 0. */
static pid_t pid_after(const char *line, const char *word)
{
    char *end;
    size_t size = strlen(word);
    if (strncmp(line, word, size) != 0)
        return 0;
    long pid = strtol(line + size, &end, 10);
    return *end == '\n' && pid > 1 && pid < INT32_MAX ? (pid_t)pid : 0;
}

void guest_job_line(struct shim *s)
{
    struct guest *g = s->guest;
    if (g->job.kind != JOB_START)
        return;
    g->job.line[g->job.line_size] = '\0';
    pid_t pid = pid_after(g->job.line, "pid ");
    const char *next = strchr(g->job.line, '\n');
    pid_t needs = next ? pid_after(next + 1, "needs ") : 0;
    if (pid && !g->pid)
        guest_set_pid(s, pid);
    if (needs && g->needs < 0 && g->needs_at == NEVER)
        guest_set_needs(s, needs);
}

static void start_done(struct shim *s, bool failed, const char *text)
{
    struct guest *g = s->guest;
    if (!failed) {
        if (g->dead && g->fd < 0)
            guest_gone(s);
        return;
    }
    if (g->life != LIFE_BOOTING && g->life != LIFE_LAUNCHING)
        return;
    because(g, "%s", text);
    if (g->fd >= 0 || g->pid)
        guest_give_up(s, "%s", text);
    else
        off(s);
}

static void destroy_done(struct shim *s, bool failed, const char *text)
{
    struct guest *g = s->guest;
    if (failed && ++g->destroys < DESTROYS_MAX) {
        g->destroy_at = now_ms() + DESTROY_RETRY_MS;
        return;
    }
    if (failed) {
        g->failure = (struct vmm_error){.code = 125, .step = "guest"};
        snprintf(g->failure.message, sizeof g->failure.message, "guest could not be ended: %.300s",
                 text);
    }
    off(s);
}

static void suspend_done(struct shim *s, bool failed)
{
    if (failed)
        return;
    workload_paused(s, true);
    if (s->stopping || s->guest->kill_at != NEVER) /* it was to end meanwhile */
        job_start(s, JOB_RESUME, JOB_MS, nobody);
}

static void resume_done(struct shim *s, bool failed)
{
    struct guest *g = s->guest;
    if (failed)
        return;
    workload_paused(s, false);
    guest_tell_time(s);
    if (g->life == LIFE_BOOTING)
        g->at = now_ms() + s->config.boot_ms;
}

void guest_job_done(struct shim *s, enum job_kind kind, bool failed, const char *text)
{
    struct guest *g = s->guest;
    switch (kind) {
    case JOB_START: start_done(s, failed, text); break;
    case JOB_DESTROY: destroy_done(s, failed, text); break;
    case JOB_SUSPEND: suspend_done(s, failed); break;
    case JOB_RESUME: resume_done(s, failed); break;
    case JOB_REASON:
        because(g, failed || !text[0] ? "guest ended" : "guest ended: %.300s", text);
        if (g->dead)
            off(s);
        else
            guest_destroy(s);
        break;
    case JOB_NONE: break;
    }
}
