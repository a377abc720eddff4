/* The processes of a running workload as lines of text (PROTOCOL.md, "Processes"). What a process calls itself
 * is its own choice: it is escaped, and every line is bounded. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define ARGUMENTS_MAX 4096
#define COMM_MAX 64
#define DEPTH_MAX 16

struct listing {
    int (*line)(void *context, const char *text, size_t size);
    void *context;
    long long boot; /* UNIX time */
};

/* proc_pid_stat(5), by the numbers of its fields. */
enum { PPID = 4, TTY_NR = 7, UTIME = 14, STIME = 15, NICE = 19, THREADS = 20, START = 22, VSIZE = 23, RSS = 24, FIELDS };

struct process {
    char comm[COMM_MAX];
    size_t comm_size;
    char state;
    long long field[FIELDS];
    unsigned long uid;
};

size_t vmm_escape(char *out, size_t room, const char *text, size_t size) {
    size_t used = 0;
    for (size_t i = 0; i < size && used + 5 <= room; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 0x20 && byte < 0x7f)
            out[used++] = (char)byte;
        else
            used += (size_t)snprintf(out + used, room - used, "\\x%02x", byte);
    }
    out[used] = 0;
    return used;
}

/* The name may hold anything, `)` and newlines too: it ends at the last `)`. */
static bool parse_stat(char *text, struct process *p) {
    char *open = strchr(text, '('), *close = strrchr(text, ')');
    if (!open || !close || close < open || close[1] != ' ' || !close[2])
        return false;
    p->comm_size = (size_t)(close - open - 1);
    if (p->comm_size > sizeof p->comm)
        p->comm_size = sizeof p->comm;
    memcpy(p->comm, open + 1, p->comm_size);
    p->state = close[2];
    char *at = close + 3;
    for (int i = PPID; i < FIELDS; i++)
        p->field[i] = strtoll(at, &at, 10);
    return true;
}

/* The effective user, as ps(1) shows it: the second number after `Uid:`. */
static bool parse_status(const char *text, struct process *p) {
    const char *at = strstr(text, "\nUid:");
    char *end;
    if (!at)
        return false;
    strtoul(at + 5, &end, 10);
    p->uid = strtoul(end, NULL, 10);
    return true;
}

static bool read_process(long pid, struct process *p) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    if (vmm_read_file(AT_FDCWD, path, text, sizeof text) <= 0 || !parse_stat(text, p))
        return false;
    snprintf(path, sizeof path, "/proc/%ld/status", pid);
    return vmm_read_file(AT_FDCWD, path, text, sizeof text) > 0 && parse_status(text, p);
}

/* The arguments with blanks between; in brackets the name of one that has none, as ps(1) shows it. */
static size_t read_arguments(long pid, const struct process *p, char *out, size_t room) {
    char path[64], text[ARGUMENTS_MAX];
    snprintf(path, sizeof path, "/proc/%ld/cmdline", pid);
    ssize_t got = vmm_read_file(AT_FDCWD, path, text, sizeof text);
    size_t size = got > 0 ? (size_t)got : 0;
    while (size && !text[size - 1])
        size--;
    if (!size) {
        size_t used = vmm_escape(out + 1, room - 2, p->comm, p->comm_size);
        out[0] = '[';
        out[used + 1] = ']';
        return used + 2;
    }
    for (size_t i = 0; i < size; i++)
        text[i] = text[i] ? text[i] : ' ';
    return vmm_escape(out, room, text, size);
}

/* One line; what ended meanwhile has none. */
static int list_process(const struct listing *l, long pid) {
    struct process p;
    char line[512 + 4 * COMM_MAX + 4 * ARGUMENTS_MAX], comm[4 * COMM_MAX + 1];
    if (!read_process(pid, &p))
        return 0;
    vmm_escape(comm, sizeof comm, p.comm, p.comm_size);
    const long long *f = p.field;
    int used = snprintf(line, sizeof line, "%ld\t%lld\t%lu\t%c\t%lld\t%lld\t%lld\t%lld\t%lld\t%lld\t%lld\t%lld\t%s\t",
                        pid, f[PPID], p.uid, p.state, f[START], f[UTIME] + f[STIME],
                        f[RSS] * sysconf(_SC_PAGESIZE), f[VSIZE], f[TTY_NR], f[NICE], f[THREADS],
                        l->boot, comm);
    size_t size = (size_t)used + read_arguments(pid, &p, line + used, sizeof line - (size_t)used);
    return l->line(l->context, line, size);
}

static int list_group(const struct listing *l, const char *directory) {
    VMM_FREE char *text = vmm_cgroup_procs(directory);
    int stop = 0;
    for (char *at = text, *end; !stop && at && *at; at = *end ? end + 1 : end) {
        long pid = strtol(at, &end, 10);
        if (end == at)
            break;
        if (pid > 0) /* 0: of a pid namespace that we do not see into */
            stop = list_process(l, pid);
    }
    return stop;
}

/* The group and those that the workload made below it. */
static int list_groups(const struct listing *l, const char *path, int depth) {
    DIR *directory = depth < DEPTH_MAX ? opendir(path) : NULL;
    struct dirent *entry;
    int stop = list_group(l, path);
    while (directory && !stop && (entry = readdir(directory))) {
        char child[PATH_MAX];
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.' &&
            snprintf(child, sizeof child, "%s/%s", path, entry->d_name) < (int)sizeof child)
            stop = list_groups(l, child, depth + 1);
    }
    if (directory)
        closedir(directory);
    return stop;
}

static long long boot_time(void) {
    struct timespec now, up;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &up);
    return (long long)now.tv_sec - up.tv_sec - (now.tv_nsec < up.tv_nsec);
}

int vmm_launch_top(const struct vmm_launcher *launcher,
                   int (*line)(void *context, const char *text, size_t size), void *context) {
    struct listing l = {.line = line, .context = context, .boot = boot_time()};
    if (launcher->target < 0)
        return 0;
    if (launcher->host.kill_group)
        return list_groups(&l, launcher->host.kill_group, 0);
    long pid = vmm_pid_of(launcher->target);
    return pid ? list_process(&l, pid) : 0;
}
