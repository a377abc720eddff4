/* vmm-shim: the monitor of one workload. It holds the streams, the log, the exit status and the
 * restart policy, and answers on a control socket (native/PROTOCOL.md). One thread, one poll(2)
 * loop; what differs by operating system is in platform_*.c.
 */
#ifndef SHIM_H
#define SHIM_H

#include "../lib/launch.h"
#include "../lib/proto.h"
#include "../lib/buffer.h"
#include "health.h"
#include "log.h"

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    CHUNK = 32 << 10,            /* bytes read from a stream at once */
    OUTPUT_LIMIT = 1 << 20,      /* a connection's output buffer */
    OUTPUT_RESERVE = 64 << 10,   /* of which this much is for answers alone */
    INPUT_LIMIT = 64 << 10,      /* queued standard input before its sender is no longer read */
    STALL_MS = 10000,            /* a connection that stays full this long is cut off */
    ABANDONED_MS = 30000,        /* nobody connected and nothing started: give up */
    DRAIN_MS = 1000,             /* after the end, wait for the last holder of a stream */
    CLIENTS_MAX = 256,
    EXECS_MAX = 256,
    ATTACHMENTS_MAX = 64,
    ID_MAX = 64,
};

#define NEVER INT64_MAX
/* What is given back whole with platform_release(): it shares its first page with nothing that stays. */
#define SCRATCH _Alignas(4096)

/* What a driver's function returns: an error was filled in; done; the answer comes later. */
enum outcome { FAILED = -1, DONE = 0, LATER = 1 };

enum restart_policy { RESTART_NO, RESTART_ALWAYS, RESTART_UNLESS_STOPPED, RESTART_ON_FAILURE };

/* The plan's section `shim`; texts point into the plan. Lists end with NULL. */
struct config {
    const char *id, *run_dir, *state_path, *exec_dir, *events_path, *boot_id;
    const char **event_attrs;
    const char *log_path;
    int64_t log_max_size, log_max_files;
    bool tty, stdin_open, stdin_once, wait_start;
    enum restart_policy restart;
    int64_t restart_max;
    int stop_signal;
    int64_t stop_timeout_ms;
    const char **reaper, **helper;
    const char **guest; /* the control program of a guest; NULL: a process of this kernel */
    const char *channel_path;
    gid_t channel_gid;
    uid_t channel_uid; /* of QEMU */
    int64_t boot_ms, answer_ms;
    bool adopt;
    struct health_config health;
    int *helper_fds;
    size_t helper_fd_count;
    uid_t uid; /* of the workload's process, owner of its pipes */
};

bool config_restart(const char *policy, enum restart_policy *out);
int config_read(const struct vmm_plan *plan, struct config *out, struct vmm_error *e);
void config_free(struct config *config);
/* The last `user` operation's uid, 0 without one. */
uid_t config_user(const struct vmm_record *ops, size_t count);

/* What state.json says (vmm/model/state.py). Times in ns UTC. */
struct state {
    const char *status;
    int64_t pid, exit_code, signal, restart_count;
    int64_t needs; /* a process that a guest's files come from; 0: none */
    uint64_t pid_start, needs_start, shim_start;
    bool oom_killed, manual_stop;
    char error[768];
    int64_t created, started, finished;
    const char *health; /* NULL: nothing is probed */
    int64_t failing_streak;
};

/* A process and our ends of its streams: the workload, or an exec instance. */
struct session {
    struct session *next;
    char id[ID_MAX + 1]; /* of the exec; empty: the workload */
    bool is_exec, tty, stdin_open, stdin_once, input_eof;
    int in, out, err; /* -1: closed. With a TTY `in` and `out` are both its master */
    int slave;        /* keeps a TTY open while the process lives without using it */
    struct buffer input;
    unsigned short rows, columns;
    pid_t pid;
    int pidfd;
    bool ended;
    int exit_code, signal;
    int64_t drain_until;
    uint64_t pid_start;
    int64_t started, finished;
    char *command; /* an exec's, as events show it; NULL: none are made */
    struct flow *flow;   /* between these streams and a guest's channel */
    bool starting;       /* an exec the guest was asked for; it has no pid yet */
    bool unwanted;       /* and nobody waits for it any more */
    bool probe;          /* of the health check: known to the shim alone */
};

struct attachment {
    uint16_t channel;
    bool in, out, err;
    struct session *session;
};

/* Whom a later answer is for; no client: nobody (any more). */
struct asker {
    struct client *client;
    uint16_t channel;
    bool held; /* the client's next requests wait for this answer */
};

struct client {
    struct client *next;
    int fd;
    bool dead, failed, greeted, closing;
    struct buffer in, out;
    int64_t full_since;  /* NEVER: has room */
    int64_t progress_at; /* when it last took bytes */
    bool waits, waits_next, promised, stops, told; /* told: the final EXIT was sent */
    bool starts, awaits; /* an answer to START, an answer for which its next requests wait, is due */
    uint16_t start_channel;
    struct attachment *attachments;
    size_t attached;
};

enum phase {
    PHASE_WAITING,
    PHASE_STARTING, /* a guest boots */
    PHASE_RUNNING,
    PHASE_DRAINING,
    PHASE_RESTARTING,
    PHASE_ENDING,
};

struct shim;

/* What differs between a process of this kernel (local.c) and a guest (guest.c). All but `gone`, `kill`,
 * `resize`, `ended`, `forget` and `close` return an outcome. The workload runs when they are called,
 * but for `start`, `gone`, `forget` and `close`. */
struct driver {
    int (*start)(struct shim *s, struct vmm_error *e);
    int (*exec)(struct shim *s, struct session *exec, const struct vmm_args *args,
                const struct vmm_records *ops, struct asker asker, struct vmm_error *e);
    /* `all`: every process of the workload. `exec` is its session to be signalled, or NULL; of it `all` is the
     * process group. */
    int (*signal)(struct shim *s, struct session *exec, int number, bool all, struct asker asker,
                  struct vmm_error *e);
    int (*pause)(struct shim *s, bool pause, struct asker asker, struct vmm_error *e);
    int (*stats)(struct shim *s, struct asker asker, struct vmm_error *e);
    int (*top)(struct shim *s, struct asker asker, struct vmm_error *e);
    int (*update)(struct shim *s, const struct vmm_records *ops, struct vmm_error *e);
    int (*file)(struct shim *s, const struct vmm_args *args, struct asker asker,
                struct vmm_error *e);
    void (*kill)(struct shim *s);
    void (*resize)(struct shim *s, struct session *session);
    /* The workload's process is gone: what is left of it is ended. Returns whether an OOM kill happened. */
    bool (*ended)(struct shim *s);
    /* Whether all of the workload is gone, so that its end can be announced. */
    bool (*gone)(const struct shim *s);
    void (*forget)(struct shim *s, const struct client *c);
    void (*close)(struct shim *s);
};

extern const struct driver local_driver, guest_driver;

struct shim {
    struct vmm_plan plan;
    struct config config;
    const struct driver *driver;
    struct vmm_launcher *launcher;
    struct guest *guest; /* NULL with a process of this kernel */
    struct state state;
    struct session workload;
    struct session *execs;
    struct client *clients;
    unsigned client_count;
    struct log log;
    struct health health;
    enum phase phase;
    int listen_fd, signal_fd, report_fd;
    pid_t helper;
    int64_t helper_at, helper_started; /* when to start it again */
    unsigned helper_failures;
    bool stopping, promise_kept, answered;
    bool first_start; /* the start under way is not a restart */
    bool paused;
    int manual_signal;
    int early_signal; /* came in the instant before START; 0: none did */
    bool early_manual;
    int start_signal; /* what ended the start under way; 0: nothing did */
    int64_t launched_at; /* as now_ms() */
    int64_t accept_at; /* not before: descriptors or memory were short */
    int64_t manual_until, stop_at, restart_at, backoff_ms, abandoned_at, ending_until;
};

/* listen.c: a UNIX socket (0600) in place of one that a dead shim left */
int socket_listen(const char *path, int backlog, int *out, struct vmm_error *e);

/* loop.c: what to wait for in the next round. */
typedef void (*watch_handler)(struct shim *s, void *object, short events);
void watch(int fd, short events, watch_handler handler, void *object);
void loop_run(struct shim *s);

/* clock */
int64_t now_ms(void);
int64_t now_ns(void);

/* workload.c */
int workload_start(struct shim *s, struct vmm_error *e);
void workload_started(struct shim *s, pid_t pid, uint64_t pid_start);
void workload_adopted(struct shim *s);
void workload_start_failed(struct shim *s, const struct vmm_error *e);
void workload_exited(struct shim *s, int code, int signal);
void workload_stop(struct shim *s, int signal, int64_t timeout_ms, bool manual);
int workload_signal(struct shim *s, int signal, bool all, bool manual, struct asker asker,
                    struct vmm_error *e);
int workload_pause(struct shim *s, bool pause, struct asker asker, struct vmm_error *e);
/* It was paused, or goes on. */
void workload_paused(struct shim *s, bool paused);
void workload_tick(struct shim *s, int64_t now);
int64_t workload_deadline(const struct shim *s);

/* report.c: what the caller is told over the report descriptor */
void report_line(int fd, const char *text);
void report_error(int fd, struct vmm_error *e);
/* Tell whoever waits for a start that took a while; false: nobody could be told. */
void starters_answer(struct shim *s);
bool starters_refuse(struct shim *s, const struct vmm_error *e);

/* ending.c: the end for good */
void ending_begin(struct shim *s);
bool ending_done(struct shim *s, int64_t now);
void ending_finish(struct shim *s);

/* children.c: reaping, the helper, the reaper */
void children_ready(struct shim *s, void *object, short events);
void helper_start(struct shim *s);
void helper_stop(struct shim *s);
int reaper_start(struct shim *s);

/* exec.c */
int exec_start(struct shim *s, const struct vmm_args *args, struct asker asker,
               struct session **out, struct vmm_error *e);
/* A probe of the health check. */
int exec_probe(struct shim *s, const char *id, const char *operations, size_t size,
               struct session **out, struct vmm_error *e);
void exec_started(struct shim *s, struct session *exec, pid_t pid);
/* The guest refused it: forget it. */
void exec_failed(struct shim *s, struct session *exec, int code, const char *why);
void exec_abandon(struct shim *s, struct session *exec);
struct session *exec_find(struct shim *s, const char *id);
void exec_exited(struct shim *s, struct session *exec, int code, int signal);
void exec_tick(struct shim *s, int64_t now);

/* streams.c */
int streams_open(struct session *session, struct vmm_stdio *io, int child_ends[3], uid_t uid,
                 bool detached, struct vmm_error *e);
void streams_adopt(struct session *session, const struct vmm_stdio *io, int child_ends[3]);
void streams_close(struct session *session);
void streams_watch(struct shim *s, struct session *session);
void streams_input(struct session *session, const uint8_t *data, size_t size);
void streams_input_eof(struct session *session);
bool streams_input_full(const struct session *session);
bool streams_drained(const struct session *session, int64_t now);
void streams_end(struct session *session, int64_t now);
void streams_release(void);
void streams_resize(struct session *session, unsigned short rows, unsigned short columns);

/* client.c */
void client_accept(struct shim *s, void *object, short events);
void clients_watch(struct shim *s);
void clients_process(struct shim *s);
void clients_sweep(struct shim *s, int64_t now);
void clients_close(struct shim *s);
int64_t clients_deadline(const struct shim *s);
void client_frame(struct client *c, uint16_t channel, uint8_t type, const void *data, size_t size);
void client_args(struct client *c, uint16_t channel, uint8_t type, uint32_t count,
                 const char *const *strings);
void client_error(struct client *c, uint16_t channel, const struct vmm_error *e);
void client_refuse(struct client *c, uint16_t channel, const char *message);
void client_exit(struct client *c, uint16_t channel, const struct state *state);
void client_ok(struct client *c, uint16_t channel);
void client_ok_pid(struct client *c, uint16_t channel, int64_t pid);
struct asker client_asks(struct client *c, uint16_t channel);
/* The client of a later answer, free to ask on; NULL when it is gone. */
struct client *asker_client(struct asker *asker);
void client_flush(struct client *c);
bool client_full(const struct client *c);
struct attachment *client_attach(struct client *c, uint16_t channel, struct session *session);
struct attachment *client_attachment(struct client *c, uint16_t channel);
void client_detach(struct client *c, uint16_t channel);
bool session_congested(const struct shim *s, const struct session *session);
void session_output(struct shim *s, struct session *session, uint8_t type, const uint8_t *data,
                    size_t size);
void session_exit(struct shim *s, struct session *session);

/* requests.c */
void request_handle(struct shim *s, struct client *c, const struct vmm_frame *frame);

/* state.c */
int state_begin(struct shim *s, struct vmm_error *e);
size_t state_text(const struct shim *s, char *out, size_t size);
void state_write(struct shim *s);
int state_replace(const char *path, const char *data, size_t size, bool durable);
void exec_state_write(const struct shim *s, const struct session *exec);

/* events.c; `extra` is "key", "value" pairs ending with NULL */
void event(const struct shim *s, const char *action, const char *const *extra);

/* platform_*.c */
int platform_signals(void);
bool platform_signal_next(int fd, int *signal);
uint64_t platform_process_start(pid_t pid);
/* -1 with errno; close-on-exec. */
int platform_pidfd(pid_t pid);
int platform_kill(int pidfd, int signal);
/* The group led by a child that was not reaped yet. */
int platform_kill_group(pid_t leader, int signal);
bool platform_peer_allowed(int fd);
bool platform_delivered(int fd);
int platform_seal(struct vmm_error *e);
int platform_tty_slave(int master);
void platform_harden(void);
void platform_release(void *area, size_t size);
void platform_release_stack(void);
void platform_release_heap(void);
void platform_die_with_parent(void);

#endif
