/* Exec instances: further processes in the running workload. */
#include "guest.h"
#include "shim.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct session *exec_find(struct shim *s, const char *id)
{
    for (struct session *exec = s->execs; exec; exec = exec->next)
        if (!strcmp(exec->id, id))
            return exec;
    return NULL;
}

static void exec_free(struct session *exec)
{
    streams_close(exec);
    flow_free(exec);
    vmm_close(&exec->pidfd);
    free(exec->command);
    free(exec);
}

/* The id names a file: letters and digits alone. */
static bool valid_id(const struct vmm_args *args)
{
    if (args->length[0] == 0 || args->length[0] > ID_MAX)
        return false;
    for (uint32_t i = 0; i < args->length[0]; i++)
        if (!isalnum((unsigned char)args->at[0][i]))
            return false;
    return true;
}

/* It executes nothing of the workload's. */
static bool is_archive(const struct vmm_records *ops)
{
    for (size_t i = 0; i < ops->count; i++)
        if (!strncmp(ops->items[i].argv[0], "archive.", strlen("archive.")))
            return true;
    return false;
}

/* In a guest nothing at all runs while it is paused. */
static bool stands_still(const struct shim *s, const struct vmm_records *ops)
{
    return s->paused && (s->guest || !is_archive(ops));
}

static int check(struct shim *s, const struct vmm_args *args, const struct vmm_records *ops,
                 bool probe, struct vmm_error *e)
{
    size_t count = 0;
    for (const struct session *exec = s->execs; exec; exec = exec->next)
        count++;
    if (s->phase != PHASE_RUNNING)
        return vmm_fail(e, 1, 0, "the workload is not running");
    if (stands_still(s, ops))
        return vmm_fail(e, 1, 0, "the workload is paused");
    if (!valid_id(args))
        return vmm_fail(e, 1, 0, "invalid exec id");
    if (exec_find(s, args->at[0]))
        return vmm_fail(e, 1, 0, "exec %s is running already", args->at[0]);
    if (count >= EXECS_MAX && !probe)
        return vmm_fail(e, 1, 0, "%d execs are running already; end some first", EXECS_MAX);
    return 0;
}

/* The command as Docker's exec events show it: its arguments, joined; NULL for a file stream. */
static char *command_text(const struct vmm_records *ops)
{
    char *text = is_archive(ops) ? NULL : calloc(1, 1024);
    for (size_t i = 0; text && i < ops->count; i++) {
        const struct vmm_record *r = &ops->items[i];
        for (uint32_t k = 1; !strcmp(r->argv[0], "exec") && k < r->argc; k++) {
            size_t used = strlen(text);
            snprintf(text + used, 1024 - used, "%s%s", used ? " " : "", r->argv[k]);
        }
    }
    return text;
}

static void exec_event(const struct shim *s, const struct session *exec, const char *action)
{
    char text[1100];
    if (!exec->command)
        return;
    snprintf(text, sizeof text, "%s: %s", action, exec->command);
    event(s, text, (const char *[]){"execID", exec->id, NULL});
}

static struct session *exec_new(const struct vmm_args *args, const struct vmm_records *ops,
                                bool tty, bool stdin_open, bool probe)
{
    struct session *exec = calloc(1, sizeof *exec);
    if (!exec)
        return NULL;
    memcpy(exec->id, args->at[0], args->length[0]);
    exec->is_exec = exec->stdin_once = true;
    exec->tty = tty;
    exec->stdin_open = stdin_open || tty;
    exec->in = exec->out = exec->err = exec->slave = exec->pidfd = -1;
    exec->probe = probe;
    exec->command = probe ? NULL : command_text(ops);
    return exec;
}

void exec_started(struct shim *s, struct session *exec, pid_t pid)
{
    exec->starting = false;
    exec->pid = pid;
    exec->started = now_ns();
    exec_state_write(s, exec);
}

static int run(struct shim *s, struct session *exec, const struct vmm_args *args,
               const struct vmm_records *ops, struct asker asker, struct vmm_error *e)
{
    exec_event(s, exec, "exec_create");
    exec_event(s, exec, "exec_start");
    int outcome = s->driver->exec(s, exec, args, ops, asker, e);
    if (outcome == DONE)
        exec_started(s, exec, exec->pid);
    exec->starting = outcome == LATER;
    if (outcome == FAILED) {
        exec->pid = 0;
        exec->exit_code = e->code;
        exec_state_write(s, exec);
    }
    return outcome;
}

static int start(struct shim *s, const struct vmm_args *args, struct asker asker, bool probe,
                 struct session **out, struct vmm_error *e)
{
    int64_t tty, input, detach;
    struct vmm_records ops;
    if (!vmm_args_number(args, 1, 0, 1, &tty) || !vmm_args_number(args, 2, 0, 1, &input) ||
        !vmm_args_number(args, 3, 0, 1, &detach))
        return vmm_fail(e, 1, 0, "EXEC: tty, stdin and detach must be 0 or 1");
    if (vmm_records_decode(args->at[4], args->length[4], &ops, e))
        return FAILED;
    if (check(s, args, &ops, probe, e)) {
        vmm_records_free(&ops);
        return FAILED;
    }
    struct session *exec = exec_new(args, &ops, tty, input && !detach, probe);
    if (exec)
        vmm_args_terminal(args, &exec->rows, &exec->columns);
    int outcome = exec ? run(s, exec, args, &ops, asker, e)
                       : vmm_fail(e, 125, 0, "no memory for an exec");
    vmm_records_free(&ops);
    if (outcome == FAILED) {
        if (exec)
            exec_free(exec);
        return FAILED;
    }
    exec->next = s->execs;
    s->execs = exec;
    *out = exec;
    return outcome;
}

/* EXEC [exec id, tty, stdin, detach, operations, rows, columns], the size being optional */
int exec_start(struct shim *s, const struct vmm_args *args, struct asker asker,
               struct session **out, struct vmm_error *e)
{
    return start(s, args, asker, false, out, e);
}

int exec_probe(struct shim *s, const char *id, const char *operations, size_t size,
               struct session **out, struct vmm_error *e)
{
    const struct vmm_args args = {
        .count = 5,
        .at = {id, "0", "0", "0", operations},
        .length = {(uint32_t)strlen(id), 1, 1, 1, (uint32_t)size},
    };
    return start(s, &args, (struct asker){0}, true, out, e);
}

void exec_exited(struct shim *s, struct session *exec, int code, int signal)
{
    char text[16];
    exec->exit_code = code;
    exec->signal = signal;
    exec->pid = 0;
    exec->finished = now_ns();
    vmm_close(&exec->pidfd);
    exec_state_write(s, exec);
    snprintf(text, sizeof text, "%d", code);
    if (exec->command)
        event(s, "exec_die",
              (const char *[]){"execID", exec->id, "exitCode", text, NULL});
    streams_end(exec, now_ms());
}

static void detach_all(struct shim *s, const struct session *exec)
{
    for (struct client *c = s->clients; c; c = c->next)
        for (size_t i = c->attached; i-- > 0;)
            if (c->attachments[i].session == exec)
                c->attachments[i] = c->attachments[--c->attached];
}

void exec_failed(struct shim *s, struct session *exec, int code, const char *why)
{
    health_refused(s, exec, why);
    exec->starting = false;
    exec->ended = true; /* freed with the others, when nothing watches it any more */
    exec->exit_code = code;
    exec_state_write(s, exec);
    detach_all(s, exec);
    streams_close(exec);
    flow_free(exec);
}

/* The guest did not answer in time; should it start the exec after all, that is ended. */
void exec_abandon(struct shim *s, struct session *exec)
{
    health_refused(s, exec, "the guest did not answer in time");
    exec->unwanted = true;
    detach_all(s, exec);
}

/* Execs whose output was read to its end are answered and forgotten. */
void exec_tick(struct shim *s, int64_t now)
{
    struct session **link = &s->execs;
    while (*link) {
        struct session *exec = *link;
        if (exec->ended && !session_congested(s, exec) && streams_drained(exec, now)) {
            health_ended(s, exec);
            session_exit(s, exec);
            detach_all(s, exec);
            *link = exec->next;
            exec_free(exec);
        } else {
            link = &exec->next;
        }
    }
}
