/* What the guest says. Anything that was not asked for, or is more than allowed, ends it. */
#include "guest.h"

#include <stdio.h>
#include <string.h>

static struct session *session_of(struct shim *s, uint16_t channel)
{
    if (channel == 0)
        return s->workload.flow ? &s->workload : NULL;
    for (struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->flow && exec->flow->channel == channel)
            return exec;
    return NULL;
}

/* ---- answers ---- */

/* ERROR [code, step, message], tamed. */
static void read_error(const struct vmm_args *args, struct vmm_error *e)
{
    int64_t code;
    *e = (struct vmm_error){.code = 125};
    if (vmm_args_number(args, 0, 1, 127, &code) && (code == 1 || code >= 125))
        e->code = (int)code;
    if (args->count > 1)
        text_tame(e->step, sizeof e->step, args->at[1], args->length[1]);
    if (args->count > 2)
        text_tame(e->message, sizeof e->message, args->at[2], args->length[2]);
    if (!e->message[0])
        snprintf(e->message, sizeof e->message, "guest reported an error without a word");
}

static bool plain_stat(const char *text)
{
    size_t name = strspn(text, "abcdefghijklmnopqrstuvwxyz_");
    size_t digits = text[name] == '=' ? strspn(text + name + 1, "0123456789") : 0;
    return name > 0 && name < 32 && digits > 0 && digits < 20 && !text[name + 1 + digits];
}

static void answer_stats(struct client *c, uint16_t channel, const struct vmm_args *args)
{
    const char *fields[VMM_STATS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < args->count && count < VMM_STATS_MAX; i++)
        if (plain_stat(args->at[i]))
            fields[count++] = args->at[i];
    client_args(c, channel, VMM_OK, count, fields);
}

static void exec_answered(struct shim *s, struct session *exec, struct client *c,
                          uint16_t channel, int64_t pid)
{
    char id[ID_MAX + 1];
    struct vmm_error e;
    exec->flow->running = true;
    exec_started(s, exec, (pid_t)pid);
    if (c)
        client_ok_pid(c, channel, pid);
    s->driver->resize(s, exec);
    if (!exec->unwanted)
        return;
    snprintf(id, sizeof id, "%s", exec->id);
    ask_guest_args(s, VMM_EXEC_SIGNAL, (struct asker){0}, 3, (const char *[]){id, "9", "1"}, &e);
}

static void resize_answered(struct shim *s, struct session *session)
{
    if (!session || !session->flow)
        return;
    session->flow->resizing = false;
    s->driver->resize(s, session); /* again, if it changed meanwhile */
}

static void listing_answered(const struct ask *ask, struct client *c, uint16_t channel)
{
    if (ask->overflow)
        client_refuse(c, channel, "the workload has more processes than can be listed");
    else
        client_ok(c, channel);
}

static void succeeded(struct shim *s, struct ask ask, const struct vmm_args *args)
{
    uint16_t channel = ask.asker.channel;
    struct client *c = asker_client(&ask.asker);
    int64_t pid = 0;
    bool starts = ask.type == VMM_LAUNCH || ask.type == VMM_EXEC;
    if (starts && !vmm_args_number(args, 0, 1, INT32_MAX, &pid)) {
        if (ask.type == VMM_EXEC)
            exec_failed(s, ask.session, 125, "the guest answered without a pid");
        if (c)
            client_refuse(c, channel, "the guest answered without a pid");
        guest_give_up(s, "guest answered without a pid");
    } else if (ask.type == VMM_LAUNCH)
        guest_launched(s, (pid_t)pid);
    else if (ask.type == VMM_EXEC)
        exec_answered(s, ask.session, c, channel, pid);
    else if (ask.type == VMM_RESIZE)
        resize_answered(s, ask.session);
    else if (c && ask.type == VMM_STATS)
        answer_stats(c, channel, args);
    else if (c && ask.type == VMM_TOP)
        listing_answered(&ask, c, channel);
    else if (c)
        client_ok(c, channel);
}

static void refused(struct shim *s, struct ask ask, const struct vmm_args *args)
{
    struct vmm_error e;
    struct client *c = asker_client(&ask.asker);
    read_error(args, &e);
    if (ask.type == VMM_LAUNCH)
        guest_refused(s, &e);
    else if (ask.type == VMM_EXEC)
        exec_failed(s, ask.session, e.code, e.message);
    else if (ask.type == VMM_RESIZE)
        resize_answered(s, ask.session);
    if (c)
        client_error(c, ask.asker.channel, &e);
}

static void answered(struct shim *s, const struct vmm_frame *frame, const struct vmm_args *args)
{
    struct ask *first = ask_first(s->guest, frame->channel);
    if (!first) {
        guest_give_up(s, "guest answered what was not asked");
        return;
    }
    struct ask ask = *first;
    ask_remove(s->guest, first);
    if (frame->type == VMM_OK)
        succeeded(s, ask, args);
    else
        refused(s, ask, args);
}

/* ---- what comes by itself ---- */

/* Connected again on its way out, the guest repeats how its workload ended. */
static bool said_already(const struct shim *s, const struct session *session)
{
    bool workload = !session || !session->is_exec;
    return s->guest->life == LIFE_LEAVING && workload &&
           (!session || session->flow->exited);
}

static void exited(struct shim *s, const struct vmm_frame *frame, const struct vmm_args *args)
{
    struct session *session = session_of(s, frame->channel);
    int64_t code, signal, oom;
    if (said_already(s, session))
        return;
    if (!session || !session->flow->running || session->flow->exited ||
        !vmm_args_number(args, 0, 0, 255, &code) || !vmm_args_number(args, 1, 0, 64, &signal) ||
        !vmm_args_number(args, 2, 0, 1, &oom)) {
        guest_give_up(s, "guest reported the end of something that does not run");
        return;
    }
    if (frame->channel == 0) {
        guest_exited(s, (int)code, (int)signal, oom);
        return;
    }
    session->flow->exited = true;
    session->flow->code = (int)code;
    session->flow->signal = (int)signal;
}

/* Of a session that has ended, some credit may still be under way. */
static void credited(struct shim *s, const struct vmm_frame *frame, const struct vmm_args *args)
{
    struct session *session = session_of(s, frame->channel);
    int64_t bytes = 0;
    bool given = vmm_args_number(args, 0, 1, CREDIT_FULL, &bytes);
    if (given && !session && s->guest->strays) {
        s->guest->strays--;
        return;
    }
    if (!given || !session || flow_credit(session, bytes))
        guest_give_up(s, "guest gave credit that it was not owed");
}

static void output(struct shim *s, const struct vmm_frame *frame)
{
    struct session *session = session_of(s, frame->channel);
    if (said_already(s, session))
        return;
    if (!session || flow_received(s->guest, session, frame->type == VMM_STDERR, frame->payload,
                                  frame->length))
        guest_give_up(s, "guest sent more output than it may");
}

/* Lines of printable text. */
static void tame_listing(uint8_t *out, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        bool plain = (data[i] >= ' ' && data[i] < 127) || data[i] == '\n' || data[i] == '\t';
        out[i] = plain ? data[i] : '?';
    }
}

static void listed(struct shim *s, const struct vmm_frame *frame)
{
    struct ask *ask = ask_first(s->guest, frame->channel);
    if (!ask || ask->type != VMM_TOP || !frame->length ||
        (ask->listed += frame->length) > LISTING_MAX) {
        guest_give_up(s, "guest sent a list that was not asked for, or has no end");
        return;
    }
    struct client *c = ask->asker.client;
    ask->overflow |= c && client_full(c);
    if (!c || ask->overflow)
        return;
    tame_listing(guest_scratch, frame->payload, frame->length);
    client_frame(c, ask->asker.channel, VMM_LISTING, guest_scratch, frame->length);
}

/* As when the shim itself is told to end: the signal and the time that a stop has, no restart until the next
 * boot of the host. Once: a guest may say it as often as it likes. */
static void powered(struct shim *s)
{
    if (!s->stopping)
        workload_stop(s, s->config.stop_signal, s->config.stop_timeout_ms, false);
}

static void greet(struct shim *s, const struct vmm_frame *frame, const struct vmm_args *args)
{
    if (frame->type != VMM_HELLO || frame->channel != 0 || args->count < 2 ||
        !vmm_version_understood(args->at[0]) || strcmp(args->at[1], "guest")) {
        guest_give_up(s, "guest does not speak this protocol");
        return;
    }
    s->guest->greeted = true;
    guest_greeting(s, args);
}

void guest_frame(struct shim *s, const struct vmm_frame *frame)
{
    struct vmm_args args = {0};
    bool data = frame->type == VMM_STDOUT || frame->type == VMM_STDERR ||
                frame->type == VMM_LISTING;
    if (!data && vmm_args_decode(frame->payload, frame->length, &args))
        guest_give_up(s, "guest sent a frame that cannot be read");
    else if (!s->guest->greeted)
        greet(s, frame, &args);
    else if (frame->type == VMM_OK || frame->type == VMM_ERROR)
        answered(s, frame, &args);
    else if (frame->type == VMM_EXIT)
        exited(s, frame, &args);
    else if (frame->type == VMM_CREDIT)
        credited(s, frame, &args);
    else if (frame->type == VMM_POWER)
        powered(s);
    else if (frame->type == VMM_LISTING)
        listed(s, frame);
    else if (data)
        output(s, frame);
    else
        guest_give_up(s, "guest sent a frame of unknown type %d", frame->type);
}
