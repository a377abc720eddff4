/* Numbers of a running workload, as its control groups and links count them (PROTOCOL.md, "Statistics"). */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "internal.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define TEXT_MAX 16384 /* memory.stat has 1 to 4 KiB; a line of io.stat for each disk */

struct sink {
    struct vmm_stat *out;
    size_t count;
};

static void put(struct sink *sink, const char *name, uint64_t value) {
    if (sink->count < VMM_STATS_MAX)
        sink->out[sink->count++] =
            (struct vmm_stat){name, value > INT64_MAX ? INT64_MAX : (int64_t)value};
}

/* A file that is one number; false for `max`, for anything else, and without the file. */
static bool read_number(const char *path, uint64_t *out) {
    char text[64], *end;
    if (vmm_read_file(AT_FDCWD, path, text, sizeof text) <= 0)
        return false;
    *out = strtoull(text, &end, 10);
    return end != text;
}

/* What follows `key` at the start of a line of `text`; 0 without such a line. */
static uint64_t value_of(const char *text, const char *key) {
    size_t size = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (!strncmp(line, key, size) && line[size] == ' ')
            return strtoull(line + size + 1, NULL, 10);
    }
    return 0;
}

static uint64_t memory_of_host(void) {
    struct sysinfo info;
    return sysinfo(&info) < 0 ? 0 : (uint64_t)info.totalram * info.mem_unit;
}

/* ---- each kind; `argv` are its files ---- */

static void read_cpuacct(char *const *argv, struct sink *sink) {
    uint64_t value;
    if (read_number(argv[0], &value))
        put(sink, "cpu_ns", value);
}

static void read_cpu(char *const *argv, struct sink *sink) {
    char text[TEXT_MAX];
    if (vmm_read_file(AT_FDCWD, argv[0], text, sizeof text) > 0)
        put(sink, "cpu_ns", value_of(text, "usage_usec") * 1000);
}

/* Usage without the page cache that is reclaimed first, which a workload does not need to keep. */
static void read_memory(char *const *argv, const char *reclaimable, struct sink *sink) {
    char text[TEXT_MAX];
    uint64_t used, limit, all = memory_of_host();
    if (!read_number(argv[0], &used))
        return;
    if (vmm_read_file(AT_FDCWD, argv[2], text, sizeof text) > 0) {
        uint64_t cache = value_of(text, reclaimable);
        used = cache < used ? used - cache : used;
    }
    put(sink, "memory", used);
    put(sink, "memory_limit", read_number(argv[1], &limit) && limit < all ? limit : all);
}

static void read_memory1(char *const *argv, struct sink *sink) {
    read_memory(argv, "total_inactive_file", sink);
}

static void read_memory2(char *const *argv, struct sink *sink) {
    read_memory(argv, "inactive_file", sink);
}

static void read_pids(char *const *argv, struct sink *sink) {
    uint64_t value;
    if (read_number(argv[0], &value))
        put(sink, "pids", value);
    if (read_number(argv[1], &value))
        put(sink, "pids_limit", value);
}

/* Lines `MAJOR:MINOR Read BYTES` and `… Write BYTES`. */
static void read_blkio(char *const *argv, struct sink *sink) {
    char text[TEXT_MAX];
    uint64_t in = 0, out = 0;
    if (vmm_read_file(AT_FDCWD, argv[0], text, sizeof text) < 0)
        return;
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));) {
        char *word = strchr(line, ' ');
        if (word && !strncmp(word, " Read ", 6))
            in += strtoull(word + 6, NULL, 10);
        if (word && !strncmp(word, " Write ", 7))
            out += strtoull(word + 7, NULL, 10);
    }
    put(sink, "blk_read", in);
    put(sink, "blk_write", out);
}

/* Lines `MAJOR:MINOR rbytes=BYTES wbytes=BYTES …`. */
static void read_io(char *const *argv, struct sink *sink) {
    char text[TEXT_MAX];
    uint64_t in = 0, out = 0;
    if (vmm_read_file(AT_FDCWD, argv[0], text, sizeof text) < 0)
        return;
    for (char *rest = text, *word; (word = strsep(&rest, " \n"));) {
        if (!strncmp(word, "rbytes=", 7))
            in += strtoull(word + 7, NULL, 10);
        if (!strncmp(word, "wbytes=", 7))
            out += strtoull(word + 7, NULL, 10);
    }
    put(sink, "blk_read", in);
    put(sink, "blk_write", out);
}

/* What the other end of a link sends, the workload receives. */
static void read_net(char *const *argv, struct sink *sink) {
    uint64_t received, sent;
    if (vmm_net_counters(argv[0], &received, &sent) < 0)
        return;
    put(sink, "net_rx", sent);
    put(sink, "net_tx", received);
}

static void read_own(char *const *argv, struct sink *sink) {
    uint64_t received, sent;
    if (vmm_net_counters(argv[0], &received, &sent) < 0)
        return;
    put(sink, "net_rx", received);
    put(sink, "net_tx", sent);
}

static const struct kind {
    const char *name;
    uint32_t files;
    void (*read)(char *const *argv, struct sink *sink);
} kinds[] = {
    {"cpuacct", 1, read_cpuacct},   {"cpu", 1, read_cpu},   {"memory1", 3, read_memory1},
    {"memory2", 3, read_memory2},   {"pids", 2, read_pids}, {"blkio", 1, read_blkio},
    {"io", 1, read_io},             {"net", 1, read_net},   {"net-own", 1, read_own},
};

static const struct kind *find_kind(const struct vmm_record *r) {
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (!strcmp(kinds[i].name, r->argv[1]) && r->argc == 2 + kinds[i].files)
            return &kinds[i];
    return NULL;
}

int vmm_note_stats(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_host *host = context;
    if (!find_kind(r))
        return vmm_fail(e, 125, 0, "no statistics \"%.40s\" of %u files are known", r->argv[1],
                        r->argc - 2);
    if (host->stat_count == VMM_MAX_STATS)
        return vmm_fail(e, 125, 0, "more than %d statistics", VMM_MAX_STATS);
    host->stats[host->stat_count++] = r;
    return 0;
}

/* ---- the machine ---- */

/* The first line of /proc/stat, proc_stat(5): user nice system idle iowait irq softirq steal; what guests
 * took is within user. */
static void read_system(struct sink *sink) {
    char text[512];
    uint64_t ticks = 0;
    long hertz = sysconf(_SC_CLK_TCK), cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (vmm_read_file(AT_FDCWD, "/proc/stat", text, sizeof text) > 0 && !strncmp(text, "cpu ", 4)) {
        char *at = text + 4;
        for (int field = 0; field < 8; field++)
            ticks += strtoull(at, &at, 10);
        put(sink, "system_ns", ticks * (1000000000u / (uint64_t)(hertz > 0 ? hertz : 100)));
    }
    if (cpus > 0)
        put(sink, "cpus", (uint64_t)cpus);
}

size_t vmm_launch_stats(const struct vmm_launcher *launcher, struct vmm_stat out[VMM_STATS_MAX]) {
    struct sink sink = {.out = out};
    read_system(&sink);
    for (size_t i = 0; i < launcher->host.stat_count; i++) {
        const struct vmm_record *r = launcher->host.stats[i];
        find_kind(r)->read(r->argv + 2, &sink);
    }
    return sink.count;
}
