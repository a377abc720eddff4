/* The model of a guest's host: what may be said to it, by native/PROTOCOL.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_init.h"

enum { ASKED_MAX = 1 << 16, FLOWS_MAX = 512 };

/* A request that is to be answered. */
struct asked {
    uint16_t channel;
    uint8_t type;
    bool tty; /* of the EXEC */
};

/* A channel. Credit and input are counted over all execs that had it in this conversation. */
struct flow {
    uint16_t channel;
    bool open, tty, ended[2];
    int next[2]; /* letter of the output, -1 unknown */
    int64_t credit, sent, returned;
};

static struct {
    struct buffer bytes;
    uint8_t marker[MARKER];
    bool begun, answered, hello, greeted; /* HELLO of the guest; of the host */
    enum state state;
    struct asked asked[ASKED_MAX];
    size_t first, end; /* in `asked` */
    struct flow flows[FLOWS_MAX];
    size_t flow_count;
} host;

void host_lost(void) {
    buffer_clear(&host.bytes);
    host.begun = host.answered = host.hello = host.greeted = false;
    host.first = host.end = 0;
    host.flow_count = 0;
}

void host_reset(void) {
    host_lost();
}

static struct flow *flow_of(uint16_t channel) {
    for (size_t i = 0; i < host.flow_count; i++)
        if (host.flows[i].channel == channel)
            return &host.flows[i];
    if (host.flow_count == FLOWS_MAX) /* no input is that long */
        abort();
    struct flow *flow = &host.flows[host.flow_count++];
    *flow = (struct flow){.channel = channel, .next = {-1, -1}};
    return flow;
}

void host_begins(const struct guest *g, const uint8_t marker[MARKER]) {
    host_lost();
    host.begun = true;
    host.state = g->state;
    memcpy(host.marker, marker, MARKER);
    struct flow *flow = flow_of(0);
    flow->credit = CREDIT;
    flow->open = g->state == RUNNING;
    flow->tty = g->workload.tty;
}

/* ---- what is asked ---- */

static bool has_args(const struct vmm_frame *frame, struct vmm_args *args, uint32_t least) {
    return vmm_args_decode(frame->payload, frame->length, args) == 0 && args->count >= least;
}

static bool is_answered(const struct vmm_frame *frame, struct vmm_args *args) {
    if (frame->type == VMM_HELLO)
        return !has_args(frame, args, 1) || !vmm_version_understood(args->at[0]);
    if (!host.greeted)
        return true;
    switch (frame->type) {
    case VMM_STDIN: return false;
    case VMM_LAUNCH: return frame->length == 0;
    case VMM_CREDIT: return !has_args(frame, args, 1);
    case VMM_SHUTDOWN: return !has_args(frame, args, 0);
    case VMM_TIME:
        return !has_args(frame, args, 1) || !vmm_args_number(args, 0, 0, INT64_MAX, &(int64_t){0});
    default: return true;
    }
}

static void ask(const struct vmm_frame *frame, const struct vmm_args *args) {
    struct asked asked = {.channel = frame->channel, .type = frame->type};
    if (host.first == host.end)
        host.first = host.end = 0;
    if (frame->type == VMM_EXEC && has_args(frame, (struct vmm_args *)args, 2))
        asked.tty = !strcmp(args->at[1], "1");
    expect(host.end < ASKED_MAX, "more requests are taken than answered");
    host.asked[host.end++] = asked;
}

/* What a frame that is not answered changes. */
static void note(struct guest *g, const struct vmm_frame *frame, const struct vmm_args *args) {
    int64_t bytes;
    if (frame->type == VMM_HELLO)
        host.greeted = true;
    if (!session_find(g, frame->channel))
        return;
    if (frame->type == VMM_STDIN)
        flow_of(frame->channel)->sent += frame->length;
    if (frame->type == VMM_CREDIT && vmm_args_number(args, 0, 0, INT32_MAX, &bytes))
        flow_of(frame->channel)->credit += bytes;
}

void host_asked(struct guest *g, const struct vmm_frame *frame) {
    struct vmm_args args = {.count = 0};
    expect(host.begun, "a request is carried out in no conversation");
    if (is_answered(frame, &args))
        ask(frame, &args);
    else
        note(g, frame, &args);
}

/* ---- what the guest says ---- */

static void take_hello(const struct guest *g, const struct vmm_frame *frame) {
    static const char *const states[] = {"state=idle", "state=running", "state=exited"};
    struct vmm_args args;
    (void)g;
    expect(!host.hello && frame->channel == 0, "a second HELLO");
    expect(has_args(frame, &args, 8) && !strcmp(args.at[1], "guest"), "a HELLO without its fields");
    expect(!strcmp(args.at[2], states[host.state]), "HELLO says %s instead of %s", args.at[2],
           states[host.state]);
    host.hello = true;
}

/* The request that is due to be answered. */
static const struct asked *due(const struct vmm_frame *frame) {
    expect(host.first < host.end, "type %d on channel %d answers nothing", frame->type, frame->channel);
    const struct asked *asked = &host.asked[host.first];
    expect(asked->channel == frame->channel, "type %d answers request %d on channel %d instead of %d",
           frame->type, asked->type, frame->channel, asked->channel);
    return asked;
}

/* A process is told to run. */
static void open_flow(const struct guest *g, const struct asked *asked) {
    struct flow *flow = flow_of(asked->type == VMM_LAUNCH ? 0 : asked->channel);
    expect(!flow->open, "channel %d is in use", flow->channel);
    flow->open = true;
    flow->tty = asked->type == VMM_LAUNCH ? g->workload.tty : asked->tty;
    flow->ended[0] = flow->ended[1] = false;
    flow->next[0] = flow->next[1] = 0;
    if (asked->type == VMM_EXEC)
        flow->credit += CREDIT;
}

static void take_ok(const struct guest *g, const struct vmm_frame *frame) {
    struct vmm_args args;
    const struct asked *asked = due(frame);
    expect(has_args(frame, &args, 0), "OK with broken fields");
    if (asked->type == VMM_LAUNCH || asked->type == VMM_EXEC)
        open_flow(g, asked);
    host.first++;
}

static void take_error(const struct vmm_frame *frame) {
    struct vmm_args args;
    int64_t code;
    due(frame);
    expect(has_args(frame, &args, 3) && vmm_args_number(&args, 0, 1, 127, &code) && *args.at[2],
           "ERROR with broken fields");
    host.first++;
}

/* None is lost, none comes twice. A terminal echoes, too. */
static void check_letters(struct flow *flow, bool err, const struct vmm_frame *frame) {
    int *next = &flow->next[err];
    if (flow->tty || !frame->length)
        return;
    if (*next < 0)
        *next = (frame->payload[0] - 'a') % LETTERS;
    expect(*next >= 0 && !memcmp(frame->payload, letters(*next), frame->length),
           "output of channel %d is not in order", frame->channel);
    *next = (*next + (int)frame->length) % LETTERS;
}

static void take_output(const struct vmm_frame *frame) {
    struct flow *flow = flow_of(frame->channel);
    bool err = frame->type == VMM_STDERR;
    expect(flow->open, "output of channel %d, where nothing runs", frame->channel);
    expect(!flow->ended[err] && !(err && flow->tty), "output of channel %d after its end", frame->channel);
    flow->ended[err] = frame->length == 0;
    flow->credit -= frame->length;
    expect(flow->credit >= 0, "output of channel %d without credit", frame->channel);
    check_letters(flow, err, frame);
}

static void take_exit(const struct vmm_frame *frame) {
    struct flow *flow = flow_of(frame->channel);
    struct vmm_args args;
    int64_t code, signal;
    expect(flow->open, "EXIT of channel %d, where nothing runs", frame->channel);
    expect(flow->ended[0] && (flow->tty || flow->ended[1]), "EXIT before the ends of streams");
    expect(has_args(frame, &args, 3) && vmm_args_number(&args, 0, 0, 255, &code) &&
               vmm_args_number(&args, 1, 0, 64, &signal),
           "EXIT with broken fields");
    flow->open = false;
}

static void take_credit(const struct vmm_frame *frame) {
    struct flow *flow = flow_of(frame->channel);
    struct vmm_args args;
    int64_t bytes;
    expect(has_args(frame, &args, 1) && vmm_args_number(&args, 0, 1, CREDIT, &bytes), "broken CREDIT");
    flow->returned += bytes;
    expect(flow->returned <= flow->sent, "credit of channel %d for what was not sent", frame->channel);
}

static void take(const struct guest *g, const struct vmm_frame *frame) {
    expect(host.hello || frame->type == VMM_HELLO, "type %d before HELLO", frame->type);
    switch (frame->type) {
    case VMM_HELLO: take_hello(g, frame); break;
    case VMM_OK: take_ok(g, frame); break;
    case VMM_ERROR: take_error(frame); break;
    case VMM_STDOUT:
    case VMM_STDERR: take_output(frame); break;
    case VMM_EXIT: take_exit(frame); break;
    case VMM_CREDIT: take_credit(frame); break;
    case VMM_LISTING: expect(due(frame)->type == VMM_TOP, "a listing that was not asked for"); break;
    default: expect(false, "unknown type %d", frame->type);
    }
}

static bool take_marker(void) {
    if (host.bytes.size < MARKER)
        return false;
    expect(!memcmp(buffer_head(&host.bytes), host.marker, MARKER), "another marker than that sent");
    buffer_consume(&host.bytes, MARKER);
    host.answered = true;
    return true;
}

static bool take_frame(const struct guest *g) {
    struct vmm_frame frame;
    int got = host.bytes.size ? vmm_frame_decode(buffer_head(&host.bytes), host.bytes.size, &frame) : 0;
    expect(got >= 0, "broken framing");
    if (got <= 0)
        return false;
    take(g, &frame);
    buffer_consume(&host.bytes, vmm_frame_size(&frame));
    return true;
}

void host_takes(const struct guest *g, const uint8_t *data, size_t size) {
    if (!host.begun) /* still what was meant for a former host */
        return;
    if (buffer_append(&host.bytes, data, size) < 0)
        abort();
    while (host.answered ? take_frame(g) : take_marker())
        ;
}

bool host_talks(const uint8_t marker[MARKER]) {
    return host.begun && host.hello && !memcmp(host.marker, marker, MARKER);
}

void host_settled(void) {
    expect(host.first == host.end, "request %d was not answered", host.asked[host.first].type);
    expect(host.bytes.size == 0, "half a frame");
}
