/* The device list of cgroup2: a BPF program that the kernel asks about each access (bpf(2)). */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define MAX_PROGRAMS 64 /* that the kernel attaches to one group */

static int sys_bpf(enum bpf_cmd command, union bpf_attr *attr) {
    return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static uint64_t address(const void *pointer) {
    return (uint64_t)(uintptr_t)pointer;
}

static int load(const struct vmm_record *r, struct vmm_error *e) {
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
                           .insn_cnt = r->len[2] / (uint32_t)sizeof(struct bpf_insn),
                           .insns = address(r->argv[2]),
                           .license = address("BSD")};
    if (!r->len[2] || r->len[2] % sizeof(struct bpf_insn))
        return vmm_fail(e, 125, 0, "the device program is not whole instructions");
    int fd = sys_bpf(BPF_PROG_LOAD, &attr);
    return fd < 0 ? vmm_fail(e, 125, errno, "the kernel does not take the device program") : fd;
}

/* Programs attached to the group itself, of an attempt that failed later on. */
static uint32_t attached(int group, uint32_t *ids) {
    union bpf_attr attr = {.query = {.target_fd = (uint32_t)group,
                                     .attach_type = BPF_CGROUP_DEVICE,
                                     .prog_ids = address(ids),
                                     .prog_cnt = MAX_PROGRAMS}};
    return sys_bpf(BPF_PROG_QUERY, &attr) < 0 ? 0 : attr.query.prog_cnt;
}

static void detach(int group, uint32_t id) {
    union bpf_attr find = {.prog_id = id};
    VMM_CLOSE int program = sys_bpf(BPF_PROG_GET_FD_BY_ID, &find);
    union bpf_attr attr = {.target_fd = (uint32_t)group,
                           .attach_bpf_fd = (uint32_t)program,
                           .attach_type = BPF_CGROUP_DEVICE};
    if (program >= 0)
        sys_bpf(BPF_PROG_DETACH, &attr);
}

/* The new one first: the group is never without. */
static int attach(int group, int program) {
    uint32_t earlier[MAX_PROGRAMS];
    uint32_t count = attached(group, earlier);
    union bpf_attr attr = {.target_fd = (uint32_t)group,
                           .attach_bpf_fd = (uint32_t)program,
                           .attach_type = BPF_CGROUP_DEVICE,
                           .attach_flags = BPF_F_ALLOW_MULTI};
    if (sys_bpf(BPF_PROG_ATTACH, &attr) < 0)
        return -1;
    for (uint32_t i = 0; i < count; i++)
        detach(group, earlier[i]);
    return 0;
}

int vmm_devices_limit(const struct vmm_record *r, struct vmm_error *e) {
    vmm_step(e, r);
    VMM_CLOSE int group = open(r->argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (group < 0)
        return vmm_fail(e, 125, errno, "cannot open the cgroup %.300s", r->argv[1]);
    VMM_CLOSE int program = load(r, e);
    if (program < 0)
        return -1;
    if (attach(group, program) < 0)
        return vmm_fail(e, 125, errno, "cannot limit the devices of the cgroup %.300s", r->argv[1]);
    return 0;
}
