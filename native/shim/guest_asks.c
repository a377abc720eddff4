/* Requests to the guest, answered in order on each channel, or given up after a while. */
#include "guest.h"

#include <stdlib.h>

struct asker asker_hold(struct asker asker)
{
    if (asker.client)
        asker.client->awaits = asker.held = true;
    return asker;
}

void asker_refuse(struct asker *asker, const char *message)
{
    struct client *c = asker_client(asker);
    if (c)
        client_refuse(c, asker->channel, message);
}

static int check(const struct shim *s, size_t size, struct vmm_error *e)
{
    const struct guest *g = s->guest;
    if (!g->greeted)
        return vmm_fail(e, 1, 0, "the guest is not connected at present");
    if (g->ask_count >= ASKS_MAX)
        return vmm_fail(e, 1, 0, "the guest does not answer");
    return size > VMM_FRAME_MAX ? vmm_fail(e, 1, 0, "the request is too long") : 0;
}

int ask_guest(struct shim *s, uint8_t type, uint16_t channel, struct asker asker,
              struct session *session, const void *payload, size_t size, struct vmm_error *e)
{
    struct guest *g = s->guest;
    if (check(s, size, e))
        return FAILED;
    struct ask *ask = calloc(1, sizeof *ask);
    if (!ask)
        return vmm_fail(e, 1, 0, "no memory for a request");
    *ask = (struct ask){.type = type, .channel = channel, .session = session,
                        .at = now_ms() + s->config.answer_ms};
    ask->asker = type == VMM_EXEC ? asker : asker_hold(asker);
    struct ask **end = &g->asks;
    while (*end)
        end = &(*end)->next;
    *end = ask;
    g->ask_count++;
    if (type != VMM_LAUNCH)
        channel_frame(g, channel, type, payload, size);
    return LATER;
}

int ask_guest_args(struct shim *s, uint8_t type, struct asker asker, uint32_t count,
                   const char *const *strings, struct vmm_error *e)
{
    uint8_t payload[512];
    size_t size = vmm_args_encode(payload, sizeof payload, count, strings);
    return ask_guest(s, type, 0, asker, NULL, payload, size, e);
}

struct ask *ask_first(struct guest *g, uint16_t channel)
{
    for (struct ask *ask = g->asks; ask; ask = ask->next)
        if (ask->channel == channel)
            return ask;
    return NULL;
}

void ask_remove(struct guest *g, struct ask *ask)
{
    struct ask **link = &g->asks;
    while (*link != ask)
        link = &(*link)->next;
    *link = ask->next;
    g->ask_count--;
    free(ask);
}

/* No answer will come. */
void asks_fail(struct shim *s, const char *message)
{
    struct guest *g = s->guest;
    while (g->asks) {
        struct ask *ask = g->asks;
        if (ask->type == VMM_EXEC)
            exec_failed(s, ask->session, 125, message);
        asker_refuse(&ask->asker, message);
        ask_remove(g, ask);
    }
}

void asks_forget(struct guest *g, const struct client *c)
{
    for (struct ask *ask = g->asks; ask; ask = ask->next)
        if (ask->asker.client == c)
            ask->asker.client = NULL;
    if (g->job.asker.client == c)
        g->job.asker.client = NULL;
}

/* Whoever asked is told; the answer, should it come, finds its request. */
void asks_tick(struct shim *s, int64_t now)
{
    for (struct ask *ask = s->guest->asks; ask; ask = ask->next) {
        if (now < ask->at)
            continue;
        ask->at = NEVER;
        if (ask->type == VMM_EXEC)
            exec_abandon(s, ask->session);
        asker_refuse(&ask->asker, "the guest did not answer in time");
    }
}

int64_t asks_deadline(const struct guest *g)
{
    int64_t at = NEVER;
    for (const struct ask *ask = g->asks; ask; ask = ask->next)
        at = ask->at < at ? ask->at : at;
    return at;
}
