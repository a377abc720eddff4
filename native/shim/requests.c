/* The requests of a client, by type. */
#include "shim.h"

#include <signal.h>
#include <stdio.h>

typedef void (*handler)(struct shim *s, struct client *c, uint16_t channel,
                        const struct vmm_args *args);

/* The driver's outcome as an answer; LATER it answers by itself, and the next requests wait for that. */
static void settle(struct client *c, uint16_t channel, int outcome, const struct vmm_error *e)
{
    if (outcome == FAILED)
        client_error(c, channel, e);
    else if (outcome == DONE)
        client_ok(c, channel);
}

static void hello(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    char message[128];
    (void)s;
    if (vmm_version_understood(args->at[0])) {
        c->greeted = true;
        return;
    }
    snprintf(message, sizeof message,
             "protocol %.20s is not understood here; this shim speaks " VMM_PROTOCOL, args->at[0]);
    client_refuse(c, channel, message);
    c->closing = true;
}

static void status(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    char text[8193];
    (void)args;
    size_t size = state_text(s, text, sizeof text - 1);
    text[size] = 0;
    client_args(c, channel, VMM_OK, 1, (const char *[]){text});
}

/* A workload that ran before tries again later. */
static void start_failed(struct shim *s, const struct vmm_error *e)
{
    if (s->phase == PHASE_WAITING)
        workload_start_failed(s, e);
    else
        starters_refuse(s, e);
}

static void start(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    (void)args;
    if (s->phase == PHASE_RUNNING) {
        client_ok_pid(c, channel, s->state.pid);
        return;
    }
    if (s->phase == PHASE_DRAINING || s->phase == PHASE_ENDING) {
        client_refuse(c, channel, "the workload has ended");
        return;
    }
    c->starts = c->awaits = true;
    c->start_channel = channel;
    if (s->phase != PHASE_STARTING && workload_start(s, &e) == FAILED)
        start_failed(s, &e);
}

static void kill_workload(struct shim *s, struct client *c, uint16_t channel,
                          const struct vmm_args *args)
{
    int64_t number, all, manual;
    struct vmm_error e = {0};
    if (!vmm_args_number(args, 0, 1, 64, &number) || !vmm_args_number(args, 1, 0, 1, &all) ||
        !vmm_args_number(args, 2, 0, 1, &manual))
        client_refuse(c, channel, "SIGNAL: a signal number and two flags are needed");
    else
        settle(c, channel,
               workload_signal(s, (int)number, all, manual, client_asks(c, channel), &e), &e);
}

static void stop(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    int64_t number, timeout;
    if (!vmm_args_number(args, 0, 1, 64, &number) ||
        !vmm_args_number(args, 1, -1, INT32_MAX, &timeout)) {
        client_refuse(c, channel, "STOP: a signal number and a timeout in ms are needed");
        return;
    }
    if (s->phase == PHASE_ENDING) {
        client_ok(c, channel);
        return;
    }
    c->stops = true;
    workload_stop(s, (int)number, timeout, true);
}

static void wait_end(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    int64_t promise;
    if (!vmm_args_number(args, 0, 0, 1, &promise)) {
        client_refuse(c, channel, "WAIT: the promise must be 0 or 1");
        return;
    }
    c->promised |= promise == 1;
    if (s->phase == PHASE_ENDING) {
        client_exit(c, channel, &s->state);
        c->told = !c->dead;
    } else
        c->waits = true;
}

static void wait_next(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    (void)args;
    if (s->phase == PHASE_ENDING)
        client_exit(c, channel, &s->state);
    else
        c->waits_next = true;
}

static void attach(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    int64_t in, out, err;
    if (!vmm_args_number(args, 0, 0, 1, &in) || !vmm_args_number(args, 1, 0, 1, &out) ||
        !vmm_args_number(args, 2, 0, 1, &err)) {
        client_refuse(c, channel, "ATTACH: three flags are needed");
        return;
    }
    struct attachment *a = s->phase == PHASE_ENDING ? NULL : client_attach(c, channel, &s->workload);
    if (!a) {
        client_refuse(c, channel, s->phase == PHASE_ENDING ? "the workload has ended"
                                                           : "this channel is in use");
        return;
    }
    a->in = in;
    a->out = out;
    a->err = err;
    client_ok(c, channel);
}

/* The session a request means: by exec id in argument `index`, else what the channel is attached to. */
static struct session *addressed(struct shim *s, struct client *c, uint16_t channel,
                                 const struct vmm_args *args, uint32_t index)
{
    if (index < args->count)
        return exec_find(s, args->at[index]);
    struct attachment *a = client_attachment(c, channel);
    if (a)
        return a->session;
    return channel == 0 ? &s->workload : NULL;
}

static void resize(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    int64_t rows, columns;
    struct session *session = addressed(s, c, channel, args, 2);
    if (!session || !vmm_args_number(args, 0, 0, 65535, &rows) ||
        !vmm_args_number(args, 1, 0, 65535, &columns)) {
        client_refuse(c, channel, session ? "RESIZE: rows and columns are needed"
                                          : "no such exec is running");
        return;
    }
    streams_resize(session, (unsigned short)rows, (unsigned short)columns);
    s->driver->resize(s, session);
    client_ok(c, channel);
}

static void attach_all(struct attachment *a, bool in)
{
    a->in = in;
    a->out = a->err = true;
}

static void exec(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    struct session *session;
    bool detached = args->at[3][0] == '1';
    if (!detached && (channel == 0 || client_attachment(c, channel) ||
                      c->attached == ATTACHMENTS_MAX)) {
        client_refuse(c, channel, "an exec needs a free channel other than 0");
        return;
    }
    int outcome = exec_start(s, args, client_asks(c, channel), &session, &e);
    if (outcome == FAILED) {
        client_error(c, channel, &e);
        return;
    }
    if (outcome == DONE)
        client_ok_pid(c, channel, session->pid);
    struct attachment *a = detached ? NULL : client_attach(c, channel, session);
    if (a)
        attach_all(a, session->stdin_open);
}

static void exec_signal(struct shim *s, struct client *c, uint16_t channel,
                        const struct vmm_args *args)
{
    int64_t number;
    struct vmm_error e = {0};
    struct session *session = exec_find(s, args->at[0]);
    if (!vmm_args_number(args, 1, 1, 64, &number)) {
        client_refuse(c, channel, "EXEC_SIGNAL: a signal number is needed");
        return;
    }
    int outcome = session && session->pid > 0
                      ? s->driver->signal(s, session, (int)number, false, client_asks(c, channel), &e)
                      : FAILED;
    if (outcome == FAILED)
        client_refuse(c, channel, "no such exec is running");
    else
        settle(c, channel, outcome, &e);
}

static void exec_attach(struct shim *s, struct client *c, uint16_t channel,
                        const struct vmm_args *args)
{
    struct session *session = exec_find(s, args->at[0]);
    struct attachment *a = session && channel ? client_attach(c, channel, session) : NULL;
    if (!a) {
        client_refuse(c, channel, session ? "an exec needs a free channel other than 0"
                                          : "no such exec is running");
        return;
    }
    attach_all(a, session->stdin_open);
    client_ok(c, channel);
}

static void detach(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    (void)s;
    (void)args;
    client_detach(c, channel);
    client_ok(c, channel);
}

static void pause_workload(struct shim *s, struct client *c, uint16_t channel,
                           const struct vmm_args *args)
{
    struct vmm_error e = {0};
    (void)args;
    settle(c, channel, workload_pause(s, true, client_asks(c, channel), &e), &e);
}

static void unpause(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    (void)args;
    settle(c, channel, workload_pause(s, false, client_asks(c, channel), &e), &e);
}

static int need_running(const struct shim *s, struct vmm_error *e)
{
    return s->phase == PHASE_RUNNING ? DONE : vmm_fail(e, 1, 0, "the workload is not running");
}

static void stats(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    (void)args;
    int outcome = need_running(s, &e) ? FAILED : s->driver->stats(s, client_asks(c, channel), &e);
    settle(c, channel, outcome, &e);
}

static void top(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    (void)args;
    int outcome = need_running(s, &e) ? FAILED : s->driver->top(s, client_asks(c, channel), &e);
    settle(c, channel, outcome, &e);
}

static void file(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    int outcome =
        need_running(s, &e) ? FAILED : s->driver->file(s, args, client_asks(c, channel), &e);
    settle(c, channel, outcome, &e);
}

/* Operations of UPDATE, if there are any, need a workload that runs. */
static int apply(struct shim *s, const struct vmm_args *args, struct vmm_error *e)
{
    struct vmm_records ops;
    if (args->length[2] == 0)
        return DONE;
    if (need_running(s, e) || vmm_records_decode(args->at[2], args->length[2], &ops, e))
        return FAILED;
    int outcome = s->driver->update(s, &ops, e);
    vmm_records_free(&ops);
    return outcome;
}

static void update(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    enum restart_policy policy = s->config.restart;
    int64_t most = s->config.restart_max;
    bool policy_given = args->length[0] > 0;
    if (policy_given && (!config_restart(args->at[0], &policy) ||
                         !vmm_args_number(args, 1, 0, INT32_MAX, &most))) {
        client_refuse(c, channel, "UPDATE: a restart policy and a number of retries are needed");
        return;
    }
    int outcome = apply(s, args, &e);
    if (outcome == DONE) {
        s->config.restart = policy;
        s->config.restart_max = most;
    }
    settle(c, channel, outcome, &e);
}

static const struct {
    uint8_t type;
    uint32_t min, max;
    handler handle;
} requests[] = {
    {VMM_HELLO, 1, VMM_ARGS_MAX, hello},
    {VMM_STATUS, 0, 0, status},
    {VMM_START, 0, 0, start},
    {VMM_SIGNAL, 3, 3, kill_workload},
    {VMM_STOP, 2, 2, stop},
    {VMM_WAIT, 1, 1, wait_end},
    {VMM_WAIT_NEXT, 0, 0, wait_next},
    {VMM_ATTACH, 3, 3, attach},
    {VMM_RESIZE, 2, 3, resize},
    {VMM_EXEC, 5, 7, exec},
    {VMM_EXEC_SIGNAL, 2, 2, exec_signal},
    {VMM_EXEC_ATTACH, 1, 1, exec_attach},
    {VMM_DETACH, 0, 0, detach},
    {VMM_PAUSE, 0, 0, pause_workload},
    {VMM_UNPAUSE, 0, 0, unpause},
    {VMM_STATS, 0, 0, stats},
    {VMM_TOP, 0, 0, top},
    {VMM_UPDATE, 3, 3, update},
    {VMM_FILE, 2, 2, file},
};

static void input(struct client *c, const struct vmm_frame *frame)
{
    struct attachment *a = client_attachment(c, frame->channel);
    if (!a || !a->in)
        return; /* the process may have ended while this was under way */
    if (frame->length)
        streams_input(a->session, frame->payload, frame->length);
    else
        streams_input_eof(a->session);
}

static void dispatch(struct shim *s, struct client *c, const struct vmm_frame *frame)
{
    struct vmm_args args;
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        if (requests[i].type != frame->type)
            continue;
        if (vmm_args_decode(frame->payload, frame->length, &args) ||
            args.count < requests[i].min || args.count > requests[i].max)
            client_refuse(c, frame->channel, "wrong arguments for this request");
        else
            requests[i].handle(s, c, frame->channel, &args);
        return;
    }
    client_refuse(c, frame->channel, "unknown request");
}

void request_handle(struct shim *s, struct client *c, const struct vmm_frame *frame)
{
    if (!c->greeted && frame->type != VMM_HELLO) {
        client_refuse(c, frame->channel, "a connection begins with HELLO");
        c->closing = true;
    } else if (frame->type == VMM_STDIN) {
        input(c, frame);
    } else {
        dispatch(s, c, frame);
    }
}
