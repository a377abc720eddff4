/* Operations `guest.*` of the host section (LAUNCH.md): the machine's disks, directories, and the streams. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"
#include "internal.h"
#include "sys.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

enum { DISK_MS = 5000, LOOK_MS = 5 };

static const struct {
    const char *name;
    unsigned long flag;
} flags[] = {
    {"ro", MS_RDONLY},     {"nosuid", MS_NOSUID},     {"nodev", MS_NODEV},
    {"noexec", MS_NOEXEC}, {"relatime", MS_RELATIME}, {"strictatime", MS_STRICTATIME},
    {"noatime", MS_NOATIME},
};

static int add_flag(const char *name, size_t size, unsigned long *out, struct vmm_error *e) {
    for (size_t i = 0; i < COUNT(flags); i++) {
        if (strlen(flags[i].name) != size || memcmp(flags[i].name, name, size) != 0)
            continue;
        *out |= flags[i].flag;
        return 0;
    }
    return vmm_fail(e, 125, 0, "unknown mount flag \"%.*s\"", (int)(size < 40 ? size : 40), name);
}

static int parse_flags(const char *text, unsigned long *out, struct vmm_error *e) {
    *out = 0;
    for (size_t size; *text; text += size + (text[size] == ',')) {
        size = strcspn(text, ",");
        if (size && add_flag(text, size, out, e) < 0)
            return -1;
    }
    return 0;
}

/* ---- disks ---- */

static bool has_serial(const char *disk, const char *serial) {
    char path[300], text[64];
    snprintf(path, sizeof path, "/sys/block/%s/serial", disk);
    ssize_t size = vmm_read_file(AT_FDCWD, path, text, sizeof text);
    if (size > 0 && text[size - 1] == '\n')
        text[size - 1] = 0;
    return size > 0 && !strcmp(text, serial);
}

/* The device of the disk, "" if there is none. */
static void look_for_disk(const char *serial, char *out, size_t size) {
    DIR *blocks = opendir("/sys/block");
    *out = 0;
    for (struct dirent *entry; blocks && !*out && (entry = readdir(blocks));)
        if (entry->d_name[0] != '.' && has_serial(entry->d_name, serial))
            snprintf(out, size, "/dev/%s", entry->d_name);
    if (blocks)
        closedir(blocks);
    if (*out && access(out, F_OK) < 0)
        *out = 0;
}

/* A disk shows some time after its driver was loaded. */
static int find_disk(const char *serial, char *out, size_t size, struct vmm_error *e) {
    int64_t end = now_ms() + DISK_MS;
    do {
        look_for_disk(serial, out, size);
        if (*out)
            return 0;
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000l}, NULL);
    } while (now_ms() < end);
    return vmm_fail(e, 125, ENODEV, "no disk of this machine has the serial \"%.40s\"", serial);
}

/* ---- the operations ---- */

struct setup {
    struct guest *g;
    int root;
};

/* guest.mount SOURCE TARGET TYPE FLAGS DATA */
static int run_mount(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct guest *g = ((struct setup *)context)->g;
    const char *source = r->argv[1];
    char device[300];
    unsigned long mask;
    if (g->mount_count == MOUNTS_MAX)
        return vmm_fail(e, 125, 0, "more than %d mounts", MOUNTS_MAX);
    if (parse_flags(r->argv[4], &mask, e) < 0)
        return -1;
    if (!strncmp(source, "serial:", 7)) {
        if (find_disk(source + 7, device, sizeof device, e) < 0)
            return -1;
        source = device;
    }
    VMM_CLOSE int place = vmm_root_make(((struct setup *)context)->root, r->argv[2], VMM_DIRECTORY, e);
    if (place < 0)
        return -1;
    if (sys_mount(source, r->argv[2], r->argv[3], mask, r->argv[5]) < 0)
        return vmm_fail(e, 125, errno, "cannot mount %.100s on %.200s", r->argv[1], r->argv[2]);
    g->mounts[g->mount_count++] = r->argv[2];
    return 0;
}

/* guest.mkdir PATH MODE UID GID */
static int run_mkdir(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct vmm_child child = {.root = ((struct setup *)context)->root};
    return vmm_make_directory(&child, r, e);
}

/* guest.stdio TTY STDIN_OPEN STDIN_ONCE; the last is the monitor's business. */
static int run_stdio(void *context, const struct vmm_record *r, struct vmm_error *e) {
    struct session *s = &((struct setup *)context)->g->workload;
    long long value[3];
    for (int i = 0; i < 3; i++)
        if (vmm_number(r->argv[i + 1], 10, 0, 1, &value[i], e) < 0)
            return -1;
    s->tty = value[0];
    s->stdin_open = value[0] || value[1];
    return 0;
}

static const struct vmm_op guest_ops[] = {
    {"guest.mount", 5, 5, NULL, run_mount},
    {"guest.mkdir", 4, 4, NULL, run_mkdir},
    {"guest.stdio", 3, 3, NULL, run_stdio},
};

int setup_guest(struct guest *g, struct vmm_error *e) {
    VMM_CLOSE int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct setup setup = {g, root};
    g->workload.tty = g->workload.stdin_open = false;
    for (size_t i = 0; i < g->plan.host_count; i++) {
        const struct vmm_record *r = &g->plan.host[i];
        if (strncmp(r->argv[0], "guest.", 6) != 0)
            continue;
        const struct vmm_op *op = vmm_op_find(guest_ops, COUNT(guest_ops), r, e);
        if (!op || op->run(&setup, r, e) < 0)
            return -1;
    }
    return 0;
}
