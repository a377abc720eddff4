/* What the process may do, and its program. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define SEALED_FD 3 /* where vmm-init finds the launcher's socket */
#define MAX_SCRIPTS 5 /* the kernel follows four `#!` lines, execve(2) */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* ---- finding the program ---- */

static const char *search_path(const struct vmm_process *process) {
    const char *found = DEFAULT_PATH;
    for (size_t i = 0; i < process->env_count; i++)
        if (!strncmp(process->env[i], "PATH=", 5))
            found = process->env[i] + 5;
    return found;
}

/* `name` below `directory`; what is relative starts in the working directory. */
static int join_path(char *out, const char *directory, size_t size, const char *name) {
    char cwd[PATH_MAX] = "";
    if ((size ? *directory : *name) != '/' && !getcwd(cwd, sizeof cwd))
        return -1;
    int used = snprintf(out, PATH_MAX, "%s%s%.*s%s%s", cwd, *cwd ? "/" : "", (int)size, directory,
                        size ? "/" : "", name);
    if (used >= PATH_MAX)
        errno = ENAMETOOLONG;
    return used >= PATH_MAX ? -1 : 0;
}

/* /proc/self/exe and its like are magic links, refused on opening: an image cannot name our own program,
 * nor can one of its scripts in its `#!` line (CVE-2019-5736). 0, or an errno. */
static int check_program(const struct vmm_child *child, const char *path) {
    char line[256], next[PATH_MAX];
    struct stat st;
    for (int depth = 0; depth < MAX_SCRIPTS; depth++) {
        VMM_CLOSE int fd = vmm_root_open(child->root, path, O_PATH, 0);
        if (fd < 0)
            return errno == ELOOP ? EACCES : errno;
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || !(st.st_mode & 0111))
            return EACCES;
        VMM_CLOSE int script = vmm_root_open(child->root, path, O_RDONLY | O_NONBLOCK, 0);
        ssize_t size = script < 0 ? 0 : read(script, line, sizeof line - 1);
        if (size < 3 || memcmp(line, "#!", 2) != 0)
            return 0;
        line[size] = 0;
        char *start = line + 2 + strspn(line + 2, " \t");
        start[strcspn(start, " \t\n")] = 0;
        if (!*start || join_path(next, "", 0, start) < 0)
            return 0; /* execve(2) will say what is wrong with it */
        path = next;
    }
    return ELOOP;
}

static int fail_exec(struct vmm_child *child, int err, struct vmm_error *e) {
    const struct vmm_record *r = child->process.exec;
    vmm_step(e, r);
    return vmm_fail(e, err == ENOENT || err == ENOTDIR ? 127 : 126, err, "exec \"%.300s\"",
                    r->argv[1]);
}

/* Each directory of PATH in turn; a file that may not be executed is remembered. */
static int search(struct vmm_child *child, struct vmm_error *e) {
    struct vmm_process *process = &child->process;
    const char *name = process->exec->argv[1], *at = search_path(process);
    int denied = 0;
    for (bool more = true; more; at += more) {
        size_t size = strcspn(at, ":");
        int err = join_path(process->program, *at == ':' || !*at ? "." : at, size ? size : 1, name)
                      ? errno
                      : check_program(child, process->program);
        if (!err)
            return 0;
        if (err != ENOENT && err != ENOTDIR)
            denied = err;
        at += size;
        more = *at == ':';
    }
    if (denied)
        return fail_exec(child, denied, e);
    vmm_step(e, process->exec);
    return vmm_fail(e, 127, 0, "exec \"%.300s\": executable file not found in $PATH", name);
}

int vmm_process_find(struct vmm_child *child, struct vmm_error *e) {
    struct vmm_process *process = &child->process;
    const char *name = process->exec->argv[1];
    if (*name && !strchr(name, '/'))
        return search(child, e);
    int err = !*name ? ENOENT
              : join_path(process->program, "", 0, name) ? errno
                                                         : check_program(child, process->program);
    return err ? fail_exec(child, err, e) : 0;
}

/* ---- limits, groups ---- */

static const struct {
    const char *name;
    int resource;
} limits[] = {
    {"as", RLIMIT_AS},           {"core", RLIMIT_CORE},     {"cpu", RLIMIT_CPU},
    {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},   {"locks", RLIMIT_LOCKS},
    {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
    {"nofile", RLIMIT_NOFILE},   {"nproc", RLIMIT_NPROC},   {"rss", RLIMIT_RSS},
    {"rtprio", RLIMIT_RTPRIO},   {"rttime", RLIMIT_RTTIME}, {"sigpending", RLIMIT_SIGPENDING},
    {"stack", RLIMIT_STACK},
};

static int parse_limit(const char *text, rlim_t *out, struct vmm_error *e) {
    long long number;
    if (vmm_number(text, 10, -1, LLONG_MAX, &number, e) < 0)
        return -1;
    *out = number < 0 ? RLIM_INFINITY : (rlim_t)number;
    return 0;
}

static int set_limit(const struct vmm_record *r, struct vmm_error *e) {
    struct rlimit value;
    size_t i = 0;
    vmm_step(e, r);
    while (i < COUNT(limits) && strcmp(limits[i].name, r->argv[1]) != 0)
        i++;
    if (i == COUNT(limits))
        return vmm_fail(e, 125, 0, "no limit is called \"%.40s\"", r->argv[1]);
    if (parse_limit(r->argv[2], &value.rlim_cur, e) < 0 ||
        parse_limit(r->argv[3], &value.rlim_max, e) < 0)
        return -1;
    if (setrlimit(limits[i].resource, &value) < 0)
        return vmm_fail(e, 125, errno, "cannot set the limit %s to %s:%s", r->argv[1], r->argv[2],
                        r->argv[3]);
    return 0;
}

/* Nothing of our own groups is left, whether or not the plan names any. */
static int set_groups(const struct vmm_process *process, struct vmm_error *e) {
    const struct vmm_record *r = process->groups;
    size_t count = r ? r->argc - 1 : 0;
    VMM_FREE gid_t *list = calloc(count + 1, sizeof *list);
    snprintf(e->step, sizeof e->step, "groups");
    if (!list)
        return vmm_fail(e, 125, ENOMEM, "groups");
    for (size_t i = 0; i < count; i++) {
        long long gid;
        if (vmm_number(r->argv[i + 1], 10, 0, 4294967294ll, &gid, e) < 0)
            return -1;
        list[i] = (gid_t)gid;
    }
    if (setgroups(count, list) < 0 && !(errno == EPERM && !count && getgroups(0, NULL) == 0))
        return vmm_fail(e, 125, errno, "cannot set the supplementary groups");
    return 0;
}

/* ---- capabilities ---- */

enum { BOUNDING, PERMITTED, EFFECTIVE, INHERITABLE, AMBIENT, SETS };

static int parse_caps(const struct vmm_record *r, uint64_t sets[SETS], struct vmm_error *e) {
    for (int i = 0; i < SETS; i++) {
        long long mask;
        if (vmm_number(r->argv[i + 1], 16, 0, LLONG_MAX, &mask, e) < 0)
            return -1;
        sets[i] = (uint64_t)mask;
    }
    return 0;
}

static int drop_bounding(uint64_t keep, struct vmm_error *e) {
    for (int cap = 0; cap < 64; cap++) {
        if (keep >> cap & 1)
            continue;
        int has = prctl(PR_CAPBSET_READ, cap);
        if (has < 0)
            break; /* the kernel's last one */
        if (has && prctl(PR_CAPBSET_DROP, cap) < 0)
            return vmm_fail(e, 125, errno, "cannot drop capability %d", cap);
    }
    return 0;
}

static int set_caps(uint64_t permitted, uint64_t effective, uint64_t inheritable) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++)
        data[i] = (struct __user_cap_data_struct){.effective = (uint32_t)(effective >> 32 * i),
                                                  .permitted = (uint32_t)(permitted >> 32 * i),
                                                  .inheritable = (uint32_t)(inheritable >> 32 * i)};
    return (int)syscall(SYS_capset, &head, data);
}

static int set_ambient(uint64_t mask) {
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        return -1;
    for (int cap = 0; cap < 64; cap++)
        if ((mask >> cap & 1) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
            return -1;
    return 0;
}

static int final_caps(const uint64_t sets[SETS], struct vmm_error *e) {
    if (set_caps(sets[PERMITTED], sets[EFFECTIVE], sets[INHERITABLE]) < 0 ||
        set_ambient(sets[AMBIENT]) < 0)
        return vmm_fail(e, 125, errno, "cannot set the capabilities");
    return 0;
}

/* ---- user ---- */

static int set_user(const struct vmm_record *r, struct vmm_error *e) {
    long long uid, gid;
    vmm_step(e, r);
    if (vmm_number(r->argv[1], 10, 0, 4294967294ll, &uid, e) < 0 ||
        vmm_number(r->argv[2], 10, 0, 4294967294ll, &gid, e) < 0)
        return -1;
    if (setresgid((gid_t)gid, (gid_t)gid, (gid_t)gid) < 0 ||
        setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0)
        return vmm_fail(e, 125, errno, "cannot become %lld:%lld", uid, gid);
    return 0;
}

/* Killed when the launcher dies. Credential changes reset this, prctl(2); and the launcher may have died
 * before: then its end of the socket is closed. (getppid(2) is 0 across a pid namespace.) */
static int bind_to_parent(int sock, struct vmm_error *e) {
    struct pollfd hangup = {.fd = sock};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return vmm_fail(e, 125, errno, "cannot be bound to the launcher");
    if (poll(&hangup, 1, 0) != 0)
        return vmm_fail(e, 125, 0, "the launcher died");
    return 0;
}

static int load_filter(const struct vmm_process *process, struct vmm_error *e) {
    const struct vmm_record *r = process->seccomp;
    if (process->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return vmm_fail(e, 125, errno, "no-new-privs");
    if (!r)
        return 0;
    struct sock_fprog program = {.len = (unsigned short)(r->len[1] / sizeof(struct sock_filter)),
                                 .filter = (struct sock_filter *)(void *)r->argv[1]};
    snprintf(e->step, sizeof e->step, "seccomp");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        return vmm_fail(e, 125, errno, "cannot load the system call filter");
    return 0;
}

/* Become the user with the capabilities wanted. Without no-new-privs a filter needs CAP_SYS_ADMIN: it is then
 * loaded while that is still held, and the last drop happens under the filter. */
static int set_identity(struct vmm_child *child, struct vmm_error *e) {
    struct vmm_process *process = &child->process;
    uint64_t sets[SETS] = {0};
    const uint64_t admin = 1ull << CAP_SYS_ADMIN;
    bool late = process->seccomp && !process->no_new_privs;
    bool caps = process->caps || (process->user && strcmp(process->user->argv[1], "0") != 0);
    if (process->caps && (vmm_step(e, process->caps), parse_caps(process->caps, sets, e) < 0 ||
                                                          drop_bounding(sets[BOUNDING], e) < 0))
        return -1;
    if (caps && prctl(PR_SET_KEEPCAPS, 1) < 0)
        return vmm_fail(e, 125, errno, "cannot keep capabilities");
    if (process->user && set_user(process->user, e) < 0)
        return -1;
    prctl(PR_SET_DUMPABLE, 0); /* a change of user set it to fs.suid_dumpable */
    if (caps && late && set_caps(sets[PERMITTED] | admin, admin, 0) < 0)
        return vmm_fail(e, 125, errno, "cannot keep CAP_SYS_ADMIN for the system call filter");
    if (caps && !late && final_caps(sets, e) < 0)
        return -1;
    if (bind_to_parent(child->sock, e) < 0 || load_filter(process, e) < 0)
        return -1;
    return caps && late ? final_caps(sets, e) : 0;
}

/* ---- exec ---- */

/* The handlers of the launcher are gone after execve(2); what it ignores would stay ignored. */
static void reset_signals(void) {
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigset_t none;
    for (int signal = 1; signal < NSIG; signal++)
        sigaction(signal, &standard, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Everything above 2 closes on exec. For vmm-init the socket stays, as 3, and its own descriptor above it. */
static int close_others(struct vmm_child *child, struct vmm_error *e) {
    if (syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */) < 0)
        return vmm_fail(e, 125, errno, "cannot close descriptors");
    if (child->init < 0)
        return 0;
    int init = fcntl(child->init, F_DUPFD_CLOEXEC, SEALED_FD + 1);
    int sock = fcntl(child->sock, F_DUPFD_CLOEXEC, SEALED_FD + 1);
    if (init < 0 || sock < 0 || dup2(sock, SEALED_FD) < 0)
        return vmm_fail(e, 125, errno, "descriptors for the init program");
    child->init = init;
    child->sock = sock;
    return 0;
}

/* `vmm-init PROGRAM ARGV…` */
static int exec_init(struct vmm_child *child, char **env) {
    const struct vmm_record *r = child->process.exec;
    char **argv = calloc(r->argc + 2, sizeof *argv);
    if (!argv)
        return -1;
    argv[0] = (char *)(uintptr_t)"vmm-init";
    argv[1] = child->process.program;
    for (uint32_t i = 1; i < r->argc; i++)
        argv[i + 1] = r->argv[i];
    return (int)syscall(SYS_execveat, child->init, "", argv, env, AT_EMPTY_PATH);
}

static int set_umask(const struct vmm_process *process, struct vmm_error *e) {
    long long mask = 0022;
    if (process->umask) {
        vmm_step(e, process->umask);
        if (vmm_number(process->umask->argv[1], 8, 0, 0777, &mask, e) < 0)
            return -1;
    }
    umask((mode_t)mask);
    return 0;
}

int vmm_process_become(struct vmm_child *child, struct vmm_error *e) {
    struct vmm_process *process = &child->process;
    if (set_umask(process, e) < 0 || set_groups(process, e) < 0)
        return -1;
    vmm_files_restore();
    for (size_t i = 0; i < process->rlimits; i++)
        if (set_limit(process->rlimit[i], e) < 0)
            return -1;
    snprintf(e->step, sizeof e->step, "process");
    if (close_others(child, e) < 0)
        return -1;
    reset_signals();
    return set_identity(child, e);
}

int vmm_process_enter(struct vmm_child *child, struct vmm_error *e) {
    struct vmm_process *process = &child->process;
    char *nothing[] = {NULL};
    char **env = process->env ? process->env : nothing;
    if (vmm_process_become(child, e) < 0)
        return -1;
    if (child->init >= 0)
        exec_init(child, env);
    else
        execve(process->program, process->exec->argv + 1, env);
    return fail_exec(child, errno, e);
}
