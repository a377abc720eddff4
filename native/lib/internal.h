/* What the files of the launch library share; not for its callers. */
#ifndef VMM_INTERNAL_H
#define VMM_INTERNAL_H

#include "launch.h"

#define VMM_MAX_JOINS 16
#define VMM_MAX_RLIMITS 16
#define VMM_MAX_STATS 16

/* ---- common.c ---- */

/* Name of an operation, the number of arguments it takes (its name not counted), what carries it out. */
struct vmm_op {
    const char *name;
    uint32_t min, max;
    int (*note)(void *context, const struct vmm_record *record, struct vmm_error *e);
    int (*run)(void *context, const struct vmm_record *record, struct vmm_error *e);
};

/* Find the operation of `record`, checking its number of arguments; NULL after filling `e`. */
const struct vmm_op *vmm_op_find(const struct vmm_op *table, size_t count,
                                 const struct vmm_record *record, struct vmm_error *e);
/* Set `step` to the operation and its first two text arguments. */
void vmm_step(struct vmm_error *e, const struct vmm_record *record);
/* A whole number in `min`…`max`. `base` 8, 10 or 16. */
int vmm_number(const char *text, int base, long long min, long long max, long long *out,
               struct vmm_error *e);
/* write(2) all of `text` into an existing file, without blocking on what is no file. */
int vmm_write_file(int dir, const char *path, const char *text);
/* read(2) at most `size`-1 bytes and terminate them; -1 with errno. */
ssize_t vmm_read_file(int dir, const char *path, char *buffer, size_t size);
/* Whether the process `pid`, perhaps ended but not reaped, has not executed a program since it was forked. */
bool vmm_never_executed(pid_t pid);

/* ---- namespaces.c ---- */

struct vmm_join {
    int kind; /* CLONE_NEW… */
    const char *path;
};

/* The host section, understood. */
struct vmm_host {
    const struct vmm_plan *plan;
    unsigned long fresh; /* CLONE_NEW… to be made */
    struct vmm_join join[VMM_MAX_JOINS];
    size_t joins;
    bool has_map, has_net_ops, has_score;
    const char *groups[VMM_MAX_JOINS]; /* cgroup.join */
    size_t group_count;
    const char *oom_file, *kill_group;
    const struct vmm_record *freeze;                /* cgroup.freeze */
    const struct vmm_record *stats[VMM_MAX_STATS];
    size_t stat_count;
    int score;
};

/* Validate and note every host operation; makes nothing. */
int vmm_host_read(const struct vmm_plan *plan, struct vmm_host *host, struct vmm_error *e);

/* The flag of a namespace kind (`pid`, …), 0 if there is none such. */
int vmm_ns_flag(const char *kind);
/* Make the namespaces that outlive the process (user, net), as descriptors; -1 where none is wanted. */
int vmm_ns_make(const struct vmm_host *host, int *user, int *net, struct vmm_error *e);
/* setns(2) into each given path whose kind is in `kinds`. */
int vmm_ns_join(const struct vmm_host *host, unsigned long kinds, struct vmm_error *e);
/* Path joined for `kind`, or NULL. */
const char *vmm_ns_path(const struct vmm_host *host, int kind);
/* Every namespace kind the workload has of its own. */
unsigned long vmm_ns_all(const struct vmm_host *host);

/* ---- netlink.c ---- */

/* Carry out the net.* operations of the host section; `net` is the workload's network namespace, -1: ours. */
int vmm_net_setup(const struct vmm_host *host, int net, struct vmm_error *e);
/* Bytes that the link `name` of our own network namespace received and sent; -1 without such a link. */
int vmm_net_counters(const char *name, uint64_t *received, uint64_t *sent);

/* ---- cgroup.c ---- */

int vmm_cgroup_setup(const struct vmm_host *host, struct vmm_error *e);
/* Make a group and what it lacks above; one that is there is fine. -1 with errno. */
int vmm_cgroup_make(const char *group);
struct vmm_child;
/* Enter every cgroup of v1, and of v2 too with `v2`; there beside the process that the child joins, which may
 * have gone to a group of its own making below. Not one that is frozen, in which it would stand still. */
int vmm_cgroup_join(const struct vmm_child *child, bool v2, struct vmm_error *e);
/* Descriptor of the first v2 group to be joined (CLONE_INTO_CGROUP), -1: none. */
int vmm_cgroup_v2(const struct vmm_host *host);
uint64_t vmm_cgroup_oom(const struct vmm_host *host);
/* Number of the process of a pidfd; 0: it ended. */
long vmm_pid_of(int pidfd);
bool vmm_cgroup_is_v2(const char *directory);

/* ---- cgroup_end.c ---- */

/* Signal all processes of the kill group; how many were there, or -1 with errno. */
int vmm_cgroup_signal(const char *directory, int signal);
/* cgroup.procs of `directory`, allocated; NULL with errno. */
char *vmm_cgroup_procs(const char *directory);
/* Take away what an earlier run made below the v2 groups, so that they can be entered again. */
void vmm_cgroup_clear(const struct vmm_host *host);
/* Kill what is left, then remove what cgroup.make made; waits 2 s at most. */
void vmm_cgroup_remove(const struct vmm_host *host);

/* ---- freeze.c, stats.c, top.c: the running workload, and noting their host operations ---- */

int vmm_note_freeze(void *host, const struct vmm_record *record, struct vmm_error *e);
int vmm_note_stats(void *host, const struct vmm_record *record, struct vmm_error *e);
/* Let frozen processes go on; 0, or -1 with errno. */
int vmm_cgroup_thaw(const struct vmm_host *host);
/* `text` with what is not printable ASCII as `\xNN`, cut at `room`-1 bytes and terminated; its size. */
size_t vmm_escape(char *out, size_t room, const char *text, size_t size);

/* ---- devices.c ---- */

/* cgroup.devices: have the kernel ask the program in `record` about each use of a device. */
int vmm_devices_limit(const struct vmm_record *record, struct vmm_error *e);

/* ---- path.c: places inside the workload's root ---- */

/* openat2(2) confined to `root`; no magic links. `flags` as open(2)'s. */
int vmm_root_open(int root, const char *path, uint64_t flags, uint64_t resolve);
enum vmm_kind { VMM_DIRECTORY, VMM_REGULAR };
/* O_PATH descriptor of `path`; what is missing is made (0755, 0644), through dangling symlinks too. */
int vmm_root_make(int root, const char *path, enum vmm_kind kind, struct vmm_error *e);
/* Split into the opened parent (made if missing) and the last name (in `name`, NAME_MAX+1 bytes). */
int vmm_root_parent(int root, const char *path, char *name, struct vmm_error *e);

/* ---- files.c ---- */

/* Replace the content of the regular file `path` below `root`, made if missing; links are followed inside.
 * `mode` -1: left as it is. */
int vmm_root_write(int root, const char *path, int mode, const void *content, size_t size,
                   struct vmm_error *e);

/* ---- process.c ---- */

/* What the process is to be, applied after everything else in an order of its own. */
struct vmm_process {
    const struct vmm_record *groups, *user, *caps, *seccomp, *exec, *umask;
    const struct vmm_record *archive; /* in place of `exec` */
    const struct vmm_record *rlimit[VMM_MAX_RLIMITS];
    size_t rlimits;
    bool no_new_privs;
    char **env;
    size_t env_count;
    char program[4096]; /* the resolved path */
};

/* ---- child.c ---- */

struct vmm_child {
    const struct vmm_host *host;
    const struct vmm_record *ops;
    size_t count;
    struct vmm_stdio *io;
    int sock;        /* to the launcher: errors, the terminal */
    int net;         /* kept network namespace, -1 */
    int target;      /* pidfd of the running workload (exec), -1 */
    bool cgroups_joined; /* by the process between, before it lost the right to */
    bool in_v2;      /* born in its v2 group (CLONE_INTO_CGROUP) */
    bool frozen;     /* the workload is: stay out of the group that stands still */
    int root;        /* the root that paths are resolved in */
    int *source;     /* per operation: a mount opened on the host, -1 */
    int init;        /* program run as pid 1, -1 */
    int mask;        /* empty read-only tmpfs, attached; -1: none yet */
    int slave;       /* terminal, -1 */
    struct vmm_process process;
};

/* What goes over the socket. Type `E`: error; `P`: pid; `T`: terminal, as SCM_RIGHTS; `R`: it runs and will
 * execute no program. */
struct vmm_message {
    uint32_t type;
    int32_t pid;
    struct vmm_error error;
};

/* Does not return. */
_Noreturn void vmm_child_main(struct vmm_child *child);
/* Send `e` and end. */
_Noreturn void vmm_child_fail(int sock, const struct vmm_error *e);

/* process.c */
int vmm_process_find(struct vmm_child *child, struct vmm_error *e);
int vmm_process_enter(struct vmm_child *child, struct vmm_error *e);
/* What vmm_process_enter() does up to execve(2). */
int vmm_process_become(struct vmm_child *child, struct vmm_error *e);

/* archive.c: noting archive.get and archive.put, and being one: returns only if it cannot begin. */
int vmm_note_archive(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_archive_enter(struct vmm_child *child, struct vmm_error *e);

/* stdio.c */
int vmm_tty_open(struct vmm_child *child, struct vmm_error *e);
int vmm_tty_console(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_stdio_enter(struct vmm_child *child, struct vmm_error *e);

/* Operations: mounts.c, root.c, nodes.c. Each `child` is a struct vmm_child. */
int vmm_note_bind(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_note_init(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_root_overlay(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_root_directory(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_root_pivot(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_root_readonly(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_mount_fs(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_mount_bind(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_mount_cgroup(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_mount_mask(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_mount_readonly(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_make_directory(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_make_node(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_make_all_nodes(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_make_symlink(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_make_file(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_set_sysctl(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_set_hostname(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_set_domainname(void *child, const struct vmm_record *record, struct vmm_error *e);
int vmm_change_directory(void *child, const struct vmm_record *record, struct vmm_error *e);

/* ---- launch.c ---- */

struct vmm_launcher {
    struct vmm_host host;
    const struct vmm_plan *plan;
    bool ready; /* the host section was carried out */
    int user, net;
    int target; /* pidfd of the last process, our own copy */
    bool frozen; /* by vmm_launch_freeze() */
    uint64_t oom;
};

/* Start `child` (its ops, io, target set) and wait until it executed its program or failed. */
int vmm_spawn(struct vmm_launcher *launcher, struct vmm_child *child, pid_t *pid, int *pidfd,
              struct vmm_error *e);

#endif
