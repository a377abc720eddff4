/* Starting the workload and execs. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

/* ---- LAUNCH ---- */

/* Of a workload that was started nothing more is wanted. */
void run_plan_bytes(struct guest *g, const uint8_t *data, size_t size) {
    if (g->state == IDLE &&
        (g->plan_bytes.size + size > PLAN_MAX || buffer_append(&g->plan_bytes, data, size) < 0))
        g->plan_too_large = true;
}

static int take_plan(struct guest *g, struct vmm_error *e) {
    int failed = g->plan_too_large
                     ? vmm_fail(e, 125, 0, "the launch plan is larger than %d bytes", PLAN_MAX)
                     : vmm_plan_decode((const char *)buffer_head(&g->plan_bytes), g->plan_bytes.size,
                                       &g->plan, e);
    buffer_clear(&g->plan_bytes);
    g->plan_too_large = false;
    g->plan.guest = true;
    return failed;
}

static int start(struct guest *g, struct vmm_error *e) {
    struct session *s = &g->workload;
    struct vmm_stdio io;
    int ends[3];
    int failed = session_pipes(s, &io, ends, e);
    if (!failed)
        failed = vmm_launch(g->launcher, &io, &s->pid, &s->pidfd, e);
    session_adopt(s, &io, ends);
    return failed;
}

/* As if it had not been tried: the next LAUNCH is a new one. What was sent to it so far stays. */
static void undo(struct guest *g) {
    struct session *s = &g->workload;
    vmm_close(&s->in);
    vmm_close(&s->out);
    vmm_close(&s->err);
    s->pid = 0;
    vmm_launcher_free(g->launcher);
    g->launcher = NULL;
    boot_unmount(g);
    vmm_plan_free(&g->plan);
}

static int prepare(struct guest *g, struct vmm_error *e) {
    int failed = take_plan(g, e);
    if (g->boot.code) /* which explains more */
        *e = g->boot;
    if (failed || g->boot.code)
        return -1;
    g->launcher = vmm_launcher_new(&g->plan);
    return g->launcher ? setup_guest(g, e) : vmm_fail(e, 125, 0, "no memory");
}

int run_workload(struct guest *g, struct vmm_error *e) {
    snprintf(e->step, sizeof e->step, "launch");
    if (g->state != IDLE)
        return vmm_fail(e, 1, 0, "the workload was started already");
    if (prepare(g, e) < 0 || start(g, e) < 0) {
        undo(g);
        return -1;
    }
    g->state = RUNNING;
    session_write(g, &g->workload);
    return 0;
}

/* ---- EXEC [exec id, tty, stdin, detach, operations] ---- */

static bool valid_id(const struct vmm_args *args) {
    for (uint32_t i = 0; i < args->length[0]; i++)
        if (!isalnum((unsigned char)args->at[0][i]))
            return false;
    return args->length[0] > 0 && args->length[0] <= ID_MAX;
}

static int check_exec(struct guest *g, uint16_t channel, const struct vmm_args *args,
                      struct vmm_error *e) {
    size_t count = 0;
    for (const struct session *s = g->execs; s; s = s->next)
        count++;
    if (g->state != RUNNING || g->workload.ended)
        return vmm_fail(e, 1, 0, "the workload is not running");
    if (!valid_id(args))
        return vmm_fail(e, 1, 0, "invalid exec id");
    if (channel == 0 || session_find(g, channel) || session_find_exec(g, args->at[0]))
        return vmm_fail(e, 1, 0, "channel or id of the exec is in use");
    if (count >= EXECS_MAX)
        return vmm_fail(e, 1, 0, "%d execs are running already", EXECS_MAX);
    return 0;
}

static struct session *new_exec(uint16_t channel, const struct vmm_args *args, struct vmm_error *e) {
    int64_t tty, input, detach;
    if (!vmm_args_number(args, 1, 0, 1, &tty) || !vmm_args_number(args, 2, 0, 1, &input) ||
        !vmm_args_number(args, 3, 0, 1, &detach))
        return vmm_fail(e, 1, 0, "EXEC: tty, stdin and detach must be 0 or 1"), NULL;
    unsigned short rows, columns;
    if (!vmm_args_terminal(args, &rows, &columns))
        return vmm_fail(e, 1, 0, "EXEC: rows and columns must be numbers"), NULL;
    struct session *s = malloc(sizeof *s);
    if (!s)
        return vmm_fail(e, 125, 0, "no memory for an exec"), NULL;
    session_init(s, channel);
    memcpy(s->id, args->at[0], args->length[0]);
    s->tty = tty;
    s->detached = detach;
    s->stdin_open = tty || (input && !detach);
    s->rows = rows;
    s->columns = columns;
    return s;
}

static int start_exec(struct guest *g, struct session *s, const struct vmm_args *args,
                      struct vmm_error *e) {
    struct vmm_records ops;
    struct vmm_stdio io;
    int ends[3];
    if (vmm_records_decode(args->at[4], args->length[4], &ops, e) < 0)
        return -1;
    int failed = session_pipes(s, &io, ends, e);
    if (!failed)
        failed = vmm_launch_exec(g->launcher, &ops, &io, &s->pid, &s->pidfd, e);
    session_adopt(s, &io, ends);
    vmm_records_free(&ops);
    return failed;
}

int run_exec(struct guest *g, uint16_t channel, const struct vmm_args *args, pid_t *pid,
             struct vmm_error *e) {
    snprintf(e->step, sizeof e->step, "exec");
    if (check_exec(g, channel, args, e) < 0)
        return -1;
    struct session *s = new_exec(channel, args, e);
    if (!s)
        return -1;
    if (start_exec(g, s, args, e) < 0) {
        session_close(s);
        free(s);
        return -1;
    }
    s->next = g->execs;
    g->execs = s;
    *pid = s->pid;
    return 0;
}
