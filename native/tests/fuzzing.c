#include "fuzzing.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CORPUS_MAX = 4096, EDGES = 1 << 16, HANG_S = 10 };

struct input {
    uint8_t *data;
    size_t size;
};

static struct input corpus[CORPUS_MAX];
static size_t corpus_size;
static uint8_t current[FUZZ_LARGEST];
static size_t current_size;
static uint8_t hits[EDGES]; /* of an edge, in this input */
static uint8_t seen[EDGES]; /* of each edge the magnitudes of hits, as bits */
static uintptr_t last_edge;
static uint64_t random_state = 88172645463325252u;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_set_death_callback(void (*callback)(void));
const char *__asan_default_options(void);

__attribute__((no_sanitize_coverage)) const char *__asan_default_options(void) {
    return "abort_on_error=1:quarantine_size_mb=16";
}

__attribute__((no_sanitize_coverage, no_sanitize("address"))) void __sanitizer_cov_trace_pc(void) {
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    uintptr_t edge = (here ^ last_edge >> 1) % EDGES;
    last_edge = here;
    hits[edge] += hits[edge] < UINT8_MAX;
}

static uint8_t magnitude(uint8_t count) {
    return (uint8_t)(count < 4 ? 1u << (count - 1) : count < 8 ? 8 : count < 16 ? 16 :
                     count < 32 ? 32 : count < 128 ? 64 : 128);
}

/* Whether the input went where no other did, or more often. */
static bool look_at_hits(void) {
    bool discovered = false;
    for (size_t i = 0; i < EDGES; i += sizeof(uint64_t)) {
        uint64_t any;
        memcpy(&any, hits + i, sizeof any);
        for (size_t j = i; any && j < i + sizeof any; j++) {
            uint8_t bit = hits[j] ? magnitude(hits[j]) : 0;
            discovered |= (bit & ~seen[j]) != 0;
            seen[j] |= bit;
        }
    }
    return discovered;
}

/* ---- the end of an input that breaks something ---- */

static void save_current(void) {
    int fd = open("fuzz-crash", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && write(fd, current, current_size) == (ssize_t)current_size)
        fputs("fuzz: the input is in fuzz-crash\n", stderr);
}

static void hung(int signal) {
    (void)signal;
    save_current();
    fputs("fuzz: an input took too long\n", stderr);
    abort(); /* a sanitizer shows where */
}

void expect(bool holds, const char *format, ...) {
    va_list list;
    if (holds)
        return;
    va_start(list, format);
    fputs("fuzz: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    save_current();
    abort();
}

/* ---- mutation ---- */

static uint32_t pick(size_t below) {
    random_state ^= random_state << 13; /* xorshift64 */
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state % (below ? below : 1));
}

static void put_number(void) {
    static const uint32_t odd[] = {0,       1,     2,         4,          255,        4095,
                                   4096,    4097,  65535,     65536,      65537,      0x7fffffff,
                                   1 << 24, 64,    INT32_MAX, UINT32_MAX, 0x80000000, 10};
    uint32_t value = odd[pick(sizeof odd / sizeof *odd)];
    if (current_size > 5)
        memcpy(current + 1 + pick(current_size - 4), &value, sizeof value);
}

static void erase(void) {
    size_t from = 1 + pick(current_size - 1), size = 1 + pick(pick(8) ? 16 : current_size - from);
    if (from + size > current_size)
        return;
    memmove(current + from, current + from + size, current_size - from - size);
    current_size -= size;
}

/* A piece of another input. */
static void take_piece(void) {
    const struct input *other = &corpus[pick(corpus_size)];
    size_t from = pick(other->size), size = 1 + pick(pick(4) ? 64 : other->size - from);
    size_t at = 1 + pick(current_size - 1);
    if (from + size > other->size || current_size + size > FUZZ_LARGEST)
        return;
    memmove(current + at + size, current + at, current_size - at);
    memcpy(current + at, other->data + from, size);
    current_size += size;
}

static void mutate(void) {
    if (current_size < 2)
        return;
    switch (pick(6)) {
    case 0: current[1 + pick(current_size - 1)] ^= (uint8_t)(1u << pick(8)); break;
    case 1: current[1 + pick(current_size - 1)] = (uint8_t)pick(256); break;
    case 2: put_number(); break;
    case 3: erase(); break;
    case 4: current[1 + pick(current_size - 1)] = (uint8_t)("0123456789-/=, a"[pick(16)]); break;
    default: take_piece(); break;
    }
}

/* ---- the corpus ---- */

static void keep_current(void) {
    if (corpus_size == CORPUS_MAX)
        return;
    uint8_t *copy = malloc(current_size ? current_size : 1);
    if (!copy)
        abort();
    memcpy(copy, current, current_size);
    corpus[corpus_size++] = (struct input){copy, current_size};
}

static bool run_current(void (*run)(const uint8_t *data, size_t size)) {
    uint8_t *copy = malloc(current_size); /* exact, so that the sanitizer sees a byte too far */
    if (!copy)
        abort();
    memcpy(copy, current, current_size);
    last_edge = 0;
    memset(hits, 0, sizeof hits);
    run(copy, current_size);
    free(copy);
    return look_at_hits();
}

static void load(const char *path, void (*run)(const uint8_t *data, size_t size)) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, current, sizeof current);
    if (size < 2) {
        fprintf(stderr, "fuzz: %s is no seed\n", path);
        exit(1);
    }
    close(fd);
    current_size = (size_t)size;
    run_current(run);
    keep_current();
}

static void once(void (*run)(const uint8_t *data, size_t size)) {
    const struct input *from = &corpus[pick(corpus_size)];
    memcpy(current, from->data, from->size);
    current_size = from->size;
    for (uint32_t i = 0, count = 1 + pick(6); i < count; i++)
        mutate();
    if (run_current(run))
        keep_current();
}

static size_t count_edges(void) {
    size_t edges = 0;
    for (size_t i = 0; i < EDGES; i++)
        edges += seen[i] != 0;
    return edges;
}

static int64_t milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int fuzz(int argc, char **argv, void (*run)(const uint8_t *data, size_t size)) {
    unsigned long executions = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: %s SECONDS SEED…\n", argv[0]);
        return 2;
    }
    __sanitizer_set_death_callback(save_current);
    signal(SIGALRM, hung);
    signal(SIGPIPE, SIG_IGN);
    int64_t end = milliseconds() + 1000 * strtoll(argv[1], NULL, 10);
    for (int i = 2; i < argc; i++)
        load(argv[i], run);
    size_t seeds = corpus_size;
    for (; milliseconds() < end; executions++) {
        if (executions % 256 == 0)
            alarm(HANG_S);
        once(run);
    }
    alarm(0);
    printf("fuzz: %lu executions, %zu seeds, %zu inputs kept, %zu edges\n", executions, seeds,
           corpus_size, count_edges());
    for (size_t i = 0; i < corpus_size; i++)
        free(corpus[i].data);
    puts("fuzz: run, passed");
    return 0;
}
