#include "log.h"

#include "json.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A line of LOG_LINE bytes, each escaped as \u00xx, and the rest of its record. */
enum { RECORD_MAX = LOG_LINE * 6 + 128, BATCH = RECORD_MAX + CHUNK };

static SCRATCH char batch_area[BATCH];
static struct text batch = {.at = batch_area, .capacity = BATCH};

static const char *const stream_names[] = {"stdout", "stderr"};

static void open_file(struct log *log, int flags)
{
    log->fd = open(log->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | flags, 0640);
    struct stat st;
    log->size = 0;
    if (log->fd < 0)
        log->last_error = errno;
    else if (fstat(log->fd, &st) == 0)
        log->size = st.st_size;
}

/* A crash of the host may have cut the last record; the next one starts on a line of its own. */
static void mend_last_line(struct log *log)
{
    char last = '\n';
    int fd = open(log->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && log->size > 0 && pread(fd, &last, 1, log->size - 1) == 1 && last != '\n' &&
        write(log->fd, "\n", 1) == 1)
        log->size++;
    vmm_close(&fd);
}

void log_open(struct log *log, const char *path, int64_t max_size, int64_t max_files)
{
    *log = (struct log){.path = path, .fd = -1, .max_size = max_size, .max_files = max_files};
    if (!path)
        return;
    open_file(log, 0);
    if (log->fd >= 0)
        mend_last_line(log);
}

/* PATH.(n-1) becomes PATH.n, PATH becomes PATH.1; with one file its content is dropped. */
static void rotate(struct log *log)
{
    char from[4200], to[4200];
    vmm_close(&log->fd);
    for (int64_t n = log->max_files - 1; n > 0; n--) {
        snprintf(to, sizeof to, "%s.%lld", log->path, (long long)n);
        if (n > 1)
            snprintf(from, sizeof from, "%s.%lld", log->path, (long long)n - 1);
        else
            snprintf(from, sizeof from, "%s", log->path);
        rename(from, to);
    }
    open_file(log, log->max_files <= 1 ? O_TRUNC : 0);
}

static size_t count_lines(const char *data, size_t size)
{
    size_t lines = 0;
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    return lines;
}

/* Append whole records or nothing: a half-written one is cut off again. */
static int append(struct log *log, const char *data, size_t size)
{
    if (log->fd < 0)
        open_file(log, 0);
    if (log->fd < 0)
        return -1;
    ssize_t n = write(log->fd, data, size);
    if (n == (ssize_t)size) {
        log->size += n;
        return 0;
    }
    log->last_error = n < 0 ? errno : ENOSPC;
    if (n > 0 && ftruncate(log->fd, log->size))
        log->size += n;
    return -1;
}

/* Say in the log itself, where lines are missing, how many. */
static void note_dropped(struct log *log)
{
    char area[256];
    struct text t = {.at = area, .capacity = sizeof area};
    text_format(&t, "{\"log\":\"vmm: %llu log lines lost: %s\\n\",\"stream\":\"stderr\",\"time\":\"",
                (unsigned long long)log->dropped, strerror(log->last_error));
    text_time(&t, now_ns());
    text_puts(&t, "\"}\n");
    if (!t.full && append(log, area, t.size) == 0)
        log->dropped = 0;
}

static void flush_batch(struct log *log)
{
    if (!batch.size)
        return;
    if (log->max_size > 0 && log->size > 0 && log->size + (int64_t)batch.size > log->max_size)
        rotate(log);
    if (log->dropped)
        note_dropped(log);
    if (log->dropped || append(log, batch.at, batch.size))
        log->dropped += count_lines(batch.at, batch.size);
    batch.size = 0;
}

/* Small batches keep the shim small, and files within their size. */
static void flush_if_due(struct log *log)
{
    bool file_full = log->max_size > 0 && log->size + (int64_t)batch.size >= log->max_size;
    if (file_full || batch.size >= CHUNK)
        flush_batch(log);
}

static void add_record(struct log *log, int stream, const uint8_t *data, size_t size, int64_t time)
{
    size_t start = batch.size;
    for (int attempt = 0; attempt < 2; attempt++) {
        text_puts(&batch, "{\"log\":");
        text_json(&batch, data, size);
        text_puts(&batch, ",\"stream\":\"");
        text_puts(&batch, stream_names[stream]);
        text_puts(&batch, "\",\"time\":\"");
        text_time(&batch, time);
        text_puts(&batch, "\"}\n");
        if (!batch.full) {
            flush_if_due(log);
            return;
        }
        batch.full = false; /* no room: write what is complete, then again */
        batch.size = start;
        flush_batch(log);
        start = 0;
    }
}

/* Keep the incomplete line for later; full lines of LOG_LINE bytes go out in parts. */
static void hold(struct log *log, int stream, const uint8_t *data, size_t size, int64_t time)
{
    struct log_line *line = &log->lines[stream];
    if (!line->data && !(line->data = malloc(LOG_LINE))) {
        add_record(log, stream, data, size, time);
        return;
    }
    while (size) {
        size_t n = size < LOG_LINE - line->size ? size : LOG_LINE - line->size;
        memcpy(line->data + line->size, data, n);
        line->size += n;
        data += n;
        size -= n;
        if (line->size < LOG_LINE)
            break;
        size_t whole = utf8_boundary(line->data, line->size);
        add_record(log, stream, line->data, whole, time);
        memmove(line->data, line->data + whole, line->size - whole);
        line->size -= whole;
    }
}

static void release(struct log_line *line)
{
    free(line->data);
    *line = (struct log_line){0};
}

/* One whole line, newline included; its beginning may be held already. */
static void whole_line(struct log *log, int stream, const uint8_t *data, size_t size, int64_t time)
{
    struct log_line *line = &log->lines[stream];
    if (!line->size && size <= LOG_LINE) {
        add_record(log, stream, data, size, time);
        return;
    }
    hold(log, stream, data, size, time);
    if (line->size)
        add_record(log, stream, line->data, line->size, time);
    release(line);
}

void log_write(struct log *log, int stream, const uint8_t *data, size_t size)
{
    if (!log->path)
        return;
    int64_t time = now_ns();
    while (size) {
        const uint8_t *newline = memchr(data, '\n', size);
        size_t n = newline ? (size_t)(newline - data) + 1 : size;
        if (newline)
            whole_line(log, stream, data, n, time);
        else
            hold(log, stream, data, n, time);
        data += n;
        size -= n;
    }
    flush_batch(log);
}

void log_end_stream(struct log *log, int stream)
{
    struct log_line *line = &log->lines[stream];
    if (log->path && line->size) {
        add_record(log, stream, line->data, line->size, now_ns());
        flush_batch(log);
    }
    release(line);
}

void log_release(void)
{
    if (!batch.size)
        platform_release(batch_area, sizeof batch_area);
}

void log_close(struct log *log)
{
    log_end_stream(log, 0);
    log_end_stream(log, 1);
    vmm_close(&log->fd);
}
