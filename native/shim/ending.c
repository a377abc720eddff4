/* The end for good: answer, clean up, let readers finish, run the reaper unless a client does it. */
#include "shim.h"

#include <stdio.h>
#include <sys/un.h>
#include <unistd.h>

enum { UNREAD_POLL_MS = 5 };

static void answer(struct shim *s)
{
    for (struct client *c = s->clients; c; c = c->next) {
        if (c->waits || c->waits_next) {
            client_exit(c, 0, &s->state);
            c->told = !c->dead;
        }
        if (c->stops)
            client_args(c, 0, VMM_OK, 0, NULL);
        c->waits = c->waits_next = c->stops = false;
    }
}

/* From here on nobody finds the shim; a new one may take its place. */
static void remove_socket(struct shim *s)
{
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    snprintf(path, sizeof path, "%s/ctl.sock", s->config.run_dir);
    unlink(path);
    vmm_close(&s->listen_fd);
}

/* Execs died with the workload, or were killed with its cgroup. */
static void end_execs(struct shim *s)
{
    for (struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->pidfd >= 0)
            platform_kill(exec->pidfd, 9);
}

void ending_begin(struct shim *s)
{
    s->phase = PHASE_ENDING;
    s->ending_until = now_ms();
    log_close(&s->log);
    end_execs(s);
    answer(s);
    helper_stop(s);
    s->driver->close(s);
    remove_socket(s);
}

/* A client that promised to reap must have read its answer, or the shim does it. */
static bool settled(struct shim *s, const struct client *c)
{
    if (c->dead)
        return true;
    if (c->out.size)
        return false;
    if (!c->promised)
        return true;
    if (c->told && platform_delivered(c->fd)) {
        s->promise_kept = true;
        return true;
    }
    return now_ms() - c->progress_at >= STALL_MS;
}

bool ending_done(struct shim *s, int64_t now)
{
    bool done = true, unread = false;
    if (s->phase != PHASE_ENDING)
        return false;
    for (const struct client *c = s->clients; c; c = c->next)
        if (!settled(s, c)) {
            done = false;
            unread |= !c->out.size;
        }
    s->ending_until = unread ? now + UNREAD_POLL_MS : NEVER;
    return done && !s->execs;
}

void ending_finish(struct shim *s)
{
    if (!s->promise_kept && !s->answered)
        reaper_start(s);
    clients_close(s); /* nobody waits for what the kernel does at our exit */
}
