/* The guest's channel: QEMU's connection, its synchronisation, frames in and out. */
#include "guest.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int channel_open(struct shim *s, struct vmm_error *e)
{
    const char *path = s->config.channel_path;
    if (socket_listen(path, 2, &s->guest->listen_fd, e))
        return -1;
    if (chown(path, (uid_t)-1, s->config.channel_gid) || chmod(path, 0660))
        return vmm_fail(e, 125, errno, "guest's channel %.300s", path);
    return 0;
}

void channel_close(struct guest *g)
{
    vmm_close(&g->fd);
    buffer_clear(&g->in);
    buffer_clear(&g->out);
    g->verified = g->synced = g->greeted = false;
    g->noise = 0;
    g->time_at = NEVER;
}

/* ---- out ---- */

static void flush(struct guest *g)
{
    while (g->out.size) {
        ssize_t n = send(g->fd, buffer_head(&g->out), g->out.size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            buffer_clear(&g->out); /* the end shows when reading */
        if (n < 0)
            return;
        buffer_consume(&g->out, (size_t)n);
    }
}

void channel_frame(struct guest *g, uint16_t channel, uint8_t type, const void *data, size_t size)
{
    uint8_t header[VMM_FRAME_HEADER];
    if (g->fd < 0)
        return;
    vmm_frame_header(header, (uint32_t)size, channel, type);
    uint8_t *room = buffer_reserve(&g->out, VMM_FRAME_HEADER + size);
    if (!room) { /* half a conversation is worth nothing */
        shutdown(g->fd, SHUT_RDWR);
        return;
    }
    memcpy(room, header, VMM_FRAME_HEADER);
    if (size)
        memcpy(room + VMM_FRAME_HEADER, data, size);
    buffer_added(&g->out, VMM_FRAME_HEADER + size);
}

void channel_args(struct guest *g, uint16_t channel, uint8_t type, uint32_t count,
                  const char *const *strings)
{
    uint8_t payload[512];
    size_t size = vmm_args_encode(payload, sizeof payload, count, strings);
    if (size)
        channel_frame(g, channel, type, payload, size);
}

static int add_record(struct buffer *plan, uint32_t argc, const char *const *argv,
                      const uint32_t *len)
{
    VMM_FREE uint8_t *bytes = NULL;
    size_t size;
    return vmm_record_encode(argc, argv, len, &bytes, &size) || buffer_append(plan, bytes, size)
               ? -1
               : 0;
}

static int add_section(struct buffer *plan, const char *name, const struct vmm_record *records,
                       size_t count)
{
    const char *const head[] = {"section", name};
    const uint32_t lengths[] = {7, (uint32_t)strlen(name)};
    int failed = add_record(plan, 2, head, lengths);
    for (size_t i = 0; !failed && i < count; i++)
        failed = add_record(plan, records[i].argc, (const char *const *)records[i].argv,
                            records[i].len);
    return failed;
}

int channel_launch(struct shim *s)
{
    struct buffer plan = {0};
    int failed = buffer_append(&plan, "VMMLP1\n", 7) ||
                 add_section(&plan, "host", s->plan.host, s->plan.host_count) ||
                 add_section(&plan, "child", s->plan.child, s->plan.child_count);
    while (!failed && plan.size) {
        size_t n = plan.size < VMM_FRAME_MAX ? plan.size : VMM_FRAME_MAX;
        channel_frame(s->guest, 0, VMM_LAUNCH, buffer_head(&plan), n);
        buffer_consume(&plan, n);
    }
    buffer_clear(&plan);
    return failed ? -1 : 0;
}

/* ---- in ---- */

static void receive(struct shim *s, struct guest *g)
{
    uint8_t *room = buffer_reserve(&g->in, CHUNK);
    if (!room)
        return;
    ssize_t n = recv(g->fd, room, CHUNK, MSG_DONTWAIT);
    int error = errno;
    buffer_added(&g->in, n > 0 ? (size_t)n : 0);
    if (n > 0 || (n < 0 && (error == EAGAIN || error == EINTR)))
        return;
    buffer_clear(&g->out);
    channel_process(s); /* what it said before it went */
    if (g->fd >= 0) {
        channel_close(g);
        guest_disconnected(s);
    }
}

static void channel_ready(struct shim *s, void *object, short events)
{
    struct guest *g = object;
    if (g->fd < 0)
        return;
    if (!g->verified) {
        channel_close(g);
        return;
    }
    if (events & POLLOUT)
        flush(g);
    if (events & (POLLIN | POLLHUP | POLLERR))
        receive(s, g);
}

/* ---- who connects ---- */

/* The peer's pid, -1 when it is not of QEMU's user. */
static pid_t peer_of(const struct shim *s, int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.uid != s->config.channel_uid)
        return -1;
    return peer.pid;
}

static void greet(struct shim *s, struct guest *g)
{
    if (g->lost_at != NEVER)
        g->lost_at = now_ms() + s->config.answer_ms;
    memcpy(g->marker, "\0VMMSYNC", 8);
    if (getrandom(g->marker + 8, MARKER_SIZE - 8, 0) != MARKER_SIZE - 8 ||
        buffer_append(&g->out, g->marker, MARKER_SIZE)) {
        channel_close(g);
        return;
    }
    channel_args(g, 0, VMM_HELLO, 2, (const char *[]){VMM_PROTOCOL, "shim"});
}

/* Other processes of QEMU's user can connect too, and before it: nothing is said and nothing heard until the
 * control program has told which one QEMU is, or does not know either. QEMU tries again when it found the place
 * taken.
 */
static void verify(struct shim *s, struct guest *g)
{
    if (g->fd < 0 || g->verified || (!g->pid && g->job.kind == JOB_START))
        return;
    if (g->pid && g->peer != g->pid) {
        channel_close(g);
        return;
    }
    g->verified = true;
    greet(s, g);
}

/* One connection at a time: QEMU connects again only when the former one is gone. */
static void channel_accept(struct shim *s, void *object, short events)
{
    struct guest *g = object;
    int fd = accept4(g->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    (void)events;
    if (fd < 0)
        return;
    pid_t peer = peer_of(s, fd);
    if (peer < 0 || g->fd >= 0 || g->life == LIFE_OFF || g->life >= LIFE_VANISHED) {
        vmm_close(&fd);
        return;
    }
    g->fd = fd;
    g->peer = peer;
}

void channel_watch(struct shim *s)
{
    struct guest *g = s->guest;
    if (g->listen_fd >= 0 && g->life != LIFE_OFF)
        watch(g->listen_fd, POLLIN, channel_accept, g);
    verify(s, g);
    if (g->fd < 0)
        return;
    if (!g->verified) { /* it may only go */
        watch(g->fd, 0, channel_ready, g);
        return;
    }
    flush(g);
    short events = g->out.size ? POLLOUT : 0;
    if (!channel_busy(g) && g->in.size < VMM_FRAME_MAX + VMM_FRAME_HEADER)
        events |= POLLIN;
    watch(g->fd, events, channel_ready, g);
}

/* Drop everything up to and with the marker; false: it did not come yet. */
static bool synchronise(struct shim *s, struct guest *g)
{
    if (g->synced)
        return true;
    if (g->in.size < MARKER_SIZE)
        return false;
    const uint8_t *head = buffer_head(&g->in);
    const uint8_t *found = memmem(head, g->in.size, g->marker, MARKER_SIZE);
    size_t drop = found ? (size_t)(found - head) + MARKER_SIZE : g->in.size - MARKER_SIZE + 1;
    g->noise += drop;
    g->synced = found;
    buffer_consume(&g->in, drop);
    if (!found && g->noise > NOISE_MAX)
        guest_give_up(s, "guest sent no answer among %d MiB of noise", NOISE_MAX >> 20);
    return found;
}

void channel_process(struct shim *s)
{
    struct guest *g = s->guest;
    struct vmm_frame frame;
    while (g->fd >= 0 && synchronise(s, g) && !channel_busy(g)) {
        int found = g->in.size ? vmm_frame_decode(buffer_head(&g->in), g->in.size, &frame) : 0;
        if (found < 0)
            guest_give_up(s, "guest broke the framing of its channel");
        if (found <= 0)
            return;
        guest_frame(s, &frame);
        if (g->fd >= 0)
            buffer_consume(&g->in, vmm_frame_size(&frame));
    }
}
