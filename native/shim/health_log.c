/* What the last probes found: a file of five lines, each a JSON object, replaced as a whole. */
#include "health.h"
#include "json.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A byte is written as six at most (\ufffd); the rest of a line is short. */
enum { KEPT = 5, ENTRY_MAX = 4300 * 6 + 200, LOG_MAX = KEPT * ENTRY_MAX };

static size_t read_former(const char *path, char *text)
{
    size_t size = 0;
    VMM_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    while (fd >= 0 && size < LOG_MAX) {
        ssize_t n = read(fd, text + size, LOG_MAX - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        size += (size_t)n;
    }
    return size;
}

/* The beginning of the last KEPT - 1 lines. */
static const char *last_lines(const char *text, size_t size)
{
    const char *at = text + size;
    for (int lines = 0; at > text; at--)
        if (at[-1] == '\n' && lines++ == KEPT - 1)
            break;
    return at;
}

void health_log(const char *path, int64_t start, int64_t end, int code, const char *output,
                size_t size)
{
    VMM_FREE char *former = malloc(LOG_MAX), *text = malloc(LOG_MAX);
    if (!former || !text)
        return;
    struct text t = {.at = text, .capacity = LOG_MAX};
    size_t had = read_former(path, former);
    if (had && former[had - 1] == '\n') { /* else it is not whole, or not ours */
        const char *from = last_lines(former, had);
        text_add(&t, from, (size_t)(former + had - from));
    }
    text_format(&t, "{\"start\":%lld,\"end\":%lld,\"exit_code\":%d,\"output\":", (long long)start,
                (long long)end, code);
    text_json(&t, output, size);
    text_puts(&t, "}\n");
    if (!t.full)
        state_replace(path, text, t.size, false);
}
