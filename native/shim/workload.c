/* The life of the workload, whatever it is: start, stop, end, restart. */
#include "shim.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct asker nobody;

enum { BACKOFF_FIRST_MS = 100, BACKOFF_MAX_MS = 60000, STEADY_NS_MS = 10000 };

static void record_start(struct shim *s, pid_t pid, uint64_t pid_start)
{
    struct state *state = &s->state;
    s->workload.ended = false;
    state->status = "running";
    state->pid = pid;
    state->pid_start = pid_start;
    state->started = now_ns();
    state->exit_code = state->signal = 0;
    state->oom_killed = state->manual_stop = false;
    state->error[0] = 0;
    health_started(s);
    state_write(s);
}

/* The workload runs, whoever started it. */
static void run(struct shim *s)
{
    s->phase = PHASE_RUNNING;
    s->launched_at = now_ms();
    s->paused = false;
    starters_answer(s);
    streams_input(&s->workload, NULL, 0); /* what was sent before the start */
}

void workload_started(struct shim *s, pid_t pid, uint64_t pid_start)
{
    record_start(s, pid, pid_start);
    event(s, "start", NULL);
    run(s);
}

/* A guest that runs since before this shim. */
void workload_adopted(struct shim *s)
{
    s->state.status = "running";
    health_adopted(s);
    state_write(s);
    run(s);
}

static void pass_early_signal(struct shim *s)
{
    struct vmm_error e;
    int signal = s->early_signal;
    s->early_signal = 0;
    if (signal)
        workload_signal(s, signal, false, s->early_manual, nobody, &e);
}

/* FAILED leaves the phase alone; LATER: workload_started() or workload_start_failed() follows. */
int workload_start(struct shim *s, struct vmm_error *e)
{
    s->first_start = s->phase == PHASE_WAITING;
    helper_start(s);
    int outcome = s->driver->start(s, e);
    if (outcome == FAILED)
        return FAILED;
    s->restart_at = NEVER;
    s->stopping = false;
    s->start_signal = 0;
    if (outcome == LATER)
        s->phase = PHASE_STARTING;
    else
        workload_started(s, s->workload.pid, platform_process_start(s->workload.pid));
    pass_early_signal(s);
    return outcome;
}

static bool wants_restart(const struct shim *s)
{
    if (s->stopping || s->state.manual_stop)
        return false;
    switch (s->config.restart) {
    case RESTART_ALWAYS:
    case RESTART_UNLESS_STOPPED: return true;
    case RESTART_ON_FAILURE:
        return s->state.exit_code != 0 &&
               (s->config.restart_max == 0 || s->state.restart_count < s->config.restart_max);
    default: return false;
    }
}

/* Docker's back-off: 100 ms, doubled to a minute, from the beginning after 10 s of running. */
static void schedule_restart(struct shim *s, int64_t ran_ms)
{
    if (s->backoff_ms == 0 || ran_ms >= STEADY_NS_MS)
        s->backoff_ms = BACKOFF_FIRST_MS;
    else if ((s->backoff_ms *= 2) > BACKOFF_MAX_MS)
        s->backoff_ms = BACKOFF_MAX_MS;
    s->restart_at = now_ms() + s->backoff_ms;
    s->phase = PHASE_RESTARTING;
    s->state.status = "restarting";
    s->state.restart_count++;
}

static void answer_next(struct shim *s)
{
    for (struct client *c = s->clients; c; c = c->next)
        if (c->waits_next) {
            c->waits_next = false;
            client_exit(c, 0, &s->state);
        }
}

static void emit_end(const struct shim *s)
{
    char code[24];
    if (s->state.oom_killed)
        event(s, "oom", NULL);
    snprintf(code, sizeof code, "%lld", (long long)s->state.exit_code);
    event(s, "die", (const char *[]){"exitCode", code, NULL});
    if (s->stopping)
        event(s, "stop", NULL);
}

/* An end was recorded in s->state: restart, or end for good. */
static void after_end(struct shim *s, int64_t ran_ms)
{
    bool again = wants_restart(s);
    if (again)
        schedule_restart(s, ran_ms);
    else
        s->state.status = "exited";
    state_write(s);
    answer_next(s);
    if (!again)
        ending_begin(s);
}

/* The first one: the workload stays as it was, with the error; the shim ends. A restart, or one that was
 * stopped on purpose (code 128 and the signal): as an end. */
void workload_start_failed(struct shim *s, const struct vmm_error *e)
{
    struct state *state = &s->state;
    bool stopped = e->code > 128, told = starters_refuse(s, e);
    state->exit_code = e->code;
    snprintf(state->error, sizeof state->error, "%s", e->message);
    s->answered = told && s->first_start;
    if (s->first_start && !stopped) {
        state_write(s);
        ending_begin(s);
        return;
    }
    state->finished = now_ns();
    if (stopped) {
        state->started = state->finished;
        state->signal = e->code - 128;
        emit_end(s);
    }
    after_end(s, 0);
}

static void restart(struct shim *s)
{
    struct vmm_error e = {0};
    s->restart_at = NEVER;
    if (workload_start(s, &e) == FAILED)
        workload_start_failed(s, &e);
}

void workload_exited(struct shim *s, int code, int signal)
{
    struct session *w = &s->workload;
    s->state.exit_code = code;
    s->state.signal = signal;
    s->state.finished = now_ns();
    s->state.oom_killed = s->driver->ended(s);
    s->state.pid = 0;
    s->state.pid_start = 0;
    s->state.needs = 0;
    s->state.needs_start = 0;
    health_stopped(s);
    s->paused = false;
    w->pid = 0;
    vmm_close(&w->pidfd);
    streams_end(w, now_ms());
    s->phase = PHASE_DRAINING;
    s->stop_at = NEVER;
    if (s->manual_signal && (signal == s->manual_signal || now_ms() < s->manual_until))
        s->state.manual_stop = true;
    s->manual_signal = 0;
}

static void finish(struct shim *s)
{
    struct session *w = &s->workload;
    streams_close(w);
    log_end_stream(&s->log, 0);
    log_end_stream(&s->log, 1);
    w->input_eof = false;
    emit_end(s);
    after_end(s, now_ms() - s->launched_at);
}

static void kill_now(struct shim *s)
{
    s->stop_at = NEVER;
    s->driver->kill(s);
}

static void emit_kill(const struct shim *s, int signal)
{
    char text[16];
    snprintf(text, sizeof text, "%d", signal);
    event(s, "kill", (const char *[]){"signal", text, NULL});
}

/* A stop before the start, or between two runs, ends the shim at once. */
static void stop_idle(struct shim *s)
{
    if (s->phase == PHASE_RESTARTING)
        s->state.status = "exited";
    state_write(s);
    ending_begin(s);
}

/* Nothing is there yet that could take the signal. */
static void stop_starting(struct shim *s, int signal)
{
    s->stopping = true;
    s->start_signal = signal;
    emit_kill(s, signal);
    kill_now(s);
}

/* Signal, then KILL after `timeout_ms` (-1: never, 0: at once). That it was asked for by hand is on
 * disk before the signal is sent. */
void workload_stop(struct shim *s, int signal, int64_t timeout_ms, bool manual)
{
    struct vmm_error e = {0};
    if (s->phase == PHASE_ENDING)
        return;
    s->stopping = true;
    s->state.manual_stop |= manual;
    if (s->phase == PHASE_WAITING || s->phase == PHASE_RESTARTING) {
        stop_idle(s);
        return;
    }
    if (manual)
        state_write(s);
    if (timeout_ms == 0)
        signal = SIGKILL;
    if (s->phase == PHASE_STARTING)
        stop_starting(s, signal);
    if (s->phase != PHASE_RUNNING)
        return;
    emit_kill(s, signal);
    if (timeout_ms == 0) {
        kill_now(s);
        return;
    }
    s->driver->signal(s, NULL, signal, false, nobody, &e);
    if (s->paused)
        s->driver->pause(s, false, nobody, &e);
    int64_t at = timeout_ms < 0 ? NEVER : now_ms() + timeout_ms;
    s->stop_at = at < s->stop_at ? at : s->stop_at;
}

static bool asks_to_end(int signal)
{
    return signal == SIGHUP || signal == SIGINT || signal == SIGQUIT || signal == SIGTERM ||
           signal == SIGKILL;
}

/* A signal may come while a guest boots: one that asks it to end. Or, over another connection, a
 * moment before the START that it is meant for: it is passed on then. */
static int signal_starting(struct shim *s, int signal, bool manual, struct vmm_error *e)
{
    if (s->phase == PHASE_WAITING) {
        s->early_signal = signal;
        s->early_manual = manual;
        return DONE;
    }
    if (s->phase != PHASE_STARTING)
        return vmm_fail(e, 1, 0, "the workload is not running");
    if (!asks_to_end(signal))
        return vmm_fail(e, 1, 0, "the workload is still being started");
    s->state.manual_stop |= manual;
    stop_starting(s, signal);
    return DONE;
}

int workload_signal(struct shim *s, int signal, bool all, bool manual, struct asker asker,
                    struct vmm_error *e)
{
    if (s->phase != PHASE_RUNNING)
        return signal_starting(s, signal, manual, e);
    if (manual && signal == SIGKILL) {
        s->state.manual_stop = true;
        state_write(s);
    } else if (manual) {
        s->manual_signal = signal;
        s->manual_until = now_ms() + STEADY_NS_MS;
    }
    emit_kill(s, signal);
    return s->driver->signal(s, NULL, signal, all, asker, e);
}

void workload_paused(struct shim *s, bool paused)
{
    if (s->paused == paused || s->phase != PHASE_RUNNING)
        return;
    s->paused = paused;
    s->state.status = paused ? "paused" : "running";
    if (paused)
        health_stopped(s);
    else
        health_resumed(s);
    state_write(s);
    event(s, paused ? "pause" : "unpause", NULL);
}

int workload_pause(struct shim *s, bool pause, struct asker asker, struct vmm_error *e)
{
    if (s->phase != PHASE_RUNNING)
        return vmm_fail(e, 1, 0, "the workload is not running");
    if (s->paused == pause)
        return vmm_fail(e, 1, 0, pause ? "the workload is paused already"
                                       : "the workload is not paused");
    return s->driver->pause(s, pause, asker, e);
}

static void give_up_if_abandoned(struct shim *s, int64_t now)
{
    if (s->clients)
        s->abandoned_at = now + ABANDONED_MS;
    else if (now >= s->abandoned_at)
        ending_begin(s);
}

void workload_tick(struct shim *s, int64_t now)
{
    if (s->phase == PHASE_WAITING)
        give_up_if_abandoned(s, now);
    if (s->phase == PHASE_DRAINING && s->driver->gone(s) && !session_congested(s, &s->workload) &&
        streams_drained(&s->workload, now))
        finish(s);
    if (s->phase == PHASE_RUNNING && now >= s->stop_at)
        kill_now(s);
    if (s->phase == PHASE_RESTARTING && now >= s->restart_at)
        restart(s);
    if (s->phase != PHASE_ENDING && now >= s->helper_at)
        helper_start(s);
}

int64_t workload_deadline(const struct shim *s)
{
    int64_t at = s->helper_at;
    if (s->phase == PHASE_WAITING && !s->clients)
        at = s->abandoned_at < at ? s->abandoned_at : at;
    if (s->phase == PHASE_DRAINING && s->driver->gone(s) && s->workload.drain_until < at)
        at = s->workload.drain_until;
    if (s->phase == PHASE_RUNNING && s->stop_at < at)
        at = s->stop_at;
    if (s->phase == PHASE_RESTARTING && s->restart_at < at)
        at = s->restart_at;
    if (s->phase == PHASE_ENDING && s->ending_until < at)
        at = s->ending_until;
    return at;
}
