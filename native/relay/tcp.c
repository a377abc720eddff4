/* TCP: each direction reads only while the other side takes what was read. */
#include "relay.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ACCEPT_PAUSE_MS = 100 };

/* One direction: bytes read from one side and not yet taken by the other. */
struct half {
    uint8_t *pending;
    size_t start, size;
    bool ended, shut; /* end of file read; passed on */
};

struct connection {
    struct connection *next;
    int fd[2]; /* the client, the workload */
    bool connecting, dead, reset;
    struct half half[2]; /* what side i sends */
};

static struct connection *connections;
static unsigned connection_count;
static int64_t accept_at; /* not before */

static void set_options(int fd)
{
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Close with a reset, so that the peer sees an error and no orderly end (socket(7), SO_LINGER). */
static void close_hard(int fd)
{
    struct linger now = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static void reset(struct connection *c)
{
    c->dead = c->reset = true;
}

static void store(struct connection *c, int side, const uint8_t *data, size_t size)
{
    struct half *half = &c->half[side];
    half->pending = malloc(size);
    if (!half->pending) {
        reset(c);
        return;
    }
    memcpy(half->pending, data, size);
    half->start = 0;
    half->size = size;
}

static ssize_t send_some(struct connection *c, int to, const uint8_t *data, size_t size)
{
    ssize_t n = send(c->fd[to], data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0)
        return n;
    if (errno != EAGAIN && errno != EINTR)
        reset(c);
    return 0;
}

static void pass_end(struct connection *c, int side)
{
    struct half *half = &c->half[side];
    if (!half->ended || half->size || half->shut || c->connecting)
        return;
    half->shut = true;
    shutdown(c->fd[!side], SHUT_WR);
    if (c->half[!side].shut)
        c->dead = true;
}

/* The other side takes bytes again. */
static void flush(struct connection *c, int side)
{
    struct half *half = &c->half[side];
    if (half->size) {
        size_t n = (size_t)send_some(c, !side, half->pending + half->start, half->size);
        half->start += n;
        half->size -= n;
    }
    if (!half->size) {
        free(half->pending);
        half->pending = NULL;
    }
    pass_end(c, side);
}

static void transfer(struct connection *c, int side)
{
    struct half *half = &c->half[side];
    if (half->ended || half->size)
        return;
    ssize_t n = recv(c->fd[side], scratch, sizeof scratch, MSG_DONTWAIT);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            reset(c);
        return;
    }
    half->ended = n == 0;
    size_t sent = n > 0 ? (size_t)send_some(c, !side, scratch, (size_t)n) : 0;
    if (!c->dead && sent < (size_t)n)
        store(c, side, scratch + sent, (size_t)n - sent);
    pass_end(c, side);
}

static void connected(struct connection *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(c->fd[1], SOL_SOCKET, SO_ERROR, &error, &size) || error)
        reset(c);
    c->connecting = false;
}

static void side_ready(struct connection *c, int side, short events)
{
    if (c->dead)
        return;
    if (side == 1 && c->connecting)
        connected(c);
    if (events & POLLOUT && !c->dead)
        flush(c, !side);
    if (events & (POLLIN | POLLHUP | POLLERR) && !c->dead)
        transfer(c, side);
}

static void client_ready(void *object, short events)
{
    side_ready(object, 0, events);
}

static void workload_ready(void *object, short events)
{
    side_ready(object, 1, events);
}

static short wanted(const struct connection *c, int side)
{
    short events = 0;
    if (!c->half[side].ended && !c->half[side].size)
        events |= POLLIN;
    if (c->half[!side].size)
        events |= POLLOUT;
    return events;
}

/* A side of which nothing is wanted is not watched: a hang-up there would be reported for ever. */
static void watch_connection(struct connection *c)
{
    if (c->connecting) {
        watch(c->fd[1], POLLOUT, workload_ready, c);
        return;
    }
    if (wanted(c, 0))
        watch(c->fd[0], wanted(c, 0), client_ready, c);
    if (wanted(c, 1))
        watch(c->fd[1], wanted(c, 1), workload_ready, c);
}

static int start_connect(const struct port *port, bool *connecting)
{
    int fd = socket(port->target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    set_options(fd);
    int failed = connect(fd, (const struct sockaddr *)&port->target, port->target_size);
    *connecting = failed && errno == EINPROGRESS;
    if (!failed || *connecting)
        return fd;
    close(fd);
    return -1;
}

static void serve(const struct port *port, int client)
{
    struct connection *c =
        connection_count < connection_limit ? calloc(1, sizeof *c) : NULL;
    int target = c ? start_connect(port, &c->connecting) : -1;
    if (target < 0) {
        free(c);
        close_hard(client);
        return;
    }
    set_options(client);
    c->fd[0] = client;
    c->fd[1] = target;
    c->next = connections;
    connections = c;
    connection_count++;
}

static void accept_ready(void *object, short events)
{
    const struct port *port = object;
    (void)events;
    for (int i = 0; i < 16; i++) {
        int fd = accept4(port->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            accept_at = now_ms() + ACCEPT_PAUSE_MS; /* nothing to accept with: it stays in the queue */
        if (fd < 0)
            return;
        serve(port, fd);
    }
}

int tcp_open(struct port *port)
{
    return port->serve ? listen(port->fd, 512) : 0;
}

void tcp_watch(struct port *port)
{
    if (now_ms() >= accept_at)
        watch(port->fd, POLLIN, accept_ready, port);
}

int64_t tcp_deadline(void)
{
    return now_ms() < accept_at ? accept_at : INT64_MAX;
}

void tcp_watch_all(void)
{
    for (struct connection *c = connections; c; c = c->next)
        watch_connection(c);
}

static void destroy(struct connection *c)
{
    for (int side = 0; side < 2; side++) {
        if (c->reset)
            close_hard(c->fd[side]);
        else
            close(c->fd[side]);
        free(c->half[side].pending);
    }
    free(c);
    connection_count--;
}

void tcp_sweep(void)
{
    struct connection **link = &connections;
    while (*link) {
        struct connection *c = *link;
        if (c->dead) {
            *link = c->next;
            destroy(c);
        } else {
            link = &c->next;
        }
    }
}
