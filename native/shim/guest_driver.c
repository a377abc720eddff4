/* What is asked of a guest: over its channel, or of the control program. */
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct asker nobody;

static int start(struct shim *s, struct vmm_error *e)
{
    return guest_boot(s, e);
}

/* ---- sessions ---- */

static bool channel_used(const struct shim *s, uint16_t channel)
{
    if (channel == 0 || ask_first(s->guest, channel))
        return true;
    for (const struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->flow && exec->flow->channel == channel)
            return true;
    return false;
}

static uint16_t next_channel(const struct shim *s)
{
    struct guest *g = s->guest;
    do
        g->last_channel++;
    while (channel_used(s, g->last_channel)); /* EXECS_MAX are used at most */
    return g->last_channel;
}

/* The client's own EXEC, with the flags as they came out here. */
static int ask_exec(struct shim *s, struct session *exec, const struct vmm_args *args,
                    uint16_t channel, struct asker asker, struct vmm_error *e)
{
    VMM_FREE uint8_t *payload = NULL;
    size_t size;
    char rows[8], columns[8];
    int r = snprintf(rows, sizeof rows, "%u", (unsigned)exec->rows);
    int c = snprintf(columns, sizeof columns, "%u", (unsigned)exec->columns);
    const char *const all[] = {args->at[0], args->at[1], exec->stdin_open ? "1" : "0", args->at[3],
                               args->at[4], rows, columns};
    const uint32_t lengths[] = {args->length[0], args->length[1], 1,          args->length[3],
                                args->length[4], (uint32_t)r,     (uint32_t)c};
    if (vmm_record_encode(7, all, lengths, &payload, &size))
        return vmm_fail(e, 125, ENOMEM, "exec");
    return ask_guest(s, VMM_EXEC, channel, asker, exec, payload, size, e);
}

static int exec(struct shim *s, struct session *session, const struct vmm_args *args,
                const struct vmm_records *ops, struct asker asker, struct vmm_error *e)
{
    uint16_t channel = next_channel(s);
    (void)ops;
    if (s->guest->life != LIFE_RUNNING)
        return vmm_fail(e, 1, 0, "the workload is ending");
    if (flow_open(session, channel, args->at[3][0] == '1', e))
        return FAILED;
    return ask_exec(s, session, args, channel, asker, e);
}

static void forget_session(struct guest *g, const struct session *session)
{
    for (struct ask *ask = g->asks; ask; ask = ask->next)
        if (ask->session == session)
            ask->session = NULL;
}

/* All its output was passed on. */
static void deliver(struct shim *s, struct session *session)
{
    struct flow *f = session->flow;
    if (!f || !f->exited)
        return;
    flow_pump(s->guest, session);
    if (!flow_idle(session))
        return;
    int code = f->code, signal = f->signal;
    forget_session(s->guest, session);
    flow_free(session);
    s->guest->strays += STRAYS_EACH;
    if (!session->is_exec)
        workload_exited(s, code, signal);
    else
        exec_exited(s, session, code, signal);
}

void guest_deliver(struct shim *s)
{
    deliver(s, &s->workload);
    for (struct session *exec = s->execs; exec; exec = exec->next)
        deliver(s, exec);
}

static void resize(struct shim *s, struct session *session)
{
    char rows[8], columns[8];
    uint8_t payload[64];
    struct flow *f = session->flow;
    struct vmm_error e;
    if (!session->tty || !f || !f->running || f->exited || f->resizing || !session->rows ||
        (f->rows == session->rows && f->columns == session->columns))
        return;
    snprintf(rows, sizeof rows, "%u", session->rows);
    snprintf(columns, sizeof columns, "%u", session->columns);
    size_t size = vmm_args_encode(payload, sizeof payload, 2, (const char *[]){rows, columns});
    if (ask_guest(s, VMM_RESIZE, f->channel, nobody, session, payload, size, &e) == FAILED)
        return;
    f->resizing = true;
    f->rows = session->rows;
    f->columns = session->columns;
}

/* ---- signals ---- */

static int send_signal(struct shim *s, struct session *session, int number, bool all,
                       struct asker asker, struct vmm_error *e)
{
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    if (s->paused && asker.client && number != SIGKILL)
        return vmm_fail(e, 1, 0, "the workload is paused");
    if (session)
        return ask_guest_args(s, VMM_EXEC_SIGNAL, asker, 3,
                              (const char *[]){session->id, text, all ? "1" : "0"}, e);
    if (s->guest->life == LIFE_LEAVING)
        return DONE;
    int outcome =
        ask_guest_args(s, VMM_SIGNAL, asker, 2, (const char *[]){text, all ? "1" : "0"}, e);
    if (number != SIGKILL)
        return outcome;
    int64_t at = now_ms() + (outcome == FAILED ? 0 : LEAVE_MS);
    s->guest->kill_at = at < s->guest->kill_at ? at : s->guest->kill_at;
    if (s->paused)
        job_start(s, JOB_RESUME, JOB_MS, nobody);
    return outcome == FAILED ? DONE : outcome;
}

/* It ends as a process would that the signal ends. What failed before that stays the reason. */
static void kill_starting(struct shim *s)
{
    struct guest *g = s->guest;
    if (!g->adopting && !g->failure.code)
        vmm_fail(&g->failure, 128 + s->start_signal, 0,
                 "the workload was stopped while it was being started");
    guest_give_up(s, "guest was ended before its new monitor reached it");
}

/* KILL inside, so that the guest still writes what it holds; then from outside. */
static void kill_guest(struct shim *s)
{
    struct guest *g = s->guest;
    struct vmm_error e;
    if (s->phase == PHASE_STARTING) {
        kill_starting(s);
        return;
    }
    if (g->life == LIFE_LEAVING || g->life == LIFE_OFF)
        return;
    send_signal(s, NULL, SIGKILL, true, nobody, &e);
    int64_t at = now_ms() + STOP_KILL_MS;
    g->kill_at = at < g->kill_at ? at : g->kill_at;
}

/* ---- the rest ---- */

static int pause_guest(struct shim *s, bool pause, struct asker asker, struct vmm_error *e)
{
    struct guest *g = s->guest;
    if (g->life != LIFE_RUNNING && !s->paused)
        return vmm_fail(e, 1, 0, "the workload is ending");
    if (g->job.kind != JOB_NONE)
        return vmm_fail(e, 1, 0, "the guest is being started, paused or ended at this moment");
    struct asker held = asker_hold(asker);
    if (job_start(s, pause ? JOB_SUSPEND : JOB_RESUME, JOB_MS, held) == 0)
        return LATER;
    asker_client(&held);
    return vmm_fail(e, 1, 0, "the guest's control program cannot be run");
}

static int ask(struct shim *s, uint8_t type, struct asker asker, const void *payload, size_t size,
               struct vmm_error *e)
{
    if (s->paused)
        return vmm_fail(e, 1, 0, "the workload is paused: its guest cannot answer");
    return ask_guest(s, type, 0, asker, NULL, payload, size, e);
}

static int stats(struct shim *s, struct asker asker, struct vmm_error *e)
{
    return ask(s, VMM_STATS, asker, NULL, 0, e);
}

static int top(struct shim *s, struct asker asker, struct vmm_error *e)
{
    return ask(s, VMM_TOP, asker, NULL, 0, e);
}

static int update(struct shim *s, const struct vmm_records *ops, struct vmm_error *e)
{
    (void)s;
    (void)ops;
    return vmm_fail(e, 1, 0, "a guest's limits are changed at its hypervisor");
}

static int file(struct shim *s, const struct vmm_args *args, struct asker asker,
                struct vmm_error *e)
{
    VMM_FREE uint8_t *payload = NULL;
    size_t size;
    if (vmm_record_encode(args->count, args->at, args->length, &payload, &size))
        return vmm_fail(e, 125, ENOMEM, "file");
    return ask(s, VMM_FILE, asker, payload, size, e);
}

static bool ended(struct shim *s)
{
    return s->guest->oom;
}

static bool gone(const struct shim *s)
{
    return s->guest->life == LIFE_OFF;
}

static void forget(struct shim *s, const struct client *c)
{
    asks_forget(s->guest, c);
}

static void close_all(struct shim *s)
{
    struct guest *g = s->guest;
    job_cancel(s);
    channel_close(g);
    vmm_close(&g->pidfd);
    vmm_close(&g->needs);
    if (g->listen_fd >= 0)
        unlink(s->config.channel_path);
    vmm_close(&g->listen_fd);
}

const struct driver guest_driver = {
    .start = start,
    .exec = exec,
    .signal = send_signal,
    .pause = pause_guest,
    .stats = stats,
    .top = top,
    .update = update,
    .file = file,
    .kill = kill_guest,
    .resize = resize,
    .ended = ended,
    .gone = gone,
    .forget = forget,
    .close = close_all,
};
