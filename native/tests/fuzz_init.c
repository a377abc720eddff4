/* A coverage-guided fuzzer of vmm-init as a guest: its own loop, with everything around it played. `fuzz-init
 * SECONDS SEED…`; a seed is `I` and actions, each `u8 kind, u16 size, bytes` (fuzz_seeds.py writes some): what the
 * host sends, when it reads and hangs up, what processes write, read and end with, how time goes by.
 *
 * Nothing is started, mounted or switched off: processes are numbers with the real ends of their pipes and terminals,
 * time is a number, and no system call that lib/sys.h makes by number is made. Afterwards a new host must be
 * able to take over, to see everything end, and to switch the guest off; nothing may be left over.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static int world_signals(void);
static int world_poll(struct pollfd *fds, nfds_t count, int timeout);
static pid_t world_waitpid(int *status);
static void world_clock(struct timespec *out);

/* The loop itself, with these instead of what would touch this process. */
#define signalfd(fd, set, flags) world_signals()
#define sigprocmask(how, set, old) ((void)0)
#define poll(fds, count, timeout) world_poll(fds, count, timeout)
#define waitpid(pid, status, flags) world_waitpid(status)
#define clock_gettime(clock, out) world_clock(out)
#include "../init/guest.c"
#undef poll

#include "fuzz_init.h"

enum {
    PROCESSES_MAX = 512,
    SENT_MAX = 1 << 20,   /* by the host, in one input, repetitions included */
    SPINS_MAX = 20000,    /* of the loop while nothing happens outside */
    ATTEMPTS_MAX = 6,     /* of a new host to be heard */
    PATIENCE = 40,        /* seconds for all to end */
    ALLOCATED_MAX = 48 << 20,
    HURRY = 0x80,         /* of an action: before the guest has done what it could */
};

size_t __sanitizer_get_current_allocated_bytes(void);

enum kind { SEND, REPEAT, WRITE, READ, CLOSE, END, TIME, DEAF, HEAR, HANG_UP, CONNECT, REFUSE, KINDS };

struct process {
    pid_t pid;
    int pidfd, fd[3]; /* its ends; `pidfd` is the guest's */
    int letter[2];
    bool alive, reaped;
    int status;
};

static struct {
    struct guest *g;
    const uint8_t *data, *last; /* of the input; what was sent last */
    size_t size, last_size, sent, allocated;
    int64_t now;
    int far, signals; /* the host's end of the channel, -1 when it hung up */
    bool deaf;
    int refusals, code; /* of the next launches: error code */
    unsigned spins;
    struct process processes[PROCESSES_MAX];
    size_t count;
    enum { PLAY, CALL, AWAIT, FINISH, OVER } phase;
    int attempts, patience;
    uint8_t marker[MARKER];
} w;

/* ---- processes ---- */

static struct process *workload(void) {
    return w.count ? &w.processes[0] : NULL;
}

static void end_process(struct process *p, int status, bool held) {
    if (!p->alive)
        return;
    p->alive = false;
    p->status = status;
    for (int i = held ? 3 : 0; i < 3; i++)
        vmm_close(&p->fd[i]);
    (void)!write(w.signals, &(uint64_t){1}, sizeof(uint64_t));
}

/* With the workload's first process its namespace ends. */
static void end_with_others(struct process *p, int status, bool held) {
    end_process(p, status, held);
    for (size_t i = 1; p->pid == w.g->workload.pid && i < w.count; i++)
        end_process(&w.processes[i], SIGKILL, held);
}

static pid_t world_waitpid(int *status) {
    for (size_t i = 0; i < w.count; i++) {
        struct process *p = &w.processes[i];
        if (p->alive || p->reaped)
            continue;
        p->reaped = true;
        *status = p->status;
        return p->pid;
    }
    errno = ECHILD;
    return -1;
}

static int open_terminal(struct process *p, struct vmm_stdio *io) {
    io->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (io->master < 0 || unlockpt(io->master) < 0)
        return -1;
    p->fd[0] = ioctl(io->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    p->fd[1] = fcntl(p->fd[0], F_DUPFD_CLOEXEC, 3);
    return p->fd[1] < 0 ? -1 : 0;
}

static void take_ends(struct process *p, const struct vmm_stdio *io) {
    for (int i = 0; i < 3; i++) {
        p->fd[i] = io->fd[i] < 0 ? -1 : fcntl(io->fd[i], F_DUPFD_CLOEXEC, 3);
        if (p->fd[i] >= 0)
            fcntl(p->fd[i], F_SETFL, O_NONBLOCK | (i ? O_WRONLY : O_RDONLY));
    }
}

static int spawn(struct vmm_stdio *io, pid_t *pid, int *pidfd, struct vmm_error *e) {
    *pid = *pidfd = io->master = -1;
    if (w.refusals > 0 || w.count == PROCESSES_MAX) {
        w.refusals--;
        return vmm_fail(e, w.code, ENOENT, "refused");
    }
    struct process *p = &w.processes[w.count++];
    *p = (struct process){.pid = (pid_t)(100 + w.count), .fd = {-1, -1, -1}, .alive = true};
    if (!io->tty)
        take_ends(p, io);
    else if (open_terminal(p, io) < 0)
        abort();
    *pid = p->pid;
    *pidfd = p->pidfd = fcntl(w.signals, F_DUPFD_CLOEXEC, 3);
    return 0;
}

/* The last that got this descriptor; an earlier one's was closed. */
static int signal_process(int pidfd, int number) {
    for (size_t i = w.count; i-- > 0;) {
        struct process *p = &w.processes[i];
        if (p->pidfd != pidfd)
            continue;
        if (number == SIGKILL || number == SIGTERM)
            end_with_others(p, number, false);
        return 0;
    }
    expect(false, "signal %d to a stranger, descriptor %d", number, pidfd);
    return -1;
}

/* ---- what vmm-init calls ---- */

int __wrap_vmm_launch(struct vmm_launcher *l, struct vmm_stdio *io, pid_t *pid, int *pidfd, struct vmm_error *e);
int __wrap_vmm_launch_exec(struct vmm_launcher *l, const struct vmm_records *ops, struct vmm_stdio *io,
                           pid_t *pid, int *pidfd, struct vmm_error *e);
int __wrap_vmm_launch_kill_all(struct vmm_launcher *l, int signal);
bool __wrap_vmm_launch_oom(const struct vmm_launcher *l);
size_t __wrap_vmm_launch_stats(const struct vmm_launcher *l, struct vmm_stat out[VMM_STATS_MAX]);
int __wrap_vmm_launch_top(const struct vmm_launcher *l,
                          int (*line)(void *context, const char *text, size_t size), void *context);
int __wrap_vmm_root_make(int root, const char *path, enum vmm_kind kind, struct vmm_error *e);
int __wrap_vmm_make_directory(void *child, const struct vmm_record *record, struct vmm_error *e);
long __wrap_syscall(long number, ...);
void *__wrap_opendir(const char *path);
int __wrap_nanosleep(const struct timespec *time, struct timespec *rest);
void __wrap_session_anew(struct guest *g);
void __real_session_anew(struct guest *g);
void __wrap_request(struct guest *g, const struct vmm_frame *frame);
void __real_request(struct guest *g, const struct vmm_frame *frame);

/* What is said of the host section is read, as for a real launch. */
int __wrap_vmm_launch(struct vmm_launcher *l, struct vmm_stdio *io, pid_t *pid, int *pidfd, struct vmm_error *e) {
    static struct vmm_host host;
    *pid = *pidfd = io->master = -1;
    (void)l;
    return vmm_host_read(&w.g->plan, &host, e) < 0 ? -1 : spawn(io, pid, pidfd, e);
}

int __wrap_vmm_launch_exec(struct vmm_launcher *l, const struct vmm_records *ops, struct vmm_stdio *io,
                           pid_t *pid, int *pidfd, struct vmm_error *e) {
    expect(l && l == w.g->launcher, "an exec without a launcher");
    for (size_t i = 0; i < ops->count; i++)
        vmm_step(e, &ops->items[i]);
    return spawn(io, pid, pidfd, e);
}

int __wrap_vmm_launch_kill_all(struct vmm_launcher *l, int signal) {
    expect(l && l == w.g->launcher, "a signal without a launcher");
    return signal_process(w.g->workload.pidfd, signal);
}

bool __wrap_vmm_launch_oom(const struct vmm_launcher *l) {
    expect(l && l == w.g->launcher, "an end without a launcher");
    return w.now % 2;
}

size_t __wrap_vmm_launch_stats(const struct vmm_launcher *l, struct vmm_stat out[VMM_STATS_MAX]) {
    expect(l && l == w.g->launcher, "numbers without a launcher");
    for (size_t i = 0; i < VMM_STATS_MAX; i++)
        out[i] = (struct vmm_stat){"the_longest_name_of_all", INT64_MIN};
    return VMM_STATS_MAX;
}

/* As many processes as to be too many now and then. */
int __wrap_vmm_launch_top(const struct vmm_launcher *l,
                          int (*line)(void *context, const char *text, size_t size), void *context) {
    static char text[4000];
    expect(l && l == w.g->launcher, "a list without a launcher");
    memset(text, '1', sizeof text);
    for (size_t i = 0, count = w.now % 4 == 3 ? 1060 : 10; i < count; i++)
        if (line(context, text, sizeof text))
            return -1;
    return 0;
}

int __wrap_vmm_root_make(int root, const char *path, enum vmm_kind kind, struct vmm_error *e) {
    (void)kind;
    return *path == '/' ? fcntl(root, F_DUPFD_CLOEXEC, 3) : vmm_fail(e, 125, EINVAL, "%.100s", path);
}

int __wrap_vmm_make_directory(void *child, const struct vmm_record *r, struct vmm_error *e) {
    long long mode;
    (void)child;
    return vmm_number(r->argv[2], 8, 0, 07777, &mode, e);
}

long __wrap_syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    int first = va_arg(list, int), second = va_arg(list, int);
    va_end(list);
    if (number == SYS_pidfd_send_signal)
        return signal_process(first, second);
    expect(number == SYS_mount, "system call %ld", number);
    return 0;
}

void *__wrap_opendir(const char *path) {
    (void)path;
    errno = ENOENT;
    return NULL;
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *rest) {
    (void)rest;
    w.now += time->tv_sec * 1000 + time->tv_nsec / 1000000;
    return 0;
}

static void world_clock(struct timespec *out) {
    *out = (struct timespec){.tv_sec = w.now / 1000, .tv_nsec = w.now % 1000 * 1000000};
}

static int world_signals(void) {
    return w.signals = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void complain(const char *format, ...) {
    static char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
}

int file_replace(struct guest *g, const char *path, const void *content, size_t size, struct vmm_error *e) {
    static uint8_t copy[VMM_FRAME_MAX];
    expect(g->state == RUNNING && g->workload.pidfd >= 0, "a file of no workload");
    memcpy(copy, content, size);
    return *path == '/' ? 0 : vmm_fail(e, 1, ENOENT, "\"%.200s\" cannot be written", path);
}

void boot_unmount(struct guest *g) {
    for (; g->mount_count > 0; g->mount_count--)
        expect(g->mounts[g->mount_count - 1][0] == '/', "an unmount of what was not mounted");
}

void boot_reap(void) {
}

_Noreturn void boot_poweroff(struct guest *g) {
    (void)g;
    abort();
}

/* ---- the host ---- */

static void drain(void) {
    static uint8_t sink[1 << 16];
    ssize_t got;
    while (w.far >= 0 && (got = recv(w.far, sink, sizeof sink, MSG_DONTWAIT)) > 0)
        host_takes(w.g, sink, (size_t)got);
}

/* What was written until now was said to the former host. */
void __wrap_session_anew(struct guest *g) {
    drain();
    host_begins(g, buffer_head(&g->channel.out));
    __real_session_anew(g);
}

void __wrap_request(struct guest *g, const struct vmm_frame *frame) {
    host_asked(g, frame);
    __real_request(g, frame);
}

/* As much as the channel takes now. */
static void send_bytes(const uint8_t *data, size_t size) {
    size = size < SENT_MAX - w.sent ? size : SENT_MAX - w.sent;
    if (w.far < 0 || !size)
        return;
    ssize_t done = send(w.far, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    w.sent += done > 0 ? (size_t)done : 0;
}

static void hang_up(void) {
    vmm_close(&w.far);
    host_lost();
}

/* The guest's end of a new connection, which takes as little at once as a port. */
static int connect_channel(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        abort();
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &(int){CHUNK / 2}, sizeof(int));
    w.far = pair[1];
    return pair[0];
}

static void reconnect(void) {
    if (w.far >= 0)
        return;
    int port = connect_channel();
    if (dup3(port, w.g->channel.fd, O_CLOEXEC) < 0)
        abort();
    close(port);
}

static void send_request(uint8_t type, uint32_t count, const char *const *args) {
    uint8_t frame[VMM_FRAME_HEADER + 64];
    size_t size = count ? vmm_args_encode(frame + VMM_FRAME_HEADER, 64, count, args) : 0;
    vmm_frame_header(frame, (uint32_t)size, 0, type);
    send_bytes(frame, VMM_FRAME_HEADER + size);
}

/* ---- actions ---- */

static struct process *chosen(const uint8_t *data, size_t size) {
    return size && data[0] < w.count ? &w.processes[data[0]] : workload();
}

const uint8_t *letters(int from) {
    static uint8_t text[VMM_FRAME_MAX + LETTERS];
    for (size_t i = text[0] ? sizeof text : 0; i < sizeof text; i++)
        text[i] = (uint8_t)('a' + i % LETTERS);
    return text + from;
}

/* False: the pipe is full, or closed. */
static bool write_letters(struct process *p, int stream, size_t size) {
    int *letter = &p->letter[stream - 1];
    ssize_t done = p->fd[stream] < 0 ? -1 : write(p->fd[stream], letters(*letter), size);
    if (done > 0)
        *letter = (*letter + (int)done) % LETTERS;
    return done > 0;
}

static void process_acts(enum kind kind, const uint8_t *data, size_t size) {
    static uint8_t sink[1 << 16];
    struct process *p = chosen(data, size);
    int detail = size > 1 ? data[1] : 0, amount = size > 2 ? data[2] : 1;
    if (!p)
        return;
    if (kind == WRITE)
        for (int i = 0; i < amount && write_letters(p, detail % 2 + 1, 64 + 16 * (size_t)detail); i++)
            ;
    if (kind == READ && p->fd[0] >= 0)
        (void)!read(p->fd[0], sink, 256 * (size_t)amount);
    if (kind == CLOSE)
        vmm_close(&p->fd[detail % 3]);
    if (kind == END)
        end_with_others(p, detail % 2 ? detail % 64 : detail << 8, amount > 127);
}

static void act(enum kind kind, const uint8_t *data, size_t size) {
    switch (kind) {
    case SEND:
        send_bytes(w.last = data, w.last_size = size);
        break;
    case REPEAT:
        for (int i = 0; w.last && size && i < data[0]; i++)
            send_bytes(w.last, w.last_size);
        break;
    case TIME: w.now += size ? 8 * data[0] : 1; break;
    case DEAF: w.deaf = true; break;
    case HEAR: w.deaf = false; break;
    case HANG_UP: hang_up(); break;
    case CONNECT: reconnect(); break;
    case REFUSE:
        w.refusals = 1;
        w.code = size ? data[0] % 127 + 1 : 127;
        break;
    default: process_acts(kind, data, size);
    }
}

static void next_action(void) {
    size_t size = w.size < 3 ? 0 : (size_t)(w.data[1] | w.data[2] << 8), rest = w.size < 3 ? 0 : w.size - 3;
    if (w.size < 3) {
        w.size = 0;
        return;
    }
    const uint8_t *data = w.data;
    size = size < rest ? size : rest;
    w.data += 3 + size;
    w.size = rest - size;
    act((enum kind)((data[0] & ~HURRY) % KINDS), data + 3, size);
}

/* ---- afterwards ---- */

/* A new host, which must be heard. */
static void call(void) {
    reconnect();
    w.deaf = false;
    w.sent = 0;
    expect(w.attempts++ < ATTEMPTS_MAX, "a new host is not heard");
    memcpy(w.marker, "\0VMMSYNC\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf1\xf2\xf3\xf4\xf5\xf6\xf7", MARKER);
    w.marker[MARKER - 1] = (uint8_t)(0xf0 + w.attempts);
    send_bytes(w.marker, MARKER);
    send_request(VMM_HELLO, 1, (const char *[]){VMM_PROTOCOL});
    w.phase = AWAIT;
}

static void finish(void) {
    for (size_t i = 0; i < w.count; i++) {
        end_process(&w.processes[i], i ? SIGKILL : 3 << 8, true);
        for (int fd = 0; fd < 3; fd++)
            vmm_close(&w.processes[i].fd[fd]);
    }
    send_request(VMM_CREDIT, 1, (const char *[]){"262144"});
    w.now += 1000;
    expect(w.patience++ < PATIENCE, "the workload does not end");
    if (w.g->state == RUNNING || w.patience < 3)
        return;
    host_settled();
    expect(!w.g->execs, "an exec does not end");
    w.phase = OVER;
    if (w.g->state == EXITED)
        w.now += SHUTDOWN_MS;
    else
        send_request(VMM_SHUTDOWN, 0, NULL);
}

/* Nothing is left to do for the guest: something happens. */
static void go_on(void) {
    switch (w.phase) {
    case PLAY:
        if (w.size)
            next_action();
        else
            w.phase = CALL;
        break;
    case CALL: call(); break;
    case AWAIT:
        w.now += 2000;
        w.phase = w.g->ending ? OVER : host_talks(w.marker) ? FINISH : CALL;
        break;
    case FINISH: finish(); break;
    case OVER: expect(w.g->ending, "the guest does not end"); break;
    }
}

/* ---- the loop's waiting ---- */

static void check_session(const struct session *s) {
    expect(s->input.size <= INPUT_MAX, "too much input waits");
    expect(s->credit <= CREDIT && s->credit >= 0, "credit is %lld", (long long)s->credit);
    expect(s->window >= 0 && s->window + s->owed + (int64_t)(s->input.size - s->stale) == CREDIT,
           "of input %lld may come, %lld is owed, %zu waits", (long long)s->window, (long long)s->owed,
           s->input.size - s->stale);
}

static void check_guest(void) {
    const struct guest *g = w.g;
    size_t execs = 0;
    for (const struct session *s = g->execs; s; s = s->next, execs++)
        check_session(s);
    check_session(&g->workload);
    expect(execs <= EXECS_MAX && g->plan_bytes.size <= PLAN_MAX, "too much is kept");
    expect(g->state == IDLE || !g->plan_bytes.size, "a plan is kept in vain");
    expect(g->channel.out.size <= QUEUE_MAX + VMM_FRAME_HEADER, "too much waits to be sent");
    size_t allocated = __sanitizer_get_current_allocated_bytes();
    expect(allocated < w.allocated + ALLOCATED_MAX, "%zu bytes are allocated", allocated - w.allocated);
}

static int world_poll(struct pollfd *fds, nfds_t count, int timeout) {
    if (count == 1) /* a look at the port */
        return poll(fds, count, 0);
    check_guest();
    if (!w.deaf)
        drain();
    int ready = poll(fds, count, 0);
    bool hurry = w.phase == PLAY && w.size && (w.data[0] & HURRY);
    if (ready > 0 || timeout == 0)
        expect(w.spins++ < SPINS_MAX, "the loop spins");
    if (ready > 0 && !hurry)
        return ready;
    if (timeout != 0 || hurry) {
        w.spins = 0;
        go_on();
    }
    return poll(fds, count, 0);
}

/* ---- one input ---- */

static struct guest *begin(const uint8_t *data, size_t size) {
    w.allocated = __sanitizer_get_current_allocated_bytes();
    w.now = 1000;
    w.data = data;
    w.size = size;
    host_reset();
    return w.g = start(connect_channel(), true);
}

static void end(struct guest *g) {
    drain();
    while (g->execs) {
        struct session *s = g->execs;
        g->execs = s->next;
        session_kill(s);
    }
    session_close(&g->workload);
    vmm_launcher_free(g->launcher);
    boot_unmount(g);
    vmm_plan_free(&g->plan);
    buffer_clear(&g->plan_bytes);
    buffer_clear(&g->channel.out);
    close(g->channel.fd);
    for (size_t i = 0; i < w.count; i++)
        for (int fd = 0; fd < 3; fd++)
            vmm_close(&w.processes[i].fd[fd]);
    vmm_close(&w.far);
    vmm_close(&w.signals);
    host_reset();
    memset(g, 0, sizeof *g);
    memset(&w, 0, sizeof w);
}

static int lowest_free(void) {
    int fd = dup(2);
    close(fd);
    return fd;
}

static void run(const uint8_t *data, size_t size) {
    int before = lowest_free();
    struct guest *g = begin(data + 1, size - 1);
    serve(g);
    end(g);
    expect(lowest_free() == before, "descriptors are left open");
}

int main(int argc, char **argv) {
    return fuzz(argc, argv, run);
}
