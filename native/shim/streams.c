/* The standard streams of a process: pipes or a terminal's master, never blocking. */
#include "guest.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

static SCRATCH uint8_t chunk[CHUNK];

/* A pipe whose `ours` end does not block. Its owner is the process's user, which may then open
 * /dev/stdout again, as it may under other container managers. */
static int open_pipe(int *ours, int *theirs, bool we_read, uid_t uid)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -1;
    *ours = ends[we_read ? 0 : 1];
    *theirs = ends[we_read ? 1 : 0];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    if (uid && fchown(*ours, uid, (gid_t)-1))
        return 0; /* without that right the process can still use what it inherits */
    return 0;
}

static int open_null(int *fd)
{
    *fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    return *fd < 0 ? -1 : 0;
}

static int open_outputs(struct session *session, int ends[3], uid_t uid, bool detached)
{
    if (detached)
        return open_null(&ends[1]) || open_null(&ends[2]) ? -1 : 0;
    return open_pipe(&session->out, &ends[1], true, uid) ||
                   open_pipe(&session->err, &ends[2], true, uid)
               ? -1
               : 0;
}

/* Prepare `io` for vmm_launch(); `child_ends` are closed by streams_adopt() once it returned. */
int streams_open(struct session *session, struct vmm_stdio *io, int child_ends[3], uid_t uid,
                 bool detached, struct vmm_error *e)
{
    session->in = session->out = session->err = session->slave = -1;
    child_ends[0] = child_ends[1] = child_ends[2] = -1;
    *io = (struct vmm_stdio){.fd = {-1, -1, -1}, .tty = session->tty, .rows = session->rows,
                             .columns = session->columns, .master = -1};
    if (session->tty)
        return 0;
    int failed = session->stdin_open ? open_pipe(&session->in, &child_ends[0], false, uid)
                                     : open_null(&child_ends[0]);
    if (failed || open_outputs(session, child_ends, uid, detached))
        return vmm_fail(e, 125, errno, "standard streams");
    for (int i = 0; i < 3; i++)
        io->fd[i] = child_ends[i];
    return 0;
}

void streams_adopt(struct session *session, const struct vmm_stdio *io, int child_ends[3])
{
    for (int i = 0; i < 3; i++)
        vmm_close(&child_ends[i]);
    if (!session->tty || io->master < 0)
        return;
    session->out = io->master;
    fcntl(session->out, F_SETFD, FD_CLOEXEC);
    fcntl(session->out, F_SETFL, O_NONBLOCK | O_RDWR);
    session->in = fcntl(session->out, F_DUPFD_CLOEXEC, 3);
    session->slave = platform_tty_slave(session->out);
}

void streams_close(struct session *session)
{
    vmm_close(&session->in);
    vmm_close(&session->out);
    vmm_close(&session->err);
    vmm_close(&session->slave);
    buffer_clear(&session->input);
}

static void end_output(struct shim *s, struct session *session, int *fd, int stream)
{
    vmm_close(fd);
    if (!session->is_exec)
        log_end_stream(&s->log, stream);
}

/* Read once, so that no stream starves another. A terminal without a slave reads EIO. */
static void forward(struct shim *s, struct session *session, int *fd, int stream)
{
    if (*fd < 0)
        return;
    ssize_t n = read(*fd, chunk, sizeof chunk);
    if (n > 0) {
        if (!session->is_exec)
            log_write(&s->log, stream, chunk, (size_t)n);
        health_output(s, session, chunk, (size_t)n);
        session_output(s, session, stream ? VMM_STDERR : VMM_STDOUT, chunk, (size_t)n);
        return;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    end_output(s, session, fd, stream);
}

static void out_ready(struct shim *s, void *object, short events)
{
    struct session *session = object;
    (void)events;
    forward(s, session, &session->out, 0);
}

static void err_ready(struct shim *s, void *object, short events)
{
    struct session *session = object;
    (void)events;
    forward(s, session, &session->err, 1);
}

static void write_input(struct session *session)
{
    while (session->in >= 0 && session->input.size) {
        ssize_t n = write(session->in, buffer_head(&session->input), session->input.size);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) { /* the process closed its standard input */
            vmm_close(&session->in);
            buffer_clear(&session->input);
            return;
        }
        buffer_consume(&session->input, (size_t)n);
    }
    if (session->input_eof && !session->tty)
        vmm_close(&session->in);
}

static void in_ready(struct shim *s, void *object, short events)
{
    (void)s;
    (void)events;
    write_input(object);
}

void streams_watch(struct shim *s, struct session *session)
{
    if (session->in >= 0 && session->input.size)
        watch(session->in, POLLOUT, in_ready, session);
    if (session->out < 0 && session->err < 0)
        return;
    if (session_congested(s, session)) {
        if (session->ended)
            session->drain_until = now_ms() + DRAIN_MS;
        return;
    }
    if (session->out >= 0)
        watch(session->out, POLLIN, out_ready, session);
    if (session->err >= 0)
        watch(session->err, POLLIN, err_ready, session);
}

/* Bytes for the process; before it runs they wait, after it ended they are dropped. */
void streams_input(struct session *session, const uint8_t *data, size_t size)
{
    bool closed = session->pid > 0 && session->in < 0;
    if (!session->stdin_open || session->input_eof || session->ended || closed)
        return;
    if (buffer_append(&session->input, data, size) == 0)
        write_input(session);
}

void streams_input_eof(struct session *session)
{
    if (session->tty || !session->stdin_once)
        return;
    session->input_eof = true;
    if (session->pid > 0)
        write_input(session);
}

bool streams_input_full(const struct session *session)
{
    return session->input.size >= INPUT_LIMIT;
}

/* The process ended: what it wrote is still to be read. */
void streams_end(struct session *session, int64_t now)
{
    session->ended = true;
    session->drain_until = now + DRAIN_MS;
    vmm_close(&session->in);
    vmm_close(&session->slave);
    buffer_clear(&session->input);
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return fd >= 0 && poll(&p, 1, 0) > 0;
}

/* Whether all that the ended process wrote was read. What it left running in an exec may hold a
 * pipe open for ever, so there an empty pipe is enough; a terminal tells by itself. */
bool streams_drained(const struct session *session, int64_t now)
{
    if (session->out < 0 && session->err < 0)
        return true;
    if (now >= session->drain_until)
        return true;
    return session->is_exec && !session->tty && !readable(session->out) && !readable(session->err);
}

/* Nothing is under way: the read buffer's memory may go. */
void streams_release(void)
{
    platform_release(chunk, sizeof chunk);
    platform_release(guest_scratch, sizeof guest_scratch);
}

void streams_resize(struct session *session, unsigned short rows, unsigned short columns)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    session->rows = rows;
    session->columns = columns;
    if (session->tty && session->out >= 0)
        ioctl(session->out, TIOCSWINSZ, &size);
}
