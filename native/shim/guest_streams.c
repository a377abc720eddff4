/* A guest's session: bytes between the session's pipes and the guest's channel, with credits. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

SCRATCH uint8_t guest_scratch[VMM_FRAME_MAX];

/* With a terminal there is one output, and no terminal here: it is in the guest. */
static int open_pipes(struct session *session, int ends[3], bool detached, struct vmm_error *e)
{
    struct vmm_stdio io;
    bool tty = session->tty;
    session->tty = false;
    int failed = streams_open(session, &io, ends, 0, detached, e);
    session->tty = tty;
    if (tty) {
        vmm_close(&session->err);
        vmm_close(&ends[2]);
    }
    return failed;
}

int flow_open(struct session *session, uint16_t channel, bool detached, struct vmm_error *e)
{
    struct flow *f = calloc(1, sizeof *f);
    if (!f)
        return vmm_fail(e, 125, ENOMEM, "standard streams");
    flow_free(session);
    session->flow = f;
    f->channel = channel;
    f->credit = CREDIT_FULL;
    if (open_pipes(session, f->fd, detached, e)) {
        flow_free(session);
        streams_close(session);
        return -1;
    }
    for (int i = 0; i < 3; i++)
        if (f->fd[i] >= 0)
            fcntl(f->fd[i], F_SETFL, O_NONBLOCK | (i ? O_WRONLY : O_RDONLY));
    if (!session->stdin_open)
        vmm_close(&f->fd[0]);
    return 0;
}

void flow_free(struct session *session)
{
    struct flow *f = session->flow;
    if (!f)
        return;
    for (int i = 0; i < 3; i++)
        vmm_close(&f->fd[i]);
    buffer_clear(&f->pending[0]);
    buffer_clear(&f->pending[1]);
    free(f);
    session->flow = NULL;
}

/* ---- output ---- */

static void give_back(struct guest *g, struct flow *f, size_t size)
{
    char text[24];
    f->returned += size;
    if (f->returned < CREDIT_BACK)
        return;
    snprintf(text, sizeof text, "%zu", f->returned);
    channel_args(g, f->channel, VMM_CREDIT, 1, (const char *[]){text});
    f->owed -= f->returned < f->owed ? f->returned : f->owed;
    f->returned = 0;
}

/* What can be written now; nobody may read any more, then it is dropped. Returns the bytes done with. */
static size_t pass_on(int *fd, const uint8_t *data, size_t size)
{
    size_t done = 0;
    while (*fd >= 0 && done < size) {
        ssize_t n = write(*fd, data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return done;
        if (n < 0)
            vmm_close(fd);
        else
            done += (size_t)n;
    }
    return size;
}

void flow_pump(struct guest *g, struct session *session)
{
    struct flow *f = session->flow;
    for (int i = 0; f && i < 2; i++) {
        struct buffer *b = &f->pending[i];
        size_t done = b->size ? pass_on(&f->fd[1 + i], buffer_head(b), b->size) : 0;
        if (done) {
            buffer_consume(b, done);
            give_back(g, f, done);
        }
        if (f->ended[i] && !b->size)
            vmm_close(&f->fd[1 + i]);
    }
}

int flow_received(struct guest *g, struct session *session, int stream, const uint8_t *data,
                  size_t size)
{
    struct flow *f = session->flow;
    if (!f->running || f->exited || f->ended[stream] || (stream && session->tty) ||
        f->owed + size > CREDIT_FULL || f->pending[stream].size + size > 2 * CREDIT_FULL)
        return -1;
    f->owed += size;
    f->ended[stream] = size == 0;
    size_t done = f->pending[stream].size ? 0 : pass_on(&f->fd[1 + stream], data, size);
    if (buffer_append(&f->pending[stream], data + done, size - done))
        return -1;
    if (done)
        give_back(g, f, done);
    if (f->ended[stream])
        flow_pump(g, session);
    return 0;
}

bool flow_idle(const struct session *session)
{
    return !session->flow->pending[0].size && !session->flow->pending[1].size;
}

/* ---- input ---- */

static void in_ready(struct shim *s, void *object, short events)
{
    struct session *session = object;
    struct flow *f = session->flow;
    (void)events;
    if (!f || f->fd[0] < 0)
        return;
    ssize_t n = read(f->fd[0], guest_scratch, f->credit < CHUNK ? f->credit : CHUNK);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0)
        vmm_close(&f->fd[0]);
    if (n > 0)
        f->credit -= (size_t)n;
    channel_frame(s->guest, f->channel, VMM_STDIN, guest_scratch, n > 0 ? (size_t)n : 0);
}

int flow_credit(struct session *session, int64_t bytes)
{
    struct flow *f = session->flow;
    if (bytes < 1 || (uint64_t)bytes > CREDIT_FULL - f->credit)
        return -1;
    f->credit += (size_t)bytes;
    return 0;
}

static void out_ready(struct shim *s, void *object, short events)
{
    (void)events;
    flow_pump(s->guest, object);
}

void flow_watch(struct shim *s, struct session *session)
{
    const struct flow *f = session->flow;
    if (!f)
        return;
    if (f->fd[0] >= 0 && f->running && !f->exited && f->credit && s->guest->greeted &&
        !channel_busy(s->guest))
        watch(f->fd[0], POLLIN, in_ready, session);
    for (int i = 0; i < 2; i++)
        if (f->fd[1 + i] >= 0 && f->pending[i].size)
            watch(f->fd[1 + i], POLLOUT, out_ready, session);
}

/* A new connection: what was under way on the former one is gone. */
void flow_reset(struct session *session)
{
    struct flow *f = session->flow;
    if (!f)
        return;
    f->owed = f->returned = 0;
    f->credit = CREDIT_FULL;
    f->resizing = f->ended[0] = f->ended[1] = false; /* the ends are told again */
}
