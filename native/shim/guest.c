/* The life of a guest: booting, launching, running, leaving. */
#include "guest.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const struct asker nobody;

int guest_new(struct shim *s, struct vmm_error *e)
{
    struct guest *g = calloc(1, sizeof *g);
    if (!g)
        return vmm_fail(e, 125, ENOMEM, "guest");
    g->listen_fd = g->fd = g->pidfd = g->needs = g->job.out = g->job.err = -1;
    g->at = g->kill_at = g->lost_at = g->destroy_at = g->time_at = g->needs_at =
        g->job.at = NEVER;
    s->guest = g;
    s->driver = &guest_driver;
    return channel_open(s, e);
}

/* ---- QEMU's process ---- */

static void process_ended(struct shim *s, void *object, short events)
{
    struct guest *g = object;
    (void)events;
    if (g->pidfd < 0)
        return;
    vmm_close(&g->pidfd);
    g->dead = true;
    if (g->fd < 0)
        guest_gone(s);
    else if (g->lost_at == NEVER) /* the channel's end comes, or there is none */
        g->lost_at = now_ms() + VANISH_MS;
}

void guest_set_pid(struct shim *s, pid_t pid)
{
    struct guest *g = s->guest;
    g->pid = pid;
    g->pidfd = platform_pidfd(pid);
    g->dead = g->pidfd < 0 && errno == ESRCH;
    if (s->phase == PHASE_RUNNING && !s->state.pid) {
        s->state.pid = pid;
        s->state.pid_start = platform_process_start(pid);
        state_write(s);
    }
}

static void files_ended(struct shim *s, void *object, short events)
{
    struct guest *g = object;
    (void)s;
    (void)events;
    vmm_close(&g->needs);
    g->needs_at = now_ms() + NEEDS_MS;
}

static void watch_files(struct guest *g, pid_t pid)
{
    vmm_close(&g->needs);
    g->needs = platform_pidfd(pid);
    if (g->needs < 0 && errno == ESRCH)
        g->needs_at = now_ms() + NEEDS_MS;
}

void guest_set_needs(struct shim *s, pid_t pid)
{
    struct guest *g = s->guest;
    watch_files(g, pid);
    s->state.needs = pid;
    s->state.needs_start = platform_process_start(pid);
    if (s->phase == PHASE_RUNNING)
        state_write(s);
}

/* The shim before this one knew it. */
static void adopt_needs(struct shim *s)
{
    pid_t pid = (pid_t)s->state.needs;
    if (pid <= 0)
        return;
    if (platform_process_start(pid) == s->state.needs_start)
        watch_files(s->guest, pid);
    else
        s->guest->needs_at = now_ms() + NEEDS_MS;
}

/* What reads a file of the host waits for ever, and neither QEMU nor libvirt minds. */
static void check_files(struct shim *s)
{
    struct guest *g = s->guest;
    g->needs_at = NEVER;
    if (g->life > LIFE_OFF && g->life < LIFE_LEAVING && !g->dead)
        guest_give_up(s, "guest's virtiofsd ended: its volumes and bind mounts are out of reach");
}

void guest_disconnected(struct shim *s)
{
    struct guest *g = s->guest;
    asks_fail(s, "the connection to the guest was lost");
    guest_lose_execs(s);
    if (g->life == LIFE_LAUNCHING)
        g->life = LIFE_BOOTING; /* HELLO will tell */
    if (g->dead || (g->life == LIFE_LEAVING && g->pidfd < 0))
        guest_gone(s);
    else if (g->life == LIFE_RUNNING || (g->pidfd < 0 && g->job.kind != JOB_START))
        g->lost_at = now_ms() + (g->pidfd < 0 ? VANISH_MS : RECONNECT_MS);
}

/* ---- the beginning ---- */

/* Connections that the last guest left in the queue. */
static void forget_connections(const struct guest *g)
{
    for (int fd; (fd = accept4(g->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
        close(fd);
}

static void begin(struct shim *s)
{
    struct guest *g = s->guest;
    forget_connections(g);
    g->failure = (struct vmm_error){0};
    g->dead = g->launched = g->oom = g->adopting = false;
    g->destroys = g->strays = 0;
    g->pid = 0;
    vmm_close(&g->needs);
    g->needs_at = NEVER;
    g->life = LIFE_BOOTING;
    g->at = now_ms() + s->config.boot_ms;
}

int guest_boot(struct shim *s, struct vmm_error *e)
{
    struct guest *g = s->guest;
    begin(s);
    if (job_start(s, JOB_START, s->config.boot_ms, nobody) == 0)
        return LATER;
    g->life = LIFE_OFF;
    g->at = NEVER;
    return vmm_fail(e, 125, 0, "the guest's control program %.200s cannot be run",
                    s->config.guest[0]);
}

/* The guest runs since before this shim; a paused one answers only when it goes on. */
void guest_adopt(struct shim *s)
{
    struct guest *g = s->guest;
    bool paused = !strcmp(s->state.status, "paused");
    begin(s);
    helper_start(s);
    g->adopting = g->launched = true;
    s->phase = paused ? PHASE_RUNNING : PHASE_STARTING;
    s->paused = paused;
    g->at = paused ? NEVER : g->at;
    adopt_needs(s);
    pid_t pid = (pid_t)s->state.pid;
    if (pid <= 0)
        return;
    if (platform_process_start(pid) == s->state.pid_start)
        guest_set_pid(s, pid);
    else
        g->dead = true;
    if (g->dead)
        guest_vanish(s);
}

static void launch(struct shim *s)
{
    struct guest *g = s->guest;
    struct vmm_error e;
    g->life = LIFE_LAUNCHING;
    g->at = now_ms() + s->config.answer_ms;
    g->launched = true;
    if (channel_launch(s) ||
        ask_guest(s, VMM_LAUNCH, 0, nobody, NULL, NULL, 0, &e) == FAILED)
        guest_give_up(s, "guest could not be sent its plan: no memory");
    else
        channel_frame(g, 0, VMM_LAUNCH, NULL, 0);
}

void guest_launched(struct shim *s, pid_t pid)
{
    struct guest *g = s->guest;
    struct session *w = &s->workload;
    struct vmm_error e = {0};
    g->life = LIFE_RUNNING;
    g->at = NEVER;
    if (flow_open(w, 0, false, &e)) {
        guest_give_up(s, "guest's streams: %s", e.message);
        return;
    }
    w->flow->running = true;
    w->pid = pid;
    if (g->adopting)
        workload_adopted(s);
    else
        workload_started(s, g->pid, g->pid ? platform_process_start(g->pid) : 0);
    g->adopting = false;
    s->driver->resize(s, w);
}

/* The plan failed inside: the guest is of no use any more. */
void guest_refused(struct shim *s, const struct vmm_error *e)
{
    struct guest *g = s->guest;
    g->failure = *e;
    g->life = LIFE_LEAVING;
    g->at = now_ms() + LEAVE_MS;
    channel_frame(g, 0, VMM_SHUTDOWN, NULL, 0);
}

void guest_exited(struct shim *s, int code, int signal, bool oom)
{
    struct guest *g = s->guest;
    struct flow *f = s->workload.flow;
    workload_paused(s, false); /* it speaks, whatever `resume` is still to say */
    f->exited = true;
    f->code = code;
    f->signal = signal;
    g->oom = oom;
    g->life = LIFE_LEAVING;
    g->at = now_ms() + LEAVE_MS;
    g->kill_at = NEVER;
    channel_frame(g, 0, VMM_SHUTDOWN, NULL, 0);
}

/* ---- its clock ---- */

void guest_tell_time(struct shim *s)
{
    struct guest *g = s->guest;
    struct timespec now;
    char text[32];
    g->time_at = NEVER;
    if (!g->greeted || !g->takes_time || clock_gettime(CLOCK_REALTIME, &now))
        return;
    snprintf(text, sizeof text, "%lld%03ld", (long long)now.tv_sec, now.tv_nsec / 1000000);
    if (!channel_busy(g))
        channel_args(g, 0, VMM_TIME, 1, (const char *[]){text});
    g->time_at = now_ms() + TIME_MS;
}

/* ---- HELLO ---- */

static const char *field(const struct vmm_args *args, const char *name)
{
    size_t size = strlen(name);
    for (uint32_t i = 2; i < args->count; i++)
        if (!strncmp(args->at[i], name, size))
            return args->at[i] + size;
    return "";
}

static int number(const struct vmm_args *args, const char *name, int low, int high)
{
    long value = strtol(field(args, name), NULL, 10);
    return value < low ? low : value > high ? high : (int)value;
}

static void resume_running(struct shim *s, const struct vmm_args *args)
{
    struct guest *g = s->guest;
    if (g->life == LIFE_BOOTING)
        guest_launched(s, number(args, "pid=", 1, INT32_MAX));
    else
        flow_reset(&s->workload);
    if (g->life == LIFE_RUNNING && !strcmp(field(args, "state="), "exited"))
        guest_exited(s, number(args, "code=", 0, 255), number(args, "signal=", 0, 64),
                     number(args, "oom=", 0, 1));
}

void guest_greeting(struct shim *s, const struct vmm_args *args)
{
    struct guest *g = s->guest;
    const char *state = field(args, "state=");
    bool idle = !strcmp(state, "idle");
    bool known = !strcmp(state, "running") || !strcmp(state, "exited");
    if (!g->dead)
        g->lost_at = NEVER;
    g->takes_time = !strcmp(field(args, "time="), "1");
    guest_tell_time(s);
    if (g->life == LIFE_BOOTING && idle)
        launch(s);
    else if (g->life == LIFE_LEAVING && (known || idle))
        channel_frame(g, 0, VMM_SHUTDOWN, NULL, 0);
    else if (known && (g->life == LIFE_RUNNING || (g->life == LIFE_BOOTING && g->launched)))
        resume_running(s, args);
    else
        guest_give_up(s, idle ? "guest lost its workload"
                              : "guest claims a workload that it was never given");
}

/* ---- time ---- */

static void overdue(struct shim *s)
{
    const struct guest *g = s->guest;
    long long boot = s->config.boot_ms / 1000, answer = s->config.answer_ms / 1000;
    if (g->life == LIFE_BOOTING)
        guest_give_up(s, "guest was not ready within %lld s", boot);
    else if (g->life == LIFE_LAUNCHING)
        guest_give_up(s, "guest did not start its workload within %lld s", answer);
    else
        guest_give_up(s, "guest did not power off within %d s", LEAVE_MS / 1000);
}

static void check_lost(struct shim *s)
{
    struct guest *g = s->guest;
    g->lost_at = NEVER;
    if (g->dead || g->pidfd < 0)
        guest_gone(s);
    else
        guest_give_up(s, "guest's channel was lost");
}

void guest_tick(struct shim *s, int64_t now)
{
    struct guest *g = s->guest;
    if (!g)
        return;
    asks_tick(s, now);
    job_tick(s, now);
    if (now >= g->at)
        overdue(s);
    if (now >= g->kill_at)
        guest_give_up(s, "guest did not end its workload when it was killed");
    if (now >= g->lost_at && (g->dead || !s->paused))
        check_lost(s);
    if (now >= g->destroy_at)
        guest_destroy(s);
    if (now >= g->needs_at)
        check_files(s);
    if (now >= g->time_at)
        guest_tell_time(s);
    guest_deliver(s);
}

int64_t guest_deadline(const struct shim *s)
{
    const struct guest *g = s->guest;
    if (!g)
        return NEVER;
    const int64_t all[] = {g->at, g->kill_at, g->destroy_at, g->needs_at, g->time_at, g->job.at,
                           asks_deadline(g),
                           g->dead || !s->paused ? g->lost_at : NEVER};
    int64_t at = NEVER;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        at = all[i] < at ? all[i] : at;
    return at;
}

void guest_watch(struct shim *s)
{
    struct guest *g = s->guest;
    if (!g)
        return;
    channel_watch(s);
    job_watch(s);
    if (g->pidfd >= 0)
        watch(g->pidfd, POLLIN, process_ended, g);
    if (g->needs >= 0)
        watch(g->needs, POLLIN, files_ended, g);
    flow_watch(s, &s->workload);
    for (struct session *exec = s->execs; exec; exec = exec->next)
        flow_watch(s, exec);
}
