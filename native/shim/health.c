/* The health check: probes are execs of the shim's own, in Docker's rhythm and by its rules. */
#include "guest.h"
#include "health.h"
#include "shim.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct asker nobody;

/* START_MS: for a probe to be started, which its own time does not include. */
enum { OUTPUT_MAX = 4096, START_MS = 30000 };

/* A probe under way. */
struct probe {
    struct session *exec;
    bool starting, truncated;
    int64_t start;    /* ns UTC */
    int64_t since;    /* as now_ms() */
    int64_t deadline; /* as now_ms() */
    size_t size;
    char output[OUTPUT_MAX];
};

static bool wanted(const struct shim *s)
{
    return s->config.health.operations && s->phase == PHASE_RUNNING && !s->paused;
}

static bool in_start_period(const struct shim *s, int64_t now)
{
    return !strcmp(s->state.health, "starting") &&
           now - s->health.since < s->config.health.start_period_ms;
}

static void schedule(struct shim *s)
{
    const struct health_config *c = &s->config.health;
    int64_t now = now_ms();
    s->health.due = now + (in_start_period(s, now) ? c->start_interval_ms : c->interval_ms);
}

/* ---- what a probe found ---- */

static const char *judge(struct shim *s, int code, int64_t since)
{
    struct state *state = &s->state;
    if (code == 0) {
        state->failing_streak = 0;
        return "healthy";
    }
    if (in_start_period(s, since))
        return state->health;
    state->failing_streak++;
    return state->failing_streak >= s->config.health.retries ? "unhealthy" : state->health;
}

/* The state's file is replaced only for what it shows. */
static void settle(struct shim *s, const struct probe *probe, int code)
{
    char action[40];
    int64_t streak = s->state.failing_streak;
    const char *status = judge(s, code, probe->since);
    bool changed = strcmp(status, s->state.health) != 0;
    s->state.health = status;
    if (changed || streak != s->state.failing_streak)
        state_write(s);
    snprintf(action, sizeof action, "health_status: %s", status);
    if (changed)
        event(s, action, NULL);
}

/* The probe is over for us; its exec is swept when it ends. */
static void conclude(struct shim *s, int code, const char *text, size_t size)
{
    struct probe *probe = s->health.probe;
    s->health.probe = NULL;
    health_log(s->config.health.log_path, probe->start, now_ns(), code, text, size);
    settle(s, probe, code);
    free(probe);
    schedule(s);
}

static void conclude_failed(struct shim *s, const char *text)
{
    conclude(s, -1, text, strlen(text));
}

/* With what it has written, "..." if that was more than is kept. */
static void conclude_with_output(struct shim *s, int code, const char *before)
{
    char text[OUTPUT_MAX + 128];
    const struct probe *probe = s->health.probe;
    int n = snprintf(text, sizeof text, "%.100s%s", before, *before && probe->size ? ": " : "");
    size_t size = (size_t)n;
    memcpy(text + size, probe->output, probe->size);
    size += probe->size;
    if (probe->truncated) {
        memcpy(text + size, "...", 3);
        size += 3;
    }
    conclude(s, code, text, size);
}

/* ---- a probe's exec ---- */

static void kill_exec(struct shim *s, struct session *exec)
{
    struct vmm_error e;
    if (exec->starting)
        exec_abandon(s, exec);
    else if (exec->pid > 0)
        s->driver->signal(s, exec, SIGKILL, true, nobody, &e);
}

void health_output(struct shim *s, const struct session *exec, const void *data, size_t size)
{
    struct probe *probe = s->health.probe;
    if (!probe || probe->exec != exec)
        return;
    size_t room = OUTPUT_MAX - probe->size, taken = size < room ? size : room;
    memcpy(probe->output + probe->size, data, taken);
    probe->size += taken;
    probe->truncated |= taken < size;
}

void health_refused(struct shim *s, const struct session *exec, const char *why)
{
    if (s->health.probe && s->health.probe->exec == exec)
        conclude_failed(s, why);
}

void health_ended(struct shim *s, const struct session *exec)
{
    if (s->health.probe && s->health.probe->exec == exec)
        conclude_with_output(s, exec->exit_code, "");
}

static bool lingers(const struct shim *s)
{
    for (const struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->probe)
            return true;
    return false;
}

/* One that cannot be killed is not joined by others. */
static int run(struct shim *s, struct probe *probe, struct vmm_error *e)
{
    const struct health_config *c = &s->config.health;
    char id[32];
    if (lingers(s))
        return vmm_fail(e, 125, 0, "the former health check has not ended yet");
    snprintf(id, sizeof id, "health%llu", (unsigned long long)++s->health.count);
    return exec_probe(s, id, c->operations, c->operations_size, &probe->exec, e);
}

static void begin(struct shim *s, int64_t now)
{
    struct vmm_error e = {0};
    struct probe *probe = malloc(sizeof *probe);
    schedule(s);
    if (!probe)
        return;
    *probe = (struct probe){.start = now_ns(), .since = now};
    s->health.probe = probe;
    int outcome = run(s, probe, &e);
    if (outcome == FAILED) {
        conclude_failed(s, e.message);
        return;
    }
    probe->starting = outcome == LATER;
    probe->deadline = now_ms() + (probe->starting ? START_MS : s->config.health.timeout_ms);
}

static void overdue(struct shim *s)
{
    char text[100];
    struct session *exec = s->health.probe->exec;
    if (s->health.probe->starting) {
        conclude_failed(s, "timed out starting the health check");
    } else {
        snprintf(text, sizeof text, "Health check exceeded timeout (%.40s)",
                 s->config.health.timeout_text);
        conclude_with_output(s, -1, text);
    }
    kill_exec(s, exec);
}

/* ---- the workload's life ---- */

static void forget(struct shim *s)
{
    free(s->health.probe);
    s->health.probe = NULL;
    s->health.due = NEVER;
}

void health_started(struct shim *s)
{
    if (!s->config.health.operations)
        return;
    forget(s);
    s->state.health = "starting";
    s->state.failing_streak = 0;
    s->health.since = now_ms();
    schedule(s);
}

void health_adopted(struct shim *s)
{
    if (!s->config.health.operations)
        return;
    int64_t ran = (now_ns() - s->state.started) / 1000000;
    forget(s);
    if (!s->state.health)
        s->state.health = "starting";
    s->health.since = now_ms() - (ran > 0 ? ran : 0);
    schedule(s);
}

/* What a probe under way would have found is not known. As at Docker, what is not probed is not healthy. */
void health_stopped(struct shim *s)
{
    if (!s->config.health.operations || !s->state.health)
        return;
    forget(s);
    s->state.health = "unhealthy";
}

void health_resumed(struct shim *s)
{
    if (!s->config.health.operations)
        return;
    for (struct session *exec = s->execs; exec; exec = exec->next)
        if (exec->probe)
            kill_exec(s, exec); /* as a frozen process takes it only now */
    schedule(s);
}

/* A guest that is not to be reached says nothing about its workload. */
static bool reachable(const struct shim *s)
{
    return !s->guest || (s->guest->life == LIFE_RUNNING && s->guest->greeted);
}

void health_tick(struct shim *s, int64_t now)
{
    struct probe *probe = s->health.probe;
    if (!wanted(s))
        return;
    if (probe && probe->starting && !probe->exec->starting) {
        probe->starting = false;
        probe->deadline = now + s->config.health.timeout_ms;
    }
    if (probe && now >= probe->deadline)
        overdue(s);
    else if (!probe && now >= s->health.due && reachable(s))
        begin(s, now);
    else if (!probe && now >= s->health.due)
        schedule(s);
}

int64_t health_deadline(const struct shim *s)
{
    if (!wanted(s))
        return NEVER;
    return s->health.probe ? s->health.probe->deadline : s->health.due;
}
