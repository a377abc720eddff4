#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { NOBODY = 65534, PORTS_MAX = 4096, SHORTAGE_MS = 50 };

uint8_t scratch[BUFFER];
unsigned connection_limit = CONNECTIONS_MAX, flow_limit = FLOWS_MAX;

static struct pollfd *fds;
static struct watched {
    ready_handler handler;
    void *object;
} *watched_;
static size_t count, capacity;
static bool incomplete; /* there was no memory to watch everything */

static struct port *ports;
static size_t port_count;

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int grow(void)
{
    size_t wanted = capacity ? capacity * 2 : 16;
    struct pollfd *more = realloc(fds, wanted * sizeof *more);
    if (!more)
        return -1;
    fds = more;
    struct watched *others = realloc(watched_, wanted * sizeof *others);
    if (!others)
        return -1;
    watched_ = others;
    capacity = wanted;
    return 0;
}

void watch(int fd, short events, ready_handler handler, void *object)
{
    if (count == capacity && grow()) {
        incomplete = true;
        return;
    }
    fds[count] = (struct pollfd){.fd = fd, .events = events};
    watched_[count++] = (struct watched){handler, object};
}

static int open_port(const char *text, struct port *port)
{
    if (port_parse(text, port)) {
        fprintf(stderr, "vmm-relay: %s: want FD,tcp|udp,IP,PORT,serve|hold with an open socket\n",
                text);
        return -1;
    }
    fcntl(port->fd, F_SETFL, O_RDWR | O_NONBLOCK);
    if (port->udp)
        udp_open(port);
    else if (tcp_open(port)) {
        perror("vmm-relay: listen");
        return -1;
    }
    return 0;
}

/* As many descriptors as allowed, and never so many connections that they run out. */
static void size_limits(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files))
        return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    rlim_t used = port_count + 32, spare = files.rlim_max > used ? files.rlim_max - used : 4;
    if (spare / 4 < CONNECTIONS_MAX)
        connection_limit = flow_limit = (unsigned)(spare / 4);
}

/* No rights; gone when the shim is (a change of user clears that,
 * so it is asked for again, and the parent looked at after). */
static int confine(void)
{
    pid_t parent = getppid();
    if (geteuid() == 0 && (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
                           setresuid(NOBODY, NOBODY, NOBODY))) {
        perror("vmm-relay: setresuid");
        return -1;
    }
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return getppid() == parent ? 0 : -1;
}

static void watch_everything(void)
{
    count = 0;
    incomplete = false;
    for (size_t i = 0; i < port_count; i++) {
        if (ports[i].serve && ports[i].udp)
            udp_watch(&ports[i]);
        else if (ports[i].serve)
            tcp_watch(&ports[i]);
    }
    tcp_watch_all();
    udp_watch_all();
}

static int timeout(int64_t now)
{
    int64_t at = udp_deadline(), accepting = tcp_deadline();
    if (incomplete && at > now + SHORTAGE_MS)
        at = now + SHORTAGE_MS;
    if (accepting < at)
        at = accepting;
    if (at == INT64_MAX)
        return -1;
    return at <= now ? 0 : (int)(at - now);
}

static _Noreturn void run(void)
{
    for (;;) {
        watch_everything();
        int n = poll(fds, count, timeout(now_ms()));
        if (n < 0 && errno != EINTR) /* no memory; the connections may outlast that */
            nanosleep(&(struct timespec){.tv_nsec = SHORTAGE_MS * 1000000}, NULL);
        for (size_t i = 0; n > 0 && i < count; i++)
            if (fds[i].revents)
                watched_[i].handler(watched_[i].object, fds[i].revents);
        tcp_sweep();
        udp_sweep(now_ms());
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    port_count = (size_t)(argc - 1);
    ports = calloc(port_count + 1, sizeof *ports);
    if (argc < 2 || port_count > PORTS_MAX || !ports) {
        fputs("usage: vmm-relay FD,tcp|udp,IP,PORT,serve|hold…\n", stderr);
        return 125;
    }
    for (size_t i = 0; i < port_count; i++)
        if (open_port(argv[i + 1], &ports[i]))
            return 125;
    size_limits();
    if (confine())
        return 125;
    run();
}
