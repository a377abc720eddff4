"""What the host is, gathered once from /proc and /sys."""

from __future__ import annotations

import errno
import os
import re

from vmm.backends.linux import mountinfo
from vmm.backends.linux.capabilities import BIT
from vmm.model import platform
from vmm.model.backend import CgroupHierarchy, HostFacts

#: What bpf(2) says to a device program that it will not load.
PROGRAM_ERRORS = {
    errno.ENOSYS: "this kernel has no bpf(2) (CONFIG_BPF_SYSCALL)",
    errno.EINVAL: "this kernel has no BPF programs for cgroups (CONFIG_CGROUP_BPF)",
    errno.EPERM: "bpf(2) is not permitted (CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN)",
}


def read(path: str) -> str:
    """The text of a small file of the kernel; "" when it is not there."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def gather() -> HostFacts:
    """The facts of this host, now."""
    uname = os.uname()
    status = read("/proc/self/status")
    cgroups = _cgroups()
    refused = device_programs(cgroups)
    return HostFacts(
        os="linux",
        architecture=platform.architecture(uname.machine),
        kernel=kernel_version(uname.release),
        cpus=os.cpu_count() or 1,
        cap_bounding=mountinfo.parse_status_mask(status, "CapBnd"),
        rlimits=mountinfo.parse_limits(read("/proc/self/limits")),
        cgroups=cgroups,
        can_raise_limits=bool(mountinfo.parse_status_mask(status, "CapEff") & BIT["SYS_RESOURCE"]),
        has_mqueue="mqueue" in read("/proc/filesystems"),
        has_ipv6=os.path.exists("/proc/net/if_inet6"),
        cpuset_cpus=_cpuset(cgroups),
        swap_limit=_limits_swap(cgroups),
        device_programs=refused == "",
        device_programs_reason=refused or "",
    )


def kernel_version(release: str) -> tuple[int, int]:
    """``6.1.0-13-amd64`` is (6, 1)."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _cgroups() -> tuple[CgroupHierarchy, ...]:
    text = read("/proc/self/mountinfo")
    unified = {
        mount.mountpoint: controllers_v2(mount.mountpoint)
        for mount in mountinfo.parse_mountinfo(text)
        if mount.type == "cgroup2"
    }
    return mountinfo.hierarchies(text, read("/proc/self/cgroup"), unified)


def controllers_v2(mountpoint: str) -> str:
    """The controllers that groups below can have.

    Only the hierarchy's root, which alone has no cgroup.type, hands on controllers while it
    holds processes (admin-guide/cgroup-v2.rst, "No Internal Process Constraint"): a container's
    own group, mounted in its cgroup namespace, gives what it handed on before.
    """
    is_root = not os.path.exists(f"{mountpoint}/cgroup.type")
    if is_root or not read(f"{mountpoint}/cgroup.procs"):
        return read(f"{mountpoint}/cgroup.controllers")
    return read(f"{mountpoint}/cgroup.subtree_control")


def _cpuset(cgroups: tuple[CgroupHierarchy, ...]) -> str:
    """CPUs of the cpuset root; its effective ones on cgroup2."""
    for group in cgroups:
        if "cpuset" in group.controllers:
            suffix = ".effective" if group.version == 2 else ""
            return read(f"{group.mountpoint}/cpuset.cpus{suffix}").strip()
    return ""


def device_programs(cgroups: tuple[CgroupHierarchy, ...]) -> str | None:
    """Why the kernel takes no device program, "" when it does; None: there is no need of any."""
    if any(group.version == 1 and "devices" in group.controllers for group in cgroups):
        return None
    if not any(group.version == 2 for group in cgroups):
        return None
    from vmm.backends.linux.device_program import program
    from vmm.ports.kernel import bpf_device_program

    try:
        os.close(bpf_device_program(program(())))
    except OSError as error:
        return PROGRAM_ERRORS.get(error.errno or 0, f"bpf(2): {error.strerror}")
    return ""


def _limits_swap(cgroups: tuple[CgroupHierarchy, ...]) -> bool:
    for group in cgroups:
        if "memory" in group.controllers:
            if group.version == 1:
                return os.path.exists(f"{group.mountpoint}/memory.memsw.limit_in_bytes")
            # The root of cgroup2 has no memory files: swap accounting follows the kernel's option.
            return "swapaccount=0" not in read("/proc/cmdline") and os.path.exists("/proc/swaps")
    return False
