"""Builds ``vmm._native``: system calls and libseccomp functions for Python (cffi, API mode).

Thin on purpose: one C function per system call, the errno returned negated, no policy.
"""

import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffibuilder = FFI()

SYSCALLS = """
int vmm_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int vmm_pidfd_open(int pid);
int vmm_pidfd_signal(int pidfd, int sig);
int vmm_bpf(int command, void *attributes, unsigned size);
int vmm_setns(int fd, int kinds);
int vmm_overlay_tree(const char *layers, const char *options, int readonly);
int vmm_tree(int dirfd, const char *path, int recursive);
int vmm_tree_private(int tree, int readonly);
int vmm_tree_attach(int tree, const char *path);
int vmm_mount(const char *type, const char *target, unsigned long flags, const char *data);
int vmm_unmount(const char *target);
"""

SECCOMP = """
typedef void *scmp_filter_ctx;
struct scmp_version { unsigned int major, minor, micro; };
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
uint32_t seccomp_arch_native(void);
uint32_t seccomp_arch_resolve_name(const char *name);
int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall,
                           unsigned int arg_cnt, const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);
const struct scmp_version *seccomp_version(void);
"""

ffibuilder.cdef(SYSCALLS)
LIBRARIES = []
SOURCE = (HERE / "python" / "syscalls.c").read_text()
if sys.platform.startswith("linux"):
    ffibuilder.cdef(SECCOMP)
    LIBRARIES = ["seccomp"]
    SOURCE += "\n#include <seccomp.h>\n"

ffibuilder.set_source(
    "vmm._native",
    SOURCE,
    libraries=LIBRARIES,
    extra_compile_args=["-std=gnu17", "-O2", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(HERE.parent))
