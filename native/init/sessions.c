/* The streams of the workload and of execs, with their credit. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "sys.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

void session_init(struct session *s, uint16_t channel) {
    *s = (struct session){.channel = channel, .pidfd = -1, .in = -1, .out = -1, .err = -1, .slave = -1,
                          .credit = CREDIT, .window = CREDIT};
}

struct session *session_find(struct guest *g, uint16_t channel) {
    if (channel == 0)
        return &g->workload;
    for (struct session *s = g->execs; s; s = s->next)
        if (s->channel == channel)
            return s;
    return NULL;
}

struct session *session_find_exec(struct guest *g, const char *id) {
    for (struct session *s = g->execs; s; s = s->next)
        if (!strcmp(s->id, id))
            return s;
    return NULL;
}

/* ---- pipes and terminals ---- */

static int open_pipe(int *ours, int *theirs, bool we_read) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    *ours = ends[we_read ? 0 : 1];
    *theirs = ends[we_read ? 1 : 0];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    return 0;
}

int session_pipes(struct session *s, struct vmm_stdio *io, int ends[3], struct vmm_error *e) {
    ends[0] = ends[1] = ends[2] = -1;
    *io = (struct vmm_stdio){.fd = {-1, -1, -1}, .tty = s->tty, .rows = s->rows,
                             .columns = s->columns, .master = -1};
    if (s->tty)
        return 0;
    if ((s->stdin_open && open_pipe(&s->in, &ends[0], false) < 0) ||
        (!s->detached && (open_pipe(&s->out, &ends[1], true) < 0 ||
                          open_pipe(&s->err, &ends[2], true) < 0)))
        return vmm_fail(e, 125, errno, "standard streams");
    for (int i = 0; i < 3; i++)
        io->fd[i] = ends[i];
    return 0;
}

/* The terminal's other end is kept: the process may close it all and open it again. */
void session_adopt(struct session *s, const struct vmm_stdio *io, int ends[3]) {
    for (int i = 0; i < 3; i++)
        vmm_close(&ends[i]);
    if (io->master < 0)
        return;
    s->out = io->master;
    fcntl(s->out, F_SETFD, FD_CLOEXEC);
    fcntl(s->out, F_SETFL, O_NONBLOCK | O_RDWR);
    s->in = fcntl(s->out, F_DUPFD_CLOEXEC, LAUNCHER);
    s->slave = ioctl(s->out, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

void session_close(struct session *s) {
    vmm_close(&s->in);
    vmm_close(&s->out);
    vmm_close(&s->err);
    vmm_close(&s->slave);
    vmm_close(&s->pidfd);
    buffer_clear(&s->input);
}

void session_resize(struct session *s, unsigned short rows, unsigned short columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    s->rows = rows;
    s->columns = columns;
    if (s->tty && s->out >= 0)
        ioctl(s->out, TIOCSWINSZ, &size);
}

/* ---- standard input ---- */

static void give_back(struct guest *g, struct session *s, size_t size) {
    char text[32];
    size_t stale = size < s->stale ? size : s->stale;
    s->stale -= stale;
    s->owed += (int64_t)(size - stale);
    if (s->owed < CREDIT_STEP)
        return;
    snprintf(text, sizeof text, "%lld", (long long)s->owed);
    channel_answer(g, s->channel, VMM_CREDIT, 1, (const char *[]){text});
    s->window += s->owed;
    s->owed = 0;
}

static void drop_input(struct guest *g, struct session *s) {
    give_back(g, s, s->input.size);
    buffer_clear(&s->input);
}

void session_write(struct guest *g, struct session *s) {
    while (s->in >= 0 && s->input.size) {
        ssize_t done = write(s->in, buffer_head(&s->input), s->input.size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EAGAIN)
            return;
        if (done < 0) { /* nobody will read it any more */
            vmm_close(&s->in);
            break;
        }
        buffer_consume(&s->input, (size_t)done);
        give_back(g, s, (size_t)done);
    }
    if (s->in < 0 && s->pid)
        drop_input(g, s);
    else if (s->input_eof && !s->tty)
        vmm_close(&s->in);
}

/* Before the workload runs its input waits; where nobody takes it, it is dropped. */
void session_input(struct guest *g, struct session *s, const uint8_t *data, size_t size) {
    bool waits = s == &g->workload && g->state == IDLE;
    if ((int64_t)size > s->window || s->input.size + size > INPUT_MAX) {
        channel_lost(g, "more standard input than there is credit for");
        return;
    }
    s->window -= (int64_t)size;
    if (size == 0)
        s->input_eof = true;
    if ((s->in < 0 && !waits) || buffer_append(&s->input, data, size) < 0)
        give_back(g, s, size);
    else if (!waits)
        session_write(g, s);
}

/* ---- output ---- */

static void tell_end(struct guest *g, struct session *s, bool err) {
    bool *told = err ? &s->err_told : &s->out_told;
    vmm_close(err ? &s->err : &s->out);
    if (*told || (err && s->tty))
        return;
    *told = true;
    channel_send(g, s->channel, err ? VMM_STDERR : VMM_STDOUT, NULL, 0);
}

bool session_reads(const struct guest *g, const struct session *s) {
    return s->credit > 0 && channel_takes_output(g);
}

void session_read(struct guest *g, struct session *s, bool err) {
    static uint8_t chunk[CHUNK];
    int fd = err ? s->err : s->out;
    if (fd < 0 || !session_reads(g, s))
        return;
    size_t most = OUTPUT_HIGH - g->channel.out.size; /* so that what is queued is within a new host's credit */
    most = most < CHUNK ? most : CHUNK;
    ssize_t got = read(fd, chunk, s->credit < (int64_t)most ? (size_t)s->credit : most);
    if (got > 0) {
        s->credit -= got;
        channel_send(g, s->channel, err ? VMM_STDERR : VMM_STDOUT, chunk, (size_t)got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) { /* EIO: a terminal without a slave */
        tell_end(g, s, err);
    }
}

/* ---- the end ---- */

static void ended(struct guest *g, struct session *s, int status) {
    s->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    s->code = s->signal ? 128 + s->signal : WEXITSTATUS(status);
    s->oom = s == &g->workload && vmm_launch_oom(g->launcher);
    s->ended = true;
    s->drain_until = now_ms() + DRAIN_MS;
    vmm_close(&s->in);
    vmm_close(&s->slave);
    drop_input(g, s);
}

void session_exited(struct guest *g, pid_t pid, int status) {
    if (g->workload.pid == pid && !g->workload.ended)
        ended(g, &g->workload, status);
    for (struct session *s = g->execs; s; s = s->next)
        if (s->pid == pid && !s->ended)
            ended(g, s, status);
}

static bool readable(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return fd >= 0 && poll(&p, 1, 0) > 0;
}

/* Whether all that the ended process wrote was read. What an exec left running may hold a pipe for as long as it
 * likes, so there an empty pipe is enough; a terminal tells by itself. */
static bool drained(const struct guest *g, const struct session *s, int64_t now) {
    if (s->out < 0 && s->err < 0)
        return true;
    if (!session_reads(g, s))
        return false;
    return now >= s->drain_until ||
           (s->channel && !s->tty && !readable(s->out) && !readable(s->err));
}

static void finish(struct guest *g, struct session *s) {
    char code[16], signal[16];
    tell_end(g, s, false);
    tell_end(g, s, true);
    snprintf(code, sizeof code, "%d", s->code);
    snprintf(signal, sizeof signal, "%d", s->signal);
    channel_answer(g, s->channel, VMM_EXIT, 3, (const char *[]){code, signal, s->oom ? "1" : "0"});
    session_close(s);
}

/* True once it is over. */
static bool tick(struct guest *g, struct session *s, int64_t now, int64_t *next) {
    if (!s->ended)
        return false;
    if (!session_reads(g, s) && (s->out >= 0 || s->err >= 0))
        s->drain_until = now + DRAIN_MS; /* the host is slow, not the holder of the stream */
    if (!drained(g, s, now)) {
        if (s->drain_until < *next)
            *next = s->drain_until;
        return false;
    }
    finish(g, s);
    return true;
}

static void tick_execs(struct guest *g, int64_t now, int64_t *next) {
    struct session **link = &g->execs;
    while (*link) {
        struct session *s = *link;
        if (tick(g, s, now, next)) {
            *link = s->next;
            free(s);
        } else {
            link = &s->next;
        }
    }
}

/* The workload's end comes last: its execs end with it. */
int64_t session_tick(struct guest *g, int64_t now) {
    int64_t next = NEVER;
    struct session *s = &g->workload;
    tick_execs(g, now, &next);
    if (g->state != RUNNING || !s->ended || !channel_takes_output(g))
        return next;
    if (g->execs && now < s->drain_until)
        return s->drain_until < next ? s->drain_until : next;
    if (tick(g, s, now, &next)) {
        g->state = EXITED;
        g->poweroff_at = now + SHUTDOWN_MS;
    }
    return next;
}

void session_kill(struct session *s) {
    if (!s->ended)
        sys_pidfd_signal(s->pidfd, SIGKILL);
    session_close(s);
    free(s);
}

/* ---- a new conversation ---- */

static void begin_again(struct session *s) {
    s->credit = s->window = CREDIT;
    s->owed = 0;
    s->stale = s->input.size;
    s->out_told = s->err_told = false;
}

void session_tell_ends(struct guest *g) {
    struct session *s = &g->workload;
    if (g->state != RUNNING)
        return;
    if (s->out < 0)
        tell_end(g, s, false);
    if (s->err < 0)
        tell_end(g, s, true);
}

/* Execs of the former conversation belong to nobody any more. */
void session_anew(struct guest *g) {
    begin_again(&g->workload);
    while (g->execs) {
        struct session *s = g->execs;
        g->execs = s->next;
        session_kill(s);
    }
}
