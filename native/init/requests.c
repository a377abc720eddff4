/* What the host asks for. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "guest.h"
#include "sys.h"

enum { MS_PER_S = 1000, NS_PER_MS = 1000000 };

#define COUNT(a) (sizeof(a) / sizeof *(a))

static int fail(struct vmm_error *e, const char *what) {
    return vmm_fail(e, 1, 0, "%s", what);
}

static void answer_pid(struct guest *g, uint16_t channel, pid_t pid) {
    char text[16];
    snprintf(text, sizeof text, "%d", (int)pid);
    channel_answer(g, channel, VMM_OK, 1, (const char *[]){text});
}

/* ---- each request: 0 answered or to be answered by OK (`ok`), -1 with an error ---- */

struct call {
    struct guest *g;
    uint16_t channel;
    const struct vmm_frame *frame;
    const struct vmm_args *args;
    bool ok; /* OK without fields is to be sent */
};

static int on_hello(struct call *c, struct vmm_error *e) {
    if (c->args->count < 1 || !vmm_version_understood(c->args->at[0]))
        return fail(e, "this vmm-init speaks version " VMM_PROTOCOL " of the protocol");
    c->g->channel.greeted = true;
    return 0;
}

static int on_launch(struct call *c, struct vmm_error *e) {
    if (c->frame->length) {
        run_plan_bytes(c->g, c->frame->payload, c->frame->length);
        return 0;
    }
    if (run_workload(c->g, e) < 0)
        return -1;
    answer_pid(c->g, c->channel, c->g->workload.pid);
    return 0;
}

static int on_exec(struct call *c, struct vmm_error *e) {
    pid_t pid;
    if (run_exec(c->g, c->channel, c->args, &pid, e) < 0)
        return -1;
    answer_pid(c->g, c->channel, pid);
    return 0;
}

static int on_signal(struct call *c, struct vmm_error *e) {
    int64_t number, all;
    const struct session *s = &c->g->workload;
    c->ok = true;
    if (!vmm_args_number(c->args, 0, 0, 64, &number) || !vmm_args_number(c->args, 1, 0, 1, &all))
        return fail(e, "SIGNAL [number, all]");
    if (c->g->state != RUNNING || s->ended)
        return fail(e, "the workload is not running");
    int failed = all ? vmm_launch_kill_all(c->g->launcher, (int)number)
                     : sys_pidfd_signal(s->pidfd, (int)number);
    return failed < 0 ? fail(e, "the signal cannot be sent") : 0;
}

/* [exec id, number, group]: to its process, or to the group it leads; a missing `group` is 0. */
static int on_exec_signal(struct call *c, struct vmm_error *e) {
    int64_t number, group = 0;
    const struct session *s = session_find_exec(c->g, c->args->at[0]);
    c->ok = true;
    if (!vmm_args_number(c->args, 1, 0, 64, &number) ||
        (c->args->count > 2 && !vmm_args_number(c->args, 2, 0, 1, &group)))
        return fail(e, "EXEC_SIGNAL [exec id, number, group]");
    if (!s || s->ended || sys_pidfd_signal(s->pidfd, (int)number) < 0)
        return fail(e, "no such exec is running");
    if (group && s->pid > 1)
        kill(-s->pid, (int)number);
    return 0;
}

static int on_resize(struct call *c, struct vmm_error *e) {
    int64_t rows, columns;
    struct session *s = c->args->count > 2 ? session_find_exec(c->g, c->args->at[2])
                                           : session_find(c->g, c->channel);
    c->ok = true;
    if (!vmm_args_number(c->args, 0, 0, 65535, &rows) || !vmm_args_number(c->args, 1, 0, 65535, &columns))
        return fail(e, "RESIZE [rows, columns]");
    if (!s)
        return fail(e, "no such exec is running");
    session_resize(s, (unsigned short)rows, (unsigned short)columns);
    return 0;
}

static int on_stdin(struct call *c, struct vmm_error *e) {
    struct session *s = session_find(c->g, c->channel);
    (void)e;
    if (s) /* else the exec has just ended */
        session_input(c->g, s, c->frame->payload, c->frame->length);
    return 0;
}

static int on_credit(struct call *c, struct vmm_error *e) {
    int64_t bytes;
    struct session *s = session_find(c->g, c->channel);
    (void)e;
    if (!vmm_args_number(c->args, 0, 0, INT32_MAX, &bytes))
        channel_lost(c->g, "no number of bytes as credit");
    else if (s) /* never more than there was at first */
        s->credit = s->credit + bytes < CREDIT ? s->credit + bytes : CREDIT;
    return 0;
}

static int on_stats(struct call *c, struct vmm_error *e) {
    struct vmm_stat stats[VMM_STATS_MAX];
    char text[VMM_STATS_MAX][64];
    const char *fields[VMM_STATS_MAX];
    if (c->g->state != RUNNING)
        return fail(e, "the workload is not running");
    size_t count = vmm_launch_stats(c->g->launcher, stats);
    for (size_t i = 0; i < count; i++) {
        snprintf(text[i], sizeof text[i], "%s=%lld", stats[i].name, (long long)stats[i].value);
        fields[i] = text[i];
    }
    channel_answer(c->g, c->channel, VMM_OK, (uint32_t)count, fields);
    return 0;
}

struct listing {
    struct call *call;
    struct buffer bytes;
    size_t sent;
};

static void flush(struct listing *l, size_t least) {
    while (l->bytes.size && l->bytes.size >= least) {
        size_t size = l->bytes.size < CHUNK ? l->bytes.size : CHUNK;
        channel_send(l->call->g, l->call->channel, VMM_LISTING, buffer_head(&l->bytes), size);
        buffer_consume(&l->bytes, size);
        l->sent += size;
    }
}

static int add_line(void *context, const char *text, size_t size) {
    struct listing *l = context;
    if (l->sent + l->bytes.size + size >= LISTING_MAX)
        return -1;
    if (buffer_append(&l->bytes, text, size) < 0 || buffer_append(&l->bytes, "\n", 1) < 0)
        return -1;
    flush(l, CHUNK);
    return 0;
}

static int on_top(struct call *c, struct vmm_error *e) {
    struct listing l = {.call = c};
    if (c->g->state != RUNNING)
        return fail(e, "the workload is not running");
    int failed = vmm_launch_top(c->g->launcher, add_line, &l);
    if (!failed)
        flush(&l, 1);
    buffer_clear(&l.bytes);
    c->ok = true;
    return failed ? fail(e, "the list of processes is too long") : 0;
}

static int on_file(struct call *c, struct vmm_error *e) {
    c->ok = true;
    if (c->g->state != RUNNING)
        return fail(e, "the workload is not running");
    return file_replace(c->g, c->args->at[0], c->args->at[1], c->args->length[1], e);
}

static int on_shutdown(struct call *c, struct vmm_error *e) {
    (void)e;
    c->g->ending = true;
    return 0;
}

/* Only forward: what was said a while ago, before a pause or a delay, is behind as well. */
static int on_time(struct call *c, struct vmm_error *e) {
    int64_t host;
    struct timespec now;
    if (!vmm_args_number(c->args, 0, 0, INT64_MAX, &host))
        return fail(e, "broken arguments");
    struct timespec then = {.tv_sec = host / MS_PER_S, .tv_nsec = host % MS_PER_S * NS_PER_MS};
    if (!c->g->booted || clock_gettime(CLOCK_REALTIME, &now) < 0 ||
        host - (now.tv_sec * MS_PER_S + now.tv_nsec / NS_PER_MS) <= MS_PER_S)
        return 0;
    if (clock_settime(CLOCK_REALTIME, &then) < 0)
        complain("cannot set the clock: %s", strerror(errno));
    return 0;
}

static const struct {
    uint8_t type;
    bool raw; /* the payload is bytes, not arguments */
    uint32_t least;
    int (*run)(struct call *call, struct vmm_error *e);
    const char *name;
} table[] = {
    {VMM_HELLO, false, 1, on_hello, "hello"},
    {VMM_LAUNCH, true, 0, on_launch, "launch"},
    {VMM_EXEC, false, 5, on_exec, "exec"},
    {VMM_SIGNAL, false, 2, on_signal, "signal"},
    {VMM_EXEC_SIGNAL, false, 2, on_exec_signal, "exec-signal"},
    {VMM_RESIZE, false, 2, on_resize, "resize"},
    {VMM_STDIN, true, 0, on_stdin, "stdin"},
    {VMM_CREDIT, false, 1, on_credit, "credit"},
    {VMM_STATS, false, 0, on_stats, "stats"},
    {VMM_TOP, false, 0, on_top, "top"},
    {VMM_FILE, false, 2, on_file, "file"},
    {VMM_SHUTDOWN, false, 0, on_shutdown, "shutdown"},
    {VMM_TIME, false, 1, on_time, "time"},
};

static int dispatch(struct call *c, struct vmm_args *args, struct vmm_error *e) {
    const struct vmm_frame *frame = c->frame;
    snprintf(e->step, sizeof e->step, "request %u", (unsigned)frame->type);
    for (size_t i = 0; i < COUNT(table); i++) {
        if (table[i].type != frame->type)
            continue;
        snprintf(e->step, sizeof e->step, "%s", table[i].name);
        if (!c->g->channel.greeted && frame->type != VMM_HELLO)
            return fail(e, "HELLO comes first");
        if (!table[i].raw && (vmm_args_decode(frame->payload, frame->length, args) < 0 ||
                              args->count < table[i].least))
            return fail(e, "broken arguments");
        return table[i].run(c, e);
    }
    return fail(e, "unknown request");
}

void request(struct guest *g, const struct vmm_frame *frame) {
    struct vmm_args args = {.count = 0};
    struct vmm_error e = {0};
    struct call call = {.g = g, .channel = frame->channel, .frame = frame, .args = &args};
    if (dispatch(&call, &args, &e) < 0)
        channel_error(g, frame->channel, &e);
    else if (call.ok)
        channel_ok(g, frame->channel);
}
