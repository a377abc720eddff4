/* archive.get and archive.put: a process inside that executes no program of the workload's. */
#include "archive.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ARG_START 48 /* proc_pid_stat(5) */

/* ---- bytes ---- */

/* The other end may have made its pipe non-blocking. */
static int await(int fd, short events) {
    struct pollfd ready = {.fd = fd, .events = events};
    return errno == EINTR || (errno == EAGAIN && (poll(&ready, 1, -1) >= 0 || errno == EINTR)) ? 0 : -1;
}

static int write_all(int fd, const uint8_t *data, size_t size) {
    while (size) {
        ssize_t done = write(fd, data, size);
        if (done < 0 && await(fd, POLLOUT) < 0)
            return -1;
        if (done < 0)
            continue;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

int vmm_out_flush(struct vmm_out *out) {
    size_t size = out->used;
    out->used = 0;
    return write_all(out->fd, out->data, size);
}

int vmm_out_bytes(struct vmm_out *out, const void *data, size_t size) {
    if (size > sizeof out->data - out->used && vmm_out_flush(out) < 0)
        return -1;
    if (size > sizeof out->data)
        return write_all(out->fd, data, size);
    if (size)
        memcpy(out->data + out->used, data, size);
    out->used += size;
    return 0;
}

int vmm_out_zeroes(struct vmm_out *out, uint64_t size) {
    static const uint8_t zeroes[4096];
    for (size_t part; size; size -= part) {
        part = size < sizeof zeroes ? (size_t)size : sizeof zeroes;
        if (vmm_out_bytes(out, zeroes, part) < 0)
            return -1;
    }
    return 0;
}

int vmm_out_record(struct vmm_out *out, uint32_t argc, const char *const *argv, const uint32_t *len) {
    VMM_FREE uint8_t *data = NULL;
    size_t size;
    if (vmm_record_encode(argc, argv, len, &data, &size) < 0)
        return errno = ENOMEM, -1;
    return vmm_out_bytes(out, data, size);
}

/* At least one byte, unless the stream ends (0). */
static ssize_t fill(struct vmm_in *in) {
    ssize_t got;
    while ((got = read(in->fd, in->data, sizeof in->data)) < 0)
        if (await(in->fd, POLLIN) < 0)
            return -1;
    in->at = 0;
    in->size = (size_t)got;
    return got;
}

int vmm_in_exactly(struct vmm_in *in, void *data, size_t size) {
    uint8_t *to = data;
    while (size) {
        ssize_t got = in->at < in->size ? 1 : fill(in);
        if (got <= 0)
            return errno = got ? errno : 0, -1;
        size_t part = in->size - in->at < size ? in->size - in->at : size;
        memcpy(to, in->data + in->at, part);
        in->at += part;
        to += part;
        size -= part;
    }
    return 0;
}

/* ---- records ---- */

struct growing {
    uint8_t *data;
    size_t used, room;
};

static int take(struct vmm_in *in, struct growing *g, size_t size, struct vmm_error *e) {
    if (size > VMM_ENTRY_MAX - g->used)
        return vmm_fail(e, 1, 0, "an entry of more than %d bytes", VMM_ENTRY_MAX);
    if (g->used + size > g->room) {
        size_t room = (g->used + size) * 2;
        uint8_t *data = realloc(g->data, room);
        if (!data)
            return vmm_fail(e, 1, ENOMEM, "an entry");
        g->data = data;
        g->room = room;
    }
    if (vmm_in_exactly(in, g->data + g->used, size) < 0)
        return vmm_fail(e, 1, errno, errno ? "cannot read the stream" : "the stream ends too early");
    g->used += size;
    return 0;
}

static int take32(struct vmm_in *in, struct growing *g, uint32_t *out, struct vmm_error *e) {
    if (take(in, g, 4, e) < 0)
        return -1;
    const uint8_t *p = g->data + g->used - 4;
    *out = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    return 0;
}

int vmm_in_record(struct vmm_in *in, struct vmm_records *out, struct vmm_error *e) {
    struct growing g = {0};
    uint32_t count, length;
    VMM_FREE uint8_t *data = NULL;
    int failed = take32(in, &g, &count, e);
    if (!failed && (count < 1 || count > 4096))
        failed = vmm_fail(e, 1, 0, "this is no stream of files");
    for (uint32_t i = 0; !failed && i < count; i++) {
        failed = take32(in, &g, &length, e);
        if (!failed)
            failed = take(in, &g, (size_t)length + 1, e);
    }
    data = g.data;
    return failed ? -1 : vmm_records_decode(g.data, g.used, out, e);
}

bool vmm_xattr_is_foreign(const char *name) {
    return !strncmp(name, "trusted.overlay.", 16) || !strncmp(name, "user.overlay.", 13) ||
           !strcmp(name, "security.selinux");
}

/* ---- the process ---- */

/* Our command line names places of the host, and everybody inside may read it: it becomes a name of its own. */
static void hide_arguments(void) {
    char text[2048];
    unsigned long start = 0, end = 0;
    if (vmm_read_file(AT_FDCWD, "/proc/self/stat", text, sizeof text) <= 0)
        return;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < ARG_START; field++)
        at = strchr(at + 1, ' ');
    if (at)
        start = strtoul(at, &at, 10);
    if (start)
        end = strtoul(at, NULL, 10);
    if (start >= end)
        return;
    char *argv = (char *)(uintptr_t)start; /* ours alone since the fork */
    memset(argv, 0, end - start);
    snprintf(argv, end - start, "vmm-archive");
}

int vmm_note_archive(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child *child = context;
    if (child->process.archive || child->io->tty)
        return vmm_fail(e, 125, 0, "an archive is the only thing to do, without a terminal");
    if (child->init >= 0)
        return vmm_fail(e, 125, 0, "an archive has no init program");
    child->process.archive = r;
    hide_arguments(); /* while /proc is the host's */
    return 0;
}

/* The launcher need not wait for an execve(2) any more. */
static int announce(struct vmm_child *child, struct vmm_error *e) {
    struct vmm_message message = {.type = 'R'};
    if (send(child->sock, &message, sizeof message, MSG_NOSIGNAL) < 0)
        return vmm_fail(e, 125, errno, "the launcher died");
    return 0;
}

static void complain(const struct vmm_error *e) {
    char text[4 * sizeof e->message + 8];
    size_t size = vmm_escape(text, sizeof text - 1, e->message, strlen(e->message));
    text[size++] = '\n';
    (void)!write(2, text, size);
}

static int get(int root, const struct vmm_record *r, struct vmm_error *e) {
    static struct vmm_out out; /* no page of it is there until it is used */
    char number[16];
    out.fd = 1;
    if (vmm_archive_get(root, r->argv[1], !strcmp(r->argv[2], "1"), &out, e) == 0)
        return 0;
    if (e->code == 1) { /* between two entries */
        int size = snprintf(number, sizeof number, "%d", e->err);
        const char *const argv[] = {"error", number, e->message};
        const uint32_t len[] = {5, (uint32_t)size, (uint32_t)strlen(e->message)};
        if (vmm_out_record(&out, 3, argv, len) == 0)
            vmm_out_flush(&out);
    }
    return -1;
}

int vmm_archive_enter(struct vmm_child *child, struct vmm_error *e) {
    const struct vmm_record *r = child->process.archive;
    if (vmm_process_become(child, e) < 0 || announce(child, e) < 0)
        return -1;
    vmm_files_raise(); /* a descriptor for each level of a tree */
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NAME, "vmm-archive");
    vmm_close_except(&child->root, 1);
    int failed = !strcmp(r->argv[0], "archive.get") ? get(child->root, r, e)
                                                    : vmm_archive_put(child->root, r->argv[1], e);
    if (failed)
        complain(e);
    _exit(failed ? 1 : 0);
}
