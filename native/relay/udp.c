/* UDP: one connected socket per client address, forgotten after FLOW_IDLE_MS. */
#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct flow {
    struct flow *next;
    const struct port *port;
    struct sockaddr_storage client;
    socklen_t client_size;
    int fd;
    int64_t used;
    bool evicted; /* freed when the round is over */
};

static struct flow *flows;
static unsigned flow_count;

static void flow_free(struct flow *f)
{
    close(f->fd);
    if (!f->evicted)
        flow_count--;
    free(f);
}

static struct flow *find(const struct port *port, const struct sockaddr_storage *client,
                         socklen_t size)
{
    for (struct flow *f = flows; f; f = f->next)
        if (!f->evicted && f->port == port && f->client_size == size && !memcmp(&f->client, client, size))
            return f;
    return NULL;
}

/* Make room by forgetting the flow that was silent longest. */
static void evict(void)
{
    struct flow *oldest = NULL;
    for (struct flow *f = flows; f; f = f->next)
        if (!f->evicted && (!oldest || f->used < oldest->used))
            oldest = f;
    if (!oldest)
        return;
    oldest->evicted = true;
    flow_count--;
}

static int connect_target(const struct port *port)
{
    int fd = socket(port->target.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&port->target, port->target_size) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static struct flow *flow_new(const struct port *port, const struct sockaddr_storage *client,
                             socklen_t size)
{
    if (flow_count >= flow_limit)
        evict();
    struct flow *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->fd = connect_target(port);
    if (f->fd < 0) {
        free(f);
        return NULL;
    }
    f->port = port;
    memcpy(&f->client, client, size);
    f->client_size = size;
    f->next = flows;
    flows = f;
    flow_count++;
    return f;
}

static void from_client(void *object, short events)
{
    const struct port *port = object;
    (void)events;
    for (int i = 0; i < 64; i++) {
        struct sockaddr_storage client = {0};
        socklen_t size = sizeof client;
        ssize_t n = recvfrom(port->fd, scratch, sizeof scratch, MSG_DONTWAIT,
                             (struct sockaddr *)&client, &size);
        if (n < 0)
            return;
        struct flow *f = find(port, &client, size);
        if (!f && !(f = flow_new(port, &client, size)))
            continue;
        f->used = now_ms();
        if (send(f->fd, scratch, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            continue; /* as the network would: the datagram is lost */
    }
}

static void from_workload(void *object, short events)
{
    struct flow *f = object;
    (void)events;
    for (int i = 0; i < 64 && !f->evicted; i++) {
        ssize_t n = recv(f->fd, scratch, sizeof scratch, MSG_DONTWAIT);
        if (n < 0) /* empty, or "port unreachable", which recv(2) has now taken */
            return;
        f->used = now_ms();
        sendto(f->port->fd, scratch, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL,
               (const struct sockaddr *)&f->client, f->client_size);
    }
}

void udp_watch(struct port *port)
{
    watch(port->fd, POLLIN, from_client, port);
}

void udp_watch_all(void)
{
    for (struct flow *f = flows; f; f = f->next)
        watch(f->fd, POLLIN, from_workload, f);
}

void udp_sweep(int64_t now)
{
    struct flow **link = &flows;
    while (*link) {
        struct flow *f = *link;
        if (f->evicted || now - f->used >= FLOW_IDLE_MS) {
            *link = f->next;
            flow_free(f);
        } else {
            link = &f->next;
        }
    }
}

int64_t udp_deadline(void)
{
    int64_t at = INT64_MAX;
    for (const struct flow *f = flows; f; f = f->next)
        if (f->used + FLOW_IDLE_MS < at)
            at = f->used + FLOW_IDLE_MS;
    return at;
}
