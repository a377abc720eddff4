/* A coverage-guided fuzzer of what reads bytes: launch plans (records, sections, shim and host operations) and a
 * client's connection (frames, requests), a guest's channel. `fuzz SECONDS SEED…`; a seed's first byte is `P` (plan),
 * `S` (stream of a client) or `G` (stream of a guest).
 * fuzzing.c drives it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../lib/internal.h"
#include "../shim/guest.h"
#include "../shim/shim.h"
#include "fuzzing.h"

static int plan_fd = -1;

static void run_plan(const uint8_t *data, size_t size) {
    struct vmm_error e = {0};
    struct vmm_plan plan;
    struct config config;
    struct vmm_host host;
    struct vmm_records records;
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", plan_fd);
    if (ftruncate(plan_fd, 0) || pwrite(plan_fd, data, size, 0) != (ssize_t)size)
        abort();
    if (vmm_plan_read(path, &plan, &e) == 0) {
        config_read(&plan, &config, &e);
        config_free(&config);
        vmm_host_read(&plan, &host, &e);
        vmm_plan_free(&plan);
    }
    if (size > 7 && vmm_records_decode(data + 7, size - 7, &records, &e) == 0)
        vmm_records_free(&records);
}

static struct client *connect_client(struct shim *s, int fd) {
    struct client *c = calloc(1, sizeof *c);
    if (!c)
        abort();
    c->fd = fd;
    c->full_since = NEVER;
    c->progress_at = now_ms();
    s->clients = c;
    s->client_count = 1;
    return c;
}

static void drain(int fd) {
    static uint8_t sink[1 << 16];
    while (recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0)
        ;
}

static void end_session(struct session *session) {
    streams_close(session);
    free(session->command);
}

/* A running workload and a running exec, neither of which has a process. */
static void run_stream(const uint8_t *data, size_t size) {
    static struct vmm_plan plan;
    struct session exec = {.id = "abc", .is_exec = true, .stdin_open = true, .stdin_once = true,
                           .in = -1, .out = -1, .err = -1, .slave = -1, .pidfd = -1};
    struct shim s = {.phase = PHASE_RUNNING, .execs = &exec, .listen_fd = -1, .stop_at = NEVER,
                     .driver = &local_driver, .report_fd = -1,
                     .config = {.id = "f", .run_dir = "/nowhere", .state_path = "/nowhere/state",
                                .boot_id = "b", .stop_signal = 15},
                     .state = {.status = "running"}};
    int pair[2];
    s.workload = exec;
    s.workload.is_exec = false;
    s.launcher = vmm_launcher_new(&plan);
    if (!s.launcher || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        abort();
    connect_client(&s, pair[0]);
    for (size_t at = 0, step; at < size && s.clients && !s.clients->dead; at += step) {
        step = size - at < 700 ? size - at : 700; /* frames in parts, too */
        if (buffer_append(&s.clients->in, data + at, step))
            abort();
        clients_process(&s);
        drain(pair[1]);
    }
    if (s.clients)
        s.clients->dead = true;
    clients_sweep(&s, now_ms());
    end_session(&s.workload);
    end_session(&exec);
    vmm_launcher_free(s.launcher);
    close(pair[1]);
}

static void feed_guest(struct shim *s, const uint8_t *data, size_t size, int far) {
    struct guest *g = s->guest;
    for (size_t at = 0, step; at < size && g->fd >= 0; at += step) {
        step = size - at < 700 ? size - at : 700;
        if (buffer_append(&g->in, data + at, step))
            abort();
        buffer_clear(&g->out);
        channel_process(s);
        guest_tick(s, now_ms());
        exec_tick(s, now_ms());
        drain(far);
    }
}

static void add_execs(struct shim *s) {
    struct vmm_error e = {0};
    for (int i = 0; i < 2; i++) {
        struct session *exec = calloc(1, sizeof *exec);
        if (!exec)
            abort();
        *exec = (struct session){.id = "abc", .is_exec = true, .stdin_open = true, .in = -1,
                                 .out = -1, .err = -1, .slave = -1, .pidfd = -1, .tty = i,
                                 .rows = 24, .columns = 80, .starting = i, .next = s->execs};
        s->execs = exec;
        if (flow_open(exec, (uint16_t)(i + 1), false, &e))
            abort();
        exec->flow->running = !i;
    }
}

/* A guest that runs a workload, two execs, the second asked for, and owes a client answers on channel 0. Its control
 * program is none: nothing is forked. */
static void run_guest(const uint8_t *data, size_t size) {
    struct vmm_error e = {0};
    struct guest *g = calloc(1, sizeof *g);
    struct shim s = {.phase = PHASE_RUNNING, .listen_fd = -1, .stop_at = NEVER, .report_fd = -1,
                     .restart_at = NEVER, .helper_at = NEVER, .driver = &guest_driver, .guest = g,
                     .config = {.id = "f", .run_dir = "/nowhere", .state_path = "/nowhere/state",
                                .channel_path = "/nowhere/channel", .boot_id = "b",
                                .boot_ms = 1000, .answer_ms = 1000},
                     .state = {.status = "running"}};
    int pair[2], client[2];
    if (!g || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, client))
        abort();
    g->listen_fd = g->pidfd = g->job.out = g->job.err = -1;
    g->at = g->kill_at = g->lost_at = g->destroy_at = g->job.at = NEVER;
    g->life = LIFE_RUNNING;
    g->fd = pair[0];
    g->synced = g->greeted = true;
    s.workload = (struct session){.in = -1, .out = -1, .err = -1, .slave = -1, .pidfd = -1, .pid = 5};
    struct client *c = connect_client(&s, client[0]);
    add_execs(&s);
    if (flow_open(&s.workload, 0, false, &e))
        abort();
    s.workload.flow->running = true;
    struct asker asker = client_asks(c, 0), exec_asker = client_asks(c, 2);
    ask_guest(&s, VMM_EXEC, 2, exec_asker, s.execs, "", 0, &e);
    for (const uint8_t *type = (const uint8_t[]){VMM_STATS, VMM_TOP, VMM_SIGNAL, VMM_FILE, 0}; *type; type++)
        ask_guest(&s, *type, 0, asker, NULL, "", 0, &e);
    feed_guest(&s, data, size, pair[1]);
    drain(client[1]);
    c->dead = true;
    clients_sweep(&s, now_ms());
    g->life = LIFE_OFF;
    channel_close(g);
    asks_fail(&s, "the end");
    for (struct session *x = s.execs; x; x = x->next) {
        x->ended = true;
        streams_close(x);
    }
    exec_tick(&s, now_ms());
    flow_free(&s.workload);
    end_session(&s.workload);
    free(g);
    close(pair[1]);
    close(client[1]);
}

static void run(const uint8_t *data, size_t size) {
    if (data[0] == 'P')
        run_plan(data + 1, size - 1);
    else if (data[0] == 'G')
        run_guest(data + 1, size - 1);
    else
        run_stream(data + 1, size - 1);
}

int main(int argc, char **argv) {
    plan_fd = memfd_create("plan", MFD_CLOEXEC);
    return fuzz(argc, argv, run);
}
