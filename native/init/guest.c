/* The loop of the guest side: one poll(2), no threads. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

enum { RECONNECT_MS = 100, FDS_MAX = 3 + 3 * (1 + EXECS_MAX) };

int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- what is waited for ---- */

struct watch {
    struct session *session;
    enum { INPUT, OUTPUT, ERRORS, POWER } stream;
};

struct watches {
    nfds_t count;
    struct pollfd fds[FDS_MAX];
    struct watch of[FDS_MAX];
};

static void add(struct watches *w, int fd, short events, struct session *s, int stream) {
    if (fd < 0 || w->count == FDS_MAX)
        return;
    w->fds[w->count] = (struct pollfd){.fd = fd, .events = events};
    w->of[w->count++] = (struct watch){s, stream};
}

static void add_session(const struct guest *g, struct watches *w, struct session *s) {
    if (s->input.size)
        add(w, s->in, POLLOUT, s, INPUT);
    if (!session_reads(g, s))
        return;
    add(w, s->out, POLLIN, s, OUTPUT);
    add(w, s->err, POLLIN, s, ERRORS);
}

/* An unconnected port reports a hang-up at all times, so it is not watched then. */
static void collect(struct guest *g, struct watches *w) {
    const struct channel *c = &g->channel;
    short events = (short)((channel_open(g) ? POLLIN : 0) | (c->sent < c->out.size ? POLLOUT : 0));
    w->count = 0;
    add(w, g->signals, POLLIN, NULL, 0);
    add(w, c->connected ? c->fd : g->signals, c->connected ? events : POLLIN, NULL, 0);
    add(w, g->power, POLLIN, NULL, POWER);
    if (g->state == RUNNING)
        add_session(g, w, &g->workload);
    for (struct session *s = g->execs; s; s = s->next)
        add_session(g, w, s);
}

static int timeout(const struct guest *g, int64_t now, int64_t next) {
    const int64_t due[] = {g->channel.stalled, g->poweroff_at,
                           g->channel.connected ? NEVER : now + RECONNECT_MS};
    for (size_t i = 0; i < sizeof due / sizeof *due; i++)
        next = due[i] < next ? due[i] : next;
    return next == NEVER ? -1 : next <= now ? 0 : next - now > 60000 ? 60000 : (int)(next - now);
}

/* ---- what happened ---- */

static void reap(struct guest *g) {
    struct signalfd_siginfo info[16];
    int status;
    while (read(g->signals, info, sizeof info) > 0)
        ;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0;)
        session_exited(g, pid, status);
}

static void channel_ready(struct guest *g, short events) {
    if (events & POLLOUT)
        channel_write(g);
    if (events & POLLIN)
        channel_read(g);
    else if (events & (POLLHUP | POLLERR | POLLNVAL))
        channel_disconnected(g);
}

/* A host that came back. */
static void look_for_host(struct guest *g) {
    struct pollfd port = {.fd = g->channel.fd, .events = POLLIN | POLLOUT};
    if (!g->channel.connected && poll(&port, 1, 0) >= 0 && !(port.revents & POLLHUP))
        g->channel.connected = true;
}

static void watched_ready(struct guest *g, const struct watch *watch) {
    if (watch->stream == POWER)
        g->pressed |= power_pressed(g->power);
    else if (watch->stream == INPUT)
        session_write(g, watch->session);
    else
        session_read(g, watch->session, watch->stream == ERRORS);
}

/* Streams before the channel: a request may start or (with a new conversation) end sessions. */
static void dispatch(struct guest *g, const struct watches *w) {
    for (nfds_t i = 2; i < w->count; i++)
        if (w->fds[i].revents)
            watched_ready(g, &w->of[i]);
    if (w->fds[0].revents)
        reap(g);
    if (g->channel.connected && w->fds[1].fd == g->channel.fd)
        channel_ready(g, w->fds[1].revents);
    look_for_host(g);
    channel_recover(g, now_ms());
    channel_consume(g);
}

/* Whoever started this guest is gone when nobody greets it: nothing would ever end it. */
static void await_orders(struct guest *g, int64_t now) {
    if (!g->booted || g->state != IDLE)
        return;
    if (g->channel.greeted)
        g->poweroff_at = NEVER;
    else if (g->poweroff_at == NEVER)
        g->poweroff_at = now + ORDERS_MS;
}

/* What a stop is, is the host's to say: the signal, and how long it may take. */
static void tell_power(struct guest *g) {
    if (!g->pressed || !g->channel.greeted)
        return;
    channel_answer(g, 0, VMM_POWER, 0, NULL);
    g->pressed = false;
}

static void serve(struct guest *g) {
    static struct watches w;
    while (!g->ending) {
        int64_t now = now_ms(), next = session_tick(g, now);
        tell_power(g);
        channel_write(g);
        await_orders(g, now);
        collect(g, &w);
        if (poll(w.fds, w.count, timeout(g, now, next)) >= 0)
            dispatch(g, &w);
        if (now_ms() >= g->poweroff_at)
            g->ending = true;
    }
}

/* ---- beginning and end ---- */

static struct guest *start(int channel, bool booted) {
    static struct guest guest;
    struct guest *g = &guest;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    g->booted = booted;
    g->signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    g->power = booted ? power_open() : -1;
    g->poweroff_at = NEVER;
    g->channel.fd = channel;
    g->channel.connected = true;
    g->channel.stalled = NEVER;
    session_init(&g->workload, 0);
    fcntl(channel, F_SETFD, FD_CLOEXEC);
    fcntl(channel, F_SETFL, O_NONBLOCK | O_RDWR);
    vmm_files_raise();
    return g;
}

_Noreturn void guest_serve(int channel, const struct vmm_error *fault) {
    struct guest *g = start(channel, true);
    g->boot = *fault;
    serve(g);
    boot_poweroff(g);
}

int guest_main(int channel) {
    struct guest *g = start(channel, false);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    umask(0);
    serve(g);
    while (g->execs) {
        struct session *s = g->execs;
        g->execs = s->next;
        session_kill(s);
    }
    session_close(&g->workload);
    vmm_launcher_free(g->launcher);
    boot_reap();
    boot_unmount(g);
    vmm_plan_free(&g->plan);
    return 0;
}
