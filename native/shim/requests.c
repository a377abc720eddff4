/* The requests of a client, by type. */
#include "shim.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

typedef void (*handler)(struct shim *s, struct client *c, uint16_t channel,
                        const struct vmm_args *args);

static void ok(struct client *c, uint16_t channel)
{
    client_args(c, channel, VMM_OK, 0, NULL);
}

static void ok_pid(struct client *c, uint16_t channel, pid_t pid)
{
    char text[16];
    snprintf(text, sizeof text, "%d", (int)pid);
    client_args(c, channel, VMM_OK, 1, (const char *[]){text});
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

static void start(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    struct vmm_error e = {0};
    (void)args;
    if (s->phase != PHASE_WAITING && s->phase != PHASE_RESTARTING) {
        client_refuse(c, channel, s->phase == PHASE_ENDING ? "the workload has ended"
                                                           : "the workload is running already");
        return;
    }
    bool first = s->phase == PHASE_WAITING;
    if (workload_start(s, &e) == 0) {
        ok_pid(c, channel, s->workload.pid);
        return;
    }
    client_error(c, channel, &e);
    if (first) {
        s->answered = !c->dead;
        workload_start_failed(s, &e);
    }
}

static void kill_workload(struct shim *s, struct client *c, uint16_t channel,
                          const struct vmm_args *args)
{
    int64_t number, all, manual;
    struct vmm_error e = {0};
    if (!vmm_args_number(args, 0, 1, 64, &number) || !vmm_args_number(args, 1, 0, 1, &all) ||
        !vmm_args_number(args, 2, 0, 1, &manual))
        client_refuse(c, channel, "SIGNAL: a signal number and two flags are needed");
    else if (workload_signal(s, (int)number, all, manual, &e))
        client_error(c, channel, &e);
    else
        ok(c, channel);
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
        ok(c, channel);
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
    ok(c, channel);
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
    ok(c, channel);
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
    if (exec_start(s, args, &session, &e)) {
        client_error(c, channel, &e);
        return;
    }
    ok_pid(c, channel, session->pid);
    struct attachment *a = detached ? NULL : client_attach(c, channel, session);
    if (a)
        attach_all(a, session->stdin_open);
}

static void exec_signal(struct shim *s, struct client *c, uint16_t channel,
                        const struct vmm_args *args)
{
    int64_t number;
    struct session *session = exec_find(s, args->at[0]);
    if (!vmm_args_number(args, 1, 1, 64, &number))
        client_refuse(c, channel, "EXEC_SIGNAL: a signal number is needed");
    else if (!session || session->pidfd < 0 || platform_kill(session->pidfd, (int)number))
        client_refuse(c, channel, "no such exec is running");
    else
        ok(c, channel);
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
    ok(c, channel);
}

static void detach(struct shim *s, struct client *c, uint16_t channel, const struct vmm_args *args)
{
    (void)s;
    (void)args;
    client_detach(c, channel);
    ok(c, channel);
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
    {VMM_EXEC, 5, 5, exec},
    {VMM_EXEC_SIGNAL, 2, 2, exec_signal},
    {VMM_EXEC_ATTACH, 1, 1, exec_attach},
    {VMM_DETACH, 0, 0, detach},
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
