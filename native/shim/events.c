#include "json.h"
#include "shim.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EVENT_MAX = 64 << 10 };

static void attribute(struct text *t, bool *first, const char *key, size_t key_size,
                      const char *value)
{
    if (!*first)
        text_puts(t, ",");
    *first = false;
    text_json(t, key, key_size);
    text_puts(t, ":");
    text_json(t, value, strlen(value));
}

static void attributes(const struct shim *s, struct text *t, const char *const *extra)
{
    bool first = true;
    for (const char **pair = s->config.event_attrs; pair && *pair; pair++) {
        const char *equals = strchr(*pair, '=');
        if (equals)
            attribute(t, &first, *pair, (size_t)(equals - *pair), equals + 1);
    }
    for (; extra && extra[0]; extra += 2)
        attribute(t, &first, extra[0], strlen(extra[0]), extra[1]);
}

/* A full disk loses events, as it loses log lines; half a line is taken back unless others wrote after it. */
static void append(int fd, const char *line, size_t size)
{
    struct stat st;
    ssize_t n = write(fd, line, size);
    if (n <= 0 || n == (ssize_t)size)
        return;
    off_t end = lseek(fd, 0, SEEK_CUR);
    if (fstat(fd, &st) == 0 && st.st_size == end && ftruncate(fd, end - n))
        return;
}

/* One line of events.jsonl in Docker's form; opened each time, so that it may be rotated. */
void event(const struct shim *s, const char *action, const char *const *extra)
{
    char area[EVENT_MAX];
    struct text t = {.at = area, .capacity = sizeof area};
    int64_t now = now_ns();
    if (!s->config.events_path)
        return;
    text_puts(&t, "{\"Type\":\"container\",\"Action\":");
    text_json(&t, action, strlen(action));
    text_puts(&t, ",\"Actor\":{\"ID\":");
    text_json(&t, s->config.id, strlen(s->config.id));
    text_puts(&t, ",\"Attributes\":{");
    attributes(s, &t, extra);
    text_format(&t, "}},\"scope\":\"local\",\"time\":%lld,\"timeNano\":%lld}\n",
                (long long)(now / 1000000000), (long long)now);
    VMM_CLOSE int fd =
        open(s->config.events_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0 && !t.full)
        append(fd, area, t.size);
}
