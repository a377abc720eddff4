/* Errors, numbers, small files, and finding an operation in a table. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define PF_FORKNOEXEC 0x40 /* linux/sched.h: forked but didn't exec */

int vmm_fail(struct vmm_error *e, int code, int err, const char *format, ...) {
    va_list args;
    e->code = code;
    e->err = err;
    va_start(args, format);
    int used = vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
    if (err && used >= 0 && (size_t)used < sizeof e->message)
        snprintf(e->message + used, sizeof e->message - (size_t)used, ": %s", strerror(err));
    return -1;
}

void vmm_close(int *fd) {
    int saved = errno;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = saved;
}

/* The smallest of `keep` that is at least `from`; ~0U without one. */
static unsigned next_kept(const int *keep, size_t count, unsigned from) {
    unsigned next = ~0U;
    for (size_t i = 0; i < count; i++)
        if (keep[i] >= 0 && (unsigned)keep[i] >= from && (unsigned)keep[i] < next)
            next = (unsigned)keep[i];
    return next;
}

void vmm_close_except(const int *keep, size_t count) {
    for (unsigned from = 3; from != ~0U;) {
        unsigned next = next_kept(keep, count, from);
        if (next > from)
            syscall(SYS_close_range, from, next == ~0U ? next : next - 1, 0);
        from = next == ~0U ? next : next + 1;
    }
}

void vmm_free(void *pointer_to_pointer) {
    free(*(void **)pointer_to_pointer);
}

void vmm_step(struct vmm_error *e, const struct vmm_record *record) {
    const char *name = record->argv[0];
    uint32_t bytes = !strcmp(name, "seccomp") ? 1 : !strcmp(name, "cgroup.devices") ? 2 : 3;
    const char *first = record->argc > 1 && bytes > 1 ? record->argv[1] : NULL;
    const char *second = record->argc > 2 && bytes > 2 ? record->argv[2] : NULL;
    snprintf(e->step, sizeof e->step, "%.40s%s%.70s%s%.70s", name, first ? " " : "",
             first ? first : "", second ? " " : "", second ? second : "");
}

const struct vmm_op *vmm_op_find(const struct vmm_op *table, size_t count,
                                 const struct vmm_record *record, struct vmm_error *e) {
    vmm_step(e, record);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].name, record->argv[0]) != 0)
            continue;
        uint32_t given = record->argc - 1;
        if (given >= table[i].min && given <= table[i].max)
            return &table[i];
        vmm_fail(e, 125, 0, "operation \"%s\" does not take %u arguments", table[i].name, given);
        return NULL;
    }
    vmm_fail(e, 125, 0, "unknown operation \"%.100s\"", record->argv[0]);
    return NULL;
}

int vmm_number(const char *text, int base, long long min, long long max, long long *out,
               struct vmm_error *e) {
    char *end = NULL;
    errno = 0;
    *out = strtoll(text, &end, base);
    if (errno || end == text || *end || *out < min || *out > max)
        return vmm_fail(e, 125, 0, "\"%.80s\" is not a number from %lld to %lld", text, min, max);
    return 0;
}

int vmm_write_file(int dir, const char *path, const char *text) {
    VMM_CLOSE int fd = openat(dir, path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    size_t size = strlen(text);
    if (fd < 0)
        return -1;
    ssize_t done = write(fd, text, size);
    if (done >= 0 && (size_t)done != size)
        errno = EIO;
    return done == (ssize_t)size ? 0 : -1;
}

ssize_t vmm_read_file(int dir, const char *path, char *buffer, size_t size) {
    VMM_CLOSE int fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    size_t used = 0;
    if (fd < 0)
        return -1;
    while (used < size - 1) {
        ssize_t got = read(fd, buffer + used, size - 1 - used);
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        used += (size_t)got;
    }
    buffer[used] = 0;
    return (ssize_t)used;
}

/* proc_pid_stat(5), field 9; the command in field 2 may hold anything, so count from its end. */
bool vmm_never_executed(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (vmm_read_file(AT_FDCWD, path, text, sizeof text) <= 0)
        return false;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 9; field++)
        at = strchr(at + 1, ' ');
    return at && strtoul(at, NULL, 10) & PF_FORKNOEXEC;
}
