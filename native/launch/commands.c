/* Commands to the running workload, one a line, each answered by lines and a final `ok` or `error TEXT`. */
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int read_operations(const char *path, struct vmm_records *out, struct vmm_error *e) {
    struct stat st;
    VMM_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return vmm_fail(e, 125, errno, "%s", path);
    VMM_FREE char *data = malloc((size_t)st.st_size + 1);
    if (!data || read(fd, data, (size_t)st.st_size) != st.st_size)
        return vmm_fail(e, 125, EIO, "%s", path);
    return vmm_records_decode(data, (size_t)st.st_size, out, e);
}

static int print_line(void *context, const char *text, size_t size) {
    (void)context;
    printf("%.*s\n", (int)size, text);
    return 0;
}

static int print_stats(struct vmm_launcher *launcher) {
    struct vmm_stat stats[VMM_STATS_MAX];
    size_t count = vmm_launch_stats(launcher, stats);
    for (size_t i = 0; i < count; i++)
        printf("%s=%" PRId64 "\n", stats[i].name, stats[i].value);
    return 0;
}

static int update(struct vmm_launcher *launcher, const char *path, struct vmm_error *e) {
    struct vmm_records operations;
    if (read_operations(path, &operations, e) < 0)
        return -1;
    int failed = vmm_launch_update(launcher, &operations, e);
    vmm_records_free(&operations);
    return failed;
}

static int run(struct vmm_launcher *launcher, const char *line, struct vmm_error *e) {
    if (!strcmp(line, "freeze") || !strcmp(line, "thaw"))
        return vmm_launch_freeze(launcher, *line == 'f', e);
    if (!strcmp(line, "stats"))
        return print_stats(launcher);
    if (!strcmp(line, "top"))
        return vmm_launch_top(launcher, print_line, NULL);
    if (!strncmp(line, "kill ", 5))
        return vmm_launch_kill_all(launcher, atoi(line + 5));
    if (!strncmp(line, "update ", 7))
        return update(launcher, line + 7, e);
    return vmm_fail(e, 125, 0, "unknown command");
}

void run_commands(struct vmm_launcher *launcher) {
    char line[4200];
    puts("running");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        struct vmm_error e = {0};
        line[strcspn(line, "\n")] = 0;
        if (run(launcher, line, &e) < 0)
            printf("error %s: %s\n", e.step, e.message);
        else
            puts("ok");
        fflush(stdout);
    }
}
