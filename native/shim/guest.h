/* The workload as a guest: its monitor's side of the guest's channel (native/PROTOCOL.md) and of the control
 * program (native/LAUNCH.md, `guest`). The guest is hostile: whatever it sends is bounded, and every wait for it
 * has a deadline.
 */
#ifndef SHIM_GUEST_H
#define SHIM_GUEST_H

#include "shim.h"

enum {
    CREDIT_FULL = 256 << 10,    /* what may be under way in one direction of one channel */
    CREDIT_BACK = 64 << 10,     /* given back in pieces of this size */
    CHANNEL_LIMIT = 256 << 10,  /* waiting to be sent to the guest before less urgent things wait */
    MARKER_SIZE = 24,
    NOISE_MAX = 4 << 20,        /* bytes of an earlier connection, at most */
    ASKS_MAX = 1024,
    LISTING_MAX = 900 << 10,
    LEAVE_MS = 10000,           /* from the workload's exit, or being killed, to the guest's end */
    STOP_KILL_MS = 3000,        /* from STOP's KILL to pulling the plug */
    RECONNECT_MS = 10000,       /* a live QEMU to connect again */
    VANISH_MS = 2000,           /* the same, when its process is not known */
    JOB_MS = 60000,             /* for the control program, but for `start` */
    DESTROY_RETRY_MS = 1000,
    DESTROYS_MAX = 3,
    NEEDS_MS = 500,             /* for QEMU to go as well, as it does at an end in order */
    TIME_MS = 60000,            /* between two tellings of the time */
    STRAYS_EACH = 8, /* frames that may come late for an exec that has ended */
};

/* What the virtual machine is doing; `at` is the deadline of it. */
enum life {
    LIFE_OFF,
    LIFE_BOOTING,    /* from the control program's `start` to HELLO */
    LIFE_LAUNCHING,  /* LAUNCH was sent */
    LIFE_RUNNING,
    LIFE_LEAVING,    /* SHUTDOWN was sent */
    LIFE_VANISHED,   /* it is asked why it went */
    LIFE_DESTROYING,
};

enum job_kind { JOB_NONE, JOB_START, JOB_DESTROY, JOB_SUSPEND, JOB_RESUME, JOB_REASON };

/* A run of the control program; one at a time. */
struct job {
    enum job_kind kind;
    pid_t pid;
    int out, err;
    char line[256];  /* the beginning of its standard output */
    size_t line_size;
    char text[1024]; /* the end of its standard error */
    size_t text_size;
    int64_t at;
    bool late;
    struct asker asker;
};

/* A request that the guest owes an answer to. */
struct ask {
    struct ask *next;
    uint8_t type;
    uint16_t channel;
    struct asker asker;
    struct session *session; /* of EXEC and RESIZE */
    int64_t at;
    size_t listed;
    bool overflow; /* the client had no room for all of a listing */
};

/* Between a session's pipes and the channel. */
struct flow {
    uint16_t channel;
    bool running; /* the guest said so: bytes may flow */
    int fd[3];    /* the other ends of the session's pipes */
    struct buffer pending[2];
    bool ended[2];         /* the guest ended stdout, stderr */
    size_t owed, returned; /* received and not given back; of that, passed on */
    size_t credit;         /* what may be sent */
    bool exited;
    int code, signal;
    bool resizing; /* a RESIZE is not answered yet */
    unsigned short rows, columns;
};

struct guest {
    enum life life;
    int64_t at, kill_at, lost_at, destroy_at, time_at;
    int listen_fd, fd; /* fd: the connection of QEMU, -1 */
    bool dead;         /* the QEMU that was known is gone */
    bool adopting, launched, oom;
    bool takes_time;
    int pidfd;
    pid_t pid; /* QEMU's, 0: unknown */
    int needs; /* pidfd of the server of its shared files, -1 */
    int64_t needs_at;
    pid_t peer;    /* who connected */
    bool verified; /* and it is QEMU */
    uint8_t marker[MARKER_SIZE];
    bool synced, greeted;
    size_t noise;
    struct buffer in, out;
    struct ask *asks;
    size_t ask_count;
    struct job job;
    unsigned destroys, strays; /* strays: frames of ended execs that may still come */
    uint16_t last_channel;
    struct vmm_error failure; /* why it went, or is made to; code 0: nothing to say */
};

/* guest.c: its life */
int guest_new(struct shim *s, struct vmm_error *e);
void guest_adopt(struct shim *s);
void guest_watch(struct shim *s);
void guest_tick(struct shim *s, int64_t now);
int64_t guest_deadline(const struct shim *s);
/* LATER, or FAILED. */
int guest_boot(struct shim *s, struct vmm_error *e);
/* Pull the plug, for the reason given. */
void guest_give_up(struct shim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void guest_destroy(struct shim *s);
/* It went without a word: ask why. */
void guest_vanish(struct shim *s);
/* Neither QEMU nor its connection is there any more. */
void guest_gone(struct shim *s);
void guest_lose_execs(struct shim *s);
/* What happened: */
void guest_greeting(struct shim *s, const struct vmm_args *args);
void guest_launched(struct shim *s, pid_t pid);
void guest_refused(struct shim *s, const struct vmm_error *e);
void guest_exited(struct shim *s, int code, int signal, bool oom);
void guest_disconnected(struct shim *s);
void guest_job_line(struct shim *s);
void guest_job_done(struct shim *s, enum job_kind kind, bool failed, const char *text);
void guest_set_pid(struct shim *s, pid_t pid);
void guest_set_needs(struct shim *s, pid_t pid);
/* Its clock stands still while it is paused. */
void guest_tell_time(struct shim *s);

/* guest_driver.c: ends the sessions whose exit was told, once their output was passed on */
void guest_deliver(struct shim *s);

/* guest_channel.c: connections, synchronisation, frames */
int channel_open(struct shim *s, struct vmm_error *e);
void channel_watch(struct shim *s);
void channel_process(struct shim *s);
void channel_close(struct guest *g);
void channel_frame(struct guest *g, uint16_t channel, uint8_t type, const void *data, size_t size);
void channel_args(struct guest *g, uint16_t channel, uint8_t type, uint32_t count,
                  const char *const *strings);
/* Sections `host` and `child` of the plan; 0 or -1 without memory. */
int channel_launch(struct shim *s);
static inline bool channel_busy(const struct guest *g)
{
    return g->out.size >= CHANNEL_LIMIT;
}

/* guest_frames.c: what the guest says */
void guest_frame(struct shim *s, const struct vmm_frame *frame);

/* guest_asks.c */
int ask_guest(struct shim *s, uint8_t type, uint16_t channel, struct asker asker,
              struct session *session, const void *payload, size_t size, struct vmm_error *e);
int ask_guest_args(struct shim *s, uint8_t type, struct asker asker, uint32_t count,
                   const char *const *strings, struct vmm_error *e);
struct ask *ask_first(struct guest *g, uint16_t channel);
void ask_remove(struct guest *g, struct ask *ask);
void asks_fail(struct shim *s, const char *message);
void asks_forget(struct guest *g, const struct client *c);
void asks_tick(struct shim *s, int64_t now);
int64_t asks_deadline(const struct guest *g);
/* The asker of an answer that comes later. */
struct asker asker_hold(struct asker asker);
void asker_refuse(struct asker *asker, const char *message);

/* guest_streams.c */
/* For the moment: given back with streams_release(). */
extern uint8_t guest_scratch[VMM_FRAME_MAX];
int flow_open(struct session *session, uint16_t channel, bool detached, struct vmm_error *e);
void flow_free(struct session *session);
void flow_watch(struct shim *s, struct session *session);
/* Output of the guest, empty for its end; -1: more than it may send. */
int flow_received(struct guest *g, struct session *session, int stream, const uint8_t *data,
                  size_t size);
void flow_pump(struct guest *g, struct session *session);
/* -1: more than it was owed. */
int flow_credit(struct session *session, int64_t bytes);
bool flow_idle(const struct session *session);
void flow_reset(struct session *session);

/* guest_job.c: the control program */
int job_start(struct shim *s, enum job_kind kind, int64_t limit_ms, struct asker asker);
void job_cancel(struct shim *s);
void job_watch(struct shim *s);
void job_tick(struct shim *s, int64_t now);
void job_reaped(struct shim *s, pid_t pid, int code);

/* Text from outside: one line of printable ASCII, cut to `size`. */
void text_tame(char *out, size_t size, const char *text, size_t length);

#endif
