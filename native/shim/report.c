/* What whoever started the workload is told, at once or when a guest has booted. */
#include "shim.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void report_line(int fd, const char *text)
{
    size_t size = strlen(text);
    if (fd >= 0 && write(fd, text, size) != (ssize_t)size)
        return; /* the caller is gone: nobody to tell */
}

static void one_line(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ')
            *text = ' ';
}

void report_error(int fd, struct vmm_error *e)
{
    char line[900];
    one_line(e->step);
    one_line(e->message);
    snprintf(line, sizeof line, "error %d\t%s\t%s\n", e->code, e->step, e->message);
    report_line(fd, line);
}

/* The next client that waits for its START, which it does no longer. */
static struct client *next_starter(struct shim *s)
{
    for (struct client *c = s->clients; c; c = c->next)
        if (c->starts) {
            c->starts = c->awaits = false;
            return c;
        }
    return NULL;
}

void starters_answer(struct shim *s)
{
    char line[40];
    snprintf(line, sizeof line, "running %lld\n", (long long)s->state.pid);
    report_line(s->report_fd, line);
    vmm_close(&s->report_fd);
    for (struct client *c; (c = next_starter(s));)
        client_ok_pid(c, c->start_channel, s->state.pid);
}

bool starters_refuse(struct shim *s, const struct vmm_error *e)
{
    struct vmm_error copy = *e;
    bool told = s->report_fd >= 0;
    report_error(s->report_fd, &copy);
    vmm_close(&s->report_fd);
    for (struct client *c; (c = next_starter(s));) {
        client_error(c, c->start_channel, e);
        told |= !c->dead;
    }
    return told;
}
