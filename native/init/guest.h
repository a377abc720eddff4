/* The guest side of a virtual machine: what the files of vmm-init share. */
#ifndef VMM_GUEST_H
#define VMM_GUEST_H

#include <poll.h>

#include "buffer.h"
#include "launch.h"
#include "proto.h"

enum {
    LAUNCHER = 3,               /* in a container: the launcher's socket */
    CREDIT = 256 << 10,         /* each direction of a channel, PROTOCOL.md "The guest's channel" */
    CREDIT_STEP = 64 << 10,     /* given back at once */
    INPUT_MAX = 1 << 20,        /* of standard input not taken yet, over several conversations */
    OUTPUT_HIGH = 256 << 10,    /* queued for the host: streams are read no more */
    OUTPUT_MAX = 1 << 20,       /* queued for the host: requests are read no more */
    LISTING_MAX = 4 << 20,      /* of TOP */
    QUEUE_MAX = OUTPUT_MAX + LISTING_MAX + VMM_FRAME_MAX, /* queued for the host, with what else had to be said */
    CHUNK = 32 << 10,           /* read from a stream at once; the port's driver takes no more */
    DRAIN_MS = 1000,            /* after the end, for the last holder of a stream */
    SHUTDOWN_MS = 10000,        /* after EXIT, for SHUTDOWN */
    ORDERS_MS = 60000,          /* for a host's HELLO, before a workload was started */
    PLAN_MAX = 16 << 20,
    EXECS_MAX = 256,
    MOUNTS_MAX = 64,
    ID_MAX = 64,
    MARKER = 24,                /* synchronisation: 8 bytes of magic, 16 random ones */
};

#define NEVER INT64_MAX

/* ---- what a guest is ---- */

/* A process with its streams: the workload (channel 0) or an exec. */
struct session {
    struct session *next;
    uint16_t channel;
    char id[ID_MAX + 1]; /* of the exec */
    bool tty, stdin_open, detached;
    unsigned short rows, columns;
    pid_t pid; /* 0: does not run */
    int pidfd, in, out, err, slave;
    struct buffer input;
    bool input_eof;
    bool ended, oom;
    int code, signal;
    int64_t drain_until;
    int64_t credit;  /* bytes the host still takes */
    int64_t window;  /* bytes the host may still send */
    int64_t owed;    /* taken, credit not given back yet */
    size_t stale;    /* of `input`: came in a former conversation, so nobody gets credit for it */
    bool out_told, err_told; /* the end of the stream */
};

enum state { IDLE, RUNNING, EXITED };

/* The connection to the host. */
struct channel {
    int fd;
    bool connected, synced, greeted;
    size_t start, used; /* of `in`: the first byte not handled yet, how many there are */
    size_t sent; /* bytes of the first frame in `out` that are under way */
    size_t raw;  /* bytes at the start of `out` that are no frame: the marker */
    int64_t stalled;   /* since when a frame in `in` is incomplete, NEVER */
    struct buffer out;
    uint8_t in[2 * (VMM_FRAME_HEADER + VMM_FRAME_MAX)];
};

struct guest {
    bool booted; /* pid 1 of a kernel, not a test */
    enum state state;
    struct channel channel;
    struct session workload, *execs;
    struct buffer plan_bytes;
    bool plan_too_large;
    struct vmm_plan plan;
    struct vmm_launcher *launcher;
    struct vmm_error boot; /* what failed while booting; code 0: nothing */
    const char *mounts[MOUNTS_MAX]; /* made by guest.mount, owned by `plan` */
    size_t mount_count;
    int signals, power;
    bool pressed; /* the power button; the host was not told yet */
    int64_t poweroff_at;
    bool ending;
};

int64_t now_ms(void);
/* A line on the console. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- container.c ---- */

int container_main(char **argv);

/* ---- boot.c ---- */

_Noreturn void boot_main(void);
/* Kill, sync, unmount, switch off. */
_Noreturn void boot_poweroff(struct guest *g);
void boot_unmount(struct guest *g);
/* Wait for what was killed, 2 s at most. */
void boot_reap(void);

/* ---- guest.c: the loop ---- */

int guest_main(int channel);
/* Over a booted machine's port, after a boot of which `fault` failed. */
_Noreturn void guest_serve(int channel, const struct vmm_error *fault);

/* ---- channel.c ---- */

void channel_send(struct guest *g, uint16_t channel, uint8_t type, const void *data, size_t size);
void channel_answer(struct guest *g, uint16_t channel, uint8_t type, uint32_t count,
                    const char *const *strings);
void channel_ok(struct guest *g, uint16_t channel);
void channel_error(struct guest *g, uint16_t channel, const struct vmm_error *e);
void channel_read(struct guest *g);
void channel_write(struct guest *g);
/* Handle what was read and had to wait. */
void channel_consume(struct guest *g);
/* The host broke the protocol: nothing counts until it begins anew. */
void channel_lost(struct guest *g, const char *why);
void channel_disconnected(struct guest *g);
/* Called some time after the last bytes came: half a frame of a host that went away. */
void channel_recover(struct guest *g, int64_t now);
/* Whether requests are read, and streams. */
bool channel_open(const struct guest *g);
bool channel_takes_output(const struct guest *g);

/* ---- power.c ---- */

/* Where presses of the power button are told, -1 where there is none. */
int power_open(void);
bool power_pressed(int fd);

/* ---- requests.c ---- */

void request(struct guest *g, const struct vmm_frame *frame);

/* ---- run.c: LAUNCH, EXEC ---- */

void run_plan_bytes(struct guest *g, const uint8_t *data, size_t size);
int run_workload(struct guest *g, struct vmm_error *e);
int run_exec(struct guest *g, uint16_t channel, const struct vmm_args *args, pid_t *pid,
             struct vmm_error *e);

/* ---- setup.c: guest.* ---- */

int setup_guest(struct guest *g, struct vmm_error *e);

/* ---- file.c ---- */

/* Replace a file of the running workload. */
int file_replace(struct guest *g, const char *path, const void *content, size_t size,
                 struct vmm_error *e);

/* ---- sessions.c ---- */

void session_init(struct session *s, uint16_t channel);
/* Pipes for `io`; `ends` are the process's, closed by session_adopt() once it was started or failed. */
int session_pipes(struct session *s, struct vmm_stdio *io, int ends[3], struct vmm_error *e);
void session_adopt(struct session *s, const struct vmm_stdio *io, int ends[3]);
void session_close(struct session *s);
/* End an exec that is in no list any more, and free it. */
void session_kill(struct session *s);
struct session *session_find(struct guest *g, uint16_t channel);
struct session *session_find_exec(struct guest *g, const char *id);
void session_input(struct guest *g, struct session *s, const uint8_t *data, size_t size);
void session_write(struct guest *g, struct session *s);
/* Read once from standard output (`err` false) or error, and send it. */
void session_read(struct guest *g, struct session *s, bool err);
bool session_reads(const struct guest *g, const struct session *s);
void session_resize(struct session *s, unsigned short rows, unsigned short columns);
void session_exited(struct guest *g, pid_t pid, int status);
/* A new conversation: credit begins anew, execs are ended. */
void session_anew(struct guest *g);
/* Say once more which streams of the workload are over. */
void session_tell_ends(struct guest *g);
/* Ends that are due; when the next one may be. */
int64_t session_tick(struct guest *g, int64_t now);

#endif
