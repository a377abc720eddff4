#include "json.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STATE_MAX = 8192 };

/* The number after `"key":` in a state file that a shim wrote; 0 without one. Inside a JSON string
 * a quotation mark is escaped, so the pattern cannot occur there. */
static int64_t number_of(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoll(at + strlen(key), NULL, 10) : 0;
}

/* What the shim before this one knew of a guest that runs on. */
static void read_running(struct shim *s, const char *text)
{
    struct state *state = &s->state;
    state->pid = number_of(text, "\"pid\":");
    state->pid_start = (uint64_t)number_of(text, "\"pid_start\":");
    state->needs = number_of(text, "\"needs\":");
    state->needs_start = (uint64_t)number_of(text, "\"needs_start\":");
    state->restart_count = number_of(text, "\"restart_count\":");
    state->manual_stop = strstr(text, "\"manual_stop\":true");
    state->exit_code = 0;
    state->status = strstr(text, "\"status\":\"paused\"") ? "paused" : "running";
}

/* A state of an earlier run holds until the next one. */
static const char *read_health(const char *text)
{
    static const char *const known[] = {"starting", "healthy", "unhealthy"};
    const char *at = strstr(text, "\"health\":\"");
    for (size_t i = 0; at && i < sizeof known / sizeof *known; i++)
        if (!strncmp(at + strlen("\"health\":\""), known[i], strlen(known[i])))
            return known[i];
    return NULL;
}

/* What an earlier run left: when the workload was created, when it last ended. */
static void read_former(struct shim *s)
{
    char text[STATE_MAX + 1];
    VMM_CLOSE int fd = open(s->config.state_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    ssize_t n = fd < 0 ? -1 : read(fd, text, STATE_MAX);
    if (n <= 0)
        return;
    text[n] = 0;
    s->state.created = number_of(text, "\"created\":");
    s->state.started = number_of(text, "\"started\":");
    s->state.finished = number_of(text, "\"finished\":");
    s->state.exit_code = number_of(text, "\"exit_code\":");
    s->state.health = read_health(text);
    s->state.failing_streak = number_of(text, "\"failing_streak\":");
    if (s->config.adopt)
        read_running(s, text);
}

static void state_init(struct shim *s)
{
    s->state = (struct state){.status = "created", .shim_start = platform_process_start(getpid())};
    read_former(s);
    if (!s->state.created)
        s->state.created = now_ns();
    if (s->state.finished && !s->config.adopt) /* an earlier run ended: that stays true until the next one */
        s->state.status = "exited";
}

static const char *boolean(bool value)
{
    return value ? "true" : "false";
}

size_t state_text(const struct shim *s, char *out, size_t size)
{
    const struct state *state = &s->state;
    struct text t = {.at = out, .capacity = size};
    text_format(&t, "{\"schema\":1,\"status\":\"%s\",\"pid\":%lld,\"pid_start\":%llu", state->status,
                (long long)state->pid, (unsigned long long)state->pid_start);
    text_format(&t, ",\"needs\":%lld,\"needs_start\":%llu", (long long)state->needs,
                (unsigned long long)state->needs_start);
    text_format(&t, ",\"shim_pid\":%d,\"shim_start\":%llu,\"boot_id\":", (int)getpid(),
                (unsigned long long)state->shim_start);
    text_json(&t, s->config.boot_id, strlen(s->config.boot_id));
    text_format(&t, ",\"exit_code\":%lld,\"signal\":%lld,\"oom_killed\":%s,\"error\":",
                (long long)state->exit_code, (long long)state->signal, boolean(state->oom_killed));
    text_json(&t, state->error, strlen(state->error));
    text_format(&t, ",\"created\":%lld,\"started\":%lld,\"finished\":%lld", (long long)state->created,
                (long long)state->started, (long long)state->finished);
    text_format(&t, ",\"health\":\"%s\",\"failing_streak\":%lld",
                state->health ? state->health : "", (long long)state->failing_streak);
    text_format(&t, ",\"restart_count\":%lld,\"manual_stop\":%s}\n", (long long)state->restart_count,
                boolean(state->manual_stop));
    return t.full ? 0 : t.size;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Replace `path`: temporary file, fsync if `durable`, rename. */
int state_replace(const char *path, const char *data, size_t size, bool durable)
{
    char temporary[4200];
    int length = snprintf(temporary, sizeof temporary, "%s.tmp", path);
    if (length < 0 || (size_t)length >= sizeof temporary)
        return -1;
    VMM_CLOSE int fd =
        open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    if (write_all(fd, data, size) || (durable && fsync(fd)) || rename(temporary, path)) {
        unlink(temporary);
        return -1;
    }
    return 0;
}

/* On a full disk: over the former text, whose blocks are there; blanks after it make no difference to JSON.
 * Not atomic when the power fails in between, but better than a state that is not true. */
static int overwrite(const char *path, char *text, size_t size)
{
    struct stat st;
    VMM_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0 || st.st_size > STATE_MAX)
        return -1;
    size_t padded = size > (size_t)st.st_size ? size : (size_t)st.st_size;
    memset(text + size, ' ', padded - size);
    return pwrite(fd, text, padded, 0) == (ssize_t)padded ? 0 : -1;
}

static int write_state(const struct shim *s)
{
    char text[STATE_MAX];
    size_t size = state_text(s, text, sizeof text);
    bool ran = strcmp(s->state.status, "created") != 0; /* before that, nothing would be lost */
    if (!size || !state_replace(s->config.state_path, text, size, ran || s->state.manual_stop))
        return 0;
    int reason = errno;
    if (!overwrite(s->config.state_path, text, size))
        return 0;
    errno = reason;
    return -1;
}

void state_write(struct shim *s)
{
    write_state(s);
}

/* Nothing is started without a file that later states can be written over, whatever fills the disk. */
int state_begin(struct shim *s, struct vmm_error *e)
{
    state_init(s);
    if (!s->state.finished && write_state(s))
        return vmm_fail(e, 125, errno, "cannot write %s", s->config.state_path);
    return 0;
}

void exec_state_write(const struct shim *s, const struct session *exec)
{
    char path[4200], area[512];
    if (!s->config.exec_dir || exec->probe)
        return;
    int length = snprintf(path, sizeof path, "%s/%s.json", s->config.exec_dir, exec->id);
    if (length < 0 || (size_t)length >= sizeof path)
        return;
    struct text t = {.at = area, .capacity = sizeof area};
    text_format(&t, "{\"id\":\"%s\",\"running\":%s", exec->id, boolean(exec->pid > 0));
    text_format(&t, ",\"pid\":%d,\"pid_start\":%llu,\"exit_code\":%d", (int)exec->pid,
                (unsigned long long)exec->pid_start, exec->exit_code);
    text_format(&t, ",\"started\":%lld,\"finished\":%lld}\n", (long long)exec->started,
                (long long)exec->finished);
    state_replace(path, area, t.size, false);
}
