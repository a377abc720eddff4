/* The power button of the machine, which `virsh shutdown` presses: an event of ACPI, told by generic netlink
 * (Linux, drivers/acpi/event.c). What is to be done about it the host knows. */
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <stdalign.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"

#define FAMILY "acpi_event"
#define GROUP "acpi_mc_group"
#define CLASS "button/power"

enum { EVENT_COMMAND = 1, EVENT_ATTRIBUTE = 1, CLASS_MAX = 20, SIZE = 8192 };

struct message {
    alignas(NLMSG_ALIGNTO) uint8_t bytes[SIZE];
    size_t size;
};

/* The payload of the first attribute of a type; NULL for none. Nested ones have a flag in the type. */
static const uint8_t *attribute(const uint8_t *at, size_t size, int type, size_t *length) {
    struct nlattr head;
    while (size >= NLA_HDRLEN) {
        memcpy(&head, at, sizeof head);
        if (head.nla_len < NLA_HDRLEN || head.nla_len > size)
            return NULL;
        *length = (size_t)head.nla_len - NLA_HDRLEN;
        if (!type || (head.nla_type & NLA_TYPE_MASK) == type)
            return at + NLA_HDRLEN;
        size_t step = (size_t)NLA_ALIGN(head.nla_len);
        at += step < size ? step : size;
        size -= step < size ? step : size;
    }
    return NULL;
}

/* What follows the two headers of a message that says `command`; NULL if it is another. */
static const uint8_t *content(const struct message *m, uint8_t command, size_t *size) {
    const struct nlmsghdr *head = (const void *)m->bytes;
    const struct genlmsghdr *generic = (const void *)(m->bytes + NLMSG_HDRLEN);
    if (m->size < NLMSG_HDRLEN + GENL_HDRLEN || head->nlmsg_len > m->size ||
        head->nlmsg_len < NLMSG_HDRLEN + GENL_HDRLEN || head->nlmsg_type < NLMSG_MIN_TYPE ||
        generic->cmd != command)
        return NULL;
    *size = head->nlmsg_len - (NLMSG_HDRLEN + GENL_HDRLEN);
    return m->bytes + NLMSG_HDRLEN + GENL_HDRLEN;
}

static bool receive(int fd, struct message *m) {
    ssize_t size = recv(fd, m->bytes, sizeof m->bytes, 0);
    m->size = size > 0 ? (size_t)size : 0;
    return size > 0;
}

static int ask_for_family(int fd) {
    struct {
        struct nlmsghdr head;
        struct genlmsghdr generic;
        struct nlattr name;
        char text[sizeof FAMILY];
    } request = {
        .head = {.nlmsg_len = sizeof request, .nlmsg_type = GENL_ID_CTRL, .nlmsg_flags = NLM_F_REQUEST},
        .generic = {.cmd = CTRL_CMD_GETFAMILY, .version = 1},
        .name = {.nla_len = NLA_HDRLEN + sizeof FAMILY, .nla_type = CTRL_ATTR_FAMILY_NAME},
        .text = FAMILY,
    };
    return send(fd, &request, sizeof request, 0) < 0 ? -1 : 0;
}

/* The number of the events' multicast group, 0 if the answer has none. */
static uint32_t group_of(const struct message *m) {
    size_t size = 0, length = 0;
    uint32_t number = 0;
    const uint8_t *at = content(m, CTRL_CMD_NEWFAMILY, &size);
    const uint8_t *groups = at ? attribute(at, size, CTRL_ATTR_MCAST_GROUPS, &size) : NULL;
    const uint8_t *first = groups ? attribute(groups, size, 0, &size) : NULL;
    const uint8_t *name = first ? attribute(first, size, CTRL_ATTR_MCAST_GRP_NAME, &length) : NULL;
    if (!name || length != sizeof GROUP || memcmp(name, GROUP, sizeof GROUP))
        return 0;
    const uint8_t *id = attribute(first, size, CTRL_ATTR_MCAST_GRP_ID, &length);
    if (id && length == sizeof number)
        memcpy(&number, id, sizeof number);
    return number;
}

/* The kernel answers a request before send(2) returns. */
int power_open(void) {
    static struct message m;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_GENERIC);
    uint32_t group = fd >= 0 && ask_for_family(fd) == 0 && receive(fd, &m) ? group_of(&m) : 0;
    if (group && setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

bool power_pressed(int fd) {
    static struct message m;
    bool pressed = false;
    while (receive(fd, &m)) {
        size_t size = 0;
        const uint8_t *at = content(&m, EVENT_COMMAND, &size);
        const uint8_t *event = at ? attribute(at, size, EVENT_ATTRIBUTE, &size) : NULL;
        pressed |= event && size >= CLASS_MAX && !strncmp((const char *)event, CLASS, CLASS_MAX);
    }
    return pressed;
}
