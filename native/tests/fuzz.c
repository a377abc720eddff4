/* A coverage-guided fuzzer of what reads bytes: launch plans (records, sections, shim and host operations) and a
 * client's connection (frames, requests), a guest's channel. `fuzz SECONDS SEED…`; a seed's first byte is `P` (plan),
 * `S` (stream of a client) or `G` (stream of a guest).
 * Built with -fsanitize=address,undefined and -fsanitize-coverage=trace-pc (gcc needs no more than that). An input
 * that breaks something is written to `fuzz-crash` in the working directory.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../lib/internal.h"
#include "../shim/guest.h"
#include "../shim/shim.h"

enum { LARGEST = 64 << 10, CORPUS_MAX = 4096, EDGES = 1 << 16, HANG_S = 10 };

struct input {
    uint8_t *data;
    size_t size;
};

static struct input corpus[CORPUS_MAX];
static size_t corpus_size;
static uint8_t current[LARGEST];
static size_t current_size;
static uint8_t seen[EDGES];
static uintptr_t last_edge;
static bool discovered;
static uint64_t random_state = 88172645463325252u;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_set_death_callback(void (*callback)(void));
const char *__asan_default_options(void);

__attribute__((no_sanitize_coverage)) const char *__asan_default_options(void) {
    return "abort_on_error=1:quarantine_size_mb=16";
}

__attribute__((no_sanitize_coverage, no_sanitize("address"))) void __sanitizer_cov_trace_pc(void) {
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    uintptr_t edge = (here ^ last_edge >> 1) % EDGES;
    last_edge = here;
    discovered |= !seen[edge];
    seen[edge] = 1;
}

/* ---- what is fuzzed ---- */

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

static void run_current(void) {
    uint8_t *copy = malloc(current_size); /* exact, so that the sanitizer sees a byte too far */
    if (!copy)
        abort();
    memcpy(copy, current, current_size);
    last_edge = 0;
    discovered = false;
    if (current_size && copy[0] == 'P')
        run_plan(copy + 1, current_size - 1);
    else if (current_size && copy[0] == 'G')
        run_guest(copy + 1, current_size - 1);
    else if (current_size)
        run_stream(copy + 1, current_size - 1);
    free(copy);
}

/* ---- the driver ---- */

static uint32_t pick(size_t below) {
    random_state ^= random_state << 13; /* xorshift64 */
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state % (below ? below : 1));
}

static void keep_current(void) {
    if (corpus_size == CORPUS_MAX)
        return;
    uint8_t *copy = malloc(current_size ? current_size : 1);
    if (!copy)
        abort();
    memcpy(copy, current, current_size);
    corpus[corpus_size++] = (struct input){copy, current_size};
}

static void put_number(void) {
    static const uint32_t odd[] = {0,      1,      2,       4,          255,        4095,
                                   4096,   4097,   65535,   65536,      65537,      0x7fffffff,
                                   1 << 24, 64,    INT32_MAX, UINT32_MAX, 0x80000000, 10};
    uint32_t value = odd[pick(sizeof odd / sizeof *odd)];
    if (current_size > 5)
        memcpy(current + 1 + pick(current_size - 4), &value, sizeof value);
}

static void erase(void) {
    size_t from = 1 + pick(current_size - 1), size = 1 + pick(pick(8) ? 16 : current_size - from);
    if (from + size > current_size)
        return;
    memmove(current + from, current + from + size, current_size - from - size);
    current_size -= size;
}

/* A piece of another input. */
static void take_piece(void) {
    const struct input *other = &corpus[pick(corpus_size)];
    size_t from = pick(other->size), size = 1 + pick(pick(4) ? 64 : other->size - from);
    size_t at = 1 + pick(current_size - 1);
    if (from + size > other->size || current_size + size > LARGEST)
        return;
    memmove(current + at + size, current + at, current_size - at);
    memcpy(current + at, other->data + from, size);
    current_size += size;
}

static void mutate(void) {
    if (current_size < 2)
        return;
    switch (pick(6)) {
    case 0: current[1 + pick(current_size - 1)] ^= (uint8_t)(1u << pick(8)); break;
    case 1: current[1 + pick(current_size - 1)] = (uint8_t)pick(256); break;
    case 2: put_number(); break;
    case 3: erase(); break;
    case 4: current[1 + pick(current_size - 1)] = (uint8_t)("0123456789-/=, a"[pick(16)]); break;
    default: take_piece(); break;
    }
}

static void save_current(void) {
    int fd = open("fuzz-crash", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && write(fd, current, current_size) == (ssize_t)current_size)
        fputs("fuzz: the input is in fuzz-crash\n", stderr);
}

static void hung(int signal) {
    (void)signal;
    save_current();
    fputs("fuzz: an input took too long\n", stderr);
    _exit(1);
}

static void load(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, current, sizeof current);
    if (size < 2) {
        fprintf(stderr, "fuzz: %s is no seed\n", path);
        exit(1);
    }
    close(fd);
    current_size = (size_t)size;
    run_current();
    keep_current();
}

static size_t count_edges(void) {
    size_t edges = 0;
    for (size_t i = 0; i < EDGES; i++)
        edges += seen[i];
    return edges;
}

static void once(void) {
    const struct input *from = &corpus[pick(corpus_size)];
    memcpy(current, from->data, from->size);
    current_size = from->size;
    for (uint32_t i = 0, count = 1 + pick(6); i < count; i++)
        mutate();
    run_current();
    if (discovered)
        keep_current();
}

int main(int argc, char **argv) {
    unsigned long executions = 0;
    if (argc < 3) {
        fputs("usage: fuzz SECONDS SEED…\n", stderr);
        return 2;
    }
    __sanitizer_set_death_callback(save_current);
    signal(SIGALRM, hung);
    signal(SIGPIPE, SIG_IGN);
    plan_fd = memfd_create("plan", MFD_CLOEXEC);
    int64_t end = now_ms() + 1000 * strtoll(argv[1], NULL, 10);
    for (int i = 2; i < argc; i++)
        load(argv[i]);
    size_t seeds = corpus_size;
    for (; now_ms() < end; executions++) {
        if (executions % 256 == 0)
            alarm(HANG_S);
        once();
    }
    printf("fuzz: %lu executions, %zu seeds, %zu inputs kept, %zu edges\n", executions, seeds,
           corpus_size, count_edges());
    for (size_t i = 0; i < corpus_size; i++)
        free(corpus[i].data);
    puts("fuzz: run, passed");
    return 0;
}
