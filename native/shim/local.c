/* The workload as a process of this kernel (native/lib/launch.h). */
#include "shim.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

enum { LISTING_CHUNK = 16 << 10 };

static int start(struct shim *s, struct vmm_error *e)
{
    struct session *w = &s->workload;
    struct vmm_stdio io;
    int ends[3];
    int failed = streams_open(w, &io, ends, s->config.uid, false, e);
    if (!failed)
        failed = vmm_launch(s->launcher, &io, &w->pid, &w->pidfd, e);
    streams_adopt(w, &io, ends);
    if (failed) {
        struct buffer queued = w->input; /* a later attempt still gets it */
        w->input = (struct buffer){0};
        streams_close(w);
        w->input = queued;
        w->pid = 0;
    }
    return failed ? FAILED : DONE;
}

static int exec(struct shim *s, struct session *session, const struct vmm_args *args,
                const struct vmm_records *ops, struct asker asker, struct vmm_error *e)
{
    struct vmm_stdio io;
    int ends[3];
    bool detached = args->at[3][0] == '1';
    uid_t uid = config_user(ops->items, ops->count);
    (void)asker;
    int failed = streams_open(session, &io, ends, uid, detached, e);
    if (!failed)
        failed = vmm_launch_exec(s->launcher, ops, &io, &session->pid, &session->pidfd, e);
    streams_adopt(session, &io, ends);
    if (failed)
        return FAILED;
    session->pid_start = platform_process_start(session->pid);
    return DONE;
}

/* A frozen process takes even SIGKILL only once it is thawed. */
static void thaw_killed(struct shim *s)
{
    struct vmm_error e;
    if (s->paused && vmm_launch_freeze(s->launcher, false, &e) == 0)
        workload_paused(s, false);
}

static int send_signal(struct shim *s, struct session *session, int number, bool all,
                       struct asker asker, struct vmm_error *e)
{
    int pidfd = session ? session->pidfd : s->workload.pidfd;
    (void)asker;
    if (pidfd < 0 || platform_kill(pidfd, number))
        return vmm_fail(e, 1, pidfd < 0 ? 0 : errno, "signal %d", number);
    int failed = 0;
    if (all)
        failed = session ? platform_kill_group(session->pid, number)
                         : vmm_launch_kill_all(s->launcher, number);
    if (!session && number == SIGKILL)
        thaw_killed(s);
    return failed ? FAILED : DONE;
}

static int freeze(struct shim *s, bool pause, struct asker asker, struct vmm_error *e)
{
    (void)asker;
    if (vmm_launch_freeze(s->launcher, pause, e))
        return FAILED;
    workload_paused(s, pause);
    return DONE;
}

static int stats(struct shim *s, struct asker asker, struct vmm_error *e)
{
    struct vmm_stat all[VMM_STATS_MAX];
    char texts[VMM_STATS_MAX][64];
    const char *fields[VMM_STATS_MAX];
    size_t count = vmm_launch_stats(s->launcher, all);
    (void)e;
    for (size_t i = 0; i < count; i++) {
        snprintf(texts[i], sizeof texts[i], "%.32s=%lld", all[i].name, (long long)all[i].value);
        fields[i] = texts[i];
    }
    client_args(asker.client, asker.channel, VMM_OK, (uint32_t)count, fields);
    return LATER;
}

struct listing {
    struct asker asker;
    struct buffer text;
    bool failed;
};

static void send_listing(struct listing *l)
{
    if (l->text.size)
        client_frame(l->asker.client, l->asker.channel, VMM_LISTING, buffer_head(&l->text),
                     l->text.size);
    buffer_clear(&l->text);
}

/* One process; non-zero once the client has no room for more. */
static int add_line(void *context, const char *text, size_t size)
{
    struct listing *l = context;
    l->failed |= size > LISTING_CHUNK || client_full(l->asker.client) ||
                 buffer_append(&l->text, text, size) || buffer_append(&l->text, "\n", 1);
    if (!l->failed && l->text.size >= LISTING_CHUNK)
        send_listing(l);
    return l->failed;
}

static int top(struct shim *s, struct asker asker, struct vmm_error *e)
{
    struct listing l = {.asker = asker};
    int failed = vmm_launch_top(s->launcher, add_line, &l);
    if (!failed)
        send_listing(&l);
    buffer_clear(&l.text);
    if (l.failed)
        return vmm_fail(e, 1, 0, "the workload has more processes than can be listed");
    return failed ? vmm_fail(e, 1, errno, "the workload's processes cannot be listed") : DONE;
}

static int update(struct shim *s, const struct vmm_records *ops, struct vmm_error *e)
{
    return vmm_launch_update(s->launcher, ops, e) ? FAILED : DONE;
}

static int file(struct shim *s, const struct vmm_args *args, struct asker asker,
                struct vmm_error *e)
{
    (void)s;
    (void)args;
    (void)asker;
    return vmm_fail(e, 1, 0, "the workload shares the host's files");
}

static void kill_process(struct shim *s)
{
    if (s->workload.pidfd < 0)
        return;
    platform_kill(s->workload.pidfd, SIGKILL);
    vmm_launch_kill_all(s->launcher, SIGKILL);
    thaw_killed(s);
}

static void resize(struct shim *s, struct session *session)
{
    (void)s;
    (void)session; /* the terminal is ours: streams_resize() did it */
}

/* Its cgroup may be used again: it must not stay frozen. */
static bool ended(struct shim *s)
{
    struct vmm_error e;
    bool oom = vmm_launch_oom(s->launcher);
    vmm_launch_kill_all(s->launcher, SIGKILL);
    if (s->paused)
        vmm_launch_freeze(s->launcher, false, &e);
    return oom;
}

static bool gone(const struct shim *s)
{
    (void)s;
    return true;
}

static void forget(struct shim *s, const struct client *c)
{
    (void)s;
    (void)c; /* every answer was given at once */
}

static void close_all(struct shim *s)
{
    vmm_launcher_free(s->launcher);
    s->launcher = NULL;
}

const struct driver local_driver = {
    .start = start,
    .exec = exec,
    .signal = send_signal,
    .pause = freeze,
    .stats = stats,
    .top = top,
    .update = update,
    .file = file,
    .kill = kill_process,
    .resize = resize,
    .ended = ended,
    .gone = gone,
    .forget = forget,
    .close = close_all,
};
