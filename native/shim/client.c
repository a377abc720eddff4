/* Connections: bounded buffers both ways; a peer that breaks the framing or stays full is cut off. */
#include "shim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ACCEPTS_AT_ONCE = 32, ACCEPT_PAUSE_MS = 100 };

static void fail(struct client *c)
{
    c->dead = c->failed = true;
}

static bool has_room(const struct client *c, size_t size)
{
    return c->out.size + size <= OUTPUT_LIMIT;
}

/* Full for streams: what remains is kept for answers. */
bool client_full(const struct client *c)
{
    return !has_room(c, OUTPUT_RESERVE + CHUNK + VMM_FRAME_HEADER);
}

static void took(struct client *c)
{
    c->progress_at = now_ms();
}

void client_flush(struct client *c)
{
    while (!c->dead && c->out.size) {
        ssize_t n = send(c->fd, buffer_head(&c->out), c->out.size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            fail(c);
            return;
        }
        buffer_consume(&c->out, (size_t)n);
        took(c);
    }
}

/* Try to send without a copy; returns the bytes sent, 0 when others wait already. */
static size_t send_now(struct client *c, const uint8_t *header, const void *data, size_t size)
{
    struct iovec parts[2] = {{(void *)header, VMM_FRAME_HEADER}, {(void *)data, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (c->out.size)
        return 0;
    ssize_t n = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        fail(c);
    if (n > 0)
        took(c);
    return n > 0 ? (size_t)n : 0;
}

void client_frame(struct client *c, uint16_t channel, uint8_t type, const void *data, size_t size)
{
    uint8_t header[VMM_FRAME_HEADER];
    if (c->dead)
        return;
    vmm_frame_header(header, (uint32_t)size, channel, type);
    size_t sent = send_now(c, header, data, size);
    if (c->dead || sent == size + VMM_FRAME_HEADER)
        return;
    if (!has_room(c, size + VMM_FRAME_HEADER)) {
        fail(c);
        return;
    }
    size_t skip = sent > VMM_FRAME_HEADER ? sent - VMM_FRAME_HEADER : 0;
    int failed = 0;
    if (sent < VMM_FRAME_HEADER)
        failed = buffer_append(&c->out, header + sent, VMM_FRAME_HEADER - sent);
    if (failed || buffer_append(&c->out, (const uint8_t *)data + skip, size - skip))
        fail(c);
}

void client_args(struct client *c, uint16_t channel, uint8_t type, uint32_t count,
                 const char *const *strings)
{
    uint8_t payload[16 << 10];
    size_t size = vmm_args_encode(payload, sizeof payload, count, strings);
    if (size)
        client_frame(c, channel, type, payload, size);
    else
        fail(c);
}

void client_error(struct client *c, uint16_t channel, const struct vmm_error *e)
{
    char code[16];
    snprintf(code, sizeof code, "%d", e->code);
    client_args(c, channel, VMM_ERROR, 3, (const char *[]){code, e->step, e->message});
}

void client_refuse(struct client *c, uint16_t channel, const char *message)
{
    client_args(c, channel, VMM_ERROR, 3, (const char *[]){"1", "", message});
}

void client_ok(struct client *c, uint16_t channel)
{
    client_args(c, channel, VMM_OK, 0, NULL);
}

void client_ok_pid(struct client *c, uint16_t channel, int64_t pid)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)pid);
    client_args(c, channel, VMM_OK, 1, (const char *[]){text});
}

struct asker client_asks(struct client *c, uint16_t channel)
{
    return (struct asker){.client = c, .channel = channel};
}

struct client *asker_client(struct asker *asker)
{
    struct client *c = asker->client;
    if (c && asker->held)
        c->awaits = false;
    asker->client = NULL;
    return c;
}

void client_exit(struct client *c, uint16_t channel, const struct state *state)
{
    char code[24], signal[24];
    snprintf(code, sizeof code, "%lld", (long long)state->exit_code);
    snprintf(signal, sizeof signal, "%lld", (long long)state->signal);
    client_args(c, channel, VMM_EXIT, 3,
                (const char *[]){code, signal, state->oom_killed ? "1" : "0"});
}

struct attachment *client_attachment(struct client *c, uint16_t channel)
{
    for (size_t i = 0; i < c->attached; i++)
        if (c->attachments[i].channel == channel)
            return &c->attachments[i];
    return NULL;
}

/* NULL when the channel is taken or there are too many. */
struct attachment *client_attach(struct client *c, uint16_t channel, struct session *session)
{
    if (c->attached == ATTACHMENTS_MAX || client_attachment(c, channel))
        return NULL;
    struct attachment *all = realloc(c->attachments, (c->attached + 1) * sizeof *all);
    if (!all)
        return NULL;
    c->attachments = all;
    all[c->attached] = (struct attachment){.channel = channel, .session = session};
    return &all[c->attached++];
}

void client_detach(struct client *c, uint16_t channel)
{
    struct attachment *a = client_attachment(c, channel);
    if (a)
        *a = c->attachments[--c->attached];
}

static bool input_blocked(const struct client *c)
{
    for (size_t i = 0; i < c->attached; i++)
        if (c->attachments[i].in && streams_input_full(c->attachments[i].session))
            return true;
    return false;
}

static bool may_proceed(const struct client *c)
{
    return !c->dead && !c->closing && !c->awaits && !client_full(c) && !input_blocked(c);
}

static void receive(struct client *c)
{
    uint8_t *room = buffer_reserve(&c->in, CHUNK);
    if (!room) {
        fail(c);
        return;
    }
    ssize_t n = recv(c->fd, room, CHUNK, MSG_DONTWAIT);
    buffer_added(&c->in, n > 0 ? (size_t)n : 0);
    if (n == 0)
        c->dead = true;
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        fail(c);
}

static void client_ready(struct shim *s, void *object, short events)
{
    struct client *c = object;
    (void)s;
    if (events & POLLOUT)
        client_flush(c);
    if (events & POLLIN && may_proceed(c))
        receive(c);
    else if (events & (POLLERR | POLLHUP | POLLNVAL))
        fail(c);
}

void clients_watch(struct shim *s)
{
    for (struct client *c = s->clients; c; c = c->next) {
        short events = c->out.size ? POLLOUT : 0;
        if (may_proceed(c) && c->in.size < VMM_FRAME_MAX + VMM_FRAME_HEADER)
            events |= POLLIN;
        watch(c->fd, events, client_ready, c);
    }
}

static void process(struct shim *s, struct client *c)
{
    struct vmm_frame frame;
    while (may_proceed(c) && c->in.size) {
        int found = vmm_frame_decode(buffer_head(&c->in), c->in.size, &frame);
        if (found < 0)
            fail(c);
        if (found <= 0)
            return;
        request_handle(s, c, &frame);
        buffer_consume(&c->in, vmm_frame_size(&frame));
    }
}

void clients_process(struct shim *s)
{
    for (struct client *c = s->clients; c; c = c->next)
        process(s, c);
}

static bool admit(const struct shim *s, int fd)
{
    return s->client_count < CLIENTS_MAX && platform_peer_allowed(fd);
}

static void welcome(struct shim *s, int fd)
{
    struct client *c = admit(s, fd) ? calloc(1, sizeof *c) : NULL;
    if (!c) {
        vmm_close(&fd);
        return;
    }
    c->fd = fd;
    c->full_since = NEVER;
    c->progress_at = now_ms();
    c->next = s->clients;
    s->clients = c;
    s->client_count++;
    client_args(c, 0, VMM_HELLO, 2, (const char *[]){VMM_PROTOCOL, "exec-attach"});
}

void client_accept(struct shim *s, void *object, short events)
{
    (void)object;
    (void)events;
    for (int i = 0; i < ACCEPTS_AT_ONCE; i++) {
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            s->accept_at = now_ms() + ACCEPT_PAUSE_MS; /* the caller stays in the queue */
        if (fd < 0)
            return;
        welcome(s, fd);
    }
}

/* A sender of standard input is gone. */
static void leave_inputs(struct client *c)
{
    for (size_t i = 0; i < c->attached; i++)
        if (c->attachments[i].in)
            streams_input_eof(c->attachments[i].session);
}

static void client_free(struct shim *s, struct client *c)
{
    leave_inputs(c);
    s->driver->forget(s, c);
    if (c->promised && c->told && !c->failed && !c->out.size && platform_delivered(c->fd))
        s->promise_kept = true;
    vmm_close(&c->fd);
    buffer_clear(&c->in);
    buffer_clear(&c->out);
    free(c->attachments);
    free(c);
    s->client_count--;
}

/* A client that takes nothing for STALL_MS while it is full, or while all end, is cut off. */
static void check_stall(const struct shim *s, struct client *c, int64_t now)
{
    if (!client_full(c))
        c->full_since = NEVER;
    else if (c->full_since == NEVER)
        c->full_since = now;
    if (c->full_since != NEVER && now - c->full_since >= STALL_MS)
        fail(c);
    bool leaving = s->phase == PHASE_ENDING || c->closing;
    if (leaving && c->out.size && now - c->progress_at >= STALL_MS)
        fail(c);
    if (c->closing && !c->out.size)
        c->dead = true;
}

void clients_sweep(struct shim *s, int64_t now)
{
    struct client **link = &s->clients;
    while (*link) {
        struct client *c = *link;
        check_stall(s, c, now);
        if (c->dead) {
            *link = c->next;
            client_free(s, c);
        } else {
            link = &c->next;
        }
    }
}

void clients_close(struct shim *s)
{
    for (struct client *c = s->clients; c; c = c->next)
        vmm_close(&c->fd);
}

int64_t clients_deadline(const struct shim *s)
{
    int64_t at = NEVER;
    for (const struct client *c = s->clients; c; c = c->next) {
        int64_t mine = client_full(c) ? c->full_since + STALL_MS : NEVER;
        if (c->full_since == NEVER && client_full(c))
            mine = now_ms() + STALL_MS;
        if ((c->closing || s->phase == PHASE_ENDING) && c->out.size)
            mine = c->progress_at + STALL_MS;
        at = mine < at ? mine : at;
    }
    return at;
}

/* Some reader of the session's output has no room: reading on would lose bytes. */
bool session_congested(const struct shim *s, const struct session *session)
{
    for (const struct client *c = s->clients; c; c = c->next)
        for (size_t i = 0; !c->dead && i < c->attached; i++)
            if (c->attachments[i].session == session &&
                (c->attachments[i].out || c->attachments[i].err) && client_full(c))
                return true;
    return false;
}

void session_output(struct shim *s, struct session *session, uint8_t type, const uint8_t *data,
                    size_t size)
{
    for (struct client *c = s->clients; c; c = c->next)
        for (size_t i = 0; i < c->attached; i++) {
            const struct attachment *a = &c->attachments[i];
            if (a->session == session && (type == VMM_STDERR ? a->err : a->out))
                client_frame(c, a->channel, type, data, size);
        }
}

/* An exec ended: tell who is attached, and let them go. */
void session_exit(struct shim *s, struct session *session)
{
    const struct state end = {.exit_code = session->exit_code, .signal = session->signal};
    for (struct client *c = s->clients; c; c = c->next)
        for (size_t i = c->attached; i-- > 0;)
            if (c->attachments[i].session == session) {
                client_exit(c, c->attachments[i].channel, &end);
                c->attachments[i] = c->attachments[--c->attached];
            }
}
