/* The host section, and the namespaces that it asks for. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

static const struct {
    const char *kind;
    int flag;
} kinds[] = {
    {"pid", CLONE_NEWPID}, {"mount", CLONE_NEWNS},      {"uts", CLONE_NEWUTS},
    {"ipc", CLONE_NEWIPC}, {"net", CLONE_NEWNET},       {"cgroup", CLONE_NEWCGROUP},
    {"user", CLONE_NEWUSER}, {"time", (int)CLONE_NEWTIME},
};

int vmm_ns_flag(const char *kind) {
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (!strcmp(kinds[i].kind, kind))
            return kinds[i].flag;
    return 0;
}

static int note_new(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    for (uint32_t i = 1; i < r->argc; i++) {
        int flag = vmm_ns_flag(r->argv[i]);
        if (!flag)
            return vmm_fail(e, 125, 0, "no namespace is called \"%.40s\"", r->argv[i]);
        host->fresh |= (unsigned)flag;
    }
    return 0;
}

static int note_path(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    int flag = vmm_ns_flag(r->argv[1]);
    if (!flag || host->joins == VMM_MAX_JOINS)
        return vmm_fail(e, 125, 0, "no namespace is called \"%.40s\"", r->argv[1]);
    host->join[host->joins++] = (struct vmm_join){flag, r->argv[2]};
    return 0;
}

static int note_map(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    long long number;
    if (strcmp(r->argv[1], "uid") != 0 && strcmp(r->argv[1], "gid") != 0)
        return vmm_fail(e, 125, 0, "a map is of uid or gid");
    for (int i = 2; i <= 4; i++)
        if (vmm_number(r->argv[i], 10, 0, 4294967295, &number, e) < 0)
            return -1;
    host->has_map = true;
    return 0;
}

static int note_group(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    if (host->group_count == VMM_MAX_JOINS)
        return vmm_fail(e, 125, 0, "more than %d cgroups to join", VMM_MAX_JOINS);
    host->groups[host->group_count++] = r->argv[1];
    return 0;
}

static int note_oom(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_host *)context)->oom_file = r->argv[1];
    return 0;
}

static int note_kill(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_host *)context)->kill_group = r->argv[1];
    return 0;
}

static int note_score(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    long long score;
    if (vmm_number(r->argv[1], 10, -1000, 1000, &score, e) < 0)
        return -1;
    host->score = (int)score;
    host->has_score = true;
    return 0;
}

static int note_net(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)r, (void)e;
    ((struct vmm_host *)context)->has_net_ops = true;
    return 0;
}

static int note_veth(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    (void)r;
    if (host->plan->guest)
        return vmm_fail(e, 125, 0, "a virtual machine has links of its own");
    host->has_net_ops = true;
    return 0;
}

/* vmm-init carries these out before it asks the launcher. */
static int note_guest(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    (void)r;
    return host->plan->guest ? 0 : vmm_fail(e, 125, 0, "only in a virtual machine");
}

static int note_nothing(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)context, (void)r, (void)e;
    return 0;
}

static const struct vmm_op host_ops[] = {
    {"ns.new", 1, 8, note_new, NULL},
    {"ns.path", 2, 2, note_path, NULL},
    {"ns.map", 4, 4, note_map, NULL},
    {"cgroup.make", 1, 1, note_nothing, NULL},
    {"cgroup.later", 1, 1, note_nothing, NULL},
    {"cgroup.write", 2, 2, note_nothing, NULL},
    {"cgroup.try", 2, 2, note_nothing, NULL},
    {"cgroup.devices", 3, 3, note_nothing, NULL},
    {"cgroup.join", 1, 1, note_group, NULL},
    {"cgroup.oom", 1, 1, note_oom, NULL},
    {"cgroup.kill", 1, 1, note_kill, NULL},
    {"cgroup.freeze", 3, 3, vmm_note_freeze, NULL},
    {"stats", 2, 4, vmm_note_stats, NULL},
    {"oom-score", 1, 1, note_score, NULL},
    {"net.loopback", 0, 0, note_net, NULL},
    {"net.veth", 5, 5, note_veth, NULL},
    {"net.address", 2, 2, note_net, NULL},
    {"net.up", 1, 1, note_net, NULL},
    {"net.route", 1, 1, note_net, NULL},
    {"guest.mount", 5, 5, note_guest, NULL},
    {"guest.mkdir", 4, 4, note_guest, NULL},
    {"guest.stdio", 3, 3, note_guest, NULL},
};

int vmm_host_read(const struct vmm_plan *plan, struct vmm_host *host, struct vmm_error *e) {
    *host = (struct vmm_host){.plan = plan};
    for (size_t i = 0; i < plan->host_count; i++) {
        const struct vmm_op *op = vmm_op_find(host_ops, COUNT(host_ops), &plan->host[i], e);
        if (!op || op->note(host, &plan->host[i], e) < 0)
            return -1;
    }
    if (host->has_net_ops && !plan->guest && !(vmm_ns_all(host) & CLONE_NEWNET))
        return vmm_fail(e, 125, 0, "net operations need a network namespace of the workload's own");
    if (host->has_map && !(host->fresh & CLONE_NEWUSER))
        return vmm_fail(e, 125, 0, "ns.map needs a new user namespace");
    return 0;
}

const char *vmm_ns_path(const struct vmm_host *host, int kind) {
    for (size_t i = 0; i < host->joins; i++)
        if (host->join[i].kind == kind)
            return host->join[i].path;
    return NULL;
}

unsigned long vmm_ns_all(const struct vmm_host *host) {
    unsigned long all = host->fresh;
    for (size_t i = 0; i < host->joins; i++)
        all |= (unsigned)host->join[i].kind;
    return all;
}

int vmm_ns_join(const struct vmm_host *host, unsigned long wanted, struct vmm_error *e) {
    for (size_t i = 0; i < host->joins; i++) {
        const struct vmm_join *join = &host->join[i];
        if (!(wanted & (unsigned)join->kind))
            continue;
        VMM_CLOSE int fd = open(join->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0 || setns(fd, join->kind) < 0) {
            snprintf(e->step, sizeof e->step, "ns.path %.150s", join->path);
            return vmm_fail(e, 125, errno, "cannot join the namespace %.200s", join->path);
        }
    }
    return 0;
}

/* ---- namespaces that outlive the process ---- */

/* All lines of one map (`uid` or `gid`) as /proc/PID/uid_map wants them, user_namespaces(7). */
static int write_map(const struct vmm_host *host, pid_t pid, const char *kind, struct vmm_error *e) {
    char path[64], text[4096];
    size_t used = 0;
    for (size_t i = 0; i < host->plan->host_count; i++) {
        const struct vmm_record *r = &host->plan->host[i];
        if (strcmp(r->argv[0], "ns.map") != 0 || strcmp(r->argv[1], kind) != 0)
            continue;
        int n = snprintf(text + used, sizeof text - used, "%s %s %s\n", r->argv[2], r->argv[3],
                         r->argv[4]);
        used += (size_t)n;
        if (used >= sizeof text)
            return vmm_fail(e, 125, 0, "too many %s maps", kind);
    }
    snprintf(path, sizeof path, "/proc/%d/%s_map", pid, kind);
    if (used && vmm_write_file(AT_FDCWD, path, text) < 0)
        return vmm_fail(e, 125, errno, "cannot write the %s map", kind);
    return 0;
}

static int write_maps(const struct vmm_host *host, pid_t pid, struct vmm_error *e) {
    char path[64];
    snprintf(e->step, sizeof e->step, "ns.map");
    snprintf(path, sizeof path, "/proc/%d/setgroups", pid);
    if (geteuid() != 0 && vmm_write_file(AT_FDCWD, path, "deny") < 0)
        return vmm_fail(e, 125, errno, "cannot deny setgroups");
    return write_map(host, pid, "uid", e) < 0 || write_map(host, pid, "gid", e) < 0 ? -1 : 0;
}

static int open_ns(pid_t pid, const char *kind, struct vmm_error *e) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, kind);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? vmm_fail(e, 125, errno, "cannot open %s", path) : fd;
}

static _Noreturn void hold(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == parent)
        pause();
    _exit(0);
}

/* A child that only holds new user (and network) namespaces open until we have their descriptors. */
static int make_user(const struct vmm_host *host, int *user, int *net, struct vmm_error *e) {
    struct clone_args args = {.flags = host->fresh & (CLONE_NEWUSER | CLONE_NEWNET),
                              .exit_signal = SIGCHLD};
    pid_t self = getpid(), pid = sys_clone3(&args);
    if (pid == 0)
        hold(self);
    if (pid < 0)
        return vmm_fail(e, 125, errno, "cannot make a user namespace");
    int failed = write_maps(host, pid, e);
    if (!failed && (*user = open_ns(pid, "user", e)) < 0)
        failed = -1;
    if (!failed && (host->fresh & CLONE_NEWNET) && (*net = open_ns(pid, "net", e)) < 0)
        failed = -1;
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return failed;
}

/* Visit a new network namespace just long enough to open it; cheaper than a process. */
static int make_net(int *net, struct vmm_error *e) {
    VMM_CLOSE int own = open_ns(getpid(), "net", e);
    if (own < 0)
        return -1;
    if (unshare(CLONE_NEWNET) < 0)
        return vmm_fail(e, 125, errno, "cannot make a network namespace");
    *net = open_ns(getpid(), "net", e);
    if (setns(own, CLONE_NEWNET) < 0)
        return vmm_fail(e, 125, errno, "cannot return to the host's network namespace");
    return *net < 0 ? -1 : 0;
}

int vmm_ns_make(const struct vmm_host *host, int *user, int *net, struct vmm_error *e) {
    const char *path = vmm_ns_path(host, CLONE_NEWNET);
    snprintf(e->step, sizeof e->step, "ns.new");
    if (host->fresh & CLONE_NEWUSER)
        return make_user(host, user, net, e);
    if (host->fresh & CLONE_NEWNET)
        return make_net(net, e);
    if (path && host->has_net_ops && (*net = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0)
        return vmm_fail(e, 125, errno, "cannot open the namespace %.200s", path);
    return 0;
}
