#include "guest.h"
#include "shim.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

struct watched {
    watch_handler handler;
    void *object;
};

static struct {
    struct pollfd *fds;
    struct watched *watched;
    size_t count, capacity;
    bool incomplete; /* there was no memory to watch everything */
} round_;

enum { SHORTAGE_MS = 50 };

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int grow(void)
{
    size_t capacity = round_.capacity ? round_.capacity * 2 : 16;
    struct pollfd *fds = realloc(round_.fds, capacity * sizeof *fds);
    if (!fds)
        return -1;
    round_.fds = fds;
    struct watched *watched = realloc(round_.watched, capacity * sizeof *watched);
    if (!watched)
        return -1;
    round_.watched = watched;
    round_.capacity = capacity;
    return 0;
}

/* Objects watched must live until the round is over: they are marked dead, and swept after it. */
void watch(int fd, short events, watch_handler handler, void *object)
{
    if (round_.count == round_.capacity && grow()) {
        round_.incomplete = true;
        return;
    }
    round_.fds[round_.count] = (struct pollfd){.fd = fd, .events = events};
    round_.watched[round_.count++] = (struct watched){handler, object};
}

static void watch_all(struct shim *s)
{
    round_.count = 0;
    round_.incomplete = false;
    watch(s->signal_fd, POLLIN, children_ready, NULL);
    if (s->listen_fd >= 0 && now_ms() >= s->accept_at)
        watch(s->listen_fd, POLLIN, client_accept, NULL);
    streams_watch(s, &s->workload);
    for (struct session *exec = s->execs; exec; exec = exec->next)
        streams_watch(s, exec);
    guest_watch(s);
    clients_watch(s);
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Milliseconds until the next timer, -1 for none. */
static int timeout(const struct shim *s, int64_t now)
{
    int64_t at = earlier(workload_deadline(s), clients_deadline(s));
    at = earlier(at, guest_deadline(s));
    at = earlier(at, health_deadline(s));
    for (const struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->ended)
            at = earlier(at, exec->drain_until);
    if (now < s->accept_at)
        at = earlier(at, s->accept_at);
    if (round_.incomplete)
        at = earlier(at, now + SHORTAGE_MS);
    if (at == NEVER)
        return -1;
    return at <= now ? 0 : (int)earlier(at - now, INT32_MAX);
}

static void dispatch(struct shim *s)
{
    for (size_t i = 0; i < round_.count; i++)
        if (round_.fds[i].revents)
            round_.watched[i].handler(s, round_.watched[i].object, round_.fds[i].revents);
}

/* Wait for the next event or timer. After a second of quiet, scratch memory is given back. */
static int wait_events(int limit)
{
    enum { QUIET_MS = 1000 };
    if (limit >= 0 && limit <= QUIET_MS)
        return poll(round_.fds, round_.count, limit);
    int n = poll(round_.fds, round_.count, QUIET_MS);
    if (n)
        return n;
    log_release();
    streams_release();
    platform_release_heap();
    platform_release_stack();
    return poll(round_.fds, round_.count, limit < 0 ? -1 : limit - QUIET_MS);
}

void loop_run(struct shim *s)
{
    while (!ending_done(s, now_ms())) {
        watch_all(s);
        int n = wait_events(timeout(s, now_ms()));
        if (n > 0)
            dispatch(s);
        else if (n < 0 && errno != EINTR) /* no memory: the workload must not pay for it */
            nanosleep(&(struct timespec){.tv_nsec = SHORTAGE_MS * 1000000}, NULL);
        clients_process(s);
        if (s->guest)
            channel_process(s);
        int64_t now = now_ms();
        guest_tick(s, now);
        exec_tick(s, now);
        workload_tick(s, now);
        health_tick(s, now);
        clients_sweep(s, now);
    }
}
