/* Links, addresses and routes by rtnetlink(7). */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define LINK_RETRIES 3

/* Sockets into both namespaces: a socket stays in the one it was made in. */
struct net {
    int host, inside, ns;
    bool own; /* a guest's own: an address or route of an attempt that failed is still there */
};

struct request {
    struct nlmsghdr header;
    uint8_t body[1000];
};

static void *append(struct request *q, const void *data, size_t size) {
    uint8_t *at = (uint8_t *)q + NLMSG_ALIGN(q->header.nlmsg_len);
    memcpy(at, data, size);
    q->header.nlmsg_len = (uint32_t)(NLMSG_ALIGN(q->header.nlmsg_len) + size);
    return at;
}

/* All our attributes together are far below `body`: names ≤ 15, addresses ≤ 16 bytes. */
static struct rtattr *attribute(struct request *q, unsigned short type, const void *data,
                                size_t size) {
    struct rtattr head = {.rta_len = (unsigned short)RTA_LENGTH(size), .rta_type = type};
    struct rtattr *at = append(q, &head, sizeof head);
    if (size)
        append(q, data, size);
    return at;
}

static void attribute_u32(struct request *q, unsigned short type, uint32_t value) {
    attribute(q, type, &value, sizeof value);
}

static void attribute_text(struct request *q, unsigned short type, const char *text) {
    attribute(q, type, text, strlen(text) + 1);
}

static void end(struct request *q, struct rtattr *nest) {
    unsigned short size = (unsigned short)((uint8_t *)q + q->header.nlmsg_len - (uint8_t *)nest);
    memcpy(nest, &size, sizeof size); /* rta_len; `body` is bytes, so no store through rtattr */
}

static struct request request(unsigned short type, unsigned short flags, const void *message,
                              size_t size) {
    struct request q = {.header = {.nlmsg_len = NLMSG_HDRLEN,
                                   .nlmsg_type = type,
                                   .nlmsg_flags = (unsigned short)(NLM_F_REQUEST | NLM_F_ACK | flags)}};
    append(&q, message, size);
    return q;
}

/* Send and await the acknowledgement; 0 or -1 with errno. */
static int transact(int sock, struct request *q) {
    union {
        struct nlmsghdr header;
        uint8_t bytes[8192];
    } answer;
    if (send(sock, q, q->header.nlmsg_len, 0) < 0)
        return -1;
    for (;;) {
        ssize_t size = recv(sock, &answer, sizeof answer, 0);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)))
            return size < 0 ? -1 : (errno = EPROTO, -1);
        if (answer.header.nlmsg_type != NLMSG_ERROR)
            continue;
        int error = ((struct nlmsgerr *)NLMSG_DATA(&answer.header))->error;
        errno = -error;
        return error ? -1 : 0;
    }
}

union answer {
    struct nlmsghdr header;
    uint8_t bytes[16384];
};

/* The link `name` in the namespace of `sock`; needs no dump. */
static struct ifinfomsg *find_link(int sock, const char *name, union answer *answer,
                                   struct vmm_error *e) {
    struct ifinfomsg info = {.ifi_family = AF_UNSPEC};
    struct request q = request(RTM_GETLINK, 0, &info, sizeof info);
    q.header.nlmsg_flags = NLM_F_REQUEST; /* the link itself is the answer */
    attribute_text(&q, IFLA_IFNAME, name);
    ssize_t size = send(sock, &q, q.header.nlmsg_len, 0) < 0 ? -1 : recv(sock, answer, sizeof *answer, 0);
    if (size >= (ssize_t)NLMSG_LENGTH(sizeof info) && answer->header.nlmsg_type == RTM_NEWLINK)
        return NLMSG_DATA(&answer->header);
    if (size >= (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)))
        errno = -((struct nlmsgerr *)NLMSG_DATA(&answer->header))->error;
    else if (size >= 0)
        errno = EPROTO;
    vmm_fail(e, 125, errno, "interface %s", name);
    return NULL;
}

static int index_of(int sock, const char *name, struct vmm_error *e) {
    union answer answer;
    const struct ifinfomsg *link = find_link(sock, name, &answer, e);
    return link ? link->ifi_index : -1;
}

/* An attribute of `type` among those from `at`; NULL without one. */
static struct rtattr *find_attribute(struct rtattr *at, int left, unsigned short type) {
    for (; RTA_OK(at, left); at = RTA_NEXT(at, left))
        if ((at->rta_type & ~NLA_F_NESTED) == type)
            return at;
    return NULL;
}

static bool is_veth(union answer *answer, struct ifinfomsg *link) {
    struct rtattr *info = find_attribute(IFLA_RTA(link), (int)IFLA_PAYLOAD(&answer->header),
                                         IFLA_LINKINFO);
    struct rtattr *kind = info ? find_attribute(RTA_DATA(info), (int)RTA_PAYLOAD(info), IFLA_INFO_KIND)
                               : NULL;
    return kind && RTA_PAYLOAD(kind) == sizeof "veth" && !memcmp(RTA_DATA(kind), "veth", sizeof "veth");
}

static int check_name(const char *name, struct vmm_error *e) {
    if (!*name || strlen(name) >= IF_NAMESIZE)
        return vmm_fail(e, 125, 0, "\"%.40s\" is no interface name (1 to 15 bytes)", name);
    return 0;
}

static int set_up(int sock, const char *name, struct vmm_error *e) {
    int index = check_name(name, e) < 0 ? -1 : index_of(sock, name, e);
    if (index < 0)
        return -1;
    struct ifinfomsg info = {
        .ifi_family = AF_UNSPEC, .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct request q = request(RTM_NEWLINK, 0, &info, sizeof info);
    if (transact(sock, &q) < 0)
        return vmm_fail(e, 125, errno, "cannot set %s up", name);
    return 0;
}

static int run_loopback(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)r;
    return set_up(((struct net *)context)->inside, "lo", e);
}

static int run_up(void *context, const struct vmm_record *r, struct vmm_error *e) {
    return set_up(((struct net *)context)->inside, r->argv[1], e);
}

static int parse_mac(const char *text, uint8_t mac[6], struct vmm_error *e) {
    unsigned part[6];
    int used = 0;
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &part[0], &part[1], &part[2], &part[3], &part[4],
               &part[5], &used) != 6 ||
        text[used])
        return vmm_fail(e, 125, 0, "\"%.40s\" is no MAC address", text);
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)part[i];
    return 0;
}

/* The whole pair in one request: the host's end enslaved and up, the peer already inside. */
static struct request veth_request(const struct net *net, char *const *a, int bridge, uint32_t mtu,
                                   const uint8_t mac[6]) {
    struct ifinfomsg info = {
        .ifi_family = AF_UNSPEC, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct ifinfomsg peer = {.ifi_family = AF_UNSPEC};
    struct request q = request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
    attribute_text(&q, IFLA_IFNAME, a[1]);
    attribute_u32(&q, IFLA_MASTER, (uint32_t)bridge);
    attribute_u32(&q, IFLA_MTU, mtu);
    struct rtattr *link = attribute(&q, IFLA_LINKINFO, NULL, 0);
    attribute_text(&q, IFLA_INFO_KIND, "veth");
    struct rtattr *data = attribute(&q, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *other = attribute(&q, VETH_INFO_PEER, NULL, 0);
    append(&q, &peer, sizeof peer);
    attribute_text(&q, IFLA_IFNAME, a[3]);
    attribute(&q, IFLA_ADDRESS, mac, 6);
    attribute_u32(&q, IFLA_MTU, mtu);
    attribute_u32(&q, IFLA_NET_NS_FD, (uint32_t)net->ns);
    end(&q, other);
    end(&q, data);
    end(&q, link);
    return q;
}

/* A link of an earlier attempt or run goes with its network namespace, but some time after that, and the
 * name is ours alone: hurry it. 0: there is no such link any more. */
static int remove_stale(int sock, const char *name, struct vmm_error *e) {
    union answer answer;
    struct ifinfomsg *link = find_link(sock, name, &answer, e);
    if (!link)
        return errno == ENODEV ? 0 : -1;
    if (!is_veth(&answer, link))
        return -1;
    struct ifinfomsg which = {.ifi_family = AF_UNSPEC, .ifi_index = link->ifi_index};
    struct request q = request(RTM_DELLINK, 0, &which, sizeof which);
    return transact(sock, &q) < 0 && errno != ENODEV ? -1 : 0;
}

static int make_link(int sock, struct request *q, const char *name) {
    struct vmm_error ignored;
    int failed = transact(sock, q);
    for (int i = 0; failed && errno == EEXIST && i < LINK_RETRIES; i++) {
        if (remove_stale(sock, name, &ignored) < 0) {
            errno = EEXIST;
            return -1;
        }
        failed = transact(sock, q);
    }
    return failed;
}

static int run_veth(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct net *net = context;
    uint8_t mac[6];
    long long mtu;
    if (check_name(r->argv[1], e) < 0 || check_name(r->argv[2], e) < 0 ||
        check_name(r->argv[3], e) < 0 || parse_mac(r->argv[4], mac, e) < 0 ||
        vmm_number(r->argv[5], 10, 68, 65535, &mtu, e) < 0)
        return -1;
    int bridge = index_of(net->host, r->argv[2], e);
    if (bridge < 0)
        return -1;
    struct request q = veth_request(net, r->argv, bridge, (uint32_t)mtu, mac);
    if (make_link(net->host, &q, r->argv[1]) < 0)
        return vmm_fail(e, 125, errno, "cannot make the link %s in bridge %s", r->argv[1],
                        r->argv[2]);
    return 0;
}

/* AF_INET or AF_INET6 and the bytes of `text`; -1 if it is neither. */
static int parse_address(const char *text, uint8_t bytes[16], size_t *size) {
    if (inet_pton(AF_INET, text, bytes) == 1)
        return *size = 4, AF_INET;
    if (inet_pton(AF_INET6, text, bytes) == 1)
        return *size = 16, AF_INET6;
    return -1;
}

static int run_address(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct net *net = context;
    uint8_t bytes[16];
    size_t size = 0;
    long long prefix;
    char text[64];
    snprintf(text, sizeof text, "%s", r->argv[2]);
    char *slash = strchr(text, '/');
    if (slash)
        *slash++ = 0;
    int family = parse_address(text, bytes, &size);
    if (!slash || family < 0 || check_name(r->argv[1], e) < 0)
        return vmm_fail(e, 125, 0, "\"%.60s\" is no ADDRESS/PREFIX", r->argv[2]);
    int index = vmm_number(slash, 10, 0, (long long)size * 8, &prefix, e) < 0
                    ? -1
                    : index_of(net->inside, r->argv[1], e);
    if (index < 0)
        return -1;
    struct ifaddrmsg info = {.ifa_family = (uint8_t)family,
                             .ifa_prefixlen = (uint8_t)prefix,
                             .ifa_flags = family == AF_INET6 ? IFA_F_NODAD : 0,
                             .ifa_index = (uint32_t)index};
    struct request q = request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
    attribute(&q, IFA_LOCAL, bytes, size);
    attribute(&q, IFA_ADDRESS, bytes, size);
    if (transact(net->inside, &q) < 0 && !(net->own && errno == EEXIST))
        return vmm_fail(e, 125, errno, "cannot give %s the address %.60s", r->argv[1], r->argv[2]);
    return 0;
}

static int run_route(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct net *net = context;
    uint8_t bytes[16];
    size_t size = 0;
    int family = parse_address(r->argv[1], bytes, &size);
    if (family < 0)
        return vmm_fail(e, 125, 0, "\"%.60s\" is no address", r->argv[1]);
    struct rtmsg info = {.rtm_family = (uint8_t)family,
                         .rtm_table = RT_TABLE_MAIN,
                         .rtm_protocol = RTPROT_STATIC,
                         .rtm_scope = RT_SCOPE_UNIVERSE,
                         .rtm_type = RTN_UNICAST};
    struct request q = request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
    attribute(&q, RTA_GATEWAY, bytes, size);
    if (transact(net->inside, &q) < 0 && !(net->own && errno == EEXIST))
        return vmm_fail(e, 125, errno, "cannot set the default route by %.60s", r->argv[1]);
    return 0;
}

static const struct vmm_op net_ops[] = {
    {"net.loopback", 0, 0, NULL, run_loopback}, {"net.veth", 5, 5, NULL, run_veth},
    {"net.address", 2, 2, NULL, run_address},   {"net.up", 1, 1, NULL, run_up},
    {"net.route", 1, 1, NULL, run_route},
};

static int open_route_socket(struct vmm_error *e) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    return fd < 0 ? vmm_fail(e, 125, errno, "cannot open a netlink socket") : fd;
}

/* Step into the workload's network namespace for the making of one socket. */
static int open_inside(int ns, struct vmm_error *e) {
    VMM_CLOSE int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (own < 0 || setns(ns, CLONE_NEWNET) < 0)
        return vmm_fail(e, 125, errno, "cannot enter the network namespace");
    int fd = open_route_socket(e);
    if (setns(own, CLONE_NEWNET) < 0) {
        vmm_close(&fd);
        return vmm_fail(e, 125, errno, "cannot return to the host's network namespace");
    }
    return fd;
}

int vmm_net_setup(const struct vmm_host *host, int ns, struct vmm_error *e) {
    if (!host->has_net_ops)
        return 0;
    snprintf(e->step, sizeof e->step, "net");
    VMM_CLOSE int outside = open_route_socket(e);
    VMM_CLOSE int inside = outside < 0 ? -1 : ns < 0 ? open_route_socket(e) : open_inside(ns, e);
    if (inside < 0)
        return -1;
    struct net net = {outside, inside, ns, ns < 0};
    for (size_t i = 0; i < host->plan->host_count; i++) {
        const struct vmm_record *r = &host->plan->host[i];
        if (strncmp(r->argv[0], "net.", 4) != 0)
            continue;
        const struct vmm_op *op = vmm_op_find(net_ops, COUNT(net_ops), r, e);
        if (!op || op->run(&net, r, e) < 0)
            return -1;
    }
    return 0;
}

/* ---- counters ---- */

int vmm_net_counters(const char *name, uint64_t *received, uint64_t *sent) {
    union answer answer;
    struct rtnl_link_stats64 counted;
    struct vmm_error e;
    VMM_CLOSE int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (sock < 0 || check_name(name, &e) < 0)
        return -1;
    struct ifinfomsg *link = find_link(sock, name, &answer, &e);
    struct rtattr *found = link ? find_attribute(IFLA_RTA(link), (int)IFLA_PAYLOAD(&answer.header),
                                                 IFLA_STATS64)
                                : NULL;
    if (!found || RTA_PAYLOAD(found) < offsetof(struct rtnl_link_stats64, rx_errors))
        return -1;
    memcpy(&counted, RTA_DATA(found), offsetof(struct rtnl_link_stats64, rx_errors));
    *received = counted.rx_bytes;
    *sent = counted.tx_bytes;
    return 0;
}
