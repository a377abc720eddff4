/* Holding every process of a workload still, and letting them go on (cgroups(7); the kernel's
 * admin-guide/cgroup-v1/freezer-subsystem.rst and admin-guide/cgroup-v2.rst, "cgroup.freeze"). */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "internal.h"

#define FREEZE_MS 2000

int vmm_note_freeze(void *context, const struct vmm_record *r, struct vmm_error *e) {
    (void)e;
    ((struct vmm_host *)context)->freeze = r;
    return 0;
}

/* Version 2 says in cgroup.events what became of the order; version 1 in the file itself. */
static bool is_frozen(const char *file) {
    char path[PATH_MAX], text[256];
    const char *slash = strrchr(file, '/');
    if (!slash || strcmp(slash, "/cgroup.freeze") != 0)
        return vmm_read_file(AT_FDCWD, file, text, sizeof text) > 0 && !strncmp(text, "FROZEN", 6);
    snprintf(path, sizeof path, "%.*s/cgroup.events", (int)(slash - file), file);
    return vmm_read_file(AT_FDCWD, path, text, sizeof text) > 0 && strstr(text, "frozen 1");
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* A process in an uninterruptible wait delays the rest; version 1 asks again when it is told again. */
static int await_frozen(const struct vmm_record *r) {
    long waited = 0;
    for (long pause = 1; !is_frozen(r->argv[1]); pause = pause < 20 ? pause * 2 : 20) {
        if (waited >= FREEZE_MS)
            return errno = ETIMEDOUT, -1;
        sleep_ms(pause);
        waited += pause;
        if (vmm_write_file(AT_FDCWD, r->argv[1], r->argv[2]) < 0)
            return -1;
    }
    return 0;
}

int vmm_cgroup_thaw(const struct vmm_host *host) {
    return host->freeze ? vmm_write_file(AT_FDCWD, host->freeze->argv[1], host->freeze->argv[3]) : 0;
}

static int freeze(const struct vmm_launcher *launcher, bool frozen, struct vmm_error *e) {
    const struct vmm_record *r = launcher->host.freeze;
    snprintf(e->step, sizeof e->step, "cgroup.freeze");
    if (launcher->target < 0)
        return vmm_fail(e, 125, 0, "the workload is not running");
    if (!r)
        return vmm_fail(e, 125, 0, "the workload has no cgroup that can be frozen");
    vmm_step(e, r);
    if (!frozen && vmm_cgroup_thaw(&launcher->host) < 0)
        return vmm_fail(e, 125, errno, "cannot let the processes go on (%.300s)", r->argv[1]);
    if (!frozen)
        return 0;
    if (vmm_write_file(AT_FDCWD, r->argv[1], r->argv[2]) == 0 && await_frozen(r) == 0)
        return 0;
    int err = errno;
    vmm_cgroup_thaw(&launcher->host);
    return vmm_fail(e, 125, err, "cannot freeze the processes (%.300s)", r->argv[1]);
}

int vmm_launch_freeze(struct vmm_launcher *launcher, bool frozen, struct vmm_error *e) {
    if (freeze(launcher, frozen, e) < 0)
        return -1;
    launcher->frozen = frozen;
    return 0;
}
