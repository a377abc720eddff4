/* The health check (native/LAUNCH.md, `health`). */
#ifndef SHIM_HEALTH_H
#define SHIM_HEALTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct shim;
struct session;
struct probe;

/* The plan's operation `health`; without it `operations` is NULL. */
struct health_config {
    const char *log_path, *timeout_text, *operations;
    size_t operations_size;
    int64_t interval_ms, timeout_ms, start_period_ms, start_interval_ms, retries;
};

struct health {
    int64_t since; /* the workload's start, as now_ms() */
    int64_t due;   /* the next probe, when none is under way */
    uint64_t count;
    struct probe *probe; /* under way, or NULL */
};

/* health.c: the workload started, runs on under this shim, cannot be probed any more, can be again */
void health_started(struct shim *s);
void health_adopted(struct shim *s);
void health_stopped(struct shim *s);
void health_resumed(struct shim *s);
/* Of the exec of a probe: what it wrote, why it could not be started, that it ended. */
void health_output(struct shim *s, const struct session *exec, const void *data, size_t size);
void health_refused(struct shim *s, const struct session *exec, const char *why);
void health_ended(struct shim *s, const struct session *exec);
void health_tick(struct shim *s, int64_t now);
int64_t health_deadline(const struct shim *s);

/* health_log.c: append what a probe found (times in ns UTC); the last five are kept. */
void health_log(const char *path, int64_t start, int64_t end, int code, const char *output,
                size_t size);

#endif
