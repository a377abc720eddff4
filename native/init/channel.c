/* The channel to the host: synchronisation, frames, what is queued (PROTOCOL.md, "The guest's channel").
 *
 * The host's end may vanish at any byte and be another one's afterwards, and the port tells of it only if it
 * is asked in between. So a marker counts at the beginning of a frame, after broken framing, and when it and
 * a HELLO are the last that came for a while in the middle of a frame; else it is data that looks like one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

enum { MAGIC = 8, STALL_MS = 300 };

static const char magic[MAGIC + 1] = "\0VMMSYNC";

bool channel_open(const struct guest *g) {
    return g->channel.connected && g->channel.out.size < OUTPUT_MAX;
}

bool channel_takes_output(const struct guest *g) {
    const struct channel *c = &g->channel;
    return c->connected && c->synced && c->greeted && c->out.size < OUTPUT_HIGH;
}

/* ---- towards the host ---- */

void channel_send(struct guest *g, uint16_t channel, uint8_t type, const void *data, size_t size) {
    struct channel *c = &g->channel;
    uint8_t header[VMM_FRAME_HEADER];
    if (!c->synced)
        return;
    vmm_frame_header(header, (uint32_t)size, channel, type);
    if (c->out.size + size > QUEUE_MAX || buffer_append(&c->out, header, sizeof header) < 0 ||
        buffer_append(&c->out, data, size) < 0)
        channel_lost(g, "no memory for an answer");
}

void channel_answer(struct guest *g, uint16_t channel, uint8_t type, uint32_t count,
                    const char *const *strings) {
    uint8_t payload[4096];
    size_t size = vmm_args_encode(payload, sizeof payload, count, strings);
    channel_send(g, channel, type, payload, size);
}

void channel_ok(struct guest *g, uint16_t channel) {
    channel_answer(g, channel, VMM_OK, 0, NULL);
}

void channel_error(struct guest *g, uint16_t channel, const struct vmm_error *e) {
    char code[16];
    snprintf(code, sizeof code, "%d", e->code ? e->code : 1);
    channel_answer(g, channel, VMM_ERROR, 3, (const char *[]){code, e->step, e->message});
}

/* Frames leave the queue whole: of one that was cut off, a new conversation can be given all. */
static void drop_sent(struct channel *c) {
    struct vmm_frame frame;
    if (c->raw && c->sent >= c->raw) {
        buffer_consume(&c->out, c->raw);
        c->sent -= c->raw;
        c->raw = 0;
    }
    while (c->sent && !c->raw && vmm_frame_decode(buffer_head(&c->out), c->out.size, &frame) > 0 &&
           c->sent >= vmm_frame_size(&frame)) {
        size_t size = vmm_frame_size(&frame);
        buffer_consume(&c->out, size);
        c->sent -= size;
    }
}

void channel_write(struct guest *g) {
    struct channel *c = &g->channel;
    while (c->connected && c->sent < c->out.size) {
        size_t left = c->out.size - c->sent;
        ssize_t done = write(c->fd, buffer_head(&c->out) + c->sent, left < CHUNK ? left : CHUNK);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno != EAGAIN)
            channel_disconnected(g);
        if (done <= 0)
            return;
        c->sent += (size_t)done;
        drop_sent(c);
    }
}

/* ---- conversations ---- */

void channel_lost(struct guest *g, const char *why) {
    struct channel *c = &g->channel;
    if (c->synced)
        complain("the host's messages make no sense: %s", why);
    c->synced = c->greeted = false;
    c->stalled = NEVER;
}

void channel_disconnected(struct guest *g) {
    struct channel *c = &g->channel;
    c->connected = c->synced = c->greeted = false;
    c->start = c->used = 0;
    c->stalled = NEVER;
    if (!g->booted)
        g->ending = true;
}

/* The end of the workload that the former host did not hear of. */
static bool has_exit(const struct buffer *old, size_t from) {
    struct vmm_frame frame;
    for (size_t at = from; vmm_frame_decode(buffer_head(old) + at, old->size - at, &frame) > 0;
         at += vmm_frame_size(&frame))
        if (frame.channel == 0 && frame.type == VMM_EXIT)
            return true;
    return false;
}

static bool is_workload_output(const struct vmm_frame *frame) {
    return frame->channel == 0 && frame->length > 0 &&
           (frame->type == VMM_STDOUT || frame->type == VMM_STDERR);
}

/* Of what the former host did not get, the workload's output goes on. */
static void send_again(struct guest *g, const struct buffer *old, size_t from) {
    struct vmm_frame frame;
    for (size_t at = from; vmm_frame_decode(buffer_head(old) + at, old->size - at, &frame) > 0;
         at += vmm_frame_size(&frame)) {
        if (!is_workload_output(&frame))
            continue;
        channel_send(g, 0, frame.type, frame.payload, frame.length);
        g->workload.credit -= frame.length;
    }
}

static void send_hello(struct guest *g) {
    static const char *const states[] = {"idle", "running", "exited"};
    char state[32], pid[32], code[32], signal[32], oom[32];
    const struct session *s = &g->workload;
    snprintf(state, sizeof state, "state=%s", states[g->state]);
    snprintf(pid, sizeof pid, "pid=%d", g->state == RUNNING ? (int)s->pid : 0);
    snprintf(code, sizeof code, "code=%d", g->state == EXITED ? s->code : 0);
    snprintf(signal, sizeof signal, "signal=%d", g->state == EXITED ? s->signal : 0);
    snprintf(oom, sizeof oom, "oom=%d", g->state == EXITED && s->oom);
    channel_answer(
        g, 0, VMM_HELLO, 8,
        (const char *[]){VMM_PROTOCOL, "guest", state, pid, code, signal, oom, "time=1"});
}

static void begin(struct guest *g, const uint8_t marker[MARKER]) {
    struct channel *c = &g->channel;
    struct buffer old = c->out;
    size_t raw = c->raw;
    c->out = (struct buffer){0};
    c->sent = 0;
    c->synced = buffer_append(&c->out, marker, MARKER) == 0;
    c->raw = c->out.size;
    c->greeted = false;
    buffer_clear(&g->plan_bytes);
    g->plan_too_large = false;
    if (has_exit(&old, raw)) { /* it ends once more, for this host */
        g->state = RUNNING;
        g->poweroff_at = NEVER;
    }
    send_hello(g);
    session_anew(g);
    send_again(g, &old, raw);
    session_tell_ends(g);
    buffer_clear(&old);
}

/* ---- from the host ---- */

static const uint8_t *head(const struct channel *c) {
    return c->in + c->start;
}

static void drop(struct channel *c, size_t size) {
    c->used -= size;
    c->start = c->used ? c->start + size : 0;
}

/* Drop all before a marker, and answer it. False: none so far. */
static bool find_marker(struct guest *g) {
    struct channel *c = &g->channel;
    uint8_t marker[MARKER];
    const uint8_t *at = memmem(head(c), c->used, magic, MAGIC);
    if (!at) {
        drop(c, c->used < MAGIC ? 0 : c->used - MAGIC + 1);
        return false;
    }
    drop(c, (size_t)(at - head(c)));
    if (c->used < MARKER)
        return false;
    memcpy(marker, head(c), MARKER);
    drop(c, MARKER);
    begin(g, marker);
    return true;
}

static bool starts_with_marker(const struct channel *c) {
    return c->used >= MAGIC && !memcmp(head(c), magic, MAGIC);
}

/* The first frame. False: it is not whole yet. */
static bool consume_one(struct guest *g) {
    struct channel *c = &g->channel;
    struct vmm_frame frame;
    int got = vmm_frame_decode(head(c), c->used, &frame);
    if (got < 0) {
        if (starts_with_marker(c))
            c->synced = c->greeted = false;
        else
            channel_lost(g, "broken framing");
        return true;
    }
    if (got == 0)
        return false;
    request(g, &frame);
    drop(c, vmm_frame_size(&frame));
    return true;
}

void channel_consume(struct guest *g) {
    struct channel *c = &g->channel;
    bool more = true;
    while (more && c->used && !g->ending && channel_open(g))
        more = c->synced ? consume_one(g) : find_marker(g);
}

/* Once for all that is read, so that many small frames are not moved for each of them. */
static void make_room(struct channel *c) {
    if (c->start)
        memmove(c->in, head(c), c->used);
    c->start = 0;
}

void channel_read(struct guest *g) {
    struct channel *c = &g->channel;
    make_room(c);
    if (c->used == sizeof c->in) /* waits for answers to be taken; reading nothing would look like the end */
        return;
    ssize_t got = read(c->fd, c->in + c->used, sizeof c->in - c->used);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        channel_disconnected(g);
        return;
    }
    c->used += (size_t)got;
    channel_consume(g);
    c->stalled = c->synced && c->used ? now_ms() + STALL_MS : NEVER;
}

/* ---- half a frame of a host that went away ---- */

/* Whether `data` is one HELLO and no more. */
static bool is_hello(const uint8_t *data, size_t size) {
    struct vmm_frame frame;
    return vmm_frame_decode(data, size, &frame) > 0 && frame.type == VMM_HELLO &&
           vmm_frame_size(&frame) == size;
}

void channel_recover(struct guest *g, int64_t now) {
    struct channel *c = &g->channel;
    if (now < c->stalled)
        return;
    c->stalled = NEVER;
    const uint8_t *end = head(c) + c->used;
    for (const uint8_t *at = head(c); (at = memmem(at, (size_t)(end - at), magic, MAGIC)); at++) {
        size_t left = (size_t)(end - at);
        if (left < MARKER || !is_hello(at + MARKER, left - MARKER))
            continue;
        drop(c, (size_t)(at - head(c)));
        c->synced = c->greeted = false;
        channel_consume(g);
        return;
    }
}
