/* Docker's json-file log: one JSON object a line, split at 16 KiB, rotated by size. */
#ifndef SHIM_LOG_H
#define SHIM_LOG_H

#include <stddef.h>
#include <stdint.h>

enum { LOG_LINE = 16 << 10 };

struct log {
    const char *path; /* NULL: no log */
    int fd;
    int64_t size, max_size, max_files;
    uint64_t dropped; /* lines that a full disk cost since the last one written */
    int last_error;
    struct log_line {
        uint8_t *data; /* LOG_LINE bytes while a line is incomplete */
        size_t size;
    } lines[2]; /* stdout, stderr */
};

/* Open for appending. A log that cannot be opened drops its lines. */
void log_open(struct log *log, const char *path, int64_t max_size, int64_t max_files);

/* Output of stream 0 (stdout) or 1 (stderr). Never fails, never waits for a reader. */
void log_write(struct log *log, int stream, const uint8_t *data, size_t size);

/* The stream ended: what is left of its last line is written without a newline. */
void log_end_stream(struct log *log, int stream);
/* Give the memory of the write buffer back; nothing is lost. */
void log_release(void);
void log_close(struct log *log);

#endif
