/* UDP: one connected socket per client and address it called, forgotten after FLOW_IDLE_MS.
 *
 * On a socket bound to every address the kernel would choose the source of an answer by its route, and a
 * client that called another address of the host would not know it; so the address that was called is
 * kept and answered from (IP_PKTINFO in ip(7), IPV6_PKTINFO in ipv6(7)). */
#include "relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Who called, and which address. `size` is the client's. */
struct peer {
    struct sockaddr_storage client;
    socklen_t size;
    union {
        struct in_pktinfo v4;
        struct in6_pktinfo v6;
    } called;
};

union control {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

struct flow {
    struct flow *next;
    const struct port *port;
    struct peer peer;
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

static bool same(const struct peer *a, const struct peer *b)
{
    return a->size == b->size && !memcmp(&a->client, &b->client, a->size) &&
           !memcmp(&a->called, &b->called, sizeof a->called);
}

static struct flow *find(const struct port *port, const struct peer *peer)
{
    for (struct flow *f = flows; f; f = f->next)
        if (!f->evicted && f->port == port && same(&f->peer, peer))
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

static struct flow *flow_new(const struct port *port, const struct peer *peer)
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
    f->peer = *peer;
    f->next = flows;
    flows = f;
    flow_count++;
    return f;
}

/* What the kernel says of the address that was called, less what must not be said when sending. */
static void take_called(struct msghdr *message, struct peer *peer)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            peer->called.v4.ipi_spec_dst = info.ipi_spec_dst;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            memcpy(&peer->called.v6, CMSG_DATA(c), sizeof peer->called.v6);
            if (!IN6_IS_ADDR_LINKLOCAL(&peer->called.v6.ipi6_addr))
                peer->called.v6.ipi6_ifindex = 0;
        }
    }
}

/* A datagram into `scratch`; its size, or -1. */
static ssize_t receive(int fd, struct peer *peer)
{
    union control control;
    struct iovec data = {scratch, sizeof scratch};
    memset(peer, 0, sizeof *peer); /* compared as bytes */
    struct msghdr message = {.msg_name = &peer->client, .msg_namelen = sizeof peer->client,
                             .msg_iov = &data, .msg_iovlen = 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
    if (n < 0)
        return -1;
    peer->size = message.msg_namelen;
    take_called(&message, peer);
    return n;
}

static void answer(const struct flow *f, size_t size)
{
    union control control = {0};
    struct peer peer = f->peer;
    bool v6 = peer.client.ss_family == AF_INET6;
    size_t length = v6 ? sizeof peer.called.v6 : sizeof peer.called.v4;
    struct iovec data = {scratch, size};
    struct msghdr message = {.msg_name = &peer.client, .msg_namelen = peer.size,
                             .msg_iov = &data, .msg_iovlen = 1,
                             .msg_control = &control, .msg_controllen = CMSG_SPACE(length)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = v6 ? IPPROTO_IPV6 : IPPROTO_IP;
    c->cmsg_type = v6 ? IPV6_PKTINFO : IP_PKTINFO;
    c->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(c), &peer.called, length);
    sendmsg(f->port->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void from_client(void *object, short events)
{
    const struct port *port = object;
    (void)events;
    for (int i = 0; i < 64; i++) {
        struct peer peer;
        ssize_t n = receive(port->fd, &peer);
        if (n < 0)
            return;
        struct flow *f = find(port, &peer);
        if (!f && !(f = flow_new(port, &peer)))
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
        answer(f, (size_t)n);
    }
}

/* Ask for the address that was called; the option of the other family just fails. */
void udp_open(struct port *port)
{
    int on = 1;
    setsockopt(port->fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    setsockopt(port->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
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
