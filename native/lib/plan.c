/* Reading a launch plan from its file. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch.h"

#define MAGIC "VMMLP1\n"
#define MAX_SIZE (16l << 20)

/* Into memory of its own, which goes back whole: a hole in the heap would stay for as long as a shim lives. */
static int read_all(int fd, char **data, size_t size) {
    *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*data == MAP_FAILED)
        return *data = NULL, -1;
    for (size_t used = 0; used < size;) {
        ssize_t got = read(fd, *data + used, size - used);
        if (got == 0)
            errno = EIO;
        if (got <= 0 && errno != EINTR)
            return -1;
        used += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

static int read_plan(const char *path, char **data, size_t *size, struct vmm_error *e) {
    struct stat st;
    VMM_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return vmm_fail(e, 125, errno, "launch plan %.300s", path);
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_SIZE || st.st_size < (off_t)strlen(MAGIC))
        return vmm_fail(e, 125, 0, "%.300s is not a launch plan", path);
    *size = (size_t)st.st_size;
    if (read_all(fd, data, *size) < 0)
        return vmm_fail(e, 125, errno, "launch plan %.300s", path);
    return 0;
}

/* Where the records of section `name` go; NULL if there is no such section. */
static const struct vmm_record **section(struct vmm_plan *plan, const char *name, size_t **count) {
    if (!strcmp(name, "shim"))
        return *count = &plan->shim_count, &plan->shim;
    if (!strcmp(name, "host"))
        return *count = &plan->host_count, &plan->host;
    if (!strcmp(name, "child"))
        return *count = &plan->child_count, &plan->child;
    return NULL;
}

static int split(struct vmm_plan *plan, struct vmm_error *e) {
    size_t *count = NULL;
    for (size_t i = 0; i < plan->all.count; i++) {
        const struct vmm_record *record = &plan->all.items[i];
        if (strcmp(record->argv[0], "section") != 0) {
            if (!count)
                return vmm_fail(e, 125, 0, "launch plan: an operation outside any section");
            *count += 1;
            continue;
        }
        const struct vmm_record **first =
            record->argc == 2 ? section(plan, record->argv[1], &count) : NULL;
        if (!first || *first)
            return vmm_fail(e, 125, 0, "launch plan: unknown or repeated section");
        *first = record + 1;
    }
    return 0;
}

int vmm_plan_decode(const char *data, size_t size, struct vmm_plan *out, struct vmm_error *e) {
    *out = (struct vmm_plan){0};
    snprintf(e->step, sizeof e->step, "plan");
    if (size < strlen(MAGIC) || memcmp(data, MAGIC, strlen(MAGIC)) != 0)
        return vmm_fail(e, 125, 0, "not a launch plan of this version");
    if (vmm_records_decode(data + strlen(MAGIC), size - strlen(MAGIC), &out->all, e) < 0)
        return -1;
    if (split(out, e) == 0)
        return 0;
    vmm_plan_free(out);
    return -1;
}

int vmm_plan_read(const char *path, struct vmm_plan *out, struct vmm_error *e) {
    char *data = NULL;
    size_t size = 0;
    *out = (struct vmm_plan){0};
    snprintf(e->step, sizeof e->step, "plan");
    int failed = read_plan(path, &data, &size, e);
    if (!failed)
        failed = vmm_plan_decode(data, size, out, e);
    if (data)
        munmap(data, size);
    return failed;
}

void vmm_plan_free(struct vmm_plan *plan) {
    vmm_records_free(&plan->all);
    *plan = (struct vmm_plan){0};
}
